"""What a page shows besides tables: curves as SVG paths, meshes for its viewer, pictures."""

import base64
import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.base import ErrorMesh
from benchmarks.report.boards import Board, Entry, spoken
from benchmarks.report.statistics import area_percent, mean_curve

WIDTH, HEIGHT = 560, 310  # of a plot
LEFT, RIGHT, TOP, BOTTOM = 44, 12, 22, 40  # its margins
MOST_VERTICES = 6000  # of a mesh in the page
FINEST = 128  # cells along its longest side
KEY = np.array([1, 2 * FINEST, 4 * FINEST**2])  # makes one number of a cell
UNKNOWN = 255  # error of a vertex that was not compared
PICTURE_WIDTH = 960
JPEG_QUALITY = 85


@dataclass(frozen=True)
class Line:
    """A curve of a plot: its path in the plot's pixels, and the area under it in %."""

    label: str
    path: str
    area: float


@dataclass(frozen=True)
class Plot:
    """Cumulative error curves of several methods.

    Attributes:
        ticks: (position, text) along x and along y.
    """

    title: str
    most: float
    lines: list[Line]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]


def plots(board: Board) -> list[Plot]:
    """One for each curve that a method of the board has."""
    names = dict.fromkeys(
        name for entry in board.entries for r in entry.results for name in r.curves
    )
    found = [_plot(name, board.entries) for name in names]
    return [plot for plot in found if plot is not None]


def _plot(name: str, entries: list[Entry]) -> Plot | None:
    curves = {e.label: mean_curve(e.results, name) for e in entries}
    known = {label: curve for label, curve in curves.items() if curve is not None}
    if not known:
        return None
    most = max(float(curve[-1, 0]) for curve in known.values())
    lines = [Line(label, _path(curve, most), area_percent(curve)) for label, curve in known.items()]
    steps = np.linspace(0, 1, 6).tolist()
    x_ticks = [(_place(most * s, 0.0, most)[0], f"{most * s:g}") for s in steps]
    y_ticks = [(_place(0.0, 100 * s, most)[1], f"{100 * s:g}") for s in steps]
    title = spoken(name, [result for entry in entries for result in entry.results])
    return Plot(title, most, lines, x_ticks, y_ticks)


def _path(curve: NDArray[np.float64], most: float) -> str:
    points = (_place(x, y, most) for x, y in curve.tolist())
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _place(x: float, y: float, most: float) -> tuple[float, float]:
    """Pixels of a point of a plot, x up to ``most``, y in %."""
    wide, high = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    return LEFT + wide * x / most, TOP + high * (1 - y / 100)


def mesh_scale(meshes: list[ErrorMesh]) -> float:
    """Millimetres at the end of the colours: the 95th percentile of all errors, rounded up."""
    errors = np.concatenate([mesh.error.numpy() for mesh in meshes])
    errors = errors[np.isfinite(errors)]
    largest = float(np.quantile(errors, 0.95)) if len(errors) else 1.0
    return max(0.5, math.ceil(2 * largest) / 2)


def packed_mesh(mesh: ErrorMesh, most: float) -> dict[str, Any]:
    """What the page's viewer reads: whole numbers, coarse enough for a page.

    Args:
        mesh: any.
        most: error of the last colour, millimetres.

    Returns:
        positions (int16, 1 is the largest distance from the middle), triangles (uint16) and error
        (uint8, 254 is ``most``) in base64.
    """
    vertices, triangles, error = coarsened(mesh)
    vertices = vertices - (vertices.min(0) + vertices.max(0)) / 2
    extent = np.linalg.norm(vertices, axis=1).max() or 1.0
    levels = np.clip(np.nan_to_num(error) / most, 0, 1) * (UNKNOWN - 1)
    levels = np.where(np.isnan(error), UNKNOWN, np.round(levels))
    arrays = {
        "positions": (vertices / extent * 32767).astype("<i2"),
        "triangles": triangles.astype("<u2"),
        "error": levels.astype(np.uint8),
    }
    return {key: base64.b64encode(array.tobytes()).decode() for key, array in arrays.items()}


def coarsened(mesh: ErrorMesh) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """What is to be seen of a mesh, with at most 6,000 vertices: means over cells of a grid."""
    vertices = mesh.vertices.double().numpy()
    triangles, error = mesh.triangles.numpy(), mesh.error.double().numpy()
    good = np.isfinite(vertices).all(1)
    triangles = triangles[good[triangles].all(1)]
    if len(triangles):
        good &= np.isin(np.arange(len(vertices)), triangles)
    new = np.cumsum(good) - 1
    vertices, triangles, error = vertices[good], new[triangles], error[good]
    low, extent = vertices.min(0), np.ptp(vertices, axis=0).max() or 1.0
    cells = float(FINEST)
    while len(vertices) > MOST_VERTICES:
        grid = ((vertices - low) * (cells / extent)).astype(np.int64)
        _, of, counts = np.unique(grid @ KEY, return_inverse=True, return_counts=True)
        if len(counts) <= MOST_VERTICES:
            vertices = np.stack([np.bincount(of, x) / counts for x in vertices.T], 1)
            error = np.bincount(of, error) / counts
            triangles = of[triangles]
        cells *= 0.95 * (MOST_VERTICES / len(counts)) ** 0.5  # as of a surface
    a, b, c = triangles.T
    return vertices, triangles[(a != b) & (b != c) & (c != a)], error


def last_picture(folder: Path) -> str:
    """The newest of a run's pictures as a data URI, "" if it has none that can be read."""
    for path in sorted((folder / "pictures").glob("step_*.png"), reverse=True):
        try:
            with Image.open(path) as opened:
                image = opened.convert("RGB")
        except (OSError, ValueError, Image.DecompressionBombError):
            continue
        if image.width > PICTURE_WIDTH:
            height = round(image.height * PICTURE_WIDTH / image.width)
            image = image.resize((PICTURE_WIDTH, height), Image.Resampling.LANCZOS)
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=JPEG_QUALITY)
        return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
    return ""
