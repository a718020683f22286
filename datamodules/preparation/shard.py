"""The one unit of work: a shard, written whole or not at all, as often as one likes."""

import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from core.errors import AssetNotFoundError, DataError, MonofaceError
from datamodules.preparation.metadata import split_officially
from datamodules.preparation.plan import Job, Plan, Video, own_name, write_whole
from datamodules.preparation.video import Step, stored_frames
from datamodules.shard_files import ShardWriter, StoredFrame, write_index

log = logging.getLogger(__name__)

PARTIAL = ".partial"

# nothing is wrong with a video for which a model or a module is not there, or memory is short
NOT_OF_A_VIDEO = AssetNotFoundError, ImportError, MemoryError, torch.OutOfMemoryError

Reading = Callable[[Job, Video], Iterator[Step]]


def prepare_shard(job: Job, read: Reading = stored_frames) -> int:
    """Write a shard and its part of the index; nothing if it is there.

    The result depends on the job only. It is written aside and renamed, the shard last: where it
    is, all of it is, whatever happened, and whoever wrote it at the same time.

    Args:
        job: the shard.
        read: what comes of a video; ``stored_frames``, or something that calls it elsewhere.

    Returns:
        How many videos it is made of.

    Raises:
        DataError: it cannot be written.
        AssetNotFoundError: a model is missing.
        Exception: whatever else is missing, or is raised at each of several videos, although no bad
            video should raise it; of the shard nothing is kept.
    """
    if job.tar.is_file():
        return len(job.videos)
    aside = job.out / PARTIAL / f"{job.shard:05}.{own_name()}"
    tar, part = aside.with_name(f"{aside.name}.tar"), aside.with_name(f"{aside.name}.npz")
    try:
        tar.parent.mkdir(parents=True, exist_ok=True)
        job.tar.parent.mkdir(parents=True, exist_ok=True)
        arrays = _write(job, tar, read)
        with part.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        part.replace(job.part)
        tar.replace(job.tar)
    except MonofaceError:
        raise
    except OSError as error:
        if job.tar.is_file():  # somebody else has written it and cleared up
            return len(job.videos)
        raise DataError(
            f"'{job.out}' cannot be written to: {error.strerror or error}. What is finished is "
            "whole: free some space and run the same command again"
        ) from error
    finally:
        for path in (tar, part):
            path.unlink(missing_ok=True)
    return len(job.videos)


def finish(plan: Plan) -> list[int]:
    """Write index and report, if all shards are there.

    Returns:
        The shards that are missing.

    Raises:
        DataError: there is nothing in them, or the index cannot be written.
    """
    jobs = plan.jobs()
    missing = [job.shard for job in jobs if not job.tar.is_file()]
    if missing or (plan.out / "index").is_dir():
        return missing
    parts = [_read_part(job.part) for job in jobs]
    _write_report(plan, [json.loads(part["report"].tobytes()) for part in parts])
    aside = plan.out / PARTIAL / f"index.{own_name()}"
    shutil.rmtree(aside, ignore_errors=True)
    try:
        _write_splits(plan, parts)
        write_index(aside, parts, [job.tar.stat().st_size for job in jobs])
        aside.rename(plan.out / "index")
    except OSError as error:
        if not (plan.out / "index").is_dir():  # else somebody else has just written the same one
            raise DataError(f"'{plan.out}/index' cannot be written: {error}") from error
    shutil.rmtree(plan.out / PARTIAL, ignore_errors=True)  # what killed processes have left
    return []


def _write(job: Job, path: Path, read: Reading) -> dict[str, np.ndarray]:
    """Write the tar file; returns its part of the index, with the report as JSON."""
    dropped = Counter[str]()
    bad: list[tuple[str, str]] = []
    unforeseen: list[Exception] = []
    with path.open("wb") as file:
        writer = ShardWriter(file, job.shard)
        for video in job.videos:
            frames: list[StoredFrame] = []
            reason = "no good face in it"
            try:
                for step in read(job, video):
                    if isinstance(step, StoredFrame):
                        frames.append(step)  # those before a damage are kept
                    elif step is not None:
                        dropped[step] += 1
                reason = "" if frames else reason
            except NOT_OF_A_VIDEO as error:
                error.add_note(f"'{video.path}' was being read")
                raise
            except (DataError, OSError) as error:
                _require_raw(job)
                reason = str(error)
            except Exception as error:  # whatever it is: no video stops the others
                _require_raw(job)
                # the notes say where, in a process of its own
                reason = "\n".join([repr(error), *getattr(error, "__notes__", [])])
                if not unforeseen:
                    log.warning("'%s': %s", video.path, reason)
                unforeseen.append(error)
            if reason:
                bad.append((video.track or video.path, reason))
            writer.add(video.clip, video.identity, frames)
        if 1 < len(unforeseen) == len(job.videos):  # it is not the videos
            raise unforeseen[0]
        arrays = writer.close()
        file.flush()
        os.fsync(file.fileno())
    report = {"videos": len(job.videos), "frames": len(arrays["frames"])}
    text = json.dumps(report | {"dropped": dict(dropped), "bad": bad})
    return arrays | {"report": np.frombuffer(text.encode(), np.uint8)}


def _require_raw(job: Job) -> None:
    """Raise DataError where not a video is bad but all are gone, with their file system."""
    try:
        gone = not any(job.raw.iterdir())
    except OSError:
        gone = True
    if gone:
        raise DataError(
            f"the videos are no longer in '{job.raw}'. What is finished is whole: bring the folder "
            "back and run the same command again"
        )


def _read_part(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except Exception as error:  # NumPy's parsers raise a dozen kinds on damaged files
        raise DataError(
            f"'{path}' is not part of an index: {error}. Remove it and the .tar of the same number "
            "and run the same command again"
        ) from error


def _write_splits(plan: Plan, parts: list[dict[str, np.ndarray]]) -> None:
    """The official test and a division of the others, where it is known and no lists are there."""
    people = {name.decode() for part in parts for name in part["clips"]["identity"].tolist()}
    test = {video.identity for video in plan.videos if video.test}
    if not people & test or (plan.out / "splits").is_dir():
        return
    aside = plan.out / PARTIAL / f"splits.{own_name()}"
    aside.mkdir(parents=True, exist_ok=True)
    for split, names in split_officially(people, test).items():
        (aside / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
    try:
        aside.rename(plan.out / "splits")
    except OSError:
        if not (plan.out / "splits").is_dir():  # else somebody else has just written the same ones
            raise


def _write_report(plan: Plan, reports: list[dict[str, Any]]) -> None:
    dropped = sum((Counter(report["dropped"]) for report in reports), Counter[str]())
    whole = {
        "videos": sum(report["videos"] for report in reports),
        "frames": sum(report["frames"] for report in reports),
        "dropped_frames": dict(dropped.most_common()),
        "left_out_of_the_listing": plan.left_out,
        "bad_videos": [
            {"video": video, "reason": reason}
            for report in reports
            for video, reason in report["bad"]
        ],
    }
    write_whole(plan.out / "report.json", (json.dumps(whole, indent=1) + "\n").encode())
