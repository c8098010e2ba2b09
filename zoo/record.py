"""Reads a manifest file: a record for each weight file, checked as it is read."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from zoo.errors import OptionError
from zoo.files import read_text
from zoo.messages import printable

LAYERS = ("code", "weights", "data")
"""What of weights has a licence of its own."""
STATES = ("hosted", "on-request", "withdrawn", "not-published")
DIGESTS = {"sha256": 64, "md5": 32, "git_blob": 40}
"""Digests that a record can state of a file, with their hexadecimal digits."""
_DEEPEST = 20
"""Levels of lists and objects in a record. The schema of ours has 4."""


@dataclass(frozen=True)
class RemoteFile:
    """A file that can be fetched and proved: the part that weights and assets have in common."""

    sources: tuple[str, ...]
    bytes: int | None
    sha256: str | None
    base: Path = Path()
    """Folder of the manifest, which `file:` sources are relative to."""
    md5: str | None = None
    """As Zenodo publishes it."""
    git_blob: str | None = None
    """Id of the file in a git repository: SHA-1 of `blob <bytes>`, a zero byte and the file."""

    @property
    def digests(self) -> dict[str, str]:
        """The digests on record, by kind."""
        return {kind: digest for kind in DIGESTS if (digest := getattr(self, kind))}

    @property
    def filename(self) -> str:
        """Last part of the first source, for messages and progress bars."""
        return self.sources[0].rsplit("/", 1)[-1].removeprefix("package:") if self.sources else "no file"


@dataclass(frozen=True)
class WeightsFile(RemoteFile):
    """One record of a manifest: one weight file and everything known about it."""

    tag: str = ""
    models: tuple[str, ...] = ()
    state: str = "hosted"
    trained_by: str = "user"
    default: bool = True
    sha256_note: str = ""
    fingerprint: Mapping[str, str] = field(default_factory=dict)
    fresh: Mapping[str, str] = field(default_factory=dict)
    """Model -> what of it, as published, the file lacks, so that it is made fresh; of pre-training, mostly the head."""
    format: str = ""
    writer: str = ""
    licences: Mapping[str, Any] = field(default_factory=dict)
    citation: str = ""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    assets: Mapping[str, RemoteFile] = field(default_factory=dict)
    input: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    training_ids: Mapping[str, Any] = field(default_factory=dict)
    """What is published of the training images, see `zoo.evaluation.training_ids`: cohorts, and a list of images."""
    notes: str = ""

    def allows(self, use: str) -> bool:
        """Whether the licences of code, weights and training data all say `yes` to `commercial` or `redistribute`."""
        return not in_the_way(self.licences, use)

    def verdict(self, use: str) -> str:
        """What the licences say of `commercial` or `redistribute`, the strictest first: `no`, `unknown` or `yes`."""
        layers = self.licences.values()
        said = {layer.get(use, "unknown") if isinstance(layer, Mapping) else "unknown" for layer in layers}
        return "no" if "no" in said else "yes" if self.allows(use) else "unknown"

    @property
    def loads_without_tag(self) -> bool:
        """Whether the plain model name may stand for these weights."""
        return self.state == "hosted" and self.default


def in_the_way(licences: Mapping[str, Any], use: str) -> tuple[str, ...]:
    """The layers whose licence does not say `yes` to a use; one that is not stated is among them.

    Args:
        licences: As in a record, by layer.
        use: `commercial` or `redistribute`.
    """
    said = {layer: licences.get(layer) for layer in LAYERS}
    return tuple(layer for layer, one in said.items() if not isinstance(one, Mapping) or one.get(use) != "yes")


def read_manifest(path: Path, *, imported: bool = False) -> tuple[WeightsFile, ...]:
    """Read one manifest file, once as long as it does not change.

    Args:
        path: The file.
        imported: Whether it is the one that `zoo import` writes, where only an explicit `"default": true` counts.

    Raises:
        OptionError: The file cannot be read, is not JSON of schema 1, or a record lacks a required field.
    """
    try:
        found = path.stat()
        version = (found.st_mtime_ns, found.st_size, found.st_ino)
    except OSError as error:
        raise OptionError(f"the weights manifest {path} cannot be read: {error}") from error
    return _read(path, imported, version)


@lru_cache(maxsize=16)
def _read(path: Path, imported: bool, version: tuple[int, ...]) -> tuple[WeightsFile, ...]:
    """Read a manifest; `version` is of the file as it is now."""
    try:
        content = json.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise OptionError(f"the weights manifest {path} cannot be read: {error}") from error
    if not isinstance(content, dict) or content.get("schema") != 1 or not isinstance(content.get("weights"), list):
        raise OptionError(f'the weights manifest {path} must be an object with "schema": 1 and a list "weights"')
    return tuple(_record(raw, path, default=not imported) for raw in content["weights"])


def _record(raw: Any, path: Path, *, default: bool) -> WeightsFile:
    _check_types(raw, f"a record of {path}")
    required = {"tag", "models", "state", "sources", "bytes", "sha256"}
    known = {f.name for f in fields(WeightsFile)} - {"base"}
    missing, unknown = sorted(required - set(raw)), sorted(set(raw) - known)
    if missing or unknown or raw["state"] not in STATES:
        raise OptionError(
            f"record {raw.get('tag', '?')!r} of {path}: missing {missing}, unknown {unknown}, "
            f"state {raw.get('state')!r} (one of {', '.join(STATES)})"
        )
    strays = [name for name, own in raw.get("input", {}).items() if isinstance(own, dict) and name not in raw["models"]]
    if strays:
        raise OptionError(
            f"record {raw['tag']!r} of {path}: input has {printable(', '.join(strays))}, which is not one of its "
            f"models: fields are expected, or the fields of one of {printable(', '.join(raw['models']))} under its name"
        )
    _check_types(raw.get("training_ids", {}), f"training_ids of record {raw['tag']!r} of {path}")
    base = path.resolve().parent
    assets = {}
    for name, asset in raw.get("assets", {}).items():
        _check_types(
            asset, f"asset {name!r} of record {raw['tag']!r} of {path}", required=("sources", "bytes", "sha256")
        )
        digests = {kind: _lower(asset.get(kind)) for kind in DIGESTS}
        assets[name] = RemoteFile(tuple(asset["sources"]), asset["bytes"], base=base, **digests)
    lists = {k: tuple(raw[k]) for k in ("models", "sources")}
    digests = {kind: _lower(raw.get(kind)) for kind in DIGESTS}
    return WeightsFile(**{"default": default, **raw, **lists, **digests, "assets": assets, "base": base})


_TYPES = {
    **dict.fromkeys(("models", "sources"), list),
    **dict.fromkeys(
        ("assets", "fingerprint", "fresh", "input", "licences", "options", "provenance", "training_ids"), dict
    ),
    **dict.fromkeys(("citation", "format", "notes", "sha256_note", "tag", "trained_by", "writer"), str),
    "default": bool,
}


def _check_types(raw: Any, what: str, required: tuple[str, ...] = ()) -> None:
    """Refuse what a hand-written manifest may hold: a text where a list is due, a malformed digest."""
    wrong = [] if isinstance(raw, dict) else ["it is not an object"]
    raw = raw if isinstance(raw, dict) else {}
    wrong += [f"{name} is missing" for name in required if name not in raw]
    wrong += [f"{k} must be a {t.__name__}" for k, t in _TYPES.items() if k in raw and not isinstance(raw[k], t)]
    lists = {name: raw[name] for name in ("models", "sources") if isinstance(raw.get(name), list)}
    wrong += [f"{name} must hold texts" for name, held in lists.items() if not all(isinstance(v, str) for v in held)]
    packaged = [str(s).removeprefix("package:") for s in lists.get("sources", []) if str(s).startswith("package:")]
    wrong += [f"package:{name} must be the bare name of a file" for name in packaged if Path(name).name != name]
    if raw.get("bytes") is not None and (isinstance(raw["bytes"], bool) or not isinstance(raw["bytes"], int)):
        wrong.append("bytes must be a whole number or null")
    for kind, digits in DIGESTS.items():
        if (stated := raw.get(kind)) is not None and not _is_digest(stated, digits):
            wrong.append(f"{kind} must be {digits} hexadecimal digits or null")
    if depth_of(raw) > _DEEPEST:
        wrong.append(f"lists and objects are nested more than {_DEEPEST} deep")
    if wrong:
        raise OptionError(f"{what}: {printable('; '.join(wrong))}")


def _is_digest(stated: Any, digits: int) -> bool:
    return isinstance(stated, str) and re.fullmatch(f"[0-9a-fA-F]{{{digits}}}", stated) is not None


def depth_of(value: Any, level: int = 0) -> int:
    """Depth to which lists and objects are nested, counted to one level more than is allowed."""
    inside = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    return level if level > _DEEPEST else max((depth_of(item, level + 1) for item in inside), default=level)


def _lower(digest: str | None) -> str | None:
    return digest.lower() if digest else None
