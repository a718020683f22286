"""ICT-FaceKit light (Li et al. 2020): the only common model that anybody may use and pass on (MIT).

The raw folder is the repository's ``FaceXModel`` (or the repository): centimetres, one .obj for
each shape, all of 26,719 vertices with the same faces (quads and triangles):

* ``generic_neutral_mesh.obj``: the mean, faces and texture coordinates (v up).
* ``identity000.obj`` ...: the mean and one standard deviation of each mode.
* ``browDown_L.obj`` ...: the mean and one full expression; ``vertex_indices.json`` has their names.

Or one packed file ``ict_face.npz`` of the face alone, with the keys vertices, faces, id_deltas,
exp_deltas, exp_names, uv, landmarks68, symmetry.

Variants: ``face`` (the first 9,409 vertices: face, ears, front of the neck; eyes and mouth are
holes) and ``head`` (11,248, the whole head; from the folder only; its own texture coordinates lie
on two tiles, u up to 2, and are not used). ICT-FaceKit light has no albedo: it is a stand-in (see
``complete``).
"""

import json
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from scipy.spatial import KDTree

from core.errors import AssetNotFoundError, DataError
from core.face_models.checks import Shape, check_shape
from core.face_models.files import read_npz
from core.face_models.importers.raw import (
    Kind,
    Parts,
    RawFile,
    RawFolder,
    at_vertices,
    zero_based,
)

VERTICES = {"face": 9409, "head": 11248}  # of a variant: the first so many
FACES = {"face": 9230, "head": 11144}
IDENTITY = 100
ACTIVATION = 0.2  # standard deviation of an expression's weight, as of the built-in head's
CENTIMETRE = 10.0  # millimetres
SYMMETRIC_MM = 1.0  # a vertex's mirror image has its partner so near
ORIGIN = "Clone github.com/ICT-VGL/ICT-FaceKit and give its folder FaceXModel."
NEUTRAL = RawFile(("generic_neutral_mesh.obj", "FaceXModel/generic_neutral_mesh.obj"), ORIGIN)
PACKED = RawFile(("ict_face.npz",), ORIGIN)
PACKED_SHAPES: dict[str, Shape] = {
    "vertices": (None, 3),
    "faces": (None, 3),
    "id_deltas": (None, None, 3),
    "exp_deltas": (None, None, 3),
    "exp_names": (None,),
    "uv": (None, 2),
    "landmarks68": (68,),
    "symmetry": (None,),
}
# The 68 landmarks (ICT-FaceKit's table "Multi-PIE 68 point").
LANDMARKS = (
    1225, 1888, 1052, 367, 1719, 1722, 2199, 1447, 966, 3661, 4390, 3927, 3924, 2608, 3272, 4088,
    3443, 268, 493, 1914, 2044, 1401, 3615, 4240, 4114, 2734, 2509, 978, 4527, 4942, 4857, 1140,
    2075, 1147, 4269, 3360, 1507, 1542, 1537, 1528, 1518, 1511, 3742, 3751, 3756, 3721, 3725, 3732,
    5708, 5695, 2081, 0, 4275, 6200, 6213, 6346, 6461, 5518, 5957, 5841, 5702, 5711, 5533, 6216,
    6207, 6470, 5517, 5966,
)  # fmt: skip


def read(raw: RawFolder, variant: str) -> Parts:
    """The parts of one variant, from the packed file or from the folder of .obj files.

    Raises:
        AssetNotFoundError: a file is missing.
        DataError: a file is not what this module says.
    """
    packed = raw.find_any(PACKED)
    if packed is not None and raw.find_any(NEUTRAL) is None:
        return _packed(packed, variant)
    return _folder(raw.find(NEUTRAL), variant)


KIND = Kind(
    title="ICT-FaceKit light (Li et al. 2020)",
    licence="MIT",
    source="github.com/ICT-VGL/ICT-FaceKit (folder FaceXModel)",
    gives="100 identity, 53 expression modes (ARKit's names), UV map; albedo a stand-in",
    variants=("face", "head"),
    read=read,
)


def _packed(path: Path, variant: str) -> Parts:
    if variant != "face":
        raise DataError(f"'{path}' holds the variant 'face' only, not '{variant}'; {ORIGIN}")
    file = read_npz(path)
    missing = [key for key in PACKED_SHAPES if key not in file]
    if missing:
        raise DataError(f"'{path}' lacks {missing}; it has {sorted(file)}. {ORIGIN}")
    for key, wanted in PACKED_SHAPES.items():
        try:
            check_shape(key, file[key].shape, wanted)
        except DataError as error:
            raise DataError(f"'{path}': {error}. {ORIGIN}") from error
    count = len(file["vertices"])
    return _parts(
        file["vertices"],
        zero_based(file["faces"], count, f"faces of {path.name}", 0),
        file["id_deltas"],
        file["exp_deltas"],
        [str(name) for name in file["exp_names"]],
        file["uv"],
        zero_based(file["landmarks68"], count, f"landmarks68 of {path.name}", 0),
        zero_based(file["symmetry"], count, f"symmetry of {path.name}", 0),
    )


def _folder(neutral: Path, variant: str) -> Parts:
    folder, count = neutral.parent, VERTICES[variant]
    index = folder / "vertex_indices.json"
    if not index.is_file():
        raise AssetNotFoundError("'vertex_indices.json'", f"'{folder}'", ORIGIN, KIND.licence)
    try:
        names = [str(name) for name in json.loads(index.read_text())["expressions"]]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"'{index}' has no list 'expressions': {error}") from error
    mean = _vertices(neutral, count)

    def deltas(names: list[str]) -> Float[np.ndarray, "k n 3"]:
        return np.stack([_vertices(folder / f"{name}.obj", count) - mean for name in names])

    polygons, texture = _polygons(neutral, FACES[variant])
    polygons = zero_based(polygons, count, f"faces of {neutral.name}", 0)
    return _parts(
        mean,
        _triangulated(polygons, mean),
        deltas([f"identity{k:03d}" for k in range(IDENTITY)]),
        deltas(names),
        names,
        texture[:count] if variant == "face" else None,
        np.array(LANDMARKS),
        _mirrored(mean),
    )


def _parts(
    mean: np.ndarray,
    triangles: np.ndarray,
    identity: np.ndarray,
    expression: np.ndarray,
    names: list[str],
    uv: np.ndarray | None,
    landmarks: np.ndarray,
    mirror: np.ndarray,
) -> Parts:
    """From centimetres, v up; the largest expressions first, so that the first are worth most."""
    if uv is not None:
        uv = np.column_stack([uv[:, 0], 1 - uv[:, 1]]).astype(np.float32)
    order = np.square(expression.astype(np.float32)).sum((1, 2)).argsort()[::-1]
    return Parts(
        mean=(CENTIMETRE * mean).astype(np.float32),
        triangles=triangles,
        identity_basis=CENTIMETRE * identity.astype(np.float32),
        expression_basis=CENTIMETRE * expression[order].astype(np.float32),
        expression_names=[names[k] for k in order],
        expression_std=np.full(len(names), ACTIVATION, np.float32),
        landmarks=at_vertices(landmarks),
        uv=uv,
        mirror=mirror,
        notes=[f"expressions: activations in [0, 1], their spread set to {ACTIVATION} by us"],
    )


def _lines(path: Path, start: bytes) -> list[bytes]:
    """The lines of an .obj that begin so, without the beginning."""
    if not path.is_file():
        raise AssetNotFoundError(f"'{path.name}'", f"'{path.parent}'", ORIGIN, KIND.licence)
    cut = len(start)
    return [line[cut:] for line in path.read_bytes().splitlines() if line.startswith(start)]


def _numbers(lines: list[bytes], columns: int, path: Path) -> Float[np.ndarray, "n c"]:
    """Rows of numbers."""
    try:
        return np.array(b" ".join(lines).split(), np.float64).reshape(len(lines), columns)
    except ValueError as error:
        raise DataError(f"'{path}' holds lines without {columns} numbers: {error}") from error


def _vertices(path: Path, count: int) -> Float[np.ndarray, "n 3"]:
    """The first ``count`` vertices."""
    found = _numbers(_lines(path, b"v ")[:count], 3, path)
    if len(found) < count:
        raise DataError(f"'{path}' has {len(found)} vertices, wanted at least {count}. {ORIGIN}")
    return found


def _polygons(path: Path, count: int) -> tuple[Int[np.ndarray, "t 4"], Float[np.ndarray, "n 2"]]:
    """The first faces (a triangle repeats its last corner), and texture coordinates by vertex."""
    texture = _numbers(_lines(path, b"vt "), 2, path)
    faces = [line.split() for line in _lines(path, b"f ")[:count]]
    if len(faces) < count or any(len(face) not in (3, 4) for face in faces):
        raise DataError(f"'{path}' has {len(faces)} faces of 3 or 4 corners, wanted {count}")
    corners = [(*face, face[-1])[:4] for face in faces]
    try:
        pairs = np.array([corner.split(b"/")[:2] for face in corners for corner in face], np.int64)
    except ValueError as error:
        raise DataError(f"'{path}': its faces are not written v/vt: {error}") from error
    vertex = pairs[:, 0] - 1
    at = zero_based(pairs[:, 1], len(texture), f"texture indices of {path.name}")
    uv = np.zeros((int(vertex.max()) + 1, 2))
    uv[vertex[::-1]] = texture[at[::-1]]  # the first face that names a vertex counts
    return vertex.reshape(-1, 4), uv


def _triangulated(
    quads: Int[np.ndarray, "q 4"], points: Float[np.ndarray, "n 3"]
) -> Int[np.ndarray, "t 3"]:
    """Each quad cut along its shorter diagonal; of equal ones from its point nearest to x = 0.

    So that the cuts of the left half are the mirror images of the right half's.
    """
    a, b, c, d = (points[quads[:, k]] for k in range(4))
    first, second = (np.linalg.norm(p - q, axis=1) for p, q in ((a, c), (b, d)))
    nearest = np.abs(points[quads, 0]).argmin(1)
    alike = np.abs(first - second) < 1e-3 * (first + second)
    along_first = np.where(alike, nearest % 2 == 0, first < second)[:, None]
    halves = (
        np.where(along_first, quads[:, [0, 1, 2]], quads[:, [0, 1, 3]]),
        np.where(along_first, quads[:, [0, 2, 3]], quads[:, [1, 2, 3]]),
    )
    found = np.stack(halves, 1).reshape(-1, 3)
    return found[(found[:, 0] != found[:, 2]) & (found[:, 1] != found[:, 2])]


def _mirrored(mean: Float[np.ndarray, "n 3"]) -> Int[np.ndarray, " n"]:
    """The vertex at each one's mirror image."""
    distance, partner = KDTree(mean).query(mean * [-1, 1, 1])
    if CENTIMETRE * distance.max() > SYMMETRIC_MM:
        raise DataError(
            f"generic_neutral_mesh.obj: a vertex's mirror image is "
            f"{CENTIMETRE * distance.max():.2g} mm from the next vertex, wanted at most "
            f"{SYMMETRIC_MM:g}; it is not ICT-FaceKit's neutral mesh"
        )
    return partner
