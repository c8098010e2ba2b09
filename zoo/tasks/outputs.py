"""How the numbers that a fine-tuned network returns become answers: what its file says of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isfinite, nan
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from zoo.errors import CheckpointFormatError, OptionError
from zoo.formats import told
from zoo.images import MOST_CLASSES
from zoo.messages import first_names, printable

if TYPE_CHECKING:
    from numpy.typing import NDArray

Kind: TypeAlias = Literal["labels", "classes", "numbers", "voxels"]
"""`labels` may hold together or not at all: a sigmoid each, one output each. Of `classes` one holds: a softmax over
them. `numbers` are those of the table. `voxels` have one class each, the background first."""


@dataclass(frozen=True)
class Outputs:
    """How outputs become answers; the names of the outputs stand beside it, under `classes` of a header."""

    kind: Kind
    thresholds: tuple[float, ...] = ()
    """Of `labels`, one each: the probability from which on one is taken to hold, chosen on the validation part. Of two
    `classes` one: that of the second. Empty where the largest probability decides."""
    means: tuple[float, ...] = ()
    deviations: tuple[float, ...] = ()
    """Of `numbers`, those of the training part: an answer is output x deviation + mean."""
    window: tuple[int, ...] = ()
    """Of `voxels`, sides of the windows that the network learnt from; empty where it takes slices whole."""
    values: tuple[int, ...] = ()
    """Of `voxels`, the value of each class in the masks that were learnt; empty where it is the number of the class."""

    def limits(self, count: int) -> list[float]:
        """Return from which probability on each of `count` outputs is the answer; NaN where the largest one is.

        Of two classes with a threshold the first is the answer above 1 less that of the second.
        """
        if self.kind == "classes" and self.thresholds:
            return [1 - self.thresholds[0], self.thresholds[0]]
        return list(self.thresholds) or [nan] * count

    def rule(self, names: Sequence[str]) -> str:
        """Return in words how probabilities become decisions; empty where nothing is decided on them."""
        if self.kind == "labels":
            pairs = zip(map(printable, names), self.thresholds, strict=True)
            return "labels hold from these probabilities on: " + ", ".join(f"{name} {t:.3g}" for name, t in pairs)
        if self.kind != "classes":
            return ""
        if self.thresholds:
            return f"{names[1]!r} is the answer from probability {self.thresholds[0]:.3g} on, else {names[0]!r}"
        return "the class with the largest probability is the answer"

    def in_masks(self, numbers: NDArray[Any]) -> NDArray[Any]:
        """Return the values of the masks for numbers of classes, both uint8 and of any shape."""
        import numpy as np

        return np.array(self.values, np.uint8)[numbers] if self.values else numbers

    def as_header(self) -> dict[str, Any]:
        """Return what `make_header` takes; `read_outputs` reads it back."""
        said = {name: value for name, value in asdict(self).items() if value != ()}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in said.items()}

    def answers(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return probabilities of `labels` and `classes`, and `numbers` as the table has them; float64 `(N, K)`.

        Args:
            values: What the network returns of N images, `(N, K)`.
        """
        import numpy as np

        values = np.asarray(values, np.float64)
        if self.kind == "numbers":
            scaled: NDArray[Any] = values * self.deviations + self.means
            return scaled
        if self.kind == "labels":
            halves: NDArray[Any] = 0.5 * (1 + np.tanh(values / 2))  # the sigmoid, which nothing overflows in
            return halves
        powers = np.exp(values - values.max(axis=-1, keepdims=True))
        shares: NDArray[Any] = powers / powers.sum(axis=-1, keepdims=True)
        return shares

    def decisions(self, answers: NDArray[Any]) -> NDArray[Any]:
        """Return what the thresholds say of probabilities `(N, K)`: of `labels` bool `(N, K)`, of `classes` int `(N,)`.

        Raises:
            OptionError: Numbers are nothing to decide on.
        """
        import numpy as np

        if self.kind == "labels":
            held: NDArray[Any] = answers >= np.array(self.thresholds)
            return held
        if self.kind != "classes":
            raise OptionError(f"outputs of kind {self.kind!r} are no probabilities: nothing is decided on them")
        if self.thresholds:
            second: NDArray[Any] = (answers[:, 1] >= self.thresholds[0]).astype(np.int64)
            return second
        largest: NDArray[Any] = answers.argmax(axis=1)
        return largest


def column_names_of(outputs: Outputs, names: Sequence[str]) -> list[str]:
    """Return the names of the columns that `columns_of` gives, for a table with other columns beside them."""
    if outputs.kind == "numbers":
        return [f"predicted_{name}" for name in names]
    probabilities = [f"probability_{name}" for name in names]
    return probabilities + ([f"predicted_{name}" for name in names] if outputs.kind == "labels" else ["predicted"])


def columns_of(outputs: Outputs, names: Sequence[str], values: NDArray[Any]) -> dict[str, list[Any]]:
    """Return the answers for N images as columns of a table.

    Of `labels` and `classes` there is `probability_NAME` for each, and what the thresholds say: `predicted_NAME`, 0 or
    1, for each of the labels, or `predicted` with the name of the class. Of `numbers` there is `predicted_NAME`.

    Args:
        outputs: How the outputs become answers.
        names: Names of the outputs.
        values: What the network returns, `(N, K)`.
    """
    answers = outputs.answers(values)
    found = [column.tolist() for column in answers.T]
    if outputs.kind == "labels":
        found += [column.astype(int).tolist() for column in outputs.decisions(answers).T]
    elif outputs.kind == "classes":
        found.append([names[i] for i in outputs.decisions(answers)])
    return dict(zip(column_names_of(outputs, names), found, strict=True))


def read_outputs(metadata: Mapping[str, str], path: Path) -> tuple[Outputs, tuple[str, ...]]:
    """Return how the outputs of a file become answers, and their names, as its header says.

    Raises:
        CheckpointFormatError: It says nothing of the kind, or what cannot be.
    """
    said, names = told(metadata, "outputs", dict, path), tuple(map(str, told(metadata, "classes", list, path)))
    if not said:
        raise CheckpointFormatError(
            f"{path} does not say how its outputs become answers: a file that `zoo finetune` wrote is expected, "
            f"model.safetensors of its OUT; {_what_it_is(metadata)}"
        )
    try:
        window, values = (tuple(map(int, said.pop(name, ()))) for name in ("window", "values"))
        numbers = {name: tuple(map(float, given)) for name, given in said.items() if name != "kind"}
        found = Outputs(said["kind"], **numbers, window=window, values=values)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointFormatError(f"{path}: its header's outputs are not as `zoo finetune` writes them") from error
    expected = {"labels": [len(names)], "classes": [0, 1], "numbers": [0], "voxels": [0]}
    scales = [len(names)] * 2 if found.kind == "numbers" else [0, 0]
    if (
        found.kind not in get_args(Kind)
        or not names
        or len(set(names)) < len(names)
        or len(found.thresholds) not in expected[found.kind]
        or [len(found.means), len(found.deviations)] != scales
        or not all(map(isfinite, (*found.means, *found.deviations)))
        or not all(0 <= threshold <= 1 for threshold in found.thresholds)
        or not all(deviation > 0 for deviation in found.deviations)
        or (values and (found.kind != "voxels" or len(set(values)) != len(names) or len(values) != len(names)))
        or not all(0 <= value < MOST_CLASSES for value in values)
        or (window and (found.kind != "voxels" or len(window) not in (2, 3) or min(window) < 1))
    ):
        raise CheckpointFormatError(
            f"{path}: its header names {len(names)} outputs, {first_names(map(printable, names), 10)}, that do not go "
            f"with {printable(repr(said))[:200]}: names that differ, thresholds from 0 to 1 and deviations above 0 are "
            "expected, one for each output that needs it. Was it changed by hand?"
        )
    return found, names


def _what_it_is(metadata: Mapping[str, str]) -> str:
    command: Sequence[str] = metadata.get("command", "").split()
    return f"this one is of {printable(' '.join(command[:4]))}" if command else "this one has no header of a run"
