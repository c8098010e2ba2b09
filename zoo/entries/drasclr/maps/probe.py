"""A linear probe of the features of cells: the share of a cell that is emphysema."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from zoo.errors import OptionError
from zoo.training.arrays import save_arrays

Floats = npt.NDArray[np.float64]
Marked = tuple[Floats, Floats, Floats]
"""One volume: features (P, D) of its cells, the marked share of each (P,), and its number of voxels (P,)."""

PENALTIES = (1e-1, 1e-2, 1e-3, 1e-4)
"""Weights of the squared coefficients, relative to the mean loss of a voxel; left-out volumes choose one."""


@dataclass(frozen=True, eq=False)
class Probe:
    """A logistic regression, and the probability from which a cell counts as found."""

    mean: Floats
    deviation: Floats
    weight: Floats
    """(D,), for standardised features."""
    bias: float
    threshold: float
    """The one with the greatest Dice on left-out volumes."""

    def __call__(self, features: npt.NDArray[Any]) -> Floats:
        """Return the shares `(P,)`, 0 to 1, of features `(P, D)`."""
        logits = (features - self.mean) / self.deviation @ self.weight + self.bias
        found: Floats = 0.5 * (1 + np.tanh(0.5 * logits))  # the logistic function without overflow
        return found

    def save(self, path: Path) -> None:
        """Write the probe as `.npz`."""
        save_arrays(path, **vars(self))


def load_probe(path: str | Path) -> Probe:
    """Read a file of `Probe.save`."""
    with np.load(path, allow_pickle=False) as arrays:
        numbers = {name: float(arrays[name]) for name in ("bias", "threshold")}
        return Probe(arrays["mean"], arrays["deviation"], arrays["weight"], **numbers)


def fit_probe(volumes: Sequence[Marked]) -> Probe:
    """Fit the share of each cell by logistic regression; a cell counts by its voxels.

    Penalty and threshold are those with the greatest Dice when each volume is mapped by a probe of the others.

    Args:
        volumes: At least two.

    Raises:
        OptionError: Fewer than two volumes have marked voxels.
    """
    if (with_some := sum(bool((share > 0).any()) for _, share, _ in volumes)) < 2:
        raise OptionError(f"a probe needs two volumes with marked voxels, but {with_some} of {len(volumes)} have any")
    share, count = (np.concatenate([volume[i] for volume in volumes]) for i in (1, 2))

    def quality(penalty: float) -> tuple[float, float]:
        held_out = []
        for held in range(len(volumes)):
            probe = _fit([volume for i, volume in enumerate(volumes) if i != held], penalty)
            held_out.append(probe(volumes[held][0]))
        return best_threshold(np.concatenate(held_out), share, count)

    tried = {penalty: quality(penalty) for penalty in PENALTIES}
    penalty = max(tried, key=lambda p: tried[p][0])
    return _fit(volumes, penalty, tried[penalty][1])


def best_threshold(scores: Floats, share: Floats, count: Floats) -> tuple[float, float]:
    """Return the greatest Dice of the cells whose score reaches a threshold, and that threshold.

    This is the Dice of voxels if each cell is taken as a whole.

    Args:
        scores: `(P,)`.
        share: `(P,)`, marked share of each cell.
        count: `(P,)`, voxels of each cell.
    """
    order = np.argsort(-scores, kind="stable")
    scores, share, count = scores[order], share[order], count[order]
    values = 2 * np.cumsum(share * count) / (np.cumsum(count) + np.sum(share * count))
    last = np.append(scores[1:] != scores[:-1], True)  # equal scores are taken together
    best = int(np.argmax(np.where(last, values, -1.0)))
    return float(values[best]), float(scores[best])


def _fit(volumes: Sequence[Marked], penalty: float, threshold: float = 0.5) -> Probe:
    from sklearn.linear_model import LogisticRegression

    features, share, count = (np.concatenate([volume[i] for volume in volumes]) for i in range(3))
    mean, deviation = features.mean(0), features.std(0)
    deviation[deviation < 1e-12] = 1.0
    x = (features - mean) / deviation
    # A share is fitted as two samples, one of each class, weighted by the share and by its complement.
    weights = np.concatenate([share * count, (1 - share) * count]) / count.sum()
    classes = np.repeat([1, 0], len(x))
    model = LogisticRegression(C=1 / penalty, solver="newton-cholesky")
    model.fit(np.concatenate([x, x]), classes, sample_weight=weights)
    return Probe(mean, deviation, model.coef_[0], float(model.intercept_[0]), threshold)
