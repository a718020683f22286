"""Ordinary photos, or the frames of a video, for prediction."""

import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path

import torch
from jaxtyping import Float
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from core.contracts import FaceBatch
from core.crop import face_crop, five_point_crop, transform_points, warp
from core.detect import FaceDetector
from core.errors import AssetNotFoundError, DataError
from core.image_files import read_image
from datamodules.clips import UnusableFrameError
from datamodules.landmark_files import read_landmarks, read_video_landmarks
from datamodules.listing import closed, is_utf8
from datamodules.reading import face_box

log = logging.getLogger(__name__)

IMAGES = {".jpg", ".jpeg", ".png", ".webp"}
VIDEOS = {".mp4", ".avi", ".mov", ".mkv", ".webm", ".mjpg", ".mjpeg"}
BESIDE_PHOTO = "<name>.txt or <name>.npy beside it, or in detections/ or landmarks/ beside it"
BESIDE = "detections", "landmarks"  # folders
BESIDE_VIDEO = "<name>.npz or landmarks68.npz beside it"


class Photos(LightningDataModule):
    """Faces in a folder of photos, one photo, or a video file.

    Landmarks are taken from, in this order:

    * for a photo: ``landmarks``, or ``<name>.txt`` or ``<name>.npy`` beside it, or in
      ``detections/`` or ``landmarks/`` beside it;
    * for a video: ``landmarks``, or ``<name>.npz`` or ``landmarks68.npz`` beside it;
    * insightface's detector, which may find several faces in an image.

    A video is decoded by this very process, frame by frame: one that makes the decoder crash ends
    the prediction there, and what came before is written already. A process of its own, as the
    preparation of shards has it, would take seconds to start and a GB, for the rest of one video.

    ``datamodules.landmark_files`` says what these files hold. What cannot be read, or shows no
    face, is skipped, counted and logged. Where the detector is needed but not installed, the photos
    with landmarks are done first, then an error names the others.

    A face's sample id is its file's name without suffix, or with it where two would be the same;
    ``_<frame>`` follows for a video's, ``_face<k>`` for the second and further face of an image.

    With ``folders_are_people`` each folder in ``path`` holds photos of one person, who is a batch,
    "1 v": for methods that see all images of somebody together, such as Deng's C-Net. Without
    folders in it ``path`` itself is a person's. Of each photo the given or the largest face is
    taken; the sample ids are "<folder>/<name>".

    Args:
        path: a folder, an image or a video.
        landmarks: the landmark file of a video or of one photo, when it has another name.
        image_size: of the crops, pixels.
        crop_margin: side of the crop in units of the landmarks' box; that of the training.
        batch_size: faces at a time.
        folders_are_people: each folder shows one person; ``batch_size`` does not count then.
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
        folders_are_people: bool = False,
        every: int = 1,
        detector: str = "buffalo_l",
    ) -> None:
        super().__init__()
        self.path, self.landmarks = Path(path), landmarks
        self.image_size, self.crop_margin = image_size, crop_margin
        self.batch_size, self.every, self.detector = batch_size, every, detector
        self.folders_are_people = folders_are_people

    def setup(self, stage: str) -> None:
        """Look at what there is to read, and load the detector if anything needs it.

        Raises:
            AssetNotFoundError: the path or the landmark file does not exist, or nothing has
                landmarks and the detector is not installed.
            DataError: the path holds no image and is no video, or is a folder although a landmark
                file is given.
        """
        self.sources = self._sources()
        lacking = [source.file.name for source in self.sources if source.landmarks is None]
        self.loaded_detector: FaceDetector | None = None
        self._without: AssetNotFoundError | None = None
        if not lacking:
            return
        try:
            self.loaded_detector = FaceDetector(self.detector)
        except AssetNotFoundError as error:
            named = ", ".join(lacking[:8]) + ", ..." * (len(lacking) > 8)
            self._without = AssetNotFoundError(
                f"landmarks of {len(lacking)} of {len(self.sources)} files ({named})",
                BESIDE_VIDEO if self.path.suffix.lower() in VIDEOS else BESIDE_PHOTO,
                f"Place them there, or a detector has to find the faces: {error}",
            )
            if len(lacking) == len(self.sources):
                raise self._without from error
            log.warning(
                "left out, since they have no landmarks and no detector is there: %s", named
            )
            self.sources = [source for source in self.sources if source.landmarks]

    def teardown(self, stage: str) -> None:
        """What could not be done for want of a detector is an error, now that the rest is done.

        Raises:
            AssetNotFoundError: names the photos.
        """
        if self._without:
            raise self._without

    def predict_dataloader(self) -> DataLoader:
        """Batches of at most ``batch_size`` faces, v = 1, or of a person's faces, b = 1."""
        return DataLoader(dataset=_Faces(self), batch_size=None)

    def _sources(self) -> list["_Source"]:
        if not _exists(self.path):
            raise AssetNotFoundError(
                "photos",
                f"'{self.path}'",
                "Give a folder of photos, a photo or a video: --data.path.",
            )
        if self.landmarks and not (_exists(self.landmarks) and self.landmarks.is_file()):
            raise AssetNotFoundError(
                "landmarks", f"'{self.landmarks}'", "Give a file: --data.landmarks."
            )
        if self.path.is_dir():
            if why := closed(self.path):
                raise DataError(f"'{self.path}' {why}")
            if self.landmarks:
                raise DataError(
                    f"one file of landmarks, '{self.landmarks}', for the folder '{self.path}': "
                    f"leave --data.landmarks out; each photo has its own: {BESIDE_PHOTO}"
                )
            if self.folders_are_people:
                return self._people()
            return [_Source(file, name, _beside(file)) for file, name in _photos_in(self.path)]
        if self.folders_are_people:
            raise DataError(f"'{self.path}' is no folder of people's photos")
        if self.path.suffix.lower() not in IMAGES | VIDEOS:
            wanted = sorted(IMAGES | VIDEOS)
            raise DataError(f"'{self.path}' is neither a photo nor a video: wanted {wanted}")
        (name,) = _unique_names([self.path])
        return [_Source(self.path, name, self.landmarks or _beside(self.path))]

    def _people(self) -> list["_Source"]:
        """The photos of each folder that has some."""
        inside = _in_utf8(
            self.path, (p for p in self.path.iterdir() if p.is_dir() and p.name not in BESIDE)
        )
        for folder in inside:
            if why := closed(folder):
                log.warning("'%s' left out: %s", folder, why)
        inside = [folder for folder in inside if not closed(folder)]
        folders = [folder for folder in inside if any(map(_is_photo, folder.iterdir()))]
        return [
            _Source(file, f"{folder.name}/{name}", _beside(file), folder.name)
            for folder in folders or [self.path.resolve()]
            for file, name in _photos_in(folder)
        ]


@dataclass(frozen=True)
class _Source:
    """A photo or a video, the name of its faces, its landmark file and whose folder it is in."""

    file: Path
    name: str
    landmarks: Path | None
    person: str = ""


@dataclass(frozen=True)
class _Face:
    """A face that can be cropped; landmarks are 5 or 68, finite, pixels of the image."""

    name: str
    image: Float[Tensor, "3 h w"]
    landmarks: Float[Tensor, "k 2"]
    confidence: Float[Tensor, " k"]
    matrix: Float[Tensor, "3 3"]


class _Faces(IterableDataset):
    """Yields a FaceBatch at a time."""

    def __init__(self, photos: Photos) -> None:
        self.photos = photos

    def __iter__(self) -> Iterator[FaceBatch]:
        photos = self.photos
        reader = _Reader(photos)
        count = 0
        for faces in self._groups(reader):
            batch = _batch(faces, photos.image_size)
            yield _as_one_clip(batch) if photos.folders_are_people else batch
            count += len(faces)
        if reader.skipped:
            log.warning(
                "%d of %d skipped in '%s'", reader.skipped, reader.skipped + count, photos.path
            )
        if not count:
            raise DataError(
                f"no usable face in '{photos.path}': {reader.skipped} skipped, see above"
            )

    def _groups(self, reader: "_Reader") -> Iterator[list[_Face]]:
        """The faces of a batch."""
        if self.photos.folders_are_people:
            for _, sources in groupby(self.photos.sources, lambda source: source.person):
                faces = [face for source in sources for face in islice(reader.photo(source), 1)]
                if faces:
                    yield faces
        else:
            found = iter(reader)
            while group := list(islice(found, self.photos.batch_size)):
                yield group


def _batch(faces: list[_Face], size: int) -> FaceBatch:
    crops, landmarks, confidences = [], [], []
    for face in faces:
        crops.append(warp(face.image, face.matrix, size))
        if len(face.landmarks) == 5:
            landmarks.append(torch.full((68, 2), size / 2))
            confidences.append(torch.zeros(68))
        else:
            landmarks.append(transform_points(face.matrix, face.landmarks))
            confidences.append(face.confidence)
    images = torch.stack(crops)[:, None]
    return FaceBatch(
        images=images,
        landmarks=torch.stack(landmarks)[:, None],
        landmark_confidence=torch.stack(confidences)[:, None],
        masks=torch.ones_like(images[:, :, :1]),
        sample_ids=[face.name for face in faces],
        crop_to_image=torch.linalg.inv(torch.stack([face.matrix for face in faces]))[:, None],
        originals=[face.image for face in faces],
    )


def _as_one_clip(batch: FaceBatch) -> FaceBatch:
    """The batch "n 1" as "1 n"."""
    moved = {k: v.transpose(0, 1) if isinstance(v, Tensor) else v for k, v in batch.items()}
    return FaceBatch(**moved)  # type: ignore[typeddict-item]


class _Reader:
    """Iterates over the faces of everything readable; counts what is not."""

    def __init__(self, photos: Photos) -> None:
        self.photos, self.skipped = photos, 0

    def skip(self, name: str, reason: object) -> None:
        self.skipped += 1
        log.warning("skipped %s: %s", name, reason)

    def __iter__(self) -> Iterator[_Face]:
        for source in self.photos.sources:
            if source.file.suffix.lower() in VIDEOS:
                yield from self.video(source)
            else:
                yield from self.photo(source)

    def photo(self, source: _Source) -> Iterator[_Face]:
        try:
            image = read_image(source.file).float() / 255
            given = read_landmarks(source.landmarks) if source.landmarks else None
        except DataError as error:
            self.skip(source.file.name, error)
            return
        yield from self.faces(source.name, source.file.name, image, given)

    def video(self, source: _Source) -> Iterator[_Face]:
        import av

        known = read_video_landmarks(source.landmarks) if source.landmarks else None
        try:
            with av.open(str(source.file), metadata_errors="ignore") as container:
                for index, frame in enumerate(container.decode(video=0)):
                    if index % self.photos.every:
                        continue
                    name = f"{source.name}_{index:06d}"
                    pixels = torch.from_numpy(frame.to_ndarray(format="rgb24"))
                    given = None
                    if known is not None:
                        points, confidence = known
                        if index >= len(points):
                            self.skip(name, f"'{source.landmarks}' ends at frame {len(points)}")
                            continue
                        if not confidence[index].any():
                            self.skip(name, f"no face in '{source.landmarks}'")
                            continue
                        given = points[index], confidence[index]
                    yield from self.faces(name, name, pixels.permute(2, 0, 1) / 255, given)
        except av.error.FFmpegError as error:
            self.skip(source.file.name, f"video cannot be decoded ({error})")

    def faces(
        self, name: str, origin: str, image: Tensor, given: tuple[Tensor, Tensor] | None
    ) -> Iterator[_Face]:
        """Those of an image: that of the landmarks given for it, or all that are detected."""
        if given is None:
            assert self.photos.loaded_detector is not None
            found = [face.landmarks for face in self.photos.loaded_detector(image)]
            candidates = [(points, torch.ones(len(points))) for points in found]
        else:
            candidates = [given]
        if not candidates:
            self.skip(origin, "no face found")
        for index, (points, confidence) in enumerate(candidates):
            own = name if index == 0 else f"{name}_face{index + 1}"
            try:
                yield self.place(own, image, points, confidence)
            except DataError as error:
                self.skip(origin if index == 0 else own, error)

    def place(self, name: str, image: Tensor, points: Tensor, confidence: Tensor) -> _Face:
        """The face with its crop.

        Raises:
            DataError: the points do not give one.
        """
        size, margin = self.photos.image_size, self.photos.crop_margin
        height, width = image.shape[-2:]
        seen = confidence > 0
        try:
            face_box(points[seen].numpy(), width, height)
        except UnusableFrameError as error:
            raise DataError(str(error)) from error
        if len(points) == 5:
            if not seen.all():
                raise DataError(f"{int((~seen).sum())} of 5 landmarks are missing; all are needed")
            matrix = five_point_crop(points, size, margin)
        else:
            matrix = face_crop(points, confidence, size, margin)
        points = torch.where(points.isfinite().all(-1, keepdim=True), points, points[seen].mean(0))
        return _Face(name, image, points, confidence, matrix)


def _exists(path: Path) -> bool:
    """There is something.

    Raises:
        DataError: nobody can tell.
    """
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:  # among them links in a circle
        raise DataError(f"'{path}' cannot be opened: {error.strerror}") from error
    return True


def _is_photo(path: Path) -> bool:
    return path.suffix.lower() in IMAGES


def _photos_in(folder: Path) -> list[tuple[Path, str]]:
    """The photos and the names of their faces.

    Raises:
        DataError: there is none.
    """
    files = _in_utf8(folder, filter(_is_photo, folder.iterdir()))
    if not files:
        names = sorted({ascii(f.suffix or f.name)[1:-1] for f in folder.iterdir()})[:8]
        raise DataError(f"no photo in '{folder}': found {names}, wanted {sorted(IMAGES)}")
    for beside in (folder / name for name in BESIDE):
        if beside in folder.iterdir() and (why := closed(beside)):
            log.warning("'%s' left out: %s", beside, why)
    return list(zip(files, _unique_names(files), strict=True))


def _in_utf8(folder: Path, paths: Iterable[Path]) -> list[Path]:
    """What is in a folder, sorted, without names that are not UTF-8."""
    found = list(paths)
    kept = sorted(path for path in found if is_utf8(path.name))
    if len(kept) < len(found):
        log.warning("'%s': %d names that are not UTF-8 left out", folder, len(found) - len(kept))
    return kept


def _unique_names(files: list[Path]) -> list[str]:
    """Without suffix where that can be confused neither with another file nor with its faces.

    Case is ignored, since file systems may.
    """
    stems = Counter(file.stem.casefold() for file in files)
    taken = {file.name.casefold() for file in files}

    def clear(stem: str) -> bool:
        owner = re.sub(r"_face\d+$", "", stem)
        others = stems.keys() | taken
        return stems[stem] == 1 and stem not in taken and (owner == stem or owner not in others)

    return [file.stem if clear(file.stem.casefold()) else file.name for file in files]


def _beside(file: Path) -> Path | None:
    """The landmark file that belongs to a photo or a video."""
    if file.suffix.lower() in VIDEOS:
        names = [file.with_suffix(".npz"), file.with_name("landmarks68.npz")]
    else:
        folders = (file.parent, *(file.parent / name for name in BESIDE))
        names = [folder / (file.stem + end) for folder in folders for end in (".txt", ".npy")]
    # os.path, for which nothing is in a closed folder; Path.is_file raises there
    return next((name for name in names if os.path.isfile(name)), None)  # noqa: PTH113
