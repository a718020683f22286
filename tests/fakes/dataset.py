"""A dataset made on the spot, and its datamodule."""

from collections.abc import Callable

import numpy as np
import torch

from datamodules.base import Clip, FaceDataModule, Frame, Split
from tests.fakes.voxceleb import face_points, smooth_image

SIZE = 48


def frame(seed: int, size: int = 90, mask: bool = True) -> Frame:
    rng = np.random.default_rng(seed)
    points = torch.from_numpy(face_points(rng, size))
    image = torch.from_numpy(smooth_image(rng, size)).permute(2, 0, 1)
    return Frame(
        image=image,
        landmarks=points[:, :2],
        confidence=points[:, 2],
        mask=(image[:1] > 120).to(torch.uint8) * 255 if mask else None,
    )


class Source:
    """Clips of six frames in train and test; ``spoil`` changes what is read of a frame.

    Args:
        clips: how many in each split.
        spoil: name of the clip's person, number of the frame, frame -> frame.
        yaw: of the frames of each clip.
        light: of the frames of each clip.
    """

    def __init__(
        self,
        clips: int = 5,
        spoil: Callable[[str, int, Frame], Frame] = lambda *given: given[2],
        yaw: np.ndarray | None = None,
        light: np.ndarray | None = None,
    ) -> None:
        self.number, self.spoil, self.count = clips, spoil, 0
        self.yaw, self.light = yaw, light

    def clips(self, split: Split) -> list[Clip]:
        names = np.array([b"%d.jpg" % i for i in range(6)])
        return [
            Clip(f"id{k}/video/{k}", f"{split} {k}", names, self.yaw, self.light)
            for k in range(self.number if split != "val" else 0)
        ]

    def read(self, clip: Clip, index: int) -> Frame:
        self.count += 1
        person, number = clip.name.split("/")[0], int(clip.frames[index][:1])
        made = frame(10 * int(person[2:]) + number, mask=number % 2 == 0)
        return self.spoil(person, number, made)


class Faces(FaceDataModule):
    """Small crops of a ``Source``."""

    def __init__(self, made: Source | None = None, **options: object) -> None:
        settings = {"frames_per_clip": 3, "clips_per_batch": 2, "workers": 0, "image_size": SIZE}
        super().__init__(**(settings | options))
        self.made = made or Source()

    def source(self) -> Source:
        return self.made


def faces(made: Source | None = None, **options: object) -> Faces:
    """The datamodule, set up."""
    module = Faces(made, **options)
    module.setup("fit")
    return module


def frames_of(batch: dict) -> list[list[int]]:
    """The frames' numbers in their clips, (b, v)."""
    ids = [int(name.rpartition("/")[2]) for name in batch["sample_ids"]]
    return np.array(ids).reshape(len(batch["images"]), -1).tolist()
