from itertools import chain

import numpy as np
import pytest
import torch
from scipy.spatial import procrustes as scipy_procrustes
from scipy.spatial.transform import Rotation

from benchmarks.facewarehouse import FaceWarehouse, _Comparison, vertices_at
from benchmarks.predictions import FaceMesh
from core.align import procrustes
from core.camera import WeakPerspectiveCamera, frontal
from core.contracts import Reconstruction
from core.errors import AssetNotFoundError, DataError
from tests.fakes import facewarehouse, scans

TURN = torch.from_numpy(Rotation.from_rotvec([0.4, -0.3, 0.2]).as_matrix())


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return facewarehouse.write(tmp_path_factory.mktemp("facewarehouse"))


def benchmark(root, **options):
    options = {"testers": list(facewarehouse.TESTERS), "unit_to_mm": 100.0} | options
    return FaceWarehouse(
        root, image_landmarks=root / "landmarks", image_size=32, progress=False, **options
    )


def number(sample):
    tester, pose = sample.split("/")
    return facewarehouse.TESTERS.index(tester), int(pose.removeprefix("pose_"))


def true(sample):
    return facewarehouse.mesh(*number(sample))


def test_the_true_meshes_elsewhere_and_reordered_score_zero(root):
    order = torch.randperm(facewarehouse.ROWS * facewarehouse.COLUMNS)

    def faces(sample):
        mesh = true(sample)
        moved = [1.1 * points @ TURN.mT + 5 for points in (mesh.vertices[order], mesh.landmarks)]
        return FaceMesh(moved[0], order.argsort()[mesh.triangles], moved[1])

    results = benchmark(root).score(faces)
    assert results.images == 40
    assert not results.failures
    assert results["s_mm"].value.n == results["l_mm"].value.n == 40
    assert results["s_mm"].value.mean < results["l_mm"].value.mean < 0.01  # text of 9 digits, map


def test_a_missing_expression_costs_what_it_moves(root):
    """The neutral face for all poses: the distances are those of the meshes themselves."""
    results = benchmark(root).score(lambda sample: facewarehouse.mesh(number(sample)[0], 0))
    expected = []
    for pose in range(20):
        still, bent = (facewarehouse.mesh(0, k).vertices for k in (0, pose))
        tip = scans.landmarks()[30]
        near = torch.from_numpy(np.linalg.norm(still.numpy() - tip, axis=1) < 60)
        pose_fit = procrustes(still[near], bent[near])
        distance = (pose_fit.apply(still) - bent).norm(dim=-1)[near]
        expected.append(float(distance.mean()))
    found = [results.per_sample["s_mm"][f"Tester_1/pose_{pose}"] for pose in range(20)]
    assert found == pytest.approx(expected, abs=0.03)
    assert found[19] > 0.3


def test_errors_agree_with_scipy_and_are_kept_for_a_look(root):
    """Another face as prediction; the similarity and the distances by scipy."""

    def faces(sample):
        mesh = facewarehouse.mesh(1, 0) if sample.endswith("pose_7") else true(sample)
        return FaceMesh(
            mesh.vertices @ TURN.mT * 0.9, mesh.triangles, mesh.landmarks @ TURN.mT * 0.9
        )

    results = benchmark(root, testers=list(facewarehouse.TESTERS)[:1]).score(faces)
    name = f"{facewarehouse.TESTERS[0]}/pose_7"
    first, still = (true(f"{facewarehouse.TESTERS[0]}/pose_{k}") for k in (7, 0))
    comparison = _Comparison(still, still)
    points = comparison.map.apply(facewarehouse.mesh(1, 0).vertices).numpy()
    wanted, s = first.vertices.numpy(), comparison.regions["s"].numpy()
    _, fitted, _ = scipy_procrustes(wanted[s], points[s])
    size = np.linalg.norm(wanted[s] - wanted[s].mean(0))
    distance = np.linalg.norm(fitted * size + wanted[s].mean(0) - wanted[s], axis=1)
    assert distance.mean() > 0.1
    assert results.per_sample["s_mm"][name] == pytest.approx(distance.mean(), abs=1e-5)
    tester = facewarehouse.TESTERS[0]
    assert list(results.meshes) == [f"{tester}/pose_{k}" for k in (0, 6, 13)]
    assert len(results.meshes[f"{tester}/pose_0"].error) == int(comparison.regions["l"].sum())
    assert results.curves["s_mm"][-1] == [5.0, 100.0]
    assert "S " in results.note


def test_points_correspond_by_a_neutral_face_even_if_the_first_is_missing(root):
    """Otherwise an expression would be taken for the neutral shape of the topology."""

    def faces(sample):
        if sample == f"{facewarehouse.TESTERS[0]}/pose_0":
            raise DataError("there is no predicted mesh")
        return true(sample)

    missing = benchmark(root).score(faces)
    assert missing["s_mm"].value.n == 39
    assert missing["s_mm"].value.mean < 0.01

    def none_neutral(sample):
        if sample.endswith("pose_0"):
            raise DataError("there is no predicted mesh")
        return true(sample)

    nothing = benchmark(root).score(none_neutral)
    assert nothing.means() == {}
    assert sum(map(len, nothing.failures.values())) == 40
    assert any("no neutral face" in reason for reason in nothing.failures)


def test_photographs_are_cropped_and_predicted(root):
    calls = []

    def predict(images):
        assert images.shape == (1, 1, 3, 32, 32)
        calls.append(int((images.amax() * 255).round()))
        mesh = facewarehouse.mesh(calls[-1] % 10, calls[-1] // 10)
        camera = WeakPerspectiveCamera(
            frontal(images).expand(1, 1, 3, 3), torch.ones(1, 1), torch.zeros(1, 1, 2)
        )
        return Reconstruction(
            vertices=mesh.vertices[None, None].float(),
            neutral=mesh.vertices[None, None].float(),
            triangles=mesh.triangles,
            uv=torch.zeros(len(mesh.vertices), 2),
            camera=camera,
            landmarks=camera.project(mesh.landmarks[None, None].float())[0],
            albedo_map=torch.zeros(1, 1, 3, 2, 2),
            light=torch.zeros(1, 1, 9, 1),
        )

    results = benchmark(root).run(predict)
    assert len(calls) == 40
    assert not results.failures
    assert results["l_mm"].value.mean < 0.05


def test_landmarks_come_through_the_texture_or_from_a_file(root, tmp_path):
    content = (root / "Tester_1/TrainingPose/pose_0.obj").read_bytes()
    landmarks = facewarehouse.mesh(0, 0).landmarks
    points = torch.from_numpy(facewarehouse.pixels(landmarks.numpy())).float()
    rows = vertices_at(content, points, (facewarehouse.HEIGHT, facewarehouse.WIDTH))
    torch.testing.assert_close(facewarehouse.mesh(0, 0).vertices[rows], landmarks)
    listing = tmp_path / "rows.txt"
    np.savetxt(listing, rows.numpy(), fmt="%d")
    results = benchmark(root, landmark_vertices=listing).score(true)
    assert results["s_mm"].value.mean < 0.01
    with pytest.raises(DataError, match="texture"):
        vertices_at(b"v 0 0 0\n", points, (48, 64))


def test_the_unit_is_estimated_from_the_eyes(root):
    results = benchmark(root, unit_to_mm=None).score(true)
    points = [facewarehouse.mesh(k, 0).landmarks for k in range(2)]
    unit = 90 / np.mean([float((p[36] - p[45]).norm()) / 100 for p in points])
    assert f"1 unit of the data set = {unit:.4g} mm" in results.protocol
    assert results["s_mm"].value.mean < 0.01


def test_failures(root):
    def faces(sample):
        mesh = true(sample)
        if sample == "Tester_1/pose_3":
            raise DataError("no mesh")
        if sample == "Tester_1/pose_4":
            return scans.face(20, 20)
        if sample == "Tester_1/pose_5":
            return mesh.scaled(0.1)
        if sample == "Tester_1/pose_6":
            return FaceMesh(mesh.vertices * torch.nan, mesh.triangles, mesh.landmarks)
        return mesh

    results = benchmark(root).score(faces)
    assert results["s_mm"].value.n == 36
    assert sorted(chain(*results.failures.values())) == [f"Tester_1/pose_{k}" for k in range(3, 7)]
    assert any("another topology" in reason for reason in results.failures)
    assert any("unit=cm" in reason for reason in results.failures)


def test_the_180_meshes_are_asserted(root, tmp_path):
    with pytest.raises(DataError, match="lacks 140 of 180"):
        benchmark(root, testers=None).samples()
    with pytest.raises(AssetNotFoundError, match="FaceWarehouse"):
        FaceWarehouse(tmp_path / "none").samples()


def test_a_wrong_unit_of_the_data_set_is_named(root):
    results = benchmark(root, unit_to_mm=1000.0).score(true)
    assert len(results.failures) <= 2  # people differ
    assert all("the data set's outer eye corners about" in reason for reason in results.failures)
    assert all("see unit_to_mm" in reason for reason in results.failures)
    assert results.means() == {}
