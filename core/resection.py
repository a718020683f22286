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

DAMPING = 1e-4  # share of the normal equations' diagonal that is added to it
LARGEST_TURN = 0.5  # radians, of one step: linearized, a larger one overshoots
LEAST_SHRINKING = 0.5  # factor of scale or distance in one step, so that they stay positive

# (w x p)_i = sum_jk e_kij w_j p_k
LEVI_CIVITA = torch.tensor(
    [
        [[0.0, 0, 0], [0, 0, 1], [0, -1, 0]],
        [[0, 0, -1], [0, 0, 0], [1, 0, 0]],
        [[0, 1, 0], [-1, 0, 0], [0, 0, 0]],
    ]
)
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
        steps: at least 1. Three bring a start that is 15 degrees off to within a thousandth of a
            pixel, five one that is 60 degrees off to within a tenth.
    """
    batch = start.rotation.shape[:-2]
    x, seen = points.double().reshape(-1, *points.shape[-2:]), pixels.double()
    seen = seen.reshape(-1, *pixels.shape[-2:])
    weight = confidence.double().reshape(-1, confidence.shape[-1], 1)
    weight = weight / weight.sum(1, keepdim=True).clamp(min=1e-12)
    weights = weight.repeat_interleave(2, 1)  # of the pixels' two coordinates
    optics = _WeakPerspective if isinstance(start, WeakPerspectiveCamera) else _Pinhole
    lens = optics(start)
    rotation, place = start.rotation.double().reshape(-1, 3, 3), lens.place
    levi_civita = LEVI_CIVITA.to(x)
    identity = torch.eye(3).to(x)

    def look(rotation: Tensor, place: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        turned = x @ rotation.mT
        at, in_front = lens.project(turned, place)
        error = seen - at
        return turned, error, (error.square() * weight).sum((1, 2)), in_front

    turned, error, at_start, _ = look(rotation, place)
    for _ in range(steps):
        turns = (turned @ levi_civita.flatten(1)).unflatten(-1, (3, 3))  # d(w x p) / dw
        jacobian = lens.jacobian(turned, turns, place).flatten(1, 2)  # b 2n 6
        weighted = (jacobian * weights).mT
        normal = weighted @ jacobian
        normal.diagonal(dim1=-2, dim2=-1).mul_(1 + DAMPING).add_(1e-12)
        step = torch.linalg.solve_ex(normal, weighted @ error.flatten(1)[..., None])[0][..., 0]
        half = step[:, :3] / 2
        half = half * (LARGEST_TURN / 2 / half.norm(dim=-1, keepdim=True)).clamp(max=1)
        cross = torch.einsum("bj,kij->bik", half, levi_civita)
        # Cayley's rotation, about the model frame's origin
        rotation = torch.linalg.solve_ex(identity - cross, (identity + cross) @ rotation)[0]
        place = lens.moved(place, step[:, 3:])
        turned, error, at_end, in_front = look(rotation, place)
    better = ((at_end < at_start) & in_front).reshape(batch)  # false for NaN
    found = lens.camera(rotation.reshape(*batch, 3, 3), place.reshape(*batch, 3))
    return _where(better, found, start)


class _WeakPerspective:
    """The place is scale and translation; a step is relative in scale, in pixels in translation."""

    def __init__(self, start: WeakPerspectiveCamera) -> None:
        place = torch.cat([start.scale[..., None], start.translation], -1)
        self.place = place.double().reshape(-1, 3)

    def project(self, turned: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels; and whether all points are in front of the camera."""
        pixels = place[:, None, :1] * turned[..., :2] + place[:, None, 1:]
        return pixels, torch.ones_like(place[:, 0], dtype=torch.bool)

    def jacobian(self, turned: Tensor, turns: Tensor, place: Tensor) -> Tensor:
        """How pixels change with a step: "b n 2 6"."""
        shifts = torch.eye(2).to(turned).expand(*turned.shape[:2], 2, 2)
        growth = turned[..., :2, None]
        scale = place[:, None, None, :1]
        return torch.cat([scale * torch.cat([turns[..., :2, :], growth], -1), shifts], -1)

    def moved(self, place: Tensor, step: Tensor) -> Tensor:
        """The place after a step."""
        growth = (1 + step[:, :1]).clamp(min=LEAST_SHRINKING)
        return torch.cat([place[:, :1] * growth, place[:, 1:] + step[:, 1:]], -1)

    def camera(self, rotation: Tensor, place: Tensor) -> WeakPerspectiveCamera:
        """As a camera."""
        return WeakPerspectiveCamera(rotation, place[..., 0], place[..., 1:])


class _Pinhole:
    """The place is the translation; a step is in units of the distance."""

    def __init__(self, start: PerspectiveCamera) -> None:
        self.place = start.translation.double().reshape(-1, 3)
        self.focal = start.focal.double().reshape(-1, 1, 1)
        self.centre = start.centre.double().reshape(-1, 1, 2)
        self.start = start

    def project(self, turned: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels; and whether all points are in front of the camera."""
        position = turned + place[:, None]
        depth = position[..., 2:]
        pixels = self.focal * position[..., :2] / depth + self.centre
        return pixels, (depth > 0).flatten(1).all(-1)

    def jacobian(self, turned: Tensor, turns: Tensor, place: Tensor) -> Tensor:
        """How pixels change with a step: "b n 2 6"."""
        position = turned + place[:, None]
        depth = position[..., 2:]
        shifts = torch.eye(3).to(turned) * place[:, None, 2:, None]
        moves = torch.cat([turns, shifts.expand_as(turns)], -1)  # of the position
        slope = (position[..., :2] / depth)[..., None]
        return (self.focal / depth)[..., None] * (moves[..., :2, :] - slope * moves[..., 2:, :])

    def moved(self, place: Tensor, step: Tensor) -> Tensor:
        """The place after a step."""
        away = step[:, 2:].clamp(min=LEAST_SHRINKING - 1)
        return place + place[:, 2:] * torch.cat([step[:, :2], away], -1)

    def camera(self, rotation: Tensor, place: Tensor) -> PerspectiveCamera:
        """As a camera."""
        return PerspectiveCamera(rotation, place, self.start.focal, self.start.centre)


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


def _where(chosen: Bool[Tensor, "*b"], one: PosedCamera, other: PosedCamera) -> PosedCamera:
    """Of each set's two cameras the one that is chosen, in the precision of the other."""

    def choice(first: Tensor, second: Tensor) -> Tensor:
        mask = chosen.reshape(*chosen.shape, *[1] * (second.ndim - chosen.ndim))
        return torch.where(mask, first.to(second.dtype), second)

    pairs = {name: (vars(one)[name], second) for name, second in vars(other).items()}
    return replace(other, **{name: choice(*pair) for name, pair in pairs.items()})
