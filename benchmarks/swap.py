"""Which of identity, expression and pose costs a method most: each in turn is the truth's (PGN,
Fig. 1).
"""

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from tqdm import tqdm

from benchmarks.base import PER_CENT, Metric, Predict, Results, Summary, predicted
from benchmarks.dense import in_image
from benchmarks.metrics import nme_percent, yaw_bin
from benchmarks.synthetic_faces import SyntheticFaces, _Batch, _same_mesh
from core.contracts import Reconstruction
from core.errors import DataError
from core.landmarks import LEFT_EYE, RIGHT_EYE
from core.rotation import euler_from_rotation

OWN = "own"
SWAPPED = (OWN, "identity", "expression", "pose")
BINS = {"all": "all", "to_30": "yaw up to 30°", "to_60": "30° to 60°", "to_90": "above 60°"}
KINDS = {"dense": "all vertices of the face in 3D", "landmark": "68 landmarks in the image"}
LABELS = {OWN: "as predicted", **{name: f"with true {name}" for name in SWAPPED[1:]}}
COLOURS = {OWN: "#555555", "identity": "#2a78b5", "expression": "#e08a1e", "pose": "#3a923a"}
OTHERS = "#a33b6f"  # another method's colour
HEIGHT, GROUP, GAP = 360, 150, 36  # pixels


class SyntheticSwap(SyntheticFaces):
    """Fig. 1 of PGN on a synthetic set: what the truth instead of one of the estimates gains.

    Protocol. Images and crops as of ``SyntheticFaces``. The predicted face is scored as it is, and
    with the true identity (the true neutral face with the predicted expression's displacement), the
    true expression (the reverse) or the true pose (the predicted face seen by the true camera). Two
    errors, by bins of the true yaw:

    * dense: mean distance of the vertices of the region ``face`` in the frame of the image (x, y
      in pixels, z in such pixels, from the mean of the face), in % of the true 3D distance of the
      outer eye corners.
    * landmark: NME of the 68 points in % of sqrt(w h) of their true box.

    The method's mesh must be that of the truth.
    """

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)  # type: ignore[arg-type]
        self.name = f"{self.name}_swap"

    def run(self, predict: Predict) -> Results:
        """Score a predictor with and without the truth in its place.

        Raises:
            AssetNotFoundError, DataError: as of ``SyntheticFaces``; or the mesh is another.
        """
        found, _ = self._frames()
        frames = self._subset(found)
        failures: dict[str, list[str]] = defaultdict(list)
        scores: dict[tuple[str, str], list[Tensor]] = defaultdict(list)
        yaws: list[Tensor] = []
        bar = tqdm(total=len(frames), desc=self.name, unit="frame", disable=not self.progress)
        for batch in self._batches(frames, failures):
            face = predicted(predict, batch.images)
            if not _same_mesh(face, batch.model):
                raise DataError("the truth can only be swapped in for a mesh like its own")
            for swapped in SWAPPED:
                for kind, values in errors(with_truth(face, batch, swapped), batch).items():
                    scores[kind, swapped].append(values)
            yaws.append(euler_from_rotation(batch.rotation)[1])
            bar.update(len(batch.images))
        bar.close()
        which = yaw_bin(torch.rad2deg(torch.cat(yaws)))
        inside = dict(zip(BINS, [which >= 0, which == 0, which == 1, which == 2], strict=True))
        metrics = []
        for (kind, swapped), parts in scores.items():
            values = torch.cat(parts)
            for place, rows in inside.items():
                what = "as predicted" if swapped == OWN else f"with the true {swapped}"
                metrics.append(
                    Metric(
                        f"{kind}_{swapped}_{place}_percent",
                        PER_CENT,
                        f"{KINDS[kind]}, {what}, {BINS[place]}",
                        Summary.of(values.where(rows, torch.nan)),
                    )
                )
        return Results(
            self.name,
            f"{len(frames)} of {len(found)} detected frames of the {self.split} split of set "
            f"{self._manifest().get('hash', 'without manifest')[:8]}. Dense: mean 3D distance of "
            "corresponding vertices in the image's frame, depth from its mean, in % of the outer "
            "eye corners' distance; landmark: NME in % of sqrt(w h). Of the estimates one at a "
            "time is replaced by the truth.",
            metrics,
            len(frames),
            dict(failures),
            note=f"Crops of {self.image_size} x {self.image_size} pixels, margin "
            f"{self.crop_margin:g}.",
        )


def with_truth(face: Reconstruction, batch: _Batch, swapped: str) -> Reconstruction:
    """The face with the true identity, expression or pose, or as it is."""
    if swapped == "pose":
        return replace(face, camera=batch.camera)
    expression = face.vertices - face.neutral
    if swapped == "identity":
        return replace(face, vertices=batch.neutral + expression)
    if swapped == "expression":
        return replace(face, vertices=face.neutral + batch.vertices - batch.neutral)
    return face


def errors(face: Reconstruction, batch: _Batch) -> dict[str, Float[Tensor, " b"]]:
    """Dense and landmark error of each image, in %."""
    model, region = batch.model, batch.model.region("face")
    true = replace(face, vertices=batch.vertices, camera=batch.camera)
    here, there = (_centred(in_image(each)[:, 0], region) for each in (face, true))
    corners = model.landmarks(there)[:, [RIGHT_EYE[0], LEFT_EYE[3]]]
    apart = (corners[:, 0] - corners[:, 1]).norm(dim=-1)
    dense = 100 * (here - there)[:, region].norm(dim=-1).mean(-1) / apart
    points, _ = face.camera.project(model.landmarks(face.vertices))
    return {"dense": dense, "landmark": nme_percent(points, batch.landmarks)[:, 0]}


def picture(runs: Sequence[Results], others: Sequence[Results] = (), name: str = "") -> Image.Image:
    """The dense errors as bars, by yaw, as in Fig. 1b.

    Args:
        runs: of one method, each of another seed: bars are their means, with lines of plus and
            minus a standard deviation.
        others: of another method, as predicted, beside them.
        name: of that method.
    """
    bars = [(runs, swapped, LABELS[swapped], COLOURS[swapped]) for swapped in SWAPPED]
    if others:
        bars.append((others, OWN, name, OTHERS))
    bar, font = GROUP // len(bars), ImageFont.load_default(13)
    width, height = 20 + len(BINS) * (GROUP + GAP), HEIGHT
    image = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(image)
    values = {
        (place, label): over_seeds(results, f"dense_{swapped}_{place}_percent")
        for place in BINS
        for results, swapped, label, _ in bars
    }
    low, high = height - 30, 70
    most = max(map(sum, values.values())) or 1.0
    pen.text((20, 10), "dense error, % of the outer eye corners' distance", "black", font)
    for k, (_, _, label, colour) in enumerate(bars):
        x = 20 + (width - 20) // len(bars) * k
        pen.rectangle((x, 32, x + 12, 44), colour)
        pen.text((x + 18, 30), label, "black", font)
    for group, (place, meaning) in enumerate(BINS.items()):
        left = 20 + group * (GROUP + GAP)
        pen.text((left, low + 6), meaning, "black", font)
        for k, (_, _, label, colour) in enumerate(bars):
            (value, spread), x = values[place, label], left + k * bar
            top, least, upper = (
                low - (low - high - 20) * v / most for v in (value, value - spread, value + spread)
            )
            pen.rectangle((x, top, x + bar - 4, low), colour)
            if spread:
                middle = x + bar // 2 - 2
                pen.line((middle, upper, middle, least), "black")
            pen.text((x, upper - 17), f"{value:.1f}", "black", font)
    pen.line((14, low, width - 14, low), "black")
    return image


def over_seeds(runs: Sequence[Results], name: str) -> tuple[float, float]:
    """Mean and standard deviation of a metric's means over those runs that have scored any; 0 if
    none has.
    """
    means = (run[name].value.mean for run in runs)
    found = [mean for mean in means if mean is not None]
    spread = statistics.stdev(found) if len(found) > 1 else 0.0
    return statistics.mean(found) if found else 0.0, spread


def _centred(points: Float[Tensor, "b n 3"], region: Tensor) -> Float[Tensor, "b n 3"]:
    """With depth from the mean of the region."""
    middle = points[:, region, 2:].mean(1, keepdim=True)
    return torch.cat([points[..., :2], points[..., 2:] - middle], -1)
