"""Pictures of what a network looked at: the map is where the signal is, in films, slices and windows of volumes."""

from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import torch
from fine_tuned import CAID, labels
from PIL import Image
from torch import nn

from zoo.embedding import Embedder
from zoo.entry import Parts
from zoo.networks.windows import cut_windows
from zoo.tasks.explain import choose_targets, draw, said_of_falls
from zoo.tasks.occlusion import occlude
from zoo.tasks.outputs import Outputs
from zoo.tasks.panels import planes_at, with_heat
from zoo.tasks.predictor import Predictor


class Bright(nn.Module):
    """Two outputs, linear in the pooled map: how much of an image is brighter than 0.8, and a constant."""

    def __init__(self, space):
        super().__init__()
        self.head = nn.Linear(1, 2)
        self.pool = nn.AvgPool2d(4) if space == 2 else nn.AvgPool3d(4)
        with torch.no_grad():
            self.head.weight.copy_(torch.tensor([[300.0], [0.0]]))
            self.head.bias.copy_(torch.tensor([-1.0, -9.0]))

    def forward_features(self, x):
        return self.pool((x[:, :1] - 0.8).clamp(min=0))

    def get_classifier(self):
        return self.head

    def forward(self, x):
        return self.head(self.forward_features(x).flatten(2).mean(2))


def predictor(space, outputs=None, name=CAID):
    """A predictor whose network is made by hand; what its file would say is there."""
    embedder = Embedder(name, device="cpu", num_classes=2)
    embedder.network = Bright(space)
    return Predictor(SimpleNamespace(outputs=outputs or labels(0.5, 0.5), classes=("bright", "never")), embedder)


def planted(shape, centre, radius=6):
    """An image of smooth noise below 0.7, and a bright ball in it; and where that is."""
    draws = torch.Generator().manual_seed(0)
    image = 0.7 * torch.rand(1, *shape, generator=draws)
    grid = torch.meshgrid(*(torch.arange(n) for n in shape), indexing="ij")
    ball = sum((g - c) ** 2 for g, c in zip(grid, centre, strict=True)) <= radius**2
    image[:, ball] = 1.0
    return image, ball.numpy()


def share_inside(falls, ball):
    """How much of what lowers the score lies in the ball."""
    positive = falls.clip(min=0)
    return positive[ball].sum() / positive.sum()


def test_the_map_of_a_film_is_where_the_signal_is():
    """Not so of the same map shuffled, or of the constant output, whose score nothing changes."""
    image, ball = planted((64, 64), (20, 44))
    found = occlude(predictor(2), Parts((image.repeat(3, 1, 1)[None],)), 0)
    assert found.falls.shape == (64, 64)
    assert ball[found.point]
    inside = share_inside(found.falls, ball)
    shuffled = np.random.default_rng(0).permutation(found.falls.ravel()).reshape(64, 64)
    assert inside > 0.3, "squares are 9 pixels wide and the ball 13: some of each square lies beside it"
    assert share_inside(shuffled, ball) < 0.1
    assert np.abs(occlude(predictor(2), Parts((image.repeat(3, 1, 1)[None],)), 1).falls).max() == 0


@pytest.mark.parametrize("centre", [(20, 16, 16), (50, 40, 10)])
def test_the_map_of_windows_lies_where_they_do(centre):
    """In the second window as in the first, at the voxels of the volume, padding included."""
    volume, ball = planted((64, 48, 32), centre)
    parts = cut_windows(volume, (32, 32, 32), 4)
    found = occlude(predictor(3), parts, 0)
    assert found.image.shape == found.falls.shape == (64, 48, 32)
    np.testing.assert_array_equal(found.image, volume[0].numpy())
    assert np.abs(np.subtract(found.point, centre)).max() <= 8, "cubes are 16 voxels wide"
    assert share_inside(found.falls, ball) > 5 * ball.mean(), "a map that is shuffled has 1"
    assert found.part == ""


def test_of_slices_the_one_that_speaks_most_is_shown():
    """Its number is said, and the map is that of this slice."""
    image, ball = planted((64, 64), (44, 20))
    slices = 0.7 * torch.rand(5, 1, 64, 64, generator=torch.Generator().manual_seed(1))
    slices[3] = image
    found = occlude(predictor(2), Parts((slices,), torch.full((5,), 0.2)), 0)
    assert found.part == "part 4 of 5"
    assert ball[found.point]
    np.testing.assert_array_equal(found.image, image[0].numpy())


def test_the_fall_is_that_of_the_score():
    """Hiding a whole ball, here in a square of either grid, takes away all that it adds to the logit."""
    image, _ = planted((64, 64), (16, 16), radius=1)
    network = Bright(2)
    with torch.no_grad():
        rise = float((network(image[None]) - network(image.clamp(max=0.7)[None]))[0, 0])
    found = occlude(predictor(2), Parts((image.repeat(3, 1, 1)[None],)), 0)
    assert found.falls.max() == pytest.approx(rise, rel=1e-3)


def test_what_is_drawn_is_what_the_thresholds_say():
    """The labels that hold, the surest first; the likeliest where none does; of classes the one decided on."""
    said = {"saved": None, "classes": ("a", "b", "c")}

    def targets(outputs, values):
        chosen = choose_targets(SimpleNamespace(outputs=outputs, **said), np.array(values))
        return [target.number for target in chosen]

    assert targets(labels(0.5, 0.1, 0.5), [1.0, -2.0, 2.0]) == [2, 0, 1]
    assert targets(labels(0.9, 0.9, 0.9), [1.0, -2.0, 0.5]) == [0]
    assert targets(Outputs("classes"), [0.0, 3.0, 1.0]) == [1]
    assert targets(Outputs("numbers", means=(0, 0, 0), deviations=(1, 1, 1)), [0.0, 3.0, 1.0]) == [0, 1, 2]


def test_the_title_says_how_far_each_colour_goes():
    """Of a picture that is all but blue the small fall alone would stand for its scale, or "nothing"."""
    assert said_of_falls(np.array([0.065, -0.31]), "logit") == "hiding moves the logit -0.065 to +0.31"
    assert said_of_falls(np.array([-0.2, -0.31]), "logit") == "hiding moves the logit -0 to +0.31"
    assert said_of_falls(np.zeros(2), "logit") == "hiding changes nothing"
    assert len(said_of_falls(np.array([1.23e-5, -1.23e-5]), "number")) <= 46, "else the end is cut off"


def test_the_picture_is_red_where_the_signal_is(tmp_path):
    """From the film's file to the pixels of the second panel: the reddest of them lie over the disc."""
    image, _ = planted((64, 64), (20, 44), radius=9)
    film = Image.fromarray((255 * image[0].numpy()).astype(np.uint8)).resize((256, 256), Image.Resampling.NEAREST)
    film.save(tmp_path / "film.png")
    file = draw(predictor(2), tmp_path / "film.png", tmp_path / "new" / "picture.png", title="film.png")
    pixels = np.asarray(Image.open(file)).astype(int)
    panel = pixels[60 : 60 + 384, 16 + 400 : 16 + 400 + 384]
    redness = panel[..., 0] - panel[..., 2]
    rows, columns = np.nonzero(redness > 0.8 * redness.max())
    # The transform cuts 64 of 73 pixels out of the film: what lies at 20 of 64 is at 18 of 64, 44 at 46.
    assert (rows.mean() / 6, columns.mean() / 6) == pytest.approx((18.3, 45.7), abs=4)
    assert np.abs(pixels[60 : 60 + 384, 16 : 16 + 384, 0] - pixels[60 : 60 + 384, 16 : 16 + 384, 2]).max() == 0


@pytest.mark.slow
def test_the_picture_of_a_volume_has_three_planes_through_the_signal(tmp_path):
    """From a NIfTI file of the patient's right, front and head to columns and rows as a radiologist looks at them."""
    shape, voxels, centre = (48, 48, 24), (2.0, 2.0, 3.0), (24, 60, 36)  # mm to the right, front and head
    values = np.random.default_rng(0).normal(40, 10, shape)  # water and soft tissue, in air
    values[:3], values[-3:], values[:, :3], values[:, -3:] = -1000, -1000, -1000, -1000
    grid = np.meshgrid(*(np.arange(n) * s for n, s in zip(shape, voxels, strict=True)), indexing="ij")
    values[sum((g - c) ** 2 for g, c in zip(grid, centre, strict=True)) <= 10**2] = 2000
    nibabel.save(nibabel.Nifti1Image(values.astype(np.float32), np.diag([*voxels, 1])), tmp_path / "ct.nii.gz")
    network = predictor(3, name="ct-fm-segresenc")
    pixels = np.asarray(Image.open(draw(network, tmp_path / "ct.nii.gz", tmp_path / "ct.png", title="ct"))).astype(int)
    found = []
    for number in range(3):
        panel = pixels[60 : 60 + 384, 16 + 400 * number : 16 + 400 * number + 384]
        redness = panel[..., 0] - panel[..., 2]
        found.append([float(where.mean()) for where in np.nonzero(redness > 0.8 * redness.max())])
    (_, sagittal), (_, coronal), axial = found
    # 96 mm are padded on the left and back to 128, which have 384 pixels: the ball lies 36 mm from the front, 72 from
    # the right. Cubes of about 18 voxels are hidden at once, on two grids that lie half a cube apart.
    assert (sagittal, coronal, *axial) == pytest.approx((3 * 36, 3 * 72, 3 * 36, 3 * 72), abs=12)


def test_planes_lie_as_a_radiologist_looks_at_them():
    """The patient's right on the left, front up in an axial plane, head up in the others; square in mm."""
    volume = np.zeros((10, 12, 4))  # x to the left, y to the back, z to the feet
    volume[1, 2, 1] = 1  # right, front, head
    planes = dict(planes_at(volume, (1, 2, 1), ("L", "P", "I"), (1.0, 1.0, 3.0)))
    assert {name: plane.shape for name, plane in planes.items()} == {
        "sagittal": (12, 12),
        "coronal": (12, 10),
        "axial": (12, 10),
    }
    where = {name: np.argwhere(plane).mean(0).tolist() for name, plane in planes.items()}
    assert where == {"sagittal": [4.0, 2.0], "coronal": [4.0, 1.0], "axial": [2.0, 1.0]}
    turned = dict(planes_at(volume[::-1, ::-1, ::-1], (8, 9, 2), ("R", "A", "S"), (1.0, 1.0, 3.0)))
    for name, plane in planes.items():
        np.testing.assert_array_equal(plane, turned[name])
    unknown = planes_at(volume, (1, 2, 1), None, None)
    assert [name for name, _ in unknown] == ["across the first axis", "across the second axis", "across the third axis"]


def test_colours_say_the_sign():
    """Red for, blue against, grey where nothing changes."""
    shown = with_heat(np.full((1, 3), 0.5), np.array([[1.0, -1.0, 0.0]])).astype(int)
    assert shown[0, 0, 0] > shown[0, 0, 2] + 50
    assert shown[0, 1, 2] > shown[0, 1, 0] + 50
    assert len(set(shown[0, 2])) == 1
