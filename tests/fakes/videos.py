"""Raw videos small enough for a test, laid out as VoxCeleb2's release, with landmarks."""

import sys
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import get_args

import av
import numpy as np

from datamodules.clips import Clip, Split
from datamodules.shards import ShardSource
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
    image = smooth_image(np.random.default_rng(seed), size)
    encode(path, (np.roll(image, 4 * number, 1) for number in range(frames)), 25)


def encode(path: Path, images: Iterable[np.ndarray], rate: int, start: int = 0) -> None:
    """H.264 of images (h, w, 3); their times begin at frame ``start``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"preset": "ultrafast"})
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1
        for number, image in enumerate(images, start):
            if number == start:
                stream.height, stream.width = image.shape[:2]
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def landmarks(path: Path, points: np.ndarray, confidence: np.ndarray) -> None:
    """The file beside a video, as ``datamodules.landmark_files`` describes it."""
    np.savez(path.with_suffix(".npz"), landmarks=points, confidence=confidence)


def write_whole(root: Path, release: int, rate: int = 25, seconds: int = 2) -> Path:
    """Whole videos with VoxCeleb's metadata, ``txt/<identity>/<video>/<clip>.txt``.

    Two white squares on black: that of ``square_at``, which the boxes show, and another. Person
    id10270, of VoxCeleb1's official test, has a clip 00001 of the frames 5 to 39 and a clip 00002
    of the frames 20 and 30; id10001 and id10002 one of the frames 10 to 14 each. Quirks: id10001's
    00009 was cut short in the middle of a line; the video of id10003 is no longer there.

    Args:
        root: the raw folder.
        release: 1: boxes in pixels at a height of 360; 2: fractions.
        rate: of the videos, frames a second; the metadata always count 25.
        seconds: that the videos last.
    """
    height, width = 180, 320
    clips = {
        "id10270/aaaaaaaaaaa/00001": range(5, 40),
        "id10270/aaaaaaaaaaa/00002": (20, 30),
        "id10001/-_bbbbbbbbb/00001": range(10, 15),
        "id10002/ccccccccccc/00001": range(10, 15),
        "id10003/ddddddddddd/00001": range(10, 15),
    }
    unit = [360 / height] * 4 if release == 1 else [1 / width, 1 / height] * 2
    for clip, numbers in clips.items():
        person, video, _ = clip.split("/")
        lines = [f"Identity  : \t{person}", f"Reference : \t{video}", "Offset    : \t-5"]
        lines += ["FV Conf   : \t15.486\t(1)", "ASD Conf  : \t4.235", "", "FRAME \tX \tY \tW \tH "]
        for number in numbers:
            box = [value * u for value, u in zip(square_at(number / 25), unit, strict=True)]
            text = [f"{round(value)}" if release == 1 else f"{value:.3f}" for value in box]
            lines.append("\t".join([f"{number:06}", *text]) + " ")
        path = root / f"txt/{clip}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n")
        if video != "ddddddddddd":
            images = np.zeros((rate * seconds, height, width, 3), np.uint8)
            for number, image in enumerate(images):
                x, y, side, _ = np.round(square_at(number / rate)).astype(int)
                image[y : y + side, x : x + side] = 255
                image[130:170, 250:290] = 255
            encode(root / f"videos/{video}.mp4", images, rate)
    broken = root / "txt/id10001/-_bbbbbbbbb/00009.txt"
    broken.write_text("\n".join(lines[:9]) + "\n000012\t0.1")
    return root


def square_at(time: float) -> tuple[float, float, float, float]:
    """Left, upper edge, width, height of the square that moves by 100 pixels a second."""
    return 20 + 100 * time, 30.0, 60.0, 60.0


def clips(out: Path) -> tuple[ShardSource, dict[str, Clip]]:
    """What was prepared, and its clips by name."""
    source = ShardSource(out)
    return source, {c.name: c for split in get_args(Split) for c in source.clips(split)}


if __name__ == "__main__":
    write(Path(sys.argv[1]))
