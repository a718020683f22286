"""MICC Florence 2D/3D in miniature: scans, GANFit's landmarks and videos of two subjects.

Quirks: subject_02 has no frontal2; one extension is .mjpg, one .mjpeg; in the last frame of each
video no face was found. ``<root>/frames`` holds the landmarks of the videos' frames.
``python -m tests.fakes.micc DIR`` writes it.
"""

import json
import sys
from pathlib import Path

import av
import numpy as np
from PIL import Image

from benchmarks.micc import VIDEOS
from benchmarks.predictions import FaceMesh
from tests.fakes import scans

SUBJECTS, FRAMES, SIZE = ("subject_01", "subject_02"), 3, 64


def scan(number: int) -> FaceMesh:
    """The face of a subject: the second one is 5 % larger."""
    return scans.face().scaled((1.0, 1.05)[number])


def picture() -> np.ndarray:
    """Of a scan: red grows to the right, green downwards."""
    ramp = np.linspace(0, 255, 128).round().astype(np.uint8)
    return np.stack([*np.meshgrid(ramp, ramp), np.full((128, 128), 100, np.uint8)], -1)


def write(root: Path) -> Path:
    """Three videos of three frames each and one or two scans for each subject."""
    for number, subject in enumerate(SUBJECTS):
        for name in ("frontal1", "frontal2")[: 2 - number]:
            folder = root / subject / "Model" / name / "obj"
            mesh = scan(number) if name == "frontal1" else scans.face(61, 81).scaled(1.1)
            scans.write_obj(folder / f"11092015045{number}.obj", mesh)
            (folder / "scan.mtl").write_text("newmtl skin\nmap_Kd scan.png\n")
            Image.fromarray(picture()).save(folder / "scan.png")
            points = {"points": mesh.landmarks.tolist(), "connectivity": [[0, 1]]}
            content = {"groups": {"LJSON": {"labels": [], "landmarks": points}}, "version": 3}
            (folder / f"11092015045{number}.ljson").write_text(json.dumps(content))
        for k, video in enumerate(VIDEOS.values()):
            _video(root / subject / "Video" / f"{video}.{('mjpg', 'mjpeg', 'mjpeg')[k]}")
            path = root / "frames" / subject / f"{video}.npz"
            path.parent.mkdir(parents=True, exist_ok=True)
            spread = np.random.default_rng(k).uniform(10, 50, (FRAMES, 68, 3))
            np.savez(path, landmarks=spread, valid=np.arange(FRAMES) < FRAMES - 1)
    return root


def _video(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format="avi") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = SIZE, SIZE, "yuvj420p"
        for k in range(FRAMES):
            pixels = np.full((SIZE, SIZE, 3), 80 + 40 * k, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


if __name__ == "__main__":
    print(write(Path(sys.argv[1])))
