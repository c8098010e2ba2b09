"""Generated films with a bright disc where the label is 1, two of each patient, and their table."""

import csv

import numpy as np
from PIL import Image

HEADER = ("file", "patient", "disc", "kind", "age", "site")
KINDS = ("left", "middle", "right")


def write_films(folder, count=40, side=72, header=HEADER):
    """Write `images/` and `labels.csv`; returns the path of the table.

    `disc` is 0 or 1, `kind` which third of the film a small square is in, `age` how bright the film is.
    """
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    rows = []
    for i in range(count):
        disc, third = i % 2, int(rng.integers(3))
        film = rng.normal(80 + i, 12, (side, side))
        if disc:
            y, x = np.mgrid[:side, :side]
            middle = rng.integers(side // 3, side - side // 3, 2)
            film += 70 * ((y - middle[0]) ** 2 + (x - middle[1]) ** 2 < (side / 6) ** 2)
        left = side // 3 * third + side // 9
        film[side // 12 : side // 6, left : left + side // 9] = 255
        name = f"film{i:03d}.png"
        Image.fromarray(np.clip(film, 0, 255).astype(np.uint8)).save(folder / "images" / name)
        rows.append((name, f"p{i // 2}", disc, KINDS[third], f"{20 + i / 2}", "north" if i % 4 < 2 else "south"))
    return write_rows(folder / "labels.csv", rows, header)


def write_rows(path, rows, header=HEADER):
    """Write a table and return its path."""
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path
