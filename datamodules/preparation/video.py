"""One video to crops: decoded frame by frame, its person followed, every face checked and cut."""

from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import av
import cv2
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from core.crop import face_crop, transform_points
from core.detect import FaceDetector, main_track
from core.errors import DataError
from datamodules.cutting import cut_out
from datamodules.landmark_files import read_video_landmarks
from datamodules.masks import hull_mask
from datamodules.preparation.masks import FaceParser
from datamodules.preparation.plan import Job, Settings, Video
from datamodules.reading import INSIDE
from datamodules.shard_files import StoredFrame
from datamodules.skin import skin_probability


def check_tools(settings: Settings, videos: tuple[Video, ...]) -> None:
    """Load what will be needed, so that what is missing is said at once.

    Raises:
        AssetNotFoundError: a model is missing.
        DataError: it is something else.
    """
    if any(video.landmarks is None for video in videos):
        _detector(settings.detector)
    if settings.parsing is not None:
        black = torch.zeros(3, settings.size, settings.size)
        _parser(settings.parsing)(black)  # it may give something else


@lru_cache(maxsize=1)
def _detector(pack: str) -> FaceDetector:
    return FaceDetector(pack)


@lru_cache(maxsize=1)
def _parser(path: str) -> FaceParser:
    return FaceParser(Path(path))


def stored_frames(job: Job, video: Video, dropped: Counter[str]) -> Iterator[StoredFrame]:
    """The good faces of a video, cut out and encoded.

    Args:
        job: says where it is and what is wanted.
        video: the one.
        dropped: is told how many frames are left out, by reason.

    Raises:
        DataError: the video, or its landmarks, cannot be read, maybe not to their end.
        OSError: the same.
        AssetNotFoundError: a model is missing.
    """
    path, settings = job.raw / video.path, job.settings
    if video.landmarks is None:
        points, confidence = _followed(path, settings.every, _detector(settings.detector))
    else:
        points, confidence = read_video_landmarks(job.raw / video.landmarks)
        if points.shape[1] != 68:
            raise DataError(f"'{job.raw / video.landmarks}': 5 landmarks a frame, wanted 68")
    for index, image in decoded(path, settings.every):
        if index >= len(points):
            dropped["beyond the end of the landmarks"] += 1
            continue
        matrix = _crop_matrix(points[index], confidence[index], image, settings)
        if isinstance(matrix, str):
            dropped[matrix] += 1
            continue
        yield _cut(f"{index:06}", image, points[index], confidence[index], matrix, settings)


def decoded(path: Path, every: int = 1) -> Iterator[tuple[int, UInt8[Tensor, "3 h w"]]]:
    """Every so many-th frame with its number, RGB, in a view that is not contiguous.

    Raises:
        DataError: the file holds no video, or cannot be decoded, or not to its end.
        OSError: it cannot be read.
    """
    count = 0
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise DataError("no video in it")
            container.streams.video[0].thread_type = "NONE"  # the processes share the cores
            for index, frame in enumerate(container.decode(video=0)):
                count += 1
                if index % every == 0:
                    pixels = torch.from_numpy(frame.to_ndarray(format="rgb24"))
                    yield index, pixels.permute(2, 0, 1)
    except av.error.FFmpegError as error:
        raise DataError(f"cannot be decoded after {count} frames: {error.strerror}") from error
    if not count:
        raise DataError("no frame in it")


def _followed(
    path: Path, every: int, detector: FaceDetector
) -> tuple[Float[Tensor, "f 68 2"], Float[Tensor, "f 68"]]:
    """Landmarks of the face that is seen longest, by detection; confidence 0 where it is not."""
    numbers, found = [], []
    for index, image in decoded(path, every):
        numbers.append(index)
        found.append(detector(image.float() / 255))
    points = torch.zeros(numbers[-1] + 1, 68, 2)
    confidence = torch.zeros(len(points), 68)
    for index, face in zip(numbers, main_track(found), strict=True):
        if face is not None:
            points[index], confidence[index] = face.landmarks, face.score
    return points, confidence


def _crop_matrix(
    points: Float[Tensor, "68 2"],
    confidence: Float[Tensor, "68"],
    image: UInt8[Tensor, "3 h w"],
    settings: Settings,
) -> Float[Tensor, "3 3"] | str:
    """The crop, or why there is none."""
    seen = confidence > 0
    if not seen.any():
        return "no face"
    if not points[seen].isfinite().all():
        return "landmarks are not finite"
    size = points.new_tensor([image.shape[2], image.shape[1]])
    inside = ((points >= 0) & (points <= size)).all(-1) & seen
    if inside.sum() < INSIDE * seen.sum():
        return "landmarks are outside the image"
    if confidence.mean() < settings.min_confidence:
        return "confidence is too low"
    try:
        matrix = face_crop(points, confidence, settings.size, settings.margin)
    except DataError:
        return "too few landmarks, or all in one place"
    if settings.size / float(matrix[0, 0]) < settings.min_crop_px:
        return "face is too small"
    return matrix


def _cut(
    name: str,
    image: UInt8[Tensor, "3 h w"],
    points: Float[Tensor, "68 2"],
    confidence: Float[Tensor, "68"],
    matrix: Float[Tensor, "3 3"],
    settings: Settings,
) -> StoredFrame:
    size = settings.size
    crop = cut_out(image, matrix, size)
    points = points.where(points.isfinite(), points[confidence > 0].mean(0))
    landmarks = transform_points(matrix, points)
    if settings.parsing is not None:
        mask = _parser(settings.parsing)(crop)
    else:
        mask = hull_mask(landmarks, confidence, size)
        if settings.mask == "skin":
            mask = mask * skin_probability(crop)
    scale, x, y = float(matrix[0, 0]), float(matrix[0, 2]), float(matrix[1, 2])
    if min(-x, -y, scale * image.shape[2] + x - size, scale * image.shape[1] + y - size) < 0:
        mask = mask * cut_out(torch.full_like(image[:1], 255), matrix, size)  # the image ends
    numbers = torch.cat([landmarks, confidence[:, None]], 1).numpy()
    jpeg = _encoded(crop.flip(0), ".jpg", [cv2.IMWRITE_JPEG_QUALITY, settings.quality])
    png = _encoded(mask, ".png", [cv2.IMWRITE_PNG_COMPRESSION, 1])
    return StoredFrame(name, jpeg, numbers, png)


def _encoded(values: Float[Tensor, "c h w"], kind: str, options: list[int]) -> bytes:
    """A file of an image in [0, 1], blue first."""
    pixels = values.permute(1, 2, 0).mul(255).round_().to(torch.uint8)
    done, content = cv2.imencode(kind, pixels.contiguous().numpy(), options)
    assert done
    return content.tobytes()
