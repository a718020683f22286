r"""An ablation of a method against its default, at the same budget, over several seeds.

    python -m benchmarks.ablation iest --seeds 1 2 3 [-- --trainer.max_steps 500 ...]
    python -m benchmarks.ablation single_views
    python -m benchmarks.ablation single_frame --runs runs/single_frame \
        -- --model.start_from=runs/pgn_{seed}/checkpoints/last.ckpt --trainer.max_steps=500

Trains and scores both, seed by seed, and writes benchmarks/results/ablation_<name>.json and .md:
mean and spread of each metric, and the differences seed by seed. ``{seed}`` in an option is the
seed. A run that is finished is used again, by other ablations of the method, too, if its options
are the same; they are in its options.json.
"""

import argparse
import json
import shlex
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from benchmarks.base import Results
from benchmarks.swap import picture
from core.errors import DataError, MonofaceError

SYNTHETIC, SWAP = "synthetic", "synthetic_swap"  # the benchmarks, by the names of their results
OPTIONS = "options.json"  # of a run's folder: all that it was trained with besides the default
ALL = ("photometric_255", "albedo_255", "nme_percent", "pose_degrees", "shape_mm", "neutral_mm")


@dataclass(frozen=True)
class Ablation:
    """What is left out of a method.

    Args:
        method: with its default config.
        overlay: the config that leaves it out.
        metrics: that are compared.
        swapped: metrics of ``benchmarks.swap`` that are compared, too.
        both: options of both trainings.
        whole: options of the whole method's alone.
    """

    method: str
    overlay: str
    metrics: tuple[str, ...] = ALL
    swapped: tuple[str, ...] = ()
    both: tuple[str, ...] = ()
    whole: tuple[str, ...] = ()

    @property
    def compared(self) -> tuple[str, ...]:
        """All of them."""
        return self.metrics + self.swapped

    def variants(self, name: str) -> dict[str, list[str]]:
        """The options of the whole method and of what is left of it, by their names."""
        return {
            self.method: [*self.both, *self.whole],
            name: [f"--config={self.overlay}", *self.both],
        }


GEOMETRY = (
    *("nme_percent", "nme_to_90_percent", "pose_degrees", "pose_to_90_degrees"),
    *("shape_mm", "neutral_mm"),
)
SHADING = ("shading_percent", "shading_power_percent")
DENSE = ("dense_own_all_percent", "dense_own_to_90_percent")
ABLATIONS = {
    "iest": Ablation("cest", "configs/ablations/cest_iest.yaml"),
    "photometric_landmark": Ablation("deng", "configs/ablations/deng_photometric_landmark.yaml"),
    "landmark_perceptual": Ablation("deng", "configs/ablations/deng_landmark_perceptual.yaml"),
    "single_frames": Ablation("fml", "configs/ablations/fml_train1.yaml", (*ALL, *SHADING)),
    "two_frames": Ablation("fml", "configs/ablations/fml_train2.yaml", (*ALL, *SHADING)),
    "single_views": Ablation(
        "mgcnet",
        "configs/ablations/mgcnet_baseline.yaml",
        ("pose_to_30_degrees", "pose_to_60_degrees", "pose_to_90_degrees", *ALL),
    ),
    "regressed_pose": Ablation("pgn", "configs/ablations/pgn_regressed_pose.yaml", GEOMETRY, DENSE),
    "single_frame": Ablation(  # step 3, after 1 and 2, against more of 2
        "pgn",
        "configs/ablations/pgn_single_frame.yaml",
        GEOMETRY,
        DENSE,
        both=(
            "--model.start_from=runs/pgn_{seed}/checkpoints/last.ckpt",
            "--model.landmark_steps=0",
        ),
        whole=("--model.single_steps=0",),
    ),
}
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Run what is missing, then summarize."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ablation", description=__doc__)
    parser.add_argument("name", choices=sorted(ABLATIONS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--runs", type=Path, default=Path("runs/ablation"), help="where to train")
    parser.add_argument(
        "--whole",
        metavar="OPTIONS",
        default="",
        help="further options of the whole method alone, in one word: more steps, where it is "
        "cheaper and both are to have the same time",
    )
    arguments, options = _split(sys.argv[1:])
    given = parser.parse_args(arguments)
    ablation = ABLATIONS[given.name]
    alone = shlex.split(given.whole)
    variants = {
        variant: [*chosen, *options, *(alone if variant == ablation.method else [])]
        for variant, chosen in ablation.variants(given.name).items()
    }
    scores: dict[str, list[dict[str, float]]] = {variant: [] for variant in variants}
    for seed in given.seeds:
        for variant, found in scores.items():
            run = given.runs / f"{variant}_{seed}"
            try:
                scored = train_and_score(ablation, run, seed, variants[variant])
            except MonofaceError as error:
                parser.exit(2, f"error: {error}\n")
            found.append(scored)
            print(variant, seed, found[-1], flush=True)
    summary = {
        "seeds": given.seeds,
        "options": options,
        **({"options_whole": alone} if alone else {}),
        **{variant: summarize(found, ablation.compared) for variant, found in scores.items()},
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"ablation_{given.name}.json"
    path.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    text = table(summary, given.name)
    path.with_suffix(".md").write_text(text, encoding="utf-8")
    if ablation.swapped:
        _swap_picture(given.runs, given.seeds, ablation.method, given.name).save(
            path.with_suffix(".png")
        )
    print(f"{text}\nwritten to {path}")


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The arguments before "--", which are ours, and those after it, for every training."""
    at = arguments.index("--") if "--" in arguments else len(arguments)
    return arguments[:at], arguments[at + 1 :]


def train_and_score(
    ablation: Ablation, run: Path, seed: int, options: list[str]
) -> dict[str, float]:
    """The means of the metrics after training in this folder; a finished run is not trained
    again, and scored again only if a metric is not among its results.

    Raises:
        MonofaceError: a run with other options, or with unknown ones, is there.
        DataError: the run's benchmark does not say which data it scored.
    """
    options = [option.replace("{seed}", str(seed)) for option in options]
    _claim(run, options)
    scored = {name: run / "benchmarks" / f"{name}.json" for name in (SYNTHETIC, SWAP)}
    for subcommand in _missing(scored[SYNTHETIC], ablation.metrics):
        command = [sys.executable, "-m", f"methods.{ablation.method}", subcommand]
        command += [f"--config=configs/{ablation.method}.yaml", *options, "--ckpt_path=last"]
        command += [f"--trainer.default_root_dir={run}", f"--seed_everything={seed}"]
        subprocess.run(command, check=True)
    if ablation.swapped and not scored[SWAP].is_file():
        checkpoint = run / "checkpoints/last.ckpt"
        command = [sys.executable, "-m", "benchmarks", "run", "synthetic", "--swap"]
        command += [f"--checkpoint={checkpoint}", f"--root={_scored_data(run)}"]
        subprocess.run(command, check=True)
    values: dict[str, float] = {}
    for benchmark, names in ((SYNTHETIC, ablation.metrics), (SWAP, ablation.swapped)):
        metrics = json.loads(scored[benchmark].read_text())["metrics"] if names else {}
        values |= {name: metrics[name]["value"]["mean"] for name in names}
    return values


def _missing(scored: Path, metrics: tuple[str, ...]) -> tuple[str, ...]:
    """What of training and scoring a run lacks."""
    if not scored.is_file():
        return "fit", "test"
    known = json.loads(scored.read_text(encoding="utf-8"))["metrics"]
    return () if set(metrics) <= known.keys() else ("test",)


def _claim(run: Path, options: list[str]) -> None:
    """Write into a run's folder what it is trained with, or see that it was trained with that."""
    path = run / OPTIONS
    there = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    if there is None and not (run.is_dir() and any(run.iterdir())):
        run.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(options, indent=2) + "\n", encoding="utf-8")
    elif there != options:
        had = "unknown options" if there is None else f"the options {there}"
        raise MonofaceError(
            f"'{run}' holds a run with {had}, wanted {options}; give another folder with --runs, "
            "or remove that run"
        )


def _scored_data(run: Path) -> str:
    """The synthetic set that a run's own benchmark scored."""
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    for callback in config["trainer"]["callbacks"] or []:
        benchmark = (callback.get("init_args") or {}).get("benchmark") or {}
        if benchmark.get("class_path") == "benchmarks.synthetic_faces.SyntheticFaces":
            return str(benchmark["init_args"]["root"])
    raise DataError(f"'{run / 'config.yaml'}' has no benchmark SyntheticFaces, whose data to score")


def _swap_picture(runs: Path, seeds: list[int], method: str, name: str) -> Image.Image:
    """Fig. 1 of PGN: the truth swapped into what is left without a part, and the whole method."""
    ours, theirs = (
        [Results.load(runs / f"{variant}_{seed}" / "benchmarks" / f"{SWAP}.json") for seed in seeds]
        for variant in (method, name)
    )
    return picture(theirs, ours, method.upper())


def summarize(scores: list[dict[str, float]], metrics: Sequence[str]) -> dict[str, Any]:
    """Mean, standard deviation over the seeds, and the values."""
    summary = {}
    for name in metrics:
        values = [score[name] for score in scores]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        summary[name] = {
            "mean": round(statistics.mean(values), 4),
            "std": round(spread, 4),
            "values": [round(value, 4) for value in values],
        }
    return summary


def table(summary: dict[str, Any], name: str) -> str:
    """Markdown: both variants, mean +- standard deviation over the seeds."""
    ablation = ABLATIONS[name]
    method, other = ablation.method.upper(), name.upper().replace("_", " ")
    lines = [
        f"{method} against {other}, seeds {summary['seeds']}: mean ± standard deviation over "
        "them; nearer to 0 is better.",
        "",
        f"| metric | {method} | {other} | seeds won by {method} |",
        "|---|---|---|---|",
    ]
    for metric in ablation.compared:
        ours, theirs = summary[ablation.method][metric], summary[name][metric]
        won = sum(abs(a) < abs(b) for a, b in zip(ours["values"], theirs["values"], strict=True))
        cells = [f"{x['mean']:.2f} ± {x['std']:.2f}" for x in (ours, theirs)]
        lines.append(f"| {metric} | {cells[0]} | {cells[1]} | {won} of {len(ours['values'])} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
