"""CT-FM's networks: MONAI's `SegResEncoder` as an encoder of pooled features, and its `SegResNetDS`."""

from __future__ import annotations

from typing import Any

from monai.networks.nets.segresnet_ds import SegResEncoder, SegResNetDS
from torch import Tensor, nn

from zoo.errors import OptionError
from zoo.networks.sizes import check_volumes

FILTERS, BLOCKS = 32, (1, 2, 2, 4, 4)
"""Channels of the first level, which each next one doubles, and residual blocks of each (CT-FM, experiments/fm)."""
STEP = 2 ** (len(BLOCKS) - 1)
"""What the sides of a segmenter's input divide by: four halvings."""
DECODER_LEVELS = len(BLOCKS) - 1
"""Of which the last `dsdepth` have a head."""


class CTFMEncoder(SegResEncoder):
    """MONAI's `SegResEncoder`, which returns pooled features; with classes a linear layer on them.

    Pooled is the mean over space of the last map, as it is: no norm and no ReLU follows the last block, and none did in
    the pre-training (project-lighter/CT-FM, scripts/feature_extractor.py).
    """

    num_features = FILTERS * STEP

    def __init__(self, in_channels: int = 1, num_classes: int = 0) -> None:
        """Start as MONAI's class does.

        Args:
            in_channels: Channels of the volumes.
            num_classes: Outputs of the linear layer; 0 for none.
        """
        super().__init__(init_filters=FILTERS, in_channels=in_channels, blocks_down=BLOCKS)
        self.classifier = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last map, `(N, 512, D/16, H/16, W/16)`, sides rounded up; its values have both signs.

        Args:
            x: Volumes `(N, C, D, H, W)` of any size, axes to superior, posterior and left.

        Raises:
            InputContractError: There are other axes or channels than the network takes.
        """
        x = self.conv_init(check_volumes(x, self.in_channels, 1))
        for level in self.layers:
            parts: Any = level
            x = parts["downsample"](parts["blocks"](x))
        return x

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """Return pooled features `(N, 512)`, or logits `(N, num_classes)`; arguments as for `forward_features`."""
        logits: Tensor = self.classifier(self.forward_features(x).mean(dim=(2, 3, 4)))
        return logits


class CTFMSegmenter(SegResNetDS):
    """MONAI's `SegResNetDS`, which says by a contract error what volumes it takes.

    In training mode it returns a list of `dsdepth` tensors, finest first, as MONAI's class does where that is above 1.
    """

    def __init__(self, in_channels: int = 1, num_classes: int = 118, dsdepth: int = 4) -> None:
        """Start as MONAI's class does.

        Args:
            in_channels: Channels of the volumes.
            num_classes: Outputs, background included; 0 for the decoder's maps.
            dsdepth: How many of the last levels have a head, and so outputs in training.

        Raises:
            OptionError: There are not so many levels.
        """
        if dsdepth not in range(1, DECODER_LEVELS + 1) or isinstance(dsdepth, bool):
            raise OptionError(f"dsdepth={dsdepth!r}: expected 1 to {DECODER_LEVELS}, the levels that have a head")
        super().__init__(
            init_filters=FILTERS,
            in_channels=in_channels,
            out_channels=num_classes or 1,
            blocks_down=BLOCKS,
            dsdepth=dsdepth,
        )
        if not num_classes:
            for level in self.up_layers:
                level["head"] = nn.Identity()  # type: ignore[operator]

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Return logits `(N, num_classes, D, H, W)`, without classes the decoder's maps `(N, 32, D, H, W)`.

        Args:
            x: Volumes `(N, C, D, H, W)`, sides multiples of 16, axes to superior, posterior and left.

        Raises:
            InputContractError: They are not, or there are other channels than the network takes.
        """
        check_volumes(x, self.in_channels, STEP)
        found: Any = super().forward(x)
        logits: Tensor | list[Tensor] = found
        return logits
