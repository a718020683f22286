# ruff: noqa: ANN001, ANN202 - numba compiles the kernels for the types they are called with
"""Attributes of vertices at the pixels, on the CPU: numba kernels with their gradients."""

from typing import Any, no_type_check

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from core.rasterize.fragments import Fragments
from core.rasterize.kernels import kernel
from core.rasterize.threads import over_images

BLOCK = 512  # pixels


def interpolate(
    attributes: Float[Tensor, "_ n c"], fragments: Fragments, triangles: Int[Tensor, "t 3"]
) -> Float[Tensor, "b h w c"]:
    """``core.rasterize.interpolate`` of CPU tensors of one dtype; triangles int32, in range."""
    barycentric, index = fragments.barycentric, fragments.triangle_index
    return _Interpolate.apply(attributes, barycentric, index, triangles)


class _Interpolate(torch.autograd.Function):
    """Attributes of vertices and barycentrics to attributes of pixels."""

    @staticmethod
    def forward(
        ctx: Any, attributes: Tensor, barycentric: Tensor, index: Tensor, triangles: Tensor
    ) -> Tensor:
        tensors = (attributes.contiguous(), triangles, _flat(barycentric), _flat(index))
        output = attributes.new_empty(*index.shape, attributes.shape[-1])
        unknown = over_images(_forward, len(index), *tensors, _flat(output))
        if unknown:
            raise IndexError(
                f"the fragments name triangles beyond the {len(triangles)} given, at {unknown} "
                "pixels; pass the triangles that were rasterized"
            )
        ctx.save_for_backward(*tensors)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        attributes, _, barycentric, index = ctx.saved_tensors
        wants_attributes, wants_barycentric = ctx.needs_input_grad[:2]
        # the kernel leaves out the gradient that has no images
        grad_attributes = torch.zeros_like(attributes if wants_attributes else attributes[:0])
        grad_barycentric = torch.empty_like(barycentric if wants_barycentric else barycentric[:0])
        # attributes shared by all images are summed in the images' order
        shared = wants_attributes and len(attributes) == 1
        over_images(
            _backward,
            len(index),
            *ctx.saved_tensors,
            _flat(grad),
            grad_attributes,
            grad_barycentric,
            parallel=not shared,
        )
        return (
            grad_attributes if wants_attributes else None,
            grad_barycentric.view(*grad.shape[:-1], 2) if wants_barycentric else None,
            None,
            None,
        )


def _flat(pictures: Tensor) -> Tensor:
    """The pixels of each image in one row, without a gap."""
    return pictures.contiguous().flatten(1, 2)


@kernel
@no_type_check
def _forward(first, last, attributes, triangles, barycentric, index, output):
    """Write the attributes at the pixels of the images; count the pixels of unknown triangles."""
    unknown = 0
    shared, one = attributes.shape[0] == 1, barycentric.dtype.type(1)
    for image in range(first, last):
        values = attributes[0 if shared else image]
        output[image] = 0
        for pixel in range(index.shape[1]):
            triangle = index[image, pixel]
            if triangle < 0:
                continue
            if triangle >= triangles.shape[0]:
                unknown += 1
                continue
            u, v = barycentric[image, pixel, 0], barycentric[image, pixel, 1]
            t = one - u - v
            a = np.uint64(triangles[np.uint64(triangle), 0])
            b = np.uint64(triangles[np.uint64(triangle), 1])
            c = np.uint64(triangles[np.uint64(triangle), 2])
            for channel in range(output.shape[2]):
                output[image, pixel, channel] = (
                    u * values[a, channel] + v * values[b, channel] + t * values[c, channel]
                )
    return unknown


@kernel
@no_type_check
def _backward(
    first, last, attributes, triangles, barycentric, index, grad, grad_attributes, grad_barycentric
):
    """Add to grad_attributes, write grad_barycentric; one that has no images is left out.

    In blocks of covered pixels, each step of which is a loop of its own: what one pixel waits for
    is then not in the way of the next.
    """
    shared = attributes.shape[0] == 1
    wants_attributes, wants_barycentric = len(grad_attributes) > 0, len(grad_barycentric) > 0
    pixels, corners = np.empty(BLOCK, np.uint32), np.empty((BLOCK, 3), np.uint32)
    for image in range(first, last):
        source = 0 if shared else image
        seen = index[image]
        if wants_barycentric:
            grad_barycentric[image] = 0
        start = np.uint32(0)
        while start < len(seen):
            count = 0
            while start < len(seen) and count < BLOCK:
                pixels[count] = start
                count += seen[start] >= 0
                start += np.uint32(1)
            for k in range(np.uint32(count)):
                triangle = np.uint64(seen[pixels[k]])
                for corner in range(3):
                    corners[k, corner] = triangles[triangle, corner]
            if wants_barycentric:
                _to_barycentric(
                    pixels, corners, count, attributes[source], grad[image], grad_barycentric[image]
                )
            if wants_attributes:
                _to_attributes(
                    pixels, corners, count, barycentric[image], grad[image], grad_attributes[source]
                )
    return 0


@kernel
@no_type_check
def _to_barycentric(pixels, corners, count, values, grad, grad_barycentric):
    zero = values.dtype.type(0)
    for k in range(np.uint32(count)):
        pixel, a, b, c = pixels[k], corners[k, 0], corners[k, 1], corners[k, 2]
        grad_u = grad_v = zero
        for channel in range(grad.shape[1]):
            incoming, last_value = grad[pixel, channel], values[c, channel]
            grad_u += incoming * (values[a, channel] - last_value)
            grad_v += incoming * (values[b, channel] - last_value)
        grad_barycentric[pixel, 0] = grad_u
        grad_barycentric[pixel, 1] = grad_v


@kernel
@no_type_check
def _to_attributes(pixels, corners, count, barycentric, grad, grad_attributes):
    one = barycentric.dtype.type(1)
    for k in range(np.uint32(count)):
        pixel, a, b, c = pixels[k], corners[k, 0], corners[k, 1], corners[k, 2]
        u, v = barycentric[pixel, 0], barycentric[pixel, 1]
        t = one - u - v
        for channel in range(grad.shape[1]):
            incoming = grad[pixel, channel]
            grad_attributes[a, channel] += u * incoming
            grad_attributes[b, channel] += v * incoming
            grad_attributes[c, channel] += t * incoming
