"""Going on after a kill as if nothing had happened: seeds, checkpoints and how one is found again.

The four ingredients of a resume that equals the uninterrupted run bit for bit: a loader that keeps
its place, an order that depends on seed and epoch only, augmentation that depends on seed, epoch
and sample only (these three are the datamodule's), and random numbers that depend on seed, step and
process only (``StepSeed``).
"""

import os
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.io import TorchCheckpointIO
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.utilities import rank_zero_info

from core.errors import AssetNotFoundError, DataError

CHECKPOINTS = "checkpoints"  # folder within the run's
EVALUATION = -1  # in place of the step, so that each evaluation draws the same numbers


class StepSeed(Callback):
    """Seeds torch before each batch from (seed, step, batch, process): there is no state to save.

    Args:
        seed: of the run.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """The index, too: where gradients are accumulated, several batches share a step."""
        self._seed(trainer, trainer.global_step, batch_idx)

    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """The same numbers in each evaluation, so that its losses can be compared."""
        self._seed(trainer, EVALUATION, batch_idx)

    on_test_batch_start = on_validation_batch_start
    on_predict_batch_start = on_validation_batch_start

    def _seed(self, trainer: Trainer, step: int, batch: int) -> None:
        # hash() of integers does not depend on the process; 64 bits are what torch takes
        number = hash((self.seed, step, batch, trainer.global_rank)) % 2**63
        if torch.accelerator.is_available():
            torch.manual_seed(number)
        else:  # the same for the CPU alone, without a stack trace per call for a GPU to come
            torch.default_generator.manual_seed(number)


class LastCheckpoint(Checkpoint):
    """Writes last.ckpt every few steps and when training ends.

    Never after an epoch's last batch but one step later: from there Lightning goes on with the
    loader's finished iterator, and an epoch is lost or its order is another one. (Epochs of one
    batch have nothing else.)

    Args:
        folder: where to.
        every: steps.
    """

    def __init__(self, folder: Path, every: int) -> None:
        self.path, self.every = folder / "last.ckpt", every
        self._step, self._due = 0, False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Counts from where training starts."""
        self._step, self._due = trainer.global_step, False

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Writes when it is time, but not between batches whose gradients are accumulated."""
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        self._due |= self._step % self.every == 0 or self._step == trainer.max_steps
        if self._due and not trainer.is_last_batch:
            self._write(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes if epochs have one batch."""
        if self._due and trainer.num_training_batches == 1:
            self._write(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes if there were steps since."""
        if self._due or self._step % self.every:
            self._write(trainer)

    def _write(self, trainer: Trainer) -> None:
        trainer.save_checkpoint(self.path)
        self._due = False


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, then renames: a kill leaves the old checkpoint or the new one.

    Lightning writes to the system's temporary folder and moves the file, which on another file
    system is a copy that a kill leaves unfinished.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """As Lightning's, for a local file; others (s3://...) are left to it."""
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        try:
            with unfinished.open("wb") as file:
                torch.save(checkpoint, file)
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)


def find_checkpoint(wanted: str | None, run: Path, starts: bool) -> Path | str | None:
    """The checkpoint that ``--ckpt_path`` means.

    Args:
        wanted: a path, or "last" or "best" of the run.
        run: the run's folder.
        starts: a missing "last" means that training starts, with a line that says so; otherwise it
            is an error.

    Raises:
        AssetNotFoundError: there is no such file.
        DataError: it is not a whole checkpoint.
    """
    if wanted is None or "://" in wanted:
        return wanted
    folder = run / CHECKPOINTS
    path = folder / f"{wanted}.ckpt" if wanted in ("last", "best") else Path(wanted)
    others = sorted(p.as_posix() for p in {*folder.glob("*.ckpt"), *path.parent.glob("*.ckpt")})
    if not path.is_file():
        if starts and wanted == "last" and not others:
            rank_zero_info(f"no checkpoint in {folder} yet: training starts from scratch")
            return None
        hint = f"There are {', '.join(others)}." if others else "Train first: the subcommand fit."
        raise AssetNotFoundError(f"checkpoint {wanted!r}", path, hint)
    if not zipfile.is_zipfile(path):  # torch.save writes one; a truncated one has no end
        others = [other for other in others if Path(other) != path]
        hint = f"use another one with --ckpt_path: {', '.join(others)}" if others else "train anew"
        raise DataError(f"{path} is not a whole checkpoint (truncated?); delete it, and {hint}")
    return path
