"""GLCL's pre-training end to end: volumes go in, an encoder and then a decoder come out."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import io
import json
import math
import os
import signal

import forked
import gloo
import numpy as np
import pytest
import torch
from glcl_files import filled, write_bundle
from glcl_volumes import GRID, save, write_cohort, write_subject
from published import check_record
from safetensors.torch import load_file
from saved_runs import are_equal, begun, comes_from, copy_of, header_of, mark
from small_networks import build_small

import zoo
from zoo.entries.glcl import pretrain
from zoo.entries.glcl.args import all_cases
from zoo.entries.glcl.batches import global_rows
from zoo.entries.glcl.method import GlobalMethod
from zoo.entries.glcl.model import GLCLDecoder
from zoo.entries.glcl.pretrain import Args, build_batches, build_method, calls_of, copies_of, resolve, start
from zoo.errors import CheckpointMismatchError, InputContractError, OptionError
from zoo.fetching.cache import hash_file
from zoo.training.args import facts_of_args, parse_args, run_command
from zoo.training.runlog import read_log

pytestmark = pytest.mark.usefixtures("one_thread", "undrawn")

ENCODER, UNET = "glcl-encoder", "glcl-unet"


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Six volumes, one of which has no mask."""
    root = write_cohort(tmp_path_factory.mktemp("cohort"), 5)
    write_subject(root, 6, masked=False)
    return root


def flags(cohort, out, stage="encoder", *more):
    files = ["--data", cohort, "--cache", cohort / "cache", "--out", out]
    small = "--subjects all --slices 4 --n-parts 2 --epochs 1 --steps-per-epoch 3 --workers 0 --device cpu"
    return [*map(str, files), "--stage", stage, *GRID, *small.split(), *map(str, more)]


def run_stage(cohort, out, stage, *more):
    """The folder, the metrics, and what was printed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        metrics = pretrain.main(flags(cohort, out, stage, *more))
    return out, metrics, printed.getvalue()


@pytest.fixture(scope="module")
def first(cohort, tmp_path_factory):
    """Stage 1, six epochs of ten steps."""
    out = tmp_path_factory.mktemp("runs") / "global"
    return run_stage(cohort, out, "encoder", "--epochs", "6", "--steps-per-epoch", "10")


@pytest.fixture(scope="module")
def encoder(first):
    return first[0] / f"{ENCODER}.global.safetensors"


@pytest.fixture(scope="module")
def second(cohort, encoder, tmp_path_factory):
    """Stage 2, from it."""
    out = tmp_path_factory.mktemp("runs") / "local"
    return run_stage(cohort, out, "decoder", "--init", encoder, "--epochs", "3")


def last_state(out):
    return torch.load(out / "last.pt", weights_only=True)


def weights(out):
    """What the last epoch left, under the network's names."""
    return {name.removeprefix("network."): value for name, value in last_state(out)["model"].items()}


def untrained(cohort, stage, *more):
    """The method of a run before its first step."""
    args = resolve(parse_args(Args, flags(cohort, "out", stage, *more)))
    torch.manual_seed(args.seed)
    method = build_method(args)
    start(method, args, {"size": [32, 32], "spacing": [2.5, 2.5], "orientation": "LP"})
    return method


@pytest.mark.slow
def test_the_encoder_trains_and_logs(first):
    """A line an epoch; the loss falls below the first epoch's; the last epoch is returned."""
    out, metrics, _ = first
    lines = read_log(out / "log.jsonl")
    assert [line["epoch"] for line in lines] == list(range(1, 7))
    assert all(math.isfinite(line[name]) for line in lines for name in ("loss", "accuracy"))
    assert lines[-1]["loss"] < 0.9 * lines[0]["loss"]
    assert metrics == {name: value for name, value in lines[-1].items() if name != "seconds"}


@pytest.mark.slow
def test_the_exported_encoder_is_that_of_the_last_step(first, encoder):
    """With its head; the model's, under its names; `last.pt` fills it as well."""
    exported, trained = load_file(encoder), weights(first[0])
    assert set(exported) == set(trained)
    assert all(torch.equal(value, trained[name]) for name, value in exported.items())
    slices = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        features, projections = (
            zoo.load_model(ENCODER, checkpoint=encoder, projection=p)(slices) for p in (False, True)
        )
        assert features.shape == projections.shape == (2, 128)
        assert not torch.equal(features, projections)
        assert torch.equal(zoo.load_model(ENCODER, checkpoint=first[0] / "last.pt")(slices), features)


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "models"), [("first", [ENCODER]), ("second", [ENCODER, UNET])])
def test_the_record_is_a_manifest_s(stage, models, request, monkeypatch):
    """It names file, digest, grid and command; pasted into a manifest it loads, and completed it is one of ours."""
    out, metrics, printed = request.getfixturevalue(stage)
    record = json.loads((out / "record.json").read_text())
    file = out / f"{models[-1]}.{out.name}.safetensors"
    assert (record["tag"], record["models"]) == (out.name, models)
    assert (record["bytes"], record["sources"]) == (file.stat().st_size, [f"file:{file.name}"])
    pixels = {"size": [32, 32], "spacing": [2.5, 2.5]}
    assert record["input"] == {**pixels, "orientation": "LP", "thickness": [8.0, 8.0]}
    assert record["provenance"]["metrics"] == metrics
    assert "--size 32 --spacing 2.5 --cache cache --stage" in record["provenance"]["command"]
    assert str(out.parent) not in str(record)
    assert len(printed.splitlines()) < 6
    check_record(record)
    (out / "manifest.json").write_text(json.dumps({"schema": 1, "weights": [record]}))
    monkeypatch.setenv("ZOO_MANIFEST", str(out / "manifest.json"))
    for name in models:
        assert zoo.load_report(zoo.load_model(f"{name}.{out.name}")).sha256 == record["sha256"]
        assert zoo.model_info(f"{name}.{out.name}").input.spacing == (2.5, 2.5)


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "model"), [("first", ENCODER), ("second", UNET)])
def test_the_last_step_is_exported_and_all_files_say_the_same(stage, model, request, cohort, encoder, tmp_path):
    """Not the best by its loss; the header has the pixels, and for stage 2 the encoder that it began with."""
    run, out = request.getfixturevalue(stage)[0], tmp_path / "run"
    mark(copy_of(run, out) / "best.pt")
    more = ["encoder", "--epochs", "6", "--steps-per-epoch", "10"]
    more = more if model == ENCODER else ["decoder", "--init", encoder, "--epochs", "3"]
    pretrain.main(flags(cohort, out, *more, "--resume"))
    file = out / f"{model}.{out.name}.safetensors"
    assert comes_from(file, out / "last.pt", "network.")
    assert not comes_from(file, out / "best.pt", "network.")
    for saved in (run / "best.pt", run / "last.pt", file):
        said = header_of(saved)
        assert (said["model"], said["task"], said["classes"], said["options"]) == (model, "pretrain", [], {})
        assert (said["recipe"], said["base"]["source"]) == (
            "zoo.entries.glcl.pretrain",
            "random" if model == ENCODER else encoder.name,
        )
        assert said["base"].get("sha256") == (None if model == ENCODER else hash_file(encoder))
        found = zoo.load_transform(model, checkpoint=saved).preprocessing
        assert (found.size, found.spacing) == ((32, 32), (2.5, 2.5))


@pytest.mark.slow
def test_the_decoder_trains_and_the_encoder_stays(cohort, encoder, second):
    """Its weights are those of stage 1, bit for bit; its norms' averages go on; all of the decoder moves."""
    out, _, _ = second
    before, after = load_file(encoder), weights(out)
    start = untrained(cohort, "decoder", "--init", encoder).network.state_dict()
    for name, value in after.items():
        if "running" in name:
            assert not torch.equal(value, start[name]), name
        elif name.startswith("enc_") and "num_batches" not in name:
            assert torch.equal(value, before[name]), name
        elif name.startswith(("dec_", "seg_")) and name.endswith(".weight"):
            assert not torch.equal(value, start[name]), name
    averages = [name for name in before if name.startswith("enc_") and "running" in name]
    assert averages
    assert all(torch.equal(start[name], before[name]) for name in averages)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["encoder", "decoder"])
def test_all_norms_average_as_asked(cohort, encoder, stage):
    """Of one stage the averages went on at the published pace, whatever --norm-momentum said."""
    start = ("--init", encoder) if stage == "decoder" else ()
    network = untrained(cohort, stage, *start, "--norm-momentum", 0.25).network
    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert {norm.momentum for norm in norms} == {0.25}
    assert norms


@pytest.mark.slow
def test_the_exported_decoder_fills_a_unet(second):
    """Its three blocks and the encoder; the rest and the head are fresh, and what the loss compared is left out."""
    file = second[0] / f"{UNET}.local.safetensors"
    exported, trained = load_file(file), weights(second[0])
    assert set(exported) == {name for name in trained if not name.startswith("seg_")}
    model = zoo.load_model(UNET, checkpoint=file, num_classes=4)
    state, report = model.state_dict(), zoo.load_report(model)
    assert all(torch.equal(state[name], trained[name]) for name in report.loaded)
    assert {name.split(".")[0].split("_bn")[0] for name in report.fresh} == {
        *("dec_dc3", "dec_c2_a", "dec_c2_b", "dec_dc2", "dec_c1_a", "seg_c1_a", "seg_c1_b", "seg_fin_layer")
    }


@pytest.mark.slow
def test_the_encoder_may_use_or_forget_its_averages(cohort, encoder, tmp_path):
    """`running` leaves them as stage 1 did, bit for bit; `--reset-averages` begins with those of a new network."""
    before = load_file(encoder)
    averages = [name for name in before if name.startswith("enc_") and "running" in name]
    out, *_ = run_stage(cohort, tmp_path / "run", "decoder", "--init", encoder, "--encoder-statistics", "running")
    after = weights(out)
    assert all(torch.equal(after[name], before[name]) for name in averages)
    fresh = untrained(cohort, "decoder", "--init", encoder, "--reset-averages").network.state_dict()
    assert all(torch.equal(fresh[name], torch.full_like(fresh[name], float("var" in name))) for name in averages)
    assert torch.equal(fresh["enc_c3_a.weight"], before["enc_c3_a.weight"])


@pytest.mark.slow
def test_the_encoder_may_come_from_the_authors(cohort, tmp_path):
    """Their bundle of stage 1, of another size: the head of the global loss plays no part."""
    variables = filled("encoder_pretrain", 3)
    bundle = write_bundle(tmp_path / "train_encoder_wgts_acdc_epochs_10000.ckpt", variables)
    decoder = untrained(cohort, "decoder", "--init", bundle, "--blocks", "1").network
    kernel = variables["enc_c5_a/W"].transpose(3, 2, 0, 1)
    assert np.array_equal(decoder.enc_c5_a.weight.detach().numpy(), kernel)
    assert not hasattr(decoder, "dec_dc5")


@pytest.mark.slow
def test_the_encoder_trains_too_where_it_is_not_frozen(cohort, encoder, tmp_path):
    """All of its convolutions move."""
    out, *_ = run_stage(
        cohort, tmp_path / "run", "decoder", "--init", encoder, "--no-freeze", "--variant", "D", "--slices", "6"
    )
    before, after = load_file(encoder), weights(out)
    kernels = [name for name in before if name.startswith("enc_") and before[name].ndim == 4]
    assert len(kernels) == 12
    assert not any(torch.equal(before[name], after[name]) for name in kernels)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "more"),
    [
        ("encoder", ("--variant", "R")),
        ("encoder", ("--variant", "D-")),
        ("encoder", ("--upstream", "--n-parts", "4", "--slices", "8", "--half")),
        ("decoder", ("--region-size", "1", "--regions", "9")),
        ("decoder", ("--no-project", "--upstream")),
    ],
)
def test_every_variant_runs(cohort, encoder, tmp_path, stage, more):
    """A step of it is finite."""
    source = ("--init", encoder) if stage == "decoder" else ()
    out, metrics, _ = run_stage(cohort, tmp_path / "run", stage, *source, "--steps-per-epoch", "1", *more)
    assert math.isfinite(metrics["loss"])
    assert next(out.glob("glcl-*.safetensors")).stat().st_size > 1e6


@pytest.mark.slow
def test_a_run_that_is_stopped_and_resumed_ends_with_the_same_weights(cohort, encoder, tmp_path):
    """Of both stages; with loader processes before and without after: bit for bit."""
    for stage, source in (("encoder", ()), ("decoder", ("--init", encoder))):
        whole, cut = tmp_path / f"{stage}-whole", tmp_path / f"{stage}-cut"
        run_stage(cohort, whole, stage, *source, "--epochs", "2")
        run_stage(cohort, cut, stage, *source, "--workers", "2")
        assert last_state(cut)["epoch"] == 1
        run_stage(cohort, cut, stage, *source, "--epochs", "2", "--resume")
        one, two = last_state(whole), last_state(cut)
        assert one["epoch"] == two["epoch"] == 2
        assert all(torch.equal(value, two["model"][name]) for name, value in one["model"].items())


@pytest.mark.slow
def test_two_processes_take_the_mean_of_their_batches(cohort, tmp_path):
    """One step of plain gradient descent with a batch each: as half the sum of both gradients, taken by hand.

    Float32 sums in another order: 1e-4 of the way that the weights went.
    """
    settings = ("--batch-size", "2", "--steps-per-epoch", "1", "--optimizer", "sgd", "--momentum", "0", "--lr", "0.1")
    out = tmp_path / "two"
    gloo.run(pretrain.main, 2, tmp_path / "group", flags(cohort, out, "encoder", *settings))
    method = untrained(cohort, "encoder", *settings)
    args = resolve(parse_args(Args, flags(cohort, "out", "encoder", *settings)))
    cases = [dataclasses.replace(case, mask=None) for case in all_cases(args)]
    data = build_batches(args, args.open_store().prepare(cases))
    start = {name: value.clone() for name, value in method.network.state_dict().items()}
    for index in range(2):
        (method(data[0, index])["loss"] / 2).backward()
    torch.optim.SGD(method.parameters(), 0.1).step()
    after, expected = weights(out), dict(method.network.named_parameters())
    for name, value in expected.items():
        way = (value - start[name]).norm()
        assert (after[name] - value).norm() <= 1e-4 * way + 1e-7, name
    assert (out / f"{ENCODER}.two.safetensors").is_file()


def test_the_defaults_are_the_published_run():
    """10 001 steps of one batch; stage 1 with 12 slices in 4 parts, stage 2 with 10 slices, 13 regions, 3 blocks."""
    common = ["--data", "acdc", "--out", "out"]
    args = resolve(parse_args(Args, [*common, "--stage", "encoder"]))
    assert args.epochs * args.steps_per_epoch == 10001
    assert (args.optimizer, args.lr, args.weight_decay, args.schedule, args.batch_size) == (
        "adam",
        1e-3,
        0,
        "constant",
        1,
    )
    assert (args.variant, args.slices, args.n_parts, args.temperature) == ("D", 12, 4, 0.1)
    assert (args.volumes.size, args.volumes.spacing, args.subjects) == (192, 1.36719, "published")
    args = resolve(parse_args(Args, [*common, "--stage", "decoder", "--init", "file"]))
    assert (args.variant, args.slices, args.blocks, args.regions, args.region_size, args.negatives) == (
        "R",
        10,
        3,
        13,
        3,
        5,
    )
    assert (args.project, args.freeze, args.encoder_statistics) == (True, True, "batch")
    args = resolve(parse_args(Args, [*common, "--stage", "decoder", "--init", "file", "--variant", "D"]))
    assert (args.slices, args.negatives) == (12, 4)
    args = resolve(parse_args(Args, [*common, "--stage", "encoder", "--dataset", "mmwhs", "--upstream"]))
    assert (args.volumes.size, args.volumes.spacing) == (160, 1.5)
    assert args.legacy_intensity
    assert args.independent_sets
    assert args.legacy_blank_rows


def test_the_authors_calls_are_the_sets_of_d():
    """Views of first volumes are changed in one call, views of second ones in another; else it is the copies."""
    rows = global_rows("D", {str(i): 8 for i in range(6)}, 4, np.random.default_rng(0), n_parts=2)
    assert calls_of(rows, 2).tolist() == [0, 0, 0, 0, 1, 1, 1, 1] * 2
    rows = global_rows("D-", {str(i): 8 for i in range(6)}, 4, np.random.default_rng(0), n_parts=2)
    assert copies_of(rows).tolist() == [0] * 4 + [1] * 4 + [2] * 4


@pytest.mark.slow
def test_masks_play_no_part(cohort, tmp_path):
    """A volume whose mask is wrong can be pre-trained on."""
    root = write_cohort(tmp_path / "data", 4)
    save(root / "patient001" / "patient001_frame01_gt.nii.gz", np.full((3, 3, 3), 77, np.uint8))
    _, metrics, _ = run_stage(root, tmp_path / "run", "encoder", "--steps-per-epoch", "1")
    assert math.isfinite(metrics["loss"])
    assert not list((root / "cache").glob("*.label.npy"))


@pytest.mark.slow
def test_what_does_not_fit_is_said_before_the_first_step(cohort, encoder, tmp_path):
    """Too few volumes or slices, published volumes that are not there, files that hold no encoder."""
    with pytest.raises(OptionError, match="6 volume"):
        pretrain.main(flags(cohort, tmp_path / "a", "encoder", "--slices", "8"))
    with pytest.raises(InputContractError, match=r"001 \(9\)"):
        pretrain.main(flags(cohort, tmp_path / "a", "encoder", "--n-parts", "10", "--slices", "10"))
    with pytest.raises(OptionError, match=r"--subjects published: 4\d of 52 volume\(s\) .* are missing: 012, 017"):
        pretrain.main(flags(cohort, tmp_path / "a", "encoder", "--subjects", "published"))
    with pytest.raises(zoo.errors.ZooError, match="last"):
        pretrain.main(flags(cohort, tmp_path / "a", "decoder", "--init", tmp_path / "last.pt"))
    assert not (tmp_path / "a" / "log.jsonl").exists()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--stage", "decoder"], "needs a trained encoder: .*--init"),
        (["--stage", "encoder", "--variant", "X"], "has R, D-, D"),
        (["--stage", "decoder", "--init", "file", "--variant", "D-"], "has R, D"),
        (["--stage", "encoder", "--size", "100"], "multiple of 32"),
        (["--stage", "encoder", "--box", "193"], "at most the side"),
        (["--stage", "encoder", "--spacing", "-1"], "a length in mm"),
        (["--stage", "encoder", "--steps-per-epoch", "0"], "at least 1"),
        (["--stage", "encoder", "--subjects", "all", "--split", "tr1-c1"], "--split tr1-c1 is for"),
    ],
)
def test_wrong_arguments_are_refused(more, words):
    """With what was expected."""
    with pytest.raises(OptionError, match=words):
        parse_args(Args, ["--data", "acdc", "--out", "out", *more])


def test_a_refusal_is_one_line(cohort, tmp_path, monkeypatch):
    """From the command line."""
    monkeypatch.setattr("sys.argv", ["pretrain", *flags(cohort, tmp_path / "a", "encoder", "--subjects", "007")])
    with pytest.raises(SystemExit, match=r"^OptionError: --subjects 007: 1 of 1 volume.* are missing: 007"):
        run_command(pretrain.main)


def test_the_help_names_every_flag(capsys):
    """And none is without a text."""
    with pytest.raises(SystemExit):
        parse_args(Args, ["--help"], pretrain.__doc__)
    text = capsys.readouterr().out
    for field in dataclasses.fields(Args):
        assert f"--{field.name.replace('_', '-')}" in text
        assert facts_of_args(Args)[field.name]["help"]
    assert inspect.getdoc(pretrain).splitlines()[0] in text
    assert {"blocks", "project"} <= set(inspect.signature(GLCLDecoder).parameters)


@pytest.mark.slow
def test_stage_1_begins_with_the_weights_of_another(cohort, first, encoder, tmp_path, monkeypatch, capsys, caplog):
    """Encoder and projection head; a head for slices of another size stays fresh, and the size is warned of."""
    state, base = begun(pretrain, flags(cohort, tmp_path / "a", "encoder", "--init", encoder), monkeypatch)
    assert are_equal(load_file(encoder), state, "", "network.")
    assert (base["model"], base["source"], base["base"]) == (ENCODER, encoder.name, {"source": "random"})
    assert "encoder, projection head loaded\n" in capsys.readouterr().err
    assert not [text for text in caplog.messages if "but this run has" in text]
    more = ("--size", "64", "--cache", tmp_path / "cache", "--init", encoder)
    state, _ = begun(pretrain, flags(cohort, tmp_path / "b", "encoder", *more), monkeypatch)
    assert torch.equal(state["network.enc_c6_b.weight"], load_file(encoder)["enc_c6_b.weight"])
    assert "projection head (reg_nn1.weight: 1024x128 in the file, 1024x512 in the run)" in capsys.readouterr().err
    assert any("was trained with size (32, 32), but this run has size (64, 64)" in text for text in caplog.messages)


@pytest.mark.slow
def test_stage_2_takes_the_decoder_as_far_as_a_file_has_it(cohort, encoder, second, tmp_path, monkeypatch, capsys):
    """Of `last.pt` all, what the local loss compares too; of its export the blocks; of stage 1 the encoder alone."""
    last, exported = second[0] / "last.pt", second[0] / f"{UNET}.local.safetensors"
    stored = last_state(second[0])["model"]
    random, _ = begun(pretrain, flags(cohort, tmp_path / "a", "decoder", "--init", encoder), monkeypatch)
    assert are_equal(load_file(encoder), random, "enc_", "network.enc_")
    assert "encoder loaded; fresh: block 1 of the decoder, block 2 of the decoder, block 3" in capsys.readouterr().err
    state, _ = begun(pretrain, flags(cohort, tmp_path / "a", "decoder", "--init", last), monkeypatch)
    assert are_equal({name: v for name, v in stored.items() if "num_batches" not in name}, state, "", "")
    assert "block 3 of the decoder, head of the local loss loaded\n" in capsys.readouterr().err
    more = ("--init", exported, "--blocks", "4")
    state, base = begun(pretrain, flags(cohort, tmp_path / "a", "decoder", *more), monkeypatch)
    assert are_equal(load_file(exported), state, "dec_", "network.dec_")
    assert "fresh: block 4 of the decoder, head of the local loss (not found in the file)\n" in capsys.readouterr().err
    assert (base["model"], base["base"]["source"]) == (UNET, encoder.name)


@pytest.mark.slow
def test_weights_of_another_family_are_refused(cohort, tmp_path):
    """By the tensors that they lack."""
    file = tmp_path / "other.pt"
    torch.save(build_small("yaware-densenet121").state_dict(), file)
    with pytest.raises(CheckpointMismatchError, match=r"other\.pt"):
        pretrain.main(flags(cohort, tmp_path / "a", "encoder", "--init", file))


def test_the_former_flag_is_known_for_a_release(caplog):
    """With the name that it has now."""
    args = parse_args(Args, ["--data", "acdc", "--out", "out", "--stage", "decoder", "--encoder", "file"])
    assert args.init == "file"
    assert "--encoder is called --init now" in caplog.text


@pytest.mark.slow
def test_what_a_run_began_with_is_known_of_its_file(cohort, encoder, tmp_path, zoo):
    """Header, record, `zoo inspect` and, once imported, `zoo info` name published weights and their licences."""
    import zoo as package

    out = tmp_path / "own"
    run_stage(cohort, out, "encoder", "--init", f"{ENCODER}.phantom", "--steps-per-epoch", "1")
    file = out / f"{ENCODER}.own.safetensors"
    known = package.model_info(f"{ENCODER}.phantom")
    said, record = header_of(file)["base"], json.loads((out / "record.json").read_text())
    assert (said["tag"], said["sha256"], said["trained_by"]) == ("phantom", known.sha256, "zoo")
    assert said["licences"] == record["licences"] == known.licences
    assert record["provenance"]["base"] == {name: value for name, value in said.items() if name != "licences"}
    assert "phantom" in zoo("inspect", file)[1]
    zoo("import", f"{ENCODER}.own", file)
    imported = package.model_info(f"{ENCODER}.own")
    assert imported.provenance["base"]["tag"] == "phantom"
    assert imported.licences == known.licences
    assert "tag: phantom" in zoo("info", f"{ENCODER}.own")[1]


def killed(argv):
    """Run the recipe until this process kills itself in the fifth step."""
    forward, calls = GlobalMethod.forward, []

    def dying(self, views):
        calls.append(views)
        if len(calls) == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return forward(self, views)

    GlobalMethod.forward = dying
    pretrain.main(argv)


@pytest.mark.slow
def test_a_killed_run_does_not_load_again(cohort, encoder, tmp_path):
    """Killed in the second of three epochs, and its file gone: it ends with the same weights and the same base."""
    init = tmp_path / "init.safetensors"
    init.write_bytes(encoder.read_bytes())
    more = ("--init", init, "--epochs", "3")
    whole, *_ = run_stage(cohort, tmp_path / "whole", "encoder", *more)
    cut = tmp_path / "cut"
    assert forked.wait(forked.start(killed, flags(cohort, cut, "encoder", *more))) == -signal.SIGKILL
    assert last_state(cut)["epoch"] == 1
    init.unlink()
    run_stage(cohort, cut, "encoder", *more, "--resume")
    one, two = last_state(whole), last_state(cut)
    assert one["epoch"] == two["epoch"] == 3
    assert all(torch.equal(value, two["model"][name]) for name, value in one["model"].items())
    bases = [header_of(out / f"{ENCODER}.{out.name}.safetensors")["base"] for out in (whole, cut)]
    assert bases[0] == bases[1]
    assert bases[0]["source"] == "init.safetensors"
