"""The inputs of BrainIAC's two networks."""

from __future__ import annotations

from dataclasses import replace

from zoo.entry import AREA, MIN_MAX, NONZERO, TRILINEAR, Preprocessing

_TEMPLATE = (170.0, 206.0, 162.0)
"""Millimetres that the authors' template covers along its axes, which point to the left, the front and the top
(AIM-KannLab/BrainIAC, src/preprocessing/atlases/temp_head.nii.gz: voxels of 1 mm)."""


def _spacing(side: int) -> tuple[float, ...]:
    return tuple(round(length / side, 3) for length in _TEMPLATE)


VERSION_2 = Preprocessing(
    channels=("brain MRI: T1, T2, FLAIR or T1 with contrast",),
    size=(96, 96, 96),
    interpolation=TRILINEAR,
    units="intensity of a brain in MRI without its skull, background 0",
    orientation="LAS",
    spacing=_spacing(96),
    normalise=NONZERO,
    modality="MR",
)
"""src/dataset.py: get_validation_transform."""
VERSION_1 = replace(VERSION_2, size=(128, 128, 128), interpolation=AREA, spacing=_spacing(128), normalise=MIN_MAX)
"""DivyanshuTak/BrainIAC, src/BrainIAC/dataset2.py; on the same template by its quickstart.ipynb."""
