"""Maps of features: by UMAP where it is installed, by PCA elsewhere."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from jsonschema import Draft202012Validator
from probed import planted, run, table_of

from zoo.evaluation import looks
from zoo.evaluation.page import html_of

SCHEMA = json.loads((Path(__file__).parent / "report.schema.json").read_text())


@pytest.mark.slow
def test_without_umap_the_map_is_by_pca(monkeypatch):
    """The axes say their share of the variance."""
    monkeypatch.setattr(looks, "has_umap", lambda: False)
    report = run(planted(table_of()), table_of(), sizes=())
    assert report.encoders[0].map.method == "PCA"
    assert 0 < report.encoders[0].map.explained[1] <= report.encoders[0].map.explained[0]
    assert "at its first two principal components" in html_of(report, {})


@pytest.mark.slow
@pytest.mark.parametrize("error", [ImportError("numba needs NumPy 2.3 or less"), AssertionError("no cache")])
def test_a_broken_umap_does_not_end_a_probe(monkeypatch, caplog, error):
    """All fits are done by then; Numba raises errors of its own as it is imported."""

    class Broken:
        def find_spec(self, name, *_):
            if name == "umap":
                raise error

    monkeypatch.setattr(looks, "has_umap", lambda: True)
    monkeypatch.delitem(sys.modules, "umap", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    report = run(planted(table_of()), table_of(), sizes=())
    assert report.encoders[0].map.method == "PCA"
    assert f"UMAP fails here, so the map is by PCA: {type(error).__name__}: {error}" in caplog.messages


# UMAP itself is run: a stand-in would not show that its map is the same again. It is in no extra, as Numba, which it
# needs, takes new releases of Python and NumPy late.
@pytest.mark.skipif(not looks.has_umap(), reason="`pip install umap-learn` brings what is tested")
def test_with_umap_the_map_is_by_it(monkeypatch):
    """The same at every run; the page says the method and the seed, and no share of a variance."""
    table = table_of()
    report, again = (run(planted(table, 4), table, sizes=()) for _ in range(2))
    found = report.encoders[0].map
    assert (found.method, found.explained) == ("UMAP", None)
    assert found == again.encoders[0].map
    assert "umap-learn" in report.repeat.versions
    page = html_of(report, {})
    assert "where UMAP with seed 0 lays it" in page
    assert "first axis of UMAP" in page
    assert not re.search("principal component|% of variance", page)
    assert not list(Draft202012Validator(SCHEMA).iter_errors(json.loads(report.to_json())))
    points, label = np.stack([found.x, found.y], 1), np.array([report.shown[case].label for case in found.cases])
    apart = np.linalg.norm(points[label == "0"].mean(0) - points[label == "1"].mean(0))
    assert apart > points[label == "0"].std(0).max(), "a strong signal lies apart"


def test_few_cases_are_mapped_by_pca():
    """Neighbourhoods of UMAP would be the whole cohort."""
    table = table_of(12)
    assert run(planted(table), table, sizes=()).encoders[0].map.method == "PCA"
