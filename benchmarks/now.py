"""NoW: neutral faces from photographs against scans, and files to be submitted."""

import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm import tqdm

from benchmarks.base import MILLIMETRES, Metric, Predict, Results, Summary, require_folder, shown
from benchmarks.metrics import error_curve
from benchmarks.predictions import FaceMesh, check_unit, read_mesh, seven_points, write_obj
from benchmarks.scans import Faces, MeshBenchmark, error_mesh, within
from benchmarks.views import FaceFinder, Views, lookup
from core.align import procrustes
from core.crop import MARGIN
from core.errors import DataError
from core.registration import ClosestPoints, register

LISTING, SUBJECTS = "imagepathsvalidation.txt", 20
PICTURES = ("final_release_version/iphone_pictures", "iphone_pictures")
CENTRE, RADIUS = 0.3, 1.4  # of the crop; NoW's own
RIGHT_OUTER, RIGHT_INNER, LEFT_INNER, LEFT_OUTER, NOSE = range(5)  # of the seven landmarks
TOLERANCE = 1e-9  # relative change of the root mean square distance, so that it is the least
CURVE_MM = 7.0  # how far the curve goes
LICENCE = "non-commercial research only, of the Max Planck Society"


class NoW(MeshBenchmark):
    """NoW (Sanyal et al., "Learning to Regress 3D Face Shape and Expression", CVPR 2019).

    On disk (``iphone_pictures`` may also lie in ``root``)::

        final_release_version/iphone_pictures/<subject>/<challenge>/IMG_0001.jpg
        imagepathsvalidation.txt           <subject>/<challenge>/IMG_0001.jpg, one a line
        scans/<subject>/<any>.obj          millimetres
        scans_lmks_onlypp/<subject>/<any>.pp     its seven landmarks (MeshLab)

    Protocol. Neutral faces. A similarity by the seven landmarks; the scan is cropped around a point
    above the lower end of the nose, with a radius by the face's size; rotation, translation and
    size are refined so that the mean square distance from the scan's vertices to the mesh is least;
    median, mean and std of these distances over all vertices of all images together. No
    reflections, unlike NoW's own code. A failed image is left out, while NoW's server wants all.

    The test scans are not public: with ``listing`` all its images are failures, but ``export`` is
    what the server wants: <export>/<subject>/<challenge>/IMG_0001.obj and .npy with (7, 3).

    Args:
        root: of the data set.
        listing: of the images, as imagepathstest.txt; otherwise that of the validation, which must
            be of 20 subjects.
        export: folder to write the meshes and landmarks to.
        image_landmarks: folder with <subject>/<challenge>/IMG_0001.npy or .txt; otherwise the
            detector looks for the face.
        image_size: side of the crops of photographs, pixels: what the method takes.
        crop_margin: side of these in units of the landmarks' box: that of the training.
        progress: show a bar.
    """

    name = "now"

    def __init__(
        self,
        root: Path,
        listing: Path | None = None,
        export: Path | None = None,
        image_landmarks: Path | None = None,
        image_size: int = 256,
        crop_margin: float = MARGIN,
        progress: bool = True,
    ) -> None:
        self.root, self.listing, self.export = root, listing, export
        self.views = Views(FaceFinder(image_landmarks), image_size, crop_margin)
        self.progress = progress

    def samples(self) -> dict[str, Path]:
        """<subject>/<challenge>/IMG_0001 and so on, with the paths of the photographs.

        Raises:
            AssetNotFoundError: there is no such folder.
            DataError: the list is missing or of another number of people.
        """
        require_folder(
            "NoW", self.root, "Get it from now.is.tue.mpg.de and give its folder as root.", LICENCE
        )
        path = self.root / LISTING if self.listing is None else self.listing
        try:
            lines = path.read_text(encoding="utf-8").split()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"the list of images '{path}' cannot be read: {error}") from error
        names = [line.strip("/") for line in lines]
        subjects = {name.partition("/")[0] for name in names}
        if any(name.count("/") != 2 for name in names) or len(set(names)) < len(names):
            raise DataError(f"'{path}' shall hold <subject>/<challenge>/<image>, each once")
        if not names or (self.listing is None and len(subjects) != SUBJECTS):
            raise DataError(
                f"'{path}' names {len(names)} images of {len(subjects)} subjects, wanted "
                f"{SUBJECTS}; complete it, or give another listing"
            )
        folders = [self.root / place for place in PICTURES]
        folder = next((folder for folder in folders if folder.is_dir()), folders[0])
        return {name.rpartition(".")[0]: folder / name for name in names}

    def run(self, predict: Predict) -> Results:
        """Score a predictor on the photographs; it gets "1 1 3 s s".

        Raises:
            AssetNotFoundError, DataError: see ``samples``; or there is no detector.
        """
        files = ((name, [(name, path)]) for name, path in self.samples().items())
        found = self.views.predict(predict, files, neutral=True)
        return self.score(lambda sample: lookup(found, sample))

    def score(self, faces: Faces) -> Results:
        """Score neutral faces of any topology.

        Raises:
            AssetNotFoundError, DataError: see ``samples``.
        """
        names = list(self.samples())
        failures: dict[str, list[str]] = defaultdict(list)
        found: dict[str, Tensor] = {}
        looked_at, meshes = shown(names), {}
        for name in tqdm(names, desc=self.name, unit="mesh", disable=not self.progress):
            try:
                face = faces(name)
                check_unit(face)
                if self.export is not None:
                    write_obj(self.export / f"{name}.obj", face)
                    np.save(self.export / f"{name}.npy", seven_points(face).numpy())
                scan = self._scan(name.partition("/")[0])
                rows = crop(scan)
                found[name] = scan_to_mesh_mm(scan.vertices[rows], seven_points(scan), face).float()
                if name in looked_at:
                    meshes[name] = error_mesh(scan, rows, found[name])
            except ValueError as error:  # DataError is one
                failures[str(error)].append(name)
        challenges = sorted({name.split("/")[1] for name in names})
        groups = {"all": list(found)}
        groups |= {c: [name for name in found if name.split("/")[1] == c] for c in challenges}
        table = [
            Metric(
                f"{group}_mm",
                MILLIMETRES,
                f"{group.replace('_', ' ')}: scanned vertices to the mesh",
                _pooled([found[name] for name in part]),
            )
            for group, part in groups.items()
        ]
        pooled = table[0].value
        middle = Summary(pooled.median, None, pooled.median, pooled.n)
        table.append(Metric("all_median_mm", MILLIMETRES, "all: their median", middle))
        people = len({name.partition("/")[0] for name in names})
        protocol = (
            f"{len(names)} images of {people} subjects in '{(self.listing or Path(LISTING)).name}';"
            " similarity by seven landmarks, refined on the cropped scan; distances of its vertices"
            " to the mesh; mean, population std and median over the vertices of all images "
            "together, n counts images."
        )
        distances = torch.cat([torch.zeros(0), *found.values()])
        return Results(
            self.name,
            protocol,
            table,
            len(names),
            dict(failures),
            per_sample={"mean_mm": {name: float(d.mean()) for name, d in found.items()}},
            curves={"vertices_mm": error_curve(distances, CURVE_MM)} if len(distances) else {},
            meshes=meshes,
        )

    def _scan(self, subject: str) -> FaceMesh:
        """Raises DataError if it is missing or damaged, in words that fit several subjects."""
        meshes = sorted((self.root / "scans" / subject).glob("*.obj"))
        points = sorted((self.root / "scans_lmks_onlypp" / subject).glob("*.pp"))
        if not meshes or not points:
            raise DataError("scan: there is no .obj or .pp")
        try:
            mesh = FaceMesh(*read_mesh(meshes[0]), read_pp(points[0]))
            check_unit(mesh)
        except DataError as error:
            text = str(error).replace(f"'{meshes[0]}'", "its .obj")
            raise DataError(f"scan: {text}") from error
        return mesh


def crop(scan: FaceMesh) -> Bool[Tensor, " n"]:
    """Which vertices of a scan, in millimetres, NoW compares.

    Raises:
        DataError: they are too few, or landmarks are missing.
    """
    points = seven_points(scan).double()
    eyes, nose = (points[RIGHT_INNER] + points[LEFT_INNER]) / 2, points[NOSE]
    size = (points[RIGHT_OUTER] - points[LEFT_OUTER]).norm() + (eyes - nose).norm()
    return within(scan, nose + CENTRE * (eyes - nose), float(RADIUS * size / 2))


def scan_to_mesh_mm(
    points: Float[Tensor, "n 3"], landmarks: Float[Tensor, "7 3"], face: FaceMesh
) -> Float[Tensor, " n"]:
    """NoW's distances from the vertices of the cropped scan to a face that is aligned with it.

    Args:
        points: these vertices, millimetres.
        landmarks: of the scan.
        face: any unit and pose.

    Raises:
        DataError: landmarks are missing.
        ValueError: NaN, no surface, or landmarks on one line.
    """
    points, start = points.double(), procrustes(seven_points(face).double(), landmarks.double())
    mesh = ClosestPoints(face.vertices, face.triangles)
    pose = register(mesh, points, start).pose  # quickly near to the least
    pose = register(mesh, points, pose, planes=False, tolerance=TOLERANCE).pose
    return mesh.moved(pose, points).distance


def read_pp(path: Path) -> Float[Tensor, "7 3"]:
    """The seven points of a MeshLab file.

    Raises:
        DataError: it cannot be read or holds something else; its message names no file.
    """
    try:
        tags = re.findall(r"<point\b[^>]*>", path.read_text(encoding="utf-8"))
        values = [[re.search(rf'\b{axis}="([^"]+)"', tag) for axis in "xyz"] for tag in tags]
        rows = [[float(match[1]) for match in row if match] for row in values]
        points = np.array(rows, np.float64)
    except (OSError, ValueError) as error:
        raise DataError("its .pp cannot be read") from error
    if points.shape != (7, 3) or not np.isfinite(points).all():
        raise DataError(f"its .pp holds points of shape {points.shape}, wanted (7, 3)")
    return torch.from_numpy(points)


def _pooled(distances: list[Tensor]) -> Summary:
    """Over all vertices; n counts images."""
    if not distances:
        return Summary(None, None, None, 0)
    values = torch.cat(distances).double()
    median = float(np.median(values.numpy()))  # torch.quantile refuses so many
    return Summary(float(values.mean()), float(values.std(correction=0)), median, len(distances))
