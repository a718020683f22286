"""Correspondence between topologies: known truth on remeshed heads, real data where it is there."""

from dataclasses import replace
from pathlib import Path

import igl
import numpy as np
import pytest
import torch
from scipy.spatial import KDTree

from core.errors import AssetNotFoundError, DataError
from core.face_models import load_face_model
from core.face_models.correspondence import (
    Correspondence,
    Mesh,
    correspond,
    fit_coefficients,
    landmarks_from,
)
from core.landmarks import JAW, MIRROR

ICT = Path(__file__).parents[2] / "shared/samples/ict_facekit/ict_face.npz"
# What the Basel model names: corners and pupils of the eyes, nose, mouth, chin, brows.
SEEDS = [36, 39, 42, 45, 27, 30, 31, 33, 35, 48, 54, 51, 57, 62, 66, 8, 17, 19, 21, 22, 24, 26, 4]
SEEDS += [12]


@pytest.fixture(scope="module")
def head():
    return load_face_model()


@pytest.fixture(scope="module")
def mean(head):
    return Mesh(head.mean.numpy(), head.triangles.numpy())


@pytest.fixture(scope="module")
def landmarks(head):
    return head.landmarks(head.mean).numpy()


@pytest.fixture(scope="module")
def face(head):
    return (head.region("face") & ~head.region("mouth_interior") & ~head.region("eyeballs")).numpy()


@pytest.fixture(scope="module")
def same(mean, landmarks):
    return correspond(mean, landmarks, mean, landmarks)


@pytest.fixture(scope="module")
def people(head, mean):
    """Random people: their vertices, and about the same surfaces with other triangles."""
    generator = torch.Generator().manual_seed(0)
    shapes = head.shape(torch.randn(2, 100, generator=generator))
    return [(shape, remeshed(shape.numpy(), mean.triangles)) for shape in shapes]


def remeshed(vertices, triangles, count=10_000):
    """About the same surface with other triangles: edges collapsed until so many are left."""
    vertices, triangles = igl.decimate(vertices.astype(np.float64), triangles, count, True)[:2]
    return Mesh(np.ascontiguousarray(vertices), np.ascontiguousarray(triangles, np.int64))


def at(corners, weights, vertices):
    return (vertices[corners] * weights[..., None]).sum(-2)


def distances(a, b):
    return np.linalg.norm(a - b, axis=-1)


def test_a_mesh_moved_scaled_and_renumbered_is_found_exactly(mean, landmarks):
    rng = np.random.default_rng(0)
    order = rng.permutation(len(mean.vertices))
    source = Mesh(mean.vertices[order], np.argsort(order)[mean.triangles])
    turned = np.array([[0, 0, 1.0], [1, 0, 0], [0, 1, 0]])

    def moved(points):
        return 0.1 * points @ turned.T + [5, -3, 900]

    source = source._replace(vertices=moved(source.vertices))
    found = correspond(source, moved(landmarks), mean, landmarks)
    carried = found.apply(torch.from_numpy(mean.vertices)).numpy()
    # not the vertices inside of folded skin, where the warp's rounding may choose the other side
    np.testing.assert_allclose(carried, mean.vertices[order], atol=1e-3)
    assert found.valid.all()


def test_the_truth_on_people_of_another_topology(head, mean, landmarks, face, people):
    """Each vertex of the mean is to find its place on a person whose mesh is another one."""
    errors = []
    for truth, target in people:
        found = correspond(mean, landmarks, target, head.landmarks(truth).numpy())
        carried = found.apply(torch.from_numpy(target.vertices)).numpy()
        errors.append(distances(carried, truth.numpy())[face])
        assert found.valid[face].mean() > 0.97
        assert found.distance_mm[face].mean() < 0.4  # without the warp's rounds 0.5
    assert np.mean(errors) < 1.0
    assert np.quantile(errors, 0.95) < 3.5


def test_points_and_distances_are_those_of_brute_force(mean, landmarks):
    """Points that float before the surface, of no triangle, so that they do not pull the warp."""
    rng = np.random.default_rng(0)
    floating = mean.vertices[rng.integers(0, len(mean.vertices), 50)] + rng.normal(0, 5, (50, 3))
    source = mean._replace(vertices=np.concatenate([mean.vertices, floating]))
    found = correspond(source, landmarks, mean, landmarks)
    assert (found.weights >= 0).all()
    np.testing.assert_allclose(found.weights.sum(1), 1, atol=1e-12)
    assert set(map(tuple, found.corners)) <= set(map(tuple, mean.triangles))
    points = found.apply(torch.from_numpy(mean.vertices)).numpy()[-50:]
    np.testing.assert_allclose(distances(points, floating), found.distance_mm[-50:], atol=1e-4)
    samples = rng.dirichlet([1, 1, 1], (16, len(mean.triangles)))
    samples = (mean.vertices[mean.triangles] * samples[..., None]).sum(-2).reshape(-1, 3)
    nearest = KDTree(samples).query(floating)[0]
    assert (found.distance_mm[-50:] < nearest + 1e-4).all()
    assert (found.distance_mm[-50:] > nearest - 1).all()


def test_what_the_target_lacks_is_not_valid(head, mean, landmarks, face):
    """The target ends at the border of the face: the back of the head has no partner."""
    inside = face[mean.triangles].all(1)
    found = correspond(mean, landmarks, mean._replace(triangles=mean.triangles[inside]), landmarks)
    assert found.valid[face].mean() > 0.99  # but for the rims of the eyes and of the mouth
    assert not found.valid[mean.vertices[:, 2] < -30].any()


def test_surfaces_that_look_away_are_not_valid(mean, landmarks, face):
    inside_out = mean._replace(triangles=mean.triangles[:, ::-1])
    assert not correspond(mean, landmarks, inside_out, landmarks).valid[face].any()


def test_triangles_without_area_are_no_obstacle(mean, landmarks):
    needles = mean.triangles[:200, [0, 1, 1]]
    target = mean._replace(triangles=np.concatenate([needles, mean.triangles]))
    found = correspond(mean, landmarks, target, landmarks)
    assert np.isfinite(found.weights).all()
    assert found.distance_mm.max() < 1e-6


def test_too_few_or_flat_landmarks_are_refused(mean, landmarks):
    with pytest.raises(ValueError, match=r"points|landmarks"):
        correspond(mean, landmarks[:2], mean, landmarks[:2])
    with pytest.raises(ValueError, match="NaN"):
        correspond(mean, landmarks * np.nan, mean, landmarks)


def test_apply_carries_values_and_gradients_and_checks_its_input(head, same):
    values = head.mean.expand(2, -1, -1).clone().requires_grad_()
    carried = same.apply(values)
    torch.testing.assert_close(carried, values, atol=1e-4, rtol=0)
    carried.sum().backward()
    assert values.grad.sum().item() == pytest.approx(carried.numel(), rel=1e-4)
    with pytest.raises(ValueError, match=r"values of 5 vertices, but .* 8629"):
        same.apply(torch.zeros(5, 3))


@pytest.fixture
def small():
    return Correspondence(
        9,
        np.array([[0, 1, 2], [3, 4, 8]]),
        np.array([[0.5, 0.25, 0.25], [1.0, 0, 0]]),
        np.array([0.1, 20.0]),
        np.array([True, False]),
    )


def test_reads_what_it_wrote(tmp_path, small):
    small.save(tmp_path / "map.npz")
    loaded = Correspondence.load(tmp_path / "map.npz")
    assert loaded.target_vertices == 9
    for key in ("corners", "weights", "distance_mm", "valid"):
        np.testing.assert_array_equal(getattr(loaded, key), getattr(small, key))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"corners": np.array([[0, 1, 2], [3, 4, 9]])}, r"0\.\.9, but the target has 9"),
        ({"corners": np.array([[0, 1, 2], [3, 4, -1]])}, r"-1\.\.4"),
        ({"weights": np.full((2, 3), 0.4)}, "sum to 1"),
        ({"weights": np.full((2, 3), np.nan)}, "sum to 1"),
        ({"distance_mm": np.zeros(3)}, r"'distance_mm' is float64 of shape \(3,\)"),
        ({"valid": np.zeros(2)}, "'valid' is float64"),
        ({"version": np.array(2)}, "version 2"),
    ],
)
def test_a_file_that_does_not_fit_together_is_refused(tmp_path, small, change, message):
    small.save(tmp_path / "map.npz")
    with np.load(tmp_path / "map.npz") as file:
        np.savez(tmp_path / "map2.npz", **(dict(file) | change))
    with pytest.raises(DataError, match=message):
        Correspondence.load(tmp_path / "map2.npz")


def test_a_missing_or_foreign_file_is_a_clear_error(tmp_path):
    with pytest.raises(AssetNotFoundError, match=r"nowhere\.npz"):
        Correspondence.load(tmp_path / "nowhere.npz")
    np.savez(tmp_path / "other.npz", version=np.array(1))
    with pytest.raises(DataError, match=r"keys .*corners"):
        Correspondence.load(tmp_path / "other.npz")


def test_landmarks_of_a_mesh_that_names_only_some(head, mean, landmarks, people):
    """Those not named are found to 1.5 mm in the mean."""
    errors = []
    others = np.setdiff1d(np.arange(68), SEEDS)
    for truth, target in people:
        wanted = head.landmarks(truth).numpy()
        found = landmarks_from(mean, landmarks, landmarks[SEEDS], target, wanted[SEEDS])
        errors.append(distances(at(*found, target.vertices), wanted)[others])
    assert np.mean(errors) < 1.5
    assert np.max(errors) < 6


def test_landmarks_of_a_symmetric_mesh_are_symmetric(head, mean, landmarks):
    """Also where the named points are not: one eye's corner is 2 mm off."""
    named = landmarks[SEEDS].copy()
    named[0] += [2, 0, 0]
    found = at(*landmarks_from(mean, landmarks, landmarks[SEEDS], mean, named), mean.vertices)
    np.testing.assert_allclose(found, found[list(MIRROR)] * [-1, 1, 1], atol=0.3)


def test_coefficients_come_back_through_another_topology(head, mean, landmarks):
    """Shapes of the model, seen only as another mesh of other unit and pose, give them again."""
    other = remeshed(mean.vertices, mean.triangles, 12_000)
    there = correspond(other, landmarks, mean, landmarks)
    back = correspond(mean, landmarks, other, landmarks)
    identity = torch.randn(2, 100)
    expression = 0.5 * torch.rand(2, 50) * head.expression_std
    shape = head.shape(identity, expression)
    turn = torch.tensor([[0, 0, 1.0], [1, 0, 0], [0, 1, 0]])
    moved = 1.3 * there.apply(shape) @ turn.T + torch.tensor([5.0, 3.0, 900.0])
    found_identity, found_expression, pose = fit_coefficients(head, moved, back, ridge=1e-4)
    found = head.shape(found_identity, found_expression)
    assert (found - shape).norm(dim=-1).mean() < 0.25
    assert (found_identity - identity).square().mean().sqrt() < 0.3
    torch.testing.assert_close(pose.scale, torch.full((2,), 1.3).double(), atol=0.01, rtol=0)
    torch.testing.assert_close(pose.rotation[0], turn.double(), atol=0.01, rtol=0)


def test_a_fit_is_exact_without_a_prior_and_the_mean_with_an_endless_one(head, same):
    identity, expression = torch.randn(100), 0.5 * torch.rand(50) * head.expression_std
    shape = head.shape(identity, expression)
    found, moves, pose = fit_coefficients(head, shape, same, ridge=1e-8, scale=False)
    torch.testing.assert_close(found, identity, atol=0.02, rtol=0)
    torch.testing.assert_close(head.shape(found, moves), shape, atol=0.01, rtol=0)
    assert pose.scale == 1
    found, moves, _ = fit_coefficients(head, shape, same, ridge=1e8)
    assert found.abs().max() < 1e-4
    assert moves.abs().max() < 1e-4


def test_a_fit_leaves_out_what_is_not_valid(head, same, face):
    identity = torch.randn(100)
    shape = head.shape(identity)
    broken = torch.where(torch.from_numpy(face)[:, None], shape, torch.full((), 1e4))
    found, moves, _ = fit_coefficients(head, broken, replace(same, valid=face), 1e-4, False)
    error = (head.shape(found, moves) - shape).norm(dim=-1)[torch.from_numpy(face)]
    assert error.mean() < 0.2


def test_a_fit_wants_its_own_model(face_model, same):
    with pytest.raises(ValueError, match="does not start at the face model 'fake' of 525"):
        fit_coefficients(face_model, torch.zeros(8629, 3), same)


@pytest.mark.skipif(not ICT.is_file(), reason="the real ICT-FaceKit is not here")
def test_the_built_in_head_and_ict(mean, landmarks, face):
    """Landmarks that were not used are met, and the way there and back ends where it began."""
    with np.load(ICT) as file:
        ict = Mesh(file["vertices"].astype(np.float64) * 10, file["faces"].astype(np.int64))
        theirs = ict.vertices[file["landmarks68_jaw"]]
    others = np.setdiff1d(np.arange(68), SEEDS)
    corners, weights = landmarks_from(mean, landmarks, landmarks[SEEDS], ict, theirs[SEEDS])
    error = distances(at(corners, weights, ict.vertices), theirs)[others]
    assert error[others >= len(JAW)].mean() < 3
    assert error.mean() < 4
    there = correspond(mean, landmarks, ict, theirs)
    back = correspond(ict, theirs, mean, landmarks)
    assert there.valid[face].mean() > 0.85
    assert there.distance_mm[face].mean() < 1
    carried = back.apply(torch.from_numpy(mean.vertices))  # the head's points, for ICT's vertices
    returned = there.apply(carried).numpy()
    good = face & there.valid
    assert distances(returned, mean.vertices)[good].mean() < 1.2
