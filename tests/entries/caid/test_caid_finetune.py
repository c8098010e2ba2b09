"""CAiD's downstream tasks: two-step runs end to end, what the data sets give, the losses by hand, bad input."""

import csv
import json
from collections import OrderedDict
from dataclasses import dataclass, replace
from pathlib import Path

import gloo
import numpy as np
import pydicom
import pytest
import torch
from narrow_caid import narrow_caid as narrowed
from PIL import Image
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage
from safetensors.torch import save_file
from saved_runs import header_of
from torch import nn

import zoo
from zoo.entries.caid import PREPROCESSING, warps
from zoo.entries.caid.args import ClassifyArgs, SegmentArgs
from zoo.entries.caid.cohort import CHESTXRAY14, Sample, find_masks, read_labelled, read_list
from zoo.entries.caid.finetune import main, read_masked, read_parts, resolve, seen_by
from zoo.entries.caid.finetune_data import LabelledImages, MaskedImages, read_film, read_mask
from zoo.entries.caid.finetune_method import (
    Classifier,
    Segmenter,
    dice_loss,
    dice_metrics,
    label_metrics,
    overlap,
)
from zoo.errors import InputContractError, OptionError
from zoo.fetching.cache import hash_file
from zoo.training import distributed
from zoo.training.args import TrainArgs
from zoo.training.finetune import collect, share_buffers
from zoo.training.loop import fit
from zoo.transforms.image import build_transform

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE = 32
SMALL = ["--optimizer", "sgd", "--momentum", "0"]  # nothing of the optimiser in the checkpoints
COMMON = ["--device", "cpu", "--workers", "0", "--epochs", "1", "--steps-per-epoch", "2", "--batch-size", "4"]


@dataclass(frozen=True)
class Task:
    """Generated images with masks and lists: a bright square, left (label a) or right, in the upper half or not (b)."""

    images: str
    masks: str
    lists: dict[str, str]


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    root = tmp_path_factory.mktemp("task")
    (root / "images").mkdir()
    (root / "masks").mkdir()
    lines, rng = [], np.random.default_rng(0)
    for i in range(16):
        left, upper = i % 2, i // 2 % 2
        mask = np.zeros((60, 72), np.uint8)
        mask[slice(6, 26) if upper else slice(34, 54), slice(6, 32) if left else slice(40, 66)] = 1
        film = rng.integers(0, 90, mask.shape) + 120 * mask
        Image.fromarray(film.astype(np.uint8)).save(root / "images" / f"{i:02}.png")
        Image.fromarray(mask * 255).save(root / "masks" / f"{i:02}.png")
        lines.append(f"{i:02}.png {left} {upper}")
    lists = {"train": lines[:8], "val": lines[8:12], "test": lines[11:]}
    for name, part in lists.items():
        (root / f"{name}.txt").write_text("\n".join(part) + "\n")
    return Task(str(root / "images"), str(root / "masks"), {name: str(root / f"{name}.txt") for name in lists})


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A narrow U-Net's file as the authors write it: the bare state dict."""
    torch.manual_seed(3)
    file = tmp_path_factory.mktemp("checkpoint") / "best_checkpoint.pth"
    with narrowed():
        torch.save(zoo.load_model("caid-resnet50-unet", pretrained=False).state_dict(), file)
    return file


@pytest.fixture
def out(tmp_path, narrow_caid, undrawn):
    """A folder for a run of a narrow network."""
    return tmp_path / "run"


def command(task, out, *parts, kind="classify"):
    """Arguments of a short run with the given parts of the data."""
    flags = {"train": "--table", "val": "--val-table", "test": "--test-table"}
    chosen = [text for part in parts for text in (flags[part], task.lists[part])]
    masks = ["--masks", task.masks] if kind == "segment" else []
    return [kind, "--data", task.images, "--out", str(out), "--size", str(SIZE), *COMMON, *chosen, *masks]


def read_csv(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# Whole runs


@pytest.mark.slow
def test_classification_from_a_checkpoint(task, checkpoint, out, capsys):
    """A run ends with results, predictions of the test list, and a file that gives the same predictions again."""
    argv = [*command(task, out, "train", "val", "test"), "--checkpoint", str(checkpoint), "--label", "left,upper"]
    results = main([*argv, *SMALL])
    written = json.loads((out / "results.json").read_text())
    assert written == results
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"results: {out / 'results.json'}"
    assert [line.partition(":")[0] for line in lines[:-1]] == ["best", "test"]
    assert (written["task"], written["model"], written["tag"]) == ("classify", "caid-resnet50", "")
    assert written["source"] == str(checkpoint)
    assert written["arguments"]["size"] == SIZE
    assert {"loss", "val_loss", "val_auroc"} <= written["best"].keys()
    assert written["test"]["auroc_per_label"].keys() == {"left", "upper"}

    rows = read_csv(out / "predictions.csv")
    assert [row["file"] for row in rows] == ["11.png", "12.png", "13.png", "14.png", "15.png"]
    assert [row["left"] for row in rows] == ["1", "0", "1", "0", "1"]
    pairs = [
        float(p["left_probability"]) > float(n["left_probability"])
        for p in rows
        for n in rows
        if p["left"] == "1" and n["left"] == "0"
    ]
    assert written["test"]["auroc_per_label"]["left"] == pytest.approx(np.mean(pairs))

    for name in ("best.pt", "last.pt"):
        said = header_of(out / name)
        assert (said["model"], said["task"], said["classes"]) == ("caid-resnet50", "classify", ["left", "upper"])
        assert said["command"].startswith("python -m zoo.entries.caid.finetune classify --data images")
        assert (said["base"]["source"], said["base"]["sha256"]) == (checkpoint.name, hash_file(checkpoint))
        seen = zoo.load_transform("caid-resnet50", checkpoint=out / name).preprocessing
        assert seen == replace(PREPROCESSING, size=(SIZE, SIZE), resize=37)

    tuned = zoo.load_model("caid-resnet50", checkpoint=out / "best.pt")
    assert tuned.num_classes == 2
    samples, _ = read_labelled(task.images, task.lists["test"])
    crops = LabelledImages(samples, size=SIZE, view="ten", normalization="none")[0, 0]["image"]
    with torch.no_grad():
        expected = tuned(crops).sigmoid().mean(0)
    stored = torch.tensor([float(rows[0]["left_probability"]), float(rows[0]["upper_probability"])])
    torch.testing.assert_close(stored, expected, atol=2e-6, rtol=0)  # six digits are written


def test_linear_probe_from_scratch(task, out):
    """A frozen run without validation trains the head alone, batch statistics included."""
    results = main([*command(task, out, "train"), "--from-scratch", "--freeze", "--optimizer", "sgd", "--lr", "0.1"])
    assert results["source"] == "random"
    assert results["sha256"] is None
    assert "test" not in results
    assert results["arguments"]["monitor"] == "loss"
    torch.manual_seed(0)
    before = zoo.load_model("caid-resnet50", pretrained=False, num_classes=2).state_dict()
    after = torch.load(out / "best.pt", weights_only=True)["model"]
    changed = {name for name in before if not torch.equal(before[name], after[f"network.{name}"])}
    assert changed == {"fc.weight", "fc.bias"}


@pytest.mark.slow
def test_segmentation_from_a_checkpoint(task, checkpoint, out, capsys):
    """A run starts from encoder and decoder, ends with Dice of the test list, and its file gives that Dice again."""
    argv = command(task, out, "train", "val", "test", kind="segment")
    results = main([*argv, "--checkpoint", str(checkpoint), *SMALL, "--lr", "1e-9"])
    assert json.loads((out / "results.json").read_text()) == results
    assert (results["task"], results["model"]) == ("segment", "caid-resnet50-unet")
    assert {"val_loss", "val_dice", "val_dice_per_image"} <= results["best"].keys()

    start, end = torch.load(checkpoint, weights_only=True), torch.load(out / "best.pt", weights_only=True)["model"]
    for name in ("encoder.layer4.0.conv3.weight", "decoder.blocks.0.conv1.0.weight"):
        # two steps of 1e-9 times a gradient, which is well below 100
        torch.testing.assert_close(end[f"network.{name}"], start[name], atol=1e-6, rtol=0)
    head = "segmentation_head.0.weight"
    assert not torch.equal(end[f"network.{head}"], start[head])

    assert f"checkpoint={str(out / 'best.pt')!r}, num_classes=1)" in capsys.readouterr().err
    assert header_of(out / "best.pt")["options"] == {"num_classes": 1}
    seen = zoo.load_transform("caid-resnet50-unet", checkpoint=out / "best.pt").preprocessing
    assert seen == replace(PREPROCESSING, size=(SIZE, SIZE), resize=None)
    tuned = zoo.load_model("caid-resnet50-unet", checkpoint=out / "best.pt")
    samples = read_list(task.images, task.lists["test"])
    data = MaskedImages(samples, find_masks(samples, task.masks), size=SIZE, random=False, normalization="none")
    with torch.no_grad():
        found = torch.stack([tuned(data[0, i]["image"][None])[0].sigmoid() > 0.5 for i in range(len(data))])
    mask = torch.stack([data[0, i]["mask"] for i in range(len(data))])
    found = found.float()
    both, either = (found * mask).sum((1, 2, 3)), (found + mask).sum((1, 2, 3))
    assert results["test"]["images"] == len(data)
    assert results["test"]["dice"] == pytest.approx((2 * both.sum() / either.sum()).item(), abs=1e-6)
    assert results["test"]["dice_per_image"] == pytest.approx((2 * both / either).mean().item(), abs=1e-6)


@pytest.mark.slow
def test_segmentation_from_scratch(task, out):
    """Random weights are said to be random; a finished run that is resumed is only evaluated, to the same results."""
    argv = command(task, out, "train", "val", "test", kind="segment")
    argv += ["--from-scratch", "--val-random", *SMALL]
    results = main(argv)
    assert results["source"] == "random"
    assert np.isfinite(results["best"]["val_loss"])
    again = main([*argv, "--resume"])
    assert again["best"] == results["best"]
    assert again["test"] == results["test"]


# Arguments


@pytest.mark.parametrize("normalize", ["none", "imagenet"])
def test_the_input_is_what_the_data_sets_make_of_images(task, normalize):
    """A square film becomes by the header's transform what validation and test see of it, to its grey levels."""
    args = ClassifyArgs(data="d", out="o", size=64, normalize=normalize)
    samples = [replace(Sample(Path(task.images) / "00.png", ()), labels=(0.0,))]
    film = np.asarray(Image.open(samples[0].file).resize((72, 72)))
    Image.fromarray(film).save(Path(task.images).parent / "square.png")
    samples = [replace(samples[0], file=Path(task.images).parent / "square.png")]
    ours = LabelledImages(samples, size=64, view="center", normalization=normalize)[0, 0]["image"]
    made = build_transform(seen_by(args))(film)
    # Data sets resize bytes, the transform floats: a level of 255, over the smallest deviation, and a rounded weight
    torch.testing.assert_close(made, ours, atol=1.5 / 255 / 0.224, rtol=0)


def test_defaults_are_the_published_runs():
    """What the benchmark's scripts use without flags; its patience stops one epoch later than its number says."""
    classify, segment = ClassifyArgs(data="d", out="o"), SegmentArgs(data="d", out="o", masks="m")
    for args, lr, epochs, schedule, patience in (
        (classify, 2e-4, 1000, "plateau", 11),
        (segment, 1e-3, 200, "cosine", 21),
    ):
        assert (args.optimizer, args.lr, args.weight_decay, args.batch_size) == ("adam", lr, 0.0, 32)
        assert (args.epochs, args.schedule, args.patience, args.monitor) == (epochs, schedule, patience, "val_loss")
        assert args.layer_decay == 1.0
    assert (classify.plateau_factor, classify.plateau_patience) == (0.5, 5)


def test_the_size_is_what_the_weights_were_trained_at(tmp_path, monkeypatch):
    """A record's input size is taken for its weights; for a file of one's own what it says, else the entry's."""
    record = {"tag": "small", "models": ["caid-resnet50"], "state": "hosted", "sources": ["file:x"]}
    manifest = {"schema": 1, "weights": [record | {"bytes": None, "sha256": None, "input": {"size": [96, 96]}}]}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    monkeypatch.setenv("ZOO_MANIFEST", str(tmp_path / "manifest.json"))
    assert resolve(ClassifyArgs(data="d", out="o")).size == 96
    assert resolve(ClassifyArgs(data="d", out="o", size=128)).size == 128
    for text, size in (("{}", 224), ('{"size": [64, 64]}', 64)):
        file = str(tmp_path / f"{size}.safetensors")
        save_file({"x": torch.zeros(1)}, file, metadata={"input": text})
        assert resolve(ClassifyArgs(data="d", out="o", checkpoint=file)).size == size
    assert resolve(ClassifyArgs(data="d", out="o", from_scratch=True)).size == 224


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model", "caid-resnet50-unet"], "starts from caid-resnet50"),
        (["--checkpoint", "file", "--from-scratch"], "exclude each other"),
        (["--size", "40"], "multiple of 32"),
        (["--auroc-labels", "label7"], "no such label; there are label0, label1"),
        (["--label", "a"], "has 2 label.* --label names 1"),
    ],
)
def test_wrong_arguments_are_refused(task, tmp_path, flags, message):
    """Before anything is loaded or written."""
    with pytest.raises(OptionError, match=message):
        main([*command(task, tmp_path / "run", "train"), *flags])
    assert not (tmp_path / "run").exists()


# Bad data


@pytest.mark.parametrize(
    ("name", "text", "flags", "message"),
    [
        ("l.txt", "00.png\n01.png\n", [], "l.txt gives no labels.*--label"),
        ("l.csv", "file,a\n00.png,1\n01.png,0\n", [], "l.csv gives no labels.*--label"),
        ("l.csv", "file,a\n00.png,1\n01.png,0\n", ["--label", "b"], "lacks columns b; it has file, a"),
        ("l.txt", "00.png 1\n01.png 0 1\n", [], r"same number of labels, but there are \[1, 2\]"),
        ("l.txt", "00.png 1\n01.png -1\n", [], r"0 or 1, 1 of 2 images have -1.0 \(first: 01.png\)"),
        ("l.csv", "file,a\n00.png,nan\n01.png,0\n", ["--label", "a"], r"0 or 1, 1 of 2 images have nan"),
        ("l.csv", "file,a,split\n00.png,1,train\n", ["--label", "a", "--split", "fold9"], "no images.*split fold9"),
    ],
)
def test_bad_labels_are_refused(task, tmp_path, name, text, flags, message):
    """The message names the list, what was expected and what came."""
    (tmp_path / name).write_text(text)
    with pytest.raises(OptionError, match=message):
        main([*command(task, tmp_path / "run"), "--table", str(tmp_path / name), "--from-scratch", *flags])


def test_the_task_must_be_named(capsys):
    """As the first word; its own flags come after it."""
    for argv, message in (([], "task"), (["detect"], "invalid choice: 'detect'"), (["segment"], "--masks")):
        with pytest.raises(SystemExit) as stop:
            main(argv)
        assert stop.value.code == 2
        assert message in capsys.readouterr().err


def test_no_list_is_refused(task, tmp_path):
    """A folder alone has no labels."""
    with pytest.raises(OptionError, match="classification needs labels"):
        main([*command(task, tmp_path / "run"), "--from-scratch"])


def test_a_label_without_both_values_is_refused_unless_it_does_not_count(task, tmp_path):
    """Validation images that all have label0 have no AUROC of it; named labels are the only ones that must have."""
    (tmp_path / "val.txt").write_text("09.png 1 0\n11.png 1 1\n")
    args = ClassifyArgs(data=task.images, out="", table=task.lists["train"], val_table=str(tmp_path / "val.txt"))
    with pytest.raises(OptionError, match=r"val.txt: all 2 images have the same value of label0.*--auroc-labels"):
        read_parts(args)
    samples, names = read_parts(replace(args, auroc_labels="label1"))
    assert names == ("label0", "label1")
    assert [sample.labels for sample in samples["val"]] == [(1, 0), (1, 1)]


def test_lists_with_other_labels_are_refused(task, tmp_path):
    """Training and validation list must agree."""
    (tmp_path / "val.txt").write_text("09.png 1\n10.png 0\n")
    with pytest.raises(OptionError, match=r"val.txt has 1 labels, but the training list .* has 2"):
        main([*command(task, tmp_path / "run", "train"), "--val-table", str(tmp_path / "val.txt"), "--from-scratch"])


def test_masks_that_do_not_fit_are_named_at_once(task, tmp_path):
    """Missing masks, masks of another size, no folder, the images' own folder."""
    samples = read_list(task.images)
    for sample in samples[2:]:
        Image.new("L", (72, 60) if sample.file.stem != "07" else (60, 72)).save(tmp_path / f"{sample.file.stem}.jpg")
    with pytest.raises(InputContractError, match=r"2 of 16 images have no mask .*: 00.png, 01.png"):
        find_masks(samples, str(tmp_path))
    with pytest.raises(InputContractError, match=r"1 of 14 masks .* differ.*07.png 72x60, mask 60x72"):
        find_masks(samples[2:], str(tmp_path))
    with pytest.raises(OptionError, match="not a folder of masks"):
        find_masks(samples, str(tmp_path / "none"))
    with pytest.raises(OptionError, match="holds the images themselves"):
        find_masks(samples, task.images)
    (tmp_path / "07.jpg").write_text("no image")
    with pytest.raises(InputContractError, match=r"cannot read .*07.jpg"):
        find_masks(samples[2:], str(tmp_path))


# Data


def test_fourteen_labels_are_chestxray14s(task, tmp_path):
    """The official lists carry no names."""
    (tmp_path / "l.txt").write_text("00.png" + " 0" * 13 + " 1\n")
    samples, names = read_labelled(task.images, str(tmp_path / "l.txt"))
    assert names == CHESTXRAY14
    assert samples[0].labels[names.index("Hernia")] == 1


def test_training_views_follow_from_seed_pass_and_index(task):
    """The same key gives the same view, another pass another one; views for evaluation never change."""
    samples, _ = read_labelled(task.images, task.lists["train"])
    random = LabelledImages(samples, size=SIZE, view="random", normalization="none", seed=1)
    center = LabelledImages(samples, size=SIZE, view="center", normalization="none", seed=1)
    masked = MaskedImages(samples, find_masks(samples, task.masks), size=SIZE, random=True, normalization="none")
    assert random[0, 1]["image"].shape == (3, SIZE, SIZE)
    assert torch.equal(random[0, 1]["image"], random[0, 1]["image"])
    assert not torch.equal(random[0, 1]["image"], random[1, 1]["image"])
    assert torch.equal(center[0, 1]["image"], center[1, 1]["image"])
    drawn = [masked[data_pass, 1] for data_pass in range(8)]
    assert all(torch.equal(masked[i, 1]["mask"], item["mask"]) for i, item in enumerate(drawn))
    assert any(not torch.equal(drawn[0]["image"], item["image"]) for item in drawn)
    assert all(set(item["mask"].unique().tolist()) <= {0.0, 1.0} for item in drawn)


def test_masked_images_change_in_training_alone_unless_asked_otherwise(task):
    """Those of validation with `--val-random`, and by draws of their own; those of the test never."""
    args = SegmentArgs(data=task.images, out="o", masks=task.masks, size=SIZE)
    random, parts = replace(args, val_random=True), ("train", "val", "test")
    read = [{part: read_masked(made, part, task.lists["train"], "") for part in parts} for made in (args, random)]
    assert [[data[part].random for part in parts] for data in read] == [[True, False, False], [True, True, False]]
    train, val = (torch.stack([read[1][part][i, 1]["image"] for i in range(8)]) for part in ("train", "val"))
    assert not torch.equal(train, val)


def test_the_ten_crops_hold_the_middle_one(task):
    """Fifth is the crop that validation sees, sixth the mirror image of the second; resized to 256 for 224."""
    samples, _ = read_labelled(task.images, task.lists["test"])
    ten = LabelledImages(samples, size=SIZE, view="ten", normalization="none")[0, 0]["image"]
    center = LabelledImages(samples, size=SIZE, view="center", normalization="none")[0, 0]["image"]
    assert ten.shape == (10, 3, SIZE, SIZE)
    assert torch.equal(ten[4], center)
    assert torch.equal(ten[5], ten[1].flip(-1))
    side = round(SIZE * 256 / 224)
    whole = np.asarray(Image.open(samples[0].file).resize((side, side), Image.Resampling.BILINEAR))
    np.testing.assert_allclose(ten[0, 0] * 255, whole[:SIZE, :SIZE], atol=1e-4)  # top left; float32 of n/255


def test_normalisation_is_imagenets_on_request(task):
    """The same image, shifted and scaled per channel."""
    samples, _ = read_labelled(task.images, task.lists["test"])
    plain, scaled = (
        LabelledImages(samples, size=SIZE, view="center", normalization=n)[0, 0]["image"] for n in ("none", "imagenet")
    )
    assert plain.min() >= 0
    assert plain.max() <= 1
    torch.testing.assert_close(scaled[2] * 0.225 + 0.406, plain[2])
    torch.testing.assert_close(scaled[0] * 0.229 + 0.485, plain[0])


def test_masks_are_one_wherever_their_file_says_so(tmp_path):
    """PNGs of 0/1, 0/255, 16 bits or colour; a JPEG's compression traces do not count."""
    mask = np.zeros((16, 16), np.uint8)
    mask[3:11, 4:9] = 1
    colour = np.stack([0 * mask, 0 * mask, mask], axis=-1)
    stored = {"one.png": mask, "full.png": mask * 255, "deep.png": mask.astype(np.uint16), "colour.png": colour}
    for name, pixels in {**stored, "lossy.jpg": mask * 255}.items():
        Image.fromarray(pixels).save(tmp_path / name)
        np.testing.assert_array_equal(np.asarray(read_mask(tmp_path / name)), mask, err_msg=name)
    assert len(np.unique(np.asarray(Image.open(tmp_path / "lossy.jpg")))) > 2


def test_dicom_films_are_read_and_paired(tmp_path):
    """A 12-bit DICOM becomes 8-bit grey over its stored range, and is matched with a PNG mask by size."""
    pixels = np.tile(np.linspace(0, 4095, 40).astype(np.uint16), (30, 1))
    film = pydicom.Dataset()
    film.file_meta = FileMetaDataset()
    film.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    film.file_meta.MediaStorageSOPClassUID = film.SOPClassUID = SecondaryCaptureImageStorage
    film.file_meta.MediaStorageSOPInstanceUID = film.SOPInstanceUID = pydicom.uid.generate_uid()
    film.Rows, film.Columns, film.SamplesPerPixel, film.PhotometricInterpretation = 30, 40, 1, "MONOCHROME2"
    film.BitsAllocated, film.BitsStored, film.HighBit, film.PixelRepresentation = 16, 12, 11, 0
    film.PixelData = pixels.tobytes()
    film["PixelData"].VR = "OW"
    (tmp_path / "masks").mkdir()
    film.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    Image.new("L", (40, 30)).save(tmp_path / "masks" / "a.png")
    grey = np.asarray(read_film(tmp_path / "a.dcm"))
    np.testing.assert_array_equal(grey[0], np.rint(pixels[0] / 4095 * 255))
    assert find_masks([Sample(tmp_path / "a.dcm")], str(tmp_path / "masks")) == [tmp_path / "masks" / "a.png"]


# Random changes

FIELDS = {"elastic": warps.elastic, "grid": warps.grid, "optical": warps.optical, "crop": warps.crop}


def test_no_displacement_is_the_identity():
    """Up to rounding of coordinates, about 1e-7 of the width, times differences of at most 1."""
    image = torch.rand(2, 40, 56)
    torch.testing.assert_close(warps.warp(image, torch.zeros(40, 56, 2)), image, atol=1e-4, rtol=0)
    assert torch.equal(warps.warp(image, torch.zeros(40, 56, 2), nearest=True), image)


def test_a_displacement_says_where_to_read_x_first():
    """Two to the right and one down; beyond the border the image is mirrored about its last pixel."""
    image = torch.arange(30.0).view(1, 5, 6)
    moved = warps.warp(image, torch.tensor([2.0, 1.0]).expand(5, 6, 2), nearest=True)
    assert torch.equal(moved[:, :4, :4], image[:, 1:, 2:])
    assert moved[0, 0].tolist() == [8, 9, 10, 11, 10, 9]


@pytest.mark.parametrize("name", FIELDS)
def test_image_and_mask_move_together(name):
    """A disc drawn as image and as mask stays one disc: the halves differ at most along its outline."""
    torch.manual_seed(5)
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    disc = ((x - 34) ** 2 + (y - 28) ** 2 < 15**2).float()[None]
    changed = 0.0
    for _ in range(5):
        image, mask = warps.move(disc, disc, FIELDS[name](64))
        assert set(mask.unique().tolist()) <= {0.0, 1.0}
        assert ((image > 0.5).float() - mask).abs().mean() < 0.02  # an outline of 2 * 3.14 * 15 of 64 * 64 pixels
        changed += (mask - disc).abs().mean().item()
    assert changed > 0.01


def test_lengths_grow_with_the_image():
    """At any size the elastic field moves pixels by the same share of the width; a crop keeps at least 156 of 224."""
    torch.manual_seed(0)
    shares = [torch.stack([warps.elastic(size) for _ in range(20)]).std().item() / size for size in (48, 192)]
    assert shares[0] == pytest.approx(shares[1], rel=0.15)  # sampling error of 20 fields of some 50 bumps: 5 %
    at_224 = torch.stack([warps.elastic(224, affine=0.0) for _ in range(5)]).std().item()
    assert at_224 == pytest.approx(120 / (3**0.5 * 2 * np.pi**0.5 * 6), rel=0.1)  # uniform noise after a Gaussian
    for _ in range(20):
        field = warps.crop(64)
        spans = 64 + (field[0, -1, 0] - field[0, 0, 0]).item() * 64 / 63
        assert 156 / 224 * 64 - 0.6 <= spans <= 64


def test_changes_happen_as_often_as_published():
    """None at all in 0.7 * 0.7 * 0.75 of the draws, and grey levels stay in [0, 1]."""
    torch.manual_seed(0)
    image = torch.rand(1, 32, 32)
    mask = (image > 0.5).float()
    results = [warps.augment(image, mask) for _ in range(400)]
    kept = sum(torch.equal(i, image) for i, _ in results) / len(results)
    assert kept == pytest.approx(0.3675, abs=0.08)  # three standard deviations of 400 draws
    assert all(i.min() >= 0 and i.max() <= 1 for i, _ in results)


# Methods and metrics


def tiny(outputs, channels=3):
    """A network of a few weights with the names that the methods rely on."""
    parts = {"norm": nn.BatchNorm2d(channels), "pool": nn.AdaptiveAvgPool2d(4), "flat": nn.Flatten()}
    return nn.Sequential(OrderedDict(parts, fc=nn.Linear(16 * channels, outputs)))


def tiny_unet():
    """Likewise for segmentation, without batch statistics."""
    head = nn.Sequential(nn.Conv2d(4, 1, 3, padding=1))
    return nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 4, 3, padding=1), act=nn.ReLU(), segmentation_head=head))


def test_the_dice_loss_by_hand():
    """Sums run over the whole batch: 1 - (2 * 1.5 + 1) / (2 + 2 + 1) = 0.2."""
    predicted = torch.tensor([0.5, 0.5, 0.0, 1.0]).view(2, 1, 1, 2)
    mask = torch.tensor([1.0, 0.0, 0.0, 1.0]).view(2, 1, 1, 2)
    assert overlap(predicted, mask).tolist() == [[0.5, 1.0, 1.0], [1.0, 1.0, 1.0]]
    assert dice_loss(overlap(predicted, mask).sum(0)).item() == pytest.approx(0.2)
    method = Segmenter(tiny_unet())
    batch = {"image": torch.rand(2, 3, 8, 8), "mask": (torch.rand(2, 1, 8, 8) > 0.5).float()}
    p, y = method.network(batch["image"]).sigmoid(), batch["mask"]
    expected = 1 - (2 * (p * y).sum() + 1) / (p.sum() + y.sum() + 1)
    assert method(batch)["loss"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_pooled_and_mean_dice_by_hand():
    """A large image found half, a small one missed, an empty one rightly empty."""
    hard = torch.tensor([[5.0, 5.0, 10.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    metrics = dice_metrics(torch.cat([hard, hard], dim=1).double())
    assert metrics["dice"] == pytest.approx(10 / 16)
    assert metrics["dice_per_image"] == pytest.approx((2 / 3 + 0 + 1) / 3)
    assert metrics["loss"] == pytest.approx(1 - 11 / 17)
    assert dice_metrics(torch.zeros(2, 6).double()) == {"loss": 0, "dice": 1, "dice_per_image": 1}


def test_label_metrics_by_hand():
    """Cross-entropy over all labels, AUROC over those that count."""
    labels = torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
    scores = torch.tensor([[0.2, 0.5], [0.6, 0.5], [0.7, 0.5]], dtype=torch.float64)
    metrics = label_metrics(labels, scores, ("a", "b"), ("a",))
    assert metrics["auroc_per_label"] == {"a": 0.5}
    assert metrics["auroc"] == 0.5
    expected = -np.mean(np.log([0.8, 0.6, 0.3, 0.5, 0.5, 0.5]))
    assert metrics["loss"] == pytest.approx(expected)


def test_heads_start_as_published():
    """Classification: normal of deviation 0.01, bias 0. Segmentation: bias 0, and not what the network brought."""
    torch.manual_seed(0)
    network, unet = tiny(200), tiny_unet()
    brought = unet.segmentation_head[0].weight.clone()
    Classifier(network)
    Segmenter(unet)
    assert network.fc.weight.std().item() == pytest.approx(0.01, rel=0.05)  # 9600 values: 0.7 % of sampling error
    assert not network.fc.bias.any()
    assert not unet.segmentation_head[0].bias.any()
    assert not torch.equal(unet.segmentation_head[0].weight, brought)


def test_a_frozen_network_trains_its_head_alone():
    """The rest gets no gradient and keeps its batch statistics in training mode."""
    method = Classifier(tiny(2), freeze=True).train()
    assert not method.network.norm.training
    method({"image": torch.rand(4, 3, 8, 8), "label": torch.ones(4, 2)})["loss"].backward()
    assert {n for n, p in method.named_parameters() if p.grad is not None} == {"network.fc.weight", "network.fc.bias"}
    assert not method.network.norm.running_mean.any()


@pytest.mark.slow
def test_the_loss_falls_where_there_is_something_to_learn(task, tmp_path):
    """Which side the bright square is on: a linear layer on 16 mean values tells it, without mirrored views."""
    samples, _ = read_labelled(task.images, task.lists["train"])
    data = LabelledImages([Sample(s.file, s.labels) for s in samples], size=SIZE, view="center", normalization="none")
    args = TrainArgs(
        data="", out=str(tmp_path), epochs=30, batch_size=8, lr=1.0, weight_decay=0.0, schedule="constant", device="cpu"
    )
    processes = distributed.start("cpu")
    torch.manual_seed(0)
    method = Classifier(tiny(2))
    best = fit(method, data, args, processes=processes)
    assert best["loss"] < 0.1  # from 0.69
    scores = collect(method.eval().probabilities, data, args, processes).detach()
    labels = torch.tensor([s.labels for s in samples], dtype=torch.float64)
    assert label_metrics(labels, scores, ("left", "upper"), ("left", "upper"))["auroc"] == 1.0


# Two processes


class Keys:
    """Five samples that show the key they are asked for by."""

    def __len__(self):
        return 5

    def __getitem__(self, key):
        return {"key": torch.tensor(key)}


def dice_step():
    """The same method and batch in each process; masks of very different size in its two halves."""
    torch.manual_seed(1)
    mask = torch.zeros(4, 1, 8, 8)
    mask[:2, :, :6] = 1
    mask[3, :, 0, 0] = 1
    return Segmenter(tiny_unet()), {"image": torch.rand(4, 3, 8, 8), "mask": mask}


@pytest.mark.slow
def test_two_processes_train_on_the_dice_of_the_whole_batch(tmp_path):
    """Gradients equal those of one process that has the whole batch."""
    method, batch = dice_step()
    method(batch)["loss"].backward()

    def work():
        own, whole = dice_step()
        mine = slice(2 * distributed.rank(), 2 * distributed.rank() + 2)
        wrapped = nn.parallel.DistributedDataParallel(own)
        wrapped({name: tensor[mine] for name, tensor in whole.items()})["loss"].backward()
        return {name: parameter.grad for name, parameter in own.named_parameters()}

    for gradients in gloo.run(work, 2, tmp_path):
        for name, parameter in method.named_parameters():
            torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-7)  # sums in another order


def test_two_processes_judge_a_set_in_its_order(tmp_path):
    """Five samples on two processes: each once, in order, on both; with the first one's batch statistics."""

    def work():
        processes = distributed.Processes(distributed.rank(), 2, torch.device("cpu"))
        method = tiny(2)
        method.norm.running_mean.fill_(processes.rank)
        share_buffers(method)
        rows = collect(lambda batch: batch["key"], Keys(), TrainArgs(data="", out="", batch_size=2), processes, 3)
        return rows, method.norm.running_mean

    for rows, mean in gloo.run(work, 2, tmp_path):
        assert rows.tolist() == [[3, i] for i in range(5)]
        assert not mean.any()
