"""The arguments of y-Aware's fine-tuning, with their defaults."""

from __future__ import annotations

from dataclasses import dataclass

from zoo.entries.yaware import MODEL
from zoo.entries.yaware.cohort import GRIDS
from zoo.errors import OptionError
from zoo.registry import get_entry
from zoo.training.args import TrainArgs, arg, default
from zoo.training.finetune import check_start

SPLITS = ("stratified", "leave-site-out")


@dataclass(kw_only=True)
class Args(TrainArgs):
    """Published run of `main.py --mode finetuning`."""

    data: str = arg(
        ".npy array (n, 1, D, H, W), or folder of NIfTI files; MAPS.ids.txt beside an array MAPS.npy, one identifier "
        "of the table (sub-01, sub-01_ses-2) a line, is compared with the table's order"
    )
    table: str = arg("CSV or TSV with a row for each volume, in the order of an array")
    label: str = arg("column with the class of each volume")
    batch_size: int = arg(
        "volumes per optimiser step, over all processes and accumulated parts; the rest of a pass that does not fill "
        "a step is left out",
        8,
    )
    optimizer: str = default("adam")
    lr: float = default(1e-4)
    weight_decay: float = default(5e-5)
    schedule: str = default("constant")
    monitor: str = arg(
        "metric that decides which epoch is judged, with --val-share; smaller is better unless it begins with '+'",
        "val_loss",
    )
    patience: int = arg("stop after this many epochs without improvement, with --val-share; 0 for never", 0)
    workers: int = default(4)
    rows: str = arg("rows of the table to use, 'column=value'; empty for all", "")
    grid: str = arg(
        "published: check grey-matter maps, and bring files to the grid of --model's weights; any: take them unchanged",
        "published",
        GRIDS,
    )
    model: str = arg("model to start from, with or without a tag", MODEL)
    checkpoint: str = arg("file to start from instead of the model's own weights", "")
    from_scratch: bool = arg("start from random weights", False)
    freeze: bool = arg("a linear probe of the frozen features, without training", False)
    splits: str = arg("how volumes are divided into test sets", "stratified", SPLITS)
    folds: int = arg("test sets of --splits stratified", 5)
    site: str = arg("column with the site, for --splits leave-site-out", "site")
    subject: str = arg(
        "column with the subject of each volume; no subject is in two parts. Empty, or without a column "
        "participant_id, each volume is its own subject",
        "participant_id",
    )
    labelled: int = arg("subjects to train and validate on in each fold, drawn by class in proportion; 0: all", 0)
    repeats: int = arg("how often --labelled subjects are drawn in each fold", 1)
    val_share: float = arg("share of these subjects that choose the best epoch; 0 for the last epoch", 0.0)
    final: bool = arg(
        "then train a network on all subjects, the one to use: OUT/final; the folds say how good it is",
        False,
        free=True,
    )

    def check(self) -> None:
        """Raise `OptionError` for values that are wrong, or wrong together."""
        super().check()
        check_start(self)
        if self.folds < 2 or self.repeats < 1 or self.labelled < 0 or not 0 <= self.val_share < 1:
            raise OptionError(
                f"--folds {self.folds} --repeats {self.repeats} --labelled {self.labelled} --val-share "
                f"{self.val_share}: at least 2, 1 and 0, and a share from 0 to below 1 are expected"
            )
        if self.repeats > 1 and not self.labelled:
            raise OptionError(f"--repeats {self.repeats} is for several draws of --labelled subjects: give --labelled")
        if self.freeze and self.val_share:
            raise OptionError(
                f"--val-share {self.val_share}: with --freeze there are no epochs to choose among; give one of both"
            )
        if self.final and (self.freeze or self.labelled):
            other = "--freeze" if self.freeze else "--labelled"
            raise OptionError(
                f"--final with {other}: every layer of the network to use is trained on all subjects, and folds that "
                "are trained otherwise do not say how good it is; give one of both"
            )
        if not self.val_share and (self.patience or self.monitor != Args.monitor):
            raise OptionError(
                f"--monitor {self.monitor} --patience {self.patience}: without --val-share nothing is validated, and "
                f"the last epoch is judged; give --val-share, or neither of these"
            )
        if get_entry(self.model).name != MODEL:
            raise OptionError(f"--model {self.model}: this task starts from {MODEL} or {MODEL}.TAG")
