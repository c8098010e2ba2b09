"""Whole images with labels: what classify and regress have in common, from the table to the trial of a network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from zoo.embedding import Cases, Embedder
from zoo.entry import Entry, Preprocessing, State
from zoo.errors import OptionError
from zoo.messages import first_names, printable
from zoo.policy import lifted
from zoo.registry import entries, get_entry
from zoo.tasks.args import PARTS, FinetuneArgs
from zoo.tasks.cells import say_alike, text_of
from zoo.tasks.data import Images, TrainingImages, WholeImages, kept_in
from zoo.tasks.first_look import check_size, input_of_run
from zoo.tasks.labels import Columns, with_labels
from zoo.tasks.method import Learner
from zoo.tasks.outputs import Kind, Outputs, column_names_of
from zoo.tasks.splits import FOLD, Split
from zoo.tasks.table import column_of, groups_of, read_cases
from zoo.tasks.task import Answers
from zoo.training.distributed import Processes
from zoo.training.finetune import collect
from zoo.training.metrics import Floats, Results
from zoo.training.table import write_table
from zoo.transforms import CropTransform, ImageTransform, SliceTransform, build_transform

PREDICTIONS = "predictions.csv"
_MOST_FILMS, _MOST_VOLUMES, _MOST_IN_WINDOWS = 16, 4, 2
_ROUNDS, _ROUNDS_OF_SITES = 2000, 500
_WINDOWS = 2
"""Windows of a volume that a step is given of it: with two volumes four, each of 96 voxels a side."""


@dataclass
class Cohort:
    """Cases with labels, and how the network that starts is given them."""

    args: FinetuneArgs
    entry: Entry
    contract: Preprocessing
    cases: Cases
    groups: list[str]
    sites: list[str]
    """Of each case the cell of `--site`; empty without it."""
    columns: Columns
    images: Images | None = None
    """Once a network is there; kept in OUT where that was asked for."""

    @property
    def most(self) -> int:
        """Cases per step where there are enough."""
        if self.entry.dimension == 2 and not self.is_sliced:
            return _MOST_FILMS
        return _MOST_IN_WINDOWS if self.entry.parts else _MOST_VOLUMES

    @property
    def is_sliced(self) -> bool:
        """Whether the network takes slices of volumes."""
        return isinstance(build_transform(self.contract), SliceTransform)

    @property
    def has_parts(self) -> bool:
        """Whether a case can have more parts than one."""
        return self.entry.parts is not None or self.is_sliced

    def own_groups(self, rows: Sequence[int]) -> list[str]:
        """Groups of some cases."""
        return [self.groups[i] for i in rows]

    def truth(self, rows: Sequence[int]) -> Floats:
        """Labels of some cases, `(cases, columns)`."""
        found: Floats = self.columns.values[list(rows)]
        return found

    def labels(self) -> list[str]:
        """Labels of each case as text."""
        return [";".join(self._cells(row)) for row in range(len(self.cases))]

    def count(self, rows: Sequence[int]) -> Results:
        """Cases and groups."""
        return {"cases": len(rows), "groups": len(set(self.own_groups(rows)))}

    def by_site(self, rows: Sequence[int]) -> dict[str, list[int]]:
        """For each site the positions of its cases among `rows`."""
        found: dict[str, list[int]] = {}
        for position, row in enumerate(rows) if self.sites else ():
            found.setdefault(self.sites[row], []).append(position)
        return dict(sorted(found.items()))

    def judge(
        self, judged: Callable[..., Results], rows: Sequence[int], answers: Answers, folds: Sequence[int], **said: Any
    ) -> Results:
        """Results of some cases, and under `sites` those of each site's.

        Args:
            judged: From cases, their answers, their folds and the number of draws to results with intervals.
            rows: The cases.
            answers: Arrays by name, a row for each case.
            folds: In which fold each was tested; empty where there are none.
            **said: What the results of folds say besides.
        """
        results = judged(rows, answers, folds, _ROUNDS)
        if sites := self.by_site(rows):
            results["sites"] = {}
            for site, own in sites.items():
                part = {name: values[own] for name, values in answers.items()}
                own_folds = [folds[i] for i in own] if folds else ()
                results["sites"][site] = judged([rows[i] for i in own], part, own_folds, _ROUNDS_OF_SITES)
        return results | (said if folds else {})

    def begin(
        self, network: nn.Module, args: FinetuneArgs, split: Split, processes: Processes, *, labels: Floats
    ) -> ImageTrial:
        """Make a trial of a network; the images are made and kept for the first one."""
        if self.images is None:
            if args.size:
                check_size(network, self.entry, self.contract.size, f"--size {args.size}")
            self.images = self._images(network)
        images = self.images
        if args.dry_run is False and images.folder is None:
            out = Path(self.args.out)
            images = self.images = kept_in(out, images, workers=args.workers, device=processes.device)
        given = torch.from_numpy(labels).float()
        count = self.parts_per_case(args)
        augment = self.entry.augment if args.augment else None
        training = TrainingImages(images, split["train"], given, count=count, augment=augment, seed=args.seed)
        whole = {part: WholeImages(images, rows) for part, rows in split.items() if part != "train"}
        kind: Any = self.columns.kind
        learner = Learner(network, kind, given[list(split["train"])], balanced=args.class_weights, frozen=args.freeze)
        args = replace(args, parts=count)
        return ImageTrial(learner, {"train": training, **whole}, args, processes, has_parts=self.has_parts)

    def parts_per_case(self, args: FinetuneArgs) -> int:
        """Parts of a case that a step is given."""
        return (args.parts or (PARTS if self.is_sliced else _WINDOWS)) if self.has_parts else 1

    def _images(self, network: nn.Module) -> Images:
        with lifted():  # the policy was held against the weights that the run starts from, not those of the plain name
            embedder = Embedder(self.entry.name, num_classes=max(1, len(self.columns.names)), device="cpu")
        embedder.transform, embedder.network = build_transform(self.contract), network
        return Images(self.cases, self.contract, embedder.reader)

    def write(
        self,
        rows: Sequence[int],
        outputs: Outputs,
        columns: Sequence[Sequence[Any]],
        out: Path,
        *,
        folds: Sequence[int] = (),
    ) -> None:
        """Write the labels of some cases and their answers, the columns of `column_names_of`, as a table."""
        truth = [*zip(*(self._cells(row) for row in rows), strict=True)]
        own = [[self.cases.ids[i] for i in rows], self.own_groups(rows), *([folds] if folds else [])]
        names = _columns_of(self.args, outputs.kind, self.columns.names, of_folds=bool(folds))
        write_table(out / PREDICTIONS, names, zip(*own, *truth, *columns, strict=True))

    def _cells(self, row: int) -> list[str]:
        """The labels of a case as the table has them."""
        return [text_of(self.cases.carried[column][row]) for column in self.args.columns()]


class ImageTrial:
    """One training of a network on images with labels: a `Trial` of `zoo.tasks.run`."""

    def __init__(
        self, learner: Learner, data: Mapping[str, Any], args: FinetuneArgs, processes: Processes, *, has_parts: bool
    ) -> None:
        self.learner = learner
        self.method: nn.Module = learner
        self.data: Mapping[str, Dataset[Any]] = data
        self.args, self.processes, self.has_parts = args, processes, has_parts

    def predict(self, part: str) -> Tensor:
        """Return the outputs for each case of a part, `(cases, K)` in float64, the same on every process."""
        # Images with several parts differ in how many, so each is a batch of its own.
        data: Any = self.data[part]
        alone = data.images.parts(data.rows[0]).alone
        at_once = 1 if alone else max(1, self.args.batch_size * self.args.parts)
        outputs = partial(self.learner.outputs, at_once=at_once)
        return collect(outputs, data, self.args, self.processes, one_each=self.has_parts)

    def state(self) -> State:
        """Return the network's tensors as they are saved."""
        return self.learner.state()


def read_cohort(args: FinetuneArgs, read: Any) -> Cohort:
    """Read the table of a run and its labels.

    Args:
        args: The run.
        read: From cases and columns to their `Columns`.

    Raises:
        OptionError: The model has no features to put a head on, or table, folder and labels do not fit.
    """
    entry = get_entry(args.model)
    _check_encoder(entry, args)
    contract = input_of_run(args)
    transform = build_transform(contract)
    cases = read_cases(
        args, volumes=not isinstance(transform, ImageTransform), lesions=isinstance(transform, CropTransform)
    )
    cases = with_labels(cases, args.columns(), args.uncertain)
    sites = [text_of(cell) or "unknown" for cell in column_of(cases, args.site, "--site")] if args.site else []
    say_alike(sites, f"--site {args.site}")
    columns = read(cases, args.columns())
    _check_columns(args, columns)
    return Cohort(args, entry, contract, cases, groups_of(cases, args), sites, columns)


def _columns_of(args: FinetuneArgs, kind: Kind, names: Sequence[str], *, of_folds: bool) -> list[str]:
    """Columns of `predictions.csv`, of one network or of all folds together."""
    return ["id", "group", *([FOLD] if of_folds else []), *args.columns(), *column_names_of(Outputs(kind), names)]


def _check_columns(args: FinetuneArgs, columns: Columns) -> None:
    """Raise `OptionError` where two columns of `predictions.csv` would have one name, which nothing reads back."""
    found = Counter(_columns_of(args, columns.kind, columns.names, of_folds=bool(args.cross_validate)))
    if twice := [name for name, count in found.items() if count > 1]:
        raise OptionError(
            f"--label {printable(args.label)}: {PREDICTIONS} would have several columns called "
            f"{first_names(map(repr, twice))}: rename the column in the table"
        )


def _check_encoder(entry: Entry, args: FinetuneArgs) -> None:
    if entry.is_encoder:
        return
    others = [other.name for other in entries().values() if other.family == entry.family and other.is_encoder]
    way = f"take {' or '.join(others)}" if others else "no model of its family does"
    raise OptionError(f"{args.model} has no pooled features for --task {args.task} to put a head on: {way}")
