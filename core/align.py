"""Alignment of point sets whose points correspond."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

FLATNESS = (
    1e-10  # smallest ratio of the second to the first variance of points that are not on one line
)


@dataclass(frozen=True)
class Similarity:
    """x -> scale * rotation @ x + translation."""

    scale: Float[Tensor, "*b"]
    rotation: Float[Tensor, "*b 3 3"]
    translation: Float[Tensor, "*b 3"]

    def apply(self, points: Float[Tensor, "*b n 3"]) -> Float[Tensor, "*b n 3"]:
        """The points moved."""
        turned = points @ self.rotation.mT
        return self.scale[..., None, None] * turned + self.translation[..., None, :]


def procrustes(
    source: Float[Tensor, "*b n 3"], target: Float[Tensor, "*b n 3"], scale: bool = True
) -> Similarity:
    """The similarity that best maps source onto target in least squares (Umeyama 1991, Eq. 40-42).

    Convention: points are columns, target = s R source + t; det R = +1 always, so a mirrored face
    does not fit. Computed in float64, returned in the dtype of ``source``.

    Args:
        source: points in any unit.
        target: the corresponding points; s carries source's unit into target's.
        scale: fit s; otherwise s = 1 (rigid).

    Returns:
        s, R, t. Differentiable except where singular values coincide.

    Raises:
        ValueError: NaN or infinite points, fewer than three, or all of a set on one line.
    """
    x, y = source.double(), target.double()
    x_mean, y_mean = x.mean(-2, keepdim=True), y.mean(-2, keepdim=True)
    x, y = x - x_mean, y - y_mean
    for name, points in (("source", x), ("target", y)):
        _check(name, points)
    U, singular, Vh = torch.linalg.svd(y.mT @ x)  # of the covariance, times n
    sign = torch.ones_like(singular)
    sign[..., 2] = (torch.det(U) * torch.det(Vh)).sign().detach()
    R = (U * sign[..., None, :]) @ Vh
    if scale:
        s = (singular * sign).sum(-1) / x.square().sum((-2, -1))
    else:
        s = torch.ones_like(singular[..., 0])
    t = y_mean[..., 0, :] - s[..., None] * (R @ x_mean.mT)[..., 0]
    return Similarity(s.to(source.dtype), R.to(source.dtype), t.to(source.dtype))


def _check(name: str, centred: Tensor) -> None:
    """Raise ValueError unless the centred points span a plane at least."""
    points = centred.detach()
    if not points.isfinite().all():
        raise ValueError(
            f"procrustes: {name} holds NaN or infinite coordinates; drop those points before"
        )
    variance = torch.linalg.eigvalsh(points.mT @ points)  # ascending
    bad = variance[..., 1] <= FLATNESS * variance[..., 2]
    if bad.any():
        raise ValueError(
            f"procrustes: {name} ({points.shape[-2]} points) must have at least three points "
            f"that are not on one line; that is not so in {int(bad.sum())} of {bad.numel()} sets"
        )
