"""`zoo list`: what stands in its lines, and which weights its filters let through."""

import json

import pytest

from zoo.checkpoint.building import build_network
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
    """Encoders return features; a network with a task head segments; one that restores may have one beside."""
    found = {row["name"] for row in rows(zoo, "--task", task)}
    assert found == {name for name in entries() if task in get_entry(name).tasks}
    assert {"encoder": "caid-resnet50", "segmentation": "glcl-unet", "restoration": "monai-ssl-vitautoenc"}[
        task
    ] in found
    assert {row["task"] for row in rows(zoo, "*-unet*", "--task", "restoration")} == {"restoration"}


def test_what_restores_as_published_is_listed_so():
    """Models Genesis' U-Net among those that segment alone: `load_model` without `num_classes` gives the image."""
    restoring = {"caid-resnet50-unet", "genesis-unet3d", "monai-ssl-vitautoenc"}
    assert {name for name in entries() if get_entry(name).task == "restoration"} == restoring
    for name in restoring:
        network = build_network(get_entry(name), {**get_entry(name).config})
        assert get_entry(name).config["num_classes"] is None
        assert any(len(p) == 1 for n, p in network.named_parameters() if n.endswith("bias"))  # of one channel


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
    """What passes one and not the other is not listed."""
    both = rows(zoo, "--modality", "mri", "--task", "segmentation", "--available")
    assert {row["name"] for row in both} >= {"glcl-unet"}
    assert all("mri" in row["modalities"] and row["task"] == "segmentation" and row["available"] for row in both)
    assert rows(zoo, "caid*", "--modality", "ct") == []


def test_an_empty_list_says_which_filter_left_nothing(zoo, monkeypatch):
    """Not a wrong use; each filter with how many it leaves, up to the one that leaves none."""
    code, out, _ = zoo("list", "caid*", "--modality", "ct", "--available")
    assert (code, out) == (0, "no weights pass all filters: 4 match by name, none of these for ct\n")
    monkeypatch.setenv("ZOO_OFFLINE", "1")
    ct, encoders = (len(rows(zoo, "--modality", "ct", *more)) for more in ((), ("--task", "encoder")))
    code, out, _ = zoo("list", "--modality", "ct", "--task", "encoder", "--available", "--commercial")
    everything = len(rows(zoo))
    assert (code, out) == (
        0,
        f"no weights pass all filters: {everything} match by name, {ct} of these for ct, {encoders} of these for "
        "encoder, none of these to be had now, without connections\n",
    )


def test_a_pattern_matches_names_and_full_names(zoo):
    """`zoo list` shows weights, and their tags were out of reach; `list_models` stays that of names."""
    assert {(row["name"], row["tag"]) for row in rows(zoo, "*.ssl")} == {
        (f"voco-swin{kind}-{size}", "ssl") for kind in ("vit", "unetr") for size in "blh"
    }
    assert [row["tag"] for row in rows(zoo, "glcl-unet.p*")] == ["prostate", "phantom"]
    assert {row["name"] for row in rows(zoo, "*-unet")} == set(list_models("*-unet"))
    assert list_models("*.ssl") == []
    code, _, err = zoo("list", "*.mine")
    assert code == 2
    assert "no MODEL and no MODEL.TAG matches '*.mine'; a pattern stands for the whole name, as 'caid*' does" in err


def test_commercial_use_and_fresh_parts_stand_in_the_list(zoo):
    """As the licences' strictest verdict, not only as yes or nothing; maps of a head that no file has."""
    lines = [line.split() for line in zoo("list")[1].splitlines()[1:]]
    listed = {(row["name"], row["tag"]): row for row in rows(zoo)}
    for line in lines:
        row = listed[line[0], line[1].rstrip("*")]
        assert row["commercial_use"] in line
        assert row["commercial"] == (row["commercial_use"] == "yes")
        assert ("fresh" in line) == bool(row["fresh"])
    verdicts = {name: listed[name, tag]["commercial_use"] for name, tag in listed}
    assert (verdicts["glcl-unet"], verdicts["genesis-encoder"], verdicts["rad-dino-vitb14"]) == ("yes", "no", "unknown")
    assert listed["voco-swinunetr-h", "ssl"]["fresh"]
    assert not listed["voco-swinvit-h", "ssl"]["fresh"]


def test_info_says_that_a_size_is_not_published(zoo):
    """A dash, as for whatever else is empty."""
    text = zoo("info", "voco-swinunetr-b")[1]
    assert "bytes         size not published" in text
    assert "fresh         the decoder and the last convolution" in text
    assert json.loads(zoo("info", "voco-swinunetr-b", "--json")[1])["bytes"] is None
    assert "not published" not in next(
        line for line in zoo("info", "rad-dino-vitb14")[1].splitlines() if "bytes" in line
    )


@pytest.mark.parametrize("option", [("--modality", "CT"), ("--task", "classification")])
def test_a_word_that_no_model_is_described_by(zoo, option):
    """It is wrong use, and the words are named."""
    code, _, err = zoo("list", *option)
    assert code == 2
    assert "expected" in err
