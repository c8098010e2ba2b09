"""`zoo list`: what stands in its lines, and which weights its filters let through."""

import json

import pytest

from zoo.entry import MODALITIES, TASKS
from zoo.manifest import records
from zoo.registry import entries, get_entry, list_models


def rows(zoo, *options):
    return json.loads(zoo("list", *options, "--json")[1])


def test_the_list_fits_a_terminal_of_100_columns(zoo):
    """With every model and tag that ships; a line more for their names."""
    code, out, _ = zoo("list")
    assert code == 0
    assert max(map(len, out.splitlines())) <= 100
    assert len(out.splitlines()) == 1 + sum(len(records(name)) for name in list_models())


def test_what_the_zoo_trained_is_not_shown_as_the_authors(zoo):
    """The mark stands in the line of each of its weights, and of no other."""
    marked = {tuple(line.split()[:2]) for line in zoo("list")[1].splitlines() if "(zoo's)" in line}
    own = {(n, r.tag) for n in list_models() for r in records(n) if r.trained_by == "zoo"}
    assert {(name, tag.rstrip("*")) for name, tag in marked} == own


@pytest.mark.parametrize("modality", MODALITIES)
def test_models_are_picked_by_modality(zoo, modality):
    """As the entries say, all of them and no other."""
    expected = {name for name, entry in entries().items() if modality in entry.modalities}
    assert {row["name"] for row in rows(zoo, "--modality", modality)} == expected


@pytest.mark.parametrize("task", TASKS)
def test_models_are_picked_by_task(zoo, task):
    """Encoders return features; a network with a task head segments; one that has none restores."""
    found = {row["name"] for row in rows(zoo, "--task", task)}
    assert found == {name for name in entries() if get_entry(name).task == task}
    assert {"encoder": "caid-resnet50", "segmentation": "glcl-unet", "restoration": "monai-ssl-vitautoenc"}[
        task
    ] in found


def test_what_can_be_had_is_hosted_or_here(zoo, monkeypatch):
    """Without connections what is here alone; never what its publishers withdrew or never published."""
    online = {(row["name"], row["tag"]) for row in rows(zoo, "--available")}
    assert online == {
        (name, record.tag) for name in list_models() for record in records(name) if record.state == "hosted"
    }
    monkeypatch.setenv("ZOO_OFFLINE", "1")
    offline = rows(zoo, "--available")
    assert {row["trained_by"] for row in offline} == {"zoo"}
    assert {(row["name"], row["tag"]) for row in offline} < online


def test_commercial_use_needs_a_yes_of_every_licence(zoo):
    """Code, weights and data; unknown is not yes."""
    found = {(row["name"], row["tag"]) for row in rows(zoo, "--commercial")}
    for name in list_models():
        for record in records(name):
            layers = record.licences
            verdict = [layers[layer]["commercial"] for layer in ("code", "weights", "data")]
            assert ((name, record.tag) in found) == (verdict == ["yes"] * 3)
    assert ("glcl-unet", "phantom") in found


def test_filters_are_joined(zoo):
    """What passes one and not the other is not listed; none left is said, not a wrong use."""
    both = rows(zoo, "--modality", "mri", "--task", "segmentation", "--available")
    assert {row["name"] for row in both} >= {"glcl-unet"}
    assert all("mri" in row["modalities"] and row["task"] == "segmentation" and row["available"] for row in both)
    code, out, _ = zoo("list", "caid*", "--modality", "ct")
    assert (code, out) == (0, "no weights of these models pass all filters\n")
    assert rows(zoo, "caid*", "--modality", "ct") == []


@pytest.mark.parametrize("option", [("--modality", "CT"), ("--task", "classification")])
def test_a_word_that_no_model_is_described_by(zoo, option):
    """It is wrong use, and the words are named."""
    code, _, err = zoo("list", *option)
    assert code == 2
    assert "expected" in err
