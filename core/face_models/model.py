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
"""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from core.errors import AssetNotFoundError, DataError
from core.precision import at_least_float32, without_autocast

VERSION = 1
EXTENT = (100.0, 500.0)  # of a mean, from a narrow face to a bust, millimetres
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
            array = np.ascontiguousarray(arrays[key])
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
            kind = torch.int64 if np.issubdtype(array.dtype, np.integer) else torch.float32
            self.register_buffer(key, torch.from_numpy(array).to(kind), persistent=False)
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
        try:
            with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
                arrays = {key: file[key] for key in file.files}
        except Exception as error:  # a damaged file may fail in any way (zip, zlib, header)
            raise DataError(f"'{path}' is not a readable .npz face model: {error}") from error
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
        with without_autocast(identity):
            offset = at_least_float32(identity) @ self.identity_basis.flatten(1)
            if expression is not None:
                offset = offset + at_least_float32(expression) @ self.expression_basis.flatten(1)
        return self.mean + offset.unflatten(-1, self.mean.shape)

    def landmark_shape(
        self, identity: Float[Tensor, "*b ki"], expression: Float[Tensor, "*b ke"]
    ) -> Float[Tensor, "*b 68 3"]:
        """``landmarks(shape(identity, expression))`` without the other vertices."""
        bases = [self.landmarks(basis) for basis in (self.identity_basis, self.expression_basis)]
        mean = self.landmarks(self.mean)
        with without_autocast(identity):
            numbers = at_least_float32(torch.cat([identity, expression], -1))
            return mean + (numbers @ torch.cat(bases).flatten(1)).unflatten(-1, mean.shape)

    def albedo(self, coefficients: Float[Tensor, "*b ka"]) -> Float[Tensor, "*b n 3"]:
        """Reflectance per vertex, RGB, about [0, 1], not clipped."""
        with without_autocast(coefficients):
            offset = at_least_float32(coefficients) @ self.albedo_basis.flatten(1)
        return self.albedo_mean + offset.unflatten(-1, self.albedo_mean.shape)

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
        from core.face_models.procedural import procedural_arrays

        return FaceModel(procedural_arrays(), identity_dims, expression_dims, albedo_dims)
    return FaceModel.from_file(Path(source), identity_dims, expression_dims, albedo_dims)


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
    for key in ("triangles", "mirror", "landmark_vertices"):
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
