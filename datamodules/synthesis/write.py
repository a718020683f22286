"""A synthetic set on disk: written once, each clip whole or not at all.

An interrupted run is continued.

Below the root, in VoxCeleb's frame tree (``datamodules.voxceleb``):

    frames/<identity>/<video>/<clip>/<frame>.jpg     .png when degradation is 0
    landmarks/<identity>/<video>/<clip>/<frame>.npy  float32 (68, 3): x, y in pixels, confidence;
                                                     no file where nothing was detected
    masks/<identity>/<video>/<clip>/<frame>.png      grey, 255 where the face is seen
    splits/train.txt, val.txt, test.txt              one identity a line; written at the end
    truth/model.npz, truth/<identity>/<video>/<clip>.npz    see ``core.truth``
    manifest.json                                    settings, their hash, whether it is complete

A clip is written below ``.partial`` and moved into place, its ground truth last: a clip with ground
truth is whole.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numba
import numpy as np
import torch
from filelock import FileLock
from tqdm.auto import tqdm

from core.cores import available_cores
from core.errors import DataError, MonofaceError
from core.face_models.model import REQUIRED, VERSION, FaceModel, load_face_model
from datamodules.synthesis.clip import Clip, make_clip
from datamodules.synthesis.person import Studio
from datamodules.synthesis.sensor import encoded
from datamodules.synthesis.settings import GENERATOR_VERSION, SynthesisSettings
from datamodules.workers import in_processes

TREES = ("frames", "landmarks", "masks")
PARTIAL = ".partial"


def identity_name(number: int) -> str:
    """The folder of a person."""
    return f"id{number:05d}"


def clip_name(number: int, video: int, clip: int) -> str:
    """The folder of a clip, below each of the trees."""
    return f"{identity_name(number)}/video{video:02d}/{clip:05d}"


def is_complete(root: Path, settings: SynthesisSettings) -> bool:
    """Whether the root holds the whole set of these settings.

    Raises:
        DataError: it holds another set, or something that is not a synthetic set.
    """
    manifest = _manifest(root, settings)
    return manifest is not None and bool(manifest["complete"])


def write_set(root: Path, settings: SynthesisSettings, jobs: int | None = None) -> None:
    """Write the set, or what is missing of it.

    The result does not depend on jobs, nor on how often the run was interrupted.

    Args:
        root: an empty or new folder, or one with a part of this very set.
        settings: what to write.
        jobs: processes; None = one for each core that may be used.

    Raises:
        DataError: the folder holds something else, or cannot be written.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / ".lock"):  # one process at a time; it ends with its process
            if not is_complete(root, settings):
                _write_missing(root, settings, jobs or available_cores())
    except MonofaceError:
        raise
    except OSError as error:
        raise DataError(
            f"the synthetic set cannot be written to '{root}': {error.strerror or error}. What is "
            "there is whole and will be continued; free some space, or give another folder"
        ) from error


def _write_missing(root: Path, settings: SynthesisSettings, jobs: int) -> None:
    shutil.rmtree(root / PARTIAL, ignore_errors=True)
    (root / PARTIAL).mkdir()
    _write_manifest(root, settings, complete=False)
    people = [number for split in settings.split().values() for number in split]
    clips = settings.videos * settings.clips
    missing = {
        number: [key for key in _clips(settings) if not _is_whole(root, clip_name(number, *key))]
        for number in people
    }
    work = {number: keys for number, keys in missing.items() if keys}
    if not (root / "truth" / "model.npz").is_file():
        _write_model(root, load_face_model(settings.face_model))
    bar = tqdm(
        total=len(people) * clips,
        initial=len(people) * clips - sum(map(len, work.values())),
        desc="synthetic clips",
        unit="clip",
    )
    with bar:
        if jobs == 1 or len(work) <= 1:
            with _one_thread():
                studio = _open_studio(root, settings)
                for number, keys in work.items():
                    bar.update(_write_person(root, studio, number, keys))
        else:
            calls = [(root, *item) for item in work.items()]
            for written in in_processes(_work, calls, jobs, _start_worker, (root, settings)):
                bar.update(written)
    (root / "splits").mkdir(exist_ok=True)
    for split, numbers in settings.split().items():
        lines = "".join(f"{identity_name(number)}\n" for number in numbers)
        _replace(root / "splits" / f"{split}.txt", lines.encode())
    shutil.rmtree(root / PARTIAL, ignore_errors=True)
    _write_manifest(root, settings, complete=True)


def _clips(settings: SynthesisSettings) -> list[tuple[int, int]]:
    return [(v, c) for v in range(settings.videos) for c in range(settings.clips)]


# ------------------------------------------------------------------------------------------ workers

_studio: Studio | None = None  # of a worker process


def _open_studio(root: Path, settings: SynthesisSettings) -> Studio:
    """With the set's own copy of the face model: what is continued later is of one piece."""
    return Studio(FaceModel.from_file(root / "truth" / "model.npz"), settings)


def _start_worker(root: Path, settings: SynthesisSettings) -> None:
    """Prepare a worker: the face model."""
    global _studio
    _studio = _open_studio(root, settings)


def _work(root: Path, number: int, keys: list[tuple[int, int]]) -> int:
    assert _studio is not None
    return _write_person(root, _studio, number, keys)


@contextmanager
def _one_thread() -> Iterator[None]:
    """As in the workers, so that sums are in the same order."""
    before, numba_before = torch.get_num_threads(), numba.get_num_threads()
    torch.set_num_threads(1)
    numba.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        numba.set_num_threads(numba_before)


@torch.no_grad()
def _write_person(root: Path, studio: Studio, number: int, keys: list[tuple[int, int]]) -> int:
    person = studio.person(number)
    for video, clip in keys:
        made = make_clip(studio, person, number, video, clip)
        _write_clip(root, clip_name(number, video, clip), made, studio.settings)
    return len(keys)


# -------------------------------------------------------------------------------------------- files


def _is_whole(root: Path, name: str) -> bool:
    return (root / "truth" / f"{name}.npz").is_file()


def _write_clip(root: Path, name: str, clip: Clip, settings: SynthesisSettings) -> None:
    partial_root = root / PARTIAL / name.replace("/", "-")
    shutil.rmtree(partial_root, ignore_errors=True)
    for tree in TREES:
        (partial_root / tree).mkdir(parents=True)
    kind, ending = ("JPEG", "jpg") if settings.degradation > 0 else ("PNG", "png")
    for index, (frame, mask) in enumerate(zip(clip.frames, clip.masks, strict=True)):
        picture = encoded(frame, kind, clip.quality)
        (partial_root / "frames" / f"{index:06d}.{ending}").write_bytes(picture)
        (partial_root / "masks" / f"{index:06d}.png").write_bytes(encoded(mask, "PNG"))
        detection = clip.detections[index]
        if detection is not None:
            np.save(partial_root / "landmarks" / f"{index:06d}.npy", detection)
    np.savez_compressed(partial_root / "truth.npz", **clip.truth)  # type: ignore[arg-type]
    for tree in TREES:
        place = root / tree / name
        shutil.rmtree(place, ignore_errors=True)  # of an interrupted run
        place.parent.mkdir(parents=True, exist_ok=True)
        (partial_root / tree).rename(place)
    place = root / "truth" / f"{name}.npz"
    place.parent.mkdir(parents=True, exist_ok=True)
    (partial_root / "truth.npz").rename(place)
    partial_root.rmdir()


def _write_model(root: Path, model: FaceModel) -> None:
    """The face model as one file that ``FaceModel.from_file`` reads."""
    names = [key for key in REQUIRED if not key.startswith("region_")]
    names += [f"region_{name}" for name in model.region_names]
    arrays = {name: getattr(model, name).numpy() for name in names}
    arrays |= {
        "version": np.array(VERSION),
        "name": np.array(model.name),
        "source": np.array(model.source),
        "licence": np.array(model.licence),
        "expression_names": np.array(model.expression_names),
    }
    (root / "truth").mkdir(exist_ok=True)
    unfinished = root / PARTIAL / "model.npz"
    np.savez(unfinished, **arrays)
    unfinished.rename(root / "truth" / "model.npz")


def _replace(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_bytes(content)
    unfinished.replace(path)


# ----------------------------------------------------------------------------------------- manifest


def _described(settings: SynthesisSettings) -> dict[str, object]:
    """The settings as JSON gives them back; what is off is left out if older sets lack it."""
    described: dict[str, object] = json.loads(json.dumps(asdict(settings)))
    if not settings.still:
        del described["still"]
    return described


def _write_manifest(root: Path, settings: SynthesisSettings, complete: bool) -> None:
    described = _described(settings)
    digest = hashlib.sha256(json.dumps([GENERATOR_VERSION, described], sort_keys=True).encode())
    manifest = {
        "generator": GENERATOR_VERSION,
        "hash": digest.hexdigest(),
        "complete": complete,
        "settings": described,
    }
    _replace(root / "manifest.json", (json.dumps(manifest, indent=2) + "\n").encode())


def _manifest(root: Path, settings: SynthesisSettings) -> dict[str, object] | None:
    """The manifest of a set with these settings; None where there is nothing yet."""
    path = root / "manifest.json"
    try:
        manifest = json.loads(path.read_text())
        found, version = dict(manifest["settings"]), manifest["generator"]
    except FileNotFoundError:
        foreign = (
            [p.name for p in root.iterdir() if not p.name.startswith(".")] if root.is_dir() else []
        )
        if foreign:
            raise DataError(
                f"'{root}' holds {sorted(foreign)[:5]} but no manifest.json: it is not a synthetic "
                "set. Give a new or empty folder"
            ) from None
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"'{path}' is not the manifest of a synthetic set ({error!r}). Remove the folder or "
            "give another one"
        ) from error
    wanted = _described(settings)
    differ = {
        key: f"{found.get(key)} there, {wanted.get(key)} wanted"
        for key in sorted(found | wanted)
        if found.get(key) != wanted.get(key)
    }
    if version != GENERATOR_VERSION:
        differ["generator version"] = f"{version} there, {GENERATOR_VERSION} wanted"
    if differ:
        listed = "; ".join(f"{key}: {values}" for key, values in differ.items())
        raise DataError(
            f"'{root}' holds a synthetic set made with other settings ({listed}). Give another "
            "folder, or remove this one to make it anew"
        )
    return manifest
