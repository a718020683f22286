"""AFLW2000-3D in miniature: <root>/image00002.jpg and .mat, as the 2,000 real pairs are.

Quirks: in image00005 a landmark lies outside the image; unseen ones of the 21 points are (-1, 452).
``labels.npy`` and ``yaws.npy`` hold the reannotation and AFLW's own yaws, rows in the order of the
sorted names. The fitted faces are of the face model that ``write_basel`` makes, which is smaller
than the real one: ``SMALL`` has its sizes, by their names in core.face_models.importers.bfm2009;
they have nothing to do with the 68 points. ``python -m tests.fakes.aflw2000 DIR`` writes it.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat
from scipy.spatial import KDTree

from tests.fakes import scans
from tests.fakes.face_model import LANDMARKS
from tests.fakes.raw_models import waves

YAWS = np.array([-5.0, 20.0, 29.0, -45.0, 59.0, 75.0, -95.0, 10.0])  # degrees
NAMES = [f"image{k:05}" for k in (2, 5, 8, 13, 21, 34, 55, 89)]
FACE = scans.face(35, 40)
ALL, TRIMMED, FRONT = len(FACE.vertices), 1300, 900
TRIM = np.sort(np.random.default_rng(1).permutation(ALL)[:TRIMMED])  # of all vertices
_LANDMARKS = KDTree(FACE.vertices[TRIM].numpy()).query(scans.landmarks())[1]
SMALL = {
    "ALL": ALL,
    "TRIMMED": TRIMMED,
    "FRONT": FRONT,
    "KEYPOINTS": tuple(_LANDMARKS.tolist()),
}


def write_basel(folder: Path) -> Path:
    """01_MorphableModel.mat, BFM_exp_idx.mat, BFM_front_idx.mat, Model_Exp.mat, BFM_UV.mat."""
    folder.mkdir(parents=True, exist_ok=True)
    points = FACE.vertices.numpy()
    order = np.argsort(np.linalg.norm(points[TRIM] - points[TRIM][_LANDMARKS[30]], axis=1))
    modes = waves(points, 199, 3).reshape(199, -1).T / (3 * ALL) ** 0.5
    uv = points[:, :2] / [180, 240] + 0.5
    files = {
        "01_MorphableModel": {"shapeMU": 1000 * points.reshape(-1, 1), "shapePC": modes},
        "BFM_exp_idx": {"trimIndex": TRIM[:, None] + 1},
        "BFM_front_idx": {"idx": np.sort(order[:FRONT])[:, None] + 1.0},
        "Model_Exp": {
            "mu_exp": np.full((3 * TRIMMED, 1), 300.0),
            "w_exp": waves(points[TRIM], 29, 4).reshape(29, -1).T * 500,
        },
        "BFM_UV": {"UV": uv},
    }
    for name, arrays in files.items():
        savemat(folder / f"{name}.mat", arrays)
    return folder


def write(root: Path) -> Path:
    """Eight pairs: four with |yaw| <= 30, two to 60, two above."""
    root.mkdir(parents=True, exist_ok=True)
    rng, people = np.random.default_rng(0), np.random.default_rng(2)
    half = np.array([[*LANDMARKS[k]] if k in LANDMARKS else [0, 0] for k in range(68)], float)
    left = np.array(sorted(LANDMARKS))
    points = rng.uniform(-60, 60, (68, 2))
    points[left] = half[left]
    labels = []
    for name, yaw in zip(NAMES, YAWS, strict=True):
        scale = rng.uniform(0.8, 1.2)
        x, y = (points * [scale, -scale]).T + rng.uniform(200, 250, (2, 1))
        if name == NAMES[1]:
            x[0] = -20
        landmarks = np.stack([x, y, rng.uniform(-100, 100, 68)]).astype(np.float32)
        labels.append(landmarks[:2])
        others = rng.uniform(150, 300, (2, 21))
        others[:, ::4] = [[-1], [452]]
        pose = np.zeros((1, 7), np.float32)
        pose[0] = 0.1, np.radians(yaw), -0.1, 225, 230, 5, 7e-4
        fit = {
            "Shape_Para": people.normal(0, 4e4, (199, 1)),
            "Exp_Para": people.normal(size=(29, 1)),
        }
        points_and_pose = {"pt3d_68": landmarks, "pt2d": others, "Pose_Para": pose}
        savemat(root / f"{name}.mat", points_and_pose | fit)
        pixels = rng.integers(0, 256, (450, 450, 3), np.uint8)
        Image.fromarray(pixels).save(root / f"{name}.jpg", quality=30)
    np.save(root / "labels.npy", np.stack(labels) + 1)
    np.save(root / "yaws.npy", np.abs(YAWS).astype(np.float32))
    return root


if __name__ == "__main__":
    print(write(Path(sys.argv[1])))
