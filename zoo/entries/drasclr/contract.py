"""Name and input contract of DrasCLR's model: window, axes and spacing."""

from __future__ import annotations

from zoo.entry import Preprocessing

NAME = "drasclr-cnn3d"
WINDOW = (-1024, 240)
"""HU to which values are clipped (batmanlab/DrasCLR, data/copd_patch.py)."""
PREPROCESSING = Preprocessing(
    channels=("CT",),
    size=(),
    units="HU",
    value_range=(-1.0, 1.0),
    orientation="SAL",
    spacing=(1.0, 1.0, 1.0),
    spline=3,
    window=WINDOW,
    modality="CT",
)
"""A whole CT on the axes of the atlas in array order (z, y, x): z to the top, y to the front, x to the left."""
