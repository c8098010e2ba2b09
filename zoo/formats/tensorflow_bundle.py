"""Reads what TensorFlow's saver writes ("V2" checkpoints) without TensorFlow, and without running anything.

A bundle is an index, `PREFIX.index`, with names of variables and where their values lie, and shards of values,
`PREFIX.data-00000-of-00001` and so on. Only these files are read, and every byte that is used has its checksum checked.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.errors import CheckpointFormatError
from zoo.formats.crc32c import crc32c, masked
from zoo.formats.tensorflow_index import MAGIC, IndexProblem, Variable, decode_index

if TYPE_CHECKING:
    from numpy.typing import NDArray

_INDEX = ".index"
_PART = re.compile(r"(.+)(\.data-\d{5}-of-\d{5}|\.meta)")
_SHARDS = ".data-[0-9][0-9][0-9][0-9][0-9]-of-[0-9][0-9][0-9][0-9][0-9]"
_MOST_INDEX = 16 << 20  # bytes; that of a network of a hundred layers has 50 KB


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: what it holds is known, values are read and checked when they are asked for."""

    prefix: Path
    variables: Mapping[str, Variable]
    shards: int

    @property
    def files(self) -> tuple[Path, ...]:
        """The index and the shards that hold values."""
        used = sorted({variable.shard for variable in self.variables.values()})
        return (index_path(self.prefix), *map(self.shard_path, used))

    def shard_path(self, shard: int) -> Path:
        """Where a shard lies: beside the index, by its number."""
        return self.prefix.with_name(f"{self.prefix.name}.data-{shard:05d}-of-{self.shards:05d}")

    def read(self, name: str) -> NDArray[Any]:
        """Return the values of one variable, in memory of their own.

        Raises:
            CheckpointFormatError: They cannot be read, or are not those that were written.
        """
        import numpy as np

        variable = self.variables[name]
        path = self.shard_path(variable.shard)
        if variable.obstacle:
            raise CheckpointFormatError(f"{name!r} of {self.prefix} cannot be read: {variable.obstacle}")
        values = np.empty(variable.size, np.uint8)
        try:
            with path.open("rb") as file:
                file.seek(variable.offset)
                found = file.readinto(values.data)
        except OSError as error:
            raise CheckpointFormatError(f"{path} cannot be read: {error.strerror}") from error
        if found != variable.size or masked(crc32c(values.data)) != variable.checksum:
            raise CheckpointFormatError(
                f"{path} is damaged: the checksum of the values of {name!r} is wrong. Fetch or copy it again"
            )
        stored = np.dtype(variable.kind).newbyteorder("<")
        return values.view(stored).reshape(variable.shape).astype(stored.newbyteorder("="), copy=False)


def index_path(prefix: Path) -> Path:
    """Where the index of a bundle lies."""
    return prefix.parent / f"{prefix.name}{_INDEX}"


def find_bundle(path: Path) -> Path | None:
    """Return the prefix of the bundle that a path stands for: a prefix, an index, or a folder with one bundle.

    The text file `checkpoint` beside it names places on the machine that wrote it, and is not read.

    Returns:
        None where the path stands for no bundle.

    Raises:
        CheckpointFormatError: The folder holds several, the path is that of a shard or a graph, or there are shards
            without an index.
    """
    if path.is_dir():
        found = sorted(file.name.removesuffix(_INDEX) for file in path.glob(f"*{_INDEX}") if is_index(file))
        if len(found) > 1:
            raise CheckpointFormatError(
                f"{path} holds {len(found)} TensorFlow checkpoints: {', '.join(found[:8])}. Pass the path of one of "
                f"them, for example {path / found[-1]}"
            )
        if not found:
            _refuse_shards_alone(path, "*")
        return path / found[0] if found else None
    if is_index(path):
        return path.with_name(path.name.removesuffix(_INDEX))
    part = _PART.fullmatch(path.name)
    if part and is_index(index_path(path.with_name(part[1]))):
        raise CheckpointFormatError(f"{path} is a part of a TensorFlow checkpoint: pass {path.with_name(part[1])}")
    if not path.is_file() and index_path(path).is_file():
        return path
    if part or path.name.endswith(_INDEX) or not path.is_file():
        _refuse_shards_alone(path.parent, escape(part[1] if part else path.name.removesuffix(_INDEX)))
    return None


def _refuse_shards_alone(folder: Path, name: str) -> None:
    """Say which index is missing or damaged where a folder has shards of bundles with this name, a shell pattern."""
    shard = min(folder.glob(name + _SHARDS), default=None)
    if shard is not None:
        index = index_path(shard.with_name(re.sub(_PART, r"\1", shard.name)))
        raise CheckpointFormatError(
            f"{index} is {'cut short or damaged' if index.is_file() else 'missing'}: it is the index of a TensorFlow "
            f"checkpoint, without which {shard.name} cannot be read. Fetch or copy it again, into the same folder"
        )


def is_index(path: Path) -> bool:
    """Whether a file is the index of a bundle, by its name and its last bytes."""
    if not path.name.endswith(_INDEX) or not path.is_file():
        return False
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - len(MAGIC)))
        return file.read() == MAGIC


def open_bundle(path: str | Path) -> Bundle:
    """Open a bundle: read its index, and check that its shards are there and long enough.

    Args:
        path: Its prefix, its index, or a folder that holds no other.

    Raises:
        CheckpointFormatError: There is no bundle, or one that is damaged, incomplete, or in a form that is not known.
    """
    prefix = find_bundle(Path(path))
    if prefix is None:
        raise CheckpointFormatError(
            f"{path} is not a TensorFlow checkpoint: expected a prefix, for example model.ckpt where there are "
            "model.ckpt.index and model.ckpt.data-00000-of-00001, or the folder of these"
        )
    index = index_path(prefix)
    try:
        if index.stat().st_size > _MOST_INDEX:
            raise CheckpointFormatError(f"{index} has {index.stat().st_size} bytes, too many for an index")
        shards, variables = decode_index(index.read_bytes())
    except OSError as error:
        raise CheckpointFormatError(f"{index} cannot be read: {error.strerror}") from error
    except IndexProblem as problem:
        raise CheckpointFormatError(f"{index} cannot be read: {problem}") from None
    bundle = Bundle(prefix, variables, shards)
    _check_shards(bundle)
    return bundle


def _check_shards(bundle: Bundle) -> None:
    ends: dict[int, int] = {}
    for variable in bundle.variables.values():
        ends[variable.shard] = max(ends.get(variable.shard, 0), variable.offset + variable.size)
    for shard, end in sorted(ends.items()):
        path = bundle.shard_path(shard)
        if not path.is_file():
            raise CheckpointFormatError(
                f"{path} is missing, which holds the values of the TensorFlow checkpoint {bundle.prefix}; the index "
                "has their names only. Put all of its files into one folder, under the names they were written with"
            )
        if path.stat().st_size < end:
            raise CheckpointFormatError(
                f"{path} has {path.stat().st_size} bytes where the index expects {end}: it is cut short, or of another "
                "checkpoint. Fetch or copy it again"
            )
