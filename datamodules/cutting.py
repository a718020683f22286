"""Crops cut out of decoded images, many times as fast as core.crop.warp where upright."""

import math
from typing import no_type_check

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numba import njit
from torch import Tensor

from core.crop import transform_points, warp

EXACT = 5e-3  # pixels by which a crop may be moved so that none has to be mixed


def cut_out(
    image: UInt8[Tensor, "c h w"], matrix: Float[Tensor, "3 3"], size: int
) -> Float[Tensor, "c size size"]:
    """The crop as ``warp(image / 255, matrix, size)`` gives it, but only its part is looked at.

    Where less than four pixels become one, compiled loops do it: where rows stay rows, ``warp`` is
    separable, and rows are mixed first, then columns.

    Args:
        image: 0 ... 255.
        matrix: affine, image pixels -> crop pixels.
        size: side of the crop, pixels.

    Returns:
        In [0, 1].
    """
    (a, b, x), (c, d, y) = matrix[:2].double().tolist()
    away = (size * (a - 1), size * (d - 1), x - round(x), y - round(y))
    if b == c == 0 and max(map(abs, away)) < EXACT:
        return _part(image, round(x), round(y), size)
    samples = max(1, math.ceil(abs(a * d - b * c) ** -0.5 - 1e-3))  # along each axis, as in warp
    if samples < 4:
        crop = np.empty((len(image), size, size), np.float32)
        if b == c == 0:
            height, width = image.shape[-2:]
            down = _taps(1 / d, -y / d, height, size, samples)
            across = _taps(1 / a, -x / a, width, size, samples)
            _mix(image.numpy(), *down, *across, crop)
        else:
            inverse = torch.linalg.inv(matrix.double())[:2].numpy()
            _sample(image.numpy(), inverse, samples, crop)
        return torch.from_numpy(crop)
    shown, x0, y0 = _shown(image, torch.linalg.inv(matrix), size)
    shift = torch.tensor([[1.0, 0, x0], [0, 1, y0], [0, 0, 1]])
    return warp(shown.float() / 255, matrix @ shift, size)


def _part(image: UInt8[Tensor, "c h w"], x: int, y: int, size: int) -> Float[Tensor, "c size size"]:
    """The image moved by whole pixels."""
    height, width = image.shape[-2:]
    left, right = max(x, 0), min(x + width, size)
    top, bottom = max(y, 0), min(y + height, size)
    crop = torch.zeros(len(image), size, size)
    if left < right and top < bottom:
        shown = image[:, top - y : bottom - y, left - x : right - x]
        torch.mul(shown, 1 / 255, out=crop[:, top:bottom, left:right])
    return crop


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


@njit(nogil=True, cache=True, error_model="numpy")
@no_type_check
def _sample(image, inverse, samples, crop):  # noqa: ANN001, ANN202
    """Fill the crop with means of samples x samples bilinear samples of image / 255."""
    channels, height, width = image.shape
    size = crop.shape[-1]
    share = np.float32(1 / (255 * samples * samples))
    crop[:] = 0
    for row in range(size):
        for step in range(samples * samples):
            v = row + (step // samples + 0.5) / samples
            u = (step % samples + 0.5) / samples
            first_x = inverse[0, 0] * u + inverse[0, 1] * v + inverse[0, 2]
            first_y = inverse[1, 0] * u + inverse[1, 1] * v + inverse[1, 2]
            for column in range(size):
                x = first_x + inverse[0, 0] * column
                y = first_y + inverse[1, 0] * column
                if x < 0 or x > width or y < 0 or y > height:
                    continue
                x = min(max(x, 0.5), width - 0.5) - 0.5
                y = min(max(y, 0.5), height - 0.5) - 0.5
                left, top = int(x), int(y)
                right, below = min(left + 1, width - 1), min(top + 1, height - 1)
                beside, under = np.float32(x - left), np.float32(y - top)
                for channel in range(channels):
                    a, b = np.float32(image[channel, top, left]), image[channel, top, right]
                    c, d = np.float32(image[channel, below, left]), image[channel, below, right]
                    upper = a + beside * (np.float32(b) - a)
                    lower = c + beside * (np.float32(d) - c)
                    crop[channel, row, column] += share * (upper + under * (lower - upper))


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
