"""Names of processes that hold across machines, containers and reboots, to tell whether the writer of a file lives."""

from __future__ import annotations

import hashlib
import os
import socket
import time
from pathlib import Path

SILENT = 3600
"""Seconds without a write after which a writer that cannot be looked up counts as dead: longer than any retry waits."""


def this_process() -> str:
    """Name of the running process: machine, number and start time, for `is_alive`. Made of letters, digits and `-`."""
    return f"{this_machine()}-{os.getpid()}-{_start_time(str(os.getpid()))}"


def this_machine() -> str:
    """Twelve digits for what a process number is good for: one boot of one machine, and one container on it."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text() + os.readlink("/proc/self/ns/pid")
    except OSError:  # not Linux: the start time is unknown too, so that silence alone tells
        boot = socket.gethostname()
    return hashlib.sha256(boot.encode()).hexdigest()[:12]


def is_alive(process: str, last_write: float) -> bool:
    """Whether a process is still running; one that cannot be looked up is, until it has written nothing for an hour.

    Args:
        process: Its name, from `this_process`.
        last_write: When it last wrote, in seconds since the epoch.
    """
    machine, pid, started = process.split("-")
    if machine == this_machine() and started and (now := _start_time(pid)):
        return now == started
    return time.time() - last_write < SILENT


def _start_time(pid: str) -> str:
    """When a process of this machine started, in clock ticks; 0 if it is no longer running; empty if nobody can say."""
    try:
        state, *numbers = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "0" if _is_gone(pid) else ""
    return "0" if state in "ZX" else numbers[18]


def _is_gone(pid: str) -> bool:
    if not Path("/proc/self/stat").exists():
        return False
    try:
        os.kill(int(pid), 0)  # another user's process may be hidden from /proc
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        return False
    return False
