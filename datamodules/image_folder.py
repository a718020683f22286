"""Folders of photographs with landmarks: LS3D-W, LFW, IJB-A, Menpo, or anybody's.

On disk, each folder as Deng et al. lay theirs out, folders within folders at will:

    <root>/.../<name>.jpg
        or .png
    <root>/.../landmarks/<name>.txt
        or .npy, .pts or .t7, or beside the image: 68 points
    <root>/.../detections/<name>.txt
        or .npy, .pts or .t7: a detector's five points, which suffice
    <root>/.../mask/<name>.png
        grey, size of the image, as FaceBatch.masks: 255 = face seen, 0 = not
    <first root>/splits/{train,val,test}.txt
        optional: an identity a line (see below); # starts a comment

* ``landmarks``, ``detections`` and ``mask`` lie in the folder of the images that they belong to.
* Text: a line ``x y`` a point; pixels, origin at the top left corner of the image, x right, y down.
  .pts as 300-W's, .t7 as LS3D-W's. datamodules/landmark_files.py says more. Files of other numbers
  of points, as Menpo's 39 for profiles, cannot be used: such frames are left out and counted.
* Frames that have five points only are cropped by them; their 68 landmarks have confidence 0, and
  without a mask theirs is 1 all over the image.
* Where a folder has a ``mask``, an image that has none in it is not used.
* Identities: each image is a person of its own, named by its path below the root without suffix; or
  each folder of images is a person, named by its path, as in LFW. With several roots the name of
  the root comes first: "LFW/Aaron_Eckhart".
* Without ``splits`` the identities are divided by a hash of their names: 10 % val, 10 % test.
* LS3D-W's part 300VW-3D holds the frames of 114 videos, a folder each: with ``folders_are_people``
  each is a person and a clip; otherwise frames of one person would be in several splits.

Deng et al., Accurate 3D face reconstruction with weakly-supervised learning, CVPR workshops 2019.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import DataError
from datamodules.base import Clip, FaceDataModule, Fault, Frame
from datamodules.listing import (
    IMAGES,
    Listing,
    clips_by_split,
    face_frame,
    faulty,
    first_file,
    image_clips,
    listed_or_divided,
    load_image,
    load_landmarks,
    report,
    require_folder,
    stem,
    walk,
    with_suffix,
)

LANDMARKS = (".txt", ".npy", ".pts", ".t7")
POINTS = ("landmarks", "", "detections")  # where they are looked for, in this order
MASKS = "mask"
WANTED = "<name>.jpg with landmarks/<name>.txt (68 points) or detections/<name>.txt (5)"


class ImageFolder(FaceDataModule):
    """Photographs, laid out as this module's docstring says.

    Args:
        root: the folder, or several.
        folders_are_people: all images of a folder show one person and are a clip; else each image
            is a clip.
        split_seed: of the division of the identities where there are no lists.
        **options: of ``FaceDataModule``.
    """

    def __init__(
        self,
        root: Path | list[Path],
        folders_are_people: bool = False,
        split_seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.roots = [Path(path) for path in (root if isinstance(root, list) else [root])]
        self.folders_are_people, self.split_seed = folders_are_people, split_seed

    def source(self) -> "Photographs":
        """The folders, listed."""
        return Photographs.scan(self.roots, self.folders_are_people, self.split_seed)


@dataclass(frozen=True)
class Photographs(Listing):
    """The images that have landmarks.

    Attributes:
        roots: the folders by their names; "" where there is only one.
        folders_are_people: a clip is named by its folder, not by its image.
    """

    roots: dict[str, Path]
    folders_are_people: bool

    @classmethod
    def scan(
        cls, roots: list[Path], folders_are_people: bool = False, split_seed: int = 0
    ) -> "Photographs":
        """List the folders.

        Args:
            roots: the folders.
            folders_are_people: as in ``ImageFolder``.
            split_seed: of the division where there are no lists.

        Raises:
            AssetNotFoundError: there is no such folder.
            DataError: it holds something else, two roots have one name, or the lists in ``splits``
                overlap.
        """
        for path in roots:
            require_folder("Photographs", path, WANTED)
        named = {path.resolve().name: path for path in roots}
        if not roots or len(named) < len(roots):
            raise DataError(f"root: {[str(path) for path in roots]}, wanted folders of other names")
        left_out: Counter[str] = Counter()
        found: list[tuple[str, str]] = []  # identity, path
        for name, root in named.items():
            fault: Counter[str] = Counter()
            paths = _images_of(root, fault)
            report(root, len(paths), WANTED, fault)
            left_out += fault
            if len(named) > 1:
                paths = [f"{name}/{path}" for path in paths]
            whose = [
                path.rpartition("/")[0] if folders_are_people else stem(path) for path in paths
            ]
            if "" in whose:
                raise DataError(f"'{root}' itself has images, wanted a folder for each person")
            found += zip(whose, paths, strict=True)
        people = listed_or_divided(
            roots[0] / "splits", sorted({who for who, _ in found}), split_seed
        )
        splits = clips_by_split(image_clips(found, folders_are_people), people)
        places = named if len(named) > 1 else {"": roots[0]}
        return cls(roots[0], splits, dict(left_out), places, folders_are_people)

    def __str__(self) -> str:
        return ", ".join(f"'{root}'" for root in self.roots.values())

    def read(self, clip: Clip, index: int) -> Frame:
        """One frame.

        Raises:
            UnusableFrameError: a file is missing, damaged, or of another kind.
        """
        name = clip.frames[index].decode()
        folder = self._folder(clip)
        files = [
            folder / place / f"{stem(name)}{suffix}" for place in POINTS for suffix in LANDMARKS
        ]
        found = first_file(files) or files[0]
        points, confidence = load_landmarks(found)
        image, mask = load_image(folder / name), None
        with faulty(Fault.MASK):
            masked = (folder / MASKS).is_dir()
        if masked:
            mask = load_image(folder / MASKS / f"{stem(name)}.png", "L", Fault.MASK)
        return face_frame(image, points, confidence, mask)

    def _folder(self, clip: Clip) -> Path:
        place = clip.name if self.folders_are_people else clip.name.rpartition("/")[0]
        if "" in self.roots:
            return self.root / place
        name, _, rest = place.partition("/")
        return self.roots[name] / rest


def _images_of(root: Path, left_out: Counter[str]) -> list[str]:
    """Paths of the images that have all they need."""
    tree = dict(walk(root, left_out))
    found = []
    for folder, files in tree.items():
        if folder.rpartition("/")[2] in (*POINTS[::2], MASKS):
            continue
        images = {stem(name): name for name in reversed(with_suffix(files, IMAGES))}
        left_out["images of the same name"] += len(with_suffix(files, IMAGES)) - len(images)
        places = [f"{folder}/{place}".strip("/") for place in POINTS]
        points = [name for place in places for name in tree.get(place, [])]
        known = {stem(name) for name in with_suffix(points, LANDMARKS)}
        left_out["images without landmarks"] += len(images.keys() - known)
        if (masks := f"{folder}/{MASKS}".strip("/")) in tree:
            masked = {stem(name) for name in with_suffix(tree[masks], (".png",))}
            left_out["images without a mask"] += len(images.keys() & known - masked)
            known &= masked
        found += [f"{folder}/{images[name]}".lstrip("/") for name in sorted(images.keys() & known)]
    left_out += Counter()  # drops the zeros
    return found
