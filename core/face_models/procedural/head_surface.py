"""The mean head's skin as a surface seen from one point inside it: radius = f(direction).

A smooth base (skull, face, jaw, neck) runs through hand-placed points; the features are signed
distance functions joined to it smoothly (nose, lips, lids) or cut out of it (nostrils, creases), in
the manner of I. Quilez, iquilezles.org/articles/smin. A ray from ``CENTRE`` leaves the skin once,
so a triangulation of directions is one of the skin, and a map of directions never folds.

Millimetres, model frame (x image right, y up, z out of the face). Everything is written for x >= 0
and mirrored by taking |x|.

Sizes follow the means of young adults, women and men averaged, in: L. G. Farkas (ed.),
Anthropometry of the Head and Face, 2nd ed., Raven Press 1994; L. G. Farkas et al., International
anthropometric study of facial morphology in various ethnic groups/races, J. Craniofacial Surgery
16(4), 2005; C. C. Gordon et al., 2012 Anthropometric Survey of U.S. Army Personnel (ANSUR II), 2014
(distance of the pupils, head length and breadth). No scanned or modelled head was used.
"""

from collections.abc import Callable
from functools import cache

import numpy as np
from scipy.interpolate import CubicSpline, RBFInterpolator

CENTRE = np.array([0.0, 15.0, 5.0])
Node = tuple[int | float, ...]
Nodes = tuple[Node, ...]

# The base: head without nose, lips and eyes. Midline (x = 0) first, then rings from crown to neck.
_BASE = np.array(
    [
        # midline: crown to neck in front, then crown to neck behind
        (0, 136, -12), (0, 133, 22), (0, 122, 48), (0, 104, 71), (0, 85, 84), (0, 65, 91),
        (0, 48, 93.5), (0, 36, 87), (0, 18, 85), (0, 0, 86), (0, -15, 93.0), (0, -25, 96.0),
        (0, -36, 93), (0, -46, 91), (0, -56, 88.5), (0, -69, 92), (0, -77, 89.5), (0, -83, 81),
        (0, -87, 65), (0, -91, 48), (0, -100, 33), (0, -122, 28), (0, -150, 27),
        (0, 131, -45), (0, 110, -78), (0, 80, -93), (0, 45, -97), (0, 15, -94), (0, -10, -85),
        (0, -30, -76), (0, -60, -69), (0, -100, -70), (0, -150, -76),
        # crown
        (25, 127, 25), (33, 127, -10), (28, 125, -42),
        (20, 110, 61), (38, 110, 42), (52, 110, 10), (54, 110, -20), (46, 110, -52), (25, 110, -72),
        # forehead
        (20, 85, 80.5), (38, 85, 68), (55, 85, 44), (66, 85, 15), (70.5, 85, -18), (63, 85, -56),
        (35, 85, -84),
        (20, 65, 88), (38, 65, 77), (50, 65, 63.5), (58, 64, 48), (66, 65, 22), (74, 68, -15),
        (70, 65, -50), (45, 65, -81),
        # brow ridge
        (10, 48, 92), (20, 50, 90), (31, 51, 85.2), (42, 50, 79), (50, 47, 70), (55, 48, 58),
        (63, 48, 34), (72, 50, 0), (75.5, 50, -20), (72, 50, -48), (48, 48, -82),
        # orbits
        (13, 38, 81), (22, 40, 80.5), (31, 42, 80.8), (42, 41, 75.8), (50, 38, 67), (55.5, 38, 57),
        (12, 30, 78), (20, 30, 74.5), (31, 30, 71), (42, 30, 68), (50, 30, 64), (56.5, 30, 55),
        (62.5, 30, 40), (67, 30, 20), (71, 30, 0), (74.5, 30, -20), (72, 28, -48), (48, 25, -82),
        # cheeks
        (24, 22, 76.8), (34, 21, 75.5), (44, 22, 71.0),
        (16, 16, 82.0), (24, 16, 78), (34, 15, 78), (44, 16, 73.5), (52, 16, 66), (60, 15, 51),
        (66, 14, 33), (68.5, 14, 15), (70, 12, -5), (70, 10, -30), (58, 8, -62), (30, 5, -86),
        (16, 0, 84.8), (24, 0, 80.5), (34, 0, 77), (44, 2, 72.5), (53, 2, 63.5), (61, 2, 46),
        (66, 0, 27), (68, 0, 8),
        (8, -15, 90), (17, -15, 87), (27, -15, 80.5), (37, -15, 72.5), (47, -15, 61.5),
        (56, -15, 45), (62, -15, 25), (65, -15, 2), (62, -20, -25), (50, -25, -55), (25, -25, -74),
        # mouth level
        (9, -26, 94.6), (17, -28, 89.8), (10, -46, 89.3), (18, -46, 84.8),
        (10, -36, 91.5), (20, -36, 86.5), (28, -36, 79), (37, -36, 69), (46, -35, 55),
        (53, -35, 38), (58.5, -35, 17), (58.5, -38, -5),
        # chin and jaw
        (10, -55, 87), (20, -55, 80.5), (30, -55, 70), (38, -54, 58), (46, -53, 40.5),
        (52, -51, 21), (53, -55, 2),
        (10, -69, 90), (19, -69, 83.5), (28, -69, 72), (36, -68, 57), (43, -65, 40), (47, -63, 24),
        (10, -82, 79.5), (20, -80, 72), (29, -77, 58), (37, -72.5, 42), (43, -69, 28),
        # under the jaw, neck
        (14, -87, 60), (27, -84, 44), (18, -94, 38), (32, -92, 24), (44, -80, 10),
        (30, -122, 18), (47, -115, 2), (55, -112, -22), (49, -108, -52), (27, -108, -66),
        (32, -150, 18), (52, -150, -2), (60, -150, -25), (54, -150, -55), (30, -150, -72),
        (54, -78, -8), (52, -80, -32), (43, -78, -55), (25, -72, -66),
    ],
    dtype=float,
)  # fmt: skip

EYE_CENTRE = np.array([30.6, 30.0, 66.0])
IRIS_CENTRE = np.array([31.4, 30.2])
EYE_TURN = np.deg2rad(12.0)  # the orbits look a little outwards
EYE_RADII = np.array(
    [15.6, 12.3, 12.3]
)  # the visible eye, wider than the globe so that it reaches the canthi
LID_THICKNESS = 1.3

# Tubes: rows of (x, y, z, radius), splined.
_NOSE = (
    (0, 38, 82.5, 5.5),
    (0, 27, 87.0, 5.2),
    (0, 16, 92.8, 5.4),
    (0, 5, 99.0, 6.4),
    (0, -3.2, 106.2, 7.7),
)
_NOSE_SIDE = ((3, 31, 77.0, 6.5), (5.5, 16, 82.5, 8.5), (8, 3, 88.0, 9.0))
_COLUMELLA = ((0, -12.4, 95.5, 2.8), (0, -9.0, 105.0, 3.8))
_NOSE_WING = ((3, -3, 103.5, 6.3), (9.5, -6, 97.5, 6.0))
_UPPER_LIP = ((0, -32.3, 94.9, 4.2), (6, -31.6, 94.5, 4.3), (13, -33, 90.6, 3.6),
              (19, -35.2, 86.0, 2.4), (25.5, -36.4, 77.0, 0.6))  # fmt: skip
_LOWER_LIP = ((0, -41.6, 92.4, 5.0), (7, -41.4, 91.6, 4.9), (14, -40.2, 88.0, 4.1),
              (20, -38.6, 84.2, 2.4), (25.5, -36.7, 77.0, 0.6))  # fmt: skip
LID_CREASE_XY = [(17.0, 34.6), (22.0, 38.0), (30.0, 39.7), (39.0, 38.5), (46.0, 35.0)]
_LID_CREASE = ((15.5, 33.0, 79.0, 1.2), (22, 38.0, 80.3, 1.2), (30, 39.7, 80.0, 1.2),
               (39, 38.5, 76.5, 1.2), (47, 34.2, 69.5, 0.8))  # fmt: skip
_MOUTH_CREASE = ((0, -36.8, 101.5, 1.0), (7, -36.1, 101.0, 1.0), (13, -36.3, 95.6, 1.0),
                 (19, -36.4, 89.6, 0.9), (26.0, -36.6, 82.5, 0.7))  # fmt: skip


def base_radius(directions: np.ndarray) -> np.ndarray:
    """Distance (m,) in mm from ``CENTRE`` to the base along unit directions (m, 3)."""
    return np.exp(_base()(_half(directions)))


@cache
def _base() -> RBFInterpolator:
    points = np.concatenate([_BASE, _BASE[_BASE[:, 0] > 0] * (-1, 1, 1)]) - CENTRE
    radius = np.linalg.norm(points, axis=1)
    return RBFInterpolator(
        points / radius[:, None], np.log(radius), kernel="thin_plate_spline", smoothing=2e-5
    )


def skin_radius(directions: np.ndarray) -> np.ndarray:
    """Distance (m,) in mm from ``CENTRE`` to the skin along unit directions (m, 3)."""
    d = _half(directions)
    base = base_radius(d)
    radius = base.copy()
    featured = (d[:, 2] > 0.55) & (np.abs(d[:, 1]) < 0.7)
    d, b = d[featured], base[featured]

    def inside(r: np.ndarray) -> np.ndarray:
        return _distance(CENTRE + d * r[:, None], r - b) < 0

    radius[featured] = _surface(inside, b - 7.0, b + 33.0)
    return radius


def lift(xy: np.ndarray) -> np.ndarray:
    """Points (m, 3) of the front of the skin at given x and y (m, 2), millimetres."""
    x = np.abs(xy[:, 0])

    def inside(z: np.ndarray) -> np.ndarray:
        p = np.column_stack([x, xy[:, 1], z])
        r = np.linalg.norm(p - CENTRE, axis=1)
        return _distance(p, r - base_radius((p - CENTRE) / r[:, None])) < 0

    z = _surface(inside, np.full(len(xy), 25.0), np.full(len(xy), 125.0))
    return np.column_stack([xy, z])


def _surface(
    inside: Callable[[np.ndarray], np.ndarray], low: np.ndarray, high: np.ndarray
) -> np.ndarray:
    """The largest parameter (m,) where a solid ends, ``low`` being inside, ``high`` outside."""
    steps = 20
    below, above = low.copy(), high.copy()
    open_ = np.ones(len(low), bool)
    for k in range(1, steps):
        now = high + (low - high) * k / steps
        hit = open_ & inside(now)
        below[hit] = now[hit]
        above[open_ & ~hit] = now[open_ & ~hit]
        open_ &= ~hit
    for _ in range(24):
        middle = (below + above) / 2
        hit = inside(middle)
        below, above = np.where(hit, middle, below), np.where(hit, above, middle)
    return (below + above) / 2


def skin(directions: np.ndarray) -> np.ndarray:
    """Points of the skin (m, 3), millimetres, along unit directions (m, 3)."""
    return CENTRE + directions * skin_radius(directions)[:, None]


def eye_front(xy: np.ndarray) -> np.ndarray:
    """Points (m, 3) of the left eye's front surface at given x and y (m, 2)."""

    def inside(z: np.ndarray) -> np.ndarray:
        return (to_eye(np.column_stack([xy, z])) ** 2 / EYE_RADII**2).sum(1) < 1

    low = np.full(len(xy), EYE_CENTRE[2])
    return np.column_stack([xy, _surface(inside, low, low + 20)])


def to_eye(points: np.ndarray) -> np.ndarray:
    """Model frame to the left eye's frame (z = its axis), millimetres."""
    return (points - EYE_CENTRE) @ _eye_axes().T


def from_eye(points: np.ndarray) -> np.ndarray:
    """The inverse of ``to_eye``."""
    return points @ _eye_axes() + EYE_CENTRE


def _eye_axes() -> np.ndarray:
    c, s = np.cos(EYE_TURN), np.sin(EYE_TURN)
    return np.array([[c, 0, -s], [0, 1, 0], [s, 0, c]])


def _lids(points: np.ndarray) -> np.ndarray:
    radii = EYE_RADII + LID_THICKNESS
    return (np.linalg.norm(to_eye(points) / radii, axis=1) - 1) * radii[1]


def _distance(points: np.ndarray, above_base: np.ndarray) -> np.ndarray:
    """Signed distance, about, of points (m, 3) to the skin; negative inside."""
    p = points
    d = above_base * 0.93
    d = _join(d, _lids(p), 5.0)
    d = _cut(d, _tube(p, _LID_CREASE), 3.0)
    # Nose.
    nose = _join(_tube(p, _NOSE), _tube(p, _NOSE_SIDE), 14.0)
    nose = _join(nose, _tube(p, _NOSE_WING), 5.0)
    nose = _join(nose, _tube(p, _COLUMELLA), 3.0)
    d = _join(d, nose, 8.0)
    d = _join(d, _ellipsoid(p, (11.6, -7.6, 94.0), (5.4, 7.0, 9.5), -16.0), 4.0)
    d = _cut(d, _ellipsoid(p, (6.2, -14.5, 99.0), (2.9, 5.4, 5.6), -14.0), 1.5)
    # Lips.
    d = _join(d, _tube(p, _UPPER_LIP), 5.0)
    d = _join(d, _tube(p, _LOWER_LIP), 5.0)
    return _cut(d, _tube(p, _MOUTH_CREASE), 1.5)


def _join(a: np.ndarray, b: np.ndarray, width: float) -> np.ndarray:
    """Smooth minimum: union of two solids with a fillet ``width`` mm wide."""
    h = np.maximum(width - np.abs(a - b), 0) / width
    return np.minimum(a, b) - h * h * width / 4


def _cut(a: np.ndarray, b: np.ndarray, width: float) -> np.ndarray:
    """Smooth difference: solid a without b."""
    return -_join(-a, b, width)


@cache
def _path(nodes: Nodes, pieces: int) -> np.ndarray:
    """A tube's nodes splined to (pieces + 1, 4); along x at x = 0, so the midline has no crease."""
    table = np.array(nodes)
    if len(table) == 2:
        return table
    ends: object = "not-a-knot"
    if table[0, 0] == 0 and table[-1, 0] > 0:
        ends = ((1, np.array([table[1, 0] - table[0, 0], 0, 0, 0])), (2, np.zeros(4)))
    spline = CubicSpline(np.arange(len(table)), table, bc_type=ends)
    return spline(np.linspace(0, len(table) - 1, pieces + 1))


def _tube(points: np.ndarray, nodes: Nodes, pieces: int = 16) -> np.ndarray:
    """Signed distance to a splined tube of varying radius; points (m, 3)."""
    path = _path(nodes, pieces)
    a, along = path[:-1, :3], np.diff(path[:, :3], axis=0)
    length2 = (along**2).sum(1)
    q = points - a[0]
    a = a - a[0]
    dot = q @ along.T - (a * along).sum(1)
    h = np.clip(dot / length2, 0, 1)
    gap2 = (q**2).sum(1)[:, None] - 2 * (q @ a.T) + (a**2).sum(1) + h * (h * length2 - 2 * dot)
    radius = path[:-1, 3] + h * np.diff(path[:, 3])
    return (np.sqrt(np.maximum(gap2, 0)) - radius).min(1)


def _ellipsoid(points: np.ndarray, centre: Node, radii: Node, turn: float) -> np.ndarray:
    """Signed distance, about, to an ellipsoid, its front turned outwards by ``turn`` degrees."""
    c, s = np.cos(np.deg2rad(turn)), np.sin(np.deg2rad(turn))
    q = (points - np.array(centre)) @ np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
    k0 = np.linalg.norm(q / radii, axis=1)
    k1 = np.linalg.norm(q / np.square(radii), axis=1)
    return k0 * (k0 - 1) / np.maximum(k1, 1e-9)


def _half(directions: np.ndarray) -> np.ndarray:
    """Directions reflected to x >= 0."""
    return np.column_stack([np.abs(directions[:, 0]), directions[:, 1:]])
