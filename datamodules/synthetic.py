"""Rendered clips with known ground truth: made on first use, then read like VoxCeleb.

    python -m datamodules.synthetic --out data/synthetic --sheet sheet.png

On disk: the frame tree of ``datamodules.voxceleb``; the ground truth of ``core.truth`` and a
manifest lie beside it (``datamodules.synthesis.write``). The set is written once: a folder with a
set of other settings is never overwritten, an interrupted run is continued, and the files do not
depend on the number of processes.
"""

import argparse
import sys
from dataclasses import fields, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import torch

from core.errors import DataError, MonofaceError
from core.rotation import euler_from_rotation
from core.truth import load_truth
from datamodules.clips import Clip, Fault, Frame
from datamodules.listing import faulty
from datamodules.synthesis.settings import SynthesisSettings
from datamodules.voxceleb import FrameTree, VoxCeleb


class Synthetic(VoxCeleb):
    """Synthetic clips; ``prepare_data`` makes them where they are missing.

    Views of one instant (``datamodules.choice.Views``) are the frames of a clip of a set that is
    ``settings.still``; the ground truth tells their yaw. In other sets frames of a clip stand in:
    the expression changes a little between them, and the light stays with the camera.

    Args:
        root: a folder of its own for each choice of settings.
        settings: what the set consists of.
        jobs: processes that make it; None = one for each core.
        whole_video: as for ``VoxCeleb``.
        identities: as for ``VoxCeleb``; how many are made is ``settings.identities``.
        landmarks: "detected"; or "3d": of the ground truth, with ``landmarks_3d`` in the batches.
        **options: of ``FaceDataModule``.
    """

    def __init__(
        self,
        root: Path = Path("data/synthetic"),
        settings: SynthesisSettings = SynthesisSettings(),  # noqa: B008
        jobs: int | None = None,
        whole_video: bool = False,
        identities: int | None = None,
        landmarks: Literal["detected", "3d"] = "detected",
        **options: Any,
    ) -> None:
        super().__init__(root, whole_video, identities, **options)
        self.settings, self.jobs, self.landmarks = settings, jobs, landmarks

    def prepare_data(self) -> None:
        """Make what is missing, once per machine (Lightning calls this on its first process only).

        Raises:
            DataError: the folder holds something else, or cannot be written.
        """
        from datamodules.synthesis.write import write_set

        write_set(self.root, self.settings, self.jobs)

    def source(self) -> FrameTree:
        """The set, listed.

        Raises:
            DataError: the set is not complete, or of other settings.
        """
        from datamodules.synthesis.write import is_complete

        if not is_complete(self.root, self.settings):
            raise DataError(
                f"the synthetic set in '{self.root}' is not complete; make it with prepare_data() "
                f"or python -m datamodules.synthetic --out {self.root}"
            )
        kind = LabelledTree if self.landmarks == "3d" else FrameTree
        tree = kind.scan(self.root, self.whole_video, self.identities)
        return with_yaw(tree) if self.frames.multi_view else tree


class LabelledTree(FrameTree):
    """The frames with the landmarks of the ground truth, hidden ones included."""

    def read(self, clip: Clip, index: int) -> Frame:
        """One frame; z of the 3D landmarks counts from the middle of the face.

        Raises:
            UnusableFrameError: a file is missing, damaged, or of another kind.
        """
        frame = super().read(clip, index)
        name = PurePosixPath(clip.name, clip.frames[index].decode()).with_suffix("")
        with faulty(Fault.LANDMARKS):
            truth = load_truth(self.root, name.as_posix())
        _, depth = truth.camera.project(truth.landmarks_3d)
        middle = depth.mean()
        towards = (middle - depth) * truth.camera.focal / middle
        points = torch.cat([truth.landmarks, towards[:, None]], -1)
        return replace(
            frame, landmarks=truth.landmarks, confidence=torch.ones(68), landmarks_3d=points
        )


def with_yaw(tree: FrameTree) -> FrameTree:
    """The same clips, with the head's yaw in each frame from the ground truth.

    Raises:
        DataError: there is no ground truth of a clip.
    """
    splits = {
        name: [_turned(tree.root, clip) for clip in clips] for name, clips in tree.splits.items()
    }
    return replace(tree, splits=splits)


def _turned(root: Path, clip: Clip) -> Clip:
    frames = [PurePosixPath(clip.name, frame.decode()) for frame in clip.frames]
    known: dict[PurePosixPath, np.ndarray] = {}
    for parent in {frame.parent for frame in frames}:  # one, or with whole_video several
        path = root / "truth" / f"{parent}.npz"
        try:
            with np.load(path) as arrays:
                known[parent] = arrays["rotation"]
        except (OSError, KeyError, ValueError) as error:
            raise DataError(f"'{path}' has no rotations of the heads ({error})") from error
    rotation = np.stack([known[frame.parent][int(frame.stem)] for frame in frames])
    _, yaw, _ = euler_from_rotation(torch.from_numpy(rotation))  # the camera's first row is enough
    return replace(clip, yaw=torch.rad2deg(yaw).double().numpy())


def main(arguments: list[str] | None = None) -> int:
    """The command line: make a set, and a contact sheet of it."""
    parser = argparse.ArgumentParser(
        prog="python -m datamodules.synthetic",
        description="Make clips of synthetic faces with known ground truth.",
        epilog=SynthesisSettings.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="the folder")
    parser.add_argument("--jobs", type=int, help="processes; default: one for each core")
    parser.add_argument("--sheet", type=Path, help="also write this picture of random frames")
    for setting in fields(SynthesisSettings):
        default = setting.default
        if isinstance(default, bool):
            parser.add_argument(f"--{setting.name}", action="store_true", help="default: no")
            continue
        several = isinstance(default, tuple)
        parser.add_argument(
            f"--{setting.name}",
            type=int if several else type(default),
            nargs=len(default) if isinstance(default, tuple) else None,
            metavar=("TRAIN", "VAL", "TEST") if several else None,
            default=default,
            help="default: %(default)s",
        )
    given = vars(parser.parse_args(arguments))
    out, jobs, sheet = (given.pop(name) for name in ("out", "jobs", "sheet"))
    given["identities"] = tuple(given["identities"])

    from datamodules.synthesis.sheet import contact_sheet
    from datamodules.synthesis.write import write_set

    try:
        write_set(out, SynthesisSettings(**given), jobs)
        if sheet is not None:
            contact_sheet(out).save(sheet)
    except MonofaceError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
