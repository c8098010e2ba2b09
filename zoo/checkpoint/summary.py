"""Says what a checkpoint holds and which models it fits, as `zoo inspect` prints it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from zoo.messages import first_names, printable

_LONGEST = 200
"""Characters of what a header says under one key that are printed."""


@dataclass(frozen=True)
class Match:
    """The result of comparing a file with one model."""

    model: str
    matched: int
    """Number of needed tensors that are in the file, with the right shape."""
    needed: int
    """Tensors of the model, but for those of parts that it can do without and of which the file has nothing."""
    complete: bool
    """Whether `load_model` takes the file."""
    prefix: str
    """Prefix of the network's names in the file."""
    head: str
    """Name and shape of the head in the file; empty where it has none that the model knows."""
    call: str
    """How to load it; empty unless `complete`."""
    problem: str = ""
    """Why a file with all tensors does not load: what an option must say, or one that cannot be read. Else empty."""
    unclear: Mapping[str, str] = field(default_factory=dict)
    """Options that make another network of the same tensors and of which the file says nothing -> what is assumed."""

    def __str__(self) -> str:
        behind = f" behind {self.prefix!r}" if self.prefix else ""
        head = f", head {self.head}" if self.head else ""
        problem = f": {self.problem}" if self.problem else ""
        verdict = f"\n  {self.call}" if self.complete else f" (does not load{problem})"
        verdict += "".join(f"\n  does not say its {option}: {text}" for option, text in self.unclear.items())
        return f"{self.model}: {self.matched} of {self.needed} tensors{behind}{head}{verdict}"


@dataclass(frozen=True)
class CheckpointSummary:
    """The content of a checkpoint. Prints as a short page."""

    path: str
    format: str
    size: int
    """Bytes of the file, or of all of a TensorFlow checkpoint's."""
    containers: tuple[str, ...] = ()
    """Keys that lead from the top of the file to the tensors."""
    beside: tuple[str, ...] = ()
    """Other keys at the top."""
    header: Mapping[str, str] = field(default_factory=dict)
    """Its header: task, classes, input and more, see `formats.header`; empty where no recipe wrote it."""
    tensors: int = 0
    types: Mapping[str, int] = field(default_factory=dict)
    """Type of number -> bytes of tensors of that type."""
    first_names: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()
    """Prefixes behind which a model of the zoo was found."""
    faults: Mapping[str, str] = field(default_factory=dict)
    """Tensors with values that no network computes with -> what they are: NaN, infinite, too large for float32."""
    matches: tuple[Match, ...] = ()
    """The models that at least one tensor fits, best first."""
    refused: tuple[str, ...] = ()
    """Functions and classes that opening the file would have to import, and that are refused."""
    problem: str = ""
    """Why the file cannot be loaded; empty if it can be read."""

    def __str__(self) -> str:
        types = ", ".join(f"{kind} {size / 1e6:.1f} MB" for kind, size in self.types.items())
        under = f" under {' > '.join(map(repr, self.containers))}" if self.containers else ""
        names = f"{self.tensors}{under} ({types}): {first_names(self.first_names)}, ..." if self.tensors else ""
        reasons = Counter(self.faults.values())
        values = [f"{why} in {first_names(n for n, w in self.faults.items() if w == why)}" for why in reasons]
        rows = {
            "problem": self.problem,
            "refused": first_names(self.refused, 20) if self.refused else "",
            "tensors": names,
            "values": "\n".join(values),
            "beside": first_names(self.beside, 40) if self.beside else "",
            "header": "\n".join(f"{key}: {_short(text)}" for key, text in self.header.items()),
            "models": "\n".join(map(str, self.matches)) or ("none of the zoo's" if self.tensors else ""),
        }
        lines = [f"{self.path}: {self.format}, {self.size / 1e6:.1f} MB"]
        for title, text in rows.items():
            lines += [f"  {title if i == 0 else '':<9} {line}" for i, line in enumerate(text.splitlines())]
        return "\n".join(lines)


def _short(text: str) -> str:
    """The beginning of what a header says; what licences there are would fill a page."""
    return printable(text if len(text) <= _LONGEST else f"{text[:_LONGEST]}...")
