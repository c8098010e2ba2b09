"""Runs a case and compares what each stage gives with what is stored."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.arguments import check_device
from zoo.errors import OptionError
from zoo.loading import load_model
from zoo.messages import reason_of
from zoo.registry import get_entry
from zoo.selftest.cases import Case
from zoo.selftest.drawing import draw_input
from zoo.selftest.stages import Difference, Stage, following, furthest, stages_of
from zoo.selftest.streaming import build_streamed

if TYPE_CHECKING:
    import torch
    from torch import nn

log = logging.getLogger("zoo")

_TOLERANCES = {"fp32": 3e-4, "bf16": 0.5, "fp16": 0.1}
"""What the numbers of a stage may be off, in its standard deviations.

In fp32 AVX-512 and AVX2, of torch and oneDNN alike, differ by at most 7e-5, in a Swin UNETR's norms over four voxels,
and by 3e-5 in any other network. The least wrong thing that was tried makes 3e-4, another epsilon in batch norms (1e-4
for 1e-5); the other formula of GELU makes 4e-4, one bias drawn anew 0.03 or more, another merging of patches about 1.
Half precisions find such gross errors alone: their rounding grows with depth.
"""
_OF_DEVICES = 5
"""Times as much is allowed in fp32 on other devices, whose kernels sum otherwise. None was there to measure."""


_LIBRARIES = ("torch", "timm", "monai", "segmentation-models-pytorch", "numpy")
"""Whose functions the networks are made of."""


@dataclass(frozen=True)
class Outcome:
    """What became of one case."""

    case: Case
    device: str
    precision: str
    tolerance: float
    """In standard deviations of a stage."""
    seconds: float
    differences: tuple[Difference, ...] = ()
    """The largest of each stage, from input to output, up to the first that has another name or shape."""
    problem: str = ""
    """Why the network could not be run or compared; empty where it was."""

    @property
    def ok(self) -> bool:
        """Whether every stage is as stored."""
        return not self.problem and self.first is None

    @property
    def first(self) -> Difference | None:
        """Of the first stage that is not as stored; None where there is no such stage."""
        return next((each for each in self.differences if not each.size <= self.tolerance), None)

    @property
    def largest(self) -> float:
        """The largest difference, in standard deviations of its stage."""
        return max((each.size for each in self.differences), default=0.0)


def tolerance_for(device: str | torch.device, precision: str) -> float:
    """Return what stages may differ by, in their standard deviations.

    Raises:
        OptionError: There is no such precision.
    """
    if precision not in _TOLERANCES:
        raise OptionError(f"precision={precision!r}: {', '.join(_TOLERANCES)} are known")
    is_other = precision == "fp32" and not str(device).startswith("cpu")
    return _TOLERANCES[precision] * (_OF_DEVICES if is_other else 1)


def run_case(
    case: Case, *, device: str | torch.device = "cpu", precision: str = "fp32", cache_dir: str | Path | None = None
) -> Outcome:
    """Run a network on drawn inputs and compare its stages, in the order in which they end, with the stored values.

    Args:
        case: With its values.
        device: Where the network computes.
        precision: `fp32`, or `bf16` or `fp16` by autocast. `fp32` is without TensorFloat-32, which GPUs have too.
        cache_dir: Cache folder of weights; default `$ZOO_HOME`.

    Raises:
        OptionError: There is no such device or precision.
    """
    tolerance = tolerance_for(device, precision)
    found_device, began = check_device(device), time.perf_counter()
    differences: tuple[Difference, ...] = ()
    problem = ""
    try:
        stages = measure_case(case, found_device, precision, cache_dir)
        differences, problem = compare(case, stages)
    except Exception as error:  # whatever a library's new release raises is what the test is for
        log.debug("%s", case.what, exc_info=True)
        problem = _named(error)
    seconds = time.perf_counter() - began
    return Outcome(case, str(found_device), precision, tolerance, seconds, differences, problem)


def _named(error: Exception) -> str:
    """The kind of an error, which says much of a library's, and its message in one line."""
    kind, reason = type(error).__name__, reason_of(error)
    return reason if reason.startswith(kind) else f"{kind}: {reason}"


def measure_case(
    case: Case, device: torch.device, precision: str = "fp32", cache_dir: str | Path | None = None
) -> list[Stage]:
    """Return the numbers of each stage of a case, in the order in which they end."""
    import torch

    entry = get_entry(case.model)
    network = _network(case, device, cache_dir)
    inputs = [draw_input(number, shape).to(device) for number, shape in enumerate(case.inputs)]
    with torch.no_grad(), _arithmetic(device, precision), following(network, stages_of(entry, network)) as stages:
        network(*inputs)
    return stages


def _network(case: Case, device: torch.device, cache_dir: str | Path | None) -> nn.Module:
    """The network of a case: with its weights, or with tensors that are drawn as it runs."""
    entry = get_entry(case.model)
    if not case.tag:
        return build_streamed(entry, {**entry.config, **case.options}, device)
    level = log.level
    log.setLevel(logging.ERROR)  # that they are not the authors' is not what is asked
    try:
        return load_model(case.name, device=device, cache_dir=cache_dir, offline=True)
    finally:
        log.setLevel(level)


@contextmanager
def _arithmetic(device: torch.device, precision: str) -> Iterator[None]:
    """Compute in this precision inside the block."""
    import torch

    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    matrices = torch.get_float32_matmul_precision()
    with ExitStack() as stack:
        if dtype:
            stack.enter_context(torch.autocast(device.type, dtype, cache_enabled=False))
        else:  # torch takes TensorFloat-32 for convolutions unasked, and some containers ask for it
            stack.enter_context(torch.backends.cudnn.flags(enabled=True, allow_tf32=False))
            stack.callback(torch.set_float32_matmul_precision, matrices)
            torch.set_float32_matmul_precision("highest")
        yield


def compare(case: Case, stages: Sequence[Stage]) -> tuple[tuple[Difference, ...], str]:
    """Return the largest difference of each stage; and what cannot be compared, where these are not the stored stages.

    Args:
        case: With its values.
        stages: What came, in the order in which they ended.
    """
    differences: list[Difference] = []
    for number, expected in enumerate(case.stages):
        came = stages[number] if number < len(stages) else None
        if came is None or came.name != expected.name or came.shape != expected.shape:
            said = f"{came.name} of shape {came.shape}" if came else "nothing more"
            return tuple(differences), f"stage {expected.name} of shape {expected.shape} is expected, {said} came"
        differences.append(furthest(expected, came))
    more = stages[len(case.stages) :]
    return tuple(differences), f"stage {more[0].name} came, of which no values are stored" if more else ""


def versions() -> dict[str, str]:
    """Return the versions of the libraries that compute, and the instructions that torch uses of the processor."""
    import torch

    installed = {name: metadata.version(name) for name in _LIBRARIES}
    return installed | {"instructions": torch.backends.cpu.get_cpu_capability()}
