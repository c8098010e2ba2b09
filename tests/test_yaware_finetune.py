"""y-Aware's downstream task: small runs end to end, who is in which part, metrics by hand, bad input."""

import csv
import json
import shutil
from dataclasses import replace

import gloo
import numpy as np
import pytest
import torch
from torch import nn

import zoo
from zoo.checkpoint import export_safetensors
from zoo.entries.yaware.data import MODEL, read_cohort
from zoo.entries.yaware.finetune import Args, Task, check_steps, main, read_task
from zoo.entries.yaware.finetune_method import Classifier, class_metrics, probe, summarise
from zoo.entries.yaware.splits import class_codes, group_by_subject, make_splits, site_folds, stratified_folds
from zoo.errors import OptionError
from zoo.training.distributed import Processes

SIDE = 29  # the smallest the network takes: its last map is one voxel
COUNT = 24
CPU = Processes(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Noise with a bright block, larger in patients. Site c has seen patients alone; two volumes are of one subject."""
    root, rng = tmp_path_factory.mktemp("cohort"), np.random.default_rng(0)
    volumes = rng.uniform(0, 0.2, (COUNT, 1, SIDE, SIDE, SIDE)).astype(np.float32)
    lines = ["participant_id,session,group,site,subject"]
    for i in range(COUNT):
        is_patient = i % 2 == 1
        volumes[i, 0, 8:20, 8:20, 8 : 22 if is_patient else 14] += 0.8
        site = "c" if i in (1, 3) else "ab"[i // 12]
        lines.append(f"sub-{i:02},1,{'patient' if is_patient else 'control'},{site},s{max(i, 2)}")
    np.save(root / "maps.npy", volumes)
    (root / "table.csv").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture(scope="module")
def checkpoint(scratch):
    """A pre-trained file: the encoder with its projection head."""
    torch.manual_seed(3)
    file = scratch / "yaware.safetensors"
    export_safetensors(zoo.load_model(MODEL, pretrained=False, projection=True).state_dict(), file)
    return file


@pytest.fixture
def out(tmp_path):
    """Folder of a run, removed at once: its checkpoints are large."""
    yield tmp_path / "run"
    shutil.rmtree(tmp_path / "run", ignore_errors=True)


def command(folder, out, *flags):
    """Arguments of a short run."""
    given = ["--data", folder / "maps.npy", "--table", folder / "table.csv", "--label", "group", "--out", out]
    short = ["--device", "cpu", "--workers", "0", "--epochs", "1", "--steps-per-epoch", "1", "--folds", "2"]
    light = ["--batch-size", "4", "--optimizer", "sgd", "--momentum", "0"]  # nothing of the optimiser is saved
    return [str(word) for word in (*given, *short, *light, *flags)]


def arguments(folder, **changes):
    """The same as an object."""
    given = {"data": str(folder / "maps.npy"), "table": str(folder / "table.csv"), "label": "group", "out": ""}
    return Args(**(given | changes))


def read_csv(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# Whole runs


def test_fine_tuning_from_a_checkpoint(folder, checkpoint, out, capsys):
    """Weights are loaded, each fold is trained, validated, tested and saved; a resumed run repeats what is missing."""
    argv = command(folder, out, "--checkpoint", checkpoint, "--labelled", "8", "--val-share", "0.25", "--lr", "1e-9")
    results = main(argv)
    assert json.loads((out / "results.json").read_text()) == results
    assert json.loads(capsys.readouterr().out.partition("\n{\n")[2].join(["{", ""])) == results
    assert (results["classes"], results["skipped"]) == (["control", "patient"], {})
    assert [run["split"] for run in results["runs"]] == ["fold0-draw0", "fold1-draw0"]
    for run in results["runs"]:
        assert (run["source"], run["volumes"]) == (str(checkpoint), {"train": 6, "val": 2, "test": 12})
        assert {"loss", "val_loss", "val_auroc", "val_balanced_accuracy"} <= run["best"].keys()
    areas = [run["test"]["auroc"] for run in results["runs"]]
    assert results["auroc"]["mean"] == pytest.approx(np.mean(areas))
    assert results["auroc"]["std"] == pytest.approx(abs(areas[0] - areas[1]) / 2**0.5)

    tested = [read_csv(out / run["split"] / "predictions.csv") for run in results["runs"]]
    assert sorted(row["volume"] for rows in tested for row in rows) == [f"sub-{i:02}_1" for i in range(COUNT)]
    start = zoo.load_model(MODEL, checkpoint=checkpoint).state_dict()
    tuned = zoo.load_model(MODEL, checkpoint=out / "fold0-draw0" / "best.pt")
    for name in ("features.conv0.weight", "features.denseblock4.denselayer16.layers.conv2.weight"):
        # one step of 1e-9 times a gradient, which is well below 100
        torch.testing.assert_close(tuned.state_dict()[name], start[name], atol=1e-6, rtol=0)
    cohort, row = read_cohort(str(folder / "maps.npy"), str(folder / "table.csv")), tested[0][0]
    volume = torch.from_numpy(cohort.volume(cohort.names.index(row["volume"])))
    with torch.no_grad():
        expected = tuned(volume[None]).softmax(1)[0].tolist()
    stored = [float(row[f"{name}_probability"]) for name in ("control", "patient")]
    assert stored == pytest.approx(expected, abs=2e-6)  # six digits are written

    (out / "fold1-draw0" / "results.json").unlink()
    (out / "fold0-draw0" / "last.pt").unlink()  # a finished fold needs none of its files
    again = main([*argv, "--resume"])
    assert again["runs"] == results["runs"]
    assert not (out / "fold0-draw0" / "last.pt").exists()
    with pytest.raises(OptionError, match=r"run; give --resume"):
        main(argv)
    with pytest.raises(OptionError, match=r"other arguments \(labelled 8, now 10\)"):
        main([*argv, "--resume", "--labelled", "10"])


def test_leaving_sites_out_from_scratch(folder, out, caplog):
    """The site of patients alone is trained on, not tested, and named; the last epoch is judged."""
    results = main(command(folder, out, "--from-scratch", "--splits", "leave-site-out"))
    assert results["skipped"].keys() == {"c"}
    assert "site c is not tested" in caplog.text
    assert [(run["split"], run["source"]) for run in results["runs"]] == [("site0-a", "random"), ("site1-b", "random")]
    assert [run["volumes"] for run in results["runs"]] == [
        {"train": 14, "val": 0, "test": 10},
        {"train": 12, "val": 0, "test": 12},
    ]
    for run in results["runs"]:
        last = torch.load(out / run["split"] / "last.pt", weights_only=True)["model"]
        assert last["network.features.norm5.num_batches_tracked"] == 1
        assert np.isfinite(run["test"]["loss"])


@pytest.fixture(scope="module")
def frozen(folder, checkpoint, scratch):
    """A linear probe's results, and its folder."""
    out = scratch / "frozen"
    flags = ("--checkpoint", checkpoint, "--freeze", "--labelled", "8", "--repeats", "2")
    return main(command(folder, out, *flags)), out, flags


def test_frozen_features_are_probed(frozen):
    """The block's size is in the features of any network; nothing is trained, and no weights are written."""
    results, out, _ = frozen
    assert [run["split"] for run in results["runs"]] == [f"fold{f}-draw{d}" for f in (0, 1) for d in (0, 1)]
    assert all(run["volumes"] == {"train": 8, "val": 0, "test": 12} for run in results["runs"])
    assert results["auroc"]["mean"] > 0.95
    assert not list(out.rglob("*.pt"))
    rows = read_csv(out / "fold0-draw0" / "predictions.csv")
    pairs = [
        float(p["patient_probability"]) > float(c["patient_probability"])
        for p in rows
        for c in rows
        if (p["label"], c["label"]) == ("patient", "control")
    ]
    assert results["runs"][0]["test"]["auroc"] == pytest.approx(np.mean(pairs))


def test_two_processes_find_the_same(folder, frozen, tmp_path):
    """Each computes half of the features; one writes."""
    results, _, flags = frozen
    argv = command(folder, tmp_path / "run", *flags)
    first, second = gloo.run(lambda: [run["test"] for run in main(argv)["runs"]], 2, tmp_path)
    assert first == second
    for run, single in zip(first, results["runs"], strict=True):
        assert run == pytest.approx(single["test"], rel=1e-3)  # convolutions of other batches differ in the last bits
    assert (tmp_path / "run" / "results.json").is_file()
    assert len(list(tmp_path.glob("run/*/predictions.csv"))) == len(results["runs"])


# Arguments


def test_defaults_are_the_published_run():
    """Adam at 1e-4 with coupled decay of 5e-5, batch 8, 100 epochs at a constant rate, five folds."""
    args = Args(data="d", table="t", label="l", out="o")
    assert (args.optimizer, args.lr, args.weight_decay, args.batch_size) == ("adam", 1e-4, 5e-5, 8)
    assert (args.epochs, args.schedule, args.warmup_epochs, args.patience) == (100, "constant", 0, 0)
    assert (args.folds, args.splits, args.val_share, args.freeze, args.model) == (5, "stratified", 0.0, False, MODEL)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model", "caid-resnet50"], f"starts from {MODEL}"),
        (["--checkpoint", "file", "--from-scratch"], "exclude each other"),
        (["--folds", "1"], "--folds 1 .*: expected at least 2"),
        (["--val-share", "1"], "from 0 to below 1"),
        (["--repeats", "2"], "give their number"),
        (["--freeze", "--val-share", "0.1"], "no epochs to choose among"),
        (["--label", "diagnosis"], "lacks columns diagnosis; it has participant_id, session, group, site, subject"),
        (["--label", "session"], "all 24 rows have the label '1': at least two classes"),
        (["--label", "participant_id"], "--folds 2: each class needs as many subjects, there are 1 of 'sub-00'.* ..."),
        (["--folds", "13"], "there are 12 of 'control', 12 of 'patient'"),
        (["--labelled", "13"], "--labelled 13: fold0 has 12 subjects to train on"),
        (["--labelled", "3"], "cannot hold 2 of each class"),
        (["--labelled", "4", "--val-share", "0.9"], "fold0 has 2 subject.s. of a class to train on"),
        (["--batch-size", "13"], "fold0 has 12 volumes to train on, fewer than a step's --batch-size 13"),
        (["--batch-size", "1"], "one volume of .29, 29, 29. leaves one value"),
        (["--splits", "leave-site-out", "--site", "scanner"], "lacks columns scanner"),
        (["--splits", "leave-site-out", "--site", "session"], "leave-site-out needs two sites"),
        (["--splits", "leave-site-out", "--site", "group"], "one with more than one class; there are control, patient"),
        (["--subject", "Subject"], "lacks columns Subject"),
    ],
)
def test_what_cannot_be_trained_is_refused(folder, tmp_path, flags, message):
    """Before anything is loaded or written."""
    with pytest.raises(OptionError, match=message):
        main([*command(folder, tmp_path / "run"), *flags])
    assert not (tmp_path / "run").exists()


def test_one_volume_a_step_is_fine_where_the_last_map_is_larger(folder):
    """At 61 voxels it has two along an axis; below it is refused also where processes share a step."""
    task = read_task(arguments(folder))
    large = replace(task.cohort, shape=(61, 29, 29))
    check_steps(arguments(folder, batch_size=1), Task(large, task.codes, task.classes, task.splits, {}), CPU)
    check_steps(arguments(folder, batch_size=4), task, CPU)
    with pytest.raises(OptionError, match=r"--batch-size 4 on 2 process\(es\) in 2 part\(s\)"):
        check_steps(arguments(folder, batch_size=4, accumulate=2), task, Processes(0, 2, torch.device("cpu")))


def test_subjects_are_told_by_a_column(folder, tmp_path):
    """By default participant_id; a table without it has a subject in each row."""
    assert len(set(read_task(arguments(folder)).splits[0].test.tolist())) == 12 / 2.5 + 0.2
    merged = read_task(arguments(folder, subject="subject", folds=2))
    for split in merged.splits:
        assert len({0, 1, 2} & set(split.test.tolist())) in (0, 3)
    (tmp_path / "table.csv").write_text("group\n" + "a\nb\n" * 12)
    assert len(read_task(arguments(folder, table=str(tmp_path / "table.csv"))).splits) == 5


# Splits


def test_classes_are_sorted():
    """Numbers by their value, texts by the alphabet."""
    classes, codes = class_codes(["10", "2", "2.0", "10"])
    assert (classes, codes.tolist()) == (("2", "10"), [1, 0, 0, 1])
    classes, codes = class_codes(["b", "a", "10"])
    assert (classes, codes.tolist()) == (("10", "a", "b"), [2, 1, 0])


def cohort_of_sessions():
    """60 subjects in three classes, each with one to three volumes in any order, some at two sites."""
    rng = np.random.default_rng(1)
    names = rng.permutation(np.repeat(np.arange(60), rng.integers(1, 4, 60)))
    sites = np.where(rng.random(len(names)) < 0.1, "other", np.array(["x", "y"])[names % 2])
    return group_by_subject(names % 3, [f"s{n}" for n in names]), names, sites


@pytest.mark.parametrize(("labelled", "repeats", "val_share"), [(0, 1, 0.0), (0, 1, 0.25), (24, 3, 0.25), (12, 2, 0.0)])
def test_no_subject_is_in_two_parts(labelled, repeats, val_share):
    """Over all folds each volume is tested once; the number of labelled subjects is kept, each class has its share."""
    subjects, names, _ = cohort_of_sessions()
    folds = stratified_folds(subjects, 5, ("a", "b", "c"), seed=2)
    assert sorted(np.concatenate([test for _, test in folds]).tolist()) == list(range(len(names)))
    splits = make_splits(subjects, folds, labelled=labelled, repeats=repeats, val_share=val_share, seed=2)
    assert len(splits) == 5 * repeats
    for split in splits:
        train, val, test = (set(names[rows].tolist()) for rows in (split.train, split.val, split.test))
        assert len(train | val | test) == len(train) + len(val) + len(test)
        assert len(train | val) == (labelled or 48)
        for part, share in ((train, 1 - val_share), (val, val_share)):
            counts = np.bincount([name % 3 for name in part], minlength=3)
            assert counts.tolist() == [round((labelled or 48) / 3 * share)] * 3
        rows = np.flatnonzero(np.isin(names, list(train)))
        assert split.train.tolist() == rows.tolist()  # all volumes of a subject


def test_splits_follow_from_the_seed():
    """The same seed gives the same, another one others; draws of one fold differ."""
    subjects, _, _ = cohort_of_sessions()

    def drawn(seed):
        folds = stratified_folds(subjects, 5, ("a", "b", "c"), seed=seed)
        splits = make_splits(subjects, folds, labelled=24, repeats=2, val_share=0.25, seed=seed)
        return [tuple(rows.tolist()) for split in splits for rows in (split.train, split.val)]

    assert drawn(3) == drawn(3)
    assert len({*drawn(3), *drawn(4)}) == 40


def test_a_tested_site_is_unseen_and_so_are_its_subjects():
    """Whoever was also seen elsewhere is left out of training."""
    subjects, names, sites = cohort_of_sessions()
    folds, skipped = site_folds(subjects.codes, sites.tolist())
    assert ([name for name, _ in folds], skipped) == (["site0-other", "site1-x", "site2-y"], {})
    for split, site in zip(make_splits(subjects, folds), ("other", "x", "y"), strict=True):
        assert split.test.tolist() == np.flatnonzero(sites == site).tolist()
        assert site not in sites[split.train]
        assert not set(names[split.train]) & set(names[split.test])


def test_names_of_sites_become_folders():
    """Whatever they are called."""
    codes = np.array([0, 1] * 3)
    folds, _ = site_folds(codes, ["a/b", "a/b", "a b", "a b", "..", ".."])
    assert [name for name, _ in folds] == ["site0-..", "site1-a_b", "site2-a_b"]


# Method and metrics


def test_the_loss_is_the_cross_entropy_of_integer_classes():
    """By hand, from logits; probabilities are in float64."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(8, 3))
    batch = {"image": torch.rand(4, 1, 2, 2, 2), "label": torch.tensor([0, 2, 1, 2])}
    method = Classifier(network)
    logits = network(batch["image"]).double()
    expected = (logits.logsumexp(1) - logits[range(4), batch["label"]]).mean()
    assert method(batch)["loss"].item() == pytest.approx(expected.item(), rel=1e-6)
    probabilities = method.probabilities(batch)
    assert probabilities.dtype == torch.float64
    torch.testing.assert_close(probabilities, logits.exp() / logits.exp().sum(1, keepdim=True))


def test_metrics_by_hand():
    """AUROC of the second of two classes; of more, the mean over those that are there."""
    two = class_metrics(np.array([0, 0, 1, 1]), np.array([[0.9, 0.1], [0.4, 0.6], [0.5, 0.5], [0.2, 0.8]]))
    assert two["auroc"] == 3 / 4
    assert two["balanced_accuracy"] == (1 / 2 + 1 / 2) / 2
    assert two["loss"] == pytest.approx(-np.log([0.9, 0.4, 0.5, 0.8]).mean())
    scores = np.array([[0.5, 0.3, 0.2], [0.6, 0.3, 0.1], [0.2, 0.4, 0.4]])
    three = class_metrics(np.array([0, 1, 1]), scores)
    assert three["auroc"] == pytest.approx((1 / 2 + 3 / 4) / 2)  # 0.3 against 0.3 is half a pair
    assert three["balanced_accuracy"] == (1 + 1 / 2) / 2


def test_runs_are_summarised_with_their_spread():
    """The deviation is the sample's; one run has none."""
    runs = [{"test": {"auroc": area}} for area in (0.6, 0.8)]
    assert summarise(runs)["auroc"] == {"mean": pytest.approx(0.7), "std": pytest.approx(0.02**0.5)}
    assert summarise(runs[:1])["auroc"] == {"mean": 0.6, "std": None}


@pytest.mark.parametrize("count", [2, 3])
def test_a_probe_gives_probabilities(count):
    """Rows sum to 1; classes that lie apart are recognised."""
    rng = np.random.default_rng(0)
    codes = np.arange(60) % count
    features = rng.normal(size=(60, 20)) + 4 * np.eye(count, 20)[codes]
    scores = probe(features[:30], codes[:30], features[30:], seed=0)
    np.testing.assert_allclose(scores.sum(1), 1)
    assert class_metrics(codes[30:], scores)["auroc"] > 0.95
    with pytest.raises(OptionError, match="at least 2 labels of each class"):
        probe(features[:4], np.array([0, 0, 0, 1]), features[30:], seed=0)
