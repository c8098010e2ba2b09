"""Labels of whole volumes by a model and its own transform: what `zoo segment` does, and commands of families."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from zoo.checkpoint import load_report
from zoo.commands.printing import raise_for_failed, rest_in
from zoo.errors import OptionError
from zoo.images import find_images, is_dicom, names_of, read_header, write_label_picture, write_labels
from zoo.loading import check_channels, input_of, load_model
from zoo.manifest import records
from zoo.messages import problem_of, with_path
from zoo.registry import entries, get_entry, resolve
from zoo.tasks.saved import learnt_outputs, learnt_reading
from zoo.transforms import ImageTransform, build_transform

if TYPE_CHECKING:
    import torch
    from torch import nn

    from zoo.entry import Entry, Labels, Preprocessing

T = TypeVar("T")


@dataclass(frozen=True)
class Written:
    """What became of some volumes."""

    files: tuple[Path, ...]
    failed: Mapping[str, str]
    """Volumes of which nothing was written, and why."""

    def check(self, out: Path, made: str = "labels") -> None:
        """Raise `InputContractError` where some failed; all are named, and where the rest is."""
        what = f"volume(s) have no {made}, {rest_in(out, bool(self.files))}"
        raise_for_failed(self.failed.values(), what)


def segment(
    name: str,
    paths: Sequence[str | Path],
    out: Path,
    *,
    checkpoint: str | Path | None = None,
    num_classes: int | None = None,
    device: str | torch.device = "cpu",
    batch_size: int | None = None,
    overlap: float | None = None,
    cache_dir: str | Path | None = None,
    say: Callable[[str], None] = print,
) -> Written:
    """Write the labels of images into a folder, each on its own grid: `<name>_labels.nii.gz`, of films `.png`.

    Args:
        name: `MODEL` or `MODEL.TAG`, one that segments.
        paths: Files, series, or folders for all images in them.
        out: The folder.
        checkpoint: Your own file to use instead of the published weights; input and windows are then what its header
            says, else the model's.
        num_classes: Of the file, background included, where the network as published has others.
        device: Where the network runs.
        batch_size: Slices or windows at once; None for the family's choice.
        overlap: Share of a window that the next one covers too, of families that have windows.
        cache_dir: Folder of downloads; `$ZOO_HOME`, else `~/.cache/medssl-zoo`.
        say: Is told in a line what was written.

    Raises:
        OptionError: The model does not segment, its weights have not learned to, or not from scans as they are; a path
            does not exist, or a number is out of its range.
        UnknownModelError: No such model or tag; what else `load_model` raises where there are no weights.
    """
    entry = get_entry(name)
    _check(entry, batch_size, num_classes, out)
    transform = build_transform(input_of(name, checkpoint, cache_dir))
    images = names_of(find_images(paths, volumes=not isinstance(transform, ImageTransform)))
    options: dict[str, Any] = {"num_classes": num_classes, "cache_dir": cache_dir}
    model = load_segmenter(name, checkpoint, device, **options)

    from zoo.tasks.labelling import check_classes, label_image

    check_classes(entry, model)
    _check_reading(name, entry, checkpoint, cache_dir)
    outputs = learnt_outputs(checkpoint, cache_dir)

    def find(path: Path) -> Labels:
        numbers, affine = label_image(
            entry, model, transform, path, batch_size=batch_size, overlap=overlap, window=outputs.window
        )
        return outputs.in_masks(numbers), affine

    written = write_each(images, find, label_writer(out))
    if written.files:
        say(what_was_written(out, len(written.files), model, transform.preprocessing))
    return written


def _check(entry: Entry, batch_size: int | None, num_classes: int | None, out: Path) -> None:
    if not entry.segments:
        others = ", ".join(other.name for other in entries().values() if other.segments)
        raise OptionError(
            f"{entry.name!r} does not segment: {entry.summary}. Weights that do: "
            f"{', '.join(trained_weights())}; and with --checkpoint, once fine-tuned: {others}"
        )
    if batch_size is not None and batch_size < 1:
        raise OptionError(f"batch_size={batch_size}: at least 1 is expected")
    if num_classes is not None and num_classes < 2:
        raise OptionError(f"num_classes={num_classes}: at least 2 are expected, the background and one more")
    check_folder(out)


def _check_reading(name: str, entry: Entry, checkpoint: str | Path | None, cache_dir: str | Path | None) -> None:
    """Raise `OptionError` where a network learnt from scans that were put through what is not done here."""
    if not (reading := learnt_reading(name, checkpoint, cache_dir)):
        return
    said = ", ".join(f"{option} {value}" for option, value in reading.items())
    weights = f"--model {name}" if checkpoint is None else f"--checkpoint {checkpoint}"
    raise OptionError(
        f"{checkpoint or name} learnt from scans that were put through {said}, as its header says, and `zoo segment` "
        f"does not do that: its labels would be of other images. python -m zoo.entries.{entry.family}.segment "
        f"--image SCAN --out labels {weights} does it"
    )


def check_folder(out: Path) -> None:
    """Raise `OptionError` where a file is in the place of a folder for labels."""
    if out.exists() and not out.is_dir():
        raise OptionError(f"{out} is a file: a folder for the labels is expected")


def trained_weights() -> list[str]:
    """The published weights that segment as they are, by their full names, the authors' before this zoo's own."""
    found = [
        (record.trained_by != "authors", f"{name}.{record.tag}")
        for name, entry in entries().items()
        if entry.segments and entry.config["num_classes"]
        for record in records(name, imported=False)
        if name not in record.fresh and record.sources
    ]
    return [name for _, name in sorted(found, key=lambda each: each[0])]


def _check_fresh(name: str, recipe: str, cache_dir: str | Path | None) -> None:
    """Raise `OptionError` where the record says that weights were pre-trained alone: before gigabytes are fetched."""
    wanted = resolve(name, cache_dir)
    record, model = wanted.record, wanted.entry.name
    if record is None or not (lacking := record.fresh.get(model)):
        return
    way = f": python -m {recipe}" if find_spec(recipe) else ""
    raise OptionError(
        f"{model}.{record.tag} was pre-trained and has not learned to segment (untrained: {lacking}). Fine-tune it "
        f"first{way}, then zoo segment {model} --checkpoint FILE. Weights that segment: {', '.join(trained_weights())}"
    )


def load_segmenter(
    name: str, checkpoint: str | Path | None, device: str | torch.device = "cpu", **options: Any
) -> nn.Module:
    """A network that has learned to segment.

    Args:
        name: The model, with or without a tag.
        checkpoint: A file to take instead of the model's own weights.
        device: Where the network is moved to.
        **options: Of `load_model`; None for what the weights say.

    Raises:
        OptionError: A part of it is not in the file, as where the weights are those of an encoder.
        InputContractError: The file is of a network for images of another number of channels.
    """
    from zoo.training.finetune import check_trained

    recipe = f"zoo.entries.{get_entry(name).family}.finetune"
    if checkpoint is None:
        _check_fresh(name, recipe, options.get("cache_dir"))
    asked = {option: value for option, value in options.items() if value is not None}
    model = load_model(name, checkpoint=checkpoint, device=device, **asked)
    check_channels(name, model)
    check_trained(model, recipe)
    return model


def write_each(
    volumes: Mapping[str, Path], find: Callable[[Path], T], write: Callable[[str, Path, T], Path], *, bar: bool = True
) -> Written:
    """Find something in each volume and write it; one that cannot be read or segmented does not end the run.

    Args:
        volumes: What the file made of each is called -> its path.
        find: From a path to what is found in it.
        write: From name, path and what was found to the file that was written.
        bar: Whether to draw a progress bar, on a terminal.

    Raises:
        OptionError: `find` raised it: what is asked for is wrong of every volume.
        OSError: A file cannot be written.
    """
    from tqdm import tqdm

    files, failed = [], {}
    for name, path in tqdm(list(volumes.items()), desc="volumes", disable=None if bar else True):
        try:
            found = find(path)
        except OptionError:
            raise
        except Exception as error:  # of whatever kind: one file never ends the run
            failed[str(path)] = with_path(path, problem_of(error))
            continue
        files.append(write(name, path, found))
    return Written(tuple(files), failed)


def label_writer(out: Path) -> Callable[[str, Path, Labels], Path]:
    """Return what writes labels into a folder, with the header of their volume where that is NIfTI; of films as PNG."""

    def write(name: str, path: Path, found: Labels) -> Path:
        labels, affine = found
        file = out / f"{name}_labels{'.png' if labels.ndim == 2 else '.nii.gz'}"
        if labels.ndim == 2:
            write_label_picture(labels, file)
        else:
            is_nifti = path.suffix != ".npy" and not path.is_dir() and not is_dicom(path)
            write_labels(labels, file, affine, read_header(path) if is_nifti else None)
        return file

    return write


def what_was_written(out: Path, count: int, model: nn.Module, seen: Preprocessing) -> str:
    """A line: how many labels, by which weights, and on what: a file that says nothing of its input has the model's."""
    report, spacing = load_report(model), " x ".join(f"{side:g}" for side in seen.spacing or ())
    if len(seen.size) == 2 and not spacing:
        grid = f"windows of {' x '.join(map(str, seen.size))} pixels"
    elif len(seen.size) == 2:
        grid = f"slices of {' x '.join(map(str, seen.size))} pixels of {spacing} mm"
    else:
        grid = f"voxels of {spacing} mm" if spacing else "voxels as they are"
    what = "film(s)" if len(seen.size) == 2 and not spacing else "volume(s)"
    return f"{out}: labels of {count} {what}, by {report.name} from {report.source}, in {grid}"
