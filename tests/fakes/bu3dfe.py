"""BU-3DFE in miniature: VRML, .bnd and photographs of two people, a neutral and a happy scan each.

Quirks: the polygons of one file are quads; the nose tip is none of the 83 points.
``python -m tests.fakes.bu3dfe DIR`` writes it.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.predictions import FaceMesh
from tests.fakes import scans

SCANS = ("F0001/F0001_HA01WH", "F0001/F0001_NE00WH", "M0002/M0002_HA01AE", "M0002/M0002_NE00AE")
COLUMNS, ROWS = 31, 41


def mesh(number: int) -> FaceMesh:
    """Millimetres; with the five landmarks that the .bnd tells."""
    face = scans.face(COLUMNS, ROWS).scaled(1 + 0.03 * number)
    points = face.landmarks
    tip = face.vertices[face.vertices[:, 2].argmax()]
    eyes = [points[36:40].mean(0), points[42:46].mean(0)]  # 8 of a .bnd: each of these twice
    five = [*eyes, tip, points[48], points[54]]
    return FaceMesh(face.vertices, face.triangles, torch.stack(five))


def write(root: Path) -> Path:
    for number, name in enumerate(SCANS):
        face = mesh(number)
        path = root / f"{name}_F3D.wrl"
        path.parent.mkdir(parents=True, exist_ok=True)
        points = ",\n".join(f"{x:.9f} {y:.9f} {z:.9f}" for x, y, z in face.vertices)
        corners = ",\n".join(f"{a}, {b}, {c}, -1" for a, b, c in face.triangles.tolist())
        if number == 1:
            index = np.arange(ROWS * COLUMNS).reshape(ROWS, COLUMNS)
            quads = [index[:-1, :-1], index[1:, :-1], index[1:, 1:], index[:-1, 1:]]
            quads = np.stack(quads, -1).reshape(-1, 4)
            corners = ",\n".join(", ".join(map(str, [*quad, -1])) for quad in quads)
        path.write_text(
            "#VRML V2.0 utf8\nShape { geometry IndexedFaceSet {\n coord Coordinate {\n point [\n"
            f"{points}\n ] }}\n coordIndex [\n{corners}\n ]\n texCoordIndex [ 0, 1, 2, -1 ] }} }}\n"
        )
        all68 = scans.face(COLUMNS, ROWS).scaled(1 + 0.03 * number).landmarks.numpy()
        brows, contour = np.repeat(all68[17:27], 2, 0), all68[1:16]
        eyes = np.concatenate([np.repeat(all68[36:40], 2, 0), np.repeat(all68[42:46], 2, 0)])
        nose = np.concatenate([all68[27:30], all68[31:36], all68[31:35]])  # without the tip
        rows = [eyes, brows, nose, all68[48:60], all68[60:68], contour]
        lines = [
            f"{k}\t\t{x:.9f} {y:.9f} {z:.9f}" for k, (x, y, z) in enumerate(np.concatenate(rows))
        ]
        (root / f"{name}_F3D.bnd").write_text("\n".join(lines) + "\n")
        for k, end in enumerate(("RAW_0.jpg", "RAW_1.jpg", "F2D.bmp")):
            image = np.full((48, 48, 3), 40 * number + k, np.uint8)
            Image.fromarray(image).save(root / f"{name}_{end}")
            spread = np.random.default_rng(k).uniform(10, 40, (68, 2))
            folder = root / "landmarks" / Path(name).parent
            folder.mkdir(parents=True, exist_ok=True)
            np.save(folder / f"{Path(name).name}_{end[:-4]}.npy", spread)
    return root


if __name__ == "__main__":
    print(write(Path(sys.argv[1])))
