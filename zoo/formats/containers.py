"""Finds the state dict in the content of a file of torch.save."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.errors import CheckpointFormatError
from zoo.messages import printable

if TYPE_CHECKING:
    from zoo.entry import State

CONTAINERS = (
    *("state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights", "params"),
    "trunk_state_dict",
)
"""Keys that lead to the tensors; the last is VISSL's."""


def find_tensors(content: object, path: Path, depth: int = 0) -> tuple[State, tuple[str, ...]]:
    """Find the state dict in what a file holds: at the top or under one of `CONTAINERS`, up to five deep.

    Returns:
        Its tensors, and the keys that led to them.

    Raises:
        CheckpointFormatError: There is none.
    """
    import torch

    if not isinstance(content, dict):
        raise CheckpointFormatError(f"{path} holds a {type(content).__name__}, expected a dictionary of tensors")
    held: dict[object, Any] = dict(dict.items(content))  # a file may hide methods of a dictionary behind attributes
    for key in CONTAINERS:
        if isinstance(held.get(key), dict) and held[key] and depth < 5:
            tensors, deeper = find_tensors(held[key], path, depth + 1)
            return tensors, (key, *deeper)
    plain = (torch.Tensor, torch.nn.Parameter)
    tensors = {k: torch.Tensor.detach(v) for k, v in held.items() if isinstance(k, str) and type(v) in plain}
    if broken := next((name for name in tensors if not _is_text(name)), None):
        raise CheckpointFormatError(f"{path} has a tensor whose name is not text: {printable(broken)}")
    if not tensors:
        keys = ", ".join(repr(key)[:80] for key in list(held)[:8] if isinstance(key, (str, int))) or "nothing"
        raise CheckpointFormatError(
            f"{path} holds no state dict: found the keys {keys}; expected tensors, or one of {', '.join(CONTAINERS)}. "
            "Save the inner dictionary by itself: torch.save(torch.load(FILE)[KEY], NEW_FILE)"
        )
    return tensors, ()


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
