# ruff: noqa: ANN001, ANN201, ANN202 - numba compiles the kernels for the types they are called with
"""Many points through few small matrices: rotations, projections, clip space.

On the CPU a fused kernel with its gradient, parallel over the batch and the same for any number of
threads: batched products with 3 x 3 matrices are several times slower. On other devices, and under
torch.compile, plain operations.
"""

from typing import Any, no_type_check

import numpy as np
import torch
from jaxtyping import Float
from numba import njit
from torch import Tensor
from torch.autograd.function import once_differentiable

from core.rasterize.kernels import kernel
from core.rasterize.threads import over_images


def affine(
    points: Float[Tensor, "*b n 3"],
    matrix: Float[Tensor, "*b k 3"],
    offset: Float[Tensor, "*b k"] | None = None,
) -> Float[Tensor, "*b n k"]:
    """Of each point matrix @ point + offset; all of one dtype."""
    if offset is None:
        offset = torch.zeros_like(matrix[..., 0])
    if points.device.type != "cpu" or torch.compiler.is_compiling():
        return points @ matrix.mT + offset[..., None, :]
    flat = (points[None].flatten(0, -3), matrix[None].flatten(0, -3), offset[None].flatten(0, -2))
    return _Affine.apply(*flat).view(*points.shape[:-1], matrix.shape[-2])


class _Affine(torch.autograd.Function):
    """``affine`` with one batch axis, on the CPU."""

    @staticmethod
    def forward(ctx: Any, points: Tensor, matrix: Tensor, offset: Tensor) -> Tensor:
        ctx.save_for_backward(points, matrix)
        result = points.new_empty(*points.shape[:2], matrix.shape[1])
        over_images(_forward, len(points), points, matrix, offset, result)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        points, matrix = ctx.saved_tensors
        wants_points = ctx.needs_input_grad[0]
        # the kernel leaves out the points' gradient if it has no images
        grad_points = torch.empty_like(points if wants_points else points[:0])
        grad_matrix = torch.empty_like(matrix, memory_format=torch.contiguous_format)
        grad_offset = matrix.new_empty(matrix.shape[:2])
        over_images(
            _backward, len(points), points, matrix, gradient, grad_points, grad_matrix, grad_offset
        )
        return grad_points if wants_points else None, grad_matrix, grad_offset


# Points are copied BLOCK at a time, however they lie, into rows, over which the loops vectorise.
BLOCK = 256
X, Y, Z, E, DX, DY, DZ = (BLOCK * row for row in range(7))


@kernel
@no_type_check
def _forward(first, last, points, matrix, offset, result):
    work = np.zeros(7 * BLOCK, points.dtype)
    for image in range(first, last):
        for start in range(0, points.shape[1], BLOCK):
            count = min(BLOCK, points.shape[1] - start)
            load(points[image], start, count, work)
            for row in range(matrix.shape[1]):
                a, b, c = matrix[image, row, 0], matrix[image, row, 1], matrix[image, row, 2]
                _combine(a, b, c, offset[image, row], work)
                result[image, start : start + count, row] = work[E : E + count]
    return 0


@kernel
@no_type_check
def _backward(first, last, points, matrix, grad, grad_points, grad_matrix, grad_offset):
    work = np.zeros(7 * BLOCK, points.dtype)
    for image in range(first, last):
        sums = np.zeros((matrix.shape[1], 4))  # of the gradient times x, y, z, 1
        for start in range(0, points.shape[1], BLOCK):
            count = min(BLOCK, points.shape[1] - start)
            load(points[image], start, count, work)
            work[DX:] = 0
            work[E + count : E + BLOCK] = 0
            for row in range(matrix.shape[1]):
                work[E : E + count] = grad[image, start : start + count, row]
                _add_sums(work, sums[row])
                if len(grad_points):
                    a, b, c = matrix[image, row, 0], matrix[image, row, 1], matrix[image, row, 2]
                    _add_slopes(a, b, c, work)
            if len(grad_points):
                for axis, row in enumerate((DX, DY, DZ)):
                    grad_points[image, start : start + count, axis] = work[row : row + count]
        grad_matrix[image] = sums[:, :3]
        grad_offset[image] = sums[:, 3]
    return 0


@kernel
@no_type_check
def load(points, start, count, work):
    """Copy ``count`` points into the rows X, Y, Z of a block."""
    for axis, row in enumerate((X, Y, Z)):
        work[row : row + count] = points[start : start + count, axis]


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
