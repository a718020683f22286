import json

import numpy as np
import pytest
import torch
import trimesh
from scipy.spatial.transform import Rotation

from benchmarks.predictions import FaceMesh, MeshFolder, read_mesh
from benchmarks.realy import (
    BENDS,
    REALY,
    REGIONS,
    STIFFNESS,
    at_template,
    read_scales,
    read_template,
    region_distances,
)
from core.camera import WeakPerspectiveCamera, frontal
from core.contracts import Reconstruction
from core.errors import AssetNotFoundError, DataError
from core.normals import vertex_normals
from tests.fakes import realy, scans

TURN = torch.from_numpy(Rotation.from_rotvec([0.4, -0.3, 0.2]).as_matrix())
NAMES = list(realy.SUBJECTS)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return realy.write(tmp_path_factory.mktemp("realy"))


def benchmark(root, **options):
    options = {"subjects": NAMES, "image_size": 32, "progress": False} | options
    return REALY(root, image_landmarks=root / "landmarks", **options)


def elsewhere(mesh, scale=1.2):
    def move(points):
        return scale * points @ TURN.mT + torch.tensor([100.0, -50, 20])

    return FaceMesh(move(mesh.vertices), mesh.triangles, move(mesh.landmarks))


@pytest.mark.parametrize("template", [None, "own.txt"])
def test_the_scans_themselves_elsewhere_score_zero(root, template):
    template = None if template is None else root / template
    results = benchmark(root, template=template).score(lambda name: elsewhere(realy.mesh(name)))
    assert not results.failures
    for region in (*REGIONS, "all"):
        assert results[f"{region}_mm"].value.n == 2
        # 68 landmarks lie on the face, the keypoints on its triangles
        assert results[f"{region}_mm"].value.mean < (1e-3 if template else 0.2)


def test_errors_are_kept_for_a_look(root):
    results = benchmark(root).score(lambda name: realy.mesh(NAMES[0]))
    assert set(results.meshes) == set(NAMES)
    for name, mesh in results.meshes.items():
        assert len(mesh.error) == len(mesh.vertices)
        assert mesh.triangles.max() == len(mesh.vertices) - 1
        means = [results.per_sample[f"{region}_mm"][name] for region in REGIONS]
        assert min(means) < mesh.error.mean() < max(means)
    assert results.curves["all_mm"][-1][0] == 5.0


def test_another_order_of_vertices_does_not_matter_and_a_mirror_does(root):
    def reordered(name):
        mesh = realy.mesh(name)
        order = torch.randperm(len(mesh.vertices), generator=torch.Generator().manual_seed(0))
        return FaceMesh(mesh.vertices[order], order.argsort()[mesh.triangles], mesh.landmarks)

    results = benchmark(root, template=root / "own.txt").score(reordered)
    assert results["all_mm"].value.mean < 1e-3

    def mirrored(name):
        mesh = realy.mesh(name)
        flip = torch.tensor([-1.0, 1, 1])
        return FaceMesh(mesh.vertices * flip, mesh.triangles.flip(1), mesh.landmarks * flip)

    assert benchmark(root).score(mirrored)["all_mm"].value.mean > 0.5


def test_errors_are_millimetres_of_the_region_that_is_wrong(root):
    """A bump of 4 mm on the forehead alone; the scan of subject 2 has another unit."""

    def bumpy(name):
        mesh = realy.mesh(name)
        size = 1 + 0.04 * NAMES.index(name)
        at = (mesh.vertices[:, :2] / size - torch.tensor([0.0, 60])).norm(dim=-1)
        normals = vertex_normals(mesh.vertices, mesh.triangles)
        height = 4 * torch.exp(-((at / 8) ** 2))
        return FaceMesh(mesh.vertices + height[:, None] * normals, mesh.triangles, mesh.landmarks)

    results = benchmark(root, template=root / "own.txt").score(bumpy)
    values = results.per_sample["forehead_mm"]
    assert 0.3 < values["1"] < 2
    assert values["2"] == pytest.approx(values["1"], rel=0.1)
    assert results["mouth_mm"].value.mean < 0.05
    assert results["nose_mm"].value.mean < 0.05


def test_noise_of_a_prediction_is_about_its_size(root):
    random = torch.from_numpy(np.random.default_rng(0).normal(0, 0.4, realy.COLUMNS * realy.ROWS))

    def noisy(name):
        mesh = realy.mesh(name)
        normals = vertex_normals(mesh.vertices, mesh.triangles)
        return FaceMesh(mesh.vertices + random[:, None] * normals, mesh.triangles, mesh.landmarks)

    found = benchmark(root, template=root / "own.txt").score(noisy)["all_mm"].value.mean
    assert 0.1 < found < 0.6


def closest(queries, corners):
    """On any of the triangles."""
    pairs = np.tile(corners, (len(queries), 1, 1))
    there = trimesh.triangles.closest_point(pairs, np.repeat(queries, len(corners), 0))
    there = there.reshape(len(queries), -1, 3)
    nearest = np.linalg.norm(there - queries[:, None], axis=-1).argmin(1)
    return there[np.arange(len(queries)), nearest]


def rigid(source, target, weights):
    """scipy's rotation of weighted points, and the translation."""
    middles = [np.average(points, 0, weights) for points in (source, target)]
    turn, _ = Rotation.align_vectors(target - middles[1], source - middles[0], weights)
    return turn.as_matrix(), middles[1] - turn.apply(middles[0])


def test_errors_agree_with_an_independent_computation():
    """scipy aligns weighted points, trimesh finds closest points over all triangles, and the
    bending is a least-squares problem over vertices and edges, solved as that by numpy.

    Keypoints weigh as much as the vertices of their region, in the cheeks a quarter of it.
    """
    scan, face = scans.face(), scans.face(11, 14)
    random = np.random.default_rng(0)
    rows = random.permutation(len(scan.vertices))[:85]
    keypoints = scan.vertices[rows].numpy() + random.normal(0, 1, (85, 3))
    keypoints[:68] = scan.landmarks.numpy()
    points = keypoints + random.normal(0, 1, (85, 3))
    regions = {}
    for name, centre in realy.CENTRES.items():
        near = (scan.vertices[:, :2] - torch.tensor(centre)).norm(dim=-1) < 25
        new = near.cumsum(0) - 1
        triangles = new[scan.triangles[near[scan.triangles].all(-1)]]
        regions[name] = FaceMesh(scan.vertices[near], triangles, scan.landmarks)
    found = region_distances(regions, torch.from_numpy(keypoints), face, torch.from_numpy(points))

    seven = [36, 39, 42, 45, 33, 48, 54]
    a, b = points[seven], keypoints[seven]
    turn, _ = rigid(a, b, np.ones(7))
    centred = a - a.mean(0), b - b.mean(0)
    size = (centred[1] * (centred[0] @ turn.T)).sum() / (centred[0] ** 2).sum()
    shift = b.mean(0) - size * turn @ a.mean(0)
    corners = size * face.vertices[face.triangles].numpy() @ turn.T + shift
    points = size * points @ turn.T + shift
    for name, region in regions.items():
        vertices, held = region.vertices.numpy(), list(REGIONS[name])
        weight = max(1, int((0.25 if name == "cheek" else 1.0) * len(vertices) / len(held)))
        weights = np.r_[np.ones(len(vertices)), np.full(len(held), float(weight))]
        target = np.r_[vertices, keypoints[held]]
        R, t, last = np.eye(3), np.zeros(3), np.inf
        for _ in range(100):
            source = np.r_[closest((vertices - t) @ R, corners), points[held]]
            R, t = rigid(source, target, weights)
            apart = np.linalg.norm(source @ R.T + t - target, axis=1)
            error = np.average(apart, weights=weights)
            if abs(last - error) < 1e-6:
                break
            last = error
        moved = corners @ R.T + t
        edges = np.unique(
            np.sort(region.triangles[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2)), axis=0
        )
        stretch = np.zeros((len(edges), len(vertices)))
        stretch[np.arange(len(edges)), edges[:, 0]] = 1
        stretch[np.arange(len(edges)), edges[:, 1]] = -1
        bent = vertices
        for stiffness in STIFFNESS:
            system = np.r_[np.eye(len(vertices)), stiffness**0.5 * stretch]
            for _ in range(BENDS):
                wanted = np.r_[closest(bent, moved) - vertices, np.zeros((len(edges), 3))]
                bent = vertices + np.linalg.lstsq(system, wanted)[0]
        distance = np.linalg.norm(closest(bent, moved) - vertices, axis=1)
        assert distance.mean() > 0.05
        np.testing.assert_allclose(found[name], distance, atol=1e-6)


def test_a_run_is_scored_and_exported(root, tmp_path):
    calls = 0

    def predict(images):
        nonlocal calls
        mesh = realy.mesh(NAMES[calls])
        calls += 1
        camera = WeakPerspectiveCamera(
            frontal(images).expand(1, 1, 3, 3), torch.ones(1, 1), torch.full((1, 1, 2), 16.0)
        )
        vertices = mesh.vertices.float()[None, None]
        return Reconstruction(
            vertices=vertices,
            neutral=vertices,
            triangles=mesh.triangles,
            uv=torch.zeros(vertices.shape[2], 2),
            camera=camera,
            landmarks=camera.project(mesh.landmarks.float()[None, None])[0],
            albedo_map=torch.zeros(1, 1, 3, 2, 2),
            light=torch.zeros(1, 1, 9, 1),
        )

    template = root / "own.txt"
    results = benchmark(root, template=template, export=tmp_path).run(predict)
    assert not results.failures
    assert results["all_mm"].value.mean < 0.01
    for name in NAMES:
        vertices, _ = read_mesh(tmp_path / f"{name}.obj")
        torch.testing.assert_close(vertices, realy.mesh(name).vertices, rtol=0, atol=1e-4)
    assert (tmp_path / "own.txt").read_bytes() == template.read_bytes()
    folder = MeshFolder(tmp_path, landmarks=False)  # the template says where they are
    again = benchmark(root, template=template).score(folder)
    assert again["all_mm"].value.mean < 0.01


def test_the_template_s_points_are_where_they_were_put():
    rows = realy.template()
    assert len(rows) == 85
    triangles = torch.tensor([int(row[0]) for row in rows])
    weights = torch.tensor([[*row[1:], 1 - sum(row[1:])] for row in rows]).double()
    face = scans.face(realy.COLUMNS, realy.ROWS)
    found = at_template(face, (triangles, weights))
    np.testing.assert_allclose(found[:, :2], realy.keypoints(), atol=1e-4)


def test_failures_are_counted(tmp_path):
    root = realy.write(tmp_path)
    results = benchmark(root).score(lambda name: realy.mesh(name).scaled(0.1))
    assert any("unit=cm" in reason for reason in results.failures)
    small = scans.face(9, 11)
    results = benchmark(root, template=root / "own.txt").score(lambda name: small)
    assert any("another topology" in reason for reason in results.failures)
    five = realy.mesh("1").landmarks[[36, 45, 30, 48, 54]]
    mesh = realy.mesh("1")
    few = benchmark(root).score(lambda name: FaceMesh(mesh.vertices, mesh.triangles, five))
    assert few.failures == {"5 landmarks, wanted 68 or a template": NAMES}
    (root / "REALY_scan_region/1/nose.obj").unlink()
    (root / "REALY_HIFI3D_keypoints/2.obj").write_text("v 0 0 0\n")
    results = benchmark(root).score(realy.mesh)
    assert results.failures == {
        "scan: a file of it is missing": ["1"],
        "scan: it has 1 keypoints, wanted 85": ["2"],
    }
    assert results.means() == {}


def test_what_is_missing_is_named(root, tmp_path):
    with pytest.raises(AssetNotFoundError, match="REALY"):
        REALY(tmp_path / "none").samples()
    with pytest.raises(DataError, match="2 subjects in REALY_scan_region, wanted 100"):
        REALY(root).samples()
    with pytest.raises(DataError, match="'77'"):
        benchmark(root, subjects=["77"]).samples()
    with pytest.raises(AssetNotFoundError, match="template"):
        read_template(tmp_path / "none.txt")
    for content in ("[[1, 2, 3]]", "{", json.dumps([[-1, 0, 0]] * 85)):
        (tmp_path / "a.txt").write_text(content)
        with pytest.raises(DataError, match=r"a\.txt"):
            read_template(tmp_path / "a.txt")
    (tmp_path / "s.txt").write_text("1\n-1\n")
    with pytest.raises(DataError, match="not positive"):
        read_scales(tmp_path / "s.txt")
    with pytest.raises(AssetNotFoundError, match="metrical_scale"):
        read_scales(tmp_path / "none.txt")
