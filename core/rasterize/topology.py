"""What depends on the triangles alone, worked out once per triangle tensor."""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary


@dataclass(frozen=True)
class Topology:
    """The triangles in the backends' format.

    Attributes:
        triangles: int32, contiguous, on the device of the tensor they were made from.
        lowest: the smallest vertex index, 0 when there is none.
        highest: the largest vertex index, -1 when there is none.
    """

    triangles: Int[Tensor, "t 3"]
    lowest: int
    highest: int

    @cached_property
    def opposite(self) -> Int[Tensor, "t 3"]:
        """The vertex across each edge: of edge k (opposite to corner k) in the triangle beyond.

        int64; -1 for an edge of one triangle only (a border) or of more than two.
        """
        triangles = self.triangles.long()
        count = len(triangles)
        if count == 0:
            return triangles
        edges = torch.stack([triangles[:, [1, 2]], triangles[:, [2, 0]], triangles[:, [0, 1]]], 1)
        low, high = edges.amin(-1).flatten(), edges.amax(-1).flatten()
        _, edge, sharers = torch.unique(
            low * (self.highest + 1) + high, return_inverse=True, return_counts=True
        )
        # of the two sides of a shared edge, each one's opposite is their sum without its own
        corner = triangles.flatten()
        both = torch.zeros_like(sharers).scatter_add_(0, edge, corner)
        return torch.where(sharers[edge] == 2, both[edge] - corner, -1).view(count, 3)

    def check(self, vertices: int) -> None:
        """Raise IndexError unless every index is that of one of so many vertices."""
        if self.lowest < 0 or self.highest >= vertices:
            raise IndexError(
                f"triangles hold vertex indices from {self.lowest} to {self.highest}, but there "
                f"are {vertices} vertices; valid are 0 to {vertices - 1}"
            )


_known: WeakIdKeyDictionary = WeakIdKeyDictionary()


def topology(triangles: Int[Tensor, "t 3"]) -> Topology:
    """The topology of a triangle tensor, remembered until it is written to.

    Raises:
        IndexError: an index beyond int32.
    """
    # inference tensors do not count their changes: theirs is not remembered
    version = None if triangles.is_inference() else triangles._version
    known = _known.get(triangles)
    if known is not None and version is not None and known[0] == version:
        return known[1]
    lowest, highest = 0, -1
    if triangles.numel():
        lowest, highest = (int(bound) for bound in triangles.aminmax())
    if max(-lowest, highest) >= 2**31:
        raise IndexError(f"triangles hold a vertex index beyond int32: {lowest} .. {highest}")
    made = Topology(triangles.detach().to(torch.int32).contiguous(), lowest, highest)
    if version is not None:
        _known[triangles] = (version, made)
    return made
