"""How a head moves in a clip: rotations, facial expressions, the camera."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from core.camera import PerspectiveCamera, frontal
from core.rotation import rotation_from_euler
from datamodules.synthesis.noise import smooth_path
from datamodules.synthesis.settings import SynthesisSettings


@dataclass(frozen=True)
class Lens:
    """The camera of a video.

    Attributes:
        distance: from the camera to the middle of the face, millimetres.
        scale: pixels per millimetre at that distance, for a frame 1 px wide.
    """

    distance: float
    scale: float


def random_lens(rng: np.random.Generator, rig: bool = False) -> Lens:
    """From a selfie at 0.4 m, with its strong perspective, to a telephoto lens at 4 m; the cameras
    of a rig stand about a metre away.
    """
    near, far = (800, 1200) if rig else (400, 4000)
    distance = float(np.exp(rng.uniform(np.log(near), np.log(far))))
    return Lens(distance, float(rng.uniform(0.0036, 0.0044)))


def head_angles(
    rng: np.random.Generator, frames: int, settings: SynthesisSettings
) -> tuple[Float[Tensor, " f"], Float[Tensor, " f"], Float[Tensor, " f"]]:
    """Pitch, yaw and roll in radians: half the clips about a frontal face, half about any yaw."""
    frontal_clip = rng.random() < 0.5
    middle = rng.normal() * 0.25 if frontal_clip else rng.uniform(-0.9, 0.9)
    path = smooth_path(rng, frames, 3)
    yaw = middle + path[:, 0] * rng.uniform(0.12, 0.42)
    pitch = rng.normal() * 0.25 + path[:, 1] * rng.uniform(0.08, 0.3)
    roll = rng.normal() * 0.2 + path[:, 2] * rng.uniform(0.05, 0.25)

    def angle(relative: np.ndarray, most: float) -> Tensor:
        # slows down towards the limit, so that the path stays smooth there
        bounded = np.sin(np.clip(relative, -1, 1) * np.pi / 2) if most else 0 * relative
        return torch.from_numpy(np.deg2rad(most) * bounded).float()

    return (
        angle(pitch, settings.pitch),
        angle(yaw * 0.75, settings.yaw),
        angle(roll, settings.roll),
    )


def camera_path(
    rng: np.random.Generator,
    lens: Lens,
    settings: SynthesisSettings,
    middle: Float[Tensor, "3"],
) -> PerspectiveCamera:
    """The cameras of a clip; the point ``middle`` of the head stays near the frame's middle."""
    frames, size = settings.frames, settings.size
    pitch, yaw, roll = head_angles(rng, frames, settings)
    drift = smooth_path(rng, frames, 3) * [7.0, 5.0, 0.03 * lens.distance]
    drift[:, :2] += rng.normal(size=2) * [6.0, 5.0]
    return _cameras(lens, size, rotation_from_euler(pitch, yaw, roll), drift, middle)


def camera_rig(
    rng: np.random.Generator,
    lens: Lens,
    settings: SynthesisSettings,
    middle: Float[Tensor, "3"],
) -> PerspectiveCamera:
    """Cameras around a head that keeps still, in the order of yaw, about evenly spread.

    They cover a part of the possible yaws, and look a little past the point ``middle`` each.
    """
    frames = settings.frames
    reach = rng.uniform(0.3, 0.8)  # 1 = from one side to the other
    place = rng.uniform(reach - 1, 1 - reach)
    step = reach / frames
    yaw = place + reach * np.linspace(-1, 1, frames) + step * rng.uniform(-0.4, 0.4, frames)
    pitch = rng.normal() * 0.3 + rng.normal(size=frames) * 0.08
    roll = rng.normal() * 0.2 + rng.normal(size=frames) * 0.05
    angles = np.clip([pitch, yaw, roll], -1, 1).T * [settings.pitch, settings.yaw, settings.roll]
    rotation = rotation_from_euler(*torch.from_numpy(np.deg2rad(angles)).float().unbind(-1))
    drift = rng.normal(size=(frames, 3)) * [7.0, 5.0, 0.03 * lens.distance]
    return _cameras(lens, settings.size, rotation, drift, middle)


def _cameras(
    lens: Lens,
    size: int,
    turned: Float[Tensor, "f 3 3"],
    drift: Float[np.ndarray, "f 3"],
    middle: Float[Tensor, "3"],
) -> PerspectiveCamera:
    """Cameras that see a head turned so, the point ``middle`` of it that far from the middle."""
    frames = len(turned)
    rotation = frontal(turned) @ turned
    position = torch.from_numpy(drift).float()
    position[:, 2] += lens.distance
    position[:, 1] += 4.0  # a little more of the hair than of the neck
    return PerspectiveCamera(
        rotation=rotation,
        translation=position - rotation @ middle,
        focal=torch.full((frames,), lens.scale * size * lens.distance),
        centre=torch.full((frames, 2), size / 2),
    )


def stem(name: str) -> str:
    """A blendshape's name without its side: smile_L, smileLeft and smile_R are one movement."""
    for side in ("_L", "_R", "Left", "Right"):
        if name.endswith(side) and len(name) > len(side):
            return name.removesuffix(side)
    return name


def expression_path(
    rng: np.random.Generator, frames: int, names: list[str]
) -> Float[Tensor, "f ke"]:
    """Blendshape activations in [0, 1] of somebody who talks, blinks and sometimes smiles.

    Known by their ARKit-like names; both sides of a face move together up to a small difference,
    both eyes look the same way. Movements without a known part in this happen rarely and weakly.
    """
    mood, talks = rng.random(), rng.random() < 0.75
    shared = {
        key: _activation(rng, frames, key.lower(), mood, talks)
        for key in sorted({stem(name) for name in names})
    }
    aside = 0.5 * rng.normal() + 0.3 * smooth_path(rng, frames, 3)
    activation = []
    for name in names:
        moves, lower = shared[stem(name)], name.lower()
        to_left = lower.endswith(("left", "_l"))
        if "lookin" in lower or "lookout" in lower:
            moves = aside[:, 0] * (1 if ("lookout" in lower) == to_left else -1)
        elif stem(name) in ("mouth", "jaw"):  # to the left or to the right, not both
            moves = 0.25 * aside[:, 1] * (1 if to_left else -1)
        activation.append(moves * (1 + 0.12 * rng.normal()))
    return torch.from_numpy(np.clip(np.stack(activation, -1), 0, 1)).float()


def _activation(
    rng: np.random.Generator, frames: int, word: str, mood: float, talks: bool
) -> Float[np.ndarray, " f"]:
    """One movement along a clip; ``word`` is its name in small letters, without a side."""
    wave = smooth_path(rng, frames, 1, turns=3.0)[:, 0]
    if "blink" in word:
        shut = np.full(frames, rng.uniform(0, 0.15))
        for at in rng.uniform(0, frames, rng.poisson(0.8)):
            shut = shut + np.exp(-(((np.arange(frames) - at) / 0.7) ** 2))
        return shut
    if "jawopen" in word:
        opens = rng.uniform(0.03, 0.17) if talks else 0.0
        return opens * (1 + smooth_path(rng, frames, 1, turns=5.0)[:, 0])
    if "smile" in word:
        most = rng.uniform(0.3, 0.9) if mood < 0.45 else rng.uniform(0, 0.15)
        return most * (0.7 + 0.3 * wave)
    if "look" in word:
        return 0.3 * wave - 0.1
    if "brow" in word:
        return 0.35 * (wave - rng.uniform(0, 1.2))
    if any(part in word for part in ("pucker", "funnel", "stretch", "upper", "lower")):
        return (0.25 if talks else 0.1) * (wave - rng.uniform(0, 1.0))
    return 0.3 * (wave - rng.uniform(0.4, 2.0))
