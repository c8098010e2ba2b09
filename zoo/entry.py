"""Defines the vocabulary of the zoo: `Entry`, its input contract `Preprocessing`, and `ModelInfo`.

The file is long because every field says here what it means, which is most of its lines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from math import isfinite
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

from zoo.errors import OptionError

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

State: TypeAlias = "dict[str, Tensor]"
Config: TypeAlias = dict[str, Any]
Labels: TypeAlias = "tuple[NDArray[np.uint8], NDArray[Any] | None]"
"""uint8 `(i, j, k)`, and the matrix `(4, 4)` from voxel `(i, j, k, 1)` to mm; of a film `(H, W)`, and None."""

MODALITIES = ("xray", "ct", "mri")
"""Modalities by the words of `zoo list --modality`."""
TASKS = ("encoder", "segmentation", "restoration")
"""What a network is for, by the words of `zoo list --task`."""
ANATOMIES = ("chest", "abdomen", "brain", "heart", "lesion", "whole body", "any")
"""Parts of the body by the words of `zoo list`; a lesion is looked at in a crop around it."""
UNTRAINED = "stored as it was initialised"
"""Reason of a value that is in a file and that no training has changed: it is reported as fresh."""
PERCENTILES = "percentile"
"""Value of `Preprocessing.normalise` for (x - p1) / (p99 - p1) over the volume, see `zoo.transforms.slices`."""
MIN_MAX = "min-max"
"""Value of `Preprocessing.normalise` for (x - least) / (largest - least) over the whole image."""
NONZERO = "z-score of nonzero"
"""Value of `Preprocessing.normalise` for (x - mean) / deviation over all that is not 0, which stays 0."""
BICUBIC = "bicubic"
"""Value of `Preprocessing.interpolation` for films in 8 bits, see `zoo.transforms.levels`."""
TRILINEAR, AREA = "trilinear", "area"
"""Values of `Preprocessing.interpolation` for whole volumes, see `zoo.transforms.resized`."""
SEED_POINT = "seed point"
"""Value of `Preprocessing.crop` for a box around a point that comes with the volume, see `zoo.transforms.crops`."""


@dataclass(frozen=True)
class Preprocessing:
    """The input contract of a network, which `load_transform` executes.

    An entry holds the default; the `input` of a manifest record overrides single fields for one weight file.
    """

    channels: tuple[str, ...]
    """Meaning of each channel, in order. A grey image is repeated over `("grey", "grey", "grey")`."""
    size: tuple[int, ...]
    """Pixels or voxels of the network's input, in array order `(H, W)` or `(D, H, W)`.

    Empty for volumes of any size.
    """
    resize: int | None = None
    """Length the shorter side is brought to before the centre crop to `size`; None for resizing straight to `size`."""
    interpolation: str | None = None
    """`"bicubic"` for films that Pillow resizes in whole levels of 8 bits. None for linear, antialiased, in fractions.

    `"trilinear"` or `"area"` for whole volumes that are resized to `size`, whatever their proportions. Their axes are
    not turned: another `orientation` is warned of, and so is a field of view that does not give voxels of `spacing`.
    None for volumes that are not resized, see `spline`.
    """
    units: str = "fraction of the largest intensity"
    """Meaning of a value before normalisation."""
    value_range: tuple[float, float] = (0.0, 1.0)
    """Smallest and largest value that the network has seen, before `mean`, `std` and `normalise`.

    A `window` is scaled to it. With `normalise="percentile"` the two percentiles are mapped to it, always 0 and 1;
    values beyond them are kept.
    """
    mean: tuple[float, ...] | None = None
    """Subtracted per channel after scaling to `value_range`; None to leave this step out."""
    std: tuple[float, ...] | None = None
    """Divides per channel after `mean`; None to leave this step out."""
    affine: tuple[tuple[float, ...], ...] | None = None
    """Rows of the 4 x 4 matrix from voxel `(i, j, k, 1)` to mm in the atlas, as nibabel has it, x to the right, y to
    the front, z to the top; with `size` the grid that volumes are brought to. None for volumes in no atlas."""
    orientation: str | None = None
    """Where the axes of a volume in no atlas point to, for example `"RAS"`: right, anterior, superior. None to keep.

    Of slices two letters, see `stacks.turn_of`.
    """
    spacing: tuple[float, ...] | None = None
    """Size in mm of the voxels that a volume in no atlas is resampled to, axis by axis; of slices, in the plane alone.

    None to keep.
    """
    spline: int | None = None
    """Degree of the splines that it is resampled with: 3 for cubic ones. None for 1, linear interpolation."""
    window: tuple[float, float] | None = None
    """Smallest and largest value in `units` that the network knows: volumes are clipped to it. None for no window."""
    normalise: str | None = None
    """`"z-score"` for (x - mean) / deviation over the whole volume, background included. None to leave this step out.

    `"percentile"` for (x - p1) / (p99 - p1) over the whole volume, of which the network takes the slices along the
    third axis: `size` and `spacing` are then those of a slice.

    `"min-max"` for (x - least) / (largest - least) over a film that has more than 8 bits: a DICOM, whose window is then
    left out, or whole numbers of a wider type. Films of 8 bits, and fractions, are taken as they are. Of a volume over
    the whole of it, after its window where there is one.

    `"z-score of nonzero"` for (x - mean) / deviation over the voxels that are not 0 once a volume is resized; 0 stays.
    """
    thickness: tuple[float, float] | None = None
    """Smallest and largest distance in mm between the slices of the volumes that the network knows; None for any."""
    crop: str | None = None
    """What is cut out of a volume: `"seed point"` for `size` voxels around a point in mm that comes with it.

    None for the whole volume.
    """
    modality: str | None = None
    """DICOM's Modality of the images, `"CT"` or `"MR"`; `"CR"` stands for all films of the chest. None if unchecked.

    DICOM files must have it; for a file that does not state its modality the values decide.
    """

    def override(self, changes: Mapping[str, Any]) -> Preprocessing:
        """Return a copy with the `input` of a manifest record or of a file's header (JSON lists become tuples).

        Raises:
            OptionError: `changes` names a field that does not exist, or one has a value that it cannot have.
        """
        known = {f.name for f in fields(self)}
        if unknown := sorted(set(changes) - known):
            raise OptionError(f"unknown input field(s) {unknown}; the fields are {sorted(known)}")
        values: dict[str, Any] = {name: _frozen(value) for name, value in changes.items()}
        if wrong := [f"{name} {value!r:.80}" for name, value in values.items() if not _CAN_BE.get(name, _any)(value)]:
            raise OptionError(f"input field(s) with an impossible value: {', '.join(wrong)}")
        return replace(self, **values)


def _are_sides(value: Any) -> bool:
    return isinstance(value, tuple) and all(type(n) is int and n > 0 for n in value)


def _are_numbers(value: Any) -> bool:
    return isinstance(value, tuple) and all(type(n) in (int, float) and isfinite(n) for n in value)


def _any(value: Any) -> bool:
    return True


_CAN_BE: Mapping[str, Callable[[Any], bool]] = {
    "size": _are_sides,
    "resize": lambda value: value is None or _are_sides((value,)),
    "value_range": lambda value: _are_numbers(value) and len(value) == 2,
    **dict.fromkeys(("mean", "std", "spacing"), lambda value: value is None or _are_numbers(value)),
    **dict.fromkeys(("window", "thickness"), lambda value: value is None or (_are_numbers(value) and len(value) == 2)),
    **dict.fromkeys(("orientation", "normalise", "modality"), lambda value: value is None or isinstance(value, str)),
    "interpolation": lambda value: value in (None, BICUBIC, TRILINEAR, AREA),
    "affine": lambda value: value is None or (isinstance(value, tuple) and all(map(_are_numbers, value))),
    "crop": lambda value: value in (None, SEED_POINT),
    "channels": lambda value: isinstance(value, tuple) and all(isinstance(name, str) for name in value) and value != (),
    "units": lambda value: isinstance(value, str),
}
"""Checks of single fields that no transform makes: anybody can write records and headers."""


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value


@dataclass(frozen=True)
class Augment:
    """How a network's input may be changed at random and still be one that it could be given: what fine-tuning does.

    Axes are those of space, 0 the first. Of the chest and the abdomen nothing is mirrored: the side of heart and liver
    says something. A brain has two sides alike, a lesion in a crop has no sides.
    """

    mirrors: tuple[int, ...] = ()
    """Axes that may be mirrored, each in half of the draws."""
    plane: tuple[int, int] = (0, 1)
    """The two axes that a rotation turns; of volumes those of a slice across the body, where pixels are square."""
    degrees: float = 10.0
    """Largest rotation, to either side."""
    zoom: float = 0.1
    """Largest change of size: 0.1 for 0.9 to 1.1 times as large."""
    shift: float = 0.05
    """Largest shift, as a share of each side."""
    gain: float = 0.1
    """Largest change of contrast: values are multiplied by 1 - gain to 1 + gain."""
    offset: float = 0.1
    """Largest shift of values, in their standard deviations; 0 where a value means something, as background."""


class Transform(Protocol):
    """Makes one image or volume the input of a network, as `load_transform` returns it; printing shows its steps."""

    @property
    def preprocessing(self) -> Preprocessing:
        """The input contract that it executes."""

    def __call__(self, image: Any, /) -> Tensor:
        """Return float32 `(C, *space)`, of a volume whose network takes slices `(slices, C, H, W)`.

        Raises:
            InputContractError: It cannot be what the network was trained on, or cannot be read.
            FileNotFoundError: The path does not exist.
        """


@dataclass(frozen=True)
class Windows:
    """Windows in which a whole image goes through a network that segments; where they overlap, logits are averaged."""

    size: tuple[int, ...]
    """Pixels or voxels along each axis of the input; empty for `Preprocessing.size`."""
    overlap: float = 0.25
    """Share of a window that the next one covers too, from 0 to below 1."""
    at_once: int = 4
    """Windows that go through the network together."""
    gaussian: bool = False
    """Whether a voxel counts by a Gaussian around the middle of its window; else all voxels count alike."""
    margin: int = 0
    """Voxels that are kept around the box of all that lies above the least value of the input."""


class Parts(NamedTuple):
    """What a network is given of one image: n parts of it, such as its slices, windows or patches."""

    inputs: tuple[Tensor, ...]
    """Arguments of the network, each `(n, ...)`."""
    weights: Tensor | None = None
    """How much each part counts in the features of the image, `(n,)`, or each cell of its map, `(n, *cells)`.

    They sum to 1. None for features of each part.
    """
    alone: bool = False
    """Whether each part goes through the network by itself: of one whose features depend on the rest of a batch."""
    corners: tuple[tuple[int, ...], ...] | None = None
    """Where each part begins in the volume that they were cut from, in voxels, for pictures; None if nothing says."""
    abreast: bool = False
    """Whether parts of several images go through the network together where they have the same number: of one that has
    kernels for each number. All arguments but the first are then the same for all images."""
    scale: Callable[[Tensor], Tensor] | None = None
    """What makes the first argument of it, once it is where the network is; None where it is that already.

    So images travel in as few bytes as they are stored in.
    """

    def scaled(self) -> Parts:
        """Return the same parts as the network takes them, for whoever does not leave that to an `Embedder`."""
        if self.scale is None:
            return self
        return self._replace(inputs=(self.scale(self.inputs[0]), *self.inputs[1:]), scale=None)


@dataclass(frozen=True)
class Entry:
    """One model of the zoo: how its network is built and how published files become its state dict."""

    name: str
    """The name that `load_model` takes, for example `"caid-resnet50"`."""
    summary: str
    """One line for `zoo list`."""
    family: str
    """Folder under `zoo/entries`, with the recipe and the card."""
    modalities: tuple[str, ...]
    """What the network takes, among `MODALITIES`."""
    anatomy: str
    """Part of the body that it was trained on, among `ANATOMIES`."""
    dimension: int
    """2 for images and slices, 3 for volumes."""
    parameters: int
    """Of the published network, without a projection head; dead ones, which are removed, do not count."""
    num_features: int | None
    """Width of the pooled features; None for a network that returns maps."""
    build: Callable[[Config], nn.Module]
    """Network for a configuration (defaults, then what the file says, then the user's options). Imports its library."""
    convert: Callable[[State], tuple[State, Config]]
    """Published state dict -> (state dict in the network's names, what only the file knows). Pure and idempotent.

    A file it does not recognise is returned as it is, so that the coverage check can say what was in it. Where names
    and shapes leave one of `settled` open, `unclear` has for it what is assumed and what to do if that is wrong. Where
    what is assumed depends on the file, `assumed` has the values; else it is the default. `remark` is a sentence for
    the report on what else the file is.
    """
    config: Mapping[str, Any]
    """Configuration of the published network; its keys are the options `load_model` accepts.

    `num_classes` and `in_channels` are always among them. Where `projection` is, True asks for the projection head,
    which the file must then have.
    """
    required: tuple[str, ...]
    """Prefixes of the module groups that a file must fill completely; any other group it fills completely or not."""
    head: tuple[str, ...]
    """Prefixes of the parts of the task head, each of which a file may lack or have for other `num_classes`."""
    stem: str
    """Name of the first convolution's weight, which `in_channels` adapts."""
    stages: tuple[tuple[str, ...], ...]
    """Prefixes of the network's stages from input to output, for layer-wise learning rates."""
    preprocessing: Preprocessing
    stem_axis: int = 1
    """Axis of the stem's weight that counts input channels: 1 but for convolutions with several kernels."""
    side_stems: tuple[str, ...] = ()
    """Weights of further convolutions that read the input, which are adapted as the stem is."""
    free: tuple[str, ...] = ()
    """Those of `settled` that may differ from what a record or header says, for whoever runs the network to choose."""
    settled: tuple[str, ...] = ()
    """Options that names and shapes of a file do not tell; its record or header does, see `checkpoint.settling`."""
    unused: Mapping[str, str] = field(default_factory=dict)
    """Pattern (anchored regular expression) of names in published files that the network has not -> why they go.

    A pattern begins where the network's own names do, behind any prefix of the file.
    """
    namesakes: tuple[str, ...] = ()
    """Networks that the zoo does not have, whose files have the same names and shapes; those that it has are found."""
    correct: Callable[[State, Config], dict[str, str]] | None = None
    """Changes values of the network's state dict that the file stores in another form, once they are read.

    Takes the result of `convert`, the tensors with their values; returns what was done, by name. `UNTRAINED`
    of a tensor says that nothing was done, and that its values are those of a new network: it is reported as fresh.
    """
    restores: bool = False
    """Whether the published network returns the image itself, restored, and segments with `num_classes` alone."""
    reset: Callable[[nn.Module], None] | None = None
    """Changes the values that `reset_parameters` gave one module that the file lacks, as the network's library does."""
    complete: Callable[[State], State] | None = None
    """Adds neutral values for what was removed from the plain library class; None where nothing was."""
    takes_positions: bool = False
    """Whether the network takes, beside images, the position of each in an atlas, `(N, 3)` in [-1, 1]."""
    parts: Callable[[nn.Module, Transform, int | None, str | Path | None], Callable[[Any], Parts]] | None = None
    """How `zoo embed` cuts images into parts; None where each is one part, or a slice is, as its transform makes them.

    Is given the network, the transform, the stride in voxels of the map that is averaged, None for that of the last
    one, and the cache folder, None for `$ZOO_HOME`. What it returns is sent to other processes, so it is picklable
    and holds no network; of an image it makes `Parts`, or raises `InputContractError`.
    """
    preparation: Callable[[Iterable[str]], dict[str, str]] | None = None
    """How the files of cases were made ready for the network, as far as records beside them say; None where none are.

    Is given the paths of all cases of one output, which must be alike: raises `OptionError` where they are not.
    """
    batch_size: int | None = None
    """Parts at once that a CPU is fastest with; None for 32 images or slices, or 4 volumes or windows."""
    augment: Augment = Augment()
    """How `zoo finetune` changes training images at random."""
    windows: Windows | None = None
    """In which windows it segments whole images; None where it does not, or takes slices whole."""
    segment: Callable[[nn.Module, Transform, Any, int | None, float | None], Labels] | None = None
    """Labels of a volume on its own grid, and that grid, found another way than in `windows` alone; else None.

    Is given the network, the transform, the volume or its path, how many parts of the volume at once, and by how much
    of a part the next one covers it too, None for the family's choice. Raises `InputContractError` for a volume that
    cannot be segmented, `OptionError` for numbers that no volume can be segmented with.
    """

    @property
    def card(self) -> str:
        """Path of the card inside the package."""
        return f"entries/{self.family}/README.md"

    @property
    def is_encoder(self) -> bool:
        """Whether the published network, without a head, returns pooled features `(N, D)`."""
        return bool(self.config["num_classes"] == 0)

    @property
    def segments(self) -> bool:
        """Whether the network, once it was trained to, gives each pixel or voxel of an image a class."""
        return self.windows is not None or self.segment is not None

    @property
    def tasks(self) -> tuple[str, ...]:
        """What the network is for, among `TASKS`: as published, and then what `num_classes` makes of it."""
        if self.is_encoder:
            return ("encoder",)
        if not self.head:
            return ("restoration",)
        return ("restoration", "segmentation") if self.restores else ("segmentation",)

    @property
    def task(self) -> str:
        """What the network as published is for, among `TASKS`."""
        return self.tasks[0]


@dataclass(frozen=True)
class ModelInfo:
    """The facts about a model and the weights of its name. Costs no heavy import."""

    name: str
    """With the tag of the weights that would be loaded, where there are any."""
    summary: str
    modalities: tuple[str, ...]
    anatomy: str
    dimension: int
    task: str
    parameters: int
    num_features: int | None
    """These six as in `Entry`."""
    tags: tuple[str, ...]
    """All tags on record, in order of preference."""
    state: str
    """`hosted`, `on-request`, `withdrawn` or `not-published`."""
    default: bool
    """Whether the plain name, without a tag, loads these weights."""
    trained_by: str
    """`authors`, `zoo` or `user`."""
    sources: tuple[str, ...]
    bytes: int | None
    sha256: str | None
    licences: Mapping[str, Any]
    citation: str
    input: Preprocessing
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """How the weights were made: repository, commit, command, data."""
    notes: str = ""
    sha256_note: str = ""
    """Why no digest is on record, or on whose word the one that is."""
    options: Mapping[str, Any] = field(default_factory=dict)
    fresh: str = ""
    """What of the network, as published, the weights lack, so that it is made fresh; empty where they have it all."""
    md5: str | None = None
    git_blob: str | None = None
    training_ids: Mapping[str, Any] = field(default_factory=dict)
    """What is published of the training images, as in a record."""
    assets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Files that belong to the weights, such as landmarks: sources, bytes and sha256 of each by name."""
