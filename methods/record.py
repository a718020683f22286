"""What a run was: its config, versions, seed and git state, written beside its checkpoints."""

import json
import platform
import time
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_info

from core.errors import MonofaceError
from core.provenance import SOURCE, git_state
from methods.resume import CHECKPOINTS

PACKAGES = [
    "monoface",
    "torch",
    "torchvision",
    "pytorch-lightning",
    "numpy",
    "scipy",
    "kornia",
    "timm",
]
PACKAGES += ["numba", "jsonargparse", "omegaconf", "nvdiffrast"]
EARLIER = "earlier"  # .1, .2, ...: folders within the run's


class RunRecord(Callback):
    """Writes config.yaml, which ``--config`` takes again, and run.json when training starts.

    Those of earlier starts of the same run (it was resumed) are kept as config.1.yaml, run.1.json
    and so on. The config is also given to every logger.

    Args:
        folder: the run's.
        config: all settings.
        text: the same as YAML.
        command: the command line.
        resumed_from: the checkpoint, if any.
    """

    def __init__(
        self,
        folder: Path,
        config: dict[str, Any],
        text: str,
        command: str,
        resumed_from: str | None,
    ) -> None:
        self.folder, self.config, self.text = folder, config, text
        self.command, self.resumed_from = command, resumed_from

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """In the first process only."""
        if stage != "fit" or not trainer.is_global_zero:
            return
        method = type(pl_module)
        record = {
            "method": f"{method.__module__}.{method.__qualname__}",
            "command": self.command,
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "seed": self.config.get("seed_everything"),
            "resumed_from": self.resumed_from,
            "git": git_state(SOURCE),
            "versions": versions(),
            "devices": {"accelerator": trainer.accelerator.name(), "count": trainer.world_size},
        }
        write_numbered(self.folder / "config.yaml", self.text)
        write_numbered(self.folder / "run.json", json.dumps(record, indent=2) + "\n")
        for logger in trainer.loggers:
            logger.log_hyperparams(self.config)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock."""
        self._start, self._first = time.monotonic(), trainer.global_step

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """With each checkpoint, so that a killed start has counted up to its last one."""
        self._write_progress(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The final count."""
        self._write_progress(trainer)

    def _write_progress(self, trainer: Trainer) -> None:
        """How long this start of the run has trained, and its steps, into run.json."""
        if not trainer.is_global_zero:
            return
        path = self.folder / "run.json"
        record = json.loads(path.read_text(encoding="utf-8"))
        record["train_seconds"] = round(time.monotonic() - self._start, 1)
        record["steps"] = {"first": self._first, "last": trainer.global_step}
        unfinished = path.with_suffix(".tmp")  # a kill leaves the old file or the new one
        unfinished.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        unfinished.replace(path)


def versions() -> dict[str, str]:
    """Of Python and of what is installed of the packages that matter."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def write_numbered(path: Path, text: str) -> None:
    """Writes a file; one that is there is kept, as name.1.suffix, name.2.suffix and so on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        path.rename(_unused(path.with_suffix(""), path.suffix))
    path.write_text(text, encoding="utf-8")


def set_aside(run: Path) -> None:
    """Moves all that is in the folder of an earlier training out of the way of one that starts
    anew, and says so.

    Also benchmarks, pictures and predictions: they are that network's, and would be taken for the
    new one's.

    Raises:
        MonofaceError: the working folder is, or is in, that folder, so that more than a run lies
            there.
    """
    if not any((run / CHECKPOINTS).glob("*.ckpt")):
        return
    if Path.cwd().is_relative_to(run.resolve()):
        raise MonofaceError(
            f"trainer.default_root_dir: {run} holds a training, and cannot be cleared for another, "
            "as the working folder is in it; --ckpt_path last goes on, another folder starts anew"
        )
    earlier = [path for path in run.iterdir() if not is_earlier(path)]
    place = _unused(run / EARLIER)
    place.mkdir()
    for path in earlier:
        path.rename(place / path.name)
    rank_zero_info(
        f"{run} held a training: moved to {place}. To go on with that one: "
        f"--ckpt_path {place / CHECKPOINTS / 'last.ckpt'}"
    )


def is_earlier(path: Path) -> bool:
    """Whether a part of a run's folder is an earlier run that was set aside."""
    return path.name.startswith(f"{EARLIER}.")


def _unused(stem: Path, suffix: str = "") -> Path:
    number = 1
    while (path := stem.with_name(f"{stem.name}.{number}{suffix}")).exists():
        number += 1
    return path
