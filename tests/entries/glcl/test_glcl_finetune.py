"""GLCL's fine-tuning: losses, measures at the resolution of the scan, and the recipe end to end."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import math
from dataclasses import replace
from functools import partial

import gloo
import numpy as np
import pytest
import torch
from glcl_files import rebuild, reference, reference_slices, stage_two, write_bundle
from glcl_volumes import GRID, save, write_cohort, write_subject
from PIL import Image
from saved_runs import comes_from, copy_of, header_of, mark, without_header
from torch import nn
from torch.nn import functional as F

import zoo
from zoo.commands.importing import import_weights
from zoo.entries.glcl import finetune, segment
from zoo.entries.glcl.args import CohortArgs, set_momentum, warn_of_other_pixels
from zoo.entries.glcl.cases import CaseStore
from zoo.entries.glcl.cohort import DATASETS, find_cases
from zoo.entries.glcl.finetune import Args, choose_parts, reading_in, resolve
from zoo.entries.glcl.finetune_data import WholeVolumes
from zoo.entries.glcl.finetune_method import Segmenter, soft_dice, volume_metrics
from zoo.errors import InputContractError, OptionError
from zoo.training.args import parse_args
from zoo.training.data import to_device
from zoo.training.metrics import count_overlap, dice
from zoo.training.runlog import read_log

pytestmark = pytest.mark.usefixtures("one_thread", "undrawn")

UNET = "glcl-unet"
STRUCTURES = DATASETS["acdc"].structures


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Six labelled volumes and one without a mask."""
    root = write_cohort(tmp_path_factory.mktemp("cohort"), 6)
    write_subject(root, 7, masked=False)
    return root


def flags(cohort, out, *more):
    files = ["--data", cohort, "--cache", cohort / "cache", "--out", out]
    small = "--train 001,002 --val 003 --test 004-005 --epochs 1 --steps-per-epoch 2 --batch-size 4 --workers 0"
    return [*map(str, files), *GRID, *small.split(), "--device", "cpu", *map(str, more)]


def tune(cohort, out, *more):
    """The results, and what was printed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        results = finetune.main(flags(cohort, out, *more))
    return results, printed.getvalue()


@pytest.fixture(scope="module")
def run(cohort, tmp_path_factory):
    """The baseline, long enough to find the structures: the folder, the results, what was printed."""
    out = tmp_path_factory.mktemp("runs") / "first"
    long = "--epochs 3 --steps-per-epoch 12 --batch-size 6 --norm-momentum 0.1"
    return out, *tune(cohort, out, "--from-scratch", *long.split())


def last_state(out):
    return torch.load(out / "last.pt", weights_only=True)


# ----------------------------------------------------------------------------------------------------------- losses


class Fixed(nn.Module):
    """A network whose logits are given."""

    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, image):
        return self.logits


@pytest.fixture(scope="module")
def case():
    """Logits and soft labels (3, 4, 5, 6); the last slice has background alone."""
    rng = torch.Generator().manual_seed(0)
    labels = torch.randn(3, 4, 5, 6, generator=rng).softmax(1)
    labels[2] = F.one_hot(torch.zeros(5, 6, dtype=torch.long), 4).permute(2, 0, 1)
    return torch.randn(3, 4, 5, 6, generator=rng), labels


def loss_of(logits, label, loss="dice", **options):
    method = Segmenter(Fixed(logits), logits.shape[1], loss, **options)
    return method({"image": torch.zeros(len(logits), 1, 5, 6), "label": label})["loss"].item()


@pytest.mark.parametrize(("loss", "first"), [("dice", 0), ("dice-foreground", 1)])
def test_dice_is_the_mean_over_slices_and_classes(case, loss, first):
    """With one pixel added to both parts, or as the authors have it with 1e-10 below; against a plain loop."""
    logits, label = case
    p = logits.softmax(1)
    for upstream, above, below in ((False, 1.0, 1.0), (True, 0.0, 1e-10)):
        terms = [
            (2 * (p[i, c] * label[i, c]).sum() + above) / (p[i, c].sum() + label[i, c].sum() + below)
            for i in range(3)
            for c in range(first, 4)
        ]
        expected = 1 - sum(terms).item() / len(terms)
        assert loss_of(logits, label, loss, upstream=upstream) == pytest.approx(expected, abs=1e-6)


def test_a_class_that_a_slice_lacks_is_kept_from_being_found(case):
    """By a gradient that the authors' form does not have."""
    logits, label = case
    for upstream in (False, True):
        x = logits[2:].clone().requires_grad_(True)
        absent = soft_dice(x.softmax(1)[:, 1:], label[2:, 1:], upstream=upstream)
        (1 - absent.mean()).backward()
        assert bool(x.grad.abs().max() < 1e-12) == upstream


@pytest.mark.parametrize(
    ("classes", "weights"),
    [(2, [0.1, 0.9]), (3, [0.1, 0.45, 0.45]), (4, [0.1, 0.3, 0.3, 0.3]), (8, [0.09, *[0.13] * 7])],
)
def test_cross_entropy_is_weighted_by_class(classes, weights):
    """With the published weights, for soft labels."""
    rng = torch.Generator().manual_seed(1)
    logits, label = torch.randn(2, classes, 5, 6, generator=rng), torch.rand(2, classes, 5, 6, generator=rng).softmax(1)
    expected = -(torch.tensor(weights)[:, None, None] * label * logits.log_softmax(1)).sum(1).mean().item()
    assert loss_of(logits, label, "cross-entropy") == pytest.approx(expected, rel=1e-5)


def test_the_authors_loss_is_met(tmp_path):
    """Of their network on their slices, by TensorFlow: 1e-5, as float32 sums in another order differ."""
    network = zoo.load_model(UNET, checkpoint=rebuild(tmp_path))
    truth = np.random.default_rng(0).integers(0, 4, (2, 192, 192))
    label = F.one_hot(torch.from_numpy(truth), 4).permute(0, 3, 1, 2).float()
    method = Segmenter(network, 4, upstream=True).eval()
    with torch.no_grad():
        found = method({"image": reference_slices(), "label": label})["loss"].item()
    assert found == pytest.approx(float(reference("glcl_seg_0")["dice_loss_with_background"]), rel=1e-5)
    for file in tmp_path.iterdir():
        file.unlink()


def test_there_is_no_other_loss():
    """The message has those that there are."""
    with pytest.raises(OptionError, match="expected one of dice, dice-foreground, cross-entropy"):
        Segmenter(nn.Identity(), 4, "focal")


# --------------------------------------------------------------------------------------------------------- measures


class Oracle(nn.Module):
    """Logits of the labels that are written in the image, `certainty` apart."""

    def __init__(self, certainty=20.0):
        super().__init__()
        self.certainty = certainty

    def forward(self, image):
        return self.certainty * F.one_hot(image[:, 0].round().long(), 4).permute(0, 3, 1, 2).float()


@pytest.mark.parametrize("shape", [(40, 44, 9), (26, 57, 4), (33, 30, 23)])
def test_volumes_are_judged_at_their_own_resolution(tmp_path, shape):
    """Slices of 2 mm on a grid of 2.2 mm, cropped along one axis and padded along the other, 20 at a time.

    Perfect predictions on that grid lose no more than pixels at the borders, and what the crop cut off.
    """
    write_subject(tmp_path, 1, shape=shape)
    stored = CaseStore(tmp_path / "cache", DATASETS["acdc"], 32, 2.2).prepare(find_cases(tmp_path, DATASETS["acdc"]))
    item = WholeVolumes(stored)[0, 0]
    item["image"] = torch.from_numpy(stored[0].label[:, None].astype(np.float32))
    batch = {name: value[None] for name, value in item.items()}
    method = Segmenter(Oracle(), 4).eval()
    (found,) = method.segment(batch)
    assert found.shape == shape == item["truth"].shape
    kept = round(shape[1] * 2 / 2.2)
    margin = max(0, math.ceil((kept - 32) / 2 * 2.2 / 2)) + 1
    inner = slice(margin, shape[1] - margin)
    overlap = count_overlap(found[:, inner], item["truth"][:, inner], 4)
    assert dice(overlap, dim=0)[1:].min() > 0.87
    shifted = count_overlap(found.roll(1, 0)[:, inner], item["truth"][:, inner], 4)
    assert (dice(shifted, dim=0)[1:] < dice(overlap, dim=0)[1:]).all()
    assert torch.equal(method.measure(batch)[0], count_overlap(found, item["truth"], 4).flatten())


def test_probabilities_are_compared_after_they_are_resized(tmp_path):
    """A border between two pixels of the grid falls where their probabilities are equal, not at a pixel's edge."""

    class Ramp(nn.Module):
        def forward(self, image):
            ramp = torch.tensor([1.0, 3.0]).repeat_interleave(16)[None, None, :, None].expand(len(image), 1, 32, 32)
            return torch.cat([torch.full_like(ramp, 2.5), ramp, ramp - 9, ramp - 9], 1)

    batch = {
        "image": torch.zeros(1, 2, 1, 32, 32),
        "truth": torch.zeros(1, 320, 32, 2, dtype=torch.uint8),
        "resampled": torch.tensor([[32, 32]]),
    }
    (found,) = Segmenter(Ramp(), 4).segment(batch)
    first = int((found[:, 0, 0] == 1).nonzero()[0])
    p = torch.tensor([[2.5, 1.0], [2.5, 3.0]]).softmax(1)
    share = (p[0, 0] - p[0, 1]) / (p[0, 0] - p[0, 1] + p[1, 1] - p[1, 0])
    assert first == math.ceil((15.5 + share) * 10 - 0.5)
    assert first != 160


def test_structures_that_are_missing_have_no_value():
    """On both sides: None, and out of the means. On one: a Dice of 0 and no distance."""
    counts = torch.tensor([[[90.0, 4, 0, 0], [95, 5, 0, 7], [95, 5, 0, 0]], [[80, 5, 5, 5]] * 3], dtype=torch.float64)
    distances = torch.tensor([[1.0, math.nan, math.nan, 2, math.nan, math.nan], [3, 3, 3, 4, 4, 4]])
    rows = torch.cat([counts.flatten(1), distances.double()], 1)
    results = volume_metrics(rows, STRUCTURES, ("001", "002"))
    first = results["cases"]["001"]
    assert first["right ventricle"] == {"dice": 0.8, "hausdorff95": 1.0, "hausdorff": 2.0}
    assert first["myocardium"] == {"dice": None, "hausdorff95": None, "hausdorff": None}
    assert first["left ventricle"] == {"dice": 0.0, "hausdorff95": None, "hausdorff": None}
    assert results["dice"] == pytest.approx(((0.8 + 0) / 2 + 1) / 2)
    assert results["dice_per_structure"] == pytest.approx(dict(zip(STRUCTURES, (0.9, 1.0, 0.5), strict=True)))
    assert results["hausdorff95_per_structure"] == dict(zip(STRUCTURES, (2.0, 3.0, 3.0), strict=True))
    short = volume_metrics(rows[:, :12], STRUCTURES, ("001", "002"))
    assert short["dice"] == results["dice"]
    assert short["cases"]["002"]["myocardium"] == {"dice": 1.0}
    assert json.loads(json.dumps(results)) == results


# ----------------------------------------------------------------------------------------------------------- recipe


@pytest.mark.slow
def test_the_baseline_learns(run):
    """From two volumes; the best epoch by validation Dice is the one that is tested."""
    out, results, printed = run
    lines = read_log(out / "log.jsonl")
    assert len(lines) == 3
    assert lines[-1]["loss"] < 0.7 * lines[0]["loss"]
    assert results["best"]["val_dice"] == max(line["val_dice"] for line in lines)
    assert results["test"]["dice"] > 0.3
    stored = json.loads((out / "results.json").read_text())
    assert stored == json.loads(json.dumps(results))
    assert f"dice {results['test']['dice']:.4g}" in printed
    assert len(printed.splitlines()) < 6
    assert results["volumes"] == {"train": ["001", "002"], "val": ["003"], "test": ["004", "005"]}
    assert set(results["test"]["cases"]) == {"004", "005"}
    for structures in results["test"]["cases"].values():
        assert set(structures) == set(STRUCTURES)
        assert all(set(values) == {"dice", "hausdorff95", "hausdorff"} for values in structures.values())
    assert (results["model"], results["source"]) == (UNET, "random")
    assert results["arguments"]["steps_per_epoch"] == 12


@pytest.mark.slow
def test_the_picture_shows_a_slice_of_a_test_volume(run):
    """Beside its truth."""
    with Image.open(run[0] / "prediction.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert min(pixels.shape[:2]) > 300
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20


@pytest.mark.slow
def test_the_tested_network_can_be_loaded(run, cohort):
    """`best.pt` through the zoo gives the numbers of `results.json`."""
    out, results, _ = run
    network = zoo.load_model(UNET, checkpoint=out / "best.pt")
    store = CaseStore(cohort / "cache", DATASETS["acdc"], 32, 2.5)
    cases = [case for case in find_cases(cohort, DATASETS["acdc"]) if case.name in ("004", "005")]
    items = [WholeVolumes(store.prepare(cases))[0, i] for i in range(2)]
    method = Segmenter(network, 4).eval()
    with torch.no_grad():
        rows = torch.cat([method.measure_surfaces({k: v[None] for k, v in item.items()}) for item in items])
    again = volume_metrics(rows, STRUCTURES, ("004", "005"))
    assert again == results["test"]


@pytest.mark.slow
def test_the_exported_network_brings_its_pixels(run):
    """`zoo import` of the file that the run ends with: the best network under a name, whose transform fits it."""
    out, _, _ = run
    file = out / f"{UNET}.first.safetensors"
    import_weights(f"{UNET}.first", file)
    found = zoo.load_transform(f"{UNET}.first").preprocessing
    assert (found.size, found.spacing) == ((32, 32), (2.5, 2.5))
    one, two = (zoo.load_model(UNET, checkpoint=path).state_dict() for path in (file, out / "best.pt"))
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    three = zoo.load_model(f"{UNET}.first", offline=True).state_dict()
    assert all(torch.equal(value, three[name]) for name, value in one.items())


@pytest.mark.slow
def test_the_best_epoch_is_exported_and_all_files_say_the_same(run, cohort, tmp_path):
    """Not the last one; the header has pixels and structures, and `load_transform` obeys that of `best.pt`, too."""
    out = copy_of(run[0], tmp_path / "run")
    mark(out / "best.pt")
    long = "--epochs 3 --steps-per-epoch 12 --batch-size 6 --norm-momentum 0.1 --from-scratch --resume"
    tune(cohort, out, *long.split())
    file = out / f"{UNET}.{out.name}.safetensors"
    assert comes_from(file, out / "best.pt", "network.")
    assert not comes_from(file, out / "last.pt", "network.")
    for saved in (run[0] / "best.pt", run[0] / "last.pt", file):
        said = header_of(saved)
        assert (said["model"], said["task"]) == (UNET, "segment")
        assert said["classes"] == ["background", *STRUCTURES]
        assert (said["recipe"], said["base"]) == ("zoo.entries.glcl.finetune", {"model": UNET, "source": "random"})
        for name in (UNET, "glcl-encoder"):
            found = zoo.load_transform(name, checkpoint=saved).preprocessing
            assert (found.size, found.spacing) == ((32, 32), (2.5, 2.5))


def test_what_volumes_are_put_through_goes_into_the_header():
    """N4, and the channel of data sets whose files have several: no input contract says it."""
    assert reading_in(Args(data="hearts", out="run")) == {}
    assert reading_in(Args(data="hearts", out="run", n4=True)) == {"n4": True}
    assert reading_in(Args(data="glands", out="run", dataset="prostate")) == {"channel": 0}


@pytest.mark.slow
def test_a_file_without_a_header_is_warned_of(run, tmp_path, caplog):
    """As earlier versions wrote `best.pt`: its pixels are not known."""
    old = without_header(run[0] / "best.pt", tmp_path / "best.pt")
    assert zoo.load_transform(UNET, checkpoint=old) == zoo.load_transform(UNET, checkpoint=None)
    assert f"{old} was saved by a run that did not note its input" in caplog.text


@pytest.mark.slow
def test_volumes_are_segmented_as_they_were_judged(run, cohort, tmp_path):
    """By the command that the run ends with: labels in files have the Dice of `results.json`, to the voxel."""
    out, results, _ = run
    file = out / f"{UNET}.first.safetensors"
    assert str(file) in finetune.next_steps(file)
    cases = [case for case in find_cases(cohort, DATASETS["acdc"]) if case.name in ("004", "005")]
    images = [str(case.image) for case in cases]
    files = segment.main(["--image", *images, "--checkpoint", str(file), "--out", str(tmp_path), "--device", "cpu"])
    answers = zoo.load_predictor(file, device="cpu")(images)
    for answer, labels in zip(answers, files, strict=True):
        assert answer["classes"] == ["background", *STRUCTURES]
        assert np.array_equal(answer["labels"], np.asarray(_load(labels)))
    for case, labels in zip(cases, files, strict=True):
        found, truth = (torch.from_numpy(np.asarray(_load(path))) for path in (labels, case.mask))
        expected = dice(count_overlap(found, truth, 4), dim=0)[1:].tolist()
        assert expected == [values["dice"] for values in results["test"]["cases"][case.name].values()]


@pytest.mark.slow
def test_other_pixels_than_those_of_the_start_are_warned_of(run, cohort, decoder_file, tmp_path, caplog):
    """Where they are on record: in the header of a file, or by a tag; a bundle says nothing of them."""
    volumes, ours = CohortArgs(data="", out="").volumes, run[0] / f"{UNET}.first.safetensors"
    starts = ((UNET, str(ours), "2.5 x 2.5"), (f"{UNET}.mmwhs", str(decoder_file), "1.5 x 1.5"))
    for model, file, pixels in starts:
        caplog.clear()
        warn_of_other_pixels(model, file, volumes)
        assert f"{file} was trained on pixels of {pixels} mm, but those of this run have 1.36719 mm" in caplog.text
    caplog.clear()
    warn_of_other_pixels(UNET, str(ours), replace(volumes, spacing=2.5))
    warn_of_other_pixels(UNET, str(decoder_file), replace(volumes, spacing=2.5))
    warn_of_other_pixels(f"{UNET}.acdc", "", replace(volumes, spacing=1.37))
    assert not caplog.text
    tune(cohort, tmp_path / "run", "--checkpoint", ours, "--spacing", "2", "--test", "", "--steps-per-epoch", "1")
    assert "Give --spacing 2.5, unless that is intended" in caplog.text


@pytest.fixture(scope="module")
def decoder_file(scratch):
    """The authors' stage 2 with two blocks."""
    return write_bundle(scratch / "train_decoder_wgts_acdc_epochs_10000.ckpt", stage_two(2))


@pytest.mark.slow
def test_any_file_of_the_family_is_a_start(run, cohort, decoder_file, tmp_path):
    """The authors' stage 2, and a whole U-Net of ours; its name stands in the results."""
    for file in (decoder_file, run[0] / "best.pt"):
        results, _ = tune(cohort, tmp_path / file.name, "--checkpoint", file, "--test", "", "--lr", "1e-9")
        assert results["source"] == str(file)
        assert "test" not in results
        assert not (tmp_path / file.name / "prediction.png").exists()
        after = last_state(tmp_path / file.name)["model"]
        before = zoo.load_model(UNET, checkpoint=file, num_classes=4).state_dict()
        for name in ("enc_c4_a.weight", "dec_dc5.weight"):
            assert torch.allclose(after[f"network.{name}"], before[name], atol=1e-7)


@pytest.mark.slow
def test_averages_are_taken_over_or_forgotten(run, cohort, tmp_path):
    """After one step with momentum .01 they are near those of the file, or near those of a new network."""
    file, name = run[0] / "best.pt", "enc_c3_a_bn.running_var"
    trained = zoo.load_model(UNET, checkpoint=file).state_dict()[name]
    new = torch.ones_like(trained)
    for more, start in (((), trained), (("--reset-averages",), new)):
        out = tmp_path / f"run{len(more)}"
        tune(cohort, out, "--checkpoint", file, "--test", "", "--steps-per-epoch", "1", *more)
        after = last_state(out)["model"][f"network.{name}"]
        assert (after - start).norm() < 0.1 * (trained - new).norm()


@pytest.mark.slow
def test_without_weights_the_run_is_the_baseline(cohort, tmp_path, caplog):
    """Which is logged; with the same seed it is the run of `--from-scratch`."""
    with caplog.at_level(logging.WARNING, "zoo"):
        tune(cohort, tmp_path / "silent", "--test", "")
    assert "starts from random weights" in caplog.text
    tune(cohort, tmp_path / "said", "--test", "", "--from-scratch")
    one, two = (last_state(tmp_path / name)["model"] for name in ("silent", "said"))
    assert all(torch.equal(value, two[name]) for name, value in one.items())


@pytest.mark.slow
def test_a_run_that_is_stopped_and_resumed_ends_with_the_same_weights(cohort, tmp_path):
    """With loader processes before and without after: bit for bit, and the same best epoch."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    settings = ("--from-scratch", "--test", "")
    first, _ = tune(cohort, whole, *settings, "--epochs", "2")
    tune(cohort, cut, *settings, "--workers", "1")
    assert last_state(cut)["epoch"] == 1
    second, _ = tune(cohort, cut, *settings, "--epochs", "2", "--resume")
    one, two = last_state(whole)["model"], last_state(cut)["model"]
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    assert first["best"] == second["best"]


@pytest.mark.slow
def test_two_processes_agree(cohort, tmp_path):
    """Each has half of a step and one test volume; both hold all results, which the first one writes."""
    out = tmp_path / "two"
    results = gloo.run(partial(_results, flags(cohort, out, "--from-scratch")), 2, tmp_path / "group")
    first, second = map(json.loads, results)
    assert set(first.pop("weights")) == {"best.pt", f"{UNET}.two.safetensors"}  # the first one's files
    assert first == second
    stored = json.loads((out / "results.json").read_text())
    assert stored["test"] == first["test"]
    assert set(stored["test"]["cases"]) == {"004", "005"}


def _results(argv):
    with contextlib.redirect_stdout(io.StringIO()):
        return json.dumps(finetune.main(argv))


def test_short_runs_are_warned_of_lagging_averages(cohort, caplog):
    """1 000 steps are enough for the published momentum, 100 for 0.1; both recipes set it on all norms."""
    for steps, momentum, is_short in ((999, 0.01, True), (1000, 0.01, False), (99, 0.1, True), (100, 0.1, False)):
        caplog.clear()
        parsed(cohort, "--steps-per-epoch", steps, "--norm-momentum", momentum)
        assert ("lag behind" in caplog.text) == is_short
    network = zoo.load_model(UNET, pretrained=False)
    assert {layer.momentum for layer in norms(network)} == {0.01}
    set_momentum(network, 0.1)
    assert {layer.momentum for layer in norms(network)} == {0.1}
    with pytest.raises(OptionError, match="--norm-momentum 0"):
        parsed(cohort, "--norm-momentum", "0")


def norms(network):
    return [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]


@pytest.mark.slow
def test_without_validation_the_loss_decides(cohort, tmp_path, caplog):
    """Which is logged."""
    with caplog.at_level(logging.WARNING, "zoo"):
        results, _ = tune(cohort, tmp_path / "run", "--from-scratch", "--val", "", "--labelled", "1")
    assert "nothing is validated" in caplog.text
    assert results["volumes"] == {"train": ["001"], "test": ["004", "005"]}
    assert "val_dice" not in results["best"]


@pytest.mark.slow
def test_patience_ends_a_run(cohort, tmp_path):
    """Where nothing improves, as a learning rate that is constant."""
    settings = ("--from-scratch", "--monitor", "lr", "--epochs", "9", "--patience", "1", "--test", "")
    tune(cohort, tmp_path / "run", *settings, "--steps-per-epoch", "1")
    assert len(read_log(tmp_path / "run" / "log.jsonl")) == 2


@pytest.mark.slow
def test_structures_of_your_own(cohort, tmp_path):
    """Volumes of a table with two structures."""
    rows = ["name,image,mask"]
    for number in (1, 2, 3):
        case = find_cases(cohort, DATASETS["acdc"])[number - 1]
        mask = tmp_path / f"mask{number}.nii.gz"
        values = np.minimum(np.asarray(_load(case.mask)), 2).astype(np.uint8)
        save(mask, values)
        rows.append(f"{'abc'[number - 1]},{case.image},{mask}")
    (tmp_path / "list.csv").write_text("\n".join(rows))
    parts = ("--train", "a", "--val", "b", "--test", "c", "--table", tmp_path / "list.csv", "--classes", "bar, disc")
    results, _ = tune(cohort, tmp_path / "run", "--from-scratch", *parts)
    assert set(results["test"]["cases"]["c"]) == {"bar", "disc"}
    assert zoo.load_model(UNET, checkpoint=tmp_path / "run" / "best.pt").num_classes == 3


def _load(path):
    import nibabel

    return nibabel.load(path).dataobj


def parsed(cohort, *more):
    return resolve(parse_args(Args, flags(cohort, "out", "--from-scratch", *more)))


def test_parts_must_be_apart(cohort):
    """A volume that trains does not judge; volumes must be there, and as many as are asked for."""
    assert [len(cases) for cases in choose_parts(parsed(cohort, "--labelled", "1")).values()] == [1, 1, 2]
    for more, words in (
        (("--val", "002,003"), "--train and --val both name 002"),
        (("--test", "all"), "--train and --test both name 001, 002"),
        (("--labelled", "3"), "--labelled 3"),
        (("--train", ""), "--train ''"),
        (("--train", "published"), "--train published: 1 of 1 volume"),
        (("--train", "published", "--split", "tr3-c1"), "no split 'tr3-c1'"),
    ):
        args = parsed(cohort, *more)
        if "1 of 1" in words:
            args = parsed(cohort, *more, "--split", "tr1-c2")
        with pytest.raises(OptionError, match=words):
            choose_parts(args)


def test_volumes_without_masks_are_refused(cohort, tmp_path):
    """Before the first step, by name."""
    with pytest.raises(InputContractError, match="1 of 2 volumes have no mask: 007"):
        tune(cohort, tmp_path / "run", "--from-scratch", "--train", "001,007")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--checkpoint", "file", "--from-scratch"], "exclude each other"),
        (["--model", "glcl-encoder"], "expected glcl-unet"),
        (["--deformed", "1.5"], "a share"),
        (["--steps-per-epoch", "0"], "at least 1"),
        (["--size", "48"], "multiple of 32"),
    ],
)
def test_wrong_arguments_are_refused(more, words):
    """With what was expected."""
    with pytest.raises(OptionError, match=words):
        parse_args(Args, ["--data", "acdc", "--out", "out", *more])


def test_structures_must_be_names():
    """Different ones, none empty."""
    for wrong in ("a,,b", "a,a"):
        with pytest.raises(OptionError, match="different names"):
            _ = CohortArgs(data="", out="", classes=wrong).volumes


def test_the_defaults_are_the_published_run():
    """10 000 steps of 20 slices, Adam at 1e-3, validation after every 50; `--upstream` is theirs in the rest."""
    args = resolve(parse_args(Args, ["--data", "acdc", "--out", "out", "--upstream"]))
    assert args.epochs * args.steps_per_epoch == 10000
    assert (args.steps_per_epoch, args.batch_size, args.optimizer, args.lr) == (50, 20, "adam", 1e-3)
    assert (args.loss, args.split, args.monitor) == ("dice", "tr1-c1", "+val_dice")
    assert args.upstream_loss
    assert args.reset_averages
    assert not args.intensity
    plain = resolve(parse_args(Args, ["--data", "acdc", "--out", "out"]))
    assert plain.intensity
    assert not plain.upstream_loss
    assert not plain.reset_averages


def test_methods_move_between_devices():
    """The weights of the classes go along, and are in no checkpoint."""
    method = Segmenter(nn.Conv2d(1, 4, 1), 4, "cross-entropy")
    assert to_device(method.weights, torch.device("cpu")).tolist() == pytest.approx([0.1, 0.3, 0.3, 0.3])
    assert "weights" in dict(method.named_buffers())
    assert "weights" not in method.state_dict()
