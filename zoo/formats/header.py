"""Writes and reads the header of a saved network: one flat mapping from text to text, for `.pt` files and safetensors.

Recipes write it into all that they save, under the key `KEY` of `best.pt` and `last.pt` and as the metadata of
safetensors; `zoo export` passes it on. `StoredState.metadata` of `zoo.formats.stored` has it, whatever the format.

    model     entry whose names the tensors have
    task      classify, regress, segment or pretrain
    input     JSON: fields of `Preprocessing`; of one model alone under its name
    options   JSON: the entry's options that names and shapes do not tell (`Entry.settled`)
    classes   JSON: names of the outputs in their order, background included; none for pre-training
    outputs   JSON: how they become answers, fields of `zoo.tasks.outputs.Outputs`; `zoo predict` asks for it
    reading   JSON: what scans were put through before the `input`, by options of the family's own commands; where there
              is any, `zoo segment` and `zoo predict`, which do none of it, refuse the file
    base      JSON: the weights that the run began with
    recipe    module that trained the network
    command   the whole command
    version   of the zoo that wrote it
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

from zoo.errors import CheckpointFormatError
from zoo.messages import printable
from zoo.version import __version__

if TYPE_CHECKING:
    from zoo.entry import Preprocessing

T = TypeVar("T", dict[str, Any], list[Any])
Task: TypeAlias = Literal["classify", "regress", "segment", "pretrain"]

KEY = "zoo"
"""Under it a `.pt` file has its header."""
KEYS = ("model", "task", "classes", "outputs", "input", "options", "base", "recipe", "command", "version")
RANDOM: Mapping[str, Any] = {"source": "random"}
"""Base of a run that began with random weights."""

_MARKS = ("model", "recipe")
"""Keys of every recipe's header, by which it is told from other programs' metadata."""
_JSON = {dict: "fields", list: "names"}


def make_header(
    model: str,
    task: Task,
    command: str,
    *,
    input: Preprocessing | Mapping[str, Any],
    options: Mapping[str, Any],
    base: Mapping[str, Any],
    classes: Sequence[str] = (),
    outputs: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, str]:
    """Return the header of a run.

    Args:
        model: Entry that what the run saves is of, without a tag.
        task: What it learns.
        command: From `zoo.training.args.command_of`.
        input: What its images or volumes are; or the fields of that which are not the entry's.
        options: The entry's that names and shapes do not tell; of a network from `load_model` they are in its report.
        base: From `base_of`, or `RANDOM`.
        classes: Names of the outputs, in their order.
        outputs: How they become answers, from `Outputs.as_header`; none for pre-training, and for published runs that
            choose no thresholds.
    """
    words = command.split()
    return {
        "model": model,
        "task": task,
        "input": json.dumps(dict(input) if isinstance(input, Mapping) else asdict(input)),
        "options": json.dumps(dict(options)),
        "classes": json.dumps(list(classes)),
        **({"outputs": json.dumps(dict(outputs))} if outputs else {}),
        "base": json.dumps(dict(base)),
        "recipe": words[words.index("-m") + 1],
        "command": command,
        "version": __version__,
    }


def is_of_recipe(metadata: Mapping[str, str]) -> bool:
    """Whether a header has the marks of a recipe, so that its other keys are not some other program's."""
    return all(isinstance(metadata.get(mark), str) for mark in _MARKS)


def find_header(content: Mapping[Any, Any], path: Path) -> dict[str, str]:
    """Return the header of a recipe's `.pt` file; an empty one for any other file, whatever it has there.

    Raises:
        CheckpointFormatError: It has the marks of a header and values that are not text.
    """
    found = content.get(KEY)
    if not isinstance(found, Mapping) or not is_of_recipe(found):
        return {}
    if wrong := [key for key, value in found.items() if not (isinstance(key, str) and isinstance(value, str))]:
        raise CheckpointFormatError(
            f"{path} has a header under {KEY!r} that no recipe wrote: all keys and values must be text, "
            f"unlike {', '.join(printable(repr(key)) for key in wrong[:5])}. Save the file's dictionary without it"
        )
    return dict(found)


def told(metadata: Mapping[str, str], key: str, kind: type[T], path: Path) -> T:
    """Return the JSON under a key of a header, a `dict` or a `list`; an empty one where there is none.

    Raises:
        CheckpointFormatError: The value is something else.
    """
    text = metadata.get(key, "")
    try:
        stored: Any = json.loads(text) if key in metadata else kind()
        json.dumps(stored, ensure_ascii=False).encode()  # half a surrogate pair is not text
    except (ValueError, RecursionError):
        stored = None
    if not isinstance(stored, kind):
        raise CheckpointFormatError(
            f"{path} states its {key} as {printable(text[:80])!r} in its header: {_JSON[kind]} as JSON are expected, "
            "as the recipes write them. Save the tensors without the header to use the model's own facts"
        )
    return stored
