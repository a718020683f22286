"""How long a command takes and how much memory it and its children use together (Linux)."""

import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

INTERVAL_S = 1.0


@dataclass(frozen=True)
class Measurement:
    """What a command cost.

    Attributes:
        seconds: wall time.
        peak_gb: the largest sum, over the process and its descendants, of proportional set sizes
            (shared pages counted once), in 10^9 bytes; NaN where /proc does not tell.
    """

    seconds: float
    peak_gb: float


def run_measured(arguments: list[str]) -> Measurement:
    """Run a command to its end with this terminal as its own.

    Raises:
        SystemExit: it failed; with its exit status.
    """
    start = time.monotonic()
    process = subprocess.Popen(arguments)
    peak, done = [float("nan")], threading.Event()

    def watch() -> None:
        while not done.wait(INTERVAL_S):
            now = sum(_proportional_bytes(pid) for pid in _family(process.pid)) / 1e9
            if now and not now <= peak[0]:
                peak[0] = now

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        status = process.wait()
    except KeyboardInterrupt:
        process.wait()  # the terminal has sent it the same signal; let it write its checkpoint
        raise
    finally:
        done.set()
        watcher.join()
    if status:
        sys.exit(status)
    return Measurement(time.monotonic() - start, peak[0])


def _family(pid: int) -> list[int]:
    """A process and all its descendants."""
    children: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children += map(int, task.read_text().split())
        except OSError:  # it has just ended
            continue
    return [pid, *(member for child in children for member in _family(child))]


def _proportional_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)
