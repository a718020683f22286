import numpy as np
import pytest
import torch
import trimesh
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation

from benchmarks.now import NoW, _pooled, crop, read_pp, scan_to_mesh_mm
from benchmarks.predictions import FaceMesh, MeshFolder, read_mesh, seven_points
from core.camera import WeakPerspectiveCamera, frontal
from core.contracts import Reconstruction
from core.errors import AssetNotFoundError, DataError
from core.landmarks import MIRROR
from tests.fakes import now, scans

TURN = torch.from_numpy(Rotation.from_rotvec([0.4, -0.3, 0.2]).as_matrix())


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return now.write(tmp_path_factory.mktemp("now"))


@pytest.fixture(autouse=True)
def two(monkeypatch):
    monkeypatch.setattr("benchmarks.now.SUBJECTS", 2)


def benchmark(root, **options):
    options = {"image_size": 32, "progress": False} | options
    return NoW(root, image_landmarks=root / "landmarks", **options)


def true(sample):
    return now.scan(sample.partition("/")[0])


def moved(mesh, scale=1.0):
    def move(points):
        return scale * points @ TURN.mT + torch.tensor([100.0, -50, 20])

    return FaceMesh(move(mesh.vertices), mesh.triangles, move(mesh.landmarks))


def test_the_scans_elsewhere_larger_and_reordered_score_zero(root):
    def faces(sample):
        mesh = true(sample)
        order = torch.randperm(len(mesh.vertices), generator=torch.Generator().manual_seed(0))
        other = FaceMesh(mesh.vertices[order], order.argsort()[mesh.triangles], mesh.landmarks)
        return moved(other, 1.3)

    results = benchmark(root).score(faces)
    assert not results.failures
    assert max(results.means().values()) < 1e-4
    assert results["all_mm"].value.n == 4
    assert results["selfie_mm"].value.n == results["multiview_neutral_mm"].value.n == 2
    assert "4 images of 2 subjects" in results.protocol


def distances(scan, face):
    return scan_to_mesh_mm(scan.vertices[crop(scan)], seven_points(scan), face)


def test_vertices_of_all_images_count_alike():
    found = _pooled([torch.tensor([1.0, 3.0]), torch.tensor([5.0])])
    assert (found.mean, found.median, found.n) == (3, 3, 2)
    assert found.std == pytest.approx((8 / 3) ** 0.5)


def test_errors_are_kept_for_a_look_and_pooled(root):
    results = benchmark(root).score(lambda sample: moved(true(sample)))
    assert results["all_median_mm"].value.mean == results["all_mm"].value.median
    assert len(results.meshes) == 3
    for name, mesh in results.meshes.items():
        assert len(mesh.vertices) == len(mesh.error)
        assert mesh.error.mean() == pytest.approx(results.per_sample["mean_mm"][name], abs=1e-6)
        assert mesh.triangles.max() < len(mesh.vertices)


def test_mirrored_and_flattened_faces_do_not(root):
    flip = torch.tensor([-1.0, 1, 1])

    def mirrored(sample):
        mesh = true(sample)
        landmarks = mesh.landmarks[list(MIRROR)] * flip
        return FaceMesh(mesh.vertices * flip, mesh.triangles.flip(1), landmarks)

    assert benchmark(root).score(mirrored)["all_mm"].value.mean > 0.2


def test_points_d_before_and_behind_a_face_are_d_away():
    fine = scans.face(81, 109)
    sides = torch.arange(len(fine.vertices)) % 2 - 0.5
    vertices = fine.vertices.clone()
    vertices[:, 2] += sides
    found = distances(FaceMesh(vertices, fine.triangles, fine.landmarks), fine)
    corners = fine.vertices[fine.triangles].numpy()
    slope = trimesh.triangles.normals(corners)[0][:, 2].mean()
    assert found.mean() == pytest.approx(0.5 * slope, rel=0.15)


def test_holes_and_the_crop():
    """The crop is the ball that NoW describes; NaN marks holes."""
    face = scans.face()
    points = face.landmarks
    eyes, nose = (points[39] + points[42]) / 2, points[33]
    size = (points[36] - points[45]).norm() + (eyes - nose).norm()
    inside = (face.vertices - (nose + 0.3 * (eyes - nose))).norm(dim=-1) < 0.7 * size
    assert len(distances(face, moved(face))) == inside.sum()
    vertices = face.vertices.clone()
    vertices[inside.nonzero()[:40, 0]] = torch.nan
    holes = FaceMesh(vertices, face.triangles, points)
    found = distances(holes, moved(face))
    assert len(found) == inside.sum() - 40
    assert found.max() < 1e-6


@pytest.mark.parametrize("turn", [0.0, 0.05])
def test_the_alignment_is_the_least_that_an_independent_search_finds(turn):
    """scipy's least squares over the seven parameters, closest points over all triangles by
    trimesh, from two places that are not the one found; to 1e-6 of the mean square distance."""
    scan, face = scans.face(23, 29), scans.face(9, 11)
    distance = distances(scan, face).numpy()
    points = scan.landmarks
    eyes, nose = (points[39] + points[42]) / 2, points[33]
    size = (points[36] - points[45]).norm() + (eyes - nose).norm()
    inside = (scan.vertices - (nose + 0.3 * (eyes - nose))).norm(dim=-1) < 0.7 * size
    queries = scan.vertices[inside].numpy()
    mesh = trimesh.Trimesh(face.vertices.numpy(), face.triangles.numpy(), process=False)
    corners = mesh.triangles

    def offsets(p):
        local = (queries - p[3:6]) @ Rotation.from_rotvec(p[:3]).as_matrix() / np.exp(p[6])
        pairs = np.tile(corners, (len(local), 1, 1))
        there = trimesh.triangles.closest_point(pairs, np.repeat(local, len(corners), 0))
        offset = there.reshape(len(local), -1, 3) - local[:, None]
        nearest = np.linalg.norm(offset, axis=-1).argmin(1)
        return (offset[np.arange(len(local)), nearest] * np.exp(p[6])).ravel()

    start, unit = np.array([turn, 0, -turn, 0, 0, 0, turn]), [0.01, 0.01, 0.01, 1, 1, 1, 0.01]
    best = least_squares(offsets, start, x_scale=unit, ftol=1e-10, max_nfev=30)
    least = 2 * best.cost / len(queries)
    assert 0.1 < least < 2
    assert np.mean(distance**2) == pytest.approx(least, abs=1e-6)


def test_neutral_faces_are_scored_and_exported(root, tmp_path):
    calls = 0

    def predict(images):
        nonlocal calls
        mesh = true(now.NAMES[calls])
        calls += 1
        camera = WeakPerspectiveCamera(
            frontal(images).expand(1, 1, 3, 3), torch.ones(1, 1), torch.full((1, 1, 2), 16.0)
        )
        vertices = mesh.vertices.float()[None, None]
        return Reconstruction(
            vertices=vertices,
            neutral=0.9 * vertices,  # a similarity costs nothing
            triangles=mesh.triangles,
            uv=torch.zeros(vertices.shape[2], 2),
            camera=camera,
            landmarks=camera.project(mesh.landmarks.float()[None, None])[0],
            albedo_map=torch.zeros(1, 1, 3, 2, 2),
            light=torch.zeros(1, 1, 9, 1),
        )

    results = benchmark(root, export=tmp_path).run(predict)
    assert not results.failures
    assert results["all_mm"].value.mean < 0.01
    for name in now.NAMES:
        vertices, triangles = read_mesh(tmp_path / f"{name}.obj")
        mesh = true(name)
        torch.testing.assert_close(vertices, 0.9 * mesh.vertices, rtol=0, atol=1e-4)
        assert torch.equal(triangles, mesh.triangles)
        assert np.load(tmp_path / f"{name}.npy").shape == (7, 3)
    again = benchmark(root).score(MeshFolder(tmp_path))
    assert again["all_mm"].value.mean == pytest.approx(results["all_mm"].value.mean, abs=1e-4)


def test_failures_are_counted(root, tmp_path):
    def faces(sample):
        mesh = true(sample)
        if sample == now.NAMES[0]:
            return mesh.scaled(0.1)
        if sample == now.NAMES[1]:
            return FaceMesh(mesh.vertices * torch.nan, mesh.triangles, mesh.landmarks)
        return mesh

    results = benchmark(root).score(faces)
    assert results["all_mm"].value.n == 2
    assert any("unit=cm" in reason for reason in results.failures)
    assert any("NaN" in reason for reason in results.failures)
    listing = tmp_path / "imagepathstest.txt"
    listing.write_text("c/selfie/IMG_1.jpg\n")
    test = benchmark(root, listing=listing, export=tmp_path / "out")
    results = test.score(lambda sample: scans.face())
    assert results.failures == {"scan: there is no .obj or .pp": ["c/selfie/IMG_1"]}
    assert (tmp_path / "out/c/selfie/IMG_1.npy").is_file()
    assert results.means() == {}
    none = benchmark(root).score(MeshFolder(tmp_path))
    assert none.failures == {"there is no predicted mesh": now.NAMES}


def test_what_is_missing_is_named(root, tmp_path, monkeypatch):
    with pytest.raises(AssetNotFoundError, match="NoW"):
        NoW(tmp_path / "none").samples()
    with pytest.raises(DataError, match="cannot be read"):
        NoW(tmp_path).samples()
    monkeypatch.setattr("benchmarks.now.SUBJECTS", 20)
    with pytest.raises(DataError, match="2 subjects, wanted 20"):
        benchmark(root).samples()
    (tmp_path / "a.txt").write_text("a/b\n")
    with pytest.raises(DataError, match="each once"):
        benchmark(root, listing=tmp_path / "a.txt").samples()
    (tmp_path / "a.pp").write_text('<point x="1" y="2" z="3"/>')
    with pytest.raises(DataError, match="wanted"):
        read_pp(tmp_path / "a.pp")
    (tmp_path / "a.pp").write_text('<point x="a" y="2" z="3"/>')
    with pytest.raises(DataError, match="cannot be read"):
        read_pp(tmp_path / "a.pp")
