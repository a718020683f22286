# ruff: noqa: ANN001, ANN201, ANN202 - numba compiles the kernels for the types they are called with
"""The gradient of the barycentrics, on the CPU: numba kernels.

The pixels that have one are listed in blocks. Of a block the corners are gathered, the gradients
worked out (which LLVM vectorises) and added to those of the vertices, each in a loop of its own:
what one pixel waits for is then not in the way of the next.
"""

from typing import no_type_check

import numpy as np

from core.rasterize.kernels import kernel

BLOCK = 512  # pixels
X, Y, U, V = (BLOCK * row for row in range(4))  # rows of a block's numbers


@kernel
@no_type_check
def draw_backward(
    first, last, clip, triangles, width, height, smallest, index, grad_barycentric, grad_clip
):
    """Write dL/d(x, y, z, w) of the images first .. last - 1 to grad_clip; that of z is 0.

    Arrays as in ``kernels.draw``. Triangles of up to ``smallest`` pixels get no gradient.
    """
    step_x, step_y = 1 / width, 1 / height
    smallest = 8 * smallest / (width * height)
    pixels, seen = np.empty(4 * BLOCK), np.empty(BLOCK, np.uint32)
    vertices = np.empty(3 * BLOCK, np.uint32)
    a, b, c = (
        np.empty(4 * BLOCK, clip.dtype),
        np.empty(4 * BLOCK, clip.dtype),
        np.empty(4 * BLOCK, clip.dtype),
    )
    for image in range(first, last):
        position, gradient = clip[image], grad_clip[image]
        triangle_index, incoming = index[image], grad_barycentric[image]
        gradient[:] = 0
        count = 0
        for row in range(height):
            y = (2 * row + 1 - height) * step_y
            for column in range(width):
                pixel = np.uint64(row) * np.uint64(width) + np.uint64(column)
                if triangle_index[pixel] >= 0:
                    grad_u, grad_v = float(incoming[2 * pixel]), float(incoming[2 * pixel + 1])
                    seen[count] = np.uint32(triangle_index[pixel])
                    pixels[X + count] = (2 * column + 1 - width) * step_x
                    pixels[Y + count] = y
                    pixels[U + count] = grad_u
                    pixels[V + count] = grad_v
                    count += (grad_u != 0) | (grad_v != 0)
                if count == BLOCK or (row == height - 1 and column == width - 1):
                    _gather(position, triangles, seen, count, vertices, a, b, c)
                    _gradients(pixels, count, smallest, a, b, c)
                    _add(vertices, count, a, b, c, gradient)
                    count = 0
    return 0


@kernel
@no_type_check
def _gather(position, triangles, seen, count, vertices, a, b, c):
    """The corners of a block's triangles: their numbers and clip positions."""
    for k in range(np.uint32(count)):
        for corner in range(3):
            vertices[3 * k + corner] = triangles[3 * np.uint32(seen[k]) + corner]
    for k in range(np.uint32(count)):  # four loads before four stores: LLVM makes one of each
        i = 4 * vertices[3 * k]
        x0, y0, z0, w0 = position[i], position[i + 1], position[i + 2], position[i + 3]
        i = 4 * vertices[3 * k + 1]
        x1, y1, z1, w1 = position[i], position[i + 1], position[i + 2], position[i + 3]
        i = 4 * vertices[3 * k + 2]
        x2, y2, z2, w2 = position[i], position[i + 1], position[i + 2], position[i + 3]
        a[4 * k], a[4 * k + 1], a[4 * k + 2], a[4 * k + 3] = x0, y0, z0, w0
        b[4 * k], b[4 * k + 1], b[4 * k + 2], b[4 * k + 3] = x1, y1, z1, w1
        c[4 * k], c[4 * k + 1], c[4 * k + 2], c[4 * k + 3] = x2, y2, z2, w2


@kernel
@no_type_check
def _gradients(pixels, count, smallest, a, b, c):
    """Replace the corners' clip positions by their gradients, for each pixel of a block."""
    for k in range(count):
        x, y, grad_u, grad_v = pixels[X + k], pixels[Y + k], pixels[U + k], pixels[V + k]
        wa, wb, wc = float(a[4 * k + 3]), float(b[4 * k + 3]), float(c[4 * k + 3])
        xa, ya = a[4 * k] - x * wa, a[4 * k + 1] - y * wa
        xb, yb = b[4 * k] - x * wb, b[4 * k + 1] - y * wb
        xc, yc = c[4 * k] - x * wc, c[4 * k + 1] - y * wc
        area_a, area_b, area_c = xb * yc - xc * yb, xc * ya - xa * yc, xa * yb - xb * ya
        total = area_a + area_b + area_c
        usual = abs(total) > smallest * max(wa * wa, wb * wb, wc * wc)
        inverse = 1 / total if usual else 0.0
        grad_u, grad_v = (grad_u if usual else 0.0), (grad_v if usual else 0.0)
        mean = (grad_u * area_a + grad_v * area_b) * inverse
        grad_a, grad_b, grad_c = (
            (grad_u - mean) * inverse,
            (grad_v - mean) * inverse,
            -mean * inverse,
        )
        gxa, gya = grad_c * yb - grad_b * yc, grad_b * xc - grad_c * xb
        gxb, gyb = grad_a * yc - grad_c * ya, grad_c * xa - grad_a * xc
        gxc, gyc = grad_b * ya - grad_a * yb, grad_a * xb - grad_b * xa
        a[4 * k], a[4 * k + 1], a[4 * k + 2], a[4 * k + 3] = gxa, gya, 0.0, -(x * gxa + y * gya)
        b[4 * k], b[4 * k + 1], b[4 * k + 2], b[4 * k + 3] = gxb, gyb, 0.0, -(x * gxb + y * gyb)
        c[4 * k], c[4 * k + 1], c[4 * k + 2], c[4 * k + 3] = gxc, gyc, 0.0, -(x * gxc + y * gyc)


@kernel
@no_type_check
def _add(vertices, count, a, b, c, gradient):
    """Add a block's gradients to those of the vertices."""
    for k in range(np.uint32(count)):
        for axis in range(4):
            gradient[4 * vertices[3 * k] + axis] += a[4 * k + axis]
        for axis in range(4):
            gradient[4 * vertices[3 * k + 1] + axis] += b[4 * k + axis]
        for axis in range(4):
            gradient[4 * vertices[3 * k + 2] + axis] += c[4 * k + axis]
