"""Named expression blendshapes of a head, as a table of what each facial action moves.

The names and meanings are those in common use for face tracking (52 blendshapes, here 50: without
the tongue and ``mouthClose``); each is about one action unit of Ekman and Friesen's Facial Action
Coding System. 1 = full activation. Left is the subject's left, +x. Left and right shapes are exact
mirror images; the others are exactly symmetric, except ``jawLeft`` and its like.

Three mechanisms make them: the jaw turns about a hinge before the ears, with the part of the skin
that follows it; lids slide over the eyeball; everything else is a smooth field on the surface
through displacements given at a few points (``MOVES``), which knows that the lips are cut from each
other.
"""

import numpy as np
from jaxtyping import Float
from scipy.interpolate import CubicSpline

from core.face_models.procedural.anatomy import (
    EYE_LANDMARKS,
    Head,
    Number,
    SurfaceSpline,
    slide_on_eyeballs,
    smoothstep,
    spread,
)

JAW_ANGLE = np.radians(18.0)  # jawOpen at 1
JAW_SLIDE = 3.0  # mm: the condyles glide forward while the jaw opens
GAZE_ANGLE = np.radians(18.0)  # eyeLook... at 1
SKIN_LENGTH, JAW_LENGTH = 20.0, 60.0  # mm: how far muscles and the jaw drag the skin
FREE = 24.0  # mm: points nearer than this to a moved one are free, the farther ones are held
LIFT = 0.7  # mm: closing lids rise over the cornea
LID_REACH = 16.0  # mm over which the skin around the lids follows them

POINTS: dict[str, dict[int, float]] = {
    "cheek": {46: 0.50, 54: 0.50},
    "apple": {47: 0.62, 54: 0.38},
    "buccal": {54: 0.55, 12: 0.45},
    "masseter": {54: 0.35, 13: 0.65},
    "zygoma": {46: 0.45, 14: 0.55},
    "nasolabial": {35: 0.55, 54: 0.45},
    "nasal": {28: 0.45, 47: 0.35, 35: 0.20},
    "mental": {55: 0.55, 9: 0.45},
    "forehead": {23: 1.9, 43: -0.9},
    "temple": {25: 1.9, 44: -0.9},
    "tear": {46: 1.45, 44: -0.45},
    "glabella": {21: 0.5, 22: 0.5},
    "chin": {57: 0.4, 8: 0.6},
    "pogonion": {57: 0.15, 8: 0.85},
}
"""Points between the landmarks, on the left half or the midline: weights of landmarks; the nearest
skin is meant.
"""

Move = dict[str, tuple[Number, Number, Number]]
MOVES: dict[str, Move] = {
    "mouthSmileLeft": {
        "54": (6.2, 7.0, -5.5), "64": (6.0, 6.8, -5.4), "53": (4.8, 4.4, -4.2),
        "55": (4.4, 4.8, -3.8), "52": (1.8, 2.4, -1.8), "56": (1.6, 2.6, -1.6),
        "63": (3.0, 3.2, -2.8), "65": (2.8, 3.4, -2.4), "51": (0.3, 1.3, -0.7),
        "57": (0.2, 1.4, -0.6), "62": (0.3, 1.4, -0.7), "66": (0.3, 1.4, -0.7),
        "nasolabial": (2.8, 3.6, 0.5), "cheek": (1.6, 3.6, 2.4), "apple": (0.8, 2.6, 2.2),
        "buccal": (4.0, 4.0, -1.2), "masseter": (2.0, 1.6, 0.8), "mental": (1.6, 1.8, -0.8),
        "35": (1.2, 0.8, -0.2), "tear": (0.0, 0.8, 0.6),
    },
    "mouthFrownLeft": {
        "54": (1.2, -6.0, -1.8), "64": (1.2, -5.6, -1.6), "53": (0.8, -2.6, -0.8),
        "55": (0.8, -3.0, -0.4), "52": (0.2, -0.6, -0.2), "56": (0.2, -0.6, 0.2),
        "63": (0.5, -1.2, -0.4), "65": (0.5, -1.2, -0.3), "51": (0, 0, 0), "57": (0, 0.3, 0.2),
        "62": (0, 0, 0), "66": (0, 0, 0), "buccal": (0.5, -2.6, -0.6),
        "nasolabial": (0.3, -1.5, -0.6), "mental": (0.5, -2.2, 0.6),
    },
    "mouthStretchLeft": {
        "54": (7.5, -2.0, -6.5), "64": (7.2, -1.8, -6.2), "53": (3.6, -0.8, -3.2),
        "55": (4.2, -0.8, -3.4), "52": (1.2, -0.3, -1.2), "56": (1.6, -0.2, -1.2),
        "63": (2.6, -0.5, -2.2), "65": (2.6, -0.5, -2.2), "51": (0.2, 0, -0.4),
        "57": (0.2, 0, -0.4), "62": (0.3, 0, -0.4), "66": (0.3, 0, -0.4),
        "buccal": (5.0, -0.6, -1.6), "mental": (2.6, -1.0, -1.2), "masseter": (1.8, 0, 0.8),
    },
    "mouthDimpleLeft": {
        "54": (3.0, 1.4, -6.0), "64": (2.8, 1.4, -6.0), "53": (1.6, 0.4, -2.6),
        "55": (1.8, 1.2, -2.8), "52": (0.6, 0, -0.9), "56": (0.6, 0.2, -0.9),
        "63": (1.2, 0.3, -1.6), "65": (1.2, 0.4, -1.6), "51": (0, 0, -0.2), "57": (0, 0, -0.2),
        "62": (0, 0, -0.2), "66": (0, 0, -0.2), "buccal": (2.6, 0.8, 0.6),
        "nasolabial": (0.8, 0.6, 0.4), "mental": (0.8, 0.4, 0.2),
    },
    "mouthPressLeft": {
        "54": (1.0, 0.4, -1.6), "64": (1.0, 0.4, -1.6), "53": (0.4, -0.8, -1.2),
        "55": (0.4, 1.8, -0.8), "52": (0.1, -1.2, -1.2), "56": (0.1, 2.0, -1.0),
        "63": (0.2, 0.2, -1.4), "65": (0.2, 0.4, -1.4), "51": (0, -0.5, -0.5), "57": (0, 0.9, -0.4),
        "62": (0, 0.1, -0.6), "66": (0, 0.2, -0.6), "mental": (0, 1.4, 1.2),
        "buccal": (0.5, 0.3, 0.6),
    },
    "mouthUpperUpLeft": {
        "53": (0.8, 4.6, 0.2), "52": (0.4, 5.2, 0.6), "51": (0, 2.8, 0.3), "54": (0.2, 1.2, -0.2),
        "63": (0.4, 4.8, 0.3), "62": (0, 3.0, 0.2), "64": (0.2, 1.0, -0.2), "52'": (0, 0.8, 0),
        "63'": (0, 0.8, 0), "53'": (0, 0, 0), "54'": (0, 0, 0), "64'": (0, 0, 0),
        "35": (0.8, 2.0, -0.2), "nasolabial": (0.6, 4.0, 0.8), "apple": (0.2, 1.8, 1.2),
        "cheek": (0.2, 1.2, 0.8),
    },
    "mouthLowerDownLeft": {
        "55": (0.8, -4.2, -0.6), "56": (0.4, -5.2, -0.6), "57": (0, -3.4, -0.4),
        "54": (0.3, -1.2, -0.4), "65": (0.4, -5.0, -0.4), "66": (0, -3.2, -0.3),
        "64": (0.3, -1.0, -0.4), "56'": (0, -1.0, 0), "65'": (0, -1.0, 0), "55'": (0, 0, 0),
        "54'": (0, 0, 0), "64'": (0, 0, 0), "mental": (0.4, -3.0, -0.6), "chin": (0, -1.6, -0.2),
    },
    "cheekSquintLeft": {
        "cheek": (0.4, 3.2, 1.8), "apple": (0.2, 3.0, 1.4), "zygoma": (0.4, 1.8, 1.0),
        "tear": (0, 2.2, 1.0), "nasolabial": (0.3, 1.4, 0.6), "54": (0.4, 0.7, -0.3),
    },
    "noseSneerLeft": {
        "35": (0.5, 3.4, 0), "34": (0.2, 1.4, 0), "nasal": (0.2, 1.8, 1.0),
        "nasolabial": (0.4, 4.2, 0.8), "52": (0.2, 2.8, 0.2), "53": (0.3, 3.4, 0),
        "63": (0.2, 2.4, 0.1), "51": (0, 1.2, 0), "62": (0, 1.0, 0), "54": (0, 1.2, 0),
        "64": (0, 1.0, 0), "apple": (0, 1.6, 1.0), "22": (-0.8, -1.8, 0.4), "23": (-0.6, -1.4, 0.3),
        "30": (0, 0.3, 0), "33": (0, 0.5, 0),
    },
    "browDownLeft": {
        "42": (0, 0, 0), "43": (0, -0.8, 0), "44": (0, -0.7, 0), "45": (0, 0, 0),
        "22": (-2.5, -4.8, 1.8), "23": (-2.8, -5.2, 2), "24": (-2, -4.2, 2),
        "25": (-1.2, -2.8, 1.2), "26": (-0.5, -1.2, 0.5), "forehead": (-0.8, -2.5, 0.5),
        "temple": (0, -1, 0.2), "glabella": (-0.6, -2.5, 1.5),
    },
    "browOuterUpLeft": {
        "42": (0, 0, 0), "43": (0, 0.4, 0), "44": (0, 0.8, 0), "45": (0, 0.3, 0),
        "26": (0.7, 4.8, -1.6), "25": (0.9, 6.7, -1.8), "24": (0.7, 5.8, -1.4),
        "23": (0.2, 3, -0.5), "22": (0, 0.7, 0), "temple": (0.5, 3.9, -1.4),
        "forehead": (0, 1.4, 0),
    },
    "browInnerUp": {
        "42": (0, 0, 0), "43": (0, 0.6, 0), "44": (0, 0.3, 0), "45": (0, 0, 0),
        "22": (-0.5, 6.2, 0.2), "23": (0, 5.8, 0), "24": (0, 2.8, -0.2), "25": (0, 0.8, 0),
        "forehead": (0, 3.5, -0.2), "glabella": (0, 4.2, 0.2),
    },
    "mouthPucker": {
        "54": (-6.5, 0.8, 5.5), "64": (-6.5, 0.8, 5.5), "53": (-4.2, 0.9, 6.0),
        "55": (-4.4, -0.2, 6.0), "52": (-1.6, 0.8, 6.5), "56": (-2.4, -0.6, 6.5),
        "51": (0, 0.6, 6.6), "57": (0, -0.6, 6.6), "63": (-2.4, 0.2, 6.8), "65": (-2.4, 0.1, 6.8),
        "62": (0, 0.1, 6.8), "66": (0, 0.1, 6.8), "nasolabial": (-2.4, -0.2, 1.0),
        "buccal": (-3.0, 0, -0.6), "mental": (-1.6, 0.6, 1.8), "33": (0, -0.4, 0.3),
    },
    "mouthFunnel": {
        "54": (-4.2, -0.6, 4.6), "64": (-4.0, -0.6, 4.6), "53": (-2.4, 2.2, 6.0),
        "55": (-2.6, -4.0, 5.6), "52": (-0.8, 3.4, 6.4), "56": (-1.2, -5.4, 6.0),
        "51": (0, 3.4, 6.4), "57": (0, -5.8, 6.0), "63": (-1.2, 3.2, 6.6), "65": (-1.4, -5.2, 6.2),
        "62": (0, 3.6, 6.6), "66": (0, -5.8, 6.2), "nasolabial": (-1.6, 0.4, 1.2),
        "buccal": (-2.2, -1.2, 0), "mental": (-1.2, -2.6, 1.4), "chin": (0, -3.0, 0.8),
    },
    "mouthRollUpper": {
        "51": (0, -2.2, -3.0), "52": (0, -2.2, -2.6), "53": (0, -1.4, -1.8), "54": (-0.2, 0, -0.6),
        "62": (0, 0.2, -4.2), "63": (0, 0.1, -3.4), "64": (-0.2, 0, -1.0), "57": (0, 0, 0),
        "56": (0, 0, 0), "55": (0, 0, 0), "66": (0, 0.3, -1.0), "65": (0, 0.3, -0.8),
    },
    "mouthRollLower": {
        "57": (0, 2.8, -3.0), "56": (0, 2.6, -2.8), "55": (0, 1.6, -1.8), "54": (-0.2, 0, -0.6),
        "66": (0, -0.1, -4.2), "65": (0, -0.1, -3.4), "64": (-0.2, 0, -1.0), "51": (0, 0, 0),
        "52": (0, 0, 0), "53": (0, 0, 0), "62": (0, -0.3, -1.0), "63": (0, -0.3, -0.8),
    },
    "mouthShrugUpper": {
        "51": (0, 3.2, 0.8), "52": (0, 3.0, 0.7), "53": (0, 1.8, 0.3), "54": (0, 0.3, 0),
        "62": (0, 3.0, 0.9), "63": (0, 2.6, 0.8), "64": (0, 0.3, 0), "57": (0, 2.2, 0.5),
        "56": (0, 2.0, 0.4), "55": (0, 1.2, 0.2), "66": (0, 3.0, 0.9), "65": (0, 2.6, 0.8),
        "33": (0, 0.7, 0), "nasolabial": (0, 0.8, 0.2),
    },
    "mouthShrugLower": {
        "57": (0, 3.8, 2.6), "56": (0, 3.6, 2.4), "55": (0, 2.4, 1.4), "54": (0, 0, 0),
        "66": (0, 3.2, 1.6), "65": (0, 2.7, 1.4), "64": (0, 0.2, 0), "62": (0, 3.2, 1.6),
        "63": (0, 2.7, 1.4), "51": (0, 2.6, 1.2), "52": (0, 2.4, 1.1), "53": (0, 1.3, 0.5),
        "chin": (0, 5.0, 1.6), "pogonion": (0, 3.6, 0.4), "mental": (0, 3.2, 1.4),
    },
    "cheekPuff": {
        "buccal": (6.5, 0, 6.0), "cheek": (2.6, 0.5, 3.8), "masseter": (4.5, 0, 3.8),
        "nasolabial": (1.0, 0, 3.6), "mental": (1.2, 0, 2.8), "54": (-1.2, 0, 3.0),
        "64": (-1.2, 0, 2.6), "53": (-0.8, 0, 1.8), "55": (-0.8, 0, 1.8), "51": (0, 0, 0.6),
        "57": (0, 0, 0.6), "52": (0, 0, 1), "56": (0, 0, 1), "62": (0, 0, 0.4), "66": (0, 0, 0.4),
    },
    "mouthLeft": {
        "51": (6, 0.3, -0.8), "57": (6, 0.3, -0.8), "62": (6, 0.3, -0.6), "66": (6, 0.3, -0.6),
        "54": (5.2, 1.2, -4.5), "64": (5.2, 1.2, -4.3), "54'": (5.6, 0.3, 3.4),
        "64'": (5.6, 0.3, 3.4), "52": (6.1, 0.6, -2.1), "56": (6.1, 0.6, -2.1),
        "52'": (6.1, 0.2, 0.3), "56'": (6.1, 0.2, 0.3), "53": (5.7, 0.9, -3.4),
        "55": (5.7, 0.8, -3.4), "53'": (6.1, 0.2, 2), "55'": (6.1, 0.2, 2), "63'": (6.1, 0.2, 0.6),
        "63": (6, 0.5, -2.1), "65": (6, 0.5, -2.1), "65'": (6.1, 0.2, 0.6),
        "nasolabial": (2, 0.6, 0.9), "buccal": (3, 0.6, 0.9), "chin": (2.7, 0, 0),
        "mental": (3, 0.3, -0.3), "mental'": (3.3, 0, 0.4), "buccal'": (2.7, 0, 0.6),
        "nasolabial'": (2, 0, -0.3), "33": (0.5, 0, 0),
    },
    "jawOpen": {
        "54": (-2.2, 0, -1.0), "64": (-2.2, 0, -1.0), "buccal": (-2.6, 0, -1.6),
        "51": (0, -0.8, -0.4), "52": (-0.2, -0.7, -0.4), "53": (-0.8, -0.6, -0.6),
        "62": (0, -0.8, -0.4), "63": (-0.4, -0.7, -0.4), "55": (-1.4, 0, 0), "56": (-0.4, 0, 0),
        "57": (0, 0, 0), "66": (0, 0, 0), "65": (-0.6, 0, 0),
    },
}  # fmt: skip
"""Displacements at full activation, millimetres (x to the subject's left), at landmarks and
``POINTS``.

A key with ' is the mirrored point. The shapes in ``SYMMETRIC`` are written for the left half and
hold on both; to ``jawOpen`` these come on top of the jaw's turn.
"""
OPENING = (
    "mouthUpperUpLeft",
    "mouthLowerDownLeft",
    "mouthFunnel",
    "jawOpen",
)  # these part the lips
LIDS: dict[str, tuple[float, float]] = {
    "eyeBlinkLeft": (0.94, 0.12),
    "eyeWideLeft": (-0.26, -0.10),
    "eyeSquintLeft": (0.12, 0.28),
}
"""How far the upper lid comes down and the lower one up, of the opening between them."""
GAZE: dict[str, tuple[float, float, float]] = {
    "eyeLookDownLeft": (-1.0, 0.0, 0.45),
    "eyeLookUpLeft": (0.75, 0.0, -0.30),
    "eyeLookInLeft": (0.0, -1.0, 0.0),
    "eyeLookOutLeft": (0.0, 1.0, 0.0),
}
"""Turn of the eyeball up and outward, of GAZE_ANGLE, and how far the lids follow down, of the
opening.
"""

SYMMETRIC = [
    "jawOpen",
    "jawForward",
    "mouthPucker",
    "mouthFunnel",
    "browInnerUp",
    "cheekPuff",
    "mouthRollLower",
    "mouthRollUpper",
    "mouthShrugLower",
    "mouthShrugUpper",
]
ORDER = [
    "jawOpen",
    "mouthSmileLeft",
    "mouthSmileRight",
    "eyeBlinkLeft",
    "eyeBlinkRight",
    "browInnerUp",
    "browDownLeft",
    "browDownRight",
    "browOuterUpLeft",
    "browOuterUpRight",
    "mouthPucker",
    "mouthFunnel",
    "mouthFrownLeft",
    "mouthFrownRight",
    "mouthUpperUpLeft",
    "mouthUpperUpRight",
    "mouthLowerDownLeft",
    "mouthLowerDownRight",
    "mouthStretchLeft",
    "mouthStretchRight",
    "mouthLeft",
    "mouthRight",
    "jawLeft",
    "jawRight",
    "jawForward",
    "cheekPuff",
    "noseSneerLeft",
    "noseSneerRight",
    "eyeWideLeft",
    "eyeWideRight",
    "eyeSquintLeft",
    "eyeSquintRight",
    "cheekSquintLeft",
    "cheekSquintRight",
    "mouthPressLeft",
    "mouthPressRight",
    "mouthDimpleLeft",
    "mouthDimpleRight",
    "mouthRollLower",
    "mouthRollUpper",
    "mouthShrugLower",
    "mouthShrugUpper",
    "eyeLookDownLeft",
    "eyeLookDownRight",
    "eyeLookUpLeft",
    "eyeLookUpRight",
    "eyeLookInLeft",
    "eyeLookInRight",
    "eyeLookOutLeft",
    "eyeLookOutRight",
]
"""The most telling first, so that the first so many are a useful small set."""


LEFT_AND_MIDDLE = (
    8,
    *range(9, 17),
    *range(22, 31),
    *range(33, 36),
    *range(42, 48),
    *range(51, 58),
    62,
    63,
    64,
    65,
    66,
)
UPPER = ("51", "52", "53", "62", "63")
LOWER = ("55", "56", "57", "65", "66")
JAW: dict[str, float] = dict.fromkeys(
    (*LOWER, "8", "9", "10", "chin", "pogonion", "mental"), 1.0
) | {"54": 0.42, "64": 0.42, "11": 0.95, "12": 0.75, "13": 0.35, "14": 0.08, "15": 0.0, "16": 0.0}
JAW |= {"buccal": 0.45, "masseter": 0.25, "nasolabial": 0.04, "cheek": 0.0, "33": 0.0, "30": 0.0}
JAW |= dict.fromkeys(
    (*UPPER, "35", "27", "42", "45", "46", "47", "22", "26", "apple", "zygoma"), 0.0
)
"""How much points follow the jaw."""
JAW_SIDEWAYS = (
    JAW | dict.fromkeys(UPPER, 0.2) | {"54": 0.5, "64": 0.5, "33": 0.06, "nasolabial": 0.15}
)
"""The same while the lips stay closed."""


def expression_shapes(head: Head) -> tuple[Float[np.ndarray, "k n 3"], list[str]]:
    """All blendshapes, mm at full activation, and their names, in the order of ``ORDER``."""
    handles = _Handles(head)
    parted, together = (
        SurfaceSpline(head, handles.left, SKIN_LENGTH, closed) for closed in (False, True)
    )
    shapes = {
        name: handles.move(move, parted if name in OPENING else together, name in SYMMETRIC)
        for name, move in MOVES.items()
    }
    shapes = {name: slide_on_eyeballs(head, shape[None])[0] for name, shape in shapes.items()}
    follow = handles.follow_jaw(JAW, closed=False)
    shift = handles.follow_jaw(JAW_SIDEWAYS, closed=True)
    shapes["jawOpen"] += _jaw_open(head, follow)
    shapes["jawForward"] = shift[:, None] * (0.0, -1.0, 6.0)
    shapes["jawLeft"] = shift[:, None] * (7.0, 0.0, 0.0)
    for name, (down, up) in LIDS.items():
        shapes[name] = slide_lids(head, 1, down, up)
    for name, (turn_up, turn_out, down) in GAZE.items():
        shapes[name] = slide_lids(head, 1, down, -0.3 * down) + _gaze(head, turn_up, turn_out)
    shapes["eyeSquintLeft"] += 0.4 * shapes["cheekSquintLeft"] + 0.15 * shapes["browDownLeft"]
    for name in list(shapes):
        if not name.startswith("eyeLook"):
            shapes[name][head.is_eyeball] = 0
        if name in SYMMETRIC:
            shapes[name] = head.symmetric(shapes[name])
        else:
            shapes[name.replace("Left", "Right")] = head.mirrored(shapes[name])
    return np.stack([shapes[name] for name in ORDER]), list(ORDER)


class _Handles:
    """The vertices of landmarks and ``POINTS`` by name, their mirror images with '."""

    def __init__(self, head: Head) -> None:
        self.head = head
        self.number: dict[str, int] = {}
        upper_distance, lower_distance = head.lip_distance
        half = (head.mean[:, 0] >= -1e-6) & ~head.is_eyeball
        places = {str(index): head.landmarks[index] for index in LEFT_AND_MIDDLE}
        for name, weights in POINTS.items():
            places[name] = sum((w * head.landmarks[i] for i, w in weights.items()), np.zeros(3))
        vertices: list[int] = []
        for name, place in places.items():
            allowed = half
            if name in UPPER or name in LOWER:
                allowed = half & ((upper_distance < lower_distance) == (name in UPPER))
            pool = np.flatnonzero(allowed)
            vertex = int(pool[((head.mean[pool] - place) ** 2).sum(1).argmin()])
            if vertex not in vertices:
                self.number[name] = len(vertices)
                vertices.append(vertex)
        for name, number in list(self.number.items()):
            if head.mirror[vertices[number]] != vertices[number]:
                self.number[name + "'"] = number + len(vertices)
        self.left = np.array(vertices)
        self.vertices = np.concatenate([self.left, head.mirror[self.left]])

    def move(
        self, move: Move, spline: SurfaceSpline, both_halves: bool
    ) -> Float[np.ndarray, "n 3"]:
        """The field through displacements of ``MOVES``; points far from all that move stay."""
        given = dict(move)
        if both_halves:
            given |= {name + "'": (-x, y, z) for name, (x, y, z) in move.items()}
        given = {name: way for name, way in given.items() if name in self.number}
        positions = self.head.mean[self.vertices]
        moved = positions[[self.number[name] for name, way in given.items() if any(way)]]
        distance = np.linalg.norm(positions[:, None] - moved, axis=-1).min(1)
        held = {name: (0, 0, 0) for name, k in self.number.items() if distance[k] > FREE}
        given = held | given
        return spline(
            np.array([self.number[name] for name in given]), np.array([*given.values()], float)
        )

    def follow_jaw(self, weights: dict[str, float], closed: bool) -> Float[np.ndarray, " n"]:
        """How much each vertex follows the jaw, in [0, 1], symmetric; 0 on the lower neck."""
        head, landmarks = self.head, self.head.landmarks
        known = [name for name in weights if name in self.number]
        left = self.left[[self.number[name] for name in known]]
        values = np.array([weights[name] for name in known])
        still = head.mean[:, 2] < landmarks[[0, 16], 2].mean() - 25
        still |= head.mean[:, 1] < landmarks[8, 1] - 55
        still |= head.mean[:, 1] > landmarks[27, 1] + 60
        rest = np.setdiff1d(np.flatnonzero(still), np.concatenate([left, head.mirror[left]]))
        vertices = np.concatenate([left, head.mirror[left], rest])
        vertices, first = np.unique(vertices, return_index=True)
        values = np.concatenate([values, values, np.zeros(len(rest))])[first]
        field = spread(head, vertices, values, JAW_LENGTH, closed)
        return _bounded(0.5 * (field + field[head.mirror]))


def _bounded(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Values bounded to [0, 1]; the bends at both ends are rounded over 0.1."""
    knee = 0.1

    def ramp(t: np.ndarray) -> np.ndarray:
        return np.where(t > knee, t, np.where(t < -knee, 0.0, (t + knee) ** 2 / (4 * knee)))

    return 1 - ramp(1 - ramp(values))


def _rotation(axis: int, angle: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n 3 3"]:
    """Right-handed turns about a coordinate axis, for column vectors."""
    matrix = np.zeros((*np.shape(angle), 3, 3))
    i, j = (axis + 1) % 3, (axis + 2) % 3
    matrix[..., axis, axis] = 1
    matrix[..., i, i] = matrix[..., j, j] = np.cos(angle)
    matrix[..., j, i] = np.sin(angle)
    matrix[..., i, j] = -np.sin(angle)
    return matrix


def _jaw_open(head: Head, follow: Float[np.ndarray, " n"]) -> Float[np.ndarray, "n 3"]:
    """The turn about the condyles, which glide forward, where skin follows the jaw."""
    hinge = head.landmarks[[0, 1, 15, 16]].mean(0) - [0, 0, 12]
    turned = _rotation(0, JAW_ANGLE * follow) @ (head.mean - hinge)[..., None]
    glide = follow[:, None] * (0.0, -0.3 * JAW_SLIDE, JAW_SLIDE)
    return turned[..., 0] + hinge - head.mean + glide


def _gaze(head: Head, up: float, out: float) -> Float[np.ndarray, "n 3"]:
    """The left eyeball turned about its centre, in units of ``GAZE_ANGLE``."""
    eye = head.eyeballs[1]
    turn = _rotation(1, np.array(GAZE_ANGLE * out)) @ _rotation(0, np.array(-GAZE_ANGLE * up))
    offset = head.mean - eye.centre
    return (offset @ turn.T - offset) * eye.vertices[:, None]


def slide_lids(head: Head, side: int, down: float, up: float) -> Float[np.ndarray, "n 3"]:
    """The upper lid slid down and the lower one up over the eyeball.

    ``down`` and ``up`` are parts of the opening between the lids. Every vertex turns about the
    eyeball's centre in its own sagittal plane; the turn fades over ``LID_REACH`` from the margin of
    its lid.
    """
    eye = head.eyeballs[side]
    offset = head.mean - eye.centre
    angle = np.arctan2(offset[:, 1], offset[:, 2])
    corners = head.landmarks[list(EYE_LANDMARKS[side])] - eye.centre
    loop = np.concatenate([corners, corners[:1]])  # outer corner, upper lid, inner one, lower lid
    at = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(loop, axis=0), axis=1))])
    outline = CubicSpline(at, loop, bc_type="periodic")
    margins = []
    for begin, end in ((at[0], at[3]), (at[3], at[6])):
        lid = outline(np.linspace(begin, end, 60))
        lid = lid[np.argsort(lid[:, 0])]
        margins.append(np.interp(offset[:, 0], lid[:, 0], np.arctan2(lid[:, 1], lid[:, 2])))
    top, bottom = margins
    low, high = sorted(corners[[0, 3], 0])
    outside = np.maximum(low - offset[:, 0], offset[:, 0] - high)
    opening = np.maximum(top - bottom, 0) * smoothstep(outside, 1.5, 0)
    is_upper = angle > 0.5 * (top + bottom)
    beyond = np.where(is_upper, angle - top, bottom - angle) * eye.radius
    distance = np.linalg.norm(offset, axis=1)
    near = smoothstep(beyond, LID_REACH, 0) * smoothstep(distance - eye.radius, 9, 2)
    near *= (offset[:, 2] > 0) & ~head.is_eyeball
    turn = np.where(is_upper, -down, up) * opening * near
    turn *= np.minimum(1, eye.radius / np.maximum(distance, 1e-9))
    moved = (_rotation(0, -turn) @ offset[..., None])[..., 0]
    lift = LIFT * (turn / max(opening.max(), 1e-9)) ** 2
    return moved * (1 + lift / np.maximum(distance, 1e-9))[:, None] - offset
