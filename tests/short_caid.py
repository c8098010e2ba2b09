"""CAiD's ResNet-50 cut after the first block of its second stage, for tests of what is done with a network.

It loads from the file that ships and has a fiftieth of the parameters: a run saves 5 MB where the whole one has 280.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
from caid_files import PARITY, filled
from torch import Tensor, nn

from zoo.registry import entries
from zoo.tensor_names import find_prefix, strip_prefix

NAME = "caid-resnet50"
_STAGES = (("conv1.", "bn1."), ("layer1.",), ("layer2.",))
_WIDTH = 512
_BEYOND = r"(layer[12]\.[1-9]|layer[34])\..*"


@contextmanager
def short_caid() -> Iterator[None]:
    """Have `caid-resnet50` stand for the short network, in this process and those that it forks."""
    whole = entries()[NAME]

    def build(config):
        network = whole.build(config)
        network.layer1, network.layer2 = network.layer1[:1], network.layer2[:1]
        network.layer3 = network.layer4 = nn.Identity()
        network.feature_info = network.feature_info[:3]
        network.num_features = network.head_hidden_size = _WIDTH
        if config["num_classes"]:
            network.fc = nn.Linear(_WIDTH, config["num_classes"])
        return network

    def convert(state):
        prefix = find_prefix(state, ("conv1.weight", "layer2.0.conv3.weight"))
        if prefix is None or f"{prefix}layer3.0.conv1.weight" in state:
            return whole.convert(state)
        kept = strip_prefix(state, prefix)
        return kept, {"num_classes": len(kept["fc.bias"])} if "fc.bias" in kept else {}

    short = replace(
        whole,
        build=build,
        convert=convert,
        num_features=_WIDTH,
        required=tuple(prefix for stage in _STAGES for prefix in stage),
        stages=_STAGES,
        unused={**whole.unused, _BEYOND: "left out by the tests"},
    )
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(entries(), NAME, short)
        yield


def short_state() -> dict[str, Tensor]:
    """What a file of the authors' holds of the short network, under their names."""
    shapes = json.loads((PARITY / "caid_keys.json").read_text("utf-8"))
    names = (name for name in shapes if name.startswith("encoder."))
    return filled({n: shapes[n] for n in names if not re.fullmatch(_BEYOND, n.removeprefix("encoder."))})
