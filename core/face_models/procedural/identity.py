"""Identity modes of a head: a Gaussian-process morphable model with anthropometric directions.

Luethi, Gerig, Jud and Vetter, "Gaussian Process Morphable Models" (TPAMI 2018): deformations
u ~ GP(0, k) with a sum of Gaussian kernels over several lengths (their multi-scale kernel), made
symmetric through the mirror,

    k(x, y) I + k(x, mirror y) diag(-1, 1, 1)    symmetric faces
    k(x, y) I - k(x, mirror y) diag(-1, 1, 1)    the rest, ASYMMETRY times the standard deviation

and approximated by its leading eigenfunctions (Nystroem). To the smooth covariance are added the
directions in which faces are measured (face and jaw width, nose, lips, ...), one standard deviation
each as in craniofacial anthropometry (Farkas, "Anthropometry of the Head and Face", 1994: e.g.
bizygomatic width 5 mm, nose height 3 mm, nose width 2.5 mm, mouth width 3.5 mm, intercanthal width
2.5 mm). The modes are the principal components of the sum.
"""

import numpy as np
from jaxtyping import Float

from core.face_models.procedural.anatomy import (
    EYE_LANDMARKS,
    FLIP,
    Head,
    Number,
    slide_on_eyeballs,
    smoothstep,
)
from core.face_models.procedural.gaussian_process import (
    by_variance,
    principal_modes,
    scalar_factors,
)

SCALES = ((90.0, 1.0), (45.0, 0.6), (22.0, 0.38), (12.0, 0.18))
"""Length and standard deviation per coordinate of each kernel, millimetres."""
ASYMMETRY = 0.5  # of the symmetric standard deviation: about 0.35 mm of asymmetry in a face
FACTORS = 64  # kept of each scalar kernel


def identity_modes(head: Head, count: int = 100) -> Float[np.ndarray, "k n 3"]:
    """The modes by falling variance, millimetres per standard deviation.

    Each mode is exactly symmetric or exactly antisymmetric through the head's mirror map, and all
    are orthogonal as weighted by ``head.importance``. Rigid motions of the face are taken out (they
    belong to the pose); eyeballs move rigidly, the lids around slide on them.
    """
    even, odd = scalar_factors(head, SCALES, _strength(head), FACTORS)
    symmetric = np.concatenate([_along(odd, 0), _along(even, 1), _along(even, 2), _measures(head)])
    skew = ASYMMETRY * np.concatenate([_along(even, 0), _along(odd, 1), _along(odd, 2)])
    modes = []
    for factors, sign in ((symmetric, 1), (skew, -1)):
        factors = _without_rigid_motion(head, slide_on_eyeballs(head, factors, carry=True))
        reflected = factors[:, head.mirror] * FLIP
        modes.append(principal_modes(head, 0.5 * (factors + sign * reflected), count))
    return by_variance(head, np.concatenate(modes), count)


def _along(factors: Float[np.ndarray, "m n"], axis: int) -> Float[np.ndarray, "m n 3"]:
    """Scalar fields as displacements along one axis."""
    field = np.zeros((*factors.shape, 3))
    field[..., axis] = factors
    return field


def _strength(head: Head) -> Float[np.ndarray, " n"]:
    """How much each place varies: less on cranium and neck, more at nose, chin, lips, brows."""
    landmarks = head.landmarks
    depth = smoothstep(head.mean[:, 2], landmarks[[0, 16], 2].mean() - 60, landmarks[8, 2])
    below = smoothstep(head.mean[:, 1], landmarks[8, 1] - 60, landmarks[8, 1])
    strength = 0.55 + 0.35 * depth * below
    for group, width in (((30, 33), 14), ((8,), 18), ((51, 57), 12), ((19, 24), 14)):
        for index in group:
            strength = strength + 0.12 * _bump(head, landmarks[index], width)
    return strength


def _bump(head: Head, centre: Float[np.ndarray, "3"], width: Number) -> Float[np.ndarray, " n"]:
    """exp(-d^2 / 2 width^2) of the distance in space."""
    return np.exp(-0.5 * ((head.mean - centre) ** 2).sum(1) / width**2)


def _measures(head: Head) -> Float[np.ndarray, "m n 3"]:
    """The anthropometric directions, one standard deviation each, symmetric."""
    landmarks = head.landmarks
    x, y, z = head.mean.T
    zero = np.zeros_like(x)

    def move(where: tuple[int, ...], width: Number, way: tuple[Number, ...]) -> np.ndarray:
        """Landmarks of the left half and their mirror images moved by ``way`` (x outward), mm."""
        weight, mirrored = zero, zero
        for index in where:
            weight = np.maximum(weight, _bump(head, landmarks[index], width))
            mirrored = np.maximum(mirrored, _bump(head, landmarks[index] * FLIP, width))
        if all(abs(landmarks[index, 0]) < 1 for index in where):
            return weight[:, None] * way
        return weight[:, None] * way + mirrored[:, None] * (FLIP * way)

    def at(point: Float[np.ndarray, "3"], width: Number, way: tuple[Number, ...]) -> np.ndarray:
        return _bump(head, point, width)[:, None] * way + _bump(head, point * FLIP, width)[
            :, None
        ] * (FLIP * way)

    nasion, subnasal, chin, cheek = landmarks[27], landmarks[33], landmarks[8], landmarks[14]
    brow = landmarks[[19, 24]].mean(0)
    frontal = smoothstep(z, landmarks[0, 2] - 40, landmarks[0, 2] + 40)
    lower_face = smoothstep(y, subnasal[1] + 10, chin[1] + 10)
    buccal = 0.5 * (landmarks[54] + landmarks[13])
    cheekbone = 0.55 * landmarks[46] + 0.45 * landmarks[14]
    eye = landmarks[list(EYE_LANDMARKS[1])].mean(0)
    brows, lids = (22, 23, 24, 25, 26), EYE_LANDMARKS[1]
    height = (y - subnasal[1]) / (nasion[1] - chin[1])
    face_width = np.stack([2.6 * x / cheek[0], zero, zero], 1)
    face_length = np.stack([zero, 5.0 * height * frontal, zero], 1)
    jaw_width = (2.3 * lower_face * np.tanh(x / 40))[:, None] * [1, 0, 0]
    brow_ridge = move(brows, 10, (0.0, -0.3, 1.5))
    chin_forward = move((8,), 17, (0.0, 0.0, 2.6))
    nose_size = move((30, 33, 35), 12, (0.6, -0.9, 1.2))
    measures = [
        0.022 * (head.mean - subnasal),  # size
        face_width,
        face_length,
        jaw_width,
        (2.2 * np.exp(-((x / 38) ** 2)) * frontal)[:, None] * [0, 0, 1],  # convexity
        (3.0 * smoothstep(y, brow[1] - 5, brow[1] + 70))[:, None] * [0, 0, 1],  # forehead slope
        (2.5 * smoothstep(y, brow[1], brow[1] + 70))[:, None] * [0, 1, 0],  # forehead height
        (2.2 * smoothstep(y, brow[1] - 20, brow[1] + 30) * np.tanh(x / 40))[:, None] * [1, 0, 0],
        (1.8 * lower_face * frontal)[:, None] * [0, 0, 1],  # jaws forward
        chin_forward,
        move((8,), 20, (0.0, -2.6, 0.0)),
        move((9, 10), 14, (1.8, 0.0, 0.0)),
        move((11, 12), 22, (0.6, -2.6, 0.3)),  # jaw angle
        move((30, 33), 13, (0.0, -1.4, 0.3)),  # nose height
        move((30,), 11, (0.0, 0.0, 2.0)),  # nose protrusion
        move((35,), 7, (1.1, 0.0, 0.2)),  # nose width
        move((27, 28), 9, (0.0, 0.0, 1.9)),  # bridge
        move((28, 29), 6.5, (0.0, 0.0, 0.9)),  # hump
        at(landmarks[28] + [7, 0, -6], 7, (1.0, 0.0, 0.0)),  # bridge width
        move((30,), 8, (0.0, 1.2, 0.2)),  # tip rotation
        move((30,), 7, (0.0, 0.0, 0.5)) + at(landmarks[30] + [6, 0, -5], 6, (0.9, 0.0, 0.0)),
        move((50, 51, 52), 5.5, (0.0, 0.8, 0.4)),  # upper lip thickness
        move((56, 57, 58), 6.5, (0.0, -0.8, 0.5)),  # lower lip thickness
        move((51, 57), 14, (0.0, 0.0, 1.5)),  # lip protrusion
        move((54,), 11, (1.4, 0.0, 0.0)),  # mouth width
        move((54,), 9, (0.0, 0.7, 0.0)),  # corners up or down
        move((51, 57), 20, (0.0, 1.5, 0.0)),  # philtrum length
        at(eye, 16, (1.4, 0.0, 0.0)),  # eye spacing
        at(eye, 15, (0.0, 0.0, 1.4)),  # eye depth
        move(lids[1:3], 6, (0.0, 0.75, 0.0)) + move(lids[4:], 6, (0.0, -0.4, 0.0)),
        move(lids[:1], 8, (0.8, 0.9, 0.0)),  # eye width and tilt
        move(brows, 12, (0.0, 1.6, 0.0)),
        move((25, 26), 10, (0.0, 1.2, 0.0)) - move((22, 23), 8, (0.0, 0.8, 0.0)),  # brow tilt
        brow_ridge,
        at(buccal, 20, (1.9, 0.0, 1.7)),  # cheek fullness
        at(cheekbone, 15, (1.1, 0.0, 1.7)),
        0.9 * brow_ridge + 0.7 * chin_forward + 0.6 * jaw_width + 0.5 * nose_size,  # male, female
        nose_size,
    ]
    if head.region("neck").any():
        neck = smoothstep(y, chin[1] - 10, chin[1] - 50) * np.tanh(x / 30)
        measures.append((3.5 * neck)[:, None] * [1, 0, 0])
    return np.stack(measures)


def _without_rigid_motion(
    head: Head, factors: Float[np.ndarray, "m n 3"]
) -> Float[np.ndarray, "m n 3"]:
    """Each field less the small rigid motion that fits it best over the face."""
    face = head.face & ~head.is_eyeball
    centred = head.mean - head.mean[face].mean(0)
    eye = np.eye(3)
    motions = [np.broadcast_to(axis, centred.shape) for axis in eye]
    motions += [np.cross(axis, centred) / 50 for axis in eye]
    rigid = np.stack(motions)
    flat = rigid[:, face].reshape(6, -1)
    fit = np.linalg.solve(flat @ flat.T, flat @ factors[:, face].reshape(len(factors), -1).T)
    return factors - np.tensordot(fit.T, rigid, 1)
