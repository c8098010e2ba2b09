"""One plane of a DICOM volume, be it a file of its own or a frame of an Enhanced multi-frame file."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.errors import InputContractError
from zoo.images.dicom_files import element
from zoo.images.reading import refused
from zoo.messages import printable

if TYPE_CHECKING:
    from numpy.typing import NDArray

_GEOMETRY = ("ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing")
_HOUNSFIELD = ("RescaleSlope", "RescaleIntercept")
_SKEW = 0.02  # of a unit vector; directions are often written with two or three digits


@dataclass(frozen=True, eq=False)
class Plane:
    """A grey image of a file, and where it lies in DICOM's axes (left, posterior, superior)."""

    dataset: Any
    """pydicom's, of the whole file."""
    frame: int | None
    """Which of the file's frames, from 0; None where the file is one image."""
    groups: Any
    """The elements of this frame's functional groups (PS3.3 C.7.6.16), the shared ones among them, in one dataset."""
    directions: NDArray[Any]
    """Unit vectors along a row and along a column, `(2, 3)`."""
    position: NDArray[Any]
    """Position of the centre of the first pixel, in mm, `(3,)`."""
    spacing: NDArray[Any]
    """Distances in mm between rows and between columns, `(2,)`."""

    def get(self, keyword: str) -> Any:
        """Return an element of the frame, or else of the file; None where it is absent or empty."""
        value = element(self.groups, keyword)
        return element(self.dataset, keyword) if value is None else value

    @property
    def path(self) -> Path:
        """The file that it is in."""
        return Path(self.dataset.filename)

    @property
    def name(self) -> str:
        """Its name in messages."""
        name = printable(self.path.name)
        return name if self.frame is None else f"frame {self.frame + 1} of {name}"

    @property
    def normal(self) -> NDArray[Any]:
        """Unit vector across the plane, `(3,)`."""
        import numpy as np

        normal: NDArray[Any] = np.cross(*self.directions)
        return normal


def planes_of(dataset: Any) -> list[Plane]:
    """Return the planes of an image file of CT or MR in the order in which they are stored.

    Elements of an Enhanced or Legacy Converted Enhanced file are taken from the frame's functional groups, or else from
    the shared ones, or else from the file.

    Raises:
        InputContractError: Frames without functional groups, a plane without a position or with a meaningless one, or
            a CT without the slope and intercept that make HU.
    """
    path = printable(dataset.filename)
    with refused(f"cannot read the frames of {path}"):
        frames = int(dataset.get("NumberOfFrames") or 1)
        shared = _merged(dataset.get("SharedFunctionalGroupsSequence") or [])
        each = [_merged([group]) for group in dataset.get("PerFrameFunctionalGroupsSequence") or []]
    if frames == 1 and not each:
        return [_plane(dataset, None, shared)]
    if len(each) != frames:
        raise InputContractError(
            f"{path} holds {frames} frames in one file, and says of {len(each)} where they lie (functional groups): an "
            "Enhanced CT or MR is expected, or one file a slice. Convert it, for example with dcm2niix"
        )
    return [_plane(dataset, index, _joined(shared, own)) for index, own in enumerate(each)]


def _merged(groups: Iterable[Any]) -> Any:
    """Return what functional groups hold in one dataset, without the sequences around it."""
    from pydicom.dataset import Dataset

    merged = Dataset()
    for group in groups:
        for macro in group:
            if macro.VR == "SQ" and macro.value:
                merged.update(macro.value[0])
    return merged


def _joined(shared: Any, own: Any) -> Any:
    """Return the shared elements of all frames with those of one frame over them."""
    from pydicom.dataset import Dataset

    joined = Dataset()  # one made of another would share its elements
    joined.update(shared)
    joined.update(own)
    return joined


def _plane(dataset: Any, frame: int | None, groups: Any) -> Plane:
    import numpy as np

    plane = Plane(dataset, frame, groups, *(np.empty(0) for _ in _GEOMETRY))
    name, is_ct = f"{printable(plane.path.parent)}: {plane.name}", dataset.get("Modality") == "CT"
    if missing := [keyword for keyword in (*_GEOMETRY, *(_HOUNSFIELD if is_ct else ())) if plane.get(keyword) is None]:
        raise InputContractError(
            f"{name} lacks {', '.join(missing)}, so its {'position or its HU are' if is_ct else 'position is'} "
            "unknown. Slices of a CT or MR as the scanner wrote them are expected; take the original series, or "
            "convert this one, for example with dcm2niix"
        )
    try:
        values = [np.array(plane.get(keyword), dtype=np.float64) for keyword in _GEOMETRY]
        directions, position, spacing = values[0].reshape(2, 3), values[1].reshape(3), values[2].reshape(2)
        squares = directions @ directions.T
    except (TypeError, ValueError) as error:
        raise InputContractError(f"{name}: its position in the header has no meaning ({error})") from error
    is_sane = np.isfinite(position).all() and spacing.min() > 0 and np.abs(squares - np.eye(2)).max() <= _SKEW
    if not is_sane:
        raise InputContractError(
            f"{name}: its position in the header has no meaning: rows and columns along {directions.tolist()}, from "
            f"{position.tolist()}, {spacing.tolist()} mm a pixel"
        )
    return Plane(dataset, frame, groups, directions, position, spacing)
