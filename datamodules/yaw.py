"""The yaw of the heads in videos, which nobody has written down, from their landmarks.

With it frames of a video are views of one face for ``datamodules.choice.Views``.
"""

from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from core.affine_pose import affine_pose, nearest_rotation
from core.camera import frontal
from core.face_models import load_face_model
from core.rotation import euler_from_rotation
from datamodules.clips import Clip, UnusableFrameError

CONTOUR = 17  # the first landmarks, which are on other points of the face in each pose


@runtime_checkable
class LandmarkSource(Protocol):
    """A ``ClipSource`` that reads a frame's landmarks without its image."""

    def landmarks_of(
        self, clip: Clip, index: int
    ) -> tuple[Float[Tensor, "k 2"], Float[Tensor, "k"]]:
        """Pixels, and confidences; 0 = missing.

        Raises:
            UnusableFrameError: a file is missing, damaged, or of another kind.
        """


def with_landmark_yaw(source: object, clips: Iterable[Clip]) -> list[Clip]:
    """The clips, those of several frames without known yaw with that of their landmarks.

    NaN for frames whose landmarks cannot be read, or are not all 68 seen. Sources that are no
    ``LandmarkSource`` give the clips as they are.

    Reads the landmarks of every frame, one after the other, and keeps nothing: each process of a
    training does so again at each start.
    """
    clips = list(clips)
    if not isinstance(source, LandmarkSource):
        return clips
    found = []
    for clip in tqdm(clips, "estimating yaws", disable=None, leave=False):
        if clip.yaw is None and len(clip.frames) > 1:
            points = torch.stack([_points(source, clip, k) for k in range(len(clip.frames))])
            clip = replace(clip, yaw=landmark_yaw(points).double().numpy())
        found.append(clip)
    return found


def landmark_yaw(points: Float[Tensor, "*b 68 2"]) -> Float[Tensor, "*b"]:
    """The head's yaw in degrees, NaN where a landmark is.

    That of the scaled orthography nearest to the affine camera which best shows the mean face's
    landmarks, without the contour's, at these points; other people's proportions and perspective
    put it off by some degrees, less between frames of one person.

    Args:
        points: pixels, y down.
    """
    face = _mean_landmarks()[CONTOUR:]
    seen = points[..., CONTOUR:, :].double()
    flat = torch.cat([seen, torch.zeros_like(seen[..., :1])], -1)
    across, down, _ = affine_pose(face.expand_as(flat), flat)[..., :3].unbind(-2)
    along = torch.linalg.cross(across, down)
    along = along / along.norm(dim=-1, keepdim=True).sqrt()  # as long as they are
    rotation, _ = nearest_rotation(torch.stack([across, down, along], -2))
    _, yaw, _ = euler_from_rotation(frontal(rotation) @ rotation)
    return torch.rad2deg(yaw)


def _points(source: LandmarkSource, clip: Clip, index: int) -> Tensor:
    """The 68 landmarks of a frame, NaN where they are not all known."""
    try:
        points, confidence = source.landmarks_of(*clip.at(index))
    except UnusableFrameError:
        return torch.full((68, 2), torch.nan)
    known = len(points) == 68 and bool((confidence > 0).all())
    return points if known else torch.full((68, 2), torch.nan)


@lru_cache(maxsize=1)
def _mean_landmarks() -> Float[Tensor, "68 3"]:
    model = load_face_model("procedural", 1, 1, 1)
    return model.landmarks(model.mean).double()
