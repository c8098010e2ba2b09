"""From the state dict of a file to a filled network: anchored renaming, strict coverage, and the report of it."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.building import make_fresh
from zoo.coverage import check_coverage, group_of, is_counter, shape_text
from zoo.errors import CheckpointMismatchError, OptionError
from zoo.files import replacing
from zoo.formats import as_float32, base_of, other_float
from zoo.report import AS_STORED, HEAD_MISFIT, LoadReport, unwrap
from zoo.values import as_counts

if TYPE_CHECKING:
    from torch import Tensor, nn

    from zoo.entry import Config, Entry, State

KEY_NETWORKS = frozenset(
    {"encoder_k", "key_encoder", "momentum_encoder", "target_encoder", "teacher", "ema", "ema_model", "model_ema"}
)
"""Names of slowly moving copies that contrastive methods keep beside the network they train."""

_ANY_PREFIX = r"(?:.*\.)?"


def find_prefix(state: Mapping[str, object], anchors: Sequence[str]) -> str | None:
    """Find what stands in front of a network's names in a file, whatever wrappers it was saved in.

    Args:
        state: Names of a file.
        anchors: Names that the network surely has, best its first, its last and some between.

    Returns:
        The one prefix, empty or ending in a dot, behind which all anchors are found; else the one behind which most of
        several are, so that of a file that lacks a tensor the coverage check can say which. None where there is none.
        Key networks (`KEY_NETWORKS`) are passed over.

    Raises:
        CheckpointMismatchError: There are several, or key networks alone.
    """
    counts = Counter(name.removesuffix(anchor) for anchor in anchors for name in state if name.endswith(anchor))
    most = [p for p, count in counts.items() if (not p or p.endswith(".")) and 2 * count > len(anchors)]
    prefixes = [p for p in most if counts[p] == len(anchors)]
    found, partly = ([p for p in some if not KEY_NETWORKS.intersection(p.split("."))] for some in (prefixes, most))
    if len(found or partly) == 1:
        return (found or partly)[0]
    if not prefixes:
        return None
    which = "several copies of the network" if found else "a key network alone, not the one that was trained"
    raise CheckpointMismatchError(
        f"the file holds {which}, behind {' and '.join(repr(p) for p in found or prefixes)}; expected one. Keep the "
        f"names behind the right prefix (`zoo.checkpoint.strip_prefix`) and save them as a file of their own"
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
        raise CheckpointMismatchError(f"renaming {dict(table)} makes one name of two of the file's")
    return result


def convert(entry: Entry, tensors: State) -> tuple[State, Config]:
    """Run an entry's `convert`, and add to what the file knows the input channels of its first convolution.

    Raises:
        CheckpointMismatchError: The file holds several networks that it could mean.
    """
    state, facts = entry.convert(tensors)
    stem = next((state[name] for name in (entry.stem, *entry.side_stems) if name in state), None)
    axis = entry.stem_axis
    known: Config = {} if stem is None or stem.ndim < axis + 2 else {"in_channels": stem.shape[axis]}
    return state, known | facts


def left_out(stored: State, kept: State, unused: Mapping[str, str]) -> dict[str, str]:
    """Say why each tensor that `convert` did not keep was left out.

    Args:
        stored: Tensors of the file.
        kept: What `convert` returned for them.
        unused: The entry's patterns.
    """
    keeps = {id(each) for tensor in kept.values() for each in (tensor, base_of(tensor))}
    names = (name for name, tensor in stored.items() if id(tensor) not in keeps)
    return {name: _reason(name, unused, behind=_ANY_PREFIX) or "beside the network" for name in names}


def _reason(name: str, unused: Mapping[str, str], *, behind: str = "") -> str | None:
    return next((why for pattern, why in unused.items() if re.fullmatch(f"{behind}(?:{pattern})", name)), None)


def adapt_input_channels(weight: Tensor, channels: int, axis: int = 1) -> Tensor:
    """Change the number of input channels of a convolution so that a grey image gives the same response.

    Args:
        weight: `(O, I, *kernel)`, in any number of dimensions.
        channels: Summed over I for one channel; repeated and scaled by I / channels for more.
        axis: Where I stands.

    Raises:
        OptionError: `channels` is not positive.
    """
    if channels < 1:
        raise OptionError(f"in_channels={channels}: expected 1 or more")
    present = weight.shape[axis]
    if channels == 1:
        return weight.sum(dim=axis, keepdim=True)
    index = (slice(None),) * axis + ([i % present for i in range(channels)],)
    return weight[index] * (present / channels)


def load_into(
    model: nn.Module,
    state: State,
    entry: Entry,
    *,
    read: Callable[[State], State] = as_float32,
    projection: bool = False,
) -> LoadReport:
    """Fill a network, built on the meta device or not, with a converted state dict. Strict: all or an error.

    Parts of the head may be missing or not fit, and a group that the entry does not require may be missing as a whole;
    such parts get fresh values. Everything else must be there, and nothing may be there that the network does not have.

    Args:
        model: The network; its tensors are replaced, not copied into.
        state: In the network's names; emptied on the way, so that no tensor is in memory twice.
        entry: Says what is required, what is left out on purpose, and how fresh parts start.
        read: Returns tensors with their values in float32; called after everything was checked.
        projection: Whether the head is a projection head that was asked for, and so required.

    Raises:
        CheckpointMismatchError: The file does not fill the network, or does not belong to it.
        CheckpointFormatError: A value is beyond the range of float32.
    """
    own = model.state_dict()
    report = LoadReport(entry.name, dropped=set_aside(own, state, entry, keep_head=projection))
    check_coverage(own, state, entry, head_required=projection)
    _sort_out(own, state, entry, report)
    values = read(state)
    as_counts(values)
    for stem in report.adapted:
        channels = own[stem].shape[entry.stem_axis]
        values[stem] = adapt_input_channels(values[stem], channels, entry.stem_axis)
    make_fresh(model, report.fresh, entry)
    current = model.state_dict() if report.fresh else own
    model.load_state_dict({name: values.get(name, current[name]) for name in own}, strict=True, assign=True)
    return report


def set_aside(own: State, state: State, entry: Entry, *, keep_head: bool = False) -> dict[str, str]:
    """Take out of a state dict what is left out on purpose, and the parts of a head that do not fit the network's.

    Args:
        own: Tensors of the network.
        state: Tensors of the file, in the network's names; changed in place.
        entry: Says what is left out, and where the head is.
        keep_head: Whether the head must stay, fitting or not.

    Returns:
        The names that were taken out, and why.
    """
    dropped = {n: why for n in state if n not in own and (why := _reason(n, entry.unused))}
    for name in dropped:
        del state[name]
    for part in () if keep_head else entry.head:
        theirs = {name: tensor for name, tensor in state.items() if name.startswith(part)}
        for name in theirs if _other_classes(own, theirs, part) else ():
            wanted = f"{shape_text(own[name])} in the network" if name in own else "the network has no such head"
            dropped[name] = f"{HEAD_MISFIT}: {shape_text(state.pop(name))} in the file, {wanted}"
    return dropped


def _other_classes(own: State, head: State, prefix: str) -> bool:
    """Whether a file's head is of another kind or for other classes; a mere difference in width is a mismatch."""
    if head.keys() != {name for name in own if name.startswith(prefix)}:
        return bool(head)
    same_width = all(tensor.shape[1:] == own[name].shape[1:] for name, tensor in head.items())
    return same_width and any(tensor.shape != own[name].shape for name, tensor in head.items())


def _sort_out(own: State, state: State, entry: Entry, report: LoadReport) -> None:
    """Note in the report what will come of each tensor of the network."""
    lost = {group_of(name, entry) for name, why in report.dropped.items() if why.startswith(HEAD_MISFIT)}
    for name, target in own.items():
        if name not in state:
            absent = "the file's head does not fit" if group_of(name, entry) in lost else "not in the file"
            report.fresh[name] = "counts from 0" if is_counter(name) else absent
        elif state[name].shape != target.shape:
            there, here = state[name].shape[entry.stem_axis], target.shape[entry.stem_axis]
            report.adapted[name] = f"{there} input channels {'summed to 1' if here == 1 else f'repeated to {here}'}"
        elif is_counter(name) and state[name].is_floating_point():
            report.loaded[name] = f"a count, rounded from {str(state[name].dtype).removeprefix('torch.')}"
        elif kind := other_float(state[name]):
            report.loaded[name] = f"{'narrowed' if kind == 'float64' else 'widened'} from {kind}"
        else:
            report.loaded[name] = AS_STORED


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """Digest of the names and shapes of a converted state dict: what a file must hold, whatever its values.

    Returns:
        The sha256 of the sorted lines `name 64x3x7x7`, each ended by a newline, in UTF-8.
    """
    lines = sorted(f"{name} {'x'.join(map(str, tensor.shape))}\n" for name, tensor in state.items())
    return hashlib.sha256("".join(lines).encode(errors="surrogatepass")).hexdigest()


def export_safetensors(
    model_or_state: nn.Module | Mapping[str, Tensor],
    path: str | Path,
    *,
    half: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write a network's tensors as safetensors, whole or not at all.

    Args:
        model_or_state: A network, which may be inside DDP or `torch.compile`, or a state dict.
        path: The file, which is replaced if it exists. Its folder must exist.
        half: Whether to store floating-point tensors as float16. Those of one dimension (norms, biases) and integers
            stay as they are.
        metadata: Text to store in the header; with one entry at most, the same tensors always give the same bytes.

    Returns:
        `path`.

    Raises:
        OptionError: A value is beyond the range of float16.
        OSError: The file cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    state = model_or_state if isinstance(model_or_state, Mapping) else unwrap(model_or_state).state_dict()
    target = Path(path)
    taken: set[int] = set()
    tensors = {name: _to_store(name, tensor, half, taken) for name, tensor in state.items()}
    try:
        with replacing(target) as temporary:
            temporary.touch()
            mode = temporary.stat().st_mode  # what the user's umask gives; safetensors alone makes the file private
            save_file(tensors, temporary, metadata=dict(metadata or {"format": "pt"}))
            temporary.chmod(mode)
    except SafetensorError as error:
        raise OSError(f"{target} cannot be written: {error}") from error
    return target


def _to_store(name: str, tensor: Tensor, half: bool, taken: set[int]) -> Tensor:
    """Return the tensor as the file will hold it, in memory that no other one shares."""
    stored = tensor.detach().cpu()
    if half and tensor.is_floating_point() and tensor.ndim > 1:
        stored = stored.half()
        if not stored.isfinite().all() and tensor.isfinite().all():
            raise OptionError(f"{name} has values beyond the range of float16; export it with half=False")
    place = stored.untyped_storage().data_ptr()
    stored = stored.clone() if place in taken else stored
    taken.add(place)
    return stored.contiguous()
