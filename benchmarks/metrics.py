"""Errors of reconstructed faces as pure functions: one number per image, the unit in the name.

Nothing is averaged over images here. What cannot be computed is NaN, never a number: an empty mask,
or NaN in the input. The inputs are not changed.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from core.align import procrustes
from core.rotation import euler_from_rotation, rotation_angle

YAW_BINS = (30.0, 60.0)
"""|yaw| <= 30, (30, 60] and > 60 degrees: the bins of AFLW2000-3D (Zhu et al. 2016)."""


FLAT = 1e-4  # of a logarithm's standard deviation: less counts as none
DARK = 0.02  # of reflectance and shading, whose logarithms are taken: less is this much


def nme_percent(
    predicted: Float[Tensor, "*b n 2"], target: Float[Tensor, "*b n 2"]
) -> Float[Tensor, "*b"]:
    """Normalised mean error of landmarks: mean distance / sqrt(w h) of the true points' box, in %.

    The AFLW2000-3D protocol of Zhu et al. 2016 (3DDFA): tight box around the true 68 points, not
    the detector's. Worked number: all 68 points of a face of 100 x 100 pixels 3 pixels off is 3 %.

    Args:
        predicted: pixels.
        target: pixels of the same image; its box must have an area.
    """
    distance = (predicted - target).norm(dim=-1).mean(-1)
    extent = target.amax(-2) - target.amin(-2)
    return 100 * distance / extent.prod(-1).sqrt()


def yaw_bin(yaw_degrees: Float[Tensor, "*b"]) -> Int[Tensor, "*b"]:
    """0, 1 or 2 for |yaw| <= 30, (30, 60] and > 60 degrees."""
    return torch.bucketize(yaw_degrees.abs(), yaw_degrees.new_tensor(YAW_BINS))


def balanced(yaw_degrees: Float[Tensor, " b"], seed: int) -> Int[Tensor, " m"]:
    """Indices of a random subset with as many images in each bin of |yaw|: that of the smallest."""
    which = yaw_bin(yaw_degrees)
    least = int(torch.bincount(which, minlength=3).min())
    random = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(which), generator=random)
    return torch.cat([order[which[order] == k][:least] for k in range(3)]).sort().values


def cumulative_percent(
    errors: Float[Tensor, " b"], thresholds: Float[Tensor, " t"]
) -> Float[Tensor, " t"]:
    """The cumulative error distribution (CED): how many errors are at most each threshold, in %.

    NaN is above every threshold: an image that could not be scored lowers the curve.
    """
    below = errors.double()[:, None] <= thresholds.double()
    return 100 * below.double().mean(0)


def error_curve(errors: Float[Tensor, " b"], most: float, points: int = 101) -> list[list[float]]:
    """``cumulative_percent`` as points (error, %) from 0 to ``most``, as ``Results.curves`` has
    it.
    """
    thresholds = torch.linspace(0, most, points, dtype=torch.float64)
    return torch.stack([thresholds, cumulative_percent(errors, thresholds)], -1).tolist()


def rotation_degrees(
    predicted: Float[Tensor, "*b 3 3"], target: Float[Tensor, "*b 3 3"]
) -> Float[Tensor, "*b"]:
    """The angle of the rotation between two poses (geodesic distance), in [0, 180]."""
    difference = predicted.double() @ target.double().mT
    return (rotation_angle(difference) * (180 / math.pi)).to(predicted.dtype)


def euler_degrees(
    predicted: Float[Tensor, "*b 3 3"], target: Float[Tensor, "*b 3 3"]
) -> Float[Tensor, "*b 3"]:
    """Absolute differences of pitch, yaw and roll (``core.rotation``) of two head rotations.

    In [0, 180]. Near a yaw of 90 degrees pitch and roll are ill defined and their errors large;
    ``rotation_degrees`` is not affected.
    """
    angles = [torch.stack(euler_from_rotation(x.double()), -1) for x in (predicted, target)]
    turn = 2 * math.pi
    difference = torch.remainder(angles[0] - angles[1] + math.pi, turn) - math.pi
    return (difference.abs() * (180 / math.pi)).to(predicted.dtype)


def point_to_point_mm(
    predicted: Float[Tensor, "*b n 3"], target: Float[Tensor, "*b n 3"]
) -> Float[Tensor, "*b"]:
    """Mean Euclidean distance of corresponding points in millimetres, as they are."""
    return (predicted - target).norm(dim=-1).mean(-1)


def aligned_point_to_point_mm(
    predicted: Float[Tensor, "*b n 3"], target: Float[Tensor, "*b n 3"], scale: bool
) -> Float[Tensor, "*b"]:
    """``point_to_point_mm`` after the prediction was moved onto the target in least squares.

    Computed in float64. No reflections: a mirrored face keeps its error.

    Args:
        predicted: any unit with ``scale``, millimetres without.
        target: the corresponding points, millimetres.
        scale: align with a similarity (rotation, translation, scale); otherwise rigidly.

    Raises:
        ValueError: points that are NaN, infinite or all on one line (see
            ``core.align.procrustes``).
    """
    x, y = predicted.double(), target.double()
    return point_to_point_mm(procrustes(x, y, scale).apply(x), y).to(predicted.dtype)


def photometric_255(
    predicted: Float[Tensor, "*b 3 h w"],
    target: Float[Tensor, "*b 3 h w"],
    mask: Float[Tensor, "*b 1 h w"],
) -> Float[Tensor, "*b"]:
    """Mean absolute difference over the channels and the mask's pixels, 0..255 (CEST Sec. 4.3).

    Args:
        predicted: RGB in [0, 1]; values beyond count as 0 or 1, as a file would hold them.
        target: RGB in [0, 1].
        mask: weights of the pixels, usually 0 or 1; an empty one gives NaN.
    """
    error = (predicted.clamp(0, 1) - target).abs().mean(-3, keepdim=True)
    return 255 * (error * mask).sum((-3, -2, -1)) / mask.sum((-3, -2, -1))


def photometric_rgb_255(
    predicted: Float[Tensor, "*b 3 h w"],
    target: Float[Tensor, "*b 3 h w"],
    mask: Float[Tensor, "*b 1 h w"],
) -> Float[Tensor, "*b"]:
    """Like ``photometric_255``, with the Euclidean distance of the colours (FML's Tab. 4)."""
    error = (predicted.clamp(0, 1) - target).norm(dim=-3, keepdim=True)
    return 255 * (error * mask).sum((-3, -2, -1)) / mask.sum((-3, -2, -1))


def coverage_percent(
    predicted: Float[Tensor, "*b 1 h w"], target: Float[Tensor, "*b 1 h w"]
) -> Float[Tensor, "*b"]:
    """How much of the target mask lies in the predicted one; NaN for an empty target."""
    return 100 * (predicted * target).sum((-3, -2, -1)) / target.sum((-3, -2, -1))


def shading_percent(
    predicted: Float[Tensor, "*b 3 h w"],
    target: Float[Tensor, "*b 3 h w"],
    shading: Float[Tensor, "*b 1 h w"],
    mask: Float[Tensor, "*b 1 h w"],
) -> Float[Tensor, "*b"]:
    """How much of the shading is in a reflectance: the correlation of log(predicted / target) with
    log(shading) over the mask's texels, in %.

    As an image is reflectance times shading, 100 is a reflectance that has taken a power of the
    shading over, 0 one whose errors have nothing to do with it, however large they are. It feels no
    gain.

    Args:
        predicted: RGB, as a UV map; its mean over the channels counts, at least ``DARK``.
        target: the same.
        shading: irradiance, also at least ``DARK``.
        mask: weights of the texels; an empty one gives NaN. Where nothing varies the result is 0.
    """
    error = _logarithm(predicted, mask) - _logarithm(target, mask)
    light = _logarithm(shading, mask)
    together, of_error, of_light = _products((error, light), (error, error), (light, light))
    return 100 * together / (of_error * of_light).sqrt().clamp(min=1e-12)


def shading_power_percent(
    predicted: Float[Tensor, "*b 3 h w"],
    target: Float[Tensor, "*b 3 h w"],
    shading: Float[Tensor, "*b 1 h w"],
    mask: Float[Tensor, "*b 1 h w"],
) -> Float[Tensor, "*b"]:
    """Which power of the shading is in a reflectance, in %: the least-squares coefficient of
    log(shading) where it explains log(predicted) together with log(target).

    100 is a reflectance that has taken all of the shading over. Unlike ``shading_percent`` it is 0
    for any power of the target, so also for a reflectance that tells little or nothing apart.

    Args:
        predicted: RGB, as a UV map; its mean over the channels counts, at least ``DARK``.
        target: the same.
        shading: irradiance, also at least ``DARK``.
        mask: weights of the texels; an empty one gives NaN. Where target and shading vary alike,
            or the shading does not vary, the result is 0.
    """
    found, true, light = (
        _logarithm(values.double(), mask.double()) for values in (predicted, target, shading)
    )
    light_found, true_found, light_true, of_true, of_light = _products(
        (light, found), (true, found), (light, true), (true, true), (light, light)
    )
    texels = mask.double().sum((-3, -2, -1))
    still = FLAT**2 * texels  # what varies less does not vary
    of_true = of_true.where(of_true > still, 0.0)
    determinant = of_light * of_true - light_true.square()
    both = (light_found * of_true - true_found * light_true) / determinant
    power = both.where(determinant > 1e-6 * of_light * of_true, 0.0)
    power = power.where(of_true > 0, light_found / of_light).where(of_light > still, 0.0)
    return 100 * power.where(texels > 0, torch.nan).to(predicted.dtype)


def _logarithm(
    values: Float[Tensor, "*b c h w"], mask: Float[Tensor, "*b 1 h w"]
) -> Float[Tensor, "*b 1 h w"]:
    """Of the mean over channels, minus its own mean over the mask, weighted for sums of squares."""
    logs = values.mean(-3, keepdim=True).clamp(min=DARK).log()
    mean = (logs * mask).sum((-2, -1), keepdim=True) / mask.sum((-2, -1), keepdim=True)
    return (logs - mean) * mask.sqrt()


def _products(*pairs: tuple[Tensor, Tensor]) -> list[Tensor]:
    return [(one * other).sum((-3, -2, -1)) for one, other in pairs]


def albedo_255(
    predicted: Float[Tensor, "*b 3 h w"],
    target: Float[Tensor, "*b 3 h w"],
    mask: Float[Tensor, "*b 1 h w"],
    gain: bool,
) -> Float[Tensor, "*b"]:
    """Mean absolute difference of reflectance over the channels and the mask's texels, 0..255.

    Twice the reflectance under half the light is the same image, and so it is for each colour. With
    ``gain`` the prediction is therefore first multiplied, channel by channel, with the factor that
    fits it best to the target (least squares over the mask).

    Args:
        predicted: RGB, about [0, 1], as a UV map; not clipped.
        target: the same.
        mask: weights of the texels; an empty one gives NaN.
        gain: fit the three factors; otherwise compare as it is.
    """
    if gain:
        across = (predicted * target * mask).sum((-2, -1), keepdim=True)
        power = (predicted.square() * mask).sum((-2, -1), keepdim=True)
        predicted = predicted * torch.where(power > 0, across / power.clamp(min=1e-12), 0)
    error = (predicted - target).abs().mean(-3, keepdim=True)
    return 255 * (error * mask).sum((-3, -2, -1)) / mask.sum((-3, -2, -1))
