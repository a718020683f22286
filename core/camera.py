"""Weak-perspective and perspective cameras behind one interface: pixels, depth, clip space.

Convention: camera frame x right, y down, z forward (OpenCV); ``rotation`` maps the model frame (x
right, y up, z out
of the face) into it, so that a frontal face has ``FRONTAL`` = diag(1, -1, -1). Pixels have their
origin at the top left
corner of the image. Clip space: x, y in [-1, 1] from the left and top edges, z in [-1, 1] growing
away from the viewer.
Worked number: weak perspective, frontal, scale 2 px/mm, translation (112, 112): the model point
(10, 20, 30) mm is at pixel (132, 72), 30 mm nearer to the viewer than the origin (depth -30).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from core.precision import at_least_float32, without_autocast

AnyCamera = TypeVar("AnyCamera", bound="Camera")
FRONTAL = ((1.0, 0.0, 0.0), (0.0, -1.0, 0.0), (0.0, 0.0, -1.0))


def frontal(like: Tensor) -> Float[Tensor, "3 3"]:
    """The camera rotation of a frontal face, diag(1, -1, -1), with the dtype and device of
    ``like``.
    """
    return torch.tensor(FRONTAL, dtype=like.dtype, device=like.device)


@dataclass(frozen=True)
class Camera:
    """What both cameras share: the pose of the head in the camera frame.

    Attributes:
        rotation: model frame to camera frame, det = +1.
    """

    rotation: Float[Tensor, "*b 3 3"]

    @property
    def head_rotation(self) -> Float[Tensor, "*b 3 3"]:
        """The rotation of the head in the model frame's axes; identity for a frontal face."""
        with without_autocast(self.rotation):
            return frontal(self.rotation) @ self.rotation

    def rotate(self, directions: Float[Tensor, "*b n 3"]) -> Float[Tensor, "*b n 3"]:
        """Directions (normals) from the model frame to the camera frame."""
        with without_autocast(directions):
            return at_least_float32(directions) @ at_least_float32(self.rotation).mT

    def project(
        self, points: Float[Tensor, "*b n 3"]
    ) -> tuple[Float[Tensor, "*b n 2"], Float[Tensor, "*b n"]]:
        """Pixels, and depth along the camera's z in millimetres, of points in the model frame."""
        raise NotImplementedError

    def clip(
        self, points: Float[Tensor, "*b n 3"], size: tuple[int, int]
    ) -> Float[Tensor, "*b n 4"]:
        """Clip-space positions for the rasterizer of an image of size (height, width)."""
        raise NotImplementedError

    def crop(
        self: AnyCamera, scale: Float[Tensor, "*b"], offset: Float[Tensor, "*b 2"]
    ) -> AnyCamera:
        """The camera of an image resampled so that new pixel = scale * pixel + offset."""
        raise NotImplementedError

    def map(self: AnyCamera, function: Callable[[Tensor], Tensor]) -> AnyCamera:
        """The camera with function applied to each tensor (indexing, reshaping of the batch axes,
        .to).
        """
        return replace(self, **{name: function(value) for name, value in vars(self).items()})


@dataclass(frozen=True)
class WeakPerspectiveCamera(Camera):
    """Scaled orthography (CEST Eq. 11): pixel = scale * (rotation @ X)_xy + translation.

    Attributes:
        scale: pixels per millimetre, > 0.
        translation: where the model frame's origin is seen, pixels.
    """

    scale: Float[Tensor, "*b"]
    translation: Float[Tensor, "*b 2"]
    DEPTH_RANGE = 1000.0

    def project(
        self, points: Float[Tensor, "*b n 3"]
    ) -> tuple[Float[Tensor, "*b n 2"], Float[Tensor, "*b n"]]:
        """Pixels and depth in millimetres relative to the model frame's origin (negative =
        nearer).
        """
        turned = self.rotate(points)
        pixels = self.scale[..., None, None] * turned[..., :2] + self.translation[..., None, :]
        return pixels, turned[..., 2]

    def clip(
        self, points: Float[Tensor, "*b n 3"], size: tuple[int, int]
    ) -> Float[Tensor, "*b n 4"]:
        """Clip-space positions, w = 1; z = depth / 1000 mm."""
        pixels, depth = self.project(points)
        height, width = size
        extent = pixels.new_tensor([width, height])
        xy = 2 * pixels / extent - 1
        z = depth[..., None] / self.DEPTH_RANGE
        return torch.cat([xy, z, torch.ones_like(z)], -1)

    def crop(
        self, scale: Float[Tensor, "*b"], offset: Float[Tensor, "*b 2"]
    ) -> "WeakPerspectiveCamera":
        """The camera of an image resampled so that new pixel = scale * pixel + offset."""
        return WeakPerspectiveCamera(
            self.rotation, self.scale * scale, self.translation * scale[..., None] + offset
        )


@dataclass(frozen=True)
class PerspectiveCamera(Camera):
    """Pinhole camera: pixel = focal * (X_c, Y_c) / Z_c + centre, X_c = rotation @ X + translation.

    Worked number: focal 1015 px, centre (112, 112), a frontal face 1000 mm away: the model point
    (10, 20, 0) is at pixel (112 + 10.15, 112 - 20.3).

    Attributes:
        translation: of the model frame's origin in the camera frame, millimetres; z > 0 in front of
            the camera.
        focal: pixels.
        centre: principal point, pixels.
    """

    translation: Float[Tensor, "*b 3"]
    focal: Float[Tensor, "*b"]
    centre: Float[Tensor, "*b 2"]
    NEAR = 10.0
    FAR = 10_000.0

    def project(
        self, points: Float[Tensor, "*b n 3"]
    ) -> tuple[Float[Tensor, "*b n 2"], Float[Tensor, "*b n"]]:
        """Pixels and depth in millimetres from the camera; points behind the camera have depth <= 0
        and no meaning.
        """
        position = self.rotate(points) + self.translation[..., None, :]
        depth = position[..., 2]
        pixels = self.focal[..., None, None] * position[..., :2] / depth[..., None]
        return pixels + self.centre[..., None, :], depth

    def clip(
        self, points: Float[Tensor, "*b n 3"], size: tuple[int, int]
    ) -> Float[Tensor, "*b n 4"]:
        """Clip-space positions, w = depth in millimetres; near 10 mm, far 10 m."""
        position = self.rotate(points) + self.translation[..., None, :]
        depth = position[..., 2:]
        height, width = size
        extent = position.new_tensor([width, height])
        pixels_times_depth = (
            self.focal[..., None, None] * position[..., :2] + self.centre[..., None, :] * depth
        )
        xy = 2 * pixels_times_depth / extent - depth
        near, far = self.NEAR, self.FAR
        z = (depth * (far + near) - 2 * far * near) / (far - near)
        return torch.cat([xy, z, depth], -1)

    def crop(
        self, scale: Float[Tensor, "*b"], offset: Float[Tensor, "*b 2"]
    ) -> "PerspectiveCamera":
        """The camera of an image resampled so that new pixel = scale * pixel + offset."""
        return PerspectiveCamera(
            self.rotation,
            self.translation,
            self.focal * scale,
            self.centre * scale[..., None] + offset,
        )
