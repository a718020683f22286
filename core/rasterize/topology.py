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
    def twins(self) -> Int[Tensor, "t 3"]:
        """The other side of each edge: 3 * triangle + edge, where edge k is opposite to corner k.

        int32; -1 for an edge of one triangle only (a border) or of more than two.
        """
        triangles = self.triangles.long()
        count = len(triangles)
        if count == 0:
            return self.triangles
        edges = torch.stack([triangles[:, [1, 2]], triangles[:, [2, 0]], triangles[:, [0, 1]]], 1)
        low, high = edges.amin(-1).flatten(), edges.amax(-1).flatten()
        _, edge, sharers = torch.unique(
            low * (self.highest + 1) + high, return_inverse=True, return_counts=True
        )
        # of the two sides of an edge, each one's twin is their sum without its own
        side = torch.arange(3 * count, device=triangles.device)
        both = torch.zeros_like(sharers).scatter_add_(0, edge, side)
        return torch.where(sharers[edge] == 2, both[edge] - side, -1).view(count, 3).int()

    @cached_property
    def edges(self) -> Int[Tensor, "e 4"]:
        """The edges of two triangles: one side as in ``twins``, both triangles, sense; int32.

        sense is 0 if the two triangles run through the edge in opposite directions, else 1.
        """
        twins = self.twins.flatten().long()
        side = (twins > torch.arange(len(twins), device=twins.device)).nonzero()[:, 0]
        other = twins[side]
        corners = self.triangles.flatten()
        start, other_start = (corners[each // 3 * 3 + (each + 1) % 3] for each in (side, other))
        return torch.stack([side, side // 3, other // 3, (start == other_start).long()], -1).int()

    @cached_property
    def borders(self) -> Int[Tensor, " e"]:
        """The sides that have no twin; int32."""
        return (self.twins.flatten() < 0).nonzero()[:, 0].int()

    def check(self, vertices: int) -> None:
        """Raise IndexError unless every index is that of one of so many vertices."""
        if self.lowest < 0 or self.highest >= vertices:
            raise IndexError(
                f"triangles hold vertex indices from {self.lowest} to {self.highest}, but there "
                f"are {vertices} vertices; valid are 0 to {vertices - 1}"
            )

    def check_seen(self, index: Int[Tensor, "b h w"]) -> None:
        """Raise IndexError if pixels see triangles that are not among these."""
        unknown = int((index >= len(self.triangles)).sum())
        if unknown:
            raise IndexError(
                f"the fragments name triangles beyond the {len(self.triangles)} given, at "
                f"{unknown} pixels; pass the triangles that were rasterized"
            )


_known: WeakIdKeyDictionary = WeakIdKeyDictionary()


def topology(triangles: Int[Tensor, "t 3"]) -> Topology:
    """The topology of a triangle tensor, remembered until it is written to.

    Raises:
        TypeError: indices that are not integers.
        ValueError: not three per triangle.
        IndexError: an index beyond int32.
    """
    if triangles.is_floating_point() or triangles.is_complex() or triangles.dtype == torch.bool:
        raise TypeError(f"triangles are {triangles.dtype}; they hold vertex indices, say int64")
    if triangles.ndim != 2 or triangles.shape[1] != 3:
        raise ValueError(f"triangles have shape {tuple(triangles.shape)}; (t, 3) is wanted")
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
