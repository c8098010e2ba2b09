"""Hashes the ids of the images that weights were trained on: `python benchmarks/training_hashes.py TABLE --for NAME`.

Writes the list that a record of the zoo's own weights names as `"form": "hashed"`: a CSV with the columns `image` and
`patient`, a row for each training image, sorted. A cell is the first 16 hexadecimal digits of the sha256 of an id, as
the rules of the record read it in the name of the image's file. So the list tells whether an image that somebody has is
among them, and the table of the training stays where it is. Ids are few and public, so that this hides nothing.

TABLE is that of the training run: a column with names of files, and one with the part that each row belongs to. At the
end stands what the record has to say of the list.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from measuring import print_facts

from zoo.evaluation.training_ids import TrainingIds, hashed, training_ids_of
from zoo.fetching import hash_file
from zoo.files import write_text
from zoo.registry import resolve
from zoo.tables import read_columns


def main() -> None:
    """Write the list and print its facts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path)
    parser.add_argument("--for", dest="name", required=True, metavar="NAME", help="MODEL.TAG of the weights")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--path-column", default="file")
    parser.add_argument("--split-column", default="split")
    parser.add_argument("--split", default="train")
    args = parser.parse_args()
    published = training_ids_of(resolve(args.name).record)
    columns = read_columns(args.table).columns
    parts = zip(columns[args.path_column], columns[args.split_column], strict=True)
    rows = hashes_of([file for file, part in parts if part == args.split], published)
    write_text(args.out, "".join(f"{','.join(row)}\n" for row in [("image", "patient"), *rows]), newline="\n")
    facts = {"bytes": args.out.stat().st_size, "sha256": hash_file(args.out)}
    print_facts(facts | {"images": len(rows), "patients": len({patient for _, patient in rows})}, as_json=True)


def hashes_of(files: list[str], published: TrainingIds) -> list[tuple[str, str]]:
    """The hashes of each image and its patient, sorted."""
    read = {file: published.read(file) for file in files}
    if unread := [file for file, found in read.items() if found is None]:
        raise SystemExit(f"no rule of the record reads {len(unread)} of {len(files)} files, the first is {unread[0]}")
    return sorted((hashed(name.image), hashed(name.patient)) for _, name in read.values())


if __name__ == "__main__":
    main()
