"""Embeds the units of a cohort on a Ray cluster."""

from __future__ import annotations

import logging
import os
import pickle
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from zoo.embedding.cases import Cases
from zoo.embedding.cluster import WAY_ON, Pool, connected, import_ray, pool_of, told
from zoo.embedding.embedder import Embedded, Embedder
from zoo.embedding.memory import keep_freed_memory
from zoo.embedding.reading import Units
from zoo.errors import ZooError
from zoo.features import import_pyarrow
from zoo.messages import problem_of
from zoo.oddities import help_count, present_folder
from zoo.settings import defaults, those_set

if TYPE_CHECKING:
    from types import ModuleType

_UNITS_AT_ONCE = 64
"""Units that an actor is given together, at most: its reading processes start anew for each such stretch."""
_STRETCHES_OF_ACTOR = 4
"""How many each actor gets, at least, so that all of them end at about the same time."""
_UNWATCHED = {"RAY_USAGE_STATS_ENABLED": "0"}
"""Nothing is counted for Ray's authors."""
_MOST_DEATHS = 3
"""Actors that may die at one unit: a machine that is taken away is no fault of the images, three in a row are."""
_COLUMN = "pickle"


def embed_units(
    embedder: Embedder, cases: Cases, units: Units, *, address: str | None = None
) -> Iterator[list[Embedded]]:
    """Yield what becomes of the cases of each unit, see `Embedder.units`, in whatever order they are done.

    An actor on each GPU of the cluster, or else on every four CPUs, holds a network of its own, and reads its cases in
    further processes. One that is killed is started again, and what it was at is done again; the cases of a unit at
    which three have died are failures. On every machine of the
    cluster this version of the zoo is installed, and the paths lead to the same files. Features have the bits of the
    local engine on the same kind of processor with the same number of threads: here that of this process, but no more
    than the actor has CPUs.

    Args:
        embedder: What makes features; of its network each actor loads a copy.
        cases: All cases.
        units: Positions of the cases of each unit.
        address: Of the cluster, `HOST:PORT`, or `local` to start one of this machine alone, which ends with the run.
            None for the one this program is connected to, that of `$RAY_ADDRESS` or of `ray start`, else `local`.

    Raises:
        OptionError: Ray is not installed, the cluster does not answer or has no GPU that is asked for.
        ZooError: No actor can be started, or the cluster gave up; what `load_model` raises in an actor.
    """
    import torch

    if not units:
        return
    ray = import_ray()
    settings, folder = dict(those_set()), _folder(embedder, cases)
    given = (pickle.dumps(embedder), torch.get_num_threads(), settings, folder, present_folder())
    done: set[int] = set()
    with defaults(_UNWATCHED), connected(ray, address), _quiet("ray.data"), told(ray):
        pool = pool_of(ray, str(embedder.device))
        data = _data(ray, _stretches(cases, units, pool))
        for found in _results(ray, data, (*given, pool, _deaths(ray)), pool):
            if isinstance(found, ZooError):
                raise found
            if found[0].case not in done:
                done.add(found[0].case)
                yield found
    if len(done) < len(units):
        raise ZooError(f"Ray gave back {len(done)} of {len(units)} batches. {WAY_ON}")


@dataclass(frozen=True)
class _Stretch:
    """Some units that an actor embeds one after the other."""

    units: list[range]
    """Positions in `cases`."""
    cases: Cases
    positions: list[int]
    """Those of `cases` in the list of all cases."""


def _stretches(cases: Cases, units: Units, pool: Pool) -> Iterator[_Stretch]:
    step = min(_UNITS_AT_ONCE, max(1, len(units) // (pool.size * _STRETCHES_OF_ACTOR)))
    for first in range(0, len(units), step):
        some = units[first : first + step]
        positions = [case for unit in some for case in unit]
        paths = [cases.paths[case] for case in positions]
        points = None if cases.points is None else [cases.points[case] for case in positions]
        ends = [sum(map(len, some[: i + 1])) for i in range(len(some))]
        ranges = [range(end - len(unit), end) for unit, end in zip(some, ends, strict=True)]
        yield _Stretch(ranges, Cases(paths, paths, {}, points), positions)


class _Deaths:
    """How many actors have begun each unit and not come to its end, in an actor of its own that outlives them.

    Ray starts an actor again that died, and has it do the same, as often as it dies.
    """

    def __init__(self) -> None:
        self.open: Counter[int] = Counter()

    def begin(self, unit: int) -> None:
        """Count an actor that begins the unit with this first case."""
        self.open[unit] += 1

    def end(self, unit: int) -> None:
        """Count one that has come to the unit's end."""
        self.open[unit] -= 1

    def at(self, units: list[int]) -> list[int]:
        """How many have died at each of these units, none of which is being done."""
        return [self.open[unit] for unit in units]


def _deaths(ray: ModuleType) -> Any:
    """Start the count on this machine, without which there is no run anyway."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": here}
    return ray.remote(**options)(_Deaths).remote()


class _Actor:
    """What each actor does: it loads a network, and makes tables of what became of each unit of a stretch.

    Tables hold pickles: paths need not be text, and arrays of any shape come back to the bit.
    """

    def __init__(
        self,
        embedder: bytes,
        threads: int,
        settings: dict[str, str],
        folder: str,
        counting: str,
        pool: Pool,
        deaths: Any,
    ) -> None:
        self.given, self.threads, self.settings, self.folder, self.pool = embedder, threads, settings, folder, pool
        self.deaths = deaths
        keep_freed_memory()
        help_count(counting)

    def __call__(self, table: Any) -> Iterator[Any]:
        try:
            for stretch in _objects(table):
                for found in self._embedded(stretch):
                    yield _table([each._replace(case=stretch.positions[each.case]) for each in found])
        except Exception as error:  # of whatever kind: it is sent back as a row, for Ray buries it in pages of its own
            yield _table(error if isinstance(error, ZooError) else ZooError(problem_of(error)))

    def _embedded(self, stretch: _Stretch) -> Iterator[list[Embedded]]:
        """Yield what becomes of each unit of a stretch; those at which actors died too often are not tried again."""
        keys = [stretch.positions[unit[0]] for unit in stretch.units]
        died = dict(zip(keys, self._ask("at", keys), strict=True))
        _ = self.embedder  # to load it is no part of a unit
        left = []
        for key, unit in zip(keys, stretch.units, strict=True):
            if died[key] < _MOST_DEATHS:
                left.append((key, unit))
            else:
                yield [Embedded(case, None, f"{died[key]} processes of Ray died at it") for case in unit]
        results = self.embedder.embed_units(stretch.cases, [unit for _, unit in left], workers=self.pool.readers)
        for key, _ in left:
            self._ask("begin", key)
            found = next(results)
            self._ask("end", key)
            yield found

    def _ask(self, method: str, argument: Any) -> Any:
        import ray

        return ray.get(getattr(self.deaths, method).remote(argument))

    @cached_property
    def embedder(self) -> Embedder:
        """That of the run, with its network, in this process."""
        import torch

        os.environ.update(self.settings)
        if self.folder:
            os.chdir(self.folder)
        torch.set_num_threads(max(1, min(self.threads, self.pool.cpus)))
        embedder: Embedder = pickle.loads(self.given)
        embedder.device = "cuda" if self.pool.gpus else "cpu"
        embedder.progress = False
        with _quiet("zoo"):  # the process that began the run has said what the weights are
            _ = embedder.network
        return embedder


def _data(ray: ModuleType, stretches: Iterator[_Stretch]) -> Any:
    rows = [{_COLUMN: pickle.dumps(stretch)} for stretch in stretches]
    data = ray.data.from_items(rows, override_num_blocks=len(rows))
    data.context.enable_progress_bars = False
    data.context.print_on_execution_start = False
    data.context.target_max_block_size = 1  # a unit comes back when it is done, not with others
    return data


def _results(ray: ModuleType, data: Any, given: tuple[Any, ...], pool: Pool) -> Iterator[list[Embedded] | ZooError]:
    """Yield what comes back from the actors: what became of a unit, or why there is no more."""
    found = data.map_batches(
        _Actor,
        fn_constructor_args=given,
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=min(pool.size, data.num_blocks())),
        num_cpus=pool.cpus,
        num_gpus=pool.gpus,
    )
    for table in found.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        yield from _objects(table)


def _table(content: list[Embedded] | ZooError) -> Any:
    arrow, _ = import_pyarrow()
    return arrow.table({_COLUMN: arrow.array([pickle.dumps(content)], arrow.large_binary())})


def _objects(table: Any) -> Iterator[Any]:
    return map(pickle.loads, table.column(_COLUMN).to_pylist())


def _folder(embedder: Embedder, cases: Cases) -> str:
    """The working directory, where a path leads from it."""
    paths = (*cases.paths, embedder.checkpoint or "/", embedder.cache_dir or "/")
    return "" if all(map(os.path.isabs, paths)) else os.getcwd()


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Silence a logger inside the block: what it would say is said, or raised, elsewhere."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)
