import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.predictions import FaceMesh, MeshFolder
from benchmarks.renderings import MICCRenderings, read_coloured
from core.camera import WeakPerspectiveCamera, frontal
from core.contracts import Reconstruction
from core.crop import face_crop
from core.errors import AssetNotFoundError, DataError
from core.rotation import rotation_from_euler
from tests.fakes import micc, scans

SIZE = 48


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return micc.write(tmp_path_factory.mktemp("micc"))


def benchmark(root, **options):
    options = {"subjects": list(micc.SUBJECTS), "image_size": SIZE, "progress": False} | options
    return MICCRenderings(root, **options)


def true_camera(benchmark, sample):
    """By the pose in the sample's name, and the convention of the training's crops."""
    subject = sample.partition("/")[0]
    (pose,) = [p for p in benchmark.poses(subject) if sample.endswith(f"_{p.label}")]
    mesh = micc.scan(micc.SUBJECTS.index(subject))
    pitch, yaw = torch.tensor([pose.pitch, pose.yaw]).double().deg2rad()
    R = frontal(mesh.vertices) @ rotation_from_euler(pitch, yaw, pitch * 0)
    flat = (mesh.landmarks @ R.mT)[:, :2]
    matrix = face_crop(flat, torch.ones(68), SIZE)
    return WeakPerspectiveCamera(
        R.float()[None, None], matrix[:1, 0].float()[None], matrix[:2, 2].float()[None, None]
    )


class Oracle:
    """The scans' own shapes, changed, in the order of the renderings."""

    def __init__(self, benchmark, shift=0.0, shape=lambda vertices: vertices):
        poses = {s: benchmark.poses(s) for s in benchmark.subjects}
        self.names = [f"{s}/{benchmark.which}_{p.label}" for s, ps in poses.items() for p in ps]
        self.benchmark, self.shift, self.shape, self.images = benchmark, shift, shape, []

    def __call__(self, images):
        assert images.shape == (1, 1, 3, SIZE, SIZE)
        name = self.names[len(self.images)]
        self.images.append(images[0, 0])
        mesh = micc.scan(micc.SUBJECTS.index(name.partition("/")[0]))
        camera = true_camera(self.benchmark, name)
        vertices = self.shape(mesh.vertices.float())[None, None]
        landmarks = camera.project(mesh.landmarks.float()[None, None])[0]
        camera = camera.crop(torch.ones(1, 1), torch.tensor([[[self.shift, 0.0]]]))
        return Reconstruction(
            vertices=vertices,
            neutral=vertices,
            triangles=mesh.triangles,
            uv=torch.zeros(vertices.shape[2], 2),
            camera=camera,
            landmarks=landmarks + torch.tensor([self.shift, 0.0]),
            albedo_map=torch.zeros(1, 1, 3, 2, 2),
            light=torch.zeros(1, 1, 9, 1),
        )


def test_the_scans_themselves_score_zero_in_all_poses(root):
    own = benchmark(root, subjects=["subject_02"])
    results = own.run(Oracle(own))
    assert results.images == 15
    assert not results.failures
    assert max(results.means().values()) < 1e-3
    assert results["all_rmse_mm"].value.n == results["icp_nme_percent"].value.n == 15
    assert results["yaw_-80_rmse_mm"].value.n == 3
    assert "15 poses each: pitch -15, 20, 25 x yaw -80, -40, 0, 40, 80" in results.protocol
    assert results.curves["icp_nme_percent"][1][1] == 100


def test_a_shift_in_the_image_costs_unaligned_nme_only(root):
    own = benchmark(root, subjects=["subject_01"], pitches=[20.0])
    results = own.run(Oracle(own, shift=0.1))
    mesh = micc.scan(0)
    eyes = float((mesh.landmarks[36] - mesh.landmarks[45]).norm())
    scales = [float(true_camera(own, name).scale) for name in Oracle(own).names]
    expected = np.mean([100 * 0.1 / (scale * eyes) for scale in scales])
    assert results["vrn_nme_percent"].value.mean == pytest.approx(expected, rel=0.02)
    assert results["icp_nme_percent"].value.mean < 0.05
    assert results["all_rmse_mm"].value.mean < 1e-3
    flat = own.run(Oracle(own, shape=lambda v: v * torch.tensor([1, 1, 0.7])))
    assert flat["all_rmse_mm"].value.mean > 0.5
    assert flat["icp_nme_percent"].value.mean > 0.5


def test_the_pictures_show_the_scan_in_its_colours(root, tmp_path):
    own = benchmark(root, subjects=["subject_01"], pitches=[0.0], images=tmp_path)
    oracle = Oracle(own)
    own.run(oracle)
    mesh = micc.scan(0)
    flat = mesh.vertices[:, :2]
    place = (mesh.vertices - mesh.vertices.amin(0)) / (flat.amax(0) - flat.amin(0)).amax()
    u = (flat[:, 0] - flat[:, 0].min()) / (flat[:, 0].max() - flat[:, 0].min())
    v = 1 - (flat[:, 1] - flat[:, 1].min()) / (flat[:, 1].max() - flat[:, 1].min())
    assert len(place) == len(u)
    for name, image in zip(oracle.names, oracle.images, strict=True):
        tip = mesh.landmarks[30]
        pixel = true_camera(own, name).project(tip.float()[None, None, None])[0][0, 0, 0]
        column, row = (int(x) for x in pixel)
        near = (flat - tip[:2]).norm(dim=-1).argmin()
        if "yaw+0" in name:
            expected = torch.stack([u[near], v[near], torch.tensor(100 / 255)])
            torch.testing.assert_close(
                image[:, row, column].double(), expected.double(), atol=0.03, rtol=0
            )
        written = np.asarray(Image.open(tmp_path / f"{name}.png")) / 255
        np.testing.assert_allclose(written, image.permute(1, 2, 0), atol=0.003)
        points = np.load(tmp_path / f"{name}.npy")
        np.testing.assert_allclose(points[30], pixel, atol=1e-3)
        assert np.ptp(points, axis=0).max() == pytest.approx(SIZE / 1.6, rel=1e-4)
    # yaw > 0 turns the nose to the left of the image
    tips = {name[-3:]: np.load(tmp_path / f"{name}.npy") for name in oracle.names}
    assert tips["+40"][30, 0] < tips["+40"][[0, 16], 0].mean()
    assert tips["-40"][30, 0] > tips["-40"][[0, 16], 0].mean()


def test_mgcnet_s_poses_are_twenty_and_seeded(root):
    first, again, other = (benchmark(root, poses="mgcnet", seed=seed) for seed in (1, 1, 2))
    groups = first.samples()
    assert {name: len(names) for name, names in groups.items()} == {
        **dict.fromkeys(["yaw_-80", "yaw_-60", "yaw_+0", "yaw_+60", "yaw_+80"], 6),
        "random": 10,
    }
    assert first.poses("subject_01") == again.poses("subject_01") != other.poses("subject_01")
    assert first.poses("subject_01")[-1] != first.poses("subject_02")[-1]
    assert all(abs(pose.yaw) <= 80 for pose in first.poses("subject_01"))
    assert "random" in first.describe()


def test_meshes_of_somebody_else(root, tmp_path):
    own = benchmark(root, pitches=[0.0], images=tmp_path / "images")
    for names in own.samples().values():
        for name in names:
            mesh = micc.scan(micc.SUBJECTS.index(name.partition("/")[0]))
            scans.write_obj(tmp_path / f"{name}.obj", mesh)
            np.save(tmp_path / f"{name}.npy", mesh.landmarks)
    (tmp_path / "subject_01/frontal1_pitch+0_yaw+40.obj").unlink()
    results = own.score(MeshFolder(tmp_path))
    assert results.failures == {
        "there is no predicted mesh": ["subject_01/frontal1_pitch+0_yaw+40"]
    }
    assert results["all_rmse_mm"].value.n == 9
    assert results["all_rmse_mm"].value.mean < 1e-5
    assert len(list((tmp_path / "images").rglob("*.png"))) == 10


def test_failures_are_counted(tmp_path):
    root = micc.write(tmp_path)
    (root / "subject_02/Model/frontal1/obj/scan.png").unlink()
    own = benchmark(root, pitches=[0.0])
    calls = 0

    def change(vertices):
        nonlocal calls
        calls += 1
        return vertices * torch.nan if calls == 2 else vertices

    results = own.run(Oracle(own, shape=change))
    names = [name for group in own.samples().values() for name in group]
    assert results.failures == {
        "the predicted face is not finite": ["subject_01/frontal1_pitch+0_yaw-40"],
        "NME: the predicted mesh has no vertices, or NaN or infinite ones": [
            "subject_01/frontal1_pitch+0_yaw-40"
        ],
        "its .obj has neither a picture nor colours of its vertices": [
            name for name in names if "subject_02" in name
        ],
    }
    assert results["all_rmse_mm"].value.n == 4
    assert results["icp_nme_percent"].value.n == 4
    none = benchmark(root, scan="frontal2", subjects=["subject_02"]).run(lambda images: None)
    assert list(none.failures) == ["scan: no frontal2/obj/*.obj"]
    with pytest.raises(AssetNotFoundError, match="MICC"):
        MICCRenderings(tmp_path / "none").samples()
    with pytest.raises(DataError, match="image_size"):
        benchmark(root, image_size=0)


def test_colours_of_vertices_do_as_well(tmp_path):
    mesh = scans.face(11, 13)
    lines = [f"v {x} {y} {z} 0.2 0.4 0.6" for x, y, z in mesh.vertices.tolist()]
    lines += [f"f {a} {b} {c}" for a, b, c in (mesh.triangles + 1).tolist()]
    (tmp_path / "a.obj").write_text("\n".join(lines))
    coloured = read_coloured(tmp_path / "a.obj")
    one = torch.ones(())
    camera = WeakPerspectiveCamera(frontal(one), 0.2 * one, torch.tensor([24.0, 24.0]))
    image = coloured.drawn(camera, 48)
    assert image[:, 24, 24].tolist() == pytest.approx([0.2, 0.4, 0.6], abs=0.01)
    assert image[:, 0, 0].tolist() == [0, 0, 0]
    assert isinstance(mesh, FaceMesh)
