"""Checks the installation for `zoo doctor`: libraries, cache, settings, manifests and weights."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from zoo.errors import ZooError
from zoo.fetching import verify_file
from zoo.manifest import manifests, records
from zoo.record import read_manifest
from zoo.registry import list_models
from zoo.settings import cache_home, is_offline, those_set

LIBRARIES = (
    "torch",
    "torchvision",
    "timm",
    "monai",
    "segmentation-models-pytorch",
    "safetensors",
    "huggingface_hub",
    "requests",
    "gdown",
    "nibabel",
    "pydicom",
)


@dataclass(frozen=True)
class Check:
    """One line of the diagnosis."""

    name: str
    ok: bool
    found: str


def diagnose(cache_dir: str | Path | None = None) -> list[Check]:
    """Look at the libraries, the cache, the settings, the manifests and every weight file on this machine."""
    parts: tuple[Callable[[Path], list[Check]], ...] = (_libraries, _cache, _settings, _manifests, _weights)
    return [check for part in parts for check in part(cache_home(cache_dir))]


def _libraries(home: Path) -> list[Check]:
    checks = []
    for library in LIBRARIES:
        try:
            checks.append(Check(library, True, metadata.version(library)))
        except metadata.PackageNotFoundError:
            checks.append(Check(library, False, f"not installed: pip install {library}"))
    return checks


def _cache(home: Path) -> list[Check]:
    nearest = next(p for p in (home, *home.parents) if p.exists())
    if not nearest.is_dir():
        return [Check("cache", False, f"{home} cannot be created: {nearest} is a file; set ZOO_HOME")]
    writable = os.access(nearest, os.W_OK)
    if not writable and not home.is_dir():
        return [Check("cache", False, f"{home} cannot be created: {nearest} is read-only; set ZOO_HOME")]
    return [
        Check("cache", True, f"{home} ({'writable' if writable else 'read-only: only what is in it can be loaded'})")
    ]


def _settings(home: Path) -> list[Check]:
    said = ", ".join(f"{name}={value}" for name, value in those_set().items())
    return [
        Check("settings", True, said or "none"),
        Check("connections", True, "forbidden" if is_offline() else "allowed"),
    ]


def _manifests(home: Path) -> list[Check]:
    try:
        return [Check("manifest", True, f"{path}: {len(read_manifest(path))} record(s)") for path in manifests(home)]
    except ZooError as error:
        return [Check("manifest", False, str(error))]


def _weights(home: Path) -> list[Check]:
    checks = []
    for model in list_models():
        for record in records(model, home):
            result = verify_file(record, cache_dir=home)
            found = "on this machine, digest right" if result.found else f"not on this machine ({record.state})"
            checks.append(Check(f"{model}.{record.tag}", not result.problems, "; ".join(result.problems) or found))
    return checks
