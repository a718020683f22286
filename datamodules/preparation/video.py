"""One video to crops: decoded frame by frame, its person followed, every face checked and cut."""

from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, UInt8
from torch import Tensor

from core.crop import face_crop, transform_points
from core.detect import Detection, FaceDetector, main_track
from core.errors import DataError
from core.skin import skin_probability
from datamodules.cutting import cut_out
from datamodules.landmark_files import read_video_landmarks
from datamodules.masks import keep_hull, outline
from datamodules.preparation.decoding import Pixels, decoded, decoded_at
from datamodules.preparation.masks import FaceParser
from datamodules.preparation.metadata import RATE, Track, read_track
from datamodules.preparation.plan import Job, Settings, Video
from datamodules.reading import INSIDE, LARGEST
from datamodules.shard_files import StoredFrame

AROUND = 2.0  # ours: side of what the detector is shown / of the box of a track

# in half of the time of OpenCV's filters, no larger; read in two thirds
PNG = [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP]

Frames = Callable[[], Iterator[tuple[int, Pixels]]]
Step = StoredFrame | str | None
"""A good face, or why a frame is left out, or only that another frame has been looked at."""
Landmarks = tuple[Float[Tensor, "f 68 2"], Float[Tensor, "f 68"]]


def check_tools(settings: Settings, videos: Iterable[Video]) -> None:
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


def stored_frames(job: Job, video: Video) -> Iterator[Step]:
    """The good faces of a video, cut out and encoded; of the other frames, why they are none.

    Args:
        job: says where it is and what is wanted.
        video: the one.

    Raises:
        DataError: the video, or what is said about it, cannot be read, maybe not to its end.
        OSError: the same.
        AssetNotFoundError: a model is missing.
    """
    path, settings = job.raw / video.path, job.settings
    track = None if video.track is None else read_track(job.raw / video.track)
    frames: Frames = partial(decoded, path, settings.every)
    if track is not None:
        frames = partial(decoded_at, path, track.numbers / RATE, settings.every)
    if video.landmarks is not None:
        points, confidence = read_video_landmarks(job.raw / video.landmarks)
        if points.shape[1] != 68:
            raise DataError(f"'{job.raw / video.landmarks}': 5 landmarks a frame, wanted 68")
    elif track is not None:
        points, confidence = yield from _found_in(track, frames, _detector(settings.detector))
    else:
        points, confidence = yield from _followed(frames, _detector(settings.detector))
    faces = None
    for index, image in frames():
        if index >= len(points):
            yield "beyond the end of the landmarks"
            continue
        height, width, _ = image.shape
        if faces is None or faces.size != (height, width):
            faces = _checked(points, confidence, height, width, settings)
        if fault := faces.faults[index]:
            yield fault
            continue
        number = index if track is None else track.numbers[index]
        yield _cut(f"{number:06}", image, faces, index, settings)


def _followed(frames: Frames, detector: FaceDetector) -> Generator[None, None, Landmarks]:
    """Landmarks of the face that is seen longest, by detection; confidence 0 where it is not."""
    numbers, found = [], []
    for index, image in frames():
        numbers.append(index)
        found.append(detector(_for_networks(image.transpose(2, 0, 1))))
        yield
    return _by_frame(dict(zip(numbers, main_track(found), strict=True)), numbers[-1] + 1)


def _found_in(
    track: Track, frames: Frames, detector: FaceDetector
) -> Generator[None, None, Landmarks]:
    """Landmarks of the faces in a track's boxes, by detection; confidence 0 where there is none."""
    found = dict[int, Detection | None]()
    for index, image in frames():
        left, top, width, height = track.boxes_in(*image.shape[:2])[index].tolist()
        x, y = left + width / 2, top + height / 2
        half = AROUND / 2 * max(width, height)
        x0, y0 = max(0, round(x - half)), max(0, round(y - half))
        part = image[y0 : max(0, round(y + half)), x0 : max(0, round(x + half))]
        faces = detector(_for_networks(part.transpose(2, 0, 1))) if part.size else []
        away = torch.tensor([x - x0, y - y0])
        offsets = [(face.landmarks.mean(0) - away).abs() for face in faces]
        half_box = torch.tensor([width / 2, height / 2])
        near = [(float(d.norm()), i) for i, d in enumerate(offsets) if (d < half_box).all()]
        if near:
            face = faces[min(near)[1]]
            found[index] = Detection(face.landmarks + torch.tensor([x0, y0]), face.score)
        yield
    return _by_frame(found, len(track.numbers))


def _by_frame(faces: dict[int, Detection | None], count: int) -> Landmarks:
    points, confidence = torch.zeros(count, 68, 2), torch.zeros(count, 68)
    for index, face in faces.items():
        if face is not None:
            points[index], confidence[index] = face.landmarks, face.score
    return points, confidence


@dataclass(frozen=True)
class _Faces:
    """Where the faces of a video are cut out, one line for each frame.

    Attributes:
        size: height and width of the video.
        faults: why a frame is left out; "" = it is not.
        matrices: pixels of the video -> pixels of the crop.
        landmarks: x, y in pixels of the crop, confidence.
        beyond: the hull of the landmarks, with its soft edge, reaches over the edge of the video.
    """

    size: tuple[int, int]
    faults: list[str]
    matrices: Float32[np.ndarray, "f 3 3"]
    landmarks: Float32[np.ndarray, "f 68 3"]
    beyond: list[bool]


def _checked(
    points: Float[Tensor, "f 68 2"],
    confidence: Float[Tensor, "f 68"],
    height: int,
    width: int,
    settings: Settings,
) -> _Faces:
    """All frames at once."""
    seen = confidence > 0
    finite = points.isfinite().all(-1)
    inside = ((points >= 0) & (points <= points.new_tensor([width, height]))).all(-1) & seen
    faults = np.full(len(points), "", object)

    def leave_out(reason: str, bad: Bool[Tensor, " f"]) -> None:
        faults[bad.numpy() & (faults == "")] = reason

    leave_out("no face", ~seen.any(-1))
    leave_out("landmarks are not finite", ~(finite | ~seen).all(-1))
    leave_out("landmarks are outside the image", inside.sum(-1) < INSIDE * seen.sum(-1))
    far = points.new_tensor(torch.inf)
    low = points.where(seen[..., None], far).amin(1)
    span = (points.where(seen[..., None], -far).amax(1) - low).amax(-1)
    leave_out("landmarks are outside the image", span > LARGEST * max(height, width))
    leave_out("confidence is too low", confidence.mean(-1) < settings.min_confidence)
    matrices = torch.full((len(points), 3, 3), torch.nan)
    good = torch.from_numpy(faults == "")
    matrices[good] = _crop_matrices(points[good], confidence[good], settings)
    scale = matrices[:, 0, 0]
    leave_out("too few landmarks, or all in one place", scale.isnan())
    leave_out("face is too small", settings.size / scale < settings.min_crop_px)
    middle = points.where(seen[..., None], 0).sum(1) / seen.sum(1, keepdim=True)
    landmarks = transform_points(matrices, points.where(finite[..., None], middle[:, None]))
    hull = outline(landmarks, confidence)
    start = matrices[:, :2, 2]  # of the video, in the crop
    end = start + scale[:, None] * points.new_tensor([width, height])
    over = (start > 0) & (hull.amin(1) - 1 < start)
    over |= (end < settings.size) & (hull.amax(1) + 1 > end)
    landmarks = torch.cat([landmarks, confidence[..., None]], -1)
    return _Faces(
        (height, width),
        faults.tolist(),
        matrices.numpy(),
        landmarks.numpy(),
        over.any(-1).tolist(),
    )


def _crop_matrices(
    points: Float[Tensor, "f 68 2"], confidence: Float[Tensor, "f 68"], settings: Settings
) -> Float[Tensor, "f 3 3"]:
    """Of ``face_crop``, which refuses all where one is bad; NaN for the bad ones."""
    try:
        return face_crop(points, confidence, settings.size, settings.margin)
    except DataError:
        if len(points) == 1:
            return torch.full((1, 3, 3), torch.nan)
        parts = zip(points.tensor_split(2), confidence.tensor_split(2), strict=True)
        return torch.cat([_crop_matrices(*part, settings) for part in parts])


def _cut(name: str, image: Pixels, faces: _Faces, index: int, settings: Settings) -> StoredFrame:
    crop = np.empty((3, settings.size, settings.size), np.uint8)
    mask = np.empty_like(crop[0])  # where the video is
    cut_out(image, None, faces.matrices[index], crop, mask)
    landmarks = faces.landmarks[index]
    png = None  # the hull of the landmarks
    if settings.mask != "hull" or faces.beyond[index]:
        mask[:] = np.rint(mask * _face(crop, landmarks, settings))
        png = _encoded(mask, ".png", PNG)
    jpeg = _encoded(
        cv2.merge(list(crop[::-1])), ".jpg", [cv2.IMWRITE_JPEG_QUALITY, settings.quality]
    )
    return StoredFrame(name, jpeg, landmarks, png)


def _face(
    crop: UInt8[np.ndarray, "3 size size"],
    landmarks: Float32[np.ndarray, "68 3"],
    settings: Settings,
) -> Float[np.ndarray, "size size"]:
    """How much of each pixel is face, in [0, 1]."""
    if settings.parsing is not None:
        return _parser(settings.parsing)(_for_networks(crop))[0].numpy()
    hull = np.full_like(crop[0], 255)
    keep_hull(hull, landmarks[:, :2], landmarks[:, 2])
    if settings.mask == "skin":
        return hull / 255 * skin_probability(_for_networks(crop))[0].numpy()
    return hull / 255


def _for_networks(image: UInt8[np.ndarray, "3 h w"]) -> Float[Tensor, "3 h w"]:
    return torch.from_numpy(np.ascontiguousarray(image)).float() / 255


def _encoded(pixels: UInt8[np.ndarray, "h w *c"], kind: str, options: list[int]) -> bytes:
    done, content = cv2.imencode(kind, pixels, options)
    assert done
    return content.tobytes()
