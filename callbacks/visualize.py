"""Visualize: what the network sees in some faces, as pictures, while it learns."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from pytorch_lightning import Callback, LightningDataModule, LightningModule, Trainer
from pytorch_lightning.utilities.model_helpers import is_overridden
from torch import Tensor

from benchmarks.base import on_cpu
from callbacks.evaluation import evaluating
from callbacks.export import closed
from callbacks.loggers import log_image, log_mesh
from core.contracts import FaceBatch, Reconstruction
from core.picture import (
    composite,
    draw_landmarks,
    face_pictures,
    resize,
    resized,
    save_png,
    sheet,
)

COLUMNS = ("input", "overlay", "shape", "albedo", "light")


class Visualize(Callback):
    """Draws the same faces again and again, a row each: input | overlay | shape | albedo | light.

    The faces are those of the first validation batch, or of the current training batch where there
    is no validation set. Each sheet is written to <run folder>/pictures/step_<step>.png and given
    to every logger that takes images (Weights & Biases, TensorBoard); Weights & Biases also gets
    the first face as a mesh. Neither the network's state nor any random number of the training
    changes.

    Args:
        every_n_steps: draw after every so many steps, and when training ends.
        faces: at most so many rows.
        size: side of a picture in the sheet, pixels; the face is drawn, not enlarged, at this size.
        landmarks: mark the predicted landmarks in the input.
    """

    def __init__(
        self, every_n_steps: int = 250, faces: int = 6, size: int = 160, landmarks: bool = True
    ) -> None:
        for name, value in (("every_n_steps", every_n_steps), ("faces", faces), ("size", size)):
            if value < 1:
                raise ValueError(f"Visualize: {name} is {value}; wanted at least 1")
        self.every_n_steps, self.faces = every_n_steps, faces
        self.size, self.landmarks = size, landmarks
        self._images: Tensor | None = None
        self._last_images: Tensor | None = None
        self._drawn_at = -1

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: FaceBatch,
        batch_idx: int,
    ) -> None:
        """After every ``every_n_steps``-th step; accumulated batches are not steps."""
        self._last_images = batch["images"]
        if trainer.global_step % self.every_n_steps == 0:
            self._draw(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The final state."""
        self._draw(trainer, pl_module)

    def _draw(self, trainer: Trainer, pl_module: LightningModule) -> None:
        step = trainer.global_step
        if not trainer.is_global_zero or step == self._drawn_at or self._last_images is None:
            return
        self._drawn_at = step
        with evaluating(pl_module), torch.no_grad():
            images = self._chosen(trainer)
            with trainer.precision_plugin.val_step_context():
                face = pl_module(images.to(pl_module.device))
            face = on_cpu(face)
            picture = reconstruction_sheet(
                images.cpu(), face, self.size, self.landmarks, f"step {step}"
            )
        whole = replace(face, triangles=closed(face.triangles, pl_module))
        save_png(Path(trainer.default_root_dir) / "pictures" / f"step_{step:06d}.png", picture)
        for logger in trainer.loggers:
            log_image(logger, "pictures", picture, step)
            log_mesh(logger, "mesh", whole, step)

    def _chosen(self, trainer: Trainer) -> Tensor:
        """At most ``faces`` images, "b 1 3 h w": of each clip the first, then the second, ..."""
        if self._images is None:
            batch = first_validation_batch(trainer)
            images = self._last_images if batch is None else batch["images"]
            by_view = images.transpose(0, 1).flatten(0, 1)[: self.faces, None]  # type: ignore[union-attr]
            if batch is None:
                return by_view
            self._images = by_view.cpu()
        return self._images


def reconstruction_sheet(
    images: Float[Tensor, "b 1 3 h w"],
    face: Reconstruction,
    size: int,
    landmarks: bool = True,
    title: str = "",
) -> Float[Tensor, "3 _ _"]:
    """A row for each face: input, overlay, shape, albedo, light.

    Args:
        images: square, RGB in [0, 1].
        face: of these images, on the CPU.
        size: side of each picture, pixels.
        landmarks: mark the predicted landmarks in the input.
        title: a line above the table.
    """
    factor = size / images.shape[-1]
    large = resize(images, size)
    pictures = face_pictures(replace(face, camera=resized(face.camera, factor)), size)
    shown = large
    if landmarks:
        shown = draw_landmarks(large, face.landmarks * factor, radius=max(0.8, size / 130))
    columns = [
        shown,
        composite(pictures.lit, pictures.mask, large),
        *(composite(p, pictures.mask) for p in (pictures.shape, pictures.albedo, pictures.light)),
    ]
    return sheet(torch.cat(columns, 1), COLUMNS, title=title)


def first_validation_batch(trainer: Trainer) -> FaceBatch | None:
    """From a loader of its own, so that no other's place changes; None without validation set."""
    data = getattr(trainer, "datamodule", None)
    if data is not None and is_overridden("val_dataloader", data, LightningDataModule):
        loaders = data.val_dataloader()
    else:
        loaders = trainer.val_dataloaders
    loader = loaders[0] if isinstance(loaders, list) and loaders else loaders
    batch = next(iter(loader), None) if loader else None
    return None if batch is None else trainer.strategy.batch_to_device(batch)  # and its hooks
