"""From the tensor names of any of VoCo's files to those of MONAI's Swin v2. Pure."""

from __future__ import annotations

from zoo.entry import Config, State
from zoo.errors import CheckpointMismatchError
from zoo.networks.naming import classes_of, keeping_head, without
from zoo.networks.swin_names import DECODER, UNUSED, FoundSwin, find_swin
from zoo.networks.swin_names import STAGES as STAGES
from zoo.networks.swin_names import check_indices as check_indices
from zoo.tensor_names import segmenter_remark

WIDTHS = {"b": 48, "l": 96, "h": 192}
"""Size -> channels of the first stage."""

_HEADS = {r"(student|teacher)\..+": "head of the pre-training, which told where a crop lies"}
_OUT = {r"out\.conv\.conv\.(weight|bias)": "head of the U-Net around the transformer, or not asked for"}
_CLASSIFIER = {r"classification_head\.(weight|bias)": "classifier on the transformer"}
UNUSED_BY_ENCODER = UNUSED | _HEADS | DECODER | _OUT
UNUSED_BY_SEGMENTER = UNUSED | _HEADS | _CLASSIFIER

_HEAD = "out.conv.conv.weight"
_CONVOLUTIONS = tuple(f"encoder{i}." for i in (1, 2, 3, 4, 10))


def convert_segmenter(state: State, *, width: int) -> tuple[State, Config]:
    """Keep the Swin UNETR of a file, or put a file's Swin transformer where a Swin UNETR has it.

    Raises:
        CheckpointMismatchError: The file holds several networks that it could mean, one of another size, or no Swin v2.
    """
    found = _find(state, width)
    if found is None:
        return dict(state), {}
    around = found.beside or {n: t for n, t in found.tensors.items() if n.startswith(_CONVOLUTIONS)}
    swin = {name: tensor for name, tensor in found.tensors.items() if name not in around}
    network = {f"swinViT.{name}": tensor for name, tensor in without(swin, _CLASSIFIER).items()} | around
    return without(network, UNUSED_BY_SEGMENTER), _facts(found) | classes_of(network, _HEAD)


def convert_encoder(state: State, *, width: int) -> tuple[State, Config]:
    """Keep the Swin transformer of a file under the names of MONAI's `SwinTransformer`, and the convolutions around it.

    VoCo's own embedding is made with these; the fact `convolutions` says whether the file has them.

    Raises:
        CheckpointMismatchError: As `convert_segmenter`.
    """
    found = _find(state, width)
    if found is None:
        return dict(state), {}
    around = {name: tensor for name, tensor in found.beside.items() if name.startswith(_CONVOLUTIONS)}
    network = without(found.tensors | around, UNUSED | _HEADS)
    facts = _facts(found) | {"convolutions": _has_convolutions(network)}
    facts |= segmenter_remark(found.beside, ("decoder1.",), _HEAD)
    return network, facts | classes_of(network, "classification_head.weight")


def check_convolutions(config: Config) -> None:
    """Raise `CheckpointMismatchError` where VoCo's own embedding is asked of a file without its convolutions."""
    if config["embedding"] == "authors" and not config.get("convolutions", True):
        raise CheckpointMismatchError(
            "embedding='authors' is made by convolutions that stand beside the transformer in VoCo's files "
            f"({', '.join(_CONVOLUTIONS)}), and this file has not all of them. Without embedding='authors' it gives "
            "the mean of the last map; VoCo's own files have them"
        )


def complete_segmenter(state: State) -> State:
    """Without classes, add a last convolution that changes nothing, so that MONAI's class loads it strictly."""
    return state | keeping_head(state)


def complete_encoder(state: State) -> State:
    """Leave out the classifier and VoCo's convolutions, so that MONAI's `SwinTransformer` loads the rest strictly."""
    parts = (*_CONVOLUTIONS, "classification_head.")
    return {name: tensor for name, tensor in state.items() if not name.startswith(parts)}


def _facts(found: FoundSwin) -> Config:
    """What names tell; those of VoCo's own files are of the old merging, for VoCo was trained on MONAI 1.3."""
    is_own = _has_convolutions(found.beside) and not any(name.startswith(("decoder", "out.")) for name in found.beside)
    if not is_own:  # fine-tuned, perhaps by another MONAI
        return found.facts
    return {name: fact for name, fact in found.facts.items() if name != "unclear"} | {"merging": "duplicated"}


def _has_convolutions(network: State) -> bool:
    return all(any(name.startswith(prefix) for name in network) for prefix in _CONVOLUTIONS)


def _find(state: State, width: int) -> FoundSwin | None:
    found = find_swin(state)
    if found is None:
        return None
    if not found.v2:
        raise CheckpointMismatchError(
            "the file holds a Swin transformer that has no convolutions before its stages, expected a Swin v2, as "
            f"VoCo's are (layers1c.0.layer.conv1.conv.weight and seven others behind {found.prefix!r}). It is another "
            "network: 'monai-ssl-swinunetr' and 'monai-ssl-swinvit' take it"
        )
    if found.width not in (None, width):
        right = next((size for size, other in WIDTHS.items() if other == found.width), "")
        known = f"It is VoCo {right.upper()}: 'voco-swinunetr-{right}' and 'voco-swinvit-{right}' take it"
        others = ", ".join(f"{other} ({size.upper()})" for size, other in WIDTHS.items())
        raise CheckpointMismatchError(
            f"the file holds a Swin v2 of width {found.width}, expected {width}. "
            f"{known if right else f'VoCo has the widths {others}, so it is none of theirs'}"
        )
    return found
