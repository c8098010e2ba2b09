"""The end of a pre-training run: a safetensors file and the manifest record that describes it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from torch import Tensor

from zoo.checkpoint import export_safetensors, fingerprint
from zoo.entry import State
from zoo.fetching import hash_file
from zoo.files import write_text
from zoo.formats import RANDOM, make_header
from zoo.progress import say
from zoo.registry import get_entry
from zoo.training import distributed
from zoo.training.distributed import Processes
from zoo.training.runlog import Metrics, in_words, last_metrics
from zoo.training.saving import read_state, writing

RECORD = "record.json"


class Run(Protocol):
    """Arguments of a run whose weights are exported."""

    out: str
    half: bool


def pretraining_header(
    model: str,
    command: str,
    *,
    input: Mapping[str, Any],
    options: Mapping[str, Any] = MappingProxyType({}),
    base: Mapping[str, Any] = RANDOM,
) -> dict[str, str]:
    """The header of what a pre-training run saves.

    Args:
        model: The largest network that its weights fill.
        command: From `zoo.training.args.command_of`.
        input: Fields of the entries' `Preprocessing` that the run changed; those of one model alone under its name.
        options: Options of the model that the run changed and that names and shapes do not tell.
        base: Weights that the run began with, from `zoo.provenance.base_of`.
    """
    entry = get_entry(model)
    settled = {option: entry.config[option] for option in entry.settled}
    return make_header(entry.name, "pretrain", command, input=input, options=settled | dict(options), base=base)


def publish_run(
    args: Run,
    processes: Processes,
    *,
    models: tuple[str, ...],
    header: Mapping[str, str],
    best: Metrics | None = None,
) -> Metrics:
    """Publish the weights of a run that has finished, as `publish` says; called by all processes.

    Args:
        args: Arguments of the run.
        processes: From `zoo.training.distributed.start`.
        models: As for `publish`.
        header: As for `publish`.
        best: Metrics of the best epoch, whose weights are exported. None exports those of the last epoch, as each
            recipe does without validation: the training loss does not say which epoch is best.

    Returns:
        Metrics of the epoch whose weights are exported.
    """
    distributed.barrier()
    out = Path(args.out)
    metrics = last_metrics(out) if best is None else best
    if processes.is_main:
        file = out / ("last.pt" if best is None else "best.pt")
        trained = read_state(file, mmap=True)
        publish(trained["model"], out, models=models, header=header, metrics=metrics, half=args.half)
    return metrics


def publish(
    state: Mapping[str, Tensor],
    out: Path,
    *,
    models: tuple[str, ...],
    header: Mapping[str, str],
    metrics: Mapping[str, float],
    half: bool = False,
) -> Path:
    """Export what the entries keep of a method's state, and write the manifest record to paste, `OUT/record.json`.

    Args:
        state: State dict of the method.
        out: Folder of the run, whose name becomes the tag.
        models: Entries that the weights fill, the largest network last: the file holds what that one keeps, under its
            own names.
        header: From `pretraining_header`, the same as in the run's `best.pt` and `last.pt`; the record repeats its
            input, command and base, whose licences are the record's.
        metrics: Of the epoch that is exported.
        half: Half precision; 1-D tensors stay float32.

    Returns:
        The file, `OUT/<largest model>.<tag>.safetensors`.
    """
    kept, _ = get_entry(models[-1]).convert(dict(state))
    path = _write(kept, out, header, half=half)
    tag = out.resolve().name
    base = json.loads(header["base"])
    licences = base.pop("licences", {})
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
        "input": json.loads(header["input"]),
        "provenance": {"command": header["command"], "metrics": dict(metrics), "base": base},
    } | ({"licences": licences} if licences else {})
    with writing(out / RECORD):
        write_text(out / RECORD, json.dumps(record, indent=2))
    print(f"{in_words(metrics)}\nweights: {path}\ntheir record for a manifest: {out / RECORD}", flush=True)
    hint = how_to_take(models[-1], path)
    if others := models[:-1]:
        hint += f"; the file also fills {' and '.join(others)}"
    say(hint)
    return path


def export(state: Mapping[str, Tensor], out: Path, header: Mapping[str, str]) -> Path:
    """Write what an entry keeps of a method's state as safetensors.

    Args:
        state: State dict of the method.
        out: Folder of the run.
        header: Header of the file, from `make_header`; the tensors have the names of its model.

    Returns:
        The file, `OUT/<model>.<name of OUT>.safetensors`.
    """
    kept, _ = get_entry(header["model"]).convert(dict(state))
    return _write(kept, out, header, half=False)


def _write(kept: State, out: Path, header: Mapping[str, str], *, half: bool) -> Path:
    path = out / f"{header['model']}.{out.resolve().name}.safetensors"
    export_safetensors(kept, path, half=half, metadata=header)
    return path


def how_to_take(model: str, path: Path) -> str:
    """What to do next with a file that `export` wrote."""
    tag = path.resolve().parent.name
    return f"next: zoo.load_model({model!r}, checkpoint={str(path)!r}), or for good `zoo import {model}.{tag} {path}`"
