r"""Fine-tune CAiD to tell which findings a radiograph shows, or to segment it.

    python -m zoo.entries.caid.finetune classify --data images --table train.txt --val-table val.txt \
        --test-table test.txt --out runs/xray14
    python -m zoo.entries.caid.finetune classify --data images --table labels.csv --label Edema,Mass --split train \
        --val-table labels.csv --val-split val --freeze --out runs/probe
    torchrun --nproc-per-node 4 -m zoo.entries.caid.finetune segment --data images --masks masks --table train.txt \
        --val-table val.txt --test-table test.txt --out runs/lung --resume

The defaults are the published runs (Hosseinzadeh Taher et al., MIDL 2022, by BenchmarkTransferLearning, Version1),
except the normalisation of the classification task: theirs has the mean and deviation of ImageNet, which the encoder
did not see in pre-training; `--normalize imagenet` brings it back. `--from-scratch` is the run to compare with.

Published results of the authors' weights: ChestX-ray14 0.807 AUROC, CheXpert 0.868 AUROC (five labels), SIIM-ACR 0.681
Dice, Montgomery 0.982 Dice.

Files in OUT beside the loop's: `results.json`, and `predictions.csv` of the test list (classification).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.data import Dataset

import zoo
from zoo.entries.caid import PREPROCESSING
from zoo.entries.caid.args import ClassifyArgs, FinetuneArgs, SegmentArgs
from zoo.entries.caid.augment import PUBLISHED_SIZE
from zoo.entries.caid.cohort import Sample, check_both_values, find_masks, read_labelled, read_list
from zoo.entries.caid.finetune_data import (
    LARGER,
    NORMALIZATIONS,
    LabelledImages,
    MaskedImages,
    write_predictions,
)
from zoo.entries.caid.finetune_method import Classifier, Segmenter, dice_metrics, label_metrics
from zoo.entry import Preprocessing
from zoo.errors import OptionError
from zoo.formats import Task
from zoo.registry import get_entry
from zoo.training.args import command_of, names_in, parse_args, run_command
from zoo.training.data import length_of
from zoo.training.distributed import Processes
from zoo.training.finetune import (
    collect,
    digests_of,
    finetuning_header,
    how_to_load,
    load_network,
    origin_of,
    starting_input,
    train_and_test,
    write_results,
)
from zoo.training.judged import judged_by_loss
from zoo.training.metrics import Results
from zoo.training.session import running

T = TypeVar("T", bound="FinetuneArgs")

RECIPE = "zoo.entries.caid.finetune"
TASKS: dict[str, type[ClassifyArgs] | type[SegmentArgs]] = {"classify": ClassifyArgs, "segment": SegmentArgs}


def main(argv: Sequence[str] | None = None) -> Results:
    """Fine-tune, evaluate the best checkpoint on the test list, write and print the results."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=list(TASKS), help="TASK --help lists the flags of a task")
    task = parser.parse_args(argv[:1]).task
    args = resolve(parse_args(TASKS[task], argv[1:], TASKS[task].__doc__))
    with running(args) as processes:
        torch.manual_seed(args.seed)
        results = classify(args, processes) if isinstance(args, ClassifyArgs) else segment(args, processes)
        results = {"task": task, **results, "arguments": asdict(args)}
        if processes.is_main:
            said = {"num_classes": 1} if task == "segment" else {}  # its logits, not the reconstruction's sigmoid
            best = Path(args.out) / "best.pt"
            results |= {"weights": digests_of(best)}
            write_results(results, args.out, hint=how_to_load(args.model, best, **said))
    return results


def resolve(args: T) -> T:
    """Fill in the arguments that depend on others, and the size that the weights expect.

    Raises:
        OptionError: The model is not that of the task.
        UnknownModelError: There is no such model or tag.
    """
    expected = type(args).model
    if get_entry(args.model).name != expected:
        raise OptionError(f"--model {args.model}: this task starts from {expected} or {expected}.TAG")
    if not args.size:
        args = replace(args, size=starting_input(args).size[0])
    return args if args.val_table else judged_by_loss(args, "without --val-table nothing is validated")


def classify(args: ClassifyArgs, processes: Processes) -> Results:
    """Fine-tune on labels; AUROC and predictions on the test list."""
    samples, names = read_parts(args)
    counting = names_in(args.auroc_labels) or names
    views = {"train": "random", "val": "center", "test": "ten"}
    data = {
        part: LabelledImages(s, size=args.size, view=views[part], normalization=args.normalize, seed=args.seed)
        for part, s in samples.items()
    }
    method = Classifier(load_network(args, len(names)), freeze=args.freeze)

    def evaluate(part: str, epoch: int) -> Results:
        scores = collect(method.probabilities, data[part], args, processes, data_pass=epoch)
        if part == "test" and processes.is_main:
            write_predictions(Path(args.out) / "predictions.csv", samples[part], names, scores)
        labels = torch.tensor([sample.labels for sample in samples[part]], dtype=scores.dtype)
        return label_metrics(labels, scores, names, counting)

    return tune(method, data, evaluate, args, processes, names)


def segment(args: SegmentArgs, processes: Processes) -> Results:
    """Fine-tune on masks; Dice on the test list."""
    data = {part: read_masked(args, part, *given) for part, given in lists(args).items()}
    method = Segmenter(load_network(args, 1))

    def evaluate(part: str, epoch: int) -> Results:
        return dice_metrics(collect(method.overlaps, data[part], args, processes, data_pass=epoch))

    return tune(method, data, evaluate, args, processes)


def tune(
    method: Classifier | Segmenter,
    data: Mapping[str, Dataset[dict[str, Tensor]]],
    evaluate: Callable[[str, int], Results],
    args: FinetuneArgs,
    processes: Processes,
    classes: Sequence[str] = (),
) -> Results:
    """Fit the method and judge its best epoch; returns its first weights and the results of `train_and_test`."""
    groups = zoo.param_groups(method.network, args.lr, weight_decay=args.weight_decay, layer_decay=args.layer_decay)
    task: Task = "classify" if isinstance(args, ClassifyArgs) else "segment"
    command = command_of(args, f"{RECIPE} {task}")
    header = finetuning_header(method.network, task, command, input=seen_by(args), classes=classes)
    results = {
        **origin_of(method.network),
        **train_and_test(method, data, evaluate, args, processes, header=header, params=groups),
    }
    if "test" in data:
        results["test"] = {"images": length_of(data["test"]), **results["test"]}
    return results


def seen_by(args: FinetuneArgs) -> Preprocessing:
    """The input of the network that a run trains: the images of its data sets without random changes."""
    mean, std = NORMALIZATIONS[args.normalize] if args.normalize != "none" else (None, None)
    # Masks are of whole images, so nothing is cut off for segmentation.
    resize = round(args.size * LARGER / PUBLISHED_SIZE) if isinstance(args, ClassifyArgs) else None
    return replace(PREPROCESSING, size=(args.size, args.size), resize=resize, mean=mean, std=std)


def lists(args: FinetuneArgs) -> dict[str, tuple[str, str]]:
    """List and split of each part of the data that was asked for."""
    parts = {
        "train": (args.table, args.split),
        "val": (args.val_table, args.val_split),
        "test": (args.test_table, args.test_split),
    }
    return {part: given for part, given in parts.items() if part == "train" or given[0]}


def read_parts(args: ClassifyArgs) -> tuple[dict[str, list[Sample]], tuple[str, ...]]:
    """Images and labels of each part, and the labels' names.

    Raises:
        OptionError: Labels are missing or wrong, differ between the parts, or have one value where an AUROC is due.
    """
    samples: dict[str, list[Sample]] = {}
    names: tuple[str, ...] = ()
    for part, (list_file, split) in lists(args).items():
        samples[part], found = read_labelled(args.data, list_file, labels=names_in(args.label), split=split)
        names = names or found
        if found != names:
            raise OptionError(
                f"{list_file} has {len(found)} labels, but the training list {args.table} has {len(names)}"
            )
        counting = names_in(args.auroc_labels) or names
        if unknown := [name for name in counting if name not in names]:
            raise OptionError(f"--auroc-labels {', '.join(unknown)}: no such label; there are {', '.join(names)}")
        if part != "train":
            check_both_values(samples[part], names, counting, list_file)
    return samples, names


def read_masked(args: SegmentArgs, part: str, list_file: str, split: str) -> MaskedImages:
    """Images and masks of one part; those of training are changed at random."""
    samples = read_list(args.data, list_file, split=split)
    return MaskedImages(
        samples,
        find_masks(samples, args.masks),
        size=args.size,
        random=part == "train" or (part == "val" and args.val_random),
        normalization=args.normalize,
        seed=args.seed + (part == "val"),
    )


if __name__ == "__main__":
    run_command(main)
