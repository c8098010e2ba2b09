"""A CT that is not in HU where MRI is due: taken with a word, since MRI may have any values; real MRI passes."""

import logging

import nibabel
import numpy as np
import pydicom
import pytest
from nibabel.testing import data_path
from pydicom.data import get_testdata_file

import zoo
from zoo.commands.fitting import find_fits
from zoo.images.volumes import Volume
from zoo.registry import get_entry
from zoo.transforms.unsaid import doubt_modality

MRI = get_entry("glcl-encoder").preprocessing
SHAPE = (60, 60, 12)
FIELD = np.hypot(*(np.indices(SHAPE)[:2] - 29.5))


def noise(deviation):
    return np.random.default_rng(0).normal(0, deviation, SHAPE)


def head():
    """HU: air, a skull, brain."""
    return np.select([FIELD > 26, FIELD > 23], [-1000, 1100], 35.0) + noise(8)


def chest():
    """HU: air, fat, muscle, lungs, a spine."""
    x, y = np.indices(SHAPE)[:2] - 29.5
    values = np.select([FIELD > 26, FIELD > 22], [-1000, -100], 50.0)
    for side in (-10, 10):
        values[np.hypot(x - side, y + 2) < 8] = -850
    values[np.hypot(x, y - 12) < 4] = 600
    return values + noise(20)


def slice_of_a_ct():
    """A real one, HU."""
    found = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    return (found.pixel_array.astype(np.float32) + found.RescaleIntercept)[..., None]


def doubts(values, **facts):
    return doubt_modality(Volume(np.float32(values), np.eye(4), 1, "scan", **facts), MRI)


SCALED = {
    "stored": lambda hu: hu.clip(-1024, 3071) + 1024,
    "12 bits to fractions": lambda hu: (hu.clip(-1024, 3071) + 1024) / 4095,
    "a wide window in 8 bits": lambda hu: ((hu.clip(-1000, 1000) + 1000) / 2000 * 255).round(),
    "fractions of its own range": lambda hu: (hu - hu.min()) / np.ptp(hu),
    "its own range in 16 bits": lambda hu: ((hu - hu.min()) / np.ptp(hu) * 65535).round(),
    "a window of soft tissue in fractions": lambda hu: (hu.clip(-160, 240) + 160) / 400,
}


@pytest.mark.parametrize("scale", SCALED)
@pytest.mark.parametrize("ct", [head, chest, slice_of_a_ct])
def test_a_ct_that_is_not_in_hu_is_said_however_it_was_scaled(ct, scale):
    """As MRI without a word: only its own numbers were looked for, 1024 and a window that cuts both ends."""
    (said,) = doubts(SCALED[scale](ct()))
    assert "MRI is expected, is it a CT?" in said.replace("MR slices", "MRI")
    assert doubts(SCALED[scale](ct()), modality="MR") == []


def nifti(name):
    values = np.asarray(nibabel.load(f"{data_path}/{name}").dataobj, np.float32)
    return values[..., 0] if values.ndim == 4 else values


def slice_of_an_mr():
    return pydicom.dcmread(get_testdata_file("MR_small.dcm")).pixel_array[..., None]


MR = {
    "T1": lambda: nifti("anatomical.nii"),
    "another T1": lambda: nifti("reoriented_anat_moved.nii"),
    "EPI": lambda: nifti("functional.nii"),
    "DWI": lambda: nifti("example4d.nii.gz"),
    "a slice": slice_of_an_mr,
    "a body of one mean": lambda: np.where(FIELD < 26, 600 + noise(250), 5 + noise(2)).clip(0),
    "a phantom": lambda: np.where(FIELD < 26, 200.0, 30.0) + noise(8),
    "two tissues": lambda: np.select([FIELD > 26, FIELD > 20], [20.0, 900.0], 600.0) + noise(10),
    "a crop of one tissue": lambda: np.select([FIELD < 2, FIELD < 4], [30.0, 900.0], 600.0) + noise(10),
    "a soft edge": lambda: np.select([FIELD > 28, FIELD > 25, FIELD > 23], [10.0, 100.0, 340.0], 200.0) + noise(4),
    "a z-score": lambda: np.where(FIELD < 26, noise(1), -1.5),
}


@pytest.mark.parametrize("name", MR)
def test_mri_passes_without_a_word(name):
    """Real scans, as they are and in units of their own: doubting each of them would make the word worthless."""
    for values in (MR[name](), MR[name]() * 3.7 - 2):
        assert doubts(values) == []


@pytest.mark.parametrize("name", ["T1", "another T1", "DWI"])
def test_what_tells_nothing_is_said_too(name):
    """8 bits, also behind a slope, and fractions: a CT in a window has no other values than MRI then."""
    fractions = (MR[name]() - MR[name]().min()) / np.ptp(MR[name]())
    for values, said in (
        (fractions, "from 0 to 1, fractions"),
        ((fractions * 255).round(), "in 8 bits"),
        ((fractions * 255).round() * 2.2, "in 8 bits"),
    ):
        (doubt,) = doubts(values)
        assert said in doubt
        assert "do not tell MRI from a windowed CT" in doubt


def test_a_step_among_many_levels_is_not_8_bits():
    """Whole numbers that happen to be few."""
    assert doubts(np.random.default_rng(0).choice(np.arange(0, 2000, 9) + 7 * (np.arange(223) % 2), SHAPE)) == []


@pytest.mark.parametrize("scale", ["12 bits to fractions", "a wide window in 8 bits"])
def test_no_mri_model_fits_such_a_ct_without_a_word(scale, tmp_path, caplog):
    """`zoo doctor FILE`; a model that takes both modalities says nothing; the transforms themselves log it."""
    path = tmp_path / "ct.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.float32(SCALED[scale](chest())), np.diag([-2.0, 2.0, 6.0, 1.0])), path)
    fits = [fit for fit in find_fits(path) if fit.examination.fits]
    of_mri = [fit for fit in fits if get_entry(fit.model).modalities == ("mri",)]
    assert {fit.model.split(".")[0] for fit in of_mri} >= {"glcl-unet", "brainiac-vitb16"}
    assert all(any("is it a CT?" in line for line in fit.examination.warnings) for fit in of_mri)
    assert "anatomix-unet" in fits[0].model
    for model in ("glcl-unet", "brainiac-vitb16"):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "zoo"):
            zoo.load_transform(model)(path)
        assert "is it a CT?" in caplog.text


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_what_is_refused_anyway_is_not_judged(wrong):
    """A traceback of a histogram in place of the message about values that are not finite."""
    values = chest()
    values[3, 3] = wrong
    assert doubts(values) == []
