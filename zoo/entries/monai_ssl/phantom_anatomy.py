"""Anatomy that all patients of the synthetic cohort share: places and sizes in millimetres, densities in HU.

The first axis runs to the patient's right, the second to the front, the third to the head; the origin lies in the
middle of the trunk, in front of the first lumbar vertebra. Numbers are chosen after real CT, not fitted to it.
"""

from __future__ import annotations

from dataclasses import dataclass

Point = tuple[float, float, float]

TISSUES: dict[str, Point] = {
    "air": (-1000, -1000, -1000),
    "lung": (-830, -830, -830),
    "gas": (-900, -900, -900),
    "fat": (-100, -100, -100),
    "muscle": (52, 60, 65),
    "bone": (190, 200, 205),
    "cortex": (420, 420, 420),
    "disc": (85, 90, 95),
    "cord": (28, 30, 32),
    "bile": (10, 11, 12),
    "wall": (40, 75, 80),
    "bowel": (38, 80, 85),
    "liver": (58, 72, 108),
    "spleen": (48, 120, 115),
    "kidney": (33, 135, 150),
    "pancreas": (40, 100, 92),
    "adrenal": (32, 75, 72),
    "artery": (42, 270, 145),
    "vein": (42, 95, 140),
    "portal": (42, 110, 155),
    "heart": (45, 160, 130),
}
"""Mean HU without contrast medium, in the arterial and in the portal-venous phase."""

BODY = (138.0, 100.0, 2.3)
"""Half axes of the trunk, right to left and back to front, and the power that its outline follows."""
DOMES = ((62.0, 4.0, 92.0), (-60.0, 4.0, 82.0))
"""Summits of the diaphragm."""


@dataclass(frozen=True)
class Shape:
    """One thing of one density: ellipsoids and a tube, united."""

    tissue: str
    group: str
    """Shapes of one group are moved and scaled together."""
    label: int = 0
    """Label of BTCV, in the order of `cohort.ORGANS`; 0 for the background."""
    ellipsoids: tuple[tuple[Point, Point], ...] = ()
    """Centre and half axes of each."""
    tube: tuple[tuple[Point, float], ...] = ()
    """Points of its middle line and the radius at each."""
    hollow: bool = False
    """Whether fluid or food is inside its wall, perhaps with gas above."""
    keep: bool = False
    """Whether the voxels keep their labels, as for vessels within an organ."""

    def parts(self) -> tuple[tuple[Point, Point | float], ...]:
        """Points, with the shape's extent around each."""
        return (*self.ellipsoids, *self.tube)


VERTEBRA = Shape("bone", "spine", ellipsoids=(((0, -42, 0), (21, 16, 400)),))
"""The column of vertebral bodies."""

BONES = (
    Shape("muscle", "spine", ellipsoids=(((34, -72, 0), (27, 17, 400)), ((-34, -72, 0), (27, 17, 400)))),
    Shape("bone", "spine", ellipsoids=(((0, -84, 0), (4, 14, 400)), ((0, -66, 0), (15, 12, 400)))),
    Shape("cord", "spine", ellipsoids=(((0, -66, 0), (9, 8, 400)),)),
    Shape("muscle", "psoas", tube=(((27, -38, 15), 7), ((34, -42, -30), 15), ((46, -38, -115), 22))),
    Shape("muscle", "psoas", tube=(((-27, -38, 15), 7), ((-34, -42, -30), 15), ((-46, -38, -115), 22))),
    Shape("bone", "pelvis", ellipsoids=(((88, -45, -122), (12, 36, 24)), ((-88, -45, -122), (12, 36, 24)))),
)
"""Spine without the vertebral bodies, muscles beside it, crests of the pelvis."""

COLON = (
    Shape("bowel", "caecum", tube=(((84, 0, -112), 19), ((84, -8, -60), 19), ((76, 6, -28), 18)), hollow=True),
    Shape(
        "bowel",
        "transverse",
        tube=(((76, 22, -28), 17), ((40, 62, -42), 17), ((-30, 64, -34), 16), ((-84, 18, 2), 15)),
        hollow=True,
    ),
    Shape("bowel", "descending", tube=(((-88, -4, 6), 14), ((-92, -18, -50), 13), ((-84, -2, -112), 14)), hollow=True),
)

VISCERA = (
    Shape(
        "wall",
        "stomach",
        7,
        tube=(
            ((-58, -8, 66), 28),
            ((-62, 6, 48), 31),
            ((-58, 26, 24), 27),
            ((-42, 42, 4), 21),
            ((-14, 48, -6), 16),
            ((12, 40, 2), 12),
        ),
        hollow=True,
    ),
    Shape(
        "liver",
        "liver",
        6,
        ellipsoids=(((64, 4, 36), (62, 68, 62)), ((6, 44, 50), (56, 27, 30)), ((40, 30, 46), (50, 44, 44))),
    ),
    Shape("vein", "liver", 6, tube=(((22, -2, 74), 5), ((52, 12, 58), 4), ((76, 30, 44), 3)), keep=True),
    Shape("vein", "liver", 6, tube=(((22, -2, 74), 5), ((62, -18, 62), 4), ((92, -30, 42), 3)), keep=True),
    Shape("portal", "liver", 6, tube=(((44, 6, 36), 6), ((64, 2, 32), 5), ((86, 14, 16), 3.5)), keep=True),
    Shape("spleen", "spleen", 1, ellipsoids=(((-94, -30, 40), (25, 40, 44)),)),
    Shape("kidney", "left kidney", 3, ellipsoids=(((-62, -38, -22), (27, 25, 51)),)),
    Shape("fat", "left kidney", ellipsoids=(((-44, -32, -22), (13, 8, 16)),)),
    Shape("kidney", "right kidney", 2, ellipsoids=(((62, -38, -42), (27, 25, 50)),)),
    Shape("fat", "right kidney", ellipsoids=(((44, -32, -42), (13, 8, 16)),)),
    Shape("bile", "gallbladder", 4, ellipsoids=(((50, 42, -4), (14, 22, 22)),)),
    Shape(
        "bowel",
        "duodenum",
        tube=(
            ((16, 38, 4), 12),
            ((42, 22, 4), 12),
            ((50, 10, -24), 13),
            ((38, 2, -48), 12),
            ((4, 4, -54), 11),
            ((-28, 14, -40), 11),
        ),
        hollow=True,
    ),
    Shape(
        "pancreas",
        "pancreas",
        11,
        tube=(
            ((34, 14, -24), 14),
            ((24, 18, -8), 13),
            ((2, 25, 4), 10),
            ((-28, 17, 13), 11),
            ((-54, -3, 21), 11),
            ((-74, -20, 28), 9),
        ),
    ),
    Shape("portal", "pancreas", tube=(((15, 12, 0), 6), ((17, 20, -40), 5.5), ((12, 24, -90), 5))),
    Shape("artery", "mesenteric artery", tube=(((-6, -10, 2), 4), ((-2, 6, -22), 4), ((2, 16, -90), 3.5))),
    Shape("artery", "coeliac artery", tube=(((-8, -8, 16), 4.5), ((-4, 4, 18), 4), ((-50, -6, 30), 3.5))),
    Shape("vein", "left renal vein", tube=(((-52, -32, -24), 4.5), ((-20, -4, -14), 4.5), ((18, -12, -14), 5))),
    Shape("vein", "right renal vein", tube=(((50, -32, -40), 4.5), ((22, -14, -32), 5))),
    Shape(
        "portal",
        "pancreas",
        10,
        tube=(
            ((48, 6, 38), 6),
            ((30, 7, 22), 7.5),
            ((14, 9, 5), 7.5),
            ((-10, 11, 8), 6),
            ((-34, 3, 14), 5.5),
            ((-58, -14, 22), 5.5),
            ((-78, -26, 30), 5),
        ),
    ),
)
"""In the order of painting: later shapes cover earlier ones."""

PASSING = (
    Shape(
        "artery",
        "aorta",
        8,
        tube=(((-7, -13, -125), 9), ((-8, -13, 0), 10), ((-10, -18, 60), 11), ((-13, -24, 130), 12)),
    ),
    Shape(
        "vein",
        "vena cava",
        9,
        tube=(((20, -14, -125), 10), ((20, -13, -20), 11), ((24, -6, 50), 12), ((20, 2, 96), 12)),
    ),
    Shape("muscle", "crura", tube=(((8, -22, 62), 6), ((14, -24, 20), 5), ((13, -26, -20), 4))),
    Shape("muscle", "crura", tube=(((-22, -26, 62), 6), ((-20, -28, 20), 5), ((-18, -28, -20), 4))),
    Shape("adrenal", "right adrenal", 12, tube=(((30, -24, 24), 4.5), ((36, -34, 14), 4.5))),
    Shape("adrenal", "right adrenal", 12, tube=(((30, -24, 24), 4.5), ((28, -36, 16), 4.0))),
    Shape("adrenal", "left adrenal", 13, tube=(((-32, -20, 20), 4.5), ((-42, -30, 10), 4.5))),
    Shape("adrenal", "left adrenal", 13, tube=(((-32, -20, 20), 4.5), ((-31, -34, 10), 4.0))),
    Shape("wall", "stomach", 5, tube=(((-4, -4, 130), 9), ((-8, 0, 94), 9), ((-20, 4, 78), 9), ((-34, 4, 68), 10))),
)
"""Structures that pass through the diaphragm, and the adrenal glands beside it; they cover organs, lungs and heart."""
