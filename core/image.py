"""Reading images at real-valued positions.

Convention: pixels, origin at the top left corner of the image, x right, y down; the centre of the
first pixel is (0.5, 0.5), so that a picture whose value is its own x coordinate is [0.5, 1.5, 2.5,
...].
"""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Size = int | tuple[int, int]


def height_width(size: Size) -> tuple[int, int]:
    """(height, width) of a size given so, or as one number for a square."""
    return (size, size) if isinstance(size, int) else size


def pixel_centres(size: Size, like: Tensor) -> Float[Tensor, "h w 2"]:
    """The coordinates (x, y) of all pixel centres, with dtype and device of ``like``."""
    height, width = height_width(size)
    y = torch.arange(height, dtype=like.dtype, device=like.device) + 0.5
    x = torch.arange(width, dtype=like.dtype, device=like.device) + 0.5
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)


def sample(
    image: Float[Tensor, "*b c h w"],
    pixels: Float[Tensor, "*b p q 2"],
    padding: Literal["zeros", "border"] = "zeros",
    mode: Literal["bilinear", "nearest"] = "bilinear",
) -> Float[Tensor, "*b c p q"]:
    """The image at a p x q table of positions.

    Differentiable in the image, and with "bilinear" in the positions.

    Args:
        image: any number of channels.
        pixels: positions (x, y), pixels of ``image``.
        padding: what is beyond the image: black, or its border repeated.
        mode: interpolation.
    """
    kind = torch.promote_types(image.dtype, pixels.dtype)
    batch, (height, width) = image.shape[:-3], image.shape[-2:]
    grid = 2 * pixels / pixels.new_tensor([width, height]) - 1
    values = F.grid_sample(
        (image.flatten(0, -4) if batch else image[None]).to(kind),
        (grid.flatten(0, -4) if batch else grid[None]).to(kind),
        mode=mode,
        padding_mode=padding,
        align_corners=False,
    )
    return values.reshape(*batch, *values.shape[1:])
