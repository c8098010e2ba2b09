"""Pure rules from the tensor names of any published Swin UNETR, or Swin transformer, to those of MONAI's class.

MONAI's own (monai/networks/nets/swin_unetr.py), and those of Project-MONAI/research-contributions (SwinUNETR/Pretrain,
DAE/Pretrain_full_contrast).
"""

from __future__ import annotations

import re

from zoo.entries.monai_ssl.convert import classes_of, keeping_head, parts_beside, with_widths, without
from zoo.entry import Config, State
from zoo.errors import CheckpointMismatchError, OptionError
from zoo.tensor_names import find_prefix, rename_keys, strip_prefix

STEM, TWO_CONVOLUTIONS = "patch_embed.proj.weight", "patch_embed.proj.conv1.conv.weight"
"""First weight of the transformer, and of that in the paper "Disruptive Autoencoders"."""

_END = "downsample.reduction.weight"
_V2 = re.compile(r"layers\d+c\..+")
_MERGING = (
    "merging='duplicated' is taken, as in MONAI up to 1.4; weights trained with MONAI 1.5 or later need 'complete', "
    "which makes another network of the same tensors"
)
_TASKS = "head of a task of the pre-training"
_TRANSFORMER = r"(swinViT\.|encoder\.)?"
UNUSED_BY_SWIN = {
    rf"{_TRANSFORMER}mask_token": "token of the masked voxels in pre-training",
    rf"{_TRANSFORMER}norm\.(weight|bias)": "last norm of the pre-training, which a Swin UNETR lacks",
    rf"{_TRANSFORMER}(rotation_head|contrastive_head|convTrans3d)\.(weight|bias)": _TASKS,
    r"conv\.\d+\.(weight|bias)": _TASKS,
    r"encoder(2|3|4|10)\.layer\.conv3\.conv\.weight": "shortcut, which no forward pass used (MONAI 0.8)",
}
"""Parts of published files beside the network, by the names that `convert_swin` gives: pattern -> what it is."""
RESTORED = {r"out\.conv\.conv\.(weight|bias)": "head that restored the volume in pre-training, or was not asked for"}


def convert_swin(state: State) -> tuple[State, Config]:
    """Keep the Swin UNETR of a file, or move a file's Swin transformer to its place in a Swin UNETR.

    There are four forms: MONAI's own names; the transformer alone, with perceptrons called `fc1` and `fc2` (as
    `load_from` of MONAI's class reads it); the published pre-training, `encoder.layers1.0.0.…` beside a decoder, whose
    last convolution restored the volume and is left out (as `filter_swinunetr` of the same module reads it); and the
    network of its paper, the same with two convolutions at the beginning. All but the first date from before MONAI had
    a second merging.

    Raises:
        CheckpointMismatchError: The file holds several networks that it could mean, or a Swin v2.
    """
    found = _find_swin(state)
    if found is None:
        return dict(state), {}
    prefix, swin, facts = found
    network = {f"swinViT.{name}": tensor for name, tensor in swin.items()}
    owner = re.sub(r"(^|(?<=\.))(encoder|swinViT)\.$", "", prefix)
    if owner != prefix:
        network |= parts_beside(state, prefix, owner)
    classes = classes_of(network, "out.conv.conv.weight")
    if "merging" in facts and classes == {"num_classes": 1}:  # the authors' own names: it restores the volume
        network, classes = without(network, RESTORED), {}
    return without(network, UNUSED_BY_SWIN), with_widths(facts) | classes


def _find_swin(state: State) -> tuple[str, State, Config] | None:
    """Return the prefix of a file's Swin transformer, the tensors behind it, and what they say.

    Blocks are under MONAI's names. None where there is no Swin transformer.
    """
    has_two = any(name.endswith(TWO_CONVOLUTIONS) for name in state)
    stem = TWO_CONVOLUTIONS if has_two else STEM
    nested = find_prefix(state, (stem, f"layers1.0.0.{_END}", f"layers4.0.0.{_END}"))
    prefix = find_prefix(state, (stem, f"layers1.0.{_END}", f"layers4.0.{_END}"))
    place = nested if nested is not None else prefix
    if place is None:
        return None
    swin = strip_prefix(state, place)
    if v2 := [name for name in swin if _V2.fullmatch(name)]:
        raise CheckpointMismatchError(
            f"the file holds a Swin v2 network ({len(v2)} tensors of convolutions before its stages: {place}{v2[0]}) "
            "as VoCo's files do; one without them is expected. It is another network: without these tensors the "
            "transformer would compute something else"
        )
    if nested is not None:
        swin = rename_keys(swin, {f"layers{i}.0.0": f"layers{i}.0" for i in range(1, 5)})
    linear = _linear_names(swin)
    is_old = linear or nested is not None
    facts: Config = {"merging": "duplicated"} if is_old else {"unclear": {"merging": _MERGING}}
    if stem in swin and swin[stem].ndim == 5:
        facts |= {"feature_size": swin[stem].shape[0]}
    return place, rename_keys(swin, linear), facts | ({"two_convolutions": True} if has_two else {})


def complete_swin(state: State) -> State:
    """Without classes, add a last convolution that changes nothing, so that MONAI's class loads it strictly.

    Raises:
        OptionError: The network begins with two convolutions, where that class has one.
    """
    if f"swinViT.{TWO_CONVOLUTIONS}" in state:
        raise OptionError(
            "MONAI's SwinUNETR begins with one convolution, this network (of the paper) with two: no values make that "
            "class compute the same. Leave --full out to export the tensors unchanged"
        )
    return state | keeping_head(state)


def _linear_names(swin: State) -> dict[str, str]:
    """Names of each perceptron's two layers in files of the Swin transformer alone -> MONAI's names."""
    places = {name.rpartition(".fc1.")[0] for name in swin if ".mlp.fc1." in name}
    return {f"{place}.fc{i}": f"{place}.linear{i}" for place in places for i in (1, 2)}
