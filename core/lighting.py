"""Lambertian shading under distant light, in nine spherical harmonics.

R. Ramamoorthi and P. Hanrahan, An efficient representation for irradiance environment maps, 2001.

Convention: normals in the camera frame (x right, y down, z forward). Real spherical harmonics
without the Condon-Shortley sign, in the order (l, m) = (0,0), (1,-1), (1,0), (1,1), (2,-2), (2,-1),
(2,0), (2,1), (2,2), times the Lambertian factors pi, 2 pi / 3, pi / 4. Light coefficients are those
of the radiance that arrives. Worked number: the normal (0, 0, -1) towards the viewer has the basis
(0.886, 0, -1.023, 0, 0, 0, 0.495, 0, 0); ambient light of coefficient 0.8 alone gives the
irradiance 0.709, which multiplies the albedo.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from core.precision import at_least_float32, without_autocast

LAMBERT = (math.pi, *3 * (2 * math.pi / 3,), *5 * (math.pi / 4,))  # of each harmonic
AMBIENT = 0.8
"""What methods add to coefficient 0, so that zero coefficients give a lit face (code of Deng)."""


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
    with without_autocast(normals):
        basis = _basis(at_least_float32(normals), -3)
        irradiance = at_least_float32(light).mT @ basis.flatten(-2)
    return irradiance.unflatten(-1, normals.shape[-2:])


def _basis(normals: Tensor, dim: int) -> Tensor:
    """``sh_basis`` with the axis of the components, and of the nine functions, at ``dim``."""
    x, y, z = normals.unbind(dim)
    pi = math.pi
    first, second = math.sqrt(3 / (4 * pi)), math.sqrt(15 / (4 * pi))
    a0, a1, a2 = LAMBERT[0], LAMBERT[1], LAMBERT[4]
    return torch.stack(
        [
            torch.full_like(x, a0 * math.sqrt(1 / (4 * pi))),
            a1 * first * y,
            a1 * first * z,
            a1 * first * x,
            a2 * second * x * y,
            a2 * second * y * z,
            a2 * math.sqrt(5 / (16 * pi)) * (3 * z * z - 1),
            a2 * second * x * z,
            a2 * second / 2 * (x * x - y * y),
        ],
        dim,
    )
