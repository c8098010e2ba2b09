"""Random changes of training images: what each entry allows, and labels that stay on their image."""

import pytest
import torch

from zoo.entry import Augment
from zoo.registry import entries
from zoo.tasks.augment import augmented, draw
from zoo.training.data import seeded

STILL = Augment(degrees=0.0, zoom=0.0, shift=0.0, gain=0.0, offset=0.0)


@pytest.mark.parametrize("size", [(24, 40), (12, 20, 16)])
def test_labels_move_with_their_image(size):
    """A mirror, turn or shift of one alone, or the axes in another order, would put labels beside their structure."""
    image = torch.zeros(1, *size)
    image[(0, *(slice(side // 6, side // 2) for side in size))] = 1.0
    plain = Augment(mirrors=tuple(range(len(size))), plane=(0, 1), degrees=20.0, gain=0.0, offset=0.0)
    for seed in range(8):
        with seeded(seed):
            moved, labels = augmented(plain, image, image[0].long())
        assert labels.dtype == torch.int64
        apart = ((moved[0] > 0.5) != (labels > 0)).float().mean()
        assert apart < 0.02, "only at the border, where linear and nearest differ by half a pixel"


def test_a_turn_keeps_shapes_of_unequal_sides():
    """Turned in coordinates that run from -1 to 1 along unequal sides, a disc would come out as an ellipse."""
    y, x = torch.meshgrid(torch.arange(40.0) - 19.5, torch.arange(80.0) - 39.5, indexing="ij")
    disc = ((y**2 + x**2) < 12**2).float()[None]
    turned = Augment(degrees=45.0, zoom=0.0, shift=0.0, gain=0.0, offset=0.0)
    with seeded(3):
        found, _ = augmented(turned, disc)
    assert (found - disc).abs().mean() < 0.01


def test_a_shift_has_its_axis_and_its_length():
    """Axes in PyTorch's order would shift along the wrong side."""
    image = torch.zeros(1, 10, 30)
    image[0, 5, 10] = 1.0
    change = draw(STILL, (10, 30))
    change.matrix[1, 2] = 4.0
    assert change.of_image(image)[0, 5, 6] == pytest.approx(1.0, abs=1e-4)


def test_nothing_changes_where_nothing_may():
    """An offset of half a pixel in the grid would blur every image."""
    image = torch.rand(2, 9, 14, 11)
    found, _ = augmented(STILL, image)
    assert torch.allclose(found, image, atol=1e-5)


def test_draws_follow_from_the_seed():
    """A draw from another generator would not come again in a resumed run."""
    image = torch.rand(1, 16, 16)
    twice = []
    for seed in (1, 1, 2):
        with seeded(seed):
            twice.append(augmented(Augment(), image)[0])
    assert torch.equal(twice[0], twice[1])
    assert not torch.equal(twice[0], twice[2])


@pytest.mark.parametrize("name", sorted(entries()))
def test_no_entry_is_mirrored_against_its_anatomy(name):
    """A heart on the right is another finding; of a brain the axis from left to right is mirrored, and no other."""
    entry = entries()[name]
    contract, augment = entry.preprocessing, entry.augment
    letters = (contract.orientation or ("LAS" if entry.dimension == 3 else "")).upper()
    across = tuple(axis for axis, letter in enumerate(letters) if letter in "LR")
    expected = {"brain": across, "lesion": tuple(range(entry.dimension))}.get(entry.anatomy, ())
    assert augment.mirrors == expected
    if entry.dimension == 3:
        along = next((axis for axis, letter in enumerate(letters) if letter in "SI"), 2)
        assert along not in augment.plane, "rotations stay in the slice across the body"
