"""Random changes of a face crop.

Shift, scale, rotation and flip are matrices, so that images, masks and landmarks move alike and are
resampled once, when the crop is cut out; colours change by a matrix, too; something may cover a
part of the face.

All of it is done by the reading processes, on 8 bits, not on the finished batch by kornia:

* There, shift, scale and rotation would be a second resampling, and bring in black borders; here
  they are a part of the first one, and bring in the image.
* Colours and cover take 0.05 ms of a core for a frame of 224 pixels, a twenty-fifth of what an
  augmented frame takes; kornia's ColorJiggle and RandomErasing 4.3 ms (batches of 32, the same
  core). A GPU would do it in less, but save no more than that twenty-fifth.
* kornia draws from torch's generator, in the order of the batches. Here what is drawn depends on
  seed, turn and clip only: whatever is resumed, by however many processes, with or without a GPU.
"""

import math
from dataclasses import dataclass, fields
from typing import no_type_check

import numpy as np
from jaxtyping import Float, UInt8
from numba import njit

from core.errors import DataError

LUMINANCE = (0.299, 0.587, 0.114)  # Rec. 601
COVERED = 0.02, 0.25  # share of the crop; Zhong et al. 2017, Random Erasing: up to 0.33
ASPECT = 0.3, 1 / 0.3  # height / width of the cover, as there


@dataclass(frozen=True)
class Augmentation:
    """How much the crops of a training vary. 0 everywhere = not at all.

    Shift, scale, rotation and cover are drawn for each frame; flip and colours for the whole clip:
    a flip makes another person of somebody whose face is not symmetric, a colour another skin.

    Args:
        shift: largest shift along each axis, as a fraction of the crop's side: 10 of 224 pixels are
            0.045.
        scale: largest enlargement or reduction, as a fraction: 0.1 = from 1 / 1.1 to 1.1.
        rotation: largest rotation in the image plane, degrees.
        flip: probability of flipping left and right.
        brightness: largest change of all colours by a factor, as for scale.
        contrast: largest change of the distance from middle grey by a factor, as for scale.
        saturation: largest change of the distance from grey of the same luminance, as for scale.
        tint: largest change of each colour channel by a factor, as for scale.
        cover: probability of a rectangle of one colour over 2 to 25 % of the crop; what it covers
            is not face in the mask.
    """

    shift: float = 0.0
    scale: float = 0.0
    rotation: float = 0.0
    flip: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    tint: float = 0.0
    cover: float = 0.0

    def __post_init__(self) -> None:
        limits = {"shift": 0.5, "rotation": 180.0}
        for name in (field.name for field in fields(self)):
            most = limits.get(name, 1.0)
            if not 0 <= getattr(self, name) <= most:
                raise DataError(
                    f"augmentation: {name} must be in [0, {most}], got {getattr(self, name)}"
                )

    def jitter(self, random: np.random.Generator, size: int) -> Float[np.ndarray, "3 3"]:
        """A random similarity, crop pixels -> changed crop pixels, about the crop's centre."""
        angle, stretch, x, y = random.uniform(-1, 1, 4).tolist()
        scale = (1 + self.scale) ** stretch
        angle = math.radians(self.rotation) * angle
        cos, sin = scale * math.cos(angle), scale * math.sin(angle)
        centre = size / 2
        right = centre + size * self.shift * x - centre * (cos - sin)
        down = centre + size * self.shift * y - centre * (sin + cos)
        return np.array([[cos, -sin, right], [sin, cos, down], [0, 0, 1]])

    def recolour(self, images: UInt8[np.ndarray, "v 3 h w"], random: np.random.Generator) -> None:
        """Give the images other colours, in place, the same change for all."""
        amount = [self.brightness, self.contrast, self.saturation, *[self.tint] * 3]
        if not any(amount):
            return
        factors = (1 + np.array(amount)) ** random.uniform(-1, 1, 6)
        brightness, contrast, saturation, *tint = factors
        grey = np.tile(LUMINANCE, (3, 1))
        linear = np.diag(tint) @ (saturation * np.eye(3) + (1 - saturation) * grey)
        matrix = (brightness * contrast * linear).astype(np.float32)
        _recolour(images, matrix, np.float32(255 * 0.5 * (1 - contrast)))

    def cover_some(
        self,
        images: UInt8[np.ndarray, "v 3 h w"],
        masks: UInt8[np.ndarray, "v 1 h w"],
        random: np.random.Generator,
    ) -> None:
        """Put a rectangle of one colour over some of the images, in place; masks are 0 there."""
        if not self.cover:
            return
        size = images.shape[-1]
        for image, mask in zip(images, masks, strict=True):
            covers, area, aspect, x, y, *colour = random.random(8).tolist()
            if covers >= self.cover:
                continue
            side = size * math.sqrt(COVERED[0] + area * (COVERED[1] - COVERED[0]))
            stretch = math.sqrt(ASPECT[0] * (ASPECT[1] / ASPECT[0]) ** aspect)
            height, width = min(size, round(side * stretch)), min(size, round(side / stretch))
            top, left = round(y * (size - height)), round(x * (size - width))
            here = ..., slice(top, top + height), slice(left, left + width)
            image[here] = np.rint(255 * np.array(colour))[:, None, None]
            mask[here] = 0


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract", "nsz", "nnan"})
@no_type_check
def _recolour(images, matrix, offset):  # noqa: ANN001, ANN202
    """Each colour becomes matrix @ colour + offset, rounded, within 0 ... 255."""
    zero, most, half = np.float32(0), np.float32(255), np.float32(0.5)
    frames, _, height, width = images.shape
    red, green, blue = np.empty((3, width), np.float32)
    for frame in range(frames):
        for y in range(height):
            r, g, b = images[frame, 0, y], images[frame, 1, y], images[frame, 2, y]
            for x in range(width):
                red[x], green[x], blue[x] = r[x], g[x], b[x]
            for channel in range(3):
                line = images[frame, channel, y]
                of_red, of_green, of_blue = matrix[channel]
                for x in range(width):
                    value = of_red * red[x] + of_green * green[x] + of_blue * blue[x] + offset
                    line[x] = np.uint8(np.int32(min(max(value, zero), most) + half))


def flip_matrix(size: int) -> Float[np.ndarray, "3 3"]:
    """Left and right exchanged, crop pixels -> flipped crop pixels; x becomes size - x."""
    return np.array([[-1.0, 0, size], [0, 1, 0], [0, 0, 1]])
