# ruff: noqa: ANN001, ANN201 - numba compiles the kernel for the types it is called with
"""The gradient of the barycentrics, on the CPU: a numba kernel."""

from typing import no_type_check

import numpy as np

from core.rasterize.kernels import kernel


@kernel
@no_type_check
def draw_backward(
    first, last, clip, triangles, width, height, smallest, index, grad_barycentric, grad_clip
):
    """Add dL/d(x, y, w) of the images first .. last - 1 to grad_clip, which starts as 0.

    Arrays as in ``kernels.draw``. Triangles of up to ``smallest`` pixels get no gradient.
    """
    step_x, step_y = 1 / width, 1 / height
    smallest = 8 * smallest / (width * height)
    for image in range(first, last):
        position, gradient = clip[image], grad_clip[image]
        triangle_index, incoming = index[image], grad_barycentric[image]
        for row in range(height):
            y = (2 * row + 1 - height) * step_y
            for column in range(width):
                pixel = np.uint64(row) * np.uint64(width) + np.uint64(column)
                if triangle_index[pixel] < 0:
                    continue
                grad_u, grad_v = float(incoming[2 * pixel]), float(incoming[2 * pixel + 1])
                if grad_u == 0 and grad_v == 0:
                    continue
                x = (2 * column + 1 - width) * step_x
                corner = 3 * np.uint64(triangle_index[pixel])
                a = 4 * np.uint64(triangles[corner])
                b = 4 * np.uint64(triangles[corner + 1])
                c = 4 * np.uint64(triangles[corner + 2])
                wa, wb, wc = float(position[a + 3]), float(position[b + 3]), float(position[c + 3])
                xa, ya = position[a] - x * wa, position[a + 1] - y * wa
                xb, yb = position[b] - x * wb, position[b + 1] - y * wb
                xc, yc = position[c] - x * wc, position[c + 1] - y * wc
                area_a, area_b, area_c = xb * yc - xc * yb, xc * ya - xa * yc, xa * yb - xb * ya
                total = area_a + area_b + area_c
                if abs(total) <= smallest * max(wa * wa, wb * wb, wc * wc):
                    continue
                inverse = 1 / total
                mean = (grad_u * area_a + grad_v * area_b) * inverse
                grad_a, grad_b, grad_c = (
                    (grad_u - mean) * inverse,
                    (grad_v - mean) * inverse,
                    -mean * inverse,
                )
                gxa, gya = grad_c * yb - grad_b * yc, grad_b * xc - grad_c * xb
                gxb, gyb = grad_a * yc - grad_c * ya, grad_c * xa - grad_a * xc
                gxc, gyc = grad_b * ya - grad_a * yb, grad_a * xb - grad_b * xa
                gradient[a] += gxa
                gradient[a + 1] += gya
                gradient[a + 3] -= x * gxa + y * gya
                gradient[b] += gxb
                gradient[b + 1] += gyb
                gradient[b + 3] -= x * gxb + y * gyb
                gradient[c] += gxc
                gradient[c + 1] += gyc
                gradient[c + 3] -= x * gxc + y * gyc
    return 0
