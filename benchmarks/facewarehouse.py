"""FaceWarehouse: faces with expressions from photographs, vertex by vertex."""

import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm import tqdm

from benchmarks.base import ErrorMesh, Predict, Results, require_folder, shown
from benchmarks.predictions import (
    OUTER_EYES,
    FaceMesh,
    check_unit,
    common_landmarks,
    read_landmark_vertices,
    read_mesh,
)
from benchmarks.scans import MIN_POINTS, Faces, MeshBenchmark, error_mesh, part_results
from benchmarks.views import FaceFinder, Views, lookup
from core.align import procrustes
from core.crop import MARGIN
from core.errors import DataError
from core.face_models.correspondence import Correspondence, Mesh, correspond
from core.image_files import read_image

TESTERS = [f"Tester_{k}" for k in range(1, 10)]
POSES = range(20)
REGIONS = {"s": 60.0, "l": 85.0}  # mm around the nose tip of the first neutral face: our own
FIVE = 5  # landmarks: the centres of the eyes, not their corners
LICENCE = "research only, by a signed form of Zhejiang University"


class FaceWarehouse(MeshBenchmark):
    """FaceWarehouse (Cao et al. 2014), the protocol of Tewari et al. 2018 as far as it is public.

    On disk, for each tester 20 expressions, of which the first is neutral::

        Tester_1/TrainingPose/pose_0.obj     11,510 vertices, 11,400 quads, always the same ones
        Tester_1/TrainingPose/pose_0.png     the photograph, 640 x 480

    Texture coordinates of the .obj lead into the photograph: column u * 639, row v * 479 from the
    top. The unit of the meshes is about decimetres.

    Protocol. 9 people x 20 expressions = 180 meshes, one photograph each. Every vertex of the
    region has a fixed corresponding point on the predicted topology, found once on the first
    neutral face (``core.face_models.correspondence``). A similarity is solved on the region S; the
    error is the mean Euclidean distance over S, and over the larger L; mean and standard deviation
    over the 180 meshes. Tewari's testers, region and map are not public: ours are the first nine
    testers, and the vertices within 60 mm (S) and 85 mm (L) of the nose tip, so that figures
    compare only with each other.

    Args:
        root: of the data set.
        testers: names; the default stands for Tewari's nine.
        landmark_vertices: text file of the 68 or 5 vertices of the data set's topology (0-based)
            that are landmarks; otherwise the landmarks of the first neutral photograph are carried
            over by the texture coordinates.
        image_landmarks: folder with Tester_1/pose_0.npy or .txt and so on; otherwise the detector
            looks for the face.
        unit_to_mm: of the data set's meshes; otherwise such that the outer corners of the neutral
            faces' eyes are 90 mm apart on the average.
        image_size: side of the crops of photographs, pixels: what the method takes.
        crop_margin: side of these in units of the landmarks' box: that of the training.
        progress: show a bar.
    """

    name = "facewarehouse"

    def __init__(
        self,
        root: Path,
        testers: list[str] | None = None,
        landmark_vertices: Path | None = None,
        image_landmarks: Path | None = None,
        unit_to_mm: float | None = None,
        image_size: int = 256,
        crop_margin: float = MARGIN,
        progress: bool = True,
    ) -> None:
        self.root, self.testers = root, testers or TESTERS
        self.landmark_vertices, self.unit_to_mm = landmark_vertices, unit_to_mm
        self.views = Views(FaceFinder(image_landmarks), image_size, crop_margin)
        self.progress = progress

    def samples(self) -> list[str]:
        """Tester_1/pose_0 and so on, 20 of each tester.

        Raises:
            AssetNotFoundError: there is no such folder.
            DataError: an .obj is missing, or there are not 180 with the default testers.
        """
        require_folder(
            "FaceWarehouse",
            self.root,
            "Ask for it at kunzhou.net/zjugaps/facewarehouse and give the folder of Tester_1.",
            LICENCE,
        )
        names = [f"{tester}/pose_{pose}" for tester in self.testers for pose in POSES]
        missing = [name for name in names if not self._path(name, ".obj").is_file()]
        if missing:
            raise DataError(f"'{self.root}' lacks {len(missing)} of {len(names)}: {missing[:5]}")
        return names

    def run(self, predict: Predict) -> Results:
        """Score a predictor on the photographs; it gets "1 1 3 s s".

        Raises:
            AssetNotFoundError, DataError: see ``samples``; or there is no detector.
        """
        files = ((name, [(name, self._path(name, ".png"))]) for name in self.samples())
        found = self.views.predict(predict, files)
        return self.score(lambda sample: lookup(found, sample))

    def score(self, faces: Faces) -> Results:
        """Score faces of one topology, whichever it is.

        Raises:
            AssetNotFoundError, DataError: see ``samples``; or the landmarks of the data set are not
                known.
        """
        names = self.samples()
        rows, unit = self._landmarks_and_unit()
        failures: dict[str, list[str]] = defaultdict(list)
        comparison = self._comparison(faces, rows, unit)
        found: dict[str, dict[str, float]] = {region: {} for region in REGIONS}
        looked_at, meshes = shown(names), {}
        for name in tqdm(names, desc=self.name, unit="mesh", disable=not self.progress):
            try:
                true = self._true(name, rows, unit)
                _check_true(true)
                face = faces(name)
                check_unit(face)
                if isinstance(comparison, DataError):
                    raise comparison
                distance = comparison.distances(true, face)
                for region, part in comparison.regions.items():
                    found[region][name] = float(distance[part].mean())
                if name in looked_at:
                    meshes[name] = comparison.picture(true, distance)
            except ValueError as error:
                failures[str(error)].append(name)
        protocol = (
            f"{len(names)} meshes of {len(self.testers)} testers ({self.testers[0]} to "
            f"{self.testers[-1]}, stand-ins), one photograph each; 1 unit of the data set = "
            f"{unit:.4g} mm. Corresponding points by a map made on the first neutral face; a "
            "similarity on "
            "region S; mean Euclidean distance of vertices. Mean ± population std over the meshes."
        )
        parts = {
            region: f"region {region.upper()}, {radius:g} mm around the nose tip"
            for region, radius in REGIONS.items()
        }
        return part_results(
            self.name,
            protocol,
            names,
            parts,
            found,
            failures=dict(failures),
            note="" if isinstance(comparison, DataError) else comparison.coverage,
            meshes=meshes,
        )

    def _comparison(self, faces: Faces, rows: Tensor, unit: float) -> "_Comparison | DataError":
        """By the first tester's neutral face, or the next one's if it cannot be compared."""
        for tester in self.testers:
            name = f"{tester}/pose_{POSES[0]}"
            try:
                true, face = self._true(name, rows, unit), faces(name)
                _check_true(true)
                check_unit(face)
                return _Comparison(true, face)
            except ValueError as error:
                reason = error
        return DataError(f"no neutral face gives corresponding points; the last one: {reason}")

    def _path(self, name: str, suffix: str) -> Path:
        tester, pose = name.split("/")
        return self.root / tester / "TrainingPose" / f"{pose}{suffix}"

    def _true(self, name: str, rows: Tensor, unit: float) -> FaceMesh:
        vertices, triangles = read_mesh(self._path(name, ".obj"))
        if int(rows.max()) >= len(vertices):
            raise DataError("the true mesh has fewer vertices than its landmarks name")
        return FaceMesh(vertices * unit, triangles, vertices[rows] * unit)

    def _landmarks_and_unit(self) -> tuple[Tensor, float]:
        first = f"{self.testers[0]}/pose_{POSES[0]}"
        if self.landmark_vertices is not None:
            rows = read_landmark_vertices(self.landmark_vertices)
            if len(rows) not in (68, FIVE):
                raise DataError(f"'{self.landmark_vertices}' holds {len(rows)}, wanted 68 or 5")
        else:
            image = read_image(self._path(first, ".png")).float() / 255
            points = self.views.finder(first, image)
            rows = vertices_at(
                self._path(first, ".obj").read_bytes(), points, (image.shape[-2], image.shape[-1])
            )
        if self.unit_to_mm is not None:
            return rows, self.unit_to_mm
        if len(rows) == FIVE:
            raise DataError("five landmarks do not tell the outer eye corners: give unit_to_mm")
        neutral = [self._true(f"{t}/pose_{POSES[0]}", rows, 1.0).landmarks for t in self.testers]
        apart = torch.stack([points[45] - points[36] for points in neutral]).norm(dim=-1)
        return rows, OUTER_EYES / float(apart.mean())


def _check_true(true: FaceMesh) -> None:
    """Raise DataError if the data set's meshes have another unit than was said."""
    try:
        check_unit(true)
    except DataError as error:
        raise DataError(f"the data set's {str(error).partition(':')[0]}: see unit_to_mm") from error


class _Comparison:
    """A predicted topology against that of the data set, by corresponding points.

    Args:
        true: a neutral face of the data set.
        face: the same, predicted.
    """

    def __init__(self, true: FaceMesh, face: FaceMesh) -> None:
        theirs, ours = common_landmarks(true, face)
        self.map: Correspondence = correspond(
            Mesh(true.vertices.numpy(), true.triangles.numpy()),
            theirs.numpy(),
            Mesh(face.vertices.double().numpy(), face.triangles.numpy()),
            ours.double().numpy(),
        )
        self.triangles = face.triangles
        valid = torch.from_numpy(self.map.valid)
        distance = (true.vertices - true.nose_tip).norm(dim=-1)
        inside = {name: distance < radius for name, radius in REGIONS.items()}
        self.regions: dict[str, Bool[Tensor, " n"]] = {k: valid & x for k, x in inside.items()}
        parts = [f"{int(self.regions[k].sum())} of {int(x.sum())}" for k, x in inside.items()]
        self.coverage = f"Vertices with a corresponding point: S {parts[0]}, L {parts[1]}."
        count = int(self.regions["s"].sum())
        if count < MIN_POINTS:
            raise DataError(f"only {count} vertices of region S have a corresponding point")

    def distances(self, true: FaceMesh, face: FaceMesh) -> Float[Tensor, " n"]:
        """From each vertex of the data set to its corresponding point, mm.

        Raises:
            DataError: the face has another topology than the first one.
        """
        same = torch.equal(face.triangles, self.triangles)
        if len(face.vertices) != self.map.target_vertices or not same:
            raise DataError(
                f"the predicted mesh ({len(face.vertices)} vertices) has another topology than the "
                f"first one ({self.map.target_vertices}); they must correspond"
            )
        points = self.map.apply(face.vertices.double())
        s = self.regions["s"]
        moved = procrustes(points[s], true.vertices[s]).apply(points)
        return (moved - true.vertices).norm(dim=-1)

    def picture(self, true: FaceMesh, distance: Float[Tensor, " n"]) -> ErrorMesh:
        """The larger region."""
        rows = self.regions["l"]
        return error_mesh(true, rows, distance[rows])


def vertices_at(obj: bytes, points: Float[Tensor, "k 2"], size: tuple[int, int]) -> torch.Tensor:
    """The vertices of an .obj whose texture coordinates lie nearest to pixels of its photograph.

    Args:
        obj: content of the file, with faces v/vt.
        points: pixels, origin at the top left corner of the image.
        size: of the photograph, (height, width).

    Raises:
        DataError: it has no texture coordinates.
    """
    texture = re.findall(rb"^vt[ \t]+(\S+)[ \t]+(\S+)", obj, re.MULTILINE)
    corners = re.findall(rb"(\d+)/(\d+)", b" ".join(re.findall(rb"^f[ \t].*$", obj, re.MULTILINE)))
    if not texture or not corners:
        raise DataError("the .obj has no texture coordinates: give landmark_vertices")
    uv, pairs = np.array(texture, np.float64), np.array(corners, np.int64) - 1
    height, width = size
    pixels = uv[pairs[:, 1]] * [width - 1, height - 1] + 0.5
    near = torch.cdist(points.double(), torch.from_numpy(pixels)).argmin(1)
    return torch.from_numpy(pairs[:, 0])[near]
