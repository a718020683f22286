"""The mean head as a mesh: eyes that open, lips that part, a mouth behind them, ears.

Half the skin (x >= 0) is triangulated and mirrored, so the symmetry is exact. ``head_surface`` says
what the skin looks like, ``head_layout`` where things are on it, ``head_mesh`` makes triangles,
``head_parts`` the rest.
"""

from dataclasses import dataclass

import numpy as np

from core.face_models.procedural import head_layout as layout
from core.face_models.procedural import head_surface as surface
from core.face_models.procedural.head_layout import beside, curve, directions_of, lift, midline
from core.face_models.procedural.head_mesh import (
    flatten,
    inside,
    keep_edges,
    radius_table,
    soften,
    spread,
    triangulate,
)
from core.face_models.procedural.head_parts import (
    REGIONS,
    Part,
    ear,
    eyeball,
    flags,
    lid_margin,
    mouth,
    step,
)
from core.landmarks import MIRROR

_FINER = 0.85  # of the edge length, along the lids' and the lips' edges
_RIM = 1.6  # mm from an outline to the row of vertices that keeps its edge clean


@dataclass
class Head:
    """A mesh with n vertices and t triangles; millimetres, model frame, UV with v down.

    ``vertices`` (n, 3); ``triangles`` (t, 3), counter-clockwise seen from outside; ``uv`` (n, 2);
    ``mirror`` (n,), the mirrored vertex; ``landmarks`` (68,), vertices; ``regions``, bool (n,).
    """

    vertices: np.ndarray
    triangles: np.ndarray
    uv: np.ndarray
    mirror: np.ndarray
    landmarks: np.ndarray
    regions: dict[str, np.ndarray]


def build_head() -> Head:
    """The mean head. Deterministic: the same to the last bit at each call on one machine.

    The skin meets itself at a seam behind, from the crown to the neck, where the UV map is cut:
    there the vertices are double.
    """
    fixed = _fixed_points()
    known = np.concatenate(list(fixed.rows.values()))
    eye_hole = flatten(known[fixed.number["eye"]])
    lens = flatten(known[np.concatenate([fixed.upper, fixed.lower[-2::-1]])])
    neck = np.concatenate(
        [fixed.number["below"][:1], fixed.number["neck"], fixed.number["behind"][-1:]]
    )
    neck_edge = flatten(known[neck])
    outside = np.concatenate([neck_edge, neck_edge[[-1, 0]] * [0, 1]])

    def valid(d: np.ndarray) -> np.ndarray:
        q = flatten(d)
        return ~inside(eye_hole, q) & ~inside(lens, q) & inside(outside, q) & (d[:, 0] > 0)

    d = spread(known, radius_table(), valid)
    eye = fixed.number["eye"]
    loops = [np.append(eye, eye[0]), fixed.upper, fixed.lower]
    d = keep_edges(d, len(known), np.concatenate([np.column_stack([k[:-1], k[1:]]) for k in loops]))
    edges = np.concatenate([fixed.upper, fixed.lower])
    triangles = triangulate(d, eye_hole, edges, neck)

    points = _close_mouth(surface.skin(d), fixed.mouth, fixed.gap)
    # The lower lip's edge touches the upper one's all along.
    slit = 0.3 * np.minimum(fixed.gap / fixed.gap[0], 1)
    points[fixed.lower] = points[fixed.upper] - slit[:, None] * [0, 1, 0]
    loose = 1 - step(np.linalg.norm(points - points[fixed.upper[-1]], axis=1), 3.0, 6.0)
    loose[edges] = 0.0
    points = soften(points, triangles, loose)
    points[d[:, 0] == 0, 0] = 0.0

    uv = layout.uv_of(d)
    own = np.full(len(points), -1)
    skin = Part(points, triangles, uv, own, _skin_regions(points, d, fixed))
    lids = lid_margin(points[eye], uv[eye], eye)
    parts = [skin, lids, eyeball(), mouth(points, uv, fixed.upper, fixed.lower), ear()]
    return _mirrored(parts, fixed.number["behind"], fixed.landmarks)


@dataclass
class _Fixed:
    """The left half's vertices that do not move.

    ``rows`` are named directions, ``number`` their vertices' numbers. ``upper`` and ``lower`` (k,)
    are the lips' edges from the midline to the corner they share; they lie ``gap`` (k,) mm above
    and below the line ``mouth`` (k, 2). ``landmarks``: number and vertex.
    """

    rows: dict[str, np.ndarray]
    number: dict[str, np.ndarray]
    upper: np.ndarray
    lower: np.ndarray
    mouth: np.ndarray
    gap: np.ndarray
    landmarks: dict[int, int]


def _fixed_points() -> _Fixed:
    outline, eye_marks = layout.eye_outline()
    line, _ = curve(layout.MOUTH_LINE, _FINER)
    gap = layout.MOUTH_GAP / 2 * np.sqrt(np.clip(1 - (line[:, 0] / line[-1, 0]) ** 6, 0, 1))
    shift = np.column_stack([0 * gap, gap])
    upper, lower = line + shift, (line - shift)[:-1]
    border_up, at_up = curve([layout.LIPS_UPPER[k] for k in (51, 52, 53, 54)])
    border_low, at_low = curve([layout.LIPS_LOWER[k] for k in (57, 56, 55, 54)])
    border_low = border_low[:-1]  # the corner is the upper one's
    crease, _ = curve(surface.LID_CREASE_XY)
    hairline, hair, below_hair = layout.hairline()

    nose = {k: lift(np.array([xy]))[0] for k, xy in (layout.BRIDGE | layout.SUBNASALE).items()}
    ends = directions_of(
        np.array([layout.JAW[8], layout.HAIRLINE[0], layout.CROWN, layout.OCCIPUT], float)
    )
    chin, forehead, crown, occiput = ends
    lips = lift(np.concatenate([upper[:1], lower[:1], border_up[:1], border_low[:1]]))
    neck = layout.neck_edge()
    rows = {
        "below": midline([neck[0], chin, lips[3], lips[1]]),
        "above": midline(
            [lips[0], lips[2], *(nose[k] for k in (33, 30, 29, 28, 27)), forehead, crown]
        ),
        "behind": np.concatenate(
            [midline([crown, occiput])[1:-1], layout.midline_back(occiput, neck[-1])]
        ),
        "neck": neck[1:-1],
        "eye": lift(outline),
        "upper": lift(upper[1:]),
        "lower": lift(lower[1:]),
        "border_up": lift(border_up[1:]),
        "border_low": lift(border_low[1:]),
        "crease": lift(np.concatenate([beside(crease, k) for k in (-1.5, 0.0, 1.5)])),
        "rim_eye": lift(beside(outline, _RIM, closed=True)),
        "rim_up": lift(beside(border_up, -_RIM)[1:-1]),
        "rim_low": lift(beside(border_low, _RIM)[1:-1]),
        "hairline": hairline,
        "beside_hairline": np.concatenate([hair, below_hair]),
        "brow": lift(np.array(list(layout.BROW.values()))),
        "nostril": lift(np.array(list(layout.NOSTRILS.values()))),
        "jaw": directions_of(np.array([layout.JAW[k] for k in range(9, 17)], float)),
    }
    starts = np.cumsum([0, *(len(row) for row in rows.values())])
    number = {
        name: start + np.arange(len(row))
        for (name, row), start in zip(rows.items(), starts, strict=False)
    }
    edge_up = np.concatenate([number["above"][:1], number["upper"]])
    edge_low = np.concatenate([number["below"][-1:], number["lower"], edge_up[-1:]])

    def on_midline(row: str, direction: np.ndarray) -> int:
        return int(number[row][np.argmax(rows[row] @ direction)])

    inner = int(np.argmin(np.abs(line[:, 0] - layout.INNER_LIP)))
    marks = {k: int(number["eye"][i]) for k, i in eye_marks.items()}
    marks |= dict(zip(layout.BROW, number["brow"].tolist(), strict=True))
    marks |= dict(zip(layout.NOSTRILS, number["nostril"].tolist(), strict=True))
    marks |= dict(zip(range(9, 17), number["jaw"].tolist(), strict=True))
    marks |= {k: on_midline("above", direction) for k, direction in nose.items()}
    marks |= {8: on_midline("below", chin), 57: on_midline("below", lips[3])}
    marks |= {51: on_midline("above", lips[2])}
    marks |= {52 + i: int(number["border_up"][at_up[i + 1] - 1]) for i in range(3)}
    marks |= {56 - i: int(number["border_low"][at_low[i + 1] - 1]) for i in range(2)}
    marks |= {62: int(edge_up[0]), 63: int(edge_up[inner]), 64: int(edge_up[-1])}
    marks |= {66: int(edge_low[0]), 65: int(edge_low[inner])}
    return _Fixed(rows, number, edge_up, edge_low, line, gap, marks)


def _close_mouth(points: np.ndarray, line: np.ndarray, gap: np.ndarray) -> np.ndarray:
    """Skin (n, 3) with the lips brought together.

    They were open for meshing by twice ``gap`` (k,) at the mouth's line (k, 2).
    """
    x, y, z = points.T
    over = y - np.interp(x, line[:, 0], line[:, 1])
    amount = np.interp(x, line[:, 0], np.maximum(gap - 0.15, 0), right=0.0)
    shift = -np.sign(over) * amount * np.exp(-(((np.abs(over) - amount).clip(0) / 3.0) ** 2))
    return np.column_stack([x, np.where(z > 60, y + shift, y), z])


def _skin_regions(p: np.ndarray, d: np.ndarray, fixed: _Fixed) -> dict[str, np.ndarray]:
    """Region flags (n,) of the half skin: points (n, 3) and their directions (n, 3)."""
    number, marks = fixed.number, fixed.landmarks
    q = flatten(d)
    y, z = p[:, 1], p[:, 2]

    def enclosed(ring: np.ndarray) -> np.ndarray:
        """Directions within a ring (k, 2) of the flat map that is closed across the midline."""
        return inside(np.concatenate([ring, [[-0.1, ring[-1, 1]], [-0.1, ring[0, 1]]]]), q)

    border = np.concatenate(
        [[marks[51]], number["border_up"], number["border_low"][::-1], [marks[57]]]
    )
    lips = enclosed(q[border])
    lips[border] = True

    chin, hairline = [marks[8]], number["hairline"]
    top = number["above"][np.argmin(np.abs(y[number["above"]] - layout.HAIRLINE[0][1]))]
    face = enclosed(q[np.concatenate([chin, number["jaw"], hairline[::-1], [top]])])
    face[np.concatenate([chin, number["jaw"]])] = True
    face |= (d[:, 0] == 0) & (z > 0) & (y > y[marks[8]]) & (y < y[top])
    hairline = np.append(hairline, top)
    face[hairline] = False
    hair_ends = np.interp(z, [-75, -45, -18, -6], [-42, -25, 15, 30])  # y at the nape
    scalp = ~face & (y > hair_ends) & ((z < 2) | (y > 30))
    scalp[hairline] = True
    return flags(
        len(p),
        face=face,
        skin=~lips,
        eyes=np.isin(np.arange(len(p)), number["eye"]),
        lips=lips,
        brows=inside(flatten(lift(np.array(layout.BROW_OUTLINE))), q),
        nose=enclosed(flatten(lift(np.array(layout.NOSE_OUTLINE)))),
        neck=~face & ~scalp & ((y < -70) | ((z < 0) & (y < -25))),
        scalp=scalp,
    )


def _mirrored(parts: list[Part], back: np.ndarray, marks: dict[int, int]) -> Head:
    """Weld the parts to the first, the skin, open the seam at the back (k,), and mirror.

    ``marks`` are the left half's landmarks: number and vertex.
    """
    skin = parts[0]
    vertices, triangles, uv = [skin.vertices], [skin.triangles], [skin.uv]
    flags = {name: [flag] for name, flag in skin.flags.items()}
    count = len(skin.vertices)
    for part in parts[1:]:
        new = part.weld < 0
        index = part.weld.copy()
        index[new] = count + np.arange(new.sum())
        count += int(new.sum())
        vertices.append(part.vertices[new])
        uv.append(part.uv[new])
        triangles.append(index[part.triangles])
        for name in REGIONS:
            flags[name].append(part.flags[name][new])
    p, t, w = np.concatenate(vertices), np.concatenate(triangles), np.concatenate(uv)
    regions = {name: np.concatenate(flag) for name, flag in flags.items()}
    n = len(p)
    shared = p[:, 0] == 0  # the midline, but for the seam at the back, is in both halves
    shared[back] = False
    shared &= w[:, 0] < 1.0
    w = np.round(w * 2**22) / 2**22  # so that u and 1 - u are exact, in float32 too
    w[shared, 0] = 0.5
    other = np.where(shared, np.arange(n), 0)
    other[~shared] = n + np.arange((~shared).sum())
    mirror = np.concatenate([other, np.flatnonzero(~shared)])
    all_p = np.concatenate([p, p[~shared] * [-1, 1, 1]]) + 0.0
    all_w = np.concatenate([w, np.column_stack([1 - w[~shared, 0], w[~shared, 1]])])
    # Ears first: in the map they lie over the skin behind them, and the first triangle counts.
    all_t = np.concatenate([t, other[t][:, ::-1]])
    is_ear = np.tile(regions["ears"][t].all(1), 2)
    all_t = np.concatenate([all_t[is_ear], all_t[~is_ear]])
    regions = {name: np.concatenate([f, f[~shared]]) for name, f in regions.items()}
    landmarks = np.full(68, -1)
    for k, vertex in marks.items():
        landmarks[k] = vertex
        landmarks[MIRROR[k]] = other[vertex]
    return Head(all_p, all_t, all_w, mirror, landmarks, regions)
