"""The health report: nothing to say against the built-in head; each usual mistake has a name."""

import numpy as np
import pytest
import torch

from core.face_models import FaceModel
from core.face_models.health import health, table
from core.face_models.procedural import procedural_arrays

KEPT = {"identity_basis": 12, "expression_basis": 8, "albedo_basis": 8}  # modes, for speed


@pytest.fixture(scope="module")
def arrays():
    full = procedural_arrays()
    for key in ("expression_names", "expression_std"):
        full.pop(key, None)
    return {key: array[: KEPT.get(key)] if key in KEPT else array for key, array in full.items()}


def levels(model: FaceModel) -> dict[str, str]:
    return {finding.name: finding.level for finding in health(model)}


def test_the_built_in_head_is_well_and_so_is_the_fake(arrays):
    whole = health(FaceModel(procedural_arrays()))
    assert [f.text for f in whole if f.level != "ok"] == []
    assert len({f.name for f in whole}) == len(whole)
    assert "failure" not in levels(FaceModel(arrays)).values()


def test_figures_are_those_of_an_independent_calculation(arrays):
    text = {f.name: f.text for f in health(FaceModel(arrays))}
    points = arrays["mean"][arrays["landmark_vertices"][:, 0]].astype(float)
    eyes = np.linalg.norm(points[36:42].mean(0) - points[42:48].mean(0))
    assert f"lie {eyes:.3g} mm" in text["unit"]
    people = np.random.default_rng(0).normal(size=(300, 12)).astype(np.float32)
    moved = np.einsum("pk,knc->pnc", people, arrays["identity_basis"][:, arrays["region_face"]])
    rms = float(text["identity"].split("by ")[1].split(" mm")[0])
    assert rms == pytest.approx(np.sqrt((moved**2).sum(-1).mean()), rel=0.08)
    assert f"{len(arrays['triangles'])} triangles; 0 without area" in text["triangles"]
    cosine = np.corrcoef(arrays["identity_basis"].reshape(12, -1))  # nearly: means are about 0
    worst = float(text["modes"].split("cosine of ")[1].split(",")[0])
    assert worst == pytest.approx(np.abs(cosine - np.eye(12)).max(), abs=0.1)


def doubled(array: np.ndarray) -> np.ndarray:
    return np.concatenate([array, array[:200]])


def overlapping(uv: np.ndarray) -> np.ndarray:
    """The map folded at a quarter: what lay left of it lies on what is right of it."""
    return np.stack([np.where(uv[:, 0] < 0.4, 0.8 - uv[:, 0], uv[:, 0]), uv[:, 1]], 1)


def swapped(array: np.ndarray, a: int, b: int) -> np.ndarray:
    out = array.copy()
    out[[a, b]] = array[[b, a]]
    return out


LEFT_RIGHT = "landmarks left and right"
SPOILED = {  # key, what is done to it, the finding that must not be ok, its level
    "centimetres": ("mean", lambda m: m / 10, "unit", "failure"),
    "turned upside down": ("mean", lambda m: m * np.float32([-1, -1, 1]), "y axis", "failure"),
    "mirrored": ("mean", lambda m: m * np.float32([-1, 1, 1]), "x axis", "failure"),
    "z into the face": ("mean", lambda m: m * np.float32([1, 1, -1]), "z axis", "failure"),
    "z up": ("mean", lambda m: m[:, [0, 2, 1]], "y axis", "failure"),
    "off the middle": ("mean", lambda m: m + np.float32([10, 0, 0]), LEFT_RIGHT, "warning"),
    "lopsided": (
        "mean",
        lambda m: m + np.float32([0, 6, 0]) * (m[:, :1] > 0),
        "mirror map",
        "warning",
    ),
    "clockwise": ("triangles", lambda t: t[:, ::-1], "winding", "failure"),
    "a part clockwise": (
        "triangles",
        lambda t: np.concatenate([t[:-100], t[-100:, ::-1]]),
        "winding",
        "warning",
    ),
    "some twice": ("triangles", doubled, "triangles", "warning"),
    "one without area": (
        "triangles",
        lambda t: np.concatenate([t, [[5, 5, 6]]]),
        "triangles",
        "warning",
    ),
    "fins": ("triangles", lambda t: np.concatenate([t, t[:50] * [1, 1, 0]]), "edges", "warning"),
    "no triangles": ("triangles", lambda t: t[:0], "triangles", "failure"),
    "half a mesh": ("triangles", lambda t: t[:8000], "vertices", "failure"),
    "swapped corners": ("landmark_vertices", lambda v: swapped(v, 36, 39), "landmarks", "warning"),
    "other order": ("landmark_vertices", lambda v: np.roll(v, 1, 0), "landmarks", "failure"),
    "sides swapped": ("landmark_vertices", lambda v: swapped(v, 36, 45), "landmarks", "warning"),
    "one landmark off": (
        "landmark_vertices",
        lambda v: np.where(np.arange(68)[:, None] == 20, v[24], v),
        LEFT_RIGHT,
        "failure",
    ),
    "no mirror": ("mirror", lambda m: np.arange(len(m)), "mirror map", "failure"),
    "mirror of another mesh": ("mirror", lambda m: np.roll(m, 1), "mirror map", "failure"),
    "mirror not one to one": (
        "mirror",
        lambda m: np.where(np.arange(len(m)) == m[77], 78, m),
        "mirror map",
        "warning",
    ),
    "v up": ("uv", lambda u: [0, 1] + u * [1, -1], "uv frame", "failure"),
    "u reversed": ("uv", lambda u: [1, 0] + u * [-1, 1], "uv frame", "failure"),
    "uv in pixels": ("uv", lambda u: u * 255, "uv frame", "failure"),
    "uv askew": ("uv", lambda u: u * [0.9, 1], "uv frame", "warning"),
    "uv overlaps": ("uv", overlapping, "uv charts", "warning"),
    "tiny identity": ("identity_basis", lambda b: b / 1000, "identity", "failure"),
    "huge identity": ("identity_basis", lambda b: b * 20, "identity", "failure"),
    "small modes first": ("identity_basis", lambda b: b[::-1], "identity", "warning"),
    "a mode twice": ("identity_basis", lambda b: np.concatenate([b, b[:1]]), "modes", "warning"),
    "a mode of nothing": (
        "identity_basis",
        lambda b: np.concatenate([b, 0 * b[:1]]),
        "modes",
        "warning",
    ),
    "no expressions": ("expression_basis", lambda b: b[:0], "expressions", "failure"),
    "expressions in metres": ("expression_basis", lambda b: b / 1000, "expressions", "failure"),
    "colours to 255": ("albedo_mean", lambda a: a * 255, "albedo", "failure"),
    "wild colours": ("albedo_basis", lambda b: b * 5, "albedo", "warning"),
    "blue first": ("albedo_mean", lambda a: a[:, ::-1], "skin", "warning"),
    "no face": ("region_face", lambda f: f & False, "regions", "failure"),
    "the wrong face": ("region_face", lambda f: ~f, "regions", "failure"),
    "an empty region": ("region_ears", lambda f: f & False, "regions", "warning"),
}


@pytest.fixture(scope="module")
def good(arrays):
    return levels(FaceModel(arrays))


@pytest.mark.parametrize("mistake", SPOILED)
def test_each_mistake_has_a_name(arrays, good, mistake):
    key, change, name, level = SPOILED[mistake]
    changed = np.ascontiguousarray(change(arrays[key]))
    if mistake == "centimetres":  # such a file is refused before; the buffer is not
        model = FaceModel(arrays)
        model.mean = torch.from_numpy(changed)
    else:
        model = FaceModel({**arrays, key: changed})
    assert good[name] == "ok"
    assert levels(model)[name] == level


def test_a_stand_in_is_told(arrays):
    told = {"stand_ins": np.array(["albedo_mean"]), "notes": np.array(["borrowed skin"])}
    found = {f.name: f for f in health(FaceModel({**arrays, **told}))}
    assert found["notes"].level == "warning"
    assert found["notes"].text == "not the model's own: albedo_mean. borrowed skin"


def test_the_report_changes_nothing(arrays):
    model = FaceModel(arrays)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    state = torch.get_rng_state()
    assert health(model) == health(model)
    assert torch.equal(torch.get_rng_state(), state)
    for name, buffer in model.named_buffers():
        assert torch.equal(before[name], buffer)


def test_the_table_has_a_line_for_each_finding(arrays):
    findings = health(FaceModel(arrays))
    lines = table(findings).splitlines()
    assert len(lines) == len(findings)
    assert all(f.text in line and f.name in line for f, line in zip(findings, lines, strict=True))
