"""What a fine-tuned network says of images: the callable that `zoo.load_predictor` returns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.embedding import Embedder
from zoo.errors import InputContractError
from zoo.tasks.inputs import input_in_words
from zoo.tasks.saved import OfSaved, read_saved

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from zoo.arguments import Precision
    from zoo.entry import Preprocessing
    from zoo.tasks.segmenting import SegmentPredictor


def load_predictor(
    path: str | Path,
    *,
    device: str | torch.device = "auto",
    batch_size: int | None = None,
    cache_dir: str | Path | None = None,
    precision: Precision = "fp32",
) -> Predictor | SegmentPredictor:
    """Return the predictor of a network that `zoo finetune` trained.

    Example:
        >>> predict = zoo.load_predictor("run")
        >>> predict("film.png")
        {'task': 'classify', 'probabilities': {'pneumonia': 0.83}, 'labels': {'pneumonia': True},
         'thresholds': {'pneumonia': 0.41}}

    A network that segments gives `labels`, uint8 on the image's own grid, with `affine` and `classes`, see
    `SegmentPredictor`; of the others a call of `Predictor` says what it returns.

    Args:
        path: Folder of the run, or its `model.safetensors`, which is all that is needed of it.
        device: Where the network runs; `"auto"` for the GPU of this process, if there is one.
        batch_size: Images at once, of volumes slices, windows or patches; None for what `Embedder` takes.
        cache_dir: Cache folder, for an address and for files that the model's input needs; `$ZOO_HOME`, else
            `~/.cache/medssl-zoo`.
        precision: `"bf16"` or `"fp16"` for automatic mixed precision.

    Raises:
        PathNotFoundError: There is nothing at the path.
        CheckpointFormatError: The file does not say how its outputs become answers, as one of any other program.
        OptionError: The folder has no finished run, or a value is out of its range.
    """
    saved = read_saved(path, cache_dir)
    if saved.task == "segment":
        from zoo.tasks.segmenting import SegmentPredictor

        return SegmentPredictor(saved, device, batch_size, cache_dir=cache_dir, precision=precision)
    options: dict[str, Any] = {"device": device, "batch_size": batch_size, "precision": precision}
    embedder = Embedder(
        saved.model, checkpoint=saved.path, num_classes=len(saved.classes), cache_dir=cache_dir, **options
    )
    return Predictor(saved, embedder)


@dataclass(frozen=True, eq=False, repr=False)
class Predictor(OfSaved):
    """Answers of a fine-tuned network for images; it can be pickled, and each process loads the network by itself."""

    embedder: Embedder
    """What makes the outputs of the head of images."""

    @property
    def thresholds(self) -> dict[str, float]:
        """By name the probability from which on a label, or the second of two classes, is the answer."""
        found = self.outputs.thresholds
        return dict(zip(self.classes[-len(found) :], found, strict=True)) if found else {}

    @property
    def input(self) -> Preprocessing:
        """What images must be."""
        return self.embedder.transform.preprocessing

    def __repr__(self) -> str:
        return f"Predictor({self.saved.in_a_line()}, {input_in_words(self.input)})"

    def __call__(self, image: Any) -> Any:
        """Return the answer for an image, or a list of them for a list of images.

        Args:
            image: What `load_transform` takes: a path, a PIL image, an array or a tensor; of a network that looks at
                one lesion `(volume, point)`. A `list` is several images.

        Returns:
            `task`, and of labels or classes `probabilities` by name. `labels` says by the thresholds whether each
            holds; of classes, `label` is the name of the one that does. `thresholds` has them by name; of classes
            without one the most probable holds. Of numbers `values` by name, in the units of the table.

        Raises:
            InputContractError: An image cannot be what the network was trained on, or cannot be read.
            FileNotFoundError: A path does not exist.
        """
        if not isinstance(image, list):
            return self.answer(self._values([image])[0])
        size = self.embedder.batch_size
        chunks = (self._values(image[first : first + size]) for first in range(0, len(image), size))
        return [self.answer(values) for chunk in chunks for values in chunk]

    def answer(self, values: NDArray[Any]) -> dict[str, Any]:
        """Return the answer that outputs `(K,)` of the network mean, in the form of a call."""
        found = self.outputs.answers(values[None])
        named = dict(zip(self.classes, map(float, found[0]), strict=True))
        if self.outputs.kind == "numbers":
            return {"task": self.task, "values": named}
        held = self.outputs.decisions(found)
        if self.outputs.kind == "classes":
            named_label = {"label": self.classes[int(held[0])]}
            return {"task": self.task, "probabilities": named, **named_label, "thresholds": self.thresholds}
        labels = dict(zip(self.classes, map(bool, held[0]), strict=True))
        return {"task": self.task, "probabilities": named, "labels": labels, "thresholds": self.thresholds}

    def _values(self, images: list[Any]) -> list[NDArray[Any]]:
        """Outputs `(K,)` of each image."""
        reader = self.embedder.reader
        found = self.embedder.embed_parts([reader(image) for image in images])
        for image, each in zip(images, found, strict=True):
            if each.features is None:
                said = image if isinstance(image, str | Path) else "the image"
                raise InputContractError(f"{said}: its outputs are NaN or infinite, by {self.saved.path}")
        return [each.features[0] for each in found if each.features is not None]
