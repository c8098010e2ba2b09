"""The share of a cohort that falls to this process, under torchrun and in SLURM arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

from zoo.errors import OptionError
from zoo.settings import slurm_array, torchrun_rank

T = TypeVar("T")


class Share(NamedTuple):
    """Number of this process, and of all that share the cases."""

    rank: int = 0
    world: int = 1

    def of(self, items: Sequence[T]) -> Sequence[T]:
        """Return those of some items that fall to this process."""
        return items[self.rank :: self.world]


ALONE = Share()


def this_share() -> Share:
    """Return the share of this process; each task of a SLURM array may run torchrun.

    Raises:
        OptionError: The array has gaps, as `--array=1,5` has, so that the number of a task does not tell its share; or
            RANK is not below WORLD_SIZE.
    """
    rank, world = torchrun_rank()
    if not 0 <= rank < world:
        raise OptionError(f"RANK={rank} with WORLD_SIZE={world}: a number from 0 to {world - 1} is expected")
    task, tasks, first, step = slurm_array()
    number, rest = divmod(task - first, step)
    if rest or not 0 <= number < tasks:
        raise OptionError(
            f"SLURM_ARRAY_TASK_ID={task} in an array of {tasks} tasks from {first} on in steps of {step}: an array "
            "without gaps is expected, as --array=0-9. One task alone embeds all that is left"
        )
    return Share(number * world + rank, tasks * world)
