"""What `zoo export` does: a network's weights as safetensors, or the network as a program, with a header."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from zoo.checkpoint import ONNX, TORCH, Format, export_onnx, export_program, export_safetensors, load_report
from zoo.commands.saved_facts import is_saved
from zoo.errors import CheckpointFormatError, OptionError
from zoo.fetching import is_hub
from zoo.formats import open_checkpoint
from zoo.loading import full_state, input_of, load_model
from zoo.locate import of_hub
from zoo.messages import lengths, printable
from zoo.provenance import header_of_export
from zoo.registry import entries, get_entry, split_name
from zoo.tasks.saved import find_saved, learnt_outputs

if TYPE_CHECKING:
    from torch import Tensor, nn

    from zoo.checkpoint import Inputs
    from zoo.entry import Preprocessing


def asked_for(name: str, checkpoint: Path | None, cache_dir: Path | None = None) -> tuple[str, str | Path | None]:
    """Return the model and the file that a request is for, where a file, or a run's folder, may stand for both.

    Raises:
        OptionError: Two files are given.
        CheckpointFormatError: The file does not say which model it is of.
    """
    if is_hub(name):
        return of_hub(name, checkpoint, cache_dir=cache_dir, progress=True)
    if split_name(name)[0] in entries() or not is_saved(name):
        return name, checkpoint
    if checkpoint is not None:
        raise OptionError(f"{name} and --checkpoint {checkpoint} are two files; one is expected")
    file = find_saved(name)
    model = open_checkpoint(file).metadata.get("model", "")
    if model not in entries():
        said = f"names {printable(model)!r}, which the zoo does not have" if model else "has no header that names one"
        raise CheckpointFormatError(
            f"{file} does not say which model of the zoo it is of: it {said}. Name it: zoo export NAME OUT "
            f"--checkpoint {file}; `zoo inspect {file}` says which fit"
        )
    return model, file


def export_weights(
    name: str, out: Path, checkpoint: str | Path | None, *, half: bool, full: bool, cache_dir: Path | None
) -> list[str]:
    """Write weights as safetensors, under the names of the library class; returns what to say of it.

    Raises:
        OptionError: The file cannot have this name.
    """
    _check_out(out, ".safetensors")
    model = load_model(name, checkpoint=checkpoint, cache_dir=cache_dir)
    state = full_state(name, model) if full else model.state_dict()
    header = header_of_export(name, model, checkpoint, cache_dir)
    return [str(export_safetensors(state, out, half=half, metadata=header))]


def export_as_program(
    name: str, out: Path, form: Format, checkpoint: str | Path | None, *, size: str | None, cache_dir: Path | None
) -> list[str]:
    """Write a network as a program; returns what to say of it.

    Args:
        name: `MODEL` or `MODEL.TAG`.
        out: The file.
        form: `ONNX` or `TORCH`.
        checkpoint: The user's file; None for the weights that the name stands for.
        size: Sides of the images, as `96,96,96`; None for those of the input contract, or of the windows.
        cache_dir: Cache folder; default `$ZOO_HOME`.

    Raises:
        OptionError: The file cannot have this name, or the network cannot have images of this size.
        CheckpointMismatchError: The program does not give what the network gives.
    """
    _check_out(out, form.suffix)
    network = load_model(name, checkpoint=checkpoint, cache_dir=cache_dir)
    contract = input_of(name, checkpoint, cache_dir)
    sides = _sides(name, network, contract, learnt_outputs(checkpoint, cache_dir).window, size)
    inputs = _drawn(name, network, contract, sides)
    _check_takes(name, network, inputs, sides)
    header = header_of_export(name, network, checkpoint, cache_dir)
    write = export_onnx if form is ONNX else export_program
    done = write(network, inputs, out, header)
    return [
        str(done.path),
        f"a program in {form.name} for any number of images of {lengths(sides)}; on drawn images it is at most "
        f"{done.difference:.1g} of the largest output away from the network ({done.tolerance:.0e} is allowed)",
    ]


def _check_out(out: Path, suffix: str) -> None:
    """Refuse a name that says another format, before anything is loaded."""
    if out.suffix == suffix and out.absolute().parent.is_dir():
        return
    others = {form.suffix: form.option for form in (ONNX, TORCH)} | {".safetensors": "neither option"}
    hint = f"; with {others[out.suffix]} it may end in {out.suffix}" if out.suffix in others.keys() - {suffix} else ""
    raise OptionError(f"{out}: expected a name that ends in {suffix}, in a folder that exists{hint}")


def _sides(
    name: str, network: nn.Module, contract: Preprocessing, window: tuple[int, ...], size: str | None
) -> tuple[int, ...]:
    """The sides of the images that a program takes: those asked for, else the network's own where it has any."""
    entry = get_entry(name)
    if size is not None:
        words = size.split(",")
        if len(words) != entry.dimension or not all(word.strip().isdecimal() and int(word) > 0 for word in words):
            example = ",".join(["96"] * entry.dimension)
            raise OptionError(f"--size {size}: {entry.dimension} whole numbers are expected, as {example}")
        return tuple(map(int, words))
    known = load_report(network).options.get("img_size") or window or contract.size
    sides = known or (entry.windows.size if entry.windows else ())
    if not sides:
        raise OptionError(
            f"{name} takes images of any size, and a program takes those of one: name it with --size, as "
            f"{','.join(['96'] * entry.dimension)}"
        )
    return tuple(sides)


def _drawn(name: str, network: nn.Module, contract: Preprocessing, sides: tuple[int, ...]) -> Inputs:
    """Makes images of drawn values, as the network's transform would give them; the same for the same number."""
    import torch

    entry = get_entry(name)
    channels = network.get_parameter(entry.stem).shape[entry.stem_axis]
    low, high = contract.value_range
    shift, scale = (contract.mean or (0.0,))[0], (contract.std or (1.0,))[0]

    def inputs(count: int) -> tuple[Tensor, ...]:
        draws = torch.Generator().manual_seed(count)
        drawn = low + (high - low) * torch.rand(count, channels, *sides, generator=draws)
        images = (drawn - shift) / scale
        return (images, torch.rand(count, 3, generator=draws) * 2 - 1) if entry.takes_positions else (images,)

    return inputs


def _check_takes(name: str, network: nn.Module, inputs: Inputs, sides: tuple[int, ...]) -> None:
    """Refuse sides that the network cannot have, in words that name them."""
    import torch

    try:
        with torch.no_grad():
            network(*inputs(1))
    except (RuntimeError, ValueError, AssertionError) as error:
        raise OptionError(
            f"{name} cannot take images of {lengths(sides)} ({printable(str(error))[:200]}): name others with --size"
        ) from error
