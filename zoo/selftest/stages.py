"""A few numbers of what each stage of a network gives, and how far two such rows of numbers are apart."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

    from zoo.entry import Entry

OUTPUT = "output"
"""Name of the last stage: what `forward` returns."""
_SAMPLES = 6
_STEP = 0.6180339887498949
"""Samples are this share of a map apart, around its end, so that they fall on no row or channel twice."""


@dataclass(frozen=True)
class Stage:
    """What is kept of the map of one stage."""

    name: str
    """Of the module that makes it; `OUTPUT` for what the network returns."""
    shape: tuple[int, ...]
    mean: float
    deviation: float
    """Standard deviation, by which differences are measured."""
    largest: float
    """Of the absolute values."""
    samples: tuple[float, ...]
    """Values spread over the map, in its order."""

    @property
    def numbers(self) -> dict[str, float]:
        """What is compared, by the name that messages have for it."""
        samples = {f"value {i + 1} of {len(self.samples)}": value for i, value in enumerate(self.samples)}
        return {"mean": self.mean, "deviation": self.deviation, "largest value": self.largest} | samples


@dataclass(frozen=True)
class Difference:
    """The number of a stage that is furthest from what is stored."""

    stage: str
    what: str
    expected: float
    came: float
    size: float
    """In standard deviations of the stage; infinite, or not a number, where what came is."""


def measure(name: str, found: Tensor) -> Stage:
    """Return the numbers of a map, which are computed in float64 on the CPU."""
    values = found.detach().cpu().double().flatten()
    least, greatest = values.aminmax()
    positions = [int((i + 1) * _STEP % 1 * values.numel()) for i in range(_SAMPLES)]
    return Stage(
        name=name,
        shape=tuple(found.shape),
        mean=values.mean().item(),
        deviation=values.std(correction=0).item(),
        largest=max(abs(least.item()), abs(greatest.item())),
        samples=tuple(values[positions].tolist()),
    )


def furthest(expected: Stage, came: Stage) -> Difference:
    """Return the number of a stage that differs most; both have the same shape."""
    pairs = zip(expected.numbers.items(), came.numbers.values(), strict=True)
    all_of_it = [
        Difference(expected.name, what, one, other, abs(one - other) / expected.deviation)
        for (what, one), other in pairs
    ]
    return max(all_of_it, key=lambda each: (each.size != each.size, each.size))  # what is not a number comes first


@contextmanager
def following(network: nn.Module, names: Iterable[str]) -> Iterator[list[Stage]]:
    """Yield a list that gets the numbers of these modules, in the order in which they end, when the network runs."""
    found: list[Stage] = []

    def note(name: str, _: nn.Module, inputs: Any, outputs: Any) -> None:
        for number, tensor in enumerate(outputs if isinstance(outputs, list | tuple) else [outputs]):
            found.append(measure(f"{name}[{number}]" if number else name, tensor))

    handles = [network.get_submodule(name).register_forward_hook(partial(note, name)) for name in names]
    handles.append(network.register_forward_hook(partial(note, OUTPUT)))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def stages_of(entry: Entry, network: nn.Module) -> list[str]:
    """Names of the modules that are stages: those of `feature_info`, and those that the entry's stages are made of."""
    described: Any = network.feature_info
    modules = dict(network.named_modules())
    prefixes = (prefix.removesuffix(".") for stage in entry.stages for prefix in stage)
    parts = (part for prefix in prefixes if prefix in modules for part in _running(prefix, modules[prefix]))
    return list(dict.fromkeys([*(each["module"] for each in described), *parts]))


def _running(name: str, module: nn.Module) -> Sequence[str]:
    """A module that runs, or of a list or dictionary, which never does, the modules in it."""
    from torch import nn

    if not isinstance(module, nn.ModuleList | nn.ModuleDict):
        return [name]
    return [inner for key, part in module.named_children() for inner in _running(f"{name}.{key}", part)]
