"""The 3D U-Net of anatomix, which gives features of every voxel, under the authors' names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.errors import InputContractError, OptionError
from zoo.networks.sizes import check_axes, check_whole, times
from zoo.networks.vocabulary import FeatureInfo, Vocabulary, describe

NORM_LAYERS = ("batch", "instance")
POOLINGS: dict[str, type[nn.Module]] = {"max": nn.MaxPool3d, "average": nn.AvgPool3d}
UPSAMPLINGS = ("nearest", "trilinear")
NORMALISATIONS = (None, "l2", "standard")

_LEAST_DEVIATION = 1e-6
_STEP = 3
"""Layers of a step."""


class AnatomixUNet(Vocabulary):
    """A U-Net whose layers stand in one sequence: features `(N, outputs, *space)`, with classes logits.

    A step is a convolution of 3 x 3 x 3 with reflected borders, a norm and a ReLU. There is one step at first, then two
    a level; the last convolution stands alone.
    """

    head_name = "head"
    pooled_by = None

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int | None = None,
        *,
        width: int = 16,
        depth: int = 4,
        outputs: int = 16,
        norm_layer: str = "batch",
        bias: bool = False,
        eps: float = 1e-5,
        pooling: str = "max",
        upsampling: str = "nearest",
        normalise: str | None = None,
    ) -> None:
        """Start with random weights.

        Args:
            in_channels: Channels of the volumes.
            num_classes: Channels of logits; None or 0 for the features.
            width: Channels of the first level, which each further level doubles.
            depth: Poolings, each of which halves the sides.
            outputs: Channels of the features.
            norm_layer: `"batch"`, or `"instance"` without weights.
            bias: Whether convolutions have biases, the last one included.
            eps: Added to the variance by the norms.
            pooling: `"max"` or `"average"`.
            upsampling: `"nearest"` or `"trilinear"`.
            normalise: Of the features of each voxel, over the channels: `"l2"` for unit length, `"standard"` for mean 0
                and deviation 1, None to leave them. Logits are of the features as they are.

        Raises:
            OptionError: One has a value that it cannot have.
        """
        super().__init__()
        _check(width, depth, outputs, eps)
        _check_words(norm_layer=norm_layer, pooling=pooling, upsampling=upsampling, normalise=normalise)
        self.in_channels, self.depth, self.outputs, self.normalise = in_channels, depth, outputs, normalise

        def step(before: int, after: int) -> list[nn.Module]:
            norm = nn.BatchNorm3d(after, eps) if norm_layer == "batch" else nn.InstanceNorm3d(after, eps)
            return [_convolution(before, after, bias), norm, nn.ReLU()]

        widths = [width * 2**level for level in range(depth + 1)]
        layers = step(in_channels, width)
        for before, after in pairwise([width, *widths[:-1]]):
            layers += [*step(before, after), *step(after, after), POOLINGS[pooling](2)]
        layers += [*step(widths[-2], widths[-1]), *step(widths[-1], widths[-1])]
        for below, beside in pairwise(reversed(widths)):
            layers += [nn.Upsample(scale_factor=2, mode=upsampling)]
            layers += [*step(beside + below, beside), *step(beside, beside)]
        self.model = nn.Sequential(*layers, _convolution(width, outputs, bias))
        self.num_features, self.num_classes = outputs, num_classes or 0
        self.make_head(self.num_classes)

    @property
    def feature_info(self) -> FeatureInfo:
        """Channels, stride and module of each level on the way down, the deepest included."""
        width = self.model[0].out_channels
        times = [2**level for level in range(self.depth + 1)]
        return describe([width * n for n in times], times, [f"model.{end - 1}" for _, end in self._levels()])

    def make_head(self, num_classes: int) -> None:
        """Put a convolution of 1 x 1 x 1 in the place of the present one; 0 for none."""
        self.head = nn.Conv3d(self.outputs, num_classes, kernel_size=1) if num_classes else nn.Identity()

    def stages(self, x: Tensor) -> Iterator[Tensor]:
        """Yield the map of each level on the way down, before it is pooled; the deepest is the last.

        Raises:
            InputContractError: As `forward`.
        """
        self.check_volumes(x)
        for start, end in self._levels():
            for step in range(start, end, _STEP):
                x = self._step(step, x)
            yield x
            if isinstance(self.model[end], tuple(POOLINGS.values())):
                x = self.model[end](x)

    def finish(self, maps: Sequence[Tensor], *inputs: Tensor) -> Tensor:
        """Go up again, each level beside the map of its size."""
        *skips, x = maps
        at = self._levels()[-1][1]
        for skip in reversed(skips):
            x = torch.cat([skip, self.model[at](x)], dim=1)
            for step in (at + 1, at + 1 + _STEP):
                x = self._step(step, x)
            at += 1 + 2 * _STEP
        last: Tensor = self.model[at](x)
        return last

    def _levels(self) -> list[tuple[int, int]]:
        """Where the layers of each level on the way down begin and end, one level behind the other."""
        ends = [i for i, layer in enumerate(self.model) if isinstance(layer, (*POOLINGS.values(), nn.Upsample))]
        ends = ends[: self.depth + 1]
        return list(zip([0, *(end + 1 for end in ends[:-1])], ends, strict=True))

    def _step(self, at: int, x: Tensor) -> Tensor:
        """Convolution, norm and ReLU, of which the first is layer `at`."""
        stepped: Tensor = self.recomputed(self._run, at, x)
        return stepped

    def _run(self, at: int, x: Tensor) -> Tensor:
        for layer in range(at, at + _STEP):
            x = self.model[layer](x)
        return x

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the features as they are, `(N, outputs, x, y, z)`.

        Args:
            x: Volumes as `forward` takes them.

        Raises:
            InputContractError: As `forward`.
        """
        return self.finish(list(self.stages(x)), x)

    def forward(self, x: Tensor) -> Tensor:
        """Return features `(N, outputs, x, y, z)`, or logits `(N, num_classes, x, y, z)`.

        Args:
            x: Volumes `(N, C, x, y, z)` in [0, 1], scaled by the least and greatest value of each. Sides are multiples
                of 2 ** depth, and at least twice that.

        Raises:
            InputContractError: They are not, or there are other channels than the network takes.
        """
        features = self.forward_features(x)
        if isinstance(self.head, nn.Conv3d):
            logits: Tensor = self.head(features)
            return logits
        return _normalised(features, self.normalise)

    def check_volumes(self, x: Tensor) -> None:
        """Raise `InputContractError` where the network takes no such volumes; see `forward`."""
        check_axes(x, self.in_channels, "x, y, z")
        step, sides = 2**self.depth, tuple(x.shape[2:])
        if any(side % step or side < 2 * step for side in sides):
            following = tuple(max(2, -(-side // step)) * step for side in sides)
            raise InputContractError(
                f"the volumes have {times(sides)} voxels; multiples of {step}, at least {2 * step}, are expected, "
                f"next {times(following)}. Pad them to that with 0, which is their least value, and cut the output; "
                "or take windows of such sides, once the whole volume is scaled"
            )


def _convolution(before: int, after: int, bias: bool) -> nn.Conv3d:
    return nn.Conv3d(before, after, kernel_size=3, padding=1, padding_mode="reflect", bias=bias)


def _normalised(features: Tensor, how: str | None) -> Tensor:
    if how is None:
        return features
    if how == "l2":
        return F.normalize(features, dim=1)
    centred = features - features.mean(dim=1, keepdim=True)
    return centred / features.std(dim=1, correction=0, keepdim=True).clamp_min(_LEAST_DEVIATION)


def _check(width: int, depth: int, outputs: int, eps: Any) -> None:
    check_whole(width=width, depth=depth, outputs=outputs)
    if type(eps) not in (int, float) or not (isfinite(eps) and eps > 0):
        raise OptionError(f"eps={eps!r}: expected a number above 0")


def _check_words(**given: Any) -> None:
    allowed = {
        "norm_layer": NORM_LAYERS,
        "pooling": tuple(POOLINGS),
        "upsampling": UPSAMPLINGS,
        "normalise": NORMALISATIONS,
    }
    for name, value in given.items():
        if value not in allowed[name]:
            raise OptionError(f"{name}={value!r}: expected {', '.join(map(repr, allowed[name]))}")
