"""Says facts of the manifest in plain words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zoo.commands.listing import Listed
from zoo.record import LAYERS

USES = {"commercial": "Commercial use", "redistribute": "Passing the weights on"}
"""A use of licences -> what it is called."""
VERDICTS = {"yes": "allowed", "no": "not allowed", "unknown": "not settled"}
STATES = {
    "hosted": "loads today",
    "on-request": "ask the authors",
    "withdrawn": "withdrawn",
    "not-published": "never published",
}
WHOSE = {"authors": "the authors'", "zoo": "this zoo's own"}
LAYER_NAMES = {"code": "code", "weights": "weights", "data": "training data"}
_ELEMENTS = {2: "pixel", 3: "voxel"}
MODALITY_NAMES = {"xray": "X-ray", "ct": "CT", "mri": "MRI"}


def licence(licences: Mapping[str, Any], use: str, verdict: str) -> str:
    """One sentence on a use: the verdict, and which licences stand in its way."""
    what = f"{USES[use]} is {VERDICTS[verdict]}"
    if verdict == "yes":
        return f"{what} by the licences of code, weights and training data."
    layers = [LAYER_NAMES[layer] for layer in LAYERS if licences.get(layer, {}).get(use, "unknown") == verdict]
    terms = f"the terms of the {listed(layers)}"
    return f"{what} by {terms}." if verdict == "no" else f"{what}: {terms} leave it open."


def takes(each: Listed) -> str:
    """What goes in: `3D CT or MRI of the brain`."""
    modalities = " or ".join(MODALITY_NAMES[modality] for modality in each.modalities)
    of = "of any part of the body" if each.anatomy == "any" else f"of the {each.anatomy}"
    return f"{each.dimension}D {modalities} {'of lesions' if each.anatomy == 'lesion' else of}"


def gives(each: Listed) -> str:
    """What comes out of the network as published."""
    if each.task == "restoration":
        return "the image, restored"
    return f"{each.num_features} features" if each.num_features else f"maps of every {_ELEMENTS[each.dimension]}"


def size(count: int | None) -> str:
    """The size of a file."""
    return "size not published" if count is None else f"{count / 1e6:,.0f} MB"


def parameters(count: int) -> str:
    """The size of a network."""
    return f"{count / 1e9:.2f} G parameters" if count >= 1e9 else f"{count / 1e6:.3g} M parameters"


def listed(words: list[str]) -> str:
    """Words as a sentence has them."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
