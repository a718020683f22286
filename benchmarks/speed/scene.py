"""A mesh in front of Deng's camera, once for each image of a batch, each in its own pose."""

import math
from copy import deepcopy

import torch
from jaxtyping import Float, Int
from torch import Tensor

from benchmarks.speed.meshes import Mesh
from core.camera import PerspectiveCamera, frontal
from core.face_models import FaceModel
from core.lighting import AMBIENT
from core.rotation import rotation_from_euler

FOCAL = 1015.0 / 224  # of an image's side (Deng et al. 2019)
HEIGHT = 193.0 / 224  # of the face, of an image's side: 1.9 units at distance 10
JITTER = math.radians(10)


class Scene:
    """What the stages work on; the same for the same arguments, on any device.

    Attributes:
        model: the face model, on the device.
        size: height, width.
        camera: one per image.
        vertices, normals, clip: of the posed mean face, model frame, model frame, clip space.
        light: spherical harmonics, coloured.
        picture: normals of unit length at the pixels.
        weight: a random gradient for the three channels of an image.
    """

    triangles: Int[Tensor, "t 3"]
    vertices: Float[Tensor, "b n 3"]

    def __init__(self, mesh: Mesh, size: int, batch: int, device: torch.device) -> None:
        random = torch.Generator().manual_seed(0)
        self.model: FaceModel = deepcopy(mesh.model).to(device)
        self.mesh, self.batch, self.device = mesh.name, batch, device
        self.size = (size, size)
        self.triangles = self.model.triangles
        angles = JITTER * (2 * torch.rand(batch, 3, generator=random) - 1)
        self.camera = camera_of(self.model, size, angles)
        self.vertices = self.model.mean.expand(batch, -1, -1).contiguous()
        self.clip = self.camera.clip(self.vertices, self.size)
        self.weight = torch.randn(batch, *self.size, 3, generator=random).to(device)
        normals = torch.randn(batch, 3, *self.size, generator=random)
        self.picture = (normals / normals.norm(dim=1, keepdim=True)).to(device)
        light = 0.2 * torch.randn(batch, 9, 3, generator=random)
        light[:, 0] += AMBIENT
        self.light = light.to(device)


def camera_of(
    model: FaceModel, size: int, angles: Float[Tensor, "b 3"], shift: Tensor | None = None
) -> PerspectiveCamera:
    """Deng's camera, as far away as makes the mean face 193 of 224 pixels high.

    Args:
        model: gives the face and the device.
        size: side of the image, pixels.
        angles: pitch, yaw, roll of the head.
        shift: (b, 3), millimetres; added to the place of the head.
    """
    like = model.mean
    low, high = like.amin(0), like.amax(0)
    distance = FOCAL / HEIGHT * (high[1] - low[1])
    pitch, yaw, roll = angles.to(like.device).unbind(-1)
    rotation = frontal(like) @ rotation_from_euler(pitch, yaw, roll)
    ahead = torch.stack([torch.zeros_like(distance), torch.zeros_like(distance), distance])
    translation = ahead - (rotation @ ((low + high) / 2)[:, None]).squeeze(-1)
    if shift is not None:
        translation = translation + shift
    batch = len(angles)
    return PerspectiveCamera(
        rotation,
        translation,
        like.new_full((batch,), FOCAL * size),
        like.new_full((batch, 2), size / 2),
    )
