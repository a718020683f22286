"""The meshes of the benchmark, made from the procedural face model, or any face model's file."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from core.errors import MonofaceError
from core.face_models import FaceModel, load_face_model
from core.mesh import edges, used

TRIANGLES = {"coarse": 13_120, "dense": 73_840}
MODES = {"identity": 80, "expression": 64, "albedo": 80}  # Deng et al. 2019
SPREAD_MM, ALBEDO_SPREAD = 0.02, 0.002  # of a random mode at a vertex: the surface stays smooth


@dataclass(frozen=True)
class Mesh:
    """A face model and its name in the tables."""

    name: str
    model: FaceModel


def load(name: str) -> Mesh:
    """The mesh "coarse" or "dense", or that of the .npz of a face model.

    Raises:
        MonofaceError: none of these.
    """
    if name in TRIANGLES:
        return Mesh(name, _refined_face(name, TRIANGLES[name]))
    if Path(name).suffix != ".npz":
        raise MonofaceError(
            f"no mesh '{name}'; there are {', '.join(TRIANGLES)}, or give the .npz of a face model"
        )
    return Mesh(Path(name).stem, FaceModel.from_file(Path(name)))


def _refined_face(name: str, count: int) -> FaceModel:
    """The face region with so many triangles, smooth albedo, random modes."""
    head = load_face_model("procedural", 0, 0, 0)
    kept, triangles = used(head.part("face"))
    values = torch.cat([head.mean[kept], head.albedo_mean[kept], head.uv[kept]], 1)
    values, triangles = refine(values, triangles, count)
    random = torch.Generator().manual_seed(0)
    vertices, albedo, uv = (part.numpy() for part in values.split([3, 3, 2], 1))

    def modes(kind: str, spread: float) -> np.ndarray:
        return (torch.randn(MODES[kind], len(vertices), 3, generator=random) * spread).numpy()

    landmarks = np.linspace(0, len(vertices) - 1, 68).astype(np.int64)
    return FaceModel(
        {
            "name": np.array(name),
            "mean": vertices,
            "triangles": triangles.numpy(),
            "identity_basis": modes("identity", SPREAD_MM),
            "expression_basis": modes("expression", SPREAD_MM),
            "albedo_mean": albedo,
            "albedo_basis": modes("albedo", ALBEDO_SPREAD),
            "uv": uv,
            "mirror": np.arange(len(vertices)),
            "landmark_vertices": np.stack(3 * [landmarks], 1),
            "landmark_weights": np.array([[1.0, 0.0, 0.0]] * 68, np.float32),
            "region_face": np.ones(len(vertices), bool),
        }
    )


def refine(
    values: Float[Tensor, "n c"], triangles: Int[Tensor, "t 3"], count: int
) -> tuple[Float[Tensor, "m c"], Int[Tensor, "s 3"]]:
    """Halve the longest edges until there are about so many triangles (one less at most).

    Args:
        values: of the vertices; the first three are their positions. New vertices, after the old
            ones, get the mean of an edge's ends.
        triangles: a manifold surface; orientation is kept.
        count: at least as many as there are.
    """
    while len(triangles) < count - 1:
        pairs = edges(triangles)
        keys = triangles.sort(-1).values  # of each triangle its edges, as in ``edges``
        keys = torch.stack([keys[:, :2], keys[:, 1:], keys[:, ::2]], 1).flatten(0, 1)
        sharers = torch.unique(keys, dim=0, return_counts=True)[1]
        length = (values[pairs[:, 0], :3] - values[pairs[:, 1], :3]).norm(dim=-1)
        order = length.argsort(descending=True, stable=True)
        chosen = order[sharers[order].cumsum(0) <= count - len(triangles)]
        ends = pairs[chosen]
        middle = torch.full((len(pairs),), -1)
        middle[chosen] = len(values) + torch.arange(len(chosen))
        values = torch.cat([values, values[ends].mean(1)])
        triangles = _split(triangles, pairs, middle)
    return values, triangles


def _split(
    triangles: Int[Tensor, "t 3"], pairs: Int[Tensor, "e 2"], middle: Int[Tensor, " e"]
) -> Int[Tensor, "s 3"]:
    """The triangles divided at the given middles of their edges (-1 = this edge is not halved)."""
    number = int(triangles.max()) + 1
    codes = pairs[:, 0] * number + pairs[:, 1]
    sides = torch.stack([triangles, triangles.roll(-1, 1)], -1)  # side k from corner k to k + 1
    side = torch.searchsorted(codes, sides.amin(-1) * number + sides.amax(-1))
    m = middle[side]
    halved = (m >= 0).sum(-1)
    # turned until side 0 is halved, and side 2 is not unless all are: three cases remain
    first = (m >= 0) & ((m.roll(1, 1) < 0) | (halved == 3)[:, None])
    turn = torch.where(halved > 0, first.to(torch.uint8).argmax(-1), 0)
    order = (turn[:, None] + torch.arange(3)) % 3
    a, b, c = triangles.gather(1, order).unbind(-1)
    p, q, r = m.gather(1, order).unbind(-1)
    cases = [
        [(a, b, c)],
        [(a, p, c), (p, b, c)],
        [(a, p, c), (p, b, q), (p, q, c)],
        [(a, p, r), (p, b, q), (r, q, c), (p, q, r)],
    ]
    parts = [
        torch.stack(corners, -1)[halved == count]
        for count, pieces in enumerate(cases)
        for corners in pieces
    ]
    return torch.cat(parts)
