"""The CPU backend: numba kernels, the same result for any number of threads."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from core.rasterize import kernels
from core.rasterize.fragments import Fragments
from core.rasterize.threads import over_images


class _Rasterize(torch.autograd.Function):
    """Clip positions to barycentrics, depth and triangle indices."""

    @staticmethod
    def forward(
        ctx: Any, clip: Tensor, triangles: Tensor, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        clip = clip.contiguous()
        shape = (len(clip), *size)
        barycentric = clip.new_empty(*shape, 2)
        depth = clip.new_empty(shape)
        index = torch.empty(shape, dtype=torch.int64)
        over_images(kernels.draw, len(clip), *_arrays(clip, triangles, barycentric, depth, index))
        ctx.save_for_backward(clip, triangles, index)
        ctx.mark_non_differentiable(depth, index)
        return barycentric, depth, index

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_barycentric: Tensor, *_: Tensor | None
    ) -> tuple[Tensor, None, None]:
        clip, triangles, index = ctx.saved_tensors
        grad_clip = torch.zeros_like(clip)
        grad = grad_barycentric.contiguous()
        over_images(
            kernels.draw_backward, len(clip), *_arrays(clip, triangles, index, grad, grad_clip)
        )
        return grad_clip, None, None


class _Interpolate(torch.autograd.Function):
    """Attributes of vertices and barycentrics to attributes of pixels."""

    @staticmethod
    def forward(
        ctx: Any, attributes: Tensor, barycentric: Tensor, index: Tensor, triangles: Tensor
    ) -> Tensor:
        tensors = (attributes.contiguous(), triangles, barycentric.contiguous(), index.contiguous())
        output = attributes.new_empty(*index.shape, attributes.shape[-1])
        unknown = over_images(kernels.interpolate, len(index), *_arrays(*tensors, output))
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
        nothing = attributes.new_empty(0)
        grad_attributes = (
            torch.zeros_like(attributes) if wants_attributes else nothing.view(0, 1, 1)
        )
        grad_barycentric = (
            torch.empty_like(barycentric) if wants_barycentric else nothing.view(0, 1, 1, 1)
        )
        # attributes shared by all images are summed in the images' order, by one thread
        one_thread = wants_attributes and len(attributes) == 1
        over_images(
            kernels.interpolate_backward,
            len(index),
            *_arrays(*ctx.saved_tensors, grad.contiguous(), grad_attributes, grad_barycentric),
            threads=1 if one_thread else 0,
        )
        return (
            grad_attributes if wants_attributes else None,
            grad_barycentric if wants_barycentric else None,
            None,
            None,
        )


def _arrays(*tensors: Tensor) -> list[np.ndarray]:
    """The tensors as the kernels see them."""
    return [tensor.detach().numpy() for tensor in tensors]


def rasterize(
    clip: Float[Tensor, "b n 4"], triangles: Int[Tensor, "t 3"], size: tuple[int, int]
) -> Fragments:
    """``core.rasterize.rasterize`` of float32 or float64 CPU tensors; triangles int32, in range."""
    return Fragments(*_Rasterize.apply(clip, triangles, size))


def interpolate(
    attributes: Float[Tensor, "_ n c"], fragments: Fragments, triangles: Int[Tensor, "t 3"]
) -> Float[Tensor, "b h w c"]:
    """``core.rasterize.interpolate`` of CPU tensors of one dtype; triangles int32, in range."""
    barycentric, index = fragments.barycentric, fragments.triangle_index
    return _Interpolate.apply(attributes, barycentric, index, triangles)
