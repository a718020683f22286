"""The pose of a face by a closed form, from where its landmarks are in the image in 3D (PGN Eq. 3
and 4), and the camera that an affine pose is.

    Eq. 3  min over T of || T [X; 1] - Y ||^2, X points of the face, Y their places
    Eq. 4  T = Y [X; 1]^T ([X; 1] [X; 1]^T)^-1

Convention: T = [A | t] maps the model frame, millimetres, to the image: x right and y down in
pixels, z away from the viewer in pixels, its origin free. For a scaled rotation A = f R.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from core.affine import affine
from core.align import procrustes
from core.camera import Camera, WeakPerspectiveCamera
from core.precision import at_least_float32, without_autocast

FLATNESS = 1e-6  # smallest ratio of the third to the first variance of points that are solid


@dataclass(frozen=True)
class AffineCamera(Camera):
    """Eq. 2 with all twelve numbers of T: pixel = the first two rows of T [X; 1].

    A head posed like this is sheared and stretched too, so its proportions say little about the
    face; ``scaled_rotation`` takes that out.

    Attributes:
        rotation: nearest to the linear part, for what only turns.
        scale: pixels per millimetre that goes with the rotation.
        linear: A, pixels per millimetre.
        translation: t, pixels.
    """

    scale: Float[Tensor, "*b"]
    linear: Float[Tensor, "*b 3 3"]
    translation: Float[Tensor, "*b 3"]

    @classmethod
    def of(cls, pose: Float[Tensor, "*b 3 4"]) -> "AffineCamera":
        """The camera of T."""
        linear, translation = pose[..., :3], pose[..., 3]
        with torch.no_grad():
            rotation, scale = nearest_rotation(linear)
        return cls(rotation, scale, linear, translation)

    def project(
        self, points: Float[Tensor, "*b n 3"]
    ) -> tuple[Float[Tensor, "*b n 2"], Float[Tensor, "*b n"]]:
        """Pixels, and depth in millimetres relative to the model frame's origin."""
        with without_autocast(points):
            moved = affine(at_least_float32(points), self.linear, self.translation)
        depth = (moved[..., 2] - self.translation[..., 2, None]) / self.scale[..., None]
        return moved[..., :2], depth

    def position(self, points: Float[Tensor, "*b n 3"]) -> Float[Tensor, "*b n 3"]:
        """Relative to the model frame's origin, millimetres, sheared and stretched like T."""
        with without_autocast(points):
            return affine(at_least_float32(points), self.linear / self.scale[..., None, None])

    def _clip_map(
        self, size: tuple[int, int]
    ) -> tuple[Float[Tensor, "*b 4 3"], Float[Tensor, "*b 4"]]:
        """Here w = 1 and z = depth / 1000 mm, as of ``WeakPerspectiveCamera``."""
        height, width = size
        extent = self.translation.new_tensor([width, height])
        across = 2 * self.linear[..., :2, :] / extent[:, None]
        along = self.linear[..., 2:, :] / (
            self.scale[..., None, None] * WeakPerspectiveCamera.DEPTH_RANGE
        )
        matrix = torch.cat([across, along, torch.zeros_like(along)], -2)
        one = torch.ones_like(self.scale)[..., None]
        return matrix, torch.cat([2 * self.translation[..., :2] / extent - 1, 0 * one, one], -1)

    def crop(self, scale: Float[Tensor, "*b"], offset: Float[Tensor, "*b 2"]) -> "AffineCamera":
        """The camera of an image resampled so that new pixel = scale * pixel + offset."""
        moved = self.translation * scale[..., None]
        return AffineCamera(
            self.rotation,
            self.scale * scale,
            self.linear * scale[..., None, None],
            torch.cat([moved[..., :2] + offset, moved[..., 2:]], -1),
        )


def affine_pose(
    points: Float[Tensor, "*b n 3"],
    places: Float[Tensor, "*b n 3"],
    regularization: float = 0.0,
) -> Float[Tensor, "*b 3 4"]:
    """T of Eq. 4, the affine map that best takes points to places in least squares.

    The normal equations are those of centred points in units of their spread, solved in float64,
    never by an inverse. Differentiable in both arguments. Sets with NaN or infinities give NaN.

    Args:
        points: X, of the face.
        places: Y, in the image.
        regularization: of the normal equations, as a share of the points' mean variance: with it
            flat sets have an answer, too, which does not move what leaves their plane.

    Returns:
        T in the dtype of ``points``.

    Raises:
        ValueError: without regularization, points of a set all in one plane, or fewer than four.
    """
    x, y = points.double(), places.double()
    x_mean, y_mean = x.mean(-2, keepdim=True), y.mean(-2, keepdim=True)
    x, y = x - x_mean, y - y_mean
    count = points.shape[-2]
    spread = x.square().sum((-2, -1)).div(3 * count).sqrt()[..., None, None]
    x = x / spread
    squares = x.mT @ x / count  # a mean variance of 1
    if not regularization:
        _check_solid(squares)
    squares = squares + regularization * torch.eye(3, dtype=x.dtype, device=x.device)
    linear = torch.linalg.solve_ex(squares, x.mT @ y / count)[0].mT / spread
    translation = y_mean.mT - linear @ x_mean.mT
    return torch.cat([linear, translation], -1).to(points.dtype)


def similarity_pose(
    points: Float[Tensor, "*b n 3"], places: Float[Tensor, "*b n 3"]
) -> Float[Tensor, "*b 3 4"]:
    """T of Eq. 3 among those of the form [f R | t], for which there is a closed form, too.

    Sets with NaN or infinities give NaN.

    Args:
        points: X, of the face.
        places: Y, in the image.

    Raises:
        ValueError: see ``core.align.procrustes``.
    """
    good = _finite(points) & _finite(places)
    solid = torch.eye(*points.shape[-2:], dtype=points.dtype, device=points.device)
    source, target = (torch.where(good[..., None, None], x, solid) for x in (points, places))
    found = procrustes(source, target)
    linear = found.scale[..., None, None] * found.rotation
    pose = torch.cat([linear, found.translation[..., None]], -1)
    return torch.where(good[..., None, None], pose, torch.nan)


def nearest_rotation(
    linear: Float[Tensor, "*b 3 3"],
) -> tuple[Float[Tensor, "*b 3 3"], Float[Tensor, "*b"]]:
    """R, det = +1, and f for which f R is nearest to A in the sum of squares; NaN where A is."""
    good = _finite(linear)
    one = torch.eye(3, dtype=linear.dtype, device=linear.device)
    U, singular, Vh = torch.linalg.svd(torch.where(good[..., None, None], linear, one).double())
    sign = torch.ones_like(singular)
    sign[..., 2] = (torch.det(U) * torch.det(Vh)).sign()
    rotation, scale = (U * sign[..., None, :]) @ Vh, (singular * sign).mean(-1)
    rotation = torch.where(good[..., None, None], rotation, torch.nan)
    return rotation.to(linear.dtype), torch.where(good, scale, torch.nan).to(linear.dtype)


def scaled_rotation(
    pose: Float[Tensor, "*b 3 4"], about: Float[Tensor, "*b 3"]
) -> WeakPerspectiveCamera:
    """Scale, rotation and translation of T: the nearest scaled orthography.

    Args:
        pose: T.
        about: the point of the model frame that is seen at the same place, such as the middle of
            the landmarks.
    """
    linear = pose[..., :3]
    rotation, scale = nearest_rotation(linear)
    rest = linear[..., :2, :] - scale[..., None, None] * rotation[..., :2, :]
    moved = (rest @ about[..., None])[..., 0]
    return WeakPerspectiveCamera(rotation, scale, pose[..., :2, 3] + moved)


def _finite(rows: Float[Tensor, "*b n k"]) -> Bool[Tensor, "*b"]:
    return rows.detach().isfinite().flatten(-2).all(-1)


def _check_solid(squares: Float[Tensor, "*b 3 3"]) -> None:
    """Raise ValueError where points have, next to their spread, no extent in some direction."""
    known = _finite(squares)
    one = torch.eye(3, dtype=squares.dtype, device=squares.device)
    variance = torch.linalg.eigvalsh(torch.where(known[..., None, None], squares.detach(), one))
    flat = variance[..., 0] <= FLATNESS * variance[..., 2]
    if flat.any():
        raise ValueError(
            f"affine_pose: {int(flat.sum())} of {flat.numel()} sets of landmarks lie in one plane "
            "(or have fewer than four points), so that no affine pose can be told from others; "
            "give solid points, or a regularization such as 1e-3"
        )
