"""core.rasterize.threads: each image once, on the threads that torch has; errors come out."""

import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from core.rasterize import threads
from core.rasterize.threads import over_images


@pytest.fixture(params=["OpenMP's", "our own"])
def team(request, monkeypatch):
    """Which threads are used."""
    if request.param == "our own":
        monkeypatch.setattr(threads, "openmp", lambda: None)
    elif threads.openmp() is None:
        pytest.skip("torch's OpenMP has no entry here")
    before = torch.get_num_threads()
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_every_image_is_done_once(team, number):
    torch.set_num_threads(number)
    for count in (0, 1, 2, 3, 5, 16, 41):
        done = np.zeros(count, int)

        def kernel(first, last, done):
            done[first:last] += 1
            return last - first

        assert over_images(kernel, count, done) == count
        assert (done == 1).all()


def test_several_threads_work_at_once(team):
    torch.set_num_threads(2)
    both = threading.Barrier(2, timeout=20)

    def kernel(first, last):
        both.wait()  # goes on only when another thread is here, too
        return threading.get_native_id()

    assert over_images(kernel, 2) > 0
    assert not both.broken


def test_errors_come_out_and_later_calls_work(team):
    torch.set_num_threads(2)

    def kernel(first, last):
        if first <= 3 < last:
            raise IndexError("image 3")
        return 1

    with pytest.raises(IndexError, match="image 3"):
        over_images(kernel, 8)
    assert over_images(lambda first, last: last - first, 8) == 8


def test_an_interrupt_comes_out_wherever_it_arrives(team):
    torch.set_num_threads(2)
    both = threading.Barrier(2, timeout=20)

    def kernel(first, last):
        both.wait()  # the main thread is one of them
        if threading.current_thread() is threading.main_thread():
            signal.raise_signal(signal.SIGINT)
        return 1

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # workers ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            over_images(kernel, 2)
    finally:
        signal.signal(signal.SIGINT, before)
    with pytest.raises(KeyboardInterrupt):  # as if it had been raised before the first line
        threads._in_team(lambda *_: None, lambda: None)


def test_all_is_done_by_a_smaller_team():
    done = []

    def one_thread(callback, *_):
        callback(None)

    threads._in_team(one_thread, lambda: done.append(threading.get_ident()))
    assert set(done) == {threading.get_ident()}


CHILD = """
import multiprocessing, torch
def child():
    import core.rasterize.threads as threads
    assert threads.over_images(lambda first, last: last - first, 8) == 8
torch.set_num_threads(2)
torch.ones(2**20).add_(1)  # the threads are there, and will not be in the child
process = multiprocessing.get_context("fork").Process(target=child)
process.start()
process.join(60)
process.kill()
process.join()
raise SystemExit(process.exitcode)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only there are processes forked")
def test_a_forked_process_may_import_it_first():
    subprocess.run([sys.executable, "-c", CHILD], check=True, timeout=120)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts them by /proc")
def test_it_makes_no_threads_beside_torchs():
    # with others, torch's, which wait for work without sleeping, would take half of their time
    if threads.openmp() is None:
        pytest.skip("torch's OpenMP has no entry here")

    def running():
        return {task.name for task in Path("/proc/self/task").iterdir()}

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(5)  # no other test uses so many
        torch.ones(2**20).add_(1)
        known = running()
        over_images(lambda first, last: last - first, 5)
        assert running() <= known
    finally:
        torch.set_num_threads(before)
