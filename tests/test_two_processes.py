"""Training and evaluation in two processes: exact resume, and every sample counts once."""

from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
import yaml
from torch.multiprocessing import ProcessRaisedException

from methods.cli import main
from tests.fakes import voxceleb
from tests.fakes.dataset import Faces, Source
from tests.fakes.method import FakeMethod

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
]


class KilledError(RuntimeError):
    pass


def checkpoint(folder: str) -> dict:
    return torch.load(f"{folder}/checkpoints/last.ckpt", weights_only=True)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_resumed_equals_uninterrupted(
    workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    voxceleb.write(tmp_path / "tree", people=6)  # with truncated, grey and missing files

    def fit(folder: str) -> None:
        options = {
            "root": "tree",
            "image_size": 8,
            "frames_per_clip": 2,
            "clips_per_batch": 1,
            "workers": workers,
            "augmentation": {"shift": 0.05, "rotation": 10.0, "flip": 0.5, "tint": 0.1},
        }
        config = {
            "data": {"class_path": "datamodules.voxceleb.VoxCeleb", "init_args": options},
            "trainer": {
                "max_steps": 7,  # epochs of 4 batches
                "default_root_dir": folder,
                "devices": 2,
                "strategy": "ddp_fork",
                "accelerator": "cpu",
                "use_distributed_sampler": False,
                "logger": False,
                "enable_progress_bar": False,
                "enable_model_summary": False,
            },
            "checkpoint_every": 2,
        }
        Path("config.yaml").write_text(yaml.safe_dump(config))
        arguments = ["fit", "--config", "config.yaml", "--ckpt_path", "last"]
        main("tests.fakes.method.FakeMethod", arguments)

    fit("whole")
    with monkeypatch.context() as patch:

        def kill(self: FakeMethod, batch: dict, batch_idx: int) -> None:
            if self.global_step == 3:
                raise KilledError

        patch.setattr(FakeMethod, "on_train_batch_start", kill)
        with pytest.raises(ProcessRaisedException):
            fit("killed")
    assert checkpoint("killed")["global_step"] == 2
    fit("killed")
    whole, resumed = checkpoint("whole"), checkpoint("killed")
    assert whole["global_step"] == resumed["global_step"] == 7
    for name, value in whole["state_dict"].items():
        assert torch.equal(value, resumed["state_dict"][name]), name


@pytest.mark.parametrize("clips", [1, 5])
def test_each_sample_counts_once_in_the_test(clips: int, tmp_path: Path) -> None:
    found = []
    for processes in ({"devices": 1}, {"devices": 2, "strategy": "ddp_fork"}):
        trainer = pl.Trainer(
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            default_root_dir=tmp_path,
            **processes,
        )
        torch.manual_seed(0)
        data = Faces(Source(clips), image_size=8, eval_clips_per_batch=2)
        found.append(trainer.test(FakeMethod(), datamodule=data, verbose=False)[0])
    alone, together = found
    assert alone.keys() == together.keys() == {"test/landmark", "test/regularization", "test/loss"}
    for name, value in alone.items():
        assert together[name] == pytest.approx(value, rel=1e-5), name
