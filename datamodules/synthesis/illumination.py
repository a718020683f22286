"""Coloured light around a head, as spherical harmonics: ambient and one to three sources."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from core.lighting import LAMBERT, sh_basis
from datamodules.synthesis.shading import nine_normals


@dataclass(frozen=True)
class Illumination:
    """The light of a video, or of each of its frames; camera frame.

    Attributes:
        light: all of it, spherical harmonics per colour channel: irradiance = sh_basis(normals) @
            light.
        key: the part of ``light`` that comes from the strongest source: what casts a shadow.
        direction: towards that source.
    """

    light: Float[Tensor, "*f 9 3"]
    key: Float[Tensor, "*f 9 3"]
    direction: Float[Tensor, "*f 3"]

    def turned(self, rotation: Float[Tensor, "f 3 3"]) -> "Illumination":
        """That of a video, as cameras see it to whose frames these rotations lead."""
        normals = torch.from_numpy(nine_normals()).float()  # nine numbers determine the harmonics
        there = torch.linalg.solve(sh_basis(normals), sh_basis(normals @ rotation))
        return Illumination(there @ self.light, there @ self.key, rotation @ self.direction)


def directional(
    direction: Float[Tensor, "3"], colour: Float[Tensor, "3"], softness: float
) -> Float[Tensor, "9 3"]:
    """A distant source: on a surface that faces it, its irradiance is about ``colour``.

    softness 0 = a point, 1 = a large window.
    """
    harmonics = sh_basis(direction) / torch.tensor(LAMBERT)  # without the Lambertian factors
    spread = torch.tensor([1.0] + [1 - 0.1 * softness] * 3 + [1 - 0.35 * softness] * 5)
    return (harmonics * spread)[:, None] * colour


def ambient(colour: Float[Tensor, "3"]) -> Float[Tensor, "9 3"]:
    """Light from everywhere whose irradiance is ``colour``."""
    up = sh_basis(torch.tensor([0.0, 0.0, 1.0]))
    light = torch.zeros(9, 3)
    light[0] = colour / up[0]
    return light


def random_illumination(rng: np.random.Generator, skin: float) -> Illumination:
    """Light from soft daylight to a lamp at the side, exposed for a face.

    Args:
        rng: of the video.
        skin: mean reflectance of the skin; a camera exposes dark skin somewhat longer.
    """

    def colour(strength: float) -> Tensor:
        warmth, tint = rng.normal() * strength, rng.normal() * strength * 0.4
        return torch.tensor(np.exp([warmth, tint, -warmth]), dtype=torch.float32)

    contrast = rng.beta(1.6, 1.6)
    azimuth = np.clip(rng.normal() * 0.9, -2.1, 2.1)
    elevation = rng.uniform(-0.1, 1.1)
    sources = []
    for index in range(1 + rng.integers(0, 3)):
        if index:
            azimuth, elevation = rng.uniform(-np.pi, np.pi), rng.uniform(-0.4, 1.2)
        level = (0.3 + 1.2 * contrast) * (1.0 if index == 0 else rng.uniform(0.1, 0.5))
        direction = torch.tensor(
            [
                np.sin(azimuth) * np.cos(elevation),
                -np.sin(elevation),
                -np.cos(azimuth) * np.cos(elevation),
            ],
            dtype=torch.float32,
        )
        vivid = 0.3 if index and rng.random() < 0.3 else 0.1
        source = directional(direction, float(level) * colour(vivid), rng.uniform(0, 1))
        sources.append((direction, source))
    light = sum(
        (source for _, source in sources), ambient(float(0.75 - 0.5 * contrast) * colour(0.07))
    )
    # Exposure: the mean irradiance on the side of the head that the camera sees.
    seen = rng.normal(size=(256, 3))
    seen /= np.linalg.norm(seen, axis=1, keepdims=True)
    seen[:, 2] = -np.abs(seen[:, 2])
    facing = torch.from_numpy(seen).float()
    mean = float((sh_basis(facing) @ light).mean().clamp(min=0.05))
    target = rng.uniform(0.72, 1.08) * (0.55 / max(skin, 0.1)) ** 0.3
    gain = float(target) / mean
    direction, key = sources[0]
    return Illumination(light * gain, key * gain, direction)
