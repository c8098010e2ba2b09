"""The task segment: a class for each pixel or voxel, learnt from label maps, judged on each image's own grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zoo.embedding import Cases
from zoo.entry import Entry, Preprocessing, Windows
from zoo.errors import OptionError
from zoo.formats import Task as TaskName
from zoo.messages import first_names
from zoo.registry import entries, get_entry
from zoo.tasks.args import FinetuneArgs
from zoo.tasks.data import KEPT, has_room
from zoo.tasks.first_look import check_size, input_of_run
from zoo.tasks.labelling import windows_of
from zoo.tasks.masked import MaskedImages
from zoo.tasks.masks import Classes, all_values, classes_of, find_pairs, pair_masks
from zoo.tasks.measures import FEW, difference_of, mean_of_values, with_interval
from zoo.tasks.outputs import Outputs
from zoo.tasks.segment_trial import SegmentTrial
from zoo.tasks.splits import FOLD, Split
from zoo.tasks.table import groups_of, read_cases
from zoo.tasks.task import Answers, Rows
from zoo.training.args import names_in
from zoo.training.distributed import Processes
from zoo.training.metrics import Floats, Results, dice, measured, or_none
from zoo.training.pictures import draw_labels
from zoo.training.prepared import prepare_all
from zoo.training.runlog import Metrics
from zoo.training.table import write_table
from zoo.transforms import ImageTransform, SliceTransform, build_transform

PREDICTIONS, PICTURE = "predictions.csv", "prediction.png"
OVERLAPS, DISTANCES = "overlaps", "distances"
_MOST_FILMS, _MOST_VOLUMES = 8, 1
"""Cases of a step; of a volume there are several crops, or slices."""


class Segment:
    """The task, as `zoo.tasks.task.Task`.

    What is found of a case are numbers of voxels of each class: in both, predicted and true (3 K). Of the validation
    the loss comes then (1). Of the test, which is on the image's own grid, the Hausdorff distances of each structure
    do, percentile 95 and largest (2 (K - 1)).
    Answers are these, `overlaps` `(N, 3, K)` and `distances` `(N, 2, K - 1)`.
    """

    name: TaskName = "segment"

    def __init__(
        self,
        args: FinetuneArgs,
        entry: Entry,
        contract: Preprocessing,
        cases: Cases,
        masks: Sequence[Path],
        values: Sequence[Sequence[int]],
        classes: Classes,
    ) -> None:
        self.args, self.entry, self.contract, self.cases = args, entry, contract, cases
        self.masks, self.values, self.classes, self.names = masks, values, classes, classes.names
        self.groups: Sequence[str] = groups_of(cases, args)
        self.transform = build_transform(contract)
        self.most = _MOST_FILMS if isinstance(self.transform, ImageTransform) else _MOST_VOLUMES
        self.images: MaskedImages | None = None
        self.windows: Windows | None = None

    def labels(self) -> list[str]:
        """Return the values that each mask has."""
        return [" ".join(map(str, own)) for own in self.values]

    def strata(self) -> list[str]:
        """Return of each case its rarest class."""
        counts = [sum(value in own for own in self.values) for value in self.classes.values]
        by_rarity = np.argsort(counts, kind="stable")
        return [next((self.names[k] for k in by_rarity if self.classes.values[k] in own), "") for own in self.values]

    def count(self, rows: Rows) -> Results:
        """Return cases, groups, and how many have each structure."""
        having = {
            name: sum(value in self.values[row] for row in rows)
            for name, value in zip(self.names[1:], self.classes.values[1:], strict=True)
        }
        return {"cases": len(rows), "groups": len({self.groups[i] for i in rows}), "cases_with": having}

    def check(self, split: Split) -> list[str]:
        """Return what to warn of; raises `OptionError` where a structure cannot be learnt, or nothing be judged."""
        said = []
        if self.classes.mapping:
            said.append(f"values of the masks stand for classes so: {_in_words(self.classes.mapping)}")
        for part, rows in split.items():
            having = self.count(rows)["cases_with"]
            if absent := [name for name, n in having.items() if not n]:
                if part == "train" or len(absent) == len(having):
                    raise OptionError(
                        f"no mask of the {part} part has {first_names(absent)}, so that "
                        f"{'it cannot be learnt' if part == 'train' else 'nothing can be judged'}: correct the masks, "
                        "or --classes, or divide the cases otherwise by --split or --seed"
                    )
                said.append(f"no mask of the {part} part has {first_names(absent)}: it says nothing of that")
            if part != "train" and len(rows) < FEW:
                said.append(f"the {part} part has {len(rows)} cases: fewer than {FEW} tell little")
        return said

    def begin(self, network: nn.Module, args: FinetuneArgs, split: Split, processes: Processes) -> SegmentTrial:
        """Make a trial of a network; images and masks are brought to its grid for the first one, and kept."""
        of_slices = isinstance(self.transform, SliceTransform)
        windows = None if of_slices else windows_of(self.entry, network, self.transform, window=self.args.sides() or ())
        if windows and (args.window or args.size):
            asked = f"--window {args.window}" if args.window else f"--size {args.size}"
            check_size(network, self.entry, windows.size, asked)
        if self.images is None:
            self.images = self._images(windows.margin if windows else 0, args, processes)
        self.windows = windows
        return SegmentTrial(self.entry, self.images, network, args, split, processes, windows)

    def _images(self, margin: int, args: FinetuneArgs, processes: Processes) -> MaskedImages:
        """Images with their masks; kept in OUT where the disk has room, else made anew each time."""
        paths, out = [Path(path) for path in self.cases.paths], Path(self.args.out)
        images = MaskedImages(paths, self.masks, self.transform, self.classes, margin)
        if args.dry_run or not has_room(out, images.size(), processes.device):
            return images
        images, folder = replace(images, folder=out / KEPT), out / KEPT
        folder.mkdir(exist_ok=True)
        prepare_all(folder, range(len(paths)), images.keep, workers=args.workers, what="images")
        return images

    def metrics(self, rows: Rows, found: Tensor) -> Metrics:
        """Return the mean `loss` of cases, and their mean `dice`, which stays 0 while the loss already falls."""
        return {"loss": found[:, -1].mean().item(), "dice": float(np.nanmean(_of_cases(self._dice(found))))}

    def outputs(self, split: Split, found: Tensor) -> Outputs:
        """Return the kind of outputs, with the windows of the training and the values of the masks."""
        values = self.classes.values if self.classes.mapping else ()
        return Outputs("voxels", window=self.windows.size if self.windows else (), values=values)

    def answers(self, found: Tensor, outputs: Outputs) -> Answers:
        """Return `overlaps`, and of the test part `distances`."""
        counted = 3 * len(self.names)
        overlaps, distances = measured(found if found.shape[1] > counted + 1 else found[:, :counted], len(self.names))
        return {OVERLAPS: overlaps.numpy()} | ({} if distances is None else {DISTANCES: distances.numpy()})

    def judge(self, rows: Rows, answers: Answers, folds: Sequence[int] = ()) -> Results:
        """Return the mean Dice of cases, and Dice and distances of each structure, with intervals by group.

        Each case has values of its own: in which fold it was tested does not matter. Dice of a case is the mean over
        the structures that its mask or the prediction has. A structure that is predicted where there is none has a
        Dice of 0, and no distance.
        """
        groups, by_case = [self.groups[i] for i in rows], self._dice(torch.from_numpy(answers[OVERLAPS]).flatten(1))
        each: Results = {}
        for k, name in enumerate(self.names[1:]):
            each[name] = {
                "cases": int((answers[OVERLAPS][:, 2, k + 1] > 0).sum()),
                "dice": with_interval(mean_of_values(by_case[:, k]), groups),
            }
            if DISTANCES in answers:
                near, largest = answers[DISTANCES][:, :, k].T
                each[name] |= {
                    "hausdorff95": with_interval(mean_of_values(near), groups),
                    "hausdorff": or_none(mean_of_values(largest)(np.ones(len(rows)))),
                    "compared": int(np.isfinite(near).sum()),
                }
        mean = with_interval(mean_of_values(_of_cases(by_case)), groups)
        results: Results = {"cases": len(rows), "dice": mean["value"], "dice_interval": [mean["low"], mean["high"]]}
        if DISTANCES in answers:
            results["distances_in"] = "pixels" if isinstance(self.transform, ImageTransform) else "mm"
        if self.classes.mapping:
            results["values"] = self.classes.mapping
        return {**results, "classes": each}

    def compare(self, rows: Rows, answers: Answers, twin: Answers, folds: Sequence[int] = ()) -> Results:
        """Return the gain in mean Dice over the training from random weights, with its paired interval."""
        dice = (self._dice(torch.from_numpy(each[OVERLAPS]).flatten(1)) for each in (answers, twin))
        own, other = (mean_of_values(_of_cases(each)) for each in dice)
        gain = with_interval(difference_of(own, other), [self.groups[i] for i in rows])
        return {"of": "Dice", "gain": gain["value"], "low": gain["low"], "high": gain["high"]}

    def rarest(self, rows: Rows) -> None:
        """Return None: there are no classes of cases."""

    def write(self, rows: Rows, answers: Answers, out: Path, *, folds: Sequence[int] = ()) -> None:
        """Write `predictions.csv`: Dice and distances of each case, empty where there is none."""
        by_case = self._dice(torch.from_numpy(answers[OVERLAPS]).flatten(1))
        columns: list[Sequence[object]] = [[self.cases.ids[i] for i in rows], [self.groups[i] for i in rows]]
        names = ["id", "group"]
        if folds:
            names, columns = [*names, FOLD], [*columns, folds]
        for k, name in enumerate(self.names[1:]):
            names += [f"dice_{name}", f"hausdorff95_{name}"]
            columns += [_cells(by_case[:, k]), _cells(answers[DISTANCES][:, 0, k])]
        write_table(out / PREDICTIONS, names, zip(*columns, strict=True))

    def draw(self, trial: Any, rows: Rows, answers: Answers, out: Path) -> None:
        """Draw `prediction.png`: the case whose Dice is in the middle, beside its truth, as the network sees it."""
        dice_of = _of_cases(self._dice(torch.from_numpy(answers[OVERLAPS]).flatten(1)))
        known = np.flatnonzero(np.isfinite(dice_of))
        if not len(known):
            return
        at = int(known[middle_of(dice_of[known])])
        image, truth, found = trial.shown(rows[at])
        title = f"{self.cases.ids[rows[at]]}, Dice {dice_of[at]:.2f}: the middle one of {len(known)} test cases"
        draw_labels(out / PICTURE, image, truth, found, title=title, structures=self.names[1:])

    def _dice(self, found: Tensor) -> Floats:
        """Dice of each structure of each case `(N, K - 1)`, NaN where neither mask nor prediction has it."""
        overlaps = found[:, : 3 * len(self.names)].double().view(len(found), 3, len(self.names))
        values: Floats = dice(overlaps, dim=1)[:, 1:].numpy()
        return values


def segment(args: FinetuneArgs) -> Segment:
    """Read the task of a run.

    Raises:
        OptionError: The model does not segment, or table, folders and classes do not fit.
        InputContractError: Masks cannot be read.
    """
    entry = get_entry(args.model)
    if not entry.segments:
        others = [name for name, other in entries().items() if other.segments]
        raise OptionError(f"{args.model} does not segment: {entry.summary}. Take {first_names(others, 20)}")
    contract = input_of_run(args)
    transform = build_transform(contract)
    films, sides = isinstance(transform, ImageTransform), args.sides()
    if sides and (isinstance(transform, SliceTransform) or len(sides) != entry.dimension):
        takes = "slices whole" if isinstance(transform, SliceTransform) else f"windows of {entry.dimension} sides"
        raise OptionError(f"--window {args.window}: {args.model} takes {takes}")
    if args.table:
        cases = read_cases(args, volumes=not films, lesions=False)
        masks = pair_masks(cases, args.data, args.masks, films=films)
    else:
        cases, masks = find_pairs(args.data, args.masks, films=films)
    values = all_values(masks, films=films)
    return Segment(args, entry, contract, cases, masks, values, classes_of(values, names_in(args.classes)))


def _of_cases(values: Floats) -> Floats:
    """Mean of each row over what it has; NaN for a row without anything."""
    known = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        means: Floats = np.where(known, values, 0).sum(1) / known.sum(1)
    return means


def _cells(values: Floats) -> list[str]:
    return ["" if value != value else f"{value:.4f}" for value in values.tolist()]


def _in_words(mapping: Mapping[str, str]) -> str:
    return ", ".join(f"{value} {name}" for value, name in mapping.items())


def middle_of(values: Floats) -> int:
    """Position of the value in the middle; of an even number the lower of the two, for a picture must not flatter."""
    return int(np.argsort(values, kind="stable")[(len(values) - 1) // 2])
