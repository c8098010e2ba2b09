"""Checks the installation for `zoo doctor`: libraries, GPU, cache, settings, manifests, and which weights load now."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.commands.carrying import files_of
from zoo.errors import DownloadError, OptionError, ZooError
from zoo.fetching import is_ready_offline, state_of, verify_file
from zoo.manifest import manifests, records
from zoo.messages import printable
from zoo.policy import refuses
from zoo.record import read_manifest
from zoo.registry import list_models
from zoo.settings import cache_home, is_offline, policy, those_set

if TYPE_CHECKING:
    from packaging.requirements import Requirement

    from zoo.record import RemoteFile, WeightsFile

PACKAGE = "medssl-zoo"
_NEEDED = ("settings", "manifest")
"""Checks without which weights cannot be looked at."""


@dataclass(frozen=True)
class Check:
    """One line of the diagnosis."""

    name: str
    ok: bool
    found: str


def diagnose(cache_dir: str | Path | None = None, *, online: bool = False) -> list[Check]:
    """Look at the libraries, the GPU, the cache, the settings, the manifests and all weights on record.

    Args:
        cache_dir: Cache folder; default `$ZOO_HOME`.
        online: Whether to ask the hosts of weights that are not on this machine, gated ones too. No file is fetched.

    Raises:
        OptionError: `online`, where connections are forbidden.
    """
    if online and is_offline():
        raise OptionError("--online: connections are forbidden; unset ZOO_OFFLINE and HF_HUB_OFFLINE, or leave it out")
    home = cache_home(cache_dir)
    parts: tuple[Callable[[Path], list[Check]], ...] = (_libraries, _gpus, _cache, _settings, _manifests)
    checks = [check for part in parts for check in part(home)]
    can_look = all(check.ok for check in checks if check.name in _NEEDED)
    return checks + (_weights(home, online) if can_look else [])


def _libraries(home: Path) -> list[Check]:
    """Hold what is installed against the floors in the package's metadata; of extras, only what is there."""
    from packaging.requirements import Requirement

    try:
        needs = [Requirement(need) for need in metadata.requires(PACKAGE) or []]
    except metadata.PackageNotFoundError:
        return [Check("libraries", False, f"{PACKAGE} is not installed, so what it needs is not known: pip install .")]
    checks: dict[str, Check] = {}
    for need in needs:
        check = _library(need)
        if check and (need.name not in checks or not check.ok):
            checks[need.name] = check
    return list(checks.values())


def _library(need: Requirement) -> Check | None:
    if need.name == PACKAGE:  # an extra that has others
        return None
    of_extra = need.marker is not None and not need.marker.evaluate({"extra": ""})
    try:
        version = metadata.version(need.name)
    except metadata.PackageNotFoundError:
        missing = f"not installed: pip install '{need.name}{need.specifier}'"
        return None if of_extra else Check(need.name, False, missing)
    if need.specifier.contains(version, prereleases=True):
        return Check(need.name, True, f"{version}, {need.specifier} needed") if need.specifier else None
    remedy = f"pip install '{need.name}{need.specifier}'"
    return Check(need.name, False, f"{version}, but {need.specifier} is needed: {remedy}")


def _gpus(home: Path) -> list[Check]:
    """The GPUs that torch can use, with the precisions that they compute in."""
    try:
        import torch
    except ImportError as error:
        return [Check("GPU", False, f"torch cannot be imported: {error}")]
    checks = []
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        facts = torch.cuda.get_device_properties(number)
        with torch.cuda.device(number):
            precisions = "fp32, fp16" + (", bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "")
        memory = f"{facts.total_memory / 2**30:.0f} GiB"
        checks.append(Check(f"cuda:{number}", True, f"{facts.name}, {memory}, {precisions}"))
    return checks or [Check("GPU", True, "none that torch can use; networks run on the CPU, in fp32 or bf16")]


def _cache(home: Path) -> list[Check]:
    nearest = next(p for p in (home, *home.parents) if p.exists())
    if not nearest.is_dir():
        return [Check("cache", False, f"{home} cannot be created: {nearest} is a file; set ZOO_HOME")]
    writable = os.access(nearest, os.W_OK)
    if not writable and not home.is_dir():
        return [Check("cache", False, f"{home} cannot be created: {nearest} is read-only; set ZOO_HOME")]
    free = f"{shutil.disk_usage(nearest).free / 1e9:.1f} GB free"
    state = f"writable, {free}" if writable else "read-only: only what is in it can be loaded"
    return [Check("cache", True, f"{home} ({state})")]


def _settings(home: Path) -> list[Check]:
    said = ", ".join(f"{name}={value}" for name, value in those_set().items())
    connections = Check("connections", True, "forbidden" if is_offline() else "allowed")
    try:
        policy()
    except OptionError as error:
        return [Check("settings", False, str(error)), connections]
    return [Check("settings", True, said or "none"), connections]


def _manifests(home: Path) -> list[Check]:
    try:
        return [Check("manifest", True, f"{path}: {len(read_manifest(path))} record(s)") for path in manifests(home)]
    except ZooError as error:
        return [Check("manifest", False, str(error))]


def _weights(home: Path, online: bool) -> list[Check]:
    checks = []
    for model in list_models():
        for record in records(model, home):
            try:
                files = files_of(record).values()
            except OptionError as error:
                checks.append(Check(f"{model}.{record.tag}", False, str(error)))
                continue
            problems = [problem for file in files for problem in verify_file(file, cache_dir=home).problems]
            found = "; ".join(problems) or _prospects(record, home, online)
            checks.append(Check(f"{model}.{record.tag}", not problems, found))
    return checks


def _prospects(record: WeightsFile, home: Path, online: bool) -> str:
    """Whether weights load now, or what stands in the way."""
    if refuses(record):
        return f"refused by ZOO_POLICY={policy()}"
    if not record.sources:
        return f"cannot be loaded: {record.state}"
    missing = [f for f in (record, *record.assets.values()) if not is_ready_offline(f, home)]
    if not missing:
        return "loads now: on this machine, digest right"
    if is_offline():
        return f"not on this machine ({record.state}), and connections are forbidden"
    if online:
        return f"not on this machine ({record.state}); {'; '.join(map(_answer, missing))}"
    if record.state != "hosted":
        return f"not on this machine ({record.state}); --online asks whether you may fetch it"
    sizes = [file.bytes for file in missing]
    size = "size not published" if None in sizes else f"{sum(filter(None, sizes)) / 1e6:.2f} MB"
    return f"not on this machine ({record.state}): fetched on first use, {size}"


def _answer(file: RemoteFile) -> str:
    """What the first of a file's hosts that gives it says, else what the last one says."""
    said = "no source"
    for source in file.sources:
        try:
            state_of(source, file.base)
            return f"{printable(source)} answers"
        except DownloadError as error:
            said = str(error)
    return said
