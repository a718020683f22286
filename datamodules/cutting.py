"""Crops cut out of decoded images, several times as fast as core.crop.warp where upright."""

import math

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from core.crop import transform_points, warp


def cut_out(
    image: UInt8[Tensor, "c h w"], matrix: Float[Tensor, "3 3"], size: int
) -> Float[Tensor, "c size size"]:
    """The crop as ``warp(image / 255, matrix, size)`` gives it, but only its part is looked at.

    Where rows stay rows and less than four pixels become one, ``warp`` is separable: the crop is
    two products with sparse matrices.

    Args:
        image: 0 ... 255.
        matrix: affine, image pixels -> crop pixels.
        size: side of the crop, pixels.

    Returns:
        In [0, 1].
    """
    inverse = torch.linalg.inv(matrix)
    shown, x0, y0 = _shown(image, inverse, size)
    part = shown.float() / 255
    (a, b, _), (c, d, _) = matrix[:2].tolist()
    samples = max(1, math.ceil(abs(a * d - b * c) ** -0.5 - 1e-3))  # along each axis, as in warp
    if samples < 4 and b == c == 0:
        down = _weights(inverse[1, 1], inverse[1, 2] - y0, part.shape[1], size, samples)
        across = _weights(inverse[0, 0], inverse[0, 2] - x0, part.shape[2], size, samples)
        return down @ part @ across.T
    shift = torch.tensor([[1.0, 0, x0], [0, 1, y0], [0, 0, 1]])
    return warp(part, matrix @ shift, size)


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


def _weights(
    scale: Float[Tensor, ""], offset: Float[Tensor, ""], count: int, size: int, samples: int
) -> Float[Tensor, "size count"]:
    """What each of ``count`` pixels adds to each of ``size``: means of bilinear samples.

    Their positions are scale * crop + offset; the image's border reaches out to its edge, beyond it
    is nothing.
    """
    at = scale * (torch.arange(size * samples) + 0.5) / samples + offset
    inside = (at >= 0) & (at <= count)
    centres = torch.arange(count) + 0.5
    near = 1 - (at.clamp(0.5, count - 0.5)[:, None] - centres).abs()
    return (near.clamp(min=0) * inside[:, None]).view(size, samples, count).mean(1)
