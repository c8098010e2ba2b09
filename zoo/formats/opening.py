"""Opens checkpoints of every format and reaches their tensors without running anything in them.

Opening a file gives names, shapes and types; its tensors are mapped, so that no value is read before it is needed.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from zoo.errors import CheckpointFormatError
from zoo.files import user_path
from zoo.formats.containers import find_tensors
from zoo.formats.header import find_header, told
from zoo.formats.joining import base_of, parts_of, put_together, take_apart
from zoo.formats.mounts import is_on_network
from zoo.formats.sniffing import SAFETENSORS, TENSORFLOW, TORCH_LEGACY, TORCH_ZIP, sniff
from zoo.formats.tensorflow_bundle import Bundle, find_bundle, open_bundle
from zoo.formats.torch_files import check_torch, damage, load_torch
from zoo.formats.torch_zip import TorchZip, ZipProblem
from zoo.messages import printable

if TYPE_CHECKING:
    from torch import Tensor

    from zoo.entry import State

Mmap: TypeAlias = "bool | Literal['auto']"

_CHUNK = 8 << 20


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
        stored = {name: (origin[id(t)], t.nbytes) for name, t in wanted.items() if id(t) in origin}
        copied = {name: where for name, where in stored.items() if self._must_copy(wanted[name], name in parts)}
        self.tensors = {}
        for name in copied:
            del wanted[name]
        return as_float32(wanted) | dict(self._copies(copied))

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

    def _copies(self, wanted: Mapping[str, tuple[str, int]]) -> Iterator[tuple[str, Tensor]]:
        """Yield names with tensors in memory; `wanted` has the name in the file and the bytes of each."""
        if self.format == SAFETENSORS:
            from safetensors import safe_open

            with safe_open(self.path, framework="pt", backend="pread") as file:
                yield from ((name, _float32(name, file.get_tensor(stored))) for name, (stored, _) in wanted.items())
            return
        tensors: State = {}
        most = max(_CHUNK, sum(size for _, size in wanted.values()) // 10)  # opening takes time, mapped pages memory
        used = most
        for name, (stored, size) in wanted.items():
            if used + size > most:  # a new mapping in place of one whose pages count as memory by now
                tensors, used = find_tensors(load_torch(self.path, self.format, mapped=True), self.path)[0], 0
            used += size
            yield name, _float32(name, tensors[stored]) if other_float(tensors[stored]) else tensors[stored].clone()


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
        views = {name: (origin.get(id(base_of(tensor))), wanted.pop(name)) for name, tensor in list(wanted.items())}
        return {name: _float32(name, self._values(stored, view)) for name, (stored, view) in views.items()}

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
    return {origin.get(id(one), origin.get(id(base_of(one)))) for one in each}


def as_float32(state: State) -> State:
    """Return the tensors with floating point as float32; `state` is emptied on the way.

    Raises:
        CheckpointFormatError: A value is beyond the range of float32.
    """
    return {name: _float32(name, state.pop(name)) for name in list(state)}


def other_float(tensor: Tensor) -> str:
    """The type of a floating-point tensor that is not float32, for example `"float16"`; empty for any other tensor."""
    kind = str(tensor.dtype).removeprefix("torch.")
    return kind if tensor.is_floating_point() and kind != "float32" else ""


def _float32(name: str, tensor: Tensor) -> Tensor:
    kind = other_float(tensor)
    if not kind:
        return tensor
    values = tensor.float()
    if kind == "float64" and is_finite(tensor) and not is_finite(values):
        raise CheckpointFormatError(
            f"{printable(name)} has values beyond the range of float32, in which the networks of the zoo compute: the "
            f"largest is {tensor.abs().max().item():.3g}. Such weights come from a run that diverged"
        )
    return values


def is_finite(tensor: Tensor) -> bool:
    """Whether no value is NaN or infinite, found in one pass and without memory for a mask."""
    import torch

    if not tensor.is_floating_point() or not tensor.numel():
        return True
    values = tensor.float() if tensor.itemsize == 1 else tensor  # types of eight bits have no order of their own
    return all(bool(torch.isfinite(end)) for end in torch.aminmax(values))


def open_checkpoint(path: str | Path, *, mmap: Mmap = "auto") -> StoredState:
    """Open a checkpoint of any format and find its tensors. Nothing in the file is run.

    Args:
        path: Safetensors, or what `torch.save` wrote: bare or under one of the usual keys (`state_dict`, `model`, ...).
            Or a bundle of TensorFlow's saver, by its prefix, its index, or the folder that holds it and no other.
        mmap: Whether to map the file instead of reading it; `"auto"` reads only on network file systems.

    Raises:
        CheckpointFormatError: Not a checkpoint, empty, cut short, or without tensors.
        UnsafeCheckpointError: Opening it would need more than tensors and plain values.
    """
    path = user_path(path)
    kind = sniff(path)
    mapped = not is_on_network(path) if mmap == "auto" else bool(mmap)
    if kind == SAFETENSORS:
        return _open_safetensors(path, mapped)
    if kind in (TORCH_ZIP, TORCH_LEGACY):
        return _open_torch(path, kind, mapped)
    if kind.startswith(TENSORFLOW):
        return _open_bundle(path, kind)
    find_bundle(path)  # tells of a shard which checkpoint it is a part of
    raise CheckpointFormatError(
        f"{path} is not a checkpoint that can be read: {kind}. Expected safetensors, a file written by torch.save, or "
        "a TensorFlow checkpoint"
    )


def _open_safetensors(path: Path, mapped: bool) -> StoredState:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
        _check_names(path)
    except SafetensorError as error:
        raise CheckpointFormatError(
            f"{path} begins like safetensors, but is cut short or damaged ({printable(error)}). Fetch or copy it again"
        ) from error
    return StoredState(path, SAFETENSORS, tensors, mapped, metadata=metadata or {})


def _check_names(path: Path) -> None:
    """Refuse a header with a name that stands there twice: readers differ in which of the two they take."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")), object_pairs_hook=list)
    names = [name for name, _ in header]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise CheckpointFormatError(f"{path} names the tensor {printable(twice)} twice in its header. Save it again")


def _open_torch(path: Path, kind: str, mapped: bool) -> StoredState:
    if path.suffix == ".safetensors":  # torch.load would trust the name
        raise CheckpointFormatError(f"{path} is named like safetensors, but is a {kind}: rename it to {path.stem}.pth")
    archive = check_torch(path, kind)
    in_memory = archive is None or not archive.can_be_mapped
    if archive is not None and in_memory:
        try:
            archive.check()
        except ZipProblem as problem:
            raise damage(path, kind, problem) from None
    content = load_torch(path, kind, mapped=not in_memory)
    tensors, containers = find_tensors(content, path)
    beside = tuple(key for key in content if isinstance(key, str) and key not in containers) if containers else ()
    return StoredState(
        path,
        kind,
        tensors,
        mapped and not in_memory,
        containers,
        beside,
        find_header(content, path),
        in_memory=in_memory,
        archive=archive,
    )


def _open_bundle(path: Path, kind: str) -> StoredBundle:
    import torch

    bundle = open_bundle(path)
    with torch.inference_mode(False):  # in which views of a tensor do not say that they are
        tensors: State = {
            name: torch.empty(variable.shape, dtype=getattr(torch, variable.kind or "float32"), device="meta")
            for name, variable in bundle.variables.items()
        }
    scalars = [name for name, variable in bundle.variables.items() if not variable.shape and not variable.obstacle]
    tensors |= {name: torch.from_numpy(bundle.read(name)) for name in scalars}
    return StoredBundle(path, kind, tensors, mapped=False, bundle=bundle)
