import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from core.mesh import (
    edges,
    export_glb,
    export_obj,
    face_normals,
    vertex_normals,
    vertex_normals_plain,
)


def sphere(subdivisions=3, radius=50.0):
    mesh = trimesh.creation.icosphere(subdivisions, radius)
    return torch.tensor(np.array(mesh.vertices)), torch.tensor(np.array(mesh.faces))


def test_normals_of_a_sphere_point_outwards():
    vertices, triangles = sphere()
    outwards = vertices / vertices.norm(dim=-1, keepdim=True)
    assert ((vertex_normals(vertices, triangles) * outwards).sum(-1) > 0.9999).all()
    centres = vertices[triangles].mean(1)
    outwards = centres / centres.norm(dim=-1, keepdim=True)
    assert ((face_normals(vertices, triangles) * outwards).sum(-1) > 0.9999).all()


def test_face_normals_agree_with_trimesh(face_model):
    mesh = trimesh.Trimesh(face_model.mean.numpy(), face_model.triangles.numpy(), process=False)
    found = face_normals(face_model.mean, face_model.triangles)
    np.testing.assert_allclose(found.numpy(), mesh.face_normals, atol=1e-5)


def test_vertex_normals_are_weighted_with_the_area():
    """Two triangles share an edge at a right angle; one has three times the area of the other."""
    vertices = torch.tensor([[0.0, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, -3]])
    triangles = torch.tensor([[0, 2, 1], [0, 1, 3]])  # normals +z (area 1/2) and -x (area 3/2)
    expected = torch.tensor([-3.0, 0, 1]) / 10**0.5
    torch.testing.assert_close(vertex_normals(vertices, triangles)[0], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_fused_kernel_agrees_with_plain_operations(face_model, dtype):
    shape = face_model.mean + 3 * torch.randn(2, 3, *face_model.mean.shape)
    weights = torch.randn(shape.shape, dtype=dtype)
    results = []
    for function in (vertex_normals, vertex_normals_plain):
        vertices = shape.to(dtype).requires_grad_()
        normals = function(vertices, face_model.triangles)
        (normals * weights).sum().backward()
        results.append((normals.detach(), vertices.grad))
    tolerance = 2e-4 if dtype == torch.float32 else 1e-10
    torch.testing.assert_close(*results, atol=tolerance, rtol=tolerance)


def test_vertex_normals_have_the_right_gradient():
    vertices, triangles = sphere(0)
    noisy = (vertices[None] / 50 + 0.1 * torch.randn(2, *vertices.shape).double()).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: vertex_normals(x, triangles), noisy)


def test_vertices_without_area_get_zero_and_no_gradient():
    vertices = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [9, 9, 9], [2, 0, 0]])
    triangles = torch.tensor([[0, 1, 2], [3, 3, 3], [4, 4, 0]])
    for function in (vertex_normals, vertex_normals_plain):
        leaf = vertices.clone().requires_grad_()
        normals = function(leaf, triangles)
        normals.sum().backward()
        assert normals[3:].abs().max() == 0
        assert leaf.grad.isfinite().all()
        assert leaf.grad[3:].abs().max() == 0


def test_vertex_normals_do_not_depend_on_the_threads(face_model):
    vertices = face_model.mean + torch.randn(5, *face_model.mean.shape)
    before = torch.get_num_threads()
    results = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        results.append(vertex_normals(vertices, face_model.triangles))
    torch.set_num_threads(before)
    assert torch.equal(*results)


def test_triangles_beyond_the_vertices_are_an_error():
    with pytest.raises(IndexError, match="3 vertices"):
        vertex_normals(torch.rand(2, 3, 3), torch.tensor([[0, 1, 3]]))


def test_edges_of_two_triangles():
    found = edges(torch.tensor([[2, 0, 1], [1, 3, 2]]))
    assert found.tolist() == [[0, 1], [0, 2], [1, 2], [1, 3], [2, 3]]


def test_edges_satisfy_eulers_formula():
    vertices, triangles = sphere(2)
    assert len(vertices) - len(edges(triangles)) + len(triangles) == 2


def coloured_map():
    """A texture whose red grows with u, green with v (down)."""
    ramp = (torch.arange(64) + 0.5) / 64
    return torch.stack(
        [ramp.expand(64, 64), ramp[:, None].expand(64, 64), torch.full((64, 64), 0.25)]
    )


def colour_at_vertices(uv_up, image):
    """What a viewer shows there: v up in trimesh's memory, pixels from the top in the picture."""
    size = np.array(image.size)
    x, y = (np.stack([uv_up[:, 0], 1 - uv_up[:, 1]], -1) * size).clip(0, size - 1).astype(int).T
    return np.asarray(image.convert("RGB"))[y, x] / 255


@pytest.mark.parametrize("kind", ["obj", "glb"])
def test_exported_files_read_back_with_shape_unit_orientation_and_texture(
    face_model, tmp_path, kind
):
    export = {"obj": export_obj, "glb": export_glb}[kind]
    path = tmp_path / f"face one.{kind}"
    texture = coloured_map()
    export(path, face_model.mean, face_model.triangles, face_model.uv, texture)
    mesh = trimesh.load(path, process=False, force="mesh")
    unit = {"obj": 1, "glb": 1000}[kind]  # glTF is in metres
    mean, uv = face_model.mean.numpy(), face_model.uv.numpy()
    # a reader may reorder vertices: match them by their unique places
    distance = np.linalg.norm(mesh.vertices[:, None] * unit - mean[None], axis=-1)
    match = distance.argmin(1)
    assert distance.min(1).max() < 1e-3
    assert len(set(match)) == len(mean)
    assert {tuple(sorted(f)) for f in match[mesh.faces].tolist()} == {
        tuple(sorted(f)) for f in face_model.triangles.tolist()
    }
    assert (mesh.face_normals[:, 2] > -0.1).mean() > 0.95  # still counter-clockwise from outside
    np.testing.assert_allclose(
        mesh.visual.uv, np.stack([uv[match, 0], 1 - uv[match, 1]], -1), atol=1e-6
    )
    image = mesh.visual.material.image if kind == "obj" else mesh.visual.material.baseColorTexture
    found = colour_at_vertices(mesh.visual.uv, image)
    np.testing.assert_allclose(found[:, :2], uv[match], atol=1 / 60)


def test_obj_comes_with_its_own_material_and_picture(face_model, tmp_path):
    for name in ("a", "b"):
        export_obj(
            tmp_path / f"{name}.obj",
            face_model.mean,
            face_model.triangles,
            face_model.uv,
            coloured_map(),
        )
    assert {path.name for path in tmp_path.iterdir()} == {
        *("a.obj", "a.mtl", "a.png", "b.obj", "b.mtl", "b.png")
    }
    picture = np.asarray(Image.open(tmp_path / "a.png"))
    np.testing.assert_allclose(picture.transpose(2, 0, 1) / 255, coloured_map(), atol=1 / 255)
    text = (tmp_path / "a.obj").read_text()
    rows = [line.split() for line in text.splitlines() if line.startswith("vt ")]
    v = np.array([float(row[2]) for row in rows])
    top = face_model.uv[:, 1].argmin().item()  # the forehead: v up in the file, so near 1
    assert v.max() == pytest.approx(1 - face_model.uv[top, 1].item(), abs=1e-5)
