"""What modes need to know of a head: eyeballs, lips, smooth fields on its surface.

Everything here is float64 numpy, in the model frame (millimetres, x to the subject's left, y up, z
out of the face) and works on any head with the 68 landmarks and a mirror map.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.sparse as sp
from jaxtyping import Bool, Float, Int
from scipy.sparse.csgraph import connected_components, dijkstra
from scipy.sparse.linalg import splu
from scipy.spatial import cKDTree

Number = int | float
FLIP = np.array([-1.0, 1.0, 1.0])  # the reflection x -> -x
EYE_LANDMARKS = {1: (45, 44, 43, 42, 47, 46), -1: (36, 37, 38, 39, 40, 41)}
"""Per side (+1 the subject's left, -1 right): outer corner, upper lid outer and inner, inner
corner, lower lid inner and outer.
"""
UPPER_LIP = (49, 50, 51, 52, 53)
LOWER_LIP = (55, 56, 57, 58, 59)
LIP_OUTLINE = (48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59)
CONTACT = 1.5  # mm: lips nearer than this touch
LID_ZONE = (3.0, 16.0)  # mm from the eyeball: lids slide on it, farther parts are free
ELSEWHERE = 0.15  # weight of what is not face in principal components
MARGIN = 1e-3  # least sine of a corner: slivers cannot spoil the Laplacian


@dataclass(frozen=True)
class Eyeball:
    """One eyeball.

    Attributes:
        centre: millimetres.
        radius: millimetres.
        vertices: which vertices are its own; none where the head has no eyeballs and the sphere is
            only assumed.
    """

    centre: Float[np.ndarray, "3"]
    radius: float
    vertices: Bool[np.ndarray, " n"]


@dataclass(frozen=True)
class Head:
    """The mean head and what is derived from it, each part computed when first asked for.

    Attributes:
        mean: millimetres, exactly symmetric through ``mirror``.
        triangles: counter-clockwise seen from outside.
        mirror: index of the mirrored vertex.
        landmarks: positions of the 68 landmarks, millimetres.
        regions: vertex sets by name; any may be missing.
    """

    mean: Float[np.ndarray, "n 3"]
    triangles: Int[np.ndarray, "t 3"]
    mirror: Int[np.ndarray, " n"]
    landmarks: Float[np.ndarray, "68 3"]
    regions: dict[str, Bool[np.ndarray, " n"]]

    def region(self, name: str) -> Bool[np.ndarray, " n"]:
        """A region, or no vertices where the head does not name it."""
        return self.regions.get(name, np.zeros(len(self.mean), bool))

    @cached_property
    def face(self) -> Bool[np.ndarray, " n"]:
        """The region ``face``; everything where the head does not name it."""
        return self.regions.get("face", np.ones(len(self.mean), bool))

    @cached_property
    def importance(self) -> Float[np.ndarray, " n"]:
        """How much a vertex counts in principal components: 1 in the face, less elsewhere."""
        return np.where(self.face, 1.0, ELSEWHERE)

    @cached_property
    def edges(self) -> sp.csr_matrix:
        """Edge lengths in millimetres, symmetric, (n, n)."""
        i, j = np.concatenate([self.triangles[:, [a, b]] for a, b in ((0, 1), (1, 2), (2, 0))]).T
        pairs = np.unique(np.stack([np.minimum(i, j), np.maximum(i, j)], 1), axis=0)
        length = np.linalg.norm(self.mean[pairs[:, 0]] - self.mean[pairs[:, 1]], axis=1)
        half = sp.csr_matrix((np.maximum(length, 1e-6), pairs.T), shape=(len(self.mean),) * 2)
        return half + half.T

    @cached_property
    def parts(self) -> Int[np.ndarray, " n"]:
        """The connected part each vertex belongs to."""
        return connected_components(self.edges, directed=False)[1]

    @cached_property
    def eyeballs(self) -> dict[int, Eyeball]:
        """The eyeballs by side, +1 the subject's left (+x), -1 right.

        An eyeball is a connected part of the mesh that lies on a sphere behind the eye's landmarks.
        A head without one gets a sphere of 12 mm that touches the lids.
        """
        return {side: self._eyeball(side) for side in (1, -1)}

    def _eyeball(self, side: int) -> Eyeball:
        lids = self.landmarks[list(EYE_LANDMARKS[side])]
        for part in range(self.parts.max() + 1):
            vertices = self.parts == part
            points = self.mean[vertices]
            if len(points) < 12 or np.abs(points.mean(0) - lids.mean(0)).max() > 20:
                continue
            points = self.mean[vertices & ~self.region("iris")]  # the cornea bulges
            # |p|^2 = 2 p.c + (r^2 - |c|^2) in least squares
            solution = np.linalg.lstsq(
                np.c_[2 * points, np.ones(len(points))], (points**2).sum(1), rcond=None
            )[0]
            centre = solution[:3]
            distance = np.linalg.norm(points - centre, axis=1)
            if np.ptp(distance) < 0.3 * distance.mean() < 6:
                return Eyeball(centre, float(distance.mean()), vertices)
        centre = lids.mean(0) - [0, 0, 10.5]
        return Eyeball(centre, 12.0, np.zeros(len(self.mean), bool))

    @cached_property
    def is_eyeball(self) -> Bool[np.ndarray, " n"]:
        """The vertices of either eyeball."""
        return self.eyeballs[1].vertices | self.eyeballs[-1].vertices

    @cached_property
    def lip_distance(self) -> Float[np.ndarray, "2 n"]:
        """Distance along the surface from the upper and from the lower lip's outline, millimetres.

        The lips are cut from each other, so that the smaller one tells to which lip a vertex near
        the mouth belongs, however close the lips are.
        """
        tree = cKDTree(np.where(self.is_eyeball[:, None], 1e6, self.mean))
        return np.stack(
            [
                dijkstra(
                    self.edges, indices=tree.query(self.landmarks[list(lip)])[1], min_only=True
                )
                for lip in (UPPER_LIP, LOWER_LIP)
            ]
        )

    @cached_property
    def outline_distance(self) -> Float[np.ndarray, " n"]:
        """Distance in the frontal view from the mouth's outline, negative inside, mm."""
        return polygon_distance(self.mean[:, :2], self.landmarks[list(LIP_OUTLINE), :2])

    @cached_property
    def touching(self) -> Int[np.ndarray, "c 2"]:
        """Pairs of vertices of the upper and lower lip that touch in the mean face."""
        upper_distance, lower_distance = self.lip_distance
        near = (np.minimum(upper_distance, lower_distance) < 25) & ~self.is_eyeball
        upper = np.flatnonzero(near & (upper_distance < lower_distance))
        lower = np.flatnonzero(near & (upper_distance > lower_distance))
        separation, nearest = cKDTree(self.mean[lower]).query(self.mean[upper])
        pairs = np.stack([upper, lower[nearest]], 1)[separation < CONTACT]
        return np.unique(np.concatenate([pairs, self.mirror[pairs]]), axis=0)

    @cached_property
    def areas(self) -> Float[np.ndarray, " n"]:
        """A third of the area of each vertex's triangles, square millimetres."""
        a, b, c = (self.mean[self.triangles[:, k]] for k in range(3))
        area = np.linalg.norm(np.cross(b - a, c - a), axis=1) / 6
        total = np.zeros(len(self.mean))
        for k in range(3):
            np.add.at(total, self.triangles[:, k], area)
        return np.maximum(total, 1e-3)

    @cached_property
    def laplacian(self) -> sp.csr_matrix:
        """The cotangent Laplacian, positive semi-definite (Pinkall and Polthier 1993), (n, n)."""
        n = len(self.mean)
        matrix = sp.csr_matrix((n, n))
        for k in range(3):
            i, j, o = (self.triangles[:, (k + s) % 3] for s in (1, 2, 0))
            u, v = self.mean[i] - self.mean[o], self.mean[j] - self.mean[o]
            sine = np.linalg.norm(np.cross(u, v), axis=1)
            scale = np.linalg.norm(u, axis=1) * np.linalg.norm(v, axis=1)
            cotangent = (u * v).sum(1) / np.maximum(sine, np.maximum(MARGIN * scale, 1e-12))
            matrix = matrix + sp.csr_matrix((cotangent / 2, (i, j)), shape=(n, n))
        matrix = matrix + matrix.T
        matrix.data = np.maximum(matrix.data, 1e-2)
        return sp.diags(np.asarray(matrix.sum(1)).ravel()) - matrix

    def mirrored(self, field: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
        """A displacement field seen in the mirror: left becomes right."""
        return field[self.mirror] * FLIP

    def symmetric(self, field: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
        """The symmetric part of a displacement field, exactly symmetric."""
        return 0.5 * (field + self.mirrored(field))

    def smooth(self, values: Float[np.ndarray, "n *c"], width: Number) -> Float[np.ndarray, "n *c"]:
        """Values diffused along the surface over about ``width`` mm (one implicit heat step)."""
        mass = sp.diags(self.areas)
        return splu((mass + 0.5 * width**2 * self.laplacian).tocsc()).solve(mass @ values)


def polygon_distance(
    points: Float[np.ndarray, "n 2"], corners: Float[np.ndarray, "m 2"]
) -> Float[np.ndarray, " n"]:
    """Signed distance to a closed polygon, negative inside."""
    distance = polyline_distance(points, np.concatenate([corners, corners[:1]]))
    following = np.roll(corners, -1, axis=0)
    x, y = points[:, :1], points[:, 1:]
    crosses = (corners[:, 1] > y) != (following[:, 1] > y)
    rise = following[:, 1] - corners[:, 1]
    rise = np.where(rise == 0, 1.0, rise)
    at = corners[:, 0] + (y - corners[:, 1]) * (following[:, 0] - corners[:, 0]) / rise
    inside = (crosses & (x < at)).sum(1) % 2 == 1
    return np.where(inside, -distance, distance)


def polyline_distance(
    points: Float[np.ndarray, "n d"], corners: Float[np.ndarray, "m d"]
) -> Float[np.ndarray, " n"]:
    """Distance to an open polyline."""
    start, step = corners[:-1], np.diff(corners, axis=0)
    along = ((points[:, None] - start) * step).sum(-1) / np.maximum((step**2).sum(-1), 1e-12)
    foot = start + np.clip(along, 0, 1)[..., None] * step
    return np.linalg.norm(points[:, None] - foot, axis=-1).min(1)


def smoothstep(
    values: Float[np.ndarray, "*n"], low: Number, high: Number
) -> Float[np.ndarray, "*n"]:
    """0 up to ``low``, 1 from ``high``, smooth between; falling where ``low`` > ``high``."""
    t = np.clip((values - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def slide_on_eyeballs(
    head: Head, fields: Float[np.ndarray, "m n 3"], carry: bool = False
) -> Float[np.ndarray, "m n 3"]:
    """Displacement fields, changed (linearly) so that lids keep their distance to the eyeball.

    Args:
        head: the head they move.
        fields: displacements.
        carry: eyeballs translate with what is around them; otherwise they stay.
    """
    fields = fields.copy()
    low, high = LID_ZONE
    for eye in head.eyeballs.values():
        distance = np.linalg.norm(head.mean - eye.centre, axis=1)
        around = np.flatnonzero((distance < eye.radius + high) & ~head.is_eyeball)
        outward = (head.mean[around] - eye.centre) / distance[around, None]
        field = fields[:, around]
        motion = np.zeros((len(fields), 1, 3))
        if carry:
            near = np.exp(-0.5 * (distance[around] / eye.radius) ** 2)
            motion = np.tensordot(field, near / near.sum(), (1, 0))[:, None]
        radial = ((field - motion) * outward).sum(-1, keepdims=True)
        hold = smoothstep(distance[around] - eye.radius, high, low)
        fields[:, around] = field - hold[:, None] * radial * outward
        fields[:, eye.vertices] = motion
    return fields


class SurfaceSpline:
    """Smooth fields on a surface through given values at handles, fading away from them.

    Gaussian-process regression with the covariance (L M^-1 L + M / length^4)^-1 (L the Laplacian, M
    the vertex areas): the minimiser of bending plus size of the field. As it knows only the
    surface, a cut between the lips separates them.

    Args:
        head: the surface.
        handles: vertices at which values can be given, none of them twice; their mirror images
            follow them in number: handle len(handles) + k is the mirror image of handle k.
        length: millimetres over which a field fades.
        closed: tie the touching vertices of both lips to each other.
    """

    def __init__(
        self, head: Head, handles: Int[np.ndarray, " m"], length: float, closed: bool = False
    ) -> None:
        loads = np.zeros((len(head.mean), len(handles)))
        loads[handles, np.arange(len(handles))] = 1
        response = splu(bending(head, length, closed)).solve(loads)
        self.response = np.concatenate([response, response[head.mirror]], 1)
        self.covariance = self.response[np.concatenate([handles, head.mirror[handles]])]

    def __call__(
        self, chosen: Int[np.ndarray, " k"], values: Float[np.ndarray, "k c"], slack: float = 1e-3
    ) -> Float[np.ndarray, "n c"]:
        """The field that takes ``values`` at the handles numbered ``chosen``.

        Args:
            chosen: which of the handles are given, each vertex once; the others are free.
            values: what the field shall be there.
            slack: noise variance relative to the field's, keeps close handles from fighting.
        """
        covariance = self.covariance[np.ix_(chosen, chosen)]
        noise = slack * np.diag(covariance).mean() * np.eye(len(chosen))
        return self.response[:, chosen] @ np.linalg.solve(covariance + noise, values)


def bending(head: Head, length: float, closed: bool = False) -> sp.csc_matrix:
    """L M^-1 L + M / length^4, the energy of a ``SurfaceSpline``, (n, n)."""
    laplacian = head.laplacian
    if closed:
        i, j = head.touching.T
        ties = sp.csr_matrix((np.full(len(i), 10.0), (i, j)), shape=laplacian.shape)
        ties = ties + ties.T
        laplacian = laplacian + sp.diags(np.asarray(ties.sum(1)).ravel()) - ties
    energy = laplacian @ sp.diags(1 / head.areas) @ laplacian
    return (energy + sp.diags(head.areas / length**4)).tocsc()


def spread(
    head: Head,
    vertices: Int[np.ndarray, " m"],
    values: Float[np.ndarray, " m"],
    length: float,
    closed: bool = False,
) -> Float[np.ndarray, " n"]:
    """One smooth field through values at vertices, as a ``SurfaceSpline`` would draw it."""
    stiffness = np.zeros(len(head.mean))
    stiffness[vertices] = 10.0
    target = np.zeros(len(head.mean))
    target[vertices] = values
    return splu((bending(head, length, closed) + sp.diags(stiffness)).tocsc()).solve(
        stiffness * target
    )
