"""What the readers of datasets share: folders listed, people divided, files read into frames.

No listing shows hidden names. Names that are not UTF-8, folders that cannot be opened and folders
that links lead to a second time are left out and counted.
"""

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from core.errors import AssetNotFoundError, DataError
from core.image_files import read_image
from datamodules.clips import Clip, Fault, Frame, Split, UnusableFrameError
from datamodules.landmark_files import read_landmarks

log = logging.getLogger(__name__)

IMAGES = (".jpg", ".jpeg", ".png")
SHARE = 0.1  # of the people, in val and in test, where no lists are given


@dataclass(frozen=True)
class Listing:
    """A dataset as listed; subclasses read its frames.

    Attributes:
        root: its folder.
        splits: the clips of each split, in an order that does not change.
        left_out: what the listing left out, by kind.
    """

    root: Path
    splits: dict[str, list[Clip]]
    left_out: dict[str, int]

    def __str__(self) -> str:
        return f"'{self.root}'"

    def clips(self, split: Split) -> list[Clip]:
        """The clips of a split."""
        return self.splits[split]


def require_folder(dataset: str, root: Path, wanted: str, licence: str | None = None) -> None:
    """Raise AssetNotFoundError unless there is such a folder; ``wanted`` says what is in it."""
    if why := closed(root):
        raise AssetNotFoundError(
            dataset,
            f"'{root}' ({why})",
            f"Wanted a folder with {wanted}; give it as --data.root.",
            licence,
        )


def closed(folder: Path) -> str:
    """Why a folder cannot be looked into; empty if it can."""
    try:
        os.scandir(folder).close()
    except FileNotFoundError:
        return "no such folder"
    except NotADirectoryError:
        return "a file"
    except OSError as error:  # among them links in a circle
        return f"cannot be opened: {error.strerror}"
    return ""


def contents(folder: Path) -> str:
    """What is in a folder, for messages, or why that cannot be said."""
    if why := closed(folder):
        return why
    names = sorted(path.name.encode(errors="replace").decode() for path in folder.iterdir())
    return str(names[:6]) if names else "nothing"


def report(root: Path, count: int, wanted: str, left_out: Counter[str]) -> None:
    """Log what was left out of a listing.

    Args:
        root: the folder.
        count: of the frames that were found.
        wanted: how they have to be laid out.
        left_out: by kind.

    Raises:
        DataError: no frame was found; says what is in the folder instead.
    """
    if not count:
        text = f"no frames in '{root}': found {contents(root)}, wanted {wanted}"
        if left_out:
            text += "; left out: " + ", ".join(f"{n} {kind}" for kind, n in left_out.items())
        raise DataError(text)
    for kind, number in left_out.items():
        log.warning("'%s': %d %s left out", root, number, kind)


def entries(folder: Path, left_out: Counter[str]) -> tuple[list[str], list[str]]:
    """Names of the folders and of the files in a folder, sorted; none if it is not there."""
    folders, files = [], []
    try:
        with os.scandir(folder) as found:
            for entry in found:
                if entry.name.startswith("."):
                    continue
                if not is_utf8(entry.name):
                    left_out["names that are not UTF-8"] += 1
                elif _is_folder(entry):
                    folders.append(entry.name)
                else:
                    files.append(entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return [], []
    except OSError:
        left_out["folders that cannot be opened"] += 1
    return sorted(folders), sorted(files)


def walk(root: Path, left_out: Counter[str]) -> Iterator[tuple[str, list[str]]]:
    """Every folder below a root, "" first, with the names of its files, in a fixed order."""
    entered = set()
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        try:
            status = (root / folder).stat()
        except OSError:  # gone, or a link in a circle
            left_out["folders that cannot be opened"] += 1
            continue
        if (status.st_dev, status.st_ino) in entered:
            left_out["folders that are linked to again"] += 1
            continue
        entered.add((status.st_dev, status.st_ino))
        folders, files = entries(root / folder, left_out)
        yield folder, files
        waiting += [f"{folder}/{name}".lstrip("/") for name in reversed(folders)]


def with_suffix(names: Iterable[str], suffixes: tuple[str, ...]) -> list[str]:
    """The names of files of these kinds."""
    return [name for name in names if name.lower().endswith(suffixes)]


def stem(name: str) -> str:
    """A file's name without its suffix."""
    return name.rpartition(".")[0]


def divide(people: Iterable[str], seed: int = 0) -> dict[str, list[str]]:
    """People by a hash of their names: a tenth each for val and test, at least one; each sorted.

    Another seed gives another division; more people leave most others where they are.
    """
    salt = seed.to_bytes(8, "little")
    ranked = sorted(people, key=lambda name: hashlib.blake2b(name.encode(), salt=salt).digest())
    share = max(1, round(SHARE * len(ranked))) if len(ranked) > 2 else 0
    chosen = {"val": ranked[:share], "test": ranked[share : 2 * share]}
    chosen["train"] = ranked[2 * share :]
    return {split: sorted(names) for split, names in chosen.items()}


def listed_or_divided(folder: Path, people: Sequence[str], seed: int = 0) -> dict[str, list[str]]:
    """The people of each split, by ``<folder>/{train,val,test}.txt`` if there is one, else divided.

    Args:
        folder: of the lists: a name a line, # starts a comment.
        people: those of the dataset.
        seed: of ``divide``.

    Raises:
        DataError: the lists overlap, name nobody or are not UTF-8.
    """
    lists = {split: _lines(folder / f"{split}.txt") for split in get_args(Split)}
    if not any(lines is not None for lines in lists.values()):
        return divide(people, seed)
    known, names = set(people), {}
    for split, lines in lists.items():
        listed = {text for line in lines or () if (text := line.partition("#")[0].strip())}
        if absent := listed - known:
            log.warning(
                "'%s/%s.txt': %d of %d have no frames", folder, split, len(absent), len(listed)
            )
        names[split] = sorted(listed & known)
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        if both := set(names[one]) & set(names[other]):
            raise DataError(
                f"'{folder}': {sorted(both)[:5]} are in {one}.txt and in {other}.txt; "
                "an identity may be in one split only"
            )
    if not any(names.values()):
        raise DataError(f"'{folder}' names none of the identities, e.g. '{min(people)}'")
    return names


def _lines(path: Path) -> list[str] | None:
    """Of a text, which some editors begin with a mark; None if there is none.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return path.read_text("utf-8-sig").splitlines()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"'{path}' is not a list of names in UTF-8: {error}") from error


def clips_by_split(clips: Iterable[Clip], people: dict[str, list[str]]) -> dict[str, list[Clip]]:
    """The clips of each split's people."""
    home = {person: split for split, names in people.items() for person in names}
    splits: dict[str, list[Clip]] = {split: [] for split in get_args(Split)}
    for clip in clips:
        if clip.identity in home:
            splits[home[clip.identity]].append(clip)
    return splits


def image_clips(images: Iterable[tuple[str, str]], by_person: bool) -> list[Clip]:
    """Clips of single images.

    Args:
        images: the person and the path of each.
        by_person: all images of a person are a clip, named by the person; else each image is one,
            named by its path without suffix.
    """
    clips: dict[str, tuple[str, list[bytes]]] = {}
    for person, path in images:
        frames = clips.setdefault(person if by_person else stem(path), (person, []))[1]
        frames.append(path.rpartition("/")[2].encode())
    return [Clip(name, person, np.array(frames)) for name, (person, frames) in clips.items()]


def first_file(paths: Iterable[Path]) -> Path | None:
    """The first one that is there, past places that cannot be reached.

    Raises:
        UnusableFrameError: none is, and one may be where it could not be reached.
    """
    unreached = None
    for path in paths:
        try:
            if S_ISREG(path.stat().st_mode):
                return path
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            unreached = error
    if unreached:
        raise UnusableFrameError(Fault.LANDMARKS, str(unreached)) from unreached
    return None


def load_image(
    path: Path, mode: Literal["RGB", "L"] = "RGB", fault: Fault = Fault.IMAGE
) -> UInt8[Tensor, "c h w"]:
    """``read_image`` for a ``ClipSource``.

    Raises:
        UnusableFrameError: it cannot be decoded.
    """
    with faulty(fault):
        return read_image(path, mode)


def load_landmarks(path: Path) -> tuple[Float[Tensor, "k 2"], Float[Tensor, " k"]]:
    """``read_landmarks`` for a ``ClipSource``.

    Raises:
        UnusableFrameError: the file does not hold 5 or 68 landmarks.
    """
    with faulty(Fault.LANDMARKS):
        return read_landmarks(path)


@contextmanager
def faulty(fault: Fault) -> Iterator[None]:
    """A bad file in the block becomes an UnusableFrameError of this kind."""
    try:
        yield
    except (DataError, OSError) as error:
        raise UnusableFrameError(fault, str(error)) from error


def face_frame(
    image: UInt8[Tensor, "3 h w"],
    points: Float[Tensor, "k 2"],
    confidence: Float[Tensor, " k"],
    mask: UInt8[Tensor, "1 _ _"] | None = None,
) -> Frame:
    """A frame of 68 landmarks, or of a detector's five: all 68 are missing then.

    Raises:
        UnusableFrameError: one of the five is missing.
    """
    if len(points) == 68:
        return Frame(image, points, confidence, mask)
    if not (confidence > 0).all():
        raise UnusableFrameError(Fault.NO_FACE, "one of the five landmarks is missing")
    nowhere = torch.full((68, 2), torch.nan)
    return Frame(image, nowhere, torch.zeros(68), mask, five_points=points)


def is_utf8(name: str) -> bool:
    """A name that can be written into a text."""
    try:
        name.encode()
    except UnicodeEncodeError:  # the system's bytes, smuggled into a string
        return False
    return True


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link in a circle
        return False
