"""Evaluation of frozen features: linear probes with few labels, retrieval, intervals by patient."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from zoo.errors import OptionError
from zoo.training.metrics import Array, Floats, mean_auroc

_AT_ONCE = 2_000_000
"""Weights of draws in memory at a time."""

PENALTIES = tuple(10.0**k for k in range(-4, 2))
"""Values of C that a linear probe tries, by cross-validation inside its training labels."""


@torch.no_grad()
def extract_features(network: Callable[[Tensor], Tensor], batches: Iterable[Tensor], device: str = "cpu") -> Floats:
    """Features (N, D) of batches of images, in float64; a module is put in eval mode first."""
    if isinstance(network, nn.Module):
        network.eval()
    return torch.cat([network(batch.to(device)).flatten(1).double().cpu() for batch in batches]).numpy()


@contextmanager
def judging(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients inside the block; afterwards each module has its former mode."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def linear_probe(train: Array, labels: Array, test: Array, *, seed: int = 0) -> Floats:
    """Decisions of a logistic regression fitted on frozen features; C by cross-validation inside the labels.

    Features are standardised by the training set. The penalty is rotation invariant, so the fit is done in the span of
    the training samples: the same solution, many times faster when D exceeds N.

    Args:
        train: (N, D).
        labels: (N,), 0 to C - 1, all present.
        test: (M, D).
        seed: Of the folds.

    Returns:
        (M,) for two classes, higher for class 1; (M, C) for more, whose softmax are the probabilities.

    Raises:
        OptionError: Fewer than two labels of a class.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold

    rarest = int(np.bincount(np.asarray(labels, dtype=np.int64), minlength=2).min())
    if rarest < 2:
        raise OptionError(f"a linear probe needs at least 2 labels of each class, but the rarest has {rarest}")
    mean, std = train.mean(0), train.std(0)
    std = np.where(std > 1e-12, std, 1.0)
    train, test = (train - mean) / std, (test - mean) / std
    _, _, basis = np.linalg.svd(train, full_matrices=False)
    train, test = train @ basis.T, test @ basis.T

    def scores(c: float, rows: Array, points: Array) -> Floats:
        model = LogisticRegression(C=c / len(rows), max_iter=1000).fit(train[rows], labels[rows])
        decisions: Floats = model.decision_function(points)
        return decisions

    folds = list(StratifiedKFold(min(5, rarest), shuffle=True, random_state=seed).split(train, labels))
    quality = [
        np.mean([mean_auroc(labels[held], scores(c, rest, train[held])) for rest, held in folds]) for c in PENALTIES
    ]
    return scores(PENALTIES[int(np.argmax(quality))], np.arange(len(train)), test)


def label_subsets(labels: Array, size: int, count: int, seed: int = 0) -> list[Array]:
    """Draw `count` stratified subsets of `size` indices; a `size` of 0, or of all of them, gives the one whole set.

    Raises:
        OptionError: A class has fewer than 2 samples, or `size` cannot hold 2 of each.
    """
    if size <= 0 or size >= len(labels):
        return [np.arange(len(labels))]
    rng = np.random.default_rng([seed, size])
    classes, counts = np.unique(labels, return_counts=True)
    if counts.min() < 2 or size < 2 * len(classes):
        raise OptionError(f"{size} of {len(labels)} labels cannot hold 2 of each class; classes have {counts.tolist()}")
    shares = shares_of(size, counts)
    members = [np.flatnonzero(labels == c) for c in classes]
    return [
        np.concatenate([rng.choice(m, n, replace=False) for m, n in zip(members, shares, strict=True)])
        for _ in range(count)
    ]


def shares_of(size: int, counts: Array) -> Array:
    """Divide `size` in proportion to the counts of the classes (C,): at least 2 of each, at most its count.

    What rounding leaves over goes to, or is taken from, the class that is farthest from its exact share; of several
    such classes, the largest.
    """
    exact = size * counts / counts.sum()
    shares: Array = np.maximum(2, np.round(exact).astype(int))
    while left := size - int(shares.sum()):
        step = 1 if left > 0 else -1
        can = shares < counts if left > 0 else shares > 2
        distance = np.where(can, step * (exact - shares), -np.inf)
        shares[np.lexsort((-counts, -distance))[0]] += step
    return shares


def retrieval(features: Array, groups: Sequence[str]) -> tuple[Floats, Floats, Array]:
    """Retrieve other images of the same group (patient) by cosine similarity of centred features.

    Args:
        features: (N, D).
        groups: N names; images alone in their group are candidates, not queries.

    Returns:
        Per query: whether the nearest image is of its group (Q,), the average precision (Q,), and the queries' indices.
    """
    x = features - features.mean(0)
    x = x / np.linalg.norm(x, axis=1, keepdims=True).clip(1e-12)
    similarity = x @ x.T
    np.fill_diagonal(similarity, -np.inf)
    names = np.asarray(groups)
    same = names[:, None] == names[None, :]
    np.fill_diagonal(same, False)
    queries = np.flatnonzero(same.any(1))
    ranked = np.take_along_axis(same[queries], np.argsort(-similarity[queries], axis=1, kind="stable"), axis=1)
    precision = np.cumsum(ranked, axis=1) / np.arange(1, ranked.shape[1] + 1)
    average = (precision * ranked).sum(1) / ranked.sum(1)
    return ranked[:, 0].astype(float), average, queries


def bootstrap_by_group(
    statistic: Callable[[Floats], float], groups: Sequence[str], *, rounds: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile interval of a statistic when whole groups (patients) are drawn with replacement.

    Args:
        statistic: From sample weights (N,), how often each sample was drawn, to a number. A difference of two methods
            computed from the same weights makes the interval a paired one. NaN rounds are left out.
        groups: N names.
        rounds: Number of draws.
        seed: Of the draws.
    """
    drawn = draw_groups(groups, rounds=rounds, seed=seed)
    return interval_of(np.array([statistic(weights) for block in drawn for weights in block]))


def draw_groups(groups: Sequence[str], *, rounds: int = 2000, seed: int = 0) -> Iterator[Floats]:
    """Draw whole groups (patients) with replacement; yields how often each sample counts, (some rounds, N).

    Args:
        groups: N names.
        rounds: Number of draws.
        seed: Of the draws.
    """
    names, membership = np.unique(np.asarray(groups), return_inverse=True)
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=rounds)
    step = max(1, _AT_ONCE // len(membership))
    for first in range(0, rounds, step):
        yield draws[first : first + step, membership].astype(float)


def interval_of(values: Floats) -> tuple[float, float]:
    """95 % percentile interval of a statistic's values in many draws, (rounds,); those that are NaN are left out."""
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(low), float(high)
