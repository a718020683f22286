"""Every shipped config runs, found by glob, through the command line that users type."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import wandb
import yaml
from PIL import Image

from core.detect import Detection
from datamodules.augment import Augmentation
from methods import deng, fml, mgcnet, pgn
from methods.cest import Weights
from methods.cli import main
from methods.regression import LIKELY, CoefficientWeights
from tests.fakes import (
    aflw2000,
    bu3dfe,
    celeba,
    face_model,
    facewarehouse,
    frgc,
    image_folder,
    micc,
    multipie,
    now,
    realy,
    videos,
    voxceleb,
    vw300,
    w300lp,
)

ROOT = Path(__file__).resolve().parents[1]
LONG = ("micc_renderings", "now", "realy", "facewarehouse")  # micc runs through the same lines
CONFIGS = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "configs").rglob("*.yaml")
    if path.parent.name != "sweeps"  # tests/test_sweeps.py
)
DATA = sorted((ROOT / "configs/data").glob("*.yaml"))
METHODS = {
    "cest": "methods.cest.CEST",
    "deng": "methods.deng.Deng",
    "deng_cnet": "methods.deng_cnet.DengCNet",
    "fml": "methods.fml.FML",
    "mgcnet": "methods.mgcnet.MGCNet",
    "pgn": "methods.pgn.PGN",
}
PAPER_DATA = {
    "cest": "voxceleb",
    "deng": "w300lp",
    "deng_cnet": "multipie",
    "fml": "voxceleb",
    "mgcnet": "w300lp",
    "pgn": "w300lp",
}
VIEWS = {"w300lp", "multipie"}  # the data in which a face is seen from several sides at once
PRINT = "--print_config"
SMOKE = str(ROOT / "tests/smoke.yaml")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder in which the paths that configs name lead to small fakes."""
    root = tmp_path_factory.mktemp("world")
    (root / "data/face_models").mkdir(parents=True)
    sizes = {"identity": 199, "expression": 79, "albedo": 199}
    face_model.write(root / "data/face_models/bfm2009.npz", **sizes)
    model = face_model.write(root / "model.npz", identity=80, expression=50, albedo=20)
    voxceleb.write(root / "data/voxceleb")
    w300lp.write(root / "data/300W_LP")
    multipie.write(root / "data/multipie")
    (root / "data/multipie/landmarks").rename(root / "data/multipie_landmarks")
    vw300.write(root / "data/300VW_Dataset_2015_12_14")
    celeba.write(root / "data/celeba")
    image_folder.write(root / "data/photos")
    photos = root / "photos"
    photos.mkdir()
    Image.fromarray(np.full((90, 90, 3), 128, np.uint8)).save(photos / "a.png")
    np.savetxt(photos / "a.txt", [[35, 35], [55, 35], [45, 46], [37, 58], [53, 58]])
    for fake in (aflw2000, micc, facewarehouse, bu3dfe, frgc, now, realy):
        fake.write(root / "data" / fake.__name__.rpartition(".")[2])
    aflw2000.write_basel(root / "data/bfm2009")
    settings = {"identities": [2, 1, 1], "videos": 1, "frames": 3, "size": 48, "texture": 32}
    settings["seed"] = 6  # each split has three views of somebody, far enough apart for MGCNet
    overlay = {
        "model": {"face_model": str(model)},
        "data": {"init_args": {"settings": {**settings, "face_model": str(model)}, "jobs": 1}},
    }
    (root / "fakes.yaml").write_text(yaml.safe_dump(overlay))
    part = {"init_args": overlay["data"]["init_args"]}
    overlay["data"] = {"init_args": {"parts": {"labelled": part, "detected": part}}}
    (root / "fakes_pgn.yaml").write_text(yaml.safe_dump(overlay))
    film = root / "data/video/clip.mp4"
    videos.film(film, frames=5, size=96)
    points = np.stack([voxceleb.face_points(np.random.default_rng(k), 96) for k in range(5)])
    videos.landmarks(film, points[..., :2], points[..., 2])
    return root


def arguments(config: str, method: str) -> tuple[str, list[str]]:
    """The subcommand and the files that a config is meant to be used with."""
    base = f"configs/{method}.yaml"
    kind = Path(config).parent.name
    fakes = "fakes_pgn.yaml" if method == "pgn" else "fakes.yaml"
    if config == "configs/pgn_video.yaml":
        return "fit", [base, config, "model.yaml", "smoke.yaml"]
    if kind == "benchmarks":
        return "test", [base, config, fakes, "smoke.yaml"]
    if config == "configs/predict.yaml":
        return "predict", [base, config, "small.yaml"]
    if kind == "data":
        return "fit", [base, config, "model.yaml", "smoke.yaml"]
    if kind == "paper":
        first = f"configs/paper/{method}.yaml"
        before = [base, f"configs/data/{PAPER_DATA[method]}.yaml", first]
        return "fit", [*before, *([config] if config != first else []), "smoke.yaml"]
    return "fit", [base, *([config] if config != base else []), fakes, "smoke.yaml"]


def pairs() -> list[tuple[str, str]]:
    """Each config with each method that it is for."""
    found = []
    for config in CONFIGS:
        own = [m for m in METHODS if f"{Path(config).stem}_".startswith(f"{m}_")]
        found += [(config, method) for method in own[-1:] or list(METHODS)]
    without_views = {f"configs/data/{path.stem}.yaml" for path in DATA if path.stem not in VIEWS}
    return [pair for pair in found if pair[1] != "mgcnet" or pair[0] not in without_views]


def as_large_as_the_fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Benchmarks refuse a part of their data, and ask a detector that is not there."""
    monkeypatch.setattr("benchmarks.aflw2000.AFLW2000.size", len(aflw2000.NAMES))
    for name, value in aflw2000.SMALL.items():
        monkeypatch.setattr(f"core.face_models.importers.bfm2009.{name}", value)
    for name, fake in (("micc", micc), ("now", now), ("realy", realy)):
        monkeypatch.setattr(f"benchmarks.{name}.SUBJECTS", len(fake.SUBJECTS))
    monkeypatch.setattr("benchmarks.celeba.COUNT", 2)
    monkeypatch.setattr("benchmarks.renderings.PITCHES", (0.0,))
    monkeypatch.setattr("benchmarks.facewarehouse.TESTERS", list(facewarehouse.TESTERS))
    for name in ("SUBJECTS", "TWO_VIEW_SUBJECTS", "TWO_VIEW_MESHES"):
        monkeypatch.setattr(f"benchmarks.bu3dfe.{name}", 4 if "MESHES" in name else 2)
    monkeypatch.setattr("benchmarks.frgc.SCANS", len(frgc.NAMES))
    monkeypatch.setattr("benchmarks.frgc.DRAWN", len(frgc.NAMES))
    points = torch.rand(68, 2, generator=torch.Generator().manual_seed(0)) * 20 + 12
    for module in ("micc", "views"):
        monkeypatch.setattr(
            f"benchmarks.{module}.FaceDetector", lambda: lambda image: [Detection(points, 1.0)]
        )


def cases() -> list[Any]:
    """The pairs; what is for all methods runs with the first one, and slowly with the others."""
    first = next(iter(METHODS))
    return [
        pytest.param(config, method, marks=pytest.mark.slow)
        if Path(config).stem in LONG or (method != first and (config, first) in pairs())
        else pytest.param(config, method)
        for config, method in pairs()
    ]


@pytest.mark.parametrize(("config", "method"), cases())
def test_config_runs(config, method, world, monkeypatch):
    monkeypatch.chdir(world)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    as_large_as_the_fakes(monkeypatch)
    torch.set_num_threads(1)
    smoke = yaml.safe_load(Path(SMOKE).read_text())
    smoke |= yaml.safe_load((ROOT / f"tests/smoke_{method}.yaml").read_text())
    Path("smoke.yaml").write_text(yaml.safe_dump(smoke))
    small = {**smoke, "data": {}, "model": {**smoke["model"], "face_model": "model.npz"}}
    Path("small.yaml").write_text(yaml.safe_dump(small))
    Path("model.yaml").write_text(yaml.safe_dump({"model": {"face_model": "model.npz"}}))
    subcommand, files = arguments(config, method)
    run = Path("runs") / config.replace("/", "_") / method
    argv = [
        subcommand,
        *(f"--config={name}" for name in files),
        f"--trainer.default_root_dir={run}",
    ]
    main(METHODS[method], argv)
    wandb.finish()  # the next test's run is not a part of this one's
    if subcommand == "fit":
        assert (run / "checkpoints/last.ckpt").is_file()
        assert json.loads((run / "run.json").read_text())["steps"]["last"] == 2
        own, settings = (
            yaml.safe_load(p.read_text()) for p in (ROOT / config, run / "config.yaml")
        )
        changed = smoke | {"model": small["model"]}
        assert not list(lost(own, settings, changed))
    elif subcommand == "test":
        assert (run / "benchmarks" / f"{Path(config).stem}.json").is_file()
    else:
        assert (run / "predictions/a/face.glb").is_file()


def lost(own: dict, settings: dict, changed: dict) -> Iterator[str]:
    """The plain settings of a config that a run does not have, but for those changed on purpose."""
    for key, value in own.items():
        if isinstance(value, dict):
            yield from lost(value, settings[key], changed.get(key) or {})
            continue
        plain = not isinstance(value, list) and not str(value).startswith("${")
        if plain and key not in changed and settings[key] != value:
            yield f"{key}: {settings[key]}, not {value}"


# What the papers give, with all that their text excludes; the settings are those of the whole
# command, so that nothing of the embedded default slips in.
PAPERS = {
    "cest": {  # Wen et al., ICCV 2021, Sec. 4.1
        "model": {
            "identity_dims": 199,
            "expression_dims": 29,
            "image_size": 256,
            "uv_size": 256,
            "light_channels": 1,
            "conditional": True,
            "symmetry": True,
            "consistency": "pair",
            "detach_conditions": False,
            "lr": 1e-3,
            "kernel_lr": None,
            "landmark_pose": "estimated",
            "landmark_steps": 0,
            "anneal_steps": None,
            "weights": vars(Weights()),
        },
        "data": {
            "class_path": "datamodules.voxceleb.VoxCeleb",
            "init_args": {
                "whole_video": False,
                "identities": 267,
                "frames_per_clip": 4,
                "clips_per_batch": 32,
                "batches_per_epoch": None,
                "augmentation": vars(Augmentation()),  # none
                "cache_gb": 0,
                "seed": 3,
            },
        },
        "trainer": {
            "max_steps": 50_000,
            "max_epochs": None,
            "max_time": None,
            "precision": "32-true",
            "gradient_clip_val": None,
            "accumulate_grad_batches": 1,
            "limit_train_batches": None,
            "overfit_batches": 0,
        },
    },
    "deng": {  # Deng et al., CVPRW 2019, Sec. 3 to 6
        "model": {
            "identity_dims": 80,
            "expression_dims": 64,
            "albedo_dims": 80,
            "backbone": "resnet50",
            "pooled": True,
            "pose_width": None,
            "compared": "whole",
            "pretrained": True,
            "image_size": 224,
            "light_channels": 1,
            "weights": vars(deng.Weights()),
            "coefficient_weights": vars(CoefficientWeights()),
            "skin_threshold": LIKELY,
            "lr": 1e-4,
            "kernel_lr": None,
            "landmark_pose": "estimated",
            "landmark_steps": 0,
            "anneal_steps": None,
        },
        "data": {
            "init_args": {
                "frames_per_clip": 1,
                "clips_per_batch": 5,
                "augmentation": vars(Augmentation()),  # none
            },
        },
        "trainer": {
            "max_steps": 500_000,
            "precision": "32-true",
            "gradient_clip_val": None,
            "accumulate_grad_batches": 1,
        },
    },
    "deng_cnet": {  # Sec. 5 and 6 of the same
        "model": {
            "aggregation": "elementwise",
            "identity_dims": 80,
            "expression_dims": 64,
            "albedo_dims": 80,
            "backbone": "resnet50",
            "pooled": True,
            "pose_width": None,
            "compared": "whole",
            "image_size": 224,
            "light_channels": 1,
            "weights": vars(deng.Weights(photometric=1.9, landmark=1.6e-3, perceptual=0.1)),
            "coefficient_weights": vars(CoefficientWeights()),
            "skin_threshold": LIKELY,
            "c_net_width": 256,
            "c_net_hidden": 512,
            "lr": 2e-5,
            "landmark_pose": "estimated",
            "landmark_steps": 0,
            "anneal_steps": None,
        },
        "data": {
            "init_args": {
                "frames": {"class_path": "datamodules.choice.EvenYaw"},
                "frames_per_clip": 5,
                "clips_per_batch": 5,
                "augmentation": vars(Augmentation()),  # none
            },
        },
        "trainer": {"max_steps": 10_000, "precision": "32-true", "gradient_clip_val": None},
    },
    "fml": {  # Tewari et al., CVPR 2019, Sec. 3 and 4, supplement
        "model": {
            "shape_dims": 500,
            "albedo_dims": 500,
            "expression_dims": 64,
            "nodes": 521,
            "jaw": "sliding",
            "occlusion": "ignored",
            "image_size": 240,
            "width": 1.0,
            "stride": 4,
            "light_channels": 3,
            "weights": vars(fml.Weights()),
            "normalized": False,
            "basis_lr": None,
            "kernel_lr": None,
            "head_lr": None,
            "detach_identity": False,
            "pose_width": None,
            "landmark_pose": "estimated",
            "landmark_steps": 0,
            "anneal_steps": None,
        },
        "data": {
            "class_path": "datamodules.voxceleb.VoxCeleb",
            "init_args": {
                "frames": {"class_path": "datamodules.choice.Diverse"},
                "identities": None,
                "frames_per_clip": 4,
                "augmentation": vars(Augmentation()),  # none
            },
        },
        "trainer": {"precision": "32-true", "gradient_clip_val": None},
    },
    "mgcnet": {  # Shang et al., ECCV 2020, Sec. 3 and 4.1
        "model": {
            "identity_dims": 80,
            "expression_dims": 64,
            "albedo_dims": 80,
            "backbone": "resnet50",
            "pooled": True,
            "pose_width": None,
            "compared": "whole",
            "pretrained": True,
            "image_size": 224,
            "light_channels": 3,
            "covisible": True,
            "importance": 10.0,
            "weights": vars(mgcnet.Weights()),
            "coefficient_weights": vars(mgcnet.COEFFICIENT_WEIGHTS),
            "lr": 1e-4,
            "kernel_lr": None,
            "landmark_pose": "estimated",
            "landmark_steps": 0,
            "anneal_steps": None,
        },
        "data": {
            "class_path": "datamodules.mixed.Mixed",
            "init_args": {"frames_per_clip": 3, "clips_per_batch": 5},
        },
        "trainer": {"max_steps": 400_000, "precision": "32-true", "gradient_clip_val": None},
    },
    "pgn": {  # Liu et al., ACCV 2020, Sec. 3 and 4
        "model": {
            "identity_dims": 199,
            "expression_dims": 29,
            "image_size": 256,
            "width": 16,
            "blocks": 2,
            "points": "map",
            "map_size": 256,
            "map_width": 512,
            "pooled": True,
            "pose": "affine",
            "census": True,
            "landmark_steps": 600_000,
            "single_steps": 400_000,
            "multi_clips": 4,
            "weights": vars(pgn.Weights()),
            "lr": 1e-4,
            "kernel_lr": None,
            "anneal_steps": None,
            "halve_every": 100_000,
        },
        "data": {
            "class_path": "datamodules.mixed.Mixed",
            "init_args": {"frames_per_clip": 4, "clips_per_batch": 8},
        },
        "trainer": {"max_steps": 1_400_000, "precision": "32-true", "gradient_clip_val": None},
    },
}


@pytest.mark.parametrize("method", METHODS)
def test_paper_settings_are_the_papers(method, capsys):
    data = f"data/{PAPER_DATA[method]}"
    files = [f"configs/{name}.yaml" for name in (method, data, f"paper/{method}")]
    argv = [f"--config={name}" for name in files]
    with pytest.raises(SystemExit):
        main(METHODS[method], ["fit", *argv, "--seed_everything=3", PRINT])
    settings = yaml.safe_load(capsys.readouterr().out)
    assert not list(lost(PAPERS[method], settings, {}))


@pytest.mark.parametrize("method", METHODS)
def test_of_the_default_nothing_slips_into_the_papers_settings(method):
    """What the one sets, the other sets, too; but for what the user has to bring."""
    default, paper = (
        yaml.safe_load((ROOT / f"configs/{folder}{method}.yaml").read_text())["model"]
        for folder in ("", "paper/")
    )
    assert set(default) - set(paper) <= {"recognizer"}


def test_c_net_is_configured_like_the_r_net_it_reads():
    """Else its checkpoint would not fit, or mean something else."""
    for folder in ("", "paper/"):
        one, other = (
            yaml.safe_load((ROOT / f"configs/{folder}{name}.yaml").read_text())["model"]
            for name in ("deng", "deng_cnet")
        )
        own = {"lr", "kernel_lr", "landmark_steps", "anneal_steps", "weights", "pretrained"}
        assert {k: other.get(k) for k in one if k not in own} == {
            k: v for k, v in one.items() if k not in own
        }


@pytest.mark.parametrize(("option", "seed"), [([], 1), (["--seed_everything", "2"], 2)])
def test_the_runs_seed_is_also_that_of_the_data(option, seed, capsys):
    with pytest.raises(SystemExit):
        main("methods.cest.CEST", ["fit", "--config=configs/cest.yaml", *option, PRINT])
    settings = yaml.safe_load(capsys.readouterr().out)
    assert settings["seed_everything"] == settings["data"]["init_args"]["seed"] == seed


def test_there_are_configs():
    for method in METHODS:
        assert f"configs/{method}.yaml" in CONFIGS
        assert f"configs/paper/{method}.yaml" in CONFIGS
