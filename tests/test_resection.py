import numpy as np
import pytest
import torch
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation

from core.camera import PerspectiveCamera, WeakPerspectiveCamera, frontal
from core.face_models import load_face_model
from core.losses import landmark_l2
from core.resection import resect, sightings
from core.rotation import rotation_angle, rotation_from_vector

B = 6


KINDS = pytest.mark.parametrize("pinhole", [False, True], ids=["weak perspective", "pinhole"])


def scene(pinhole: bool, noise: float = 0.0, seed: int = 0):
    """Points of heads, their pixels and confidences, the true cameras and ones that are off."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    model = load_face_model("procedural")
    points = model.landmarks(model.mean).double() + 2 * normal(B, 68, 3)
    rotation = frontal(points) @ rotation_from_vector(0.5 * normal(B, 3).clamp(-2, 2))
    if pinhole:
        place = torch.tensor([0.0, 0, 600]) + normal(B, 3) * torch.tensor([10.0, 10, 50])
        true = PerspectiveCamera(rotation, place, 300 + 20 * normal(B), 48 + normal(B, 2))
    else:
        true = WeakPerspectiveCamera(rotation, 0.5 + 0.1 * normal(B).abs(), 48 + 3 * normal(B, 2))
    axis = torch.nn.functional.normalize(normal(B, 3), dim=-1)
    off = rotation_from_vector(np.radians(15) * axis)
    if pinhole:
        place = true.translation * torch.tensor([1.3, 1.3, 0.85])
        start = PerspectiveCamera(off @ rotation, place, true.focal, true.centre)
    else:
        start = WeakPerspectiveCamera(off @ rotation, 1.2 * true.scale, true.translation + 4)
    pixels = true.project(points)[0] + noise * normal(B, 68, 2)
    return points, pixels, torch.rand(B, 68, generator=generator).double(), true, start


@KINDS
def test_a_start_that_is_15_degrees_off_is_brought_to_a_thousandth_of_a_pixel(pinhole):
    points, pixels, confidence, true, start = scene(pinhole)
    assert (start.project(points)[0] - pixels).abs().max() > 5
    found = resect(points, pixels, confidence, start)
    assert (found.project(points)[0] - pixels).abs().max() < 1e-3
    closer = resect(points, pixels, confidence, start, steps=8)
    assert rotation_angle(closer.rotation @ true.rotation.mT).max() < 1e-7
    torch.testing.assert_close(closer.translation, true.translation, rtol=1e-6, atol=1e-6)
    if not pinhole:
        torch.testing.assert_close(closer.scale, true.scale, rtol=1e-8, atol=0)


@KINDS
def test_it_is_the_least_error_that_scipy_finds(pinhole):
    points, pixels, confidence, _, start = scene(pinhole, noise=1.5)
    found = resect(points, pixels, confidence, start, steps=12)

    def error(numbers, k):
        turned = points[k].numpy() @ Rotation.from_rotvec(numbers[:3]).as_matrix().T
        if pinhole:
            turned = turned + numbers[3:]
            place = turned[:, :2] / turned[:, 2:] * float(start.focal[k]) + start.centre[k].numpy()
        else:
            place = numbers[3] * turned[:, :2] + numbers[4:]
        offset = place - pixels[k].numpy()
        return (offset * np.sqrt(confidence[k].numpy())[:, None]).ravel()

    for k in range(B):
        first = Rotation.from_matrix(start.rotation[k].numpy()).as_rotvec()
        scale = [] if pinhole else [float(start.scale[k])]
        numbers = [*first, *scale, *start.translation[k].tolist()]
        best = least_squares(error, numbers, args=(k,), xtol=1e-14, ftol=1e-14, gtol=1e-14).x
        turn = found.rotation[k].numpy() @ Rotation.from_rotvec(best[:3]).as_matrix().T
        assert np.abs(turn - np.eye(3)).max() < 1e-6
        np.testing.assert_allclose(
            found.translation[k], best[3:] if pinhole else best[4:], rtol=1e-5
        )
        assert pinhole or float(found.scale[k]) == pytest.approx(best[3], rel=1e-6)


@KINDS
def test_missing_points_say_nothing_and_without_any_the_start_stays(pinhole):
    points, pixels, confidence, _, start = scene(pinhole, noise=1.0)
    confidence[:, ::3] = 0
    found = resect(points, pixels, confidence, start)
    wrong = pixels.clone()
    wrong[:, ::3] += 500
    again = resect(points, wrong, confidence, start)
    torch.testing.assert_close(again.rotation, found.rotation)
    nothing = resect(points, pixels, torch.zeros_like(confidence), start)
    torch.testing.assert_close(nothing.rotation, start.rotation)
    torch.testing.assert_close(nothing.translation, start.translation)


@KINDS
def test_the_gradient_of_the_least_error_is_that_for_its_camera_held_fixed(pinhole):
    points, pixels, confidence, _, start = scene(pinhole, noise=1.5)
    direction = torch.randn(points.shape, dtype=torch.float64)

    def least(x):
        best = resect(x, pixels, confidence, start, steps=12)
        return landmark_l2(best.project(x)[0], pixels, confidence, 1)

    points.requires_grad_()
    least(points).backward()
    with torch.no_grad():
        numeric = (least(points + 1e-4 * direction) - least(points - 1e-4 * direction)) / 2e-4
    torch.testing.assert_close((points.grad * direction).sum(), numeric, rtol=1e-5, atol=1e-7)


@KINDS
def test_in_single_precision_under_autocast_the_answer_is_the_same(pinhole):
    points, pixels, confidence, true, start = scene(pinhole)
    with torch.autocast("cpu", torch.bfloat16):
        found = resect(
            points.float(), pixels.float(), confidence.float(), start.map(torch.Tensor.float)
        )
    assert found.rotation.dtype == torch.float32
    assert rotation_angle(found.rotation.double() @ true.rotation.mT).max() < 1e-3


@KINDS
def test_sightings_teach_camera_and_points_apart(pinhole):
    """Of the error under its own camera only the camera learns, of the least one only the points;
    with the pose "estimated" it is the plain projection."""
    points, pixels, confidence, _, start = scene(pinhole, noise=1.5)
    points.requires_grad_()
    translation = start.translation.clone().requires_grad_()
    camera = start.map(lambda value: translation if value is start.translation else value)
    (plain,) = sightings(points, camera, pixels, confidence, "estimated")
    own, least = sightings(points, camera, pixels, confidence, "best")
    torch.testing.assert_close(own, plain)
    whole = torch.autograd.grad(landmark_l2(plain, pixels, confidence, 1), [points, translation])
    of_own = torch.autograd.grad(
        landmark_l2(own, pixels, confidence, 1), [points, translation], allow_unused=True
    )
    assert of_own[0] is None
    torch.testing.assert_close(of_own[1], whole[1])
    error = landmark_l2(least, pixels, confidence, 1)
    of_least = torch.autograd.grad(error, [points, translation], allow_unused=True)
    assert of_least[1] is None
    assert error < 0.3 * landmark_l2(plain, pixels, confidence, 1)
    # moving all points alike is nothing the least error could feel
    assert of_least[0].sum(-2).norm() < 1e-3 * whole[0].sum(-2).norm()
