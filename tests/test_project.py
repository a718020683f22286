"""The house rules that machines can hold: shape checking is on, imports go one way, plug-ins enter
by one door."""

import ast
import re
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import torch

from core.lighting import sh_basis
from core.losses import masked_l1
from methods.base import FaceMethod

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("core", "methods", "datamodules", "callbacks", "benchmarks")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def test_a_wrong_shape_raises():
    """The canary: without beartype behind jaxtyping nothing would be checked, and this would pass
    silently."""
    with pytest.raises(Exception, match=r"(?i)type-check"):
        sh_basis(torch.zeros(5, 4))
    image = torch.zeros(2, 3, 8, 8)
    with pytest.raises(Exception, match=r"(?i)type-check"):
        masked_l1(image, image, torch.ones(2, 1, 8, 9))


def test_imports_go_one_way():
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_only_one_file_imports_nvdiffrast_and_not_when_it_is_imported():
    importing = []
    for path in SOURCES:
        tree = ast.parse(path.read_text())
        at_top = {node for node in tree.body}
        for node in ast.walk(tree):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(name.split(".")[0] == "nvdiffrast" for name in names):
                importing.append(path.relative_to(ROOT).as_posix())
                assert node not in at_top, path
    assert set(importing) == {"core/rasterize/nvdiffrast.py"}


def test_methods_enter_by_entry_points_and_have_a_config():
    found = {entry.name: entry for entry in entry_points(group="monoface.methods")}
    assert "cest" in found
    for name, entry in found.items():
        if entry.module.startswith("methods."):
            assert issubclass(entry.load(), FaceMethod)
            assert (ROOT / f"configs/{name}.yaml").is_file()


def test_no_grab_bag_modules_and_no_star_imports():
    for path in SOURCES:
        assert path.stem not in ("utils", "util", "helpers", "misc", "common"), path
        assert "import *" not in path.read_text(), path


def test_files_are_rooms():
    """A file that nobody can read in one sitting has become two."""
    long = {p.relative_to(ROOT).as_posix(): len(p.read_text().splitlines()) for p in SOURCES}
    assert not {name: n for name, n in long.items() if n > 650}


def test_the_readme_names_files_that_exist():
    text = (ROOT / "README.md").read_text()
    named = set(re.findall(r"(?:configs|benchmarks/results)/[\w/.-]+\.\w+", text))
    assert named
    assert not [name for name in sorted(named) if not (ROOT / name).exists()]
