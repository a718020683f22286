"""VoxCeleb, 1 and 2: faces in clips of talking people, as a tree of frames or as videos.

A tree of frames (extracted from the videos, landmarks by a detector):

    <root>/frames/<identity>/<video>/<clip>/<frame>.jpg
        or .png; the names sort by time, usually six digits: id10001/1zcIwhmdeo4/00001/000012.jpg
    <root>/landmarks/<identity>/<video>/<clip>/<frame>.npy
        float32 (68, 3): x, y in pixels of the frame, confidence in [0, 1], 0 = missing;
        or (68, 2): all confident
    <root>/masks/<identity>/<video>/<clip>/<frame>.png
        grey, size of the frame, as FaceBatch.masks: 255 = face seen, 0 = not
    <root>/splits/{train,val,test}.txt
        one identity a line; # starts a comment

* Pixels: origin at the top left corner of the frame, x right, y down, centre of the first pixel
  (0.5, 0.5). Landmarks: iBUG order.
* A frame without a landmark file is one in which the detector found no face: not used, counted.
* Without ``masks`` the masks are the hull of the landmarks with the forehead; where ``masks``
  exists, a frame that has none in it is not used (its occlusions would be taken for skin).
* Without ``splits`` the identities are divided by a hash of their names: 10 % val, 10 % test.
* Grey, palette, 16-bit and CMYK images are converted to RGB; alpha is dropped; images are turned as
  their EXIF entry says.

VoxCeleb1 has 1,251 people (22,496 videos, 153,516 clips), VoxCeleb2 6,112 (150,480; 1,128,246);
25 frames a second. https://www.robots.ox.ac.uk/~vgg/data/voxceleb: metadata CC BY 4.0, the videos
stay with their owners. Nagrani et al., Interspeech 2017; Chung et al., Interspeech 2018.

The releases themselves (mp4 and txt), where there is no folder ``frames``, are read directly if
landmarks lie beside the videos: ``datamodules.voxceleb_videos``. To train on them, and where there
are no landmarks, ``python -m datamodules prepare`` makes shards of them, which
``datamodules.shards`` reads.
"""

import logging
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from core.errors import DataError
from datamodules.base import (
    Clip,
    FaceDataModule,
    Fault,
    Frame,
    Split,
    UnusableFrameError,
)
from datamodules.listing import (
    IMAGES,
    contents,
    entries,
    listed_or_divided,
    load_image,
    require_folder,
    stem,
    with_suffix,
)
from datamodules.voxceleb_videos import VideoTree

log = logging.getLogger(__name__)

WANTED = "frames/<identity>/<video>/<clip>/<frame>.jpg with landmarks/.../<frame>.npy"
LICENCE = "research; see https://www.robots.ox.ac.uk/~vgg/data/voxceleb"


class VoxCeleb(FaceDataModule):
    """Clips of a tree of frames, laid out as this module's docstring says, or of videos.

    Args:
        root: the folder.
        whole_video: take the frames of a "clip" from all clips of the video (an ablation of CEST).
        identities: train with only the first so many people of the training split, sorted by name;
            None = all. Validation and test keep theirs.
        **options: of ``FaceDataModule``.
    """

    def __init__(
        self,
        root: Path,
        whole_video: bool = False,
        identities: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.root, self.whole_video, self.identities = Path(root), whole_video, identities

    def source(self) -> "FrameTree | VideoTree":
        """The tree, listed."""
        require_folder("VoxCeleb", self.root, f"{WANTED}, or with videos", LICENCE)
        if not (self.root / "frames").is_dir():
            return VideoTree.scan(self.root, self.whole_video, self.identities)
        return FrameTree.scan(self.root, self.whole_video, self.identities)


@dataclass(frozen=True)
class FrameTree:
    """The frames of a tree that have landmarks.

    Attributes:
        root: the folder.
        splits: the clips of each split, sorted by name.
        has_masks: there is a folder of masks.
        left_out: what the listing left out, by kind.
    """

    root: Path
    splits: dict[str, list[Clip]]
    has_masks: bool
    left_out: dict[str, int] = field(default_factory=dict)

    @classmethod
    def scan(
        cls, root: Path, whole_video: bool = False, identities: int | None = None
    ) -> "FrameTree":
        """List a tree.

        Args:
            root: the folder.
            whole_video: a clip of the result = all clips of a video.
            identities: only the first so many in the training split.

        Raises:
            AssetNotFoundError: there is no such folder.
            DataError: it holds something else, or the lists in ``splits`` overlap.
        """
        root = Path(root)
        require_folder("VoxCeleb frames", root, WANTED, LICENCE)
        left_out: Counter[str] = Counter()
        people, _ = entries(root / "frames", left_out)
        clips: dict[str, list[Clip]] = {}
        for person in tqdm(people, "listing frames", disable=None, leave=False):
            clips[person] = list(_clips_of(root, person, whole_video, left_out))
        if not any(clips.values()):
            raise DataError(_nothing_usable(root, left_out))
        for kind, count in left_out.items():
            log.warning("'%s': %d %s left out", root, count, kind)
        names = listed_or_divided(root / "splits", [name for name in people if clips[name]])
        names["train"] = names["train"][:identities]
        splits = {split: [c for name in names[split] for c in clips[name]] for split in names}
        return cls(root, splits, (root / "masks").is_dir(), dict(left_out))

    def __str__(self) -> str:
        return f"'{self.root}'"

    def clips(self, split: Split) -> list[Clip]:
        """The clips of a split."""
        return self.splits[split]

    def read(self, clip: Clip, index: int) -> Frame:
        """One frame.

        Raises:
            UnusableFrameError: a file is missing, damaged, or of another kind.
        """
        name = clip.frames[index].decode()
        landmarks, confidence = self.landmarks_of(clip, index)
        path = self.root / "frames" / clip.name / name
        image = load_image(path)
        mask = None
        if self.has_masks:
            path = self.root / "masks" / clip.name / f"{stem(name)}.png"
            mask = load_image(path, "L", Fault.MASK)
        return Frame(image, landmarks, confidence, mask)

    def landmarks_of(
        self, clip: Clip, index: int
    ) -> tuple[Float[Tensor, "68 2"], Float[Tensor, "68"]]:
        """Of one frame, as ``datamodules.yaw.LandmarkSource`` says."""
        name = clip.frames[index].decode()
        return _landmarks(self.root / "landmarks" / clip.name / f"{stem(name)}.npy")


def _landmarks(path: Path) -> tuple[Float[Tensor, "68 2"], Float[Tensor, "68"]]:
    try:
        array = np.load(path, allow_pickle=False)
    except Exception as error:  # NumPy's parsers raise a dozen kinds on damaged files
        raise UnusableFrameError(Fault.LANDMARKS, f"'{path}': {error}") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
        raise UnusableFrameError(Fault.LANDMARKS, f"'{path}': not an array of numbers")
    if array.shape not in ((68, 2), (68, 3)):
        raise UnusableFrameError(
            Fault.LANDMARKS, f"'{path}': shape {array.shape}, wanted (68, 3): x, y, confidence"
        )
    values = torch.from_numpy(array.astype(np.float32))
    return values[:, :2], values[:, 2] if values.shape[1] == 3 else torch.ones(68)


def _clips_of(root: Path, person: str, whole_video: bool, left_out: Counter[str]) -> Iterator[Clip]:
    """The clips of an identity that have frames with landmarks."""
    for video in entries(root / "frames" / person, left_out)[0]:
        name = f"{person}/{video}"
        frames = {
            clip: _frames_of(root, f"{name}/{clip}", left_out)
            for clip in entries(root / "frames" / name, left_out)[0]
        }
        if whole_video:
            frames = {"": [f"{clip}/{frame}" for clip, some in frames.items() for frame in some]}
        for clip, found in frames.items():
            if found:
                names = np.array([os.fsencode(frame) for frame in found])
                yield Clip(f"{name}/{clip}".rstrip("/"), person, names)


def _frames_of(root: Path, clip: str, left_out: Counter[str]) -> list[str]:
    """The frames of a clip that have landmarks, in their order."""
    images = with_suffix(entries(root / "frames" / clip, left_out)[1], IMAGES)
    files = entries(root / "landmarks" / clip, left_out)[1]
    known = {stem(name) for name in with_suffix(files, (".npy",))}
    found = [name for name in images if stem(name) in known]
    if len(found) < len(images):
        left_out["frames without a landmark file"] += len(images) - len(found)
    if not found:
        left_out["clips without a usable frame"] += 1
    return found


def _nothing_usable(root: Path, left_out: Counter[str]) -> str:
    """What is in the folder instead."""
    text = f"no frames in '{root}': found {contents(root)}, wanted {WANTED}"
    if left_out:
        text += "; left out: " + ", ".join(f"{count} {kind}" for kind, count in left_out.items())
    return text
