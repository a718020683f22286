"""Visible texture swap: frames of a person drawn with each other's colours (PGN, Sec. 3.3).

Colours are read from a frame where its mesh is seen, and drawn with the mesh of another frame of
the same person. If both meshes are right, the result is the other frame, but for its light.

The paper reads a colour for each vertex and draws these. Here the places are drawn at which a frame
shows the vertices, and a colour is read for each pixel: the same on a mesh as fine as the pixels,
as the paper's is, but not blurred on a coarser one.

Convention: of v frames, [:, j, k] belongs to frame j as drawn with the colours of its k-th other,
``other_frames(v)[j, k]``. Worked number: of 4 frames [:, 2, 1] is frame 2 in the colours of frame
1, [:, 2, 2] in those of frame 3.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from core.camera import Camera
from core.face_models import FaceModel
from core.image import sample
from core.normals import vertex_normals
from core.precision import at_least_float32, without_autocast
from core.rasterize import Fragments, interpolate, rasterize

DRAWN = 0.999  # ours: share of the face in what is read, up to rounding
TOLERANCE_MM = 1.0  # ours: less than an eyelid
EMPHASIS = 5.0  # Sec. 3.4, of eyes, nose and mouth; 1 elsewhere
EMPHASIZED = ("eyes", "nose", "lips")


@dataclass(frozen=True)
class Swapped:
    """Every frame in the colours of every other, s = v - 1.

    Attributes:
        images: I_i->j of Eq. 6; outside the mask what the frame itself shows, so that nothing that
            reads around a pixel (census, flow, an encoder) meets an edge there.
        common: M_ij of Eq. 5 at the pixels: the share of the other frame's colours, in [0, 1]; no
            gradient.
        mask: M2d_j, 1 where frame j's mesh is drawn, else 0; no gradient.
        weight: M2d_j * W of Eq. 9, of the emphasized regions; no gradient.
    """

    images: Float[Tensor, "b v s 3 h w"]
    common: Float[Tensor, "b v s 1 h w"]
    mask: Float[Tensor, "b v 1 h w"]
    weight: Float[Tensor, "b v 1 h w"]

    @property
    def compared(self) -> Float[Tensor, "b v s 1 h w"]:
        """The weight where the other frame's colours are drawn, else 0.

        Ours: for losses that a border between two lights would mislead, as it does optical flow.
        """
        return self.weight[:, :, None] * (self.common > DRAWN)


def other_frames(frames: int) -> Int[Tensor, "v s"]:
    """The numbers of all other frames of each frame, ascending."""
    number = torch.arange(frames)
    others = number[: frames - 1].expand(frames, -1)
    return others + (others >= number[:, None])


def emphasis(model: FaceModel, factor: float = EMPHASIS) -> Float[Tensor, " n"]:
    """W of Eq. 9 per vertex: the factor for eyes, nose and mouth, 1 elsewhere.

    Raises:
        DataError: the model has no such regions.
    """
    inside = torch.stack([model.region(name) for name in EMPHASIZED]).any(0)
    return torch.where(inside, factor, 1.0)


def visible_vertices(
    pixels: Float[Tensor, "*b n 2"], triangles: Int[Tensor, "t 3"]
) -> Bool[Tensor, "*b n"]:
    """M of Eq. 5: whether vertices face the viewer, n_z > 0 in the paper's frame.

    n is the vertex's normal on the mesh as it is seen, so that it holds for any camera. What faces
    the viewer, but is hidden by another part of the face, counts as visible.

    Args:
        pixels: where the vertices are seen, all before the camera.
        triangles: counter-clockwise seen from outside.
    """
    flat = torch.cat([pixels.detach(), torch.zeros_like(pixels[..., :1])], -1)
    return vertex_normals(flat, triangles)[..., 2] < 0  # y is down


def hidden_vertices(
    pixels: Float[Tensor, "b n 2"],
    depth: Float[Tensor, "b n"],
    fragments: Fragments,
    triangles: Int[Tensor, "t 3"],
    backend: str = "auto",
) -> Bool[Tensor, "b n"]:
    """Whether the four pixels around a vertex show something else than the mesh where it is.

    That is the background, or what is on average more than 1 mm before or behind the vertex.

    Args:
        pixels: where the vertices are seen.
        depth: of the vertices, millimetres.
        fragments: of the mesh as it is seen.
        triangles: those that were rasterized.
        backend: of ``core.rasterize.interpolate``.
    """
    shown = interpolate(depth.detach()[..., None], fragments, triangles, backend)
    shown = torch.cat([shown, (fragments.triangle_index >= 0)[..., None].to(shown)], -1)
    found = sample(shown.movedim(-1, -3), pixels.detach()[:, None], padding="border")
    found, share = found[:, :, 0].unbind(1)
    return (share < DRAWN) | ((found - depth).abs() > TOLERANCE_MM)


def swap_textures(
    images: Float[Tensor, "b v 3 h w"],
    vertices: Float[Tensor, "b v n 3"],
    triangles: Int[Tensor, "t 3"],
    camera: Camera,
    emphasis: Float[Tensor, " n"],
    depth_test: bool = True,
    backend: str = "auto",
) -> Swapped:
    """Draw every frame in the colours of every other, where both see them (Eq. 5 and 6).

    Each frame's mesh is rasterized once, for all the colours that are drawn on it. Gradients reach
    images, vertices and camera: by where colours are read, and by where they are drawn (inside the
    silhouette).

    Args:
        images: v frames of each person, at least two.
        vertices: with each frame's expression; millimetres, model frame.
        triangles: counter-clockwise seen from outside.
        camera: one per frame, batch shape (b, v).
        emphasis: W of each vertex (``emphasis``).
        depth_test: ours: take for visible only what no other part of the face hides
            (``hidden_vertices``). The paper has the normals alone.
        backend: of ``core.rasterize.rasterize``.

    Raises:
        ValueError: there is one frame only.
    """
    people, frames = images.shape[:2]
    if frames < 2:
        raise ValueError(
            f"textures are swapped between frames of one person, but there is {frames} of each; "
            "give two or more (views of the datamodule)"
        )
    size = (images.shape[-2], images.shape[-1])
    with without_autocast(vertices):
        images, vertices = at_least_float32(images), at_least_float32(vertices)
        camera = camera.map(at_least_float32)
        pixels, depth = camera.project(vertices)
        clip = camera.map(lambda value: value.flatten(0, 1)).clip(vertices.flatten(0, 1), size)
        fragments = rasterize(clip, triangles, size, backend)
        seen = visible_vertices(pixels, triangles)
        if depth_test:
            flat = pixels.flatten(0, 1), depth.flatten(0, 1)
            seen = seen & ~hidden_vertices(*flat, fragments, triangles, backend).view(seen.shape)
        others = other_frames(frames).to(images.device)
        common = (seen[:, others] & seen[:, :, None])[..., None]
        places = torch.cat([pixels[:, others], common.to(pixels)], -1).transpose(2, 3).flatten(3)
        weights = emphasis.to(places)[:, None].expand(*places.shape[:3], 1)
        joined = torch.cat([places, weights], -1).flatten(0, 1)
        drawn = interpolate(joined, fragments, triangles, backend)
        drawn = drawn.unflatten(0, (people, frames))
        layers = drawn[..., :-1].unflatten(-1, (frames - 1, 3)).movedim(-2, 2)
        share = layers[..., 2].detach().unsqueeze(3)
        read = sample(images[:, others], layers[..., :2], padding="border")
        swapped = torch.lerp(images[:, :, None].expand_as(read), read, share)  # Eq. 6
        mask = (fragments.triangle_index >= 0).to(drawn)[:, None].unflatten(0, (people, frames))
    return Swapped(
        images=swapped,
        common=share,
        mask=mask,
        weight=drawn[..., -1].detach().unsqueeze(2),
    )
