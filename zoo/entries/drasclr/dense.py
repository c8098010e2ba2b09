r"""Map emphysema by sliding DrasCLR's encoder over volumes, with a linear probe fitted on marked volumes.

    python -m zoo.entries.drasclr.preprocess --table subjects.csv --out cohort --keep-volumes
    python -m zoo.entries.drasclr.dense --volumes cohort/volume --masks cohort/lungs --places cohort/patch_loc \
        --truth marked --out maps
    python -m zoo.entries.drasclr.dense --volumes phantom/volume --truth phantom/truth \
        --landmarks phantom/landmarks.npy --checkpoint runs/drasclr/last.pt --out maps

Volumes are `<sid>.npy` (D, H, W) in HU at 1 mm, axes (z, y, x): the CTs that preprocessing keeps, with the places of
their patches (--places), which lead to the atlas; or, without --places, volumes in the atlas' grid, as those of
`zoo.entries.drasclr.phantom`. A truth has the voxels of its volume; the matrix `grid.affine` of `facts/<sid>.json`
leads from these (x, y, z) to mm.

Every cell of some voxels gets the feature of the patch around it, at the patch's place in the atlas; from this a
logistic regression tells which share of the cell is emphysema. A marked volume is mapped by a probe fitted on the other
marked ones, so at least three are needed; a volume without a truth by a probe fitted on all. The paper shows dense
maps, but the authors' code makes none: this protocol is the zoo's own.

Files in OUT: `<sid>_map.npy` float16 (D, H, W), from 0 to 1; `probe.npz`, of all marked volumes; `results.json`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from tqdm import tqdm

from zoo.entries.drasclr.atlas import PATCH, normalise
from zoo.entries.drasclr.contract import WINDOW
from zoo.entries.drasclr.embed import NetworkArgs, load_encoder
from zoo.entries.drasclr.inputs import check_air, scale_of
from zoo.entries.drasclr.maps.cells import Floats, Indices, lay_cells, shares, spread
from zoo.entries.drasclr.maps.probe import Marked, fit_probe
from zoo.errors import InputContractError, OptionError
from zoo.training import distributed
from zoo.training.args import arg, parse_args, run_command
from zoo.training.arrays import read_numbers, save_array
from zoo.training.evaluate import judging
from zoo.training.finetune import origin_of, write_results
from zoo.training.metrics import Results, dice, summarise

SIDE = 8
"""Side of a cell, in voxels of 1 mm."""
_FEWEST = 3


@dataclass(kw_only=True)
class Args(NetworkArgs):
    """Arguments of the maps of a folder of volumes."""

    volumes: str = arg("folder of <sid>.npy (D, H, W), HU at 1 mm, axes (z, y, x)")
    truth: str = arg("folder of <sid>.npy (D, H, W), not 0 in emphysema; at least three")
    out: str = arg("folder for maps, probe and results")
    masks: str = arg("folder of <sid>.npy (D, H, W), not 0 in the lungs; empty: all of a volume is mapped", "")
    places: str = arg("folder of <sid>_patch_loc.npy; empty: the volumes lie in the atlas' grid", "")
    side: int = arg("side of a cell of the map, in voxels", SIDE)
    batch_size: int = arg("patches at once", 16)

    def check(self) -> None:
        """Raise `OptionError` for values that are wrong."""
        super().check()
        if min(self.side, self.batch_size) < 1:
            raise OptionError(f"--side {self.side} --batch-size {self.batch_size}: at least 1 is expected of both")


@dataclass(frozen=True, eq=False)
class Chest:
    """One volume, divided into cells."""

    sid: str
    shape: tuple[int, ...]
    mask: npt.NDArray[Any] | None
    truth: npt.NDArray[Any] | None
    cells: Indices
    features: Floats
    """(P, 128)."""


def main(argv: Sequence[str] | None = None) -> Results:
    """Map all volumes; write and print the results, with Dice where there is a truth."""
    args = parse_args(Args, argv, __doc__)
    processes = distributed.start(args.device)
    model, landmarks = load_encoder(args, processes.device)
    chests = read_chests(args, model, landmarks)
    out = Path(args.out)
    marked: dict[str, Marked] = {
        chest.sid: (chest.features, *shares(chest.truth, chest.cells, args.side, chest.mask))
        for chest in chests
        if chest.truth is not None
    }
    everyone = fit_probe(list(marked.values()))
    found: dict[str, Results] = {}
    for chest in chests:
        rest = [parts for sid, parts in marked.items() if sid != chest.sid]
        probe = fit_probe(rest) if chest.sid in marked else everyone
        mapped = spread(probe(chest.features), chest.cells, chest.shape, args.side, chest.mask)
        save_array(out / f"{chest.sid}_map.npy", mapped.astype(np.float16))
        found[chest.sid] = judge(mapped, probe.threshold, chest.truth)
    known = [{"dice": result["dice"]} for result in found.values() if "dice" in result]
    results: Results = {"dice": summarise(known)["dice"] | {"volumes": len(known)}, "volumes": found}
    results |= {"threshold": everyone.threshold, **origin_of(model), "arguments": asdict(args)}
    everyone.save(out / "probe.npz")
    write_results(results, out, hint="")
    distributed.stop()
    return results


def read_chests(args: Args, model: nn.Module, landmarks: npt.NDArray[np.int64]) -> list[Chest]:
    """Read and embed all volumes of a folder.

    Raises:
        OptionError: There are no volumes, or fewer than three with emphysema in their truth.
        InputContractError: A file does not fit its volume. The message names the subject.
    """
    files = sorted(Path(args.volumes).glob("*.npy"))
    names = {file.stem for file in files}
    truths = {file.stem: file for file in Path(args.truth).glob("*.npy") if file.stem in names}
    if (with_some := sum(bool((read_numbers(file) > 0).any()) for file in truths.values())) < _FEWEST:
        raise OptionError(
            f"{len(files)} volumes in {args.volumes}, of which {len(truths)} have a truth of the same name in "
            f"{args.truth}, and {with_some} any emphysema in it: at least {_FEWEST} are needed, for each is mapped by "
            "a probe of the others"
        )
    chests = []
    for file in tqdm(files, desc="volumes", disable=None):
        volume = read_numbers(file)
        mask = read_numbers(Path(args.masks) / file.name, volume.shape) if args.masks else None
        truth = read_numbers(truths[file.stem], volume.shape) if file.stem in truths else None
        to_atlas = None
        if args.places:
            indices = read_numbers(Path(args.places) / f"{file.stem}_patch_loc.npy", landmarks.shape)
            to_atlas = way_to_atlas(indices, landmarks)
        cells = lay_cells(volume.shape, args.side, mask)
        places = locate_cells(cells, args.side, landmarks, to_atlas)
        features = embed_cells(
            model, volume, cells, places, side=args.side, batch_size=args.batch_size, name=f"subject {file.stem}"
        )
        chests.append(Chest(file.stem, volume.shape, mask, truth, cells, features.double().numpy()))
    return chests


def embed_cells(
    model: nn.Module,
    volume: npt.NDArray[Any],
    cells: Indices,
    locations: Tensor,
    *,
    side: int = SIDE,
    batch_size: int = 16,
    name: str = "the volume",
) -> Tensor:
    """Return the features of the patches around cells, `(P, 128)` float32 on the CPU.

    At most a batch of patches is held beside the volume, which continues beyond its edges with -1024.

    Args:
        model: DrasCLR's encoder, on any device. It is in eval mode meanwhile.
        volume: (D, H, W) in HU at 1 mm, axes (z, y, x) in the atlas' directions.
        cells: `(P, 3)` of `maps.cells.lay_cells`.
        locations: `(P, 3)` of `locate_cells`.
        side: Of a cell, in voxels.
        batch_size: Patches at once.
        name: Name of the volume in messages.

    Raises:
        InputContractError: The volume is not in HU, or has NaN.
    """
    if volume.ndim != 3 or volume.dtype.kind not in "iuf":
        raise InputContractError(f"{name} is {volume.dtype} {volume.shape}: real numbers (D, H, W) in HU are expected")
    check_air(name, float(volume.min()))
    half, device = PATCH // 2, next(model.parameters()).device
    padded = np.pad(volume, (half, half + side), constant_values=WINDOW[0])
    features = []
    with judging(model):
        for first in range(0, len(cells), batch_size):
            corners = cells[first : first + batch_size] * side + side // 2
            patches = np.stack([padded[z : z + PATCH, y : y + PATCH, x : x + PATCH] for z, y, x in corners])
            batch = torch.from_numpy(scale_of(name, patches)).unsqueeze(1).to(device)
            features.append(model(batch, locations[first : first + batch_size].to(device)).float().cpu())
    return torch.cat(features)


def locate_cells(cells: Indices, side: int, landmarks: npt.NDArray[np.int64], to_atlas: Floats | None = None) -> Tensor:
    """Return the locations `(P, 3)` of the patches around cells: their lower corners in the atlas, scaled as landmarks.

    Places beyond the outermost landmarks, which the network has never seen, are moved to the nearest known ones.

    Args:
        cells: `(P, 3)` of `maps.cells.lay_cells`.
        side: Of a cell, in voxels.
        landmarks: `(L, 3)` of the atlas.
        to_atlas: `(4, 4)` of `way_to_atlas`; None if the volume lies in the atlas' grid.
    """
    corners = (cells[:, ::-1] * side + (side - PATCH) / 2).astype(np.float64)
    if to_atlas is not None:
        corners = corners @ to_atlas[:3, :3].T + to_atlas[:3, 3]
    known = np.clip(corners, 0, landmarks.max(axis=0))
    return torch.from_numpy(normalise(np.concatenate([landmarks, known]))[len(landmarks) :])


def way_to_atlas(indices: npt.NDArray[Any], landmarks: npt.NDArray[np.int64]) -> Floats:
    """Return the affine map `(4, 4)` from voxels (x, y, z) of a patient's volume to those of the atlas.

    Found by least squares over all landmarks, since the place of each is rounded to a voxel.

    Args:
        indices: `(L, 3)`, first voxels of the landmarks' patches in the volume, from `preprocess_ct`.
        landmarks: `(L, 3)` of the atlas.

    Raises:
        InputContractError: The map misses a landmark by more than 2 voxels, so both are not of one atlas.
    """
    points = np.column_stack([indices, np.ones(len(indices))])
    found, *_ = np.linalg.lstsq(points, landmarks.astype(np.float64), rcond=None)
    missed = float(np.abs(points @ found - landmarks).max())
    if missed > 2:
        raise InputContractError(
            "no affine map leads from the places of the patches to the landmarks: the best misses one by "
            f"{missed:.0f} voxels. Give the landmarks at which the patches were cut"
        )
    return np.vstack([found.T, [0.0, 0.0, 0.0, 1.0]])


def judge(mapped: npt.NDArray[np.float32], threshold: float, truth: npt.NDArray[Any] | None) -> Results:
    """Count the voxels found, and compute Dice where the truth has emphysema."""
    chosen = mapped >= threshold
    if truth is None:
        return {"map_voxels": int(np.count_nonzero(chosen))}
    marked = truth > 0
    sizes = torch.tensor([int(np.count_nonzero(mask)) for mask in (chosen & marked, chosen, marked)])
    _, map_voxels, truth_voxels = sizes.tolist()
    found: Results = {"map_voxels": map_voxels, "truth_voxels": truth_voxels}
    return found | ({"dice": dice(sizes.double()).item()} if truth_voxels else {})


if __name__ == "__main__":
    run_command(main)
