"""Films in 8 bits: Pillow's bicubic resizing in whole levels, and the range of films that have more bits."""

import logging
import pickle

import numpy as np
import pydicom
import pytest
import torch
from dicom_files import write_dicom
from PIL import Image

from zoo.entry import Preprocessing
from zoo.errors import InputContractError, OptionError
from zoo.transforms.image import build_transform

MEAN, DEVIATION = 0.5307, 0.2583
CONTRACT = Preprocessing(
    channels=("grey",) * 3,
    size=(96, 96),
    resize=96,
    interpolation="bicubic",
    mean=(MEAN,) * 3,
    std=(DEVIATION,) * 3,
    normalise="min-max",
)
BARE = Preprocessing(("grey",), (64, 64), interpolation="bicubic", normalise="min-max")  # 64 x 64 pass unresized


def film(height=160, width=120, low=20, high=200, seed=0):
    """Return smooth 8-bit noise that does not use the whole range."""
    coarse = np.random.default_rng(seed).integers(low, high, (9, 7), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def ramp(dtype, low, high):
    """Return 64 x 64 pixels that run from `low` to `high`."""
    return np.linspace(low, high, 4096).reshape(64, 64).astype(dtype)


def processed(pixels, side):
    """Take the steps of the processor that RAD-DINO's authors publish: RGB, Pillow, crop, 1/255, mean, deviation."""
    image = Image.fromarray(pixels).convert("RGB")
    short, long = sorted(image.size)
    sizes = {short: side, long: int(side * long / short)}
    image = image.resize((sizes[image.width], sizes[image.height]), Image.Resampling.BICUBIC)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    cut = np.asarray(image)[top : top + side, left : left + side]
    scaled = (cut.astype(np.float64) * (1 / 255)).astype(np.float32)
    return ((scaled - np.float32(MEAN)) / np.float32(DEVIATION)).transpose(2, 0, 1)


@pytest.mark.parametrize("shape", [(160, 120), (120, 163), (300, 201), (96, 96), (96, 99), (99, 96), (40, 50)])
def test_a_film_of_8_bits_is_what_the_published_processor_makes_of_it(shape, tmp_path):
    """Bit by bit, whichever side is longer, with odd margins, enlarged too; from array, picture, file and tensor."""
    pixels = film(*shape)
    expected = processed(pixels, 96)
    Image.fromarray(pixels).save(tmp_path / "film.png")
    Image.fromarray(pixels).convert("RGB").save(tmp_path / "rgb.png")
    forms = (pixels, Image.fromarray(pixels), tmp_path / "film.png", tmp_path / "rgb.png", torch.tensor(pixels))
    for form in (*forms, pixels / 255.0, np.float32(pixels) / 255):
        assert np.array_equal(build_transform(CONTRACT)(form).numpy(), expected)


def test_another_interpolation_and_another_cut_are_another_input():
    """What the comparison above would miss if it were lenient: linear, squashed to a square, stretched to its range."""
    pixels = film(160, 99)
    expected = processed(pixels, 96)
    linear = build_transform(CONTRACT.override({"interpolation": None}))(pixels).numpy()
    squashed = build_transform(CONTRACT.override({"resize": None}))(pixels).numpy()
    stretched = build_transform(CONTRACT)(np.uint16(pixels)).numpy()
    for other in (linear, squashed, stretched):
        assert np.abs(other - expected).max() > 0.02  # several grey levels


@pytest.mark.parametrize(("dtype", "low", "high"), [("uint16", 0, 4095), ("uint16", 300, 61000), ("int16", 7, 900)])
def test_more_than_8_bits_are_scaled_by_their_own_range(dtype, low, high, tmp_path):
    """As films that were DICOM were before they were stored in 8 bits; type and largest possible value play no part."""
    values = ramp(dtype, low, high)
    expected = np.rint((values.astype(np.float64) - low) * 255 / (high - low)) / 255
    made = build_transform(BARE)(values)[0].numpy()
    assert np.abs(made - expected).max() < 1.01 / 255  # a value between two levels may be rounded either way
    assert (np.abs(made - expected) > 1e-6).mean() < 0.01
    assert (made.min(), made.max()) == (0, 1)
    assert torch.equal(build_transform(BARE)(torch.tensor(values))[0], torch.tensor(made))
    if dtype == "uint16":
        for name in ("film.png", "film.tif"):
            Image.fromarray(values).save(tmp_path / name)
            assert np.array_equal(build_transform(BARE)(tmp_path / name)[0].numpy(), made)


def test_fractions_and_8_bits_are_as_they_are():
    """Somebody chose their range; beyond it is an error, as ever."""
    values = ramp("uint8", 30, 90)
    made = build_transform(BARE)(values)
    assert (round(float(made.min()) * 255), round(float(made.max()) * 255)) == (30, 90)
    assert torch.equal(build_transform(BARE)(np.float32(values / 255)), made)
    for wrong in (np.float32(values), np.float32(values) / 255 - 1):
        with pytest.raises(InputContractError, match="floats from 0 to 1 are expected"):
            build_transform(BARE)(wrong)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("window", [{}, {"WindowCenter": 1500, "WindowWidth": 101}])
def test_a_dicom_is_scaled_by_its_own_range_without_its_window(photometric, window, tmp_path):
    """Air is dark in both kinds; the same film with the window applied would be black and white alone."""
    values = ramp("uint16", 200, 3000)
    made = build_transform(BARE)(
        write_dicom(tmp_path / "film", values, bits=12, photometric=photometric, **window)
    ).numpy()
    expected = (values.astype(np.float64) - 200) / 2800
    expected = 1 - expected if photometric == "MONOCHROME1" else expected
    assert np.abs(made[0] - expected).max() < 0.51 / 255 + 1e-5


def test_a_dicom_of_8_bits_is_scaled_too(tmp_path):
    """It is the DICOM that the authors scaled, whatever its bits; a rescale with a negative slope turns it over."""
    values = ramp("uint8", 50, 150)
    upright = build_transform(BARE)(write_dicom(tmp_path / "a", values, bits=8))
    assert (upright.min(), upright.max()) == (0, 1)
    turned = build_transform(BARE)(write_dicom(tmp_path / "b", values, bits=8, RescaleSlope=-1, RescaleIntercept=255))
    assert torch.allclose(turned, 1 - upright, atol=1.01 / 255)


@pytest.mark.parametrize("falls", [False, True])
def test_a_table_of_grey_values_is_left_out_but_for_where_white_is(falls, tmp_path):
    """Some films are stored white on black and turned over by their VOI LUT; its curve is no part of the input."""
    curve = np.linspace(0, 1, 256) ** 3 * 1023
    table = pydicom.Dataset()
    table.LUTDescriptor = [256, 0, 10]
    table.add_new("LUTData", "US", [int(v) for v in (curve[::-1] if falls else curve)])
    values = ramp("uint8", 0, 255)
    made = build_transform(BARE)(write_dicom(tmp_path / "film", values, bits=8, VOILUTSequence=[table]))[0].numpy()
    assert np.abs(made - (1 - values / 255.0 if falls else values / 255.0)).max() < 1e-6


def test_a_film_that_is_the_same_everywhere_has_no_range(caplog):
    """It is warned of as any other, and becomes no NaN."""
    with caplog.at_level(logging.WARNING, "zoo"):
        made = build_transform(BARE)(np.full((64, 64), 900, np.uint16))
    assert "is constant" in caplog.text
    assert torch.isfinite(made).all()


def test_a_tensor_that_needs_a_gradient_is_refused():
    """Whole levels have none; handing back a tensor without it would break a graph in silence."""
    values = torch.from_numpy(np.float32(ramp("uint8", 0, 255) / 255)).requires_grad_()
    with pytest.raises(InputContractError, match=r"requires a gradient.*image\.detach\(\)"):
        build_transform(BARE)(values)
    assert build_transform(BARE)(values.detach()).shape == (1, 64, 64)


def test_it_says_its_steps_and_goes_to_workers():
    """Both facts are in what it prints."""
    transform = build_transform(CONTRACT)
    for part in ("shorter side to 96, bicubic in 8 bits", "DICOM without its window, by least and largest value"):
        assert part in repr(transform)
    assert pickle.loads(pickle.dumps(transform)) == transform


@pytest.mark.parametrize("value", ["lanczos", "BICUBIC", 3, True])
def test_an_interpolation_that_nobody_executes_is_refused(value):
    """A record cannot say one that would be passed over."""
    with pytest.raises(OptionError, match="impossible value: interpolation"):
        CONTRACT.override({"interpolation": value})


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        (CONTRACT.override({"normalise": "z-score"}), "normalise 'z-score' with size"),
        (Preprocessing(("HU",), (), units="HU", interpolation="bicubic"), "interpolation"),
        (Preprocessing(("HU",), (), units="HU", normalise="min-max"), "min-max"),
        (Preprocessing(("MR",), (9, 9), spacing=(1, 1), normalise="percentile", interpolation="bicubic"), "interpol"),
    ],
)
def test_contracts_that_no_transform_executes_are_refused(facts, said):
    """A field of films on volumes, and the reverse, would be passed over."""
    with pytest.raises(OptionError, match=said):
        build_transform(facts)
