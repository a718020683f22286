"""The jaw that slides along the outline, against rendered silhouettes."""

from math import radians
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_fill_holes
from scipy.spatial import KDTree

from core.camera import PerspectiveCamera, WeakPerspectiveCamera, frontal
from core.face_models import FaceModel, load_face_model
from core.face_models.contour import CANDIDATES, sliding_jaw
from core.landmarks import mirror
from core.rasterize import rasterize
from core.rotation import rotation_from_euler
from tests.fakes.face_model import face_model_arrays

ICT = Path(__file__).parents[2] / "shared/samples/ict_facekit/ict_face.npz"
SIZE = 224
SCALE = SIZE / 260  # pixels per millimetre


@pytest.fixture(scope="module")
def head():
    return load_face_model()


@pytest.fixture(scope="module")
def jaw(head):
    return sliding_jaw(head)


def rotation(yaw, pitch=0.0, roll=0.0):
    angles = [torch.tensor([radians(angle)]) for angle in (pitch, yaw, roll)]
    return frontal(angles[0]) @ rotation_from_euler(*angles)


def camera(yaw, pitch=0.0, roll=0.0):
    turn = rotation(yaw, pitch, roll)
    return WeakPerspectiveCamera(turn, torch.tensor([SCALE]), torch.full((1, 2), SIZE / 2))


def cheeks(head):
    """The triangles of the face but for nose and mouth, which may hide its outline."""
    kept = head.region("face")
    for name in ("nose", "lips", "mouth_interior"):
        kept = kept & ~head.region(name)
    return head.triangles[kept[head.triangles].all(-1)]


def from_outline(points, vertices, triangles, view):
    """Pixels from each point to the outline of what these triangles cover, holes filled."""
    clip = view.clip(vertices, (SIZE, SIZE))
    covered = rasterize(clip, triangles, (SIZE, SIZE), subpixel=None).triangle_index[0] >= 0
    mask = binary_fill_holes(covered.numpy())
    rows, columns = np.nonzero(mask[:, 1:] != mask[:, :-1])
    outline = [np.stack([columns + 1, rows + 0.5], -1)]
    rows, columns = np.nonzero(mask[1:] != mask[:-1])
    outline.append(np.stack([columns + 0.5, rows + 1], -1))
    points = view.project(points)[0][0].numpy()
    return KDTree(np.concatenate(outline)).query(points)[0]


def far(yaw):
    return slice(0, 8) if yaw > 0 else slice(9, 17)


def near(yaw):
    return slice(8, 17) if yaw > 0 else slice(0, 9)


@pytest.mark.parametrize("yaw", [-60, -45, -30, -15, 15, 30, 45, 60])
def test_the_far_side_is_the_outline_and_the_near_side_stays(head, jaw, yaw):
    view, vertices = camera(yaw), head.mean[None]
    points, fixed = jaw(vertices, view), head.landmarks(vertices)
    distance = from_outline(points, vertices, cheeks(head), view)
    # at 60 degrees the outline of the cheek reaches the mouth's corner, where candidates end
    assert distance[far(yaw)].max() < (1.5 if abs(yaw) < 60 else 5)
    assert np.median(distance[far(yaw)]) < 0.7
    assert torch.equal(points[:, near(yaw)], fixed[:, near(yaw)])
    assert torch.equal(points[:, 17:], fixed[:, 17:])
    if abs(yaw) >= 30:  # and the model's own landmarks are far from it
        assert from_outline(fixed, vertices, cheeks(head), view)[far(yaw)].max() > 9


def test_a_frontal_face_keeps_its_landmarks(head, jaw):
    moved = jaw(head.mean[None], camera(0)) - head.landmarks(head.mean[None])
    assert moved.norm(dim=-1).max() < 0.5
    assert (moved[:, 17:] == 0).all()


@pytest.mark.parametrize("pitch", [-20, 20])
def test_the_outline_of_people_who_talk_and_nod(head, jaw, pitch):
    """Random identities with an open mouth; the points at the chin move least well with pitch."""
    identity = torch.randn(1, 100, generator=torch.Generator().manual_seed(1))
    expression = torch.zeros(1, 50)
    expression[0, head.expression_names.index("jawOpen")] = 0.5
    vertices = head.shape(identity, expression)
    for yaw in (-35.0, 35.0):
        view = camera(yaw, pitch)
        distance = from_outline(jaw(vertices, view), vertices, cheeks(head), view)[far(yaw)]
        assert np.sort(distance)[:-2].max() < 1.5
        assert distance.max() < 4


def test_a_near_camera_sees_another_outline(head, jaw):
    """Perspective: at 400 mm the outline lies farther to the front than from afar."""
    vertices = head.mean[None]
    turn = rotation(30)
    near_by = PerspectiveCamera(
        turn,
        torch.tensor([[0.0, 0, 400]]),
        torch.tensor([400 * SCALE]),
        torch.full((1, 2), SIZE / 2),
    )
    distance = from_outline(jaw(vertices, near_by), vertices, cheeks(head), near_by)
    assert distance[far(30)].max() < 1.5
    z = jaw(vertices, near_by)[0, :7, 2] - jaw(vertices, camera(30))[0, :7, 2]
    assert (z >= 0).all()
    assert z.mean() > 3


@pytest.mark.parametrize("yaw", [20.0, 60.0])
def test_a_mirrored_pose_mirrors_the_points(head, jaw, yaw):
    vertices = head.mean[None]
    left, right = (view.project(jaw(vertices, view))[0] for view in (camera(yaw), camera(-yaw)))
    torch.testing.assert_close(mirror(left, SIZE), right, atol=0.1, rtol=0)


def test_roll_changes_nothing(head, jaw):
    """The image turned is the same face: the same points of the head are chosen."""
    vertices = head.mean[None]
    turn = torch.tensor([radians(70.0)])
    c, s, zero, one = turn.cos(), turn.sin(), torch.zeros(1), torch.ones(1)
    in_image = torch.stack([c, -s, zero, s, c, zero, zero, zero, one], -1).unflatten(-1, (3, 3))
    view = camera(40, 10)
    rolled = WeakPerspectiveCamera(in_image @ view.rotation, view.scale, view.translation)
    assert torch.equal(jaw(vertices, view), jaw(vertices, rolled))


def test_each_landmark_is_the_candidate_farthest_out_with_loops(face_model):
    jaw = sliding_jaw(face_model)
    turns = torch.cat([rotation(*angles) for angles in ((25, 10, 0), (-70, -20, 0), (5, 0, 0))])
    view = WeakPerspectiveCamera(turns, torch.full((3,), 2.0), torch.zeros(3, 2))
    shapes = face_model.shape(torch.randn(3, 8), torch.randn(3, 5))
    found = jaw(shapes, view)
    for image in range(3):
        candidates = jaw.points(shapes[image])[68:].unflatten(0, (17, CANDIDATES))
        for point in range(17):
            # without roll the head's upright axis is the image's: outwards is along x
            x = candidates[point] @ turns[image, 0]
            best = {0: x.argmin(), 1: x.argmax()}[int(point > 8)]
            wanted = face_model.landmarks(shapes[image])[8] if point == 8 else None
            wanted = candidates[point, best] if wanted is None else wanted
            torch.testing.assert_close(found[image, point], wanted)


def test_candidates_begin_at_the_landmark_and_stay_on_its_side(head, jaw):
    fixed, points = head.landmarks(head.mean), jaw.points(head.mean)
    candidates = points[68:].unflatten(0, (17, CANDIDATES))
    torch.testing.assert_close(points[:68], fixed)
    torch.testing.assert_close(candidates[:, 0], fixed[:17])
    assert (candidates[:8, :, 0] < 0).all()
    assert (candidates[9:, :, 0] > 0).all()
    steps = candidates.diff(dim=1).norm(dim=-1)[[i for i in range(17) if i != 8]]
    assert steps.max() < 12  # millimetres
    assert (candidates[..., 1] - fixed[:17, None, 1]).abs().max() < 1e-3  # level on a straight head


def test_without_the_mesh_the_landmarks_are_the_same(head, jaw):
    identity, expression = torch.randn(2, 3, 100), 0.3 * torch.rand(2, 3, 50)
    turns = torch.stack([rotation(yaw)[0] for yaw in (-50, -20, 0, 5, 30, 60)]).view(2, 3, 3, 3)
    view = WeakPerspectiveCamera(turns, torch.full((2, 3), SCALE), torch.zeros(2, 3, 2))
    found = jaw.landmark_shape(identity, expression, view)
    wanted = jaw(head.shape(identity, expression), view)
    assert found.shape == (2, 3, 68, 3)
    torch.testing.assert_close(found, wanted, atol=1e-3, rtol=0)


def test_gradients_reach_the_vertices_and_the_coefficients(head, jaw):
    vertices = head.mean[None].clone().requires_grad_()
    points = jaw(vertices, camera(50))
    (gradient,) = torch.autograd.grad(points[0, 3, 2], vertices)
    index = jaw.vertices[68:].unflatten(0, (17, -1))[3]
    touched = gradient.abs().sum(-1)[0].nonzero()[:, 0]
    assert any(set(touched.tolist()) <= set(corners.tolist()) for corners in index)
    torch.testing.assert_close(gradient.sum((0, 1)), torch.tensor([0.0, 0, 1]))
    identity = torch.zeros(1, 100, requires_grad=True)
    jaw.landmark_shape(identity, torch.zeros(1, 50), camera(50))[:, :8].sum().backward()
    assert identity.grad.norm() > 0


def test_a_model_may_bring_its_own_candidates():
    arrays = face_model_arrays()
    vertices = np.arange(17 * 2 * 3).reshape(17, 2, 3)
    arrays |= {"contour_vertices": vertices, "contour_weights": np.full((17, 2, 3), 1 / 3, "f4")}
    model = FaceModel(arrays)
    found = sliding_jaw(model).points(model.mean)[68:]
    torch.testing.assert_close(found, model.mean[vertices.reshape(-1, 3)].mean(1))


def test_a_mesh_without_cheeks_keeps_its_landmarks():
    arrays = face_model_arrays()
    arrays["triangles"] = arrays["triangles"][:1]
    model = FaceModel(arrays)
    assert torch.equal(
        sliding_jaw(model)(model.mean[None], camera(45)), model.landmarks(model.mean[None])
    )


def test_checkpoints_do_not_store_it(jaw):
    assert jaw.state_dict() == {}


@pytest.mark.skipif(not ICT.is_file(), reason="the real ICT-FaceKit is not here")
@pytest.mark.parametrize("yaw", [-30, 30, 45])
def test_the_outline_of_ict(yaw):
    with np.load(ICT) as file:
        vertices, faces = file["vertices"] * 10, file["faces"].astype(np.int64)
        landmarks = file["landmarks68_jaw"].astype(np.int64)
    regions = ("region_", "contour_")  # the fake's, of its own 525 vertices
    arrays = {k: v for k, v in face_model_arrays().items() if not k.startswith(regions)}
    count, middle = len(vertices), vertices.mean(0)
    empty = np.zeros((1, count, 3), np.float32)
    arrays |= {key: empty for key in ("identity_basis", "expression_basis", "albedo_basis")}
    arrays |= {"mean": (vertices - middle).astype(np.float32), "triangles": faces}
    arrays |= {"albedo_mean": empty[0], "uv": empty[0, :, :2], "mirror": np.arange(count)}
    arrays |= {"region_face": np.ones(count, bool), "expression_names": np.array(["none"])}
    arrays |= {"landmark_vertices": np.repeat(landmarks[:, None], 3, 1)}
    model = FaceModel(arrays | {"landmark_weights": np.tile(np.array([1, 0, 0], "f4"), (68, 1))})
    view = camera(yaw)
    points = sliding_jaw(model)(model.mean[None], view)
    distance = from_outline(points, model.mean[None], model.triangles, view)
    assert np.sort(distance[far(yaw)])[:-1].max() < 1  # the neck is behind the point at the chin
