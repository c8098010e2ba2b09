"""DrasCLR: contrastive learning of the lung's local anatomy on CT (Yu et al., Medical Image Analysis 2024).

A 3D encoder of patches whose convolutions depend on where in an atlas of the lung the patch lies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zoo.entries.drasclr.contract import NAME, PREPROCESSING
from zoo.entry import Augment, Config, Entry, Parts, State
from zoo.tensor_names import find_prefix, strip_prefix

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from torch import nn


_ANCHORS = ("conv1.weight", "downsample3.conv3.weight", "conv4.weight")
_STAGES = (
    ("conv1.", "bn1.", "conv2.", "bn2."),
    ("downsample1.",),
    ("downsample2.",),
    ("downsample3.",),
    ("conv3.", "bn3.", "conv4.", "bn4."),
)
_PROJECTION = (128, 128)
_HEAD = "fc."


def build(config: Config) -> nn.Module:
    """The encoder: features `(N, 128)`, logits `(N, num_classes)`, or with `projection` `(N, 128)`."""
    from zoo.entries.drasclr.model import DrasCLREncoder

    projection = config["projection"]
    return DrasCLREncoder(
        experts=config["experts"],
        coordinates=config["coordinates"],
        features=config["features"],
        projection_dims=config.get("projection_dims", _PROJECTION) if projection else (),
        num_classes=0 if projection else config["num_classes"],
        in_channels=config["in_channels"],
    )


def parts(model: nn.Module, transform: Any, stride: int | None, cache_dir: str | Path | None) -> Callable[[Any], Parts]:
    """The patches of a patient at the authors' landmarks, whose features are averaged: `(1, 128)`.

    The path is that of a CT, from which the recipe's own steps cut patches instead of the transform's, or of a `.npy`
    file of patches.
    """
    from zoo.entries.drasclr.inputs import PatientReader

    return PatientReader(cache_dir)


def preparation(paths: Iterable[str]) -> dict[str, str]:
    """By which registration patients were, or will be, cut into patches, see `inputs.registration_of_cases`."""
    from zoo.entries.drasclr.inputs import registration_of_cases

    return registration_of_cases(paths)


def convert(state: State) -> tuple[State, Config]:
    """Keep the query encoder of any of the family's files, with its head; shapes tell the widths.

    Only whole leading names count: the parameters that turn locations into gates are called `_routing_fn.fc.*`, and a
    rule that drops every name with `fc` would lose them.

    Raises:
        CheckpointMismatchError: The file holds several networks that it could mean.
    """
    prefix = find_prefix(state, _ANCHORS)
    if prefix is None:
        return dict(state), {}
    encoder = strip_prefix(state, prefix)
    return encoder, _facts(encoder)


def _facts(encoder: State) -> Config:
    facts: Config = {}
    first, last = encoder["conv1.weight"], encoder["conv4.weight"]
    if first.ndim == last.ndim == 6:
        facts |= {"experts": first.shape[0], "features": last.shape[1]}
    routing, classifier = encoder.get("conv1._routing_fn.fc.weight"), encoder.get("classifier.weight")
    if routing is not None and routing.ndim == 2:
        facts["coordinates"] = routing.shape[1] // 3
    if classifier is not None and classifier.ndim == 2:
        facts["num_classes"] = classifier.shape[0]
    layers = [t for name, t in sorted(encoder.items()) if name.startswith(_HEAD) and t.ndim == 2]
    return facts | ({"projection_dims": tuple(t.shape[0] for t in layers)} if layers else {})


ENTRIES = (
    Entry(
        name=NAME,
        summary="3D encoder of lung CT patches and their position in an atlas: features (N, 128)",
        family="drasclr",
        modalities=("ct",),
        anatomy="chest",
        dimension=3,
        parameters=8_229_248,
        num_features=128,
        build=build,
        convert=convert,
        config={
            "num_classes": 0,
            "in_channels": 1,
            "projection": False,
            "experts": 8,
            "coordinates": 1,
            "features": 128,
        },
        required=tuple(prefix for stage in _STAGES for prefix in stage),
        head=("classifier.", _HEAD),
        stem="conv1.weight",
        stem_axis=2,
        stages=_STAGES,
        preprocessing=PREPROCESSING,
        augment=Augment(plane=(1, 2)),
        takes_positions=True,
        parts=parts,
        preparation=preparation,
        batch_size=16,
        unused={
            r"encoder_k\..*": "key network",
            r"queue(_ptr)?": "queue of negatives",
            r"fc\.(\d+\.)?(weight|bias)": "projection head",
        },
    ),
)
