from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from core.camera import WeakPerspectiveCamera, frontal
from core.contracts import Reconstruction
from core.lighting import AMBIENT
from core.picture import (
    GREY,
    composite,
    draw_landmarks,
    face_pictures,
    illuminated_texture,
    resize,
    resized,
    save_png,
    shape_picture,
    sheet,
)
from core.render import render_reconstruction
from core.surface import Surface

SIZE = 48
IRRADIANCE = 0.709  # of ambient light of coefficient 0.8, the worked number of core.lighting


@pytest.fixture
def face(face_model):
    vertices = face_model.mean.expand(2, 1, -1, -1)
    camera = WeakPerspectiveCamera(
        frontal(vertices).expand(2, 1, 3, 3),
        torch.full((2, 1), SIZE / 260),
        torch.full((2, 1, 2), SIZE / 2),
    )
    light = torch.zeros(2, 1, 9, 1)
    light[..., 0, :] = AMBIENT
    return Reconstruction(
        vertices=vertices,
        neutral=vertices,
        triangles=face_model.triangles,
        uv=face_model.uv,
        camera=camera,
        landmarks=camera.project(face_model.landmarks(vertices))[0],
        albedo_map=torch.rand(2, 1, 3, 16, 16),
        light=light,
    )


def test_pictures_are_the_drawing_and_smooth_where_supersampled(face):
    image, surface = render_reconstruction(face, SIZE)
    plain, fine = face_pictures(face, SIZE, 1), face_pictures(face, SIZE)
    torch.testing.assert_close(plain.lit, image.clamp(0, 1))
    assert torch.equal(plain.mask, surface.mask)
    partial = (fine.mask > 0) & (fine.mask < 1)
    assert 20 < partial[0].sum() < 400  # the silhouette only
    assert ((fine.mask - plain.mask).abs() > 0)[partial.logical_not()].sum() < 5
    for picture in (fine.lit, fine.shape, fine.albedo, fine.light):
        assert picture.shape == (2, 1, 3, SIZE, SIZE)
        assert (picture >= 0).all()
        assert (picture <= fine.mask + 1e-6).all()  # premultiplied, black outside


def test_light_and_albedo_pictures_multiply_to_the_lit_one(face):
    pictures = face_pictures(face, SIZE, 1)
    torch.testing.assert_close(pictures.albedo * pictures.light, GREY * pictures.lit)
    inside = pictures.mask.expand_as(pictures.light) > 0
    assert (pictures.light[inside] - GREY * IRRADIANCE).abs().max() < 1e-3


def test_shape_picture_shows_the_lamp_at_the_upper_left():
    directions = {"left": (-0.6, 0, -0.8), "right": (0.6, 0, -0.8), "top": (0, -0.6, -0.8)}
    directions |= {"bottom": (0, 0.6, -0.8)}
    grey = {}
    for name, normal in directions.items():
        one = torch.ones(1, 1, 1, 2, 2)
        normals = torch.tensor(normal)[:, None, None] * one
        index = torch.zeros(1, 1, 2, 2, dtype=torch.int64)
        surface = Surface(one, one, normals, torch.zeros(1, 1, 2, 2, 2), index)
        grey[name] = float(shape_picture(surface).mean())
        dark = replace(surface, mask=0 * one)
        assert shape_picture(dark).max() == 0
    assert grey["left"] > grey["right"] + 0.1
    assert grey["top"] > grey["bottom"] + 0.1


def test_illuminated_texture_is_albedo_times_irradiance(face):
    found = illuminated_texture(face)
    torch.testing.assert_close(found, IRRADIANCE * face.albedo_map, atol=1e-3, rtol=0)
    light = face.light.clone()
    light[..., 3, :] = 0.3  # x: from the image's right
    albedo = torch.full_like(face.albedo_map, 0.5)
    lit = illuminated_texture(replace(face, light=light, albedo_map=albedo))
    assert (lit[..., 8:] - lit[..., :8].flip(-1)).min() > 0  # right is u > 0.5 in the map as well
    torch.testing.assert_close((lit + lit.flip(-1)) / 2, IRRADIANCE * albedo, atol=2e-2, rtol=0)


def test_composite_keeps_what_is_beside_the_mask(face):
    pictures = face_pictures(face, SIZE)
    background = torch.rand(2, 1, 3, SIZE, SIZE)
    over = composite(pictures.lit, pictures.mask, background)
    outside = (pictures.mask == 0).expand_as(over)
    assert torch.equal(over[outside], background[outside])
    inside = (pictures.mask == 1).expand_as(over)
    torch.testing.assert_close(over[inside], pictures.lit[inside])
    assert composite(pictures.lit, pictures.mask)[outside].min() == 1


def test_resized_camera_sees_the_same_at_another_size(face):
    points = face.vertices
    expected = 2.5 * face.camera.project(points)[0]
    torch.testing.assert_close(resized(face.camera, 2.5).project(points)[0], expected)


def test_landmarks_are_dots_at_their_places():
    images = torch.rand(2, 1, 3, 20, 30)
    before = images.clone()
    points = torch.tensor([[5.5, 7.5], [25.5, 3.5], [15.5, 15.5]]).repeat(2, 1, 1, 1)
    confidence = torch.tensor([[[1.0, 1, 0]], [[0.2, 0, 1]]])
    green = torch.tensor([0.0, 1.0, 0.0])
    drawn = draw_landmarks(images, points, confidence, (0.0, 1.0, 0.0), radius=2.0)
    assert torch.equal(images, before)
    places = [(0, 7, 5), (0, 3, 25), (1, 7, 5), (1, 15, 15)]
    for image, row, column in places:
        assert torch.equal(drawn[image, 0, :, row, column], green)
        assert torch.equal(drawn[image, 0, :, row, column + 1], green)
    changed = (drawn != images).any(2)[:, 0]
    y, x = torch.meshgrid(torch.arange(20), torch.arange(30), indexing="ij")
    near = torch.zeros_like(changed)
    for image, row, column in places:
        near[image] |= (y - row).square() + (x - column).square() <= 2.5**2
    assert torch.equal(changed, near)


def test_landmarks_beside_the_image_or_nan_are_left_out():
    image = torch.rand(3, 10, 10)
    points = torch.tensor([[-50.0, 5], [5, 1e9], [torch.nan, 5], [5, torch.inf]])
    assert torch.equal(draw_landmarks(image, points), image)
    corner = draw_landmarks(image, torch.tensor([[0.0, 10.0]]))
    assert not torch.equal(corner[:, 9, 0], image[:, 9, 0])
    assert torch.equal(corner[:, :7], image[:, :7])


def test_sheet_places_the_pictures_and_checks_its_labels():
    pictures = (torch.rand(2, 3, 3, 12, 16) * 255).round() / 255
    bare = sheet(pictures, gap=2)
    assert bare.shape == (3, 2 + 2 * 14, 2 + 3 * 18)
    torch.testing.assert_close(bare[:, 16:28, 20:36], pictures[1, 1])
    assert bare[:, :2].min() == bare[:, :, :2].min() == 1
    named = sheet(pictures, ["a", "b", "c"], title="step 3", gap=2)
    added = named.shape[1] - bare.shape[1]
    torch.testing.assert_close(named[:, added:], bare)
    assert named[:, :added].min() < 0.5  # ink
    labelled = sheet(pictures, rows=["x", "y"], gap=2)
    assert labelled.shape == bare.shape
    assert not torch.equal(labelled, bare)
    with pytest.raises(ValueError, match="2 labels for 3 columns"):
        sheet(pictures, ["a", "b"])
    with pytest.raises(ValueError, match="1 labels for 2 rows"):
        sheet(pictures, rows=["a"])


def test_resize_keeps_constant_images_and_the_range():
    images = torch.rand(2, 1, 3, 8, 8)
    large = resize(images, (24, 16))
    assert large.shape == (2, 1, 3, 24, 16)
    assert large.min() >= 0
    assert large.max() <= 1
    torch.testing.assert_close(resize(torch.full((3, 5, 5), 0.3), 11), torch.full((3, 11, 11), 0.3))


def test_png_holds_the_picture_rgb_top_row_first(tmp_path):
    image = torch.zeros(3, 4, 6)
    image[0, 0] = 1.2  # a red top row, beyond the range
    image[2, :, 5] = 0.5
    path = save_png(tmp_path / "new" / "picture.png", image)
    found = np.asarray(Image.open(path))
    assert found.shape == (4, 6, 3)
    assert found[0, 0].tolist() == [255, 0, 0]
    assert found[3, 5].tolist() == [0, 0, 128]
