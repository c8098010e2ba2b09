"""Turns a name into a ready network, its transform, or its verified file.

The file is long because it holds all of `load_model`, from the name to the network: each step is called here by name.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.arguments import check_device, check_options, check_switches
from zoo.checkpoint import (
    ATTRIBUTE,
    HEAD_MISFIT,
    HEADER,
    NAMES,
    RECORD,
    LoadReport,
    build_network,
    check_values,
    convert,
    doubt,
    fingerprint,
    guess,
    is_counter,
    left_out,
    load_into,
    load_report,
    refuse_other_family,
    settle,
    unwrap,
    warn_of_silence,
)
from zoo.entry import UNTRAINED, Config, Entry, Preprocessing, State, Transform
from zoo.errors import (
    CheckpointFormatError,
    CheckpointMismatchError,
    InputContractError,
    OptionError,
    UnsafeCheckpointError,
)
from zoo.fetching import clear_leftovers, fetch, file_path, local_file, unpinning
from zoo.formats import Mmap, StoredState, open_checkpoint, other_float
from zoo.licences import check_licences
from zoo.locate import Located, find_file, of_hub
from zoo.manifest import input_for
from zoo.messages import counted, first_names
from zoo.record import WeightsFile
from zoo.registry import get_entry, resolve

if TYPE_CHECKING:
    import torch
    from torch import nn

log = logging.getLogger("zoo")


def load_model(
    name: str,
    *,
    pretrained: bool = True,
    checkpoint: str | Path | None = None,
    num_classes: int | None = None,
    in_channels: int | None = None,
    device: str | torch.device = "cpu",
    cache_dir: str | Path | None = None,
    offline: bool | None = None,
    mmap: Mmap = "auto",
    progress: bool = True,
    **options: Any,
) -> nn.Module:
    """Return a network, filled with pre-trained weights, in float32 and eval mode.

    What was loaded, adapted, made fresh and left out is in `load_report(model)`.

    Args:
        name: `MODEL`, or `MODEL.TAG` for certain weights of it. The options of those weights, such as their classes,
            also hold where your own checkpoint is loaded, or nothing. See `list_models` and `model_info`.
            Or `hf://owner/name@revision` for what `zoo export --to-hub` wrote, whose header names the model.
        pretrained: Whether to load weights; False gives the network's own random ones.
        checkpoint: Your own file to load instead of the published weights, in any form the family's files have; also
            the address of a `model.safetensors` on the hub, `hf://owner/name@revision`.
        num_classes: Outputs of the task head, 0 for no head. None for the network as published, or as the file has it.
        in_channels: Channels of the input, to which the first convolution is adapted. None for as many as in the file.
        device: Where the network is moved to.
        cache_dir: Folder of downloads; `$ZOO_HOME`, else `~/.cache/medssl-zoo`.
        offline: Whether connections are forbidden; None for what `ZOO_OFFLINE` or `HF_HUB_OFFLINE` says.
        mmap: Whether weights stay mapped to their file until they are changed, which makes loading fast. "auto" maps
            files of the package and the cache, unless they lie on a network file system. A mapped file must not be
            saved over while the network lives, and the CRC of its records is not compared: where a file is read, and
            where a copy of it is put into the cache, it is.
        progress: Whether to draw a progress bar while downloading.
        **options: Options of this model alone, for example `projection=True`.

    Raises:
        UnknownModelError: No such model, or no weights with this tag.
        WeightsUnavailableError: No weights can be had under this name; the message lists the ways out.
        PolicyError: `ZOO_POLICY` is set, and refuses the licences of the weights, or of those the file began with.
        DownloadError: The file could not be fetched; `OfflineError`, `IntegrityError` for these causes.
        CheckpointFormatError: The file is not a checkpoint, or has NaN or infinite weights; `UnsafeCheckpointError`
            if it would run code.
        CheckpointMismatchError: The file does not fill the network, or is known to be another family's.
        OptionError: An argument has no meaning for this model.
    """
    check_switches(name, pretrained, mmap)
    name, checkpoint = of_hub(name, checkpoint, cache_dir=cache_dir, offline=offline, progress=progress)
    wanted = resolve(name, cache_dir)  # checked, even where nothing of it is loaded
    entry, record = wanted.entry, wanted.record
    asked = check_options(entry, num_classes, in_channels, options)
    device = check_device(device)
    named = dict(record.options) if record and wanted.tag else {}
    if checkpoint is None and not pretrained:
        return _finish(*_random(entry, named, asked), device)
    with _named(name, checkpoint, record, cache_dir):
        located = find_file(wanted, checkpoint, offline=offline, progress=progress)
        # The user's file may be saved over while the network lives, which a mapping would not survive.
        if mmap == "auto" and checkpoint is not None:
            mmap = False
        stored = open_checkpoint(located.path, mmap=mmap)
        if checkpoint is not None:
            check_licences(stored, cache_dir)
            refuse_other_family(entry, stored, cache_dir)
        state, facts = convert(entry, stored.tensors)
        _check_fingerprint(entry, state, located)
        remark = located.remark(entry, stored, facts)
        alike = doubt(entry, stored, state, remark) if checkpoint is not None else ""
        dropped = located.dropped(stored) | left_out(stored.tensors, state, entry.unused)
        said = {RECORD: located.options, HEADER: _told(entry, located.said(stored), stored.path), NAMES: facts}
        options, said_by = settle(entry, said, asked, named=named)
        config = {**entry.config, **named, **located.options, **facts, **options, **asked}
        model = build_network(entry, config)
        if config.get("projection"):
            _check_projection(entry, model, state)
        report = _fill(model, state, entry, stored, config, are_finite=located.are_finite)
    report = replace(report, dropped=dropped | report.dropped, options=options, said_by=said_by, **located.facts())
    report.config = {option: config[option] for option in entry.config}  # `convert` has facts that are no options
    report.note = "; ".join(filter(None, (report.note, remark, alike)))
    warn_of_silence(report, facts)
    if "in_channels" not in asked:
        _warn_of_channels(config["in_channels"], entry.preprocessing.channels, report.source or name)
    _announce(report, asked.get("num_classes"))
    return _finish(model, report, device)


def load_transform(name: str, *, checkpoint: str | Path | None = None) -> Transform:
    """Return the callable that makes an image or a volume what a model was trained on: float32 `(C, *space)`.

    Where a 2D network was trained on the slices of volumes, a volume gives a batch of them, `(slices, C, H, W)`.
    A tensor that requires a gradient is refused, but for films that are resized as fractions: these keep their graph.

    Args:
        name: `MODEL`, or `MODEL.TAG` for the input of certain weights; or `hf://owner/name@revision`.
        checkpoint: Your own file, as for `load_model`. The input in its header, which recipes write, comes first;
            without one the input of the model, or of the tag that is named, is used, with a warning where a recipe
            wrote the file.

    Raises:
        UnknownModelError: No such model, or no weights with this tag.
        CheckpointFormatError: The file cannot be read.
    """
    from zoo.transforms import build_transform

    return build_transform(input_of(name, checkpoint))


def download_weights(
    name: str, *, cache_dir: str | Path | None = None, offline: bool | None = None, progress: bool = True
) -> Path:
    """Fetch and verify a model's weights and their assets, so that later loads need no connection.

    Args:
        name: `MODEL`, or `MODEL.TAG` for certain weights of it.
        cache_dir: Folder of downloads; `$ZOO_HOME`, else `~/.cache/medssl-zoo`.
        offline: Whether connections are forbidden; None for what `ZOO_OFFLINE` or `HF_HUB_OFFLINE` says.
        progress: Whether to draw a progress bar.

    Returns:
        The weight file.

    Raises:
        UnknownModelError: No such model, or no weights with this tag.
        WeightsUnavailableError: No weights can be had under this name.
        PolicyError: `ZOO_POLICY` is set, and refuses their licences. Nothing was fetched.
        DownloadError: A file could not be fetched; `OfflineError`, `IntegrityError` for these causes.
    """
    record = resolve(name, cache_dir).weights
    clear_leftovers(cache_dir)
    for asset in record.assets.values():
        fetch(asset, request=name, cache_dir=cache_dir, offline=offline, progress=progress)
    return fetch(record, request=name, cache_dir=cache_dir, offline=offline, progress=progress).path


def full_state(name: str, model: nn.Module) -> State:
    """Return a network's state dict with neutral values for what was removed from the plain library class.

    Args:
        name: The model, with or without a tag.
        model: The network, as `load_model` returned it.
    """
    complete = get_entry(name).complete
    state: State = unwrap(model).state_dict()
    return complete(state) if complete else state


def _told(entry: Entry, said: Mapping[str, Any], path: Path) -> Config:
    """The options in a file's header that nothing else in the file tells.

    Raises:
        CheckpointFormatError: An option cannot have such a value.
    """
    told: Config = {
        option: tuple(value) if isinstance(value, list) else value
        for option, value in said.items()
        if option in entry.settled
    }
    others = {option: value for option, value in told.items() if option not in ("num_classes", "in_channels")}
    try:
        check_options(entry, told.get("num_classes"), told.get("in_channels"), others)
    except OptionError as error:
        raise CheckpointFormatError(f"{path} has an invalid header: {error}") from error
    return told


def _check_fingerprint(entry: Entry, state: State, located: Located) -> None:
    expected = located.record.fingerprint.get(entry.name) if located.record else None
    if expected and expected != fingerprint(state):
        raise CheckpointMismatchError(
            f"the file's names and shapes are not those on record for these weights: fingerprint {expected} is "
            f"expected, {fingerprint(state)} was found. The record is of another file, or was copied from another model"
        )


def _random(entry: Entry, named: Config, asked: Config) -> tuple[nn.Module, LoadReport]:
    config = {**entry.config, **named, **asked}
    model = build_network(entry, config, meta=False)
    options, said_by = settle(entry, {}, asked, named=named)
    fresh = dict.fromkeys(model.state_dict(), "random")
    return model, LoadReport(entry.name, fresh=fresh, source="random", options=options, said_by=said_by, config=config)


def _check_projection(entry: Entry, model: nn.Module, state: State) -> None:
    """Refuse a file without the projection head that was asked for; a part of one is a mismatch."""
    head = [name for name in model.state_dict() if name.startswith(entry.head)]
    if entry.stem in state and head and not any(name in state for name in head):
        raise CheckpointMismatchError(
            f"projection=True asks for the projection head, and the file has none ({first_names(head, 2)} expected). "
            "What pre-training saved has it, for example best.pt and last.pt of `python -m zoo.entries."
            f"{entry.family}.pretrain`. Without projection=True this file gives the features"
        )


def _fill(
    model: nn.Module, state: State, entry: Entry, stored: StoredState, config: Config, *, are_finite: bool
) -> LoadReport:
    """Fill a network; `are_finite` says that the values are known to be, and so are not read now."""
    corrected: dict[str, str] = {}

    def read(wanted: State) -> State:
        values = stored.read(wanted)
        if not are_finite:
            check_values(values, stored.path)
        corrected.update(entry.correct(values, config) if entry.correct else {})
        return values

    try:
        report = load_into(model, state, entry, read=read, projection=bool(config.get("projection")))
        loaded = {name: how for name, how in report.loaded.items() if name not in corrected}
        untrained = {name: how for name, how in corrected.items() if how == UNTRAINED}
        adapted = {name: how for name, how in corrected.items() if name not in untrained}
        return replace(report, loaded=loaded, adapted=report.adapted | adapted, fresh=report.fresh | untrained)
    except CheckpointMismatchError as error:
        raise CheckpointMismatchError(
            f"{error}\n  guess: {guess(entry, stored)}\n`zoo inspect {stored.path}` shows what is in the file"
        ) from None


@contextmanager
def _named(
    name: str, checkpoint: str | Path | None, record: WeightsFile | None, cache_dir: str | Path | None
) -> Iterator[None]:
    """Begin errors about a file with the request, and end them with how to accept another file."""
    try:
        yield
    except (CheckpointFormatError, CheckpointMismatchError, UnsafeCheckpointError) as error:
        request = repr(name) if checkpoint is None else f"{name!r}, checkpoint={str(checkpoint)!r}"
        hint = unpinning(record, file_path(record, cache_dir)) if record and checkpoint is None else ""
        hint = hint and f"\n{hint[0].upper()}{hint[1:]}"
        raise type(error)(f"load_model({request}): {error}{hint}") from error.__cause__


def _announce(report: LoadReport, num_classes: int | None) -> None:
    """Log in one line which weights were loaded, and in another whether the head was dropped or is untrained."""
    known = report.trained_by == "authors" or not report.tag  # the user's file needs no such warning
    untrained = [name for name in report.fresh if not is_counter(name)]
    level = logging.INFO if known else logging.WARNING
    origin = (
        "" if known else f". These are not the authors' weights: they were trained by {report.trained_by or 'others'}"
    )
    log.log(
        level,
        "%s: %d tensors loaded, %d adapted, %d fresh, from %s%s",
        report.name,
        len(report.loaded),
        len(report.adapted),
        len(untrained),
        report.source,
        origin,
    )
    misfits = [f"{name}: {why}" for name, why in report.dropped.items() if why.startswith(HEAD_MISFIT)]
    if misfits and num_classes != 0:
        log.warning("%s: the file's head was dropped. %s", report.name, first_names(misfits, 1))
    if untrained and num_classes is None:
        why = UNTRAINED if UNTRAINED in report.fresh.values() else "not in the file"
        log.warning("%s: %s, so untrained: %s", report.name, why, first_names(untrained, 3))


def _finish(model: nn.Module, report: LoadReport, device: torch.device) -> nn.Module:
    """Check that nothing was forgotten on the meta device, attach the report, move the network where it is wanted."""
    import torch

    tensors = dict((*model.named_parameters(), *model.named_buffers()))
    if forgotten := [name for name, tensor in tensors.items() if tensor.is_meta]:
        raise CheckpointMismatchError(f"{report.model!r} was left without values for {first_names(forgotten)}")
    setattr(model, ATTRIBUTE, report)
    if any(other_float(tensor) or tensor.device != device for tensor in tensors.values()):  # a walk takes a while
        model = model.to(device=device, dtype=torch.float32)
    return model.eval()


def input_of(name: str, checkpoint: str | Path | None = None, cache_dir: str | Path | None = None) -> Preprocessing:
    """Return the input that weights were trained on.

    For the user's file it is the input in its header, which recipes write, else the input of the tag that was
    named, else the model's: an import behind the plain name plays no part. A recipe's file without one is warned of.

    Args:
        name: `MODEL` or `MODEL.TAG`.
        checkpoint: The file; None for the weights that the name stands for.
        cache_dir: Cache folder; default `$ZOO_HOME`.

    Raises:
        UnknownModelError: No such model, or no weights with this tag.
        CheckpointFormatError: The file cannot be read, or its header states an impossible input.
        CheckpointMismatchError: Its header, or its digest on record, says that it is of another family.
    """
    from zoo.formats import open_checkpoint

    name, checkpoint = of_hub(name, checkpoint, cache_dir=cache_dir)
    wanted = resolve(name, cache_dir)
    entry, record = wanted.entry, wanted.record if checkpoint is None or wanted.tag else None
    stored = None if checkpoint is None else open_checkpoint(local_file(checkpoint, cache_dir))
    if stored is not None and stored.lacks_header:
        log.warning(
            "%s was saved by a run that did not note its input, so that of %s is used. If the run used another pixel "
            "or voxel size, window or normalisation (see args.json beside the file), inputs will be wrong: train or "
            "export with this version, or import the file with the right input",
            checkpoint,
            name,
        )
    if stored is not None:
        refuse_other_family(entry, stored, cache_dir)
    if stored is not None and "input" in stored.metadata:  # with no fields it is the model's own input that was seen
        try:
            return entry.preprocessing.override(input_for(entry.name, stored.input))
        except OptionError as error:
            raise CheckpointFormatError(f"{checkpoint} has an invalid header: {error}") from error
    found = entry.preprocessing.override(record.input if record else {})
    if stored is not None and not stored.lacks_header and wanted.record and not wanted.tag:
        _warn_of_other_input(
            checkpoint, found, entry.preprocessing.override(wanted.record.input), wanted.record.tag, name
        )
    return found


def check_channels(name: str, network: nn.Module) -> None:
    """Check that a network takes as many channels as its model's transform gives: a file of the user's may have others.

    Args:
        name: What it was loaded as.
        network: As `load_model` returned it.

    Raises:
        InputContractError: It takes another number.
    """
    report, channels = load_report(network), get_entry(name).preprocessing.channels
    given = len(channels)
    takes = report.config.get("in_channels", given)  # where nothing is from a file, as many as the model has
    if takes != given:
        raise InputContractError(
            f"{report.source or name} takes images of {counted(takes, 'channel')}, and those of {name} have {given}: "
            f"{', '.join(channels)}. load_model(..., in_channels={given}) adapts its first convolution: save "
            "that network's state dict, and use its file; or make the images in a program of your own"
        )


def _warn_of_channels(takes: int, channels: Sequence[str], source: str) -> None:
    """Say that a file of the user's takes another number of channels than the images of its model have."""
    if takes != len(channels):
        log.warning(
            "the network in %s takes images of %s, and load_transform makes images of %d (%s): in_channels=%d adapts "
            "the first convolution, else make the images yourself",
            source,
            counted(takes, "channel"),
            len(channels),
            ", ".join(channels),
            len(channels),
        )


def _warn_of_other_input(
    checkpoint: str | Path | None, taken: Preprocessing, of_name: Preprocessing, tag: str, name: str
) -> None:
    """Say that a file says nothing of its input, where that of its model is not that of what the name alone loads."""
    other = [
        f"{field.name} {value} (of {name}.{tag}: {theirs})"
        for field in fields(taken)
        if (value := getattr(taken, field.name)) != (theirs := getattr(of_name, field.name))
    ]
    if other:
        log.warning(
            "%s does not say on what input it was trained, and is given that of %s as published: %s. Where it was "
            "trained on that of %s.%s, name it so, with its tag",
            checkpoint,
            name,
            "; ".join(other),
            name,
            tag,
        )
