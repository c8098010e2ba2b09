"""Finds the models that an image fits, for `zoo doctor FILE`, and checks the images of a folder as a cohort."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import wrap

from zoo.commands.examination import Examination, examine, hold_against
from zoo.entry import Preprocessing
from zoo.errors import InputContractError, OptionError
from zoo.images import Volume, find_images, is_dicom, read_dataset, read_volume
from zoo.loading import input_of
from zoo.manifest import plain_record, records
from zoo.messages import first_names, listed, with_path
from zoo.registry import get_entry, list_models
from zoo.transforms import GREY_MATTER, ImageTransform, build_transform

_COMPARED = ("format", "channels", "axes to", "size of a voxel in mm", "modality", "intent", "space")
"""Facts that the images of a cohort usually share."""
_SHARED = 0.8
"""Share of a cohort from which on a value is the usual one, and an image with another value is odd."""
_MOST_VALUES = 5
_MOST_SAMPLED = 5
_ANY_SIDES = (1, 1, 1)
_WIDTH = 98
_SCANNED = ("CT", "MR")
"""DICOM's Modality of slices; of other DICOM files each is an image."""


@dataclass(frozen=True)
class Fit:
    """A model held against an image."""

    model: str
    """With the tag of the weights whose input is meant, where there are any."""
    summary: str
    available: bool
    """Whether some of its weights can be had without asking anyone."""
    examination: Examination


@dataclass(frozen=True)
class Cohort:
    """The images of a folder, held against one model's input."""

    model: str
    images: int
    fits: int
    problems: dict[str, str]
    """Path of each image that does not fit -> why."""
    odd: dict[str, str]
    """Path of each image that fits, and that is odd by itself or unlike the others -> why."""
    values: dict[str, dict[str, int]]
    """Fact, such as `"axes to"` -> what was found -> in how many images, the most frequent first."""
    needs: str = ""
    """What the transform is given beside each image, as in `Examination`."""


def find_fits(path: str | Path, *, cache_dir: str | Path | None = None) -> list[Fit]:
    """Hold an image against the input of every model, and return all, best first.

    Models that it fits come first; among these, models without an oddity, then models whose weights can be had, then
    models for one part of the body. Models that share an input are examined once.

    Args:
        path: File, or folder with a DICOM series.
        cache_dir: Cache folder, where imported weights are on record; default `$ZOO_HOME`.

    Raises:
        FileNotFoundError: There is nothing at `path`.
    """
    path, done = Path(path), dict[Preprocessing, Examination]()
    volume = _read_once(path)
    fits = []
    for name in list_models():
        contract = input_of(name, None, cache_dir)
        if contract not in done:
            done[contract] = hold_against(path, contract, name, _unless_raw(volume, path, contract))
        known = sorted(records(name, cache_dir), key=lambda record: record.state != "hosted")
        first = plain_record(name, cache_dir) or next(iter(known), None)
        model = f"{name}.{first.tag}" if first else name
        is_available = first is not None and first.state == "hosted"
        fits.append(Fit(model, get_entry(name).summary, is_available, replace(done[contract], model=model)))

    def rank(fit: Fit) -> tuple[bool, ...]:
        found = fit.examination
        return not found.fits, bool(found.warnings), not fit.available, get_entry(fit.model).anatomy == "any"

    return sorted(fits, key=rank)


def best_model(images: list[Path], *, cache_dir: str | Path | None = None) -> str:
    """Return the model, with its tag, that most of some images fit, judged by five of them; of several the best.

    A model for one part of the body that more than half of them fit comes before a model for any volume.

    Raises:
        InputContractError: They fit none.
    """
    sample = images[:: -(-len(images) // _MOST_SAMPLED)]
    fits = [find_fits(path, cache_dir=cache_dir) for path in sample]
    votes = Counter(fit.model for each in fits for fit in each if fit.examination.fits)
    if not votes:
        raise InputContractError(
            f"{first_names(map(str, sample))} fit no model; `zoo doctor FILE` says why. With --for NAME all are held "
            "against one model"
        )

    def rank(model: str) -> tuple[bool, bool, int]:
        return 2 * votes[model] > len(sample), get_entry(model).anatomy != "any", votes[model]

    return max(votes, key=rank)


def fits_page(path: str, fits: list[Fit]) -> list[str]:
    """The lines of `zoo doctor FILE`: the models that an image fits, and for each reason those that it does not."""
    fitting = [fit for fit in fits if fit.examination.fits]
    lines = [f"{path} fits {len(fitting)} of {len(fits)} models{', best first' if len(fitting) > 1 else ''}"]
    for fit in fitting:
        lines.append(f"  {fit.model}: {fit.summary}{'' if fit.available else ' (weights cannot be downloaded)'}")
        lines += [f"    needs: {fit.examination.needs}"] if fit.examination.needs else []
        lines += [f"    odd: {line}" for line in fit.examination.warnings]
    reasons: dict[str, list[str]] = {}
    for fit in fits:
        if not fit.examination.fits:
            reasons.setdefault(fit.examination.problem, []).append(fit.model)
    for problem, models in reasons.items():
        lines.append(f"does not fit {len(models)} model{'s' if len(models) > 1 else ''}: {problem}")
        lines += [f"  {line}" for line in wrap(", ".join(models), _WIDTH, break_on_hyphens=False)]
    return lines


def cohort_page(found: Cohort) -> list[str]:
    """The lines of `zoo doctor FOLDER`: counts, what the images share, and the first ten odd and unfit ones."""
    lines = [f"{found.fits} of {found.images} images fit {found.model}; odd are {len(found.odd)}"]
    lines += [f"  needs: {found.needs}"] if found.needs else []
    for what, counts in found.values.items():
        some = [f"{value} ({count})" for value, count in list(counts.items())[:_MOST_VALUES]]
        lines.append(f"  {what}: {', '.join(some)}{', ...' if len(counts) > len(some) else ''}")
    for title, named in (("odd", found.odd), ("does not fit", found.problems)):
        if named:
            found_in = listed(with_path(path, why) for path, why in named.items())
            lines += f"{title}:{found_in}".split("\n")
    return lines


def _read_once(path: Path) -> Volume | None:
    """The volume in a file, for all transforms; None where it cannot be read: each transform says why."""
    try:
        return read_volume(path, least=_ANY_SIDES)
    except InputContractError:
        return None


def _unless_raw(volume: Volume | None, path: Path, contract: Preprocessing) -> Volume | None:
    """What was read, but where the transform takes no volumes, or refuses raw scans by their path."""
    if isinstance(build_transform(contract), ImageTransform):
        return None
    is_raw = path.is_dir() or (path.suffix != ".npy" and is_dicom(path))
    return None if contract.units == GREY_MATTER and is_raw else volume


def images_in(folder: Path, name: str | None = None) -> list[Path]:
    """Return the images of a folder: films or volumes, as the model takes them, else as the folder has them.

    Raises:
        OptionError: There are none.
    """
    if name is not None:
        takes_films = isinstance(build_transform(input_of(name)), ImageTransform)
        return find_images([folder], volumes=not takes_films)
    return find_images([folder], volumes=_has_volumes(folder))


def _has_volumes(folder: Path) -> bool:
    try:
        volumes = find_images([folder], volumes=True, quiet=True)
    except OptionError:
        return False
    dicom = next((path for path in _files_of(volumes) if is_dicom(path)), None)
    return dicom is None or str(read_dataset(dicom).get("Modality", "")) in _SCANNED


def _files_of(paths: Iterable[Path]) -> Iterable[Path]:
    for path in paths:
        yield from sorted(path.iterdir()) if path.is_dir() else [path]


def check_cohort(
    images: list[Path], name: str, *, checkpoint: str | Path | None = None, cache_dir: str | Path | None = None
) -> Cohort:
    """Hold each of some images against a model's input, and all against each other.

    Args:
        images: Their paths.
        name: `MODEL` or `MODEL.TAG`.
        checkpoint: Your own file, whose header may state another input.
        cache_dir: Cache folder; default `$ZOO_HOME`.

    Raises:
        UnknownModelError: No such model or tag.
    """
    from tqdm import tqdm

    found = [
        examine(path, name, checkpoint=checkpoint, cache_dir=cache_dir)
        for path in tqdm(images, desc="images", disable=None)
    ]
    facts = {each.path: {fact.what: fact.found for fact in each.facts} for each in found}
    values = {what: Counter(f[what] for f in facts.values() if what in f) for what in _COMPARED}
    values = {what: counts for what, counts in values.items() if counts}
    odd = {each.path: _oddities(each, facts[each.path], values) for each in found if each.fits}
    return Cohort(
        model=found[0].model,
        images=len(found),
        fits=sum(each.fits for each in found),
        problems={each.path: each.problem for each in found if not each.fits},
        odd={path: "; ".join(lines) for path, lines in odd.items() if lines},
        values={what: dict(counts.most_common()) for what, counts in values.items()},
        needs=found[0].needs,
    )


def _oddities(found: Examination, facts: dict[str, str], values: dict[str, Counter[str]]) -> list[str]:
    """What the transform warns of, and facts that are not those of nearly all others."""
    unusual = []
    for what, counts in values.items():
        usual, count = counts.most_common(1)[0]
        own = facts.get(what, usual)
        if own != usual and count >= _SHARED * counts.total():
            unusual.append(f"{what}: {own}, where {count} of {counts.total()} have {usual}")
    return [*found.warnings, *unusual]
