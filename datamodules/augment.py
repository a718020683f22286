"""Random changes of a face crop, as matrices, so that images, masks and landmarks move alike."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from core.errors import DataError


@dataclass(frozen=True)
class Augmentation:
    """How much the crops of a training vary. 0 everywhere = not at all.

    Shift, scale and rotation are drawn for each frame; the flip for the whole clip, as it makes
    another person of somebody whose face is not symmetric.

    Args:
        shift: largest shift along each axis, as a fraction of the crop's side.
        scale: largest enlargement or reduction, as a fraction: 0.1 = from 1 / 1.1 to 1.1.
        rotation: largest rotation in the image plane, degrees.
        flip: probability of flipping left and right.
    """

    shift: float = 0.0
    scale: float = 0.0
    rotation: float = 0.0
    flip: float = 0.0

    def __post_init__(self) -> None:
        limits = {"shift": 0.5, "scale": 1.0, "rotation": 180.0, "flip": 1.0}
        for name, most in limits.items():
            if not 0 <= getattr(self, name) <= most:
                raise DataError(
                    f"augmentation: {name} must be in [0, {most}], got {getattr(self, name)}"
                )

    def jitter(self, random: np.random.Generator, size: int) -> Float[Tensor, "3 3"]:
        """A random similarity, crop pixels -> changed crop pixels, about the crop's centre."""
        angle, stretch, x, y = random.uniform(-1, 1, 4).tolist()
        scale = (1 + self.scale) ** stretch
        angle = math.radians(self.rotation) * angle
        cos, sin = scale * math.cos(angle), scale * math.sin(angle)
        centre = size / 2
        right = centre + size * self.shift * x - centre * (cos - sin)
        down = centre + size * self.shift * y - centre * (sin + cos)
        return torch.tensor([[cos, -sin, right], [sin, cos, down], [0, 0, 1]])


def flip_matrix(size: int) -> Float[Tensor, "3 3"]:
    """Left and right exchanged, crop pixels -> flipped crop pixels; x becomes size - x."""
    return torch.tensor([[-1.0, 0, size], [0, 1, 0], [0, 0, 1]])
