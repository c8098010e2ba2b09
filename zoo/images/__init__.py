"""Turns files into arrays with an affine."""

from zoo.images.affines import MNI152, SCANNER, affine_in
from zoo.images.dicom_files import read_dataset
from zoo.images.dicom_values import AIR
from zoo.images.films import FILM
from zoo.images.finding import find_images, holds_series, names_of
from zoo.images.grids import Grid, check_grid, voxel_sizes
from zoo.images.itk import from_itk, import_itk, to_itk
from zoo.images.kinds import NIFTI, Kind, kind_of
from zoo.images.labels import MOST_CLASSES, read_label_picture, read_labels, write_label_picture, write_labels
from zoo.images.nifti import read_header, read_voxels
from zoo.images.pictures import PIL_FORMATS, is_dicom, pil_pixels, read_dicom, read_picture
from zoo.images.reading import MOST_VOXELS, check_count, refused
from zoo.images.real_numbers import check_array, describe_array, plain_tensor, refuse_gradient
from zoo.images.volumes import SMALLEST_SIDES, Volume, VolumeInput, read_volume, z_score

__all__ = [
    "AIR",
    "FILM",
    "MNI152",
    "MOST_CLASSES",
    "MOST_VOXELS",
    "NIFTI",
    "PIL_FORMATS",
    "SCANNER",
    "SMALLEST_SIDES",
    "Grid",
    "Kind",
    "Volume",
    "VolumeInput",
    "affine_in",
    "check_array",
    "check_count",
    "check_grid",
    "describe_array",
    "find_images",
    "from_itk",
    "holds_series",
    "import_itk",
    "is_dicom",
    "kind_of",
    "names_of",
    "pil_pixels",
    "plain_tensor",
    "read_dataset",
    "read_dicom",
    "read_header",
    "read_label_picture",
    "read_labels",
    "read_picture",
    "read_volume",
    "read_voxels",
    "refuse_gradient",
    "refused",
    "to_itk",
    "voxel_sizes",
    "write_label_picture",
    "write_labels",
    "z_score",
]
