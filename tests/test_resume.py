"""Killed and resumed training equals the uninterrupted one; checkpoints are whole or absent."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from core.errors import AssetNotFoundError, DataError
from methods.cli import main
from methods.resume import AtomicCheckpointIO, find_checkpoint
from tests.fakes.method import FakeMethod

pytestmark = pytest.mark.usefixtures("one_thread")

METHOD = "tests.fakes.method.FakeMethod"
ROOT = Path(__file__).resolve().parents[1]
LENGTHS = {  # epochs have 5 batches
    "epochs": {"max_epochs": 3, "max_steps": -1},
    "steps": {"max_steps": 14},
    "no validation": {"max_steps": 14, "limit_val_batches": 0},
    "accumulated": {"max_steps": 8, "accumulate_grad_batches": 2},
}


@pytest.fixture
def fit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(folder: str, length: dict, *arguments: str, workers: int = 0, every: int = 1) -> None:
        config = {
            "data": {
                "class_path": "tests.fakes.method.FakeFaces",
                "init_args": {"workers": workers},
            },
            "trainer": {
                **length,
                "default_root_dir": folder,
                "accelerator": "cpu",
                "logger": False,
                "enable_progress_bar": False,
                "enable_model_summary": False,
            },
            "checkpoint_every": every,
        }
        Path("config.yaml").write_text(yaml.safe_dump(config))
        main(METHOD, ["fit", "--config", "config.yaml", *arguments])

    return run


class Killed(BaseException):
    pass


def kill_at(monkeypatch, step: int) -> None:
    def hook(self, batch, batch_idx):
        if self.global_step == step:
            raise Killed

    monkeypatch.setattr(FakeMethod, "on_train_batch_start", hook)


def checkpoint(folder: str) -> dict:
    return torch.load(f"{folder}/checkpoints/last.ckpt", weights_only=True)


def equal(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


@pytest.mark.parametrize("length", LENGTHS)
def test_resumed_equals_uninterrupted(length, fit, monkeypatch, capsys):
    fit("whole", LENGTHS[length])
    whole = checkpoint("whole")
    for step in (4, 5, 6):  # before, at and after the end of an epoch
        folder = f"killed{step}"
        with monkeypatch.context() as patch:
            kill_at(patch, step)
            with pytest.raises(Killed):
                fit(folder, LENGTHS[length], "--ckpt_path", "last")
        fit(folder, LENGTHS[length], "--ckpt_path", "last")
        resumed = checkpoint(folder)
        assert resumed["global_step"] == whole["global_step"]
        assert resumed["epoch"] == whole["epoch"]
        assert equal(resumed["state_dict"], whole["state_dict"])
        assert equal(resumed["optimizer_states"], whole["optimizer_states"])
    assert whole["global_step"] > 6


def test_epochs_of_one_batch_are_not_lost(fit, monkeypatch):
    length = {"max_epochs": 6, "max_steps": -1, "limit_train_batches": 1}
    with monkeypatch.context() as patch:
        kill_at(patch, 3)
        with pytest.raises(Killed):
            fit("run", length)
    assert checkpoint("run")["global_step"] == 3
    fit("run", length, "--ckpt_path", "last")
    assert checkpoint("run")["global_step"] == 6


def test_resumed_with_workers_from_an_older_checkpoint(fit, monkeypatch):
    fit("whole", LENGTHS["steps"], workers=2, every=4)
    with monkeypatch.context() as patch:
        kill_at(patch, 11)
        with pytest.raises(Killed):
            fit("killed", LENGTHS["steps"], workers=2, every=4)
    assert checkpoint("killed")["global_step"] == 8
    record = json.loads(Path("killed/run.json").read_text())
    assert record["steps"] == {"first": 0, "last": 10}  # of best.ckpt, at the end of an epoch
    assert record["train_seconds"] > 0
    fit("killed", LENGTHS["steps"], "--ckpt_path", "last", workers=2, every=4)
    assert equal(checkpoint("killed")["state_dict"], checkpoint("whole")["state_dict"])


def test_the_seed_matters(fit):
    fit("a", {"max_steps": 3})
    fit("b", {"max_steps": 3}, "--seed_everything=1")
    assert not equal(checkpoint("a")["state_dict"], checkpoint("b")["state_dict"])


def test_longer_training_goes_on_from_a_finished_one(fit):
    fit("short", {"max_steps": 7})
    fit("short", {"max_steps": 14}, "--ckpt_path", "last")
    fit("long", {"max_steps": 14})
    assert equal(checkpoint("short")["state_dict"], checkpoint("long")["state_dict"])


def test_first_start_with_last_says_that_it_starts(fit, caplog, monkeypatch):
    messages = []
    monkeypatch.setattr("methods.resume.rank_zero_info", messages.append)
    fit("run", {"max_steps": 2}, "--ckpt_path", "last")
    assert messages == ["no checkpoint in run/checkpoints yet: training starts from scratch"]


@pytest.mark.slow
def test_killed_process_goes_on(tmp_path):
    """SIGKILL at an arbitrary moment, with a real process and the same command again."""
    config = {
        "data": {"class_path": "tests.fakes.method.FakeFaces"},
        "trainer": {"max_steps": 400, "default_root_dir": "run", "accelerator": "cpu"},
        "checkpoint_every": 1,
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "tests.fakes.method", "fit", "--config", "config.yaml"]
    command += ["--ckpt_path", "last", "--trainer.enable_progress_bar=false"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=tmp_path, env=env, stderr=subprocess.DEVNULL)
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + 120
    while not last.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    found = torch.load(find_checkpoint("last", tmp_path / "run", True), weights_only=True)
    assert 1 <= found["global_step"] < 400


def test_checkpoint_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "folder" / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": 1}, path)

    def fail(checkpoint, file):
        file.write(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="no space"):
        AtomicCheckpointIO().save_checkpoint({"step": 2}, path)
    assert torch.load(path, weights_only=True) == {"step": 1}
    assert list(path.parent.iterdir()) == [path]


def test_truncated_and_missing_checkpoints_are_named(tmp_path):
    folder = tmp_path / "checkpoints"
    AtomicCheckpointIO().save_checkpoint({"weights": torch.zeros(1000)}, folder / "last.ckpt")
    AtomicCheckpointIO().save_checkpoint({"weights": torch.zeros(1000)}, folder / "best.ckpt")
    whole = (folder / "last.ckpt").read_bytes()
    assert find_checkpoint("last", tmp_path, True) == folder / "last.ckpt"
    (folder / "last.ckpt").write_bytes(whole[:-100])
    with pytest.raises(DataError, match=r"last.ckpt is not a whole checkpoint.*best\.ckpt"):
        find_checkpoint("last", tmp_path, True)
    (folder / "last.ckpt").unlink()
    with pytest.raises(AssetNotFoundError, match=r"There are .*best\.ckpt"):
        find_checkpoint("last", tmp_path, True)
    with pytest.raises(AssetNotFoundError, match="Train first"):
        find_checkpoint("last", tmp_path / "other", False)
    assert find_checkpoint("last", tmp_path / "other", True) is None
