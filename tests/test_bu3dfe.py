import numpy as np
import pytest
import torch

from benchmarks.bu3dfe import BU3DFE, five_of, polygons, read_bnd, read_wrl
from benchmarks.predictions import FaceMesh, fans
from core.camera import WeakPerspectiveCamera, frontal
from core.contracts import Reconstruction
from core.errors import AssetNotFoundError, DataError
from tests.fakes import bu3dfe

PEOPLE = ["F0001", "M0002"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return bu3dfe.write(tmp_path_factory.mktemp("bu3dfe"))


def benchmark(root, **options):
    options = {"subjects": PEOPLE, "image_size": 32, "progress": False} | options
    return BU3DFE(root, image_landmarks=root / "landmarks", **options)


def true(sample):
    return bu3dfe.mesh(bu3dfe.SCANS.index(sample))


def test_scans_are_read_with_their_landmarks(root):
    for sample in bu3dfe.SCANS:
        (scan,) = benchmark(root).scans(sample)
        mesh = true(sample)
        torch.testing.assert_close(scan.vertices, mesh.vertices, rtol=0, atol=1e-8)
        torch.testing.assert_close(scan.landmarks, mesh.landmarks, rtol=0, atol=1e-8)
        assert len(scan.triangles) == len(mesh.triangles)


@pytest.mark.parametrize(("which", "n"), [("two_view", 4), ("neutral", 2)])
def test_the_scans_themselves_score_zero(root, which, n):
    results = benchmark(root, which=which).score(lambda sample: true(sample).scaled(1.1))
    assert results[f"{which}_point_rmse_mm"].value.n == n
    assert not results.failures
    assert max(results.means().values()) < 1e-5
    mirror = torch.tensor([-1.0, 1, 1])

    def mirrored(sample):
        mesh = true(sample)
        points = mesh.landmarks[[1, 0, 2, 4, 3]] * mirror
        return FaceMesh(mesh.vertices * mirror, mesh.triangles.flip(1), points)

    assert benchmark(root, which=which).score(mirrored)[f"{which}_rmse_mm"].value.mean > 0.3


@pytest.mark.parametrize(("which", "views"), [("two_view", 2), ("neutral", 1)])
def test_both_pictures_of_a_scan_give_one_face(root, which, views):
    seen = []

    def predict(images):
        assert images.shape == (1, views, 3, 32, 32)
        level = int((images[0, 0].amax() * 255).round()) // 40
        seen.append(level)
        mesh = bu3dfe.mesh(level)
        points = torch.zeros(68, 3)
        points[[36, 39, 42, 45, 33, 30]] = mesh.landmarks[[0, 0, 1, 1, 2, 2]].float()
        points[[37, 38, 40, 41]], points[[43, 44, 46, 47]] = points[36].clone(), points[45].clone()
        points[[48, 54]] = mesh.landmarks[3:].float()
        camera = WeakPerspectiveCamera(
            frontal(images).expand(1, views, 3, 3),
            torch.ones(1, views),
            torch.zeros(1, views, 2),
        )
        vertices = mesh.vertices.float().expand(1, views, -1, 3)
        offset = torch.linspace(-1, 1, views)[:, None, None] if views > 1 else 0
        return Reconstruction(
            vertices=vertices + offset,  # the mean over the views is the truth
            neutral=vertices,
            triangles=mesh.triangles,
            uv=torch.zeros(vertices.shape[2], 2),
            camera=camera,
            landmarks=camera.project(points.expand(1, views, 68, 3))[0],
            albedo_map=torch.zeros(1, views, 3, 2, 2),
            light=torch.zeros(1, views, 9, 1),
        )

    results = benchmark(root, which=which).run(predict)
    assert not results.failures
    assert sorted(seen) == ([0, 1, 2, 3] if views == 2 else [1, 3])
    assert max(results.means().values()) < 1e-3


def test_missing_photographs_and_scans_are_failures(tmp_path):
    root = bu3dfe.write(tmp_path)
    (root / f"{bu3dfe.SCANS[0]}_RAW_1.jpg").unlink()
    (root / f"{bu3dfe.SCANS[1]}_F3D.bnd").unlink()
    (root / "landmarks" / f"{bu3dfe.SCANS[2]}_RAW_0.npy").unlink()

    def predict(images):
        raise DataError("not predicted")

    results = benchmark(root).run(predict)
    assert results.failures == {
        "the photograph is missing or cannot be read": [bu3dfe.SCANS[0]],
        "scan: its .wrl or .bnd is missing": [bu3dfe.SCANS[1]],
        "there are no landmarks of the photograph": [bu3dfe.SCANS[2]],
        "not predicted": [bu3dfe.SCANS[3]],
    }


def test_the_size_of_the_set_is_asserted(root, tmp_path):
    with pytest.raises(DataError, match="holds 2 subjects, wanted 100"):
        benchmark(root, subjects=None).samples()
    with pytest.raises(DataError, match="M0099"):
        benchmark(root, subjects=["M0099"]).samples()
    with pytest.raises(AssetNotFoundError, match="BU-3DFE"):
        BU3DFE(tmp_path / "none").samples()
    for person in range(100):
        for scan in range(25):
            path = tmp_path / f"F{person:04}" / f"F{person:04}_AN{scan:02}WH_F3D.wrl"
            path.parent.mkdir(exist_ok=True)
            path.touch()
    names = BU3DFE(tmp_path).samples()["two_view"]
    assert len(names) == 324
    assert names[0] == "F0000/F0000_AN00WH"
    assert names[-1] == "F0012/F0012_AN23WH"  # of 25, all but the last
    with pytest.raises(DataError, match="0 scans"):
        BU3DFE(tmp_path, which="neutral").samples()


@pytest.mark.parametrize("swapped", [False, True])
def test_five_landmarks_by_the_order_of_the_83(swapped):
    """Either eye may be the first; the tip is in front near the nose, not in front of all."""
    points = torch.full((83, 3), 900.0)  # what must not count lies far away
    sides = [-32.0, 32.0][:: -1 if swapped else 1]
    for k, x in enumerate(sides):
        points[8 * k : 8 * k + 8] = torch.tensor([x, 35.0, 10])
    points[36:48] = torch.tensor([0.0, 0, 30])
    points[48:60] = torch.tensor([0.0, -40, 20])
    points[50, 0], points[57, 0] = -25, 24
    points[53, 1], points[54, 1] = -50, -30
    vertices = torch.tensor([[0.0, 5, 50], [0, 0, 40], [0, 30, 45], [0, -90, 95]])
    wanted = [[-32, 35, 10], [32, 35, 10], [0, 5, 50], [-25, -40, 20], [24, -40, 20]]
    assert five_of(points.double(), vertices.double()).tolist() == wanted
    with pytest.raises(DataError, match="near the nose"):
        five_of(points.double(), vertices[3:].double())


def test_polygons_of_all_sizes():
    groups = polygons(np.array([0, 1, 2, -1, 3, 4, 5, 6, -1, 7, 8, -1, 1, 2, 3]))
    triangles = sorted(fans(groups).tolist())
    assert triangles == [[0, 1, 2], [1, 2, 3], [3, 4, 5], [3, 5, 6]]


def test_damaged_files_are_refused(tmp_path):
    wrl, bnd = tmp_path / "a.wrl", tmp_path / "a.bnd"
    one, index = "point [ 0 0 0 ]", "coordIndex [ 0, 1, 2, -1 ]"
    for text in ("", one, f"point [ 0 0 ] {index}", f"{one} {index}", "point [x] coordIndex []"):
        wrl.write_text(text)
        with pytest.raises(DataError, match=r"\.wrl"):
            read_wrl(wrl)
    for text in ("0 1 2 3\n", "a b c d\n"):
        bnd.write_text(text)
        with pytest.raises(DataError, match=r"\.bnd"):
            read_bnd(bnd)
