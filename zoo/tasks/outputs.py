"""How the numbers that a fine-tuned network returns become answers: what its file says of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from zoo.errors import CheckpointFormatError
from zoo.formats import told
from zoo.messages import printable

Kind: TypeAlias = Literal["labels", "classes", "numbers", "voxels"]
"""`labels` may hold together or not at all: a sigmoid each, one output each. Of `classes` one holds: a softmax over
them. `numbers` are those of the table. `voxels` have one class each, the background first."""


@dataclass(frozen=True)
class Outputs:
    """How outputs become answers; the names of the outputs stand beside it, under `classes` of a header."""

    kind: Kind
    thresholds: tuple[float, ...] = ()
    """Of `labels`, one each: the probability from which on one is taken to hold, chosen on the validation part. Of two
    `classes` one: that of the second. Empty where the largest probability decides."""
    means: tuple[float, ...] = ()
    deviations: tuple[float, ...] = ()
    """Of `numbers`, those of the training part: an answer is output x deviation + mean."""

    def as_header(self) -> dict[str, Any]:
        """Return what `make_header` takes; `read_outputs` reads it back."""
        return {name: value for name, value in asdict(self).items() if value != ()}


def read_outputs(metadata: Mapping[str, str], path: Path) -> tuple[Outputs, tuple[str, ...]]:
    """Return how the outputs of a file become answers, and their names, as its header says.

    Raises:
        CheckpointFormatError: It says nothing of the kind, or what cannot be.
    """
    said, names = told(metadata, "outputs", dict, path), tuple(map(str, told(metadata, "classes", list, path)))
    if not said:
        raise CheckpointFormatError(
            f"{path} does not say how its outputs become answers: a file that `zoo finetune` wrote is expected, "
            f"model.safetensors of its OUT; {_what_it_is(metadata)}"
        )
    try:
        found = Outputs(said.pop("kind"), **{name: tuple(map(float, values)) for name, values in said.items()})
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointFormatError(f"{path}: its header's outputs are not as `zoo finetune` writes them") from error
    expected = {"labels": [len(names)], "classes": [0, 1], "numbers": [0], "voxels": [0]}
    scales = [len(names)] * 2 if found.kind == "numbers" else [0, 0]
    if (
        found.kind not in get_args(Kind)
        or not names
        or len(found.thresholds) not in expected[found.kind]
        or [len(found.means), len(found.deviations)] != scales
    ):
        raise CheckpointFormatError(
            f"{path}: its header names {len(names)} outputs and has other numbers for them: "
            f"{printable(repr(said))[:200]}. Was it changed by hand?"
        )
    return found, names


def _what_it_is(metadata: Mapping[str, str]) -> str:
    command: Sequence[str] = metadata.get("command", "").split()
    return f"this one is of {printable(' '.join(command[:4]))}" if command else "this one has no header of a run"
