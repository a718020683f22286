"""Fig. 1 of PGN: the truth in place of an estimate undoes that estimate's error, and no other."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml

from benchmarks.__main__ import main
from benchmarks.base import Summary
from benchmarks.swap import (
    BINS,
    COLOURS,
    OTHERS,
    SWAPPED,
    SyntheticSwap,
    over_seeds,
    picture,
)
from core.camera import frontal
from core.errors import DataError
from core.rotation import rotation_from_euler
from core.truth import load_truth
from methods.cest import CEST
from tests.fakes import truth
from tests.test_benchmark_synthetic import NAMES, SIZE, Oracle

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return truth.write(tmp_path_factory.mktemp("synthetic"))


def run(root, change):
    benchmark = SyntheticSwap(root, image_size=SIZE, batch_size=4, progress=False)
    return benchmark.run(Oracle(root, change, NAMES))


def means(results, kind: str = "dense") -> dict[str, float]:
    return {name: results[f"{kind}_{name}_all_percent"].value.mean for name in SWAPPED}


def thicker(face):
    """Another identity: everything 5 % wider."""
    wide = torch.tensor([1.05, 1, 1])
    expression = face.vertices - face.neutral
    return replace(face, neutral=face.neutral * wide, vertices=face.neutral * wide + expression)


def turned(face):
    angle = torch.full(face.camera.rotation.shape[:2], 0.1)
    turn = frontal(angle) @ rotation_from_euler(0 * angle, angle, 0 * angle) @ frontal(angle)
    return replace(face, camera=replace(face.camera, rotation=turn @ face.camera.rotation))


def without_expression(face):
    return replace(face, vertices=face.neutral)


@pytest.mark.parametrize(
    ("change", "cause"),
    [(thicker, "identity"), (turned, "pose"), (without_expression, "expression")],
)
def test_the_truth_undoes_the_error_that_it_is_the_truth_of(root, change, cause):
    for kind in ("dense", "landmark"):
        found = means(run(root, change), kind)
        assert found["own"] > 0.3
        for name, value in found.items():
            if name == cause:
                assert value < 0.02, (kind, name)
            else:
                assert value > 0.3, (kind, name)


def test_the_error_is_in_units_of_the_eyes_distance_and_by_yaw(root):
    """A shift of the whole face in the image, by a tenth of that distance in 3D."""
    apart = []
    for name in NAMES:
        points = load_truth(root, name).landmarks_3d
        apart.append((points[36] - points[45]).norm())
    shift = 0.1 * torch.stack(apart).mean()  # millimetres; all people's eyes are about as far apart

    def moved(face):
        across = torch.tensor([1.0, 0, 0]) * shift
        return replace(
            face, camera=replace(face.camera, translation=face.camera.translation + across)
        )

    results = run(root, moved)
    assert means(results)["own"] == pytest.approx(10, rel=0.12)
    assert means(results)["pose"] < 0.02
    counts = [results[f"dense_own_{place}_percent"].value.n for place in BINS]
    assert counts[0] == sum(counts[1:]) == len(NAMES)
    assert max(counts[1:]) < len(NAMES)


def test_the_picture_has_a_bar_for_each_error(root):
    results = run(root, turned)

    def colours(*pictured) -> set:
        return {colour for _, colour in picture(*pictured).getcolors(2**20)}

    for colour in COLOURS.values():
        assert rgb(colour) in colours([results])
    assert rgb(OTHERS) not in colours([results])
    assert rgb(OTHERS) in colours([results], [results], "another")


def test_over_seeds_there_are_means_and_lines_of_their_spread(root):
    runs = [run(root, change) for change in (turned, thicker)]
    first, second = (means(each)["own"] for each in runs)
    found = over_seeds(runs, "dense_own_all_percent")
    assert found == pytest.approx(((first + second) / 2, abs(first - second) / 2**0.5))
    assert over_seeds(runs[:1], "dense_own_all_percent") == (pytest.approx(first), 0)
    nothing = Summary.of(torch.tensor([torch.nan]))
    empty = replace(runs[0], metrics=[replace(m, value=nothing) for m in runs[0].metrics])
    assert over_seeds([empty, *runs], "dense_own_all_percent") == found
    assert over_seeds([empty], "dense_own_all_percent") == (0, 0)

    def bar(*results) -> np.ndarray:  # of what is predicted, without the number above
        pixels = np.array(picture(results))[90:, 20:54]
        return pixels[(pixels == rgb(COLOURS["own"])).all(-1).any(1)]

    assert not (bar(runs[0]) == 0).all(-1).any()
    assert (bar(*runs) == 0).all(-1).any()


def rgb(colour: str) -> tuple[int, ...]:
    return tuple(int(colour[k : k + 2], 16) for k in (1, 3, 5))


def test_from_the_command_line(root, tmp_path, capsys):
    settings = {"image_size": 48, "uv_size": 48, "width": 2, "reflectance_width": 2}
    settings["face_model"] = str(root / "truth/model.npz")
    (tmp_path / "checkpoints").mkdir()
    state = {"state_dict": CEST(**settings).state_dict()}
    torch.save(state, tmp_path / "checkpoints/last.ckpt")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"model": settings}))
    (tmp_path / "run.json").write_text(json.dumps({"method": "methods.cest.CEST"}))
    command = ["--checkpoint", str(tmp_path / "checkpoints/last.ckpt"), "--swap"]
    command += ["--root", str(root), "--progress", "false"]
    assert main(["run", "synthetic", *command]) == 0
    assert "with the true pose" in capsys.readouterr().out
    found = json.loads((tmp_path / "benchmarks/synthetic_swap.json").read_text())
    assert found["run"]["method"] == "methods.cest.CEST"
    assert (tmp_path / "benchmarks/synthetic_swap.png").is_file()
    assert main(["run", "bu3dfe", *command]) == 2
    assert "known only of 'synthetic'" in capsys.readouterr().err


def test_another_mesh_is_refused(root):
    def other(face):
        return replace(face, uv=face.uv * 0.9)

    with pytest.raises(DataError, match="a mesh like its own"):
        run(root, other)
