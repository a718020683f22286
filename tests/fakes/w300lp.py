"""300W-LP in miniature, in the layout that datamodules.w300lp documents."""

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

from core.landmarks import MIRROR
from tests.fakes.voxceleb import face_points, save, smooth_image

SETS = {"AFW": "AFW_{}_1", "HELEN": "HELEN_{}_1", "IBUG": "IBUG_image_{:03}_1", "LFPW": "LFPW_{}"}
STEP = 20.0  # degrees from one image of a face to the next


def write(root: Path, photos: int = 3, steps: int = 3, size: int = 64) -> Path:
    """Four sets of ``photos`` faces, each turned ``steps`` times, and their mirror images.

    The yaw of step k is -20 k degrees, +20 k in the mirror. The 3D landmarks lie one pixel to the
    right of the 2D ones. Quirks, all of IBUG: image_000_1_1.jpg is truncated, image_001_1_0 has no
    .mat, the .mat of image_001_1_1 is text.
    """
    rng = np.random.default_rng(0)
    for folder, name in SETS.items():
        for photo, step in np.ndindex(photos, steps):
            stem = f"{name.format(photo)}_{step}"
            points = face_points(rng, size)[:, :2] + 0.5  # MATLAB's
            image = smooth_image(rng, size)
            mirrored = [size + 1, 0] + points[list(MIRROR)] * [-1, 1]
            _pair(root / folder / stem, image, points, -STEP * step)
            _pair(root / f"{folder}_Flip" / stem, image[:, ::-1], mirrored, STEP * step)
            arrays = {"pts_2d": points, "pts_3d": points + np.array([1, 0])}
            path = root / "landmarks" / folder / f"{stem}_pts.mat"
            path.parent.mkdir(parents=True, exist_ok=True)
            savemat(path, arrays)
    (root / "Code").mkdir()
    broken = root / "IBUG/IBUG_image_000_1_1.jpg"
    broken.write_bytes(broken.read_bytes()[:-100])
    (root / "IBUG/IBUG_image_001_1_0.mat").unlink()
    (root / "IBUG/IBUG_image_001_1_1.mat").write_text("not MATLAB's")
    return root


def _pair(path: Path, image: np.ndarray, points: np.ndarray, yaw: float) -> None:
    save(path.with_suffix(".jpg"), Image.fromarray(np.ascontiguousarray(image)), quality=95)
    numbers = {
        "pt2d": points.T.astype(np.float64),
        "roi": np.array([[1, 1, 450, 450]], np.int16),
        "Shape_Para": np.zeros((199, 1)),
        "Exp_Para": np.zeros((29, 1)),
        "Pose_Para": np.float32([[0, np.radians(yaw), 0, 32, 32, 0, 2e-4]]),
    }
    savemat(path.with_suffix(".mat"), numbers)


if __name__ == "__main__":
    print(write(Path(sys.argv[1])))
