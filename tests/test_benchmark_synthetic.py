import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.base import Metric, Results, Summary
from benchmarks.synthetic_faces import SyntheticFaces, apparent_rotation, mean_face
from core.camera import PerspectiveCamera, WeakPerspectiveCamera, frontal
from core.contracts import Reconstruction
from core.crop import face_crop
from core.errors import AssetNotFoundError, DataError
from core.lighting import shade_points
from core.normals import vertex_normals
from core.rotation import euler_from_rotation, rotation_from_euler
from core.truth import load_truth
from core.uv import bake, uv_grid
from tests.fakes import truth

SIZE = 64
NAMES = [f"id{person:05}/video/clip/{frame:06}" for person in range(2) for frame in range(3)]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return truth.write(tmp_path_factory.mktemp("synthetic"))


def true_face(root, name, size=SIZE):
    """What a perfect method returns for a frame, computed apart from the benchmark."""
    known = load_truth(root, name)
    points = torch.from_numpy(np.load((root / "landmarks" / name).with_suffix(".npy")))
    matrix = face_crop(points[:, :2], points[:, 2], size)
    camera = known.camera.crop(matrix[0, 0], matrix[:2, 2])
    vertices = known.vertices
    return Reconstruction(
        vertices=vertices[None, None],
        neutral=known.neutral[None, None],
        triangles=known.model.triangles,
        uv=known.model.uv,
        camera=camera.map(lambda value: value[None, None]),
        landmarks=camera.project(known.model.landmarks(vertices))[0][None, None],
        albedo_map=known.albedo_map[None, None],
        light=known.light[None, None],
    )


class Oracle:
    """Predicts the truth, in the order of the frames, changed by a function."""

    def __init__(self, root, change=lambda face: face, names=NAMES):
        self.faces = [change(true_face(root, name)) for name in names]
        self.position = 0

    def __call__(self, images):
        faces = self.faces[self.position : self.position + len(images)]
        self.position += len(images)
        tensors = ["vertices", "neutral", "landmarks", "albedo_map", "light"]
        cameras = [vars(face.camera) for face in faces]
        camera = {key: torch.cat([c[key] for c in cameras]) for key in cameras[0]}
        parts = {key: torch.cat([getattr(face, key) for face in faces]) for key in tensors}
        return replace(faces[0], camera=type(faces[0].camera)(**camera), **parts)


def run(root, change=lambda face: face, **options):
    options = {"image_size": SIZE, "batch_size": 4, "progress": False} | options
    return SyntheticFaces(root, **options).run(Oracle(root, change))


@pytest.fixture(scope="module")
def perfect(root):
    return run(root)


def test_the_truth_scores_zero_and_beats_the_mean_face(perfect):
    """Also where the covered half of frame 1 is dark in the image and not in the drawing."""
    results = perfect
    assert results.images == 6
    assert not results.failures
    for metric in results.metrics:
        assert metric.value.n == metric.baselines["mean face"].n > 0, metric.name
        if metric.name == "coverage_percent":
            assert metric.value.mean > 98
        elif metric.name.startswith("photometric"):  # the crop was resampled
            assert metric.value.mean < 5
            assert metric.baselines["mean face"].mean > 20
        else:
            assert metric.value.mean < 0.05, metric.name
            assert metric.baselines["mean face"].mean > 20 * metric.value.mean, metric.name


def shifted(face):
    shift = torch.tensor([[[3.0, 4.0]]])
    camera = face.camera.crop(torch.ones(1, 1), shift)
    return replace(face, landmarks=face.landmarks + shift[:, :, None], camera=camera)


def test_landmarks_5_px_off_give_5_px_over_the_box(root):
    boxes = []
    for name in NAMES:
        points = true_face(root, name).landmarks[0, 0]
        boxes.append(float((points.amax(0) - points.amin(0)).prod().sqrt()))
    results = run(root, shifted)
    expected = np.mean([100 * 5 / box for box in boxes])
    assert results["nme_percent"].value.mean == pytest.approx(expected, rel=1e-4)
    assert results["shape_mm"].value.mean < 0.01
    assert results["photometric_255"].value.mean > 4
    assert results["coverage_percent"].value.mean < 98


def test_yaw_bins_share_out_the_frames(perfect):
    results = perfect
    for bins, whole in (
        ("nme_to_{}_percent", "nme_percent"),
        ("pose_to_{}_degrees", "pose_degrees"),
    ):
        counts = [results[bins.format(edge)].value.n for edge in (30, 60, 90)]
        assert counts == [2, 2, 2]  # yaw is -69, -31 and 8 degrees
        assert sum(counts) == results[whole].value.n


def test_pose_error_is_the_angle_turned(root):
    turn = rotation_from_euler(*torch.deg2rad(torch.tensor([0.0, 0.0, 10.0])))

    def rolled(face):
        return replace(face, camera=replace(face.camera, rotation=face.camera.rotation @ turn))

    results = run(root, rolled)
    assert results["pose_degrees"].value.mean == pytest.approx(10, abs=1e-2)
    assert results["roll_degrees"].value.mean == pytest.approx(10, abs=1e-2)
    assert results["yaw_degrees"].value.mean < 0.01


def test_shape_errors_by_alignment_and_expression(root):
    larger = run(root, lambda face: replace(face, vertices=1.1 * face.vertices))
    assert larger["shape_mm"].value.mean < 0.01
    assert larger["shape_rigid_mm"].value.mean > 3
    assert larger["neutral_rigid_mm"].value.mean < 0.01
    results = run(root, lambda face: replace(face, vertices=face.neutral))
    assert results["shape_mm"].value.mean > 0.5
    assert results["neutral_mm"].value.mean < 0.01
    region = load_truth(root, NAMES[0]).model.region("face")
    assert len(results.meshes) == 3
    for name, mesh in results.meshes.items():  # as the figures are
        error = results.per_sample["shape_mm"][name]
        assert float(mesh.error[region].mean()) == pytest.approx(error, rel=1e-4)
        assert mesh.error[~region].isnan().all()
    assert results.curves["shape_mm"][-1] == [5.0, 100.0]


def test_shape_counts_only_the_region_of_the_face(root):
    region = load_truth(root, NAMES[0]).model.region("face")
    outside = 30 * (~region).float()[:, None]
    results = run(root, lambda face: replace(face, vertices=face.vertices + outside))
    assert results["shape_mm"].value.mean < 0.01


def test_albedo_is_compared_up_to_a_gain_and_raw(root, perfect):
    results = run(
        root, lambda face: replace(face, albedo_map=face.albedo_map / 2, light=2 * face.light)
    )
    assert results["albedo_255"].value.mean < 0.05
    assert results["albedo_raw_255"].value.mean > 20
    assert results["photometric_255"].value.mean == pytest.approx(
        perfect["photometric_255"].value.mean, abs=0.01
    )


@pytest.mark.parametrize(
    ("mean", "other", "shown"), [(1.0, 4.0, "25 %"), (-1.0, 4.0, "–"), (1.0, -4.0, "–")]
)
def test_only_what_cannot_be_negative_is_shown_as_a_share(perfect, mean, other, shown):
    metric = perfect.metrics[0]
    value, mean_face = replace(metric.value, mean=mean), replace(metric.value, mean=other)
    metric = replace(metric, value=value, baselines={"mean face": mean_face})
    table = replace(perfect, metrics=[metric]).to_markdown()
    assert f"| {shown} |\n" in table


def test_light_in_the_reflectance_is_found(root):
    """A third of the logarithm of each image's true light, taken for colour; or only grey."""
    model = load_truth(root, NAMES[0]).model
    grid = uv_grid(model.uv, model.triangles, truth.TEXTURE)

    def shaded(face):
        normals = vertex_normals(face.camera.position(face.vertices), model.triangles)
        light = shade_points(normals, face.light).mean(-1, keepdim=True).clamp(min=0.02)
        texture = bake(light.pow(1 / 3), grid, model.triangles)
        return replace(face, albedo_map=face.albedo_map * texture)

    lit = run(root, shaded)
    assert lit["shading_percent"].value.mean > 95
    assert lit["shading_power_percent"].value.mean == pytest.approx(100 / 3, abs=2)
    grey = run(root, lambda face: replace(face, albedo_map=0 * face.albedo_map + 0.5))
    assert abs(grey["shading_percent"].value.mean) < 50
    assert abs(grey["shading_power_percent"].value.mean) < 1e-3


def test_reflectance_of_the_side_turned_away_is_not_compared(root):
    """Frame 0 has a yaw of -69 degrees: the subject's left side, u > 0.5, is hidden."""

    def score(columns):
        def blackened(face):
            albedo = face.albedo_map.clone()
            albedo[..., columns] = 0
            return replace(face, albedo_map=albedo)

        benchmark = SyntheticFaces(root, image_size=SIZE, progress=False, every=3)
        results = benchmark.run(Oracle(root, blackened, [NAMES[0], NAMES[3]]))
        assert results.images == 2
        return results["albedo_raw_255"].value.mean

    quarter = truth.TEXTURE // 4
    assert score(slice(-quarter, None)) < 0.05
    assert score(slice(None, quarter)) > 5


def test_a_prediction_of_nan_is_a_failure_and_not_a_score(root):
    calls = iter(range(100))

    def sometimes(face):
        vertices = face.vertices.clone()
        if next(calls) == 1:
            vertices[0, 0, 7, 1] = torch.nan
        return replace(face, vertices=vertices)

    results = run(root, sometimes)
    assert results.failures == {"the prediction is not finite": [NAMES[1]]}
    of_all = [metric for metric in results.metrics if "_to_" not in metric.name]
    assert {metric.value.n for metric in of_all} == {5}
    assert results["shape_mm"].baselines["mean face"].n == 6
    assert results["shape_mm"].value.mean < 0.01
    assert NAMES[1] in results.to_markdown()


def test_a_face_beside_the_image_and_a_collapsed_one_are_failures(root):
    def beside(face):
        return replace(face, camera=face.camera.crop(torch.ones(1, 1), torch.full((1, 1, 2), 1e3)))

    results = run(root, beside)
    assert results.failures == {"nothing of the face is drawn where it is seen": NAMES}
    assert results["photometric_255"].value == Summary(None, None, None, 0)
    assert results["shape_mm"].value.n == 6
    results = run(root, lambda face: replace(face, vertices=0 * face.vertices))
    assert results.failures["shape: the vertices cannot be aligned"] == NAMES
    assert results["shape_mm"].value.n == 0
    assert results["neutral_mm"].value.n == 6


def test_another_topology_is_scored_without_shape(root):
    def other(face):  # the same surface with other texture coordinates: not the same vertices
        return replace(face, uv=face.uv.roll(1, 0))

    results = run(root, other)
    assert "Shape and reflectance are not scored" in results.protocol
    assert results["shape_mm"].value.n == results["albedo_255"].value.n == 0
    assert results["nme_percent"].value.n == results["photometric_255"].value.n == 6


def test_a_method_may_draw_only_a_part_of_the_mesh(root):
    results = run(root, lambda face: replace(face, triangles=face.triangles[::2]))
    assert results["shape_mm"].value.n == 6
    assert results["shape_mm"].value.mean == pytest.approx(0, abs=1e-3)


def test_the_mean_face_obeys_the_crop(face_model):
    face = mean_face(face_model, 96, 1.5, count=2)
    points = face.landmarks
    assert points.shape == (2, 1, 68, 2)
    matrix = face_crop(points[0, 0], torch.ones(68), 96, 1.5)
    torch.testing.assert_close(matrix, torch.eye(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(face.camera.head_rotation[0, 0], torch.eye(3))


def test_apparent_rotation_looks_along_the_line_of_sight():
    head = rotation_from_euler(*torch.tensor([[0.2], [0.4], [-0.3]]))
    weak = WeakPerspectiveCamera(frontal(head) @ head, torch.ones(1), torch.zeros(1, 2))
    torch.testing.assert_close(apparent_rotation(weak), head)

    def camera(*translation):
        placed = torch.tensor([translation])
        focal, centre = torch.full((1,), 500.0), torch.zeros(1, 2)
        return PerspectiveCamera(frontal(head)[None], placed, focal, centre)

    torch.testing.assert_close(apparent_rotation(camera(0.0, 0.0, 500.0)), torch.eye(3)[None])
    pitch, yaw, roll = euler_from_rotation(apparent_rotation(camera(500.0, 0.0, 500.0)))
    assert [float(x) for x in (pitch, yaw, roll)] == pytest.approx([0, -math.pi / 4, 0], abs=1e-6)
    tilted = apparent_rotation(camera(300.0, -200.0, 500.0))
    torch.testing.assert_close(tilted @ tilted.mT, torch.eye(3)[None])
    assert torch.linalg.det(tilted)[0] == pytest.approx(1)


def test_a_weak_perspective_fit_of_a_distant_head_has_no_pose_error(root):
    """The apparent rotation is what makes an uncalibrated crop's pose comparable."""

    def weak(face):
        rotation = frontal(face.vertices) @ apparent_rotation(face.camera)
        batch = torch.ones(1, 1)
        camera = WeakPerspectiveCamera(
            rotation, batch * SIZE / 250, torch.full((1, 1, 2), SIZE / 2)
        )
        return replace(face, camera=camera)

    assert run(root, weak)["pose_degrees"].value.mean < 0.05


def test_subsets_are_seeded_and_counted(root):
    def names(**options):
        benchmark = SyntheticFaces(root, image_size=SIZE, progress=False, **options)
        found, undetected = benchmark._frames()
        assert (found, undetected) == (NAMES, 2)
        return benchmark._subset(found)

    assert names(max_frames=100) == NAMES
    assert names(max_frames=4, seed=1) == names(max_frames=4, seed=1) != names(max_frames=4, seed=2)
    assert len(names(max_frames=4)) == 4


def test_broken_files_are_counted_and_missing_ones_stop(root, tmp_path):
    copy = truth.write(tmp_path / "set", identities=1)
    clip = "id00000/video/clip"
    (copy / "frames" / clip / "000000.png").write_bytes(b"no image")
    np.save(copy / "landmarks" / clip / "000001.npy", np.full((68, 3), np.nan, np.float32))
    Image.new("L", (10, 10)).save(copy / "masks" / clip / "000002.png")
    benchmark = SyntheticFaces(copy, image_size=SIZE, progress=False)
    with pytest.raises(DataError, match=r"no frame .* could be read") as caught:
        benchmark.run(Oracle(copy, names=[]))
    for reason in ("unreadable png", "landmarks", "mask of"):
        assert reason in str(caught.value)


def test_the_number_of_frames_is_checked(root, tmp_path):
    copy = truth.write(tmp_path / "set", identities=1)
    benchmark = SyntheticFaces(copy, image_size=SIZE, progress=False)
    settings = {"videos": 1, "clips": 1, "frames": 4}
    manifest = copy / "manifest.json"
    manifest.write_text(json.dumps({"hash": "0123456789ab", "settings": settings}))
    assert "of set 01234567." in benchmark.run(Oracle(copy, names=NAMES[:3])).protocol
    manifest.write_text(json.dumps({"settings": settings | {"frames": 5}}))
    with pytest.raises(DataError, match="holds 4 frames, wanted 5"):
        benchmark.run(Oracle(copy, names=[]))
    manifest.unlink()
    for path in (copy / "frames" / "id00000/video/clip").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="holds 0 frames, wanted some"):
        benchmark.run(Oracle(copy, names=[]))
    with pytest.raises(AssetNotFoundError, match="split 'val'"):
        SyntheticFaces(root, split="val").run(Oracle(root))


def test_a_wrong_number_of_faces_is_an_error(root):
    with pytest.raises(DataError, match=r"batch shape \(4, 1\)"):
        SyntheticFaces(root, image_size=SIZE, batch_size=4, progress=False).run(
            lambda images: true_face(root, NAMES[0])
        )


def test_summary_agrees_with_numpy_and_leaves_out_nan():
    values = torch.tensor([3.0, torch.nan, 1.0, 10.0, 4.0])
    known = np.array([3.0, 1.0, 10.0, 4.0])
    summary = Summary.of(values)
    assert summary.n == 4
    assert (summary.mean, summary.std) == pytest.approx((known.mean(), known.std()))
    assert summary.median == np.median(known)


def test_results_as_files(tmp_path):
    metric = Metric(
        "nme_percent",
        "%",
        "landmarks",
        Summary(2.5, 1.0, 2.25, 4),
        {"mean": Summary(10.0, 2.0, 9.0, 5)},
    )
    empty = Metric("shape_mm", "mm", "shape", Summary(None, None, None, 0), {})
    results = Results("mine", "How.", [metric, empty], 5, {"lost": ["a", "b"]}).with_run(step=7)
    assert results.means() == {"nme_percent": 2.5}
    json_path, table_path = results.save(tmp_path / "benchmarks")
    content = json.loads(json_path.read_text())
    assert json_path.name == "mine.json"
    assert content["metrics"]["nme_percent"]["value"]["mean"] == 2.5
    assert content["metrics"]["nme_percent"]["baselines"]["mean"]["n"] == 5
    assert content["run"] == {"step": 7}
    text = table_path.read_text()
    assert "| 2.50 ± 1.00 | 2.25 | 4 | 10.0 ± 2.0 | 25 % |" in text
    assert "| – | – | 0 |" in text
    assert "How." in text
    assert "lost: 2 (a, b)" in text
    with pytest.raises(KeyError, match="nme_percent"):
        results["nme"]


def test_a_method_sees_other_frames_of_the_clip_and_is_scored_on_the_first(root):
    alone: list[torch.Tensor] = []
    pairs: list[torch.Tensor] = []
    oracle = Oracle(root)

    def one(images):
        alone.append(images)
        return Oracle(root)(images)

    def two(images):
        """The truth of the first frame, somebody else in the second."""
        pairs.append(images)
        face = oracle(images)
        tensors = ["vertices", "neutral", "landmarks", "albedo_map", "light"]
        parts = {key: getattr(face, key) for key in tensors}
        doubled = {key: torch.cat([v, v.roll(1, 0) + 1], 1) for key, v in parts.items()}
        camera = face.camera.map(lambda value: value.expand(-1, 2, *value.shape[2:]))
        return replace(face, camera=camera, **doubled)

    options = {"image_size": SIZE, "batch_size": 6, "progress": False}
    SyntheticFaces(root, **options).run(one)
    results = SyntheticFaces(root, frames=2, **options).run(two)
    assert results.benchmark == "synthetic_2_frames"
    assert results["shape_mm"].value.mean < 0.05
    assert results["nme_percent"].value.mean < 0.05
    assert torch.equal(pairs[0][:, :1], alone[0])
    for person in (slice(0, 3), slice(3, 6)):  # of three frames the next but one, in a ring
        own = alone[0][person, 0]
        assert torch.equal(pairs[0][person, 1], own.roll(-2, 0))
    with pytest.raises(DataError, match="frames is 0"):
        SyntheticFaces(root, frames=0)
