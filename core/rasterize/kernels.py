# ruff: noqa: ANN001, ANN201, ANN202 - numba compiles the kernels for the types they are called with
"""The CPU backend's numba kernels: each works through a range of images, without the GIL.

Drawing an image has three passes:

1. *Vertices* are divided by w and snapped to 1/16 pixel (``fill rule`` of ``core.rasterize``), and
   each notes the first pixel centre at or after it, per axis: its cell. Cells beyond the image are
   moved to its border.
2. *Triangles* go through in blocks. If the corners' cells are equal in an axis there is no centre
   in the bounding box, or it is outside the image: that removes half of a dense mesh and looks at
   one word per corner. Of the others (written so that LLVM vectorises it) those with one centre in
   the box are finished at once, those with up to 4 x 4 get a mask of the centres inside. What
   remains is scanned pixel by pixel. Snapped coordinates are small whole numbers: all edge
   functions are exact, so that no pixel of a shared edge is lost or drawn twice.
3. *Pixels*: barycentrics and depth of the visible triangle, in float64 from the unsnapped
   positions.

Triangles that reach out of the depth range or very far out are clipped first (depth range and a
guard band); that path is slow and rare. Without snapping every triangle in which a centre may lie
is scanned, in float64.

Arrays are flat: with a stride that is known at compile time LLVM vectorises what else it would
gather, several times slower.
"""

from collections.abc import Callable
from typing import Any, no_type_check

import numpy as np
from numba import njit, types
from numba.extending import intrinsic

BLOCK = 512
LARGEST = 2**15 - 1  # pixels along a side: a vertex's two cells share a word
# Rows of the work array of one block of triangles.
(
    LEFT, TOP, EDGE_A, EDGE_B, DOWN_A, RIGHT_A, DOWN_B, RIGHT_B, SLOPE_A, SLOPE_B, DEPTH,
) = (BLOCK * row for row in range(11))  # fmt: skip
ROWS = 11
# Rows of the block's whole numbers.
KIND, PLACE, STEPS, MASK = (BLOCK * row for row in range(4))
CULLED, ONE_PIXEL, SMALL, LARGE, UNUSUAL = range(5)
# A line of the buffer is this much longer than one of the image, for what is drawn past the end.
MARGIN = 8
LANES = 8  # so many pixels of a line are scanned at once
# Snapped coordinates stay below this, in 1/16 px: float64 multiplies them exactly. The edge
# functions of triangles no larger than NEAR (with boxes of 4 x 4 pixels) are exact in float32, too.
LIMIT = 2.0**22
NEAR = 1024
# Added and subtracted, it leaves the nearest whole number (ties to even) of a smaller float64.
ROUND = 1.5 * 2.0**52
# The cell of a vertex that cannot be snapped (behind the camera, too far out or not finite). Adding
# CARRY sets the same two bits in a word of which both halves are above 0.
UNSNAPPED = np.uint32(0x80008000)
CARRY = np.uint32(0x7FFF7FFF)
# A pixel of the buffer is its depth in steps of 2^-30 above a triangle's index, later ones first:
# the smallest number is the visible triangle.
DEPTH_STEPS = 2.0**30
INDEX = 2**32 - 1
EMPTY = 2**63 - 1


def kernel(function: Callable) -> Callable:
    """Compile for nopython mode; the machine code is kept on disk."""
    return njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract"})(function)


def rounded_kernel(function: Callable) -> Callable:
    """As ``kernel``, each operation rounded: the two sides of an edge must come to the same."""
    # left out, the option would be that of the kernel which calls it
    return njit(nogil=True, cache=True, error_model="numpy", fastmath=False)(function)


@intrinsic
def _first_bit(context: Any, bits: Any) -> tuple[Any, Callable]:
    """The number of zeros below the lowest bit of a uint32 that is not 0."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], context.get_constant(types.boolean, 1))

    return types.uint32(types.uint32), build


@kernel
@no_type_check
def draw(first, last, clip, triangles, width, height, barycentric, depth, index, space):
    """Rasterize the images first .. last - 1, snapped, into barycentric, depth and index.

    Args:
        first: image.
        last: image.
        clip: 4 numbers per vertex, a row per image.
        triangles: 3 indices per triangle.
        width: of an image.
        height: of an image.
        barycentric: 2 numbers per pixel, a row per image.
        depth: 1 number per pixel, a row per image.
        index: likewise.
        space: ``cpu.Space`` for images of that size.
    """
    buffer, stride, work, note = space.buffer, width + MARGIN, space.work, space.note
    a, b, c = space.corners
    survivor, single, small, other = space.lists
    for image in range(first, last):
        _snap(clip[image], space.point, space.cell, width, height)
        for start in range(0, len(triangles) // 3, BLOCK):
            stop = min(start + BLOCK, len(triangles) // 3)
            count = _cull(space.cell, triangles, start, stop, survivor)
            _gather(space.point, triangles, survivor, count, a, b, c)
            _classify(a, b, c, count, work, note, width, height)
            singles = smalls = others = 0
            for k in range(count):
                single[singles] = small[smalls] = k
                kind = note[KIND + k]
                singles += kind == ONE_PIXEL
                smalls += kind == SMALL
            for k in range(count):
                other[others] = k
                others += note[KIND + k] > SMALL
            for j in range(singles):
                k = np.uint32(single[j])
                place = np.uint32(note[PLACE + k])
                key = np.int64(note[STEPS + k]) << 32 | INDEX - survivor[k]
                buffer[place] = min(buffer[place], key)
            if smalls > 0:
                _regather(a, b, c, work, small, smalls, *space.small)
                _mask(*space.small, smalls, work, note, width, height)
                _draw_masks(survivor, small, smalls, work, note, stride, buffer)
            for j in range(others):
                k = other[j]
                _draw_alone(
                    clip[image], triangles, survivor[k], note[KIND + k] == UNUSUAL,
                    space.point, True, width, height, buffer, space.polygon,
                )  # fmt: skip
        _shade(
            clip[image], triangles, width, height, space,
            barycentric[image], depth[image], index[image],
        )  # fmt: skip
    return 0


@kernel
@no_type_check
def draw_exactly(first, last, clip, triangles, width, height, barycentric, depth, index, space):
    """``draw`` without snapping."""
    survivor, point = space.lists[0], space.point
    for image in range(first, last):
        _place(clip[image], point, space.cell, width, height)
        for start in range(0, len(triangles) // 3, BLOCK):
            stop = min(start + BLOCK, len(triangles) // 3)
            count = _cull(space.cell, triangles, start, stop, survivor)
            for k in range(count):
                corner = 3 * np.uint32(survivor[k])
                unusual = 0.0
                for i in range(3):
                    unusual += point[4 * np.uint32(triangles[corner + i]) + 3]
                _draw_alone(
                    clip[image], triangles, survivor[k], unusual > 0,
                    point, False, width, height, space.buffer, space.polygon,
                )  # fmt: skip
        _shade(
            clip[image], triangles, width, height, space,
            barycentric[image], depth[image], index[image],
        )  # fmt: skip
    return 0


@kernel
@no_type_check
def _draw_alone(clip, triangles, triangle, unusual, point, snap, width, height, buffer, polygon):
    """Draw a triangle that is not of a kind that comes in blocks."""
    if unusual:
        _clip_and_scan(clip, triangles, triangle, snap, width, height, buffer, polygon)
        return
    corner = 3 * np.uint32(triangle)
    a = 4 * np.uint32(triangles[corner])
    b = 4 * np.uint32(triangles[corner + 1])
    c = 4 * np.uint32(triangles[corner + 2])
    _scan(
        float(point[a]), float(point[a + 1]), float(point[a + 2]),
        float(point[b]), float(point[b + 1]), float(point[b + 2]),
        float(point[c]), float(point[c + 1]), float(point[c + 2]),
        triangle, width, height, buffer,
    )  # fmt: skip


@kernel
@no_type_check
def _snap(clip, point, cell, width, height):
    """Positions relative to the image's centre in 1/16 px, z / w, 1 if not usable; cells."""
    scale_x, scale_y = 8.0 * width, 8.0 * height
    offset_x, offset_y = scale_x - 8, scale_y - 8
    for vertex in range(len(cell)):
        w = float(clip[4 * vertex + 3])
        inverse = 1 / w
        x = clip[4 * vertex] * inverse * scale_x
        y = clip[4 * vertex + 1] * inverse * scale_y
        z = clip[4 * vertex + 2] * inverse
        usual = (abs(x) < LIMIT) & (abs(y) < LIMIT) & (w > 0) & (w < np.inf) & (abs(z) <= 1)
        x = ((x if usual else 0.0) + ROUND) - ROUND
        y = ((y if usual else 0.0) + ROUND) - ROUND
        point[4 * vertex] = x
        point[4 * vertex + 1] = y
        point[4 * vertex + 2] = z
        point[4 * vertex + 3] = 0.0 if usual else 1.0
        column = np.ceil((x + offset_x) * 0.0625)
        column = column if column > 0 else 0.0
        column = column if column < width else float(width)
        row = np.ceil((y + offset_y) * 0.0625)
        row = row if row > 0 else 0.0
        row = row if row < height else float(height)
        cell[vertex] = np.uint32(np.int64(row * 65536 + column if usual else float(UNSNAPPED)))


@rounded_kernel
@no_type_check
def _place(clip, point, cell, width, height):
    """``_snap`` without rounding."""
    scale_x, scale_y = 8.0 * width, 8.0 * height
    for vertex in range(len(cell)):
        w = float(clip[4 * vertex + 3])
        inverse = 1 / w
        x = clip[4 * vertex] * inverse * scale_x
        y = clip[4 * vertex + 1] * inverse * scale_y
        z = clip[4 * vertex + 2] * inverse
        usual = (abs(x) < LIMIT) & (abs(y) < LIMIT) & (w > 0) & (w < np.inf) & (abs(z) <= 1)
        point[4 * vertex] = x
        point[4 * vertex + 1] = y
        point[4 * vertex + 2] = z
        point[4 * vertex + 3] = 0.0 if usual else 1.0
        column, row = (x + scale_x - 8) * 0.0625, (y + scale_y - 8) * 0.0625
        # rounding of these sums must not decide on which side of a centre a vertex is
        sure = (abs(column - np.rint(column)) > 1e-9) & (abs(row - np.rint(row)) > 1e-9)
        column, row = min(max(np.ceil(column), 0.0), width), min(max(np.ceil(row), 0.0), height)
        word = row * 65536 + column if usual and sure else float(UNSNAPPED)
        cell[vertex] = np.uint32(np.int64(word))


@kernel
@no_type_check
def _cull(cell, triangles, start, stop, survivor):
    """List the triangles whose bounding box may hold a pixel centre; return their number."""
    count = 0
    for triangle in range(np.uint32(start), np.uint32(stop)):
        a = cell[np.uint32(triangles[3 * triangle])]
        b = cell[np.uint32(triangles[3 * triangle + 1])]
        c = cell[np.uint32(triangles[3 * triangle + 2])]
        differ = np.uint32((a ^ b) | (a ^ c))
        survivor[count] = triangle
        # unusual corners differ from the others in those bits; if all three are, a has them
        kept = np.uint32((differ + CARRY) | differ | a) & UNSNAPPED
        count += np.uint32(kept) == UNSNAPPED
    return count


@kernel
@no_type_check
def _gather(point, triangles, survivor, count, a, b, c):
    """The corners of the surviving triangles, copied by 16 bytes."""
    for k in range(np.uint32(count)):
        triangle = np.uint32(survivor[k])
        i = np.uint32(triangles[3 * triangle])
        x0, y0, z0, w0 = point[4 * i], point[4 * i + 1], point[4 * i + 2], point[4 * i + 3]
        i = np.uint32(triangles[3 * triangle + 1])
        x1, y1, z1, w1 = point[4 * i], point[4 * i + 1], point[4 * i + 2], point[4 * i + 3]
        i = np.uint32(triangles[3 * triangle + 2])
        x2, y2, z2, w2 = point[4 * i], point[4 * i + 1], point[4 * i + 2], point[4 * i + 3]
        a[4 * k], a[4 * k + 1], a[4 * k + 2], a[4 * k + 3] = x0, y0, z0, w0
        b[4 * k], b[4 * k + 1], b[4 * k + 2], b[4 * k + 3] = x1, y1, z1, w1
        c[4 * k], c[4 * k + 1], c[4 * k + 2], c[4 * k + 3] = x2, y2, z2, w2


@kernel
@no_type_check
def _classify(a, b, c, count, work, note, width, height):
    """Say of each triangle how it is to be drawn; finish those with one pixel centre in the box."""
    f = np.float32
    sixteenth, half, one, zero, four = f(0.0625), f(0.5), f(1), f(0), f(4)
    centre_x, centre_y, columns, rows = f(8 * width - 8), f(8 * height - 8), f(width), f(height)
    stride = np.int32(width + MARGIN)
    for k in range(count):
        # all four are read, or LLVM would not vectorise it without gathers
        x0, y0, z0, unusual0 = a[4 * k], a[4 * k + 1], a[4 * k + 2], a[4 * k + 3]
        x1, y1, z1, unusual1 = b[4 * k], b[4 * k + 1], b[4 * k + 2], b[4 * k + 3]
        x2, y2, z2, unusual2 = c[4 * k], c[4 * k + 1], c[4 * k + 2], c[4 * k + 3]
        low_x = x0 if x0 < x1 else x1
        low_x = low_x if low_x < x2 else x2
        high_x = x0 if x0 > x1 else x1
        high_x = high_x if high_x > x2 else x2
        low_y = y0 if y0 < y1 else y1
        low_y = low_y if low_y < y2 else y2
        high_y = y0 if y0 > y1 else y1
        high_y = high_y if high_y > y2 else y2
        # the fill rule gives a triangle no centre on the far sides of its box
        left, right = (
            np.ceil((low_x + centre_x) * sixteenth),
            np.ceil((high_x + centre_x) * sixteenth),
        )
        top, bottom = (
            np.ceil((low_y + centre_y) * sixteenth),
            np.ceil((high_y + centre_y) * sixteenth),
        )
        left = left if left > zero else zero
        top = top if top > zero else zero
        right = right if right < columns else columns
        bottom = bottom if bottom < rows else rows
        # edge functions at the box's first centre
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
        z = z0 + (e1 * (z1 - z0) + e2 * (z2 - z0)) / (area * sign)
        near = (high_x - low_x < f(NEAR)) & (high_y - low_y < f(NEAR))
        kind = np.int32(ONE_PIXEL) if inside else np.int32(CULLED)
        kind = kind if (right - left <= one) & (bottom - top <= one) else np.int32(SMALL)
        kind = kind if (right - left <= four) & (bottom - top <= four) & near else np.int32(LARGE)
        usual = unusual0 + unusual1 + unusual2 == zero
        work[LEFT + k] = left
        work[TOP + k] = top
        note[KIND + k] = kind if usual else np.int32(UNUSUAL)
        note[PLACE + k] = np.int32(np.int32(top) * stride + np.int32(left))
        note[STEPS + k] = np.int32(z * f(DEPTH_STEPS))


@kernel
@no_type_check
def _regather(a, b, c, work, small, count, small_a, small_b, small_c):
    """Move the small triangles together."""
    for j in range(np.uint32(count)):
        k = np.uint32(small[j])
        x0, y0, z0, w0 = a[4 * k], a[4 * k + 1], a[4 * k + 2], a[4 * k + 3]
        x1, y1, z1, w1 = b[4 * k], b[4 * k + 1], b[4 * k + 2], b[4 * k + 3]
        x2, y2, z2, w2 = c[4 * k], c[4 * k + 1], c[4 * k + 2], c[4 * k + 3]
        small_a[4 * j], small_a[4 * j + 1], small_a[4 * j + 2], small_a[4 * j + 3] = x0, y0, z0, w0
        small_b[4 * j], small_b[4 * j + 1], small_b[4 * j + 2], small_b[4 * j + 3] = x1, y1, z1, w1
        small_c[4 * j], small_c[4 * j + 1], small_c[4 * j + 2], small_c[4 * j + 3] = x2, y2, z2, w2
        work[LEFT + j], work[TOP + j] = work[LEFT + k], work[TOP + k]


@kernel
@no_type_check
def _mask(a, b, c, count, work, note, width, height):
    """Which of 4 x 4 pixel centres are inside each small triangle, and the terms of its depth."""
    f = np.float32
    half, one, zero, step = f(0.5), f(1), f(0), f(16)
    centre_x, centre_y = f(8 * width - 8), f(8 * height - 8)
    for k in range(count):
        x0, y0, z0, unusual0 = a[4 * k], a[4 * k + 1], a[4 * k + 2], a[4 * k + 3]
        x1, y1, z1, unusual1 = b[4 * k], b[4 * k + 1], b[4 * k + 2], b[4 * k + 3]
        x2, y2, z2, unusual2 = c[4 * k], c[4 * k + 1], c[4 * k + 2], c[4 * k + 3]
        x, y = work[LEFT + k] * step - centre_x, work[TOP + k] * step - centre_y
        area = (x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0)
        sign = one if area > zero else -one
        dx0, dy0 = (x2 - x1) * sign, (y2 - y1) * sign
        dx1, dy1 = (x0 - x2) * sign, (y0 - y2) * sign
        dx2, dy2 = (x1 - x0) * sign, (y1 - y0) * sign
        e0 = dx0 * (y - y1) - dy0 * (x - x1)
        e1 = dx1 * (y - y2) - dy1 * (x - x2)
        e2 = dx2 * (y - y0) - dy2 * (x - x0)
        inverse = one / (area * sign)
        work[EDGE_A + k], work[DOWN_A + k], work[RIGHT_A + k] = e1, dx1 * step, dy1 * step
        work[EDGE_B + k], work[DOWN_B + k], work[RIGHT_B + k] = e2, dx2 * step, dy2 * step
        work[SLOPE_A + k], work[SLOPE_B + k] = (z1 - z0) * inverse, (z2 - z0) * inverse
        work[DEPTH + k] = z0
        e0 += half if (dy0 < zero) | ((dy0 == zero) & (dx0 > zero)) else -half
        e1 += half if (dy1 < zero) | ((dy1 == zero) & (dx1 > zero)) else -half
        e2 += half if (dy2 < zero) | ((dy2 == zero) & (dx2 > zero)) else -half
        outside = np.int32(0)
        for row in range(4):
            f0 = e0 + f(16 * row) * dx0
            f1 = e1 + f(16 * row) * dx1
            f2 = e2 + f(16 * row) * dx2
            for column in range(4):
                # none is 0: outside if one has a minus sign
                s0 = f(f0 - f(16 * column) * dy0).view(np.int32)
                s1 = f(f1 - f(16 * column) * dy1).view(np.int32)
                s2 = f(f2 - f(16 * column) * dy2).view(np.int32)
                minus = np.int32((s0 | s1 | s2) >> np.int32(31))
                outside |= np.int32(minus & np.int32(1 << (4 * row + column)))
        drawn = (area != zero) & (unusual0 + unusual1 + unusual2 == zero)
        note[MASK + k] = np.int32(outside ^ np.int32(0xFFFF)) if drawn else np.int32(0)


@kernel
@no_type_check
def _draw_masks(survivor, small, count, work, note, stride, buffer):
    """Draw the pixels of the small triangles' masks."""
    f = np.float32
    for j in range(np.uint32(count)):
        k = np.uint32(small[j])
        mask = np.uint32(note[MASK + j])
        place, reversed_triangle = np.uint32(note[PLACE + k]), INDEX - survivor[k]
        while mask != 0:
            bit = _first_bit(mask)
            mask = np.uint32(mask & (mask - np.uint32(1)))
            row, column = np.uint32(bit >> 2), np.uint32(bit & 3)
            down, right = f(row), f(column)
            e1 = work[EDGE_A + j] + (down * work[DOWN_A + j] - right * work[RIGHT_A + j])
            e2 = work[EDGE_B + j] + (down * work[DOWN_B + j] - right * work[RIGHT_B + j])
            z = work[DEPTH + j] + (e1 * work[SLOPE_A + j] + e2 * work[SLOPE_B + j])
            key = np.int64(np.int32(z * f(DEPTH_STEPS))) << 32 | reversed_triangle
            pixel = np.uint32(place + row * np.uint32(stride) + column)
            buffer[pixel] = min(buffer[pixel], key)


@rounded_kernel
@no_type_check
def _scan(x0, y0, z0, x1, y1, z1, x2, y2, z2, triangle, width, height, buffer):
    """Draw one triangle, in 1/16 px, over the pixel centres of its bounding box.

    Each edge function is worked out from the same end of the edge, whichever of its triangles asks:
    a centre that is not exactly on the edge is on one side for both.
    """
    centre_x, centre_y, stride = 8.0 * width - 8, 8.0 * height - 8, width + MARGIN
    area = (x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0)
    if not 0 < abs(area) < np.inf:
        return
    sign = 1.0 if area > 0 else -1.0
    px0, py0, dx0, dy0, least0 = _edge(x1, y1, x2, y2, sign)
    px1, py1, dx1, dy1, least1 = _edge(x2, y2, x0, y0, sign)
    px2, py2, dx2, dy2, least2 = _edge(x0, y0, x1, y1, sign)
    left = min(max(np.ceil((min(x0, x1, x2) + centre_x) * 0.0625), 0.0), float(width))
    right = min(max(np.floor((max(x0, x1, x2) + centre_x) * 0.0625) + 1, 0.0), float(width))
    top = min(max(np.ceil((min(y0, y1, y2) + centre_y) * 0.0625), 0.0), float(height))
    bottom = min(max(np.floor((max(y0, y1, y2) + centre_y) * 0.0625) + 1, 0.0), float(height))
    slope1, slope2 = (z1 - z0) / abs(area), (z2 - z0) / abs(area)
    reversed_triangle = INDEX - triangle
    span = (int(right) - int(left) + LANES - 1) // LANES * LANES
    first = 16.0 * left - centre_x
    for row in range(int(top), int(bottom)):
        y = 16.0 * row - centre_y
        down0, down1, down2 = dx0 * (y - py0), dx1 * (y - py1), dx2 * (y - py2)
        line = buffer[row * stride + int(left) : row * stride + int(left) + span]
        for lane in range(span):
            at = first + 16.0 * lane
            e0 = down0 - dy0 * (at - px0)
            e1 = down1 - dy1 * (at - px1)
            e2 = down2 - dy2 * (at - px2)
            inside = (e0 >= least0) & (e1 >= least1) & (e2 >= least2)
            z = z0 + e1 * slope1 + e2 * slope2
            steps = np.int64((z if inside else 0.0) * DEPTH_STEPS)
            key = steps << 32 | reversed_triangle
            old = line[lane]
            line[lane] = key if inside & (key < old) else old


@rounded_kernel
@no_type_check
def _edge(xa, ya, xb, yb, sign):
    """An edge from a to b: its fixed end, its direction, the least value of what it owns.

    With the direction turned to keep its triangle on the positive side (sign is that of the area).
    """
    swap = (ya > yb) | ((ya == yb) & (xa > xb))
    px, py = (xb, yb) if swap else (xa, ya)
    dx, dy = (xb - xa) * sign, (yb - ya) * sign
    owns = (dy < 0) | ((dy == 0) & (dx > 0))
    # not the smallest number there is: libraries switch the processor to taking that for 0
    return px, py, dx, dy, 0.0 if owns else 1e-300


@rounded_kernel
@no_type_check
def _clip_and_scan(clip, triangles, triangle, snap, width, height, buffer, polygon):
    """Draw a triangle that is partly out of the depth range or very far out; skip one not finite.

    Sutherland-Hodgman against |z| <= w and |x|, |y| <= guard * w, then a fan of triangles.
    polygon holds the corners, 4 numbers each, in the one half and those that are kept in the other.
    """
    for corner in range(3):
        vertex = np.uint32(triangles[3 * np.uint32(triangle) + corner])
        for axis in range(4):
            polygon[4 * corner + axis] = clip[4 * vertex + axis]
            if not abs(polygon[4 * corner + axis]) < np.inf:
                return
    count, this, other = 3, 0, len(polygon) // 2
    for plane in range(6):
        axis, side = plane // 2, 1.0 - 2.0 * (plane % 2)
        guard = (LIMIT - 16) / (8.0 * (width if axis == 0 else height)) if axis < 2 else 1.0
        size = 0
        for corner in range(count):
            a, b = this + 4 * corner, this + 4 * ((corner + 1) % count)
            inside_a = guard * polygon[a + 3] + side * polygon[a + axis]
            inside_b = guard * polygon[b + 3] + side * polygon[b + axis]
            if inside_a >= 0:
                for k in range(4):
                    polygon[other + 4 * size + k] = polygon[a + k]
                size += 1
            if (inside_a >= 0) != (inside_b >= 0):
                # from the inner end, whichever triangle of a shared edge asks
                if inside_a < 0:
                    a, b, inside_a, inside_b = b, a, inside_b, inside_a
                share = inside_a / (inside_a - inside_b)
                for k in range(4):
                    place = polygon[a + k] + (polygon[b + k] - polygon[a + k]) * share
                    polygon[other + 4 * size + k] = place
                size += 1
        this, other, count = other, this, size
        if count < 3:
            return
    for corner in range(this, this + 4 * count, 4):
        w = polygon[corner + 3]
        if w <= 0:
            return
        inverse = 1 / w
        polygon[corner] = polygon[corner] * inverse * (8 * width)
        polygon[corner + 1] = polygon[corner + 1] * inverse * (8 * height)
        polygon[corner + 2] = min(max(polygon[corner + 2] * inverse, -1.0), 1.0)
        if snap:
            polygon[corner] = np.rint(polygon[corner])
            polygon[corner + 1] = np.rint(polygon[corner + 1])
    a = this
    for b in range(this + 4, this + 4 * (count - 1), 4):
        _scan(
            polygon[a], polygon[a + 1], polygon[a + 2],
            polygon[b], polygon[b + 1], polygon[b + 2],
            polygon[b + 4], polygon[b + 5], polygon[b + 6],
            triangle, width, height, buffer,
        )  # fmt: skip


@kernel
@no_type_check
def _shade(clip, triangles, width, height, space, barycentric, depth, index):
    """Barycentrics and z / w of the visible triangles, from the unsnapped clip positions."""
    buffer, stride = space.buffer, width + MARGIN
    # covered pixels are listed line by line, worked through in blocks
    pixels, seen = space.pixels
    a, b, c, weights = space.shaded
    count = 0
    for row in range(height):
        line = buffer[row * stride : row * stride + width]
        barycentric[2 * row * width : 2 * (row + 1) * width] = 0
        depth[row * width : (row + 1) * width] = 0
        index[row * width : (row + 1) * width] = -1
        for column in range(width):
            key = line[column]
            pixels[count] = np.uint32(row << 16 | column)
            seen[count] = np.uint32(INDEX - (key & INDEX))
            count += key != EMPTY
        line[:] = EMPTY
        if count < BLOCK and row < height - 1:
            continue
        for start in range(0, count, BLOCK):
            size = min(BLOCK, count - start)
            _find(clip, triangles, seen[start:], size, space.vertices, a, b, c)
            _weigh(pixels[start:], size, width, height, a, b, c, weights)
            for k in range(size):
                pixel = pixels[start + k]
                place = np.uint64(pixel >> 16) * np.uint64(width) + np.uint64(pixel & 0xFFFF)
                u, v, z = weights[4 * k], weights[4 * k + 1], weights[4 * k + 2]
                barycentric[2 * place] = u
                barycentric[2 * place + 1] = v
                depth[place] = z
                index[place] = seen[start + k]
        count = 0


@kernel
@no_type_check
def _find(clip, triangles, seen, count, vertices, a, b, c):
    """The corners of the triangles of a block of pixels."""
    # in two loops: the less each does, the more of its loads are under way at once
    for k in range(np.uint32(count)):
        triangle = np.uint32(seen[k])
        for corner in range(3):
            vertices[3 * k + corner] = triangles[3 * triangle + corner]
    for k in range(np.uint32(count)):
        i = vertices[3 * k]
        x0, y0, z0, w0 = clip[4 * i], clip[4 * i + 1], clip[4 * i + 2], clip[4 * i + 3]
        i = vertices[3 * k + 1]
        x1, y1, z1, w1 = clip[4 * i], clip[4 * i + 1], clip[4 * i + 2], clip[4 * i + 3]
        i = vertices[3 * k + 2]
        x2, y2, z2, w2 = clip[4 * i], clip[4 * i + 1], clip[4 * i + 2], clip[4 * i + 3]
        a[4 * k], a[4 * k + 1], a[4 * k + 2], a[4 * k + 3] = x0, y0, z0, w0
        b[4 * k], b[4 * k + 1], b[4 * k + 2], b[4 * k + 3] = x1, y1, z1, w1
        c[4 * k], c[4 * k + 1], c[4 * k + 2], c[4 * k + 3] = x2, y2, z2, w2


@kernel
@no_type_check
def _weigh(pixels, count, width, height, a, b, c, weights):
    """u, v and z / w of a block of pixels."""
    step_x, step_y = 1 / width, 1 / height
    kind = a.dtype.type
    one, zero = kind(1), kind(0)
    for k in range(count):
        pixel = pixels[k]
        x = float(np.int32(2 * np.int32(pixel & np.uint32(0xFFFF)) + (1 - width))) * step_x
        y = float(np.int32(2 * np.int32(pixel >> np.uint32(16)) + (1 - height))) * step_y
        za, zb, zc = a[4 * k + 2], b[4 * k + 2], c[4 * k + 2]
        wa, wb, wc = a[4 * k + 3], b[4 * k + 3], c[4 * k + 3]
        xa, ya = a[4 * k] - x * wa, a[4 * k + 1] - y * wa
        xb, yb = b[4 * k] - x * wb, b[4 * k + 1] - y * wb
        xc, yc = c[4 * k] - x * wc, c[4 * k + 1] - y * wc
        area_a, area_b, area_c = xb * yc - xc * yb, xc * ya - xa * yc, xa * yb - xb * ya
        total = area_a + area_b + area_c
        # the centre may lie just outside the unsnapped triangle, which may even have no area
        inverse = 1 / total if total != 0 else 0.0
        u, v = kind(area_a * inverse), kind(area_b * inverse)
        u = u if u > zero else zero
        u = u if u < one else one
        v = v if v > zero else zero
        v = v if v < one else one
        both = u + v
        excess = one / both if both > one else one
        u *= excess
        v *= excess
        t = one - u - v
        z = (u * za + v * zb + t * zc) / (u * wa + v * wb + t * wc)
        z = z if z > -one else -one
        z = z if z < one else one
        weights[4 * k] = u
        weights[4 * k + 1] = v
        weights[4 * k + 2] = z
        weights[4 * k + 3] = t
