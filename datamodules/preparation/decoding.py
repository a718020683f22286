"""Frames of a video: every so many-th, or those that are shown at given times."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.video.reformatter import VideoReformatter
from jaxtyping import Float, UInt8

from core.errors import DataError

BEFORE_S = 1.0  # by which a search begins too early: the key frame before may be a wrong one

Pixels = UInt8[np.ndarray, "h w 3"]


def decoded(path: Path, every: int = 1) -> Iterator[tuple[int, Pixels]]:
    """Every so many-th frame with its number, RGB.

    Raises:
        DataError: the file holds no video, or cannot be decoded, or not to its end.
        OSError: it cannot be read.
    """
    with _opened(path) as (container, to_rgb):
        index = -1
        for index, frame in enumerate(container.decode(video=0)):
            if index % every == 0:
                yield index, to_rgb(frame)
        if index < 0:
            raise DataError("no frame in it")
        listed = container.streams.video[0].frames  # 0 = it does not say
        if index + 1 < listed:
            raise DataError(f"it ends after {index + 1} of {listed} frames")


def decoded_at(
    path: Path, times: Float[np.ndarray, " n"], every: int = 1
) -> Iterator[tuple[int, Pixels]]:
    """The frames nearest to every so many-th of some times, with the numbers of the times, RGB.

    Where the video has fewer frames a second than the times have, some come twice. Those of times
    after its end are left out.

    Args:
        path: the video, of any number of frames a second, constant or not.
        times: seconds after its beginning, rising.
        every: of the times.

    Raises:
        DataError: the file holds no video, does not tell times, or cannot be decoded.
        OSError: it cannot be read.
    """
    wanted = list(range(0, len(times), every))[::-1]
    if not wanted:
        return
    with _opened(path) as (container, to_rgb):
        last, before = None, -np.inf
        for frame, time in _from(container, float(times[0])):
            if time <= before:
                raise DataError(f"a frame of {time:.3f} s comes after one of {before:.3f} s")
            while last is not None and wanted and times[wanted[-1]] <= (before + time) / 2:
                yield wanted.pop(), to_rgb(last)
            if not wanted:
                return
            last, before = frame, time
        end = before + 1 / float(container.streams.video[0].average_rate or 25)
        while last is not None and wanted and times[wanted[-1]] <= end:
            yield wanted.pop(), to_rgb(last)
        if last is None:
            raise DataError("no frame in it")


def _from(container: InputContainer, begin: float) -> Iterator[tuple[av.VideoFrame, float]]:
    """Frames and their times, seconds after the beginning, from one before ``begin`` on."""
    start = container.start_time or 0  # microseconds
    place = max(0.0, begin - BEFORE_S)
    while True:
        container.seek(start + round(place * av.time_base))
        for number, frame in enumerate(container.decode(video=0)):
            if frame.time is None:
                raise DataError("it does not tell when its frames are shown")
            time = frame.time - start / av.time_base
            if number == 0 and time > begin and place > 0:
                break  # a key frame after it: from the beginning, then
            yield frame, time
        else:
            return
        place = 0.0


@contextmanager
def _opened(
    path: Path,
) -> Iterator[tuple[InputContainer, Callable[[av.VideoFrame], Pixels]]]:
    """A video and what turns its frames into pixels."""
    try:
        with av.open(str(path), metadata_errors="ignore") as container:
            if not container.streams.video:
                raise DataError("no video in it")
            container.streams.video[0].thread_type = "NONE"  # the processes share the cores
            shared = VideoReformatter()  # a new one for each frame would take half of the time

            def to_rgb(frame: av.VideoFrame) -> Pixels:
                # one thread: for so little work, waiting for others takes as long as all the rest
                return shared.reformat(frame, format="rgb24", threads=1).to_ndarray()

            yield container, to_rgb
    except DataError:
        raise
    except Exception as error:  # damaged files cause more than FFmpeg's errors
        reason = getattr(error, "strerror", None) or repr(error)
        raise DataError(f"cannot be decoded, or not to its end: {reason}") from error
