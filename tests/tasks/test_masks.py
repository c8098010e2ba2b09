"""Masks: which belongs to which image, what their values stand for, and the crops that are drawn of both."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image

from zoo.embedding import Cases
from zoo.entry import Augment, Preprocessing
from zoo.errors import InputContractError, OptionError
from zoo.images import read_label_picture, write_label_picture
from zoo.registry import get_entry
from zoo.tasks.crops import Crops, box_around, filled_up
from zoo.tasks.masked import MaskedImages, place_pair
from zoo.tasks.masks import Classes, all_values, classes_of, find_pairs, pair_masks
from zoo.transforms import build_transform

TURNED = np.array([[0, 0, 3.0, 4], [-1.2, 0, 0, 5], [0, 1.1, 0, 6], [0, 0, 0, 1]])


def touched(folder, names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


def cases_of(folder, names):
    return Cases(names, [str(folder / name) for name in names], {}, None)


def test_a_mask_is_called_like_its_image(tmp_path):
    """In the same folder below, or alone of its name; suffixes differ, and a dot in a name is part of it."""
    names = ["a/img.nii.gz", "b/img.nii.gz", "p1.t1.nii.gz", "only.nii"]
    images = touched(tmp_path / "images", names)
    masks = touched(tmp_path / "masks", ["a/img.nii", "b/img.nii.gz", "p1.t1.nii.gz", "deep/only.nii.gz", "x.nii"])
    found = pair_masks(cases_of(images, names), str(images), str(masks), films=False)
    assert [str(path.relative_to(masks)) for path in found] == [
        "a/img.nii",
        "b/img.nii.gz",
        "p1.t1.nii.gz",
        "deep/only.nii.gz",
    ]


@pytest.mark.parametrize(
    ("images", "masks", "message"),
    [
        (["a.png", "b.png"], ["a.png"], r"1 of 2 images have no mask of their name: b.png"),
        (["p1/b.png", "p2/a.png"], ["p1/a.png", "p1/b.png", "p2/c.png"], r"1 of 2 images have no mask .*: p2/a.png"),
        (["a.png"], ["x/a.png", "y/a.png"], r"1 of 1 images have several masks of their name: a.png"),
        (["u/a.png", "v/a.png"], ["a.png"], r"2 images have 1 masks by their names"),
    ],
)
def test_images_without_one_mask_are_named(images, masks, message, tmp_path):
    """Counted, and ten of them by name."""
    folder, other = touched(tmp_path / "images", images), touched(tmp_path / "masks", masks)
    with pytest.raises(OptionError, match=message):
        pair_masks(cases_of(folder, images), str(folder), str(other), films=True)


def test_a_folder_and_its_masks_need_no_table(tmp_path, caplog):
    """Pairs by their names; what lacks the other is left out, counted both ways. Masks may lie below the images."""
    images = touched(tmp_path / "all", ["a/img.nii.gz", "b/img.nii.gz", "c.nii.gz", "d.nii.gz"])
    masks = touched(tmp_path / "all" / "masks", ["a/img.nii", "c.nii.gz", "x.nii", "y.nii"])
    cases, found = find_pairs(str(images), str(masks), films=False)
    assert list(cases.ids) == ["a/img.nii.gz", "c.nii.gz"]
    assert list(cases.paths) == [str(images / name) for name in cases.ids]
    assert [str(path.relative_to(masks)) for path in found] == ["a/img.nii", "c.nii.gz"]
    said = caplog.text
    assert "2 images of " in said
    assert "left out are 2 images without one (b/img.nii.gz, d.nii.gz) and 2 masks without an image" in said
    with pytest.raises(OptionError, match="2 of 2 images have no mask of their name"):
        find_pairs(str(touched(tmp_path / "few", ["e.nii", "f.nii"])), str(masks), films=False)
    with pytest.raises(OptionError, match="folders of their own"):
        find_pairs(str(images), str(images), films=False)
    with pytest.raises(OptionError, match=r"--data .*nowhere is no folder that exists"):
        find_pairs(str(tmp_path / "nowhere"), str(masks), films=False)


def test_an_image_is_not_its_own_mask(tmp_path):
    """The folder of the images given for that of the masks."""
    folder = touched(tmp_path / "images", ["a.png"])
    with pytest.raises(OptionError, match="is the folder of the images"):
        pair_masks(cases_of(folder, ["a.png"]), str(folder), str(folder), films=True)
    with pytest.raises(OptionError, match="is no folder that exists"):
        pair_masks(cases_of(folder, ["a.png"]), str(folder), str(tmp_path / "none"), films=True)


@pytest.mark.parametrize(
    ("values", "names", "expected"),
    [
        ([(0, 1), (0, 2)], (), (("background", "1", "2"), (0, 1, 2))),
        ([(0, 255)], (), (("background", "255"), (0, 255))),
        ([(0, 255)], ("background", "lesion"), (("background", "lesion"), (0, 255))),
        ([(3, 7)], ("none", "left", "right"), (("none", "left", "right"), (0, 3, 7))),
        ([(0, 2)], ("none", "left", "right"), (("none", "left", "right"), (0, 1, 2))),
    ],
)
def test_values_stand_for_classes(values, names, expected):
    """In their order; those that are numbers of named classes for these, though a class has no voxel anywhere."""
    found = classes_of(values, names)
    assert (found.names, found.values) == expected
    assert bool(found.mapping) == (expected[1] != tuple(range(len(expected[0]))))
    assert found.numbers_of(np.array(found.values, np.uint8)).tolist() == list(range(len(found.names)))


@pytest.mark.parametrize(
    ("values", "names", "message"),
    [
        ([(0,), (0,)], (), "0 everywhere"),
        ([(0, 1, 9)], ("a", "b"), "names 2 classes with the background, a, b, and the masks have the values 0, 1, 9"),
        ([(0, 1)], ("a", "a"), "two classes have one name"),
    ],
)
def test_values_without_a_meaning_are_refused(values, names, message):
    with pytest.raises(OptionError, match=message):
        classes_of(values, names)


def test_label_pictures_are_read_by_their_numbers(tmp_path):
    """Grey levels, and the numbers of a palette, not its colours; colours are no labels."""
    labels = np.random.default_rng(0).integers(0, 4, (40, 50), dtype=np.uint8)
    write_label_picture(labels, tmp_path / "grey.png")
    coloured = Image.fromarray(labels).convert("P")
    coloured.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    coloured = Image.frombytes("P", (50, 40), labels.tobytes())
    coloured.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    coloured.save(tmp_path / "palette.png")
    turned = Image.Exif()
    turned[0x0112] = 3  # by a half, as cameras write it; films are read so
    Image.fromarray(labels[::-1, ::-1]).save(tmp_path / "turned-grey.png", exif=turned)
    coloured.rotate(180).save(tmp_path / "turned-palette.png", exif=turned)
    for name in ("grey.png", "palette.png", "turned-grey.png", "turned-palette.png"):
        assert np.array_equal(read_label_picture(tmp_path / name), labels)
    coloured.convert("RGB").save(tmp_path / "colour.png")
    Image.fromarray(labels.astype(np.uint16) * 300).save(tmp_path / "deep.png")
    for name in ("colour.png", "deep.png"):
        with pytest.raises(InputContractError, match=f"{name} is no label map"):
            all_values([tmp_path / name], films=True)


def test_grey_levels_that_contradict_their_numbers_are_no_labels(tmp_path):
    """A palette that a program made has white first, perhaps: the lesion would be the background, and the reverse."""
    for levels, name in (((0, 255), "rising"), ((255, 0), "falling")):
        picture = Image.frombytes("P", (2, 20), bytes([0, 1] * 20))
        picture.putpalette([level for level in levels for _ in range(3)])
        picture.save(tmp_path / f"{name}.png")
    assert read_label_picture(tmp_path / "rising.png").max() == 1
    with pytest.raises(InputContractError, match=r"grey levels 255, 0 for its numbers.*Save it as a grey PNG"):
        read_label_picture(tmp_path / "falling.png")


def volume_files(folder, image_shape=(40, 36, 24), mask_shape=None, affine=TURNED):
    rng = np.random.default_rng(0)
    values = rng.normal(0.2, 0.05, image_shape)
    labels = np.zeros(mask_shape or image_shape, np.uint8)
    labels[10:22, 8:18, 6:15] = 1
    if labels.shape == values.shape:
        values[labels > 0] += 0.5
    nibabel.save(nibabel.Nifti1Image(values.astype(np.float32), affine), folder / "image.nii.gz")
    nibabel.save(nibabel.Nifti1Image(labels, affine), folder / "mask.nii.gz")
    return folder / "image.nii.gz", folder / "mask.nii.gz"


@pytest.mark.parametrize("name", ["anatomix-unet", "genesis-unet3d", "voco-swinunetr-b", "glcl-unet"])
def test_a_mask_goes_with_its_image_to_the_networks_grid(name, tmp_path):
    """Where the image is bright its mask says so, whichever way axes are turned and voxels resampled."""
    contract = get_entry(name).preprocessing
    image, mask = volume_files(tmp_path)
    if contract.units == "HU":
        found = nibabel.load(image)
        nibabel.save(nibabel.Nifti1Image(found.get_fdata().astype(np.float32) * 500 - 200, found.affine), image)
    placed, label = place_pair(build_transform(contract), image, mask)
    space = placed.shape[:1] + placed.shape[2:] if name == "glcl-unet" else placed.shape[1:]
    assert label.shape == space
    bright = placed.reshape(label.shape)
    middle = (bright[label == 1].mean() + bright[(label == 0) & (bright > bright.min())].mean()) / 2
    agreed = ((bright > middle) & (label == 1)).sum() * 2 / ((bright > middle).sum() + (label == 1).sum())
    assert agreed > 0.9


@pytest.mark.parametrize("name", ["anatomix-unet", "glcl-unet"])
def test_a_mask_of_another_size_is_refused(name, tmp_path):
    """Naming both; one that lies elsewhere, too."""
    transform = build_transform(get_entry(name).preprocessing)
    image, mask = volume_files(tmp_path, mask_shape=(40, 36, 23))
    with pytest.raises(InputContractError, match=r"mask.nii.gz has \(40, 36, 23\) voxels, its image .*image.nii.gz"):
        place_pair(transform, image, mask)
    image, mask = volume_files(tmp_path)
    moved = TURNED.copy()
    moved[:3, 3] += 9
    nibabel.save(nibabel.Nifti1Image(np.asarray(nibabel.load(mask).dataobj), moved), mask)
    with pytest.raises(InputContractError, match=r"mask.nii.gz lies up to 15.6 mm beside its image"):
        place_pair(transform, image, mask)


def test_a_films_mask_has_its_pixels(tmp_path):
    """Resized with the film without its centre crop; one of other pixels is refused, naming both."""
    transform = build_transform(get_entry("caid-resnet50-unet").preprocessing)
    rows, _ = np.indices((300, 420))
    inside = rows > 200
    Image.fromarray((inside * 200).astype(np.uint8)).save(tmp_path / "film.png")
    write_label_picture(inside.astype(np.uint8) * 255, tmp_path / "mask.png")
    image, label = place_pair(transform, tmp_path / "film.png", tmp_path / "mask.png")
    assert image.shape == (3, 256, 358)
    assert label.shape == (256, 358)
    assert set(np.unique(label)) == {0, 255}
    assert ((image[0] > 0.4) == (label > 0)).mean() > 0.99
    write_label_picture(np.zeros((300, 419), np.uint8), tmp_path / "other.png")
    with pytest.raises(InputContractError, match=r"the mask .*other.png has 300 x 419 pixels, its image .*film.png"):
        place_pair(transform, tmp_path / "film.png", tmp_path / "other.png")


PLAIN = Preprocessing(channels=("MRI",), size=(), units="intensities of any scale", normalise="min-max")


def crops_of(tmp_path, folder=None, size=(16, 16, 16), **options):
    paths = volume_files(tmp_path)
    classes = Classes(("background", "it"), (0, 1))
    images = MaskedImages([Path(paths[0])], [Path(paths[1])], build_transform(PLAIN), classes, 0, folder)
    return Crops(images, [0], size=size, **{"count": 8, "augment": None, "seed": 3} | options)


def test_half_of_the_crops_lie_around_structures(tmp_path):
    """Their middle is on one, as far as the border of the image lets it; of the others beside."""
    crops = crops_of(tmp_path, count=400)
    middles = crops[0, 0]["label"][:, 0, 8, 8, 8]
    assert 0.4 < middles.float().mean() < 0.6


def test_crops_follow_from_seed_pass_and_index(tmp_path):
    """The same twice and from the disk, others in the next pass and of another seed; image and label fit."""
    (tmp_path / "kept").mkdir()
    crops, kept = crops_of(tmp_path), crops_of(tmp_path, tmp_path / "kept")
    first = crops[0, 0]
    assert (first["image"].shape, first["label"].shape) == ((8, 1, 16, 16, 16), (8, 1, 16, 16, 16))
    assert first["label"].dtype == torch.uint8
    for again in (crops[0, 0], kept[0, 0], kept[0, 0]):
        assert all(torch.equal(first[key], again[key]) for key in first)
    for other in (crops[1, 0], crops_of(tmp_path, seed=4)[0, 0]):
        assert not torch.equal(first["label"], other["label"])
    changed = crops_of(tmp_path, augment=Augment(mirrors=(0, 1, 2), degrees=20.0))[0, 0]
    assert not torch.equal(first["label"], changed["label"])
    for found in (first, changed):
        bright = found["image"] > 0.55
        agreed = 2 * (bright & (found["label"] == 1)).sum() / (bright.sum() + found["label"].sum())
        assert agreed > 0.85  # linear interpolation of the image, the nearest voxel of the label


def test_a_small_image_is_filled_up(tmp_path):
    """With 0 on both sides, the label with background."""
    found = crops_of(tmp_path, size=(48, 48, 32))[0, 0]
    assert found["image"].shape == (8, 1, 48, 48, 32)
    inside = (slice(None), slice(None), slice(4, 44), slice(6, 42), slice(4, 28))
    rest = found["label"].clone()
    assert rest[inside].sum() == 8 * 12 * 10 * 9
    rest[inside] = 0
    assert not rest.any()
    assert torch.equal(
        filled_up(torch.ones(1, 2, 3), (5, 3))[0], torch.tensor([[0.0], [1], [1], [0], [0]]).expand(5, 3)
    )
    assert box_around((1, 20, 9), (10, 24, 10), (6, 8, 12)) == (slice(0, 6), slice(16, 24), slice(0, 12))
