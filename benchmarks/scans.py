"""Faces against scans: crop, alignment, and the distance of every scanned point to the face."""

import math
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm import tqdm

from benchmarks.base import MILLIMETRES, Benchmark, ErrorMesh, Metric, Results, Summary, shown
from benchmarks.metrics import error_curve
from benchmarks.predictions import FaceMesh, check_unit, common_landmarks
from core.align import procrustes
from core.errors import DataError
from core.registration import Closest, ClosestPoints, point_to_plane, register

MIN_POINTS = 100  # of a cropped scan
CURVE_MM = 5.0  # how far the curves go
ERRORS = {
    "rmse": "point to plane, root mean square",
    "mean": "point to plane, mean",
    "point": "point to point, mean",
    "point_rmse": "point to point, root mean square",
}

Scale = Literal["mesh", "global", "none"]
Faces = Callable[[str], FaceMesh]
"""A sample's name to the predicted face in millimetres; DataError where there is none."""


@dataclass(frozen=True)
class ScanProtocol:
    """How a face is compared with a scan; papers differ in all of this.

    Args:
        crop_mm: scanned vertices within this Euclidean distance of the nose tip count.
        scale: "mesh", each face may change its size (Deng et al. 2019, MGCNet); "none", rigid; or
            "global", one size for all: the geometric mean of those that fit each face.
        symmetric: mean of the errors from scan to face and from the face's vertices within the crop
            to the scan (GANFit), of which holes, vertices that are NaN, are no part; otherwise from
            scan to face only.
        trim: the fraction of points, those farthest away, that the alignment does not look at.

    Raises:
        DataError: the crop is empty, or trim no fraction.
    """

    crop_mm: float = 95.0
    scale: Scale = "mesh"
    symmetric: bool = False
    trim: float = 0.0

    def __post_init__(self) -> None:
        if not self.crop_mm > 0 or not 0 <= self.trim < 1:
            raise DataError(
                f"crop_mm is {self.crop_mm} and trim {self.trim}; wanted a crop above 0 and a "
                "fraction in [0, 1)"
            )

    def __str__(self) -> str:
        sizes = {
            "mesh": "similarity with a scale for each mesh",
            "global": "rigid after one scale for all meshes",
            "none": "rigid, no scale",
        }
        trimmed = f" on the nearest {100 * (1 - self.trim):g} %" if self.trim else ""
        ways = "mean of both directions" if self.symmetric else "each scanned vertex to the face"
        return (
            f"Scan cropped to {self.crop_mm:g} mm around the nose tip; landmarks, then "
            f"point-to-plane ICP{trimmed}: {sizes[self.scale]}; error of {ways}."
        )


USUAL = ScanProtocol()
"""Of Deng et al. 2019 and MGCNet."""


def scan_errors(
    scan: FaceMesh, face: FaceMesh, protocol: ScanProtocol, scale: bool
) -> dict[str, float]:
    """The errors of one face in mm, by the names in ``ERRORS``, and the scale that was found.

    Args:
        scan: millimetres.
        face: moves onto the scan.
        protocol: its ``scale`` is not looked at.
        scale: whether the face may change its size.

    Raises:
        DataError: too little of the scan is in the crop, or the landmarks cannot be compared.
        ValueError: NaN, no surface, or landmarks on one line.
    """
    return compare(scan, face, protocol, scale)[0]


def compare(
    scan: FaceMesh, face: FaceMesh, protocol: ScanProtocol, scale: bool
) -> tuple[dict[str, float], ErrorMesh]:
    """``scan_errors``, and the cropped scan with each point's distance to the face's planes."""
    near_tip = within(scan, scan.nose_tip, protocol.crop_mm)
    points = scan.vertices[near_tip].double()
    theirs, ours = common_landmarks(scan, face)
    start = procrustes(ours.double(), theirs.double(), scale)
    mesh = ClosestPoints(face.vertices, face.triangles)
    pose = register(mesh, points, start, scale, trim=protocol.trim).pose
    near = mesh.moved(pose, points)
    errors = _errors(points, near)
    picture = error_mesh(scan, near_tip, point_to_plane(points, near))
    if protocol.symmetric:
        moved = FaceMesh(pose.apply(face.vertices.double()), face.triangles, face.landmarks)
        points = cropped(moved, scan.nose_tip, protocol.crop_mm)
        back = _errors(points, _measured(scan)(points))
        errors = {name: (value + back[name]) / 2 for name, value in errors.items()}
    return errors | {"scale": float(pose.scale)}, picture


def _measured(scan: FaceMesh) -> ClosestPoints:
    """The surface of a scan without its holes."""
    known = scan.vertices.isfinite().all(-1)
    vertices = scan.vertices.where(known[:, None], 0)
    return ClosestPoints(vertices, scan.triangles[known[scan.triangles].all(-1)])


def error_mesh(mesh: FaceMesh, rows: Bool[Tensor, " n"], error: Float[Tensor, " m"]) -> ErrorMesh:
    """The part of a mesh in which errors are known, those of its m vertices in ``rows``."""
    new = rows.cumsum(0) - 1
    kept = mesh.triangles[rows[mesh.triangles].all(-1)]
    return ErrorMesh(mesh.vertices[rows].float(), new[kept], error.float())


def cropped(mesh: FaceMesh, centre: Float[Tensor, "3"], radius: float) -> Float[Tensor, "m 3"]:
    """The vertices ``within`` a distance of a point, float64."""
    return mesh.vertices[within(mesh, centre, radius)].double()


def within(mesh: FaceMesh, centre: Float[Tensor, "3"], radius: float) -> Bool[Tensor, " n"]:
    """Which vertices are within a distance of a point; those that are NaN, as scans mark holes,
    are not.

    Raises:
        DataError: they are fewer than 100.
    """
    near = (mesh.vertices.double() - centre.double()).norm(dim=-1) < radius
    if near.sum() < MIN_POINTS:
        raise DataError(f"fewer than {MIN_POINTS} vertices within {radius:g} mm of the nose tip")
    return near


def _errors(points: Tensor, near: Closest) -> dict[str, float]:
    plane = point_to_plane(points, near)
    return {
        "rmse": float(plane.square().mean().sqrt()),
        "mean": float(plane.mean()),
        "point": float(near.distance.mean()),
        "point_rmse": float(near.distance.square().mean().sqrt()),
    }


class MeshBenchmark(Benchmark):
    """What also scores meshes that somebody else made.

    Attributes:
        needs_landmarks: of these meshes.
    """

    needs_landmarks = True

    @abstractmethod
    def score(self, faces: Faces) -> Results:
        """Score faces of any topology.

        Raises:
            AssetNotFoundError, DataError: the data are not there, or not what the protocol says.
        """


def part_results(
    benchmark: str,
    protocol: str,
    names: list[str],
    parts: dict[str, str],
    errors: dict[str, dict[str, float]],
    **rest: Any,
) -> Results:
    """Results of which each metric is the mean error of a part of the face, mm.

    Args:
        benchmark: its name.
        protocol: see ``Results``.
        names: of all samples.
        parts: what each is, by its name.
        errors: of the samples that have one, by the part's name.
        rest: of ``Results``: failures, meshes, note.
    """
    per_sample = {f"{part}_mm": errors[part] for part in parts}
    values = {
        key: torch.tensor([found.get(name, math.nan) for name in names], dtype=torch.float64)
        for key, found in per_sample.items()
    }
    return Results(
        benchmark,
        protocol,
        [
            Metric(key, MILLIMETRES, meaning, Summary.of(values[key]))
            for key, meaning in zip(per_sample, parts.values(), strict=True)
        ],
        len(names),
        per_sample=per_sample,
        curves={key: error_curve(found, CURVE_MM) for key, found in values.items()},
        **rest,
    )


class ScanBenchmark(MeshBenchmark):
    """Faces against scans in millimetres; subclasses say which samples there are.

    Args:
        protocol: how they are compared.
        progress: show a bar.
    """

    def __init__(self, protocol: ScanProtocol, progress: bool) -> None:
        self.protocol, self.progress = protocol, progress

    @abstractmethod
    def samples(self) -> dict[str, list[str]]:
        """Names of the samples by group, as "indoor"; each group has its own metrics.

        Raises:
            AssetNotFoundError, DataError: the data are not there, or not as many as they should be.
        """

    @abstractmethod
    def scans(self, sample: str) -> list[FaceMesh]:
        """The scans of a sample, millimetres; the error is that of the nearest one.

        Raises:
            DataError: one is missing or damaged; in words that fit several samples.
        """

    def score(self, faces: Faces) -> Results:
        """Score faces of any topology.

        Raises:
            AssetNotFoundError, DataError: see ``samples``.
        """
        groups = self.samples()
        failures: dict[str, list[str]] = defaultdict(list)
        size, note = 1.0, ""
        if self.protocol.scale == "global":
            size = self._common_size(groups, faces)
            note = f"The one scale is {size:.4f}."
        scale = self.protocol.scale == "mesh"
        table, per_sample, curves = [], {}, {}
        meshes: dict[str, ErrorMesh] = {}
        for group, names in groups.items():
            looked_at, found = shown(names), {}
            for name, errors, mesh in self._each(
                names, faces, failures, scale, size, f"{self.name} {group}"
            ):
                found[name] = errors
                if name in looked_at:
                    meshes[name] = mesh
            for key, meaning in ERRORS.items():
                values = {name: errors[key] for name, errors in found.items()}
                metric = f"{group}_{key}_mm"
                summary = Summary.of(torch.tensor(list(values.values()), dtype=torch.float64))
                table.append(Metric(metric, MILLIMETRES, f"{group}: {meaning}", summary))
                per_sample[metric] = values
            rmse = [found[name]["rmse"] if name in found else math.nan for name in names]
            curves[f"{group}_rmse_mm"] = error_curve(torch.tensor(rmse), CURVE_MM)
        count = sum(map(len, groups.values()))
        text = f"{self.describe()} {self.protocol} Mean ± population std over the samples."
        return Results(
            self.name,
            text,
            table,
            count,
            dict(failures),
            per_sample=per_sample,
            curves=curves,
            note=note,
            meshes=meshes,
        )

    @abstractmethod
    def describe(self) -> str:
        """Which data: the beginning of the protocol."""

    def _each(
        self,
        names: list[str],
        faces: Faces,
        failures: dict[str, list[str]],
        scale: bool,
        size: float,
        title: str,
    ) -> Iterable[tuple[str, dict[str, float], ErrorMesh]]:
        """Samples with their errors and a picture; those without are in ``failures``."""
        for name in tqdm(names, desc=title, unit="mesh", disable=not self.progress):
            try:
                scans = self.scans(name)
                for scan in scans:
                    check_unit(scan)
            except ValueError as error:  # DataError is one
                failures[f"scan: {error}"].append(name)
                continue
            try:
                face = faces(name)
                check_unit(face)
                face = face.scaled(size)
                found = [compare(scan, face, self.protocol, scale) for scan in scans]
            except ValueError as error:
                failures[str(error)].append(name)
                continue
            yield name, *min(found, key=lambda pair: pair[0]["rmse"])

    def _common_size(self, groups: dict[str, list[str]], faces: Faces) -> float:
        """The geometric mean of the scales that fit each face; 1 if none can be fitted."""
        unreported: dict[str, list[str]] = defaultdict(list)  # they fail again when scored
        names = [name for group in groups.values() for name in group]
        found = self._each(names, faces, unreported, True, 1.0, f"{self.name} size")
        logs = [math.log(errors["scale"]) for _, errors, _ in found]
        return math.exp(sum(logs) / len(logs)) if logs else 1.0
