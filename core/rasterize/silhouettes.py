"""Antialiasing of silhouettes by plain torch operations, on any device."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from core.rasterize.fragments import Fragments
from core.rasterize.topology import Topology

# A crossing may lie so far (in pixels) beyond the two centres: vertices were snapped for coverage.
TOLERANCE = 1 / 16
# From a pixel to the next at most so many triangles are passed.
STEPS = 256


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
    colours, clip = image.flatten(0, 2), clip.double()
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
        chosen, side = _walk(front, direction, index.flatten(), clip.detach(), topology, size, axis)
        front, back, direction = front[chosen], back[chosen], direction[chosen]
        ends = _ends(topology.triangles.long(), side)
        position = _screen(clip, front // (height * width), ends, size)
        distance = _crossing(position, front, direction, size, axis)
        share = (distance - 0.5).clamp(-0.5, 0.5)[:, None].to(image.dtype)
        # up to the middle the front pixel shows what is behind, beyond it the back pixel the front
        target = torch.where(distance < 0.5, front, back)
        difference = colours.index_select(0, front) - colours.index_select(0, back)
        result = result.index_add(0, target, share * difference)
    return result.view(image.shape)


def _walk(
    front: Tensor,
    direction: Tensor,
    index: Tensor,
    clip: Tensor,
    topology: Topology,
    size: tuple[int, int],
    axis: int,
) -> tuple[Tensor, Tensor]:
    """Of each pair, the silhouette edge through which the front surface ends between the centres.

    From the front pixel's triangle through edge after edge towards the other pixel.

    Returns:
        The pairs that have one, and the edges' sides (``Topology.twins``).
    """
    triangles, twins = topology.triangles.long(), topology.twins.flatten().long()
    walker = torch.arange(len(front), device=front.device)
    triangle, entrance = index[front], torch.full_like(front, -1)
    found, sides = [walker[:0]], [walker[:0]]
    for _ in range(STEPS):
        if not len(walker):
            break
        at, way = front[walker], direction[walker]
        image = at // (size[0] * size[1])
        in_front = (clip[image[:, None], triangles[triangle], 3] > 0).all(-1)
        side = 3 * triangle[:, None] + torch.arange(3, device=front.device)
        edges = _screen(clip, image, _ends(triangles, side).flatten(1), size).unflatten(1, (3, 2))
        line = _centre(at, size)[:, 1 - axis, None]
        straddles = (edges[:, :, 0, 1 - axis] <= line) != (edges[:, :, 1, 1 - axis] <= line)
        distance = torch.stack([_crossing(edges[:, k], at, way, size, axis) for k in range(3)], -1)
        possible = straddles & (side != entrance[:, None])
        distance = torch.where(possible, distance, -torch.inf)
        farthest, k = distance.max(-1)
        way_out = 3 * triangle + k
        rise = (edges[:, :, 1] - edges[:, :, 0]).gather(1, k[:, None, None].expand(-1, 1, 2))[:, 0]
        is_steep = rise[:, 1 - axis].abs() >= rise[:, axis].abs()
        goes_on = in_front & (farthest > -torch.inf) & (farthest <= 1 + TOLERANCE)
        ends_here = _is_silhouette(clip, image, triangles, twins, way_out)
        hit = goes_on & ends_here & is_steep & (farthest >= -TOLERANCE)
        found.append(walker[hit])
        sides.append(way_out[hit])
        goes_on &= ~ends_here
        walker, entrance = walker[goes_on], twins[way_out[goes_on]]
        triangle = entrance // 3
    return torch.cat(found), torch.cat(sides)


def _is_silhouette(
    clip: Tensor, image: Tensor, triangles: Tensor, twins: Tensor, side: Tensor
) -> Bool[Tensor, " p"]:
    """Whether edges are borders, or both their triangles lie on the same side of them."""
    twin = twins[side]
    here = _orientation(clip, image, triangles[side // 3])
    there = _orientation(clip, image, triangles[twin.clamp(min=0) // 3])
    same = _ends(triangles, side)[:, 0] == _ends(triangles, twin.clamp(min=0))[:, 0]
    return (twin < 0) | (here * there * torch.where(same, -1, 1) < 0)


def _orientation(clip: Tensor, image: Tensor, corners: Tensor) -> Tensor:
    """The signs of triangles' areas on the screen (of the parts before the camera)."""
    a, b, c = clip[image[:, None], corners][..., [0, 1, 3]].double().unbind(1)
    return (a * torch.linalg.cross(b, c)).sum(-1).sign()


def _ends(triangles: Tensor, side: Tensor) -> Tensor:
    """The two vertices of edges given by their sides: of edge k, corners k + 1 and k + 2."""
    corner = torch.stack([(side + 1) % 3, (side + 2) % 3], -1)
    return triangles.flatten()[side[..., None] // 3 * 3 + corner]


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
