"""What is seen of a mesh at each pixel: the result of ``core.render.draw``."""

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Surface:
    """What is seen of a mesh at each pixel; 0 (triangle_index -1) where nothing is.

    Attributes:
        mask: 1 where the mesh is seen, else 0; no gradient.
        depth: millimetres along the camera's z, larger = farther.
        normals: unit length, camera frame (a normal towards the viewer has z < 0).
        uv: texture coordinates.
        triangle_index: the triangle that is seen.
        attributes: what else was given per vertex, such as reflectance.
    """

    mask: Float[Tensor, "b v 1 h w"]
    depth: Float[Tensor, "b v 1 h w"]
    normals: Float[Tensor, "b v 3 h w"]
    uv: Float[Tensor, "b v h w 2"]
    triangle_index: Int[Tensor, "b v h w"]
    attributes: Float[Tensor, "b v c h w"] | None = None
