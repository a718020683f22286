import math

import numpy as np
import pytest
import torch
import trimesh

from core.camera import PerspectiveCamera, WeakPerspectiveCamera, frontal
from core.contracts import Reconstruction
from core.lighting import AMBIENT
from core.render import draw, irradiance, render, render_reconstruction
from core.rotation import rotation_from_euler

SIZE = 80
PICTURES = ("mask", "depth", "normals", "uv", "triangle_index")


def rotation(yaw=0.0, pitch=0.0, roll=0.0):
    angles = [torch.tensor([[math.radians(angle)]]) for angle in (pitch, yaw, roll)]
    return frontal(angles[0]) @ rotation_from_euler(*angles)


def weak(scale=0.34, **angles):
    centre = torch.full((1, 1, 2), SIZE / 2)
    return WeakPerspectiveCamera(rotation(**angles), torch.full((1, 1), scale), centre)


def perspective(**angles):
    centre = torch.full((1, 1, 2), SIZE / 2)
    translation = torch.tensor([[[3.0, -4.0, 600.0]]])
    return PerspectiveCamera(rotation(**angles), translation, torch.full((1, 1), 200.0), centre)


def drawn(face_model, camera, size=SIZE):
    return draw(face_model.mean[None, None], face_model.triangles, face_model.uv, camera, size)


def sphere(radius=100.0):
    mesh = trimesh.creation.icosphere(4, radius)
    vertices = torch.tensor(np.array(mesh.vertices)).float()
    uv = (vertices[:, :2] / radius * torch.tensor([1.0, -1]) + 1) / 2
    return vertices[None, None], torch.tensor(np.array(mesh.faces)), uv


def test_a_sphere_has_the_depth_normals_uv_and_outline_of_a_sphere():
    vertices, triangles, uv = sphere()
    surface = draw(vertices, triangles, uv, weak(0.3, yaw=0.0), SIZE)
    y, x = torch.meshgrid(torch.arange(SIZE) + 0.5, torch.arange(SIZE) + 0.5, indexing="ij")
    x, y = (x - SIZE / 2) / 0.3, (y - SIZE / 2) / 0.3  # millimetres, camera frame
    radius = (x**2 + y**2).sqrt()
    mask = surface.mask[0, 0, 0] > 0
    assert mask[radius < 98].all()
    assert not mask[radius > 100].any()
    inner = radius < 90
    depth = -(100**2 - radius**2).clamp(min=0).sqrt()
    assert (surface.depth[0, 0, 0] - depth)[inner].abs().max() < 0.5
    normals = torch.stack([x, y, depth]) / 100
    assert (surface.normals[0, 0] - normals)[:, inner].abs().max() < 0.02
    expected_uv = torch.stack([x / 100 + 1, y / 100 + 1], -1) / 2
    assert (surface.uv[0, 0] - expected_uv)[inner].abs().max() < 2e-3
    torch.testing.assert_close(
        surface.normals[0, 0].norm(dim=0)[mask], torch.ones(int(mask.sum())), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("make", [weak, perspective])
def test_a_pixels_surface_point_projects_back_into_that_pixel(face_model, make):
    """uv -> point of its triangle -> camera.project gives the pixel's centre and the depth."""
    camera = make(yaw=25.0, pitch=-10.0, roll=15.0)
    surface = drawn(face_model, camera)
    triangle = surface.triangle_index[0, 0]
    rows, columns = (triangle >= 0).nonzero(as_tuple=True)
    corners = face_model.triangles[triangle[rows, columns]]
    a, b, c = face_model.uv[corners].double().unbind(1)
    system = torch.stack([b - a, c - a], -1)
    uv = surface.uv[0, 0][rows, columns].double()
    w = torch.linalg.solve(system, uv - a)
    weights = torch.cat([1 - w.sum(-1, keepdim=True), w], -1)
    points = (weights[..., None] * face_model.mean[corners].double()).sum(1)
    pixels, depth = camera.map(lambda value: value[0, 0].double()).project(points)
    centres = torch.stack([columns + 0.5, rows + 0.5], -1)
    error = (pixels - centres).norm(dim=-1)  # vertices are snapped to 1/16 px
    assert error.quantile(0.98) < 0.1
    assert error.max() < 0.5  # in slivers at the silhouette
    assert (depth - surface.depth[0, 0, 0][rows, columns]).abs().median() < 0.05


def test_background_is_zero_everywhere(face_model):
    surface = drawn(face_model, weak(yaw=20.0))
    background = surface.triangle_index < 0
    assert background.any()
    assert torch.equal(background, surface.mask[:, :, 0] == 0)
    for picture in (surface.depth, surface.normals, surface.uv.movedim(-1, 2)):
        assert (picture * background[:, :, None]).abs().max() == 0


def test_lambert_by_hand(face_model):
    """White ambient light: the image is albedo times AMBIENT sqrt(pi) / 2."""
    surface = drawn(face_model, weak())
    albedo = torch.tensor([0.8, 0.5, 0.3])[:, None, None].expand(1, 1, 3, 16, 16)
    light = torch.zeros(1, 1, 9, 1)
    light[..., 0, :] = AMBIENT
    image = render(surface, albedo, light)
    factor = 0.8 * math.sqrt(math.pi) / 2
    expected = torch.tensor([0.8, 0.5, 0.3])[:, None, None] * factor * surface.mask[0, 0]
    torch.testing.assert_close(image[0, 0], expected)


def test_light_from_the_images_left_lights_the_image_left_cheek_whatever_the_pose(face_model):
    light = torch.zeros(1, 1, 9, 1)
    light[..., 0, :], light[..., 3, :] = 1.0, -0.5  # more from -x of the camera frame
    for yaw in (-30.0, 0.0, 30.0):
        surface = drawn(face_model, weak(yaw=yaw))
        image = render(surface, torch.ones(1, 1, 3, 8, 8), light)[0, 0, 0]
        towards_left = (surface.normals[0, 0, 0] < -0.5) & (surface.mask[0, 0, 0] > 0)
        towards_right = surface.normals[0, 0, 0] > 0.5
        assert image[towards_left].min() > image[towards_right].max()


def test_attributes_are_drawn_with_everything_else(face_model):
    """uv given as attributes comes out as uv, whatever else is drawn."""
    mean, uv = face_model.mean[None, None], face_model.uv
    attributes = torch.cat([uv, 3 * uv[:, :1]], -1)[None, None].requires_grad_()
    camera = weak(yaw=25.0)
    surface = draw(mean, face_model.triangles, uv, camera, SIZE, attributes=attributes)
    expected = torch.cat([surface.uv, 3 * surface.uv[..., :1]], -1).movedim(-1, -3)
    torch.testing.assert_close(surface.attributes, expected)
    plain = drawn(face_model, camera)
    assert plain.attributes is None
    assert torch.equal(surface.normals, plain.normals)
    # the weights of each pixel sum to one
    surface.attributes.sum().backward()
    torch.testing.assert_close(attributes.grad.sum(), 3 * surface.mask.sum())


def test_colours_of_vertices_are_a_reflectance(face_model):
    """Reflectance as attributes equals the same as a UV map, where it is linear in uv."""
    uv, mean = face_model.uv, face_model.mean[None, None]
    ramp = (torch.arange(64) + 0.5) / 64
    albedo = torch.stack(
        [ramp.expand(64, 64), ramp[:, None].expand(64, 64), 0.3 + 0 * ramp.expand(64, 64)]
    )
    colours = torch.cat([uv, torch.full_like(uv[:, :1], 0.3)], -1)[None, None]
    light = torch.randn(1, 1, 9, 3)
    surface = draw(mean, face_model.triangles, uv, weak(yaw=10.0), SIZE, attributes=colours)
    torch.testing.assert_close(
        render(surface, None, light), render(surface, albedo[None, None], light), atol=1e-4, rtol=0
    )


def test_a_surface_without_reflectance_says_so(face_model):
    surface = drawn(face_model, weak())
    with pytest.raises(ValueError, match="0 attributes"):
        render(surface, None, torch.zeros(1, 1, 9, 1))
    two = torch.zeros(1, 1, len(face_model.mean), 2)
    mean, triangles = face_model.mean[None, None], face_model.triangles
    surface = draw(mean, triangles, face_model.uv, weak(), SIZE, attributes=two)
    with pytest.raises(ValueError, match=r"2 attributes.*red, green and blue"):
        render(surface, None, torch.zeros(1, 1, 9, 1))


def test_irradiance_is_the_image_of_a_white_surface(face_model):
    surface, light = drawn(face_model, weak(pitch=20.0)), torch.randn(1, 1, 9, 3)
    white = torch.ones(1, 1, 3, 8, 8)
    torch.testing.assert_close(irradiance(surface, light), render(surface, white, light))


def test_images_are_not_clipped(face_model):
    surface = drawn(face_model, weak())
    light = torch.zeros(1, 1, 9, 1)
    light[..., 0, :] = 5.0
    assert render(surface, torch.ones(1, 1, 3, 8, 8), light).max() > 2


def test_views_are_drawn_independently(face_model):
    camera = weak(yaw=20.0)
    other = vars(weak(yaw=-35.0))
    both = WeakPerspectiveCamera(
        **{name: torch.cat([other[name], value], 1) for name, value in vars(camera).items()}
    )
    vertices = face_model.mean.expand(1, 2, -1, -1)
    both = draw(vertices, face_model.triangles, face_model.uv, both, SIZE)
    alone = drawn(face_model, camera)
    for name in PICTURES:
        torch.testing.assert_close(getattr(both, name)[:, 1:], getattr(alone, name))


def test_size_is_height_then_width(face_model):
    surface = drawn(face_model, weak(), (60, 100))
    assert surface.mask.shape == (1, 1, 1, 60, 100)
    assert surface.uv.shape == (1, 1, 60, 100, 2)


def test_geometry_is_float32_under_autocast(face_model):
    camera = weak(yaw=20.0)
    expected = drawn(face_model, camera)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = drawn(face_model, camera)
    for name in PICTURES:
        assert torch.equal(getattr(found, name), getattr(expected, name)), name


def test_gradients_reach_vertices_camera_albedo_and_light(face_model):
    """Against finite differences of a smooth functional, inside the silhouette."""
    light = torch.randn(1, 1, 9, 3) * 0.1
    light[..., 0, :] = AMBIENT
    albedo = torch.rand(1, 1, 3, 8, 8)
    weights = torch.zeros(1, 1, 1, SIZE, SIZE)
    weights[..., 28:52, 30:50] = torch.rand(24, 20)  # well inside the face

    def functional(shift, turn, albedo, light):
        camera = weak()
        small = rotation_from_euler(turn[0:1, None], turn[1:2, None], turn[2:3, None])
        camera = WeakPerspectiveCamera(
            camera.rotation @ small, camera.scale, camera.translation + shift
        )
        surface = drawn(face_model, camera)
        return (render(surface, albedo, light) * weights).sum()

    leaves = [torch.zeros(2), torch.zeros(3), albedo, light]
    for leaf in leaves:
        leaf.requires_grad_()
    gradients = torch.autograd.grad(functional(*leaves), leaves)
    with torch.no_grad():
        for leaf, gradient, step in zip(leaves, gradients, (0.5, 0.03, 0.5, 0.1), strict=True):
            direction = torch.nn.functional.normalize(torch.randn(leaf.shape), dim=0)
            values = []
            for sign in (1, -1):
                moved = [
                    value + sign * step * direction if value is leaf else value for value in leaves
                ]
                values.append(functional(*moved))
            numeric = (values[0] - values[1]) / (2 * step)
            torch.testing.assert_close((gradient * direction).sum(), numeric, rtol=0.12, atol=0.05)


def test_render_reconstruction_is_draw_and_render(face_model):
    camera, mean = weak(yaw=15.0), face_model.mean[None, None]
    light = torch.randn(1, 1, 9, 1)
    face = Reconstruction(
        vertices=mean,
        neutral=mean,
        triangles=face_model.triangles,
        uv=face_model.uv,
        camera=camera,
        landmarks=camera.project(face_model.landmarks(mean))[0],
        albedo_map=torch.rand(1, 1, 3, 32, 32),
        light=light,
    )
    image, surface = render_reconstruction(face, SIZE)
    torch.testing.assert_close(image, render(drawn(face_model, camera), face.albedo_map, light))
    assert image.shape == (1, 1, 3, SIZE, SIZE)
    assert (image * (1 - surface.mask)).abs().max() == 0
