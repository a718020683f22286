"""``make gpu``: the tests that need a GPU, then the figures of the backends and steps on it."""

import re
import subprocess
import sys
import time
from pathlib import Path

import torch

from benchmarks.speed import meshes, report, stages, training
from benchmarks.speed.timing import Timing, measure
from core.cores import available_cores
from core.rasterize import drtk, nvdiffrast

RESULTS = Path(__file__).parent / "results"
LIMIT_S = 240  # of the tests; all together stay below 8 minutes
SIZE, BATCHES = 224, (5, 64)


def run(rounds: int = 15, wait_quiet: bool = False) -> int:
    """Test, measure, write results/<gpu>.json and .md; the exit status is that of the tests.

    Where there is no GPU nothing is measured on the CPU instead: what would have been is listed as
    "not run", in results/no_gpu.md, and the status is 0.
    """
    start = time.monotonic()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    print(f"GPU: {gpu or 'none'}")
    for library in (nvdiffrast, drtk):
        name = library.__name__.rpartition(".")[2]
        print(f"{name}: {'installed' if library.is_installed() else 'not installed'}")
    RESULTS.mkdir(exist_ok=True)
    if gpu is None:
        path = RESULTS / "no_gpu.md"
        text = f"{report.heading(report.about())}\nNo NVIDIA GPU here: nothing of this was run.\n\n"
        path.write_text(text + report.table({}) + report.not_run(_planned()), encoding="utf-8")
        print(f"no NVIDIA GPU: the CUDA tests and figures were {report.NOT_RUN}; see {path}")
        return 0
    status, summary = _tests()
    print(f"tests: {summary}")
    timings = _figures(rounds, wait_quiet)
    missing = [key for key in _planned() if key not in timings]
    name = re.sub(r"[^a-z0-9]+", "_", gpu.lower()).strip("_")
    path = RESULTS / f"{name}.json"
    report.save(path, timings, tests=summary, not_run=missing)
    text = f"{report.heading(report.about())}\nTests marked cuda: {summary}\n\n"
    text += report.table(timings, ours="nvdiffrast") + report.not_run(missing) + "\n"
    shares = training.shares({key: timing.median for key, timing in timings.items()})
    text += "".join(
        f"{key}: {100 * share:.1f} % is neither networks nor optimizer\n\n"
        for key, share in shares.items()
    )
    path.with_suffix(".md").write_text(text, encoding="utf-8")
    print(f"{text}\nwritten to {path}, in {time.monotonic() - start:.0f} s")
    return status


def _tests() -> tuple[int, str]:
    """Exit status and last line of pytest."""
    command = [sys.executable, "-m", "pytest", "-m", "cuda", "-q", "-ra", "-p", "no:cacheprovider"]
    try:
        done = subprocess.run(
            command, cwd=RESULTS.parents[2], capture_output=True, text=True, timeout=LIMIT_S
        )
    except subprocess.TimeoutExpired:
        return 1, f"stopped after {LIMIT_S} s"
    print(done.stdout + done.stderr)
    lines = done.stdout.strip().splitlines()
    return done.returncode, lines[-1].strip("= ") if lines else "no output"


def _figures(rounds: int, wait_quiet: bool) -> dict[str, Timing]:
    mesh, threads = meshes.load("dense"), [available_cores()]
    timings: dict[str, Timing] = {}
    for batch in BATCHES:
        rows = stages.candidates(
            mesh, SIZE, batch, threads, ["nvdiffrast", "drtk"], list(stages.STAGES)
        )
        timings |= measure(rows, rounds, wait_quiet)
    for what in [*training.methods(), *training.NETWORKS]:
        rows = training.candidates(
            what, mesh, list(training.PRECISIONS), threads, torch.device("cuda")
        )
        timings |= measure(rows, rounds, wait_quiet)
    return timings


def _planned() -> list[str]:
    """The keys of the backends on a GPU."""
    return [
        f"{stage}/dense/{SIZE}/{batch}/{backend}/cuda"
        for batch in BATCHES
        for backend in ("nvdiffrast", "drtk")
        for stage in stages.DRAWN
    ]
