"""The order of a training, a function of seed and epoch, and a loader that keeps its place in it.

Together with frames and augmentation that depend on (seed, turn, clip) only, a resumed training
sees exactly the batches that it would have seen, also with another number of workers.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from core.errors import DataError


class Draw(NamedTuple):
    """One clip for one batch.

    Attributes:
        turn: how often the whole part was gone through before; seeds what is random about the clip.
        clip: its number in its part.
        part: of the data; 0 where there is only one.
        repeated: it was drawn elsewhere, and is only here to give this process a batch.
    """

    turn: int
    clip: int
    part: int = 0
    repeated: bool = False


class EpochSampler(DistributedSampler):
    """Which clips an epoch consists of.

    Shuffled, each part of the data is an endless stream of permutations, so that all its clips are
    seen equally often. Each process mixes the parts in one and the same fixed pattern: of any
    sum(shares) clips in a row, shares[k] are of part k, spread evenly, whatever the batches. The
    processes take turns in each part's stream; the epochs are cut from it, whatever their length.

    In order, the parts follow each other, and each clip is dealt to one process. A process that
    would have one batch less than another gets one repeated clip as a batch of its own, since
    processes wait for each other.

    It is a DistributedSampler so that Lightning leaves it in its place.

    Args:
        counts: number of clips of each part.
        length: clips of an epoch, for each process; None = all, in order only.
        seed: another seed, another order.
        shuffle: endless streams, or the clips once, in order.
        rank: number of this process.
        world_size: how many processes there are.
        shares: of the parts, whole numbers; all 1 by default.
        batch_size: clips of a batch, in order.
    """

    def __init__(
        self,
        counts: Sequence[int],
        length: int | None = None,
        seed: int = 0,
        shuffle: bool = True,
        rank: int = 0,
        world_size: int = 1,
        shares: Sequence[int] | None = None,
        batch_size: int = 1,
    ) -> None:
        count = sum(counts)
        super().__init__(range(count), num_replicas=world_size, rank=rank, shuffle=shuffle)  # type: ignore[arg-type]
        assert not (shuffle and length is None)
        self.counts, self.seed = counts, seed
        self.shares = shares or [1] * len(counts)
        most, mine = (len(range(first, count, world_size)) for first in (0, rank))
        self.short = -(-mine // batch_size) < -(-most // batch_size)  # of a batch
        self.length = length or mine + self.short
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
        return self._shuffled() if self.shuffle else self._in_order()

    def _in_order(self) -> Iterator[Draw]:
        ends = np.cumsum(self.counts)
        for place in range(self.position, self.length - self.short):
            index = place * self.num_replicas + self.rank
            part = int(np.searchsorted(ends, index, "right"))
            yield Draw(0, index - int(ends[part]) + self.counts[part], part)
        if self.short:
            yield Draw(0, 0, int(np.flatnonzero(self.counts)[0]), repeated=True)

    def _shuffled(self) -> Iterator[Draw]:
        pattern, before = self._pattern()
        orders: dict[int, tuple[int, np.ndarray]] = {}
        first = self.epoch * self.length
        for place in range(first + self.position, first + self.length):
            cycle, step = divmod(place, len(pattern))
            part = pattern[step]
            number = cycle * self.shares[part] + before[step]  # of this process, in this part
            turn, index = divmod(number * self.num_replicas + self.rank, self.counts[part])
            if part not in orders or orders[part][0] != turn:
                random = np.random.default_rng((self.seed, turn, part))
                orders[part] = turn, random.permutation(self.counts[part])
            yield Draw(turn, int(orders[part][1][index]), part)

    def _pattern(self) -> tuple[list[int], list[int]]:
        """Of each clip of a cycle the part, and how many of that part come before it."""
        due = np.concatenate([(np.arange(share) + 0.5) / share for share in self.shares])
        parts = np.repeat(np.arange(len(self.shares)), self.shares)
        numbers = np.concatenate([np.arange(share) for share in self.shares])
        order = np.argsort(due, kind="stable")
        return parts[order].tolist(), numbers[order].tolist()


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
