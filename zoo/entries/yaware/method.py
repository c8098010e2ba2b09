"""y-Aware's pre-training objective: contrastive learning in which subjects of near age attract each other.

Dufumier et al., "Contrastive Learning with Continuous Proxy Meta-Data for 3D MRI Classification", MICCAI 2021 (arXiv
2106.08808); constants from Duplums/yAwareContrastiveLearning, `losses.py` and `config.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.entries.yaware.augment import Augment
from zoo.entries.yaware.model import YAwareDenseNet121
from zoo.errors import OptionError
from zoo.training.distributed import gather, gather_with_gradient, world

NORMALIZATIONS = ("anchor", "upstream")
KERNELS = ("gaussian", "equal", "views")


class YAwareInfoNCE(nn.Module):
    """Cross-entropy between the similarities of embeddings and the nearness of labels, a scalar in float32.

    All 2N rows (both views of N subjects) are anchors; the other 2N - 1 are compared with each: `-mean_a sum_b W_ab log
    softmax_b(s_ab / temperature)` with s the cosine similarity and W from the labels. Its minimum is the entropy of the
    weights (`floor`), not 0. In training mode the N subjects are those of all processes.

    Args:
        temperature: Divides the similarities.
        sigma: Standard deviation of the Gaussian kernel, in the labels' unit (published: 5 years).
        normalize: "anchor": the weights of each anchor sum to 1. "upstream", as in the authors' code: the weight of a
            pair is divided by the sum of the *other* subject, so that anchors at the ends of the age range count less,
            and the loss has twice the scale.
        kernel: "gaussian", `w_ab = exp(-|y_a - y_b|^2 / (2 sigma^2))`, for real labels. "equal", w = 1 for equal
            labels, for classes (supervised contrastive learning). "views", the other view alone: SimCLR's NT-Xent, to
            which "gaussian" tends for sigma to 0 where all labels differ.

    Raises:
        OptionError: A setting is out of its range.
    """

    def __init__(
        self, temperature: float = 0.1, sigma: float = 5.0, normalize: str = "anchor", kernel: str = "gaussian"
    ) -> None:
        super().__init__()
        for name, value in (("temperature", temperature), ("sigma", sigma)):
            if not 0 < value < math.inf:
                hint = '; for SimCLR, its limit at 0, use kernel="views"' if name == "sigma" and value == 0 else ""
                raise OptionError(f"{name}={value}: expected a positive number{hint}")
        for name, word, legal in (("normalize", normalize, NORMALIZATIONS), ("kernel", kernel, KERNELS)):
            if word not in legal:
                raise OptionError(f"{name}={word!r}: expected one of {', '.join(legal)}")
        self.temperature, self.sigma, self.normalize, self.kernel = temperature, sigma, normalize, kernel

    def forward(self, z1: Tensor, z2: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the loss of two views.

        Args:
            z1: Embeddings (N, D) of the first views, of any length and precision.
            z2: Those of the second views, in the same order.
            labels: (N,) or (N, k), real numbers; a NaN makes the loss NaN. None with kernel "views".

        Raises:
            OptionError: Shapes disagree, labels are missing, or there is one subject alone.
        """
        self._check(z1, z2, labels)
        if self.training:
            z1, z2 = gather_with_gradient(z1), gather_with_gradient(z2)
        if len(z1) < 2:
            raise OptionError("a batch of one subject has no other to be compared with: at least 2 are needed")
        with torch.autocast(z1.device.type, enabled=False):
            z = F.normalize(torch.cat([z1, z2]).float(), dim=1)
            similarity = z @ z.T / self.temperature
            weights = self._weights(labels, len(z1), z.device)
            itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
            others = similarity.masked_fill(itself, -math.inf).logsumexp(1)
            loss = (weights.sum(1) * others - (weights * similarity).sum(1)).mean()
            return 2 * loss if self.normalize == "upstream" else loss

    def floor(self, labels: Tensor | None, count: int, device: torch.device) -> Tensor:
        """The least value that the loss can have for `count` subjects with these labels: the entropy of the weights.

        Only for `normalize="anchor"`; `labels` as in `forward`.
        """
        entropy: Tensor = torch.special.entr(self._weights(labels, count, device)).sum(1)
        return entropy.mean()

    def _weights(self, labels: Tensor | None, count: int, device: torch.device) -> Tensor:
        """Weights (2N, 2N) of the pairs, 0 on the diagonal; `count` is N over all processes."""
        if labels is None or self.kernel == "views":
            near = torch.eye(count, device=device)
        else:
            y = labels.reshape(len(labels), -1)
            y = gather(y) if self.training else y
            if self.kernel == "equal":  # in their own type: large identifiers would be equal in float32
                near = (y[:, None] == y[None, :]).all(-1).float()
            else:
                squared = (y[:, None].float() - y[None, :].float()).square().sum(-1)
                # Sigma's limit is reached at the least number of float32; 0 / 0 would be NaN.
                near = torch.exp(-squared / max(2 * self.sigma * self.sigma, torch.finfo(torch.float32).tiny))
        weights = near.repeat(2, 2)
        weights = weights - torch.diag(weights.diag())
        total = weights.sum(1)
        return weights / (total[None, :] if self.normalize == "upstream" else total[:, None])

    def _check(self, z1: Tensor, z2: Tensor, labels: Tensor | None) -> None:
        if z1.ndim != 2 or z1.shape != z2.shape:
            raise OptionError(
                f"two views of one shape (N, D) are expected, not {tuple(z1.shape)} and {tuple(z2.shape)}"
            )
        if labels is None:
            if self.kernel != "views":
                raise OptionError(f'kernel "{self.kernel}" needs labels (N,) or (N, k); only "views" does without')
        elif labels.ndim not in (1, 2) or len(labels) != len(z1) or (self.kernel != "views" and not labels.numel()):
            raise OptionError(f"labels ({len(z1)},) or ({len(z1)}, k) are expected, not {tuple(labels.shape)}")


class YAware(nn.Module):
    """Volumes to losses.

    `forward` takes a dict with `image` (N, 1, D, H, W), z-scored, `label` (N, k), and `draws` (N, 2), the seeds of the
    two views. It returns scalars: `loss`; `accuracy`, the share of rows nearest to their own other view; and with
    `normalize="anchor"` also `excess`, the loss minus the least that it could be.

    Args:
        tf: How views are made, see `Augment`.
        temperature: See `YAwareInfoNCE`, as for the settings below.
        sigma: In the labels' unit.
        normalize: "anchor" or "upstream".
        kernel: "gaussian", "equal" or "views".
    """

    def __init__(
        self,
        *,
        tf: str = "cutout",
        temperature: float = 0.1,
        sigma: float = 5.0,
        normalize: str = "anchor",
        kernel: str = "gaussian",
    ) -> None:
        super().__init__()
        self.network = YAwareDenseNet121(projection=True)
        self.augment = Augment(tf)
        self.objective = YAwareInfoNCE(temperature, sigma, normalize, kernel)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the losses of one batch; each view has its own batch statistics, as in the authors' code."""
        image, label = batch["image"], batch["label"]
        z1, z2 = (self.network(self.augment(image, batch["draws"][:, view])) for view in (0, 1))
        losses = {"loss": self.objective(z1, z2, label), "accuracy": _accuracy(z1.detach(), z2.detach())}
        if self.objective.normalize == "anchor":
            count = len(z1) * world() if self.training else len(z1)
            losses["excess"] = losses["loss"].detach() - self.objective.floor(label, count, z1.device)
        return losses


def _accuracy(z1: Tensor, z2: Tensor) -> Tensor:
    """Share of the rows of one process whose nearest other row is the other view."""
    z = F.normalize(torch.cat([z1, z2]).float(), dim=1)
    nearest = (z @ z.T).fill_diagonal_(-math.inf).argmax(1)
    rows = torch.arange(len(z), device=z.device)
    return (nearest == (rows + len(z1)) % len(z)).float().mean()
