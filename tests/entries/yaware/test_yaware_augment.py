"""y-Aware's augmentations: the published distributions, SciPy's numbers, and draws that follow from the seed alone.

Shares of `NUMBER` samples are held to four standard deviations of a binomial, which correct draws exceed for one choice
of seeds in 16 000; p-values are held to 0.001. The seeds are fixed.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import ndimage, stats

from zoo.entries.yaware.augment import TRANSFORMS, Augment, add_noise, blur, resize
from zoo.errors import InputContractError, OptionError
from zoo.training.data import seed_of

NUMBER = 4000
SIZE = (12, 10, 9)
CHANGES = ("flip", "sigma", "noise", "cutout", "crop")


@pytest.fixture(scope="module")
def draws():
    """What "all_tf" draws for many samples, all of different seeds."""
    augment = Augment("all_tf")
    return [augment.draw(SIZE, seed_of(0, 0, index, 0)) for index in range(NUMBER)]


def volumes_of(number, size=SIZE, seed=0):
    return torch.randn(number, 1, *size, generator=torch.Generator().manual_seed(seed))


def holds(count, probability, number=NUMBER):
    """Whether a count is within four standard deviations of a binomial's mean."""
    return abs(count - number * probability) < 4 * math.sqrt(number * probability * (1 - probability))


def sides(box):
    return tuple(s.stop - s.start for s in box)


@pytest.mark.parametrize("change", CHANGES)
def test_each_change_happens_half_the_time(draws, change):
    """Probability 0.5 each."""
    assert holds(sum(getattr(d, change) is not None for d in draws), 0.5)


def test_changes_happen_independently(draws):
    """Each pair of changes coincides in a quarter of the samples."""
    happens = np.array([[getattr(d, change) is not None for change in CHANGES] for d in draws])
    together = happens.T.astype(int) @ happens
    assert all(holds(together[i, j], 0.25) for i in range(5) for j in range(i))


def test_flips_take_each_of_the_four_axes_equally_often(draws):
    """Each axis of (1, D, H, W) with probability 0.125, the channel among them."""
    assert all(holds(sum(d.flip == axis for d in draws), 0.125) for axis in range(4))
    assert {d.flip for d in draws} == {None, 0, 1, 2, 3}


@pytest.mark.parametrize("of", ["sigma", "noise"])
def test_strengths_are_uniform(draws, of):
    """Of 0.1 to 1, by Kolmogorov and Smirnov; both ends are nearly reached."""
    drawn = [getattr(d, of) for d in draws if getattr(d, of) is not None]
    values = np.array([v[0] if of == "noise" else v for v in drawn])
    assert stats.kstest(values, stats.uniform(0.1, 0.9).cdf).pvalue > 1e-3
    assert 0.1 <= values.min() < 0.11
    assert 0.99 < values.max() <= 1


@pytest.mark.parametrize(("of", "share"), [("cutout", 0.25), ("crop", 0.75)])
def test_boxes_have_the_published_size_and_lie_anywhere(draws, of, share):
    """Every position inside is equally likely on each axis (chi-square), and the axes are independent."""
    boxes = [getattr(d, of) for d in draws if getattr(d, of) is not None]
    side = tuple(math.ceil(share * length) for length in SIZE)
    assert {sides(box) for box in boxes} == {side}
    starts = np.array([[s.start for s in box] for box in boxes])
    for axis in range(3):
        counts = np.bincount(starts[:, axis], minlength=SIZE[axis] - side[axis] + 1)
        assert len(counts) == SIZE[axis] - side[axis] + 1
        assert stats.chisquare(counts).pvalue > 1e-3
    correlation = np.corrcoef(starts.T)[np.triu_indices(3, 1)]
    assert (abs(correlation) < 4 / math.sqrt(len(starts))).all()


def test_published_boxes():
    """31 x 37 x 31 of 121 x 145 x 121 voxels are hidden, 91 x 109 x 91 are kept."""
    size = (121, 145, 121)
    assert sides(Augment("cutout").draw(size, 0).cutout) == (31, 37, 31)
    assert sides(Augment("crop").draw(size, 0).crop) == (91, 109, 91)


@pytest.mark.parametrize(("tf", "of"), [("cutout", "cutout"), ("crop", "crop"), ("none", None)])
def test_a_single_change_happens_always_and_alone(tf, of):
    """The cut-out and the crop with probability 1; "none" does nothing."""
    for seed in range(50):
        drawn = Augment(tf).draw(SIZE, seed)
        assert [c for c in CHANGES if getattr(drawn, c) is not None] == ([of] if of else [])


@pytest.mark.slow
def test_views_of_a_sample_are_independent():
    """Two views flip together in a quarter of the samples, and their blurs are uncorrelated."""
    augment = Augment("all_tf")
    pairs = [[augment.draw(SIZE, seed_of(0, 0, index, view)) for view in (0, 1)] for index in range(NUMBER)]
    assert holds(sum(a.flip is not None and b.flip is not None for a, b in pairs), 0.25)
    sigmas = np.array([[a.sigma, b.sigma] for a, b in pairs if a.sigma is not None and b.sigma is not None])
    assert abs(np.corrcoef(sigmas.T)[0, 1]) < 4 / math.sqrt(len(sigmas))


@pytest.mark.parametrize("size", [SIZE, (40, 3, 1)])
@pytest.mark.parametrize("sigma", [0.1, 0.13, 0.5, 0.9, 1.0])
def test_blur_is_scipys(size, sigma):
    """`gaussian_filter` of the array with its channel, up to the rounding of float32 sums.

    That is a few 1e-7 for values near 1. Also where the volume is thinner than the kernel reaches.
    """
    volume = volumes_of(1, size)[0]
    expected = ndimage.gaussian_filter(volume.numpy().astype(np.float64), sigma)
    np.testing.assert_allclose(blur(volume[0], sigma)[None], expected, rtol=0, atol=5e-6)


@pytest.mark.parametrize("size", [SIZE, (31, 37, 31), (2, 3, 1), (5, 4, 8)])
def test_enlarged_crop_is_scikit_images(size):
    """Half-voxel centres, mirrored without the border voxel: interior and border alike, up to float32."""
    kept = [math.ceil(0.75 * length) for length in size]
    box = volumes_of(1, kept)[0, 0]
    places = [(np.arange(new) + 0.5) * old / new - 0.5 for old, new in zip(kept, size, strict=True)]
    expected = ndimage.map_coordinates(
        box.numpy().astype(np.float64), np.meshgrid(*places, indexing="ij"), order=1, mode="mirror"
    )
    np.testing.assert_allclose(resize(box, size), expected, rtol=0, atol=5e-6)


def test_enlarged_crop_keeps_a_ramp():
    """Linear interpolation is exact on a ramp: a crop of it has 3/4 of its slope, wherever no border is near."""
    ramp = torch.arange(40.0).view(-1, 1, 1).expand(40, 8, 8)
    out = resize(ramp[4:34, 1:7, 1:7], (40, 8, 8))
    inner = slice(1, -1)
    torch.testing.assert_close(out[inner, 3, 3].diff(), torch.full((37,), 0.75), rtol=0, atol=1e-5)
    assert out[20, 3, 3].item() == pytest.approx(4 + 20.5 * 0.75 - 0.5, abs=1e-5)


def test_noise_is_gaussian_with_the_drawn_spread():
    """Mean, spread and shape of 64 000 voxels; their mean is known to 1 / 253 of the spread, the spread to 1 / 358."""
    volume = volumes_of(1, (40, 40, 40))[0, 0]
    noise = (add_noise(volume, 0.3, seed=5) - volume).numpy().ravel() / 0.3
    assert abs(noise.mean()) < 4 / math.sqrt(noise.size)
    assert abs(noise.std() - 1) < 4 / math.sqrt(2 * noise.size)
    assert stats.kstest(noise, stats.norm.cdf).pvalue > 1e-3
    other = (add_noise(volume, 0.3, seed=6) - volume).numpy().ravel() / 0.3
    assert abs(np.corrcoef(noise, other)[0, 1]) < 4 / math.sqrt(noise.size)


def one_by_one(volume, drawn):
    """The changes of one (1, D, H, W) through NumPy and SciPy, in float64 and without the noise."""
    volume = volume.astype(np.float64)
    if drawn.flip is not None:
        volume = np.flip(volume, drawn.flip)
    if drawn.sigma is not None:
        volume = ndimage.gaussian_filter(volume, drawn.sigma)
    if drawn.cutout is not None:
        volume = volume.copy()
        volume[(0, *drawn.cutout)] = 0
    if drawn.crop is not None:
        box = volume[(slice(None), *drawn.crop)]
        factors = np.divide(volume.shape, box.shape)
        volume = ndimage.zoom(box, factors, order=1, mode="mirror", grid_mode=True)
    return volume


def test_changes_happen_in_the_published_order():
    """Flip, blur, cut-out, crop: samples of a batch equal SciPy's one by one, unless there is noise in them."""
    augment, volumes = Augment("all_tf"), volumes_of(200)
    out = augment(volumes, range(200))
    compared = 0
    for index, volume in enumerate(volumes.numpy()):
        drawn = augment.draw(SIZE, index)
        if drawn.noise is None:
            np.testing.assert_allclose(out[index], one_by_one(volume, drawn), rtol=0, atol=5e-6)
            compared += 1
    assert 70 < compared < 130


def test_noise_comes_before_the_cut_out_and_the_crop():
    """The hidden box is exactly 0 under noise; what is enlarged is smoother than noise."""
    augment, volumes = Augment("all_tf"), torch.zeros(400, 1, *SIZE)
    out = augment(volumes, range(400))
    hidden = spread = 0
    for index, volume in enumerate(out[:, 0]):
        drawn = augment.draw(SIZE, index)
        assert drawn.noise is not None or not volume.any()
        if drawn.noise is None:
            continue
        if drawn.crop is None:
            shown = torch.ones(SIZE, dtype=torch.bool)
            if drawn.cutout is not None:
                shown[drawn.cutout] = False
                hidden += 1
            assert torch.equal(volume != 0, shown)
            # 1080 voxels know the spread to 2 %, also where 27 of them are hidden.
            assert volume[shown].std().item() == pytest.approx(drawn.noise[0], rel=0.1)
        elif drawn.cutout is None:
            assert volume.std() < 0.85 * drawn.noise[0]  # linear interpolation leaves about (2/3) ** 1.5 = 0.54
            spread += 1
    assert min(hidden, spread) > 20


def test_cut_out_fills_with_the_mean():
    """Zeros in the drawn box, every other voxel as it was: the background does not spread."""
    volumes = volumes_of(20) - 5
    out = Augment()(volumes, range(20))
    for index in range(20):
        expected = volumes[index].clone()
        expected[(0, *Augment().draw(SIZE, index).cutout)] = 0
        assert torch.equal(out[index], expected)


@pytest.mark.parametrize("tf", TRANSFORMS)
def test_a_sample_is_changed_the_same_in_any_batch(tf):
    """Alone, among others, in another order, and with seeds in a tensor or a list: the same to the last bit."""
    augment, volumes = Augment(tf), volumes_of(24)
    seeds = [seed_of(1, 2, index, 0) for index in range(24)]
    out = augment(volumes, torch.tensor(seeds))
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    assert torch.equal(augment(volumes[order], torch.tensor(seeds)[order]), out[order])
    for index in range(24):
        assert torch.equal(augment(volumes[index : index + 1], seeds[index : index + 1]), out[index : index + 1])


@pytest.mark.parametrize("tf", ["cutout", "all_tf", "crop"])
def test_another_seed_changes_it_otherwise(tf):
    """A volume under 50 seeds: nearly as many results.

    Of 343 places for a crop 50 draws take 47 on average; of all changes none, or a flip alone, may come again.
    """
    out = Augment(tf)(volumes_of(1, (24, 24, 24)).expand(50, -1, -1, -1, -1), range(50))
    assert len({volume.numpy().tobytes() for volume in out}) > 40


def test_global_random_numbers_are_neither_used_nor_moved():
    """The same result after another global seed, and the global generator is where it was."""
    augment, volumes = Augment("all_tf"), volumes_of(20)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = augment(volumes, range(20))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(augment(volumes, range(20)), first)


@pytest.mark.parametrize("tf", TRANSFORMS)
def test_input_is_left_alone(tf):
    """New memory in the shape, type and device of the input, which stays what it was; no gradient is recorded."""
    volumes = volumes_of(30).requires_grad_()
    before = volumes.detach().clone()
    out = Augment(tf)(volumes, range(30))
    assert torch.equal(volumes, before)
    assert (out.shape, out.dtype, out.device) == (volumes.shape, torch.float32, volumes.device)
    assert not out.requires_grad
    assert out.data_ptr() != volumes.data_ptr()
    assert torch.equal(out, volumes) == (tf == "none")


def test_half_precision_mode_changes_nothing():
    """Inside autocast, as a training step calls it, the volumes are as exact as outside."""
    augment, volumes = Augment("all_tf"), volumes_of(20)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = augment(volumes, range(20))
    assert torch.equal(inside, augment(volumes, range(20)))


@pytest.mark.parametrize("tf", TRANSFORMS)
@pytest.mark.parametrize("size", [(1, 1, 1), (1, 2, 3), (3, 3, 3)])
def test_tiny_volumes(tf, size):
    """Smaller than four voxels: boxes have at least one, and crops may be the whole."""
    volumes = volumes_of(60, size)
    augment = Augment(tf)
    out = augment(volumes, range(60))
    assert out.shape == volumes.shape
    assert out.isfinite().all()
    if tf == "cutout":
        assert all((volume == 0).sum() == 1 for volume in out)
    if tf in ("crop", "none"):
        assert torch.equal(out, volumes)


def test_an_empty_batch_stays_empty():
    """No volumes and no seeds are no error."""
    assert Augment()(volumes_of(0), []).shape == (0, 1, *SIZE)


def test_unknown_transforms_are_refused():
    """The message names the request and what there is."""
    with pytest.raises(OptionError, match=r"cutout, all_tf, crop, none, not 'flip'"):
        Augment("flip")


@pytest.mark.parametrize(
    ("volumes", "came"),
    [
        (torch.zeros(2, *SIZE), r"\(2, 12, 10, 9\)"),
        (torch.zeros(2, 3, *SIZE), r"\(2, 3, 12, 10, 9\)"),
        (torch.zeros(2, 1, 4, 0, 4), r"\(2, 1, 4, 0, 4\)"),
        (torch.zeros(2, 1, *SIZE, dtype=torch.float16), "float16"),
        (torch.zeros(2, 1, *SIZE, dtype=torch.uint8), "uint8"),
    ],
)
def test_other_volumes_are_refused(volumes, came):
    """Shape and type of a batch are checked; the message says what is expected and what came."""
    with pytest.raises(InputContractError, match=rf"\(N, 1, D, H, W\), float32 and z-scored, not .*{came}"):
        Augment()(volumes, [0, 1])


@pytest.mark.parametrize(
    "seeds",
    [[0], [0, 1, 2], [0, -1], torch.tensor([0.0, 1.0]), [0.5, 1], torch.zeros(2, 2, dtype=torch.long), torch.tensor(1)],
)
def test_other_seeds_are_refused(seeds):
    """One non-negative integer per volume."""
    with pytest.raises(OptionError, match=r"seeds must be"):
        Augment()(volumes_of(2), seeds)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_does_the_same():
    """Everything but the noise field is the CPU's, up to rounding; that field has the same spread."""
    augment, volumes = Augment("all_tf"), volumes_of(60)
    here, there = augment(volumes, range(60)), augment(volumes.cuda(), torch.arange(60).cuda())
    assert there.is_cuda
    assert torch.equal(there, augment(volumes.cuda(), range(60)))
    for index in range(60):
        if augment.draw(SIZE, index).noise is None:
            torch.testing.assert_close(there[index].cpu(), here[index], rtol=0, atol=5e-6)
        else:
            assert there[index].std().item() == pytest.approx(here[index].std().item(), rel=0.2)
