"""FRGC v2: faces from photographs against range images of the same moment."""

import gzip
import re
import zlib
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from benchmarks.base import Predict, Results, listed, require_folder
from benchmarks.predictions import FaceMesh
from benchmarks.scans import USUAL, ScanBenchmark, ScanProtocol
from benchmarks.views import FaceFinder, Views, lookup
from core.crop import MARGIN
from core.errors import DataError
from core.image_files import read_image

FOLDERS = ("Fall2003range", "Spring2004range")  # version 2; Spring2003range is version 1
SCANS, DRAWN = 4007, 1335
LICENCE = "by a signed form of the University of Notre Dame"


class FRGC(ScanBenchmark):
    """FRGC v2 (Phillips et al. 2005), the protocol of MGCNet (Shang et al. 2020).

    On disk (``nd1`` of FRGC-2.0-dist)::

        Fall2003range/02463d546.abs.gz   range image; also unpacked, and Spring2004range
        Fall2003range/02463d547.ppm      photograph of the same moment and grid; the next number,
                                         or the same; also .jpg

    An .abs is text: "480 rows", "640 columns", a line of names, then four lines of numbers row by
    row: flags (1 = measured), x, y, z in mm.

    Protocol. 1,335 of the 4,007 scans drawn at random (which ones is not public: ours come from a
    seed); cropped to 95 mm around the nose tip; landmarks, then ICP; mean distance of the scanned
    points to the face. The landmarks of a scan are those of its photograph, at the nearest measured
    pixel.

    Args:
        root: the folder of Fall2003range.
        image_landmarks: folder with 02463d546.npy or .txt and so on, named like the scans;
            otherwise the detector looks for the face.
        protocol: how a face is compared with a scan; not ``symmetric``, for a range image is no
            surface.
        seed: of the choice of scans.
        names: scans to score these only (02463d546); otherwise the data set must be whole.
        image_size: side of the crops of photographs, pixels: what the method takes.
        crop_margin: side of these in units of the landmarks' box: that of the training.
        progress: show a bar.
    """

    name = "frgc"

    def __init__(
        self,
        root: Path,
        image_landmarks: Path | None = None,
        protocol: ScanProtocol = USUAL,
        seed: int = 0,
        names: list[str] | None = None,
        image_size: int = 256,
        crop_margin: float = MARGIN,
        progress: bool = True,
    ) -> None:
        if protocol.symmetric:
            raise DataError("FRGC: protocol.symmetric needs scans with triangles; leave it false")
        super().__init__(protocol, progress)
        self.root, self.seed, self.names = root, seed, names
        self.views = Views(FaceFinder(image_landmarks), image_size, crop_margin)
        self._files: dict[str, Path] = {}

    def samples(self) -> dict[str, list[str]]:
        """The names of the scans."""
        require_folder(
            "FRGC v2",
            self.root,
            "Ask the University of Notre Dame for it and give the folder of Fall2003range.",
            LICENCE,
        )
        paths = [path for name in FOLDERS for path in (self.root / name).glob("*.abs*")]
        self._files = {path.name.partition(".")[0]: path for path in sorted(paths)}
        if self.names is not None:
            missing = [name for name in self.names if name not in self._files]
            if missing or not self.names:
                raise DataError(f"'{self.root}' lacks the scans {missing[:5]}")
            return {"scans": self.names}
        if len(self._files) != SCANS:
            raise DataError(
                f"'{self.root}' holds {len(self._files)} scans in {' and '.join(FOLDERS)}, wanted "
                f"{SCANS}; complete it, or name those to score as names"
            )
        found = np.array(sorted(self._files))
        drawn = np.random.default_rng(self.seed).choice(found, DRAWN, replace=False)
        return {"scans": sorted(drawn.tolist())}

    def describe(self) -> str:
        """Which scans."""
        if self.names is not None:
            return f"{listed(self.names, 'scans')}; 'point' is MGCNet's error."
        return (
            f"{DRAWN} of {SCANS} scans, seed {self.seed}; the mean point-to-point distance is "
            "MGCNet's error."
        )

    def scans(self, sample: str) -> list[FaceMesh]:
        """The one scan, a cloud of points."""
        positions, valid = read_abs(self._files[sample])
        image = _read(self._photograph(sample))
        pixels = self.views.finder(sample, image)
        landmarks = at_pixels(positions, valid, pixels, (image.shape[-2], image.shape[-1]))
        empty = torch.zeros(0, 3, dtype=torch.int64)
        return [FaceMesh(positions[valid], empty, landmarks)]

    def run(self, predict: Predict) -> Results:
        """Score a predictor on the photographs; it gets "1 1 3 s s".

        Raises:
            AssetNotFoundError, DataError: see ``samples``; or there is no detector.
        """
        (names,) = self.samples().values()
        files = ((name, [(name, self._photograph(name))]) for name in names)
        found = self.views.predict(predict, files)
        return self.score(lambda sample: lookup(found, sample))

    def _photograph(self, sample: str) -> Path:
        person, _, number = sample.partition("d")
        folder = self._files[sample].parent
        stems = [f"{person}d{int(number) + 1:0{len(number)}}", sample]
        paths = [folder / f"{stem}{end}" for stem in stems for end in (".ppm", ".jpg", ".png")]
        return next((path for path in paths if path.is_file()), paths[0])


def _read(path: Path) -> Tensor:
    try:
        return read_image(path).float() / 255
    except DataError as error:
        raise DataError("its photograph is missing or cannot be read") from error


def read_abs(path: Path) -> tuple[Float[Tensor, "h w 3"], Bool[Tensor, "h w"]]:
    """Positions in mm, and which of them were measured, of an .abs or .abs.gz.

    Raises:
        DataError: it is damaged; its message names no file, so that equal failures of several
            samples read equal.
    """
    try:
        content = path.read_bytes()
        lines = (gzip.decompress(content) if path.suffix == ".gz" else content).splitlines()
        height, width = (int(re.findall(rb"\d+", line)[0]) for line in lines[:2])
        rows = [np.array(line.split(), np.float64) for line in lines[3:7]]
        grid = np.stack([row.reshape(height, width) for row in rows])
    except (OSError, EOFError, zlib.error, ValueError, IndexError) as error:
        raise DataError("its .abs cannot be read") from error
    if len(grid) != 4:
        raise DataError("its .abs has not the four lines of flags, x, y and z")
    return torch.from_numpy(grid[1:]).movedim(0, -1), torch.from_numpy(grid[0] == 1)


def at_pixels(
    positions: Float[Tensor, "h w 3"],
    valid: Bool[Tensor, "h w"],
    pixels: Float[Tensor, "k 2"],
    size: tuple[int, int],
) -> Float[Tensor, "k 3"]:
    """The positions at the measured pixels nearest to some of the photograph.

    Args:
        positions: of a range image.
        valid: which were measured.
        pixels: of the photograph, origin at its top left corner.
        size: of the photograph, (height, width); it covers the same field as the range image.

    Raises:
        DataError: nothing was measured.
    """
    if not valid.any():
        raise DataError("its .abs has no measured point")
    height, width = valid.shape
    wanted = pixels.double() * torch.tensor([width / size[1], height / size[0]]).double()
    where = valid.nonzero()
    nearest = torch.cdist(wanted, where.flip(1).double() + 0.5).argmin(1)
    return positions[valid][nearest]
