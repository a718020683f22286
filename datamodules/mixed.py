"""Several datasets in one training, in given proportions."""

from core.errors import DataError
from datamodules.base import FaceDataModule, Split, Use
from datamodules.reading import ClipReader

COMMON = (
    "image_size",
    "frames_per_clip",
    "clips_per_batch",
    "eval_frames_per_clip",
    "eval_clips_per_batch",
    "predict_every",
    "seed",
)


class Mixed(FaceDataModule):
    """Each batch of a training has clips of all parts, in fixed proportions.

    Of any sum(shares) clips in a row, ``shares[name]`` are of a part, spread evenly: where
    ``clips_per_batch`` is a multiple of the sum, each batch has the same number of each. So PGN's
    "one batch of 300W-LP and one of others per step" is one batch of 16 and 16, shares of 1 and 1.
    Each part goes through its own clips; a small one begins again earlier.

    Flags tell the samples apart: ``has_landmarks_3d`` of the frames, ``multi_view`` of the clips
    (``FaceBatch``). A part of single images, in a batch with others of v frames, repeats its image,
    each time with another augmentation.

    Validation, test and prediction: the clips of all parts, one part after the other; those without
    clips in the split are left out. Sample ids begin with the part's name.

    Example, MGCNet's data, in a config:

        class_path: datamodules.mixed.Mixed
        init_args:
          frames_per_clip: 3
          parts:
            views:
              class_path: datamodules.w300lp.W300LP
              init_args: {root: data/300W_LP, frames: datamodules.choice.Views}
            single:
              class_path: datamodules.celeba.CelebA
              init_args: {root: data/celeba}
          shares: {views: 3, single: 2}

    Args:
        parts: the datasets by name; null takes out one of an earlier config. Their own ``frames``,
            ``crop_margin``, ``min_landmark_confidence``, ``augmentation`` and ``cache_gb`` count;
            all else that is an option here counts for them, too.
        shares: whole numbers by the parts' names; 1 where left out.
        image_size: as for ``FaceDataModule``, like those that follow.
        frames_per_clip: v in training.
        clips_per_batch: b, for each process.
        eval_frames_per_clip: v in validation and test; None = as in training.
        eval_clips_per_batch: b in validation, test and prediction; None = as in training.
        predict_every: prediction takes only every so many-th frame of a clip.
        batches_per_epoch: length of an epoch of training; None = as many clips as all parts have.
        workers: processes that read; 0 = the training process itself.
        seed: of order, choice of frames and augmentation.
    """

    def __init__(
        self,
        parts: dict[str, FaceDataModule | None],
        shares: dict[str, int] | None = None,
        image_size: int = 224,
        frames_per_clip: int = 4,
        clips_per_batch: int = 32,
        eval_frames_per_clip: int | None = None,
        eval_clips_per_batch: int | None = None,
        predict_every: int = 1,
        batches_per_epoch: int | None = None,
        workers: int = 2,
        seed: int = 0,
    ) -> None:
        super().__init__(
            image_size=image_size,
            frames_per_clip=frames_per_clip,
            clips_per_batch=clips_per_batch,
            eval_frames_per_clip=eval_frames_per_clip,
            eval_clips_per_batch=eval_clips_per_batch,
            predict_every=predict_every,
            batches_per_epoch=batches_per_epoch,
            workers=workers,
            seed=seed,
        )
        given = shares or {}
        self.parts = {name: part for name, part in parts.items() if part is not None}
        if not self.parts or given.keys() - parts.keys() or any(n < 1 for n in given.values()):
            raise DataError(
                f"Mixed: shares {given} of the parts {list(parts)}; wanted whole numbers from 1 "
                "by the names of parts"
            )
        self._shares = [given.get(name, 1) for name in self.parts]
        for name, part in self.parts.items():
            part.prefix = f"{name}/"
            for option in COMMON:
                setattr(part, option, getattr(self, option))

    def prepare_data(self) -> None:
        """Of each part."""
        for part in self.parts.values():
            part.prepare_data()

    def setup(self, stage: str) -> None:
        """Lists the clips of each part."""
        for part in self.parts.values():
            part.setup(stage)

    @property
    def skipped(self) -> dict[str, dict[str, int]]:
        """How many different frames were left out so far, by part and use, and by kind."""
        return {
            f"{name}/{use}": found
            for name, part in self.parts.items()
            for use, found in part.skipped.items()
        }

    def is_empty(self, split: Split) -> bool:
        """There is no clip in a split of any part."""
        return all(part.is_empty(split) for part in self.parts.values())

    def readers(self, use: Use) -> list[ClipReader]:
        """One for each part; in evaluation for those that have clips in the split.

        Raises:
            DataError: a part has none in training, or none has any.
        """
        parts = list(self.parts.values())
        if use != "train":
            split: Split = "val" if use == "val" else "test"
            parts = [part for part in parts if not part.is_empty(split)] or parts
        return [reader for part in parts for reader in part.readers(use)]

    def shares(self) -> list[int]:
        """Of the parts in a training."""
        return self._shares
