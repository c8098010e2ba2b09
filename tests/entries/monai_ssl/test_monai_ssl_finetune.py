"""MONAI SSL's segmentation: runs end to end, lists and cases, crops, the loss and Dice against MONAI's, bad input."""

import json
import os
from collections import Counter
from pathlib import Path

import gloo
import nibabel
import numpy as np
import pytest
import torch
from monai.metrics import DiceMetric
from monai.networks import one_hot
from saved_runs import header_of, mark
from torch.nn import functional as F

import zoo
from zoo.entries.monai_ssl import FINE_TUNING
from zoo.entries.monai_ssl.cases import CaseStore
from zoo.entries.monai_ssl.cohort import ORGANS, Case, class_names, read_cases
from zoo.entries.monai_ssl.contract import build_transform
from zoo.entries.monai_ssl.finetune import Args, crop_size, main, next_steps
from zoo.entries.monai_ssl.finetune_data import Crops, WholeVolumes, augment, cut
from zoo.entries.monai_ssl.finetune_method import (
    Segmenter,
    count_overlap,
    dice_metrics,
    dice_per_case,
    mean_dice,
    upstream_dice,
)
from zoo.entries.monai_ssl.model import vit_autoencoder
from zoo.entries.monai_ssl.segmenters import swin_unetr, unetr
from zoo.entries.monai_ssl.windows import segment
from zoo.errors import InputContractError, OptionError
from zoo.fetching.cache import hash_file
from zoo.tasks.outputs import Outputs

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE = 32
NETWORK = ["--size", "32", "--hidden-size", "64", "--mlp-dim", "128", "--feature-size", "4"]
SHORT = ["--device", "cpu", "--workers", "0", "--epochs", "2", "--steps-per-epoch", "2", "--crops", "2"]
ONE_STEP = ["--epochs", "1", "--steps-per-epoch", "1"]
AFFINE = np.diag((4.0, 4.0, 4.0, 1.0))
NAMES = ("background", "cube", "slab")


def volume(seed, shape=(40, 36, 28)):
    """A body of soft tissue in air with a bright cube (1) and a dark slab (2), and its labels."""
    rng = np.random.default_rng(seed)
    values, labels = np.full(shape, -1000.0, np.float32), np.zeros(shape, np.uint8)
    values[2:-2, 2:-2, 1:-1] = rng.normal(20, 20, np.array(shape) - (4, 4, 2))
    corner = rng.integers(4, 8, 3)
    labels[tuple(slice(c, c + 9) for c in corner)] = 1
    labels[corner[0] + 14 : corner[0] + 22, 6:-6, 6:14] = 2
    values[labels == 1] += 150
    values[labels == 2] -= 120
    return values, labels


def write(path, values, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, affine), path)
    return path


def write_list(path, **sections):
    content = {name: [{"image": f"{i}.nii", "label": f"{i}_label.nii"} for i in ids] for name, ids in sections.items()}
    path.write_text(json.dumps(content | {"labels": {str(i): name for i, name in enumerate(NAMES)}}))
    return path


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Six volumes, their list (3 to train on, 2 to validate on, 1 to test on), and where they are kept prepared."""
    root = tmp_path_factory.mktemp("cohort")
    for i in range(6):
        values, labels = volume(i, ((40, 24, 28), (40, 36, 28), *[(36, 32, 28)] * 4)[i])
        write(root / f"{i}.nii", values)
        write(root / f"{i}_label.nii", labels)
    write_list(root / "list.json", training=(0, 1, 2), validation=(3, 4), test=(5,))
    return root


@pytest.fixture(scope="module")
def stored(cohort):
    """The cohort's cases as the network sees them."""
    store = CaseStore(cohort / "cache", build_transform(FINE_TUNING, "4"))
    parts = read_cases(cohort / "list.json", cohort)
    store.prepare([case for part in parts.values() for case in part], 3)
    return {part: [store.open(case) for case in cases] for part, cases in parts.items()}


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    """A small auto-encoder as pre-training writes it."""
    torch.manual_seed(5)
    path = tmp_path_factory.mktemp("vit") / "best.pt"
    network = vit_autoencoder(img_size=SIZE, hidden_size=64, mlp_dim=128)
    torch.save({"model": {f"network.{name}": value for name, value in network.state_dict().items()}}, path)
    return path


def command(cohort, out, *flags):
    """Arguments of a short run."""
    where = ["--data", str(cohort), "--table", str(cohort / "list.json"), "--cache", str(cohort / "cache")]
    return [*where, "--out", str(out), "--num-classes", "3", "--spacing", "4", *SHORT, *flags]


# Whole runs


@pytest.mark.slow
def test_fine_tuning_from_a_vit(cohort, stored, vit, tmp_path, capsys):
    """The ViT's sizes come from its file; the best checkpoint gives the written Dice again; a picture is drawn."""
    out = tmp_path / "run"
    results = main(command(cohort, out, "--checkpoint", str(vit), "--feature-size", "4", "--lr", "1e-3"))
    written = json.loads((out / "results.json").read_text())
    assert written == json.loads(json.dumps(results))
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["best", "val", "test", "results"]
    best = str(out / "best.pt")
    assert f"next: zoo.load_model('monai-ssl-unetr', checkpoint={best!r}), or" in printed.err
    assert f"segment --image CT --out labels --checkpoint {best}`" in printed.err
    assert written["volumes"] == {"train": 3, "val": 2, "test": 1}
    assert (written["model"], written["source"]) == ("monai-ssl-unetr", str(vit))
    assert written["val"]["dice"] == written["best"]["val_dice"]
    assert written["val"]["dice_per_class"].keys() == {"cube", "slab"}
    assert (out / "prediction.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((out / "log.jsonl").read_text().splitlines()[-1])["epoch"] == 2

    for name in ("best.pt", "last.pt"):
        said = header_of(out / name)
        assert (said["model"], said["task"], said["classes"]) == ("monai-ssl-unetr", "segment", list(NAMES))
        assert said["options"] == {"img_size": None, "num_heads": None}
        assert (said["base"]["source"], said["base"]["sha256"]) == (vit.name, hash_file(vit))
        expected = build_transform(FINE_TUNING, "4").preprocessing
        assert zoo.load_transform("monai-ssl-unetr", checkpoint=out / name).preprocessing == expected

    tuned = zoo.load_model("monai-ssl-unetr", checkpoint=out / "best.pt")
    item = WholeVolumes(stored["test"])[0, 0]
    found, truth = segment(tuned, item["image"]), item["label"][0]
    assert zoo.load_predictor(out / "best.pt", device="cpu").outputs == Outputs("voxels", window=(SIZE,) * 3)
    expected = [
        (2 * ((found == c) & (truth == c)).sum() / ((found == c).sum() + (truth == c).sum())).item() for c in (1, 2)
    ]
    assert written["test"]["dice"] == pytest.approx(np.mean(expected))
    assert list(written["test"]["dice_per_class"].values()) == pytest.approx(expected)

    mark(out / "best.pt")
    again = main(command(cohort, out, "--checkpoint", str(vit), "--feature-size", "4", "--lr", "1e-3", "--resume"))
    assert (again["val"] != results["val"], again["test"] != results["test"]) == (True, True), "not of the best epoch"


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_the_pair_from_scratch_differs_in_its_weights_alone(cohort, vit, tmp_path):
    """Random weights are said to be random; a frozen transformer keeps those of its file."""
    results = main(command(cohort, tmp_path / "scratch", "--from-scratch", *NETWORK, "--labelled", "2", *ONE_STEP))
    assert (results["source"], results["sha256"]) == ("random", None)
    assert results["volumes"]["train"] == 2
    main(command(cohort, tmp_path / "frozen", "--checkpoint", str(vit), "--feature-size", "4", "--freeze", *ONE_STEP))
    start = torch.load(vit, weights_only=True)["model"]
    end = torch.load(tmp_path / "frozen" / "last.pt", weights_only=True)["model"]
    shared = [name for name in start if "network.vit." + name.removeprefix("network.") in end]
    assert len(shared) > 100
    for name in shared:
        assert torch.equal(end["network.vit." + name.removeprefix("network.")], start[name])
    scratch = torch.load(tmp_path / "scratch" / "last.pt", weights_only=True)["model"]
    assert scratch.keys() == end.keys()


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_a_resumed_run_ends_with_the_same_weights(cohort, tmp_path):
    """Stopped after one of two epochs; without --resume the folder is refused."""
    flags = ["--from-scratch", *NETWORK, "--steps-per-epoch", "1"]
    main(command(cohort, tmp_path / "whole", *flags))
    main(command(cohort, tmp_path / "parts", *flags, "--epochs", "1"))
    with pytest.raises(OptionError, match="give --resume"):
        main(command(cohort, tmp_path / "parts", *flags))
    main(command(cohort, tmp_path / "parts", *flags, "--resume"))
    whole, parts = (torch.load(tmp_path / run / "last.pt", weights_only=True)["model"] for run in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def run_two(cohort, out, cache):
    results = main(
        [*command(cohort, out, "--from-scratch", *NETWORK, "--batch-size", "2", "--epochs", "1"), "--cache", cache]
    )
    return {"best": results["best"], "test": results["test"]["dice"], "val": results["val"]["dice_per_case"]}


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_two_processes_train_and_judge_as_one(cohort, tmp_path):
    """Each prepares its share, trains on one of two volumes, and judges its share; both know all results."""
    one = run_two(cohort, tmp_path / "one", str(tmp_path / "cache1"))
    two = gloo.run(run_two, 2, tmp_path / "gloo", cohort, tmp_path / "two", str(tmp_path / "cache2"))
    assert two[0]["val"] == two[1]["val"]
    assert two[0]["val"] == pytest.approx(one["val"], abs=1e-3)  # a voxel or two; cases differ more
    assert two[0]["best"]["loss"] == pytest.approx(one["best"]["loss"], rel=1e-4)
    first, second = (torch.load(tmp_path / run / "last.pt", weights_only=True)["model"] for run in ("one", "two"))
    for name, value in first.items():
        # AdamW's first steps are of length lr whatever the gradient: where that is rounding, so is its sign
        torch.testing.assert_close(second[name], value, atol=1e-3, rtol=0)
    assert sorted(file.name.split(".")[0] for file in (tmp_path / "cache1").glob("*.json")) == sorted(
        file.name.split(".")[0] for file in (tmp_path / "cache2").glob("*.json")
    )


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_without_validation_the_training_loss_decides(cohort, tmp_path):
    """A list of training volumes alone; its unlabelled test section is left out."""
    entries = [{"image": "1.nii", "label": "1_label.nii"}, {"image": "2.nii", "label": "2_label.nii"}]
    (tmp_path / "list.json").write_text(json.dumps({"training": entries, "test": ["5.nii"]}))
    argv = command(cohort, tmp_path / "run", "--from-scratch", *NETWORK, "--table", str(tmp_path / "list.json"))
    results = main(argv)
    assert results["arguments"]["monitor"] == "loss"
    assert "val" not in results
    assert "test" not in results
    assert results["classes"] == ("class 0", "class 1", "class 2")
    assert not (tmp_path / "run" / "prediction.png").exists()


def test_crops_are_of_the_size_that_the_network_was_built_for():
    """They are turned, so they must be cubes."""
    assert crop_size(unetr(img_size=48, hidden_size=64, mlp_dim=64, feature_size=4)) == 48
    with pytest.raises(OptionError, match=r"built for \(32, 16, 16\) voxels"):
        crop_size(unetr(img_size=(32, 16, 16), hidden_size=64, mlp_dim=64, feature_size=4))


def test_defaults_are_the_published_run():
    """30 000 steps of four crops of one volume, validation every 100, AdamW."""
    args = Args(data="d", table="l", out="o")
    assert args.epochs * args.steps_per_epoch == 30_000
    assert (args.steps_per_epoch, args.batch_size, args.crops, args.num_classes) == (100, 1, 4, 14)
    assert (args.optimizer, args.lr, args.weight_decay, args.schedule) == ("adamw", 1e-4, 1e-5, "constant")
    assert (args.model, args.monitor, args.precision) == ("monai-ssl-unetr", "+val_dice", "fp32")


@pytest.mark.slow
def test_a_swin_unetr_is_fine_tuned():
    """In crops of the published size if none is asked for; its transformer can be frozen."""
    network = swin_unetr(feature_size=12, num_classes=3)
    assert crop_size(network) == 96
    method = Segmenter(network, 3, 64, freeze=True)
    labels = torch.randint(0, 3, (1, 1, 1, 64, 32, 32), dtype=torch.uint8)
    method({"image": torch.rand(1, 1, 1, 64, 32, 32), "label": labels})["loss"].backward()
    trained = {name.split(".")[0] for name, p in network.named_parameters() if p.grad is not None}
    assert "swinViT" not in trained
    assert {"encoder1", "decoder1", "out"} <= trained


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model", "monai-ssl-vitb16"], "expected monai-ssl-unetr or monai-ssl-swinunetr"),
        (["--checkpoint", "file", "--from-scratch"], "exclude each other"),
        (["--size", "40"], "multiple of 16"),
        (["--model", "monai-ssl-swinunetr", "--size", "32"], "multiple of 32, at least 64,"),
        (["--model", "monai-ssl-swinunetr", "--hidden-size", "64"], "monai-ssl-swinunetr takes --feature-size alone"),
        (["--merging", "complete"], "--merging complete is for monai-ssl-swinunetr"),
        (["--num-classes", "1"], "at least 2"),
        (["--num-classes", "4"], r"names the labels 0, 1, 2: 0 to 3 are expected"),
        (["--labelled", "4"], "lists 3 training volumes"),
        (["--spacing", "a"], "--spacing a"),
        (
            ["--from-scratch", *NETWORK, "--batch-size", "4", "--cache", "never-made"],
            r"3 sample\(s\) do not fill one step",
        ),
    ],
)
def test_wrong_arguments_are_refused(cohort, tmp_path, flags, message):
    """Before anything is written."""
    with pytest.raises(OptionError, match=message):
        main(command(cohort, tmp_path / "run", *flags))
    assert not (tmp_path / "run").exists()
    assert not Path("never-made").exists(), "nothing is prepared first"


def test_what_comes_next_says_what_no_file_does():
    """The windows of a Swin UNETR alone: voxels, heads and a ViT's windows are in the header."""
    best = str(Path("o") / "best.pt")
    line = next_steps(Args(data="d", table="l", out="o", model="monai-ssl-swinunetr.dae", spacing="1,1,2", size=64))
    assert line.startswith(f"next: zoo.load_model('monai-ssl-swinunetr', checkpoint={best!r}), or")
    assert line.endswith(f"--checkpoint {best} --model monai-ssl-swinunetr --window 64`")
    line = next_steps(Args(data="d", table="l", out="o", num_heads=4, size=64))
    assert f"checkpoint={best!r}), or" in line
    assert line.endswith(f"--checkpoint {best}`")


# Lists and cases


def test_a_test_section_counts_where_it_has_labels(cohort):
    """And a case may not be trained on and judged."""
    assert {part: len(cases) for part, cases in read_cases(cohort / "list.json", cohort).items()} == {
        "train": 3,
        "val": 2,
        "test": 1,
    }
    assert [case.image.name for case in read_cases(cohort / "list.json", cohort, labelled=2)["train"]] == [
        "0.nii",
        "1.nii",
    ]
    path = write_list(cohort / "twice.json", training=(0, 1), validation=(1,))
    with pytest.raises(InputContractError, match=r"1 training volumes are also judged: .*1.nii"):
        read_cases(path, cohort)


def test_classes_are_named_by_the_list_or_as_btcvs(cohort, tmp_path):
    """Fourteen without names are BTCV's."""
    (tmp_path / "l.json").write_text("{}")
    assert class_names(cohort / "list.json", 3) == NAMES
    assert class_names(tmp_path / "l.json", 14) == ORGANS
    assert len(ORGANS) == 14


def test_missing_files_are_named_at_once(cohort, tmp_path):
    """Images and labels of all sections; an entry without a label is none."""
    entries = {"training": [{"image": "0.nii", "label": "x.nii"}], "validation": [{"image": "y.nii", "label": "z.nii"}]}
    (tmp_path / "list.json").write_text(json.dumps(entries))
    with pytest.raises(InputContractError) as error:
        read_cases(tmp_path / "list.json", cohort)
    assert all(name in str(error.value) for name in ("x.nii", "y.nii", "z.nii"))
    (tmp_path / "list.json").write_text(json.dumps({"training": [{"image": "0.nii"}]}))
    with pytest.raises(OptionError, match="entry 0 has no 'label'"):
        read_cases(tmp_path / "list.json", cohort)
    with pytest.raises(OptionError, match="lists nothing under 'training'"):
        read_cases(write_list(tmp_path / "empty.json", validation=(1,)), cohort)


def test_bad_cases_are_named_at_once(tmp_path):
    """Labels of no class, labels on another grid, labels between classes, air alone; good ones are kept."""
    values, labels = volume(0)
    moved = AFFINE.copy()
    moved[0, 3] = 3
    wrong = {
        "beyond": (
            values,
            np.where(labels == 2, 7, labels).astype(np.uint8),
            AFFINE,
            "has labels 7: 0 to 2 are expect",
        ),
        "moved": (values, labels, moved, "lies up to 3 mm beside its image"),
        "cut": (values, labels[1:], AFFINE, r"its image"),
        "soft": (values, (labels * 0.5).astype(np.float32), AFFINE, "has values 0.5: whole numbers"),
        "negative": (values, labels.astype(np.int16) - 1, AFFINE, "has values -1: whole numbers"),
        "air": (np.where(values > -500, -900, -1000).astype(np.float32), labels, AFFINE, "nothing above -175 HU"),
        "good": (values, labels, AFFINE, ""),
    }
    cases = [
        Case(write(tmp_path / f"{name}.nii", v), write(tmp_path / f"{name}_label.nii", mask, affine))
        for name, (v, mask, affine, _) in wrong.items()
    ]
    store = CaseStore(tmp_path / "cache", build_transform(FINE_TUNING, "4"))
    with pytest.raises(InputContractError, match="6 of 7 volumes cannot be used") as error:
        store.prepare(cases, 3, workers=1)
    lines = str(error.value).splitlines()[1:]
    assert len(lines) == 6
    wrong.pop("good")
    for line, (name, (*_, message)) in zip(lines, wrong.items(), strict=True):
        assert name in line
        assert message in line
    assert np.array_equal(store.open(cases[-1]).label, labels[2:-2, 2:-2, 1:-1])


def test_prepared_cases_are_kept_until_their_files_change(tmp_path):
    """The second time nothing is made; another spacing or a changed label is another case."""
    values, labels = volume(0)
    case = Case(write(tmp_path / "a.nii", values), write(tmp_path / "a_label.nii", labels))
    store = CaseStore(tmp_path / "cache", build_transform(FINE_TUNING, "4"))
    store.prepare([case], 3)
    times = {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").iterdir()}
    assert len(times) == 5
    store.prepare([case], 3)
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").iterdir()} == times
    CaseStore(tmp_path / "cache", build_transform(FINE_TUNING, "5")).prepare([case], 3)
    assert len(list((tmp_path / "cache").iterdir())) == 10
    write(tmp_path / "a_label.nii", np.where(labels == 2, 0, labels))
    os.utime(tmp_path / "a_label.nii", ns=(1, 1))
    store.prepare([case], 3)
    assert set(np.unique(store.open(case).label)) == {0, 1}
    with pytest.raises(InputContractError, match="has labels 1: 0 to 0"):
        store.prepare([case], 1)


def test_a_case_is_where_the_labels_are(stored):
    """Indices of foreground and background point at them, on the foreground's box."""
    case = stored["train"][1]
    assert case.image.dtype == np.float32
    assert case.image.shape == case.label.shape == (36, 32, 26)
    assert np.array_equal(np.flatnonzero(case.label), case.foreground)
    assert (case.image.ravel()[case.background] > 0).all()
    assert not case.label.ravel()[case.background].any()


def test_cases_without_foreground(stored, tmp_path, caplog):
    """Some are logged, and are cut beside all labels; where all are, there is nothing to train on or to judge."""
    values, labels = volume(9)
    case = Case(write(tmp_path / "a.nii", values), write(tmp_path / "a_label.nii", labels * 0))
    store = CaseStore(tmp_path / "cache", build_transform(FINE_TUNING, "4"))
    store.prepare([case], 3)
    empty = store.open(case)
    with caplog.at_level("WARNING", "zoo"):
        crops = Crops([empty, *stored["train"]], size=16)
    assert "1 of 4 labels are background alone" in caplog.text
    assert "a_label.nii" in caplog.text
    assert not crops[0, 0]["label"].any()
    for data in (lambda cases: Crops(cases, size=16), WholeVolumes):
        with pytest.raises(InputContractError, match=r"all 1 labels are background alone.*a_label.nii"):
            data([empty])


# Crops


def test_crops_follow_from_seed_pass_and_index(stored):
    """The same key gives the same crops; another seed, pass or volume gives others."""
    crops = Crops(stored["train"], size=16, seed=3)
    item = crops[2, 1]
    assert item["image"].shape == item["label"].shape == (4, 1, 16, 16, 16)
    assert (item["image"].dtype, item["label"].dtype) == (torch.float32, torch.uint8)
    assert torch.equal(item["image"], Crops(stored["train"], size=16, seed=3)[2, 1]["image"])
    others = (crops[1, 1], crops[2, 2], Crops(stored["train"], size=16, seed=4)[2, 1])
    assert not any(torch.equal(item["image"], other["image"]) for other in others)
    assert not torch.equal(item["image"][0], item["image"][1])


def test_half_of_the_crops_have_their_centre_on_a_label(stored):
    """Of 400; a centre near the border moves inwards with its crop, so the crop is small here."""
    rng = np.random.default_rng(0)
    on_label = [cut(stored["train"][1], 3, rng)[1][1, 1, 1] > 0 for _ in range(400)]
    assert 160 < sum(on_label) < 240  # four deviations of a fair coin


def test_a_volume_smaller_than_the_crop_is_padded(stored):
    """Of 36 x 20 x 26 voxels; the crop has all of two axes in its middle."""
    case = stored["train"][0]
    assert case.image.shape == (36, 20, 26)
    image, label = cut(case, SIZE, np.random.default_rng(0))
    assert image.shape == label.shape == (SIZE, SIZE, SIZE)
    inside = image[:, 6:26, 3:29]
    assert any(np.array_equal(inside, case.image[start : start + SIZE]) for start in range(5))
    assert image.sum() == pytest.approx(inside.sum())
    assert label[:, 6:26, 3:29].sum() == label.sum() > 0


@pytest.mark.slow
def test_changes_are_as_frequent_as_published():
    """Of 4000: a flip of an axis and a turn in one of ten, a shift in one of two, of up to a tenth."""
    shape = (2, 2, 2)
    image, label = np.arange(8, dtype=np.float32).reshape(shape), np.arange(8, dtype=np.uint8).reshape(shape)
    rng, seen, shifts = np.random.default_rng(0), Counter(), []
    for _ in range(4000):
        changed, marked = augment(image, label, rng)
        shift = (changed - marked).ravel()
        np.testing.assert_allclose(shift, shift[0], atol=1e-6)  # both were turned alike
        shifts.append(shift[0])
        seen["still"] += np.array_equal(marked, label)
    assert seen["still"] / 4000 == pytest.approx(0.9**4, abs=0.03)  # 0.6561, and 4 deviations of 0.0075
    moved = np.abs(shifts)[np.abs(shifts) > 1e-5]
    assert len(moved) / 4000 == pytest.approx(0.5, abs=0.04)
    assert moved.max() == pytest.approx(0.1, abs=1e-3)
    assert np.mean(moved) == pytest.approx(0.05, abs=0.005)


def test_turns_are_in_the_plane_of_the_first_two_axes(monkeypatch):
    """By 90, 180 and 270 degrees, without flips and shifts."""
    for name, value in (("FLIP", 0.0), ("TURN", 1.0), ("SHIFT", 0.0)):
        monkeypatch.setattr(f"zoo.entries.monai_ssl.finetune_data.{name}", value)
    image = np.arange(27, dtype=np.float32).reshape(3, 3, 3)
    rng, turned = np.random.default_rng(0), set()
    for _ in range(40):
        changed, _ = augment(image, image, rng)
        turned |= {k for k in range(4) if np.array_equal(changed, np.rot90(image, k, (0, 1)))}
    assert turned == {1, 2, 3}


# Loss and Dice


def test_the_loss_is_dice_plus_cross_entropy():
    """By hand: mean over crops and classes of 1 - (2 sum(py) + e) / (sum(p) + sum(y) + e), and -log p of the class."""
    torch.manual_seed(0)
    network = unetr(img_size=16, hidden_size=64, mlp_dim=64, feature_size=4, num_classes=3)
    method = Segmenter(network, 3, 16)
    batch = {"image": torch.rand(1, 2, 1, 16, 16, 16), "label": torch.randint(0, 2, (1, 2, 1, 16, 16, 16)).byte()}
    found = method(batch)["loss"]
    with torch.no_grad():
        p = network(batch["image"][0]).softmax(1)
    y = F.one_hot(batch["label"][0, :, 0].long(), 3).movedim(-1, 1).float()
    both, either = (p * y).sum((2, 3, 4)), (p + y).sum((2, 3, 4))
    dice = (1 - (2 * both + 1e-5) / (either + 1e-5)).mean()
    torch.testing.assert_close(found, dice - (p.log() * y).sum(1).mean(), atol=1e-5, rtol=1e-5)


def random_cases(count, classes=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    found, truth = (torch.randint(0, classes, (count, 5, 6, 7), generator=generator) for _ in range(2))
    truth[0][truth[0] == 2] = 0  # one case without a class that is found there
    return found, truth


def test_dice_is_that_of_monais_metric():
    """Per case and class, also where a class is absent; the mean over the cases is one mean at the end."""
    found, truth = random_cases(5)
    overlaps = torch.stack([count_overlap(f, t, 4) for f, t in zip(found, truth, strict=True)])
    for first, mean in ((0, mean_dice(dice_per_case(overlaps))), (1, mean_dice(dice_per_case(overlaps)[:, 1:]))):
        metric = DiceMetric(include_background=first == 0, reduction="mean")
        each = metric(one_hot(found[:, None], 4), one_hot(truth[:, None], 4))
        torch.testing.assert_close(dice_per_case(overlaps)[:, first:].float(), each, equal_nan=True)
        assert mean == pytest.approx(metric.aggregate().item(), abs=1e-6)
    metrics = dice_metrics(overlaps.flatten(1), ("background", "a", "b", "c"))
    assert metrics["dice"] == pytest.approx(mean)
    assert metrics["cases_with"] == {"a": 5, "b": 4, "c": 5}
    assert metrics["dice_per_case"] == pytest.approx(each.nanmean(1).tolist())
    assert metrics["dice_per_class"]["b"] == pytest.approx(each[1:, 1].mean().item())


def test_the_published_dice_weighs_cases_by_their_order():
    """Six cases: .408 .242 .158 .103 .061 .028; with the background, as the metric that is aggregated after each."""
    weights = [upstream_dice(torch.eye(6)[:, [i]]) for i in range(6)]
    assert weights == pytest.approx([0.408, 0.242, 0.158, 0.103, 0.061, 0.028], abs=5e-4)
    found, truth = random_cases(6)
    metric, running = DiceMetric(include_background=True, reduction="mean", get_not_nans=False), []
    for f, t in zip(found, truth, strict=True):
        metric(one_hot(f[None, None], 4), one_hot(t[None, None], 4))
        running.append(metric.aggregate().item())
    overlaps = torch.stack([count_overlap(f, t, 4).flatten() for f, t in zip(found, truth, strict=True)])
    upstream = dice_metrics(overlaps, ("background", "a", "b", "c"), upstream=True)
    assert upstream["dice"] == pytest.approx(np.mean(running), abs=1e-6)
    assert upstream["dice"] != dice_metrics(overlaps, ("background", "a", "b", "c"))["dice"]


def test_a_case_of_background_alone_has_no_dice():
    """It is None among the cases and in no mean; a class that no case has is None, too."""
    truth = torch.tensor([[0, 0, 0, 0], [1, 1, 0, 0]])
    found = torch.tensor([[1, 0, 0, 0], [1, 0, 0, 0]])
    overlaps = torch.stack([count_overlap(f, t, 3).flatten() for f, t in zip(found, truth, strict=True)])
    metrics = dice_metrics(overlaps, NAMES)
    assert metrics["dice"] == pytest.approx(2 / 3)
    assert metrics["dice_per_case"] == [None, pytest.approx(2 / 3)]
    assert metrics["dice_per_class"] == {"cube": pytest.approx(2 / 3), "slab": None}
