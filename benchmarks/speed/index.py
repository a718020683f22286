"""How soon the first batch of a large set of shards arrives, and in how much memory.

    python -m benchmarks.speed index [--frames 6000000] [--clips 150000] [--shards 2400]

The index is one of so many frames, as ``datamodules.shards`` describes it; its shards are all one
and the same file. Measured in a process of its own, reading with no others (Linux).
"""

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path

import cv2
import numpy as np

SIZE = 48  # pixels of the one image
KIND = [("name", "S32"), ("identity", "S16"), ("first", "<u8"), ("last", "<u8")]


@dataclass(frozen=True)
class FirstBatch:
    """What the first batch costs: 32 clips of 4 frames of 224 pixels.

    Attributes:
        wall_s: time from when nothing but the modules is there.
        core_s: the same, of this process.
        modules_gb: memory before: torch, Lightning and our own modules, 10^9 bytes.
        opened_gb: the most memory until the index is open, with them.
        peak_gb: the most memory until the batch is there.
        private_gb: of what is there then, all but the pages of files, of libraries mostly, which
            processes share and the system can read again.
    """

    wall_s: float
    core_s: float
    modules_gb: float
    opened_gb: float
    peak_gb: float
    private_gb: float


def simulate(root: Path, frames: int, clips: int, shards: int) -> None:
    """An index of so many frames in shards that are one and the same file.

    Args:
        root: is made.
        frames: six digits a clip at most.
        clips: in which they are, all of the same length, of 1,251 people.
        shards: in which those are.
    """
    files = import_module("datamodules.shard_files")
    (root / "index").mkdir(parents=True)
    (root / "shards").mkdir()
    first_shard = root / "shards/00000.tar"
    with first_shard.open("wb") as file:
        writer = files.ShardWriter(file, 0)
        writer.add("a", "a", [_frame(files)])
        part = writer.close()
    for shard in range(1, shards):
        os.link(first_shard, root / f"shards/{shard:05}.tar")
    table = np.repeat(part["frames"], frames)
    table["shard"] = np.arange(frames) * shards // frames
    np.save(root / "index/frames.npy", table)
    first = np.arange(clips + 1) * frames // clips
    number = np.arange(frames) - np.repeat(first[:-1], np.diff(first))
    digits = (number[:, None] // 10 ** np.arange(5, -1, -1) % 10 + ord("0")).astype(np.uint8)
    tail = np.broadcast_to(np.frombuffer(b".jpg", np.uint8), (frames, 4))
    names = np.concatenate([digits, tail], 1).view("S10").ravel()
    np.save(root / "index/names.npy", names)
    listed = np.zeros(clips, KIND)
    listed["name"] = [b"id%05d/%011d/00001" % (i * 1251 // clips, i) for i in range(clips)]
    listed["identity"] = [name[:7] for name in listed["name"].tolist()]
    listed["first"], listed["last"] = first[:-1], first[1:]
    np.save(root / "index/clips.npy", listed)
    np.save(root / "index/shards.npy", np.full(shards, first_shard.stat().st_size, np.uint64))


def first_batch(root: Path) -> FirstBatch:
    """Open shards in this process, which should have done nothing else yet, and read a batch."""
    shards = import_module("datamodules.shards").Shards
    before, wall, core = _memory_gb("VmHWM"), time.perf_counter(), time.process_time()
    module = shards(root, workers=0)
    module.setup("fit")
    loader = module.train_dataloader()
    opened = _memory_gb("VmHWM")
    next(iter(loader))
    spent = time.perf_counter() - wall, time.process_time() - core
    return FirstBatch(*spent, before, opened, _memory_gb("VmHWM"), _memory_gb("RssAnon"))


def run(root: Path, frames: int, clips: int, shards: int) -> FirstBatch:
    """Simulate an index in an empty folder and measure in a new process."""
    simulate(root, frames, clips, shards)
    command = [sys.executable, "-m", __name__, str(root)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return FirstBatch(**json.loads(done.stdout.splitlines()[-1]))


def _frame(files: object) -> object:
    """A grey frame with a face in the middle."""
    turn = np.arange(68) * 2 * np.pi / 68
    points = SIZE / 2 + SIZE / 4 * np.stack([np.cos(turn), np.sin(turn)], -1)
    landmarks = np.concatenate([points, np.ones((68, 1))], -1)
    jpeg = cv2.imencode(".jpg", np.full((SIZE, SIZE, 3), 128, np.uint8))[1].tobytes()
    return files.StoredFrame("000000", jpeg, landmarks)  # type: ignore[attr-defined]


def _memory_gb(kind: str) -> float:
    """Of this process: the most so far, "VmHWM", or now without files, "RssAnon"."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(kind)) * 1024 / 1e9


if __name__ == "__main__":
    print(json.dumps(asdict(first_batch(Path(sys.argv[1])))))
