"""Checked input of DrasCLR's embedding: the patches of a patient and their locations in the atlas."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from zoo.entries.drasclr.atlas import load_landmarks, normalise
from zoo.entries.drasclr.data import check_numbers, scale, scale_tensor
from zoo.entries.drasclr.model import check_locations
from zoo.entries.drasclr.patches import SIDES, SUFFIX, facts_file, open_patches, registration_in
from zoo.entry import Parts
from zoo.errors import InputContractError, OptionError
from zoo.messages import first_names

if TYPE_CHECKING:
    from nibabel.spatialimages import SpatialImage

Array: TypeAlias = npt.NDArray[Any]
Patient: TypeAlias = "str | PathLike[str] | SpatialImage | Array | Tensor"

_NO_AIR = -200.0  # HU, as in zoo.transforms.volume: the air around and in every patient lies below


def read_patient(patient: Patient, cache_dir: str | Path | None = None) -> Array:
    """Return the patches (L, 32, 32, 32) of a patient; those of a file are mapped.

    Args:
        patient: Patches, a `.npy` file of them, or a CT, whose patches are cut at the authors' landmarks.
        cache_dir: Cache folder, for the files of the atlas; default `$ZOO_HOME`.

    Raises:
        InputContractError: The patches have another size, or the CT cannot be used.
    """
    if isinstance(patient, (str, PathLike)) and Path(patient).suffix == ".npy":
        return open_patches(Path(patient))
    if isinstance(patient, (np.ndarray, Tensor)):
        patches = patient.detach().cpu().numpy() if isinstance(patient, Tensor) else patient
        if patches.shape[1:] != SIDES or not len(patches):
            raise InputContractError(
                f"patches have the shape {patches.shape}: (L, 32, 32, 32) is expected, one for each landmark. For a CT "
                "give the file, or cut patches with zoo.entries.drasclr.ct.patient.preprocess_ct"
            )
        return patches
    from zoo.entries.drasclr.ct.patient import preprocess_ct

    return preprocess_ct(patient, cache_dir=cache_dir).patches


def registration_of_cases(paths: Iterable[str]) -> dict[str, str]:
    """Return `{"registration": ...}`, that of all cases of which it is known; empty where it is known of none.

    Of files `<sid>_patch.npy` the record beside them says it; CTs will be cut by `read_patient`.

    Raises:
        OptionError: Some were registered one way and some the other. The message names cases of each.
    """
    from zoo.entries.drasclr.ct.registration import choose_engine

    found: dict[str, list[str]] = {}
    for path in map(Path, paths):
        record = facts_file(path.parent, path.name.removesuffix(SUFFIX))
        if path.suffix != ".npy":
            found.setdefault(f"fast by {choose_engine()}", []).append(path.name)
        elif record.is_file():
            found.setdefault(registration_in(record), []).append(path.name)
    if len(found) > 1:
        said = "; ".join(f"{way}: {first_names(names)}" for way, names in sorted(found.items()))
        raise OptionError(
            f"the patients were registered with the atlas in different ways ({said}), and differences between their "
            "features may come from that: embed each way into an output of its own, or cut all of them with one "
            "--registration of zoo.entries.drasclr.preprocess"
        )
    return {"registration": next(iter(found))} if found else {}


@dataclass(frozen=True)
class PatientReader:
    """Makes a patient's patches the input of the network, for `Entry.parts`."""

    cache_dir: str | Path | None = None
    locations: Tensor | None = None
    """Where the patches lie, `(L, 3)` from `locations_of`; None for the authors' landmarks."""
    pooled: bool = True
    """Whether a patient is the mean over the landmarks, not a row for each."""

    def __call__(self, patient: Patient) -> Parts:
        """Return the patches `(L, 1, 32, 32, 32)` in HU and their locations `(L, 3)`, all counting alike.

        Raises:
            InputContractError: As of `read_patient`, or the patches are NaN, not in HU, or of another number.
        """
        locations = locations_of(None, self.cache_dir) if self.locations is None else self.locations
        patches = read_patient(patient, self.cache_dir)
        check_count("the patient", patches, locations)
        kept = np.int16 if np.can_cast(patches.dtype, np.int16) else np.float32
        with named("the patient"):
            check_numbers(patches)
        check_air("the patient", float(patches.min()))
        inputs = torch.from_numpy(np.array(patches, kept)).unsqueeze(1), locations
        count = len(patches)
        weights = torch.full((count,), 1 / count, dtype=torch.float64) if self.pooled else None
        return Parts(inputs, weights, abreast=True, scale=scale_tensor)


def check_count(name: str, patches: Array, locations: Tensor) -> None:
    """Raise `InputContractError` where patches and locations differ in number."""
    if len(patches) != len(locations):
        raise InputContractError(
            f"{name} has {len(patches)} patches, but there are {len(locations)} locations: one patch at each is "
            "expected, cut at the same landmarks"
        )


def check_air(name: str, least: float) -> None:
    """Raise `InputContractError` where the least value of a chest cannot be that of air."""
    if not least <= _NO_AIR:  # NaN is not
        raise InputContractError(
            f"the least value of {name} is {least:g}: HU are expected, not yet scaled, where air is -1000 and water 0"
        )


def scale_of(name: str, patches: Array) -> npt.NDArray[np.float32]:
    """Scale patches as `data.scale` does, with the name in its error."""
    with named(name):
        return scale(patches)


@contextmanager
def named(name: str) -> Iterator[None]:
    """Put the name before the text of an `InputContractError`."""
    try:
        yield
    except InputContractError as error:
        raise InputContractError(f"{name}: {error}") from error


def locations_of(locations: Tensor | Array | None, cache_dir: str | Path | None = None) -> Tensor:
    """Return locations `(L, 3)` as a tensor, by default those of the authors' landmarks.

    Raises:
        InputContractError: They are not a list of floats in [-1, 1].
    """
    if locations is None:
        return torch.from_numpy(normalise(load_landmarks(cache_dir=cache_dir)))
    known = torch.as_tensor(locations).cpu()
    if known.ndim != 2 or not len(known) or not known.is_floating_point():
        raise InputContractError(
            f"locations are {known.dtype} {tuple(known.shape)}: floats (L, 3) in [-1, 1] are expected. "
            "zoo.entries.drasclr.atlas.normalise makes them from the voxel indices of landmarks"
        )
    check_locations(known)
    return known.float()
