"""What `zoo predict` does: a row of answers for each image, and pictures of what the network looked at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.commands.embedding import find, find_named
from zoo.commands.printing import raise_for_failed
from zoo.commands.segmenting import label_writer, write_each
from zoo.embedding import Cases, embed_each, is_utf8, reason
from zoo.errors import OptionError, PathNotFoundError
from zoo.features import import_pyarrow
from zoo.files import write_atomically
from zoo.images import names_of
from zoo.messages import first_names, printable
from zoo.progress import follow
from zoo.tables import SUFFIXES, ArrowColumn, arrow_array
from zoo.tasks.explain import draw, draw_found
from zoo.tasks.outputs import column_names_of, columns_of
from zoo.tasks.predictor import Predictor, load_predictor
from zoo.training.table import write_table
from zoo.transforms import ImageTransform

if TYPE_CHECKING:
    from zoo.entry import Labels
    from zoo.tasks.segmenting import SegmentPredictor

PARQUET = ".parquet"
ERROR = "error"


def predict(
    saved: Path,
    paths: Sequence[Path],
    out: Path | None,
    table: Path | None,
    listed: Mapping[str, Any],
    options: Mapping[str, Any],
    *,
    workers: int | None = None,
    picture: bool = False,
    cache_dir: Path | None = None,
) -> Iterator[str]:
    """Write the answers of a saved network for images; yields what to print.

    Args:
        saved: Folder of a run, or its file.
        paths: Images, or folders for all that is in them; none with a table.
        out: Where the answers go.
        table: Table of images, in place of paths.
        listed: Options of `read_list` for the table.
        options: Of `load_predictor`.
        workers: Processes that read images.
        picture: Whether pictures are drawn too.
        cache_dir: Cache folder; default `$ZOO_HOME`.

    Raises:
        InputContractError: Some images have no answers; all others are written.
        OptionError: What is asked for has no meaning, or is not there.
        CheckpointFormatError: `saved` does not say how its outputs become answers.
    """
    if out is None:
        raise OptionError("no OUT: name a table, a file .csv, .tsv or .parquet, by -o; for labels of voxels a folder")
    predictor = load_predictor(saved, cache_dir=cache_dir, **options)
    pictures = out.with_name(f"{out.stem}-pictures") if picture else None
    if isinstance(predictor, Predictor):
        check_table(out, table)
        yield from into_table(predictor, find(predictor.embedder, paths, table, **listed), out, workers, pictures)
        return
    check_folder(out, workers)
    films = isinstance(predictor.transform, ImageTransform)
    yield from into_folder(predictor, find_named(paths, table, volumes=not films, **listed), out, pictures)


def check_table(out: Path, table: Path | None = None) -> None:
    """Raise `OptionError` where a table of answers cannot be written, or would replace that of the images."""
    if table is not None and out.resolve() == table.resolve():
        raise OptionError(f"-o {out} is the table of --list, which the answers would replace: give another name")
    if out.suffix not in SUFFIXES or out.is_dir():
        raise OptionError(
            f"-o {out}: a file is expected whose name ends in {', '.join(SUFFIXES)}, for a row for each image"
        )
    if out.suffix == PARQUET:
        import_pyarrow()
    if not out.absolute().parent.is_dir():
        raise PathNotFoundError(f"-o {out}: its folder does not exist; make it first")


def check_folder(out: Path, workers: int | None) -> None:
    """Raise `OptionError` where labels cannot be written, or what is asked for has no meaning for them."""
    if out.suffix in SUFFIXES or (out.exists() and not out.is_dir()):
        raise OptionError(f"-o {out}: the network segments, so a folder for the labels is expected")
    if workers is not None:
        raise OptionError(f"--workers {workers}: a network that segments takes one image after the other; leave it out")


def check_columns(predictor: Predictor, cases: Cases) -> None:
    """Raise `OptionError` where the table of cases has columns that are called like those of the answers."""
    ours = {"id", "path", ERROR, *column_names_of(predictor.outputs, predictor.classes)}
    if taken := [name for name in cases.carried if name in ours]:
        raise OptionError(
            f"the table of --list has columns called {first_names(map(repr, taken))}, as the answers of "
            f"{predictor.saved.path} are: rename them in the table"
        )


def check_texts(out: Path, cases: Cases) -> None:
    """Raise `OptionError` where a path or an id is no text that Parquet takes: a name in other bytes than UTF-8."""
    if out.suffix == PARQUET and (odd := [text for text in (*cases.ids, *cases.paths) if not is_utf8(text)]):
        raise OptionError(
            f"-o {out}: {printable(odd[0])} is no text in UTF-8, as Parquet has it. Rename it, or take .csv"
        )


def into_table(
    predictor: Predictor, cases: Cases, out: Path, workers: int | None, pictures: Path | None = None
) -> Iterator[str]:
    """Write the answers for cases into a table, whole or not at all; yields what to print.

    The columns are `id` where cases have ids of their own, `path`, those that the list of cases has beside it, those of
    `columns_of`, and `error`: a case that failed has the reason there, and no answers.

    Args:
        predictor: Of labels, classes or numbers.
        cases: From `zoo.commands.embedding.find`.
        out: The table, whose name ends in one of the `SUFFIXES`.
        workers: Processes that read images; None for one less than there are processors, at most 8.
        pictures: Folder for a picture of each image that has answers; None for none.

    Raises:
        InputContractError: Some images have no answers; all others are written.
        OptionError: A column of the list is called like one of the answers'.
        OSError: The table cannot be written.
    """
    import numpy as np

    check_columns(predictor, cases)
    check_texts(out, cases)
    if pictures is not None:
        picture_names(cases)  # refused before hours are spent
    found = embed_each(predictor.embedder, cases, workers=workers)
    values = [each.features[0] for each in found if each.features is not None]
    outputs, classes = predictor.outputs, predictor.classes
    answers = columns_of(outputs, classes, np.array(values).reshape(-1, len(classes)))
    good = [each.case for each in found if each.features is not None]
    at = {case: row for row, case in enumerate(good)}
    columns: dict[str, Sequence[Any]] = {"id": cases.ids} if cases.have_ids else {}
    columns |= {"path": cases.paths, **cases.carried}
    given = {name: [cells[at[i]] if i in at else None for i in range(len(cases))] for name, cells in answers.items()}
    given[ERROR] = [each.problem or None for each in found]
    kinds = {name: type(cells[0]) for name, cells in columns_of(outputs, classes, np.zeros((1, len(classes)))).items()}
    write_answers(out, columns, given, kinds | {ERROR: str})
    yield f"{out}: answers for {len(good)} image(s), by {predictor.saved.path}"
    if good and (rule := predictor.outputs.rule(predictor.classes)):
        yield rule
    failed = [reason(cases, each) for each in found if each.features is None]
    if pictures is not None:
        yield from draw_each(predictor, cases, good, pictures)
    raise_for_failed(failed, f"image(s) have no answers, their rows in {out} say why")


def into_folder(predictor: SegmentPredictor, cases: Cases, out: Path, pictures: Path | None = None) -> Iterator[str]:
    """Write the labels of images into a folder, each on its own grid; yields what to print.

    Volumes give `<name>_labels.nii.gz`, films `<name>_labels.png`.

    Raises:
        InputContractError: Some images have no labels; all others are written.
        OptionError: Two images have one name in folders of one name.
        OSError: A file cannot be written.
    """
    write_labels, names = label_writer(out), names_of(list(map(Path, cases.paths)))
    _ = predictor.network  # a file that has not all of it fails once, not for each image

    def write(name: str, path: Path, found: Labels) -> Path:
        numbers, affine = found
        file = write_labels(name, path, (predictor.outputs.in_masks(numbers), affine))
        if pictures is not None:
            draw_found(predictor.transform, predictor.classes, path, found, pictures / f"{name}.png", title=str(path))
        return file

    written = write_each(names, predictor.find, write)
    if written.files:
        known = ", ".join(f"{value} {name}" for value, name in zip(predictor.values, predictor.classes, strict=True))
        yield f"{out}: labels of {len(written.files)} image(s) ({known}), by {predictor.saved.path}"
    if written.files and pictures is not None:
        yield f"{pictures}: pictures of {len(written.files)} image(s)"
    written.check(out)


def write_answers(
    out: Path,
    listed: Mapping[str, Sequence[Any]],
    given: Mapping[str, Sequence[Any]],
    kinds: Mapping[str, type],
) -> None:
    """Write a table, whole or not at all; in Parquet numbers are numbers with all their digits, and gaps are null.

    Args:
        out: The table.
        listed: Columns of the list of cases. A table of text has their cells as they are; those of Parquet keep types.
        given: Columns of the answers, None where there is none.
        kinds: Of the answers of each column, `float`, `int` or `str`: a column may have none.

    Raises:
        OSError: It cannot be written.
    """
    if out.suffix != PARQUET:
        rounded = {name: map(_answer, cells) for name, cells in given.items()}
        columns = {name: list(c) if isinstance(c, ArrowColumn) else c for name, c in listed.items()} | rounded
        write_table(out, list(columns), zip(*columns.values(), strict=True))
        return
    arrow, parquet = import_pyarrow()
    types = {float: arrow.float64(), int: arrow.int64(), str: arrow.string()}
    cells = {name: arrow_array(column) for name, column in listed.items()}
    cells |= {name: arrow.array(column, types[kinds[name]]) for name, column in given.items()}
    table = arrow.table(cells)
    write_atomically(out, lambda path: parquet.write_table(table, path, write_page_checksum=True))


def _answer(value: Any) -> Any:
    """An answer in as many digits as say something; cells of the list keep all of theirs."""
    return f"{value:.6g}" if isinstance(value, float) else value


def draw_each(predictor: Predictor, cases: Cases, good: Sequence[int], folder: Path) -> Iterator[str]:
    """Draw a picture of each of some cases into a folder, which is made; yields what to print."""
    names = picture_names(cases)
    for case in follow(good, "pictures", len(good)):
        draw(predictor, cases.case(case), folder / f"{names[case]}.png", title=printable(cases.ids[case]))
    if good:
        yield f"{folder}: pictures of {len(good)} image(s), by occlusion"


def picture_names(cases: Cases) -> list[str]:
    """Return what the picture of each case is called, without the suffix.

    Raises:
        OptionError: Two files have one name in folders of one name.
    """
    files = names_of(list(dict.fromkeys(map(Path, cases.paths))), "pictures")
    called = {path: name for name, path in files.items()}
    seen: Counter[Path] = Counter()
    found = []
    for path in map(Path, cases.paths):  # of lesions, several may lie in one volume
        seen[path] += 1
        found.append(called[path] if seen[path] == 1 else f"{called[path]}-{seen[path]}")
    return found
