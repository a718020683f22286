"""The modes of a face model made by code, for any head with 68 landmarks."""

import numpy as np
from jaxtyping import Bool, Float, Int

from core.face_models.procedural.albedo import albedo_modes
from core.face_models.procedural.anatomy import Head
from core.face_models.procedural.expressions import expression_shapes
from core.face_models.procedural.identity import identity_modes

ACTIVATION_STD = 0.2  # ours: of a blendshape in ordinary talking, where 1 is as far as it goes


def build_modes(
    mean: Float[np.ndarray, "n 3"],
    triangles: Int[np.ndarray, "t 3"],
    mirror: Int[np.ndarray, " n"],
    landmarks: Float[np.ndarray, "68 3"],
    regions: dict[str, Bool[np.ndarray, " n"]],
) -> dict[str, np.ndarray]:
    """All modes of a head, deterministic, in the units of ``FaceModel``'s .npz.

    Args:
        mean: vertices, millimetres, model frame, exactly symmetric through ``mirror``.
        triangles: counter-clockwise seen from outside; the lips and the lids of each eye are cut
            from each other.
        mirror: index of the mirrored vertex.
        landmarks: positions of the 68 landmarks, millimetres.
        regions: vertex sets by name. ``face`` is used for sampling and for taking out rigid motion;
            ``mouth_interior``, ``scalp``, ``iris`` and ``pupil`` for painting. Without ``face`` all
            is face, others may be missing.

    Returns:
        identity_basis (ki, n, 3) mm per standard deviation, expression_basis (ke, n, 3) mm per full
        activation, expression_names (ke,), albedo_mean (n, 3) and albedo_basis (ka, n, 3) in RGB;
        float32.
    """
    head = Head(mean.astype(np.float64), triangles, mirror, landmarks.astype(np.float64), regions)
    shapes, names = expression_shapes(head)
    albedo_mean, albedo_basis = albedo_modes(head)
    return {
        "identity_basis": identity_modes(head).astype(np.float32),
        "expression_basis": shapes.astype(np.float32),
        "expression_names": np.array(names),
        "expression_std": np.full(len(names), ACTIVATION_STD, np.float32),
        "albedo_mean": albedo_mean.astype(np.float32),
        "albedo_basis": albedo_basis.astype(np.float32),
    }
