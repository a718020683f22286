"""300-VW in miniature, in the layout that datamodules.vw300 documents."""

import sys
from pathlib import Path

import av
import numpy as np
from PIL import Image

from tests.fakes.voxceleb import face_points, save, smooth_image

VIDEOS = ("001", "002", "003", "009", "114", "203", "410")


def write(root: Path, frames: int = 20, size: int = 64, **codec: str) -> Path:
    """Videos of all official parts; ``number_in`` tells the number of each frame.

    Quirks: 002 has its frames extracted, too; of 001 the landmarks of frame 4 are missing, those of
    frame 5 are NaN; 999 is no video of 300-VW.
    """
    rng = np.random.default_rng(0)
    for name in VIDEOS:
        folder = root / name
        (folder / "annot").mkdir(parents=True)
        images = [numbered(smooth_image(rng, size), k) for k in range(1, frames + 1)]
        write_video(folder / "vid.avi", images, **codec)
        for number, image in enumerate(images, 1):
            points = face_points(rng, size)[:, :2] + 0.5  # MATLAB's
            write_pts(folder / "annot" / f"{number:06}.pts", points)
            if name == "002":
                save(folder / "frames" / f"{number:06}.png", Image.fromarray(image))
    (root / "001/annot/000004.pts").unlink()
    write_pts(root / "001/annot/000005.pts", np.full((68, 2), np.nan))
    (root / "999").mkdir()
    return root


def write_pts(path: Path, points: np.ndarray) -> None:
    lines = "\n".join(f"{x:.3f} {y:.3f}" for x, y in points)
    path.write_text(f"version: 1\nn_points:  {len(points)}\n{{\n{lines}\n}}\n")


def write_video(
    path: Path, images: list[np.ndarray], codec: str = "mpeg4", rate: int = 30, **options: str
) -> None:
    """An .avi with a key frame every 12 frames, unless the options say otherwise."""
    with av.open(path, "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def numbered(image: np.ndarray, number: int) -> np.ndarray:
    """The image with a bar code in its lower quarter: eight blocks, the lowest bit first."""
    image, side = image.copy(), len(image)
    bits = (number >> np.arange(8)) & 1
    image[3 * side // 4 :] = np.repeat(bits * 255, side // 8)[None, :, None]
    return image


def number_in(image: np.ndarray) -> int:
    """What ``numbered`` has written into an image (h, w, 3), which may have been compressed."""
    side = len(image)
    blocks = image[7 * side // 8].mean(-1).reshape(8, -1)
    return int(((blocks.mean(-1) > 128) << np.arange(8)).sum())


if __name__ == "__main__":
    print(write(Path(sys.argv[1])))
