"""From any file of anatomix to the U-Net's own names, its form, and what is assumed of it. Pure."""

from __future__ import annotations

import re
from typing import NamedTuple

from zoo.entry import Config, State
from zoo.errors import CheckpointMismatchError
from zoo.tensor_names import find_prefix, strip_prefix

STEM = "model.0.weight"
HEAD = "head."

_ANCHORS = tuple(f"model.{i}.weight" for i in (0, 3, 6, 10, 13, 17, 20))
"""Convolutions that the U-Net has at any depth from 2 on."""
_FIRST_OF_TWO = re.compile(r"(^|(?<=\.))0\.((_orig_mod|module)\.)?$")
_FINE_TUNED = "1.conv.conv."
"""Start of the names of the head that the authors' fine-tuning puts behind the U-Net, whose own then begin with 0."""
_CONVOLUTION = re.compile(r"model\.(\d+)\.weight")
_LEVEL, _REST = 14, 9
"""Layers of the sequence that a level adds, and layers before the last one without any level."""


class Form(NamedTuple):
    """What names and shapes tell of a U-Net."""

    width: int
    depth: int
    outputs: int
    norm_layer: str
    bias: bool


_PUBLISHED = {
    Form(16, 4, 16, "batch", False): "in anatomix.pth",
    Form(32, 5, 32, "instance", True): "in anatomix-dev.pth since 2026-07-20",
    Form(20, 5, 16, "instance", True): "in anatomix-dev.pth before 2026-07-20",
}


def convert(state: State) -> tuple[State, Config]:
    """Keep the U-Net of any of the family's files, and the head of a fine-tuned one.

    Raises:
        CheckpointMismatchError: The file holds several networks that it could mean, or the authors' transformer.
    """
    prefix = find_prefix(state, _ANCHORS)
    if prefix is None:
        _refuse_transformer(state)
        return dict(state), {}
    network = strip_prefix(state, prefix)
    owner = _FIRST_OF_TWO.sub("", prefix)
    if owner != prefix:
        beside = strip_prefix(strip_prefix(state, owner), _FINE_TUNED)
        network |= {f"{HEAD}{leaf}": tensor for leaf, tensor in beside.items()}
    form = _form_of(network)
    if form is None:
        return network, {}
    head = network.get(f"{HEAD}weight")
    classes = {"num_classes": head.shape[0]} if head is not None and head.ndim == 5 else {}
    assumed = _assumed(form)
    where = _PUBLISHED.get(form) or f"in published files with {form.norm_layer} norms, none of which has this form"
    unclear = {
        option: f"{value!r} is assumed, as {where}. Where it was trained with another value, pass {option}="
        for option, value in assumed.items()
    }
    return network, {**form._asdict(), **classes, "assumed": assumed, "unclear": unclear}


def _form_of(network: State) -> Form | None:
    """What names and shapes tell; None where the convolutions are not those of such a U-Net."""
    found = {int(match[1]): t for n, t in network.items() if (match := _CONVOLUTION.fullmatch(n)) and t.ndim == 5}
    last = max(found, default=0)
    if STEM not in network or last <= _REST or (last - _REST) % _LEVEL:
        return None
    has_norms = any(name.startswith("model.1.") for name in network)
    return Form(
        width=found[0].shape[0] if 0 in found else 0,
        depth=(last - _REST) // _LEVEL,
        outputs=found[last].shape[0],
        norm_layer="batch" if has_norms else "instance",
        bias="model.0.bias" in network,
    )


def _assumed(form: Form) -> Config:
    """The options that neither names nor shapes tell, as published files of a form have them."""
    if form.norm_layer == "batch":
        return {"eps": 1e-5, "pooling": "max", "upsampling": "nearest"}
    eps = 1e-2 if (form.width, form.outputs) == (32, 32) else 1e-5
    return {"eps": eps, "pooling": "average", "upsampling": "trilinear"}


def _refuse_transformer(state: State) -> None:
    """Raise where a file holds the Primus transformer that the authors publish as `anatomix-dev-vit`."""
    if all(any(re.search(rf"(^|\.){part}\.", name) for name in state) for part in ("eva", "up_projection")):
        raise CheckpointMismatchError(
            "the file holds a Primus transformer (dynamic-network-architectures), as anatomix-dev-vit of the authors "
            "is, expected their U-Net. It is another network, which the zoo does not have: load it with their code"
        )
