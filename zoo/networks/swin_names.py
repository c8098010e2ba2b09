"""Finds the Swin transformer of any published Swin UNETR in a file, whatever its writer called its parts. Pure.

The writers: MONAI (monai/networks/nets/swin_unetr.py), Project-MONAI/research-contributions (SwinUNETR/Pretrain,
DAE/Pretrain_full_contrast) and VoCo (Luffy03/Large-Scale-Medical).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from zoo.errors import CheckpointFormatError
from zoo.networks.naming import parts_beside
from zoo.tensor_names import find_prefix, rename_keys, strip_prefix

if TYPE_CHECKING:
    from torch import Tensor

    from zoo.entry import Config, State

STEM, TWO_CONVOLUTIONS = "patch_embed.proj.weight", "patch_embed.proj.conv1.conv.weight"
"""The first weight of the transformer, and of the one that the paper of "Disruptive Autoencoders" is about."""
STAGES = tuple((f"layers{i}c.", f"layers{i}.") for i in (1, 2, 3, 4))
"""Prefixes of each stage: the convolutions of a Swin v2 before it, and the stage."""

WINDOW = 7
"""Voxels along a side of a window: of every published Swin UNETR."""

_INDEX = ".relative_position_index"
_END = "downsample.reduction.weight"
_V2 = re.compile(r"layers\d+c\..+")
_OLD_MERGING = (
    "merging='duplicated' is taken, as MONAI up to 1.4 has it; weights trained with MONAI 1.5 or later need "
    "'complete', which makes another network of the same tensors"
)
_TASKS = "head of a task of the pre-training"
_TRANSFORMER = r"(swinViT\.|encoder\.)?"
UNUSED = {
    rf"{_TRANSFORMER}mask_token": "token of the masked voxels in pre-training",
    rf"{_TRANSFORMER}norm\.(weight|bias)": "last norm of the pre-training, which a Swin UNETR has not",
    rf"{_TRANSFORMER}(rotation_head|contrastive_head|convTrans3d)\.(weight|bias)": _TASKS,
    r"conv\.\d+\.(weight|bias)": _TASKS,
    r"encoder(2|3|4|10)\.layer\.conv3\.conv\.weight": "shortcut, which no forward pass used (MONAI 0.8)",
}
"""What published files hold beside the network: pattern -> what it is."""
DECODER = {
    r"encoder(1|2|3|4|10)\.layer\.conv[123]\.conv\.weight": "convolution of the U-Net around the transformer",
    r"decoder[1-5]\.(transp_conv|conv_block)\..+": "decoder of the U-Net around the transformer",
}
"""What an encoder leaves of a file that holds a whole Swin UNETR."""


@dataclass(frozen=True)
class FoundSwin:
    """The Swin transformer of a file."""

    prefix: str
    """What stands in front of its names in the file."""
    tensors: State
    """All that stands behind it, blocks under MONAI's names."""
    beside: State
    """The other parts of the Swin UNETR around it; empty where the file has the transformer alone."""
    facts: Config
    """What names and shapes tell of it, as `Entry.convert` returns it."""
    v2: tuple[str, ...]
    """Names in the file of the convolutions that a Swin v2 has before its stages; empty for any other Swin."""

    @property
    def width(self) -> int | None:
        """Channels of the first stage; None where the first weight is not there."""
        return self.facts.get("feature_size")


def find_swin(state: State) -> FoundSwin | None:
    """Return the Swin transformer of a file; None where there is none.

    Five forms: MONAI's own names; the transformer alone, its perceptrons called `fc1` and `fc2` (as `load_from` of
    MONAI's class reads it); the published pre-training, `encoder.layers1.0.0.…` beside a decoder (as
    `filter_swinunetr` of the same module reads it); the network of its paper, the same with two convolutions at the
    beginning; and VoCo's, MONAI's names of a Swin v2. All but the first are from before MONAI had another merging.

    Raises:
        CheckpointMismatchError: The file holds several networks that it could mean.
    """
    has_two = any(name.endswith(TWO_CONVOLUTIONS) for name in state)
    stem = TWO_CONVOLUTIONS if has_two else STEM
    nested = find_prefix(state, (stem, f"layers1.0.0.{_END}", f"layers4.0.0.{_END}"))
    prefix = nested if nested is not None else find_prefix(state, (stem, f"layers1.0.{_END}", f"layers4.0.{_END}"))
    if prefix is None:
        return None
    swin = strip_prefix(state, prefix)
    if nested is not None:
        swin = rename_keys(swin, {f"layers{i}.0.0": f"layers{i}.0" for i in range(1, 5)})
    linear = _linear_names(swin)
    is_old = linear or nested is not None
    facts: Config = {"merging": "duplicated"} if is_old else {"unclear": {"merging": _OLD_MERGING}}
    if stem in swin and swin[stem].ndim == 5:
        facts |= {"feature_size": swin[stem].shape[0]}
    if has_two:
        facts |= {"two_convolutions": True}
    owner = re.sub(r"(^|(?<=\.))(encoder|swinViT)\.$", "", prefix)
    return FoundSwin(
        prefix=prefix,
        tensors=rename_keys(swin, linear),
        beside=parts_beside(state, prefix, owner) if owner != prefix else {},
        facts=facts,
        v2=tuple(f"{prefix}{name}" for name in swin if _V2.fullmatch(name)),
    )


def check_indices(values: State, config: Config) -> dict[str, str]:
    """Check the tables of relative positions of a network; see `Entry.correct`.

    They are no weights, though files hold them: averaged or cast with the weights they are wrong, and so are features.

    Raises:
        CheckpointFormatError: One is not that of a window of 7 x 7 x 7.
    """
    import torch

    names = [name for name in values if name.endswith(_INDEX)]
    expected = relative_positions() if names else None
    if wrong := [name for name in names if not torch.equal(values[name], cast("Tensor", expected))]:
        raise CheckpointFormatError(
            f"{len(wrong)} tables of relative positions are not those of a window of {WINDOW} x {WINDOW} x {WINDOW}, "
            f"{wrong[0]} for one: they are no weights, and must not be averaged, cast or filled with them. Take them "
            f"from a new network of MONAI's class, and save the file again"
        )
    return {}


def relative_positions() -> Tensor:
    """Row of the table of biases for each pair of voxels of a window, int64 `(343, 343)`."""
    import torch

    reach = 2 * WINDOW - 1
    sides = torch.arange(WINDOW)
    rows = ((sides[:, None, None] * reach + sides[:, None]) * reach + sides).flatten()
    return (rows + rows[-1])[:, None] - rows  # for each pair one number, not one along each axis


def _linear_names(swin: State) -> dict[str, str]:
    """Names of the two layers of each perceptron in the files of the Swin transformer alone -> MONAI's."""
    owners = {name.rpartition(".fc1.")[0] for name in swin if ".mlp.fc1." in name}
    return {f"{owner}.fc{i}": f"{owner}.linear{i}" for owner in owners for i in (1, 2)}
