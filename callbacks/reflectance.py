"""RaiseReflectance: FML's last stage of training, with a larger rate for the reflectance."""

from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from core.errors import MonofaceError

GROUP = "reflectance"  # the optimizer's, by name


class RaiseReflectance(Callback):
    """From a step on, the learned reflectance's learning rate is that of the schedule times a
    factor ("fine-tuned using a larger learning rate for reflectance", Tewari et al. 2019, Sec. 4).

    It keeps no state: a resumed training goes on as it was.

    Args:
        start: the first step of the stage.
        factor: ours; the paper gives none.
    """

    def __init__(self, start: int, factor: float = 10.0) -> None:
        self.start, self.factor = start, factor

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Looks for the group.

        Raises:
            MonofaceError: the method's optimizer has none of that name.
        """
        if not any(self._chosen(trainer)):
            raise MonofaceError(
                f"RaiseReflectance: {type(pl_module).__name__}'s optimizer has no group "
                f"'{GROUP}'; leave this callback out, it is for methods.fml"
            )

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """The rate of this step."""
        if trainer.global_step < self.start:
            return
        (config,) = trainer.lr_scheduler_configs
        rates = config.scheduler.get_last_lr()
        groups = trainer.optimizers[0].param_groups
        for group, rate, chosen in zip(groups, rates, self._chosen(trainer), strict=True):
            if chosen:
                group["lr"] = rate * self.factor

    @staticmethod
    def _chosen(trainer: Trainer) -> list[bool]:
        return [group.get("name") == GROUP for group in trainer.optimizers[0].param_groups]
