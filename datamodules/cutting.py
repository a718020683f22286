"""Crops cut out of decoded images: ``core.crop.warp`` in a twentieth of its time, in 8 bits."""

import math
from typing import no_type_check

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from numba import njit

EXACT = 5e-3  # pixels by which a crop may be moved so that none has to be mixed
NO_MASK = np.empty((0, 0), np.uint8)


def cut_out(
    image: UInt8[np.ndarray, "h w 3"],
    mask: UInt8[np.ndarray, "h w"] | None,
    matrix: Float[np.ndarray, "3 3"],
    crop: UInt8[np.ndarray, "3 size size"],
    crop_mask: UInt8[np.ndarray, "size size"],
) -> None:
    """Fill a crop as ``warp(image, matrix, size)`` does, and its mask in the same pass; rounded.

    Other than there, the mean of k x k samples is also taken where four and more pixels become one.

    Args:
        image: 0 ... 255.
        mask: the same; None = 255 everywhere.
        matrix: affine, image pixels -> crop pixels.
        crop: is filled; 0 outside the image.
        crop_mask: the same.
    """
    (a, b, x), (c, d, y) = matrix[:2].tolist()
    size = crop.shape[-1]
    away = (size * (a - 1), size * (d - 1), x - round(x), y - round(y))
    if b == c == 0 and max(map(abs, away)) < EXACT:
        _move(image, mask, round(x), round(y), crop, crop_mask)
        return
    back = inverse(matrix)
    samples = max(1, math.ceil(abs(a * d - b * c) ** -0.5 - 1e-3))  # along each axis, as in warp
    if b == c == 0:
        whole = np.ascontiguousarray(image)
        covered = NO_MASK if mask is None else np.ascontiguousarray(mask)
        _sample_upright(whole, covered, back, samples, crop, crop_mask)
        return
    rows, columns = _shown(image.shape[:2], back, size)
    pixels = cv2.cvtColor(image[rows, columns], cv2.COLOR_RGB2RGBA)  # alpha is 255
    if mask is not None:
        cv2.insertChannel(mask[rows, columns], pixels, 3)
    offset = back[:2, 2] - (columns.start, rows.start)
    _sample(pixels.view(np.uint32)[..., 0], back[:2, :2], offset, samples, crop, crop_mask)


def inverse(matrix: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, "3 3"]:
    """The inverse of an affine matrix, in a tenth of the time of ``np.linalg.inv``."""
    (a, b, x), (c, d, y), _ = matrix.tolist()
    det = a * d - b * c
    return np.array([[d, -b, b * y - d * x], [-c, a, c * x - a * y], [0, 0, det]]) / det


def _move(
    image: np.ndarray, mask: np.ndarray | None, x: int, y: int, crop: np.ndarray, seen: np.ndarray
) -> None:
    """Fill the crop with the image moved by whole pixels."""
    (height, width), size = image.shape[:2], crop.shape[-1]
    left, right = max(x, 0), min(x + width, size)
    top, bottom = max(y, 0), min(y + height, size)
    if left > 0 or top > 0 or right < size or bottom < size:
        crop[:], seen[:] = 0, 0
    if left < right and top < bottom:
        here = slice(top, bottom), slice(left, right)
        there = slice(top - y, bottom - y), slice(left - x, right - x)
        cv2.split(image[there], [plane[here] for plane in crop])
        seen[here] = 255 if mask is None else mask[there]


def _shown(shape: tuple[int, ...], back: np.ndarray, size: int) -> tuple[slice, slice]:
    """Rows and columns of the part of an image that a crop shows; one at least of each."""
    corners = back[:2] @ [[0, size, 0, size], [0, 0, size, size], [1, 1, 1, 1]]
    parts = []
    for values, end in zip(corners[::-1].tolist(), shape, strict=True):
        first = min(max(int(min(values)) - 2, 0), end - 1)
        parts.append(slice(first, min(max(int(max(values)) + 3, first + 1), end)))
    return parts[0], parts[1]


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract", "nsz", "reassoc"})
@no_type_check
def _sample_upright(image, mask, back, samples, crop, crop_mask):  # noqa: ANN001, ANN202
    """``_sample`` where rows stay rows, in two fifths of its time where the image gets smaller:
    each row of the image is mixed along itself once, and rows with each other many columns at a
    time.

    An empty mask is 255 everywhere.
    """
    height, width, _ = image.shape
    size, masked = crop_mask.shape[-1], mask.size > 0
    place, near, far = _between(width, size, back[0, 0], back[0, 2], samples)
    rows, upper, lower = _between(height, size, back[1, 1], back[1, 2], samples)
    below = min(height - 1, 1)
    across = np.zeros(size, np.float32)  # how much of each column is in the image, times 255
    for sample in range(samples):
        for i in range(size):
            across[i] += np.float32(255) * (near[sample, i] + far[sample, i])
    plane = np.empty(width + 1, np.float32)  # one channel of a row, its last pixel twice
    mixed = np.empty((2, 4, size), np.float32)  # the last even and the last odd row, by channel
    mixed[:, 3] = across
    known = np.full(2, -1)
    total = np.empty((4, size), np.float32)
    for row in range(size):
        total[:] = np.float32(0.5)  # rounds
        for sample in range(samples):
            first, a, b = rows[sample, row], upper[sample, row], lower[sample, row]
            if a + b == 0:  # outside the image
                continue
            for source in range(first, first + below + 1):
                if known[source % 2] == source:
                    continue
                known[source % 2] = source
                for channel in range(4 if masked else 3):
                    for x in range(width):
                        value = mask[source, x] if channel == 3 else image[source, x, channel]
                        plane[x] = np.float32(value)
                    plane[width] = plane[width - 1]
                    line = mixed[source % 2, channel]
                    line[:] = np.float32(0)
                    for k in range(samples):
                        at, one, other = place[k], near[k], far[k]
                        for i in range(size):
                            x = np.uintp(at[i])
                            line[i] += one[i] * plane[x] + other[i] * plane[x + np.uintp(1)]
            for channel in range(4):
                one, other = mixed[first % 2, channel], mixed[(first + below) % 2, channel]
                line = total[channel]
                for i in range(size):
                    line[i] += a * one[i] + b * other[i]
        for channel in range(3):
            for i in range(size):
                crop[channel, row, i] = np.uint8(np.int32(total[channel, i]))
        for i in range(size):
            crop_mask[row, i] = np.uint8(np.int32(total[3, i]))


@njit(nogil=True, cache=True, error_model="numpy")
@no_type_check
def _between(length, size, step, offset, samples):  # noqa: ANN001, ANN202
    """Along one axis of an image: the first of two neighbours of each sample, and their weights,
    which sum to 1 / samples, or to 0 outside the image.
    """
    place = np.empty((samples, size), np.int32)
    near, far = np.empty((2, samples, size), np.float32)
    for sample in range(samples):
        for i in range(size):
            x = step * (i + (sample + 0.5) / samples) + offset - 0.5
            whole = 1 / samples if -0.5 <= x <= length - 0.5 else 0.0
            x = min(max(x, 0.0), length - 1.0)
            at = min(int(x), max(length - 2, 0))
            place[sample, i], far[sample, i] = at, whole * (x - at)
            near[sample, i] = whole - whole * (x - at)
    return place, near, far


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract", "nsz", "reassoc"})
@no_type_check
def _sample(pixels, linear, offset, samples, crop, mask):  # noqa: ANN001, ANN202
    """Fill crop and mask with means of samples x samples bilinear samples of pixels, as RGBA words.

    Row by row in short loops: where to look, look there, and mix each channel. All but the second
    are done many columns at a time by the processor.
    """
    height, width = pixels.shape
    flat, size = pixels.reshape(-1), mask.shape[-1]
    right, below = np.uintp(min(width - 1, 1)), np.uintp(width * min(height - 1, 1))
    last_x, last_y = np.int32(max(width - 2, 0)), np.int32(max(height - 2, 0))
    zero, half = np.float32(0), np.float32(0.5)
    edge_x, edge_y = np.float32(width - 1), np.float32(height - 1)
    share = np.float32(1 / samples**2)
    step_x, step_y = np.float32(linear[0, 0]), np.float32(linear[1, 0])
    place = np.empty(size, np.int32)  # of the upper left one of four neighbours
    share_a, share_b, share_c, share_d = np.empty((4, size), np.float32)
    a, b, c, d = np.empty((4, size), np.uint32)
    total = np.empty((4, size), np.float32)
    for row in range(size):
        total[:] = half  # rounds
        for sample in range(samples * samples):
            u, v = (sample % samples + 0.5) / samples, row + (sample // samples + 0.5) / samples
            first_x = np.float32(linear[0, 0] * u + linear[0, 1] * v + offset[0] - 0.5)
            first_y = np.float32(linear[1, 0] * u + linear[1, 1] * v + offset[1] - 0.5)
            for i in range(size):
                x, y = first_x + step_x * np.float32(i), first_y + step_y * np.float32(i)
                inside = (x >= -half) & (x <= edge_x + half) & (y >= -half) & (y <= edge_y + half)
                whole = share if inside else zero
                x, y = min(max(x, zero), edge_x), min(max(y, zero), edge_y)
                left, top = min(np.int32(x), last_x), min(np.int32(y), last_y)
                beside = x - np.float32(left)
                under = whole * (y - np.float32(top))
                share_d[i] = beside * under
                share_c[i] = under - beside * under
                share_b[i] = whole * beside - beside * under
                share_a[i] = whole - whole * beside - under + beside * under
                place[i] = top * np.int32(width) + left
            for i in range(size):
                at = np.uintp(place[i])
                a[i], b[i] = flat[at], flat[at + right]
                c[i], d[i] = flat[at + below], flat[at + below + right]
            for channel in range(4):
                shift, byte, line = np.uint32(8 * channel), np.uint32(255), total[channel]
                for i in range(size):
                    line[i] += (
                        share_a[i] * np.float32(np.int32((a[i] >> shift) & byte))
                        + share_b[i] * np.float32(np.int32((b[i] >> shift) & byte))
                        + share_c[i] * np.float32(np.int32((c[i] >> shift) & byte))
                        + share_d[i] * np.float32(np.int32((d[i] >> shift) & byte))
                    )
        for channel in range(3):
            for i in range(size):
                crop[channel, row, i] = np.uint8(np.int32(total[channel, i]))
        for i in range(size):
            mask[row, i] = np.uint8(np.int32(total[3, i]))
