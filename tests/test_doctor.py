"""``python -m core doctor`` tells what is there, survives what is broken, and says what to do."""

import json
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from benchmarks.__main__ import BENCHMARKS
from core import doctor
from core.__main__ import main
from core.doctor import Item, as_json, examine, table
from core.rasterize import nvdiffrast

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def room_on_the_disk(monkeypatch):
    """How full the disk is that the tests run on is nothing they are about."""
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: SimpleNamespace(free=1e11))


@pytest.fixture(autouse=True)
def a_home_of_its_own(monkeypatch, tmp_path):
    """No test reads the user's own files."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("NETRC", str(home / ".netrc"))
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    return home


def look(name: str, root: Path) -> Item:
    (item,) = [item for item in examine(root) if item.name == name]
    return item


def without(monkeypatch, *packages: str) -> None:
    """As if these distributions were not installed."""
    real = doctor.version

    def version(name: str) -> str:
        if name in packages:
            raise PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(doctor, "version", version)


def broken(monkeypatch, module: str, error: Exception) -> None:
    """As if importing this module raised."""
    real = doctor.import_module

    def load(name: str):
        if name == module:
            raise error
        return real(name)

    monkeypatch.setattr(doctor, "import_module", load)


def test_this_machine_can_run_the_demo(tmp_path):
    items = examine(tmp_path)
    assert len({item.name for item in items}) == len(items)
    assert [item.name for item in items if item.needed and item.status != "found"] == []
    for item in items:
        assert item.text.endswith(".")
        assert bool(item.next_step) == (item.status != "found"), item.name


@pytest.mark.parametrize("package", ["numba", "torchvision", "pytorch-lightning", "torch"])
def test_a_missing_package_is_named_with_what_to_do(monkeypatch, tmp_path, package):
    without(monkeypatch, package)
    monkeypatch.chdir(tmp_path)
    item = look(package.removeprefix("pytorch-"), tmp_path)
    assert (item.status, item.needed) == ("missing", True)
    assert item.text == f"the package '{package}' is not installed."
    assert "make setup" in item.next_step
    assert package in look("packages", tmp_path).text
    assert main(["doctor"]) == 1


def test_a_missing_optional_package_does_not_matter(monkeypatch, tmp_path):
    without(monkeypatch, "wandb")
    monkeypatch.setattr(doctor, "requires", lambda name: [])
    assert look("wandb", tmp_path).status == "missing"
    monkeypatch.chdir(tmp_path)
    assert main(["doctor"]) == 0


def test_a_package_that_cannot_be_imported_is_shown_and_nothing_stops(monkeypatch, tmp_path):
    broken(monkeypatch, "onnxruntime", OSError("libcudart.so.99: cannot open\nand more"))
    items = {item.name: item for item in examine(tmp_path)}
    assert items["insightface"].status == "broken"
    assert items["insightface"].text == "OSError: libcudart.so.99: cannot open"
    assert items["numba"].status == "found"
    broken(monkeypatch, "numba", RuntimeError())
    assert look("numba", tmp_path).text == "RuntimeError: no message"


def test_a_renderer_that_is_there_but_does_not_load(monkeypatch, tmp_path):
    monkeypatch.setattr(nvdiffrast, "is_installed", lambda: True)
    broken(monkeypatch, "nvdiffrast.torch", ImportError("undefined symbol: x"))
    item = look("nvdiffrast", tmp_path)
    assert (item.status, item.needed) == ("broken", False)
    assert "ImportError: undefined symbol: x" in item.text
    assert "Licence: NVIDIA" in item.next_step


def test_renderers_that_are_missing_come_with_their_licence(monkeypatch, tmp_path):
    monkeypatch.setattr(nvdiffrast, "is_installed", lambda: False)
    item = look("nvdiffrast", tmp_path)
    assert item.status == "missing"
    assert "non-commercial" in item.next_step


def test_a_torchvision_for_another_torch_is_found_out(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "requires", lambda name: ["numpy", "torch (==1.2.3)"])
    item = look("torchvision", tmp_path)
    assert (item.status, item.needed) == ("broken", True)
    assert "is built for torch 1.2.3, but torch is" in item.text


def test_an_old_python_is_refused(monkeypatch, tmp_path):
    old = SimpleNamespace(version_info=(3, 9, 1), executable="python", platform="linux")
    monkeypatch.setattr(doctor, "sys", old)
    item = look("python", tmp_path)
    assert (item.status, item.text) == ("missing", "this is 3.9.1.")
    assert "3.11" in item.next_step


def test_detector_models_are_looked_for_where_they_are_used(tmp_path, a_home_of_its_own):
    folder = a_home_of_its_own / ".insightface/models/buffalo_l"
    assert str(folder) in look("insightface", tmp_path).text
    folder.mkdir(parents=True)
    for name in ("det_10g.onnx", "1k3d68.onnx"):
        assert look("insightface", tmp_path).status == "missing"
        (folder / name).write_bytes(b"")
    assert look("insightface", tmp_path).status == "found"


def test_models_and_data_are_listed(tmp_path):
    assert look("other face models", tmp_path).status == "missing"
    assert look("data/voxceleb", tmp_path).status == "missing"
    for name in ("face_models", "voxceleb/id1", "voxceleb/id2", "mine"):
        (tmp_path / "data" / name).mkdir(parents=True)
    (tmp_path / "data/face_models/ict.npz").write_bytes(bytes(3_000_000))
    assert look("other face models", tmp_path).text == "in 'data/face_models': ict.npz (3 MB)."
    assert look("data/voxceleb", tmp_path).text == "2 entries."
    assert look("other data", tmp_path).text == "in data: mine."


def test_a_full_disk_stops_the_demo(monkeypatch, tmp_path):
    assert look("disk", tmp_path).text == "100 GB free here."
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: SimpleNamespace(free=5e8))
    monkeypatch.chdir(tmp_path)
    assert look("disk", tmp_path).text == "0.5 GB free here, `make demo` wants 2."
    assert main(["doctor"]) == 1


def test_wandb_login_is_seen_without_showing_the_key(monkeypatch, tmp_path, a_home_of_its_own):
    file = a_home_of_its_own / ".netrc"
    file.write_text("machine github.example login me password secret0\n")
    file.chmod(0o600)
    assert "not logged in." in look("wandb", tmp_path).text
    lines = "machine {} login user password secret123\n"  # as `wandb login` writes them
    for host in ("api.wandb.ai", "api.forge.example"):  # the usual one depends on the version
        file.write_text(lines.format(host))
        found = look("wandb", tmp_path)
        assert found.status == "found"
        assert host in found.text
    assert "secret123" not in as_json([found])
    monkeypatch.setenv("WANDB_BASE_URL", "https://own.example/api")
    assert "not logged in to https://own.example" in look("wandb", tmp_path).text
    file.write_text(lines.format("own.example"))
    assert look("wandb", tmp_path).status == "found"
    file.write_text(lines.format("api.wandb.ai"))
    monkeypatch.setenv("WANDB_API_KEY", "secret456")
    found = look("wandb", tmp_path)
    assert found.status == "found"
    assert "secret456" not in as_json([found])
    monkeypatch.delenv("WANDB_API_KEY")
    file.write_text("machine\n")
    assert look("wandb", tmp_path).status == "broken"


def test_table_and_json_say_the_same(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert main(["doctor", "--json"]) == 0
    items = json.loads(capsys.readouterr().out)
    assert lines[-1] == "`make demo` can run"
    assert len(lines) == len(items) + 1
    for line, item in zip(lines, items, strict=False):
        assert line.startswith(item["status"])
        assert all(part in line for part in (item["name"], item["text"], item["next_step"]))


def test_the_table_names_what_the_demo_lacks():
    items = [
        Item("a", "found", "here.", needed=True),
        Item("bb", "missing", "gone.", "Get it.", needed=True),
        Item("c", "broken", "odd."),
    ]
    assert table(items).splitlines() == [
        "found    a   here.",
        "missing  bb  gone. Next: Get it.",
        "broken   c   odd.",
        "`make demo` cannot run: see bb",
    ]


def test_it_imports_none_of_the_slow_packages(tmp_path):
    code = (
        "import sys; from core.__main__ import main; main(['doctor']);"
        "slow = {'pytorch_lightning', 'lightning', 'wandb', 'torchvision', 'insightface'};"
        "sys.exit(str(slow & set(sys.modules)) if slow & set(sys.modules) else 0)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "\n`make demo` can" in result.stdout  # run or not: as full as the disk is


def test_every_dataset_that_has_a_config_is_looked_for():
    configs = [yaml.safe_load(p.read_text()) for p in (ROOT / "configs/data").glob("*.yaml")]
    roots = {config["data"]["init_args"]["root"] for config in configs}
    assert len(roots) > 4
    assert roots <= doctor.DATASETS.keys()


def test_every_benchmark_s_data_are_looked_for(tmp_path):
    """The synthetic ones are a dataset's; two protocols more are on data of others."""
    names = set(BENCHMARKS) - {"synthetic", "aflw2000_dense", "micc_renderings"}
    assert names == doctor.BENCHMARKS.keys()
    assert look("benchmarks", tmp_path).status == "missing"
    for name in ("AFLW2000-3D", "BU-3DFE", "MICC", "known", "celeba"):
        (tmp_path / "data" / name).mkdir(parents=True)
    item = look("benchmarks", tmp_path)
    assert item.text == (
        "AFLW2000-3D in 'data/AFLW2000-3D', BU-3DFE in 'data/BU-3DFE', "
        "MICC Florence in 'data/MICC', CelebA in 'data/celeba'."
    )
    assert look("other data", tmp_path).text == "in data: known."
