"""What a lens, a sensor, a file format and a landmark detector do to a clip."""

from dataclasses import dataclass
from io import BytesIO

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from torch import Tensor

from datamodules.synthesis.noise import smooth_path


@dataclass(frozen=True)
class Sensor:
    """The camera's flaws, of a video.

    Attributes:
        defocus: standard deviation of the blur, pixels of a frame of 160.
        noise: standard deviation, [0, 1].
        gamma: exponent of the tone curve.
        contrast, saturation: factors about the middle grey and the grey picture.
        quality: of the JPEG files.
    """

    defocus: float
    noise: float
    gamma: float
    contrast: float
    saturation: float
    quality: int


def random_sensor(rng: np.random.Generator, degradation: float, unmodelled: float) -> Sensor:
    """From a good camera to a compressed video."""
    tone = rng.normal(size=3) * [0.08, 0.06, 0.12] * unmodelled
    return Sensor(
        defocus=degradation * rng.beta(1.2, 2.0) * 1.1,
        noise=degradation * 0.02 * rng.beta(1.0, 2.5),
        gamma=float(np.exp(tone[0])),
        contrast=float(np.exp(tone[1])),
        saturation=float(np.exp(tone[2])),
        quality=int(rng.integers(70, 96)),
    )


def expose(
    rng: np.random.Generator, images: Float[Tensor, "f 3 s s"], sensor: Sensor
) -> UInt8[np.ndarray, "f s s 3"]:
    """Blur, tone, noise, 8 bits."""
    frames, size = len(images), images.shape[-1]
    if sensor.defocus > 0:
        images = _blurred(rng, images, sensor.defocus * size / 160)
    images = images.clamp(0, 1)
    if (sensor.gamma, sensor.contrast, sensor.saturation) != (1.0, 1.0, 1.0):
        images.pow_(sensor.gamma)
        grey = images.mean(1, keepdim=True)
        images.sub_(grey).mul_(sensor.saturation).add_(grey)
        images.sub_(0.45).mul_(sensor.contrast).add_(0.45).clamp_(0, 1)
    if sensor.noise > 0:
        noise = torch.from_numpy(rng.standard_normal((frames, 4, size, size), np.float32))
        level = images.sqrt().add_(0.5).mul_(sensor.noise)
        images.add_(
            (noise[:, :3].mul_(0.6).add_(noise[:, 3:], alpha=0.8)).mul_(level)
        )  # mostly grey
    levels = images.mul_(255).round_().clamp_(0, 255).to(torch.uint8)
    return levels.permute(0, 2, 3, 1).contiguous().numpy()


def _blurred(
    rng: np.random.Generator, images: Float[Tensor, "f 3 s s"], sigma: float
) -> Float[Tensor, "f 3 s s"]:
    """Defocus that breathes a little, and motion of the camera in some frames."""
    frames, reach = len(images), 4
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1].astype(np.float32)
    focus = sigma * (1 + 0.25 * smooth_path(rng, frames, 1)[:, 0])
    focus = np.clip(focus, 0.12, 2.5)[:, None, None]
    angle = rng.uniform(0, np.pi, frames)[:, None, None]
    motion = (rng.random(frames) < 0.3) * rng.uniform(0.3, 1.6, frames) * min(1.0, 2 * sigma)
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    wide = np.sqrt(focus**2 + motion[:, None, None] ** 2)
    kernel = np.exp(-0.5 * ((along / wide) ** 2 + (across / focus) ** 2))
    kernel /= kernel.sum((1, 2), keepdims=True)
    weights = torch.from_numpy(kernel.astype(np.float32)).repeat_interleave(3, 0)[:, None]
    padded = F.pad(images, (reach,) * 4, mode="replicate").flatten(0, 1)[None]
    return F.conv2d(padded, weights, groups=3 * frames)[0].unflatten(0, (frames, 3))


def encoded(picture: UInt8[np.ndarray, "..."], kind: str, quality: int = 95) -> bytes:
    """The bytes of a picture file of kind "JPEG" or "PNG"."""
    file = BytesIO()
    options = {"quality": quality} if kind == "JPEG" else {"compress_level": 1}
    Image.fromarray(picture).save(file, kind, **options)
    return file.getvalue()


def detect(
    rng: np.random.Generator,
    landmarks: Float[np.ndarray, "f 68 2"],
    hidden: Bool[np.ndarray, "f 68"],
    jitter: float,
    dropped: float,
) -> list[Float[np.ndarray, "68 3"] | None]:
    """What a detector reports: x, y, confidence; None for a frame in which it finds no face.

    Errors are in % of the face's size (the root of its box's area): a part common to all points, a
    part of each point, more along the jaw, three times as much where a point is hidden.
    """
    frames = len(landmarks)
    extent = landmarks.max(1) - landmarks.min(1)
    size = np.sqrt(extent.prod(-1))[:, None, None]
    spread = np.ones((frames, 68, 1)) * 0.85
    spread[:, :17] *= 1.4
    spread = np.where(hidden[..., None], 2.5 * spread, spread)
    error = rng.normal(size=(frames, 68, 2)) * spread + rng.normal(size=(frames, 1, 2)) * 0.5
    found = landmarks + error * (jitter / 100) * size
    sure = rng.beta(12, 1.2, (frames, 68)) * np.where(
        hidden, rng.uniform(0.3, 0.7, (frames, 68)), 1
    )
    # faces that are mostly hidden are missed more often
    missed = rng.random(frames) < dropped * (0.5 + 2.0 * hidden.mean(1))
    result = np.concatenate([found, sure[..., None]], -1).astype(np.float32)
    return [None if miss else points for miss, points in zip(missed, result, strict=True)]
