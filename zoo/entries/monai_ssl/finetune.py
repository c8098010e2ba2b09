r"""Fine-tune a UNETR with a pre-trained ViT, or a Swin UNETR, to segment CT: abdominal organs, or your own labels.

    python -m zoo.entries.monai_ssl.finetune --data btcv --table dataset_0.json --checkpoint best_model.pt \
        --out runs/btcv
    python -m zoo.entries.monai_ssl.finetune --data btcv --table dataset_0.json --from-scratch --out runs/scratch
    torchrun --nproc-per-node 4 -m zoo.entries.monai_ssl.finetune --data ct --table list.json --num-classes 3 \
        --batch-size 4 --model monai-ssl-swinunetr --out runs/swin --resume

The list is JSON as the Medical Segmentation Decathlon has it: sections `training`, `validation` and, optionally, `test`
of {"image": ..., "label": ...}, relative to --data; `labels` may name the classes. The defaults are the published run
(Project-MONAI/tutorials, vit_unetr_ssl, `ssl_finetune.ipynb`): 30 000 steps of 4 crops of one volume, AdamW at 1e-4,
validation after every 100. `--from-scratch` with the same seed is the run to compare with: it sees the same crops.

Published, BTCV, Dice in % with 6, 12 and 24 training volumes: 63.07, 76.06, 78.91 from random weights, 70.09, 79.55,
82.30 from pre-trained ones. Their means weigh the cases by their order and count the background as a class. Here Dice
is the mean over cases of the mean over the foreground classes that a case has; `--upstream-dice` is theirs. In their
run the validation cases choose the checkpoint and are the result; here a section `test` is judged once, at the end.

Files in OUT beside the loop's: `results.json`, and `prediction.png`, a case beside its truth. --cache keeps the volumes
on the network's grid; runs may share it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

import zoo
from zoo.entries.monai_ssl.cases import CaseStore
from zoo.entries.monai_ssl.cohort import class_names, read_cases
from zoo.entries.monai_ssl.contract import build_transform
from zoo.entries.monai_ssl.finetune_data import CROPS, Crops, WholeVolumes
from zoo.entries.monai_ssl.finetune_method import Segmenter, dice_metrics
from zoo.entries.monai_ssl.segment import SEGMENTERS, SWIN, UNETR
from zoo.entries.monai_ssl.windows import segment, window_of
from zoo.errors import OptionError
from zoo.networks.swin_unetr import SWIN_STEP
from zoo.networks.vit_names import PATCH
from zoo.registry import get_entry
from zoo.tasks.outputs import Outputs
from zoo.training.args import TrainArgs, arg, command_of, default, parse_args, run_command
from zoo.training.data import Batches, length_of
from zoo.training.distributed import Processes
from zoo.training.finetune import (
    check_start,
    collect,
    digests_of,
    finetuning_header,
    how_to_load,
    origin_of,
    starting_input,
    train_and_test,
    write_results,
)
from zoo.training.judged import judged_by_loss, take_weights
from zoo.training.loop import autocast
from zoo.training.metrics import Results
from zoo.training.pictures import draw_labels
from zoo.training.session import running

WIDTHS = ("hidden_size", "mlp_dim", "num_heads", "feature_size")


@dataclass(kw_only=True)
class Args(TrainArgs):
    """Published run of `ssl_finetune.ipynb`."""

    data: str = arg("folder that the files of the list are relative to")
    table: str = arg("JSON list with sections 'training', 'validation', 'test' of images in HU and labels", was="list")
    epochs: int = arg("length of the run, in validations", 300)
    steps_per_epoch: int = arg("steps between two validations; 0 for one pass over the data", 100)
    batch_size: int = arg("volumes per optimiser step, over all processes and accumulated parts", 1)
    optimizer: str = default("adamw")
    lr: float = default(1e-4)
    weight_decay: float = default(1e-5)
    schedule: str = default("constant")
    monitor: str = default("+val_dice")
    workers: int = default(4)
    model: str = arg("network, and with a tag the weights to start from", UNETR)
    checkpoint: str = arg("file to start from instead of the model's own weights, of a ViT or of the network", "")
    from_scratch: bool = arg("start from random weights", False)
    freeze: bool = arg("train the convolutions alone, not the transformer", False)
    labelled: int = arg("training volumes to take, the first of the list; 0 for all", 0)
    num_classes: int = arg("classes, background included", 14)
    crops: int = arg("crops of each volume in a step", CROPS)
    cache: str = arg("folder for the volumes on the network's grid; empty for OUT/cache", "", free=True)
    spacing: str = arg("size of voxels in mm, one number or x,y,z; empty for that of the weights, 1.5,1.5,2", "")
    upstream_dice: bool = arg("Dice as published: cases weighted by their order, background counted", False)
    size: int = arg("side of the crops and windows; 0 for that of the weights, 96", 0, was="img_size")
    hidden_size: int = arg("width of a token; 0 for that of the weights, 768", 0)
    mlp_dim: int = arg("width inside a block's perceptron; 0 for that of the weights, 3072", 0)
    num_heads: int = arg("attention heads; 0 for one for each 64 of --hidden-size", 0)
    feature_size: int = arg("channels of the decoder's last maps; 0 for 16 (UNETR) or 48 (Swin UNETR)", 0)
    merging: str = arg("duplicated or complete merging, for a Swin UNETR; empty for that of the weights", "")

    def check(self) -> None:
        """Raise `OptionError` for values that are wrong, or wrong together."""
        super().check()
        check_start(self)
        if get_entry(self.model).name not in SEGMENTERS:
            raise OptionError(f"--model {self.model}: expected {UNETR} or {SWIN}, with or without a tag")
        if self.num_classes < 2 or self.crops < 1 or self.labelled < 0:
            raise OptionError(
                f"--num-classes {self.num_classes} --crops {self.crops} --labelled {self.labelled}: at least 2 classes "
                "with the background, 1 crop and 0 volumes are expected"
            )
        step, least = (SWIN_STEP, 2 * SWIN_STEP) if self.is_swin else (PATCH, PATCH)
        if self.size % step or (self.size and self.size < least):  # instance norm needs two voxels
            raise OptionError(f"--size {self.size}: a multiple of {step}, at least {least}, is expected")
        if self.is_swin and (self.hidden_size or self.mlp_dim or self.num_heads):
            raise OptionError(
                f"--hidden-size, --mlp-dim and --num-heads are for the ViT; {SWIN} takes --feature-size alone"
            )
        if self.merging and not self.is_swin:
            raise OptionError(f"--merging {self.merging} is for {SWIN}; {UNETR} merges no patches")

    @property
    def is_swin(self) -> bool:
        """Whether the network is a Swin UNETR, which has no size of its own."""
        return get_entry(self.model).name == SWIN


def main(argv: Sequence[str] | None = None) -> Results:
    """Fine-tune, judge the best checkpoint, write and print the results."""
    args = parse_args(Args, argv, __doc__)
    cases = read_cases(args.table, args.data, args.labelled)
    names = class_names(args.table, args.num_classes)
    args = resolve(args, has_validation="val" in cases)
    store = CaseStore(args.cache or Path(args.out) / "cache", build_transform(starting_input(args), args.spacing))
    with running(args) as processes:
        torch.manual_seed(args.seed)
        network = build_network(args)
        window = args.size or crop_size(network)
        Batches(len(cases["train"]), args, processes)  # raises early where they do not fill a step
        store.prepare([case for part in cases.values() for case in part], args.num_classes, args.workers)
        stored = {part: [store.open(case) for case in chosen] for part, chosen in cases.items()}
        train = Crops(stored["train"], size=window, crops=args.crops, seed=args.seed)
        judged = {part: WholeVolumes(chosen) for part, chosen in stored.items() if part != "train"}
        method = Segmenter(network, args.num_classes, window, freeze=args.freeze)
        command = command_of(args, "zoo.entries.monai_ssl.finetune")
        seen = store.transform.preprocessing
        outputs = Outputs("voxels", window=(window,) * 3).as_header()
        header = finetuning_header(network, "segment", command, input=seen, classes=names, outputs=outputs)
        results = tune(method, train, judged, names, args, processes, header)
        results |= {"classes": names, "arguments": asdict(args)}
        if processes.is_main:
            results |= {"weights": digests_of(Path(args.out) / "best.pt")}
            write_results(results, args.out, hint=next_steps(args))
    return results


def resolve(args: Args, *, has_validation: bool) -> Args:
    """Fill in the arguments that depend on the list."""
    return args if has_validation else judged_by_loss(args, "the list has no section 'validation'")


def build_network(args: Args) -> nn.Module:
    """The network to start from."""
    options = {name: getattr(args, name) for name in (*WIDTHS, "merging") if getattr(args, name)}
    if args.size and not args.is_swin:
        options["img_size"] = args.size
    return zoo.load_model(
        args.model,
        pretrained=not args.from_scratch,
        checkpoint=args.checkpoint or None,
        num_classes=args.num_classes,
        **options,
    )


def crop_size(network: nn.Module) -> int:
    """Side in voxels of the crops where none is asked for: that of the network's windows, 96 for a Swin UNETR.

    Raises:
        OptionError: The network was built for boxes that are not cubes.
    """
    window = window_of(network)
    if len(set(window)) > 1:
        raise OptionError(f"the network was built for {window} voxels, but crops must be cubes: give --size")
    return window[0]


def tune(
    method: Segmenter,
    train: Crops,
    judged: Mapping[str, WholeVolumes],
    names: Sequence[str],
    args: Args,
    processes: Processes,
    header: Mapping[str, str],
) -> Results:
    """Fit the method and judge its best epoch: Dice of each class and case, and a picture.

    Returns:
        The weights that it began with, `best` and `test` of `train_and_test`, `val`, and the number of `volumes`.
    """
    data = {"train": train, **judged}

    def evaluate(part: str, _: int) -> Results:
        overlaps = collect(method.overlaps, data[part], args, processes, one_each=True)
        return dice_metrics(overlaps, names, upstream=args.upstream_dice)

    results = {
        "volumes": {part: length_of(volumes) for part, volumes in data.items()},
        **origin_of(method.network),
        **train_and_test(method, data, evaluate, args, processes, header=header),
    }
    take_weights(method, Path(args.out) / "best.pt")
    with torch.no_grad(), autocast(args.precision, processes.device):
        if "val" in judged:
            results["val"] = evaluate("val", 0)
        if judged and processes.is_main:
            draw_case(method, next(iter(judged.values())), Path(args.out) / "prediction.png")
    return results


def next_steps(args: Args) -> str:
    """The call that loads the network, and the command that segments whole volumes with it."""
    best = Path(args.out) / "best.pt"
    command = f"python -m zoo.entries.monai_ssl.segment segment --image CT --out labels --checkpoint {best}"
    if args.is_swin:
        command += f" --model {SWIN}"
    if args.is_swin and args.size:  # this command does not read them in the file's header
        command += f" --window {args.size}"
    return f"{how_to_load(args.model, best)}, or for whole volumes `{command}`"


def draw_case(method: Segmenter, volumes: WholeVolumes, path: Path) -> None:
    """Draw a slice of the first volume that has labels: image, truth and prediction, oriented as for radiologists."""
    number = next(i for i, case in enumerate(volumes.cases) if len(case.foreground))
    case = volumes[0, number]
    image, truth = case["image"], case["label"][0].numpy()
    device = next(method.parameters()).device
    found = segment(method.network, image.to(device), window=method.window).cpu().numpy()
    level = int(np.argmax((truth > 0).sum((0, 1))))
    title = f"{volumes.cases[number].case.image.name}, axial slice {level}"
    shown = [volume[::-1, ::-1, level].T for volume in (image[0].numpy(), truth, found)]
    draw_labels(path, *shown, title=title)


if __name__ == "__main__":
    run_command(main)
