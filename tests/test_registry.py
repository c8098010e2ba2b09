"""Names, what is known of them, and the entry points that follow from them."""

import ast
import importlib.util
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

import zoo
from zoo.checkpoint.building import build_network
from zoo.entry import ANATOMIES, MODALITIES, Preprocessing
from zoo.errors import OptionError, UnknownModelError
from zoo.registry import FAMILIES, entries, get_entry

REPOSITORY = Path(zoo.__file__).parents[1]
CHECKOUT = Path(__file__).parents[1]  # hubconf.py is not part of the installed package


def test_models_are_listed_by_pattern():
    """All names, without tags; a shell pattern picks some."""
    names = zoo.list_models()
    assert {"caid-resnet50", "caid-resnet50-unet"} <= set(names)
    assert zoo.list_models("*-unet") == [name for name in names if name.endswith("-unet")]
    assert zoo.list_models("nothing*") == []


def test_every_folder_of_entries_is_a_family():
    """The tuple written by hand names what is there, and nothing else."""
    folders = {path.parent.name for path in (REPOSITORY / "zoo" / "entries").glob("*/__init__.py")}
    assert folders == set(FAMILIES)


@pytest.mark.parametrize("wrong", ["caid-resnet5", "caid_resnet50", "CAiD-ResNet50", "caid-resnet50-unt.tag"])
def test_a_wrong_name_gets_the_near_ones(wrong):
    """A slip of the pen, an underscore, capitals, with or without a tag."""
    with pytest.raises(UnknownModelError, match="did you mean 'caid-resnet50") as caught:
        zoo.load_model(wrong)
    assert repr(wrong) in str(caught.value)
    assert isinstance(caught.value, KeyError)


def test_a_name_unlike_any_gets_the_list():
    """Nothing is near, so all are named."""
    with pytest.raises(UnknownModelError, match=r"the names are .*caid-resnet50-unet"):
        zoo.model_info("zzz")


@pytest.mark.parametrize("name", entries())
def test_what_an_entry_says_of_its_network_is_true(name):
    """Required groups, head, stem and stages are parts of it; the defaults build it; its card exists."""
    entry = get_entry(name)
    network = build_network(entry, {**entry.config, "num_classes": 3} if entry.head else dict(entry.config))
    projected = build_network(entry, {**entry.config, "projection": True}) if "projection" in entry.config else network
    names = network.state_dict().keys() | projected.state_dict().keys()
    assert {"num_classes", "in_channels"} <= set(entry.config)
    for prefix in (*entry.required, *entry.head, *(p for stage in entry.stages for p in stage)):
        assert any(n.startswith(prefix) for n in names), prefix
    assert network.state_dict()[entry.stem].shape[entry.stem_axis] == entry.config["in_channels"]
    assert len(entry.preprocessing.channels) == entry.config["in_channels"]
    assert len(build_network(entry, dict(entry.config)).state_dict()) > 0
    assert entry.family in FAMILIES


@pytest.mark.parametrize("name", entries())
def test_the_figures_of_an_entry_are_those_of_its_network(name):
    """Parameters, width, dimension, and words that `zoo list` knows."""
    entry = get_entry(name)
    network = build_network(entry, dict(entry.config))
    assert sum(parameter.numel() for parameter in network.parameters()) == entry.parameters
    assert (network.num_features if entry.is_encoder else None) == entry.num_features
    assert network.state_dict()[entry.stem].ndim - entry.stem_axis - 1 == entry.dimension
    assert entry.modalities
    assert set(entry.modalities) <= set(MODALITIES)
    assert entry.anatomy in ANATOMIES


def test_what_is_known_of_a_model():
    """Plain names and tags; what stands in the manifest and in the entry."""
    info = zoo.model_info("caid-resnet50.chestxray14")
    assert info.name == "caid-resnet50.chestxray14"
    assert "chestxray14" in info.tags
    assert (info.state, info.trained_by, info.default) == ("not-published", "authors", False)
    assert info.sources == ()
    assert info.licences["weights"]["commercial"] == "no"
    assert "MIDL 2022" in info.citation
    assert info.input == Preprocessing(("grey", "grey", "grey"), (224, 224), 256, modality="CR")
    assert info.options["in_channels"] == 3
    assert asdict(info)["input"]["size"] == (224, 224)
    with pytest.raises(UnknownModelError, match="no weights with the tag 'x'"):
        zoo.model_info("caid-resnet50.x")


def test_a_record_may_change_the_input():
    """Single fields, lists as tuples; unknown ones are an error."""
    plain = Preprocessing(("grey",), (224, 224), 256)
    assert plain.override({"size": [96, 96], "resize": 128}) == Preprocessing(("grey",), (96, 96), 128)
    with pytest.raises(OptionError, match=r"\['sise'\].*size"):
        plain.override({"sise": [1, 1]})


def test_the_hub_has_one_entry_point_per_model(unet_safetensors):
    """Generated from the names, loading what load_model loads, with the summary as help; and nothing beside them."""
    repository = str(CHECKOUT)
    expected = {name.replace("-", "_") for name in zoo.list_models()}
    assert listed() == expected
    model = torch.hub.load(repository, "caid_resnet50", source="local", checkpoint=unet_safetensors, num_classes=3)
    assert model.fc.out_features == 3
    assert "features (N, 2048)" in hub().caid_resnet50.__doc__
    with pytest.raises(UnknownModelError, match="no weights with the tag 'nothing'"):
        torch.hub.load(repository, "caid_resnet50", source="local", tag="nothing")


def hub():
    spec = importlib.util.spec_from_file_location("hubconf", CHECKOUT / "hubconf.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def listed():
    """What torch.hub.list would list: the callables without an underscore in front."""
    return {name for name, value in vars(hub()).items() if callable(value) and not name.startswith("_")}


def test_hub_dependencies_can_be_imported():
    """torch.hub looks for modules under these names."""
    assert all(importlib.util.find_spec(name) for name in hub().dependencies)


def test_public_names_are_complete():
    """__all__, dir and the attribute agree, and a wrong name is an AttributeError."""
    tree = ast.parse((REPOSITORY / "zoo" / "__init__.py").read_text("utf-8"))
    shown = {alias.asname for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert set(zoo.__all__) == {name for name in shown if name and name != "annotations"}
    assert all(getattr(zoo, name) for name in zoo.__all__)
    assert sorted(zoo.__all__) == dir(zoo)
    with pytest.raises(AttributeError, match="no attribute 'load_modell'"):
        zoo.load_modell  # noqa: B018


@pytest.mark.parametrize("name", ["runs/x/best.pt", "/abs/model.safetensors", "best.pth", "~/w", "here"])
def test_a_file_in_the_place_of_a_name_gets_checkpoint(name, tmp_path, monkeypatch):
    """And the command that says which model it is of."""
    (tmp_path / "here").touch()
    monkeypatch.chdir(tmp_path)
    for look in (zoo.load_model, zoo.model_info, zoo.load_transform):
        with pytest.raises(UnknownModelError, match=rf"checkpoint='{name}'\) .*`zoo inspect {name}`"):
            look(name)


@pytest.mark.parametrize("name", [None, 5, b"caid-resnet50", Path("runs/best.pt"), ["caid-resnet50"]])
def test_a_name_that_is_no_text_is_refused(name):
    """With what came, as wrong use; a path gets `checkpoint=`."""
    for look in (zoo.load_model, zoo.model_info, zoo.load_transform, zoo.download_weights):
        with pytest.raises(OptionError, match=r"is not the name of a model; a string is expected") as caught:
            look(name)
    assert ("checkpoint='runs/best.pt'" in str(caught.value)) == isinstance(name, Path)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"device": "meta"}, "device='meta' holds no values"),
        ({"checkpoint": "~nobody-here/w"}, "'~nobody-here/w' begins with the home of a user unknown"),
        ({"checkpoint": ""}, "'' is not a path: it is empty"),
        ({"checkpoint": "a\0b"}, "null character"),
        ({"checkpoint": b"w.pth"}, "expected the path of a file"),
        ({"cache_dir": "~nobody-here/c"}, "'~nobody-here/c' begins with"),
        ({"cache_dir": 5}, "5 is not a path"),
    ],
)
def test_places_that_are_none_are_wrong_use(given, said):
    """Not a RuntimeError, TypeError or ValueError of a library, nor a network on the meta device."""
    with pytest.raises(OptionError, match=said):
        zoo.load_model("caid-resnet50", **given)


@pytest.mark.parametrize("setting", ["ZOO_HOME", "ZOO_MANIFEST"])
def test_settings_that_name_no_place_are_wrong_use(setting, monkeypatch):
    """As arguments are."""
    monkeypatch.setenv(setting, "~nobody-here/place")
    with pytest.raises(OptionError, match="'~nobody-here/place' begins with"):
        zoo.model_info("caid-resnet50")
