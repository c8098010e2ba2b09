"""CAiD's views: the published statistics of the distortions, targets that match, draws that repeat, lists that read."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import hflip

from zoo.entries.caid import augment
from zoo.entries.caid import data as caid
from zoo.entries.caid.cohort import Sample, read_list
from zoo.entries.caid.data import FixedViews, Views
from zoo.errors import InputContractError, OptionError
from zoo.training.args import TrainArgs
from zoo.training.data import Batches, build_loader
from zoo.training.distributed import Processes

SIZE = 224
WHITE = np.full((SIZE, SIZE), 255, dtype=np.uint8)
PLACES = np.arange(SIZE * SIZE).reshape(SIZE, SIZE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Six smooth grey pictures without left-right symmetry, as PNG and JPEG, 120 x 100."""
    out = tmp_path_factory.mktemp("images")
    rows, columns = np.mgrid[0:120, 0:100]
    for i in range(6):
        pixels = 20 + 1.6 * columns + 0.3 * rows + 30 * np.sin(rows / (5 + i))
        name = f"{i:03}_{i % 2}.{'png' if i % 2 else 'jpg'}"
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(out / name, quality=95)
    return out


def masked_areas(cut, number=2000):
    rng = np.random.default_rng(0)
    return np.array([(cut(WHITE, rng) == 0).mean() for _ in range(number)])


def test_inner_cut_outs_have_the_published_area():
    """Mean 18 %, range 0.4 to 41 %; the mean of 2000 with a spread of 9 % is known to 0.2 %."""
    areas = masked_areas(augment.cut_inside)
    assert 0.17 < areas.mean() < 0.19
    assert 100 / SIZE**2 <= areas.min() < 0.01  # one rectangle of 10 x 10 is the least there can be
    assert 0.35 < areas.max() < 0.50


def test_outer_cut_outs_have_the_published_area():
    """Mean 23 %, range 7 to 52 %; one window of 154 pixels leaves 53 %, no union of windows less than 5 %."""
    areas = masked_areas(augment.cut_outside)
    assert 0.22 < areas.mean() < 0.24
    assert 1 - (SIZE - 6) ** 2 / SIZE**2 <= areas.min() < 0.09
    assert 0.48 < areas.max() <= 1 - 154**2 / SIZE**2


def test_cut_outs_keep_the_border_and_the_pixels():
    """Inner rectangles stay 3 pixels away from the border, as do outer windows; what is shown is the original."""
    rng = np.random.default_rng(1)
    pixels = rng.integers(1, 256, (SIZE, SIZE), dtype=np.uint8)
    reached = np.zeros((2, SIZE, SIZE), dtype=bool)
    for _ in range(600):
        for i, cut in enumerate((augment.cut_inside, augment.cut_outside)):
            out = cut(pixels, rng)
            hidden = out == 0
            assert np.array_equal(out[~hidden], pixels[~hidden])
            reached[i] |= hidden if i == 0 else ~hidden
    border = np.ones((SIZE, SIZE), dtype=bool)
    border[3:-3, 3:-3] = False
    for seen in reached:
        assert not seen[border].any()
        assert seen[3:-3, SIZE // 2].any()
        assert seen[3].any()
        assert seen[-4].any()


def test_swaps_exchange_ten_pairs_of_rectangles():
    """Each pixel of the result comes from the undistorted image, by one of at most 20 displacements that come in pairs.

    An array of its own positions tells where each pixel came from. The displaced pixels of one displacement lie in one
    rectangle of at most 15 x 15, and at most 10 * 2 * 15 * 15 pixels are displaced.
    """
    rng = np.random.default_rng(0)
    counts = []
    for _ in range(50):
        out = augment.swap_patches(PLACES, rng)
        rows, columns = np.nonzero(out != PLACES)
        moves = np.stack([out[rows, columns] // SIZE - rows, out[rows, columns] % SIZE - columns], axis=1)
        vectors = {tuple(v) for v in np.unique(moves, axis=0).tolist()}
        pairs = {max(v, (-v[0], -v[1])) for v in vectors}
        assert 5 <= len(pairs) <= 10  # fewer than 10 only where a patch lies on itself or under a later one
        for vector in vectors:
            here = (moves == vector).all(1)
            assert np.ptp(rows[here]) < 15
            assert np.ptp(columns[here]) < 15
        counts.append(len(rows))
    assert max(counts) <= 10 * 2 * 15 * 15
    # Sides have mean 12.5, so 20 patches cover at most 3125 pixels; the overlaps of 20 in 218 x 218 take some 3 %.
    assert 2800 < np.mean(counts) < 3125


def test_swapped_pixels_are_the_same_pixels_where_patches_do_not_overlap():
    """With disjoint patches an exchange is a permutation: the multiset of pixels stays."""
    rng, permutations = np.random.default_rng(0), 0
    for _ in range(50):
        out = augment.swap_patches(PLACES, rng)
        permutations += np.array_equal(np.sort(out, axis=None), PLACES.ravel())
    assert permutations > 0


@pytest.mark.slow
def test_proportions_of_the_distortions():
    """30 % inner, 5 % outer, 30 % swap, 35 % nothing, over 6000 draws.

    Five standard deviations of a binomial share: 5 * sqrt(0.3 * 0.7 / 6000) is 0.03 for the large ones.
    """
    rng, number, counts = np.random.default_rng(0), 6000, dict.fromkeys(("inner", "outer", "swap", "none"), 0)
    pixels = (1 + np.arange(64 * 64) % 255).astype(np.uint8).reshape(64, 64)
    for _ in range(number):
        out = augment.distort(pixels, rng)
        hidden = out == 0
        kind = "outer" if hidden[0].any() else "inner" if hidden.any() else "none" if out is pixels else "swap"
        counts[kind] += 1
    for kind, share in {"inner": 0.30, "outer": 0.05, "swap": 0.30, "none": 0.35}.items():
        assert abs(counts[kind] / number - share) < 5 * math.sqrt(share * (1 - share) / number), counts


@pytest.mark.parametrize("size", [32, 64, 96])
def test_distortions_scale_with_the_view(size):
    """The masked share is that of 224 pixels within 5 %, although sides and the border are whole pixels."""
    rng, white = np.random.default_rng(0), np.full((size, size), 255, dtype=np.uint8)
    for cut, share in ((augment.cut_inside, 0.18), (augment.cut_outside, 0.23)):
        assert np.mean([(cut(white, rng) == 0).mean() for _ in range(600)]) == pytest.approx(share, abs=0.05)
    assert (augment.swap_patches(np.arange(size * size).reshape(size, size), rng) != 0).any()


def undistorted(monkeypatch):
    """Switch jitter and blur off: what is left of a query is its crop and its mirror."""

    def mirror_only(image, *settings):
        flipped = bool(torch.rand(()) < 0.5)
        return (hflip(image) if flipped else image), flipped

    monkeypatch.setattr(caid, "change", mirror_only)


def test_the_target_is_the_undistorted_query(folder, monkeypatch):
    """Without jitter, blur and distortion the target is the query pixel by pixel, mirrored or not."""
    undistorted(monkeypatch)
    views = Views(read_list(folder), size=64, distort=False)
    for data_pass in range(4):
        for index in range(len(views)):
            sample = views[data_pass, index]
            assert torch.equal(sample["query"][:1], sample["target"])
            assert not torch.equal(sample["query"], sample["key"])


@pytest.mark.slow
def test_the_upstream_target_is_never_mirrored(folder, monkeypatch):
    """As the authors have it: the target equals the query or its mirror image, each in about half of the samples.

    300 fair coins: 0.5 within 4 standard deviations, 0.115. The draws are those of the default.
    """
    undistorted(monkeypatch)
    both = [Views(read_list(folder), size=32, distort=False, target_flip=flip) for flip in ("with-input", "upstream")]
    mirrored = []
    for data_pass in range(50):
        for index in range(6):
            ours, theirs = (views[data_pass, index] for views in both)
            assert torch.equal(ours["query"], theirs["query"])
            is_mirrored = not torch.equal(theirs["target"], theirs["query"][:1])
            assert torch.equal(theirs["target"].flip(-1) if is_mirrored else theirs["target"], theirs["query"][:1])
            mirrored.append(is_mirrored)
    assert abs(np.mean(mirrored) - 0.5) < 4 * 0.5 / math.sqrt(300)


@pytest.mark.slow
def test_the_target_follows_the_query_with_every_change_on(folder):
    """With jitter, blur and cut-outs the query still resembles its target more than the target's mirror image."""
    views = Views(read_list(folder), size=64)
    wins = 0
    for data_pass in range(20):
        for index in range(6):
            sample = views[data_pass, index]
            shown = sample["query"][0] > 0
            query, target = sample["query"][0], sample["target"][0]
            pairs = [torch.stack([query[shown], other[shown]]) for other in (target, target.flip(-1))]
            near, far = (torch.corrcoef(pair)[0, 1] for pair in pairs)
            wins += int(near > far)
    assert wins >= 118  # of 120: a swap may hide the slope of a picture, the wrong mirror would win half of them


def test_views_have_the_promised_form(folder):
    """Three equal float channels in [0, 1] for the networks, one for the target, of the size asked for."""
    sample = Views(read_list(folder), size=96)[0, 3]
    assert {name: tuple(view.shape) for name, view in sample.items()} == {
        "query": (3, 96, 96),
        "key": (3, 96, 96),
        "target": (1, 96, 96),
    }
    for view in sample.values():
        assert view.dtype == torch.float32
        assert 0 <= view.min() < view.max() <= 1
    assert torch.equal(sample["query"][0], sample["query"][2])


@pytest.mark.slow
def test_jitter_blur_and_mirror_have_the_published_shares():
    """A bright left half with one black pixel shows what was done to it: mirror 0.5, no jitter 0.2, no blur 0.5.

    600 draws know the shares to 4 * 0.02. A blur of less than 0.2 pixels, 5 % of them, rounds to nothing.
    """
    pixels = np.full((SIZE, SIZE), 90, dtype=np.uint8)
    pixels[:, : SIZE // 2] = 160
    pixels[50, 50] = 0
    torch.manual_seed(0)
    shares = np.zeros(3)
    for _ in range(600):
        image, is_mirrored = augment.change(Image.fromarray(pixels))
        out = np.asarray(image)
        assert is_mirrored == (out[0, 0] < out[0, -1])
        out = out[:, ::-1] if is_mirrored else out
        shares += is_mirrored, (out[0, 0], out[0, -1]) == (160, 90), out[50, 51] == out[0, 0]
    mirrored, plain, sharp = shares / 600
    assert abs(mirrored - 0.5) < 0.08
    assert abs(plain - 0.2) < 0.065
    assert 0.42 < sharp < 0.62


def test_the_jitter_has_the_asked_range():
    """A flat grey of 100 is multiplied by 0.6 to 1.4, or by the range that is asked for."""
    flat = Image.fromarray(np.full((32, 32), 100, dtype=np.uint8))
    torch.manual_seed(0)
    for jitter, low, high in ((0.4, 60, 140), (0.1, 90, 110), (0.0, 100, 100)):
        values = [np.asarray(augment.change(flat, jitter)[0])[0, 0] for _ in range(300)]
        spread = 0.1 * (high - low)
        assert low - 1 <= min(values) <= low + spread
        assert high - spread <= max(values) <= high + 1


def test_crops_cover_the_asked_share_of_the_area():
    """A picture of its own columns: the width that is seen lies between that of the smallest and the largest crop."""
    ramp = Image.fromarray(np.tile(np.arange(200, dtype=np.uint8), (200, 1)))
    torch.manual_seed(0)
    for least, narrowest in ((0.2, math.sqrt(0.2 * 3 / 4)), (0.9, math.sqrt(0.9 * 3 / 4))):
        widths = [np.ptp(np.asarray(augment.random_crop(ramp, 64, least))) / 200 for _ in range(300)]
        assert narrowest - 0.05 < min(widths) < narrowest + 0.1
        assert 0.95 < max(widths) <= 1


def same(first, second) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


def test_draws_follow_from_seed_pass_and_index(folder):
    """The same key gives the same views, another pass or seed others, and the global generators do not move."""
    samples = read_list(folder)
    views, again, other = (Views(samples, size=32, seed=seed) for seed in (0, 0, 1))
    torch.manual_seed(3)
    np.random.seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    for index in range(6):
        first = views[0, index]
        assert same(first, again[0, index])
        assert not same(first, views[1, index])
        assert not same(first, other[0, index])
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])
    fixed = FixedViews(views, data_pass=5)
    assert len(fixed) == 6
    assert same(fixed[2], views[5, 2])
    assert same(fixed[2], fixed[2])


@pytest.mark.slow
def test_workers_do_not_matter(folder):
    """Two worker processes give the batches of none."""
    batches = {}
    for workers in (0, 2):
        args = TrainArgs(data="", out="", batch_size=3, workers=workers)
        sampler = Batches(6, args, Processes(0, 1, torch.device("cpu")))
        batches[workers] = list(build_loader(Views(read_list(folder), size=32), workers, batch_sampler=sampler))
    assert len(batches[0]) == 2
    assert all(same(a, b) for a, b in zip(batches[0], batches[2], strict=True))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 100}, "multiple of 32, not 100"),
        ({"target_flip": "never"}, "one of with-input, upstream, not 'never'"),
        ({"min_area": 0.0}, "above 0 and at most 1"),
        ({"jitter": 1.0}, "at least 0 and below 1, not 1.0"),
    ],
)
def test_wrong_settings_are_refused(folder, settings, message):
    """Before the first image is read."""
    with pytest.raises(OptionError, match=message):
        Views(read_list(folder), **settings)


def test_a_folder_without_a_list_is_read_whole(folder):
    """All images, sorted; other files are not images."""
    (folder / "notes.txt").write_text("none")
    assert [s.file.name for s in read_list(folder)] == [f"{i:03}_{i % 2}.{'png' if i % 2 else 'jpg'}" for i in range(6)]


def test_the_official_lists_are_read(folder, tmp_path):
    """A file name and 0/1 labels a line, as ChestX-ray14's; blank lines are nothing."""
    (tmp_path / "train.txt").write_text("001_1.png 0 1 0\n\n000_0.jpg 1 0 0\n")
    samples = read_list(folder, tmp_path / "train.txt")
    assert samples == [
        Sample(folder / "001_1.png", (0.0, 1.0, 0.0)),
        Sample(folder / "000_0.jpg", (1.0, 0.0, 0.0)),
    ]


def test_a_csv_is_read_by_its_columns(folder, tmp_path):
    """The image column has several names; labels, patient and split are taken; a byte order mark is nothing."""
    text = "Image Index,patient,split,Mass,Hernia\n000_0.jpg,7,train,1,0\n001_1.png,8,val,0,1\n002_0.jpg,7,train,0,0\n"
    (tmp_path / "labels.csv").write_text(text, encoding="utf-8")
    assert [s.file.name for s in read_list(folder, tmp_path / "labels.csv")] == ["000_0.jpg", "001_1.png", "002_0.jpg"]
    samples = read_list(folder, tmp_path / "labels.csv", labels=("Hernia", "Mass"), split="val")
    assert samples == [Sample(folder / "001_1.png", (1.0, 0.0), "8")]


@pytest.mark.parametrize(
    ("name", "text", "settings", "message"),
    [
        (
            "a.csv",
            "file,split\n000_0.jpg,val\n",
            {"labels": ("Mass", "Edema")},
            r"lacks columns Mass, Edema; it has file",
        ),
        ("b.csv", "picture\n000_0.jpg\n", {}, r"lacks an image column \(file, image,"),
        ("c.csv", "file\n000_0.jpg\n", {"split": "train"}, "lacks columns split"),
        ("d.csv", "file,split\n000_0.jpg,val\n", {"split": "train"}, "no images: .* split train"),
        ("e.csv", "file,Mass\n000_0.jpg,yes\n", {"labels": ("Mass",)}, "a label in Mass is not a number"),
        ("i.csv", "file,Mass\n000_0.jpg\n", {"labels": ("Mass",)}, "a label in Mass is not a number"),
        ("f.csv", "", {}, "it has no rows"),
        ("g.txt", "\n", {}, "no images"),
        ("h.txt", "000_0.jpg Mass\n", {}, r"h\.txt: .* could not convert string to float: 'Mass'"),
    ],
)
def test_lists_that_cannot_be_meant_are_refused(folder, tmp_path, name, text, settings, message):
    """The message names the list and what it lacks."""
    (tmp_path / name).write_text(text)
    with pytest.raises(OptionError, match=message):
        read_list(folder, tmp_path / name, **settings)


def test_what_is_not_there_is_named_at_once(folder, tmp_path):
    """A folder, a list, and all missing images together, before the run."""
    with pytest.raises(OptionError, match="is not a folder; give the folder with the images"):
        read_list(tmp_path / "nowhere")
    with pytest.raises(OptionError, match=r"nolist\.txt does not exist"):
        read_list(folder, tmp_path / "nolist.txt")
    (tmp_path / "list.txt").write_text("000_0.jpg 0\nx.png 1\ny.png 0\n")
    with pytest.raises(InputContractError, match=r"2 of 3 images are not in .*: x\.png, y\.png"):
        read_list(folder, tmp_path / "list.txt")


def test_other_kinds_of_image_are_read_sensibly(tmp_path):
    """16-bit, colour, palette and opaque alpha PNGs of one picture give its grey values within one step of 255."""
    grey = np.tile(np.linspace(0, 255, 64).astype(np.uint8), (64, 1))
    image = Image.fromarray(grey)
    image.save(tmp_path / "grey.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "sixteen.png")
    image.convert("RGB").save(tmp_path / "colour.png")
    image.convert("P").save(tmp_path / "palette.png")
    image.convert("RGBA").save(tmp_path / "alpha.png")
    for file in sorted(tmp_path.iterdir()):
        read = caid.read_grey(file)
        assert read.mode == "L", file.name
        assert np.abs(np.asarray(read).astype(int) - grey).max() <= 1, file.name
    Image.fromarray(grey.astype(np.float32)).save(tmp_path / "float.tif")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n no more")
    for name, words in (("float.tif", "holds float32 values"), ("broken.png", "cannot read")):
        with pytest.raises(InputContractError, match=words):
            caid.read_grey(tmp_path / name)
