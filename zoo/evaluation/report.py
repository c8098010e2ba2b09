"""What `zoo probe` found, as typed facts: written as `report.json`, drawn as `report.html`.

Every number that a page shows stands here, so that a page computes nothing. All of it is plain data: texts, numbers,
tuples and mappings. The file is long because each field says what it means.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeAlias, Union, get_args, get_origin, get_type_hints

from zoo.errors import InputContractError
from zoo.files import read_text, write_text
from zoo.messages import reason_of
from zoo.tasks.telling import Rarest, too_few

SCHEMA = 1

TargetKind: TypeAlias = Literal["binary", "classes", "numbers"]
"""Two values, several, or measured numbers."""
Role: TypeAlias = Literal["encoder", "random", "intensities"]
"""What a set of features is: one that the user asked about, its network with random weights, or plain intensities."""
Verdict: TypeAlias = Literal["better", "worse", "not told apart", "too few groups", "unknown"]
"""Of a difference. "better" and "worse" only where its interval excludes 0, the corrected p is below 0.05, and at least
`FEWEST_TOLD` groups are tested, `FEWEST_OF_CLASS` of each class; "too few groups" below that, where intervals are too
narrow; "unknown" where there are none."""

KNN, LINEAR = "knn", "linear"
PROBES = (KNN, LINEAR)
"""The names of the two probes, keys of `EncoderResult.measures`. The linear one decides the verdict."""

MEASURES: Mapping[str, str] = {
    "auroc": "AUROC",
    "average_precision": "average precision",
    "balanced_accuracy": "balanced accuracy",
    "r2": "R²",
    "mean_absolute_error": "mean absolute error",
    "rank_correlation": "rank correlation",
}
"""Names of measures in words. Classes have the first three, of several classes their mean over the classes; numbers
have the last three. Larger is better, but for `mean_absolute_error`, which is in the units of the column."""


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval, by bootstrap of whole groups of the tested cases."""

    value: float | None
    """None where it is not defined, as an AUROC of one class is."""
    low: float | None = None
    """None where no interval can be given: there are too few groups, or all draws agree."""
    high: float | None = None


@dataclass(frozen=True)
class Target:
    """The column that was learnt."""

    column: str
    kind: TargetKind
    said_by: Literal["column", "user"]
    """Whether the kind was told from the column, or given by `--kind`."""
    classes: tuple[str, ...]
    """Values of the column in order, of `binary` the second is the positive one; empty for numbers."""
    counts: Mapping[str, int]
    """Class -> labelled cases; empty for numbers."""
    range: tuple[float, float] | None
    """Smallest and largest number; None for classes."""


@dataclass(frozen=True)
class Cohort:
    """How many cases there were, and what became of them."""

    rows: int
    """Of the table."""
    cases: int
    """That were used: with a label, and with features of every encoder."""
    groups: int
    group_column: str | None
    """None where each case is a group of its own."""
    without_label: int
    without_split: int
    without_features: int
    """Cases with a label of which some encoder has no features."""
    not_in_table: Mapping[str, int]
    """Encoder -> cases among its features that the table does not have."""


@dataclass(frozen=True)
class Split:
    """What was learnt from, and what was tested."""

    kind: Literal["column", "cross-validation"]
    column: str | None
    train_cases: int
    """Of a cross-validation the mean over its folds, rounded."""
    train_groups: int
    test_cases: int
    test_groups: int
    folds: int
    """1 for a column."""
    repeats: int
    """Times that each group was tested."""
    neighbour_cases: int
    """Training cases among which neighbours are looked for, most of all folds: of many, as many are drawn."""
    rarest: str | None = None
    """The class that the fewest tested groups have, as `of class 1`; None of numbers."""
    rarest_groups: int = 0
    """Tested groups with a case of it."""

    def too_few(self, what: str) -> tuple[str, int] | None:
        """Return which of the tested groups, called `what`, are too few to tell, and how many are needed; or None."""
        rarest = None if self.rarest is None else Rarest(self.rarest, self.rarest_groups)
        return too_few(self.test_groups, rarest, what)


@dataclass(frozen=True)
class Point:
    """A place on the few-label curve of the linear probe, by the main measure."""

    size: int | None
    """Labelled cases that were asked for; None for all of the training part."""
    cases: int
    """Labelled cases that there were, the mean over draws, rounded: groups are drawn whole."""
    draws: int
    mean: float | None
    """Mean over the draws, which are the same for every set of features."""
    low: float | None
    """95 % interval of the mean, over test groups and draws."""
    high: float | None


@dataclass(frozen=True)
class Difference:
    """A paired difference of a probe's main measure, on the same resamples: positive where this encoder is better."""

    to: Literal["random", "intensities", "best"]
    name: str
    """Of the features that it is compared with."""
    probe: str
    measure: str
    difference: Estimate
    p: float | None
    """Two-sided, from the resamples, without correction."""
    p_holm: float | None
    """The same after Holm's correction over the encoders that were asked about; to the best, over all pairs of them."""
    verdict: Verdict


@dataclass(frozen=True)
class Neighbour:
    """One of the nearest training cases of a test case."""

    case: int
    """Position in `ProbeReport.shown`."""
    similarity: float
    """Cosine of features centred by the training part, -1 to 1."""


@dataclass(frozen=True)
class Query:
    """A test case, and the training cases nearest to it, of another group, the nearest first."""

    case: int
    """Position in `ProbeReport.shown`."""
    neighbours: tuple[Neighbour, ...]


@dataclass(frozen=True)
class Map:
    """Some cases in two dimensions, of standardised features: by UMAP, or their first two principal components."""

    cases: tuple[int, ...]
    """Positions in `ProbeReport.shown`."""
    x: tuple[float, ...]
    y: tuple[float, ...]
    explained: tuple[float, float] | None
    """Share of the variance of each axis, 0 to 1; None of UMAP."""
    method: Literal["PCA", "UMAP"] = "PCA"


@dataclass(frozen=True)
class EncoderResult:
    """What one set of features is worth."""

    name: str
    """MODEL.TAG, or the name of the file or folder of features; `MODEL, random weights`; `plain intensities`."""
    role: Role
    dimensions: int
    measures: Mapping[str, Mapping[str, Estimate]]
    """Probe -> measure -> its estimate. Of random weights each measure is the mean over the seeds."""
    chosen: Mapping[str, str]
    """Probe -> what was chosen inside the training parts, in words."""
    curve: tuple[Point, ...]
    """By size, the whole training part last."""
    differences: tuple[Difference, ...]
    """Empty for baselines."""
    twin: str | None
    """Name of the random-weights twin of this encoder's network, None where there is none."""
    map: Map | None
    """None for baselines."""
    queries: tuple[Query, ...]
    """Nearest neighbours of six test cases, the same ones for each encoder; empty for baselines."""
    facts: Mapping[str, Any]
    """What the features were computed with, as `zoo embed` wrote it; empty where nothing says it."""
    digest: str
    """sha256 of the values of the features that were used, in the order of the cases' ids."""


@dataclass(frozen=True)
class Shown:
    """A case that a map or a row of neighbours shows."""

    id: str
    path: str | None
    """The image, None where no image is known."""
    label: str
    """Its class, as `Target.classes` has it; a number as the table has it."""
    group: str
    part: Literal["train", "test", "both"]
    """`both` of a cross-validation."""


@dataclass(frozen=True)
class Overlap:
    """How many of the cases are in the published training list of an encoder's weights."""

    encoder: str
    source: str
    """The list, or in words why there is none."""
    ids: int
    """Cases that were looked for."""
    readable: int
    """Those of them whose names the list's rule reads: of the others nothing is known."""
    seen: int
    """Cases in the list by image."""
    seen_subjects: int
    """Cases whose patient is in the list."""
    seen_test: int
    """Tested cases whose image or patient is in the list."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Repeat:
    """How to do it again."""

    command: str
    seed: int
    rounds: int
    """Of the bootstrap."""
    table: str
    table_sha256: str
    versions: Mapping[str, str]
    """Package -> version."""
    date: str
    """ISO 8601, of the start."""
    seconds: float
    """Without the embedding of images."""


@dataclass(frozen=True)
class ProbeReport:
    """The whole report."""

    verdict: tuple[str, str]
    """Two plain sentences: whether the encoders gain anything over the baselines, and how they compare or what limits
    that."""
    warnings: tuple[str, ...]
    """What a reader must know before the numbers: missing baselines, cases seen in pre-training, few cases."""
    target: Target
    cohort: Cohort
    split: Split
    main_measure: str
    """Key of `MEASURES` that decides: `auroc` or `r2`."""
    best: str
    """Name of the encoder with the largest main measure by the linear probe."""
    encoders: tuple[EncoderResult, ...]
    """Those that were asked about in their order, then twins, then plain intensities."""
    shown: tuple[Shown, ...]
    overlaps: tuple[Overlap, ...]
    """Empty where it was not looked for."""
    repeat: Repeat
    schema: int = SCHEMA

    def to_json(self) -> str:
        """Return the report as JSON, as `tests/evaluation/report.schema.json` has it."""
        found = asdict(self)
        text = json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        if any("\ud800" <= character <= "\udfff" for character in text):  # of a name of a file that is no UTF-8
            text = json.dumps(found, indent=1, allow_nan=False) + "\n"
        return text

    @classmethod
    def from_json(cls, text: str) -> ProbeReport:
        """Return the report that `to_json` wrote.

        Raises:
            InputContractError: It is no such report, or one of another version.
        """
        try:
            found = json.loads(text)
            if found.get("schema") != SCHEMA:
                raise InputContractError(
                    f"the report has schema {found.get('schema')!r:.40}, {SCHEMA} is expected: read it with the "
                    "version of the zoo that wrote it, or run `zoo probe` again"
                )
            report: ProbeReport = _built(cls, found)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, InputContractError):
                raise
            raise InputContractError(f"this is no report of `zoo probe`: {reason_of(error)}") from error
        return report

    def write(self, path: str | Path) -> None:
        """Write the report as JSON, whole or not at all.

        Raises:
            OSError: It cannot be written.
        """
        write_text(Path(path), self.to_json())

    @classmethod
    def read(cls, path: str | Path) -> ProbeReport:
        """Read what `write` wrote.

        Raises:
            InputContractError: It is no such report.
            OSError: It cannot be read.
        """
        return cls.from_json(read_text(Path(path)))

    def result(self, name: str) -> EncoderResult:
        """Return the result of an encoder or baseline by its name."""
        return next(each for each in self.encoders if each.name == name)

    def asked(self) -> Sequence[EncoderResult]:
        """Return the encoders that were asked about."""
        return [each for each in self.encoders if each.role == "encoder"]


def _built(kind: Any, value: Any) -> Any:
    """Build what a type hint says from values of JSON."""
    origin, inner = get_origin(kind), get_args(kind)
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        made: Any = kind
        return made(**{field.name: _built(hints[field.name], value[field.name]) for field in fields(kind)})
    if origin in (Union, UnionType):
        return None if value is None else _built(next(k for k in inner if k is not type(None)), value)
    if origin is tuple:
        kinds = [inner[0]] * len(value) if inner[-1] is Ellipsis else inner
        return tuple(_built(k, v) for k, v in zip(kinds, value, strict=True))
    if origin is not None and issubclass(origin if isinstance(origin, type) else object, Mapping):
        return {key: _built(inner[1], each) for key, each in value.items()}
    return value
