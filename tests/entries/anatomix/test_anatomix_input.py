"""What anatomix sees: any volume, scaled by its least and greatest value, as it is stored."""

from dataclasses import replace

import nibabel
import numpy as np
import pytest
import torch
from anatomix_files import NAME
from dicom_files import write_series
from texts import warnings

import zoo
from zoo.commands.examination import examine
from zoo.commands.fitting import find_fits
from zoo.entry import Preprocessing
from zoo.errors import InputContractError, OptionError
from zoo.transforms import build_transform

AFFINE = np.diag([-0.8, 0.9, 3.0, 1.0])


def scan(shape=(20, 18, 12), seed=0):
    """An MRI of some scale: noise around zero outside, tissue with a bright part inside."""
    rng = np.random.default_rng(seed)
    values = np.abs(rng.normal(0, 8, shape))
    values[3:-3, 2:-2, 2:-2] = rng.normal(300, 60, (shape[0] - 6, shape[1] - 4, shape[2] - 4))
    values[6:9, 5:9, 4:7] = rng.normal(900, 40, (3, 4, 3))
    return values.astype(np.float32)


def scaled(values):
    """What the authors make of a volume, in double precision."""
    values = np.float64(values)
    return (values - values.min()) / (values.max() - values.min())


def test_the_contract_is_the_authors():
    """One channel of any modality and size; nothing is turned, resampled or clipped."""
    facts = zoo.load_transform(NAME).preprocessing
    assert facts == Preprocessing(("CT or MRI",), (), units="intensities of any scale", normalise="min-max")
    text = str(zoo.load_transform(NAME))
    for part in ("axes as they are, voxels as they are", "min-max over the whole volume", "(1, any size): CT or MRI"):
        assert part in text
    assert "intensities of any scale, 0 to 1" not in text


@pytest.mark.parametrize("change", [lambda v: v, lambda v: -3 * v + 7, lambda v: v / 1e6, lambda v: np.rint(v)])
def test_volumes_are_scaled_by_their_own_range(change, tmp_path):
    """Whatever the scale, as an array, a tensor, an image and a file; the least value is 0, the greatest 1."""
    values = change(scan()).astype(np.float32)
    image = nibabel.Nifti1Image(values, AFFINE)
    nibabel.save(image, tmp_path / "mr.nii.gz")
    np.save(tmp_path / "mr.npy", values)
    for given in (values, values[None], torch.from_numpy(values), image, tmp_path / "mr.nii.gz", tmp_path / "mr.npy"):
        made = zoo.load_transform(NAME)(given)
        assert (made.shape, made.dtype) == ((1, *values.shape), torch.float32)
        np.testing.assert_allclose(made[0].numpy(), scaled(values), atol=1e-6)
        assert (float(made.min()), float(made.max())) == (0, 1)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "SPL"])
def test_axes_stay_as_they_are_stored(codes):
    """The array of a file in other directions is that array, for features follow the pose."""
    values = scan()
    turn = nibabel.orientations.ornt_transform(
        nibabel.orientations.axcodes2ornt("LAS"), nibabel.orientations.axcodes2ornt(codes)
    )
    turned = nibabel.Nifti1Image(values, AFFINE).as_reoriented(turn)
    made = zoo.load_transform(NAME)(turned)
    np.testing.assert_allclose(made[0].numpy(), scaled(turned.get_fdata()), atol=1e-6)


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_series_of_both_modalities_are_taken(modality, tmp_path):
    """And scaled alike; the rescale of the header changes nothing then."""
    values = 2 * np.rint(scan())
    made = zoo.load_transform(NAME)(write_series(tmp_path / "series", values, Modality=modality))
    np.testing.assert_allclose(made[0].numpy(), scaled(values), atol=1e-6)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda v: np.full_like(v, 7), "is constant"),
        (lambda v: (v > 100).astype(np.float32), "2 different values: an image is expected, not a mask"),
        (lambda v: np.where(v > 800, np.nan, v), "NaN"),
        (lambda v: np.where(v > 800, np.inf, v), "infinite"),
        (lambda v: np.kron(np.arange(1, 61).reshape(5, 4, 3), np.ones((8, 8, 8))), "as in a label map"),
        (lambda v: (v - 450) * 5e35, "divide them first"),
        (lambda v: v[..., 0], "one volume"),
        (lambda v: v[:4], "at least 8 voxels a side"),
    ],
)
def test_what_is_no_image_is_refused(change, said, tmp_path):
    """By the transform and, in the same words, by `zoo doctor`."""
    nibabel.save(nibabel.Nifti1Image(np.float32(change(scan())), AFFINE), tmp_path / "mr.nii")
    with pytest.raises(InputContractError, match=said) as caught:
        zoo.load_transform(NAME)(tmp_path / "mr.nii")
    found = examine(tmp_path / "mr.nii", NAME)
    assert (found.fits, found.problem) == (False, str(caught.value))


def test_statistics_and_batches_are_refused():
    """By NIfTI's intent, and by the number of axes."""
    image = nibabel.Nifti1Image(scan(), AFFINE)
    image.header.set_intent("t test", (5,))
    with pytest.raises(InputContractError, match="statistic map"):
        zoo.load_transform(NAME)(image)
    with pytest.raises(InputContractError, match="pass one at a time"):
        zoo.load_transform(NAME)(np.stack([scan(), scan()]))


def ct(padding=-1000.0):
    """A CT: air, soft tissue, some bone; around its round field of view what `padding` says."""
    rng = np.random.default_rng(0)
    hu = rng.normal(-1000, 10, (24, 24, 12))
    hu[5:-5, 5:-5] = rng.normal(40, 30, (14, 14, 12))
    hu[8:11, 8:11] = rng.normal(700, 100, (3, 3, 12))
    hu[:2], hu[-2:] = padding, padding
    return hu.astype(np.float32)


def test_padding_of_a_ct_is_warned_of(caplog):
    """It takes most of the range, from which the body's contrast goes; a CT without is passed in silence."""
    zoo.load_transform(NAME)(ct())
    assert warnings(caplog) == []
    made = zoo.load_transform(NAME)(ct(-3024))
    assert ["a CT with padding" in w and "numpy.maximum(values, -1024)" in w for w in warnings(caplog)] == [True]
    np.testing.assert_allclose(made[0].numpy(), scaled(ct(-3024)), atol=1e-6)  # the authors' function all the same


def test_a_few_extreme_values_are_warned_of(caplog):
    """They leave the others little contrast; what they are worth is not for us to say."""
    values = scan((40, 40, 30))
    for shift in (0, -5000, 5000):  # where a scale begins changes nothing
        zoo.load_transform(NAME)(values + shift)
    assert warnings(caplog) == []
    values[0, 0, 0] = 60_000
    zoo.load_transform(NAME)(values)
    assert ["nearly all of them from" in w and "numpy.clip" in w for w in warnings(caplog)] == [True]


def test_doctor_says_what_the_network_would_get(tmp_path):
    """Shape and range of the transform's output, and that axes and voxels stay."""
    nibabel.save(nibabel.Nifti1Image(scan(), AFFINE), tmp_path / "mr.nii")
    found = examine(tmp_path / "mr.nii", NAME)
    assert (found.fits, found.warnings, found.gives) == (True, (), "float32 (1, 20, 18, 12), 0 to 1")
    facts = {fact.what: (fact.found, fact.expected) for fact in found.facts}
    assert facts["axes to"] == ("LAS", "as they are")
    assert facts["size of a voxel in mm"] == ("0.8 x 0.9 x 3", "as they are")
    assert facts["values"][1] == "intensities of any scale"
    plain = [f.model for f in find_fits(tmp_path / "mr.nii") if f.examination.fits and not f.examination.warnings]
    assert plain == [f"{NAME}.anatomix"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"value_range": (-1.0, 1.0)}, "always 0 and 1"),
        ({"normalise": "z-score"}, r"'z-score' mean nothing for a volume in 'intensities of any scale'"),
        ({"normalise": None}, "normalise='min-max'"),
        ({"units": "HU", "orientation": "RAS"}, r"'min-max' mean nothing for a volume in 'HU'"),
        ({"mean": (0.5,)}, "'mean'"),
    ],
)
def test_a_contract_that_contradicts_itself_is_an_error(change, said):
    """As of a header that anybody may write."""
    with pytest.raises(OptionError, match=said):
        build_transform(replace(zoo.load_transform(NAME).preprocessing, **change))


def test_a_header_may_ask_for_a_window():
    """Values are clipped before they are scaled, by the range that is left."""
    facts = replace(zoo.load_transform(NAME).preprocessing, window=(-100.0, 500.0))
    made = build_transform(facts)(scan())
    np.testing.assert_allclose(made[0].numpy(), scaled(scan().clip(-100, 500)), atol=1e-6)
    assert "clip to [-100, 500]" in str(build_transform(facts))
    with pytest.raises(InputContractError, match="constant, 0 everywhere: it has no range"):
        build_transform(replace(facts, window=(5000.0, 6000.0)))(scan())
