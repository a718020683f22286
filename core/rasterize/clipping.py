"""Triangles cut at planes of clip space by plain torch operations, for backends that do not clip.

A plane is given by four numbers p; what has p . (x, y, z, w) >= 0 is inside.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def frustum(like: Tensor, size: tuple[int, int], band: float) -> Float[Tensor, "6 4"]:
    """Near, far, and the four sides, these so far out that screen positions stay below ``band``.

    Args:
        like: gives dtype and device.
        size: height, width of the image.
        band: pixels, from the image's centre.
    """
    across, down = 2 * band / size[1], 2 * band / size[0]
    rows = [
        (0.0, 0.0, 1.0, 1.0),
        (0.0, 0.0, -1.0, 1.0),
        (1.0, 0.0, 0.0, across),
        (-1.0, 0.0, 0.0, across),
        (0.0, 1.0, 0.0, down),
        (0.0, -1.0, 0.0, down),
    ]
    return torch.tensor(rows, dtype=like.dtype, device=like.device)


def inside(clip: Float[Tensor, "b n 4"], planes: Float[Tensor, "p 4"]) -> Bool[Tensor, "b n"]:
    """Which vertices are finite, in front of the camera and inside all planes."""
    within = (clip @ planes.mT >= 0).all(-1)  # never, where there is a NaN
    return within & (clip[..., 3] > 0) & clip.isfinite().all(-1)


def cut(
    clip: Float[Tensor, "b n 4"], triangles: Int[Tensor, "t 3"], planes: Float[Tensor, "p 4"]
) -> tuple[Float[Tensor, "b m 4"], Int[Tensor, "k 3"], Int[Tensor, "b k"]] | None:
    """What is inside of the triangles that have corners on both sides; without gradients.

    Triangles with a corner that is not finite are left out.

    Returns:
        New vertices in float64; triangles of them, the same for all images, indices counted from
        the first new vertex; of which triangle each is a part, in each image. Unused vertices have
        w = -1. None if no triangle is cut.
    """
    clip = clip.detach().double()
    planes = planes.double()
    corners = triangles.long()
    bits = 2 ** torch.arange(len(planes), device=clip.device)
    beyond = ((clip @ planes.mT < 0) * bits).sum(-1)[:, corners]  # b t 3: which planes
    one, two, three = beyond.unbind(-1)
    usable = inside(clip, planes)[:, corners]
    finite = clip.isfinite().all(-1)[:, corners].all(-1)
    image, owner = (~usable.all(-1) & finite & (one & two & three == 0)).nonzero(as_tuple=True)
    polygons = clip[image[:, None], corners[owner]]
    for plane in planes:
        left = (polygons @ plane >= 0).any(1)
        polygons, image, owner = _clip(polygons[left], plane), image[left], owner[left]
    if len(image) == 0:
        return None
    slots = polygons.shape[1]
    counts = torch.bincount(image, minlength=len(clip))
    most = int(counts.max())
    rank = torch.arange(len(image), device=clip.device) - (counts.cumsum(0) - counts)[image]
    vertices = clip.new_zeros(len(clip), most, slots, 4)
    vertices[..., 3] = -1
    vertices[image, rank] = polygons
    second = torch.arange(1, slots - 1, device=clip.device)
    fan = torch.stack([torch.zeros_like(second), second, second + 1], -1)
    parts = torch.arange(most, device=clip.device)[:, None, None] * slots + fan
    owners = torch.zeros(len(clip), most, len(fan), dtype=torch.int64, device=clip.device)
    owners[image, rank] = owner[:, None]
    return vertices.flatten(1, 2), parts.flatten(0, 1), owners.flatten(1)


def _clip(polygons: Float[Tensor, "k m 4"], plane: Float[Tensor, " 4"]) -> Tensor:
    """The polygons' parts inside a plane (Sutherland and Hodgman 1974), one corner more each.

    Corners that are not needed repeat the first. Something of each must be inside.
    """
    distance, following = polygons @ plane, polygons.roll(-1, 1)
    after = distance.roll(-1, 1)
    crosses = (distance < 0) != (after < 0)
    share = distance / torch.where(crosses, distance - after, 1)
    crossing = polygons + share[..., None] * (following - polygons)
    points = torch.stack([polygons, crossing], 2).flatten(1, 2)
    kept = torch.stack([distance >= 0, crosses], 2).flatten(1)
    order = (~kept).to(torch.uint8).argsort(dim=1, stable=True)[:, : polygons.shape[1] + 1]
    points = points.gather(1, order[..., None].expand(-1, -1, 4))
    return torch.where(kept.gather(1, order)[..., None], points, points[:, :1])
