from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation

from core.camera import PerspectiveCamera, WeakPerspectiveCamera, frontal
from core.face_models import load_face_model
from core.losses import landmark_l2
from core.resection import posed_landmark_l2, resect
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
@pytest.mark.parametrize("important", [False, True])
def test_the_best_pose_teaches_camera_and_points_apart(pinhole, important):
    """The camera learns what it learns from the plain error; the points what no pose can mend,
    and that also where some landmarks count more."""
    points, pixels, confidence, _, start = scene(pinhole, noise=1.5)
    importance = torch.where(torch.arange(68) % 7 == 0, 20.0, 1.0).double() if important else None
    points.requires_grad_()
    translation = start.translation.clone().requires_grad_()
    camera = start.map(lambda value: translation if value is start.translation else value)
    found = {}
    for pose in ("estimated", "best"):
        error = posed_landmark_l2(points, camera, pixels, confidence, 2, pose, importance)
        found[pose] = error, torch.autograd.grad(error, [points, translation])
    plain = landmark_l2(camera.project(points)[0], pixels, confidence, 2, importance)
    assert found["estimated"][0] == plain
    torch.testing.assert_close(found["best"][1][1], found["estimated"][1][1])
    assert plain < found["best"][0] < 1.3 * plain  # the least error is added
    # to move all points alike would be to move the camera
    alike = {pose: gradients[0].sum(-2).norm() for pose, (_, gradients) in found.items()}
    assert alike["best"] < 2e-3 * alike["estimated"]


@KINDS
def test_nothing_worse_than_the_start_is_given_back(pinhole):
    """From starts that are far off, behind the points, or with hardly any points."""
    points, pixels, confidence, true, start = scene(pinhole, noise=1.5)
    axis = torch.tensor([0.0, 1, 0], dtype=torch.float64)
    turns = {angle: rotation_from_vector(np.radians(angle) * axis) for angle in (60, 90, 120, 170)}
    starts = [replace(true, rotation=turn @ true.rotation) for turn in turns.values()]
    if pinhole:
        near = true.translation * torch.tensor([1, 1, 0.05])
        starts += [replace(true, translation=near), replace(true, translation=-true.translation)]
    few = confidence.clone()
    few[:, 3:] = 0
    for weight in (confidence, few):
        for first in [start, *starts]:
            found = resect(points, pixels, weight, first)
            before, after = (
                ((camera.project(points)[0] - pixels).square().sum(-1) * weight).sum(-1)
                for camera in (first, found)
            )
            assert (after <= before).all()
            if pinhole:
                behind = (found.position(points)[..., 2] <= 0).any(-1)
                assert not (behind & (found.translation != first.translation).any(-1)).any()
    best = resect(points, pixels, confidence, true, steps=12).project(points)[0]
    from_60 = resect(points, pixels, confidence, starts[0]).project(points)[0]
    assert (best - from_60).abs().max() < 0.1
