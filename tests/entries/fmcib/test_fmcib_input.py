"""What FMCIB sees: a box around a seed point in the authors' geometry; tables of lesions; what `zoo doctor` says."""

import pickle

import nibabel
import numpy as np
import pytest
import torch
from dicom_files import write_series
from fmcib_files import NAME, reference_crops, volume
from scipy.ndimage import map_coordinates
from texts import warnings
from torch import nn

import zoo
from zoo.checkpoint.report import ATTRIBUTE, LoadReport
from zoo.commands.examination import examine
from zoo.commands.fitting import find_fits, fits_page
from zoo.embedding import embed, embedder
from zoo.entry import SEED_POINT, Preprocessing
from zoo.errors import InputContractError, OptionError
from zoo.images import read_volume
from zoo.transforms import build_transform

TOLERANCE = 1e-5
"""Of values from 0 to 1; the authors' float32 differs by 1e-7, half a voxel beside by 2e-3 and more."""
AFFINE = np.diag([-0.8, -0.8, 2.0, 1.0])
"""Voxels to the left, to the back and up, whose first one is at the origin."""
POINT = (40.3, 36.6, 50.2)
"""In LPS mm, in the middle of `chest()`, and no whole voxel of the grid of 1 mm."""


@pytest.fixture(scope="module")
def transform():
    return zoo.load_transform(NAME)


def chest(shape=(100, 90, 50), seed=0):
    """HU of noisy tissue with lung and bone in it, air around: nothing looks the same from two sides."""
    hu = np.full(shape, -1000.0)
    hu[4:-4, 6:-6, 1:-1] = np.random.default_rng(seed).normal(40, 60, (shape[0] - 8, shape[1] - 12, shape[2] - 2))
    hu[20:40, 20:50, 10:30] = -850
    hu[60:66, 40:48, 15:28] = 1400
    return np.rint(hu).astype(np.float32)


def image(hu=None, affine=AFFINE):
    return nibabel.Nifti1Image(chest() if hu is None else hu, affine)


# --- the authors' crops -----------------------------------------------------------------------------------------------


def crops(transform):
    """Ours of the reference volumes, every 2nd voxel."""
    points = reference_crops()["points"]
    upright = transform((volume("a"), points[:2]))
    oblique = transform((volume("b"), points[2]))
    return torch.cat([upright, oblique[None]])[..., ::2, ::2, ::2].numpy()


def test_crops_are_the_authors(transform):
    """Inside, over the border and of an oblique volume; not as MONAI before 1.6 sampled, nor with axes (x, y, z)."""
    found, theirs = crops(transform), reference_crops()
    assert found.shape == (3, 1, 25, 25, 25)
    assert found.dtype == np.float32
    for i in range(3):
        assert np.abs(found[i] - theirs["crops"][i]).max() < TOLERANCE
        assert np.abs(found[i] - theirs["crops_monai14"][i]).max() > 100 * TOLERANCE
        assert np.abs(found[i].transpose(0, 3, 2, 1) - theirs["crops"][i]).max() > 0.05


def test_a_crop_is_the_volume_at_its_positions(transform):
    """Computed anew: a grid of 1 mm from where x and y in RAS are smallest, counted from its far end; (z, y, x)."""
    made = transform((image(), POINT))
    span = (np.array(chest().shape) - 1) * (0.8, 0.8, 2.0)
    first = np.array([*(span - np.rint(span))[:2], 0.0])  # of the grid's voxels counted to the left, back and head, mm
    index = (np.array(POINT) - first).astype(int)
    x, y, z = (start + np.arange(-25, 25) + i for start, i in zip(first, index, strict=True))
    z, y, x = np.meshgrid(z, y, x, indexing="ij")
    hu = map_coordinates(chest(), [x / 0.8, y / 0.8, z / 2.0], order=1, mode="grid-constant", cval=-1024)
    np.testing.assert_allclose(made[0].numpy(), (hu + 1024) / 3072, atol=1e-5)


@pytest.mark.parametrize("codes", ["LPS", "RAS", "SAL", "PIR"])
def test_the_axes_of_the_file_do_not_matter(codes, transform, tmp_path):
    """Whatever order and direction they have, in a file, an image or a `Volume`."""
    axes = nibabel.orientations.axcodes2ornt
    turned = image().as_reoriented(nibabel.orientations.ornt_transform(axes("LPS"), axes(codes)))
    nibabel.save(turned, tmp_path / "ct.nii.gz")
    expected = transform((image(), POINT))
    for given in (turned, tmp_path / "ct.nii.gz", str(tmp_path / "ct.nii.gz"), read_volume(turned)):
        torch.testing.assert_close(transform((given, POINT)), expected, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_series_of_dicom_is_cropped_in_its_own_coordinates(transform, tmp_path):
    """The point is in LPS mm, as `ImagePositionPatient` is."""
    hu = 2 * np.rint(chest((90, 80, 40)) / 2)
    series = write_series(tmp_path / "series", hu)
    found = read_volume(series)
    point = (found.affine @ [45, 38, 20, 1])[:3] * (-1, -1, 1) + 0.3
    same = transform((nibabel.Nifti1Image(found.values, found.affine), point))
    torch.testing.assert_close(transform((series, point)), same, rtol=0, atol=1e-6)
    middle = same[0, 24:27, 24:27, 24:27].mean() * 3072 - 1024
    voxel = np.linalg.inv(found.affine) @ [*(point * (-1, -1, 1)), 1]
    near = tuple(slice(int(v) - 1, int(v) + 3) for v in voxel[:3])
    assert abs(float(middle) - found.values[near].mean()) < 100


def test_nothing_is_clipped_but_padding(transform):
    """Metal goes above 1 and noise of air below 0; what was written in far below becomes air."""
    hu = chest()
    hu[48:54, 42:50, 22:28] = 3000
    hu[28:33, 28:33, 19:22] = -1090
    made = transform((image(hu), POINT))
    assert made.max() == pytest.approx((3000 + 1024) / 3072)
    assert made.min() < 0
    hu[:, :30] = -3024
    assert transform((image(hu), POINT)).min() > -0.03


def test_the_transform_can_be_sent_and_printed(transform):
    """As loader processes need it; printing shows its steps."""
    again = pickle.loads(pickle.dumps(transform))
    assert again.preprocessing == transform.preprocessing
    assert "50 x 50 x 50 voxels around the seed point" in str(transform)
    assert "(x - -1024) / 3072, not clipped" in str(transform)


# --- points and masks -------------------------------------------------------------------------------------------------


def test_points_may_be_in_ras_or_several(transform):
    """RAS is x and y negated; several are stacked, each as alone."""
    x, y, z = POINT
    one = transform((image(), POINT))
    assert torch.equal(transform((image(), (-x, -y, z)), convention="RAS"), one)
    both = transform((image(), [POINT, (x + 2, y - 3, z)]))
    assert both.shape == (2, 1, 50, 50, 50)
    assert torch.equal(both[0], one)
    assert torch.equal(both[1], transform((image(), torch.tensor([x + 2, y - 3, z], dtype=torch.float64))))
    with pytest.raises(OptionError, match="convention='LAS': expected 'LPS' or 'RAS'"):
        transform((image(), POINT), convention="LAS")


def test_a_mask_stands_for_its_centre(transform, tmp_path):
    """An array on the volume's grid, an image or file on any, with any one value."""
    inside = np.zeros((100, 90, 50), np.uint8)
    inside[48:55, 44:48, 24:27] = 7
    centre = np.array([51, 45.5, 25]) * (0.8, 0.8, 2.0)
    expected = transform((image(), centre))
    nibabel.save(nibabel.Nifti1Image(inside, AFFINE), tmp_path / "mask.nii.gz")
    shifted = AFFINE.copy()
    shifted[:3, 3] = AFFINE[:3, :3] @ [40, 40, 20]
    part = nibabel.Nifti1Image(inside[40:60, 40:50, 20:30], shifted)
    for mask in (inside, inside > 0, torch.from_numpy(inside), tmp_path / "mask.nii.gz", part):
        torch.testing.assert_close(transform((image(), mask)), expected, rtol=0, atol=1e-6)


def test_masks_of_several_lesions_are_not_averaged(transform, caplog):
    """Two values are refused, two parts warned of; the centre between them is in neither."""
    inside = np.zeros((100, 90, 50), np.uint8)
    inside[30:35, 44:48, 24:27] = 1
    inside[60:65, 44:48, 24:27] = 2
    with pytest.raises(InputContractError, match="has 2 values other than 0: a mask of one lesion"):
        transform((image(), inside))
    transform((image(), (inside > 0)))
    assert [line for line in warnings(caplog) if "has 2 parts that do not touch" in line]
    with pytest.raises(InputContractError, match="is 0 everywhere"):
        transform((image(), inside * 0))
    with pytest.raises(InputContractError, match="values other than 0"):
        transform((image(), image()))
    with pytest.raises(InputContractError, match="an array is taken to be on the volume's own grid"):
        transform((image(), inside[1:]))


@pytest.mark.parametrize("case", ["ct.nii", image(), np.zeros((9, 9, 9)), ("ct.nii",), ("ct.nii", POINT, "RAS"), None])
def test_a_volume_without_a_point_is_explained(case, transform):
    """Before it is read."""
    with pytest.raises(InputContractError, match=r"comes without a seed point.*\(volume, \(x, y, z\)\) is expected"):
        transform(case)


@pytest.mark.parametrize("point", [(1, 2), (1, 2, np.nan), "near", 3, [[1, 2, 3], [4, 5]], [], None, {"x": 1}])
def test_what_is_no_point_is_refused(point, transform):
    """Text is taken for the path of a mask."""
    error = FileNotFoundError if isinstance(point, str) else InputContractError
    with pytest.raises(error, match="no volume at near" if isinstance(point, str) else "three finite numbers"):
        transform((image(), point))


def test_a_point_outside_is_refused(transform):
    """With a hint where the other convention would have it inside; half a voxel beyond the last centre is inside."""
    x, y, z = POINT
    with pytest.raises(InputContractError, match=r"outside Nifti1Image.*convention='RAS' takes RAS"):
        transform((image(), (-x, -y, z)))
    with pytest.raises(InputContractError, match="of one patient, in mm, and not in voxels"):
        transform((image(), (x, y, 500)))
    assert transform((image(), (x, y, 98.9))).shape == (1, 50, 50, 50)
    with pytest.raises(InputContractError, match="lies outside"):
        transform((image(), (x, y, 99.1)))


def test_a_point_near_the_border_is_warned_of(transform, caplog):
    """The box is filled up on both sides, so that the point is not in its middle; 25 mm inside nothing is said."""
    x, y, _ = POINT
    transform((image(), POINT))
    assert not [line for line in warnings(caplog) if "border" in line]
    made = transform((image(), (x, y, 88.3)))
    assert ["of the box's sides 14 voxels are beyond it" in line for line in warnings(caplog)][-1]
    assert not made[0, :7].any()
    assert not made[0, -7:].any()
    assert made[0, 8].any()
    assert made[0, -8].any()


def test_a_point_beyond_the_last_centre_has_a_box(transform):
    """Also where half a thick slice is more than half the box; the nearest voxel of the grid counts."""
    small = build_transform(transform.preprocessing.override({"size": (8, 8, 8)}))
    thick = image(affine=np.diag([-0.8, -0.8, 20.0, 1.0]))
    last = small((thick, (40.3, 36.6, 980.0)))
    assert torch.equal(small((thick, (40.3, 36.6, 989.9))), last)
    assert last.any()
    assert torch.equal(small((thick, (40.3, 36.6, -9.9))), small((thick, (40.3, 36.6, 0.0))))


def test_rounding_does_not_move_a_box(transform):
    """A point on a whole voxel, but for what float64 cannot hold, is on that voxel."""
    upright = image(affine=np.diag([-1.0, -1.0, 1.1, 1.0]))
    whole = transform((upright, (40.0, 36.0, 30.0)))
    for error in (1e-7, -1e-7):
        assert torch.equal(transform((upright, (40.0 + error, 36.0 + error, 30.0 + error))), whole)
    assert not torch.equal(transform((upright, (39.9, 36.0, 30.0))), whole)


def test_a_box_partly_outside_a_tilted_volume_is_warned_of(transform, caplog):
    """It lies in the volume's bounding box, and yet some of it in no voxel."""
    turn = np.deg2rad(30)
    tilted = AFFINE.copy()
    tilted[:2, :2] = [[-0.8 * np.cos(turn), 0.8 * np.sin(turn)], [-0.8 * np.sin(turn), -0.8 * np.cos(turn)]]
    point = (tilted @ [35, 25, 25, 1])[:3]
    transform((image(affine=tilted), point), convention="RAS")
    assert any("% of the box around the seed point" in line for line in warnings(caplog))


# --- what is no CT in HU ----------------------------------------------------------------------------------------------


def scaled(hu):
    return (hu + 1024) / 3072


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda hu: hu + 1024, "tissue lies near 1024"),
        (scaled, "HU are expected"),
        (lambda hu: scaled(hu) * 255, "HU are expected"),
        (lambda hu: (hu > 0).astype(np.float32), "different values|mask"),
        (lambda hu: np.where(hu == 1400, np.nan, hu), "NaN"),
        (lambda hu: hu[..., 0], "one volume"),
    ],
)
def test_what_is_no_ct_in_hu_is_refused(change, said, transform, tmp_path):
    """By the transform and, in the same words, by `zoo doctor`."""
    nibabel.save(image(np.float32(change(chest()))), tmp_path / "ct.nii")
    with pytest.raises(InputContractError, match=said) as caught:
        transform((tmp_path / "ct.nii", POINT))
    found = examine(tmp_path / "ct.nii", NAME)
    assert (found.fits, found.problem) == (False, str(caught.value))


def test_arrays_and_mri_are_refused_and_thick_slices_warned_of(transform, tmp_path, caplog):
    """An array does not say where it lies; an MR series is none of CT; slices of more than 5 mm are warned of."""
    with pytest.raises(InputContractError, match="without the size and direction of its voxels"):
        transform((chest(), POINT))
    with pytest.raises(InputContractError, match="is of modality MR: CT is expected"):
        transform((write_series(tmp_path / "mr", Modality="MR"), POINT))
    transform((image(affine=np.diag([-0.8, -0.8, 6.0, 1.0])), POINT))
    assert any("voxels of 0.8 x 0.8 x 6 mm, where the network knows slices at most 5 mm" in w for w in warnings(caplog))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"size": (50, 50)}, "three sizes in voxels"),
        ({"spacing": None}, "three lengths in mm"),
        ({"orientation": "SPX"}, "one letter of each"),
        ({"window": (-1024.0, 2048.0)}, "window with crop 'seed point'"),
        ({"std": (0.0,)}, "not 0"),
        ({"units": "fraction"}, "in volumes of one channel in HU is known"),
        ({"crop": "centre"}, "crop 'centre'"),
    ],
)
def test_impossible_contracts_are_errors(changes, said, transform):
    """As of a header that anybody may write."""
    with pytest.raises(OptionError, match=said):
        build_transform(transform.preprocessing.override(changes))


def test_a_crop_means_nothing_for_pictures():
    """A 2D contract with one is no contract."""
    with pytest.raises(OptionError, match="of a crop three sizes"):
        build_transform(Preprocessing(("CT",), (64, 64), units="HU", crop=SEED_POINT))


# --- doctor -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_doctor_says_that_a_seed_point_is_needed(zoo, tmp_path):
    """Of a file alone, all else is examined; with `--for` and without."""
    nibabel.save(image(), tmp_path / "ct.nii.gz")
    code, said, _ = zoo("doctor", tmp_path / "ct.nii.gz", "--for", NAME)
    assert code == 0
    assert "fits: load_transform gives float32 (1, 50, 50, 50) around the seed point\n" in said
    assert "\nneeds: a seed point beside the file, the middle of the lesion in LPS mm: " in said
    assert "any, 50 x 50 x 50 around a seed point" in said
    fits = find_fits(tmp_path / "ct.nii.gz")
    assert [fit.examination.fits for fit in fits if fit.model.startswith(NAME)] == [True]
    page = fits_page("ct.nii.gz", fits)
    (at,) = (i for i, line in enumerate(page) if NAME in line)
    assert page[at + 1].startswith("    needs: a seed point beside the file")
    assert sum("needs:" in line for line in page) == 1
    code, said, _ = zoo("doctor", tmp_path, "--for", NAME)
    assert (code, said.splitlines()[1][:24]) == (0, "  needs: a seed point be")
    code, said, _ = zoo("info", NAME)
    assert code == 0
    assert "crop: seed point" in said


# --- tables of lesions ------------------------------------------------------------------------------------------------


class Sums(nn.Module):
    """Stands for the network: of each box its mean and that of its lower half."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return torch.stack([x.mean(dim=(1, 2, 3, 4)), x[:, :, :25].mean(dim=(1, 2, 3, 4))], dim=1)


@pytest.fixture
def cohort(tmp_path, monkeypatch):
    """Two scans and a broken one, and a network whose features are soon computed."""

    def load(name, **_):
        model = Sums()
        setattr(model, ATTRIBUTE, LoadReport(NAME, source="random", fresh={"weight": "random"}))
        return model

    monkeypatch.setattr(embedder, "load_model", load)
    monkeypatch.chdir(tmp_path)
    for i, name in enumerate("ab"):
        nibabel.save(image(chest(seed=i)), f"{name}.nii.gz")
    (tmp_path / "c.nii.gz").write_text("no scan")
    return tmp_path


def write(path, *rows, columns="label,image_path,coordX,coordY,coordZ"):
    path.write_text("\n".join([columns, *rows, ""]), encoding="utf-8")
    return path


@pytest.mark.slow
def test_lesions_of_a_table_are_embedded(cohort, transform, zoo):
    """A row for each, called by path and point, whatever the batch; what fails is named, and the others have rows."""
    points = [POINT, (38.5, 30.25, 48.0), POINT]
    rows = [f"x,{name}.nii.gz,{x},{y},{z}" for name, (x, y, z) in zip("aab", points, strict=True)]
    table = write(cohort / "lesions.csv", *rows, "y,c.nii.gz,1,2,3", "y,a.nii.gz,-900,0,0", rows[0])
    with torch.no_grad():
        expected = torch.cat([Sums()(transform((f"{n}.nii.gz", p))[None]) for n, p in zip("aab", points, strict=True)])
    for options in ({}, {"batch_size": 1}, {"batch_size": 2, "workers": 1}):
        found = embed(NAME, [table], **options)
        np.testing.assert_allclose(found.values, expected.numpy(), atol=1e-6)
        assert found.paths == (
            "a.nii.gz (40.3, 36.6, 50.2)",
            "a.nii.gz (38.5, 30.25, 48.0)",
            "b.nii.gz (40.3, 36.6, 50.2)",
        )
        assert list(found.failed) == ["c.nii.gz (1.0, 2.0, 3.0)", "a.nii.gz (-900.0, 0.0, 0.0)"]
        assert "lies outside a.nii.gz" in found.failed["a.nii.gz (-900.0, 0.0, 0.0)"]
    code, said, err = zoo("embed", NAME, table, "-o", "f.csv")
    assert code == 1
    assert "2 image(s) have no features" in err
    assert "3 x 2 features of 3 image(s)" in said


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ((), "has no rows"),
        (("x,a.nii.gz,1,2,",), r"line 2: image_path 'a.nii.gz'.*coordZ '': a path and three numbers"),
        (("x,a.nii.gz,1,2,nan",), "three numbers in mm"),
        (("x,,1,2,3",), "a path and three numbers"),
        (("x,absent.nii.gz,1,2,3",), "the path does not exist: absent.nii.gz"),
    ],
)
def test_a_wrong_table_is_refused_before_anything_is_loaded(rows, said, cohort):
    """Line and cells are named."""
    with pytest.raises(OptionError, match=said):
        embed(NAME, [write(cohort / "lesions.csv", *rows)])


def test_scans_without_points_are_refused(cohort, zoo):
    """A path, a folder, a table with other columns, one that does not exist: each says what is expected."""
    for path in ("a.nii.gz", cohort):
        code, _, err = zoo("embed", NAME, path, "-o", "f.npz")
        assert code == 2
        assert "comes without a seed point" in err
        assert "image_path, coordX, coordY, coordZ" in err
    with pytest.raises(OptionError, match="lacks columns coordX, coordY, coordZ"):
        embed(NAME, write(cohort / "l.csv", "a.nii.gz", columns="image_path"))
    with pytest.raises(OptionError, match=r"the path does not exist: absent\.csv"):
        embed(NAME, ["absent.csv"])
    (cohort / "latin.csv").write_bytes(b"image_path,coordX,coordY,coordZ\n\xff.nii,1,2,3\n")
    with pytest.raises(OptionError, match="CSV in UTF-8 is expected"):
        embed(NAME, ["latin.csv"])
