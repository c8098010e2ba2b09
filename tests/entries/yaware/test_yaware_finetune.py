"""y-Aware's downstream task: small runs end to end, who is in which part, metrics by hand, bad input."""

import csv
import json
import shutil
from dataclasses import replace

import gloo
import nibabel
import numpy as np
import pytest
import torch
from saved_runs import header_of
from sklearn.metrics import roc_auc_score
from torch import nn

import zoo
from zoo.checkpoint.export import export_safetensors
from zoo.entries.yaware import MODEL
from zoo.entries.yaware.args import Args
from zoo.entries.yaware.cohort import read_cohort
from zoo.entries.yaware.finetune import main
from zoo.entries.yaware.finetune_data import LabelledVolumes
from zoo.entries.yaware.finetune_method import (
    Classifier,
    class_metrics,
    probe,
    read_predictions,
    write_predictions,
)
from zoo.entries.yaware.splits import class_codes, group_by_subject, make_splits, site_folds, stratified_folds
from zoo.entries.yaware.task import begin_run, check_steps, read_task
from zoo.errors import OptionError
from zoo.fetching.cache import hash_file
from zoo.training.distributed import Processes
from zoo.training.finetune import starting_input, train_and_test

pytestmark = pytest.mark.usefixtures("one_thread", "short_yaware", "undrawn")

SIDE = 29  # the smallest the network takes: its last map is one voxel
COUNT = 24
CPU = Processes(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Noise with a bright block, larger in patients. Site c has seen patients alone; two volumes are of one subject."""
    root, rng = tmp_path_factory.mktemp("cohort"), np.random.default_rng(0)
    volumes = rng.uniform(0, 0.2, (COUNT, 1, SIDE, SIDE, SIDE)).astype(np.float32)
    lines = ["participant_id,session,group,site,subject,rare"]
    for i in range(COUNT):
        is_patient = i % 2 == 1
        volumes[i, 0, 8:20, 8:20, 8 : 22 if is_patient else 14] += 0.8
        site = "c" if i in (1, 3) else "ab"[i // 12]
        lines.append(f"sub-{i:02},1,{'patient' if is_patient else 'control'},{site},s{max(i, 2)},{i in (4, 6)}")
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


@pytest.mark.slow
def test_fine_tuning_from_a_checkpoint(folder, checkpoint, out, capsys):
    """Weights are loaded, each fold is trained, validated, tested and saved; a resumed run repeats what is missing."""
    argv = command(folder, out, "--checkpoint", checkpoint, "--labelled", "8", "--val-share", "0.25", "--lr", "1e-9")
    results = main(argv)
    assert json.loads((out / "results.json").read_text()) == results
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert lines[-1] == f"results: {out / 'results.json'}"
    assert f"auroc {results['auroc']['mean']:.4g}" in lines[0]
    assert "fold1-draw0, one of 2 runs: 6 volumes to train on, 12 to test on" in printed.err
    last = printed.err.splitlines()[-1]
    assert last == f"next: zoo.load_model({MODEL!r}, checkpoint={str(out / 'fold1-draw0' / 'best.pt')!r})"
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
    for name in ("features.conv0.weight", "features.denseblock4.denselayer2.layers.conv2.weight"):
        # one step of 1e-9 times a gradient, which is well below 100
        torch.testing.assert_close(tuned.state_dict()[name], start[name], atol=1e-6, rtol=0)
    cohort, row = read_cohort(str(folder / "maps.npy"), str(folder / "table.csv")), tested[0][0]
    volume = torch.from_numpy(cohort.volume(cohort.names.index(row["volume"])))
    with torch.no_grad():
        expected = tuned(volume[None]).softmax(1)[0].tolist()
    stored = [float(row[f"{name}_probability"]) for name in ("control", "patient")]
    assert stored == pytest.approx(expected, abs=2e-6)  # six digits are written

    for name in ("best.pt", "last.pt"):
        said = header_of(out / "fold0-draw0" / name)
        assert (said["model"], said["task"], said["classes"]) == (MODEL, "classify", ["control", "patient"])
        assert (said["base"]["source"], said["base"]["sha256"]) == (checkpoint.name, hash_file(checkpoint))
        assert "--label group" in said["command"]
        transform = zoo.load_transform(MODEL, checkpoint=out / "fold0-draw0" / name)
        assert (transform.preprocessing.size, transform.preprocessing.affine) == ((SIDE,) * 3, None)
        values = np.load(folder / "maps.npy")[cohort.names.index(row["volume"]), 0]
        torch.testing.assert_close(transform(values), volume)
        answer = zoo.load_predictor(out / "fold0-draw0" / name, device="cpu")(values)
        assert answer["probabilities"] == pytest.approx(
            dict(zip(("control", "patient"), stored, strict=True)), abs=2e-6
        )

    started = json.loads((out / "args.json").read_text())
    assert (started["start"], started["start_sha256"]) == ("checkpoint", hash_file(checkpoint))
    (out / "fold1-draw0" / "results.json").unlink()
    (out / "fold0-draw0" / "last.pt").unlink()  # a finished fold needs none of its files
    again = main([*argv, "--resume"])
    for run in (*again["runs"], *results["runs"]):
        assert run.pop("weights").keys() == {"best.pt"}  # that of fold1 is written again, and names --resume
    assert again["runs"] == results["runs"]
    assert not (out / "fold0-draw0" / "last.pt").exists()
    with pytest.raises(OptionError, match=r"run; give --resume"):
        main(argv)
    with pytest.raises(OptionError, match=r"other arguments \(labelled 8, now 10\)"):
        main([*argv, "--resume", "--labelled", "10"])


@pytest.mark.slow
def test_the_network_to_use_is_trained_on_all(folder, checkpoint, out, capsys):
    """On every volume, once the folds are done, also where they were done before; it is what the last line names."""
    argv = command(folder, out, "--checkpoint", checkpoint, "--lr", "1e-9")
    folds = main(argv)
    assert "final" not in folds
    argv += ["--final", "--resume"]
    results = main(argv)
    file = out / "final" / "last.pt"
    assert capsys.readouterr().err.splitlines()[-1] == f"next: zoo.load_model({MODEL!r}, checkpoint={str(file)!r})"
    assert results["final"]["volumes"] == {"train": COUNT, "val": 0, "test": 0}
    assert results["final"]["last"]["loss"] > 0
    assert "test" not in results["final"]
    assert results["runs"] == folds["runs"]
    assert results["auroc"] == folds["auroc"]
    assert json.loads((out / "results.json").read_text()) == results
    said = header_of(file)
    assert (said["classes"], said["base"]["source"]) == (["control", "patient"], checkpoint.name)
    assert zoo.load_model(MODEL, checkpoint=file).num_classes == 2
    assert main(argv) == results


def test_the_network_to_use_chooses_its_epoch_where_the_folds_do(folder):
    """A share of all subjects validates it; no subject is on both sides."""
    task = read_task(arguments(folder, val_share=0.25, folds=2, subject="subject", final=True))
    final, subjects = task.final, np.array(task.cohort.column("subject"))
    assert len(final.train) + len(final.val) == COUNT
    assert not set(subjects[final.train]) & set(subjects[final.val])
    assert (len(set(task.codes[final.val].tolist())), len(final.test)) == (2, 0)


@pytest.mark.slow
def test_leaving_sites_out_from_scratch(folder, out, caplog):
    """The site of patients alone has no AUROC and says so; its predictions are pooled. The last epoch is judged."""
    results = main(command(folder, out, "--from-scratch", "--splits", "leave-site-out"))
    assert results["skipped"].keys() == {"c"}
    assert "site c: all 2 volumes are of one class" in caplog.text
    assert [run["volumes"] for run in results["runs"]] == [
        {"train": 14, "val": 0, "test": 10},
        {"train": 12, "val": 0, "test": 12},
        {"train": 22, "val": 0, "test": 2},
    ]
    scores, labels = [], []
    for run, name in zip(results["runs"], ("site0-a", "site1-b", "site2-c"), strict=True):
        assert (run["split"], run["source"]) == (name, "random")
        last = torch.load(out / name / "last.pt", weights_only=True)["model"]
        assert last["network.features.norm5.num_batches_tracked"] == 1
        assert {"last", "test"} <= run.keys()
        assert "best" not in run
        rows = read_csv(out / name / "predictions.csv")
        scores += [float(row["patient_probability"]) for row in rows]
        labels += [row["label"] == "patient" for row in rows]
    assert results["runs"][2]["test"].keys() == {"loss"}
    areas = [run["test"]["auroc"] for run in results["runs"][:2]]
    assert results["auroc"]["mean"] == pytest.approx(np.mean(areas))
    assert results["loss"]["mean"] == pytest.approx(np.mean([run["test"]["loss"] for run in results["runs"]]))
    assert len(labels) == COUNT
    assert results["pooled"]["auroc"] == {"mean": pytest.approx(roc_auc_score(labels, scores)), "std": None}
    assert {"loss", "balanced_accuracy"} < results["pooled"].keys()


@pytest.fixture(scope="module")
def frozen(folder, checkpoint, scratch):
    """A linear probe's results, and its folder."""
    out = scratch / "frozen"
    flags = ("--checkpoint", checkpoint, "--freeze", "--labelled", "8", "--repeats", "2")
    return main(command(folder, out, *flags)), out, flags


@pytest.mark.slow
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


class Diverging(nn.Module):
    """Its loss grows with every step."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, batch):
        return {"loss": self.weight.square().sum() + 0 * batch["image"].sum()}


class Pair(torch.utils.data.Dataset):
    """Two samples."""

    def __len__(self):
        return 2

    def __getitem__(self, key):
        return {"image": torch.zeros(1)}


@pytest.mark.parametrize(("judged", "key", "epoch"), [("best.pt", "best", 1), ("last.pt", "last", 3), ("", "best", 1)])
def test_metrics_are_those_of_the_epoch_that_is_tested(tmp_path, judged, key, epoch):
    """The last epoch is not called the best where the loss grew; where a recipe says nothing, the best is tested."""
    args = arguments(tmp_path, out=str(tmp_path), epochs=3, batch_size=2, optimizer="sgd", lr=2.0, monitor="loss")
    args, method = replace(args, workers=0, weight_decay=0.0, schedule="constant"), Diverging()
    data = {"train": Pair(), "test": Pair()}
    chosen = {"judged": judged} if judged else {}
    results = train_and_test(method, data, lambda *_: {"weight": method.weight.item()}, args, CPU, header={}, **chosen)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert losses == sorted(losses)
    assert results.keys() == {key, "test"}
    assert results[key] == {"epoch": epoch, "loss": losses[epoch - 1], "lr": pytest.approx(2.0)}
    assert results["test"]["weight"] == pytest.approx(torch.load(tmp_path / f"{key}.pt")["model"]["weight"].item())


@pytest.mark.slow
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


@pytest.mark.slow
def test_two_processes_fine_tune_validate_and_test_as_one(folder, checkpoint, tmp_path):
    """Both return the same metrics, which are those of the file that was saved."""
    out = tmp_path / "run"
    argv = command(folder, out, "--checkpoint", checkpoint, "--val-share", "0.33", "--batch-size", "8", "--lr", "1e-3")
    first, second = gloo.run(lambda: main(argv)["runs"][0]["test"], 2, tmp_path)
    assert first == second
    assert json.loads((out / "fold0" / "results.json").read_text())["test"] == first
    task = read_task(arguments(folder, folds=2, val_share=0.33))
    tuned = zoo.load_model(MODEL, checkpoint=out / "fold0" / "best.pt")
    rows = task.splits[0].test
    with torch.no_grad():
        volumes = torch.from_numpy(np.stack([task.cohort.volume(i) for i in rows]))
        expected = tuned(volumes).double().softmax(1).numpy()
    codes, scores = read_predictions(out / "fold0" / "predictions.csv", task.classes)
    assert codes.tolist() == task.codes[rows].tolist()
    np.testing.assert_allclose(scores, expected, atol=1e-5)  # convolutions of other batches differ in the last bits
    assert first == pytest.approx(class_metrics(codes, scores), rel=1e-6)  # nine digits are written
    shutil.rmtree(out)


@pytest.fixture
def weights(folder, checkpoint, tmp_path, monkeypatch):
    """A manifest whose record of one's own weights says another grid than the published."""

    def write(**facts):
        record = {"tag": "mine", "models": [MODEL], "state": "hosted", "bytes": checkpoint.stat().st_size, **facts}
        record = {"sources": [f"file:{checkpoint}"], "sha256": hash_file(checkpoint), **record}
        (tmp_path / "manifest.json").write_text(json.dumps({"schema": 1, "weights": [record]}))
        monkeypatch.setenv("ZOO_MANIFEST", str(tmp_path / "manifest.json"))

    return write


def test_the_grid_of_the_weights_is_compared_with_that_of_the_volumes(folder, weights, checkpoint, caplog):
    """A warning where it differs, unless the weights are not those of the record; files are brought to it."""
    read_task(arguments(folder, from_scratch=True))
    read_task(arguments(folder, checkpoint=str(checkpoint)))
    assert "voxels" not in caplog.text
    read_task(arguments(folder))
    assert "have (29, 29, 29) voxels, but the weights were trained on (121, 145, 121)" in caplog.text
    caplog.clear()
    place = [[-6, 0, 0, 84], [0, 6, 0, -84], [0, 0, 6, -84], [0, 0, 0, 1]]
    weights(input={"size": [SIDE] * 3, "affine": place})
    read_task(arguments(folder, model=f"{MODEL}.mine"))
    assert "voxels" not in caplog.text


def test_what_was_imported_plays_no_part_beside_a_file_of_ones_own(folder, weights, checkpoint):
    """The plain name may stand for weights of another input; that of a named tag is taken."""
    weights(input={"size": [SIDE] * 3, "affine": None})
    assert starting_input(arguments(folder)).size == (SIDE,) * 3
    for own in ({"checkpoint": str(checkpoint)}, {"from_scratch": True}):
        assert starting_input(arguments(folder, **own)).size == (121, 145, 121)
        assert starting_input(arguments(folder, **own, model=f"{MODEL}.mine")).size == (SIDE,) * 3


def test_files_are_taken_on_the_grid_of_the_weights(folder, weights, tmp_path, caplog):
    """Brought there; or read as they are, with a warning where they are mirrored."""
    place = np.array([[-6.0, 0, 0, 84], [0, 6, 0, -84], [0, 0, 6, -84], [0, 0, 0, 1]])
    weights(input={"size": [SIDE] * 3, "affine": place.tolist()})
    (tmp_path / "maps").mkdir()
    volumes, mirrored = np.load(folder / "maps.npy"), place * [[-1], [1], [1], [1]]
    for i, volume in enumerate(volumes):
        image = nibabel.Nifti1Image(volume[0], mirrored)
        image.set_sform(mirrored, 4)
        nibabel.save(image, tmp_path / "maps" / f"mwp1sub-{i:02}_1.nii")
    given = {"data": str(tmp_path / "maps"), "model": f"{MODEL}.mine"}
    task = read_task(arguments(folder, **given))
    expected = read_task(arguments(folder)).cohort.volume(3)
    np.testing.assert_allclose(task.cohort.volume(3), expected[:, ::-1], atol=1e-5)
    caplog.clear()
    read_task(arguments(folder, **given, grid="any"))
    assert "axes RAS" in caplog.text
    assert "the brain is mirrored" in caplog.text


def test_a_run_begins_with_weights_that_are_noted(folder, weights, checkpoint, tmp_path):
    """By digest: on record, of the file that the record without one names, or of a checkpoint, which may change."""
    noted = tmp_path / "run" / "args.json"
    for digest in (hash_file(checkpoint), None):
        weights(sha256=digest)
        begin_run(arguments(folder, out=str(noted.parent), model=f"{MODEL}.mine"), CPU)
        started = json.loads(noted.read_text())
        assert (started["start"], started["start_sha256"]) == (f"{MODEL}.mine", hash_file(checkpoint))
    (tmp_path / "own.pt").write_bytes(b"one")
    own = arguments(folder, out=str(noted.parent), checkpoint=str(tmp_path / "own.pt"), resume=True)
    begin_run(own, CPU)
    (noted.parent / "fold0").mkdir()
    (noted.parent / "fold0" / "results.json").write_text("{}")
    begin_run(own, CPU)
    (tmp_path / "own.pt").write_bytes(b"another")
    with pytest.raises(OptionError, match=r"other arguments \(start_sha256 '.{64}', now '.{64}'\)"):
        begin_run(own, CPU)
    with pytest.raises(OptionError, match="there is no such file"):
        begin_run(replace(own, checkpoint="absent.pt"), CPU)


def test_the_arguments_of_another_recipe_are_kept(folder, tmp_path):
    """A folder where pre-training ran is not written to, also with --resume."""
    before = json.dumps({"data": "x", "label": "age"})
    (tmp_path / "args.json").write_text(before)
    for resume in (False, True):
        with pytest.raises(OptionError, match=r"args.json is not of a run of zoo.entries.yaware.finetune"):
            begin_run(arguments(folder, out=str(tmp_path), from_scratch=True, resume=resume), CPU)
    assert (tmp_path / "args.json").read_text() == before


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
        (["--folds", "1"], "--folds 1 .*: at least 2"),
        (["--val-share", "1"], "from 0 to below 1"),
        (["--repeats", "2"], "give --labelled"),
        (["--freeze", "--val-share", "0.1"], "no epochs to choose among"),
        (["--final", "--freeze"], "--final with --freeze: every layer"),
        (["--final", "--labelled", "8"], "--final with --labelled: every layer"),
        (["--patience", "3"], "without --val-share nothing is validated"),
        (["--monitor", "+val_auroc"], r"--monitor \+val_auroc --patience 0: without --val-share"),
        (["--freeze", "--monitor", "loss"], "without --val-share"),
        (
            ["--label", "diagnosis"],
            "--label diagnosis: .* lacks columns diagnosis; it has participant_id, session, group",
        ),
        (["--label", "session"], "--label session: all 24 rows have the label '1': at least two classes"),
        (
            ["--label", "participant_id"],
            "--folds 2: each class needs as many subjects, but there are 1 of 'sub-00'.* ...",
        ),
        (["--folds", "13"], "there are 12 of 'control', 12 of 'patient'"),
        (["--labelled", "13"], "--labelled 13: fold0 has 12 subjects to train on"),
        (["--labelled", "3"], "--labelled 3: fold0: 3 of 12 labels cannot hold 2 of each class"),
        (["--freeze", "--rows", "site=a", "--subject", "", "--folds", "2", "--label", "rare"], "fold. has 1 volume"),
        (["--labelled", "4", "--val-share", "0.9"], "fold0 has 2 subject.s. of a class to train on"),
        (["--batch-size", "13"], "fold0 has 12 volumes to train on, fewer than a step's --batch-size 13"),
        (["--batch-size", "1"], "one volume of .29, 29, 29. leaves one value"),
        (["--splits", "leave-site-out", "--site", "scanner"], "lacks columns scanner"),
        (["--splits", "leave-site-out", "--site", "session"], "leave-site-out needs at least two sites"),
        (["--splits", "leave-site-out", "--site", "group"], "site0-control: without its test rows no subject of 1 cl"),
        (["--labelled", "12", "--repeats", "2"], "all draws of fold0 would be the same"),
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
    check_steps(arguments(folder, batch_size=1), replace(task, cohort=large), CPU)
    check_steps(arguments(folder, batch_size=4), task, CPU)
    with pytest.raises(OptionError, match=r"--batch-size 4 on 2 process\(es\) in 2 part\(s\)"):
        check_steps(arguments(folder, batch_size=4, accumulate=2), task, Processes(0, 2, torch.device("cpu")))


def test_subjects_are_told_by_a_column(folder, tmp_path):
    """By default participant_id; a table without it has a subject in each row."""
    assert len(set(read_task(arguments(folder)).splits[0].test.tolist())) == 5
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
    alone = class_metrics(np.array([1, 1]), np.array([[0.9, 0.1], [0.4, 0.6]]))
    assert alone == {"loss": pytest.approx(-np.log([0.1, 0.6]).mean())}
    with pytest.raises(FloatingPointError, match="gives NaN, not probabilities, for 1 of 2 volumes"):
        class_metrics(np.array([0, 1]), np.array([[0.9, 0.1], [np.nan, np.nan]]))


def test_predictions_are_read_as_they_were_written(folder, tmp_path):
    """Next to 0 they keep their order; a file that is gone is named."""
    cohort, classes = read_task(arguments(folder)).cohort.take([0, 1, 2]), ("control", "patient")
    scores = np.array([[1 - p, p] for p in (1e-9, 3e-8, 2 / 3)])
    written = LabelledVolumes(cohort, np.array([0, 1, 0]))
    write_predictions(tmp_path / "predictions.csv", written, classes, scores)
    codes, found = read_predictions(tmp_path / "predictions.csv", classes)
    assert codes.tolist() == [0, 1, 0]
    np.testing.assert_allclose(found, scores, rtol=1e-8)
    with pytest.raises(OptionError, match=r"gone.csv of a finished run is missing"):
        read_predictions(tmp_path / "gone.csv", classes)


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
