"""Smooth random fields on a head and their principal components.

M. Luethi, T. Gerig, C. Jud, T. Vetter, "Gaussian Process Morphable Models", TPAMI 40(8), 2018: a
sum of Gaussian kernels of several lengths (their Sec. 3.2), made symmetric through the mirror and
approximated by its leading eigenfunctions (Nystroem, their Sec. 4).
"""

import numpy as np
from jaxtyping import Float, Int

from core.face_models.procedural.anatomy import FLIP, Head

FACE_SAMPLES, OTHER_SAMPLES = 210, 90  # Nystroem points on one half of the head


def scalar_factors(
    head: Head,
    scales: tuple[tuple[float, float], ...],
    strength: Float[np.ndarray, " n"],
    count: int,
) -> tuple[Float[np.ndarray, "m n"], Float[np.ndarray, "m n"]]:
    """Factors of the even and of the odd kernel.

    (k(x, y) +- k(x, mirror y)) / 2 = sum_j f_j(x) f_j(y), k a sum of Gaussians.

    Args:
        head: where the fields live.
        scales: length (mm) and standard deviation of each Gaussian kernel of the sum.
        strength: factor of the standard deviation per vertex, symmetric.
        count: how many factors to keep at most, the leading ones.

    Returns:
        The even and the odd factors, (anti)symmetric up to rounding.
    """
    samples = _samples(head)
    points, centres = head.mean, head.mean[samples]
    direct, reflected = (
        (points**2).sum(1)[:, None] + (c**2).sum(1) - 2 * points @ c.T
        for c in (centres, centres * FLIP)
    )
    even, odd = np.zeros_like(direct), np.zeros_like(direct)
    for length, deviation in scales:
        near = 0.5 * deviation**2 * np.exp(-0.5 / length**2 * direct)
        far = 0.5 * deviation**2 * np.exp(-0.5 / length**2 * reflected)
        even += near + far
        odd += near - far
    result = []
    for kernel in (even, odd):
        kernel *= strength[:, None] * strength[samples]
        variance, vectors = np.linalg.eigh(kernel[samples])
        keep = np.argsort(-variance, kind="stable")[:count]
        keep = keep[variance[keep] > 1e-6 * variance.max()]
        result.append((kernel @ (vectors[:, keep] / np.sqrt(variance[keep]))).T)
    return result[0], result[1]


def _samples(head: Head) -> Int[np.ndarray, " m"]:
    """Vertices of the left half, evenly spread (farthest points first), denser in the face."""
    half = (head.mean[:, 0] >= 0) & ~head.is_eyeball
    chosen: list[int] = []
    nearest = np.full(len(head.mean), np.inf)
    for candidates, count in ((half & head.face, FACE_SAMPLES), (half, OTHER_SAMPLES)):
        pool = np.flatnonzero(candidates)
        for _ in range(min(count, len(pool))):
            vertex = int(pool[nearest[pool].argmax()])
            chosen.append(vertex)
            distance = ((head.mean[pool] - head.mean[vertex]) ** 2).sum(1)
            nearest[pool] = np.minimum(nearest[pool], distance)
    return np.unique(chosen)


def principal_modes(
    head: Head, factors: Float[np.ndarray, "m n 3"], count: int
) -> Float[np.ndarray, "k n 3"]:
    """The leading principal components of the covariance sum_j f_j f_j^T.

    Each times its standard deviation. Orthogonal and by falling variance, both as weighted by
    ``head.importance``; fewer than ``count`` where the covariance has no more.
    """
    flat = factors.reshape(len(factors), -1)
    weighted = (factors * np.sqrt(head.importance)[:, None]).reshape(len(factors), -1)
    variance, combination = np.linalg.eigh(weighted @ weighted.T)
    keep = np.argsort(-variance, kind="stable")[:count]
    keep = keep[variance[keep] > 1e-9 * variance.max()]
    return (combination[:, keep].T @ flat).reshape(len(keep), *factors.shape[1:])


def by_variance(
    head: Head, modes: Float[np.ndarray, "m n 3"], count: int
) -> Float[np.ndarray, "k n 3"]:
    """The largest modes first; the largest value on the left half is positive."""
    variance = head.importance @ (modes**2).sum(-1).T
    modes = modes[np.argsort(-variance, kind="stable")[:count]]
    left = modes[:, head.mean[:, 0] >= 0].reshape(len(modes), -1)
    largest = np.take_along_axis(left, np.abs(left).argmax(1)[:, None], 1)[:, 0]
    return modes * np.where(largest < 0, -1.0, 1.0)[:, None, None]
