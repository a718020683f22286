"""Image files of any kind to 8 bits a channel, the right way up."""

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageOps
from torch import Tensor

from core.errors import DataError


def read_image(path: Path, mode: Literal["RGB", "L"] = "RGB") -> UInt8[Tensor, "c h w"]:
    """Decode an image file, turned upright as its EXIF entry says.

    Grey, palette, 16-bit and CMYK images are converted, alpha is dropped. The pixels stay as they
    were decoded: channels last in memory.

    Args:
        path: anything that Pillow reads.
        mode: colour (c = 3) or grey (c = 1).

    Raises:
        DataError: it cannot be decoded; says why.
    """
    try:
        with Image.open(path) as image:
            ImageOps.exif_transpose(image, in_place=True)
            if image.mode.startswith("I"):  # 16 bits, which Pillow would clip
                grey = (np.asarray(image) / 257).round().astype(np.uint8)
                pixels = np.array(Image.fromarray(grey).convert(mode))
            else:
                pixels = np.array(image.convert(mode))
    except Exception as error:  # Pillow's parsers raise a dozen kinds on damaged files
        raise DataError(f"'{path}' is not a readable image: {error}") from error
    return torch.from_numpy(np.atleast_3d(pixels)).permute(2, 0, 1)
