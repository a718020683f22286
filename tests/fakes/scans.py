"""A face of which everything is known, as a mesh of any density, with its 68 landmarks.

It is the graph z = height(x, y) over a rectangle of 180 x 240 mm; like people, not symmetric.
"""

from pathlib import Path

import numpy as np
import torch

from benchmarks.predictions import FaceMesh
from core.landmarks import MIRROR
from tests.fakes.face_model import LANDMARKS


def height(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Millimetres, model frame."""

    def bump(cx: float, cy: float, wx: float, wy: float) -> np.ndarray:
        return np.exp(-(((x - cx) / wx) ** 2) - ((y - cy) / wy) ** 2)

    z = 90 * bump(0, 0, 75, 110) + 22 * bump(0, -2, 14, 18) + 6 * bump(0, -78, 18, 14)
    z = z - 7 * bump(31, 30, 13, 9) - 7 * bump(-31, 30, 13, 9)
    return z + 5 * bump(45, -20, 20, 30) + 3 * bump(-20, 60, 25, 15)


def landmarks() -> np.ndarray:
    """(68, 3), on the surface."""
    points = np.zeros((68, 2))
    for k, (x, y) in LANDMARKS.items():
        points[k], points[MIRROR[k]] = (x, y), (-x, y)
    return np.column_stack([points, height(*points.T)])


def face(columns: int = 41, rows: int = 55) -> FaceMesh:
    """The face as a grid."""
    x, y = np.meshgrid(np.linspace(-90, 90, columns), np.linspace(120, -120, rows))
    vertices = np.stack([x, y, height(x, y)], -1).reshape(-1, 3)
    index = np.arange(rows * columns).reshape(rows, columns)
    a, b, c, d = index[:-1, :-1], index[:-1, 1:], index[1:, :-1], index[1:, 1:]
    triangles = np.concatenate([np.stack([a, c, d], -1), np.stack([a, d, b], -1)]).reshape(-1, 3)
    return FaceMesh(*(torch.from_numpy(part) for part in (vertices, triangles, landmarks())))


def write_obj(path: Path, mesh: FaceMesh) -> None:
    """As scanners write them: with texture coordinates (the box of x and y), and f a/b."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["mtllib scan.mtl", *(f"v {x:.17g} {y:.17g} {z:.17g}" for x, y, z in mesh.vertices)]
    flat = mesh.vertices[:, :2]
    texture = (flat - flat.amin(0)) / (flat.amax(0) - flat.amin(0))
    lines += [*(f"vt {u:.6f} {v:.6f}" for u, v in texture.tolist()), "usemtl skin"]
    lines += [f"f {a}/{a} {b}/{b} {c}/{c}" for a, b, c in (mesh.triangles + 1).tolist()]
    path.write_text("\n".join(lines) + "\n")
