"""Defines the `zoo` command: its options and its exit codes. Errors go to stderr.

Codes are 0 (done), 1 (failed), 2 (wrong use), 75 (stopped; the same command goes on), 130 and 143 (ended by a signal).

The file is long because every command declares its options here and prints its result; the rooms below do the work.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any

import typer

from zoo.commands.printing import (
    error_text,
    fact_lines,
    input_facts,
    raise_for_failed,
    start_log,
    table_lines,
    training_facts,
)
from zoo.errors import DownloadError, OptionError, UnknownModelError, ZooError
from zoo.features import SUFFIXES
from zoo.messages import escaped, printable
from zoo.oddities import each_once
from zoo.signals import Ended, ended_by_signals
from zoo.stopping import Stopped
from zoo.version import __version__

app = typer.Typer(
    help="Self-supervised models for medical images: list, fetch, prove and use them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Name = Annotated[str, typer.Argument(help="MODEL or MODEL.TAG, see `zoo list`.")]
CacheDir = Annotated[Path | None, typer.Option(help="Cache folder; default $ZOO_HOME, else ~/.cache/medssl-zoo.")]
Checkpoint = Annotated[Path | None, typer.Option(help="Take this file's weights instead of the published ones.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ... or auto.")]
Images = Annotated[list[Path] | None, typer.Argument(help="Images: files, or folders for all that is in them.")]
ImageTable = Annotated[Path | None, typer.Option("--list", help="Table of images: .csv, .tsv or .parquet.")]
IdColumn = Annotated[str | None, typer.Option(help="Its column of ids; default id, if there is one, else the paths.")]
PathColumn = Annotated[str | None, typer.Option(help="Its column of paths; default path, image_path or file.")]
Root = Annotated[Path | None, typer.Option(help="Folder of its paths; default the table's own.")]
Workers = Annotated[
    int | None, typer.Option(help="Processes that read images; default one less than processors, at most 8.")
]
Precision = Annotated[str, typer.Option(help="fp32, bf16 or fp16.")]
BatchSize = Annotated[int | None, typer.Option(help="Images, slices or parts of a volume at once.")]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and leave with its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    _print_anything()
    start_log(debug)
    try:
        with ended_by_signals():
            check_words(arguments)
            app(args=[a for a in arguments if a != "--debug"], prog_name="zoo")
    except Ended as end:
        print(f"zoo: {'interrupted' if end.signal == signal.SIGINT else 'terminated'}", file=sys.stderr)
        raise
    except Stopped as stop:
        if stop.words:  # else they were said by the run
            print(f"zoo: {stop.words}", file=sys.stderr)
        raise
    except (ZooError, OSError) as error:
        if debug:
            raise
        print(error_text(error, as_page=sys.stderr.isatty()), file=sys.stderr)
        raise SystemExit(_exit_code(error)) from error


def _print_anything() -> None:
    """Have characters that a terminal's encoding lacks come out as escapes: a result is not lost for a minus sign."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def check_words(words: Sequence[str]) -> None:
    """Raise `OptionError` for an empty word: taken for a path it would be the working directory.

    No option of any command has an empty value; whoever types one has a variable of the shell that is not set.
    """
    for i, word in enumerate(words):
        if not word or (word.startswith("--") and word.endswith("=")):
            behind = f" behind {printable(words[i - 1])}" if i and not word else ""
            raise OptionError(
                f"the argument {printable(repr(word))}{behind} is empty: a value is expected. Is a variable of the "
                "shell not set? `.` is the working directory"
            )


def _exit_code(error: Exception) -> int:
    """2 for wrong use, 1 for what failed, such as a file that is not there."""
    is_wrong_use = isinstance(error, OptionError | UnknownModelError) and not isinstance(error, FileNotFoundError)
    return 2 if is_wrong_use else 1


def _print_version(asked: bool) -> None:
    if asked:
        print(f"zoo {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error, and the log.")] = False,
) -> None:
    """Take the options of all commands (`--debug` is read in `main`, wherever it stands)."""


@app.command("list")
def list_command(
    pattern: Annotated[str, typer.Argument(help="Shell pattern of MODEL or MODEL.TAG, as '*.mine'.")] = "*",
    modality: Annotated[str | None, typer.Option(help="Only for ct, mri or xray.")] = None,
    task: Annotated[str | None, typer.Option(help="Only encoder, segmentation or restoration.")] = None,
    available: Annotated[
        bool, typer.Option("--available", help="Only what can be loaded now without asking anyone.")
    ] = False,
    commercial: Annotated[
        bool, typer.Option("--commercial", help="Only what all its licences allow commercial use of.")
    ] = False,
    as_json: Json = False,
    cache_dir: CacheDir = None,
) -> None:
    """List the models and their weights. A star marks the weights that the name without a tag loads.

    Maps are "fresh" where the weights lack the part of the network that makes them: fine-tune it first. "commercial" is
    the strictest of what the licences of code, weights and data say of such use. Filters are joined: `zoo list
    --modality ct --task encoder --available`.
    """
    from zoo.commands.listing import filters_for, list_weights, passing, why_none
    from zoo.registry import list_models

    filters = filters_for(modality, task, available, commercial)
    matching = list_weights(list_models(), pattern, cache_dir=cache_dir)
    if not matching and not as_json:
        raise UnknownModelError(
            f"no MODEL and no MODEL.TAG matches {pattern!r}; a pattern stands for the whole name, as 'caid*' does; "
            "`zoo list` shows all"
        )
    found = passing(matching, filters)
    if found or as_json:
        _print_weights(found, as_json)
    else:
        _say(why_none(matching, filters))


def _print_weights(found: Sequence[Any], as_json: bool) -> None:
    """A line for each of some weights."""
    if as_json:
        _print_json([asdict(each) for each in found])
    else:
        _print_table([each.row() for each in found])


@app.command()
def info(
    name: Annotated[
        str, typer.Argument(help="MODEL or MODEL.TAG, see `zoo list`; a family, for its models; or a saved file.")
    ],
    as_json: Json = False,
) -> None:
    """Show everything that is known about a model and its weights; or what the file of a run says of itself."""
    from zoo.commands.listing import list_weights, pinned_facts
    from zoo.commands.saved_facts import facts_of, is_saved, page_of
    from zoo.registry import entries, get_entry, model_info, split_name

    if family := [n for n, entry in entries().items() if entry.family == name.replace("-", "_")]:
        return _print_weights(list_weights(family), as_json)
    if split_name(name)[0] not in entries() and is_saved(name):
        saved = facts_of(name)
        return _print_json(saved) if as_json else _say_all(page_of(saved))
    known = model_info(name)
    facts = asdict(known) | pinned_facts(name)
    if as_json:
        return _print_json(facts)
    facts["input"] = input_facts(known.input)
    facts["training_ids"] = training_facts(known.training_ids)
    if known.bytes is None:
        facts["bytes"] = "size not published"
    width = max(map(len, facts))
    for key, value in facts.items():
        for i, line in enumerate(fact_lines(value)):
            _say(f"{key if i == 0 else '':<{width}}  {line}")
    _say(f"{'card':<{width}}  {get_entry(name).card}")
    return None


@app.command()
def download(
    names: Annotated[list[str], typer.Argument(help="MODEL or MODEL.TAG, any number.")],
    cache_dir: CacheDir = None,
) -> None:
    """Fetch and verify weights and their assets; print where they lie.

    Of several names the others are fetched where one fails: exit code 1, and the names that failed at the end.
    """
    from zoo.loading import download_weights

    failed: list[str] = []
    for name in names:
        try:
            _say(f"{name}  {download_weights(name, cache_dir=cache_dir)}")
        except (ZooError, OSError) as error:
            if len(names) == 1:
                raise
            failed.append(name)
            print(error_text(error, as_page=sys.stderr.isatty()), file=sys.stderr)
    raise_for_failed(failed, f"of {len(names)} were not downloaded", DownloadError)


@app.command()
def pin(
    name: Annotated[str, typer.Argument(help="MODEL.TAG, whose record is to be completed.")],
    manifest: Annotated[Path | None, typer.Option(help="Manifest to change; default that of this checkout.")] = None,
    cache_dir: CacheDir = None,
) -> None:
    """For maintainers: fetch a file and write its size, sha256 and sources' commits into its record."""
    from zoo.commands.pin import pin_record

    done = pin_record(name, manifest, cache_dir=cache_dir)
    for key, value in done.changes.items():
        _say(f"{key}: {value}")
    for source, why in done.unreached.items():
        _say(f"left as it is, for its host does not answer: {source} ({why})")
    complete = f"the record of {name} is {'as complete as can be' if done.unreached else 'complete'}"
    _say(f"{done.manifest}: {'changed' if done.changes else complete}")


@app.command()
def verify(
    names: Annotated[list[str] | None, typer.Argument(help="MODEL or MODEL.TAG; default all.")] = None,
    cache_dir: CacheDir = None,
) -> None:
    """Hash downloaded files again; exit 1 and name every file that has another digest than it must have."""
    from zoo.commands.carrying import files_of
    from zoo.fetching import verify_file
    from zoo.manifest import records, tagged_record
    from zoo.registry import get_entry, list_models, split_name

    problems: list[str] = []
    chosen = names or [f"{n}.{r.tag}" for n in list_models() for r in records(n, cache_dir)]
    for name in chosen:
        model, tag = split_name(name)
        get_entry(name)
        for record in (tagged_record(model, tag, cache_dir),) if tag else records(model, cache_dir):
            try:
                files = files_of(record)
            except OptionError as error:  # its training images are said in a form that is none; others are looked at
                problems.append(f"{model}.{record.tag}: {error}")
                _say(f"{model}.{record.tag}  {record.filename}  PROBLEM: {error}")
                continue
            for file in files.values():
                result = verify_file(file, cache_dir=cache_dir)
                problems += result.problems
                verdict = "BAD" if result.problems else "ok" if result.found else "not downloaded"
                _say(f"{model}.{record.tag}  {file.filename}  {verdict}")
    raise_for_failed(dict.fromkeys(problems), "file(s) were not verified", ZooError)


@app.command()
def inspect(file: Annotated[Path, typer.Argument(help="Any checkpoint.")], as_json: Json = False) -> None:
    """Show what a checkpoint holds and which models it fits. Nothing in it is run."""
    from zoo import inspect_checkpoint

    summary = inspect_checkpoint(file)
    if as_json:
        _print_json(asdict(summary))
    else:
        print(escaped(str(summary)))
    if summary.problem:
        raise SystemExit(1)


@app.command()
def manifest(
    names: Annotated[list[str] | None, typer.Argument(help="MODEL or MODEL.TAG; default all weights.")] = None,
    form: Annotated[str, typer.Option("--as", help="json, csv, curl or sha256sum.")] = "json",
    cache_dir: CacheDir = None,
) -> None:
    """Print where weights, their assets and lists of training images are, with sizes and digests, to carry them.

    `--as curl` prints commands that fetch them into a folder, `--as sha256sum` the lines that `sha256sum -c` checks
    there. On the other machine ZOO_MIRROR=FOLDER or `zoo import FOLDER` takes the folder. No connection is opened.
    """
    from zoo.commands.addresses import list_addresses, write_page

    page = write_page(form, list_addresses(names or [], cache_dir))
    print(escaped(page.text))
    for line in page.left_out:
        print(f"zoo: left out: {printable(line)}", file=sys.stderr)


@app.command("import")
def import_command(
    name: Annotated[str, typer.Argument(help="MODEL or MODEL.TAG to import the file as; or a folder alone.")],
    file: Annotated[Path | None, typer.Argument(help="Your checkpoint.")] = None,
    size: Annotated[int | None, typer.Option(help="Side of the images it was trained on, if not the model's.")] = None,
    num_classes: Annotated[int | None, typer.Option(help="Classes of its head, where the file cannot tell.")] = None,
    default: Annotated[bool, typer.Option("--default", help="Let MODEL without a tag load it from now on.")] = False,
    cache_dir: CacheDir = None,
) -> None:
    """Import your own checkpoint into the cache, so that `load_model(MODEL.TAG)` finds it.

    `zoo import FOLDER` takes every file in a folder whose digest is on record, whatever its name: exit code 1 where one
    is damaged, or none is known.
    """
    if file is None:
        return _import_folder(Path(name), cache_dir, has_options=default or (size, num_classes) != (None, None))
    from zoo.commands.importing import import_weights
    from zoo.registry import get_entry

    record = import_weights(name, file, size=size, num_classes=num_classes, default=default, cache_dir=cache_dir)
    full_name, contract = f"{record.models[0]}.{record.tag}", get_entry(name).preprocessing.override(record.input)
    _say(f"imported {file} as {full_name} (sha256 {record.sha256}, trained by {record.trained_by})")
    if record.sha256_note:
        _say(record.sha256_note)
    volumes = f"volumes of {contract.size}" if contract.size else f"the input that `zoo info {full_name}` says"
    sides = " x ".join(map(str, contract.size))
    images = f"images of {sides} pixels (import it with --size if it was trained on others)"
    takes = images if len(contract.size) == 2 else volumes
    _say(f"load it with zoo.load_model({full_name!r}); it takes {takes}")
    _say_default(name, cache_dir)
    _say(f"undo: zoo remove {full_name}")
    return None


def _import_folder(folder: Path, cache_dir: Path | None, *, has_options: bool) -> None:
    """Print what became of each file of a folder."""
    from zoo.commands.taking import check_found, import_folder

    if not folder.is_dir() or has_options:
        raise OptionError(f"zoo import {folder}: expected MODEL[.TAG] and a file, or a folder alone without options")
    found = import_folder(folder, cache_dir)
    for each in found:
        _say(f"{each.verdict}  {each.path}  {each.said}")
    check_found(folder, found)


@app.command()
def remove(
    name: Annotated[str, typer.Argument(help="MODEL.TAG, as it was imported.")], cache_dir: CacheDir = None
) -> None:
    """Undo an import: forget the name, and delete the copy in the cache. Your own file stays where it is."""
    from zoo.commands.removing import remove_weights

    record = remove_weights(name, cache_dir=cache_dir)
    own = record.provenance.get("file") or record.sources[0].removeprefix("file:")
    _say(f"removed {record.models[0]}.{record.tag} (sha256 {record.sha256}); {own} was not touched")
    _say_default(name, cache_dir)


def _say_default(name: str, cache_dir: Path | None) -> None:
    """Print which weights a model's plain name stands for."""
    from zoo.manifest import plain_record
    from zoo.registry import split_name

    model = split_name(name)[0]
    plain = plain_record(model, cache_dir)
    means = f"loads {model}.{plain.tag}, trained by {plain.trained_by}" if plain else "loads nothing: name a tag"
    _say(f"without a tag, {model} {means}")


@app.command()
def export(
    name: Annotated[
        str,
        typer.Argument(help="MODEL or MODEL.TAG, see `zoo list`; or a file or folder of a run, which names its model."),
    ],
    out: Annotated[Path | None, typer.Argument(help="File to write: .safetensors, .onnx or .pt2.")] = None,
    checkpoint: Checkpoint = None,
    half: Annotated[bool, typer.Option("--half", help="Half precision; 1-D tensors stay float32.")] = False,
    full: Annotated[
        bool, typer.Option("--full", help="Add neutral values for tensors that only the plain library class has.")
    ] = False,
    onnx: Annotated[bool, typer.Option("--onnx", help="Write the network as ONNX, OUT.onnx.")] = False,
    torch_export: Annotated[
        bool, typer.Option("--torch-export", help="Write the network as torch.export does, OUT.pt2.")
    ] = False,
    size: Annotated[
        str | None, typer.Option(help="With these two: sides of the images, as 96,96,96; default the input's.")
    ] = None,
    to_hub: Annotated[
        str | None, typer.Option(help="ORG/NAME on the Hugging Face hub, in place of OUT, for the file of a run.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="With --to-hub: the repository must be private.")] = False,
    revision: Annotated[str | None, typer.Option(help="With --to-hub: branch; default main.")] = None,
    cache_dir: CacheDir = None,
) -> None:
    """Write a model's weights as safetensors, under the names of the library class it is built from.

    The header states the input and the origin of the weights, and keeps what a recipe wrote into it.

    With --onnx or --torch-export the network itself is written, as a program for any number of images that needs
    nothing of the zoo; the header goes with it. It is run on drawn images, and kept only if it gives what the network
    gives.

    With --to-hub the file of a run goes to the hub with a page that says what it is and where it is from, and
    load_model("hf://ORG/NAME") loads it. What began with weights that may not be passed on is refused.
    """
    from zoo.checkpoint import ONNX, TORCH
    from zoo.commands.exporting import asked_for, export_as_program, export_weights

    as_program = onnx or torch_export
    if (onnx and torch_export) or (as_program and (half or full)) or (size and not as_program):
        raise OptionError(
            "zoo export: expected --onnx or --torch-export, to which --size belongs, or else --half and --full"
        )
    if (to_hub is None) == (out is None) or (to_hub and (as_program or full)) or ((private or revision) and not to_hub):
        raise OptionError(
            "zoo export: expected a file OUT, or --to-hub ORG/NAME in its place, with which --private and --revision go"
        )
    model, file = asked_for(name, checkpoint, cache_dir)
    if out is None:
        from zoo.commands.uploading import upload

        options: dict[str, Any] = {"private": private, "revision": revision, "cache_dir": cache_dir}
        return _say_all(upload(model, str(to_hub), file, half=half, **options))
    if as_program:
        form = ONNX if onnx else TORCH
        return _say_all(export_as_program(model, out, form, file, size=size, cache_dir=cache_dir))
    return _say_all(export_weights(model, out, file, half=half, full=full, cache_dir=cache_dir))


@app.command("embed")
def embed_command(
    name: Name,
    paths: Images = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder, which a stopped run goes on with; or .npz or .csv.")
    ] = None,
    table: ImageTable = None,
    path_column: PathColumn = None,
    id_column: IdColumn = None,
    root: Root = None,
    checkpoint: Checkpoint = None,
    device: Device = "auto",
    batch_size: BatchSize = None,
    workers: Workers = None,
    precision: Precision = "fp32",
    layer: Annotated[
        int | None, typer.Option(help="Stage of the network to take features from, 0 for the first.")
    ] = None,
    tokens: Annotated[bool, typer.Option("--tokens", help="Keep maps, not their means.")] = False,
    half: Annotated[bool, typer.Option("--half", help="Keep features as float16.")] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try images again that failed in an earlier run.")
    ] = False,
    redo_changed: Annotated[
        bool, typer.Option("--redo-changed", help="Do images again whose files were changed after their rows.")
    ] = False,
    engine: Annotated[str, typer.Option(help="local, or ray for a Ray cluster.")] = "local",
    ray_address: Annotated[str | None, typer.Option(help="HOST:PORT of the Ray cluster, or local.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Try a few images, and say what a run takes and refuses.")
    ] = False,
    cache_dir: CacheDir = None,
) -> None:
    """Write the features of images, a row for each, or for each slice where the network takes slices.

    An image that cannot be embedded is left out and named at the end: exit code 1, with all other rows written.
    """
    from zoo.commands import embedding
    from zoo.embedding import Embedder, keep_freed_memory

    keep_freed_memory()
    again = {"retry_failed": retry_failed, "redo_changed": redo_changed}
    for_folders = {"half": half, **again, "engine": engine != "local", "ray_address": ray_address}
    embedding.check_arguments(out, is_trial=dry_run, **for_folders)
    options: dict[str, Any] = {"batch_size": batch_size, "precision": precision, "layer": layer, "tokens": tokens}
    embedder = Embedder(name, checkpoint=checkpoint, device=device, cache_dir=cache_dir, progress=True, **options)
    columns = {"path_column": path_column, "id_column": id_column}
    cases = embedding.find(embedder, paths or [], table, root=root, **columns)
    if dry_run or out is None:
        lines = embedding.trial(embedder, cases, out, workers, half=half, retry_failed=retry_failed)
    elif out.suffix in SUFFIXES:
        lines = embedding.into_file(embedder, cases, out, workers)
    else:
        how: dict[str, Any] = {"half": half, **again, "engine": engine, "ray_address": ray_address}
        lines = embedding.into_folder(embedder, cases, out, workers, **how)
    with each_once():
        _say_all(lines)


@app.command("probe")
def probe_command(
    labels: Annotated[Path, typer.Argument(help="Table with a row for each case: .csv, .tsv or .parquet.")],
    column: Annotated[str, typer.Option(help="Its column of labels: two values, several, or numbers.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the report and what is embedded.")],
    names: Annotated[
        list[str] | None, typer.Argument(help="MODEL or MODEL.TAG to embed the images by, any number.")
    ] = None,
    features: Annotated[
        list[Path] | None, typer.Option(help="Folder, .npz or .csv of `zoo embed`; further ones may follow it.")
    ] = None,
    group: Annotated[str | None, typer.Option(help="Column of what stays together: the patient.")] = None,
    split: Annotated[
        str | None, typer.Option(help="Column of train and test (or val); default cross-validation by group.")
    ] = None,
    kind: Annotated[str | None, typer.Option(help="binary, classes or numbers; default told from the column.")] = None,
    uncertain: Annotated[
        str | None, typer.Option(help="What labels of -1 are beside 0 and 1: ignore, positive or negative.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of the table's paths; default the table's own.")] = None,
    path_column: PathColumn = None,
    device: Device = "auto",
    workers: Workers = None,
    seed: Annotated[int, typer.Option(help="Of folds, draws and resamples.")] = 0,
    no_pictures: Annotated[bool, typer.Option("--no-pictures", help="Leave images out of OUT/report.html.")] = False,
    as_json: Json = False,
    cache_dir: CacheDir = None,
) -> None:
    """Say what encoders are worth on your own labels, beside random weights and plain intensities.

    Nearest neighbours and a linear probe on frozen features, with 10, 25, 50, 100 and all labels, intervals by group,
    and paired differences: zoo probe labels.csv --column finding --group patient NAME... -o OUT

    Features of names are embedded into OUT/features, and found there by the next run. OUT/report.html is for a browser,
    OUT/report.json has everything.
    A star marks a difference whose interval excludes 0 after Holm's correction.
    """
    from zoo.commands.probing import page_of, probe_into

    options: dict[str, Any] = {"column": column, "group": group, "split": split, "kind": kind}
    options |= {"uncertain": uncertain, "data": data}
    options |= {"path_column": path_column, "device": device, "workers": workers, "seed": seed, "cache_dir": cache_dir}
    with each_once():
        report = probe_into(labels, features or [], names or [], out, pictures=not no_pictures, **options)
    if as_json:
        print(report.to_json(), end="")
    else:
        _say_all([*page_of(report, out)])


@app.command("finetune", add_help_option=False, context_settings={"ignore_unknown_options": True})
def finetune_command(
    words: Annotated[list[str] | None, typer.Argument(help="MODEL or MODEL.TAG, and options; see --help.")] = None,
) -> None:
    """Fine-tune a model on your own labels: zoo finetune NAME --task classify --table T --label C -o OUT."""
    from zoo.commands.finetuning import finetune

    finetune(words or [])


@app.command("segment")
def segment_command(
    name: Name,
    paths: Annotated[list[Path], typer.Argument(help="Images: files, series, or folders for all that is in them.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the labels.")],
    checkpoint: Checkpoint = None,
    num_classes: Annotated[int | None, typer.Option(help="Classes of the file, the background among them.")] = None,
    device: Device = "auto",
    batch_size: BatchSize = None,
    overlap: Annotated[float | None, typer.Option(help="Share of a window that the next one covers too.")] = None,
    cache_dir: CacheDir = None,
) -> None:
    """Write the labels of volumes as NIfTI, each on its volume's own grid, or of films as PNG.

    By their published weights ct-fm-segresnet and glcl-unet.phantom segment, the latter drawn hearts alone. All other
    models were pre-trained, their heads are untrained: fine-tune one first, and name its file with --checkpoint.

    What cannot be segmented is left out, and named at the end: exit code 1, with all others written.
    """
    from zoo.commands.segmenting import segment

    options: dict[str, Any] = {"batch_size": batch_size, "overlap": overlap, "cache_dir": cache_dir}
    settings: dict[str, Any] = {"checkpoint": checkpoint, "num_classes": num_classes, "device": _chosen(device)}
    with each_once():
        written = segment(name, paths, out, **settings, **options, say=_say)
    written.check(out)


@app.command("predict")
def predict_command(
    saved: Annotated[Path, typer.Argument(help="Folder that `zoo finetune` wrote, or its model.safetensors.")],
    paths: Images = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Table of answers, .csv, .tsv or .parquet; of labels a folder.")
    ] = None,
    table: ImageTable = None,
    path_column: PathColumn = None,
    id_column: IdColumn = None,
    root: Root = None,
    picture: Annotated[
        bool, typer.Option("--picture", help="Draw what the network looked at, into OUT-pictures beside OUT.")
    ] = False,
    device: Device = "auto",
    batch_size: BatchSize = None,
    workers: Workers = None,
    precision: Precision = "fp32",
    cache_dir: CacheDir = None,
) -> None:
    """Write what a fine-tuned network says of images: a row for each, with its probabilities or numbers.

    Of a network that segments OUT is a folder of labels, each on its image's own grid.

    An image that cannot be what the network was trained on has its reason in the column `error`, of labels on the
    screen: exit code 1, with all others written.
    """
    from zoo.commands.predicting import predict

    options: dict[str, Any] = {"device": device, "batch_size": batch_size, "precision": precision}
    listed: dict[str, Any] = {"path_column": path_column, "id_column": id_column, "root": root}
    how: dict[str, Any] = {"workers": workers, "picture": picture, "cache_dir": cache_dir}
    with each_once():
        _say_all(predict(saved, paths or [], out, table, listed, options, **how))


def _chosen(device: str) -> str:
    if device != "auto":
        return device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


@app.command()
def overlap(
    ids: Annotated[
        list[Path], typer.Argument(help="A table, a .txt of one id a line, or images: files, or folders of them.")
    ],
    name: Annotated[str, typer.Option("--for", help="MODEL or MODEL.TAG, the weights.")],
    column: Annotated[
        str | None,
        typer.Option("--column", "--path-column", help="Of the table; default path, image_path, file or id."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Table to write, .csv, a row for each id.")] = None,
    as_json: Json = False,
    cache_dir: CacheDir = None,
) -> None:
    """Say which of your images weights were trained on, by image and by patient.

    They are looked up by their names in the published list of the training images, which is fetched and verified. A
    name that is not of that list's form is counted as not read, never as unseen.

    Exit code 0 where every id could be looked up and none was seen; 1 where some were seen, or cannot be told.
    """
    from zoo.commands.overlap import check_out, facts_of, page_of, read_ids, write_rows
    from zoo.evaluation.overlap import find_overlap

    check_out(out)
    found = find_overlap(read_ids(ids, name, column), name, cache_dir=cache_dir)
    if out is not None:
        write_rows(found, out)
    if as_json:
        _print_json(facts_of(found))
    else:
        _say_all(page_of(found))
    if not found.is_clean:
        raise SystemExit(1)


@app.command()
def doctor(
    targets: Annotated[
        list[str] | None,
        typer.Argument(help="An image, a volume or a folder; with --offline MODEL or MODEL.TAG, any number."),
    ] = None,
    name: Annotated[str | None, typer.Option("--for", help="MODEL or MODEL.TAG whose input it should be.")] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="With --for: your own checkpoint, whose input counts.")
    ] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="What is missing here to load these models, or all, without connections.")
    ] = False,
    online: Annotated[bool, typer.Option("--online", help="Ask the hosts of weights that are not here.")] = False,
    as_json: Json = False,
    cache_dir: CacheDir = None,
) -> None:
    """Check this installation, or which models an image fits; exit 1 if something is wrong.

    For the installation: libraries, GPU, cache, manifests, and which weights load now. With --offline: which files are
    missing, and their sizes. An image or volume is held against the input of every model, with --for against one. A
    folder is checked as a cohort: how many of its images fit, and which are odd.
    """
    from zoo.commands.doctor import diagnose

    given = targets or []
    if offline and (online or name is not None or checkpoint is not None):
        raise OptionError("--offline goes with names of models alone: zoo doctor --offline [NAME...]")
    if offline:
        return _print_ready(given, as_json, cache_dir)
    if given or name is not None:
        if online or len(given) > 1:
            raise OptionError("one image or folder is expected, without --online: zoo doctor FILE [--for NAME]")
        return _examine(Path(given[0]) if given else None, name, checkpoint, as_json, cache_dir)
    checks = diagnose(cache_dir, online=online)
    if as_json:
        _print_json([asdict(check) for check in checks])
    else:
        _print_table([{"": "ok" if c.ok else "PROBLEM", "check": c.name, "found": c.found} for c in checks])
    if not all(check.ok for check in checks):
        raise SystemExit(1)
    return None


def _print_ready(names: list[str], as_json: bool, cache_dir: Path | None) -> None:
    """Print which files are on this machine, and which are missing."""
    from zoo.commands.readiness import find_ready, summary_of

    found = find_ready(names, cache_dir)
    if as_json:
        _print_json([asdict(each) for each in found])
    else:
        _print_table([each.row() for each in found])
        _say(summary_of(found))
    if any(each.is_missing or each.is_barred for each in found):
        raise SystemExit(1)


def _examine(
    file: Path | None, name: str | None, checkpoint: Path | None, as_json: bool, cache_dir: Path | None
) -> None:
    """Print what was found in an image beside what the model expects."""
    from zoo.commands.examination import examine
    from zoo.commands.fitting import images_in

    if file is None or (name is None and checkpoint is not None):
        raise OptionError("an image is expected before a model: zoo doctor FILE --for NAME")
    images = images_in(file, name) if file.is_dir() else [file]
    if images != [file]:
        return _examine_cohort(images, name, checkpoint, as_json, cache_dir)
    if name is None:
        return _print_fits(file, as_json, cache_dir)
    found = examine(file, name, checkpoint=checkpoint, cache_dir=cache_dir)
    if as_json:
        _print_json(asdict(found))
    else:
        _say(f"{found.path} for {found.model}")
        if found.facts:
            _print_table([asdict(fact) for fact in found.facts])
        for line in found.warnings:
            print(escaped(f"odd: {line}"))
        if found.needs:
            _say(f"needs: {found.needs}")
        fits = f"fits: load_transform gives {found.gives}"
        print(escaped(f"does not fit: {found.problem}" if found.problem else fits))
    if not found.fits:
        raise SystemExit(1)
    return None


def _print_fits(file: Path, as_json: bool, cache_dir: Path | None) -> None:
    """Print which models an image fits, best first, and why not the others."""
    from zoo.commands.fitting import find_fits, fits_page

    found = find_fits(file, cache_dir=cache_dir)
    if as_json:
        _print_json([asdict(each) for each in found])
    else:
        _say_all(fits_page(str(file), found))
    if not any(each.examination.fits for each in found):
        raise SystemExit(1)


def _examine_cohort(
    images: list[Path], name: str | None, checkpoint: Path | None, as_json: bool, cache_dir: Path | None
) -> None:
    """Print how many images of a folder fit a model, by default the one that most of them do, and the odd ones."""
    from zoo.commands.fitting import best_model, check_cohort, cohort_page

    model = name or best_model(images, cache_dir=cache_dir)
    found = check_cohort(images, model, checkpoint=checkpoint, cache_dir=cache_dir)
    if as_json:
        _print_json(asdict(found))
    else:
        _say_all(cohort_page(found))
    if found.problems:
        raise SystemExit(1)


@app.command()
def selftest(
    names: Annotated[list[str] | None, typer.Argument(help="MODEL or MODEL.TAG, any number.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All models.")] = False,
    device: Device = "auto",
    precision: Precision = "fp32",
    as_json: Json = False,
    cache_dir: CacheDir = None,
) -> None:
    """Run networks here and compare each stage with stored values; exit 1, and name the first stage that differs.

    So a new torch, MONAI, timm or GPU is judged in seconds. Tensors are drawn, and nothing is fetched; weights that
    come with the package are run themselves, others are proved by their digest at each load. fp32 is without
    TensorFloat-32.
    """
    from zoo.commands import selftest as tests

    cases = tests.find_cases(names or [], everything=everything, cache_dir=cache_dir)
    outcomes = []
    for outcome in tests.run_each(cases, _chosen(device), precision, cache_dir):
        outcomes.append(outcome)
        if not as_json:
            _say(tests.line_of(outcome))
    if as_json:
        _print_json([tests.row_of(each) for each in outcomes])
    else:
        _say_all(tests.summary_of(outcomes))
    tests.check(outcomes)


@app.command()
def demo(
    image: Annotated[Path | None, typer.Argument(help="A chest radiograph; default a drawn phantom.")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Picture to write.")] = Path("zoo-demo.png"),
) -> None:
    """Run both CAiD networks on an image and draw the results."""
    from zoo.commands.demo import run_demo

    _say(f"picture: {run_demo(image, out)}")


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, default=str))


def _print_table(rows: list[dict[str, Any]]) -> None:
    for line in table_lines(rows):
        _say(line)


def _say_all(lines: Iterable[str]) -> None:
    for line in lines:
        _say(line)


def _say(line: str) -> None:
    """Print one line; text from a file can neither steer the terminal nor forge another line."""
    print(printable(line))
