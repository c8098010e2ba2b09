"""What a network's head makes of an image that goes through the network in parts; whether its file had the head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from zoo.checkpoint import is_counter, load_report
from zoo.errors import CheckpointMismatchError
from zoo.messages import first_names

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


def check_head(network: nn.Module, outputs: int) -> None:
    """Refuse a network whose file does not have all of it, such as its head, so that the rest was made fresh.

    Args:
        network: From `load_model(..., num_classes=outputs)`.
        outputs: Of its head.

    Raises:
        CheckpointMismatchError: A part of it is untrained.
    """
    report = load_report(network)
    if fresh := [name for name in report.fresh if not is_counter(name)]:
        raise CheckpointMismatchError(
            f"{report.source} has no head with {outputs} outputs for {report.model!r}: {first_names(fresh)} would be "
            f"untrained ({report.fresh[fresh[0]]}). A file that `zoo finetune` wrote has one, for the classes it names"
        )
