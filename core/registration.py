"""Registration of surfaces whose points do not correspond: closest points on a mesh, and ICP.

Convention: the *mesh* moves, by x -> scale * rotation @ x + translation, onto the points of a scan;
distances are in the scan's unit. Worked number: the square [-1, 1]^2 in the plane z = 0, registered
without scale to points in the plane z = 3, moves by (0, 0, 3).

Everything is float64 and on the device of the points, but for the query of the tree: that is on the
CPU, so points on a GPU go there and back in each round. The trees (libigl's of boxes for surfaces,
scipy's KD-tree for vertices) are built once: in each round the scan's points go into the mesh's
frame, not the mesh into theirs.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import igl
import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.spatial import KDTree
from torch import Tensor

from core.align import Similarity, procrustes
from core.rotation import rotation_from_vector

TOO_THIN = 1e-12  # twice the area, relative to the longest side squared, of a triangle left out
COARSE_POINTS = 3000  # of the scan, on which ICP starts: enough for the pose, and quick
POINT_ROUNDS = 5  # of plain point-to-point steps, which do not overshoot, before linear ones
ROUNDS = 100
TOLERANCE = 1e-5  # relative change of the error at which ICP has converged
PATIENCE = 3  # rounds without a smaller error, after which it has converged, too
NOTHING = 1e-12  # an error of so much of the points' spread is none
ON_EDGE = 1e-9  # height over an edge, relative to its length, of points that lie on it
UNDETERMINED = 1e-9  # relative eigenvalue of a motion that the surface does not feel
LARGEST_TURN = 0.3  # radians, and as much of log(scale), in one step


class Closest(NamedTuple):
    """The points of a mesh that are closest to some others.

    Attributes:
        points: on the mesh.
        normals: of unit length, of the triangles that they lie in; 0 for vertices without any.
        distance: to the given points.
        element: index of the triangles, or of the vertices.
    """

    points: Float[Tensor, "n 3"]
    normals: Float[Tensor, "n 3"]
    distance: Float[Tensor, " n"]
    element: Int[Tensor, " n"]


class Target(ABC):
    """What can be asked for its point that is closest to a given one."""

    @abstractmethod
    def __call__(self, points: Float[Tensor, "m 3"]) -> Closest:
        """The closest points to these, which must be finite; float64, on their device."""

    def moved(self, pose: Similarity, points: Float[Tensor, "m 3"]) -> Closest:
        """The closest points of the target moved by a similarity, in the frame of the points."""
        near = self((points - pose.translation) @ pose.rotation / pose.scale)
        return near._replace(
            points=pose.apply(near.points),
            normals=near.normals @ pose.rotation.mT,
            distance=near.distance * pose.scale,
        )


class ClosestVertices(Target):
    """Points without a surface; only ``register(..., planes=False)`` can lay them onto others.

    Args:
        vertices: in any unit.

    Raises:
        ValueError: NaN or infinite vertices, or none at all.
    """

    def __init__(self, vertices: Float[Tensor, "n 3"]) -> None:
        self.vertices = _finite(vertices)
        if not len(vertices):
            raise ValueError("a mesh without vertices has no closest one")
        self._tree = KDTree(self.vertices.numpy())

    def __call__(self, points: Float[Tensor, "m 3"]) -> Closest:
        """See ``Target``."""
        distance, index = self._tree.query(points.detach().cpu().double().numpy())
        vertex = torch.from_numpy(index).to(points.device)
        nearest = self.vertices.to(points.device)[vertex]
        normals = torch.zeros_like(nearest)
        return Closest(nearest, normals, torch.from_numpy(distance).to(points.device), vertex)


def _finite(vertices: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
    """Those of a mesh, float64 on the CPU; raises ValueError if some are not finite."""
    vertices = vertices.detach().cpu().double().contiguous()
    bad = int((~vertices.isfinite().all(-1)).sum())
    if bad:
        raise ValueError(f"{bad} of {len(vertices)} vertices of the mesh are NaN or infinite")
    return vertices


class ClosestPoints(Target):
    """A mesh that can be asked for its point that is closest to a given one.

    Triangles without area are left out.

    Args:
        vertices: in any unit.
        triangles: counter-clockwise seen from outside.

    Raises:
        ValueError: NaN or infinite vertices, triangles of vertices that do not exist, or no
            triangle that has an area.
    """

    def __init__(self, vertices: Float[Tensor, "n 3"], triangles: Int[Tensor, "t 3"]) -> None:
        self.vertices, triangles = _finite(vertices), triangles.cpu().long()
        if len(triangles) and not 0 <= int(triangles.min()) <= int(triangles.max()) < len(vertices):
            raise ValueError(
                f"the triangles name vertices {int(triangles.min())}..{int(triangles.max())}, but "
                f"the mesh has {len(vertices)} (0-based)"
            )
        a, b, c = self.vertices[triangles].unbind(1)
        cross = torch.linalg.cross(b - a, c - a)
        longest = torch.stack([b - a, c - a, c - b]).square().sum(-1).amax(0)
        area = cross.norm(dim=-1)
        solid = area > TOO_THIN * longest
        if not solid.any():
            raise ValueError(
                f"a mesh of {len(vertices)} vertices and {len(triangles)} triangles, none of which "
                "has an area: it has no surface"
            )
        self.triangles = triangles[solid].contiguous()
        self.normals = cross[solid] / area[solid, None]
        self._arrays = self.vertices.numpy(), self.triangles.numpy()
        self._tree = igl.AABB()
        self._tree.init(*self._arrays)

    def __call__(self, points: Float[Tensor, "m 3"]) -> Closest:
        """See ``Target``."""
        query = np.ascontiguousarray(points.detach().cpu().double().numpy())
        squared, triangle, nearest = self._tree.squared_distance(*self._arrays, query)
        index = torch.from_numpy(triangle).flatten().long()
        distance = torch.from_numpy(squared).flatten().sqrt()
        found = torch.from_numpy(nearest), self.normals[index], distance, index
        return Closest(*(value.to(points.device) for value in found))


def point_to_plane(points: Float[Tensor, "n 3"], near: Closest) -> Float[Tensor, " n"]:
    """Distances of points to the planes of the triangles that are closest to them; >= 0.

    At a border of the mesh the plane goes on, so a point beside it has a smaller distance to the
    plane than to the mesh.
    """
    return ((points - near.points) * near.normals).sum(-1).abs()


@dataclass(frozen=True)
class Registration:
    """What ``register`` found.

    Attributes:
        pose: moves the mesh onto the scan's points.
        rounds: that were needed, all points and coarse ones together.
        converged: False if the rounds ran out.
    """

    pose: Similarity
    rounds: int
    converged: bool


def register(
    mesh: Target,
    points: Float[Tensor, "m 3"],
    start: Similarity,
    scale: bool = True,
    planes: bool = True,
    trim: float = 0.0,
    rounds: int = ROUNDS,
    tolerance: float = TOLERANCE,
) -> Registration:
    """Iterative closest points: the similarity that lays a mesh onto the points of a scan.

    Minimises the mean square distance from the points to the mesh: to the closest points, or to the
    planes of the closest triangles (Chen and Medioni 1992). The first five rounds, and all of them
    for vertices without triangles, take the closest points for the corresponding ones (Besl and
    McKay 1992); the others are Gauss-Newton steps, linear in the motion, which need a tenth of the
    rounds. Motions that the surface does not feel, like a sphere's rotation, are left as they are.
    Rounds first go over a part of the points, 3,000 at regular steps, until nothing changes any
    more, then over all.

    Args:
        mesh: what moves.
        points: of the scan.
        start: a first guess, as by ``core.align.procrustes`` of some landmarks.
        scale: find the size too; otherwise the scale of ``start`` stays.
        planes: point-to-plane; otherwise point-to-point.
        trim: the fraction of points, those farthest away, that a round leaves out.
        rounds: at most, over the part and over all points each.
        tolerance: relative change of the root mean square distance at which it has converged.

    Raises:
        ValueError: NaN or infinite points or start, fewer than three points, or all on one line;
            or ``planes`` for a target that has none.
    """
    points = points.detach().double()
    pose = Similarity(*(value.to(points) for value in vars(start).values()))
    if planes and not isinstance(mesh, ClosestPoints):
        raise ValueError("register: vertices without triangles have no planes; give planes=False")
    if not 0 <= trim < 1:
        raise ValueError(f"register: trim is {trim}; wanted a fraction in [0, 1)")
    if len(points) < 3 or not points.isfinite().all():
        bad = int((~points.isfinite().all(-1)).sum())
        raise ValueError(
            f"register: {len(points)} points of which {bad} are NaN or infinite; wanted at least "
            "three, all finite"
        )
    known = all(bool(value.isfinite().all()) for value in vars(pose).values())
    if not known or pose.scale <= 0:
        raise ValueError("register: the start is NaN, infinite, or its scale is not positive")
    step = len(points) // COARSE_POINTS
    parts = [points[::step], points] if step > 1 else [points]
    total = 0
    for stage, part in enumerate(parts):
        warm_up = POINT_ROUNDS if stage == 0 and isinstance(mesh, ClosestPoints) else 0
        pose, needed, converged = _converge(
            mesh, part, pose, scale, planes, trim, warm_up, rounds, tolerance
        )
        total += needed
    return Registration(pose, total, converged)


def _converge(
    mesh: Target,
    points: Tensor,
    pose: Similarity,
    scale: bool,
    planes: bool,
    trim: float,
    warm_up: int,
    rounds: int,
    tolerance: float,
) -> tuple[Similarity, int, bool]:
    """Rounds until the error no longer changes; linear ones after ``warm_up``, on surfaces."""
    spread = float((points - points.mean(0)).square().sum(-1).mean().sqrt())
    best, least, stalled = pose, math.inf, 0
    for done in range(rounds):
        kept, near = _trimmed(points, mesh.moved(pose, points), trim)
        linear = done >= warm_up and isinstance(mesh, ClosestPoints)
        residual = point_to_plane(kept, near) if planes and linear else near.distance
        error = float(residual.square().mean().sqrt())
        if done <= warm_up:  # errors of two kinds are not compared
            best, least = pose, error
        elif error <= NOTHING * spread or abs(least - error) <= tolerance * least:
            return pose, done, True
        elif error < least:
            best, least, stalled = pose, error, 0
        else:  # points that hop between two triangles can move a mesh to and fro for ever
            stalled += 1
            if stalled == PATIENCE:
                return best, done, True
            if not planes:  # go back, and take a step that cannot fail
                pose, linear = best, False
                kept, near = _trimmed(points, mesh.moved(pose, points), trim)
        if linear:
            assert isinstance(mesh, ClosestPoints)
            held = near.normals[:, None] if planes else _held(mesh, pose, near)
            pose = _linear_step(pose, kept, near, held, scale)
        else:
            pose = _point_step(pose, kept, near, scale)
    return best, rounds, False


def _trimmed(points: Tensor, near: Closest, trim: float) -> tuple[Tensor, Closest]:
    """All but the farthest points."""
    if trim == 0:
        return points, near
    kept = near.distance.argsort()[: max(3, round(len(points) * (1 - trim)))]
    return points[kept], Closest(*(value[kept] for value in near))


def _point_step(pose: Similarity, points: Tensor, near: Closest, scale: bool) -> Similarity:
    """The best motion if the closest points were the corresponding ones."""
    return _after(procrustes(near.points, points, scale), pose)


def _held(mesh: ClosestPoints, pose: Similarity, near: Closest) -> Float[Tensor, "n 3 3"]:
    """The projections onto the directions in which closest points do not follow the given ones.

    Inside a triangle that is its normal; on an edge, all directions across it; on a vertex, all.
    """
    corners = mesh.vertices[mesh.triangles[near.element.cpu()]].to(near.points.device)
    corners = pose.apply(corners)
    edges = corners.roll(-2, 1) - corners.roll(-1, 1)  # opposite to each corner
    inwards = torch.linalg.cross(near.normals[:, None].expand_as(edges), edges)
    height = ((near.points[:, None] - corners.roll(-1, 1)) * inwards).sum(-1)
    on_edge = height <= ON_EDGE * edges.square().sum(-1)
    sides, full = on_edge.sum(1)[:, None, None], torch.eye(3).to(edges)
    edge = edges.take_along_dim(on_edge.long().argmax(1)[:, None, None], 1)[:, 0]
    along = edge / edge.norm(dim=-1, keepdim=True)
    across = full - along[:, :, None] * along[:, None]
    normal = near.normals[:, :, None] * near.normals[:, None]
    return torch.where(sides == 0, normal, torch.where(sides == 1, across, full))


def _linear_step(
    pose: Similarity,
    points: Tensor,
    near: Closest,
    held: Float[Tensor, "n k 3"],
    scale: bool,
) -> Similarity:
    """The best small motion, if distances count along some directions n of each point only.

    A point p of the mesh, from the middle o of all, goes to p + w x p + g p + d; the distance of
    the scan's point y from it is n (y - o - p) - w (p x n) - g (p n) - d n: linear in (w, d, g).
    """
    middle = near.points.mean(0)
    arm = near.points - middle
    size = arm.square().sum(-1).mean().sqrt().clamp(min=torch.finfo(arm.dtype).tiny)
    arm = (arm / size)[:, None].expand_as(held)  # so that all unknowns are of one magnitude
    rows = [torch.linalg.cross(arm, held), held]
    if scale:
        rows.append((arm * held).sum(-1, keepdim=True))
    J = torch.cat(rows, -1).flatten(0, 1)
    residual = ((points - near.points)[:, None] * held).sum(-1).flatten() / size
    system = torch.linalg.pinv(J.mT @ J, rtol=UNDETERMINED, hermitian=True)
    motion = system @ (J.mT @ residual)
    turn, shift = motion[:3], motion[3:6] * size
    growth = motion[6] if scale else motion.new_zeros(())
    largest = max(float(turn.norm()), float(growth.abs()))
    if largest > LARGEST_TURN:  # far outside of where the step is linear: go the same way, less far
        turn, shift, growth = (x * (LARGEST_TURN / largest) for x in (turn, shift, growth))
    R, s = rotation_from_vector(turn), growth.exp()
    return _after(Similarity(s, R, middle + shift - s * (R @ middle)), pose)


def _after(second: Similarity, first: Similarity) -> Similarity:
    """One similarity that does what the first and then the second does."""
    return Similarity(
        second.scale * first.scale,
        second.rotation @ first.rotation,
        second.scale * (second.rotation @ first.translation) + second.translation,
    )
