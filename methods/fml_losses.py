"""FML's losses, Eq. 8 to 12, as pure functions; its landmark term is ``core.losses.landmark_l2``.

The paper sums over the frames of a clip; the identity's terms, Eq. 10 and 11, are there once. All
are means over the clips of a batch.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

ETA = 80.0  # of the chroma weights, Sec. 3.4
POWER = 0.9  # of Eq. 11
SMALLEST = 1e-6  # added to squared differences of reflectance: 0 has a gradient then, which is 0


def vertex_photometric(
    colours: Float[Tensor, "b v p 3"],
    seen: Float[Tensor, "b v p 3"],
    weight: Float[Tensor, "b v p"],
) -> Float[Tensor, ""]:
    """Eq. 8, first term: squared distance of the vertices' colours from the image's.

    Averaged over the visible vertices of each frame, summed over the frames; 0 where none is
    visible.

    Args:
        colours: of the vertices, lit.
        seen: what the image shows at their pixels.
        weight: 1 for a visible vertex, else 0.
    """
    squared = (colours - seen).square().sum(-1)
    means = (squared * weight).sum(-1) / weight.sum(-1).clamp(min=1)
    return means.sum(1).mean()


def graph_smoothness(
    displacements: Float[Tensor, "b g 3"], edges: Int[Tensor, "e 2"]
) -> Float[Tensor, ""]:
    """Eq. 10: squared differences of the displacements of neighbours, each pair twice.

    Args:
        displacements: t of the nodes.
        edges: pairs of neighbours, each once.
    """
    one, other = (displacements.index_select(1, edges[:, k]) for k in (0, 1))
    return 2 * (one - other).square().sum((1, 2)).mean()


def reflectance_sparsity(
    reflectance: Float[Tensor, "b p 3"],
    colours: Float[Tensor, "b v p 3"],
    edges: Int[Tensor, "e 2"],
) -> Float[Tensor, ""]:
    """Eq. 11: the 0.9-th power of differences of reflectance between neighbours, each pair twice.

    Neighbours of one chroma count most: shading changes brightness, another material the chroma,
    too. The weights are those of the last forward pass, so they carry no gradient.

    Args:
        reflectance: r of a clip's face.
        colours: the same, lit as in each frame; their mean over the frames has the chroma.
        edges: of the mesh, each once.
    """
    with torch.no_grad():
        positive = colours.mean(1).clamp(min=1e-3)
        chroma = positive / positive.sum(-1, keepdim=True)
        one, other = (chroma.index_select(1, edges[:, k]) for k in (0, 1))
        weight = torch.exp(-ETA * (one - other).norm(dim=-1))
    one, other = (reflectance.index_select(1, edges[:, k]) for k in (0, 1))
    squared = (one - other).square().sum(-1)
    return 2 * (weight * (squared + SMALLEST).pow(POWER / 2)).sum(1).mean()


def expression_l2(expression: Float[Tensor, "b v k"]) -> Float[Tensor, ""]:
    """Eq. 12: the sum of squares of the coefficients, in standard deviations, over the frames."""
    return expression.square().sum((1, 2)).mean()
