"""CAiD's encoder: timm's ResNet-50, with a new head noted in the load report."""

from __future__ import annotations

from typing import Any

from timm.models import build_model_with_cfg
from timm.models.resnet import Bottleneck, ResNet

from zoo.networks.vocabulary import resetting


class CAiDResNet(ResNet):
    """timm's class with its tensors; `resnet50` makes it."""

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters that stand for positions: none. The class of timm lacks the method."""
        return set()

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head by a new one with random weights; a projection head goes, too. The report says so.

        Args:
            num_classes: Outputs; 0 for no head, with which `forward` returns features.
            global_pool: timm's word for how features are pooled; None for no change.

        Raises:
            OptionError: The network cannot have so many outputs.
        """
        with resetting(self, num_classes, "fc"):
            super().reset_classifier(num_classes, global_pool)


def resnet50(in_channels: int, num_classes: int, description: dict[str, Any]) -> CAiDResNet:
    """Return the network.

    Args:
        in_channels: Channels of the films.
        num_classes: Outputs of the head, 0 for none.
        description: Its input, as timm's tools read it.
    """
    network: CAiDResNet = build_model_with_cfg(
        CAiDResNet,
        "resnet50",
        False,
        pretrained_cfg=description,
        block=Bottleneck,
        layers=(3, 4, 6, 3),
        in_chans=in_channels,
        num_classes=num_classes,
        zero_init_last=False,  # as torchvision, and so the authors, start it
    )
    return network
