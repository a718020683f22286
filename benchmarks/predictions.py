"""Face meshes on disk, of any topology: what other programs wrote, and scans.

A folder of predictions holds, for each sample that a benchmark asks for (subject_01/PTZ-Indoor)::

    <sample>.obj, .ply or .npz    a mesh; .npz: vertices (n, 3), triangles (t, 3), 0-based
    <sample>.npy or .txt          its landmarks (68, 3), (7, 3) or (5, 3), in the mesh's frame

or once, instead of all landmark files, ``landmark_vertices.txt``: 68, 7 or 5 vertices, 0-based.
The 68 are iBUG's; the seven are its points 36, 39, 42, 45, 33, 48 and 54 (as in NoW: eye corners
from the subject's right to the left, below the nose, right and left mouth corner); the five are the
right and the left eye, the nose tip, the right and the left mouth corner, sides as the subject's.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from benchmarks.base import require_folder
from core.errors import AssetNotFoundError, DataError
from core.face_models.files import read_npz
from core.landmarks import NOSE_TIP, five_points

SEVEN = (36, 39, 42, 45, 33, 48, 54)
MESHES, LANDMARKS = (".obj", ".ply", ".npz"), (".npy", ".txt")
SHARED = "landmark_vertices.txt"
UNITS = {"mm": 1.0, "cm": 10.0, "dm": 100.0, "m": 1000.0, "um": 1e-3}  # millimetres of each
OUTER_EYES, EYES = 90.0, 63.0  # mm between the outer corners and between the centres, of adults
RANGE = 2.0  # factor by which a face may differ from that before its unit is doubted
BESIDE = 30.0  # mm from the landmarks to the mesh; a coarse one has vertices 10 mm apart
SAME_PLACE = 0.01  # of the landmarks' box: 1.6 pixels of 256 with the usual margin


@dataclass(frozen=True)
class FaceMesh:
    """A face without a known topology.

    Attributes:
        vertices: any frame; the unit is checked where it matters.
        triangles: counter-clockwise seen from outside; none for a cloud of points.
        landmarks: k is 68, 7 or 5, see this module's docstring; or 0 where none are needed.
    """

    vertices: Float[Tensor, "n 3"]
    triangles: Int[Tensor, "t 3"]
    landmarks: Float[Tensor, "k 3"]

    def __post_init__(self) -> None:
        if len(self.landmarks) not in (68, len(SEVEN), 5, 0):
            raise DataError(f"{len(self.landmarks)} landmarks of a mesh, wanted 68, 7 or 5")

    @property
    def nose_tip(self) -> Float[Tensor, "3"]:
        """Where scans are cropped.

        Raises:
            DataError: the seven landmarks do not have it.
        """
        if len(self.landmarks) == len(SEVEN):
            raise DataError("seven landmarks do not tell the nose tip; give 68 or 5")
        return self.landmarks[NOSE_TIP if len(self.landmarks) == 68 else 2]

    def scaled(self, factor: float) -> "FaceMesh":
        """The same, larger."""
        return FaceMesh(self.vertices * factor, self.triangles, self.landmarks * factor)


def common_landmarks(first: FaceMesh, second: FaceMesh) -> tuple[Tensor, Tensor]:
    """The points that two meshes both have, in one order: seven of them, or five.

    Raises:
        DataError: one has the seven and the other the five.
    """
    counts = len(first.landmarks), len(second.landmarks)
    if 5 in counts and len(SEVEN) in counts:
        raise DataError("one mesh has seven landmarks, the other five; give 68, or the same")
    if 5 in counts:
        kept = [
            m.landmarks if len(m.landmarks) == 5 else five_points(m.landmarks)
            for m in (first, second)
        ]
    else:
        kept = [
            m.landmarks if len(m.landmarks) == 7 else m.landmarks[list(SEVEN)]
            for m in (first, second)
        ]
    return kept[0], kept[1]


def check_unit(face: FaceMesh) -> None:
    """Raise DataError unless the eyes are about as far apart as in millimetres, and the landmarks
    lie on the mesh: not so if only one of the two is in another unit or frame.

    Worked number: outer corners 9.1 apart are centimetres.
    """
    count, points = len(face.landmarks), face.landmarks
    right, left = {68: (36, 45), 7: (0, 3), 5: (0, 1)}[count]
    typical = EYES if count == 5 else OUTER_EYES
    distance = float((points[left] - points[right]).norm())
    if not distance > 0:  # also NaN
        raise DataError("the eyes' landmarks are in one place, or NaN")
    fitting = [u for u, mm in UNITS.items() if 1 / RANGE < distance * mm / typical < RANGE]
    if fitting == ["mm"]:
        _check_together(face)
        return
    guess = f"looks like {fitting[0]}: give unit={fitting[0]}" if fitting else "is in no known unit"
    what = "eyes" if count == 5 else "outer eye corners"
    raise DataError(f"{what} {_rounded(distance)} apart, in mm about {typical:g}: the mesh {guess}")


def _check_together(face: FaceMesh) -> None:
    known = face.vertices[face.vertices.isfinite().all(-1)].double()
    if not len(known):
        return
    apart = (
        torch.cdist(face.landmarks.double(), known).amin(1).nanmedian()
    )  # a mesh may lack the jaw
    if not apart < BESIDE:
        raise DataError(
            f"the landmarks lie {_rounded(float(apart))} mm beside the mesh: it is in another unit "
            "or frame than they"
        )


def _rounded(value: float) -> str:
    """To one digit, so that equal mistakes read equal."""
    return f"about {float(f'{value:.0e}'):g}"


class MeshFolder:
    """The predictions in a folder, by the sample's name.

    Args:
        folder: see this module's docstring.
        unit: of the meshes: mm, cm, dm, m or um; they come out in millimetres.
        landmarks: whether the benchmark needs them; otherwise the meshes come out without.

    Raises:
        AssetNotFoundError: there is no such folder.
        DataError: there is no such unit, or no mesh in the folder.
    """

    def __init__(self, folder: Path, unit: str = "mm", landmarks: bool = True) -> None:
        require_folder("predictions", folder, "Give the folder of meshes and landmarks.")
        if unit not in UNITS:
            raise DataError(f"unknown unit '{unit}', wanted one of {', '.join(UNITS)}")
        if not any(path.suffix in MESHES for path in folder.rglob("*")):
            raise DataError(
                f"'{folder}' holds no mesh ({', '.join(MESHES)}); wanted is one for each sample, "
                "with its landmarks: benchmarks/predictions.py says how they are named"
            )
        self.folder, self.unit, self.landmarks = folder, unit, landmarks
        shared = folder / SHARED
        self.shared = read_landmark_vertices(shared) if shared.is_file() else None

    def __call__(self, sample: str) -> FaceMesh:
        """A predicted face, millimetres.

        Raises:
            DataError: it is missing or damaged; its message names no file, so that equal failures
                of several samples read equal.
        """
        mesh = _existing(self.folder, sample, MESHES)
        if mesh is None:
            raise DataError("there is no predicted mesh")
        try:
            vertices, triangles = read_mesh(mesh)
        except DataError as error:
            reason = str(error).replace(f"'{mesh}'", f"the {mesh.suffix}")
            raise DataError(f"the predicted mesh cannot be read: {reason}") from error
        if not vertices.isfinite().all():
            raise DataError("the predicted mesh has NaN or infinite vertices")
        landmarks = self._landmarks(sample, vertices)
        return FaceMesh(vertices, triangles, landmarks).scaled(UNITS[self.unit])

    def _landmarks(self, sample: str, vertices: Tensor) -> Tensor:
        if not self.landmarks:
            return vertices[:0]
        path = _existing(self.folder, sample, LANDMARKS)
        if path is not None:
            try:
                return read_points(path)
            except DataError as error:
                raise DataError(
                    "the predicted landmarks cannot be read, or are not (k, 3)"
                ) from error
        if self.shared is None:
            raise DataError("the predicted mesh has no landmarks")
        if int(self.shared.max()) >= len(vertices):
            raise DataError(
                f"{SHARED} names vertex {int(self.shared.max())}, the mesh has {len(vertices)}"
            )
        return vertices[self.shared]


def _existing(folder: Path, sample: str, suffixes: tuple[str, ...]) -> Path | None:
    paths = [folder / f"{sample}{suffix}" for suffix in suffixes]
    return next((path for path in paths if path.is_file()), None)


def read_landmark_vertices(path: Path) -> Int[Tensor, " k"]:
    """Vertices of 68, 7 or 5 landmarks from a text file.

    Raises:
        AssetNotFoundError: there is no such file.
        DataError: it holds something else.
    """
    if not path.is_file():
        raise AssetNotFoundError("list of landmark vertices", f"'{path}'", "Write it, 0-based.")
    try:
        indices = np.loadtxt(path, dtype=np.int64, ndmin=1)
    except ValueError as error:
        raise DataError(f"'{path}' shall hold whole numbers only: {error}") from error
    if indices.shape not in ((68,), (7,), (5,)) or indices.min() < 0:
        raise DataError(f"'{path}' holds {indices.shape}, wanted 68, 7 or 5 vertices (0-based)")
    return torch.from_numpy(indices)


def read_points(path: Path) -> Float[Tensor, "k 3"]:
    """Points from .npy (k, 3) or a text file of k lines.

    Raises:
        DataError: it holds something else.
    """
    try:
        points = np.load(path, allow_pickle=False) if path.suffix == ".npy" else np.loadtxt(path)
        points = np.asarray(points, np.float64)
    except (ValueError, TypeError, EOFError, OSError) as error:
        raise DataError(f"'{path}' holds no points: {error}") from error
    if points.ndim != 2 or points.shape[1] != 3:
        raise DataError(f"'{path}' holds an array of shape {points.shape}, wanted (k, 3)")
    return torch.from_numpy(points)


def read_mesh(path: Path) -> tuple[Float[Tensor, "n 3"], Int[Tensor, "t 3"]]:
    """Vertices, in the order of the file and none merged, and triangles of .obj, .ply or .npz.

    Polygons become fans of triangles.

    Raises:
        OSError: the file is not there or may not be opened.
        DataError: it is no such mesh.
    """
    try:
        if path.suffix == ".obj":
            vertices, triangles = _obj(path.read_bytes())
        elif path.suffix == ".npz":
            arrays = read_npz(path)
            vertices, triangles = arrays["vertices"], arrays["triangles"]
        else:
            vertices, triangles = _ply(path)
        vertices, triangles = np.asarray(vertices, np.float64), np.asarray(triangles, np.int64)
    except OSError:
        raise
    except Exception as error:  # trimesh's parsers raise a dozen kinds on damaged files
        raise DataError(f"'{path}' is no readable mesh: {error}") from error
    n = len(vertices)
    if (
        vertices.ndim != 2
        or triangles.ndim != 2
        or vertices.shape[1:] + triangles.shape[1:] != (3, 3)
    ):
        raise DataError(
            f"'{path}': vertices {vertices.shape} and triangles {triangles.shape}, wanted (n, 3) "
            "and (t, 3)"
        )
    if not n or (len(triangles) and not 0 <= triangles.min() <= triangles.max() < n):
        raise DataError(
            f"'{path}': no vertices, or triangles of vertices that are not among {n} (0-based)"
        )
    return torch.from_numpy(vertices), torch.from_numpy(triangles)


def _ply(path: Path) -> tuple[np.ndarray, np.ndarray]:
    import trimesh

    mesh: Any = trimesh.load(path, process=False)  # a mesh, or a cloud of points
    triangles = mesh.faces if isinstance(mesh, trimesh.Trimesh) else np.empty((0, 3), np.int64)
    return np.asarray(mesh.vertices), np.asarray(triangles)


def _obj(text: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Positions and corners; texture coordinates, normals and colours are skipped."""
    lines = re.findall(rb"^[ \t]*v[ \t]+(.+?)\s*$", text, re.MULTILINE)
    columns = len(lines[0].split()) if lines else 0
    numbers = np.array(b" ".join(lines).split(), np.float64)
    vertices = numbers.reshape(len(lines), columns)[:, :3]
    faces = re.findall(rb"^[ \t]*f[ \t]+(.+?)\s*$", text, re.MULTILINE)
    corners = re.sub(rb"/\S*", b"", b"\n".join(faces)).split(b"\n") if faces else []
    by_count: dict[int, list[bytes]] = {}
    for line in corners:
        by_count.setdefault(line.count(b" ") + 1, []).append(line)
    polygons = [
        np.array(b" ".join(group).split(), np.int64).reshape(len(group), -1)
        for group in by_count.values()
    ]
    if any((polygon < 1).any() for polygon in polygons):
        raise DataError("faces that count vertices from the end are not read")
    return vertices, fans([polygon - 1 for polygon in polygons])


def fans(polygons: list[np.ndarray]) -> np.ndarray:
    """Triangles of polygons, given in groups of equal corners (m, k), k >= 3."""
    parts = [np.empty((0, 3), np.int64)]
    for group in polygons:
        parts += [group[:, [0, k, k + 1]] for k in range(1, group.shape[1] - 1)]
    return np.concatenate(parts)


def write_obj(path: Path, mesh: FaceMesh) -> None:
    """Write vertices and triangles as .obj, in the mesh's own unit; missing folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as stream:
        np.savetxt(stream, mesh.vertices.cpu().numpy(), "v %.6f %.6f %.6f")
        np.savetxt(stream, mesh.triangles.cpu().numpy() + 1, "f %d %d %d")


def seven_points(mesh: FaceMesh) -> Float[Tensor, "7 3"]:
    """Eye corners from the subject's right to the left, below the nose, mouth corners.

    Raises:
        DataError: the mesh does not have them.
    """
    if len(mesh.landmarks) not in (68, len(SEVEN)):
        raise DataError(f"{len(mesh.landmarks)} landmarks of a mesh, wanted 68 or 7")
    return mesh.landmarks if len(mesh.landmarks) == len(SEVEN) else mesh.landmarks[list(SEVEN)]


def landmark_vertices(
    seen: Float[Tensor, "f n 2"], landmarks: Float[Tensor, "f 68 2"], depth: Float[Tensor, " n"]
) -> Int[Tensor, "68"]:
    """The vertices of a mesh that lie nearest to its 68 landmarks, which are known in images only.

    Of the vertices that are seen nearly as near as the nearest one, on the average over the images,
    the frontmost is taken, so that none is on the back of the head. The jaw's landmarks may slide
    along the mesh; their vertices mean little.

    Args:
        seen: where the vertices are in each image, pixels.
        landmarks: pixels.
        depth: z of the vertices in the model frame.
    """
    return frontmost(landmark_distances(seen, landmarks) / len(seen), depth)


def landmark_distances(
    seen: Float[Tensor, "f n 2"], landmarks: Float[Tensor, "f 68 2"]
) -> Float[Tensor, "68 n"]:
    """Distances of a mesh's vertices to its landmarks in images, the sum over these.

    Their unit is the longer side of the landmarks' box.
    """
    total = torch.zeros(68, seen.shape[1], dtype=seen.dtype)
    for vertices, wanted in zip(seen, landmarks, strict=True):  # one by one, for the memory's sake
        total += torch.cdist(wanted, vertices) / (wanted.amax(0) - wanted.amin(0)).amax()
    return total


def frontmost(distance: Float[Tensor, "68 n"], depth: Float[Tensor, " n"]) -> Int[Tensor, "68"]:
    """Of the vertices nearest to each landmark, and those nearly as near, the frontmost.

    Args:
        distance: mean over the images, in units of the landmarks' box.
        depth: z of the vertices in the model frame.
    """
    near = distance <= distance.amin(1, keepdim=True) + SAME_PLACE
    return depth.expand_as(near).masked_fill(~near, -torch.inf).argmax(1)
