"""MONAI SSL's data: lists, volumes prepared as MONAI's own transforms do and kept on disk, crops and views."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
from dataclasses import replace

import gloo
import nibabel
import numpy as np
import pytest
import torch
from monai.transforms.compose import Compose
from monai.transforms.croppad.dictionary import CropForegroundd, SpatialPadd
from monai.transforms.intensity.array import RandCoarseDropout, RandCoarseShuffle
from monai.transforms.intensity.dictionary import ScaleIntensityRanged
from monai.transforms.io.dictionary import LoadImaged
from monai.transforms.spatial.dictionary import Spacingd
from monai.transforms.utility.dictionary import EnsureChannelFirstd
from torch.utils.data import DataLoader

from zoo.entries.monai_ssl import PRETRAINING, cases
from zoo.entries.monai_ssl.augment import Corrupt
from zoo.entries.monai_ssl.cases import VolumeCache, prepare_volume
from zoo.entries.monai_ssl.cohort import of_training_patients, read_datalist, read_datalists
from zoo.entries.monai_ssl.data import Crops
from zoo.errors import InputContractError, OptionError
from zoo.files import this_process
from zoo.transforms.volume import build_volume_transform

TRANSFORM = build_volume_transform(PRETRAINING)


def write_ct(path, shape=(32, 38, 28), spacing=(3.0, 2.5, 3.5), *, seed=0, body=None):
    """Air with a body of random tissue, axes to the left, the front and the top; `body` None for a box inside."""
    rng = np.random.default_rng(seed)
    values = np.full(shape, -1000, dtype=np.int16)
    inside = tuple(slice(3, side - 2) for side in shape) if body is None else body
    values[inside] = rng.integers(-150, 250, values[inside].shape)
    affine = np.diag([-spacing[0], spacing[1], spacing[2], 1.0])
    affine[:3, 3] = (40, -30, 15)
    image = nibabel.Nifti1Image(values, affine)
    image.set_qform(affine, code=1)
    nibabel.save(image, path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three CTs."""
    path = tmp_path_factory.mktemp("cts")
    for i in range(3):
        write_ct(path / f"ct{i}.nii.gz", (32 + i, 38, 28), seed=i)
    return path


@pytest.fixture
def cache(tmp_path):
    return VolumeCache(tmp_path / "volumes", PRETRAINING, 32)


def files_of(folder):
    return sorted(folder.glob("*.nii.gz"))


def write_list(path, **sections):
    path.write_text(json.dumps(sections))
    return path


def upstream(size):
    """The deterministic part of the tutorial's chain, by MONAI."""
    return Compose(
        [
            LoadImaged(keys=["image"]),
            EnsureChannelFirstd(keys=["image"]),
            Spacingd(keys=["image"], pixdim=(2.0, 2.0, 2.0), mode="bilinear"),
            ScaleIntensityRanged(keys=["image"], a_min=-57, a_max=164, b_min=0.0, b_max=1.0, clip=True),
            CropForegroundd(keys=["image"], source_key="image", allow_smaller=True),
            SpatialPadd(keys=["image"], spatial_size=(size,) * 3),
        ]
    )


# Lists


def test_a_list_is_read(tmp_path, folder):
    """Sections of objects, or of texts as the decathlon has them; other files and sections are left out."""
    path = write_list(
        tmp_path / "list.json",
        training=[{"image": "ct0.nii.gz", "label": "nowhere"}, {"image": "./ct1.nii.gz"}],
        test=["ct2.nii.gz"],
        numTraining=80,
    )
    assert read_datalist(path, "training", folder) == [{"image": folder / f"ct{i}.nii.gz"} for i in (0, 1)]
    assert read_datalists(path, ("test", "validation"), folder) == {
        "test": [{"image": folder / "ct2.nii.gz"}],
        "validation": [],
    }


def test_all_missing_files_are_named_at_once(tmp_path, folder):
    """Of all sections and all keys, with the folder they were looked for in."""
    path = write_list(
        tmp_path / "list.json",
        training=[{"image": "ct0.nii.gz", "label": "a.nii.gz"}],
        validation=[{"image": f"b{i}.nii.gz", "label": f"ct{i}.nii.gz"} for i in range(3)],
    )
    with pytest.raises(InputContractError, match=r"4 of 7 files .* do not exist") as raised:
        read_datalists(path, ("training", "validation"), folder, ("image", "label"))
    for name in ("a.nii.gz", "b0.nii.gz", "b1.nii.gz", "b2.nii.gz"):
        assert str(folder / name) in str(raised.value)
    assert f"relative to the folder of the data, {folder}" in str(raised.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot read .* as a list"),
        ("[]", "holds a list: sections"),
        ('{"training": 3}', "section 'training': a list of entries is expected, not int"),
        (
            '{"training": [{}, {"image": ""}, 3, {"image": "ct0.nii.gz"}]}',
            "entry 0 .* entry 1 .* entry 2 has no 'image'",
        ),
        ('{"training": ["ct0.nii.gz", {"image": "ct0.nii.gz"}]}', "ct0.nii.gz is listed 2 times"),
        ('{"train": ["ct0.nii.gz"], "n": 1}', "lists nothing under 'training'; its sections are: train$"),
    ],
)
def test_what_is_no_list_is_refused(content, message, tmp_path, folder):
    """With all entries that are wrong."""
    (tmp_path / "list.json").write_text(content)
    with pytest.raises(OptionError, match=message):
        read_datalist(tmp_path / "list.json", "training", folder)
    with pytest.raises(OptionError, match=r"the list .* does not exist"):
        read_datalist(tmp_path / "none.json", "training", folder)


def test_validation_volumes_of_training_patients_are_found(tmp_path):
    """By the part of TCIA's names that is the patient's; other names stand for themselves, or another rule for them."""

    def entries(*names):
        return [{"image": tmp_path / name} for name in names]

    training = entries("volume-covid19-A-0001_day002.nii.gz", "volume-covid19-A-0002.nii.gz", "p7_scan1.nii.gz")
    validation = entries(
        "volume-covid19-A-0001_day009.nii.gz", "volume-covid19-A-0002_1.nii.gz", "volume-covid19-A-00021.nii.gz"
    ) + entries("p7_scan2.nii.gz", "p7_scan1.nii.gz", "p77_scan1.nii.gz")
    shared = of_training_patients(training, validation)
    assert shared == [validation[0], validation[1], validation[4]]
    assert of_training_patients(training, validation, r"^p\d+") == validation[3:5]
    with pytest.raises(OptionError, match="is not a regular expression"):
        of_training_patients(training, validation, "(")


# Prepared volumes


@pytest.mark.parametrize("spacing", [(3.0, 2.5, 3.5), (0.9, 1.1, 2.0), (2.0, 2.0, 2.0), (1.7, 5.0, 1.3)])
def test_volumes_are_prepared_as_monai_prepares_them(spacing, tmp_path):
    """Same box and same voxels as the tutorial's chain; 1e-5 is what two ways of interpolating in float32 differ by."""
    shape = tuple(round(extent / step) for extent, step in zip((120, 80, 70), spacing, strict=True))
    path = write_ct(tmp_path / "ct.nii.gz", shape, spacing)
    expected = upstream(36)({"image": path})["image"].numpy()[0]
    ours = prepare_volume(path, TRANSFORM, 36)
    assert ours.shape == expected.shape
    assert max(ours.shape) > min(ours.shape) == 36, "resampled, cut and padded"
    np.testing.assert_allclose(ours, expected, atol=1e-5)
    assert ours.dtype == np.float32
    assert (ours.min(), ours.max()) == (0, 1)


def test_padding_is_on_both_sides(tmp_path):
    """Half of it before and the rest behind, of zeros."""
    path = write_ct(tmp_path / "ct.nii.gz", (20, 20, 20), (2.0, 2.0, 2.0), body=np.s_[5:14, 5:15, 2:18])
    values = prepare_volume(path, TRANSFORM, 16)
    assert values.shape == (16, 16, 16)
    assert not values[:3].any()
    assert not values[12:].any()
    assert values[3].any()
    assert values[11].any()


def test_what_is_no_ct_is_refused(tmp_path, cache):
    """0 to 255 in place of HU, and a volume in which nothing lies above the window; each says which file."""
    values = np.random.default_rng(0).integers(0, 255, (20, 20, 20)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([2.0, 2.0, 2.0, 1])), tmp_path / "grey.nii.gz")
    with pytest.raises(InputContractError, match=r"grey\.nii\.gz has values from 0 to 254: HU are expected"):
        cache.add(tmp_path / "grey.nii.gz")
    values = np.full((20, 20, 20), -1000, dtype=np.int16)
    values[4:8] = -80
    nibabel.save(nibabel.Nifti1Image(values, np.diag([2.0, 2.0, 2.0, 1])), tmp_path / "fat.nii.gz")
    with pytest.raises(InputContractError, match=r"fat\.nii\.gz has nothing above -57 HU"):
        cache.add(tmp_path / "fat.nii.gz")
    assert not cache.folder.exists()


def test_all_volumes_that_cannot_be_used_are_named(tmp_path, folder, cache):
    """Once the others are kept, and the next time again."""
    broken = [tmp_path / f"broken{i}.nii.gz" for i in range(2)]
    for path in broken:
        path.write_bytes(b"no volume")
    with pytest.raises(InputContractError, match=r"2 of 5 volumes cannot be used:\n.*broken0.*\n.*broken1"):
        cache.fill([broken[0], *files_of(folder), broken[1]])
    assert len(list(cache.folder.glob("*.npy"))) == 3
    with pytest.raises(InputContractError, match="2 of 5 volumes cannot be used"):
        cache.fill([broken[0], *files_of(folder), broken[1]])


def test_volumes_are_prepared_once(folder, tmp_path, monkeypatch):
    """Kept under the file's name: found by a later run, mapped, not touched again, other settings beside it."""
    file = files_of(folder)[0]
    first = VolumeCache(tmp_path, PRETRAINING, 32)
    path = first.add(file)
    assert path.name.startswith("ct0-")
    written = path.stat().st_mtime_ns
    again = VolumeCache(tmp_path, PRETRAINING, 32)
    assert again.add(file) == path
    assert isinstance(again.open(file), np.memmap)
    np.testing.assert_array_equal(again.open(file), prepare_volume(file, TRANSFORM, 32))
    assert path.stat().st_mtime_ns == written
    others = [
        VolumeCache(tmp_path, replace(PRETRAINING, spacing=(4.0, 4.0, 4.0)), 32),
        VolumeCache(tmp_path, PRETRAINING, 48),
        VolumeCache(tmp_path, PRETRAINING, 32, "float16"),
    ]
    assert len({path, *(other.add(file) for other in others)}) == 4
    half = others[-1].open(file)
    assert half.dtype == np.float16
    np.testing.assert_allclose(half, again.open(file), atol=3e-4)


def test_a_changed_file_is_prepared_anew(tmp_path):
    """Its size or time of change differs, so does the name of what is kept."""
    file = write_ct(tmp_path / "ct.nii.gz")
    first = VolumeCache(tmp_path / "volumes", PRETRAINING, 32).add(file)
    write_ct(file, seed=5)
    os.utime(file, ns=(1, 1))
    second = VolumeCache(tmp_path / "volumes", PRETRAINING, 32).add(file)
    assert first != second
    assert not np.array_equal(np.load(first), np.load(second))
    series = tmp_path / "series"
    series.mkdir()
    names = []
    for count in (1, 2):
        (series / f"{count}.dcm").write_bytes(b"one slice more")
        names.append(VolumeCache(tmp_path / "volumes", PRETRAINING, 32).path(series))
    assert names[0] != names[1], "a folder is all its files"


def test_a_kill_leaves_no_broken_volume(tmp_path, folder, monkeypatch):
    """Half a file has another name, and goes when the volume is written anew; a live writer's stays."""
    file = files_of(folder)[0]
    cache = VolumeCache(tmp_path, PRETRAINING, 32)

    def half_a_file(stream, volume):
        stream.write(b"\x93NUMPY")
        stream.flush()
        os._exit(9)

    def child():
        np.save = half_a_file
        cache.add(file)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(60)
    assert process.exitcode == 9
    (left,) = tmp_path.iterdir()
    assert left.name.endswith(".tmp")
    live = tmp_path / f".other.npy.{this_process()}.00000000.tmp"
    live.touch()
    cache.fill([file])
    np.testing.assert_array_equal(cache.open(file), prepare_volume(file, TRANSFORM, 32))
    assert {path.name for path in tmp_path.iterdir()} == {cache.path(file).name, live.name}


@pytest.mark.slow
def test_processes_share_the_work(tmp_path, folder):
    """Each volume is prepared by one of them, by loader processes or not; bad ones stop both."""
    files = [*files_of(folder), tmp_path / "broken.nii.gz"]
    files[-1].write_bytes(b"no volume")

    def work(with_broken):
        cache = VolumeCache(tmp_path / "volumes", PRETRAINING, 32)
        mine = []
        prepare = cases.prepare_volume
        cases.prepare_volume = lambda file, *rest: (mine.append(file.name), prepare(file, *rest))[1]
        try:
            cache.fill(files if with_broken else files[:-1])
        except InputContractError as error:
            return [mine, str(error)]
        finally:
            cases.prepare_volume = prepare
        return [mine, ""]

    (first, _), (second, _) = gloo.run(work, 2, tmp_path / "group", False)
    assert sorted(first + second) == [file.name for file in files[:-1]]
    assert abs(len(first) - len(second)) == 1
    (_, said), (_, other) = gloo.run(work, 2, tmp_path / "group", True)
    assert said == other
    assert "1 of 4 volumes cannot be used" in said
    assert "broken.nii.gz" in said
    cache = VolumeCache(tmp_path / "more", PRETRAINING, 32)
    cache.fill(files[:-1], workers=2)
    assert len(list(cache.folder.iterdir())) == 3


# Crops and views


def crops_of(folder, cache, **settings):
    return Crops(files_of(folder), cache, corrupt=Corrupt(32, scale_boxes=True), **settings)


@pytest.mark.slow
def test_crops_are_parts_of_the_volume(folder, cache):
    """Two of each, anywhere in it; the target is as the volume is, though MONAI's transforms write into their input."""
    volumes = crops_of(folder, cache)
    assert len(volumes) == 3
    for index in range(3):
        item = volumes[0, index]
        assert {name: tuple(value.shape) for name, value in item.items()} == dict.fromkeys(
            ("target", "view_1", "view_2"), (2, 1, 32, 32, 32)
        )
        whole = np.lib.stride_tricks.sliding_window_view(cache.open(files_of(folder)[index]), (32, 32, 32))
        for crop in item["target"].numpy():
            assert (whole == crop).all((-3, -2, -1)).sum() == 1
    corners = {tuple(volumes[i, 0]["target"][0, 0, 0, 0, :4].tolist()) for i in range(8)}
    assert len(corners) == 8


def test_draws_follow_from_seed_pass_and_index(folder, cache):
    """Also in loader processes; another pass, volume or seed, and the crops and views of one item, are others."""
    volumes = crops_of(folder, cache, seed=7)
    item = volumes[1, 2]
    keys = [[(1, 2)], [(0, 1)]]
    loaded = next(iter(DataLoader(volumes, batch_sampler=keys, num_workers=1)))
    for again in ({name: value[0] for name, value in loaded.items()}, pickle.loads(pickle.dumps(volumes))[1, 2]):
        assert all(torch.equal(again[name], value) for name, value in item.items())
    for other in (volumes[2, 2], volumes[1, 1], crops_of(folder, cache, seed=8)[1, 2]):
        assert not any(torch.equal(other[name], value) for name, value in item.items())
    assert not torch.equal(item["view_1"], item["view_2"])
    changed = [[view[i] != item["target"][i] for i in (0, 1)] for view in (item["view_1"], item["view_2"])]
    assert not torch.equal(changed[0][0], changed[1][0])
    assert type(item["view_1"]) is torch.Tensor


def test_validation_has_one_view(folder, cache):
    """The same crops and the same corruption as with two."""
    both, one = crops_of(folder, cache)[0, 1], crops_of(folder, cache, views=1)[0, 1]
    assert set(one) == {"target", "view_1"}
    assert all(torch.equal(value, both[name]) for name, value in one.items())
    for wrong in ({"views": 3}, {"crops": 0}):
        with pytest.raises(OptionError, match="at least 1 crop and 1 or 2 views are expected"):
            crops_of(folder, cache, **wrong)


def test_a_cleared_cache_is_made_again(folder, cache):
    """A volume that someone removed meanwhile is prepared when it is asked for."""
    volumes = crops_of(folder, cache)
    before = volumes[0, 0]
    for path in cache.folder.iterdir():
        path.unlink()
    assert torch.equal(volumes[0, 0]["view_2"], before["view_2"])


def test_corruptions_are_monai_s_with_the_published_numbers():
    """The same draws through MONAI's transforms by hand; both kinds come up, shuffling in four of five."""
    crop = torch.rand(1, 96, 96, 96, generator=torch.Generator().manual_seed(0))
    original, corrupt, kinds = crop.clone(), Corrupt(), []
    for seed in range(12):
        state = np.random.RandomState(seed)
        ours = corrupt(crop, np.random.RandomState(seed))
        inner = state.random_sample() < 0.5
        sides = {"spatial_size": 5, "max_spatial_size": 32} if inner else {"spatial_size": 20, "max_spatial_size": 64}
        drop = RandCoarseDropout(holes=6, dropout_holes=inner, prob=1.0, **sides)
        shuffle = RandCoarseShuffle(prob=0.8, holes=10, spatial_size=8)
        by_hand = crop.clone()
        for transform in (drop, shuffle):
            by_hand = transform.set_random_state(state=state)(by_hand)
        assert torch.equal(ours, by_hand.as_tensor())
        assert ours.min() >= crop.min()
        assert ours.max() <= crop.max()
        kinds.append((inner, shuffle._do_transform))
    assert torch.equal(crop, original)
    assert {kind for kind, _ in kinds} == {True, False}
    assert 6 <= sum(shuffled for _, shuffled in kinds) <= 12


def test_as_much_is_corrupted_as_published():
    """Without shuffling, inner drop-out changes 9 to 19 % of the voxels of a crop of 96^3, outer 32 to 58 %."""
    corrupt, crop = Corrupt(), torch.rand(1, 96, 96, 96, generator=torch.Generator().manual_seed(0))
    corrupt.shuffle = lambda x: x
    corrupt.shuffle.set_random_state = lambda state: None
    shares = [(corrupt(crop, np.random.RandomState(seed)) != crop).float().mean().item() for seed in range(16)]
    inner = [share for share in shares if share < 0.27]
    outer = [share for share in shares if share > 0.27]
    assert min(len(inner), len(outer)) >= 4
    assert 0.07 < min(inner) <= max(inner) < 0.21
    assert 0.30 < min(outer) <= max(outer) < 0.62


def test_boxes_are_scaled_on_request():
    """In proportion to crops of 96, rounded, at least 1; the published ones at 96, and for all sizes without it."""

    def sides(corrupt):
        drops = [(drop.spatial_size, drop.max_spatial_size) for drop in (corrupt.inner, corrupt.outer)]
        return [*drops, corrupt.shuffle.spatial_size]

    published = [(5, 32), (20, 64), 8]
    assert sides(Corrupt(96)) == sides(Corrupt(96, scale_boxes=True)) == sides(Corrupt(32)) == published
    assert sides(Corrupt(32, scale_boxes=True)) == [(2, 11), (7, 21), 3]
    assert sides(Corrupt(8, scale_boxes=True)) == [(1, 3), (2, 5), 1]
    with pytest.raises(OptionError, match="crops of 0 voxels"):
        Corrupt(0)
