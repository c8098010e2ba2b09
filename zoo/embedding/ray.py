"""Embeds the units of a cohort on a Ray cluster."""

from __future__ import annotations

import logging
import os
import pickle
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zoo.embedding.cases import Cases
from zoo.embedding.embedder import Embedded, Embedder
from zoo.embedding.reading import processors, workers_for
from zoo.errors import OptionError, ZooError
from zoo.features import import_pyarrow
from zoo.messages import install_hint, printable, reason_of
from zoo.settings import defaults, ray_address, those_set

if TYPE_CHECKING:
    from types import ModuleType

Units = Sequence[Sequence[int]]

_CPUS_OF_ACTOR = 4
"""Without a GPU: threads gain little beyond it, and each actor holds a network and a batch in memory."""
_UNITS_AT_ONCE = 64
"""Units that an actor is given together, at most: its reading processes start anew for each such stretch."""
_STRETCHES_OF_ACTOR = 4
"""How many each actor gets, at least, so that all of them end at about the same time."""
_UNWATCHED = {"RAY_USAGE_STATS_ENABLED": "0"}
"""Nothing is counted for Ray's authors."""
_DEVICES = ("auto", "cpu", "cuda")
_COLUMN = "pickle"
_WAY_ON = "The same command goes on with what is left"


def embed_units(
    embedder: Embedder, cases: Cases, units: Units, *, address: str | None = None
) -> Iterator[list[Embedded]]:
    """Yield what becomes of the cases of each unit, see `Embedder.units`, in whatever order they are done.

    An actor on each GPU of the cluster, or else on every four CPUs, holds a network of its own, and reads its cases in
    further processes. One that is killed is started again, and what it was at is done again. On every machine of the
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
    ray = _import_ray()
    given = (pickle.dumps(embedder), torch.get_num_threads(), dict(those_set()), _folder(embedder, cases))
    done: set[int] = set()
    with defaults(_UNWATCHED), _connected(ray, address), _quiet("ray.data"), _told(ray):
        pool = _pool(ray, embedder)
        stretches = list(_stretches(cases, units, pool))
        for found in _results(ray, (*given, pool), pool, stretches):
            if found[0].case not in done:
                done.add(found[0].case)
                yield found
    if len(done) < len(units):
        raise ZooError(f"Ray gave back {len(done)} of {len(units)} batches. {_WAY_ON}")


# The cluster


def _import_ray() -> ModuleType:
    try:
        import ray.data
    except ImportError as error:
        raise OptionError(f"engine='ray' takes Ray Data ({error}): {install_hint('ray[data]', 'ray')}") from error
    return ray


@contextmanager
def _connected(ray: ModuleType, address: str | None) -> Iterator[None]:
    """Be connected to a cluster inside the block; one that was started for it ends with it."""
    if ray.is_initialized() and address is None:
        yield
        return
    try:
        with _own_sigterm():
            _connect(ray, address)
        yield
    finally:
        ray.shutdown()


def _connect(ray: ModuleType, address: str | None) -> None:
    options: dict[str, Any] = {"logging_level": logging.ERROR}
    of_own = options | {"num_cpus": processors(), "include_dashboard": False}
    try:
        if address not in (None, "local"):
            ray.init(address=address, **options)
            return
        try:
            ray.init(address=address, **of_own)
        except ValueError:  # there is a cluster, of which these cannot be said
            ray.init(**options)
    except Exception as error:
        where = printable(address or ray_address() or "this machine")
        raise OptionError(
            f"no Ray cluster at {where} ({reason_of(error)}): a running one is expected, HOST:PORT, or local to start "
            "one on this machine"
        ) from error


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep this program's handler of SIGTERM, in whose place Ray puts one that exits, inside the block and after it."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit as end:
        if end.code == signal.SIGTERM and callable(before):
            before(signal.SIGTERM, None)
        raise
    finally:
        if before is not None and signal.getsignal(signal.SIGTERM) != before:
            signal.signal(signal.SIGTERM, before)


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Have a logger say nothing but errors inside the block."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


# The actors


@dataclass(frozen=True)
class _Pool:
    """How many actors there are, and what each has."""

    size: int
    cpus: int
    gpus: int
    readers: int


def _pool(ray: ModuleType, embedder: Embedder) -> _Pool:
    """Divide the machines of the cluster, as it is now, among actors."""
    if str(embedder.device) not in _DEVICES:
        raise OptionError(f"device={str(embedder.device)!r} with Ray: {', '.join(_DEVICES)} are known")
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    having = [(int(node.get("CPU", 0)), int(node.get("GPU", 0))) for node in nodes]
    if embedder.device != "cpu" and (gpus := sum(gpu for _, gpu in having)):
        share = min(cpu // gpu for cpu, gpu in having if gpu)
        return _Pool(gpus, share, 1, workers_for(_UNITS_AT_ONCE, max(1, share)))
    if embedder.device == "cuda":
        raise OptionError("device='cuda': the Ray cluster has no GPU")
    cpus = [cpu for cpu, _ in having if cpu]
    if not cpus:
        raise OptionError("the Ray cluster has neither a CPU nor a GPU: it gives work to none of its machines")
    share = min(_CPUS_OF_ACTOR, *cpus)
    return _Pool(sum(cpu // share for cpu in cpus), share, 0, 1)


@dataclass(frozen=True)
class _Stretch:
    """Some units that an actor embeds one after the other."""

    units: list[range]
    """Positions in `cases`."""
    cases: Cases
    positions: list[int]
    """Those of `cases` in the list of all cases."""


def _stretches(cases: Cases, units: Units, pool: _Pool) -> Iterator[_Stretch]:
    step = min(_UNITS_AT_ONCE, max(1, len(units) // (pool.size * _STRETCHES_OF_ACTOR)))
    for first in range(0, len(units), step):
        some = units[first : first + step]
        positions = [case for unit in some for case in unit]
        paths = [cases.paths[case] for case in positions]
        points = None if cases.points is None else [cases.points[case] for case in positions]
        ends = [sum(map(len, some[: i + 1])) for i in range(len(some))]
        ranges = [range(end - len(unit), end) for unit, end in zip(some, ends, strict=True)]
        yield _Stretch(ranges, Cases(paths, paths, {}, points), positions)


class _Actor:
    """What each actor does: it loads a network, and makes tables of what became of each unit of a stretch.

    Tables hold pickles: paths need not be text, and arrays of any shape come back to the bit.
    """

    def __init__(self, embedder: bytes, threads: int, settings: dict[str, str], folder: str, pool: _Pool) -> None:
        import torch

        os.environ.update(settings)
        if folder:
            os.chdir(folder)
        torch.set_num_threads(max(1, min(threads, pool.cpus)))
        self.embedder: Embedder = pickle.loads(embedder)
        self.embedder.device = "cuda" if pool.gpus else "cpu"
        self.embedder.progress = False
        self.readers = pool.readers
        with _quiet("zoo"):  # this process has said what the weights are
            _ = self.embedder.network

    def __call__(self, table: Any) -> Iterator[Any]:
        for stretch in _objects(table):
            for found in self.embedder.embed_units(stretch.cases, stretch.units, workers=self.readers):
                yield _table([each._replace(case=stretch.positions[each.case]) for each in found])


def _results(
    ray: ModuleType, given: tuple[Any, ...], pool: _Pool, stretches: list[_Stretch]
) -> Iterator[list[Embedded]]:
    """Yield what comes back from the actors, a unit at a time."""
    rows = [{_COLUMN: pickle.dumps(stretch)} for stretch in stretches]
    data = ray.data.from_items(rows, override_num_blocks=len(rows))
    data.context.enable_progress_bars = False
    data.context.print_on_execution_start = False
    data.context.target_max_block_size = 1  # a unit comes back when it is done, not with others
    found = data.map_batches(
        _Actor,
        fn_constructor_args=given,
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=min(pool.size, len(stretches))),
        num_cpus=pool.cpus,
        num_gpus=pool.gpus,
    )
    for table in found.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        yield from _objects(table)


@contextmanager
def _told(ray: ModuleType) -> Iterator[None]:
    """Say what has ended the run in the zoo's words: the zoo's own error of an actor, or the reason that Ray gives."""
    try:
        yield
    except (ray.exceptions.RayError, ray.data.exceptions.ExecutionTimeoutError) as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, ZooError):
            raise cause from None
        raise ZooError(f"Ray has ended the run: {reason_of(cause or error)}. {_WAY_ON}") from error


def _table(content: list[Embedded]) -> Any:
    arrow, _ = import_pyarrow()
    return arrow.table({_COLUMN: arrow.array([pickle.dumps(content)], arrow.large_binary())})


def _objects(table: Any) -> Iterator[Any]:
    return map(pickle.loads, table.column(_COLUMN).to_pylist())


def _folder(embedder: Embedder, cases: Cases) -> str:
    """The working directory, where a path leads from it."""
    paths = (*cases.paths, embedder.checkpoint or "/", embedder.cache_dir or "/")
    return "" if all(map(os.path.isabs, paths)) else os.getcwd()
