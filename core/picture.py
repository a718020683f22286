"""Pictures for people: overlays, grey shapes, albedo, light, landmarks, labelled sheets, PNG files.

Convention: pictures are RGB in [0, 1], channels first, clipped; a surface drawn with
``supersampling`` k has k times the picture's side and is averaged down, so that silhouettes are
smooth.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from core.camera import Camera
from core.contracts import Reconstruction
from core.image import Size, height_width, pixel_centres
from core.lighting import shade
from core.normals import normalize, vertex_normals
from core.render import draw, render
from core.surface import Surface
from core.uv import bake, uv_grid, wrap

SUPERSAMPLING = 2
PAPER = 1.0  # the background of a sheet: white
INK = (40, 40, 40)  # of labels, 0..255
CLAY = (0.80, 0.80, 0.82)  # the colour of a shape without texture
KEY_LIGHT = (-0.45, -0.55, -0.70)  # where the lamp of shape pictures stands, camera frame
KEY, FILL = 0.75, 0.30  # strengths of that lamp, and of one beside the camera
GREY = 0.6  # reflectance of light pictures: as bright as the image, and not soon saturated
GREEN = (0.15, 0.95, 0.35)


@dataclass(frozen=True)
class FacePictures:
    """Pictures of a face without surroundings; black where it is not, for ``composite``.

    Attributes:
        mask: how much of each pixel the face covers, in [0, 1].
        lit: albedo under the estimated light.
        shape: grey, under a fixed lamp.
        albedo: reflectance alone.
        light: a grey face under the estimated light.
    """

    mask: Float[Tensor, "b v 1 h w"]
    lit: Float[Tensor, "b v 3 h w"]
    shape: Float[Tensor, "b v 3 h w"]
    albedo: Float[Tensor, "b v 3 h w"]
    light: Float[Tensor, "b v 3 h w"]


def face_pictures(
    face: Reconstruction, size: Size, supersampling: int = SUPERSAMPLING
) -> FacePictures:
    """All pictures of reconstructions from one drawing.

    Args:
        face: on the CPU, or where a rasterizer is.
        size: of the pictures, for whose pixels ``face.camera`` must be (``for_size`` converts).
        supersampling: drawn so many times as large, then averaged.
    """
    height, width = height_width(size)
    camera = resized(face.camera, float(supersampling))
    fine = (height * supersampling, width * supersampling)
    surface = draw(face.vertices, face.triangles, face.uv, camera, fine)

    def reduced(picture: Tensor) -> Tensor:
        small = F.avg_pool2d(picture.flatten(0, 1).clamp(0, 1), supersampling)
        return small.unflatten(0, picture.shape[:2])

    return FacePictures(
        mask=reduced(surface.mask),
        lit=reduced(render(surface, face.albedo_map, face.light)),
        shape=reduced(shape_picture(surface)),
        albedo=reduced(albedo_picture(surface, face.albedo_map)),
        light=reduced(light_picture(surface, face.light)),
    )


def shape_picture(surface: Surface) -> Float[Tensor, "b v 3 h w"]:
    """The surface in grey, lit from the upper left and, weaker, from the camera; black outside."""
    normals = surface.normals
    lamp = F.normalize(normals.new_tensor(KEY_LIGHT), dim=0)[:, None, None]
    key = (normals * lamp).sum(-3, keepdim=True).clamp(min=0)
    fill = -normals[..., 2:, :, :].clamp(max=0)
    clay = normals.new_tensor(CLAY)[:, None, None]
    return (clay * (KEY * key + FILL * fill + 0.12)).clamp(0, 1) * surface.mask


def albedo_picture(
    surface: Surface, albedo_map: Float[Tensor, "b v 3 uh uw"]
) -> Float[Tensor, "b v 3 h w"]:
    """The reflectance as it is seen from the camera, without light; black outside."""
    return wrap(albedo_map, surface.uv).clamp(0, 1) * surface.mask


def light_picture(surface: Surface, light: Float[Tensor, "b v 9 c"]) -> Float[Tensor, "b v 3 h w"]:
    """A grey face, of skin's mean reflectance, under the estimated light; black outside."""
    lit = (GREY * shade(surface.normals, light)).clamp(0, 1)
    return lit.expand_as(surface.normals) * surface.mask


def illuminated_texture(face: Reconstruction) -> Float[Tensor, "b v 3 uh uw"]:
    """The albedo map times the light on each texel, as a UV map: for viewers without such light."""
    normals = face.camera.rotate(vertex_normals(face.vertices, face.triangles))
    grid = uv_grid(face.uv, face.triangles, (face.albedo_map.shape[-2], face.albedo_map.shape[-1]))
    baked = bake(normals, grid, face.triangles)
    unit = normalize(baked.movedim(-3, -1)).movedim(-1, -3)
    return (face.albedo_map * shade(unit, face.light)).clamp(0, 1)


def composite(
    picture: Float[Tensor, "*b 3 h w"],
    mask: Float[Tensor, "*b 1 h w"],
    background: Float[Tensor, "*b 3 h w"] | float = PAPER,
) -> Float[Tensor, "*b 3 h w"]:
    """A picture that is black outside its mask, put before a background: an image or a grey."""
    return (picture + (1 - mask) * background).clamp(0, 1)


def resized(camera: Camera, factor: float) -> Camera:
    """The camera of the same image with ``factor`` times the height and width."""
    scale = torch.full_like(camera.rotation[..., 0, 0], factor)
    return camera.crop(scale, torch.zeros_like(camera.rotation[..., :2, 0]))


def draw_landmarks(
    images: Float[Tensor, "*b 3 h w"],
    points: Float[Tensor, "*b n 2"],
    confidence: Float[Tensor, "*b n"] | None = None,
    colour: tuple[float, float, float] = GREEN,
    radius: float = 1.5,
) -> Float[Tensor, "*b 3 h w"]:
    """The images with smooth round dots.

    Args:
        images: stay as they are; a copy is returned.
        points: pixels; those outside the image, or not finite, are left out.
        confidence: points of confidence 0 are left out.
        colour: RGB in [0, 1].
        radius: pixels.
    """
    height, width = images.shape[-2:]
    flat, xy = images.flatten(0, -4) if images.dim() > 3 else images[None], points.detach()
    xy = xy.reshape(len(flat), -1, 2)
    shown = xy.isfinite().all(-1)
    if confidence is not None:
        shown = shown & (confidence.reshape(len(flat), -1) > 0)
    xy = xy.nan_to_num(0, 0, 0).clamp(-1e6, 1e6)
    reach = int(radius + 2)
    steps = torch.arange(-reach, reach + 1, device=xy.device)
    patch = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), -1).reshape(-1, 2)
    pixels = xy.floor().long()[:, :, None] + patch  # b n p 2
    opacity = (radius + 0.5 - (pixels + 0.5 - xy[:, :, None]).norm(dim=-1)).clamp(0, 1)
    inside = ((pixels >= 0) & (pixels < pixels.new_tensor([width, height]))).all(-1)
    opacity = opacity * (inside & shown[..., None])
    index = (pixels[..., 1] * width + pixels[..., 0]).where(inside, 0)
    alpha = torch.zeros(len(flat), height * width, dtype=opacity.dtype, device=xy.device)
    alpha = alpha.scatter_reduce(1, index.flatten(1), opacity.flatten(1), "amax")
    alpha = alpha.view(len(flat), 1, height, width)
    dots = flat.new_tensor(colour)[:, None, None]
    return (flat * (1 - alpha) + dots * alpha).view_as(images)


def draw_lines(
    images: Float[Tensor, "*b 3 h w"],
    lines: Float[Tensor, "*b n 3"],
    colours: Float[Tensor, "n 3"],
    width: float = 1.2,
) -> Float[Tensor, "*b 3 h w"]:
    """The images with smooth straight lines from border to border, the last one on top.

    Args:
        images: stay as they are; a copy is returned.
        lines: (a, b, c) with a x + b y + c = 0, pixels, (a, b) of unit length; one of zeros is left
            out.
        colours: RGB in [0, 1], of each line.
        width: pixels.
    """
    ends = pixel_centres((images.shape[-2], images.shape[-1]), images)
    ends = torch.cat([ends, torch.ones_like(ends[..., :1])], -1)
    distance = torch.einsum("...nk,hwk->...nhw", lines.detach(), ends).abs()
    opacity = (width / 2 + 0.5 - distance).clamp(0, 1)
    opacity = opacity * lines.ne(0).any(-1)[..., None, None]
    # of what is below a line, it lets 1 - opacity through
    through = (1 - opacity).flip(-3).cumprod(-3).flip(-3)
    above = torch.cat([through[..., 1:, :, :], torch.ones_like(through[..., :1, :, :])], -3)
    drawn = torch.einsum("...nhw,nc->...chw", opacity * above, colours)
    return images * through[..., :1, :, :] + drawn


def sheet(
    pictures: Float[Tensor, "rows columns 3 h w"],
    columns: Sequence[str] = (),
    rows: Sequence[str] = (),
    title: str = "",
    gap: int = 4,
) -> Float[Tensor, "3 _ _"]:
    """Pictures in a table on white, with headings above the columns and labels in the rows.

    Args:
        pictures: of one size.
        columns: a heading for each column, or none.
        rows: a label for each row, written over its first picture's lower edge, or none.
        title: a line above everything.
        gap: pixels between pictures.

    Raises:
        ValueError: the number of labels is not that of columns or rows.
    """
    many, across, _, height, width = pictures.shape
    for what, labels, wanted in (("columns", columns, across), ("rows", rows, many)):
        if labels and len(labels) != wanted:
            raise ValueError(f"sheet: {len(labels)} labels for {wanted} {what}: {list(labels)}")
    text = max(11, min(20, width // 10))
    top = gap + (text + 2 * gap) * (bool(title) + bool(columns))
    padded = F.pad(pictures.clamp(0, 1), (0, gap, 0, gap), value=PAPER)
    table = padded.permute(2, 0, 3, 1, 4).reshape(3, many * (height + gap), across * (width + gap))
    table = F.pad(table, (gap, 0, top, 0), value=PAPER)
    image = Image.fromarray(_bytes(table))
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(text)
    if title:
        pen.text((gap, gap), title, INK, font)
    for k, label in enumerate(columns):
        left = gap + k * (width + gap) + width / 2
        pen.text((left, top - gap), label, INK, font, anchor="md")
    for k, label in enumerate(rows):
        bottom = top + k * (height + gap) + height
        small = ImageFont.load_default(max(10, text - 3))
        pen.text(
            (gap + 4, bottom - 4),
            label,
            (255, 255, 255),
            small,
            "ld",
            stroke_width=1,
            stroke_fill=INK,
        )
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def resize(images: Float[Tensor, "*b 3 h w"], size: Size) -> Float[Tensor, "*b 3 oh ow"]:
    """Images made larger or smaller for viewing, smooth, clipped."""
    flat = images.reshape(-1, *images.shape[-3:])
    new = F.interpolate(flat, height_width(size), mode="bicubic", antialias=True)
    return new.clamp(0, 1).reshape(*images.shape[:-2], *new.shape[-2:])


def save_png(path: Path, image: Float[Tensor, "3 h w"]) -> Path:
    """Write a PNG, RGB clipped to [0, 1], 8 bits a channel; makes folders. Returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(_bytes(image)).save(path)
    return path


def _bytes(image: Tensor) -> np.ndarray:
    """Height, width, channels as bytes."""
    levels = (image.detach().clamp(0, 1) * 255).round().byte()
    return np.ascontiguousarray(levels.permute(1, 2, 0).cpu().numpy())
