"""The mean head's parts besides its skin: edges of the lids, eyes, inside of the mouth, ears.

For the subject's left half (x >= 0). Millimetres, model frame.
"""

from dataclasses import dataclass

import numpy as np

from core.face_models.procedural import head_surface as surface
from core.face_models.procedural.head_layout import (
    directions_of,
    eye_outline,
    eye_uv_centre,
    lift,
    uv_of,
)
from core.face_models.procedural.head_mesh import strip

REGIONS = (
    "face", "skin", "eyes", "lips", "brows", "nose", "mouth_interior", "neck", "scalp", "ears",
    "eyeballs", "iris", "pupil",
)  # fmt: skip


@dataclass
class Part:
    """A piece of the left half, n vertices: arrays as in ``head.Head``.

    ``weld`` (n,) names the skin's vertex that a vertex is, -1 for one of its own; ``flags`` are the
    regions, bool (n,).
    """

    vertices: np.ndarray
    triangles: np.ndarray
    uv: np.ndarray
    weld: np.ndarray
    flags: dict[str, np.ndarray]


def flags(count: int, **true: np.ndarray | bool) -> dict[str, np.ndarray]:
    """All regions' flags (count,), false but for those given."""
    return {name: np.broadcast_to(true.get(name, False), count).copy() for name in REGIONS}


def lid_margin(outer: np.ndarray, uv: np.ndarray, loop: np.ndarray) -> Part:
    """The left lids' edge, from the opening inwards to the eye.

    Args:
        outer: the opening's outline (k, 3), millimetres, and
        uv: its place in the map (k, 2).
        loop: its vertices' numbers in the skin (k,).
    """
    e = surface.to_eye(outer)
    inner = e * [0.955, 0.93, 1.0]  # the opening a touch narrower
    out = ((inner[:, :2] / surface.EYE_RADII[:2]) ** 2).sum(1)
    on_eye = surface.EYE_RADII[2] * np.sqrt(np.clip(1 - out, 0.01, 1)) + 0.12
    inner[:, 2] = np.minimum(on_eye, e[:, 2] - 0.1)
    deep = inner - [0, 0, 1.5]
    n, centre = len(loop), eye_uv_centre()
    first, second, third = np.arange(3 * n).reshape(3, n)
    return Part(
        vertices=np.concatenate([outer, surface.from_eye(inner), surface.from_eye(deep)]),
        triangles=np.concatenate([strip(first, second, True), strip(second, third, True)]),
        uv=np.concatenate([centre + (uv - centre) * k for k in (1.0, 0.95, 0.93)]),
        weld=np.concatenate([loop, np.full(2 * n, -1)]),
        flags=flags(3 * n, face=np.repeat([True, True, False], n), skin=True, eyes=True),
    )


def eyeball() -> Part:
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
    triangles = _disc(len(radii) - 1 + len(whites), sectors)
    # UV: as seen from the centre, squeezed into the opening.
    outline, _ = eye_outline()
    loop = uv_of(lift(outline))
    centre = eye_uv_centre()
    d = directions_of(vertices)
    own = uv_of(d) - centre
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
    marks = flags(n, face=seen, eyes=seen, eyeballs=True, iris=r < 5.8, pupil=r < 2.0)
    return Part(vertices, triangles, uv, np.full(n, -1), marks)


def _disc(rings: int, sectors: int) -> np.ndarray:
    """Triangles (t, 3) of a middle vertex (number 0) and rings round it, counter-clockwise."""
    number = 1 + np.arange(rings * sectors).reshape(rings, sectors)
    fan = np.column_stack([np.zeros(sectors, int), number[0], np.roll(number[0], -1)])
    bands = [strip(number[k], number[k + 1], True)[:, ::-1] for k in range(rings - 1)]
    return np.concatenate([fan, *bands])


def mouth(points: np.ndarray, uv: np.ndarray, upper: np.ndarray, lower: np.ndarray) -> Part:
    """The inside of the mouth: from the upper lip's edge round the back to the lower lip's.

    Args:
        points: the skin's vertices (n, 3), millimetres, and
        uv: their places in the map (n, 2).
        upper: the upper lip's edge (k,), vertex numbers from the midline to the corner.
        lower: the lower lip's edge (k,); it ends in the same corner.
    """
    a, b = points[upper], points[lower]
    n = len(upper)
    width = np.sqrt(np.clip(1 - (a[:, 0] / (a[-1, 0] + 0.01)) ** 2, 0.0, 1))[:, None]
    rows = [(1.0, 3.0), (4.0, 6.0), (9.0, 9.0), (12.0, 26.0), (8.0, 42.0)]  # up or down, back
    narrow = [a * [0.02 * k, 0, 0] for k in range(1, len(rows) + 1)]
    top = [a + width * [0, up, -back] - x for (up, back), x in zip(rows, narrow, strict=True)]
    low = [b + width * [0, -up, -back] - x for (up, back), x in zip(rows, narrow, strict=True)]
    vertices = np.concatenate([a, *top, *low[::-1], b])
    total = 2 * len(rows) + 2
    share = np.linspace(0, 1, total)[:, None, None]
    number = np.arange(total * n).reshape(total, n)
    number[1:, -1] = number[0, -1]  # all rows meet in the corner
    bands = [strip(number[k], number[k + 1], False) for k in range(total - 1)]
    triangles = np.concatenate(bands)[:, ::-1]
    distinct = (np.diff(np.sort(triangles, axis=1), axis=1) > 0).all(1)
    triangles = triangles[distinct]
    weld = np.concatenate([upper, np.full((total - 2) * n, -1), lower])
    used, triangles = np.unique(triangles, return_inverse=True)
    return Part(
        vertices=vertices[used],
        triangles=triangles.reshape(-1, 3),
        uv=((1 - share) * uv[upper] + share * uv[lower]).reshape(-1, 2)[used],
        weld=weld[used],
        flags=flags(len(used), mouth_interior=weld[used] < 0),
    )


def ear() -> Part:
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
    lobe = step(ab[:, 1], -13.0, -21.0)
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
    # The front edge sinks into the cheek.
    local[:, 2] -= 9.0 * np.clip((local[:, 0] - 5.0) / 6.0, 0, 1) ** 2
    rows = len(rings) - 1 + len(behind)
    triangles = _disc(rows, sectors)[:, ::-1]  # forwards is -x as seen from outside
    lean = np.deg2rad(-14.0)
    turn_back = np.array([[np.cos(lean), np.sin(lean)], [-np.sin(lean), np.cos(lean)]])
    a, b = (local[:, :2] @ turn_back).T
    vertices = np.column_stack([68.0 + local[:, 2], 17.0 + b, -12.0 + a])
    flat = np.column_stack([np.full(len(vertices), 72.0), vertices[:, 1:]])
    n = len(vertices)
    uv = uv_of(directions_of(flat))
    uv = uv[0] + 0.85 * (uv - uv[0])  # clear of the face
    return Part(vertices, triangles, uv, np.full(n, -1), flags(n, ears=True, skin=True))


def _bump(x: np.ndarray, centre: float, width: float) -> np.ndarray:
    return np.exp(-(((x - centre) / width) ** 2))


def step(x: np.ndarray, start: float, end: float) -> np.ndarray:
    """0 before ``start``, 1 after ``end``, smooth between."""
    t = np.clip((x - start) / (end - start), 0, 1)
    return t * t * (3 - 2 * t)
