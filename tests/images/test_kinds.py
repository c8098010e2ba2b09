"""What kind of image a path is, by its header alone."""

import nibabel
import numpy as np
from dicom_files import write_dicom, write_series
from PIL import Image

from zoo.images import kind_of


def test_a_header_tells_films_from_volumes(tmp_path):
    """By content, not by name: a folder of scans is then not read for hours before a film network refuses it."""
    Image.fromarray(np.zeros((40, 60), np.uint8)).save(tmp_path / "film.png")
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 5, 6), np.float32), np.eye(4)), tmp_path / "scan.nii.gz")
    (tmp_path / "scan.nii.gz").rename(tmp_path / "scan.png")
    np.save(tmp_path / "array.npy", np.zeros((4, 5, 6)))
    (tmp_path / "series").mkdir()
    film = kind_of(tmp_path / "film.png")
    assert (film.name, film.is_film, film.is_volume, film.sides) == ("picture (PNG)", True, False, (40, 60))
    for name, kind in (("scan.png", "volume (NIfTI)"), ("array.npy", "array (NumPy)"), ("series", "DICOM series")):
        found = kind_of(tmp_path / name)
        assert (found.name, found.is_film, found.is_volume) == (kind, False, True)


def test_dicom_is_told_by_its_modality(tmp_path):
    """A slice of a CT has the pixels of a picture, and is no film."""
    write_dicom(tmp_path / "film.dcm", np.zeros((48, 40), np.uint16), bits=12, Modality="DX")
    write_series(tmp_path / "ct")
    assert kind_of(tmp_path / "film.dcm")[:4] == ("film (DICOM)", True, False, (48, 40))
    slice_ = kind_of(next((tmp_path / "ct").iterdir()))
    assert (slice_.name, slice_.is_film) == ("DICOM of modality CT, no film of the chest", False)


def test_what_cannot_be_read_has_its_reason(tmp_path):
    """An empty file, a text, and nothing at all are no kind of image."""
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("no picture")
    for name, said in (("empty.png", "the file is empty"), ("text.png", "cannot read"), ("none.png", "no image at")):
        found = kind_of(tmp_path / name)
        assert (found.is_film, found.is_volume) == (False, False)
        assert said in found.problem
