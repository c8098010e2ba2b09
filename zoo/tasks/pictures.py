"""Pictures of what a fine-tuned network makes of the test part, as PNG, each whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from zoo.files import write_atomically
from zoo.tasks.measures import BINS, bins_of
from zoo.training.pictures import new_figure

_MOST = 6
"""Cases in a row of a picture, and panels of a figure."""
_SIDE = 2.4
"""Inches of a picture of a case."""


def draw_reliability(path: Path, truth: NDArray[Any], probability: NDArray[Any], names: Sequence[str]) -> None:
    """Draw the share of positive cases against the mean probability of each bin, for up to six outputs.

    Args:
        path: The file.
        truth: `(N, K)`, 1, 0, or NaN where it is not known.
        probability: `(N, K)`.
        names: Of the outputs.
    """
    shown = names[:_MOST]
    figure = new_figure(3.2 * len(shown), 3.6)
    for k, axes in enumerate(figure.subplots(1, len(shown), squeeze=False)[0]):
        known = np.isfinite(truth[:, k])
        y, p = truth[known, k], probability[known, k]
        bins = bins_of(p)
        counts = np.bincount(bins, minlength=BINS)
        filled = counts > 0
        mean, share = (np.bincount(bins, values, minlength=BINS)[filled] / counts[filled] for values in (p, y))
        axes.plot([0, 1], [0, 1], color="grey", linewidth=1, linestyle="--")
        axes.plot(mean, share, marker="o")
        for x, height, count in zip(mean, share, counts[filled], strict=True):
            axes.annotate(str(count), (x, height), textcoords="offset points", xytext=(0, 6), fontsize=7, ha="center")
        axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.1), title=shown[k], xlabel="mean probability")
    figure.axes[0].set_ylabel("share of positive cases")
    figure.suptitle(f"test part, {len(truth)} cases; beside each bin its cases", fontsize=9)
    _save(figure, path)


def draw_numbers(path: Path, truth: NDArray[Any], found: NDArray[Any], names: Sequence[str]) -> None:
    """Draw what was found against the truth, for up to six numbers `(N, K)`."""
    shown = names[:_MOST]
    figure = new_figure(3.4 * len(shown), 3.6)
    for k, axes in enumerate(figure.subplots(1, len(shown), squeeze=False)[0]):
        known = np.isfinite(truth[:, k])
        ends = [min(truth[known, k].min(), found[:, k].min()), max(truth[known, k].max(), found[:, k].max())]
        axes.plot(ends, ends, color="grey", linewidth=1, linestyle="--")
        axes.scatter(truth[known, k], found[known, k], s=10)
        axes.set(title=shown[k], xlabel="truth", ylabel="prediction")
    figure.suptitle(f"test part, {len(truth)} cases", fontsize=9)
    _save(figure, path)


def draw_cases(
    path: Path,
    images: Dataset[Any],
    ids: Sequence[str],
    truth: NDArray[Any],
    answers: Mapping[str, NDArray[Any]],
    names: Sequence[str],
    *,
    plane: tuple[int, int] = (0, 1),
) -> None:
    """Draw the surest right cases above the surest wrong ones, each with probability, threshold and truth.

    Args:
        path: The file.
        images: Data set of the cases, `zoo.tasks.data.WholeImages`; of a volume its middle slice is shown.
        ids: What the cases are called.
        truth: `(N, K)`, 1, 0, or NaN where it is not known.
        answers: `probability` `(N, K)`, `decided` `(N, K)`, and `threshold` `(N, K)`, NaN where the largest decides.
        names: Of the outputs; of several labels each case is shown for the one that is surest.
        plane: The axes of volumes that a slice across the body has.
    """
    right, wrong = surest(truth, answers["probability"], answers["decided"])
    figure = new_figure(_SIDE * _MOST, 2 * (_SIDE + 0.6))
    grid = figure.subplots(2, _MOST)
    for row, title, cases in ((grid[0], "right", right), (grid[1], "wrong", wrong)):
        for axes in row:
            axes.set_axis_off()
        for axes, (i, k) in zip(row[: len(cases)], cases, strict=True):
            axes.imshow(_picture(images[(0, i)]["inputs"][0], plane), cmap="gray")
            said = said_of_case(names[k], answers["probability"][i, k], answers["threshold"][i, k])
            is_or_not = names[k] if truth[i, k] == 1 else f"not {names[k]}"
            axes.set_title(f"{Path(ids[i]).name[-28:]}\n{said}\n{title}, truth: {is_or_not}", fontsize=7)
        if not cases:
            row[0].text(0, 0.5, f"no case is {title}", fontsize=9)
    figure.suptitle("surest of the test part: right above, wrong below", fontsize=9)
    _save(figure, path)


def said_of_case(name: str, probability: float, threshold: float) -> str:
    """The probability of an output, and the one from which on it is the answer; two lines for a title."""
    rule = "the largest is the answer" if np.isnan(threshold) else f"the answer from {threshold:.2f} on"
    return f"{name}: probability {probability:.2f}\n({rule})"


def surest(
    truth: NDArray[Any], probability: NDArray[Any], decided: NDArray[Any]
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Return the surest right and the surest wrong answers, the surest first, each case once: its row and output."""
    known = np.isfinite(truth)
    sureness = np.where(decided, probability, 1 - probability)
    right = decided == (truth == 1)
    found = []
    for which in (right & known, ~right & known):
        order = [divmod(int(i), truth.shape[1]) for i in np.argsort(-np.where(which, sureness, -1), axis=None)]
        chosen: dict[int, int] = {}
        for i, k in order:
            if which[i, k] and i not in chosen and len(chosen) < _MOST:
                chosen[i] = k
        found.append(list(chosen.items()))
    return found[0], found[1]


def _picture(parts: Tensor, plane: tuple[int, int]) -> NDArray[Any]:
    """The first channel of the middle part of an image `(n, C, *space)`; of a volume the middle slice."""
    image = parts[len(parts) // 2, 0]
    if image.ndim == 3:
        across = next(axis for axis in range(3) if axis not in plane)
        image = image.select(across, image.shape[across] // 2)
    picture: NDArray[Any] = image.numpy()
    return picture


def _save(figure: Any, path: Path) -> None:
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=100, format="png"))
