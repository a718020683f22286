"""Between images, meshes and UV maps: unwrap, wrap, bake (CEST Sec. 3, appendix A.3 and A.4).

Convention: u right, v down, both in [0, 1], origin at the top left corner of the map; the texel in
row i and column j of an h x w map has its centre at u = (j + 0.5) / w, v = (i + 0.5) / h. A flip of
the last axis of a map is the left-right reflection of the face. Worked number: on a 4 x 4 map the
first texel is at (0.125, 0.125).
"""

from dataclasses import dataclass
from typing import no_type_check

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numba import njit
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from core.camera import Camera
from core.image import Size, height_width, sample
from core.precision import at_least_float32, without_autocast
from core.rasterize import interpolate
from core.rasterize.fragments import Fragments
from core.rasterize.kernels import kernel
from core.rasterize.threads import over_images
from core.rasterize.topology import topology
from core.surface import Surface

DEPTH_TOLERANCE_MM = 3.0  # ours: less than from nose to cheek, more than a triangle's relief
STEEPEST = 0.2  # cosine to the viewing direction up to which the surface's slope is believed


@dataclass(frozen=True)
class UVGrid:
    """Which point of the surface each texel shows; depends on uv and triangles only, computed once.

    Outside the charts, triangle_index and weights repeat the nearest covered texel, so that baked
    maps are padded.

    Attributes:
        triangle_index: a triangle for every texel.
        weights: barycentric coordinates of the texel's centre in its triangle, >= 0, sum 1.
        mask: True where the texel's centre lies in a triangle.
    """

    triangle_index: Int[Tensor, "uh uw"]
    weights: Float[Tensor, "uh uw 3"]
    mask: Bool[Tensor, "uh uw"]

    def to(self, device: torch.device | str) -> "UVGrid":
        """The same on another device."""
        return UVGrid(*(tensor.to(device) for tensor in vars(self).values()))


def uv_grid(uv: Float[Tensor, "n 2"], triangles: Int[Tensor, "t 3"], size: Size) -> UVGrid:
    """The barycentric coordinates of every texel in its UV triangle (CEST Eq. 12).

    Computed in float64, returned as float32. Of triangles that overlap the first counts. Those that
    join the left edge of the map to the right one, where the map of a whole head is cut, are left
    out.

    Raises:
        ValueError: no texel lies in a triangle.
    """
    height, width = height_width(size)
    topology(triangles).check(len(uv))
    points, corners = uv.detach().cpu().double().numpy(), triangles.cpu().numpy()
    index, weights = _cover(points, corners, uncut(points, corners), height, width)
    mask = index >= 0
    if not mask.any():
        raise ValueError(
            f"no texel of a {height} x {width} UV map lies in one of the {len(triangles)} "
            f"triangles; uv must be in [0, 1], got {float(uv.min()):.3g} .. {float(uv.max()):.3g}"
        )
    nearest = distance_transform_edt(~mask, return_distances=False, return_indices=True)
    index, weights = index[tuple(nearest)], weights[tuple(nearest)]
    return UVGrid(
        torch.from_numpy(index).to(uv.device),
        torch.from_numpy(weights).float().to(uv.device),
        torch.from_numpy(mask).to(uv.device),
    )


def uncut(uv: Float[np.ndarray, "n 2"], triangles: Int[np.ndarray, "t 3"]) -> Int[np.ndarray, " s"]:
    """Numbers of the triangles but for those across the cut of the map of a whole head.

    Such a triangle is over half the map wide, and turned over, unlike most.
    """
    a, b, c = (uv[triangles[:, k]] for k in range(3))
    (px, py), (qx, qy) = (b - a).T, (c - a).T
    side = np.sign(px * qy - py * qx)
    wide = np.ptp(uv[triangles, 0], axis=1) > 0.5
    return np.flatnonzero(~wide | (side * side.sum() >= 0))


def bake(
    values: Float[Tensor, "*b n c"], grid: UVGrid, triangles: Int[Tensor, "t 3"]
) -> Float[Tensor, "*b c uh uw"]:
    """Values of the vertices as a UV map, linear in each triangle; padded outside the charts."""
    return _texel_values(values, grid, triangles).movedim(-1, -3)


def sample_vertices(
    maps: Float[Tensor, "*b c uh uw"], uv: Float[Tensor, "n 2"]
) -> Float[Tensor, "*b n c"]:
    """The values of a UV map at the vertices, bilinear."""
    pixels = uv * uv.new_tensor([maps.shape[-1], maps.shape[-2]])
    pixels = pixels.expand(*maps.shape[:-3], 1, -1, -1)
    return sample(maps, pixels, padding="border")[..., 0, :].mT


def wrap(
    maps: Float[Tensor, "*b c uh uw"], uv: Float[Tensor, "*b h w 2"]
) -> Float[Tensor, "*b c h w"]:
    """A UV map laid onto an image in which each pixel knows its uv, bilinear (CEST A.4)."""
    return sample(maps, uv * uv.new_tensor([maps.shape[-1], maps.shape[-2]]), padding="border")


def unwrap(
    images: Float[Tensor, "b v c h w"],
    vertices: Float[Tensor, "b v n 3"],
    camera: Camera,
    surface: Surface,
    grid: UVGrid,
    triangles: Int[Tensor, "t 3"],
) -> tuple[Float[Tensor, "b v c uh uw"], Float[Tensor, "b v 1 uh uw"]]:
    """The illuminated texture: the image read where each texel's surface point is seen (Eq. 12).

    A texel is visible if its triangle faces the camera, its point is seen inside the image on the
    drawn face, and it is not more than 3 mm behind what is drawn there (the drawn surface is
    continued along its normal to the texel's place within the pixel).

    Args:
        images: to be read.
        vertices: millimetres, model frame.
        camera: one per image.
        surface: the same mesh drawn by ``core.render.draw`` with the same camera at this size.
        grid: of this mesh's uv and triangles.
        triangles: counter-clockwise seen from outside.

    Returns:
        The texture, 0 where it is not visible, with gradients to the images and, through the
        positions, to vertices and camera; and the visibility, 0 or 1, without gradient.
    """
    texels = grid.mask.shape
    camera, vertices = camera.map(at_least_float32), at_least_float32(vertices)
    with without_autocast(vertices):
        points = _texel_values(vertices, grid, triangles).flatten(-3, -2)
        pixels, depth = camera.project(points)
    pixels, depth = pixels.unflatten(-2, texels), depth.detach().unflatten(-1, texels)
    with torch.no_grad(), without_autocast(vertices):
        facing = faces_camera(camera.project(vertices)[0], triangles)[..., grid.triangle_index]
        drawn = torch.cat([surface.depth, surface.normals, surface.mask], -3)
        drawn_depth, x, y, z, covered = sample(drawn, pixels, mode="nearest").unbind(-3)
        beside = (pixels - pixels.floor() - 0.5) / pixels_per_mm(camera)[..., None, None, None]
        slope = (x * beside[..., 0] + y * beside[..., 1]) / z.clamp(max=-STEEPEST)
        hidden = depth > drawn_depth - slope + DEPTH_TOLERANCE_MM
        visible = facing & (covered > 0) & ~hidden & grid.mask
        visible = visible[..., None, :, :].to(images.dtype)
    return sample(images, pixels) * visible, visible


def _texel_values(values: Tensor, grid: UVGrid, triangles: Tensor) -> Tensor:
    """Values of the vertices "*b n c" mixed at the texels, "*b uh uw c"."""
    flat = at_least_float32(values).reshape(-1, *values.shape[-2:])
    weights, index = grid.weights.to(flat.dtype), grid.triangle_index
    images = [
        part.expand(len(flat), *part.shape) for part in (weights[..., :2], weights[..., 0], index)
    ]
    mixed = interpolate(flat, Fragments(*images), triangles)  # the UV map is an image of its own
    return mixed.reshape(*values.shape[:-2], *index.shape, values.shape[-1])


def faces_camera(
    pixels: Float[Tensor, "*b n 2"], triangles: Int[Tensor, "t 3"]
) -> Bool[Tensor, "*b t"]:
    """Whether each triangle shows its outside: it is counter-clockwise to the eye, as y is down.

    Args:
        pixels: where the vertices are seen, all before the camera.
        triangles: counter-clockwise seen from outside.
    """
    if pixels.device.type == "cpu":
        batch = pixels.shape[:-2]
        facing = torch.empty(batch.numel(), len(triangles), dtype=torch.bool)
        known = topology(triangles).triangles
        over_images(_facing, len(facing), pixels[None].flatten(0, -3), known, facing)
        return facing.view(*batch, len(triangles))
    a, b, c = (pixels.index_select(-2, corner) for corner in triangles.unbind(-1))
    p, q = b - a, c - a
    return p[..., 0] * q[..., 1] - p[..., 1] * q[..., 0] < 0


def pixels_per_mm(camera: Camera) -> Tensor:
    """Pixels per millimetre across the line of sight at the model frame's origin."""
    across = camera.rotation[..., :1, :]  # the camera's x axis in the model frame
    ends, _ = camera.project(torch.cat([torch.zeros_like(across), across], -2))
    return ends[..., 1, 0] - ends[..., 0, 0]


@kernel
@no_type_check
def _facing(first, last, pixels, triangles, facing):  # noqa: ANN001, ANN202
    for image in range(first, last):
        for t in range(len(triangles)):
            a = np.uint64(triangles[t, 0])
            b = np.uint64(triangles[t, 1])
            c = np.uint64(triangles[t, 2])
            x, y = pixels[image, a, 0], pixels[image, a, 1]
            px, py = pixels[image, b, 0] - x, pixels[image, b, 1] - y
            qx, qy = pixels[image, c, 0] - x, pixels[image, c, 1] - y
            facing[image, t] = px * qy - py * qx < 0
    return 0


@njit(nogil=True, cache=True, error_model="numpy")
@no_type_check
def _cover(uv, triangles, kept, height, width):  # noqa: ANN001, ANN202
    """The first kept triangle that covers each texel's centre (-1: none), and its weights."""
    index = np.full((height, width), -1, np.int64)
    weights = np.zeros((height, width, 3))
    for t in kept:
        ax, ay = uv[triangles[t, 0], 0] * width, uv[triangles[t, 0], 1] * height
        bx, by = uv[triangles[t, 1], 0] * width, uv[triangles[t, 1], 1] * height
        cx, cy = uv[triangles[t, 2], 0] * width, uv[triangles[t, 2], 1] * height
        area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        if area == 0:
            continue
        first_row = max(0, int(np.floor(min(ay, by, cy) - 0.5)))
        last_row = min(height - 1, int(np.ceil(max(ay, by, cy) - 0.5)))
        first_column = max(0, int(np.floor(min(ax, bx, cx) - 0.5)))
        last_column = min(width - 1, int(np.ceil(max(ax, bx, cx) - 0.5)))
        for row in range(first_row, last_row + 1):
            y = row + 0.5
            for column in range(first_column, last_column + 1):
                if index[row, column] >= 0:
                    continue
                x = column + 0.5
                w0 = ((bx - x) * (cy - y) - (by - y) * (cx - x)) / area
                w1 = ((cx - x) * (ay - y) - (cy - y) * (ax - x)) / area
                w2 = 1 - w0 - w1
                if (
                    min(w0, w1, w2) >= -1e-9
                ):  # edges belong to both sides: no gaps between triangles
                    index[row, column] = t
                    w0, w1, w2 = max(w0, 0.0), max(w1, 0.0), max(w2, 0.0)
                    weights[row, column, 0] = w0 / (w0 + w1 + w2)
                    weights[row, column, 1] = w1 / (w0 + w1 + w2)
                    weights[row, column, 2] = w2 / (w0 + w1 + w2)
    return index, weights
