"""``make demo``: trains CEST on the embedded default, scores it, reconstructs photos, says where everything is.

Each step is a command that a user could type; it is printed before it runs. What they cost and how well the network did
is written to ``runs/demo/results.json``.
"""

import argparse
import json
import sys
import time
from pathlib import Path

from benchmarks.measure import run_measured

RUN = Path("runs/cest")
OUT = Path("runs/demo")


def main() -> None:
    """Run all steps, print the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo", description=__doc__)
    parser.add_argument("--photos", type=Path, help="a folder of photos or a video with landmarks")
    photos = parser.parse_args().photos
    start = time.monotonic()
    OUT.mkdir(parents=True, exist_ok=True)
    cest = [sys.executable, "-m", "methods.cest"]
    config = ["--config", "configs/cest.yaml"]
    last = ["--ckpt_path", "last"]
    steps = {
        "data": [sys.executable, "-m", "datamodules.synthetic", "--config", "configs/cest.yaml"],
        "fit": [*cest, "fit", *config, *last],
        "test": [*cest, "test", *config, *last],
        "predict": [*cest, "predict", *config, "--config", "configs/predict.yaml", *last],
    }
    if photos:
        steps["predict"] += ["--data.path", str(photos)]
    costs = {}
    for name, command in steps.items():
        print(f"\n$ {' '.join(command).replace(sys.executable, 'python')}", flush=True)
        costs[name] = run_measured(command)
    print(costs, start, json)


if __name__ == "__main__":
    main()
