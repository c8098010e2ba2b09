"""Connects to a Ray cluster, or starts one of this machine, and divides its machines among actors."""

from __future__ import annotations

import logging
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zoo.embedding.reading import workers_for
from zoo.errors import OptionError, ZooError
from zoo.messages import install_hint, printable, reason_of
from zoo.settings import processors, ray_address, uses_tls_of_ray
from zoo.version import __version__

if TYPE_CHECKING:
    from types import ModuleType

WAY_ON = "The same command goes on with what is left"
_CPUS_OF_ACTOR = 4
"""Without a GPU: threads gain little beyond it, and each actor holds a network and a batch in memory."""
_SECONDS_TO_ANSWER = 10.0
_FRAME, _SETTINGS = 9, b"\x04"
"""Bytes of a frame's head in HTTP/2, and the type of the first that each side sends (RFC 9113, 3.4 and 6.5)."""
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0" + _SETTINGS + b"\0\0\0\0\0"
"""What a client of gRPC says first: the preface, and no settings."""
_DEVICES = ("auto", "cpu", "cuda")


def import_ray() -> ModuleType:
    """Return Ray, with Ray Data.

    Raises:
        OptionError: It is not installed.
    """
    try:
        import ray.data
    except ImportError as error:
        raise OptionError(f"engine='ray' takes Ray Data ({error}): {install_hint('ray[data]', 'ray')}") from error
    return ray


@contextmanager
def connected(ray: ModuleType, address: str | None) -> Iterator[None]:
    """Be connected to a cluster inside the block; one that was started for it ends with it.

    Raises:
        OptionError: There is none at the address.
    """
    if ray.is_initialized():
        if address is not None:
            raise OptionError(f"ray_address={address!r}: this program is connected to a Ray cluster; leave it out")
        yield
        return
    try:
        with _own_sigterm():
            _connect(ray, address)
        yield
    finally:
        ray.shutdown()


def _connect(ray: ModuleType, address: str | None) -> None:
    asked = ray_address() if address in (None, "", "auto") else address
    asked = _left_by_ray_start(ray) if asked in ("", "auto") else asked
    options: dict[str, Any] = {"logging_level": logging.ERROR}
    of_own = options | {"num_cpus": processors(), "include_dashboard": False}
    try:
        if asked not in ("", "local"):
            _check_answers(asked)
        try:
            ray.init(address=address, **of_own)
        except ValueError:  # there is a cluster, whose machines are as they are
            ray.init(address=address, **options)
    except Exception as error:  # Ray's are of many kinds, its own, Python's and gRPC's: all mean that there is none
        raise OptionError(
            f"no Ray cluster at {printable(asked) or 'this machine'} ({reason_of(error)}): HOST:PORT of a running one "
            "is expected, or local to start one on this machine"
        ) from error


def _left_by_ray_start(ray: ModuleType) -> str:
    """Address that `ray start` left on this machine, which Ray goes to though that cluster be dead; empty if none."""
    utils = getattr(getattr(ray, "_private", None), "utils", None)
    return getattr(utils, "read_ray_address", lambda _: None)(None) or ""


def _check_answers(address: str) -> None:
    """Raise an error in seconds, where Ray would try for minutes: where nothing answers, or not as gRPC does."""
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdigit():
        raise ValueError("that is no address of this form")
    with socket.create_connection((host.strip("[]"), int(port)), _SECONDS_TO_ANSWER) as connection:
        if uses_tls_of_ray():
            return  # the answer would come after a handshake with Ray's own keys
        connection.sendall(_HELLO)
        answer = connection.recv(_FRAME)
    if answer[3:4] != _SETTINGS:
        raise ConnectionError("what answers there is no Ray cluster")


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
def told(ray: ModuleType) -> Iterator[None]:
    """Say in the zoo's words what has ended the run.

    Raises:
        ZooError: Ray has given up.
    """
    try:
        yield
    except ray.data.exceptions.ExecutionTimeoutError as error:
        stalled = printable(str(error).strip().split("\n")[0])  # what follows are settings of Ray
        raise ZooError(f"Ray has ended the run: {stalled} {WAY_ON}") from error
    except ray.exceptions.RayError as error:
        last = printable(str(error).strip().split("\n")[-1].strip())  # of pages: the cause stands at the end
        if "No module named 'zoo" in last:
            raise ZooError(
                f"a machine of the Ray cluster has no zoo {__version__} in the Python that Ray runs there ({last}): "
                "install it on all of them"
            ) from error
        raise ZooError(f"Ray has ended the run: {last}. {WAY_ON}") from error


@dataclass(frozen=True)
class Pool:
    """The number of actors, and what each has."""

    size: int
    cpus: int
    gpus: int
    readers: int
    """Processes that read cases for it: one at least, whose death costs one case."""


def pool_of(ray: ModuleType, device: str) -> Pool:
    """Divide the machines of the cluster, as it is now, among actors.

    Raises:
        OptionError: They have no such device.
    """
    if device not in _DEVICES:
        raise OptionError(f"device={device!r} with Ray: {', '.join(_DEVICES)} are known")
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    having = [(int(node.get("CPU", 0)), int(node.get("GPU", 0))) for node in nodes]
    if device != "cpu" and (gpus := sum(gpu for _, gpu in having)):
        share = min(cpu // gpu for cpu, gpu in having if gpu)
        return Pool(gpus, share, 1, workers_for(None, max(1, share)))
    if device == "cuda":
        raise OptionError("device='cuda': the Ray cluster has no GPU; 'auto' or 'cpu' takes its CPUs")
    cpus = [cpu for cpu, _ in having if cpu]
    if not cpus:
        raise OptionError("the Ray cluster has neither a CPU nor a GPU: it gives work to none of its machines")
    share = min(_CPUS_OF_ACTOR, *cpus)
    return Pool(sum(cpu // share for cpu in cpus), share, 0, 1)
