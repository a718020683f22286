"""300W-LP, photographs turned to the side, and AFLW2000-3D, in the layout of their releases.

On disk:

    <root>/{AFW,HELEN,IBUG,LFPW}/<name>.jpg, <name>.mat
        450 x 450 pixels, e.g. IBUG/IBUG_image_008_1_0.jpg: the last number counts the steps by
        which the head was turned, 0 = the photograph itself; the number before it counts the faces
        of a photograph
    <root>/{AFW,HELEN,IBUG,LFPW}_Flip/<name>.jpg, <name>.mat
        the mirror images, under the same names
    <root>/landmarks/{AFW,HELEN,IBUG,LFPW}/<name>_pts.mat
        pts_2d, pts_3d (68, 2); not of the mirror images
    <root>/Code
        not read

    <root of AFLW2000-3D>/image<number>.jpg, .mat

A .mat (MATLAB 5) holds, among others:

    pt2d        (2, 68)    landmarks, their jaw along the outline that is seen; in AFLW2000-3D
                           (2, 21) of another kind, not read
    pt3d_68     (3, 68)    AFLW2000-3D only: x, y, and z towards the camera
    Pose_Para   (1, 7)     pitch, yaw, roll in radians, translation x, y, z in pixels, scale
    Shape_Para  (199, 1)   of the Basel Face Model 2009's modes of unit length, micrometres
    Exp_Para    (29, 1)    of the 29 modes of Model_Exp.mat

* All points are MATLAB's: the centre of the first pixel is (1, 1). Here they become (0.5, 0.5).
* The fitted face is scale R (shape) + translation with R = Rx(pitch) Ry(yaw) Rz(roll) as
  ``core.rotation`` has it, y up: the pixel from the top is height + 1 - y.
* "2d" landmarks and those of the fitted face differ: in profiles the jaws lie tens of pixels apart.
  ``pts_3d`` are the latter, without z.
* A clip holds one face of one photograph at all its yaws. As faces are not symmetric the mirror
  images show another person, "<name> mirrored"; in the same split as the original.
* 122,450 images: AFW 5,207, HELEN 37,676, IBUG 1,786, LFPW 16,556, and as many mirrored; 2,000 in
  AFLW2000-3D.

http://www.cbsr.ia.ac.cn/users/xiangyuzhu/projects/3DDFA/main.htm: research only; the photographs of
300-W are for non-commercial use, AFLW's may not be passed on. Zhu et al., Face alignment across
large poses, CVPR 2016.
"""

from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from core.errors import DataError
from core.face_models.files import read_mat
from core.face_models.fitted import FIT, POSE, BaselFit
from core.face_models.importers import bfm2009
from core.landmarks import mirror
from datamodules.base import Clip, FaceDataModule, Fault, Frame
from datamodules.listing import (
    Listing,
    clips_by_split,
    entries,
    faulty,
    listed_or_divided,
    load_image,
    report,
    require_folder,
    stem,
    with_suffix,
)

SETS = ("AFW", "HELEN", "IBUG", "LFPW")
MIRRORED, MIRROR_PERSON = "_Flip", " mirrored"  # ends of a folder's name, of an identity
WANTED = "{AFW,HELEN,IBUG,LFPW}/<name>.jpg and <name>.mat"
WANTED_AFLW = "image<number>.jpg and image<number>.mat"
LICENCE = "research; see http://www.cbsr.ia.ac.cn/users/xiangyuzhu/projects/3DDFA/main.htm"


class W300LP(FaceDataModule):
    """300W-LP, laid out as this module's docstring says.

    Args:
        root: the folder.
        landmarks: "2d", with the outline that is seen as jaw; or "3d", of the fitted face: from
            ``basel`` if it is given, else from the folder ``landmarks``.
        basel: folder with 01_MorphableModel.mat, BFM_exp_idx.mat and Model_Exp.mat, as for the
            import of the Basel Face Model 2009: frames get the 3D landmarks of the fitted face.
            The imported model does not do, as it has modes per standard deviation only.
        flips: use the mirror images, too.
        split_seed: of the division into training, validation and test, 80 : 10 : 10, where there
            are no ``<root>/splits/{train,val,test}.txt`` (names as IBUG_image_008_1).
        **options: of ``FaceDataModule``.
    """

    def __init__(
        self,
        root: Path,
        landmarks: Literal["2d", "3d"] = "2d",
        basel: Path | None = None,
        flips: bool = True,
        split_seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.root, self.landmarks, self.flips = Path(root), landmarks, flips
        self.basel, self.split_seed = basel, split_seed

    def source(self) -> "TurnedFaces":
        """The folders, listed."""
        basis = landmark_basis(Path(self.basel)) if self.basel else None
        return TurnedFaces.scan(self.root, self.landmarks, basis, self.flips, self.split_seed)


class AFLW2000(FaceDataModule):
    """AFLW2000-3D, laid out as this module's docstring says; all of it is for testing.

    Args:
        root: the folder.
        **options: of ``FaceDataModule``.
    """

    def __init__(self, root: Path, **options: Any) -> None:
        super().__init__(**options)
        self.root = Path(root)

    def source(self) -> "FittedFaces":
        """The folder, listed."""
        return FittedFaces.scan(self.root)


def landmark_basis(folder: Path) -> BaselFit:
    """The 68 landmarks of the Basel Face Model 2009; see ``BaselFit.from_folder``."""
    return BaselFit.from_folder(folder, np.array(bfm2009.KEYPOINTS))


@dataclass(frozen=True)
class TurnedFaces(Listing):
    """The images of 300W-LP.

    Attributes:
        landmarks: which are read.
        basis: computes the 3D landmarks.
    """

    landmarks: Literal["2d", "3d"] = "2d"
    basis: BaselFit | None = None

    @classmethod
    def scan(
        cls,
        root: Path,
        landmarks: Literal["2d", "3d"] = "2d",
        basis: BaselFit | None = None,
        flips: bool = True,
        split_seed: int = 0,
    ) -> "TurnedFaces":
        """List the folders.

        Args:
            root: the folder.
            landmarks: see the class.
            basis: see the class.
            flips: list the mirror images, too.
            split_seed: of the division where there are no lists.

        Raises:
            AssetNotFoundError: there is no such folder.
            DataError: it holds something else, or the lists in ``splits`` overlap.
        """
        require_folder("300W-LP", root, WANTED, LICENCE)
        left_out: Counter[str] = Counter()
        endings = ("", MIRRORED) if flips else ("",)
        clips = [
            clip
            for ending in endings
            for name in SETS
            for clip in _clips_of(root, name + ending, landmarks == "3d" and not basis, left_out)
        ]
        report(root, len(clips), WANTED, left_out)
        people = sorted({clip.identity.removesuffix(MIRROR_PERSON) for clip in clips})
        chosen = listed_or_divided(root / "splits", people, split_seed)
        both = {s: [*names, *(n + MIRROR_PERSON for n in names)] for s, names in chosen.items()}
        splits = clips_by_split(clips, both)
        return cls(root, splits, dict(left_out), landmarks, basis)

    def read(self, clip: Clip, index: int) -> Frame:
        """One frame.

        Raises:
            UnusableFrameError: a file is missing, damaged, or of another kind.
        """
        name = stem(clip.frames[index].decode())
        folder = clip.name.partition("/")[0]
        image = load_image(self.root / folder / f"{name}.jpg")
        path = self.root / folder / f"{name}.mat"
        points_3d = None
        with faulty(Fault.LANDMARKS):
            if self.basis:
                fit = {key: _numbers(array).flatten() for key, array in read_mat(path, FIT).items()}
                points_3d = self.basis.project(
                    fit["Pose_Para"], fit["Shape_Para"], fit["Exp_Para"], image.shape[1]
                )
            if self.landmarks == "2d":
                points = _numbers(read_mat(path, {"pt2d": (2, 68)})["pt2d"]).T - 0.5
            elif points_3d is not None:
                points = points_3d[:, :2]
            else:
                original = folder.removesuffix(MIRRORED)
                path = self.root / "landmarks" / original / f"{name}_pts.mat"
                points = _numbers(read_mat(path, {"pts_3d": (68, 2)})["pts_3d"]) - 0.5
                if original != folder:
                    points = mirror(points, image.shape[2])
        return Frame(image, points, torch.ones(68), landmarks_3d=points_3d)


def _clips_of(root: Path, folder: str, by_files: bool, left_out: Counter[str]) -> list[Clip]:
    """The clips of a folder: its images that have a .mat and, if asked for, a file of points."""
    _, files = entries(root / folder, left_out)
    fitted = {stem(name) for name in with_suffix(files, (".mat",))}
    if by_files:
        _, points = entries(root / "landmarks" / folder.removesuffix(MIRRORED), left_out)
        fitted &= {name.removesuffix("_pts.mat") for name in points}
    groups: dict[str, list[str]] = defaultdict(list)
    for name in with_suffix(files, (".jpg",)):
        if stem(name) in fitted:
            groups[stem(name).rpartition("_")[0]].append(name)
        else:
            left_out["images without landmarks"] += 1
    person = MIRROR_PERSON if folder.endswith(MIRRORED) else ""
    return [
        Clip(f"{folder}/{group}", group + person, *_by_step(root / folder, groups[group], left_out))
        for group in tqdm(sorted(groups), f"listing {folder}", disable=None, leave=False)
    ]


def _by_step(
    folder: Path, names: list[str], left_out: Counter[str]
) -> tuple[np.ndarray, Float[np.ndarray, " n"]]:
    """Frames by the number of steps that they were turned, and their yaws, degrees."""
    names = sorted(names, key=lambda name: (len(name), name))
    yaw = [_yaw(folder / f"{stem(name)}.mat", left_out) for name in names]
    return np.array([name.encode() for name in names]), np.array(yaw)


def _yaw(path: Path, left_out: Counter[str]) -> float:
    """Degrees; NaN if the file cannot be read."""
    try:
        return float(np.degrees(read_mat(path, POSE)["Pose_Para"][0, 1]))
    except (DataError, OSError):
        left_out["poses that cannot be read"] += 1
        return np.nan


def _numbers(array: np.ndarray) -> Float[Tensor, "..."]:
    return torch.from_numpy(np.ascontiguousarray(array, np.float32))


@dataclass(frozen=True)
class FittedFaces(Listing):
    """The images of AFLW2000-3D, each a clip."""

    @classmethod
    def scan(cls, root: Path) -> "FittedFaces":
        """List the folder.

        Raises:
            AssetNotFoundError: there is no such folder.
            DataError: it holds something else.
        """
        require_folder("AFLW2000-3D", root, WANTED_AFLW, LICENCE)
        left_out: Counter[str] = Counter()
        _, files = entries(root, left_out)
        fitted = {stem(name) for name in with_suffix(files, (".mat",))}
        images = with_suffix(files, (".jpg",))
        names = [stem(name) for name in images if stem(name) in fitted]
        if len(names) < len(images):
            left_out["images without landmarks"] += len(images) - len(names)
        clips = [Clip(name, name, *_by_step(root, [f"{name}.jpg"], left_out)) for name in names]
        report(root, len(clips), WANTED_AFLW, left_out)
        return cls(root, {"train": [], "val": [], "test": clips}, dict(left_out))

    def read(self, clip: Clip, index: int) -> Frame:
        """One frame.

        Raises:
            UnusableFrameError: a file is missing, damaged, or of another kind.
        """
        image = load_image(self.root / f"{clip.name}.jpg")
        with faulty(Fault.LANDMARKS):
            points = read_mat(self.root / f"{clip.name}.mat", {"pt3d_68": (3, 68)})["pt3d_68"]
        points_3d = _numbers(points.T) - torch.tensor([0.5, 0.5, 0])
        return Frame(image, points_3d[:, :2], torch.ones(68), landmarks_3d=points_3d)
