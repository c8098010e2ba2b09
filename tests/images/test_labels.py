"""Label maps and what is made of volumes: names, whole numbers, a file with the image's place."""

import nibabel
import numpy as np
import pytest

from zoo.errors import InputContractError, OptionError
from zoo.images.finding import find_images, names_of
from zoo.images.labels import read_labels, write_labels

AFFINE = np.array([[-2.0, 0, 0, 3], [0, 2, 0, -5], [0, 0, 4, 7], [0, 0, 0, 1]])


def test_labels_are_written_and_read_back(tmp_path):
    """Voxels and place, as uint8; twice the same bytes, so that results can be compared by their digests."""
    labels = np.random.default_rng(0).integers(0, 256, (9, 8, 10)).astype(np.uint8)
    for name in ("a.nii.gz", "b.nii.gz"):
        write_labels(labels, tmp_path / "new" / name, AFFINE)
    found = read_labels(tmp_path / "new" / "a.nii.gz")
    np.testing.assert_array_equal(found.values, labels)
    np.testing.assert_array_equal(found.affine, AFFINE)
    assert nibabel.load(tmp_path / "new" / "a.nii.gz").get_data_dtype() == np.uint8
    contents = {path.read_bytes() for path in (tmp_path / "new").iterdir()}
    assert len(contents) == 1
    assert contents.pop()[4:8] == bytes(4)  # where gzip puts the time


def test_labels_of_few_slices_are_read(tmp_path):
    """A stack of six short-axis slices is segmented, and its mask was refused where it was to be learnt from."""
    write_labels(np.ones((12, 10, 6), np.uint8), tmp_path / "l.nii.gz", AFFINE)
    assert read_labels(tmp_path / "l.nii.gz").values.shape == (12, 10, 6)


def test_a_header_gives_its_codes_and_not_its_grey_levels(tmp_path):
    """A viewer that obeys the image's levels would show labels as black; float32 would take four times the space."""
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.float32)
    header.set_xyzt_units("mm", "sec")
    header.set_qform(AFFINE, code=1)
    header["cal_max"] = 700
    write_labels(np.ones((8, 8, 8), np.uint8), tmp_path / "l.nii.gz", AFFINE, header)
    found = nibabel.load(tmp_path / "l.nii.gz")
    assert found.get_data_dtype() == np.uint8
    assert found.header.get_xyzt_units() == ("mm", "sec")
    assert (int(found.header["qform_code"]), float(found.header["cal_max"])) == (1, 0)


@pytest.mark.parametrize(("value", "said"), [(0.5, "0.5"), (-1, "-1"), (256, "256"), (np.nan, "nan")])
def test_values_of_no_class_are_refused(tmp_path, value, said):
    """Fractions, as of an interpolated map, and what one byte cannot hold."""
    values = np.zeros((8, 8, 8), np.float32)
    values[3, 3, 3] = value
    nibabel.save(nibabel.Nifti1Image(values, AFFINE), tmp_path / "l.nii.gz")
    with pytest.raises(InputContractError, match=rf"l.nii.gz has values {said}: whole numbers from 0 on"):
        read_labels(tmp_path / "l.nii.gz")


def test_volumes_of_one_name_are_called_by_their_folders(tmp_path):
    """As the authors keep Decathlon's prostate and MM-WHS; in folders of one name they cannot be told apart."""
    files = [tmp_path / name for name in ("001/img.nii.gz", "002/img.nii", "002/other.nii")]
    for file in files:
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"")
    found = names_of(find_images([tmp_path], volumes=True))
    assert found == dict(zip(("001_img", "002_img", "other"), files, strict=True))
    with pytest.raises(OptionError, match="several volumes would have features called 002_img: one call for each"):
        names_of([files[1], tmp_path / "more" / "002" / "img.nii.gz"], "features")
