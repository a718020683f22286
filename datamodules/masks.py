"""A face's mask where the dataset has none."""

from typing import no_type_check

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from numba import njit
from torch import Tensor

from core.landmarks import LEFT_BROW, RIGHT_BROW

FOREHEAD = 0.35  # ours: height of the forehead in a hull mask / distance from chin to nasion
CHIN, NASION = 8, 27
BROWS = list(RIGHT_BROW + LEFT_BROW)
FLAT = 1e-3  # (square) pixels; what is smaller is nothing


def hull_mask(
    landmarks: Float[Tensor, "68 2"], confidence: Float[Tensor, "68"], size: int
) -> Float[Tensor, "1 size size"]:
    """The face without its occlusions, from its landmarks: their convex hull and the forehead.

    The forehead is where the brows come to lie when moved up along the line from the chin to the
    nasion by ``FOREHEAD`` of its length: it ends below the hairline. Soft edges of one pixel, in
    steps of 1 / 255.
    """
    mask = np.full((size, size), 255, np.uint8)
    keep_hull(mask, landmarks.numpy(), confidence.numpy())
    return torch.from_numpy(mask)[None].float() / 255


def keep_hull(
    mask: UInt8[np.ndarray, "size size"],
    landmarks: Float[np.ndarray, "68 2"],
    confidence: Float[np.ndarray, "68"],
) -> None:
    """Multiply a mask, 0 ... 255, by that of ``hull_mask``, in place.

    Args:
        mask: is 0 outside the hull afterwards.
        landmarks: its pixels.
        confidence: 0 = missing.
    """
    corners = cv2.convexHull(_outline(landmarks, confidence))[:, 0]
    _keep_within(mask, corners.astype(np.float64))


def outline(
    landmarks: Float[Tensor, "*b 68 2"], confidence: Float[Tensor, "*b 68"]
) -> Float[Tensor, "*b k 2"]:
    """Points whose hull is that of ``hull_mask``: the landmarks, and the brows moved up.

    In the place of those that are not seen there is the middle of the others.
    """
    return torch.from_numpy(_outline(landmarks.numpy(), confidence.numpy()))


def _outline(landmarks: np.ndarray, confidence: np.ndarray) -> np.ndarray:
    seen = confidence[..., None] > 0
    up = landmarks[..., [NASION], :] - landmarks[..., [CHIN], :]
    forehead = landmarks[..., BROWS, :] + FOREHEAD * up
    if not seen.all():
        known = seen[..., BROWS, :] & seen[..., [NASION], :] & seen[..., [CHIN], :]
        landmarks = np.where(seen, landmarks, 0)
        count = np.maximum(seen.sum(-2, keepdims=True), 1)
        middle = landmarks.sum(-2, keepdims=True) / count
        landmarks = np.where(seen, landmarks, middle)
        forehead = np.where(known, forehead, middle)
    return np.concatenate([landmarks, forehead], -2, dtype=np.float32)


@njit(nogil=True, cache=True, error_model="numpy")
@no_type_check
def _keep_within(mask, corners):  # noqa: ANN001, ANN202
    """Multiply the mask by 1/2 - the distance to a convex polygon, > 0 outside, within [0, 1].

    Only where the edge lies it is looked at pixel by pixel.
    """
    size, sides = len(mask), len(corners)
    normals, offsets, area = np.empty((sides, 2)), np.empty(sides), 0.0
    for side in range(sides):
        x, y = corners[side]
        next_x, next_y = corners[(side + 1) % sides]
        area += (x * next_y - y * next_x) / 2
        length = max(np.hypot(next_x - x, next_y - y), FLAT)
        normals[side] = (next_y - y) / length, (x - next_x) / length
        offsets[side] = -(normals[side, 0] * x + normals[side, 1] * y)
    if abs(area) < FLAT:
        mask[:] = 0
        return
    normals, offsets = normals * np.sign(area), offsets * np.sign(area)
    for row in range(size):
        y = row + 0.5
        # columns from where to where the distance is less than 1/2, and less than -1/2
        begin, inner, inner_end, end = 0.0, 0.0, float(size), float(size)
        for side in range(sides):
            across, here = normals[side, 0], normals[side, 1] * y + offsets[side]
            if across > 0:
                end = min(end, (0.5 - here) / across + 0.5)
                inner_end = min(inner_end, (-0.5 - here) / across - 0.5)
            elif across < 0:
                begin = max(begin, (0.5 - here) / across - 0.5)
                inner = max(inner, (-0.5 - here) / across + 0.5)
            elif here >= 0.5:
                end = 0.0
            elif here > -0.5:
                inner_end = 0.0
        first, last = int(min(begin, size)), int(max(np.ceil(end), 0))
        mask[row, :first] = 0
        mask[row, last:] = 0
        for column in range(first, last):
            if inner <= column <= inner_end - 1:
                continue
            farthest = -np.inf
            for side in range(sides):
                distance = normals[side, 0] * (column + 0.5) + normals[side, 1] * y + offsets[side]
                farthest = max(farthest, distance)
            share = min(max(0.5 - farthest, 0.0), 1.0)
            mask[row, column] = np.uint8(share * mask[row, column] + 0.5)
