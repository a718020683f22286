"""Face crops in tar files with an index: what the preparation of a large dataset writes.

On disk:

    <root>/shards/<number>.tar       five digits; webdataset reads it as it is. For each frame:
        <clip>/<frame>.jpg               the crop, square, at least as wide as the training's
        <clip>/<frame>.landmarks.npy     float32 (68, 3): x, y in pixels of the crop, confidence in
                                         [0, 1], 0 = missing
        <clip>/<frame>.mask.png          grey, as FaceBatch.masks: 255 = face seen, 0 = not; may be
                                         absent: the hull of the landmarks
    <root>/index/frames.npy          one line a frame, ``shard_files.FRAME``: where it is
    <root>/index/names.npy           the names of the frames, bytes, "000012.jpg"
    <root>/index/clips.npy           one line a clip, sorted by name: name, identity (bytes, UTF-8),
                                     first, last: its part of the two files above
    <root>/index/shards.npy          the size of each tar file, bytes
    <root>/splits/{train,val,test}.txt
        one identity a line; # starts a comment; without them the identities are divided by a hash
        of their names: 10 % val, 10 % test

* Pixels: origin at the top left corner of the crop, centre of the first pixel (0.5, 0.5), y down.
  Landmarks: iBUG order.
* Of the index only the table of clips is mapped into memory, which all processes share; lines and
  names of frames are read when a frame is (mapped, they would come in pieces of up to 2 MB, and
  count). A frame is read by one call, at its place, whatever the order: the order of training is as
  random as for single files.
* Reading processes keep at most ``OPEN_FILES`` files open.

Written by ``python -m datamodules prepare``, with ``datamodules.shard_files``.
"""

import os
from bisect import bisect_left
from collections import OrderedDict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from core.errors import AssetNotFoundError, DataError
from datamodules.base import FaceDataModule
from datamodules.clips import Clip, ClipTable, Fault, Frame, Split, UnusableFrameError
from datamodules.listing import closed, contents, listed_or_divided
from datamodules.shard_files import FRAME, LANDMARK_BYTES

OPEN_FILES = 64
CLIP_COLUMNS = "name", "identity", "first", "last"
WANTED = "shards/00000.tar and index/frames.npy, as `python -m datamodules prepare` writes them"


class Shards(FaceDataModule):
    """Clips in shards, laid out as this module's docstring says.

    Args:
        root: the folder.
        identities: train with only the first so many people of the training split, sorted by name;
            None = all. Validation and test keep theirs.
        **options: of ``FaceDataModule``.
    """

    def __init__(self, root: Path, identities: int | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.root, self.identities = Path(root), identities

    def source(self) -> "ShardSource":
        """The shards, by their index."""
        return ShardSource(self.root, self.identities)


class ShardSource:
    """Reads frames out of shards. Costs little to pickle, and may be forked.

    Args:
        root: the folder.
        identities: only the first so many in the training split.

    Raises:
        AssetNotFoundError: there is no such folder, or it holds no index.
        DataError: the index is damaged or belongs to other shards.
    """

    def __init__(self, root: Path, identities: int | None = None) -> None:
        self.root, self.identities = Path(root), identities
        self._open()

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root, "identities": self.identities}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.root, self.identities = state["root"], state["identities"]
        self._open()

    def __str__(self) -> str:
        return f"'{self.root}'"

    def clips(self, split: Split) -> ClipTable:
        """The clips of a split, sorted by name."""
        return ClipTable(self._clips, self._splits[split], self._names.read)

    def read(self, clip: Clip, index: int) -> Frame:
        """One frame.

        Raises:
            UnusableFrameError: the shard is gone or damaged there.
        """
        place = self._place(clip, index)
        mask, begin = int(place["mask_bytes"]), int(place["landmarks"])
        content = self._read(place, _length(place), clip, index)
        values = np.frombuffer(content, np.float32, LANDMARK_BYTES // 4, begin).reshape(68, 3)
        colours = np.frombuffer(content, np.uint8, int(place["image"]))
        image = self._decoded(colours, cv2.IMREAD_COLOR_RGB, clip, index)
        seen = None
        if mask:
            grey = np.frombuffer(content, np.uint8, mask, int(place["mask"]))
            seen = self._decoded(grey, cv2.IMREAD_GRAYSCALE, clip, index)
        return Frame(image, torch.from_numpy(values[:, :2]), torch.from_numpy(values[:, 2]), seen)

    def landmarks_of(
        self, clip: Clip, index: int
    ) -> tuple[Float[Tensor, "68 2"], Float[Tensor, "68"]]:
        """Of one frame, as ``datamodules.yaw.LandmarkSource`` says."""
        place = self._place(clip, index)
        begin = int(place["landmarks"])
        content = self._read(place, begin + LANDMARK_BYTES, clip, index)
        values = np.frombuffer(content, np.float32, LANDMARK_BYTES // 4, begin).reshape(68, 3)
        return torch.from_numpy(values[:, :2]), torch.from_numpy(values[:, 2])

    def read_image(self, clip: Clip, index: int) -> UInt8[Tensor, "3 h w"]:
        """Only the image of a frame.

        Raises:
            UnusableFrameError: the shard is gone or damaged there.
        """
        place = self._place(clip, index)
        content = self._read(place, int(place["image"]), clip, index)
        return self._decoded(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB, clip, index)

    def _place(self, clip: Clip, index: int) -> np.void:
        """A frame's line of the index.

        Raises:
            UnusableFrameError: there is none, or it tells of bytes that are not in the shards.
        """
        name = clip.frames[index]
        place = self._line(clip.name.encode(), name)
        if place is not None and place["image"]:
            shard, end = int(place["shard"]), int(place["start"]) + _length(place)
            if shard < len(self._sizes) and end <= self._sizes[shard]:
                return place
        where = f"'{self.root / 'index'}', {clip.name}/{name.decode()}"
        raise UnusableFrameError(Fault.IMAGE, f"{where}: its line of the index is damaged or gone")

    def _line(self, clip: bytes, frame: bytes) -> np.void | None:
        """The one of these names, if there is one."""
        clips = self._clips["name"]
        row = bisect_left(clips, clip)
        if row == len(clips) or clips[row] != clip:
            return None
        first, last = int(self._clips["first"][row]), int(self._clips["last"][row])
        names = self._names.read(first, last)
        number = int(names.searchsorted(frame))
        if number == len(names) or names[number] != frame:
            return None
        return self._frames.read(first + number, first + number + 1)[0]

    def _read(self, place: np.void, count: int, clip: Clip, index: int) -> bytearray:
        try:
            return self._files.read(int(place["shard"]), int(place["start"]), count)
        except OSError as error:
            raise UnusableFrameError(Fault.IMAGE, f"{self._where(clip, index)}: {error}") from error

    def _decoded(
        self, content: UInt8[np.ndarray, " n"], kind: int, clip: Clip, index: int
    ) -> UInt8[Tensor, "c h w"]:
        """The pixels of a JPEG or PNG, a view of them as they lie in memory: channels last."""
        pixels = cv2.imdecode(content, kind)  # in two thirds of Pillow's time
        if pixels is None:
            fault = Fault.MASK if kind == cv2.IMREAD_GRAYSCALE else Fault.IMAGE
            raise UnusableFrameError(fault, f"{self._where(clip, index)}: cannot be decoded")
        image = torch.from_numpy(pixels)
        return image[None] if image.ndim == 2 else image.permute(2, 0, 1)

    def _where(self, clip: Clip, index: int) -> str:
        """A frame's name for messages."""
        path = self._files.path(self._place(clip, index)["shard"])
        return f"'{path}', {clip.name}/{clip.frames[index].decode()}"

    def _open(self) -> None:
        if why := closed(self.root / "index"):
            unfinished = ""
            if not closed(self.root / "shards"):
                unfinished = " A preparation that did not finish? Run its command again."
            raise AssetNotFoundError(
                "shards",
                f"'{self.root}' ({contents(self.root)}; index: {why})",
                f"Wanted {WANTED}.{unfinished}",
            )
        self._frames = _Lines(self.root / "index/frames.npy", FRAME)
        self._names = _Lines(self.root / "index/names.npy")
        # a plain view: slices of a memmap are slow to make
        self._clips = np.asarray(_mapped(self.root / "index/clips.npy", CLIP_COLUMNS))
        self._sizes = _mapped(self.root / "index/shards.npy").tolist()
        wanted = int(self._clips["last"].max())
        empty = self._clips["first"] >= self._clips["last"]
        if {len(self._frames), len(self._names)} != {wanted} or empty.any():
            raise DataError(
                f"'{self.root / 'index'}': {len(self._frames)} frames and {len(self._names)} names "
                f"for the clips' {wanted}: its files are not of one index"
            )
        if (self._clips["name"][1:] <= self._clips["name"][:-1]).any():
            raise DataError(
                f"'{self.root / 'index/clips.npy'}' is not sorted by name: copy the index again, "
                "or remove it and prepare it again"
            )
        self._files = _OpenFiles(self.root / "shards")
        for shard, size in enumerate(self._sizes):
            path = self._files.path(shard)
            got: int | str | None
            try:
                got = path.stat().st_size
            except OSError as error:
                got = error.strerror
            if got != size:
                raise DataError(
                    f"'{path}': {got}, wanted {size} bytes by the index: copy the shards again, or "
                    "remove shards and index and prepare them again"
                )
        self._splits = self._divided()

    def _divided(self) -> dict[str, Int64[np.ndarray, " _"]]:
        """The lines of each split's clips."""
        person = self._clips["identity"]
        starts = np.flatnonzero(np.append(True, person[1:] != person[:-1]))  # of somebody's clips
        people, number = np.unique(person[starts], return_inverse=True)
        known = [name.decode() for name in people.tolist()]
        division = listed_or_divided(self.root / "splits", known)
        division["train"] = division["train"][: self.identities]
        lengths = np.diff(np.append(starts, len(person)))
        rows = {}
        for split, names in division.items():
            chosen = np.isin(people, [name.encode() for name in names])
            rows[split] = np.flatnonzero(np.repeat(chosen[number], lengths))
        return rows


class _Lines:
    """The lines of one of the index's files, read when they are asked for; pickled by its path.

    Args:
        path: the .npy file.
        kind: of a line; None = any.

    Raises:
        DataError: it is something else.
    """

    def __init__(self, path: Path, kind: np.dtype | None = None) -> None:
        self._descriptor = -1
        array = _mapped(path)
        if kind and array.dtype != kind:
            raise DataError(f"'{path}': lines of {array.dtype}, wanted {kind}")
        self._path, self._kind, self._length = path, array.dtype, len(array)
        self._start = array.offset
        self._descriptor = os.open(path, os.O_RDONLY)

    def __reduce__(self) -> tuple[type, tuple[Path, np.dtype]]:
        return type(self), (self._path, self._kind)

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def __len__(self) -> int:
        return self._length

    def read(self, first: int, last: int) -> np.ndarray:
        """From one line to before another."""
        size = self._kind.itemsize
        content = os.pread(self._descriptor, (last - first) * size, self._start + first * size)
        return np.frombuffer(content, self._kind)


def _length(place: np.void) -> int:
    """Of a frame in its shard, bytes: to the end of image, landmarks and mask."""
    image, begin, mask = int(place["image"]), int(place["landmarks"]), int(place["mask_bytes"])
    return max(image, begin + LANDMARK_BYTES, int(place["mask"]) + mask if mask else 0)


def _mapped(path: Path, columns: tuple[str, ...] | None = None) -> np.memmap:
    """A file of the index, which has these columns, if any are named.

    Raises:
        DataError: it is something else.
    """
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # NumPy's parsers raise a dozen kinds on damaged files
        raise DataError(f"'{path}' is not part of an index of shards: {error}") from error
    if array.ndim != 1 or not len(array) or columns not in (None, array.dtype.names):
        raise DataError(
            f"'{path}': {array.dtype} {array.shape}, wanted a row of {columns or 'lines'}"
        )
    return array


class _OpenFiles:
    """The shards that were read last. Places are given with each read, so that processes that share
    a file do not disturb each other.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open: OrderedDict[int, int] = OrderedDict()  # descriptors, the last used last

    def __del__(self) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)

    def path(self, shard: int | np.integer) -> Path:
        return self.folder / f"{shard:05}.tar"

    def read(self, shard: int, start: int, count: int) -> bytearray:
        """So many bytes.

        Raises:
            OSError: the file is gone, cannot be read, or ends before.
        """
        descriptor = self._open.pop(shard, None)
        if descriptor is None:
            descriptor = os.open(self.path(shard), os.O_RDONLY)
        self._open[shard] = descriptor
        if len(self._open) > OPEN_FILES:
            os.close(self._open.popitem(last=False)[1])
        content = bytearray(count)
        got = os.preadv(descriptor, [content], start)
        if got < count:
            raise OSError(f"ends after {start + got} bytes, wanted {start + count}")
        return content
