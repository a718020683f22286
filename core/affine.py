# ruff: noqa: ANN001, ANN202 - numba compiles the kernels for the types they are called with
"""Many points through few small matrices: rotations, projections, clip space.

On the CPU a fused kernel with its gradient, parallel over images or, of few, their parts, and the
same for any number of threads. On other devices, and under torch.compile, plain operations. Results
are not always contiguous.
"""

from typing import Any, no_type_check

import numpy as np
import torch
from jaxtyping import Float
from numba import njit
from torch import Tensor
from torch.autograd.function import once_differentiable

from core.blocks import (
    BLOCK,
    are_many,
    laid_out,
    new,
    pieces,
    read,
    read_row,
    write,
    write_row,
)
from core.rasterize.kernels import kernel
from core.rasterize.threads import over_images


def affine(
    points: Float[Tensor, "*b n 3"],
    matrix: Float[Tensor, "*b k 3"],
    offset: Float[Tensor, "*b k"] | None = None,
) -> Float[Tensor, "*b n k"]:
    """Of each point matrix @ point + offset; all of one dtype.

    Raises:
        ValueError: shapes that do not belong together; batch axes are not broadcast.
    """
    batch, components = points.shape[:-2], matrix.shape[-2]
    if points.shape[-1] != 3 or matrix.shape != (*batch, components, 3):
        raise ValueError(
            f"points {tuple(points.shape)} need a matrix {(*batch, 'k', 3)} and three components, "
            f"got a matrix {tuple(matrix.shape)}"
        )
    if offset is None:
        offset = torch.zeros_like(matrix[..., 0])
    if offset.shape != matrix.shape[:-1]:
        raise ValueError(
            f"an offset {tuple(offset.shape)} does not belong to a matrix {tuple(matrix.shape)}"
        )
    if points.device.type != "cpu" or torch.compiler.is_compiling():
        return points @ matrix.mT + offset[..., None, :]
    flat = (points[None].flatten(0, -3), matrix[None].flatten(0, -3), offset[None].flatten(0, -2))
    return _Affine.apply(*flat).view(*points.shape[:-1], matrix.shape[-2])


class _Affine(torch.autograd.Function):
    """``affine`` with one batch axis, on the CPU."""

    @staticmethod
    def forward(ctx: Any, points: Tensor, matrix: Tensor, offset: Tensor) -> Tensor:
        ctx.save_for_backward(points, matrix)
        result = new(points, matrix.shape[1], planar=False)
        cut = pieces(*points.shape[:2])
        count = len(points) * cut[0]
        over_images(
            _forward, count, *cut, *laid_out(points), matrix, offset, *laid_out(result),
            parallel=are_many(points),
        )  # fmt: skip
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        points, matrix = ctx.saved_tensors
        wants_points = ctx.needs_input_grad[0]
        given, planar = laid_out(points)
        grad_points = new(points if wants_points else points[:0], 3, planar)
        parts, size = pieces(*points.shape[:2])
        sums = matrix.new_empty(len(points), parts, matrix.shape[1], 4, dtype=torch.float64)
        over_images(
            _backward, len(points) * parts, parts, size, given, planar, matrix,
            *laid_out(gradient), laid_out(grad_points)[0], sums.flatten(0, 1),
            parallel=are_many(points),
        )  # fmt: skip
        grad_matrix, grad_offset = sums.sum(1).to(matrix.dtype).split([3, 1], -1)
        return grad_points if wants_points else None, grad_matrix, grad_offset[..., 0]


X, Y, Z, DX, DY, DZ, E, RESULT = (BLOCK * row for row in range(8))


@kernel
@no_type_check
def _forward(first, last, parts, size, points, planar, matrix, offset, result, planes):
    number, components = points.shape[1] // 3, matrix.shape[1]
    work = np.zeros(RESULT + components * BLOCK, points.dtype)
    for piece in range(first, last):
        image, begin = piece // parts, piece % parts * size
        for start in range(begin, min(begin + size, number), BLOCK):
            count = min(BLOCK, number - start)
            read(points[image], number, start, count, 3, planar, X, work)
            for row in range(components):
                a, b, c = matrix[image, row, 0], matrix[image, row, 1], matrix[image, row, 2]
                _combine(a, b, c, offset[image, row], work)
                write_row(work, RESULT + row * BLOCK, BLOCK, E, work)
            write(result[image], number, start, count, components, planes, RESULT, work)
    return 0


@kernel
@no_type_check
def _backward(
    first, last, parts, size, points, planar, matrix, grad, planes, grad_points, all_sums
):
    """Write the points' gradient, unless it has no images, and sums for the others."""
    number, components = points.shape[1] // 3, matrix.shape[1]
    work = np.zeros(RESULT + components * BLOCK, points.dtype)
    for piece in range(first, last):
        image, begin = piece // parts, piece % parts * size
        sums = all_sums[piece]  # of the gradient times x, y, z, 1
        sums[:] = 0
        for start in range(begin, min(begin + size, number), BLOCK):
            count = min(BLOCK, number - start)
            read(points[image], number, start, count, 3, planar, X, work)
            read(grad[image], number, start, count, components, planes, RESULT, work)
            work[DX : DZ + BLOCK] = 0
            for row in range(components):
                read_row(work, RESULT + row * BLOCK, BLOCK, E, work)
                _add_sums(work, sums[row])
                if len(grad_points):
                    a, b, c = matrix[image, row, 0], matrix[image, row, 1], matrix[image, row, 2]
                    _add_slopes(a, b, c, work)
            if len(grad_points):
                write(grad_points[image], number, start, count, 3, planar, DX, work)
    return 0


@kernel
@no_type_check
def _combine(a, b, c, d, work):
    for p in range(BLOCK):
        work[E + p] = a * work[X + p] + b * work[Y + p] + c * work[Z + p] + d


@kernel
@no_type_check
def _add_slopes(a, b, c, work):
    for p in range(BLOCK):
        work[DX + p] += a * work[E + p]
        work[DY + p] += b * work[E + p]
        work[DZ + p] += c * work[E + p]


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract", "reassoc"})
@no_type_check
def _add_sums(work, sums):
    """Sums over a block, of as many partial sums as the vectors are wide."""
    x = y = z = e = work.dtype.type(0)
    for p in range(BLOCK):
        value = work[E + p]
        x += value * work[X + p]
        y += value * work[Y + p]
        z += value * work[Z + p]
        e += value
    sums[0] += x
    sums[1] += y
    sums[2] += z
    sums[3] += e
