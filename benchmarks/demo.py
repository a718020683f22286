"""``make demo``: trains CEST on the embedded default, scores it, reconstructs photos.

Each step is a command that a user could type; it is printed before it runs. What they cost and how
well the network did is written to ``runs/demo/results.json``. After a kill the same command goes on
where it was.
"""

import argparse
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.measure import run_measured

RUN, OUT = Path("runs/cest"), Path("runs/demo")
UNTRAINED = OUT / "untrained"
ABLATION = Path(__file__).parent / "results" / "ablation_iest.json"
DATA = Path("data/synthetic")

# Two portraits that come with installed packages, and where their eyes, nose and mouth corners are
# (pixels, marked by hand; the second is cropped to the template of face recognition, whose points
# are known).
ASTRONAUT = ((203.0, 100.8), (246.7, 103.0), (225.0, 126.7), (205.0, 140.8), (244.2, 141.3))
TEMPLATE = ((38.3, 51.7), (73.5, 51.5), (56.0, 71.7), (41.5, 92.4), (70.7, 92.2))
HELD_OUT = 6  # frames of the test set's people


def main() -> None:
    """Run all steps, print the results."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.demo",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--photos", type=Path, help="a folder of photos, or a video, of your own")
    parser.add_argument(
        "--started",
        type=float,
        default=time.time(),
        help="when the whole command began, in seconds since 1970; make gives it, so that "
        "total_seconds contains the set-up; now by default",
    )
    given = parser.parse_args()

    def cest(subcommand: str, *arguments: str) -> list[str]:
        return [
            sys.executable,
            "-m",
            "methods.cest",
            subcommand,
            "--config",
            "configs/cest.yaml",
            *arguments,
        ]

    last = ("--ckpt_path", "last")
    peak = step(cest("fit", *last))
    peak = max(peak, step(cest("test", f"--trainer.default_root_dir={UNTRAINED}")))
    peak = max(peak, step(cest("test", *last)))
    folder = given.photos or collect_photos(OUT / "photos")
    what = ("--config", "configs/predict.yaml", "--data.path", str(folder))
    peak = max(peak, step(cest("predict", *what, *last)))

    results = collect(time.time() - given.started, peak)
    path = OUT / "results.json"
    path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(table(results))
    print(f"numbers          {path}, {RUN / 'benchmarks'}/synthetic.md")
    print(f"reconstructions  {RUN / 'predictions'}/<photo>/: face.glb, face.obj, overlay.png, ...")
    print(f"training         {RUN}: checkpoints, metrics, pictures/step_*.png")


def step(command: list[str]) -> float:
    """Show and run a command; its peak memory in GB."""
    print(f"\n$ {' '.join(command).replace(sys.executable, 'python')}", flush=True)
    cost = run_measured(command)
    print(f"  {cost.seconds:.0f} s, {cost.peak_gb:.1f} GB", flush=True)
    return cost.peak_gb


def collect_photos(folder: Path) -> Path:
    """Portraits that come with installed packages, and held-out synthetic frames, with their
    landmarks beside them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for package, name, points in (
        ("skimage", "data/astronaut.png", ASTRONAUT),
        ("insightface", "data/images/Tom_Hanks_54745.png", TEMPLATE),
    ):
        source = _package_file(package, name)
        if source is not None:
            Image.open(source).convert("RGB").save(folder / f"{source.stem}.png")
            np.savetxt(folder / f"{source.stem}.txt", np.array(points), fmt="%.1f")
    people = (DATA / "splits/test.txt").read_text().split()[:HELD_OUT]
    for person in people:
        found = sorted((DATA / "landmarks" / person).rglob("*.npy"))
        landmarks = found[len(found) // 2]
        frame = DATA / "frames" / landmarks.relative_to(DATA / "landmarks")
        shutil.copy(frame.with_suffix(".jpg"), folder / f"{person}.jpg")
        np.save(folder / f"{person}.npy", np.load(landmarks)[:, :2])
    return folder


def _package_file(package: str, name: str) -> Path | None:
    from importlib.util import find_spec

    spec = find_spec(package)
    path = Path(spec.origin).parent / name if spec and spec.origin else None
    return path if path and path.is_file() else None


def collect(total_seconds: float, peak_gb: float) -> dict[str, Any]:
    """The figures of the demo."""

    def mean(folder: Path, name: str, baseline: bool = False) -> float:
        metric = json.loads((folder / "benchmarks/synthetic.json").read_text())["metrics"][name]
        values = metric["baselines"]["mean face"] if baseline else metric["value"]
        return round(values["mean"], 4)

    iest = json.loads(ABLATION.read_text()) if ABLATION.is_file() else None
    names = (
        "photometric_255",
        "nme_percent",
        "pose_degrees",
        "shape_mm",
        "neutral_mm",
        "albedo_255",
    )
    return {
        "photometric": mean(RUN, "photometric_255"),
        "photometric_untrained": mean(UNTRAINED, "photometric_255"),
        "photometric_iest": iest and iest["iest"]["photometric_255"]["mean"],
        "nme_percent": mean(RUN, "nme_percent"),
        "nme_percent_untrained": mean(UNTRAINED, "nme_percent"),
        "shape_mm": mean(RUN, "shape_mm"),
        "shape_mm_mean_face": mean(RUN, "shape_mm", baseline=True),
        "train_seconds": _train_seconds(),
        "total_seconds": round(total_seconds, 1),
        "peak_rss_gb": round(peak_gb, 2),
        "all": {
            name: {
                "trained": mean(RUN, name),
                "untrained": mean(UNTRAINED, name),
                "mean_face": mean(RUN, name, baseline=True),
            }
            for name in names
        },
    }


def _train_seconds() -> float:
    """Of all starts of the run together; of one that was killed, up to its last checkpoint."""
    records = [json.loads(path.read_text()) for path in RUN.glob("run*.json")]
    return round(sum(record.get("train_seconds", 0.0) for record in records), 1)


def table(results: dict[str, Any]) -> str:
    """The figures for the terminal."""
    lines = [f"\n{'held-out people':18} {'trained':>9} {'untrained':>9} {'mean face':>9}"]
    for name, row in results["all"].items():
        lines.append(f"{name:18} " + " ".join(f"{value:9.2f}" for value in row.values()))
    lines.append(
        f"\ntraining {results['train_seconds']:.0f} s, all {results['total_seconds']:.0f} s, "
        f"peak memory {results['peak_rss_gb']:.1f} GB\n"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
