"""GLCL's two losses: one tells slices apart, the other regions of feature maps.

Chaitanya et al., "Contrastive learning of global and local features for medical image segmentation with limited
annotations", NeurIPS 2020 (arXiv 2006.10511); constants from krishnabits001/domain_specific_cl, `models.py`. Both are
sums of the same term, `-log(e^s(a, c) / (e^s(a, c) + sum_n e^s(a, n)))`, anchor a, positive c, negatives n, with s the
cosine similarity over the temperature; no denominator has other positives.

The authors unroll the terms into a graph; here tables of indices, made once for each shape, select the entries of one
matrix product.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.entries.glcl.regions import Layout
from zoo.entries.glcl.terms import Terms, global_terms, local_pairs
from zoo.errors import OptionError

GLOBAL_VARIANTS = ("R", "D-", "D")
LOCAL_VARIANTS = ("R", "D")
UPSTREAM_ROWS = 24
"""Rows that the authors' local "D" reads: two views of 3 volumes of 4 parts."""
Project = Callable[[Tensor], Tensor]
_SHORTEST = 1e-6  # least length that a vector counts with; TensorFlow's l2_normalize has its square


class GlobalContrastiveLoss(nn.Module):
    """Loss that tells slices from those of other parts of the body; a scalar in float32 from stacked projections.

    Called with `z` (M, D), of any length and precision, whose rows are

    - "R": pairs, two views of a slice one after the other; M even. Standard NT-Xent (Chen et al., ICML 2020).
    - "D-": b slices, view 1 of each, view 2 of each; row p of a third is of part p mod P; M a multiple of 3 P. The
      three rows of a slice attract each other in all six directions.
    - "D": blocks of 4 P rows: P slices of a volume, a view of each, P slices of another volume, a view of each; M a
      multiple of 4 P. A slice and its view, slices of one part in both volumes, and their views attract each other.
      The second volume of a block is also compared with the first of the next one, after the last with the first.

    In both D's the negatives of a row are all rows of other parts. Scales are the published ones: the mean term times
    1, 2 and 4.

    Args:
        variant: "R", "D-" or "D".
        n_parts: P, parts that a volume is divided into; unused by "R".
        temperature: Divides the similarities.
        upstream: Take negatives and numbers of rows from the authors' literals: for 4 parts (and b a multiple of 4)
            they are the same, for others they count some partners as negatives. "D" then knows 3, 4 and 6 parts and
            takes 4 b rows for 4, else 5 b + 4, of which 4 b + 5 count for 3.

    Raises:
        OptionError: A setting is out of its range.
    """

    def __init__(self, variant: str = "D", n_parts: int = 4, temperature: float = 0.1, upstream: bool = False) -> None:
        super().__init__()
        _check_settings(variant, GLOBAL_VARIANTS, temperature)
        least = 1 if variant == "R" else 2
        if not isinstance(n_parts, int) or n_parts < least:
            raise OptionError(f"n_parts={n_parts!r}: {least} or more parts are expected; with 1 there are no negatives")
        if upstream and variant == "D" and n_parts not in (3, 4, 6):
            raise OptionError(
                f"n_parts={n_parts}: the authors' code has 3, 4 and 6 for 'D'; leave upstream out for others"
            )
        self.variant, self.n_parts, self.temperature, self.upstream = variant, n_parts, temperature, upstream
        self._tables: dict[tuple[int, torch.device], Terms] = {}

    def forward(self, z: Tensor) -> Tensor:
        """Return the loss of a batch.

        Raises:
            OptionError: The number of rows is not one of the variant's.
        """
        return self.measure(z)[0]

    def measure(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss, and the share of terms in which the positive outweighs all negatives together."""
        if z.ndim != 2:
            raise OptionError(f"projections (M, D) are expected, not {tuple(z.shape)}")
        key = (len(z), z.device)
        if key not in self._tables:
            with torch.inference_mode(False):  # tensors made inside it cannot be used in training later
                made = global_terms(self.variant, len(z), self.n_parts, upstream=self.upstream)
                self._tables[key] = made.to(z.device)
        table = self._tables[key]
        with torch.autocast(z.device.type, enabled=False):
            z = F.normalize(z[: table.is_left_out.shape[1]].float(), dim=1, eps=_SHORTEST)
            similarity = z @ z.T / self.temperature
            negatives = similarity[table.rows].masked_fill(table.is_left_out, -math.inf).logsumexp(1)
            terms = F.softplus(negatives[table.query] - similarity[table.rows[table.query], table.positive])
            return _summary(terms, table.scale)


class LocalContrastiveLoss(nn.Module):
    """Loss that tells regions of a map from others of the same slices; a scalar in float32 from stacked feature maps.

    Called with `features` (M, C, H, W), of any precision (the authors' are channels last), whose rows are

    - "R": pairs, two views of a slice one after the other; M even. A region attracts the same region of the other view.
    - "D": V volumes of P slices each, one of each part, then another view of each slice in the same order; M = 2 V P.
      A region of a slice attracts that of its view, and those of the slices of the same part in the other volumes.

    Negatives are the regions that `regions.py` lists, in the anchor's map and in the positive's. Scales are the
    published ones: the mean term times 1, and times V / 2.

    Args:
        variant: "R" or "D".
        region_size: Side of a region: 3, whose pixels are flattened in the order (row, column, channel), or 1.
        n_regions: 9 or 13 for each map.
        temperature: Divides the similarities.
        n_negatives: Number of negatives among the five listed regions; the published "D" scripts have 4.
        upstream: "D": read only the first 24 rows, 3 volumes of 4 parts.
        n_parts: P, for "D".

    Raises:
        OptionError: A setting is out of its range.
    """

    def __init__(
        self,
        variant: str = "R",
        region_size: int = 3,
        n_regions: int = 13,
        temperature: float = 0.1,
        n_negatives: int = 5,
        upstream: bool = False,
        n_parts: int = 4,
    ) -> None:
        super().__init__()
        _check_settings(variant, LOCAL_VARIANTS, temperature)
        if not isinstance(n_parts, int) or n_parts < 1 or (upstream and variant == "D" and n_parts != 4):
            raise OptionError(f"n_parts={n_parts!r}: 1 or more parts are expected, 4 for 'D' with upstream=True")
        self.variant, self.temperature, self.upstream, self.n_parts = variant, temperature, upstream, n_parts
        self.layout = Layout(region_size, n_regions, n_negatives)
        self._tables: dict[tuple[torch.Size, torch.device], tuple[Tensor, ...]] = {}

    def forward(self, features: Tensor, project: Project | None = None) -> Tensor:
        """Return the loss of a batch.

        Args:
            features: Maps (M, C, H, W).
            project: From flattened regions of 3 x 3, (M, places, 9 C), to the compared vectors (the authors'
                `seg_pred`).

        Raises:
            OptionError: The number of rows is not one of the variant's, or regions of 1 x 1 are to be projected.
            InputContractError: The maps are too small.
        """
        return self.measure(features, project)[0]

    def measure(self, features: Tensor, project: Project | None = None) -> tuple[Tensor, Tensor]:
        """Return the loss, and the share of terms in which the positive outweighs all negatives together."""
        if features.ndim != 4:
            raise OptionError(f"feature maps (M, C, H, W) are expected, not {tuple(features.shape)}")
        if project is not None and self.layout.region_size == 1:
            raise OptionError("regions of 1 x 1 are compared without projection: project is for region_size=3")
        if self.upstream and self.variant == "D":
            if len(features) < UPSTREAM_ROWS:
                raise OptionError(f"{len(features)} rows: upstream=True reads the first {UPSTREAM_ROWS} of variant 'D'")
            features = features[:UPSTREAM_ROWS]
        pixels, is_left_out, anchor, other = self._table(features)
        regions, places = self.layout.n_regions, len(pixels)
        vectors = features.flatten(2).index_select(2, pixels.flatten())
        vectors = vectors.view(*vectors.shape[:2], *pixels.shape).permute(0, 2, 3, 1).flatten(2)
        vectors = vectors if project is None else project(vectors)
        with torch.autocast(features.device.type, enabled=False):
            vectors = F.normalize(vectors.float(), dim=2, eps=_SHORTEST)
            own, theirs = vectors.index_select(0, anchor), vectors.index_select(0, other)
            logits = own[:, :regions] @ torch.cat([own, theirs], 1).mT / self.temperature
            logits = logits.masked_fill(is_left_out, -math.inf).flatten(0, 1)
            target = torch.arange(places, places + regions, device=logits.device).repeat(len(anchor))
            terms = F.cross_entropy(logits, target, reduction="none")
            return _summary(terms, len(anchor) / len(features))

    def _table(self, features: Tensor) -> tuple[Tensor, ...]:
        """Pixels of the places; (R, 2 U), the regions in no denominator; the anchor and the other map of each pair."""
        key = (features.shape[:1] + features.shape[2:], features.device)
        if key not in self._tables:
            with torch.inference_mode(False):
                is_negative = self.layout.is_negative()
                is_positive = torch.eye(*is_negative.shape, dtype=torch.bool)
                is_left_out = ~torch.cat([is_negative, is_negative | is_positive], 1)
                pairs = local_pairs(self.variant, len(features), self.n_parts)
                tables = (self.layout.pixels(*features.shape[2:]), is_left_out, *pairs)
                self._tables[key] = tuple(table.to(features.device) for table in tables)
        return self._tables[key]


def _summary(terms: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """The loss, and the share of terms whose positive has more than half of the softmax."""
    return scale * terms.mean(), (terms.detach() < math.log(2)).float().mean()


def _check_settings(variant: str, variants: tuple[str, ...], temperature: float) -> None:
    if variant not in variants:
        raise OptionError(f"variant={variant!r}: expected one of {', '.join(variants)}")
    if not 0 < temperature < math.inf:
        raise OptionError(f"temperature={temperature}: expected a positive number")
