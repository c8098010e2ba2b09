r"""Pre-train CAiD on a folder of radiographs. The defaults are the published run.

    python -m zoo.entries.caid.pretrain --data images --table Xray14_train_official.txt \
        --val-table Xray14_val_official.txt --out runs/caid
    torchrun --nproc-per-node 4 -m zoo.entries.caid.pretrain --data images ... --out runs/caid --resume
    python -m zoo.entries.caid.pretrain --data own --init caid-resnet50-unet.chestxray14-800 --size 64 --out runs/own

Published: 800 epochs over 75 312 ChestX-ray14 images at 224 pixels on 4 V100, batch 256, SGD. The exported weights are
those of the best epoch by validation, or of the last epoch without validation. Where the authors' code has a defect,
the default mends it; `--upstream` brings the published behaviour back (the card lists both).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.utils.data import Subset

from zoo.entries.caid import PREPROCESSING
from zoo.entries.caid.augment import JITTER, PUBLISHED_SIZE, SMALLEST_CROP
from zoo.entries.caid.cohort import read_list
from zoo.entries.caid.data import TARGET_FLIPS, FixedViews, Views
from zoo.entries.caid.method import MODES, CAiD
from zoo.errors import OptionError
from zoo.registry import get_entry
from zoo.training import distributed
from zoo.training.args import TrainArgs, arg, build_from, command_of, default, parse_args, run_command
from zoo.training.contrastive import warn_of_unshuffled_keys
from zoo.training.data import build_loader
from zoo.training.finetune import share_buffers
from zoo.training.loop import Validate, fit, mean_losses
from zoo.training.publish import pretraining_header, publish_run
from zoo.training.runlog import Metrics
from zoo.training.session import running
from zoo.training.starting import Own, Part, init_arg, same_names, start_from_init

NETWORKS = ("encoder_q.", "encoder_k.")
"""The network that is trained, and its momentum copy."""
PROJECTION = "projection head"

OWN = (Own("queue", ("queue", "queue_ptr"), needs=PROJECTION),)


@dataclass(kw_only=True)
class Args(TrainArgs):
    """Published run of `main_CAiD_moco.py` with the README's flags."""

    epochs: int = default(800)
    workers: int = default(4)
    monitor: str = arg("metric that decides which epoch is exported, where there is validation", "val_loss")
    table: str = arg("training list: 'name 0 1 ...' lines, or a CSV; empty for all images of --data", "", was="list")
    split: str = arg("rows of a CSV list to train on, by its column 'split'", "")
    val_table: str = arg("validation list; empty for no validation: the last epoch is exported", "", was="val_list")
    val_split: str = arg("rows of a CSV validation list, by its column 'split'", "")
    size: int = arg("side of the views in pixels; distortions grow with it", PUBLISHED_SIZE)
    min_area: float = arg("share of the image's area that the smallest crop has", SMALLEST_CROP)
    jitter: float = arg("brightness and contrast change by up to this share", JITTER)
    init: str = init_arg()
    mode: str = arg("caid, or id for instance discrimination alone", "caid", MODES)
    queue_size: int = arg("negatives in the queue", 65536)
    key_momentum: float = arg("share of the key network kept at each step", 0.999)
    temperature: float = arg("temperature of the contrastive softmax", 0.2)
    contrastive_weight: float = arg("weight of the contrastive term", 1.0)
    reconstruction_weight: float = arg("weight of the reconstruction term", 10.0)
    mlp: bool = arg("two-layer projection head", True)
    target_flip: str = arg("mirror the target with the query, or never, as the authors do", "with-input", TARGET_FLIPS)
    zero_init_residual: bool = arg("start residual blocks as the identity; for short runs, not published", False)
    batch_negatives: bool = arg("the step's other keys are negatives too; for small data sets, not published", False)
    key_batches: int = arg("parts the keys' batch norm sees separately; at least 2 for a run on one process", 1)
    key_full_unet: bool = arg("give the key network its unused decoder", False)
    validate_mutates_state: bool = arg("let validation write the queue and move the key network", False)
    val_random: bool = arg("draw new validation views each epoch", False)
    half: bool = arg("export the weights in half precision", False, free=True)
    upstream: bool = arg("the published behaviour of target, key decoder, validation state and validation views", False)


def main(argv: Sequence[str] | None = None) -> Metrics:
    """Train, then export the query network and write its manifest record."""
    args = resolve(parse_args(Args, argv, __doc__))
    with running(args) as processes:
        warn_of_unshuffled_keys(processes.world, args.key_batches)
        torch.manual_seed(args.seed)
        method = build_method(args)
        command, models = command_of(args, "zoo.entries.caid.pretrain"), models_of(args)
        changed = changed_input(args)
        base = start_from_init(method, args, parts_of(args), networks=NETWORKS, input=changed, own=OWN)
        header = pretraining_header(models[-1], command, input=changed, base=base)
        views, validate = build_views(args, args.table, args.split), validation(args, processes)
        best = fit(method, views, args, processes=processes, validate=validate, header=header, base=args.init)
        judged = best if validate else None  # the training loss is low early, before the queue is full of keys
        return publish_run(args, processes, models=models, header=header, best=judged)


def resolve(args: Args) -> Args:
    """Fill in the arguments that depend on others."""
    if args.upstream:
        args = replace(args, target_flip="upstream", key_full_unet=True, validate_mutates_state=True, val_random=True)
    if not args.val_table and args.monitor.lstrip("+").startswith("val_"):
        args = replace(args, monitor="loss")
    return args


def build_method(args: Args) -> CAiD:
    """The objective with the run's settings."""
    return build_from(args, CAiD, momentum=args.key_momentum)


def parts_of(args: Args) -> list[Part]:
    """The parts of the method that weights may have."""
    encoder, unet = "caid-resnet50", "caid-resnet50-unet"
    inside = same_names(get_entry(encoder).required, "backbone.encoder.")
    parts = [Part("encoder", encoder, inside, {"num_classes": 0})]
    if args.mode == "caid":
        parts.append(Part("decoder", unet, same_names(("decoder.",), "backbone.")))
        parts.append(Part("last layer", unet, same_names(("segmentation_head.",), "backbone.")))
    # The entry calls the one layer of a projection without `mlp` as it does the first of two.
    layers = same_names(("fc.0.", "fc.2.")) if args.mlp else {"fc.0.": "fc.", "fc.2.": "fc.2."}
    return [*parts, Part(PROJECTION, encoder, layers, {"projection": True})]


def build_views(args: Args, list_file: str, split: str) -> Views:
    """The views of a list of images."""
    samples = read_list(args.data, list_file, split=split)
    return build_from(args, Views, samples, distort=args.mode == "caid")


def validation(args: Args, processes: distributed.Processes) -> Validate | None:
    """Mean losses over the validation list, divided among the processes; the views are fixed by default."""
    if not args.val_table:
        return None
    views = build_views(args, args.val_table, args.val_split)
    views.seed += 1
    # The queue takes whole batches of all processes, as the authors' validation loader gives them.
    count = len(views) - len(views) % args.batch_size * args.validate_mutates_state
    if count < processes.world:
        raise OptionError(
            f"{len(views)} validation image(s) are too few for {processes.world} process(es): one for each is needed"
        )
    mine = range(processes.rank, count, processes.world)
    batch = args.batch_size // (processes.world * args.accumulate)

    def validate(method: nn.Module, epoch: int) -> Metrics:
        share_buffers(method)
        fixed = Subset(FixedViews(views, epoch if args.val_random else 0), mine)
        loader = build_loader(fixed, args.workers, batch_size=batch)
        return mean_losses(method, loader, processes, channels_last=args.channels_last)

    return validate


def changed_input(args: Args) -> dict[str, object]:
    """Fields of the input contract that the record must note, where the run did not have the published size."""
    if args.size == PUBLISHED_SIZE:
        return {}
    scale = args.size / PUBLISHED_SIZE
    return {"size": [args.size, args.size], "resize": round((PREPROCESSING.resize or PUBLISHED_SIZE) * scale)}


def models_of(args: Args) -> tuple[str, ...]:
    """Entries that the run's weights fill."""
    return ("caid-resnet50", "caid-resnet50-unet") if args.mode == "caid" else ("caid-resnet50",)


if __name__ == "__main__":
    run_command(main)
