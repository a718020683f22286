"""Benchmarks from the command line.

    python -m benchmarks run aflw2000 --checkpoint runs/cest/checkpoints/best.ckpt --root AFLW2000
    python -m benchmarks score aflw2000 --predictions P.npy --labels GT.npy --yaw YAW.npy
    python -m benchmarks score micc --root micc --predictions meshes --unit cm --name Theirs
    python -m benchmarks report "runs/**" --out report

``run`` scores a trained method; ``score`` what any program has written: arrays of landmarks, or a
folder of meshes with landmarks (``benchmarks/predictions.py`` says how it looks). What else can be
set: ``python -m benchmarks run micc --help``. ``report`` makes leaderboards of all results in some
folders, as a page, Markdown and LaTeX.
"""

import json
import re
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from benchmarks.base import Benchmark, Results
from core.errors import DataError, MonofaceError

BENCHMARKS = {
    "aflw2000": "benchmarks.aflw2000.AFLW2000",
    "aflw2000_dense": "benchmarks.aflw2000_dense.AFLW2000Dense",
    "micc": "benchmarks.micc.MICC",
    "micc_renderings": "benchmarks.renderings.MICCRenderings",
    "facewarehouse": "benchmarks.facewarehouse.FaceWarehouse",
    "bu3dfe": "benchmarks.bu3dfe.BU3DFE",
    "frgc": "benchmarks.frgc.FRGC",
    "celeba": "benchmarks.celeba.CelebA",
    "now": "benchmarks.now.NoW",
    "realy": "benchmarks.realy.REALY",
}
RESULTS = Path("runs/benchmarks")
FROM_RUN = {"image_size": "model", "crop_margin": "data.init_args"}  # where a run's config has them


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit status: 0; 1 if nothing could be scored; 2 if something is missing or wrong.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    command, name, rest = (*arguments[:2], *[""] * (2 - len(arguments[:2])), arguments[2:])
    if command == "report":
        return _reporting(lambda: _leaderboards(arguments[1:]))
    if command not in COMMANDS or name not in BENCHMARKS:
        known = f"benchmarks: {', '.join(BENCHMARKS)}\n"
        asked = command in ("-h", "--help")
        (sys.stdout if asked else sys.stderr).write(f"{__doc__}\n{known}")
        return 0 if asked else 2
    return _reporting(lambda: COMMANDS[command](name, rest))


def _reporting(action: Callable[[], int]) -> int:
    """What the action returns, or 2 and a message about what the user can put right."""
    try:
        return action()
    except MonofaceError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2


def benchmark_class(name: str) -> type[Benchmark]:
    """By the name on the command line."""
    module, _, found = BENCHMARKS[name].rpartition(".")
    benchmark: type[Benchmark] = getattr(import_module(module), found)
    return benchmark


def _run(name: str, arguments: list[str]) -> int:
    from benchmarks.checkpoint import load_predictor, run_settings
    from core.provenance import file_hash, run_provenance

    parser = _parser(f"run {name}")
    parser.add_argument("--checkpoint", type=Path, required=True, help="of a run's folder")
    keys = parser.add_class_arguments(benchmark_class(name))
    given, _ = _checkpoint_parser().parse_known_args(arguments)
    method = None
    if given.checkpoint is not None:
        method, config = run_settings(given.checkpoint)
        parser.set_defaults({k: v for k, v in _of_run(config).items() if k in keys})
    options = parser.parse_args(arguments)
    benchmark = benchmark_class(name)(**{key: options[key] for key in keys})
    results = benchmark.run(load_predictor(options.checkpoint))
    path = options.checkpoint
    folder = options.out or path.parent.parent / "benchmarks"
    of_run = {"checkpoint_sha256": file_hash(path), **run_provenance(path.parent.parent)}
    return _report(results.with_run(method=method, checkpoint=str(path), **of_run), folder)


def _checkpoint_parser() -> Any:
    """Only looks for the checkpoint, whose run has the defaults of the rest."""
    import argparse

    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--checkpoint", type=Path)
    return parser


def _of_run(config: dict[str, Any]) -> dict[str, Any]:
    """What a run's config says that its benchmarks need, too."""
    found = {}
    for key, place in FROM_RUN.items():
        section: Any = config
        for part in place.split("."):
            section = (section or {}).get(part)
        if key in (section or {}):
            found[key] = section[key]
    return found


def _score(name: str, arguments: list[str]) -> int:
    if name == "aflw2000":
        return _score_arrays(arguments)
    from benchmarks.predictions import MeshFolder
    from benchmarks.scans import MeshBenchmark

    if not issubclass(benchmark_class(name), MeshBenchmark):
        raise DataError(f"{name} compares colours, not meshes: python -m benchmarks run {name}")
    parser = _parser(f"score {name}")
    parser.add_argument("--predictions", type=Path, required=True, help="folder of meshes")
    parser.add_argument("--unit", type=str, default="mm", help="of the meshes: mm, cm, dm, m, um")
    parser.add_argument("--name", type=str | None, help="of the method; default: the folder's")
    keys = parser.add_class_arguments(benchmark_class(name))
    options = parser.parse_args(arguments)
    benchmark = benchmark_class(name)(**{key: options[key] for key in keys})
    assert isinstance(benchmark, MeshBenchmark)
    folder = MeshFolder(options.predictions, options.unit, benchmark.needs_landmarks)
    results = benchmark.score(folder)
    method = options.name or options.predictions.resolve().name
    results = results.with_run(name=method, predictions=str(options.predictions))
    return _report(results, options.out or RESULTS / _file_name(method))


def _file_name(method: str) -> str:
    """A folder's name for a method, so that one's results do not replace another's."""
    return re.sub(r"[^\w.-]+", "_", method).strip("._") or "unnamed"


def _parser(command: str) -> ArgumentParser:
    parser = ArgumentParser(prog=f"python -m benchmarks {command}")
    where = f"folder of the .json and .md; default: the run's, or {RESULTS}/<method>"
    parser.add_argument("--out", type=Path | None, help=where)
    return parser


def _report(results: Results, folder: Path) -> int:
    paths = results.save(folder)
    sys.stdout.write(f"{results.to_markdown()}\nwritten to {', '.join(map(str, paths))}\n")
    return 0 if results.means() else 1


def _score_arrays(arguments: list[str]) -> int:
    from benchmarks.aflw2000 import score_arrays

    parser = ArgumentParser(prog="python -m benchmarks score aflw2000")
    for name, meaning in (
        ("predictions", ".npy (n, 68, 2 or 3) or (n, 2 or 3, 68), pixels"),
        ("labels", ".npy, true points in the same pixels"),
        ("yaw", ".npy (n,), degrees"),
    ):
        parser.add_argument(f"--{name}", type=Path, required=True, help=meaning)
    parser.add_argument("--json", type=Path | None, help="also write the figures there")
    options = parser.parse_args(arguments)
    found = score_arrays(options.predictions, options.labels, options.yaw)
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(found, indent=2, allow_nan=False) + "\n"
        options.json.write_text(text, encoding="utf-8")
    count, (first, second, third) = sum(found["counts"]), found["counts"]
    lines = [f"NME in % of {count} images, {found['failures']} failures left out"]
    for key, meaning in (
        ("nme_0_30", f"|yaw| <= 30 ({first})"),
        ("nme_30_60", f"30 < |yaw| <= 60 ({second})"),
        ("nme_60_90", f"|yaw| > 60 ({third})"),
        ("nme_mean", "mean of the bins"),
        ("nme_std", "standard deviation of the bins' means"),
        ("nme_all", "all images"),
    ):
        value = found[key]
        lines.append(f"{key:10} {'-' if value is None else f'{value:.3f}':>8}  {meaning}")
    sys.stdout.write("\n".join(lines) + "\n")
    return 0 if count else 1


def _leaderboards(arguments: list[str]) -> int:
    from benchmarks.report.pages import write_report

    parser = ArgumentParser(prog="python -m benchmarks report")
    parser.add_argument("places", type=str, nargs="+", help="folders, files or patterns of results")
    parser.add_argument("--out", type=Path, default=Path("report"), help="folder; it is made")
    options = parser.parse_args(arguments)
    written = write_report(options.places, options.out)
    sys.stdout.write(f"written: {', '.join(map(str, written))}\n")
    return 0


COMMANDS: dict[str, Callable[[str, list[str]], int]] = {"run": _run, "score": _score}


if __name__ == "__main__":
    sys.exit(main())
