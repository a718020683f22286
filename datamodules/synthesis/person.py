"""A person: shape, skin, hair; more than any mode of the face model explains."""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from core.face_models.model import FaceModel
from core.normals import vertex_normals
from core.uv import UVGrid, bake, sample_vertices, uv_grid
from datamodules.synthesis.lamp import open_sky
from datamodules.synthesis.noise import blurred_noise, generator, smooth_field, smoothstep
from datamodules.synthesis.settings import SynthesisSettings

IRISES = ((0.23, 0.14, 0.08), (0.33, 0.22, 0.12), (0.35, 0.36, 0.2), (0.38, 0.46, 0.52))
HAIR = (
    (0.06, 0.055, 0.05),
    (0.13, 0.09, 0.07),
    (0.24, 0.16, 0.1),
    (0.42, 0.3, 0.18),
    (0.66, 0.52, 0.33),
    (0.43, 0.2, 0.1),
    (0.44, 0.43, 0.42),
)


@dataclass(frozen=True)
class Person:
    """One synthetic person.

    Attributes:
        identity, albedo: coefficients of all modes of the face model, standard deviations.
        neutral: vertices in millimetres: the model's shape plus fine relief of its own.
        albedo_map: reflectance: the model's plus pores, freckles, moles, stubble, brows.
        hair: colour.
        skin, neck: mean colours of the face and of the lowest part of the head's mesh.
    """

    identity: Float[Tensor, " ki"]
    albedo: Float[Tensor, " ka"]
    neutral: Float[Tensor, "n 3"]
    albedo_map: Float[Tensor, "3 uh uw"]
    hair: Float[np.ndarray, "3"]
    skin: Float[np.ndarray, "3"]
    neck: Float[np.ndarray, "3"]


class Studio:
    """What all people of a set have in common: the face model and the layout of their UV maps.

    Args:
        model: all its modes are used.
        settings: of the set.
    """

    def __init__(self, model: FaceModel, settings: SynthesisSettings) -> None:
        self.model, self.settings = model, settings

    @cached_property
    def grid(self) -> UVGrid:
        """Which point of the surface each texel shows."""
        return uv_grid(self.model.uv, self.model.triangles, self.settings.texture)

    @cached_property
    def open_sky(self) -> Float[Tensor, " n"]:
        """See ``lamp.open_sky``."""
        return open_sky(self.model)

    @cached_property
    def points(self) -> Float[np.ndarray, "uh uw 3"]:
        """The mean head's surface point of each texel, millimetres."""
        return bake(self.model.mean, self.grid, self.model.triangles).permute(1, 2, 0).numpy()

    @cached_property
    def landmarks(self) -> Float[np.ndarray, "68 3"]:
        """The mean head's landmarks, millimetres."""
        return self.model.landmarks(self.model.mean).numpy()

    def area(self, region: str) -> Float[np.ndarray, "uh uw"]:
        """1 on the texels of a region of the face model, with soft edges; 0 if it has no such."""
        if region not in self.model.region_names:
            return np.zeros((self.settings.texture,) * 2, np.float32)
        flag = self.model.region(region).float()[:, None]
        return bake(flag, self.grid, self.model.triangles)[0].numpy()

    @cached_property
    def skin(self) -> Float[np.ndarray, "uh uw"]:
        """1 where the surface is skin: not an eye, the lips, the inside of the mouth."""
        other = sum(self.area(name) for name in ("eyes", "eyeballs", "mouth_interior", "lips"))
        return np.clip(1 - np.asarray(other), 0, 1)

    @cached_property
    def beard(self) -> Float[np.ndarray, "uh uw"]:
        """Where a beard grows: moustache, chin, jaw and sideburns."""
        x, y, z = np.moveaxis(self.points, -1, 0)
        marks = self.landmarks
        nose, mouth = marks[33], marks[[48, 54, 51, 57]].mean(0)
        edge = nose[1] - 3 + np.maximum(0, np.abs(x) - 22) * 0.75
        grows = smoothstep(edge - y, -3, 11) * smoothstep(y - marks[8, 1], -18, 0)
        wide, high = marks[54, 0] - marks[48, 0], marks[51, 1] - marks[57, 1]
        lips = ((x - mouth[0]) / (0.5 * wide + 3)) ** 2 + ((y - mouth[1]) / (0.5 * high + 2)) ** 2
        return grows * smoothstep(lips, 0.9, 1.5) * smoothstep(z, marks[0, 2] + 5, marks[2, 2] + 14)

    @cached_property
    def brows(self) -> Float[np.ndarray, "uh uw"]:
        """Where the brows are: near the lines through their landmarks, tapering outwards."""
        cover = np.zeros(self.points.shape[:2])
        for line in (self.landmarks[17:22], self.landmarks[22:27][::-1]):
            for start, end in pairwise(line):
                along = (end - start)[:2]
                t = np.clip((self.points[..., :2] - start[:2]) @ along / (along @ along), 0, 1)
                near = start + t[..., None] * (end - start)
                distance = np.linalg.norm(self.points - near, axis=-1)
                cover = np.maximum(cover, smoothstep(distance, 4.2, 1.5))
        return cover

    def person(self, number: int) -> Person:
        """The person of that number: a pure function of the settings."""
        settings, model = self.settings, self.model
        rng = generator(settings.seed, "person", number)

        def normal(count: int) -> Tensor:
            return torch.from_numpy(np.clip(rng.normal(size=count), -2.6, 2.6)).float()

        identity, albedo = normal(len(model.identity_basis)), normal(len(model.albedo_basis))
        neutral = model.shape(identity)
        relief = sum(
            weight * smooth_field(rng, model.mean.numpy(), length)
            for weight, length in ((0.85, 28.0), (0.45, 14.0), (0.2, 7.0))
        )
        if "eyeballs" in model.region_names:
            relief = relief * (~model.region("eyeballs")).numpy()
        outward = vertex_normals(neutral, model.triangles)
        neutral = neutral + torch.from_numpy(settings.detail * relief).float()[:, None] * outward
        colours = model.albedo(albedo)
        skin = colours[model.region("face")].mean(0).clamp(0.05, 0.95).numpy()
        low = model.mean[:, 1] < model.mean[:, 1].min() + 12
        neck = colours[low].mean(0).clamp(0.05, 0.95).numpy()
        hair = _hair_colour(rng, float(skin.mean()))
        base = bake(colours, self.grid, model.triangles).permute(1, 2, 0).numpy()
        texture = self._details(rng, base.clip(0.02, 0.98), hair)
        albedo_map = torch.from_numpy(texture.clip(0.02, 0.98)).permute(2, 0, 1).contiguous()
        # what is stored on disk has 8 bits; the images are made from the same numbers
        return Person(identity, albedo, neutral, (albedo_map * 255).round() / 255, hair, skin, neck)

    def vertex_albedo(self, person: Person) -> Float[Tensor, "n 3"]:
        """The reflectance map at the vertices."""
        return sample_vertices(person.albedo_map, self.model.uv)

    def _details(
        self, rng: np.random.Generator, texture: np.ndarray, hair: np.ndarray
    ) -> Float[np.ndarray, "uh uw 3"]:
        """Skin as it is seen: pores, blotches, freckles, moles, wrinkles, stubble, brows."""
        size = self.settings.texture
        points, scale = self.points, size / 256
        shape = (size, size)
        pores = blurred_noise(rng, shape, 0.7 * scale) * rng.uniform(0.008, 0.03)
        blotches = blurred_noise(rng, shape, 8 * scale) * rng.uniform(0.0, 0.02)
        folds = np.abs(blurred_noise(rng, shape, (1.2 * scale, 7 * scale)))
        folds = -rng.beta(1, 3) * 0.12 * smoothstep(folds, 0.35, 0.0)
        forehead = smoothstep(points[..., 1], self.landmarks[19, 1], self.landmarks[19, 1] + 15)
        redness = np.array([0.2, 1.0, 0.9])  # what changes under the skin is blood
        skin = self.skin[..., None]
        texture = texture * (1 + skin * (pores + folds * forehead)[..., None])
        texture = texture * (1 + skin * blotches[..., None] * redness)
        if rng.random() < 0.25:  # freckles
            spots = smoothstep(blurred_noise(rng, shape, 1.0 * scale), 1.3, 2.2)
            where = smoothstep(np.abs(points[..., 1] - self.landmarks[29, 1]), 45, 5)
            texture = texture * (
                1 - skin * (spots * where * rng.uniform(0.15, 0.4))[..., None] * [0.6, 0.9, 1.0]
            )
        visible = np.argwhere(self.area("face") > 0.9)
        for _ in range(rng.poisson(1.5)):  # moles
            centre = points[tuple(visible[rng.integers(len(visible))])]
            distance = np.linalg.norm(points - centre, axis=-1)
            dark = smoothstep(distance, rng.uniform(1.2, 2.8), 0.6) * rng.uniform(0.25, 0.65)
            texture = texture * (1 - skin * dark[..., None])
        strands = blurred_noise(rng, shape, (1.1 * scale, 0.5 * scale))
        if rng.random() < 0.4:  # stubble up to a beard
            full = rng.beta(0.9, 1.6)
            cover = self.beard * self.skin * np.clip(full * (0.95 + 0.16 * strands), 0, 1)
            cover = cover * smoothstep(blurred_noise(rng, shape, 12 * scale), -2.2, -0.8)
            shadow = 0.55 * hair + 0.2 * texture.mean((0, 1)) if full < 0.4 else hair
            texture = texture * (1 - 0.9 * cover[..., None]) + 0.9 * cover[..., None] * shadow
        brows = self.brows * np.clip(rng.uniform(0.0, 0.5) * (0.85 + 0.45 * strands), 0, 0.9)
        colour = 0.75 * hair + 0.25 * hair.mean() * 0.5
        texture = texture * (1 - brows[..., None]) + brows[..., None] * colour
        iris, pupil = self.area("iris")[..., None], self.area("pupil")[..., None]
        shade = np.array(IRISES[rng.choice(4, p=[0.45, 0.25, 0.12, 0.18])])
        shade = shade * rng.uniform(0.75, 1.2)
        texture = texture * (1 - iris) + iris * shade
        return (texture * (1 - pupil) + pupil * 0.03).astype(np.float32)


def _hair_colour(rng: np.random.Generator, skin: float) -> Float[np.ndarray, "3"]:
    """Mostly dark where the skin is; any colour, also grey, where it is light."""
    weights = np.array([0.3, 0.22, 0.16, 0.1, 0.1, 0.05, 0.07])
    if skin < 0.45:
        weights = np.array([0.72, 0.18, 0.02, 0.01, 0.01, 0.0, 0.06])
    colour = np.array(HAIR[rng.choice(len(HAIR), p=weights / weights.sum())])
    return np.clip(colour * np.exp(rng.normal() * 0.15) * np.exp(rng.normal(size=3) * 0.04), 0, 1)
