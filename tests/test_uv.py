import math

import numpy as np
import pytest
import torch

from core.camera import PerspectiveCamera, WeakPerspectiveCamera, frontal
from core.render import draw
from core.rotation import rotation_from_euler
from core.uv import bake, sample_vertices, uncut, unwrap, uv_grid, wrap

SIZE = 96


def cameras(*yaws, scale=0.4, roll=0.0):
    angle = torch.tensor([[math.radians(yaw) for yaw in yaws]])
    rotation = rotation_from_euler(0 * angle, angle, 0 * angle + roll)
    views = angle.shape
    return WeakPerspectiveCamera(
        frontal(angle) @ rotation, torch.full(views, scale), torch.full((*views, 2), SIZE / 2)
    )


def views_of(face_model, count):
    return face_model.mean.expand(1, count, -1, -1)


def smooth_map(height=64, width=64):
    v, u = torch.meshgrid(
        (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij"
    )
    return torch.stack([u, v, (3 * u + 4 * v).sin() / 2 + 0.5])


def test_eq_12_barycentric_coordinates_agree_with_a_naive_loop(face_model):
    """For each texel: the 3 x 3 system of Eq. 12 in every triangle, the first that holds it."""
    height, width = 20, 24
    grid = uv_grid(face_model.uv, face_model.triangles, (height, width))
    uv, triangles = face_model.uv.double().numpy(), face_model.triangles.numpy()
    systems = np.concatenate([uv[triangles].transpose(0, 2, 1), np.ones((len(triangles), 1, 3))], 1)
    for row in range(height):
        for column in range(width):
            texel = np.array([(column + 0.5) / width, (row + 0.5) / height, 1])
            weights = np.linalg.solve(systems, np.tile(texel, (len(triangles), 1))[..., None])[
                ..., 0
            ]
            inside = np.flatnonzero(weights.min(1) >= -1e-9)
            assert bool(grid.mask[row, column]) == bool(len(inside))
            if len(inside):
                assert grid.triangle_index[row, column] == inside[0]
                found = grid.weights[row, column].numpy()
                np.testing.assert_allclose(found, weights[inside[0]], atol=1e-6)


def test_the_grid_has_no_holes_and_covers_what_the_chart_covers(face_model):
    grid = uv_grid(face_model.uv, face_model.triangles, 50)
    centre = (torch.arange(50) + 0.5) / 50
    inside = (centre > face_model.uv.min()) & (centre < face_model.uv.max())
    assert torch.equal(grid.mask, inside[:, None] & inside)
    torch.testing.assert_close(grid.weights.sum(-1), torch.ones(50, 50))
    assert grid.weights.min() >= 0


def test_a_grid_outside_the_map_is_an_error(face_model):
    with pytest.raises(ValueError, match=r"uv must be in \[0, 1\]"):
        uv_grid(face_model.uv + 3, face_model.triangles, 16)


def test_baking_uv_gives_the_texel_centres(face_model):
    grid = uv_grid(face_model.uv, face_model.triangles, (32, 40))
    baked = bake(face_model.uv, grid, face_model.triangles)
    u = ((torch.arange(40) + 0.5) / 40).expand(32, 40)
    v = ((torch.arange(32) + 0.5) / 32)[:, None].expand(32, 40)
    torch.testing.assert_close(baked[0][grid.mask], u[grid.mask])
    torch.testing.assert_close(baked[1][grid.mask], v[grid.mask])
    assert (baked.movedim(0, -1)[~grid.mask] > 0).all()  # padded, not black


def test_flipping_a_map_is_the_mirrored_face(face_model):
    grid = uv_grid(face_model.uv, face_model.triangles, 64)
    values = torch.randn(2, len(face_model.mean), 3)
    flipped = bake(values, grid, face_model.triangles).flip(-1)
    expected = bake(values[:, face_model.mirror], grid, face_model.triangles)
    torch.testing.assert_close(flipped, expected, atol=1e-4, rtol=0)


def test_bake_and_sample_vertices_are_inverse_for_smooth_values(face_model):
    grid = uv_grid(face_model.uv, face_model.triangles, 256)
    values = face_model.albedo_mean.expand(2, 3, -1, -1)
    back = sample_vertices(bake(values, grid, face_model.triangles), face_model.uv)
    assert (back - values).abs().max() < 0.02


def test_wrap_reads_the_map_at_texel_centres_and_repeats_its_border():
    maps = smooth_map(8, 8)[None]
    uv = torch.tensor([[[0.5 / 8, 2.5 / 8], [2.0 / 8, 2.5 / 8], [0.0, 2.5 / 8]]])[None]
    found = wrap(maps, uv)[0, :, 0]
    torch.testing.assert_close(found[:, 0], maps[0, :, 2, 0])
    torch.testing.assert_close(found[:, 1], maps[0, :, 2, 1:3].mean(-1))
    torch.testing.assert_close(found[:, 2], maps[0, :, 2, 0])


def test_eq_12_unwrapping_agrees_with_a_naive_loop(face_model):
    """Per texel: mix the projected corners, read the image bilinearly by hand."""
    camera, vertices = cameras(25.0, roll=0.3), views_of(face_model, 1)
    image = torch.rand(1, 1, 3, SIZE, SIZE)
    surface = draw(vertices, face_model.triangles, face_model.uv, camera, SIZE)
    grid = uv_grid(face_model.uv, face_model.triangles, 24)
    texture, visible = unwrap(image, vertices, camera, surface, grid, face_model.triangles)
    projected = camera.project(vertices)[0][0, 0].double().numpy()
    picture = image[0, 0].double().numpy()
    checked = 0
    for row, column in grid.mask.nonzero().tolist():
        if not visible[0, 0, 0, row, column]:
            assert texture[0, 0, :, row, column].abs().max() == 0
            continue
        corners = face_model.triangles[grid.triangle_index[row, column]].numpy()
        x, y = grid.weights[row, column].double().numpy() @ projected[corners] - 0.5
        i, j = math.floor(y), math.floor(x)
        top = picture[:, i, j] * (1 - x + j) + picture[:, i, j + 1] * (x - j)
        bottom = picture[:, i + 1, j] * (1 - x + j) + picture[:, i + 1, j + 1] * (x - j)
        expected = top * (1 - y + i) + bottom * (y - i)
        np.testing.assert_allclose(texture[0, 0, :, row, column].numpy(), expected, atol=1e-4)
        checked += 1
    assert checked > 250


@pytest.mark.parametrize("perspective", [False, True])
def test_unwrapping_a_wrapped_map_gives_the_map_back(face_model, perspective):
    camera, vertices = cameras(-30.0, 0.0, 45.0), views_of(face_model, 3)
    if perspective:
        translation = torch.tensor([0.0, 0, 900]).expand(1, 3, 3)
        camera = PerspectiveCamera(
            camera.rotation, translation, 900 * camera.scale, torch.full((1, 3, 2), SIZE / 2)
        )
    triangles, uv = face_model.triangles, face_model.uv
    surface = draw(vertices, triangles, uv, camera, SIZE)
    albedo = smooth_map()
    image = wrap(albedo.expand(1, 3, -1, -1, -1), surface.uv) * surface.mask
    grid = uv_grid(uv, triangles, 64)
    texture, visible = unwrap(image, vertices, camera, surface, grid, triangles)
    inner = visible.bool().clone()
    # next to the silhouette a bilinear sample mixes in the background
    for _ in range(4):
        inner = -torch.nn.functional.max_pool2d(-inner[0].float(), 3, 1, 1)[None] > 0
    error = ((texture - albedo).abs() * inner).amax(2)
    assert inner.float().mean() > 0.3
    assert error.max() < 0.05
    assert (error.sum() / inner.sum()) < 0.004


def hidden_by_ray_casting(vertices, triangles, points, towards_viewer):
    """Float64 brute force: is there a triangle between the point and the viewer at infinity?"""
    a, b, c = (vertices[triangles[:, k]] for k in range(3))
    e1, e2 = b - a, c - a
    h = np.cross(towards_viewer, e2)
    det = (e1 * h).sum(-1)
    s = points[:, None] - a[None]
    u = (s * h).sum(-1) / det
    q = np.cross(s, e1[None])
    v = (q * towards_viewer).sum(-1) / det
    t = (q * e2).sum(-1) / det
    return ((u >= 0) & (v >= 0) & (u + v <= 1) & (t > 6)).any(1)  # 6 mm: twice the tolerance


@pytest.mark.parametrize("yaw", [0.0, 35.0, -60.0])
def test_visibility_agrees_with_ray_casting(face_model, yaw):
    camera, vertices = cameras(yaw, scale=0.42), views_of(face_model, 1)
    triangles = face_model.triangles
    surface = draw(vertices, triangles, face_model.uv, camera, SIZE)
    grid = uv_grid(face_model.uv, triangles, 48)
    image = torch.ones(1, 1, 1, SIZE, SIZE)
    _, visible = unwrap(image, vertices, camera, surface, grid, triangles)
    mean = face_model.mean.double().numpy()
    points = bake(face_model.mean, grid, triangles).permute(1, 2, 0).reshape(-1, 3).double().numpy()
    viewer = -camera.rotation[0, 0, 2].double().numpy()  # against the camera's z
    facing = np.cross(
        mean[triangles[:, 1]] - mean[triangles[:, 0]], mean[triangles[:, 2]] - mean[triangles[:, 0]]
    )
    cosine = (facing / np.linalg.norm(facing, axis=-1, keepdims=True)) @ viewer
    cosine = cosine[grid.triangle_index.reshape(-1)]
    hidden = hidden_by_ray_casting(mean, triangles.numpy(), points, viewer)
    expected = (cosine > 0) & ~hidden & grid.mask.reshape(-1).numpy()
    clear = np.abs(cosine) > 0.15  # grazing triangles at the silhouette fall between pixel centres
    agree = visible.reshape(-1).numpy().astype(bool) == expected
    assert agree[clear].mean() > 0.98
    if yaw:
        assert hidden.any()
        assert expected.mean() < 0.8


def test_texels_outside_the_image_are_invisible(face_model):
    camera, vertices = (
        cameras(0.0, scale=1.0),
        views_of(face_model, 1),
    )  # the face is larger than the image
    surface = draw(vertices, face_model.triangles, face_model.uv, camera, SIZE)
    grid = uv_grid(face_model.uv, face_model.triangles, 32)
    image = torch.ones(1, 1, 1, SIZE, SIZE)
    texture, visible = unwrap(image, vertices, camera, surface, grid, face_model.triangles)
    assert visible[..., 16, 16] == 1
    assert visible[..., 2, 16] == 0
    assert torch.equal(texture > 0, visible > 0)


def test_unwrap_carries_gradients_to_image_vertices_and_camera(face_model):
    """Moving the camera by a pixel reads the image a pixel further: the slope of a ramp."""
    camera, vertices = cameras(10.0), views_of(face_model, 1).clone().requires_grad_()
    surface = draw(vertices.detach(), face_model.triangles, face_model.uv, camera, SIZE)
    grid = uv_grid(face_model.uv, face_model.triangles, 24)
    ramp = (torch.arange(SIZE) + 0.5).expand(1, 1, 1, SIZE, SIZE).clone().requires_grad_()
    translation = camera.translation.clone().requires_grad_()
    moved = WeakPerspectiveCamera(camera.rotation, camera.scale, translation)
    texture, visible = unwrap(ramp, vertices, moved, surface, grid, face_model.triangles)
    texture.sum().backward()
    count = visible.sum()
    torch.testing.assert_close(
        translation.grad[0, 0, 0], count
    )  # the ramp's slope is 1 in x, 0 in y
    assert translation.grad[0, 0, 1].abs() < 1e-3
    torch.testing.assert_close(ramp.grad.sum(), count)
    assert vertices.grad.abs().sum() > 0


def test_unwrap_keeps_float32_under_autocast(face_model):
    camera, vertices = cameras(20.0), views_of(face_model, 1)
    surface = draw(vertices, face_model.triangles, face_model.uv, camera, SIZE)
    grid = uv_grid(face_model.uv, face_model.triangles, 32)
    arguments = (
        torch.rand(1, 1, 3, SIZE, SIZE),
        vertices,
        camera,
        surface,
        grid,
        face_model.triangles,
    )
    expected = unwrap(*arguments)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = unwrap(*arguments)
    torch.testing.assert_close(found, expected)


def test_triangles_across_the_cut_behind_a_head_cover_nothing():
    around = 8  # a tube whose last column joins the first
    u = (torch.arange(around) + 0.5) / around
    uv = torch.stack([u.repeat(2), torch.tensor([0.1, 0.9]).repeat_interleave(around)], -1)
    a = torch.arange(around)
    b = (a + 1) % around
    triangles = torch.cat([torch.stack([a, b, b + 8], -1), torch.stack([a, b + 8, a + 8], -1)])
    across = [7, 15]
    for order in (triangles, triangles.flip(0)):
        grid = uv_grid(uv, order, 32)
        seen = {tuple(t) for t in order[grid.triangle_index.unique()].tolist()}
        assert seen.isdisjoint({tuple(t) for t in triangles[across].tolist()})
        assert len(seen) == 14
        assert not grid.mask[:, :2].any()  # beyond the first column: padded
    folded = torch.cat([triangles, triangles[:1].flip(1)])  # turned over, but narrow
    assert uncut(uv.numpy(), folded.numpy()).tolist() == [i for i in range(17) if i not in across]
