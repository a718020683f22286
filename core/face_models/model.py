"""FaceModel: a linear 3D morphable model (3DMM) read from one .npz.

    S = mean + identity_basis a_id + expression_basis a_exp    (PGN 1, CEST 5, Deng 1, MGCNet 1)
    T = albedo_mean + albedo_basis a_alb

Keys of the .npz (n vertices, t triangles; no pickled objects):

| key                 | dtype, shape       | meaning |
|---------------------|--------------------|---------|
| version             | int, ()            | 1 |
| name, source, licence | str, ()          | what it is, where it comes from, under which terms |
| mean                | float32 (n, 3)     | millimetres, model frame; 100 to 500 long |
| triangles           | int (t, 3)         | counter-clockwise seen from outside |
| identity_basis      | float32 (ki, n, 3) | millimetres per standard deviation |
| expression_basis    | float32 (ke, n, 3) | mm per standard deviation, or per full blendshape |
| expression_names    | str (ke,)          | optional |
| expression_std      | float32 (ke,)      | optional: spread of the activations; 1 by default |
| albedo_mean         | float32 (n, 3)     | RGB in [0, 1] |
| albedo_basis        | float32 (ka, n, 3) | RGB per standard deviation |
| uv                  | float32 (n, 2)     | [0, 1], v down |
| mirror              | int (n,)           | index of the mirrored vertex |
| landmark_vertices   | int (68, 3)        | a landmark is the weighted mean of three vertices |
| landmark_weights    | float32 (68, 3)    | rows sum to 1 |
| region_<name>       | bool (n,)          | at least ``face``: what is rendered and scored |
| contour_vertices    | int (17, k, 3)     | optional: where the jaw's points may slide to |
| contour_weights     | float32 (17, k, 3) | optional: of these vertices |
| notes               | str (m,)           | optional: what is approximate in this model |
| stand_ins           | str (s,)           | optional: keys that are not the model's own |
"""

from functools import lru_cache
from math import prod
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from core.errors import AssetNotFoundError, DataError
from core.face_models.files import read_npz
from core.precision import at_least_float32, without_autocast

VERSION = 1
KEPT = 4  # files whose arrays stay in memory, for further models of the same file
EXTENT = (100.0, 500.0)  # of a mean, from a narrow face to a bust, millimetres
CONTOUR = {"contour_vertices", "contour_weights"}
REQUIRED = [
    "mean",
    "triangles",
    "identity_basis",
    "expression_basis",
    "albedo_mean",
    "albedo_basis",
    "uv",
    "mirror",
    "landmark_vertices",
    "landmark_weights",
    "region_face",
]


class FaceModel(nn.Module):
    """A linear morphable model; all its arrays are buffers that checkpoints do not store.

    On the CPU the buffers share the memory of ``arrays``, also where only the first modes are kept,
    so that a process holds a file's bases once; nobody may change them in place.

    Attributes:
        name, source, licence: what it is.
        expression_names: one for each mode.
        region_names: what ``region`` knows.
        notes: what is approximate in it.
        stand_ins: which of its arrays are not its own but another model's, for want of any.

    Args:
        arrays: the keys of the .npz described in this module's docstring.
        identity_dims, expression_dims, albedo_dims: keep only the first so many modes; None keeps
            all.

    Raises:
        DataError: a key is missing, or the shapes, index ranges or values do not fit together.
    """

    mean: Float[Tensor, "n 3"]
    triangles: Int[Tensor, "t 3"]
    identity_basis: Float[Tensor, "ki n 3"]
    expression_basis: Float[Tensor, "ke n 3"]
    expression_std: Float[Tensor, " ke"]
    albedo_mean: Float[Tensor, "n 3"]
    albedo_basis: Float[Tensor, "ka n 3"]
    uv: Float[Tensor, "n 2"]
    mirror: Int[Tensor, " n"]
    landmark_vertices: Int[Tensor, "68 3"]
    landmark_weights: Float[Tensor, "68 3"]
    contour_vertices: Int[Tensor, "17 k 3"] | None
    contour_weights: Float[Tensor, "17 k 3"] | None

    def __init__(
        self,
        arrays: dict[str, np.ndarray],
        identity_dims: int | None = None,
        expression_dims: int | None = None,
        albedo_dims: int | None = None,
    ) -> None:
        super().__init__()
        _check(arrays)
        kept = {
            "identity_basis": identity_dims,
            "expression_basis": expression_dims,
            "albedo_basis": albedo_dims,
        }
        for key in REQUIRED:
            array = arrays[key]
            if key in kept:
                wanted = kept[key]
                if wanted is not None and wanted > len(array):
                    raise DataError(
                        f"the face model '{arrays.get('name', '?')}' has {len(array)} modes "
                        f"in {key}, "
                        f"but {wanted} "
                        f"were asked for; ask for at most {len(array)}"
                    )
                array = array[:wanted]
            if key.startswith("region_"):
                continue
            self.register_buffer(key, _tensor(array), persistent=False)
        for key in CONTOUR:
            given = _tensor(arrays[key]) if key in arrays else None
            self.register_buffer(key, given, persistent=False)
        self.region_names = sorted(k[7:] for k in arrays if k.startswith("region_"))
        for name in self.region_names:
            region = torch.from_numpy(np.ascontiguousarray(arrays[f"region_{name}"])).bool()
            self.register_buffer(f"region_{name}", region, persistent=False)
        spread = np.asarray(arrays.get("expression_std", np.ones(len(arrays["expression_basis"]))))
        spread = spread[: len(self.expression_basis)].astype(np.float32)
        self.register_buffer("expression_std", torch.from_numpy(spread), persistent=False)
        names = arrays.get(
            "expression_names", np.arange(len(arrays["expression_basis"])).astype(str)
        )
        self.expression_names = [str(name) for name in names][: len(self.expression_basis)]
        self.name, self.source, self.licence = (
            str(arrays.get(key, "unknown")) for key in ("name", "source", "licence")
        )
        self.notes, self.stand_ins = (
            [str(text) for text in arrays.get(key, [])] for key in ("notes", "stand_ins")
        )

    @classmethod
    def from_file(
        cls,
        path: Path,
        identity_dims: int | None = None,
        expression_dims: int | None = None,
        albedo_dims: int | None = None,
    ) -> "FaceModel":
        """Read a .npz as this module's docstring describes.

        Raises:
            AssetNotFoundError: there is no such file.
            DataError: it is not such a file.
        """
        if not path.is_file():
            raise AssetNotFoundError(
                "face model",
                f"'{path}'",
                "Give the path of a .npz in monoface's format, or 'procedural' for ours.",
            )
        status = path.stat()
        arrays = _read(path.resolve(), status.st_mtime_ns, status.st_size)
        try:
            return cls(arrays, identity_dims, expression_dims, albedo_dims)
        except DataError as error:
            raise DataError(f"'{path}': {error}") from error

    def region(self, name: str) -> Tensor:
        """The vertices of a named region, bool (n,).

        Raises:
            DataError: this model has no such region; the message lists those it has.
        """
        if name not in self.region_names:
            raise DataError(
                f"face model '{self.name}' has no region '{name}', only {self.region_names}"
            )
        return getattr(self, f"region_{name}")

    def part(self, *names: str) -> Int[Tensor, "t 3"]:
        """The triangles with all three corners in these regions; indices are the whole mesh's.

        Raises:
            DataError: this model has no such region.
        """
        inside = torch.stack([self.region(name) for name in names]).any(0)
        return self.triangles[inside[self.triangles].all(-1)]

    def shape(
        self, identity: Float[Tensor, "*b ki"], expression: Float[Tensor, "*b ke"] | None = None
    ) -> Float[Tensor, "*b n 3"]:
        """Vertices in millimetres, model frame (CEST Eq. 5); without expression the neutral
        face.
        """
        shape = _combine(self.mean, identity, self.identity_basis)
        return shape if expression is None else _combine(shape, expression, self.expression_basis)

    def landmark_shape(
        self, identity: Float[Tensor, "*b ki"], expression: Float[Tensor, "*b ke"]
    ) -> Float[Tensor, "*b 68 3"]:
        """``landmarks(shape(identity, expression))`` without the other vertices."""
        bases = [self.landmarks(basis) for basis in (self.identity_basis, self.expression_basis)]
        numbers = torch.cat([identity, expression], -1)
        return _combine(self.landmarks(self.mean), numbers, torch.cat(bases))

    def albedo(self, coefficients: Float[Tensor, "*b ka"]) -> Float[Tensor, "*b n 3"]:
        """Reflectance per vertex, RGB, about [0, 1], not clipped."""
        return _combine(self.albedo_mean, coefficients, self.albedo_basis)

    def landmarks(self, vertices: Float[Tensor, "*b n 3"]) -> Float[Tensor, "*b 68 3"]:
        """The 68 landmarks of the mesh, in the frame and unit of ``vertices``."""
        corners = vertices[..., self.landmark_vertices, :]
        return (corners * self.landmark_weights[..., None]).sum(-2)


def load_face_model(
    source: str = "procedural",
    identity_dims: int | None = None,
    expression_dims: int | None = None,
    albedo_dims: int | None = None,
) -> FaceModel:
    """The built-in model ("procedural") or the .npz at a path, with its first modes.

    Raises:
        AssetNotFoundError, DataError: see ``FaceModel.from_file``.
    """
    if source == "procedural":
        from core.face_models.procedural import shared_arrays

        return FaceModel(shared_arrays(), identity_dims, expression_dims, albedo_dims)
    return FaceModel.from_file(Path(source), identity_dims, expression_dims, albedo_dims)


def _tensor(array: np.ndarray) -> Tensor:
    """float32 or int64, in the array's own memory where it is that already."""
    kind = torch.int64 if np.issubdtype(array.dtype, np.integer) else torch.float32
    return torch.from_numpy(np.ascontiguousarray(array)).to(kind)


@lru_cache(maxsize=KEPT)
def _read(path: Path, changed: int, size: int) -> dict[str, np.ndarray]:
    """The arrays of a file in this state; shared by all models made from it."""
    return read_npz(path)


def _combine(
    start: Float[Tensor, "*b n 3"],
    coefficients: Float[Tensor, "*c k"],
    basis: Float[Tensor, "k n 3"],
) -> Float[Tensor, "*c n 3"]:
    """Start + sum_k coefficients_k basis_k in one product: it adds to ``start`` as it goes."""
    with without_autocast(coefficients):
        *batch, modes = coefficients.shape
        numbers = at_least_float32(coefficients).reshape(prod(batch), modes)
        rows = start.reshape(prod(start.shape[:-2]), -1)
        return torch.addmm(rows, numbers, basis.flatten(1)).view(*batch, *start.shape[-2:])


def _check(arrays: dict[str, np.ndarray]) -> None:
    """Raise DataError unless the arrays fit together."""
    missing = [key for key in REQUIRED if key not in arrays]
    if missing:
        raise DataError(
            f"not a face model: the keys {missing} are missing; it has {sorted(arrays)}"
        )
    version = int(arrays.get("version", VERSION))
    if version != VERSION:
        raise DataError(
            f"face model file of version {version}; this release reads version {VERSION}"
        )
    n, ke = (np.atleast_1d(arrays[key]).shape[0] for key in ("mean", "expression_basis"))
    wanted: dict[str, tuple[int | None, ...]] = {
        "mean": (n, 3),
        "triangles": (None, 3),
        "identity_basis": (None, n, 3),
        "expression_basis": (None, n, 3),
        "albedo_mean": (n, 3),
        "albedo_basis": (None, n, 3),
        "uv": (n, 2),
        "mirror": (n,),
        "landmark_vertices": (68, 3),
        "landmark_weights": (68, 3),
    }
    optional = {"expression_std": (ke,), "expression_names": (ke,)}
    optional |= {key: (n,) for key in arrays if key.startswith("region_")}
    optional |= {"notes": (None,), "stand_ins": (None,)}
    indices = ["triangles", "mirror", "landmark_vertices"]
    if CONTOUR & arrays.keys():
        if not arrays.keys() >= CONTOUR:
            raise DataError(f"face model: only one of {sorted(CONTOUR)}, wanted both or none")
        candidates = np.shape(arrays["contour_vertices"])[1:2]
        optional |= dict.fromkeys(CONTOUR, (17, *candidates, 3))
        indices.append("contour_vertices")
    wanted |= {key: shape for key, shape in optional.items() if key in arrays}
    for key, shape in wanted.items():
        got = arrays[key].shape
        if len(got) != len(shape) or any(
            w not in (None, g) for g, w in zip(got, shape, strict=True)
        ):
            raise DataError(
                f"face model: '{key}' has shape {got}, wanted {shape} for {n} vertices and {ke} "
                "expressions"
            )
    for key in indices:
        array = arrays[key]
        if not np.issubdtype(array.dtype, np.integer):
            raise DataError(f"face model: '{key}' must hold integers, not {array.dtype}")
        if array.size and (array.min() < 0 or array.max() >= n):
            raise DataError(
                f"face model: '{key}' points at vertices {array.min()}..{array.max()}, but there "
                f"are only {n} "
                "(indices are 0-based)"
            )
    for key in wanted:
        if np.issubdtype(arrays[key].dtype, np.floating) and not np.isfinite(arrays[key]).all():
            raise DataError(f"face model: '{key}' holds NaN or infinite values")
    sums = arrays["landmark_weights"].sum(1)
    worst = int(abs(sums - 1).argmax())
    if abs(sums[worst] - 1) > 1e-3:
        raise DataError(
            f"face model: 'landmark_weights' of landmark {worst} sum to {sums[worst]:g}, wanted 1"
        )
    extent = float(np.ptp(arrays["mean"], axis=0).max())
    if not EXTENT[0] <= extent <= EXTENT[1]:
        raise DataError(
            f"face model: 'mean' measures {extent:.4g} along its longest side, wanted "
            f"{EXTENT[0]:g} to {EXTENT[1]:g} millimetres; convert 'mean', 'identity_basis' and "
            "'expression_basis'"
        )
