"""What `zoo demo` draws: the phantom, the masked copy, the colours of the features, the picture of four panels."""

import socket

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from zoo.commands import demo
from zoo.commands.phantom import chest_phantom
from zoo.entry import Preprocessing
from zoo.tasks.panels import PANEL_SIDE, draw_panels
from zoo.transforms.image import build_transform


def test_the_phantom_is_deterministic_and_seeded():
    """The same seed draws the same film, another seed another one of the same anatomy."""
    first, again, other = chest_phantom(128), chest_phantom(128), chest_phantom(128, seed=1)
    assert first.dtype == np.uint8
    assert first.shape == (128, 128)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert np.corrcoef(first.ravel(), other.ravel())[0, 1] > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("size", [96, 256, 512])
def test_the_phantom_has_the_grey_levels_of_a_chest(size):
    """Air outside is black, lungs dark, mediastinum and abdomen bright; the heart lies on the right of the image."""
    film = chest_phantom(size).astype(float)

    def mean(top, bottom, left, right):
        """Return the mean of a region given in fractions of the film."""
        return film[int(top * size) : int(bottom * size), int(left * size) : int(right * size)].mean()

    lungs = [mean(0.35, 0.6, 0.2, 0.35), mean(0.3, 0.5, 0.68, 0.8)]
    bright = [mean(0.4, 0.6, 0.45, 0.55), mean(0.55, 0.68, 0.5, 0.65), mean(0.75, 0.9, 0.3, 0.7)]
    assert mean(0.7, 0.95, 0.0, 0.04) < 20
    assert all(20 < lung < 130 for lung in lungs)
    assert min(bright) > max(lungs) + 60
    assert mean(0.55, 0.65, 0.6, 0.68) > mean(0.55, 0.65, 0.32, 0.4) + 30
    assert (film == 255).mean() < 0.01


def test_the_phantom_passes_the_transform_without_a_warning(caplog):
    """It meets the input contract that it demonstrates."""
    image = build_transform(Preprocessing(("grey",) * 3, (224, 224), resize=256))(chest_phantom())
    assert image.shape == (3, 224, 224)
    assert not caplog.records


@pytest.mark.parametrize("side", [224, 96])
def test_masking_cuts_rectangles_and_keeps_the_rest(side):
    """Pixels are either untouched or 0 in every channel, the rim is kept, the input is not changed."""
    image = torch.rand(3, side, side, generator=torch.Generator().manual_seed(0)) + 0.5
    before = image.clone()
    masked = demo.mask_rectangles(image, seed=12)
    cut = (masked == 0).all(0)
    assert torch.equal(image, before)
    assert torch.equal(masked[:, ~cut], image[:, ~cut])
    assert torch.equal((masked != image).any(0), cut)
    assert 0.1 < cut.float().mean() < 0.3
    rim = 3 * side // 224
    assert int(cut[rim:-rim, rim:-rim].sum()) == int(cut.sum())
    assert torch.equal(demo.mask_rectangles(image, seed=12), masked)
    assert not torch.equal(demo.mask_rectangles(image, seed=13), masked)


def test_principal_components_find_the_directions_of_variance():
    """Three known patterns of falling strength come out as red, green and blue, each over the full scale."""
    generator = torch.Generator().manual_seed(0)
    patterns = torch.linalg.qr(torch.randn(64, 3, generator=generator))[0].T.reshape(3, 8, 8)
    patterns = patterns - patterns.mean((1, 2), keepdim=True)
    directions = torch.linalg.qr(torch.randn(32, 3, generator=generator))[0].T
    strengths = torch.tensor([9.0, 3.0, 1.0])
    feature_map = torch.einsum("k,kd,khw->dhw", strengths, directions, patterns) + 5
    colours = demo.principal_components(feature_map)
    assert colours.shape == (8, 8, 3)
    assert colours.dtype == np.uint8
    for component, pattern in enumerate(patterns):
        found = np.corrcoef(colours[..., component].ravel(), pattern.flatten())[0, 1]
        assert abs(found) > 0.9  # the patterns are nearly, not exactly, orthogonal once centred; the tails are clipped
        assert (colours[..., component].min(), colours[..., component].max()) == (0, 255)


def test_principal_components_of_degenerate_maps():
    """Colours do not depend on sign and order of the features; a constant or tiny map gives colours, not NaN."""
    feature_map = torch.randn(16, 6, 5, generator=torch.Generator().manual_seed(0))
    colours, mirrored = (demo.principal_components(m).astype(int) for m in (feature_map, -feature_map.flip(0)))
    assert np.abs(colours - mirrored).max() <= 1  # one level: another order of sums
    assert demo.principal_components(torch.ones(16, 4, 4)).max() == 0
    assert demo.principal_components(torch.randn(16, 1, 2)).shape == (1, 2, 3)


def test_the_picture_has_all_panels_and_the_footer(tmp_path):
    """Each panel stands at its place in its own colour, titles above, a footer below."""
    colours = [(10, 20, 30), (200, 0, 0), (0, 200, 0), (0, 0, 200)]
    panels = [(f"Panel {i}", "of one colour", np.full((7, 7, 3), c, np.uint8)) for i, c in enumerate(colours)]
    picture = draw_panels(panels, "Film: synthetic phantom")
    left, top = 16, 60
    step = PANEL_SIDE + left
    assert picture.size == (left + 4 * step, top + PANEL_SIDE + 40)
    for index, colour in enumerate(colours):
        for corner in (0, PANEL_SIDE - 1):
            assert picture.getpixel((left + index * step + corner, top + corner)) == colour
    pixels = np.asarray(picture.convert("L"))
    for index in range(4):
        assert pixels[:top, left + index * step : (index + 1) * step].min() < 50
    assert pixels[top + PANEL_SIDE :].min() < 150
    assert (pixels[:, :left] == 255).all()


class Encoder(nn.Module):
    """A stand-in with the interface of an encoder: a strided convolution and its mean."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(3, 8, 32, stride=32)

    def forward_features(self, x):
        return self.convolution(x).relu()

    def forward(self, x):
        return self.forward_features(x).mean((2, 3))


def test_a_look_gives_the_feature_and_four_panels():
    """The encoder sees the film at its size and once at twice that; the decoder network sees the masked copy."""
    seen = []

    def decode(x):
        seen.append(x)
        return x[:, :1]

    transform = build_transform(Preprocessing(("grey",) * 3, (224, 224), resize=256))
    feature, panels = demo.look(Encoder(), decode, transform, chest_phantom())
    titles, subtitles, pixels = zip(*panels, strict=True)
    assert feature.shape == (8,)
    assert titles == ("Image", "Masked copy", "Reconstruction", "Features")
    assert "14 x 14 positions at 448 px" in subtitles[3]
    assert [p.shape for p in pixels] == [(224, 224)] * 3 + [(14, 14, 3)]
    assert np.array_equal(pixels[1], pixels[2])
    assert (pixels[1] == 0).mean() > (pixels[0] == 0).mean() + 0.1
    assert seen[0].shape == (1, 3, 224, 224)


def test_the_larger_input_shows_the_same_part_of_the_film():
    """The finer transform differs in resolution only."""
    transform = build_transform(Preprocessing(("grey",), (64, 64), resize=72))
    film = chest_phantom()
    finer = demo.finer(transform)(film)
    shrunk = np.asarray(Image.fromarray(demo.to_pixels(finer)).resize((64, 64), Image.Resampling.BOX))
    difference = np.abs(shrunk.astype(int) - demo.to_pixels(transform(film)))
    assert finer.shape == (1, 256, 256)
    assert difference.mean() < 2  # two ways to average a smooth film; another crop differs by tens


@pytest.mark.slow
def test_the_demo_runs_offline_from_shipped_weights(tmp_path, monkeypatch):
    """`run_demo` prints both load reports and the feature, opens no socket, and writes a picture of four panels."""

    def forbidden(*_, **__):
        raise AssertionError("the demo must not open a connection")

    monkeypatch.setattr(socket.socket, "connect", forbidden)
    said = []
    out = demo.run_demo(None, tmp_path / "picture.png", echo=said.append)
    text = "\n".join(map(str, said))
    assert "encoder                 318" in text
    assert "feature of shape (2048,)" in text
    with Image.open(out) as picture:
        assert picture.width > 4 * PANEL_SIDE


def test_a_film_that_is_not_there_is_refused_before_networks_are_loaded(tmp_path, monkeypatch):
    """Two networks take seconds, and so does their download."""
    monkeypatch.setattr(demo, "load_model", lambda name: pytest.fail(f"{name} was loaded"))
    with pytest.raises(FileNotFoundError, match=r"nope\.png"):
        demo.run_demo(tmp_path / "nope.png", tmp_path / "picture.png")
