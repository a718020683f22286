"""From a mesh, its reflectance and light to an image: project, rasterize, interpolate, shade."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from core.camera import Camera
from core.contracts import Reconstruction
from core.image import Size, height_width
from core.lighting import shade
from core.mesh import normalize, vertex_normals
from core.precision import at_least_float32, without_autocast
from core.rasterize import interpolate, rasterize
from core.surface import Surface
from core.uv import wrap


def draw(
    vertices: Float[Tensor, "b v n 3"],
    triangles: Int[Tensor, "t 3"],
    uv: Float[Tensor, "n 2"],
    camera: Camera,
    size: Size,
    backend: str = "auto",
) -> Surface:
    """Draw meshes into images, in at least float32 also under autocast.

    depth, normals and uv carry gradients to the vertices and the camera inside the silhouette.

    Args:
        vertices: millimetres, model frame.
        triangles: counter-clockwise seen from outside.
        uv: v down.
        camera: one per image, batch shape (b, v).
        size: of the images: (height, width), or one number for squares.
        backend: of ``core.rasterize.rasterize``.
    """
    height, width = height_width(size)
    batch = vertices.shape[:2]
    with without_autocast(vertices):
        vertices = at_least_float32(vertices).flatten(0, 1)
        camera = camera.map(lambda value: at_least_float32(value).flatten(0, 1))
        clip = camera.clip(vertices, (height, width))
        fragments = rasterize(clip, triangles, (height, width), backend)
        normals = camera.rotate(vertex_normals(vertices, triangles))
        depth = camera.project(vertices)[1]
        attributes = torch.cat([uv.expand(len(vertices), -1, -1), normals, depth[..., None]], -1)
        pixels = interpolate(attributes, fragments, triangles)
    triangle_index = fragments.triangle_index.unflatten(0, batch)
    channels = pixels.unflatten(0, batch)
    return Surface(
        mask=(triangle_index >= 0).float()[:, :, None],
        depth=channels[..., None, :, :, 5],
        normals=normalize(channels[..., 2:5]).movedim(-1, -3),
        uv=channels[..., :2],
        triangle_index=triangle_index,
    )


def render(
    surface: Surface, albedo_map: Float[Tensor, "b v 3 uh uw"], light: Float[Tensor, "b v 9 c"]
) -> Float[Tensor, "b v 3 h w"]:
    """Albedo times irradiance; 0 outside the mask, not clipped to [0, 1].

    Args:
        surface: of ``draw``.
        albedo_map: reflectance as a UV map, RGB.
        light: spherical harmonics of the light, camera frame (``core.lighting``); c is 1 or 3.
    """
    albedo = wrap(albedo_map, surface.uv)
    return albedo * shade(surface.normals, light) * surface.mask


def render_reconstruction(
    face: Reconstruction, size: Size
) -> tuple[Float[Tensor, "b v 3 h w"], Surface]:
    """Draw a reconstruction as its own light shows it, over black.

    Args:
        face: vertices, uv, camera, albedo map and light are used.
        size: of the images that the camera is for: (height, width), or one number for squares.

    Returns:
        The image, not clipped, and the surface it was made from.
    """
    surface = draw(face.vertices, face.triangles, face.uv, face.camera, size)
    return render(surface, face.albedo_map, face.light), surface
