"""CEST on other face models: one line of the config is changed, nothing else."""

from pathlib import Path

import pytest
import torch

from core.face_models.importers import import_face_model
from methods.cli import main
from tests.fakes import face_model, raw_models

ROOT = Path(__file__).resolve().parents[1]
WRITERS = {"bfm2009": raw_models.write_bfm2009, "ict": raw_models.write_ict}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Small synthetic clips, and where the imported models go."""
    root = tmp_path_factory.mktemp("models")
    small = face_model.write(root / "small.npz", identity=80, expression=50)
    (root / "data.yaml").write_text(
        "data:\n  init_args:\n    jobs: 1\n    settings: {identities: [2, 1, 1], videos: 1, "
        f"frames: 3, size: 48, texture: 32, face_model: {small}}}\n"
    )
    return root


@pytest.mark.parametrize("name", ["procedural", "bfm2009", "ict"])
def test_cest_trains_on_it_by_one_line(name, world, monkeypatch):
    monkeypatch.chdir(world)
    source = name
    if name in WRITERS:
        WRITERS[name](world / name)
        source = f"{name}.npz"
        import_face_model(name, world / name, world / source)
    small = [ROOT / "tests" / f"{name}.yaml" for name in ("smoke", "smoke_cest")]
    configs = [ROOT / "configs" / "cest.yaml", "data.yaml", *small]
    settings = [f"--config={config}" for config in configs]
    run = f"runs/{name}"
    changed = [f"--model.face_model={source}", "--model.landmark_steps=1"]
    main("methods.cest.CEST", ["fit", *settings, *changed, f"--trainer.default_root_dir={run}"])
    checkpoint = torch.load(Path(run) / "checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 2
    assert all(value.isfinite().all() for value in checkpoint["state_dict"].values())
