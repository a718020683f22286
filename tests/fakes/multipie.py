"""Multi-PIE in miniature, in the layout that datamodules.multipie documents."""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from tests.fakes.voxceleb import face_points, save, save_array, smooth_image

CAMERAS = ("05_1", "05_0", "14_0", "19_1")
LIGHTS = (0, 7)


def write(root: Path, subjects: int = 3, size: int = 64) -> Path:
    """``subjects`` people, two recordings of session 1, four cameras (one above), two lights.

    Quirks, all of subject 001: 001_01_01_051_00 has no landmarks, 001_01_01_051_07 is empty, and
    there is a high-resolution image, which has another name.
    """
    rng = np.random.default_rng(0)
    for subject, recording in np.ndindex(subjects, 2):
        for camera in CAMERAS:
            for light in LIGHTS:
                numbers = f"{subject + 1:03}_01_{recording + 1:02}"
                folder = f"session01/multiview/{subject + 1:03}/{recording + 1:02}/{camera}"
                path = f"{folder}/{numbers}_{camera.replace('_', '')}_{light:02}"
                save(root / f"{path}.png", Image.fromarray(smooth_image(rng, size)))
                save_array(root / "landmarks" / f"{path}.npy", face_points(rng, size))
    first = "session01/multiview/001/01/05_1/001_01_01_051"
    (root / f"landmarks/{first}_00.npy").unlink()
    (root / f"{first}_07.png").write_bytes(b"")
    save(root / "session01/highres/001/01/001_01_01.png", Image.new("RGB", (9, 9)))
    return root


if __name__ == "__main__":
    print(write(Path(sys.argv[1])))
