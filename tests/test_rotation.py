import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from core.rotation import (
    euler_from_rotation,
    rotation_angle,
    rotation_from_euler,
    rotation_from_vector,
    vector_from_rotation,
)


def test_eq_11_rodrigues_agrees_with_scipy():
    vectors = np.random.default_rng(0).normal(size=(50, 3)) * np.linspace(1e-9, 2, 50)[:, None]
    expected = Rotation.from_rotvec(vectors).as_matrix()
    found = rotation_from_vector(torch.from_numpy(vectors))
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)


def test_rotation_vector_round_trip_including_half_turns():
    axes = torch.nn.functional.normalize(torch.randn(40, 3, dtype=torch.float64), dim=-1)
    angles = torch.linspace(0, math.pi, 40, dtype=torch.float64)
    rotation = rotation_from_vector(axes * angles[:, None])
    again = rotation_from_vector(vector_from_rotation(rotation))
    torch.testing.assert_close(again, rotation, atol=1e-6, rtol=0)
    torch.testing.assert_close(
        vector_from_rotation(rotation).norm(dim=-1), angles, atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("length", [0.0, 1e-8, 1.0, 3.0])
def test_rodrigues_has_the_right_gradient_also_at_zero(length):
    vector = torch.tensor([[0.6, 0.0, 0.8]], dtype=torch.float64) * length
    assert torch.autograd.gradcheck(
        rotation_from_vector, vector.requires_grad_(), eps=1e-6, atol=1e-5
    )


def matrices_of_300w_lp(pitch, yaw, roll):
    """DATA of 300W-LP: R = Rx Ry Rz with transposed elementary matrices, written out in numpy."""
    c, s = np.cos, np.sin
    rx = np.array([[1, 0, 0], [0, c(pitch), s(pitch)], [0, -s(pitch), c(pitch)]])
    ry = np.array([[c(yaw), 0, -s(yaw)], [0, 1, 0], [s(yaw), 0, c(yaw)]])
    rz = np.array([[c(roll), s(roll), 0], [-s(roll), c(roll), 0], [0, 0, 1]])
    return rx @ ry @ rz


def test_euler_angles_are_those_of_300w_lp():
    angles = np.random.default_rng(0).uniform(-1.5, 1.5, (20, 3))
    expected = np.stack([matrices_of_300w_lp(*angle) for angle in angles])
    found = rotation_from_euler(*torch.from_numpy(angles).unbind(-1))
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)
    # the same in scipy's words: transposed matrices are rotations by the negative angles
    scipy = Rotation.from_euler("XYZ", -angles).as_matrix()
    np.testing.assert_allclose(found.numpy(), scipy, atol=1e-12)


def test_euler_angles_round_trip():
    angles = torch.empty(100, 3, dtype=torch.float64).uniform_(-1.55, 1.55)
    angles[:, [0, 2]] *= 2  # pitch and roll have the whole circle
    found = torch.stack(euler_from_rotation(rotation_from_euler(*angles.unbind(-1))), -1)
    torch.testing.assert_close(found, angles)


def test_euler_angles_at_a_yaw_of_90_degrees_still_give_the_rotation():
    quarter = torch.tensor(math.pi / 2, dtype=torch.float64)
    rotation = rotation_from_euler(torch.zeros_like(quarter), quarter, torch.zeros_like(quarter))
    torch.testing.assert_close(rotation_from_euler(*euler_from_rotation(rotation)), rotation)


def test_rotation_angle_is_the_length_of_the_rotation_vector():
    vectors = torch.nn.functional.normalize(torch.randn(30, 3, dtype=torch.float64), dim=-1)
    angles = torch.linspace(0, math.pi, 30, dtype=torch.float64)
    found = rotation_angle(rotation_from_vector(vectors * angles[:, None]))
    torch.testing.assert_close(found, angles, atol=1e-7, rtol=0)
