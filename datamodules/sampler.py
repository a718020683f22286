"""The order of a training, a function of seed and epoch, and a loader that keeps its place in it.

Together with frames and augmentation that depend on (seed, turn, clip) only, a resumed training
sees exactly the batches that it would have seen, also with another number of workers.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from core.errors import DataError


class Draw(NamedTuple):
    """One clip for one batch.

    Attributes:
        turn: how often the whole set was gone through before; seeds what is random about the clip.
        clip: its number.
    """

    turn: int
    clip: int


class EpochSampler(DistributedSampler):
    """Which clips an epoch consists of.

    Shuffled, the epochs are cut from an endless stream of permutations, so that all clips are seen
    equally often whatever the length of an epoch; the processes take turns in it. In order, the
    clips are dealt out to the processes; the first ones again where they do not come out even.

    It is a DistributedSampler so that Lightning leaves it in its place.

    Args:
        count: number of clips.
        length: clips of an epoch, for each process; None = all, in order only.
        seed: another seed, another order.
        shuffle: an endless stream, or the clips once, in order.
        rank: number of this process.
        world_size: how many processes there are.
    """

    def __init__(
        self,
        count: int,
        length: int | None = None,
        seed: int = 0,
        shuffle: bool = True,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__(range(count), num_replicas=world_size, rank=rank, shuffle=shuffle)  # type: ignore[arg-type]
        assert not (shuffle and length is None)
        self.count, self.seed = count, seed
        self.length = length or -(-count // world_size)
        self.start_at(0, 0)

    def __len__(self) -> int:
        return self.length

    def start_at(self, epoch: int, position: int) -> None:
        """What the next iteration begins with.

        Args:
            epoch: from 0.
            position: how many clips of it are left out.
        """
        self.epoch, self.position = epoch, position

    def set_epoch(self, epoch: int) -> None:
        """Nothing: the loader counts the epochs. Lightning calls this."""

    def __iter__(self) -> Iterator[Draw]:
        turn, order = -1, np.empty(0, np.int64)
        first = self.epoch * self.length if self.shuffle else 0
        for place in range(first + self.position, first + self.length):
            wanted, index = divmod(place * self.num_replicas + self.rank, self.count)
            if not self.shuffle:
                yield Draw(0, index)
                continue
            if wanted != turn:
                turn = wanted
                order = np.random.default_rng((self.seed, turn)).permutation(self.count)
            yield Draw(turn, int(order[index]))


class ResumableLoader(DataLoader):
    """A DataLoader over an ``EpochSampler`` that counts epochs and goes on in the middle of one.

    Its state is the epoch and the number of batches that were handed out in it, whatever the
    workers have prefetched: it does not depend on the number of workers, and is the same in all
    processes. Lightning keeps it in the checkpoint.
    """

    epoch = 0
    batches = 0  # handed out in this epoch
    loaded = False

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # A generator: nothing happens before the first batch is asked for.
        whole = self.batches >= len(self)
        if whole or (self.batches and not self.loaded):
            self.epoch, self.batches = self.epoch + 1, 0
        self.loaded = False
        if isinstance(self.sampler, EpochSampler):  # for prediction Lightning wraps it
            assert self.batch_size is not None
            self.sampler.start_at(self.epoch, self.batches * self.batch_size)
        try:
            for batch in super().__iter__():
                self.batches += 1
                yield batch
        except DataError as error:  # a worker's carries the traceback; its last line is ours
            raise DataError(str(error).rpartition("DataError: ")[2].strip()) from None

    def state_dict(self) -> dict[str, int]:
        """The place, to be given to ``load_state_dict``."""
        return {"epoch": self.epoch, "batches": self.batches}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """The next iteration goes on there."""
        self.epoch, self.batches, self.loaded = state["epoch"], state["batches"], True
