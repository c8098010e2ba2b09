"""Finds images that are there twice among the cases of a probe, by their features."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from zoo.errors import OptionError
from zoo.evaluation.labelled import Labelled
from zoo.evaluation.matching import FeatureSet
from zoo.evaluation.probes import standard_of
from zoo.evaluation.sources import Contender
from zoo.messages import first_names

_ALIKE = 1e-4
"""Largest difference of standardised features by which two images are one: batches round otherwise."""
_TELLING = 8
"""Fewest features by which images are told from each other."""


def check_images(contenders: Sequence[Contender], labelled: Labelled) -> list[str]:
    """Raise `OptionError` where one image is there twice, in two groups, by its features.

    A copy under another name, or of a patient who has two numbers, would be learnt from and tested.

    Returns:
        What a reader must know where no features tell images from each other.
    """
    telling = [each for each in contenders if each.role == "encoder" and each.sets[0].values.shape[1] >= _TELLING]
    for contender in telling:
        if twice := list(_copies(contender.sets[0], labelled)):
            pairs = [
                f"{labelled.ids[a]} ({labelled.groups[a]}) and {labelled.ids[b]} ({labelled.groups[b]})"
                for a, b in twice
            ]
            raise OptionError(
                f"{len(twice)} pairs of cases in different groups have the same features by {contender.name}: "
                f"{first_names(pairs, 5)}. The same image would be learnt from and tested: give both one group by "
                "--group, or drop one of them"
            )
    if telling:
        return []
    return [
        f"Whether an image is there twice, in two groups, was not looked for: features of fewer than {_TELLING} "
        "numbers a case may agree by chance."
    ]


def _copies(features: FeatureSet, labelled: Labelled) -> Iterator[tuple[int, int]]:
    """Pairs of cases in different groups with the same features; found along one line, so in linear time."""
    values = features.values.astype(np.float64)
    mean, deviation = standard_of(values)
    values = (values - mean) / deviation
    line = values @ np.random.default_rng(0).standard_normal(values.shape[1])
    order = np.argsort(line, kind="stable")
    for step in (1, 2, 3):
        for a, b in zip(order[:-step].tolist(), order[step:].tolist(), strict=True):
            if labelled.groups[a] != labelled.groups[b] and np.abs(values[a] - values[b]).max() <= _ALIKE:
                yield min(a, b), max(a, b)
