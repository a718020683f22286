"""The CPU backend: numba kernels, the same result for any number of threads."""

import threading
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from core.rasterize import kernels
from core.rasterize.fragments import Fragments
from core.rasterize.threads import over_images

LARGEST_KEPT = 2**26  # bytes of work space that a thread keeps between calls


def rasterize(
    clip: Float[Tensor, "b n 4"],
    triangles: Int[Tensor, "t 3"],
    size: tuple[int, int],
    subpixel: int | None = 16,
) -> Fragments:
    """``core.rasterize.rasterize`` of float32 or float64 CPU tensors; triangles int32, in range."""
    if max(size) > kernels.LARGEST:
        raise ValueError(
            f"cannot rasterize an image of size {size[0]} x {size[1]} on the CPU; a side has at "
            f"most {kernels.LARGEST} pixels. Draw it in parts"
        )
    return Fragments(*_Rasterize.apply(clip, triangles, size, subpixel is not None))


class _Rasterize(torch.autograd.Function):
    """Clip positions to barycentrics, depth and triangle indices."""

    @staticmethod
    def forward(
        ctx: Any, clip: Tensor, triangles: Tensor, size: tuple[int, int], snap: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        clip = clip.contiguous()
        shape = (len(clip), *size)
        barycentric = clip.new_empty(*shape, 2)
        depth = clip.new_empty(shape)
        index = torch.empty(shape, dtype=torch.int64)
        inputs = (_flat(clip), triangles.flatten(), size[1], size[0])
        outputs = (_flat(barycentric), _flat(depth), _flat(index))
        over_images(_draw if snap else _draw_exactly, len(clip), *inputs, *outputs)
        ctx.save_for_backward(clip, triangles, index)
        ctx.smallest = (
            1 / 512 if snap else 0.0
        )  # half a step squared; snapped to more, it was drawn
        ctx.mark_non_differentiable(depth, index)
        return barycentric, depth, index

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_barycentric: Tensor, *_: Tensor | None
    ) -> tuple[Tensor, None, None, None]:
        clip, triangles, index = ctx.saved_tensors
        grad_clip = torch.zeros_like(clip)
        height, width = index.shape[1:]
        over_images(
            kernels.draw_backward,
            len(clip),
            _flat(clip),
            triangles.flatten(),
            width,
            height,
            ctx.smallest,
            _flat(index),
            _flat(grad_barycentric.contiguous()),
            _flat(grad_clip),
        )
        return grad_clip, None, None, None


def _flat(tensor: Tensor) -> Tensor:
    """One row per image, without copying."""
    return tensor.view(len(tensor), tensor[:1].numel() if len(tensor) else 0)


def _draw(first: int, last: int, clip: np.ndarray, *arguments: Any) -> int:
    """``kernels.draw`` with this thread's work space."""
    space = _space(clip, arguments[1], arguments[2], True)
    return kernels.draw(first, last, clip, *arguments, space)


def _draw_exactly(first: int, last: int, clip: np.ndarray, *arguments: Any) -> int:
    """``kernels.draw_exactly`` with this thread's work space."""
    space = _space(clip, arguments[1], arguments[2], False)
    return kernels.draw_exactly(first, last, clip, *arguments, space)


_kept = threading.local()


def _space(clip: np.ndarray, width: int, height: int, snap: bool) -> kernels.Space:
    """Work space; that of the thread's last call, if it fits: fresh memory costs as much as use."""
    key = (clip.shape[1] // 4, width, height, snap, clip.dtype)
    if getattr(_kept, "key", None) == key:
        return _kept.space
    _kept.key = _kept.space = None
    space = kernels.Space.new(*key)
    if space.buffer.nbytes + space.point.nbytes <= LARGEST_KEPT:
        _kept.key, _kept.space = key, space
    return space
