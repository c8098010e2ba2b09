"""BrainIAC's input: resized as a whole, then normalised; what is no brain in MRI on the template."""

import pickle
import re

import nibabel
import numpy as np
import pytest
import torch
from dicom_files import write_series
from pydicom.uid import MRImageStorage
from scipy import ndimage
from texts import warnings

import zoo
from zoo.commands.examination import examine
from zoo.embedding import embed
from zoo.errors import InputContractError, OptionError
from zoo.registry import get_entry
from zoo.transforms import build_transform
from zoo.transforms.brain import BRAIN
from zoo.transforms.resized import resize, z_score_nonzero

VIT, RESNET = "brainiac-vitb16", "brainiac-resnet50"
VERSION_2, VERSION_1 = (get_entry(name).preprocessing for name in (VIT, RESNET))
SHAPE = (85, 103, 81)
"""The template at 2 mm."""
LAS = np.diag([-2.0, 2.0, 2.0, 1.0])


def brain(shape=SHAPE):
    """Whole numbers in an ellipsoid that fills a quarter of the box, exactly 0 around it."""
    rng = np.random.default_rng(0)
    axes = np.indices(shape)
    inside = sum(((a - n / 2) / (0.39 * n)) ** 2 for a, n in zip(axes, shape, strict=True)) <= 1
    smooth = ndimage.gaussian_filter(rng.normal(size=shape), 2)
    values = 400 + 2000 * smooth + 100 * axes[0] / shape[0] + rng.normal(0, 10, shape)
    return np.where(inside, values.clip(5).round(), 0).astype(np.float32)


def write(path, values, affine=LAS):
    nibabel.save(nibabel.Nifti1Image(values, affine), path)
    return path


def linear(values, side):
    """Linear interpolation at the centres of new voxels, edges repeated: SciPy, in float64."""
    axes = [(np.arange(side) + 0.5) * n / side - 0.5 for n in values.shape]
    grid = np.meshgrid(*axes, indexing="ij")
    return ndimage.map_coordinates(values.astype(np.float64), grid, order=1, mode="nearest")


def z_score(values):
    inside = np.abs(values) > 0
    return np.where(inside, (values - values[inside].mean()) / values[inside].std(), 0)


@pytest.mark.slow
def test_version_2_is_resized_and_then_scaled(tmp_path, caplog):
    """Against SciPy: the other order, a z-score of everything and a smoothed background are something else."""
    values = brain()
    x = zoo.load_transform(VIT)(write(tmp_path / "t1.nii.gz", values))
    assert (x.dtype, x.shape, warnings(caplog)) == (torch.float32, (1, 96, 96, 96), [])
    expected = z_score(linear(values, 96))
    top = np.abs(expected).max()
    assert np.abs(x[0].numpy() - expected).max() / top < 1e-5
    assert bool((x[0].numpy() == 0).any() and ((x[0].numpy() == 0) == (expected == 0)).all())
    first = linear(z_score(values), 96)
    everything = linear(values, 96)
    everything = (everything - everything.mean()) / everything.std()
    for wrong in (first, everything):
        assert np.abs(x[0].numpy() - wrong).max() / top > 0.1


@pytest.mark.slow
def test_version_1_is_resized_by_areas_and_then_stretched(tmp_path, caplog):
    """Each new voxel is the mean of those that it covers; the background counts among the values."""
    values = brain((256, 128, 192))
    x = zoo.load_transform(RESNET)(
        write(tmp_path / "t1.nii.gz", values, np.diag([-170 / 256, 206 / 128, 162 / 192, 1]))
    )
    assert (x.shape, warnings(caplog)) == ((1, 128, 128, 128), [])
    halved = values.reshape(128, 2, 128, 192).mean(axis=1, dtype=np.float64)
    starts, ends = np.arange(128) * 192 // 128, -(-(np.arange(128) + 1) * 192 // 128)
    means = np.stack([halved[..., a:b].mean(axis=2) for a, b in zip(starts, ends, strict=True)], axis=2)
    expected = (means - means.min()) / (means.max() - means.min())
    assert np.abs(x[0].numpy() - expected).max() < 1e-5
    assert (float(x.min()), float(x.max())) == (0.0, 1.0)


@pytest.mark.slow
def test_every_kind_of_input_gives_the_same(tmp_path):
    """File, image, `.npy`, array, tensor, one with a channel, and whole numbers as int16."""
    values, transform = brain(), zoo.load_transform(VIT)
    expected = transform(write(tmp_path / "a.nii", values))
    np.save(tmp_path / "a.npy", values)
    image = nibabel.Nifti1Image(values.astype(np.int16), LAS)
    for given in (image, tmp_path / "a.npy", values, values[None], torch.from_numpy(values), values.astype(np.int16)):
        assert torch.equal(transform(given), expected)
    assert torch.equal(pickle.loads(pickle.dumps(transform))(values), expected)


def test_a_series_from_the_scanner_is_taken_with_a_word(tmp_path, caplog):
    """MR slices with a head's noise, whose axes are the scanner's."""
    scan = np.random.default_rng(0).integers(20, 900, (24, 20, 16)).astype(np.int16)
    write_series(tmp_path / "mr", scan, Modality="MR", SOPClassUID=MRImageStorage, RescaleSlope=1, RescaleIntercept=0)
    assert zoo.load_transform(VIT)(tmp_path / "mr").shape == (1, 96, 96, 96)
    said = " ".join(warnings(caplog))
    for problem in ("exactly 0 in 0% of its voxels", "nothing is turned", "of its corner"):
        assert problem in said


@pytest.mark.slow
def test_axes_are_never_turned_and_that_is_said(tmp_path, caplog):
    """RAS instead of LAS: the same voxels in the same order, and a warning; an array says nothing."""
    values, transform = brain(), zoo.load_transform(VIT)
    turned = transform(write(tmp_path / "ras.nii.gz", values, np.diag([2.0, 2.0, 2.0, 1.0])))
    assert torch.equal(turned, transform(values))
    (said,) = warnings(caplog)
    assert "axes to RAS, where the template's point to LAS: nothing is turned" in said


def test_another_field_of_view_is_said(tmp_path, caplog):
    """MNI152's grid of 182 x 218 x 182 mm is LAS too, in FSL's files: the brain gets another size."""
    zoo.load_transform(VIT)(write(tmp_path / "mni.nii.gz", brain((91, 109, 91))))
    (said,) = warnings(caplog)
    assert "covers 182 x 218 x 182 mm, the template 170 x 206 x 162 mm" in said


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda v: np.where(v == 0, 7.0, v), r"exactly 0 in 0% of its voxels, 7\d% of them are 7"),
        (lambda v: v + np.random.default_rng(1).rayleigh(9, v.shape), "exactly 0 in 0% of its voxels, as in a head"),
        (lambda v: np.roll(v, (-30, -40, -30), (0, 1, 2)), "is not 0 in .* of its corner"),
    ],
)
def test_a_background_that_is_not_0_is_said(change, problem, caplog):
    """A shifted one, a head's noise, and a brain in the corner that the feature is read from."""
    zoo.load_transform(VIT)(change(brain()).astype(np.float32))
    assert any(re.search(problem, said) for said in warnings(caplog))


def test_ct_is_refused(tmp_path):
    """By its header, by values that are HU, and by much far below 0."""
    transform = zoo.load_transform(VIT)
    write_series(tmp_path / "ct")
    with pytest.raises(InputContractError, match="is of modality CT: MR is expected"):
        transform(tmp_path / "ct")
    rng = np.random.default_rng(0)
    hu = np.where(brain() > 0, 40, -1000) + rng.normal(0, 10, SHAPE)
    with pytest.raises(InputContractError, match=r"values like HU, .* as a CT"):
        transform(write(tmp_path / "ct.nii.gz", hu.astype(np.float32)))


def test_what_is_no_image_is_refused(tmp_path):
    """Masks, label maps by their header, NaN, one value everywhere, a picture, and a volume that resizing empties."""
    transform, values = zoo.load_transform(VIT), brain()
    labels = nibabel.Nifti1Image(values, LAS)
    labels.header.set_intent("label")
    dots = np.zeros((400, 8, 8), np.float32)
    planes = np.arange(16) * 25 + 7  # between those that 96 are made of
    dots[planes] = np.random.default_rng(0).uniform(1, 9, (16, 8, 8))
    for given, problem in (
        ((values > 0).astype(np.float32), "2 different values"),
        (labels, "label map"),
        (np.where(values == 0, np.nan, values), "NaN or infinite"),
        (np.ones(SHAPE, np.float32), "is constant"),
        (values[0], "one volume"),
        (dots, "constant once it is resized"),
    ):
        with pytest.raises(InputContractError, match=problem):
            transform(given)


@pytest.mark.slow
def test_the_doctor_agrees_with_the_transform(tmp_path):
    """Facts and verdict, of a file that fits and of one that is odd."""
    found = examine(write(tmp_path / "t1.nii.gz", brain()), VIT)
    facts = {fact.what: (fact.found, fact.expected) for fact in found.facts}
    assert (found.fits, found.warnings, found.gives[:23]) == (True, (), "float32 (1, 96, 96, 96)")
    assert facts["axes to"] == ("LAS", "LAS, never turned")
    assert facts["size of a voxel in mm"][1] == "1.771 x 2.146 x 1.688 once it is resized to 96 x 96 x 96"
    assert facts["values"][1] == BRAIN
    odd = examine(write(tmp_path / "ras.nii.gz", brain(), np.eye(4) * [2, 2, 2, 1]), VIT)
    assert odd.fits
    assert "nothing is turned" in odd.warnings[0]


def test_the_input_is_shown_in_words(zoo):
    """`zoo info` and a printed transform."""
    import zoo as package

    out = zoo("info", VIT)[1]
    assert "interpolation: trilinear" in out
    assert "value_range: any: each volume is scaled by its own values" in out
    printed = str(package.load_transform(VIT))
    assert "not turned: LAS is expected" in printed
    assert "to 96 x 96 x 96, trilinear" in printed
    assert "least to 0, largest to 1" in str(package.load_transform(RESNET))


@pytest.mark.parametrize(
    "changes",
    [
        {"normalise": "z-score"},
        {"normalise": None},
        {"size": [96, 96]},
        {"units": "HU"},
        {"window": [0, 1]},
        {"channels": ["a", "b"]},
        {"spacing": [1, 1]},
        {"interpolation": "nearest"},
    ],
)
def test_an_input_that_contradicts_itself_is_refused(changes):
    """A record or a header may change single fields."""
    with pytest.raises(OptionError):
        build_transform(VERSION_2.override(changes))


def test_resizing_and_scoring_are_as_worked_out_by_hand():
    """A row of two voxels brought to four, and a score of one value, which has no deviation."""
    row = torch.tensor([[[0.0, 4.0]]])
    assert resize(row, (1, 1, 4), "trilinear").flatten().tolist() == [0.0, 1.0, 3.0, 4.0]
    assert resize(row, (1, 1, 1), "area").flatten().tolist() == [2.0]
    assert z_score_nonzero(torch.tensor([0.0, 3.0, 3.0])).tolist() == [0.0, 0.0, 0.0]
    assert z_score_nonzero(torch.tensor([0.0, 1.0, 3.0])).tolist() == [0.0, -1.0, 1.0]
    assert VERSION_1.size == (128, 128, 128)


@pytest.mark.slow
def test_embed_goes_from_files_to_features(tmp_path, monkeypatch):
    """Two brains, and a CT that gives a reason instead of a row; the ResNet on a smaller grid, for time."""
    torch.manual_seed(0)
    model = zoo.load_model(RESNET, pretrained=False)
    torch.save(model.state_dict(), tmp_path / "w.pt")
    small = VERSION_1.override({"size": [32, 32, 32]})
    monkeypatch.setattr("zoo.embedding.embedder.input_of", lambda *_: small)
    paths = [write(tmp_path / "a.nii.gz", brain()), write(tmp_path / "b.nii.gz", brain()[:, ::-1].copy())]
    paths.append(write(tmp_path / "ct.nii.gz", (brain() - 1000).astype(np.float32)))
    found = embed(RESNET, paths, checkpoint=tmp_path / "w.pt", progress=False)
    assert found.values.shape == (2, 2048)
    assert list(found.failed) == [str(paths[2])]
    x = build_transform(small)(paths[0])[None]
    with torch.no_grad():
        assert np.abs(model.eval()(x).numpy() - found.values[:1]).max() < 1e-5
