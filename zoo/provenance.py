"""Describes where a network's weights are from, and makes the header of a network that `zoo export` writes."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.checkpoint import LoadReport, load_report, unwrap, without_guesses
from zoo.fetching import hash_file, local_file
from zoo.formats import RANDOM, open_checkpoint, told
from zoo.loading import check_channels, download_weights, input_of
from zoo.manifest import record_with_digest, record_with_tag
from zoo.record import WeightsFile
from zoo.registry import get_entry

if TYPE_CHECKING:
    from torch import nn


_MADE = ("model", "input", "options", "format")
"""Keys of a header that each export makes anew, and the one that other programs write."""


def base_of(report: LoadReport, cache_dir: str | Path | None = None) -> dict[str, Any]:
    """The weights of a network, by its report: model, tag, source, sha256, trained_by, licences.

    The user's file has the facts of the record that has its digest; else, where a recipe wrote it, the licences of
    the weights that it began with, which stand under `base`, as they do of an import. Of its path the name alone is
    kept.
    """
    if report.is_random:
        return {"model": report.model, **RANDOM}
    if report.tag:
        record = record_with_tag(report.model, report.tag, cache_dir)
        facts = _facts(report.model, record) if record else {"model": report.model, "tag": report.tag}
        return facts | {"source": _public(report.source), "sha256": report.sha256, "trained_by": report.trained_by}
    stored = open_checkpoint(local_file(report.source, cache_dir))
    digest = hash_file(stored.path) if len(stored.files) == 1 else None
    known = record_with_digest(report.model, digest, cache_dir)
    before = told(stored.metadata, "base", dict, stored.path)
    own = {"model": report.model, "tag": "", "trained_by": "user", "licences": before.get("licences", {})}
    facts = _facts(report.model, known) if known else own | ({"base": before} if before else {})
    return facts | {"source": _public(report.source), "sha256": digest}


def header_of_export(
    name: str, network: nn.Module, checkpoint: str | Path | None, cache_dir: str | Path | None = None
) -> dict[str, str]:
    """Return the header of a network from `load_model` that is written as it is, as `zoo export` does.

    What the file that it is from says of its task and training stays; the weights on record are themselves the base.

    Args:
        name: What the network was loaded as, `MODEL` or `MODEL.TAG`.
        network: The network.
        checkpoint: The file that it was loaded from; None for the weights that the name stands for.
        cache_dir: Cache folder; default `$ZOO_HOME`.

    Raises:
        InputContractError: The network takes another number of channels than its header would say.
    """
    model, report = get_entry(name).name, load_report(network)
    check_channels(name, network)
    file = download_weights(name, cache_dir=cache_dir, progress=False) if checkpoint is None else checkpoint
    stored = open_checkpoint(local_file(file, cache_dir))
    own = stored.metadata.get("model") == model
    # What another network of the family learnt to tell apart is no fact of this one.
    kept = [key for key in stored.metadata if key not in _MADE] if own else ("base", "recipe", "command", "version")
    said = {key: text for key in kept if (text := stored.metadata.get(key))}
    record = record_with_tag(model, report.tag, cache_dir) if report.tag else None
    return {
        **({} if "base" in said else {"base": json.dumps(base_of(report, cache_dir))}),
        **(_learnt(record) if record else {}),
        **said,
        "model": model,
        "input": json.dumps(asdict(input_of(name, checkpoint, cache_dir))),
        "options": json.dumps(without_guesses(report.options, report.said_by)),
    }


def _learnt(record: WeightsFile) -> dict[str, str]:
    """The task and classes that a record states of weights whose file does not, as a header has them."""
    task, classes = (record.provenance.get(key) for key in ("task", "classes"))
    return ({"task": task} if task else {}) | ({"classes": json.dumps(classes)} if classes else {})


def _facts(model: str, record: WeightsFile) -> dict[str, Any]:
    below = record.provenance.get("base") if record.trained_by == "user" else None  # of ours its licences say all
    return {
        "model": model,
        "tag": record.tag,
        "trained_by": record.trained_by,
        "licences": dict(record.licences),
        **({"base": below} if below else {}),
    }


def _public(source: str) -> str:
    """An address as it is; of a file on this machine the name alone, since its folder is private."""
    is_address = "://" in source or source.startswith(("gdrive:", "package:", "zenodo:"))
    return source if is_address else Path(source.removeprefix("file:")).name


def values_digest(network: nn.Module) -> str:
    """Return the sha256 of the names and values of a network's tensors, for weights without a digest of their file."""
    digest = hashlib.sha256()
    for name, tensor in sorted(unwrap(network).state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
