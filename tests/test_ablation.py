"""The comparison of two variants: mean and spread over seeds, and who won each."""

import json
import subprocess
from pathlib import Path

import pytest

from benchmarks.ablation import (
    ABLATIONS,
    ALL,
    DENSE,
    GEOMETRY,
    summarize,
    table,
    train_and_score,
)
from benchmarks.swap import BINS, KINDS, SWAPPED
from benchmarks.synthetic_faces import MEANING

ROOT = Path(__file__).resolve().parents[1]


def test_mean_spread_and_wins():
    ours = summarize([dict.fromkeys(ALL, value) for value in (1.0, 2.0, 6.0)], ALL)
    theirs = summarize([dict.fromkeys(ALL, value) for value in (2.0, 1.0, 9.0)], ALL)
    assert ours["shape_mm"]["mean"] == pytest.approx(3)
    assert ours["shape_mm"]["std"] == pytest.approx(7**0.5, abs=1e-4)  # of a sample
    text = table({"seeds": [1, 2, 3], "cest": ours, "iest": theirs}, "iest")
    assert "| shape_mm | 3.00 ± 2.65 | 4.00 ± 4.36 | 2 of 3 |" in text


@pytest.mark.parametrize("ablation", ABLATIONS.values(), ids=list(ABLATIONS))
def test_they_compare_what_the_benchmark_measures_of_configs_that_are_there(ablation):
    assert set(ablation.metrics) <= set(MEANING)
    swapped = {
        f"{kind}_{name}_{place}_percent" for kind in KINDS for name in SWAPPED for place in BINS
    }
    assert set(ablation.swapped) <= swapped
    assert (ROOT / ablation.overlay).is_file()
    assert (ROOT / f"configs/{ablation.method}.yaml").is_file()


def test_a_run_is_trained_and_scored_once_also_with_the_truth_swapped_in(tmp_path, monkeypatch):
    commands = []

    def write(command, check):
        commands.append(command)
        name = "synthetic_swap" if "--swap" in command else "synthetic"
        names = DENSE if "--swap" in command else GEOMETRY
        metrics = {metric: {"value": {"mean": float(len(metric))}} for metric in names}
        (tmp_path / "benchmarks").mkdir(exist_ok=True)
        text = json.dumps({"metrics": metrics})
        (tmp_path / "benchmarks" / f"{name}.json").write_text(text)

    monkeypatch.setattr(subprocess, "run", write)
    ablation = ABLATIONS["regressed_pose"]
    options = ["--model.start_from=runs/pgn_{seed}/last.ckpt"]
    first = train_and_score(ablation, tmp_path, 7, options)
    assert first == {name: float(len(name)) for name in GEOMETRY + DENSE}
    fit, test, swap = commands
    assert fit[2:4] == ["methods.pgn", "fit"]
    assert test[2:4] == ["methods.pgn", "test"]
    assert "--model.start_from=runs/pgn_7/last.ckpt" in fit
    assert "--seed_everything=7" in fit
    assert f"--checkpoint={tmp_path / 'checkpoints/last.ckpt'}" in swap
    assert train_and_score(ablation, tmp_path, 7, options) == first
    assert len(commands) == 3
