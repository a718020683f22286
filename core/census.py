# ruff: noqa: ANN001, ANN202 - numba compiles the kernels for the types they are called with
"""How differently two images are patterned, whatever their light: the soft census transform.

The census transform of a pixel says of each neighbour whether it is brighter (Zabih and Woodfill
1994); how many neighbours differ between two images is their Hamming distance. Here both are soft,
so that they have gradients, as in UnFlow (Meister et al. 2018).

On the CPU distance and gradient are fused kernels: each of a picture's 48 differences lives for a
row only. On other devices, and under torch.compile, they are plain operations.
"""

from typing import Any, no_type_check

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.compiler import is_compiling

from core.losses import weighted_mean
from core.precision import at_least_float32, without_autocast
from core.rasterize.kernels import kernel
from core.rasterize.threads import over_images

SIDE = 7  # Sec. 3.3 of PGN
HALF = SIDE // 2
NEIGHBOURS = SIDE**2 - 1
OFFSETS = [(i, j) for i in range(SIDE) for j in range(SIDE) if (i, j) != (HALF, HALF)]
GREY = (0.299, 0.587, 0.114)  # BT.601
NOISE = 0.9 / 255  # UnFlow's: differences below this say little
CONTRAST = 0.5  # ours: nor do those below this share of the neighbourhood's
BIT = 0.1  # UnFlow's: squared difference of two signs that counts half a bit


def census_loss(
    image: Float[Tensor, "*b 3 h w"],
    target: Float[Tensor, "*b 3 h w"],
    weight: Float[Tensor, "*b 1 h w"],
) -> Float[Tensor, ""]:
    """Eq. 9 of PGN, without its weight: ``census_distance`` in bits.

    Averaged over the pixels of each image, weighted, then over the images with any weight; 0 if
    none has.

    Args:
        image: drawn.
        target: the photo.
        weight: M2d * W, >= 1 or 0.
    """
    return weighted_mean(census_distance(image, target), weight)


def census_distance(
    image: Float[Tensor, "*b 3 h w"], target: Float[Tensor, "*b 3 h w"]
) -> Float[Tensor, "*b 1 h w"]:
    """The soft Hamming distance of the 7 x 7 census transforms at each pixel, 0 to 47 bits.

    With d the grey value of a neighbour minus the pixel's, its soft sign is d / sqrt(d^2 + NOISE^2
    + (CONTRAST c)^2), c^2 the mean of d^2 over the 48 neighbours: the same for all offsets of the
    image and, but for the noise, all gains, as hard signs are. Two signs s and t differ by (s -
    t)^2 / (BIT + (s - t)^2) bits. Beyond the images their border is repeated.

    Gradients reach both images.
    """
    with without_autocast(image):
        pair = [_padded_grey(at_least_float32(each)) for each in (image, target)]
        plain = pair[0].device.type != "cpu" or is_compiling()
        distance = census_distance_plain(*pair) if plain else _Distance.apply(*pair)
    return distance.view(*image.shape[:-3], 1, *image.shape[-2:])


def census_distance_plain(
    image: Float[Tensor, "n hp wp"], target: Float[Tensor, "n hp wp"]
) -> Float[Tensor, "n h w"]:
    """The same of grey images with 3 pixels around, in plain operations: the kernels' reference."""
    squared = (_signs(image) - _signs(target)).square()
    return (squared / (BIT + squared)).sum(1)


def _padded_grey(images: Tensor) -> Tensor:
    """Grey values with the border repeated, "n h+6 w+6"."""
    red, green, blue = images.unbind(-3)
    grey = GREY[0] * red + GREY[1] * green + GREY[2] * blue
    return F.pad(grey.reshape(-1, 1, *grey.shape[-2:]), (HALF,) * 4, mode="replicate")[:, 0]


def _signs(padded: Tensor) -> Tensor:
    """The soft signs of the neighbours of each pixel, "n 48 h w"."""
    height, width = padded.shape[-2] - 2 * HALF, padded.shape[-1] - 2 * HALF
    around = torch.stack([padded[:, i : i + height, j : j + width] for i, j in OFFSETS], 1)
    difference = around - padded[:, None, HALF:-HALF, HALF:-HALF]
    squared = difference.square()
    base = NOISE**2 + CONTRAST**2 * squared.mean(1, keepdim=True)
    return difference * (squared + base).rsqrt()


class _Distance(torch.autograd.Function):
    """``census_distance_plain`` on the CPU."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, target: Tensor) -> Tensor:
        image, target = image.contiguous(), target.to(image).contiguous()
        count, height, width = image.shape
        distance = image.new_empty(count, height - 2 * HALF, width - 2 * HALF)
        over_images(_forward, count, image, target, distance)
        ctx.save_for_backward(image, target)
        return distance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        image, target = ctx.saved_tensors
        gradient = gradient.contiguous()
        results: list[Tensor | None] = []
        # the distance is symmetric
        for wanted, pair in zip(
            ctx.needs_input_grad, ((image, target), (target, image)), strict=True
        ):
            results.append(torch.zeros_like(image) if wanted else None)
            if wanted:
                over_images(_backward, len(image), *pair, gradient, results[-1])
        return results[0], results[1]


@kernel
@no_type_check
def _bases(padded, row, width, base):
    """Write what is added to the squared differences of a row's pixels."""
    kind = padded.dtype.type
    noise, share = kind(NOISE**2), kind(CONTRAST**2 / NEIGHBOURS)
    base[:] = kind(0)
    centre = padded[row + HALF]
    for i in range(SIDE):
        other = padded[row + i]
        for j in range(SIDE):
            for x in range(width):
                difference = other[x + j] - centre[x + HALF]
                base[x] += difference * difference
    for x in range(width):
        base[x] = noise + share * base[x]


@kernel
@no_type_check
def _forward(first, last, images, targets, distances):
    height, width = distances.shape[1:]
    kind = distances.dtype.type
    bit = kind(BIT)
    base, wanted_base = np.empty(width, distances.dtype), np.empty(width, distances.dtype)
    for image in range(first, last):
        padded, wanted = images[image], targets[image]
        for row in range(height):
            _bases(padded, row, width, base)
            _bases(wanted, row, width, wanted_base)
            centre, wanted_centre = padded[row + HALF], wanted[row + HALF]
            out = distances[image, row]
            out[:] = kind(0)
            for i in range(SIDE):
                other, wanted_other = padded[row + i], wanted[row + i]
                for j in range(SIDE):  # the pixel itself adds 0
                    for x in range(width):
                        d = other[x + j] - centre[x + HALF]
                        e = wanted_other[x + j] - wanted_centre[x + HALF]
                        off = d / np.sqrt(d * d + base[x]) - e / np.sqrt(e * e + wanted_base[x])
                        squared = off * off
                        out[x] += squared / (bit + squared)
    return 0


@kernel
@no_type_check
def _backward(first, last, images, targets, gradients, results):
    """Add the gradient with respect to ``images`` to ``results``."""
    height, width = gradients.shape[1:]
    kind = gradients.dtype.type
    bit, share = kind(BIT), kind(CONTRAST**2 / NEIGHBOURS)
    two = kind(2)
    base, wanted_base = np.empty(width, gradients.dtype), np.empty(width, gradients.dtype)
    by_base, own = np.empty(width, gradients.dtype), np.empty(width, gradients.dtype)
    by_difference = np.empty((SIDE * SIDE, width), gradients.dtype)
    for image in range(first, last):
        padded, wanted, result = images[image], targets[image], results[image]
        for row in range(height):
            _bases(padded, row, width, base)
            _bases(wanted, row, width, wanted_base)
            centre, wanted_centre = padded[row + HALF], wanted[row + HALF]
            gradient = gradients[image, row]
            by_base[:] = kind(0)
            own[:] = kind(0)
            for i in range(SIDE):
                other, wanted_other = padded[row + i], wanted[row + i]
                for j in range(SIDE):
                    kept = by_difference[i * SIDE + j]
                    for x in range(width):
                        d = other[x + j] - centre[x + HALF]
                        e = wanted_other[x + j] - wanted_centre[x + HALF]
                        inverse = kind(1) / np.sqrt(d * d + base[x])
                        off = d * inverse - e / np.sqrt(e * e + wanted_base[x])
                        below = bit + off * off
                        # by the sign, over the cube of its root
                        by_sign = gradient[x] * two * off * bit / (below * below)
                        by_sign *= inverse * inverse * inverse
                        kept[x] = by_sign * base[x]
                        by_base[x] -= by_sign * d  # half of it: base has d^2, of which 2 d comes
            for i in range(SIDE):
                other, target = padded[row + i], result[row + i]
                for j in range(SIDE):
                    kept = by_difference[i * SIDE + j]
                    for x in range(width):
                        d = other[x + j] - centre[x + HALF]
                        each = kept[x] + share * by_base[x] * d
                        own[x] += each
                        target[x + j] += each
            for x in range(width):
                result[row + HALF, x + HALF] -= own[x]
    return 0
