"""Reads what this process was given: every environment variable that the zoo uses, and its processors.

No other module reads such a variable.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from zoo.errors import OptionError
from zoo.files import user_path

NAMES = (
    "ZOO_HOME",
    "ZOO_MANIFEST",
    "ZOO_MIRROR",
    "ZOO_POLICY",
    "ZOO_OFFLINE",
    "ZOO_RETRY_WAIT",
    "ZOO_LEAST_SPEED",
    "HF_HUB_OFFLINE",
    "HF_ENDPOINT",
)
"""The variables that a user sets. HF_TOKEN is read by huggingface_hub, those of torchrun are set by it."""

POLICIES = ("commercial", "redistribute")
"""Words of `ZOO_POLICY`, as licences in a record name the uses."""


def those_set() -> Mapping[str, str]:
    """The variables that are set, by name."""
    return {name: os.environ[name] for name in NAMES if name in os.environ}


def cache_home(cache_dir: str | Path | None = None) -> Path:
    """Folder of the cache: the argument, else `$ZOO_HOME`, else `~/.cache/medssl-zoo`. Creates nothing."""
    return user_path(cache_dir or os.environ.get("ZOO_HOME") or "~/.cache/medssl-zoo").absolute()


def is_offline(offline: bool | None = None) -> bool:
    """Whether connections are forbidden: the argument, else `ZOO_OFFLINE` or `HF_HUB_OFFLINE`."""
    if offline is not None:
        return offline
    said = (os.environ.get("ZOO_OFFLINE", ""), os.environ.get("HF_HUB_OFFLINE", ""))
    return any(value.lower() in ("1", "true", "yes", "on") for value in said)


def further_manifest() -> Path | None:
    """The manifest that `ZOO_MANIFEST` names, whose records come first.

    Raises:
        OptionError: There is no such file.
    """
    named = os.environ.get("ZOO_MANIFEST")
    if not named:
        return None
    path = user_path(named)
    if not path.is_file():
        raise OptionError(f"ZOO_MANIFEST={named} does not exist; unset it or name a manifest file")
    return path


def mirror() -> str:
    """Address or folder of `ZOO_MIRROR`, which holds files under their digests; empty where there is none."""
    return os.environ.get("ZOO_MIRROR", "").rstrip("/")


def policy() -> str:
    """The use that all licences of weights must allow, by `ZOO_POLICY`; empty where it is not set.

    Raises:
        OptionError: It is not one of `POLICIES`.
    """
    word = os.environ.get("ZOO_POLICY", "")
    if word and word not in POLICIES:
        raise OptionError(f"ZOO_POLICY={word!r}: expected {' or '.join(POLICIES)}, one word; unset it for no policy")
    return word


def hugging_face() -> str:
    """Address of the Hugging Face hub, or of the one in its place that `HF_ENDPOINT` names."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def retry_wait() -> float:
    """Seconds before a download that failed is tried again: `ZOO_RETRY_WAIT`, else 1.

    Raises:
        OptionError: It is not a number.
    """
    return max(0.0, _number("ZOO_RETRY_WAIT", 1.0, "seconds"))


def least_speed(default: float) -> float:
    """Bytes a second below which a source is given up: `ZOO_LEAST_SPEED`, else the default.

    Raises:
        OptionError: It is not a number.
    """
    return _number("ZOO_LEAST_SPEED", default, "bytes a second")


def _number(name: str, default: float, unit: str) -> float:
    text = os.environ.get(name)
    if not text:
        return default
    try:
        return float(text)
    except ValueError as error:
        raise OptionError(f"{name}={text!r} is not a number of {unit}") from error


def ray_address() -> str:
    """Address of the Ray cluster that `RAY_ADDRESS` names; empty where it names none."""
    return os.environ.get("RAY_ADDRESS", "")


def uses_tls_of_ray() -> bool:
    """Whether the processes of a Ray cluster speak TLS with each other, as `RAY_USE_TLS` says."""
    return os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true")


@contextmanager
def defaults(values: Mapping[str, str]) -> Iterator[None]:
    """Set those variables of other libraries, inside the block, that the user has not set."""
    own = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(own)
    try:
        yield
    finally:
        for name in own:
            os.environ.pop(name, None)


@contextmanager
def without(name: str) -> Iterator[str | None]:
    """Leave a variable, which the block is given, out of the environment inside it."""
    value = os.environ.pop(name, None)
    try:
        yield value
    finally:
        if value is not None:
            os.environ[name] = value


def is_under_torchrun() -> bool:
    """Whether torchrun, or another launcher that sets WORLD_SIZE, started this process as one of several."""
    return "WORLD_SIZE" in os.environ


def torchrun_rank() -> tuple[int, int]:
    """Number of this process and of all processes, as torchrun sets them; 0 and 1 without it."""
    return _whole("RANK", 0), _whole("WORLD_SIZE", 1)


def slurm_array() -> tuple[int, int, int, int]:
    """Number of this task of a SLURM array, the count of tasks, the first number and the step; else 0, 1, 0, 1."""
    if "SLURM_ARRAY_TASK_ID" not in os.environ:
        return 0, 1, 0, 1
    names = (("COUNT", 1), ("MIN", 0), ("STEP", 1))
    count, first, step = (_whole(f"SLURM_ARRAY_TASK_{name}", default) for name, default in names)
    return _whole("SLURM_ARRAY_TASK_ID", 0), count, first, step


def local_rank() -> int:
    """Number of this process on its machine, as torchrun sets it; 0 without it."""
    return _whole("LOCAL_RANK", 0)


def processes_of_torchrun() -> int:
    """Number of the processes that one torchrun started on this machine, this one among them; 1 without it."""
    return _whole("LOCAL_WORLD_SIZE", 1) if "TORCHELASTIC_RUN_ID" in os.environ else 1


def _whole(name: str, default: int) -> int:
    """A whole number that a launcher sets.

    Raises:
        OptionError: It is none.
    """
    text = os.environ.get(name, str(default))
    try:
        return int(text)
    except ValueError as error:
        raise OptionError(f"{name}={text!r}: a whole number is expected, as torchrun and SLURM set it") from error


def processors() -> int:
    """Number of processors that this process may use; more processes than that only slow each other down."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
