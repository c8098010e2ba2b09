"""DrasCLR's pre-training data: intensities of patches, their files by landmark, and the data set over them.

Preprocessing leaves one file per subject, `<sid>_patch.npy` (L, 32, 32, 32) in HU, axes (z, y, x). Pre-training takes
one landmark after the other, so it reads one file per landmark, `patch_loc_<i>.npy` (subjects, 32, 32, 32), made by

    python -m zoo.entries.drasclr.data group --patches cohort/patch --out cohort/grouped_patch

which can be stopped and goes on when run again. Both layouts are those of batmanlab/DrasCLR
(`preprocess/4_patchify_images.py`, `5_group_patch.py`).
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from zoo.entries.drasclr.cohort import read_sids
from zoo.entries.drasclr.contract import WINDOW
from zoo.entries.drasclr.patches import group, group_file, grouped_subjects, open_group
from zoo.errors import InputContractError, OptionError
from zoo.training.args import in_new_words, run_command
from zoo.training.data import Key, seed_of

Voxels = npt.NDArray[np.float32]

ORDERS = ("shuffled", "upstream")


def above_window(patches: npt.ArrayLike) -> Voxels:
    """Clip HU to the window and count from its lower end: float32 from 0 to 1264, on which augmentations act.

    Args:
        patches: HU, any shape, any type of real numbers. Integers are widened first, so that none overflows.

    Raises:
        InputContractError: There are NaN or infinite values, or values that are not numbers.
    """
    values = np.asarray(patches)
    check_numbers(values)
    low, high = WINDOW
    return values.astype(np.float32).clip(low, high) - np.float32(low)


def check_numbers(patches: npt.NDArray[Any]) -> None:
    """Raise `InputContractError` where patches have NaN or infinite values, or values that are not numbers."""
    if patches.dtype.kind not in "iuf":
        raise InputContractError(f"patches are {patches.dtype}: real numbers, in HU, are expected")
    if patches.dtype.kind == "f" and not np.isfinite(patches).all():
        raise InputContractError(f"{np.sum(~np.isfinite(patches))} of {patches.size} voxels are NaN or infinite")


def scale(patches: npt.ArrayLike) -> Voxels:
    """Patches in HU as the network takes them: clipped to [-1024, 240], then brought to [-1, 1], float32.

    (x + 1024) / 632 - 1, as in batmanlab/DrasCLR, `data/copd_patch.py`; arguments and errors are those of
    `above_window`.
    """
    scaled: Voxels = _centred(above_window(patches))
    return scaled


def scale_tensor(patches: Tensor) -> Tensor:
    """Do what `scale` does to patches that were checked, wherever they are."""
    low, high = WINDOW
    scaled: Tensor = _centred(patches.float().clamp(low, high) - low)
    return scaled


def _centred(values: Any) -> Any:
    """From the result of `above_window` to [-1, 1]; noise and contrast may exceed that a little, which is kept."""
    low, high = WINDOW
    return values / ((high - low) / 2) - 1


class Patches(Dataset[dict[str, Tensor]]):
    """Pre-training data set: item `(pass, index)` is one subject's patch at one landmark, and those beside it.

    `query` and `key` (1, 32, 32, 32), two views of it; `neighbours` (R, 32, 32, 32), the patches of the same subject at
    the nearest landmarks, changed alike; float32, about [-1, 1]. `location`, the position of the landmark in
    `locations`; `pass`. The index is `location * subjects + subject`, whichever process reads the sample, and whenever.

    Args:
        folder: Folder of `patch_loc_<i>.npy`, mapped: only the patches that are used are read.
        table: (L, R), the nearest landmarks of each, of all landmarks that the folder has.
        locations: Landmarks to train on; None for all.
        augment: From (C, 32, 32, 32) and a source of draws to a changed copy; None for no change.
        order: "shuffled": in each pass the landmarks come in a random order, and at each of them the subjects.
            "upstream": both in their own order, as in the authors' code; a landmark begins with the subject after the
            last one of the landmark before it.
        seed: Draws follow from (seed, pass, index), the order from (seed, pass).

    Raises:
        OptionError: A location is not a landmark or is repeated, or there is no such order.
        InputContractError: Files are missing, or do not hold patches of equally many subjects.
    """

    def __init__(
        self,
        folder: str | Path,
        table: npt.NDArray[np.int64],
        *,
        locations: Sequence[int] | None = None,
        augment: Callable[[Tensor, np.random.RandomState], Tensor] | None = None,
        order: str = "shuffled",
        seed: int = 0,
    ) -> None:
        if order not in ORDERS:
            raise OptionError(f"order must be one of {', '.join(ORDERS)}, not {order!r}")
        self.folder, self.table, self.seed = Path(folder), table, seed
        self.locations = list(range(len(table)) if locations is None else locations)
        self.augment, self.is_shuffled = augment, order == "shuffled"
        wrong = [i for i, times in Counter(self.locations).items() if times > 1 or not 0 <= i < len(table)]
        if wrong or not self.locations:
            raise OptionError(
                f"locations {wrong[:5]}: different landmarks from 0 to {len(table) - 1} are expected, at least one"
            )
        self.subjects = self._count_subjects()

    def __len__(self) -> int:
        return len(self.locations) * self.subjects

    def __getitem__(self, key: Key) -> dict[str, Tensor]:
        data_pass, index = key
        location, subject = divmod(index, self.subjects)
        landmark = self.locations[location]
        own, beside = self._read([landmark], subject), self._read(self.table[landmark], subject)
        views = [own, own, beside]
        if self.augment is not None:
            state = np.random.RandomState(np.random.MT19937(seed_of(self.seed, data_pass, index)))
            views = [self.augment(view, state) for view in views]
        query, other, neighbours = (_centred(view) for view in views)
        numbers = {"location": torch.tensor(location), "pass": torch.tensor(data_pass)}
        return {"query": query, "key": other, "neighbours": neighbours, **numbers}

    def order(self, data_pass: int, step_size: int) -> npt.NDArray[np.int64]:
        """Samples of a pass, step after step: all of a step share one location, as its queue and kernels require.

        At each landmark the subjects that do not fill a step are left out, different ones in each pass.

        Raises:
            OptionError: The subjects do not fill one step.
        """
        kept = self.subjects // step_size * step_size
        if not kept:
            raise OptionError(
                f"{self.subjects} subject(s) in {self.folder} do not fill one step of --batch-size {step_size}: all "
                "samples of a step are at one landmark, one of each subject. Give a smaller --batch-size"
            )
        if not self.is_shuffled:
            samples = np.arange(len(self.locations) * kept)
            return samples // kept * self.subjects + samples % self.subjects
        rng = np.random.default_rng([self.seed, data_pass])
        landmarks = rng.permutation(len(self.locations))
        return np.concatenate([i * self.subjects + rng.permutation(self.subjects)[:kept] for i in landmarks])

    def _read(self, landmarks: Sequence[int] | npt.NDArray[np.int64], subject: int) -> Tensor:
        """Patches (C, 32, 32, 32) of one subject, counted from the window's lower end."""
        patches = [open_group(group_file(self.folder, landmark))[subject] for landmark in landmarks]
        try:
            return torch.from_numpy(np.stack([above_window(patch) for patch in patches]))
        except InputContractError as error:
            names = grouped_subjects(self.folder) or [f"number {i}" for i in range(self.subjects)]
            raise InputContractError(
                f"{self.folder}, subject {names[subject]}, landmarks {[int(i) for i in landmarks]}: {error}"
            ) from error

    def _count_subjects(self) -> int:
        """Number of subjects in the groups, after a check of all files that will be needed."""
        there = sum(1 for _ in self.folder.glob("patch_loc_*.npy"))
        needed = sorted({*self.locations, *self.table[self.locations].ravel().tolist()})
        files = [group_file(self.folder, landmark) for landmark in needed]
        missing = [file.name for file in files if not file.is_file()]
        if missing or there > len(self.table):
            lack = f", and {len(missing)} of {len(files)} needed files are missing: {', '.join(missing[:5])}"
            raise InputContractError(
                f"{self.folder} has patches at {there} landmarks, but {len(self.table)} are expected"
                f"{lack if missing else ''}. Group the patches with 'python -m zoo.entries.drasclr.data group'; for "
                "other landmarks than the authors' give --landmarks"
            )
        counts = {file.name: len(open_group(file)) for file in files}
        if len(set(counts.values())) > 1 or not counts[files[0].name]:
            raise InputContractError(
                f"{self.folder}: equally many subjects are expected in every file, not {sorted(set(counts.values()))}; "
                "remove the folder and group the patches anew"
            )
        return counts[files[0].name]


def main(argv: Sequence[str] | None = None) -> None:
    """Run `group` from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command = parser.add_subparsers(required=True).add_parser(
        "group", help="turn one file per subject into one per landmark"
    )
    command.add_argument("--patches", type=Path, required=True, help="folder of <sid>_patch.npy")
    command.add_argument("--out", type=Path, required=True, help="folder for patch_loc_<i>.npy")
    command.add_argument("--table", type=Path, help="CSV with a column sid, the subjects to take; default: all")
    command.add_argument("--at-once", type=int, default=48, help="files written at the same time")
    args = parser.parse_args(in_new_words(argv, {"--subjects": "--table"}))
    chosen = None if args.table is None else read_sids(args.table)
    group(args.patches, args.out, subjects=chosen, at_once=args.at_once)


if __name__ == "__main__":
    run_command(main)
