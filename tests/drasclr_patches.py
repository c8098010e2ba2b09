"""A cohort of patches that say where they come from, in both layouts."""

import numpy as np

LANDMARKS = np.array([(26, 26, 0), (26, 26, 26), (26, 52, 0), (52, 26, 0), (52, 52, 26)])
"""Five corners of a grid of 26, with ties among the distances."""
TABLE = np.array([[1, 2], [0, 2], [0, 1], [0, 1], [1, 2]])
"""By hand: the two nearest of each, the smaller index first."""


def told(landmark, subject):
    """HU of a voxel: both can be read off it after scaling."""
    return -1000 + 100 * landmark + subject


def origin(values):
    """From scaled voxels back to (landmark, subject)."""
    return divmod(np.rint((np.asarray(values) + 1) * 632 - 1024 + 1000).astype(int), 100)


def write_subjects(folder, subjects=6, *, textured=False):
    """Files `s<i>_patch.npy` of constant patches, or of random ones."""
    folder.mkdir(parents=True)
    for subject in range(subjects):
        patches = np.empty((len(LANDMARKS), 32, 32, 32), dtype=np.int16)
        for landmark in range(len(LANDMARKS)):
            patches[landmark] = told(landmark, subject)
        if textured:
            patches += np.random.default_rng(subject).integers(-300, 300, patches.shape, dtype=np.int16)
        np.save(folder / f"s{subject}_patch.npy", patches)
    return folder
