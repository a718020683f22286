"""Resection: the camera under which known points come nearest to where they are seen.

    min over the camera's pose of  sum_n c_n || project(X_n) - x_n ||^2

For weak perspective (CEST Eq. 11) the pose is rotation, scale and translation in the image, for a
pinhole camera rotation and translation in space; both are six numbers.

Convention: points in the model frame, millimetres; pixels as in ``core.camera``.
"""

from dataclasses import replace
from typing import Literal, TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from core.camera import PerspectiveCamera, WeakPerspectiveCamera
from core.losses import landmark_l2
from core.rotation import rotation_from_vector

DAMPING = 1e-4  # share of the normal equations' diagonal that is added to it
LARGEST_TURN = 0.5  # radians, of one step: linearized, a larger one overshoots
LEAST_SHRINKING = 0.5  # factor of scale or distance in one step, so that they stay positive

LandmarkPose = Literal["estimated", "best"]
PosedCamera = TypeVar("PosedCamera", WeakPerspectiveCamera, PerspectiveCamera)


@torch.no_grad()
def resect(
    points: Float[Tensor, "*b n 3"],
    pixels: Float[Tensor, "*b n 2"],
    confidence: Float[Tensor, "*b n"],
    start: PosedCamera,
    steps: int = 5,
) -> PosedCamera:
    """Gauss-Newton from a camera near the answer, in float64, without gradient.

    None is needed: where the error is least among all cameras, moving the camera does not change
    it, so the gradient of that least error is the one for this camera held fixed.

    Args:
        points: of the model frame, millimetres.
        pixels: where they are seen; finite also where they are missing.
        confidence: weights; 0 = missing.
        start: one camera for each set; a pinhole camera's focal length and centre stay. It is
            given back where there is no point, or nothing better is found.
        steps: three bring a start that is 15 degrees off to within a thousandth of a pixel, five
            one that is 60 degrees off.
    """
    x, seen, weight = points.double(), pixels.double(), confidence.double()
    weight = weight / weight.sum(-1, keepdim=True).clamp(min=1e-12)

    def distances(camera: PosedCamera) -> tuple[Tensor, Tensor]:
        error = seen - camera.project(x)[0]
        return error, (error.square().sum(-1) * weight).sum(-1)

    camera = start.map(torch.Tensor.double)
    error, at_start = distances(camera)
    for _ in range(steps):
        jacobian = _jacobian(camera, x).flatten(-3, -2)  # *b 2n 6
        weighted = jacobian.mT * weight.repeat_interleave(2, -1)[..., None, :]
        normal = weighted @ jacobian
        diagonal = normal.diagonal(dim1=-2, dim2=-1)
        normal = normal + torch.diag_embed(DAMPING * diagonal + 1e-12)
        step = torch.linalg.solve_ex(normal, weighted @ error.flatten(-2)[..., None])[0][..., 0]
        camera = _moved(camera, step)
        error, at_end = distances(camera)
    found = camera.map(lambda value: value.to(start.rotation.dtype))
    better = at_end < at_start  # false for NaN
    if isinstance(camera, PerspectiveCamera):
        better &= (camera.position(x)[..., 2] > 0).all(-1)
    return _where(better, found, start)


def posed_landmark_l2(
    points: Float[Tensor, "*b n 3"],
    camera: PosedCamera,
    target: Float[Tensor, "*b n 2"],
    confidence: Float[Tensor, "*b n"],
    unit: int | float,
    pose: LandmarkPose,
    importance: Float[Tensor, " n"] | None = None,
) -> Float[Tensor, ""]:
    """Squared distance between landmarks and a network's points, as its camera sees them, or apart.

    With the pose "estimated" that is ``landmark_l2``. With "best" it is the sum of two of these:
    under the network's camera with the points held fixed, which teaches the camera; and under the
    best camera for the points, held fixed too, which teaches the points. An error of the camera is
    then no noise in the gradient of the points, as long as they do not depend on the camera.

    Args:
        points: of the model frame, millimetres.
        camera: of each set of points, as the network has it.
        target: pixels; finite also where it is missing.
        confidence: in [0, 1]; 0 = missing.
        unit: of the distance, pixels.
        pose: see above.
        importance: as for ``landmark_l2``.
    """

    def error(points: Tensor, camera: PosedCamera) -> Tensor:
        return landmark_l2(camera.project(points)[0], target, confidence, unit, importance)

    if pose == "estimated":
        return error(points, camera)
    weight = confidence if importance is None else confidence * importance
    best = resect(points, target, weight, camera)
    return error(points.detach(), camera) + error(points, best)


def _jacobian(camera: PosedCamera, points: Float[Tensor, "*b n 3"]) -> Float[Tensor, "*b n 2 6"]:
    """How pixels change with the numbers of ``_moved``, at 0."""
    x, y, z = camera.rotate(points).unbind(-1)
    zero, one = torch.zeros_like(x), torch.ones_like(x)
    turns = torch.stack(  # rows: x, y, z; columns: about the three axes
        [zero, z, -y, -z, zero, x, y, -x, zero], -1
    ).unflatten(-1, (3, 3))
    if isinstance(camera, WeakPerspectiveCamera):
        scale = camera.scale[..., None, None, None]
        growth = scale * torch.stack([x, y], -1)[..., None]
        shifts = torch.stack([one, zero, zero, one], -1).unflatten(-1, (2, 2))
        return torch.cat([scale * turns[..., :2, :], growth, shifts], -1)
    right, down, depth = camera.position(points).unbind(-1)
    projection = torch.stack([one, zero, -right / depth, zero, one, -down / depth], -1)
    projection = (
        projection.unflatten(-1, (2, 3)) * (camera.focal[..., None] / depth)[..., None, None]
    )
    return torch.cat([projection @ turns, projection * camera.translation[..., None, None, 2:]], -1)


def _moved(camera: PosedCamera, step: Float[Tensor, "*b 6"]) -> PosedCamera:
    """Turned about the model frame's origin, and scaled and shifted by a step's last three numbers:
    scale and pixels, or shifts in units of the distance.
    """
    turn, rest = step.split(3, -1)
    turn = turn * (LARGEST_TURN / turn.norm(dim=-1, keepdim=True).clamp(min=LARGEST_TURN))
    rotation = rotation_from_vector(turn) @ camera.rotation
    if isinstance(camera, WeakPerspectiveCamera):
        scale = camera.scale * (1 + rest[..., 0]).clamp(min=LEAST_SHRINKING)
        return WeakPerspectiveCamera(rotation, scale, camera.translation + rest[..., 1:])
    across, away = rest.split([2, 1], -1)
    distance = camera.translation[..., 2:]
    shift = distance * torch.cat([across, away.clamp(min=LEAST_SHRINKING - 1)], -1)
    return PerspectiveCamera(rotation, camera.translation + shift, camera.focal, camera.centre)


def _where(chosen: Bool[Tensor, "*b"], one: PosedCamera, other: PosedCamera) -> PosedCamera:
    """Of each set's two cameras the one that is chosen."""
    values = vars(other)

    def choice(name: str) -> Tensor:
        first, second = vars(one)[name], values[name]
        return torch.where(
            chosen.reshape(*chosen.shape, *[1] * (first.ndim - chosen.ndim)), first, second
        )

    return replace(other, **{name: choice(name) for name in values})
