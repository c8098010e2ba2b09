"""Writes where files are and what they must be, for `zoo manifest`: as JSON, a table, curl commands, or digests."""

from __future__ import annotations

import csv
import io
import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from zoo.commands.carrying import LIST, NeededFile, find_needed
from zoo.errors import OptionError
from zoo.fetching import file_path, plain_addresses
from zoo.messages import csv_cell, printable

FOLDER = "medssl-zoo-files"
"""Folder that the curl commands write to, in the one where they are run."""
_CURL = f"""\
# Fetches into {FOLDER}, for `sh`. On the other machine ZOO_MIRROR={FOLDER} or
# `zoo import {FOLDER}` takes the files, and proves them. A file is named by its sha256, or by its source where
# none is published.

failed=
get() {{ # FILE ADDRESS...: the first address that gives it; what is there already stays
    file={FOLDER}/$1
    shift
    for address in "$@"; do
        [ -e "$file" ] && return
        curl --fail --location --retry 5 --create-dirs --output "$file.part" "$address" && mv "$file.part" "$file"
    done
    [ -e "$file" ] || failed="$failed $file"
}}"""
_IN_PACKAGE = "it comes with the package"


@dataclass(frozen=True)
class Address:
    """Where a file is, what it must be, and where it belongs."""

    names: tuple[str, ...]
    what: str
    """`weights`, `training list`, or the name of an asset."""
    filename: str
    bytes: int | None
    sha256: str | None
    md5: str | None
    git_blob: str | None
    addresses: tuple[str, ...]
    """In the order in which they are tried. A client that asks no host for the way can open them."""
    destination: str
    """Path in `$ZOO_HOME` of the machine that will load it; empty of what lies in the package."""
    note: str
    """Why it cannot be fetched; or, of what nobody published a digest, how it is handed over."""

    @property
    def name(self) -> str:
        """What the file is to be called in a folder that is carried: as in the cache."""
        return Path(self.destination).name

    @property
    def title(self) -> str:
        """What it is, for comments and messages."""
        size = "size not published" if self.bytes is None else f"{self.bytes:,} bytes"
        return f"{', '.join(self.names)}: {self.what}, {self.filename}, {size}"


class Page(NamedTuple):
    """What a command prints: to stdout, and what it cannot put there to stderr."""

    text: str
    left_out: list[str]


def list_addresses(names: Sequence[str] = (), cache_dir: str | Path | None = None) -> list[Address]:
    """Return the addresses of the files that weights need; see `find_needed`. No connection is opened.

    Imports are left out, since only this machine has their records.
    """
    return [_address(needed, cache_dir) for needed in find_needed(names, cache_dir, imported=False)]


def write_page(form: str, found: Sequence[Address]) -> Page:
    """Write addresses in one of `FORMS`.

    Raises:
        OptionError: There is no such form.
    """
    if form not in FORMS:
        raise OptionError(f"--as {form}: expected {', '.join(list(FORMS)[:-1])} or {list(FORMS)[-1]}")
    return FORMS[form](found)


def _address(needed: NeededFile, cache_dir: str | Path | None) -> Address:
    file = needed.file
    packaged = any(source.startswith("package:") for source in file.sources)
    note = needed.obstacle or (_IN_PACKAGE if packaged else "")
    destination = f"files/{file_path(file, cache_dir).name}" if (file.sources or file.digests) and not packaged else ""
    if not note and not file.digests:
        by_import = f"hand it over by `zoo import {needed.names[0]} FILE`"
        way = f"copy it to {destination} in $ZOO_HOME" if needed.what == LIST else by_import
        note = f"nobody has published a digest: {way}"
    return Address(
        names=needed.names,
        what=needed.what,
        filename=printable(file.filename),
        bytes=file.bytes,
        sha256=file.sha256,
        md5=file.md5,
        git_blob=file.git_blob,
        addresses=() if packaged or needed.obstacle else plain_addresses(file),
        destination=destination,
        note=note,
    )


def _as_json(found: Sequence[Address]) -> Page:
    return Page(json.dumps([asdict(each) for each in found], indent=2), [])


def _as_csv(found: Sequence[Address]) -> Page:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(Address.__dataclass_fields__)
    for each in found:
        cells = [" ".join(v) if isinstance(v, tuple) else "" if v is None else v for v in asdict(each).values()]
        writer.writerow(map(csv_cell, cells))
    return Page(out.getvalue().rstrip("\n"), [])


def _as_curl(found: Sequence[Address]) -> Page:
    lines = [_CURL]
    for each in found:
        lines += ["", f"# {printable(each.title)}", *([f"# {printable(each.note)}"] if each.note else [])]
        if each.addresses:
            lines.append(f"get {each.name} {shlex.join(each.addresses)}")
    return Page("\n".join([*lines, "", '[ -z "$failed" ]']), [])


def _as_sha256sum(found: Sequence[Address]) -> Page:
    carried = [each for each in found if each.addresses]
    left_out = [f"{each.title}: {each.note}" for each in found if not each.addresses]
    left_out += [f"{each.title}: no sha256 is published" for each in carried if not each.sha256]
    return Page("\n".join(f"{each.sha256}  {each.name}" for each in carried if each.sha256), left_out)


FORMS: Mapping[str, Callable[[Sequence[Address]], Page]] = {
    "json": _as_json,
    "csv": _as_csv,
    "curl": _as_curl,
    "sha256sum": _as_sha256sum,
}
"""How addresses are written."""
