"""DrasCLR's preprocessing: a chest of known geometry, seen through a known affine map, in every kind of grid."""

import json
import logging
import os
import re
import shutil
import tracemalloc
from contextlib import contextmanager
from functools import partial
from pathlib import Path

os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = "1"  # before ITK is loaded

import nibabel
import numpy as np
import pydicom
import pytest
import torch
from dicom_files import new_uid
from nibabel.affines import apply_affine
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from scipy import ndimage

from zoo.checkpoint.export import export_safetensors
from zoo.entries.drasclr import dense
from zoo.entries.drasclr.cohort import read_subjects
from zoo.entries.drasclr.ct import fast as fast_module
from zoo.entries.drasclr.ct import lungs as lungs_module
from zoo.entries.drasclr.ct import registration as registration_module
from zoo.entries.drasclr.ct.boxes import check_atlas, cut, locate
from zoo.entries.drasclr.ct.lung_masks import check_lungs, place_lungs, read_lungs
from zoo.entries.drasclr.ct.lungs import by_lungmask, by_threshold, choose_segmenter
from zoo.entries.drasclr.ct.patient import preprocess_ct
from zoo.entries.drasclr.ct.registration import Affine, check_overlap, choose_engine, overlap, register
from zoo.entries.drasclr.ct.scan import PAD, Scan, place_scan, to_millimetres
from zoo.entries.drasclr.model import DrasCLREncoder
from zoo.entries.drasclr.preprocess import main
from zoo.errors import InputContractError, IntegrityError, OfflineError, OptionError
from zoo.fetching.cache import hash_file
from zoo.images.volumes import read_volume
from zoo.training.args import run_command

RIGHT, LEFT = ((37, 0, -8), (28, 42, 66)), ((-35, 0, -8), (26, 40, 62))  # centre and half axes in mm: unequal lungs
HEART = ((-12, 12, -20), (24, 22, 22))
ATLAS_AFFINE = np.array([[-4.0, 0, 0, 82], [0, 4.0, 0, -66], [0, 0, 4.0, -66], [0, 0, 0, 1]])  # axes as the authors'
ATLAS_SHAPE = (42, 34, 34)
LANDMARKS = np.array([(2, 1, 0), (8, 2, 1), (9, 0, 2), (3, 2, 2), (10, 1, 1)])
"""Few, where the boxes of the coarse grid of this atlas end inside it."""
INDICES = np.moveaxis(np.indices(ATLAS_SHAPE), 0, -1)
INNER = (46, 38, 42)
"""Half of a smaller scan, in mm, in which the boxes of these landmarks lie."""
INNER_LANDMARKS = np.array([(14, 12, 12), (18, 13, 15), (16, 14, 13)])
ORIENTATIONS = ("LPS", "RAS", "LAI", "LAS", "SAR", "PIR")


def true_map():
    """From the atlas to the patient: turned, larger, and elsewhere, each axis otherwise."""
    about_z, about_x = np.deg2rad((5, -4))
    turn_z = [[np.cos(about_z), -np.sin(about_z), 0], [np.sin(about_z), np.cos(about_z), 0], [0, 0, 1]]
    turn_x = [[1, 0, 0], [0, np.cos(about_x), -np.sin(about_x)], [0, np.sin(about_x), np.cos(about_x)]]
    found = np.eye(4)
    found[:3, :3] = np.array(turn_z) @ turn_x @ np.diag((1.04, 0.96, 1.08))
    found[:3, 3] = 15, -120, 400
    return found


TRUE = Affine(true_map(), "given")


def ellipsoid(points, centre, half):
    """Where points (..., 3) lie in an ellipsoid."""
    return (((points - centre) / half) ** 2).sum(-1) <= 1


def labels_at(points):
    """1 in the right and 2 in the left lung, at points of the atlas: cut off by the heart and a slanting diaphragm."""
    is_free = (points[..., 2] > 0.5 * points[..., 1] - 36) & ~ellipsoid(points, *HEART)
    return (is_free * (ellipsoid(points, *RIGHT) + 2 * ellipsoid(points, *LEFT))).astype(np.uint8)


def chest_at(points):
    """HU at points of the atlas: a body, lungs that get denser to the back, a vessel in the right one, a windpipe."""
    body = ellipsoid(points * (1, 1, 0), (0, 0, 0), (78, 58, 1))
    found = np.where(body, 40.0, -1000.0)
    found[labels_at(points) > 0] = -830
    found -= np.where(labels_at(points) > 0, points[..., 1], 0)
    found[ellipsoid(points * (1, 1, 0), (36, 5, 0), (5, 5, 1)) & (labels_at(points) == 1)] = 30
    found[ellipsoid(points * (1, 1, 0), (0, -15, 0), (6, 6, 1)) & (points[..., 2] > 15)] = -990
    return found


def upright(spacing=(4.0, 4.0, 4.0), half=(86, 68, 74), codes="RAS"):
    """Shape and affine of a patient's grid, axes in the order and direction of `codes`."""
    shape = tuple(int(2 * h / s) for h, s in zip(half, spacing, strict=True))
    affine = np.diag((*spacing, 1.0))
    affine[:3, 3] = TRUE([(0, 0, 0)])[0] - half
    turn = nibabel.orientations.ornt_transform(
        nibabel.orientations.axcodes2ornt("RAS"), nibabel.orientations.axcodes2ornt(codes)
    )
    turned = nibabel.orientations.apply_orientation(np.zeros(shape, np.uint8), turn)
    return turned.shape, affine @ nibabel.orientations.inv_ornt_aff(turn, shape)


def patient(at=chest_at, shape=None, affine=None, dtype=np.int16):
    """An image of what lies in the patient, where `at` says what lies in the atlas."""
    if affine is None:
        shape, affine = upright()
    to_atlas = np.linalg.inv(TRUE.matrix) @ affine
    values = at(apply_affine(to_atlas, np.moveaxis(np.indices(shape), 0, -1)))
    return image(values.astype(dtype), affine)


def image(values, affine):
    """A NIfTI that says where it lies."""
    made = nibabel.Nifti1Image(values, affine)
    made.set_sform(affine, code=1)
    made.set_qform(affine, code=1)
    return made


def atlas(finer=1):
    """The mask of the atlas, in voxels of 4 mm or finer ones."""
    affine = ATLAS_AFFINE @ np.diag((1 / finer, 1 / finer, 1 / finer, 1))
    points = apply_affine(affine, np.moveaxis(np.indices([round(n * finer) for n in ATLAS_SHAPE]), 0, -1))
    return image((labels_at(points) * 50).astype(np.int16), affine)


def scan_of(made, atlas_affine=ATLAS_AFFINE):
    """A CT as the steps after reading have it."""
    return place_scan(read_volume(made), atlas_affine)


def dice(a, b):
    """Of two masks."""
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def world_of(indices, grid):
    """Where corners of boxes lie."""
    return apply_affine(grid.affine, indices)


# Geometry under a known map


@pytest.fixture(scope="module")
def turned():
    """A part of the chest in every orientation of its voxels: the grid of 1 mm, and where boxes begin in it."""
    grids = [to_millimetres(scan_of(patient(chest_at, *upright((4.0, 3.0, 4.5), INNER, c)))) for c in ORIENTATIONS]
    return [(grid, locate(INNER_LANDMARKS, ATLAS_AFFINE, TRUE, grid)) for grid in grids]


def test_landmarks_land_on_the_nearest_voxel(turned):
    """Whatever the order and direction of the CT's axes, half a voxel off at most along each axis."""
    expected = TRUE(apply_affine(ATLAS_AFFINE, INNER_LANDMARKS))
    for grid, indices in turned:
        assert np.abs(world_of(indices, grid) - expected).max() <= 0.5 + 1e-4
        assert nibabel.aff2axcodes(grid.affine) == ("L", "A", "S")


def test_patches_do_not_depend_on_the_order_of_the_voxels(turned):
    """To the last bit: turning a file moves nothing, and the patches' axes are the atlas'."""
    first, *others = [cut(grid, indices) for grid, indices in turned]
    assert all(np.array_equal(patches, first) for patches in others)
    assert np.ptp(first) > 500


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_patches_show_what_lies_at_their_landmarks(axis):
    """A CT whose HU are a coordinate says where a voxel was cut: axes (z, y, x), which run to the top, front and left.

    A cubic spline gives back a ramp. What is left is half a voxel of the nearest index, 2 HU, and twice a whole number.
    """
    origin = TRUE([(0, 0, 0)])[0, axis]
    made = patient(lambda points: 4 * (TRUE(points)[..., axis] - origin) - 400, *upright(half=INNER))
    grid = to_millimetres(scan_of(made))
    patches = cut(grid, locate(INNER_LANDMARKS, ATLAS_AFFINE, TRUE, grid))
    corners = TRUE(apply_affine(ATLAS_AFFINE, INNER_LANDMARKS))[:, axis]
    z, y, x = np.indices((32, 32, 32))
    expected = 4 * (corners[:, None, None, None] + (-x, y, z)[axis] - origin) - 400
    assert (patches.shape, patches.dtype) == ((3, 32, 32, 32), np.int16)
    assert np.abs(patches - expected).max() <= 4


def test_the_third_axis_is_a_voxel_shorter():
    """Sizes as the authors have them, before 60 voxels are put on either side: int(n s), int(n s), int((n - 1) s)."""
    scan = scan_of(
        image(chest_at(np.zeros((30, 41, 22, 3))) - np.indices((30, 41, 22))[0] * 50, np.diag((0.7, 0.8, 2.5, 1)))
    )
    assert np.subtract(to_millimetres(scan).values.shape, 2 * PAD).tolist() == [21, 32, 52]


def test_values_are_clipped_after_the_spline():
    """Against SciPy's cubic spline of the values as they are; bone and air beyond the window would tell."""
    rng = np.random.default_rng(0)
    values = rng.choice([-1000, -900, 40, 1500], size=(14, 12, 11)).astype(np.int16)
    scan = scan_of(image(values, np.diag((-2.0, 2.0, 2.0, 1))))
    found = to_millimetres(scan).values[PAD:-PAD, PAD:-PAD, PAD:-PAD]
    places = np.indices(found.shape) / 2
    spline = ndimage.map_coordinates(values.astype(float), places, order=3, mode="mirror")
    inside = tuple(slice(0, n - 1) for n in found.shape)  # the last voxel lies beyond the last of the CT
    assert spline.min() < -1200
    assert spline.max() > 400
    assert np.abs(found - spline.clip(-1024, 240))[inside].max() <= 1.01  # whole numbers, the fraction cut off
    before = ndimage.map_coordinates(values.clip(-1024, 240).astype(float), places, order=3, mode="mirror")
    assert np.abs(before - spline.clip(-1024, 240)).max() > 100


@pytest.fixture(scope="module")
def grid():
    """The patient's CT in voxels of 1 mm."""
    return to_millimetres(scan_of(patient()))


def test_boxes_may_reach_into_the_padding(grid):
    """60 voxels of -1024, counted before the landmarks are looked up."""
    first = world_of(np.array([[PAD, PAD, PAD]]), grid)[0]
    assert np.allclose(first, scan_of(patient()).affine[:3, 3], atol=1e-4)
    assert (grid.values[:PAD] == -1024).all()
    assert (grid.values[:, :, -PAD:] == -1024).all()
    assert (grid.values[PAD:-PAD, PAD:-PAD, PAD:-PAD] > -1024).any()


def test_landmarks_can_be_mapped_by_their_centres():
    """Then the box's centre is where the map puts the centre; by the corner it is up to some millimetres off."""
    grid = to_millimetres(scan_of(patient(chest_at, *upright(half=INNER))))
    larger = Affine(grid.affine @ np.diag((1.3, 1.2, 1.1, 1)), "given")
    landmarks, half = np.array([[10, 20, 30]]), np.full((1, 3), 15.5)
    centre = larger(landmarks + half)
    ours = world_of(locate(landmarks, np.eye(4), larger, grid, "centre") + half, grid)
    theirs = world_of(locate(landmarks, np.eye(4), larger, grid) + half, grid)
    assert np.abs(ours - centre).max() <= 0.5 + 1e-6
    assert np.abs(np.abs(theirs - centre) - 15.5 * np.array([0.3, 0.2, 0.1])).max() <= 0.5 + 1e-6


def test_points_between_two_voxels_go_to_the_upper_one():
    """As ITK rounds, not to the even one of the two; in voxels of 1 mm half of the landmarks' grid lies so."""
    grid = Scan(np.zeros((60, 60, 60), np.int16), np.eye(4), "grid")
    half_a_voxel = Affine(np.eye(4) + 0.5 * np.eye(4, k=3), "given")  # along the first axis
    landmarks = np.array([[10, 5, 7], [11, 5, 7], [12, 5, 7]])
    found = locate(landmarks, np.eye(4), half_a_voxel, grid)
    assert found.tolist() == [[11, 5, 7], [12, 5, 7], [13, 5, 7]]
    below = Affine(np.eye(4) + -0.5 * np.eye(4, k=3), "given")
    assert locate(np.array([[0, 0, 0]]), np.eye(4), below, grid).tolist() == [[0, 0, 0]]


def test_boxes_outside_are_counted_by_side(grid):
    """With the number of patches and the side of the patient."""
    up = Affine(np.array([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 190], [0, 0, 0, 1]]) @ TRUE.matrix, "given")
    with pytest.raises(InputContractError, match=r"5 of 5 patches do not lie in .*: 5 beyond the top\. A scan of both"):
        locate(LANDMARKS, ATLAS_AFFINE, up, grid)
    left = Affine(np.array([[1.0, 0, 0, -185], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]) @ TRUE.matrix, "given")
    with pytest.raises(InputContractError, match=r"of 5 patches do not lie in .*: \d beyond the left\."):
        locate(LANDMARKS, ATLAS_AFFINE, left, grid)


@pytest.mark.parametrize("given", [{}, {"landmarks": LANDMARKS}], ids=["landmarks", "mask"])
def test_the_atlas_comes_from_the_cache_that_is_named(given, tmp_path, monkeypatch):
    """Either of its files that is not given."""
    monkeypatch.setenv("ZOO_OFFLINE", "1")
    with pytest.raises(OfflineError, match=f"by hand at {tmp_path / 'cache'}"):
        preprocess_ct("ct.nii.gz", cache_dir=tmp_path / "cache", **given)


def test_landmarks_and_mask_are_of_one_atlas():
    """Landmarks beyond the grid of the mask, and masks with other values, are refused."""
    check_atlas(LANDMARKS, atlas())
    with pytest.raises(InputContractError, match=r"do not lie in the atlas' grid \(42, 34, 34\)"):
        check_atlas(LANDMARKS + np.array([0, 0, 1]), atlas())
    with pytest.raises(InputContractError, match=r"holds \[0, 1\]: 0, 50 \(right\) and 100"):
        check_atlas(LANDMARKS, image((np.asarray(atlas().dataobj) > 0).astype(np.int16), ATLAS_AFFINE))


# Reading


def _with_metal(points):
    return np.where(ellipsoid(points, (0, 0, 0), (5, 5, 5)), 40000, chest_at(points))


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: patient(lambda p: (chest_at(p) + 1000) / 5, dtype=np.uint8), "HU are expected, where air is -1000"),
        (lambda: patient(lambda p: np.where(p[..., 0] > 80, np.nan, chest_at(p)), dtype=np.float32), "NaN or infinite"),
        (lambda: patient(lambda p: chest_at(p) * 40, dtype=np.int32), "HU are expected, where air is -1000"),
        (lambda: patient(_with_metal, dtype=np.int32), r"from -10\d+ to 40000, which do not fit int16"),
        (lambda: patient(chest_at, *upright((4, 4, 5.5))), r"voxels of 4 x 4 x 5.5 mm: at most 5 mm are expected"),
        (lambda: np.asarray(patient().dataobj), "without the size and direction of its voxels"),
        (
            lambda: image(
                np.asarray(patient().dataobj), upright()[1] @ [[1, 0, 0, 0], [0, 1, 0.2, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
            ),
            "tilted gantry",
        ),
    ],
    ids=["0-255", "nan", "scaled", "overflow", "thick", "array", "tilted"],
)
def test_what_is_no_ct_is_refused(made, message):
    """Before anything is segmented."""
    with pytest.raises(InputContractError, match=message):
        preprocess_ct(made(), landmarks=LANDMARKS, atlas_mask=atlas(), segmenter="threshold")


def test_thick_slices_are_logged(caplog):
    """Up to 5 mm, and only where the voxels are more than twice those the network knows."""
    with caplog.at_level(logging.WARNING, "zoo"):
        scan_of(patient(chest_at, *upright((4, 4, 5))))
    assert "voxels of 4 x 4 x 5 mm, far from the 1 x 1 x 1 mm" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, "zoo"):
        scan_of(patient(chest_at, (40, 40, 30), upright((1, 1, 2))[1]))
    assert caplog.text == ""


def write_series(folder, made):
    """A CT as DICOM slices, from an image whose axes run to the left, back and top."""
    folder.mkdir()
    values, affine = np.asarray(made.dataobj), np.diag((-1.0, -1.0, 1.0, 1.0)) @ made.affine
    series = new_uid()
    for index in range(values.shape[2]):
        plane = pydicom.Dataset()
        plane.file_meta = FileMetaDataset()
        plane.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        plane.SOPClassUID, plane.SOPInstanceUID, plane.SeriesInstanceUID = CTImageStorage, new_uid(), series
        plane.Modality, plane.PixelSpacing = "CT", [affine[1, 1], affine[0, 0]]
        plane.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        plane.ImagePositionPatient = [round(float(x), 6) for x in (affine @ (0, 0, index, 1))[:3]]
        plane.RescaleSlope, plane.RescaleIntercept = 1, -1024
        plane.Columns, plane.Rows = values.shape[:2]
        plane.SamplesPerPixel, plane.PhotometricInterpretation = 1, "MONOCHROME2"
        plane.BitsAllocated, plane.BitsStored, plane.HighBit, plane.PixelRepresentation = 16, 16, 15, 0
        plane.PixelData = (values[:, :, index].T + 1024).astype("<u2").tobytes()
        plane.save_as(folder / f"{index:03}.dcm", enforce_file_format=True)


def test_a_dicom_series_is_the_same_as_its_nifti(tmp_path):
    """The same voxels at the same places."""
    made = patient(chest_at, *upright(codes="LPS"))
    write_series(tmp_path / "series", made)
    one, other = scan_of(tmp_path / "series"), scan_of(made)
    assert np.array_equal(one.values, other.values)
    assert np.allclose(one.affine, other.affine, atol=1e-4)


# Lungs


@pytest.mark.parametrize("codes", ["LAS", "RPS", "SAR"])
def test_lungs_are_found_by_threshold(codes):
    """Both, each on its side, the vessel in them, the windpipe not; a shell of half a voxel may be missed."""
    shape, affine = upright((3.0, 3.0, 4.0), codes=codes)
    scan = scan_of(patient(chest_at, shape, affine))
    expected = scan_of(patient(lambda points: labels_at(points) * 500.0 - 1000, shape, affine)).values // 500 + 2
    found = by_threshold(scan)
    assert found.dtype == np.uint8
    assert all(dice(found == label, expected == label) > 0.97 for label in (1, 2))
    assert not (found[expected == 0]).any()


@pytest.mark.slow
def test_finer_voxels_are_segmented_on_a_coarser_grid():
    """0.9 mm: the mask has the grid of the CT, and is off by a voxel of 2 mm at most."""
    shape, affine = upright((0.9, 1.3, 4.0), codes="LPS")
    found = by_threshold(scan_of(patient(chest_at, shape, affine)))
    expected = scan_of(patient(lambda points: labels_at(points) * 500.0 - 1000, shape, affine)).values // 500 + 2
    assert found.shape == expected.shape
    assert all(dice(found == label, expected == label) > 0.95 for label in (1, 2))


def test_lungs_that_touch_are_parted():
    """As they do in front of the heart: at the emptiest plane near the middle."""

    def touching(points):
        bridge = (np.abs(points[..., 0]) < 20) & (np.abs(points[..., 1] - 20) < 8) & (np.abs(points[..., 2]) < 12)
        return np.where(bridge, -850, chest_at(points))

    shape, affine = upright((3.0, 3.0, 4.0))
    found = by_threshold(scan_of(patient(touching, shape, affine)))
    expected = scan_of(patient(lambda points: labels_at(points) * 500.0 - 1000, shape, affine)).values // 500 + 2
    assert all(dice(found == label, expected == label) > 0.93 for label in (1, 2))  # the bridge is a part of either


@pytest.mark.parametrize(
    ("missing", "words"), [((2,), "the left lung"), ((1,), "the right lung"), ((1, 2), "the right and the left lung")]
)
def test_a_missing_lung_is_said(missing, words):
    """With what was found of each."""

    def solid(points):
        return np.where(np.isin(labels_at(points), missing), 30, chest_at(points))

    with pytest.raises(
        InputContractError, match=rf"misses {words} \(right \d+ ml, left \d+ ml were found\): at least 100"
    ):
        preprocess_ct(patient(solid), landmarks=LANDMARKS, atlas_mask=atlas(), segmenter="threshold")


def test_a_scan_that_ends_in_a_lung_is_logged(caplog):
    """With the side."""
    mask = patient(labels_at, dtype=np.uint8)
    with caplog.at_level(logging.WARNING, "zoo"):
        check_lungs(mask, "whole")
        check_lungs(mask.slicer[:, :, :28], "cut")
    assert [record.getMessage().split(":")[0] for record in caplog.records] == ["cut ends inside a lung at the top"]


@pytest.mark.slow
def test_volumes_of_the_lungs_are_in_ml():
    """Counted in voxels of 4 mm they are a few percent off those counted in voxels of 1 mm."""
    found = check_lungs(patient(labels_at, dtype=np.uint8), "chest")
    fine = np.bincount(labels_at(np.moveaxis(np.mgrid[-80:80, -60:60, -80:80], 0, -1)).ravel())
    right, left = np.linalg.det(TRUE.matrix[:3, :3]) * fine[1:] / 1000
    assert found == pytest.approx({"right": right, "left": left}, rel=0.03)


def given(values):
    """A mask read beside the patient's CT."""
    made = values if not callable(values) else patient(values, dtype=np.int16)
    return np.asarray(read_lungs(read_volume(made), read_volume(patient())).dataobj)


def test_given_masks_are_taken_in_every_form():
    """1 and 2, 50 and 100, one value, without a place, in other voxels."""
    expected = np.asarray(patient(labels_at, dtype=np.uint8).dataobj)
    assert np.array_equal(given(labels_at), expected)
    assert np.array_equal(given(lambda points: labels_at(points) * 50.0), expected)
    assert np.array_equal(given(lambda points: labels_at(points) > 0), expected)
    assert np.array_equal(given(expected), expected)
    turned = patient(lambda points: labels_at(points) > 0, *upright((3, 3, 3), codes="PIL"), dtype=np.uint8)
    assert check_lungs(read_lungs(read_volume(turned), read_volume(patient())), "turned") == pytest.approx(
        check_lungs(patient(labels_at, dtype=np.uint8), "chest"), rel=0.03
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (lambda p: labels_at(p) * 3.0, r"holds 3, 6: 1 in the right lung and 2 in the left"),
        (lambda p: labels_at(p) * 0.0, "holds 0 alone"),
        (lambda p: labels_at(p - (0, 0, 90)), "does not lie on the lungs of .*: half of the CT in it is above 40 HU"),
        (lambda p: labels_at(p)[:-1], "so it must have the voxels of the CT"),
    ],
    ids=["labels", "empty", "elsewhere", "shape"],
)
def test_masks_that_are_none_of_this_ct_are_refused(values, message):
    """By their values and by what lies under them."""
    made = patient(values, dtype=np.int16)
    made = np.asarray(made.dataobj) if made.shape != patient().shape else made
    with pytest.raises(InputContractError, match=message):
        given(made)


def test_a_mask_of_another_place_is_refused():
    """A mask in the atlas' space is none in the patient's."""
    with pytest.raises(InputContractError, match=r"does not lie on .*: 0% of it is inside"):
        given(atlas())


def test_exchanged_lungs_are_refused():
    """Lungs do not cross: labels or header are mirrored."""
    with pytest.raises(InputContractError, match=r"the lung labelled right lies \d+ mm to the left"):
        check_lungs(patient(lambda points: (3 - labels_at(points)) % 3, dtype=np.uint8), "mirrored")


def test_the_check_of_lungs_takes_no_arrays_of_real_numbers():
    """Real numbers of a CT's size for a lung's centre would be a gigabyte of a scan of 512 x 512 x 300."""
    lungs = patient(labels_at, *upright((2.0, 2.0, 2.0)), dtype=np.uint8)
    voxels = np.asarray(lungs.dataobj).size
    tracemalloc.start()
    check_lungs(lungs, "fine")
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 4 * voxels


@pytest.mark.slow
@pytest.mark.parametrize("codes", ["RAS", "PIR"])
def test_masks_come_to_the_grid_of_1_mm(codes):
    """Each lung where it lies, whatever the mask's axes and voxels; what these lose is a shell of half a voxel."""
    scan = to_millimetres(scan_of(patient(chest_at, *upright(half=INNER))))
    mask = patient(labels_at, *upright((3.0, 4.0, 2.0), codes=codes), dtype=np.int16)
    found = place_lungs(mask, scan)
    assert (found.shape, found.dtype) == (scan.values.shape, np.uint8)
    some = np.random.default_rng(0).integers(0, found.shape, (20_000, 3))
    to_atlas = np.linalg.inv(TRUE.matrix) @ scan.affine
    expected, found = labels_at(apply_affine(to_atlas, some)), found[tuple(some.T)]
    assert min(dice(found == lung, expected == lung) for lung in (1, 2)) > 0.95


# lungmask


@pytest.fixture
def narrow_network(monkeypatch, tmp_path):
    """A lungmask with a narrower U-Net, whose weights make label 1 of HU below -700 and 2 of those up to -375.

    Its file is named by its digest as the published one is.
    """
    pytest.importorskip("lungmask", reason="the extra [drasclr] is not installed")
    import lungmask.mask
    import torch
    from lungmask.resunet import UNet

    narrow = partial(UNet, wf=1)
    state = narrow(n_classes=3, depth=5, padding=True, batch_norm=True, up_mode="upsample").state_dict()
    for name, tensor in state.items():
        tensor.fill_(1.0 if name.endswith("running_var") or (tensor.ndim == 1 and name.endswith("weight")) else 0.0)
    for name in ("down_path.0.block.0", "down_path.0.block.3", "up_path.3.conv_block.block.3"):
        state[f"{name}.weight"][0, 0, 1, 1] = 1
    state["up_path.3.conv_block.block.0.weight"][0, 2, 1, 1] = 1  # the first of what the skip connection brings
    state["last.weight"][:, 0, 0, 0] = torch.tensor([20.0, 0, 10])  # x is (HU + 1024) / 1624
    state["last.bias"][:] = torch.tensor([-6.0, 0, -2])
    torch.save(state, tmp_path / "net.pth")
    file = tmp_path / f"unet-{hash_file(tmp_path / 'net.pth')[:8]}.pth"
    (tmp_path / "net.pth").rename(file)
    monkeypatch.setattr("lungmask.mask.UNet", narrow)
    monkeypatch.setitem(lungmask.mask.MODEL_URLS, "R231", (f"file:{file}", 3))
    return file


@pytest.mark.slow
@pytest.mark.parametrize("codes", ["LPS", "RAS", "SAR"])
def test_lungmask_is_called_with_the_ct_as_it_lies(narrow_network, codes):
    """Its labels come back on the CT's grid, whatever its axes: tissue all around, the left lung denser."""
    shape, affine = upright((4.0, 4.0, 5.0), (86, 68, 30), codes)
    made = patient(lambda points: np.choose(labels_at(points), (40, -850, -550)), shape, affine)
    assert choose_segmenter("auto") == "lungmask"
    found = by_lungmask(scan_of(made))
    expected = scan_of(patient(lambda points: labels_at(points) * 500.0 - 1000, shape, affine)).values // 500 + 2
    assert all(dice(found == label, expected == label) > 0.9 for label in (1, 2))


def test_another_network_is_refused(narrow_network, monkeypatch):
    """A file whose digest is not the one in its name, in the cache or anywhere."""
    import lungmask.mask

    other = narrow_network.with_name("unet-00000000.pth")
    narrow_network.rename(other)
    monkeypatch.setitem(lungmask.mask.MODEL_URLS, "R231", (f"file:{other}", 3))
    with pytest.raises(IntegrityError, match="is not lungmask's network R231: its sha256 begins with"):
        choose_segmenter("auto")


def test_segmenters_without_a_connection(monkeypatch, caplog):
    """The threshold takes over where the choice is left to the package, and says so; lungmask by name is an error."""
    pytest.importorskip("lungmask", reason="the extra [drasclr] is not installed")
    monkeypatch.setenv("ZOO_OFFLINE", "1")
    with caplog.at_level(logging.WARNING, "zoo"):
        assert choose_segmenter("auto") == "threshold"
    assert "segmented by threshold" in caplog.text
    assert "unet_r231-d5d2fc3d.pth" in caplog.text
    with pytest.raises(OfflineError, match="R231"):
        choose_segmenter("lungmask")


def test_segmenters_that_are_not_there(monkeypatch):
    """A name that is none, a package that is not installed."""
    with pytest.raises(OptionError, match="segmenter must be one of auto, lungmask, threshold, not 'otsu'"):
        choose_segmenter("otsu")
    monkeypatch.setattr(lungs_module, "find_spec", lambda name: None)
    assert choose_segmenter("auto") == "threshold"
    with pytest.raises(OptionError, match="pip install"):
        choose_segmenter("lungmask")


# Registration


@contextmanager
def quick_registration():
    """Have the fast registration follow one seed with 4000 samples: enough for masks as coarse as these."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(fast_module, "SEEDS", fast_module.SEEDS[:1])
        patched.setattr(fast_module, "MOST_SAMPLES", 4000)
        yield


def recoded():
    """The patient's lungs with the values of the atlas', in finer slices and other axes."""
    return patient(lambda points: labels_at(points) * 50.0, *upright((4.0, 4.0, 3.0), codes="LPI"))


LUNG_POINTS = apply_affine(ATLAS_AFFINE, np.argwhere(labels_at(apply_affine(ATLAS_AFFINE, INDICES))))
"""Positions in the atlas of the voxels of its lungs."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("registration", "engine"),
    [
        ("fast", "simpleitk"),
        ("published", "simpleitk"),
        ("published", "antspyx"),
    ],
)
def test_registration_finds_the_map(registration, engine):
    """Points of the lungs within 1 mm on average and 2 at most: a quarter and half of a voxel of these masks."""
    pytest.importorskip({"simpleitk": "SimpleITK", "antspyx": "ants"}[engine])
    found = register(atlas(), recoded(), engine, registration=registration)
    off = np.linalg.norm(found(LUNG_POINTS) - TRUE(LUNG_POINTS), axis=1)
    assert found.engine == engine
    assert off.mean() < 1
    assert off.max() < 2
    assert min(overlap(atlas(), recoded(), found).values()) > 0.9


def bent(points):
    """Lungs of another shape than the atlas': each wave moves them by up to 5 mm, which no affine map undoes."""
    return labels_at(points + 5 * np.sin(points[..., [1, 2, 0]] / 30)) * 50.0


@pytest.mark.slow
def test_both_registrations_put_the_landmarks_within_a_voxel(monkeypatch):
    """Of lungs of another shape, where the schedule says which map is found, in masks of 3 mm.

    Of a fourteenth of the samples a third of a voxel apart at most, and of voxels twice as large one. Matched moments
    alone are 5 mm off.
    """
    fixed, lungs = atlas(finer=4 / 3), patient(bent, *upright((3.0, 3.0, 3.0)))
    published = register(fixed, lungs, "simpleitk", registration="published")
    for spacing, samples, most in ((2.0, 4000, 1), (6.0, 900, 3)):
        monkeypatch.setattr(fast_module, "SPACING", spacing)
        monkeypatch.setattr(fast_module, "MOST_SAMPLES", samples)
        fast = register(fixed, lungs)
        assert np.linalg.norm(fast(LUNG_POINTS) - published(LUNG_POINTS), axis=1).max() < most
        assert np.linalg.norm(fast(LUNG_POINTS) - TRUE(LUNG_POINTS), axis=1).max() > 5  # so the two could have differed


def turned_far():
    """A map to a patient who lies far away, turned by 110 degrees, in a body of other proportions."""
    angle = np.deg2rad(110)
    found = np.eye(4)
    found[:3, :3] = np.array(
        [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]
    ) @ np.diag((1.2, 0.8, 0.85))
    found[:3, 3] = -300, 200, 900
    return Affine(found, "given")


def lungs_under(true):
    """The atlas' lungs where a map puts them."""
    affine = np.diag((4.0, 4.0, 4.0, 1.0))
    affine[:3, 3] = true([(0, 0, 0)])[0] - 130
    to_atlas = np.linalg.inv(true.matrix) @ affine
    points = apply_affine(to_atlas, np.moveaxis(np.indices((65, 65, 65)), 0, -1))
    return image((labels_at(points) * 50).astype(np.int16), affine)


@pytest.mark.slow
def test_a_turned_patient_is_found():
    """To half a voxel of the masks. From matched centres alone, as the authors begin, the map ends 100 mm away."""
    true = turned_far()
    with quick_registration():
        found = register(atlas(), lungs_under(true))
    assert np.linalg.norm(found(LUNG_POINTS) - true(LUNG_POINTS), axis=1).max() < 2


def test_matched_moments_are_exact_for_an_affine_map():
    """Up to about a voxel of the masks, 4 mm: without the measure, and however the patient is turned."""
    true = turned_far()
    found = fast_module.match_moments(fast_module.moments(atlas()), fast_module.moments(lungs_under(true)))
    assert np.linalg.norm(Affine(found, "given")(LUNG_POINTS) - true(LUNG_POINTS), axis=1).max() < 5


@pytest.mark.slow
def test_the_fast_registration_begins_where_the_authors_do(monkeypatch):
    """Moments only say whether the patient was lost: other ones, 9 mm beside them, change no number of the map."""
    lungs = patient(bent, *upright((4.0, 4.0, 4.0)))
    match = fast_module.match_moments
    aside = np.eye(4)
    aside[:3, 3] = 5, -4, 6
    with quick_registration():
        found = register(atlas(), lungs)
        monkeypatch.setattr(fast_module, "match_moments", lambda *both: aside @ match(*both))
        assert np.array_equal(register(atlas(), lungs).matrix, found.matrix)


@pytest.mark.slow
def test_what_lies_outside_the_scan_is_left_out():
    """Of a scan that ends 40 mm below its top, within the lungs: neither do they go on there, nor are there none."""
    moving = patient(lambda points: labels_at(points) * 50.0, *upright((4.0, 4.0, 4.0))).slicer[..., :-10]
    assert np.asarray(moving.dataobj)[..., -1].max() > 50
    with quick_registration():
        off = np.linalg.norm(register(atlas(), moving)(LUNG_POINTS) - TRUE(LUNG_POINTS), axis=1)
    assert off.max() < 4  # mm, a voxel of the masks


def test_overlap_is_the_dice_of_each_lung(caplog):
    """Near 1 under the true map; little is left after a shift, which is logged or refused."""
    near = overlap(atlas(), recoded(), TRUE)
    assert list(near) == ["right", "left"]
    assert min(near.values()) > 0.93
    shift = np.eye(4)
    shift[0, 3] = 15
    with caplog.at_level(logging.WARNING, "zoo"):
        check_overlap(near, "near")
        check_overlap(overlap(atlas(), recoded(), Affine(shift @ TRUE.matrix, "given")), "off")
    assert [record.args[0].split(":")[0] for record in caplog.records] == ["off"]
    shift[0, 3] = 40
    with pytest.raises(
        InputContractError, match=r"far: the Dice of its lungs with the atlas' is right 0\.\d\d, left 0\."
    ):
        check_overlap(overlap(atlas(), recoded(), Affine(shift @ TRUE.matrix, "given")), "far")


def test_engines_that_are_not_there(monkeypatch, caplog):
    """SimpleITK takes over where the choice is left to the package, and says so."""
    with pytest.raises(OptionError, match="engine must be one of auto, antspyx, simpleitk, not 'elastix'"):
        choose_engine("elastix")
    with pytest.raises(OptionError, match="registration must be one of fast, published, not 'slow'"):
        choose_engine("auto", "slow")
    monkeypatch.setattr(registration_module, "find_spec", lambda name: object())
    assert choose_engine("auto", "published") == "antspyx"
    monkeypatch.setattr(registration_module, "find_spec", lambda name: None)
    with caplog.at_level(logging.WARNING, "zoo"):
        assert choose_engine("auto", "fast") == "simpleitk"
        assert caplog.text == ""
        assert choose_engine("auto", "published") == "simpleitk"
    assert "SimpleITK registers the lungs instead" in caplog.text
    with pytest.raises(OptionError, match="pip install"):
        choose_engine("antspyx", "published")
    with pytest.raises(OptionError, match="engine 'antspyx' does not do the registration 'fast', which is SimpleITK's"):
        choose_engine("antspyx", "fast")
    assert choose_engine("simpleitk", "fast") == "simpleitk"


# From a CT to patches


def preprocess(words):
    """Run the command with a quick registration."""
    with quick_registration():
        main(words)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A table of four subjects, run from the command line: one that goes well, one that is there, two that fail."""
    folder = tmp_path_factory.mktemp("cohort")

    def solid(points):
        return np.where(labels_at(points) == 2, 30, chest_at(points))

    nibabel.save(patient(), folder / "one.nii.gz")
    nibabel.save(patient(labels_at, dtype=np.uint8), folder / "mask.nii.gz")
    nibabel.save(patient(solid), folder / "half.nii.gz")
    nibabel.save(atlas(), folder / "atlas.nii.gz")
    np.save(folder / "landmarks.npy", LANDMARKS)
    (folder / "table.csv").write_text(
        "sid,image,mask\na1,one.nii.gz,\na2,half.nii.gz,\na3,none.nii.gz,\na4,one.nii.gz,mask.nii.gz\na5,,\n"
    )
    words = [f"--landmarks={folder / 'landmarks.npy'}", f"--atlas-mask={folder / 'atlas.nii.gz'}"]
    words += ["--segmenter=threshold", f"--out={folder / 'out'}"]
    with pytest.raises(InputContractError) as failed:
        preprocess([f"--table={folder / 'table.csv'}", *words])
    return folder, words, str(failed.value)


@pytest.mark.slow
def test_a_cohort_goes_on_after_failures_and_names_them(done):
    """Two of four: one without a lung, one without a file."""
    folder, _, message = done
    assert "2 of 4 subject(s) failed:\n  - a2: " in message
    assert "half.nii.gz misses the left lung" in message
    assert "a3: no volume at" in message
    assert sorted(file.name for file in (folder / "out" / "patch").iterdir()) == ["a1_patch.npy", "a4_patch.npy"]


@pytest.mark.slow
@pytest.mark.parametrize("sid", ["a1", "a4"])
def test_patches_lie_where_the_atlas_says(done, grid, sid):
    """With the lungs by threshold or given, corners within 4 mm, a voxel of the masks."""
    folder, _, _ = done
    patches = np.load(folder / "out" / "patch" / f"{sid}_patch.npy")
    indices = np.load(folder / "out" / "patch_loc" / f"{sid}_patch_loc.npy")
    facts = json.loads((folder / "out" / "facts" / f"{sid}.json").read_text())
    assert (patches.shape, patches.dtype) == ((5, 32, 32, 32), np.int16)
    assert (indices.shape, indices.dtype) == ((5, 3), np.int64)
    assert np.array_equal(patches, cut(grid, indices))
    off = world_of(indices, grid) - TRUE(apply_affine(ATLAS_AFFINE, LANDMARKS))
    assert np.linalg.norm(off, axis=1).max() < 4
    assert facts["segmentation"] == {"a1": "threshold", "a4": "given"}[sid]
    assert (facts["sid"], facts["engine"], facts["anchor"]) == (sid, "simpleitk", "corner")
    assert facts["registration"] == "fast"
    assert {"simpleitk", "medssl-zoo"} <= set(facts["versions"])
    assert np.allclose(facts["grid"]["affine"], grid.affine)
    corners = apply_affine(facts["atlas_to_patient"], apply_affine(ATLAS_AFFINE, LANDMARKS))
    assert np.abs(world_of(indices, grid) - corners).max() <= 0.5 + 1e-4


@pytest.mark.slow
def test_a_cohort_resumes(done, caplog):
    """Whoever is there is not touched, whoever was done otherwise is an error, and what is lost is done again."""
    folder, words, _ = done
    before = {file: file.stat().st_mtime_ns for file in (folder / "out").rglob("*") if file.is_file()}
    with pytest.raises(InputContractError, match="2 of 4"):
        preprocess([f"--table={folder / 'table.csv'}", *words])
    assert {file: file.stat().st_mtime_ns for file in (folder / "out").rglob("*") if file.is_file()} == before
    with pytest.raises(
        OptionError, match="has a1 with anchor corner, but anchor centre was asked for: give another --out"
    ):
        preprocess([f"--table={folder / 'table.csv'}", *words, "--anchor=centre"])
    with pytest.raises(OptionError, match="has a1 with registration fast, but registration published"):
        preprocess([f"--table={folder / 'table.csv'}", *words, "--registration=published", "--engine=simpleitk"])
    assert not [message for message in caplog.messages if "already" in message]
    preprocess([f"--image={folder / 'half.nii.gz'}", "--sid=a1", *words])
    assert re.search(
        r"a1 is already in .*, from .*one\.nii\.gz, and is left alone: if .*half.* another name", caplog.text
    )
    assert {file: file.stat().st_mtime_ns for file in (folder / "out").rglob("*") if file.is_file()} == before
    lost = folder / "out" / "patch" / "a4_patch.npy"
    patches = np.load(lost)
    lost.unlink()
    preprocess([f"--image={folder / 'one.nii.gz'}", "--sid=a4", f"--lung-mask={folder / 'mask.nii.gz'}", *words])
    assert np.array_equal(np.load(lost), patches)


@pytest.mark.slow
def test_a_cohort_from_before_there_were_two_registrations_goes_on(done, tmp_path):
    """Its facts name none, and it was done on the authors' schedule."""
    folder, words, _ = done
    shutil.copytree(folder / "out", tmp_path / "out")
    record = tmp_path / "out" / "facts" / "a1.json"
    facts = json.loads(record.read_text())
    del facts["registration"]
    facts["engine"] = "simpleitk"
    record.write_text(json.dumps(facts))
    again = [f"--image={folder / 'one.nii.gz'}", "--sid=a1", *words[:-1], f"--out={tmp_path / 'out'}"]
    preprocess([*again, "--registration=published", "--engine=simpleitk"])
    assert json.loads(record.read_text()) == facts
    with pytest.raises(OptionError, match="has a1 with registration published, but registration fast"):
        preprocess(again)


@pytest.mark.slow
def test_a_cohort_of_an_earlier_engine_is_not_added_to(done, tmp_path):
    """The fast registration was SciPy's once, and put patches elsewhere: patients of both would be in one folder."""
    folder, words, _ = done
    shutil.copytree(folder / "out", tmp_path / "out")
    record = tmp_path / "out" / "facts" / "a1.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"engine": "scipy"}))
    with pytest.raises(OptionError, match="has a1 with engine scipy, but engine simpleitk was asked for"):
        preprocess([f"--image={folder / 'one.nii.gz'}", "--sid=a1", *words[:-1], f"--out={tmp_path / 'out'}"])


@pytest.fixture(scope="module")
def kept(done):
    """The output for the first subject, done again for its volume."""
    folder, words, _ = done
    before = {file: file.read_bytes() for file in (folder / "out").rglob("a1*") if file.is_file()}
    preprocess([f"--image={folder / 'one.nii.gz'}", "--sid=a1", "--keep-volumes", *words])
    assert len(before) == 3
    assert {file: file.read_bytes() for file in before} == before
    return folder / "out"


@pytest.mark.slow
def test_volumes_are_kept(kept, grid):
    """What the patches were cut from and its lungs, in the same voxels, axes (z, y, x)."""
    volume, lungs = (np.load(kept / name / "a1.npy") for name in ("volume", "lungs"))
    assert (volume.dtype, lungs.dtype) == (np.int16, np.uint8)
    assert np.array_equal(volume, grid.values.T)
    indices = np.load(kept / "patch_loc" / "a1_patch_loc.npy")
    boxes = [volume[z : z + 32, y : y + 32, x : x + 32] for x, y, z in indices]
    assert np.array_equal(boxes, np.load(kept / "patch" / "a1_patch.npy"))
    expected = place_lungs(patient(labels_at), grid).T
    assert min(dice(lungs == lung, expected == lung) for lung in (1, 2)) > 0.9


@pytest.mark.slow
def test_volumes_that_are_there_are_not_done_again(kept, done, caplog):
    """One that is lost is; but never from another image, nor otherwise than the patches."""
    folder, words, _ = done
    again = [f"--image={folder / 'one.nii.gz'}", "--sid=a1", "--keep-volumes", *words]
    files = {file: file.stat().st_mtime_ns for file in kept.rglob("a1*") if file.is_file()}
    preprocess(again)
    assert {file: file.stat().st_mtime_ns for file in kept.rglob("a1*") if file.is_file()} == files
    lost = kept / "lungs" / "a1.npy"
    content = lost.read_bytes()
    lost.unlink()
    preprocess([f"--image={folder / 'half.nii.gz'}", *again[1:]])
    assert "and is left alone" in caplog.text
    with pytest.raises(OptionError, match="has a1 with anchor corner, but anchor centre was asked for"):
        preprocess([*again, "--anchor=centre"])
    assert not lost.exists()
    preprocess(again)
    assert lost.read_bytes() == content


@pytest.mark.slow
def test_what_is_kept_can_be_mapped(kept, tmp_path):
    """By `dense`, with the lungs as its masks, at the places of the patches: thin lung is marked in front, and found.

    Three subjects are the least that it takes; here they are one under three names, without most of the padding.
    """
    inner, suffixes = slice(32, 224), {"volume": "", "lungs": "", "truth": "", "patch_loc": "_patch_loc"}
    volume, lungs = (
        np.ascontiguousarray(np.load(kept / n / "a1.npy")[inner, inner, inner]) for n in ("volume", "lungs")
    )
    truth = (lungs > 0) & (volume < -840)
    places = np.load(kept / "patch_loc" / "a1_patch_loc.npy") - inner.start
    for (folder, suffix), values in zip(suffixes.items(), (volume, lungs, truth, places), strict=True):
        (tmp_path / folder).mkdir()
        np.save(tmp_path / folder / f"b1{suffix}.npy", values)
        for sid in ("b2", "b3"):
            (tmp_path / folder / f"{sid}{suffix}.npy").symlink_to(f"b1{suffix}.npy")
    np.save(tmp_path / "landmarks.npy", LANDMARKS)
    torch.manual_seed(0)
    network = DrasCLREncoder(experts=2)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            torch.nn.init.constant_(module.running_var, 5e-3)  # what is in a patch comes through
    export_safetensors(network.state_dict(), tmp_path / "own.safetensors")
    given = {"volumes": "volume", "masks": "lungs", "places": "patch_loc", "truth": "truth", "out": "maps"}
    given |= {"landmarks": "landmarks.npy", "checkpoint": "own.safetensors"}
    words = [f"--{name}={tmp_path / file}" for name, file in given.items()]
    results = dense.main([*words, "--side=32", "--device=cpu"])
    found = np.load(tmp_path / "maps" / "b2_map.npy")
    assert found.shape == truth.shape
    assert not found[lungs == 0].any()
    assert found[truth].mean() > 1.2 * found[(lungs > 0) & ~truth].mean()
    assert results["dice"]["volumes"] == 3


@pytest.mark.slow
def test_one_image_that_fails_ends_with_a_message(done, caplog):
    """Which makes the exit code 1 and says why, once; the subject is called by its file."""
    folder, words, _ = done
    with pytest.raises(SystemExit) as ended:
        run_command(lambda: preprocess([f"--image={folder / 'half.nii.gz'}", *words]))
    assert str(ended.value).startswith("InputContractError: 1 of 1 subject(s) failed:\n  - half: ")
    assert (str(ended.value) + caplog.text).count("misses the left lung") == 1


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("sid,image\n", "has no rows"),
        ("sid,image\na,\n", "names no subject with an image"),
        ("sid,path\na,b\n", "lacks columns image"),
        ("sid,image\na,b\na,c\n", r"1 subject\(s\) are in several rows \(first: a\)"),
        ("sid,image\n../a,b\n", r"cannot name files \(first: '../a'\)"),
    ],
)
def test_tables_that_cannot_be_used_are_refused(tmp_path, rows, message):
    """Before anything is read."""
    (tmp_path / "table.csv").write_text(rows)
    with pytest.raises(OptionError, match=message):
        read_subjects(tmp_path / "table.csv")


def test_arguments_that_contradict_are_refused(tmp_path):
    """A mask beside a table; an anchor that is none."""
    with pytest.raises(OptionError, match="in a table they are columns"):
        main(["--table", "table.csv", "--sid", "a", "--out", str(tmp_path)])
    with pytest.raises(OptionError, match="anchor must be one of corner, centre, not 'middle'"):
        preprocess_ct(patient(), landmarks=LANDMARKS, atlas_mask=atlas(), anchor="middle")


def test_an_atlas_that_cannot_be_read_is_one_line(tmp_path):
    """Of files that are not there, or are something else; nothing tells how to unpickle them."""
    (tmp_path / "text.npy").write_text("26 26 0")
    (tmp_path / "text.nii.gz").write_text("lungs")
    np.save(tmp_path / "landmarks.npy", LANDMARKS)
    good = {"--image": tmp_path / "ct.nii", "--out": tmp_path, "--landmarks": tmp_path / "landmarks.npy"}
    for flag, name, message in (
        ("--landmarks", "none.npy", r"cannot read landmarks from .*none\.npy: No such file"),
        ("--landmarks", "text.npy", r"cannot read landmarks from .*text\.npy: a whole \.npy file is expected$"),
        ("--atlas-mask", "none.nii", r"cannot read the lung mask of the atlas from .*none\.nii: .*No such file"),
        ("--atlas-mask", "text.nii.gz", r"cannot read the lung mask of the atlas from .*text\.nii\.gz: "),
    ):
        words = [str(word) for pair in (good | {flag: tmp_path / name}).items() for word in pair]
        with pytest.raises(SystemExit, match=f"InputContractError: {message}"):
            run_command(lambda words=words: main(words))


def test_paths_of_a_table_begin_at_its_folder(tmp_path):
    """And masks are there for some."""
    (tmp_path / "table.csv").write_text("sid,image,mask\na,ct/a.nii,\nb,/abs/b.nii,m.nii\n")
    one, other = read_subjects(tmp_path / "table.csv")
    assert (one.image, one.mask) == (tmp_path / "ct" / "a.nii", None)
    assert (other.image, other.mask) == (Path("/abs/b.nii"), tmp_path / "m.nii")
