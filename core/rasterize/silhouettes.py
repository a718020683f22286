"""Antialiasing of silhouettes by plain torch operations, on any device."""

import torch
from jaxtyping import Float
from torch import Tensor

from core.rasterize.fragments import Fragments
from core.rasterize.topology import Topology

# A crossing may lie so far (in pixels) beyond the two centres: vertices were snapped for coverage.
TOLERANCE = 1 / 16


def antialias(
    image: Float[Tensor, "b h w c"],
    fragments: Fragments,
    clip: Float[Tensor, "b n 4"],
    topology: Topology,
) -> Float[Tensor, "b h w c"]:
    """``core.rasterize.antialias``; the triangles' indices are in range."""
    index, depth = fragments.triangle_index, fragments.depth
    _, height, width = index.shape
    size = (height, width)
    colours = image.flatten(0, 2)
    result = colours
    pixels = torch.arange(index.numel(), device=index.device).view(index.shape)
    for axis in (0, 1):  # pairs side by side, then one above the other
        cut = (slice(None),) * (2 - axis)
        one, two = (*cut, slice(None, -1)), (*cut, slice(1, None))
        differs = index[one] != index[two]
        first, second = pixels[one][differs], pixels[two][differs]
        behind = (index[one] < 0) | ((index[two] >= 0) & (depth[two] < depth[one]))
        swapped = behind[differs]
        front, back = torch.where(swapped, second, first), torch.where(swapped, first, second)
        direction = 1 - 2 * swapped.to(clip.dtype)
        chosen, start, end = _crossed_edge(
            front, direction, index.flatten(), clip.detach(), topology, size, axis
        )
        front, back, direction = front[chosen], back[chosen], direction[chosen]
        position = _screen(clip, front // (height * width), torch.stack([start, end], -1), size)
        distance = _crossing(position, front, direction, size, axis)
        share = (distance - 0.5).clamp(-0.5, 0.5)[:, None].to(image.dtype)
        # up to the middle the front pixel shows what is behind, beyond it the back pixel the front
        target = torch.where(distance < 0.5, front, back)
        difference = colours.index_select(0, front) - colours.index_select(0, back)
        result = result.index_add(0, target, share * difference)
    return result.view(image.shape)


def _crossed_edge(
    front: Tensor,
    direction: Tensor,
    index: Tensor,
    clip: Tensor,
    topology: Topology,
    size: tuple[int, int],
    axis: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Of each pair, the silhouette edge of the front triangle between the centres.

    Returns:
        The pairs that have one, and the two vertices of the edges.
    """
    triangle = index[front]
    image = front // (size[0] * size[1])
    corners = topology.triangles[triangle].long()
    beyond = topology.opposite[triangle]
    own = _screen(clip, image, corners, size)
    known = beyond.clamp(min=0)
    across = _screen(clip, image, known, size)
    in_front = clip[image[:, None], corners, 3] > 0
    across_sign = clip[image[:, None], known, 3].sign()
    chosen = torch.full_like(front, -1)
    for corner in range(3):
        start, end = (corner + 1) % 3, (corner + 2) % 3
        a, edge = own[:, start], own[:, end] - own[:, start]
        this_side = _cross(edge, own[:, corner] - a)
        other_side = _cross(edge, across[:, corner] - a) * across_sign[:, corner]
        is_silhouette = (beyond[:, corner] < 0) | (this_side * other_side > 0)
        is_silhouette &= in_front.all(-1)
        # the others cross the pairs of the other axis
        is_steep = edge[:, 1 - axis].abs() >= edge[:, axis].abs()
        pair = own[:, [start, end]]
        line = _centre(front, size)[:, 1 - axis]
        straddles = (pair[:, 0, 1 - axis] <= line) != (pair[:, 1, 1 - axis] <= line)
        distance = _crossing(pair, front, direction, size, axis)
        between = (distance >= -TOLERANCE) & (distance <= 1 + TOLERANCE)
        found = is_silhouette & is_steep & straddles & between & (chosen < 0)
        chosen = torch.where(found, corner, chosen)
    kept = (chosen >= 0).nonzero()[:, 0]
    chosen, corners = chosen[kept, None], corners[kept]
    ends = [corners.gather(1, (chosen + step) % 3)[:, 0] for step in (1, 2)]
    return kept, ends[0], ends[1]


def _crossing(
    edge: Float[Tensor, "p 2 2"], front: Tensor, direction: Tensor, size: tuple[int, int], axis: int
) -> Tensor:
    """How far from the front pixel's centre, towards the other, an edge crosses; pixels."""
    centre = _centre(front, size).to(edge.dtype)
    start, end = edge[:, 0], edge[:, 1]
    rise = end[:, 1 - axis] - start[:, 1 - axis]
    rise = torch.where(rise == 0, 1, rise)
    along = (centre[:, 1 - axis] - start[:, 1 - axis]) / rise
    crossing = start[:, axis] + along * (end[:, axis] - start[:, axis])
    return (crossing - centre[:, axis]) * direction


def _screen(
    clip: Tensor, image: Tensor, vertices: Tensor, size: tuple[int, int]
) -> Float[Tensor, "p k 2"]:
    """Positions in pixels of k vertices per pair."""
    rows = image[:, None] * clip.shape[1] + vertices
    # index_select rather than indexing: its gradient is summed in a fixed order on the CPU
    position = clip.flatten(0, 1).index_select(0, rows.flatten()).unflatten(0, rows.shape)
    w = position[..., 3:]
    extent = clip.new_tensor([size[1], size[0]])
    return (position[..., :2] / torch.where(w == 0, 1, w) + 1) / 2 * extent


def _centre(pixels: Tensor, size: tuple[int, int]) -> Float[Tensor, "p 2"]:
    """The centres of pixels numbered through the batch."""
    height, width = size
    return torch.stack([pixels % width, pixels // width % height], -1) + 0.5


def _cross(a: Tensor, b: Tensor) -> Tensor:
    """The z component of the cross product of vectors in the plane."""
    return a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]
