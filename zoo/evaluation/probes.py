"""The two probes of frozen features: nearest neighbours, and a regularised linear model.

Everything is fitted and chosen on the cases that a probe is given, by folds of whole groups; a probe that is fitted
knows nothing of what it is then asked.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from zoo.tasks.measures import Measure, auroc_of, mean_of
from zoo.training.evaluate import PENALTIES
from zoo.training.metrics import Array, Floats

ALPHAS = tuple(10.0**k for k in range(-3, 5))
"""Penalties of ridge regression that are tried, for standardised features, times the number of cases."""
NEIGHBOURS = (1, 3, 5, 10, 20, 50, 100)
"""Numbers of neighbours that are tried."""
MOST_KEPT = 5000
"""Training cases among which neighbours are looked for; of more, as many are drawn: the time stays linear in cases."""
_FOLDS = 5
_DEFAULT_PENALTY, _DEFAULT_ALPHA, _DEFAULT_NEIGHBOURS = 1e-2, 1.0, 3
"""Where too few groups have labels to choose by cross-validation."""
_AT_ONCE = 1024


@dataclass(frozen=True, eq=False)
class Part:
    """Cases that a probe is fitted on."""

    features: Floats
    """`(N, D)`."""
    labels: Floats
    """`(N,)`: numbers of classes, all of which occur, or numbers."""
    groups: Array
    """`(N,)`."""
    classes: int
    """0 for numbers."""
    seed: int = 0


class Fitted(Protocol):
    """A probe after its fit."""

    @property
    def chosen(self) -> float:
        """What was chosen: the penalty, or the number of neighbours."""
        ...

    def scores(self, features: Floats) -> Floats:
        """Return probabilities `(M, C)`, or numbers `(M,)`, of features `(M, D)`."""
        ...


@dataclass(frozen=True, eq=False)
class Linear:
    """A logistic regression, multinomial for several classes; or a ridge regression."""

    mean: Floats
    scale: Floats
    weights: Floats
    """`(D, C)`, for two classes and numbers `(D, 1)`, of standardised features."""
    offset: Floats
    classes: int
    chosen: float

    def scores(self, features: Floats) -> Floats:
        """Return probabilities or numbers."""
        from scipy.special import expit, softmax

        found = ((features - self.mean) / self.scale) @ self.weights + self.offset
        if not self.classes:
            return found[:, 0]
        if self.classes == 2:
            positive = expit(found[:, 0])
            return np.stack([1 - positive, positive], 1)
        probabilities: Floats = softmax(found, 1)
        return probabilities


@dataclass(frozen=True, eq=False)
class Nearest:
    """The nearest training cases, by the cosine of centred features, each with one vote."""

    mean: Floats
    directions: Array
    labels: Floats
    classes: int
    chosen: int

    def scores(self, features: Floats) -> Floats:
        """Return shares of the votes, or the neighbours' mean."""
        return np.concatenate(
            [
                _votes(directions(part, self.mean) @ self.directions.T, self.labels, self.classes, (self.chosen,))[0]
                for part in np.array_split(features, -(-len(features) // _AT_ONCE))
            ]
        )


def fit_linear(part: Part) -> Linear:
    """Fit the linear probe; its penalty is chosen inside the part.

    Features are standardised by the part. The penalty is rotation invariant, so the fit is done in the span of the
    part's cases: the same solution, many times faster where D exceeds N.
    """
    mean, scale = standard_of(part.features)
    spanned, basis = _span((part.features - mean) / scale)
    solve = _logistic if part.classes else _ridge
    choices = tuple(c / len(part.labels) for c in PENALTIES) if part.classes else ALPHAS
    default = _DEFAULT_PENALTY / len(part.labels) if part.classes else _DEFAULT_ALPHA

    def tried(rest: Array, held: Array) -> list[Floats]:
        return [
            _asked(spanned[held] @ weights + offset, part.classes)
            for weights, offset in solve(spanned[rest], part.labels[rest], part.classes, choices)
        ]

    chosen = _choose(part, choices, default, tried)
    ((weights, offset),) = solve(spanned, part.labels, part.classes, (chosen,))
    return Linear(mean, scale, basis @ weights, offset, part.classes, chosen)


def fit_nearest(part: Part) -> Nearest:
    """Keep the part's cases, at most `MOST_KEPT` of them; the number of neighbours is chosen among them."""
    kept = np.arange(len(part.labels))
    if len(kept) > MOST_KEPT:
        kept = np.sort(np.random.default_rng([part.seed, MOST_KEPT]).choice(kept, MOST_KEPT, replace=False))
    mean = part.features.mean(0)
    own, labels = directions(part.features[kept], mean), part.labels[kept]
    choices = tuple(k for k in NEIGHBOURS if k <= max(1, len(kept) * (_FOLDS - 1) // _FOLDS))

    def tried(rest: Array, held: Array) -> list[Floats]:
        return _votes(own[held] @ own[rest].T, labels[rest], part.classes, choices)

    chosen = _choose(Part(part.features[kept], labels, part.groups[kept], part.classes, part.seed), choices, 0, tried)
    return Nearest(mean, own, labels, part.classes, int(chosen) or min(_DEFAULT_NEIGHBOURS, len(kept)))


FITS: dict[str, Callable[[Part], Fitted]] = {"knn": fit_nearest, "linear": fit_linear}


def directions(features: Floats, mean: Floats) -> Array:
    """Return centred features of length 1, float32."""
    centred = features - mean
    found: Array = (centred / np.linalg.norm(centred, axis=1, keepdims=True).clip(1e-12)).astype(np.float32)
    return found


def standard_of(features: Floats) -> tuple[Floats, Floats]:
    """Return mean and deviation of each feature; 1 for those that are constant but for the rounding of float32."""
    mean, deviation = features.mean(0), features.std(0)
    return mean, np.where(deviation > np.maximum(1e-6 * np.abs(mean), 1e-12), deviation, 1.0)


def _span(features: Floats) -> tuple[Floats, Floats]:
    """Return the same cases in fewer dimensions `(N, R)`, and the directions `(D, R)` that these are."""
    count, dimensions = features.shape
    if dimensions <= count:
        return features, np.eye(dimensions)
    values, vectors = np.linalg.eigh(features @ features.T)
    real = values > 1e-10 * max(values[-1], 1e-300)  # what rounding leaves of directions that the cases do not span
    lengths = np.sqrt(values[real])
    return vectors[:, real] * lengths, features.T @ (vectors[:, real] / lengths)


def _logistic(
    features: Floats, labels: Floats, classes: int, penalties: Sequence[float]
) -> list[tuple[Floats, Floats]]:
    """Weights and offset for each value of C."""
    from sklearn.linear_model import LogisticRegression

    found = []
    for c in penalties:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of 1000 steps that were not enough: with the weakest penalty
            model = LogisticRegression(C=c, max_iter=1000).fit(features, labels)
        found.append((model.coef_.T, model.intercept_))
    return found


def _ridge(features: Floats, labels: Floats, classes: int, penalties: Sequence[float]) -> list[tuple[Floats, Floats]]:
    """Weights and offset for each penalty, all from one decomposition."""
    mean, middle = features.mean(0), labels.mean()
    centred = features - mean
    values, vectors = np.linalg.eigh(centred.T @ centred)
    turned = vectors.T @ (centred.T @ (labels - middle))
    found = []
    for alpha in penalties:
        weights = vectors @ (turned / (values.clip(0) + alpha * len(labels)))
        found.append((weights[:, None], np.array([middle - mean @ weights])))
    return found


def _asked(decisions: Floats, classes: int) -> Floats:
    """Scores that order cases as probabilities do."""
    if not classes:
        return decisions[:, 0]
    return np.concatenate([-decisions, decisions], 1) if classes == 2 else decisions


def _votes(similarity: Array, labels: Floats, classes: int, counts: Sequence[int]) -> list[Floats]:
    """Votes of the nearest cases for each of some numbers of them."""
    most = min(max(counts), similarity.shape[1])
    nearest = np.argpartition(-similarity, most - 1, axis=1)[:, :most]
    near = np.take_along_axis(similarity, nearest, 1)
    order = np.argsort(-near, axis=1, kind="stable")
    own = labels[np.take_along_axis(nearest, order, 1)]
    values = [own == c for c in range(classes)] if classes else [own]
    means = np.stack([np.cumsum(value, 1) for value in values], -1) / np.arange(1, most + 1)[:, None]
    found = [means[:, min(k, most) - 1] for k in counts]
    return found if classes else [each[:, 0] for each in found]


def _choose(part: Part, choices: Sequence[Any], default: Any, tried: Callable[[Array, Array], Sequence[Floats]]) -> Any:
    """Return the choice that does best on what is held back, the first one of several; else the default."""
    folds = _inner_folds(part)
    if not folds:
        return default
    quality = np.array(
        [[_quality(part.labels[held], each, part.classes) for each in tried(rest, held)] for rest, held in folds]
    )
    defined = ~np.isnan(quality)
    if not defined.any(0).all():
        return default
    means = np.where(defined, quality, 0).sum(0) / defined.sum(0)
    return choices[int(np.argmax(means))]


def _inner_folds(part: Part) -> list[tuple[Array, Array]]:
    """Folds of whole groups in each of which all classes are learnt; none where that cannot be."""
    from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

    if part.classes:
        fewest = min(len(np.unique(part.groups[part.labels == c])) for c in range(part.classes))
    else:
        fewest = len(np.unique(part.groups))
    if fewest < 2:
        return []
    count = min(_FOLDS, fewest)
    kind = StratifiedGroupKFold if part.classes else GroupKFold
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folds = list(kind(count, shuffle=True, random_state=part.seed).split(part.labels, part.labels, part.groups))
    learnt = [len(np.unique(part.labels[rest])) for rest, _ in folds]
    return [fold for fold, own in zip(folds, learnt, strict=True) if not part.classes or own == part.classes]


def _quality(truth: Floats, scores: Floats, classes: int) -> float:
    """Mean AUROC over the classes, or of numbers minus the squared error."""
    if not classes:
        return -float(((truth - scores) ** 2).mean())
    found: float = class_aurocs(truth, scores, classes)(np.ones(len(truth)))
    return found


def class_aurocs(truth: Floats, scores: Floats, classes: int) -> Measure:
    """AUROC of class 1 of two, else the mean over classes that occur, each against all others."""
    wanted = [1] if classes == 2 else range(classes)
    return mean_of([auroc_of(truth == c, scores[:, c]) for c in wanted])
