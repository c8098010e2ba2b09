"""Turns images into features with a network and its own transform: the callable that every engine runs.

The file is long because one small object is sent to other processes: what it reads, computes and answers stands here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from zoo.arguments import Precision, check_device, check_precision
from zoo.checkpoint import load_report
from zoo.embedding.cases import Cases
from zoo.embedding.heads import check_head, head_outputs
from zoo.embedding.reading import Unit, Units, read_units, unit_of
from zoo.entry import Entry, Parts, Transform
from zoo.errors import InputContractError, OptionError
from zoo.licences import check_request
from zoo.loading import check_channels, input_of, load_model
from zoo.locate import of_hub
from zoo.messages import with_path
from zoo.provenance import base_of, values_digest
from zoo.registry import entries, get_entry
from zoo.settings import local_rank
from zoo.transforms import CropTransform, ImageTransform, SliceTransform, build_transform
from zoo.version import __version__

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from torch import Tensor, nn

_IMAGES_AT_ONCE, _VOLUMES_AT_ONCE = 32, 4
_VOLUMES_OF_PARTS = 4
"""Volumes whose slices, windows or patches go through a GPU together; a CPU loses nothing by a batch that is not full,
and a volume alone is kept sooner."""


class Embedded(NamedTuple):
    """What became of a case."""

    case: int
    """Its position in the list of cases."""
    features: NDArray[Any] | None
    """float32 `(rows, D)`: one row for an image, or one for each slice; maps `(rows, C, *cells)` where asked for."""
    problem: str = ""
    """Why it has no features."""


class Embedder:
    """Features of images, by batches of paths: `embedder({"path": ["a.png", "b.png"]})["feature"]` is `(2, D)`.

    It is small, can be pickled and sent to other processes, and loads its network when it is first called, in each
    process by itself: as it is for `map_batches` of Ray Data, `map(batched=True)` of `datasets`, or Spark.

    Args:
        name: `MODEL` or `MODEL.TAG`, an encoder; or `hf://owner/name@revision`.
        checkpoint: Your own file to use instead of the published weights; its input is the one in its header, else the
            model's, or that of the tag that is named.
        device: Where the network runs; `"auto"` for the GPU of this process, if there is one.
        batch_size: Images at once; of volumes the slices, windows or patches. None for 32 images or slices, else 4, or
            what the family finds fastest.
        cache_dir: Folder of downloads; `$ZOO_HOME`, else `~/.cache/medssl-zoo`.
        precision: `"bf16"` or `"fp16"` for automatic mixed precision; features are float32 in any case.
        layer: Take the map of this stage, a position in `forward_intermediates`, 0 the shallowest and -1 the deepest;
            None for the network's own features.
        tokens: Whether to keep maps as they are, not their means: a row is then a map `(C, *cells)` of each image, or
            of each part of it.
        num_classes: Outputs of the head of your own file: a row, one for each image, is then what the head makes of the
            features. 0 for the features.
        progress: Whether to show how far a download of weights is.

    Raises:
        OptionError: The model has no pooled features, or a value is out of its range.
        UnknownModelError: No such model or tag. The first call raises what else `load_model` does.
    """

    def __init__(
        self,
        name: str,
        *,
        checkpoint: str | Path | None = None,
        device: str | torch.device = "auto",
        batch_size: int | None = None,
        cache_dir: str | Path | None = None,
        precision: Precision = "fp32",
        layer: int | None = None,
        tokens: bool = False,
        num_classes: int = 0,
        progress: bool = False,
    ) -> None:
        self.name, self.checkpoint = of_hub(name, checkpoint, cache_dir=cache_dir, progress=progress)
        self.device, self.cache_dir = device, cache_dir
        self.precision, self.layer, self.tokens, self.progress = precision, layer, tokens, progress
        self.num_classes = num_classes
        self.entry = get_entry(self.name)
        _check(self.entry, batch_size, precision, layer)
        check_device(_device(device))
        # Now, because not every process that loads the network has the environment of this one.
        check_request(self.name, self.checkpoint, cache_dir)
        default = _IMAGES_AT_ONCE if len(self.transform.preprocessing.size) == 2 else _VOLUMES_AT_ONCE
        self.batch_size = batch_size or self.entry.batch_size or default

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the network, which each process loads by itself."""
        return {key: value for key, value in vars(self).items() if key not in ("network", "entry")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Find the entry again, whose functions cannot all be pickled."""
        vars(self).update(state)
        self.entry = get_entry(self.name)

    @cached_property
    def transform(self) -> Transform:
        """What makes images the network's input."""
        return build_transform(input_of(self.name, self.checkpoint, self.cache_dir))

    @cached_property
    def network(self) -> nn.Module:
        """The encoder in eval mode, on its device.

        Raises:
            CheckpointMismatchError: It is to have a head, and the file has none, or one with other outputs.
        """
        where: dict[str, Any] = {"checkpoint": self.checkpoint, "cache_dir": self.cache_dir}
        device = _device(self.device)
        outputs = self.num_classes
        network: Any = load_model(self.name, num_classes=outputs, device=device, progress=self.progress, **where)
        check_channels(self.name, network)
        if outputs:
            check_head(network, outputs)
        if self.layer is not None and not -(stages := len(network.feature_info)) <= self.layer < stages:
            raise OptionError(
                f"layer={self.layer}: {self.entry.name!r} has {stages} stages, 0 to {stages - 1}, or -1 for the last"
            )
        return network  # type: ignore[no-any-return]

    @property
    def of_volumes(self) -> bool:
        """Whether cases are volumes, not films."""
        return not isinstance(self.transform, ImageTransform)

    @property
    def of_lesions(self) -> bool:
        """Whether cases are volumes with a seed point each."""
        return isinstance(self.transform, CropTransform)

    @property
    def rows_of(self) -> str:
        """What the rows of one case are of: `"slice"` or `"patch"`; empty where a case has one row."""
        if self.num_classes:
            return ""
        if isinstance(self.transform, SliceTransform):
            return "slice"
        return "patch" if self.tokens and self.entry.parts else ""

    @property
    def reader(self) -> Callable[[Any], Parts]:
        """What makes parts of a case; it can be pickled and holds no network."""
        if self.entry.parts is None:
            return _Whole(self.transform, is_one=bool(self.num_classes))
        network: Any = self.network
        stride = None if self.layer is None else int(network.feature_info[self.layer]["reduction"])
        return self.entry.parts(network, self.transform, stride, self.cache_dir)

    def facts(self) -> dict[str, Any]:
        """Return what features depend on, for JSON: model, weights, input, options, and the versions of packages."""
        import torch

        report = load_report(self.network)
        weights = {key: value for key, value in base_of(report, self.cache_dir).items() if value not in ("", None)}
        if "sha256" not in weights:
            weights["values_sha256"] = values_digest(self.network)
        facts = weights | {
            "model": report.name,
            "network": self.entry.name,
            "input": asdict(self.transform.preprocessing),
            "options": {name: value for name, value in report.options.items() if value is not None},
            "precision": self.precision,
            "layer": self.layer,
            "tokens": self.tokens,
            "batch_size": self.batch_size,
            "zoo": __version__,
            "torch": torch.__version__,
        }
        as_json: dict[str, Any] = json.loads(json.dumps(facts))
        return as_json

    def preparation(self, cases: Cases) -> dict[str, Any]:
        """Return how files of cases were made ready, a fact beside `facts`; empty where no record says it.

        Raises:
            OptionError: They differ in that.
        """
        found = self.entry.preparation(cases.paths) if self.entry.preparation else {}
        return {"preparation": found} if found else {}

    def units(self, cases: Sequence[int]) -> list[Sequence[int]]:
        """Divide cases into units, each of which goes through the network together: a batch, or a few volumes in parts.

        Units follow from the list alone. So whoever computes them, and wherever a run was stopped, a case has the same
        neighbours and the same features, to the last bit on the same machine. Of another list or `batch_size`, or where
        a case that failed is tried again, features can differ by rounding.
        """
        import torch

        step = self.batch_size
        if self.entry.parts or isinstance(self.transform, SliceTransform):
            step = 1 if torch.device(_device(self.device)).type == "cpu" else _VOLUMES_OF_PARTS
        return [cases[first : first + step] for first in range(0, len(cases), step)]

    def embed(self, unit: Unit) -> list[Embedded]:
        """Return what becomes of the cases of one unit that was read."""
        import torch

        with torch.inference_mode(), self._autocast():
            rows = [row for group in unit.groups for row in self._rows(group)]
        found, first = [], 0
        for read in unit.cases:
            own, first = rows[first : first + read.parts], first + read.parts
            found.append(
                self._embedded(read.case, own, read.is_one) if own else Embedded(read.case, None, read.problem)
            )
        return found

    def embed_parts(self, parts: Sequence[Parts]) -> list[Embedded]:
        """Return what becomes of some images of which the parts were made by `reader`, in their order."""
        return self.embed(unit_of(parts))

    def embed_image(self, image: Any) -> NDArray[Any]:
        """Return the features of one image, `(rows, D)` float32, in any form that the network's transform takes.

        Raises:
            InputContractError: It cannot be what the network was trained on, or its features are not finite; what else
                the transform raises.
        """
        (found,) = self.embed_parts([self.reader(image)])
        if found.features is None:
            raise InputContractError(found.problem)
        return found.features

    def stream(self, cases: Cases, *, workers: int = 0) -> Iterator[Embedded]:
        """Yield what becomes of each case, in their order; one that fails says why and ends nothing.

        Args:
            cases: From `zoo.embedding.find_cases` or `read_list`.
            workers: Processes that read cases meanwhile; 0 to read them in this one.
        """
        for found in self.embed_units(cases, self.units(range(len(cases))), workers=workers):
            yield from found

    def embed_units(self, cases: Cases, units: Units, *, workers: int) -> Iterator[list[Embedded]]:
        """Yield what becomes of the cases of each unit, see `units`."""
        import torch

        pinned = torch.device(_device(self.device)).type == "cuda"
        yield from map(self.embed, read_units(cases, units, self.reader, workers, pinned=pinned))

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
        """Return the columns of a batch with the features of its images.

        Args:
            batch: `path`, a path for each case, and any other columns; of lesions `point` too, `(x, y, z)` in LPS mm.

        Returns:
            The columns, a cell for each row; `slice` or `patch` where a case can have several rows; `feature`, float32
            `(rows, D)`; and `error`, empty where all is well: a case that failed has one row of NaN and the reason.

        Raises:
            OptionError: The batch has no column `path`, or of lesions no `point`, or is one row and no batch.
        """
        import numpy as np

        for needed in ("path", "point") if self.of_lesions else ("path",):
            if needed not in batch:
                raise OptionError(
                    f"a batch with the columns {', '.join(batch)} has no {needed!r}: name the column so, which has "
                    f"{'the path' if needed == 'path' else 'the seed point (x, y, z) in LPS mm'} of each case"
                )
        _check_columns(batch)
        paths = [str(path) for path in batch["path"]]
        points = [(float(x), float(y), float(z)) for x, y, z in batch["point"]] if self.of_lesions else None
        found = list(self.stream(Cases(paths, paths, {}, points)))
        shape = next((each.features.shape[1:] for each in found if each.features is not None), (self._width,))
        rows = [np.full((1, *shape), np.nan, np.float32) if e.features is None else e.features for e in found]
        counts = [len(each) for each in rows]
        columns: dict[str, Any] = {name: _repeated(cells, counts) for name, cells in batch.items()}
        if self.rows_of:
            columns[self.rows_of] = np.array([i for count in counts for i in range(count)], np.int64)
        columns["feature"] = np.concatenate(rows) if rows else np.empty((0, *shape), np.float32)
        return columns | {"error": _repeated([each.problem for each in found], counts)}

    @property
    def _width(self) -> int:
        """Numbers in a row, before there is one."""
        if self.num_classes:
            return self.num_classes
        network: Any = self.network
        return int(network.num_features if self.layer is None else network.feature_info[self.layer]["num_chs"])

    def _autocast(self) -> AbstractContextManager[Any]:
        import torch

        if self.precision == "fp32":
            return nullcontext()
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float16
        return torch.autocast(next(self.network.parameters()).device.type, dtype)

    def rows(self, parts: Parts) -> Tensor:
        """Return the features `(n, D)` of parts, float64 on the CPU, each multiplied by the weight of its part.

        Where cells have weights, they are those of each part's weighted map; with a head, its outputs `(n, K)`.
        """
        import torch

        with torch.inference_mode(), self._autocast():
            return self._rows(parts._replace(abreast=False))

    def _rows(self, group: Parts) -> Tensor:
        weights, found = group.weights, self._abreast(group) if group.abreast else self._in_turn(group)
        if weights is not None and weights.ndim == 1 and not self.tokens:
            found = found * weights[:, None]
        return found

    def _in_turn(self, group: Parts) -> Tensor:
        import torch

        weights, rows, size = group.weights, [], 1 if group.alone else self.batch_size
        for first in range(0, len(group.inputs[0]), size):
            here = slice(first, first + size)
            cells = weights[here] if weights is not None and weights.ndim > 1 else None
            rows.append(self._features([tensor[here] for tensor in group.inputs], group.scale, cells))
        return torch.cat(rows)

    def _abreast(self, group: Parts) -> Tensor:
        """The same, of parts of several images with those of one number together."""
        import torch

        images, *others = group.inputs
        count, rows, step = len(images), [], max(1, self.batch_size // len(images))
        for first in range(0, images.shape[1], step):
            here = slice(first, first + step)
            same = [tensor[here].expand(count, *tensor[here].shape) for tensor in others]
            found = self._features([images[:, here].flatten(0, 1), *same], group.scale)
            rows.append(found.view(count, -1, *found.shape[1:]))
        return torch.cat(rows, dim=1).flatten(0, 1)

    def _features(
        self, given: list[Tensor], scale: Callable[[Tensor], Tensor] | None, cells: Tensor | None = None
    ) -> Tensor:
        """Features `(n, D)` of some parts, or their maps, float64 on the CPU; with a head, its outputs `(n, K)`."""
        device = next(self.network.parameters()).device
        inputs = [tensor.to(device, non_blocking=True) for tensor in given]
        if scale is not None:
            inputs[0] = scale(inputs[0])
        return self._computed(inputs, None if cells is None else cells.to(device)).double().cpu()

    def _computed(self, inputs: list[Tensor], cells: Tensor | None) -> Tensor:
        """Features, or maps; where cells have weights, the weighted sum of each map."""
        network: Any = self.network
        if self.num_classes:
            return head_outputs(network, inputs, cells)
        if self.layer is None and not self.tokens and cells is None:
            rows: Tensor = network(*inputs)
            return rows
        if self.layer is None:
            maps: Tensor = network.forward_features(*inputs)
        else:
            maps = network.forward_intermediates(*inputs, indices=[self.layer], intermediates_only=True)[0]
        maps = maps.float()
        if self.tokens:
            return maps
        return maps.flatten(2).mean(2) if cells is None else (maps * cells.float()[:, None]).flatten(2).sum(2)

    def _embedded(self, case: int, rows: list[Tensor], is_one: bool) -> Embedded:
        import torch

        features = torch.stack(rows)
        features = (features.sum(0, keepdim=True) if is_one and not self.tokens else features).float()
        if not features.isfinite().all():
            return Embedded(case, None, "its features are NaN or infinite")
        return Embedded(case, features.numpy())


@dataclass(frozen=True)
class _Whole:
    """Makes an image one part, as its transform gives it, or each of its slices one."""

    transform: Transform
    is_one: bool = False
    """Whether slices, which all count alike, make one row."""

    def __call__(self, case: Any) -> Parts:
        import torch

        made = self.transform(case)
        if not isinstance(self.transform, SliceTransform):
            return Parts((made[None],))
        slices = made if made.ndim == 4 else made[None]
        weights = torch.full((len(slices),), 1 / len(slices), dtype=torch.float64) if self.is_one else None
        return Parts((slices,), weights)


def reason(cases: Cases, found: Embedded) -> str:
    """Why a case has no features, with its name."""
    return with_path(cases.ids[found.case], found.problem)


def _repeated(cells: Sequence[Any], counts: Sequence[int]) -> list[Any]:
    return [cell for cell, count in zip(cells, counts, strict=True) for _ in range(count)]


def _device(device: str | torch.device) -> str | torch.device:
    if device != "auto":
        return device
    import torch

    return f"cuda:{local_rank()}" if torch.cuda.is_available() else "cpu"


def _check(entry: Entry, batch_size: int | None, precision: str, layer: int | None) -> None:
    if not entry.is_encoder:
        encoders = [other.name for other in entries().values() if other.family == entry.family and other.is_encoder]
        gives = "gives" if len(encoders) == 1 else "give"
        way = f"In its family {' and '.join(encoders)} {gives} them" if encoders else "No model of its family gives any"
        raise OptionError(f"{entry.name!r} has no pooled features: {entry.summary}. {way}")
    if batch_size is not None and batch_size < 1:
        raise OptionError(f"batch_size={batch_size}: at least 1 is expected")
    check_precision(precision)
    if layer is not None and (isinstance(layer, bool) or not isinstance(layer, int)):
        raise OptionError(f"layer={layer!r}: a whole number is expected, the position of a stage; -1 is the last")


def _check_columns(batch: Mapping[str, Any]) -> None:
    """Refuse one row in a batch's place: of a path the letters would be taken for paths."""
    for name, cells in batch.items():
        if isinstance(cells, str) or not hasattr(cells, "__len__"):
            raise OptionError(f"column {name!r} of the batch holds {cells!r:.80}: a list of cells is expected")
    if len(set(lengths := [len(cells) for cells in batch.values()])) > 1:
        raise OptionError(f"columns {', '.join(batch)} of the batch have {lengths} cells: as many in each are expected")
