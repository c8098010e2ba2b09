"""Slices as a network knows them, however the file has its axes; labels and training volumes along with them."""

import logging
from itertools import permutations, product

import nibabel
import numpy as np
import pytest
import torch
from glcl_files import Bright
from nibabel import orientations

import zoo
from zoo.entries.glcl.cases import CaseStore
from zoo.entries.glcl.cohort import DATASETS, Case
from zoo.entries.glcl.segment import segment_volume
from zoo.entry import Preprocessing
from zoo.errors import InputContractError, OptionError
from zoo.loading import input_of
from zoo.registry import get_entry
from zoo.transforms.image import build_transform
from zoo.transforms.stacks import turn_of

FACTS = get_entry("glcl-unet").preprocessing.override({"size": [48, 48], "spacing": [2.0, 2.0]})
STACKS = ["".join(axes) for names in permutations(("RL", "AP", "IS")) for axes in product(*names)]
SHAPE, SIZES = (40, 36, 7), (1.9, 2.1, 8.0)


def scan(codes="LPS"):
    """Return a stack, slices along the third axis of these, whose voxels are all different."""
    values = np.random.default_rng(0).gamma(3, 150, SHAPE).astype(np.float32)
    found = orientations.axcodes2ornt(codes)
    affine = np.zeros((4, 4))
    for axis, (world, sign) in enumerate(found):
        affine[int(world), axis] = sign * SIZES[axis]
    affine[:, 3] = 11, -7, 3, 1
    return nibabel.Nifti1Image(values, affine)


def stored_in(image, codes):
    """Return the same voxels at the same places in a file with other axes."""
    own = nibabel.io_orientation(image.affine)
    return image.as_reoriented(orientations.ornt_transform(own, orientations.axcodes2ornt(codes)))


def same_stack(codes):
    """Return all ways to store a stack with its slices along the third axis."""
    stack = next(pair for pair in ("RL", "AP", "IS") if codes[2] in pair)
    return [other for other in STACKS if other[2] in stack]


@pytest.mark.parametrize("codes", ["LPS", "LIA", "PIR"])
@pytest.mark.parametrize("orientation", ["LP", "RA"])
def test_one_scan_gives_one_batch_however_its_axes_are_stored(codes, orientation):
    """A heart upside down, mirrored or lying, or its slices in another order, by the file's axes alone."""
    transform = build_transform(FACTS.override({"orientation": orientation}))
    image = scan(codes)
    batch = transform(image)
    assert len(batch) == 7
    for other in same_stack(codes):
        assert torch.equal(transform(stored_in(image, other)), batch)


@pytest.mark.parametrize(
    ("codes", "orientation"),
    [("LPS", "LP"), ("LIA", "LP"), ("PIR", "LP"), ("RAS", "RA"), ("RSA", "RA"), ("ASR", "RA")],
)
def test_files_as_in_training_are_not_turned(codes, orientation):
    """Turning what the weights were trained on: the axes of DICOM in every plane, or the opposite ones."""
    assert np.array_equal(turn_of(scan(codes).affine, orientation), [[0, 1], [1, 1], [2, 1]])
    turned = build_transform(FACTS.override({"orientation": orientation}))(scan(codes))
    assert torch.equal(turned, build_transform(FACTS.override({"orientation": None}))(scan(codes)))


def test_an_array_is_taken_as_it_is():
    """It has no directions."""
    values = np.random.default_rng(0).gamma(3, 150, (48, 48, 5)).astype(np.float32)
    low, high = np.percentile(values.astype(np.float64), (1, 99))
    expected = ((values - low) / (high - low)).astype(np.float32).transpose(2, 0, 1)
    assert np.array_equal(build_transform(FACTS)(values)[:, 0].numpy(), expected)


def test_labels_come_back_to_the_files_own_axes(tmp_path):
    """Labels beside the heart, mirrored or in another order of slices."""
    truth = np.zeros(SHAPE, bool)
    truth[4:14, 6:30, 2:5] = True
    image = nibabel.Nifti1Image(
        np.float32(100 + 900 * truth + np.random.default_rng(0).normal(0, 9, SHAPE)), scan().affine
    )
    transform = build_transform(FACTS)
    for codes in same_stack("LPS"):
        other = stored_in(image, codes)
        nibabel.save(other, tmp_path / "scan.nii.gz")
        labels = segment_volume(Bright(), tmp_path / "scan.nii.gz", transform)
        expected = np.asarray(other.dataobj) > 500
        assert labels.shape == expected.shape
        assert (labels != expected).mean() < 0.02  # edges, which are resampled twice


def test_training_volumes_lie_as_the_transform_has_them(tmp_path):
    """A network trained on other slices than it is given later, or labels that lie otherwise than their image."""
    dataset = DATASETS["acdc"]
    mask = np.zeros(SHAPE, np.uint8)
    mask[4:14, 6:30, 2:5], mask[20:28, 6:12, 1:4] = 1, 3
    pair = scan(), nibabel.Nifti1Image(mask, scan().affine)
    made = []
    for codes in ("LPS", "RAS", "PLI"):
        files = [tmp_path / f"{codes}_{kind}.nii.gz" for kind in ("image", "mask")]
        for image, file in zip(pair, files, strict=True):
            nibabel.save(stored_in(image, codes), file)
        made.append(CaseStore(tmp_path / "kept", dataset, 48, 2.0).open(Case(codes, *files)))
    expected = build_transform(FACTS)(pair[0])[:, 0].numpy()
    for case in made:
        assert np.array_equal(case.image, expected)
        assert np.array_equal(case.label, made[0].label)
        assert np.array_equal(case.truth, mask)
        assert case.grid.spacing == pytest.approx(SIZES)
        assert case.grid.shape == SHAPE


def test_a_file_that_does_not_say_how_it_lies_is_trained_on_as_it_is(tmp_path):
    """Turned by nibabel's guess."""
    image = scan()
    image.set_sform(None, code=0)
    image.set_qform(None, code=0)
    nibabel.save(image, tmp_path / "scan.nii.gz")
    case = CaseStore(tmp_path / "kept", DATASETS["acdc"], 48, 2.0).open(Case("a", tmp_path / "scan.nii.gz"))
    assert np.array_equal(case.image, build_transform(FACTS)(scan())[:, 0].numpy())


def test_an_isotropic_brain_is_no_short_axis_stack(caplog):
    """A whole head as slices of a heart, without a word; volumes whose weights know such voxels pass."""
    head = nibabel.Nifti1Image(np.random.default_rng(0).gamma(3, 90, (60, 64, 58)), np.eye(4))
    with caplog.at_level(logging.WARNING, "zoo"):
        build_transform(input_of("glcl-unet.mmwhs"))(head)
        build_transform(FACTS.override({"spacing": [1.3, 1.3]}))(scan())
        assert caplog.text == ""
        zoo.load_transform("glcl-unet")(head)
    assert "voxels of 1 x 1 x 1 mm, where the network knows slices 5 to 10 mm apart" in caplog.text


def chest():
    """Return HU as of a CT of the chest: air, fat, muscle, lungs, bone, with noise."""
    y, x = np.mgrid[:96, :96] - 48
    values = np.full((96, 96, 6), -1000.0)
    for value, centre, radii in [(-100, 0, (40, 32)), (40, 0, (36, 28)), (-850, 17, (12, 18)), (-850, -17, (12, 18))]:
        values[((x - centre) / radii[0]) ** 2 + (y / radii[1]) ** 2 < 1] = value
    values[(x / 6) ** 2 + ((y - 20) / 5) ** 2 < 1] = 700
    return np.clip(values + np.random.default_rng(0).normal(0, 15, values.shape), -1024, 3071).round()


@pytest.mark.parametrize(
    ("convert", "said"),
    [
        (lambda hu: hu + 1024, "as a CT before its rescale"),
        (lambda hu: np.where(hu > -900, hu + 1024, -2000), "as a CT before its rescale"),
        (lambda hu: hu.clip(-200, 300), "cut off at both ends as a windowed CT"),
        (lambda hu: (hu.clip(-160, 240) + 160) / 400 * 255, "cut off at both ends as a windowed CT"),
        (lambda hu: np.random.default_rng(0).gamma(3, 150, hu.shape), ""),
        (lambda hu: np.random.default_rng(0).gamma(3, 400, hu.shape).clip(0, 3000), ""),
        (lambda hu: np.where(hu > -900, 600 + np.random.default_rng(0).normal(0, 250, hu.shape), 5).clip(0, 1500), ""),
    ],
)
def test_a_ct_that_is_not_in_hu_is_warned_of_where_mri_is_due(convert, said, caplog):
    """Stored or windowed values without a header are no proof of a CT, and none of MRI; magnitudes of MRI pass."""
    image = nibabel.Nifti1Image(convert(chest()), np.diag([1.4, 1.4, 8, 1]))
    zoo.load_transform("glcl-unet")(image)
    assert said in caplog.text
    assert ("CT" in caplog.text) == bool(said)
    caplog.clear()
    with pytest.raises(InputContractError, match="as a CT"):
        zoo.load_transform("glcl-unet")(nibabel.Nifti1Image(chest(), image.affine))


def test_the_data_sets_orientations_stand_once():
    """The recipe's and the transform's, which would part."""
    for tag, dataset in DATASETS.items():
        assert input_of(f"glcl-unet.{tag}").orientation == dataset.orientation


@pytest.mark.parametrize("facts", [{"orientation": "RAS"}, {"orientation": "LS"}, {"thickness": (10, 5)}])
def test_contradictory_facts_are_refused_when_the_transform_is_made(facts):
    """Before an image is read."""
    with pytest.raises(OptionError, match=next(iter(facts))):
        build_transform(FACTS.override(facts))


def test_the_steps_are_printed():
    """What is done to slices."""
    assert "axial slices to LP" in repr(build_transform(FACTS))
    assert isinstance(FACTS, Preprocessing)
