"""Memory for batches that a training shares with its reading processes, used again and again.

The usual way is new shared memory for each batch: its pages are cleared and mapped, here and there,
which takes a third of all the time that a frame needs. This memory is made once, before the
processes are forked. One of them fills a place in it and sends the place's number; the place is
free again when the last tensor of the batch is gone.
"""

import itertools
import math
import mmap
import multiprocessing
import os
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from datamodules.reading import ByteBatch, aligned, collate

AHEAD = 2  # batches of each process, begun or finished, that nobody has asked for yet: torch's own
HELD = 3  # batches that a training has at a time: one before, this one, the next
ALIGNMENT = 64  # bytes

Layout = dict[str, tuple[int, tuple[int, ...], np.dtype]]
"""By the arrays' names, where in a place they begin, their shapes and types."""

_numbers = itertools.count()
_memories: "WeakValueDictionary[int, BatchMemory]" = WeakValueDictionary()  # the same when forked


class BatchMemory:
    """Places for batches, of which the system makes what is used. To be made before the fork.

    Args:
        workers: reading processes.
        room: bytes of a place; larger batches travel in the usual way, as those do for which no
            place is free.
    """

    def __init__(self, workers: int, room: int) -> None:
        count = AHEAD * workers + HELD
        room = -(-room // mmap.PAGESIZE) * mmap.PAGESIZE
        self.places = np.frombuffer(mmap.mmap(-1, count * room), np.uint8).reshape(count, room)
        self.taken = np.frombuffer(mmap.mmap(-1, count), np.bool_)
        self._lock = multiprocessing.Lock()
        self._number = next(_numbers)
        _memories[self._number] = self

    def collate(self, clips: list[ByteBatch]) -> "ByteBatch | Stored":
        """As ``reading.collate``; from a reading process it arrives as that.

        Raises:
            DataError: as there.
        """
        if get_worker_info() is None:
            return collate(clips)
        columns, other = aligned(clips)
        layout, size = _layout(columns)
        place = self._claimed() if size <= self.places.shape[1] else None
        if place is None:
            return collate(clips)
        for name, array in _arrays(self.places[place], layout).items():
            np.stack([value.numpy() for value in columns[name]], out=array)
        return Stored(self._number, place, layout, other)

    def _claimed(self) -> int | None:
        """A place, if one is free, from now on taken."""
        with self._lock:
            place = int(self.taken.argmin())
            if self.taken[place]:
                return None
            self.taken[place] = True
            return place


class Stored:
    """A batch on its way: where it is in a ``BatchMemory``. Unpickled it is a ``ByteBatch``."""

    def __init__(self, memory: int, place: int, layout: Layout, other: dict[str, Any]) -> None:
        self.content = memory, place, layout, other

    def __reduce__(self) -> tuple[Any, ...]:
        return _arrived, self.content


class _Lease:
    """The bytes of a place as what numpy makes an array of; its end, the last array's, frees it."""

    def __init__(self, memory: BatchMemory, place: int) -> None:
        self.memory, self.place, self.process = memory, place, os.getpid()
        self.__array_interface__ = memory.places[place].__array_interface__

    def __del__(self) -> None:
        if os.getpid() == self.process:  # not a copy of it in a process forked meanwhile
            self.memory.taken[self.place] = False


def _arrived(memory: int, place: int, layout: Layout, other: dict[str, Any]) -> ByteBatch:
    arrays = _arrays(np.asarray(_Lease(_memories[memory], place)), layout)
    return other | {name: torch.from_numpy(array) for name, array in arrays.items()}


def _layout(columns: dict[str, list[Tensor]]) -> tuple[Layout, int]:
    """Where the columns go, stacked, one after the other; and where they end."""
    layout: Layout = {}
    end = 0
    for name, values in columns.items():
        first, shape = values[0].numpy(), (len(values), *values[0].shape)
        layout[name] = end, shape, first.dtype
        end += -(-math.prod(shape) * first.itemsize // ALIGNMENT) * ALIGNMENT
    return layout, end


def _arrays(place: np.ndarray, layout: Layout) -> dict[str, np.ndarray]:
    return {
        name: np.ndarray(shape, kind, place, begin) for name, (begin, shape, kind) in layout.items()
    }
