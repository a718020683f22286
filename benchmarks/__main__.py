"""Benchmarks from the command line.

    python -m benchmarks run aflw2000 --checkpoint runs/cest/checkpoints/best.ckpt --root AFLW2000
    python -m benchmarks run synthetic --checkpoint ... --root data/synthetic --swap
    python -m benchmarks score aflw2000 --predictions P.npy --labels GT.npy --yaw YAW.npy
    python -m benchmarks score micc --root micc --predictions meshes --unit cm --name Theirs
    python -m benchmarks report "runs/**" --out report

``run`` scores a trained method; ``score`` what any program has written: arrays of landmarks, or a
folder of meshes with landmarks (``benchmarks/predictions.py`` says how it looks). What else can be
set: ``python -m benchmarks run micc --help``; lists are written as --subjects '["subject_01"]'.
``report`` makes leaderboards of all results in some folders, as a page, Markdown and LaTeX.
"""

import inspect
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
    "synthetic": "benchmarks.synthetic_faces.SyntheticFaces",
}
RESULTS = Path("runs/benchmarks")
PLAIN = ("nme_0_30", "nme_30_60", "nme_60_90", "nme_mean", "nme_std", "nme_all")
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
        if {"-h", "--help"} & {command, name}:
            sys.stdout.write(f"{__doc__}\n{known}")
            return 0
        wrong = f"no benchmark '{name}'" if command in COMMANDS else f"no command '{command}'"
        sys.stderr.write(f"{__doc__}\n{known}error: {wrong if command else 'no command'}\n")
        return 2
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
    meaning = "score with the true identity, expression or pose swapped in, too (PGN, Fig. 1)"
    parser.add_argument("--swap", action="store_true", help=meaning)
    keys = parser.add_class_arguments(benchmark_class(name))
    given, _ = _checkpoint_parser(parser.prog).parse_known_args(arguments)
    method = None
    if given.checkpoint is not None:
        method, config = run_settings(given.checkpoint)
        parser.set_defaults({k: v for k, v in _of_run(config).items() if k in keys})
    options, benchmark = _parsed(parser, name, arguments)
    if options.swap:
        benchmark = _swapping(benchmark, name, options)
    results = benchmark.run(load_predictor(options.checkpoint))
    path = options.checkpoint
    folder = options.out or path.parent.parent / "benchmarks"
    of_run = {"checkpoint_sha256": file_hash(path), **run_provenance(path.parent.parent)}
    status = _report(results.with_run(method=method, checkpoint=str(path), **of_run), folder)
    if options.swap:
        from benchmarks.swap import picture

        picture([results]).save(folder / f"{results.benchmark}.png")
    return status


def _swapping(benchmark: Benchmark, name: str, options: Any) -> Benchmark:
    """The same with the truth swapped in.

    Raises:
        DataError: of this benchmark's data the truth is not known.
    """
    from benchmarks.swap import SyntheticSwap
    from benchmarks.synthetic_faces import SyntheticFaces

    if not isinstance(benchmark, SyntheticFaces):
        raise DataError(f"--swap: pose and identity are known only of 'synthetic', not of '{name}'")
    keys = inspect.signature(SyntheticFaces).parameters
    return SyntheticSwap(**{key: options[key] for key in keys})


def _parsed(parser: ArgumentParser, name: str, arguments: list[str]) -> tuple[Any, Benchmark]:
    """All options, and the benchmark that those of its own make."""
    kind = benchmark_class(name)
    options = parser.instantiate(parser.parse_args(arguments))
    return options, kind(**{key: options[key] for key in inspect.signature(kind).parameters})


def _checkpoint_parser(program: str) -> Any:
    """Only looks for the checkpoint, whose run has the defaults of the rest."""
    import argparse

    parser = argparse.ArgumentParser(program, add_help=False)
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
        raise DataError(f"{name} compares more than meshes: python -m benchmarks run {name}")
    parser = _parser(f"score {name}")
    parser.add_argument("--predictions", type=Path, required=True, help="folder of meshes")
    parser.add_argument("--unit", type=str, default="mm", help="of the meshes: mm, cm, dm, m, um")
    parser.add_argument("--name", type=str | None, help="of the method; default: the folder's")
    parser.add_class_arguments(benchmark_class(name))
    options, benchmark = _parsed(parser, name, arguments)
    assert isinstance(benchmark, MeshBenchmark)
    folder = MeshFolder(options.predictions, options.unit, benchmark.needs_landmarks)
    results = benchmark.score(folder)
    return _report_others(results, options, options.predictions.resolve().name)


def _report_others(results: Results, options: Any, default: str) -> int:
    """What somebody else's method was scored with."""
    method = options.name or default
    results = results.with_run(name=method, predictions=str(options.predictions))
    return _report(results, options.out or RESULTS / _file_name(method))


def _file_name(method: str) -> str:
    """A folder's name for a method, so that one's results do not replace another's."""
    return re.sub(r"[^\w.-]+", "_", method).strip("._") or "unnamed"


def _parser(command: str) -> ArgumentParser:
    parser = ArgumentParser(prog=f"python -m benchmarks {command}", allow_abbrev=False)
    where = f"folder of the .json and .md; default: the run's, or {RESULTS}/<method>"
    parser.add_argument("--out", type=Path | None, help=where)
    return parser


def _report(results: Results, folder: Path) -> int:
    sys.stdout.write(results.to_markdown())
    try:
        paths = results.save(folder)
    except OSError as error:
        raise DataError(f"the results cannot be written to '{folder}': {error}") from error
    sys.stdout.write(f"\nwritten to {', '.join(map(str, paths))}\n")
    return 0 if results.means() else 1


def _score_arrays(arguments: list[str]) -> int:
    from benchmarks.aflw2000 import score_arrays

    parser = _parser("score aflw2000")
    for name, meaning in (
        ("predictions", ".npy (n, 68, 2 or 3) or (n, 2 or 3, 68), pixels"),
        ("labels", ".npy, true points in the same pixels"),
        ("yaw", ".npy (n,), degrees"),
    ):
        parser.add_argument(f"--{name}", type=Path, required=True, help=meaning)
    parser.add_argument("--json", type=Path | None, help="also write the plain figures there")
    parser.add_argument("--name", type=str | None, help="of the method; default: the file's")
    options = parser.parse_args(arguments)
    results, figures = score_arrays(options.predictions, options.labels, options.yaw)
    lines = [f"{k} {'-' if figures[k] is None else f'{figures[k]:.4f}'}" for k in PLAIN]
    sys.stdout.write("\n".join(lines) + "\n\n")
    status = _report_others(results, options, options.predictions.stem)
    if options.json is not None:
        text = json.dumps(figures, indent=2, allow_nan=False) + "\n"
        try:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(text, encoding="utf-8")
        except OSError as error:
            raise DataError(f"'{options.json}' cannot be written: {error}") from error
    return status


def _leaderboards(arguments: list[str]) -> int:
    from benchmarks.report.pages import write_report
    from benchmarks.report.runs import find_runs

    parser = ArgumentParser(prog="python -m benchmarks report", allow_abbrev=False)
    parser.add_argument("places", type=str, nargs="+", help="folders, files or patterns of results")
    parser.add_argument("--out", type=Path, default=Path("report"), help="folder; it is made")
    options = parser.parse_args(arguments)
    found = find_runs(options.places)
    written = write_report(found, options.out)
    for path, why in list(found.left_out.items())[:1]:
        sys.stderr.write(
            f"left out: {len(found.left_out)} files, named in the report; {path}: {why}\n"
        )
    sys.stdout.write(f"written: {', '.join(map(str, written))}\n")
    return 0


COMMANDS: dict[str, Callable[[str, list[str]], int]] = {"run": _run, "score": _score}


if __name__ == "__main__":
    sys.exit(main())
