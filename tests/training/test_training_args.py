"""The arguments of a run, and the course of the learning rate that they describe."""

from __future__ import annotations

import math
import os
from dataclasses import MISSING, asdict, dataclass, fields

import pytest
import torch
from torch import nn

from zoo.entries.caid import pretrain as caid_pretrain
from zoo.entries.caid.args import ClassifyArgs, SegmentArgs
from zoo.entries.drasclr import data as drasclr_data
from zoo.entries.drasclr import embed as drasclr_embed
from zoo.entries.drasclr import finetune as drasclr_finetune
from zoo.entries.drasclr import preprocess as drasclr_preprocess
from zoo.entries.glcl import finetune as glcl_finetune
from zoo.entries.glcl import pretrain as glcl_pretrain
from zoo.entries.monai_ssl import finetune as monai_ssl_finetune
from zoo.entries.monai_ssl import pretrain as monai_ssl_pretrain
from zoo.errors import OptionError
from zoo.training.args import TrainArgs, arg, build_from, default, facts_of_args, flag_of, parse_args, run_command
from zoo.training.optim import Plateau, build_optimizer, lr_factor
from zoo.training.resuming import changes_of

CAID = {"list": "table", "val_list": "val_table", "test_list": "test_table"}
GLCL = {"list": "table", "structures": "classes"}
MONAI_SSL = {"list": "table", "img_size": "size"}


@dataclass(kw_only=True)
class Args(TrainArgs):
    """A recipe's own arguments."""

    epochs: int = arg("length of the run", 7)
    mode: str = arg("one of two", "left", ("left", "right"))
    mirror: bool = arg("switch", True)


NEEDED = ["--data", "images", "--out", "runs/a"]


def test_flags_come_from_the_fields():
    """Types, dashes, switches with their opposite, and a recipe's own default."""
    args = parse_args(
        Args, [*NEEDED, "--batch-size", "12", "--lr", "0.5", "--sync-bn", "--no-mirror", "--mode", "right"]
    )
    assert (args.data, args.out, args.batch_size, args.lr) == ("images", "runs/a", 12, 0.5)
    assert (args.sync_bn, args.mirror, args.mode, args.epochs) == (True, False, "right", 7)
    assert isinstance(args, Args)
    assert not args.resume


def test_another_default_leaves_the_rest_of_an_argument():
    """Its help, its legal values, that a resumed run may have it otherwise; also where a class does it once more."""

    @dataclass(kw_only=True)
    class Middle(Args):
        mode: str = default("right")
        patience: int = default(3)

    @dataclass(kw_only=True)
    class Last(Middle):
        mode: str = default("left")
        patience: int = arg("stop early", 5)

    assert (Middle(data="d", out="o").mode, Last(data="d", out="o").mode) == ("right", "left")
    assert facts_of_args(Last)["mode"] == facts_of_args(Args)["mode"]
    assert facts_of_args(Middle)["patience"] == facts_of_args(TrainArgs)["patience"]
    assert (facts_of_args(Last)["patience"]["help"], facts_of_args(Last)["patience"]["free"]) == ("stop early", True)
    with pytest.raises(OptionError, match="--mode must be one of left, right, not 'up'"):
        Last(data="d", out="o", mode="up").check()


@dataclass(kw_only=True)
class Renamed(Args):
    """An argument that had another name, without a default."""

    list_of: str = arg("what it is", was="names_of")


@pytest.mark.parametrize("words", [["--names-of", "a=b"], ["--names-of=a=b"]])
def test_a_flag_of_the_release_before_is_known_by_its_old_name(words, caplog):
    """Also a required one; it is warned of."""
    assert parse_args(Renamed, [*NEEDED, *words]).list_of == "a=b"
    assert caplog.messages == ["--names-of is called --list-of now; the next release does not know the old name"]


def test_a_run_of_the_release_before_goes_on(tmp_path):
    """Its notes have the old name; another value is still another value."""
    args = Renamed(data="d", out="o", list_of="a")
    began = {**asdict(args), "names_of": "a"}
    del began["list_of"]
    assert changes_of(began, args, tmp_path / "args.json") == {}
    with pytest.raises(OptionError, match=r"list_of 'a', now 'b'"):
        changes_of(began, Renamed(data="d", out="o", list_of="b"), tmp_path / "args.json")


@pytest.mark.parametrize(
    ("kind", "old", "new"),
    [
        *((kind, old, new) for kind in (ClassifyArgs, SegmentArgs) for old, new in CAID.items()),
        *((caid_pretrain.Args, old, CAID[old]) for old in ("list", "val_list")),
        (ClassifyArgs, "labels", "label"),
        (drasclr_finetune.Args, "target", "label"),
        (drasclr_embed.Args, "subjects", "table"),
        *((module.Args, old, new) for module in (glcl_pretrain, glcl_finetune) for old, new in GLCL.items()),
        *((m.Args, old, new) for m in (monai_ssl_pretrain, monai_ssl_finetune) for old, new in MONAI_SSL.items()),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__module__.removeprefix("zoo.entries."),
)
def test_recipes_know_their_flags_by_their_old_names(kind, old, new, capsys):
    """For this release; `--help` names the new ones alone."""
    needed = [f.name for f in fields(kind) if f.default is MISSING and f.name != new]
    words = [word for name in needed for word in (flag_of(name), (facts_of_args(kind)[name]["choices"] or "x")[0])]
    value = "32"  # as a size and as a name
    assert str(getattr(parse_args(kind, [*words, flag_of(old), value]), new)) == value
    with pytest.raises(SystemExit, match="0"):
        parse_args(kind, ["--help"])
    shown = capsys.readouterr().out
    assert f"{flag_of(new)} " in shown
    assert f"{flag_of(old)} " not in shown


@pytest.mark.parametrize(
    ("main", "words"), [(drasclr_preprocess.main, []), (drasclr_data.main, ["group", "--patches", "patch"])]
)
def test_commands_know_a_table_by_its_old_name(main, words, tmp_path, capsys):
    """As recipes do: `--subjects`, which `--help` does not name."""
    for flag in ("--subjects", "--table"):
        with pytest.raises(OptionError, match=r"none\.csv does not exist"):
            main([*words, "--out", str(tmp_path / "out"), flag, str(tmp_path / "none.csv")])
    with pytest.raises(SystemExit, match="0"):
        main([*words[:1], "--help"])
    shown = capsys.readouterr().out
    assert "--table " in shown
    assert "--subjects " not in shown


def test_settings_come_from_arguments_of_their_name():
    """Of parameters by keyword alone, as a positional one may share a name by chance; what is given wins."""

    def build(mode, *, lr, momentum=1.0, other="own"):
        return mode, lr, momentum, other

    args = Args(data="d", out="o", lr=0.5, mode="left")
    assert build_from(args, build, "first", momentum=0.1) == ("first", 0.5, 0.1, "own")
    assert build_from(args, build, "first", lr=2) == ("first", 2, 0.9, "own")


def test_no_more_loader_processes_than_processors():
    """Unless the user wants them."""

    @dataclass(kw_only=True)
    class Busy(Args):
        workers: int = arg("loader processes per process", 10**6)

    assert 1 <= parse_args(Busy, NEEDED).workers == len(os.sched_getaffinity(0))
    assert parse_args(Busy, [*NEEDED, "--workers", "7777"]).workers == 7777


def test_help_says_every_default(capsys):
    """`--help` lists each flag with its help text and default, and the choices."""
    with pytest.raises(SystemExit, match="0"):
        parse_args(Args, ["--help"], "What it does.")
    text = " ".join(capsys.readouterr().out.split())
    assert "What it does." in text
    assert "default: None" not in text
    assert "default: )" not in text
    assert "length of the run (default: 7)" in text
    assert "--mirror, --no-mirror" in text
    assert "{left,right}" in text


def test_help_keeps_the_lines_of_the_description(capsys):
    """A command in it can be copied."""
    with pytest.raises(SystemExit, match="0"):
        parse_args(Args, ["--help"], "What it does.\n\n    python -m this --that\n\nAnd why.")
    assert "\n    python -m this --that\n" in capsys.readouterr().out


def test_a_package_that_is_not_there_is_one_line():
    """What to install, not a traceback; a module of our own that is missing is a fault, and stays one."""

    def main(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    with pytest.raises(SystemExit, match=r"needs the package 'sklearn.metrics'.*pip install .*'scikit-learn>="):
        run_command(lambda: main("sklearn.metrics"))
    with pytest.raises(ModuleNotFoundError, match="zoo"):
        run_command(lambda: main("zoo.nothing"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--mode", "up"], "invalid choice: 'up'"),
        (["--epochs", "many"], "invalid int value"),
        (["--epoch-size", "3"], "unrecognized arguments"),
    ],
)
def test_wrong_flags_exit_with_argparse_words(flags, message, capsys):
    """Exit code 2 and the flag's name."""
    with pytest.raises(SystemExit, match="2"):
        parse_args(Args, [*NEEDED, *flags])
    assert message in capsys.readouterr().err


def test_all_wrong_values_are_named_at_once():
    """One error lists every problem, so nobody fixes them one run at a time."""
    args = Args(
        data="",
        out="o",
        epochs=0,
        batch_size=-1,
        lr=0.0,
        mode="up",
        precision="fp8",
        warmup_epochs=3,
        plateau_factor=2,
    )
    with pytest.raises(OptionError) as error:
        args.check()
    for words in (
        "--data is empty",
        "--epochs must be at least 1, not 0",
        "--batch-size must be at least 1, not -1",
        "--lr must be positive, not 0.0",
        "--mode must be one of left, right, not 'up'",
        "--precision must be one of fp32, bf16, fp16, not 'fp8'",
        "--warmup-epochs 3 is longer than the run, --epochs 0",
        "--plateau-factor must lie between 0 and 1, not 2",
    ):
        assert words in str(error.value)
    with pytest.raises(OptionError, match="--patience must be at least 0, not -1"):
        parse_args(Args, [*NEEDED, "--patience", "-1"])


def course(steps_per_epoch, **settings):
    args = Args(data="d", out="o", **settings)
    return [
        lr_factor(args, epoch, step, steps_per_epoch) for epoch in range(args.epochs) for step in range(steps_per_epoch)
    ]


def test_cosine_by_hand():
    """Per epoch: constant within one, half at the middle. Per step: falls at every step."""
    half = 0.5 * (1 + math.cos(math.pi / 4))
    assert course(2, schedule="cosine", epochs=4) == pytest.approx([1, 1, half, half, 0.5, 0.5, 1 - half, 1 - half])
    expected = [0.5 * (1 + math.cos(math.pi * k / 8)) for k in range(8)]
    assert course(2, schedule="cosine-per-step", epochs=4) == pytest.approx(expected)


def test_warm_up_is_linear_and_reaches_the_peak():
    """Two epochs of three steps climb by sixths to 1; the cosine covers what is left of the run."""
    values = course(3, schedule="cosine", epochs=4, warmup_epochs=2)
    assert values == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1, 1, 1, 1, 0.5, 0.5, 0.5])
    values = course(3, schedule="cosine-per-step", epochs=3, warmup_epochs=1)
    assert values[:4] == pytest.approx([1 / 3, 2 / 3, 1, 1])
    assert values[-1] == pytest.approx(0.5 * (1 + math.cos(math.pi * 5 / 6)))


def test_constant_and_plateau_have_no_course():
    """Only the warm-up changes them; 'plateau' has a factor of its own."""
    for schedule in ("constant", "plateau"):
        assert course(2, schedule=schedule, epochs=3, warmup_epochs=1) == [0.5, 1, 1, 1, 1, 1]


def test_plateau_waits_then_shrinks_and_remembers():
    """With patience 1 the second epoch without improvement halves; one of less than 1e-4 is none."""
    args = Args(data="d", out="o", schedule="plateau", plateau_patience=1, plateau_factor=0.5)
    plateau = Plateau(args)
    factors = []
    for value in (1.0, 1.0, 0.9, 0.95, 0.89999, 0.91):
        plateau.observe(value)
        factors.append(plateau.factor)
    assert factors == [1, 1, 1, 1, 0.5, 0.5]
    again = Plateau(args)
    again.load_state_dict(plateau.state_dict())
    again.observe(0.9)
    assert again.factor == 0.25
    other = Plateau(Args(data="d", out="o", schedule="cosine", plateau_patience=0))
    other.observe(1.0)
    other.observe(1.0)
    assert other.factor == 1


@pytest.mark.parametrize(("name", "kind"), [("sgd", "SGD"), ("adam", "Adam"), ("adamw", "AdamW")])
def test_optimizers_get_the_run_s_settings(name, kind):
    """The class that is named, with learning rate, weight decay and momentum; groups keep what they say themselves."""
    layers = nn.Linear(2, 2), nn.Linear(2, 2)
    args = Args(data="d", out="o", optimizer=name, lr=0.5, weight_decay=0.25, momentum=0.75)
    groups = [{"params": layers[0].parameters(), "lr": 0.125}, {"params": layers[1].parameters()}]
    optimizer = build_optimizer(groups, args)
    assert type(optimizer).__name__ == kind
    assert [g["lr"] for g in optimizer.param_groups] == [0.125, 0.5]
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.25, 0.25]
    assert optimizer.param_groups[0].get("momentum", 0.75) == 0.75
    assert isinstance(optimizer, torch.optim.Optimizer)


def test_the_help_names_each_panel_once_with_all_its_flags(capsys):
    with pytest.raises(SystemExit):
        parse_args(Args, ["--help"], panels={"first panel": ("seed", "workers")}, rest="all others")
    said = capsys.readouterr().out
    assert said.count("first panel:") == 1
    first = said[said.index("first panel:") : said.index("all others:")]
    assert "--seed" in first
    assert "--workers" in first
