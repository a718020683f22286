"""Processes that share work, one thread each; they end when the process that started them ends."""

import ctypes
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.context import BaseContext
from typing import Any, TypeVar

import numba
import torch

from core.errors import DataError

Result = TypeVar("Result")

# glibc keeps freed memory: in a virtual machine a fresh page may cost more than its arithmetic
MMAP_THRESHOLD, TRIM_THRESHOLD = 1 << 25, 2_000_000_000  # bytes; the first as large as it may be
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h

ENVIRONMENT = {
    # idle threads of a pool wait actively and would take the other workers' cores
    "OMP_NUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": str(MMAP_THRESHOLD),
    "MALLOC_TRIM_THRESHOLD_": str(TRIM_THRESHOLD),
}


def in_processes(
    work: Callable[..., Result],
    calls: Sequence[tuple[Any, ...]],
    jobs: int,
    initializer: Callable[..., None] | None = None,
    initargs: tuple[Any, ...] = (),
) -> Iterator[Result]:
    """Yields the results of ``work(*call)`` for all calls, as they come.

    An error of one call, or of the caller, ends the others that have not begun.

    Args:
        work: a function of a module.
        calls: its arguments, picklable.
        jobs: processes at most.
        initializer: is called once in each process before.
        initargs: its arguments.

    Raises:
        DataError: a process was ended from outside.
    """
    with ProcessPoolExecutor(
        min(jobs, len(calls)),
        _context(work),
        initializer=_start,
        initargs=(initializer, initargs),
    ) as pool:
        with _environment(ENVIRONMENT):  # the first submission starts the workers
            tasks = [pool.submit(work, *call) for call in calls]
        try:
            for task in as_completed(tasks):
                yield task.result()
        except BrokenProcessPool as error:
            raise DataError(
                "one of the working processes was ended from outside, maybe for want of memory. "
                "What is finished is kept: run the same command again, with fewer processes"
            ) from error
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def keep_freed_memory(worker: int = 0) -> None:
    """Memory that this process frees stays its own, where the C library is glibc.

    Args:
        worker: its number, as a ``DataLoader`` says it; nothing depends on it.
    """
    change = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if change is not None:
        change(M_MMAP_THRESHOLD, MMAP_THRESHOLD)
        change(M_TRIM_THRESHOLD, TRIM_THRESHOLD)


def _context(work: Callable[..., Any]) -> BaseContext:
    """Processes are copies of one that has imported all, once; where that cannot be, they import.

    Not of this one: a copy of a process in which torch has run threads may hang.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([work.__module__])
    return context


def _start(initializer: Callable[..., None] | None, initargs: tuple[Any, ...]) -> None:
    """One thread, an end when the parent ends, and what the caller wants besides."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    torch.set_num_threads(1)
    numba.set_num_threads(1)
    if initializer is not None:
        initializer(*initargs)


def _end_with(parent: multiprocessing.process.BaseProcess) -> None:
    parent.join()
    os._exit(1)


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Environment variables for processes that are started inside; afterwards as before."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
