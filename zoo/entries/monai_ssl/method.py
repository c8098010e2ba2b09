"""MONAI SSL's pre-training objective: restore a corrupted volume, alike from two corruptions of it.

Project-MONAI/tutorials, `self_supervised_pretraining/vit_unetr_ssl/ssl_train.ipynb`; the contrastive term is
`monai.losses.ContrastiveLoss` (Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations",
ICML 2020), on the restored images, not on features.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.errors import OptionError
from zoo.training.distributed import gather_with_gradient, world

COMBINATIONS = ("product", "constant")
TEMPERATURE = 0.05
"""As in the authors' code. Their README says 0.005, at which `exp(1 / temperature)` in that code is infinite."""
_SHORTEST = 1e-8  # least length that a vector counts with, as in torch.nn.functional.cosine_similarity
_SHORT_SUM = 4096  # voxels of a patch of 16^3: every image of the network is a whole number of patches


def nt_xent_reconstruction(a: Tensor, b: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """Cross-entropy of finding a sample's other view among all other images, by cosine similarity; a scalar in float32.

    All 2B images are anchors: `mean_a -log(exp(s_ap / t) / sum_{c != a} exp(s_ac / t))`, with p the other view of a's
    sample, which is in the denominator too. It equals `monai.losses.ContrastiveLoss`, written as a log-softmax, which
    is finite at any temperature. Similarities are inner products over norms, so that beside the views only (2B, 2B)
    numbers are stored, where the broadcast form stores (2B, 2B, voxels).

    Args:
        a: (B, ...), images or vectors of any precision, flattened here.
        b: The other views, in the same order.
        temperature: Positive number.

    Raises:
        OptionError: Shapes disagree, there is one sample alone, whose loss is always 0, or the temperature is not
            positive.
    """
    _check_temperature(temperature)
    if a.ndim < 2 or a.shape != b.shape:
        raise OptionError(f"two views of one shape (B, ...) are expected, not {tuple(a.shape)} and {tuple(b.shape)}")
    count = len(a)
    if count < 2:
        raise OptionError(
            f"{count} sample(s) have no other to be compared with, so the contrastive term would always be 0: at least "
            "2 crops in a step are needed"
        )
    with torch.autocast(a.device.type, enabled=False):
        a, b = a.flatten(1).float(), b.flatten(1).float()
        across = _products(a, b)
        products = torch.cat(
            [torch.cat([_products(a, a), across], dim=1), torch.cat([across.T, _products(b, b)], dim=1)]
        )
        norms = products.diagonal().clamp_min(_SHORTEST**2).sqrt()
        logits = products / norms[:, None] / norms[None, :] / temperature
        itself = torch.eye(2 * count, dtype=torch.bool, device=a.device)
        positive = torch.arange(2 * count, device=a.device).roll(count)
        return F.cross_entropy(logits.masked_fill(itself, -math.inf), positive)


def _products(a: Tensor, b: Tensor) -> Tensor:
    """Inner products (B, B) of long vectors (B, V), as sums of short ones, which float32 rounds less."""
    length = _SHORT_SUM if a.shape[1] % _SHORT_SUM == 0 else a.shape[1]
    a, b = (x.reshape(len(x), -1, length).transpose(0, 1) for x in (a, b))
    return torch.bmm(a, b.transpose(1, 2)).sum(0)


class ReconstructionContrast(nn.Module):
    """Corrupted views of crops to losses: by default `loss = R + C * R`.

    `forward` takes a dict with `target`, uncorrupted crops, and `view_1` and `view_2`, two corruptions of each; all of
    (N, 1, D, H, W), or (N, K, 1, D, H, W) with K crops of each of N volumes, in [0, 1]. It returns scalars: `loss`;
    `reconstruction`, R, the mean absolute error between the image restored from view 1 and the target; `contrast`, C,
    the `nt_xent_reconstruction` of the images restored from both views. The gradient runs through both factors of the
    product: when reconstruction gets better, the contrastive term loses weight. View 2 is trained through C alone.

    In eval mode it returns `reconstruction` of view 1 alone, on this process's samples, as the authors validate.

    Args:
        network: Auto-encoder, from (N, 1, D, H, W) to the same shape.
        temperature: Of the softmax in C.
        combine: "product", as published: `R + contrast_weight * C * R`. "constant": `R + contrast_weight * C`, in which
            the contrastive term keeps its weight.
        contrast_weight: See `combine`.
        symmetric: R is the mean of both views' errors, so that view 2 learns to restore too; published False.
        gather: In training C compares the crops of all processes, so that several train as one does on the whole batch.
            False: each process compares its own, as in the authors' `multi_gpu/mgpu_ssl_train.py`.

    Raises:
        OptionError: A setting is out of its range.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        temperature: float = TEMPERATURE,
        combine: str = "product",
        contrast_weight: float = 1.0,
        symmetric: bool = False,
        gather: bool = True,
    ) -> None:
        super().__init__()
        _check_temperature(temperature)
        if not 0 <= contrast_weight < math.inf:
            raise OptionError(f"contrast_weight={contrast_weight}: expected a number of at least 0")
        if combine not in COMBINATIONS:
            raise OptionError(f"combine={combine!r}: expected one of {', '.join(COMBINATIONS)}")
        self.network = network
        self.temperature, self.combine, self.contrast_weight = temperature, combine, contrast_weight
        self.symmetric, self.gather = symmetric, gather

    def forward(self, views: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the losses of one batch.

        Raises:
            OptionError: Views and target differ in shape, or there is one crop alone.
        """
        names = ("target", "view_1", "view_2") if self.training else ("target", "view_1")
        target, *corrupted = _crops(views, names)
        if not self.training:
            return {"reconstruction": _error(self.network(corrupted[0]), target)}
        first, second = self.network(torch.cat(corrupted)).chunk(2)
        reconstruction = _error(first, target)
        if self.symmetric:
            reconstruction = (reconstruction + _error(second, target)) / 2
        if self.gather and world() > 1:
            first, second = gather_with_gradient(first), gather_with_gradient(second)
        contrast = nt_xent_reconstruction(first, second, self.temperature)
        weighted = self.contrast_weight * contrast
        added = weighted * reconstruction if self.combine == "product" else weighted
        return {"loss": reconstruction + added, "reconstruction": reconstruction, "contrast": contrast}


def _error(image: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error in float32."""
    with torch.autocast(image.device.type, enabled=False):
        return F.l1_loss(image.float(), target.float())


def _crops(views: Mapping[str, Tensor], names: tuple[str, ...]) -> list[Tensor]:
    """The named views (B, 1, D, H, W), with the crops of all volumes along the first axis."""
    shapes = {name: tuple(views[name].shape) if name in views else None for name in names}
    first = shapes[names[0]]
    if len(set(shapes.values())) > 1 or first is None or len(first) not in (5, 6):
        raise OptionError(f"{', '.join(names)} of one shape ([N,] K, 1, D, H, W) are expected, not {shapes}")
    return [views[name].flatten(0, -5) for name in names]


def _check_temperature(temperature: float) -> None:
    if not 0 < temperature < math.inf:
        raise OptionError(f"temperature={temperature}: expected a positive number")
