"""Stores what `zoo selftest` compares with: `python benchmarks/selftest_values.py [NAME...]`, without names for all.

Every network runs on a CPU in float32, with one thread, in the configurations that a record has and in those of `MORE`.
A line of each says how long it took, and how far it is from what was stored before. Run it where the parity tests pass:
what it stores is right because they hold these networks against the authors' own code.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from measuring import machine

from zoo.files import write_text
from zoo.registry import get_entry, list_models
from zoo.selftest import VALUES, Case, Stage, cases_due, compare, measure_case, stored_cases, versions

_SWIN = ((1, 1, 64, 32, 32),)
_SWIN_UNETR = ((1, 1, 64, 64, 32),)
"""Its norm over the last map would turn on the rounding of two voxels' difference; of four it hardly does."""
INPUTS: dict[str, tuple[tuple[int, ...], ...]] = {
    "caid-resnet50": ((2, 3, 64, 96),),
    "caid-resnet50-unet": ((2, 3, 64, 96),),
    "yaware-densenet121": ((2, 1, 61, 64, 61),),
    "drasclr-cnn3d": ((2, 1, 32, 32, 32), (2, 3)),
    "monai-ssl-vitb16": ((1, 1, 96, 96, 96),),
    "monai-ssl-vitautoenc": ((1, 1, 96, 96, 96),),
    "monai-ssl-unetr": ((1, 1, 96, 96, 96),),
    "monai-ssl-swinunetr": _SWIN_UNETR,
    "monai-ssl-swinvit": _SWIN,
    "glcl-encoder": ((2, 1, 64, 96),),
    "glcl-unet": ((2, 1, 64, 96),),
    "rad-dino-vitb14": ((2, 3, 56, 42),),
    "ct-fm-segresenc": ((2, 1, 32, 24, 40),),
    "ct-fm-segresnet": ((2, 1, 32, 48, 32),),
    "voco-swinvit-b": _SWIN,
    "voco-swinvit-l": _SWIN,
    "voco-swinvit-h": _SWIN,
    "voco-swinunetr-b": _SWIN_UNETR,
    "voco-swinunetr-l": _SWIN_UNETR,
    "voco-swinunetr-h": _SWIN_UNETR,
    "genesis-encoder": ((2, 1, 16, 24, 32),),
    "genesis-unet3d": ((2, 1, 16, 24, 32),),
    "anatomix-unet": ((1, 1, 64, 64, 64),),
    "brainiac-vitb16": ((1, 1, 96, 96, 96),),
    "brainiac-resnet50": ((2, 1, 64, 40, 33),),
    "fmcib-resnet50": ((2, 1, 64, 40, 33),),
}
"""Shapes of what each network is given: as small as every stage allows, of unlike sides where they may differ, and two
images where that takes little, for a network must not mix them."""
MORE: dict[str, tuple[dict[str, Any], ...]] = {
    "monai-ssl-swinunetr": ({"merging": "complete"},),
    "monai-ssl-swinvit": ({"merging": "complete"},),
    "voco-swinvit-b": ({"merging": "complete"}, {"embedding": "authors"}),
    "voco-swinunetr-b": ({"merging": "complete"},),
    "genesis-encoder": ({"norm": "batch"},),
    "genesis-unet3d": ({"norm": "batch"},),
    "brainiac-vitb16": ({"pooling": "mean"},),
}
"""Options that no record has and that make another function of the same tensors."""
DIGITS = 7


def main() -> None:
    """Run the cases, and store what came."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    args = parser.parse_args()
    torch.set_num_threads(1)
    wanted = [get_entry(name).name for name in args.names] or list_models()
    stored = list(stored_cases()) if VALUES.is_file() else []
    fresh = [measured(case, stored) for name in wanted for case in due(name)]
    kept = [case for case in stored if case.model not in wanted]
    write(sorted(kept + fresh, key=lambda case: list_models().index(case.model)))
    print(f"{VALUES}: {VALUES.stat().st_size / 1e3:.0f} kB, {len(fresh)} cases stored, {len(kept)} kept")


def due(name: str) -> list[Case]:
    """The cases of a model, without values."""
    if name not in INPUTS:
        raise SystemExit(f"what {name} is to be given is not known: add the shape to INPUTS in {Path(__file__).name}")
    return cases_due(name, INPUTS[name], MORE.get(name, ()))


def measured(case: Case, stored: Sequence[Case]) -> Case:
    """A case with its values; says how long it took, and how far they are from those that were stored."""
    began = time.perf_counter()
    done = replace(case, stages=tuple(rounded(stage) for stage in measure_case(case, torch.device("cpu"))))
    seconds = time.perf_counter() - began
    before = [old for old in stored if replace(old, stages=()) == case]
    said = distance(before[0], done) if before else "new"
    print(f"{seconds:6.1f} s  {case.name}, {case.what}: {said}", flush=True)
    return done


def distance(old: Case, new: Case) -> str:
    """How far the values of a case are from other ones."""
    differences, problem = compare(old, new.stages)
    largest = max((each.size for each in differences), default=0.0)
    return problem or f"{largest:.1e} deviations from what was stored"


def rounded(stage: Stage) -> Stage:
    """The numbers of a stage as they are written."""
    if not 0 < stage.deviation < float("inf"):
        raise SystemExit(f"{stage.name} gives nothing to compare: a standard deviation of {stage.deviation}")
    mean, deviation, largest, *samples = (float(f"{x:.{DIGITS}g}") for x in stage.numbers.values())
    return replace(stage, mean=mean, deviation=deviation, largest=largest, samples=tuple(samples))


def write(cases: Sequence[Case]) -> None:
    """Write the cases, a line for each stage."""
    written_with = {"machine": machine(), **versions()}
    blocks = []
    for case in cases:
        facts = {k: v for k, v in asdict(case).items() if k != "stages"}
        stages = ",\n".join(json.dumps(list(asdict(stage).values())) for stage in case.stages)
        blocks.append(f'{json.dumps(facts)[:-1]}, "stages": [\n{stages}]}}')
    joined = ",\n".join(blocks)
    write_text(VALUES, f'{{"written_with": {json.dumps(written_with)}, "cases": [\n{joined}\n]}}\n')


if __name__ == "__main__":
    main()
