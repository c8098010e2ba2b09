r"""Fine-tune y-Aware to classify subjects, or test its frozen features by a linear probe.

    python -m zoo.entries.yaware.finetune --data clinical.npy --table clinical.csv --label diagnosis --out runs/scz
    python -m zoo.entries.yaware.finetune --data clinical.npy --table clinical.csv --label diagnosis --freeze \
        --labelled 100 --repeats 5 --out runs/probe
    torchrun --nproc-per-node 4 -m zoo.entries.yaware.finetune --data mwp1 --table participants.tsv --label diagnosis \
        --splits leave-site-out --out runs/sites --resume

The defaults are the published run (Dufumier et al., MICCAI 2021): Adam at 1e-4 for 100 epochs, batch 8, all layers, the
last epoch is judged. `--from-scratch` is the run to compare with. `--freeze` trains no network: it fits a logistic
regression on features that are computed once. Unlike the authors' script, this one loads the weights with any prefix,
trains on integer classes, and saves. The rest of a pass that does not fill a step is left out: of 20 labelled volumes
in steps of 8, four, different ones in each pass.

`--final` then trains a network on all subjects, in OUT/final: the one to use. No volume is left to test it on: the
results of the folds in `results.json` are the estimate of how good it is.

`--splits leave-site-out` makes a run for each site. A mean over sites counts all alike and leaves out sites with one
class, so there is also `pooled`: the metrics of all sites' predictions together, for each draw. These come from
different networks, whose scores may differ in scale: read `pooled` beside the mean.

Files in OUT: `results.json`; per run a folder with `results.json`, `predictions.csv` of its test rows, and the training
loop's files, whose `last.pt` (with --val-share, `best.pt`) `load_model(checkpoint=...)` reads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch

from zoo.entries.yaware import MODEL
from zoo.entries.yaware.args import Args
from zoo.entries.yaware.finetune_data import LabelledVolumes
from zoo.entries.yaware.finetune_method import (
    Classifier,
    Floats,
    class_metrics,
    probe,
    read_predictions,
    write_predictions,
)
from zoo.entries.yaware.splits import Split
from zoo.entries.yaware.task import RECIPE, Task, begin_run, check_probes, check_steps, read_task
from zoo.progress import say
from zoo.tasks.outputs import Outputs
from zoo.training import distributed
from zoo.training.args import command_of, parse_args, run_command
from zoo.training.data import seed_of
from zoo.training.distributed import Processes
from zoo.training.finetune import (
    collect,
    digests_of,
    finetuning_header,
    how_to_load,
    load_network,
    origin_of,
    train_and_test,
    write_results,
)
from zoo.training.loop import autocast
from zoo.training.metrics import Results, mean_auroc, summarise
from zoo.training.resuming import read_json
from zoo.training.session import running

PREDICTIONS = "predictions.csv"


def main(argv: Sequence[str] | None = None) -> Results:
    """Train and test on each split, write and print the results."""
    args = parse_args(Args, argv, __doc__)
    task = read_task(args)
    with running(args) as processes:
        if args.freeze:
            check_probes(task)
        else:
            check_steps(args, task, processes)
        begin_run(args, processes)
        features = cache(lambda: frozen_features(args, task, processes))
        runs = [run_split(args, task, split, features, processes) for split in task.splits]
        results = {"label": args.label, "classes": list(task.classes), **summarise([run["test"] for run in runs])}
        if args.splits == "leave-site-out":
            results["pooled"] = pool(args, task)
        results |= {"skipped": task.skipped, "runs": runs, "arguments": asdict(args)}
        if args.final:
            results["final"] = run_split(args, task, task.final, features, processes)
        if processes.is_main:
            last = Path(args.out) / (task.final if args.final else task.splits[-1]).name / judged_of(args)
            probed = f"the runs' predictions are in {args.out}/*/{PREDICTIONS}"
            write_results(results, args.out, hint=probed if args.freeze else how_to_load(MODEL, last))
    return results


def pool(args: Args, task: Task) -> Results:
    """Metrics of the predictions of all sites together: mean and deviation over the draws of labelled subjects."""
    distributed.barrier()  # the first process wrote the last predictions
    parts = [read_predictions(Path(args.out) / split.name / PREDICTIONS, task.classes) for split in task.splits]
    tests = []
    for draw in range(args.repeats):  # the splits run site by site
        codes, scores = (np.concatenate(arrays) for arrays in zip(*parts[draw :: args.repeats], strict=True))
        tests.append({"auroc": mean_auroc(codes, scores)} if args.freeze else class_metrics(codes, scores))
    return summarise(tests)


def run_split(
    args: Args, task: Task, split: Split, features: Callable[[], tuple[Floats, Results]], processes: Processes
) -> Results:
    """Train on one split and test, unless that was done before.

    Args:
        args: The arguments.
        task: Volumes, classes, splits.
        split: One of the task's.
        features: Returns `frozen_features`.
        processes: From `zoo.training.distributed.start`.

    Returns:
        The split's name and sizes, the weights the run began with, and the metrics.
    """
    folder = Path(args.out) / split.name
    if (folder / "results.json").is_file():
        return read_json(folder / "results.json")
    if processes.is_main:
        which = "the network to use" if split is task.final else f"one of {len(task.splits)} runs"
        say(f"{split.name}, {which}: {len(split.train)} volumes to train on, {len(split.test)} to test on")
    sizes = {"train": len(split.train), "val": len(split.val), "test": len(split.test)}
    results: Results = {"split": split.name, "volumes": sizes}
    if args.freeze:
        values, origin = features()
        results |= origin | probe_split(args, task, split, values, processes)
    else:
        results |= tune_split(args, task, split, processes)
    if processes.is_main:
        if not args.freeze:
            results |= {"weights": digests_of(folder / judged_of(args))}
        write_results(results, folder)
    return results


def judged_of(args: Args) -> str:
    """File of the tested weights: those of the best epoch where there is validation, else of the last one."""
    return "best.pt" if args.val_share else "last.pt"


def tune_split(args: Args, task: Task, split: Split, processes: Processes) -> Results:
    """Fine-tune on a split, then test the last epoch, or the best one where there is validation.

    The split of `--final` has nothing to test on. Without validation the training loss replaces `monitor`, which then
    only steers schedule "plateau".
    """
    number, command = [*task.splits, task.final].index(split), command_of(args, RECIPE)
    folder, is_validated = Path(args.out) / split.name, len(split.val) > 0
    args = replace(args, out=str(folder), monitor=args.monitor if is_validated else "loss")
    torch.manual_seed(seed_of(args.seed, number))
    method = Classifier(load_network(args, len(task.classes)))
    rows = {"train": split.train, "val": split.val, "test": split.test}
    data = {part: LabelledVolumes(task.cohort.take(r), task.codes[r]) for part, r in rows.items() if len(r)}

    def evaluate(part: str, _: int) -> Results:
        scores = collect(method.probabilities, data[part], args, processes).numpy()
        if part == "test" and processes.is_main:
            write_predictions(folder / PREDICTIONS, data[part], task.classes, scores)
        return class_metrics(data[part].codes, scores)

    outputs = Outputs("classes").as_header()
    header = finetuning_header(
        method.network, "classify", command, input=task.input, classes=task.classes, outputs=outputs
    )
    tested = train_and_test(method, data, evaluate, args, processes, header=header, judged=judged_of(args))
    return origin_of(method.network) | tested


def frozen_features(args: Args, task: Task, processes: Processes) -> tuple[Floats, Results]:
    """Pooled features (n, 1024) of all volumes, and the weights they are from."""
    torch.manual_seed(args.seed)
    network = load_network(args, 0).to(processes.device)
    data = LabelledVolumes(task.cohort, task.codes)
    if processes.is_main:
        say(f"computing the features of {len(data)} volumes, once for all splits")
    with torch.no_grad(), autocast(args.precision, processes.device):
        features = collect(lambda batch: network(batch["image"]).double(), data, args, processes)
    return features.numpy(), origin_of(network)


def probe_split(args: Args, task: Task, split: Split, features: Floats, processes: Processes) -> Results:
    """Fit a linear probe on the features (n, D) of a split's training volumes, then test it."""
    codes = task.codes[split.train]
    scores = probe(features[split.train], codes, features[split.test], seed=args.seed)
    tested = LabelledVolumes(task.cohort.take(split.test), task.codes[split.test])
    if processes.is_main:
        folder = Path(args.out) / split.name
        folder.mkdir(parents=True, exist_ok=True)
        write_predictions(folder / PREDICTIONS, tested, task.classes, scores)
    return {"test": {"auroc": mean_auroc(tested.codes, scores)} if len(set(tested.codes.tolist())) > 1 else {}}


if __name__ == "__main__":
    run_command(main)
