"""Films in the grey levels of 8 bits: how others become such, and how they are resized.

Networks that were trained on films stored in 8 bits, and resized in whole levels by Pillow, get the same here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zoo.images import refuse_gradient

if TYPE_CHECKING:
    from torch import Tensor

WHITE = 255


def stretch(grey: Tensor) -> Tensor:
    """Return (x - least) / (largest - least) of a film; one that is the same everywhere is returned as it is."""
    least, largest = grey.min(), grey.max()
    return grey if least == largest else (grey - least) / (largest - least)


def fit_levels(grey: Tensor, size: tuple[int, int], resize: int | None, source: str) -> Tensor:
    """Round a film to 8 bits, resize it in these (bicubic, by Pillow), and cut its centre out.

    The longer side, and the margins of the cut, are rounded down.

    Args:
        grey: Fractions `(1, H, W)`.
        size: Pixels to return, `(H, W)`.
        resize: What the shorter side becomes before the cut; None for resizing straight to `size`.
        source: What messages call it.

    Returns:
        float32 `(1, *size)`, whole numbers of 1/255, on the device of `grey`.

    Raises:
        InputContractError: `grey` requires a gradient, which whole levels do not have.
    """
    import numpy as np
    import torch
    from PIL import Image

    refuse_gradient(grey, source, "a film that is resized in whole grey levels")
    levels = (grey[0] * WHITE).round().clamp(0, WHITE).to(torch.uint8)
    height, width = size
    tall, wide = size if resize is None else (resize * side // min(levels.shape) for side in levels.shape)
    resized = Image.fromarray(levels.cpu().numpy()).resize((wide, tall), Image.Resampling.BICUBIC)
    top, left = (tall - height) // 2, (wide - width) // 2
    cut = np.asarray(resized)[None, top : top + height, left : left + width]
    return torch.from_numpy(cut.astype(np.float32)).to(grey.device) / WHITE
