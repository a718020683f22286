"""Raw videos small enough for a test, laid out as VoxCeleb2's release, with landmarks."""

import sys
from pathlib import Path

import av
import numpy as np

from tests.fakes.voxceleb import face_points, smooth_image


def write(
    root: Path, people: int = 4, frames: int = 5, size: int = 160, quirks: bool = True
) -> Path:
    """``people`` x 2 videos x 1 clip: dev/mp4/<identity>/<video>/00001.mp4 and 00001.npz.

    Quirks, in the first person's: video0 shows no face in frame 1 and has NaN landmarks in frame 2;
    video2 is an mp4 that was cut short, video3 an empty file, video4 has landmarks of 5 points,
    video5 a text file as landmarks.
    """
    rng = np.random.default_rng(0)
    for person, video in np.ndindex(people, 2):
        path = root / f"dev/mp4/id1{person:04}/video{video}/00001.mp4"
        film(path, frames, size, seed=person)
        points = np.stack([face_points(rng, size) for _ in range(frames)])
        landmarks(path, points[..., :2], points[..., 2])
    if quirks:
        person = root / "dev/mp4/id10000"
        path = person / "video0/00001.mp4"
        given = dict(np.load(path.with_suffix(".npz")))
        given["confidence"][1] = 0
        given["landmarks"][2] = np.nan
        np.savez(path.with_suffix(".npz"), **given)
        whole = path.read_bytes()
        good = given["landmarks"][[0] * frames], given["confidence"][[0] * frames]
        for number, content in ((2, whole[: len(whole) // 2]), (3, b""), (4, whole), (5, whole)):
            path = person / f"video{number}/00001.mp4"
            path.parent.mkdir()
            path.write_bytes(content)
            landmarks(path, *(values[:, :5] if number == 4 else values for values in good))
        path.with_suffix(".npz").write_text("no numbers here")
    return root


def film(path: Path, frames: int, size: int, seed: int = 0) -> None:
    """Waves that move, H.264, 25 frames a second."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = smooth_image(np.random.default_rng(seed), size)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1
        for number in range(frames):
            shown = np.roll(image, 4 * number, 1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(shown, format="rgb24")))
        container.mux(stream.encode())


def landmarks(path: Path, points: np.ndarray, confidence: np.ndarray) -> None:
    """The file beside a video, as ``datamodules.landmark_files`` describes it."""
    np.savez(path.with_suffix(".npz"), landmarks=points, confidence=confidence)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
