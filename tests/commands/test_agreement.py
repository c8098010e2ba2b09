"""`zoo doctor` and `load_transform` never part: what one takes the other takes, with the same words."""

import logging

import nibabel
import numpy as np
import pytest
from dicom_files import write_dicom, write_series
from PIL import Image

from zoo.commands.examination import examine
from zoo.errors import InputContractError
from zoo.loading import load_transform

MODELS = ("caid-resnet50", "rad-dino-vitb14", "yaware-densenet121", "monai-ssl-unetr", "drasclr-cnn3d", "glcl-unet")
RNG = np.random.default_rng(0)
SHAPE = (48, 44, 10)
GRID = (121, 145, 121)
HEART = np.diag([-1.4, -1.4, 8.0, 1.0])
MR = np.rint(RNG.gamma(3, 100, SHAPE))
HU = np.where(MR > 250, 40, -1000) + np.rint(RNG.normal(0, 9, SHAPE))
OUTSIDE = np.hypot(*(np.indices(SHAPE)[:2] - 22)) > 22


def nifti(values, affine=HEART, intent=None, code=None):
    """Return a writer of a NIfTI file."""
    made = nibabel.Nifti1Image(np.float32(values), affine)
    if intent:
        made.header.set_intent(intent)
    if code is not None:
        made.set_sform(affine, code=code)
        made.set_qform(affine, code=code)
    return lambda path: nibabel.save(made, path.with_suffix(".nii")) or path.with_suffix(".nii")


def array(values):
    """Return a writer of a NumPy file."""
    return lambda path: np.save(path.with_suffix(".npy"), values) or path.with_suffix(".npy")


def film(**elements):
    """Return a writer of a DICOM film."""
    return lambda path: write_dicom(path, (RNG.random((96, 80)) * 4095).astype(np.uint16), bits=12, **elements)


def brain():
    """Return a map that is its own mirror image along the first axis."""
    x, y, z = np.indices(GRID) - np.array([60, 72, 45])[:, None, None, None]
    head = ((x / 45) ** 2 + ((y + 5) / 55) ** 2 + (z / 35) ** 2 < 1) * (z > -25 + abs(y) / 4)
    return np.float32(head * (0.5 + 0.3 * np.sin(y / 9) * np.cos(abs(x) / 7)))


INPUTS = {
    "MR": nifti(MR),
    "an isotropic MR": nifti(MR.repeat(4, 2), np.diag([1.0, 1, 1, 1])),
    "HU": nifti(HU),
    "HU, padded": nifti(np.where(OUTSIDE, -3024, HU)),
    "stored values, padded": nifti(np.where(OUTSIDE, -2000, HU + 1024)),
    "HU without much air": nifti(40 + RNG.normal(0, 9, SHAPE) - 400 * (RNG.random(SHAPE) > 0.9999)),
    "a window of HU": nifti(HU.clip(-500, 500)),
    "labels": nifti(RNG.integers(0, 100, SHAPE), intent="label"),
    "statistics": nifti(RNG.normal(0, 400, SHAPE), intent="z score"),
    "an atlas": nifti(RNG.integers(0, 100, (6, 4, 10)).repeat(8, 0).repeat(11, 1)),
    "NaN": nifti(np.where(OUTSIDE, np.nan, MR)),
    "constant": nifti(np.ones(SHAPE)),
    "no place": nifti(MR, code=0),
    "sheared": nifti(HU, HEART @ (np.eye(4) + np.diag([0.25, 0, 0], 1))),
    "four axes": nifti(np.stack([MR, MR], -1)),
    "few slices": nifti(MR[..., :2]),
    "slices along the first axis": nifti(MR.transpose(2, 0, 1).repeat(4, 0), np.diag([8.0, 1.4, 1.4, 1])),
    "a brain": array(brain()),
    "a brain, (z, y, x)": array(np.ascontiguousarray(brain().transpose(2, 1, 0))),
    "an array": array(MR),
    "a film": film(),
    "a hand": film(BodyPartExamined="HAND"),
    "a segmentation": film(SOPClassUID="1.2.840.10008.5.1.4.1.1.66.4"),
    "a copy": film(Modality="OT", ViewPosition="LL"),
    "a CT series": lambda path: write_series(path),
    "a film in a window": film(WindowCenter=900, WindowWidth=100),
    "a picture of 16 bits": lambda path: (
        Image.fromarray((RNG.random((90, 80)) * 4095).astype(np.uint16)).save(path, "PNG") or path
    ),
    "a picture": lambda path: Image.fromarray((RNG.random((90, 80)) * 255).astype(np.uint8)).save(path, "PNG") or path,
    "a text": lambda path: path.write_text("no image") and path,
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    return {name: write(folder / str(i)) for i, (name, write) in enumerate(INPUTS.items())}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", INPUTS)
def test_the_doctor_says_what_the_transform_does(files, caplog, model, name):
    """A file that "fits" and is refused, or the reverse; a warning that only one of the two gives; another reason."""
    said = ""
    with caplog.at_level(logging.WARNING, "zoo"):
        try:
            load_transform(model)(files[name])
        except InputContractError as error:
            said = str(error)
    warned = {record.getMessage() for record in caplog.records if record.name == "zoo"}
    found = examine(files[name], model)
    assert (found.fits, found.problem) == (not said, said)
    assert set(found.warnings) == warned


@pytest.mark.slow
def test_the_inputs_are_of_all_kinds(files):
    """A comparison of refusals alone, or of inputs that nothing is odd about."""
    results = [examine(path, model) for path in files.values() for model in ("monai-ssl-unetr", "glcl-unet")]
    assert {result.fits for result in results} == {True, False}
    assert any(result.fits and result.warnings for result in results)
    assert any(result.fits and not result.warnings for result in results)
