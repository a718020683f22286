"""One worked number for every line of core/__init__.py; the modules' own tests go deeper."""

import math

import numpy as np
import pytest
import torch

from core.camera import PerspectiveCamera, WeakPerspectiveCamera, frontal
from core.image import sample
from core.landmarks import MIRROR
from core.lighting import sh_basis
from core.normals import face_normals
from core.rasterize import rasterize
from core.render import draw
from core.rotation import rotation_from_euler
from core.uv import bake, uv_grid, wrap

SIZE = 96


def head(pitch=0.0, yaw=0.0, roll=0.0):
    """A head rotation from degrees."""
    return rotation_from_euler(*(torch.tensor(math.radians(angle)) for angle in (pitch, yaw, roll)))


def camera(**degrees):
    rotation = frontal(torch.zeros(())) @ head(**degrees)
    return WeakPerspectiveCamera(rotation, torch.tensor(0.4), torch.tensor([SIZE / 2, SIZE / 2]))


def drawn(face_model, **degrees):
    views = camera(**degrees).map(lambda value: value[None, None])
    return draw(face_model.mean[None, None], face_model.triangles, face_model.uv, views, SIZE)


def nose_pixel(face_model, surface):
    """Row and column of the pixel that shows the tip of the nose."""
    tip = (
        face_model.uv[face_model.landmark_vertices[30]] * face_model.landmark_weights[30, :, None]
    ).sum(0)
    distance = (surface.uv[0, 0] - tip).norm(dim=-1)
    assert distance.min() < 0.02
    return divmod(int(distance.argmin()), SIZE)


def test_pixels_the_first_centre_is_at_one_half_and_the_origin_is_the_corner():
    picture = torch.tensor([[[10.0, 20.0], [30.0, 40.0]]])
    found = sample(picture, torch.tensor([[[0.5, 0.5], [1.5, 0.5], [0.5, 1.5], [1.0, 1.0]]]))
    assert found.tolist() == [[[10.0, 20.0, 30.0, 25.0]]]


def test_model_frame_is_in_millimetres_x_to_the_right_y_up_z_out_of_the_face(face_model):
    marks = face_model.landmarks(face_model.mean)
    extent = face_model.mean.amax(0) - face_model.mean.amin(0)
    assert (extent[:2] > 100).all()
    assert (extent[:2] < 300).all()
    assert marks[45, 0] > 0 > marks[36, 0]  # the subject's left eye is at the image's right
    assert marks[27, 1] > marks[8, 1]  # the bridge of the nose is above the chin
    assert marks[30, 2] > marks[36, 2]  # the nose is in front of the eyes


def test_camera_frame_of_a_frontal_face_is_diag_1_minus_1_minus_1():
    assert camera().rotation.tolist() == [[1, 0, 0], [0, -1, 0], [0, 0, -1]]
    pixels, depth = camera().project(torch.tensor([[10.0, 20.0, 30.0]]))
    torch.testing.assert_close(pixels, torch.tensor([[48 + 4.0, 48 - 8.0]]))
    assert depth.tolist() == [-30.0]


def test_head_rotation_acts_on_column_vectors_and_is_identity_for_a_frontal_face():
    torch.testing.assert_close(camera().head_rotation, torch.eye(3))
    turned = camera(pitch=10.0, yaw=20.0, roll=30.0)
    torch.testing.assert_close(turned.head_rotation, head(10.0, 20.0, 30.0))
    nose = torch.tensor([0.0, 0.0, 1.0])
    expected = torch.diag(torch.tensor([1.0, -1, -1])) @ head(10.0, 20.0, 30.0) @ nose
    torch.testing.assert_close(turned.rotate(nose[None])[0], expected)


def test_euler_angles_are_the_formula_of_300w_lp():
    p, y, r = 0.3, -0.5, 0.7
    c, s = math.cos, math.sin
    rx = np.array([[1, 0, 0], [0, c(p), s(p)], [0, -s(p), c(p)]])
    ry = np.array([[c(y), 0, -s(y)], [0, 1, 0], [s(y), 0, c(y)]])
    rz = np.array([[c(r), s(r), 0], [-s(r), c(r), 0], [0, 0, 1]])
    found = rotation_from_euler(*(torch.tensor(angle).double() for angle in (p, y, r)))
    np.testing.assert_allclose(found.numpy(), rx @ ry @ rz, atol=1e-7)


def test_signs_of_yaw_pitch_and_roll_by_hand():
    half, most = 0.5, math.cos(math.radians(30))
    nose, right = torch.tensor([0.0, 0, 1]), torch.tensor([1.0, 0, 0])
    torch.testing.assert_close(head(yaw=30.0) @ nose, torch.tensor([-half, 0, most]))
    torch.testing.assert_close(head(pitch=30.0) @ nose, torch.tensor([0, half, most]))
    torch.testing.assert_close(head(roll=30.0) @ right, torch.tensor([most, -half, 0]))


@pytest.mark.parametrize("angle", [15.0, 30.0])
def test_in_a_rendered_face_yaw_turns_the_nose_left_and_pitch_raises_it(face_model, angle):
    def nose(**degrees):
        return nose_pixel(face_model, drawn(face_model, **degrees))

    row, column = nose()
    assert column in (SIZE // 2 - 1, SIZE // 2)
    assert nose(yaw=angle)[1] < column - 2
    assert nose(yaw=-angle)[1] > column + 2
    assert nose(pitch=angle)[0] < row - 2
    assert nose(pitch=-angle)[0] > row + 2


def test_in_a_rendered_face_roll_turns_it_clockwise(face_model):
    surface = drawn(face_model, roll=30.0)
    forehead = surface.mask[0, 0, 0] * (surface.uv[0, 0, :, :, 1] < 0.2)
    columns = torch.arange(SIZE) + 0.5
    assert (forehead.sum(0) * columns).sum() / forehead.sum() > SIZE / 2 + 5


def test_clip_space_has_x_and_y_from_the_left_and_top_edges_and_z_away_from_the_viewer():
    size = (40, 80)
    weak = WeakPerspectiveCamera(
        frontal(torch.zeros(())), torch.tensor(1.0), torch.tensor([0.0, 0.0])
    )
    corners = torch.tensor([[0.0, 0, 0], [80, -40, 0], [80, 0, 50], [80, 0, -50]])
    clip = weak.clip(corners, size)
    torch.testing.assert_close(clip[:2, :2], torch.tensor([[-1.0, -1], [1, 1]]))
    assert clip[2, 2] < 0 < clip[3, 2]  # model z is towards the viewer
    pinhole = PerspectiveCamera(
        frontal(torch.zeros(())),
        torch.tensor([0.0, 0, 500]),
        torch.tensor(500.0),
        torch.tensor([0.0, 0.0]),
    )
    clip = pinhole.clip(corners, size)
    ndc = clip[:, :3] / clip[:, 3:]
    torch.testing.assert_close(ndc[:2, :2], torch.tensor([[-1.0, -1], [1, 1]]))
    assert ndc[2, 2] < ndc[3, 2]


def test_row_0_of_a_rasterized_image_is_its_top():
    """A triangle over the upper left pixel of 2 x 2 only; clip (-1, -1) is the top left corner."""
    clip = torch.tensor([[[-1.0, -1.0, 0, 1], [-1.0, 0.2, 0, 1], [0.2, -1.0, 0, 1]]])
    fragments = rasterize(clip, torch.tensor([[0, 1, 2]]), (2, 2))
    assert fragments.triangle_index.tolist() == [[[0, -1], [-1, -1]]]


def test_triangles_are_counter_clockwise_seen_from_outside(face_model):
    normals = face_normals(face_model.mean, face_model.triangles)
    outwards = face_model.mean[face_model.triangles].mean(1) * torch.tensor([1.0, 0, 1])
    outwards = outwards + torch.tensor([0.0, 0, 60.0])  # from an axis behind the face
    assert ((normals * outwards).sum(-1) > 0).all()
    corner = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]])
    assert face_normals(corner, torch.tensor([[0, 1, 2]])).tolist() == [[0, 0, 1]]


def test_normals_of_a_drawn_face_point_against_the_cameras_z(face_model):
    surface = drawn(face_model, yaw=20.0)
    z = surface.normals[0, 0, 2][surface.mask[0, 0, 0] > 0]
    assert z.mean() < -0.7
    assert (z < 0.2).all()


def test_uv_has_v_down_and_its_first_texel_at_the_corner(face_model):
    forehead, chin = face_model.mean[:, 1].argmax(), face_model.mean[:, 1].argmin()
    assert face_model.uv[forehead, 1] < face_model.uv[chin, 1]
    maps = torch.arange(16.0).reshape(1, 1, 4, 4)
    uv = torch.tensor([[[[0.125, 0.125], [0.375, 0.125], [0.125, 0.375]]]])
    assert wrap(maps, uv).flatten().tolist() == [0.0, 1.0, 4.0]


def test_flipping_a_uv_map_reflects_the_face(face_model):
    grid = uv_grid(face_model.uv, face_model.triangles, 32)
    points = bake(face_model.mean, grid, face_model.triangles)
    reflected = points * torch.tensor([-1.0, 1, 1])[:, None, None]
    torch.testing.assert_close(points.flip(-1), reflected, atol=1e-3, rtol=0)
    assert points[0, 16, 28] > 40  # u to the right is the subject's left, x > 0


def test_light_is_in_the_camera_frame_with_the_lambertian_factors():
    """The nine numbers of the normal towards the viewer: pi Y00, -2 pi / 3 Y10, pi / 4 Y20."""
    towards_viewer = camera().rotate(torch.tensor([[0.0, 0.0, 1.0]]))
    expected = torch.zeros(9)
    expected[0] = math.pi * math.sqrt(1 / (4 * math.pi))
    expected[2] = -2 * math.pi / 3 * math.sqrt(3 / (4 * math.pi))
    expected[6] = math.pi / 4 * math.sqrt(5 / (16 * math.pi)) * 2
    torch.testing.assert_close(sh_basis(towards_viewer)[0], expected, atol=1e-6, rtol=0)
    up = camera().rotate(torch.tensor([[0.0, 1.0, 0.0]]))
    assert sh_basis(up)[0, 1] < 0  # y is down in the camera frame


def test_landmarks_are_ibug_order_0_based():
    assert (len(MIRROR), min(MIRROR), max(MIRROR)) == (68, 0, 67)
    assert MIRROR[36] == 45  # outer eye corners
    assert MIRROR[8] == 8  # chin


def test_coefficients_are_in_standard_deviations(face_model):
    """One standard deviation of one mode moves the mean by exactly that mode, in millimetres."""
    one = torch.eye(8)[2]
    moved = face_model.shape(one) - face_model.mean
    torch.testing.assert_close(moved, face_model.identity_basis[2], atol=1e-4, rtol=0)
