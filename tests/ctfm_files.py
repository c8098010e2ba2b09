"""CT-FM's files in every form they are found in, filled so that the authors' outputs are known."""

import json
from contextlib import contextmanager
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from caid_files import PARITY, behind, filled
from parity.fill import image

from zoo.entries.ct_fm.model import CTFMEncoder, CTFMSegmenter
from zoo.registry import entries

ENCODER, SEGMENTER = "ct-fm-segresenc", "ct-fm-segresnet"
FILTERS, FEATURES = 4, 64
"""Channels of the first and of the last level of `narrow_ct_fm`."""
_NARROWER, _WIDTHS = 8, (32, 64, 128, 256, 512)
PROJECTION = {
    f"projection_head.layers.{i}.{leaf}": (n,) for i, n in ((0, 256), (2, 128)) for leaf in ("weight", "bias")
}


def shapes_of(kind=""):
    """Names and shapes of a published file: the encoder, or the segmenter "wholebody" or "segresnet"."""
    return json.loads((PARITY / f"ctfm_{kind}{'_' if kind else ''}keys.json").read_text("utf-8"))


def whole(kind=""):
    """Tensors of that file, a third of a gigabyte."""
    return filled(shapes_of(kind))


@cache
def filled_as(kind=""):
    """Tensors of that file of the network that `narrow_ct_fm` makes."""
    shapes = shapes_of(kind).items()
    return filled({name: [side // _NARROWER if side in _WIDTHS else side for side in shape] for name, shape in shapes})


@contextmanager
def narrow_ct_fm():
    """Have CT-FM's names stand for networks with an eighth of the channels, of the same parts."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("zoo.entries.ct_fm.model.FILTERS", FILTERS)
        patched.setattr(CTFMEncoder, "num_features", FEATURES)
        patched.setattr(CTFMSegmenter, "num_features", FILTERS)
        patched.setattr("zoo.entries.ct_fm.convert._WIDTH", FILTERS)
        patched.setitem(entries(), ENCODER, replace(entries()[ENCODER], num_features=FEATURES))
        yield


def lightning(state):
    """A checkpoint of the authors' pre-training, beside what Lightning keeps."""
    model = behind("model.backbone.", state) | behind("model.", filled(PROJECTION))
    return {"epoch": 449, "global_step": 225000, "state_dict": model, "pytorch-lightning_version": "2.4.0"}


ENCODER_FORMS = {
    "published": lambda: filled_as(),
    "pre-training": lambda: lightning(filled_as())["state_dict"],
    "pretrained_segresnet.torch": lambda: behind("encoder.", filled_as()),
    "compiled in DDP": lambda: behind("module._orig_mod.", filled_as()),
    "beside another attribute": lambda: behind("encoder.", filled_as()) | {"head.weight": torch.zeros(2, FEATURES)},
}
SEGMENTER_FORMS = {
    "published": lambda: filled_as("wholebody"),
    "training": lambda: behind("model.trunk.", filled_as("wholebody")) | {"criterion.weight": torch.ones(1)},
    "DDP": lambda: behind("module.", filled_as("wholebody")),
}


def reference():
    """Outputs of lighter-zoo 0.1.3 on MONAI 1.4.0."""
    with np.load(PARITY / "ctfm_0.npz") as arrays:
        return dict(arrays)


def reference_input():
    """The volumes that `reference` was computed from, `(2, 1, 32, 48, 64)`."""
    return torch.from_numpy(np.clip(0.5 + 0.25 * image("x", (2, 1, 32, 48, 64), 0), 0, 1))
