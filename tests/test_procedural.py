"""The built-in head: sizes against published anthropometry, symmetry, topology, UV, cache."""

import os
import time

import numpy as np
import pytest

from core.face_models import procedural
from core.face_models.model import FaceModel
from core.face_models.procedural.head import build_head
from core.landmarks import MIRROR

# Means of North American White women and men, averaged (mm), and the difference allowed: at most
# two standard deviations of one sex. Farkas (1994, 2005); pupils, head length, breadth: ANSUR II.
DISTANCES = {
    "inner canthi": (39, 42, 32.5, 4.0),
    "outer canthi": (36, 45, 89.5, 5.0),
    "mouth width": (48, 54, 52.3, 5.0),
    "nasion to subnasale": (27, 33, 52.7, 5.0),
    "nasion to gnathion": (27, 8, 118.0, 8.0),
    "subnasale to stomion": (33, 62, 21.2, 3.0),
}


@pytest.fixture(scope="module")
def built():
    start = time.perf_counter()
    head = build_head()
    return head, time.perf_counter() - start


@pytest.fixture(scope="module")
def head(built):
    return built[0]


def _edges(triangles, directed=False):
    edges = np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]])
    return edges if directed else np.sort(edges, axis=1)


def _normals(head):
    a, b, c = head.vertices[head.triangles].transpose(1, 0, 2)
    return np.cross(b - a, c - a)


def test_size_and_build_time(built):
    head, seconds = built
    assert 7000 <= len(head.vertices) <= 9500
    assert head.vertices.shape[1] == 3
    assert np.isfinite(head.vertices).all()
    assert seconds < 60  # some 3 s on a free core


def test_same_arrays_at_each_build(head):
    again = build_head()
    for name in ("vertices", "triangles", "uv", "mirror", "landmarks"):
        np.testing.assert_array_equal(getattr(head, name), getattr(again, name))
    for name, flag in head.regions.items():
        np.testing.assert_array_equal(flag, again.regions[name])


@pytest.mark.parametrize("name", DISTANCES)
def test_landmark_distances_are_those_of_adults(head, name):
    a, b, mean, tolerance = DISTANCES[name]
    points = head.vertices[head.landmarks]
    assert np.linalg.norm(points[a] - points[b]) == pytest.approx(mean, abs=tolerance)


def test_breadths_and_lengths_are_those_of_adults(head):
    x, y, z = head.vertices.T
    skin = ~head.regions["ears"] & ~head.regions["eyeballs"]
    tip, under = head.vertices[head.landmarks[[30, 33]]]
    pupil = head.regions["pupil"] & (x > 0)
    wing = (np.abs(y + 8) < 4) & (z > 90) & (x < 25) & skin
    assert 2 * x[skin & (np.abs(y - 12) < 6) & (z > 10)].max() == pytest.approx(
        134.6, abs=6
    )  # zygia
    assert 2 * x[skin & (y > 30)].max() == pytest.approx(150, abs=7)  # head breadth
    assert z[skin & (np.abs(x) < 3) & (y > 30)].max() - z.min() == pytest.approx(192, abs=8)
    assert 2 * x[pupil].mean() == pytest.approx(63, abs=3)
    assert 2 * x[wing].max() == pytest.approx(33.2, abs=4)  # alae
    assert tip[2] - under[2] == pytest.approx(19.5, abs=4)  # protrusion of the nose, about along z
    assert np.ptp(y[head.regions["ears"]]) == pytest.approx(61, abs=6)


def test_frame_is_the_model_frame(head):
    points = head.vertices[head.landmarks]
    assert points[36, 0] < 0 < points[45, 0]  # the subject's right eye lies to the image's left
    assert (
        points[30, 2] == head.vertices[head.landmarks, 2].max()
    )  # the tip of the nose is foremost
    assert 100 < points[30, 2] < 130
    assert 25 < points[36:48, 1].mean() < 35
    assert (
        points[19, 1] > points[37, 1] > points[30, 1] > points[51, 1] > points[57, 1] > points[8, 1]
    )


def test_left_and_right_are_equal_to_the_last_bit(head):
    mirror = head.mirror
    np.testing.assert_array_equal(mirror[mirror], np.arange(len(mirror)))
    np.testing.assert_array_equal(head.vertices[mirror], head.vertices * [-1, 1, 1])
    uv = head.uv.astype(np.float32)
    np.testing.assert_array_equal(uv[mirror], np.stack([np.float32(1) - uv[:, 0], uv[:, 1]], 1))
    np.testing.assert_array_equal(mirror[head.landmarks], head.landmarks[list(MIRROR)])
    for flag in head.regions.values():
        np.testing.assert_array_equal(flag[mirror], flag)
    # A mirrored triangle, turned round, is a triangle of the mesh.
    ours = {tuple(np.roll(t, -t.argmin())) for t in head.triangles}
    theirs = {tuple(np.roll(t, -t.argmin())) for t in mirror[head.triangles][:, ::-1]}
    assert ours == theirs


def test_surface_is_a_manifold_of_sound_triangles(head):
    assert len(np.unique(np.sort(head.triangles, axis=1), axis=0)) == len(head.triangles)
    assert np.array_equal(np.unique(head.triangles), np.arange(len(head.vertices)))
    _, count = np.unique(_edges(head.triangles), axis=0, return_counts=True)
    assert count.max() == 2
    # Each edge is run through once in each direction: neighbours agree about what is outside.
    _, count = np.unique(_edges(head.triangles, directed=True), axis=0, return_counts=True)
    assert count.max() == 1
    area = np.linalg.norm(_normals(head), axis=1) / 2
    assert area.min() > 0.01
    face = head.regions["face"][head.triangles].all(1)
    a, b, c = head.vertices[head.triangles[face]].transpose(1, 0, 2)
    sides = ((a - b) ** 2 + (b - c) ** 2 + (c - a) ** 2).sum(1)
    quality = 4 * np.sqrt(3) * area[face] / sides  # 1 for equilateral
    assert np.median(quality) > 0.85


def test_triangles_look_outwards(head):
    normals = _normals(head)
    centres = head.vertices[head.triangles].mean(1)
    regions = {name: flag[head.triangles].all(1) for name, flag in head.regions.items()}
    skin = regions["skin"] & ~regions["ears"] & ~regions["eyes"]
    outwards = (normals * (centres - [0, 15, 5])).sum(1) > 0
    assert outwards[skin].mean() > 0.998
    assert (normals[regions["iris"]][:, 2] > 0).all()
    ear = regions["ears"] & (centres[:, 0] > 0)
    assert (normals[ear] * [1, 0, 0]).sum() > 0
    # The mouth is seen from inside itself: its back wall looks forwards.
    back = regions["mouth_interior"] & (centres[:, 2] < 60)
    assert back.any()
    assert (normals[back][:, 2] > 0).all()


def _covering(corners, points):
    """How many triangles (t, 3, 2), clockwise with v down, cover each point (m, 2)."""
    within = np.ones((len(points), len(corners)), bool)
    for k in range(3):
        p, q = corners[:, k], corners[:, (k + 1) % 3]
        side = (q - p)[:, 0] * (points[:, None, 1] - p[:, 1])
        side -= (q - p)[:, 1] * (points[:, None, 0] - p[:, 0])
        within &= side < 0
    return within.sum(1)


def test_uv_of_the_face_neither_folds_nor_leaves_the_map(head):
    assert head.uv.min() >= 0
    assert head.uv.max() <= 1
    inside = head.regions["face"] & ~head.regions["eyeballs"]
    corners = head.uv[head.triangles[inside[head.triangles].all(1)]]
    a, b, c = corners.transpose(1, 0, 2)
    doubled = (b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0]
    assert (doubled < 0).all()  # counter-clockwise with v up is clockwise with v down
    # No point of the map belongs to two triangles, and the face has most of the map.
    hits = _covering(corners, np.random.default_rng(0).random((1500, 2)))
    assert hits.max() == 1
    assert hits.mean() > 0.45
    # Where the ears lie over the skin, they are drawn, and they do not reach the face.
    assert not _covering(corners, head.uv[head.regions["ears"]]).any()
    ears = head.regions["ears"][head.triangles].all(1)
    assert ears[: ears.sum()].all()


def test_uv_runs_right_and_down(head):
    points, uv = head.vertices[head.landmarks], head.uv[head.landmarks]
    for k in (27, 28, 29, 30, 33, 51, 57, 8):
        assert points[k, 0] == 0
        assert uv[k, 0] == 0.5
    assert (np.diff(uv[:17, 0]) > 0).all()
    assert (np.diff(uv[[27, 28, 29, 30, 33, 51, 62, 57, 8], 1]) > 0).all()


def test_regions_are_where_they_belong(head):
    regions, points = head.regions, head.vertices
    for name, flag in regions.items():
        assert flag.dtype == bool
        assert 20 < flag.sum() < len(points), name
    for name in ("ears", "neck", "scalp", "mouth_interior"):
        assert not (regions["face"] & regions[name]).any(), name
    marks = head.landmarks
    assert regions["face"][marks].all()
    assert regions["lips"][marks[48:]].all()
    assert regions["brows"][marks[17:27]].all()
    assert regions["nose"][marks[27:36]].all()
    assert regions["eyes"][marks[36:48]].all()
    assert regions["pupil"][regions["iris"]].any()
    assert points[regions["scalp"], 1].max() == points[:, 1].max()
    assert points[regions["neck"], 1].min() == points[:, 1].min()


def test_mouth_and_eyes_are_open_in_the_mesh(head):
    marks = head.landmarks
    assert len(np.unique(marks)) == 68
    gap = head.vertices[marks[[61, 62, 63]], 1] - head.vertices[marks[[67, 66, 65]], 1]
    assert ((gap > 0) & (gap < 1)).all()  # closed at rest
    skin = head.triangles[~head.regions["mouth_interior"][head.triangles].any(1)]
    edges, count = np.unique(_edges(skin), axis=0, return_counts=True)
    rim = np.unique(edges[count == 1])
    assert np.isin(marks[60:], rim).all()
    lids = head.vertices[marks[[43, 44]], 1] - head.vertices[marks[[47, 46]], 1]
    assert (lids > 6).all()
    # The eye lies behind its lids; only the cornea may stand out of the opening.
    left = head.regions["eyeballs"] & (head.vertices[:, 0] > 0)
    assert head.vertices[left, 2].max() < head.vertices[marks[42:48], 2].max() + 4


def test_arrays_make_a_face_model(head):
    arrays = procedural.procedural_arrays()
    model = FaceModel(arrays)
    assert model.name == "procedural"
    # The cached head may have been built with another number of BLAS threads: last bits differ.
    np.testing.assert_allclose(model.mean.numpy(), head.vertices, atol=2e-5)
    np.testing.assert_allclose(
        model.landmarks(model.mean).numpy(), head.vertices[head.landmarks], atol=1e-4
    )
    arrays["mean"][:] = 0  # the caller's own copy
    assert procedural.procedural_arrays()["mean"].any()


@pytest.fixture
def small(monkeypatch, tmp_path):
    """A cache folder of its own and a builder that counts its calls."""
    calls = []

    def build():
        calls.append(1)
        return {"mean": np.arange(6.0).reshape(2, 3)}

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(procedural, "build_arrays", build)
    procedural.shared_arrays.cache_clear()
    yield calls, tmp_path / "cache"
    procedural.shared_arrays.cache_clear()


def test_cache_file_is_written_once_and_read_back(small):
    calls, folder = small
    first = procedural.procedural_arrays()
    procedural.shared_arrays.cache_clear()
    second = procedural.procedural_arrays()
    assert len(calls) == 1
    np.testing.assert_array_equal(first["mean"], second["mean"])
    assert [p.suffix for p in (folder / "monoface").iterdir()] == [".npz"]  # nothing half-written


def test_cache_keeps_only_the_newest_versions(small):
    _, folder = small
    (folder / "monoface").mkdir(parents=True)
    old = [folder / "monoface" / f"procedural-{k}.npz" for k in range(4)]
    for k, path in enumerate(old):
        path.write_bytes(b"x")
        os.utime(path, (k, k))
    procedural.procedural_arrays()
    left = set((folder / "monoface").iterdir())
    assert len(left) == procedural.KEPT
    assert set(old) & left == set(old[-2:])


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 not a zip", None])
def test_damaged_cache_file_is_built_anew(small, damage):
    calls, folder = small
    procedural.procedural_arrays()
    (path,) = (folder / "monoface").iterdir()
    path.write_bytes(path.read_bytes()[:-30] if damage is None else damage)
    procedural.shared_arrays.cache_clear()
    assert procedural.procedural_arrays()["mean"].shape == (2, 3)
    assert len(calls) == 2


def test_unwritable_cache_folder_is_done_without(small):
    calls, folder = small
    folder.write_text("a file where the folder should be")
    procedural.procedural_arrays()
    procedural.procedural_arrays()
    assert len(calls) == 1
    assert folder.read_text() == "a file where the folder should be"
