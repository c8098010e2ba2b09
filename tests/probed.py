"""Features with a planted signal, noise, and small probes of them."""

import numpy as np
import pandas as pd
import pytest

from zoo.evaluation import probes
from zoo.evaluation.probing import probe

QUICK = {"rounds": 200, "repeats": 1, "sizes": (10,), "draws": 10}
"""Enough for what the tests ask."""


def run(features, table, **options):
    """A probe of few penalties, sizes and resamples."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probes, "PENALTIES", (1e-3, 1e-1))
        return probe(features, table, **{"column": "label", "group": "patient", **QUICK, **options})


def table_of(patients=60, kind="binary", seed=0):
    """Two images of each patient, with a label that is the patient's."""
    rng = np.random.default_rng(seed)
    labels = {
        "binary": np.arange(patients) % 2,
        "classes": np.array(["a", "b", "c"])[np.arange(patients) % 3],
        "numbers": rng.normal(50, 10, patients).round(2),
    }[kind]
    of = np.repeat(np.arange(patients), 2)
    return pd.DataFrame(
        {"id": [f"case{i:03}" for i in range(2 * patients)], "patient": [f"p{i}" for i in of], "label": labels[of]}
    )


def noise(table, dimensions=12, seed=1):
    """Features that say nothing."""
    return np.random.default_rng(seed).standard_normal((len(table), dimensions)).astype(np.float32)


def planted(table, strength=1.2, seed=2):
    """Noise, and the label in three of its directions."""
    values = noise(table, seed=seed)
    label = pd.factorize(table["label"], sort=True)[0] if table["label"].dtype.kind not in "f" else table["label"]
    label = (np.asarray(label, float) - np.mean(label)) / np.std(label)
    values[:, :3] += (strength * label[:, None] * np.array([1.0, 0.5, 1.0])).astype(np.float32)
    return values


def probed(kind="binary", **options):
    """The report of a planted signal and of noise."""
    table = table_of(kind=kind)
    features = {"planted": planted(table), "noise": noise(table)}
    return run(features, table, **options)
