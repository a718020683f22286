import numpy as np
import pytest
import torch
import trimesh

from core.normals import face_normals, normalize, vertex_normals, vertex_normals_plain


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


def test_nan_stays_nan():
    vertices = torch.rand(1, 4, 3)
    vertices[0, 3] = torch.nan
    normals = vertex_normals(vertices, torch.tensor([[0, 1, 2], [1, 2, 3]]))
    assert normals[0, 0].isfinite().all()
    assert normals[0, 1:].isnan().all()


@pytest.mark.parametrize("shape", [(3,), (5, 3), (2, 4, 5, 3), (0, 3), (2, 0, 3)])
def test_normalize_gives_unit_vectors_and_the_right_gradient(shape):
    vectors = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    units = normalize(vectors)
    torch.testing.assert_close(units.norm(dim=-1), torch.ones(shape[:-1], dtype=torch.float64))
    torch.testing.assert_close(units * vectors.norm(dim=-1, keepdim=True), vectors)
    if vectors.numel():
        assert torch.autograd.gradcheck(normalize, vectors)


def test_normalize_leaves_zero_alone():
    vectors = torch.tensor([[0.0, 0, 0], [0, 3, 4]], requires_grad=True)
    units = normalize(vectors)
    units.sum().backward()
    torch.testing.assert_close(units, torch.tensor([[0, 0, 0], [0, 0.6, 0.8]]))
    assert vectors.grad[0].tolist() == [0, 0, 0]
