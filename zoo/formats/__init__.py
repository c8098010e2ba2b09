"""Turns a file into tensors by name; nothing in the file is run."""

from zoo.formats.header import KEY, KEYS, RANDOM, Task, is_of_recipe, make_header, told
from zoo.formats.joining import join, origins_of
from zoo.formats.opening import Mmap, StoredState, as_float32, is_finite, open_checkpoint, other_float
from zoo.formats.safety import refused_globals
from zoo.formats.sniffing import SAFETENSORS, TORCH_LEGACY, TORCH_ZIP, sniff
from zoo.formats.tensorflow_bundle import find_bundle
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
    "find_bundle",
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
