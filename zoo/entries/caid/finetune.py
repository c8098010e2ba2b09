"""Fine-tune CAiD on a task of your own: which findings a radiograph shows, or where something lies in it.

    python -m zoo.entries.caid.finetune classify --data images --list train.txt --val-list val.txt \
        --test-list test.txt --out runs/xray14
    python -m zoo.entries.caid.finetune classify --data images --list labels.csv --labels Edema,Mass --split train \
        --val-list labels.csv --val-split val --freeze --out runs/probe
    torchrun --nproc-per-node 4 -m zoo.entries.caid.finetune segment --data images --masks masks --list train.txt \
        --val-list val.txt --test-list test.txt --out runs/lung --resume

The defaults are the published runs (Hosseinzadeh Taher et al., MIDL 2022, by BenchmarkTransferLearning, Version1), but
for the normalisation of the classification task: there the mean and deviation of ImageNet, which the encoder did not
see in pre-training; `--normalize imagenet` brings it back. `--from-scratch` is the run to compare with.

Published results of the authors' weights: ChestX-ray14 0.807 AUROC, CheXpert 0.868 AUROC (five labels), SIIM-ACR 0.681
Dice, Montgomery 0.982 Dice.

Files in OUT beside the loop's: `results.json`, and `predictions.csv` of the test list (classification).
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.data import Dataset

import zoo
from zoo.entries.caid import PREPROCESSING
from zoo.entries.caid.data import PUBLISHED_SIZE, Sample, read_list
from zoo.entries.caid.finetune_data import (
    LARGER,
    NORMALIZATIONS,
    LabelledImages,
    check_both_values,
    read_labelled,
    split_names,
    write_predictions,
)
from zoo.entries.caid.finetune_method import Classifier, Segmenter, dice_metrics, label_metrics
from zoo.entries.caid.segmentation_data import MaskedImages, find_masks
from zoo.entry import Preprocessing
from zoo.errors import OptionError
from zoo.formats import Task
from zoo.registry import get_entry
from zoo.training.args import OPTIMIZERS, SCHEDULES, TrainArgs, arg, command_of, parse_args, run_command
from zoo.training.data import length_of
from zoo.training.distributed import Processes
from zoo.training.finetune import (
    Results,
    check_start,
    collect,
    finetuning_header,
    how_to_load,
    load_network,
    origin_of,
    starting_input,
    train_and_test,
    write_results,
)
from zoo.training.session import running

log = logging.getLogger("zoo")

T = TypeVar("T", bound="FinetuneArgs")

RECIPE = "zoo.entries.caid.finetune"


@dataclass(kw_only=True)
class FinetuneArgs(TrainArgs):
    """What both tasks have."""

    batch_size: int = arg("samples per optimiser step, over all processes and accumulated parts", 32)
    optimizer: str = arg("update rule", "adam", OPTIMIZERS)
    weight_decay: float = arg("weight decay", 0.0)
    monitor: str = arg(
        "metric that decides which checkpoint is best; smaller is better unless it begins with '+'", "val_loss"
    )
    workers: int = arg("loader processes per process", 4)
    model: str = arg("model to start from, with or without a tag", "")
    checkpoint: str = arg("file to start from instead of the model's own weights", "")
    from_scratch: bool = arg("start from random weights", False)
    list: str = arg("training list; empty for all images of --data where no labels are needed", "")
    split: str = arg("rows of a CSV list to train on, by its column 'split'", "")
    val_list: str = arg("validation list; empty for no validation (then --monitor loss)", "")
    val_split: str = arg("rows of a CSV validation list, by its column 'split'", "")
    test_list: str = arg("test list, on which the best checkpoint is evaluated at the end; empty for none", "")
    test_split: str = arg("rows of a CSV test list, by its column 'split'", "")
    layer_decay: float = arg("factor on the learning rate of a stage per stage behind it; 1 for none", 1.0)
    size: int = arg("side of the input in pixels, a multiple of 32; 0 for what the weights were trained at", 0)
    normalize: str = arg("normalisation of the input; pre-training had none", "none", tuple(NORMALIZATIONS))

    def check(self) -> None:
        """Raise `OptionError` for values that are wrong, or wrong together."""
        super().check()
        check_start(self)
        if self.size % 32 or self.size < 0:
            raise OptionError(f"--size must be a multiple of 32, not {self.size}")


@dataclass(kw_only=True)
class ClassifyArgs(FinetuneArgs):
    """Published run of `main_classification.py`, whose `--patience 10` stops after the eleventh epoch in vain."""

    epochs: int = arg("length of the run", 1000)
    lr: float = arg("learning rate at its peak", 2e-4)
    schedule: str = arg("course of the learning rate", "plateau", SCHEDULES)
    patience: int = arg("stop after this many epochs without improvement; 0 for never", 11)
    model: str = arg("model to start from, with or without a tag", "caid-resnet50")
    freeze: bool = arg("train the head alone, a linear probe; the encoder stays in eval mode", False)
    labels: str = arg("columns of a CSV that are labels, or the names of the labels of another list: a,b", "")
    auroc_labels: str = arg("labels whose AUROC counts: a,b; empty for all (CheXpert: five of fourteen)", "")


@dataclass(kw_only=True)
class SegmentArgs(FinetuneArgs):
    """Published run of `main_segmentation.py`, whose `--patience 20` stops after the 21st epoch in vain."""

    epochs: int = arg("length of the run", 200)
    lr: float = arg("learning rate at its peak", 1e-3)
    schedule: str = arg("course of the learning rate", "cosine", SCHEDULES)
    patience: int = arg("stop after this many epochs without improvement; 0 for never", 21)
    model: str = arg("model to start from, with or without a tag", "caid-resnet50-unet")
    masks: str = arg("folder with the masks, named like the images")
    val_random: bool = arg("change validation images at random too, as the authors do", False)


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
            said = {"num_classes": 1} if task == "segment" else {}  # logits; some may take it for the sigmoid's else
            write_results(results, args.out, hint=how_to_load(args.model, Path(args.out) / "best.pt", **said))
    return results


def resolve(args: T) -> T:
    """Apply what one argument says about others, and what the weights say about the input.

    Raises:
        OptionError: The model is not the one of this task.
        UnknownModelError: There is no such model or tag.
    """
    expected = type(args).model
    if get_entry(args.model).name != expected:
        raise OptionError(f"--model {args.model}: this task starts from {expected} or {expected}.TAG")
    if not args.size:
        args = replace(args, size=starting_input(args).size[0])
    if not args.val_list and args.monitor.lstrip("+").startswith("val_"):
        log.warning("no --val-list: nothing is validated, and the best epoch is the one with the least training loss")
        args = replace(args, monitor="loss")
    return args


def classify(args: ClassifyArgs, processes: Processes) -> Results:
    """Fine-tune on labels; AUROC and predictions on the test list."""
    samples, names = read_parts(args)
    counting = split_names(args.auroc_labels) or names
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
    """Fit the method and judge its best epoch; returns the weights that it began with, and `train_and_test`'s."""
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
    """The input of the network that a run trains: as its data sets make images when nothing is random."""
    mean, std = NORMALIZATIONS[args.normalize] if args.normalize != "none" else (None, None)
    # Masks are of whole images, and so nothing is cut off there.
    resize = round(args.size * LARGER / PUBLISHED_SIZE) if isinstance(args, ClassifyArgs) else None
    return replace(PREPROCESSING, size=(args.size, args.size), resize=resize, mean=mean, std=std)


def lists(args: FinetuneArgs) -> dict[str, tuple[str, str]]:
    """List and split of each part of the data that was asked for."""
    parts = {
        "train": (args.list, args.split),
        "val": (args.val_list, args.val_split),
        "test": (args.test_list, args.test_split),
    }
    return {part: given for part, given in parts.items() if part == "train" or given[0]}


def read_parts(args: ClassifyArgs) -> tuple[dict[str, list[Sample]], tuple[str, ...]]:
    """Images and labels of each part, and the labels' names.

    Raises:
        OptionError: Labels are missing, wrong, different between the parts, or one-sided where an AUROC is due.
    """
    samples: dict[str, list[Sample]] = {}
    names: tuple[str, ...] = ()
    for part, (list_file, split) in lists(args).items():
        samples[part], found = read_labelled(args.data, list_file, labels=split_names(args.labels), split=split)
        names = names or found
        if found != names:
            raise OptionError(f"{list_file} has {len(found)} labels, the training list {args.list} has {len(names)}")
        counting = split_names(args.auroc_labels) or names
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
