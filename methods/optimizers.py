"""Adam for all parameters, or Muon for some of the matrices, with an annealed rate."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LambdaLR


@dataclass(frozen=True)
class Part:
    """Parameters that begin to learn at the same time.

    Args:
        parameters: all of them.
        kernels: those among them that Muon turns, of convolutions or linear layers.
        start: the step at which they begin, and their learning rate rises.
        end: the step at which an annealed rate has fallen to 0, if before the others'; None = with
            them.
        lr: of Adam for them; None = that of the others.
        kernel_lr: of Muon for the kernels; None = that of the others.
        name: of their group in the optimizer, by which callbacks find it.
    """

    parameters: Iterable[Tensor]
    kernels: Iterable[Tensor] = ()
    start: int = 0
    end: int | None = None
    lr: float | None = None
    kernel_lr: float | None = None
    name: str = ""


def optimizer_of_parts(
    parts: list[Part],
    lr: float,
    kernel_lr: float | None,
    anneal_steps: int | None,
    halve_every: int | None = None,
) -> OptimizerLRSchedulerConfig:
    """What ``configure_optimizers`` returns: one optimizer, whose rates follow ``annealed``.

    Args:
        parts: each parameter in one of them.
        lr: of Adam.
        kernel_lr: of Muon (Jordan et al. 2024) for the kernels; None = Adam for them, too, but in
            parts with a rate of their own.
        anneal_steps: the step at which all rates have fallen to 0; None = constant rates.
        halve_every: so many steps after a part's start, and again and again, its rates are halved.
    """
    groups: list[dict[str, Any]] = []
    factors: list[Callable[[int], float]] = []
    for part in parts:
        end = anneal_steps
        if anneal_steps is not None and part.end is not None:
            end = min(part.end, anneal_steps)
        until = end and end - part.start
        factor = partial(_from, start=part.start, until=until, halve_every=halve_every)
        of_muon = kernel_lr if part.kernel_lr is None else part.kernel_lr
        kernels = [] if of_muon is None else list(part.kernels)
        chosen = set(kernels)
        rest = [parameter for parameter in part.parameters if parameter not in chosen]
        if kernels:
            groups.append({"params": kernels, "lr": of_muon, "nesterov": True})
            factors.append(factor)
        own = lr if part.lr is None else part.lr
        group = {"params": rest, "lr": own, "betas": (0.9, 0.999), "eps": 1e-8}
        groups.append(group | {"name": part.name} if part.name else group)
        factors.append(factor)
    optimizer: Optimizer
    if not any("nesterov" in group for group in groups):
        optimizer = Adam(groups, lr=lr, fused=True)
    else:
        from methods.muon import Muon  # takes seconds

        for group in groups:
            group["use_fallback"] = "betas" in group  # Adam
        # as it was published: no decay, no scaling by size; but with three iterations instead of
        # five, which learn as well and make a step of CEST's default a sixth cheaper
        optimizer = Muon(groups, adjust_lr_fn="original", normalize_spatial=False, ns_steps=3)
    scheduler = LambdaLR(optimizer, factors)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def annealed(step: int, steps: int | None, rise: int = 50) -> float:
    """The factor of the learning rate: 1, or a linear rise and a cosine fall to 0 at ``steps``."""
    if steps is None or step < 0:
        return 1.0
    fall = (1 + math.cos(math.pi * min(1.0, step / max(1, steps)))) / 2
    return min(1.0, (step + 1) / rise) * fall


def _from(step: int, start: int, until: int | None, halve_every: int | None) -> float:
    passed = step - start
    halvings = max(0, passed) // halve_every if halve_every else 0
    return annealed(passed, until) * 0.5**halvings
