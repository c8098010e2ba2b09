r"""Pre-train GLCL's encoder by its global loss, then its decoder by the local one. The defaults are the published run.

    python -m zoo.entries.glcl.pretrain --stage encoder --data acdc --out runs/global
    python -m zoo.entries.glcl.pretrain --stage decoder --data acdc --out runs/local \
        --init runs/global/glcl-encoder.global.safetensors
    torchrun --nproc-per-node 4 -m zoo.entries.glcl.pretrain --stage encoder --data acdc --batch-size 4 --out runs/four
    python -m zoo.entries.glcl.pretrain --stage encoder --data own --table own.csv --init glcl-encoder.phantom --out own

The data are NIfTI volumes in the layout of ACDC (`--dataset acdc`), Decathlon's Task05 (`prostate`) or MM-WHS
(`mmwhs`), or those of a table (`--table`, columns `name` and `image`); masks are not needed. Volumes are normalised,
resampled in the plane and cropped once, in --cache. The bias field of the published volumes was corrected before: give
--n4 unless yours is.

Published (krishnabits001/domain_specific_cl, README and train_model/): 10 001 steps of one batch, Adam at 1e-3, on one
GPU. Stage 1: G^D, 12 slices of 3 volumes in each of two sets and a view of each, 48 images. Stage 2: L^R, 10 slices in
two views, 3 blocks of the decoder, 13 regions of 3 x 3, 5 negatives; the encoder stays as after stage 1. A batch is
never divided: each process has its own (`--batch-size`). The exported weights are those of the last step. Where the
authors' code has a defect, the default mends it; `--upstream` brings the published behaviour back:

- Of the 48 rows of stage 1, 16 are images of zeros (`--legacy-blank-rows`), and a volume may be compared with itself
  (`--independent-sets`).
- All slices that are changed at once share one change of intensity, of contrast as much as of brightness
  (`--legacy-intensity`).
- The averages of the norms start anew in stage 2 (`--reset-averages`).

Not brought back: layers of one shape that start with the same weights, and TensorFlow's place for Adam's epsilon.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from zoo.checkpoint import is_counter
from zoo.entries.glcl import prefixes_of
from zoo.entries.glcl.args import (
    PUBLISHED,
    CohortArgs,
    all_cases,
    forget_averages,
    grid_facts,
    named_cases,
    set_momentum,
)
from zoo.entries.glcl.augment import BOX, PUBLISHED_SIZE
from zoo.entries.glcl.batches import Rows, global_rows, local_rows
from zoo.entries.glcl.cases import StoredCase
from zoo.entries.glcl.convert import BLOCKS, ENCODER, HEAD, PROJECTION, REGION
from zoo.entries.glcl.data import ContrastiveBatches
from zoo.entries.glcl.losses import GLOBAL_VARIANTS, LOCAL_VARIANTS
from zoo.entries.glcl.method import STATISTICS, GlobalContrastiveLoss, GlobalMethod, LocalContrastiveLoss, LocalMethod
from zoo.entries.glcl.model import GLCLDecoder, GLCLEncoder
from zoo.entries.glcl.splits import pretraining
from zoo.errors import OptionError
from zoo.training.args import arg, command_of, default, parse_args, run_command
from zoo.training.loop import fit
from zoo.training.publish import pretraining_header, publish_run
from zoo.training.runlog import Metrics
from zoo.training.session import running
from zoo.training.starting import Own, Part, init_arg, same_names, start_from_init

STAGES = ("encoder", "decoder")
MODELS = {"encoder": ("glcl-encoder",), "decoder": ("glcl-encoder", "glcl-unet")}
"""Models that the weights of a stage fill; the exported file has the names of the last, the largest."""
NETWORK = "network."
LOCAL = tuple(f"{NETWORK}{prefix}" for prefix in prefixes_of((*HEAD, REGION)))
"""Names of what the local loss puts behind the decoder, which no entry has."""


@dataclass(kw_only=True)
class Args(CohortArgs):
    """Published run of `pretr_encoder_global_contrastive_loss.py`, or `pretr_decoder_local_contrastive_loss.py`."""

    stage: str = arg("part to train: the encoder by the global loss, or the decoder by the local one", choices=STAGES)
    subjects: str = arg("volumes: published, all, or names as 001-006,012", PUBLISHED)
    split: str = arg("published split, as tr1-c2, whose validation volumes are left out of the published ones", "")
    epochs: int = default(73)
    steps_per_epoch: int = arg("steps in one epoch of the run", 137)
    batch_size: int = arg("batches per optimiser step, over all processes; each is compared by itself", 1)
    variant: str = arg("variant of the loss: R, D- or D (encoder), R or D (decoder); empty for D and R", "")
    slices: int = arg("slices of a batch, in each set; 0 for 12 (encoder, decoder's D) or 10", 0)
    n_parts: int = arg("parts that a volume is divided into", 4)
    temperature: float = arg("temperature of the contrastive softmax", 0.1)
    box: int = arg(f"side in pixels of the box that a view of stage 1 shows; 0 for {BOX} of {PUBLISHED_SIZE}", 0)
    init: str = init_arg(was="encoder")
    blocks: int = arg("blocks of the decoder that stage 2 trains, 1 to 5", 3)
    regions: int = arg("regions of each map, 9 or 13", 13)
    region_size: int = arg("side of a region, 1 or 3", 3)
    negatives: int = arg("negative regions for each region, in each of two maps; 0 for 5 (R) or 4 (D)", 0)
    project: bool = arg("compare projections of regions of 3 x 3, not the regions", True)
    freeze: bool = arg("stage 2 does not train the encoder", True)
    encoder_statistics: str = arg("statistics of the encoder's norms in stage 2", "batch", STATISTICS)
    reset_averages: bool = arg("stage 2 resets the norms' averages at its beginning", False)
    legacy_intensity: bool = arg("one change of intensity for all slices of a call", False)
    independent_sets: bool = arg("encoder's D: draw both sets of volumes independently", False)
    legacy_blank_rows: bool = arg("encoder's D: leave the last block of rows blank", False)
    upstream: bool = arg("the published behaviour: the four flags above, and the losses' literals", False)
    half: bool = arg("export the weights in half precision", False, free=True)

    def check(self) -> None:
        """Raise `OptionError` for values that are wrong, or wrong together."""
        super().check()
        if self.stage == "decoder" and not self.init:
            raise OptionError("--stage decoder needs a trained encoder: give the file of stage 1, or a name, as --init")
        variants = LOCAL_VARIANTS if self.stage == "decoder" else GLOBAL_VARIANTS
        if self.variant not in ("", *variants):
            raise OptionError(f"--variant {self.variant}: --stage {self.stage} has {', '.join(variants)}")
        if self.steps_per_epoch < 1 or self.slices < 0 or self.n_parts < 1:
            raise OptionError(
                f"--steps-per-epoch {self.steps_per_epoch} --slices {self.slices} --n-parts {self.n_parts}: at least "
                "1, 0 and 1 are expected"
            )
        if not 0 <= self.box <= self.volumes.size:
            raise OptionError(f"--box {self.box}: at most the side of the slices, {self.volumes.size}, is expected")
        if self.split and self.subjects != PUBLISHED:
            raise OptionError(f"--split {self.split} is for --subjects {PUBLISHED}; name the volumes, or the split")


def main(argv: Sequence[str] | None = None) -> Metrics:
    """Train one stage, export its weights and write their manifest record; returns the metrics of the last epoch."""
    args = resolve(parse_args(Args, argv, __doc__))
    with running(args) as processes:
        torch.manual_seed(args.seed)
        cases = named_cases("--subjects", args.subjects, all_cases(args), pretraining(args.dataset, args.split))
        unlabelled = [replace(case, mask=None) for case in cases]
        stored = args.open_store().prepare(unlabelled, args.workers)
        batches = build_batches(args, stored)
        method, grid = build_method(args), grid_facts(args.volumes, stored)
        base = start(method, args, grid)
        command, models = command_of(args, "zoo.entries.glcl.pretrain"), MODELS[args.stage]
        header = pretraining_header(models[-1], command, input=grid, base=base)
        fit(method, batches, args, processes=processes, header=header, base=args.init)
        return publish_run(args, processes, models=models, header=header)


def resolve(args: Args) -> Args:
    """Fill in the arguments that depend on the stage and on `--upstream`."""
    is_local = args.stage == "decoder"
    variant = args.variant or ("R" if is_local else "D")
    args = replace(
        args,
        variant=variant,
        slices=args.slices or (10 if is_local and variant == "R" else 12),
        negatives=args.negatives or (5 if variant == "R" else 4),
    )
    if not args.upstream:
        return args
    return replace(
        args, legacy_intensity=True, independent_sets=not is_local, legacy_blank_rows=not is_local, reset_averages=True
    )


def build_batches(args: Args, cases: Sequence[StoredCase]) -> ContrastiveBatches:
    """The data set of a stage: a pass is an epoch."""
    if args.stage == "encoder":
        draw = partial(
            global_rows,
            variant=args.variant,
            batch_size=args.slices,
            n_parts=args.n_parts,
            independent_sets=args.independent_sets,
            legacy_blank_rows=args.legacy_blank_rows,
        )
        calls = partial(calls_of, n_parts=args.n_parts) if args.variant == "D" else copies_of
    else:
        draw = partial(local_rows, variant=args.variant, batch_size=args.slices, n_parts=args.n_parts)
        calls = copies_of
    return ContrastiveBatches(
        cases,
        draw,
        length=args.batch_size * args.steps_per_epoch,
        seed=args.seed,
        n_parts=1 if args.variant == "R" else args.n_parts,
        crop=args.stage == "encoder",
        box=args.box,
        call_of=calls if args.legacy_intensity else None,
    )


def copies_of(rows: Rows) -> Rows:
    """Calls (M,) of the authors' code: one for all slices of a copy."""
    return rows[:, 2].clip(0)


def calls_of(rows: Rows, n_parts: int) -> Rows:
    """Calls (M,) of the authors' code for the global "D": one for the views of a set; sets take turns of 2 P rows."""
    return np.arange(len(rows)) // (2 * n_parts) % 2


def build_method(args: Args) -> GlobalMethod | LocalMethod:
    """The network and the objective of a stage."""
    if args.stage == "encoder":
        encoder = GLCLEncoder(size=args.volumes.size, projection=True)
        set_momentum(encoder, args.norm_momentum)
        return GlobalMethod(encoder, GlobalContrastiveLoss(args.variant, args.n_parts, args.temperature, args.upstream))
    loss = LocalContrastiveLoss(
        variant=args.variant,
        region_size=args.region_size,
        n_regions=args.regions,
        temperature=args.temperature,
        n_negatives=args.negatives,
        upstream=args.upstream,
        n_parts=args.n_parts,
    )
    decoder = GLCLDecoder(args.blocks, project=args.project and args.region_size == 3)
    set_momentum(decoder, args.norm_momentum)
    return LocalMethod(decoder, loss, freeze_encoder=args.freeze, encoder_statistics=args.encoder_statistics)


def start(method: GlobalMethod | LocalMethod, args: Args, grid: Mapping[str, Any]) -> dict[str, Any]:
    """Fill a method with the weights of `--init`; returns the base of the header, see `start_from_init`."""
    local = tuple(name for name in method.state_dict() if name.startswith(LOCAL) and not is_counter(name))
    own = (Own("head of the local loss", local),) if local else ()
    base = start_from_init(method, args, parts_of(args), networks=(NETWORK,), input=grid, own=own)
    if args.stage == "decoder" and args.reset_averages:
        forget_averages(method)
    return base


def parts_of(args: Args) -> list[Part]:
    """The parts of a stage's method that weights may have."""
    encoder, unet = MODELS["decoder"]
    first = Part("encoder", encoder, same_names(prefixes_of(ENCODER)), {"num_classes": 0})
    if args.stage == "encoder":
        return [first, Part("projection head", encoder, same_names(prefixes_of(PROJECTION)), {"projection": True})]
    blocks = [same_names(prefixes_of(block)) for block in BLOCKS[: args.blocks]]
    return [
        first,
        *(Part(f"block {i} of the decoder", unet, names, {"num_classes": 0}) for i, names in enumerate(blocks, 1)),
    ]


if __name__ == "__main__":
    run_command(main)
