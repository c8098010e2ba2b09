"""Turns arrays into the input that a network was trained on."""

from zoo.transforms.crops import CropTransform
from zoo.transforms.grey_matter import GREY_MATTER
from zoo.transforms.greys import SMALLEST_SIDE, ImageInput
from zoo.transforms.grid import check_right_angles, reorient, resample, warn_of_spacing
from zoo.transforms.hounsfield import HOUNSFIELD
from zoo.transforms.image import ImageTransform, build_transform
from zoo.transforms.kinds import check_labels, intent_name
from zoo.transforms.placing import place_labels, place_volume, put_back
from zoo.transforms.slices import (
    HIGH,
    LOW,
    SliceTransform,
    build_slice_transform,
    crop_or_pad,
    normalise_percentiles,
    resample_in_plane,
)
from zoo.transforms.stacks import check_stack, turn_slices
from zoo.transforms.volume import VolumeTransform, admit, build_volume_transform, read_input

__all__ = [
    "GREY_MATTER",
    "HIGH",
    "HOUNSFIELD",
    "LOW",
    "SMALLEST_SIDE",
    "CropTransform",
    "ImageInput",
    "ImageTransform",
    "SliceTransform",
    "VolumeTransform",
    "admit",
    "build_slice_transform",
    "build_transform",
    "build_volume_transform",
    "check_labels",
    "check_right_angles",
    "check_stack",
    "crop_or_pad",
    "intent_name",
    "normalise_percentiles",
    "place_labels",
    "place_volume",
    "put_back",
    "read_input",
    "reorient",
    "resample",
    "resample_in_plane",
    "turn_slices",
    "warn_of_spacing",
]
