r"""Probe DrasCLR's features linearly for a number, classes, or survival of patients.

    python -m zoo.entries.drasclr.embed --patches cohort/patch --out features.parquet
    python -m zoo.entries.drasclr.finetune --features features.parquet --table clinical.csv --label fev1 \
        --out runs/fev1
    python -m zoo.entries.drasclr.finetune --features features.parquet --table clinical.csv --label years \
        --event died --out runs/survival

No network is trained. The protocol is this zoo's own, since the authors published none: a patient is the mean of the
features over the landmarks; ridge regression (R2), logistic regression (AUROC) or Cox's regression with a ridge penalty
(Harrell's C) in five folds by subject; the penalty is chosen in each fold without its test subjects.

Files in OUT: `results.json`, and `predictions.csv` with each subject's prediction by the fold that tested it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from zoo.entries.drasclr.features import SubjectFeatures, read_subject_features
from zoo.entries.drasclr.finetune_method import (
    TASKS,
    Target,
    Validation,
    cross_validate,
    metrics,
    read_target,
)
from zoo.errors import OptionError
from zoo.tables import EMPTY
from zoo.training.args import arg, parse_args, run_command
from zoo.training.finetune import write_results
from zoo.training.metrics import Results
from zoo.training.table import check_columns, read_table, write_table

log = logging.getLogger("zoo")

PROTOCOL = "mean over the landmarks, linear probe in folds by subject: this zoo's own, the authors published none"

Rows = dict[str, dict[str, str]]
"""Subject -> its cells."""


@dataclass(kw_only=True)
class Args:
    """Arguments of a linear probe."""

    features: str = arg("file of features from zoo.entries.drasclr.embed")
    table: str = arg("CSV with a row for each subject")
    label: str = arg("column to predict: a number, a class, or with --event a time", was="target")
    out: str = arg("folder for results and predictions")
    event: str = arg(
        "column with 1 for an event and 0 for the end of observation; empty for other tasks than survival", ""
    )
    task: str = arg("kind of the target; auto: judge by its cells", "auto", ("auto", *TASKS))
    subject: str = arg("column with the subject, by the names in the features", "sid")
    group: str = arg("column whose values never span folds, as the patient of several scans; empty: each subject", "")
    folds: int = arg("test sets", 5)
    seed: int = arg("seed of the folds", 0)

    def check(self) -> None:
        """Raise `OptionError` for values that are wrong, or wrong together."""
        if self.folds < 2:
            raise OptionError(f"--folds must be at least 2, not {self.folds}")


def main(argv: Sequence[str] | None = None) -> Results:
    """Fit and test in each fold, write and print the results."""
    args = parse_args(Args, argv, __doc__)
    features = read_subject_features(args.features)
    rows, left_out = match(args, features)
    target = read_target(rows, args.label, event=args.event, task=args.task)
    groups = [row[args.group].strip() or sid for sid, row in rows.items()] if args.group else list(rows)
    indices = [features.sids.index(sid) for sid in rows]
    found = cross_validate(features.values[indices].astype(float), target, groups, folds=args.folds, seed=args.seed)
    results: Results = {"protocol": PROTOCOL, "task": target.task, "target": args.label, "event": args.event}
    results |= {"classes": list(target.classes), "subjects": len(rows), "left_out": left_out, **found.summary}
    if target.task == "regression":  # numbers of different folds can be compared, risks and decisions cannot
        results["all_folds"] = metrics(target, found.scores)
    results |= {"folds": found.folds, "features": features.facts, "arguments": asdict(args)}
    write_predictions(Path(args.out) / "predictions.csv", list(rows), target, found)
    write_results(results, args.out, hint="")
    return results


def match(args: Args, features: SubjectFeatures) -> tuple[Rows, Results]:
    """Find the subjects that have features and values.

    Returns:
        Subject -> its cells, in the features' order; and the numbers of those left out, by reason.

    Raises:
        OptionError: Columns are missing, a subject has two rows, or no subject is left.
    """
    path = Path(args.table)
    table = read_table(path)
    needed = [name for name in (args.subject, args.label, args.event, args.group) if name]
    check_columns(table, needed, path)
    of_subject = {row[args.subject].strip(): row for row in table}
    if len(of_subject) < len(table):
        raise OptionError(f"{path}: {len(table) - len(of_subject)} of {len(table)} rows repeat a {args.subject}")
    values = [name for name in (args.label, args.event) if name]
    known = {sid for sid, row in of_subject.items() if all(row[name].strip().lower() not in EMPTY for name in values)}
    rows = {sid: of_subject[sid] for sid in features.sids if sid in known}
    left_out = {
        "without features": len(of_subject.keys() - set(features.sids)),
        "without a row": len(set(features.sids) - of_subject.keys()),
        "without a value": len((of_subject.keys() & set(features.sids)) - known),
    }
    if not rows:
        raise OptionError(
            f"no subject has features in {args.features} and {', '.join(values)} in {path}: their first names are "
            f"{features.sids[0]!r} and {next(iter(of_subject))!r}; --subject names the column to compare"
        )
    if any(left_out.values()):
        log.warning("%d subjects; left out: %s", len(rows), ", ".join(f"{n} {why}" for why, n in left_out.items()))
    return rows, left_out


def write_predictions(path: Path, sids: Sequence[str], target: Target, found: Validation) -> None:
    """Write a CSV: subject, fold, true value, event where there is one, and predictions.

    Decisions and risks have no unit; within a fold a higher one means a more likely class, or a higher risk.
    """
    many = found.scores.ndim == 2
    columns = [f"{name}_decision" for name in target.classes] if many else ["prediction"]
    if target.event is not None:
        columns = ["event", *columns]
    rows = []
    for i, sid in enumerate(sids):
        value = target.classes[int(target.values[i])] if target.classes else f"{target.values[i]:g}"
        event = [int(target.event[i])] if target.event is not None else []
        numbers = [f"{score:.6g}" for score in np.atleast_1d(found.scores[i]).tolist()]
        rows.append([sid, int(found.of_fold[i]), value, *event, *numbers])
    write_table(path, ["subject", "fold", "value", *columns], rows)


if __name__ == "__main__":
    run_command(main)
