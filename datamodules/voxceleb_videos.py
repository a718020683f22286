"""VoxCeleb's videos, decoded while they are read: the releases as they are, with landmarks.

On disk:

    <root>/.../<identity>/<video>/<clip>.mp4        dev/mp4/... and test/mp4/..., as VoxCeleb2's
                                                    release has them, or without these folders
    <root>/.../<identity>/<video>/<clip>.npz        landmarks of each frame of the clip, see
                                                    ``datamodules.landmark_files``
    <root>/splits/{train,val,test}.txt              optional: an identity a line

or whole videos with the releases' ``txt``, as ``datamodules.preparation.metadata`` says.

* The releases hold no landmarks, so the .npz are the user's own. Videos without are left out and
  counted; ``python -m datamodules prepare voxceleb`` needs none: it finds the faces itself.
* Frames without a face, where all confidences are 0, are not used. Masks are the hull of the
  landmarks with the forehead.
* Without ``splits`` the official test is the split test, where it is known (as for ``prepare``);
  else the identities are divided by a hash of their names.
* This is for a look at some videos. Listing reads all .npz files; a random frame is found by
  decoding from the key frame before it, which takes as long as dozens of JPEG files; and a video
  that makes the decoder crash ends the training. To train on a release, prepare it: one command,
  and ``datamodules.shards`` reads what comes of it.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from core.errors import DataError
from datamodules.clips import Clip, Fault, Frame, MergedClip, UnusableFrameError
from datamodules.landmark_files import read_video_landmarks
from datamodules.listing import (
    Listing,
    clips_by_split,
    face_frame,
    faulty,
    listed_or_divided,
    report,
    stem,
)
from datamodules.preparation.decoding import decoded_at
from datamodules.preparation.metadata import RATE, read_track, split_officially
from datamodules.preparation.plan import Video, list_videos
from datamodules.video import read_frame

KEPT = 64  # files of landmarks that a process keeps
PREPARE = (
    "`python -m datamodules prepare voxceleb` finds the faces and makes shards of the videos, for "
    "--data=datamodules.shards.Shards"
)


@dataclass(frozen=True)
class VideoTree(Listing):
    """The frames of videos that have landmarks.

    Attributes:
        videos: by the names of their clips.
    """

    videos: dict[str, Video]

    @classmethod
    def scan(
        cls, root: Path, whole_video: bool = False, identities: int | None = None
    ) -> "VideoTree":
        """List the videos.

        Args:
            root: the folder.
            whole_video: a clip of the result = all clips of a video.
            identities: only the first so many in the training split.

        Raises:
            AssetNotFoundError: there is no such folder.
            DataError: it holds no videos, none of them has landmarks, or the lists overlap.
        """
        left_out: Counter[str] = Counter()
        try:
            found = list_videos(root, left_out)
        except DataError as error:
            raise DataError(f"{error}; or frames/<identity>/<video>/<clip>/<frame>.jpg") from error
        videos = {video.clip: video for video in found if video.landmarks is not None}
        if not videos:
            raise DataError(
                f"none of {len(found)} videos below '{root}' has landmarks beside it, e.g. "
                f"'{stem(found[0].track or found[0].path)}.npz'. {PREPARE}"
            )
        left_out["videos without landmarks"] += len(found) - len(videos)
        left_out += Counter()  # drops the zeros
        clips = list(_clips_of(root, videos.values(), left_out))
        report(root, len(clips), "<clip>.mp4 with <clip>.npz, landmarks of its frames", left_out)
        if whole_video:
            clips = [
                MergedClip(name, parts[0].identity, _joined(parts), parts=tuple(parts))
                for name, some in groupby(clips, lambda clip: clip.name.rpartition("/")[0])
                if (parts := list(some))
            ]
        people = {clip.identity for clip in clips}
        test = {video.identity for video in videos.values() if video.test}
        if people & test and not (root / "splits").is_dir():
            names = split_officially(people, test)
        else:
            names = listed_or_divided(root / "splits", sorted(people))
        names["train"] = names["train"][:identities]
        return cls(root, clips_by_split(clips, names), dict(left_out), videos)

    def read(self, clip: Clip, index: int) -> Frame:
        """One frame.

        Raises:
            UnusableFrameError: a file is missing, damaged, or of another kind.
        """
        points, confidence = self.landmarks_of(clip, index)
        video, number = self.videos[clip.name], int(stem(clip.frames[index].decode()))
        with faulty(Fault.IMAGE):
            image = _image(self.root / video.path, number, video.track is not None)
        return face_frame(image, points, confidence)

    def landmarks_of(
        self, clip: Clip, index: int
    ) -> tuple[Float[Tensor, "k 2"], Float[Tensor, "k"]]:
        """Of one frame, as ``datamodules.yaw.LandmarkSource`` says."""
        video, number = self.videos[clip.name], int(stem(clip.frames[index].decode()))
        assert video.landmarks is not None
        with faulty(Fault.LANDMARKS):
            points, confidence = _landmarks(self.root / video.landmarks)
            numbers = _numbers(self.root, video, len(points))
        row = int(np.searchsorted(numbers, number))
        return points[row], confidence[row]


def _clips_of(root: Path, videos: Iterable[Video], left_out: Counter[str]) -> Iterator[Clip]:
    """A clip for each video that has frames with a face."""
    for video in videos:
        assert video.landmarks is not None
        try:
            with faulty(Fault.LANDMARKS):
                _, confidence = _landmarks(root / video.landmarks)
                numbers = _numbers(root, video, len(confidence))
        except UnusableFrameError:
            left_out["videos with bad landmarks or boxes"] += 1
            continue
        seen = numbers[(confidence[: len(numbers)] > 0).any(-1).numpy()]
        if len(seen):
            names = np.array([b"%06d.mp4" % number for number in seen.tolist()])
            yield Clip(video.clip, video.identity, names)
        else:
            left_out["videos without a face"] += 1


def _numbers(root: Path, video: Video, count: int) -> Int64[np.ndarray, " n"]:
    """Of the frames that have a line of landmarks.

    Raises:
        DataError: the video's boxes cannot be read, or there are more or fewer of them.
        OSError: the same.
    """
    if video.track is None:
        return np.arange(count)
    numbers = read_track(root / video.track).numbers
    if len(numbers) != count:
        raise DataError(f"'{root / video.track}': {len(numbers)} boxes for {count} landmarks")
    return numbers


def _image(path: Path, number: int, of_track: bool) -> Tensor:
    """A frame of a video; of a track's, by its time.

    Raises:
        DataError: it cannot be decoded, or ends before.
    """
    if not of_track:
        return read_frame(path, number)
    for _, pixels in decoded_at(path, np.array([number / RATE])):
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
    raise DataError(f"'{path}' ends before frame {number}")


@lru_cache(maxsize=KEPT)
def _landmarks(path: Path) -> tuple[Float[Tensor, "f k 2"], Float[Tensor, "f k"]]:
    return read_video_landmarks(path)


def _joined(clips: list[Clip]) -> np.ndarray:
    return np.concatenate([clip.frames for clip in clips])
