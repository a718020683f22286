"""Run a compiled kernel over the images of a batch, on as many threads as torch uses."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor


def over_images(
    kernel: Callable[..., int], count: int, *arguments: object, threads: int = 0
) -> int:
    """The sum of kernel(first, last, *arguments) over ranges that cover the images 0 .. count - 1.

    The kernel must release the GIL, and write and accumulate per image only: then the result does
    not depend on the number of threads. A pool of ordinary threads rather than numba's ``prange``,
    whose OpenMP pool ends the process when a program that has rendered forks (a DataLoader worker
    does) and the child renders, too.

    Args:
        kernel: compiled with ``nogil=True``.
        count: number of images.
        arguments: handed on, tensors as NumPy arrays.
        threads: at most so many; 0 = as many as ``torch.get_num_threads()`` says.
    """
    arguments = tuple(
        each.detach().numpy() if isinstance(each, Tensor) else each for each in arguments
    )
    threads = max(1, min(threads or torch.get_num_threads(), count))
    bounds = [count * i // threads for i in range(threads + 1)]
    if threads == 1:
        return kernel(0, count, *arguments)
    pool = _pool(os.getpid(), threads)
    others = [pool.submit(kernel, first, last, *arguments) for first, last in pairwise(bounds[1:])]
    return kernel(bounds[0], bounds[1], *arguments) + sum(other.result() for other in others)


@cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """The threads beside the calling one; a forked process makes its own."""
    return ThreadPoolExecutor(threads - 1, thread_name_prefix=f"rasterize-{process}")
