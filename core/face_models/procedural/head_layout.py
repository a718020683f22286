"""Where things are on the mean head: landmarks, outlines, the wanted mesh density, the UV map.

For the subject's left half (x >= 0); the other is its mirror image. Millimetres, model frame. A
*direction* is a unit vector from ``head_surface.CENTRE``; it stands for the skin's point it hits.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from scipy.interpolate import CubicSpline

from core.face_models.procedural import head_surface as surface

# Landmarks of the subject's left half (x >= 0), iBUG numbers: (x, y) in mm on the skin.
BROW = {22: (12.0, 46.5), 23: (22.0, 51.0), 24: (33.0, 53.0), 25: (44.0, 51.0), 26: (53.0, 46.0)}
BRIDGE = {27: (0.0, 36.0), 28: (0.0, 23.0), 29: (0.0, 10.0), 30: (0.0, -4.0)}
SUBNASALE = {33: (0.0, -15.0)}
NOSTRILS = {34: (6.8, -14.0), 35: (14.0, -13.0)}
EYE = {
    42: (16.2, 28.6),
    43: (25.0, 33.8),
    44: (36.0, 34.0),
    45: (45.6, 31.0),
    46: (37.5, 25.9),
    47: (26.5, 25.2),
}
LIPS_UPPER = {51: (0.0, -28.6), 52: (6.0, -27.4), 53: (15.5, -30.4), 54: (25.8, -36.5)}
LIPS_LOWER = {57: (0.0, -46.2), 56: (7.5, -45.7), 55: (16.5, -43.0), 54: (25.8, -36.5)}
# Jaw: points (x, y, z) whose directions from the centre count.
JAW = {8: (0, -82.5, 80), 9: (16, -81.5, 73), 10: (31, -75.5, 55), 11: (43, -66, 38),
       12: (51.5, -52, 22), 13: (58.5, -33, 12), 14: (65, -13, 6), 15: (69, 8, 3),
       16: (70.5, 29, 2)}  # fmt: skip
INNER_LIP = 9.5  # x of landmarks 63 and 65 on the mouth's line
CROWN, OCCIPUT = (0, 136, -10), (0, 30, -97)
BROW_OUTLINE = [
    (9.5, 44.0), (22.0, 48.0), (33.0, 50.0), (44.0, 48.3), (54.0, 44.0), (53.0, 47.5), (44.0, 54.0),
    (33.0, 56.5), (22.0, 54.5), (10.0, 50.0),
]  # fmt: skip
NOSE_OUTLINE = [
    (0.0, 38.0), (8.0, 33.0), (11.0, 20.0), (15.0, 6.0), (20.0, -4.0), (20.5, -11.0), (15.0, -16.0),
    (6.0, -17.0), (0.0, -17.5),
]  # fmt: skip
# Forehead to ear, points (x, y, z) whose directions count.
HAIRLINE = [(0, 101, 73), (30, 97, 65), (50, 83, 50), (60, 64, 38), (67, 45, 14), (70.5, 29, 2)]
MOUTH_GAP = 1.6  # mm between the lips' edges while meshing, so that they are distinct directions
MOUTH_LINE = [(0.0, -36.9), (6.0, -36.3), (12.0, -36.4), (18.0, -36.5), (23.4, -36.6)]


def directions_of(points: np.ndarray) -> np.ndarray:
    """Unit directions (m, 3) from the head's centre to points (m, 3)."""
    d = np.asarray(points, float) - surface.CENTRE
    return d / np.linalg.norm(d, axis=1, keepdims=True)


def lift(xy: np.ndarray) -> np.ndarray:
    """Directions (m, 3) of the skin's points at (x, y) (m, 2), of the front of the head."""
    return directions_of(surface.lift(np.asarray(xy, float)))


def from_angles(azimuth: np.ndarray, elevation: np.ndarray) -> np.ndarray:
    """Unit directions (m, 3); azimuth 0 is forwards, pi / 2 to x > 0; x is just 0 at 0 and pi."""
    d = np.column_stack(
        [
            np.sin(azimuth) * np.cos(elevation),
            np.sin(elevation),
            np.cos(azimuth) * np.cos(elevation),
        ]
    )
    d[np.abs(d[:, 0]) < 1e-12, 0] = 0.0
    return d


def edge_length(points: np.ndarray) -> np.ndarray:
    """Wanted edge length in mm at points (m, 3)."""
    p = np.abs(points * [1, 0, 0]) + points * [0, 1, 1]
    eye = np.linalg.norm((p - [31, 31, 75]) / [1.7, 1.1, 1.7], axis=1) - 9
    mouth = np.linalg.norm((p - [0, -37, 97]) / [2.0, 1.0, 2.0], axis=1) - 10
    nose = np.linalg.norm((p - [0, -8, 97]) / [1.3, 1.0, 1.3], axis=1) - 14
    far = np.minimum(np.minimum(eye, mouth), nose)
    return 1.85 + 0.088 * np.clip(far, 0, 85)


def curve(nodes: Sequence[surface.Node], finer: float = 1.0) -> tuple[np.ndarray, list[int]]:
    """Points (m, 2 or 3) on a spline through nodes, an edge length apart; the nodes' indices."""
    path = np.array(nodes, float)
    steps = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(path, axis=0), axis=1))])
    spline = CubicSpline(steps, path)
    out: list[np.ndarray] = []
    where: list[int] = []
    for k in range(len(path) - 1):
        middle = spline((steps[k] + steps[k + 1]) / 2)
        if len(middle) == 2:
            middle = np.append(middle, 85.0)
        pieces = max(1, round((steps[k + 1] - steps[k]) / (edge_length(middle[None])[0] * finer)))
        where.append(sum(len(o) for o in out))
        out.append(spline(np.linspace(steps[k], steps[k + 1], pieces + 1)[:-1]))
    where.append(sum(len(o) for o in out))
    out.append(path[-1:])
    points = np.concatenate(out)
    return points, where


def beside(path: np.ndarray, gap: float, closed: bool = False) -> np.ndarray:
    """A path (k, 2) moved by ``gap`` mm to its right (m, 2)."""
    if closed:
        along = np.roll(path, -1, axis=0) - np.roll(path, 1, axis=0)
    else:
        along = np.gradient(path, axis=0)
    along /= np.linalg.norm(along, axis=1, keepdims=True)
    return path + gap * np.column_stack([along[:, 1], -along[:, 0]])


def eye_outline() -> tuple[np.ndarray, dict[int, int]]:
    """The lids' opening, counter-clockwise from the inner canthus as (x, y), and its landmarks."""
    lower, at_lower = curve(
        [EYE[42], (20.3, 26.9), EYE[47], (32.0, 24.7), EYE[46], (42.6, 28.2), EYE[45]], 0.85
    )
    upper, at_upper = curve(
        [EYE[45], (42.0, 32.9), EYE[44], (30.5, 34.5), EYE[43], (19.2, 31.4), EYE[42]], 0.85
    )
    n = len(lower) - 1
    outline = np.concatenate([lower[:-1], upper[:-1]])
    marks = {
        42: 0,
        47: at_lower[2],
        46: at_lower[4],
        45: n,
        44: n + at_upper[2],
        43: n + at_upper[4],
    }
    return outline, marks


def eye_uv_centre() -> np.ndarray:
    """The point (2,) of the map that the left eye is drawn around."""
    return uv_of(lift(np.array([[31.0, 30.0]])))[0]


def hairline() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Directions along the hairline, forehead to ear, without its ends; rows above and below it."""
    points, _ = curve(HAIRLINE, 0.7)
    points = surface.skin(directions_of(points))
    along = np.gradient(points, axis=0)
    up = np.cross(along, points - surface.CENTRE)
    up *= np.sign(up[0, 1]) / np.linalg.norm(up, axis=1, keepdims=True)
    rows = [directions_of(points + gap * up)[1:-1] for gap in (0.0, 4.0, -4.0)]
    return rows[0], rows[1], rows[2]


def midline(keys: list[np.ndarray]) -> np.ndarray:
    """Directions along the midline through the given ones, in order, an edge length apart."""
    out = []
    for a, b in pairwise(keys):
        start, end = np.arctan2(a[2], a[1]), np.arctan2(b[2], b[1])
        angle = np.linspace(start, end, 400)
        d = np.column_stack([np.zeros(400), np.cos(angle), np.sin(angle)])
        p = surface.skin(d)
        gaps = np.linalg.norm(np.diff(p, axis=0), axis=1) / edge_length((p[1:] + p[:-1]) / 2)
        total = np.concatenate([[0], np.cumsum(gaps)])
        pieces = max(1, round(total[-1]))
        wanted = np.interp(np.linspace(0, total[-1], pieces + 1)[:-1], total, angle)
        out.append(np.column_stack([np.zeros(pieces), np.cos(wanted), np.sin(wanted)]))
    out.append(keys[-1][None])
    return np.concatenate(out)


def midline_back(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """As ``midline`` for the back of the head, where the angle runs over the cut of arctan2."""
    flip = np.array([1, 1, -1.0])
    angle = np.linspace(np.arctan2(-start[2], start[1]), np.arctan2(-end[2], end[1]), 400)
    d = np.column_stack([np.zeros(400), np.cos(angle), np.sin(angle)]) * flip
    p = surface.skin(d)
    gaps = np.linalg.norm(np.diff(p, axis=0), axis=1) / edge_length((p[1:] + p[:-1]) / 2)
    total = np.concatenate([[0], np.cumsum(gaps)])
    wanted = np.interp(np.linspace(0, total[-1], round(total[-1]) + 1), total, angle)
    return np.column_stack([0 * wanted, np.cos(wanted), np.sin(wanted)]) * flip


def neck_edge() -> np.ndarray:
    """Directions of the lower edge of the neck, from front to back, x >= 0."""
    azimuth = np.linspace(0, np.pi, 26)
    low, high = np.full(len(azimuth), -1.52), np.full(len(azimuth), -0.7)
    for _ in range(40):
        middle = (low + high) / 2
        p = surface.skin(from_angles(azimuth, middle))
        below = p[:, 1] < -122 + 0.12 * (25 - p[:, 2])
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return from_angles(azimuth, (low + high) / 2)


def uv_of(directions: np.ndarray) -> np.ndarray:
    """UV (m, 2) of unit directions (m, 3) with x >= 0.

    Azimuth and elevation, even over the face, squeezed behind the ears and at crown and neck.

    Convention: u right, v down. Worked number: straight ahead is (0.5, 0.509); the crown has v = 0.
    """
    azimuth = np.arctan2(directions[:, 0], directions[:, 2])
    elevation = np.arcsin(np.clip(directions[:, 1], -1, 1))
    u = 0.5 + 0.5 * _squeeze(azimuth, np.deg2rad(86), np.pi, 0.82, 1.0)
    u[directions[:, 0] == 0] = np.where(directions[directions[:, 0] == 0, 2] > -0.1, 0.5, 1.0)
    middle, face_up, face_down = np.deg2rad(1.0), np.deg2rad(54), np.deg2rad(54)
    e = elevation - middle
    up = _squeeze(np.maximum(e, 0), face_up, np.pi / 2 - middle, 0.80, 1.0)
    down = _squeeze(np.maximum(-e, 0), face_down, np.pi / 2 + middle, 0.80, 1.0)
    return np.column_stack([u, 0.5 - 0.5 * up + 0.5 * down])


def _squeeze(x: np.ndarray, knee: float, end: float, at_knee: float, at_end: float) -> np.ndarray:
    """Linear from 0 to ``at_knee`` at ``knee``, then smoothly slower to ``at_end`` at ``end``."""
    slope = at_knee / knee
    power = slope * (end - knee) / (at_end - at_knee)
    t = np.clip((x - knee) / (end - knee), 0, 1)
    return np.where(x <= knee, slope * x, at_end - (at_end - at_knee) * (1 - t) ** power)
