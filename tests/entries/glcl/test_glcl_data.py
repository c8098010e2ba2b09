"""GLCL's volumes: layouts, what is refused, the network's grid, the folder they are kept in, splits, changes."""

import json
import logging
import pickle
from dataclasses import replace
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import torch
from glcl_volumes import SHAPE, draw, save, write_cohort, write_subject
from torch.nn import functional as F

from zoo.entries.glcl import augment
from zoo.entries.glcl.batches import BLANK, global_rows
from zoo.entries.glcl.cases import CaseStore
from zoo.entries.glcl.cohort import DATASETS, Case, choose, find_cases, read_cases
from zoo.entries.glcl.contract import PREPROCESSING
from zoo.entries.glcl.data import ContrastiveBatches
from zoo.entries.glcl.finetune_data import LabelledSlices, WholeVolumes
from zoo.entries.glcl.placing import place_image, place_mask
from zoo.entries.glcl.splits import parse_ids, pretraining, split, splits
from zoo.entries.glcl.volumes import correct_bias, read_image, read_mask
from zoo.errors import InputContractError, OptionError
from zoo.images import Grid, Volume
from zoo.transforms import build_slice_transform
from zoo.transforms.placing import put_back

ACDC, PROSTATE, MMWHS = DATASETS["acdc"], DATASETS["prostate"], DATASETS["mmwhs"]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return write_cohort(tmp_path_factory.mktemp("cohort"), 4)


@pytest.fixture(scope="module")
def stored(cohort, tmp_path_factory):
    """The cohort on 32 x 32 pixels of 2.5 mm."""
    return CaseStore(tmp_path_factory.mktemp("cache"), ACDC, 32, 2.5).prepare(find_cases(cohort, ACDC))


# ------------------------------------------------------------------------------------------------------------ files


def test_acdc_is_found(tmp_path):
    """End-diastole is frame 1, or frame 4 of a patient without one; masks need not be there; others are passed over."""
    write_subject(tmp_path, 2)
    write_subject(tmp_path, 1, masked=False)
    write_subject(tmp_path, 90, frame="frame04")
    write_subject(tmp_path, 2, frame="frame04")
    save(tmp_path / "patient003" / "patient004_frame01.nii.gz", draw(0)[0])
    save(tmp_path / "patient002" / "patient002_4d.nii.gz", draw(0)[0])
    cases = find_cases(tmp_path, ACDC)
    assert [case.name for case in cases] == ["001", "002", "090"]
    assert [case.image.name for case in cases] == [f"patient{p}_frame{f}.nii.gz" for p, f in _NAMES]
    assert [case.mask and case.mask.name for case in cases] == [
        None,
        "patient002_frame01_gt.nii.gz",
        "patient090_frame04_gt.nii.gz",
    ]


_NAMES = (("001", "01"), ("002", "01"), ("090", "04"))


@pytest.mark.parametrize(
    ("dataset", "image", "mask", "name"),
    [
        (PROSTATE, "007/img.nii.gz", "007/mask.nii.gz", "007"),
        (PROSTATE, "imagesTr/prostate_07.nii.gz", "labelsTr/prostate_07.nii.gz", "007"),
        (MMWHS, "1003/img.nii", "1003/seg.nii.gz", "1003"),
        (MMWHS, "mr_train_1003_image.nii.gz", "mr_train_1003_label.nii.gz", "1003"),
    ],
)
def test_other_layouts_are_found(tmp_path, dataset, image, mask, name):
    """As the authors renamed the files, and as the archives are packed."""
    save(tmp_path / image, draw(0)[0])
    save(tmp_path / mask, draw(0)[1])
    assert find_cases(tmp_path, dataset) == [Case(name, tmp_path / image, tmp_path / mask)]


def test_a_table_names_volumes_of_any_layout(tmp_path):
    """Files are relative to the folder; a cell without a mask is none; missing files and names are all said."""
    for name in ("a.nii.gz", "b.nii.gz", "masks/a.nii.gz"):
        save(tmp_path / name, draw(0)[0])
    table = tmp_path / "list.csv"
    table.write_text("name,image,mask\none,a.nii.gz,masks/a.nii.gz\ntwo,b.nii.gz,\n")
    assert read_cases(table, tmp_path) == [
        Case("one", tmp_path / "a.nii.gz", tmp_path / "masks/a.nii.gz"),
        Case("two", tmp_path / "b.nii.gz"),
    ]
    table.write_text("name,image\none,a.nii.gz\none,b.nii.gz\n")
    with pytest.raises(OptionError, match="several rows"):
        read_cases(table, tmp_path)
    table.write_text("name,image\none,c.nii.gz\ntwo,d.nii.gz\n")
    with pytest.raises(InputContractError, match=r"2 of 2 files.*c\.nii\.gz.*d\.nii\.gz"):
        read_cases(table, tmp_path)
    table.write_text("id,image\none,a.nii.gz\n")
    with pytest.raises(OptionError, match="lacks columns name"):
        read_cases(table, tmp_path)


def test_volumes_that_are_not_there_are_named(cohort, tmp_path):
    """A wrong folder, one of another layout, and names that no volume has."""
    with pytest.raises(OptionError, match="does not exist"):
        find_cases(tmp_path / "nowhere", ACDC)
    with pytest.raises(OptionError, match=r"no volume of prostate: <name>/img\.nii\.gz or imagesTr"):
        find_cases(cohort, PROSTATE)
    cases = find_cases(cohort, ACDC)
    assert [case.name for case in choose(cases, ("003", "001"))] == ["003", "001"]
    with pytest.raises(OptionError, match=r"2 of 3 volume\(s\) asked for are missing: 041, 042"):
        choose(cases, ("041", "001", "042"))


def test_channel_0_of_decathlon_s_prostate_is_read(tmp_path):
    """Of ACDC a volume with a fourth axis is refused, for it would be all phases."""
    t2, diffusion = draw(0)[0], draw(1)[0]
    path = save(tmp_path / "007" / "img.nii.gz", np.stack([t2, diffusion], -1))
    image = read_image(path, "LP", PROSTATE.channel)
    assert np.array_equal(image.values, t2)
    assert (image.grid.shape, image.grid.spacing) == (SHAPE, (2.0, 2.0, 8.0))
    with pytest.raises(InputContractError, match=r"img\.nii\.gz has shape \(40, 44, 9, 2\)"):
        read_image(path, "LP", ACDC.channel)


def test_labels_are_ranks(tmp_path):
    """MM-WHS's values in ascending order, or ranks already; 421 is neither, and volume and value are named."""
    values = np.array([0, *MMWHS.values])
    ranks = np.random.default_rng(0).integers(0, 8, SHAPE)
    grid = Grid(SHAPE, np.diag([2.0, 2.0, 8.0, 1.0]), "image.nii.gz")
    for stored_as in (values[ranks], ranks):
        case = Case("1001", tmp_path, save(tmp_path / "seg.nii.gz", stored_as.astype(np.int16)))
        assert np.array_equal(read_mask(case, MMWHS, grid).values, ranks)
    save(tmp_path / "seg.nii.gz", np.where(ranks == 2, 421, values[ranks]).astype(np.int16))
    with pytest.raises(
        InputContractError, match=r"1001: the mask .* has labels 421, where 0 and 205 \(.*420 \(left atr"
    ):
        read_mask(case, MMWHS, grid)


@pytest.mark.parametrize("label", [4.0, -1.0, 0.5, np.nan])
def test_labels_that_no_structure_has_are_refused(tmp_path, label):
    """Among them fractions, as resampling makes them, and no numbers."""
    mask = draw(0)[1].astype(np.float32)
    mask[0, 0, 0] = label
    case = Case("017", tmp_path, save(tmp_path / "mask.nii.gz", mask))
    with pytest.raises(
        InputContractError, match=rf"017: the mask .* labels {label:g}, where 0 and 1 \(right ventricle\), 2"
    ):
        read_mask(case, ACDC, Grid(SHAPE, np.diag([2.0, 2.0, 8.0, 1.0]), "image.nii.gz"))


def test_volumes_that_cannot_be_used_are_all_named(tmp_path):
    """A mask of another shape, one slice, a file cut short, NaN, nothing but one value; the good one is kept."""
    write_cohort(tmp_path, 6)
    file = {i: tmp_path / f"patient00{i}" / f"patient00{i}_frame01.nii.gz" for i in range(1, 7)}
    save(file[1].with_name("patient001_frame01_gt.nii.gz"), draw(0)[1][:, :, :-1])
    save(file[2], draw(0)[0][:, :, :1])
    file[3].write_bytes(file[3].read_bytes()[:500])
    image = draw(0)[0].astype(np.float32)
    image[3, 3, 3] = np.nan
    save(file[4], image)
    save(file[5], np.full(SHAPE, 7, np.int16))
    store = CaseStore(tmp_path / "cache", ACDC, 32, 2.5)
    with pytest.raises(InputContractError) as caught:
        store.prepare(find_cases(tmp_path, ACDC))
    message = str(caught.value).splitlines()
    assert message[0] == "5 of 6 volumes cannot be used:"
    for line, words in zip(message[1:], _FAULTS, strict=True):
        assert all(word in line for word in words), line
    assert len(list((tmp_path / "cache").glob("*.label.npy"))) == 1


_FAULTS = (
    ("001: ", "(40, 44, 9)", "(40, 44, 8)"),
    ("patient002_frame01.nii.gz", "(40, 44, 1)", "several slices"),
    ("cannot read", "patient003_frame01.nii.gz"),
    ("004 (", "1 NaN"),
    ("005 (", "same value"),
)


def test_a_mask_that_lies_elsewhere_is_logged(tmp_path, caplog):
    """By its header alone, for the place plays no part."""
    write_subject(tmp_path, 1)
    mask = tmp_path / "patient001" / "patient001_frame01_gt.nii.gz"
    nibabel.save(nibabel.Nifti1Image(draw(1)[1], np.diag([2.0, 2.0, 8.0, 1.0]) + np.eye(4, k=3) * 90), mask)
    with caplog.at_level(logging.WARNING, "zoo"):
        CaseStore(tmp_path / "cache", ACDC, 32, 2.5).prepare(find_cases(tmp_path, ACDC))
    assert "001: the header of the mask" in caplog.text


# ------------------------------------------------------------------------------------------------------------- grid


@pytest.mark.parametrize(("pixdim", "is_warned_of"), [(2.0, False), (1.0, True)])
def test_training_takes_the_sizes_that_segmenting_takes(tmp_path, caplog, pixdim, is_warned_of):
    """Those of the affine; another pixdim, which would give slices of another scale, is logged."""
    image = nibabel.Nifti1Image(draw(0)[0], np.diag([-2.0, -2, 8, 1]))
    image.header["pixdim"][1:3] = pixdim
    path = tmp_path / "img.nii.gz"
    nibabel.save(image, path)
    with caplog.at_level(logging.WARNING, "zoo"):
        _, resampled = place_image(read_image(path, "LP"), 32, 2.5)
    transform = build_slice_transform(replace(PREPROCESSING, size=(32, 32), spacing=(2.5, 2.5)))
    assert resampled == (32, 35) == transform.place(path).resampled
    assert ("by its affine and of 1 x 1 x 8 mm by its pixdim" in caplog.text) == is_warned_of


def test_slices_are_normalised_then_resampled_then_cut(cohort):
    """By the percentiles of the whole volume as it was scanned; 40 x 44 pixels of 2 mm become 32 x 35 of 2.5 mm."""
    image = read_image(find_cases(cohort, ACDC)[0].image, ACDC.orientation)
    slices, resampled = place_image(image, 32, 2.5)
    assert (slices.shape, slices.dtype, resampled) == ((9, 32, 32), np.float32, (32, 35))
    low, high = np.percentile(image.values, (1, 99))
    same, _ = place_image(image, 48, 2.0)
    expected = (image.values - low) / (high - low)
    assert np.allclose(same[:, 4:44, 2:46], expected.transpose(2, 0, 1), atol=1e-6)
    assert not same[:, :4].any()
    assert not same[:, :, :2].any()
    assert slices.min() < 0
    assert slices.max() > 1


@pytest.mark.parametrize(("side", "spacing", "target"), [(40, 2.0, 3.1), (40, 2.0, 1.3), (57, 1.0, 2.5)])
def test_image_and_mask_stay_together(side, spacing, target):
    """The edges of the field of view coincide, so that a ramp keeps its place; masks keep their labels."""
    length = round(side * spacing / target)
    ramp = np.tile((np.arange(side) + 0.5) / side, (side, 1))[..., None].repeat(2, 2)
    affine = np.diag([spacing, spacing, 8.0, 1.0])
    size = 32 * -(-length // 32)
    margin = (size - length) // 2
    image, resampled = place_image(Volume(ramp, affine, 0, "it"), size, target)
    assert resampled == (length, length)
    low, high = np.percentile(ramp, (1, 99))
    row = image[0, size // 2, margin : margin + length] * (high - low) + low
    inner = slice(2, -2)  # the borders are mixed with the 0 outside
    assert np.allclose(row[inner], ((np.arange(length) + 0.5) / length)[inner], atol=1e-3)
    labels = np.where(ramp < 0.5, 1, 3).astype(np.uint8)
    mask = place_mask(Volume(labels, affine, 0, "it"), size, target)
    assert set(np.unique(mask)) <= {0, 1, 3}
    found = mask[0, size // 2, margin : margin + length]
    centres = (np.arange(length) + 0.5) / length
    assert np.array_equal(found[np.abs(centres - 0.5) > 0.5 / side], np.where(centres < 0.5, 1, 3)[_far(centres, side)])


def _far(centres, side):
    return np.abs(centres - 0.5) > 0.5 / side


@pytest.mark.parametrize("shape", [(32, 35), (29, 40), (33, 31), (32, 32)])
def test_what_was_cut_out_is_put_back_in_its_place(shape):
    """Whatever is odd or even, larger or smaller; what was cut off is 0."""
    volume = np.random.default_rng(0).random((*shape, 2)) + 1
    slices, _ = place_image(Volume(volume, np.diag([1.0, 1.0, 8.0, 1.0]), 0, "it"), 32, 1.0)
    low, high = np.percentile(volume, (1, 99))
    back = put_back(torch.from_numpy(slices)[:, None], shape)[:, 0].numpy().transpose(1, 2, 0)
    known = back != 0
    assert known.sum() == min(32, shape[0]) * min(32, shape[1]) * 2
    assert np.allclose((back * (high - low) + low)[known], volume[known], atol=1e-6)


@pytest.mark.slow
def test_n4_removes_a_smooth_bias():
    """Of a brightness that doubles from one side to the other less than half of the trend is left."""
    rng = np.random.default_rng(0)
    shape = (16, 16, 3)
    bias = np.exp(np.linspace(-0.35, 0.35, 16))[:, None, None]
    tissue = 100 + 30 * (rng.random(shape) > 0.5)
    corrected = correct_bias(tissue * bias, (8.0, 8.0, 8.0))
    assert corrected.shape == shape
    assert corrected.dtype == np.float32
    trends = [np.polyfit(np.arange(16), np.log(v).mean((1, 2)), 1)[0] for v in (tissue * bias, corrected)]
    assert abs(trends[1]) < 0.5 * abs(trends[0])


def test_a_place_that_contradicts_itself_is_refused(tmp_path):
    """Sform and qform that mirror each other, and voxels of metres; not in a mask, whose place plays no part."""
    write_subject(tmp_path, 1)
    (case,) = find_cases(tmp_path, ACDC)
    for edit, message in (
        (lambda image: image.set_qform(np.diag([2.0, -2, 8, 1]), code=1), "contradicts itself about left and right"),
        (lambda image: image.set_sform(np.diag([-2000.0, -2, 8, 1]), code=1), "a meaningless affine in its header"),
    ):
        for file in (case.image, case.mask):
            image = nibabel.Nifti1Image(np.asarray(nibabel.load(file).dataobj), np.diag([-2.0, -2, 8, 1]))
            edit(image)
            nibabel.save(image, tmp_path / file.name)
        with pytest.raises(InputContractError, match=rf"{case.image.name}.*{message}"):
            read_image(tmp_path / case.image.name, "LP")
        grid = read_image(case.image, "LP").grid
        assert read_mask(replace(case, mask=tmp_path / case.mask.name), ACDC, grid).values.any()


# ------------------------------------------------------------------------------------------------------------ cache


def keys_of(cases):
    return [(case.key, case.label_key) for case in cases]


def test_volumes_are_prepared_once(cohort, tmp_path):
    """For each grid; an image without its mask is the same image; a file that changes is prepared anew."""
    write_cohort(tmp_path / "data", 2)
    cases = find_cases(tmp_path / "data", ACDC)
    store = CaseStore(tmp_path / "cache", ACDC, 32, 2.5)
    first = store.prepare(cases)
    files = {path: path.stat().st_mtime_ns for path in store.folder.iterdir()}
    assert len(files) == 2 * 4
    assert keys_of(store.prepare(cases)) == keys_of(first)
    bare = store.prepare([Case(case.name, case.image) for case in cases])
    assert [case.key for case in bare] == [case.key for case in first]
    assert [case.is_labelled for case in (*first, *bare)] == [True, True, False, False]
    assert {path: path.stat().st_mtime_ns for path in store.folder.iterdir()} == files
    CaseStore(store.folder, ACDC, 64, 2.5).prepare(cases)
    assert len(list(store.folder.iterdir())) == 2 * len(files)
    write_subject(tmp_path / "data", 1, shape=(40, 44, 12))
    changed = store.prepare(cases)
    assert [case.slices for case in changed] == [12, 9]
    assert changed[0].image.shape == (12, 32, 32)
    assert keys_of(changed[1:2]) == keys_of(first[1:2])


def test_stored_arrays_are_mapped_and_travel_without_them(stored):
    """A worker gets names, not voxels."""
    case = stored[0]
    assert isinstance(case.image, np.memmap)
    assert (case.label.shape, case.truth.shape, case.grid.spacing) == ((9, 32, 32), SHAPE, (2.0, 2.0, 8.0))
    copied = pickle.dumps(case)
    assert len(copied) < 2000
    assert np.array_equal(pickle.loads(copied).image, case.image)


def test_half_written_volumes_are_made_anew(cohort, tmp_path):
    """An image without its facts, as a kill leaves it."""
    case = find_cases(cohort, ACDC)[0]
    store = CaseStore(tmp_path, ACDC, 32, 2.5)
    made = store.open(case)
    whole = made.image.copy()
    (tmp_path / f"{made.key}.json").unlink()
    (tmp_path / f"{made.key}.image.npy").write_bytes(b"")
    assert np.array_equal(store.open(case).image, whole)
    assert json.loads((tmp_path / f"{made.key}.json").read_text())["resampled"] == [32, 35]


# ----------------------------------------------------------------------------------------------------------- splits


def test_published_splits_are_whole():
    """As many volumes as they say; nobody trains and judges; what the authors' lists get wrong is mended."""
    assert [len(pretraining(name)) for name in DATASETS] == [52, 17, 10]
    assert [len(split(name, "tr1-c1").test) for name in DATASETS] == [20, 15, 10]
    for name in DATASETS:
        for key in splits(name):
            parts = split(name, key)
            everyone = [*parts.train, *parts.val, *parts.test]
            assert len(set(everyone)) == len(everyone), (name, key)
            assert not set(pretraining(name)) & set(parts.test)
            assert not set(pretraining(name, key)) & set(parts.val)
            if key != "trall":
                assert len(parts.train) == int(key[2])
    benchmark = split("acdc", "trall")
    assert len(benchmark.train) == 78
    assert set(benchmark.train) | set(benchmark.val) | set(benchmark.test) == {f"{i:03d}" for i in range(1, 101)}
    assert len(split("prostate", "trall").train) == 15
    assert set(pretraining("acdc")) - set(pretraining("acdc", "tr1-c2")) == {"072"}


def test_splits_that_there_are_not():
    """MM-WHS has no fifth combination of two."""
    with pytest.raises(OptionError, match=r"mmwhs has no split 'tr2-c5'; there are tr1-c1,"):
        split("mmwhs", "tr2-c5")


def test_names_may_be_ranges():
    """With the zeros of the first number; names that are no numbers stand as they are."""
    assert parse_ids("008-011, 042,mr-3") == ("008", "009", "010", "011", "042", "mr-3")
    for wrong in ("003-001", "1,,2", "", "1-3,2"):
        with pytest.raises(OptionError):
            parse_ids(wrong)


# ---------------------------------------------------------------------------------------------------------- changes


def test_views_show_a_box_of_the_slice():
    """Boxes of 100 of 192 pixels begin at 10 to 69; on other sizes in proportion; a ramp tells where."""
    ramp = torch.arange(192, dtype=torch.float32).expand(192, 192)
    images = torch.stack([ramp, ramp.T])[:, None].repeat(50, 1, 1, 1)
    views = augment.crop_views(images, np.random.default_rng(0))
    assert views.shape == images.shape
    starts = torch.cat([views[0::2, 0].mean(1)[:, 96] - 49.76, views[1::2, 0].mean(2)[:, 96] - 49.76])
    assert torch.allclose(starts, starts.round(), atol=0.01)
    assert 10 <= starts.round().min() < 14
    assert 65 < starts.round().max() <= 69
    step = (views[0, 0, 0, 100] - views[0, 0, 0, 99]).item()
    assert step == pytest.approx(100 / 192, abs=1e-5)
    small = augment.crop_views(F.avg_pool2d(images, 2), np.random.default_rng(0))
    assert (small[0, 0, 0, 60] - small[0, 0, 0, 59]).item() == pytest.approx(2 * 50 / 96, abs=1e-4)
    whole = augment.crop_views(images[:2], np.random.default_rng(0), box=192)
    assert torch.equal(whole, images[:2])


def test_views_change_in_intensity_by_themselves():
    """Each slice has its own brightness and contrast; means move by at most 0.3, deviations by 0.7 to 1.3."""
    base = 0.75 + 0.05 * torch.linspace(-1, 1, 1024).view(1, 1, 32, 32)
    views = augment.change_views(base.repeat(200, 1, 1, 1), np.random.default_rng(0))
    shifts, factors = views.mean((1, 2, 3)) - base.mean(), views.std((1, 2, 3)) / base.std()
    assert shifts.abs().max() < 0.3 + 1e-6
    assert shifts.abs().max() > 0.28
    assert 0.7 - 1e-4 < factors.min() < 0.72
    assert 1.28 < factors.max() < 1.3 + 1e-4
    assert abs(np.corrcoef(shifts, factors)[0, 1]) < 0.2
    extreme = augment.change_views(torch.tensor([-5.0, 5.0]).view(1, 1, 1, 2), np.random.default_rng(0))
    assert extreme.flatten().tolist() == [0.0, 1.5]


def test_the_authors_views_share_one_change():
    """Slices of one call have one brightness, and the contrast is changed by as much."""
    base = 0.75 + 0.05 * torch.linspace(-1, 1, 1024).view(1, 1, 32, 32)
    views = augment.change_views(base.repeat(6, 1, 1, 1), np.random.default_rng(0), torch.tensor([0, 0, 1, 1, 0, 1]))
    shifts, factors = views.mean((1, 2, 3)) - base.mean(), views.std((1, 2, 3)) / base.std()
    assert torch.allclose(factors, 1 + shifts, atol=1e-4)
    assert torch.equal(views[0], views[4])
    assert torch.equal(views[2], views[5])
    assert not torch.allclose(views[0], views[2])


class Scripted:
    """A generator whose draws are given: the option, the number of 45-degree turns, and all that is continuous."""

    def __init__(self, option, *, eighth=0, angle=0.0, scale=1.0, flip=True):
        self.whole, self.real, self.flip = [option, eighth], [angle, scale], flip

    def integers(self, *_):
        return self.whole.pop(0)

    def uniform(self, *_):
        return self.real.pop(0)

    def random(self):
        return 0.0 if self.flip else 1.0


@pytest.fixture(scope="module")
def slice_and_labels():
    image, labels = draw(3, (32, 32, 1))
    return torch.from_numpy(image[:, :, 0].astype(np.float32) / 700)[None], torch.from_numpy(labels[:, :, 0])


def test_turns_by_right_angles_are_exact(slice_and_labels):
    """Twice 45 degrees is a quarter turn; four quarters are the slice again."""
    image, labels = slice_and_labels
    for eighth in (2, 4, 6, 0):
        turned, mask = augment.change_pose(image, labels, Scripted(3, eighth=eighth))
        candidates = [k for k in range(4) if torch.equal(mask, labels.rot90(k))]
        assert candidates
        assert torch.allclose(turned[0], image[0].rot90(candidates[0]), atol=1e-4)
        assert candidates[0] % 2 == eighth // 2 % 2


def test_flips_scales_and_small_turns(slice_and_labels):
    """Labels stay whole and under their tissue; the corners that a turn uncovers are 0."""
    image, labels = slice_and_labels
    flipped, mask = augment.change_pose(image, labels, Scripted(2))
    assert torch.equal(flipped, image.flip(2))
    assert torch.equal(mask, labels.flip(1))
    for generator in (Scripted(2, flip=False), Scripted(4)):
        assert augment.change_pose(image, labels, generator)[0] is image
    for generator in (Scripted(0, angle=12.0), Scripted(1, scale=0.95), Scripted(1, scale=1.05)):
        moved, mask = augment.change_pose(image, labels, generator)
        assert mask.dtype == labels.dtype
        assert set(mask.unique().tolist()) <= {0, 1, 2, 3}
        assert not torch.equal(mask, labels)
        inner = F.max_pool2d((mask != 3)[None].float(), 3, 1, 1)[0] == 0
        assert moved[0][inner].mean() == pytest.approx(image[0][labels == 3].mean().item(), abs=0.06)
    turned, _ = augment.change_pose(image, labels, Scripted(0, angle=15.0))
    assert turned[0, 0, 0] == turned[0, -1, -1] == 0
    smaller, mask = augment.change_pose(image, labels, Scripted(1, scale=0.95))
    assert (mask > 0).sum() < (labels > 0).sum()
    assert smaller[0, 0].abs().max() < image[0, 0].min()


def test_a_blank_slice_is_left_alone():
    """Nothing is above 0.001."""
    image, labels = torch.full((1, 8, 8), 0.001), torch.zeros(8, 8, dtype=torch.uint8)
    assert augment.change_pose(image, labels, Scripted(3, eighth=1))[0] is image


def test_bending_moves_image_and_labels_alike(slice_and_labels):
    """By as much as was drawn: nothing, three pixels everywhere; labels become soft and still sum to 1."""
    image, labels = slice_and_labels
    label = F.one_hot(labels.long(), 4).permute(2, 0, 1).float()
    still = SimpleNamespace(normal=lambda *_: np.zeros((2, 3, 3)))
    assert torch.allclose(torch.cat(augment.bend(image, label, still)), torch.cat([image, label]), atol=1e-4)
    shifts = np.stack([np.full((3, 3), 3.0), np.zeros((3, 3))])
    moved, mask = augment.bend(image, label, SimpleNamespace(normal=lambda *_: shifts))
    assert torch.allclose(moved[0, 3:], image[0, :-3], atol=1e-4)  # out[r] = in[r - 3]
    assert torch.allclose(moved[0, 0], image[0, 0], atol=1e-4)  # the border goes on
    bent, mask = augment.bend(image, label, np.random.default_rng(1), 2.0)
    assert torch.allclose(mask.sum(0), torch.ones(32, 32), atol=1e-5)
    assert ((mask > 0.05) & (mask < 0.95)).any()
    level = torch.stack([image[0][labels == c].mean() for c in range(4)])
    drawn = (mask * level[:, None, None]).sum(0)
    assert np.corrcoef(drawn.flatten(), bent[0].flatten())[0, 1] > 0.95


def test_bending_fields_are_as_scikit_image_enlarges_them():
    """3 x 3 values to S x S by cubic splines: exact up to the clipping of what leaves the range of the values."""
    transform = pytest.importorskip("skimage.transform")
    grid = np.random.default_rng(0).normal(size=(3, 3))
    spread = augment._spread(32).double().numpy()
    assert np.allclose(spread @ grid @ spread.T, transform.resize(grid, (32, 32), order=3, clip=False), atol=1e-5)


def test_intensities_change_about_the_mean():
    """Contrast by a factor of 0.8 to 1.2, brightness by up to 0.1."""
    image = torch.linspace(0, 1, 1024).view(1, 32, 32)
    rng = np.random.default_rng(0)
    changed = [augment.change_intensity(image, rng) for _ in range(100)]
    factors = torch.stack([c.std() / image.std() for c in changed])
    shifts = torch.stack([c.mean() - image.mean() for c in changed])
    assert 0.8 - 1e-5 < factors.min() < 0.83 < 1.17 < factors.max() < 1.2 + 1e-5
    assert shifts.abs().max() < 0.1 + 1e-5


# -------------------------------------------------------------------------------------------------------- data sets


def batches(stored, seed=0, **settings):
    """The global loss's "D" of 2 parts with blank rows: 2 blocks of 8 rows, the second blank."""

    def draw_rows(depths, rng):
        return global_rows("D", depths, 4, rng, n_parts=2, **settings)

    return ContrastiveBatches(stored, draw_rows, length=3, seed=seed, n_parts=2, crop=True)


def test_batches_follow_from_seed_pass_and_index(stored):
    """The same in any order of asking, and different otherwise."""
    first = batches(stored)[1, 2]["image"]
    assert first.shape == (16, 1, 32, 32)
    assert first.dtype == torch.float32
    assert torch.equal(first, batches(stored)[1, 2]["image"])
    for other in (batches(stored)[1, 1], batches(stored)[0, 2], batches(stored, seed=1)[1, 2]):
        assert not torch.equal(first, other["image"])


def test_rows_are_slices_as_they_are_or_views_of_them(stored):
    """Copy 0 is a stored slice, not clipped; others are in the range of views, and differ from it."""
    data = batches(stored)
    rows = data.draw(data.depths, np.random.default_rng([0, 0, 1]))
    images = data[0, 1]["image"]
    originals = 0
    for image, (volume, number, copy) in zip(images, rows, strict=True):
        slice_ = torch.from_numpy(stored[volume].image[number].copy())
        assert torch.equal(image[0], slice_) == (copy == 0)
        originals += copy == 0
        if copy:
            assert image.min() >= 0
            assert image.max() <= 1.5
    assert originals == 8


def test_blank_rows_are_zeros(stored):
    """Where the authors' layout is asked for."""
    data = ContrastiveBatches(
        stored,
        lambda depths, rng: global_rows("D", depths, 6, rng, n_parts=2, legacy_blank_rows=True, independent_sets=True),
        length=1,
        n_parts=2,
    )
    rows = data.draw(data.depths, np.random.default_rng([0, 0, 0]))
    blank = torch.from_numpy(rows[:, 0] == BLANK)
    images = data[0, 0]["image"]
    assert blank.any()
    assert not images[blank].any()
    assert all(image.any() for image in images[~blank])


def test_volumes_with_fewer_slices_than_parts_are_named(tmp_path):
    """Before the first step."""
    write_subject(tmp_path, 1)
    write_subject(tmp_path, 2, shape=(40, 44, 3))
    stored = CaseStore(tmp_path / "cache", ACDC, 32, 2.5).prepare(find_cases(tmp_path, ACDC))
    with pytest.raises(InputContractError, match=r"002 \(3\)"):
        ContrastiveBatches(stored, lambda *_: np.zeros((1, 3), int), length=1, n_parts=4)


def test_labelled_slices_unchanged_are_the_stored_ones(stored):
    """Of every volume, drawn with replacement; labels have one channel a class."""
    plain = LabelledSlices(stored[:2], 4, length=60, pose=False, deformed=0.0)
    seen = set()
    for index in range(60):
        item = plain[0, index]
        number = [
            (i, k)
            for i, case in enumerate(stored[:2])
            for k in range(case.slices)
            if np.array_equal(item["image"][0], case.image[k])
        ]
        assert len(number) == 1
        ((i, k),) = number
        assert torch.equal(item["label"].argmax(0), torch.from_numpy(stored[i].label[k].astype(np.int64)))
        assert torch.equal(item["label"].sum(0), torch.ones(32, 32))
        seen.add((i, k))
    assert {i for i, _ in seen} == {0, 1}
    assert {0, 8} <= {k for _, k in seen}


def test_labelled_slices_change_at_random(stored):
    """As often as asked; the same for the same seed, pass and index; labels sum to 1 whatever happens."""
    data = LabelledSlices(stored, 4, length=200)
    items = [data[0, index] for index in range(200)]
    soft = [bool(((item["label"] > 0) & (item["label"] < 1)).any()) for item in items]
    assert 0.4 < np.mean(soft) < 0.65
    for item in items:
        assert item["image"].shape == (1, 32, 32)
        assert torch.allclose(item["label"].sum(0), torch.ones(32, 32), atol=1e-5)
    again = LabelledSlices(stored, 4, length=200)[0, 17]
    assert all(torch.equal(again[name], items[17][name]) for name in again)
    assert not torch.equal(data[1, 17]["image"], items[17]["image"])


def test_unlabelled_volumes_neither_train_nor_judge(stored, cohort, tmp_path):
    """They are named; masks of background alone are no better."""
    bare = CaseStore(tmp_path / "cache", ACDC, 32, 2.5).open(Case("009", find_cases(cohort, ACDC)[0].image))
    for make in (lambda cases: LabelledSlices(cases, 4, length=1), WholeVolumes):
        with pytest.raises(InputContractError, match="1 of 2 volumes have no mask: 009"):
            make([stored[0], bare])
        with pytest.raises(OptionError, match="no volume"):
            make([])
    write_subject(tmp_path, 7)
    save(tmp_path / "patient007" / "patient007_frame01_gt.nii.gz", np.zeros(SHAPE, np.uint8))
    empty = CaseStore(tmp_path / "cache", ACDC, 32, 2.5).prepare(find_cases(tmp_path, ACDC))
    with pytest.raises(InputContractError, match="007 are background alone"):
        WholeVolumes(empty)
