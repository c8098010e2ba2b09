"""The arguments of CAiD's fine-tuning, with their defaults."""

from __future__ import annotations

from dataclasses import dataclass

from zoo.entries.caid.finetune_data import NORMALIZATIONS
from zoo.errors import OptionError
from zoo.training.args import TrainArgs, arg, default
from zoo.training.finetune import check_start


@dataclass(kw_only=True)
class FinetuneArgs(TrainArgs):
    """Arguments of both tasks."""

    batch_size: int = default(32)
    optimizer: str = default("adam")
    weight_decay: float = default(0.0)
    monitor: str = default("val_loss")
    workers: int = default(4)
    model: str = arg("model to start from, with or without a tag", "")
    checkpoint: str = arg("file to start from instead of the model's own weights", "")
    from_scratch: bool = arg("start from random weights", False)
    table: str = arg(
        "training list: lines of 'name 0 1 ...', or a CSV; empty for all images of --data, for tasks without labels",
        "",
        was="list",
    )
    split: str = arg("rows of a CSV list to train on, by its column 'split'", "")
    val_table: str = arg("validation list; empty for no validation (then --monitor loss)", "", was="val_list")
    val_split: str = arg("rows of a CSV validation list, by its column 'split'", "")
    test_table: str = arg(
        "test list, on which the best checkpoint is evaluated at the end; empty for none", "", was="test_list"
    )
    test_split: str = arg("rows of a CSV test list, by its column 'split'", "")
    layer_decay: float = arg("factor on the learning rate of a stage per stage behind it; 1 for none", 1.0)
    size: int = arg("side of the input in pixels, a multiple of 32; 0 for the size that the weights were trained at", 0)
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

    epochs: int = default(1000)
    lr: float = default(2e-4)
    schedule: str = default("plateau")
    patience: int = default(11)
    model: str = default("caid-resnet50")
    freeze: bool = arg("train the head alone, a linear probe; the encoder stays in eval mode", False)
    label: str = arg("label columns of a CSV, or names for the labels of another list: a,b", "", was="labels")
    auroc_labels: str = arg("labels whose AUROC counts: a,b; empty for all (CheXpert counts five of fourteen)", "")


@dataclass(kw_only=True)
class SegmentArgs(FinetuneArgs):
    """Published run of `main_segmentation.py`, whose `--patience 20` stops after the 21st epoch in vain."""

    epochs: int = default(200)
    lr: float = default(1e-3)
    schedule: str = default("cosine")
    patience: int = default(21)
    model: str = default("caid-resnet50-unet")
    masks: str = arg("folder with the masks, named like the images")
    val_random: bool = arg("change validation images at random too, as the authors do", False)
