"""Embed patients with DrasCLR: features (581, 128), one row for each landmark, and their mean.

    python -m zoo.entries.drasclr.embed --patches cohort/patch --out features.parquet
    torchrun --nproc-per-node 4 -m zoo.entries.drasclr.embed --patches cohort/patch --out features.npz --full rows

The command can be stopped and run again, also for added subjects: those in OUT are left alone. What cannot be embedded
is named at the end, with all others in OUT. In a SLURM array, too, each process takes a share. OUT has a row for each
subject, the mean over the landmarks; with `--full` a folder has all rows of each. The mean is this zoo's choice: the
authors' code ends with the rows (batmanlab/DrasCLR, `extract_feature.py`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

import zoo
import zoo.embedding
from zoo.checkpoint import ATTRIBUTE, unwrap
from zoo.commands.printing import raise_for_failed
from zoo.embedding import Cases, Embedder
from zoo.entries.drasclr.atlas import load_landmarks, normalise
from zoo.entries.drasclr.cohort import read_sids
from zoo.entries.drasclr.contract import NAME
from zoo.entries.drasclr.features import check_suffix, finished, join_parts, parts_of
from zoo.entries.drasclr.inputs import Array, Patient, PatientReader, locations_of
from zoo.entries.drasclr.patches import SUFFIX, choose_subjects, registration_of
from zoo.errors import OptionError
from zoo.provenance import values_digest
from zoo.registry import get_entry
from zoo.training import distributed
from zoo.training.args import arg, parse_args, run_command
from zoo.training.evaluate import judging
from zoo.training.finetune import origin_of


@dataclass(kw_only=True)
class NetworkArgs:
    """Arguments for the network and its device."""

    model: str = arg("model to embed with, with or without a tag", NAME)
    checkpoint: str = arg("file to take instead of the model's own weights", "")
    landmarks: str = arg("landmarks (.npy) that the patches were cut at; empty for the authors', which are fetched", "")
    device: str = arg("cpu, cuda or auto", "auto")

    def check(self) -> None:
        """Raise `OptionError` for values that are wrong."""
        if get_entry(self.model).name != NAME:
            raise OptionError(f"--model {self.model}: expected {NAME} or {NAME}.TAG")


@dataclass(kw_only=True)
class Args(NetworkArgs):
    """Arguments for a cohort's features."""

    patches: str = arg("folder of <sid>_patch.npy")
    out: str = arg("file to write, .parquet or .npz")
    table: str = arg("CSV with a column sid, the subjects to take; empty for all", "", was="subjects")
    full: str = arg("folder for <sid>_features.npy, the features at each landmark; empty for none", "")
    block: int = arg("subjects that the network takes at once, one landmark after the other", 8)


def main(argv: Sequence[str] | None = None) -> Path:
    """Embed a cohort; returns the file."""
    args = parse_args(Args, argv, __doc__)
    processes = distributed.start(args.device)
    model, landmarks = load_encoder(args, processes.device)
    out = embed_cohort(
        model,
        args.patches,
        args.out,
        subjects=read_sids(Path(args.table)) if args.table else None,
        locations=normalise(landmarks),
        full=args.full or None,
        block=args.block,
    )
    distributed.stop()
    return out


def load_encoder(args: NetworkArgs, device: torch.device) -> tuple[nn.Module, npt.NDArray[np.int64]]:
    """The network that arguments ask for, and the landmarks `(L, 3)`."""
    model = zoo.load_model(args.model, checkpoint=args.checkpoint or None, num_classes=0, device=device)
    return model, load_landmarks(args.landmarks or None)


def embed_patient(
    model: nn.Module,
    patient: Patient,
    locations: Tensor | Array | None = None,
    *,
    batch_size: int = 16,
    cache_dir: str | Path | None = None,
) -> Tensor:
    """Return the features of one patient's patches, `(L, 128)` float32 on the CPU, a row for each location.

    Args:
        model: DrasCLR's encoder, on any device. It is in eval mode meanwhile.
        patient: Patches `(L, 32, 32, 32)` in HU, axes (z, y, x), any type of real numbers; the path of a `.npy` file of
            them; or a CT: the path of a NIfTI file or of a folder with a DICOM series, or a nibabel image. From a CT
            the patches are cut at the authors' landmarks, by the fast registration; `ct.patient.preprocess_ct` offers
            more choices.
        locations: Where the patches lie in the atlas, `(L, 3)` in [-1, 1], from `atlas.normalise`; None for the
            authors' 581 landmarks.
        batch_size: Patches at once. On a CPU about 16 is fastest.
        cache_dir: Cache folder, for the authors' landmarks and mask; default `$ZOO_HOME`.

    Raises:
        InputContractError: The patches are of another number or size, NaN, or not in HU; the locations are outside [-1,
            1]; or `preprocess_ct` refuses the CT.
    """
    embedder = PatientEmbedder(model, locations_of(locations, cache_dir), batch_size, cache_dir=cache_dir)
    with judging(model):
        return torch.from_numpy(embedder.embed_image(patient))


def pool(features: Tensor) -> Tensor:
    """Return the mean over the landmarks: `(..., 128)` of `(..., L, 128)`."""
    return features.mean(dim=-2)


def embed_cohort(
    model: nn.Module,
    patches: str | Path,
    out: str | Path,
    *,
    subjects: Sequence[str] | None = None,
    locations: Tensor | Array | None = None,
    full: str | Path | None = None,
    block: int = 8,
) -> Path:
    """Write the pooled features of a cohort, one row per subject, sorted by subject.

    Subjects that are already in OUT stay as they are; one that cannot be embedded is left out and named at the end.
    Under `torchrun`, and in a SLURM array, each process takes its share; all must see the same folders. Until the end
    the rows lie in `OUT.parts`, a folder as `zoo embed` writes it, 0.3 MB a subject.

    Args:
        model: DrasCLR's encoder, on any device. It is in eval mode meanwhile.
        patches: Folder of `<sid>_patch.npy` (L, 32, 32, 32) in HU.
        out: File to write or to add to, `.parquet` or `.npz`; `features.read_subject_features` reads it.
        subjects: Subjects to take; None for all that have a file.
        locations: `(L, 3)` in [-1, 1], as for `embed_patient`.
        full: Folder for `<sid>_features.npy` (L, 128) float32; None for none.
        block: Subjects at once. Patches at one landmark share their kernels; on a CPU eight at a time are fastest. A
            subject's patches take 38 MB twice.

    Returns:
        OUT. Of several processes the last one writes it.

    Raises:
        OptionError: There are no subjects, one is repeated, or OUT has features of other weights, other locations or
            another registration; another run writes to it, or pyarrow is not installed.
        InputContractError: A subject's file is missing; or `embed_patient` would refuse some, and all others are in
            OUT. The message names them.
    """
    patches, out, rows = Path(patches), Path(out), None if full is None else Path(full)
    check_suffix(out)
    if block < 1:
        raise OptionError(f"block={block}: at least 1 subject at once is expected")
    known = locations_of(locations)
    chosen = choose_subjects(patches, subjects)
    facts = describe(model, known) | registration_of(patches, chosen)
    left = sorted(set(chosen) - finished(out, facts, rows))
    cases = Cases(left, [str(patches / f"{sid}{SUFFIX}") for sid in left], {}, None)
    if left or parts_of(out).exists():
        with judging(model):
            embedder = PatientEmbedder(model, known, block, facts=facts)
            done = zoo.embedding.embed_cohort(embedder, cases, parts_of(out), workers=0, retry_failed=True)
        distributed.barrier()  # so that OUT is there when any process of torchrun returns
        join_parts(out, rows, facts)
        distributed.barrier()
        raise_for_failed(done.failed.values(), "subject(s) have no features; the same command tries them again")
    return out


class PatientEmbedder(Embedder):
    """The embedder of a network that is loaded: a case is a patient, with a row for each landmark.

    Args:
        model: DrasCLR's encoder, in eval mode.
        locations: `(L, 3)`, from `inputs.locations_of`.
        batch_size: Patches at once, and patients of one unit.
        facts: What the features depend on; only a folder of features needs them.
        cache_dir: Cache folder, for the authors' lung mask, with which a CT is cut.
    """

    rows_of = "patch"

    def __init__(
        self,
        model: nn.Module,
        locations: Tensor,
        batch_size: int,
        *,
        facts: Mapping[str, Any] | None = None,
        cache_dir: str | Path | None = None,
    ) -> None:
        super().__init__(NAME, device=next(model.parameters()).device, batch_size=batch_size, cache_dir=cache_dir)
        self.network, self.locations, self._facts = model, locations, dict(facts or {})

    @property
    def reader(self) -> PatientReader:
        """What makes parts of a patient."""
        return PatientReader(self.cache_dir, self.locations, pooled=False)

    def facts(self) -> dict[str, Any]:
        """Return those that were given."""
        return {"model": NAME, **self._facts}

    def preparation(self, cases: Cases) -> dict[str, Any]:
        """Return nothing: registrations are among the facts, and several are warned of, not refused."""
        return {}

    def units(self, cases: Sequence[int]) -> list[Sequence[int]]:
        """Divide patients into blocks, in which patches at one landmark share their kernels."""
        return [cases[first : first + self.batch_size] for first in range(0, len(cases), self.batch_size)]


def describe(model: nn.Module, locations: Tensor) -> dict[str, Any]:
    """Facts of features at these locations: digests of weights and locations, and the weights' origin if known."""
    origin = origin_of(model) if hasattr(unwrap(model), ATTRIBUTE) else {}
    digest_of_locations = hashlib.sha256(locations.numpy().tobytes()).hexdigest()
    return {"origin": origin, "weights": values_digest(model), "locations": digest_of_locations}


if __name__ == "__main__":
    run_command(main)
