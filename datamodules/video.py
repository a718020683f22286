"""Single frames of a video file, by their number."""

import logging
import os
from functools import lru_cache
from itertools import islice
from pathlib import Path

import av
import torch
from jaxtyping import UInt8
from torch import Tensor

from core.errors import DataError

log = logging.getLogger(__name__)

OPEN = 4  # videos that a process keeps open


def read_frame(path: Path, index: int) -> UInt8[Tensor, "3 h w"]:
    """Decode one frame: seek to the key frame before it, decode from there.

    Where the times of the frames are irregular, or wrong as of H.264 with B-frames in an .avi, they
    are counted from the beginning, which is slow; a warning says so.

    Args:
        path: the video.
        index: of the frame, from 0, in the order of showing.

    Raises:
        DataError: the video cannot be decoded or has no such frame.
    """
    try:
        status = path.stat()
        return _opened(path, status.st_mtime_ns, os.getpid()).frame(index)
    except (av.error.FFmpegError, OSError) as error:
        raise DataError(f"frame {index} of '{path}' cannot be decoded: {error}") from error


@lru_cache(maxsize=OPEN)
def _opened(path: Path, changed: int, process: int) -> "_Video":
    """The video in this state; not another process's, with which a fork would share the place."""
    return _Video(path)


class _Video:
    """An open video. Frames are told apart by their times, counted from the first one's."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.container = av.open(str(path), metadata_errors="ignore")
        if not self.container.streams.video:
            raise DataError(f"'{path}' has no video stream")
        self.stream = self.container.streams.video[0]
        self.stream.codec_context.thread_count = 1  # the loader's workers are the threads
        if not self.stream.average_rate or not self.stream.time_base:
            raise DataError(f"'{path}' does not say how many frames a second it has")
        self.ticks = 1 / (self.stream.average_rate * self.stream.time_base)  # of a frame
        first = next((frame.pts for frame in self.container.decode(self.stream)), None)
        if first is None:
            raise DataError(f"'{path}' has no frames")
        self.first, self.regular = first, True

    def frame(self, index: int) -> UInt8[Tensor, "3 h w"]:
        """As ``read_frame``."""
        found = self._by_time(index) if self.regular else self._by_counting(index)
        if found is None and not self.regular:
            log.warning("'%s' tells wrong times: its frames have to be counted, slowly", self.path)
            found = self._by_counting(index)
        if found is None:
            raise DataError(f"'{self.path}' has no frame {index}")
        pixels = torch.from_numpy(found.to_ndarray(format="rgb24"))
        return pixels.permute(2, 0, 1).contiguous()

    def _by_time(self, index: int) -> av.VideoFrame | None:
        """From an earlier key frame where a frame needs others before its own."""
        wanted, back = self.first + round(index * self.ticks), 0
        while self.regular:
            if found := self._decode(wanted - back, wanted):
                return found
            if wanted - back < self.first:
                break
            back = max(round(16 * self.ticks), 2 * back)
        return None

    def _decode(self, start: int, wanted: int) -> av.VideoFrame | None:
        """The frame of a time, if decoding from the key frame before another time gives it.

        As frames come in their order, it is the right one if each is one tick after the last.
        """
        self.container.seek(max(start, 0), stream=self.stream)
        last = None
        for frame in self.container.decode(self.stream):
            if frame.pts is None or (
                last is not None and abs(frame.pts - last - self.ticks) > self.ticks / 2
            ):
                self.regular = False
                return None
            last = frame.pts
            if last > wanted - self.ticks / 2:
                return frame if last < wanted + self.ticks / 2 else None
        return None

    def _by_counting(self, index: int) -> av.VideoFrame | None:
        self.container.seek(0, stream=self.stream)
        return next(islice(self.container.decode(self.stream), index, None), None)
