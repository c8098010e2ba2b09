"""Lists of the volumes to train on, validate on and test on: the authors', and your own.

From krishnabits001/domain_specific_cl, experiment_init/data_cfg_{acdc,prostate_md,mmwhs}.py, with two mistakes mended.
ACDC's benchmark `trall` trains on 011, which also validates it, and nowhere has 031: here it trains on 031 instead. In
the prostate's a comma is missing, so that 000 and 001 become "000001": here they are two.

Left as published: validation volumes are among those to pre-train on (072 of ACDC, all of the others), which shows
their images, not their labels, in advance. `pretraining` can leave out those of a split.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from zoo.errors import OptionError


@dataclass(frozen=True)
class Split:
    """Labelled volumes of one comparison."""

    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]


def parse_ids(text: str) -> tuple[str, ...]:
    """Return the names in a list like `002,042` or `001-006,012`; ranges are numbers, with the zeros of the first.

    Raises:
        OptionError: A range ends before it begins, a part is empty, or a name is repeated.
    """
    names: list[str] = []
    for part in text.split(","):
        part = part.strip()
        bounds = re.fullmatch(r"(\d+)-(\d+)", part)
        if bounds is None:
            names.append(part)
        else:
            first, last = bounds[1], bounds[2]
            names += [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
            if int(last) < int(first):
                raise OptionError(f"{text!r}: the range {part} ends before it begins")
    if "" in names:
        raise OptionError(f"{text!r}: names between commas are expected, or ranges of numbers, as 001-006,012")
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise OptionError(f"{text!r} names {', '.join(twice)} twice")
    return tuple(names)


PRETRAINING = {
    "acdc": "001-006,012,017-026,037-046,057-066,072,077-086,097-100",
    "prostate": "000,001,002,004,006,007,010,013,014,016,017,018,020,021,024,025,028",
    "mmwhs": "1001-1010",
}
TEST = {
    "acdc": "007-010,027-030,047-050,067-070,087-090",
    "prostate": "029,031,032,034,035,037-044,046,047",
    "mmwhs": "1011-1020",
}
_ACDC = {"a": "011,071", "b": "031,072"}
_PROSTATE = {"a": "013,014", "b": "017,020", "c": "025,028"}
_MMWHS = {"a": "1002,1005", "b": "1001,1008", "c": "1007,1002", "d": "1004,1008"}
_LABELLED: dict[str, dict[str, tuple[str, str]]] = {
    "acdc": {
        "tr1-c1": ("002", _ACDC["a"]),
        "tr1-c2": ("042", _ACDC["b"]),
        "tr1-c3": ("095", _ACDC["a"]),
        "tr1-c4": ("022", _ACDC["a"]),
        "tr1-c5": ("062", _ACDC["a"]),
        "tr2-c1": ("042,062", _ACDC["b"]),
        "tr2-c2": ("002,042", _ACDC["a"]),
        "tr2-c3": ("042,095", _ACDC["b"]),
        "tr2-c4": ("002,022", _ACDC["a"]),
        "tr2-c5": ("002,095", _ACDC["a"]),
        "tr8-c1": ("002,022,042,062,095,003,023,043", _ACDC["a"]),
        "tr8-c2": ("002,022,042,062,095,063,094,043", _ACDC["b"]),
        "tr8-c3": ("002,022,042,062,095,003,094,023", _ACDC["a"]),
        "trall": ("001-006,012-026,031-046,051-066,072-086,091-100", _ACDC["a"]),
    },
    "prostate": {
        "tr1-c1": ("001", _PROSTATE["a"]),
        "tr1-c2": ("002", _PROSTATE["b"]),
        "tr1-c3": ("006", _PROSTATE["c"]),
        "tr1-c4": ("000", _PROSTATE["a"]),
        "tr1-c5": ("004", _PROSTATE["c"]),
        "tr2-c1": ("000,001", _PROSTATE["a"]),
        "tr2-c2": ("021,024", _PROSTATE["b"]),
        "tr2-c3": ("001,002", _PROSTATE["c"]),
        "tr2-c4": ("004,010", _PROSTATE["a"]),
        "tr2-c5": ("000,007", _PROSTATE["c"]),
        "tr8-c1": ("000,001,002,004,006,007,010,016", _PROSTATE["a"]),
        "tr8-c2": ("002,004,006,007,010,016,021,018", _PROSTATE["b"]),
        "tr8-c3": ("000,001,006,007,010,017,018,024", _PROSTATE["c"]),
        "trall": ("000,001,002,004,006,007,010,016,017,018,020,021,024,025,028", _PROSTATE["a"]),
    },
    "mmwhs": {
        "tr1-c1": ("1003", _MMWHS["a"]),
        "tr1-c2": ("1006", _MMWHS["b"]),
        "tr1-c3": ("1008", _MMWHS["c"]),
        "tr1-c4": ("1001", _MMWHS["a"]),
        "tr1-c5": ("1009", _MMWHS["c"]),
        "tr2-c1": ("1001,1003", _MMWHS["a"]),
        "tr2-c2": ("1009,1008", _MMWHS["c"]),
        "tr2-c3": ("1006,1002", _MMWHS["b"]),
        "tr2-c4": ("1010,1007", _MMWHS["d"]),
        "tr8-c1": ("1001,1003,1004,1006-1010", _MMWHS["a"]),
        "tr8-c2": ("1002-1007,1009,1010", _MMWHS["b"]),
        "tr8-c3": ("1001,1003-1006,1008-1010", _MMWHS["c"]),
    },
}


def splits(dataset: str) -> tuple[str, ...]:
    """Return the names of a data set's splits: `tr<labelled volumes>-c<combination>`, and `trall`, the benchmark."""
    return tuple(_LABELLED[dataset])


def split(dataset: str, name: str) -> Split:
    """Return the labelled volumes of a split.

    Raises:
        OptionError: There is no such split.
    """
    if name not in _LABELLED[dataset]:
        raise OptionError(f"{dataset} has no split {name!r}; there are {', '.join(splits(dataset))}")
    train, val = _LABELLED[dataset][name]
    return Split(parse_ids(train), parse_ids(val), parse_ids(TEST[dataset]))


def pretraining(dataset: str, without: str = "") -> tuple[str, ...]:
    """Return the volumes to pre-train on.

    Args:
        dataset: `acdc`, `prostate` or `mmwhs`.
        without: A split whose validation volumes are left out.

    Raises:
        OptionError: There is no such split.
    """
    held = split(dataset, without).val if without else ()
    return tuple(name for name in parse_ids(PRETRAINING[dataset]) if name not in held)
