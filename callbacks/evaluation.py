"""Using a network in the midst of its training without leaving a trace."""

from collections.abc import Iterator
from contextlib import contextmanager

from pytorch_lightning.utilities.seed import isolate_rng
from torch import nn


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards each submodule's mode and all random states are what they were.

    Unlike ``module.train()`` it leaves frozen submodules in evaluation mode.
    """
    modes = {part: part.training for part in module.modules()}
    with isolate_rng():
        module.eval()
        try:
            yield
        finally:
            for part, mode in modes.items():
                part.training = mode
