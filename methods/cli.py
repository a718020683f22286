"""Every method's command line: LightningCLI with merged configs, short errors, runs that go on."""

import logging
import os
import shlex
import sys
import warnings
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, NoReturn

import torch
import yaml
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint, ProgressBar
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.utilities.model_helpers import is_overridden

from core.cores import available_cores
from core.errors import MonofaceError
from methods.explain import explain
from methods.front import (
    answer,
    default_config,
    fail,
    find_config,
    is_help,
    options,
)
from methods.merging import Config, compose, parameters
from methods.record import RunRecord, is_earlier, set_aside
from methods.resume import (
    CHECKPOINTS,
    AtomicCheckpointIO,
    LastCheckpoint,
    StepSeed,
    find_checkpoint,
)

# Lightning's advice that does not apply here, each with the reason.
QUIET = (
    "does not have many workers",  # decoding is cheap; the configs choose the number
    "Consider setting `persistent_workers",
    "exists and is not empty",  # the run's own folder, when it is resumed
    "is smaller than the logging interval",  # small data sets
    "LightningCLI's args parameter is intended",  # they are the command line's, merged
    "callbacks used to create the checkpoint",  # evaluation needs none of the training's
    "LeafSpec.* is deprecated",  # torch's own pytree, seen through Lightning
    "'set_vital' is deprecated",  # torch's, called by torchdata
    "in eval mode at the start of training",  # networks that a method has frozen
)

SEED = 0  # where neither config nor command line has seed_everything


def _matters(record: logging.LogRecord) -> bool:
    """Not Lightning's advertisements, nor how it saves each checkpoint."""
    text = record.getMessage()
    return "Tip:" not in text and "`weights_only` was not set" not in text


def main(method: str, argv: list[str] | None = None) -> None:
    """Runs a method's command line.

    Args:
        method: the path of its class, "methods.cest.CEST"; by path, since the class of a file that
            is run as a program would be called __main__.CEST in configs and checkpoints.
        argv: arguments; those of the process by default.
    """
    argv = sys.argv[1:] if argv is None else argv
    module, _, name = method.rpartition(".")
    answer(module, argv)
    for logger in ("utilities.rank_zero", "trainer.connectors.checkpoint_connector"):
        logging.getLogger(f"pytorch_lightning.{logger}").addFilter(_matters)
    with warnings.catch_warnings():
        for message in QUIET:
            warnings.filterwarnings("ignore", f".*{message}")
        try:
            _run(getattr(import_module(module), name), module, argv)
        except MonofaceError as error:
            fail(error)
        except RuntimeError as error:
            if "loading state_dict" not in str(error):
                raise
            fail(_does_not_fit(error))


def _does_not_fit(error: RuntimeError) -> MonofaceError:
    detail = " ".join(str(error).splitlines()[1].split())
    return MonofaceError(
        f"the checkpoint does not fit the configured network: {detail.rstrip(' .')}. "
        "Use the config of its run: --config <run>/config.yaml"
    )


def _run(method: type, module: str, argv: list[str]) -> None:
    if is_help(argv):
        CommandLine(method, argv, None, Config({}, []), "")
        return
    subcommand, arguments = argv[0], argv[1:]
    default = default_config(module)
    named = options(arguments, "--config", "-c")
    paths = [find_config(name) for name in named] or ([default] if default else [])
    folder = run_folder(method)
    defaults = {
        "model": _plain_defaults(method),
        "trainer": {"default_root_dir": folder},
        "seed_everything": SEED,
    }
    config = compose(paths, arguments, defaults)
    for note in config.notes:
        sys.stderr.write(f"note: {note}\n")

    # Lightning would let a checkpoint's hyperparameters override everything: it gets the path after
    # the parsing.
    checkpoints = options(arguments, "--ckpt_path")
    checkpoint = config.tree.pop("ckpt_path", None)
    rest = _without(arguments, "--config", "-c", "--ckpt_path")
    if subcommand == "predict":  # else all reconstructions are kept in memory; callbacks write them
        config.tree.setdefault("return_predictions", False)
    text = yaml.safe_dump(config.tree, sort_keys=False)
    CommandLine(
        method,
        [subcommand, f"--config={text}", *rest],
        checkpoints[-1] if checkpoints else checkpoint,
        config,
        shlex.join(["python", "-m", module, *argv]),
    )


def run_folder(method: type) -> str:
    """Where a method's runs go by default: runs/cest for methods.cest.CEST."""
    return f"runs/{method.__module__.rpartition('.')[2]}"


def threads_beside(workers: int) -> int:
    """Threads for torch beside so many reading processes; OMP_NUM_THREADS, if set, is obeyed."""
    if "OMP_NUM_THREADS" in os.environ:
        return torch.get_num_threads()
    return max(1, available_cores() - workers)


def _plain_defaults(method: type) -> dict[str, Any]:
    """The defaults of a method that ``${model.name}`` can refer to."""
    known = parameters(method).values()
    return {p.name: p.default for p in known if isinstance(p.default, int | float | str)}


def _without(arguments: list[str], *names: str) -> list[str]:
    rest, skip = [], False
    for part in arguments:
        if not skip and part.partition("=")[0] not in names:
            rest.append(part)
        skip = not skip and part in names
    return rest


class Parser(LightningArgumentParser):
    """A parser that raises its errors instead of printing forty lines of usage and leaving."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Also within another parser (``exit_on_error=False``), which adds where it was."""
        if not self.exit_on_error:
            super().error(message, ex)
        raise ParserError(message) from ex


class ParserError(Exception):
    """What a parser has to say."""


class CommandLine(LightningCLI):
    """LightningCLI with the suite's defaults.

    Args:
        method: the FaceMethod.
        argv: subcommand and settings, the files' merged into one.
        checkpoint: what --ckpt_path was given.
        config: the files' settings and where each came from, for messages.
        command: the command line, for the record.
    """

    def __init__(
        self, method: type, argv: list[str], checkpoint: str | None, config: Config, command: str
    ) -> None:
        self.checkpoint, self.settings, self.command = checkpoint, config, command
        super().__init__(
            method,
            save_config_callback=None,  # RunRecord does it
            trainer_defaults={"default_root_dir": run_folder(method)},
            seed_everything_default=SEED,
            parser_class=Parser,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            args=argv,
        )

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Without abbreviations, ``--trainer.max_step`` for max_steps, which would hide typos."""
        return super().init_parser(allow_abbrev=False, **kwargs)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Turns the parser's errors into short ones."""
        try:
            super().parse_arguments(parser, args)
        except ParserError as error:
            keys = list(self._parser(args[0]).get_defaults().keys())
            raise MonofaceError(explain(str(error), keys, self.settings)) from error

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Settings of the suite's own."""
        parser.add_argument(
            "--checkpoint_every", type=int, default=100, help="Steps between writes of last.ckpt."
        )

    def before_instantiate_classes(self) -> None:
        """Finds the checkpoint before anything is built."""
        if self._get(self.config, "data") is None:
            raise MonofaceError(
                "no data: a method's own config comes first, files that add to it after; "
                "--config configs/cest.yaml --config configs/wandb.yaml"
            )
        self.folder = Path(self._get(self.config, "trainer").default_root_dir)
        found = find_checkpoint(self.checkpoint, self.folder, self.subcommand == "fit")
        self.checkpoint = str(found) if found else None
        if found is None and self.subcommand != "fit":
            sys.stderr.write("note: no --ckpt_path, so this is the untrained network\n")
        self.config[self.subcommand].ckpt_path = self.checkpoint
        if not self._get(self.config, "trainer").fast_dev_run:
            self._check_folder()

    def _check_folder(self) -> None:
        """That the run's folder can be written into, before the heavy work."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with TemporaryFile(dir=self.folder):
                pass
        except OSError as error:
            key = "trainer.default_root_dir"
            raise MonofaceError(
                f"{self.settings.where(key)}{key}: cannot write into '{self.folder}': "
                f"{error.strerror}; choose another folder with --{key}"
            ) from error

    def instantiate_classes(self) -> None:
        """Lets what a class says about its settings out of the parser's own error."""
        try:
            super().instantiate_classes()
        except ValueError as error:
            if "Does not validate" not in str(error):
                raise
            raise MonofaceError(explain(str(error), [], self.settings)) from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Adds the suite's callbacks and logger to those of the config."""
        settings = self._get(self.config_init, "trainer")
        callbacks = settings.callbacks or []
        callbacks = list(callbacks) if isinstance(callbacks, list) else [callbacks]
        seed = self._get(self.config, "seed_everything")
        if seed is not False:
            callbacks.append(StepSeed(seed))
        if self.subcommand == "fit" and not settings.fast_dev_run:
            callbacks += self._fit_callbacks(settings, callbacks)
        kwargs["callbacks"] = callbacks
        if settings.logger is None or settings.logger is True:
            kwargs["logger"] = CSVLogger(self.folder, "metrics")
        trainer = super().instantiate_trainer(**kwargs)
        if isinstance(trainer.strategy, DDPStrategy):
            # A phase of a training may leave networks out. Where no process uses a parameter, its
            # gradient stays None and optimizers pass it by, as they do on one device.
            trainer.strategy._ddp_kwargs.setdefault("find_unused_parameters", True)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        return trainer

    def _fit_callbacks(self, settings: Any, configured: list[Any]) -> list[Any]:
        parser = self._parser(self.subcommand)
        config = self.config[self.subcommand].clone()
        config.ckpt_path = None  # of the run, not of its settings
        text = parser.dump(config, skip_none=False)
        record = RunRecord(self.folder, yaml.safe_load(text), text, self.command, self.checkpoint)
        if settings.enable_checkpointing is False:
            return [record]
        folder = self.folder / CHECKPOINTS
        own = [callback for callback in configured if isinstance(callback, ModelCheckpoint)]
        for callback in own:
            callback.dirpath = callback.dirpath or str(folder)
        best = ModelCheckpoint(
            folder,
            "best",
            monitor="val/loss",
            save_on_train_epoch_end=False,
            enable_version_counter=False,
        )
        last = LastCheckpoint(folder, self._get(self.config, "checkpoint_every"))
        return [record, last, *([] if own else [best])]

    def before_fit(self) -> None:
        """Training that starts anew does not overwrite an earlier one's results.

        And it leaves a core to each reading process: threads of one operation that wait for each
        other while something else has their core were seen to take ten times as long.
        """
        torch.set_num_threads(threads_beside(getattr(self.datamodule, "workers", 0)))
        fast_dev_run = self._get(self.config, "trainer").fast_dev_run
        if self.trainer.is_global_zero and not self._goes_on() and not fast_dev_run:
            set_aside(self.folder)

    def _goes_on(self) -> bool:
        """Whether the checkpoint is the run's own, not of an earlier one that was set aside."""
        path, folder = Path(self.checkpoint or ""), self.folder.resolve()
        own = path.resolve().is_relative_to(folder)
        return bool(self.checkpoint) and own and not any(map(is_earlier, path.parents))

    def before_predict(self) -> None:
        """Prediction without anything that takes the faces would be for nothing.

        Raises:
            MonofaceError: no callback does, nor the method itself.
        """
        if self._get(self.config, "return_predictions"):
            return
        callbacks: list[Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        takers = [callback for callback in callbacks if not isinstance(callback, ProgressBar)]
        hooks = [f"on_predict_{when}" for when in ("batch_end", "epoch_end", "end")]
        if not any(is_overridden(hook, part) for hook in hooks for part in (*takers, self.model)):
            raise MonofaceError(
                "trainer.callbacks: none writes what is predicted; add --config "
                "configs/predict.yaml, the last of those that set callbacks"
            )
