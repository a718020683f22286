"""What a dataset gives: clips, their frames, and why a frame cannot be used."""

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, overload, runtime_checkable

import numpy as np
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

Split = Literal["train", "val", "test"]


class Fault(enum.IntEnum):
    """Why a frame cannot be used."""

    IMAGE = 1
    LANDMARKS = 2
    NOT_FINITE = 3
    OUTSIDE = 4
    NO_FACE = 5
    MASK = 6
    MASK_SIZE = 7


FAULTS = {
    Fault.IMAGE: "image cannot be read",
    Fault.LANDMARKS: "landmarks cannot be read",
    Fault.NOT_FINITE: "landmarks are not finite",
    Fault.OUTSIDE: "landmarks are outside the image",
    Fault.NO_FACE: "too few landmarks, or all in one place",
    Fault.MASK: "mask is missing or cannot be read",
    Fault.MASK_SIZE: "mask has another size than the image",
}


class UnusableFrameError(Exception):
    """Raised by a ``ClipSource``; the frame is left out, counted and, the first of a kind, logged.

    Args:
        fault: the kind.
        message: which file, got and wanted.
    """

    def __init__(self, fault: Fault, message: str) -> None:
        super().__init__(message)
        self.fault = fault


@dataclass(frozen=True, slots=True, eq=False)
class Clip:
    """Frames of one person in one recording.

    Attributes:
        name: unique in the dataset; sample ids are "<name>/<frame without suffix>".
        identity: the person.
        frames: names of the frames in their order, as bytes (millions of strings are heavy).
        yaw: of the head in each frame, degrees, NaN where unknown; None if it is not known before
            reading.
        light: number of the lamp that each frame was taken with; None if the light is not known.
    """

    name: str
    identity: str
    frames: np.ndarray
    yaw: np.ndarray | None = None
    light: np.ndarray | None = None

    def at(self, index: int) -> "tuple[Clip, int]":
        """The clip that a ``ClipSource`` knows, and the number of the frame in it."""
        return self, index


@dataclass(frozen=True, slots=True, eq=False)
class MergedClip(Clip):
    """All frames of several clips of a person, one clip after the other.

    Attributes:
        parts: the clips.
    """

    parts: tuple[Clip, ...] = ()

    @classmethod
    def of(cls, parts: Sequence[Clip]) -> Clip:
        """The clips as one, under the person's name; of a single one, itself."""
        if len(parts) == 1:
            return parts[0]
        names = np.concatenate([clip.frames for clip in parts])
        yaw = light = None
        if any(clip.yaw is not None for clip in parts):
            unknown = (np.full(len(clip.frames), np.nan) for clip in parts)
            yaw = np.concatenate(
                [u if c.yaw is None else c.yaw for c, u in zip(parts, unknown, strict=True)]
            )
        if all(clip.light is not None for clip in parts):
            light = np.concatenate([clip.light for clip in parts if clip.light is not None])
        return cls(parts[0].identity, parts[0].identity, names, yaw, light, tuple(parts))

    def at(self, index: int) -> tuple[Clip, int]:
        """The clip that a ``ClipSource`` knows, and the number of the frame in it."""
        for clip in self.parts:
            if index < len(clip.frames):
                return clip, index
            index -= len(clip.frames)
        raise IndexError(f"{self.name}: no frame {index} beyond the last one")


class ClipTable(Sequence[Clip]):
    """Clips that are made when they are asked for: a million of them take 500 MB, their table 64.

    Args:
        table: one line a clip: name and identity, bytes, UTF-8; first, last: its frames.
        rows: the lines of these clips.
        names: of the frames from first to last.
    """

    def __init__(
        self,
        table: np.ndarray,
        rows: Int64[np.ndarray, " n"],
        names: Callable[[int, int], np.ndarray],
    ) -> None:
        self.table, self.rows, self.names = table, rows, names

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Clip: ...
    @overload
    def __getitem__(self, index: slice) -> list[Clip]: ...
    def __getitem__(self, index: int | slice) -> Clip | list[Clip]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        name, identity, first, last = self.table[self.rows[index]].item()
        return Clip(name.decode(), identity.decode(), self.names(first, last))


def frame_counts(clips: Sequence[Clip]) -> Int64[np.ndarray, " n"]:
    """How many frames each clip has."""
    if isinstance(clips, ClipTable):
        counts = clips.table["last"] - clips.table["first"]
        return counts[clips.rows].astype(np.int64)
    return np.array([len(clip.frames) for clip in clips], np.int64)


def identities(clips: Sequence[Clip]) -> set[str]:
    """Who is in the clips."""
    if isinstance(clips, ClipTable):
        return {name.decode() for name in set(clips.table["identity"][clips.rows].tolist())}
    return {clip.identity for clip in clips}


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One frame as read; what is wrong with it beyond its types is found out by the reader.

    Attributes:
        image: RGB.
        landmarks: pixels of ``image``.
        confidence: in [0, 1]; 0 = missing.
        mask: 0 ... 255 as ``FaceBatch.masks``; None: the hull of the landmarks, or, where all 68
            are missing, the whole image.
        landmarks_3d: x, y in pixels, z in pixels towards the camera; None: there are none.
        five_points: image-left eye, image-right eye, nose tip, image-left and image-right mouth
            corner, pixels of ``image``: where all 68 are missing, the crop is made by them.
    """

    image: UInt8[Tensor, "3 h w"]
    landmarks: Float[Tensor, "68 2"]
    confidence: Float[Tensor, "68"]
    mask: Tensor | None = None
    landmarks_3d: Float[Tensor, "68 3"] | None = None
    five_points: Float[Tensor, "5 2"] | None = None


@runtime_checkable
class ClipSource(Protocol):
    """A dataset; has to be picklable."""

    def clips(self, split: Split) -> Sequence[Clip]:
        """All clips of a split that have frames, in an order that does not change."""

    def read(self, clip: Clip, index: int) -> Frame:
        """One frame.

        Raises:
            UnusableFrameError: it cannot be read.
        """
