"""The closed-form pose: known affines, gradients, degenerate sets, and the camera it makes."""

import pytest
import torch

from core.affine_pose import (
    AffineCamera,
    affine_pose,
    nearest_rotation,
    scaled_rotation,
    similarity_pose,
)
from core.camera import WeakPerspectiveCamera, frontal
from core.rotation import rotation_angle, rotation_from_euler

pytestmark = pytest.mark.usefixtures("one_thread")


def landmarks(face_model, count: int = 6) -> torch.Tensor:
    """Of faces of some people, millimetres, their origin where the model has it."""
    numbers = torch.randn(count, len(face_model.identity_basis))
    return face_model.landmarks(face_model.shape(numbers))


def some_pose(count: int = 6, affine: float = 0.2, kind=torch.float32) -> torch.Tensor:
    """Scaled rotations, sheared and stretched by about a fifth, at pixels of an image of 256."""
    angles = torch.rand(3, count, dtype=torch.float64) * 2 - 1
    rotation = frontal(angles) @ rotation_from_euler(*angles)
    linear = 1.3 * (rotation + affine * torch.randn(count, 3, 3))
    return torch.cat([linear, 128 + 20 * torch.randn(count, 3, 1)], -1).to(kind)


def posed(pose: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    return points @ pose[..., :3].mT + pose[..., None, :, 3]


def test_a_known_affine_is_found_to_a_millionth(face_model):
    points, pose = landmarks(face_model).double(), some_pose(kind=torch.float64)
    found = affine_pose(points, posed(pose, points))
    torch.testing.assert_close(found, pose, rtol=0, atol=1e-6)


def test_in_single_precision_it_is_the_textbooks_answer(face_model):
    """Eq. 4 as it is printed, by an inverse, in double precision; places are far off the points."""
    points, pose = landmarks(face_model), some_pose()
    places = posed(pose, points) + torch.randn(6, 68, 3) + 1e3
    homogeneous = torch.cat([points, torch.ones(6, 68, 1)], -1).double()
    printed = places.double().mT @ homogeneous @ torch.linalg.inv(homogeneous.mT @ homogeneous)
    found = affine_pose(points, places)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), printed, rtol=1e-6, atol=1e-6)


def test_no_other_affine_is_nearer(face_model):
    points = landmarks(face_model)
    places = posed(some_pose(), points) + 3 * torch.randn(6, 68, 3)
    for solve in (affine_pose, similarity_pose):
        found = solve(points, places).double()
        error = (posed(found, points.double()) - places).square().sum((-2, -1))
        for _ in range(20):
            other = found + 1e-3 * torch.randn_like(found) * torch.tensor([1, 1, 1, 100.0])
            if solve is similarity_pose:
                rotation, scale = nearest_rotation(other[..., :3])
                linear = scale[..., None, None] * rotation
                other = torch.cat([linear, other[..., 3:]], -1)
            worse = (posed(other, points.double()) - places).square().sum((-2, -1))
            assert (worse > error).all()


@pytest.mark.parametrize("solve", [affine_pose, similarity_pose])
def test_gradients_are_exact(solve):
    points = torch.randn(2, 7, 3, dtype=torch.float64, requires_grad=True)
    places = (points.detach() + 0.3 * torch.randn(2, 7, 3)).requires_grad_()
    assert torch.autograd.gradcheck(solve, (points, places))


def test_a_similarity_is_found_without_shear(face_model):
    points, pose = landmarks(face_model).double(), some_pose(affine=0.0, kind=torch.float64)
    found = similarity_pose(points, posed(pose, points))
    torch.testing.assert_close(found, pose, rtol=0, atol=1e-6)


def test_flat_landmarks_are_an_error_or_have_a_regularized_answer(face_model):
    points = landmarks(face_model)
    points[2, :, 2] = 4.0  # a plane
    places = posed(some_pose(), points)
    with pytest.raises(ValueError, match=r"1 of 6 sets of landmarks lie in one plane"):
        affine_pose(points, places)
    with pytest.raises(ValueError, match="2 of 2"):
        affine_pose(points[:2, :3], places[:2, :3])
    found = affine_pose(points, places, regularization=1e-6)
    torch.testing.assert_close(posed(found, points), places, rtol=0, atol=1e-2)
    assert found[2, :, 2].abs().max() < 1e-4  # nothing is said about what leaves the plane


def test_what_is_not_finite_harms_only_its_own_set(face_model):
    points, places = landmarks(face_model), posed(some_pose(affine=0.0), landmarks(face_model))
    places[1, 5, 0] = torch.nan
    points[4, 0, 2] = torch.inf
    for solve in (affine_pose, similarity_pose):
        found = solve(points, places)
        wrong = torch.tensor([False, True, False, False, True, False])
        assert found.isfinite().all(-1).all(-1).equal(~wrong)
        rotation, scale = nearest_rotation(found[..., :3])
        assert scale.isfinite().equal(~wrong)
        assert rotation.isfinite().all(-1).all(-1).equal(~wrong)


def test_a_scaled_rotation_is_taken_apart_into_what_it_was_made_of(face_model):
    points = landmarks(face_model)
    angles = torch.tensor([[0.2, -0.1, 0.3], [0.9, -1.2, 0.4], [0.1, 0.2, -0.6]])
    rotation = frontal(angles) @ rotation_from_euler(*angles)
    camera = WeakPerspectiveCamera(rotation, torch.tensor([1.0, 2.0, 0.7]), torch.rand(3, 2) * 99)
    linear = camera.scale[:, None, None] * rotation
    pose = torch.cat([linear, torch.cat([camera.translation, torch.ones(3, 1)], -1)[..., None]], -1)
    found = scaled_rotation(pose, points[:3].mean(-2))
    for name in ("rotation", "scale", "translation"):
        torch.testing.assert_close(getattr(found, name), getattr(camera, name), msg=name)


def test_the_rotation_survives_shear_and_the_middle_stays_where_it_is(face_model):
    points = landmarks(face_model) + torch.tensor([5.0, -20.0, 60.0])
    pose = some_pose(affine=0.0)
    straight = scaled_rotation(pose, points.mean(-2))
    stretched = pose.clone()
    stretched[..., :3] = pose[..., :3] @ torch.diag(torch.tensor([0.9, 1.1, 1.0]))
    found = scaled_rotation(stretched, points.mean(-2))
    assert rotation_angle(found.rotation @ straight.rotation.mT).max() < 1e-3
    torch.testing.assert_close(found.scale, straight.scale)
    middle = points.mean(-2, keepdim=True)
    seen, _ = found.project(middle)
    torch.testing.assert_close(seen, posed(stretched, middle)[..., :2], rtol=1e-5, atol=1e-3)


def test_the_rotation_is_proper_also_for_mirrored_landmarks():
    rotation, scale = nearest_rotation(torch.diag(torch.tensor([3.0, 2.0, -1.0])))
    assert torch.det(rotation) == pytest.approx(1)
    assert scale.item() == pytest.approx((3 + 2 - 1) / 3)


def test_an_affine_camera_projects_as_its_pose_says(face_model):
    points, pose = landmarks(face_model), some_pose()
    camera = AffineCamera.of(pose)
    pixels, depth = camera.project(points)
    wanted = posed(pose, points)
    torch.testing.assert_close(pixels, wanted[..., :2])
    torch.testing.assert_close(
        depth * camera.scale[:, None], wanted[..., 2] - pose[..., 2, 3:], rtol=1e-4, atol=1e-3
    )
    clip = camera.clip(points, (200, 100))
    seen = (clip[..., :2] + 1) / 2 * torch.tensor([100.0, 200.0])
    torch.testing.assert_close(seen, pixels, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(clip[..., 2] * 1000, depth, rtol=1e-4, atol=1e-2)
    assert (clip[..., 3] == 1).all()
    torch.testing.assert_close(camera.position(points)[..., 2], depth)


def test_an_affine_camera_without_shear_is_weak_perspective(face_model):
    points, pose = landmarks(face_model), some_pose(affine=0.0)
    camera, weak = AffineCamera.of(pose), scaled_rotation(pose, torch.zeros(6, 3))
    for one, other in zip(camera.project(points), weak.project(points), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(camera.position(points), weak.position(points), rtol=1e-4, atol=1e-3)
    clips = [c.clip(points, (96, 96)) for c in (camera, weak)]
    torch.testing.assert_close(*clips, rtol=1e-4, atol=1e-4)
    crop = torch.full((6,), 0.5), torch.tensor([[3.0, -2.0]]).expand(6, 2)
    cameras = [c.crop(*crop) for c in (camera, weak)]
    for one, other in zip(*(c.project(points) for c in cameras), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)
