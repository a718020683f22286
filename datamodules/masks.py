"""A face's mask where the dataset has none."""

import torch
from jaxtyping import Float
from scipy.spatial import ConvexHull, QhullError
from torch import Tensor

from core.landmarks import LEFT_BROW, RIGHT_BROW

FOREHEAD = 0.35  # ours: height of the forehead in a hull mask / distance from chin to nasion
CHIN, NASION = 8, 27


def hull_mask(
    landmarks: Float[Tensor, "68 2"], confidence: Float[Tensor, "68"], size: int
) -> Float[Tensor, "1 size size"]:
    """The face without its occlusions, from its landmarks: their convex hull and the forehead.

    The forehead is where the brows come to lie when moved up along the line from the chin to the
    nasion by ``FOREHEAD`` of its length: it ends below the hairline. Soft edges of one pixel.
    """
    seen = confidence > 0
    points = landmarks[seen]
    if seen[CHIN] and seen[NASION]:
        brows = [i for i in RIGHT_BROW + LEFT_BROW if seen[i]]
        points = torch.cat(
            [points, landmarks[brows] + FOREHEAD * (landmarks[NASION] - landmarks[CHIN])]
        )
    try:
        sides = torch.from_numpy(ConvexHull(points.double().numpy()).equations).float()
    except QhullError:  # all on one line
        return torch.zeros(1, size, size)
    centres = torch.arange(size) + 0.5
    across, down = sides[:, :1] * centres, sides[:, 1:2] * centres + sides[:, 2:]
    distance = (down[..., None] + across[:, None]).amax(0)  # of (y, x) to the hull, > 0 outside
    return (0.5 - distance).clamp(0, 1)[None]
