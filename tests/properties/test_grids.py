"""What is cropped, padded or cut into windows goes back to where it was."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from zoo.networks.windows import cut_windows, margins
from zoo.transforms import put_back
from zoo.transforms.slices import crop_or_pad

SIDE = st.integers(1, 12)
PLANE = st.tuples(SIDE, SIDE)
VOLUME = st.tuples(SIDE, SIDE, SIDE)


def counted(shape):
    """Values that are all different, from 1 on: 0 is what is added."""
    return np.arange(1, np.prod(shape) + 1, dtype=np.float32).reshape(shape)


@given(shape=PLANE, size=PLANE, slices=st.integers(1, 3))
def test_what_was_kept_of_a_slice_goes_back_to_its_pixels(shape, size, slices):
    """And all that was cut off is 0: no pixel moves, none is made up."""
    volume = counted((*shape, slices))
    fitted = crop_or_pad(volume, size)
    assert fitted.shape == (*size, slices)
    maps = torch.from_numpy(fitted).permute(2, 0, 1)[:, None]
    back = put_back(maps, shape)[:, 0].permute(1, 2, 0).numpy()
    kept = tuple(min(have, want) for have, want in zip(shape, size, strict=True))
    assert np.count_nonzero(back) == np.prod(kept) * slices
    assert (back == np.where(back, volume, 0)).all()


@given(shape=PLANE, grow=PLANE)
def test_a_padded_slice_comes_back_whole(shape, grow):
    """To a size of at least its own, and back, is nothing."""
    volume = counted((*shape, 1))
    fitted = crop_or_pad(volume, (shape[0] + grow[0], shape[1] + grow[1]))
    assert (crop_or_pad(fitted, shape) == volume).all()


@given(shape=VOLUME, cells=st.tuples(*[st.integers(1, 3)] * 3), step=st.sampled_from([1, 2, 4]))
def test_windows_cover_a_volume_and_count_it_once(shape, cells, step):
    """Every voxel lies in a window, at its own position, and the weights of all cells sum to one."""
    window = tuple(step * count for count in cells)
    volume = torch.from_numpy(counted(shape))[None]
    parts = cut_windows(volume, window, step)
    before, after = margins(shape, window, step)
    whole = [low + side + high for low, side, high in zip(before, shape, after, strict=True)]
    seen = torch.zeros(whole)
    for (x, y, z), found in zip(parts.corners, parts.inputs[0], strict=True):
        there = seen[x : x + window[0], y : y + window[1], z : z + window[2]]
        assert there.shape == found.shape[1:]
        assert ((there == 0) | (there == found[0])).all()
        there.copy_(found[0])
    x, y, z = before
    assert torch.equal(seen[x : x + shape[0], y : y + shape[1], z : z + shape[2]], volume[0])
    assert all(side % step == 0 for side in whole)
    # Shares are rounded to float32, some thousand of them.
    assert abs(float(parts.weights.double().sum()) - 1) < 1e-5


@given(shape=VOLUME, cells=st.tuples(*[st.integers(1, 3)] * 3))
def test_the_mean_of_windows_is_that_of_the_volume(shape, cells):
    """With cells of one voxel, whatever overlaps: the map is the volume itself."""
    volume = torch.from_numpy(counted(shape))[None]
    parts = cut_windows(volume, cells, 1)
    mean = (parts.inputs[0][:, 0].double() * parts.weights.double()).sum()
    expected = volume.double().mean()
    assert abs(mean - expected) < 1e-5 * expected  # shares in float32
