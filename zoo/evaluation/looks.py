"""What a reader looks at beside the numbers: a map of the cases, and the nearest neighbours of a few of them."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from importlib import metadata

import numpy as np

from zoo.evaluation.matching import FeatureSet
from zoo.evaluation.probes import MOST_KEPT, directions, standard_of
from zoo.evaluation.report import Map, Neighbour, Query
from zoo.evaluation.splits import Fold
from zoo.messages import reason_of
from zoo.training.metrics import Array, Floats

log = logging.getLogger("zoo")

QUERIES, NEIGHBOURS = 6, 5
MOST_MAPPED = 2000
"""Cases of a map; of more, as many are drawn."""
NEIGHBOURS_BY_UMAP = 15
FEWEST_BY_UMAP = 2 * NEIGHBOURS_BY_UMAP
"""Cases below which its neighbourhoods would be most of the cohort."""


def pick_mapped(count: int, seed: int) -> Array:
    """Return which of some cases a map shows."""
    if count <= MOST_MAPPED:
        return np.arange(count)
    return np.sort(np.random.default_rng([seed, count]).choice(count, MOST_MAPPED, replace=False))


def pick_queries(fold: Fold, strata: Array, seed: int) -> list[int]:
    """Return six tested cases, one of each stratum after the other."""
    rng = np.random.default_rng([seed, QUERIES])
    members = [rng.permutation(fold.test[strata[fold.test] == s]).tolist() for s in np.unique(strata[fold.test])]
    found: list[int] = []
    while len(found) < QUERIES and any(members):
        for own in members:
            if own and len(found) < QUERIES:
                found.append(own.pop())
    return found


def map_of(features: FeatureSet, mapped: Sequence[int], position: dict[int, int], seed: int) -> Map:
    """Return some cases in two dimensions, of the standardised features of all.

    By UMAP where umap-learn is installed and there are cases enough for its neighbourhoods, else by PCA; so too where
    UMAP fails, which is warned of.
    """
    values = features.values.astype(np.float64)
    mean, deviation = standard_of(values)
    values = (values - mean) / deviation
    by_umap, explained = len(mapped) >= FEWEST_BY_UMAP and has_umap(), None
    if by_umap:
        try:
            points = _by_umap(values, list(mapped), seed)
        except Exception as error:  # of any kind, as Numba's own: a picture is no reason to lose all fits
            log.warning("UMAP fails here, so the map is by PCA: %s: %s", type(error).__name__, reason_of(error))
            by_umap = False
    if not by_umap:
        points, explained = _by_pca(values, list(mapped), seed)
    return Map(
        tuple(position[i] for i in mapped),
        tuple(round(x, 5) for x in points[:, 0].tolist()),
        tuple(round(y, 5) for y in points[:, 1].tolist()),
        explained,
        "UMAP" if by_umap else "PCA",
    )


def has_umap() -> bool:
    """Whether umap-learn is installed; another package has the name `umap`."""
    try:
        metadata.version("umap-learn")
    except metadata.PackageNotFoundError:
        return False
    return True


def _by_pca(values: Floats, mapped: Sequence[int], seed: int) -> tuple[Floats, tuple[float, float]]:
    """The first two principal components of all cases, and their shares of the variance."""
    from sklearn.decomposition import PCA

    count = min(2, *values.shape)
    pca = PCA(count, svd_solver="randomized", random_state=seed).fit(values)
    points, shares = np.zeros((len(mapped), 2)), np.zeros(2)
    points[:, :count] = pca.transform(values[mapped])
    shares[:count] = np.nan_to_num(pca.explained_variance_ratio_)
    return points, (float(shares[0]), float(shares[1]))


def _by_umap(values: Floats, mapped: Sequence[int], seed: int) -> Floats:
    """UMAP of the mapped cases alone, with a fixed seed."""
    import umap

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that one thread is used, which the seed asks for
        points = umap.UMAP(n_neighbors=NEIGHBOURS_BY_UMAP, random_state=seed, n_jobs=1).fit_transform(values[mapped])
    return np.asarray(points, np.float64)


def nearest_of(features: FeatureSet, fold: Fold, queries: Sequence[int]) -> list[tuple[int, list[tuple[int, float]]]]:
    """Return the training cases that are nearest to each of some tested ones, with their cosines."""
    train = fold.train
    if len(train) > MOST_KEPT:
        train = np.sort(np.random.default_rng(MOST_KEPT).choice(train, MOST_KEPT, replace=False))
    mean = features.values[train].mean(0, dtype=np.float64)
    similarity = directions(features.values[list(queries)], mean) @ directions(features.values[train], mean).T
    order = np.argsort(-similarity, axis=1, kind="stable")[:, :NEIGHBOURS]
    return [
        (query, [(int(train[j]), float(similarity[row, j].clip(-1, 1))) for j in order[row]])
        for row, query in enumerate(queries)
    ]


def queries_of(found: Sequence[tuple[int, list[tuple[int, float]]]], position: dict[int, int]) -> tuple[Query, ...]:
    """Return rows of neighbours as the report has them."""
    return tuple(
        Query(position[query], tuple(Neighbour(position[case], round(cosine, 6)) for case, cosine in near))
        for query, near in found
    )
