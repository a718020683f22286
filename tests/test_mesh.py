import numpy as np
import torch
import trimesh

from core.mesh import edges, used


def test_edges_of_two_triangles():
    found = edges(torch.tensor([[2, 0, 1], [1, 3, 2]]))
    assert found.tolist() == [[0, 1], [0, 2], [1, 2], [1, 3], [2, 3]]


def test_edges_satisfy_eulers_formula():
    sphere = trimesh.creation.icosphere(2)
    vertices, triangles = sphere.vertices, torch.tensor(np.array(sphere.faces))
    assert len(vertices) - len(edges(triangles)) + len(triangles) == 2


def test_used_vertices_and_their_triangles():
    kept, triangles = used(torch.tensor([[7, 2, 5], [5, 2, 9]]))
    assert kept.tolist() == [2, 5, 7, 9]
    assert triangles.tolist() == [[2, 0, 1], [1, 0, 3]]
