"""Resolves names of models and tags to entries and records."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import cache
from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import Any

from zoo.entry import Entry, ModelInfo
from zoo.errors import OptionError, UnknownModelError, WeightsUnavailableError
from zoo.manifest import plain_record, records, tagged_record, ways_out
from zoo.messages import printable
from zoo.policy import check_record
from zoo.record import WeightsFile

log = logging.getLogger("zoo")

FAMILIES = (
    "caid",
    "yaware",
    "drasclr",
    "monai_ssl",
    "glcl",
    "rad_dino",
    "ct_fm",
    "voco",
    "genesis",
    "anatomix",
    "brainiac",
    "fmcib",
)
"""Folders under `zoo/entries`, in the order in which models are listed."""
_FILES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".tar", ".index")


@cache
def entries() -> dict[str, Entry]:
    """Every entry by its name. Imports the families, which import no heavy library."""
    found = (entry for family in FAMILIES for entry in import_module(f"zoo.entries.{family}").ENTRIES)
    return {entry.name: entry for entry in found}


def list_models(pattern: str = "*") -> list[str]:
    """Names of the models, without tags, that match a shell pattern such as `"caid-*"`."""
    return [name for name in entries() if fnmatchcase(name, pattern)]


def split_name(name: str) -> tuple[str, str]:
    """Split `"model.tag"` at its first dot; the tag is empty where there is none.

    Raises:
        OptionError: The name is not a string.
    """
    if not isinstance(name, str):
        hint = f". To load a file pass checkpoint={str(name)!r} after the name" if isinstance(name, PathLike) else ""
        raise OptionError(
            f"{name!r} is not the name of a model; a string is expected, such as {next(iter(entries()))!r}{hint}"
        )
    model, _, tag = name.partition(".")
    return model, tag


def get_entry(name: str) -> Entry:
    """Return the entry of a model, whose name may carry a tag.

    Raises:
        UnknownModelError: No entry has this name.
        OptionError: The name is not a string.
    """
    model, _ = split_name(name)
    if model in entries():
        return entries()[model]
    if _is_file(name):
        raise UnknownModelError(
            f"{name!r} is the name of a file, not of a model: load_model(MODEL, checkpoint={name!r}) loads it, and "
            f"`zoo inspect {printable(name)}` says which MODEL it fits"
        )
    near = get_close_matches(model.lower().replace("_", "-"), entries(), n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"the names are {', '.join(entries())}."
    raise UnknownModelError(f"the zoo has no model {model!r} (asked for as {name!r}); {hint} `zoo list` shows them all")


def _is_file(name: str) -> bool:
    """Whether somebody who gave this as a name meant a file."""
    return "://" not in name and (
        any(sign in name for sign in ("/", "\\", "~")) or name.endswith(_FILES) or os.path.isfile(name)
    )


@dataclass(frozen=True)
class Resolved:
    """The entry, tag and record of a name."""

    name: str
    """As it was given."""
    entry: Entry
    tag: str
    """That the name carries; empty where it carries none."""
    record: WeightsFile | None
    """The tag's record, else the one that the plain name loads, else the first published; None without any."""
    cache_dir: str | Path | None = None

    @property
    def weights(self) -> WeightsFile:
        """The record, where its weights can be loaded under this name.

        The content of the cache plays no part, so that every process of a job gets the same weights.

        Raises:
            WeightsUnavailableError: They cannot; the message lists the ways out.
            PolicyError: `ZOO_POLICY` refuses their licences.
        """
        if self.record and (self.record.sources if self.tag else self.record == self._plain):
            check_record(self.name, self.record)
            return self.record
        candidates = (self.record,) if self.record and self.tag else records(self.entry.name, self.cache_dir)
        raise WeightsUnavailableError(ways_out(self.entry.name, self.tag, candidates))

    @property
    def _plain(self) -> WeightsFile | None:
        return plain_record(self.entry.name, self.cache_dir)


def resolve(name: str, cache_dir: str | Path | None = None) -> Resolved:
    """Resolve a name, `MODEL` or `MODEL.TAG`.

    Raises:
        UnknownModelError: No such model, or it has no weights with this tag.
        OptionError: The name is not a string, or a manifest cannot be read.
    """
    entry, tag = get_entry(name), split_name(name)[1]
    if tag:
        return Resolved(name, entry, tag, tagged_record(entry.name, tag, cache_dir), cache_dir)
    published = records(entry.name, cache_dir, imported=False)
    record = plain_record(entry.name, cache_dir) or (published[0] if published else None)
    return Resolved(name, entry, "", record, cache_dir)


def _head_of(record: WeightsFile) -> dict[str, Any]:
    """The number of classes of the head in imported weights, where `zoo import` found one."""
    return {name: record.provenance[name] for name in ("num_classes",) if name in record.provenance}


def model_info(name: str) -> ModelInfo:
    """Return what is known about a model and the weights of its name, with or without a tag.

    Raises:
        UnknownModelError: No such model, or no weights with this tag.
    """
    found = resolve(name)
    entry, known = found.entry, records(found.entry.name)
    record = found.record or WeightsFile((), None, None, state="not-published", trained_by="")
    plain = plain_record(entry.name)
    return ModelInfo(
        name=f"{entry.name}.{record.tag}" if record.tag else entry.name,
        summary=entry.summary,
        tags=tuple(r.tag for r in known),
        state=record.state,
        default=plain is not None and record.tag == plain.tag,
        trained_by=record.trained_by,
        sources=record.sources,
        bytes=record.bytes,
        sha256=record.sha256,
        licences=record.licences,
        citation=record.citation,
        provenance=record.provenance,
        input=entry.preprocessing.override(record.input),
        notes=record.notes,
        sha256_note=record.sha256_note,
        options={**entry.config, **_head_of(record), **record.options},
        fresh=record.fresh.get(entry.name, ""),
        modalities=entry.modalities,
        anatomy=entry.anatomy,
        dimension=entry.dimension,
        task=entry.task,
        parameters=entry.parameters,
        num_features=entry.num_features,
        md5=record.md5,
        git_blob=record.git_blob,
        training_ids=record.training_ids,
        assets={
            key: {"sources": file.sources, "bytes": file.bytes, "sha256": file.sha256, **file.digests}
            for key, file in record.assets.items()
        },
    )
