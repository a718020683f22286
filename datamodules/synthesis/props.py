"""What is on, under and before a head: hair, hats, clothes, glasses, fingers, a microphone.

All are meshes in millimetres, x right, y up, z out of the face, built around a person's landmarks;
each vertex has a colour of its own. ``Anchor.HEAD`` moves with the head, ``Anchor.BODY`` with the
shoulders.
"""

from dataclasses import dataclass
from enum import Enum

import numpy as np
from jaxtyping import Float, Int
from scipy.spatial import cKDTree

from datamodules.synthesis.backdrop import random_colours
from datamodules.synthesis.noise import blurred_noise, smooth_field
from datamodules.synthesis.person import Person

CRANIUM = (78.0, 104.0, 98.0)  # half axes of a hairy head, millimetres: width, height, depth
CENTRE_ABOVE_EYES = 14.0
COLUMNS = 272  # of hair around the head
AROUND, ROWS = 64, 44  # of a garment


class Anchor(Enum):
    """What a thing moves with."""

    HEAD = "head"
    BODY = "body"


@dataclass(frozen=True)
class Prop:
    """A mesh beside the face.

    Attributes:
        vertices: millimetres, in the frame of what it is anchored to; both frames agree for a
            frontal face.
        triangles: counter-clockwise seen from outside.
        colour: per vertex.
        anchor: what it moves with.
        gloss: strength of its highlight.
    """

    vertices: Float[np.ndarray, "n 3"]
    triangles: Int[np.ndarray, "t 3"]
    colour: Float[np.ndarray, "n 3"]
    anchor: Anchor
    gloss: float = 0.0


def sheet_triangles(rows: int, columns: int, closed: bool) -> Int[np.ndarray, "t 3"]:
    """Triangles of a table of vertices; closed joins the last column to the first."""
    across = columns if closed else columns - 1
    row, column = np.meshgrid(np.arange(rows - 1), np.arange(across), indexing="ij")
    a = row * columns + column
    b = row * columns + (column + 1) % columns
    c, d = a + columns, b + columns
    return np.concatenate(
        [np.stack([a, c, b], -1).reshape(-1, 3), np.stack([b, c, d], -1).reshape(-1, 3)]
    )


def tube(
    path: Float[np.ndarray, "m 3"], radius: float | Float[np.ndarray, " m"], sides: int = 8
) -> tuple[Float[np.ndarray, "n 3"], Int[np.ndarray, "t 3"]]:
    """A round tube around a path, closed at its ends by their radius going to 0."""
    path = np.concatenate([path[:1], path, path[-1:]])
    radius = np.broadcast_to(radius, len(path) - 2)
    radius = np.concatenate([[0.0], radius, [0.0]])
    along = np.gradient(path, axis=0)
    along[0], along[-1] = along[1], along[-2]
    along /= np.linalg.norm(along, axis=1, keepdims=True) + 1e-9
    helper = np.where(np.abs(along[:, 1:2]) < 0.9, [[0.0, 1.0, 0.0]], [[1.0, 0.0, 0.0]])
    first = np.cross(along, helper)
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    second = np.cross(along, first)
    turn = np.linspace(0, 2 * np.pi, sides, endpoint=False)
    ring = first[:, None] * np.cos(turn)[:, None] + second[:, None] * np.sin(turn)[:, None]
    points = path[:, None] + radius[:, None, None] * ring
    return points.reshape(-1, 3), sheet_triangles(len(path), sides, closed=True)[:, ::-1]


def merged(parts: list[Prop]) -> Prop:
    """Several meshes of one anchor as one."""
    offsets = np.cumsum([0] + [len(part.vertices) for part in parts[:-1]])
    return Prop(
        np.concatenate([part.vertices for part in parts]),
        np.concatenate([p.triangles + o for p, o in zip(parts, offsets, strict=True)]),
        np.concatenate([part.colour for part in parts]),
        parts[0].anchor,
        max(part.gloss for part in parts),
    )


# --------------------------------------------------------------------------------------------- hair


def hair(
    rng: np.random.Generator,
    person: Person,
    landmarks: Float[np.ndarray, "68 3"],
    over_face: bool,
) -> Prop | None:
    """Hair from cropped to long, with or without a fringe; sometimes a hat, a hood or nothing.

    A surface over the head, given per azimuth (0 = front) and from the crown to its hem; it follows
    the person's own head at a distance, then hangs.

    Args:
        rng: of the video.
        person: whose head it covers and whose hair colour it has.
        landmarks: of that person.
        over_face: whether it may cover a part of the face.
    """
    style = rng.choice(
        ["bald", "cropped", "short", "chin", "long", "hat", "hood"],
        p=[0.06, 0.14, 0.32, 0.14, 0.22, 0.08, 0.04],
    )
    if style == "bald":
        return None
    azimuth = np.linspace(-np.pi, np.pi, COLUMNS, endpoint=False)
    degrees = np.abs(np.rad2deg(azimuth))
    eyes = landmarks[36:48].mean(0)
    centre = np.array([0.0, eyes[1] + CENTRE_ABOVE_EYES, eyes[2] - 78.0])

    # The hem: angle from the crown, in degrees, per azimuth.
    keys = [0.0, 28.0, 48.0, 64.0, 80.0, 100.0, 130.0, 180.0]
    line = rng.normal() * 3.0
    recede = rng.exponential(4.0) if style in ("cropped", "short") else 0.0
    hem = {
        "cropped": [55, 54 - recede, 62 - recede, 84, 99, 100, 118, 126],
        "short": [57, 57 - recede, 66, 92, 104, 106, 124, 132],
        "chin": [57, 58, 70, 96, 110, 116, 126, 130],
        "long": [57, 58, 70, 96, 110, 116, 126, 130],
        "hat": [64, 65, 70, 80, 90, 96, 104, 108],
        "hood": [57, 60, 68, 92, 104, 110, 120, 125],
    }[style]
    angle = np.interp(degrees, keys, np.array(hem)) + line
    fringe = 0.0
    if over_face and style in ("short", "chin", "long") and rng.random() < 0.45:
        fringe = rng.uniform(0.4, 1.0)
        parting = rng.uniform(-40, 40) if rng.random() < 0.6 else 0.0
        bow = np.exp(-(((np.rad2deg(azimuth) - parting) / rng.uniform(30, 55)) ** 2))
        angle = angle + bow * fringe * 32 * (degrees < 75)
    ragged = style not in ("hat", "hood")
    if ragged:
        strands = 0.8 * blurred_noise(rng, (COLUMNS,), 0.8) + 0.8 * blurred_noise(
            rng, (COLUMNS,), 5.0
        )
        angle = angle + strands * (1.2 + 2.2 * fringe) * (1.0 + (degrees > 60))

    rows = 22
    share = np.linspace(0.0, 1.0, rows)[:, None]
    polar = np.deg2rad(2 + share * (angle - 2))
    direction = np.stack(
        [np.sin(polar) * np.sin(azimuth), np.cos(polar), np.sin(polar) * np.cos(azimuth)], -1
    )
    volume = {"cropped": 3, "short": 11, "chin": 14, "long": 15, "hat": 9, "hood": 12}[style]
    lift = np.clip((1 - share) * 5 + 0.12 + 0.5 * fringe * (1 - share), 0, 1)
    if style in ("chin", "long"):
        lift = np.maximum(lift, 0.7 * (degrees > 62))
    if not ragged:
        lift = np.maximum(lift, 0.6)
    bumps = 1 + 0.22 * smooth_field(rng, direction * 90, rng.uniform(30, 70))
    radius = (
        _radius(direction, person, centre) + 1.2 + volume * rng.uniform(0.6, 1.4) * lift * bumps
    )
    surface = centre + radius[..., None] * direction

    length = {"chin": rng.uniform(40, 85), "long": rng.uniform(110, 240)}.get(style, 0.0)
    length = rng.uniform(120, 160) if style == "hood" else length
    if length:
        forward = rng.uniform(58, 80) if over_face else 84
        hang = np.clip((degrees - forward) / 8, 0, 1)
        hang = hang * length * (1 + 0.05 * blurred_noise(rng, (COLUMNS,), 1.5))
        drop = np.linspace(0, 1, 16)[1:, None]
        sway = 6 * np.sin(drop * rng.uniform(2, 7) + rng.uniform(0, 6)) * drop
        outward = np.stack([np.sin(azimuth), 0 * azimuth, np.cos(azimuth)], -1)
        fall = surface[-1] + drop[..., None] * np.stack([0 * hang, -hang, 0 * hang], -1)
        fall = fall + (sway + 4 * drop)[..., None] * outward * (hang > 0)[:, None]
        surface = np.concatenate([surface, fall])
    total = len(surface)
    if ragged:
        grain = blurred_noise(rng, (total, COLUMNS), (5.0, 0.6)) * 0.26
        grain = grain + blurred_noise(rng, (total, COLUMNS), (9.0, 4.0)) * 0.14
        colour = person.hair * np.exp(grain)[..., None]
        roots = np.linspace(0, 1, total)[:, None, None]
        colour = colour * (1 + 0.25 * rng.normal() * (roots - 0.5))
        if style == "cropped":
            colour = 0.75 * colour + 0.25 * person.skin * 0.8
    else:
        cloth = random_colours(rng, 1)[0]
        colour = cloth * (1 + 0.08 * blurred_noise(rng, (total, COLUMNS), (2.0, 2.0)))[..., None]
    triangles = sheet_triangles(total, COLUMNS, closed=True)
    return Prop(
        surface.reshape(-1, 3),
        triangles,
        colour.reshape(-1, 3).clip(0.01, 0.98),
        Anchor.HEAD,
        0.25 if ragged else 0.0,
    )


def _radius(
    direction: Float[np.ndarray, "r c 3"], person: Person, centre: Float[np.ndarray, "3"]
) -> Float[np.ndarray, "r c"]:
    """How far the head reaches from the centre: its own mesh, where there is none an ellipsoid."""
    offsets = person.neutral.numpy() - centre
    distance = np.linalg.norm(offsets, axis=1)
    tree = cKDTree(offsets / distance[:, None])
    gap, nearest = tree.query(direction, k=3)
    ellipsoid = 1 / np.linalg.norm(direction / CRANIUM, axis=-1)
    own = np.where(gap < 0.14, distance[nearest], 0.0).max(-1)
    # ears stick out of the head; hair does not follow them
    return np.where(own > 0, np.minimum(own, ellipsoid + 12), ellipsoid)


# --------------------------------------------------------------------------------- neck and clothes


def body(
    rng: np.random.Generator, person: Person, landmarks: Float[np.ndarray, "68 3"]
) -> list[Prop]:
    """A neck and shoulders with a garment: plain, striped or dotted, the collar open or closed."""
    chin = landmarks[8]
    base = np.array([0.0, chin[1] - 62, chin[2] - 88])
    turn = np.linspace(0, 2 * np.pi, AROUND, endpoint=False)

    def rings(table: list, rows: int) -> np.ndarray:
        """Ellipses around the neck's axis: half width, half depth, height, how far in front."""
        keys = np.array(table, float)
        at = np.linspace(0, 1, rows)
        wide, deep, up, ahead = (np.interp(at, np.linspace(0, 1, len(keys)), k) for k in keys.T)
        ring = np.stack(
            [
                wide[:, None] * np.sin(turn),
                np.broadcast_to(up[:, None], (rows, AROUND)),
                deep[:, None] * np.cos(turn) + ahead[:, None],
            ],
            -1,
        )
        return base + ring

    # the neck goes on where the head's mesh ends, just outside of it
    points = person.neutral.numpy()
    rim = points[points[:, 1] < points[:, 1].min() + 10] - base
    wide, ahead = np.abs(rim[:, 0]).max(), (rim[:, 2].max() + rim[:, 2].min()) / 2
    deep, top = np.ptp(rim[:, 2]) / 2, rim[:, 1].max()
    thick = np.clip(wide / 52, 0.8, 1.3)
    neck = rings(
        [
            (0.9 * wide, 0.9 * deep, top + 14, ahead),
            (wide + 1, deep + 1, top - 2, ahead),
            (wide + 2, deep + 2, top / 2 - 10, ahead - 2),
            (1.35 * wide, 1.2 * deep, -26, ahead - 4),
        ],
        24,
    )
    skin = person.neck * (1 + 0.02 * blurred_noise(rng, (24, AROUND), 2.0))[..., None]
    broad = rng.uniform(0.85, 1.12)
    cloth = rings(
        [
            (58 * thick, 60 * thick, 4 + rng.uniform(-14, 14), -3),
            (84, 74, -16, -5),
            (128 * broad, 88, -36, -8),
            (178 * broad, 98, -62, -10),
            (205 * broad, 106, -110, -10),
            (212 * broad, 118, -220, -8),
            (200 * broad, 116, -330, -8),
        ],
        ROWS,
    )
    # an open collar: the garment starts lower in front
    opening = rng.uniform(0, 60) * (rng.random() < 0.5)
    front = np.exp(-((((turn + np.pi) % (2 * np.pi) - np.pi) / 0.45) ** 2))
    cloth[..., 1] -= opening * front * np.exp(-np.arange(ROWS) / 9.0)[:, None]
    colours = random_colours(rng, 2)
    pattern = np.zeros((ROWS, AROUND, 1))
    kind = rng.random()
    if kind < 0.2:
        pattern = (np.arange(ROWS) // rng.integers(2, 6) % 2)[:, None, None] * np.ones(
            (1, AROUND, 1)
        )
    elif kind < 0.35:
        pattern = (blurred_noise(rng, (ROWS, AROUND), 1.3) > 0.8)[..., None].astype(float)
    elif kind < 0.45:
        pattern = (np.abs((turn + np.pi) % (2 * np.pi) - np.pi) < 0.3)[None, :, None] * np.ones(
            (ROWS, 1, 1)
        )
    worn = colours[0] * (1 - pattern) + colours[1] * pattern
    worn = worn * (1 + 0.1 * blurred_noise(rng, (ROWS, AROUND), (4.0, 2.5)))[..., None]
    parts = []
    for points, colour in ((neck, skin), (cloth, worn)):
        rows = len(points)
        parts.append(
            Prop(
                points.reshape(-1, 3),
                sheet_triangles(rows, AROUND, closed=True),
                np.clip(colour, 0.01, 0.98).reshape(-1, 3),
                Anchor.BODY,
            )
        )
    return parts


# ---------------------------------------------------------------------------------- before the face


def glasses(rng: np.random.Generator, landmarks: Float[np.ndarray, "68 3"]) -> Prop:
    """A pair of glasses: two rims, bridge and temples; one in five with dark lenses."""
    left, right = landmarks[36:42].mean(0), landmarks[42:48].mean(0)
    radius = rng.uniform(1.0, 2.6)
    wide, high = rng.uniform(21, 28), rng.uniform(14, 23)
    square = rng.uniform(2.0, 4.5)
    ahead = max(landmarks[27, 2], landmarks[[19, 24], 2].mean()) + 3.0
    colour = random_colours(rng, 1)[0] * 0.35
    turn = np.linspace(0, 2 * np.pi, 29)
    parts = []

    def add(path: np.ndarray, thickness: float) -> None:
        points, triangles = tube(path, thickness, 6)
        shade = np.broadcast_to(colour, points.shape).copy()
        parts.append(Prop(points, triangles, shade, Anchor.HEAD, 0.5))

    dark = rng.random() < 0.2
    tone = rng.uniform(0.03, 0.12)
    for side, eye in ((-1, left), (1, right)):
        c, s = np.cos(turn), np.sin(turn)
        swell = (np.abs(c) ** square + np.abs(s) ** square) ** (-1 / square)
        x = eye[0] + side * 1.5 + wide * c * swell
        y = eye[1] - 3.0 + high * s * swell
        z = ahead - 0.0028 * x**2
        rim = np.stack([x, y, z], -1)
        add(rim, radius)
        hinge = rim[0 if side > 0 else 14]
        ear = landmarks[16 if side > 0 else 0]
        end = np.array([ear[0] + side * 7, hinge[1] - 2, ear[2] - 12])
        add(hinge + np.linspace(0, 1, 8)[:, None] * (end - hinge), radius)
        if dark:
            fan = np.concatenate([rim.mean(0, keepdims=True), rim[:-1]]) - [0.0, 0.0, 0.5]
            spoke = np.arange(1, 29)
            lens = np.stack([0 * spoke, spoke, spoke % 28 + 1], -1)
            parts.append(Prop(fan, lens, np.full((29, 3), tone), Anchor.HEAD, 0.6))
    inner = np.array([left[0] + wide - 1.5, left[1] + 1, ahead])
    other = np.array([right[0] - wide + 1.5, right[1] + 1, ahead])
    arch = np.linspace(0, 1, 8)[:, None]
    add(inner + arch * (other - inner) + np.sin(np.pi * arch) * [0, 3, 2], radius)
    return merged(parts)


def fingers(rng: np.random.Generator, person: Person, landmarks: Float[np.ndarray, "68 3"]) -> Prop:
    """A hand held at the face: fingers on the cheek, the chin or the mouth."""
    spot = landmarks[rng.choice([3, 4, 5, 8, 11, 12, 13, 48, 54, 57])].copy()
    spot += rng.normal(size=3) * [6, 6, 2]
    spot[2] = max(spot[2] + 8, landmarks[48, 2] - 12)
    lean = rng.uniform(-0.9, 0.9)
    along = np.array([np.sin(lean), np.cos(lean), 0.1])
    across = np.array([np.cos(lean), -np.sin(lean), 0.0])
    tone = person.skin * rng.uniform(0.85, 1.05)
    parts = []
    for index in range(int(rng.integers(2, 5))):
        tip = spot + across * (index * 17.5) + along * (22 - 5 * (index - 1) ** 2 / 2)
        reach = np.linspace(0, 1, 14)[:, None]
        curl = -14 * np.sin(reach * np.pi) * np.array([0, 0, -1.0])
        path = tip - along * reach * 95 + curl - [0, 0, 6] * reach**2
        points, triangles = tube(path, np.interp(reach[:, 0], [0, 0.07, 1], [5.0, 7.8, 9.6]), 12)
        shade = tone * (1 - 0.25 * np.exp(-((((points - tip) @ along + 30) / 4) ** 2)))[:, None]
        parts.append(Prop(points, triangles, shade, Anchor.HEAD))
    palm, triangles = tube(
        spot + across * 24 - along * np.linspace(60, 150, 10)[:, None] + [0, 0, 2], 34.0, 16
    )
    parts.append(Prop(palm, triangles, np.broadcast_to(tone, palm.shape).copy(), Anchor.HEAD))
    return merged(parts)


def microphone(rng: np.random.Generator, landmarks: Float[np.ndarray, "68 3"]) -> Prop:
    """A microphone in front of the chin or the mouth."""
    side = rng.uniform(-1, 1)
    head = landmarks[8] + [22 * side, rng.uniform(-6, 24), rng.uniform(25, 50)]
    down = np.array([0.5 * side, -1.0, 0.2])
    colour = np.full(3, rng.uniform(0.03, 0.2))
    reach = np.linspace(0, 1, 12)
    ball = head + down * np.linspace(-1, 1, 12)[:, None] * 21
    swell = 21 * np.sqrt(np.clip(1 - np.linspace(-0.97, 0.97, 12) ** 2, 0, 1))
    first, first_triangles = tube(ball, swell, 16)
    second, second_triangles = tube(head + down * (15 + 170 * reach[:, None]), 11.0, 12)
    parts = [(first, first_triangles), (second, second_triangles)]
    return merged(
        [Prop(p, t, np.broadcast_to(colour, p.shape).copy(), Anchor.BODY, 0.3) for p, t in parts]
    )


def scarf(rng: np.random.Generator, landmarks: Float[np.ndarray, "68 3"]) -> Prop:
    """A thick scarf around the neck, sometimes up to the mouth."""
    turn = np.linspace(0, 2 * np.pi, 73)
    chin = landmarks[8]
    up = rng.uniform(-34, 4)
    colours = random_colours(rng, 2)
    parts = []
    for level in range(3):
        wave = 4 * np.sin(turn * rng.integers(1, 4) + rng.uniform(0, 6))
        path = np.stack(
            [
                (76 + 8 * level) * np.sin(turn),
                chin[1] + up - 24 * level + wave - 6 * np.cos(turn),
                chin[2] - 74 + (82 + 6 * level) * np.cos(turn),
            ],
            -1,
        )
        points, triangles = tube(path, rng.uniform(15, 20), 12)
        grain = 1 + 0.2 * smooth_field(rng, points, 14.0)[:, None]
        parts.append(Prop(points, triangles, (colours[level % 2] * grain).clip(0, 1), Anchor.BODY))
    return merged(parts)
