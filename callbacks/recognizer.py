"""The small recognizer that Deng's default needs, trained where its file is missing.

    python -m callbacks.recognizer --out data/recognizer.pt

The network and how it learns are in ``core.recognizer``; here it gets the people of a data set.
"""

import argparse
import copy
import sys
from itertools import groupby
from pathlib import Path

import torch
from jaxtyping import Int, UInt8
from pytorch_lightning import Callback, LightningDataModule, LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor
from tqdm import tqdm

from core.errors import DataError, MonofaceError
from core.landmarks import LEFT_EYE, LEFT_MOUTH_CORNER, NOSE_TIP, RIGHT_EYE, RIGHT_MOUTH_CORNER
from core.perceptual import align_112
from core.recognizer import STEPS, save_recognizer, train_recognizer
from datamodules.base import FaceDataModule
from datamodules.choice import Spread
from datamodules.reading import ClipReader, collate
from datamodules.sampler import Draw

PATH = Path("data/recognizer.pt")
FRAMES = 6  # of a person
NEEDED = [*RIGHT_EYE, *LEFT_EYE, NOSE_TIP, RIGHT_MOUTH_CORNER, LEFT_MOUTH_CORNER]
PEOPLE = 1000  # more would not be learned in a minute


class TrainRecognizer(Callback):
    """Trains the small recognizer on the people of the training data, if its file is not there.

    Before a training whose weight of the perceptual loss is not 0; takes about a minute, once.

    Args:
        path: the file; that of the method's ``recognizer``.
        steps: of the recognizer's training.
        seed: of the same.
    """

    def __init__(self, path: Path = PATH, steps: int = STEPS, seed: int = 0) -> None:
        self.path, self.steps, self.seed = Path(path), steps, seed

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Lightning calls it after the data's setup and before the method's.

        Raises:
            DataError: the data do not say who is who.
        """
        weights = getattr(pl_module, "weights", None)
        if stage != "fit" or not getattr(weights, "perceptual", 0):
            return
        if trainer.is_global_zero and not self.path.is_file():
            rank_zero_info(f"{self.path} is not there: training the small recognizer, once")
            make_recognizer(trainer.datamodule, self.path, self.steps, self.seed)  # type: ignore[attr-defined]
        trainer.strategy.barrier()


def make_recognizer(
    data: LightningDataModule | None, path: Path, steps: int = STEPS, seed: int = 0
) -> None:
    """Trains the small recognizer on a data set that is set up, and writes its file.

    Raises:
        DataError: the data are not clips of people with several frames each.
    """
    if not isinstance(data, FaceDataModule):
        raise DataError(
            f"the small recognizer learns from a FaceDataModule, not from {type(data).__name__}; "
            "make its file before: python -m callbacks.recognizer"
        )
    network = train_recognizer(*collect_faces(data), steps, seed)
    save_recognizer(network, path, str(data.readers("train")[0].source))


def collect_faces(
    data: FaceDataModule,
) -> tuple[UInt8[Tensor, "n 3 112 112"], UInt8[Tensor, "n 1 112 112"], Int[Tensor, " n"]]:
    """Aligned faces, their masks and whose they are: of the training's people some frames each,
    evenly spread, not augmented.
    """
    faces, masks, people = [], [], []
    names: dict[str, int] = {}
    for reader in data.readers("train"):
        wanted = _some_of_each(reader)
        plain = copy.copy(reader)
        plain.augmentation, plain.choice = None, Spread()
        for clip, frames in tqdm(wanted, "faces", unit="clip"):
            plain.frames = frames
            read = plain.clip(Draw(0, clip))
            if read is None:
                continue
            found = data.on_after_batch_transfer(collate([read]), 0)
            new = {name: row for row, name in enumerate(found["sample_ids"])}
            known = (found["landmark_confidence"][0, :, NEEDED] > 0).all(-1)
            rows = [row for row in new.values() if known[row]]
            pictures = torch.cat([found["images"], found["masks"]], 2)[0, rows]
            levels = (align_112(pictures, found["landmarks"][0, rows]) * 255).round().byte()
            faces.append(levels[:, :3])
            masks.append(levels[:, 3:])
            person = names.setdefault(reader.prefix + reader.clips[clip].identity, len(names))
            people.append(torch.full((len(levels),), person))
    return torch.cat(faces), torch.cat(masks), torch.cat(people)


def _some_of_each(reader: ClipReader) -> list[tuple[int, int]]:
    """Of at most ``PEOPLE`` people a few clips, and how many frames of each."""
    order = sorted(range(len(reader.clips)), key=lambda k: reader.clips[k].identity)
    people = [list(own) for _, own in groupby(order, key=lambda k: reader.clips[k].identity)]
    some = people[:: max(1, -(-len(people) // PEOPLE))]
    chosen = []
    for clips in some:
        own = clips[:: max(1, -(-len(clips) // FRAMES))]
        chosen += [(clip, -(-FRAMES // len(own))) for clip in own]
    return chosen


def main(arguments: list[str] | None = None) -> int:
    """The command line: make the file from a synthetic set, which is made where it is missing."""
    from datamodules.synthetic import Synthetic

    parser = argparse.ArgumentParser(
        prog="python -m callbacks.recognizer",
        description="Train the small face recognition network of Deng's default on synthetic "
        "people: about a minute.",
    )
    parser.add_argument("--out", type=Path, default=PATH, help="default: %(default)s")
    parser.add_argument(
        "--root", type=Path, default=Path("data/synthetic"), help="the set; default: %(default)s"
    )
    parser.add_argument("--steps", type=int, default=STEPS, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    given = parser.parse_args(arguments)
    data = Synthetic(given.root, image_size=112)
    try:
        data.prepare_data()
        data.setup("fit")
        make_recognizer(data, given.out, given.steps, given.seed)
    except MonofaceError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
