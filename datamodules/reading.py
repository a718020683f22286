"""From a clip to its crops: frames chosen, read, checked, cropped, augmented; and to batches.

The way of a frame, in the reading processes: ``ClipReader._load`` reads and checks it,
``ClipReader._cut`` fills its place in the arrays of its clip, ``collate`` puts clips into a batch.
Numbers are handled by numpy, which needs a fifth of torch's time to begin with anything. Images and
masks stay in 8 bits, a quarter of what floats would have to be moved, until the batch is where the
training is: there ``in_floats`` makes a ``FaceBatch`` of it.
"""

import json
import logging
from collections.abc import Sequence
from typing import Any, NamedTuple, no_type_check

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numba import njit
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from core.contracts import FaceBatch
from core.crop import MIN_POINTS, face_crop, five_point_crop
from core.errors import DataError
from core.landmarks import MIRROR
from datamodules.augment import Augmentation, flip_matrix
from datamodules.choice import Choice
from datamodules.clips import (
    FAULTS,
    Clip,
    ClipSource,
    Fault,
    Frame,
    UnusableFrameError,
    frame_counts,
)
from datamodules.cutting import cut_out, inverse
from datamodules.masks import keep_hull
from datamodules.sampler import Draw

log = logging.getLogger(__name__)

PATIENCE = 100  # clips in a row without a usable frame after which reading stops
INSIDE = 0.5  # share of the landmarks that must lie in the image
LARGEST = 4.0  # ours: longer side of the box of the landmarks / that of the image, at most

MIRRORED = np.array(MIRROR)

ByteBatch = dict[str, Any]
"""A ``FaceBatch``, or a clip of one, whose images and masks are 0 ... 255 in 8 bits."""


class Loaded(NamedTuple):
    """A frame that can be used; the crop is not made yet.

    Attributes:
        number: in its clip.
        image: RGB.
        mask: as ``Frame.mask``.
        landmarks: all finite.
        confidence: in [0, 1].
        landmarks_3d: as ``Frame.landmarks_3d``.
        matrix: image pixels -> crop pixels.
    """

    number: int
    image: UInt8[np.ndarray, "h w 3"]
    mask: UInt8[np.ndarray, "h w"] | None
    landmarks: Float[np.ndarray, "68 2"]
    confidence: Float[np.ndarray, "68"]
    landmarks_3d: Float[np.ndarray, "68 3"] | None
    matrix: Float[np.ndarray, "3 3"]


class ClipReader:
    """Clips of one source: frames chosen, read, checked, cropped, augmented.

    What is found to be wrong with a frame is kept in memory that the workers share, so that no bad
    file is read twice.

    Args:
        source: reads the frames.
        clips: the clips.
        frames: v.
        choice: which frames.
        size: side of the crops, pixels.
        margin: side of the crop / longer side of the box of the landmarks.
        min_confidence: landmarks below it count as missing.
        augmentation: of a training; None in evaluation.
        seed: of choice and augmentation.
        cache: bytes of decoded frames to keep, in each process.
        prefix: of the sample ids.
    """

    def __init__(
        self,
        source: ClipSource,
        clips: Sequence[Clip],
        frames: int,
        choice: Choice,
        size: int,
        margin: float,
        min_confidence: float,
        augmentation: Augmentation | None,
        seed: int,
        cache: int = 0,
        prefix: str = "",
    ) -> None:
        self.source, self.clips = source, clips
        self.frames, self.choice = frames, choice
        self.size, self.margin, self.min_confidence = size, margin, min_confidence
        self.augmentation, self.seed, self.prefix = augmentation, seed, prefix
        self.first = np.concatenate([[0], np.cumsum(frame_counts(clips))])
        self.faults = torch.zeros(int(self.first[-1]), dtype=torch.uint8).share_memory_()
        self._bits = np.random.Philox(key=seed)
        self._state = self._bits.state
        self._room = cache
        self._kept: dict[int, Loaded] = {}  # by place in the whole set

    def __len__(self) -> int:
        return len(self.clips)

    @property
    def skipped(self) -> dict[str, int]:
        """How many different frames were found unusable, by kind."""
        counts = torch.bincount(self.faults, minlength=len(FAULTS) + 1).tolist()
        return {text: counts[fault] for fault, text in FAULTS.items() if counts[fault]}

    def clip(self, draw: Draw) -> ByteBatch | None:
        """A clip without the axis b, or None if it has no usable frame."""
        return self._first_usable(draw, 1)

    def some_clip(self, draw: Draw) -> ByteBatch:
        """A clip without the axis b, or the next one that has a usable frame.

        Raises:
            DataError: ``PATIENCE`` clips in a row have none.
        """
        if clip := self._first_usable(draw, PATIENCE):
            return clip
        raise DataError(
            f"{self.source}: no usable frame in {min(PATIENCE, len(self.clips))} clips, the first "
            f"of them '{self.clips[draw.clip].name}'; unusable so far: {json.dumps(self.skipped)}. "
            "The warnings above name a file of each kind."
        )

    def _first_usable(self, draw: Draw, patience: int) -> ByteBatch | None:
        random = self._random(draw)
        for number in range(min(patience, len(self.clips))):
            index = (draw.clip + number) % len(self.clips)
            clip = self.clips[index]
            if frames := self._chosen(clip, int(self.first[index]), random):
                return self._cut(clip, frames, random)
        return None

    def _random(self, draw: Draw) -> np.random.Generator:
        """Random numbers of their own for each draw: one generator, elsewhere in its sequence."""
        self._state["state"]["counter"][:] = 0, draw.turn, draw.clip, draw.part
        self._bits.state = self._state
        return np.random.Generator(self._bits)

    def _chosen(self, clip: Clip, first: int, random: np.random.Generator) -> list[Loaded]:
        """Usable frames: as many as wanted, some repeated if there are fewer, or none.

        Args:
            clip: to choose from.
            first: place of its first frame in the whole set.
            random: of the draw.
        """
        best: list[Loaded] = []
        tried: dict[int, Loaded | None] = {}
        for places in self.choice.attempts(clip, self.frames, random):
            chosen: dict[int, Loaded] = {}
            for candidates in places:
                for frame in map(int, candidates):
                    if frame in chosen:
                        continue
                    if frame not in tried:
                        tried[frame] = self._load(clip, frame, first + frame)
                    if loaded := tried[frame]:
                        chosen[frame] = loaded
                        break
            best = max(best, list(chosen.values()), key=len)
            if len(best) == len(places):
                break
        if not best or not self.choice.repeats:
            return best
        return [best[place % len(best)] for place in range(self.frames)]

    def _load(self, clip: Clip, frame: int, place: int) -> Loaded | None:
        """The frame, at its place in the whole set, read and checked, or None if it is unusable."""
        if place in self._kept:
            return self._kept[place]
        if self.faults[place]:
            return None
        try:
            found = self.source.read(*clip.at(frame))
            loaded = self._checked(frame, found, self.sample_id(clip, frame))
        except UnusableFrameError as error:
            if not (self.faults == error.fault).any():
                log.warning("frame left out, %s: %s", FAULTS[error.fault], error)
            self.faults[place] = int(error.fault)
            return None
        size = loaded.image.nbytes + (0 if loaded.mask is None else loaded.mask.nbytes)
        if size <= self._room:
            self._room -= size
            self._kept[place] = loaded
        return loaded

    def _checked(self, number: int, frame: Frame, name: str) -> Loaded:
        """The frame with missing landmarks made harmless, and its crop matrix."""
        height, width = frame.image.shape[-2:]
        landmarks, confidence = frame.landmarks.numpy(), frame.confidence.numpy()
        confidence, seen = _clean(confidence, self.min_confidence)
        if seen < 0:
            raise UnusableFrameError(Fault.NOT_FINITE, f"{name}: NaN as a landmark's confidence")
        five = None if seen else frame.five_points
        points = landmarks if seen == 68 else landmarks[confidence > 0]
        points = points if five is None else five.numpy()
        box = face_box(points, width, height, f"{name}: ")
        if frame.landmarks_3d is not None and not frame.landmarks_3d.isfinite().all():
            raise UnusableFrameError(Fault.NOT_FINITE, f"{name}: NaN or infinite 3D landmarks")
        if frame.mask is not None and frame.mask.shape[-2:] != (height, width):
            got = tuple(frame.mask.shape)
            raise UnusableFrameError(
                Fault.MASK_SIZE, f"{name}: mask {got}, wanted (1, {height}, {width})"
            )
        try:
            if five is not None:
                matrix = five_point_crop(five, self.size, self.margin).double().numpy()
            else:
                matrix = _crop_matrix(points, box, self.size, self.margin)
        except DataError as error:
            raise UnusableFrameError(Fault.NO_FACE, f"{name}: {error}") from error
        if seen < 68:
            known = np.isfinite(landmarks).all(-1, keepdims=True)
            landmarks = np.where(known, landmarks, points.mean(0))
        return Loaded(
            number,
            frame.image.permute(1, 2, 0).numpy(),
            None if frame.mask is None else frame.mask[0].numpy(),
            landmarks,
            confidence,
            None if frame.landmarks_3d is None else frame.landmarks_3d.numpy(),
            matrix,
        )

    def _cut(self, clip: Clip, frames: list[Loaded], random: np.random.Generator) -> ByteBatch:
        """The crops of a clip, without the axis b."""
        change, size, count = self.augmentation, self.size, len(frames)
        flips = change is not None and random.random() < change.flip
        images = np.empty((count, 3, size, size), np.uint8)
        masks = np.empty((count, 1, size, size), np.uint8)
        landmarks = np.empty((count, 68, 2), np.float32)
        confidence = np.empty((count, 68), np.float32)
        matrices = np.empty((count, 3, 3))
        inverses = np.empty((count, 3, 3), np.float32)
        for place, frame in enumerate(frames):
            matrix = frame.matrix
            if change is not None:
                matrix = change.jitter(random, size) @ matrix
            if flips:
                matrix = flip_matrix(size) @ matrix
            matrices[place], inverses[place] = matrix, inverse(matrix)
            landmarks[place] = moved(frame.landmarks, matrix, flips)
            confidence[place] = frame.confidence[MIRRORED] if flips else frame.confidence
            cut_out(frame.image, frame.mask, matrix, images[place], masks[place, 0])
            if frame.mask is None and confidence[place].any():
                keep_hull(masks[place, 0], landmarks[place], confidence[place])
        if change is not None:
            change.recolour(images, random)
            change.cover_some(images, masks, random)
        batch: ByteBatch = {
            "images": torch.from_numpy(images),
            "landmarks": torch.from_numpy(landmarks),
            "landmark_confidence": torch.from_numpy(confidence),
            "masks": torch.from_numpy(masks),
            "sample_ids": [self.sample_id(clip, frame.number) for frame in frames],
            "crop_to_image": torch.from_numpy(inverses),
        }
        known = [frame.landmarks_3d is not None for frame in frames]
        if any(known):
            points = np.zeros((count, 68, 3), np.float32)
            for place, frame in enumerate(frames):
                if frame.landmarks_3d is not None:
                    points[place] = moved(frame.landmarks_3d, matrices[place], flips)
            batch["landmarks_3d"] = torch.from_numpy(points)
            batch["has_landmarks_3d"] = torch.tensor(known)
        if self.choice.multi_view:
            different = len({frame.number for frame in frames})
            batch["multi_view"] = torch.tensor(different == self.frames)
        return batch

    def sample_id(self, clip: Clip, index: int) -> str:
        """The name of a frame, unique in its dataset."""
        clip, index = clip.at(index)
        return f"{self.prefix}{clip.name}/{clip.frames[index].decode().rpartition('.')[0]}"


class ClipDataset(Dataset):
    """The clips of one reader, or of several, by their ``Draw``.

    Args:
        readers: ``Draw.part`` is the number of one.
    """

    def __init__(self, readers: Sequence[ClipReader]) -> None:
        self.readers = readers

    def __len__(self) -> int:
        return sum(map(len, self.readers))

    def __getitem__(self, draw: Draw) -> ByteBatch:
        return self.__getitems__([draw])[0]

    def __getitems__(self, draws: list[Draw]) -> list[ByteBatch]:
        """The clips of a batch; one without a usable frame is replaced, or not there in evaluation.

        A batch of evaluation in which nothing is left is filled with a clip, as ``repeated``.

        Raises:
            DataError: ``PATIENCE`` clips in a row have no usable frame.
        """
        readers = [self.readers[draw.part] for draw in draws]
        pairs = list(zip(readers, draws, strict=True))
        if readers[0].augmentation is not None:
            return [reader.some_clip(draw) for reader, draw in pairs]
        clips = [clip for reader, draw in pairs if (clip := reader.clip(draw))]
        if clips and not draws[0].repeated:
            return clips
        clip = readers[0].some_clip(draws[0])
        clip["repeated"] = True
        return [clip]


def collate(clips: list[ByteBatch]) -> ByteBatch:
    """Clips, without the leading axis b, to a batch.

    What only some clips have is filled in with zeros for the others; their flags are False.

    Raises:
        DataError: the clips have different numbers of frames.
    """
    columns, other = aligned(clips)
    return other | {key: default_collate(values) for key, values in columns.items()}


def aligned(clips: list[ByteBatch]) -> tuple[dict[str, list[Tensor]], dict[str, Any]]:
    """What ``collate`` stacks, by name, a tensor for each clip; and the rest of the batch.

    Raises:
        DataError: as there.
    """
    lengths = sorted({len(clip["sample_ids"]) for clip in clips})
    if len(lengths) > 1:
        raise DataError(f"clips of {lengths} frames in one batch; wanted equally many")
    present = {key: value for clip in clips for key, value in clip.items()}
    columns = {
        key: [c[key] if key in c else torch.zeros_like(value) for c in clips]
        for key, value in present.items()
        if isinstance(value, Tensor)
    }
    other: dict[str, Any] = {"sample_ids": [name for clip in clips for name in clip["sample_ids"]]}
    if "repeated" in present:
        other["repeated"] = True
    return columns, other


def in_floats(batch: ByteBatch) -> FaceBatch:
    """The batch with images and masks in [0, 1]; all else is the same."""
    images, masks = (batch[key].float().div_(255) for key in ("images", "masks"))
    return FaceBatch(**(batch | {"images": images, "masks": masks}))  # type: ignore[typeddict-item]


@njit(nogil=True, cache=True)
@no_type_check
def _clean(confidence, least):  # noqa: ANN001, ANN202
    """Confidences, 0 below the least, at most 1; how many are not 0, or -1 if one is NaN."""
    clean, seen = np.zeros_like(confidence), 0
    for i, value in enumerate(confidence):
        if not np.isfinite(value):
            return clean, -1
        if value > 0 and value >= least:
            clean[i] = min(value, 1)
            seen += 1
    return clean, seen


@njit(nogil=True, cache=True)
@no_type_check
def _extent(points, width, height):  # noqa: ANN001, ANN202
    """How many points are finite, and in the image; their box: left, top, right, bottom."""
    finite, inside = 0, 0
    left, top, right, bottom = np.inf, np.inf, -np.inf, -np.inf
    for x, y in points:
        if np.isfinite(x) and np.isfinite(y):
            finite += 1
            inside += (0 <= x <= width) and (0 <= y <= height)
            left, top, right, bottom = min(left, x), min(top, y), max(right, x), max(bottom, y)
    return finite, inside, (left, top, right, bottom)


def face_box(
    points: Float[np.ndarray, "k 2"], width: int, height: int, where: str = ""
) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of a face's landmarks, if they can be used.

    Args:
        points: pixels, those that are not missing.
        width: of the image.
        height: of the image.
        where: they are, for messages.

    Raises:
        UnusableFrameError: one is not finite, too few are in the image, or they are too far apart.
    """
    count = len(points)
    finite, inside, box = _extent(points, width, height)
    if finite < count:
        raise UnusableFrameError(
            Fault.NOT_FINITE,
            f"{where}{count - finite} of {count} landmarks are NaN or infinite",
        )
    if inside < INSIDE * count:
        raise UnusableFrameError(
            Fault.OUTSIDE,
            f"{where}only {inside} of {count} landmarks are in the image of {width} x {height} "
            "pixels",
        )
    span = max(box[2] - box[0], box[3] - box[1])
    if span > LARGEST * max(width, height):  # one far point would make a crop of it, endlessly
        raise UnusableFrameError(
            Fault.OUTSIDE,
            f"{where}landmarks {span:.3g} pixels apart in an image of {width} x {height}",
        )
    return box


def _crop_matrix(
    points: np.ndarray, box: tuple[float, ...], size: int, margin: float
) -> np.ndarray:
    """``core.crop.face_crop`` of points that are all seen, by their box: in a tenth of its time.

    Raises:
        DataError: as there.
    """
    left, top, right, bottom = box
    side = margin * max(right - left, bottom - top)
    if len(points) < MIN_POINTS or side < 1:
        face_crop(torch.from_numpy(points), torch.ones(len(points)), size, margin)  # raises
    scale = size / side
    x, y = (size / 2 - scale * (low + high) / 2 for low, high in ((left, right), (top, bottom)))
    return np.array([[scale, 0, x], [0, scale, y], [0, 0, 1]])


def moved(
    points: Float[np.ndarray, "68 d"], matrix: Float[np.ndarray, "3 3"], flipped: bool
) -> Float[np.ndarray, "68 d"]:
    """Landmarks moved by a similarity: x and y as the pixels, z, if any, in the crop's pixels.

    Args:
        points: x, y in pixels of the image, z in such pixels towards the camera.
        matrix: image pixels -> crop pixels.
        flipped: the matrix exchanges left and right, so the landmarks change their names.
    """
    found = points[:, :2] @ matrix[:2, :2].T + matrix[:2, 2]
    if points.shape[1] == 3:
        scale = abs(np.linalg.det(matrix[:2, :2])) ** 0.5
        found = np.concatenate([found, scale * points[:, 2:]], 1)
    return found[MIRRORED] if flipped else found
