"""Whole images through networks window by window: MONAI's numbers, memory, and labels on each image's own grid."""

from dataclasses import replace

import nibabel
import numpy as np
import pytest
import torch
from monai.inferers.utils import sliding_window_inference
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import zoo as package
from zoo.entry import Windows
from zoo.errors import InputContractError, OptionError
from zoo.images import read_label_picture
from zoo.registry import entries, get_entry
from zoo.tasks import sliding
from zoo.tasks.labelling import label_image, windows_of
from zoo.tasks.sliding import find_classes, find_logits
from zoo.transforms import build_transform


class Neighbours(nn.Module):
    """Some classes by convolutions, whose logits near the border of a window differ from those in its middle."""

    def __init__(self, classes=5, dimension=3, channels=1):
        super().__init__()
        torch.manual_seed(0)
        conv = nn.Conv3d if dimension == 3 else nn.Conv2d
        self.layers = nn.Sequential(conv(channels, 4, 5, padding=2), nn.ReLU(), conv(4, classes, 3, padding=1))
        self.num_classes = classes

    def forward(self, x):
        return self.layers(x)


def drawn(shape, seed=1):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("gaussian", [False, True])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.625])
@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((20, 17, 30), (8, 8, 12)),
        ((9, 40, 11), (8, 8, 12)),
        ((8, 8, 12), (8, 8, 12)),
        ((5, 7, 40), (8, 8, 12)),
        ((37, 50), (16, 16)),
        ((9, 40), (16, 32)),
    ],
)
def test_logits_are_those_of_monais_windows(shape, size, overlap, gaussian):
    """In two and three dimensions, along any axis, of images larger and smaller than a window."""
    model, image = Neighbours(dimension=len(shape)), drawn((1, *shape))
    with torch.no_grad():
        mode = "gaussian" if gaussian else "constant"
        expected = sliding_window_inference(image[None], size, 2, model, overlap=overlap, mode=mode)[0]
    windows = Windows(size, overlap, 3, gaussian)
    found = find_logits(model, image, windows)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)  # float32 sums in another order
    assert not found.requires_grad
    labels = find_classes(model, image, windows)
    assert (labels.dtype, labels.shape) == (torch.uint8, shape)
    assert torch.equal(labels.long(), found.argmax(0))
    assert len(labels.unique()) > 2


@pytest.mark.parametrize("shape", [(100, 16, 16), (16, 100, 24), (16, 16, 100)])
def test_memory_does_not_grow_with_the_image(monkeypatch, shape):
    """Sums are kept of as many slices as a window has, whichever axis is the long one."""
    kept, add = [], sliding._add

    def counting(sums, *arguments):
        add(sums, *arguments)
        kept.append(sum(tensor[0].numel() for tensor in sums.values()))

    monkeypatch.setattr(sliding, "_add", counting)
    find_classes(Neighbours(), torch.rand(1, *shape), Windows((16, 16, 16)))
    assert max(kept) <= 16 * 16 * 24


def test_what_means_nothing_is_refused():
    """NaN logits, more classes than a byte tells apart, and numbers out of range."""
    image, windows = torch.rand(1, 16, 16), Windows((16, 16))
    model = Neighbours(dimension=2)
    with torch.no_grad():
        model.layers[0].weight *= float("nan")
    with pytest.raises(InputContractError, match="NaN or infinite"):
        find_classes(model, image, windows)
    with pytest.raises(OptionError, match="300 classes; labels of one byte tell 256 apart"):
        find_classes(Neighbours(300, 2), image, windows)
    for wrong in ({"overlap": 1.0}, {"at_once": 0}):
        with pytest.raises(OptionError, match="from 0 to below 1, and at least 1"):
            find_classes(Neighbours(dimension=2), image, replace(windows, **wrong))


# Labels on an image's own grid


class ByValue(nn.Module):
    """Two classes, by a value of the input."""

    def __init__(self, level=0.5):
        super().__init__()
        self.level, self.weight, self.num_classes = level, nn.Parameter(torch.zeros(1)), 2

    def forward(self, x):
        return torch.cat([self.level - x[:, :1], x[:, :1] - self.level], 1)


def turned(degrees):
    """Rows of a rotation about the first axis and then the third."""
    a = np.deg2rad(degrees)
    first = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    third = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    return third @ first


GRIDS = {
    "oblique": (turned(20) @ np.diag([-1.6, -1.4, 2.0]), (40, 44, 30)),
    "anisotropic": (np.array([[0, 0, 5.0], [-0.8, 0, 0], [0, 0.9, 0]]), (70, 66, 14)),
}
"""Matrices to mm and sides: axes that lie askew, and slices from left to right that are six times as far apart."""


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("name", ["voco-swinunetr-b", "monai-ssl-unetr", "genesis-unet3d", "anatomix-unet"])
def test_labels_lie_on_a_scans_own_grid(name, grid, tmp_path):
    """An ellipsoid of high HU is found where it is, though the network sees other axes and other voxels."""
    matrix, shape = GRIDS[grid]
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = matrix, (12, -30, 7)
    distance = np.indices(shape) - (np.array(shape) / (2.2, 1.8, 2))[:, None, None, None]
    inside = (np.linalg.norm(np.tensordot(matrix, distance, 1), axis=0)) < 16
    noise = np.random.default_rng(0).normal(0, 10, shape)
    values = np.where(inside, 180, -60) + noise
    values[0] = -1000  # air, beside which tissue lies
    nibabel.save(nibabel.Nifti1Image(values.astype(np.float32), affine), tmp_path / "ct.nii.gz")
    entry = get_entry(name)
    transform = build_transform(entry.preprocessing)
    low, high = entry.preprocessing.window or (values.min(), values.max())
    labels, found = label_image(entry, ByValue((60 - low) / (high - low)), transform, tmp_path / "ct.nii.gz")
    assert labels.dtype == np.uint8
    assert np.allclose(found, affine, atol=1e-4)
    overlap = 2 * (labels.astype(bool) & inside).sum() / (labels.sum() + inside.sum())
    exact = entry.preprocessing.spacing is None
    assert overlap > (0.999 if exact else 0.9)  # resampled there and back: a rim of half a voxel of 1.5 to 5 mm
    assert label_image(entry, ByValue(), transform, nibabel.load(tmp_path / "ct.nii.gz"))[0].shape == shape


def test_an_array_has_no_grid_where_none_is_needed():
    """Of networks that take voxels as they are; others refuse it, for they must know its axes."""
    values = drawn((24, 20, 28)).numpy()
    entry = get_entry("anatomix-unet")
    labels, affine = label_image(entry, ByValue(), build_transform(entry.preprocessing), values, window=(16, 16, 16))
    assert affine is None
    scaled = (values - values.min()) / (values.max() - values.min())
    assert np.array_equal(labels, scaled > 0.5)
    other = get_entry("genesis-unet3d")
    with pytest.raises(InputContractError, match="without the size and direction"):
        label_image(other, ByValue(), build_transform(other.preprocessing), values * 1200 - 1000)


@pytest.mark.parametrize("shape", [(400, 520), (520, 400), (256, 256), (100, 90)])
def test_a_film_has_a_label_for_each_of_its_pixels(shape, tmp_path):
    """The centre crop of the input contract would leave its borders without any."""
    rows, columns = np.indices(shape)
    inside = (rows < shape[0] * 0.3) | (columns > shape[1] * 0.8)
    Image.fromarray((inside * 200 + 20).astype(np.uint8)).save(tmp_path / "film.png")
    entry = get_entry("caid-resnet50-unet")
    labels, affine = label_image(entry, ByValue(), build_transform(entry.preprocessing), tmp_path / "film.png")
    assert affine is None
    assert labels.shape == shape
    assert (labels != inside).mean() < 0.01  # the rim of a resized film


def test_one_logit_is_that_of_a_structure(tmp_path):
    """As CAiD's own recipe saves it: the largest of one logit would be the background everywhere."""

    class Alone(ByValue):
        def forward(self, x):
            return super().forward(x)[:, 1:]

    values = np.random.default_rng(0).integers(0, 256, (300, 256), dtype=np.uint8)
    Image.fromarray(values).resize((256, 300), Image.Resampling.BILINEAR).save(tmp_path / "film.png")
    entry, alone = get_entry("caid-resnet50-unet"), Alone()
    alone.num_classes = 1
    transform = build_transform(entry.preprocessing)
    labels, _ = label_image(entry, alone, transform, tmp_path / "film.png")
    assert np.array_equal(labels > 0, transform.place(tmp_path / "film.png")[0][0].numpy() > 0.5)
    assert 0.1 < labels.mean() < 0.9


@pytest.mark.slow
def test_segment_writes_labels_of_films(tmp_path, zoo):
    """`zoo segment` with a U-Net for films: PNG of each film's own size; of one that restores films, none."""
    torch.manual_seed(0)
    model = package.load_model("caid-resnet50-unet", pretrained=False, num_classes=3)
    weights = tmp_path / "w.safetensors"
    save_file(model.state_dict(), weights, metadata={"input": '{"size": [64, 64], "resize": 73}'})
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        Image.fromarray(rng.integers(0, 256, (80, 90), dtype=np.uint8)).save(tmp_path / f"{name}.png")
    code, said, err = zoo("segment", "caid-resnet50-unet", tmp_path, "--checkpoint", weights, "-o", tmp_path / "out")
    assert code == 0, err
    assert "labels of 2 film(s)" in said
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a_labels.png", "b_labels.png"]
    labels = read_label_picture(tmp_path / "out" / "a_labels.png")
    transform = package.load_transform("caid-resnet50-unet", checkpoint=weights)
    expected = label_image(get_entry("caid-resnet50-unet"), model, transform, tmp_path / "a.png")[0]
    assert np.array_equal(labels, expected)
    code, _, err = zoo("segment", "caid-resnet50-unet", tmp_path / "a.png", "-o", tmp_path / "none")
    assert code == 2
    assert "restores the image and tells no classes apart" in err


def test_every_network_that_segments_says_its_windows():
    """All U-Nets of the registry, but those of slices; a UNETR has those that it was built for."""
    segmenting = {name for name, entry in entries().items() if "segmentation" in entry.tasks}
    assert segmenting == {name for name, entry in entries().items() if entry.segments}
    assert {name for name in segmenting if entries()[name].windows is None} == {"glcl-unet"}
    entry = get_entry("monai-ssl-unetr")
    small = {"img_size": 32, "hidden_size": 64, "mlp_dim": 128}
    network = package.load_model(entry.name, pretrained=False, **small)
    transform = build_transform(entry.preprocessing)
    assert windows_of(entry, network, transform).size == (32, 32, 32)
    assert windows_of(entry, network, transform, window=(48, 32, 32), overlap=0.5).overlap == 0.5
    film = get_entry("caid-resnet50-unet")
    assert windows_of(film, nn.Identity(), build_transform(film.preprocessing)).size == (224, 224)
