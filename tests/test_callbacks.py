import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from PIL import Image
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.loggers import CSVLogger
from torch import nn

import configs
from benchmarks.base import Benchmark, Metric, Results, Summary
from benchmarks.synthetic_faces import SyntheticFaces
from callbacks.benchmark import RunBenchmark
from callbacks.evaluation import evaluating
from callbacks.visualize import COLUMNS, Visualize
from core.provenance import config_hash, git_state, weights_hash
from methods.merging import compose
from methods.resume import StepSeed
from tests.fakes import truth
from tests.fakes.method import FakeFaces, FakeMethod

# torch's own, called by torchdata
pytestmark = pytest.mark.filterwarnings("ignore:.*'set_vital' is deprecated")


class FakeBenchmark(Benchmark):
    """Counts its runs, uses up random numbers, and looks at the state in which it is called."""

    def __init__(self, name="fake"):
        self.name, self.runs = name, 0

    def run(self, predict):
        self.runs += 1
        torch.rand(7), np.random.rand(3)
        images = torch.rand(3, 1, 3, 8, 8)
        face = predict(images)
        assert face.landmarks.shape == (3, 1, 68, 2)
        assert not face.landmarks.requires_grad
        assert torch.equal(predict(images).landmarks, face.landmarks)  # no dropout
        value = float(self.runs)
        summary = Summary(value, 0.0, value, 3)
        return Results(self.name, "Nothing.", [Metric("runs_mm", "mm", "runs", summary)], 3)


class CountedBenchmark(FakeBenchmark):
    """Writes down each of its runs, in whatever process."""

    def __init__(self, path):
        super().__init__("counted")
        self.path = path

    def run(self, predict):
        with self.path.open("a") as file:
            file.write("one run\n")
        return super().run(predict)


def trainer(folder, callbacks, **options):
    options = {"max_epochs": 4, "enable_progress_bar": False, "log_every_n_steps": 1} | options
    return Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        callbacks=[StepSeed(0), *callbacks],
        logger=CSVLogger(folder, "metrics"),
        enable_checkpointing=False,
        enable_model_summary=False,
        **options,
    )


def fit(folder, *callbacks, **options):
    torch.manual_seed(0)
    method = FakeMethod()
    trainer(folder, callbacks, **options).fit(method, datamodule=FakeFaces())
    return method


def logged(folder, name):
    (path,) = folder.glob("metrics/*/metrics.csv")
    header, *rows = (line.split(",") for line in path.read_text().splitlines())
    column = header.index(name)
    return [float(row[column]) for row in rows if row[column]]


def test_benchmark_runs_when_asked_and_writes_and_logs(tmp_path):
    benchmark = FakeBenchmark()
    fit(tmp_path, RunBenchmark(benchmark, every_n_epochs=2, at_fit_end=True))
    assert benchmark.runs == 3  # after epochs 2 and 4, and at the end
    assert logged(tmp_path, "benchmark/fake/runs_mm") == [1, 2, 3]
    text = (tmp_path / "benchmarks" / "fake.json").read_text()
    assert '"mean": 3.0' in text
    assert '"method": "tests.fakes.method.FakeMethod"' in text
    assert "| 3.00 ± 0.00 |" in (tmp_path / "benchmarks" / "fake.md").read_text()


def test_benchmark_does_not_run_in_training_unless_asked(tmp_path):
    benchmark = FakeBenchmark()
    fit(tmp_path, RunBenchmark(benchmark), max_epochs=1)
    assert benchmark.runs == 0
    with pytest.raises(ValueError, match="every_n_epochs is 0"):
        RunBenchmark(benchmark, every_n_epochs=0)


def test_test_runs_several_benchmarks(tmp_path, capsys):
    first, second, third = (FakeBenchmark(name) for name in ("first", "second", "third"))
    callbacks = [RunBenchmark(first), RunBenchmark(second), RunBenchmark(third, at_test=False)]
    trainer(tmp_path, callbacks).test(FakeMethod(), datamodule=FakeFaces(), verbose=False)
    assert (first.runs, second.runs, third.runs) == (1, 1, 0)
    assert sorted(path.name for path in (tmp_path / "benchmarks").iterdir()) == [
        "first.json",
        "first.md",
        "second.json",
        "second.md",
    ]
    assert logged(tmp_path, "benchmark/second/runs_mm") == [1]


@pytest.mark.slow
def test_two_processes_find_what_one_finds(tmp_path, one_thread):
    """A real benchmark with nine frames, an odd number: a sampler for two would double one."""
    truth.write(tmp_path / "data", identities=3, frames=4)
    found = []
    for devices, strategy in ((1, "auto"), (2, "ddp_spawn")):  # a fork may hang in OpenMP
        torch.manual_seed(0)
        folder = tmp_path / str(devices)
        benchmark = SyntheticFaces(tmp_path / "data", image_size=8, batch_size=2, progress=False)
        callbacks = [RunBenchmark(benchmark), RunBenchmark(CountedBenchmark(folder / "runs"))]
        run = {"devices": devices, "strategy": strategy, "use_distributed_sampler": False}
        trainer(folder, callbacks, **run).test(FakeMethod(), datamodule=FakeFaces(), verbose=False)
        found.append(json.loads((folder / "benchmarks/synthetic.json").read_text()))
        assert (folder / "runs").read_text() == "one run\n"  # by one of the processes
    assert found[0] == found[1]
    assert found[0]["images"] == 9
    assert len(found[0]["per_sample"]["nme_percent"]) == 9


def test_benchmark_runs_after_every_second_validation_of_a_training(tmp_path):
    class Learns(FakeBenchmark):
        def run(self, predict):
            assert not torch.is_inference_mode_enabled()
            self.layer = nn.Linear(2, 2)  # a face model that is loaded late and then kept
            return super().run(predict)

    benchmark = Learns()
    callback = RunBenchmark(benchmark, every_n_validations=2)
    fit(tmp_path, callback, val_check_interval=1, max_epochs=1)
    assert benchmark.runs == 2  # of five validations; the sanity check is none
    assert not benchmark.layer.weight.is_inference()
    trainer(tmp_path / "more", [callback]).validate(
        FakeMethod(), datamodule=FakeFaces(), verbose=False
    )
    assert benchmark.runs == 2
    with pytest.raises(ValueError, match="every_n_validations is 0"):
        RunBenchmark(benchmark, every_n_validations=0)


def test_results_say_what_was_scored(tmp_path):
    config = {"seed_everything": 7, "model": {"lr": 0.1}, "data": {"init_args": {"seed": 7}}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    method = fit(tmp_path, RunBenchmark(FakeBenchmark(), every_n_epochs=1), max_epochs=1)
    path = tmp_path / "benchmarks/fake.json"
    trained = json.loads(path.read_text())["run"]
    assert trained == {
        "method": "tests.fakes.method.FakeMethod",
        "checkpoint": None,  # in training no file has the network
        "checkpoint_sha256": None,
        "weights_sha256": weights_hash(method.state_dict()),
        "step": 5,
        "config_sha256": config_hash(config),
        "seed": 7,
        **git_state(Path(configs.__file__).parents[1]),
    }
    file = tmp_path / "checkpoints/last.ckpt"
    file.parent.mkdir()
    run = trainer(tmp_path, [])
    run.strategy.connect(method)
    run.save_checkpoint(file)
    trainer(tmp_path, [RunBenchmark(FakeBenchmark())]).test(
        FakeMethod(), datamodule=FakeFaces(), ckpt_path=file, verbose=False
    )
    tested = json.loads(path.read_text())["run"]
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert digest.startswith(tested["checkpoint_sha256"])
    changed = {"checkpoint": str(file), "checkpoint_sha256": digest[:12], "step": None}
    assert tested == trained | changed


def test_training_is_the_same_bit_for_bit_with_and_without_them(tmp_path):
    plain = fit(tmp_path / "plain")
    callbacks = (
        RunBenchmark(FakeBenchmark(), every_n_epochs=1),
        Visualize(every_n_steps=2, faces=2, size=16),
    )
    watched = fit(tmp_path / "watched", *callbacks)
    states = plain.state_dict(), watched.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert torch.equal(
        *(torch.tensor(logged(tmp_path / x, "train/loss")) for x in ("plain", "watched"))
    )


def test_evaluating_restores_each_part_and_the_random_numbers():
    module = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2)))
    module.train()
    module[1].eval()
    modes = [part.training for part in module.modules()]
    assert modes == [True, True, False, False, False]
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    with evaluating(module):
        assert not any(part.training for part in module.modules())
        torch.rand(9)
    assert [part.training for part in module.modules()] == modes
    assert torch.equal(torch.rand(4), expected)


def test_visualize_draws_the_same_validation_faces_every_few_steps(tmp_path):
    fit(tmp_path, Visualize(every_n_steps=8, faces=3, size=24))
    paths = sorted((tmp_path / "pictures").iterdir())
    assert [path.name for path in paths] == [
        "step_000008.png",
        "step_000016.png",
        "step_000020.png",
    ]
    sheets = [np.asarray(Image.open(path)).astype(int) for path in paths]
    width, height = len(COLUMNS) * 28 + 4, 3 * 28
    assert sheets[0].shape[1] == width
    tables = [picture[-height:, 4:] for picture in sheets]
    background = [table[:24, 28:52] for table in tables]  # the first overlay: mostly the image
    same = (abs(background[0] - background[1]).max(-1) < 3).mean()
    assert same > 0.3


@pytest.mark.filterwarnings("ignore:.*but have no `val_dataloader`")
def test_visualize_takes_a_training_batch_where_there_is_no_other(tmp_path):
    data = FakeFaces()
    run = trainer(
        tmp_path, [Visualize(every_n_steps=100, faces=2, size=16)], max_steps=1, limit_val_batches=0
    )
    run.fit(FakeMethod(), train_dataloaders=data.train_dataloader())
    (path,) = (tmp_path / "pictures").iterdir()
    assert path.name == "step_000001.png"


@pytest.mark.parametrize("name", ["every_n_steps", "faces", "size"])
def test_visualize_wants_positive_numbers(name):
    with pytest.raises(ValueError, match=f"{name} is 0"):
        Visualize(**{name: 0})


def test_the_overlay_config_adds_the_benchmark(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    truth.write(tmp_path / "data/synthetic", identities=1, frames=3)
    base = tmp_path / "base.yaml"
    settings = {"model": {"image_size": 8}}
    settings["trainer"] = {"callbacks": [{"class_path": "callbacks.visualize.Visualize"}]}
    base.write_text(yaml.safe_dump(settings))
    overlay = Path(configs.__file__).parent / "benchmarks" / "synthetic.yaml"
    callbacks = compose([base, overlay], [], {}).tree["trainer"]["callbacks"]
    assert [entry["class_path"] for entry in callbacks] == [
        "callbacks.visualize.Visualize",
        "callbacks.benchmark.RunBenchmark",
    ]
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Callback, "callback")
    callback = parser.instantiate_classes(parser.parse_object({"callback": callbacks[1]})).callback
    assert isinstance(callback.benchmark, SyntheticFaces)
    assert callback.benchmark.image_size == 8
    assert callback.benchmark.root == Path("data/synthetic")
    trainer(tmp_path, [callback]).test(FakeMethod(), datamodule=FakeFaces(), verbose=False)
    text = (tmp_path / "benchmarks" / "synthetic.md").read_text()
    assert "`nme_percent`" in text
    assert "Shape and reflectance are not scored" in text  # the fake's mesh is one triangle
