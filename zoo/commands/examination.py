"""Compares an image with a model's input contract, for `zoo doctor FILE --for NAME`.

The verdict is that of the model's own transform, which is run; beside it stands what was found, and what is expected.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.commands.facts import Fact, look_at_picture, look_at_volume
from zoo.entry import Preprocessing
from zoo.errors import InputContractError
from zoo.files import user_path
from zoo.images import Volume
from zoo.loading import input_of
from zoo.registry import resolve
from zoo.transforms import CropTransform, ImageTransform, build_transform

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger("zoo")


@dataclass(frozen=True)
class Examination:
    """The result of holding one image against one model's input."""

    path: str
    model: str
    """With the tag of the weights whose input is meant."""
    fits: bool
    """Whether `load_transform` takes the image. What is merely odd is in `warnings`."""
    facts: tuple[Fact, ...]
    """Empty where the file cannot be read at all."""
    warnings: tuple[str, ...]
    problem: str
    """Why it does not fit, and what to do; empty if it fits."""
    gives: str
    """Shape and range of what the network would get; empty if it does not fit."""
    needs: str = ""
    """What the transform is given beside the file, such as a seed point; empty where the file is all."""


def examine(
    path: str | Path, name: str, *, checkpoint: str | Path | None = None, cache_dir: str | Path | None = None
) -> Examination:
    """Read an image and hold it against the input of a model.

    Args:
        path: File or folder, as `load_transform` takes it.
        name: `MODEL` or `MODEL.TAG`.
        checkpoint: Your own file, whose header may state another input; as for `load_transform`.
        cache_dir: Cache folder, where imported weights are on record; default `$ZOO_HOME`.

    Raises:
        UnknownModelError: No such model or tag.
        FileNotFoundError: There is nothing at `path`.
        CheckpointFormatError: The checkpoint cannot be read.
    """
    wanted = resolve(name, cache_dir)
    model = f"{wanted.entry.name}.{wanted.record.tag}" if wanted.record and checkpoint is None else name
    return hold_against(user_path(path), input_of(name, checkpoint, cache_dir), model)


def hold_against(path: Path, contract: Preprocessing, model: str, read: Volume | None = None) -> Examination:
    """Hold an image against an input, as `examine` does.

    Args:
        path: File or folder.
        contract: The input.
        model: Whose it is, for the result.
        read: The volume in the file, where it was read before.

    Raises:
        FileNotFoundError: There is nothing at `path`.
    """
    transform: Any = build_transform(contract)
    look = look_at_picture if isinstance(transform, ImageTransform) else look_at_volume
    image: Any = read or path
    facts: tuple[Fact, ...] = ()
    problem = gives = ""
    with _heard() as warnings:
        try:
            image, facts = look(image, contract)
        except InputContractError as error:  # the transform may know better what was given
            problem = str(error)
        try:
            gives = transform.trial(image) if isinstance(transform, CropTransform) else _in_words(transform(image))
            problem = ""
        except InputContractError as error:
            problem = str(error)
    needs = getattr(transform, "needs", "")
    return Examination(str(path), model, not problem, facts, tuple(dict.fromkeys(warnings)), problem, gives, needs)


def _in_words(made: Tensor) -> str:
    kind = str(made.dtype).removeprefix("torch.")
    return f"{kind} {tuple(made.shape)}, {float(made.min()):.3g} to {float(made.max()):.3g}"


@contextmanager
def _heard() -> Iterator[list[str]]:
    """Collect what the zoo warns of, which nobody else hears meanwhile."""
    heard: list[str] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.append(record.getMessage())

    ear, propagates = Ear(logging.WARNING), log.propagate
    log.addHandler(ear)
    log.propagate = False
    try:
        yield heard
    finally:
        log.removeHandler(ear)
        log.propagate = propagates
