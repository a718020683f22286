"""REALY: regions of faces from photographs against scans, and files to be submitted."""

import json
import shutil
from collections import defaultdict
from pathlib import Path

import numpy as np
import scipy.sparse
import torch
from jaxtyping import Float, Int
from scipy.sparse.linalg import splu
from torch import Tensor
from tqdm import tqdm

from benchmarks.base import ErrorMesh, Predict, Results, require_folder, shown
from benchmarks.predictions import SEVEN, FaceMesh, check_unit, read_mesh, write_obj
from benchmarks.scans import Faces, MeshBenchmark, part_results
from benchmarks.views import FaceFinder, Views, lookup
from core.align import Similarity, procrustes
from core.crop import MARGIN
from core.errors import AssetNotFoundError, DataError
from core.registration import ClosestPoints

SUBJECTS, KEYPOINTS = 100, 85
REGIONS = {
    "nose": (*range(27, 36),),
    "mouth": (*range(48, 61), 64),
    "forehead": (*range(36, 48), *range(17, 27)),
    "cheek": (*range(48, 61), 64, 76, 77, 36, 41, 40, 39, 42, 47, 46, 45, 7, 8, 9),
}
"""Keypoints that hold each region, of the 85, of which the first 68 are iBUG's."""
KEYPOINT_SHARE = {"cheek": 0.25}  # weight of all keypoints / that of all vertices; otherwise 1
ROUNDS, TOLERANCE = 100, 1e-6  # of the rigid alignment
STIFFNESS = (100.0, 30.0, 10.0, 3.0, 1.0)  # ours: weight of an edge's stretching / of a distance
BENDS = 3  # ours: rounds at each stiffness
SUFFIXES = (".jpg", ".png", ".jpeg", ".bmp")
LICENCE = "of the Headspace dataset, by a signed agreement"


class REALY(MeshBenchmark):
    """REALY (Chai et al., "REALY: Rethinking the Evaluation of 3D Face Reconstruction", ECCV 2022).

    On disk (1 ... 100)::

        REALY_image/1.jpg                               the photographs; also .png
        REALY_scan_region/1/nose.obj, mouth.obj, forehead.obj, cheek.obj
        REALY_HIFI3D_keypoints/1.obj                    85 vertices
        metrical_scale.txt                              100 numbers: millimetres of a scan's unit

    Protocol. A similarity by seven keypoints; then for each region on its own a rigid alignment of
    the prediction to the scan by closest points and the region's keypoints; then the scan's region
    is bent towards the prediction to tell which point corresponds to which; error: mean distance of
    the scan's vertices to the corresponding points, mm. Mean, std and median over the subjects.
    How a region is bent is our own (displacements that are smooth over its edges, less and less
    stiff, to the closest points), so figures near those of REALY's own code are to be expected, not
    the same ones.

    Keypoints of the predictions: by ``template``, or the 68 landmarks, which are without the two in
    the cheeks (76 and 77).

    Args:
        root: of the data set.
        template: REALY's barycentric file of the predictions' topology, as data/BFM09.txt: JSON, 85
            times [triangle, weight of its first corner, of its second].
        export: folder to write <subject>.obj and the template to: what REALY's authors want.
        subjects: names to score these only; otherwise there must be 100.
        image_landmarks: folder with 1.npy or .txt and so on; otherwise the detector looks for the
            face.
        image_size: side of the crops of photographs, pixels: what the method takes.
        crop_margin: side of these in units of the landmarks' box: that of the training.
        progress: show a bar.
    """

    name = "realy"

    def __init__(
        self,
        root: Path,
        template: Path | None = None,
        export: Path | None = None,
        subjects: list[str] | None = None,
        image_landmarks: Path | None = None,
        image_size: int = 256,
        crop_margin: float = MARGIN,
        progress: bool = True,
    ) -> None:
        self.root, self.template, self.export, self.subjects = root, template, export, subjects
        self.views = Views(FaceFinder(image_landmarks), image_size, crop_margin)
        self.progress = progress
        self.needs_landmarks = template is None

    def samples(self) -> list[str]:
        """1 ... 100.

        Raises:
            AssetNotFoundError: there is no such folder.
            DataError: subjects are missing.
        """
        require_folder(
            "REALY", self.root, "Ask for it at realy3dface.com and give its folder.", LICENCE
        )
        folders = (self.root / "REALY_scan_region").glob("*")
        found = [path.name for path in folders if path.name.isdecimal()]
        chosen = sorted(
            found if self.subjects is None else self.subjects, key=lambda n: (len(n), n)
        )
        missing = sorted(set(chosen) - set(found))
        if missing or not chosen or (self.subjects is None and len(found) != SUBJECTS):
            raise DataError(
                f"'{self.root}' holds {len(found)} subjects in REALY_scan_region, wanted "
                f"{SUBJECTS}; missing {missing[:5] or 'some'}; complete it, or give subjects"
            )
        return chosen

    def run(self, predict: Predict) -> Results:
        """Score a predictor on the photographs; it gets "1 1 3 s s".

        Raises:
            AssetNotFoundError, DataError: see ``samples``; or there is no detector.
        """
        files = ((name, [(name, self._photograph(name))]) for name in self.samples())
        found = self.views.predict(predict, files)
        return self.score(lambda sample: lookup(found, sample))

    def _photograph(self, name: str) -> Path:
        paths = [self.root / "REALY_image" / f"{name}{suffix}" for suffix in SUFFIXES]
        return next((path for path in paths if path.is_file()), paths[0])

    def score(self, faces: Faces) -> Results:
        """Score faces of any topology; with ``template``, of its topology.

        Raises:
            AssetNotFoundError, DataError: see ``samples``; or the template or the list of scales is
                missing or damaged.
        """
        names = self.samples()
        scales = read_scales(self.root / "metrical_scale.txt")
        template = None if self.template is None else read_template(self.template)
        failures: dict[str, list[str]] = defaultdict(list)
        found: dict[str, dict[str, float]] = {region: {} for region in (*REGIONS, "all")}
        looked_at, meshes = shown(names), {}
        for name in tqdm(names, desc=self.name, unit="mesh", disable=not self.progress):
            try:
                face = faces(name)
                points = face.landmarks if template is None else at_template(face, template)
                if len(points) < 68:
                    raise DataError(f"{len(points)} landmarks, wanted 68 or a template")
                check_unit(FaceMesh(face.vertices, face.triangles, points[:68]))
                if self.export is not None:
                    self._write(name, face)
                keypoints, regions = self._scan(name, scales)
                distances = region_distances(regions, keypoints, face, points)
            except ValueError as error:  # DataError is one
                failures[str(error)].append(name)
                continue
            errors = {region: float(distance.mean()) for region, distance in distances.items()}
            for region, value in errors.items():
                found[region][name] = value
            found["all"][name] = sum(errors.values()) / len(errors)
            if name in looked_at:
                meshes[name] = picture(regions, distances)
        held = "the 68 landmarks" if self.template is None else f"'{self.template.name}'"
        protocol = (
            f"{len(names)} subjects; similarity by seven keypoints, then for each region rigid ICP "
            f"with keypoints ({held}), corresponding points by bending the scan's region (our "
            "own); mean distance. Mean ± population std over the subjects."
        )
        parts = {region: region for region in REGIONS} | {"all": "mean of the four regions"}
        return part_results(
            self.name, protocol, names, parts, found, failures=dict(failures), meshes=meshes
        )

    def _write(self, name: str, face: FaceMesh) -> None:
        assert self.export is not None
        write_obj(self.export / f"{name}.obj", face)
        if self.template is not None:
            shutil.copy(self.template, self.export)

    def _scan(
        self, name: str, scales: Float[np.ndarray, " s"]
    ) -> tuple[Float[Tensor, "85 3"], dict[str, FaceMesh]]:
        """Keypoints and regions of a scan, millimetres.

        Raises:
            DataError: a file is missing or damaged, in words that fit several subjects.
        """
        number = int(name)
        if not 1 <= number <= len(scales):
            raise DataError("scan: it has no line in metrical_scale.txt")
        scale = float(scales[number - 1])
        try:
            keypoints, _ = read_mesh(self.root / "REALY_HIFI3D_keypoints" / f"{name}.obj")
            keypoints = keypoints * scale
            if len(keypoints) != KEYPOINTS:
                raise DataError(f"scan: it has {len(keypoints)} keypoints, wanted {KEYPOINTS}")
            empty = keypoints[:0]
            check_unit(FaceMesh(empty, empty.long(), keypoints[:68]))
            folder = self.root / "REALY_scan_region" / name
            meshes = {region: read_mesh(folder / f"{region}.obj") for region in REGIONS}
        except OSError as error:
            raise DataError("scan: a file of it is missing") from error
        except DataError as error:
            known = str(error).startswith("scan: ")
            told = error if known else f"scan: {str(error).replace(str(self.root), '')}"
            raise DataError(str(told)) from error
        points = keypoints[:68]
        return keypoints, {r: FaceMesh(v * scale, t, points) for r, (v, t) in meshes.items()}


def region_distances(
    regions: dict[str, FaceMesh],
    keypoints: Float[Tensor, "85 3"],
    face: FaceMesh,
    points: Float[Tensor, "k 3"],
) -> dict[str, Float[Tensor, " _"]]:
    """Distances of the vertices of a scan's regions to the corresponding points of a face, mm.

    Args:
        regions: of the scan, millimetres.
        keypoints: of the scan, millimetres.
        face: any unit and pose.
        points: its first k keypoints, k at least 68.

    Raises:
        ValueError: NaN, no surface, or keypoints on one line.
    """
    seven = list(SEVEN)
    start = procrustes(points[seven].double(), keypoints[seven].double())
    moved = start.apply(face.vertices.double())
    mesh, points = ClosestPoints(moved, face.triangles), start.apply(points.double())
    distances = {}
    for name, region in regions.items():
        if not region.vertices.isfinite().all() or not len(region.triangles):
            raise DataError(f"scan: its {name} has NaN or infinite vertices, or no triangles")
        rows = [row for row in REGIONS[name] if row < len(points)]
        share = KEYPOINT_SHARE.get(name, 1.0)
        pose = hold(mesh, region.vertices, points[rows], keypoints[rows].double(), share)
        near = bend(mesh, pose, region)
        distances[name] = (near - region.vertices).norm(dim=-1)
    return distances


def picture(regions: dict[str, FaceMesh], distances: dict[str, Float[Tensor, " _"]]) -> ErrorMesh:
    """All regions in one mesh, beside or upon each other."""
    starts = np.cumsum([0, *(len(region.vertices) for region in regions.values())]).tolist()
    triangles = [r.triangles + start for r, start in zip(regions.values(), starts, strict=False)]
    return ErrorMesh(
        torch.cat([region.vertices for region in regions.values()]).float(),
        torch.cat(triangles),
        torch.cat([distances[name] for name in regions]).float(),
    )


def hold(
    mesh: ClosestPoints,
    region: Float[Tensor, "n 3"],
    points: Float[Tensor, "k 3"],
    keypoints: Float[Tensor, "k 3"],
    share: float,
) -> Similarity:
    """The rigid motion of a mesh onto a scan's region, by closest points and by keypoints.

    Args:
        mesh: what moves.
        region: vertices of the scan.
        points: keypoints of the mesh.
        keypoints: the same of the scan.
        share: weight of all keypoints together / that of all vertices.
    """
    repeated = max(1, int(share * len(region) / len(points)))
    ours, theirs = points.repeat(repeated, 1), torch.cat([region, keypoints.repeat(repeated, 1)])
    one = torch.ones((), dtype=torch.float64)
    pose, last = Similarity(one, torch.eye(3).double(), torch.zeros(3).double()), torch.inf
    for _ in range(ROUNDS):
        near = mesh((region - pose.translation) @ pose.rotation).points
        pose = procrustes(torch.cat([near, ours]), theirs, scale=False)
        moved = pose.apply(torch.cat([near, ours]))
        error = float((moved - theirs).norm(dim=-1).mean())
        if abs(last - error) < TOLERANCE:
            break
        last = error
    return pose


def bend(mesh: ClosestPoints, pose: Similarity, region: FaceMesh) -> Float[Tensor, "n 3"]:
    """The points of a moved mesh that correspond to a region's vertices.

    Displacements d of the vertices minimise |y + d - closest point|^2 + stiffness * the sum over
    edges of |d_i - d_j|^2, for smaller and smaller stiffness.
    """
    vertices, count = region.vertices, len(region.vertices)
    edges = torch.cat([region.triangles[:, [a, b]] for a, b in ((0, 1), (1, 2), (2, 0))])
    edges = edges.sort(1).values.unique(dim=0).numpy()
    rows, columns = np.concatenate([edges, edges[:, ::-1]]).T
    links = scipy.sparse.csc_matrix((np.ones(len(rows)), (rows, columns)), (count, count))
    laplacian = scipy.sparse.diags(np.asarray(links.sum(1)).ravel()) - links
    bent = vertices
    for stiffness in STIFFNESS:
        solver = splu((scipy.sparse.identity(count) + stiffness * laplacian).tocsc())
        for _ in range(BENDS):
            offset = mesh.moved(pose, bent).points - vertices
            bent = vertices + torch.from_numpy(solver.solve(offset.numpy()))
    return mesh.moved(pose, bent).points


def read_scales(path: Path) -> Float[np.ndarray, " s"]:
    """The list of scales.

    Raises:
        AssetNotFoundError: there is no such file.
        DataError: it holds something else.
    """
    if not path.is_file():
        raise AssetNotFoundError("metrical_scale.txt of REALY", f"'{path}'", "It is in its data.")
    try:
        scales = np.loadtxt(path, np.float64, ndmin=1).ravel()
    except ValueError as error:
        raise DataError(f"'{path}' shall hold numbers only: {error}") from error
    if not (np.isfinite(scales) & (scales > 0)).all():
        raise DataError(f"'{path}' holds scales that are not positive")
    return scales


def read_template(path: Path) -> tuple[Int[Tensor, "85"], Float[Tensor, "85 3"]]:
    """Triangles of the keypoints and the weights of their corners.

    Raises:
        AssetNotFoundError: there is no such file.
        DataError: it holds something else.
    """
    if not path.is_file():
        raise AssetNotFoundError("template of REALY", f"'{path}'", "REALY's code has some in data.")
    try:
        rows = np.array(json.loads(path.read_text(encoding="utf-8")), np.float64)
    except (ValueError, TypeError) as error:
        raise DataError(f"'{path}' is no list of numbers: {error}") from error
    if rows.shape != (KEYPOINTS, 3) or not np.isfinite(rows).all() or (rows[:, 0] < 0).any():
        raise DataError(f"'{path}' holds {rows.shape}, wanted 85 times [triangle, weight, weight]")
    weights = np.column_stack([rows[:, 1:], 1 - rows[:, 1:].sum(1)])
    return torch.from_numpy(rows[:, 0].astype(np.int64)), torch.from_numpy(weights)


def at_template(
    face: FaceMesh, template: tuple[Int[Tensor, "85"], Float[Tensor, "85 3"]]
) -> Float[Tensor, "85 3"]:
    """The keypoints of a mesh.

    Raises:
        DataError: the template is of another topology.
    """
    triangles, weights = template
    if int(triangles.max()) >= len(face.triangles):
        raise DataError(
            f"the template names triangle {int(triangles.max())}, the mesh has "
            f"{len(face.triangles)}: it is of another topology"
        )
    corners = face.vertices.double()[face.triangles[triangles]]
    return (corners * weights[..., None]).sum(1)
