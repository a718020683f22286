"""Photographs of people in folders, in the layout that datamodules.image_folder documents."""

import struct
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from core.landmarks import five_points
from tests.fakes.voxceleb import face_points, save, smooth_image


def write(root: Path, people: int = 5, images: int = 3, size: int = 64) -> Path:
    """All images have five points; the second of each person has 68, too; the last has masks.

    Quirks, all of the first person: image 0 is truncated, 2 has no landmarks.
    """
    rng = np.random.default_rng(0)
    for person, number in np.ndindex(people, images):
        folder, name = root / f"Person_{person}", f"Person_{person}_{number:04}"
        save(folder / f"{name}.jpg", Image.fromarray(smooth_image(rng, size)), quality=95)
        points = face_points(rng, size)[:, :2]
        save_text(folder / f"detections/{name}.txt", five_points(torch.from_numpy(points)).numpy())
        if number == 1:
            save_text(folder / f"landmarks/{name}.txt", points)
        if person == people - 1:
            mask = Image.fromarray(smooth_image(rng, size)[..., 0])
            save(folder / f"mask/{name}.png", mask)
    first = root / "Person_0/Person_0_0000.jpg"
    first.write_bytes(first.read_bytes()[:-100])
    (root / "Person_0/detections/Person_0_0002.txt").unlink()
    return root


def save_text(path: Path, points: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savetxt(path, points, "%.3f")


def t7(
    values: np.ndarray,
    kind: str = "torch.DoubleTensor",
    steps: tuple[int, int] | None = None,
) -> bytes:
    """What torch.save of Torch 7 writes; with ``steps`` a view of another storage, transposed."""

    def text(string: str) -> bytes:
        return struct.pack("<i", len(string)) + string.encode()

    def head(index: int, name: str) -> bytes:
        return struct.pack("<ii", 4, index) + text("V 1") + text(name)

    storage = values if steps is None else np.r_[9.0, values.T.ravel()]
    shape, steps, start = values.shape, steps or (values.shape[1], 1), 1 if steps is None else 2
    return (
        head(1, kind)
        + struct.pack("<i2q2qq", 2, *shape, *steps, start)
        + head(2, kind.replace("Tensor", "Storage"))
        + struct.pack("<q", storage.size)
        + storage.astype("<f8" if "Double" in kind else "<f4").tobytes()
    )


if __name__ == "__main__":
    print(write(Path(sys.argv[1])))
