"""Which point of one mesh is which of another: maps between topologies, and what they carry over.

A ``Correspondence`` names for every vertex of a source mesh a point on the surface of a target mesh
of any other topology, as three vertices and their weights. It carries values of the target (points,
colours, errors) over to the source, and with ``fit_coefficients`` a mesh of the target's topology
to the coefficients of a face model of the source's.

The file of a correspondence is a .npz (n source vertices, no pickled objects):

| key              | dtype, shape   | meaning |
|------------------|----------------|---------|
| version          | int64, ()      | 1 |
| target_vertices  | int64, ()      | how many the target has |
| corners          | int64 (n, 3)   | three vertices of the target, 0-based |
| weights          | float64 (n, 3) | of these vertices; not negative, rows sum to 1 |
| distance_mm      | float64 (n,)   | from the source vertex, as warped, to its point |
| valid            | bool (n,)      | near enough, and the two surfaces look the same way |

Construction is numpy in float64 and takes about a second; what it carries over is torch.

Measured, means over the face: from the built-in head to random people of its own with another mesh
(edges collapsed to 10,000 triangles), vertices are 0.75 mm from the truth; landmarks that were not
among 24 named ones, 1.1 mm. Between the built-in head and ICT-FaceKit, such landmarks are 2.0 mm
off in the inner face and 5 mm along the jaw, where the two are annotated differently; a point there
and back is 0.7 mm off, and random people of the built-in head, carried there and fitted back, 0.8.
The rounds that pull to the surface gain little of that (0.75 instead of 0.79 mm, 1.09 instead of
1.14); they are there for ``distance_mm`` and ``valid``: ICT's surface, whose 1.8 mm would be the
difference of two people, comes to 0.4 mm, and what is still far has no partner.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import igl
import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.interpolate import RBFInterpolator
from torch import Tensor

from core.align import Similarity, procrustes
from core.errors import AssetNotFoundError, DataError
from core.face_models.files import read_npz, write_npz
from core.face_models.model import FaceModel
from core.landmarks import MIRROR
from core.normals import vertex_normals
from core.registration import ClosestPoints

VERSION = 1
SMOOTHING = 10.0  # of the splines, mm: 0 meets every control, infinity is affine
CONTROLS = 600  # vertices that pull the warp to the surface in each round
REACH = (40.0, 20.0, 10.0)  # mm, a round each: how far a control may be pulled
FAR = 10.0  # mm, beyond which a point is not valid
RIM = 2.0  # mm, the same where the closest point lies on a border: beyond, the target has ended
FACING = 0.5  # cosine between the two normals, below which it is not
ON_EDGE = 1e-6  # the third corner's weight on an edge
SUM_ERROR = 1e-6  # of the weights in a file
FIT_ROUNDS = 6  # Gauss-Newton steps; from the fourth on nothing changes by 1e-4


class Mesh(NamedTuple):
    """A surface of triangles that are counter-clockwise seen from outside."""

    vertices: Float[np.ndarray, "n 3"]
    triangles: Int[np.ndarray, "t 3"]


@dataclass(frozen=True)
class Correspondence:
    """For every vertex of a source mesh, a point on the surface of a target mesh.

    Attributes:
        target_vertices: how many vertices the target has.
        corners: of the triangle that the point lies in, vertices of the target.
        weights: of the corners; rows sum to 1.
        distance_mm: from the source's vertex, aligned and warped, to the point.
        valid: the point is near, and both surfaces look the same way there.
    """

    target_vertices: int
    corners: Int[np.ndarray, "n 3"]
    weights: Float[np.ndarray, "n 3"]
    distance_mm: Float[np.ndarray, " n"]
    valid: Bool[np.ndarray, " n"]

    def apply(self, values: Float[Tensor, "*b m c"]) -> Float[Tensor, "*b n c"]:
        """Values of the target's vertices at the source's vertices, not valid ones included.

        Differentiable; the dtype and device are those of ``values``.

        Raises:
            ValueError: the values are not of the target's vertices.
        """
        if values.shape[-2] != self.target_vertices:
            raise ValueError(
                f"values of {values.shape[-2]} vertices, but the target of this correspondence "
                f"has {self.target_vertices}; give one value per vertex of the target"
            )
        corners = torch.as_tensor(self.corners, device=values.device)
        weights = torch.as_tensor(self.weights, dtype=values.dtype, device=values.device)
        # index_select rather than indexing: its gradient is an index_add, not a sort
        gathered = values.index_select(-2, corners.flatten()).unflatten(-2, corners.shape)
        return (gathered * weights[..., None]).sum(-2)

    def save(self, path: Path) -> None:
        """Write the .npz that this module's docstring describes."""
        arrays = {"version": VERSION} | vars(self)
        write_npz(path, {key: np.asarray(value) for key, value in arrays.items()})

    @classmethod
    def load(cls, path: Path) -> "Correspondence":
        """Read what ``save`` wrote.

        Raises:
            AssetNotFoundError: there is no such file.
            DataError: it is not such a file.
        """
        if not path.is_file():
            raise AssetNotFoundError(
                "correspondence",
                f"'{path}'",
                "Make it with core.face_models.correspondence.correspond(...).save(path).",
            )
        arrays = read_npz(path)
        try:
            _check(arrays)
        except DataError as error:
            raise DataError(f"'{path}' is no correspondence: {error}") from error
        count = int(arrays["target_vertices"])
        return cls(count, **{key: arrays[key] for key in ARRAYS})


ARRAYS: dict[str, tuple[tuple[int, ...], type]] = {
    "corners": ((3,), np.int64),
    "weights": ((3,), np.float64),
    "distance_mm": ((), np.float64),
    "valid": ((), np.bool_),
}


def _check(arrays: dict[str, np.ndarray]) -> None:
    """Raise DataError unless the arrays of a file fit together."""
    wanted: dict[str, tuple[tuple[int, ...], type]]
    wanted = {"version": ((), np.int64), "target_vertices": ((), np.int64)}
    missing = [key for key in (*wanted, *ARRAYS) if key not in arrays]
    if missing:
        raise DataError(f"the keys {missing} are missing; it has {sorted(arrays)}")
    n = arrays["valid"].shape[:1]
    wanted |= {key: ((*n, *row), kind) for key, (row, kind) in ARRAYS.items()}
    for key, (shape, kind) in wanted.items():
        got = arrays[key]
        if got.shape != shape or got.dtype != kind:
            raise DataError(
                f"'{key}' is {got.dtype} of shape {got.shape}, wanted {kind.__name__} of {shape}"
            )
    if arrays["version"] != VERSION:
        raise DataError(f"it has version {arrays['version']}; this release reads {VERSION}")
    corners, weights, count = arrays["corners"], arrays["weights"], arrays["target_vertices"]
    if (corners < 0).any() or (corners >= count).any():
        raise DataError(
            f"'corners' points at vertices {corners.min()}..{corners.max()}, but the target has "
            f"{count} (0-based)"
        )
    if not (abs(weights.sum(1) - 1) < SUM_ERROR).all():
        raise DataError("the rows of 'weights' do not all sum to 1")


def correspond(
    source: Mesh,
    source_landmarks: Float[np.ndarray, "p 3"],
    target: Mesh,
    target_landmarks: Float[np.ndarray, "p 3"],
) -> Correspondence:
    """For every vertex of the source the point of the target that is the same point of a face.

    The source is moved by a similarity and a smooth warp (``_warp``), then each vertex goes to the
    closest point.

    Args:
        source: in any unit and pose.
        source_landmarks: the same unit and pose; points of the face that both meshes have.
        target: millimetres, any pose.
        target_landmarks: the same points of the face in the same order.

    Returns:
        Valid are points within 10 mm, and 2 mm on the target's borders, the normals of which differ
        by less than 60 degrees.

    Raises:
        ValueError: fewer than four landmarks, all in one plane, or not finite.
    """
    source, target = _float64(source), _float64(target)
    surface = _Surface(target)
    moved, _ = _warp(source, source_landmarks, surface, target_landmarks)
    near = surface(moved)
    facing = (_normals(Mesh(moved, source.triangles)) * near.normals).sum(1)
    valid = (near.distance < np.where(near.on_rim, RIM, FAR)) & (facing > FACING)
    return Correspondence(len(target.vertices), near.corners, near.weights, near.distance, valid)


def correspond_models(source: FaceModel, target: FaceModel) -> Correspondence:
    """``correspond`` of the mean faces of two models, by their 68 landmarks."""
    meshes = [Mesh(model.mean.numpy(), model.triangles.numpy()) for model in (source, target)]
    points = [model.landmarks(model.mean).numpy() for model in (source, target)]
    return correspond(meshes[0], points[0], meshes[1], points[1])


def landmarks_from(
    reference: Mesh,
    reference_landmarks: Float[np.ndarray, "68 3"],
    reference_seeds: Float[np.ndarray, "p 3"],
    mesh: Mesh,
    seeds: Float[np.ndarray, "p 3"],
) -> tuple[Int[np.ndarray, "68 3"], Float[np.ndarray, "68 3"]]:
    """The 68 landmarks of a mesh on which only some points are named, by a reference that has all.

    The reference is moved by a similarity and a smooth warp that meets the seeds, each landmark is
    averaged with its mirrored partner, and goes to the closest point of the mesh.

    Args:
        reference: in any unit and pose.
        reference_landmarks: the same unit and pose.
        reference_seeds: the same unit and pose; the points that are named on both.
        mesh: millimetres, model frame: the plane of symmetry is x = 0.
        seeds: the same points of the face as ``reference_seeds``, in the same order.

    Returns:
        Three vertices of the mesh for each landmark, and their weights.

    Raises:
        ValueError: fewer than four seeds, all in one plane, or not finite.
    """
    reference, surface = _float64(reference), _Surface(_float64(mesh))
    _, (moved,) = _warp(reference, reference_seeds, surface, seeds, reference_landmarks)
    moved = (moved + moved[list(MIRROR)] * [-1, 1, 1]) / 2
    near = surface(moved)
    return near.corners, near.weights


def _warp(
    source: Mesh,
    source_landmarks: np.ndarray,
    target: "_Surface",
    target_landmarks: np.ndarray,
    *others: np.ndarray,
) -> tuple[np.ndarray, list[np.ndarray]]:
    """The source's vertices laid onto the target, and other points that move along with them.

    A similarity and a spline by the landmarks; then in each round a spline that also pulls some
    vertices to their closest points.
    """
    goal = np.asarray(target_landmarks, np.float64)
    parts = [source.vertices, *(np.asarray(o, np.float64) for o in (source_landmarks, *others))]
    ends = np.cumsum([len(part) for part in parts])
    points, landmarks = np.concatenate(parts), slice(ends[0], ends[1])
    fit = procrustes(torch.from_numpy(parts[1]), torch.from_numpy(goal))
    points = fit.apply(torch.from_numpy(points)).numpy()
    points = _bend(points, points[landmarks], goal)
    controls = np.random.default_rng(0).permutation(ends[0])[:CONTROLS]
    for reach in REACH:
        normals = _normals(Mesh(points[: ends[0]], source.triangles))[controls]
        near = target(points[controls])
        facing = (normals * near.normals).sum(1)
        good = (near.distance < reach) & (facing > FACING) & ~near.on_rim
        pulled = np.concatenate([points[landmarks], points[controls[good]]])
        points = _bend(points, pulled, np.concatenate([goal, near.points[good]]))
    moved, _, *rest = np.split(points, ends[:-1])
    return moved, rest


def _bend(points: np.ndarray, controls: np.ndarray, goals: np.ndarray) -> np.ndarray:
    """The points displaced by the smoothest field (biharmonic spline) that moves the controls."""
    spline = RBFInterpolator(
        controls, goals - controls, kernel="linear", degree=1, smoothing=SMOOTHING
    )
    return points + spline(points)


class _Nearest(NamedTuple):
    """The points of a mesh that are closest to some others."""

    corners: np.ndarray
    weights: np.ndarray
    points: np.ndarray
    normals: np.ndarray  # unit length, or 0
    distance: np.ndarray
    on_rim: np.ndarray  # on an edge that only one triangle has


class _Surface:
    """A mesh that is asked for its closest points, with smooth normals."""

    def __init__(self, mesh: Mesh) -> None:
        self.closest = ClosestPoints(*(torch.from_numpy(np.ascontiguousarray(a)) for a in mesh))
        self.normals = _normals(mesh)
        self.triangles = self.closest.triangles.numpy()  # those that have an area
        self.open_ended = np.zeros(len(mesh.vertices), bool)
        self.open_ended[igl.exterior_edges(self.triangles)] = True

    def __call__(self, points: np.ndarray) -> _Nearest:
        found = self.closest(torch.from_numpy(points))
        nearest, corners = found.points.numpy(), self.triangles[found.element.numpy()]
        vertices = self.closest.vertices.numpy()
        a, b, c = (np.ascontiguousarray(vertices[corners[:, k]]) for k in range(3))
        weights = igl.barycentric_coordinates(nearest, a, b, c).clip(0)
        weights /= weights.sum(1, keepdims=True)
        normals = (self.normals[corners] * weights[..., None]).sum(1)
        length = np.linalg.norm(normals, axis=1, keepdims=True)
        normals = np.divide(normals, length, out=np.zeros_like(normals), where=length > 0)
        on_rim = (self.open_ended[corners] | (weights < ON_EDGE)).all(1)
        return _Nearest(corners, weights, nearest, normals, found.distance.numpy(), on_rim)


def _normals(mesh: Mesh) -> np.ndarray:
    vertices, triangles = (torch.from_numpy(np.ascontiguousarray(array)) for array in mesh)
    return vertex_normals(vertices, triangles).numpy()


def _float64(mesh: Mesh) -> Mesh:
    return Mesh(mesh.vertices.astype(np.float64), mesh.triangles.astype(np.int64))


def fit_coefficients(
    model: FaceModel,
    points: Float[Tensor, "*b m 3"],
    correspondence: Correspondence,
    ridge: float = 1e-3,
    scale: bool = True,
) -> tuple[Float[Tensor, "*b ki"], Float[Tensor, "*b ke"], Similarity]:
    """The coefficients of a face model whose shapes are closest to meshes of another topology.

    Minimises, in float64, the mean square distance (mm^2, in the model's frame) between valid
    vertices and their points, plus ``ridge`` times the squares of the coefficients in standard
    deviations. Each round solves for the coefficients and a small move of the pose, then for the
    pose alone (``procrustes``): by plain turns, size and pose took hundreds of rounds.

    Args:
        model: the source of the correspondence.
        points: vertices of its target, in any unit and pose.
        correspondence: from the model's mean to that topology.
        ridge: mm^2 per squared standard deviation.
        scale: find the size too; False where the points are millimetres and stay so.

    Returns:
        identity and expression, for ``model.shape``, and the similarity that carries the model's
        frame to that of the points (float64, CPU).

    Raises:
        ValueError: the points are not of the target's vertices, or the model is not the source.
    """
    valid = torch.from_numpy(correspondence.valid)
    if len(valid) != len(model.mean):
        raise ValueError(
            f"a correspondence of {len(valid)} vertices does not start at the face model "
            f"'{model.name}' of {len(model.mean)}; make it with this model as the source"
        )
    target = correspondence.apply(points.double().cpu())[..., valid, :]
    batch = target.shape[:-2]
    mean = model.mean.cpu()[valid].double()
    std = model.expression_std[:, None, None]
    basis = torch.cat([model.identity_basis, model.expression_basis * std])
    basis = basis.cpu()[:, valid].double().flatten(1)
    prior = basis @ basis.T + ridge * len(mean) * torch.eye(len(basis), dtype=torch.float64)
    shape = mean.expand_as(target)
    for _ in range(FIT_ROUNDS):
        pose = procrustes(shape, target, scale)
        local = (target - pose.translation[..., None, :]) @ pose.rotation
        offset = (local / pose.scale[..., None, None] - mean).flatten(-2)[..., None]
        free = _tangents(shape, scale)  # a small move of the pose, solved for and thrown away
        across = free @ basis.T
        upper = torch.cat([prior.expand(*batch, -1, -1), across.mT], -1)
        system = torch.cat([upper, torch.cat([across, free @ free.mT], -1)], -2)
        moments = torch.cat([basis @ offset, free @ offset], -2)
        solution = torch.cholesky_solve(moments, torch.linalg.cholesky(system))
        coefficients = solution[..., : len(basis), 0]
        shape = mean + (coefficients @ basis).unflatten(-1, mean.shape)
    sizes = [len(model.identity_basis), len(model.expression_basis)]
    identity, expression = coefficients.to(points).split(sizes, -1)
    return identity, expression * model.expression_std.to(points), pose


def _tangents(shape: Float[Tensor, "*b n 3"], scale: bool) -> Float[Tensor, "*b k n*3"]:
    """How the points move as they are shifted, turned and, if wished, scaled: six or seven rows."""
    points = shape[..., None, :, :]
    axes = torch.eye(3, dtype=shape.dtype)[:, None].expand(*shape.shape[:-2], 3, shape.shape[-2], 3)
    rows = [axes, torch.linalg.cross(axes, points.expand_as(axes))]
    return torch.cat([*rows, points] if scale else rows, -3).flatten(-2)
