"""CAiD's pre-training objective: instance discrimination with a queue, and reconstruction of the undistorted view.

Hosseinzadeh Taher et al., "CAiD: Context-Aware Instance Discrimination for Self-supervised Learning in Medical
Imaging", MIDL 2022 (PMLR 172:535-551); constants from MR-HosseinzadehTaher/CAiD, `caid_models.py` and
`main_CAiD_moco.py`. Tensor names are the authors', so that its files load as theirs do.
"""

from __future__ import annotations

from collections.abc import Mapping

import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.errors import OptionError
from zoo.training.contrastive import (
    enqueue,
    first_is_positive,
    other_keys_logits,
    queue_logits,
    shuffled_forward,
    update_momentum,
)
from zoo.training.distributed import gather, rank

MODES = ("caid", "id")
FEATURES = 2048


class CAiD(nn.Module):
    """Views to losses: `loss = contrastive_weight * nce + reconstruction_weight * mse`.

    `forward` takes a dict with `query` and `key`, two views (N, 3, H, W) in [0, 1] with H and W divisible by 32, and
    `target`, the crop of the query before it was changed (N, 1, H, W) in [0, 1]. It returns scalars: `loss`, `nce`,
    `mse` (mode "caid") and `accuracy`, the share of queries nearest to their own key.

    Args:
        mode: "caid", or "id" for instance discrimination alone (the authors' baseline, without a decoder).
        dim: Length of the projection.
        queue_size: Number of negatives kept, K.
        momentum: Share of the key network kept at each step.
        temperature: Of the softmax over similarities.
        contrastive_weight: Weight of the cross-entropy.
        reconstruction_weight: Weight of the mean squared error.
        mlp: Two-layer projection head (the published command) instead of one layer.
        zero_init_residual: Start each residual block as the identity (Goyal et al., 2017), as timm does and the authors
            do not. With few steps to learn in, deep random blocks hide the image from the first keys.
        batch_negatives: Also take the other keys of the same step as negatives. Not in the published method. On a few
            hundred images a network can tell its key from the queue by how far the key network has moved since,
            whatever the image; the other keys of the step have moved as far.
        key_batches: Parts in which a process runs its shuffled keys, each with batch statistics of its own; the authors
            have 1 and rely on several GPUs. One process needs at least 2, or batch norm tells keys from negatives.
        key_full_unet: Give the key network a decoder, whose output nobody uses, as the authors' checkpoints have.
        validate_mutates_state: Also move the key network and the queue outside training, as the authors do: their
            validation keys become negatives of the next epoch.
    """

    def __init__(
        self,
        *,
        mode: str = "caid",
        dim: int = 128,
        queue_size: int = 65536,
        momentum: float = 0.999,
        temperature: float = 0.2,
        contrastive_weight: float = 1.0,
        reconstruction_weight: float = 10.0,
        mlp: bool = True,
        zero_init_residual: bool = False,
        batch_negatives: bool = False,
        key_batches: int = 1,
        key_full_unet: bool = False,
        validate_mutates_state: bool = False,
    ) -> None:
        super().__init__()
        if mode not in MODES:
            raise OptionError(f"mode must be one of {', '.join(MODES)}, not {mode!r}")
        self.momentum, self.temperature, self.key_batches = momentum, temperature, key_batches
        self.contrastive_weight, self.reconstruction_weight = contrastive_weight, reconstruction_weight
        self.batch_negatives, self.validate_mutates_state = batch_negatives, validate_mutates_state
        self.encoder_q = CAiDNetwork(dim, mlp=mlp, decoder=mode == "caid")
        if zero_init_residual:
            for name, parameter in self.encoder_q.backbone.encoder.named_parameters():
                if name.endswith(".bn3.weight"):
                    nn.init.zeros_(parameter)
        key_decoder = mode == "caid" and key_full_unet
        self.encoder_k = CAiDNetwork(dim, mlp=mlp, decoder=key_decoder).requires_grad_(False)
        online = self.encoder_q.state_dict()
        self.encoder_k.load_state_dict({name: online[name] for name in self.encoder_k.state_dict()})
        self.register_buffer("queue", F.normalize(torch.randn(dim, queue_size), dim=0))
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.long))
        self.queue: Tensor
        self.queue_ptr: Tensor

    def forward(self, views: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the losses of one batch of views; in training also move the key network and the queue."""
        moves = self.training or self.validate_mutates_state
        features = self.encoder_q.features(views["query"])
        query = self.encoder_q.project(features)
        with torch.no_grad():
            if moves:
                update_momentum(self.encoder_q, self.encoder_k, self.momentum)
            # Outside training batch norm has no batch statistics to hide, and the processes' shares may be uneven.
            if self.training:
                key = shuffled_forward(self.encoder_k, views["key"], self.key_batches)
            else:
                key = self.encoder_k(views["key"])
        logits = queue_logits(query, key, self.queue.clone(), self.temperature)
        step_keys, first = (gather(key), rank() * len(key)) if moves else (key, 0)
        if self.batch_negatives:
            logits = torch.cat([logits, other_keys_logits(query, step_keys, first, self.temperature)], dim=1)
        if moves:
            enqueue(self.queue, self.queue_ptr, step_keys)
        nce, accuracy = first_is_positive(logits)
        losses = {"loss": self.contrastive_weight * nce, "nce": nce, "accuracy": accuracy}
        if self.encoder_q.has_decoder:
            losses["mse"] = F.mse_loss(self.encoder_q.reconstruct(features).float(), views["target"])
            losses["loss"] = losses["loss"] + self.reconstruction_weight * losses["mse"]
        return losses


class CAiDNetwork(nn.Module):
    """ResNet-50 U-Net with a projection head on the pooled last map. Names: `backbone.*` (smp's) and `fc.*`."""

    def __init__(self, dim: int, *, mlp: bool, decoder: bool) -> None:
        super().__init__()
        self.backbone = smp.Unet("resnet50", encoder_weights=None, classes=1, activation="sigmoid")
        self.has_decoder = decoder
        if not decoder:
            del self.backbone.decoder, self.backbone.segmentation_head
        last = nn.Linear(FEATURES, dim)
        self.fc = nn.Sequential(nn.Linear(FEATURES, FEATURES), nn.ReLU(), last) if mlp else last

    def features(self, x: Tensor) -> list[Tensor]:
        """The encoder's maps, input first, (N, 2048, H/32, W/32) last."""
        maps: list[Tensor] = self.backbone.encoder(x)
        return maps

    def project(self, maps: list[Tensor]) -> Tensor:
        """Unit vectors (N, dim) from the encoder's maps."""
        return F.normalize(self.fc(maps[-1].mean((2, 3))).float(), dim=1)

    def reconstruct(self, maps: list[Tensor]) -> Tensor:
        """Image (N, 1, H, W) in (0, 1) from the encoder's maps."""
        image: Tensor = self.backbone.segmentation_head(self.backbone.decoder(maps))
        return image

    def forward(self, x: Tensor) -> Tensor:
        """Projection (N, dim) of images (N, 3, H, W), which is all that the key network is for."""
        return self.project(self.features(x))
