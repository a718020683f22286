# ruff: noqa: ANN001, ANN201, ANN202, D417
"""The colour of every pixel of a clip in one pass: interpolate, light, average.

A compiled kernel, since a clip has a million samples of which each needs a few dozen numbers once.
Light comes as the polynomial that ``irradiance_polynomial`` makes of ``core.lighting``, the only
place that knows the harmonics.
"""

from typing import no_type_check

import numpy as np
import torch
from jaxtyping import Float
from numba import njit
from torch import Tensor

from core.lighting import sh_basis

SHADOW_READS = np.array([(-2.1, -0.6), (0.6, -2.1), (2.1, 0.6), (-0.6, 2.1), (0.0, 0.0)])
"""Places around a point, in pixels of the shadow map, where it is read (percentage-closer)."""


def nine_normals() -> Float[np.ndarray, "9 3"]:
    """Unit vectors spread over the sphere, at which nine values determine second-order light."""
    index = np.arange(9) + 0.5
    z, turn = 1 - 2 * index / 9, index * np.pi * (1 + 5**0.5)
    x, y = np.sqrt(1 - z * z) * np.cos(turn), np.sqrt(1 - z * z) * np.sin(turn)
    return np.stack([x, y, z], -1)


def irradiance_polynomial(light: Float[Tensor, "*f 9 c"]) -> Float[np.ndarray, "*f 9 c"]:
    """Irradiance as a polynomial in a unit normal: coefficients of x, y, z, xy, yz, xz, xx, yy, zz.

    On the sphere these nine span the same functions as the nine harmonics (the constant is xx + yy
    + zz), so nine normals determine it exactly (R. Ramamoorthi and P. Hanrahan 2001, Eq. 12).
    """
    normals = nine_normals()
    x, y, z = normals.T
    monomials = np.stack([x, y, z, x * y, y * z, x * z, x * x, y * y, z * z], -1)
    values = sh_basis(torch.from_numpy(normals)) @ light.double()
    return np.linalg.solve(monomials, values.numpy()).astype(np.float32)


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract"})
@no_type_check
def shade_samples(
    index, weights, triangles, head_triangles, normals, lamp, static, texture, light, key, half,
    depth, bias, shadow, occlusion, gloss_colour, backdrop, images, masks,
):  # fmt: skip
    """Fill images (f s s 3) and masks (f s s) from k x k samples a pixel.

    Args:
        index: triangle of each sample (f ks ks), -1 = none.
        weights: of the triangle's first two corners (f ks ks 2).
        triangles: of all meshes (t 3); the first ``head_triangles`` are the head's.
        normals: unit, camera frame (f m 3).
        lamp: positions as the lamp sees them, in [-1, 1] (f m 3).
        static: per vertex (m 6): uv and 0 (head) or RGB, share of the sky that is seen, face,
            gloss.
        texture: reflectance of the head (uh uw 3).
        light, key: polynomials of all light and of that of the lamp (f 9 3).
        half: direction between the lamp and the viewer (f 3).
        depth: shadow maps (f d d).
        bias: of the shadow's depth test.
        shadow, occlusion: strengths.
        gloss_colour: of a highlight (3,).
        backdrop: (f s s 3).
        images, masks: the result.
    """
    frames, size = images.shape[0], images.shape[1]
    samples = index.shape[1] // size
    share = np.float32(1.0 / (samples * samples))
    high, wide, side = texture.shape[0], texture.shape[1], depth.shape[1]
    normal, at = np.empty(3, np.float32), np.empty(3, np.float32)
    values, albedo = np.empty(6, np.float32), np.empty(3, np.float32)
    terms, total = np.empty(9, np.float32), np.empty(3, np.float32)
    for frame in range(frames):
        for row in range(size):
            for column in range(size):
                total[:] = 0
                covered, face = 0, 0
                for sample in range(samples * samples):
                    y = row * samples + sample // samples
                    x = column * samples + sample % samples
                    t = index[frame, y, x]
                    if t < 0:
                        continue
                    covered += 1
                    a, b, c = triangles[t, 0], triangles[t, 1], triangles[t, 2]
                    u, v = weights[frame, y, x, 0], weights[frame, y, x, 1]
                    w = np.float32(1) - u - v
                    for k in range(3):
                        normal[k] = (
                            u * normals[frame, a, k]
                            + v * normals[frame, b, k]
                            + w * normals[frame, c, k]
                        )
                        at[k] = (
                            u * lamp[frame, a, k] + v * lamp[frame, b, k] + w * lamp[frame, c, k]
                        )
                    for k in range(6):
                        values[k] = u * static[a, k] + v * static[b, k] + w * static[c, k]
                    length = np.sqrt(normal[0] ** 2 + normal[1] ** 2 + normal[2] ** 2)
                    scale = np.float32(1) / max(length, np.float32(1e-12))
                    head = t < head_triangles
                    if not head and normal[2] > 0:  # thin things have two sides
                        scale = -scale
                    nx, ny, nz = normal[0] * scale, normal[1] * scale, normal[2] * scale
                    if head:
                        _read(texture, values[0] * wide - 0.5, values[1] * high - 0.5, albedo)
                        if values[4] > 0.5:
                            face += 1
                    else:
                        albedo[:] = values[:3]
                    terms[0], terms[1], terms[2] = nx, ny, nz
                    terms[3], terms[4], terms[5] = nx * ny, ny * nz, nx * nz
                    terms[6], terms[7], terms[8] = nx * nx, ny * ny, nz * nz
                    dark = np.float32(0)
                    if shadow > 0:
                        limit = at[2] - bias
                        for read in range(len(SHADOW_READS)):
                            i = int((at[1] + 1) * 0.5 * side + SHADOW_READS[read, 1])
                            j = int((at[0] + 1) * 0.5 * side + SHADOW_READS[read, 0])
                            i, j = min(max(i, 0), side - 1), min(max(j, 0), side - 1)
                            if depth[frame, i, j] < limit:
                                dark += np.float32(1)
                        dark *= np.float32(shadow / len(SHADOW_READS))
                    highlight = np.float32(0)
                    if values[5] > 1e-4:
                        cosine = nx * half[frame, 0] + ny * half[frame, 1] + nz * half[frame, 2]
                        if cosine > 0.3:
                            highlight = values[5] * cosine ** (10 + 80 * values[5]) * (1 - dark)
                    open_sky = np.float32(1) - np.float32(occlusion) * (1 - values[3])
                    for k in range(3):
                        lit, lamp_light = np.float32(0), np.float32(0)
                        for j in range(9):
                            lit += terms[j] * light[frame, j, k]
                            lamp_light += terms[j] * key[frame, j, k]
                        lit -= dark * max(lamp_light, np.float32(0))
                        total[k] += albedo[k] * lit * open_sky + highlight * gloss_colour[k]
                behind = 1 - covered * share
                for k in range(3):
                    images[frame, row, column, k] = (
                        total[k] * share + behind * backdrop[frame, row, column, k]
                    )
                masks[frame, row, column] = face * share


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract"})
@no_type_check
def _read(texture, x, y, colour):
    """Bilinear value at (x, y) in texels from the first one's centre; the border is repeated."""
    high, wide = texture.shape[0], texture.shape[1]
    x, y = min(max(x, 0.0), wide - 1.0), min(max(y, 0.0), high - 1.0)
    j, i = min(int(x), wide - 2), min(int(y), high - 2)
    fx, fy = np.float32(x - j), np.float32(y - i)
    for k in range(3):
        upper = texture[i, j, k] * (1 - fx) + texture[i, j + 1, k] * fx
        lower = texture[i + 1, j, k] * (1 - fx) + texture[i + 1, j + 1, k] * fx
        colour[k] = upper * (1 - fy) + lower * fy
