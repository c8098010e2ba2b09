"""From the tensor names of any published Swin UNETR, or Swin transformer alone, to those of MONAI's classes. Pure."""

from __future__ import annotations

from dataclasses import replace

from zoo.entries.monai_ssl.convert import with_widths
from zoo.entry import Config, State
from zoo.errors import CheckpointMismatchError, OptionError
from zoo.networks.naming import classes_of, keeping_head, without
from zoo.networks.swin_names import DECODER, TWO_CONVOLUTIONS, UNUSED, FoundSwin, find_swin
from zoo.networks.swin_names import check_indices as check_indices
from zoo.tensor_names import segmenter_remark

_OUT = r"out\.conv\.conv\.(weight|bias)"
_SUPREM = ("precls_conv", "GAP", "controller")
"""What SuPreM's training had behind the decoder in place of a last convolution."""
_BESIDE = UNUSED | {
    rf"({'|'.join(_SUPREM)}|text_to_vision)\..+": "head of SuPreM's supervised training",
    r"organ_embedding(\.weight)?": "head of SuPreM's supervised training",
}
_RESTORED = {_OUT: "head that restored the volume in pre-training, or is not trained or asked for"}
UNUSED_BY_SWIN = _BESIDE | _RESTORED
UNUSED_BY_ENCODER = _BESIDE | DECODER | {_OUT: "head of the U-Net around the transformer"}

_HEAD, _LAST = "out.conv.conv.weight", "decoder1."
_RELATIVE = (
    "a supervised relative, which learned to segment, and not the pre-training alone. SuPreM's Swin UNETR is one, and "
    "so is self_supervised_nv_swin_unetr_5050.pt, whatever its name says"
)
_VOCO = {48: "b", 96: "l", 192: "h"}


def convert_swin(state: State) -> tuple[State, Config]:
    """Keep the Swin UNETR of a file, or move a file's Swin transformer to its place in a Swin UNETR.

    The forms are those of `find_swin`, and SuPreM's around MONAI's. The last convolution of the published pre-training,
    which restored the volume, is left out, and so is SuPreM's, which its training did not use.

    Raises:
        CheckpointMismatchError: The file holds several networks that it could mean, or a Swin v2.
    """
    found = _find_v1(state)
    if found is None:
        return dict(state), {}
    network = {f"swinViT.{name}": tensor for name, tensor in found.tensors.items()} | found.beside
    classes = classes_of(network, _HEAD)
    if not _segments(found):
        network, classes = without(network, _RESTORED), {}
    return without(network, _BESIDE), with_widths(found.facts) | classes


def convert_swin_encoder(state: State) -> tuple[State, Config]:
    """Keep the Swin transformer of any of these files, under the names of MONAI's `SwinTransformer`.

    Of a network that learned to segment the last block of the decoder is kept too, so that names and shapes tell its
    file from one of a pre-training; no encoder has it, and `UNUSED_BY_ENCODER` says so.

    Raises:
        CheckpointMismatchError: As `convert_swin`.
    """
    found = _find_v1(state)
    if found is None:
        return dict(state), {}
    network = without(found.tensors, _BESIDE)
    facts = found.facts
    if "remark" in facts:
        network |= {name: tensor for name, tensor in found.beside.items() if name.startswith(_LAST)}
    elif "merging" not in facts:  # the published pre-training has a decoder itself, under older names
        facts = facts | segmenter_remark(found.beside, (_LAST,), _HEAD)
    return network, with_widths(facts) | classes_of(network, "classification_head.weight")


def complete_swin(state: State) -> State:
    """Without classes, add a last convolution that changes nothing, so that MONAI's class loads it strictly.

    Raises:
        OptionError: The network begins with two convolutions, where that class has one.
    """
    _check_stem(state, f"swinViT.{TWO_CONVOLUTIONS}", "SwinUNETR")
    return state | keeping_head(state)


def complete_swin_encoder(state: State) -> State:
    """Leave out the classifier, so that MONAI's `SwinTransformer` loads the rest strictly.

    Raises:
        OptionError: As `complete_swin`.
    """
    _check_stem(state, TWO_CONVOLUTIONS, "SwinTransformer")
    return {name: tensor for name, tensor in state.items() if not name.startswith("classification_head.")}


def _find_v1(state: State) -> FoundSwin | None:
    found = find_swin(state)
    if found is not None and found.v2:
        known = _VOCO.get(found.width or 0)
        sizes = f"-{known}" if known else "-b, -l and -h"
        raise CheckpointMismatchError(
            f"the file holds a Swin v2 network ({len(found.v2)} tensors of convolutions before its stages: "
            f"{found.v2[0]}), expected one that has none. It is another network: left without them, the same "
            f"transformer would compute something else. VoCo's files are so: 'voco-swinunetr{sizes}' and "
            f"'voco-swinvit{sizes}' take them"
        )
    parts = {part for name in state for part in name.split(".")}
    if found is not None and parts.issuperset(_SUPREM):
        remark = f"the file has a decoder and heads of SuPreM's training with labels: {_RELATIVE}"
        facts = {name: fact for name, fact in found.facts.items() if name != "unclear"}
        return replace(found, facts=facts | {"merging": "duplicated", "remark": remark})
    if found is not None and _segments(found) and any(name.startswith(_LAST) for name in found.beside):
        (classes,) = classes_of(found.beside, _HEAD).values()
        remark = f"the file has a decoder and an out head of {classes} class{'es' if classes > 1 else ''}: {_RELATIVE}"
        return replace(found, facts=found.facts | {"remark": remark})
    return found


def _segments(found: FoundSwin) -> bool:
    """Whether the last convolution tells classes: the authors' own, of one output, restored the volume.

    SuPreM's, which stands beside the heads that its training used, did nothing.
    """
    classes = classes_of(found.beside, _HEAD)
    return bool(classes) and not ("merging" in found.facts and (classes["num_classes"] == 1 or "remark" in found.facts))


def _check_stem(state: State, stem: str, name: str) -> None:
    if stem in state:
        raise OptionError(
            f"MONAI's {name} begins with one convolution, this network of the paper's with two convolutions: no "
            "values make that class compute the same. Without --full its tensors are exported as they are"
        )
