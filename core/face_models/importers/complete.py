"""From the parts that somebody's files give to a whole face model, with stated stand-ins.

What is missing comes from the built-in head, by a correspondence of the two surfaces (similarity
and smooth warp from the landmarks, then closest points): regions, the 68 landmarks where only some
points are named, and, where a model has no albedo, the mean albedo and albedo modes of the built-in
head without its hair, which is the stand-in. A model without a UV map gets the built-in head's kind
of map, azimuth and elevation seen from inside the head, on which the triangles that others hide
come last; one without a mirror map the nearest vertex to each one's mirror image. Each of these is
written into the model's ``notes``.
"""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree

from core.align import procrustes
from core.errors import DataError
from core.face_models.correspondence import Mesh, correspond, landmarks_from
from core.face_models.importers.raw import Kind, Parts
from core.face_models.model import EXTENT, VERSION, load_face_model
from core.face_models.procedural.head_layout import directions_of, uv_of
from core.face_models.procedural.head_surface import CENTRE
from core.landmarks import MIRROR
from core.rasterize import rasterize
from core.uv import uncut

HOLE = 0.03  # of the vertices: patches up to this that the face surrounds belong to it (nostrils)
MAP_SIZE = (1024, 1024)  # texels, to see what hides what
REGIONS = ("face", "skin", "eyes", "brows", "nose", "lips")  # taken over from the built-in head


def complete(parts: Parts, kind: Kind, variant: str) -> dict[str, np.ndarray]:
    """All arrays of ``core.face_models.model``'s .npz.

    Raises:
        DataError: the parts do not fit together, or are no face in our frame.
    """
    _check(parts)
    head = load_face_model("procedural")
    notes = list(parts.notes)
    reference = Mesh(head.mean.numpy(), head.triangles.numpy())
    reference_landmarks = head.landmarks(head.mean).numpy()
    mesh = Mesh(parts.mean, parts.triangles)
    if parts.landmarks is not None:
        corners, weights = parts.landmarks
    else:
        groups, points = parts.seeds or ([], np.zeros((0, 3)))
        named = np.stack([reference_landmarks[list(group)].mean(0) for group in groups])
        mesh = _outwards(mesh, points.mean(0), notes)
        corners, weights = landmarks_from(reference, reference_landmarks, named, mesh, points)
        notes.append(f"landmarks: from the built-in head's, by {len(groups)} named points")
    landmarks = (parts.mean[corners] * weights[..., None]).sum(1)
    mesh = _outwards(mesh, landmarks.mean(0), notes)

    link = correspond(mesh, landmarks, reference, reference_landmarks)
    flags = torch.stack([head.region(name) for name in REGIONS], -1).float()
    inside = (link.apply(flags).numpy() > 0.5) & link.valid[:, None]
    regions = dict(zip(REGIONS, inside.T, strict=True))
    regions["face"] = _filled(regions["face"], mesh.triangles)
    regions |= parts.regions
    albedo_mean, albedo_basis = parts.albedo_mean, parts.albedo_basis
    stand_ins = []
    if albedo_mean is None or albedo_basis is None:
        bald = link.valid & (link.apply(head.region("scalp").float()[:, None])[:, 0].numpy() == 0)
        nearest = np.flatnonzero(bald)[KDTree(parts.mean[bald]).query(parts.mean)[1]]
        albedo_mean, albedo_basis = (
            link.apply(values)[..., nearest, :].numpy()
            for values in (head.albedo_mean, head.albedo_basis)
        )
        stand_ins = ["albedo_mean", "albedo_basis"]
        notes.append(
            "albedo: a stand-in, the built-in head's without hair, carried over by correspondence"
        )
    uv = parts.uv
    if uv is None:
        uv, radius = _angles(parts.mean, landmarks, reference_landmarks)
        mesh = Mesh(mesh.vertices, _outer_first(uv, radius, mesh.triangles))
        notes.append("uv: azimuth and elevation seen from inside the head")
    mirror = parts.mirror
    if mirror is None:
        mirror = KDTree(parts.mean).query(parts.mean * [-1, 1, 1])[1]
        notes.append("mirror: the vertex nearest to the mirror image, not one to one")
    arrays = {
        "version": np.array(VERSION),
        "name": np.array(variant),
        "source": np.array(f"{kind.title}; {kind.source}"),
        "licence": np.array(kind.licence),
        "notes": np.array(notes, str),
        "stand_ins": np.array(stand_ins, "U20"),
        "mean": parts.mean,
        "triangles": mesh.triangles.astype(np.int64),
        "identity_basis": parts.identity_basis,
        "expression_basis": parts.expression_basis,
        "expression_names": np.array(parts.expression_names),
        "albedo_mean": albedo_mean,
        "albedo_basis": albedo_basis,
        "uv": uv,
        "mirror": mirror.astype(np.int64),
        "landmark_vertices": corners.astype(np.int64),
        "landmark_weights": weights.astype(np.float32),
        **{f"region_{name}": flag for name, flag in regions.items()},
    }
    if parts.expression_std is not None:
        arrays["expression_std"] = parts.expression_std
    if parts.contour is not None:
        arrays["contour_vertices"], arrays["contour_weights"] = parts.contour
    floats = [key for key, array in arrays.items() if array.dtype.kind == "f"]
    return arrays | {key: arrays[key].astype(np.float32, copy=False) for key in floats}


def _check(parts: Parts) -> None:
    """Raise DataError unless the mean is a mesh of finite points, of a head's size."""
    mean = parts.mean
    extent = float(np.ptp(mean, axis=0).max()) if np.isfinite(mean).all() else np.nan
    if not (EXTENT[0] <= extent <= EXTENT[1] and len(parts.triangles)):
        raise DataError(
            f"the mean of {len(mean)} vertices and {len(parts.triangles)} triangles measures "
            f"{extent:.4g} mm along its longest side (nan: some are not finite), wanted "
            f"{EXTENT[0]:g} to {EXTENT[1]:g}; the file is damaged or has another unit"
        )


def _outwards(mesh: Mesh, centre: Float[np.ndarray, "3"], notes: list[str]) -> Mesh:
    """The mesh with its triangles counter-clockwise seen from before the face.

    Raises:
        DataError: neither way: the triangles do not agree.
    """
    a, b, c = (mesh.vertices[mesh.triangles[:, k]] for k in range(3))
    before = (np.abs(a - centre)[:, :2] < 40).all(1) & (a[:, 2] > centre[2] - 30)
    area = np.cross(b - a, c - a)[before, 2]
    share = (area * (area > 0)).sum() / max(np.abs(area).sum(), 1e-12)
    if 0.2 < share < 0.8:
        raise DataError(
            f"{share:.0%} of the triangles' area before the face looks forwards, wanted nearly all "
            "(or none: then they are turned); vertices and triangles do not belong together"
        )
    if share > 0.5:
        return mesh
    notes.append("triangles: were clockwise, turned")
    return Mesh(mesh.vertices, mesh.triangles[:, [0, 2, 1]])


def _filled(
    inside: Bool[np.ndarray, " n"], triangles: Int[np.ndarray, "t 3"]
) -> Bool[np.ndarray, " n"]:
    """A region with the small patches of the mesh that it surrounds."""
    a, b = triangles.ravel(), np.roll(triangles, -1, 1).ravel()
    ends, times = np.unique(np.sort(np.stack([a, b], -1), 1), axis=0, return_counts=True)
    out = ~inside[a] & ~inside[b]
    links = coo_matrix((np.ones(out.sum()), (a[out], b[out])), (len(inside), len(inside)))
    patch = connected_components(links, directed=False)[1]
    alone = np.setdiff1d(np.arange(len(inside)), triangles)
    open_ones = np.isin(patch, patch[np.append(ends[times == 1], alone)])  # they reach the border
    return inside | (np.bincount(patch)[patch] <= HOLE * len(inside)) & ~open_ones


def _angles(
    points: Float[np.ndarray, "n 3"],
    landmarks: Float[np.ndarray, "68 3"],
    reference: Float[np.ndarray, "68 3"],
) -> tuple[Float[np.ndarray, "n 2"], Float[np.ndarray, " n"]]:
    """The built-in head's map of angles, for a head that its landmarks bring to the same place.

    Also how far each vertex is from the point from which the angles are seen, mm.
    """
    even = (landmarks + landmarks[list(MIRROR)] * [-1, 1, 1]) / 2  # so that x = 0 stays there
    own, wanted, mesh = (torch.from_numpy(p.astype(float)) for p in (even, reference, points))
    placed = procrustes(own, wanted).apply(mesh).numpy()
    uv = uv_of(directions_of(placed * np.where(placed[:, :1] < 0, [-1, 1, 1], 1)))
    uv[placed[:, 0] < 0, 0] = 1 - uv[placed[:, 0] < 0, 0]
    return uv, np.linalg.norm(placed - CENTRE, axis=1)


def _outer_first(
    uv: Float[np.ndarray, "n 2"],
    radius: Float[np.ndarray, " n"],
    triangles: Int[np.ndarray, "t 3"],
) -> Int[np.ndarray, "t 3"]:
    """Those that others hide (eyeballs behind lids, the mouth behind lips) after these.

    Because of triangles that overlap on the map, ``uv_grid`` takes the first.
    """
    depth = 1 - radius / radius.max()
    clip = torch.from_numpy(np.column_stack([2 * uv - 1, depth, np.ones(len(uv))]))
    kept = uncut(uv, triangles)
    seen = rasterize(clip[None], torch.from_numpy(triangles[kept]), MAP_SIZE, "cpu")
    index = seen.triangle_index.unique().numpy()
    shown = kept[index[index >= 0]]
    hidden = np.setdiff1d(np.arange(len(triangles)), shown)
    return triangles[np.concatenate([shown, hidden])]
