"""RunBenchmark: any Benchmark, during training and at its end, and as what ``test`` does."""

from pathlib import Path

import torch
from jaxtyping import Float
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor

from benchmarks.base import Benchmark, Results
from callbacks.evaluation import evaluating
from core.contracts import Reconstruction


class RunBenchmark(Callback):
    """Scores the method with a benchmark; for several, list this callback several times.

    Means are logged as ``benchmark/<name>/<metric>``; <run folder>/benchmarks/<name>.json and .md
    hold the latest results with protocol, spread, failures and baselines. Only the first process
    runs it, on its device, while the others wait. Neither the network's state nor any random number
    of the training changes.

    Args:
        benchmark: what to run.
        every_n_epochs: also after every so many training epochs; never by default.
        at_fit_end: also when training ends.
        at_test: for the subcommand ``test``.
    """

    def __init__(
        self,
        benchmark: Benchmark,
        every_n_epochs: int | None = None,
        at_fit_end: bool = False,
        at_test: bool = True,
    ) -> None:
        if every_n_epochs is not None and every_n_epochs < 1:
            raise ValueError(
                f"RunBenchmark: every_n_epochs is {every_n_epochs}; wanted at least 1, or null"
            )
        self.benchmark, self.every_n_epochs = benchmark, every_n_epochs
        self.at_fit_end, self.at_test = at_fit_end, at_test

    @property
    def state_key(self) -> str:
        """Different for each benchmark, so that Lightning accepts several of these callbacks."""
        return self._generate_state_key(benchmark=self.benchmark.name)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After every ``every_n_epochs``-th epoch."""
        if self.every_n_epochs and (trainer.current_epoch + 1) % self.every_n_epochs == 0:
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
        if trainer.is_global_zero:
            results = self._score(trainer, pl_module)
            paths = results.save(Path(trainer.default_root_dir) / "benchmarks")
            means = {f"benchmark/{results.benchmark}/{k}": v for k, v in results.means().items()}
            for logger in trainer.loggers:
                logger.log_metrics(means, step=trainer.global_step)
                logger.save()
            if report:
                rank_zero_info(
                    f"\n{results.to_markdown()}\nwritten to {', '.join(map(str, paths))}"
                )
        trainer.strategy.barrier()

    def _score(self, trainer: Trainer, pl_module: LightningModule) -> Results:
        def predict(images: Float[Tensor, "b v 3 h w"]) -> Reconstruction:
            with trainer.precision_plugin.val_step_context():
                face: Reconstruction = pl_module(images.to(pl_module.device))
            return face

        with evaluating(pl_module), torch.no_grad():
            results = self.benchmark.run(predict)
        method, checkpoint = type(pl_module), trainer.ckpt_path
        return results.with_run(
            method=f"{method.__module__}.{method.__qualname__}",
            checkpoint=str(checkpoint) if checkpoint and not trainer.training else None,
            step=trainer.global_step if trainer.training else None,
        )
