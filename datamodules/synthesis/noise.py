"""Random numbers and smooth random curves and fields, all from explicit generators."""

from typing import SupportsFloat

import numpy as np
from jaxtyping import Float
from scipy.ndimage import gaussian_filter


def generator(seed: int, room: str, *keys: int) -> np.random.Generator:
    """The random numbers of one thing (a person, a video, a clip): a pure function of its names."""
    return np.random.default_rng([seed, *room.encode(), *keys])


def smooth_path(
    rng: np.random.Generator, frames: int, channels: int, turns: float = 1.5
) -> Float[np.ndarray, "f c"]:
    """Smooth curves about 0, of RMS about 1, with at most ``turns`` periods in the clip."""
    rate = rng.uniform(0.2, turns, (3, channels)) * 2 * np.pi
    phase = rng.uniform(0, 2 * np.pi, (3, channels))
    time = np.linspace(0, 1, frames)[:, None, None]
    return np.sin(time * rate + phase).mean(1) * np.sqrt(6.0)


def smooth_field(
    rng: np.random.Generator, points: Float[np.ndarray, "*n 3"], wavelength: float, waves: int = 48
) -> Float[np.ndarray, "*n"]:
    """A random field of RMS about 1 at points, of that wavelength in the points' unit.

    In float32, whose cosines take a tenth of the time.
    """
    direction = rng.normal(size=(waves, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    wave = direction * (2 * np.pi / wavelength) * rng.uniform(0.7, 1.5, (waves, 1))
    phase = rng.uniform(0, 2 * np.pi, waves)
    angle = points.astype(np.float32) @ wave.T.astype(np.float32) + phase.astype(np.float32)
    return np.cos(angle).sum(-1) * np.float32((2.0 / waves) ** 0.5)


def blurred_noise(
    rng: np.random.Generator, shape: tuple[int, ...], sigma: float | tuple[float, ...]
) -> Float[np.ndarray, "..."]:
    """White noise blurred by a periodic Gaussian of sigma elements; mean 0, deviation 1."""
    noise = gaussian_filter(rng.normal(size=shape).astype(np.float32), sigma, mode="wrap")
    return (noise - noise.mean()) / max(float(noise.std()), 1e-6)


def smoothstep(
    value: Float[np.ndarray, "..."], low: SupportsFloat, high: SupportsFloat
) -> Float[np.ndarray, "..."]:
    """0 at low, 1 at high (which may be the smaller one), smooth between."""
    low, high = float(low), float(high)
    t = np.clip((value - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)
