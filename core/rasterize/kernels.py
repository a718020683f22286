# ruff: noqa: ANN001, ANN201, ANN202 - numba compiles the kernels for the types they are called with
"""The CPU backend's numba kernels: each works through a range of images, without the GIL.

Drawing an image has three passes:

1. *Vertices* are divided by w and snapped to 1/16 pixel (``fill rule`` of ``core.rasterize``).
2. *Triangles* go through in blocks, written so that LLVM vectorises them: cull those whose bounding
   box holds no pixel centre (half of a dense mesh), and finish those whose box holds one (most of
   the rest). What remains is scanned pixel by pixel. Snapped coordinates are small whole numbers:
   all edge functions are exact, so that no pixel of a shared edge is lost or drawn twice.
3. *Pixels*: barycentrics and depth of the visible triangle, in float64 from the unsnapped
   positions.

Triangles that reach out of the depth range or very far out are clipped first (depth range and a
guard band); that path is slow and rare.
"""

from collections.abc import Callable
from typing import no_type_check

import numpy as np
from numba import njit

BLOCK = 256
# Rows of the work array of one block of triangles.
X0, Y0, Z0, X1, Y1, Z1, X2, Y2, Z2, COLUMN, ROW, DEPTH, KIND = (BLOCK * row for row in range(13))
ROWS = 13
CULLED, ONE_PIXEL, SCANNED, UNUSUAL = 0.0, 1.0, 2.0, 3.0
# So many pixels of a row are tested at once; the buffer's rows are that much longer than the image.
LANES = 8
# Snapped coordinates stay below this, in 1/16 px: float32 then adds, float64 multiplies exactly.
LIMIT = 2.0**22
# Added and subtracted, it leaves the nearest whole number (ties to even) of a smaller float32.
ROUND = np.float32(1.5 * 2.0**23)
# The x of a vertex that cannot be snapped: behind the camera, too far out or not finite.
UNSNAPPED = -(2.0**24)
# A pixel of the buffer is its depth in steps of 2^-30 above a triangle's index, later ones first:
# the smallest number is the visible triangle.
INDEX = 2**31 - 1
TWO = int(np.float64(2).view(np.int64))
EMPTY = 2**63 - 1


def kernel(function: Callable) -> Callable:
    """Compile for nopython mode; the machine code is kept on disk."""
    return njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract"})(function)


@kernel
@no_type_check
def draw(first, last, clip, triangles, barycentric, depth, index):
    """Rasterize the images first .. last - 1 into barycentric, depth and index."""
    height, width = index.shape[1:]
    work = np.zeros(ROWS * BLOCK, np.float32)
    single, other = np.empty(BLOCK, np.int64), np.empty(BLOCK, np.int64)
    snapped = np.empty((clip.shape[1], 3), np.float32)
    buffer = np.empty((height, width + LANES), np.int64)
    for image in range(first, last):
        buffer[:] = EMPTY
        _snap(clip[image], snapped, width, height)
        for start in range(0, triangles.shape[0], BLOCK):
            count = min(BLOCK, triangles.shape[0] - start)
            _gather(snapped, triangles, start, count, work)
            _classify(work, width, height)
            singles = others = 0
            for k in range(count):
                single[singles] = other[others] = k
                kind = work[KIND + k]
                singles += kind == ONE_PIXEL
                others += kind > ONE_PIXEL
            for c in range(singles):
                k = single[c]
                row, column = np.uint32(work[ROW + k]), np.uint32(work[COLUMN + k])
                key = _key(float(work[DEPTH + k]), INDEX - (start + k))
                buffer[row, column] = min(buffer[row, column], key)
            for c in range(others):
                k = other[c]
                if work[KIND + k] == SCANNED:
                    _scan(
                        work[X0 + k], work[Y0 + k], work[Z0 + k],
                        work[X1 + k], work[Y1 + k], work[Z1 + k],
                        work[X2 + k], work[Y2 + k], work[Z2 + k],
                        start + k, width, height, buffer,
                    )  # fmt: skip
                else:
                    _clip_and_scan(clip[image], triangles, start + k, width, height, buffer)
        _shade(clip[image], triangles, buffer, barycentric[image], depth[image], index[image])
    return 0


@kernel
@no_type_check
def _key(z, reversed_triangle):
    """What the buffer holds for a triangle at a depth in [-1, 1]."""
    # the bits of a float64 in [2, 4] are in the order of its value
    return ((np.float64(z + 3.0).view(np.int64) - TWO) << 10) & ~INDEX | reversed_triangle


@kernel
@no_type_check
def _snap(clip, snapped, width, height):
    """Pixel positions relative to the image's centre in 1/16 px, and z / w."""
    for vertex in range(clip.shape[0]):
        w = clip[vertex, 3]
        inverse = 1 / w
        x = np.float32(clip[vertex, 0] * inverse * (8 * width))
        y = np.float32(clip[vertex, 1] * inverse * (8 * height))
        z = np.float32(clip[vertex, 2] * inverse)
        usual = (abs(x) < LIMIT) & (abs(y) < LIMIT) & (w > 0) & (w < np.inf) & (abs(z) <= 1)
        snapped[vertex, 0] = (x + ROUND) - ROUND if usual else UNSNAPPED
        snapped[vertex, 1] = (y + ROUND) - ROUND
        snapped[vertex, 2] = z


@kernel
@no_type_check
def _gather(snapped, triangles, start, count, work):
    """The corners of a block of triangles, one row of ``work`` per coordinate."""
    for k in range(count):
        a = np.uint32(triangles[start + k, 0])
        b = np.uint32(triangles[start + k, 1])
        c = np.uint32(triangles[start + k, 2])
        work[X0 + k] = snapped[a, 0]
        work[Y0 + k] = snapped[a, 1]
        work[Z0 + k] = snapped[a, 2]
        work[X1 + k] = snapped[b, 0]
        work[Y1 + k] = snapped[b, 1]
        work[Z1 + k] = snapped[b, 2]
        work[X2 + k] = snapped[c, 0]
        work[Y2 + k] = snapped[c, 1]
        work[Z2 + k] = snapped[c, 2]


@kernel
@no_type_check
def _classify(work, width, height):
    """Say of a block of triangles how each is to be drawn; finish those with one pixel centre."""
    f = np.float32
    sixteenth, half, one, zero = f(0.0625), f(0.5), f(1), f(0)
    centre_x, centre_y = f(8 * width - 8), f(8 * height - 8)
    last_column, last_row = f(width - 1), f(height - 1)
    for k in range(BLOCK):
        x0, y0, z0 = work[X0 + k], work[Y0 + k], work[Z0 + k]
        x1, y1, z1 = work[X1 + k], work[Y1 + k], work[Z1 + k]
        x2, y2, z2 = work[X2 + k], work[Y2 + k], work[Z2 + k]
        low_x = x0 if x0 < x1 else x1
        low_x = low_x if low_x < x2 else x2
        high_x = x0 if x0 > x1 else x1
        high_x = high_x if high_x > x2 else x2
        low_y = y0 if y0 < y1 else y1
        low_y = low_y if low_y < y2 else y2
        high_y = y0 if y0 > y1 else y1
        high_y = high_y if high_y > y2 else y2
        left = np.ceil((low_x + centre_x) * sixteenth)
        right = np.floor((high_x + centre_x) * sixteenth)
        top = np.ceil((low_y + centre_y) * sixteenth)
        bottom = np.floor((high_y + centre_y) * sixteenth)
        seen = (left <= right) & (top <= bottom)
        seen &= (left <= last_column) & (right >= zero) & (top <= last_row) & (bottom >= zero)
        single = (left == right) & (top == bottom)
        # edge functions at the box's one pixel centre (meaningless where it has more)
        x, y = left * f(16) - centre_x, top * f(16) - centre_y
        area = (x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0)
        sign = one if area > zero else -one
        dx0, dy0 = (x2 - x1) * sign, (y2 - y1) * sign
        dx1, dy1 = (x0 - x2) * sign, (y0 - y2) * sign
        dx2, dy2 = (x1 - x0) * sign, (y1 - y0) * sign
        e0 = dx0 * (y - y1) - dy0 * (x - x1)
        e1 = dx1 * (y - y2) - dy1 * (x - x2)
        e2 = dx2 * (y - y0) - dy2 * (x - x0)
        own0 = half if (dy0 < zero) | ((dy0 == zero) & (dx0 > zero)) else -half
        own1 = half if (dy1 < zero) | ((dy1 == zero) & (dx1 > zero)) else -half
        own2 = half if (dy2 < zero) | ((dy2 == zero) & (dx2 > zero)) else -half
        inside = (e0 + own0 > zero) & (e1 + own1 > zero) & (e2 + own2 > zero) & (area != zero)
        work[COLUMN + k] = left
        work[ROW + k] = top
        work[DEPTH + k] = z0 + (e1 * (z1 - z0) + e2 * (z2 - z0)) / (area * sign)
        drawn = f(ONE_PIXEL) if inside else f(CULLED)
        drawn = drawn if single else f(SCANNED)
        drawn = drawn if seen else f(CULLED)
        work[KIND + k] = f(UNUSUAL) if low_x == f(UNSNAPPED) else drawn


@kernel
@no_type_check
def _scan(x0, y0, z0, x1, y1, z1, x2, y2, z2, triangle, width, height, buffer):
    """Draw one triangle, in 1/16 px, over the pixel centres of its bounding box."""
    centre_x, centre_y = 8.0 * width - 8, 8.0 * height - 8
    X0, Y0, X1, Y1, X2, Y2 = float(x0), float(y0), float(x1), float(y1), float(x2), float(y2)
    area = (X1 - X0) * (Y2 - Y0) - (X2 - X0) * (Y1 - Y0)
    if area == 0:
        return
    sign = 1.0 if area > 0 else -1.0
    dx0, dy0 = (X2 - X1) * sign, (Y2 - Y1) * sign
    dx1, dy1 = (X0 - X2) * sign, (Y0 - Y2) * sign
    dx2, dy2 = (X1 - X0) * sign, (Y1 - Y0) * sign
    left = max(int(np.ceil((min(X0, X1, X2) + centre_x) * 0.0625)), 0)
    right = min(int(np.floor((max(X0, X1, X2) + centre_x) * 0.0625)), width - 1)
    top = max(int(np.ceil((min(Y0, Y1, Y2) + centre_y) * 0.0625)), 0)
    bottom = min(int(np.floor((max(Y0, Y1, Y2) + centre_y) * 0.0625)), height - 1)
    own0 = 0.5 if (dy0 < 0) | ((dy0 == 0) & (dx0 > 0)) else -0.5
    own1 = 0.5 if (dy1 < 0) | ((dy1 == 0) & (dx1 > 0)) else -0.5
    own2 = 0.5 if (dy2 < 0) | ((dy2 == 0) & (dx2 > 0)) else -0.5
    inverse = 1 / (area * sign)
    slope1, slope2, base = (z1 - z0) * inverse, (z2 - z0) * inverse, float(z0)
    reversed_triangle = INDEX - triangle
    for row in range(top, bottom + 1):
        y = 16.0 * row - centre_y
        for start in range(left, right + 1, LANES):
            line = buffer[row, start : start + LANES]
            x = 16.0 * start - centre_x
            e0 = dx0 * (y - Y1) - dy0 * (x - X1)
            e1 = dx1 * (y - Y2) - dy1 * (x - X2)
            e2 = dx2 * (y - Y0) - dy2 * (x - X0)
            for lane in range(len(line)):
                step = 16.0 * lane
                f0, f1, f2 = e0 - step * dy0, e1 - step * dy1, e2 - step * dy2
                inside = (f0 + own0 > 0) & (f1 + own1 > 0) & (f2 + own2 > 0)
                key = _key(base + f1 * slope1 + f2 * slope2, reversed_triangle)
                old = line[lane]
                line[lane] = key if inside & (key < old) else old


@kernel
@no_type_check
def _clip_and_scan(clip, triangles, triangle, width, height, buffer):
    """Draw a triangle that is partly out of the depth range or very far out; skip one not finite.

    Sutherland-Hodgman against |z| <= w and |x|, |y| <= guard * w, then a fan of triangles.
    """
    guard_x, guard_y = (LIMIT - 16) / (8 * width), (LIMIT - 16) / (8 * height)
    polygon, kept = np.empty((10, 4)), np.empty((10, 4))
    for corner in range(3):
        for axis in range(4):
            polygon[corner, axis] = clip[triangles[triangle, corner], axis]
            if not abs(polygon[corner, axis]) < np.inf:
                return
    count = 3
    for plane in range(6):
        axis, side = plane // 2, 1.0 - 2.0 * (plane % 2)
        guard = guard_x if axis == 0 else guard_y if axis == 1 else 1.0
        size = 0
        for corner in range(count):
            a, b = polygon[corner], polygon[(corner + 1) % count]
            inside_a, inside_b = guard * a[3] + side * a[axis], guard * b[3] + side * b[axis]
            if inside_a >= 0:
                kept[size] = a
                size += 1
            if (inside_a >= 0) != (inside_b >= 0):
                # from the inner end, whichever triangle of a shared edge asks
                if inside_a >= 0:
                    kept[size] = a + (b - a) * (inside_a / (inside_a - inside_b))
                else:
                    kept[size] = b + (a - b) * (inside_b / (inside_b - inside_a))
                size += 1
        polygon, kept = kept, polygon
        count = size
        if count < 3:
            return
    for corner in range(count):
        w = polygon[corner, 3]
        if w <= 0:
            return
        polygon[corner, 0] = np.rint(polygon[corner, 0] / w * (8 * width))
        polygon[corner, 1] = np.rint(polygon[corner, 1] / w * (8 * height))
        polygon[corner, 2] = polygon[corner, 2] / w
    a = polygon[0]
    for corner in range(1, count - 1):
        b, c = polygon[corner], polygon[corner + 1]
        _scan(
            np.float32(a[0]), np.float32(a[1]), np.float32(a[2]),
            np.float32(b[0]), np.float32(b[1]), np.float32(b[2]),
            np.float32(c[0]), np.float32(c[1]), np.float32(c[2]),
            triangle, width, height, buffer,
        )  # fmt: skip


@kernel
@no_type_check
def _shade(clip, triangles, buffer, barycentric, depth, index):
    """Barycentrics and z / w of the visible triangles, from the unsnapped clip positions."""
    height, width = index.shape
    step_x, step_y = 1 / width, 1 / height
    for row in range(height):
        y = (2 * row + 1 - height) * step_y
        for column in range(width):
            if buffer[row, column] == EMPTY:
                barycentric[row, column, 0] = 0
                barycentric[row, column, 1] = 0
                depth[row, column] = 0
                index[row, column] = -1
                continue
            triangle = np.uint32(INDEX - (buffer[row, column] & INDEX))
            x = (2 * column + 1 - width) * step_x
            a = np.uint32(triangles[triangle, 0])
            b = np.uint32(triangles[triangle, 1])
            c = np.uint32(triangles[triangle, 2])
            wa, wb, wc = float(clip[a, 3]), float(clip[b, 3]), float(clip[c, 3])
            xa, ya = clip[a, 0] - x * wa, clip[a, 1] - y * wa
            xb, yb = clip[b, 0] - x * wb, clip[b, 1] - y * wb
            xc, yc = clip[c, 0] - x * wc, clip[c, 1] - y * wc
            area_a, area_b, area_c = xb * yc - xc * yb, xc * ya - xa * yc, xa * yb - xb * ya
            total = area_a + area_b + area_c
            # the centre may lie just outside the unsnapped triangle, which may even have no area
            inverse = 1 / total if total != 0 else 0.0
            u = min(max(area_a * inverse, 0.0), 1.0)
            v = min(max(area_b * inverse, 0.0), 1.0)
            if u + v > 1:
                excess = 1 / (u + v)
                u *= excess
                v *= excess
            t = 1 - u - v
            z = u * clip[a, 2] + v * clip[b, 2] + t * clip[c, 2]
            z /= u * wa + v * wb + t * wc
            barycentric[row, column, 0] = u
            barycentric[row, column, 1] = v
            depth[row, column] = min(max(z, -1.0), 1.0)
            index[row, column] = triangle


@kernel
@no_type_check
def draw_backward(first, last, clip, triangles, index, grad_barycentric, grad_clip):
    """Add dL/d(x, y, w) of the images first .. last - 1 to grad_clip, which starts as 0."""
    height, width = index.shape[1:]
    # a triangle this small would not have been drawn: it only was because its corners were snapped
    smallest = 4 / (256 * height * width)
    for image in range(first, last):
        for row in range(height):
            y = (2 * row + 1) / height - 1
            for column in range(width):
                triangle = index[image, row, column]
                if triangle < 0:
                    continue
                grad_u = float(grad_barycentric[image, row, column, 0])
                grad_v = float(grad_barycentric[image, row, column, 1])
                if grad_u == 0 and grad_v == 0:
                    continue
                x = (2 * column + 1) / width - 1
                a = np.uint32(triangles[triangle, 0])
                b = np.uint32(triangles[triangle, 1])
                c = np.uint32(triangles[triangle, 2])
                position = clip[image]
                wa, wb, wc = float(position[a, 3]), float(position[b, 3]), float(position[c, 3])
                xa, ya = position[a, 0] - x * wa, position[a, 1] - y * wa
                xb, yb = position[b, 0] - x * wb, position[b, 1] - y * wb
                xc, yc = position[c, 0] - x * wc, position[c, 1] - y * wc
                area_a, area_b, area_c = xb * yc - xc * yb, xc * ya - xa * yc, xa * yb - xb * ya
                total = area_a + area_b + area_c
                if abs(total) <= smallest * max(wa * wa, wb * wb, wc * wc):
                    continue
                u, v = area_a / total, area_b / total
                mean = grad_u * u + grad_v * v
                grad_a, grad_b, grad_c = (
                    (grad_u - mean) / total,
                    (grad_v - mean) / total,
                    -mean / total,
                )
                gxa, gya = grad_c * yb - grad_b * yc, grad_b * xc - grad_c * xb
                gxb, gyb = grad_a * yc - grad_c * ya, grad_c * xa - grad_a * xc
                gxc, gyc = grad_b * ya - grad_a * yb, grad_a * xb - grad_b * xa
                gradient = grad_clip[image]
                gradient[a, 0] += gxa
                gradient[a, 1] += gya
                gradient[a, 3] -= x * gxa + y * gya
                gradient[b, 0] += gxb
                gradient[b, 1] += gyb
                gradient[b, 3] -= x * gxb + y * gyb
                gradient[c, 0] += gxc
                gradient[c, 1] += gyc
                gradient[c, 3] -= x * gxc + y * gyc
    return 0


@kernel
@no_type_check
def interpolate(first, last, attributes, triangles, barycentric, index, output):
    """Write the attributes at the pixels of the images; count the pixels of unknown triangles."""
    unknown = 0
    shared = attributes.shape[0] == 1
    for image in range(first, last):
        values = attributes[0 if shared else image]
        for row in range(index.shape[1]):
            for column in range(index.shape[2]):
                triangle = index[image, row, column]
                out = output[image, row, column]
                if triangle < 0 or triangle >= triangles.shape[0]:
                    unknown += triangle >= triangles.shape[0]
                    for channel in range(output.shape[3]):
                        out[channel] = 0
                    continue
                u, v = barycentric[image, row, column, 0], barycentric[image, row, column, 1]
                t = 1 - u - v
                a = values[np.uint32(triangles[triangle, 0])]
                b = values[np.uint32(triangles[triangle, 1])]
                c = values[np.uint32(triangles[triangle, 2])]
                for channel in range(output.shape[3]):
                    out[channel] = u * a[channel] + v * b[channel] + t * c[channel]
    return unknown


@kernel
@no_type_check
def interpolate_backward(
    first, last, attributes, triangles, barycentric, index, grad, grad_attributes, grad_barycentric
):
    """Add to grad_attributes, write grad_barycentric; one that has no images is left out."""
    shared = attributes.shape[0] == 1
    wants_attributes, wants_barycentric = len(grad_attributes) > 0, len(grad_barycentric) > 0
    for image in range(first, last):
        source = 0 if shared else image
        values = attributes[source]
        for row in range(index.shape[1]):
            for column in range(index.shape[2]):
                triangle = index[image, row, column]
                if triangle < 0:
                    if wants_barycentric:
                        grad_barycentric[image, row, column] = 0
                    continue
                a = np.uint32(triangles[triangle, 0])
                b = np.uint32(triangles[triangle, 1])
                c = np.uint32(triangles[triangle, 2])
                incoming = grad[image, row, column]
                if wants_attributes:
                    u, v = barycentric[image, row, column, 0], barycentric[image, row, column, 1]
                    t = 1 - u - v
                    sums = grad_attributes[source]
                    for channel in range(incoming.shape[0]):
                        sums[a, channel] += u * incoming[channel]
                        sums[b, channel] += v * incoming[channel]
                        sums[c, channel] += t * incoming[channel]
                if wants_barycentric:
                    grad_u = grad_v = 0.0
                    for channel in range(incoming.shape[0]):
                        last_value = values[c, channel]
                        grad_u += incoming[channel] * (values[a, channel] - last_value)
                        grad_v += incoming[channel] * (values[b, channel] - last_value)
                    grad_barycentric[image, row, column, 0] = grad_u
                    grad_barycentric[image, row, column, 1] = grad_v
    return 0
