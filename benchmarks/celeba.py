"""CelebA: how well a reconstruction explains the colours of a photograph."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from benchmarks.base import (
    GREY_LEVELS,
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
from benchmarks.metrics import (
    coverage_percent,
    error_curve,
    photometric_255,
    photometric_rgb_255,
)
from benchmarks.views import FaceFinder
from core.contracts import Reconstruction
from core.crop import MARGIN, face_crop, five_point_crop, warp
from core.errors import DataError
from core.image_files import read_image
from core.render import render_reconstruction

COUNT = 1000  # images of FML's and CEST's tables
TEST = "2"  # in list_eval_partition.txt
FOLDERS = {True: "img_align_celeba", False: "img_celeba"}
LISTS = {True: "list_landmarks_align_celeba.txt", False: "list_landmarks_celeba.txt"}
PLACES = ("", "Img", "Anno", "Eval")  # folders of the release
CURVES = {"photometric_255": 50.0, "photometric_rgb_255": 50.0}  # how far each curve goes
INSIDE = 0.99  # of a crop's pixel: less of it is in the photograph
MEANING = {
    "photometric_255": (GREY_LEVELS, "absolute difference, mean over RGB (CEST)"),
    "photometric_rgb_255": (GREY_LEVELS, "Euclidean distance in RGB (FML)"),
    "coverage_percent": (PER_CENT, "of the face's mask that is drawn"),
}


class CelebA(Benchmark):
    """CelebA (Liu et al. 2015): photometric error, as of FML (Tab. 4) and CEST (Tab. 3).

    On disk, also in the release's folders ``Img``, ``Anno`` and ``Eval``::

        img_align_celeba/000001.jpg ...      178 x 218; or img_celeba, the whole photographs
        list_eval_partition.txt              000001.jpg 0; 2 = test
        list_landmarks_align_celeba.txt      number of images, names of columns, then the name and
                                             x, y of five points; or list_landmarks_celeba.txt

    Protocol. Mean difference of colours, 0..255, between the photograph and the drawn face, over
    the pixels of the crop that are drawn, inside the photograph and, with ``masks``, visible face;
    then the mean over 1,000 images. Which ones the papers took is not known: ours are the first of
    the test partition. FML's 20.65 is the length of the difference in RGB, as far as its size
    tells; CEST's is the mean over the channels. An image without any such pixel is a failure.

    Args:
        root: of the data set.
        count: how many images; 1,000 by default.
        aligned: the images cut out, not the whole photographs.
        masks: folder with 182638.png and so on, of the size of the images: above half where the
            face is seen and nothing covers it.
        landmarks: folder with 182638.npy or .txt: 68 points in pixels of the images; otherwise
            crops are placed by the five.
        names: a text file of image names (182638.jpg), one a line, to score these instead.
        image_size: side of the crops, pixels: what the method takes.
        crop_margin: side of these in units of the landmarks' box: that of the training.
        batch_size: images at a time.
        progress: show a bar.
    """

    name = "celeba"

    def __init__(
        self,
        root: Path,
        count: int | None = None,
        aligned: bool = True,
        masks: Path | None = None,
        landmarks: Path | None = None,
        names: Path | None = None,
        image_size: int = 256,
        crop_margin: float = MARGIN,
        batch_size: int = 32,
        progress: bool = True,
    ) -> None:
        count = COUNT if count is None else count
        if min(count, image_size, batch_size) < 1:
            raise DataError(
                f"CelebA: count {count}, image_size {image_size} and batch_size {batch_size}; "
                "wanted at least 1"
            )
        self.root, self.count, self.aligned, self.masks = root, count, aligned, masks
        self.landmarks, self.names = landmarks, names
        self.image_size, self.crop_margin, self.batch_size = image_size, crop_margin, batch_size
        self.progress = progress

    def samples(self) -> list[str]:
        """000001.jpg and so on.

        Raises:
            AssetNotFoundError: there is no such folder.
            DataError: there are not so many images, or a list cannot be read.
        """
        require_folder(
            "CelebA",
            self.root,
            "Get it from mmlab.ie.cuhk.edu.hk and give the folder of img_align_celeba as root.",
            "non-commercial research only",
        )
        if self.masks is not None:
            require_folder("masks of CelebA", self.masks, "Give the folder of 000001.png.")
        if self.names is not None:
            names = [line for row in self._rows(self.names) for line in row]
        else:
            parts = self._rows(self._place("list_eval_partition.txt"))
            names = sorted(row[0] for row in parts if row[1:] == [TEST])[: self.count]
        if self.names is None and len(names) != self.count:
            raise DataError(
                f"'{self.root}' has {len(names)} images in its test partition, wanted "
                f"{self.count}; complete it, or give count"
            )
        folder = self._place(FOLDERS[self.aligned])
        missing = [name for name in names if not (folder / name).is_file()]
        if missing or not names:
            raise DataError(f"'{folder}' lacks {len(missing)} of {len(names)}: {missing[:5]}")
        return names

    def run(self, predict: Predict) -> Results:
        """Score a predictor; it gets "b 1 3 s s" with s = ``image_size``.

        Raises:
            AssetNotFoundError, DataError: see ``samples``.
        """
        names = self.samples()
        failures: dict[str, list[str]] = defaultdict(list)
        found = {key: torch.full((len(names),), torch.nan) for key in self._metrics()}
        bar = tqdm(total=len(names), desc=self.name, unit="image", disable=not self.progress)
        for batch in self._batches(names, failures):
            errors = self._errors(predicted(predict, batch.images[:, None]), batch, failures)
            for key, values in found.items():
                values[batch.rows] = errors[key]
            bar.update(len(batch.rows))
        bar.close()
        table = [
            Metric(key, *MEANING[key], Summary.of(values), higher_is_better=key.startswith("cov"))
            for key, values in found.items()
        ]
        return Results(
            self.name,
            self._protocol(len(names)),
            table,
            len(names),
            dict(failures),
            per_sample={key: by_sample(names, values) for key, values in found.items()},
            curves={key: error_curve(found[key], most) for key, most in CURVES.items()},
            note=f"Crops of {self.image_size} x {self.image_size} pixels, margin "
            f"{self.crop_margin:g}.",
        )

    def _metrics(self) -> list[str]:
        return [key for key in MEANING if self.masks is not None or key != "coverage_percent"]

    def _protocol(self, count: int) -> str:
        which = "first of the test partition" if self.names is None else f"of '{self.names.name}'"
        mask = "drawn pixels" if self.masks is None else "drawn pixels in the given masks"
        kind = "aligned images" if self.aligned else "whole photographs"
        return (
            f"{count} {kind}, {which}; difference of colours over the {mask}, 0..255 in sRGB. "
            "Mean ± population std over the images."
        )

    def _errors(
        self, face: Reconstruction, batch: "_Batch", failures: dict[str, list[str]]
    ) -> dict[str, Float[Tensor, " b"]]:
        """The metrics of some images, NaN where there is no pixel."""
        picture, surface = render_reconstruction(face, self.image_size)
        picture, drawn = picture[:, 0], surface.mask[:, 0]
        mask = drawn * batch.masks
        finite = picture.isfinite().flatten(1).all(1) & face.vertices.isfinite().flatten(1).all(1)
        for reason, bad in (
            ("the predicted face is not finite", ~finite),
            ("no pixel of the face is drawn", finite & (mask.flatten(1).sum(1) == 0)),
        ):
            if bad.any():
                failures[reason] += [batch.names[k] for k in bad.nonzero().flatten().tolist()]
        errors = {
            "photometric_255": photometric_255(picture, batch.images, mask),
            "photometric_rgb_255": photometric_rgb_255(picture, batch.images, mask),
            "coverage_percent": coverage_percent(drawn, batch.masks),
        }
        return {key: values.masked_fill(~finite, torch.nan) for key, values in errors.items()}

    def _batches(self, names: list[str], failures: dict[str, list[str]]) -> Iterator["_Batch"]:
        five = self._five() if self.landmarks is None else {}
        for rows in torch.arange(len(names)).split(self.batch_size):
            images, masks, good = [], [], []
            for row in rows.tolist():
                try:
                    image, mask = self._crop(names[row], five)
                except DataError as error:
                    failures[str(error)].append(names[row])
                    continue
                images.append(image)
                masks.append(mask)
                good.append(row)
            if good:
                part = [names[row] for row in good]
                yield _Batch(part, torch.tensor(good), torch.stack(images), torch.stack(masks))

    def _crop(self, name: str, five: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """An image and which of its pixels count.

        Raises:
            DataError: a file is missing or damaged, in words that fit several images.
        """
        try:
            image = read_image(self._place(FOLDERS[self.aligned]) / name).float() / 255
        except DataError as error:
            raise DataError("the image cannot be read") from error
        mask = torch.ones_like(image[:1])
        if self.masks is not None:
            try:
                mask = read_image(self.masks / f"{Path(name).stem}.png", "L").float() / 255
            except DataError as error:
                raise DataError("its mask is missing or cannot be read") from error
            if mask.shape[-2:] != image.shape[-2:]:
                raise DataError("its mask has another size than the image")
        if self.landmarks is not None:
            points = FaceFinder(self.landmarks)(Path(name).stem, image)
            matrix = face_crop(points, torch.ones(68), self.image_size, self.crop_margin)
        elif name in five:
            matrix = five_point_crop(five[name], self.image_size, self.crop_margin)
        else:
            raise DataError("it is not in the list of landmarks")
        inside = warp(torch.ones_like(mask), matrix, self.image_size) > INSIDE
        face = warp(mask, matrix, self.image_size) > 0.5
        return warp(image, matrix, self.image_size).clamp(0, 1), (inside & face).float()

    def _five(self) -> dict[str, Float[Tensor, "5 2"]]:
        """The five points of each image."""
        path = self._place(LISTS[self.aligned])
        rows = self._rows(path)[2:]  # after the number of images and the names of the columns
        try:
            numbers = np.array([row[1:] for row in rows], np.float32).reshape(-1, 5, 2)
        except ValueError as error:
            raise DataError(
                f"'{path}' does not hold a name and ten numbers a line: {error}"
            ) from error
        return dict(zip([row[0] for row in rows], torch.from_numpy(numbers), strict=True))

    def _place(self, name: str) -> Path:
        paths = [self.root / place / name for place in PLACES]
        return next((path for path in paths if path.exists()), paths[0])

    def _rows(self, path: Path) -> list[list[str]]:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"the list '{path}' cannot be read: {error}") from error
        return [line.split() for line in lines if line.strip()]


@dataclass(frozen=True)
class _Batch:
    """Crops.

    Attributes:
        rows: among all images.
        masks: 1 where a pixel counts if it is drawn.
    """

    names: list[str]
    rows: Tensor
    images: Float[Tensor, "b 3 s s"]
    masks: Float[Tensor, "b 1 s s"]
