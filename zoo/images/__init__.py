"""Turns files into arrays with an affine."""

from zoo.images.dicom_files import read_dataset
from zoo.images.dicom_values import AIR
from zoo.images.films import FILM
from zoo.images.finding import find_images
from zoo.images.nifti import read_header, read_voxels
from zoo.images.pictures import PIL_FORMATS, is_dicom, pil_pixels, read_dicom, read_picture
from zoo.images.reading import MOST_VOXELS, check_count, refused
from zoo.images.real_numbers import check_array, name_of, plain_tensor
from zoo.images.volumes import MNI152, SCANNER, SMALLEST_SIDES, Volume, VolumeInput, read_volume, voxel_sizes, z_score

__all__ = [
    "AIR",
    "FILM",
    "MNI152",
    "MOST_VOXELS",
    "PIL_FORMATS",
    "SCANNER",
    "SMALLEST_SIDES",
    "Volume",
    "VolumeInput",
    "check_array",
    "check_count",
    "find_images",
    "is_dicom",
    "name_of",
    "pil_pixels",
    "plain_tensor",
    "read_dataset",
    "read_dicom",
    "read_header",
    "read_picture",
    "read_volume",
    "read_voxels",
    "refused",
    "voxel_sizes",
    "z_score",
]
