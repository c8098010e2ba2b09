"""Runs a function in several processes joined by gloo, for tests of what processes do together."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from zoo.training import distributed


def start(function: Callable[..., Any], world: int, folder: Path, *args: Any) -> list[multiprocessing.Process]:
    """Fork `world` processes that call `function(*args)` as one process group. Forking spares them the imports."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "store").unlink(missing_ok=True)
    context = multiprocessing.get_context("fork")
    group = [context.Process(target=_child, args=(function, rank, world, folder, args)) for rank in range(world)]
    for process in group:
        process.start()
    return group


def wait(group: list[multiprocessing.Process], timeout: float = 120) -> list[int | None]:
    """Exit codes of a group; once one process has failed, the others have two seconds to notice."""
    end = time.monotonic() + timeout
    while any(p.exitcode is None for p in group) and time.monotonic() < end:
        if any(p.exitcode for p in group):
            end = min(end, time.monotonic() + 2)
        time.sleep(0.01)
    codes = [p.exitcode for p in group]
    for process in group:
        process.kill()
        process.join()
    return codes


def run(function: Callable[..., Any], world: int, folder: Path, *args: Any) -> list[Any]:
    """What `function(*args)` returned in each process; what `torch.load(weights_only=True)` reads can be returned."""
    codes = wait(start(function, world, folder, *args))
    assert codes == [0] * world, f"exit codes {codes}"
    return [torch.load(folder / f"result{rank}.pt", weights_only=True) for rank in range(world)]


def _child(function: Callable[..., Any], rank: int, world: int, folder: Path, args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    store = f"file://{(folder / 'store').resolve()}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world, timeout=timedelta(seconds=60))
    result = function(*args)
    torch.save(result, folder / f"result{rank}.pt")
    distributed.stop()
