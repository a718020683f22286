"""Similarity crops of faces: from landmarks for the dataset, from the estimated camera for CEST.

Convention: a crop matrix maps homogeneous pixels of the image to pixels of the crop; both have
their origin at the top left corner, so no half pixels appear. Worked number: cutting the box with
the corners (10, 20) and (110, 120) out to 50 x 50 pixels is [[0.5, 0, -5], [0, 0.5, -10], [0, 0,
1]].
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from core.camera import WeakPerspectiveCamera
from core.errors import DataError
from core.image import Size, height_width
from core.precision import at_least_float32, without_autocast

MARGIN = 1.6  # ours: brows to chin is about 62 % of the height; leaves room for the forehead
MIN_POINTS = 20  # ours: fewer of the 68 can lie in one corner of the face


def face_crop(
    landmarks: Float[Tensor, "*b n 2"],
    confidence: Float[Tensor, "*b n"],
    size: int,
    margin: float = MARGIN,
) -> Float[Tensor, "*b 3 3"]:
    """The square crop around all points of confidence > 0, upright (no rotation).

    Centred on their bounding box; the side is ``margin`` times its longer side, which for a face in
    profile is its height, so that the face's scale hardly depends on the pose.

    Args:
        landmarks: 68 points (or another full set), pixels of the image.
        confidence: 0 = missing.
        size: side of the crop, pixels.
        margin: side of the crop / longer side of the box.

    Returns:
        The matrix image pixels -> crop pixels.

    Raises:
        DataError: fewer than 20 confident points, or they are not finite, or in one place.
    """
    seen = confidence > 0
    count = seen.sum(-1)
    if (count < MIN_POINTS).any():
        raise DataError(
            f"a face crop needs at least {MIN_POINTS} landmarks with confidence > 0; got "
            f"{int(count.min())} of {landmarks.shape[-2]}; leave this image out, or give five "
            "points to five_point_crop"
        )
    _check_finite(landmarks, seen)
    low = landmarks.masked_fill(~seen[..., None], math.inf).amin(-2)
    high = landmarks.masked_fill(~seen[..., None], -math.inf).amax(-2)
    return _square((low + high) / 2, margin * (high - low).amax(-1), size)


# Ours: least squares on the landmarks of a morphable head turned by yaw within 80, pitch and roll
# within 30 degrees, rounded towards annotated photographs of the same range.
EYE_SPAN = 2.3  # side of the box of the 68 points / distance of the eyes, in frontal views
EYE_TO_MOUTH_SPAN = 2.1  # the same / distance from between the eyes to the mouth, in side views
CENTRE_DOWN = 0.62  # centre of the box, as a fraction of the way from between the eyes to the mouth
CENTRE_BACK = 1.0  # its offset from that line / that of the nose tip, to the other side


def five_point_crop(
    points: Float[Tensor, "*b 5 2"], size: int, margin: float = MARGIN
) -> Float[Tensor, "*b 3 3"]:
    """About the crop that ``face_crop`` gives for the 68 points of the same face, from five.

    Args:
        points: image-left eye, image-right eye, nose tip, image-left mouth corner, image-right
            mouth corner; pixels.
        size: side of the crop, pixels.
        margin: as in ``face_crop``.

    Returns:
        The matrix image pixels -> crop pixels.

    Raises:
        DataError: the points are not finite, or in one place.
    """
    _check_finite(points, torch.ones_like(points[..., 0], dtype=torch.bool))
    left_eye, right_eye, nose, left_mouth, right_mouth = points.unbind(-2)
    eyes = (left_eye + right_eye) / 2
    down = (left_mouth + right_mouth) / 2 - eyes
    width, height = (right_eye - left_eye).norm(dim=-1), down.norm(dim=-1)
    along = ((nose - eyes) * down).sum(-1) / height.square().clamp(min=1e-12)
    aside = nose - eyes - along[..., None] * down
    centre = eyes + CENTRE_DOWN * down - CENTRE_BACK * aside
    side = margin * torch.maximum(EYE_SPAN * width, EYE_TO_MOUTH_SPAN * height)
    return _square(centre, side, size)


def transform_points(
    matrix: Float[Tensor, "*b 3 3"], points: Float[Tensor, "*b n 2"]
) -> Float[Tensor, "*b n 2"]:
    """Points moved by an affine matrix, whose last row is (0, 0, 1)."""
    with without_autocast(matrix):
        return points @ matrix[..., :2, :2].mT + matrix[..., None, :2, 2]


def warp(
    image: Float[Tensor, "*b c h w"], matrix: Float[Tensor, "*b 3 3"], size: Size
) -> Float[Tensor, "*b c oh ow"]:
    """The image resampled: output(matrix @ pixel) = image(pixel), black outside the image.

    Bilinear, up to the image's edge. Where the image gets smaller, each output pixel is the mean of
    k x k bilinear samples spread over it, k = the reduction rounded up, the same for the whole
    batch; reductions of 4 and more first average blocks of k // 2 pixels. Differentiable in the
    image and the matrix.

    Args:
        image: any number of channels.
        matrix: affine, image pixels -> output pixels.
        size: of the output: (height, width), or one number for a square.
    """
    image, matrix = at_least_float32(image), at_least_float32(matrix)
    scale = torch.linalg.det(matrix.detach()[..., :2, :2]).abs().min().sqrt().item()
    samples = max(1, math.ceil(1 / scale - 1e-3))  # an exact half stays two
    block = max(1, samples // 2)
    inverse = torch.linalg.inv(matrix)
    if block > 1:
        flat = image.reshape(-1, *image.shape[-3:])
        flat = F.avg_pool2d(flat, block, ceil_mode=True, count_include_pad=False)
        image = flat.reshape(*image.shape[:-2], *flat.shape[-2:])
        inverse = inverse * inverse.new_tensor([1 / block, 1 / block, 1])[:, None]
        samples = math.ceil(samples / block)
    return _sample_through(image, inverse, size, samples)


def in_plane_rotation(camera: WeakPerspectiveCamera) -> Float[Tensor, "*b"]:
    """By how much the head is turned clockwise in the image, radians.

    Defined as the angle of the model's y axis, projected; of a head with neither yaw nor pitch it
    is the roll. Smooth except where that axis points at the viewer (pitch of 90 degrees).
    """
    with without_autocast(camera.rotation):
        head = camera.head_rotation
    return torch.atan2(head[..., 0, 1], head[..., 1, 1])


def canonical_to_image(
    camera: WeakPerspectiveCamera, size: int, extent_mm: float
) -> Float[Tensor, "*b 3 3"]:
    """The matrix crop pixels -> image pixels of ``canonical_crop`` (CEST Eq. 10)."""
    angle = in_plane_rotation(camera)
    c, s = angle.cos(), angle.sin()
    turn = torch.stack([torch.stack([c, -s], -1), torch.stack([s, c], -1)], -2)
    linear = camera.scale[..., None, None] * turn * (extent_mm / size)
    offset = camera.translation - (linear * (size / 2)).sum(-1)
    last = linear.new_tensor([0.0, 0.0, 1.0]).expand(*linear.shape[:-2], 1, 3)
    return torch.cat([torch.cat([linear, offset[..., None]], -1), last], -2)


def canonical_crop(
    images: Float[Tensor, "*b c h w"], camera: WeakPerspectiveCamera, size: int, extent_mm: float
) -> Float[Tensor, "*b c s s"]:
    """The image with the camera's scale, in-plane rotation and translation undone (CEST Eq. 10).

    The model frame's origin is in the crop's centre, the head upright, ``extent_mm`` fill the
    crop's side. Bilinear, black outside the image. Differentiable in the images and in the camera.

    Args:
        images: RGB.
        camera: one for each image, for its pixels.
        size: side of the crop, pixels.
        extent_mm: side of the crop, millimetres in the plane through the model's origin.
    """
    inverse = canonical_to_image(camera.map(at_least_float32), size, extent_mm)
    return _sample_through(at_least_float32(images), inverse, size, 1)


def _sample_through(image: Tensor, inverse: Tensor, size: Size, samples: int) -> Tensor:
    """output(pixel) = image(inverse @ pixel), the mean of samples x samples points of a pixel."""
    height, width = height_width(size)
    batch = image.shape[:-3]
    fine_size = (height * samples, width * samples)
    with without_autocast(image):
        source = (image.shape[-2], image.shape[-1])
        through = _to_unit(image, source) @ inverse @ _to_unit(image, size).inverse()
        through = through.expand(*batch, 3, 3).reshape(-1, 3, 3)[:, :2]
        grid = _through_pixels(through, fine_size)
        inside = (grid.abs() <= 1).all(-1)[:, None]
        flat = image.reshape(-1, *image.shape[-3:])
        values = F.grid_sample(flat, grid, padding_mode="border", align_corners=False) * inside
    values = values.reshape(*batch, *values.shape[1:])
    if samples == 1:
        return values
    return values.unflatten(-1, (width, samples)).unflatten(-3, (height, samples)).mean((-3, -1))


def _through_pixels(matrix: Float[Tensor, "b 2 3"], size: tuple[int, int]) -> Tensor:
    """The pixels' centres, in [-1, 1] x [-1, 1], moved: F.affine_grid without its long product."""
    y, x = ((2 * torch.arange(n).to(matrix) + 1) / n - 1 for n in size)
    along, down, offset = matrix[:, None].unbind(-1)
    row, column = along * x[:, None], down * y[:, None] + offset
    return row[:, None] + column[:, :, None]


def _to_unit(like: Tensor, size: Size) -> Float[Tensor, "3 3"]:
    """The matrix from pixels to [-1, 1] x [-1, 1], as grid_sample wants positions."""
    height, width = height_width(size)
    return like.new_tensor([[2 / width, 0, -1], [0, 2 / height, -1], [0, 0, 1]])


def _square(centre: Tensor, side: Tensor, size: int) -> Tensor:
    """The matrix that maps the square of this centre and side to size x size pixels."""
    if (side < 1).any():
        raise DataError(
            f"a face crop of side {float(side.min()):.3g} pixels: the landmarks are (nearly) in "
            "one place; leave this image out"
        )
    scale = size / side
    offset = size / 2 - scale[..., None] * centre
    zero, one = torch.zeros_like(scale), torch.ones_like(scale)
    rows = [
        torch.stack([scale, zero, offset[..., 0]], -1),
        torch.stack([zero, scale, offset[..., 1]], -1),
        torch.stack([zero, zero, one], -1),
    ]
    return torch.stack(rows, -2)


def _check_finite(points: Float[Tensor, "*b n 2"], seen: Bool[Tensor, "*b n"]) -> None:
    bad = ~points.isfinite().all(-1) & seen
    if bad.any():
        raise DataError(
            f"{int(bad.sum())} landmarks are NaN or infinite although they count as seen; "
            "give them confidence 0 and finite coordinates"
        )
