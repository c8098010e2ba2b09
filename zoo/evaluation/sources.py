"""Finds the features that a probe is asked about, and the baselines beside them."""

from __future__ import annotations

import hashlib
import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.embedding import Cases, Embedder
from zoo.errors import OptionError, PathNotFoundError
from zoo.evaluation.embedding import SEEDS, cases_for, embed_by, facts_of_twin, twin_key, twin_of, twins_of
from zoo.evaluation.intensities import NAME, intensities_of
from zoo.evaluation.labelled import Labelled
from zoo.evaluation.matching import FeatureSet, Matched, align, in_common, match
from zoo.features import SUFFIXES, FeatureTable, read_features
from zoo.messages import first_names, printable
from zoo.registry import entries, split_name

if TYPE_CHECKING:
    from zoo.evaluation.report import Role

log = logging.getLogger("zoo")

MOST_UNREAD = 0.05
"""Share of the cases that may lack plain intensities, and so be lost to all encoders, before these are left out."""


@dataclass(frozen=True)
class Where:
    """Where images are, and where and how features are made of them."""

    data: Path | None = None
    """Folder from which the table's paths lead; None for the table's own."""
    path_column: str | None = None
    out: Path | None = None
    """Folder in which features are kept; None to keep them in memory."""
    device: str = "auto"
    workers: int | None = None
    cache_dir: Path | None = None

    def folder(self, name: str) -> Path | None:
        """Where the features of a name are kept."""
        return None if self.out is None else self.out / re.sub(r"[^\w.@-]+", "-", name).strip("-.")


@dataclass(frozen=True, eq=False)
class Contender:
    """What is compared: features, or of random weights those of several seeds."""

    name: str
    role: Role
    sets: tuple[FeatureSet, ...]
    twin: str | None = None

    def take(self, kept: Sequence[int]) -> Contender:
        """Return the features of some cases."""
        return replace(self, sets=tuple(each.take(kept) for each in self.sets))


def find_contenders(asked: Any, labelled: Labelled, where: Where) -> tuple[list[Contender], list[int], list[str]]:
    """Return what is compared, which cases all of it has, and what a reader must know of what is missing.

    Raises:
        OptionError: Features cannot be found, or brought together with the table.
    """
    named = _named(asked)
    found = _with_names([_asked_for(name, item, labelled, where) for name, item in named], [item for _, item in named])
    paths, why_none = _images(labelled, where, found, has_names=any(isinstance(item, str) for _, item in named))
    baselines, warnings = _baselines(found, labelled, where, paths, why_none)
    kept = in_common([*found, *(each for own in baselines.values() for each in own)], labelled)
    twins = {key: name for name, own in baselines.items() if (key := twin_key(own[0].features.facts)) is not None}
    contenders = [
        Contender(each.features.name, "encoder", (each.features,), twins.get(twin_key(each.features.facts) or ""))
        for each in found
    ]
    contenders += [
        Contender(name, own[0].features.role, tuple(each.features for each in own)) for name, own in baselines.items()
    ]
    return [each.take(kept) for each in contenders], kept, warnings


def _named(asked: Any) -> list[tuple[str | None, Any]]:
    """What is asked about, each with its name where it has one already."""
    if isinstance(asked, Mapping):
        found: list[tuple[str | None, Any]] = [(str(name), item) for name, item in asked.items()]
    elif isinstance(asked, FeatureTable | str | Path) or hasattr(asked, "shape"):
        found = [(None, asked)]
    else:
        found = [(None, item) for item in asked]
    if not found:
        raise OptionError("nothing to probe: give files or folders of features by --features, or names of models")
    found = [(name, _plain(item)) for name, item in found]
    return _told_apart(found)


def _plain(item: Any) -> Any:
    """A path as `Path`, a model's name as a text, anything else as it is."""
    if not isinstance(item, str) or split_name(item)[0] in entries():
        return item
    return Path(item) if Path(item).exists() or item.endswith(SUFFIXES) else item


def _told_apart(found: Sequence[tuple[str | None, Any]]) -> list[tuple[str | None, Any]]:
    """Refuse what is asked for twice, which would make every correction wrong."""
    keys = [str(item.resolve()) if isinstance(item, Path) else item for _, item in found]
    texts = [key for key in keys if isinstance(key, str)]
    if twice := [key for key, count in Counter(texts).items() if count > 1]:
        raise OptionError(f"{first_names(twice)} is asked for twice: name each once")
    return list(found)


def _with_names(found: Sequence[Matched], items: Sequence[Any]) -> list[Matched]:
    """Give features of one model from several files the files' names too: results are kept by name.

    Raises:
        OptionError: Two are still called alike.
    """
    given = [each.features.name for each in found]
    counts = Counter(given)
    names = [
        f"{name} ({item})" if counts[name] > 1 and isinstance(item, Path) else name
        for name, item in zip(given, items, strict=True)
    ]
    if twice := [name for name, count in Counter([NAME, *names]).items() if count > 1]:
        raise OptionError(f"several features are called {first_names(twice)}: give each its own name, in a mapping")
    return [replace(each, features=replace(each.features, name=name)) for each, name in zip(found, names, strict=True)]


def _asked_for(name: str | None, item: Any, labelled: Labelled, where: Where) -> Matched:
    if isinstance(item, str):
        return _embedded(name or item, item, labelled, where)
    if isinstance(item, Path):
        read = read_features(item)
        return match(read, labelled, name or _name_of(read, item))
    if isinstance(item, FeatureTable):
        model = str(item.table.attrs.get("model") or "features")
        return match(item, labelled, name or model)
    return align(item, labelled, name or "features")


def _name_of(read: FeatureTable, path: Path) -> str:
    """The model that features are of, with what sets them apart; else the name of their file."""
    facts = read.table.attrs
    if not facts.get("model"):
        return path.name
    more = [f"layer {facts['layer']}"] if facts.get("layer") is not None else []
    more += [str(facts["precision"])] if facts.get("precision") not in (None, "fp32") else []
    return ", ".join([str(facts["model"]), *more])


def _embedded(name: str, model: str, labelled: Labelled, where: Where) -> Matched:
    embedder = Embedder(model, device=where.device, cache_dir=where.cache_dir, progress=True)
    cases = _cases(embedder, labelled, where)
    return match(embed_by(embedder, cases, where.folder(model), where.workers), labelled, name)


def _cases(embedder: Embedder, labelled: Labelled, where: Where, paths: Sequence[str] | None = None) -> Cases:
    """The labelled cases in the form that an embedder takes."""
    if labelled.table is not None and (paths is None or embedder.of_lesions):
        return cases_for(embedder, labelled.table, where.data, where.path_column).take(labelled.rows)
    if embedder.of_lesions:
        raise OptionError(f"{embedder.name} looks at lesions: a table in a file is expected, with their seed points")
    paths = paths or _joined(labelled, where.data)
    if paths is None:
        raise OptionError(f"the table has no column of paths for {embedder.name}: name it by path_column=")
    return Cases(labelled.ids, paths, {}, None)


def _joined(labelled: Labelled, data: Path | None) -> list[str] | None:
    root = labelled.root if data is None else data
    return None if labelled.paths is None else [str(root / path) for path in labelled.paths]


def _images(
    labelled: Labelled, where: Where, found: Sequence[Matched], *, has_names: bool
) -> tuple[list[str] | None, str]:
    """Where the image of each case is; or None, and why."""
    joined = _joined(labelled, where.data)
    if has_names and joined is not None:
        return joined, ""
    if where.data is not None:
        if not where.data.is_dir():
            raise PathNotFoundError(f"--data {where.data} is no folder that exists: give the one that holds the images")
        missing = [path for path in joined or () if not Path(path).exists()]
        if joined is None or missing:
            said = (
                f"{len(missing)} images are not there, {first_names(missing, 3)}"
                if joined
                else "the table has no paths"
            )
            raise OptionError(
                f"--data {printable(where.data)}: {said}; the folder is expected from which its paths lead"
            )
        return joined, ""
    for known in [joined, *(each.features.images for each in found)]:
        if known is not None and all(path and Path(path).exists() for path in known):
            return [path for path in known if path], ""
    return None, "the images are not where the table or the features say: give --data FOLDER, from which its paths lead"


def _baselines(
    found: Sequence[Matched], labelled: Labelled, where: Where, paths: list[str] | None, why_none: str
) -> tuple[dict[str, list[Matched]], list[str]]:
    """Random weights and plain intensities by name, and what is missing of them."""
    if paths is None:
        return {}, [f"There are no baselines, random weights and plain intensities: {why_none}."]
    warnings = []
    if lacking := [each.features.name for each in found if twin_key(each.features.facts) is None]:
        warnings.append(
            f"There are no random weights beside {first_names(lacking)}: the features do not say which network "
            "they are of, as a folder or .npz of `zoo embed` does."
        )
    made = {
        name: [_twin(name, facts, seed, labelled, where, paths) for seed in SEEDS]
        for name, facts in twins_of([each.features for each in found]).items()
    }
    file = where.folder(NAME)
    intensities = intensities_of(paths, labelled.ids, None if file is None else file.with_name(f"{file.name}.npz"))
    unread, count = len(labelled) - len(intensities.table), len(labelled)
    why = first_names(intensities.table.attrs["failed"], 1)
    if unread > MOST_UNREAD * count:
        warnings.append(
            f"There are no plain intensities: of {unread} of {count} images they could not be computed, {why}."
        )
        return made, warnings
    if unread:
        warnings.append(
            f"Of {unread} of {count} images plain intensities could not be computed, {why}: these are left out."
        )
    made[NAME] = [match(intensities, labelled, NAME, "intensities")]
    return made, warnings


def _twin(
    name: str, facts: Mapping[str, Any], seed: int, labelled: Labelled, where: Where, paths: Sequence[str]
) -> Matched:
    embedder = twin_of(facts, seed, device=where.device, cache_dir=where.cache_dir)
    cases = _cases(embedder, labelled, where, paths)
    settings = hashlib.sha256(str(twin_key(facts)).encode()).hexdigest()[:8]  # of one network there can be several
    folder = where.folder(f"{facts['network']}-random-{settings}-seed-{seed}")
    found = embed_by(embedder, cases, folder, where.workers)
    matched = match(found, labelled, f"{name}, seed {seed}", "random")
    values = matched.features.values
    if not np.isfinite(values[matched.has]).all():
        raise OptionError(f"{name}, seed {seed}: features are not finite")
    return replace(matched, features=replace(matched.features, facts={**facts_of_twin(found, facts), "seed": seed}))
