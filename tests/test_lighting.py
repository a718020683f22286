import math

import numpy as np
import pytest
import torch
from scipy.special import sph_harm_y

from core.lighting import AMBIENT, LAMBERT, sh_basis, shade, shade_points

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


def of_points(normals, light):
    return shade_points(normals.flatten(-2).mT, light).mT.unflatten(-1, normals.shape[-2:])


@pytest.mark.parametrize("function", [shade, of_points])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_kernel_agrees_with_the_basis_and_autograd(function, channels):
    """Over more than one block of points, in both memory layouts, with both gradients."""
    picture = torch.randn(2, 3, 3, 17, 31)
    channels_last = picture.movedim(-3, -1).contiguous().movedim(-1, -3)
    light = torch.randn(2, 3, 9, channels)
    weights = torch.randn(2, 3, channels, 17, 31)
    results = []
    for start in (picture, channels_last):
        normals, coefficients = start.clone().requires_grad_(), light.clone().requires_grad_()
        irradiance = function(normals, coefficients)
        (irradiance * weights).sum().backward()
        results.append((irradiance, normals.grad, coefficients.grad))
    normals = picture.double().requires_grad_()
    coefficients = light.double().requires_grad_()
    expected = sh_basis(normals.movedim(-3, -1)).flatten(-3, -2) @ coefficients
    expected = expected.mT.unflatten(-1, (17, 31))
    (expected * weights).sum().backward()
    for result in results:
        for found, wanted in zip(result, (expected, normals.grad, coefficients.grad), strict=True):
            torch.testing.assert_close(found.double(), wanted, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("function", [shade, of_points])
def test_shade_has_the_right_gradient(function):
    inputs = (
        torch.randn(2, 3, 2, 2).double().requires_grad_(),
        torch.randn(2, 9, 3).double().requires_grad_(),
    )
    assert torch.autograd.gradcheck(function, inputs)


def test_shade_does_not_depend_on_the_threads(monkeypatch):
    monkeypatch.setattr("core.blocks.FEW", 0)
    normals, light = torch.randn(5, 3, 40, 40), torch.randn(5, 9, 3)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            leaves = normals.clone().requires_grad_(), light.clone().requires_grad_()
            image = shade(*leaves)
            image.square().sum().backward()
            results.append((image, *(leaf.grad for leaf in leaves)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_no_points_and_no_images():
    assert shade_points(torch.zeros(2, 0, 3), torch.zeros(2, 9, 1)).shape == (2, 0, 1)
    assert shade(torch.zeros(0, 3, 4, 4), torch.zeros(0, 9, 3)).shape == (0, 3, 4, 4)


@pytest.mark.parametrize(
    ("normals", "light"), [((2, 9, 4), (2, 9, 3)), ((2, 9, 3), (1, 9, 3)), ((2, 9, 3), (2, 8, 3))]
)
def test_shapes_that_do_not_belong_together_are_an_error(normals, light):
    """The kernels check no bounds; without the tests' checks of types nothing else would."""
    function = getattr(shade_points, "__wrapped__", shade_points)
    with pytest.raises(ValueError, match="need three components and light"):
        function(torch.zeros(normals), torch.zeros(light))
