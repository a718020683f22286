"""Weak-perspective and perspective cameras behind one interface: pixels, depth, clip space.

Convention: camera frame x right, y down, z forward (OpenCV); ``rotation`` maps the model frame (x
right, y up, z out of the face) into it, so that a frontal face has ``FRONTAL`` = diag(1, -1, -1).
Pixels have their origin at the top left corner of the image. Clip space: x, y in [-1, 1] from the
left and top edges, z in [-1, 1] growing away from the viewer.

Worked number: weak perspective, frontal, scale 2 px/mm, translation (112, 112): the model point
(10, 20, 30) mm is at pixel (132, 72), 30 mm nearer to the viewer than the origin (depth -30).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from core.affine import affine
from core.precision import without_autocast

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
            return affine(*_one_dtype(directions, self.rotation))

    def position(self, points: Float[Tensor, "*b n 3"]) -> Float[Tensor, "*b n 3"]:
        """Points from the model frame to the camera frame, millimetres; z is their depth."""
        raise NotImplementedError

    def project(
        self, points: Float[Tensor, "*b n 3"]
    ) -> tuple[Float[Tensor, "*b n 2"], Float[Tensor, "*b n"]]:
        """Pixels, and depth along the camera's z in millimetres, of points in the model frame."""
        raise NotImplementedError

    def clip(
        self, points: Float[Tensor, "*b n 3"], size: tuple[int, int]
    ) -> Float[Tensor, "*b n 4"]:
        """Clip-space positions for the rasterizer of an image of size (height, width)."""
        with without_autocast(points):
            return affine(*_one_dtype(points, *self._clip_map(size)))

    def _clip_map(
        self, size: tuple[int, int]
    ) -> tuple[Float[Tensor, "*b 4 3"], Float[Tensor, "*b 4"]]:
        """Matrix and offset from the model frame to clip space."""
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
        with without_autocast(points):
            across = self.scale[..., None, None] * self.rotation[..., :2, :]
            pixels = affine(*_one_dtype(points, across, self.translation))
            depth = affine(*_one_dtype(points, self.rotation[..., 2:, :]))
        return pixels, depth[..., 0]

    def position(self, points: Float[Tensor, "*b n 3"]) -> Float[Tensor, "*b n 3"]:
        """Relative to the model frame's origin, millimetres."""
        return self.rotate(points)

    def _clip_map(
        self, size: tuple[int, int]
    ) -> tuple[Float[Tensor, "*b 4 3"], Float[Tensor, "*b 4"]]:
        """Here w = 1 and z = depth / 1000 mm."""
        height, width = size
        extent = self.translation.new_tensor([width, height])
        across = 2 * self.scale[..., None, None] * self.rotation[..., :2, :] / extent[:, None]
        along = self.rotation[..., 2:, :] / self.DEPTH_RANGE
        one = torch.ones_like(self.scale)[..., None]
        matrix = torch.cat([across, along, torch.zeros_like(along)], -2)
        return matrix, torch.cat([2 * self.translation / extent - 1, 0 * one, one], -1)

    def about(self, point: Float[Tensor, "3"]) -> "WeakPerspectiveCamera":
        """The camera whose translation is where this point of the model frame is seen, instead of
        the origin.
        """
        seen = self.project(point.expand(*self.scale.shape, 1, 3))[0].squeeze(-2)
        return WeakPerspectiveCamera(self.rotation, self.scale, seen)

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
        position = self.position(points)
        depth = position[..., 2]
        pixels = self.focal[..., None, None] * position[..., :2] / depth[..., None]
        return pixels + self.centre[..., None, :], depth

    def position(self, points: Float[Tensor, "*b n 3"]) -> Float[Tensor, "*b n 3"]:
        """Relative to the camera, millimetres."""
        with without_autocast(points):
            return affine(*_one_dtype(points, self.rotation, self.translation))

    def _clip_map(
        self, size: tuple[int, int]
    ) -> tuple[Float[Tensor, "*b 4 3"], Float[Tensor, "*b 4"]]:
        """Here w = depth in millimetres; near 10 mm, far 10 m."""
        height, width = size
        extent = self.translation.new_tensor([width, height])
        near, far = self.NEAR, self.FAR
        rows = torch.cat([self.rotation, self.translation[..., None]], -1)
        depth = rows[..., 2:, :]
        shift = (2 * self.centre / extent - 1)[..., None]
        across = (2 * self.focal[..., None] / extent)[..., None] * rows[..., :2, :] + shift * depth
        z = depth * ((far + near) / (far - near))
        clip = torch.cat([across, z, depth], -2)
        behind = clip.new_tensor([0, 0, 2 * far * near / (far - near), 0])
        return clip[..., :3], clip[..., 3] - behind

    def weak_perspective(self, point: Float[Tensor, "3"]) -> WeakPerspectiveCamera:
        """The camera that sees what lies beside a point of the model frame, across the view, as
        this one does.
        """
        there = point.expand(*self.focal.shape, 1, 3)
        seen, depth = self.project(there)
        camera = WeakPerspectiveCamera(
            self.rotation, self.focal / depth[..., 0], torch.zeros_like(seen[..., 0, :])
        )
        return replace(camera, translation=(seen - camera.project(there)[0]).squeeze(-2))

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


def _one_dtype(*tensors: Tensor) -> list[Tensor]:
    """The tensors in the widest of their dtypes, at least float32."""
    kind = torch.float32
    for tensor in tensors:
        kind = torch.promote_types(kind, tensor.dtype)
    return [tensor.to(kind) for tensor in tensors]
