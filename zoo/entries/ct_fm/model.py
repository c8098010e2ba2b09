"""CT-FM's networks: MONAI's `SegResEncoder` as an encoder of pooled features, and its `SegResNetDS`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from monai.networks.nets.segresnet_ds import SegResEncoder, SegResNetDS
from torch import Tensor, nn

from zoo.errors import OptionError
from zoo.networks.sizes import check_volumes
from zoo.networks.vocabulary import FeatureInfo, Vocabulary, describe, last_of

FILTERS, BLOCKS = 32, (1, 2, 2, 4, 4)
"""Channels of the first level, which each next one doubles, and residual blocks of each (CT-FM, experiments/fm)."""
STEP = 2 ** (len(BLOCKS) - 1)
"""What the sides of a segmenter's input divide by: four halvings."""
DECODER_LEVELS = len(BLOCKS) - 1
"""Of which the last `dsdepth` have a head."""


class CTFMEncoder(Vocabulary, SegResEncoder):
    """MONAI's `SegResEncoder`, which returns pooled features; with classes a linear layer on them.

    Pooled is the mean over space of the last map, as it is: no norm and no ReLU follows the last block, and none did in
    the pre-training (project-lighter/CT-FM, scripts/feature_extractor.py).
    """

    num_features = FILTERS * STEP
    head_name = "classifier"

    def __init__(self, in_channels: int = 1, num_classes: int = 0) -> None:
        """Start as MONAI's class does.

        Args:
            in_channels: Channels of the volumes.
            num_classes: Outputs of the linear layer; 0 for none.
        """
        super().__init__(init_filters=FILTERS, in_channels=in_channels, blocks_down=BLOCKS)
        self.num_classes = num_classes
        self.make_head(num_classes)

    @property
    def feature_info(self) -> FeatureInfo:
        """Channels, stride and module of each level."""
        return _info("")

    def make_head(self, num_classes: int) -> None:
        """Put a linear layer in the place of the present head; 0 for none."""
        self.classifier = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def stages(self, x: Tensor) -> Iterator[Tensor]:
        """Yield the map of each level, before the convolution that halves its sides.

        Raises:
            InputContractError: As `forward_features`.
        """
        yield from _maps(self, self, check_volumes(x, self.in_channels, 1))

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last map, `(N, 512, D/16, H/16, W/16)`, sides rounded up; its values have both signs.

        Args:
            x: Volumes `(N, C, D, H, W)` of any size, axes to superior, posterior and left.

        Raises:
            InputContractError: There are other axes or channels than the network takes.
        """
        return last_of(self.stages(x))

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """Return pooled features `(N, 512)`, or logits `(N, num_classes)`; arguments as for `forward_features`."""
        logits: Tensor = self.classifier(self.forward_features(x).mean(dim=(2, 3, 4)))
        return logits


class CTFMSegmenter(Vocabulary, SegResNetDS):
    """MONAI's `SegResNetDS`, which says by a contract error what volumes it takes.

    In training mode it returns a list of `dsdepth` tensors, finest first, as MONAI's class does where that is above 1.
    """

    num_features = FILTERS
    head_name = f"up_layers.{DECODER_LEVELS - 1}.head"
    pooled_by = None

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
        self.num_classes = num_classes
        if not num_classes:
            self.make_head(0)

    @property
    def feature_info(self) -> FeatureInfo:
        """Channels, stride and module of each level of the encoder."""
        return _info("encoder.")

    def make_head(self, num_classes: int) -> None:
        """Put new convolutions of 1 x 1 x 1 in the place of those of the last `dsdepth` levels; 0 for none."""
        for level in range(DECODER_LEVELS - self.dsdepth, DECODER_LEVELS):
            width = self.num_features * 2 ** (DECODER_LEVELS - 1 - level)
            head = nn.Conv3d(width, num_classes, kernel_size=1) if num_classes else nn.Identity()
            self.up_layers[level]["head"] = head  # type: ignore[operator]

    def stages(self, x: Tensor) -> Iterator[Tensor]:
        """Yield the map of each level of the encoder.

        Raises:
            InputContractError: As `forward`.
        """
        yield from _maps(self, self.encoder, check_volumes(x, self.in_channels, STEP))

    def finish(self, maps: Sequence[Tensor], *inputs: Tensor) -> Tensor:
        """Decode the maps of the five levels."""
        return last_of(self._decoded(maps))

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the decoder's last maps, `(N, 32, D, H, W)`.

        Args:
            x: Volumes as `forward` takes them.

        Raises:
            InputContractError: As `forward`.
        """
        return self.finish(list(self.stages(x)), x)

    def _decoded(self, maps: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yield the map of each level of the decoder, the coarsest first."""
        *skips, x = maps
        for level, skip in zip(self.up_layers, reversed(skips), strict=True):
            parts: Any = level
            x = parts["upsample"](x) + skip
            x = self.recomputed_each(parts["blocks"], x)
            yield x

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Return logits `(N, num_classes, D, H, W)`, without classes the decoder's maps `(N, 32, D, H, W)`.

        Args:
            x: Volumes `(N, C, D, H, W)`, sides multiples of 16, axes to superior, posterior and left.

        Raises:
            InputContractError: They are not, or there are other channels than the network takes.
        """
        maps = list(self._decoded(list(self.stages(x))))
        levels: Any = self.up_layers
        if not self.training or self.dsdepth == 1:
            logits: Tensor = levels[-1]["head"](maps[-1])
            return logits
        outputs = [level["head"](found) for level, found in zip(levels, maps, strict=True)]
        return outputs[: -self.dsdepth - 1 : -1]


def _maps(owner: Vocabulary, encoder: SegResEncoder, x: Tensor) -> Iterator[Tensor]:
    """Yield the map of each level of MONAI's encoder, which is a network or a part of one, the owner."""
    x = encoder.conv_init(x)
    for level in encoder.layers:
        parts: Any = level
        x = owner.recomputed_each(parts["blocks"], x)
        yield x
        x = parts["downsample"](x)


def _info(prefix: str) -> FeatureInfo:
    steps = [2**level for level in range(len(BLOCKS))]
    names = (f"{prefix}layers.{level}.blocks" for level in range(len(BLOCKS)))
    return describe([FILTERS * step for step in steps], steps, names)
