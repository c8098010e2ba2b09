"""Turns a file into tensors by name; nothing in the file is run."""

from zoo.formats.floats import as_float32, is_finite, other_float
from zoo.formats.header import KEY, KEYS, RANDOM, Task, is_of_recipe, make_header, told
from zoo.formats.joining import join, origins_of
from zoo.formats.opening import Mmap, open_checkpoint
from zoo.formats.safety import refused_globals
from zoo.formats.sniffing import SAFETENSORS, TORCH_LEGACY, TORCH_ZIP, sniff
from zoo.formats.stored import StoredState
from zoo.formats.torch_files import check_torch, load_torch

__all__ = [
    "KEY",
    "KEYS",
    "RANDOM",
    "SAFETENSORS",
    "TORCH_LEGACY",
    "TORCH_ZIP",
    "Mmap",
    "StoredState",
    "Task",
    "as_float32",
    "check_torch",
    "is_finite",
    "is_of_recipe",
    "join",
    "load_torch",
    "make_header",
    "open_checkpoint",
    "origins_of",
    "other_float",
    "refused_globals",
    "sniff",
    "told",
]
