"""GLCL's networks: a 2D U-Net for MRI slices, its encoder with the global head, its decoder with the local one.

Layers, widths and names are those of krishnabits001/domain_specific_cl, models.py, which is TensorFlow 1; tensors have
PyTorch's layout. The file is long because three networks are made of the same two halves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from zoo.entries.glcl.convert import BLOCKS, HEAD, LEVELS, LOGITS, PROJECTION, REGION, WIDTHS
from zoo.entries.glcl.layers import FEATURES, STRIDE, add_decoder, add_encoder, add_layer, decode, encode, layer
from zoo.errors import InputContractError, OptionError
from zoo.networks.sizes import check_whole
from zoo.networks.vocabulary import FeatureInfo, Vocabulary, describe, last_of

HIDDEN, PROJECTED = 1024, 128
"""Widths of the global head; the second is also that of a projected region."""


class ContractingHalf(Vocabulary):
    """What encoder and U-Net have in common: six levels, each of two layers."""

    @property
    def feature_info(self) -> FeatureInfo:
        """Channels, stride and module of each level; the ReLU behind a norm works in place on its output."""
        levels = range(1, len(LEVELS) + 1)
        return describe(LEVELS, [2 ** (n - 1) for n in levels], [f"enc_c{n}_b_bn" for n in levels])

    def stages(self, x: Tensor) -> Iterator[Tensor]:
        """Yield the map of each level after its ReLU, the largest first.

        Raises:
            InputContractError: The shape is not that of slices whose sides are multiples of 32.
        """
        return encode(self, x, self.recomputed)


class GLCLEncoder(ContractingHalf):
    """The encoder: features `(N, 128)`, the mean of the last map over space.

    With `projection` it returns the global head's output `(N, 128)`, with `num_classes` logits `(N, num_classes)`.
    """

    head_name = "classifier"

    def __init__(self, in_channels: int = 1, size: int = 192, projection: bool = False, num_classes: int = 0) -> None:
        """Build it with random values.

        Args:
            in_channels: Channels of a slice.
            size: Side of the slices in pixels, which sets the width of the projection head: 192, or 160 for MM-WHS.
            projection: Whether it has the head of the global loss, two dense layers without bias on the flattened map.
            num_classes: Outputs of a linear head on the features, 0 for none.

        Raises:
            OptionError: A number is out of range, or two heads are asked for.
        """
        super().__init__()
        check_whole(in_channels=in_channels, size=size)
        if projection and num_classes:
            raise OptionError(f"projection=True and num_classes={num_classes} ask for two heads")
        if size % STRIDE:
            raise OptionError(f"size={size}: a multiple of {STRIDE} is expected")
        self.size, self.num_features = size, FEATURES
        add_encoder(self, in_channels)
        self.has_projection = projection
        if projection:
            hidden, output = PROJECTION
            self.add_module(hidden, nn.Linear(FEATURES * (size // STRIDE) ** 2, HIDDEN, bias=False))
            self.add_module(output, nn.Linear(HIDDEN, PROJECTED, bias=False))
        self.num_classes = num_classes
        self.classifier = _classifier(num_classes)
        self.apply(reset)

    def make_head(self, num_classes: int) -> None:
        """Put a linear layer in the place of any head; 0 for none."""
        for name in PROJECTION if self.has_projection else ():
            delattr(self, name)
        self.has_projection = False
        self.classifier = _classifier(num_classes).apply(reset)

    def forward(self, x: Tensor) -> Tensor:
        """Return features `(N, 128)`, the projection `(N, 128)`, or logits.

        Args:
            x: Slices `(N, 1, H, W)`, percentile-normalised: most values lie in [0, 1]. Sides are multiples of 32; with
                the projection they are `size`.

        Raises:
            InputContractError: The shape is not one of these.
        """
        last = self.forward_features(x)
        if self.has_projection:
            return self._project(last)
        features: Tensor = self.classifier(last.mean((2, 3)))
        return features

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last map after its ReLU, `(N, 128, H / 32, W / 32)`; see `forward`."""
        return last_of(self.stages(x))

    def _project(self, last: Tensor) -> Tensor:
        """Flatten row by row, column by column, channels last, as the authors' weights have it."""
        side = self.size // STRIDE
        if last.shape[2:] != (side, side):
            raise InputContractError(
                f"slices of {last.shape[2] * STRIDE} x {last.shape[3] * STRIDE} pixels: the projection head is for "
                f"{self.size} x {self.size}. Build it with size={last.shape[2] * STRIDE}, or crop the slices"
            )
        hidden, output = PROJECTION
        flat = last.permute(0, 2, 3, 1).flatten(1)
        projection: Tensor = getattr(self, output)(F.relu(getattr(self, hidden)(flat)))
        return projection


class GLCLUNet(ContractingHalf):
    """The U-Net: logits `(N, num_classes, H, W)`; without classes, the map of the decoder's last block."""

    head_name = LOGITS
    pooled_by = None

    def __init__(self, num_classes: int = 4, in_channels: int = 1, blocks: int = len(BLOCKS)) -> None:
        """Build it with random values.

        Args:
            num_classes: Classes with the background. 0 for no head: then the output is the map `(N, C, H / s, W / s)`
                of block `blocks`, with C of 128, 128, 64, 32, 16 and s of 16, 8, 4, 2, 1.
            in_channels: Channels of a slice.
            blocks: Blocks of the decoder: all five, or fewer without a head.

        Raises:
            OptionError: A number is out of range, or a head is asked for on fewer than five blocks.
        """
        super().__init__()
        check_whole(in_channels=in_channels, blocks=blocks)
        if blocks > len(BLOCKS) or (num_classes and blocks < len(BLOCKS)):
            raise OptionError(
                f"blocks={blocks}, num_classes={num_classes}: a head takes the map of all {len(BLOCKS)} blocks. For "
                "the map of fewer give num_classes=0"
            )
        self.blocks, self.num_features, self.num_classes = blocks, WIDTHS[blocks - 1], num_classes
        add_encoder(self, in_channels)
        add_decoder(self, blocks)
        self.make_head(num_classes)
        self.apply(reset)

    def make_head(self, num_classes: int) -> None:
        """Put a last convolution in the place of the present one, behind the head's two layers; 0 for no head.

        Raises:
            OptionError: A head is asked for on fewer than five blocks.
        """
        if num_classes and self.blocks < len(BLOCKS):
            raise OptionError(
                f"num_classes={num_classes} for a decoder of {self.blocks} blocks: a head takes the map of all "
                f"{len(BLOCKS)}. Load the network with blocks={len(BLOCKS)}"
            )
        for name in HEAD:
            if num_classes and not hasattr(self, name):
                add_layer(self, name, WIDTHS[-1], WIDTHS[-1], 3)
                getattr(self, name).apply(reset)
            elif not num_classes and hasattr(self, name):
                delattr(self, name)
                delattr(self, f"{name}_bn")
        last = nn.Conv2d(WIDTHS[-1], num_classes or 1, 3, padding=1, bias=False)
        self.add_module(LOGITS, last.apply(reset) if num_classes else nn.Identity())

    def finish(self, maps: Sequence[Tensor], *inputs: Tensor) -> Tensor:
        """Decode the maps of the six levels."""
        return decode(self, maps, self.blocks, self.recomputed)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the map of the decoder's last block, `(N, C, H / s, W / s)`; see `forward`."""
        return self.finish(list(self.stages(x)), x)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits `(N, num_classes, H, W)`, or the last block's map.

        Args:
            x: Slices `(N, 1, H, W)`, percentile-normalised: most values lie in [0, 1]. Sides are multiples of 32.

        Raises:
            InputContractError: The shape is not this one.
        """
        last = self.forward_features(x)
        if not self.num_classes:
            return last
        for name in HEAD:
            last = layer(self, name, last)
        logits: Tensor = getattr(self, LOGITS)(last)
        return logits


class GLCLDecoder(nn.Module):
    """The network of the local loss: encoder, the decoder's first blocks, and two convolutions of 1 x 1."""

    def __init__(self, blocks: int = 3, in_channels: int = 1, project: bool = True) -> None:
        """Build it with random values.

        Args:
            blocks: Number of the decoder's five blocks.
            in_channels: Channels of a slice.
            project: Whether it has `seg_pred`, the dense layer without bias on a flattened region of 3 x 3, whose
                inputs are in the order (row, column, channel).

        Raises:
            OptionError: A number is out of range.
        """
        super().__init__()
        check_whole(in_channels=in_channels, blocks=blocks)
        if blocks > len(BLOCKS):
            raise OptionError(f"blocks={blocks}: 1 to {len(BLOCKS)} are expected")
        width, (first, second) = WIDTHS[blocks - 1], HEAD
        self.blocks, self.num_features = blocks, width
        add_encoder(self, in_channels)
        add_decoder(self, blocks)
        add_layer(self, first, width, width, 1, bias=False)
        self.add_module(second, nn.Conv2d(width, width, 1, bias=False))
        if project:
            self.add_module(REGION, nn.Linear(9 * width, PROJECTED, bias=False))
        self.apply(reset)

    def forward(self, x: Tensor) -> Tensor:
        """Return the map whose regions the local loss compares: `(N, C, H / s, W / s)`.

        Args:
            x: Slices `(N, 1, H, W)` as for the U-Net.

        Raises:
            InputContractError: The shape is not this one.
        """
        first, second = HEAD
        head: Tensor = getattr(self, second)(layer(self, first, self.forward_features(x)))
        return head

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the map of the last block `(N, C, H / s, W / s)`, C of 128, 128, 64, 32, 16, s of 16, 8, 4, 2, 1."""
        return decode(self, list(encode(self, x)), self.blocks)


def reset(module: nn.Module) -> None:
    """Start a layer as the authors do: He's normal convolutions, Glorot's uniform dense layers, biases at 0.

    Layers start independently; the authors fix the seed of each, so theirs of equal shape start equal.
    """
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
    if isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
        nn.init.zeros_(module.bias)


def _classifier(num_classes: int) -> nn.Module:
    return nn.Linear(FEATURES, num_classes) if num_classes else nn.Identity()
