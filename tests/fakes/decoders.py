"""What ``stored_frames`` of the preparation yields, without decoding, and with trouble."""

import os
import signal
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from datamodules.preparation.plan import Job, Video
from datamodules.preparation.video import Step
from datamodules.shard_files import StoredFrame

FRAMES = 5
BEFORE = 2  # frames that come before the trouble
PAUSE = 0.03  # seconds that a frame takes: longer than results are kept to be sent together


def write(root: Path, names: Iterable[str]) -> Path:
    """Empty videos a/b/<name>.mp4 with empty files of landmarks."""
    (root / "a/b").mkdir(parents=True)
    for name in names:
        (root / f"a/b/{name}.mp4").touch()
        (root / f"a/b/{name}.npz").touch()
    return root


def frames(job: Job, video: Video) -> Iterator[Step]:
    """``FRAMES`` frames, another that is left out for "no face", and one that is looked at.

    By the name of its file the video ends the process (``crash``), only the first time (``once``,
    which leaves ``once.seen`` beside it), is never finished (``hang``), damaged (``damage``), or
    meets a fault of the program (``odd``).
    """
    path = job.raw / video.path
    yield None
    yield "no face"
    for number in range(FRAMES):
        if number == BEFORE:
            _trouble(path)
        time.sleep(PAUSE)
        content = path.name.encode() * 1000
        yield StoredFrame(f"{number:06}", content, np.zeros((68, 3), np.float32))


def _trouble(path: Path) -> None:
    seen = path.with_suffix(".seen")
    if path.stem == "crash" or (path.stem == "once" and not seen.exists()):
        seen.touch()
        os.kill(os.getpid(), signal.SIGSEGV)
    if path.stem == "hang":
        time.sleep(1000)
    if path.stem == "odd":
        raise ZeroDivisionError("integer division or modulo by zero")
    if path.stem == "damage":
        raise OSError(5, "Input/output error", str(path))
