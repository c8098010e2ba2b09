"""Plain intensities: what a film and a volume are without any network, and that they are read once."""

import nibabel
import numpy as np
import pytest
from PIL import Image

from zoo.evaluation.intensities import BINS, film_intensities, intensities_of, is_volume, volume_intensities
from zoo.images import read_picture


def test_a_film_is_its_grid_and_its_histogram(tmp_path):
    """A bright quarter, in 8 and in 16 bits alike: 1 in 64 of 256 cells, a quarter of the histogram's last bin."""
    pixels = np.zeros((64, 64), np.uint8)
    pixels[:32, :32] = 255
    Image.fromarray(pixels).save(tmp_path / "8.png")
    Image.fromarray(pixels.astype(np.uint16) * 257).save(tmp_path / "16.png")
    found = film_intensities(tmp_path / "8.png")
    grid, histogram = found[:256].reshape(16, 16), found[256:]
    assert np.array_equal(grid[:8, :8], np.ones((8, 8)))
    assert grid.sum() == 64
    assert histogram.tolist() == [0.75, *[0] * (BINS - 2), 0.25]
    assert film_intensities(tmp_path / "16.png") == pytest.approx(found)


def test_a_volume_is_its_grid_and_its_histogram(tmp_path):
    """Scaled by its own percentiles, which are kept: MR has no units."""
    values = np.zeros((16, 16, 16), np.float32)
    values[:8] = 700
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "a.nii.gz")
    found = volume_intensities(tmp_path / "a.nii.gz")
    assert found[:512].reshape(8, 8, 8)[:4].mean() == 700
    assert found[512:].tolist() == [0.5, *[0] * (BINS - 2), 0.5, 0, 700]


def test_a_stack_of_few_slices_has_its_grid_too(tmp_path):
    """Networks of slices take it: without intensities the case would be lost to them."""
    values = np.zeros((16, 16, 3), np.float32)
    values[..., 2] = 700
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "a.nii.gz")
    grid = volume_intensities(tmp_path / "a.nii.gz")[:512].reshape(8, 8, 8)
    assert (grid[..., 0] == 0).all()
    assert (grid[..., -1] == 700).all()


def test_images_are_read_once_until_they_change(tmp_path, monkeypatch):
    """A folder of ten thousand volumes is not read again for another column of labels."""
    paths = []
    for i in range(3):
        Image.fromarray(np.full((32, 32), 10 * i, np.uint8)).save(tmp_path / f"{i}.png")
        paths.append(str(tmp_path / f"{i}.png"))
    read = []
    monkeypatch.setattr("zoo.evaluation.intensities.read_picture", lambda path: read.append(path) or read_picture(path))
    ids, file = ["a", "b", "c"], tmp_path / "out" / "plain.npz"
    first = intensities_of(paths, ids, file)
    assert len(read) == 3
    again = intensities_of(paths, ids, file)
    assert len(read) == 3
    assert np.array_equal(first.features, again.features)
    assert again.table["id"].tolist() == ids
    Image.fromarray(np.full((32, 33), 200, np.uint8)).save(paths[1])
    changed = intensities_of(paths, ids, file)
    assert len(read) == 4
    assert changed.features[1, 0] > first.features[1, 0]


def test_what_cannot_be_read_has_no_row(tmp_path, caplog):
    """It costs itself alone, with a warning."""
    Image.fromarray(np.zeros((32, 32), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_text("no image")
    found = intensities_of([str(tmp_path / "a.png"), str(tmp_path / "b.png")], ["a", "b"], None)
    assert found.table["id"].tolist() == ["a"]
    assert "b.png" in caplog.text


@pytest.mark.parametrize(("name", "volume"), [("a.nii.gz", True), ("a.NII", True), ("a.png", False), ("a.dcm", False)])
def test_volumes_are_told_by_their_names(name, volume):
    """The grid is that of films for all else."""
    assert is_volume(name) is volume
