"""Faces against scans: crop, alignment, and the distance of every scanned point to the face."""

import math
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from benchmarks.base import MILLIMETRES, Benchmark, Metric, Results, Summary
from benchmarks.predictions import FaceMesh, check_unit, common_landmarks
from core.align import procrustes
from core.errors import DataError
from core.registration import Closest, ClosestPoints, point_to_plane, register

MIN_POINTS = 100  # of a cropped scan
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
            to the scan (GANFit); otherwise from scan to face only.
        trim: the fraction of points, those farthest away, that the alignment does not look at.
    """

    crop_mm: float = 95.0
    scale: Scale = "mesh"
    symmetric: bool = False
    trim: float = 0.0

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
    points = cropped(scan, scan.nose_tip, protocol.crop_mm)
    theirs, ours = common_landmarks(scan, face)
    start = procrustes(ours.double(), theirs.double(), scale)
    mesh = ClosestPoints(face.vertices, face.triangles)
    pose = register(mesh, points, start, scale, trim=protocol.trim).pose
    errors = _errors(points, mesh.moved(pose, points))
    if protocol.symmetric:
        moved = FaceMesh(pose.apply(face.vertices.double()), face.triangles, face.landmarks)
        points = cropped(moved, scan.nose_tip, protocol.crop_mm)
        back = _errors(points, ClosestPoints(scan.vertices, scan.triangles)(points))
        errors = {name: (value + back[name]) / 2 for name, value in errors.items()}
    return errors | {"scale": float(pose.scale)}


def cropped(mesh: FaceMesh, centre: Float[Tensor, "3"], radius: float) -> Float[Tensor, "m 3"]:
    """The vertices within a distance of a point, float64.

    Raises:
        DataError: they are fewer than 100.
    """
    vertices = mesh.vertices.double()
    vertices = vertices[vertices.isfinite().all(-1)]  # scans mark holes so
    near = vertices[(vertices - centre.double()).norm(dim=-1) < radius]
    if len(near) < MIN_POINTS:
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
    """What also scores meshes that somebody else made."""

    @abstractmethod
    def score(self, faces: Faces) -> Results:
        """Score faces of any topology.

        Raises:
            AssetNotFoundError, DataError: the data are not there, or not what the protocol says.
        """


class ScanBenchmark(MeshBenchmark):
    """Faces against scans in millimetres; subclasses say which samples there are.

    Args:
        protocol: how they are compared.
        progress: show a bar.
    """

    def __init__(self, protocol: ScanProtocol, progress: bool) -> None:
        if not protocol.crop_mm > 0 or not 0 <= protocol.trim < 1:
            raise ValueError(f"crop_mm must be positive and trim in [0, 1); got {protocol}")
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
            note = f" The one scale is {size:.4f}."
        scale = self.protocol.scale == "mesh"
        table, per_sample = [], {}
        for group, names in groups.items():
            found = dict(self._each(names, faces, failures, scale, size, f"{self.name} {group}"))
            for key, meaning in ERRORS.items():
                values = {name: errors[key] for name, errors in found.items()}
                metric = f"{group}_{key}_mm"
                summary = Summary.of(torch.tensor(list(values.values()), dtype=torch.float64))
                table.append(Metric(metric, MILLIMETRES, f"{group}: {meaning}", summary))
                per_sample[metric] = values
        count = sum(map(len, groups.values()))
        text = f"{self.describe()} {self.protocol}{note} Mean ± population std over the samples."
        return Results(self.name, text, table, count, dict(failures), per_sample=per_sample)

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
    ) -> Iterable[tuple[str, dict[str, float]]]:
        """Samples with their errors; those without are in ``failures``."""
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
                errors = [scan_errors(scan, face, self.protocol, scale) for scan in scans]
            except ValueError as error:
                failures[str(error)].append(name)
                continue
            yield name, min(errors, key=lambda e: e["rmse"])

    def _common_size(self, groups: dict[str, list[str]], faces: Faces) -> float:
        """The geometric mean of the scales that fit each face; 1 if none can be fitted."""
        unreported: dict[str, list[str]] = defaultdict(list)  # they fail again when scored
        names = [name for group in groups.values() for name in group]
        found = self._each(names, faces, unreported, True, 1.0, f"{self.name} size")
        logs = [math.log(errors["scale"]) for _, errors in found]
        return math.exp(sum(logs) / len(logs)) if logs else 1.0
