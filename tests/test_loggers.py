"""What loggers get; nothing here needs a network or a key."""

import ast
import json
import os
import sys
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
import trimesh
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger, WandbLogger

from benchmarks.base import ErrorMesh, Metric, Results, Summary, on_cpu
from callbacks.loggers import COLUMNS, log_image, log_mesh, log_results
from tests.fakes.method import FakeMethod

ROOT = Path(__file__).resolve().parents[1]


def test_loggers_get_the_picture_in_the_form_they_take():
    picture = torch.rand(3, 4, 5)
    wandb, tensorboard = MagicMock(spec=WandbLogger), MagicMock(spec=TensorBoardLogger)
    tensorboard.experiment = MagicMock()
    log_image(wandb, "pictures", picture, 7)
    name, (image,), step = wandb.log_image.call_args.args
    assert (name, step, image.shape) == ("pictures", 7, (4, 5, 3))
    log_image(tensorboard, "pictures", picture, 7)
    tensorboard.experiment.add_image.assert_called_once_with("pictures", picture, 7)
    log_image(MagicMock(spec=CSVLogger), "pictures", picture, 7)


RESULTS = Results(
    "faces",
    "Two of three.",
    [
        Metric(
            "a_mm",
            "mm",
            "distance",
            Summary(1.5, 0.5, 1.5, 2),
            {"other": Summary(3.0, 1.0, 3.0, 2)},
        ),
        Metric("b_percent", "%", "share", Summary(None, None, None, 0)),
    ],
    images=3,
    note="Crops of 8 x 8.",
    failures={"no face": ["z"]},
    run={"method": "mine", "seed": 1},
    per_sample={"a_mm": {"x": 1.0, "y": 2.0}, "b_percent": {"y": 5.0}},
    curves={"a_mm": [[0.0, 0.0], [1.0, 50.0], [2.0, 100.0]]},
    meshes={
        "x": ErrorMesh(
            torch.eye(3), torch.tensor([[0, 1, 2]]), torch.tensor([0.0, 2.5, float("nan")])
        )
    },
)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:wandb")
def test_wandb_gets_tables_curves_points_and_a_mesh_without_login(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("WANDB")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("HOME", str(tmp_path))  # where a key could be
    logger = WandbLogger(save_dir=tmp_path, mode="offline")
    log_results(logger, RESULTS, 7)
    face = FakeMethod()(torch.rand(2, 1, 3, 8, 8))
    log_mesh(logger, "mesh", on_cpu(face), 7)
    run = logger.experiment
    summary = {key: run.summary[key] for key in run.summary.keys()}  # noqa: SIM118
    run.finish()
    assert summary["benchmark/faces/a_mm"] == 1.5
    assert "benchmark/faces/b_percent" not in summary
    assert summary["benchmark/faces/protocol"] == "Two of three."
    assert summary["benchmark/faces/note"] == "Crops of 8 x 8."
    assert summary["benchmark/faces/run"]["method"] == "mine"
    media = {
        path.relative_to(next(tmp_path.glob("wandb/offline-run-*/files"))).as_posix(): path
        for path in tmp_path.glob("wandb/offline-run-*/files/media/**/*.*")
    }

    def table(name):
        (path,) = (p for key, p in media.items() if f"{name}_" in key and "table.json" in key)
        content = json.loads(path.read_text())
        return content["columns"], content["data"]

    columns, rows = table("benchmark/faces/table")
    assert columns == [*COLUMNS, "other mean", "other std"]
    assert rows[0] == ["a_mm", "mm", "distance", 1.5, 0.5, 1.5, 2, 3, 1]
    assert rows[1] == ["b_percent", "%", "share", None, None, None, 0, None, None]
    assert table("samples") == (
        ["sample", "a_mm", "b_percent"],
        [["x", 1.0, None], ["y", 2.0, 5.0]],
    )
    assert table("failures")[1] == [["no face", "z"]]
    assert table("a_mm")[1] == RESULTS.curves["a_mm"]
    (points,) = (p for key, p in media.items() if key.endswith("pts.json"))
    assert json.loads(points.read_text()) == [
        [1, 0, 0, 255, 255, 255],
        [0, 1, 0, 255, 127.5, 127.5],
    ]
    (mesh,) = (p for key, p in media.items() if key.endswith(".glb"))
    vertices = trimesh.load(mesh, process=False).geometry.popitem()[1].vertices
    wanted = face.vertices[0, 0, :3].detach().numpy() / 1000  # glTF is in metres
    assert np.allclose(vertices, wanted, atol=1e-6)


def test_wandb_is_imported_for_its_logger_only(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # importing it raises
    logger = CSVLogger(tmp_path, "metrics")
    log_results(logger, RESULTS, 7)
    logger.save()
    (path,) = tmp_path.glob("metrics/*/metrics.csv")
    assert path.read_text().split() == ["benchmark/faces/a_mm,step", "1.5,7"]
    log_mesh(logger, "mesh", FakeMethod().eval()(torch.rand(1, 1, 3, 8, 8)), 7)
    importing = {}
    for package in ("core", "methods", "datamodules", "benchmarks", "callbacks"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import | ast.ImportFrom):
                    names = [a.name for a in node.names] + [getattr(node, "module", "") or ""]
                    if any(name.split(".")[0] == "wandb" for name in names):
                        importing.setdefault(path.name, []).append(node.col_offset)
    assert importing.keys() == {"loggers.py"}
    assert all(column > 0 for column in importing["loggers.py"])  # within functions
