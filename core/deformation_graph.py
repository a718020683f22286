"""A coarse graph that deforms a fine mesh, and deformations apart from given ones (FML Sec. 3.2).

    Eq. 1-2  g = g0 + Theta a, v = v0 + S Theta a     DeformationGraph
    Eq. 4-5  orthogonal complement layer (OCL)        orthogonal_complement
    Eq. 10   neighbours of a node                     DeformationGraph.edges

The nodes are vertices of the mesh that a decimation by edge length (libigl) leaves, with the mouth
opened by the model's own expressions, so that nothing connects the lips. A vertex is bound to its
nearest nodes; the weights are those of Sumner et al. (Embedded deformation for shape manipulation,
2007), changed as little as possible so that they also reproduce the vertex's own position: each row
of S sums to 1, and any affine motion of the nodes is exactly that of the mesh. That holds for the
part of the mesh that the graph was made for; beyond it the weights are Sumner's, since a head's
back must not be extrapolated from its face.

Convention: displacements in any unit, model frame; S acts on each axis alike, so that it is kept as
numbers of nodes and weights, (n, k) each, never as a matrix.
"""

import igl
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from scipy.sparse import coo_array
from torch import Tensor, nn

from core.errors import DataError
from core.face_models.model import FaceModel
from core.landmarks import INNER_MOUTH
from core.mesh import used
from core.precision import at_least_float32, without_autocast

NEIGHBOURS = 12  # nodes of a vertex, ours: fewer leave rows of large weights of both signs
OPEN_MM = 30.0  # between the lips where nodes are chosen: further than a vertex's nodes are
UPPER, LOWER = INNER_MOUTH[1:4], INNER_MOUTH[:4:-1]  # points of the lips that face each other
ATTEMPTS = 12  # at a decimation to the wanted number of nodes
BLOCK = 4096  # vertices whose distances to the nodes are computed at a time


class DeformationGraph(nn.Module):
    """Nodes on a mesh, and what each vertex takes of their displacements.

    All arrays are buffers that checkpoints do not store.

    Args:
        nodes: numbers of the vertices that are nodes.
        bound: for each vertex the nodes it follows, numbers from 0 to g - 1.
        weights: how much it follows each; rows sum to 1.
    """

    nodes: Int[Tensor, " g"]
    bound: Int[Tensor, "n k"]
    weights: Float[Tensor, "n k"]
    edges: Int[Tensor, "e 2"]

    def __init__(
        self,
        nodes: Int[Tensor, " g"],
        bound: Int[Tensor, "n k"],
        weights: Float[Tensor, "n k"],
    ) -> None:
        super().__init__()
        arrays = {"nodes": nodes, "bound": bound, "weights": weights, "edges": _edges(bound)}
        for name, array in arrays.items():
            self.register_buffer(name, array, persistent=False)

    def forward(
        self, displacements: Float[Tensor, "*b g 3"], chosen: Int[Tensor, " p"] | None = None
    ) -> Float[Tensor, "*b n 3"]:
        """S t: the displacements of the vertices, in at least float32 also under autocast.

        Args:
            displacements: t of the nodes.
            chosen: numbers of vertices; None = all.
        """
        bound, weights = self.bound, self.weights
        if chosen is not None:
            bound, weights = bound[chosen], weights[chosen]
        with without_autocast(displacements):
            moved, n = at_least_float32(displacements), len(bound)
            # one row for each node, so that a vertex sums up rows in one pass over S
            rows = moved.reshape(-1, *moved.shape[-2:]).movedim(0, 1).flatten(1)
            weights = weights.to(rows.dtype)
            summed = F.embedding_bag(bound, rows, per_sample_weights=weights, mode="sum")
            return summed.unflatten(1, (-1, 3)).movedim(1, 0).reshape(*moved.shape[:-2], n, 3)

    def pulled_back(self, basis: Float[Tensor, "k n 3"]) -> Float[Tensor, "k g 3"]:
        """B_G of B = S B_G, in least squares: the node displacements nearest to vertex ones.

        Nodes that no vertex follows do not move. Computed in float64, returned as float32.
        """
        rows = np.arange(len(self.bound))[:, None].repeat(self.bound.shape[1], 1).ravel()
        place = (rows, self.bound.cpu().numpy().ravel())
        shape = (len(self.bound), len(self.nodes))
        S = coo_array((self.weights.double().cpu().numpy().ravel(), place), shape).tocsr()
        fields = basis.double().cpu().movedim(0, 1).flatten(1).numpy()
        normal = (S.T @ S).toarray()  # g x g
        found = torch.from_numpy(np.linalg.pinv(normal, hermitian=True) @ (S.T @ fields))
        return found.unflatten(1, (-1, 3)).movedim(1, 0).to(basis)

    def harmonics(self, count: int) -> Float[Tensor, "count g"]:
        """The smoothest functions on the graph: eigenvectors of its Laplacian, no constant.

        Each has a mean square of lambda_1 / lambda_k, where lambda_k is its eigenvalue: the
        rougher, the smaller. Signs are such that the largest value is positive.

        Raises:
            DataError: the graph has not so many.
        """
        g = len(self.nodes)
        if count > g - 1:
            raise DataError(
                f"a deformation graph of {g} nodes has {g - 1} smooth functions besides the "
                f"constant, but {count} were asked for; use more nodes or fewer modes"
            )
        laplacian = torch.zeros(g, g, dtype=torch.float64)
        for one, other in (self.edges.cpu().T, self.edges.cpu().flip(1).T):
            laplacian[one, other] = -1.0
        laplacian -= torch.diag(laplacian.sum(1))
        values, vectors = torch.linalg.eigh(laplacian)
        values, vectors = values[1 : count + 1].clamp(min=1e-9), vectors[:, 1 : count + 1].T
        largest = vectors.gather(1, vectors.abs().argmax(1, keepdim=True))
        size = (g * values[:1] / values).sqrt() if count else values
        return (vectors * largest.sign() * size[:, None]).float()


def build_graph(
    model: FaceModel, nodes: int = 521, region: str | None = "face"
) -> DeformationGraph:
    """A graph over a part of a face model's mean.

    Args:
        model: its mean, triangles, expressions and landmarks are used.
        nodes: how many nodes, 521 in FML.
        region: of the model, that the nodes lie on; None = the whole mesh.

    Raises:
        DataError: the part's mesh has edges of more than two triangles, or cannot be decimated to
            so many nodes.
    """
    triangles = (model.part(region) if region else model.triangles).cpu()
    kept, local = used(triangles)
    mean = model.mean.detach().cpu().double()
    opened = mean + _mouth_opening(model)
    chosen = kept[_decimated(opened[kept], local, nodes)]
    bound, weights = _skinning(opened, mean, chosen, kept)
    return DeformationGraph(chosen, bound, weights.float())


def orthonormal(basis: Float[Tensor, "k g 3"]) -> Float[Tensor, "m r"]:
    """Orthonormal columns that span displacements, m = 3 g; r < k where some depend on others."""
    columns = basis.double().flatten(1).T
    U, sizes, _ = torch.linalg.svd(columns, full_matrices=False)
    return U[:, sizes > 1e-6 * sizes[:1].sum()].to(basis.dtype)


def orthogonal_complement(
    theta: Float[Tensor, "m d"], spanned: Float[Tensor, "m k"]
) -> Float[Tensor, "m d"]:
    """OCL (FML Eq. 4-5): what of the columns of Theta is orthogonal to a space.

    Args:
        theta: columns of any length.
        spanned: orthonormal columns of that space, as of ``orthonormal``: B_G with B_G^T B_G = 1.
    """
    with without_autocast(theta):
        theta = at_least_float32(theta)
        return theta - spanned @ (spanned.T @ theta)


def _mouth_opening(model: FaceModel) -> Float[Tensor, "n 3"]:
    """The smallest expression that opens the mouth; nothing if no expression does.

    Millimetres; smallest in the model's own units of expression.
    """
    basis = model.expression_basis.detach().cpu().double()
    points = model.landmarks(model.expression_basis).detach().cpu().double()
    gap = (points[:, UPPER, 1] - points[:, LOWER, 1]).mean(1)  # mm of each blendshape
    size = gap.square().sum()
    activation = gap * (OPEN_MM / size) if size > 0 else gap
    return (activation @ basis.flatten(1)).unflatten(0, (-1, 3))


def _decimated(
    points: Float[Tensor, "n 3"], triangles: Int[Tensor, "t 3"], count: int
) -> Int[Tensor, " g"]:
    """Numbers of the vertices that decimation by edge length leaves.

    Raises:
        DataError: see ``build_graph``.
    """
    if count >= len(points):
        return torch.arange(len(points))
    vertices = np.asfortranarray(points.numpy())
    faces = np.asfortranarray(triangles.numpy().astype(np.int32))
    if not igl.is_edge_manifold(faces.astype(np.int64))[0]:
        raise DataError(
            "the deformation graph's mesh has edges of more than two triangles; use another region"
        )
    left, born = 2 * count, np.empty(0)
    for _ in range(ATTEMPTS):  # a collapse takes a vertex and two triangles, at the border one
        born = np.unique(igl.decimate(vertices, faces, left)[3])
        missing = count - len(born)
        if missing == 0:
            break
        left += 2 * missing if abs(missing) > 1 else missing
    if abs(len(born) - count) > 0.1 * count:
        raise DataError(
            f"decimation leaves {len(born)} of {len(points)} vertices, wanted {count}; ask for as "
            "many nodes, or use another region"
        )
    return torch.from_numpy(born.astype(np.int64))


def _skinning(
    opened: Float[Tensor, "n 3"],
    mean: Float[Tensor, "n 3"],
    nodes: Int[Tensor, " g"],
    part: Int[Tensor, " p"],
) -> tuple[Int[Tensor, "n k"], Float[Tensor, "n k"]]:
    """For each vertex its nearest nodes on the opened mesh, and the weights."""
    count = min(NEIGHBOURS, len(nodes) - 1)
    nearest = [
        torch.cdist(some, opened[nodes]).topk(count + 1, largest=False)
        for some in opened.split(BLOCK)
    ]
    distance = torch.cat([found.values for found in nearest])
    bound = torch.cat([found.indices for found in nearest])[:, :count]
    weights = (1 - distance[:, :count] / distance[:, count:]).clamp(min=1e-3).square()
    weights = weights / weights.sum(1, keepdim=True)
    # least change, relative to the weight, that makes sum w = 1 and sum w (node - vertex) = 0
    offset = mean[nodes[bound[part]]] - mean[part, None]
    scale = offset.norm(dim=-1).mean(1)[:, None, None].clamp(min=1e-9)
    A = torch.cat([torch.ones_like(offset[..., :1]), offset / scale], -1)  # p k 4
    wanted = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=A.dtype)
    missing = wanted - torch.einsum("pkc,pk->pc", A, weights[part])
    normal = torch.einsum("pkc,pk,pkd->pcd", A, weights[part], A)
    solved = torch.linalg.pinv(normal, rtol=1e-7, hermitian=True) @ missing[..., None]
    weights[part] = weights[part] * (1 + (A @ solved)[..., 0])
    return bound, weights


def _edges(bound: Int[Tensor, "n k"]) -> Int[Tensor, "e 2"]:
    """Pairs of nodes that some vertex follows both, each once, smaller number first, sorted."""
    k = bound.shape[1]
    pairs = torch.combinations(torch.arange(k, device=bound.device), 2)
    both = bound[:, pairs].flatten(0, 1).sort(-1).values
    base = int(bound.max()) + 1  # one number for a pair: sorted faster than rows
    numbers = torch.unique(both[:, 0] * base + both[:, 1])
    return torch.stack([numbers // base, numbers % base], -1)
