"""The end of a pre-training run: a safetensors file and the manifest record that describes it."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from zoo.cache import hash_file
from zoo.checkpoint import export_safetensors, fingerprint
from zoo.registry import get_entry


def publish(
    state: Mapping[str, Tensor],
    out: Path,
    *,
    models: tuple[str, ...],
    args: Mapping[str, Any],
    metrics: Mapping[str, float],
    half: bool = False,
) -> Path:
    """Export what the entries keep of a method's state, and print the manifest record to paste.

    The file holds what the last of `models` keeps (the largest network of a family stands last), under that network's
    own names; its header says how it was made. Returns the file's path, `OUT/<model>.safetensors`.
    """
    entry = get_entry(models[-1])
    kept, _ = entry.convert(dict(state))
    path = out / f"{models[-1]}.safetensors"
    export_safetensors(kept, path, half=half, metadata={"model": models[-1], "args": json.dumps(dict(args))})
    record = {
        "tag": out.name,
        "models": list(models),
        "state": "hosted",
        "trained_by": "user",
        "sources": [f"file:{path.name}"],
        "bytes": path.stat().st_size,
        "sha256": hash_file(path),
        "format": "safetensors",
        "fingerprint": {name: fingerprint(get_entry(name).convert(dict(state))[0]) for name in models},
        "provenance": {"command": " ".join(sys.argv), "metrics": dict(metrics)},
    }
    print(json.dumps(record, indent=2))
    return path
