"""What of a triangle mesh depends on its triangles alone: edges, and the vertices in use."""

import torch
from jaxtyping import Int
from torch import Tensor


def edges(triangles: Int[Tensor, "t 3"]) -> Int[Tensor, "e 2"]:
    """The undirected edges, each once, smaller index first, sorted."""
    pairs = torch.cat([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]])
    return torch.unique(pairs.sort(-1).values, dim=0)


def used(triangles: Int[Tensor, "t 3"]) -> tuple[Int[Tensor, " m"], Int[Tensor, "t 3"]]:
    """The vertices that triangles refer to, in order, and the triangles among these alone."""
    kept, renumbered = torch.unique(triangles, return_inverse=True)
    return kept, renumbered
