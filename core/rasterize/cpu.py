"""The CPU backend: numba kernels, the same result for any number of threads."""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import DTypeLike
from torch import Tensor
from torch.autograd.function import once_differentiable

from core.cores import available_cores
from core.rasterize.backward import draw_backward
from core.rasterize.fragments import Fragments
from core.rasterize.kernels import BLOCK, EMPTY, LARGEST, MARGIN, ROWS, draw, draw_exactly
from core.rasterize.threads import over_images

LARGEST_KEPT = 2**26  # bytes of one thread's work space that is kept between calls


def rasterize(
    clip: Float[Tensor, "b n 4"],
    triangles: Int[Tensor, "t 3"],
    size: tuple[int, int],
    subpixel: int | None = 16,
) -> Fragments:
    """``core.rasterize.rasterize`` of float32 or float64 CPU tensors; triangles int32, in range."""
    if max(size) > LARGEST:
        raise ValueError(
            f"cannot rasterize an image of size {size[0]} x {size[1]} on the CPU; a side has at "
            f"most {LARGEST} pixels. Draw it in parts"
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
        grad_clip = torch.empty_like(clip)
        height, width = index.shape[1:]
        over_images(
            draw_backward,
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
    with _space(clip, arguments[1], arguments[2], True) as space:
        return draw(first, last, clip, *arguments, space)


def _draw_exactly(first: int, last: int, clip: np.ndarray, *arguments: Any) -> int:
    """``kernels.draw_exactly`` with this thread's work space."""
    with _space(clip, arguments[1], arguments[2], False) as space:
        return draw_exactly(first, last, clip, *arguments, space)


class Space(NamedTuple):
    """Work space of ``kernels.draw`` for one thread; numba would compile its allocation slowly.

    Attributes:
        buffer: depth above index of (width + MARGIN) x (height + 4) pixels (masks may begin at the
            last line); EMPTY before and after.
        cell: of each vertex.
        point: 4 numbers per vertex; float32, or float64 for ``kernels.draw_exactly``.
        corners: for a block of triangles x, y, z and whether it is unusual, of each corner.
        small: the same for those that get a mask.
        work: ROWS rows.
        note: 4 rows of whole numbers.
        lists: numbers of triangles; the last entry is for what is not listed.
        polygon: two of up to 10 corners, 4 numbers each.
        pixels: covered, row above column, and their triangles.
        shaded: clip positions of the corners at a block of pixels, and the weights there.
        vertices: the corners' numbers.
    """

    buffer: np.ndarray
    cell: np.ndarray
    point: np.ndarray
    corners: tuple[np.ndarray, np.ndarray, np.ndarray]
    small: tuple[np.ndarray, np.ndarray, np.ndarray]
    work: np.ndarray
    note: np.ndarray
    lists: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
    polygon: np.ndarray
    pixels: tuple[np.ndarray, np.ndarray]
    shaded: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
    vertices: np.ndarray

    @classmethod
    def new(cls, vertices: int, width: int, height: int, snap: bool, dtype: np.dtype) -> "Space":
        """For clip positions of a dtype, to be snapped or not."""

        def four(kind: DTypeLike) -> np.ndarray:
            return np.zeros(4 * BLOCK, kind)

        def listed() -> np.ndarray:
            return np.zeros(BLOCK + 1, np.int32)

        f, i, u = np.float32, np.int32, np.uint32
        return cls(
            np.full((width + MARGIN) * (height + 4), EMPTY, np.int64),
            np.zeros(vertices, u),
            np.zeros(4 * vertices, f if snap else np.float64),
            (four(f), four(f), four(f)),
            (four(f), four(f), four(f)),
            np.zeros(ROWS * BLOCK, f),
            four(i),
            (listed(), listed(), listed(), listed()),
            np.zeros(80),
            (np.zeros(width + BLOCK, u), np.zeros(width + BLOCK, u)),
            (four(dtype), four(dtype), four(dtype), four(dtype)),
            np.zeros(3 * BLOCK, u),
        )


# Of threads between two calls; OpenMP's have no ``threading.local`` that outlives a call.
_spare: deque[tuple[tuple, Space]] = deque(maxlen=available_cores())


@contextmanager
def _space(clip: np.ndarray, width: int, height: int, snap: bool) -> Iterator[Space]:
    """Work space; one of the last call's, if it fits: fresh memory costs as much as use."""
    key = (clip.shape[1] // 4, width, height, snap, clip.dtype)
    try:
        known, space = _spare.pop()
    except IndexError:
        known = None
    if known != key:
        space = Space.new(*key)
    yield space
    if space.buffer.nbytes + space.point.nbytes <= LARGEST_KEPT:
        _spare.append((key, space))
