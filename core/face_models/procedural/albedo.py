"""Reflectance of a head, painted per vertex: a mean and its modes, in sRGB.

The large axes are the pigments of skin: melanin (S. Alaluf et al., "The impact of epidermal melanin
on objective measurements of human skin colour", Pigment Cell Research 15, 2002; light to very dark
skin within two standard deviations) and haemoglobin, which absorbs green and blue (N. Tsumura et
al., "Image-based skin color and texture analysis/synthesis by extracting hemoglobin and melanin",
SIGGRAPH 2003). To these come lips, brows, beard shadow, irises, hair, shades around the eyes, and
smooth variation over the skin as a Gaussian process.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from core.face_models.procedural.anatomy import (
    EYE_LANDMARKS,
    FLIP,
    Head,
    Number,
    polyline_distance,
    smoothstep,
)
from core.face_models.procedural.gaussian_process import (
    by_variance,
    principal_modes,
    scalar_factors,
)

SKIN, LIPS, BROW, LASHES = (
    (0.70, 0.535, 0.445),
    (0.62, 0.37, 0.34),
    (0.27, 0.19, 0.14),
    (0.2, 0.13, 0.11),
)
SCLERA, IRIS, LIMBUS, PUPIL = (
    (0.86, 0.83, 0.81),
    (0.34, 0.23, 0.14),
    (0.16, 0.11, 0.08),
    (0.04, 0.04, 0.04),
)
MOUTH, HAIR = (0.34, 0.13, 0.12), (0.21, 0.15, 0.11)
MELANIN = (0.134, 0.127, 0.112)  # one standard deviation less of it, on skin
HAEMOGLOBIN = (0.014, -0.012, -0.010)
IRIS_RADIUS, PUPIL_RADIUS = 5.9, 2.0  # mm
SCALES = (
    (60.0, 0.8),
    (30.0, 0.5),
    (15.0, 0.35),
)  # length mm, standard deviation, of smooth variation
LUMINANCE, REDNESS = (0.017, 0.017, 0.016), (0.007, -0.006, -0.005)  # its colours
ASYMMETRY = 0.3


@dataclass(frozen=True)
class _Layers:
    """Where each paint lies, 0 to 1 per vertex, symmetric; together they cover all."""

    skin: Float[np.ndarray, " n"]
    lips: Float[np.ndarray, " n"]
    brows: Float[np.ndarray, " n"]
    lashes: Float[np.ndarray, " n"]
    hair: Float[np.ndarray, " n"]
    mouth: Float[np.ndarray, " n"]
    sclera: Float[np.ndarray, " n"]
    iris: Float[np.ndarray, " n"]
    limbus: Float[np.ndarray, " n"]
    pupil: Float[np.ndarray, " n"]


def albedo_modes(
    head: Head, count: int = 60
) -> tuple[Float[np.ndarray, "n 3"], Float[np.ndarray, "k n 3"]]:
    """Mean reflectance, RGB in [0, 1], and modes by falling variance, RGB per standard deviation.

    Each mode is exactly even or exactly odd through the mirror map; the first is close to melanin.
    """
    layers = _layers(head)
    paints = (
        (layers.skin, SKIN), (layers.lips, LIPS), (layers.brows, BROW), (layers.lashes, LASHES),
        (layers.hair, HAIR), (layers.mouth, MOUTH), (layers.sclera, SCLERA), (layers.iris, IRIS),
        (layers.limbus, LIMBUS), (layers.pupil, PUPIL),
    )  # fmt: skip
    mean = sum((paint[:, None] * colour for paint, colour in paints), np.zeros_like(head.mean))
    flush = layers.skin * (_places(head)["cheeks"] + 0.7 * _places(head)["nose"])
    mean += flush[:, None] * (0.025, -0.025, -0.018)
    mean += (layers.skin * _places(head)["under eyes"])[:, None] * (-0.035, -0.04, -0.025)
    mean += (layers.skin * _places(head)["lids"])[:, None] * (-0.03, -0.045, -0.04)
    mean = 0.5 * (mean + mean[head.mirror])

    cover = layers.skin + 0.6 * layers.lips
    even, odd = scalar_factors(head, SCALES, cover, 40)
    colours = np.array([LUMINANCE, REDNESS])
    smooth = (even[:, None, :, None] * colours[:, None]).reshape(-1, *mean.shape)
    skew = ASYMMETRY * (odd[:, None, :, None] * colours[:, None]).reshape(-1, *mean.shape)
    symmetric = np.concatenate([_pigments(head, layers), smooth])
    modes = [
        principal_modes(head, 0.5 * (factors + sign * factors[:, head.mirror]), count)
        for factors, sign in ((symmetric, 1), (skew, -1))
    ]
    return mean, by_variance(head, np.concatenate(modes), count)


def _layers(head: Head) -> _Layers:
    landmarks, eyeball = head.landmarks, head.is_eyeball
    n = len(head.mean)
    flesh = np.where(eyeball, 0.0, 1.0)
    front = head.mean[:, 2] > landmarks[[48, 54], 2].mean() - 8

    pupil, iris, limbus = np.zeros(n), np.zeros(n), np.zeros(n)
    for eye in head.eyeballs.values():
        named = eye.vertices & (head.region("pupil") | head.region("iris"))
        looks_at = head.mean[named].mean(0) - eye.centre if named.any() else np.array([0.0, 0, 1])
        offset = head.mean - eye.centre
        axis = looks_at / np.linalg.norm(looks_at)
        aside = np.linalg.norm(offset - (offset @ axis)[:, None] * axis, axis=1)
        seen = eye.vertices & (offset @ axis > 0)
        within = seen * smoothstep(aside, IRIS_RADIUS + 0.3, IRIS_RADIUS - 0.5)
        hole = seen * smoothstep(aside, PUPIL_RADIUS + 0.4, PUPIL_RADIUS - 0.4)
        ring = within * smoothstep(aside, IRIS_RADIUS - 1.6, IRIS_RADIUS - 0.4)
        pupil, limbus, iris = pupil + hole, limbus + ring, iris + within - hole - ring
    sclera = eyeball - pupil - iris - limbus

    mouth = head.smooth(flesh * head.region("mouth_interior"), 1.0) * flesh
    left = flesh - mouth
    lips = left * front * smoothstep(head.outline_distance, 1.3, -1.1)
    left = left - lips
    brows = left * _brows(head, 1.0)
    left = left - brows
    lashes = 0.75 * left * _lash_line(head)
    left = left - lashes
    hair = left * np.clip(head.smooth(flesh * head.region("scalp"), 3.0), 0, 1)
    return _Layers(left - hair, lips, brows, lashes, hair, mouth, sclera, iris, limbus, pupil)


def _brows(head: Head, thickness: float) -> Float[np.ndarray, " n"]:
    """The brows' density: along landmarks 17 to 26, thinner outward."""
    density = np.zeros(len(head.mean))
    for side, arch in ((1, (22, 23, 24, 25, 26)), (-1, (21, 20, 19, 18, 17))):
        line = head.landmarks[list(arch)]
        line = line - [0, 1.0, 0]
        distance = polyline_distance(head.mean, line)
        along = (side * head.mean[:, 0] - side * line[0, 0]) / (side * (line[-1, 0] - line[0, 0]))
        half = thickness * (4.2 - 2.4 * smoothstep(along, 0.3, 1.0))
        density = np.maximum(density, 0.9 * smoothstep(distance - half, 1.8, -1.8))
    return density * ~head.is_eyeball


def _lash_line(head: Head) -> Float[np.ndarray, " n"]:
    """1 on the margin of the lids, mostly the upper ones."""
    lashes = np.zeros(len(head.mean))
    for outer, *upper, inner, below_inner, below_outer in EYE_LANDMARKS.values():
        for lid, weight in (
            ((outer, *upper, inner), 1.0),
            ((inner, below_inner, below_outer, outer), 0.6),
        ):
            distance = polyline_distance(head.mean, head.landmarks[list(lid)])
            lashes = np.maximum(lashes, weight * smoothstep(distance, 2.6, 0.6))
    return lashes * ~head.is_eyeball


def _places(head: Head) -> dict[str, Float[np.ndarray, " n"]]:
    """Soft places on the skin, from 0 to 1, symmetric."""
    landmarks = head.landmarks

    def spots(width: Number, *centres: Float[np.ndarray, "3"]) -> Float[np.ndarray, " n"]:
        field = np.zeros(len(head.mean))
        for centre in centres:
            for place in (centre, centre * FLIP):
                squared = ((head.mean - place) ** 2).sum(1)
                field = np.maximum(field, np.exp(-0.5 * squared / width**2))
        return field

    _, upper_outer, upper_inner, _, lower_inner, lower_outer = landmarks[list(EYE_LANDMARKS[1])]
    bag = 0.5 * (lower_inner + lower_outer)
    x, y, z = head.mean.T
    jaw = polyline_distance(head.mean, landmarks[3:14])
    mouth_height = landmarks[48, 1]
    lip_line = polyline_distance(head.mean, landmarks[[48, 49, 50, 51, 52, 53, 54]])
    above_lip = smoothstep(lip_line, 13, 6) * (y > mouth_height - 4) * (y < landmarks[33, 1])
    chin = spots(15, landmarks[8], 0.5 * (landmarks[57] + landmarks[8]), landmarks[10])
    beard = np.maximum(smoothstep(jaw, 26, 8), chin)
    beard = beard * smoothstep(y, landmarks[2, 1] - 2, landmarks[3, 1] - 8)
    beard = np.maximum(beard * smoothstep(y, landmarks[8, 1] - 45, landmarks[8, 1] - 10), above_lip)
    return {
        "cheeks": spots(16, 0.55 * landmarks[46] + 0.45 * landmarks[54] + [4, 0, 0]),
        "nose": spots(9, landmarks[30], landmarks[35]),
        "bridge": spots(9, landmarks[28]),
        "under eyes": spots(7, bag + np.array([0, -5, 0]), lower_inner + np.array([-2, -4, 0])),
        "lids": spots(6, upper_inner + np.array([0, 2, 0]), upper_outer + np.array([0, 2, 0])),
        "forehead": spots(24, landmarks[22] + [6, 32, -4]),
        "chin": chin,
        "beard": beard,
        "moustache": above_lip,
        "nasolabial": spots(9, 0.5 * (landmarks[35] + landmarks[54])),
        "temples": spots(18, landmarks[26] + [8, 12, -20]),
        "sides": smoothstep(np.abs(x), 45, 70),
        "neck": smoothstep(y, landmarks[8, 1] + 5, landmarks[8, 1] - 25)
        * smoothstep(z, landmarks[8, 2] + 5, landmarks[8, 2] - 15),
    }


def _pigments(head: Head, layers: _Layers) -> Float[np.ndarray, "m n 3"]:
    """The named axes, one standard deviation each."""
    places = {name: layers.skin * field for name, field in _places(head).items()}
    whole = layers.skin + 0.72 * layers.lips + 0.4 * layers.brows + 0.35 * layers.lashes
    blood = layers.skin + 1.4 * layers.lips
    bare = np.maximum(layers.skin, 0)
    thicker = (_brows(head, 1.35) - _brows(head, 0.75)) * (bare + layers.brows)
    hair = layers.hair
    hairline = hair * (1 - hair) * 4
    axes = (
        (whole + 0.06 * layers.sclera, MELANIN),
        (blood, HAEMOGLOBIN),
        (blood, (0.003, 0.001, -0.009)),  # yellow against blue undertone
        (layers.lips, (0.020, -0.026, -0.018)),
        (layers.lips, (0.035, 0.030, 0.030)),
        (layers.brows, (0.085, 0.070, 0.052)),
        (thicker, (-0.11, -0.10, -0.09)),
        (places["beard"], (-0.050, -0.042, -0.030)),
        (places["moustache"], (-0.030, -0.026, -0.020)),
        (layers.iris, (-0.020, 0.060, 0.110)),  # brown to blue
        (layers.iris + 0.4 * layers.limbus, (0.060, 0.050, 0.028)),
        (layers.sclera, (0.025, 0.030, 0.032)),
        (places["under eyes"], (-0.040, -0.040, -0.022)),
        (places["lids"], (-0.035, -0.040, -0.034)),
        (places["cheeks"], (0.010, -0.015, -0.010)),
        (places["nose"], (0.010, -0.013, -0.009)),
        (places["forehead"], (0.022, 0.022, 0.020)),
        (places["bridge"] + places["nose"], (0.020, 0.020, 0.019)),
        (places["nasolabial"], (-0.022, -0.024, -0.020)),
        (places["chin"], (0.016, -0.016, -0.012)),
        (places["temples"] + places["sides"], (-0.020, -0.020, -0.018)),
        (places["neck"], (-0.030, -0.026, -0.022)),
        (hair, (0.080, 0.058, 0.040)),
        (hairline, (-0.080, -0.070, -0.060)),
        (layers.mouth, (0.030, 0.020, 0.020)),
    )
    return np.stack([field[:, None] * colour for field, colour in axes])
