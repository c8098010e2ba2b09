"""Slices of a batch of GLCL's pre-training, in the order of rows that its losses read.

Patients lie alike in a scanner: slices at one relative height show about the same anatomy. So a volume of Z slices is
divided into P parts of int(Z / P) slices, the rest at its end is not used, and a batch has one slice of each part.
Rules are those of krishnabits001/domain_specific_cl, `utils.py` and `train_model/`; differences are noted in place.

A row is (volume, slice, copy): copy 0 is the unchanged slice, copies 1 and 2 are two views of it. Volumes are given as
{name: number of slices}; rows count them in this order.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from zoo.errors import InputContractError, OptionError

Rows = npt.NDArray[np.int64]
Depths = Mapping[str, int]

BLANK = -1
"""All three numbers of a row for an image of zeros; see `legacy_blank_rows`."""


def global_rows(
    variant: str,
    depths: Depths,
    batch_size: int,
    rng: np.random.Generator,
    *,
    n_parts: int = 4,
    independent_sets: bool = False,
    legacy_blank_rows: bool = False,
) -> Rows:
    """Draw a batch (M, 3) for the global loss.

    - "R": b slices of any volumes, all different, and of each copies 1 and 2, one after the other; M = 2 b. The authors
      have no code for it.
    - "D-": b / P volumes, their slices, copies 1, copies 2; M = 3 b.
    - "D": b / P blocks of two volumes: slices of the first, copies 1, slices of the second, copies 1; M = 4 b.

    Args:
        variant: "R", "D-" or "D".
        depths: Slices of each volume.
        batch_size: b.
        rng: Source of the draws.
        n_parts: P.
        independent_sets: "D": draw first and second volumes independently, as the authors do, so that a block may have
            one volume twice. By default all volumes of a batch are different.
        legacy_blank_rows: "D": fill as many blocks as the authors' code does, which leaves out the last one and has 5 b
            + 4 rows where P is not 4. The remaining rows are blank: 16 of the published 48.

    Raises:
        InputContractError: Volumes have fewer slices than parts; they are named.
        OptionError: There are too few volumes or slices, b does not fit, or there is no such variant.
    """
    if variant not in ("R", "D-", "D"):
        raise OptionError(f"variant={variant!r}: expected one of R, D-, D")
    if variant == "R":
        return _interleave(_any_slices(depths, batch_size, rng, replace=False))
    if variant == "D-":
        volumes = _count_volumes(batch_size, n_parts)
        slices = _slices(depths, _volumes(depths, volumes, rng), n_parts, rng)
        return np.concatenate([_copy(slices, copy) for copy in (0, 1, 2)]).reshape(-1, 3)
    if legacy_blank_rows:
        count = 4 * batch_size if n_parts == 4 else 5 * batch_size + 4
        blocks = (count - 1) // (4 * n_parts) if n_parts > 0 else 0
        if blocks < 1:
            raise OptionError(
                f"batch_size={batch_size}, n_parts={n_parts}: all {count} rows of legacy_blank_rows would be blank"
            )
    else:
        count, blocks = 4 * batch_size, _count_volumes(batch_size, n_parts)
    rows = np.full((count, 3), BLANK, dtype=np.int64)
    filled = _blocks(depths, blocks, n_parts, rng, independent=independent_sets)
    rows[: len(filled)] = filled
    return rows


def local_rows(variant: str, depths: Depths, batch_size: int, rng: np.random.Generator, *, n_parts: int = 4) -> Rows:
    """Draw a batch (M, 3) for the local loss.

    - "R": b slices of any volumes, drawn with replacement, and of each copies 1 and 2, one after the other; M = 2 b.
    - "D": b / P volumes, at least two; copies 1 of their slices, copies 2; M = 2 b.

    Args:
        variant: "R" or "D".
        depths: Slices of each volume.
        batch_size: b; published 10 for "R", whatever the scripts' `--bt_size` says, and 12 for "D".
        rng: Source of the draws.
        n_parts: P.

    Raises:
        InputContractError: Volumes have fewer slices than parts; they are named.
        OptionError: There are too few volumes, b does not fit, or there is no such variant.
    """
    if variant not in ("R", "D"):
        raise OptionError(f"variant={variant!r}: expected one of R, D")
    if variant == "R":
        return _interleave(_any_slices(depths, batch_size, rng, replace=True))
    volumes = _count_volumes(batch_size, n_parts)
    if volumes < 2:
        raise OptionError(f"batch_size={batch_size}: slices of at least 2 volumes, {2 * n_parts} or more, are expected")
    slices = _slices(depths, _volumes(depths, volumes, rng), n_parts, rng)
    return np.concatenate([_copy(slices, copy) for copy in (1, 2)]).reshape(-1, 3)


def check_depths(depths: Depths, n_parts: int) -> None:
    """Raise `InputContractError` with the names of the volumes that have fewer slices than parts."""
    short = [f"{name} ({depth})" for name, depth in depths.items() if depth < n_parts]
    if short:
        more = f" and {len(short) - 5} more" if len(short) > 5 else ""
        raise InputContractError(
            f"{len(short)} volume(s) have fewer slices than the {n_parts} part(s) that they are divided into: "
            f"{', '.join(short[:5])}{more}. Leave them out, or choose fewer parts"
        )


def _count_volumes(batch_size: int, n_parts: int) -> int:
    if n_parts < 1 or batch_size < 1 or batch_size % n_parts:
        raise OptionError(
            f"batch_size={batch_size}, n_parts={n_parts}: a batch has one slice of each part of some volumes, so a "
            "multiple of the parts is expected"
        )
    return batch_size // n_parts


def _volumes(depths: Depths, count: int, rng: np.random.Generator) -> Rows:
    """Draw `count` different volumes."""
    if count > len(depths):
        raise OptionError(
            f"{len(depths)} volume(s): a batch of this many slices needs {count} different volumes; choose fewer "
            "slices, or more parts"
        )
    return rng.permutation(len(depths))[:count]


def _slices(depths: Depths, volumes: Rows, n_parts: int, rng: np.random.Generator) -> Rows:
    """Draw one slice of each part of volumes (V,): (V, P, 2), volume and slice."""
    check_depths(depths, n_parts)
    widths = np.array(list(depths.values()), dtype=np.int64)[volumes] // n_parts
    drawn = rng.integers(widths[:, None], size=(len(volumes), n_parts)) + widths[:, None] * np.arange(n_parts)
    return np.stack([np.broadcast_to(volumes[:, None], drawn.shape), drawn], axis=-1)


def _any_slices(depths: Depths, count: int, rng: np.random.Generator, *, replace: bool) -> Rows:
    """Draw slices (count, 2) of all volumes, each slice with the same probability."""
    check_depths(depths, 1)
    ends = np.cumsum(list(depths.values()), dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    if count < 1 or total < (1 if replace else count):
        raise OptionError(
            f"batch_size={count}: 1 or more of the {total} slice(s) of {len(ends)} volume(s) are expected"
        )
    drawn = rng.choice(total, count, replace=replace)
    volumes = np.searchsorted(ends, drawn, side="right")
    return np.stack([volumes, drawn - (ends - np.diff(ends, prepend=0))[volumes]], axis=-1)


def _blocks(depths: Depths, count: int, n_parts: int, rng: np.random.Generator, *, independent: bool) -> Rows:
    """Rows of `count` full blocks of variant D."""
    if independent:
        sets = np.stack([_volumes(depths, count, rng), _volumes(depths, count, rng)])
    else:
        sets = _volumes(depths, 2 * count, rng).reshape(2, count)
    first, second = (_slices(depths, volumes, n_parts, rng) for volumes in sets)
    groups = [_copy(slices, copy) for slices in (first, second) for copy in (0, 1)]
    return np.stack(groups, axis=1).reshape(-1, 3)


def _copy(slices: Rows, copy: int) -> Rows:
    """Rows (..., 3) of slices (..., 2)."""
    return np.concatenate([slices, np.full_like(slices[..., :1], copy)], axis=-1)


def _interleave(slices: Rows) -> Rows:
    """Copies 1 and 2 of slices (b, 2), one after the other."""
    return np.stack([_copy(slices, 1), _copy(slices, 2)], axis=1).reshape(-1, 3)
