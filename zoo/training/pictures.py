"""Pictures: figures for files, and a slice beside its true labels and the predicted ones."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from zoo.files import write_atomically
from zoo.settings import without

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOURS = 20


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of matplotlib, of so many inches, to be saved to a file.

    A notebook names the backend that shows its figures in a variable. A command that is started there inherits it, and
    may have an environment without that backend, of which a file needs none.
    """
    is_first = "matplotlib" not in sys.modules
    with without("MPLBACKEND") as backend:
        import matplotlib
        from matplotlib.figure import Figure
    if is_first and backend is not None:
        with suppress(ValueError):  # it is not here
            matplotlib.rcParams["backend"] = backend
    return Figure(figsize=(width, height), layout="constrained")


def draw_labels(
    path: Path,
    image: npt.NDArray[Any],
    truth: npt.NDArray[Any],
    found: npt.NDArray[Any],
    *,
    title: str,
    structures: Sequence[str] = (),
) -> None:
    """Draw an image beside its true and its predicted labels, as a PNG, whole or not at all.

    Args:
        path: The file.
        image: `(rows, columns)`, from 0 to 1.
        truth: True labels of the same shape, 0 for the background.
        found: Predicted labels, the same.
        title: Title of the picture.
        structures: Names of the labels 1, 2, ..., for a legend; empty for none.
    """
    figure = new_figure(10, 3.8)
    shown = {"image": np.zeros_like(truth), "truth": truth, "prediction": found}
    colours = {"cmap": f"tab{_COLOURS}", "vmin": 0.5, "vmax": _COLOURS + 0.5, "alpha": 0.6, "interpolation": "nearest"}
    for axes, (name, labels) in zip(figure.subplots(1, 3), shown.items(), strict=True):
        axes.imshow(image, cmap="gray", vmin=0, vmax=1)
        drawn = axes.imshow(np.where(labels > 0, labels, np.nan), **colours)
        axes.set_title(name)
        axes.set_axis_off()
    if structures:
        from matplotlib.patches import Patch

        patches = [Patch(color=drawn.cmap(drawn.norm(i + 1)), label=name) for i, name in enumerate(structures)]
        figure.legend(handles=patches, loc="outside lower center", ncols=len(patches))
    figure.suptitle(title)
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=100, format="png"))
