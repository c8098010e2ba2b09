"""Finds the records that a name stands for in `weights_manifest.json` and its companions.

Three manifests are read, in this order of preference: the file `ZOO_MANIFEST` names (in-house weights, mirrors),
`$ZOO_HOME/manifest.json` (what `zoo import` wrote), and the one that ships with the package. What was imported is
loaded by its tag; the plain name of a model stands for it only where its record says `"default": true`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from zoo.errors import UnknownModelError, WeightsUnavailableError
from zoo.files import read_text
from zoo.messages import printable
from zoo.record import RemoteFile as RemoteFile
from zoo.record import WeightsFile as WeightsFile
from zoo.record import read_manifest as read_manifest
from zoo.settings import cache_home, further_manifest

log = logging.getLogger("zoo")


def packaged_manifest() -> Path:
    """Path of the manifest that ships with the package: beside this file in a wheel, one folder up in a checkout."""
    here = Path(__file__).parent
    beside = here / "weights_manifest.json"
    return beside if beside.is_file() else here.parent / "weights_manifest.json"


def user_manifest(cache_dir: str | Path | None = None) -> Path:
    """Path of the manifest that `zoo import` writes."""
    return cache_home(cache_dir) / "manifest.json"


def manifests(cache_dir: str | Path | None = None) -> Iterator[Path]:
    """Yield the manifests that apply, in order of preference.

    Raises:
        OptionError: `ZOO_MANIFEST` names a file that does not exist.
    """
    if further := further_manifest():
        yield further
    if _is_readable(user_manifest(cache_dir)):
        yield user_manifest(cache_dir)
    yield packaged_manifest()


def _is_readable(manifest: Path) -> bool:
    """Whether there is a manifest of imports that can be read; another user's private one counts as none."""
    try:
        read_text(manifest)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except PermissionError:
        _warn_of_private(manifest)
        return False
    except (OSError, ValueError):
        return True  # as `read_manifest` says in full
    return True


@cache
def _warn_of_private(manifest: Path) -> None:
    """Say once what is passed over."""
    log.warning("%s cannot be read by this user: imports recorded there are passed over", manifest)


def all_records(
    model: str, cache_dir: str | Path | None = None, *, imported: bool = True
) -> Iterator[tuple[WeightsFile, bool]]:
    """Yield every record for a model, with its own input, in order of preference, and whether it was imported.

    Args:
        model: Its name.
        cache_dir: The cache; see `cache_home`.
        imported: Whether what `zoo import` wrote is among them.
    """
    own = user_manifest(cache_dir)
    for path in manifests(cache_dir):
        if path != own or imported:
            for record in read_manifest(path, imported=path == own):
                if model in record.models:
                    yield replace(record, input=input_for(model, record.input)), path == own


def published_records(cache_dir: str | Path | None = None) -> Iterator[WeightsFile]:
    """Yield the records of all models, but for what `zoo import` wrote, in order of preference."""
    for path in manifests(cache_dir):
        if path != user_manifest(cache_dir):
            yield from read_manifest(path)


def records(model: str, cache_dir: str | Path | None = None, *, imported: bool = True) -> tuple[WeightsFile, ...]:
    """The records for a model, as `all_records` yields them; of two with one tag the first counts."""
    found: dict[str, WeightsFile] = {}
    for record, _ in all_records(model, cache_dir, imported=imported):
        found.setdefault(record.tag, record)
    return tuple(found.values())


def record_with_tag(
    model: str, tag: str, cache_dir: str | Path | None = None, *, imported: bool = True
) -> WeightsFile | None:
    """The record of a model that has this tag; None where no record has."""
    return next((r for r in records(model, cache_dir, imported=imported) if r.tag == tag), None)


def record_with_digest(
    model: str, sha256: str | None, cache_dir: str | Path | None = None, *, imported: bool = True
) -> WeightsFile | None:
    """The first record of a model for the file with this digest; None where no record has it, or it is not known."""
    return next((r for r in records(model, cache_dir, imported=imported) if sha256 and r.sha256 == sha256), None)


def plain_record(model: str, cache_dir: str | Path | None = None) -> WeightsFile | None:
    """The record that a model's plain name, without a tag, stands for; None where it loads nothing.

    The first that is hosted and not `"default": false` gives the tag; an import of the user's is passed over unless
    it was made the default. Where weights of this tag were imported, the file is theirs.
    """
    settled: set[str] = set()
    for record, was_imported in all_records(model, cache_dir):
        if record.loads_without_tag and record.tag not in settled:
            return tagged_record(model, record.tag, cache_dir)
        settled |= set() if was_imported else {record.tag}
    return None


def find_asset(model: str, name: str, cache_dir: str | Path | None = None) -> RemoteFile:
    """Return a file that belongs to a model's weights, as the first record that lists it has it.

    Raises:
        WeightsUnavailableError: No record does.
    """
    for record, _ in all_records(model, cache_dir):
        if name in record.assets:
            return record.assets[name]
    raise WeightsUnavailableError(f"no record of {model!r} lists the asset {name!r}, which comes with its weights")


def input_for(model: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of the input contract that weights change for a model.

    Args:
        model: Its name.
        facts: The `input` of a record or of a file's header: fields, for all models that the weights fill, and under
            the name of a model the fields that are its own.
    """
    shared = {name: value for name, value in facts.items() if not isinstance(value, Mapping)}
    own = facts.get(model)
    return shared | (dict(own) if isinstance(own, Mapping) else {})


def tagged_record(model: str, tag: str, cache_dir: str | Path | None = None) -> WeightsFile:
    """Return the record of a model that has this tag, whether or not its weights can be had.

    Raises:
        UnknownModelError: There is none.
    """
    if record := record_with_tag(model, tag, cache_dir):
        return record
    tags = [record.tag for record in records(model, cache_dir)]
    near = get_close_matches(tag, tags, n=2)
    hint = f"; did you mean {printable(' or '.join(map(repr, near)))}?" if near else "."
    raise UnknownModelError(
        f"{model!r} has no weights with the tag {tag!r}{hint} Its tags are: {printable(', '.join(tags) or 'none')}"
    )


def ways_out(model: str, tag: str, candidates: tuple[WeightsFile, ...]) -> str:
    """Say which weights are on record for a name that loads none, and what the user can do."""
    lines = [f"no weights can be loaded for {f'{model}.{tag}' if tag else model!r}:"]
    for record in candidates:
        by_tag = f"; load {model}.{record.tag} by its full name" if record.sources else ""
        facts = f"{record.state}, trained by {record.trained_by}"
        lines.append(printable(f"  {record.tag} ({facts}){by_tag}. {record.notes}".rstrip()))
    theirs = [record.tag for record in candidates if record.trained_by == "authors"]
    lines += [
        "What you can do:",
        f"  - your own file: load_model({model!r}, checkpoint='FILE'), or for good `zoo import {model} FILE`, "
        "which gives it a tag, and with --default the plain name",
        *(f"  - the authors' file, if you have it: `zoo import {model}.{t} FILE` keeps its record" for t in theirs[:1]),
        f"  - no weights at all: load_model({model!r}, pretrained=False)",
        "  - train them: the recipe beside the entry, see `zoo info " + model + "`",
    ]
    return "\n".join(lines)
