"""Whole CTs for CT-FM: the input as the authors make it, features by tiles, labels by windows, `zoo segment`."""

import logging
from dataclasses import replace

import nibabel
import numpy as np
import pytest
import torch
from caid_files import filled, relative_error
from ctfm_files import ENCODER, SEGMENTER
from monai.inferers.utils import sliding_window_inference
from monai.transforms import Compose, CropForeground, LoadImage, Orientation, ScaleIntensityRange, Spacing
from safetensors.torch import save_file
from torch import nn

import zoo
from zoo.embedding import embed
from zoo.entries.ct_fm import segment as windows
from zoo.entries.ct_fm import tiles
from zoo.errors import InputContractError, OptionError
from zoo.transforms.placing import foreground_box

RAS, LPS = np.diag([0.8, 0.9, 2.5, 1.0]), np.diag([-0.8, -0.9, 2.5, 1.0])


def ct(shape=(44, 38, 15), seed=0):
    """Tissue with noise and a gradient along each axis, so that no turn leaves it alike; air around."""
    rng = np.random.default_rng(seed)
    values = rng.normal(-1000, 8, shape).clip(-1024).astype(np.float32)
    body = tuple(slice(4, side - 3) for side in shape)
    i, j, k = np.meshgrid(*(np.linspace(0, 1, side) for side in shape), indexing="ij")
    values[body] = (100 * i - 60 * j + 200 * k * i + rng.normal(0, 40, shape))[body]
    return values


def write(path, values, affine=RAS):
    nibabel.save(nibabel.Nifti1Image(values, affine), path)
    return path


@pytest.fixture
def scan(tmp_path):
    return write(tmp_path / "ct.nii.gz", ct())


@pytest.fixture
def narrow(monkeypatch):
    """Networks with an eighth of the channels, which are made in no time."""
    monkeypatch.setattr("zoo.entries.ct_fm.model.FILTERS", 4)


def trained(name, path, **options):
    """Save a network whose values follow from their names, its norms not as they start, and return it."""
    model = zoo.load_model(name, pretrained=False, **options)
    save_file(filled({name: tensor.shape for name, tensor in model.state_dict().items()}), path)
    return zoo.load_model(name, checkpoint=path, **options)


class Pointwise(nn.Module):
    """A few classes by one convolution."""

    def __init__(self, classes=6):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv3d(1, classes, 3, padding=1)

    def forward(self, x):
        return self.conv(x)


# --- the input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [ENCODER, SEGMENTER])
def test_the_input_is_the_authors(name, scan):
    """Their transforms in MONAI, but for the crop: axes, then spacing, then the window. A wrong axis is off by 0.1.

    Float32 sums in another order differ by 1e-6. Noise of air below -1024 HU, which this CT has not, is clipped before
    it is resampled, by theirs only afterwards.
    """
    spacing = [Spacing(pixdim=(3, 1, 1), mode="bilinear")] if name == ENCODER else []
    scale = ScaleIntensityRange(-1024, 2048, 0, 1, clip=True)
    theirs = Compose([LoadImage(ensure_channel_first=True), Orientation("SPL"), *spacing, scale])(scan).as_tensor()
    ours = zoo.load_transform(name)(scan)
    assert ours.shape == theirs.shape == ((1, 13, 34, 35) if name == ENCODER else (1, 15, 38, 44))
    assert (ours - theirs).abs().max() < 1e-5
    assert (ours.min(), ours.dtype) == (pytest.approx(0.0, abs=0.02), torch.float32)


def test_the_order_of_a_files_axes_does_not_matter(scan, tmp_path):
    """A CT that is stored the other way round, or with its axes exchanged, is the same CT."""
    mirrored = LPS.copy()
    mirrored[:2, 3] = [0.8 * 43, 0.9 * 37]
    same = write(tmp_path / "lps.nii.gz", ct()[::-1, ::-1], mirrored)
    turned = write(tmp_path / "turned.nii.gz", ct().transpose(2, 0, 1), RAS[:, [2, 0, 1, 3]])
    transform = zoo.load_transform(ENCODER)
    for other in (same, turned):
        torch.testing.assert_close(transform(other), transform(scan), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", [ENCODER, SEGMENTER])
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: ct() + 1024, "tissue lies near 1024 and no air at -1000|HU are expected"),
        (lambda: (ct() + 1024) / 3072, "HU are expected"),
        (lambda: np.random.default_rng(0).gamma(2, 100, (40, 40, 15)).astype(np.float32), "looks like MRI|HU are"),
        (lambda: (ct() > -500).astype(np.float32), "HU are expected|mask"),
    ],
)
def test_what_is_no_ct_is_refused(name, make, said, tmp_path, zoo):
    """Stored values, a scaled window, MRI, a mask: by the transform, and by `zoo doctor` alike."""
    import zoo as package

    path = write(tmp_path / "x.nii.gz", make())
    with pytest.raises(InputContractError, match=said):
        package.load_transform(name)(path)
    assert zoo("doctor", path, "--for", name)[0] == 1


def test_an_array_has_no_axes(scan):
    """Where superior is cannot be told of it; of an image on a plane neither."""
    transform = zoo.load_transform(SEGMENTER)
    with pytest.raises(InputContractError, match="without the size and direction of its voxels"):
        transform(ct())
    with pytest.raises(InputContractError):
        transform(np.zeros((64, 64), np.float32))


def test_doctor_says_what_the_transform_does(scan, zoo):
    """Axes and voxels that are expected, and the tensor that comes of it."""
    code, said, _ = zoo("doctor", scan, "--for", ENCODER)
    assert code == 0
    for words in ("SPL, turned from any", "3 x 1 x 1, resampled from any", "(1, 13, 34, 35)"):
        assert words in said.replace(" × ", " x ")


# --- features by tiles ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_features_are_the_weighted_mean_over_tiles(narrow, monkeypatch, scan, tmp_path):
    """Computed here tile by tile with numpy; the plain mean over tiles, and the whole at once, are others."""
    monkeypatch.setattr(tiles, "TILE", (8, 16, 16))
    model = trained(ENCODER, tmp_path / "w.safetensors")
    found = embed(ENCODER, [scan], checkpoint=tmp_path / "w.safetensors", batch_size=5)
    volume = zoo.load_transform(ENCODER)(scan)[0].numpy()
    rows, counts = [], []
    for i in range(0, 13, 8):
        for j in range(0, 34, 16):
            for k in range(0, 35, 16):
                tile = np.zeros((8, 16, 16), np.float32)
                part = volume[i : i + 8, j : j + 16, k : k + 16]
                tile[tuple(map(slice, part.shape))] = part
                with torch.no_grad():
                    rows.append(model(torch.from_numpy(tile)[None, None])[0].numpy())
                counts.append(part.size)
    expected = np.average(rows, axis=0, weights=counts)
    assert found.values.shape == (1, 64)
    assert relative_error(torch.from_numpy(found.values[0]), expected) < 1e-5
    with torch.no_grad():
        whole = model(torch.from_numpy(volume)[None, None])[0].numpy()
    for wrong in (np.mean(rows, axis=0), whole):
        assert relative_error(torch.from_numpy(found.values[0]), wrong) > 1e-3


@pytest.mark.slow
def test_the_published_tile_is_taken(narrow, scan, tmp_path):
    """24 x 128 x 128: a small CT is one tile, filled up with air behind its ends; other numbers at once are alike."""
    model = trained(ENCODER, tmp_path / "w.safetensors")
    volume = zoo.load_transform(ENCODER)(scan)
    filled = torch.zeros(1, 1, 24, 128, 128)
    filled[0, :, :13, :34, :35] = volume
    with torch.no_grad():
        expected = model(filled)
    found = embed(ENCODER, [scan], checkpoint=tmp_path / "w.safetensors").values
    assert relative_error(torch.from_numpy(found), expected.numpy()) < 1e-5


# --- labels by windows ------------------------------------------------------------------------------------------------


def logits_of(model, volume, window, overlap, mode="gaussian"):
    """What MONAI stitches, in float32."""
    with torch.no_grad():
        return sliding_window_inference(volume[None], window, 2, model, overlap=overlap, mode=mode)[0]


@pytest.mark.parametrize("overlap", [0.625, 0.25, 0.0])
@pytest.mark.parametrize("shape", [(40, 37, 50), (16, 20, 24), (9, 40, 30), (16, 16, 17)])
def test_labels_are_those_of_monais_windows(shape, overlap):
    """But where two classes are as near as half precision rounds: 27 windows with an error of 2e-4 each."""
    model = Pointwise()
    volume, window = torch.rand((1, *shape), generator=torch.Generator().manual_seed(1)), (16, 16, 24)
    found = windows.label(model, volume, window=window, batch_size=3, overlap=overlap)
    logits = logits_of(model, volume, window, overlap)
    assert (found.shape, found.dtype) == (shape, torch.uint8)
    chosen = logits.gather(0, found[None].long())[0]
    assert (logits.max(dim=0)[0] - chosen).max() < 5e-3
    assert (found == logits.argmax(dim=0)).float().mean() > 0.99
    assert len(found.unique()) > 2


def test_windows_are_weighted_by_a_gaussian():
    """A network that tells the middle of its window from the edge: with equal weights other labels come out."""

    class Edges(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, x):
            along = torch.linspace(-1, 1, x.shape[3])[:, None].expand_as(x).abs()
            return torch.cat([along, 0.45 - 0 * along], 1)

    volume, window = torch.zeros(1, 16, 64, 16), (16, 32, 16)
    found = windows.label(Edges(), volume, window=window, overlap=0.625)
    assert torch.equal(found.long(), logits_of(Edges(), volume, window, 0.625).argmax(0))
    equal = logits_of(Edges(), volume, window, 0.625, mode="constant").argmax(0)
    assert (found != equal).float().mean() > 0.1


def test_labels_that_mean_nothing_are_refused():
    """NaN or infinite logits, values beyond half precision, more classes than a byte tells apart, wrong numbers."""
    volume, window = torch.rand(1, 16, 16, 16), (16, 16, 16)
    for scale in (float("nan"), 1e6):
        model = Pointwise()
        with torch.no_grad():
            model.conv.weight *= scale
        with pytest.raises(InputContractError, match="NaN or beyond half precision"):
            windows.label(model, volume, window=window)
    with pytest.raises(OptionError, match="300 classes; labels of one byte tell 256 apart"):
        windows.label(Pointwise(300), volume, window=window)
    for wrong in ({"overlap": 1.0}, {"overlap": -0.1}, {"batch_size": 0}):
        with pytest.raises(OptionError, match="from 0 to below 1, and at least 1"):
            windows.label(Pointwise(), volume, window=window, **wrong)


def test_a_box_has_a_margin_as_far_as_there_are_voxels():
    """Ten voxels around what is not air, in the authors' recipe."""
    values = np.zeros((40, 40, 40), np.float32)
    values[12:20, 5, 38] = 1
    assert foreground_box(values, 0.0, 10) == (slice(2, 30), slice(0, 16), slice(28, 40))
    assert foreground_box(values, 0.0) == (slice(12, 20), slice(5, 6), slice(38, 39))


@pytest.mark.slow
def test_segment_writes_labels_on_the_scans_own_grid(narrow, monkeypatch, tmp_path, zoo):
    """`zoo segment` on a padded CT against the authors' steps in MONAI: crop, windows, and all of it undone."""
    import zoo as package

    monkeypatch.setattr(windows, "WINDOWS", replace(windows.WINDOWS, size=(16, 32, 32)))
    model = trained(SEGMENTER, tmp_path / "w.safetensors", num_classes=5)
    values = np.pad(ct(), ((0, 20), (14, 0), (0, 0)), constant_values=-1024)
    path = write(tmp_path / "ct.nii.gz", values)
    code, said, err = zoo("segment", SEGMENTER, path, "--checkpoint", tmp_path / "w.safetensors", "-o", tmp_path / "o")
    assert code == 0, err
    assert "voxels as they are" in said
    written = nibabel.load(tmp_path / "o" / "ct_labels.nii.gz")
    np.testing.assert_allclose(written.affine, RAS, atol=1e-5)
    volume = package.load_transform(SEGMENTER)(path)
    cropped = CropForeground(margin=10, allow_smaller=True)(volume)
    box = tuple(slice(max(0, n[0] - 10), n[-1] + 11) for n in map(np.unique, np.nonzero(volume[0].numpy() > 0)))
    assert cropped.shape == volume[(0, *box)][None].shape
    expected = np.zeros(volume.shape[1:], np.uint8)
    with torch.no_grad():
        logits = logits_of(model, torch.as_tensor(cropped), (16, 32, 32), 0.625)
    expected[box] = logits.argmax(0).numpy()
    home = expected[:, ::-1, ::-1].transpose(2, 1, 0)  # S, P, L back to R, A, S
    found = np.asarray(written.dataobj)
    assert found.shape == values.shape
    assert (found != home).mean() < 5e-3  # sums in half precision
    assert len(np.unique(found)) > 2
    assert not found[-9:].any()


def test_a_network_without_classes_segments_nothing(narrow, scan, tmp_path):
    """Its maps are no classes, and the largest of 32 would pass for one."""
    model = trained(SEGMENTER, tmp_path / "w.safetensors", num_classes=0)
    with pytest.raises(OptionError, match="tells no classes apart"):
        windows.segment_volume(model, zoo.load_transform(SEGMENTER), scan)


def test_voxels_far_from_the_trainings_are_warned_of(narrow, monkeypatch, tmp_path, caplog):
    """The whole-body weights know scans of 1.5 mm; thick slices and fine ones are segmented with a warning."""
    monkeypatch.setattr(windows, "WINDOWS", replace(windows.WINDOWS, size=(16, 16, 16)))
    model = trained(SEGMENTER, tmp_path / "w.safetensors", num_classes=2)
    for spacing, is_odd in ((5.0, True), (1.5, False)):
        caplog.clear()
        path = write(tmp_path / "ct.nii.gz", ct((20, 20, 12)), np.diag([1.5, 1.5, spacing, 1.0]))
        windows.segment_volume(model, zoo.load_transform(SEGMENTER), path, overlap=0.0)
        said = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
        assert any("far from the 1.5 x 1.5 x 1.5 mm" in line for line in said) == is_odd
