"""The end of a pre-training run: a safetensors file and the manifest record that describes it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from zoo.cache import hash_file
from zoo.checkpoint import export_safetensors, fingerprint
from zoo.entry import State
from zoo.files import write_text
from zoo.registry import get_entry
from zoo.training import distributed
from zoo.training.distributed import Processes
from zoo.training.progress import say
from zoo.training.runlog import Metrics, in_words, last_metrics
from zoo.training.saving import read_state, writing

RECORD = "record.json"


class Run(Protocol):
    """Arguments of a run whose weights are exported."""

    out: str
    half: bool


def publish_run(
    args: Run,
    processes: Processes,
    *,
    models: tuple[str, ...],
    input: Mapping[str, Any],
    command: str,
    best: Metrics | None = None,
) -> Metrics:
    """Publish the weights of a run that has finished, as `publish` says; called by all processes.

    Args:
        args: Of the run.
        processes: From `zoo.training.distributed.start`.
        models: As for `publish`.
        input: The same.
        command: The same.
        best: Metrics of the best epoch, whose weights are meant; None for those of the last epoch.

    Returns:
        Metrics of the epoch whose weights are exported.
    """
    distributed.barrier()
    out = Path(args.out)
    metrics = last_metrics(out) if best is None else best
    if processes.is_main:
        file = out / ("last.pt" if best is None else "best.pt")
        trained = read_state(file, mmap=True)
        publish(trained["model"], out, models=models, input=input, command=command, metrics=metrics, half=args.half)
    return metrics


def publish(
    state: Mapping[str, Tensor],
    out: Path,
    *,
    models: tuple[str, ...],
    input: Mapping[str, Any],
    command: str,
    metrics: Mapping[str, float],
    half: bool = False,
) -> Path:
    """Export what the entries keep of a method's state, and write the manifest record to paste, `OUT/record.json`.

    Args:
        state: State dict of the method.
        out: Folder of the run, whose name becomes the tag.
        models: Entries that the weights fill, the largest network last: the file holds what that one keeps, under its
            own names.
        input: Fields of the entries' `Preprocessing` that the run had otherwise; of one model alone under its name.
        command: How the weights were made; also in the file's header.
        metrics: Of the epoch that they are of.
        half: Half precision; 1-D tensors stay float32.

    Returns:
        The file, `OUT/<largest model>.<tag>.safetensors`.
    """
    kept, _ = get_entry(models[-1]).convert(dict(state))
    path = _write(kept, out, model=models[-1], input=input, command=command, half=half)
    tag = out.resolve().name
    record = {
        "tag": tag,
        "models": list(models),
        "state": "hosted",
        "trained_by": "user",
        "sources": [f"file:{path.name}"],
        "bytes": path.stat().st_size,
        "sha256": hash_file(path),
        "format": "safetensors",
        "fingerprint": {name: fingerprint(get_entry(name).convert(dict(kept))[0]) for name in models},
        "input": dict(input),
        "provenance": {"command": command, "metrics": dict(metrics)},
    }
    with writing(out / RECORD):
        write_text(out / RECORD, json.dumps(record, indent=2))
    print(f"{in_words(metrics)}\nweights: {path}\ntheir record for a manifest: {out / RECORD}", flush=True)
    others = models[:-1]
    too = f"; {' and '.join(others)} {'take' if len(others) > 1 else 'takes'} it too" if others else ""
    say(how_to_take(models[-1], path) + too)
    return path


def export(
    state: Mapping[str, Tensor], out: Path, *, model: str, input: Mapping[str, Any], command: str, half: bool = False
) -> Path:
    """Write what an entry keeps of a method's state as safetensors, with its input in the header for `zoo import`.

    Args:
        state: State dict of the method.
        out: Folder of the run.
        model: The entry, under whose names the file has its tensors.
        input: Fields of the entry's `Preprocessing` that the run had otherwise.
        command: How the weights were made.
        half: Half precision; 1-D tensors stay float32.

    Returns:
        The file, `OUT/<model>.<name of OUT>.safetensors`.
    """
    kept, _ = get_entry(model).convert(dict(state))
    return _write(kept, out, model=model, input=input, command=command, half=half)


def _write(kept: State, out: Path, *, model: str, input: Mapping[str, Any], command: str, half: bool) -> Path:
    path = out / f"{model}.{out.resolve().name}.safetensors"
    metadata = {"model": model, "command": command, "input": json.dumps(dict(input))}
    export_safetensors(kept, path, half=half, metadata=metadata)
    return path


def how_to_take(model: str, path: Path) -> str:
    """What to do next with a file that `export` wrote."""
    tag = path.resolve().parent.name
    return f"next: zoo.load_model({model!r}, checkpoint={str(path)!r}), or for good `zoo import {model}.{tag} {path}`"
