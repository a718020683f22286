"""How fast the VoxCeleb reader delivers cropped frames, with so many reading processes."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.speed.timing import Candidate

PEOPLE = (8, 0, 0)  # of the set that is made where none is given
READER = ("datamodules.voxceleb", "VoxCeleb")  # by name, as in configs


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


def made(folder: Path) -> Path:
    """A small synthetic set in a folder, made if it is not there."""
    settings = import_module("datamodules.synthesis.settings").SynthesisSettings(identities=PEOPLE)
    import_module("datamodules.synthesis.write").write_set(folder, settings)
    return folder


def _epoch(
    root: Path, size: int, clips: int, frames: int, workers: int
) -> tuple[Callable[[], object], int]:
    module, name = READER
    reader: Any = getattr(import_module(module), name)(
        root,
        image_size=size,
        clips_per_batch=clips,
        frames_per_clip=frames,
        workers=workers,
    )
    reader.setup("fit")
    loader = reader.train_dataloader()
    images = sum(len(batch["sample_ids"]) for batch in loader)  # also starts the processes

    def run() -> int:
        return sum(len(batch["sample_ids"]) for batch in loader)

    return run, images
