"""AFLW2000-3D: 68 landmarks on 2,000 photographs, by bins of yaw."""

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from benchmarks import metrics
from benchmarks.base import (
    PER_CENT,
    Benchmark,
    Metric,
    Predict,
    Results,
    Summary,
    by_sample,
    predicted,
    require_folder,
)
from core.crop import face_crop, transform_points, warp
from core.errors import AssetNotFoundError, DataError
from core.face_models.files import read_mat
from core.image_files import read_image
from core.provenance import file_hash

SIDE = 450  # of the images, pixels
FIRST_PIXEL = 0.5  # MATLAB's pixel 1 has its centre here; ours counts from the corner
HIDDEN = -1  # x of an unseen one of the 21 points; its y is no -1
WIDE_3DDFA, WIDE_PRN = math.sqrt(2), 1.6  # side of the crop / box's longer side, / mean side
MANY = 100  # images, of which one in twenty looks more than 2 degrees aside, or some more than 6
ALMOST_ALL = 0.95  # of the yaws: a fit that turned over may have any, up to a whole turn
PROFILE, TURN = math.radians(100), 2 * math.pi + 0.1  # in radians: almost all, all yaws are less
SIZES = 5.0  # factor by which faces may differ from the true ones before their unit is doubted
WHOLE = {"fitted": (1312, 383, 305), "AFLW": (1306, 462, 232)}
"""Images in the bins of the whole set, by who measured the yaws."""
SUBSET = "A part of the set: its figures are not comparable with those of all images."
THRESHOLDS = [k / 10 for k in range(101)]  # of the cumulative curve, %

TWENTY_ONE: tuple[tuple[int, ...], ...] = (
    *((17,), (19,), (21,), (22,), (24,), (26,)),  # brows
    *((36,), tuple(range(36, 42)), (39,), (42,), tuple(range(42, 48)), (45,)),  # eyes
    *((2,), (31,), (30,), (35,), (14,)),  # ears and nose
    *((48,), tuple(range(60, 68)), (54,), (8,)),  # mouth and chin
)
"""AFLW's 21 points as means of the 68 (those of 3DDFA's evaluation)."""

BINS = {
    "0_30": "yaw up to 30°",
    "30_60": "yaw 30° to 60°",
    "60_90": "yaw above 60°",
    "mean": "mean of the three bins",
    "all": "all images",
}


class AFLW2000(Benchmark):
    """AFLW2000-3D (Zhu et al., "Face Alignment Across Large Poses", CVPR 2016): 2D landmarks.

    On disk, ``root`` holds 2,000 pairs::

        image00002.jpg   450 x 450
        image00002.mat   pt3d_68 (3, 68), Pose_Para (1, 7), pt2d (2, 21)

    x and y of ``pt3d_68`` are MATLAB's pixels (the first is 1), y down; ``Pose_Para`` begins with
    pitch, yaw and roll in radians; an unseen one of the 21 points of ``pt2d`` has x = -1. For
    non-commercial research, from the page of 3DDFA's authors.

    Protocol (3DDFA). NME: mean distance over the 68 points, hidden ones included, / sqrt(w h) of
    the box of the true 68, in %, in pixels of the 450 x 450 image. Means over the images with
    |yaw| <= 30, (30, 60] and > 60 degrees (1,312, 383 and 305 of them), the mean of these three
    means, and the mean over all. The 21-point variant averages the predicted points to AFLW's, and
    the distances over the visible ones, with the box of the 68. Failures are counted, not scored.

    ``predict`` gets a crop placed by the true landmarks, which all papers on this set do; its
    landmarks are moved back to the whole image.

    Args:
        root: the folder of the pairs.
        image_size: side of the crops, pixels: what the method takes.
        crop: "3ddfa", sqrt(2) times the longer side of the true points' box, in whole pixels;
            "prn", 1.6 times the mean side; or a number, the side / that of the box's longer one, as
            ``crop_margin`` of the training.
        batch_size: images at a time.
        reannotated: .npy of a second set of labels (2000, 2 or 3, 68), like ``pt3d_68``, in the
            order of the sorted file names: metrics reannotated_nme_*.
        aflw_yaws: .npy of AFLW's own yaws (2000,), degrees: metrics aflw_yaw_nme_*. Its bins have
            1,306, 462 and 232 images.
        balanced: also a random subset with as many images in each bin as in the smallest of the
            last set of yaws: with ``aflw_yaws`` the 696 of 3D-FAN and PRN.
        seed: of that choice.
        names: a text file of image names (image00002), one a line, to score these only; otherwise
            there must be 2,000.
        progress: show a bar.
    """

    name = "aflw2000"
    size = 2000

    def __init__(
        self,
        root: Path,
        image_size: int = 256,
        crop: Literal["3ddfa", "prn"] | float = "3ddfa",
        batch_size: int = 32,
        reannotated: Path | None = None,
        aflw_yaws: Path | None = None,
        balanced: bool = False,
        seed: int = 0,
        names: Path | None = None,
        progress: bool = True,
    ) -> None:
        for key, value in (("image_size", image_size), ("batch_size", batch_size)):
            if value < 1:
                raise DataError(f"AFLW2000: {key} is {value}; wanted at least 1")
        if not isinstance(crop, str) and not crop > 0:
            raise DataError(f"AFLW2000: crop is {crop}; wanted '3ddfa', 'prn' or a number above 0")
        self.root, self.image_size, self.crop, self.batch_size = root, image_size, crop, batch_size
        self.reannotated, self.aflw_yaws = reannotated, aflw_yaws
        self.balanced, self.seed, self.names, self.progress = balanced, seed, names, progress

    def run(self, predict: Predict) -> Results:
        """Score a predictor; it gets "b 1 3 s s" with s = ``image_size``.

        Raises:
            AssetNotFoundError: there is no such folder or file.
            DataError: there are not 2,000 pairs, or not so many in the bins, a label file is
                damaged, or ``predict`` returns something else than one face per image.
        """
        truth = self.truth()
        failures: dict[str, list[str]] = defaultdict(list)
        found = torch.full_like(truth.points, torch.nan)
        bar = tqdm(total=len(truth.names), desc=self.name, unit="image", disable=not self.progress)
        for rows, images, matrices in self.batches(truth, failures):
            landmarks = predicted(predict, images).landmarks
            good = landmarks.isfinite().flatten(1).all(1)
            back = torch.linalg.inv(matrices[good])
            found[rows[good]] = transform_points(back, landmarks[good, 0].double())
            if not good.all():
                bad = [truth.names[row] for row in rows[~good].tolist()]
                failures["the predicted landmarks are not finite"] += bad
            bar.update(len(images))
        bar.close()
        errors = truth.errors(found)
        return Results(
            self.name,
            self._protocol(truth),
            self._table(truth, errors),
            len(truth.names),
            dict(failures),
            per_sample={name: by_sample(truth.names, values) for name, values in errors.items()},
            curves={"nme": _curve(errors["nme"])},
            note=self.note(),
        )

    def _table(self, truth: "Truth", errors: dict[str, Tensor]) -> list[Metric]:
        table = []
        for key, values in errors.items():
            what = MEANING[key]
            for yaws, yaw in truth.yaws.items():
                prefix = "" if yaws == "fitted" else "aflw_yaw_"
                table += by_bins(f"{prefix}{key}", what, values, yaw)
        if self.balanced:
            yaw = list(truth.yaws.values())[-1]
            chosen = metrics.balanced(yaw, self.seed)
            table.append(
                Metric(
                    "nme_balanced_percent",
                    PER_CENT,
                    f"68 points, balanced subset, seed {self.seed}",
                    Summary.of(errors["nme"][chosen]),
                )
            )
        return table

    def _protocol(self, truth: "Truth") -> str:
        sizes = ", ".join(
            f"{'/'.join(map(str, bin_counts(yaw)))} by the {name} yaw"
            for name, yaw in truth.yaws.items()
        )
        subset = "all" if self.names is None else f"the subset '{self.names.name}'"
        text = (
            f"{subset.capitalize()} {len(truth.names)} images ({sizes}), cropped by the true "
            f"landmarks; predictions moved back to the {SIDE} x {SIDE} image. NME in % of sqrt(w "
            "h) of the box of the true 68 points; hidden points count, but not among the 21."
        )
        return text if self.names is None else f"{text} {SUBSET}"

    def note(self) -> str:
        """What the crops were."""
        crop = f"'{self.crop}'" if isinstance(self.crop, str) else f"margin {self.crop:g}"
        return f"Crops of {self.image_size} x {self.image_size} pixels, {crop}."

    def truth(self) -> "Truth":
        """The labels of the images that shall be scored.

        Raises:
            AssetNotFoundError, DataError: see ``run``.
        """
        require_folder(
            "AFLW2000-3D",
            self.root,
            "Download it from the page of 3DDFA's authors and give the folder of its .jpg and .mat "
            "files as root.",
            "non-commercial research only",
        )
        found = sorted(path.stem for path in self.root.glob("*.mat"))
        chosen = range(len(found)) if self.names is None else self._rows(self.names, found)
        if self.names is None and len(found) != self.size:
            raise DataError(
                f"'{self.root}' holds {len(found)} .mat files, wanted {self.size}; complete it, or "
                "name the images that shall be scored in a text file given as names"
            )
        labels = [_labels(self.root / f"{found[row]}.mat") for row in chosen]
        points = {"nme": torch.stack([label[0] for label in labels])}
        if self.reannotated is not None:
            other = read_landmarks(self.reannotated, len(found)) - FIRST_PIXEL
            points["reannotated_nme"] = other[list(chosen)]
        yaws = {"fitted": torch.stack([label[1] for label in labels])}
        if self.aflw_yaws is not None:
            yaws["AFLW"] = read_yaws(self.aflw_yaws, len(found))[list(chosen)]
        if self.names is None:
            for name, yaw in yaws.items():
                _check_bins(name, yaw)
        return Truth(
            names=[found[row] for row in chosen],
            labels=points,
            yaws=yaws,
            twenty_one=torch.stack([label[2] for label in labels]),
            seen=torch.stack([label[3] for label in labels]),
        )

    def _rows(self, listing: Path, found: list[str]) -> list[int]:
        """Which of the files a list names."""
        if not listing.is_file():
            raise AssetNotFoundError(
                "list of images", f"'{listing}'", "Write it: a name like image00002 on each line."
            )
        rows = {name: row for row, name in enumerate(found)}
        names = [Path(line).stem for line in listing.read_text(encoding="utf-8").split()]
        missing = [name for name in names if name not in rows]
        if missing or not names or len(set(names)) < len(names):
            raise DataError(
                f"'{listing}' names {len(names)} images, {len(set(names))} of them different; "
                f"{len(missing)} are not in '{self.root}': {missing[:5]}"
            )
        return sorted(rows[name] for name in names)

    def batches(
        self, truth: "Truth", failures: dict[str, list[str]]
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Rows, crops "b 1 3 s s", and the matrices image -> crop.

        Args:
            truth: of these images.
            failures: gets the images that cannot be read.
        """
        matrices = crop_matrices(truth.points, self.image_size, self.crop)
        for rows in torch.arange(len(truth.names)).split(self.batch_size):
            crops, good = [], []
            for row in rows.tolist():
                try:
                    image = read_image(self.root / f"{truth.names[row]}.jpg").float() / 255
                except DataError:
                    failures["the image cannot be read"].append(truth.names[row])
                    continue
                crops.append(warp(image, matrices[row].float(), self.image_size).clamp(0, 1))
                good.append(row)
            if crops:
                yield torch.tensor(good), torch.stack(crops)[:, None], matrices[good]


@dataclass(frozen=True)
class Truth:
    """Labels of AFLW2000-3D, in pixels counted from the corner of the image.

    Attributes:
        names: of the images.
        labels: by the metric's name; the first are the original ones.
        yaws: degrees, by the name of who measured them.
        twenty_one: AFLW's points.
        seen: which of these are.
    """

    names: list[str]
    labels: dict[str, Float[Tensor, "n 68 2"]]
    yaws: dict[str, Float[Tensor, " n"]]
    twenty_one: Float[Tensor, "n 21 2"]
    seen: Float[Tensor, "n 21"]

    @property
    def points(self) -> Float[Tensor, "n 68 2"]:
        """The original labels."""
        return self.labels["nme"]

    def errors(self, predicted: Float[Tensor, "n 68 2"]) -> dict[str, Float[Tensor, " n"]]:
        """NME of each image by the metric's name."""
        errors = {name: metrics.nme_percent(predicted, true) for name, true in self.labels.items()}
        distance = (twenty_one_points(predicted) - self.twenty_one).norm(dim=-1)
        mean = (distance * self.seen).sum(-1) / self.seen.sum(-1)  # NaN where none is seen
        extent = self.points.amax(-2) - self.points.amin(-2)
        return errors | {"nme21": 100 * mean / extent.prod(-1).sqrt()}


MEANING = {
    "nme": "68 points",
    "reannotated_nme": "68 points, reannotated",
    "nme21": "21 points, visible ones",
}


def twenty_one_points(landmarks: Float[Tensor, "*b 68 d"]) -> Float[Tensor, "*b 21 d"]:
    """AFLW's 21 points, each the mean of some of the 68."""
    return torch.stack([landmarks[..., list(rows), :].mean(-2) for rows in TWENTY_ONE], -2)


def crop_matrices(
    points: Float[Tensor, "n 68 2"], size: int, crop: Literal["3ddfa", "prn"] | float
) -> Float[Tensor, "n 3 3"]:
    """Image pixels -> crop pixels, for the crops that ``AFLW2000`` describes."""
    low, high = points.amin(-2), points.amax(-2)
    extent = high - low
    if crop == "3ddfa":  # its box is rounded in MATLAB's pixels, and cuts between our pixels
        middle, half = (
            (low + high) / 2 + FIRST_PIXEL,
            extent.amax(-1, keepdim=True) * WIDE_3DDFA / 2,
        )
        low, high = (middle - half).round(), (middle + half).round()
        extent = high - low
    elif crop == "prn":
        half = extent.mean(-1, keepdim=True) * WIDE_PRN / 2
        low, high = (low + high) / 2 - half, (low + high) / 2 + half
        extent = high - low
    else:
        return face_crop(points, torch.ones_like(points[..., 0]), size, float(crop))
    scale = size / extent  # of x and of y: after rounding they can differ by a pixel
    matrices = torch.zeros(len(points), 3, 3, dtype=points.dtype)
    matrices[:, 0, 0], matrices[:, 1, 1], matrices[:, 2, 2] = scale[:, 0], scale[:, 1], 1
    matrices[:, :2, 2] = -low * scale
    return matrices


def score_arrays(predictions: Path, labels: Path, yaws: Path) -> tuple[Results, dict[str, Any]]:
    """The sparse NME of bare arrays, all in the same pixels, in any order of images.

    Args:
        predictions: .npy (n, 68, 2 or 3) or (n, 2 or 3, 68); only x and y count.
        labels: the same.
        yaws: .npy (n,), degrees.

    Returns:
        The results, in which images are called "row 0" and so on; and their figures alone:
        nme_0_30, nme_30_60, nme_60_90, nme_mean, nme_all in %, None for no image; nme_std of the
        three bins; counts of the bins; failures, rows with NaN, which are in no mean; cumulative,
        the share of images (%) of at most 0, 0.1, ... 10 %.

    Raises:
        AssetNotFoundError: a file is not there.
        DataError: it does not hold such an array, or the arrays are not of as many images.
    """
    true = read_landmarks(labels)
    if not true.isfinite().all():
        raise DataError(f"'{labels}' holds NaN or infinite numbers; it shall hold the truth")
    landmarks = read_landmarks(predictions, len(true))
    _check_pixels(predictions, landmarks, true)
    errors = metrics.nme_percent(landmarks, true)
    yaw = read_yaws(yaws, len(true))
    errors = errors.masked_fill(~errors.isfinite(), torch.nan)
    names = [f"row {k}" for k in range(len(true))]
    failed = [names[k] for k in errors.isnan().nonzero().flatten().tolist()]
    counts = bin_counts(yaw)
    whole = next((name for name, wanted in WHOLE.items() if wanted == tuple(counts)), None)
    part = f"{len(true)} rows of arrays" if whole is None else f"All {len(true)} images"
    results = Results(
        AFLW2000.name,
        f"{part} ({'/'.join(map(str, counts))} by the {whole or 'given'} yaw), landmarks given as "
        f"arrays, labels '{labels.name}' ({file_hash(labels)[:6]}). NME in % of sqrt(w h) of the "
        "box of the true 68 points; hidden points count.",
        by_bins("nme", MEANING["nme"], errors, yaw),
        len(true),
        {"NaN or infinite landmarks": failed} if failed else {},
        per_sample={"nme": by_sample(names, errors)},
        curves={"nme": _curve(errors)},
        note="" if whole else f"{SUBSET} Its bins would be {_known_bins()}.",
    )
    found = {f"nme_{key}": results[f"nme_{key}_percent"].value for key in BINS}
    return results, {
        **{key: summary.mean for key, summary in found.items()},
        "nme_std": found["nme_mean"].std,
        "counts": [summary.n for summary in list(found.values())[:3]],
        "failures": len(failed),
        "cumulative": [share for _, share in results.curves["nme"]],
    }


def _check_pixels(
    path: Path, predicted: Float[Tensor, "n 68 2"], true: Float[Tensor, "n 68 2"]
) -> None:
    """Raise DataError if most predicted faces are far smaller or larger than the true ones."""
    extents = [points.amax(-2) - points.amin(-2) for points in (predicted, true)]
    ratio = float((extents[0] / extents[1]).nanmedian())
    if not (math.isnan(ratio) or 1 / SIZES < ratio < SIZES):
        raise DataError(
            f"the faces in '{path}' are {ratio:.2g} times as large as the true ones; wanted "
            "landmarks in the pixels of the labels"
        )


def _curve(errors: Float[Tensor, " n"]) -> list[list[float]]:
    shares = metrics.cumulative_percent(errors, torch.tensor(THRESHOLDS))
    return [list(point) for point in zip(THRESHOLDS, shares.tolist(), strict=True)]


def read_landmarks(path: Path, count: int | None = None) -> Float[Tensor, "n 68 2"]:
    """The x and y of 68 points of each image, from .npy (n, 68, 2 or 3) or (n, 2 or 3, 68).

    Raises:
        AssetNotFoundError, DataError: see ``score_arrays``.
    """
    array = _load(path)
    if array.ndim == 3 and array.shape[1] in (2, 3) and array.shape[2] == 68:
        array = array.swapaxes(1, 2)
    wanted = f"({count or 'n'}, 68, 2 or 3) or ({count or 'n'}, 2 or 3, 68)"
    if array.ndim != 3 or array.shape[1] != 68 or array.shape[2] not in (2, 3):
        raise DataError(f"'{path}' is an array of shape {array.shape}, wanted {wanted}")
    if len(array) != (count or len(array)) or not len(array):
        raise DataError(f"'{path}' holds {len(array)} images, wanted {count or 'at least one'}")
    return torch.from_numpy(array[..., :2].astype(np.float64))


def read_yaws(path: Path, count: int) -> Float[Tensor, " n"]:
    """Angles in degrees from .npy (n,).

    Raises:
        AssetNotFoundError, DataError: see ``score_arrays``.
    """
    array = _load(path)
    if array.shape != (count,) or not np.isfinite(array).all():
        raise DataError(f"'{path}' is an array of shape {array.shape}, wanted {count} finite yaws")
    size = np.abs(array)
    radians = size.max() < TURN and np.quantile(size, ALMOST_ALL) < PROFILE
    if size.max() > 360 or (count > MANY and radians):
        raise DataError(f"the yaws in '{path}' reach {size.max():.3g}; wanted degrees, not radians")
    return torch.from_numpy(array.astype(np.float64))


def _load(path: Path) -> np.ndarray:
    if not path.is_file():
        raise AssetNotFoundError("array", f"'{path}'", "Give a .npy file.")
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise DataError(f"'{path}' is no readable .npy: {error}") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
        raise DataError(f"'{path}' does not hold one array of numbers")
    return array


def _labels(path: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The 68 points, yaw in degrees, the 21 points and which of them are seen."""
    shapes = {"pt3d_68": (3, 68), "Pose_Para": (1, 7), "pt2d": (2, 21)}
    arrays = read_mat(path, shapes)
    points, pose, others = (torch.from_numpy(arrays[key].astype(np.float64)) for key in shapes)
    if not points.isfinite().all() or not pose.isfinite().all():
        raise DataError(f"'{path}' holds NaN or infinite numbers; get the file anew")
    seen = (others[0] != HIDDEN).double()
    return points[:2].mT - FIRST_PIXEL, pose[0, 1].rad2deg(), others.mT - FIRST_PIXEL, seen


def by_bins(
    name: str, what: str, errors: Float[Tensor, " n"], yaw: Float[Tensor, " n"]
) -> list[Metric]:
    """The five figures of the papers' tables.

    Args:
        name: of the metrics, without bin and unit.
        what: is measured.
        errors: of each image, %; NaN where there is none.
        yaw: degrees.
    """
    which = metrics.yaw_bin(yaw)
    parts = {key: errors[which == k] for k, key in enumerate(list(BINS)[:3])}
    summaries = {key: Summary.of(values) for key, values in parts.items()}
    means = [s.mean for s in summaries.values() if s.mean is not None]
    of_bins = torch.tensor(means if len(means) == 3 else [], dtype=torch.float64)
    summaries |= {"mean": Summary.of(of_bins), "all": Summary.of(errors)}
    return [
        Metric(f"{name}_{key}_percent", PER_CENT, f"{what}, {BINS[key]}", summary)
        for key, summary in summaries.items()
    ]


def bin_counts(yaw: Float[Tensor, " n"]) -> list[int]:
    """How many images there are in each bin of |yaw|."""
    counts: list[int] = torch.bincount(metrics.yaw_bin(yaw), minlength=3).tolist()
    return counts


def _check_bins(name: str, yaw: Float[Tensor, " n"]) -> None:
    """Raise DataError if the images, where they are all, are in other bins than they should be."""
    wanted, counts = WHOLE[name], tuple(bin_counts(yaw))
    if len(yaw) == sum(wanted) and counts != wanted:
        raise DataError(
            f"by the {name} yaw the bins have {'/'.join(map(str, counts))} images, wanted "
            f"{'/'.join(map(str, wanted))}: some labels are of another version; get them anew"
        )


def _known_bins() -> str:
    return " or ".join(f"{'/'.join(map(str, n))} by the {who} yaw" for who, n in WHOLE.items())
