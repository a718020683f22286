import time

import numpy as np
import pytest
import torch
import trimesh
from scipy.optimize import least_squares
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from core.align import Similarity, procrustes
from core.registration import ClosestPoints, ClosestVertices, point_to_plane, register
from tests.fakes import scans


def similarity(scale=1.0, turn=(0.0, 0, 0), shift=(0.0, 0, 0)):
    rotation = torch.from_numpy(Rotation.from_rotvec(turn).as_matrix())
    kind = {"dtype": torch.float64}
    return Similarity(torch.tensor(scale, **kind), rotation, torch.tensor(shift, **kind))


IDENTITY = similarity()
TRUTH = similarity(1.1, (0.1, -0.2, 0.15), (3.0, -5, 8))


def on_surface(mesh, count, seed=0):
    """Random points of a mesh."""
    random = np.random.default_rng(seed)
    corners = mesh.vertices[mesh.triangles[random.integers(0, len(mesh.triangles), count)]]
    weights = torch.from_numpy(random.dirichlet([1, 1, 1], count))
    return (corners * weights[..., None]).sum(1)


def error(found, true):
    return max(float((getattr(found, k) - getattr(true, k)).abs().max()) for k in vars(true))


def sphere(radius=1.0):
    mesh = trimesh.creation.icosphere(3, radius)
    return torch.from_numpy(np.array(mesh.vertices)), torch.from_numpy(np.array(mesh.faces))


SQUARE = torch.tensor([[-1.0, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]])
HALVES = torch.tensor([[0, 1, 2], [0, 2, 3]])


def test_closest_points_agree_with_trimesh_over_all_triangles():
    mesh = scans.face(12, 15)
    random = np.random.default_rng(0)
    points = on_surface(mesh, 300) + torch.from_numpy(random.normal(0, 8, (300, 3)))
    near = ClosestPoints(mesh.vertices, mesh.triangles)(points)
    corners = mesh.vertices[mesh.triangles].numpy()
    pairs = np.repeat(corners[None], 300, 0).reshape(-1, 3, 3)
    queries = np.repeat(points.numpy(), len(corners), 0)
    there = trimesh.triangles.closest_point(pairs, queries).reshape(300, -1, 3)
    distance = np.linalg.norm(there - points.numpy()[:, None], axis=-1)
    np.testing.assert_allclose(near.distance, distance.min(1), atol=1e-9)
    np.testing.assert_allclose(near.points, there[np.arange(300), distance.argmin(1)], atol=1e-6)
    np.testing.assert_allclose(near.distance, (near.points - points).norm(dim=-1), atol=1e-9)
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    assert (normals[:, 2] > 0).all()  # and so it is for those found
    assert (near.normals[:, 2] > 0).all()
    np.testing.assert_allclose(near.normals.norm(dim=-1), 1)
    to_vertices = cKDTree(mesh.vertices.numpy()).query(points.numpy())[0]
    assert (near.distance.numpy() <= to_vertices + 1e-9).all()


def test_moving_the_points_back_is_moving_the_mesh():
    mesh = scans.face(12, 15)
    a, b, c = TRUTH.apply(mesh.vertices)[mesh.triangles].unbind(1)
    points = (a + b + c) / 3 + 0.01 * torch.linalg.cross(b - a, c - a)  # nearest to no edge
    moved = ClosestPoints(TRUTH.apply(mesh.vertices), mesh.triangles)(points)
    near = ClosestPoints(mesh.vertices, mesh.triangles).moved(TRUTH, points)
    for one, other in zip(near, moved, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


def test_a_plane_shifted_by_d_is_d_away():
    points = torch.tensor([[0.2, 0.3, 3.0], [-0.5, 0.1, -3.0], [4.0, 0, 3.0]])
    near = ClosestPoints(SQUARE, HALVES)(points)
    assert point_to_plane(points, near).tolist() == [3, 3, 3]
    assert near.distance.tolist() == pytest.approx([3, 3, 18**0.5])


@pytest.mark.parametrize("planes", [True, False])
@pytest.mark.parametrize("scale", [True, False])
def test_the_motion_is_found_again(planes, scale):
    true = TRUTH if scale else similarity(1, (0.1, -0.2, 0.15), (3, -5, 8))
    face = scans.face(21, 27)
    mesh = ClosestPoints(face.vertices, face.triangles)
    points = true.apply(on_surface(face, 500))
    random = torch.from_numpy(np.random.default_rng(0).normal(0, 2, (7, 3)))
    some = face.landmarks[[36, 39, 42, 45, 33, 48, 54]]
    start = procrustes(some + random, true.apply(some), scale)
    assert error(start, true) > 0.1
    found = register(mesh, points, start, scale, planes)
    assert found.converged
    assert error(found.pose, true) < 1e-8
    assert (found.pose.scale == 1) or scale


def test_a_large_scan_is_registered_exactly_and_quickly():
    """60,000 points against 36,000 vertices; a second on an idle machine."""
    face = scans.face(165, 219)
    points = TRUTH.apply(on_surface(face, 60_000))
    some = face.landmarks[[36, 39, 42, 45, 33, 48, 54]]
    random = torch.from_numpy(np.random.default_rng(0).normal(0, 3, (7, 3)))
    start = time.perf_counter()
    mesh = ClosestPoints(face.vertices, face.triangles)
    found = register(mesh, points, procrustes(some + random, TRUTH.apply(some)))
    distance = point_to_plane(points, mesh.moved(found.pose, points))
    assert time.perf_counter() - start < 10
    assert error(found.pose, TRUTH) < 1e-8
    assert distance.max() < 1e-8


def test_the_pose_is_the_least_squares_one_of_scipy():
    """Where no face fits: scipy's minimiser over seven parameters, closest points by trimesh."""
    face, scan = scans.face(9, 12), scans.face(13, 17)
    points = scan.vertices[(scan.vertices[:, :2].abs() < 60).all(1)]
    mesh = ClosestPoints(face.vertices, face.triangles)
    result = register(mesh, points, IDENTITY, planes=False, tolerance=1e-9)
    pose = result.pose
    assert result.converged
    assert result.rounds < 30  # of closest points taken for the corresponding ones, thousands
    found = float(mesh.moved(pose, points).distance.square().mean().sqrt())
    corners = face.vertices[face.triangles].numpy()

    def offsets(p):
        local = (points.numpy() - p[3:6]) @ Rotation.from_rotvec(p[:3]).as_matrix() / np.exp(p[6])
        pairs = np.tile(corners, (len(local), 1, 1))
        there = trimesh.triangles.closest_point(pairs, np.repeat(local, len(corners), 0))
        there = there.reshape(len(local), -1, 3) - local[:, None]
        nearest = np.linalg.norm(there, axis=-1).argmin(1)
        return (there[np.arange(len(local)), nearest] * np.exp(p[6])).ravel()

    def rms(p):
        return np.sqrt(3 * np.mean(offsets(p) ** 2))

    turn = Rotation.from_matrix(pose.rotation.numpy()).as_rotvec()
    start = np.array([*turn, *pose.translation.tolist(), float(pose.scale.log())])
    assert rms(start) == pytest.approx(found, abs=1e-9)
    best = least_squares(offsets, start, x_scale=[0.01, 0.01, 0.01, 1, 1, 1, 0.01])
    assert found > 0.1
    assert rms(best.x) == pytest.approx(found, abs=1e-6)


def test_vertices_in_another_order_change_nothing():
    face = scans.face(21, 27)
    points = TRUTH.apply(on_surface(face, 500))
    order = torch.randperm(len(face.vertices))
    back = order.argsort()
    start = similarity(1.08, (0.12, -0.2, 0.15), (3, -5, 8))
    found = [
        register(ClosestPoints(*mesh), points, start).pose
        for mesh in (
            (face.vertices, face.triangles),
            (face.vertices[order], back[face.triangles.flip(0)]),
        )
    ]
    assert error(*found) < 1e-8


def test_what_a_sphere_or_plane_does_not_tell_is_left_alone():
    vertices, triangles = sphere()
    points = 1.5 * torch.from_numpy(np.random.default_rng(0).normal(size=(2000, 3)))
    points = 1.5 * points / points.norm(dim=-1, keepdim=True) + torch.tensor([0.2, 0, 0.1])
    found = register(ClosestPoints(vertices, triangles), points, IDENTITY)
    assert found.pose.scale == pytest.approx(1.5, rel=0.01)
    assert found.pose.translation.tolist() == pytest.approx([0.2, 0, 0.1], abs=0.01)
    flat = torch.rand(200, 3) * 0.5
    flat[:, 2] = 3
    found = register(ClosestPoints(SQUARE, HALVES), flat, IDENTITY, scale=False)
    assert found.converged
    torch.testing.assert_close(found.pose.rotation, torch.eye(3).double())
    assert found.pose.translation[2] == pytest.approx(3)
    plane = ClosestPoints(SQUARE, HALVES).moved(found.pose, flat.double())
    assert plane.distance.max() < 1e-9


def test_trimming_ignores_what_does_not_belong():
    face = scans.face(21, 27)
    points = on_surface(face, 1000)
    points[:50, 2] += 40
    mesh = ClosestPoints(face.vertices, face.triangles)
    start = similarity(1, (0.01, 0, 0), (0.5, 0, 0))
    assert error(register(mesh, points, start, trim=0.06).pose, IDENTITY) < 1e-6
    assert error(register(mesh, points, start).pose, IDENTITY) > 0.1


def test_the_inputs_stay_as_they_are():
    face = scans.face(12, 15)
    points = on_surface(face, 100).float()
    before = points.clone(), face.vertices.clone()
    register(ClosestPoints(face.vertices, face.triangles), points, IDENTITY)
    assert torch.equal(points, before[0])
    assert torch.equal(face.vertices, before[1])


def here(pose):
    return Similarity(*(value.cpu() for value in vars(pose).values()))


KINDS = [{}, {"scale": False}, {"planes": False}, {"trim": 0.1}, {"planes": False, "trim": 0.1}]


@pytest.mark.parametrize("options", KINDS)
def test_on_a_gpu_the_motion_is_the_same_and_stays_there(gpu, options):
    face = scans.face(21, 27)
    points = TRUTH.apply(on_surface(face, 500)) + torch.rand(500, 3) / 10
    start = similarity(1.08, (0.12, -0.2, 0.15), (3, -5, 8))
    for make in (ClosestPoints, ClosestVertices):
        if make is ClosestVertices and options.get("planes", True):
            continue
        parts = [face.vertices, face.triangles][: 2 if make is ClosestPoints else 1]
        wanted = register(make(*parts), points, start, **options)
        mesh = make(*(part.to(gpu) for part in parts))
        for begin in (start, Similarity(*(value.to(gpu) for value in vars(start).values()))):
            found = register(mesh, points.to(gpu), begin, **options)
            assert all(value.device.type == gpu.type for value in vars(found.pose).values())
            assert error(here(found.pose), wanted.pose) < 1e-9
            assert found.rounds == wanted.rounds
        near = mesh.moved(found.pose, points.to(gpu))
        there = make(*parts).moved(wanted.pose, points)
        assert all(value.device.type == gpu.type for value in near)
        for one, other in zip(near, there, strict=True):
            torch.testing.assert_close(one.cpu(), other, rtol=0, atol=1e-9)
        ours = point_to_plane(points.to(gpu), near).cpu()
        torch.testing.assert_close(ours, point_to_plane(points, there), rtol=0, atol=1e-9)


def test_vertices_without_triangles_are_found_as_scipy_finds_them():
    face, points = scans.face(21, 27), on_surface(scans.face(21, 27), 300) + 1
    near = ClosestVertices(face.vertices)(points)
    distance, index = cKDTree(face.vertices.numpy()).query(points.numpy())
    np.testing.assert_allclose(near.distance, distance, atol=1e-12)
    np.testing.assert_array_equal(near.element, index)
    assert torch.equal(near.points, face.vertices[near.element])
    true = similarity(1, (0.01, -0.01, 0.01), (0.3, -0.2, 0.4))
    target = ClosestVertices(face.vertices)
    found = register(target, true.apply(face.vertices), IDENTITY, scale=False, planes=False)
    assert error(found.pose, true) < 1e-8
    with pytest.raises(ValueError, match="planes=False"):
        register(target, points, IDENTITY)
    with pytest.raises(ValueError, match="NaN"):
        ClosestVertices(NAN)
    with pytest.raises(ValueError, match="without vertices"):
        ClosestVertices(NAN[:0])


NAN = torch.full((4, 3), torch.nan)


@pytest.mark.parametrize(
    ("vertices", "triangles", "message"),
    [
        (NAN, HALVES, "4 of 4 vertices"),
        (SQUARE, HALVES + 3, "but the mesh has 4"),
        (SQUARE, HALVES - 1, "-1"),
        (SQUARE, torch.zeros(0, 3, dtype=torch.int64), "no surface"),
        (SQUARE, torch.tensor([[0, 0, 1]]), "no surface"),
        (torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.int64), "no surface"),
    ],
)
def test_meshes_without_surface_are_refused(vertices, triangles, message):
    with pytest.raises(ValueError, match=message):
        ClosestPoints(vertices, triangles)


@pytest.mark.parametrize(
    ("points", "start", "options", "message"),
    [
        (NAN, IDENTITY, {}, "4 are NaN"),
        (SQUARE[:2], IDENTITY, {}, "at least three"),
        (SQUARE, similarity(float("nan")), {}, "start"),
        (SQUARE, similarity(-1.0), {}, "start"),
        (SQUARE, IDENTITY, {"trim": 1.0}, "trim"),
    ],
)
def test_input_that_cannot_be_registered_is_refused(points, start, options, message):
    with pytest.raises(ValueError, match=message):
        register(ClosestPoints(SQUARE, HALVES), points, start, **options)


def test_points_on_a_line_are_refused():
    line = torch.zeros(10, 3)
    line[:, 0] = torch.linspace(-1, 1, 10)
    with pytest.raises(ValueError, match="one line"):
        register(ClosestPoints(SQUARE, HALVES), line, IDENTITY)
