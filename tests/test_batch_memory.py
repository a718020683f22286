"""Batches arrive as they were made, stay while they are held, then give their place back."""

import ctypes
import multiprocessing
import resource
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from datamodules.augment import Augmentation
from datamodules.batch_memory import BatchMemory
from datamodules.reading import collate
from datamodules.workers import keep_freed_memory
from tests.fakes.dataset import faces

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only there are workers forked")


def clip(number: int) -> dict:
    values = torch.arange(24).reshape(2, 3, 4) + 100 * number
    found = {
        "images": values.to(torch.uint8),
        "landmarks": values.float() / 7,
        "multi_view": torch.tensor(number % 2 == 0),
        "sample_ids": [f"{number}/a", f"{number}/b"],
    }
    if number % 3 == 0:
        found["landmarks_3d"] = values.double()
    return found


CLIPS = [clip(number) for number in range(64)]


def loader(memory: BatchMemory, workers: int = 1) -> DataLoader:
    return DataLoader(
        CLIPS,  # type: ignore[arg-type]
        2,
        num_workers=workers,
        collate_fn=memory.collate,
        multiprocessing_context="fork",
    )


def within(memory: BatchMemory, tensor: torch.Tensor) -> bool:
    begin = memory.places.ctypes.data
    return begin <= tensor.data_ptr() < begin + memory.places.nbytes


def in_fork(work: Callable[[], int]) -> int:
    """What a copy of this process finds."""
    context = multiprocessing.get_context("fork")
    out, into = context.Pipe(duplex=False)
    process = context.Process(target=lambda: into.send(work()))
    process.start()
    found = out.recv()
    process.join()
    return found


def same(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        if isinstance(value, torch.Tensor):
            assert found[key].dtype == value.dtype
            assert torch.equal(found[key], value)
        else:
            assert found[key] == value


@pytest.mark.parametrize("workers", [1, 2])
def test_held_batches_stay_as_they_were(workers: int) -> None:
    memory = BatchMemory(workers, 4096)
    batches = list(loader(memory, workers))  # many more than there are places
    for number, batch in enumerate(batches):
        same(batch, collate(CLIPS[2 * number : 2 * number + 2]))
    inside = [within(memory, batch["images"]) for batch in batches]
    assert len(memory.places) // 2 <= sum(inside) <= len(memory.places) < len(batches)


def test_places_are_used_again() -> None:
    memory = BatchMemory(1, 4096)
    pointers = [batch["images"].data_ptr() for batch in loader(memory)]
    assert all(memory.places.ctypes.data <= p < memory.places[-1].ctypes.data + 1 for p in pointers)
    assert len(set(pointers)) <= len(memory.places) < len(pointers)
    assert not memory.taken.any()


def test_the_last_tensor_gives_the_place_back() -> None:
    memory = BatchMemory(1, 4096)
    batch = next(iter(loader(memory)))
    own = (batch["images"].data_ptr() - memory.places.ctypes.data) // memory.places.shape[1]
    view = batch["landmarks"][1, 0]
    expected = view.clone()
    del batch
    assert memory.taken[own]
    assert torch.equal(view, expected)
    del view
    assert not memory.taken[own]


def test_a_forked_process_does_not_give_places_back() -> None:
    memory = BatchMemory(1, 4096)
    batch = next(iter(loader(memory)))
    place = (batch["images"].data_ptr() - memory.places.ctypes.data) // memory.places.shape[1]

    def forget() -> int:
        batch.clear()
        return int(memory.taken[place])

    assert in_fork(forget) == 1
    assert memory.taken[place]


def test_what_is_too_large_arrives_all_the_same() -> None:
    memory = BatchMemory(1, 1)  # a page
    large = [clip(number) | {"images": torch.full((5000,), number)} for number in range(4)]
    batches = list(
        DataLoader(large, 2, num_workers=1, collate_fn=memory.collate)  # type: ignore[arg-type]
    )
    for number, batch in enumerate(batches):
        same(batch, collate(large[2 * number : 2 * number + 2]))
        assert not within(memory, batch["images"])


def test_a_training_reads_into_it() -> None:
    change = Augmentation(shift=0.1, flip=0.5, cover=0.5)
    batches = (
        faces(augmentation=change, batches_per_epoch=9, workers=workers).train_dataloader()
        for workers in (0, 2)
    )
    inside = 0
    plain, shared = batches
    for expected, batch in zip(plain, shared, strict=True):
        same(batch, expected)
        inside += within(shared.collate_fn.__self__, batch["images"])
    assert inside == 9  # there was room


def test_epochs_that_are_broken_off_leave_no_place_taken() -> None:
    training = faces(batches_per_epoch=6, workers=2).train_dataloader()
    memory = training.collate_fn.__self__
    for _ in range(5):
        batch = next(iter(training))
        assert within(memory, batch["images"])
    for batch in training:
        assert within(memory, batch["images"])
    del batch
    assert not memory.taken.any()


def test_freed_memory_is_kept() -> None:
    def faults() -> int:
        keep_freed_memory()
        np.ones(1 << 20)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(4):
            np.ones(1 << 20)  # 8 MiB, 2048 pages
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    if not hasattr(ctypes.CDLL(None), "mallopt"):
        pytest.skip("another C library")
    assert in_fork(faults) < 2048
