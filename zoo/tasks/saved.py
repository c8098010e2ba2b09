"""The file of a fine-tuned network, with which alone everything after training is done: written, found and read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.checkpoint import export_safetensors
from zoo.errors import CheckpointFormatError, OptionError, PathNotFoundError, UnknownModelError
from zoo.fetching import file_path, is_hub, local_file
from zoo.files import user_path
from zoo.formats import open_checkpoint, told
from zoo.messages import first_names, printable
from zoo.registry import get_entry, resolve
from zoo.tasks.outputs import Outputs, read_outputs

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS = "model.safetensors"
"""Name of the file in the folder of a run."""
FINAL = "final"
"""Folder of the network that learnt from all cases, in that of a cross-validation."""
_TASKS = {"labels": "classify", "classes": "classify", "numbers": "regress", "voxels": "segment"}


@dataclass(frozen=True)
class SavedModel:
    """What the file of a fine-tuned network says of it."""

    path: Path
    model: str
    """Its entry's name."""
    task: str
    """`classify`, `regress` or `segment`."""
    outputs: Outputs
    classes: tuple[str, ...]
    """Names of the outputs."""
    header: Mapping[str, str]
    """The whole of its header, see `zoo.formats.header`."""

    def in_a_line(self) -> str:
        """Return the model, the task and the names of the outputs."""
        return f"{self.model}, {self.task}: {first_names(self.classes, 10)}"


@dataclass(frozen=True, eq=False)
class OfSaved:
    """What every predictor tells of the file that it is made of."""

    saved: SavedModel
    """What the file says."""

    @property
    def task(self) -> str:
        """`classify`, `regress` or `segment`."""
        return self.saved.task

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the outputs; of labels of voxels the background first."""
        return self.saved.classes

    @property
    def outputs(self) -> Outputs:
        """How the outputs become answers: kind, thresholds, means and deviations, windows."""
        return self.saved.outputs

    @property
    def header(self) -> Mapping[str, str]:
        """All that the file says of the network, as text: base weights, licences, command."""
        return self.saved.header


def write_model(state: Mapping[str, Tensor], header: Mapping[str, str], out: str | Path) -> Path:
    """Write a fine-tuned network as `OUT/model.safetensors`, whole or not at all; `read_saved` reads it.

    Args:
        state: State dict of the network, as `load_model` made it, with the names of its entry.
        header: From `make_header`, with `outputs` and `classes`.
        out: Folder of the run.

    Raises:
        CheckpointFormatError: The header is not one that `read_saved` takes.
        OSError: The file cannot be written.
    """
    file = Path(out) / WEIGHTS
    _read(header, file)
    return export_safetensors(state, file, metadata=header)


def read_saved(path: str | Path, cache_dir: str | Path | None = None) -> SavedModel:
    """Read what a fine-tuned network's file says of it; none of its values.

    Args:
        path: Folder that `zoo finetune` wrote, or a file: `model.safetensors` of it, or what `zoo export` made of that;
            or `hf://owner/name@revision`.
        cache_dir: Cache folder, for what an address stands for; default `$ZOO_HOME`.

    Raises:
        PathNotFoundError: There is nothing at the path.
        OptionError: It is a folder without a finished run.
        CheckpointFormatError: The file cannot be read, or does not say how its outputs become answers.
    """
    file = find_saved(path, cache_dir)
    return _read(open_checkpoint(file).metadata, file)


def find_saved(path: str | Path, cache_dir: str | Path | None = None) -> Path:
    """Return the file that the path of a run's folder, or of a file, stands for; its content is not looked at.

    Of a cross-validation it is that of the network that learnt from all cases, where there is one.

    An address of the hub is fetched into the cache.

    Raises:
        PathNotFoundError: There is nothing at the path.
        OptionError: It is a folder without a finished run.
    """
    if is_hub(path):
        return local_file(path, cache_dir)
    path = user_path(path)
    if not path.exists():
        raise PathNotFoundError(f"{path} does not exist: a folder or file that `zoo finetune` wrote is expected")
    if not path.is_dir():
        return path
    if (file := path / WEIGHTS).is_file():
        return file
    if (final := path / FINAL / WEIGHTS).is_file():
        return final
    if (fold := path / "fold0" / WEIGHTS).is_file():
        raise OptionError(
            f"{path} is a cross-validation, which has a network of each fold alone: give one, such as {fold.parent}, "
            "or add --final --resume to its command, which trains one on all cases"
        )
    began = (path / "last.pt").is_file()
    way = "its run has not come to its end: the same command with --resume goes on" if began else "no run wrote to it"
    if (path / "report.json").is_file():
        way = "it holds a report of `zoo probe`, which keeps no network that answers; train one by `zoo finetune`"
    raise OptionError(f"{path} has no {WEIGHTS}, which `zoo finetune` writes into its OUT: {way}")


def learnt_outputs(checkpoint: str | Path | None, cache_dir: str | Path | None = None) -> Outputs:
    """Return windows and values of masks that a network learnt to segment from, as its file says; else without them.

    Args:
        checkpoint: The file, or its address; None for weights on record.
        cache_dir: Cache folder; default `$ZOO_HOME`.

    Raises:
        CheckpointFormatError: The file cannot be read, or says what cannot be.
    """
    if checkpoint is None:
        return Outputs("voxels")
    stored = open_checkpoint(local_file(checkpoint, cache_dir))
    return read_outputs(stored.metadata, stored.path)[0] if "outputs" in stored.metadata else Outputs("voxels")


def learnt_reading(name: str, checkpoint: str | Path | None, cache_dir: str | Path | None = None) -> Mapping[str, Any]:
    """Return what scans were put through before the input of a network, as its file says; empty where nothing was.

    Args:
        name: `MODEL` or `MODEL.TAG`.
        checkpoint: The file, or its address; None for the weights that the name stands for, as far as they are here.
        cache_dir: Cache folder; default `$ZOO_HOME`.

    Raises:
        CheckpointFormatError: The file cannot be read, or says what cannot be.
    """
    header, path = header_of(name, checkpoint, cache_dir)
    return told(header, "reading", dict, path)


def header_of(
    name: str, checkpoint: str | Path | None, cache_dir: str | Path | None = None
) -> tuple[Mapping[str, str], Path]:
    """Return what the file of a network says of itself, and where it is; nothing where it is not here.

    Args:
        name: `MODEL` or `MODEL.TAG`.
        checkpoint: The file, or its address; None for the weights that the name stands for.
        cache_dir: Cache folder; default `$ZOO_HOME`.

    Raises:
        CheckpointFormatError: The file cannot be read.
    """
    if checkpoint is not None:
        path = local_file(checkpoint, cache_dir)
    else:
        record = resolve(name, cache_dir).record
        path = Path() if record is None else file_path(record, cache_dir)
    return (open_checkpoint(path).metadata if path.is_file() else {}), path


def _read(header: Mapping[str, str], file: Path) -> SavedModel:
    outputs, classes = read_outputs(header, file)
    model, task = header.get("model", ""), header.get("task", "")
    try:
        entry = get_entry(model)
    except UnknownModelError as error:
        raise CheckpointFormatError(f"{file} is of a model that this zoo does not have: {error}") from error
    if not told(header, "input", dict, file):
        raise CheckpointFormatError(
            f"{file} does not say what its images must be, which `zoo finetune` writes: by the model's own input the "
            "answers would be others. Was its header changed by hand? Take the file that the run wrote"
        )
    if task != _TASKS[outputs.kind]:
        raise CheckpointFormatError(
            f"{file}: its header has outputs of kind {outputs.kind!r} for the task {printable(task)!r}, where "
            f"{_TASKS[outputs.kind]!r} is expected. Was it changed by hand?"
        )
    return SavedModel(file, entry.name, task, outputs, classes, dict(header))
