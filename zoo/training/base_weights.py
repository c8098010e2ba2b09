"""The file of weights that a run begins with: found by name or path, and its input compared with the run's."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from torch import nn

from zoo.checkpoint import LoadReport, convert
from zoo.entry import Config, Preprocessing
from zoo.errors import OptionError
from zoo.fetching import fetch
from zoo.files import user_path
from zoo.formats import StoredState, open_checkpoint
from zoo.loading import input_of, load_model
from zoo.locate import Located
from zoo.manifest import input_for, record_with_tag
from zoo.registry import entries, get_entry, resolve, split_name

log = logging.getLogger("zoo")

NOT_COMPARED = ("thickness",)
"""Fields of an input contract that may differ between a run and the weights that it begins with: `thickness` says which
volumes are let in, not how one becomes an input."""
SAME = 0.01
"""Relative difference of two numbers that is not worth a warning: less than between volumes of one scanner."""


class BaseWeights:
    """The file of `--init`, and what is known of it. Each network that it fills is made once."""

    def __init__(self, name: str, located: Located, model: str) -> None:
        """Open the file.

        Args:
            name: Of the weights, for messages.
            located: The file.
            model: Entry that the weights are of.
        """
        self.name, self.file, self.options = name, located.path, located.options
        self.report: LoadReport = replace(LoadReport(model), **located.facts())
        self.stored: StoredState = open_checkpoint(located.path)
        self._networks: dict[str, nn.Module] = {}

    @property
    def title(self) -> str:
        """Their name, and who trained them where they are on record."""
        return f"{self.name}, trained by the {self.report.trained_by}" if self.report.tag else self.name

    def has(self, model: str, prefixes: tuple[str, ...]) -> bool:
        """Whether the file has any tensor of a model's network whose name starts so."""
        state, _ = convert(get_entry(model), self.stored.tensors)
        return any(name.startswith(prefixes) for name in state)

    def facts(self, model: str) -> Config:
        """What names and shapes of the file say of a model's network."""
        return convert(get_entry(model), self.stored.tensors)[1]

    def network(self, model: str, options: Mapping[str, Any]) -> nn.Module:
        """A model's network, filled from the file.

        Args:
            model: The entry.
            options: Of `load_model`. Those of the weights' record that no name or shape tells are added.

        Raises:
            CheckpointMismatchError: The file does not fill it; or another error of `load_model`.
        """
        settled = {o: v for o, v in self.options.items() if o in get_entry(model).settled and o != "num_classes"}
        key = f"{model} {options}"
        if key not in self._networks:
            self._networks[key] = load_model(model, checkpoint=self.file, **{**settled, **options})
        return self._networks[key]

    def input(self, model: str) -> tuple[Preprocessing, bool]:
        """The input contract of the weights for a model, else for their own; and whether they say it themselves."""
        if not self.report.tag:
            return input_of(model, self.file), "input" in self.stored.metadata
        is_listed = record_with_tag(model, self.report.tag) is not None
        return input_of(f"{model if is_listed else self.report.model}.{self.report.tag}"), True


def find_weights(text: str, encoder: str) -> BaseWeights:
    """Find the file that `--init` means.

    Args:
        text: `MODEL`, `MODEL.TAG` or the path of a file. What is both the name of weights on record and a path is the
            name.
        encoder: Entry of the method's encoder.

    Raises:
        OptionError: It is the name of another family's model.
        UnknownModelError: It is neither a name nor a file; or another error of `load_model`.
    """
    if _is_name(text):
        return _by_name(text, get_entry(encoder).family)
    path = user_path(text)
    stated = open_checkpoint(path).metadata.get("model", "")
    return BaseWeights(text, Located(path, str(path)), stated if stated in entries() else encoder)


def _is_name(text: str) -> bool:
    """Whether a text is the name of a model or weights; a file may be called `MODEL.RUN.safetensors`."""
    model, tag = split_name(text)
    exists = user_path(text).exists()
    if model in entries():
        return not tag or record_with_tag(model, tag) is not None or not exists
    return not exists and not set(text) & set("./\\~")


def _by_name(text: str, family: str) -> BaseWeights:
    entry = get_entry(text)
    if entry.family != family:
        names = [name for name, known in entries().items() if known.family == family]
        raise OptionError(
            f"--init {text}: this recipe begins with weights of its own family. Name one of {', '.join(names)}, with "
            "or without a tag, or give a file"
        )
    record = resolve(text).weights
    name = f"{entry.name}.{record.tag}"
    found = fetch(record, request=name)
    located = Located(found.path, found.source or str(found.path), record, found.sha256, found.proved_by)
    return BaseWeights(name, located, entry.name)


def warn_of_other_input(weights: BaseWeights, model: str, changed: Mapping[str, Any]) -> None:
    """Warn of each field of the input contract in which a run differs from the weights that it begins with.

    Args:
        weights: The weights.
        model: Entry of the encoder.
        changed: The fields that the run changed, as for `start_from_init`.
    """
    ours = get_entry(model).preprocessing.override(input_for(model, changed))
    theirs, is_said = weights.input(model)
    compared = [field.name for field in fields(Preprocessing) if field.name not in NOT_COMPARED]
    other = [name for name in compared if not _alike(getattr(ours, name), getattr(theirs, name))]
    if not other:
        return
    there, here = (", ".join(f"{name} {_text(getattr(each, name))}" for name in other) for each in (theirs, ours))
    origin = "was trained with" if is_said else f"does not say its input; that of {model} has"
    log.warning(
        "%s %s %s, but this run has %s: the images that it learnt from were others. Give the run the same input, "
        "unless that is intended",
        weights.name,
        origin,
        there,
        here,
    )


def _alike(a: Any, b: Any) -> bool:
    """Whether two values of a field are the same but for rounding."""
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(_alike, a, b))
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        return math.isclose(a, b, rel_tol=SAME, abs_tol=1e-6)
    return bool(a == b)


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(map(_text, value))})"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
