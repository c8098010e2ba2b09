"""Input of RAD-DINO, as the processor beside its weights states it."""

from zoo.entry import BICUBIC, MIN_MAX, Preprocessing

PREPROCESSING = Preprocessing(
    channels=("grey", "grey", "grey"),
    size=(518, 518),
    resize=518,
    interpolation=BICUBIC,
    units="fraction of the film's own range",
    mean=(0.5307, 0.5307, 0.5307),
    std=(0.2583, 0.2583, 0.2583),
    normalise=MIN_MAX,
    modality="CR",
)
"""Mean and deviation are those of MIMIC-CXR. Films that were DICOM were scaled by their least and largest value before
they were stored in 8 bits."""
