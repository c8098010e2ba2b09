"""`zoo finetune --task segment` and `zoo predict` on what it saved: volumes, slices and films with planted balls."""

import csv
import json
import pickle
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import gloo
import nibabel
import numpy as np
import pytest
import torch
from balls import write_films, write_table, write_volumes
from monai.losses.dice import DiceCELoss
from safetensors.torch import load_file
from small_networks import on_meta

import zoo as package
from zoo.commands.finetuning import finetune
from zoo.entry import Windows
from zoo.errors import InputContractError, OptionError
from zoo.fetching.cache import hash_file
from zoo.formats import open_checkpoint
from zoo.images import read_label_picture
from zoo.registry import entries
from zoo.tasks.args import FinetuneArgs
from zoo.tasks.first_look import check_size
from zoo.tasks.saved import read_saved
from zoo.tasks.segment import middle_of, segment
from zoo.tasks.segmenter import Segmenter
from zoo.tasks.sliding import find_logits
from zoo.training.distributed import Processes
from zoo.training.metrics import count_overlap
from zoo.training.run import Run

pytestmark = [pytest.mark.usefixtures("undrawn"), pytest.mark.slow]

OBLIQUE = np.array([[0.2, -1.8, 0.1, 5], [1.1, 0.3, -0.2, -7], [0.1, 0.2, 2.4, 9], [0, 0, 0, 1]])
WINDOW = ("--window", "16,16,16")


@contextmanager
def narrowed():
    """Have anatomix's U-Net half its levels and a quarter of its channels, which its files tell by their shapes."""
    whole = entries()["anatomix-unet"]
    small = {**whole.config, "width": 4, "depth": 2}
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(entries(), whole.name, replace(whole, config=small))
        yield


@pytest.fixture
def narrow():
    with narrowed():
        yield


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Ten volumes that lie askew, of masks with the values 3 and 7."""
    folder = tmp_path_factory.mktemp("scans")
    write_volumes(folder, 10, (20, 18, 14), OBLIQUE, values=(3, 7))
    return folder


def words(folder, out, *more, model="anatomix-unet"):
    """Of a run on a folder that `balls` wrote."""
    return [
        *(model, "--task", "segment", "--table", str(folder / "cases.csv"), "--data", str(folder / "images")),
        *("--masks", str(folder / "masks"), "--group", "patient", "--split", "split", "--device", "cpu"),
        *("-o", str(out), *more),
    ]


FROM_SCRATCH = ("--from-scratch", *WINDOW, "--parts", "1", "--batch-size", "2", "--lr", "2e-2")
SHORT = (*FROM_SCRATCH, "--epochs", "2", "--steps-per-epoch", "1")


@pytest.fixture(scope="module")
def run(scans, tmp_path_factory):
    """A short run, and what it said."""
    out = tmp_path_factory.mktemp("run") / "out"
    classes = ("--classes", "background,left,right", "--no-augment", "--patience", "0")
    length = ("--epochs", "2", "--steps-per-epoch", "60")  # running averages of the norms follow 30 steps later
    with narrowed():
        return out, finetune(words(scans, out, *FROM_SCRATCH, *classes, *length))


def dice_of(found, truth):
    return 2 * (found & truth).sum() / (found.sum() + truth.sum())


def test_a_run_on_volumes_finds_the_balls(run):
    """On each scan's own grid, by structure, with what its values stand for."""
    out, results = run
    assert results == json.loads((out / "results.json").read_text("utf-8"))
    assert results["cases"]["train"] == {"cases": 6, "groups": 6, "cases_with": {"left": 6, "right": 6}}
    assert results["test"]["values"] == {"0": "background", "3": "left", "7": "right"}
    worse, best = sorted(results["test"]["classes"].values(), key=lambda each: each["dice"]["value"])
    assert best["dice"]["value"] > 0.5  # all voxels called by one name have 0.03; two names may take more steps
    assert best["cases"] == best["compared"] == 2
    assert best["dice"]["low"] is best["dice"]["high"] is None  # two scans give no interval
    assert 0 < worse["hausdorff95"]["value"] <= worse["hausdorff"]
    assert results["test"]["distances_in"] == "mm"
    assert "hausdorff95" not in results["val"]["classes"]["left"]
    assert {"model.safetensors", "predictions.csv", "splits.csv", "prediction.png", "curves.png"} <= {
        path.name for path in out.iterdir()
    }
    assert not (out / "prepared").exists()


def test_the_saved_network_says_what_it_was_trained_on(run):
    """Task, classes and windows; it loads back by its entry, with nothing fresh."""
    out, _ = run
    saved = read_saved(out)
    assert (saved.task, saved.classes) == ("segment", ("background", "left", "right"))
    assert (saved.outputs.kind, saved.outputs.window, saved.outputs.values) == ("voxels", (16, 16, 16), (0, 3, 7))
    network = package.load_model("anatomix-unet", checkpoint=out / "model.safetensors")
    assert network.num_classes == 3
    assert package.load_report(network).fresh == {}
    assert json.loads(open_checkpoint(saved.path).metadata["base"]) == {"model": "anatomix-unet", "source": "random"}


def test_predict_writes_what_was_tested(run, scans, tmp_path, zoo):
    """Labels with the values of the masks and the scan's own header, whose Dice is that of predictions.csv.

    Pictures beside them. `zoo segment` and the predictor say the same; the saved file has the values.
    """
    out, _ = run
    with (out / "predictions.csv").open() as file:
        rows = {row["id"]: row for row in csv.DictReader(file)}
    assert set(rows) == {"scan4.nii.gz", "scan9.nii.gz"}
    code, said, err = zoo("predict", out, scans / "images" / "scan4.nii.gz", "-o", tmp_path / "labels", "--picture")
    assert code == 0, err
    assert "labels of 1 image(s) (0 background, 3 left, 7 right), by " in said
    found = nibabel.load(tmp_path / "labels" / "scan4_labels.nii.gz")
    assert np.allclose(found.affine, OBLIQUE, atol=1e-4)
    assert found.get_data_dtype() == np.uint8
    truth = np.asarray(nibabel.load(scans / "masks" / "scan4.nii.gz").dataobj)
    for value, name in ((3, "left"), (7, "right")):
        dice = dice_of(np.asarray(found.dataobj) == value, truth == value)
        assert abs(dice - float(rows["scan4.nii.gz"][f"dice_{name}"])) < 1e-3
    assert [path.name for path in (tmp_path / "labels-pictures").iterdir()] == ["scan4.png"]
    predictor = package.load_predictor(out, device="cpu")
    answer = pickle.loads(pickle.dumps(predictor))(scans / "images" / "scan4.nii.gz")
    assert (answer["classes"], answer["values"]) == (["background", "left", "right"], [0, 3, 7])
    assert np.array_equal(answer["labels"], np.asarray(found.dataobj))
    assert np.allclose(answer["affine"], OBLIQUE, atol=1e-4)
    file = out / "model.safetensors"
    code, _, err = zoo(
        "segment", "anatomix-unet", scans / "images" / "scan4.nii.gz", "--checkpoint", file, "-o", tmp_path
    )
    assert code == 0, err
    assert np.array_equal(np.asarray(nibabel.load(tmp_path / "scan4_labels.nii.gz").dataobj), answer["labels"])
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes((scans / "images" / "scan4.nii.gz").read_bytes()[:500])
    with pytest.raises(InputContractError, match=r"broken\.nii"):
        predictor([broken])
    code, _, err = zoo("predict", out, broken, scans / "images" / "scan9.nii.gz", "-o", tmp_path / "more")
    assert code == 1
    assert "1 volume(s) have no labels, the others are in" in err
    assert [path.name for path in (tmp_path / "more").iterdir()] == ["scan9_labels.nii.gz"]


def test_best_pt_predicts_what_the_saved_network_does(run, scans):
    """It says its windows, and a file of the middle of an epoch would say nothing of outputs."""
    out, _ = run
    saved, best = read_saved(out), read_saved(out / "best.pt")
    assert (best.outputs, best.classes, best.header) == (saved.outputs, saved.classes, saved.header)
    scan = scans / "images" / "scan4.nii.gz"
    answers = [package.load_predictor(path, device="cpu")(scan) for path in (out, out / "best.pt")]
    assert answers[0]["labels"].any()
    assert np.array_equal(answers[0]["labels"], answers[1]["labels"])


@pytest.fixture(scope="module")
def whole(scans, tmp_path_factory):
    """Folder of a run of two steps."""
    out = tmp_path_factory.mktemp("whole") / "out"
    with narrowed():
        finetune(words(scans, out, *SHORT))
    return out


@pytest.mark.usefixtures("narrow")
def test_a_killed_run_ends_with_the_same_weights(scans, whole, tmp_path, monkeypatch):
    """Crops and their changes follow from seed, pass and index; the test part is judged once, at the end."""
    finish = Run.finish_epoch

    def die(self, *arguments):
        finish(self, *arguments)
        raise ZeroDivisionError

    with monkeypatch.context() as patched:
        patched.setattr(Run, "finish_epoch", die)
        with pytest.raises(ZeroDivisionError):
            finetune(words(scans, tmp_path / "killed", *SHORT))
    assert not (tmp_path / "killed" / "model.safetensors").exists()
    finetune(words(scans, tmp_path / "killed", *SHORT, "--resume"))
    folders = [whole, tmp_path / "killed"]
    assert are_equal(*folders)
    results = [json.loads((folder / "results.json").read_text("utf-8"))["test"] for folder in folders]
    assert results[0] == results[1]


def are_equal(*folders):
    """Whether two runs ended with the same weights."""
    one, other = (load_file(folder / "model.safetensors") for folder in folders)
    return [name for name, tensor in one.items() if not torch.equal(tensor, other[name])] == []


@pytest.mark.usefixtures("narrow")
def test_two_processes_are_one(tmp_path):
    """Each sees one of the two cases of a step; norms are frozen, whose statistics would be each process's own."""
    write_volumes(tmp_path, 5, (20, 18, 14), OBLIQUE)
    flags = (*SHORT, "--freeze")
    finetune(words(tmp_path, tmp_path / "one", *flags))
    gloo.run(_finetuned, 2, tmp_path / "group", words(tmp_path, tmp_path / "two", *flags))
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    torch.manual_seed(0)
    start = package.load_model("anatomix-unet", pretrained=False, num_classes=2).state_dict()
    head = entries()["anatomix-unet"].head
    for name, tensor in one.items():
        # The order of a sum of two gradients differs: rounding of float32, through two steps of Adam.
        near = {"rtol": 1e-3, "atol": 1e-5} if name.startswith(head) else {"rtol": 0, "atol": 0}
        torch.testing.assert_close(two[name], tensor, **near)
        assert torch.equal(tensor, start[name]) != name.startswith(head), name
    assert (tmp_path / "one" / "splits.csv").read_bytes() == (tmp_path / "two" / "splits.csv").read_bytes()
    results = [json.loads((tmp_path / name / "results.json").read_text("utf-8")) for name in ("one", "two")]
    assert results[0]["test"]["dice"] == pytest.approx(results[1]["test"]["dice"], abs=1e-3)


def _finetuned(argv):
    finetune(argv)
    return {}


@pytest.mark.usefixtures("narrow")
def test_images_are_made_anew_where_the_disk_has_no_room(scans, whole, tmp_path, monkeypatch, capsys):
    """The run would end with a full disk after hours of preparing; it must learn the same without what is kept."""
    monkeypatch.setattr("zoo.tasks.data.shutil.disk_usage", lambda folder: SimpleNamespace(free=0))
    monkeypatch.setattr("zoo.tasks.segment.prepare_all", None)
    finetune(words(scans, tmp_path / "out", *SHORT))
    assert "GB: they are made anew each time" in capsys.readouterr().err
    assert are_equal(whole, tmp_path / "out")


@pytest.mark.usefixtures("narrow")
def test_images_are_kept_once_for_all_folds(tmp_path):
    """In the folder of the run, from which they go at its end; in that of a fold they would stay for ever."""
    write_volumes(tmp_path, 2, (20, 18, 14), OBLIQUE)
    task = read(tmp_path, "cross_validate", 2, "window", "16,16,16")
    network = package.load_model("anatomix-unet", pretrained=False, num_classes=2)
    for fold in ("fold0", "fold1"):
        args = replace(task.args, out=str(tmp_path / "out" / fold), batch_size=1)
        (tmp_path / "out" / fold).mkdir(parents=True)
        task.begin(network, args, {"train": [0], "val": [1]}, Processes(0, 1, torch.device("cpu")))
    assert [folder.relative_to(tmp_path).parts for folder in tmp_path.rglob("prepared")] == [("out", "prepared")]
    assert len(list((tmp_path / "out" / "prepared").glob("*.json"))) == 2


def test_slices_of_volumes_are_learnt_by_the_same_task(tmp_path, zoo):
    """GLCL's U-Net, from the weights that ship: labels of its slices on the scan's own grid."""
    write_volumes(tmp_path, 5, (60, 64, 9), np.diag([-3.0, -3.0, 8.0, 1.0]), scale=(0.0, 1000.0))
    options = ("--epochs", "2", "--batch-size", "1", "--parts", "2")
    results = finetune(words(tmp_path, tmp_path / "out", *options, model="glcl-unet.phantom"))
    assert results["test"]["cases"] == 1
    assert results["best"]["val_dice"] >= 0
    assert read_saved(tmp_path / "out").outputs.window == ()
    scan = tmp_path / "images" / "scan4.nii.gz"
    code, _, err = zoo("predict", tmp_path / "out", scan, "-o", tmp_path / "labels")
    assert code == 0, err
    found = nibabel.load(tmp_path / "labels" / "scan4_labels.nii.gz")
    assert found.shape == (60, 64, 9)
    with (tmp_path / "out" / "predictions.csv").open() as file:
        (row,) = csv.DictReader(file)
    truth = np.asarray(nibabel.load(tmp_path / "masks" / "scan4.nii.gz").dataobj) == 1
    assert abs(dice_of(np.asarray(found.dataobj) == 1, truth) - float(row["dice_1"])) < 1e-3


@pytest.mark.usefixtures("narrow_caid")
def test_films_are_learnt_by_the_same_task(tmp_path, zoo):
    """A narrow U-Net from a file that restores films: PNG labels of each film's own size, distances in pixels."""
    write_films(tmp_path, 5)
    start = tmp_path / "start.pth"
    torch.save(package.load_model("caid-resnet50-unet", pretrained=False).state_dict(), start)
    options = ("--epochs", "1", "--batch-size", "3", "--classes", "background,ball", "--checkpoint", str(start))
    results = finetune(words(tmp_path, tmp_path / "out", *options, model="caid-resnet50-unet"))
    film = tmp_path / "images" / "film4.png"
    code, _, err = zoo("predict", tmp_path / "out", film, "-o", tmp_path / "labels")
    assert code == 0, err
    assert results["test"]["distances_in"] == "pixels"
    assert results["test"]["values"] == {"0": "background", "255": "ball"}
    labels = read_label_picture(tmp_path / "labels" / "film4_labels.png")
    assert labels.shape == (80, 96)
    assert {*np.unique(labels)} <= {0, 255}
    base = json.loads(open_checkpoint(tmp_path / "out" / "model.safetensors").metadata["base"])
    assert (base["source"], base["sha256"]) == (start.name, hash_file(start))


@pytest.mark.parametrize("of_slices", [False, True])
def test_the_loss_of_a_whole_image_is_that_of_its_logits(of_slices):
    """Summed slice by slice, as MONAI's loss has it at once; validation chooses the epoch by it."""
    torch.manual_seed(0)
    network = torch.nn.Conv2d(1, 3, 3, padding=1) if of_slices else torch.nn.Conv3d(1, 3, 3, padding=1)
    windows = None if of_slices else Windows((8, 8, 8), 0.5, gaussian=True)
    label = torch.randint(3, (20, 12, 10))
    image = (label + torch.rand(label.shape))[None]
    row = Segmenter(network, 3, windows).measure(
        {"image": image.transpose(0, 1)[None] if of_slices else image[None], "label": label[None]}
    )[0]
    with torch.no_grad():
        logits = network(image.transpose(0, 1)).transpose(0, 1) if of_slices else find_logits(network, image, windows)
    expected = DiceCELoss(to_onehot_y=True, softmax=True)(logits[None], label[None, None].float())
    assert abs(row[-1].item() - expected.item()) < 1e-5
    assert torch.equal(row[:-1].view(3, 3), count_overlap(logits.argmax(0), label, 3))


# What is refused


def read(folder, *more, model="anatomix-unet"):
    """The task of a run, which is read before anything is written."""
    flags = dict(zip(more[::2], more[1::2], strict=True))
    args = FinetuneArgs(
        model=model,
        task="segment",
        table=str(folder / "cases.csv"),
        data=str(folder / "images"),
        out=str(folder / "out"),
        masks=str(folder / "masks"),
        **flags,
    )
    args.check()
    return segment(args)


def test_two_folders_are_a_whole_data_set(tmp_path):
    """No table is written for what the names say; what only a table has cannot be asked for."""
    write_films(tmp_path, 12)
    (tmp_path / "cases.csv").unlink()
    (tmp_path / "masks" / "film3.png").unlink()
    folders = ("--data", str(tmp_path / "images"), "--masks", str(tmp_path / "masks"))
    command = ["caid-resnet50-unet", "--task", "segment", *folders, "--device", "cpu", "-o", str(tmp_path / "out")]
    found = finetune([*command, "--dry-run"])
    assert sum(part["cases"] for part in found["cases"].values()) == 11
    with pytest.raises(OptionError, match="--group and --split without --table: they name its columns"):
        finetune([*command, "--group", "patient", "--split", "split"])
    with pytest.raises(OptionError, match="--task segment needs --table, that of the cases, or --data"):
        finetune([*command[:3], *folders[2:], "-o", str(tmp_path / "out")])


def test_a_value_that_the_training_part_lacks_is_refused(scans, tmp_path):
    """It could not be learnt; nor can a named class that no training mask has."""
    write_volumes(tmp_path, 5, (20, 20, 20), np.eye(4))
    path = tmp_path / "masks" / "scan4.nii.gz"
    labels = np.asarray(nibabel.load(path).dataobj).copy()
    labels[0] = 2
    nibabel.save(nibabel.Nifti1Image(labels, np.eye(4)), path)
    task = read(tmp_path)
    assert task.names == ("background", "1", "2")
    with pytest.raises(OptionError, match="no mask of the train part has 2, so that it cannot be learnt"):
        task.check({"train": [0, 1, 2], "val": [3], "test": [4]})
    said = task.check({"train": [0, 1, 2, 4], "val": [3]})
    assert any("no mask of the val part has 2" in line for line in said)
    with pytest.raises(OptionError, match="no mask of the train part has b, c, e, f, far, so that it cannot be learnt"):
        read(scans, "classes", "a,b,c,d,e,f,far,g").check({"train": [0], "val": [1]})


@pytest.mark.parametrize(
    ("flags", "model", "message"),
    [
        (("window", "32,32"), "anatomix-unet", "takes windows of 3 sides"),
        (("window", "0,32,32"), "anatomix-unet", "whole numbers with commas are expected"),
        (("window", "96,96"), "glcl-unet", "takes slices whole"),
        ((), "anatomix-unet-x", "anatomix-unet-x"),
        ((), "ct-fm-segresenc", "ct-fm-segresenc does not segment"),
        (("classes", "a,b"), "anatomix-unet", "names 2 classes with the background"),
    ],
)
def test_wrong_use_is_refused_before_anything_is_written(flags, model, message, scans):
    with pytest.raises(Exception, match=message):
        read(scans, *flags, model=model)
    assert not (scans / "out").exists()


@pytest.mark.parametrize("name", [name for name, entry in entries().items() if entry.windows and entry.dimension == 3])
def test_a_window_that_the_network_does_not_take_is_refused(name):
    """By its flag, before images are prepared; its own window is taken. Nothing is computed: the values are on meta."""
    network = on_meta(name, num_classes=2)
    entry = entries()[name]
    own = entry.windows.size
    check_size(network, entry, own, "--window own")
    with pytest.raises(OptionError, match="--window odd: the network does not take inputs of "):
        check_size(network, entry, tuple(side - 3 for side in own), "--window odd")


def test_a_size_that_the_network_does_not_take_is_refused():
    """Of patches of 14 pixels, and not after all films were prepared. CAiD's networks take any."""
    vit, entry = on_meta("rad-dino-vitb14", num_classes=2), entries()["rad-dino-vitb14"]
    check_size(vit, entry, (140, 140), "--size 140")
    with pytest.raises(OptionError, match="--size 130: the network does not take inputs of 130 x 130"):
        check_size(vit, entry, (130, 130), "--size 130")
    for name in ("caid-resnet50", "caid-resnet50-unet"):
        check_size(on_meta(name, num_classes=2), entries()[name], (90, 90), "--size 90")


@pytest.mark.usefixtures("narrow")
def test_images_without_masks_and_masks_of_another_size_are_refused(tmp_path):
    """The former by the table, the latter once both are read, all of them named."""
    write_volumes(tmp_path, 5, (20, 20, 20), np.eye(4))
    small = nibabel.Nifti1Image(np.ones((20, 20, 19), np.uint8), np.eye(4))
    nibabel.save(small, tmp_path / "masks" / "scan1.nii.gz")
    with pytest.raises(Exception, match=r"scan1.nii.gz has \(20, 20, 19\) voxels, its image .*\(20, 20, 20\)"):
        finetune(words(tmp_path, tmp_path / "out", *FROM_SCRATCH))
    (tmp_path / "masks" / "scan2.nii.gz").unlink()
    with pytest.raises(OptionError, match="1 of 5 images have no mask of their name: scan2"):
        read(tmp_path)
    write_table(tmp_path, ["scan0.nii.gz", "scan7.nii.gz"])
    with pytest.raises(Exception, match="scan7"):
        read(tmp_path)


def test_of_two_cases_the_worse_one_is_drawn():
    """The picture of two test cases would always be the better one, and called the middle."""
    assert middle_of(np.array([0.9, 0.1])) == 1
    assert middle_of(np.array([0.9, 0.1, 0.5])) == 2
    assert middle_of(np.array([0.9, 0.1, 0.5, 0.7])) == 2
