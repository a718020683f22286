"""A picture of a face model: its mean, modes, expressions and random people, to be looked at."""

from dataclasses import dataclass
from math import ceil, radians
from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image, ImageDraw
from torch import Tensor

from core.camera import WeakPerspectiveCamera, frontal
from core.errors import MonofaceError
from core.face_models.model import FaceModel
from core.lighting import AMBIENT
from core.render import draw, render
from core.rotation import rotation_from_euler
from core.uv import bake, uv_grid

COLUMNS = 10
BATCH = 10  # cells drawn at once
TEXTURE = 256  # side of the albedo map, texels
FACE_HEIGHT = 215.0  # mm that a cell shows
MODES = 10  # of identity and of albedo
YAW = 35.0  # degrees, of the turned views


@dataclass
class _Cell:
    """One face of the sheet: what it is called, how it looks, where it is turned to (degrees)."""

    label: str
    vertices: Float[Tensor, "n 3"]
    albedo: Float[Tensor, "n 3"]
    yaw: float = 0.0


@torch.no_grad()
def write_sheet(
    model: FaceModel, path: Path, size: int = 150, people: int = 20, seed: int = 0
) -> None:
    """Draw the sheet as one picture file: mean, +-2 sigma of the first modes, expressions, people.

    Args:
        model: any face model, on the CPU.
        path: of the picture; its ending tells the format. Missing folders are made.
        size: side of a cell, pixels.
        people: how many random people, each frontal and turned.
        seed: of the random people.

    Raises:
        MonofaceError: no kind of picture has this ending.
        OSError: the file cannot be written.
    """
    if path.suffix.lower() not in Image.registered_extensions():
        raise MonofaceError(f"'{path}' must end like a picture, for instance in .png")
    rows = [
        _mean(model),
        _modes(model, "identity"),
        _modes(model, "albedo"),
        _expressions(model),
        _people(model, people, seed),
    ]
    height = sum(ceil(len(cells) / COLUMNS) for cells in rows)
    sheet = Image.new("RGB", (COLUMNS * size, height * size))
    top = 0
    for cells in rows:
        for place, picture in enumerate(_pictures(model, cells, size)):
            row, column = divmod(place, COLUMNS)
            sheet.paste(picture, (column * size, (top + row) * size))
        top += ceil(len(cells) / COLUMNS)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


def _mean(model: FaceModel) -> list[_Cell]:
    angles = (0.0, -30.0, -60.0, -90.0, 45.0)
    painted = [_Cell(f"mean {a:.0f}", model.mean, model.albedo_mean, a) for a in angles]
    grey = torch.full_like(model.albedo_mean, 0.7)
    return painted + [_Cell(f"shape {a:.0f}", model.mean, grey, a) for a in angles]


def _modes(model: FaceModel, kind: str) -> list[_Cell]:
    """-2 sigma above +2 sigma of each of the first modes."""
    cells = []
    basis: Tensor = getattr(model, f"{kind}_basis")
    for sigma in (-2, 2):
        for number, mode in enumerate(basis[:MODES]):
            shape, albedo = model.mean, model.albedo_mean
            if kind == "identity":
                shape = shape + sigma * mode
            else:
                albedo = albedo + sigma * mode
            cells.append(_Cell(f"{kind} {number + 1} {sigma:+d}", shape, albedo))
        cells += [_Cell("", model.mean, model.albedo_mean)] * (-len(cells) % COLUMNS)
    return cells


def _expressions(model: FaceModel) -> list[_Cell]:
    names = model.expression_names
    return [
        _Cell(name, model.mean + shape, model.albedo_mean)
        for name, shape in zip(names, model.expression_basis, strict=True)
    ]


def _people(model: FaceModel, count: int, seed: int) -> list[_Cell]:
    generator = torch.Generator().manual_seed(seed)
    cells = []
    for number in range(count):
        identity = torch.randn(len(model.identity_basis), generator=generator)
        albedo = torch.randn(len(model.albedo_basis), generator=generator)
        for yaw in (0.0, -YAW if number % 2 else YAW):
            cells.append(
                _Cell(f"person {number + 1}", model.shape(identity), model.albedo(albedo), yaw)
            )
    return cells


def _pictures(model: FaceModel, cells: list[_Cell], size: int) -> list[Image.Image]:
    grid = uv_grid(model.uv, model.triangles, TEXTURE)
    points = model.landmarks(model.mean)
    ears, nose = points[[0, 16]].mean(0), points[30]
    pivot = torch.stack([ears[0], nose[1], ears[2]])  # of the turns, wherever the origin is
    pictures = []
    for start in range(0, len(cells), BATCH):
        batch = cells[start : start + BATCH]
        vertices = torch.stack([cell.vertices for cell in batch])[:, None] - pivot
        yaw = torch.tensor([radians(cell.yaw) for cell in batch])[:, None]
        zero = torch.zeros_like(yaw)
        rotation = frontal(vertices) @ rotation_from_euler(zero, yaw, zero)
        scale = torch.full_like(yaw, size / FACE_HEIGHT)
        middle = torch.full((len(batch), 1, 2), size / 2)
        camera = WeakPerspectiveCamera(rotation, scale, middle)
        surface = draw(vertices, model.triangles, model.uv, camera, size)
        texture = bake(torch.stack([cell.albedo for cell in batch])[:, None], grid, model.triangles)
        image = render(surface, texture, _light(vertices))
        image = image + 0.2 * (1 - surface.mask)
        pixels = (image[:, 0].clamp(0, 1) * 255).round().byte().movedim(1, -1).numpy()
        for cell, picture in zip(batch, pixels, strict=True):
            pictures.append(Image.fromarray(picture))
            ImageDraw.Draw(pictures[-1]).text((3, 2), cell.label, fill=(255, 255, 255))
    return pictures


def _light(like: Tensor) -> Float[Tensor, "b 1 9 1"]:
    """Ambient light and a lamp before the face, above and to the left."""
    light = like.new_zeros(len(like), 1, 9, 1)
    light[:, :, :4, 0] = like.new_tensor([0.75 * AMBIENT, -0.2, -0.3, -0.14])
    return light
