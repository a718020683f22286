"""A method's real training (reader, workers, augmentation, bfloat16) killed in mid-epoch equals the
uninterrupted one."""

from pathlib import Path

import pytest
import torch

from methods.base import FaceMethod
from methods.cli import main
from tests.fakes import face_model, voxceleb

ROOT = Path(__file__).resolve().parents[1]


class Killed(BaseException):
    pass


@pytest.mark.parametrize("method", ["methods.cest.CEST", "methods.deng.Deng", "methods.fml.FML"])
def test_killed_and_resumed_equals_uninterrupted(method, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stem = method.split(".")[1]
    face_model.write(tmp_path / "model.npz", identity=80, expression=50, albedo=20)
    voxceleb.write(tmp_path / "data/voxceleb", people=6)  # with truncated, grey and missing files

    def fit(folder: str) -> None:
        files = [f"configs/{stem}.yaml", "configs/data/voxceleb.yaml"]
        files += [str(ROOT / f"tests/{small}.yaml") for small in ("smoke", f"smoke_{stem}")]
        options = {
            "model.face_model": "model.npz",
            "model.landmark_steps": 2,
            "data.workers": 2,
            "data.augmentation.flip": 0.5,
            "data.augmentation.shift": 0.05,
            "trainer.max_steps": 7,  # epochs of 4 batches
            "trainer.val_check_interval": 2,
            "trainer.default_root_dir": folder,
            "checkpoint_every": 2,
        }
        argv = [f"--config={path}" for path in files]
        argv += [f"--{key}={value}" for key, value in options.items()]
        main(method, ["fit", *argv, "--ckpt_path", "last"])

    fit("whole")
    with monkeypatch.context() as patch:

        def kill(self, loss):
            if self.global_step == 3:
                raise Killed

        patch.setattr(FaceMethod, "on_before_backward", kill)
        with pytest.raises(Killed):
            fit("killed")
    fit("killed")
    whole, resumed = (
        torch.load(f"{folder}/checkpoints/last.ckpt", weights_only=True)
        for folder in ("whole", "killed")
    )
    assert whole["global_step"] == resumed["global_step"] == 7
    for name, value in whole["state_dict"].items():
        assert torch.equal(value, resumed["state_dict"][name]), name
    moments = [run["optimizer_states"][0]["state"] for run in (whole, resumed)]
    for key, state in moments[0].items():
        for name, value in state.items():
            other = moments[1][key][name]  # a tensor, or a flag
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(other)), (key, name)
