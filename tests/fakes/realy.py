"""REALY in miniature: photographs, four regions and 85 keypoints of each scan, their scales.

Quirks: the scans' unit is a decimetre, but for subject 2's, of which it is 50 mm; the list of
scales has 100 lines also for fewer subjects. ``python -m tests.fakes.realy DIR`` writes it.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.predictions import FaceMesh
from tests.fakes import scans

SUBJECTS = ("1", "2")
COLUMNS, ROWS = 41, 55
CENTRES = {"nose": (0, 0), "mouth": (0, -42), "forehead": (0, 60), "cheek": (45, -20)}
RADIUS = 25.0  # millimetres
CHEEKS = np.array([[40.0, -15], [-40, -15]])  # keypoints 76 and 77


def mesh(subject: str) -> FaceMesh:
    """Millimetres."""
    return scans.face(COLUMNS, ROWS).scaled(1 + 0.04 * SUBJECTS.index(subject))


def keypoints() -> np.ndarray:
    """(85, 2), millimetres in the plane of the scan: the 68, and 17 more."""
    more = np.random.default_rng(0).uniform(-50, 50, (17, 2))
    more[76 - 68 : 78 - 68] = CHEEKS
    return np.concatenate([scans.landmarks()[:, :2], more])


def template() -> list[list[float]]:
    """REALY's barycentric file for the fake's own topology."""
    face = scans.face(COLUMNS, ROWS)
    corners = face.vertices[face.triangles].numpy()[..., :2]
    rows = []
    for point in keypoints():
        a, b, c = corners[:, 0], corners[:, 1], corners[:, 2]
        system = np.stack([b - a, c - a], -1)
        weights = np.linalg.solve(system, (point - a)[..., None])[..., 0]
        all_three = np.column_stack([1 - weights.sum(1), weights])
        best = int(all_three.min(1).argmax())
        rows.append([best, *all_three[best, :2].tolist()])
    return rows


def write(root: Path) -> Path:
    """Two subjects; ``landmarks/`` holds those of the photographs."""
    folders = ("REALY_image", "REALY_HIFI3D_keypoints", "landmarks")
    for folder in folders:
        (root / folder).mkdir(parents=True, exist_ok=True)
    scales = np.full(100, 100.0)
    scales[1] = 50
    np.savetxt(root / "metrical_scale.txt", scales)
    (root / "own.txt").write_text(json.dumps(template()))
    triangles = scans.face(COLUMNS, ROWS).triangles
    rows = torch.tensor(template())
    weights = torch.cat([rows[:, 1:], 1 - rows[:, 1:].sum(1, keepdim=True)], 1).double()
    for number, subject in enumerate(SUBJECTS):
        face = mesh(subject).scaled(1 / scales[number])
        corners = face.vertices[triangles[rows[:, 0].long()]]
        points = (corners * weights[..., None]).sum(1)
        lines = [f"v {x:.9f} {y:.9f} {z:.9f}" for x, y, z in points.tolist()]
        (root / f"REALY_HIFI3D_keypoints/{subject}.obj").write_text("\n".join(lines))
        plane = scans.face(COLUMNS, ROWS).vertices[:, :2]
        for region, centre in CENTRES.items():
            inside = (plane - torch.tensor(centre)).norm(dim=-1) < RADIUS
            new = inside.cumsum(0) - 1
            kept = new[triangles[inside[triangles].all(-1)]]
            part = FaceMesh(face.vertices[inside], kept, face.landmarks)
            scans.write_obj(root / f"REALY_scan_region/{subject}/{region}.obj", part)
        image = Image.fromarray(np.full((64, 64, 3), 60 + 50 * number, np.uint8))
        image.save(root / f"REALY_image/{subject}.jpg")
        points = np.random.default_rng(number).uniform(10, 50, (68, 2))
        np.save(root / f"landmarks/{subject}.npy", points)
    return root


if __name__ == "__main__":
    print(write(Path(sys.argv[1])))
