import json

import numpy as np
import pytest
import torch
import yaml

from benchmarks.__main__ import BENCHMARKS, benchmark_class, main
from benchmarks.aflw2000 import AFLW2000
from benchmarks.base import Benchmark, Metric, Results, Summary
from benchmarks.checkpoint import load_predictor
from core.errors import AssetNotFoundError, DataError
from core.provenance import file_hash
from methods.cest import CEST
from tests.fakes import aflw2000, face_model

SMALL = {"image_size": 48, "uv_size": 48, "width": 2, "reflectance_width": 2}


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """What a training leaves, without the training."""
    run = tmp_path_factory.mktemp("run")
    settings = SMALL | {"face_model": str(face_model.write(run / "model.npz"))}
    settings |= {"identity_dims": 8, "expression_dims": 5}
    torch.manual_seed(0)
    network = CEST(**settings)
    (run / "checkpoints").mkdir()
    torch.save({"state_dict": network.state_dict()}, run / "checkpoints/best.ckpt")
    config = {"model": settings, "data": {"init_args": {"crop_margin": 1.5}}}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    (run / "run.json").write_text(json.dumps({"method": "methods.cest.CEST"}))
    return run


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return aflw2000.write(tmp_path_factory.mktemp("aflw"))


def test_a_checkpoint_is_scored(run_folder, root, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(AFLW2000, "size", 8)
    checkpoint = run_folder / "checkpoints/best.ckpt"
    command = ["run", "aflw2000", "--checkpoint", str(checkpoint), "--root", str(root)]
    options = ["--out", str(tmp_path), "--batch_size", "3", "--progress", "false"]
    assert main([*command, *options]) == 0
    assert "nme_mean_percent" in capsys.readouterr().out
    found = json.loads((tmp_path / "aflw2000.json").read_text())
    assert "48 x 48" in found["note"]  # the network's own size, from the run's config
    assert found["run"]["method"] == "methods.cest.CEST"
    assert found["run"]["checkpoint_sha256"] == file_hash(checkpoint)
    again = AFLW2000(root, 48, progress=False).run(load_predictor(checkpoint))
    value = found["metrics"]["nme_all_percent"]["value"]["mean"]
    assert again["nme_all_percent"].value.mean == pytest.approx(value, rel=1e-4)


def test_results_go_to_the_run(run_folder, root, monkeypatch):
    monkeypatch.setattr(AFLW2000, "size", 8)
    checkpoint = run_folder / "checkpoints/best.ckpt"
    command = ["run", "aflw2000", "--checkpoint", str(checkpoint), "--root", str(root)]
    assert main([*command, "--progress", "false"]) == 0
    assert (run_folder / "benchmarks/aflw2000.json").is_file()


def test_synthetic_faces_are_scored_too(run_folder, tmp_path, capsys):
    checkpoint = str(run_folder / "checkpoints/best.ckpt")
    assert main(["run", "synthetic", "--checkpoint", checkpoint, "--root", str(tmp_path)]) == 2
    assert "synthetic set, split 'test' not found" in capsys.readouterr().err


def test_a_protocol_is_set_by_its_parts(tmp_path, capsys):
    command = ["score", "micc", "--root", str(tmp_path), "--predictions", str(tmp_path)]
    for name in BENCHMARKS:
        options = benchmark_class(name).__init__.__annotations__
        assert not {"crop_mm", "scale", "trim"} & set(options)  # but in ScanProtocol
    with pytest.raises(SystemExit):
        main([*command, "--protocol.scale", "large"])
    assert "scale" in capsys.readouterr().err
    assert main([*command, "--protocol.trim", "2"]) == 2
    assert "a fraction in [0, 1)" in capsys.readouterr().err


def test_results_that_cannot_be_written_are_shown(tmp_path, capsys):
    for name in ("a", "b"):
        np.save(tmp_path / f"{name}.npy", np.random.default_rng(0).uniform(0, 9, (3, 68, 2)))
    np.save(tmp_path / "yaw.npy", np.array([0.0, 40, 80]))
    (tmp_path / "file").touch()
    arrays = {"predictions": "a", "labels": "b", "yaw": "yaw"}
    options = [part for k, v in arrays.items() for part in (f"--{k}", str(tmp_path / f"{v}.npy"))]
    assert main(["score", "aflw2000", *options, "--out", str(tmp_path / "file")]) == 2
    shown = capsys.readouterr()
    assert "nme_all 0.0000" in shown.out
    assert "cannot be written" in shown.err
    options += ["--out", str(tmp_path / "out")]
    assert main(["score", "aflw2000", *options, "--json", str(tmp_path / "file/x.json")]) == 2
    shown = capsys.readouterr()
    assert "nme_all 0.0000" in shown.out
    assert "x.json' cannot be written" in shown.err
    assert {path.suffix for path in (tmp_path / "out").iterdir()} == {".json", ".md"}


def test_abbreviated_options_are_refused(tmp_path, capsys):
    """A typo shall not be taken for another option."""
    with pytest.raises(SystemExit):
        main(["score", "micc", "--root", str(tmp_path), "--prediction", str(tmp_path)])
    assert "unrecognized arguments: --prediction " in capsys.readouterr().err


def test_reports_tell_of_files_that_are_left_out(tmp_path, capsys):
    metric = Metric("x_mm", "mm", "x", Summary(1.0, 0.0, 1.0, 1))
    Results("b", "p", [metric], 1).save(tmp_path / "runs")
    Results("empty", "p", [], 1).save(tmp_path / "runs")
    (tmp_path / "runs/broken.json").write_text("{")
    assert main(["report", str(tmp_path / "runs"), "--out", str(tmp_path / "report")]) == 0
    shown = capsys.readouterr()
    assert "left out: 2 files" in shown.err
    assert "broken.json: it is no JSON" in shown.err
    assert "index.html" in shown.out


def test_what_is_no_run_is_refused(run_folder, tmp_path):
    with pytest.raises(AssetNotFoundError, match="checkpoint"):
        load_predictor(run_folder / "checkpoints/none.ckpt")
    copy = tmp_path / "run/checkpoints/best.ckpt"
    copy.parent.mkdir(parents=True)
    torch.save({"state_dict": {}}, copy)
    with pytest.raises(AssetNotFoundError, match=r"config\.yaml"):
        load_predictor(copy)
    for name in ("config.yaml", "run.json"):
        (tmp_path / "run" / name).write_bytes((run_folder / name).read_bytes())
    with pytest.raises(DataError, match="no checkpoint of its run"):
        load_predictor(copy)
    (tmp_path / "run/run.json").write_text(json.dumps({"method": "os.system"}))
    with pytest.raises(DataError, match=r"run of os\.system; installed are"):
        load_predictor(copy)


@pytest.mark.parametrize("arguments", [[], ["run"], ["run", "nothing"], ["play", "micc"]])
def test_wrong_commands_show_what_there_is(arguments, capsys):
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert "aflw2000" in message
    assert message.splitlines()[-1].startswith("error: no ")
    assert main(["--help"]) == 0


def test_every_benchmark_has_a_name_and_a_config():
    for name in BENCHMARKS:
        benchmark = benchmark_class(name)
        assert issubclass(benchmark, Benchmark)
        assert benchmark.name == name


def test_what_compares_more_scores_no_meshes(tmp_path, capsys):
    assert main(["score", "celeba", "--root", str(tmp_path), "--predictions", str(tmp_path)]) == 2
    assert "more than meshes" in capsys.readouterr().err
