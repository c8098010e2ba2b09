"""Holds an opened checkpoint: its tensors by name, whose values are read on demand."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.formats.floats import as_float32, other_float, viewed, widened
from zoo.formats.header import told
from zoo.formats.joining import parts_of, put_together, take_apart
from zoo.formats.sniffing import SAFETENSORS
from zoo.formats.tensorflow_bundle import Bundle
from zoo.formats.torch_files import damage
from zoo.formats.torch_records import Place, place_of, read_tensors
from zoo.formats.torch_zip import TorchZip, ZipProblem

if TYPE_CHECKING:
    from torch import Tensor

    from zoo.entry import State


@dataclass
class StoredState:
    """An opened checkpoint: its content is known, its values are read on demand."""

    path: Path
    format: str
    tensors: State
    """Mapped where the format allows it. `convert` may pick, rename, re-view and `join` them."""
    mapped: bool
    """Whether float32 tensors stay mapped when they are read."""
    containers: tuple[str, ...] = ()
    """Keys that led from the top of the file to the tensors."""
    beside: tuple[str, ...] = ()
    """Other keys at the top: epoch, optimiser, arguments."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """The header, see `zoo.formats.header`; of safetensors all metadata."""
    in_memory: bool = False
    """Whether the values were read when the file was opened, as of what cannot be mapped."""
    archive: TorchZip | None = None
    """The records of a PyTorch zip."""

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that it consists of."""
        return (self.path,)

    @property
    def obstacles(self) -> Mapping[str, str]:
        """Why tensors cannot be read, by their names; empty where all can."""
        return {}

    @property
    def lacks_header(self) -> bool:
        """Whether a recipe wrote it before recipes wrote headers: its input is not known."""
        return not self.metadata and self.containers == ("model",) and set(self.beside) >= {"epoch", "metrics"}

    @property
    def input(self) -> dict[str, Any]:
        """The input that the network was trained on, as the recipes write it into the header; empty where they did not.

        Fields of `zoo.entry.Preprocessing`.

        Raises:
            CheckpointFormatError: The header has something else there.
        """
        return told(self.metadata, "input", dict, self.path)

    @property
    def options(self) -> dict[str, Any]:
        """Options of the network that names and shapes do not tell, from the header; empty where it has none.

        Raises:
            CheckpointFormatError: The header has something else there.
        """
        return told(self.metadata, "options", dict, self.path)

    def read(self, wanted: State) -> State:
        """Return the wanted tensors with their values, floating point as float32; `wanted` is emptied on the way.

        Tensors of another type are widened one at a time, so that both forms are never in memory together.

        Args:
            wanted: Tensors of this file, views of them, or several in one by `join`, under any names.

        Raises:
            CheckpointFormatError: A value is beyond the range of float32, or a record of a file that is read instead
                of mapped is not what was written.
        """
        if not self.mapped:
            self.check_records(wanted)
        joined = take_apart(wanted)
        parts = {part for each in joined.values() for part in each}
        return put_together(self._read(wanted, parts), joined)

    def _read(self, wanted: State, parts: Collection[str]) -> State:
        """Read what is wanted; of it `parts` are let go soon, so that they are not mapped beside the whole."""
        origin = {id(tensor): name for name, tensor in self.tensors.items()}
        stored = {name: origin[id(t)] for name, t in wanted.items() if id(t) in origin}
        copied = {name: where for name, where in stored.items() if self._must_copy(wanted[name], name in parts)}
        keys = self.archive.outline.storage_keys(self.containers) if self.archive else {}
        places = {name: place_of(wanted.pop(name), keys.get(stored)) for name, stored in copied.items()}
        self.tensors = {}
        return as_float32(wanted) | dict(self._copies(copied, places))

    def values(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors that can be read, with their values, as they are stored.

        Raises:
            CheckpointFormatError: The checksum of one is wrong.
        """
        yield from self.tensors.items()

    def check_records(self, wanted: State | None = None) -> None:
        """Read the records of a PyTorch zip that hold these tensors, and compare them with their CRC.

        Other formats have none, but for TensorFlow's, which is always compared.

        Args:
            wanted: Tensors of this file, or views of them; None for all.

        Raises:
            CheckpointFormatError: One of them is not what was written.
        """
        if self.archive is None or self.in_memory:  # what was read when it was opened was compared then
            return
        keys = self.archive.outline.storage_keys(self.containers)
        origin = {id(tensor): keys.get(name) for name, tensor in self.tensors.items()}
        tensors = (wanted or self.tensors).values()
        needed = {key for tensor in tensors for key in _records_of(tensor, origin)}
        try:
            known = {key for key in needed if key is not None}
            self.archive.check(None if None in needed else known)
        except ZipProblem as problem:
            raise damage(self.path, self.format, problem) from None

    def _must_copy(self, tensor: Tensor, is_part: bool) -> bool:
        """Whether values are read anew instead of through the mapping, the pages of which count as memory."""
        return not self.in_memory and (not self.mapped or is_part or bool(other_float(tensor)))

    def _copies(self, names: Mapping[str, str], places: Mapping[str, Place]) -> Iterator[tuple[str, Tensor]]:
        """Yield names with tensors in memory; `names` has those in the file, `places` where a PyTorch zip has them."""
        if self.format == SAFETENSORS:
            from safetensors import safe_open

            with safe_open(self.path, framework="pt", backend="pread") as file:
                yield from ((name, widened(name, file.get_tensor(stored))) for name, stored in names.items())
        if self.archive is None:  # nor is there anything to copy of other formats, which are in memory
            return
        try:
            for name, tensor in read_tensors(self.archive, places):
                found = widened(name, tensor)
                del tensor  # else it would lie beside the next one while that is read
                yield name, found
        except ZipProblem as problem:
            raise damage(self.path, self.format, problem) from None


@dataclass
class StoredBundle(StoredState):
    """An opened TensorFlow bundle. Its tensors have no values before they are read, but for scalars."""

    bundle: Bundle = field(kw_only=True)

    @property
    def files(self) -> tuple[Path, ...]:
        """The index and the shards."""
        return self.bundle.files

    @property
    def obstacles(self) -> Mapping[str, str]:
        """Why tensors cannot be read, by their names: types that are not known, and partitioned variables."""
        return {name: variable.obstacle for name, variable in self.bundle.variables.items() if variable.obstacle}

    def read(self, wanted: State) -> State:
        """Return the wanted tensors with their values, floating point as float32; `wanted` is emptied on the way.

        Args:
            wanted: Tensors of this bundle, or views of them, under any names.

        Raises:
            CheckpointFormatError: One of them cannot be read, or its checksum is wrong.
        """
        origin = {id(tensor): name for name, tensor in self.tensors.items()}
        views = {name: (origin.get(id(viewed(tensor))), wanted.pop(name)) for name, tensor in list(wanted.items())}
        return {name: widened(name, self._values(stored, view)) for name, (stored, view) in views.items()}

    def values(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors that can be read, with their values, as they are stored.

        Raises:
            CheckpointFormatError: The checksum of one is wrong.
        """
        import torch

        for name in self.tensors:
            if name not in self.obstacles:
                yield name, torch.from_numpy(self.bundle.read(name))

    def _values(self, name: str | None, view: Tensor) -> Tensor:
        """Return a tensor with values in place of one without, laid out as `view` is."""
        import torch

        if name is None:  # computed by `convert`
            return view
        values = torch.from_numpy(self.bundle.read(name))
        return values.as_strided(view.size(), view.stride(), view.storage_offset()).contiguous()


def _records_of(tensor: Tensor, origin: Mapping[int, Any]) -> set[Any]:
    """Keys of the records that a tensor's values are in; None among them where that is not known."""
    each = parts_of(tensor) or (tensor,)
    return {origin.get(id(one), origin.get(id(viewed(one)))) for one in each}
