"""The five steps of DrasCLR's authors from a chest CT to its patches at the atlas' landmarks.

The lungs are segmented (lungmask), an affine map brings the atlas' lungs onto them and moves the landmarks, the CT is
resampled to 1 mm, and boxes of 32 voxels are cut along its axes: batmanlab/DrasCLR, preprocess/. The map is found in
coarse voxels, unless the masks are to be registered as they are.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from nibabel.nifti1 import Nifti1Image

import zoo
from zoo.entries.drasclr import atlas
from zoo.entries.drasclr.ct.boxes import ANCHORS, check_atlas, cut, locate
from zoo.entries.drasclr.ct.lung_masks import LUNGS, Labels, check_lungs, place_lungs, read_lungs
from zoo.entries.drasclr.ct.lungs import choose_segmenter, segment
from zoo.entries.drasclr.ct.registration import Affine, check_overlap, choose_engine, overlap, register
from zoo.entries.drasclr.ct.scan import PAD, import_itk, place_scan, to_millimetres
from zoo.errors import OptionError
from zoo.images import VolumeInput, read_volume, voxel_sizes


@dataclass(frozen=True, eq=False)
class PatientPatches:
    """The network's input from one patient."""

    patches: npt.NDArray[np.int16]
    """`(L, 32, 32, 32)` HU from -1024 to 240, axes (z, y, x), in the order of the landmarks."""
    indices: npt.NDArray[np.int64]
    """`(L, 3)`, lower corners (x, y, z) in the CT at 1 mm with 60 voxels around it."""
    affine: Affine
    """From points of the atlas to the patient's."""
    facts: dict[str, Any]
    """Record of the steps, as JSON can hold it."""
    volume: npt.NDArray[np.int16] | None = None
    """`(D, H, W)`, the CT that the patches were cut from, on request: HU at 1 mm, axes (z, y, x)."""
    lungs: Labels | None = None
    """`(D, H, W)`, its lungs: 1 the right, 2 the left."""


def preprocess_ct(
    image: VolumeInput,
    *,
    landmarks: npt.NDArray[np.int64] | None = None,
    atlas_mask: Nifti1Image | None = None,
    lung_mask: VolumeInput | None = None,
    segmenter: str = "auto",
    registration: str = "fast",
    engine: str = "auto",
    anchor: str = "corner",
    keep_volume: bool = False,
    cache_dir: str | Path | None = None,
) -> PatientPatches:
    """Cut a CT into the patches of the atlas' landmarks.

    Args:
        image: A CT in HU of both lungs, voxels of at most 5 mm, axes in any order: a path to NIfTI, a folder with one
            DICOM series, or a nibabel image.
        landmarks: `(L, 3)`, lower corners (x, y, z) in the atlas; None for the authors' 581.
        atlas_mask: The lungs of the atlas, see `atlas.atlas_mask`; None for the authors'.
        lung_mask: The lungs of the patient, see `lung_masks.read_lungs`; None to segment them.
        segmenter: "lungmask" as the authors, "threshold", or "auto", see `lungs.choose_segmenter`.
        registration: "fast", or "published" for the authors' schedule, which takes some 25 minutes of a processor.
        engine: Of the published registration "antspyx" as the authors, or "simpleitk"; of the fast one "simpleitk";
            or "auto", see `registration.choose_engine`.
        anchor: Point of a box that is mapped: "corner", its lower corner, as the authors and the published weights have
            it; or "centre", which differs where the map scales or turns.
        keep_volume: Return the CT at 1 mm and its lungs too, which take some 300 MB.
        cache_dir: Cache folder, for the files of the atlas; default `$ZOO_HOME`.

    Raises:
        InputContractError: The image is not a CT in HU, misses a lung, does not fit the atlas, or ends too far from a
            landmark; the mask does not fit the image; or the landmarks do not fit the atlas.
        OptionError: There is no such segmenter, registration, engine or anchor, or it is not installed.
        OfflineError: A file must be fetched and connections are forbidden; `DownloadError` if no source gave it.
        FileNotFoundError: A path does not exist.
    """
    if anchor not in ANCHORS:
        raise OptionError(f"anchor must be one of {', '.join(ANCHORS)}, not {anchor!r}")
    import_itk()  # raises before minutes are spent
    engine = choose_engine(engine, registration)
    landmarks = atlas.load_landmarks(cache_dir=cache_dir) if landmarks is None else landmarks
    fixed = atlas.atlas_mask(cache_dir=cache_dir) if atlas_mask is None else atlas_mask
    check_atlas(landmarks, fixed)
    volume = read_volume(image)
    scan = place_scan(volume, fixed.affine)
    segmentation = "given" if lung_mask is not None else choose_segmenter(segmenter)
    lungs = segment(scan, segmentation) if lung_mask is None else read_lungs(read_volume(lung_mask), volume)
    millilitres = check_lungs(lungs, scan.source)
    moving = Nifti1Image(np.array([0, *LUNGS], np.int16)[np.asarray(lungs.dataobj)], lungs.affine)
    affine = register(fixed, moving, engine, registration=registration)
    fit = overlap(fixed, moving, affine)
    check_overlap(fit, scan.source)
    grid = to_millimetres(scan)
    indices = locate(landmarks, fixed.affine, affine, grid, anchor)
    facts = {
        "image": scan.source,
        "voxels": list(scan.values.shape),
        "spacing": voxel_sizes(scan.affine).round(6).tolist(),
        "segmentation": segmentation,
        "lungs_ml": {name: round(value, 1) for name, value in millilitres.items()},
        "registration": registration,
        "engine": affine.engine,
        "atlas_to_patient": affine.matrix.tolist(),
        "overlap": fit,
        "anchor": anchor,
        "landmarks": digest(landmarks),
        "grid": {"voxels": list(grid.values.shape), "padding": PAD, "affine": grid.affine.tolist()},
        "versions": _versions(affine.engine, segmentation),
    }
    found = PatientPatches(cut(grid, indices), indices, affine, facts)
    return replace(found, volume=grid.values.T, lungs=place_lungs(lungs, grid).T) if keep_volume else found


def digest(landmarks: npt.NDArray[np.int64]) -> str:
    """Return a digest of landmarks: the sha256 of their numbers."""
    return hashlib.sha256(np.ascontiguousarray(landmarks, dtype="<i8").tobytes()).hexdigest()


def _versions(*used: str) -> dict[str, str]:
    packages = sorted({"simpleitk", *used} - {"given", "threshold"})
    return {"medssl-zoo": zoo.__version__} | {name: version(name) for name in packages}
