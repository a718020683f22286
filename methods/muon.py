"""Muon (Jordan et al. 2024): timm's, with a cheaper orthogonalization in float32.

A module of its own, as timm takes seconds to import.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from timm.optim import muon
from torch import Tensor


class Muon(muon.Muon):
    """timm's Muon, whose updates are ``orthogonalized``.

    timm takes no such function: while its step runs, the one in its module is replaced, and only
    then, so that other optimizers of timm keep theirs. Copies and subclasses step as this does.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; the closure, which computes losses and gradients, runs before it.

        Returns:
            What the closure does.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        theirs = muon.zeropower_via_newtonschulz
        muon.zeropower_via_newtonschulz = orthogonalized  # type: ignore[assignment]
        try:
            super().step()
        finally:
            muon.zeropower_via_newtonschulz = theirs
        return loss


def orthogonalized(
    matrix: Float[Tensor, "m n"],
    steps: int,
    coefficients: Sequence[tuple[float, float, float]],
    eps: float,
    safety_factor: float = 1.0,
    scale_eps: bool = False,
) -> Float[Tensor, "m n"]:
    """Muon's Newton-Schulz iteration X <- a X + (b A + c A A) X, A = X X^T, in float32.

    What timm's function of these arguments computes in bfloat16. There each iteration multiplies
    the wide matrix twice; here it is multiplied twice altogether, as all iterates are polynomials
    of the first A times the first X, and A of the next iterate follows from that of the last. That
    takes half the operations for our kernels, and processors without instructions for bfloat16
    matrices are twice as fast in float32.

    Args:
        matrix: a gradient; its singular values come out near 1.
        steps: iterations.
        coefficients: (a, b, c) of each iteration; the last one is repeated.
        eps: least norm by which the matrix is divided.
        safety_factor: of that norm.
        scale_eps: not supported.
    """
    assert not scale_eps
    wide = matrix.float() if matrix.shape[0] <= matrix.shape[1] else matrix.float().mT
    wide = wide / (wide.norm() * safety_factor).clamp(min=eps)
    square = wide @ wide.mT
    product: Tensor | None = None
    for step in range(steps):
        a, b, c = coefficients[min(step, len(coefficients) - 1)]
        factor = torch.addmm(square, square, square, beta=b, alpha=c)
        factor.diagonal().add_(a)
        product = factor if product is None else factor @ product
        if step + 1 < steps:
            square = factor @ square @ factor
    found = wide if product is None else product @ wide
    return found if matrix.shape[0] <= matrix.shape[1] else found.mT
