"""Takes a sample of many values, of which shares and percentiles are nearly those of all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray


def sample_of(values: NDArray[Any], most: int = 1_000_000) -> NDArray[Any]:
    """Return values at even steps, about as many as asked for; the step is odd, so that it does not follow one column.

    Args:
        values: Of any shape.
        most: Values wanted; fewer values are returned as they are.
    """
    flat = values.reshape(-1)
    return flat[:: max(1, flat.size // most) | 1]
