"""What timm's ResNet-50 lacks as CAiD's encoder, given to one network, whose class stays timm's."""

from __future__ import annotations

import weakref
from typing import Any

from timm.models.resnet import ResNet

from zoo.networks.vocabulary import resetting


class ResetClassifier:
    """The `reset_classifier` of one network: timm's, with a check of the number of outputs and a word in the report.

    The network is referred to weakly, so that whoever deletes it has its memory back; a copy of it refers to the copy.
    """

    def __init__(self, network: ResNet) -> None:
        self._network = weakref.ref(network)

    def __call__(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head by a new one with random weights; a projection head goes, too. The report says so.

        `num_classes` and `global_pool` are timm's; what is raised is as of `Vocabulary.reset_classifier`.
        """
        network: Any = self._network()
        pooling = network.global_pool.pool_type if global_pool is None else global_pool  # timm 1.0.9 takes no None
        with resetting(network, num_classes, "fc"):
            ResNet.reset_classifier(network, num_classes, pooling)

    def __deepcopy__(self, memo: dict[int, Any]) -> ResetClassifier:
        """Return that of the copy, which a network that is copied notes before its attributes."""
        network: Any = self._network()
        return ResetClassifier(memo.get(id(network), network))

    def __reduce__(self) -> tuple[type[ResetClassifier], tuple[Any]]:
        """Have a pickle hold the network, which it notes before its attributes."""
        return ResetClassifier, (self._network(),)
