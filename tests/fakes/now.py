"""NoW in miniature: photographs, the list of the validation, scans with seven points (MeshLab).

Quirks: the scan of subject b is finer; a .pp has other tags before its points.
``python -m tests.fakes.now DIR`` writes it.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.predictions import FaceMesh, seven_points
from tests.fakes import scans

SUBJECTS = ("a", "b")
CHALLENGES = ("multiview_neutral", "selfie")
NAMES = [f"{s}/{c}/IMG_000{k}" for s in SUBJECTS for k, c in enumerate(CHALLENGES)]


def scan(subject: str) -> FaceMesh:
    """Millimetres; that of b is larger by a twentieth."""
    columns, rows = ((41, 55), (61, 81))[SUBJECTS.index(subject)]
    return scans.face(columns, rows).scaled(1 + 0.05 * SUBJECTS.index(subject))


def write(root: Path) -> Path:
    """Two photographs of each of two subjects; ``landmarks/`` holds those of the photographs."""
    for subject in SUBJECTS:
        mesh = scan(subject)
        scans.write_obj(root / f"scans/{subject}/any.obj", mesh)
        points = [
            f' <point x="{x:.9f}" y="{y:.9f}" z="{z:.9f}" active="1" name="{k}"/>\n'
            for k, (x, y, z) in enumerate(seven_points(mesh).tolist())
        ]
        path = root / f"scans_lmks_onlypp/{subject}/any.pp"
        path.parent.mkdir(parents=True)
        head = '<!DOCTYPE PickedPoints>\n<PickedPoints>\n <DocumentData>\n  <DateTime date="x"/>\n'
        path.write_text(f"{head} </DocumentData>\n{''.join(points)}</PickedPoints>\n")
    for k, name in enumerate(NAMES):
        path = root / f"final_release_version/iphone_pictures/{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((64, 64, 3), 50 + 40 * k, np.uint8)).save(path)
        path = root / f"landmarks/{name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.random.default_rng(k).uniform(10, 50, (68, 2)))
    lines = "".join(f"{name}.jpg\n" for name in NAMES)
    (root / "imagepathsvalidation.txt").write_text(lines)
    return root


if __name__ == "__main__":
    print(write(Path(sys.argv[1])))
