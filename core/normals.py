# ruff: noqa: ANN001, ANN202 - numba compiles the kernels for the types they are called with
"""Normals of triangle meshes.

Convention: triangles are counter-clockwise seen from outside, so normals point outwards. Worked
number: the triangle (0, 0, 0), (1, 0, 0), (0, 1, 0) has the normal (0, 0, 1), towards the viewer of
a frontal face.

On the CPU vertex normals are a fused kernel with its gradient: it walks through the triangles once,
parallel over the batch, and is the same bit for bit for any number of threads. On other devices,
and under torch.compile, they are plain operations.
"""

from typing import Any, no_type_check

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.compiler import is_compiling

from core.precision import at_least_float32
from core.rasterize.kernels import kernel
from core.rasterize.threads import over_images
from core.rasterize.topology import topology


def face_normals(
    vertices: Float[Tensor, "*b n 3"], triangles: Int[Tensor, "t 3"]
) -> Float[Tensor, "*b t 3"]:
    """Unit normals of the triangles; (0, 0, 0) for one without area."""
    return normalize(_area_normals(vertices, triangles))


def vertex_normals(
    vertices: Float[Tensor, "*b n 3"], triangles: Int[Tensor, "t 3"]
) -> Float[Tensor, "*b n 3"]:
    """Unit normals of the vertices: the mean of their triangles' normals, weighted with the area.

    A vertex of no triangle with area gets (0, 0, 0), and no gradient. Computed in at least float32.

    Raises:
        IndexError: a triangle has a corner that is not among the n vertices (CPU).
    """
    vertices = at_least_float32(vertices)
    if not _is_fused(vertices):
        return vertex_normals_plain(vertices, triangles)
    batch = vertices.reshape(-1, *vertices.shape[-2:])
    return _VertexNormals.apply(batch, triangles).reshape(vertices.shape)


def vertex_normals_plain(
    vertices: Float[Tensor, "*b n 3"], triangles: Int[Tensor, "t 3"]
) -> Float[Tensor, "*b n 3"]:
    """The same in plain operations, for any device and for torch.compile; the kernel's reference.

    Summed by ``index_add``, on CUDA in no fixed order.
    """
    normals = _area_normals(vertices, triangles)
    gathered = torch.zeros_like(vertices)
    for corner in range(3):
        gathered = gathered.index_add(-2, triangles[:, corner], normals)
    return normalize(gathered)


def normalize(vectors: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b 3"]:
    """Unit vectors; (0, 0, 0) stays what it is and has no gradient."""
    if _is_fused(vectors):
        return _Normalize.apply(vectors)
    squared = vectors.square().sum(-1, keepdim=True)
    empty = squared == 0
    return torch.where(empty, 0.0, vectors * torch.where(empty, 1.0, squared).rsqrt())


def _is_fused(vectors: Tensor) -> bool:
    dtypes = (torch.float32, torch.float64)
    return vectors.device.type == "cpu" and vectors.dtype in dtypes and not is_compiling()


def _area_normals(vertices: Tensor, triangles: Tensor) -> Tensor:
    """Outward normals with twice the triangle's area as length."""
    # index_select rather than indexing: its gradient is an index_add, not a sort
    a, b, c = (vertices.index_select(-2, corner) for corner in triangles.unbind(-1))
    return torch.linalg.cross(b - a, c - a)


class _VertexNormals(torch.autograd.Function):
    """``vertex_normals`` of a batch b n 3 on the CPU."""

    @staticmethod
    def forward(ctx: Any, vertices: Tensor, triangles: Tensor) -> Tensor:
        vertices = vertices.contiguous()
        known = topology(triangles)
        known.check(vertices.shape[1])
        normals = torch.empty_like(vertices)
        inverse_length = vertices.new_empty(vertices.shape[:2])
        tensors = (vertices, known.triangles, normals, inverse_length)
        over_images(_forward, len(vertices), *tensors)
        ctx.save_for_backward(*tensors)
        return normals

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        result = torch.zeros_like(gradient, memory_format=torch.contiguous_format)
        over_images(_backward, len(result), *ctx.saved_tensors, gradient.contiguous(), result)
        return result, None


class _Normalize(torch.autograd.Function):
    """``normalize`` on the CPU, of vectors in any shape."""

    @staticmethod
    def forward(ctx: Any, vectors: Tensor) -> Tensor:
        rows = torch.atleast_2d(vectors)[None].flatten(0, -3).contiguous()
        units, inverse_length = torch.empty_like(rows), rows.new_empty(rows.shape[:2])
        over_images(_normalize, len(rows), rows, units, inverse_length)
        ctx.save_for_backward(units, inverse_length)
        return units.view(vectors.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        units, inverse_length = ctx.saved_tensors
        rows = gradient.reshape(units.shape).contiguous()
        result = torch.empty_like(units)
        over_images(_normalize_backward, len(rows), units, inverse_length, rows, result)
        return result.view(gradient.shape)


@kernel
@no_type_check
def _normalize(first, last, vectors, units, inverse_length):
    for image in range(first, last):
        _unit(vectors[image], units[image], inverse_length[image])
    return 0


@kernel
@no_type_check
def _normalize_backward(first, last, units, inverse_length, gradient, result):
    for image in range(first, last):
        _across(units[image], inverse_length[image], gradient[image], result[image])
    return 0


@kernel
@no_type_check
def _unit(vectors, units, inverse_length):
    """Write unit vectors, and the inverse lengths: 0 where the length is 0."""
    zero, one = vectors.dtype.type(0), vectors.dtype.type(1)
    for k in range(len(vectors)):
        x, y, z = vectors[k, 0], vectors[k, 1], vectors[k, 2]
        squared = x * x + y * y + z * z
        inverse = zero if squared == zero else one / np.sqrt(squared)  # NaN stays NaN
        inverse_length[k] = inverse
        units[k, 0] = x * inverse
        units[k, 1] = y * inverse
        units[k, 2] = z * inverse


@kernel
@no_type_check
def _across(units, inverse_length, gradient, result):
    """The gradient of ``_unit``: its part across the vector over the vector's length."""
    for k in range(len(units)):
        x, y, z = units[k, 0], units[k, 1], units[k, 2]
        gx, gy, gz = gradient[k, 0], gradient[k, 1], gradient[k, 2]
        along = x * gx + y * gy + z * gz
        inverse = inverse_length[k]
        result[k, 0] = (gx - x * along) * inverse
        result[k, 1] = (gy - y * along) * inverse
        result[k, 2] = (gz - z * along) * inverse


# The kernels copy what they gather from into rows of four, which are addressed by a shift and lie
# in one cache line each: a third faster on meshes that do not fit the first cache.


@kernel
@no_type_check
def _forward(first, last, vertices, triangles, normals, inverse_length):
    x = np.empty((vertices.shape[1], 4), vertices.dtype)
    for image in range(first, last):
        x[:, :3] = vertices[image]
        out = normals[image]
        out[:] = 0
        for t in range(len(triangles)):
            a, b, c = (
                np.uint32(triangles[t, 0]),
                np.uint32(triangles[t, 1]),
                np.uint32(triangles[t, 2]),
            )
            px, py, pz = x[b, 0] - x[a, 0], x[b, 1] - x[a, 1], x[b, 2] - x[a, 2]
            qx, qy, qz = x[c, 0] - x[a, 0], x[c, 1] - x[a, 1], x[c, 2] - x[a, 2]
            nx, ny, nz = py * qz - pz * qy, pz * qx - px * qz, px * qy - py * qx
            for corner in (a, b, c):
                out[corner, 0] += nx
                out[corner, 1] += ny
                out[corner, 2] += nz
        _unit(out, out, inverse_length[image])
    return 0


@kernel
@no_type_check
def _backward(first, last, vertices, triangles, normals, inverse_length, gradient, result):
    x = np.empty((vertices.shape[1], 4), vertices.dtype)
    unnormalized = np.empty_like(x)  # gradient of the summed, not yet normalised normals
    for image in range(first, last):
        x[:, :3] = vertices[image]
        out = result[image]
        _across(normals[image], inverse_length[image], gradient[image], unnormalized)
        for t in range(len(triangles)):
            a, b, c = (
                np.uint32(triangles[t, 0]),
                np.uint32(triangles[t, 1]),
                np.uint32(triangles[t, 2]),
            )
            gx = unnormalized[a, 0] + unnormalized[b, 0] + unnormalized[c, 0]
            gy = unnormalized[a, 1] + unnormalized[b, 1] + unnormalized[c, 1]
            gz = unnormalized[a, 2] + unnormalized[b, 2] + unnormalized[c, 2]
            px, py, pz = x[b, 0] - x[a, 0], x[b, 1] - x[a, 1], x[b, 2] - x[a, 2]
            qx, qy, qz = x[c, 0] - x[a, 0], x[c, 1] - x[a, 1], x[c, 2] - x[a, 2]
            bx, by, bz = qy * gz - qz * gy, qz * gx - qx * gz, qx * gy - qy * gx  # q x g
            cx, cy, cz = gy * pz - gz * py, gz * px - gx * pz, gx * py - gy * px  # g x p
            out[b, 0] += bx
            out[b, 1] += by
            out[b, 2] += bz
            out[c, 0] += cx
            out[c, 1] += cy
            out[c, 2] += cz
            out[a, 0] -= bx + cx
            out[a, 1] -= by + cy
            out[a, 2] -= bz + cz
    return 0
