# ruff: noqa: ANN001, ANN202 - numba compiles the kernels for the types they are called with
"""Lambertian shading under distant light, in nine spherical harmonics.

R. Ramamoorthi and P. Hanrahan, An efficient representation for irradiance environment maps, 2001.

Convention: normals in the camera frame (x right, y down, z forward). Real spherical harmonics
without the Condon-Shortley sign, in the order (l, m) = (0,0), (1,-1), (1,0), (1,1), (2,-2), (2,-1),
(2,0), (2,1), (2,2), times the Lambertian factors pi, 2 pi / 3, pi / 4. Light coefficients are those
of the radiance that arrives. Worked number: the normal (0, 0, -1) towards the viewer has the basis
(0.886, 0, -1.023, 0, 0, 0, 0.495, 0, 0); ambient light of coefficient 0.8 alone gives the
irradiance 0.709, which multiplies the albedo.

On the CPU the shading is a fused kernel with its gradient, which keeps no basis functions; it is
parallel over images or, of few, their parts, and the same for any number of threads. On other
devices, and under torch.compile, it is plain operations. Results are not always contiguous.
"""

import math
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
from core.precision import at_least_float32, without_autocast
from core.rasterize.kernels import kernel
from core.rasterize.threads import over_images

LAMBERT = (math.pi, *3 * (2 * math.pi / 3,), *5 * (math.pi / 4,))  # of each harmonic
AMBIENT = 0.8
"""What methods add to coefficient 0, so that zero coefficients give a lit face (code of Deng)."""

# The nine functions are these factors times 1, y, z, x, x y, y z, 3 z z - 1, x z, x x - y y.
FACTORS = (
    LAMBERT[0] * math.sqrt(1 / (4 * math.pi)),
    *3 * (LAMBERT[1] * math.sqrt(3 / (4 * math.pi)),),
    *2 * (LAMBERT[4] * math.sqrt(15 / (4 * math.pi)),),
    LAMBERT[4] * math.sqrt(5 / (16 * math.pi)),
    LAMBERT[4] * math.sqrt(15 / (4 * math.pi)),
    LAMBERT[4] * math.sqrt(15 / (16 * math.pi)),
)


def sh_basis(normals: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b 9"]:
    """The nine real spherical harmonics of unit normals times the Lambertian factors."""
    return _basis(normals, -1)


def shade(
    normals: Float[Tensor, "*b 3 h w"], light: Float[Tensor, "*b 9 c"]
) -> Float[Tensor, "*b c h w"]:
    """The irradiance on a picture of normals: image = albedo * irradiance.

    Computed in at least float32, also under autocast.

    Args:
        normals: unit length, camera frame.
        light: nine coefficients for each colour channel; one channel is white light.

    Returns:
        Irradiance; may be negative where light coefficients are not those of a non-negative light.
    """
    size = normals.shape[-2:]
    if _is_fused(normals):
        points = normals.movedim(-3, -1).flatten(-3, -2)
        return _fused(points, light, True).mT.unflatten(-1, size)
    with without_autocast(normals):
        basis = _basis(at_least_float32(normals), -3).flatten(-2)
        return (at_least_float32(light).mT @ basis).unflatten(-1, size)


def shade_points(
    normals: Float[Tensor, "*b n 3"], light: Float[Tensor, "*b 9 c"]
) -> Float[Tensor, "*b n c"]:
    """``shade`` at points, as of methods that light the vertices."""
    if _is_fused(normals):
        return _fused(normals, light, False)
    with without_autocast(normals):
        return _basis(at_least_float32(normals), -1) @ at_least_float32(light)


def _basis(normals: Tensor, dim: int) -> Tensor:
    """``sh_basis`` with the axis of the components, and of the nine functions, at ``dim``."""
    x, y, z = normals.unbind(dim)
    functions = (torch.ones_like(x), y, z, x, x * y, y * z, 3 * z * z - 1, x * z, x * x - y * y)
    return torch.stack([f * term for f, term in zip(FACTORS, functions, strict=True)], dim)


def _is_fused(normals: Tensor) -> bool:
    return normals.device.type == "cpu" and not torch.compiler.is_compiling()


def _fused(normals: Tensor, light: Tensor, planes: bool) -> Tensor:
    """Irradiance "*b n c" at normals "*b n 3"; with ``planes`` each channel lies in one piece."""
    batch = normals.shape[:-2]
    if normals.shape[-1] != 3 or light.shape[:-1] != (*batch, 9):
        raise ValueError(
            f"normals {tuple(normals.shape)} need three components and light {(*batch, 9, 'c')}, "
            f"got light {tuple(light.shape)}; batch axes are not broadcast"
        )
    kind = torch.promote_types(at_least_float32(normals).dtype, light.dtype)
    normals, light = (tensor.to(kind)[None].flatten(0, -3) for tensor in (normals, light))
    irradiance = _Shade.apply(normals, light, planes)
    return irradiance.reshape(*batch, *irradiance.shape[-2:])


class _Shade(torch.autograd.Function):
    """Normals b n 3 and light b 9 c to irradiance b n c, on the CPU."""

    @staticmethod
    def forward(ctx: Any, normals: Tensor, light: Tensor, planes: bool) -> Tensor:
        ctx.save_for_backward(normals, light)
        irradiance = new(normals, light.shape[-1], planes)
        cut = pieces(*normals.shape[:2])
        count = len(normals) * cut[0]
        over_images(
            _forward, count, *cut, *laid_out(normals), light, *laid_out(irradiance),
            parallel=are_many(normals),
        )  # fmt: skip
        return irradiance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, None]:
        normals, light = ctx.saved_tensors
        wants_normals = ctx.needs_input_grad[0]
        given, planar = laid_out(normals)
        grad_normals = new(normals if wants_normals else normals[:0], 3, planar)
        grad_light = torch.empty_like(light, memory_format=torch.contiguous_format)
        cut = pieces(*normals.shape[:2])
        sums = light.new_empty(len(normals) * cut[0], *light.shape[1:], dtype=torch.float64)
        over_images(
            _backward, len(sums), *cut, given, planar, light, *laid_out(gradient),
            laid_out(grad_normals)[0], sums, parallel=are_many(normals),
        )  # fmt: skip
        _gather(cut[0], sums.numpy(), grad_light.numpy())
        return grad_normals if wants_normals else None, grad_light, None


# Irradiance is a polynomial of the normal, whose coefficients are the light's times FACTORS.
F0, F1, F4, F6, F8 = FACTORS[0], FACTORS[1], FACTORS[4], FACTORS[6], FACTORS[8]
# Rows of a block.
X, Y, Z, DX, DY, DZ, E, COLOURS = (BLOCK * row for row in range(8))


@kernel
@no_type_check
def _forward(first, last, parts, size, normals, planar, light, irradiance, planes):
    points, channels = normals.shape[1] // 3, light.shape[2]
    work, k = np.zeros(COLOURS + channels * BLOCK, normals.dtype), np.empty(9, normals.dtype)
    for piece in range(first, last):
        image, begin = piece // parts, piece % parts * size
        for start in range(begin, min(begin + size, points), BLOCK):
            count = min(BLOCK, points - start)
            read(normals[image], points, start, count, 3, planar, X, work)
            for channel in range(channels):
                _coefficients(light[image], channel, k)
                _evaluate(k, work)
                write_row(work, COLOURS + channel * BLOCK, BLOCK, E, work)
            write(irradiance[image], points, start, count, channels, planes, COLOURS, work)
    return 0


@kernel
@no_type_check
def _backward(
    first, last, parts, size, normals, planar, light, grad, planes, grad_normals, all_sums
):
    """Write the normals' gradient, unless it has no images, and the terms of the light's."""
    points, channels = normals.shape[1] // 3, light.shape[2]
    work, k = np.zeros(COLOURS + channels * BLOCK, normals.dtype), np.empty(9, normals.dtype)
    for piece in range(first, last):
        image, begin = piece // parts, piece % parts * size
        sums = all_sums[piece]  # of the gradient times 1, y, z, x, ...
        sums[:] = 0
        for start in range(begin, min(begin + size, points), BLOCK):
            count = min(BLOCK, points - start)
            read(normals[image], points, start, count, 3, planar, X, work)
            read(grad[image], points, start, count, channels, planes, COLOURS, work)
            work[DX : DZ + BLOCK] = 0
            for channel in range(channels):
                read_row(work, COLOURS + channel * BLOCK, BLOCK, E, work)
                _add_sums(work, sums[:, channel])
                if len(grad_normals):
                    _coefficients(light[image], channel, k)
                    _add_slopes(k, work)
            if len(grad_normals):
                write(grad_normals[image], points, start, count, 3, planar, DX, work)
    return 0


@kernel
@no_type_check
def _gather(parts, sums, grad_light):
    """The light's gradient from the sums of the images' pieces."""
    images, _, channels = grad_light.shape
    for image in range(images):
        for channel in range(channels):
            s = np.zeros(9)
            for part in range(parts):
                s += sums[image * parts + part, :, channel]
            grad_light[image, 0, channel] = F0 * s[0]
            grad_light[image, 6, channel] = F6 * (3 * s[6] - s[0])
            grad_light[image, 8, channel] = F8 * s[8]
            for row in (1, 2, 3):
                grad_light[image, row, channel] = F1 * s[row]
            for row in (4, 5, 7):
                grad_light[image, row, channel] = F4 * s[row]


@kernel
@no_type_check
def _coefficients(light, channel, k):
    """Of 1, y, z, x, x y, y z, z z, x z, x x - y y."""
    k[0] = F0 * light[0, channel] - F6 * light[6, channel]
    k[1], k[2], k[3] = F1 * light[1, channel], F1 * light[2, channel], F1 * light[3, channel]
    k[4], k[5], k[7] = F4 * light[4, channel], F4 * light[5, channel], F4 * light[7, channel]
    k[6], k[8] = 3 * F6 * light[6, channel], F8 * light[8, channel]


@kernel
@no_type_check
def _evaluate(k, work):
    k0, k1, k2, k3, k4, k5, k6, k7, k8 = k[0], k[1], k[2], k[3], k[4], k[5], k[6], k[7], k[8]
    for p in range(BLOCK):
        x, y, z = work[X + p], work[Y + p], work[Z + p]
        even = k4 * x * y + k5 * y * z + k6 * z * z + k7 * x * z + k8 * (x * x - y * y)
        work[E + p] = k0 + k1 * y + k2 * z + k3 * x + even


@kernel
@no_type_check
def _add_slopes(k, work):
    """The gradient of a channel's normals, where E is that of its irradiance."""
    k1, k2, k3, k4, k5, k7 = k[1], k[2], k[3], k[4], k[5], k[7]
    k6, k8 = k[6] + k[6], k[8] + k[8]  # 2 * would make them float64
    for p in range(BLOCK):
        x, y, z, e = work[X + p], work[Y + p], work[Z + p], work[E + p]
        work[DX + p] += e * (k3 + k4 * y + k7 * z + k8 * x)
        work[DY + p] += e * (k1 + k4 * x + k5 * z - k8 * y)
        work[DZ + p] += e * (k2 + k5 * y + k7 * x + k6 * z)


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract", "reassoc"})
@no_type_check
def _add_sums(work, sums):
    """Sums over a block, of as many partial sums as the vectors are wide."""
    s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = s8 = work.dtype.type(0)
    for p in range(BLOCK):
        x, y, z, e = work[X + p], work[Y + p], work[Z + p], work[E + p]
        s0 += e
        s1 += e * y
        s2 += e * z
        s3 += e * x
        s4 += e * x * y
        s5 += e * y * z
        s6 += e * z * z
        s7 += e * x * z
        s8 += e * (x * x - y * y)
    for term, value in enumerate((s0, s1, s2, s3, s4, s5, s6, s7, s8)):
        sums[term] += value
