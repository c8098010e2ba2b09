"""Files as `zoo finetune` saves them, of networks that a test has given a head by hand."""

import json

import torch

import zoo
from zoo.checkpoint import load_report
from zoo.formats import make_header
from zoo.loading import input_of
from zoo.provenance import base_of
from zoo.tasks.outputs import Outputs
from zoo.tasks.saved import write_model

TASKS = {"labels": "classify", "classes": "classify", "numbers": "regress", "voxels": "segment"}
CAID = "caid-resnet50.chestxray14-800"


def save(network, out, name, outputs, classes, **changes):
    """Write a network as a run does; `changes` are keys of the header."""
    report = load_report(network)
    header = make_header(
        report.name.partition(".")[0],
        TASKS[outputs.kind],
        "python -m zoo finetune by hand",
        input=input_of(name),
        options=report.options,
        base=base_of(report),
        classes=classes,
        outputs=outputs.as_header(),
    )
    out.mkdir(parents=True, exist_ok=True)
    return write_model(network.state_dict(), header | changes, out)


def with_head(name, classes, *, seed=0, scale=1.0, **options):
    """A network of the zoo whose head has drawn weights."""
    network = zoo.load_model(name, num_classes=len(classes), **options)
    head, draws = network.get_classifier(), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        head.weight.copy_(scale * torch.randn(head.weight.shape, generator=draws))
        head.bias.copy_(torch.randn(head.bias.shape, generator=draws))
    return network


def labels(*thresholds):
    return Outputs("labels", thresholds)


def rewritten(file, target, **changes):
    """The same tensors under another header; None removes a key."""
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    with safe_open(file, framework="pt") as opened:
        header = opened.metadata()
    header = {key: value for key, value in (header | changes).items() if value is not None}
    assert all(isinstance(value, str) for value in header.values()), json.dumps(changes)
    save_file(load_file(file), target, metadata=header)
    return target
