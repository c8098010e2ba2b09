"""DICOM whose values do not lie in the bits that the header says: pydicom would give other numbers without a word."""

import numpy as np
import pytest
from dicom_files import HU, write_series

from zoo.errors import InputContractError
from zoo.images import read_volume


def stored(bits, high=None, *, shift=0, signed=False, change=None):
    """An edit of a series of slices: its values in some bits of 16, and some of them changed."""

    def edit(index, dataset):
        values = np.frombuffer(dataset.PixelData, "<u2").astype(np.int64) << shift
        if change is not None and index == 3:
            values[7] = change
        dataset.PixelData = (values & 0xFFFF).astype("<u2").tobytes()
        dataset.BitsStored, dataset.PixelRepresentation = bits, int(signed)
        dataset.HighBit = bits - 1 if high is None else high

    return edit


def test_values_in_their_bits_are_read(tmp_path):
    """Of 12 bits; signed ones of 13 with their sign in all bits above, or in none."""
    found = read_volume(write_series(tmp_path / "plain", HU, edit=stored(12)))
    assert found.values.max() == HU.max()
    for sign in (0xFFF0, 0x1FF0):  # -16 of 13 bits
        found = read_volume(write_series(tmp_path / f"{sign:x}", HU, edit=stored(13, signed=True, change=sign)))
        assert found.values.min() == -16 * 2 - 3000


def test_values_that_end_at_another_bit_are_refused(tmp_path):
    """Left-justified, as older files have them: sixteen times too large, less what is cut off."""
    with pytest.raises(InputContractError, match="values of 12 bits end at bit 15, and bit 11 is expected"):
        read_volume(write_series(tmp_path / "ct", HU, edit=stored(12, 15, shift=4)))


@pytest.mark.parametrize(("signed", "change"), [(False, 5000), (True, 5000), (True, 0xE000)])
def test_values_beyond_their_bits_are_refused(tmp_path, signed, change):
    """Metal of 4500 HU in a file that says 12 bits would come as 404 HU."""
    with pytest.raises(InputContractError, match="1 of its values take more than the 12 bits"):
        read_volume(write_series(tmp_path / "ct", HU, edit=stored(12, signed=signed, change=change)))


def test_an_overlay_may_lie_in_the_bits_above(tmp_path):
    """As films of before 2004 have their annotations."""

    def edit(index, dataset):
        stored(12, change=0x1000 | 1000)(index, dataset)
        dataset.add_new((0x6000, 0x0102), "US", 12)

    assert read_volume(write_series(tmp_path / "ct", HU, edit=edit)).values.max() == HU.max()
