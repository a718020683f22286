"""The comparison of two variants: mean and spread over seeds, and who won each."""

import json
import subprocess
from pathlib import Path

import pytest
import yaml
from PIL import Image

from benchmarks.ablation import (
    ABLATIONS,
    ALL,
    DENSE,
    GEOMETRY,
    main,
    summarize,
    table,
    train_and_score,
)
from benchmarks.swap import BINS, KINDS, SWAPPED
from benchmarks.synthetic_faces import MEANING
from core.errors import DataError, MonofaceError

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


SCORED = {
    "class_path": "benchmarks.synthetic_faces.SyntheticFaces",
    "init_args": {"root": "elsewhere/faces"},
}
CALLBACKS = [
    {"class_path": "callbacks.visualize.Visualize"},
    {"class_path": "callbacks.benchmark.RunBenchmark", "init_args": {"benchmark": SCORED}},
]


@pytest.fixture
def commands(monkeypatch):
    """Those that were run; they write what the real ones do, in little."""
    given = []
    folder = Path()

    def write(command, check):
        nonlocal folder
        given.append(command)
        for part in command:
            if part.startswith("--trainer.default_root_dir="):
                folder = Path(part.partition("=")[2])
        name = "synthetic_swap" if "--swap" in command else "synthetic"
        names = DENSE if "--swap" in command else GEOMETRY
        metrics = {metric: {"value": {"mean": float(len(metric))}} for metric in names}
        (folder / "benchmarks").mkdir(exist_ok=True)
        text = json.dumps({"metrics": metrics})
        (folder / "benchmarks" / f"{name}.json").write_text(text)
        config = {"trainer": {"callbacks": CALLBACKS}}
        (folder / "config.yaml").write_text(yaml.safe_dump(config))

    monkeypatch.setattr(subprocess, "run", write)
    return given


def test_a_run_is_trained_and_scored_once_also_with_the_truth_swapped_in(tmp_path, commands):
    ablation = ABLATIONS["regressed_pose"]
    options = ["--model.start_from=runs/pgn_{seed}/checkpoints/last.ckpt"]
    first = train_and_score(ablation, tmp_path, 7, options)
    assert first == {name: float(len(name)) for name in GEOMETRY + DENSE}
    fit, test, swap = commands
    assert fit[2:4] == ["methods.pgn", "fit"]
    assert test[2:4] == ["methods.pgn", "test"]
    assert "--model.start_from=runs/pgn_7/checkpoints/last.ckpt" in fit
    assert "--seed_everything=7" in fit
    assert f"--checkpoint={tmp_path / 'checkpoints/last.ckpt'}" in swap
    assert "--root=elsewhere/faces" in swap  # what the run itself scored
    assert train_and_score(ablation, tmp_path, 7, options) == first
    assert len(commands) == 3


def test_a_run_whose_results_lack_a_metric_is_scored_again(tmp_path, commands):
    """As one of an earlier version may, which was not yet measured then."""
    ablation = ABLATIONS["regressed_pose"]
    first = train_and_score(ablation, tmp_path, 7, [])
    path = tmp_path / "benchmarks/synthetic.json"
    results = json.loads(path.read_text())
    del results["metrics"][GEOMETRY[0]]
    path.write_text(json.dumps(results))
    assert train_and_score(ablation, tmp_path, 7, []) == first
    assert [command[3] for command in commands[3:]] == ["test"]


def test_a_run_of_other_options_is_not_used(tmp_path, commands):
    ablation, run = ABLATIONS["regressed_pose"], tmp_path / "pgn_7"
    train_and_score(ablation, run, 7, ["--trainer.max_steps=500"])
    for options in ([], ["--trainer.max_steps=400"], ["--trainer.max_steps=500", "--model.lr=1"]):
        with pytest.raises(MonofaceError, match=r"pgn_7' holds .*max_steps=500.* --runs"):
            train_and_score(ablation, run, 7, options)
    (run / "options.json").unlink()
    with pytest.raises(MonofaceError, match="unknown options"):
        train_and_score(ablation, run, 7, ["--trainer.max_steps=500"])
    assert len(commands) == 3


def test_only_the_data_that_a_run_scored_are_swapped_in(tmp_path, commands, monkeypatch):
    monkeypatch.setitem(SCORED, "class_path", "benchmarks.now.NoW")
    with pytest.raises(DataError, match=r"config\.yaml' has no benchmark SyntheticFaces"):
        train_and_score(ABLATIONS["regressed_pose"], tmp_path, 7, [])


def test_each_variant_has_its_own_options_and_all_those_that_are_given(
    tmp_path, commands, monkeypatch, capsys
):
    """Step 3 of PGN against more of step 2, which would never end if it got step 3's options."""
    monkeypatch.setattr("benchmarks.ablation.RESULTS", tmp_path)
    monkeypatch.setattr("benchmarks.ablation._swap_picture", lambda *_: Image.new("L", (1, 1)))
    command = ["ablation", "single_frame", "--seeds", "3", "--runs", str(tmp_path)]
    command += ["--whole", "--trainer.max_steps=700 --model.lr=1e-3"]
    monkeypatch.setattr("sys.argv", [*command, "--", "--trainer.max_steps=500"])
    main()
    fits = {Path(line[-2].partition("=")[2]).name: line for line in commands if "fit" in line}
    assert list(fits) == ["pgn_3", "single_frame_3"]
    overlay = "--config=configs/ablations/pgn_single_frame.yaml"
    for name, line in fits.items():
        assert ("--model.single_steps=0" in line) == (name == "pgn_3")
        assert (overlay in line) == (name == "single_frame_3")
        assert "--model.start_from=runs/pgn_3/checkpoints/last.ckpt" in line
        assert "--model.landmark_steps=0" in line
        steps = [option for option in line if option.startswith("--trainer.max_steps")]
        last = "--trainer.max_steps=700" if name == "pgn_3" else "--trainer.max_steps=500"
        assert steps[-1] == last  # of several the last one counts
        assert ("--model.lr=1e-3" in line) == (name == "pgn_3")
    summary = json.loads((tmp_path / "ablation_single_frame.json").read_text())
    assert summary["seeds"] == [3]
    assert summary["options_whole"] == ["--trainer.max_steps=700", "--model.lr=1e-3"]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit):
        main()
    assert "give another folder with --runs" in capsys.readouterr().err
