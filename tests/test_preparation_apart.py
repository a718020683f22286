"""Videos that make the decoder crash or hang: listed with the reason, never the end of the run."""

import json
import os
import time

import pytest

from core.errors import DataError
from datamodules.preparation.plan import Settings, make_plan
from datamodules.preparation.shard import finish, prepare_shard
from datamodules.workers import Apart
from tests.fakes.decoders import BEFORE, FRAMES, frames, write
from tests.fakes.videos import clips

NAMES = ("crash", "damage", "good", "hang", "odd", "once", "well")


@pytest.fixture
def plan(tmp_path):
    return make_plan(write(tmp_path / "raw", NAMES), tmp_path / "out", Settings(patience=3))


@pytest.fixture(scope="module")
def apart():
    """Its process is started once."""
    return Apart(frames)


def test_a_video_that_ends_its_process_or_hangs_is_reported_and_the_others_are_whole(
    plan, apart, caplog
):
    (job,) = plan.jobs()
    start = time.monotonic()
    assert prepare_shard(job, lambda job, video: apart(job.settings.patience, job, video)) == 7
    assert time.monotonic() - start < 100  # it would sleep for 1000
    assert finish(plan) == []
    _, found = clips(plan.out)
    whole = [b"%06d.jpg" % number for number in range(FRAMES)]
    assert {name: clip.frames.tolist() for name, clip in found.items()} == {
        f"a/b/{name}": whole if name in ("good", "once", "well") else whole[:BEFORE]
        for name in NAMES
    }
    report = json.loads((plan.out / "report.json").read_text())
    assert report["dropped_frames"] == {"no face": len(NAMES)}  # of the second attempts none
    reasons = {bad["video"]: bad["reason"] for bad in report["bad_videos"]}
    assert reasons.keys() == {f"a/b/{name}.mp4" for name in ("crash", "damage", "hang", "odd")}
    assert reasons["a/b/crash.mp4"] == "ended the process that read it, twice: SIGSEGV"
    assert reasons["a/b/hang.mp4"] == "nothing came of it for 3 s: given up"
    assert reasons["a/b/odd.mp4"].startswith("ZeroDivisionError('integer division")
    assert "in _trouble" in reasons["a/b/odd.mp4"]  # where it was
    assert "'a/b/odd.mp4': ZeroDivisionError" in caplog.text
    assert "Input/output error" in reasons["a/b/damage.mp4"]


def test_one_process_serves_until_it_is_lost(plan, apart):
    """Killed from outside between two videos, or left in the middle of one."""
    (job,) = plan.jobs()
    videos = {video.clip.rpartition("/")[2]: video for video in job.videos}

    def names(video):
        return [step.name for step in apart(60, job, videos[video]) if hasattr(step, "name")]

    whole = [f"{number:06}" for number in range(FRAMES)]
    assert names("good") == whole
    first = apart._process.pid
    with pytest.raises(OSError, match="Input/output"):  # an error is none
        names("damage")
    assert names("well") == whole
    assert apart._process.pid == first
    os.kill(first, 9)
    assert names("good") == whole
    assert apart._process.pid != first
    for _ in apart(60, job, videos["good"]):
        break
    assert names("well") == whole
    with pytest.raises(DataError, match="twice: SIGSEGV"):
        names("crash")
    assert names("good") == whole
