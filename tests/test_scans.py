from copy import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from scipy.spatial.transform import Rotation

from benchmarks.base import listed, shown
from benchmarks.predictions import FaceMesh, MeshFolder, check_unit, landmark_vertices, read_mesh
from benchmarks.scans import (
    ERRORS,
    ScanBenchmark,
    ScanProtocol,
    compare,
    cropped,
    error_mesh,
    scan_errors,
)
from benchmarks.views import FaceFinder, Views, meshes_of
from core.align import procrustes
from core.camera import WeakPerspectiveCamera, frontal
from core.contracts import Reconstruction
from core.errors import AssetNotFoundError, DataError
from core.landmarks import MIRROR, five_points
from core.normals import vertex_normals
from core.registration import ClosestPoints, point_to_plane, register
from tests.fakes import scans

SEVEN = [36, 39, 42, 45, 33, 48, 54]
TURN = torch.from_numpy(Rotation.from_rotvec([0.4, -0.3, 0.2]).as_matrix())


def moved(mesh, scale=1.0):
    """Elsewhere, turned and larger."""

    def move(points):
        return scale * points @ TURN.mT + torch.tensor([100.0, -50, 20])

    return FaceMesh(move(mesh.vertices), mesh.triangles, move(mesh.landmarks))


def mirrored(mesh, names=True):
    """Left and right exchanged, as well as the names of the landmarks."""
    flip = torch.tensor([-1.0, 1, 1])
    landmarks = mesh.landmarks[list(MIRROR)] if names else mesh.landmarks
    return FaceMesh(mesh.vertices * flip, mesh.triangles.flip(1), landmarks * flip)


def with_landmarks(mesh, points):
    return FaceMesh(mesh.vertices, mesh.triangles, points)


@pytest.fixture(scope="module")
def face():
    return scans.face()


def errors(scan, prediction, scale=True, **options):
    return scan_errors(scan, prediction, ScanProtocol(**options), scale)


@pytest.mark.parametrize("symmetric", [False, True])
def test_the_same_face_elsewhere_scores_zero(face, symmetric):
    found = errors(face, moved(face), scale=False, symmetric=symmetric)
    assert max(found[key] for key in ERRORS) < 1e-6
    found = errors(face, moved(face, 0.9), symmetric=symmetric)
    assert max(found[key] for key in ERRORS) < 1e-6
    assert found["scale"] == pytest.approx(1 / 0.9)


def test_a_wrong_size_costs_without_scale_only(face):
    rigid = errors(face, moved(face, 0.9), scale=False)
    assert rigid["rmse"] > 0.4
    assert rigid["scale"] == 1


def test_only_both_directions_see_what_was_not_scanned(face):
    left = FaceMesh(face.vertices, face.triangles[(face.vertices[face.triangles, 0] < 45).all(1)],
                    face.landmarks)  # fmt: skip
    kept = face.vertices[:, 0] < 45
    part = error_mesh(left, kept, torch.zeros(int(kept.sum())))
    scan = FaceMesh(part.vertices.double(), part.triangles, face.landmarks)
    vertices = face.vertices + torch.tensor([0, 0, 9.0]) * (face.vertices[:, :1] > 50)
    other = FaceMesh(vertices, face.triangles, face.landmarks)
    assert errors(scan, other, scale=False)["rmse"] < 1e-5
    assert errors(scan, other, scale=False, symmetric=True)["point"] > 0.5


def test_another_order_of_vertices_and_five_or_seven_landmarks_do_not_matter(face):
    order = torch.randperm(len(face.vertices))
    triangles = order.argsort()[face.triangles]
    for points in (face.landmarks, face.landmarks[SEVEN], five_points(face.landmarks)):
        other = FaceMesh(face.vertices[order], triangles, points)
        assert errors(face, moved(other))["rmse"] < 1e-6


@pytest.mark.parametrize("names", [True, False])
def test_a_mirrored_face_is_another_face(face, names):
    assert errors(face, mirrored(face, names))["rmse"] > 0.3


def test_a_scan_d_off_on_both_sides_is_d_away():
    """Every other point half a millimetre before and behind a fine face."""
    fine = scans.face(81, 109)
    sides = torch.arange(len(fine.vertices)) % 2 - 0.5
    normals = vertex_normals(fine.vertices, fine.triangles)
    rough = FaceMesh(fine.vertices + sides[:, None] * normals, fine.triangles, fine.landmarks)
    found = errors(rough, fine)
    assert [found[key] for key in ERRORS] == pytest.approx([0.5] * 4, rel=0.02)


def test_noise_of_sigma_gives_an_rmse_of_sigma():
    fine = scans.face(81, 109)
    random = torch.from_numpy(np.random.default_rng(0).normal(0, 0.4, len(fine.vertices)))
    normals = vertex_normals(fine.vertices, fine.triangles)
    noisy = FaceMesh(fine.vertices + random[:, None] * normals, fine.triangles, fine.landmarks)
    found = errors(noisy, fine)
    assert found["rmse"] == pytest.approx(0.4, rel=0.05)
    assert found["mean"] == pytest.approx(0.4 * (2 / np.pi) ** 0.5, rel=0.05)


def test_holes_in_the_scan_do_not_matter(face):
    vertices = face.vertices.clone()
    vertices[(vertices[:, :2] - torch.tensor([30.0, 30])).norm(dim=-1) < 15] = torch.nan
    whole = cropped(face, face.nose_tip, 95.0)
    scan = FaceMesh(vertices, face.triangles, face.landmarks)
    assert len(cropped(scan, scan.nose_tip, 95.0)) < len(whole)
    assert errors(scan, moved(face))["rmse"] < 1e-6


def test_holes_are_no_part_of_the_scan_in_the_other_direction(face):
    """Those marked by NaN are those that are not there; a face before them is away from both."""
    there = (face.vertices[:, :2] - torch.tensor([30.0, 30])).norm(dim=-1) > 15
    vertices = face.vertices.clone()
    vertices[~there] = torch.nan
    part = error_mesh(face, there, torch.zeros(int(there.sum())))
    removed = FaceMesh(face.vertices[there], part.triangles, face.landmarks)
    bulging = FaceMesh(
        face.vertices + torch.tensor([0, 0, 9.0]) * ~there[:, None], face.triangles, face.landmarks
    )
    for other in (moved(face), moved(bulging)):
        found = errors(FaceMesh(vertices, face.triangles, face.landmarks), other, symmetric=True)
        assert found == pytest.approx(errors(removed, other, symmetric=True), abs=1e-9)
    assert found["point"] > 0.1
    assert errors(removed, moved(bulging))["point"] < 1e-5


def test_the_crop_is_a_ball_around_the_nose_tip(face):
    points = cropped(face, face.nose_tip, 60.0)
    distance = np.linalg.norm(face.vertices.numpy() - scans.landmarks()[30], axis=1)
    assert len(points) == (distance < 60).sum()
    far = FaceMesh(face.vertices, face.triangles, face.landmarks + 1000)
    with pytest.raises(DataError, match="of the nose tip"):
        errors(far, face)


def test_errors_agree_with_trimesh_where_nothing_moves():
    """A coarser mesh of the same face: the pose is found again, the errors are computed
    independently, over all pairs of points and triangles."""
    scan, coarse = scans.face(31, 41), scans.face(11, 14)
    found = errors(scan, coarse, scale=False)
    start = procrustes(coarse.landmarks[SEVEN], scan.landmarks[SEVEN], False)
    points = cropped(scan, scan.nose_tip, 95.0)
    mesh = ClosestPoints(coarse.vertices, coarse.triangles)
    pose = register(mesh, points, start, False).pose
    corners = pose.apply(coarse.vertices)[coarse.triangles].numpy()
    queries = np.repeat(points.numpy(), len(corners), 0)
    pairs = np.tile(corners, (len(points), 1, 1))
    there = trimesh.triangles.closest_point(pairs, queries).reshape(len(points), -1, 3)
    offsets = points.numpy()[:, None] - there
    distance = np.linalg.norm(offsets, axis=-1)
    least = distance.min(1, keepdims=True)
    assert found["point"] == pytest.approx(least.mean(), abs=1e-6)
    normals = trimesh.triangles.normals(corners)[0]
    planes = abs((offsets * normals).sum(-1))
    nearest = distance < least + 1e-9  # on an edge there are two, and either plane will do
    own = point_to_plane(points, mesh.moved(pose, points)).numpy()
    assert (own > np.where(nearest, planes, np.inf).min(1) - 1e-6).all()
    assert (own < np.where(nearest, planes, 0).max(1) + 1e-6).all()
    assert found["rmse"] == pytest.approx(np.sqrt((own**2).mean()), abs=1e-9)
    assert found["mean"] == pytest.approx(own.mean(), abs=1e-9)


class TwoPeople(ScanBenchmark):
    """Two faces of different sizes in two groups."""

    name = "two"

    def samples(self):
        return {"big": ["a"], "small": ["b", "c"]}

    def scans(self, sample):
        if sample == "c":
            raise DataError("no scan")
        return [scans.face().scaled({"a": 1.1, "b": 0.9}[sample])]

    def describe(self):
        return "Two people."

    def run(self, predict):
        raise NotImplementedError


def score(faces, **options):
    return TwoPeople(ScanProtocol(**options), progress=False).score(faces)


def test_one_scale_for_all_is_the_geometric_mean(face):
    results = score(lambda name: moved(face, 2.0), scale="global")
    assert "The one scale is 0.4975" in results.note  # sqrt(1.1 * 0.9) / 2
    same = score(lambda name: scans.face().scaled({"a": 1.1, "b": 0.9}[name] * 0.8), scale="global")
    assert same["big_rmse_mm"].value.mean < 1e-6
    own = score(lambda name: moved(face), scale="mesh")
    assert own["small_rmse_mm"].value.mean < 1e-6
    assert results["small_rmse_mm"].value.mean > 0.4
    assert score(lambda name: moved(face), scale="none")["big_rmse_mm"].value.mean > 0.4


def test_errors_are_kept_for_a_look(face):
    found, picture = compare(face, moved(face, 0.9), ScanProtocol(crop_mm=60.0), False)
    assert float(picture.error.double().mean()) == pytest.approx(found["mean"], rel=1e-5)
    assert torch.equal(picture.vertices, cropped(face, face.nose_tip, 60.0).float())
    inside = (face.vertices - face.nose_tip).norm(dim=-1) < 60
    true = face.vertices[face.triangles[inside[face.triangles].all(-1)]]
    assert torch.equal(picture.vertices[picture.triangles], true.float())
    results = score(lambda name: moved(face))
    assert set(results.meshes) == {"a", "b"}  # all that have a scan
    assert results.curves["small_rmse_mm"][-1] == [5.0, 50.0]  # the failure is in no mean, but here


def test_failures_are_counted_by_what_went_wrong(face):
    results = score(lambda name: moved(face))
    assert results.images == 3
    assert results.failures == {"scan: no scan": ["c"]}
    assert results["small_rmse_mm"].value.n == 1
    assert list(results.per_sample["small_rmse_mm"]) == ["b"]
    broken = FaceMesh(torch.full_like(face.vertices, torch.nan), face.triangles, face.landmarks)
    results = score(lambda name: broken)
    assert results["big_rmse_mm"].value.mean is None
    (reason,) = set(results.failures) - {"scan: no scan"}
    assert "NaN" in reason
    empty = FaceMesh(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.int64), face.landmarks)
    assert any("no surface" in reason for reason in score(lambda name: empty).failures)


@pytest.mark.parametrize(("unit", "factor"), [("m", 1e-3), ("cm", 0.1), ("dm", 0.01), ("um", 1e3)])
def test_wrong_units_are_named(face, unit, factor):
    for points in (face.landmarks, face.landmarks[SEVEN], five_points(face.landmarks)):
        check_unit(with_landmarks(face, points))
        with pytest.raises(DataError, match=f"give unit={unit}$"):
            check_unit(with_landmarks(face, points).scaled(factor))
    results = score(lambda name: face.scaled(factor))
    assert any(f"unit={unit}" in reason for reason in results.failures)
    with pytest.raises(DataError, match="no known unit"):
        check_unit(face.scaled(1e-6))
    with pytest.raises(DataError, match="one place"):
        check_unit(with_landmarks(face, face.landmarks * 0))


def test_landmarks_of_another_unit_or_frame_than_the_mesh_are_refused(face):
    """One by one: in centimetres, the other way round, moved aside; a mesh with holes is none."""
    wrong = [
        FaceMesh(face.vertices / 10, face.triangles, face.landmarks),
        FaceMesh(face.vertices * 10, face.triangles, face.landmarks),
        with_landmarks(face, face.landmarks + torch.tensor([0.0, 0, 60])),
    ]
    for mesh in wrong:
        with pytest.raises(DataError, match="mm beside the mesh"):
            check_unit(mesh)
        assert any("beside the mesh" in reason for reason in score(lambda name: mesh).failures)  # noqa: B023
    check_unit(with_landmarks(face, face.landmarks + 5))
    holes = face.vertices.clone()
    holes[::2] = torch.nan
    check_unit(FaceMesh(holes, face.triangles, face.landmarks))


def test_landmarks_of_different_kinds_are_refused(face):
    seven = with_landmarks(face, face.landmarks[SEVEN])
    with pytest.raises(DataError, match="seven landmarks, the other five"):
        errors(with_landmarks(face, five_points(face.landmarks)), seven)
    with pytest.raises(DataError, match="nose tip"):
        errors(seven, face)
    with pytest.raises(DataError, match="wanted 68, 7 or 5"):
        with_landmarks(face, face.landmarks[:9])


def test_meshes_of_all_formats_keep_their_vertices(tmp_path, face):
    scans.write_obj(tmp_path / "a.obj", face)
    trimesh.Trimesh(face.vertices, face.triangles, process=False).export(tmp_path / "a.ply")
    np.savez(tmp_path / "a.npz", vertices=face.vertices, triangles=face.triangles)
    for suffix, tolerance in ((".obj", 0), (".ply", 1e-5), (".npz", 0)):
        vertices, triangles = read_mesh(tmp_path / f"a{suffix}")
        torch.testing.assert_close(vertices, face.vertices, rtol=0, atol=tolerance)
        assert torch.equal(triangles, face.triangles)


def test_quads_and_other_lines_of_an_obj(tmp_path):
    path = tmp_path / "q.obj"
    path.write_text(
        "# one quad and one triangle\no thing\nv 0 0 0 0.5 0.5 0.5\nv 1 0 0 1 1 1\nv 1 1 0 1 1 1\n"
        "v 0 1 0 0 0 0\nvn 0 0 1\nvt 0 0\nf 1//1 2//1 3//1 4//1\ns off\nf 1/1/1 2/1/1 4/1/1  \n"
    )
    vertices, triangles = read_mesh(path)
    assert vertices.tolist() == [[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]]
    assert sorted(triangles.tolist()) == [[0, 1, 2], [0, 1, 3], [0, 2, 3]]
    for text in ("v 0 0 0\nf 1 2 3\n", "v 0 0\n", "", "v 0 0 0\nf -1 -2 -3\n", "v a b c\n"):
        path.write_text(text)
        with pytest.raises(DataError, match=r"q\.obj"):
            read_mesh(path)


def test_a_folder_of_meshes(tmp_path, face):
    with pytest.raises(AssetNotFoundError):
        MeshFolder(tmp_path / "none")
    with pytest.raises(DataError, match="unknown unit"):
        MeshFolder(tmp_path, "inch")
    with pytest.raises(DataError, match=r"holds no mesh \(\.obj, \.ply, \.npz\)"):
        MeshFolder(tmp_path)
    scans.write_obj(tmp_path / "x/a.obj", face.scaled(0.1))
    folder = MeshFolder(tmp_path, "cm")
    with pytest.raises(DataError, match="no predicted mesh"):
        folder("x/b")
    with pytest.raises(DataError, match="no landmarks"):
        folder("x/a")
    np.savetxt(tmp_path / "x/a.txt", face.landmarks[SEVEN] / 10)
    found = folder("x/a")
    torch.testing.assert_close(found.vertices, face.vertices)
    torch.testing.assert_close(found.landmarks, face.landmarks[SEVEN])
    (tmp_path / "x/a.txt").unlink()
    (tmp_path / "landmark_vertices.txt").write_text("\n".join(map(str, range(7))))
    torch.testing.assert_close(MeshFolder(tmp_path, "cm")("x/a").landmarks, face.vertices[:7])
    for text, reason in (("nothing", r"vertices \(0, 0\)"), ("v 0 0 0\nf 1 2 3\n", "not among 1")):
        (tmp_path / "x/a.obj").write_text(text)
        with pytest.raises(DataError, match=rf"cannot be read: the \.obj.*{reason}") as caught:
            folder("x/a")
        assert str(tmp_path) not in str(caught.value)  # so that equal failures read equal


def but(face, **changes):
    """A copy with other tensors; their shapes are not checked."""
    other = copy(face)
    for name, value in changes.items():
        setattr(other, name, value)
    return other


def test_what_is_not_one_face_per_image_is_refused(tmp_path, face):
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    np.savetxt(tmp_path / "a.txt", np.random.default_rng(0).uniform(10, 30, (68, 2)))
    one = torch.ones(1, 1)
    vertices = face.vertices.float()[None, None]
    good = Reconstruction(
        vertices=vertices,
        neutral=vertices,
        triangles=face.triangles,
        uv=torch.zeros(vertices.shape[2], 2),
        camera=WeakPerspectiveCamera(frontal(one).expand(1, 1, 3, 3), one, torch.zeros(1, 1, 2)),
        landmarks=torch.zeros(1, 1, 68, 2),
        albedo_map=torch.zeros(1, 1, 3, 2, 2),
        light=torch.zeros(1, 1, 9, 1),
    )
    views = Views(FaceFinder(tmp_path), 32)

    def reason(face):
        found = views.predict(lambda images: face, [("s", [("a", tmp_path / "a.png")])])["s"]
        return str(found) if isinstance(found, DataError) else ""

    assert reason(good) == ""
    parts = [good.vertices[:, :, 1:], good.landmarks[..., :5, :], vertices[:, :, :0]]
    two = {name: torch.cat([getattr(good, name)] * 2) for name in ("vertices", "neutral")}
    assert "neutral of shape" in reason(but(good, vertices=parts[0]))
    assert "wanted (1, 1, 68, 2)" in reason(but(good, landmarks=parts[1]))
    assert "without vertices" in reason(but(good, vertices=parts[2], neutral=parts[2]))
    assert "vertices of shape (2, 1," in reason(but(good, **two))
    assert "a tuple, wanted a Reconstruction" in reason((vertices, face.triangles))


def test_eyes_that_are_in_one_place_from_the_side_are_told_apart_by_other_images():
    face = scans.face(61, 81)
    rows = torch.cdist(face.landmarks, face.vertices).argmin(1)

    def seen(yaw):
        turn = torch.from_numpy(Rotation.from_euler("y", yaw, degrees=True).as_matrix())
        rotation = frontal(face.vertices) @ turn
        one = torch.ones(1, 1)
        camera = WeakPerspectiveCamera(
            rotation.float()[None, None], 0.9 * one, torch.full((1, 1, 2), 128.0)
        )
        vertices = face.vertices.float()[None, None]
        return Reconstruction(
            vertices=vertices,
            neutral=2 * vertices,
            triangles=face.triangles,
            uv=torch.zeros(vertices.shape[2], 2),
            camera=camera,
            landmarks=camera.project(vertices[..., rows, :])[0],
            albedo_map=torch.zeros(1, 1, 3, 2, 2),
            light=torch.zeros(1, 1, 9, 1),
        )

    bad = replace(seen(0), vertices=face.vertices.float()[None, None] * torch.nan)
    views = {"side": seen(88), "front": seen(0), "other": seen(-60), "bad": bad}
    found = meshes_of([*views.items(), ("none", DataError("no face"))])
    for name in ("side", "front", "other"):
        distance = (found[name].landmarks - face.vertices[rows].float()).norm(dim=-1)
        assert distance[36:48].max() < 5  # a vertex or two
        check_unit(found[name])
    assert "finite" in str(found["bad"])
    assert str(found["none"]) == "no face"
    neutral = meshes_of(views.items(), neutral=True)["side"]
    torch.testing.assert_close(neutral.vertices, 2 * face.vertices.float())


def test_landmark_vertices_are_found_from_several_views_and_in_front():
    random = np.random.default_rng(0)
    vertices = torch.from_numpy(random.uniform(-100, 100, (500, 3))).float()
    rows = torch.from_numpy(random.permutation(500)[:68])
    turns = torch.from_numpy(Rotation.from_rotvec(random.normal(0, 0.4, (4, 3))).as_matrix())
    seen = (vertices @ turns.float().mT)[..., :2]
    assert torch.equal(landmark_vertices(seen, seen[:, rows], vertices[:, 2]), rows)
    back = torch.cat([vertices, vertices * torch.tensor([1.0, 1, 0]) - 300 * torch.eye(3)[2]])
    seen = back[None, :, :2]  # from the front alone, the copies at the back are in the same place
    assert (landmark_vertices(seen, seen[:, rows], back[:, 2]) < 500).all()


@pytest.mark.parametrize("wrong", [{"crop_mm": 0.0}, {"crop_mm": float("nan")}, {"trim": 1.0}])
def test_impossible_protocols_are_refused(wrong):
    with pytest.raises(DataError, match="wanted a crop above 0"):
        ScanProtocol(**wrong)


def test_different_choices_of_as_many_samples_are_different_protocols():
    assert listed(["b", "a"], "scans") == listed(["a", "b"], "scans").replace("a, b", "b, a")
    assert listed(["a", "b"], "scans").startswith("2 named scans (a, b; list ")
    assert listed(["a", "b", "c", "d"], "x") != listed(["a", "b", "c", "e"], "x")
    assert shown([]) == set()
    assert shown(["a"]) == {"a"}
    assert shown(list("abcdef")) == {"a", "c", "e"}
