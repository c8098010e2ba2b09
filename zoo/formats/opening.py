"""Opens checkpoints of every format and reaches their tensors without running anything in them.

Opening a file gives names, shapes and types; its tensors are mapped, so that no value is read before it is needed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from zoo.errors import CheckpointFormatError
from zoo.files import user_path
from zoo.formats.containers import find_tensors
from zoo.formats.header import find_header
from zoo.formats.mounts import is_on_network
from zoo.formats.sniffing import FOLDER, READABLE, SAFETENSORS, TENSORFLOW, TORCH_LEGACY, TORCH_ZIP, sniff
from zoo.formats.stored import StoredBundle, StoredState
from zoo.formats.tensorflow_bundle import find_bundle, open_bundle
from zoo.formats.torch_files import check_torch, damage, load_torch
from zoo.formats.torch_zip import ZipProblem
from zoo.messages import first_names, printable

if TYPE_CHECKING:
    from zoo.entry import State

Mmap: TypeAlias = "bool | Literal['auto']"

_MOST_TENSORS = 100_000
"""Tensors of a file of safetensors: each takes 50 microseconds, however small. Networks have some thousand."""
_MOST_TRIED = 200
"""Files of a folder that are looked at for one to give in its place."""


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
    if kind == FOLDER:
        raise CheckpointFormatError(f"{path} is a folder, and one checkpoint is expected: {_inside(path)}")
    raise CheckpointFormatError(
        f"{path} is not a checkpoint that can be read: {kind}. Expected safetensors, a file written by torch.save, or "
        "a TensorFlow checkpoint"
    )


def _inside(folder: Path) -> str:
    """Say which of the first files of a folder, by their names, can be given in its place."""
    found = [file for file in sorted(folder.iterdir())[:_MOST_TRIED] if file.is_file() and sniff(file) in READABLE]
    if not found:
        return "there is none in it"
    return f"give {found[0]}" if len(found) == 1 else f"give one of {first_names([file.name for file in found])} in it"


def _open_safetensors(path: Path, mapped: bool) -> StoredState:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            names, metadata = file.keys(), file.metadata()
            if len(names) > _MOST_TENSORS:
                raise CheckpointFormatError(f"{path} has {len(names)} tensors: at most {_MOST_TENSORS} are read")
            tensors = {name: file.get_tensor(name) for name in names}
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
