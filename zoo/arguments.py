"""Checks what `load_model`, and whoever computes with its networks, is asked for, before anything is opened."""

from __future__ import annotations

import re
from collections.abc import Mapping
from numbers import Integral
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from zoo.entry import Config, Entry
from zoo.errors import OptionError
from zoo.fetching import is_hub

if TYPE_CHECKING:
    import torch


Precision: TypeAlias = Literal["fp32", "bf16", "fp16"]
"""Arithmetic of the forward pass."""
PRECISIONS: tuple[str, ...] = get_args(Precision)


def check_precision(precision: str) -> None:
    """Raise `OptionError` where there is no such precision."""
    if precision not in PRECISIONS:
        raise OptionError(f"precision={precision!r}: {', '.join(PRECISIONS)} are known")


def check_switches(name: str, pretrained: object, mmap: object) -> None:
    """Check the arguments that are the same for every model.

    Raises:
        OptionError: One has a value that it cannot have.
    """
    if not isinstance(pretrained, bool):
        raise OptionError(f"pretrained={pretrained!r} for {name!r}: expected True or False")
    if not pretrained and is_hub(name):
        raise OptionError(f"pretrained=False for {name!r}: an address stands for its weights. Name the model instead")
    if mmap not in (True, False, "auto"):
        raise OptionError(f"mmap={mmap!r} for {name!r}: expected True, False or 'auto'")


def check_options(entry: Entry, num_classes: int | None, in_channels: int | None, options: Mapping[str, Any]) -> Config:
    """Return the options of the network that were asked for, checked; what was left at None is not among them.

    Raises:
        OptionError: The model has no such option, one has a value that it cannot have, or two contradict each other.
    """
    for argument, value, least in (("num_classes", num_classes, 0), ("in_channels", in_channels, 1)):
        is_whole = isinstance(value, Integral) and not isinstance(value, bool)
        if value is not None and not (is_whole and value >= least):
            raise OptionError(f"{argument}={value!r} for {entry.name!r}: expected a whole number, {least} or more")
    known = {key: default for key, default in entry.config.items() if key not in ("num_classes", "in_channels")}
    if unknown := sorted(set(options) - set(known)):
        raise OptionError(
            f"{entry.name!r} has no option {', '.join(map(repr, unknown))}; its options are: "
            f"{', '.join(known) or 'none'}, beside the arguments of load_model"
        )
    for key, value in options.items():
        if isinstance(known[key], bool) and not isinstance(value, bool):
            raise OptionError(f"{key}={value!r} for {entry.name!r}: expected True or False")
    if num_classes and options.get("projection"):
        raise OptionError(f"num_classes={num_classes} and projection=True ask for two heads; {entry.name!r} has one")
    sizes = {"num_classes": num_classes, "in_channels": in_channels}
    return {key: int(value) for key, value in sizes.items() if value is not None} | dict(options)


def check_device(device: str | torch.device) -> torch.device:
    """Return the device that was asked for, which this machine has.

    Raises:
        OptionError: It has none of this name, or the device holds no values.
    """
    import torch

    try:
        found = torch.device(device)
        torch.empty(0, device=found)  # refused before anything is downloaded
    except (AssertionError, RuntimeError, TypeError) as error:
        near = re.sub("(?i)^gpu", "cuda", str(device))
        hint = f"did you mean {near!r}? " if near != str(device) else ""
        raise OptionError(f"device={device!r}: {hint}{str(error).partition(chr(10))[0]}") from error
    if found.type == "meta":
        raise OptionError(f"device={device!r} holds no values: name cpu, cuda, ...")
    return found
