"""The mean head as a mesh: eyes that open, lips that part, a mouth behind them, ears, 68 landmarks, UV, regions.

Half the skin (x >= 0) is triangulated and mirrored, so symmetry is exact. Points are spread by the force-equilibrium
method of P.-O. Persson and G. Strang, A Simple Mesh Generator in MATLAB, SIAM Review 46(2), 2004, with edge lengths
measured on the skin in mm; the triangulation is Delaunay's in a stereographic (conformal) map of the directions from
``head_surface.CENTRE``, whose point at infinity lies in the neck's opening.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.interpolate import CubicSpline, RectBivariateSpline
from scipy.spatial import Delaunay, cKDTree

from core.face_models import head_surface as surface
from core.landmarks import MIRROR

# Landmarks of the subject's left half (x >= 0), iBUG numbers: (x, y) in mm on the skin.
BROW = {22: (12.0, 46.5), 23: (22.0, 51.0), 24: (33.0, 53.0), 25: (44.0, 51.0), 26: (53.0, 46.0)}
BRIDGE = {27: (0.0, 36.0), 28: (0.0, 23.0), 29: (0.0, 10.0), 30: (0.0, -4.0)}
NOSTRILS = {33: (0.0, -15.0), 34: (6.8, -14.0), 35: (14.0, -13.0)}
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
JAW = {8: (0, -82.5, 80), 9: (16, -81.5, 73), 10: (31, -75.5, 55), 11: (43, -66, 38), 12: (51.5, -52, 22),
       13: (58.5, -33, 12), 14: (65, -13, 6), 15: (69, 8, 3), 16: (70.5, 29, 2)}  # fmt: skip
HAIRLINE = [(0, 101, 73), (30, 97, 65), (50, 83, 50), (60, 64, 38), (67, 45, 14), (70.5, 29, 2)]
_MOUTH_GAP = 1.6  # mm between the lips' edges while meshing, so that they are distinct directions
_MOUTH_LINE = [(0.0, -36.9), (6.0, -36.3), (12.0, -36.4), (18.0, -36.5), (23.4, -36.6)]
_ROWS = 8  # rows of the mouth's inside between the upper and the lower lip's edge
_SEED = 7
_Radius = Callable[[np.ndarray], np.ndarray]  # directions (m, 3) -> mm (m,)


@dataclass
class Head:
    """A mesh with n vertices, all in the order of ``core.face_models.model``'s keys.

    ``vertices`` (n, 3) mm; ``triangles`` (t, 3); ``uv`` (n, 2); ``mirror`` (n,); ``landmarks`` (68,) vertex indices;
    ``regions`` name -> bool (n,).
    """

    vertices: np.ndarray
    triangles: np.ndarray
    uv: np.ndarray
    mirror: np.ndarray
    landmarks: np.ndarray
    regions: dict[str, np.ndarray]


def build_head() -> Head:
    """The mean head. Deterministic: the same arrays, to the last bit, at each call on one machine."""
    half = _half_skin()
    parts = [half, _lid_margin(half), _eyeball(), _mouth(half), _ear()]
    return _mirrored(parts)


# ---------------------------------------------------------------------------------------------------- half the skin


@dataclass
class _Part:
    """A piece of the left half. ``weld`` maps own vertices to vertices of the skin part (-1: none)."""

    vertices: np.ndarray
    triangles: np.ndarray
    uv: np.ndarray
    weld: np.ndarray
    tags: dict[str, np.ndarray]
    landmarks: dict[int, int]
    loops: dict[str, np.ndarray]


def _directions(points: np.ndarray) -> np.ndarray:
    d = np.asarray(points, float) - surface.CENTRE
    return d / np.linalg.norm(d, axis=1, keepdims=True)


def _lift(xy: np.ndarray) -> np.ndarray:
    """Directions (m, 3) of the skin's points at (x, y) (m, 2), of the front of the head."""
    return _directions(surface.lift(np.asarray(xy, float)))


def _edge_length(points: np.ndarray) -> np.ndarray:
    """Wanted edge length in mm at points (m, 3)."""
    p = np.abs(points * [1, 0, 0]) + points * [0, 1, 1]
    eye = np.linalg.norm((p - [31, 31, 75]) / [1.7, 1.1, 1.7], axis=1) - 9
    mouth = np.linalg.norm((p - [0, -37, 97]) / [2.0, 1.0, 2.0], axis=1) - 10
    nose = np.linalg.norm((p - [0, -8, 97]) / [1.3, 1.0, 1.3], axis=1) - 14
    far = np.minimum(np.minimum(eye, mouth), nose)
    return 1.85 + 0.088 * np.clip(far, 0, 85)


def _curve(
    nodes: list[surface.Node], finer: float = 1.0
) -> tuple[np.ndarray, list[int]]:
    """Points along a spline through nodes (k, 2 or 3), about an edge length apart, and where the nodes are."""
    path = np.array(nodes, float)
    steps = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(path, axis=0), axis=1))])
    spline = CubicSpline(steps, path)
    out, where = [], []
    for k in range(len(path) - 1):
        middle = spline((steps[k] + steps[k + 1]) / 2)
        if len(middle) == 2:
            middle = np.append(middle, 85.0)
        pieces = max(1, round((steps[k + 1] - steps[k]) / (_edge_length(middle[None])[0] * finer)))
        where.append(sum(len(o) for o in out))
        out.append(spline(np.linspace(steps[k], steps[k + 1], pieces + 1)[:-1]))
    where.append(sum(len(o) for o in out))
    out.append(path[-1:])
    points = np.concatenate(out)
    return points, where


def _beside(path: np.ndarray, gap: float, closed: bool = False) -> np.ndarray:
    """A path (k, 2) moved by ``gap`` mm to its right (m, 2)."""
    if closed:
        along = np.roll(path, -1, axis=0) - np.roll(path, 1, axis=0)
    else:
        along = np.gradient(path, axis=0)
    along /= np.linalg.norm(along, axis=1, keepdims=True)
    return path + gap * np.column_stack([along[:, 1], -along[:, 0]])


def _hairline() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Directions along the hairline, forehead to ear, without its ends, and of rows above and below."""
    points, _ = _curve(HAIRLINE, 0.7)
    points = surface.skin(_directions(points))
    along = np.gradient(points, axis=0)
    up = np.cross(along, points - surface.CENTRE)
    up *= np.sign(up[0, 1]) / np.linalg.norm(up, axis=1, keepdims=True)
    return tuple(_directions(points + gap * up)[1:-1] for gap in (0.0, 4.0, -4.0))


def _eye_outline() -> tuple[np.ndarray, dict[int, int]]:
    """The lids' opening, counter-clockwise from the inner canthus as (x, y), and its landmarks."""
    lower, at_lower = _curve(
        [EYE[42], (20.3, 26.9), EYE[47], (32.0, 24.7), EYE[46], (42.6, 28.2), EYE[45]], 0.85
    )
    upper, at_upper = _curve(
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


def _midline(keys: list[np.ndarray]) -> np.ndarray:
    """Directions along the midline between key directions (in order), an edge length apart, keys included."""
    out = []
    for a, b in zip(keys[:-1], keys[1:], strict=True):
        start, end = np.arctan2(a[2], a[1]), np.arctan2(b[2], b[1])
        angle = np.linspace(start, end, 400)
        d = np.column_stack([np.zeros(400), np.cos(angle), np.sin(angle)])
        p = surface.skin(d)
        gaps = np.linalg.norm(np.diff(p, axis=0), axis=1) / _edge_length((p[1:] + p[:-1]) / 2)
        total = np.concatenate([[0], np.cumsum(gaps)])
        pieces = max(1, round(total[-1]))
        wanted = np.interp(np.linspace(0, total[-1], pieces + 1)[:-1], total, angle)
        out.append(np.column_stack([np.zeros(pieces), np.cos(wanted), np.sin(wanted)]))
    out.append(keys[-1][None])
    return np.concatenate(out)


def _neck_edge() -> np.ndarray:
    """Directions of the lower edge of the neck, from front to back, x >= 0."""
    azimuth = np.concatenate([np.linspace(0, np.pi, 26)])
    low, high = np.full(len(azimuth), -1.52), np.full(len(azimuth), -0.7)
    for _ in range(40):
        middle = (low + high) / 2
        p = surface.skin(_from_angles(azimuth, middle))
        below = p[:, 1] < -122 + 0.12 * (25 - p[:, 2])
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return _from_angles(azimuth, (low + high) / 2)


def _from_angles(azimuth: np.ndarray, elevation: np.ndarray) -> np.ndarray:
    d = np.column_stack(
        [
            np.sin(azimuth) * np.cos(elevation),
            np.sin(elevation),
            np.cos(azimuth) * np.cos(elevation),
        ]
    )
    d[np.abs(d[:, 0]) < 1e-12, 0] = 0.0
    return d


def _flatten(directions: np.ndarray) -> np.ndarray:
    """Stereographic map (m, 2) of directions, the neck's opening at infinity; x = 0 stays x = 0."""
    pole = np.array([0.0, -0.978, -0.208])
    pole /= np.linalg.norm(pole)
    side = np.array([0.0, -pole[2], pole[1]])
    return (
        np.column_stack([directions[:, 0], -directions @ side]) / (1.0 - directions @ pole)[:, None]
    )


def _half_skin() -> _Part:
    outline, eye_marks = _eye_outline()
    mouth, _ = _curve(_MOUTH_LINE, 0.85)
    gap = _MOUTH_GAP / 2 * np.sqrt(np.clip(1 - (mouth[:, 0] / _MOUTH_LINE[-1][0]) ** 6, 0, 1))
    upper = mouth + np.column_stack([0 * gap, gap])
    lower = (mouth - np.column_stack([0 * gap, gap]))[:-1]
    border_up, at_up = _curve([LIPS_UPPER[k] for k in (51, 52, 53, 54)])
    border_low, at_low = _curve([LIPS_LOWER[k] for k in (57, 56, 55, 54)])
    border_low = border_low[:-1]

    fixed: list[np.ndarray] = []
    names: dict[str, np.ndarray] = {}

    def add(name: str, d: np.ndarray) -> None:
        start = sum(len(f) for f in fixed)
        names[name] = np.arange(start, start + len(d))
        fixed.append(d)

    on_front = {k: _lift(np.array([xy]))[0] for k, xy in (BRIDGE | {33: NOSTRILS[33]}).items()}
    on_front[8] = _directions(np.array([JAW[8]]))[0]
    lip = _lift(np.concatenate([upper[:1], lower[:1], border_up[:1], border_low[:1]]))
    neck = _neck_edge()
    crown = _directions(np.array([[0.0, 136.0, -10.0]]))[0]
    below = _midline([neck[0], on_front[8], lip[3], lip[1]])
    above = _midline([lip[0], lip[2], *(on_front[k] for k in (33, 30, 29, 28, 27)), crown])
    behind = _midline([crown, _directions(np.array([[0.0, 30.0, -97.0]]))[0]])
    behind = np.concatenate([behind[:-1], _midline_back(behind[-1], neck[-1])])
    add("below", below)
    add("above", above)
    add("behind", behind[1:])
    add("neck", neck[1:-1])
    add("eye", _lift(outline))
    add("upper", _lift(upper[1:]))
    add("lower", _lift(lower[1:]))
    add("border_up", _lift(border_up[1:]))
    add("border_low", _lift(border_low[1:]))
    # Rings just outside, so that the edges of lids and lips are clean.
    crease, _ = _curve(surface.LID_CREASE_XY)
    for k, gap_k in enumerate((-1.5, 0.0, 1.5)):
        add(f"crease{k}", _lift(_beside(crease, gap_k)))
    add("rim_eye", _lift(_beside(outline, 1.6, closed=True)))
    add("rim_up", _lift(_beside(border_up, -1.6)[1:-1]))
    add("rim_low", _lift(_beside(border_low, 1.6)[1:-1]))
    for name, ring in zip(("hairline", "hair", "brow_skin"), _hairline(), strict=True):
        add(name, ring)
    single = {k: np.array([xy]) for k, xy in (BROW | {k: NOSTRILS[k] for k in (34, 35)}).items()}
    for k, xy in single.items():
        add(f"mark{k}", _lift(xy))
    for k in range(9, 17):
        add(f"mark{k}", _directions(np.array([JAW[k]])))
    known = np.concatenate(fixed)
    m = len(known)

    table = _radius_table()
    eye_hole = _flatten(known[names["eye"]])
    lens_upper = np.concatenate([names["above"][:1], names["upper"]])
    lens_lower = np.concatenate([names["below"][-1:], names["lower"]])
    lens = _flatten(known[np.concatenate([lens_upper, lens_lower[::-1]])])
    neck_plane = _flatten(
        known[np.concatenate([names["below"][:1], names["neck"], names["behind"][-1:]])]
    )
    outside = np.concatenate([neck_plane, [[0, neck_plane[-1, 1]], [0, neck_plane[0, 1]]]])

    def valid(d: np.ndarray) -> np.ndarray:
        q = _flatten(d)
        return ~_inside(eye_hole, q) & ~_inside(lens, q) & _inside(outside, q) & (d[:, 0] > 0)

    # First guess: evenly spread directions, thinned to the wanted density.
    count = 60000
    k = np.arange(count) + 0.5
    height, turn = 1 - 2 * k / count, k * np.pi * (3 - np.sqrt(5))
    d = np.column_stack(
        [np.sqrt(1 - height**2) * np.cos(turn), height, np.sqrt(1 - height**2) * np.sin(turn)]
    )
    d = d[d[:, 0] > 0]
    radius = table(d)
    p = surface.CENTRE + d * radius[:, None]
    h = _edge_length(p)
    expected = (4 * np.pi / count) * radius**2 * _slant(d, table) * 1.1 / (0.866 * h**2)
    keep = np.random.default_rng(_SEED).random(len(d)) < expected
    d, p, h = d[keep], p[keep], h[keep]
    known_p = surface.CENTRE + known * table(known)[:, None]
    tree = cKDTree(known_p)
    d = d[(tree.query(p)[0] > 0.6 * h) & valid(d)]
    d = _relax(known, d, table, valid)
    d = np.concatenate([known, d])
    loops = [
        np.append(names["eye"], names["eye"][0]),
        lens_upper,
        np.append(lens_lower, lens_upper[-1]),
    ]
    d = _keep_edges(d, m, np.concatenate([np.column_stack([k[:-1], k[1:]]) for k in loops]))

    triangles = _triangulate(d, eye_hole, np.concatenate([lens_upper, lens_lower]), names["neck"])
    vertices = _close_mouth(surface.skin(d), mouth, gap)
    # The lower lip's edge touches the upper one's all along.
    slit = 0.3 * np.minimum(gap[:-1] / gap[0], 1)
    vertices[lens_lower] = vertices[lens_upper[:-1]] - slit[:, None] * [0, 1, 0]
    corner = np.linalg.norm(vertices - vertices[lens_upper[-1]], axis=1)
    loose = 1 - _step(corner, 3.0, 6.0)
    loose[np.concatenate([lens_upper, lens_lower])] = 0.0
    vertices = _soften(vertices, triangles, loose)
    vertices[d[:, 0] == 0, 0] = 0.0
    normal = np.cross(
        vertices[triangles[:, 1]] - vertices[triangles[:, 0]],
        vertices[triangles[:, 2]] - vertices[triangles[:, 0]],
    )
    centre = vertices[triangles].mean(1) - surface.CENTRE
    flip = (normal * centre).sum(1) < 0
    triangles[flip] = triangles[flip][:, ::-1]

    marks = {key: int(names["eye"][i]) for key, i in eye_marks.items()}
    marks |= {key: int(names[f"mark{key}"][0]) for key in [*single, *range(9, 17)]}
    for key, direction in on_front.items():
        marks[key] = int(np.argmax(known @ direction))
    marks |= {51: int(np.argmax(known @ lip[2])), 57: int(np.argmax(known @ lip[3]))}
    marks |= {52 + i: int(names["border_up"][at_up[i + 1] - 1]) for i in range(3)}
    marks |= {56 - i: int(names["border_low"][at_low[i + 1] - 1]) for i in range(2)}
    third = int(np.argmin(np.abs(mouth[:, 0] - 9.5)))
    marks |= {62: int(lens_upper[0]), 66: int(lens_lower[0]), 64: int(lens_upper[-1])}
    marks |= {63: int(lens_upper[third]), 65: int(lens_lower[third])}
    tags = _regions(vertices, d, names)
    return _Part(
        vertices,
        triangles,
        _uv(d),
        np.full(len(d), -1),
        tags,
        marks,
        {"eye": names["eye"], "upper": lens_upper, "lower": lens_lower, "behind": names["behind"]},
    )


def _midline_back(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """As ``_midline`` for the back of the head, where the angle runs over the cut of arctan2."""
    flip = np.array([1, 1, -1.0])
    angle = np.linspace(np.arctan2(-start[2], start[1]), np.arctan2(-end[2], end[1]), 400)
    d = np.column_stack([np.zeros(400), np.cos(angle), np.sin(angle)]) * flip
    p = surface.skin(d)
    gaps = np.linalg.norm(np.diff(p, axis=0), axis=1) / _edge_length((p[1:] + p[:-1]) / 2)
    total = np.concatenate([[0], np.cumsum(gaps)])
    wanted = np.interp(np.linspace(0, total[-1], round(total[-1]) + 1), total, angle)
    return np.column_stack([0 * wanted, np.cos(wanted), np.sin(wanted)]) * flip


def _radius_table() -> _Radius:
    """A fast bilinear stand-in for ``skin_radius``, for x >= 0."""
    azimuth = np.unique(np.concatenate([np.linspace(0, 0.7, 60), np.linspace(0.7, np.pi, 40)]))
    elevation = np.unique(
        np.concatenate(
            [
                np.linspace(-np.pi / 2, -0.8, 15),
                np.linspace(-0.8, 0.6, 110),
                np.linspace(0.6, np.pi / 2, 15),
            ]
        )
    )
    grid = np.stack(np.meshgrid(azimuth, elevation, indexing="ij"), -1).reshape(-1, 2)
    radius = surface.skin_radius(_from_angles(grid[:, 0], grid[:, 1])).reshape(
        len(azimuth), len(elevation)
    )
    spline = RectBivariateSpline(azimuth, elevation, radius, kx=1, ky=1)

    def table(d: np.ndarray) -> np.ndarray:
        return spline.ev(np.arctan2(np.abs(d[:, 0]), d[:, 2]), np.arcsin(np.clip(d[:, 1], -1, 1)))

    return table


def _slant(d: np.ndarray, table: _Radius) -> np.ndarray:
    """Skin area per area across the ray (m,), at most 5, at directions (m, 3)."""
    a = np.cross(d, [0.0, 1.0, 0.0])
    a /= np.maximum(np.linalg.norm(a, axis=1, keepdims=True), 1e-9)
    step, radius = 0.01, table(d)
    slope = [
        (table(_unit(d + step * t)) - table(_unit(d - step * t))) / (2 * step * radius)
        for t in (a, np.cross(d, a))
    ]
    return np.minimum(np.sqrt(1 + slope[0] ** 2 + slope[1] ** 2), 5.0)


def _unit(d: np.ndarray) -> np.ndarray:
    return d / np.linalg.norm(d, axis=1, keepdims=True)


def _relax(
    known: np.ndarray,
    free: np.ndarray,
    table: _Radius,
    valid: Callable[[np.ndarray], np.ndarray],
    rounds: int = 60,
) -> np.ndarray:
    """Spread free directions (m, 3): springs that only push, lengths in mm on the skin (Persson & Strang, Sec. 2)."""
    m = len(known)
    d = np.concatenate([known, free])
    edges = None
    for step in range(rounds):
        p = surface.CENTRE + d * table(d)[:, None]
        if step % 4 == 0:
            simplices = Delaunay(_flatten(d)).simplices
            edges = np.concatenate(
                [simplices[:, [0, 1]], simplices[:, [1, 2]], simplices[:, [2, 0]]]
            )
            edges = np.unique(np.sort(edges, axis=1), axis=0)
        bar = p[edges[:, 0]] - p[edges[:, 1]]
        length = np.maximum(np.linalg.norm(bar, axis=1), 1e-9)
        wanted = _edge_length((p[edges[:, 0]] + p[edges[:, 1]]) / 2)
        wanted *= 1.18 * np.sqrt((np.minimum(length, 4 * wanted) ** 2).sum() / (wanted**2).sum())
        push = np.maximum(wanted - length, 0) / length
        force = np.zeros_like(p)
        for axis in range(3):
            force[:, axis] += np.bincount(edges[:, 0], push * bar[:, axis], len(p))
            force[:, axis] -= np.bincount(edges[:, 1], push * bar[:, axis], len(p))
        moved = p + 0.2 * force
        new = _directions(moved)
        new[:m] = known
        # Nothing crosses the midline or enters a hole.
        bad = ~valid(new)
        bad[:m] = False
        new[bad] = d[bad]
        close = (new[:, 0] < 0.25 * wanted.min() / 100) & (np.arange(len(new)) >= m)
        new[close] = d[close]
        d = new
    return d[m:]


def _soften(
    points: np.ndarray, triangles: np.ndarray, amount: np.ndarray, rounds: int = 4
) -> np.ndarray:
    """Draw points (n, 3) towards their neighbours' mean, as far as ``amount`` (n,) in [0, 1] says."""
    pairs = np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]])
    pairs = np.unique(np.sort(pairs, axis=1), axis=0)
    a, b = np.concatenate([pairs, pairs[:, ::-1]]).T
    count = np.bincount(a, minlength=len(points))
    for _ in range(rounds):
        mean = (
            np.column_stack([np.bincount(a, points[b, k], len(points)) for k in range(3)])
            / count[:, None]
        )
        points = points + 0.5 * amount[:, None] * (mean - points)
    return points


def _keep_edges(d: np.ndarray, fixed: int, wanted: np.ndarray) -> np.ndarray:
    """Drop the free directions that keep ``wanted`` edges (k, 2) of the first ``fixed`` ones out of the triangulation."""
    for _ in range(20):
        q = _flatten(d)
        simplices = Delaunay(q).simplices
        edges = np.sort(
            np.concatenate([simplices[:, [0, 1]], simplices[:, [1, 2]], simplices[:, [2, 0]]]),
            axis=1,
        )
        key = np.sort(wanted, axis=1)
        missing = key[~np.isin(key[:, 0] * len(d) + key[:, 1], edges[:, 0] * len(d) + edges[:, 1])]
        if not len(missing):
            return d
        middle = q[missing].mean(1)
        reach = np.linalg.norm(q[missing[:, 0]] - q[missing[:, 1]], axis=1) * 0.75
        near = (np.linalg.norm(q[:, None] - middle, axis=2) < reach).any(1)
        near[:fixed] = False
        if not near.any():
            break
        d = d[~near]
    raise RuntimeError(f"the head's mesh lost edges of its eye or mouth: {missing.tolist()}")


def _close_mouth(points: np.ndarray, line: np.ndarray, gap: np.ndarray) -> np.ndarray:
    """Move the lips (m, 3) together at the mouth's line (k, 2), which was open by twice ``gap`` (k,) for meshing."""
    x, y, z = points.T
    over = y - np.interp(x, line[:, 0], line[:, 1])
    amount = np.interp(x, line[:, 0], np.maximum(gap - 0.15, 0), right=0.0)
    shift = -np.sign(over) * amount * np.exp(-(((np.abs(over) - amount).clip(0) / 3.0) ** 2))
    return np.column_stack([x, np.where(z > 60, y + shift, y), z])


def _triangulate(
    d: np.ndarray, eye_hole: np.ndarray, lens: np.ndarray, neck: np.ndarray
) -> np.ndarray:
    q = _flatten(d)
    simplices = Delaunay(q).simplices.astype(np.int64)
    a, b, c = q[simplices[:, 0]], q[simplices[:, 1]], q[simplices[:, 2]]
    area = (b[:, 0] - a[:, 0]) * (c[:, 1] - a[:, 1]) - (b[:, 1] - a[:, 1]) * (c[:, 0] - a[:, 0])
    centre = (a + b + c) / 3
    keep = np.abs(area) > 1e-12
    keep &= ~_inside(eye_hole, centre) & ~np.isin(simplices, lens).all(1)
    keep &= ~np.isin(simplices, neck).all(1)
    simplices = simplices[keep]
    simplices[area[keep] < 0] = simplices[area[keep] < 0][:, ::-1]
    return simplices


def _inside(polygon: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Which points (m, 2) lie inside a closed polygon (k, 2): crossings of a ray to the right."""
    inside = np.zeros(len(points), bool)
    for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        if y0 == y1:
            continue
        cross = (y0 > points[:, 1]) != (y1 > points[:, 1])
        inside ^= cross & (points[:, 0] < x0 + (points[:, 1] - y0) * (x1 - x0) / (y1 - y0))
    return inside


def _uv(directions: np.ndarray) -> np.ndarray:
    """UV (m, 2) of directions with x >= 0: azimuth and elevation, even on the face, squeezed behind and at the poles."""
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
    """Linear from 0 to ``at_knee`` at ``knee``, then slowing, with one tangent, to ``at_end`` at ``end``."""
    slope = at_knee / knee
    power = slope * (end - knee) / (at_end - at_knee)
    t = np.clip((x - knee) / (end - knee), 0, 1)
    return np.where(x <= knee, slope * x, at_end - (at_end - at_knee) * (1 - t) ** power)


def _regions(p: np.ndarray, d: np.ndarray, names: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Region flags of the half skin's vertices (n,)."""
    q = _flatten(d)
    x, y, z = p.T
    none = np.zeros(len(p), bool)
    up = np.concatenate(
        [[names["above"][np.argmin(np.abs(p[names["above"], 1] + 28.6))]], names["border_up"]]
    )
    low = np.concatenate(
        [[names["below"][np.argmin(np.abs(p[names["below"], 1] + 46.2))]], names["border_low"]]
    )
    ring = q[np.concatenate([up, low[::-1]])]
    ring = np.concatenate([ring, [[-0.1, ring[-1, 1]], [-0.1, ring[0, 1]]]])
    lips = _inside(ring, q)
    lips[np.concatenate([up, low])] = True
    # The face: jaw line, in front of the ear, temple, hair line.
    edge = [JAW[k] for k in range(8, 17)]
    edge = np.concatenate([_directions(np.array(edge, float)), d[names["hairline"]][::-1]])
    face_ring = _flatten(np.concatenate([edge, _directions(np.array(HAIRLINE[:1], float))]))
    face_ring[:, 0] += np.where(face_ring[:, 0] > 1e-9, 1e-4, 0)
    face = _inside(
        np.concatenate([face_ring, [[-0.1, face_ring[-1, 1]], [-0.1, face_ring[0, 1]]]]), q
    )
    face[np.concatenate([names[f"mark{k}"] for k in range(9, 17)])] = True
    face |= (d[:, 0] == 0) & (z > 0) & (y > -83) & (y < 101)
    brow = np.array(
        [
            (9.5, 44),
            (22, 48.0),
            (33, 50),
            (44, 48.3),
            (54, 44),
            (53, 47.5),
            (44, 54),
            (33, 56.5),
            (22, 54.5),
            (10, 50),
        ]
    )
    brows = _inside(_flatten(_lift(brow)), q)
    nose = np.array(
        [
            (0, 38),
            (8, 33),
            (11, 20),
            (15, 6),
            (20, -4),
            (20.5, -11),
            (15, -16),
            (6, -17),
            (0, -17.5),
        ],
        float,
    )
    ring = _flatten(_lift(nose))
    ring = np.concatenate([ring, [[-0.1, ring[-1, 1]], [-0.1, ring[0, 1]]]])
    face[names["hairline"]] = False
    nape = np.interp(z, [-75, -45, -18, -6], [-42, -25, 15, 30])
    scalp = ~face & (y > nape) & ((z < 2) | (y > 30))
    scalp[names["hairline"]] = True
    neck = ~face & ~scalp & ((y < -70) | ((z < 0) & (y < -25)))
    return {
        "face": face,
        "skin": ~none & ~lips,
        "eyes": np.isin(np.arange(len(p)), names["eye"]),
        "lips": lips,
        "brows": brows,
        "nose": _inside(ring, q),
        "mouth_interior": none,
        "neck": neck,
        "scalp": scalp,
        "ears": none,
        "eyeballs": none,
        "iris": none,
        "pupil": none,
    }


def _flags(count: int, **true: np.ndarray | bool) -> dict[str, np.ndarray]:
    names = (
        "face skin eyes lips brows nose mouth_interior neck scalp ears eyeballs iris pupil".split()
    )
    return {name: np.broadcast_to(true.get(name, False), count).copy() for name in names}


# ------------------------------------------------------------------------------------------------------------- eyes


def _strip(a: np.ndarray, b: np.ndarray, closed: bool) -> np.ndarray:
    """Triangles between two rows of vertex indices of one length."""
    a2, b2 = (np.roll(a, -1), np.roll(b, -1)) if closed else (a[1:], b[1:])
    a1, b1 = (a, b) if closed else (a[:-1], b[:-1])
    return np.concatenate([np.column_stack([a1, a2, b2]), np.column_stack([a1, b2, b1])])


def _eye_uv_centre() -> np.ndarray:
    return _uv(_lift(np.array([[31.0, 30.0]])))[0]


def _lid_margin(skin: _Part) -> _Part:
    """The lids' edge: from the opening inwards to the eye."""
    loop = skin.loops["eye"]
    outer = skin.vertices[loop]
    e = surface.to_eye(outer)
    # Towards the eye: to its surface (a little outside), the opening a touch narrower.
    inner = e * [0.955, 0.93, 1.0]
    scale = np.sqrt(
        np.clip(
            1
            - (inner[:, 0] / surface.EYE_RADII[0]) ** 2
            - (inner[:, 1] / surface.EYE_RADII[1]) ** 2,
            0.01,
            1,
        )
    )
    inner[:, 2] = np.minimum(surface.EYE_RADII[2] * scale + 0.12, e[:, 2] - 0.1)
    deep = inner * [1.0, 1.0, 1.0] - [0, 0, 1.5]
    centre = _eye_uv_centre()
    uv = skin.uv[loop]
    n = len(loop)
    rows = [np.arange(n), n + np.arange(n), 2 * n + np.arange(n)]
    vertices = np.concatenate([outer, surface.from_eye(inner), surface.from_eye(deep)])
    uvs = np.concatenate([uv, centre + (uv - centre) * 0.95, centre + (uv - centre) * 0.93])
    triangles = np.concatenate([_strip(rows[0], rows[1], True), _strip(rows[1], rows[2], True)])
    weld = np.concatenate([loop, np.full(2 * n, -1)])
    return _Part(
        vertices,
        triangles,
        uvs,
        weld,
        _flags(3 * n, face=np.repeat([True, True, False], n), skin=True, eyes=True),
        {},
        {},
    )


def _eyeball() -> _Part:
    """The eye's front as rings about its axis."""
    sectors = 32
    turn = np.arange(sectors) * 2 * np.pi / sectors
    circle = np.column_stack([np.cos(turn), np.sin(turn)])
    # Iris and pupil are round and look straight ahead; the rest follows the eye's own frame.
    radii = np.array([0.0, 1.0, 1.9, 2.3, 3.6, 4.9, 5.6, 6.1, 7.0])
    ahead = radii[1:, None, None] * circle
    ahead = np.concatenate([np.zeros((1, 2)), ahead.reshape(-1, 2)])
    inner = surface.to_eye(surface.eye_front(surface.IRIS_CENTRE + ahead))
    rim = inner[-sectors:, :2]
    whites = np.array([0.25, 0.5, 0.72, 0.88, 1.0])[:, None, None]
    outer = (1 - whites) * rim + whites * 0.995 * circle * surface.EYE_RADII[:2]
    outer = outer.reshape(-1, 2)
    depth = np.sqrt(np.clip(1 - ((outer / surface.EYE_RADII[:2]) ** 2).sum(1), 0, 1))
    local = np.concatenate([inner, np.column_stack([outer, depth * surface.EYE_RADII[2]])])
    vertices = surface.from_eye(local)
    r = np.linalg.norm(vertices[:, :2] - surface.IRIS_CENTRE, axis=1)
    vertices[:, 2] += 0.8 * np.clip(1 - (r / 6.6) ** 2, 0, 1)  # the cornea
    radii = np.arange(len(radii) + len(whites))
    number = 1 + np.arange((len(radii) - 1) * sectors).reshape(-1, sectors)
    fan = np.column_stack([np.zeros(sectors, int), number[0], np.roll(number[0], -1)])
    triangles = np.concatenate(
        [fan] + [_strip(number[k + 1], number[k], True)[:, ::-1] for k in range(len(radii) - 2)]
    )
    n0 = vertices[triangles]
    facing = np.cross(n0[:, 1] - n0[:, 0], n0[:, 2] - n0[:, 0])
    flip = (facing * (n0.mean(1) - surface.EYE_CENTRE)).sum(1) < 0
    triangles[flip] = triangles[flip][:, ::-1]
    # UV: as seen from the centre, squeezed into the opening.
    outline, _ = _eye_outline()
    loop = _uv(_lift(outline))
    centre = _eye_uv_centre()
    d = _directions(vertices)
    own = _uv(d) - centre
    angle = np.arctan2(own[:, 1], own[:, 0])
    loop_angle = np.arctan2(*(loop - centre).T[::-1])
    order = np.argsort(loop_angle)
    reach = np.interp(
        angle, loop_angle[order], np.linalg.norm(loop - centre, axis=1)[order], period=2 * np.pi
    )
    t = np.linalg.norm(own, axis=1) / np.maximum(reach, 1e-9)
    squeezed = np.where(t < 0.75, t, 0.75 + 0.17 * (1 - np.exp(-(t - 0.75) / 0.17)))
    uv = centre + own * (squeezed / np.maximum(t, 1e-9))[:, None]
    n = len(vertices)
    seen = t < 1.02
    return _Part(
        vertices, triangles, uv, np.full(n, -1),
        _flags(n, face=seen, eyes=seen, eyeballs=True, iris=r < 5.8, pupil=r < 2.0), {}, {},
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ mouth


def _mouth(skin: _Part) -> _Part:
    """The inside of the mouth: from the upper lip's edge round the back to the lower lip's."""
    upper, lower = skin.loops["upper"], np.append(skin.loops["lower"], skin.loops["upper"][-1])
    a, b = skin.vertices[upper], skin.vertices[lower]
    n = len(upper)
    width = np.sqrt(np.clip(1 - (a[:, 0] / (a[-1, 0] + 0.01)) ** 2, 0.0, 1))[:, None]
    rows = [
        (0.0, -3.0, 1.0),
        (0.5, -6.0, 4.0),
        (1.0, -9.0, 9.0),
        (4.0, -26.0, 12.0),
        (4.0, -42.0, 8.0),
    ]
    points, weights = [a], [0.0]
    top = [a - width * [0, 0, 1] * (-back) + width * [0, 1, 0] * up - a * [1, 0, 0] * 0.02 * k
           for k, (_, back, up) in enumerate(rows, 1)]  # fmt: skip
    bottom = [b - width * [0, 0, 1] * (-back) - width * [0, 1, 0] * up - b * [1, 0, 0] * 0.02 * k
              for k, (_, back, up) in enumerate(rows, 1)]  # fmt: skip
    points = [a, *top, *bottom[::-1], b]
    total = len(points)
    uvs = [
        skin.uv[upper] * (1 - k / (total - 1)) + skin.uv[lower] * k / (total - 1)
        for k in range(total)
    ]
    number = np.arange(total * n).reshape(total, n)
    # All columns meet at the corner.
    number[1:, -1] = number[0, -1]
    triangles = np.concatenate([_strip(number[k], number[k + 1], False) for k in range(total - 1)])
    distinct = (
        (triangles[:, 0] != triangles[:, 1])
        & (triangles[:, 1] != triangles[:, 2])
        & (triangles[:, 2] != triangles[:, 0])
    )
    triangles = triangles[distinct][:, ::-1]
    weld = np.full(total * n, -1)
    weld[:n], weld[-n:] = upper, lower
    vertices = np.concatenate(points)
    vertices[np.tile(a[:, 0] == 0, total), 0] = 0.0
    inner = np.repeat(np.arange(total), n)
    interior = (inner > 0) & (inner < total - 1)
    uv = np.concatenate(uvs)
    used = np.unique(triangles)
    remap = np.full(len(vertices), -1)
    remap[used] = np.arange(len(used))
    return _Part(
        vertices[used],
        remap[triangles],
        uv[used],
        weld[used],
        _flags(len(used), mouth_interior=interior[used]),
        {},
        {},
    )


# ------------------------------------------------------------------------------------------------------------- ears


def _ear() -> _Part:
    """The left ear: a relief over an oval, closed behind, its root inside the head."""
    sectors = 26
    turn = np.arange(sectors) * 2 * np.pi / sectors  # 0 = forwards, 90 degrees = up
    forward, up = np.cos(turn), np.sin(turn)
    # Outline: broad above, narrow at the lobule, flat in front.
    width = np.where(forward > 0, 12.5 - 2.5 * up, 19.5 + 3.5 * up - 2.0 * up**2)
    outline = np.column_stack([forward * width - 1.5, up * np.where(up > 0, 32.0, 31.0)])
    rings = np.array([0.0, 0.22, 0.4, 0.55, 0.68, 0.8, 0.9, 0.97, 1.0])
    ab = np.concatenate([np.zeros((1, 2)), (rings[1:, None, None] * outline).reshape(-1, 2)])
    s = np.concatenate([[0], np.repeat(rings[1:], sectors)])
    back = np.concatenate(
        [[0], np.tile(np.clip(-forward + 0.6, 0, 1), len(rings) - 1)]
    )  # not in front
    lobe = _step(ab[:, 1], -13.0, -21.0)
    relief = 4.2 * _bump(s, 0.93, 0.09) * (1 - lobe) * np.maximum(back, 0.35)  # helix
    relief -= 2.0 * _bump(s, 0.77, 0.10) * (1 - lobe) * back  # scapha
    relief += 3.0 * _bump(s, 0.60, 0.13) * (1 - 0.7 * lobe) * back  # antihelix
    concha = np.linalg.norm((ab - [1.0, -5.0]) / [9.0, 12.5], axis=1)
    relief -= 6.0 * np.exp(-(concha**4))
    relief -= 2.0 * np.exp(
        -((np.linalg.norm((ab - [0.0, 14.0]) / [6.0, 5.0], axis=1)) ** 2)
    )  # triangular fossa
    relief += 5.5 * np.exp(
        -((np.linalg.norm((ab - [9.0, -6.0]) / [3.2, 5.0], axis=1)) ** 2)
    )  # tragus
    out = 6.0 + 0.42 * (9.0 - ab[:, 0]) + relief  # away from the head, more so behind
    behind = [(1.0, -3.5), (0.86, -5.5), (0.6, -17.0)]
    edge = outline
    shell = [
        np.column_stack([edge * k, 6.0 + 0.42 * (9.0 - edge[:, 0] * k) + drop])
        for k, drop in behind
    ]
    local = np.concatenate([np.column_stack([ab, out]), *shell])
    local[:, 2] -= (
        9.0 * np.clip((local[:, 0] - 5.0) / 6.0, 0, 1) ** 2
    )  # the front edge sinks into the cheek
    rows = len(rings) - 1 + len(behind)
    number = 1 + np.arange(rows * sectors).reshape(rows, sectors)
    fan = np.column_stack([np.zeros(sectors, int), number[0], np.roll(number[0], -1)])
    triangles = np.concatenate(
        [fan[:, ::-1], *(_strip(number[k], number[k + 1], True) for k in range(rows - 1))]
    )
    lean = np.deg2rad(-14.0)
    a, b = (
        local[:, 0] * np.cos(lean) - local[:, 1] * np.sin(lean),
        local[:, 0] * np.sin(lean) + local[:, 1] * np.cos(lean),
    )
    vertices = np.column_stack([68.0 + local[:, 2], 17.0 + b, -12.0 + a])
    corners = vertices[triangles]
    volume = np.einsum("ti,ti->", corners[:, 0], np.cross(corners[:, 1], corners[:, 2]))
    if volume < 0:
        triangles = triangles[:, ::-1]
    flat = np.column_stack([np.full(len(vertices), 72.0), vertices[:, 1:]])
    return _Part(
        vertices,
        triangles,
        _uv(_directions(flat)),
        np.full(len(vertices), -1),
        _flags(len(vertices), ears=True, skin=True),
        {},
        {},
    )


def _bump(x: np.ndarray, centre: float, width: float) -> np.ndarray:
    return np.exp(-(((x - centre) / width) ** 2))


def _step(x: np.ndarray, start: float, end: float) -> np.ndarray:
    """0 before ``start``, 1 after ``end``, smooth between."""
    t = np.clip((x - start) / (end - start), 0, 1)
    return t * t * (3 - 2 * t)


# --------------------------------------------------------------------------------------------------------- assembly


def _mirrored(parts: list[_Part]) -> Head:
    """Weld the parts, open the seam at the back, mirror."""
    skin = parts[0]
    vertices, triangles, uv = [skin.vertices], [skin.triangles], [skin.uv]
    tags = {name: [flag] for name, flag in skin.tags.items()}
    count = len(skin.vertices)
    for part in parts[1:]:
        new = part.weld < 0
        index = part.weld.copy()
        index[new] = count + np.arange(new.sum())
        count += int(new.sum())
        vertices.append(part.vertices[new])
        uv.append(part.uv[new])
        triangles.append(index[part.triangles])
        for name in tags:
            tags[name].append(part.tags[name][new])
    p, t, w = np.concatenate(vertices), np.concatenate(triangles), np.concatenate(uv)
    flags = {name: np.concatenate(flag) for name, flag in tags.items()}
    n = len(p)
    shared = p[:, 0] == 0  # the midline, but for the seam at the back, is in both halves
    shared[skin.loops["behind"]] = False
    shared &= ~((p[:, 0] == 0) & (w[:, 0] == 1.0))
    w = np.round(w * 2**22) / 2**22  # so that u and 1 - u are exact, in float32 too
    w[shared, 0] = 0.5
    other = np.where(shared, np.arange(n), 0)
    other[~shared] = n + np.arange((~shared).sum())
    mirror = np.concatenate([other, np.flatnonzero(~shared)])
    all_p = np.concatenate([p, p[~shared] * [-1, 1, 1]]) + 0.0
    all_w = np.concatenate([w, np.column_stack([1 - w[~shared, 0], w[~shared, 1]])])
    all_t = np.concatenate([t, other[t][:, ::-1]])
    regions = {name: np.concatenate([flag, flag[~shared]]) for name, flag in flags.items()}
    marks = np.full(68, -1)
    for k, vertex in skin.landmarks.items():
        marks[k] = vertex
        marks[MIRROR[k]] = other[vertex]
    return Head(all_p, all_t, all_w, mirror, marks, regions)
