"""What a rasterizer returns: which triangle each pixel sees, and where on that triangle."""

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Fragments:
    """The visible triangle of every pixel; row 0 is the top of the image.

    Attributes:
        barycentric: u, v = weights of the triangle's corners 0 and 1 (corner 2 has 1 - u - v),
            perspective-correct, in [0, 1]; 0 on the background. Carries gradients to the clip
            positions' x, y and w.
        depth: z / w in [-1, 1], growing away from the viewer; 0 on the background. No gradient.
        triangle_index: int64, -1 = background. No gradient.
    """

    barycentric: Float[Tensor, "b h w 2"]
    depth: Float[Tensor, "b h w"]
    triangle_index: Int[Tensor, "b h w"]
