import math

import numpy as np
import torch
from scipy.special import sph_harm_y

from core.lighting import AMBIENT, LAMBERT, sh_basis, shade

FACTORS = torch.tensor(LAMBERT, dtype=torch.float64)
ORDER = [(0, 0), (1, -1), (1, 0), (1, 1), (2, -2), (2, -1), (2, 0), (2, 1), (2, 2)]


def sphere(polar=40, around=80):
    """Gauss-Legendre x uniform quadrature, exact for the products of harmonics used here."""
    z, weight = np.polynomial.legendre.leggauss(polar)
    phi = (np.arange(around) + 0.5) * 2 * np.pi / around
    z, phi = (grid.ravel() for grid in np.meshgrid(z, phi, indexing="ij"))
    r = np.sqrt(1 - z**2)
    normals = np.stack([r * np.cos(phi), r * np.sin(phi), z], -1)
    return torch.from_numpy(normals), torch.from_numpy(
        np.repeat(weight, around) * 2 * np.pi / around
    )


def test_harmonics_without_the_lambertian_factors_are_orthonormal():
    normals, weights = sphere()
    harmonics = sh_basis(normals) / FACTORS
    gram = harmonics.T @ (harmonics * weights[:, None])
    torch.testing.assert_close(gram, torch.eye(9).double(), atol=1e-12, rtol=0)


def test_order_and_signs_agree_with_scipy():
    normals, _ = sphere(7, 9)
    x, y, z = normals.numpy().T
    theta, phi = np.arccos(z), np.arctan2(y, x)
    expected = []
    for degree, order in ORDER:
        # scipy's complex harmonics carry the Condon-Shortley sign (-1)^m
        value = sph_harm_y(degree, abs(order), theta, phi) * (-1) ** order
        part = value.real if order >= 0 else value.imag
        expected.append(part * (math.sqrt(2) if order else 1))
    found = sh_basis(normals) / FACTORS
    np.testing.assert_allclose(found.numpy(), np.stack(expected, -1), atol=1e-7)


def test_irradiance_of_a_soft_light_is_the_integral_over_the_clamped_cosine():
    """A radiance of second degree is shaded exactly; compared with brute-force integration."""
    directions, weights = sphere(200, 200)
    light = torch.randn(9, dtype=torch.float64)
    radiance = sh_basis(directions) / FACTORS @ light
    normals = torch.nn.functional.normalize(torch.randn(6, 3, dtype=torch.float64), dim=-1)
    expected = ((normals @ directions.T).clamp(min=0) * radiance * weights).sum(-1)
    torch.testing.assert_close(sh_basis(normals) @ light, expected, atol=2e-5, rtol=0)


def test_directional_light_is_approximated_within_the_known_error():
    """Nine coefficients of a distant lamp give max(cos, 0) up to the terms of fourth order."""
    lamp = torch.nn.functional.normalize(torch.tensor([0.3, -0.5, -0.8]), dim=-1).double()
    light = sh_basis(lamp) / FACTORS  # projection of a delta function
    normals, weights = sphere()
    cosine = (normals @ lamp).clamp(min=0)
    error = sh_basis(normals) @ light - cosine
    assert error.abs().max() < 0.1
    assert ((error**2 * weights).sum() / (cosine**2 * weights).sum()).sqrt() < 0.1


def test_worked_number():
    basis = sh_basis(torch.tensor([0.0, 0.0, -1.0]))
    expected = torch.tensor([0.886227, 0, -1.023327, 0, 0, 0, 0.495416, 0, 0])
    torch.testing.assert_close(basis, expected, atol=1e-6, rtol=0)
    assert math.isclose(AMBIENT * basis[0], 0.708982, abs_tol=1e-6)


def test_shade_is_the_basis_times_the_light_per_channel():
    normals = torch.nn.functional.normalize(torch.randn(2, 5, 3, 4, 6), dim=-3)
    for channels in (1, 3):
        light = torch.randn(2, 5, 9, channels)
        irradiance = shade(normals, light)
        assert irradiance.shape == (2, 5, channels, 4, 6)
        pixel = sh_basis(normals[1, 2, :, 3, 4]) @ light[1, 2]
        torch.testing.assert_close(irradiance[1, 2, :, 3, 4], pixel)


def test_shade_keeps_float32_under_autocast():
    normals, light = torch.randn(3, 8, 8), torch.randn(9, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        irradiance = shade(normals, light)
    torch.testing.assert_close(irradiance, shade(normals, light), atol=0, rtol=0)


def test_shade_has_the_right_gradient():
    inputs = (
        torch.randn(3, 2, 2).double().requires_grad_(),
        torch.randn(9, 3).double().requires_grad_(),
    )
    assert torch.autograd.gradcheck(shade, inputs)
