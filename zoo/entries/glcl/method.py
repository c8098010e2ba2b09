"""GLCL's two pre-training objectives, from slices to a loss: one of the encoder, then one of the decoder.

Chaitanya et al., "Contrastive learning of global and local features for medical image segmentation with limited
annotations", NeurIPS 2020 (arXiv 2006.10511); krishnabits001/domain_specific_cl, `models.py` and `train_model/`. The
losses are in `losses.py`.

Rows of a batch have roles, which `batches.py` assigns. A batch is therefore never divided: each process has its own
batches, whose losses are averaged (as gradients are, by DDP) and never compared with another's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from zoo.entries.glcl.convert import REGION
from zoo.entries.glcl.losses import GlobalContrastiveLoss, LocalContrastiveLoss, Project
from zoo.entries.glcl.model import GLCLDecoder, GLCLEncoder
from zoo.errors import OptionError

__all__ = ["GlobalContrastiveLoss", "GlobalMethod", "LocalContrastiveLoss", "LocalMethod"]

STATISTICS = ("batch", "running")
ENCODER_PREFIX = "enc_"


class GlobalMethod(nn.Module):
    """Stage 1: slices to the global loss.

    `forward` takes a dict with `image` (M, 1, S, S), rows as `loss` reads them, or (K, M, 1, S, S), K batches, each
    with its own loss. It returns scalars: `loss`, the batches' mean, and `accuracy`, the share of terms in which the
    positive outweighs all negatives together. It draws nothing: views are drawn before.

    Args:
        encoder: The encoder with its projection head.
        loss: The objective.

    Raises:
        OptionError: The encoder has no projection head.
    """

    def __init__(self, encoder: GLCLEncoder, loss: GlobalContrastiveLoss) -> None:
        super().__init__()
        if not encoder.has_projection:
            raise OptionError("the global loss compares projections: an encoder with projection=True is expected")
        self.network, self.loss = encoder, loss

    def forward(self, views: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the losses of the batches; all slices of a call share their batch statistics."""
        return _losses(views, self.network, self.loss.measure)


class LocalMethod(nn.Module):
    """Stage 2: slices to the local loss of the decoder's maps. `forward` is like that of `GlobalMethod`.

    Args:
        decoder: The network of the local loss; its `seg_pred`, where it has one, projects regions of 3 x 3.
        loss: The objective.
        freeze_encoder: Train all but the encoder, as published.
        encoder_statistics: Statistics of the encoder's norms in training. "batch", as published: those of the batch,
            also when frozen, and the averages keep moving. "running": the averages of stage 1.

    Raises:
        OptionError: A setting is out of its range, or `seg_pred` is for regions of 1 x 1.
    """

    def __init__(
        self,
        decoder: GLCLDecoder,
        loss: LocalContrastiveLoss,
        *,
        freeze_encoder: bool = True,
        encoder_statistics: str = "batch",
    ) -> None:
        super().__init__()
        if encoder_statistics not in STATISTICS:
            raise OptionError(f"encoder_statistics={encoder_statistics!r}: expected one of {', '.join(STATISTICS)}")
        if hasattr(decoder, REGION) and loss.layout.region_size == 1:
            raise OptionError(f"regions of 1 x 1 are compared without {REGION}: build the decoder with project=False")
        self.network, self.loss = decoder, loss
        self.encoder_statistics = encoder_statistics
        for name, layer in decoder.named_children():
            if name.startswith(ENCODER_PREFIX):
                layer.requires_grad_(not freeze_encoder)

    def train(self, mode: bool = True) -> LocalMethod:
        """Switch to training or evaluation; the encoder's norms as `encoder_statistics` says."""
        super().train(mode)
        if self.encoder_statistics == "running":
            for name, layer in self.network.named_children():
                if name.startswith(ENCODER_PREFIX):
                    layer.eval()
        return self

    def forward(self, views: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the losses of the batches; all slices of a call share their batch statistics."""
        project: Project | None = getattr(self.network, REGION, None)
        return _losses(views, self.network, lambda maps: self.loss.measure(maps, project))


def _losses(
    views: Mapping[str, Tensor], network: nn.Module, measure: Callable[[Tensor], tuple[Tensor, Tensor]]
) -> dict[str, Tensor]:
    """Run all batches through the network at once, and each through the loss."""
    image = views["image"]
    if image.ndim not in (4, 5):
        raise OptionError(f"image of shape ([K,] M, 1, S, S) is expected, not {tuple(image.shape)}")
    outputs = network(image.flatten(0, -4))
    batches = outputs.chunk(len(image)) if image.ndim == 5 else [outputs]
    losses, accuracies = zip(*map(measure, batches), strict=True)
    return {"loss": torch.stack(losses).mean(), "accuracy": torch.stack(accuracies).mean()}
