"""What a volume is before its values count: its modality, no labels, its own place, the order of its axes."""

import logging
from dataclasses import replace

import nibabel
import numpy as np
import pytest
import torch
from brains import SIZE, SMALL, brain, image
from scipy import ndimage

from zoo.entry import Preprocessing
from zoo.errors import InputContractError
from zoo.images.meta_tensors import affine_of
from zoo.images.volumes import Volume, read_volume
from zoo.registry import get_entry
from zoo.transforms.image import build_transform
from zoo.transforms.kinds import check_intent, check_kind, check_labels

MRI = get_entry("glcl-unet").preprocessing
CT = get_entry("monai-ssl-unetr").preprocessing
HEART = np.diag([-1.4, -1.4, 8.0, 1.0])
RNG = np.random.default_rng(0)
SHAPE = (64, 64, 8)


def heart():
    """Return whole numbers as a scanner writes them, with noise and a background."""
    x, y = np.indices(SHAPE)[:2] - 32
    return np.rint(30 + 300 * (np.hypot(x, y) < 20) + RNG.normal(0, 8, SHAPE)).clip(0)


def volume(values, affine=HEART, **facts):
    """Return a volume of these values."""
    return Volume(np.float32(values), affine, 1, "scan", **facts)


# Modality


@pytest.mark.parametrize(
    ("facts", "modality", "is_right"),
    [(MRI, "MR", True), (MRI, "CT", False), (MRI, "", True), (CT, "MR", False), (CT, "PT", False), (CT, "CT", True)],
)
def test_a_series_is_of_the_modality_that_the_network_knows(facts, modality, is_right):
    """MR into a CT network, CT into an MR network, or refusing the right one."""
    if is_right:
        check_kind(volume(heart(), modality=modality), facts)
        return
    with pytest.raises(InputContractError, match=f"is of modality {modality}: {facts.modality} is expected"):
        check_kind(volume(heart(), modality=modality), facts)


def test_an_mr_series_becomes_slices_and_a_ct_does_not(caplog):
    """By header, else by values; an MR header speaks for values that look like HU."""
    transform = build_transform(MRI)
    hu = np.where(heart() > 150, 40, -1000) + RNG.normal(0, 10, SHAPE)
    with caplog.at_level(logging.WARNING, "zoo"):
        assert transform(volume(heart(), modality="MR")).shape == (8, 1, 192, 192)
        transform(volume(hu, modality="MR"))
    assert caplog.text == ""
    with pytest.raises(InputContractError, match=r"values like HU, .* as a CT: MRI is expected"):
        transform(volume(hu))
    with pytest.raises(InputContractError, match="modality CT"):
        transform(volume(heart(), modality="CT"))


def test_dicom_is_no_density_map():
    """A raw scan whose values happen to fit."""
    with pytest.raises(InputContractError, match="is DICOM of modality MR, as raw scans come"):
        build_transform(SMALL)(replace(read_volume(image(brain())), modality="MR"))


# Intent


@pytest.mark.parametrize(
    ("intent", "said"),
    [("label", "a label map"), ("z score", "a statistic map"), ("t test", "a statistic map"),
     ("p value", "a statistic map"), ("estimate", "not an image"), ("vector", "not an image"),
     ("displacement vector", "not an image")],
)  # fmt: skip
@pytest.mark.parametrize("name", ["glcl-unet", "monai-ssl-unetr", "drasclr-cnn3d", "yaware-densenet121"])
def test_what_the_header_calls_no_image_is_none(tmp_path, intent, said, name):
    """Labels and statistics that become an input, of files and of images."""
    if (intent, name) == ("estimate", "yaware-densenet121"):
        pytest.skip("a density is an estimate")
    made = nibabel.Nifti1Image(np.float32(heart()), HEART)
    made.header.set_intent(intent, allow_unknown=True)
    nibabel.save(made, tmp_path / "map.nii.gz")
    for given in (made, tmp_path / "map.nii.gz"):
        with pytest.raises(InputContractError, match=f"is {said}: its NIfTI header has the intent"):
            build_transform(get_entry(name).preprocessing)(given)


def test_other_intents_say_nothing():
    """Refusing an image whose header has no intent, or that of a density where one is due."""
    for intent in (0, 1, 1011, 2001, 4000):
        check_intent(intent, "scan")
    check_intent(1001, "map", estimates=True)


# Labels by their look


def atlas(regions, block):
    """Return a map of cubes of whole labels."""
    labels = RNG.integers(1, regions, [-(-n // b) for n, b in zip(SHAPE, block, strict=True)])
    for axis, size in enumerate(block):
        labels = labels.repeat(size, axis)
    return labels[tuple(map(slice, SHAPE))]


@pytest.mark.parametrize("block", [(8, 8, 1), (16, 16, 4), (12, 9, 8)])
@pytest.mark.parametrize("regions", [100, 3000])
def test_an_atlas_without_an_intent_is_refused(block, regions):
    """More labels than the sixteen values that a mask has at most."""
    with pytest.raises(InputContractError, match="as in a label map: an image is expected"):
        build_transform(MRI)(volume(atlas(regions, block)))


@pytest.mark.parametrize("scale", [lambda v: v * 0.5, lambda v: v / 300, lambda v: v - 150, lambda v: v + 0.1])
def test_an_atlas_that_was_scaled_or_shifted_is_one_still(scale):
    """Fractions and negative values are no sign of an image: neighbours of one value are what a label map has."""
    with pytest.raises(InputContractError, match="as in a label map"):
        check_labels(volume(scale(atlas(300, (12, 9, 8)).astype(np.float32))))


def test_a_background_of_any_value_is_no_region():
    """That of an image whose mean was taken off is below 0, and alike all the same."""
    image = RNG.normal(100, 20, SHAPE)
    image[:, : SHAPE[1] // 2] = -70.5
    assert check_labels(volume(image)) == []


def test_small_regions_are_said():
    """Where it may be either."""
    assert "as in a label map" in check_labels(volume(atlas(100, (4, 4, 1))))[0]


@pytest.mark.parametrize(
    "values",
    [
        heart(),
        np.where(heart() < 100, 0, heart()),  # background cut off
        heart().clip(0, 255) * 0 + np.where(heart() > 150, 255, np.rint(RNG.normal(100, 6, SHAPE))),  # clipped above
        heart()[::2, ::2].repeat(2, 0).repeat(2, 1),  # pixels doubled
        np.rint(ndimage.gaussian_filter(heart(), (6, 6, 0)) / 4),  # smooth, few grey levels
        heart() / 7,  # no whole numbers
        -heart(),
    ],
)
def test_an_image_is_no_label_map(values):
    """Refusing, or doubting, images with an empty background, clipped, magnified, smooth, scaled."""
    assert check_labels(volume(values)) == []


# MONAI's tensors


def meta_tensor(affine=None, **meta):
    """Return a MetaTensor of a CT."""
    kind = pytest.importorskip("monai.data.meta_tensor").MetaTensor
    values = torch.from_numpy(np.float32(np.where(heart() > 150, 40, -1000)))[None]
    made = kind(values, affine=None if affine is None else torch.as_tensor(affine))
    made.meta.update(meta)
    return made


EXCHANGED = np.eye(4)[[1, 0, 2, 3]]
TAGS = {"00280010": {}, "00280030": {}}
PLACED = TAGS | {"00200032": {}, "00200037": {}}


@pytest.mark.parametrize(
    ("affine", "meta"),
    [
        (None, {}),  # of an array
        (np.eye(4), {}),
        (np.eye(4), {"filename_or_obj": "a.npy"}),
        (np.diag([2.0, 2, 2, 1]), {"filename_or_obj": "a.npz"}),  # resampled from one
        (np.eye(4), {"filename_or_obj": "a.png", "original_affine": np.eye(4)}),
        (np.diag([2.0, 2, 2, 1]), {"filename_or_obj": "series", "original_affine": np.eye(4)}),
        (EXCHANGED, {"filename_or_obj": "a.dcm", "original_affine": EXCHANGED, "spacing": (0.7, 0.7), **TAGS}),
        (np.diag([-2.0, 2, 2, 1]), {"filename_or_obj": "a.nii", "sform_code": 0, "qform_code": 0}),
    ],
)
def test_an_affine_that_monai_makes_up_is_no_place(affine, meta):
    """1 mm, axes to the right, front and top, of a tensor that never had a place."""
    for name in ("monai-ssl-unetr", "drasclr-cnn3d"):
        with pytest.raises(InputContractError, match="the identity that MONAI fills in where no file gives one"):
            build_transform(get_entry(name).preprocessing)(meta_tensor(affine, **meta))


@pytest.mark.parametrize(
    ("affine", "meta"),
    [
        (np.eye(4), {"filename_or_obj": "a.nii.gz", "sform_code": 1, "qform_code": 0, "original_affine": np.eye(4)}),
        (np.eye(4), {"filename_or_obj": "a.nii", "sform_code": 0, "qform_code": 1, "original_affine": np.eye(4)}),
        (np.eye(4), {"filename_or_obj": "a.nrrd", "original_affine": np.eye(4)}),
        (np.eye(4), {"filename_or_obj": "a.nii", "original_affine": np.diag([-0.7, -0.7, 2, 1])}),  # resampled
        (np.eye(4), {"filename_or_obj": "series", "original_affine": np.eye(4), **PLACED}),
        (HEART, {}),  # of its user
    ],
)
def test_an_affine_of_a_file_or_of_the_user_counts(affine, meta):
    """Refusing files of 1 mm, resampled ones, and what a user wrote in."""
    assert np.array_equal(affine_of(meta_tensor(affine, **meta), "it"), affine)


def test_a_made_up_affine_stays_made_up_after_a_transform():
    """MONAI's Spacing or Flip makes another matrix of the identity that it gave an array; no file speaks for it."""
    changed = meta_tensor(np.diag([2.0, 2.0, 2.0, 1.0]))
    changed.applied_operations = [{"class": "Spacing"}]
    with pytest.raises(InputContractError, match="its affine may be the identity that MONAI fills in"):
        affine_of(changed, "it")


def test_an_affine_of_a_plane_is_none_of_a_volume():
    """3 x 3 numbers, as of a picture: a sentence, no traceback."""
    with pytest.raises(InputContractError, match=r"an affine of \(3, 3\): 4 x 4 numbers are expected"):
        affine_of(meta_tensor(np.eye(3)), "it")


def test_an_affine_in_lps_is_turned_to_ras():
    """MONAI read with `affine_lps_to_ras=False`: left and right, front and back exchanged."""
    found = affine_of(meta_tensor(np.diag([0.7, 0.7, 2, 1]), space="LPS"), "it")
    assert np.array_equal(found, np.diag([-0.7, -0.7, 2, 1]))


def test_arrays_of_the_networks_grid_may_still_be_tensors():
    """The way out that the message names."""
    tensor = pytest.importorskip("monai.data.meta_tensor").MetaTensor(torch.from_numpy(brain()))
    with pytest.raises(InputContractError, match="as_tensor"):
        build_transform(SMALL)(tensor)
    assert torch.equal(build_transform(SMALL)(tensor.as_tensor()), build_transform(SMALL)(brain()))


def test_what_monai_reads_lies_where_its_file_does(tmp_path):
    """The real reader: a file of 1 mm with and without its place, an array."""
    load = pytest.importorskip("monai.transforms").LoadImage(image_only=True, ensure_channel_first=True)
    values = np.float32(np.where(heart() > 150, 40, -1000))
    np.save(tmp_path / "a.npy", values)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "placed.nii")
    nibabel.save(nibabel.Nifti1Image(values, None), tmp_path / "lost.nii")
    assert np.array_equal(read_volume(load(tmp_path / "placed.nii")).affine, np.eye(4))
    for name in ("a.npy", "lost.nii"):
        with pytest.raises(InputContractError, match="that MONAI fills in"):
            read_volume(load(tmp_path / name))


# The order of axes

CUBE = replace(SMALL, size=(25, 29, 25), affine=((-7.5, 0, 0, 90), *SMALL.affine[1:]))


def symmetric(noise=0.0, shift=0):
    """Return a density map on CUBE that is its own mirror image from left to right, as far as a brain is one."""
    x, y, z = np.indices(CUBE.size) - np.array([12, 14, 9])[:, None, None, None]
    head = (x / 8) ** 2 + (y / 10) ** 2 + (z / 8) ** 2 < 1
    folds = (0.7 + 0.3 * np.cos(abs(x) / 2) * np.sin(y / 3)) * (z > -4 + abs(y) / 3)
    values = head * folds * np.exp(RNG.normal(0, noise, CUBE.size))
    return np.roll(values, shift, 0).astype(np.float32).clip(0, 3)


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_an_array_of_simpleitk_is_noticed_by_its_symmetry(tmp_path, noise):
    """(z, y, x) on a grid that is its own transpose: as array, tensor, file of either kind."""
    transform, right = build_transform(CUBE), symmetric(noise)
    swapped = np.ascontiguousarray(right.transpose(2, 1, 0))
    np.save(tmp_path / "map.npy", swapped)
    affine = np.array(CUBE.affine)
    for wrong in (swapped, swapped[None], torch.from_numpy(swapped), tmp_path / "map.npy", image(swapped, affine)):
        with pytest.raises(InputContractError, match=r"its axes are \(z, y, x\), as SimpleITK has them"):
            transform(wrong)
    assert torch.equal(transform(right), transform(image(right, affine)))


@pytest.mark.parametrize("values", [symmetric(shift=1), symmetric(0.8), 0.3 * RNG.random(CUBE.size), symmetric() > 0.2])
def test_brains_in_the_right_order_pass(values):
    """Refusing what is shifted, noisy, mere noise, a mask."""
    assert build_transform(CUBE)(np.float32(values)).shape == (1, *CUBE.size)


@pytest.mark.slow
@pytest.mark.parametrize("part", [np.s_[:60], np.s_[60:], np.s_[:, :70], np.s_[:, :, :60], np.s_[30:60, 40:90, 40:80]])
def test_the_atlas_itself_passes_with_any_part_missing(part):
    """Grey matter of ICBM152: whole, a hemisphere, a half, a lesion, smoothed, turned; not when swapped."""
    facts = get_entry("yaware-densenet121").preprocessing
    whole = _atlas(facts)
    transform = build_transform(replace(facts, normalise=None))
    with_hole = whole.copy()
    with_hole[part] = 0
    smooth = ndimage.gaussian_filter(with_hole, 3)
    turned = ndimage.rotate(with_hole, 8, axes=(0, 2), reshape=False, order=1).clip(0)
    for brain_ in (with_hole, smooth, turned):
        transform(brain_)
    with pytest.raises(InputContractError, match="SimpleITK"):
        transform(np.ascontiguousarray(whole.transpose(2, 1, 0)))


@pytest.mark.slow
@pytest.mark.parametrize("shift", [0, 3, 6, -5])
def test_a_brain_off_the_centre_of_its_grid_is_told_by_its_own_centre(shift, caplog):
    """4.5 and 9 mm to one side: silent in the right order, refused in the order of SimpleITK."""
    facts = get_entry("yaware-densenet121").preprocessing
    transform, moved = build_transform(facts), np.roll(_atlas(facts), shift, 0)
    transform(moved)
    assert "cannot be told" not in caplog.text
    with pytest.raises(InputContractError, match="SimpleITK"):
        transform(np.ascontiguousarray(moved.transpose(2, 1, 0)))


def test_an_outline_alike_above_and_below_does_not_hide_the_order():
    """About its own centre an ellipsoid is its mirror image along every axis; at the grid's it is not."""
    facts = get_entry("yaware-densenet121").preprocessing
    x, y, z = np.indices(facts.size) - np.array([60, 72, 60])[:, None, None, None]
    head = (x / 45) ** 2 + ((y + 5) / 55) ** 2 + ((z - 8) / 35) ** 2 < 1
    values = np.float32(head * (0.5 + 0.3 * np.sin(y / 9) * np.cos(abs(x) / 7)) * (z > -25 + abs(y) / 4))
    build_transform(facts)(values)
    with pytest.raises(InputContractError, match="SimpleITK"):
        build_transform(facts)(np.ascontiguousarray(values.transpose(2, 1, 0)))


@pytest.mark.slow
@pytest.mark.parametrize("turned", [False, True])
def test_an_order_that_cannot_be_told_is_said(turned, caplog):
    """One hemisphere, or a head tilted by 15 degrees, is no mirror image along any axis: a warning, swapped or not."""
    facts = get_entry("yaware-densenet121").preprocessing
    half = _atlas(facts)
    if turned:
        half = ndimage.rotate(half, 15, axes=(0, 2), reshape=False, order=1).clip(0)
    else:
        half[:60] = 0
    for values in (half, half.transpose(2, 1, 0)):
        caplog.clear()
        build_transform(facts)(np.ascontiguousarray(values))
        assert "(x, y, z), as expected, or (z, y, x), as SimpleITK has them, cannot be told" in caplog.text


def _atlas(facts):
    datasets = pytest.importorskip("nilearn.datasets")
    return np.asarray(_on_grid(datasets.load_mni152_gm_template(resolution=2), facts))


def _on_grid(template, facts):
    from nibabel.processing import resample_from_to

    return np.float32(resample_from_to(template, (facts.size, np.array(facts.affine)), order=1).get_fdata()).clip(0)


def test_a_grid_of_another_shape_is_not_looked_at():
    """The shape tells there, and a cohort's grid is its own."""
    assert SIZE[0] != SIZE[2]
    build_transform(SMALL)(brain())
    build_transform(Preprocessing(("d",), CUBE.size, units=SMALL.units, value_range=(0.0, 3.0)))(
        np.ascontiguousarray(symmetric().transpose(2, 1, 0))
    )
