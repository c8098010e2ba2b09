"""A batch without images gives a result without rows, of every network of the registry."""

import pytest
import torch
from small_networks import ALIKE, SMALL, build_small, inputs_of

from zoo.loading import load_model
from zoo.registry import get_entry, list_models

NAMES = [name for name in list_models() if not name.endswith(("-l", "-h"))]  # wider ones of the same class


def build(name):
    """A small one, or as narrow as its options allow."""
    if name in ALIKE:
        return load_model(name, pretrained=False, feature_size=12)
    return build_small(name)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_no_image_gives_no_row(name):
    """Of the width that an image gives, pooled and as a map: a job may have fewer images than processes."""
    model, entry, given = build(name), get_entry(name), inputs_of(name, 0)
    found = model(*given)
    if entry.is_encoder:
        assert found.shape == (0, model.num_features)
    else:
        config = entry.config | (SMALL[name].options if name in SMALL else {})
        assert (len(found), found.shape[2:]) == (0, given[0].shape[2:])
        assert found.shape[1] == (config["num_classes"] or config.get("outputs", 1))
    if hasattr(model, "forward_features"):
        last = model.forward_features(*given)
        assert (len(last), last.ndim) == (0, entry.dimension + 2)
        assert all(last.shape[1:])
