"""The input of VoCo's networks (Luffy03/Large-Scale-Medical, data_trans.py)."""

from __future__ import annotations

from zoo.entry import Preprocessing, Windows

ABDOMEN = Preprocessing(
    channels=("CT",),
    size=(),
    units="HU",
    orientation="RAS",
    spacing=(1.5, 1.5, 1.5),
    window=(-175.0, 250.0),
    modality="CT",
)
"""Of the abdomen, and of head and neck. Chests were seen otherwise: the records whose tags end in `-chest` say how."""
WINDOWS = Windows((96, 96, 96), overlap=0.25)
"""Those of fine-tuning on BTCV."""
