"""From a mesh, its reflectance and light to an image: project, rasterize, interpolate, shade."""

from jaxtyping import Float, Int
from torch import Tensor

from core.camera import Camera
from core.contracts import Reconstruction
from core.image import Size, height_width
from core.lighting import shade, shade_points
from core.normals import normalize, vertex_normals
from core.precision import at_least_float32, without_autocast
from core.rasterize import Fragments, interpolate, rasterize
from core.surface import Surface
from core.uv import wrap


def draw(
    vertices: Float[Tensor, "b v n 3"],
    triangles: Int[Tensor, "t 3"],
    uv: Float[Tensor, "n 2"],
    camera: Camera,
    size: Size,
    backend: str = "auto",
    attributes: Float[Tensor, "b v n c"] | None = None,
) -> Surface:
    """Draw meshes into images, in at least float32 also under autocast.

    depth, normals, uv and attributes carry gradients to the vertices and the camera inside the
    silhouette.

    Args:
        vertices: millimetres, model frame.
        triangles: counter-clockwise seen from outside.
        uv: v down.
        camera: one per image, batch shape (b, v).
        size: of the images: (height, width), or one number for squares.
        backend: of ``core.rasterize.rasterize``.
        attributes: anything else to be drawn, such as reflectance per vertex.
    """
    height, width = height_width(size)
    batch = vertices.shape[:2]
    with without_autocast(vertices):
        vertices = at_least_float32(vertices).flatten(0, 1)
        camera = camera.map(lambda value: at_least_float32(value).flatten(0, 1))
        clip = camera.clip(vertices, (height, width))
        fragments = rasterize(clip, triangles, (height, width), backend)
        position = camera.position(vertices)

        def at_pixels(values: Tensor) -> Tensor:
            return interpolate(values, fragments, triangles, backend).unflatten(0, batch)

        # one after the other: joining them would copy as much as all of them hold
        drawn_uv = at_pixels(uv[None])
        normals = normalize(at_pixels(vertex_normals(position, triangles)))
        depth = at_pixels(position[..., 2:])
        others = None if attributes is None else at_pixels(attributes.flatten(0, 1))
    triangle_index = fragments.triangle_index.unflatten(0, batch)
    return Surface(
        mask=(triangle_index >= 0).float()[:, :, None],
        depth=depth.movedim(-1, -3),
        normals=normals.movedim(-1, -3),
        uv=drawn_uv,
        triangle_index=triangle_index,
        attributes=None if others is None else others.movedim(-1, -3),
    )


def draw_lit(
    vertices: Float[Tensor, "b v n 3"],
    triangles: Int[Tensor, "t 3"],
    albedo: Float[Tensor, "b v n 3"],
    light: Float[Tensor, "b v 9 c"],
    camera: Camera,
    size: Size,
    backend: str = "auto",
) -> tuple[Float[Tensor, "b v 3 h w"], Float[Tensor, "b v 1 h w"], Fragments]:
    """Draw meshes that are lit at their vertices, in at least float32 also under autocast.

    Args:
        vertices: millimetres, model frame.
        triangles: counter-clockwise seen from outside.
        albedo: reflectance, RGB.
        light: spherical harmonics of the light, camera frame (``core.lighting``); c is 1 or 3.
        camera: one per image, batch shape (b, v).
        size: of the images: (height, width), or one number for squares.
        backend: of ``core.rasterize.rasterize``.

    Returns:
        The image over black, not clipped to [0, 1], with gradients to all but the triangles inside
        the silhouette; the mask, 1 where the mesh is seen, without gradient; and the fragments of
        the b * v images, to draw more of the same with ``core.rasterize.interpolate``.
    """
    height, width = height_width(size)
    batch = vertices.shape[:2]
    with without_autocast(vertices):
        vertices, albedo, light = (
            at_least_float32(tensor).flatten(0, 1) for tensor in (vertices, albedo, light)
        )
        camera = camera.map(lambda value: at_least_float32(value).flatten(0, 1))
        normals = vertex_normals(camera.position(vertices), triangles)
        colours = albedo * shade_points(normals, light)
        fragments = rasterize(
            camera.clip(vertices, (height, width)), triangles, (height, width), backend
        )
        image = interpolate(colours, fragments, triangles, backend).movedim(-1, -3)
        mask = (fragments.triangle_index >= 0).float()[:, None]
    return image.unflatten(0, batch), mask.unflatten(0, batch), fragments


def irradiance(surface: Surface, light: Float[Tensor, "b v 9 c"]) -> Float[Tensor, "b v c h w"]:
    """What multiplies the reflectance at each pixel; 0 outside the mask.

    To show one surface with several reflectances, compute it once and multiply each by it.

    Args:
        surface: of ``draw``.
        light: spherical harmonics of the light, camera frame (``core.lighting``); c is 1 or 3.
    """
    return shade(surface.normals, light) * surface.mask


def render(
    surface: Surface,
    albedo_map: Float[Tensor, "b v 3 uh uw"] | None,
    light: Float[Tensor, "b v 9 c"],
) -> Float[Tensor, "b v 3 h w"]:
    """Albedo times irradiance; 0 outside the mask, not clipped to [0, 1].

    Args:
        surface: of ``draw``.
        albedo_map: reflectance as a UV map, RGB; None = it was drawn as the surface's attributes.
        light: spherical harmonics of the light, camera frame (``core.lighting``); c is 1 or 3.

    Raises:
        ValueError: there is neither a map nor a drawn reflectance of three channels.
    """
    albedo = surface.attributes if albedo_map is None else wrap(albedo_map, surface.uv)
    if albedo is None or albedo.shape[-3] != 3:
        channels = 0 if albedo is None else albedo.shape[-3]
        raise ValueError(
            f"the surface was drawn with {channels} attributes, which cannot be its reflectance; "
            "give an albedo_map, or draw(..., attributes=) with red, green and blue of each vertex"
        )
    return albedo * irradiance(surface, light)


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
