"""Processes that share work, one thread each; they end when the process that started them ends."""

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from typing import Any, Generic, TypeVar

import numba
import torch

from core.errors import DataError

Result = TypeVar("Result")

# glibc keeps freed memory: in a virtual machine a fresh page may cost more than its arithmetic
MMAP_THRESHOLD, TRIM_THRESHOLD = 1 << 25, 2_000_000_000  # bytes; the first as large as it may be
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h

TOGETHER = 0.02  # seconds in which results are sent together: one by one a third slower

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


class Apart(Generic[Result]):
    """Calls a function that yields in a process of its own, which may crash or hang.

    The process is started when it is needed and serves one call after the other; it ends with this
    one. Where it dies, another one begins the call again, once, and what was given is left out.

    Args:
        work: a function of a module that yields the same whenever it is called with the same;
            arguments, what it yields and its errors are picklable.
    """

    def __init__(self, work: Callable[..., Iterator[Result]]) -> None:
        self.work = work
        self._process: Any = None

    def __call__(self, patience: int, *call: Any) -> Iterator[Result]:
        """Yields what ``work(*call)`` yields, and raises what it raises.

        Args:
            patience: seconds between two results after which the process is ended.
            *call: arguments.

        Raises:
            DataError: the process died twice, or hung.
        """
        given = 0
        for last in (False, True):
            try:
                for number, result in enumerate(self._results(patience, call)):
                    if number >= given:
                        given += 1
                        yield result
                return
            except _ProcessDiedError as error:
                if last:
                    raise DataError(f"ended the process that read it, twice: {error}") from error

    def _results(self, patience: int, call: tuple[Any, ...]) -> Iterator[Result]:
        """Of one attempt.

        Raises:
            _ProcessDiedError: the process did.
            DataError: it hung.
        """
        if self._process is None:
            self._start()
        finished = False
        try:
            self._pipe.send(call)
            while True:
                for _ in range(patience):  # so that the time in which this machine slept is none
                    if self._pipe.poll(1):
                        break
                else:
                    raise DataError(f"nothing came of it for {patience} s: given up")
                results, ended, error = self._pipe.recv()
                finished = ended
                yield from results
                if error is not None:
                    raise error
                if ended:
                    return
        except (EOFError, OSError) as error:
            if finished:  # it is what the function raised
                raise
            self._process.join(10)
            code = self._process.exitcode
            name = signal.Signals(-code).name if code and code < 0 else f"exit code {code}"
            raise _ProcessDiedError(name) from error
        finally:
            if not finished:
                self._end()

    def _start(self) -> None:
        context = _context(self.work)
        if sys.platform == "linux" and multiprocessing.parent_process() is not None:
            # a worker: nothing has run threads in it, and it cannot reach its own fork server
            context = multiprocessing.get_context("fork")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(  # type: ignore[attr-defined]
            target=_serve, args=(theirs, self.work), daemon=True
        )
        with _environment(ENVIRONMENT):
            self._process.start()
        theirs.close()

    def _end(self) -> None:
        self._process.kill()
        self._process.join(10)
        self._pipe.close()
        self._process = None


class _ProcessDiedError(Exception):
    """Says how."""


def _serve(pipe: Connection, work: Callable[..., Iterator[Any]]) -> None:
    """Calls until there are none, or nobody to take what comes of them."""
    _start(None, ())
    while True:
        try:
            call = pipe.recv()
        except EOFError:
            return
        results: list[Any] = []
        failure = None
        try:
            sent = time.monotonic()
            for result in work(*call):
                results.append(result)
                if time.monotonic() - sent > TOGETHER:
                    pipe.send((results, False, None))
                    results, sent = [], time.monotonic()
        except BrokenPipeError:
            return
        except Exception as error:
            error.add_note(traceback.format_exc())
            failure = error
        pipe.send((results, True, failure))


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
