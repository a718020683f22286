"""FaceDataModule: clips of face frames to batches, whatever the dataset.

A dataset is a ``ClipSource``: it lists its clips and reads one frame. All else is here: the choice
of frames, crops, augmentation, loaders, and what becomes of bad frames: they are left out, counted
and logged.
"""

import enum
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, UInt8
from pytorch_lightning import LightningDataModule
from scipy.spatial import ConvexHull, QhullError
from torch import Tensor
from torch.utils.data import Dataset

from core.contracts import FaceBatch
from core.crop import MARGIN, face_crop, transform_points
from core.errors import DataError
from core.landmarks import LEFT_BROW, MIRROR, RIGHT_BROW
from datamodules.augment import Augmentation, flip_matrix
from datamodules.cutting import cut_out
from datamodules.sampler import Draw, EpochSampler, ResumableLoader

log = logging.getLogger(__name__)

Split = Literal["train", "val", "test"]

PATIENCE = 100  # clips in a row without a usable frame after which reading stops
INSIDE = 0.5  # share of the landmarks that must lie in the image
FOREHEAD = 0.35  # ours: height of the forehead in a hull mask / distance from chin to nasion
CHIN, NASION = 8, 27


class Fault(enum.IntEnum):
    """Why a frame cannot be used."""

    IMAGE = 1
    LANDMARKS = 2
    NOT_FINITE = 3
    OUTSIDE = 4
    NO_FACE = 5
    MASK = 6
    MASK_SIZE = 7


FAULTS = {
    Fault.IMAGE: "image cannot be read",
    Fault.LANDMARKS: "landmarks cannot be read",
    Fault.NOT_FINITE: "landmarks are not finite",
    Fault.OUTSIDE: "landmarks are outside the image",
    Fault.NO_FACE: "too few landmarks, or all in one place",
    Fault.MASK: "mask is missing or cannot be read",
    Fault.MASK_SIZE: "mask has another size than the image",
}


class UnusableFrameError(Exception):
    """Raised by a ``ClipSource``; the frame is left out, counted and, the first of a kind, logged.

    Args:
        fault: the kind.
        message: which file, got and wanted.
    """

    def __init__(self, fault: Fault, message: str) -> None:
        super().__init__(message)
        self.fault = fault


@dataclass(frozen=True, slots=True, eq=False)
class Clip:
    """Frames of one person in one recording.

    Attributes:
        name: unique in the dataset; sample ids are "<name>/<frame without suffix>".
        identity: the person.
        frames: names of the frames in their order, as bytes (millions of strings are heavy).
        yaw: of the head in each frame, degrees, NaN where unknown; None if it is not known before
            reading.
        light: number of the lamp that each frame was taken with; None if the light is not known.
    """

    name: str
    identity: str
    frames: np.ndarray
    yaw: np.ndarray | None = None
    light: np.ndarray | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One frame as read; what is wrong with it beyond its types is found out by the reader.

    Attributes:
        image: RGB.
        landmarks: pixels of ``image``.
        confidence: in [0, 1]; 0 = missing.
        mask: 0 ... 255 as ``FaceBatch.masks``; None: the hull of the landmarks.
        landmarks_3d: x, y in pixels, z in pixels towards the camera; None: there are none.
    """

    image: UInt8[Tensor, "3 h w"]
    landmarks: Float[Tensor, "68 2"]
    confidence: Float[Tensor, "68"]
    mask: Tensor | None = None
    landmarks_3d: Float[Tensor, "68 3"] | None = None


@runtime_checkable
class ClipSource(Protocol):
    """A dataset; has to be picklable."""

    def clips(self, split: Split) -> list[Clip]:
        """All clips of a split that have frames, in an order that does not change."""

    def read(self, clip: Clip, index: int) -> Frame:
        """One frame.

        Raises:
            UnusableFrameError: it cannot be read.
        """


class FaceDataModule(LightningDataModule):
    """Batches of face clips: b clips of v frames each; subclasses say what ``source`` is.

    * Training: v frames of a clip at random, all different where the clip has so many, else some of
      them again. Which ones, and the augmentation, are a function of (seed, turn, clip) only. A
      clip without usable frames is replaced by another one.
    * Validation and test: each clip once, v frames spread evenly over it, not augmented.
    * Prediction, of the test split: each ``predict_every``-th frame once, v = 1.

    Bad frames are left out: the first of each kind is logged with its path, all are counted in
    ``skipped``. ``PATIENCE`` clips in a row without a usable frame are an error.

    Args:
        image_size: side of the crops, pixels.
        frames_per_clip: v in training.
        clips_per_batch: b, for each process.
        eval_frames_per_clip: v in validation and test; None = as in training.
        eval_clips_per_batch: b in validation, test and prediction; None = as in training.
        predict_every: prediction takes only every so many-th frame of a clip.
        batches_per_epoch: length of an epoch of training; None = each clip about once.
        crop_margin: side of the crop / longer side of the box of the landmarks.
        min_landmark_confidence: landmarks below it count as missing.
        augmentation: of the training.
        cache_gb: memory in which each reading process keeps decoded frames, for sets that are small
            enough; once it is full the others are read again each time. 0 = none.
        workers: processes that read; 0 = the training process itself.
        seed: of order, choice of frames and augmentation.
    """

    def __init__(
        self,
        image_size: int = 224,
        frames_per_clip: int = 4,
        clips_per_batch: int = 32,
        eval_frames_per_clip: int | None = None,
        eval_clips_per_batch: int | None = None,
        predict_every: int = 1,
        batches_per_epoch: int | None = None,
        crop_margin: float = MARGIN,
        min_landmark_confidence: float = 0.0,
        augmentation: Augmentation = Augmentation(),  # noqa: B008
        cache_gb: float = 0.0,
        workers: int = 2,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.image_size, self.crop_margin = image_size, crop_margin
        self.frames_per_clip = frames_per_clip
        self.eval_frames_per_clip = eval_frames_per_clip or frames_per_clip
        self.clips_per_batch = clips_per_batch
        self.eval_clips_per_batch = eval_clips_per_batch or clips_per_batch
        self.predict_every, self.batches_per_epoch = predict_every, batches_per_epoch
        self.min_landmark_confidence = min_landmark_confidence
        self.augmentation, self.cache_gb = augmentation, cache_gb
        self.workers, self.seed = workers, seed
        self._source: ClipSource | None = None
        self._read: dict[str, ClipDataset] = {}

    def source(self) -> ClipSource:
        """The dataset; called once, in each process.

        Raises:
            AssetNotFoundError: it is not there.
            DataError: what is there is something else.
        """
        raise NotImplementedError

    def setup(self, stage: str) -> None:
        """Lists the clips."""
        self._source = self._source or self.source()

    def teardown(self, stage: str) -> None:
        """Says what was left out."""
        if skipped := self.skipped:
            log.warning("left out: %s", json.dumps(skipped))

    @property
    def skipped(self) -> dict[str, dict[str, int]]:
        """How many different frames were left out so far, by use (train, val, ...) and kind."""
        return {use: found for use, data in self._read.items() if (found := data.skipped)}

    def train_dataloader(self) -> ResumableLoader:
        """Shuffled, endlessly different clips; knows its place.

        Raises:
            DataError: there is no clip in the split.
        """
        clips = self._clips("train")
        data = self._dataset("train", clips, self.frames_per_clip, self.augmentation)
        rank, world_size = self._place()
        batch = self.clips_per_batch
        batches = self.batches_per_epoch or max(1, len(clips) // (batch * world_size))
        sampler = EpochSampler(
            len(clips), batches * batch, self.seed, rank=rank, world_size=world_size
        )
        return self._loader(data, sampler, batch, self.workers > 0)

    def val_dataloader(self) -> ResumableLoader | list[ResumableLoader]:
        """Each clip of the split once; nothing if the split is empty."""
        assert self._source is not None
        if not self._source.clips("val"):
            log.warning("no clips to validate with: the split 'val' is empty")
            return []
        return self._in_order("val", self._clips("val"), self.eval_frames_per_clip)

    def test_dataloader(self) -> ResumableLoader:
        """Each clip of the split once.

        Raises:
            DataError: there is no clip in the split.
        """
        return self._in_order("test", self._clips("test"), self.eval_frames_per_clip)

    def predict_dataloader(self) -> ResumableLoader:
        """Each frame of the test split once.

        Raises:
            DataError: there is no clip in the split.
        """
        frames = [
            Clip(clip.name, clip.identity, clip.frames[i : i + 1])
            for clip in self._clips("test")
            for i in range(0, len(clip.frames), self.predict_every)
        ]
        return self._in_order("predict", frames, 1)

    def _clips(self, split: Split) -> list[Clip]:
        assert self._source is not None, "setup() comes first"
        clips = self._source.clips(split)
        if not clips:
            raise DataError(
                f"{self._source}: no clips in the split '{split}'; put some identities there"
            )
        return clips

    def _place(self) -> tuple[int, int]:
        """Number of this process, and how many there are."""
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size

    def _in_order(self, use: str, clips: list[Clip], frames: int) -> ResumableLoader:
        rank, world_size = self._place()
        sampler = EpochSampler(len(clips), shuffle=False, rank=rank, world_size=world_size)
        data = self._dataset(use, clips, frames, None)
        return self._loader(data, sampler, self.eval_clips_per_batch, False)

    def _dataset(
        self, use: str, clips: list[Clip], frames: int, augmentation: Augmentation | None
    ) -> "ClipDataset":
        """One for each use, however many loaders: it knows which frames are bad."""
        assert self._source is not None
        if use not in self._read:
            self._read[use] = ClipDataset(
                self._source,
                clips,
                frames,
                self.image_size,
                self.crop_margin,
                self.min_landmark_confidence,
                augmentation,
                self.seed,
                round(self.cache_gb * 1e9) if use == "train" else 0,
            )
        return self._read[use]

    def _loader(
        self, data: "ClipDataset", sampler: EpochSampler, batch_size: int, persistent: bool
    ) -> ResumableLoader:
        # Keywords only: Lightning makes another loader of this one for prediction.
        forks = self.workers > 0 and sys.platform == "linux"  # the others cannot fork safely
        return ResumableLoader(
            dataset=data,
            batch_size=batch_size,
            sampler=sampler,
            num_workers=self.workers,
            collate_fn=collate,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=persistent,
            multiprocessing_context="fork" if forks else None,
        )


def collate(clips: list[FaceBatch]) -> FaceBatch:
    """Clips, without the leading axis b, to a batch."""
    ids = [name for clip in clips for name in clip["sample_ids"]]
    tensors = {k: torch.stack([clip[k] for clip in clips]) for k in clips[0] if k != "sample_ids"}  # type: ignore[literal-required]
    return FaceBatch(sample_ids=ids, **tensors)  # type: ignore[typeddict-item]


class ClipDataset(Dataset):
    """Clips by their ``Draw``: frames chosen, read, checked, cropped.

    What is found to be wrong with a frame is kept in memory that the workers share, so that no bad
    file is read twice.

    Args:
        source: reads the frames.
        clips: the clips.
        frames: v.
        size: side of the crops, pixels.
        margin: side of the crop / longer side of the box of the landmarks.
        min_confidence: landmarks below it count as missing.
        augmentation: of a training; None: frames evenly spread, in their order, as they are.
        seed: of choice and augmentation.
        cache: bytes of decoded frames to keep, in each process.
    """

    def __init__(
        self,
        source: ClipSource,
        clips: Sequence[Clip],
        frames: int,
        size: int,
        margin: float,
        min_confidence: float,
        augmentation: Augmentation | None,
        seed: int,
        cache: int = 0,
    ) -> None:
        self.source, self.clips, self.frames = source, clips, frames
        self.size, self.margin, self.min_confidence = size, margin, min_confidence
        self.augmentation, self.seed = augmentation, seed
        self.first = np.cumsum([0, *(len(clip.frames) for clip in clips)])
        self.faults = torch.zeros(int(self.first[-1]), dtype=torch.uint8).share_memory_()
        self._room = cache
        self._kept: dict[int, tuple[int, Frame, Tensor]] = {}  # by place in the whole set

    def __len__(self) -> int:
        return len(self.clips)

    @property
    def skipped(self) -> dict[str, int]:
        """How many different frames were found unusable, by kind."""
        counts = torch.bincount(self.faults, minlength=len(FAULTS) + 1).tolist()
        return {text: counts[fault] for fault, text in FAULTS.items() if counts[fault]}

    def __getitem__(self, draw: Draw) -> FaceBatch:
        return self.__getitems__([draw])[0]

    def __getitems__(self, draws: list[Draw]) -> list[FaceBatch]:
        """The clips of a batch; one without a usable frame is replaced, or not there in evaluation.

        Raises:
            DataError: ``PATIENCE`` clips in a row have no usable frame.
        """
        if self.augmentation is not None:
            return [self._some_clip(draw) for draw in draws]
        clips = [clip for draw in draws if (clip := self._clip(draw, 1))]
        return clips or [self._some_clip(draws[0])]  # an empty batch would be none

    def _some_clip(self, draw: Draw) -> FaceBatch:
        if clip := self._clip(draw, PATIENCE):
            return clip
        raise DataError(
            f"{self.source}: no usable frame in {min(PATIENCE, len(self.clips))} clips, the first "
            f"of them '{self.clips[draw.clip].name}'; unusable so far: {json.dumps(self.skipped)}. "
            "The warnings above name a file of each kind."
        )

    def _clip(self, draw: Draw, patience: int) -> FaceBatch | None:
        """The clip, or one of the next ones if it has no usable frame."""
        random = np.random.default_rng((self.seed, *draw))
        for number in range(min(patience, len(self.clips))):
            index = (draw.clip + number) % len(self.clips)
            if frames := self._chosen(index, random):
                return self._cut(self.clips[index], frames, random)
        return None

    def _chosen(self, index: int, random: np.random.Generator) -> list[tuple[int, Frame, Tensor]]:
        """Usable frames with their crop matrices: v, some repeated if there are fewer, or none."""
        count = len(self.clips[index].frames)
        if self.augmentation is None:
            searched = _spread(count, self.frames)
        else:
            searched = [iter(random.permutation(count).tolist())] * self.frames
        chosen = []
        for candidates in searched:
            frames = (self._load(index, candidate) for candidate in candidates)
            if (frame := next((f for f in frames if f is not None), None)) is not None:
                chosen.append(frame)
        repeated = [chosen[i % len(chosen)] for i in range(self.frames)] if chosen else []
        return repeated if self.augmentation else sorted(repeated, key=lambda frame: frame[0])

    def _load(self, index: int, frame: int) -> tuple[int, Frame, Tensor] | None:
        """The frame and its crop matrix, or None if it is unusable."""
        clip, place = self.clips[index], int(self.first[index]) + frame
        if place in self._kept:
            return self._kept[place]
        if self.faults[place]:
            return None
        try:
            found = self.source.read(clip, frame)
            loaded = (frame, *self._check(found, sample_id(clip, frame)))
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
        seen = confidence > 0
        finite = landmarks.isfinite().all(-1)
        if (seen & ~finite).any():
            count = int((seen & ~finite).sum())
            raise UnusableFrameError(
                Fault.NOT_FINITE, f"{name}: {count} of 68 landmarks are NaN or infinite"
            )
        inside = ((landmarks >= 0) & (landmarks <= landmarks.new_tensor([width, height]))).all(-1)
        if (inside & seen).sum() < INSIDE * seen.sum():
            raise UnusableFrameError(
                Fault.OUTSIDE,
                f"{name}: only {int((inside & seen).sum())} of {int(seen.sum())} landmarks are in "
                f"the image of {width} x {height} pixels",
            )
        if frame.mask is not None and frame.mask.shape[-2:] != (height, width):
            got = tuple(frame.mask.shape)
            raise UnusableFrameError(
                Fault.MASK_SIZE, f"{name}: mask {got}, wanted (1, {height}, {width})"
            )
        try:
            matrix = face_crop(landmarks, confidence, self.size, self.margin)
        except DataError as error:
            raise UnusableFrameError(Fault.NO_FACE, f"{name}: {error}") from error
        landmarks = torch.where(finite[:, None], landmarks, landmarks[seen].mean(0))
        return Frame(frame.image, landmarks, confidence, frame.mask), matrix

    def _cut(
        self,
        clip: Clip,
        frames: list[tuple[int, Frame, Tensor]],
        random: np.random.Generator,
    ) -> FaceBatch:
        """The crops of a clip, without the axis b."""
        change = self.augmentation
        flips = change is not None and random.random() < change.flip
        cut = []
        for _, frame, matrix in frames:
            if change is not None:
                matrix = change.jitter(random, self.size) @ matrix
            if flips:
                matrix = flip_matrix(self.size) @ matrix
            cut.append((*crop(frame, matrix, self.size, flips), torch.linalg.inv(matrix)))
        images, masks, landmarks, confidence, back = (
            torch.stack(values) for values in zip(*cut, strict=True)
        )
        return FaceBatch(
            images=images,
            landmarks=landmarks,
            landmark_confidence=confidence,
            masks=masks,
            sample_ids=[sample_id(clip, index) for index, _, _ in frames],
            crop_to_image=back,
        )


def sample_id(clip: Clip, index: int) -> str:
    """The name of a frame, unique in its dataset."""
    return f"{clip.name}/{clip.frames[index].decode().rpartition('.')[0]}"


def _spread(count: int, wanted: int) -> list[Iterator[int]]:
    """For each of the wanted frames the candidates, best first: equal parts, from their middles."""
    parts = np.array_split(np.arange(count), wanted)
    return [iter(sorted(part.tolist(), key=lambda i: abs(i - part.mean()))) for part in parts]


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
    if frame.mask is None:
        mask = mask * hull_mask(landmarks, confidence, size)  # where the image is, too
    return values[:3], mask, landmarks, confidence


def hull_mask(
    landmarks: Float[Tensor, "68 2"], confidence: Float[Tensor, "68"], size: int
) -> Float[Tensor, "1 size size"]:
    """The face without its occlusions, from its landmarks: their convex hull and the forehead.

    The forehead is where the brows come to lie when moved up along the line from the chin to the
    nasion by ``FOREHEAD`` of its length: it ends below the hairline. Soft edges of one pixel.
    """
    seen = confidence > 0
    points = landmarks[seen]
    if seen[CHIN] and seen[NASION]:
        brows = [i for i in RIGHT_BROW + LEFT_BROW if seen[i]]
        points = torch.cat(
            [points, landmarks[brows] + FOREHEAD * (landmarks[NASION] - landmarks[CHIN])]
        )
    try:
        sides = torch.from_numpy(ConvexHull(points.double().numpy()).equations).float()
    except QhullError:  # all on one line
        return torch.zeros(1, size, size)
    centres = torch.arange(size) + 0.5
    across, down = sides[:, :1] * centres, sides[:, 1:2] * centres + sides[:, 2:]
    distance = (down[..., None] + across[:, None]).amax(0)  # of (y, x) to the hull, > 0 outside
    return (0.5 - distance).clamp(0, 1)[None]
