"""The CAiD recipe end to end: a folder of images goes in, an exported U-Net comes out."""

from __future__ import annotations

import dataclasses
import inspect
import json

import numpy as np
import pytest
import torch
from narrow_caid import narrow_caid as narrowed
from PIL import Image
from safetensors.torch import load_file
from saved_runs import are_equal, begun, comes_from, copy_of, header_of, mark
from small_networks import build_small

import zoo
from zoo.entries.caid import pretrain
from zoo.entries.caid.method import CAiD
from zoo.entries.caid.pretrain import Args, build_method, build_views, models_of, resolve, validation
from zoo.errors import CheckpointMismatchError, OptionError
from zoo.training.args import parse_args
from zoo.training.distributed import Processes
from zoo.training.runlog import read_log

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Thirteen small pictures, eight to train on and five to validate, in lists of both kinds."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(13):
        coarse = Image.fromarray(rng.integers(0, 256, (5, 5), dtype=np.uint8))
        coarse.resize((48, 40), Image.Resampling.BILINEAR).save(folder / f"{i}.png")
    (folder / "train.txt").write_text("".join(f"{i}.png 0 1\n" for i in range(8)))
    (folder / "all.csv").write_text(
        "file,split\n" + "".join(f"{i}.png,{'train' if i < 8 else 'val'}\n" for i in range(13))
    )
    return folder


def flags(images, out, *more):
    small = "--size 32 --batch-size 4 --epochs 1 --queue-size 8 --lr 0.001 --momentum 0 --workers 0 --device cpu"
    return ["--data", str(images), "--out", str(out), *small.split(), *more]


@pytest.fixture(scope="module")
def run(images, tmp_path_factory):
    """Two steps of a narrow network with a validation list; the folder and the metrics."""
    out = tmp_path_factory.mktemp("runs") / "first"
    lists = ["--table", str(images / "train.txt"), "--val-table", str(images / "all.csv"), "--val-split", "val"]
    with narrowed():
        return out, pretrain.main(flags(images, out, *lists, "--key-batches", "2"))


@pytest.fixture
def out(tmp_path, narrow_caid, undrawn):
    """A folder for a run of a narrow network."""
    return tmp_path / "run"


@pytest.mark.slow
def test_two_steps_train_validate_and_export(run):
    """Losses and their validation twins are logged; the best epoch is by the validation loss."""
    out, metrics = run
    (line,) = read_log(out / "log.jsonl")
    names = {"loss", "nce", "mse", "accuracy"}
    assert names | {f"val_{name}" for name in names} | {"lr", "epoch", "seconds"} == set(line)
    assert all(np.isfinite(value) for value in line.values())
    assert line["loss"] == pytest.approx(line["nce"] + 10 * line["mse"], rel=1e-5)
    assert line["val_loss"] == pytest.approx(line["val_nce"] + 10 * line["val_mse"], rel=1e-5)
    assert metrics["val_loss"] == line["val_loss"]
    assert json.loads((out / "args.json").read_text())["key_batches"] == 2


@pytest.mark.slow
def test_the_checkpoint_has_the_authors_names_and_loads(run, narrow_caid):
    """`best.pt` is a checkpoint in the authors' form, and the exported file holds the same U-Net and nothing else."""
    out, _ = run
    state = torch.load(out / "best.pt", weights_only=True)["model"]
    assert {name.split(".")[0] for name in state} == {"encoder_q", "encoder_k", "queue", "queue_ptr"}
    name = "encoder.layer4.0.conv3.weight"
    trained = state[f"encoder_q.backbone.{name}"]
    file = out / f"caid-resnet50-unet.{out.name}.safetensors"
    exported = load_file(file)
    assert torch.equal(exported[name], trained)
    assert set(exported) == {
        n.removeprefix("encoder_q.backbone.") for n in state if n.startswith("encoder_q.backbone.")
    }
    for form in (out / "best.pt", out / "last.pt", file):
        unet = zoo.load_model("caid-resnet50-unet", checkpoint=form)
        assert torch.equal(unet.state_dict()[name], trained)
    encoder = zoo.load_model("caid-resnet50", checkpoint=file)
    assert torch.equal(encoder.state_dict()[name.removeprefix("encoder.")], trained)


@pytest.mark.slow
def test_the_best_epoch_is_exported_and_all_files_say_the_same(run, images, out, capsys):
    """Not the last one; the header has size, command and what the one output is, in each file that is saved."""
    copy_of(run[0], out)
    mark(out / "best.pt")
    lists = ["--table", str(images / "train.txt"), "--val-table", str(images / "all.csv"), "--val-split", "val"]
    pretrain.main(flags(images, out, *lists, "--key-batches", "2", "--resume"))
    file = out / f"caid-resnet50-unet.{out.name}.safetensors"
    assert comes_from(file, out / "best.pt", "encoder_q.backbone.")
    assert not comes_from(file, out / "last.pt", "encoder_q.backbone.")
    for saved in (run[0] / "best.pt", run[0] / "last.pt", file):
        said = header_of(saved)
        assert (said["model"], said["task"], said["classes"]) == ("caid-resnet50-unet", "pretrain", [])
        assert (said["recipe"], said["base"]) == ("zoo.entries.caid.pretrain", {"source": "random"})
        assert said["input"] == {"size": [32, 32], "resize": 37}
        assert said["options"] == {"num_classes": None}
        assert "--size 32" in said["command"]
        for name in ("caid-resnet50", "caid-resnet50-unet"):
            assert zoo.load_transform(name, checkpoint=saved).preprocessing.size == (32, 32)


@pytest.mark.slow
def test_without_validation_the_last_epoch_is_exported(images, out):
    """Not that of the least training loss: it is low early, while the queue still holds random negatives."""
    metrics = pretrain.main(flags(images, out, "--table", str(images / "train.txt"), "--key-batches", "2"))
    mark(out / "best.pt")
    again = pretrain.main(flags(images, out, "--table", str(images / "train.txt"), "--key-batches", "2", "--resume"))
    assert again == metrics
    assert "val_loss" not in metrics
    file = out / f"caid-resnet50-unet.{out.name}.safetensors"
    assert comes_from(file, out / "last.pt", "encoder_q.backbone.")
    assert not comes_from(file, out / "best.pt", "encoder_q.backbone.")


@pytest.mark.slow
def test_the_published_behaviour_runs_and_its_record_loads(images, out, capsys, monkeypatch):
    """`--upstream` with validation: whole key network, queue moved by validation; the record is a manifest's."""
    csv = str(images / "all.csv")
    lists = ["--table", csv, "--split", "train", "--val-table", csv, "--val-split", "val"]
    pretrain.main(flags(images, out, *lists, "--upstream"))
    state = torch.load(out / "last.pt", weights_only=True)["model"]
    assert "encoder_k.backbone.decoder.blocks.0.conv1.0.weight" in state
    assert state["queue_ptr"].tolist() == [(2 * 4 + 4) % 8]  # two steps of 4, and one whole batch of 5 images
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) < 6
    assert f"their record for a manifest: {out / 'record.json'}" in printed
    record = json.loads((out / "record.json").read_text())
    file = out / f"caid-resnet50-unet.{out.name}.safetensors"
    assert (record["tag"], record["models"]) == ("run", ["caid-resnet50", "caid-resnet50-unet"])
    assert (record["bytes"], record["sources"]) == (file.stat().st_size, [f"file:{file.name}"])
    assert f"--data {images.name} --out {out.name}" in record["provenance"]["command"]
    assert str(images) not in str(record)
    (out / "manifest.json").write_text(json.dumps({"schema": 1, "weights": [record]}))
    monkeypatch.setenv("ZOO_MANIFEST", str(out / "manifest.json"))
    for model in record["models"]:
        assert zoo.load_report(zoo.load_model(f"{model}.run")).sha256 == record["sha256"]
        assert zoo.model_info(f"{model}.run").input.size == (32, 32)


@pytest.mark.slow
def test_mode_id_exports_the_encoder(images, out, caplog):
    """Without a decoder and without a list; the file is the ResNet-50's, and the best epoch is by the training loss.

    One process with one batch of keys, which batch norm gives away, is warned of.
    """
    metrics = pretrain.main(flags(images, out, "--mode", "id", "--precision", "bf16", "--channels-last"))
    assert sum("Give --key-batches 2, which mixes the samples" in message for message in caplog.messages) == 1
    assert "mse" not in metrics
    assert not list(out.glob("caid-resnet50-unet*"))
    state = torch.load(out / "best.pt", weights_only=True)["model"]
    encoder = zoo.load_model("caid-resnet50", checkpoint=out / f"caid-resnet50.{out.name}.safetensors")
    trained = state["encoder_q.backbone.encoder.conv1.weight"]
    assert torch.equal(encoder.state_dict()["conv1.weight"], trained)


def test_the_defaults_are_the_published_run():
    """Epochs, batch, optimiser, schedule, objective: the README's command of the authors; quirks are off."""
    args = parse_args(Args, ["--data", "d", "--out", "o"])
    args.check()
    assert (args.epochs, args.batch_size, args.size, args.queue_size) == (800, 256, 224, 65536)
    assert (args.optimizer, args.lr, args.momentum, args.weight_decay, args.schedule) == (
        "sgd",
        0.03,
        0.9,
        1e-4,
        "cosine",
    )
    assert (args.temperature, args.key_momentum, args.mlp, args.mode) == (0.2, 0.999, True, "caid")
    assert (args.contrastive_weight, args.reconstruction_weight, args.precision) == (1, 10, "fp32")
    assert (args.warmup_epochs, args.clip_grad) == (0, 0)
    assert (args.target_flip, args.key_full_unet, args.validate_mutates_state) == ("with-input", False, False)
    assert (args.val_random, args.upstream) == (False, False)


def test_one_argument_speaks_for_others():
    """`--upstream` is four switches; without a validation list the training loss decides, another choice is kept."""
    args = resolve(Args(data="d", out="o", upstream=True, val_table="v"))
    assert (args.target_flip, args.key_full_unet) == ("upstream", True)
    assert (args.validate_mutates_state, args.val_random, args.monitor) == (True, True, "val_loss")
    assert resolve(Args(data="d", out="o")).monitor == "loss"
    assert resolve(Args(data="d", out="o", monitor="+accuracy")).monitor == "+accuracy"
    assert models_of(Args(data="d", out="o", mode="id")) == ("caid-resnet50",)


def test_every_setting_of_the_method_is_a_flag(narrow_caid):
    """Of its name and with the same default, but the length of the projection; `--momentum` is the optimiser's."""
    settings = {name: p.default for name, p in inspect.signature(CAiD).parameters.items() if name != "dim"}
    defaults = {f.name: f.default for f in dataclasses.fields(Args)} | {"momentum": Args.key_momentum}
    assert settings == {name: defaults[name] for name in settings}
    method = build_method(Args(data="d", out="o", mode="id", queue_size=8, key_momentum=0.5, temperature=0.3))
    assert (method.momentum, method.temperature, method.queue.numel()) == (0.5, 0.3, 8 * 128)


class Recorder(torch.nn.Module):
    """Stands where the method does: keeps the queries it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.shown = []

    def forward(self, views):
        self.shown.append(views["query"])
        return {"loss": views["query"].mean()}


def shown(args, epoch=0):
    recorder = Recorder()
    validation(args, Processes(0, 1, torch.device("cpu")))(recorder, epoch)
    return torch.cat(recorder.shown)


def test_validation_views_are_fixed_unless_asked_otherwise(images):
    """The same at every epoch and not those of training; others with `--val-random`.

    A whole last batch only where the queue takes them.
    """
    settings = {"data": str(images), "out": "o", "size": 32, "batch_size": 4, "workers": 0}
    settings |= {"val_table": str(images / "all.csv"), "val_split": "val"}
    fixed, random = Args(**settings), Args(**settings, val_random=True)
    assert torch.equal(shown(fixed, epoch=0), shown(fixed, epoch=7))
    assert not torch.equal(shown(random, epoch=0), shown(random, epoch=7))
    training = build_views(fixed, fixed.val_table, "val")
    assert not any(torch.equal(query, training[0, i]["query"]) for i, query in enumerate(shown(fixed)))
    assert len(shown(fixed)) == 5
    assert len(shown(Args(**settings, validate_mutates_state=True))) == 4
    assert validation(Args(data=str(images), out="o"), Processes(0, 1, torch.device("cpu"))) is None
    with pytest.raises(OptionError, match=r"5 validation image\(s\) are too few for 8 process\(es\)"):
        validation(fixed, Processes(0, 8, torch.device("cpu")))


def test_what_cannot_run_is_said_before_the_first_step(images, tmp_path, narrow_caid):
    """A wrong folder, too few images, and a second run into the same folder."""
    with pytest.raises(OptionError, match="is not a folder; give the folder with the images"):
        pretrain.main(["--data", str(tmp_path / "no"), "--out", str(tmp_path / "a"), "--queue-size", "4"])
    with pytest.raises(OptionError, match=r"13 sample\(s\) do not fill one step of --batch-size 16"):
        pretrain.main(flags(images, tmp_path / "b", "--mode", "id", "--batch-size", "16"))


@pytest.mark.slow
def test_a_run_begins_with_the_weights_of_another(run, images, out, monkeypatch, capsys):
    """All of `last.pt`, its queue too; the momentum copy equals the network that is trained, not the file's copy.

    Of the authors' form of file the same.
    """
    file = run[0] / "last.pt"
    stored = torch.load(file, weights_only=True)["model"]
    assert not are_equal(stored, stored, "encoder_k.", "encoder_q.")
    state, base = begun(pretrain, flags(images, out, "--init", str(file)), monkeypatch)
    assert are_equal(stored, state, "encoder_q.", "encoder_q.")
    assert are_equal(state, state, "encoder_k.", "encoder_q.")
    assert torch.equal(state["queue"], stored["queue"])
    assert torch.equal(state["queue_ptr"], stored["queue_ptr"])
    assert (base["model"], base["source"], base["trained_by"]) == ("caid-resnet50-unet", "last.pt", "user")
    assert "encoder, decoder, last layer, projection head, queue loaded\n" in capsys.readouterr().err
    theirs = out.with_name("theirs.pth")
    torch.save({"state_dict": {f"module.{name}": value for name, value in stored.items()}}, theirs)
    again, _ = begun(pretrain, flags(images, out, "--init", str(theirs)), monkeypatch)
    assert are_equal(state, again, "", "")


@pytest.mark.slow
def test_published_weights_fill_what_they_have(images, tmp_path, monkeypatch, capsys, caplog):
    """Encoder and decoder by name; head and queue are those of a run without them; the other input is warned of."""
    out = tmp_path / "run"
    random, nothing = begun(pretrain, flags(images, out), monkeypatch)
    state, base = begun(pretrain, flags(images, out, "--init", "caid-resnet50-unet.chestxray14-800"), monkeypatch)
    published = zoo.load_model("caid-resnet50-unet.chestxray14-800")
    assert are_equal(published.state_dict(), state, "", "encoder_q.backbone.")
    assert are_equal(state, state, "encoder_k.", "encoder_q.")
    assert are_equal(random, state, "encoder_q.fc.", "encoder_q.fc.")
    assert torch.equal(state["queue"], random["queue"])
    assert nothing == {"source": "random"}
    assert (base["tag"], base["trained_by"]) == ("chestxray14-800", "zoo")
    assert base["sha256"] == zoo.load_report(published).sha256
    assert base["licences"] == zoo.model_info("caid-resnet50-unet.chestxray14-800").licences
    said = capsys.readouterr().err
    assert "chestxray14-800, trained by the zoo: encoder, decoder, last layer loaded; fresh: projection head" in said
    (warning,) = (text for text in caplog.messages if "but this run has" in text)
    assert "was trained with size (64, 64), resize 73, but this run has size (32, 32), resize 37" in warning


@pytest.mark.slow
def test_an_encoder_alone_leaves_the_decoder_fresh(run, images, out, monkeypatch, capsys):
    """Said in words; and so is a projection of other layers, whose queue then means nothing."""
    stored = torch.load(run[0] / "last.pt", weights_only=True)["model"]
    file = out.with_name("encoder.pt")
    torch.save({name: value for name, value in stored.items() if ".decoder." not in name and "_head" not in name}, file)
    random, _ = begun(pretrain, flags(images, out, "--no-mlp"), monkeypatch)
    state, _ = begun(pretrain, flags(images, out, "--no-mlp", "--init", str(file)), monkeypatch)
    assert are_equal(state, stored, "encoder_q.backbone.encoder.", "encoder_q.backbone.encoder.")
    for fresh in ("encoder_q.backbone.decoder.", "encoder_q.fc.", "queue"):
        assert are_equal(random, state, fresh, fresh)
    said = capsys.readouterr().err
    assert "encoder loaded; fresh: decoder, last layer (not found in the file), projection head (fc.weight, " in said
    assert "queue (of no use without the projection head)" in said


@pytest.mark.slow
def test_one_layer_projections_are_taken_too(images, out, monkeypatch):
    """The entry has them under another name than the method."""
    pretrain.main(flags(images, out, "--no-mlp", "--mode", "id"))
    stored = torch.load(out / "last.pt", weights_only=True)["model"]
    more = ("--no-mlp", "--init", str(out / "last.pt"))
    state, _ = begun(pretrain, flags(images, out.with_name("next"), *more), monkeypatch)
    assert are_equal(state, stored, "encoder_q.fc.", "encoder_q.fc.")


@pytest.mark.slow
def test_other_weights_are_refused(images, out, monkeypatch):
    """Another family's file and name, and what is neither a name nor a file."""
    file = out.with_name("densenet.pt")
    torch.save(build_small("yaware-densenet121").state_dict(), file)
    with pytest.raises(CheckpointMismatchError, match=r"densenet\.pt"):
        pretrain.main(flags(images, out, "--init", str(file)))
    with pytest.raises(OptionError, match=r"--init yaware-densenet121: .* caid-resnet50, caid-resnet50-unet"):
        pretrain.main(flags(images, out, "--init", "yaware-densenet121"))
    with pytest.raises(zoo.errors.UnknownModelError, match="did you mean 'caid-resnet50'"):
        pretrain.main(flags(images, out, "--init", "caid-resnet5"))
