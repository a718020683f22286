"""The deformation graph: nodes, weights, rigid motions, lips apart; the orthogonal complement."""

import numpy as np
import pytest
import torch

from core.deformation_graph import (
    DeformationGraph,
    build_graph,
    orthogonal_complement,
    orthonormal,
)
from core.errors import DataError
from core.face_models import FaceModel, load_face_model
from core.landmarks import INNER_MOUTH
from core.mesh import used
from core.rotation import rotation_from_vector
from tests.fakes.face_model import face_model_arrays

pytestmark = pytest.mark.usefixtures("one_thread")

NODES = 60


@pytest.fixture(scope="module")
def graph(face_model) -> DeformationGraph:
    return build_graph(face_model, NODES)


@pytest.fixture(scope="module")
def head() -> FaceModel:
    return load_face_model("procedural", 0, None, 0)


@pytest.fixture(scope="module")
def papers(head) -> DeformationGraph:
    """Of the paper's size, on the built-in head."""
    return build_graph(head, 521)


def dense(graph: DeformationGraph) -> torch.Tensor:
    """S as a matrix, entry by entry."""
    matrix = torch.zeros(len(graph.bound), len(graph.nodes), dtype=torch.float64)
    for vertex, (nodes, weights) in enumerate(zip(graph.bound, graph.weights, strict=True)):
        for node, weight in zip(nodes.tolist(), weights.tolist(), strict=True):
            matrix[vertex, node] += weight
    return matrix


def test_it_has_as_many_nodes_as_asked_for_all_in_the_region(graph, papers, face_model, head):
    assert len(graph.nodes) == NODES
    assert len(papers.nodes) == 521  # Sec. 3.2
    for one, model in ((graph, face_model), (papers, head)):
        assert len(one.nodes.unique()) == len(one.nodes)
        assert model.region("face")[one.nodes].all()


def test_nodes_are_spread_over_the_face(papers, head):
    """No vertex is far from a node, no two nodes are close."""
    mean = head.mean
    inside = mean[head.region("face")]
    nearest = torch.cdist(inside, mean[papers.nodes]).amin(1)
    assert nearest.quantile(0.95) < 9  # millimetres
    between = torch.cdist(mean[papers.nodes], mean[papers.nodes]).fill_diagonal_(1e9).amin(1)
    assert between.median() > 4


def test_rows_of_s_sum_to_1(graph, papers):
    for one in (graph, papers):
        torch.testing.assert_close(one.weights.sum(1), torch.ones(len(one.weights)))
        assert one.weights.shape[1] == 12  # sparse
    assert papers.weights.abs().max() < 5  # no cancelling of large numbers


@pytest.mark.parametrize("which", ["graph", "papers"])
def test_a_rigid_motion_of_the_graph_is_the_meshs(which, request):
    one = request.getfixturevalue(which)
    model = request.getfixturevalue("face_model" if which == "graph" else "head")
    inside, _ = used(model.part("face"))
    turn = rotation_from_vector(torch.tensor([0.4, -0.7, 0.2]))
    offset = torch.tensor([3.0, -20.0, 7.0])
    before = model.mean
    after = before @ turn.T + offset
    moved = before + one((after - before)[one.nodes])
    assert (moved - after)[inside].abs().max() < 1e-3  # millimetres
    stretched = before * torch.tensor([1.1, 0.9, 1.0])  # and any other affine motion
    moved = before + one((stretched - before)[one.nodes])
    assert (moved - stretched)[inside].abs().max() < 1e-3
    shifted = one(offset.expand(len(one.nodes), 3))  # also beyond the face
    torch.testing.assert_close(shifted, offset.expand_as(shifted), atol=1e-3, rtol=1e-5)


def test_beyond_the_region_vertices_stay_between_their_nodes(papers, head):
    outside = ~head.region("face")
    assert outside.any()
    assert (papers.weights[outside] >= 0).all()


def test_it_is_a_product_with_a_matrix_and_has_its_gradient(graph):
    t = torch.randn(2, 3, NODES, 3, dtype=torch.float64, requires_grad=True)
    S = dense(graph)
    torch.testing.assert_close(graph(t), torch.einsum("ng,abgx->abnx", S, t))
    other = torch.randn(2, 3, len(S), 3, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((graph(t) * other).sum(), t)
    torch.testing.assert_close(gradient, torch.einsum("ng,abnx->abgx", S, other))


def test_it_is_float32_under_autocast(graph):
    t = torch.randn(NODES, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(graph(t.bfloat16().float()), graph(t.bfloat16()))
        assert graph(t).dtype == torch.float32


def test_upper_and_lower_lip_have_no_node_in_common(papers, head):
    """Though they touch: of the middle of either no weight comes from beyond the gap."""
    upper, lower = (
        head.landmark_vertices[list(INNER_MOUTH[part])].flatten()
        for part in (slice(1, 4), slice(5, 8))
    )
    assert (head.mean[upper].mean(0) - head.mean[lower].mean(0)).norm() < 1  # millimetre
    assert not set(papers.bound[upper].flatten().tolist()) & set(
        papers.bound[lower].flatten().tolist()
    )


def test_lips_move_apart(papers, head):
    """Nodes that are moved as the jaw opens leave the upper lip where it is."""
    jaw = head.expression_basis[head.expression_names.index("jawOpen")]
    moved = papers(jaw[papers.nodes])
    points = head.landmarks(moved)[:, 1]
    wanted = head.landmarks(jaw)[:, 1]
    upper, lower = list(INNER_MOUTH[1:4]), list(INNER_MOUTH[5:8])
    assert (points - wanted)[upper].abs().max() < 2.5
    assert (points[upper] - points[lower]).min() > 0.8 * (wanted[upper] - wanted[lower]).min()


def test_pulled_back_fields_are_the_nearest_ones(graph, face_model):
    """Least squares by another solver; fields that the graph can have come back."""
    basis = face_model.expression_basis
    wanted = np.linalg.lstsq(
        dense(graph).numpy(), basis.double().permute(1, 0, 2).flatten(1).numpy()
    )[0]
    found = graph.pulled_back(basis).permute(1, 0, 2).flatten(1)
    torch.testing.assert_close(found.double(), torch.from_numpy(wanted), atol=1e-3, rtol=1e-3)
    t = torch.randn(4, NODES, 3)
    torch.testing.assert_close(graph.pulled_back(graph(t)), t, atol=1e-3, rtol=1e-3)


def test_neighbours_share_a_vertex(graph):
    both = (dense(graph) != 0).double()
    wanted = (both.T @ both).triu(1).nonzero()
    assert torch.equal(graph.edges, wanted)


def test_harmonics_are_smooth_and_grow_rougher(graph):
    functions = graph.harmonics(NODES - 1)
    products = functions @ functions.T
    assert (products - products.diag().diag()).abs().max() < 1e-3 * products.max()
    assert functions.sum(1).abs().max() < 1e-3
    one, other = graph.edges.T
    roughness = (functions[:, one] - functions[:, other]).square().sum(1)
    ratio = roughness / functions.square().sum(1)
    assert (ratio.diff() > -1e-4).all()
    assert functions[0].square().mean() == pytest.approx(1, rel=1e-4)
    sizes = functions.square().mean(1)
    torch.testing.assert_close(sizes, ratio[0] / ratio, rtol=1e-3, atol=1e-5)
    assert graph.harmonics(0).shape == (0, NODES)
    with pytest.raises(DataError, match=f"{NODES} nodes"):
        graph.harmonics(NODES)


def test_the_complement_is_orthogonal_in_float32(papers, head):
    """B_G^T OCL(Theta) = 0 to 1e-5, Eq. 5; twice is the same; nothing else is lost."""
    pulled = papers.pulled_back(head.expression_basis)
    spanned = orthonormal(pulled)
    theta = torch.randn(3 * 521, 500)
    rest = orthogonal_complement(theta, spanned)
    assert rest.dtype == torch.float32
    columns = pulled.flatten(1).T
    columns = columns / columns.norm(dim=0).clamp(min=1e-6)
    assert (columns.T @ rest).abs().max() < 1e-5
    assert (spanned.T @ rest).abs().max() < 1e-5
    torch.testing.assert_close(orthogonal_complement(rest, spanned), rest, atol=1e-5, rtol=0)
    assert torch.linalg.matrix_rank(torch.cat([rest, spanned], 1)) == 500 + spanned.shape[1]
    within = spanned @ torch.randn(spanned.shape[1], 3)
    assert orthogonal_complement(within, spanned).abs().max() < 1e-5


def test_the_complement_is_eq_5_as_printed():
    """Theta - B (B^T B)^-1 B^T Theta, for independent columns."""
    B = torch.randn(6, 20, 3, dtype=torch.float64)
    columns, theta = B.flatten(1).T, torch.randn(60, 9, dtype=torch.float64)
    wanted = theta - columns @ torch.linalg.inv(columns.T @ columns) @ columns.T @ theta
    torch.testing.assert_close(orthogonal_complement(theta, orthonormal(B)), wanted)


def test_dependent_columns_are_left_out():
    one = torch.randn(1, 20, 3)
    basis = torch.cat([one, 2 * one, torch.randn(1, 20, 3), torch.zeros(1, 20, 3)])
    spanned = orthonormal(basis)
    assert spanned.shape == (60, 2)
    torch.testing.assert_close(spanned.T @ spanned, torch.eye(2), atol=1e-5, rtol=1e-5)
    assert orthonormal(basis[:0]).shape == (60, 0)


def test_what_cannot_be_a_graph_is_refused(face_model):
    arrays = face_model_arrays()
    one, other = arrays["triangles"][0, :2]
    extra = np.array([[one, other, 100], [one, other, 200]])
    broken = FaceModel({**arrays, "triangles": np.concatenate([arrays["triangles"], extra])})
    with pytest.raises(DataError, match="more than two triangles"):
        build_graph(broken, NODES, None)


def test_all_vertices_can_be_nodes(face_model):
    graph = build_graph(face_model, 10_000, None)
    assert len(graph.nodes) == len(face_model.mean)
