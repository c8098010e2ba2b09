"""Reads cases in processes of their own while the network computes, and finds the one at which such a process died."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from zoo.embedding.memory import keep_films
from zoo.entry import Parts
from zoo.messages import problem_of, reason_of
from zoo.settings import processors
from zoo.signals import handling
from zoo.stopping import deferring, leave_to_parent

if TYPE_CHECKING:
    from torch import Tensor

    from zoo.embedding.cases import Cases

log = logging.getLogger("zoo")

Units: TypeAlias = Sequence[Sequence[int]]
"""For each unit, the positions of its cases in the list of cases."""

_DEATHS = (RuntimeError, OSError, EOFError)
"""What torch raises for a process that died; the last two where a tensor that it has sent is not fetched yet."""
_MOST_WORKERS = 8
_UNITS_AHEAD = 2
"""Units that each process has under way."""


class Read(NamedTuple):
    """A case that was read."""

    case: int
    """Its position in the list of cases."""
    parts: int
    """How many parts it has; 0 if it could not be read."""
    is_one: bool = False
    """Whether its parts' features are added up to one row."""
    problem: str = ""
    """Why it has no parts."""


class Unit(NamedTuple):
    """Cases that go through the network together in every run, so that their features are always the same."""

    cases: tuple[Read, ...]
    groups: tuple[Parts, ...]
    """The parts of all cases in their order, joined as far as they agree in shape: one tensor is sent much faster.

    Where they go abreast the first input is `(images, n, ...)`.
    """


def read_units(
    cases: Cases, units: Units, reader: Callable[[Any], Parts], workers: int, *, pinned: bool = False
) -> Iterator[Unit]:
    """Yield the units in their order; a case that cannot be read costs itself alone.

    A process that dies, of a fault in a decoder or for want of memory, takes with it what the others have read; which
    case it was at is found by reading those that were under way one by one, each in a process of its own.

    Args:
        cases: All of them.
        units: Positions of the cases of each unit.
        reader: What makes parts of a case; it is sent to the processes.
        workers: Processes; 0 to read in this one.
        pinned: Whether tensors are put into memory from which a GPU copies them by itself.
    """
    done = 0
    while done < len(units):
        try:
            for unit in _items(_loader(_Units(cases, units[done:], reader), workers, pinned)):
                done += 1
                yield unit
            return
        except _DEATHS as error:
            if not workers:
                raise
            log.warning("a process that reads images died (%s): the next ones are read one by one", reason_of(error))
        # Here, not above: the error holds the loader, whose other processes hold memory.
        for positions in units[done : done + workers * _UNITS_AHEAD]:
            done += 1
            yield _join([_read_alone(cases, case, reader) for case in positions])


def _items(loader: Any) -> Iterator[Unit]:
    """Yield what a loader gives; raises RuntimeError while it is waited for, and then alone, if a process died.

    Torch's own handler raises that wherever this process is just then, at the network or amid the writing of rows.
    """
    with deferring():  # of a loader that is half built the processes would never end
        items = iter(loader)
    number: Any = getattr(signal, "SIGCHLD", None)
    of_torch: Any = number and signal.getsignal(number)
    if not loader.num_workers or not callable(of_torch):
        yield from items
        return
    with _frozen(), handling((number,), _note):
        while True:
            with handling((number,), of_torch):
                of_torch(number, None)  # for those that died meanwhile
                unit = next(items, None)
            if unit is None:
                return
            yield unit


@contextmanager
def _frozen() -> Iterator[None]:
    """Leave out of garbage collections what is in memory before the block: they write to all that they look through.

    Pages that are written to are copied, and no longer shared with the loaders' processes.
    """
    import gc

    if gc.get_freeze_count():  # the program's own freezing, which ours would undo at its end
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _note(*_: object) -> None:
    """Do nothing yet at the death of a process."""


def workers_for(units: int | None, among: int | None = None) -> int:
    """Number of processes that read: one less than there are processors, at most 8, and no more than units.

    Args:
        units: Units to read; None where their number is not known.
        among: Processors; None for those that this process may use.
    """
    found = min(max(1, (among or processors()) - 1), _MOST_WORKERS)
    return found if units is None else min(found, units)


def _loader(units: _Units, workers: int, pinned: bool) -> Any:
    from torch.utils.data import DataLoader

    dataset: Any = units
    ahead = _UNITS_AHEAD if workers else None
    options: dict[str, Any] = {
        "collate_fn": _as_it_is,
        "worker_init_fn": _begin_reading,
        "prefetch_factor": ahead,
        "pin_memory": pinned,
    }
    return DataLoader(dataset, batch_size=None, num_workers=workers, **options)


def _begin_reading(number: int) -> None:
    """What a loader process does first."""
    import gc

    leave_to_parent(number)
    keep_films()
    gc.freeze()  # to look through what is the parent's would copy the pages that it lies on


def _as_it_is(unit: Unit) -> Unit:
    """Torch's own would make tensors of the numbers."""
    return unit


@dataclass(frozen=True)
class _Units:
    """A data set for loader processes, whose items are units."""

    cases: Cases
    units: Units
    reader: Callable[[Any], Parts]

    def __len__(self) -> int:
        return len(self.units)

    def __getitem__(self, number: int) -> Unit:
        return _join([_read(self.cases, case, self.reader) for case in self.units[number]])


def _read(cases: Cases, case: int, reader: Callable[[Any], Parts]) -> tuple[Read, Parts | None]:
    try:
        parts = reader(cases.case(case))
    except Exception as error:  # of whatever kind: one case never ends the run
        return Read(case, 0, problem=problem_of(error)), None
    return _found(case, parts), parts


def _found(case: int, parts: Parts) -> Read:
    return Read(case, len(parts.inputs[0]), parts.weights is not None)


def _read_alone(cases: Cases, case: int, reader: Callable[[Any], Parts]) -> tuple[Read, Parts | None]:
    try:
        unit: Unit = next(_items(_loader(_Units(cases, [[case]], reader), 1, False)))
    except _DEATHS as error:
        return Read(case, 0, problem=f"the process that read it died: {reason_of(error)}"), None
    return unit.cases[0], next(iter(unit.groups), None)


def unit_of(parts: Sequence[Parts]) -> Unit:
    """Return the unit of some images of which the parts are there, numbered in their order."""
    return _join([(_found(i, each), each) for i, each in enumerate(parts)])


def _join(found: list[tuple[Read, Parts | None]]) -> Unit:
    good = [parts for _, parts in found if parts is not None]
    groups = (list(group) for _, group in groupby(good, _shapes))
    return Unit(tuple(read for read, _ in found), tuple(map(_joined, groups)))


def _shapes(parts: Parts) -> tuple[Any, ...]:
    tensors: list[Tensor] = [*parts.inputs, *([] if parts.weights is None else [parts.weights])]
    counts = len(parts.inputs[0]) if parts.abreast else None
    return (*(tensor.shape[1:] for tensor in tensors), parts.inputs[0].dtype, counts, parts.alone, parts.scale)


def _joined(group: list[Parts]) -> Parts:
    import torch

    first = group[0]
    if len(group) == 1 and not first.abreast:
        return first
    if first.abreast:
        inputs = (torch.stack([parts.inputs[0] for parts in group]), *first.inputs[1:])
    else:
        inputs = tuple(map(_together, zip(*(parts.inputs for parts in group), strict=True)))
    return first._replace(inputs=inputs, weights=_weights(group), corners=None)


def _weights(group: list[Parts]) -> Tensor | None:
    import torch

    weights = [parts.weights for parts in group if parts.weights is not None]
    return torch.cat(weights) if weights else None


def _together(tensors: Sequence[Tensor]) -> Tensor:
    """Join tensors along their first axis; those of images, in a loader's process, in the memory that is sent."""
    import torch
    from torch.utils.data import default_collate

    if any(len(tensor) != 1 for tensor in tensors):
        return torch.cat(list(tensors))
    joined: Tensor = default_collate([tensor[0] for tensor in tensors])
    return joined
