"""Pre-train the MONAI SSL auto-encoder on CT volumes without labels. The defaults are the published run.

    python -m zoo.entries.monai_ssl.pretrain --data tcia --table dataset_split.json --out runs/monai-ssl
    torchrun --nproc-per-node 4 -m zoo.entries.monai_ssl.pretrain --data tcia --table ... --out runs/monai-ssl --resume
    python -m zoo.entries.monai_ssl.pretrain --data own --table own.json --init ssl/last.pt --out runs/own

The list is the tutorial's (Project-MONAI/tutorials, `self_supervised_pretraining/vit_unetr_ssl/datalists/tcia`), or
your own: JSON, {"training": [{"image": "a.nii.gz"}, ...], "validation": [...]}, files relative to --data. Volumes are
prepared once, in --cache.

Published: `ssl_train.ipynb`, 500 epochs (their README says 300) over 600 chest CTs of TCIA's "CT Images in COVID-19" on
one GPU, 4 volumes with 2 crops of 96^3 a step, Adam at 1e-4, without schedule. The exported weights are those of the
epoch of the least validation error, or of the last epoch without validation. Where the authors' code has a defect, the
default mends it; `--upstream` brings the published behaviour back:

- Validation draws new corruptions in each epoch (`--val-random`), so that the best epoch is partly luck.
- Patients of the training volumes stay in validation (`--overlap keep`); by default these volumes are left out.
- Each of several processes compares its own crops (`--no-gather`), as in their `multi_gpu/mgpu_ssl_train.py`.

Not brought back: validation in every second epoch alone; and, from `mgpu_ssl_train.py`, that one crop of two is used
(as by `--crops 1`), that all epochs have one order, and that the best weights are the latest.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from zoo.entries.monai_ssl.augment import Corrupt
from zoo.entries.monai_ssl.cases import DTYPES, VolumeCache
from zoo.entries.monai_ssl.cohort import PATIENT, of_training_patients, read_datalists
from zoo.entries.monai_ssl.contract import PRETRAINING
from zoo.entries.monai_ssl.convert import cube_side
from zoo.entries.monai_ssl.data import Crops
from zoo.entries.monai_ssl.method import COMBINATIONS, TEMPERATURE, ReconstructionContrast
from zoo.entries.monai_ssl.model import vit_autoencoder
from zoo.entries.monai_ssl.sizes import HEAD_WIDTH, PUBLISHED_SIZE
from zoo.entry import Config, Preprocessing
from zoo.errors import OptionError
from zoo.networks.vit_names import PATCH
from zoo.registry import get_entry
from zoo.training.args import TrainArgs, arg, build_from, command_of, default, parse_args, run_command
from zoo.training.data import Batches, build_loader
from zoo.training.distributed import Processes
from zoo.training.loop import Validate, fit, mean_losses
from zoo.training.publish import pretraining_header, publish_run
from zoo.training.runlog import Metrics
from zoo.training.session import running
from zoo.training.starting import Part, init_arg, same_names, start_from_init

log = logging.getLogger("zoo")

MODELS = ("monai-ssl-vitb16", "monai-ssl-unetr", "monai-ssl-vitautoenc")
"""Models that the weights fill; the exported file has the names of the last, the auto-encoder."""
OVERLAPS = ("drop", "keep")


@dataclass(kw_only=True)
class Args(TrainArgs):
    """Published run of `ssl_train.ipynb`."""

    data: str = arg("folder that the files of the list are relative to")
    table: str = arg(
        "JSON list with the sections 'training' and 'validation' (which may be absent), images of CT in HU", was="list"
    )
    epochs: int = default(500)
    batch_size: int = arg("volumes per optimiser step, over all processes and accumulated parts", 4)
    optimizer: str = default("adam")
    lr: float = default(1e-4)
    weight_decay: float = default(0.0)
    schedule: str = default("constant")
    seed: int = default(123)
    workers: int = default(4)
    monitor: str = arg("metric that decides which epoch is exported, where there is validation", "val_reconstruction")
    cache: str = arg("folder for the prepared volumes, may be shared by runs; empty for OUT/volumes", "", free=True)
    cache_dtype: str = arg("numbers of the prepared volumes; float16 takes half the space", "float32", tuple(DTYPES))
    spacing: float = arg("size of the voxels that volumes are resampled to, in mm", 2.0)
    crops: int = arg("crops of each volume", 2)
    scale_boxes: bool = arg("scale the corrupting boxes with --size; without it, those for 96 voxels", False)
    temperature: float = arg("temperature of the contrastive softmax", TEMPERATURE)
    combine: str = arg("contrast times reconstruction error, or times a constant", "product", COMBINATIONS)
    contrast_weight: float = arg("weight of the contrastive term", 1.0)
    symmetric: bool = arg("both views learn to restore the crop, not the first alone", False)
    gather: bool = arg("compare the crops of all processes, not those of each process alone", True)
    overlap: str = arg("validation volumes of training patients are left out, or kept", "drop", OVERLAPS)
    patient: str = arg("regular expression; its match in a file's name is the patient", PATIENT)
    val_random: bool = arg("draw new validation crops and corruptions each epoch", False)
    init: str = init_arg()
    size: int = arg(f"voxels along a side of the crops, a multiple of {PATCH}", PUBLISHED_SIZE, was="img_size")
    hidden_size: int = arg("width of a token", 768)
    mlp_dim: int = arg("width inside the perceptron of a block", 3072)
    num_layers: int = arg("transformer blocks; a UNETR needs 12", 12)
    num_heads: int = arg(f"attention heads; 0 for one for each {HEAD_WIDTH} of --hidden-size", 0)
    half: bool = arg("export the weights in half precision", False, free=True)
    upstream: bool = arg("the published behaviour: --val-random, --overlap keep, --no-gather", False)

    def check(self) -> None:
        """Raise `OptionError` for values that are wrong, or wrong together."""
        super().check()
        if self.crops < 1 or self.spacing <= 0:
            raise OptionError(
                f"--crops {self.crops} --spacing {self.spacing}: at least 1 crop and a length above 0 are expected"
            )
        if self.size < PATCH or self.size % PATCH:
            raise OptionError(f"--size {self.size}: a multiple of {PATCH}, at least {PATCH}, is expected")


def main(argv: Sequence[str] | None = None) -> Metrics:
    """Train, then export the auto-encoder and write its manifest record; returns the metrics of the exported epoch."""
    args = resolve(parse_args(Args, argv, __doc__))
    with running(args) as processes:
        check_share(args, processes.world)
        torch.manual_seed(args.seed)
        method = build_method(args)
        base = start_from_init(
            method, args, parts(), networks=("network.",), input=changed_input(args), decided=arguments_of
        )
        training, validation = read_volumes(args, processes)
        train, val = build_crops(args, training, validation)
        validate = validation_of(args, val, processes)
        args = args if validate else replace(args, monitor=args.monitor.replace("val_reconstruction", "loss"))
        Batches(len(train), args, processes)  # raises, before hours of preparing, where they do not fill a step
        train.cache.fill([*training, *validation], args.workers)
        changed, command = changed_input(args), command_of(args, "zoo.entries.monai_ssl.pretrain")
        header = pretraining_header(MODELS[-1], command, input=changed, options=options_of(args), base=base)
        best = fit(method, train, args, processes=processes, validate=validate, header=header, base=args.init)
        judged = best if validate else None  # the training loss does not say which epoch is best
        return publish_run(args, processes, models=MODELS, header=header, best=judged)


def resolve(args: Args) -> Args:
    """Fill in the arguments that depend on others."""
    return replace(args, val_random=True, overlap="keep", gather=False) if args.upstream else args


def check_share(args: Args, world: int) -> None:
    """Raise `OptionError` where the contrastive term would have one crop alone, and so be 0."""
    compared = args.batch_size // args.accumulate // (1 if args.gather else world) * args.crops
    if compared < 2:
        raise OptionError(
            f"--batch-size {args.batch_size} --crops {args.crops} --accumulate {args.accumulate} on {world} "
            f"process(es){'' if args.gather else ', each by itself'}: {compared} crop has no other to be compared "
            "with, so the contrastive term would be 0; at least 2 crops in each part of a step are needed"
        )


def build_method(args: Args) -> ReconstructionContrast:
    """The auto-encoder and its objective with the run's settings."""
    network = build_from(args, vit_autoencoder, img_size=args.size, **options_of(args))
    return build_from(args, ReconstructionContrast, network)


def parts() -> list[Part]:
    """The parts of the method that weights may have."""
    encoder, _, autoencoder = (get_entry(name) for name in MODELS)
    decoder = [prefix for prefix in autoencoder.required if prefix not in encoder.required]
    return [
        Part("encoder", encoder.name, same_names(encoder.required), {"num_classes": 0}),
        Part("decoder", autoencoder.name, same_names(decoder)),
    ]


def arguments_of(facts: Config) -> dict[str, int]:
    """Arguments that the weights of a ViT decide: its widths, and the crops that its table of positions is for."""
    widths = {name: facts[name] for name in ("hidden_size", "mlp_dim", "num_layers") if name in facts}
    side = cube_side(facts.get("positions", 0))
    return widths | {"num_heads": facts["num_heads"] or 0} | ({"size": PATCH * side} if side else {})


def read_volumes(args: Args, processes: Processes) -> tuple[list[Path], list[Path]]:
    """Files to train on and to validate on; volumes of training patients are left out of the latter by default.

    Raises:
        OptionError: The list is not one, or there is nothing to train on.
        InputContractError: Files are missing; the message names all.
    """
    lists = read_datalists(args.table, ("training", "validation"), args.data)
    training, validation = lists["training"], lists["validation"]
    if not training:
        raise OptionError(f"{args.table} lists nothing under 'training'")
    shared = of_training_patients(training, validation, args.patient)
    if shared and processes.is_main:
        kept = "kept, so that validation errors are too low"
        log.warning(
            "%d of %d validation volumes are of training patients (first: %s): %s",
            len(shared),
            len(validation),
            ", ".join(entry["image"].name for entry in shared[:3]),
            kept if args.overlap == "keep" else "left out of validation",
        )
    if args.overlap == "drop":
        validation = [entry for entry in validation if entry not in shared]
    if shared and not validation:
        raise OptionError(
            f"{args.table}: all {len(shared)} validation volumes are of training patients. Choose others, or keep "
            "them with --overlap keep"
        )
    return [entry["image"] for entry in training], [entry["image"] for entry in validation]


def build_crops(args: Args, training: Sequence[Path], validation: Sequence[Path]) -> tuple[Crops, Crops]:
    """Data sets of the volumes to train on and to validate on, with different draws."""
    contract: Preprocessing = replace(PRETRAINING, spacing=(args.spacing,) * 3)
    cache = VolumeCache(args.cache or Path(args.out) / "volumes", contract, args.size, args.cache_dtype)
    corrupt = Corrupt(args.size, scale_boxes=args.scale_boxes)
    train = Crops(training, cache, corrupt=corrupt, crops=args.crops, seed=args.seed)
    return train, Crops(validation, cache, corrupt=corrupt, crops=args.crops, seed=args.seed + 1, views=1)


def validation_of(args: Args, crops: Crops, processes: Processes) -> Validate | None:
    """Mean error on validation volumes, divided among the processes; crops and corruptions are fixed by default.

    Raises:
        OptionError: There are fewer volumes than processes.
    """
    if not len(crops):
        return None
    if len(crops) < processes.world:
        raise OptionError(f"{len(crops)} validation volume(s) for {processes.world} processes: one for each is needed")
    mine = range(processes.rank, len(crops), processes.world)
    batch = max(1, args.batch_size // (processes.world * args.accumulate))

    def validate(method: nn.Module, epoch: int) -> Metrics:
        data_pass = epoch if args.val_random else 0
        keys = [[(data_pass, i) for i in mine[first : first + batch]] for first in range(0, len(mine), batch)]
        loader = build_loader(crops, args.workers, batch_sampler=keys)
        return mean_losses(method, loader, processes)

    return validate


def options_of(args: Args) -> dict[str, int | None]:
    """Options that the files must note, because no shape tells them."""
    return {"num_heads": args.num_heads or None}


def changed_input(args: Args) -> dict[str, object]:
    """Fields of the input contract that the record must note, by model: the ViT's spacing, if not the published one."""
    own = [name for name in MODELS if get_entry(name).preprocessing == PRETRAINING]
    return {} if args.spacing == 2.0 else {name: {"spacing": [args.spacing] * 3} for name in own}


if __name__ == "__main__":
    run_command(main)
