"""The end of a pre-training run: a safetensors file and the manifest record that describes it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from zoo.cache import hash_file
from zoo.checkpoint import export_safetensors, fingerprint
from zoo.registry import get_entry
from zoo.training.runlog import say


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
    """Export what the entries keep of a method's state, and print the manifest record to paste.

    Args:
        state: State dict of the method.
        out: Folder of the run, whose name becomes the tag.
        models: Entries that the weights fill, the largest network last: the file holds what that one keeps, under its
            own names.
        input: Fields of the entries' `Preprocessing` that the run had otherwise.
        command: How the weights were made; also in the file's header.
        metrics: Of the best epoch.
        half: Half precision; 1-D tensors stay float32.

    Returns:
        The file, `OUT/<largest model>.<tag>.safetensors`.
    """
    tag = out.resolve().name
    kept, _ = get_entry(models[-1]).convert(dict(state))
    path = out / f"{models[-1]}.{tag}.safetensors"
    export_safetensors(
        kept, path, half=half, metadata={"model": models[-1], "command": command, "input": json.dumps(dict(input))}
    )
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
    print(json.dumps(record, indent=2))
    name, *others = models
    too = f"; {' and '.join(others)} take it too" if others else ""
    say(f"next: zoo.load_model({name!r}, checkpoint={str(path)!r}), or for good `zoo import {name}.{tag} {path}`{too}")
    return path
