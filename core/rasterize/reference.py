"""The reference backend: brute force in float64, slow and obvious; it judges the others."""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from core.rasterize.fragments import Fragments

GUARD_BAND = 2.0**18 - 1  # pixels from the image's centre


def rasterize(
    clip: Float[Tensor, "b n 4"],
    triangles: Int[Tensor, "t 3"],
    size: tuple[int, int],
    subpixel: int | None = 16,
) -> Fragments:
    """``core.rasterize.rasterize`` of CPU tensors, every triangle against every pixel.

    Args:
        clip: float32 or float64; the result has its dtype.
        triangles: in range.
        size: height, width.
        subpixel: vertices are snapped to so many steps per pixel, None = not at all.
    """
    corners = triangles.long()
    images = clip.detach().double().numpy()
    drawn = [_draw(positions, corners.numpy(), size, subpixel) for positions in images]
    index = torch.from_numpy(np.stack(drawn)) if drawn else torch.empty(0, *size, dtype=torch.int64)
    u, v, depth = shade(clip.double(), corners, index)
    barycentric = torch.stack([u, v], -1)
    return Fragments(barycentric.to(clip.dtype), depth.detach().to(clip.dtype), index)


def _draw(
    clip: np.ndarray, triangles: np.ndarray, size: tuple[int, int], subpixel: int | None
) -> np.ndarray:
    """The index of the visible triangle of each pixel of one image, -1 = background."""
    index, nearest = np.full(size, -1), np.full(size, np.inf)
    for triangle, corners in enumerate(triangles):
        for part in _cut(clip[corners], size):
            inside, z = _cover(part, size, subpixel)
            visible = inside & (z <= nearest)
            index[visible], nearest[visible] = triangle, z[visible]
    return index


def _cut(polygon: np.ndarray, size: tuple[int, int]) -> list[np.ndarray]:
    """The part of a triangle between near and far plane and not very far out, as triangles."""
    if not np.isfinite(polygon).all():
        return []
    band_y, band_x = (2 * GUARD_BAND / side for side in size)
    planes = [[1, 0, 0, band_x], [-1, 0, 0, band_x], [0, 1, 0, band_y], [0, -1, 0, band_y]]
    for plane in [*planes, [0, 0, 1, 1], [0, 0, -1, 1]]:  # x >= -band_x w ... z <= w
        kept = []
        distance = polygon @ plane
        for corner in range(len(polygon)):
            following = (corner + 1) % len(polygon)
            (a, b), (p, q) = polygon[[corner, following]], distance[[corner, following]]
            if p >= 0:
                kept.append(a)
            if p >= 0 > q:  # from the inner end, whichever triangle of a shared edge asks
                kept.append(a + (b - a) * (p / (p - q)))
            if q >= 0 > p:
                kept.append(b + (a - b) * (q / (q - p)))
        polygon = np.array(kept).reshape(-1, 4)
    if (polygon[:, 3] <= 0).any():  # x = y = z = w = 0
        return []
    return [polygon[[0, corner, corner + 1]] for corner in range(1, len(polygon) - 1)]


def _cover(
    position: np.ndarray, size: tuple[int, int], subpixel: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Which pixel centres lie inside a triangle in front of the camera, and its depth there."""
    height, width = size
    steps = subpixel or 1
    inverse = 1 / position[:, 3:]
    points = position[:, :2] * inverse * (np.array([width, height]) / 2 * steps)
    if subpixel:
        points = np.rint(points)
    z = (position[:, 2:3] * inverse)[:, 0].clip(-1, 1)
    x = (np.arange(width) + 0.5 - width / 2)[None, :] * steps
    y = (np.arange(height) + 0.5 - height / 2)[:, None] * steps
    (x0, y0), (x1, y1), (x2, y2) = points
    area = (x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0)
    inside, depth = np.full(size, area != 0), np.zeros(size)
    for corner in range(3):
        (xa, ya), (xb, yb) = points[corner - 2], points[corner - 1]  # the edge across the corner
        if area < 0:
            xa, ya, xb, yb = xb, yb, xa, ya
        # from the upper end, whichever triangle asks: the neighbour gets the exact opposite
        yo, xo = min((ya, xa), (yb, xb))
        edge = (xb - xa) * (y - yo) - (yb - ya) * (x - xo)
        owns = yb < ya or (yb == ya and xb > xa)
        inside &= edge >= 0 if owns else edge > 0
        depth += edge / (abs(area) or 1) * z[corner]
    return inside, depth


def shade(
    clip: Float[Tensor, "b n 4"], triangles: Int[Tensor, "t 3"], index: Int[Tensor, "b h w"]
) -> tuple[Tensor, Tensor, Tensor]:
    """u, v and z / w from the unsnapped positions; plain torch, so that autograd differentiates it.

    With x_i, y_i, w_i the corners' clip positions and (p, q) the pixel centre, the weights b_i with
    sum b_i = 1 and sum b_i (x_i - p w_i) = sum b_i (y_i - q w_i) = 0 are perspective-correct.
    """
    _, height, width = index.shape
    covered = index >= 0
    image, row, column = covered.nonzero(as_tuple=True)
    corners = clip[image[:, None], triangles[index[covered]]]
    px = corners[..., 0] - ((2 * column.double() + 1) / width - 1)[:, None] * corners[..., 3]
    py = corners[..., 1] - ((2 * row.double() + 1) / height - 1)[:, None] * corners[..., 3]
    following, last = [1, 2, 0], [2, 0, 1]
    areas = px[:, following] * py[:, last] - px[:, last] * py[:, following]
    total = areas.sum(-1, keepdim=True)
    weights = areas / torch.where(total == 0, torch.inf, total)
    # a centre just outside the unsnapped triangle gets the nearest weights, with unchanged gradient
    clamped = weights[:, :2].clamp(0, 1)
    clamped = clamped / clamped.sum(-1, keepdim=True).clamp(min=1)
    weights = weights[:, :2] + (clamped - weights[:, :2]).detach()
    weights = torch.cat([weights, 1 - weights.sum(-1, keepdim=True)], -1)
    z = (weights * corners[..., 2]).sum(-1) / (weights * corners[..., 3]).sum(-1)
    background = clip.new_zeros(index.shape)
    return (
        background.masked_scatter(covered, weights[:, 0]),
        background.masked_scatter(covered, weights[:, 1]),
        background.masked_scatter(covered, z.clamp(-1, 1)),
    )
