"""Geometry in at least float32, also where networks run in half precision.

bfloat16 resolves a pixel of a 256-pixel image at best: positions, normals and sampling need more.
"""

import torch
from torch import Tensor


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor in float32 if it has half precision, else as it is."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def without_autocast(tensor: Tensor) -> torch.autocast:
    """A context in which operations on this tensor's device keep the dtype of their inputs."""
    return torch.autocast(tensor.device.type, enabled=False)
