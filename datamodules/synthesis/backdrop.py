"""What is behind the head: walls, rooms, foliage, lights out of focus."""

import numpy as np
import torch
from jaxtyping import Float
from scipy.ndimage import gaussian_filter
from torch import Tensor

from datamodules.synthesis.noise import blurred_noise


def random_colours(rng: np.random.Generator, count: int) -> Float[np.ndarray, "c 3"]:
    """Colours as photographs have them: mostly muted, of any brightness."""
    grey = rng.beta(1.3, 1.3, (count, 1))
    hue = rng.normal(size=(count, 3)) * rng.choice([0.03, 0.1, 0.22], (count, 1), p=[0.4, 0.4, 0.2])
    return np.clip(grey + hue, 0.01, 0.99)


def random_backdrop(rng: np.random.Generator, size: int) -> Float[Tensor, "3 s s"]:
    """A picture of size x size pixels in [0, 1], out of focus to a random degree."""
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size
    first, second, third = random_colours(rng, 3)[:, :, None, None]
    angle = rng.uniform(0, 2 * np.pi)
    ramp = np.clip(0.5 + (np.cos(angle) * (x - 0.5) + np.sin(angle) * (y - 0.5)), 0, 1)
    picture = first * (1 - ramp) + second * ramp
    kind = rng.choice(["plain", "cloth", "foliage", "lights", "room", "crowd"])
    if kind == "plain":
        spot = np.exp(-((x - rng.uniform(0.2, 0.8)) ** 2 + (y - rng.uniform(0.2, 0.8)) ** 2) / 0.15)
        picture = first * (0.7 + 0.35 * spot)
    elif kind == "cloth":
        noise = blurred_noise(rng, (size, size), tuple(size * rng.uniform(0.01, 0.12, 2)))
        picture = picture * (1 + 0.2 * noise)
    elif kind == "foliage":
        for share in (0.03, 0.012):
            leaf = blurred_noise(rng, (size, size), size * share)[None]
            picture = np.where(leaf > 0.3, picture * 0.55 + 0.45 * third, picture)
            picture = picture * (1 + 0.12 * leaf)
    elif kind == "lights":
        picture = picture * 0.35
        for colour in random_colours(rng, int(rng.integers(6, 24))):
            radius, cx, cy = rng.uniform(0.01, 0.07), *rng.uniform(0, 1, 2)
            disc = (x - cx) ** 2 + (y - cy) ** 2 < radius**2
            picture = picture + disc * colour[:, None, None] * rng.uniform(0.3, 0.9)
    elif kind == "room":
        for colour in random_colours(rng, int(rng.integers(3, 14))):
            (x0, y0), (w, h) = rng.uniform(-0.2, 1, 2), rng.uniform(0.03, 0.6, 2)
            inside = (x > x0) & (x < x0 + w) & (y > y0) & (y < y0 + h)
            picture = np.where(inside, colour[:, None, None] * (0.85 + 0.3 * ramp), picture)
    else:
        for colour in random_colours(rng, int(rng.integers(8, 30))):
            cx, cy, rx, ry = *rng.uniform(0, 1, 2), *rng.uniform(0.03, 0.16, 2)
            inside = ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 < 1
            picture = np.where(inside, colour[:, None, None], picture)
    sigma = size * float(np.exp(rng.uniform(np.log(0.002), np.log(0.05))))
    picture = gaussian_filter(np.clip(picture, 0, 1.2), (0, sigma, sigma), mode="nearest")
    return torch.from_numpy(np.clip(picture, 0, 1)).float()
