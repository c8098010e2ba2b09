"""What a network's head makes of an image that goes through the network in parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn


def head_outputs(network: nn.Module, inputs: Sequence[Tensor], weights: Tensor | None = None) -> Tensor:
    """Return the outputs `(n, K)` of some parts, each multiplied by how much the part counts in its image.

    Heads are linear, so the sum over the parts of an image, whose weights sum to 1, is what the head makes of the
    image's pooled features: in training, in evaluation and in prediction alike. Gradients go through.

    Args:
        network: An encoder with a head, from `load_model(name, num_classes=K)`.
        inputs: Of some parts, each `(n, ...)`, as `Parts` has them.
        weights: Of each part, `(n,)`, or of each cell of its map, `(n, *cells)`; None for parts that count once.
    """
    encoder: Any = network
    if weights is None or weights.ndim == 1:
        plain: Tensor = encoder(*inputs)
        return plain if weights is None else plain * weights.to(plain.dtype)[:, None]
    maps: Tensor = encoder.forward_features(*inputs).float()
    weights = weights.float()
    pooled, share = (maps * weights[:, None]).flatten(2).sum(2), weights.flatten(1).sum(1, keepdim=True)
    mean = pooled / share.clamp(min=1e-12)  # of a part that counts nothing: 0, times 0
    found: Tensor = share * encoder.get_classifier()(mean)
    return found
