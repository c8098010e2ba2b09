"""Reads `weights_manifest.json` and its companions into `WeightsFile` records.

Three manifests are read, in this order of preference: the file `ZOO_MANIFEST` names (in-house weights, mirrors),
`$ZOO_HOME/manifest.json` (what `zoo import` wrote), and the one that ships with the package.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from zoo.cache import cache_home
from zoo.errors import OptionError, UnknownModelError, WeightsUnavailableError

STATES = ("hosted", "on-request", "withdrawn", "not-published")


@dataclass(frozen=True)
class RemoteFile:
    """A file that can be fetched and proved: the part that weights and assets have in common."""

    sources: tuple[str, ...]
    bytes: int | None
    sha256: str | None
    base: Path = Path()
    """Folder of the manifest, which `file:` sources are relative to."""

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
    format: str = ""
    writer: str = ""
    licences: Mapping[str, Any] = field(default_factory=dict)
    citation: str = ""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    assets: Mapping[str, RemoteFile] = field(default_factory=dict)
    input: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    notes: str = ""

    @property
    def loads_without_tag(self) -> bool:
        """Whether the plain model name may stand for these weights."""
        return self.state == "hosted" and self.default


def packaged_manifest() -> Path:
    """Path of the manifest that ships with the package: beside this file in a wheel, one folder up in a checkout."""
    here = Path(__file__).parent
    beside = here / "weights_manifest.json"
    return beside if beside.is_file() else here.parent / "weights_manifest.json"


def read_manifest(path: Path) -> tuple[WeightsFile, ...]:
    """Read one manifest file.

    Raises:
        OptionError: The file cannot be read, is not JSON of schema 1, or a record lacks a required field.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise OptionError(f"the weights manifest {path} cannot be read: {error}") from error
    if not isinstance(content, dict) or content.get("schema") != 1 or not isinstance(content.get("weights"), list):
        raise OptionError(f'the weights manifest {path} must be an object with "schema": 1 and a list "weights"')
    return tuple(_record(raw, path) for raw in content["weights"])


def _record(raw: Any, path: Path) -> WeightsFile:
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
            f"record {raw['tag']!r} of {path}: input has {', '.join(strays)}, which is none of its models: fields are "
            f"expected, or the fields of one of {', '.join(raw['models'])} under its name"
        )
    base = path.resolve().parent
    assets = {}
    for name, asset in raw.get("assets", {}).items():
        _check_types(
            asset, f"asset {name!r} of record {raw['tag']!r} of {path}", required=("sources", "bytes", "sha256")
        )
        assets[name] = RemoteFile(tuple(asset["sources"]), asset["bytes"], _lower(asset["sha256"]), base)
    lists = {k: tuple(raw[k]) for k in ("models", "sources")}
    return WeightsFile(**{**raw, **lists, "sha256": _lower(raw["sha256"]), "assets": assets, "base": base})


_TYPES = {
    **dict.fromkeys(("models", "sources"), list),
    **dict.fromkeys(("assets", "fingerprint", "input", "licences", "options", "provenance"), dict),
    **dict.fromkeys(("citation", "format", "notes", "sha256_note", "tag", "trained_by", "writer"), str),
    "default": bool,
}


def _check_types(raw: Any, what: str, required: tuple[str, ...] = ()) -> None:
    """Refuse what a hand-written manifest may hold: a text where a list is due, a digest that is none."""
    wrong = [] if isinstance(raw, dict) else ["it is no object"]
    raw = raw if isinstance(raw, dict) else {}
    wrong += [f"{name} is missing" for name in required if name not in raw]
    wrong += [f"{k} must be a {t.__name__}" for k, t in _TYPES.items() if k in raw and not isinstance(raw[k], t)]
    wrong += [
        f"{k} must hold texts" for k in ("models", "sources") if not all(isinstance(v, str) for v in raw.get(k) or [])
    ]
    packaged = [str(s).removeprefix("package:") for s in raw.get("sources") or [] if str(s).startswith("package:")]
    wrong += [f"package:{name} must be the bare name of a file" for name in packaged if Path(name).name != name]
    if raw.get("bytes") is not None and (isinstance(raw["bytes"], bool) or not isinstance(raw["bytes"], int)):
        wrong.append("bytes must be a whole number or null")
    if raw.get("sha256") is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", str(raw["sha256"])):
        wrong.append("sha256 must be 64 hexadecimal digits or null")
    if wrong:
        raise OptionError(f"{what}: {'; '.join(wrong)}")


def _lower(digest: str | None) -> str | None:
    return digest.lower() if digest else None


def user_manifest(cache_dir: str | Path | None = None) -> Path:
    """Path of the manifest that `zoo import` writes."""
    return cache_home(cache_dir) / "manifest.json"


def manifests(cache_dir: str | Path | None = None) -> Iterator[Path]:
    """Yield the manifests that apply, in order of preference.

    Raises:
        OptionError: `ZOO_MANIFEST` names a file that does not exist.
    """
    if extra := os.environ.get("ZOO_MANIFEST"):
        path = Path(extra).expanduser()
        if not path.is_file():
            raise OptionError(f"ZOO_MANIFEST={extra} does not exist; unset it or name a manifest file")
        yield path
    if user_manifest(cache_dir).is_file():
        yield user_manifest(cache_dir)
    yield packaged_manifest()


def records(model: str, cache_dir: str | Path | None = None) -> tuple[WeightsFile, ...]:
    """All records for a model, with its own input, in order of preference; of two with one tag the first counts."""
    found: dict[str, WeightsFile] = {}
    for path in manifests(cache_dir):
        for record in read_manifest(path):
            if model in record.models:
                found.setdefault(record.tag, replace(record, input=input_for(model, record.input)))
    return tuple(found.values())


def input_for(model: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of `Preprocessing` that weights change for a model.

    Args:
        model: Its name.
        facts: The `input` of a record or of a file's header: fields, for all models that the weights fill, and under
            the name of a model the fields that are its own.
    """
    shared = {name: value for name, value in facts.items() if not isinstance(value, Mapping)}
    return shared | dict(facts.get(model, {}))


def find_weights(model: str, tag: str = "", cache_dir: str | Path | None = None) -> WeightsFile:
    """Return the record that `model` or `model.tag` stands for.

    Without a tag this is the first record that is hosted (an imported file is) and not `"default": false`. What lies
    in the cache plays no part, so that every process of a job gets the same weights.

    Raises:
        UnknownModelError: The model has no weights with this tag.
        WeightsUnavailableError: No record may be taken for the name as given.
    """
    if tag:
        return _available(model, tagged_record(model, tag, cache_dir))
    candidates = records(model, cache_dir)
    for record in candidates:
        if record.loads_without_tag:
            return record
    raise WeightsUnavailableError(_ways_out(model, candidates))


def tagged_record(model: str, tag: str, cache_dir: str | Path | None = None) -> WeightsFile:
    """Return the record of a model that has this tag, whether or not its weights can be had.

    Raises:
        UnknownModelError: There is none.
    """
    candidates = records(model, cache_dir)
    for record in candidates:
        if record.tag == tag:
            return record
    tags = ", ".join(r.tag for r in candidates) or "none"
    raise UnknownModelError(f"{model!r} has no weights with the tag {tag!r}; its tags are: {tags}")


def _available(model: str, record: WeightsFile) -> WeightsFile:
    if record.sources:
        return record
    raise WeightsUnavailableError(_ways_out(f"{model}.{record.tag}", (record,)))


def _ways_out(request: str, candidates: tuple[WeightsFile, ...]) -> str:
    model = request.split(".")[0]
    lines = [f"no weights can be loaded for {request!r}:"]
    for record in candidates:
        by_tag = f"; load {model}.{record.tag} by its full name" if record.sources else ""
        facts = f"{record.state}, trained by {record.trained_by}"
        lines.append(f"  {record.tag} ({facts}){by_tag}. {record.notes}".rstrip())
    lines += [
        "What you can do:",
        f"  - a file of your own: load_model({model!r}, checkpoint='FILE'), or for good `zoo import {model} FILE`",
        f"  - no weights at all: load_model({model!r}, pretrained=False)",
        "  - train them: the recipe beside the entry, see `zoo info " + model + "`",
    ]
    return "\n".join(lines)
