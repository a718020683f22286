"""AFLW2000-3D in miniature: <root>/image00002.jpg and .mat, as the 2,000 real pairs are.

Quirks: in image00005 a landmark lies outside the image; unseen ones of the 21 points are (-1, 452).
``labels.npy`` and ``yaws.npy`` hold the reannotation and AFLW's own yaws, rows in the order of the
sorted names. ``python -m tests.fakes.aflw2000 DIR`` writes it.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

from tests.fakes.face_model import LANDMARKS

YAWS = np.array([-5.0, 20.0, 29.0, -45.0, 59.0, 75.0, -95.0, 10.0])  # degrees
NAMES = [f"image{k:05}" for k in (2, 5, 8, 13, 21, 34, 55, 89)]


def write(root: Path) -> Path:
    """Eight pairs: four with |yaw| <= 30, two to 60, two above."""
    root.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
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
        pose[0, 1] = np.radians(yaw)
        savemat(root / f"{name}.mat", {"pt3d_68": landmarks, "pt2d": others, "Pose_Para": pose})
        pixels = rng.integers(0, 256, (450, 450, 3), np.uint8)
        Image.fromarray(pixels).save(root / f"{name}.jpg", quality=30)
    np.save(root / "labels.npy", np.stack(labels) + 1)
    np.save(root / "yaws.npy", np.abs(YAWS).astype(np.float32))
    return root


if __name__ == "__main__":
    print(write(Path(sys.argv[1])))
