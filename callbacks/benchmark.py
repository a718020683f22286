"""RunBenchmark: any Benchmark, during training and at its end, and as what ``test`` does."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor, distributed

from benchmarks.base import Benchmark, Results
from callbacks.evaluation import evaluating
from callbacks.loggers import log_results
from core.contracts import Reconstruction
from core.provenance import file_hash, run_provenance, weights_hash

PATIENCE = timedelta(days=7)  # of the processes that wait while the first one runs a benchmark


class RunBenchmark(Callback):
    """Scores the method with a benchmark; for several, list this callback several times.

    Means are logged as ``benchmark/<name>/<metric>``, all of it to Weights & Biases
    (``callbacks.loggers``); <run folder>/benchmarks/<name>.json and .md hold the latest results
    with protocol, spread, failures and baselines, and under ``run`` what was scored: method, file
    and hash of the checkpoint (none in training), hash of the weights, hash of the settings, seed,
    commit and step. Neither the network's state nor any random number of the training changes.

    Only the first process runs it, on its device, while the others wait: no sampler is involved
    that could hand out an image twice, and the result does not depend on how many there are.

    Args:
        benchmark: what to run.
        every_n_epochs: also after every so many training epochs; never by default.
        every_n_validations: also after every so many validations; never by default.
        at_fit_end: also when training ends.
        at_test: for the subcommand ``test``.
    """

    def __init__(
        self,
        benchmark: Benchmark,
        every_n_epochs: int | None = None,
        every_n_validations: int | None = None,
        at_fit_end: bool = False,
        at_test: bool = True,
    ) -> None:
        every = {"every_n_epochs": every_n_epochs, "every_n_validations": every_n_validations}
        for name, value in every.items():
            if value is not None and value < 1:
                raise ValueError(f"RunBenchmark: {name} is {value}; wanted at least 1, or null")
        self.benchmark, self.every_n_epochs = benchmark, every_n_epochs
        self.every_n_validations, self._validations = every_n_validations, 0
        self.at_fit_end, self.at_test = at_fit_end, at_test

    @property
    def state_key(self) -> str:
        """Different for each benchmark, so that Lightning accepts several of these callbacks."""
        return self._generate_state_key(benchmark=self.benchmark.name)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After every ``every_n_epochs``-th epoch."""
        if self.every_n_epochs and (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._run(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After every ``every_n_validations``-th validation of this training."""
        if self.every_n_validations and _in_training(trainer) and not trainer.sanity_checking:
            self._validations += 1
            if self._validations % self.every_n_validations == 0:
                self._run(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """When training ends, if asked for."""
        if self.at_fit_end:
            self._run(trainer, pl_module, report=True)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """For the subcommand ``test``."""
        if self.at_test:
            self._run(trainer, pl_module, report=True)

    def _run(self, trainer: Trainer, pl_module: LightningModule, report: bool = False) -> None:
        with _others_wait():
            if not trainer.is_global_zero:
                return
            results = self._score(trainer, pl_module)
            paths = results.save(Path(trainer.default_root_dir) / "benchmarks")
            for logger in trainer.loggers:
                log_results(logger, results, trainer.global_step)
                logger.save()
            if report:
                rank_zero_info(
                    f"\n{results.to_markdown()}\nwritten to {', '.join(map(str, paths))}"
                )

    def _score(self, trainer: Trainer, pl_module: LightningModule) -> Results:
        def predict(images: Float[Tensor, "b v 3 h w"]) -> Reconstruction:
            with trainer.precision_plugin.val_step_context():
                face: Reconstruction = pl_module(images.to(pl_module.device))
            return face

        # What benchmarks keep (face models) may serve a training, too: no inference tensors.
        with evaluating(pl_module), torch.inference_mode(False), torch.no_grad():
            results = self.benchmark.run(predict)
        method, in_training = type(pl_module), _in_training(trainer)
        file = Path(trainer.ckpt_path) if trainer.ckpt_path and not in_training else None
        run = Path(trainer.default_root_dir) if in_training else file and file.parent.parent
        return results.with_run(
            method=f"{method.__module__}.{method.__qualname__}",
            checkpoint=str(file) if file else None,
            checkpoint_sha256=file_hash(file) if file else None,
            weights_sha256=weights_hash(pl_module.state_dict()),
            step=trainer.global_step if in_training else None,
            **run_provenance(run),
        )


def _in_training(trainer: Trainer) -> bool:
    """Also while it validates."""
    return bool(trainer.state.fn == TrainerFn.FITTING)


@contextmanager
def _others_wait() -> Iterator[None]:
    """All processes leave together, however long one of them takes: a training's own barrier may
    give up after minutes.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        yield
        return
    group: Any = distributed.new_group(backend="gloo", timeout=PATIENCE)
    yield
    distributed.barrier(group)
    distributed.destroy_process_group(group)
