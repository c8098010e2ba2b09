r"""Fine-tune GLCL's U-Net on a few labelled volumes, from pre-trained weights or, as the baseline, from random ones.

    python -m zoo.entries.glcl.finetune --data acdc --split tr2-c1 --checkpoint runs/local/glcl-unet.local.safetensors \
        --out runs/two
    python -m zoo.entries.glcl.finetune --data acdc --split tr2-c1 --from-scratch --out runs/two-scratch
    python -m zoo.entries.glcl.finetune --data mine --table mine.csv --classes kidney,tumour --train a,b --val c \
        --test d,e --checkpoint seg.ckpt --out runs/mine

Any file of the family will do: the encoder of stage 1, encoder and decoder of stage 2, a whole U-Net, the authors'
bundles. Parts that a file lacks start at random. The same --seed draws the same slices for all.

The data are as for pre-training, with masks. The defaults are the published run (krishnabits001/domain_specific_cl,
train_model/ft_pretr_*.py, tr_baseline.py): 10 000 steps of 20 slices drawn from the volumes of --split, Adam at 1e-3,
validation after every 50, the best by Dice is tested. Three mistakes of the authors are mended, which `--upstream`
undoes: intensities change in training (`--no-intensity`), a class that a slice lacks counts (`--upstream-loss`), and
moving averages are taken over (`--reset-averages`).

Files in OUT beside the loop's: `glcl-unet.<name of OUT>.safetensors`, the best network with its pixels, for
`zoo import` and `python -m zoo.entries.glcl.segment`; `results.json`, with Dice and Hausdorff distances of each
structure of each test volume; `prediction.png`, a slice beside its truth.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from zoo.entries.glcl.args import (
    PUBLISHED,
    CohortArgs,
    all_cases,
    forget_averages,
    grid_facts,
    named_cases,
    set_momentum,
    warn_of_other_pixels,
)
from zoo.entries.glcl.augment import BEND
from zoo.entries.glcl.cases import StoredCase
from zoo.entries.glcl.cohort import DATASETS, Case
from zoo.entries.glcl.finetune_data import DEFORMED, LabelledSlices, WholeVolumes
from zoo.entries.glcl.finetune_method import LOSSES, Segmenter, volume_metrics
from zoo.entries.glcl.segment import CHANNEL, N4, UNET, command_for
from zoo.entries.glcl.splits import Split, split
from zoo.errors import OptionError
from zoo.registry import get_entry, split_name
from zoo.tasks.outputs import Outputs
from zoo.training.args import arg, command_of, default, parse_args, run_command
from zoo.training.distributed import Processes
from zoo.training.finetune import (
    check_start,
    collect,
    digests_of,
    finetuning_header,
    load_network,
    origin_of,
    train_and_test,
    write_results,
)
from zoo.training.judged import judged_by_loss
from zoo.training.metrics import Results
from zoo.training.pictures import draw_labels
from zoo.training.publish import export, how_to_take
from zoo.training.saving import read_state
from zoo.training.session import running

log = logging.getLogger("zoo")

SETTLED = 10
"""Least steps, in units of the norms' memory, 1 / momentum, before their averages can be trusted."""


@dataclass(kw_only=True)
class Args(CohortArgs):
    """Published run of `ft_pretr_encoder_decoder_net_local_loss.py`."""

    split: str = arg("published split: tr1, tr2 or tr8 with -c1 to -c5, or trall", "tr1-c1")
    train: str = arg("labelled volumes: published, all, or names as 001-006,012", PUBLISHED)
    val: str = arg("volumes that choose the best checkpoint; empty for none", PUBLISHED)
    test: str = arg("volumes on which the best checkpoint is tested; empty for none", PUBLISHED)
    labelled: int = arg("training volumes to take, the first of --train; 0 for all", 0)
    epochs: int = arg("length of the run, in validations", 200)
    steps_per_epoch: int = arg("steps between two validations", 50)
    batch_size: int = arg("slices per optimiser step, over all processes and accumulated parts", 20)
    monitor: str = default("+val_dice")
    model: str = arg("network, and with a tag the weights to start from", UNET)
    checkpoint: str = arg("file to start from instead of the model's own weights", "")
    from_scratch: bool = arg("start from random weights", False)
    loss: str = arg("loss of the training", "dice", LOSSES)
    pose: bool = arg("turn, scale and flip slices", True)
    deformed: float = arg("share of slices that are bent, and whose intensity changes", DEFORMED)
    intensity: bool = arg("change the intensity of bent slices", True)
    reset_averages: bool = arg("reset the norms' averages at the beginning", False)
    upstream_loss: bool = arg("the authors' Dice loss, to which a class that a slice lacks adds a constant", False)
    upstream: bool = arg("the published behaviour: --no-intensity, --upstream-loss, --reset-averages", False)

    def check(self) -> None:
        """Raise `OptionError` for values that are wrong, or wrong together."""
        super().check()
        check_start(self)
        if get_entry(self.model).name != UNET:
            raise OptionError(f"--model {self.model}: expected {UNET} or {UNET}.TAG")
        if self.steps_per_epoch < 1 or self.labelled < 0 or not 0 <= self.deformed <= 1:
            raise OptionError(
                f"--steps-per-epoch {self.steps_per_epoch} --labelled {self.labelled} --deformed {self.deformed}: at "
                "least 1, at least 0, and a share are expected"
            )


def main(argv: Sequence[str] | None = None) -> Results:
    """Fine-tune, judge the best checkpoint, write and print the results."""
    args = resolve(parse_args(Args, argv, __doc__))
    with running(args) as processes:
        torch.manual_seed(args.seed)
        volumes, store = args.volumes, args.open_store()
        method = Segmenter(
            load_network(args, volumes.num_classes), volumes.num_classes, args.loss, upstream=args.upstream_loss
        )
        origin = origin_of(method.network)
        if not args.from_scratch:
            warn_of_other_pixels(args.model, args.checkpoint, volumes)
        set_momentum(method.network, args.norm_momentum)
        if args.reset_averages:
            forget_averages(method.network)
        parts = {part: store.prepare(cases, args.workers) for part, cases in choose_parts(args).items()}
        command = command_of(args, "zoo.entries.glcl.finetune")
        seen = get_entry(UNET).preprocessing.override(grid_facts(volumes, parts["train"]))
        classes = ("background", *volumes.structures)
        reading = reading_in(args)
        # `zoo predict` corrects no bias field and takes no channel of a fourth axis: it must not have such a network.
        outputs = {} if reading else Outputs("voxels").as_header()
        header = finetuning_header(method.network, "segment", command, input=seen, classes=classes, outputs=outputs)
        header |= {"reading": json.dumps(reading)} if reading else {}
        results: Results = {
            "volumes": {part: [case.name for case in cases] for part, cases in parts.items()},
            **origin,
            **tune(method, parts, args, processes, header),
            "structures": volumes.structures,
            "arguments": asdict(args),
        }
        if processes.is_main:
            if "test" in parts:
                draw_case(method, parts["test"][0], volumes.structures, Path(args.out) / "prediction.png")
            file = export_best(args, header)
            results |= {"weights": digests_of(file, file.with_name("best.pt"))}
            write_results(results, args.out, hint=next_steps(file))
    return results


def export_best(args: Args, header: Mapping[str, str]) -> Path:
    """Write the best network, as tested, without its training state; returns the file."""
    out = Path(args.out)
    best = read_state(out / "best.pt", mmap=True)["model"]
    return export(best, out, header)


def reading_in(args: Args) -> dict[str, Any]:
    """What the volumes are put through before their slices are cut, for the header."""
    channel = {} if args.volumes.channel is None else {CHANNEL: args.volumes.channel}
    return {**({N4: True} if args.n4 else {}), **channel}


def next_steps(file: Path) -> str:
    """The calls and commands that use the exported network."""
    return f"{how_to_take(UNET, file)}, or for whole volumes `{command_for(file)}`"


def resolve(args: Args) -> Args:
    """Fill in the arguments that depend on others; without weights to start from, the run is the baseline."""
    if not (args.checkpoint or args.from_scratch or split_name(args.model)[1]):
        log.warning("neither --checkpoint nor a tag of --model: the network starts from random weights")
        args = replace(args, from_scratch=True)
    if not args.val:
        args = judged_by_loss(args, "without --val nothing is validated")
    if args.epochs * args.steps_per_epoch * args.norm_momentum < SETTLED:
        log.warning(
            "%d steps are few for norms whose averages move by %g a step: they lag behind the weights, so results are "
            "too low. Give more steps, or a larger --norm-momentum",
            args.epochs * args.steps_per_epoch,
            args.norm_momentum,
        )
    if args.upstream:
        args = replace(args, intensity=False, upstream_loss=True, reset_averages=True)
    return args


def choose_parts(args: Args) -> dict[str, list[Case]]:
    """Return the volumes of each part of the run.

    Raises:
        OptionError: Volumes are missing, are in two parts, or are fewer than `--labelled`.
    """
    cases = all_cases(args)
    known = split(args.dataset, args.split) if PUBLISHED in (args.train, args.val, args.test) else Split((), (), ())
    wanted = {"train": (args.train, known.train), "val": (args.val, known.val), "test": (args.test, known.test)}
    parts = {
        part: named_cases(f"--{part}", text, cases, published) for part, (text, published) in wanted.items() if text
    }
    if "train" not in parts or args.labelled > len(parts["train"]):
        raise OptionError(
            f"--train {args.train!r} --labelled {args.labelled}: at least so many training volumes are needed"
        )
    parts["train"] = parts["train"][: args.labelled or None]
    for part in ("val", "test"):
        if twice := [case.name for case in parts.get(part, ()) if case in parts["train"]]:
            raise OptionError(
                f"--train and --{part} both name {', '.join(twice)}: a volume cannot judge what it trains"
            )
    return parts


def tune(
    method: Segmenter,
    parts: dict[str, list[StoredCase]],
    args: Args,
    processes: Processes,
    header: Mapping[str, str],
) -> Results:
    """Fit the method and test its best epoch; returns the results of `train_and_test`."""
    published, volumes = DATASETS[args.dataset], args.volumes
    data = {part: WholeVolumes(cases) for part, cases in parts.items() if part != "train"}
    train = LabelledSlices(
        parts["train"],
        volumes.num_classes,
        length=args.batch_size * args.steps_per_epoch,
        seed=args.seed,
        pose=args.pose,
        deformed=args.deformed,
        deviation=BEND * published.spacing / volumes.spacing,
        intensity=args.intensity,
    )

    def evaluate(part: str, _: int) -> Results:
        measure = method.measure_surfaces if part == "test" else method.measure
        rows = collect(measure, data[part], args, processes, one_each=True)
        return volume_metrics(rows, volumes.structures, [case.name for case in data[part].cases])

    return train_and_test(method, {"train": train, **data}, evaluate, args, processes, header=header)


def draw_case(method: Segmenter, case: StoredCase, structures: Sequence[str], path: Path) -> None:
    """Draw the slice with the largest structures, on the network's grid: image, truth and prediction."""
    number = int((case.label > 0).sum((1, 2)).argmax())
    image = torch.from_numpy(case.image[number][None, None].copy()).to(next(method.parameters()).device)
    method.eval()
    with torch.no_grad():
        found = method.network(image).argmax(1)[0].cpu().numpy()
    title = f"{case.name}, slice {number}"
    draw_labels(path, case.image[number], case.label[number], found, title=title, structures=structures)


if __name__ == "__main__":
    run_command(main)
