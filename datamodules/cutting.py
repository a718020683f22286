"""Crops cut out of decoded images, many times as fast as core.crop.warp where upright."""

import math
from typing import no_type_check

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numba import njit
from torch import Tensor

from core.crop import transform_points, warp


def cut_out(
    image: UInt8[Tensor, "c h w"], matrix: Float[Tensor, "3 3"], size: int
) -> Float[Tensor, "c size size"]:
    """The crop as ``warp(image / 255, matrix, size)`` gives it, but only its part is looked at.

    Where rows stay rows and less than four pixels become one, ``warp`` is separable: a compiled
    loop first mixes rows, then columns.

    Args:
        image: 0 ... 255.
        matrix: affine, image pixels -> crop pixels.
        size: side of the crop, pixels.

    Returns:
        In [0, 1].
    """
    (a, b, x), (c, d, y) = matrix[:2].double().tolist()
    samples = max(1, math.ceil(abs(a * d - b * c) ** -0.5 - 1e-3))  # along each axis, as in warp
    if samples < 4 and b == c == 0:
        height, width = image.shape[-2:]
        down = _taps(1 / d, -y / d, height, size, samples)
        across = _taps(1 / a, -x / a, width, size, samples)
        crop = np.empty((len(image), size, size), np.float32)
        _mix(image.numpy(), *down, *across, crop)
        return torch.from_numpy(crop)
    shown, x0, y0 = _shown(image, torch.linalg.inv(matrix), size)
    shift = torch.tensor([[1.0, 0, x0], [0, 1, y0], [0, 0, 1]])
    return warp(shown.float() / 255, matrix @ shift, size)


def _taps(
    scale: float, offset: float, count: int, size: int, samples: int
) -> tuple[np.ndarray, np.ndarray]:
    """Which of ``count`` pixels each of ``size`` takes, and how much: means of bilinear samples.

    Their positions are scale * crop + offset; the image's border reaches out to its edge, beyond it
    is nothing.

    Returns:
        The first of two neighbours of each sample, and the shares of both, (size, samples[, 2]).
    """
    at = scale * (np.arange(size * samples) + 0.5) / samples + offset
    share = ((at >= 0) & (at <= count)) / samples
    place = at.clip(0.5, count - 0.5) - 0.5
    first = np.minimum(place.astype(np.int64), max(count - 2, 0))
    second = (place - first) * share
    shares = np.stack([share - second, second], -1).astype(np.float32)
    return first.reshape(size, samples), shares.reshape(size, samples, 2)


@njit(nogil=True, cache=True, error_model="numpy")
@no_type_check
def _mix(image, top, above, left, beside, crop):  # noqa: ANN001, ANN202
    """Mix image / 255 into the crop: taps (top, above) of rows, (left, beside) of columns."""
    channels, height, width = image.shape
    size, samples = top.shape
    begin = left.min()
    count = min(left.max() + 2, width) - begin
    mixed = np.empty(count, np.float32)
    for channel in range(channels):
        for row in range(size):
            mixed[:] = 0
            for sample in range(samples):
                y = top[row, sample]
                first = above[row, sample, 0] / np.float32(255)
                second = above[row, sample, 1] / np.float32(255)
                one = image[channel, y, begin : begin + count]
                two = image[channel, min(y + 1, height - 1), begin : begin + count]
                for x in range(count):
                    mixed[x] += first * one[x] + second * two[x]
            for column in range(size):
                value = np.float32(0)
                for sample in range(samples):
                    x = left[column, sample] - begin
                    value += beside[column, sample, 0] * mixed[x]
                    value += beside[column, sample, 1] * mixed[min(x + 1, count - 1)]
                crop[channel, row, column] = value


def _shown(
    image: UInt8[Tensor, "c h w"], inverse: Float[Tensor, "3 3"], size: int
) -> tuple[UInt8[Tensor, "c _ _"], int, int]:
    """The part of the image that a crop shows, and where it begins: x, y."""
    height, width = image.shape[-2:]
    corners = torch.tensor([[0.0, 0], [size, 0], [0, size], [size, size]])
    corners = transform_points(inverse, corners)
    (left, top), (right, bottom) = corners.amin(0).tolist(), corners.amax(0).tolist()
    x0, y0 = (min(max(int(v) - 2, 0), end - 1) for v, end in ((left, width), (top, height)))
    x1, y1 = max(int(right) + 3, x0 + 1), max(int(bottom) + 3, y0 + 1)
    return image[:, y0:y1, x0:x1], x0, y0
