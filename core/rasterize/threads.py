"""Run a compiled kernel over the images of a batch, on as many threads as torch uses."""

import ctypes
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import count as counted
from pathlib import Path

import torch
from torch import Tensor

PORTIONS = 4  # of a thread's images: who is disturbed takes fewer
HOME = os.getpid()
CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def over_images(
    kernel: Callable[..., int], count: int, *arguments: object, parallel: bool = True
) -> int:
    """The sum of kernel(first, last, *arguments) over ranges that cover the images 0 .. count - 1.

    The kernel must release the GIL, and write and accumulate per image only: then the result
    depends neither on the number of threads (``torch.set_num_threads``) nor on who takes which
    range.

    Args:
        kernel: compiled with ``nogil=True``.
        count: number of images, or of parts of images for kernels that work on these.
        arguments: handed on, tensors as NumPy arrays.
        parallel: if not, all images are one range.
    """
    arguments = tuple(
        each.detach().numpy() if isinstance(each, Tensor) else each for each in arguments
    )
    threads = min(torch.get_num_threads(), count) if parallel else 1
    if threads <= 1:
        return kernel(0, count, *arguments)
    portion = -(-count // (threads * PORTIONS))
    starts = counted(0, portion)
    sums: list[int] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            while not errors and (first := next(starts)) < count:  # no two threads get the same
                sums.append(kernel(first, min(first + portion, count), *arguments))
        except BaseException as error:
            errors.append(error)

    team = openmp() if os.getpid() == HOME else None
    if team is None:
        _beside(work, threads)
    else:
        _in_team(team, work)
    try:
        if errors:
            raise errors[0]
    finally:
        errors.clear()  # their tracebacks hold the arguments
    return sum(sums)


@cache
def openmp() -> Callable[..., None] | None:
    """OpenMP's entry: run a callback on every thread of the team that torch's operations use.

    These threads keep their cores busy for milliseconds after an operation, waiting for the next
    (``OMP_WAIT_POLICY``). Any others would have to share the cores with them; they are at hand at
    once. Like torch's operations, each thread of the program that renders has a team of its own.

    None where the library that torch was built with has no such entry, as on macOS and Windows, and
    in a forked process, in which the team is not there any more. (A fork that ``multiprocessing``
    does not know of is seen only if this module was imported before. In such a process torch's own
    operations hang as well.)
    """
    if not sys.platform.startswith("linux"):
        return None
    if isinstance(multiprocessing.current_process(), multiprocessing.context.ForkProcess):
        return None
    torchs = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    # as the loader looks for it when torch calls it: among what all libraries see, then in torch's
    for path in (None, str(torchs)):
        try:
            parallel = ctypes.CDLL(path).GOMP_parallel
        except (OSError, AttributeError):
            continue
        parallel.argtypes = [CALLBACK, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        parallel.restype = None
        return parallel
    return None


def _in_team(team: Callable[..., None], work: Callable[[], None]) -> None:
    """Run it on all of torch's threads; fewer would end the others."""
    ended: dict[int, bool] = {}

    def callback(_: object) -> None:
        work()
        ended[threading.get_ident()] = True

    team(CALLBACK(callback), None, torch.get_num_threads(), 0)
    if threading.get_ident() not in ended:
        # a signal's handler has raised where ctypes can only print it
        raise KeyboardInterrupt
    work()  # nothing, unless there were fewer threads


def _beside(work: Callable[[], None], threads: int) -> None:
    """Run it on the calling thread and on others of our own."""
    others = [_pool(os.getpid(), threads).submit(work) for _ in range(threads - 1)]
    work()
    for other in others:
        other.result()


@cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """The threads beside the calling one; a forked process makes its own."""
    return ThreadPoolExecutor(threads - 1, thread_name_prefix=f"rasterize-{process}")
