"""Dense 3D errors in an image's own frame, in percent of the distance of the outer eye corners.

Convention: x and y in pixels from the image's top left corner, y down; z in the same unit, towards
the camera, from any origin. Worked number: a mesh 3 pixels beside the truth, whose outer eye
corners are 100 pixels apart in 3D, has 3 % in the mode "vrn" and none in "icp" and "index".
"""

from collections.abc import Iterable
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from core.align import Similarity, procrustes
from core.contracts import Reconstruction
from core.errors import DataError
from core.registration import COARSE_POINTS, ROUNDS, ClosestVertices, register
from core.uv import pixels_per_mm

Mode = Literal["icp", "vrn", "index"]
MODES: dict[Mode, str] = {
    "icp": "rigid ICP",
    "vrn": "nearest points after rigid ICP, errors without it",
    "index": "same vertices, similarity",
}
DEPTHS = 33  # at which ICP may start
SIZES = 5.0  # factor by which a mesh may differ from the true one before its unit is doubted


def in_image(face: Reconstruction) -> Float[Tensor, "b v n 3"]:
    """The vertices of faces in the frame of the given images."""
    pixels, depth = face.camera.project(face.vertices)
    towards = -depth * pixels_per_mm(face.camera)[..., None]
    return torch.cat([pixels, towards[..., None]], -1)


def dense_nme_percent(
    predicted: Float[Tensor, "m 3"],
    true: Float[Tensor, "n 3"],
    interocular: float,
    modes: Iterable[Mode],
    matching: Int[Tensor, " n"] | None = None,
    rounds: int = ROUNDS,
) -> dict[Mode, float]:
    """The mean distance of true points to the predicted mesh, % of the outer eye corners' distance.

    * "icp" (PRN's and PGN's text): the predicted mesh is moved by a rigid ICP; each true point is
      compared with the nearest predicted vertex. ICP starts at the depth, of 33 around the mean of
      the truth, at which the mesh is nearest: the means alone mislead where one of the two has
      a neck or ears and the other has not.
    * "vrn" (VRN, CEST): the same finds the corresponding vertices; but compared are the meshes as
      they were, but for the mean depth of the corresponding vertices.
    * "index": the corresponding vertices are known; they are moved by a similarity.

    Args:
        predicted: vertices, in the frame of this module's docstring.
        true: the same frame.
        interocular: distance of the true outer eye corners.
        modes: which errors.
        matching: for each true point the predicted vertex; for "index".
        rounds: of ICP at most; see ``core.registration.register``.

    Raises:
        DataError: the size of the predicted mesh is that of another unit.
        ValueError: NaN, infinite or too few points; or no ``matching`` for "index".
    """
    x, y = predicted.double(), true.double()
    if not len(x) or not x.isfinite().all():
        raise DataError("the predicted mesh has no vertices, or NaN or infinite ones")
    size = float(_extent(x) / _extent(y))
    if not 1 / SIZES < size < SIZES:
        raise DataError(
            f"the predicted mesh is {size:.1g} times as large as the face: its unit is not pixels "
            "of the image"
        )
    found: dict[Mode, float] = {}
    wanted = set(modes)
    if wanted & {"icp", "vrn"}:
        target = ClosestVertices(x)
        start = Similarity(x.new_ones(()), torch.eye(3).to(x), _shift_in_depth(target, y))
        pose = register(target, y, start, scale=False, planes=False, rounds=rounds).pose
        near = target.moved(pose, y)
        found["icp"] = float(near.distance.mean())
        offset = x[near.element] - y
        offset[:, 2] -= offset[:, 2].mean()
        found["vrn"] = float(offset.norm(dim=-1).mean())
    if "index" in wanted:
        if matching is None:
            raise ValueError("dense_nme_percent: the mode 'index' needs matching")
        x = x[matching]
        found["index"] = float((procrustes(x, y).apply(x) - y).norm(dim=-1).mean())
    return {mode: 100 * found[mode] / interocular for mode in MODES if mode in wanted}


def _shift_in_depth(target: ClosestVertices, true: Float[Tensor, "n 3"]) -> Float[Tensor, "3"]:
    """Along z, so that the target comes nearest to the truth."""
    z = target.vertices[:, 2]
    reach = torch.linspace(-1, 1, DEPTHS).to(true) * (z.max() - z.min()) / 2
    shifts = true.new_zeros(DEPTHS, 3)
    shifts[:, 2] = true[:, 2].mean() - z.mean() + reach
    some = true[:: max(1, len(true) // COARSE_POINTS)]
    distance = target((some - shifts[:, None]).flatten(0, 1)).distance.view(DEPTHS, -1)
    return shifts[distance.mean(1).argmin()]


def _extent(points: Float[Tensor, "n 3"]) -> Float[Tensor, ""]:
    """Diagonal of the box of points."""
    return (points.amax(0) - points.amin(0)).norm()
