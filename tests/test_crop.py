import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import map_coordinates

from core.camera import WeakPerspectiveCamera, frontal
from core.crop import (
    canonical_crop,
    canonical_to_image,
    face_crop,
    five_point_crop,
    in_plane_rotation,
    transform_points,
    warp,
)
from core.errors import DataError
from core.image import pixel_centres, sample
from core.landmarks import five_points
from core.rotation import rotation_from_euler

CORNERS = torch.tensor([[0.0, 0], [64, 0], [0, 64], [64, 64]])


def ramp(height, width):
    """A picture whose two channels are the x and y of its pixel centres."""
    return pixel_centres((height, width), torch.zeros(())).permute(2, 0, 1)


def smooth_picture(height, width, channels=3):
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    waves = [torch.sin(x / (9 + 3 * k) + k) * torch.cos(y / (11 - 2 * k)) for k in range(channels)]
    return torch.stack(waves) / 2 + 0.5


def similarity(scale, degrees, offset):
    c, s = scale * math.cos(math.radians(degrees)), scale * math.sin(math.radians(degrees))
    return torch.tensor([[c, -s, offset[0]], [s, c, offset[1]], [0, 0, 1.0]])


def posed(face_model, yaw=0.0, pitch=0.0, roll=0.0):
    """Landmarks of the fake face seen at 2 px per mm."""
    angles = (torch.tensor(math.radians(a)) for a in (pitch, yaw, roll))
    camera = WeakPerspectiveCamera(
        frontal(torch.zeros(())) @ rotation_from_euler(*angles),
        torch.tensor(2.0),
        torch.tensor([300.0, 200]),
    )
    return camera.project(face_model.landmarks(face_model.mean))[0]


def test_sample_reads_between_pixels_and_black_outside():
    picture = torch.tensor([[[1.0, 3.0], [5.0, 7.0]]])
    places = torch.tensor(
        [[[0.5, 0.5], [1.0, 0.5], [1.0, 1.0], [1.5, 1.25], [0.0, 0.5], [-1.0, 1.0]]]
    )
    assert sample(picture, places).tolist() == [[[1.0, 2.0, 4.0, 6.0, 0.5, 0.0]]]
    assert sample(picture, places, padding="border")[0, 0, 4:].tolist() == [1.0, 3.0]


def test_sample_agrees_with_scipy():
    picture, places = smooth_picture(17, 23), torch.rand(4, 5, 2) * torch.tensor([22.0, 16]) + 0.5
    x, y = places.numpy().transpose(2, 0, 1) - 0.5
    expected = np.stack([map_coordinates(c, [y, x], order=1) for c in picture.numpy()])
    np.testing.assert_allclose(sample(picture, places).numpy(), expected, atol=1e-5)


def test_worked_number_of_the_crop_matrix():
    points = torch.zeros(68, 2)
    points[:] = torch.tensor([60.0, 70.0])
    points[0], points[1] = torch.tensor([10.0, 20]), torch.tensor([110.0, 120])
    matrix = face_crop(points, torch.ones(68), 50, margin=1.0)
    torch.testing.assert_close(matrix, torch.tensor([[0.5, 0, -5], [0, 0.5, -10], [0, 0, 1]]))


def test_box_corners_go_to_the_crops_corners():
    points = torch.rand(3, 68, 2) * torch.tensor([80.0, 120]) + 30
    matrix = face_crop(points, torch.ones(3, 68), 64, margin=1.0)
    cropped = transform_points(matrix, points)
    torch.testing.assert_close(cropped[..., 1].amin(-1), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(cropped[..., 1].amax(-1), torch.full((3,), 64.0), atol=1e-4, rtol=0)
    middle = (cropped.amin(-2) + cropped.amax(-2)) / 2
    torch.testing.assert_close(middle, torch.full((3, 2), 32.0), atol=1e-4, rtol=0)


def test_missing_points_do_not_matter_even_if_they_are_far_away_or_nan():
    points, confidence = torch.rand(68, 2) * 100, torch.ones(68)
    expected = face_crop(points[8:], confidence[8:], 64)
    confidence[:8] = 0
    for wrong in (9999.0, torch.nan):
        points[:8] = wrong
        torch.testing.assert_close(face_crop(points, confidence, 64), expected)


def test_bad_landmarks_raise():
    points, confidence = torch.rand(2, 68, 2) * 100, torch.ones(2, 68)
    confidence[1, 19:] = 0
    with pytest.raises(DataError, match=r"at least 20 landmarks.*got 19 of 68"):
        face_crop(points, confidence, 64)
    points[0, 3] = torch.inf
    with pytest.raises(DataError, match="1 landmarks are NaN"):
        face_crop(points, torch.ones(2, 68), 64)
    with pytest.raises(DataError, match="one place"):
        face_crop(torch.full((68, 2), 5.0), torch.ones(68), 64)
    with pytest.raises(DataError, match="one place"):
        five_point_crop(torch.full((5, 2), 5.0), 64)


@pytest.mark.parametrize("yaw", [-75, -40, 0, 40, 75])
@pytest.mark.parametrize("pitch", [-25, 0, 25])
def test_the_scale_of_the_crop_hardly_depends_on_the_pose(face_model, yaw, pitch):
    scales = [
        face_crop(posed(face_model, *pose), torch.ones(68), 64)[0, 0]
        for pose in ((yaw, pitch), (0, 0))
    ]
    assert 0.8 < scales[0] / scales[1] < 1.25


@pytest.mark.parametrize("yaw", [-60, -30, 0, 30, 60])
@pytest.mark.parametrize("roll", [-30, 0, 30])
def test_five_points_give_about_the_crop_of_68(face_model, yaw, roll):
    points = posed(face_model, yaw, 0, roll)
    full = face_crop(points, torch.ones(68), 100)
    five = five_point_crop(five_points(points), 100)
    assert 0.75 < five[0, 0] / full[0, 0] < 1.3
    centre = transform_points(five @ full.inverse(), torch.tensor([[50.0, 50.0]]))
    assert (centre - 50).norm() < 12  # per cent of the crop's side


def test_transform_points_and_its_inverse():
    matrix, points = similarity(1.3, 25, (4, -7)), torch.rand(9, 2) * 50
    there = transform_points(matrix, points)
    expected = torch.tensor([(matrix @ torch.tensor([x, y, 1.0]))[:2].tolist() for x, y in points])
    torch.testing.assert_close(there, expected)
    torch.testing.assert_close(transform_points(matrix.inverse(), there), points, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "matrix", [similarity(1.7, 0, (-13.3, -20.1)), similarity(1.1, 20, (5.2, -25))]
)
def test_warp_of_a_ramp_gives_exact_sub_pixel_values(matrix):
    """The source of each output pixel is known; a bilinear sample of x and y is x and y."""
    out = warp(ramp(60, 80), matrix, (20, 30))
    expected = transform_points(matrix.inverse(), pixel_centres((20, 30), out).reshape(-1, 2))
    assert expected.min() > 1  # the whole output lies inside the image
    torch.testing.assert_close(out.permute(1, 2, 0).reshape(-1, 2), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("factor", [2, 3, 4, 6, 9])
def test_shrinking_has_no_half_pixel_slip(factor):
    out = warp(ramp(36 * 2, 36 * 2), similarity(1 / factor, 0, (0, 0)), 72 // factor)
    error = (out - ramp(72 // factor, 72 // factor) * factor).abs()
    assert error[:, 1:-1, 1:-1].max() < 1e-3
    assert error.max() < 0.02 * factor  # 2 % of an output pixel where the border is repeated


@pytest.mark.parametrize("factor", [2, 3, 5, 8])
def test_shrinking_does_not_alias(factor):
    """A checkerboard of single pixels becomes grey; unfiltered samples stay black or white."""
    board = ((torch.arange(96)[:, None] + torch.arange(96)) % 2).float()[None]
    out = warp(board, similarity(1 / factor, 0, (0.3, -0.2)), 96 // factor)
    assert (out[:, 1:-1, 1:-1] - 0.5).abs().max() < 0.13


def test_shrinking_is_close_to_pillows_area_filter():
    picture = smooth_picture(120, 120, 1) + 0.2 * torch.rand(1, 120, 120)
    out = warp(picture, similarity(0.25, 0, (0, 0)), 30)
    expected = Image.fromarray(picture[0].numpy()).resize((30, 30), Image.Resampling.BOX)
    assert np.abs(out[0].numpy() - np.asarray(expected)).mean() < 0.02


def test_identity_and_whole_pixel_shifts_are_exact():
    picture = torch.rand(3, 8, 10)
    torch.testing.assert_close(warp(picture, torch.eye(3), (8, 10)), picture)
    shifted = warp(picture, similarity(1, 0, (2, -1)), (8, 10))
    torch.testing.assert_close(shifted[:, :-1, 2:], picture[:, 1:, :-2], atol=1e-6, rtol=0)
    assert shifted[:, -1].abs().max() == 0  # beyond the image: black
    assert shifted[:, :, :2].abs().max() == 0


def test_warp_there_and_back():
    picture = smooth_picture(64, 64)
    matrix = similarity(2, 30, (10, -40))
    back = warp(warp(picture, matrix, 128), matrix.inverse(), 64)
    inside = warp(warp(torch.ones(1, 64, 64), matrix, 128), matrix.inverse(), 64) > 0.999
    assert inside.float().mean() > 0.3
    assert ((back - picture).abs() * inside).max() < 0.02


def test_warp_of_a_batch_is_the_warp_of_each():
    pictures = torch.rand(2, 3, 1, 20, 20)
    matrices = torch.stack([similarity(1.5, 10 * k, (k, -k)) for k in range(6)]).reshape(2, 3, 3, 3)
    together = warp(pictures, matrices, 16)
    torch.testing.assert_close(together[1, 2], warp(pictures[1, 2], matrices[1, 2], 16))


def test_warp_keeps_float32_under_autocast():
    picture, matrix = ramp(300, 300), similarity(0.9, 10, (40, 0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = warp(picture, matrix, 200)
    torch.testing.assert_close(out, warp(picture, matrix, 200), atol=1e-3, rtol=0)


def camera_of(scale, degrees, translation, yaw=0.0, pitch=0.0):
    angles = (torch.tensor(math.radians(a)) for a in (pitch, yaw, degrees))
    return WeakPerspectiveCamera(
        frontal(torch.zeros(())) @ rotation_from_euler(*angles),
        torch.tensor(scale),
        torch.tensor(translation),
    )


def test_in_plane_rotation_is_the_roll_of_a_frontal_face_and_the_angle_of_its_y_axis():
    for degrees in (-170.0, -30.0, 0.0, 90.0):
        assert math.degrees(in_plane_rotation(camera_of(1.0, degrees, [0.0, 0]))) == pytest.approx(
            degrees
        )
    camera = camera_of(1.3, 20.0, [7.0, 8], yaw=35.0, pitch=-20.0)
    ends = camera.project(torch.tensor([[0.0, 0, 0], [0, 50, 0]]))[0]
    right, down = ends[1] - ends[0]
    assert in_plane_rotation(camera).item() == pytest.approx(math.atan2(right, -down), abs=1e-5)


def test_eq_10_the_canonical_crop_does_not_see_scale_rotation_and_translation():
    """The picture that a similarity moved, cropped with the camera it moved, is the same crop."""
    upright = camera_of(1.2, 0.0, [70.0, 64], yaw=20.0)
    picture = smooth_picture(128, 140)
    expected = canonical_crop(picture, upright, 32, 60.0)
    for scale, degrees, offset in ((2.0, 25.0, (60.0, -30.0)), (1.0, -40.0, (-30.0, 60.0))):
        move = similarity(scale, degrees, offset)
        moved = warp(picture, move, (300, 300))
        centre = transform_points(move, upright.translation[None])[0]
        turn = torch.eye(3)
        turn[:2, :2] = similarity(1, degrees, (0, 0))[:2, :2]
        camera = WeakPerspectiveCamera(turn @ upright.rotation, upright.scale * scale, centre)
        found = canonical_crop(moved, camera, 32, 60.0)
        torch.testing.assert_close(found, expected, atol=0.02, rtol=0)
        assert (warp(moved, similarity(1, 0, 16 - centre), 32) - expected).abs().mean() > 0.1


def test_eq_10_maps_millimetres_by_hand():
    """2 px/mm, rolled 90 degrees clockwise: up in the crop is right in the image."""
    matrix = canonical_to_image(camera_of(2.0, 90.0, [100.0, 80.0]), 64, 128.0)
    up = torch.tensor([[32.0, 32.0], [32.0, 22.0]])  # the centre, and 10 px = 20 mm above it
    torch.testing.assert_close(
        transform_points(matrix, up),
        torch.tensor([[100.0, 80.0], [140.0, 80.0]]),
        atol=1e-4,
        rtol=0,
    )


def test_eq_10_has_the_right_gradient_in_image_and_camera():
    picture = smooth_picture(24, 24, 1).double()
    rotation = camera_of(1.0, 15.0, [0.0, 0], yaw=20.0).rotation.double()

    def crop(image, rotation, scale, translation):
        return canonical_crop(image, WeakPerspectiveCamera(rotation, scale, translation), 4, 7.3)

    inputs = (picture, rotation, torch.tensor(1.1).double(), torch.tensor([12.1, 11.7]).double())
    assert torch.autograd.gradcheck(crop, [value.requires_grad_() for value in inputs])
