import pytest
import torch

from core.camera import PerspectiveCamera, WeakPerspectiveCamera, frontal
from core.rotation import rotation_from_euler


def random_rotation(*batch):
    pitch, yaw, roll = torch.randn(3, *batch, dtype=torch.float64) * 0.4
    return frontal(pitch) @ rotation_from_euler(pitch, yaw, roll)


def weak(*batch):
    return WeakPerspectiveCamera(
        random_rotation(*batch),
        torch.rand(batch, dtype=torch.float64) + 0.5,
        torch.randn(*batch, 2, dtype=torch.float64) * 20 + 60,
    )


def perspective(*batch):
    translation = torch.randn(*batch, 3, dtype=torch.float64) * 10
    translation[..., 2] += 900
    return PerspectiveCamera(
        random_rotation(*batch),
        translation,
        torch.rand(batch, dtype=torch.float64) * 300 + 900,
        torch.randn(*batch, 2, dtype=torch.float64) * 5 + 60,
    )


def test_weak_perspective_worked_number():
    one = torch.ones(())
    camera = WeakPerspectiveCamera(frontal(one), 2 * one, torch.tensor([112.0, 112.0]))
    pixels, depth = camera.project(torch.tensor([[10.0, 20.0, 30.0]]))
    assert pixels.tolist() == [[132.0, 72.0]]
    assert depth.tolist() == [-30.0]


def test_perspective_worked_number():
    one = torch.ones(())
    camera = PerspectiveCamera(
        frontal(one),
        torch.tensor([0.0, 0.0, 1000.0]),
        1015 * one,
        torch.tensor([112.0, 112.0]),
    )
    pixels, depth = camera.project(torch.tensor([[10.0, 20.0, 0.0]]))
    torch.testing.assert_close(pixels, torch.tensor([[112 + 10.15, 112 - 20.3]]))
    assert depth.tolist() == [1000.0]


def test_eq_11_weak_perspective_is_the_papers_matrix_product():
    camera, points = weak(), torch.randn(7, 3, dtype=torch.float64) * 50
    P = torch.tensor([[1.0, 0, 0], [0, 1, 0]], dtype=torch.float64)
    expected = torch.stack(
        [camera.scale * P @ camera.rotation @ x + camera.translation for x in points]
    )
    torch.testing.assert_close(camera.project(points)[0], expected)


@pytest.mark.parametrize("make", [weak, perspective])
def test_clip_space_lands_on_the_projected_pixels(make):
    camera, points, (height, width) = make(2, 3), torch.randn(2, 3, 9, 3).double() * 60, (96, 144)
    clip = camera.clip(points, (height, width))
    ndc = clip[..., :3] / clip[..., 3:]
    pixels, depth = camera.project(points)
    seen = (ndc[..., :2] + 1) / 2 * torch.tensor([width, height])
    torch.testing.assert_close(seen, pixels)
    assert ndc[..., 2].abs().max() < 1
    order = depth.argsort(-1)
    assert (ndc[..., 2].gather(-1, order).diff() > 0).all()  # grows away from the viewer


@pytest.mark.parametrize("make", [weak, perspective])
def test_crop_moves_the_projection_as_the_image(make):
    camera, points = make(4), torch.randn(4, 9, 3).double() * 60
    scale, offset = torch.rand(4).double() + 0.3, torch.randn(4, 2).double() * 9
    expected = camera.project(points)[0] * scale[:, None, None] + offset[:, None]
    torch.testing.assert_close(camera.crop(scale, offset).project(points)[0], expected)


def test_far_away_with_a_long_lens_perspective_is_weak_perspective():
    points, scale, distance = torch.randn(9, 3).double() * 60, torch.tensor(1.5).double(), 1e7
    centre = torch.tensor([60.0, 50.0]).double()
    near = WeakPerspectiveCamera(random_rotation(), scale, centre)
    far = PerspectiveCamera(
        near.rotation, torch.tensor([0, 0, distance]).double(), scale * distance, centre
    )
    torch.testing.assert_close(far.project(points)[0], near.project(points)[0], atol=5e-3, rtol=0)


def test_map_reaches_every_tensor():
    camera = perspective(2, 3).map(lambda value: value.flatten(0, 1).float())
    assert {name: value.shape for name, value in vars(camera).items()} == {
        "rotation": (6, 3, 3),
        "translation": (6, 3),
        "focal": (6,),
        "centre": (6, 2),
    }
    assert camera.focal.dtype == torch.float32
