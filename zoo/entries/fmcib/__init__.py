"""FMCIB: a foundation model for biomarkers of cancer in CT (Pai et al., Nature Machine Intelligence 6, 2024).

MONAI's ResNet-50 of twice the width, which learnt to tell lesions from their surroundings.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zoo.entries.fmcib.contract import PREPROCESSING
from zoo.entries.fmcib.convert import HEAD, STEM, complete_resnet, convert_resnet
from zoo.entry import Augment, Config, Entry

if TYPE_CHECKING:
    from torch import nn

_STAGES = (("conv1.", "bn1."), ("layer1.",), ("layer2.",), ("layer3.",), ("layer4.",))


def build_resnet(config: Config) -> nn.Module:
    """The network: features `(N, 4096)`, or logits `(N, num_classes)`."""
    from zoo.entries.fmcib.model import FMCIBResNet

    return FMCIBResNet(
        config["in_channels"], config["num_classes"], stride=config["stride"], hidden=config.get("hidden", ())
    )


ENTRIES = (
    Entry(
        name="fmcib-resnet50",
        summary="3D ResNet-50 of twice the width for lesions in CT: features (N, 4096) of 50 mm around a seed point",
        family="fmcib",
        modalities=("ct",),
        anatomy="lesion",
        dimension=3,
        parameters=184_477_824,
        num_features=4096,
        build=build_resnet,
        convert=convert_resnet,
        config={"num_classes": 0, "in_channels": 1, "stride": 2},
        required=tuple(prefix for stage in _STAGES for prefix in stage),
        head=(HEAD,),
        stem=STEM,
        stages=_STAGES,
        preprocessing=PREPROCESSING,
        augment=Augment(mirrors=(0, 1, 2), plane=(1, 2)),
        settled=("stride",),
        complete=complete_resnet,
    ),
)
