"""Tells which images a model's weights were trained on, by the published list of their training images.

The file is long because every field of the result says here what it means, and what it does not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from zoo.errors import OptionError
from zoo.evaluation.training_ids import Cohort, Members, Name, TrainingIds, read_members, training_ids_of
from zoo.fetching import fetch
from zoo.messages import printable
from zoo.registry import resolve


@dataclass(frozen=True)
class Looked:
    """One id that was looked up."""

    id: str
    """As it was given."""
    cohort: str = ""
    """Of whose images it has the name; empty where no rule reads it."""
    image: str | None = None
    """What the rule reads in it; None where it names a patient alone, or the list does."""
    patient: str | None = None
    """None where it does not tell the patient."""
    image_seen: bool | None = None
    """Whether the weights were trained on this image; None where nothing tells."""
    patient_seen: bool | None = None
    """Whether they were trained on an image of this patient; None where nothing tells."""

    @property
    def is_told(self) -> bool:
        """Whether anything is known of it."""
        return self.image_seen is not None or self.patient_seen is not None

    @property
    def is_seen(self) -> bool:
        """Whether the weights were trained on it, or on another image of its patient."""
        return bool(self.image_seen or self.patient_seen)


@dataclass(frozen=True)
class Overlap:
    """What of some ids is among the training images of weights."""

    name: str
    """The weights, as MODEL.TAG."""
    rows: tuple[Looked, ...]
    """One for each id, in the order in which they were given."""
    source: str
    """Where the list is from; empty where no list of single images or patients is published, or it is in the record."""
    sha256: str
    """Of the list that was looked into, else the one on record; empty where it was not read and none is known."""
    images: int
    """In the list, of the cohorts that were looked for."""
    patients: int
    cohorts: tuple[str, ...]
    """All that the weights were trained on, as far as the record says."""
    warnings: tuple[str, ...]
    """What cannot be looked up, in sentences."""
    note: str = ""
    """What the record says of the list."""

    @property
    def seen_images(self) -> int:
        """Ids whose image the weights were trained on."""
        return sum(row.image_seen is True for row in self.rows)

    @property
    def seen_by_patient(self) -> int:
        """Ids of whose patient the weights were trained on an image, this one or another."""
        return sum(row.patient_seen is True for row in self.rows)

    @property
    def seen(self) -> tuple[Looked, ...]:
        """Those that were seen, by image or by patient."""
        return tuple(row for row in self.rows if row.is_seen)

    @property
    def readable(self) -> int:
        """Ids of which something is known; of the others neither that they were seen nor that they were not."""
        return sum(row.is_told for row in self.rows)

    @property
    def is_clean(self) -> bool:
        """Whether every id could be looked up, and none was seen."""
        return self.readable == len(self.rows) and not self.seen

    @property
    def verdict(self) -> str:
        """The result in one sentence, which never calls unseen what could not be looked up."""
        total, readable, seen = len(self.rows), self.readable, len(self.seen)
        if not readable:
            return f"whether {self.name} saw any of {total} ids in training cannot be told: none can be looked up"
        among = f"{readable} ids" if readable == total else f"{readable} ids that can be looked up"
        rest = f"; of the other {total - readable} nothing is known" if readable < total else ""
        if not seen:
            return f"{self.name} saw none of the {among} in training{rest}"
        by_image = [f"{self.seen_images} by image"] if any(row.image_seen is not None for row in self.rows) else []
        by_patient = (
            [f"{self.seen_by_patient} by patient"] if any(r.patient_seen is not None for r in self.rows) else []
        )
        return f"{self.name} saw {seen} of the {among} in training, {' and '.join(by_image + by_patient)}{rest}"

    @property
    def unread(self) -> tuple[str, ...]:
        """The ids that no rule reads: names of other cohorts, or of files that were renamed."""
        return tuple(row.id for row in self.rows if not row.cohort)

    @property
    def patients_given(self) -> int:
        """How many patients the ids name."""
        return len({(row.cohort, row.patient) for row in self.rows if row.patient is not None})

    @property
    def patients_seen(self) -> int:
        """How many of these the weights were trained on."""
        return len({(row.cohort, row.patient) for row in self.rows if row.patient_seen})


def has_training_ids(name: str, cache_dir: str | Path | None = None) -> bool:
    """Whether anything is on record of the images that weights were trained on; nothing is fetched.

    Args:
        name: `MODEL` or `MODEL.TAG`.
        cache_dir: Cache folder; default `$ZOO_HOME`.

    Raises:
        UnknownModelError: No such model, or no weights with this tag.
    """
    record = resolve(name, cache_dir).record
    return bool(record and record.training_ids)


def find_overlap(
    ids: Iterable[str],
    name: str,
    *,
    cache_dir: str | Path | None = None,
    offline: bool | None = None,
    progress: bool = True,
) -> Overlap:
    """Look ids up among the training images of weights.

    The list is fetched and verified as an asset is, where an id needs it.

    Args:
        ids: Paths of images, names of files, or ids of images or patients. A name that no rule of the record reads is
            neither seen nor unseen.
        name: `MODEL`, or `MODEL.TAG` for certain weights of it, also such as are not published.
        cache_dir: Cache folder; default `$ZOO_HOME`.
        offline: Whether connections are forbidden; None for what `ZOO_OFFLINE` or `HF_HUB_OFFLINE` says.
        progress: Whether to draw a progress bar while downloading.

    Raises:
        UnknownModelError: No such model, or no weights with this tag.
        OptionError: Nothing is on record of their training images; the message has what is known.
        DownloadError: The list could not be fetched; `OfflineError`, `IntegrityError` for these causes.
        ZooError: The list is not of the form that the record says.
    """
    full_name, published = _published(name, cache_dir)
    given = [str(id) for id in ids]
    read = [published.read(id) for id in given]
    asked = {found[0].name: found[0] for found in read if found and not found[0].all}
    known = _look_into(published, list(asked.values()), full_name, cache_dir, offline, progress)
    rows = tuple(_looked(id, found, known.members) for id, found in zip(given, read, strict=True))
    return Overlap(
        name=full_name,
        rows=rows,
        source=known.source,
        sha256=known.sha256,
        images=sum(len(each.images) for each in known.members.values()),
        patients=sum(len(each.patients) for each in known.members.values()),
        cohorts=tuple(cohort.name for cohort in published.cohorts),
        warnings=(*_warnings(published, rows, known), *_warnings_of_cohorts(published)),
        note=published.note,
    )


def _published(name: str, cache_dir: str | Path | None) -> tuple[str, TrainingIds]:
    """The full name of weights, and what is published of their training images."""
    wanted = resolve(name, cache_dir)
    record, model = wanted.record, wanted.entry.name
    full_name = f"{model}.{record.tag}" if record else model
    if record and (published := training_ids_of(record)):
        return full_name, published
    facts = record.provenance if record else {}
    told = [str(facts[key]) for key in ("data", "training_lists") if facts.get(key)]
    known = f" What is known of its training data: {printable('; '.join(told))}." if told else ""
    raise OptionError(
        f"which images {full_name} was trained on is not on record, so that no overlap with yours can be found.{known} "
        f"Its card, zoo/{wanted.entry.card}, says more"
    )


@dataclass(frozen=True)
class _List:
    """What was looked into."""

    source: str
    sha256: str
    members: dict[str, Members]
    """Of the cohorts that were asked for; empty without a list."""


def _look_into(
    published: TrainingIds,
    asked: list[Cohort],
    full_name: str,
    cache_dir: str | Path | None,
    offline: bool | None,
    progress: bool,
) -> _List:
    """Fetch the list and read some cohorts in it; nothing is fetched where none is asked for."""
    file = published.file
    if file is None:
        return _List("", "", read_members(published, None, asked) if published.ids else {})
    if not asked:
        return _List(file.sources[0], file.sha256 or "", {})
    request = f"zoo overlap --for {full_name}"
    found = fetch(file, request=request, cache_dir=cache_dir, offline=offline, progress=progress)
    return _List(file.sources[0], found.sha256, read_members(published, found.path, asked))


def _looked(id: str, read: tuple[Cohort, Name] | None, members: Mapping[str, Members]) -> Looked:
    """Look one id up."""
    if read is None:
        return Looked(id)
    cohort, (image, patient) = read
    if cohort.all:
        return Looked(id, cohort.name, image, patient, image is not None or None, patient is not None or None)
    known = members.get(cohort.name, Members())
    return Looked(id, cohort.name, image, patient, known.has_image(image), known.has_patient(patient))


def _warnings(published: TrainingIds, rows: Sequence[Looked], known: _List) -> Iterator[str]:
    """Say of which cohorts ids were given that cannot be looked up, and why."""
    untold = Counter(row.cohort for row in rows if row.cohort and not row.is_told)
    for cohort, count in untold.items():
        problem = known.members[cohort].problem if cohort in known.members else ""
        if problem:
            why = f"the list {known.source} is not what the record says: {problem}"
        elif published.has_list:
            why = "the list does not tell them by such names"
        else:
            why = "and no list says which of its images the weights were trained on"
        yield f"{count} ids have names of {cohort}, {why}: they may have been seen"
    if alone := sum(row.image_seen is False and row.patient_seen is None for row in rows):
        yield f"{alone} ids do not tell their patient, of whom another image may have been seen"


def _warnings_of_cohorts(published: TrainingIds) -> Iterator[str]:
    """Say of which cohorts no image is looked up: all where there is no list, else those without rules."""
    if not published.has_list:
        yield "no list of the training images is published: any image of the cohorts that they are of may be among them"
    elif names := [cohort.name for cohort in published.cohorts if not cohort.rules]:
        yield f"images of {', '.join(names)} are not told by their names: any of theirs may have been seen"
