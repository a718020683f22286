"""CelebA in miniature, in the layout that datamodules.celeba documents."""

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from core.landmarks import five_points
from tests.fakes.voxceleb import face_points, save, smooth_image

PARTS = (0, 0, 0, 0, 0, 0, 1, 1, 2, 2)
COLUMNS = "lefteye_x lefteye_y righteye_x righteye_y nose_x nose_y leftmouth_x leftmouth_y "
COLUMNS += "rightmouth_x rightmouth_y"


def write(root: Path, size: int = 64) -> Path:
    """Ten images of five people: three to train with, one to validate, one to test.

    Quirks: 000002.jpg is truncated; 000005.jpg is in the lists only.
    """
    rng = np.random.default_rng(0)
    lines = []
    for number in range(1, len(PARTS) + 1):
        points = torch.from_numpy(face_points(rng, size)[:, :2])
        values = five_points(points).round().int().flatten().tolist()
        lines.append(f"{number:06}.jpg " + " ".join(f"{value:4}" for value in values))
        image = Image.fromarray(smooth_image(rng, size))
        save(root / f"img_align_celeba/{number:06}.jpg", image, quality=95)
    head = [str(len(lines)), COLUMNS]
    (root / "list_landmarks_align_celeba.txt").write_text("\n".join([*head, *lines]) + "\n")
    for name, values in (
        ("list_eval_partition.txt", PARTS),
        ("identity_CelebA.txt", (7, 9, 4, 4, 7, 9, 1, 1, 2, 2)),
    ):
        rows = [f"{number:06}.jpg {value}\n" for number, value in enumerate(values, 1)]
        (root / name).write_text("".join(rows))
    broken = root / "img_align_celeba/000002.jpg"
    broken.write_bytes(broken.read_bytes()[:-100])
    (root / "img_align_celeba/000005.jpg").unlink()
    return root


if __name__ == "__main__":
    print(write(Path(sys.argv[1])))
