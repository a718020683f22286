"""What is to be prepared and how: made once, kept in ``plan.json``, the same for every process."""

import json
import math
import os
import socket
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, astuple, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Literal, get_args

from core.crop import MARGIN
from core.detect import PACK
from core.errors import AssetNotFoundError, DataError
from datamodules.listing import closed, contents, stem, walk, with_suffix
from datamodules.preparation.metadata import official_test

VERSION = 3
VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm")
RELEASE_FOLDERS = {"dev", "test", "mp4"}  # of VoxCeleb2, above the identities
SIZE = 256
ROOM = 16  # pixels on each side of a training's crop of 224, to shift it and to turn it

Mask = Literal["hull", "skin", "parsing"]


@dataclass(frozen=True)
class Settings:
    """How videos become crops.

    Args:
        size: side of the crops, pixels.
        margin: side of the crop / longer side of the box of the landmarks. With the defaults a
            training's crop of 224 pixels is a part of the stored one, pixel by pixel.
        every: take only every so many-th frame.
        quality: of the JPEG files.
        min_crop_px: faces whose crop was smaller in the video are dropped. 100 suits the faces of
            VoxCeleb2's release; FML drops those below 200 of the original videos.
        min_confidence: faces whose landmarks have a smaller mean confidence are dropped.
        mask: the hull of the landmarks with the forehead; the hull times the probability of skin
            (Jones and Rehg); or a face parsing network's.
        parsing: the network's .onnx file, see ``datamodules.preparation.masks``.
        detector: insightface's model pack, a name or a folder; where no landmarks are given.
        videos_per_shard: in a tar file.
        patience: seconds; a video is given up where decoder and detector need longer for a frame.
    """

    size: int = SIZE
    margin: float = MARGIN * SIZE / (SIZE - 2 * ROOM)
    every: int = 1
    quality: int = 95
    min_crop_px: float = 100.0
    min_confidence: float = 0.5
    mask: Mask = "hull"
    parsing: str | None = None
    detector: str = PACK
    videos_per_shard: int = 64
    patience: int = 600

    def __post_init__(self) -> None:
        for name in ("size", "every", "videos_per_shard", "patience"):
            if (value := getattr(self, name)) < 1:
                raise DataError(f"preparation: {name} must be at least 1, got {value}")
        if not 1 <= self.quality <= 100:
            raise DataError(f"preparation: quality must be in [1, 100], got {self.quality}")
        if not 0 < self.margin < math.inf:
            raise DataError(f"preparation: margin must be positive, got {self.margin}")
        if not 0 <= self.min_crop_px < math.inf:
            raise DataError(f"preparation: min_crop_px must be at least 0, got {self.min_crop_px}")
        if not 0 <= self.min_confidence <= 1:
            raise DataError(
                f"preparation: min_confidence must be in [0, 1], got {self.min_confidence}"
            )
        if self.mask not in get_args(Mask):
            raise DataError(f"preparation: mask '{self.mask}', wanted one of {get_args(Mask)}")
        if (self.mask == "parsing") != (self.parsing is not None):
            raise DataError("preparation: the mask 'parsing' and a network's file go together")


@dataclass(frozen=True)
class Video:
    """One to be read.

    Attributes:
        path: below the raw folder.
        clip: name of the clip that it becomes.
        identity: the person.
        landmarks: file with its landmarks, below the raw folder; None: they have to be detected.
        track: file that says which face of which frames of it, below the raw folder; None: the one
            that is seen longest, all frames.
        test: the person is in the official test.
    """

    path: str
    clip: str
    identity: str
    landmarks: str | None
    track: str | None = None
    test: bool = False


@dataclass(frozen=True)
class Job:
    """One shard.

    Attributes:
        raw: the folder of the videos; only read.
        out: the folder of the result.
        settings: how.
        shard: number.
        videos: that belong into it.
    """

    raw: Path
    out: Path
    settings: Settings
    shard: int
    videos: tuple[Video, ...]

    @property
    def tar(self) -> Path:
        """The shard; where it is, it is whole, and so is ``part``."""
        return self.out / "shards" / f"{self.shard:05}.tar"

    @property
    def part(self) -> Path:
        """Its part of the index, and its report."""
        return self.tar.with_suffix(".npz")


@dataclass(frozen=True)
class Plan:
    """All videos, in a fixed order.

    Attributes:
        raw: their folder.
        out: the folder of the result.
        settings: how.
        videos: sorted by clip.
        left_out: what the listing left out, by kind.
    """

    raw: Path
    out: Path
    settings: Settings
    videos: tuple[Video, ...]
    left_out: dict[str, int]

    def jobs(self) -> list[Job]:
        """One for each shard."""
        step = self.settings.videos_per_shard
        parts = [self.videos[i : i + step] for i in range(0, len(self.videos), step)]
        return [Job(self.raw, self.out, self.settings, i, part) for i, part in enumerate(parts)]


def make_plan(
    raw: Path,
    out: Path,
    settings: Settings,
    check: Callable[[Settings, Iterable[Video]], None] | None = None,
) -> Plan:
    """The plan that is kept in the result's folder; listed and kept there if there is none.

    The list of videos is made once: what comes to the raw folder later is not prepared.

    Args:
        raw: the folder of the videos.
        out: that of the result.
        settings: how.
        check: is called before a new plan is kept; raises what speaks against it.

    Raises:
        AssetNotFoundError: there is no such folder.
        DataError: it holds no videos, the plan that is there has other settings, or a new one
            cannot be written.
    """
    try:
        raw, out = raw.resolve(), out.resolve()
        path = out / "plan.json"
        begun = path.is_file()
        found = [path.name for path in out.iterdir()] if out.is_dir() else []
    except (OSError, RuntimeError) as error:  # no permission; links in a circle
        raise DataError(f"'{raw}' or '{out}' cannot be used: {error}") from error
    if not begun:
        foreign = [name for name in found if not name.startswith(".")]
        if foreign and not path.is_file():  # somebody else may have begun just now
            raise DataError(
                f"'{out}' holds {sorted(foreign)[:5]} but no plan.json: it is no preparation's "
                "folder. Give a new or empty one"
            )
        left_out: Counter[str] = Counter()
        videos = list_videos(raw, left_out)
        if check is not None:
            check(settings, videos)
        content = {
            "version": VERSION,
            "raw": str(raw),
            "settings": asdict(settings),
            "left_out": dict(left_out),
            "videos": [astuple(video) for video in videos],
        }
        if not path.is_file():  # by whoever was faster, maybe with other videos
            write_whole(path, json.dumps(content, indent=0).encode())
    return _load(path, raw, settings)


def list_videos(raw: Path, left_out: Counter[str]) -> list[Video]:
    """All videos below a folder, sorted by clip.

    The identity is the first folder, not counting ``dev``, ``test`` and ``mp4`` at the beginning
    (VoxCeleb2's release); of a video in no folder it is its own name. Landmarks are in
    ``<name>.npz`` beside it, as ``datamodules.landmark_files`` says. Whole videos are cut where
    there are VoxCeleb's own metadata, see ``datamodules.preparation.metadata``.

    Raises:
        AssetNotFoundError: there is no such folder.
        DataError: there are no videos, or two that would become the same clip.
    """
    if why := closed(raw):
        raise AssetNotFoundError(
            "videos",
            f"'{raw}' ({why})",
            "Wanted a folder with <identity>/<video>/<clip>.mp4; give it as --raw.",
            "research; see https://www.robots.ox.ac.uk/~vgg/data/voxceleb",
        )
    test, whole = official_test(raw), dict[str, str]()
    videos, tracks = list[Video](), list[Video]()
    for folder, files in walk(raw, left_out):
        known = set(files)
        for name in with_suffix(files, (*VIDEOS, ".txt")):
            path = f"{folder}/{name}".lstrip("/")
            parts = path.split("/")
            above = []
            while parts[0] in RELEASE_FOLDERS and len(parts) > 1:
                above.append(parts.pop(0))
            track = name.lower().endswith(".txt")
            if track and (parts[0] != "txt" or len(parts) < 4):
                continue
            clip = stem("/".join(parts[track:]))
            person = clip.partition("/")[0]
            beside = f"{stem(name)}.npz"
            landmarks = f"{stem(path)}.npz" if beside in known else None
            official = "test" in above or person in test
            if track:
                tracks.append(Video(path, clip, person, landmarks, path, official))
            else:
                whole.setdefault(stem(name), path)
                videos.append(Video(path, clip, person, landmarks, None, official))
    videos = _cut_by(tracks, videos, whole, left_out)
    if not videos:
        raise DataError(
            f"no videos below '{raw}': found {contents(raw)}, wanted "
            f"<identity>/<video>/<clip> of {', '.join(VIDEOS)}"
            + (f"; left out: {dict(left_out)}" if left_out else "")
        )
    videos.sort(key=lambda video: video.clip)
    for one, other in pairwise(videos):
        if one.clip == other.clip:
            raise DataError(
                f"'{one.path}' and '{other.path}' below '{raw}' would become the same clip: "
                "rename one of them or give a smaller folder"
            )
    return videos


def _cut_by(
    tracks: list[Video], videos: list[Video], whole: dict[str, str], left_out: Counter[str]
) -> list[Video]:
    """The clips that tracks cut out of whole videos, by name, and the videos that they do not."""
    released = {video.clip for video in videos}
    named = {track.clip.split("/")[-2] for track in tracks}
    found = [video for video in videos if stem(video.path.rpartition("/")[2]) not in named]
    for track in tracks:
        name = track.clip.split("/")[-2]
        if name in whole:
            found.append(replace(track, path=whole[name]))
        elif track.clip not in released:  # where it is, it has been cut already
            left_out["boxes without their video"] += 1
    return found


def write_whole(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, whoever else does so at the same time.

    Raises:
        DataError: it cannot be written.
    """
    aside = path.with_name(f".{path.name}.{own_name()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            aside.write_bytes(content)
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(
            f"'{path}' cannot be written: {error.strerror or error}. Free some space, or give a "
            "folder for the result that can be written to"
        ) from error


def own_name() -> str:
    """Of this process, unlike those of all others on all nodes."""
    return f"{socket.gethostname()}.{os.getpid()}"


def _load(path: Path, raw: Path, settings: Settings) -> Plan:
    try:
        content = json.loads(path.read_text())
        found, version = dict(content["settings"]), content["version"]
        videos = tuple(Video(*fields) for fields in content["videos"])
        listed, left_out = Path(content["raw"]), dict(content["left_out"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"'{path}' is not the plan of a preparation: {error!r}") from error
    differ = _differences(
        found | {"raw": str(listed), "version": version},
        asdict(settings) | {"raw": str(raw), "version": VERSION},
    )
    if differ:
        raise DataError(
            f"'{path.parent}' was begun otherwise: {'; '.join(differ)}. Go on as before, or give "
            "another --out"
        )
    return Plan(raw, path.parent, settings, videos, left_out)


def _differences(found: dict[str, object], wanted: dict[str, object]) -> Iterable[str]:
    return [
        f"{key} {found.get(key)} there, {wanted.get(key)} wanted"
        for key in sorted(found | wanted)
        if found.get(key) != wanted.get(key)
    ]
