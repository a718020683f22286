"""What a distant lamp sees: shadow maps, and how open to the sky a head is."""

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from core.face_models.model import FaceModel
from core.image import sample
from core.normals import vertex_normals
from core.rasterize import rasterize

SHADOW_MAP = 192  # pixels
SHADOW_REACH = 190.0  # millimetres around the model's origin
SHADOW_BIAS = 5.0  # millimetres


def lamp_view(
    points: Float[Tensor, "f m 3"], direction: Float[Tensor, "*f 3"]
) -> Float[Tensor, "f m 3"]:
    """Points as a distant lamp sees them: z grows away from the lamp; in [-1, 1] near the head."""
    steep = direction[..., 1:2].abs() >= 0.9
    up = torch.where(steep, torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 1.0, 0.0]))
    first = F.normalize(torch.linalg.cross(up, direction), dim=-1)
    second = torch.linalg.cross(direction, first)
    return points @ (torch.stack([first, second, -direction], -1) / SHADOW_REACH)


def lamp_depth(
    lamp: Float[Tensor, "f m 3"], triangles: Int[Tensor, "t 3"]
) -> Float[Tensor, "f d d"]:
    """The shadow map: how far the light gets; 2 where it meets nothing."""
    clip = torch.cat([lamp, torch.ones_like(lamp[..., :1])], -1)
    size = (SHADOW_MAP, SHADOW_MAP)
    fragments = rasterize(clip, triangles, size)
    return torch.where(fragments.triangle_index >= 0, fragments.depth, 2.0)


def open_sky(model: FaceModel) -> Float[Tensor, " n"]:
    """The share of the sky that each vertex of the mean head sees; 1 on a convex head."""
    count = 48
    index = torch.arange(count) + 0.5
    z, turn = 1 - 2 * index / count, index * (np.pi * (1 + 5**0.5))
    flat = (1 - z * z).sqrt()
    normals = vertex_normals(model.mean, model.triangles)
    sky, seen = torch.zeros(len(normals)), torch.zeros(len(normals))
    for direction in torch.stack([flat * turn.cos(), flat * turn.sin(), z], -1):
        lamp = lamp_view(model.mean[None], direction)
        depth = lamp_depth(lamp, model.triangles)
        places = (lamp[:, None, :, :2] + 1) * (SHADOW_MAP / 2)
        reached = sample(depth[:, None], places, padding="border")[0, 0, 0]
        weight = (normals @ direction).clamp(min=0)
        sky += weight
        seen += weight * (lamp[0, :, 2] < reached + SHADOW_BIAS / SHADOW_REACH)
    return seen / sky.clamp(min=1e-3)
