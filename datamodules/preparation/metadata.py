r"""VoxCeleb's own metadata: which face of a whole video is meant, and who is in the official test.

The releases' metadata tell of each clip where its face is in the video of YouTube that it is from:

    <raw>/txt/<identity>/<video>/<clip>.txt         or dev/txt/..., test/txt/...; <video> = the
                                                    11 characters of YouTube
    <raw>/.../<video>.mp4                           the whole video, wherever below <raw>
    <raw>/txt/<identity>/<video>/<clip>.npz         optional: landmarks, one line for each line of
                                                    the .txt, ``datamodules.landmark_files``
    <raw>/vox1_meta.csv, vox2_meta.csv              optional: "Set" is dev or test

A .txt has a few lines of the form "key : value", a line "FRAME X Y W H", and one line a frame:
its number and the left, upper edge, width and height of the face's box. The columns are divided by
tabs, spaces or both.

* Numbers count frames of 25 a second from 0, the beginning of the whole video: 000131 is what it
  shows at 5.24 s, whatever its own number of frames a second. What is shown nearest to that time is
  taken.
* Boxes of VoxCeleb1 are in pixels of the video scaled to a height of 360; those of VoxCeleb2, in
  fractions of its width and height. A box of VoxCeleb1 is more than two pixels wide: that tells
  which. They are boxes of a face detector, neither of landmarks nor of a crop.
* "Offset" is by how much the sound is late; "Reference" is the name of the video; neither changes
  the numbers.

Official tests: VoxCeleb1's are the people id10270 to id10309 (40 of 1,251), VoxCeleb2's another 118
of 6,112. People of a folder ``test`` directly below ``<raw>``, as VoxCeleb2 is released, and those
whose "Set" is "test" become the split test; a tenth of the others, by a hash of their names, val.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int64

from core.errors import DataError
from datamodules.listing import divide

RATE = 25  # of the numbers, frames a second
HEIGHT = 360  # of the videos in whose pixels VoxCeleb1's boxes are
LARGEST_FRACTION = 2.0  # wider or higher boxes are in pixels
HEADER = ["FRAME", "X", "Y", "W", "H"]
LISTS = ("vox1_meta.csv", "vox2_meta.csv")


@dataclass(frozen=True)
class Track:
    """The face of a clip in its whole video.

    Attributes:
        numbers: of the frames, of 25 a second, rising.
        boxes: left, upper edge, width, height, as in the file.
    """

    numbers: Int64[np.ndarray, " n"]
    boxes: Float32[np.ndarray, "n 4"]

    def boxes_in(self, height: int, width: int) -> Float32[np.ndarray, "n 4"]:
        """Left, upper edge, width, height in pixels of the video, which has this size."""
        if self.boxes[:, 2:].max() > LARGEST_FRACTION:
            return self.boxes * np.float32(height / HEIGHT)
        return self.boxes * np.array([width, height, width, height], np.float32)


def read_track(path: Path) -> Track:
    """A file of the metadata.

    Raises:
        DataError: it is something else.
        OSError: it cannot be read.
    """
    try:
        lines = [line.split() for line in path.read_text().splitlines()]
        if HEADER not in lines:
            raise ValueError(f"no line {' '.join(HEADER)}")
        rows = [line for line in lines[lines.index(HEADER) + 1 :] if line]
        if not rows:
            raise ValueError("no frame in it")
        if odd := [row for row in rows if len(row) != len(HEADER)]:
            raise ValueError(f"a line {' '.join(odd[0])!r}, wanted {len(HEADER)} numbers")
        numbers = np.array([int(row[0]) for row in rows])
        boxes = np.array([row[1:] for row in rows], np.float32)
        if numbers[0] < 0 or (np.diff(numbers) <= 0).any():
            raise ValueError("the numbers of its frames do not rise")
        if not np.isfinite(boxes).all() or (boxes[:, 2:] <= 0).any():
            raise ValueError("a box without an area")
    except ValueError as error:  # UnicodeDecodeError is one
        raise DataError(f"'{path}' holds no boxes of VoxCeleb: {error}") from error
    return Track(numbers, boxes)


def official_test(raw: Path) -> set[str]:
    """Who is in the official test, by ``vox1_meta.csv`` and ``vox2_meta.csv`` in this folder.

    Of VoxCeleb1, whose first release called people by their names, both names.

    Raises:
        DataError: one of them is something else.
    """
    people: set[str] = set()
    for path in (raw / name for name in LISTS):
        if not path.is_file():
            continue
        try:
            lines = [re.split(r"[\t,]", line) for line in path.read_text().splitlines()]
        except UnicodeDecodeError as error:
            raise DataError(f"'{path}' is not a table of VoxCeleb: {error}") from error
        table = [[field.strip() for field in line] for line in lines if len(line) > 2]
        if not table or "Set" not in table[0]:
            raise DataError(f"'{path}' is not a table of VoxCeleb: no column 'Set'")
        column = table[0].index("Set")
        for line in table[1:]:
            if line[column:] and line[column] == "test":
                people |= set(line[:2])
    return people


def split_officially(people: set[str], test: set[str]) -> dict[str, list[str]]:
    """Those of the official test, and a division of the others: a tenth val, the rest train."""
    others = divide(people - test)
    train = sorted(others["train"] + others["test"])
    return {"train": train, "val": others["val"], "test": sorted(people & test)}
