"""Turns a state dict into a filled network, with a report of where each tensor came from."""

from zoo.checkpoint.building import build_network
from zoo.checkpoint.coverage import is_counter
from zoo.checkpoint.export import export_safetensors, fingerprint
from zoo.checkpoint.filling import load_into
from zoo.checkpoint.inspection import guess, inspect_checkpoint
from zoo.checkpoint.keys import convert, left_out
from zoo.checkpoint.likeness import doubt, refuse_other_family
from zoo.checkpoint.programs import ONNX, TORCH, Format, Inputs, export_onnx, export_program
from zoo.checkpoint.report import ATTRIBUTE, HEAD_MISFIT, LoadReport, load_report, unwrap
from zoo.checkpoint.settling import HEADER, NAMES, RECORD, settle, warn_of_silence, without_guesses
from zoo.checkpoint.values import as_counts, check_values, faults
from zoo.tensor_names import find_prefix, rename_keys, strip_prefix

__all__ = [
    "ATTRIBUTE",
    "HEADER",
    "HEAD_MISFIT",
    "NAMES",
    "ONNX",
    "RECORD",
    "TORCH",
    "Format",
    "Inputs",
    "LoadReport",
    "as_counts",
    "build_network",
    "check_values",
    "convert",
    "doubt",
    "export_onnx",
    "export_program",
    "export_safetensors",
    "faults",
    "find_prefix",
    "fingerprint",
    "guess",
    "inspect_checkpoint",
    "is_counter",
    "left_out",
    "load_into",
    "load_report",
    "refuse_other_family",
    "rename_keys",
    "settle",
    "strip_prefix",
    "unwrap",
    "warn_of_silence",
    "without_guesses",
]
