import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import loadmat
from scipy.spatial import KDTree

from benchmarks.aflw2000_dense import AFLW2000Dense, read_region
from benchmarks.dense import dense_nme_percent, in_image
from benchmarks.predictions import FaceMesh, MeshFolder
from core.camera import PerspectiveCamera, WeakPerspectiveCamera, frontal
from core.contracts import Reconstruction
from core.crop import transform_points
from core.errors import AssetNotFoundError, DataError
from core.face_models.importers import bfm2009
from tests.fakes import aflw2000, scans

NOTHING = torch.zeros(0, 3)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = aflw2000.write(tmp_path_factory.mktemp("aflw"))
    aflw2000.write_basel(root / "basel")
    return root


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr("benchmarks.aflw2000.AFLW2000.size", 8)
    for name, value in aflw2000.SMALL.items():
        monkeypatch.setattr(bfm2009, name, value)


def benchmark(root, **options):
    options = {"image_size": 64, "batch_size": 3, "progress": False} | options
    return AFLW2000Dense(root, root / "basel", **options)


def fitted(root, name):
    """All vertices of a true face, by MATLAB's formulas."""
    mat = loadmat(root / f"{name}.mat")
    model, exp = (loadmat(root / f"basel/{n}.mat") for n in ("01_MorphableModel", "Model_Exp"))
    shape = model["shapeMU"] + model["shapePC"] @ mat["Shape_Para"]
    rows = (3 * aflw2000.TRIM[:, None] + np.arange(3)).ravel()
    mesh = shape[rows] + exp["mu_exp"] + exp["w_exp"] @ mat["Exp_Para"]
    pitch, yaw, roll, *shift, scale = mat["Pose_Para"][0].astype(float)
    (cx, cy, cz), (sx, sy, sz) = np.cos([pitch, yaw, roll]), np.sin([pitch, yaw, roll])
    R = np.array([[1, 0, 0], [0, cx, sx], [0, -sx, cx]])
    R = R @ np.array([[cy, 0, -sy], [0, 1, 0], [sy, 0, cy]])
    R = R @ np.array([[cz, sz, 0], [-sz, cz, 0], [0, 0, 1]])
    x, y, z = scale * R @ mesh.reshape(-1, 3).T + np.array(shift)[:, None]
    return torch.from_numpy(np.stack([x - 0.5, 450 + 1 - y - 0.5, z], 1))


def interocular(root, name):
    eyes = fitted(root, name)[[bfm2009.KEYPOINTS[36], bfm2009.KEYPOINTS[45]]]
    return float((eyes[0] - eyes[1]).norm())


def score(root, change=lambda points: points, **options):
    def faces(name):
        return FaceMesh(change(fitted(root, name)), NOTHING.long(), NOTHING)

    return benchmark(root, **options).score(faces)


def means(results, mode="all"):
    return {m: results[f"{m}_nme_{mode}_percent"].value.mean for m in ("icp", "vrn", "index")}


ALL = ["icp", "vrn", "index"]


def test_the_true_faces_score_zero_wherever_they_are_in_depth(root):
    results = score(root, lambda p: p + torch.tensor([0, 0, 40.0]), modes=ALL)
    assert not results.failures
    assert max(means(results).values()) < 1e-4  # float32 of the fits
    assert [results[f"icp_nme_{k}_percent"].value.n for k in ("0_30", "30_60", "60_90")] == [
        4,
        2,
        2,
    ]
    assert results.curves["icp_nme"][1][1] == 100
    assert "900 vertices" in results.protocol
    assert "at most 100 rounds" in results.protocol


def test_a_shift_costs_itself_where_nothing_is_aligned(root):
    results = score(root, lambda p: p + torch.tensor([0.6, -0.8, 0]), modes=ALL)
    found = means(results)
    expected = np.mean([100 / interocular(root, name) for name in aflw2000.NAMES])
    assert found["vrn"] == pytest.approx(expected, abs=1e-3)
    assert found["icp"] < 1e-3
    assert found["index"] < 1e-4
    one = results.per_sample["vrn_nme"][aflw2000.NAMES[3]]
    assert one == pytest.approx(100 / interocular(root, aflw2000.NAMES[3]), abs=1e-3)


def test_a_size_costs_in_rigid_modes_only(root):
    results = score(root, lambda p: (p - p.mean(0)) * 1.05 + p.mean(0), modes=ALL)
    assert means(results)["index"] < 1e-4
    assert means(results)["icp"] > 0.5


def test_permuted_vertices_and_mirrored_faces(root):
    order = torch.randperm(aflw2000.TRIMMED, generator=torch.Generator().manual_seed(0))
    results = score(root, lambda p: p[order], modes=ALL)
    assert means(results)["icp"] < 1e-4
    assert means(results)["vrn"] < 1e-4
    assert means(results)["index"] > 10
    mirrored = score(root, lambda p: p * torch.tensor([-1.0, 1, 1]) + torch.tensor([450.0, 0, 0]))
    assert mirrored["icp_nme_all_percent"].value.mean > 0.5


def test_noise_and_holes(root):
    """Truth with noise: the nearest vertices are nearer than the noisy ones; and a hole costs."""
    random = np.random.default_rng(0)
    noise = torch.from_numpy(random.normal(0, 0.3, (aflw2000.TRIMMED, 3)))
    found = means(score(root, lambda p: p + noise, modes=ALL))
    size = np.mean([100 * noise.norm(dim=1).mean() / interocular(root, n) for n in aflw2000.NAMES])
    assert found["index"] == pytest.approx(float(size), rel=0.05)
    assert 0.8 * size < found["icp"] < 1.01 * size
    part = score(root, lambda p: p[(p[:, 1] - p[:, 1].mean()).abs() > 10])
    assert 0.05 < part["icp_nme_all_percent"].value.mean < 3


def test_icp_agrees_with_an_independent_one():
    """Nearest neighbours by scipy and Kabsch, iterated to the end."""
    y = scans.face(30, 36).vertices
    random = np.random.default_rng(0)
    turn = np.array([[np.cos(0.1), -np.sin(0.1), 0], [np.sin(0.1), np.cos(0.1), 0], [0, 0, 1]])
    x = scans.face(27, 33).vertices.numpy() @ turn.T + [2, -3, 50] + random.normal(0, 0.5, (891, 3))
    found = dense_nme_percent(torch.from_numpy(x), y, 100.0, ["icp", "vrn"], rounds=100)
    true, moved = y.numpy(), x + np.array([0, 0, -50.0])
    last = np.inf
    for _ in range(200):
        distance, near = KDTree(moved).query(true)
        if last - np.sqrt((distance**2).mean()) < 1e-5 * np.sqrt((distance**2).mean()):
            break
        last = np.sqrt((distance**2).mean())
        source, middle, goal = moved[near], moved[near].mean(0), true.mean(0)
        U, _, Vh = np.linalg.svd((source - middle).T @ (true - goal))
        R = Vh.T @ np.diag([1, 1, np.linalg.det(Vh.T @ U.T)]) @ U.T
        moved = (moved - middle) @ R.T + goal
    assert found["icp"] == pytest.approx(distance.mean(), abs=1e-6)
    offset = x[near] - true
    offset[:, 2] -= offset[:, 2].mean()
    assert found["vrn"] == pytest.approx(np.linalg.norm(offset, axis=1).mean(), abs=1e-6)


def test_on_a_gpu_errors_are_the_same(gpu):
    true, predicted = scans.face(20, 24).vertices, scans.face(21, 27).vertices + 3
    rows = torch.arange(len(true))
    wanted = dense_nme_percent(predicted, true, 90.0, ALL, rows)
    parts = [part.to(gpu) for part in (predicted, true, rows)]
    found = dense_nme_percent(parts[0], parts[1], 90.0, ALL, parts[2])
    assert found == pytest.approx(wanted, abs=1e-9)


def test_failures_are_counted_and_in_no_mean(root):
    def change(points):
        kind = change.calls % 8
        change.calls += 1
        return [points, points * torch.nan, points * 0.01, points[:0], points[:-1]][min(kind, 4)]

    change.calls = 0
    results = score(root, change, modes=ALL)
    names = aflw2000.NAMES
    assert results["icp_nme_all_percent"].value.n == 5  # one has a vertex less, four of them
    assert results["index_nme_all_percent"].value.n == 1
    assert results.failures["the predicted mesh has no vertices, or NaN or infinite ones"] == [
        names[1],
        names[3],
    ]
    assert results.failures["'index' wants 1300 vertices, the predicted mesh has 1299"] == names[4:]
    assert any("unit is not pixels" in reason for reason in results.failures)


def test_predictions_are_brought_back_from_the_crops(root):
    """An oracle that sees the true faces in the crops, by one camera and the other."""
    own = benchmark(root, modes=ALL)
    truth = own.photographs.truth()
    (_, _, matrices) = zip(*own.photographs.batches(truth, {}), strict=True)
    matrices, at = torch.cat(matrices), 0
    flip = torch.tensor([1.0, -1, 1]).double()

    def predict(images):
        nonlocal at
        rows = range(at, at + len(images))
        at += len(images)
        meshes = torch.stack([fitted(root, truth.names[row]) for row in rows])
        pixels = transform_points(matrices[rows], meshes[..., :2])
        z = meshes[..., 2:] * torch.linalg.det(matrices[rows][:, :2, :2]).sqrt()[:, None, None]
        b = len(images)
        # a weak-perspective camera of two pixels a millimetre
        camera = WeakPerspectiveCamera(
            frontal(images).expand(b, 1, 3, 3), torch.full((b, 1), 2.0), torch.zeros(b, 1, 2)
        )
        vertices = (torch.cat([pixels, z], -1) * flip / 2)[:, None].float()
        return Reconstruction(
            vertices=vertices,
            neutral=vertices,
            triangles=torch.tensor([[0, 1, 2]]),
            uv=torch.zeros(vertices.shape[2], 2),
            camera=camera,
            landmarks=torch.zeros(b, 1, 68, 2),
            albedo_map=torch.zeros(b, 1, 3, 2, 2),
            light=torch.zeros(b, 1, 9, 1),
        )

    results = own.run(predict)
    assert at == 8
    assert max(means(results).values()) < 1e-2  # float32 pixels of small crops
    assert "64 x 64" in results.note


def test_a_camera_s_frame_is_in_pixels_along_all_axes():
    points = torch.tensor([[[[10.0, 20, 30], [0, 0, 0]]]])
    weak = WeakPerspectiveCamera(
        frontal(points).expand(1, 1, 3, 3), torch.full((1, 1), 2.0), torch.full((1, 1, 2), 112.0)
    )
    strong = PerspectiveCamera(
        frontal(points).expand(1, 1, 3, 3),
        torch.tensor([[[0.0, 0, 1e6]]]),
        torch.full((1, 1), 2e6),
        torch.full((1, 1, 2), 112.0),
    )
    for camera in (weak, strong):
        face = Reconstruction(
            vertices=points,
            neutral=points,
            triangles=torch.tensor([[0, 1, 0]]),
            uv=torch.zeros(2, 2),
            camera=camera,
            landmarks=torch.zeros(1, 1, 68, 2),
            albedo_map=torch.zeros(1, 1, 3, 2, 2),
            light=torch.zeros(1, 1, 9, 1),
        )
        found = in_image(face)[0, 0]
        difference = (found[0] - found[1]).tolist()
        assert difference == pytest.approx([20, -40, 60], abs=0.2)


def test_regions(root, tmp_path):
    basel = root / "basel"
    assert len(read_region(None, basel)) == aflw2000.FRONT
    (tmp_path / "a.txt").write_text("5\n7\n1299\n")
    assert read_region(tmp_path / "a.txt", basel).tolist() == [5, 7, 1299]
    np.save(tmp_path / "a.npy", np.array([3, 1, 2]))
    assert read_region(tmp_path / "a.npy", basel).tolist() == [3, 1, 2]
    mask = np.zeros((256, 256), np.uint8)
    mask[:128, 64:] = 255  # the upper part, without a quarter on the left
    Image.fromarray(mask).save(tmp_path / "mask.png")
    points = aflw2000.FACE.vertices[aflw2000.TRIM].numpy()
    x, y = points[:, 0], points[:, 1]
    inside = set(np.flatnonzero((y > 0.5) & (x > -44.5)))
    assert inside <= set(read_region(tmp_path / "mask.png", basel).tolist())
    outside = set(np.flatnonzero((y < -0.5) | (x < -45.5)))
    assert not outside & set(read_region(tmp_path / "mask.png", basel).tolist())
    for text in ("1300\n1\n2\n", "1\n1\n2\n", "1.5\n2\n3\n", "a\n", "1\n"):
        (tmp_path / "a.txt").write_text(text)
        with pytest.raises(DataError, match=r"a\.txt"):
            read_region(tmp_path / "a.txt", basel)
    with pytest.raises(AssetNotFoundError, match="list of vertices"):
        read_region(tmp_path / "none.txt", basel)
    results = score(root, region=tmp_path / "mask.png")
    assert results["icp_nme_all_percent"].value.mean < 1e-4
    assert "mask.png" in results.protocol


def test_what_is_missing_is_named(root, tmp_path):
    with pytest.raises(AssetNotFoundError, match=r"BFM_front_idx\.mat"):
        AFLW2000Dense(root, tmp_path).score(lambda name: None)
    with pytest.raises(AssetNotFoundError, match="AFLW2000-3D"):
        AFLW2000Dense(tmp_path / "none", tmp_path).score(lambda name: None)
    with pytest.raises(DataError, match="modes"):
        AFLW2000Dense(root, tmp_path, modes=[])
    (tmp_path / "another.obj").touch()
    results = benchmark(root).score(MeshFolder(tmp_path, landmarks=False))
    assert results.failures == {"there is no predicted mesh": aflw2000.NAMES}
    assert results.means() == {}
