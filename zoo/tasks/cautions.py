"""What a user should know of a run before it begins: of its parts, of its images, and of the weights it starts from."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

from zoo.embedding import Cases
from zoo.evaluation.unasked import look_up_unasked
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
    found += [*_of_parts(task.cases, arms, args), *_of_pretraining(task.cases, arms, args)]
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
    if not args.split:
        yield from unused_parts(cases.carried)


def _of_pretraining(cases: Cases, arms: Sequence[Arm], args: FinetuneArgs) -> Iterator[str]:
    """Say how many of the cases that the results are of the published weights learnt from, though without labels."""
    if args.from_scratch or args.checkpoint:
        return
    judged = sorted({row for arm in arms for row in arm.tested or arm.split["val"]})
    part = "test" if any(arm.tested for arm in arms) else "validation"
    found, problem = look_up_unasked([cases.paths[row] for row in judged], args.model)
    if problem:
        yield f"whether {args.model} was pre-trained on images of the {part} part is not known: {problem}"
    if found and found.seen:
        yield (
            f"{found.name} was pre-trained on {len(found.seen)} of the {len(judged)} images of the {part} part, or on "
            "others of their patients, without these labels: results, and a gain over random weights, can look too "
            f"good. `zoo overlap TABLE --for {found.name}` names them; --split keeps them out of that part"
        )
