"""RAD-DINO: DINOv2's pre-training continued on 882 775 chest radiographs (Perez-Garcia et al., 2025).

A ViT-B/14, whose CLS token is the feature of a film and whose patch tokens are its map.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zoo.entries.rad_dino.contract import PREPROCESSING
from zoo.entries.rad_dino.convert import STEM, UNUSED, convert
from zoo.entry import Config, Entry

if TYPE_CHECKING:
    from torch import nn

_STAGES = (
    ("patch_embed.", "cls_token", "pos_embed"),
    *((f"blocks.{i}.",) for i in range(11)),
    ("blocks.11.", "norm."),
)


def build(config: Config) -> nn.Module:
    """ViT-B/14 of timm: the CLS token `(N, 768)`, or logits `(N, num_classes)`."""
    from zoo.entries.rad_dino.model import vit_b14

    return vit_b14(config["in_channels"], config["num_classes"])


def reset_head(module: nn.Module) -> None:
    """Start a linear layer as timm's ViT does."""
    from torch import nn

    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


ENTRIES = (
    Entry(
        name="rad-dino-vitb14",
        summary="2D ViT-B/14 for chest radiographs: features (N, 768), the CLS token",
        family="rad_dino",
        modalities=("xray",),
        anatomy="chest",
        dimension=2,
        parameters=86_579_712,
        num_features=768,
        build=build,
        convert=convert,
        config={"num_classes": 0, "in_channels": 3},
        required=tuple(prefix for stage in _STAGES for prefix in stage),
        head=("head.",),
        stem=STEM,
        stages=_STAGES,
        preprocessing=PREPROCESSING,
        unused=UNUSED,
        namesakes=("DINOv2's own ViT-B/14, which learnt from photographs",),
        reset=reset_head,
    ),
)
