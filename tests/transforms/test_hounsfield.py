"""What passes as a CT in HU: every file a clinic writes, and nothing else, however its padding hides it."""

import logging
from dataclasses import replace

import numpy as np
import pytest

from zoo.entries.drasclr.ct.scan import place_scan
from zoo.entry import Preprocessing
from zoo.errors import InputContractError
from zoo.images.volumes import Volume
from zoo.transforms.hounsfield import check_hounsfield, fill_padding, looks_like_ct
from zoo.transforms.image import build_transform

WIDE, NARROW = (-1024.0, 240.0), (-175.0, 250.0)
PADDINGS = (-1024, -2000, -2048, -3024, -32768)
RNG = np.random.default_rng(0)
SHAPE = (40, 40, 20)
FIELD = np.hypot(*(np.indices(SHAPE)[:2] - 19.5))
OUTSIDE = FIELD > 19  # of the scanner's round field of view


def volume(values, **facts):
    """Return a volume of these values, 2 mm, axes to the left, back and top."""
    return Volume(np.float32(values), np.diag([-2.0, -2.0, 2.0, 1.0]), 1, "scan", **facts)


def noise(deviation):
    return RNG.normal(0, deviation, SHAPE)


def chest():
    """Air, fat, muscle, lung and a spine, with noise."""
    x, y = np.indices(SHAPE)[:2] - 19.5
    values = np.full(SHAPE, -1000.0)
    values[FIELD < 17] = -100
    values[FIELD < 14] = 50
    for side in (-6, 6):
        values[np.hypot(x - side, y + 2) < 5] = -850
    values[np.hypot(x, y - 8) < 3] = 600
    return np.rint(values + noise(15))


def brain():
    """Inside the skull: 35, with fluid, no air."""
    return 35 + noise(8)


def clipped(low, high):
    return chest().clip(low, high)


def with_metal():
    values = chest()
    values[18:21, 5:8, 3:6] = 30000
    return values


def abdomen_with_gas():
    values = 40 + noise(12)
    values[:20] -= 140
    values[5:9, 5:9, 5:9] = -950
    return values


def head():
    """A skull of 1200 HU around 35, air outside."""
    return np.select([FIELD > 17, FIELD > 14], [-1000, 1200], 35.0) + noise(5)


def masked_head():
    """A brain alone, all else replaced by -1024."""
    return np.where(FIELD > 14, -1024, brain())


GOOD = {
    "chest": chest(),
    "a contrast agent": np.where(FIELD < 3, 350, chest()),
    "metal": with_metal(),
    "clipped at -1000": clipped(-1000, 3071),
    "clipped to [-1000, 1000]": clipped(-1000, 1000),
    "clipped to [-1024, 400]": clipped(-1024, 400),
    "a lung alone": -850 + noise(60),
    "a crop with a gas bubble": abdomen_with_gas(),
    "a head": head(),
    "a brain in -1024": masked_head(),
    "sharp kernel": chest() + noise(60),
    "bone and muscle": np.where(FIELD < 12, 500 + noise(250), chest()),
    **{f"padding of {value}": np.where(OUTSIDE, value, chest()) for value in PADDINGS},
}


@pytest.mark.parametrize("name", GOOD)
def test_what_clinics_write_passes_without_a_word(name):
    """Refusing, or doubting, a CT that is one: crops, kernels, contrast, metal, clipping, each kind of padding."""
    for window in (WIDE, NARROW):
        assert check_hounsfield(volume(GOOD[name]), window) == []


STORED = np.maximum(chest() + 1024, 0)
BAD = {
    "stored values": (STORED, "RescaleIntercept -1024"),
    **{
        f"stored values, padding of {value}": (np.where(OUTSIDE, value, STORED), "RescaleIntercept -1024")
        for value in (*PADDINGS, -1000)
    },
    "stored values of a body without air, padded": (np.where(OUTSIDE, -2000, brain() + 1024), "RescaleIntercept"),
    "stored values of a chest, padding cut off at -1024": (np.where(OUTSIDE, -1024, STORED), "RescaleIntercept -1024"),
    "stored values of a chest, padded with -1000": (np.where(OUTSIDE, -1000, STORED), "RescaleIntercept -1024"),
    "8 bits of a window, padded with -1024": (
        np.where(OUTSIDE, -1024, ((chest() + 160) / 400 * 255).clip(0, 255).round()),
        "the rest from 0 to 255, as of a window",
    ),
    "the intercept twice": (np.maximum(head() - 1024, -2048), "added twice"),
    "a resampled T1": (np.where(FIELD[0, 0, 0] == FIELD, -610, 9000 + noise(2500)), "above 3100"),
    "a resampled T1 with background": (
        np.where(FIELD > 15, noise(60), 1500 + noise(700)).clip(-610, None) - 500 * (noise(1) > 4),
        "air|MRI|near -1000",
    ),
    "a phase image": (RNG.integers(-4096, 4095, SHAPE), "phase"),
    "12 bits": (RNG.integers(0, 4096, SHAPE), "HU are expected"),
    "8 bits": (RNG.integers(0, 256, SHAPE), "HU are expected"),
    "a z-score": (noise(1), "HU are expected"),
    "a window of 0 to 1": (chest().clip(-175, 250) / 425 + 0.4, "HU are expected"),
    "PET": (RNG.gamma(0.3, 3000, SHAPE) - 300 * (noise(1) > 3.5), "PET"),
    "cut off above what counts": (chest().clip(-500, 500), "cut off at -500"),
    "nothing but padding": (-2000 - noise(1) ** 2, "HU are expected"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_hu_is_refused_whatever_hides_it(name):
    """Taking stored values, MRI, PET, phases or windowed values for HU because one value lies below -200."""
    values, message = BAD[name]
    with pytest.raises(InputContractError, match=message):
        check_hounsfield(volume(values), WIDE)


def test_cutting_below_the_window_is_no_fault_and_hardly_any_air_is_said():
    """A network that knows -175 to 250 loses nothing by a cut at -500; a crop without air may be something else."""
    assert "cut off at -500" in check_hounsfield(volume(chest().clip(-500, 500)), NARROW)[0]
    values = 40 + noise(12)
    values[3, 3, 3] = -400
    assert "near -1000" in check_hounsfield(volume(values), WIDE)[0]


def test_padding_at_the_largest_value_is_said():
    """4095 stored, 3071 HU, around a round field of view would be a ring of bone."""
    (odd,) = check_hounsfield(volume(np.where(OUTSIDE, 3071, chest())), NARROW)
    assert "at the largest value, 3071" in odd


def test_a_crop_inside_the_body_is_taken_where_the_header_says_ct():
    """Fat and organs without any air: nobody can apply a rescale that was applied; without the header it is refused."""
    inside = volume(np.where(FIELD < 8, 55, -95) + noise(10))
    (odd,) = check_hounsfield(replace(inside, modality="CT"), NARROW)
    assert "no air, which only crops inside the body lack" in odd
    with pytest.raises(InputContractError, match="HU are expected"):
        check_hounsfield(inside, NARROW)


def test_cone_beam_ct_that_is_not_calibrated_is_said():
    """Dental scanners: air near -1000, soft tissue far from 0."""
    values = np.where(FIELD > 15, -980, -420) + noise(30)
    assert "cone-beam" in check_hounsfield(volume(values), WIDE)[0]


def test_a_header_that_says_ct_turns_doubts_into_warnings():
    """Its rescaled values are HU by definition, however odd; an intercept that is plainly wrong is not."""
    bone = np.where(FIELD > 15, -1000.0, 1000.0)
    assert len(check_hounsfield(volume(RNG.integers(-4096, 4095, SHAPE), modality="CT"), WIDE)) == 1
    check_hounsfield(volume(bone, modality="CT"), WIDE)
    for padding in (-1024, -2000):
        with pytest.raises(InputContractError, match="RescaleIntercept -1024"):
            check_hounsfield(volume(np.where(OUTSIDE, padding, STORED), modality="CT"), WIDE)


@pytest.mark.parametrize("name", ["chest", "a head", "padding of -3024"])
def test_a_ct_is_known_by_its_values(name):
    """What an MRI network refuses by: air and tissue where only HU have them."""
    assert looks_like_ct(volume(GOOD[name]))


def test_signed_mri_is_no_ct_and_as_one_it_is_doubted():
    """Phase-sensitive images, around 0 with tails on both sides: refused where MRI is due, silent where CT is."""
    values = 400 * noise(1)
    assert not looks_like_ct(volume(values))
    assert "phase-sensitive MRI" in check_hounsfield(volume(values), WIDE)[0]


@pytest.mark.parametrize("name", ["a phase image", "a resampled T1", "12 bits", "PET"])
def test_an_mri_with_negative_values_is_no_ct(name):
    """Refusing phases and resampled scans as CT where MRI is due."""
    assert not looks_like_ct(volume(BAD[name][0]))


def test_a_long_volume_is_sampled_across_its_columns():
    """A step that is a multiple of the columns would see one column alone."""
    values = np.full((1024, 1024, 4), 40.0, np.float32)
    values[..., 1:] = -1000
    assert check_hounsfield(volume(values), WIDE) == []


CT = Preprocessing(
    ("CT",), (), units="HU", value_range=(-1.0, 1.0), orientation="RAS", spacing=(1.5, 1.5, 1.5), window=WIDE, spline=3
)


@pytest.mark.parametrize("padding", [-2000, -3024, -32768])
@pytest.mark.parametrize("spline", [1, 3])
def test_padding_is_air_before_anything_is_resampled(padding, spline):
    """Rings of hundreds of HU inside the body, or fat between padding and bone, next to where nothing was measured."""
    body = np.where(FIELD > 15, -1000.0, 40.0)
    body[12:14] = 900
    facts = replace(CT, spline=None if spline == 1 else 3)
    clean, padded = (build_transform(facts)(volume(np.where(OUTSIDE, value, body))) for value in (-1024, padding))
    assert np.array_equal(clean, padded)


@pytest.mark.parametrize("padding", PADDINGS)
def test_the_recipe_reads_a_padded_scan_as_the_transform_does(padding):
    """`zoo embed drasclr` refusing what `load_transform` takes, or keeping the padding."""
    values = chest().clip(-1024, None)
    scan = place_scan(volume(np.where(OUTSIDE, padding, values)), np.diag([-1.0, -1.0, 1.0, 1.0]))
    assert np.array_equal(scan.values, np.where(OUTSIDE, -1024, values))


def test_the_recipe_says_what_is_odd(caplog):
    """The transform's warnings, which its own reading dropped."""
    values = np.where(FIELD > 15, -980, -420) + noise(30)
    with caplog.at_level(logging.WARNING, "zoo"):
        place_scan(volume(values), np.eye(4))
    assert "cone-beam" in caplog.text


def test_a_volume_without_padding_is_not_copied():
    """Twice the memory for nothing."""
    given = volume(chest().clip(-1024, None))
    assert fill_padding(given) is given
