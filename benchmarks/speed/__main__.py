"""The command line: ``python -m benchmarks.speed render|step|data|index|gpu``."""

import argparse
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.speed import gpu, index, meshes, reading, report, stages, training
from benchmarks.speed.timing import Timing, measure
from core.cores import available_cores
from core.errors import MonofaceError

EMBEDDED = Path("data/synthetic")


def parser() -> argparse.ArgumentParser:
    """All options."""
    from benchmarks.speed import __doc__ as text

    whole = argparse.ArgumentParser(
        prog="python -m benchmarks.speed",
        description=text,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parts = whole.add_subparsers(dest="command", required=True)
    counts = sorted({1, available_cores()})
    found = {}
    for name, help_ in [
        ("render", "the stages of rendering"),
        ("step", "training steps"),
        ("data", "the reader"),
        ("index", "the first batch of a large set of shards"),
        ("gpu", "tests and figures of the GPU, into benchmarks/speed/results"),
    ]:
        found[name] = parts.add_parser(name, help=help_)
    for name, value in (("frames", 6_000_000), ("clips", 150_000), ("shards", 2_400)):
        found["index"].add_argument(f"--{name}", type=_positive, default=value)
    for name, part in found.items():
        if name == "index":
            continue
        part.add_argument("--rounds", type=_positive, default=15, help="samples of each")
        part.add_argument("--wait-quiet", action="store_true", help="until others leave the cores")
        if name != "gpu":
            part.add_argument("--json", type=Path, help="also write this file")
    render, step, data = found["render"], found["step"], found["data"]
    render.add_argument("--mesh", nargs="+", default=["coarse", "dense"], help="or a .npz")
    render.add_argument("--size", type=_positive, nargs="+", default=[112, 224])
    render.add_argument("--batch", type=_positive, nargs="+", default=[16])
    render.add_argument("--backend", nargs="+", choices=stages.BACKENDS, default=stages.BACKENDS)
    render.add_argument("--stage", nargs="+", choices=stages.STAGES, default=stages.STAGES)
    known = [*training.methods(), *training.NETWORKS]
    step.add_argument("--what", nargs="+", choices=known, default=known)
    step.add_argument("--mesh", default="dense", help="of the networks that are no method")
    step.add_argument(
        "--precision", nargs="+", choices=training.PRECISIONS, default=training.PRECISIONS
    )
    step.add_argument("--device", choices=["cpu", "cuda"], default=_device())
    for part, default in ((render, counts), (step, counts[-1:])):
        part.add_argument("--threads", type=_positive, nargs="+", default=default)
    data.add_argument("--root", type=Path, help="a tree of frames; default: the embedded set")
    data.add_argument("--size", type=_positive, default=224)
    data.add_argument("--part", nargs="+", choices=reading.PARTS, default=reading.PARTS)
    data.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    return whole


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def render(given: argparse.Namespace) -> dict[str, Timing]:
    """Each mesh, size and batch in turn; what belongs together is measured together."""
    timings: dict[str, Timing] = {}
    for mesh in map(meshes.load, given.mesh):
        for size in given.size:
            for batch in given.batch:
                rows = stages.candidates(
                    mesh, size, batch, given.threads, list(given.backend), list(given.stage)
                )
                new = [row for row in rows if row.key not in timings]
                timings |= measure(new, given.rounds, given.wait_quiet)
    return timings


def step(given: argparse.Namespace) -> dict[str, Timing]:
    """Each method and network in turn, with the shares that are not its networks."""
    timings: dict[str, Timing] = {}
    mesh = meshes.load(given.mesh)
    device = torch.device(given.device)
    for what in given.what:
        rows = training.candidates(what, mesh, list(given.precision), given.threads, device)
        timings |= measure(rows, given.rounds, given.wait_quiet)
    return timings


def data(given: argparse.Namespace) -> dict[str, Timing]:
    """The given tree, the embedded set if it was made, or a small one."""
    with tempfile.TemporaryDirectory() as folder:
        rows = []
        if "tree" in given.part:
            root = given.root or (
                EMBEDDED if EMBEDDED.is_dir() else reading.made(Path(folder) / "small")
            )
            rows += reading.candidates(root, given.size, 4, 4, given.workers)
        if {"shards", "prepare"} & {*given.part}:
            made = reading.Made(Path(folder) / "shards", given.size)
            rows += made.preparing() if "prepare" in given.part else []
            rows += made.reading(32, 4, given.workers) if "shards" in given.part else []
        spent: dict[str, list[float]] = {}
        rows = [reading.with_core_time(row, spent) for row in rows]
        timings = measure(rows, given.rounds, given.wait_quiet)
        print(reading.core_times(spent))
        return timings


def large_index(given: argparse.Namespace) -> int:
    """Simulated, once."""
    with tempfile.TemporaryDirectory() as folder:
        found = index.run(Path(folder) / "set", given.frames, given.clips, given.shards)
    print(
        f"{given.frames} frames in {given.clips} clips: first batch after {found.wall_s:.2f} s, "
        f"{found.core_s:.2f} s of a core; memory: modules {found.modules_gb:.3f} GB, with index "
        f"{found.opened_gb:.3f}, with the batch {found.peak_gb:.3f}, of which "
        f"{found.private_gb:.3f} are no pages of files"
    )
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write."""
    given = parser().parse_args(arguments)
    try:
        if given.command == "gpu":
            return gpu.run(given.rounds, given.wait_quiet)
        if given.command == "index":
            return large_index(given)
        timings = {"render": render, "step": step, "data": data}[given.command](given)
    except MonofaceError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    print(report.heading(report.about()))
    print(report.table(timings))
    for key, share in training.shares({k: t.median for k, t in timings.items()}).items():
        print(f"{key}: {100 * share:.1f} % of it is neither networks nor optimizer")
    if given.command == "data":
        for key, timing in timings.items():
            print(f"{key}: {1000 / timing.median:.0f} frames/s")
    if given.json:
        report.save(given.json, timings)
        print(f"written to {given.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
