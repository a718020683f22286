"""CelebA: 202,599 photographs of 10,177 celebrities with five landmarks, in its release's layout.

On disk; images and lists may also lie in the release's folders ``Img``, ``Anno`` and ``Eval``:

    <root>/img_align_celeba/000001.jpg ... 202599.jpg
        178 x 218 pixels, eyes in the same place
    <root>/img_celeba/000001.jpg ...
        the photographs that they were cut out of
    <root>/list_landmarks_align_celeba.txt, list_landmarks_celeba.txt
        of the aligned images and of the photographs. Line 1: number of images; line 2: names of the
        columns; then ``000001.jpg`` and ten numbers: x, y of the image-left eye, the image-right
        eye, the nose, the image-left and the image-right corner of the mouth
    <root>/list_eval_partition.txt
        ``000001.jpg 0``: 0 = train, 1 = val, 2 = test; no header
    <root>/identity_CelebA.txt
        ``000001.jpg 2880``; no header; optional: without it each image is a person of its own
    <landmarks>/000001.npy
        or .txt; optional: 68 points found by a detector, pixels of the image used, as
        datamodules/landmark_files.py says

* Landmarks are whole pixels; whether they count from 0 or from 1 is not said. They are taken as
  they are, which is wrong by half a pixel at most.
* Frames that have five points only are cropped by them; their 68 landmarks have confidence 0, and
  their mask is 1 all over the image.
* The partition divides people: 162,770 images to train, 19,867 to validate, 19,962 to test with.

https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html: non-commercial research. Liu et al., Deep
learning face attributes in the wild, ICCV 2015.
"""

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float

from core.errors import DataError
from datamodules.base import Clip, FaceDataModule, Fault, Frame, Split, UnusableFrameError
from datamodules.listing import (
    Listing,
    entries,
    face_frame,
    first_file,
    image_clips,
    load_image,
    load_landmarks,
    report,
    require_folder,
    stem,
    with_suffix,
)

PLACES = ("", "Img", "Anno", "Eval")
FOLDERS = {True: "img_align_celeba", False: "img_celeba"}
LISTS = {True: "list_landmarks_align_celeba.txt", False: "list_landmarks_celeba.txt"}
COLUMNS = 10


class CelebA(FaceDataModule):
    """CelebA, laid out as this module's docstring says.

    Args:
        root: the folder.
        aligned: the images cut out, not the whole photographs.
        landmarks: folder with files of 68 points; images without one are used with five.
        clips: "image": each image is a clip; "identity": all images of a person.
        **options: of ``FaceDataModule``.
    """

    def __init__(
        self,
        root: Path,
        aligned: bool = True,
        landmarks: Path | None = None,
        clips: Literal["image", "identity"] = "image",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.root, self.aligned, self.clips = Path(root), aligned, clips
        self.landmarks = Path(landmarks) if landmarks else None

    def source(self) -> "Celebrities":
        """The lists, read."""
        return Celebrities.scan(self.root, self.aligned, self.landmarks, self.clips)


@dataclass(frozen=True)
class Celebrities(Listing):
    """The images that are there and have landmarks.

    Attributes:
        images: their folder.
        names: of the images with five points, sorted, as bytes.
        points: theirs.
        landmarks: folder of the 68 points.
    """

    images: Path
    names: np.ndarray
    points: Float[np.ndarray, "n 5 2"]
    landmarks: Path | None

    @classmethod
    def scan(
        cls,
        root: Path,
        aligned: bool = True,
        landmarks: Path | None = None,
        clips: Literal["image", "identity"] = "image",
    ) -> "Celebrities":
        """Read the lists.

        Args:
            root: the folder.
            aligned: the images cut out, not the whole photographs.
            landmarks: folder of the 68 points.
            clips: what is a clip.

        Raises:
            AssetNotFoundError: there is no such folder.
            DataError: images or lists are missing or are something else.
        """
        wanted = f"{FOLDERS[aligned]}/000001.jpg, {LISTS[aligned]}, list_eval_partition.txt"
        require_folder("CelebA", root, wanted, "non-commercial research; see mmlab.ie.cuhk.edu.hk")
        left_out: Counter[str] = Counter()
        folder = _find(root, FOLDERS[aligned])
        there = set(with_suffix(entries(folder, left_out)[1], (".jpg", ".png")))
        report(root, len(there), wanted, left_out)
        names, points = _points(_find(root, LISTS[aligned]))
        partition = _table(_find(root, "list_eval_partition.txt"))
        people = _table(path) if (path := _find(root, "identity_CelebA.txt")).is_file() else {}
        wide = [] if landmarks is None else entries(landmarks, left_out)[1]
        known = {name.decode() for name in names} | {f"{stem(name)}.jpg" for name in wide}
        if absent := len(partition.keys() - there):
            left_out["listed images that are not there"] = absent
        found: dict[str, list[tuple[str, str]]] = {split: [] for split in get_args(Split)}
        parts = dict(zip("012", get_args(Split), strict=True))
        for name in sorted(there):
            split = parts.get(partition.get(name, ""))
            if split is None:
                left_out["images of no split"] += 1
            elif name not in known:
                left_out["images without landmarks"] += 1
            else:
                found[split].append((people.get(name, stem(name)), name))
        report(root, sum(map(len, found.values())), wanted, left_out)
        splits = {split: image_clips(some, clips == "identity") for split, some in found.items()}
        return cls(root, splits, dict(left_out), folder, names, points, landmarks)

    def read(self, clip: Clip, index: int) -> Frame:
        """One frame.

        Raises:
            UnusableFrameError: a file is missing, damaged, or of another kind.
        """
        name = clip.frames[index]
        image = load_image(self.images / name.decode())
        if self.landmarks:
            files = [self.landmarks / f"{stem(name.decode())}{end}" for end in (".npy", ".txt")]
            if file := first_file(files):
                return face_frame(image, *load_landmarks(file))
        row = np.searchsorted(self.names, name)
        if row == len(self.names) or self.names[row] != name:
            raise UnusableFrameError(Fault.LANDMARKS, f"{name.decode()} has no landmarks any more")
        return face_frame(image, torch.from_numpy(self.points[row]), torch.ones(5))


def _find(root: Path, name: str) -> Path:
    """Where a list or folder of the release lies; if it is nowhere, where it should."""
    paths = [root / place / name for place in PLACES]
    # os.path, for which nothing is in a closed folder; Path.exists raises there
    return next((path for path in paths if os.path.exists(path)), paths[0])  # noqa: PTH110


def _lines(path: Path) -> list[list[str]]:
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"CelebA's list '{path}' cannot be read: {error}. Get it from the release's Anno or "
            "Eval folder"
        ) from error
    return [line.split() for line in lines if line.strip()]


def _table(path: Path) -> dict[str, str]:
    """The second column by the first."""
    rows = _lines(path)
    if bad := next((row for row in rows if len(row) != 2), None):
        raise DataError(f"'{path}' has the line {' '.join(bad)!r}, wanted '000001.jpg <number>'")
    return {name: value for name, value in rows}


def _points(path: Path) -> tuple[np.ndarray, Float[np.ndarray, "n 5 2"]]:
    """Names, sorted, and the five points of each."""
    rows = _lines(path)
    head, body = rows[:2], rows[2:]
    if len(head) < 2 or len(head[0]) != 1 or len(head[1]) != COLUMNS:
        raise DataError(
            f"'{path}' begins with {[' '.join(row)[:40] for row in head]}, wanted the number of "
            f"images and then the names of {COLUMNS} columns"
        )
    if head[0][0] != str(len(body)):
        raise DataError(f"'{path}' announces {head[0][0]} images but has {len(body)}; get it anew")
    if bad := next((row for row in body if len(row) != 1 + COLUMNS), None):
        raise DataError(
            f"'{path}' has the line {' '.join(bad)[:80]!r}, wanted a name and {COLUMNS} numbers"
        )
    try:
        numbers = np.array([row[1:] for row in body], np.float32).reshape(-1, 5, 2)
    except ValueError as error:
        raise DataError(f"'{path}' holds something else than numbers: {error}") from error
    names = np.array([row[0].encode() for row in body], "S")
    order = np.argsort(names)
    return names[order], numbers[order]
