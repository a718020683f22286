"""FRGC v2 in miniature: range images of 60 x 80 pixels, packed or not, with photographs.

Quirks: lines end with CR LF; what was not measured is -999999. ``landmarks/`` holds those of the
photographs. ``python -m tests.fakes.frgc DIR`` writes it.
"""

import gzip
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.predictions import FaceMesh
from tests.fakes import scans

NAMES = ("02463d546", "02463d560", "04201d100")
HEIGHT, WIDTH = 61, 81  # pixels of 4 mm, but for the borders


def grid() -> tuple[np.ndarray, np.ndarray]:
    """Positions (h, w, 3) and which are measured: a disc, without a hole in the cheek."""
    x, y = np.meshgrid((np.arange(WIDTH) - 40) * 3.0, (30 - np.arange(HEIGHT)) * 3.0)
    measured = (np.hypot(x, y) < 85) & (np.hypot(x - 45, y + 20) > 9)
    return np.stack([x, y, scans.height(x, y)], -1), measured


def mesh() -> FaceMesh:
    """The whole grid; its landmarks are vertices."""
    points, _ = grid()
    index = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)
    a, b, c, d = index[:-1, :-1], index[:-1, 1:], index[1:, :-1], index[1:, 1:]
    triangles = np.concatenate([np.stack([a, c, d], -1), np.stack([a, d, b], -1)]).reshape(-1, 3)
    vertices = torch.from_numpy(points.reshape(-1, 3))
    rows = torch.cdist(torch.from_numpy(scans.landmarks()), vertices).argmin(1)
    return FaceMesh(vertices, torch.from_numpy(triangles), vertices[rows])


def write(root: Path) -> Path:
    points, measured = grid()
    values = np.where(measured[..., None], points, -999999.0)
    rows = [measured.astype(int).ravel(), *values.reshape(-1, 3).T]
    text = [f"{HEIGHT} rows", f"{WIDTH} columns", "pixels (flag X Y Z):"]
    text += [" ".join(f"{value:.9g}" for value in row) for row in rows]
    content = ("\r\n".join(text) + "\r\n").encode()
    landmarks = mesh().landmarks.numpy()[:, :2] / 3 * [1, -1] + [40.5, 30.5]
    (root / "landmarks").mkdir(parents=True, exist_ok=True)
    for k, name in enumerate(NAMES):
        folder = root / ("Fall2003range" if k < 2 else "Spring2004range")
        folder.mkdir(parents=True, exist_ok=True)
        if k == 1:
            (folder / f"{name}.abs").write_bytes(content)
        else:
            (folder / f"{name}.abs.gz").write_bytes(gzip.compress(content))
        person, number = name.split("d")
        image = Image.fromarray(np.full((2 * HEIGHT, 2 * WIDTH, 3), 90 + k, np.uint8))
        image.save(folder / f"{person}d{int(number) + 1}.ppm")
        np.save(root / "landmarks" / f"{name}.npy", 2 * landmarks)
    return root


if __name__ == "__main__":
    print(write(Path(sys.argv[1])))
