"""DrasCLR's encoder: a 3D convolutional network whose kernels depend on a patch's location in the lung.

Layers, widths and names of tensors are those of batmanlab/DrasCLR, models/cnn3d.py.

The file is long because what patches and locations must be is checked beside the network that takes them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.entries.drasclr.atlas import PATCH
from zoo.entries.drasclr.condconv import ConditionalConv3d, Counts, arrange
from zoo.errors import InputContractError, OptionError
from zoo.networks.sizes import check_whole
from zoo.networks.vocabulary import FeatureInfo, Intermediates, Vocabulary, describe, last_of

EXPERT_INITS = ("upstream", "per-expert")


class Downsample(nn.Module):
    """Three convolutions, each with its norm and ELU; the first widens, the last halves the side."""

    def __init__(self, inputs: int, outputs: int, *, experts: int, coordinates: int, init: str) -> None:
        super().__init__()
        self.conv1 = ConditionalConv3d(inputs, outputs, 1, experts=experts, coordinates=coordinates, init=init)
        self.bn1 = nn.BatchNorm3d(outputs)
        self.conv2 = ConditionalConv3d(outputs, outputs, 1, experts=experts, coordinates=coordinates, init=init)
        self.bn2 = nn.BatchNorm3d(outputs)
        self.conv3 = ConditionalConv3d(outputs, outputs, 2, experts=experts, coordinates=coordinates, init=init)
        self.bn3 = nn.BatchNorm3d(outputs)

    def forward(self, x: Tensor, location: Tensor, counts: Counts = None) -> Tensor:
        """Return `(N, O, *space / 2)`; the arguments are those of `ConditionalConv3d`."""
        x = _elu(self.bn1(self.conv1(x, location, counts)))
        x = _elu(self.bn2(self.conv2(x, location, counts)))
        return _elu(self.bn3(self.conv3(x, location, counts)))


class DrasCLREncoder(Vocabulary):
    """The encoder, `(N, 128)` features of patches of 32 voxels a side: after the last ELU, before any head.

    With `projection_dims` it returns the output of the projection head, with `num_classes` logits.
    """

    head_name = "classifier"

    def __init__(
        self,
        experts: int = 8,
        coordinates: int = 1,
        features: int = 128,
        projection_dims: tuple[int, ...] = (),
        *,
        num_classes: int = 0,
        in_channels: int = 1,
        expert_init: str = "upstream",
    ) -> None:
        """Build it with random values.

        Args:
            experts: Kernels that each convolution mixes.
            coordinates: Points in space that make a location.
            features: Width of the last map.
            projection_dims: Widths of the layers of the projection head, with ReLU between them; empty for no head. The
                authors' is (128, 128), or (128,) without `mlp`.
            num_classes: Outputs of a linear head on the features, 0 for none.
            in_channels: Channels of a patch.
            expert_init: How the experts start, one of `EXPERT_INITS`; see `ConditionalConv3d`.

        Raises:
            OptionError: A number is not positive, two heads are asked for, or the start is not known.
        """
        super().__init__()
        check_whole(experts=experts, coordinates=coordinates, features=features, in_channels=in_channels)
        if projection_dims and num_classes:
            raise OptionError(f"projection_dims={projection_dims} and num_classes={num_classes} ask for two heads")
        if expert_init not in EXPERT_INITS:
            raise OptionError(f"expert_init={expert_init!r}: expected one of {', '.join(EXPERT_INITS)}")
        self.coordinates, self.in_channels, self.num_features = coordinates, in_channels, features
        routed: dict[str, Any] = {"experts": experts, "coordinates": coordinates, "init": expert_init}
        self.conv1 = ConditionalConv3d(in_channels, 8, 1, **routed)
        self.bn1 = nn.BatchNorm3d(8)
        self.conv2 = ConditionalConv3d(8, 8, 2, **routed)
        self.bn2 = nn.BatchNorm3d(8)
        self.downsample1 = Downsample(8, 16, **routed)
        self.downsample2 = Downsample(16, 32, **routed)
        self.downsample3 = Downsample(32, 64, **routed)
        self.conv3 = ConditionalConv3d(64, 128, 1, **routed)
        self.bn3 = nn.BatchNorm3d(128)
        self.conv4 = ConditionalConv3d(128, features, 2, **routed)
        self.bn4 = nn.BatchNorm3d(features)
        self.num_classes = num_classes
        self.make_head(num_classes)
        self.fc = _projection(features, projection_dims)

    @property
    def feature_info(self) -> FeatureInfo:
        """Channels, stride and module of each stage; the ELU behind `bn2` and `bn4` works in place on their outputs."""
        names = ("bn2", "downsample1", "downsample2", "downsample3", "bn4")
        return describe((8, 16, 32, 64, self.num_features), (2, 4, 8, 16, 32), names)

    def make_head(self, num_classes: int) -> None:
        """Put a linear layer in the place of any head; 0 for none."""
        self.fc = nn.Identity()
        self.classifier = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def forward_intermediates(  # type: ignore[override]
        self,
        x: Tensor,
        location: Tensor | None = None,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = True,
    ) -> Intermediates:
        """Return the maps of the stages as every network does, of patches and their locations.

        Args:
            x: Patches as for `forward`.
            location: Their locations, as for `forward`.
            indices: Which stages, as for every network, and so the further arguments.
            norm: See `Vocabulary.forward_intermediates`.
            stop_early: See there.
            output_fmt: See there.
            intermediates_only: See there.

        Raises:
            InputContractError: As `forward`.
            OptionError: There is no such stage or format.
        """
        inputs = (x, self._checked(x, location))
        return self.collect(inputs, indices, norm, stop_early, output_fmt, intermediates_only)

    def stages(self, x: Tensor, location: Tensor | None = None) -> Iterator[Tensor]:
        """Yield the map of each stage after its ELU; arguments and errors are those of `forward`."""
        location = self._checked(x, location)
        distinct, counts, order = arrange(location.to(self.conv1.bias.dtype), x.shape[0])
        if order is not None:
            x = x[order]
        if counts is not None and x.device.type == "cpu":
            x = x.contiguous(memory_format=torch.channels_last_3d)  # a quarter faster on a CPU, if kernels are shared
        stages = (self._first, self.downsample1, self.downsample2, self.downsample3, self._last)
        for stage in stages:
            x = self.recomputed(stage, x, distinct, counts)
            yield x if order is None else x[order.argsort()]

    def _first(self, x: Tensor, location: Tensor, counts: Counts) -> Tensor:
        x = _elu(self.bn1(self.conv1(x, location, counts)))
        return _elu(self.bn2(self.conv2(x, location, counts)))

    def _last(self, x: Tensor, location: Tensor, counts: Counts) -> Tensor:
        x = _elu(self.bn3(self.conv3(x, location, counts)))
        return _elu(self.bn4(self.conv4(x, location, counts)))

    def forward(self, x: Tensor, location: Tensor | None = None) -> Tensor:
        """Return features `(N, 128)`, the projection, or logits `(N, num_classes)`.

        Args:
            x: Patches `(N, 1, 32, 32, 32)` in [-1, 1], axes (z, y, x): HU clipped to [-1024, 240] and scaled.
            location: Their locations: tensor of rows (x, y, z) in [-1, 1], from `atlas.normalise`. `(N, 3)`; `(3,)` or
                `(1, 3)` if all patches lie there; or `(A, B, 3)` for N = A * B patches in this order. Patches that
                share a location share its kernels: on a CPU they are found by value, elsewhere only by the shape, or by
                an expanded first axis (`torch.Tensor.expand`).

        Raises:
            InputContractError: The location is missing, one of both is not a tensor of floats, or a shape is not one of
                these. Values are not checked, which would make a GPU wait: see `check_locations`.
        """
        features: Tensor = self.classifier(self.fc(self.forward_features(x, location).flatten(1)))
        return features

    def forward_features(self, x: Tensor, location: Tensor | None = None) -> Tensor:
        """Return the last map after its ELU, `(N, 128, 1, 1, 1)`; arguments and errors are those of `forward`."""
        return last_of(self.stages(x, location))

    @contextmanager
    def cache_kernels(self, limit: int = 581) -> Iterator[None]:
        """Keep the kernels of locations that several patches of a batch share, for inference without gradients.

        This pays off for small batches that return to the same locations: mixing the kernels takes about as long as one
        patch. Batches whose patches all differ in location do not use it: mixing is then as fast as fetching.

            with model.cache_kernels():
                features = [model(patches, landmark) for patches, landmark in ...]

        Args:
            limit: Locations to keep, the latest used; each takes 4.1 MB, all 581 of the atlas 2.4 GB.

        Raises:
            OptionError: The network is in training mode, in which kernels change.
        """
        if self.training:
            raise OptionError(
                "cache_kernels is for eval mode, because kernels change in training: call model.eval() first"
            )
        layers = [module for module in self.modules() if isinstance(module, ConditionalConv3d)]
        try:
            for layer in layers:
                layer.remembered = lru_cache(limit)(_mixer(layer))
            with torch.no_grad():
                yield
        finally:
            for layer in layers:
                layer.remembered = None

    def _checked(self, x: Tensor, location: Tensor | None) -> Tensor:
        """Check types and shapes, and return the location."""
        if not _has_floats(x):
            raise InputContractError(
                f"patches are {_kind(x)}: a tensor of floats in [-1, 1] is expected. From patches in HU "
                "torch.from_numpy(zoo.entries.drasclr.data.scale(patches)).unsqueeze(1) makes it"
            )
        expected = (self.in_channels, PATCH, PATCH, PATCH)
        if x.shape[1:] != expected:
            raise InputContractError(
                f"patches have the shape {tuple(x.shape)}; (N, {', '.join(map(str, expected))}) is expected, cut "
                "from a volume with voxels of 1 mm (zoo.entries.drasclr.preprocess)"
            )
        if self.bn4.training and x.shape[0] == 1:
            raise InputContractError(
                "one patch in training mode: its last map is one voxel, of which no batch norm can take statistics. "
                "Two patches or more are expected; for the features of one call model.eval()"
            )
        width = 3 * self.coordinates
        if location is None or not _has_floats(location):
            raise InputContractError(
                f"the location of the patches is {_kind(location)}: a tensor ({len(x)}, {width}) of floats in [-1, 1] "
                "is expected. From voxel indices torch.from_numpy(zoo.entries.drasclr.atlas.normalise(landmarks)) "
                "makes it"
            )
        if location.shape[-1:] != (width,) or location.numel() not in (width, width * x.shape[0]):
            raise InputContractError(
                f"locations have the shape {tuple(location.shape)} for {len(x)} patches: ({len(x)}, {width}) is "
                f"expected, or ({width},) for one that they share"
            )
        return location


def check_locations(location: Tensor) -> None:
    """Check the values of locations; once per list, not per batch, for it makes a GPU wait.

    Args:
        location: Any number of rows, last axis (x, y, z).

    Raises:
        InputContractError: A value is NaN or outside [-1, 1].
    """
    if bool((location.abs() <= 1).all()):  # NaN is not
        return
    least, most = float(location.min()), float(location.max())
    raise InputContractError(
        f"locations have values from {least:g} to {most:g}; from -1 to 1 is expected, 2 p / max(p) - 1 of the atlas' "
        "landmarks, from zoo.entries.drasclr.atlas.normalise"
    )


def _has_floats(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _kind(value: object) -> str:
    return str(value.dtype) if isinstance(value, Tensor) else type(value).__name__


def _mixer(layer: ConditionalConv3d) -> Callable[[tuple[float, ...]], Tensor]:
    return lambda location: layer.mix(torch.tensor([location], dtype=layer.bias.dtype, device=layer.bias.device))[0]


def _projection(features: int, widths: Sequence[int]) -> nn.Module:
    """No layer, one, or several in a row with ReLU between them, under the authors' names `fc` and `fc.0`, `fc.2`."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise((features, *widths)):
        layers += [nn.ReLU(), nn.Linear(inputs, outputs)] if layers else [nn.Linear(inputs, outputs)]
    if len(layers) < 2:
        return layers[0] if layers else nn.Identity()
    return nn.Sequential(*layers)


def _elu(x: Tensor) -> Tensor:
    """ELU in place on a norm's output, which nothing else needs, not even its gradient."""
    return F.elu(x, inplace=True)
