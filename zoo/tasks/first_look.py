"""A first look at the images of a run, before anything is written: what they are, and what the network takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zoo.embedding import Cases
from zoo.entry import Entry, Preprocessing
from zoo.errors import InputContractError, OptionError
from zoo.images import NIFTI, Kind, affine_in, kind_of, read_header
from zoo.messages import lengths, listed, printable, problem_of, with_path
from zoo.registry import get_entry
from zoo.tasks.args import FinetuneArgs
from zoo.tasks.inputs import input_in_words
from zoo.training.evaluate import judging
from zoo.training.finetune import starting_input
from zoo.transforms import ImageTransform, VolumeTransform, build_transform

_MOST = 500
"""Headers that are read, evenly apart among all: some seconds, even on a network's disk."""
_MUCH_LARGER = 2
"""A film of more than so many times the pixels a side loses small findings."""


@dataclass(frozen=True)
class FirstLook:
    """What was seen."""

    input: str
    """What the network takes, in words."""
    warnings: tuple[str, ...]


def input_of_run(args: FinetuneArgs) -> Preprocessing:
    """Return the input of a run's network: that of the weights it starts from, films of the size that is asked for.

    Raises:
        OptionError: `--size` means nothing to the network.
    """
    contract = starting_input(args)
    if not args.size:
        return contract
    if not isinstance(build_transform(contract), ImageTransform):
        raise OptionError(f"--size {args.size}: {args.model} takes {input_in_words(contract)}; --size is of films")
    resize = None if contract.resize is None else round(contract.resize * args.size / max(contract.size))
    return contract.override({"size": (args.size, args.size), "resize": resize})


def check_size(network: nn.Module, entry: Entry, size: tuple[int, ...], asked: str) -> None:
    """Raise `OptionError` where a network does not take inputs of the size that a flag asks for.

    Nothing is computed, the values are on the meta device: this comes before images are prepared.
    """
    state = {name: tensor.to("meta") for name, tensor in (*network.named_parameters(), *network.named_buffers())}
    made = torch.empty((2, state[entry.stem].shape[entry.stem_axis], *size), device="meta")
    try:
        with judging(network):
            torch.func.functional_call(network, state, made)
    except (InputContractError, RuntimeError, AssertionError) as error:
        raise OptionError(f"{asked}: the network does not take inputs of {lengths(size)}: {error}") from error


def look_at(cases: Cases, contract: Preprocessing, args: FinetuneArgs) -> FirstLook:
    """Look at headers of the images of a run, and at one image as the network takes it.

    Raises:
        InputContractError: Images are of another kind than the network takes, or one after the other is refused.
    """
    transform = build_transform(contract)
    films = isinstance(transform, ImageTransform)
    as_stored = isinstance(transform, VolumeTransform) and contract.orientation is None and contract.affine is None
    rows = range(0, len(cases), -(-len(cases) // _MOST))
    kinds = {cases.paths[row]: kind_of(Path(cases.paths[row])) for row in rows}
    _check_kinds(kinds, len(cases), args.model, films=films)
    _try_some(cases, contract, args.model)
    larger = _much_larger([kind.sides for kind in kinds.values()], len({*cases.paths}), contract, args) if films else ""
    turned = _stored_in_several_ways(kinds, args.model) if as_stored else ""
    found = tuple(filter(None, (larger, turned)))
    return FirstLook(input_in_words(contract, is_cut=args.task != "segment"), found)


def _stored_in_several_ways(kinds: Mapping[str, Kind], model: str) -> str:
    """Say that volumes are stored along several axes, by the headers of NIfTI; empty where they are not."""
    ways = Counter(filter(None, (_axes_of(Path(path)) for path, kind in kinds.items() if kind.name == NIFTI)))
    if len(ways) < 2:
        return ""
    counts = ", ".join(f"{axes} {count}" for axes, count in ways.most_common())
    return (
        f"the volumes are stored along axes to {counts}, and {model} takes them as they are stored: one anatomy comes "
        "in several positions, and left and right cannot be told apart. Store all one way, those to predict on as well "
        "(nibabel.as_closest_canonical)"
    )


def _axes_of(path: Path) -> str:
    """Where the axes of a NIfTI file lead, such as `RAS`; empty where its header does not say, or has no meaning."""
    import nibabel

    with suppress(InputContractError):
        affine, _ = affine_in(read_header(path), str(path))
        return "".join(nibabel.aff2axcodes(affine))
    return ""


def _check_kinds(kinds: dict[str, Kind], count: int, model: str, *, films: bool) -> None:
    """Raise `InputContractError` where some are not what the network takes; each kind is counted."""
    wrong: dict[str, list[str]] = {}
    for path, kind in kinds.items():
        if not (kind.is_film if films else kind.is_volume):
            wrong.setdefault(kind.name, []).append(path)
    if not wrong:
        return
    lines = [
        f"{len(paths)} {name}: {printable(paths[0])}" if name else f"{len(paths)} unreadable: {kinds[paths[0]].problem}"
        for name, paths in wrong.items()
    ]
    looked = f" (of {count}, {len(kinds)} were looked at)" if len(kinds) < count else ""
    takes = "films: pictures, or DICOM of the chest" if films else "volumes: NIfTI, NumPy files, or DICOM series"
    first = next(iter(wrong.values()))[0]
    raise InputContractError(
        f"{sum(map(len, wrong.values()))} of {len(kinds)} images cannot be used, by their headers{looked}: {model} "
        f"takes {takes}. `zoo doctor {printable(first)}` says which models take that one:{listed(lines)}"
    )


def _try_some(cases: Cases, contract: Preprocessing, model: str) -> None:
    """Raise `InputContractError` where the transform refuses one image after the other, as of another modality."""
    transform: Any = build_transform(contract)
    rows, problems = sorted({0, len(cases) // 2, len(cases) - 1}), list[str]()
    for row in rows:
        try:
            transform(cases.case(row))
            return
        except InputContractError as error:
            problems.append(with_path(cases.paths[row], problem_of(error)))
    raise InputContractError(
        f"{len(problems)} of {len(cases)} images were tried, and {model} cannot use any:{listed(problems)}"
    )


def _much_larger(sides: Sequence[tuple[int, ...]], count: int, contract: Preprocessing, args: FinetuneArgs) -> str:
    """Say that films have many more pixels than the network takes; empty where they have not, or size is asked for.

    Args:
        sides: Of the films that were looked at.
        count: How many films there are.
        contract: The input of the network.
        args: The run.
    """
    taken = contract.resize or min(contract.size)
    large = [own for own in sides if min(own) > _MUCH_LARGER * taken]
    if args.size or not large:
        return ""
    largest = max(large, key=prod)
    own = max(get_entry(args.model).preprocessing.size)
    looked = f"the {len(sides)} films that were looked at, of {count}," if len(sides) < count else f"{count} films"
    return (
        f"{len(large)} of {looked} have more than {_MUCH_LARGER} times the pixels a side that the network "
        f"takes, up to {lengths(largest)} for {lengths(contract.size)}: small findings are lost. --size "
        f"{own if own > max(contract.size) else 2 * max(contract.size)}, for example, trains on larger images, in more "
        "time and memory"
    )
