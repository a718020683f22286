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
BROWS = slice(RIGHT_BROW[0], LEFT_BROW[-1] + 1)  # both
FAR = np.float32(1e9)  # pixels
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


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract", "nsz", "nnan", "reassoc"})
@no_type_check
def _keep_within(mask, corners):  # noqa: ANN001, ANN202
    """Multiply the mask by 1/2 - the distance to a convex polygon, > 0 outside, within [0, 1].

    Only where the edge lies it is looked at pixel by pixel. The sides are gone through in the outer
    loops, so that the processor does many rows or pixels at a time.
    """
    size, sides, half = len(mask), len(corners), np.float32(0.5)
    across, down, offset = np.empty((3, sides), np.float32)  # distance = across x + down y + offset
    area = 0.0
    for side in range(sides):
        x, y = corners[side]
        next_x, next_y = corners[(side + 1) % sides]
        area += (x * next_y - y * next_x) / 2
        length = max(np.hypot(next_x - x, next_y - y), FLAT)
        across[side], down[side] = (next_y - y) / length, (x - next_x) / length
        offset[side] = (y * (next_x - x) - x * (next_y - y)) / length
    if abs(area) < FLAT:
        mask[:] = 0
        return
    sign = np.float32(np.sign(area))
    # of each row the columns from where to where the distance is < 1/2, and < -1/2
    begin, inner, inner_end, end = np.empty((4, size), np.float32)
    begin[:], inner[:], inner_end[:], end[:] = 0, 0, size, size
    for side in range(sides):
        a, b, c = sign * across[side], sign * down[side], sign * offset[side]
        across[side], down[side], offset[side] = a, b, c
        slope = np.float32(1) / a if a else np.float32(0)
        wide = half * abs(slope)
        for row in range(size):
            at = -slope * (b * (np.float32(row) + half) + c)
            if a > 0:
                end[row] = min(end[row], at + wide + half)
                inner_end[row] = min(inner_end[row], at - wide - half)
            elif a < 0:
                begin[row] = max(begin[row], at - wide - half)
                inner[row] = max(inner[row], at + wide + half)
        if a == 0:
            for row in range(size):
                here = b * (np.float32(row) + half) + c
                end[row] = 0 if here >= half else end[row]
                inner_end[row] = 0 if here > -half else inner_end[row]
    pixels = np.empty((size * size, 2), np.int32)  # on the edge: column, row
    count = 0
    for row in range(size):
        first, last = int(min(begin[row], size)), int(max(np.ceil(end[row]), 0))
        mask[row, :first] = 0
        mask[row, last:] = 0
        inside = int(max(np.ceil(inner[row]), first))
        inside_end = int(max(np.floor(inner_end[row]), inside))
        for column in range(first, min(inside, last)):
            pixels[count] = column, row
            count += 1
        for column in range(inside_end, last):
            pixels[count] = column, row
            count += 1
    x, y, farthest = np.empty((3, count), np.float32)
    for i in range(count):
        x[i], y[i] = np.float32(pixels[i, 0]) + half, np.float32(pixels[i, 1]) + half
    farthest[:] = -FAR
    for side in range(sides):
        a, b, c = across[side], down[side], offset[side]
        for i in range(count):
            farthest[i] = max(farthest[i], a * x[i] + b * y[i] + c)
    for i in range(count):
        column, row = pixels[i]
        share = min(max(half - farthest[i], np.float32(0)), np.float32(1))
        mask[row, column] = np.uint8(np.int32(share * np.float32(mask[row, column]) + half))
