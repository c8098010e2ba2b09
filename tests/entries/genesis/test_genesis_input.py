"""What Models Genesis and TransVW see: HU in the authors' order and scale, and whole scans cube by cube."""

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from dicom_files import write_series
from genesis_files import ENCODER, UNET
from safetensors.torch import save_file
from texts import warnings
from torch import nn

import zoo
from zoo.commands.examination import examine
from zoo.embedding import embed
from zoo.entries.genesis import cubes
from zoo.entry import Preprocessing
from zoo.errors import InputContractError, OptionError
from zoo.transforms import build_transform

LPS = np.diag([-0.7, -0.7, 1.25, 1.0])
"""Matrix to mm, x to the right and y to the front, of voxels as LUNA16 has them: to the left, to the back, up."""
CLOSE = {"rtol": 1e-5, "atol": 1e-6}
"""Sums in another order differ by some 1e-6 of the largest value, which is about 1."""


def chest(shape=(30, 26, 14), seed=0):
    """HU of tissue with lung and bone in it, air around: nothing looks the same from two sides."""
    hu = np.full(shape, -1000.0)
    hu[2:-2, 3:-2, 1:-1] = np.random.default_rng(seed).normal(40, 60, (shape[0] - 4, shape[1] - 5, shape[2] - 2))
    hu[5:12, 6:13, 3:8] = -850
    hu[20:22, 5:9, 2:4] = 1400
    return np.rint(hu).astype(np.float32)


def scaled(hu):
    """What the authors make of HU."""
    return ((np.clip(hu, -1000, 1000) + 1000) / 2000).astype(np.float32)


def turned(hu, codes):
    """The same scan, stored with its axes in another order and direction."""
    image = nibabel.Nifti1Image(hu, LPS)
    turn = nibabel.orientations.ornt_transform(
        nibabel.orientations.axcodes2ornt("LPS"), nibabel.orientations.axcodes2ornt(codes)
    )
    return image.as_reoriented(turn)


# --- the transform ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [ENCODER, UNET])
def test_the_contract_is_the_authors(name):
    """The window begins at -1000, not -1024; voxels stay as they are."""
    facts = zoo.load_transform(name).preprocessing
    assert (facts.window, facts.value_range, facts.units) == ((-1000.0, 1000.0), (0.0, 1.0), "HU")
    assert (facts.orientation, facts.spacing, facts.size, facts.modality) == ("LPS", None, (), "CT")
    assert "axes to LPS, voxels as they are, slices 0.6 to 2.5 mm apart" in str(zoo.load_transform(name))


@pytest.mark.parametrize("codes", ["LPS", "RAS", "LAS", "SPL", "AIR"])
def test_scans_become_what_the_authors_cut_cubes_of(codes, tmp_path):
    """Whatever axes a NIfTI has: x to the left, y to the back, z to the head, clipped and scaled, none resampled."""
    hu = chest()
    nibabel.save(turned(hu, codes), tmp_path / "ct.nii.gz")
    for image in (tmp_path / "ct.nii.gz", turned(hu, codes)):
        made = zoo.load_transform(ENCODER)(image)
        assert (made.shape, made.dtype) == ((1, *hu.shape), torch.float32)
        np.testing.assert_allclose(made[0].numpy(), scaled(hu), atol=1e-6)
    assert (float(made.min()), float(made.max())) == (0.0, 1.0)


def test_it_is_the_array_of_simpleitk_transposed(tmp_path):
    """The authors read with SimpleITK, (z, y, x), and transpose to (x, y, z): of a file of LUNA16's directions."""
    image = sitk.GetImageFromArray(chest().transpose(2, 1, 0))
    image.SetSpacing((0.7, 0.7, 1.25))
    sitk.WriteImage(image, str(tmp_path / "ct.nii"))
    theirs = scaled(sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "ct.nii"))).transpose(2, 1, 0))
    made = zoo.load_transform(ENCODER)(tmp_path / "ct.nii")[0].numpy()
    np.testing.assert_allclose(made, theirs, atol=1e-6)
    assert np.abs(made[:, ::-1] - theirs).max() > 0.1


def test_a_series_of_dicom_has_that_order_too(tmp_path):
    """Columns are x, rows are y, slices from the feet to the head."""
    hu = 2 * np.rint(chest() / 2)
    made = zoo.load_transform(ENCODER)(write_series(tmp_path / "series", hu))
    np.testing.assert_allclose(made[0].numpy(), scaled(hu), atol=1e-6)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda hu: hu + 1024, "tissue lies near 1024"),
        (lambda hu: scaled(hu), "HU are expected"),
        (lambda hu: scaled(hu) * 255, "HU are expected"),
        (lambda hu: (hu > 0).astype(np.float32), "different values|mask"),
        (lambda hu: np.where(hu == 1400, np.nan, hu), "NaN"),
        (lambda hu: hu[..., 0], "one volume"),
    ],
)
def test_what_is_no_ct_in_hu_is_refused(change, said, tmp_path):
    """By the transform and, in the same words, by `zoo doctor`."""
    nibabel.save(nibabel.Nifti1Image(np.float32(change(chest())), LPS), tmp_path / "ct.nii")
    with pytest.raises(InputContractError, match=said) as caught:
        zoo.load_transform(ENCODER)(tmp_path / "ct.nii")
    found = examine(tmp_path / "ct.nii", ENCODER)
    assert (found.fits, found.problem) == (False, str(caught.value))


def test_arrays_and_mri_are_refused(tmp_path):
    """An array does not say which way its axes run, on which all results depend; an MR series is none of CT."""
    for image in (chest(), torch.from_numpy(chest())):
        with pytest.raises(InputContractError, match="without the size and direction of its voxels"):
            zoo.load_transform(ENCODER)(image)
    with pytest.raises(InputContractError, match="is of modality MR: CT is expected"):
        zoo.load_transform(ENCODER)(write_series(tmp_path / "mr", Modality="MR"))


@pytest.mark.parametrize(("thickness", "is_odd"), [(5.0, True), (3.0, True), (2.5, False), (1.0, False), (0.5, True)])
def test_slices_that_lie_farther_apart_than_known_are_warned_of(thickness, is_odd, caplog):
    """Nothing is resampled, so that the network sees another scale; by the longest side of a voxel, whichever it is."""
    sizes = np.array([-min(0.7, thickness), -min(0.7, thickness), thickness])
    for order in ([0, 1, 2], [2, 0, 1]):
        affine = np.eye(4)
        affine[:3, :3] = np.diag(sizes)[:, order]
        caplog.clear()
        zoo.load_transform(ENCODER)(nibabel.Nifti1Image(chest().transpose(order), affine))
        assert [f"{thickness:.3g}" in w and "slices 0.6 to 2.5 mm apart" in w for w in warnings(caplog)] == [
            True
        ] * is_odd


def test_a_contract_with_impossible_slices_is_an_error():
    """As of a header that anybody may write."""
    with pytest.raises(OptionError, match="two lengths in mm"):
        build_transform(Preprocessing(("CT",), (), units="HU", orientation="LPS", thickness=(2.5, 0.6)))


def test_doctor_says_what_the_network_would_get(tmp_path):
    """Shape and range of the transform's output, and its warnings."""
    nibabel.save(turned(chest(), "RAS"), tmp_path / "ct.nii")
    found = examine(tmp_path / "ct.nii", UNET)
    assert (found.fits, found.gives) == (True, "float32 (1, 30, 26, 14), 0 to 1")
    axes = next(fact for fact in found.facts if fact.what == "axes to")
    assert (axes.found, axes.expected) == ("RAS", "LPS, turned from any")


# --- whole scans ------------------------------------------------------------------------------------------------------


class Sums(nn.Module):
    """Stands for the encoder: of each cube its mean, and that of its first half along x. Notes what it was given."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.given = []

    def forward(self, x):
        self.given.append(tuple(x.shape))
        return torch.stack([x.mean(dim=(1, 2, 3, 4)), x[:, :, : x.shape[2] // 2].mean(dim=(1, 2, 3, 4))], dim=1)


@pytest.fixture
def scan(tmp_path):
    """Write HU as a NIfTI, in the axes of most NIfTI files."""

    def write(hu):
        nibabel.save(turned(hu, "RAS"), tmp_path / "ct.nii")
        return tmp_path / "ct.nii"

    return write


def features(model, path, batch_size=8):
    parts = cubes.CubeReader(zoo.load_transform(ENCODER))(path)
    with torch.no_grad():
        rows = torch.cat([model.eval()(part) for part in parts.inputs[0].split(batch_size)])
    return (rows * parts.weights[:, None].float()).sum(dim=0)


def whole(shape, seed=0):
    """A scan without air around it."""
    return np.random.default_rng(seed).normal(40, 60, shape).round().clip(-900).astype(np.float32)


def test_cubes_are_of_the_size_that_the_network_knows(scan):
    """Just as many as cover the scan, and no parts of them."""
    model = Sums()
    features(model, scan(whole((65, 64, 40)) - 400 * (np.arange(40) % 2)), batch_size=3)
    assert cubes.CUBE == (64, 64, 32)
    assert model.given == [(3, 1, 64, 64, 32), (1, 1, 64, 64, 32)]


def test_features_are_the_mean_over_cubes(scan, monkeypatch):
    """Evenly apart from end to end; the same whatever number of them goes through at once."""
    monkeypatch.setattr(cubes, "CUBE", (16, 16, 8))
    hu = whole((40, 16, 12)) - 500 * (np.arange(12) % 3 == 0)
    x = torch.from_numpy(scaled(hu))
    starts = [(i, 0, k) for i in (0, 12, 24) for k in (0, 4)]
    parts = torch.stack([x[i : i + 16, j : j + 16, k : k + 8] for i, j, k in starts])[:, None]
    for at_once in (1, 4, 8):
        torch.testing.assert_close(
            features(Sums(), scan(hu), batch_size=at_once), Sums()(parts).mean(dim=0), rtol=1e-5, atol=1e-6
        )


def test_cubes_of_air_are_left_out(scan, monkeypatch):
    """Noise of air is no anatomy, and a norm would blow it up; lung is not left out."""
    monkeypatch.setattr(cubes, "CUBE", (16, 16, 8))
    rng = np.random.default_rng(0)
    hu = rng.normal(-1000, 20, (64, 16, 8)).round().astype(np.float32)
    hu[16:32] = rng.normal(-850, 40, (16, 16, 8)).round()
    hu[48:] = whole((16, 16, 8))
    model = Sums()
    x = torch.from_numpy(scaled(hu))
    expected = Sums()(torch.stack([x[16:32], x[48:]])[:, None]).mean(dim=0)
    torch.testing.assert_close(features(model, scan(hu)), expected, rtol=1e-5, atol=1e-6)
    assert model.given == [(2, 1, 16, 16, 8)]


def test_a_small_scan_is_filled_up_with_air(scan, monkeypatch):
    """On both ends alike, and what fills it up does not make it air."""
    monkeypatch.setattr(cubes, "CUBE", (64, 64, 64))
    model, hu = Sums(), whole((12, 9, 8)) - 800 * (np.arange(8) % 2)
    found = features(model, scan(hu))
    assert model.given == [(1, 1, 64, 64, 64)]
    total = scaled(hu).sum() / 64**3
    np.testing.assert_allclose(found.numpy(), [total, 2 * scaled(hu)[:6].sum() / 64**3], rtol=1e-4)


def test_air_alone_is_refused(scan, monkeypatch):
    """Rather than features of noise."""
    monkeypatch.setattr(cubes, "CUBE", (16, 16, 8))
    hu = np.random.default_rng(0).normal(-1000, 20, (32, 32, 16)).round().astype(np.float32)
    with pytest.raises(InputContractError, match="nothing but air, below -950 HU"):
        features(Sums(), scan(hu))


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["volume", "batch"])
def test_a_scan_is_embedded_from_end_to_end(norm, tmp_path, monkeypatch):
    """`zoo.embedding.embed` gives the mean of the encoder's own features of cubes, however many go through at once.

    With the authors' statistics of the batch, too: cubes go through one by one then.
    """
    monkeypatch.setattr(cubes, "CUBE", (16, 16, 16))
    torch.manual_seed(0)
    model = zoo.load_model(ENCODER, pretrained=False)
    header = {"model": ENCODER, "options": f'{{"norm": "{norm}"}}'}
    save_file(model.state_dict(), tmp_path / "w.safetensors", metadata=header)
    hu = whole((32, 16, 16)) - 900 * (np.arange(32) % 3 == 0)[:, None, None]
    (tmp_path / "scans").mkdir()
    nibabel.save(turned(hu, "RAS"), tmp_path / "scans" / "a.nii.gz")
    write_series(tmp_path / "scans" / "b", 2 * np.rint(hu / 2))
    (tmp_path / "scans" / "c.nii.gz").write_text("no scan")
    x = torch.from_numpy(scaled(hu))
    with torch.no_grad():
        expected = model(torch.stack([x[:16], x[16:]])[:, None]).mean(dim=0).numpy()
    for at_once in (1, 2):
        found = embed(ENCODER, [tmp_path / "scans"], checkpoint=tmp_path / "w.safetensors", batch_size=at_once)
        assert found.values.shape == (2, 512)
        np.testing.assert_allclose(found.values[0], expected, **CLOSE)
        np.testing.assert_allclose(found.values[1], expected, atol=0.01)  # DICOM has even HU here
        assert [path.rsplit("/", 1)[-1] for path in found.failed] == ["c.nii.gz"]
    with pytest.raises(OptionError, match=f"'{UNET}' has no pooled features.* {ENCODER} gives them"):
        embed(UNET, [tmp_path / "scans"])
