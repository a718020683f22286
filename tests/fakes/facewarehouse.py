"""FaceWarehouse in miniature: decimetres, quads with texture coordinates into the photograph.

Two testers; each expression bends the face a little. ``landmarks/`` holds those of the photographs.
``python -m tests.fakes.facewarehouse DIR`` writes it.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.predictions import FaceMesh
from tests.fakes import scans

TESTERS, COLUMNS, ROWS = ("Tester_1", "Tester_2"), 31, 41
HEIGHT, WIDTH = 48, 64  # of the photographs


def mesh(tester: int, pose: int) -> FaceMesh:
    """Millimetres; the landmarks are vertices."""
    face = scans.face(COLUMNS, ROWS)
    rows = torch.cdist(face.landmarks, face.vertices).argmin(1)
    vertices = face.vertices * (1 + 0.04 * tester)
    vertices[:, 2] += 0.1 * pose * (vertices[:, 1] / 40).sin()
    return FaceMesh(vertices, face.triangles, vertices[rows])


def pixels(points: np.ndarray) -> np.ndarray:
    """Where points are in the photograph: 0.15 pixels per mm, from the front."""
    return points[:, :2] * [0.15, -0.15] + [WIDTH / 2, HEIGHT / 2]


def write(root: Path) -> Path:
    index = np.arange(ROWS * COLUMNS).reshape(ROWS, COLUMNS) + 1
    corners = [index[:-1, :-1], index[1:, :-1], index[1:, 1:], index[:-1, 1:]]
    quads = np.stack(corners, -1).reshape(-1, 4)
    for number, tester in enumerate(TESTERS):
        for pose in range(20):
            face = mesh(number, pose)
            folder = root / tester / "TrainingPose"
            folder.mkdir(parents=True, exist_ok=True)
            uv = (pixels(face.vertices.numpy()) - 0.5) / [WIDTH - 1, HEIGHT - 1]
            lines = [f"v {x:.9f} {y:.9f} {z:.9f}" for x, y, z in face.vertices / 100]
            lines += [f"vt {u:.6f} {v:.6f}" for u, v in uv]
            lines += ["f " + " ".join(f"{k}/{k}" for k in quad) for quad in quads]
            (folder / f"pose_{pose}.obj").write_text("\n".join(lines) + "\n")
            image = np.full((HEIGHT, WIDTH, 3), 10 * pose + number, np.uint8)
            Image.fromarray(image).save(folder / f"pose_{pose}.png")
            path = root / "landmarks" / tester / f"pose_{pose}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.savetxt(path, pixels(face.landmarks.numpy()))
    return root


if __name__ == "__main__":
    print(write(Path(sys.argv[1])))
