"""Tables of the rows that GLCL's losses compare, made once for each number of rows.

Rules and literals are those of krishnabits001/domain_specific_cl, `models.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations

import torch
from torch import Tensor

from zoo.errors import OptionError


@dataclass(frozen=True)
class Terms:
    """Terms of the global loss. A query is a row with a set of negatives, which several terms may share."""

    rows: Tensor
    """(Q,), the row of each query."""
    is_left_out: Tensor
    """(Q, M), whether a row is not a negative of the query."""
    query: Tensor
    """(T,), the anchor of each term."""
    positive: Tensor
    """(T,), the row of its positive."""
    scale: float
    """Factor on the mean term."""

    def to(self, device: torch.device) -> Terms:
        """The same tables on a device."""
        rows, query, positive = (indices.to(device) for indices in (self.rows, self.query, self.positive))
        return Terms(rows, self.is_left_out.to(device), query, positive, self.scale)


def global_terms(variant: str, count: int, parts: int, *, upstream: bool) -> Terms:
    """The terms for `count` rows.

    Args:
        variant: "R", "D-" or "D".
        count: M, rows of the batch.
        parts: P, parts of a volume.
        upstream: Take the authors' literals; if they do not read the last rows, `is_left_out` has fewer than M.

    Raises:
        OptionError: The variant cannot have so many rows.
    """
    if variant == "R":
        _check_count(variant, count, 2, 4, "two views of each of at least 2 slices")
        rows = torch.arange(count)
        return Terms(rows, rows[:, None] // 2 == rows // 2, rows, rows ^ 1, 1.0)
    if variant == "D-":
        step = 4 if upstream else parts
        factor = 3 if upstream else 3 * parts
        _check_count(variant, count, factor, factor, f"b slices and two views of each, b a multiple of n_parts={parts}")
        return _three_rows(count // 3, parts, step)
    if upstream:
        return _four_rows_upstream(count, parts)
    _check_count(variant, count, 4 * parts, 4 * parts, f"blocks of 4 x n_parts={parts}")
    return _four_rows(count, parts, reach=count // parts, divisor=count)


def local_pairs(variant: str, count: int, parts: int) -> tuple[Tensor, Tensor]:
    """Rows (T,) of the maps that hold the anchors, and of those that hold their positives, for `count` rows.

    Raises:
        OptionError: The variant cannot have so many rows.
    """
    if variant == "R":
        _check_count(variant, count, 2, 2, "two views of each slice")
        return torch.arange(count), torch.arange(count) ^ 1
    _check_count(variant, count, 2 * parts, 4 * parts, f"two views of at least 2 volumes of n_parts={parts} slices")
    slices, volumes = count // 2, count // 2 // parts
    first = torch.arange(slices)
    others = [first + slices] + [(first + parts * step) % slices for step in range(1, volumes)]
    return first.repeat(volumes), torch.cat(others)


def _three_rows(size: int, parts: int, step: int) -> Terms:
    """Variant D-: row p, its views p + size and p + 2 size; from p mod P on, every `step`-th row is left out."""
    rows = torch.arange(3 * size)
    offset = rows - (rows % size % parts)[:, None]
    kin = rows.view(3, size)
    pairs = list(permutations(range(3), 2))
    query, positive = (torch.cat([kin[pair[side]] for pair in pairs]) for side in (0, 1))
    return Terms(rows, (offset >= 0) & (offset % step == 0), query, positive, len(pairs) / 3)


def _four_rows(count: int, parts: int, reach: int, divisor: int) -> Terms:
    """Variant D: rows p, p + P, p + 2P, p + 3P, round the end; `reach` rows from p on, P apart, are left out."""
    first = torch.arange(count)
    first = first[first % (2 * parts) < parts]
    kin = (first[:, None] + parts * torch.arange(4)) % count
    near = (first[:, None] + parts * torch.arange(reach)) % count
    is_left_out = torch.zeros(len(first), count, dtype=torch.bool).scatter_(1, near, True)
    pairs = [(0, 1), (1, 0), (0, 2), (2, 0), (2, 3), (3, 2), (1, 3), (3, 1)]
    query = torch.cat([4 * torch.arange(len(first)) + anchor for anchor, _ in pairs])
    positive = torch.cat([kin[:, other] for _, other in pairs])
    return Terms(kin.flatten(), is_left_out.repeat_interleave(4, 0), query, positive, len(query) / divisor)


def _four_rows_upstream(count: int, parts: int) -> Terms:
    """Variant D with the authors' numbers of rows and of rows left out, for 3, 4 and 6 parts."""
    slope, rest = (4, 0) if parts == 4 else (5, 4)
    size = (count - rest) // slope
    if size < 1 or count != slope * size + rest:
        raise OptionError(
            f"{count} rows for variant 'D': with upstream=True and n_parts={parts}, {slope} x b + {rest} are expected"
        )
    factor = {3: 5, 4: 4 if size == 12 else 40, 6: 2}[parts]
    return _four_rows(4 * size + 5 if parts == 3 else count, parts, reach=factor * parts, divisor=4 * size)


def _check_count(variant: str, count: int, factor: int, least: int, roles: str) -> None:
    if count < least or count % factor:
        raise OptionError(
            f"{count} rows for variant {variant!r}: a multiple of {factor}, at least {least}, is expected ({roles})"
        )
