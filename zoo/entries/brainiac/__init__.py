"""BrainIAC: contrastive learning on brain MRI of many sequences and conditions (Tak et al., Nature Neuroscience 2026).

A 3D ViT, and the ResNet-50 that had the name before it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zoo.entries.brainiac.contract import VERSION_1, VERSION_2
from zoo.entries.brainiac.convert import UNUSED, VIT, complete_vit, convert_resnet, convert_vit
from zoo.entry import Augment, Config, Entry

if TYPE_CHECKING:
    from torch import nn

_BLOCKS = tuple((f"blocks.{i}.",) for i in range(11))
_LAYERS = tuple(f"layer{i}." for i in (1, 2, 3, 4))


def build_vit(config: Config) -> nn.Module:
    """The ViT of version 2: features `(N, 768)`, or logits `(N, num_classes)`.

    Raises:
        OptionError: There is no such pooling.
    """
    from zoo.entries.brainiac.model import BrainViT

    return BrainViT(config["in_channels"], config["num_classes"], pooling=config["pooling"])


def build_resnet(config: Config) -> nn.Module:
    """The ResNet-50 of version 1: features `(N, 2048)`, or logits `(N, num_classes)`."""
    from zoo.entries.brainiac.model import BrainResNet50

    return BrainResNet50(config["in_channels"], config["num_classes"])


ENTRIES = (
    Entry(
        name="brainiac-vitb16",
        summary="3D ViT-B/16 for brain MRI without the skull: features (N, 768), the first token",
        family="brainiac",
        modalities=("mri",),
        anatomy="brain",
        dimension=3,
        parameters=88_340_736,
        num_features=768,
        build=build_vit,
        convert=convert_vit,
        config={"num_classes": 0, "in_channels": 1, "pooling": "first"},
        required=VIT,
        head=("classification_head.",),
        settled=("pooling",),
        free=("pooling",),
        stem="patch_embedding.patch_embeddings.weight",
        stages=(("patch_embedding.",), *_BLOCKS, ("blocks.11.", "norm.")),
        preprocessing=VERSION_2,
        augment=Augment(mirrors=(0,), offset=0.0),
        unused=UNUSED,
        complete=complete_vit,
    ),
    Entry(
        name="brainiac-resnet50",
        summary="3D ResNet-50 for brain MRI without the skull, BrainIAC's version 1: features (N, 2048)",
        family="brainiac",
        modalities=("mri",),
        anatomy="brain",
        dimension=3,
        parameters=46_158_912,
        num_features=2048,
        build=build_resnet,
        convert=convert_resnet,
        config={"num_classes": 0, "in_channels": 1},
        required=("conv1.", "bn1.", *_LAYERS),
        head=("fc.",),
        stem="conv1.weight",
        stages=(("conv1.", "bn1."), *((layer,) for layer in _LAYERS)),
        preprocessing=VERSION_1,
        augment=Augment(mirrors=(0,), offset=0.0),
        unused=UNUSED,
    ),
)
