"""A batch without images gives a result without rows, of every network of the registry."""

import pytest
import torch

from zoo.loading import load_model
from zoo.registry import get_entry, list_models

SIDES = {
    "brainiac-vitb16": (96, 96, 96),
    "drasclr-cnn3d": (32, 32, 32),
    "glcl-encoder": (192, 192),
    "glcl-unet": (192, 192),
    "rad-dino-vitb14": (56, 56),
}
"""Pixels or voxels along each side, where not of any size."""
ALIKE = [name for name in list_models() if not name.endswith(("-l", "-h"))]  # wider ones of the same class


def empty(name):
    """A batch of no images; DrasCLR's patches come with their locations."""
    entry = get_entry(name)
    sides = SIDES.get(name, (32, 32, 64)[-entry.dimension :])
    images = torch.zeros(0, entry.config["in_channels"], *sides)
    return (images, torch.zeros(0, 3)) if entry.family == "drasclr" else (images,)


@pytest.mark.parametrize("name", ALIKE)
@torch.no_grad()
def test_no_image_gives_no_row(name):
    """Of the width that an image gives, pooled and as a map: a job may have fewer images than processes."""
    model, entry, given = load_model(name, pretrained=False), get_entry(name), empty(name)
    found = model(*given)
    if entry.is_encoder:
        assert found.shape == (0, entry.num_features)
    else:
        assert (len(found), found.shape[2:]) == (0, given[0].shape[2:])
        assert found.shape[1] == (entry.config["num_classes"] or entry.config.get("outputs", 1))
    if hasattr(model, "forward_features"):
        last = model.forward_features(*given)
        assert (len(last), last.ndim) == (0, entry.dimension + 2)
        assert all(last.shape[1:])
