"""The inputs of CT-FM's networks: axes to superior, posterior and left, and one window for all."""

from __future__ import annotations

from zoo.entry import Preprocessing, Windows

ENCODER_INPUT = Preprocessing(
    channels=("CT",),
    size=(),
    units="HU",
    orientation="SPL",
    spacing=(3.0, 1.0, 1.0),
    window=(-1024.0, 2048.0),
    modality="CT",
)
"""That of the pre-training and of the paper's features (CT-FM, experiments/fm/base.yaml, scripts/feature_extractor.py).

Without their crop, which keeps the box of all above 0 HU, and so cuts fat off.
"""
SEGMENTER_INPUT = Preprocessing(
    channels=("CT",),
    size=(),
    units="HU",
    orientation="SPL",
    window=(-1024.0, 2048.0),
    modality="CT",
)
"""That of the whole-body segmentation (CT-FM, evaluation/totalseg.yaml), which takes voxels as they are."""
WINDOWS = Windows((96, 160, 160), overlap=0.625, at_once=1, gaussian=True, margin=10)
"""Those of the whole-body segmentation, but for the windows at once, two there (CT-FM, evaluation/totalseg.yaml)."""
