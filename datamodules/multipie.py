"""Multi-PIE: 337 people seen by cameras all around them, under a lamp after the other.

On disk, in any folders; what an image shows is in its name alone:

    <root>/.../<subject>_<session>_<recording>_<camera>_<light>.png
        or .jpg; three, two, two, three and two digits, more may follow them after a "_":
        session01/multiview/001/01/05_1/001_01_01_051_07.png, as released,
        or 001_01_01_010_00_crop_128.png in one folder
    <landmarks>/<path of the image below the root, without suffix>.npy
        or .txt, or all in one folder under the images' names: 68 points, or a detector's five, in
        pixels of the image, as datamodules/landmark_files.py says. They do not come with the data:
        a detector has to find them first
    <root>/splits/{train,val,test}.txt
        optional: one subject a line, as 001; # starts a comment

* A clip = subject, session and recording, "001/01/01": one expression, in up to 13 views times 20
  lights. Images of one light are of the same instant in all views; a recording's lights follow each
  other within a second.
* Yaws are those of the cameras, as the subjects look at camera 051. Their sign is that of the lists
  in public use, where 110 ... 240 go from -90 to 90 degrees; it may be opposite to that of
  ``core.rotation``. The cameras 191 and 081, above the subject, are left out.
* Lights 00 and 19: no flash; 01 ... 18: the flash of that number.
* Recording 01 is neutral in each session; 02: smile, surprise, smile, neutral in sessions 1 ... 4;
  03: squint, disgust, scream in sessions 2 ... 4.
* ``highres`` images have other names and are not used. Of two images of the same shot the first is
  taken.

More than 750,000 images of 640 x 480 pixels, 305 GB. Carnegie Mellon University: signed licence, on
a disk, may not be passed on. Gross et al., Multi-PIE, Image and Vision Computing 2010.
"""

import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from core.errors import AssetNotFoundError
from datamodules.base import Clip, FaceDataModule, Frame
from datamodules.listing import (
    IMAGES,
    Listing,
    clips_by_split,
    closed,
    face_frame,
    first_file,
    listed_or_divided,
    load_image,
    load_landmarks,
    report,
    require_folder,
    stem,
    walk,
    with_suffix,
)

YAWS = {
    "240": 90,
    "010": 75,
    "200": 60,
    "190": 45,
    "041": 30,
    "050": 15,
    "051": 0,
    "140": -15,
    "130": -30,
    "080": -45,
    "090": -60,
    "120": -75,
    "110": -90,
}
ABOVE = ("191", "081")
SHOT = re.compile(r"(\d{3})_(\d\d)_(\d\d)_(\d{3})_(\d\d)(?:_.*)?")
WANTED = "<subject>_<session>_<recording>_<camera>_<light>.png, as 001_01_01_051_07.png"
LICENCE = "signed; see https://www.cs.cmu.edu/afs/cs/project/PIE/MultiPie/Multi-Pie/Home.html"


class MultiPIE(FaceDataModule):
    """Multi-PIE, laid out as this module's docstring says.

    Args:
        root: the folder.
        landmarks: folder of the landmarks; None: ``<root>/landmarks``.
        split_seed: of the division of the subjects into training, validation and test, 80 : 10 :
            10, where there are no lists.
        **options: of ``FaceDataModule``.
    """

    def __init__(
        self, root: Path, landmarks: Path | None = None, split_seed: int = 0, **options: Any
    ) -> None:
        super().__init__(**options)
        self.root, self.split_seed = Path(root), split_seed
        self.landmarks = Path(landmarks) if landmarks else self.root / "landmarks"

    def source(self) -> "Shots":
        """The images, listed."""
        return Shots.scan(self.root, self.landmarks, self.split_seed)


def _has_shots(root: Path) -> bool:
    return any(
        SHOT.fullmatch(stem(name))
        for _, files in walk(root, Counter())
        for name in with_suffix(files, IMAGES)
    )


@dataclass(frozen=True)
class Shots(Listing):
    """The images that have landmarks; frames are paths below the root.

    Attributes:
        landmarks: the folder of their landmarks.
    """

    landmarks: Path

    @classmethod
    def scan(cls, root: Path, landmarks: Path, split_seed: int = 0) -> "Shots":
        """List the folders.

        Args:
            root: the folder of the images.
            landmarks: that of their landmarks.
            split_seed: of the division where there are no lists.

        Raises:
            AssetNotFoundError: there is no such folder.
            DataError: it holds something else, or the lists in ``splits`` overlap.
        """
        require_folder("Multi-PIE", root, WANTED, LICENCE)
        if why := closed(landmarks):
            if not _has_shots(root):
                report(root, 0, WANTED, Counter())
            raise AssetNotFoundError(
                "Landmarks for Multi-PIE",
                f"'{landmarks}' ({why})",
                "Let a detector find them, 68 points for each image, as 001_01_01_051_07.npy; give "
                "their folder as --data.landmarks.",
            )
        left_out: Counter[str] = Counter()
        known = {
            f"{folder}/{stem(name)}".lstrip("/")
            for folder, files in walk(landmarks, left_out)
            for name in with_suffix(files, (".npy", ".txt"))
        }
        recordings: dict[str, dict[_Shot, str]] = defaultdict(dict)
        for folder, files in walk(root, left_out):
            for name in with_suffix(files, IMAGES):
                path = f"{folder}/{name}".lstrip("/")
                recording, shot, fault = _parse(stem(name))
                if not fault and known.isdisjoint((stem(path), stem(name))):
                    fault = "images without landmarks"
                if not fault and shot in recordings[recording]:
                    fault = "further images of the same shot"
                if fault:
                    left_out[fault] += 1
                else:
                    recordings[recording][shot] = path
        clips = [_clip(name, shots) for name, shots in sorted(recordings.items()) if shots]
        report(root, len(clips), WANTED, left_out)
        people = listed_or_divided(root / "splits", sorted({c.identity for c in clips}), split_seed)
        return cls(root, clips_by_split(clips, people), dict(left_out), landmarks)

    def read(self, clip: Clip, index: int) -> Frame:
        """One frame.

        Raises:
            UnusableFrameError: a file is missing, damaged, or of another kind.
        """
        path = Path(clip.frames[index].decode())
        image = load_image(self.root / path)
        files = [
            self.landmarks / f"{name}{suffix}"
            for name in (path.with_suffix(""), path.stem)
            for suffix in (".npy", ".txt")
        ]
        found = first_file(files) or files[0]
        return face_frame(image, *load_landmarks(found))


class _Shot(NamedTuple):
    """What tells the images of a recording apart; they are sorted by it."""

    light: int
    yaw: int


def _parse(name: str) -> tuple[str, _Shot, str]:
    """Recording and shot that a name without suffix tells, or why it is not used."""
    nothing = _Shot(0, 0)
    if not (match := SHOT.fullmatch(name)):
        return "", nothing, "images of other names"
    subject, session, recording, camera, light = match.groups()
    if camera in ABOVE:
        return "", nothing, "images from above"
    if camera not in YAWS:
        return "", nothing, "images of unknown cameras"
    return f"{subject}/{session}/{recording}", _Shot(int(light), YAWS[camera]), ""


def _clip(name: str, shots: dict[_Shot, str]) -> Clip:
    order = sorted(shots)
    paths = np.array([shots[shot].encode() for shot in order])
    lights, yaws = np.array(order).T
    return Clip(name, name.partition("/")[0], paths, yaws.astype(np.float64), lights)
