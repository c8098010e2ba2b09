"""What `zoo doctor FILE --for NAME` says of an image: what was found, what is expected, whether it fits."""

import json

import nibabel
import numpy as np
import pytest
import torch
from brains import GRID, brain, image
from dicom_files import write_dicom, write_series
from PIL import Image
from safetensors.torch import save_file
from texts import one_line

from zoo.commands.examination import examine


def facts(found):
    return {fact.what: fact.found for fact in found.facts}


def write_scan(path, low, high, spacing=(0.7, 0.7, 5.0)):
    """Whole numbers of one range, axes to the left, posterior, superior."""
    values = np.random.default_rng(0).integers(low, high + 1, (40, 36, 20)).astype(np.int16)
    values.flat[:2] = low, high
    made = nibabel.Nifti1Image(values, np.diag([-spacing[0], -spacing[1], spacing[2], 1]))
    nibabel.save(made, path)
    return path


def test_a_windowed_ct_does_not_fit(zoo, tmp_path):
    """Spacing, axes and values stand beside what is expected; exit code 1, and what to do."""
    path = write_scan(tmp_path / "scan.nii.gz", 0, 255)
    code, out, err = zoo("doctor", path, "--for", "monai-ssl-unetr")
    assert (code, err) == (1, "")
    for part in ("0.7 x 0.7 x 5", "1.5 x 1.5 x 2", "LPS", "RAS", "look like 8 bit, 0-255", "-175 to 250 HU"):
        assert part in out
    assert "does not fit:" in out
    assert "rescale slope and intercept" in out
    found = json.loads(zoo("doctor", path, "--for", "monai-ssl-unetr.tcia-covid19", "--json")[1])
    assert (found["fits"], found["gives"], found["model"]) == (False, "", "monai-ssl-unetr.tcia-covid19")
    assert {"what", "found", "expected"} == set(found["facts"][0])


def test_what_is_no_ct_is_called_what_it_is(tmp_path):
    """An MR and a label map need no rescale, which would make another wrong input of them."""
    rng = np.random.default_rng(0)
    grid = np.indices((40, 36, 20))
    tissue = 300 + 200 * np.sin(grid[0] / 9) + 30 * rng.standard_normal(grid[0].shape)
    mr = np.where(((grid[:2] - 18) ** 2).sum(0) < 300, tissue, np.abs(10 * rng.standard_normal(grid[0].shape)))
    organs = (grid // 10).sum(0) % 5
    regions = rng.permutation(1000)[(grid // 8 * np.array([1, 5, 25])[:, None, None, None]).sum(0)]
    problems = {}
    for name, values in (("mr", mr), ("organs", organs), ("regions", regions)):
        nibabel.save(nibabel.Nifti1Image(values.astype(np.int16), np.eye(4)), tmp_path / f"{name}.nii")
        problems[name] = examine(tmp_path / f"{name}.nii", "monai-ssl-vitb16").problem
    assert "looks like MRI. HU are expected" in problems["mr"]
    assert "has 5 different values: an image is expected, not a mask" in problems["organs"]
    assert "as in a label map: an image is expected" in problems["regions"]
    assert not any("rescale slope" in problem for problem in problems.values())


def test_a_ct_fits_and_thick_slices_are_said(zoo, tmp_path):
    """Exit code 0, with the warning of the transform and what it makes of the file."""
    code, out, err = zoo("doctor", write_scan(tmp_path / "ct.nii.gz", -1000, 400), "--for", "monai-ssl-vitb16")
    assert (code, err) == (0, "")
    assert "look like HU" in out
    assert "odd: " in out
    assert "far from the 2 x 2 x 2 mm" in out
    # 40, 36 and 20 voxels of 0.7, 0.7 and 5 mm are 14, 12 and 48 steps of 2 mm and a first voxel
    assert "fits: load_transform gives float32 (1, 15, 13, 48), 0 to 1" in out
    assert "space" not in out


def test_a_file_of_weights_says_what_is_expected(zoo, tmp_path):
    """With `--checkpoint` the input in its header is the one that counts."""
    scan, weights = write_scan(tmp_path / "ct.nii.gz", -1000, 400), tmp_path / "w.safetensors"
    save_file({"w": torch.zeros(1)}, weights, metadata={"input": '{"spacing": [4, 4, 4]}'})
    code, out, _ = zoo("doctor", scan, "--for", "monai-ssl-vitb16", "--checkpoint", weights)
    assert code == 0
    assert "4 x 4 x 4" in out
    # 40, 36 and 20 voxels of 0.7, 0.7 and 5 mm are 7, 6 and 24 steps of 4 mm and a first voxel
    assert "float32 (1, 8, 7, 25)" in out


def test_a_series_of_dicom_is_a_volume(tmp_path):
    """A folder; a single file of it is none, and the way out is said."""
    series = write_series(tmp_path / "series")
    found = examine(series, "monai-ssl-vitb16")
    assert found.fits
    assert facts(found)["voxels"] == "12 x 10 x 9"
    assert facts(found)["size of a voxel in mm"] == "0.7 x 0.9 x 2.5"
    assert "pass the folder" in examine(next(series.iterdir()), "monai-ssl-vitb16").problem


@pytest.mark.slow
def test_maps_of_the_brain(tmp_path):
    """A density map on a grid of MNI152 fits; a CT does not, nor what has no place."""
    nibabel.save(image(brain(), GRID, "mni"), tmp_path / "mwp1.nii")
    found = examine(tmp_path / "mwp1.nii", "yaware-densenet121")
    assert found.fits
    assert facts(found)["space"] == "MNI152"
    assert found.gives.startswith("float32 (1, 121, 145, 121)")
    assert "no negative values" in examine(write_scan(tmp_path / "ct.nii", -1000, 400), "yaware-densenet121").problem
    nibabel.save(image(brain(), GRID, "unknown"), tmp_path / "lost.nii")
    lost = examine(tmp_path / "lost.nii", "yaware-densenet121")
    assert "has no affine (sform and qform have code 0)" in lost.problem
    assert lost.facts == ()


def test_slices_of_a_volume(tmp_path):
    """An MRI fits; a CT does not, which its values tell where the file does not say what it is."""
    plane = (1.4, 1.4, 8.0)
    mri = examine(write_scan(tmp_path / "mri.nii", 0, 900, plane), "glcl-encoder")
    assert mri.fits
    assert mri.warnings == ()
    assert mri.gives.startswith("float32 (20, 1, 192, 192)")
    ct = examine(write_scan(tmp_path / "ct.nii", -1000, 900, plane), "glcl-encoder")
    assert not ct.fits
    assert "values like HU" in ct.problem
    assert "MRI is expected" in ct.problem


def test_films(zoo, tmp_path):
    """Pictures and DICOM; colours and constant ones are odd; what is no image fails, without a table."""
    pixels = np.tile(np.arange(256, dtype=np.uint8), (200, 1))
    Image.fromarray(pixels).save(tmp_path / "film.png")
    found = examine(tmp_path / "film.png", "caid-resnet50")
    assert found.fits
    assert (facts(found)["format"], facts(found)["pixels"], facts(found)["channels"]) == ("PNG", "200 x 256", "grey")
    assert facts(found)["values"].startswith("uint8, 0 to 255, ")
    write_dicom(tmp_path / "film.dcm", pixels.astype(np.uint16) * 16, bits=12)
    dicom = examine(tmp_path / "film.dcm", "caid-resnet50")
    assert dicom.fits
    assert facts(dicom)["format"].startswith("DICOM")
    colours = np.stack([pixels, pixels[:, ::-1], pixels], axis=2)
    Image.fromarray(colours).save(tmp_path / "colours.png")
    odd = examine(tmp_path / "colours.png", "caid-resnet50")
    assert facts(odd)["channels"] == "colours"
    assert "luminance" in odd.warnings[0]
    (tmp_path / "notes.png").write_text("no image")
    code, out, err = zoo("doctor", tmp_path / "notes.png", "--for", "caid-resnet50")
    assert (code, err) == (1, "")
    assert "does not fit: cannot read" in out


def test_values_that_are_not_finite(tmp_path):
    """Are said, and refused by the transform."""
    values = np.full((20, 20, 20), -1000, np.float32)
    values[3, 3, 3] = np.nan
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "nan.nii")
    found = examine(tmp_path / "nan.nii", "monai-ssl-vitb16")
    assert "NaN" in facts(found)["values"]
    assert "1 NaN or infinite" in found.problem


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["scan.nii"], 1, "scan.nii"),
        (["scan.nii", "--checkpoint", "best.pt"], 2, "zoo doctor FILE --for NAME"),
        (["--for", "caid-resnet50"], 2, "zoo doctor FILE --for NAME"),
        (["scan.nii", "--for", "vgg"], 2, "vgg"),
        (["scan.nii", "--for", "monai-ssl-vitb16"], 1, "scan.nii"),
        (["scan.nii", "--for", "caid-resnet50"], 1, "scan.nii"),
    ],
)
def test_wrong_use(zoo, tmp_path, monkeypatch, arguments, code, said):
    """A file without a model, a model without a file, neither of which is there."""
    monkeypatch.chdir(tmp_path)
    found, _, err = zoo("doctor", *arguments)
    assert found == code
    assert said in err
    assert one_line(err)


def test_programs_import_it_from_the_top():
    """By the name that the README has, as a module too."""
    import zoo
    from zoo.examination import check_cohort, find_fits
    from zoo.examination import examine as public

    assert public is examine is zoo.examination.examine
    assert callable(check_cohort)
    assert callable(find_fits)
