"""Rotations of the head: vectors (kornia, exact at 0 and pi) and the Euler angles of 300W-LP.

Convention: 3x3 matrices act on column vectors in the model frame (x right, y up, z out of the
face); radians.

Worked numbers: yaw = +30 degrees maps the nose direction (0, 0, 1) to (-0.5, 0, 0.866), to the
image's left; pitch = +30 degrees maps it to (0, 0.5, 0.866), up; roll = +30 degrees maps (1, 0, 0)
to (0.866, -0.5, 0), clockwise in the image.
"""

import torch
from jaxtyping import Float
from kornia.geometry.conversions import (
    axis_angle_to_rotation_matrix,
    rotation_matrix_to_axis_angle,
)
from torch import Tensor


def rotation_from_vector(vector: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b 3 3"]:
    """Rodrigues' formula: the rotation by |vector| radians about vector (CEST Eq. 11). Smooth at
    0.
    """
    return axis_angle_to_rotation_matrix(vector.reshape(-1, 3)).reshape(*vector.shape, 3)


def vector_from_rotation(rotation: Float[Tensor, "*b 3 3"]) -> Float[Tensor, "*b 3"]:
    """The rotation vector, length in [0, pi]; inverse of ``rotation_from_vector``."""
    return rotation_matrix_to_axis_angle(rotation.reshape(-1, 3, 3)).reshape(*rotation.shape[:-1])


def rotation_from_euler(
    pitch: Float[Tensor, "*b"], yaw: Float[Tensor, "*b"], roll: Float[Tensor, "*b"]
) -> Float[Tensor, "*b 3 3"]:
    """Rx(pitch) Ry(yaw) Rz(roll) with the elementary matrices of 300W-LP (transposed against the
    usual ones).
    """
    zero, one = torch.zeros_like(pitch), torch.ones_like(pitch)

    def matrix(*rows: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        return torch.stack([torch.stack(row, -1) for row in rows], -2)

    c, s = pitch.cos(), pitch.sin()
    rx = matrix((one, zero, zero), (zero, c, s), (zero, -s, c))
    c, s = yaw.cos(), yaw.sin()
    ry = matrix((c, zero, -s), (zero, one, zero), (s, zero, c))
    c, s = roll.cos(), roll.sin()
    rz = matrix((c, s, zero), (-s, c, zero), (zero, zero, one))
    return rx @ ry @ rz


def euler_from_rotation(
    rotation: Float[Tensor, "*b 3 3"],
) -> tuple[Float[Tensor, "*b"], Float[Tensor, "*b"], Float[Tensor, "*b"]]:
    """Pitch, yaw, roll; yaw in [-pi/2, pi/2]. At |yaw| = 90 degrees only pitch -/+ roll is
    defined.
    """
    # The matrix of rotation_from_euler: first row (cy cr, cy sr, -sy), last column (-sy, sp cy, cp
    # cy).
    yaw = torch.asin((-rotation[..., 0, 2]).clamp(-1, 1))
    pitch = torch.atan2(rotation[..., 1, 2], rotation[..., 2, 2])
    roll = torch.atan2(rotation[..., 0, 1], rotation[..., 0, 0])
    return pitch, yaw, roll


def rotation_angle(rotation: Float[Tensor, "*b 3 3"]) -> Float[Tensor, "*b"]:
    """The angle of a rotation in [0, pi]: of A @ B^T it is the geodesic distance of A and B. Not
    for gradients at 0.
    """
    sine = torch.stack(
        [
            rotation[..., 2, 1] - rotation[..., 1, 2],
            rotation[..., 0, 2] - rotation[..., 2, 0],
            rotation[..., 1, 0] - rotation[..., 0, 1],
        ],
        -1,
    ).norm(dim=-1)  # 2 sin
    cosine = rotation.diagonal(dim1=-2, dim2=-1).sum(-1) - 1  # 2 cos
    return torch.atan2(sine, cosine)
