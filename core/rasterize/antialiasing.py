# ruff: noqa: ANN001, ANN202 - numba compiles the kernels for the types they are called with
"""Antialiasing of silhouettes on the CPU: numba kernels with their gradients.

Finds the same edges as ``core.rasterize.silhouettes``, from the other end: first the silhouette
edges of the mesh, of which there are few, then the pairs of pixels between which they cross. Each
image is worked through by one thread, so that the result does not depend on their number.
"""

from typing import Any, no_type_check

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from core.rasterize.fragments import Fragments
from core.rasterize.kernels import kernel
from core.rasterize.silhouettes import STEPS, TOLERANCE
from core.rasterize.threads import over_images
from core.rasterize.topology import Topology

BLOCK = 512


def antialias(
    image: Float[Tensor, "b h w c"],
    fragments: Fragments,
    clip: Float[Tensor, "b n 4"],
    topology: Topology,
) -> Float[Tensor, "b h w c"]:
    """``core.rasterize.antialias`` of CPU tensors; the triangles' indices are in range."""
    index, depth = fragments.triangle_index, fragments.depth
    return _Antialias.apply(image, clip, index, depth, topology)


class _Antialias(torch.autograd.Function):
    """Images and clip positions to images."""

    @staticmethod
    def forward(
        ctx: Any, image: Tensor, clip: Tensor, index: Tensor, depth: Tensor, topology: Topology
    ) -> Tensor:
        count, height, width, channels = image.shape
        image, clip = image.contiguous(), clip.contiguous()
        triangles = topology.triangles.flatten()
        output = image.clone()
        # of each blended pair: 2 * pixel + axis, 2 * side of an edge + whether the latter is nearer
        crossings = torch.empty(count, 4 * height * width, dtype=torch.int32)
        found = torch.zeros(count, dtype=torch.int64)
        over_images(
            _forward,
            count,
            *(_flat(clip), triangles, topology.edges.flatten(), topology.borders),
            *(topology.twins.flatten(), _flat(index.contiguous()), _flat(depth.contiguous())),
            *(width, height, channels, _flat(image), _flat(output), crossings, found),
        )
        most = int(found.max()) if count else 0
        ctx.save_for_backward(image, clip, triangles, crossings[:, : 2 * most].clone(), found)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        image, clip, triangles, crossings, found = ctx.saved_tensors
        count, height, width, channels = image.shape
        grad = grad.contiguous()
        grad_image, grad_clip = grad.clone(), torch.zeros_like(clip)
        over_images(
            _backward,
            count,
            *(_flat(clip), triangles, width, height, channels, _flat(image), crossings, found),
            *(_flat(grad), _flat(grad_image), _flat(grad_clip)),
        )
        return grad_image, grad_clip, None, None, None


def _flat(tensor: Tensor) -> Tensor:
    """One row per image, without copying."""
    return tensor.view(len(tensor), tensor[:1].numel() if len(tensor) else 0)


@kernel
@no_type_check
def _forward(
    first, last, clip, triangles, edges, borders, twins, index, depth, width, height, channels,
    image, output, crossings, found,
):  # fmt: skip
    """Add to the outputs, which start as the images; note what was blended."""
    facing = np.zeros(len(triangles) // 3, np.uint8)
    marks = np.zeros(width * height, np.uint8)
    candidates = np.empty(2 * width * height, np.uint32)
    for i in range(first, last):
        _face(clip[i], triangles, facing)
        count = 0
        for border in borders:
            count = _mark(
                clip[i], triangles, np.int64(border), width, height, marks, candidates, count
            )
        for edge in range(len(edges) // 4):
            one, other = facing[edges[4 * edge + 1]], facing[edges[4 * edge + 2]]
            if one ^ other ^ edges[4 * edge + 3]:
                side = np.int64(edges[4 * edge])
                count = _mark(clip[i], triangles, side, width, height, marks, candidates, count)
        blended = 0
        for k in range(count):
            pair = np.int64(candidates[k])
            pixel, axis = pair >> 1, pair & 1
            marks[pixel] = 0
            second = pixel + (width if axis else 1)
            if index[i, pixel] == index[i, second]:
                continue
            swapped = index[i, pixel] < 0 or (
                index[i, second] >= 0 and depth[i, second] < depth[i, pixel]
            )
            front, back = (second, pixel) if swapped else (pixel, second)
            side = _walk(
                clip[i],
                triangles,
                twins,
                facing,
                np.int64(index[i, front]),
                front,
                axis,
                swapped,
                width,
                height,
            )
            if side < 0:
                continue
            crossings[i, 2 * blended] = pair
            crossings[i, 2 * blended + 1] = 2 * side + swapped
            blended += 1
            distance = _cross(clip[i], triangles, side, front, axis, swapped, width, height)[0]
            share = min(max(distance - 0.5, -0.5), 0.5)
            target = front if distance < 0.5 else back
            for channel in range(channels):
                difference = (
                    image[i, front * channels + channel] - image[i, back * channels + channel]
                )
                output[i, target * channels + channel] += share * difference
        found[i] = blended
    return 0


@kernel
@no_type_check
def _face(clip, triangles, facing):
    """1 for the triangles that are seen from one side, 0 for the others and those without area."""
    a = np.zeros(4 * BLOCK, clip.dtype)
    b, c = np.zeros_like(a), np.zeros_like(a)
    for start in range(0, len(facing), BLOCK):
        count = min(BLOCK, len(facing) - start)
        for k in range(np.uint32(count)):
            corner = 3 * (np.uint32(start) + k)
            v = np.uint32(triangles[corner])
            x0, y0, z0, w0 = clip[4 * v], clip[4 * v + 1], clip[4 * v + 2], clip[4 * v + 3]
            v = np.uint32(triangles[corner + 1])
            x1, y1, z1, w1 = clip[4 * v], clip[4 * v + 1], clip[4 * v + 2], clip[4 * v + 3]
            v = np.uint32(triangles[corner + 2])
            x2, y2, z2, w2 = clip[4 * v], clip[4 * v + 1], clip[4 * v + 2], clip[4 * v + 3]
            a[4 * k], a[4 * k + 1], a[4 * k + 2], a[4 * k + 3] = x0, y0, z0, w0
            b[4 * k], b[4 * k + 1], b[4 * k + 2], b[4 * k + 3] = x1, y1, z1, w1
            c[4 * k], c[4 * k + 1], c[4 * k + 2], c[4 * k + 3] = x2, y2, z2, w2
        for k in range(count):
            # all four are read, or LLVM would not vectorise it without gathers
            x0, y0, z0, w0 = float(a[4 * k]), float(a[4 * k + 1]), a[4 * k + 2], float(a[4 * k + 3])
            x1, y1, z1, w1 = float(b[4 * k]), float(b[4 * k + 1]), b[4 * k + 2], float(b[4 * k + 3])
            x2, y2, z2, w2 = float(c[4 * k]), float(c[4 * k + 1]), c[4 * k + 2], float(c[4 * k + 3])
            area = x0 * (y1 * w2 - y2 * w1) + x1 * (y2 * w0 - y0 * w2) + x2 * (y0 * w1 - y1 * w0)
            finite = z0 * 0 + z1 * 0 + z2 * 0 == 0
            facing[start + k] = np.uint8((area > 0) & finite)


@kernel
@no_type_check
def _corner(triangles, corner):
    """A corner's vertex."""
    return np.int64(triangles[corner])


@kernel
@no_type_check
def _area(clip, triangles, triangle):
    """What ``_face`` takes the sign of."""
    a, b, c = (
        _corner(triangles, 3 * triangle),
        _corner(triangles, 3 * triangle + 1),
        _corner(triangles, 3 * triangle + 2),
    )
    x0, y0, w0 = float(clip[4 * a]), float(clip[4 * a + 1]), float(clip[4 * a + 3])
    x1, y1, w1 = float(clip[4 * b]), float(clip[4 * b + 1]), float(clip[4 * b + 3])
    x2, y2, w2 = float(clip[4 * c]), float(clip[4 * c + 1]), float(clip[4 * c + 3])
    return x0 * (y1 * w2 - y2 * w1) + x1 * (y2 * w0 - y0 * w2) + x2 * (y0 * w1 - y1 * w0)


@kernel
@no_type_check
def _ends(triangles, side):
    """The two vertices of an edge: of edge k of a triangle, corners k + 1 and k + 2."""
    corner, k = side // 3 * 3, side % 3
    return np.int64(triangles[corner + (k + 1) % 3]), np.int64(triangles[corner + (k + 2) % 3])


@kernel
@no_type_check
def _screen(clip, vertex, axis, width, height):
    """A vertex's position in pixels along an axis and across it."""
    inverse = 1 / float(clip[4 * vertex + 3])
    x = (clip[4 * vertex] * inverse + 1) * 0.5 * width
    y = (clip[4 * vertex + 1] * inverse + 1) * 0.5 * height
    return (y, x) if axis else (x, y)


@kernel
@no_type_check
def _mark(clip, triangles, side, width, height, marks, candidates, count):
    """List the pairs of pixels between whose centres an edge may cross."""
    start, end = _ends(triangles, side)
    if not (clip[4 * start + 3] > 0 and clip[4 * end + 3] > 0):
        return count
    xa, ya = _screen(clip, start, 0, width, height)
    xb, yb = _screen(clip, end, 0, width, height)
    if not abs(xa) + abs(ya) + abs(xb) + abs(yb) < np.inf:
        return count
    axis = 0 if abs(yb - ya) >= abs(xb - xa) else 1
    lines, places = (width, height) if axis else (height, width)
    if axis:
        xa, ya, xb, yb = ya, xa, yb, xb
    slope = (xb - xa) / (yb - ya if yb != ya else 1.0)
    low = int(min(max(np.ceil(min(ya, yb) - 0.5), 0.0), float(lines)))
    high = int(min(max(np.ceil(max(ya, yb) - 0.5), 0.0), float(lines)))
    for line in range(low, high):
        place = xa + (line + 0.5 - ya) * slope - 0.5
        # a little more than what _walk accepts
        left = int(min(max(np.floor(place - 1.1 * TOLERANCE), 0.0), float(places)))
        right = int(min(max(np.floor(place + 1.1 * TOLERANCE), -1.0), places - 2.0))
        for at in range(left, right + 1):
            pixel = at * width + line if axis else line * width + at
            if not marks[pixel] & (1 << axis):
                marks[pixel] |= 1 << axis
                candidates[count] = 2 * pixel + axis
                count += 1
    return count


@kernel
@no_type_check
def _walk(clip, triangles, twins, facing, triangle, front, axis, swapped, width, height):
    """The silhouette edge through which the surface ends between a pixel and the next, or -1."""
    column, row = front % width + 0.5, front // width + 0.5
    along, across = (row, column) if axis else (column, row)
    entrance = -1
    for _ in range(STEPS):
        a, b, c = (
            _corner(triangles, 3 * triangle),
            _corner(triangles, 3 * triangle + 1),
            _corner(triangles, 3 * triangle + 2),
        )
        if not (clip[4 * a + 3] > 0 and clip[4 * b + 3] > 0 and clip[4 * c + 3] > 0):
            return -1
        xa, ya = _screen(clip, a, axis, width, height)
        xb, yb = _screen(clip, b, axis, width, height)
        xc, yc = _screen(clip, c, axis, width, height)
        farthest, way_out, is_steep = -np.inf, -1, False
        for k in range(3):
            xs, ys, xe, ye = (
                (xb, yb, xc, yc) if k == 0 else (xc, yc, xa, ya) if k == 1 else (xa, ya, xb, yb)
            )
            if 3 * triangle + k == entrance or (ys <= across) == (ye <= across):
                continue
            crossing = xs + (across - ys) / (ye - ys) * (xe - xs)
            distance = along - crossing if swapped else crossing - along
            if distance > farthest:
                farthest, way_out = distance, 3 * triangle + k
                is_steep = abs(ye - ys) >= abs(xe - xs)
        if way_out < 0 or farthest > 1 + TOLERANCE:
            return -1
        twin = np.int64(twins[way_out])
        if twin < 0 or _is_fold(clip, triangles, facing, way_out, twin):
            return way_out if is_steep and farthest >= -TOLERANCE else -1
        triangle, entrance = twin // 3, twin
    return -1


@kernel
@no_type_check
def _is_fold(clip, triangles, facing, side, twin):
    """Whether the two triangles of an edge lie on the same side of it."""
    turned = _ends(triangles, side)[0] == _ends(triangles, twin)[0]
    if facing[side // 3] ^ facing[twin // 3] ^ turned == 0:
        return False
    # so it seems, but one of them may have no area
    return _area(clip, triangles, side // 3) != 0 and _area(clip, triangles, twin // 3) != 0


@kernel
@no_type_check
def _cross(clip, triangles, side, front, axis, swapped, width, height):
    """Where an edge crosses the line from a pixel's centre to the next.

    Returns:
        How far from the centre; whether the edge reaches over the line; where on the edge (0 to 1
        from its start); how far it goes along the line per step across; its two vertices.
    """
    start, end = _ends(triangles, side)
    xa, ya = _screen(clip, start, axis, width, height)
    xb, yb = _screen(clip, end, axis, width, height)
    column, row = front % width + 0.5, front // width + 0.5
    along, across = (row, column) if axis else (column, row)
    straddles = (ya <= across) != (yb <= across)
    rise = yb - ya if yb != ya else 1.0
    place, slope = (across - ya) / rise, (xb - xa) / rise
    distance = (xa + place * (xb - xa) - along) * (-1 if swapped else 1)
    return distance, straddles, place, slope, start, end


@kernel
@no_type_check
def _backward(
    first, last, clip, triangles, width, height, channels, image, crossings, found,
    grad, grad_image, grad_clip,
):  # fmt: skip
    """Add to grad_image, which starts as grad, and to grad_clip."""
    for i in range(first, last):
        for k in range(found[i]):
            pair, side = np.int64(crossings[i, 2 * k]), np.int64(crossings[i, 2 * k + 1])
            pixel, axis, swapped = pair >> 1, pair & 1, side & 1
            second = pixel + (width if axis else 1)
            front, back = (second, pixel) if swapped else (pixel, second)
            distance, _, place, slope, start, end = _cross(
                clip[i], triangles, side >> 1, front, axis, swapped, width, height
            )
            share = min(max(distance - 0.5, -0.5), 0.5)
            target = front if distance < 0.5 else back
            grad_share = 0.0
            for channel in range(channels):
                incoming = grad[i, target * channels + channel]
                one, other = front * channels + channel, back * channels + channel
                grad_share += incoming * (image[i, one] - image[i, other])
                grad_image[i, one] += share * incoming
                grad_image[i, other] -= share * incoming
            if not 0 <= distance <= 1:
                continue
            grad_along = -grad_share if swapped else grad_share
            grad_across = -grad_along * slope
            for vertex, part in ((start, 1 - place), (end, place)):
                w, x, y = (
                    float(clip[i, 4 * vertex + 3]),
                    clip[i, 4 * vertex],
                    clip[i, 4 * vertex + 1],
                )
                gx = part * (grad_across if axis else grad_along) * 0.5 * width / w
                gy = part * (grad_along if axis else grad_across) * 0.5 * height / w
                grad_clip[i, 4 * vertex] += gx
                grad_clip[i, 4 * vertex + 1] += gy
                grad_clip[i, 4 * vertex + 3] -= (gx * x + gy * y) / w
    return 0
