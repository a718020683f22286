"""300-VW: talking people in 114 videos with 68 landmarks in every frame, as released.

On disk:

    <root>/<video>/vid.avi
        <video>: three digits, e.g. 001
    <root>/<video>/annot/<frame>.pts
        six digits; 000001 is the first frame of the video. Text: ``version: 1``, ``n_points:  68``,
        ``{``, 68 lines ``x y``, ``}``; the centre of the first pixel is (1, 1)
    <root>/<video>/frames/<frame>.png
        or .jpg; optional: the frames, extracted by ``ffmpeg -i vid.avi frames/%06d.png``. Where the
        folder exists vid.avi is not read

* The official parts: 50 videos to train with; 31, 19 and 14 of three categories to test with: well
  lit; in unconstrained light; completely unconstrained. There is none to validate with: a tenth of
  the training videos by a hash of their names.
* Who is in a video is not said: each video counts as one identity.
* Random frames of a vid.avi are found by seeking the key frame before it and decoding from there,
  which takes as long as it takes to decode half the distance between key frames. To train on random
  frames, extract them: this also spares the training a video that makes the decoder crash, which
  would end it.

https://ibug.doc.ic.ac.uk/resources/300-VW: on request, non-commercial research. Shen et al., The
first facial landmark tracking in-the-wild challenge, ICCV workshops 2015.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from torch import Tensor

from datamodules.base import Clip, FaceDataModule, Fault, Frame
from datamodules.listing import (
    IMAGES,
    Listing,
    clips_by_split,
    divide,
    entries,
    face_frame,
    faulty,
    load_image,
    load_landmarks,
    report,
    require_folder,
    stem,
    with_suffix,
)
from datamodules.video import read_frame

TRAIN = (
    "009", "059", "002", "033", "020", "035", "018", "119", "120", "025", "205", "047", "007",
    "013", "004", "143", "034", "028", "053", "225", "041", "010", "031", "046", "049", "011",
    "027", "003", "016", "160", "113", "001", "029", "043", "112", "138", "144", "204", "057",
    "015", "044", "048", "017", "115", "223", "037", "123", "019", "039", "022",
)  # fmt: skip
WELL_LIT = (
    "114", "124", "125", "126", "150", "158", "401", "402", "505", "506", "507", "508", "509",
    "510", "511", "514", "515", "518", "519", "520", "521", "522", "524", "525", "537", "538",
    "540", "541", "546", "547", "548",
)  # fmt: skip
UNCONSTRAINED_LIGHT = (
    "203", "208", "211", "212", "213", "214", "218", "224", "403", "404", "405", "406", "407",
    "408", "409", "412", "550", "551", "553",
)  # fmt: skip
UNCONSTRAINED = (
    "410", "411", "516", "517", "526", "528", "529", "530", "531", "533", "557", "558", "559",
    "562",
)  # fmt: skip
TEST = {1: WELL_LIT, 2: UNCONSTRAINED_LIGHT, 3: UNCONSTRAINED}
WANTED = "<video>/vid.avi and <video>/annot/<frame>.pts, <video> = 001, 002, ..."


class VW300(FaceDataModule):
    """300-VW, laid out as this module's docstring says.

    Args:
        root: the folder.
        categories: of the test.
        split_seed: of the choice of the videos to validate with.
        **options: of ``FaceDataModule``.
    """

    def __init__(
        self,
        root: Path,
        categories: tuple[Literal[1, 2, 3], ...] = (1, 2, 3),
        split_seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.root, self.categories, self.split_seed = Path(root), tuple(categories), split_seed

    def source(self) -> "AnnotatedVideos":
        """The videos, listed."""
        return AnnotatedVideos.scan(self.root, self.categories, self.split_seed)


@dataclass(frozen=True)
class AnnotatedVideos(Listing):
    """The frames that have landmarks; a video is a clip."""

    @classmethod
    def scan(
        cls, root: Path, categories: tuple[Literal[1, 2, 3], ...] = (1, 2, 3), split_seed: int = 0
    ) -> "AnnotatedVideos":
        """List the videos.

        Args:
            root: the folder.
            categories: of the test.
            split_seed: of the choice of the videos to validate with.

        Raises:
            AssetNotFoundError: there is no such folder.
            DataError: it holds something else.
        """
        require_folder("300-VW", root, WANTED, "non-commercial research; see ibug.doc.ic.ac.uk")
        left_out: Counter[str] = Counter()
        official = {*TRAIN, *WELL_LIT, *UNCONSTRAINED_LIGHT, *UNCONSTRAINED}
        clips = []
        for name in entries(root, left_out)[0]:
            if name not in official:
                left_out["folders that are no video of 300-VW"] += 1
            elif len(frames := _frames_of(root / name, left_out)):
                clips.append(Clip(name, name, frames))
        report(root, len(clips), WANTED, left_out)
        own = divide([clip.name for clip in clips if clip.name in TRAIN], split_seed)
        people = {
            "train": own["train"] + own["test"],  # the official test videos take its place
            "val": own["val"],
            "test": [name for category in categories for name in TEST[category]],
        }
        return cls(root, clips_by_split(clips, people), dict(left_out))

    def read(self, clip: Clip, index: int) -> Frame:
        """One frame.

        Raises:
            UnusableFrameError: a file is missing, damaged, or of another kind.
        """
        name = clip.frames[index].decode()
        folder = self.root / clip.name
        points, confidence = self.landmarks_of(clip, index)
        if not name.endswith(".pts"):
            return face_frame(load_image(folder / "frames" / name), points, confidence)
        with faulty(Fault.IMAGE):
            image = read_frame(folder / "vid.avi", int(stem(name)) - 1)
        return face_frame(image, points, confidence)

    def landmarks_of(
        self, clip: Clip, index: int
    ) -> tuple[Float[Tensor, "k 2"], Float[Tensor, "k"]]:
        """Of one frame, as ``datamodules.yaw.LandmarkSource`` says."""
        name = stem(clip.frames[index].decode())
        return load_landmarks(self.root / clip.name / "annot" / f"{name}.pts")


def _frames_of(folder: Path, left_out: Counter[str]) -> np.ndarray:
    """Names of the frames with landmarks: of their images or, in a video, of their landmarks."""
    known = with_suffix(entries(folder / "annot", left_out)[1], (".pts",))
    images = with_suffix(entries(folder / "frames", left_out)[1], IMAGES)
    found = [name for name in known if stem(name).isdecimal() and int(stem(name)) > 0]
    if images:
        landmarks = {stem(name) for name in found}
        found = [name for name in images if stem(name) in landmarks]
        if len(found) < len(images):
            left_out["frames without landmarks"] += len(images) - len(found)
    elif found and not (folder / "vid.avi").is_file():
        left_out["videos without vid.avi"] += 1
        return np.array([], "S")
    if not found:
        left_out["videos without landmarks"] += 1
    return np.array([name.encode() for name in found])
