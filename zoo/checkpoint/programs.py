"""Writes networks as programs that need no code of the zoo: ONNX, and PyTorch's own exported programs.

A file gets its name once the program in it, run on drawn images, has given what the network gives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from zoo.errors import CheckpointMismatchError, OptionError
from zoo.files import replacing
from zoo.messages import install_hint, reason_of

if TYPE_CHECKING:
    from torch import Tensor, nn

Inputs = Callable[[int], "tuple[Tensor, ...]"]
"""Makes what the network is given for a number of images."""
Outputs = Sequence["Tensor"]

COUNTS = (1, 3)
"""Images at once that a program is tried with; it is made from two."""
_TRACED = 2
_LARGEST = (1 << 31) - (1 << 24)
"""Bytes of values in an ONNX file: protobuf ends at 2 GiB, and some room is for the graph."""


@dataclass(frozen=True)
class Format:
    """A form in which programs are written."""

    name: str
    option: str
    """Of `zoo export`."""
    suffix: str
    tolerance: float
    """Largest difference, relative to the largest number of the network's output."""


ONNX = Format("ONNX", "--onnx", ".onnx", 1e-4)
"""onnxruntime has convolutions of its own, whose sums over thousands of products round otherwise."""
TORCH = Format("torch.export", "--torch-export", ".pt2", 1e-5)
"""The same kernels as the network's; a graph may only add up in another order."""


class Written(NamedTuple):
    """What became of a program."""

    path: Path
    difference: float
    """The largest that was found, relative as in `Format`."""
    tolerance: float


def export_onnx(network: nn.Module, inputs: Inputs, path: Path, metadata: Mapping[str, str]) -> Written:
    """Write a network as ONNX for any number of images; `metadata` becomes the properties of the model.

    Args:
        network: In eval mode, on a CPU.
        inputs: Makes what it is given for a number of images, by which the program is made and tried.
        path: The file. It is written whole or not at all.
        metadata: Text by key.

    Raises:
        OptionError: A package is missing, the packages do not fit each other, or the network is too large for one file.
        CheckpointMismatchError: The program does not give what the network gives; nothing is written.
        OSError: The file cannot be written.
    """
    _need("onnx", "onnxscript", "onnxruntime")
    size = sum(tensor.nbytes for tensor in network.state_dict().values())
    if size > _LARGEST:
        raise OptionError(
            f"{path}: the network has {size:,} bytes of values, and an ONNX file holds 2 GiB at most. "
            f"{TORCH.option} writes a {TORCH.suffix} file of any size"
        )
    import onnxruntime
    import torch

    program = _onnx_program(network, inputs)
    program.model.metadata_props.update(metadata)

    def read(file: Path) -> Callable[..., Outputs]:
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        slots = [slot.name for slot in session.get_inputs()]

        def run(*given: Tensor) -> Outputs:
            values = {slot: tensor.numpy() for slot, tensor in zip(slots, given, strict=True)}
            return [torch.from_numpy(found) for found in session.run(None, values)]

        return run

    def write(file: Path) -> None:
        with _by_the_exporter():
            program.save(file, external_data=False)

    return _write(network, inputs, path, ONNX, write, read)


def _onnx_program(network: nn.Module, inputs: Inputs) -> Any:
    """What torch's exporter makes of a network, an `ONNXProgram`."""
    import torch

    traced = _traced(network, inputs)
    with _by_the_exporter():
        program = torch.onnx.export(traced, inputs(_TRACED), dynamo=True, verbose=False)
    assert program is not None
    return program


@contextmanager
def _by_the_exporter() -> Iterator[None]:
    """Say which versions failed: torch's exporter, onnxscript and protobuf fit each other in some versions alone."""
    try:
        yield
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:  # torch's and onnxscript's are of these
        packages = ", ".join(f"{package} {version(package)}" for package in ("torch", "onnxscript", "onnx", "protobuf"))
        raise OptionError(
            f"{ONNX.option}: torch's exporter failed with {packages}: {_root_reason(error).rstrip('.')}. "
            f"Install a newer torch, or protobuf below 7; {TORCH.option} needs neither"
        ) from error


def _root_reason(error: BaseException) -> str:
    """The reason at the root of a chain of errors; the pages that wrap it tell how to report it to torch."""
    while error.__cause__ is not None:
        error = error.__cause__
    return reason_of(error)


def export_program(network: nn.Module, inputs: Inputs, path: Path, metadata: Mapping[str, str]) -> Written:
    """Write a network as `torch.export` does, for any number of images; arguments and errors as of `export_onnx`.

    `torch.export.load(path, extra_files=files)` reads it, and with `files = {key: ""}` its metadata.
    """
    import torch

    program = _traced(network, inputs)

    def write(file: Path) -> None:
        with file.open("wb") as opened:  # a path would have to end in .pt2
            torch.export.save(program, opened, extra_files=dict(metadata))

    def read(file: Path) -> Callable[..., Outputs]:
        with file.open("rb") as opened:
            graph = torch.export.load(opened).module()
        return lambda *given: _listed(graph(*given))

    return _write(network, inputs, path, TORCH, write, read)


def _need(*packages: str) -> None:
    from importlib.util import find_spec

    if missing := [package for package in packages if find_spec(package) is None]:
        raise OptionError(
            f"{ONNX.option} needs {' and '.join(missing)}, which this machine does not have: "
            f"{install_hint(missing[0], 'onnx')}"
        )


def _traced(network: nn.Module, inputs: Inputs) -> Any:
    """The graph of a network, for any number of images."""
    import torch

    given = inputs(_TRACED)
    images = torch.export.Dim("images", min=1)
    return torch.export.export(network, given, dynamic_shapes=tuple({0: images} for _ in given))


def _write(
    network: nn.Module,
    inputs: Inputs,
    path: Path,
    form: Format,
    write: Callable[[Path], object],
    read: Callable[[Path], Callable[..., Outputs]],
) -> Written:
    """Write a program under a temporary name, try it from there, and then give it its own."""
    with replacing(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode  # what the user's umask gives
        write(temporary)
        temporary.chmod(mode)
        try:
            largest = _difference(network, inputs, read(temporary))
        except (RuntimeError, TypeError, ValueError) as error:  # onnxruntime's own are RuntimeErrors
            raise CheckpointMismatchError(
                f"{path}: the {form.name} program cannot be run, and was not kept: {reason_of(error)}"
            ) from error
        if not largest <= form.tolerance:  # NaN is not, either
            raise CheckpointMismatchError(
                f"{path}: the {form.name} program does not give what the network gives, and was not kept. Of the "
                f"largest output it is {largest:.2g} away, and {form.tolerance:.0e} is allowed for rounding"
            )
    return Written(path, largest, form.tolerance)


def _difference(network: nn.Module, inputs: Inputs, program: Callable[..., Outputs]) -> float:
    """The largest difference between a program and its network over `COUNTS`, relative to the largest output."""
    import torch

    found = 0.0
    for count in COUNTS:
        given = inputs(count)
        with torch.no_grad():
            pairs = list(zip(program(*given), _listed(network(*given)), strict=True))
        for ours, theirs in pairs:
            if ours.shape != theirs.shape:
                return float("inf")
            part = float((ours.double() - theirs.double()).abs().max() / theirs.double().abs().max())
            found = max(found, part) if part == part else float("nan")
    return found


def _listed(outputs: Any) -> Outputs:
    return list(outputs) if isinstance(outputs, list | tuple) else [outputs]
