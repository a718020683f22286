"""FaceDataModule: clips of face frames to batches, whatever the dataset.

A dataset is a ``ClipSource``: it lists its clips and reads one frame. All else is here and in
``datamodules.reading``: the choice of frames, crops, augmentation, loaders, and what becomes of bad
frames: they are left out, counted and logged.
"""

import json
import logging
import sys
from collections.abc import Sequence
from itertools import combinations
from typing import Literal, get_args

import torch
from pytorch_lightning import LightningDataModule

from core.contracts import FaceBatch
from core.crop import MARGIN
from core.errors import DataError
from datamodules.augment import Augmentation
from datamodules.batch_memory import BatchMemory
from datamodules.choice import Choice, Random, Spread
from datamodules.clips import (
    Clip,
    ClipSource,
    Fault,
    Frame,
    Split,
    UnusableFrameError,
    identities,
)
from datamodules.reading import ByteBatch, ClipDataset, ClipReader, collate, in_floats
from datamodules.sampler import EpochSampler, ResumableLoader
from datamodules.workers import keep_freed_memory
from datamodules.yaw import with_landmark_yaw

__all__ = [  # what a dataset needs, from one place
    "Clip",
    "ClipSource",
    "FaceDataModule",
    "Fault",
    "Frame",
    "Split",
    "UnusableFrameError",
]

log = logging.getLogger(__name__)

NUMBERS = 4096  # bytes of a frame of a batch that are neither image nor mask, at most

Use = Literal["train", "val", "test", "predict"]
"""What clips are read for; prediction takes the split "test"."""


class FaceDataModule(LightningDataModule):
    """Batches of face clips: b clips of v frames each; subclasses say what ``source`` is.

    * Training: v frames of a clip as ``frames`` says, all different where the clip has so many,
      else some of them again. Which ones, and the augmentation, are a function of (seed, turn,
      clip) only. A clip without usable frames is replaced by another one.
    * Validation and test: each clip once, not augmented; v frames spread evenly over it, or what
      ``frames`` says for evaluation. With several processes each clip is one process's; where one
      has nothing left for a last batch it gets one that is marked ``repeated``.
    * Prediction, of the test split: each ``predict_every``-th frame once, v = 1.

    No identity may be in two splits.

    The loaders hand out images and masks in 8 bits (``datamodules.reading.ByteBatch``); the trainer
    has them made floats once they are on the training's device, by ``on_after_batch_transfer``.

    Bad frames are left out: the first of each kind is logged with its path, all are counted in
    ``skipped``. ``PATIENCE`` clips in a row without a usable frame are an error.

    ``choice.Views`` needs the yaw of every frame: where the dataset does not tell it, each process
    reads the landmarks of all frames of all splits at each start.

    Args:
        image_size: side of the crops, pixels.
        frames_per_clip: v in training.
        frames: which frames of a clip; None = ``Random``, all different.
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
        frames: Choice | None = None,
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
        self.frames_per_clip, self.frames = frames_per_clip, frames or Random()
        self.eval_frames_per_clip = eval_frames_per_clip or frames_per_clip
        self.clips_per_batch = clips_per_batch
        self.eval_clips_per_batch = eval_clips_per_batch or clips_per_batch
        self.predict_every, self.batches_per_epoch = predict_every, batches_per_epoch
        self.min_landmark_confidence = min_landmark_confidence
        self.augmentation, self.cache_gb = augmentation, cache_gb
        self.workers, self.seed = workers, seed
        self.prefix = ""  # of the sample ids
        self._source: ClipSource | None = None
        self._listed: dict[Split, Sequence[Clip]] = {}
        self._readers: dict[Use, ClipReader] = {}

    def source(self) -> ClipSource:
        """The dataset; called once, in each process.

        Raises:
            AssetNotFoundError: it is not there.
            DataError: what is there is something else.
        """
        raise NotImplementedError

    def setup(self, stage: str) -> None:
        """Lists the clips.

        Raises:
            DataError: an identity is in two splits, or ``frames`` does not go with the numbers of
                frames and clips.
        """
        if self._source is None:
            self._check_frames()
            self._source = source = self.source()
            self._listed = {split: source.clips(split) for split in get_args(Split)}
            if self.frames.multi_view:
                self._listed = {
                    split: with_landmark_yaw(source, clips) for split, clips in self._listed.items()
                }
            _check_disjoint(self._listed, str(source))

    def teardown(self, stage: str) -> None:
        """Says what was left out."""
        if skipped := self.skipped:
            log.warning("left out: %s", json.dumps(skipped))

    def on_after_batch_transfer(self, batch: ByteBatch, dataloader_idx: int) -> FaceBatch:
        """What the loaders hand out, as methods and callbacks see it."""
        return in_floats(batch)

    @property
    def skipped(self) -> dict[str, dict[str, int]]:
        """How many different frames were left out so far, by use (train, val, ...) and kind."""
        return {use: found for use, reader in self._readers.items() if (found := reader.skipped)}

    def train_dataloader(self) -> ResumableLoader:
        """Shuffled, endlessly different clips; knows its place.

        Raises:
            DataError: there is no clip in the split.
        """
        readers, (rank, world_size) = self.readers("train"), self._place()
        counts = [len(reader) for reader in readers]
        batch = self.clips_per_batch
        batches = self.batches_per_epoch or max(1, sum(counts) // (batch * world_size))
        sampler = EpochSampler(
            counts,
            batches * batch,
            self.seed,
            rank=rank,
            world_size=world_size,
            shares=self.shares(),
        )
        return self._loader(readers, sampler, batch, self.workers > 0)

    def val_dataloader(self) -> ResumableLoader | list[ResumableLoader]:
        """Each clip of the split once; nothing if the split is empty."""
        if self.is_empty("val"):
            log.warning("no clips to validate with: the split 'val' is empty")
            return []
        return self._in_order("val")

    def test_dataloader(self) -> ResumableLoader:
        """Each clip of the split once.

        Raises:
            DataError: there is no clip in the split.
        """
        return self._in_order("test")

    def predict_dataloader(self) -> ResumableLoader:
        """Each frame of the test split once.

        Raises:
            DataError: there is no clip in the split.
        """
        return self._in_order("predict")

    def is_empty(self, split: Split) -> bool:
        """There is no clip in a split."""
        assert self._source is not None, "setup() comes first"
        return not self._listed[split]

    def readers(self, use: Use) -> list[ClipReader]:
        """What reads the clips of a use, one for each part of the data.

        The same ones each time, since they know which frames are bad.

        Raises:
            DataError: there is no clip in the split.
        """
        if use not in self._readers:
            self._readers[use] = self._reader(use)
        return [self._readers[use]]

    def shares(self) -> list[int]:
        """Of the parts of the data in a training."""
        return [1]

    def _check_frames(self) -> None:
        """Raise DataError if the choice of frames does not go with the numbers."""
        for use, choice, frames, clips in (
            ("training", self.frames, self.frames_per_clip, self.clips_per_batch),
            (
                "evaluation",
                self.frames.in_evaluation(),
                self.eval_frames_per_clip,
                self.eval_clips_per_batch,
            ),
        ):
            if problem := choice.problem(frames, clips):
                raise DataError(f"frames: {type(choice).__name__}: in {use}, {problem}")

    def _reader(self, use: Use) -> ClipReader:
        split: Split = "test" if use == "predict" else use
        if self.is_empty(split):
            raise DataError(
                f"{self._source}: no clips in the split '{split}'; put some identities there"
            )
        assert self._source is not None
        clips = self._listed[split]
        training = use == "train"
        choice: Choice
        if use == "predict":
            choice, frames = Spread(), 1
            clips = [
                Clip(clip.name, clip.identity, clip.frames[i : i + 1])
                for clip in clips
                for i in range(0, len(clip.frames), self.predict_every)
            ]
        else:
            choice = self.frames if training else self.frames.in_evaluation()
            frames = self.frames_per_clip if training else self.eval_frames_per_clip
            clips = self._suitable(clips, choice, frames, split)
        return ClipReader(
            self._source,
            clips,
            frames,
            choice,
            self.image_size,
            self.crop_margin,
            self.min_landmark_confidence,
            self.augmentation if training else None,
            self.seed if training else 0,  # so that all runs are evaluated on the same frames
            round(self.cache_gb * 1e9) if training else 0,
            self.prefix,
        )

    def _suitable(
        self, clips: Sequence[Clip], choice: Choice, frames: int, split: Split
    ) -> Sequence[Clip]:
        """What the choice makes of the clips.

        Raises:
            DataError: nothing.
        """
        found = choice.clips(clips, frames)
        name = type(choice).__name__
        if not found:
            raise DataError(
                f"{self._source}: none of {len(clips)} clips in the split '{split}' has {frames} "
                f"frames as {name} wants them; are yaw and light known? Else use another choice of "
                "frames"
            )
        if len(found) < len(clips):
            log.info("%s: %s makes %d of %d clips", self._source, name, len(found), len(clips))
        return found

    def _place(self) -> tuple[int, int]:
        """Number of this process, and how many there are."""
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size

    def _in_order(self, use: Use) -> ResumableLoader:
        readers, (rank, world_size) = self.readers(use), self._place()
        batch = self.eval_clips_per_batch
        sampler = EpochSampler(
            [len(reader) for reader in readers],
            shuffle=False,
            rank=rank,
            world_size=world_size,
            batch_size=batch,
        )
        return self._loader(readers, sampler, batch, False)

    def _loader(
        self, readers: list[ClipReader], sampler: EpochSampler, batch_size: int, persistent: bool
    ) -> ResumableLoader:
        # Keywords only: Lightning makes another loader of this one for prediction.
        forks = self.workers > 0 and sys.platform == "linux"  # the others cannot fork safely
        memory = None
        if forks and persistent:
            frames = batch_size * max(reader.frames for reader in readers)
            memory = BatchMemory(self.workers, frames * (4 * self.image_size**2 + NUMBERS))
        return ResumableLoader(
            dataset=ClipDataset(readers),
            batch_size=batch_size,
            sampler=sampler,
            num_workers=self.workers,
            collate_fn=memory.collate if memory else collate,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=persistent,
            multiprocessing_context="fork" if forks else None,
            worker_init_fn=keep_freed_memory,
        )


def _check_disjoint(clips: dict[Split, Sequence[Clip]], where: str) -> None:
    """Raise DataError if an identity is in two splits."""
    people = {split: identities(found) for split, found in clips.items()}
    for one, other in combinations(people, 2):
        if both := people[one] & people[other]:
            raise DataError(
                f"{where}: {sorted(both)[:5]} are in the splits '{one}' and '{other}'; an identity "
                "may be in one split only"
            )
