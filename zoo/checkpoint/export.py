"""Writes state dicts as safetensors, and computes the fingerprint of their names and shapes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.checkpoint.report import unwrap
from zoo.errors import OptionError
from zoo.files import replacing

if TYPE_CHECKING:
    from torch import Tensor, nn


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """Digest of the names and shapes of a converted state dict: what a file must hold, whatever its values.

    Returns:
        The sha256 of the sorted lines `name 64x3x7x7`, each ended by a newline, in UTF-8.
    """
    lines = sorted(f"{name} {'x'.join(map(str, tensor.shape))}\n" for name, tensor in state.items())
    return hashlib.sha256("".join(lines).encode(errors="surrogatepass")).hexdigest()


def export_safetensors(
    model_or_state: nn.Module | Mapping[str, Tensor],
    path: str | Path,
    *,
    half: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write a network's tensors as safetensors, whole or not at all.

    Args:
        model_or_state: A network, which may be inside DDP or `torch.compile`, or a state dict.
        path: The file, which is replaced if it exists. Its folder must exist.
        half: Whether to store floating-point tensors as float16. Those of one dimension (norms, biases) and integers
            stay as they are.
        metadata: Text to store in the header; with one entry at most, the same tensors always give the same bytes.

    Returns:
        `path`.

    Raises:
        OptionError: A value is beyond the range of float16.
        OSError: The file cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    state = model_or_state if isinstance(model_or_state, Mapping) else unwrap(model_or_state).state_dict()
    target = Path(path)
    taken: set[int] = set()
    tensors = {name: _to_store(name, tensor, half, taken) for name, tensor in state.items()}
    try:
        with replacing(target) as temporary:
            temporary.touch()
            mode = temporary.stat().st_mode  # what the user's umask gives; safetensors alone makes the file private
            save_file(tensors, temporary, metadata=dict(metadata or {"format": "pt"}))
            temporary.chmod(mode)
    except SafetensorError as error:
        raise OSError(f"{target} cannot be written: {error}") from error
    return target


def _to_store(name: str, tensor: Tensor, half: bool, taken: set[int]) -> Tensor:
    """Return the tensor as the file will hold it, in memory that no other one shares."""
    stored = tensor.detach().cpu()
    if half and tensor.is_floating_point() and tensor.ndim > 1:
        stored = stored.half()
        if not stored.isfinite().all() and tensor.isfinite().all():
            raise OptionError(f"{name} has values beyond the range of float16; export it with half=False")
    address = stored.untyped_storage().data_ptr()
    stored = stored.clone() if address in taken else stored
    taken.add(address)
    return stored.contiguous()
