"""What published Swin transformers have otherwise than the class of the MONAI that happens to be installed.

Between two stages MONAI's `PatchMerging` of 0.9 to 1.4 takes two of a cube's eight voxels twice and two not at all,
since 1.5 it takes each once (MONAI pull request 8285), with the same names and shapes. What weights compute depends on
the one that they were trained with, so both are built here, whatever MONAI is installed.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from monai.networks.blocks.dynunet_block import UnetBasicBlock
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.errors import OptionError

Offset = tuple[int, int, int]

_SHARED: tuple[Offset, ...] = ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))
MERGINGS: dict[str, tuple[Offset, ...]] = {
    "duplicated": (*_SHARED, (1, 0, 1), (0, 1, 0), (0, 0, 1), (1, 1, 1)),
    "complete": (*_SHARED, (1, 1, 0), (1, 0, 1), (0, 1, 1), (1, 1, 1)),
}
"""Voxels (D, H, W) of each cube of 2 x 2 x 2 in the order in which their channels are laid side by side.

`duplicated`: MONAI 0.9 to 1.4 and the code that trained the published weights; `complete`: MONAI since 1.5.
"""


class PatchMerging(nn.Module):
    """Halves the sides of a map and doubles its channels: MONAI's `PatchMerging`, under its names, of any version.

    Args:
        dim: Channels of the map.
        norm_layer: Of the merged channels.
        spatial_dims: 3, which MONAI says to whatever it builds here.
        offsets: A value of `MERGINGS`.
    """

    def __init__(
        self, dim: int, norm_layer: type[nn.LayerNorm], spatial_dims: int = 3, *, offsets: tuple[Offset, ...]
    ) -> None:
        super().__init__()
        self.offsets = offsets
        self.reduction = nn.Linear(len(offsets) * dim, 2 * dim, bias=False)
        self.norm = norm_layer(len(offsets) * dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, D/2, H/2, W/2, 2 C), sides rounded up.

        Args:
            x: (N, D, H, W, C); odd sides are filled up with zeros.
        """
        depth, height, width = x.shape[1:4]
        if depth % 2 or height % 2 or width % 2:
            x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2, 0, depth % 2))
        merged = torch.cat([x[:, i::2, j::2, k::2] for i, j, k in self.offsets], -1)
        reduced: Tensor = self.reduction(self.norm(merged))
        return reduced


def patch_merging(merging: object) -> Any:
    """Return what MONAI's Swin networks take as `downsample`: a function that makes a `PatchMerging`.

    Args:
        merging: A name in `MERGINGS`.

    Raises:
        OptionError: It is not one of them.
    """
    if not isinstance(merging, str) or merging not in MERGINGS:
        raise OptionError(f"merging={merging!r}: expected {' or '.join(map(repr, MERGINGS))}")
    return partial(PatchMerging, offsets=MERGINGS[merging])


def two_convolution_stem(in_channels: int, features: int) -> UnetBasicBlock:
    """The first layer of the network of "Disruptive Autoencoders" in place of one convolution of 2 x 2 x 2.

    Two of 3 x 3 x 3, the first with stride 2, each before an instance norm with weights and a leaky ReLU
    (Project-MONAI/research-contributions, DAE/Pretrain_full_contrast/models/swin_transformer_3d.py).

    Args:
        in_channels: Channels of the volumes.
        features: Channels of the first stage.
    """
    norm = ("instance", {"affine": True})
    return UnetBasicBlock(3, in_channels, features, kernel_size=3, stride=2, norm_name=norm)
