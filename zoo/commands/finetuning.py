r"""Fine-tune a model of the zoo on your own images and labels, and test it.

    zoo finetune caid-resnet50 --task classify --table labels.csv --data images --label pneumonia -o run
    zoo finetune brainiac-vitb16 --task regress --table people.csv --data scans --label age --group patient -o run
    zoo finetune voco-swinunetr-b --task segment --table cases.csv --data scans --masks labels -o run
    torchrun --nproc-per-node 4 -m zoo finetune ct-fm-segresenc --task classify --table cases.csv --label finding \
        --group patient --split split -o run --resume

classify learns columns of 0 and 1, each with a probability of its own, or one column of classes; regress learns
numbers; segment learns label maps, each called like its image, in crops of which a step has --parts of each volume, and
tells Dice and Hausdorff distances of each structure; without --table it takes all images of --data with a mask. Cells
that are empty, NA, N/A, nan, null or unknown are no label. Cases are divided at random by --group, a fifth for the
test, unless --split names a column of train, val and test. The best epoch of the validation part is tested, with the
thresholds that have the largest sum of sensitivity and specificity there, of two classes too. What 0 or nothing stands
for is chosen from the number of cases.

OUT then has `model.safetensors`, which `zoo predict` and `zoo.load_model(NAME, checkpoint=...)` take, `results.json`
with 95 % intervals by group, `splits.csv`, `predictions.csv` of the test part, pictures, and what a run needs to go on
with --resume. After --cross-validate it has a folder for each fold, `predictions.csv` of all cases, and with --final
the folder final, whose network learnt from all cases for as many epochs as the best ones of the folds, by their median.
AUROC, average precision and rank correlation are then the means of the folds', whose scores are not on one scale; all
other measures are of all cases, each decided at the threshold of its fold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from zoo.errors import OptionError, ZooError
from zoo.messages import printable
from zoo.oddities import each_once
from zoo.progress import say
from zoo.tasks.args import FinetuneArgs
from zoo.tasks.task import Task
from zoo.training.args import parse_args
from zoo.training.failures import in_one_line
from zoo.training.metrics import Results

_READERS = {name: f"zoo.tasks.{name}" for name in ("classify", "regress", "segment")}
"""Task -> the module that has a function of its name; that of `segment` takes seconds to import."""
_USAGE = "zoo finetune NAME --task {classify,regress,segment} --table TABLE -o OUT [options]; --help has them all"
_SHORT = {"-o": "--out"}
_PANELS = {
    "your data": ("table", "data", "path_column", "label", "uncertain", "group", "split", "site", "masks", "classes"),
    "task and model": ("task", "size", "window", "checkpoint", "from_scratch", "freeze"),
    "the run": (
        *("out", "dry_run", "resume", "pair", "cross_validate", "final", "epochs", "batch_size", "lr", "patience"),
        *("device", "precision", "workers", "seed"),
    ),
}
"""What most users need; the rest of the flags come behind it."""


def finetune(words: Sequence[str]) -> Results:
    """Run `zoo finetune` with the words behind it; the first one, if it is no flag, is the model.

    Raises:
        OptionError: They do not fit together.
        ZooError: What else goes wrong that can happen to anybody, in one line.
        Stopped: A signal ended the run.
    """
    from zoo.tasks.run import finetune as run
    from zoo.tasks.trying import lines_of, try_run

    shown: dict[str, Any] = {"panels": _PANELS, "rest": "training loop", "hidden": ("model",)}
    args = parse_args(FinetuneArgs, _flags(words), __doc__, prog="zoo finetune", usage=_USAGE, **shown)
    try:
        if not args.dry_run:
            return run(args, reader_of(args.task))
        with each_once():
            found = try_run(args, reader_of(args.task))
        for text in lines_of(found):
            say(text)
        return found
    except (ZooError, OSError):
        raise
    except Exception as error:  # of any kind: `in_one_line` knows those that end with a line
        if (line := in_one_line(error)) is None:
            raise
        raise ZooError(line) from error


def reader_of(task: str) -> Callable[[FinetuneArgs], Task]:
    """Return what reads the task of a run from its table.

    Raises:
        OptionError: There is no such task.
    """
    if task not in _READERS:
        raise OptionError(f"--task {printable(task)}: {', '.join(_READERS)} are known")
    reader: Callable[[FinetuneArgs], Task] = getattr(import_module(_READERS[task]), task)
    return reader


def _flags(words: Sequence[str]) -> list[str]:
    """The words with the model behind its flag, and short flags in full."""
    given = [_SHORT.get(word, word) for word in words]
    if given and not given[0].startswith("-"):
        return ["--model", *given]
    if not any(word in ("-h", "--help") or word.startswith("--model") for word in given):
        raise OptionError(f"no model: its NAME comes first, see `zoo list`; usage: {_USAGE}")
    return given
