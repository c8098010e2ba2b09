"""What a user should know of a run before it begins: of its parts, of its images, and of the weights it starts from."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

from zoo.embedding import Cases
from zoo.evaluation.unasked import look_up_unasked
from zoo.messages import printable
from zoo.tasks.args import FinetuneArgs
from zoo.tasks.arms import Arm
from zoo.tasks.first_look import FirstLook
from zoo.tasks.splits import unused_parts
from zoo.tasks.task import Task

log = logging.getLogger("zoo")


def warnings_of(task: Task, arms: Sequence[Arm], args: FinetuneArgs, seen: FirstLook) -> list[str]:
    """Return what the user should know, a sentence or two each; all are logged, too.

    Args:
        task: What is learnt.
        arms: The trainings of the run.
        args: The run.
        seen: From `look_at`.
    """
    found = [*dict.fromkeys(line for arm in arms for line in task.check(arm.split)), *seen.warnings]
    found += [*_of_parts(task.cases, arms, args), *_of_origin(task.cases, arms, args)]
    for line in found:
        log.warning("%s", line)
    return found


def _of_parts(cases: Cases, arms: Sequence[Arm], args: FinetuneArgs) -> Iterator[str]:
    """Say what the parts of the data cannot show, and that the table has parts which are not used."""
    if not args.group and not args.split:
        yield (
            "without --group each image is taken for another patient: images of one patient can be both in the "
            "training part and in the test part, and results then look too good"
        )
    if not any(arm.tested for arm in arms):
        yield (
            f"no case has the {args.split} test: the results are those of the validation part, by which epoch and "
            "thresholds are chosen, and look too good"
        )
    if not args.split and (unused := unused_parts(cases.carried)):
        yield unused


def _of_origin(cases: Cases, arms: Sequence[Arm], args: FinetuneArgs) -> Iterator[str]:
    """Say which of the cases that the results are of the run's start has learnt from, with labels or without."""
    if args.from_scratch:
        return
    judged = [*dict.fromkeys(cases.paths[row] for arm in arms for row in arm.tested or arm.split["val"])]
    part = "test" if any(arm.tested for arm in arms) else "validation"
    start = printable(args.checkpoint or args.model)
    found, problem, learnt = look_up_unasked(judged, args.model, checkpoint=args.checkpoint or None)
    if learnt:
        yield (
            f"{start} has learnt labels before ({learnt}): of cases that it learnt from and that are in the {part} "
            "part now, results look too good. The `splits.csv` of its run says which those are"
        )
    if problem:
        yield f"whether {start} was pre-trained on images of the {part} part is not known: {problem}"
    if found and found.seen:
        yield (
            f"by their names {len(found.seen)} of the {len(judged)} images of the {part} part, or others of their "
            f"patients, are among those that {found.name} was pre-trained on, without these labels: results, and a "
            f"gain over random weights, can look too good. `zoo overlap IDS --for {found.name}` names them; IDS can be "
            "the run's predictions.csv"
        )
    if found and (untold := sum(bool(row.cohort) and not row.is_told for row in found.rows)):
        yield (
            f"{untold} of the {len(judged)} images of the {part} part are called like images of a cohort that "
            f"{found.name} was pre-trained on, and nothing tells whether it was on these"
        )
