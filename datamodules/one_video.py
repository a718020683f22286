"""One video with landmarks, to fine-tune a method on one person.

On disk, as for prediction (``datamodules.photos``):

    <name>.mp4
        or another format that FFmpeg decodes
    <name>.npz
        or landmarks68.npz beside it: the landmarks of every frame;
        datamodules/landmark_files.py says how they look
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from core.errors import AssetNotFoundError
from datamodules.base import Clip, FaceDataModule, Fault, Frame
from datamodules.landmark_files import read_video_landmarks
from datamodules.listing import Listing, face_frame, faulty
from datamodules.video import read_frame


class OneVideo(FaceDataModule):
    """A video as the only clip of the training, and of the validation, which shows how well the
    person is learned, not people; there is none to test with.

    Args:
        path: the video.
        landmarks: of its frames; None = ``<name>.npz`` or ``landmarks68.npz`` beside it.
        every: take only every so many-th frame.
        **options: of ``FaceDataModule``; with ``cache_gb`` frames are decoded once.
    """

    def __init__(
        self, path: Path, landmarks: Path | None = None, every: int = 1, **options: Any
    ) -> None:
        super().__init__(**options)
        self.path, self.landmarks, self.every = Path(path), landmarks, every

    def source(self) -> "VideoFrames":
        """The frames in which there is a face.

        Raises:
            AssetNotFoundError: there is no such video, or no landmarks of it.
            DataError: the file of landmarks holds something else.
        """
        if not self.path.is_file():
            raise AssetNotFoundError("video", f"'{self.path}'", "Give a file: --data.path.")
        named = self.path.with_suffix(".npz"), self.path.with_name("landmarks68.npz")
        places = [self.landmarks] if self.landmarks else list(named)
        found = next((place for place in places if place.is_file()), None)
        if found is None:
            raise AssetNotFoundError(
                f"landmarks of '{self.path}'",
                ", ".join(f"'{place}'" for place in places),
                "Give a file of 'landmarks' (frames, 68, 2): --data.landmarks.",
            )
        points, confidence = read_video_landmarks(found)
        shown = np.flatnonzero((confidence > 0).any(-1).numpy())
        names = np.array([b"%06d.jpg" % k for k in shown if k % self.every == 0])
        name = self.path.stem
        splits = {
            "train": [Clip(name, name, names)],
            "val": [Clip(name, f"{name}, validation", names)],  # as if it were another person
            "test": [],
        }
        return VideoFrames(self.path, splits, {}, points, confidence)


@dataclass(frozen=True)
class VideoFrames(Listing):
    """The frames of a video.

    Attributes:
        points: pixels of each frame.
        confidence: of the points.
    """

    points: Float[Tensor, "f k 2"]
    confidence: Float[Tensor, "f k"]

    def read(self, clip: Clip, index: int) -> Frame:
        """One frame.

        Raises:
            UnusableFrameError: it cannot be decoded.
        """
        number = int(clip.frames[index].decode().partition(".")[0])
        with faulty(Fault.IMAGE):
            image = read_frame(self.root, number)
        return face_frame(image, self.points[number], self.confidence[number])
