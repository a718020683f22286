"""Triangulating the skin: directions spread to a wanted density, Delaunay triangles, small repairs.

Points are spread by the force-equilibrium method of P.-O. Persson and G. Strang, A Simple Mesh
Generator in MATLAB, SIAM Review 46(2), 2004, with edge lengths measured on the skin in mm. The
triangulation is Delaunay's in a stereographic, so conformal, map of the directions from
``head_surface.CENTRE``, whose point at infinity lies in the neck's opening.
"""

from collections.abc import Callable

import numpy as np
from scipy.interpolate import RectBivariateSpline
from scipy.spatial import Delaunay, cKDTree

from core.face_models.procedural import head_surface as surface
from core.face_models.procedural.head_layout import directions_of, edge_length, from_angles

ROUNDS = 60  # of relaxation; the mesh hardly changes after 40
SEED = 7
Radius = Callable[[np.ndarray], np.ndarray]  # directions (m, 3) -> mm (m,)


def flatten(directions: np.ndarray) -> np.ndarray:
    """Stereographic map (m, 2) of directions, the neck's opening at infinity; x = 0 stays x = 0."""
    pole = np.array([0.0, -0.978, -0.208])
    pole /= np.linalg.norm(pole)
    side = np.array([0.0, -pole[2], pole[1]])
    return (
        np.column_stack([directions[:, 0], -directions @ side]) / (1.0 - directions @ pole)[:, None]
    )


def radius_table() -> Radius:
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
    radius = surface.skin_radius(from_angles(grid[:, 0], grid[:, 1])).reshape(
        len(azimuth), len(elevation)
    )
    spline = RectBivariateSpline(azimuth, elevation, radius, kx=1, ky=1)

    def table(d: np.ndarray) -> np.ndarray:
        return spline.ev(np.arctan2(np.abs(d[:, 0]), d[:, 2]), np.arcsin(np.clip(d[:, 1], -1, 1)))

    return table


def spread(
    known: np.ndarray, table: Radius, valid: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Fixed directions (m, 3) and free ones around them, together (n, 3), an edge length apart.

    Springs that only push, with lengths in mm on the skin (Persson & Strang, Sec. 2). Free
    directions stay where ``valid`` is true.
    """
    free = _first_guess(table)
    p = surface.CENTRE + free * table(free)[:, None]
    near = cKDTree(surface.CENTRE + known * table(known)[:, None]).query(p)[0]
    free = free[(near > 0.6 * edge_length(p)) & valid(free)]
    m = len(known)
    d = np.concatenate([known, free])
    for step in range(ROUNDS):
        p = surface.CENTRE + d * table(d)[:, None]
        if step % 4 == 0:
            simplices = Delaunay(flatten(d)).simplices
            edges = np.concatenate(
                [simplices[:, [0, 1]], simplices[:, [1, 2]], simplices[:, [2, 0]]]
            )
            edges = np.unique(np.sort(edges, axis=1), axis=0)
        bar = p[edges[:, 0]] - p[edges[:, 1]]
        length = np.maximum(np.linalg.norm(bar, axis=1), 1e-9)
        wanted = edge_length((p[edges[:, 0]] + p[edges[:, 1]]) / 2)
        wanted *= 1.18 * np.sqrt((np.minimum(length, 4 * wanted) ** 2).sum() / (wanted**2).sum())
        push = np.maximum(wanted - length, 0) / length
        force = np.zeros_like(p)
        for axis in range(3):
            force[:, axis] += np.bincount(edges[:, 0], push * bar[:, axis], len(p))
            force[:, axis] -= np.bincount(edges[:, 1], push * bar[:, axis], len(p))
        moved = p + 0.2 * force
        new = directions_of(moved)
        new[:m] = known
        # Nothing crosses the midline or enters a hole.
        bad = ~valid(new)
        bad[:m] = False
        new[bad] = d[bad]
        d = new
    return d


def _first_guess(table: Radius) -> np.ndarray:
    """Evenly spread directions with x > 0, thinned at random to the wanted density (m, 3)."""
    count = 60000
    k = np.arange(count) + 0.5
    height, turn = 1 - 2 * k / count, k * np.pi * (3 - np.sqrt(5))
    ring = np.sqrt(1 - height**2)
    d = np.column_stack([ring * np.cos(turn), height, ring * np.sin(turn)])
    d = d[d[:, 0] > 0]
    radius = table(d)
    h = edge_length(surface.CENTRE + d * radius[:, None])
    area = 4 * np.pi / count * radius**2 * _slant(d, table)
    expected = 1.1 * area / (np.sqrt(3) / 2 * h**2)
    return d[np.random.default_rng(SEED).random(len(d)) < expected]


def _slant(d: np.ndarray, table: Radius) -> np.ndarray:
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


def keep_edges(d: np.ndarray, fixed: int, wanted: np.ndarray) -> np.ndarray:
    """Directions (m, 3) without the free ones that keep an edge out of the triangulation.

    ``wanted`` edges (k, 2) are between the first ``fixed`` directions.

    Raises:
        RuntimeError: fixed directions are in each other's way.
    """
    for _ in range(20):
        q = flatten(d)
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


def triangulate(
    d: np.ndarray, eye_hole: np.ndarray, lips: np.ndarray, neck: np.ndarray
) -> np.ndarray:
    """Triangles (t, 3) of directions (m, 3), seen from outside counter-clockwise.

    Left open: the eye's outline (k, 2) in the flat map, and what lies between the vertices of the
    lips' edges and below those of the neck's.
    """
    q = flatten(d)
    simplices = Delaunay(q).simplices.astype(np.int64)
    a, b, c = q[simplices].transpose(1, 0, 2)
    area = (b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0]
    keep = np.abs(area) > 1e-12
    keep &= ~inside(eye_hole, (a + b + c) / 3)
    keep &= ~np.isin(simplices, lips).all(1) & ~np.isin(simplices, neck).all(1)
    turned = area > 0  # the flat map, seen from the neck, is the head's mirror image
    simplices[turned] = simplices[turned][:, ::-1]
    return simplices[keep]


def soften(
    points: np.ndarray, triangles: np.ndarray, amount: np.ndarray, rounds: int = 4
) -> np.ndarray:
    """Points (n, 3) drawn towards their neighbours' mean by ``amount`` (n,) in [0, 1]."""
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


def inside(polygon: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Which points (m, 2) lie inside a closed polygon (k, 2): crossings of a ray to the right."""
    inside = np.zeros(len(points), bool)
    for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        if y0 == y1:
            continue
        cross = (y0 > points[:, 1]) != (y1 > points[:, 1])
        inside ^= cross & (points[:, 0] < x0 + (points[:, 1] - y0) * (x1 - x0) / (y1 - y0))
    return inside


def strip(a: np.ndarray, b: np.ndarray, closed: bool) -> np.ndarray:
    """Triangles between two rows of vertex indices of one length."""
    a2, b2 = (np.roll(a, -1), np.roll(b, -1)) if closed else (a[1:], b[1:])
    a1, b1 = (a, b) if closed else (a[:-1], b[:-1])
    return np.concatenate([np.column_stack([a1, a2, b2]), np.column_stack([a1, b2, b1])])
