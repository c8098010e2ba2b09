"""Names of a file's tensors: finds the prefix before a network's, strips it, renames, remarks on a decoder beside."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence, Set
from typing import TYPE_CHECKING

from zoo.errors import CheckpointMismatchError

if TYPE_CHECKING:
    from zoo.entry import Config, State

KEY_NETWORKS = frozenset(
    {
        "encoder_k",
        "key_encoder",
        "momentum_encoder",
        "encoder_momentum",
        "target_encoder",
        "encoder_ema",
        "momentum_backbone",
        "backbone_momentum",
        "target_backbone",
        "backbone_ema",
        "target_net",
        "target_network",
        "teacher",
        "teacher_encoder",
        "teacher_backbone",
        "teacher_net",
        "ema",
        "ema_model",
        "model_ema",
    }
)
"""Names of slowly moving copies that methods keep beside the network they train, in the code of MoCo, DINO, solo-learn,
lightly and mmselfsup among others."""
_MAYBE_TUNED = (
    "its encoder may have been trained with labels, and its features are then not those of the self-supervised "
    "pre-training"
)


def find_prefix(
    state: Mapping[str, object], anchors: Sequence[str], *, passed_over: Set[str] = KEY_NETWORKS
) -> str | None:
    """Find what stands in front of a network's names in a file, whatever wrappers it was saved in.

    Args:
        state: Names of a file.
        anchors: Names that the network surely has, best its first, its last and some between.
        passed_over: Names of copies that are not the one to load.

    Returns:
        The one prefix, empty or ending in a dot, behind which all anchors are found; else the one behind which most of
        several are, so that the coverage check can say which tensor a file lacks. None where no prefix fits.

    Raises:
        CheckpointMismatchError: There are several, or key networks alone.
    """
    counts = Counter(name.removesuffix(anchor) for anchor in anchors for name in state if name.endswith(anchor))
    most = [p for p, count in counts.items() if (not p or p.endswith(".")) and 2 * count > len(anchors)]
    prefixes = [p for p in most if counts[p] == len(anchors)]
    found, partly = ([p for p in some if passed_over.isdisjoint(p.split("."))] for some in (prefixes, most))
    if len(found or partly) == 1:
        return (found or partly)[0]
    if not prefixes:
        return None
    which = "several copies of the network" if found else "a key network alone, not the one that was trained"
    raise CheckpointMismatchError(
        f"the file holds {which}, behind {' and '.join(repr(p) for p in found or prefixes)}; expected one. Keep the "
        f"names behind the right prefix (`zoo.checkpoint.strip_prefix`) and save them as a separate file"
    )


def strip_prefix(state: State, prefix: str) -> State:
    """Return what stands behind a prefix, without it. Pure.

    Args:
        state: Any state dict.
        prefix: Empty, or ending in a dot.
    """
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def rename_keys(state: State, table: Mapping[str, str]) -> State:
    """Return the state dict with leading parts of names replaced. Pure.

    Args:
        state: Any state dict.
        table: Leading part -> its replacement; of several that fit a name the longest counts. Parts are whole: `"fc"`
            fits `fc` and `fc.weight`, not `fc2.weight`.

    Raises:
        CheckpointMismatchError: Two names would become one.
    """
    longest_first = sorted(table, key=len, reverse=True)

    def renamed(name: str) -> str:
        old = next((part for part in longest_first if name == part or name.startswith(f"{part}.")), None)
        return name if old is None else table[old] + name.removeprefix(old)

    result = {renamed(name): tensor for name, tensor in state.items()}
    if len(result) != len(state):
        raise CheckpointMismatchError(f"renaming by {dict(table)} gives two tensors of the file the same name")
    return result


def segmenter_remark(network: State, decoder: tuple[str, ...], head: str, *, restores: bool = False) -> Config:
    """Say of a file, of which the encoder is kept, that it holds a whole network, as the fact `remark`; else nothing.

    Args:
        network: The file's tensors under the whole network's names.
        decoder: Prefixes of the decoder's names.
        head: The weight of the last layer.
        restores: Whether the pre-training has a decoder itself, so that only several outputs tell another training.
    """
    last = network.get(head)
    classes = 0 if last is None or last.ndim < 2 else last.shape[0]
    if not any(name.startswith(decoder) for name in network) or (restores and classes < 2):
        return {}
    outputs = f" and an output head of {classes} class{'es' if classes > 1 else ''}" if classes else ""
    return {"remark": f"the file also has a decoder{outputs}: {_MAYBE_TUNED}"}
