"""Resection: the camera under which known points come nearest to where they are seen.

    min over the camera's pose of  sum_n c_n || project(X_n) - x_n ||^2

For weak perspective (CEST Eq. 11) the pose is rotation, scale and translation in the image, for a
pinhole camera rotation and translation in space; both are six numbers.

Convention: points in the model frame, millimetres; pixels as in ``core.camera``.
"""

from typing import Literal, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from core.camera import PerspectiveCamera, WeakPerspectiveCamera
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
    steps: int = 3,
) -> PosedCamera:
    """Gauss-Newton from a camera near the answer, in float64, without gradient.

    None is needed: where the error is least among all cameras, moving the camera does not change
    it, so the gradient of that least error is the one for this camera held fixed.

    Args:
        points: of the model frame, millimetres.
        pixels: where they are seen; finite also where they are missing.
        confidence: weights; 0 = missing. Without any point the start is given back.
        start: one camera for each set; a pinhole camera's focal length and centre stay.
        steps: three bring a start that is 15 degrees off to within a thousandth of a pixel.
    """
    x, seen, weight = points.double(), pixels.double(), confidence.double()
    weight = weight / weight.sum(-1, keepdim=True).clamp(min=1e-12)
    camera = start.map(torch.Tensor.double)
    for _ in range(steps):
        error = seen - camera.project(x)[0]
        jacobian = _jacobian(camera, x).flatten(-3, -2)  # *b 2n 6
        weighted = jacobian.mT * weight.repeat_interleave(2, -1)[..., None, :]
        normal = weighted @ jacobian
        diagonal = normal.diagonal(dim1=-2, dim2=-1)
        normal = normal + torch.diag_embed(DAMPING * diagonal + 1e-12)
        step = torch.linalg.solve_ex(normal, weighted @ error.flatten(-2)[..., None])[0][..., 0]
        camera = _moved(camera, step)
    return camera.map(lambda value: value.to(points.dtype))


def sightings(
    points: Float[Tensor, "*b n 3"],
    camera: PosedCamera,
    pixels: Float[Tensor, "*b n 2"],
    confidence: Float[Tensor, "*b n"],
    pose: LandmarkPose,
) -> list[Float[Tensor, "*b n 2"]]:
    """Where a network's points are seen, to be compared with where they should be.

    With the pose "estimated" that is where its camera sees them. With "best" it is two answers,
    whose errors are added: where its camera sees them, were they right, which teaches the camera
    alone; and where the best camera for them does, which teaches the points alone. An error of the
    camera is then no noise in the gradient of the points.

    Args:
        points: of the model frame, millimetres.
        camera: of each set of points.
        pixels: where they should be seen; finite also where they are missing.
        confidence: weights; 0 = missing.
        pose: see above.
    """
    if pose == "estimated":
        return [camera.project(points)[0]]
    best = resect(points, pixels, confidence, camera)
    return [camera.project(points.detach())[0], best.project(points)[0]]


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
