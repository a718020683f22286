"""VisualizeViews: whether views of one face agree, as pictures, while a network learns."""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from benchmarks.base import on_cpu
from callbacks.evaluation import evaluating
from callbacks.loggers import log_image
from callbacks.visualize import first_validation_batch
from core.camera import PerspectiveCamera
from core.contracts import FaceBatch, Reconstruction
from core.errors import MonofaceError
from core.multiview import (
    FINER,
    covisible,
    depth_ratio,
    epipolar_lines,
    paired,
    seen_triangles,
    synthesize,
)
from core.picture import draw_landmarks, draw_lines, resize, resized, save_png, sheet
from core.rasterize import Backend
from core.render import draw

COLUMNS = (
    "target",
    "source, epipolar lines",
    "synthesized target",
    "covisible",
    "pixel error x 4",
    "depth error",
)
MARKS = {  # landmarks and their colours
    36: (0.95, 0.25, 0.25),
    45: (0.95, 0.75, 0.15),
    30: (0.20, 0.90, 0.35),
    48: (0.20, 0.75, 0.95),
    54: (0.45, 0.40, 1.00),
    8: (0.95, 0.40, 0.90),
}
BRIGHTER = 4.0  # of pixel errors
WHITE_MM = 5.0  # the depth error that is shown white


class VisualizeViews(Callback):
    """Draws how well a network's views of one face agree (MGCNet), a row for each pair.

    Columns: target with some landmarks | source with their epipolar lines, on which the same
    landmarks have to lie | target made of the source's pixels | where both see the face | error of
    colours and, up to 5 mm, of depth there. The clips are the first multi-view ones of the first
    validation batch. Each sheet is written to <run folder>/pictures/views_<step>.png and given to
    every logger that takes images. Neither the network's state nor any random number of the
    training changes. Nothing is drawn if there are no such clips. What both see is found as the
    method does it, with its ``finer`` and ``backend`` if it has them; but on the CPU.

    Args:
        every_n_steps: draw after every so many steps, and when training ends.
        clips: at most so many.
        size: side of a picture in the sheet, pixels.
    """

    def __init__(self, every_n_steps: int = 250, clips: int = 3, size: int = 192) -> None:
        for name, value in (("every_n_steps", every_n_steps), ("clips", clips), ("size", size)):
            if value < 1:
                raise ValueError(f"VisualizeViews: {name} is {value}; wanted at least 1")
        self.every_n_steps, self.clips, self.size = every_n_steps, clips, size
        self._batch: FaceBatch | None = None
        self._drawn_at = -1
        self._looked = False  # for the clips

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: FaceBatch,
        batch_idx: int,
    ) -> None:
        """After every ``every_n_steps``-th step; accumulated batches are not steps."""
        if trainer.global_step % self.every_n_steps == 0:
            self._draw(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The final state."""
        self._draw(trainer, pl_module)

    def _draw(self, trainer: Trainer, pl_module: LightningModule) -> None:
        step = trainer.global_step
        if not trainer.is_global_zero or step == self._drawn_at:
            return
        self._drawn_at = step
        with evaluating(pl_module), torch.no_grad():
            if not self._looked:
                self._batch, self._looked = _multi_view(trainer, self.clips), True
            if self._batch is None:
                return
            images = self._batch["images"]
            with trainer.precision_plugin.val_step_context():
                face = pl_module(images)
            picture = views_sheet(
                images.cpu(),
                self._batch["landmarks"].cpu(),
                self._batch["landmark_confidence"].cpu(),
                on_cpu(face),
                self.size,
                f"step {step}",
                getattr(pl_module, "finer", FINER),
                _cpu_backend(getattr(pl_module, "backend", "auto")),
            )
        save_png(Path(trainer.default_root_dir) / "pictures" / f"views_{step:06d}.png", picture)
        for logger in trainer.loggers:
            log_image(logger, "views", picture, step)


def _cpu_backend(backend: Backend) -> Backend:
    """The same, or another one where it has none."""
    return "auto" if backend == "nvdiffrast" else backend


def _multi_view(trainer: Trainer, most: int) -> FaceBatch | None:
    """The first multi-view clips of the first validation batch."""
    batch = first_validation_batch(trainer)
    flags = None if batch is None else batch.get("multi_view")
    if batch is None or flags is None or not flags.any():
        return None
    first = flags.nonzero()[:most, 0]
    return FaceBatch(
        images=batch["images"][first],
        landmarks=batch["landmarks"][first],
        landmark_confidence=batch["landmark_confidence"][first],
        masks=batch["masks"][first],
        sample_ids=[],
    )


def views_sheet(
    images: Float[Tensor, "b v 3 h w"],
    landmarks: Float[Tensor, "b v 68 2"],
    confidence: Float[Tensor, "b v 68"],
    face: Reconstruction,
    size: int,
    title: str = "",
    finer: int = FINER,
    backend: Backend = "auto",
) -> Float[Tensor, "3 _ _"]:
    """A row for each pair of views: see ``VisualizeViews``.

    Args:
        images: square, RGB in [0, 1]; the middle view is the target.
        landmarks: pixels of the images.
        confidence: 0 = missing.
        face: of these images, on the CPU.
        size: side of each picture, pixels.
        title: a line above the table.
        finer: how many times as fine as the pictures the pixels are that decide what the source
            sees.
        backend: of ``core.rasterize.rasterize``.

    Raises:
        MonofaceError: its cameras are not perspective; others have no epipolar geometry.
    """
    factor = size / images.shape[-1]
    camera = resized(face.camera, factor)
    if not isinstance(camera, PerspectiveCamera):
        raise MonofaceError(
            f"VisualizeViews: epipolar lines need a PerspectiveCamera, the method has a "
            f"{type(camera).__name__}; leave the callback out"
        )
    surface = draw(face.vertices, face.triangles, face.uv, camera, size, backend)
    target, source = (camera.map(lambda value, k=k: paired(value)[k]) for k in (0, 1))  # type: ignore[misc]
    target_image, source_image = paired(resize(images, size))
    depth, source_depth = paired(surface.depth)
    made = synthesize(depth, target, source_image, source_depth, source)
    pixels = paired(camera.project(face.vertices)[0])
    seen = seen_triangles(paired(face.vertices)[1], source, face.triangles, size, finer, backend)
    index, _ = paired(surface.triangle_index)
    mask = covisible(index, seen, *pixels, face.triangles) * made.mask
    scaled = depth_ratio(made, depth, mask)[..., None, None, None] * made.depth
    marks, colours = list(MARKS), images.new_tensor(list(MARKS.values()))
    points, others = paired(landmarks[:, :, marks] * factor)
    known, others_known = paired(confidence[:, :, marks])
    lines = epipolar_lines(points, target, source) * known.gt(0)[..., None]
    shown_source = draw_lines(source_image, lines, colours)
    radius = size / 70
    columns = [
        _dots(target_image, points, known, radius),
        _dots(shown_source, others, others_known, radius),
        made.image * made.mask,
        mask.expand_as(target_image),
        (made.image - target_image).abs() * mask * BRIGHTER,
        ((scaled - depth).abs() * mask / WHITE_MM).expand_as(target_image),
    ]
    return sheet(torch.stack(columns, 2).flatten(0, 1), COLUMNS, title=title)


def _dots(
    images: Float[Tensor, "b s 3 h w"],
    points: Float[Tensor, "b s n 2"],
    known: Float[Tensor, "b s n"],
    radius: float,
) -> Float[Tensor, "b s 3 h w"]:
    """The points of ``MARKS``, each in its colour."""
    for k, colour in enumerate(MARKS.values()):
        one = slice(k, k + 1)
        images = draw_landmarks(images, points[:, :, one], known[:, :, one], colour, radius)
    return images
