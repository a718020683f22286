"""The command line: answers at once, merges configs, explains mistakes, records runs."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import wandb
import yaml

from core.errors import AssetNotFoundError, MonofaceError
from methods import front
from methods.base import FaceMethod
from methods.cli import main, threads_beside
from methods.merging import compose

pytestmark = pytest.mark.usefixtures("one_thread")

METHOD = "tests.fakes.method.FakeMethod"
ROOT = Path(__file__).resolve().parents[1]


def write(path: Path, **settings) -> str:
    path.write_text(yaml.safe_dump(settings))
    return str(path)


@pytest.fixture
def base(tmp_path, monkeypatch):
    """A config of the fake method, in whose folder the test then works."""
    monkeypatch.chdir(tmp_path)
    return write(
        tmp_path / "base.yaml",
        model={"lr": 0.01, "image_size": 8},
        data={
            "class_path": "tests.fakes.method.FakeFaces",
            "init_args": {"image_size": "${model.image_size}", "samples": 8, "batch_size": 4},
        },
        trainer={
            "max_steps": 3,
            "default_root_dir": "run",
            "accelerator": "cpu",
            "enable_progress_bar": False,
            "enable_model_summary": False,
        },
    )


@pytest.fixture
def built(monkeypatch):
    """Runs a fit up to where training would begin; returns model, datamodule and trainer."""
    from methods.cli import CommandLine

    def build(*arguments: str) -> CommandLine:
        seen = []
        monkeypatch.setattr(CommandLine, "_run_subcommand", lambda self, _: seen.append(self))
        main(METHOD, ["fit", *arguments])
        return seen[0]

    return build


# ---- at once ----


@pytest.mark.parametrize("arguments", [["--help"], [], ["fitt"], ["fit", "--config", "cst.yaml"]])
def test_answers_before_the_heavy_imports(arguments, tmp_path):
    start = time.perf_counter()
    result = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "methods.cest", *arguments],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        check=False,
    )
    seconds = time.perf_counter() - start
    assert result.returncode == (0 if arguments == ["--help"] else 2)
    modules = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert "methods.front" in modules
    assert not modules & {"torch", "pytorch_lightning", "numpy", "omegaconf"}
    assert seconds < 1  # measured: 0.1 s


def test_help_names_the_paper_the_subcommands_and_the_default_config(capsys):
    with pytest.raises(SystemExit) as stop:
        main("methods.cest.CEST", ["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith("CEST: Self-Supervised 3D Face Reconstruction")
    assert all(f"\n  {name} " in text for name in ("fit", "validate", "test", "predict"))
    assert "default: configs/cest.yaml" in text


def test_full_help_has_the_docstrings(capsys, base):
    with pytest.raises(SystemExit) as stop:
        main(METHOD, ["fit", "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "of the squared distance in units of the image's side." in text
    assert "--checkpoint_every" in text


def test_list_shows_installed_methods(capsys):
    with pytest.raises(SystemExit) as stop:
        front.answer("methods", ["list"])
    assert stop.value.code == 0
    assert "cest         CEST: Self-Supervised" in capsys.readouterr().out


def test_method_is_chosen_by_name(capsys):
    entry, rest = front.chosen(["fit", "--method", "cest", "--model.lr", "1"])
    assert entry.value == "methods.cest:CEST"
    assert rest == ["fit", "--model.lr", "1"]
    assert front.chosen(["fit", "--method=cest"])[1] == ["fit"]
    with pytest.raises(MonofaceError, match="no method 'cst'; did you mean cest"):
        front.chosen(["fit", "--method", "cst"])


def test_configs_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    packaged = ROOT / "configs" / "wandb.yaml"
    assert front.find_config("configs/wandb.yaml") == packaged
    assert front.find_config("wandb.yaml") == packaged
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "wandb.yaml").touch()
    assert front.find_config("configs/wandb.yaml").resolve() == tmp_path / "configs" / "wandb.yaml"
    with pytest.raises(AssetNotFoundError, match=r"did you mean configs/cest\.yaml"):
        front.find_config("configs/cset.yaml")
    assert front.default_config("methods.cest") == ROOT / "configs" / "cest.yaml"


# ---- mistakes ----

VOXCELEB = "datamodules.voxceleb.VoxCeleb"
MISTAKES = {
    "key": ({"model": {"imge_size": 8}}, [], "'model.imge_size'; did you mean model.image_size?"),
    "group": ({"modle": {"lr": 1}}, [], "'modle.lr'; did you mean model.lr?"),
    "trainer": ({"trainer": {"max_epoch": 1}}, [], "did you mean trainer.max_epochs"),
    "weight": ({"model": {"weights": {"landmrk": 1}}}, [], "did you mean model.weights.landmark?"),
    "datamodule": (
        {"data": {"init_args": {"batchsize": 1}}},
        [],
        "data: FakeFaces has no setting 'batchsize'; did you mean batch_size?",
    ),
    "reference": (
        {"model": {"lr": "${model.image_sze}"}},
        [],
        "model.lr: ${model.image_sze} refers to nothing; did you mean model.image_size?",
    ),
    "class": (
        {"data": {"class_path": "tests.fakes.method.FakeFacs"}},
        [],
        "tests.fakes.method has no class 'FakeFacs'; did you mean FakeFaces?",
    ),
    "module": (
        {"data": {"class_path": "tests.faks.A"}},
        [],
        "'tests.faks'; did you mean tests.fakes",
    ),
    "short class": (
        {"trainer": {"callbacks": [{"class_path": "LearningRateMonitr"}]}},
        [],
        "no class 'LearningRateMonitr'; did you mean LearningRateMonitor",
    ),
    "setting of a group": (
        {"data": {"class_path": VOXCELEB, "init_args": {"augmentation": {"shfit": 1}}}},
        [],
        "data: VoxCeleb.augmentation has no setting 'shfit'; did you mean shift?",
    ),
    "option of a group": (
        {},
        [f"--data={VOXCELEB}", "--data.augmentation.shfit=1"],
        "command line: data: VoxCeleb.augmentation has no setting 'shfit'; did you mean shift?",
    ),
    "type in a group": (
        {"data": {"class_path": VOXCELEB, "init_args": {"augmentation": {"flip": "x"}}}},
        [],
        "data.augmentation.flip: Expected a float. Got value: x",
    ),
    "type": ({"model": {"lr": "abc"}}, [], "model.lr: Expected a float. Got value: abc"),
    "missing": ({"model": {"lr": "???"}}, [], "model.lr: must be given"),
    "option": ({}, ["--model.imge_size=3"], "--model.imge_size; did you mean --model.image_size?"),
    "abbreviation": ({}, ["--trainer.max_step", "3"], "did you mean --trainer.max_steps"),
    "data option": ({}, ["--data.batchsize", "3"], "'batchsize'; did you mean batch_size?"),
    "data class": ({}, ["--data", "OtherFacs"], "no class 'OtherFacs'; did you mean OtherFaces?"),
    "stray": ({}, ["more"], "stray argument 'more'"),
    "checkpoint": ({}, ["--ckpt_path", "no.ckpt"], "checkpoint 'no.ckpt' not found at no.ckpt."),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_get_one_line(name, base, tmp_path, capsys):
    settings, options, expected = MISTAKES[name]
    typo = write(tmp_path / "typo.yaml", **settings)
    with pytest.raises(SystemExit) as stop:
        main(METHOD, ["fit", "--config", base, "--config", typo, *options])
    assert stop.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if "error" in line] == lines[-1:]
    assert expected in lines[-1]
    assert ("typo.yaml" in lines[-1]) == bool(settings)
    assert not Path("run").exists()


@pytest.mark.parametrize("subcommand", ["fit", "test"])
@pytest.mark.parametrize("folder", ["/proc/out", "base.yaml"])
def test_folder_that_cannot_be_written_is_an_error_at_once(subcommand, folder, base, capsys):
    with pytest.raises(SystemExit):
        main(METHOD, [subcommand, "--config", base, "--trainer.default_root_dir", folder])
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"command line: trainer.default_root_dir: cannot write into '{folder}'" in line
    assert "choose another folder with --trainer.default_root_dir" in line


def test_what_a_class_says_about_its_settings_is_shown_alone(base, capsys):
    more = [f"--data={VOXCELEB}", "--data.root=x", "--data.augmentation.flip=7"]
    with pytest.raises(SystemExit):
        main(METHOD, ["fit", "--config", base, *more])
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == "error: augmentation: flip must be in [0, 1.0], got 7.0"


def test_prediction_that_nothing_takes_is_an_error(base, tmp_path, capsys):
    empty = write(tmp_path / "empty.yaml", trainer={"callbacks": []})
    configs = ["--config", base, "--config", "configs/predict.yaml", "--config", empty]
    with pytest.raises(SystemExit):
        main(METHOD, ["predict", *configs, "--data=tests.fakes.method.FakeFaces"])
    lines = capsys.readouterr().err.splitlines()
    assert "note: trainer.callbacks replaces Export; callbacks+ would add to them" in lines
    assert lines[-1].startswith("error: trainer.callbacks: none writes what is predicted")
    assert not list(Path("run").iterdir())


def test_broken_yaml_names_the_line(base, tmp_path, capsys):
    (tmp_path / "broken.yaml").write_text("model:\n  lr: [1\ntrainer: {}\n")
    with pytest.raises(SystemExit):
        main(METHOD, ["fit", "--config", "broken.yaml"])
    assert "error: broken.yaml, line 3: not valid YAML" in capsys.readouterr().err


def test_config_without_data_says_what_to_add(base, capsys):
    with pytest.raises(SystemExit):
        main(METHOD, ["fit", "--config", "configs/wandb.yaml"])
    assert "no data: a method's own config comes first" in capsys.readouterr().err


def test_users_error_has_no_traceback_unless_wanted(base, monkeypatch, capsys):
    def fail(self, batch):
        raise MonofaceError("what, where, wanted")

    monkeypatch.setattr("tests.fakes.method.FakeMethod.terms", fail)
    with pytest.raises(SystemExit) as stop:
        main(METHOD, ["fit", "--config", base])
    assert stop.value.code == 2
    assert capsys.readouterr().err.endswith("error: what, where, wanted\n")
    monkeypatch.setenv("MONOFACE_TRACEBACK", "1")
    with pytest.raises(MonofaceError):
        main(METHOD, ["fit", "--config", base])


# ---- several configs ----


def test_later_configs_merge_deeply(base, tmp_path, built):
    first = write(tmp_path / "first.yaml", model={"weights": {"landmark": 5.0}})
    second = write(tmp_path / "second.yaml", data={"init_args": {"batch_size": 2}})
    run = built("--config", base, "--config", first, "--config", second)
    assert run.model.weights.landmark == 5.0
    assert run.model.weights.regularization == 0.01  # the signature's
    assert run.model.lr == 0.01  # the base's
    assert run.datamodule.batch_size == 2
    assert len(run.datamodule.dataset) == 8


def test_references_reach_across_files_and_the_command_line(base, tmp_path, built):
    other = write(tmp_path / "other.yaml", model={"image_size": 16})
    assert built("--config", base, "--config", other).datamodule.dataset.images.shape[-1] == 16
    assert (
        built("--config", base, "--model.image_size=12").datamodule.dataset.images.shape[-1] == 12
    )
    default = write(
        tmp_path / "default.yaml", data={"init_args": {"workers": "${model.nan_steps}"}}
    )
    assert built("--config", base, "--config", default).datamodule.workers == 0


def test_changed_class_keeps_what_it_takes_and_names_what_not(base, tmp_path, built, capsys):
    other = write(tmp_path / "other.yaml", data={"class_path": "tests.fakes.method.OtherFaces"})
    note = "note: data: OtherFaces does not take image_size, samples: dropped"
    given = write(tmp_path / "given.yaml", data={"init_args": {"batch_size": 3}})
    for arguments in (
        ["--config", given, "--config", other],
        ["--config", given, "--data", "tests.fakes.method.OtherFaces"],
        ["--config", given, "--data=OtherFaces"],
        ["--config", given, "--data.class_path=tests.fakes.method.OtherFaces"],
    ):
        run = built("--config", base, *arguments)
        assert type(run.datamodule).__name__ == "OtherFaces"
        assert run.datamodule.batch_size == 3
        assert capsys.readouterr().err.splitlines()[0] == note


def test_reference_survives_a_class_switch_on_the_command_line(base, tmp_path, built):
    config = write(tmp_path / "b.yaml", data={"init_args": {"batch_size": "${model.image_size}"}})
    run = built(
        "--config", base, "--config", config, "--data", "OtherFaces", "--model.image_size=6"
    )
    assert run.datamodule.batch_size == 6


def test_without_config_the_packaged_one_is_used(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    seen = []
    monkeypatch.setattr("methods.cli.compose", lambda paths, *_: seen.append(paths) or stop())

    def stop():
        raise MonofaceError("enough")

    with pytest.raises(SystemExit):
        main("methods.cest.CEST", ["fit"])
    assert seen == [[ROOT / "configs" / "cest.yaml"]]


def test_lists_are_replaced_or_appended_to(base, tmp_path):
    paths = [tmp_path / f"{name}.yaml" for name in "abc"]
    write(paths[0], trainer={"callbacks": ["A", "B"]})
    write(paths[1], **{"trainer": {"callbacks+": "C"}})
    write(paths[2], trainer={"callbacks": ["D"]})
    assert compose(paths[:2], [], {}).tree["trainer"]["callbacks"] == ["A", "B", "C"]
    assert compose(paths, [], {}).tree["trainer"]["callbacks"] == ["D"]
    (note,) = compose(paths, [], {}).notes
    assert note == "trainer.callbacks replaces A, B, C; callbacks+ would add to them"
    write(paths[2], trainer={"callbacks": ["B", {"class_path": "A"}, "D"]})
    assert compose([paths[0], paths[2]], [], {}).notes == []  # nothing is lost


def test_command_line_reaches_into_lists(base, tmp_path, built):
    stopping = {
        "class_path": "pytorch_lightning.callbacks.EarlyStopping",
        "init_args": {"monitor": "val/loss"},
    }
    config = write(tmp_path / "stop.yaml", trainer={"callbacks": [stopping]})
    run = built("--config", base, "--config", config, "--trainer.callbacks.patience=7")
    assert run.trainer.early_stopping_callback.patience == 7
    more = [
        "--trainer.callbacks+=LearningRateMonitor",
        "--trainer.callbacks.logging_interval=epoch",
    ]
    run = built("--config", base, "--config", config, *more)
    assert run.trainer.early_stopping_callback.patience == 3
    assert any(type(c).__name__ == "LearningRateMonitor" for c in run.trainer.callbacks)


def test_command_line_is_parsed_by_type_not_by_yaml(base, built):
    run = built("--config", base, "--model.lr", "1e-4", "--trainer.default_root_dir", "007")
    assert run.model.lr == 1e-4
    assert run.trainer.default_root_dir.endswith("007")


# ---- runs ----


def test_run_is_recorded_and_its_config_runs_again(base, built):
    main(METHOD, ["fit", "--config", base, "--model.lr=0.5"])
    config = yaml.safe_load(Path("run/config.yaml").read_text())
    assert config["model"]["lr"] == 0.5
    assert config["data"]["init_args"]["image_size"] == 8  # resolved
    assert config["seed_everything"] == 0
    record = json.loads(Path("run/run.json").read_text())
    assert record["method"] == METHOD
    assert record["command"] == f"python -m tests.fakes.method fit --config {base} --model.lr=0.5"
    assert record["seed"] == 0
    assert record["resumed_from"] is None
    assert record["versions"]["torch"].startswith(torch.__version__.split("+")[0])
    assert {"python", "monoface", "pytorch-lightning"} <= set(record["versions"])
    assert record["git"] is None or set(record["git"]) == {"commit", "dirty"}
    assert Path("run/metrics/version_0/metrics.csv").is_file()
    again = built("--config", "run/config.yaml")
    assert again.model.lr == 0.5


@pytest.mark.parametrize("logger", ["false", "wandb"])
def test_run_is_recorded_with_any_logger(base, logger, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    more = ["--trainer.logger=false"] if logger == "false" else ["--config", "configs/wandb.yaml"]
    for _ in range(2):
        main(METHOD, ["fit", "--config", base, *more])
        wandb.finish()
    assert {p.name for p in Path("run").glob("*.*")} >= {"config.yaml", "run.json"}
    assert len(list(Path("run").glob("**/wandb/offline-run-*"))) == 2 * (logger == "wandb")
    assert Path("run/metrics").exists() == (logger == "wandb")


def test_training_anew_keeps_the_earlier_one(base, capsys):
    main(METHOD, ["fit", "--config", base])
    first = torch.load("run/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    main(METHOD, ["fit", "--config", base, "--model.lr=0.5"])
    second = torch.load("run/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    kept = torch.load("run/earlier.1/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(kept[name], first[name]) for name in first)
    assert not torch.equal(kept["net.3.weight"], second["net.3.weight"])
    assert Path("run/earlier.1/run.json").is_file()
    assert Path("run/metrics/version_0").is_dir()


def test_training_anew_starts_in_an_empty_folder(base):
    main(METHOD, ["fit", "--config", base])
    made = {"benchmarks/fake.json", "pictures/step_000003.png", "predictions/a/face.json"}
    for name in made:
        Path("run", name).parent.mkdir(parents=True)
        Path("run", name).touch()
    main(METHOD, ["fit", "--config", base, "--ckpt_path=last", "--trainer.max_steps=4"])
    assert all(Path("run", name).is_file() for name in made)  # the same training goes on
    main(METHOD, ["fit", "--config", base])
    assert all(Path("run/earlier.1", name).is_file() for name in made)
    own = {"checkpoints", "config.yaml", "metrics", "run.json"}
    assert {path.name for path in Path("run").iterdir()} == {"earlier.1", *own}
    main(METHOD, ["fit", "--config", base, "--ckpt_path=run/earlier.1/checkpoints/last.ckpt"])
    assert {path.name for path in Path("run/earlier.2").iterdir()} == own


def test_training_anew_never_moves_the_working_folder(base, capsys):
    main(METHOD, ["fit", "--config", base, "--trainer.default_root_dir=."])
    before = sorted(Path.cwd().iterdir())
    with pytest.raises(SystemExit):
        main(METHOD, ["fit", "--config", base, "--trainer.default_root_dir=."])
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: trainer.default_root_dir: . holds a training")
    assert sorted(Path.cwd().iterdir()) == before


def test_two_processes_train_while_a_part_has_no_gradient(base, built):
    two = ["--trainer.devices=2", "--trainer.use_distributed_sampler=false"]
    learns = ["--model.late_from=2", "--trainer.max_steps=4", "--trainer.limit_val_batches=0"]
    main(METHOD, ["fit", "--config", base, *two, *learns, "--trainer.strategy=ddp_fork"])
    (adam,) = torch.load("run/checkpoints/last.ckpt", weights_only=True)["optimizer_states"]
    assert sorted(int(state["step"]) for state in adam["state"].values()) == [2, 4, 4, 4, 4]
    strategy = built("--config", base, *two).trainer.strategy  # which "auto" stands for
    assert strategy._ddp_kwargs["find_unused_parameters"]


def test_checkpoint_never_overrides_the_command_line(base, monkeypatch):
    """Also not if a method calls save_hyperparameters, which makes Lightning do it."""
    seen = []

    def save(self) -> None:
        FaceMethod.setup(self, "fit")
        seen.append(self.lr)

    monkeypatch.setattr("tests.fakes.method.FakeMethod.setup", lambda self, stage: save(self))
    main(METHOD, ["fit", "--config", base])
    checkpoint = torch.load("run/checkpoints/last.ckpt", weights_only=True)
    checkpoint["hyper_parameters"] = {"lr": 0.01}
    torch.save(checkpoint, "with_hyperparameters.ckpt")
    main(
        METHOD,
        ["validate", "--config", base, "--ckpt_path=with_hyperparameters.ckpt", "--model.lr=0.7"],
    )
    assert seen == [0.01, 0.7]


def test_evaluation_and_prediction_from_a_checkpoint(base, monkeypatch, capsys):
    main(METHOD, ["fit", "--config", base])
    faces = []
    monkeypatch.setattr(
        "tests.fakes.method.FakeMethod.on_predict_batch_end",
        lambda self, outputs, *_: faces.append(outputs),
        raising=False,
    )
    for subcommand in ("validate", "test", "predict"):
        main(METHOD, [subcommand, "--config", base, "--ckpt_path", "best"])
    assert faces[0].landmarks.shape == (4, 2, 68, 2)
    assert len(faces) == 2
    capsys.readouterr()
    main(METHOD, ["validate", "--config", base])
    assert "note: no --ckpt_path, so this is the untrained network" in capsys.readouterr().err


def test_checkpoint_of_another_network_is_explained(base, capsys):
    main(METHOD, ["fit", "--config", base])
    with pytest.raises(SystemExit):
        main(METHOD, ["test", "--config", base, "--model.image_size=6", "--ckpt_path=last"])
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(
        "error: the checkpoint does not fit the configured network: size mismatch"
    )
    assert "--config <run>/config.yaml" in line


def test_training_leaves_cores_to_the_reading_processes(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert [threads_beside(workers) for workers in (0, 2, 8, 20)] == [8, 6, 1, 1]
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert threads_beside(2) == torch.get_num_threads()
