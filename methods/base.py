"""FaceMethod, what every method is: images to a Reconstruction, named terms, their weights."""

import logging
from typing import Any

import torch
from jaxtyping import Float
from pytorch_lightning import LightningModule
from pytorch_lightning.plugins.precision import Precision
from pytorch_lightning.utilities import GradClipAlgorithmType
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import Optimizer

from core.contracts import FaceBatch, Reconstruction
from core.errors import MonofaceError
from core.losses import total

PATIENCE = 10  # skipped steps in a row after which the training stops

log = logging.getLogger(__name__)


class FaceMethod(LightningModule):
    """A method: subclasses write ``forward``, ``terms``, ``configure_optimizers``, ``weights``.

    Training and validation log each term unweighted, as ``train/<name>`` and ``val/<name>``, and
    their weighted sum as ``train/loss`` and ``val/loss``; training only in each
    ``trainer.log_every_n_steps``-th step, as each logged value costs about half a millisecond. A
    training step whose gradient is not finite changes nothing, neither parameters nor batch-norm
    statistics; it is counted in ``train/skipped``, also across resumes, and its cause is logged.
    ``PATIENCE`` of them in a row stop the training.

    Subclasses do not call ``save_hyperparameters``: the run's config.yaml is the record, and from
    the checkpoint the values would override the command line.

    Attributes:
        weights: a frozen dataclass with one float per term, of the term's name.
    """

    weights: Any

    def __init__(self) -> None:
        super().__init__()
        self.skipped = 0
        self._skipped_in_a_row = 0
        self._batches: list[tuple[dict[str, Tensor], FaceBatch]] = []  # of the current step
        self._statistics: list[Tensor] = []  # batch norm's
        self._before: list[Tensor] = []  # their values before the current step

    def forward(self, images: Float[Tensor, "b v 3 h w"]) -> Reconstruction:
        """One face per image; RGB in [0, 1]."""
        raise NotImplementedError

    def terms(self, batch: FaceBatch) -> dict[str, Tensor]:
        """The losses of a batch, scalars, unweighted; their names are the fields of ``weights``."""
        raise NotImplementedError

    def on_train_start(self) -> None:
        """Looks for batch norm's statistics, now that they are on their device."""
        self._statistics = _norm_statistics(self)
        self._before = [torch.empty_like(value) for value in self._statistics]

    def training_step(self, batch: FaceBatch, batch_idx: int) -> Tensor:
        """The weighted sum of the terms."""
        if not self._batches:  # the first of a step; with accumulate_grad_batches others follow
            _copy(self._statistics, self._before)
        terms, loss = self._logged_terms("train", batch)
        self._batches.append(({name: term.detach() for name, term in terms.items()}, batch))
        return loss

    def validation_step(self, batch: FaceBatch, batch_idx: int) -> None:
        """Logs the terms and their weighted sum."""
        terms, _ = self._logged_terms("val", batch)
        if cause := _not_finite(terms, batch):
            log.warning("validation: %s", cause)

    def test_step(self, batch: FaceBatch, batch_idx: int) -> None:
        """Logs the terms and their weighted sum; the benchmarks measure against ground truth."""
        self._logged_terms("test", batch)

    @torch.no_grad()
    def predict_step(self, batch: FaceBatch, batch_idx: int) -> Reconstruction:
        """One face per image, without gradients."""
        face: Reconstruction = self(batch["images"])
        return face

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Skips the step if the gradient, which all processes share, is not finite."""
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if torch.isfinite(norm):
            self._skipped_in_a_row = 0
        else:
            self._skip()
        if self._logs_step:
            self.log("train/gradient_norm", norm)
            self.log("train/skipped", float(self.skipped))
        self._batches = []

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """As Lightning does it, but for fused optimizers under bfloat16, too.

        Lightning refuses these because they undo float16's scaling; bfloat16 has none.
        """
        if self.trainer.precision == "bf16-mixed":
            limit, kind = gradient_clip_val or 0.0, gradient_clip_algorithm or "norm"
            plugin = self.trainer.precision_plugin
            Precision.clip_gradients(plugin, optimizer, limit, GradClipAlgorithmType(kind))
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the counts of skipped steps."""
        checkpoint["skipped"] = self.skipped, self._skipped_in_a_row

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes them back, so that a resumed run counts on."""
        self.skipped, self._skipped_in_a_row = checkpoint.get("skipped", (0, 0))

    def _skip(self) -> None:
        for parameter in self.parameters():
            parameter.grad = None  # optimizers leave such parameters as they are
        _copy(self._before, self._statistics)
        self.skipped += 1
        self._skipped_in_a_row += 1
        causes = filter(None, (_not_finite(terms, batch) for terms, batch in self._batches))
        cause = "; ".join(causes) or "the losses are finite, their gradient is not"
        if self._skipped_in_a_row >= PATIENCE:
            raise MonofaceError(
                f"training stopped at step {self.global_step}: no finite gradient in {PATIENCE} "
                f"steps in a row. The last one: {cause}. Look at these samples; if they differ "
                "each time, lower the learning rate and go on from a checkpoint with --ckpt_path."
            )
        log.warning("step %d skipped (%d so far): %s", self.global_step, self.skipped, cause)

    @property
    def _logs_step(self) -> bool:
        """Whether Lightning would pass on what this training step logs."""
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        return every > 0 and (self.global_step + 1) % every == 0

    def _logged_terms(self, stage: str, batch: FaceBatch) -> tuple[dict[str, Tensor], Tensor]:
        terms = self.terms(batch)
        loss = total(terms, self.weights)
        evaluating = stage != "train"
        size = 0 if evaluating and batch.get("repeated") else len(batch["images"])
        size *= self.trainer.world_size  # Lightning averages the sizes in whole numbers
        if not (evaluating or self._logs_step):
            return terms, loss
        values = {f"{stage}/{name}": term.detach() for name, term in terms.items()}
        self.log_dict(values, batch_size=size, sync_dist=evaluating)
        self.log(f"{stage}/loss", loss.detach(), True, batch_size=size, sync_dist=evaluating)
        return terms, loss


def batch_norms(module: nn.Module) -> list[nn.Module]:
    """Its parts whose state a forward pass changes, synchronized ones among them."""
    return [m for m in module.modules() if isinstance(m, _NormBase) and m.track_running_stats]


def _norm_statistics(module: nn.Module) -> list[Tensor]:
    """Running means, variances and counts."""
    return [b for norm in batch_norms(module) for b in norm.buffers(recurse=False)]


@torch.no_grad()
def _copy(values: list[Tensor], into: list[Tensor]) -> None:
    if values:
        torch._foreach_copy_(into, values)


def _not_finite(terms: dict[str, Tensor], batch: FaceBatch) -> str:
    """What is NaN or infinite in a batch and its losses, in words; empty if nothing is."""
    bad = {name: term.item() for name, term in terms.items() if not torch.isfinite(term)}
    if not bad:
        return ""
    losses = ", ".join(f"{name} is {value}" for name, value in bad.items())
    ids = batch["sample_ids"]
    for key in ("images", "landmarks", "landmark_confidence", "masks"):
        finite = batch[key].flatten(0, 1).flatten(1).isfinite().all(1)
        if not finite.all():
            wrong = [name for name, good in zip(ids, finite.tolist(), strict=True) if not good]
            return f"{losses}; {key} not finite in {_few(wrong)}"
    return f"{losses} for {_few(ids)}"


def _few(names: list[str], most: int = 8) -> str:
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")
