"""From a clip to its crops: frames chosen, read, checked, cropped, augmented; and to batches."""

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import Dataset

from core.contracts import FaceBatch
from core.crop import face_crop, five_point_crop, transform_points
from core.errors import DataError
from core.landmarks import MIRROR
from datamodules.augment import Augmentation, flip_matrix
from datamodules.choice import Choice
from datamodules.clips import FAULTS, Clip, ClipSource, Fault, Frame, UnusableFrameError
from datamodules.cutting import cut_out
from datamodules.masks import hull_mask
from datamodules.sampler import Draw

log = logging.getLogger(__name__)

PATIENCE = 100  # clips in a row without a usable frame after which reading stops
INSIDE = 0.5  # share of the landmarks that must lie in the image

Loaded = tuple[int, Frame, Tensor]
"""A frame's number in its clip, the frame, and its crop matrix."""


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
        self.first = np.cumsum([0, *(len(clip.frames) for clip in clips)])
        self.faults = torch.zeros(int(self.first[-1]), dtype=torch.uint8).share_memory_()
        self._room = cache
        self._kept: dict[int, Loaded] = {}  # by place in the whole set

    def __len__(self) -> int:
        return len(self.clips)

    @property
    def skipped(self) -> dict[str, int]:
        """How many different frames were found unusable, by kind."""
        counts = torch.bincount(self.faults, minlength=len(FAULTS) + 1).tolist()
        return {text: counts[fault] for fault, text in FAULTS.items() if counts[fault]}

    def clip(self, draw: Draw) -> FaceBatch | None:
        """A clip without the axis b, or None if it has no usable frame."""
        return self._first_usable(draw, 1)

    def some_clip(self, draw: Draw) -> FaceBatch:
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

    def _first_usable(self, draw: Draw, patience: int) -> FaceBatch | None:
        random = np.random.default_rng((self.seed, draw.turn, draw.clip, draw.part))
        for number in range(min(patience, len(self.clips))):
            index = (draw.clip + number) % len(self.clips)
            if frames := self._chosen(index, random):
                return self._cut(self.clips[index], frames, random)
        return None

    def _chosen(self, index: int, random: np.random.Generator) -> list[Loaded]:
        """Usable frames: as many as wanted, some repeated if there are fewer, or none."""
        best: list[Loaded] = []
        tried: dict[int, Loaded | None] = {}
        for places in self.choice.attempts(self.clips[index], self.frames, random):
            chosen: dict[int, Loaded] = {}
            for candidates in places:
                for frame in map(int, candidates):
                    if frame in chosen:
                        continue
                    if frame not in tried:
                        tried[frame] = self._load(index, frame)
                    if loaded := tried[frame]:
                        chosen[frame] = loaded
                        break
            best = max(best, list(chosen.values()), key=len)
            if len(best) == len(places):
                break
        if not best or not self.choice.repeats:
            return best
        return [best[place % len(best)] for place in range(self.frames)]

    def _load(self, index: int, frame: int) -> Loaded | None:
        """The frame and its crop matrix, or None if it is unusable."""
        place = int(self.first[index]) + frame
        if place in self._kept:
            return self._kept[place]
        if self.faults[place]:
            return None
        try:
            clip, own = self.clips[index].at(frame)
            found = self.source.read(clip, own)
            loaded = (frame, *self._check(found, self.sample_id(self.clips[index], frame)))
        except UnusableFrameError as error:
            if not (self.faults == error.fault).any():
                log.warning("frame left out, %s: %s", FAULTS[error.fault], error)
            self.faults[place] = int(error.fault)
            return None
        size = found.image.numel() + (0 if found.mask is None else found.mask.numel())
        if size <= self._room:
            self._room -= size
            self._kept[place] = loaded
        return loaded

    def _check(self, frame: Frame, name: str) -> tuple[Frame, Float[Tensor, "3 3"]]:
        """The frame with missing landmarks made harmless, and its crop matrix."""
        height, width = frame.image.shape[-2:]
        confidence, landmarks = frame.confidence, frame.landmarks
        if not confidence.isfinite().all():
            raise UnusableFrameError(Fault.NOT_FINITE, f"{name}: NaN as a landmark's confidence")
        confidence = confidence.clamp(0, 1)
        confidence = confidence.masked_fill(confidence < self.min_confidence, 0)
        points, seen = landmarks, confidence > 0
        five = None if seen.any() else frame.five_points
        if five is not None:
            points, seen = five, torch.ones(5, dtype=torch.bool)
        finite = points.isfinite().all(-1)
        if (seen & ~finite).any():
            count = int((seen & ~finite).sum())
            raise UnusableFrameError(
                Fault.NOT_FINITE, f"{name}: {count} of {len(points)} landmarks are NaN or infinite"
            )
        inside = ((points >= 0) & (points <= points.new_tensor([width, height]))).all(-1)
        if (inside & seen).sum() < INSIDE * seen.sum():
            raise UnusableFrameError(
                Fault.OUTSIDE,
                f"{name}: only {int((inside & seen).sum())} of {int(seen.sum())} landmarks are in "
                f"the image of {width} x {height} pixels",
            )
        if frame.landmarks_3d is not None and not frame.landmarks_3d.isfinite().all():
            raise UnusableFrameError(Fault.NOT_FINITE, f"{name}: NaN or infinite 3D landmarks")
        if frame.mask is not None and frame.mask.shape[-2:] != (height, width):
            got = tuple(frame.mask.shape)
            raise UnusableFrameError(
                Fault.MASK_SIZE, f"{name}: mask {got}, wanted (1, {height}, {width})"
            )
        try:
            if five is not None:
                matrix = five_point_crop(five, self.size, self.margin)
            else:
                matrix = face_crop(points, confidence, self.size, self.margin)
        except DataError as error:
            raise UnusableFrameError(Fault.NO_FACE, f"{name}: {error}") from error
        known = landmarks.isfinite().all(-1, keepdim=True)
        landmarks = torch.where(known, landmarks, points[seen].mean(0))
        return replace(frame, landmarks=landmarks, confidence=confidence), matrix

    def _cut(self, clip: Clip, frames: list[Loaded], random: np.random.Generator) -> FaceBatch:
        """The crops of a clip, without the axis b."""
        change = self.augmentation
        flips = change is not None and random.random() < change.flip
        matrices, cut = [], []
        for _, frame, matrix in frames:
            if change is not None:
                matrix = change.jitter(random, self.size) @ matrix
            if flips:
                matrix = flip_matrix(self.size) @ matrix
            matrices.append(matrix)
            cut.append(crop(frame, matrix, self.size, flips))
        images, masks, landmarks, confidence = (
            torch.stack(values) for values in zip(*cut, strict=True)
        )
        if change is not None:
            change.recolour(images, random)
            change.cover_some(images, masks, random)
        batch = FaceBatch(
            images=images,
            landmarks=landmarks,
            landmark_confidence=confidence,
            masks=masks,
            sample_ids=[self.sample_id(clip, index) for index, _, _ in frames],
            crop_to_image=torch.linalg.inv(torch.stack(matrices)),
        )
        known = [frame.landmarks_3d for _, frame, _ in frames]
        if any(points is not None for points in known):
            batch["landmarks_3d"] = torch.stack(
                [
                    torch.zeros(68, 3) if points is None else moved_3d(points, matrix, flips)
                    for points, matrix in zip(known, matrices, strict=True)
                ]
            )
            batch["has_landmarks_3d"] = torch.tensor([points is not None for points in known])
        if self.choice.multi_view:
            different = len({index for index, _, _ in frames})
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

    def __getitem__(self, draw: Draw) -> FaceBatch:
        return self.__getitems__([draw])[0]

    def __getitems__(self, draws: list[Draw]) -> list[FaceBatch]:
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


def collate(clips: list[FaceBatch]) -> FaceBatch:
    """Clips, without the leading axis b, to a batch.

    What only some clips have is filled in with zeros for the others; their flags are False.

    Raises:
        DataError: the clips have different numbers of frames.
    """
    lengths = sorted({len(clip["sample_ids"]) for clip in clips})
    if len(lengths) > 1:
        raise DataError(f"clips of {lengths} frames in one batch; wanted equally many")
    present: dict[str, Any] = {key: value for clip in clips for key, value in clip.items()}
    batch: dict[str, Any] = {
        key: torch.stack([c[key] if key in c else torch.zeros_like(value) for c in clips])  # type: ignore[literal-required]
        for key, value in present.items()
        if isinstance(value, Tensor)
    }
    batch["sample_ids"] = [name for clip in clips for name in clip["sample_ids"]]
    if "repeated" in present:
        batch["repeated"] = True
    return FaceBatch(**batch)  # type: ignore[typeddict-item]


def crop(
    frame: Frame, matrix: Float[Tensor, "3 3"], size: int, flipped: bool
) -> tuple[
    Float[Tensor, "3 size size"],
    Float[Tensor, "1 size size"],
    Float[Tensor, "68 2"],
    Float[Tensor, "68"],
]:
    """Image, mask, landmarks and their confidence, moved by a matrix.

    Args:
        frame: as read.
        matrix: image pixels -> crop pixels.
        size: side of the crop, pixels.
        flipped: the matrix exchanges left and right, so the landmarks change their names.
    """
    image = frame.image
    ones = torch.full_like(image[:1], 255)
    channels = torch.cat([image, ones if frame.mask is None else frame.mask])
    values = cut_out(channels, matrix, size)
    landmarks, confidence = transform_points(matrix, frame.landmarks), frame.confidence
    if flipped:
        landmarks, confidence = landmarks[list(MIRROR)], confidence[list(MIRROR)]
    mask = values[3:]
    if frame.mask is None and confidence.any():
        mask = mask * hull_mask(landmarks, confidence, size)  # where the image is, too
    return values[:3], mask, landmarks, confidence


def moved_3d(
    points: Float[Tensor, "68 3"], matrix: Float[Tensor, "3 3"], flipped: bool
) -> Float[Tensor, "68 3"]:
    """3D landmarks moved by a similarity: x and y as the pixels, z in the crop's pixels.

    Args:
        points: x, y in pixels of the image, z in such pixels towards the camera.
        matrix: image pixels -> crop pixels.
        flipped: the matrix exchanges left and right, so the landmarks change their names.
    """
    scale = torch.linalg.det(matrix[:2, :2]).abs().sqrt()
    moved = torch.cat([transform_points(matrix, points[:, :2]), scale * points[:, 2:]], -1)
    return moved[list(MIRROR)] if flipped else moved
