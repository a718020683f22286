"""Sweeps: the shipped configs by W&B's own rules, and a sweep from `wandb sweep` to its results."""

import os
import shutil
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from benchmarks.synthetic_faces import MEANING
from methods.cli import main
from tests.fakes import face_model
from tests.fakes.wandb_server import ENTITY, PROJECT, SWEEP, serve

ROOT = Path(__file__).resolve().parents[1]
SWEEPS = sorted((ROOT / "configs/sweeps").glob("*.yaml"))
NAMES = [path.stem for path in SWEEPS]
BAYESIAN = [path for path in SWEEPS if not path.stem.endswith("_grid")]
TRAINED = ["cest", "deng_grid"]  # one of each kind; the commands of all are tried without training

METHODS = {  # of this repository, by module
    entry.module: entry.value.replace(":", ".")
    for entry in entry_points(group="monoface.methods")
    if entry.module.startswith("methods.")
}


def read(path: Path) -> dict:
    return yaml.safe_load(path.read_text())


def ends(sweep: dict) -> list[dict]:
    """The first and the last value of every parameter."""
    ranges = [
        p.get("values") or [p.get("min", p.get("value")), p.get("max", p.get("value"))]
        for p in sweep["parameters"].values()
    ]
    return [dict(zip(sweep["parameters"], (r[k] for r in ranges), strict=True)) for k in (0, -1)]


def command(sweep: dict, values: dict) -> list[str]:
    """What an agent would run, by wandb's own functions."""
    parts = {name: {"value": value} for name, value in values.items()}
    found = create_sweep_command_args({"args": parts})
    found |= {"env": ["env"], "interpreter": ["python"], "program": [sweep["program"]]}
    line: list[str] = []
    for part in create_sweep_command(list(sweep["command"])):
        line += found[part[2:-1]] if part.startswith("${") else [part]
    return line


def test_each_method_has_a_bayesian_sweep_and_a_grid():
    kinds = {(read(path)["program"], read(path)["method"]) for path in SWEEPS}
    alone = METHODS.keys() - {"methods.deng_cnet"}  # which starts from a trained R-Net
    assert kinds == {(name, kind) for name in alone for kind in ("bayes", "grid")}
    assert "methods.cest" in alone


@pytest.mark.parametrize("path", SWEEPS, ids=NAMES)
def test_wandbs_own_schema_accepts_it(path):
    config = pytest.importorskip("sweeps.config", reason="pip install 'wandb[sweeps]'")
    sweep = read(path)
    assert config.schema_violations_from_proposed_config(sweep) == []
    name = next(iter(sweep["parameters"]))
    broken = (
        {"method": "bays"},
        {"metric": {"name": "val/loss", "goal": "smaller"}},
        {"parameters": {name: {"minn": 1}}},
    )
    for change in broken:
        assert config.schema_violations_from_proposed_config(sweep | change), change


@pytest.mark.parametrize("path", SWEEPS, ids=NAMES)
def test_its_commands_are_understood_and_its_values_arrive(path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("WANDB_SWEEP_ID", "s")
    monkeypatch.setenv("WANDB_RUN_ID", "r")
    sweep = read(path)
    for values in ends(sweep):
        line = command(sweep, values)
        assert line[:5] == ["env", "WANDB_MODE=online", "python", "-m", sweep["program"]]
        monkeypatch.setenv("WANDB_MODE", "online")
        with pytest.raises(SystemExit) as leaving:
            main(METHODS[sweep["program"]], [*line[5:], "--print_config"])
        assert leaving.value.code in (0, None)
        settings = yaml.safe_load(capsys.readouterr().out)
        for key, value in values.items():
            node = settings
            for part in key.split("."):
                node = node[part]
            assert node == value, key
        assert settings["trainer"]["default_root_dir"] == "runs/sweeps/s/r"
        assert settings["trainer"]["logger"][1]["init_args"]["mode"] == "online"


@pytest.mark.parametrize("path", BAYESIAN, ids=[path.stem for path in BAYESIAN])
def test_a_bayesian_search_can_go_either_way_from_the_default(path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("WANDB_SWEEP_ID", "s")
    monkeypatch.setenv("WANDB_RUN_ID", "r")
    monkeypatch.setenv("WANDB_MODE", "online")
    sweep = read(path)
    with pytest.raises(SystemExit):
        main(METHODS[sweep["program"]], [*command(sweep, {})[5:], "--print_config"])
    settings = yaml.safe_load(capsys.readouterr().out)
    for key, given in sweep["parameters"].items():
        node = settings
        for part in key.split("."):
            node = node[part]
        assert given["min"] < node < given["max"], key


@pytest.mark.parametrize("path", SWEEPS, ids=NAMES)
def test_what_it_looks_at_is_measured_on_the_validation_people(path):
    name = read(path)["metric"]["name"]
    prefix, benchmark, metric = name.split("/")
    assert (prefix, benchmark) == ("benchmark", "synthetic_val")
    assert metric in MEANING
    (callback,) = read(ROOT / "configs/sweep.yaml")["trainer"]["callbacks+"]
    assert callback["init_args"]["benchmark"]["init_args"]["split"] == "val"
    assert callback["init_args"]["every_n_validations"] == 1


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("path", [p for p in SWEEPS if p.stem in TRAINED], ids=TRAINED)
def test_wandb_sweep_and_agent_train_twice(path, tmp_path):
    """The real commands, against a server on the loopback."""
    model = face_model.write(tmp_path / "model.npz", identity=80, expression=50, albedo=20)
    settings = {"identities": [2, 1, 1], "videos": 1, "frames": 3, "size": 48, "texture": 32}
    data = {"settings": {**settings, "face_model": str(model)}, "jobs": 1}
    small = {"model": {"face_model": str(model)}, "data": {"init_args": data}}
    (tmp_path / "fakes.yaml").write_text(yaml.safe_dump(small))
    sweep = read(path)
    overlays = ["fakes.yaml", "smoke.yaml", f"smoke_{sweep['program'].rpartition('.')[2]}.yaml"]
    for name in overlays[1:]:
        shutil.copy(ROOT / "tests" / name, tmp_path)
    at = sweep["command"].index("--config=configs/wandb.yaml")
    sweep["command"][at:at] = [f"--config={name}" for name in overlays]
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    runs = ends(sweep)
    with serve(runs) as received:

        def wandb(*arguments: str) -> str:
            programs = Path(sys.executable).parent
            environment = {
                **{k: v for k, v in os.environ.items() if not k.startswith("WANDB")},
                "PATH": f"{programs}:{os.environ['PATH']}",
                "HOME": str(tmp_path),  # no key, no settings of whoever runs this
                "WANDB_BASE_URL": received.url,
                "WANDB_API_KEY": "0" * 40,
                "WANDB_ERROR_REPORTING": "false",
            }
            line = [programs / "wandb", *arguments]
            done = subprocess.run(
                line, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stdout + done.stderr
            return done.stdout + done.stderr

        name = f"{ENTITY}/{PROJECT}/{SWEEP}"
        assert f"wandb agent {name}" in wandb("sweep", "sweep.yaml")
        output = wandb("agent", name)
    assert received.sweep["metric"] == sweep["metric"]
    assert list(received.started.values()) == runs
    for run, values in zip(received.started, runs, strict=True):
        assert received.sweeps[run] == SWEEP, output
        metric = sweep["metric"]["name"]
        scores = [row[metric] for row in received.history[run] if metric in row]
        assert len(scores) == 2, output  # after each of two validations
        assert all(score > 0 for score in scores)
        assert any(name.startswith("media/object3D/mesh") for name in received.files[run])
        folder = tmp_path / "runs/sweeps" / SWEEP / run
        config = read(folder / "config.yaml")
        for key, value in values.items():
            node = config
            for part in key.split("."):
                node = node[part]
            assert node == value, key
