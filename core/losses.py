"""Losses that several methods use, as pure functions, and the weighted sum of named terms."""

import dataclasses
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def total(terms: dict[str, Float[Tensor, ""]], weights: Any) -> Float[Tensor, ""]:
    """The sum of the terms, each times the weight of the same name.

    Args:
        terms: named, unweighted losses.
        weights: a dataclass whose fields have exactly the names of the terms.

    Raises:
        ValueError: the names differ.
    """
    names = {field.name for field in dataclasses.fields(weights)}
    if names != set(terms):
        raise ValueError(
            f"every loss term needs a weight of its name and the reverse; terms without a weight: "
            f"{sorted(set(terms) - names)}, weights without a term: {sorted(names - set(terms))}; "
            f"terms: {sorted(terms)}, weights of {type(weights).__name__}: {sorted(names)}"
        )
    return torch.stack([getattr(weights, name) * term for name, term in terms.items()]).sum()


def weighted_mean(
    error: Float[Tensor, "*b 1 h w"], weight: Float[Tensor, "*b 1 h w"]
) -> Float[Tensor, ""]:
    """The mean of an error over the pixels of each image, weighted, then over the images with any
    weight. If none has it is 0, with a gradient of 0.

    Args:
        error: of the pixels.
        weight: >= 0; 1 or more where it is not 0.
    """
    dims = (-3, -2, -1)
    area = weight.sum(dims)
    means = (error * weight).sum(dims) / area.clamp(min=1)
    return means.sum() / (area > 0).sum().clamp(min=1)


def masked_l1(
    image: Float[Tensor, "*b c h w"],
    target: Float[Tensor, "*b c h w"],
    mask: Float[Tensor, "*b 1 h w"],
) -> Float[Tensor, ""]:
    """Photometric loss || M * (I - I') ||_1 / |M| (CEST Eq. 6).

    Averaged over the channels and over the pixels of the mask of each image, then over the images
    whose mask is not empty. If all are empty it is 0, with a gradient of 0.
    """
    absolute = F.l1_loss(image, target, reduction="none")
    return weighted_mean(absolute.mean(-3, keepdim=True), mask)


def masked_l21(
    image: Float[Tensor, "*b c h w"],
    target: Float[Tensor, "*b c h w"],
    weight: Float[Tensor, "*b 1 h w"],
) -> Float[Tensor, ""]:
    """Photometric loss sum_i A_i || I_i - I'_i ||_2 / sum_i A_i (Deng Eq. 2).

    The norm is over the channels. Averaged over the pixels of each image, then over the images with
    any weight. If none has it is 0, with a gradient of 0; that of equal colours is 0, too.

    Args:
        image: rendered.
        target: the photo.
        weight: A_i, >= 0.
    """
    distance = torch.linalg.vector_norm(image - target, dim=-3, keepdim=True)
    return weighted_mean(distance, weight)


def landmark_l2(
    predicted: Float[Tensor, "*b n 2"],
    target: Float[Tensor, "*b n 2"],
    confidence: Float[Tensor, "*b n"],
    unit: int | float,
    importance: Float[Tensor, " n"] | None = None,
) -> Float[Tensor, ""]:
    """Squared distance of landmarks (CEST Eq. 9, second term; Deng Eq. 3).

    Averaged over the points of each image, weighted with their confidence, then over the images
    with any confident point. If there is none it is 0, with a gradient of 0.

    Args:
        predicted: pixels.
        target: pixels; finite also where it is missing.
        confidence: in [0, 1]; 0 = missing.
        unit: of the distance, pixels: CEST takes the side of the image.
        importance: factors of the points, by which nothing is divided; None = 1.
    """
    squared = ((predicted - target) / unit).square().sum(-1)
    if importance is not None:
        squared = squared * importance
    weight = confidence.sum(-1)
    error = (squared * confidence).sum(-1) / weight.clamp(min=1)
    return error.sum() / (weight > 0).sum().clamp(min=1)


def coefficient_l2(coefficients: Float[Tensor, "*b k"]) -> Float[Tensor, ""]:
    """The sum of squares of the coefficients, averaged over the batch (CEST Eq. 9, third term)."""
    return coefficients.square().sum(-1).mean()


def cosine_distance(
    features: Float[Tensor, "*b k"], target: Float[Tensor, "*b k"]
) -> Float[Tensor, ""]:
    """1 - cosine of the angle between two vectors (Deng Eq. 4), averaged over the batch."""
    return (1 - F.cosine_similarity(features, target, dim=-1)).mean()


def region_variance(
    values: Float[Tensor, "*b n c"], region: Int[Tensor, " r"]
) -> Float[Tensor, ""]:
    """Variance over the vertices of a region, summed over the channels (Deng Eq. 6).

    Averaged over the batch.

    Args:
        values: of the vertices, such as their reflectance.
        region: numbers of the vertices that count, at least one.
    """
    return values.index_select(-2, region).var(-2, correction=0).sum(-1).mean()


def light_colour_l2(light: Float[Tensor, "*b 9 c"]) -> Float[Tensor, ""]:
    """How far light is from white: the mean square of the distance of each coefficient to its mean
    over the colours (code of Deng).
    """
    return (light - light.mean(-1, keepdim=True)).square().mean()
