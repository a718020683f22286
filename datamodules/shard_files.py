"""The files of ``datamodules.shards``, as they are written."""

import io
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from core.errors import DataError

BLOCK = 512  # of a tar file
LANDMARK_BYTES = 68 * 3 * 4

# Where a frame is: from ``start`` in its shard on, ``image`` bytes of JPEG; ``landmarks`` and
# ``mask`` are the distances from there to the numbers of the landmarks and to the PNG.
FRAME = np.dtype(
    [
        ("start", "<u8"),
        ("shard", "<u4"),
        ("image", "<u4"),
        ("landmarks", "<u4"),
        ("mask", "<u4"),
        ("mask_bytes", "<u4"),  # 0 = no mask
    ]
)

# In the header of a file: where its name ends, 11 octal digits of its size, and of a checksum 6.
NAME_BYTES, SIZE_AT, CHECKSUM_AT = 100, 124, 148
EMPTY = tarfile.TarInfo("").tobuf(tarfile.GNU_FORMAT)
AFTER_NAME, AFTER_SIZE = EMPTY[NAME_BYTES:SIZE_AT], EMPTY[SIZE_AT + 11 : CHECKSUM_AT]
AFTER_CHECKSUM = EMPTY[CHECKSUM_AT + 6 :]
OTHERS_SUM = sum(AFTER_NAME + AFTER_SIZE + AFTER_CHECKSUM[2:]) + 8 * ord(" ")  # the sum's own place


@dataclass(frozen=True)
class StoredFrame:
    """A frame as it is written.

    Attributes:
        name: without suffix, "000012".
        image: JPEG.
        landmarks: (68, 3) x, y, confidence.
        mask: PNG; None: the hull of the landmarks.
    """

    name: str
    image: bytes
    landmarks: np.ndarray
    mask: bytes | None = None


class ShardWriter:
    """Writes clips into a tar file and remembers where.

    The same clips give the same bytes, whenever and by whom they are written.

    Args:
        file: is written to from its beginning.
        shard: its number.
    """

    def __init__(self, file: IO[bytes], shard: int) -> None:
        self.file, self.size = file, 0
        self.shard = shard
        array = io.BytesIO()
        np.save(array, np.empty((68, 3), "<f4"))
        self.npy_header = array.getvalue()[:-LANDMARK_BYTES]
        self.frames: list[tuple[int, ...]] = []
        self.names: list[bytes] = []
        self.clips: list[tuple[bytes, bytes, int, int]] = []

    def add(self, clip: str, identity: str, frames: Iterable[StoredFrame]) -> int:
        """A clip with its frames, in the order of their names; none = it is left out.

        Args:
            clip: unique in the dataset, "id10001/video/00001".
            identity: the person.
            frames: may be made while they are written.

        Returns:
            How many frames there were.
        """
        first = len(self.frames)
        for frame in frames:
            stem = f"{clip}/{frame.name}"
            start = self._member(f"{stem}.jpg", frame.image)
            numbers = frame.landmarks.astype("<f4").tobytes()
            assert len(numbers) == LANDMARK_BYTES
            content = self.npy_header + numbers
            end = self._member(f"{stem}.landmarks.npy", content) + len(content)
            mask = self._member(f"{stem}.mask.png", frame.mask) - start if frame.mask else 0
            landmarks = end - LANDMARK_BYTES - start
            sizes = len(frame.image), landmarks, mask, len(frame.mask or b"")
            self.frames.append((start, self.shard, *sizes))
            self.names.append(f"{frame.name}.jpg".encode())
        if len(self.frames) > first:
            self.clips.append((clip.encode(), identity.encode(), first, len(self.frames)))
        return len(self.frames) - first

    def close(self) -> dict[str, np.ndarray]:
        """End the file; returns this shard's part of the index, to be given to ``write_index``."""
        end = self.size + 2 * BLOCK
        self.file.write(bytes(end + -end % tarfile.RECORDSIZE - self.size))
        return {
            "frames": np.array(self.frames, FRAME),
            "names": np.array(self.names, "S"),
            "clips": _clip_table(self.clips),
        }

    def _member(self, name: str, content: bytes) -> int:
        """Add a file; returns where its content begins."""
        header = _header(name, len(content))
        start = self.size + len(header)
        self.size = start + len(content) + -len(content) % BLOCK
        self.file.write(b"".join((header, content, bytes(-len(content) % BLOCK))))
        return start


def write_index(folder: Path, parts: Sequence[dict[str, np.ndarray]], sizes: Sequence[int]) -> None:
    """Join the shards' parts to one index.

    Args:
        folder: where to; is made.
        parts: of ``ShardWriter.close``, in the order of the shards.
        sizes: of the tar files, bytes.

    Raises:
        DataError: there is no clip, or two of the same name.
    """
    first = np.cumsum([0, *(len(part["frames"]) for part in parts)])
    clips = np.concatenate([part["clips"] for part in parts])
    offset = np.repeat(first[:-1], [len(part["clips"]) for part in parts])
    clips["first"] += offset.astype(np.uint64)
    clips["last"] += offset.astype(np.uint64)
    clips = clips[np.argsort(clips["name"], kind="stable")]
    if not len(clips):
        raise DataError("no frame was good enough for a clip; report.json says why")
    twice = clips["name"][1:][clips["name"][1:] == clips["name"][:-1]]
    if len(twice):
        raise DataError(f"two clips are called '{twice[0].decode()}'")
    folder.mkdir(parents=True)
    np.save(folder / "frames.npy", np.concatenate([part["frames"] for part in parts]))
    np.save(folder / "names.npy", np.concatenate([part["names"] for part in parts]))
    np.save(folder / "clips.npy", clips)
    np.save(folder / "shards.npy", np.array(sizes, np.uint64))


def _header(name: str, size: int) -> bytes:
    """What ``tarfile`` puts before a file of this name, in a fifth of its time, which would be a
    twentieth of what a frame takes: of most headers only name, size and checksum differ.
    """
    encoded = name.encode("utf-8", "surrogateescape")
    if len(encoded) > NAME_BYTES or size >= 8**11:
        entry = tarfile.TarInfo(name)
        entry.size = size
        return entry.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")
    digits = b"%011o" % size
    checksum = b"%06o" % (OTHERS_SUM + sum(encoded) + sum(digits))
    parts = encoded.ljust(NAME_BYTES, b"\0"), AFTER_NAME, digits, AFTER_SIZE, checksum
    return b"".join(parts) + AFTER_CHECKSUM


def _clip_table(clips: list[tuple[bytes, bytes, int, int]]) -> np.ndarray:
    name = max((len(clip[0]) for clip in clips), default=1)
    identity = max((len(clip[1]) for clip in clips), default=1)
    kind = [("name", f"S{name}"), ("identity", f"S{identity}")]
    return np.array(clips, np.dtype([*kind, ("first", "<u8"), ("last", "<u8")]))
