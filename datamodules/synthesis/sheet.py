"""A picture to look at: random frames of a set, each also with its mask and landmarks."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from core.errors import DataError


def contact_sheet(root: Path, frames: int = 24, columns: int = 6, seed: int = 0) -> Image.Image:
    """Random frames in rows; below each row the same, only the face bright, with landmarks.

    A landmark is green where the detector is sure, red where it is not; a frame without landmarks
    has none.

    Args:
        root: of a set in VoxCeleb's frame tree.
        frames: how many at most.
        columns: frames of a row.
        seed: of the choice.

    Raises:
        DataError: there are no frames.
    """
    paths = sorted(path for path in (root / "frames").glob("*/*/*/*") if path.is_file())
    if not paths:
        raise DataError(f"no frames below '{root / 'frames'}'; make a synthetic set there first")
    rng = np.random.default_rng(seed)
    chosen = [paths[i] for i in rng.permutation(len(paths))[:frames]]
    with Image.open(chosen[0]) as first:
        width, height = first.size
    rows = -(-len(chosen) // columns)
    sheet = Image.new("RGB", (columns * width, 2 * rows * height))
    for index, path in enumerate(chosen):
        with Image.open(path) as file:
            picture = file.convert("RGB")
        place = path.relative_to(root / "frames")
        with Image.open((root / "masks" / place).with_suffix(".png")) as file:
            mask = np.asarray(file.convert("L"), np.float32)[..., None] / 255
        x, y = index % columns * width, index // columns * 2 * height
        sheet.paste(picture, (x, y))
        marked = Image.fromarray((np.asarray(picture) * (0.3 + 0.7 * mask)).astype(np.uint8))
        landmarks = (root / "landmarks" / place).with_suffix(".npy")
        if landmarks.is_file():
            draw = ImageDraw.Draw(marked)
            for px, py, sure in np.load(landmarks).tolist():
                colour = (int(255 * (1 - sure)), int(255 * sure), 40)
                draw.point([(px - 0.5, py - 0.5), (px + 0.5, py - 0.5)], fill=colour)
        sheet.paste(marked, (x, y + height))
    return sheet
