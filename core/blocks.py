# ruff: noqa: ANN001, ANN201 - numba compiles the kernels for the types they are called with
"""Points, however their components lie in memory, block by block as rows of components.

Kernels that do arithmetic with points (``core.affine``, ``core.lighting``) copy ``BLOCK`` of them
at a time into rows of a small array, over which LLVM vectorises any loop. It does the copies, too:
how far components are apart is known when they are compiled.
"""

from typing import no_type_check

from torch import Tensor

from core.rasterize.kernels import kernel

BLOCK = 256
NEIGHBOURS = (3, 4)  # components of a point that may lie side by side
PIECES = 16  # that few images are cut into, so that threads get equal shares
FEW = 2**17  # so many points are done by one thread before a second has begun


def laid_out(values: Tensor) -> tuple[Tensor, bool]:
    """The values "b n c" as "b (n c)" for the kernels, and whether each component is in one piece.

    Copies nothing that lies in memory as a whole: image by image and in it each component in one
    piece, or point by point if a point has three or four components.
    """
    images, points, components = values.shape
    planar = components not in NEIGHBOURS or not values.is_contiguous()
    flat = values.mT.contiguous() if planar else values
    return flat.view(images, points * components), planar


def new(points: Tensor, components: int, planar: bool) -> Tensor:
    """An empty "b n c" for the points "b n 3", of their dtype, that ``laid_out`` does not copy."""
    images, count = points.shape[:2]
    if planar or components not in NEIGHBOURS:
        return points.new_empty(images, components, count).mT
    return points.new_empty(images, count, components)


def are_many(points: Tensor) -> bool:
    """Whether "b n 3" is work for more than one thread."""
    return points.shape[:2].numel() > FEW


def pieces(images: int, points: int) -> tuple[int, int]:
    """Into how many pieces to cut the points of each image, and how many points one has.

    Depends on nothing but the sizes, so that neither do sums over pieces.
    """
    blocks = max(1, -(-points // BLOCK))
    most = -(-PIECES // max(1, images))
    size = -(-blocks // most)
    return -(-blocks // size), size * BLOCK


@kernel
@no_type_check
def read(values, points, start, count, components, planar, row, work):
    """Copy ``count`` of an image's points into a row per component, zeros after them."""
    if planar:
        for axis in range(components):
            read_row(values, axis * points + start, count, row + axis * BLOCK, work)
        return
    source = values[components * start : components * (start + count)]
    a, b, c, d = work[row:], work[row + BLOCK :], work[row + 2 * BLOCK :], work[row + 3 * BLOCK :]
    if components == 3:
        for p in range(count):
            x, y, z = source[3 * p], source[3 * p + 1], source[3 * p + 2]
            a[p], b[p], c[p] = x, y, z
    else:
        for p in range(count):
            x, y, z, w = source[4 * p], source[4 * p + 1], source[4 * p + 2], source[4 * p + 3]
            a[p], b[p], c[p], d[p] = x, y, z, w
    for axis in range(components):
        for p in range(count, BLOCK):
            work[row + axis * BLOCK + p] = 0


@kernel
@no_type_check
def write(values, points, start, count, components, planar, row, work):
    """Copy the rows back."""
    if planar:
        for axis in range(components):
            write_row(values, axis * points + start, count, row + axis * BLOCK, work)
        return
    target = values[components * start : components * (start + count)]
    a, b, c, d = work[row:], work[row + BLOCK :], work[row + 2 * BLOCK :], work[row + 3 * BLOCK :]
    if components == 3:
        for p in range(count):
            x, y, z = a[p], b[p], c[p]
            target[3 * p], target[3 * p + 1], target[3 * p + 2] = x, y, z
    else:
        for p in range(count):
            x, y, z, w = a[p], b[p], c[p], d[p]
            target[4 * p], target[4 * p + 1], target[4 * p + 2], target[4 * p + 3] = x, y, z, w


@kernel
@no_type_check
def read_row(values, first, count, row, work):
    """Copy neighbours into a row, zeros after them; an assignment of slices would be slower."""
    source, target = values[first : first + count], work[row : row + BLOCK]
    for p in range(count):
        target[p] = source[p]
    for p in range(count, BLOCK):
        target[p] = 0


@kernel
@no_type_check
def write_row(values, first, count, row, work):
    """Copy a row back."""
    source, target = work[row : row + count], values[first : first + count]
    for p in range(count):
        target[p] = source[p]
