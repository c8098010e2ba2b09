"""Reads what a record says of the images that weights were trained on: cohorts, how they name files, and a list."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from zoo.errors import OptionError, ZooError
from zoo.files import read_text
from zoo.messages import first_names, printable, reason_of
from zoo.record import DIGESTS, RemoteFile, WeightsFile

LINES, TABLE, DATALIST, HASHED = FORMS = ("lines", "table", "datalist", "hashed")
"""Forms of a list.

Of lines the first word is a name. Of a table (CSV) the cells of `column` are, or of all columns where it is null. A
data list is JSON as the Medical Segmentation Decathlon has it, of which one `section` counts. A hashed list is a table
with the columns `image` and `patient`, each cell a `hashed` id.
"""
_HASH_DIGITS = 16
"""Of 64. That two of a million ids share them has a chance of 1 in 37 million."""
_SUFFIX = r"(?i:\.(?:png|jpe?g|jp2|tiff?|bmp|pgm|dcm|dicom|ima|nii|nii\.gz|hdr|img|npy|npz|mha|mhd|nrrd))?"
"""End of a file's name, which no rule has to spell out."""
_KEYS = {"sources", "bytes", "column", "section", "form", "ids", "cohorts", "note", *DIGESTS}
_COHORT_KEYS = {"name", "rules", "images", "patients", "all"}


class Name(NamedTuple):
    """What a rule reads in the name of a file, or in an id."""

    image: str | None
    """None where the name, or the list, tells patients alone."""
    patient: str | None
    """None where the name does not tell it."""


@dataclass(frozen=True)
class Cohort:
    """Images of one origin that weights were trained on."""

    name: str
    rules: tuple[re.Pattern[str], ...]
    """How its files are called, the first that fits; empty where nothing tells."""
    images: int | None
    """That were trained on, where it is known: a list of which another number is read is misread."""
    patients: int | None
    all: bool
    """Whether they are all that there are, so that its rules alone tell that an image was trained on."""

    def read(self, given: str) -> Name | None:
        """Read the path of a file, its name, or an id; None where it is not one of this cohort's."""
        for rule in self.rules:
            if match := rule.fullmatch(given):
                groups = match.groupdict()
                return Name(groups.get("image"), groups.get("patient"))
        return None


@dataclass(frozen=True)
class Members:
    """The images and patients of one cohort in a list."""

    images: frozenset[str] = frozenset()
    patients: frozenset[str] = frozenset()
    are_hashed: bool = False
    problem: str = ""
    """Why the list cannot be looked into for them; empty where it can."""

    def has_image(self, image: str | None) -> bool | None:
        """Whether an image is among them; None where nothing tells."""
        return self._has(self.images, image)

    def has_patient(self, patient: str | None) -> bool | None:
        """Whether a patient is among them; None where nothing tells."""
        return self._has(self.patients, patient)

    def _has(self, known: frozenset[str], id: str | None) -> bool | None:
        if id is None or not known:
            return None
        return (hashed(id) if self.are_hashed else id) in known


@dataclass(frozen=True)
class TrainingIds:
    """What is published of the images that weights were trained on."""

    cohorts: tuple[Cohort, ...]
    file: RemoteFile | None
    """The list; None where there is none, or its few ids stand in the record."""
    form: str
    """One of `FORMS`."""
    column: str | None
    section: str
    ids: tuple[str, ...]
    """The list itself, where it is short."""
    note: str

    @property
    def has_list(self) -> bool:
        """Whether single images or patients are published, not cohorts alone."""
        return bool(self.file or self.ids)

    def read(self, given: str) -> tuple[Cohort, Name] | None:
        """Read the path of a file, its name, or an id, by the rules of the first cohort that has one for it."""
        given = given.strip().replace("\\", "/")
        return next(((cohort, name) for cohort in self.cohorts if (name := cohort.read(given))), None)


def hashed(id: str) -> str:
    """An id as it stands in a hashed list: the first 16 hexadecimal digits of the sha256 of its UTF-8."""
    return hashlib.sha256(id.encode("utf-8", "surrogatepass")).hexdigest()[:_HASH_DIGITS]


def training_ids_of(record: WeightsFile) -> TrainingIds | None:
    """Return what a record says of its training images; None where it says nothing.

    Raises:
        OptionError: The record, of a manifest of the user's, has it in another form.
    """
    raw = record.training_ids
    if not raw:
        return None
    what = f"training_ids of record {record.tag!r} in {record.base}"
    try:
        return _parsed(raw, record, what)
    except (TypeError, AttributeError) as error:  # a number where a list or a text is due
        raise OptionError(f"{what}: a value is of another kind than expected: {error}") from error


def _parsed(raw: Mapping[str, Any], record: WeightsFile, what: str) -> TrainingIds:
    _check(raw, _KEYS, {"cohorts"}, what)
    cohorts = tuple(_cohort(each, what) for each in raw["cohorts"])
    form = raw.get("form", LINES)
    if form not in FORMS or (form == DATALIST and not raw.get("section")) or (form == TABLE and "column" not in raw):
        raise OptionError(
            f"{what}: form {form!r} is expected to be one of {', '.join(FORMS)}, a table with its column, a datalist "
            "with its section"
        )
    file = None
    if raw.get("sources"):
        digests = {kind: raw[kind].lower() if raw.get(kind) else None for kind in DIGESTS}
        file = RemoteFile(tuple(raw["sources"]), raw.get("bytes"), base=record.base, **digests)
    ids, note = raw.get("ids", []), raw.get("note", "")
    if not isinstance(ids, list) or not all(isinstance(id, str) for id in ids):
        raise OptionError(f"{what}: ids are expected to be a list of texts, not {printable(repr(ids)):.80}")
    return TrainingIds(cohorts, file, form, raw.get("column"), raw.get("section", ""), tuple(ids), note)


def read_members(published: TrainingIds, path: Path | None, cohorts: Iterable[Cohort]) -> dict[str, Members]:
    """Read a list, for some of its cohorts.

    Args:
        published: What the record says of it.
        path: The list; None for the ids in the record.
        cohorts: Those that are looked for.

    Returns:
        Name of each cohort -> its members. Where another number is found than the record says, whatever was read is
        not what it is taken for, and a problem stands in its place.

    Raises:
        ZooError: The file is not of the form that the record says.
    """
    wanted = list(cohorts)
    if path is not None and published.form == HASHED:
        found = {cohort.name: _hashed_members(path) for cohort in wanted}
    else:
        found = _read_by_rules(published.ids if path is None else _names_in(path, published), wanted)
    return {cohort.name: _checked(cohort, found[cohort.name]) for cohort in wanted}


def _check(raw: Any, known: set[str], required: set[str], what: str) -> None:
    """Refuse what a hand-written manifest may hold: a name with a typing error, a text where an object is due."""
    if not isinstance(raw, Mapping):
        raise OptionError(f"{what}: an object is expected, not {printable(repr(raw)):.80}")
    if missing := sorted(required - raw.keys()):
        raise OptionError(f"{what}: {', '.join(missing)} is missing")
    if unknown := sorted(raw.keys() - known):
        raise OptionError(f"{what}: unknown {first_names(unknown)}; expected are {', '.join(sorted(known))}")


def _cohort(raw: Any, what: str) -> Cohort:
    _check(raw, _COHORT_KEYS, {"name"}, f"{what}, a cohort")
    if not isinstance(raw["name"], str):
        raise OptionError(f"{what}: the name of a cohort is a text, not {printable(repr(raw['name'])):.80}")
    try:
        rules = tuple(re.compile(rf"(?:.*/)?(?:{rule}){_SUFFIX}") for rule in raw.get("rules", ()))
    except (re.error, TypeError) as error:
        raise OptionError(f"{what}: a rule of {raw['name']!r} is no regular expression: {error}") from error
    if any(not rule.groupindex.keys() & {"image", "patient"} for rule in rules):
        raise OptionError(f"{what}: each rule of {raw['name']!r} needs a group (?P<image>...) or (?P<patient>...)")
    return Cohort(raw["name"], rules, raw.get("images"), raw.get("patients"), bool(raw.get("all")))


def _read_by_rules(names: Iterable[str], cohorts: list[Cohort]) -> dict[str, Members]:
    """The members of cohorts among the names of a list; those that no rule reads are of other cohorts."""
    images: dict[str, set[str]] = {cohort.name: set() for cohort in cohorts}
    patients: dict[str, set[str]] = {cohort.name: set() for cohort in cohorts}
    for given in names:
        for cohort in cohorts:
            if name := cohort.read(given):
                images[cohort.name].update(filter(None, [name.image]))
                patients[cohort.name].update(filter(None, [name.patient]))
                break
    return {c.name: Members(frozenset(images[c.name]), frozenset(patients[c.name])) for c in cohorts}


def _checked(cohort: Cohort, found: Members) -> Members:
    stated = {"images": cohort.images, "patients": cohort.patients}
    read = {"images": len(found.images), "patients": len(found.patients)}
    wrong = [f"{read[what]} {what}, not {count}" for what, count in stated.items() if count not in (None, read[what])]
    if not wrong and not any(read.values()):
        wrong = ["no image and no patient"]
    return Members(problem=f"of {cohort.name} {' and '.join(wrong)} were read in it") if wrong else found


def _hashed_members(path: Path) -> Members:
    rows = list(_rows_of(path, ("image", "patient")))
    return Members(frozenset(row[0] for row in rows), frozenset(row[1] for row in rows), are_hashed=True)


def _names_in(path: Path, published: TrainingIds) -> Iterator[str]:
    if published.form == TABLE:
        for row in _rows_of(path, (published.column,) if published.column else ()):
            yield from row
        return
    try:
        text = read_text(path)
        if published.form == LINES:
            yield from (words[0] for line in text.splitlines() if (words := line.split()))
            return
        for entry in json.loads(text)[published.section]:
            yield str(entry if isinstance(entry, str) else entry["image"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise _misread(path, f"a list of {published.form}", error) from error


def _rows_of(path: Path, columns: tuple[str, ...]) -> Iterator[list[str]]:
    """The cells of some columns of a CSV, row by row; of all columns where none is named."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            if missing := [column for column in columns if column not in header]:
                raise ZooError(
                    f"the list of training images {path} has no column {first_names(map(repr, missing))}; its columns "
                    f"are {first_names(map(repr, header), 20)}"
                )
            at = [header.index(column) for column in columns]
            for row in filter(None, reader):
                if at and len(row) <= max(at):
                    raise ZooError(
                        f"the list of training images {path}, line {reader.line_num}: a cell in each of the columns "
                        f"{first_names(map(repr, columns))} is expected, the row has {len(row)} in all"
                    )
                yield [row[i] for i in at] if at else row[: len(header)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _misread(path, "a table", error) from error


def _misread(path: Path, form: str, error: Exception) -> ZooError:
    return ZooError(f"the list of training images {path} cannot be read as {form}: {reason_of(error)}")
