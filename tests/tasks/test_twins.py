"""The training from random weights beside another one: it must be the same network."""

import pytest
from torch import nn

import zoo
from zoo.checkpoint import export_safetensors, load_report
from zoo.formats import make_header
from zoo.registry import get_entry
from zoo.tasks import arms
from zoo.tasks.args import FinetuneArgs
from zoo.tasks.arms import Arm, arguments_of, train_all, twin_options
from zoo.training.finetune import load_network

MODEL = "monai-ssl-swinunetr"


@pytest.fixture
def file(tmp_path):
    """A user's own Swin UNETR: narrow, which shapes tell, and with another merging, which the header alone tells."""
    network = zoo.load_model(MODEL, pretrained=False, num_classes=2, feature_size=12, merging="complete")
    header = make_header(
        MODEL,
        "segment",
        f"python -m zoo finetune {MODEL}",
        input=get_entry(MODEL).preprocessing,
        options={"merging": "complete"},
        base={},
        classes=("background", "liver"),
    )
    return export_safetensors(network.state_dict(), tmp_path / "own.safetensors", metadata=header)


def shapes(network: nn.Module):
    return {name: tensor.shape for name, tensor in network.state_dict().items()}


@pytest.mark.slow
def test_the_twin_of_a_file_has_its_widths_and_settled_options(file, tmp_path):
    """With the entry's own widths and merging, the pair would compare two architectures."""
    given = {"model": MODEL, "task": "segment", "data": "scans", "masks": "labels", "out": str(tmp_path)}
    args = FinetuneArgs(checkpoint=str(file), pair=True, **given)
    own = load_network(args, 3)
    config = load_report(own).config
    assert (config["merging"], config["feature_size"], config["num_classes"]) == ("complete", 12, 3)
    twin_args = arguments_of(args, Arm(tmp_path / "random", {}, is_twin=True))
    twin = load_network(twin_args, 3, **twin_options(args, config))
    assert load_report(twin).is_random
    assert load_report(twin).options == load_report(own).options == {"merging": "complete"}
    assert shapes(twin) == shapes(own)
    assert shapes(load_network(twin_args, 3)) != shapes(own)


def test_each_twin_is_told_the_options_of_the_network_before_it(monkeypatch):
    """Of folds, too; a tag has its options by its name, so that the twin's own command has nothing to add."""
    told = []

    def train(args, task, arm, processes, options):
        told.append((arm.is_twin, options))
        return arms.Finished({}, {}, None, {"merging": "complete", "num_classes": 2})

    monkeypatch.setattr(arms, "train", train)
    pairs = [Arm(None, {}, is_twin) for is_twin in (False, True, False, True)]
    given = {"model": MODEL, "task": "segment", "data": "scans", "masks": "labels", "pair": True}
    train_all(FinetuneArgs(checkpoint="own.safetensors", out="x", **given), None, pairs, None)
    assert told == [(False, {}), (True, {"merging": "complete"})] * 2
    told.clear()
    train_all(FinetuneArgs(out="x", **given), None, pairs[:2], None)
    assert told == [(False, {}), (True, {})]
