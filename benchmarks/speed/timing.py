"""Candidates measured in turn, in one process."""

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

LEAST_S = 4e-3  # of a sample; shorter work is repeated
# Shorter work is done for so long before each sample: of threads that slept, Linux may wake two on
# one core, and takes some 16 ms to part them.
SETTLE_S = 2e-2
PAUSE_S = 1e-2  # between candidates: a pool of threads that still spins would disturb the next
QUIET = 0.1  # share of the cores that others may use before a sample is taken
PATIENCE_S = 60.0  # after which a sample is taken anyway


@dataclass(frozen=True)
class Candidate:
    """Something to be timed.

    Attributes:
        key: stage, mesh, size, batch, backend and threads, with slashes between them.
        run: does the work once; the first call may compile.
        images: how many images that is.
        threads: of torch and of our kernels; 0 = on a GPU, as many as there are.
    """

    key: str
    run: Callable[[], object]
    images: int
    threads: int


@dataclass(frozen=True)
class Timing:
    """Milliseconds per image.

    Attributes:
        median: of the samples.
        iqr: what the middle half of them spans.
        samples: one a round.
    """

    median: float
    iqr: float
    samples: tuple[float, ...]


def measure(
    candidates: list[Candidate], rounds: int = 15, wait_quiet: bool = False
) -> dict[str, Timing]:
    """Time all candidates, one sample of each a round.

    Args:
        candidates: with different keys.
        rounds: samples of each.
        wait_quiet: wait before each sample until other processes leave the cores alone (Linux).

    Raises:
        ValueError: two candidates have the same key.
    """
    keys = [candidate.key for candidate in candidates]
    if len(set(keys)) < len(keys):
        twice = sorted({key for key in keys if keys.count(key) > 1})
        raise ValueError(f"two candidates have the key {twice[0]!r}; each needs its own")
    repeats, before_it, samples = {}, {}, {key: list[float]() for key in keys}
    before = torch.get_num_threads()
    try:
        with _without_garbage_collection():
            for candidate in candidates:
                _sample(candidate, 1)  # compiles, fills caches
                once = _sample(candidate, 1)
                repeats[candidate.key] = max(1, round(LEAST_S / once))
                before_it[candidate.key] = round(SETTLE_S / once)
            for _ in range(rounds):
                for candidate in candidates:
                    time.sleep(PAUSE_S)
                    if wait_quiet:
                        _wait_until_quiet()
                    _sample(candidate, before_it[candidate.key])
                    count = repeats[candidate.key]
                    seconds = _sample(candidate, count) / count
                    samples[candidate.key].append(1e3 * seconds / candidate.images)
    finally:
        torch.set_num_threads(before)
    return {key: _timing(values) for key, values in samples.items()}


def _sample(candidate: Candidate, repeats: int) -> float:
    """Seconds of so many runs."""
    if candidate.threads and candidate.threads != torch.get_num_threads():
        torch.set_num_threads(candidate.threads)
    synchronize = torch.cuda.synchronize if candidate.threads == 0 else None
    if synchronize:
        synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        candidate.run()
    if synchronize:
        synchronize()
    return time.perf_counter() - start


def _timing(samples: list[float]) -> Timing:
    low, median, high = (
        statistics.quantiles(samples, n=4, method="inclusive")
        if len(samples) > 1
        else 3 * [samples[0]]
    )
    return Timing(median, high - low, tuple(samples))


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _wait_until_quiet() -> None:
    """Return once the machine was idle for a moment, or patience has run out."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        busy, total = _jiffies()
        time.sleep(0.1)
        busy_now, total_now = _jiffies()
        if busy_now - busy <= QUIET * max(1, total_now - total):
            return


def _jiffies() -> tuple[int, int]:
    """Busy and all ticks of all cores since the start of the machine; 0, 0 where /proc is not."""
    path = Path("/proc/stat")
    if not path.is_file():
        return 0, 0
    ticks = [int(value) for value in path.read_text().splitlines()[0].split()[1:9]]
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks)  # without idle and waiting for disks
