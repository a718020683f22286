"""AFLW2000-3D: the whole face in 3D on 2,000 photographs."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from benchmarks.aflw2000 import AFLW2000, SIDE, Truth, bin_counts, by_bins
from benchmarks.base import Metric, Predict, Results, by_sample, predicted
from benchmarks.dense import MODES, Mode, dense_nme_percent, in_image
from benchmarks.metrics import error_curve
from benchmarks.scans import Faces, MeshBenchmark
from core.crop import transform_points
from core.errors import AssetNotFoundError, DataError
from core.face_models.files import read_mat
from core.face_models.fitted import FIT, BaselFit
from core.face_models.importers import bfm2009
from core.face_models.importers.raw import RawFile, RawFolder, zero_based
from core.image_files import read_image
from core.registration import ROUNDS

EYES = (36, 45)  # outer corners: vertices 2215 and 14066
CURVE_PERCENT = 10.0  # how far the curves go
UV = RawFile(("BFM_UV.mat",), "It is part of github.com/anilbas/3DMMasSTN.")
UV_TEXELS = 255  # PRN's pixel = (255 u, 255 - 255 v)

Prediction = Float[Tensor, "m 3"] | DataError


class AFLW2000Dense(MeshBenchmark):
    """AFLW2000-3D: dense 3D NME, as of PRN, PGN and CEST.

    On disk: as ``AFLW2000``, and Shape_Para (199, 1) and Exp_Para (29, 1) in each .mat. The true
    faces are the fits of the Basel Face Model 2009 that these describe, for which its raw files are
    needed: ``basel`` holds 01_MorphableModel.mat, BFM_exp_idx.mat and Model_Exp.mat, as for the
    model's import.

    Protocol. Error of an image: mean distance of the true points of the region to the predicted
    mesh / 3D distance of the true outer eye corners, in %, in the frame of the 450 x 450 image. The
    papers say little about how points are found and aligned: ``benchmarks.dense`` has the modes.
    CEST's 19,618 points are not public, PRN's "around 45,000" are a mask of its UV map.

    Meshes of other programs: <name>.obj and so on (image00002), vertices x and y in pixels of the
    450 x 450 image from its top left corner, y down, z towards the camera in pixels; no landmarks.

    Args:
        root: the folder of the pairs.
        basel: the raw files of the face model.
        region: which of the 53,215 vertices count: .npy or .txt of indices, 0-based; or PRN's
            uv_face_mask.png, with BFM_UV.mat in ``basel``. Otherwise the 35,709 of Deng et al.,
            with BFM_front_idx.mat in ``basel``.
        modes: icp, vrn, index. "index" needs meshes of the 53,215 vertices.
        rounds: of ICP at most.
        image_size: side of the crops, pixels: what the method takes.
        crop: as of ``AFLW2000``.
        batch_size: images at a time.
        names: a text file of image names to score these only; otherwise there must be 2,000.
        progress: show a bar.
    """

    name = "aflw2000_dense"
    needs_landmarks = False

    def __init__(
        self,
        root: Path,
        basel: Path,
        region: Path | None = None,
        modes: list[Mode] | None = None,
        rounds: int = ROUNDS,
        image_size: int = 256,
        crop: Literal["3ddfa", "prn"] | float = "3ddfa",
        batch_size: int = 32,
        names: Path | None = None,
        progress: bool = True,
    ) -> None:
        self.photographs = AFLW2000(root, image_size, crop, batch_size, names=names)
        self.basel, self.region, self.rounds, self.progress = basel, region, rounds, progress
        self.modes: list[Mode] = ["icp", "vrn"] if modes is None else modes
        if not self.modes or rounds < 1:
            raise DataError(
                f"AFLW2000Dense: modes {self.modes} and rounds {rounds}; wanted at least one each"
            )

    def run(self, predict: Predict) -> Results:
        """Score a predictor; it gets "b 1 3 s s" with s = ``image_size``.

        Raises:
            AssetNotFoundError: images or the face model are missing.
            DataError: there are not 2,000 pairs, or a file is damaged.
        """
        truth, failures = self.photographs.truth(), defaultdict[str, list[str]](list)
        meshes = self._predicted(predict, truth, failures)
        return self._results(truth, meshes, failures, self.photographs.note())

    def score(self, faces: Faces) -> Results:
        """Score meshes of any topology.

        Raises:
            AssetNotFoundError, DataError: see ``run``.
        """

        def meshes(names: list[str]) -> Iterator[tuple[str, Prediction]]:
            for name in names:
                try:
                    yield name, faces(name).vertices
                except DataError as error:
                    yield name, error

        truth = self.photographs.truth()
        return self._results(truth, meshes(truth.names), defaultdict(list), "")

    def _predicted(
        self, predict: Predict, truth: Truth, failures: dict[str, list[str]]
    ) -> Iterator[tuple[str, Prediction]]:
        """Meshes in the frame of the whole image."""
        for rows, images, matrices in self.photographs.batches(truth, failures):
            points = in_image(predicted(predict, images))[:, 0].double()
            back = torch.linalg.inv(matrices)
            size = torch.linalg.det(back[:, :2, :2]).sqrt()
            points = torch.cat(
                [transform_points(back, points[..., :2]), size[:, None, None] * points[..., 2:]], -1
            )
            yield from zip([truth.names[row] for row in rows.tolist()], points, strict=True)

    def _results(
        self,
        truth: Truth,
        meshes: Iterable[tuple[str, Prediction]],
        failures: dict[str, list[str]],
        note: str,
    ) -> Results:
        region = read_region(self.region, self.basel)
        fit = BaselFit.from_folder(
            self.basel, np.append(region, [bfm2009.KEYPOINTS[k] for k in EYES])
        )
        errors = _Errors(truth.names, self.modes)
        bar = tqdm(meshes, self.name, len(truth.names), unit="mesh", disable=not self.progress)
        for name, mesh in bar:
            try:
                if isinstance(mesh, DataError):
                    raise mesh
                true = self._true(fit, name)
                errors.add(name, self._score(mesh, true, region, failures, name))
            except ValueError as error:  # DataError is one
                failures[str(error)].append(name)
        table: list[Metric] = []
        for mode, values in errors.values.items():
            table += by_bins(f"{mode}_nme", MODES[mode], values, truth.yaws["fitted"])
        return Results(
            self.name,
            self._protocol(truth, len(region)),
            table,
            len(truth.names),
            dict(failures),
            per_sample={f"{m}_nme": by_sample(truth.names, v) for m, v in errors.values.items()},
            curves={f"{m}_nme": error_curve(v, CURVE_PERCENT) for m, v in errors.values.items()},
            note=note,
        )

    def _true(self, fit: BaselFit, name: str) -> Float[Tensor, "n 3"]:
        """The region and the outer eye corners of a true face.

        Raises:
            DataError: the .mat has no fit.
        """
        path = self.photographs.root / f"{name}.mat"
        arrays = [torch.from_numpy(a.astype(np.float32)) for a in read_mat(path, FIT).values()]
        pose, shape, expression = (array.flatten() for array in arrays)
        return fit.project(pose, shape, expression, SIDE)

    def _score(
        self,
        mesh: Float[Tensor, "m 3"],
        true: Float[Tensor, "n 3"],
        region: Int[np.ndarray, " r"],
        failures: dict[str, list[str]],
        name: str,
    ) -> dict[Mode, float]:
        modes, matching = list(self.modes), torch.from_numpy(region)
        if "index" in modes and len(mesh) != bfm2009.TRIMMED:
            reason = f"'index' wants {bfm2009.TRIMMED} vertices, the predicted mesh has {len(mesh)}"
            failures[reason].append(name)
            modes.remove("index")
        interocular = float((true[-1] - true[-2]).norm())
        points = true[: len(region)]
        return dense_nme_percent(mesh, points, interocular, modes, matching, self.rounds)

    def _protocol(self, truth: Truth, points: int) -> str:
        which = "Deng et al.'s face" if self.region is None else f"'{self.region.name}'"
        modes = "; ".join(f"{mode}: {MODES[mode]}" for mode in self.modes)
        part = "" if self.photographs.names is None else f" of '{self.photographs.names.name}'"
        bins = "/".join(map(str, bin_counts(truth.yaws["fitted"])))
        return (
            f"{len(truth.names)} images{part} ({bins} by the fitted yaw); {points} vertices of "
            f"the fitted Basel Face Model ({which}) against the nearest predicted vertices, mean "
            "distance in % of the 3D distance of the true outer eye corners, at most "
            f"{self.rounds} rounds of ICP. {modes}."
        )


@dataclass
class _Errors:
    """Errors of all images, NaN until they are known."""

    names: list[str]
    modes: list[Mode]
    values: dict[Mode, Float[Tensor, " n"]] = field(init=False)

    def __post_init__(self) -> None:
        self.rows = {name: row for row, name in enumerate(self.names)}
        nothing = torch.full((len(self.names),), torch.nan, dtype=torch.float64)
        self.values = {mode: nothing.clone() for mode in self.modes}

    def add(self, name: str, errors: dict[Mode, float]) -> None:
        for mode, error in errors.items():
            self.values[mode][self.rows[name]] = error


def read_region(path: Path | None, basel: Path) -> Int[np.ndarray, " r"]:
    """The vertices that count, of 53,215; see ``AFLW2000Dense``.

    Raises:
        AssetNotFoundError: a file is missing.
        DataError: it holds something else.
    """
    raw = RawFolder(basel, bfm2009.KIND.licence)
    if path is None:
        front = read_mat(raw.find(bfm2009.FRONT_INDEX), {"idx": (bfm2009.FRONT, 1)})["idx"][:, 0]
        return zero_based(front, bfm2009.TRIMMED, "idx of BFM_front_idx.mat")
    if not path.is_file():
        raise AssetNotFoundError("list of vertices", f"'{path}'", "Write it, 0-based.")
    if path.suffix == ".png":
        return _under_mask(path, raw)
    try:
        found = np.load(path, allow_pickle=False) if path.suffix == ".npy" else np.loadtxt(path)
    except (ValueError, EOFError, OSError) as error:
        raise DataError(f"'{path}' holds no list of vertices: {error}") from error
    rows = zero_based(np.atleast_1d(found), bfm2009.TRIMMED, f"'{path}'", first=0)
    if rows.ndim != 1 or len(rows) < 3 or len(np.unique(rows)) < len(rows):
        raise DataError(f"'{path}' holds {rows.shape}, wanted at least 3 vertices, each once")
    return rows


def _under_mask(path: Path, raw: RawFolder) -> Int[np.ndarray, " r"]:
    """The vertices whose place in the UV map is in a mask."""
    mask = read_image(path, "L")[0].numpy() > 0
    uv = read_mat(raw.find(UV), {"UV": (bfm2009.ALL, 2)})["UV"]
    trim = read_mat(raw.find(bfm2009.TRIM), {"trimIndex": (bfm2009.TRIMMED, 1)})["trimIndex"]
    uv = uv[zero_based(trim[:, 0], bfm2009.ALL, "trimIndex of BFM_exp_idx.mat")]
    if mask.shape != (UV_TEXELS + 1, UV_TEXELS + 1) or uv.min() < 0 or uv.max() > 1:
        raise DataError(f"'{path}' has {mask.shape} pixels, wanted 256 x 256 and a UV in [0, 1]")
    columns, rows = (np.round(UV_TEXELS * x).astype(int) for x in (uv[:, 0], 1 - uv[:, 1]))
    return np.flatnonzero(mask[rows, columns])
