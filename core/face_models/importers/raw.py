"""What an importer starts from (a folder of somebody's files) and what it makes of them (Parts)."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int

from core.errors import AssetNotFoundError, DataError


@dataclass(frozen=True)
class Parts:
    """A face model as its files give it, in our frame and units; None where they give nothing.

    Millimetres; x to the subject's left, y up, z out of the face; bases per standard deviation.

    Attributes:
        mean, triangles, identity_basis, expression_basis: as in ``core.face_models.model``; the
            triangles may be turned either way.
        expression_names: one for each mode.
        expression_std: spread of the activations; None = 1.
        landmarks: three vertices of each of the 68 and their weights.
        seeds: where there are no 68 landmarks, the named points that there are: groups of landmarks
            whose mean a point is, and the points.
        albedo_mean, albedo_basis: RGB in [0, 1].
        uv: in [0, 1], v down.
        mirror: index of the mirrored vertex.
        regions: by name.
        contour: candidates of the jaw's points (vertices and weights), see ``contour``.
        notes: what is approximate, for the reader of the model.
    """

    mean: Float[np.ndarray, "n 3"]
    triangles: Int[np.ndarray, "t 3"]
    identity_basis: Float[np.ndarray, "ki n 3"]
    expression_basis: Float[np.ndarray, "ke n 3"]
    expression_names: list[str]
    expression_std: Float[np.ndarray, " ke"] | None = None
    landmarks: tuple[Int[np.ndarray, "68 3"], Float[np.ndarray, "68 3"]] | None = None
    seeds: tuple[list[tuple[int, ...]], Float[np.ndarray, "s 3"]] | None = None
    albedo_mean: Float[np.ndarray, "n 3"] | None = None
    albedo_basis: Float[np.ndarray, "ka n 3"] | None = None
    uv: Float[np.ndarray, "n 2"] | None = None
    mirror: Int[np.ndarray, " n"] | None = None
    regions: dict[str, Bool[np.ndarray, " n"]] = field(default_factory=dict)
    contour: tuple[Int[np.ndarray, "17 k 3"], Float[np.ndarray, "17 k 3"]] | None = None
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class RawFile:
    """A file that a model is made from.

    Attributes:
        names: under which it may lie in the raw folder; the first is the usual one.
        origin: how it is obtained.
    """

    names: tuple[str, ...]
    origin: str


@dataclass(frozen=True)
class Kind:
    """A face model that can be imported.

    Attributes:
        title: in full, with the publication.
        licence: under which terms it may be used.
        source: where to ask for it.
        gives: what it can do, for the table of models.
        variants: forms it can be imported in; the first is the default.
        read: the raw folder and a variant's name to the parts.
    """

    title: str
    licence: str
    source: str
    gives: str
    variants: tuple[str, ...]
    read: Callable[["RawFolder", str], Parts]


@dataclass(frozen=True)
class RawFolder:
    """Where a user has put the files of a model.

    Attributes:
        path: the folder.
        licence: of the model, for the message about what is missing.
    """

    path: Path
    licence: str

    def find(self, file: RawFile) -> Path:
        """The path of a file, by the first of its names that is there.

        Raises:
            AssetNotFoundError: it is not there; says which, where we looked, where to get it.
        """
        found = self.find_any(file)
        if found is None:
            names = " or ".join(f"'{name}'" for name in file.names)
            raise AssetNotFoundError(names, f"'{self.path}'", file.origin, self.licence)
        return found

    def find_any(self, *files: RawFile) -> Path | None:
        """The first of several files that is there, or None."""
        paths = (self.path / name for file in files for name in file.names)
        return next((path for path in paths if path.is_file()), None)


def zero_based(
    indices: np.ndarray, count: int, what: str, first: int = 1
) -> Int[np.ndarray, "*shape"]:
    """Indices counted from ``first``, of any numeric type, as int64 counted from 0.

    Raises:
        DataError: they are not whole numbers or do not lie in the range of ``count``.
    """
    found = np.asarray(indices)
    if found.size and (found != np.round(found)).any():
        raise DataError(f"{what} holds numbers that are not whole; wanted indices")
    found = found.astype(np.int64) - first
    if found.size and (found.min() < 0 or found.max() >= count):
        raise DataError(
            f"{what} holds indices {found.min() + first}..{found.max() + first}, wanted "
            f"{first}..{count - 1 + first}; it may belong to another version of the model"
        )
    return found


def at_vertices(
    vertices: Int[np.ndarray, "68"],
) -> tuple[Int[np.ndarray, "68 3"], Float[np.ndarray, "68 3"]]:
    """Landmarks that lie at vertices, as ``Parts.landmarks`` wants them."""
    weights = np.zeros((len(vertices), 3), np.float32)
    weights[:, 0] = 1
    return np.repeat(vertices[:, None], 3, 1), weights


def renumbered(
    triangles: Int[np.ndarray, "t 3"], kept: Int[np.ndarray, " k"], count: int
) -> Int[np.ndarray, "s 3"]:
    """The triangles whose corners are all kept, by their new numbers.

    Args:
        triangles: by the old numbers.
        kept: old indices of the vertices, in their new order.
        count: of the old vertices.
    """
    new = np.full(count, -1)
    new[kept] = np.arange(len(kept))
    found = new[triangles]
    return found[(found >= 0).all(1)]
