"""The protocol of tasks and trials: what `zoo.tasks.run` trains, tests and saves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset

from zoo.embedding import Cases
from zoo.entry import Preprocessing, State
from zoo.formats import Task as TaskName
from zoo.tasks.args import FinetuneArgs
from zoo.tasks.outputs import Outputs
from zoo.tasks.splits import Split
from zoo.tasks.telling import Rarest
from zoo.training.distributed import Processes
from zoo.training.metrics import Results
from zoo.training.runlog import Metrics

Rows: TypeAlias = Sequence[int]
"""Positions of cases among all cases of a run."""
Answers: TypeAlias = Mapping[str, NDArray[Any]]
"""What is known of each case after prediction, as probabilities and decisions: arrays by name, a row for each case."""


class Trial(Protocol):
    """One training of a network: its method, its data, and what it makes of a part of them."""

    method: nn.Module
    """From a batch to losses, for `zoo.training.loop.fit`; its `network` is the zoo's."""
    data: Mapping[str, Dataset[Any]]
    """By part: `train`, `val` and, where there is one, `test`."""

    def predict(self, part: str) -> Tensor:
        """Return what the method as it is makes of each case of a part, `(cases, ...)`, the same on every process."""

    def state(self) -> State:
        """Return the network's tensors as they are saved."""


class Task(Protocol):
    """What is learnt: the cases with their labels, and how answers are judged."""

    name: TaskName
    cases: Cases
    groups: Sequence[str]
    """What each case must stay together with."""
    names: tuple[str, ...]
    """Of the outputs."""
    contract: Preprocessing
    """Input of the network, whatever it starts from."""
    most: int
    """Cases per step where there are enough."""

    def labels(self) -> Sequence[str]:
        """Return what the user says of each case, as text; it stays the same throughout a run."""

    def strata(self) -> Sequence[str]:
        """Return of each case what every part should have its share of."""

    def count(self, rows: Rows) -> Results:
        """Return how many cases of each kind there are."""

    def check(self, split: Split) -> list[str]:
        """Return what to warn of in a split; raises `OptionError` where nothing can be learnt or judged from it."""

    def begin(self, network: nn.Module, args: FinetuneArgs, split: Split, processes: Processes) -> Trial:
        """Make a trial of a network from `load_network`; called by all processes."""

    def metrics(self, rows: Rows, found: Tensor) -> Metrics:
        """Return what is logged of the validation part after each epoch; `loss` is among it."""

    def outputs(self, split: Split, found: Tensor) -> Outputs:
        """Return how outputs become answers; thresholds follow from what was found of the validation part."""

    def answers(self, found: Tensor, outputs: Outputs) -> Answers:
        """Return the answers for some cases."""

    def judge(self, rows: Rows, answers: Answers, folds: Sequence[int] = ()) -> Results:
        """Return the results of a part, with intervals; of a cross-validation with the fold that tested each case."""

    def compare(self, rows: Rows, answers: Answers, twin: Answers, folds: Sequence[int] = ()) -> Results:
        """Return the paired gain over the same training from random weights: `of` what, `gain`, `low` and `high`."""

    def rarest(self, rows: Rows) -> Rarest | None:
        """Return the class that the fewest groups of some cases have; None where there are no classes."""

    def write(self, rows: Rows, answers: Answers, out: Path, *, folds: Sequence[int] = ()) -> None:
        """Write the predictions for test cases into a folder, of a cross-validation with the fold of each."""

    def draw(self, trial: Trial, rows: Rows, answers: Answers, out: Path) -> None:
        """Draw pictures of the test part into a folder."""
