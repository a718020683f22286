"""BU-3DFE: faces from photographs against scans with expressions."""

import re
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from benchmarks.base import Predict, Results, listed, require_folder
from benchmarks.predictions import FaceMesh, fans
from benchmarks.scans import USUAL, ScanBenchmark, ScanProtocol
from benchmarks.views import FaceFinder, Views, lookup
from core.crop import MARGIN
from core.errors import DataError

SUBJECTS, SCANS_EACH = 100, 25  # a neutral one, and six expressions at four levels
TWO_VIEW_SUBJECTS, TWO_VIEW_MESHES = 13, 324  # ours: 13 x 25 - 1, as many as in the papers
NEUTRAL = "NE00"
POINTS = 83
EYES, NOSE, LIPS = (slice(0, 8), slice(8, 16)), slice(36, 48), slice(48, 60)  # rows of a .bnd
NOSE_REACH = 35.0  # mm around the nose's points, where the tip is looked for
LICENCE = "by a signed form of Binghamton University"


class BU3DFE(ScanBenchmark):
    """BU-3DFE (Yin et al. 2006), two protocols.

    On disk, 100 folders with 25 scans each, millimetres::

        F0001/F0001_AN01WH_F3D.wrl      VRML 2.0: point [...], coordIndex [...] (0-based, polygons)
        F0001/F0001_AN01WH_F3D.bnd      83 lines: index, x, y, z
        F0001/F0001_AN01WH_F2D.bmp      the texture, from the front
        F0001/F0001_AN01WH_RAW_0.jpg    the two cameras' pictures, at about +-45 degrees; also
        F0001/F0001_AN01WH_RAW_1.jpg    .png or .bmp: cut from _RAW.bmp

    Protocols:

    * "two_view" (FML, MGCNet): both pictures of a scan give one face; root mean square distance of
      324 meshes. The authors' 324 and their map of corresponding points are private. Ours are the
      first 13 subjects' scans by name, but for the last one; each scanned vertex is compared with
      the closest point after a similarity by landmarks and ICP.
    * "neutral" (Deng et al. 2019): the 100 neutral scans from ``_F2D.bmp``; the same alignment,
      root mean square of point-to-plane distances.

    Scans are cropped around the nose tip: the frontmost vertex near the 12 points of the nose. The
    other landmarks are the eyes' means of 8 points and the corners of the mouth, the outermost of
    its 12. (Order of the .bnd: two eyes of 8 points, two brows of 10, nose 12, lips 12 and 8,
    contour 15.)

    Args:
        root: of the data set.
        which: two_view or neutral.
        image_landmarks: folder with F0001/F0001_AN01WH_RAW_0.npy or .txt and so on; otherwise the
            detector looks for the face.
        protocol: how a face is compared with a scan.
        subjects: names to score these only; otherwise the data set must be whole.
        image_size: side of the crops of photographs, pixels: what the method takes.
        crop_margin: side of these in units of the landmarks' box: that of the training.
        progress: show a bar.
    """

    name = "bu3dfe"

    def __init__(
        self,
        root: Path,
        which: Literal["two_view", "neutral"] = "two_view",
        image_landmarks: Path | None = None,
        protocol: ScanProtocol = USUAL,
        subjects: list[str] | None = None,
        image_size: int = 256,
        crop_margin: float = MARGIN,
        progress: bool = True,
    ) -> None:
        super().__init__(protocol, progress)
        self.root, self.which, self.subjects = root, which, subjects
        self.views = Views(FaceFinder(image_landmarks), image_size, crop_margin)

    def samples(self) -> dict[str, list[str]]:
        """F0001/F0001_AN01WH and so on."""
        require_folder(
            "BU-3DFE",
            self.root,
            "Ask Binghamton University for it and give the folder of F0001 as root.",
            LICENCE,
        )
        found = sorted(path.name for path in self.root.glob("[FM][0-9]*") if path.is_dir())
        people = found if self.subjects is None else self.subjects
        missing = sorted(set(people) - set(found))
        if missing or not people or (self.subjects is None and len(found) != SUBJECTS):
            raise DataError(
                f"'{self.root}' holds {len(found)} subjects, wanted {SUBJECTS}; missing "
                f"{missing[:5] or 'some'}; complete it, or name those to score as subjects"
            )
        if self.which == "two_view" and self.subjects is None:
            people = people[:TWO_VIEW_SUBJECTS]
        names = [name for person in people for name in self._scans_of(person)]
        if self.which == "neutral":
            names = [name for name in names if NEUTRAL in name]
        elif self.subjects is None:
            names = names[:TWO_VIEW_MESHES]
        wanted = len(people) if self.which == "neutral" else TWO_VIEW_MESHES
        if self.subjects is None and len(names) != wanted:
            raise DataError(f"'{self.root}' has {len(names)} scans *_F3D.wrl, wanted {wanted}")
        return {self.which: names}

    def _scans_of(self, person: str) -> list[str]:
        files = sorted((self.root / person).glob("*_F3D.wrl"))
        return [f"{person}/{path.name.removesuffix('_F3D.wrl')}" for path in files]

    def describe(self) -> str:
        """The protocol's name and its subjects."""
        people = "" if self.subjects is None else f" of {listed(self.subjects, 'subjects')}"
        return f"Protocol '{self.which}', stand-ins for private lists and maps{people}."

    def scans(self, sample: str) -> list[FaceMesh]:
        """The one scan."""
        try:
            vertices, triangles = read_wrl(self.root / f"{sample}_F3D.wrl")
            points = read_bnd(self.root / f"{sample}_F3D.bnd")
        except OSError as error:
            raise DataError("its .wrl or .bnd is missing") from error
        return [FaceMesh(vertices, triangles, five_of(points, vertices))]

    def run(self, predict: Predict) -> Results:
        """Score a predictor on the photographs; it gets "1 v 3 s s", v = 2 or 1.

        Raises:
            AssetNotFoundError, DataError: see ``samples``; or there is no detector.
        """
        names = [name for group in self.samples().values() for name in group]
        found = self.views.predict(predict, ((name, self._photographs(name)) for name in names))
        return self.score(lambda sample: lookup(found, sample))

    def _photographs(self, sample: str) -> list[tuple[str, Path]]:
        stems = [f"{sample}_RAW_0", f"{sample}_RAW_1"]
        if self.which == "neutral":
            stems = [f"{sample}_F2D"]
        files = [(self.root / stem).with_name(f"{Path(stem).name}{end}") for stem in stems
                 for end in (".jpg", ".png", ".bmp")]  # fmt: skip
        there = {path.stem: path for path in reversed(files) if path.is_file()}
        return [(stem, there.get(Path(stem).name, self.root / stem)) for stem in stems]


def read_wrl(path: Path) -> tuple[Float[Tensor, "n 3"], Int[Tensor, "t 3"]]:
    """The first point and coordIndex lists of a VRML 2.0 file.

    Raises:
        OSError: the file is not there or may not be opened.
        DataError: it holds no such mesh.
    """
    text = path.read_bytes()
    points = re.search(rb"\bpoint\s*\[([^\]]*)\]", text)
    index = re.search(rb"\bcoordIndex\s*\[([^\]]*)\]", text)
    if points is None or index is None:
        raise DataError("its .wrl has no point [...] and coordIndex [...]")
    try:
        vertices = np.array(points[1].replace(b",", b" ").split(), np.float64).reshape(-1, 3)
        flat = np.array(index[1].replace(b",", b" ").split(), np.int64)
    except ValueError as error:
        raise DataError("its .wrl holds something else than numbers") from error
    triangles = fans(polygons(flat))
    if not len(triangles) or not 0 <= triangles.min() <= triangles.max() < len(vertices):
        raise DataError("its .wrl has no triangles, or of vertices that do not exist")
    return torch.from_numpy(vertices), torch.from_numpy(triangles)


def polygons(flat: np.ndarray) -> list[np.ndarray]:
    """Corners of polygons, each ended by -1, as groups of equally many corners."""
    if len(flat) and flat[-1] != -1:
        flat = np.append(flat, -1)
    ends = np.flatnonzero(flat == -1)
    starts = np.concatenate([[0], ends[:-1] + 1]).astype(np.int64)
    counts = ends - starts
    return [flat[starts[counts == k][:, None] + np.arange(k)] for k in np.unique(counts) if k >= 3]


def read_bnd(path: Path) -> Float[Tensor, "83 3"]:
    """The 83 points of a .bnd.

    Raises:
        OSError: the file is not there or may not be opened.
        DataError: it holds something else.
    """
    try:
        rows = np.loadtxt(path, ndmin=2)
    except ValueError as error:
        raise DataError("its .bnd holds something else than numbers") from error
    if rows.shape != (POINTS, 4) or not np.isfinite(rows).all():
        raise DataError(f"its .bnd has the shape {rows.shape}, wanted {POINTS} lines of 4 numbers")
    return torch.from_numpy(rows[:, 1:])


def five_of(points: Float[Tensor, "83 3"], vertices: Float[Tensor, "n 3"]) -> Float[Tensor, "5 3"]:
    """Right and left eye, nose tip, right and left mouth corner; sides are the subject's."""
    eyes = torch.stack([points[rows].mean(0) for rows in EYES])
    eyes = eyes[eyes[:, 0].argsort()]
    lips = points[LIPS]
    corners = torch.stack([lips[lips[:, 0].argmin()], lips[lips[:, 0].argmax()]])
    middle = points[NOSE].mean(0)
    near = vertices[(vertices - middle).norm(dim=-1) < NOSE_REACH]
    if not len(near):
        raise DataError("no vertex is near the nose's points of the .bnd")
    return torch.stack([eyes[0], eyes[1], near[near[:, 2].argmax()], corners[0], corners[1]])
