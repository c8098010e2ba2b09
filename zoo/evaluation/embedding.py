"""Has images embedded for a probe: by the encoders that it names, and by the same networks with random weights."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zoo.embedding import Cases, Embedder, embed_all, embed_cohort, read_list
from zoo.errors import InputContractError
from zoo.evaluation.matching import FeatureSet
from zoo.features import FeatureTable, read_features
from zoo.loading import load_model
from zoo.messages import first_names
from zoo.policy import lifted
from zoo.progress import say
from zoo.registry import get_entry
from zoo.transforms import build_transform

log = logging.getLogger("zoo")

SEEDS = (0, 1, 2)
"""Of the random weights of a twin."""
_SETTINGS = ("precision", "layer")
"""Facts of features that the twin's are computed with, too."""


def embed_by(embedder: Embedder, cases: Cases, folder: Path | None, workers: int | None) -> FeatureTable:
    """Return the features of cases; with a folder they are kept there, and those that are there are not made again.

    Raises:
        InputContractError: No image has features.
        OptionError: The folder holds others; what else `embed_cohort` raises.
    """
    if folder is None:
        return _in_memory(embedder, cases, workers)
    plain = Cases(cases.ids, cases.paths, {}, cases.points)  # a changed label is no reason to embed anew
    done = embed_cohort(embedder, plain, folder, workers=workers)
    if not done.embedded:
        raise InputContractError(f"no image has features by {embedder.name}: {first_names(done.failed.values(), 3)}")
    if done.failed:
        log.warning("%s: %d images have no features: %s", embedder.name, len(done.failed), first_names(done.failed))
    return read_features(folder)


def _in_memory(embedder: Embedder, cases: Cases, workers: int | None) -> FeatureTable:
    import pandas

    found = embed_all(embedder, cases, workers=workers)
    if not found.paths:
        raise InputContractError(f"no image has features by {embedder.name}: {first_names(found.failed.values(), 3)}")
    if found.failed:
        log.warning("%s: %d images have no features: %s", embedder.name, len(found.failed), first_names(found.failed))
    columns: dict[str, Sequence[Any]] = {"path": found.paths, **found.carried}
    if found.slices is not None:
        columns["slice"] = found.slices
    table = pandas.DataFrame({name: list(cells) for name, cells in columns.items() if name in ("id", "path", "slice")})
    table.attrs = dict(found.facts)
    return FeatureTable(found.values, table)


def cases_for(embedder: Embedder, table: Path, root: Path | None, path_column: str | None) -> Cases:
    """Return the cases of a table in the form that an embedder takes; paths lead from `root`.

    Raises:
        OptionError: As of `read_list`.
    """
    kind: dict[str, Any] = {"volumes": embedder.of_volumes, "lesions": embedder.of_lesions}
    return read_list(table, path_column=path_column, root=root, root_flag="--data", **kind)


def twin_key(facts: Mapping[str, Any]) -> str | None:
    """What tells networks apart whose random weights differ in more than their draw; None where nothing says it."""
    if not facts.get("network") or not facts.get("input"):
        return None
    return repr([facts[key] for key in ("network", "input")] + [facts.get(key) for key in ("options", *_SETTINGS)])


def twins_of(encoders: Sequence[FeatureSet]) -> dict[str, Mapping[str, Any]]:
    """Return the random weights that are needed, by name, with the facts of an encoder that they belong to.

    A network with several inputs or options has several, each called by the encoders that have these.
    """
    of = dict[str, list[FeatureSet]]()
    for each in encoders:
        if (key := twin_key(each.facts)) is not None:
            of.setdefault(key, []).append(each)
    networks = Counter(str(own[0].facts["network"]) for own in of.values())
    taken, twins = {each.name for each in encoders}, dict[str, Mapping[str, Any]]()
    for own in of.values():
        network = str(own[0].facts["network"])
        name = f"{network}, random weights"
        if networks[network] > 1 or name in taken:
            name = f"{name} as {' and '.join(sorted(each.name for each in own))}"
        twins[name] = own[0].facts
    return twins


def facts_of_twin(found: FeatureTable, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return facts of a twin, with the input and options of its encoder, by which the two find each other."""
    same = {key: facts.get(key) for key in ("network", "input", "options", "precision", "layer")}
    return {**found.table.attrs, **same}


def twin_of(facts: Mapping[str, Any], seed: int, *, device: str, cache_dir: Path | None = None) -> Embedder:
    """Return the embedder of an encoder's network with random weights, its input and settings the same.

    Args:
        facts: Of the encoder's features.
        seed: Of the weights.
        device: Where it runs.
        cache_dir: Cache folder.
    """
    import torch

    network = str(facts["network"])
    options = {name: _plain(value) for name, value in dict(facts.get("options") or {}).items()}
    settings: dict[str, Any] = {key: facts[key] for key in _SETTINGS if facts.get(key) is not None}
    with lifted():  # no weights are taken, so that no licence of any counts
        embedder = Embedder(network, device=device, cache_dir=cache_dir, **settings)
        embedder.transform = build_transform(get_entry(network).preprocessing.override(facts["input"]))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            asked: dict[str, Any] = {"num_classes": 0, **options}
            model = load_model(network, pretrained=False, cache_dir=cache_dir, **asked)
    embedder.network = model.to(_device(device))
    say(f"random weights of {network}, seed {seed}")
    return embedder


def _device(device: str) -> str:
    import torch

    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def _plain(value: Any) -> Any:
    """A value of JSON as Python has it: lists as tuples."""
    return tuple(_plain(each) for each in value) if isinstance(value, list) else value
