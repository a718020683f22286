"""The 68 landmarks of iBUG / Multi-PIE: groups, mirroring, and the five points that detectors give.

Convention: 0-based; RIGHT and LEFT are the subject's, so RIGHT is on the image's left of a frontal
face. Worked number: point 36 is the outer corner of the subject's right eye; mirrored, it is point
45.
"""

import torch
from jaxtyping import Float
from torch import Tensor

JAW = tuple(range(17))
RIGHT_BROW = tuple(range(17, 22))
LEFT_BROW = tuple(range(22, 27))
NOSE = tuple(range(27, 36))
RIGHT_EYE = tuple(range(36, 42))
LEFT_EYE = tuple(range(42, 48))
OUTER_MOUTH = tuple(range(48, 60))
INNER_MOUTH = tuple(range(60, 68))
GROUPS = {
    "jaw": JAW,
    "right_brow": RIGHT_BROW,
    "left_brow": LEFT_BROW,
    "nose": NOSE,
    "right_eye": RIGHT_EYE,
    "left_eye": LEFT_EYE,
    "outer_mouth": OUTER_MOUTH,
    "inner_mouth": INNER_MOUTH,
}

NOSE_TIP = 30
RIGHT_MOUTH_CORNER, LEFT_MOUTH_CORNER = 48, 54

MIRROR = (
    *range(16, -1, -1),  # jaw
    *range(26, 16, -1),  # brows
    *range(27, 31),  # bridge of the nose
    *range(35, 30, -1),  # nostrils
    *(45, 44, 43, 42, 47, 46),  # eyes
    *(39, 38, 37, 36, 41, 40),
    *range(54, 47, -1),  # outer mouth, upper lip
    *range(59, 54, -1),  # outer mouth, lower lip
    *range(64, 59, -1),  # inner mouth, upper lip
    *range(67, 64, -1),  # inner mouth, lower lip
)
"""MIRROR[i] is the point that lies where i was after the image is flipped left to right."""


def mirror(landmarks: Float[Tensor, "*b 68 d"], width: int) -> Float[Tensor, "*b 68 d"]:
    """The landmarks of the image flipped left to right: x becomes width - x, sides change names.

    Args:
        landmarks: x first, pixels.
        width: of the image, pixels.
    """
    x = width - landmarks[..., MIRROR, :1]
    return torch.cat([x, landmarks[..., MIRROR, 1:]], -1)


def five_points(landmarks: Float[Tensor, "*b 68 d"]) -> Float[Tensor, "*b 5 d"]:
    """The points of a face detector: eyes (means of six points each), nose tip, mouth corners.

    The image-left one of a frontal face first: the subject's right eye and right mouth corner.
    """
    return torch.stack(
        [
            landmarks[..., RIGHT_EYE, :].mean(-2),
            landmarks[..., LEFT_EYE, :].mean(-2),
            landmarks[..., NOSE_TIP, :],
            landmarks[..., RIGHT_MOUTH_CORNER, :],
            landmarks[..., LEFT_MOUTH_CORNER, :],
        ],
        -2,
    )
