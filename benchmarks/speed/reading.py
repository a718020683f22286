"""How fast frames are delivered, and shards prepared.

``read``: cropped frames with landmarks and masks, from a tree of frames and from shards, with so
many reading processes; "augmented": all that ``Augmentation`` can do; "floats": as a training on
the CPU gets them, after ``on_after_batch_transfer``. ``decode``: the images of the same shards, by
the same kind of loader, as they are stored: what all else is to be measured by. ``prepare``: a
video to a shard, with given landmarks, by so many processes, whose start counts. ``--part`` takes
one of: the tree, reading the shards, preparing them.
"""

import multiprocessing
import os
import shutil
import statistics
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from benchmarks.speed.timing import Candidate

PEOPLE = (8, 0, 0)  # of the set that is made where none is given
PARTS = ("tree", "shards", "prepare")
READER = ("datamodules.voxceleb", "VoxCeleb")  # by name, as in configs
SHARDS = ("datamodules.shards", "Shards")
VIDEOS, FRAMES = 6, 300  # that are made for shards
PROCESSES, TURNS = (1, 2, 4), 16  # that make shards of them, how often; starting is a 15th then
NOISE = 2.0  # of the videos, grey levels: a frame of 224 pixels has about 20 kB
AUGMENTATION = {  # everything
    "shift": 0.045,
    "scale": 0.1,
    "rotation": 10.0,
    "flip": 0.5,
    "brightness": 0.2,
    "contrast": 0.2,
    "saturation": 0.2,
    "tint": 0.1,
    "cover": 0.3,
}


def candidates(
    root: Path, size: int, clips: int, frames: int, workers: list[int]
) -> list[Candidate]:
    """One row per number of processes; each run reads every clip about once.

    Args:
        root: a tree of frames, as ``datamodules.voxceleb`` describes it.
        size: side of the crops.
        clips: in a batch.
        frames: of a clip.
        workers: reading processes; 0 = this one.
    """
    found = []
    for count in workers:
        run, images = _epoch(root, size, clips, frames, count)
        key = f"read/{root.name}/{size}/{clips * frames}/voxceleb/{count}"
        found.append(Candidate(key, run, images, 1))
    return found


class Made:
    """Shards that are made here.

    Args:
        root: an empty folder for them.
        size: side of the stored and of the delivered crops.
    """

    def __init__(self, root: Path, size: int) -> None:
        self.root, self.size = root, size
        self.plan = _made_shards(root, size)

    def preparing(self) -> list[Candidate]:
        """Rows for making them."""
        return [_preparing(self.plan, self.root, self.size, count) for count in PROCESSES]

    def reading(self, clips: int, frames: int, workers: list[int]) -> list[Candidate]:
        """Rows for reading them, with and without augmentation.

        Args:
            clips: in a batch.
            frames: of a clip; rows called "single" have as many images in clips of one.
            workers: reading processes; 0 = this one.
        """
        return _reading(self.plan, self.size, clips, frames, workers)


def _reading(plan: Any, size: int, clips: int, frames: int, workers: list[int]) -> list[Candidate]:
    batch, found = clips * frames, []
    augmentation = import_module("datamodules.augment").Augmentation(**AUGMENTATION)
    for count in workers:
        run, images = _bare(plan.out, batch, count)
        found.append(Candidate(f"decode/shards/{size}/{batch}/bare/{count}", run, images, 1))
        for name, of_clip, options, floats in (  # epochs as long as that of bare decoding
            ("shards", frames, {}, False),
            ("floats", frames, {}, True),
            ("augmented", frames, {"augmentation": augmentation}, False),
            ("single", 1, {}, False),
            ("single-augmented", 1, {"augmentation": augmentation}, False),
        ):
            options = {"batches_per_epoch": VIDEOS * FRAMES // batch} | options
            run, images = _epoch(
                plan.out, size, batch // of_clip, of_clip, count, SHARDS, options, floats
            )
            found.append(Candidate(f"read/shards/{size}/{batch}/{name}/{count}", run, images, 1))
    return found


def with_core_time(row: Candidate, spent: dict[str, list[float]]) -> Candidate:
    """The same, each run of which adds its core milliseconds per image to a list by its key."""

    def run() -> None:
        before = _core_seconds()
        row.run()
        seconds = _core_seconds() - before
        spent.setdefault(row.key, []).append(1e3 * seconds / row.images)

    return replace(row, run=run)


def core_times(spent: dict[str, list[float]]) -> str:
    """A line for each row of shards: core milliseconds per image, and bare decoding's share."""
    lines = []
    for key, times in spent.items():
        kind, where, size, batch, _, count = key.split("/")
        bare = spent.get(f"decode/{where}/{size}/{batch}/bare/{count}")
        if bare and kind in ("decode", "read"):
            time = statistics.median(times)
            share = 100 * statistics.median(bare) / time
            lines.append(f"{key}: {time:.3f} core ms/image; bare decode is {share:.0f} % of it")
    return "\n".join(lines)


def _core_seconds() -> float:
    """Of this process and of those that it has started and that run (Linux), of all threads."""
    if sys.platform != "linux":
        return float("nan")
    running = [os.getpid(), *(child.pid for child in multiprocessing.active_children())]
    threads = (path for pid in running for path in Path(f"/proc/{pid}/task").glob("*/schedstat"))
    return sum(int(path.read_text().split()[0]) for path in threads) / 1e9


def _made_shards(root: Path, size: int) -> Any:
    """Prepare a few videos; returns the plan."""
    import av

    rng = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size] / size
    # A frontal face: what matters is where its box is.
    points = 0.5 + 0.31 * np.stack([np.sin(np.arange(68) * 1.7), np.cos(np.arange(68) * 2.3)], -1)
    for number in range(VIDEOS):
        path = root / f"raw/id{number}/video/00001.mp4"
        path.parent.mkdir(parents=True)
        waves = rng.uniform(-9, 9, (3, 2))
        with av.open(str(path), "w") as container:
            stream: Any = container.add_stream("libx264", rate=25, options={"crf": "12"})
            stream.width = stream.height = size
            stream.pix_fmt = "yuv420p"
            for frame in range(FRAMES):
                image = np.stack([np.sin(a * x + b * y + frame / 30) for a, b in waves], -1)
                noisy = 128 + 90 * image + rng.normal(0, NOISE, image.shape)
                pixels = noisy.clip(0, 255).astype(np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(stream.encode())
        moved = points + rng.normal(0, 0.003, (FRAMES, 68, 2))
        np.savez(path.with_suffix(".npz"), landmarks=moved * size)
    planning = import_module("datamodules.preparation.plan")
    margin = import_module("core.crop").MARGIN
    settings = planning.Settings(size=size, margin=margin, videos_per_shard=1)
    plan = planning.make_plan(root / "raw", root / "shards", settings)
    shard = import_module("datamodules.preparation.shard")
    for job in plan.jobs():
        shard.prepare_shard(job)
    missing = shard.finish(plan)
    assert not missing
    return plan


def _preparing(plan: Any, root: Path, size: int, processes: int) -> Candidate:
    """All videos, ``TURNS`` times, by so many processes that are started for it."""
    launch = import_module("datamodules.preparation.launch")
    out = root / "again"
    jobs = [
        replace(job, shard=turn * VIDEOS + job.shard, out=out)
        for turn in range(TURNS)
        for job in plan.jobs()
    ]

    def run() -> None:
        shutil.rmtree(out, ignore_errors=True)
        for _ in launch.local(jobs, processes):
            pass

    images = FRAMES * len(jobs)
    return Candidate(f"prepare/videos/{size}/1/local/{processes}", run, images, 1)


class _Stored(Dataset):
    """The images of shards, decoded and nothing else."""

    def __init__(self, root: Path) -> None:
        self.source = import_module(SHARDS[0]).ShardSource(root)
        splits = ("train", "val", "test")
        self.frames = [
            (clip, index)
            for split in splits
            for clip in self.source.clips(split)
            for index in range(len(clip.frames))
        ]

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.source.read_image(*self.frames[index]).permute(1, 2, 0)  # as it was decoded


def _bare(root: Path, batch: int, workers: int) -> tuple[Callable[[], object], int]:
    data = _Stored(root)
    loader: DataLoader = DataLoader(
        data, batch, shuffle=True, num_workers=workers, persistent_workers=workers > 0
    )

    def run() -> int:
        return sum(len(images) for images in loader)

    return run, run()


def made(folder: Path) -> Path:
    """A small synthetic set in a folder, made if it is not there."""
    settings = import_module("datamodules.synthesis.settings").SynthesisSettings(identities=PEOPLE)
    import_module("datamodules.synthesis.write").write_set(folder, settings)
    return folder


def _epoch(
    root: Path,
    size: int,
    clips: int,
    frames: int,
    workers: int,
    reader_class: tuple[str, str] = READER,
    options: dict[str, Any] | None = None,
    floats: bool = False,
) -> tuple[Callable[[], object], int]:
    module, name = reader_class
    reader: Any = getattr(import_module(module), name)(
        root,
        image_size=size,
        clips_per_batch=clips,
        frames_per_clip=frames,
        workers=workers,
        **(options or {}),
    )
    reader.setup("fit")
    loader = reader.train_dataloader()
    images = sum(len(batch["sample_ids"]) for batch in loader)  # also starts the processes

    def finish(batch: Any) -> Any:
        return reader.on_after_batch_transfer(batch, 0) if floats else batch

    def run() -> int:
        return sum(len(finish(batch)["sample_ids"]) for batch in loader)

    return run, images
