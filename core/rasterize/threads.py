"""Run a compiled kernel over the images of a batch, on as many threads as torch uses."""

import ctypes
import os
import sys
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
    kernel: Callable[..., int], count: int, *arguments: object, threads: int = 0
) -> int:
    """The sum of kernel(first, last, *arguments) over ranges that cover the images 0 .. count - 1.

    The kernel must release the GIL, and write and accumulate per image only: then the result
    depends neither on the number of threads nor on who takes which range.

    Args:
        kernel: compiled with ``nogil=True``.
        count: number of images.
        arguments: handed on, tensors as NumPy arrays.
        threads: at most so many; 0 = as many as ``torch.get_num_threads()`` says.
    """
    arguments = tuple(
        each.detach().numpy() if isinstance(each, Tensor) else each for each in arguments
    )
    threads = min(threads or torch.get_num_threads(), count)
    if threads <= 1:
        return kernel(0, count, *arguments)
    portion = -(-count // (threads * PORTIONS))
    starts, sums, errors = counted(0, portion), [], []

    def work(_: object = None) -> None:
        try:
            while (first := next(starts)) < count:  # no two threads get the same
                sums.append(kernel(first, min(first + portion, count), *arguments))
        except BaseException as error:
            errors.append(error)

    parallel = openmp() if os.getpid() == HOME else None
    if parallel is None:
        _beside(work, threads)
    else:
        parallel(CALLBACK(work), None, torch.get_num_threads(), 0)
    for error in errors:
        raise error
    return sum(sums)


@cache
def openmp() -> Callable[..., None] | None:
    """OpenMP's entry: run a callback on every thread of the team that torch's operations use.

    These threads keep their cores busy for milliseconds after an operation, waiting for the next
    (``OMP_WAIT_POLICY``). Any others would have to share the cores with them; they are at hand at
    once. It takes the whole team even for few images: a smaller one would end the other threads.

    None where the library that torch was built with has no such entry, as on macOS and Windows. In
    a forked process the team is not there any more: never use it in one.
    """
    if not sys.platform.startswith("linux"):
        return None
    # found through torch, so that it is the library torch has loaded, whichever that is
    torchs = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
    parallel = getattr(torchs, "GOMP_parallel", None)
    if parallel is not None:
        parallel.argtypes = [CALLBACK, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        parallel.restype = None
    return parallel


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
