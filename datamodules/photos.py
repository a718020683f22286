"""Ordinary photos, or the frames of a video, for prediction."""

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps, UnidentifiedImageError
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from core.contracts import FaceBatch
from core.crop import face_crop, five_point_crop, transform_points, warp
from core.detect import FaceDetector
from core.errors import AssetNotFoundError, DataError

log = logging.getLogger(__name__)

IMAGES = {".jpg", ".jpeg", ".png", ".webp"}
VIDEOS = {".mp4", ".avi", ".mov", ".mkv", ".webm", ".mjpg", ".mjpeg"}


class Photos(LightningDataModule):
    """Faces in a folder of photos, one photo, or a video file.

    Landmarks are taken from, in this order:

    * for a photo ``<name>.jpg``: ``<name>.txt`` or ``<name>.npy`` beside it, or in ``detections/``
      or ``landmarks/``
      beside it. Text: a line ``x y`` a point; array: (k, 2) or more columns. k = 5 (image-left eye,
      image-right eye, nose tip, image-left and image-right mouth corner) or 68 (iBUG order);
    * for a video: ``landmarks``, or ``landmarks68.npz`` or ``<name>.npz`` beside it, with
      ``landmarks`` (frames, 5 or 68, 2 or more columns) and optionally ``valid`` (frames,);
    * insightface's detector, which may find several faces in an image.

    Coordinates are pixels of the image, y down. What cannot be read, or shows no face, is skipped,
    counted and logged.

    Args:
        path: a folder, an image or a video.
        landmarks: the landmark file of a video or of one photo, when it has another name.
        image_size: of the crops, pixels.
        crop_margin: side of the crop in units of the landmarks' box; that of the training.
        batch_size: faces at a time.
        every: take only every so many-th frame of a video.
        detector: insightface's model pack, a name or a folder.
    """

    def __init__(
        self,
        path: Path,
        landmarks: Path | None = None,
        image_size: int = 256,
        crop_margin: float = 1.6,
        batch_size: int = 8,
        every: int = 1,
        detector: str = "buffalo_l",
    ) -> None:
        super().__init__()
        self.path, self.landmarks = Path(path), landmarks
        self.image_size, self.crop_margin = image_size, crop_margin
        self.batch_size, self.every, self.detector = batch_size, every, detector

    def setup(self, stage: str) -> None:
        """Look at what there is to read.

        Raises:
            AssetNotFoundError: the path does not exist.
            DataError: it holds no image and is no video.
        """
        if not self.path.exists():
            raise AssetNotFoundError(
                "photos",
                f"'{self.path}'",
                "Give a folder of photos, a photo or a video: --data.path.",
            )
        if self.path.is_dir():
            self.files = sorted(f for f in self.path.iterdir() if f.suffix.lower() in IMAGES)
            if not self.files:
                found = sorted({f.suffix or f.name for f in self.path.iterdir()})[:8]
                raise DataError(
                    f"no photo in '{self.path}': found {found}, wanted {sorted(IMAGES)}"
                )
        elif self.path.suffix.lower() in IMAGES | VIDEOS:
            self.files = [self.path]
        else:
            wanted = sorted(IMAGES | VIDEOS)
            raise DataError(f"'{self.path}' is neither a photo nor a video: wanted {wanted}")

    def predict_dataloader(self) -> DataLoader:
        """Batches of at most ``batch_size`` faces, v = 1."""
        return DataLoader(dataset=_Faces(self), batch_size=None)


class _Faces(IterableDataset):
    """Yields a FaceBatch at a time."""

    def __init__(self, photos: Photos) -> None:
        self.photos = photos

    def __iter__(self) -> Iterator[FaceBatch]:
        photos = self.photos
        reader = _Reader(photos)
        faces: list[tuple[str, Tensor, Tensor]] = []
        count = 0
        for name, image, points in reader:
            if not torch.isfinite(points).all() or points.shape[-2] not in (5, 68):
                reader.skip(
                    name, f"landmarks are {tuple(points.shape)}, wanted finite (5, 2) or (68, 2)"
                )
                continue
            faces.append((name, image, points))
            if len(faces) == photos.batch_size:
                yield self.batch(faces)
                count, faces = count + len(faces), []
        if faces:
            yield self.batch(faces)
            count += len(faces)
        if reader.skipped:
            log.warning(
                "%d of %d skipped in '%s'", reader.skipped, reader.skipped + count, photos.path
            )
        if not count:
            raise DataError(
                f"no usable face in '{photos.path}': {reader.skipped} skipped, see above"
            )

    def batch(self, faces: list[tuple[str, Tensor, Tensor]]) -> FaceBatch:
        size, margin = self.photos.image_size, self.photos.crop_margin
        crops, matrices, landmarks, confidences = [], [], [], []
        for _, image, points in faces:
            known = torch.ones(len(points))
            if len(points) == 5:
                matrix = five_point_crop(points, size, margin)
                placed, confidence = torch.full((68, 2), size / 2), torch.zeros(68)
            else:
                matrix = face_crop(points, known, size, margin)
                placed, confidence = transform_points(matrix, points), known
            crops.append(warp(image, matrix, size))
            matrices.append(matrix)
            landmarks.append(placed)
            confidences.append(confidence)
        images = torch.stack(crops)[:, None]
        return FaceBatch(
            images=images,
            landmarks=torch.stack(landmarks)[:, None],
            landmark_confidence=torch.stack(confidences)[:, None],
            masks=torch.ones_like(images[:, :, :1]),
            sample_ids=[name for name, _, _ in faces],
            crop_to_image=torch.linalg.inv(torch.stack(matrices))[:, None],
            originals=[image for _, image, _ in faces],
        )


class _Reader:
    """Iterates over (name, image, landmarks) of everything readable; counts what is not."""

    def __init__(self, photos: Photos) -> None:
        self.photos, self.skipped = photos, 0
        self._detector: FaceDetector | None = None

    def skip(self, name: str, reason: str) -> None:
        self.skipped += 1
        log.warning("skipped %s: %s", name, reason)

    def __iter__(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        for file in self.photos.files:
            if file.suffix.lower() in VIDEOS:
                yield from self.video(file)
            else:
                yield from self.photo(file)

    def photo(self, file: Path) -> Iterator[tuple[str, Tensor, Tensor]]:
        try:
            with Image.open(file) as picture:
                upright = np.array(ImageOps.exif_transpose(picture).convert("RGB"))
        except (OSError, UnidentifiedImageError, ValueError) as error:
            return self.skip(file.name, f"not a readable image ({error})")
        image = torch.from_numpy(upright).permute(2, 0, 1) / 255
        given = self.photos.landmarks if self.photos.path.is_file() else None
        known = given or _beside(file)
        if known is None:
            yield from self.detected(file.stem, image)
            return None
        try:
            points = _read_points(known)
        except (ValueError, OSError) as error:
            return self.skip(file.name, f"'{known}' does not hold landmarks ({error})")
        yield file.stem, image, points
        return None

    def video(self, file: Path) -> Iterator[tuple[str, Tensor, Tensor]]:
        import av

        beside = (file.with_suffix(".npz"), file.with_name("landmarks68.npz"))
        known = self.photos.landmarks or next((f for f in beside if f.is_file()), None)
        points = valid = None
        if known is not None:
            with np.load(known, allow_pickle=False) as arrays:
                if "landmarks" not in arrays:
                    raise DataError(
                        f"'{known}' has {arrays.files}, wanted 'landmarks' (frames, 5 or 68, 2)"
                    )
                points = torch.from_numpy(arrays["landmarks"]).float()[..., :2]
                valid = arrays.get("valid")
        try:
            with av.open(str(file)) as container:
                for index, frame in enumerate(container.decode(video=0)):
                    if index % self.photos.every:
                        continue
                    name = f"{file.stem}_{index:06d}"
                    image = (
                        torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1) / 255
                    )
                    if points is None:
                        yield from self.detected(name, image)
                    elif index >= len(points) or (valid is not None and not valid[index]):
                        self.skip(name, f"no landmarks in '{known}'")
                    else:
                        yield name, image, points[index]
        except av.error.FFmpegError as error:
            self.skip(file.name, f"video cannot be decoded ({error})")

    def detected(self, name: str, image: Tensor) -> Iterator[tuple[str, Tensor, Tensor]]:
        self._detector = self._detector or FaceDetector(self.photos.detector)
        faces = self._detector(image)
        if not faces:
            self.skip(name, "no face found")
        for index, face in enumerate(faces):
            yield (name if index == 0 else f"{name}_face{index + 1}"), image, face.landmarks


def _beside(file: Path) -> Path | None:
    folders = (file.parent, file.parent / "detections", file.parent / "landmarks")
    names = (folder / (file.stem + suffix) for folder in folders for suffix in (".txt", ".npy"))
    return next((name for name in names if name.is_file()), None)


def _read_points(file: Path) -> Float[Tensor, "k 2"]:
    if file.suffix == ".npy":
        array = np.load(file, allow_pickle=False)
    else:
        array = np.loadtxt(file, ndmin=2)
    if array.ndim != 2 or array.shape[1] < 2:
        raise ValueError(f"shape {array.shape}, wanted (5 or 68, 2)")
    return torch.from_numpy(array[:, :2]).float()
