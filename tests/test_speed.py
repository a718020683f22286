"""The speed benchmark: its method, its meshes, its keys; each stage and step runs."""

import re
import sys
from importlib.machinery import ModuleSpec
from itertools import chain
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from benchmarks.speed import gpu, meshes, reading, report, stages, training
from benchmarks.speed.__main__ import main
from benchmarks.speed.meshes import Mesh, refine
from benchmarks.speed.peers import peers
from benchmarks.speed.scene import Scene
from benchmarks.speed.timing import Candidate, Timing, measure
from core.errors import MonofaceError
from core.face_models import FaceModel
from core.mesh import edges
from core.normals import face_normals
from tests.fakes import voxceleb
from tests.fakes.face_model import face_model_arrays, write

KEY = re.compile(r"[a-z0-9_]+/[a-z0-9_]+/(any|\d+)/\d+/[a-z0-9_]+/(cuda|\d+)")
CPU = torch.device("cpu")


@pytest.fixture
def tiny():
    return Mesh("tiny", FaceModel(face_model_arrays()))


def test_candidates_take_turns(monkeypatch):
    log, before = [], torch.get_num_threads()
    monkeypatch.setattr("benchmarks.speed.timing.LEAST_S", 0.0)
    monkeypatch.setattr("benchmarks.speed.timing.PAUSE_S", 0.0)
    monkeypatch.setattr("benchmarks.speed.timing.SETTLE_S", 0.0)

    def work(name):
        return lambda: log.append((name, torch.get_num_threads()))

    rows = [Candidate("a", work("a"), 1, 1), Candidate("b", work("b"), 1, 2)]
    timings = measure(rows, rounds=3)
    warm, rounds = log[:4], log[4:]
    assert sorted(warm) == [("a", 1), ("a", 1), ("b", 2), ("b", 2)]
    assert rounds == 3 * [("a", 1), ("b", 2)]
    assert all(len(timing.samples) == 3 for timing in timings.values())
    assert torch.get_num_threads() == before
    with pytest.raises(ValueError, match="two candidates have the key 'a'"):
        measure([rows[0], rows[0]])


def test_figures_are_medians_per_image_of_repeated_work(monkeypatch):
    rounds = ((9.0, 4 * x) for x in (5e-3, 1e-3, 2e-3, 3e-3, 4e-3))
    seconds, asked = iter([9.0, 0.001, *chain.from_iterable(rounds)]), []

    def sample(candidate, repeats):
        asked.append(repeats)
        return next(seconds)

    monkeypatch.setattr("benchmarks.speed.timing._sample", sample)
    timing = measure([Candidate("a", lambda: None, 10, 1)], rounds=5)["a"]
    # the first compiles, 1 ms is repeated to 4, after 20 that wake the threads
    assert asked == [1, 1, *(5 * (20, 4))]
    assert timing.median == pytest.approx(0.3)
    assert timing.iqr == pytest.approx(0.2)


def test_long_work_needs_no_run_that_wakes_threads(monkeypatch):
    seconds, asked = iter([9.0, 0.1, 0.0, 0.3, 0.0, 0.2]), []

    def sample(candidate, repeats):
        asked.append(repeats)
        return next(seconds)

    monkeypatch.setattr("benchmarks.speed.timing._sample", sample)
    timing = measure([Candidate("a", lambda: None, 10, 1)], rounds=2)["a"]
    assert asked == [1, 1, 0, 1, 0, 1]  # as it is longer than threads take to settle
    assert timing.samples == pytest.approx((30, 20))


def test_refining_halves_the_longest_edges_and_keeps_the_surface():
    model = FaceModel(face_model_arrays())
    values = torch.cat([model.mean, model.uv], 1).double()
    triangles = model.triangles

    def area(values, triangles):
        a, b, c = (values[triangles[:, k], :3] for k in range(3))
        return torch.linalg.cross(b - a, c - a).norm(dim=-1).sum() / 2

    def longest(values, triangles):
        pairs = edges(triangles)
        return (values[pairs[:, 0], :3] - values[pairs[:, 1], :3]).norm(dim=-1).max()

    for wanted in (len(triangles) + 101, 5000):
        more, split = refine(values, triangles, wanted)
        assert wanted - 1 <= len(split) <= wanted
        assert torch.equal(more[: len(values)], values)
        assert area(more, split).item() == pytest.approx(area(values, triangles).item())
        assert longest(more, split) < longest(values, triangles)
        # each inner edge still has two triangles: nothing is torn
        pairs = split[:, [0, 1, 1, 2, 2, 0]].view(-1, 2).sort(-1).values
        counts = torch.unique(pairs, dim=0, return_counts=True)[1]
        assert counts.max() == 2
        assert len(more) - len(counts) + len(split) == _euler(values, triangles)
        whole = face_normals(values[:, :3], triangles)
        assert (face_normals(more[:, :3], split) @ whole.mT).amax(1).min() > 1 - 1e-9


def _euler(values, triangles):
    return len(values) - len(edges(triangles)) + len(triangles)


@pytest.mark.parametrize(("name", "vertices"), [("coarse", 6706), ("dense", 37280)])
def test_meshes_are_about_those_of_the_papers(name, vertices):
    model = meshes.load(name).model
    assert len(model.triangles) == pytest.approx(meshes.TRIANGLES[name], abs=1)
    assert len(model.mean) == pytest.approx(vertices, rel=0.02)
    assert [len(model.identity_basis), len(model.expression_basis)] == [80, 64]


def test_other_meshes_are_files(tmp_path):
    mesh = meshes.load(str(write(tmp_path / "face.npz")))
    assert mesh.name == "face"
    with pytest.raises(MonofaceError, match=r"no mesh 'dens'; there are coarse, dense, or .*npz"):
        meshes.load("dens")


def test_the_face_is_as_high_as_dengs():
    scene = Scene(Mesh("tiny", FaceModel(face_model_arrays())), 224, 3, CPU)
    pixels, depth = scene.camera.project(scene.vertices)
    low, high = pixels.amin(1), pixels.amax(1)
    assert (high - low)[:, 1].tolist() == pytest.approx([193] * 3, rel=0.12)  # turned, near
    assert ((high + low) / 2 - 112).abs().max() < 15
    assert (depth > 0).all()
    again = Scene(Mesh("tiny", FaceModel(face_model_arrays())), 224, 3, CPU)
    assert torch.equal(scene.clip, again.clip)


def test_each_stage_runs_and_has_its_key(tiny, monkeypatch):
    monkeypatch.setattr("benchmarks.speed.timing.LEAST_S", 0.0)
    rows = stages.candidates(tiny, 20, 2, [1, 2], ["cpu", "nvdiffrast"], list(stages.STAGES))
    timings = measure(rows, rounds=1)
    assert all(KEY.fullmatch(key) for key in timings)
    assert all(timing.median > 0 for timing in timings.values())
    for stage in stages.STAGES:
        extent = "any" if stage in stages.SIZELESS else "20"
        assert {f"{stage}/tiny/{extent}/2/cpu/{count}" for count in (1, 2)} <= set(timings)
    assert "normals/tiny/any/2/torch/1" in timings
    if not torch.cuda.is_available():
        assert not any("nvdiffrast" in key for key in timings)


def test_sim3dr_is_called_as_it_declares_its_arguments(tiny, monkeypatch):
    calls, scene = [], Scene(tiny, 20, 2, CPU)
    library = ModuleType("Sim3DR_Cython")
    library.__spec__ = ModuleSpec("Sim3DR_Cython", None)
    library.rasterize_triangles = lambda *arguments: calls.append(arguments)
    monkeypatch.setitem(sys.modules, "Sim3DR_Cython", library)
    peers(scene)["sim3dr"]()
    kinds = [np.float32, np.int32, np.float32, np.int32, np.float32]
    points, _ = scene.camera.project(scene.vertices)
    for image, (vertices, triangles, depth, index, weights, *numbers) in enumerate(calls):
        arrays = [vertices, triangles, depth, index, weights]
        assert [array.dtype for array in arrays] == kinds
        assert all(array.ndim == 2 and array.flags.c_contiguous for array in arrays)
        assert depth.shape == index.shape == (20, 20)
        assert weights.shape == (400, 3)
        assert numbers == [len(triangles), 20, 20]
        # pixel centres are at whole numbers, nearer is larger
        assert np.allclose(vertices[:, :2] + 0.5, points[image], atol=1e-3)
        assert np.allclose(vertices[:, 2], -scene.clip[image, :, 3])
    assert len(calls) == 2


def test_networks_may_give_anything_that_holds_tensors():
    class Network(torch.nn.Linear):
        def forward(self, x):
            y = super().forward(x)
            return {"one": y, "others": (2 * y, [x.detach()]), "name": "toy", "none": None}

    class Method(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network = Network(2, 3)

    method = Method()
    run = training._networks_alone(method, lambda: method.network(torch.ones(1, 2)), "fp32", CPU)
    run()
    # 1e-3 for each number of y and of 2 y
    assert torch.allclose(method.network.bias.grad, torch.full((3,), 3e-3))


def test_registered_methods_and_networks_take_steps(tiny, monkeypatch, tmp_path):
    monkeypatch.setattr("benchmarks.speed.timing.LEAST_S", 0.0)
    monkeypatch.setattr(training, "NETWORKS", {"resnet18": (32, 2)})
    monkeypatch.setattr(training, "CONFIGS", tmp_path)
    model = str(write(tmp_path / "face.npz"))
    (tmp_path / "cest.yaml").write_text(
        f"model: {{face_model: {model}, image_size: 33, uv_size: 33, width: 2, landmark_steps: 9,"
        " reflectance_width: 2, anneal_steps: '${trainer.max_steps}', weights: {landmark: 2.0}}\n"
        "data: {init_args: {image_size: '${model.image_size}', frames_per_clip: 2,"
        " clips_per_batch: 1}}\ntrainer: {max_steps: 3}\n"
    )
    assert training.methods() == {"cest": "methods.cest:CEST"}
    for what, place in (("cest", f"{Path(model).stem}/33/2"), ("resnet18", "tiny/32/2")):
        rows = training.candidates(what, tiny, ["fp32", "bf16"], [1], CPU)
        timings = measure(rows, rounds=1)
        assert set(timings) == {
            f"{part}_{what}_{precision}/{place}/cpu/1"
            for part in ("step", "network", "optimizer")
            for precision in ("fp32", "bf16")
        }
    with pytest.raises(MonofaceError, match="no method or network 'cets'; there are cest, resnet"):
        training.candidates("cets", tiny, ["fp32"], [1], CPU)


def test_the_share_that_is_not_the_networks():
    place = "resnet18_fp32/dense/112/16/cpu/2"
    medians = {f"step_{place}": 10.0, f"network_{place}": 6.0, f"optimizer_{place}": 1.5}
    shares = training.shares(medians | {"step_other/dense/1/1/cpu/1": 1.0})
    assert shares == {f"step_{place}": pytest.approx(0.25)}


def test_the_reader_is_measured(tmp_path):
    root = voxceleb.write(tmp_path / "tree", quirks=False)
    (row,) = reading.candidates(root, 32, 2, 2, [0])
    assert row.key == "read/tree/32/4/voxceleb/0"
    assert row.images == 8  # 2 frames of each of the 4 clips of two people
    assert measure([row], rounds=1)[row.key].median > 0


def test_json_holds_the_figures_by_key(tmp_path):
    timings = {"rasterize/dense/224/16/cpu/2": Timing(0.6, 0.1, (0.6,))}
    path = tmp_path / "made/speed.json"
    report.save(path, timings, tests="none")
    assert report.load(path) == {"rasterize/dense/224/16/cpu/2": 0.6}
    assert '"iqr": {' in path.read_text()
    facts = report.about()
    assert torch.__version__.startswith(facts["versions"]["torch"])
    assert re.fullmatch(r"[0-9a-f]{7,}\+?|unknown", facts["commit"])


def test_the_table_tells_ratios_to_ours():
    timings = {
        "rasterize/dense/224/16/cpu/2": Timing(0.5, 0.1, (0.5,)),
        "rasterize/dense/224/16/sim3dr/2": Timing(2.0, 0.1, (2.0,)),
        "rasterize/dense/224/16/sim3dr/1": Timing(2.0, 0.1, (2.0,)),
    }
    rows = report.table(timings).splitlines()[2:]
    assert [row.split("|")[-2].strip() for row in rows] == ["1.00", "4.00", ""]
    assert [row.split("|")[1].strip() for row in rows] == 3 * ["rasterize"]


def test_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("benchmarks.speed.timing.LEAST_S", 0.0)
    model = write(tmp_path / "face.npz")
    options = ["--size", "16", "--batch", "2", "--threads", "1", "--rounds", "1"]
    stage = ["--stage", "rasterize", "normals", "--json", str(tmp_path / "speed.json")]
    assert main(["render", "--mesh", str(model), *options, *stage]) == 0
    assert "| rasterize | face | 16 | 2 | cpu | 1 |" in capsys.readouterr().out
    assert "rasterize/face/16/2/cpu/1" in report.load(tmp_path / "speed.json")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["render", "--stage", "rasterise"], "invalid choice: 'rasterise'"),
        (["render", "--backend", "cuda"], "invalid choice: 'cuda'"),
        (["render", "--rounds", "0"], "invalid _positive value: '0'"),
        (["step", "--what", "cets"], "invalid choice: 'cets'"),
        (["rendr"], "invalid choice: 'rendr'"),
    ],
)
def test_misspelt_options_are_errors(arguments, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert message in capsys.readouterr().err


def test_a_misspelt_mesh_is_an_error(capsys):
    assert main(["render", "--mesh", "dens"]) == 2
    assert "no mesh 'dens'" in capsys.readouterr().err


def test_without_a_gpu_it_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu, "RESULTS", tmp_path)
    assert gpu.run() == 0
    assert "no NVIDIA GPU: the CUDA tests and figures were not run" in capsys.readouterr().out
    text = (tmp_path / "no_gpu.md").read_text()
    assert "| renderer | dense | 224 | 64 | nvdiffrast | cuda | not run | not run |" in text
