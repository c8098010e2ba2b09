"""How the tensors of a checkpoint file are reached without running anything that is in it.

Opening a file gives names, shapes and types; its tensors are mapped, so that no value is read before it is needed.
"""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from zoo.errors import CheckpointFormatError
from zoo.mounts import is_on_network
from zoo.safety import allow_list, refusal
from zoo.sniffing import SAFETENSORS, TENSORFLOW, TORCH_LEGACY, TORCH_ZIP, sniff
from zoo.tensorflow_bundle import Bundle, find_bundle, open_bundle

if TYPE_CHECKING:
    from torch import Tensor

    from zoo.entry import State

Mmap: TypeAlias = "bool | Literal['auto']"

CONTAINERS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights", "params")
HEADER = "zoo"
"""Key at the top of what `torch.save` wrote under which the zoo keeps what safetensors have in their header."""

_DAMAGE = (
    *(RuntimeError, ValueError, LookupError, AttributeError, TypeError, AssertionError, EOFError, OSError, MemoryError),
    struct.error,
)
"""What torch's reader stumbles over in a damaged file."""
_CHUNK = 8 << 20
_LOADING = Lock()  # torch's allow-list is one for all threads


@dataclass
class StoredState:
    """A checkpoint that was opened: what it holds is known, its values are read when they are asked for."""

    path: Path
    format: str
    tensors: State
    """Mapped where the format allows it. `convert` may pick, rename and re-view them."""
    mapped: bool
    """Whether float32 tensors stay mapped when they are read."""
    containers: tuple[str, ...] = ()
    """Keys that led from the top of the file to the tensors."""
    beside: tuple[str, ...] = ()
    """Other keys at the top: epoch, optimiser, arguments."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """The header: of safetensors its metadata, of what `torch.save` wrote the texts under `HEADER` at the top."""

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that it consists of."""
        return (self.path,)

    @property
    def obstacles(self) -> Mapping[str, str]:
        """Why tensors cannot be read, by their names; empty where all can."""
        return {}

    @property
    def input(self) -> dict[str, Any]:
        """The input that the network was trained on, as the recipes write it into the header; empty where they did not.

        Fields of `zoo.entry.Preprocessing`.

        Raises:
            CheckpointFormatError: The header has something else there.
        """
        return self._said("input", "For the model's own input name no file")

    @property
    def options(self) -> dict[str, Any]:
        """Options of the network that names and shapes do not tell, see `zoo.settling`; empty where nobody wrote them.

        Raises:
            CheckpointFormatError: The header has something else there.
        """
        return self._said("options", "Save the file anew without them")

    def _said(self, what: str, advice: str) -> dict[str, Any]:
        text = self.metadata.get(what, "{}")
        try:
            stored: Any = json.loads(text)
        except ValueError:
            stored = None
        if not isinstance(stored, dict):
            raise CheckpointFormatError(
                f"{self.path} says of its {what} {text[:80]!r} in its header: fields as JSON are expected, as the "
                f"recipes write them. {advice}"
            )
        return stored

    def read(self, wanted: State) -> State:
        """Return the wanted tensors with their values, floating point as float32; `wanted` is emptied on the way.

        Tensors of another type are widened one at a time, so that both forms are never in memory together.

        Args:
            wanted: Tensors of this file, or views of them, under any names.
        """
        origin = {id(tensor): name for name, tensor in self.tensors.items()}
        copied = {n: (origin[id(t)], t.nbytes) for n, t in wanted.items() if id(t) in origin and self._must_copy(t)}
        self.tensors = {}
        for name in copied:
            del wanted[name]
        return as_float32(wanted) | dict(self._copies(copied))

    def _must_copy(self, tensor: Tensor) -> bool:
        """Whether values are read anew instead of through the mapping, the pages of which count as memory."""
        return self.format != TORCH_LEGACY and (not self.mapped or bool(other_float(tensor)))

    def _copies(self, wanted: Mapping[str, tuple[str, int]]) -> Iterator[tuple[str, Tensor]]:
        """Yield names with tensors in memory; `wanted` has the name in the file and the bytes of each."""
        if self.format == SAFETENSORS:
            from safetensors import safe_open

            with safe_open(self.path, framework="pt", backend="pread") as file:
                yield from ((name, _one_as_float32(file.get_tensor(stored))) for name, (stored, _) in wanted.items())
            return
        tensors: State = {}
        used = _CHUNK
        for name, (stored, size) in wanted.items():
            if used + size > _CHUNK:  # a new mapping in place of one whose pages count as memory by now
                tensors, used = _open_torch(self.path, self.format, self.mapped).tensors, 0
            used += size
            yield name, _one_as_float32(tensors[stored]) if other_float(tensors[stored]) else tensors[stored].clone()


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
        return {name: _one_as_float32(self._values(stored, view)) for name, (stored, view) in views.items()}

    def _values(self, name: str | None, view: Tensor) -> Tensor:
        """Return a tensor with values in place of one without, laid out as `view` is."""
        import torch

        if name is None:  # computed by `convert`
            return view
        values = torch.from_numpy(self.bundle.read(name))
        return values.as_strided(view.size(), view.stride(), view.storage_offset()).contiguous()


def base_of(tensor: Tensor) -> Tensor:
    """The tensor that a view is of; any other tensor itself."""
    return tensor if tensor._base is None else tensor._base


def as_float32(state: State) -> State:
    """Return the tensors with floating point as float32; `state` is emptied on the way."""
    return {name: _one_as_float32(state.pop(name)) for name in list(state)}


def other_float(tensor: Tensor) -> str:
    """The type of a floating-point tensor that is not float32, for example `"float16"`; empty for any other tensor."""
    kind = str(tensor.dtype).removeprefix("torch.")
    return kind if tensor.is_floating_point() and kind != "float32" else ""


def _one_as_float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


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
    path = Path(path).expanduser()
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
    except SafetensorError as error:
        raise CheckpointFormatError(
            f"{path} begins like safetensors, but is cut short or damaged ({error}). Fetch or copy it again"
        ) from error
    return StoredState(path, SAFETENSORS, tensors, mapped, metadata=metadata or {})


def _open_torch(path: Path, kind: str, mapped: bool) -> StoredState:
    import torch

    if path.suffix == ".safetensors":  # torch.load would trust the name
        raise CheckpointFormatError(f"{path} is named like safetensors, but is a {kind}: rename it to {path.stem}.pth")
    try:
        with _LOADING, torch.serialization.safe_globals(allow_list()):
            content = torch.load(path, map_location="cpu", mmap=kind == TORCH_ZIP, weights_only=True)
    except pickle.UnpicklingError as error:
        raise refusal(path, error) from None
    except _DAMAGE as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise CheckpointFormatError(
            f"{path} begins like a {kind}, but is cut short, damaged or not written by torch.save ({reason}). "
            "Fetch or copy it again"
        ) from error
    tensors, containers = find_tensors(content, path)
    beside = tuple(str(key) for key in content if key not in containers) if containers else ()
    return StoredState(path, kind, tensors, mapped, containers, beside, _header(content.get(HEADER)))


def _header(content: object) -> dict[str, str]:
    pairs = content.items() if isinstance(content, dict) else ()
    return {key: value for key, value in pairs if isinstance(key, str) and isinstance(value, str)}


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


def find_tensors(content: object, path: Path, depth: int = 0) -> tuple[State, tuple[str, ...]]:
    """Find the state dict in what a file holds: at the top or under one of `CONTAINERS`, up to five deep.

    Returns:
        Its tensors, and the keys that led to them.

    Raises:
        CheckpointFormatError: There is none.
    """
    import torch

    if not isinstance(content, Mapping):
        raise CheckpointFormatError(f"{path} holds a {type(content).__name__}, expected a dictionary of tensors")
    for key in CONTAINERS:
        if isinstance(content.get(key), Mapping) and content[key] and depth < 5:
            tensors, deeper = find_tensors(content[key], path, depth + 1)
            return tensors, (key, *deeper)
    tensors = {k: v.detach() for k, v in content.items() if isinstance(k, str) and isinstance(v, torch.Tensor)}
    if not tensors:
        keys = ", ".join(repr(key) for key in list(content)[:8]) or "nothing"
        raise CheckpointFormatError(
            f"{path} holds no state dict: found the keys {keys}; expected tensors, or one of {', '.join(CONTAINERS)}. "
            "Save the inner dictionary by itself: torch.save(torch.load(FILE)[KEY], NEW_FILE)"
        )
    return tensors, ()
