"""Frame trees small enough for a test, in the layout that datamodules.voxceleb documents."""

import sys
from pathlib import Path

import numpy as np
from PIL import Image


def write(
    root: Path, people: int = 4, frames: int = 6, size: int = 64, quirks: bool = True
) -> Path:
    """``people`` x 2 videos x 1 clip; the last two people are for val and test.

    Quirks, all in the first person's first clip: 000000 has no landmark file (the detector failed),
    000001 is a truncated JPEG, 000002 has NaN landmarks, 000003 is grey.
    """
    rng = np.random.default_rng(0)
    for person, video, frame in np.ndindex(people, 2, frames):
        clip = Path(f"id1{person:04}", f"video{video}", "00001")
        name = clip / f"{frame:06}"
        image = smooth_image(rng, size)
        save(root / "frames" / f"{name}.jpg", Image.fromarray(image), quality=95)
        save_array(root / "landmarks" / f"{name}.npy", face_points(rng, size))
    (root / "frames/Thumbs.db").write_bytes(b"not ours")
    (root / "splits").mkdir()
    names = [f"id1{person:04}" for person in range(people)]
    parts = {"train": names[:-2], "val": names[-2:-1], "test": names[-1:]}
    for split, members in parts.items():
        (root / f"splits/{split}.txt").write_text("# identities\n" + "\n".join(members) + "\n")
    if quirks:
        clip = "id10000/video0/00001"
        (root / f"landmarks/{clip}/000000.npy").unlink()
        path = root / f"frames/{clip}/000001.jpg"
        path.write_bytes(path.read_bytes()[:-100])
        save_array(root / f"landmarks/{clip}/000002.npy", np.full((68, 3), np.nan, np.float32))
        path = root / f"frames/{clip}/000003.jpg"
        Image.open(path).convert("L").save(path)
    return root


def smooth_image(rng: np.random.Generator, size: int) -> np.ndarray:
    """Waves of random directions, (size, size, 3) uint8."""
    y, x = np.mgrid[:size, :size] / size
    waves = rng.uniform(-9, 9, (3, 2))
    return np.stack([np.sin(a * x + b * y) * 100 + 128 for a, b in waves], -1).astype(np.uint8)


def face_points(rng: np.random.Generator, size: int) -> np.ndarray:
    """About a frontal face in the middle, (68, 3) float32: x, y, confidence."""
    across, down = FACE.T
    points = np.stack([0.5 + 0.25 * across, 0.55 + 0.25 * down], -1) + rng.normal(0, 0.01, (68, 2))
    return np.concatenate([points * size, rng.uniform(0.5, 1, (68, 1))], -1).astype(np.float32)


def save(path: Path, image: Image.Image, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


def save_array(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array)


def _arc(x: tuple[float, float], y: float, bend: float, count: int) -> np.ndarray:
    t = np.linspace(-1, 1, count)
    middle, half = (x[0] + x[1]) / 2, (x[1] - x[0]) / 2
    return np.stack([middle + half * t, y + bend * (1 - t**2)], -1)


def _ring(x: float, y: float, width: float, height: float, count: int) -> np.ndarray:
    """From the image-left corner over the top."""
    t = np.pi - 2 * np.pi * np.arange(count) / count
    return np.stack([x + width * np.cos(t), y - height * np.sin(t)], -1)


FACE = np.concatenate(
    [
        _arc((-0.9, 0.9), -0.3, 1.3, 17),  # jaw
        _arc((-0.75, -0.15), -0.6, -0.1, 5),  # brows
        _arc((0.15, 0.75), -0.6, -0.1, 5),
        np.stack([np.zeros(4), np.linspace(-0.4, 0.05, 4)], -1),  # nose
        _arc((-0.2, 0.2), 0.15, 0.05, 5),
        _ring(-0.42, -0.38, 0.17, 0.06, 6),  # eyes
        _ring(0.42, -0.38, 0.17, 0.06, 6),
        _ring(0, 0.5, 0.3, 0.12, 12),  # mouth
        _ring(0, 0.5, 0.22, 0.04, 8),
    ]
)


if __name__ == "__main__":
    print(write(Path(sys.argv[1])))
