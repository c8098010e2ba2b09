"""Finds the files that weights consist of, for machines without connections: what to fetch, and what is missing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from zoo.errors import OptionError
from zoo.evaluation.training_ids import training_ids_of
from zoo.fetching import file_path
from zoo.manifest import record_with_tag, records
from zoo.policy import in_force, refuses
from zoo.record import RemoteFile, WeightsFile
from zoo.registry import list_models, resolve

WEIGHTS, LIST = "weights", "training list"
"""What files are, beside assets by their names. Networks load without a list, in which `zoo overlap` looks ids up."""


@dataclass(frozen=True)
class NeededFile:
    """A file that one or more weights need."""

    file: RemoteFile
    names: tuple[str, ...]
    """The weights, as MODEL.TAG."""
    what: str
    """`WEIGHTS`, `LIST`, or the name of an asset."""
    obstacle: str
    """Why it cannot be fetched and loaded without further ado; empty where it can."""
    is_barred: bool
    """Whether the obstacle stays where the file is on this machine: the name loads nothing, or `ZOO_POLICY` refuses."""

    @property
    def title(self) -> str:
        """What it is, for tables and messages."""
        return ", ".join(self.names) if self.what == WEIGHTS else f"{', '.join(self.names)}: {self.what}"


def files_of(record: WeightsFile) -> dict[str, RemoteFile]:
    """Return the files that belong to a record, by what they are: weights, assets, and the list of training images.

    Raises:
        OptionError: What it says of its training images, in a manifest of the user's, has another form.
    """
    published = training_ids_of(record)
    listed = {LIST: published.file} if published and published.file else {}
    return {WEIGHTS: record, **record.assets, **listed}


def find_needed(
    names: Sequence[str] = (), cache_dir: str | Path | None = None, *, imported: bool = True
) -> list[NeededFile]:
    """Return the files that weights need, each once, with those of their assets and their lists of training images.

    Args:
        names: MODEL for what it loads without a tag, MODEL.TAG for certain weights; none for all on record.
        cache_dir: Cache folder; default `$ZOO_HOME`.
        imported: Whether what `zoo import` recorded on this machine counts, which other machines do not know.

    Raises:
        UnknownModelError: No such model, or no weights with this tag.
        OptionError: As of `files_of`; the message names the weights.
    """
    found: dict[Path, NeededFile] = {}
    for model, record, named in _chosen(names, cache_dir, imported):
        full_name = f"{model}.{record.tag}"
        bar = _bar(full_name, record, named) or ("" if imported else _home_bar(model, record, cache_dir))
        obstacle = bar or _obstacle(full_name, record, named)
        try:
            files = files_of(record)
        except OptionError as error:
            raise OptionError(f"{full_name}: {error}") from error
        for what, file in files.items():
            # A list is free where weights are gated, withdrawn or refused.
            own, is_barred = ("", False) if what == LIST else (obstacle, bool(bar))
            path = file_path(file, cache_dir) if file.digests or file.sources else Path(model, record.tag, what)
            known = found.get(path)
            full_names = tuple(dict.fromkeys((*(known.names if known else ()), full_name)))
            if known and not known.obstacle:
                found[path] = replace(known, names=full_names)
            else:
                found[path] = NeededFile(file, full_names, what, own, is_barred)
    return list(found.values())


def _chosen(
    names: Sequence[str], cache_dir: str | Path | None, imported: bool
) -> Iterator[tuple[str, WeightsFile, str]]:
    """Yield models with their records, and the name that was given for them; empty where none was."""
    for name in names:
        wanted = resolve(name, cache_dir)
        if record := wanted.record:
            model = wanted.entry.name
            published = None if imported else record_with_tag(model, record.tag, cache_dir, imported=False)
            yield model, published or record, name
    for model in () if names else list_models():
        for record in records(model, cache_dir, imported=imported):
            yield model, record, ""


def _home_bar(model: str, record: WeightsFile, cache_dir: str | Path | None) -> str:
    """Why another machine does not know weights by this name; empty where it does."""
    if record_with_tag(model, record.tag, cache_dir, imported=False):
        return ""
    return "imported on this machine alone: carry your file, and `zoo import` it there too"


def _bar(full_name: str, record: WeightsFile, named: str) -> str:
    """Why a name loads nothing, whatever is on this machine; empty where it may load."""
    if refuses(record):
        return f"refused by ZOO_POLICY={in_force()}; `zoo info {full_name}` shows its licences"
    if not record.sources:
        return f"no file is on record ({record.state})"
    if named and named != full_name and not record.loads_without_tag:
        return f"{named} loads nothing without a tag: name {full_name}"
    return ""


def _obstacle(full_name: str, record: WeightsFile, named: str) -> str:
    """Why a file cannot be fetched without further ado; empty where it can."""
    if record.state == "on-request":
        return f"only for those to whom its owners gave access: ask them, log in, `zoo download {full_name}`"
    if record.state == "withdrawn" and named != full_name:
        return f"withdrawn by its publishers: to try all the same, name {full_name}"
    return ""
