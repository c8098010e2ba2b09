"""Input contract of GLCL's networks."""

from zoo.entry import PERCENTILES, Preprocessing

PREPROCESSING = Preprocessing(
    channels=("MRI",),
    size=(192, 192),
    units="any, normalised by the volume",
    orientation="LP",
    spacing=(1.36719, 1.36719),
    normalise=PERCENTILES,
    thickness=(5.0, 10.0),
    modality="MR",
)
"""Slices of a cine MRI, as in ACDC (krishnabits001/domain_specific_cl, experiment_init/init_acdc.py).

The authors turned no axes. ACDC's files have the axes of DICOM, to the left and the back (the script that crops them
writes a matrix with two negative entries), and its slices are 5 to 10 mm apart.
"""
