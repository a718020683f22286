"""Preparation: raw videos to shards, whatever is wrong with them and however often it is killed."""

import errno
import json
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from core.crop import face_crop
from core.errors import AssetNotFoundError, DataError
from datamodules.__main__ import main
from datamodules.masks import hull_mask
from datamodules.preparation import plan as plan_module
from datamodules.preparation.decoding import decoded
from datamodules.preparation.plan import Settings, list_videos, make_plan
from datamodules.preparation.shard import finish, prepare_shard
from datamodules.video import read_frame
from tests.fakes import decoders
from tests.fakes.videos import clips, film, landmarks, write
from tests.fakes.voxceleb import face_points

CLIP = "id10001/video0/00001"


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    return write(tmp_path_factory.mktemp("raw"))


@pytest.fixture(scope="module")
def plan(raw, tmp_path_factory):
    return make_plan(raw, tmp_path_factory.mktemp("out") / "set", Settings(videos_per_shard=3))


@pytest.fixture(scope="module")
def prepared(plan):
    """Done in one go."""
    for job in plan.jobs():
        prepare_shard(job)
    assert finish(plan) == []
    return plan.out


def contents(out):
    """All files of a preparation but its plan, which names folders."""
    files = sorted(path for path in out.rglob("*") if path.is_file() and path.name != "plan.json")
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


# what comes of it


def test_every_good_face_and_why_not_the_others(prepared, raw):
    _, found = clips(prepared)
    assert {name: clip.identity for name, clip in found.items()} == {
        f"id1000{person}/video{video}/00001": f"id1000{person}"
        for person in range(4)
        for video in range(2)
    }
    whole = [b"%06d.jpg" % i for i in range(5)]
    quirks = [whole[0], *whole[3:]]
    for name, clip in found.items():
        assert clip.frames.tolist() == (quirks if name.startswith("id10000/video0") else whole)
    report = json.loads((prepared / "report.json").read_text())
    assert (report["videos"], report["frames"]) == (12, 38)
    assert report["dropped_frames"] == {"no face": 1, "landmarks are not finite": 1}
    reasons = {bad["video"].split("/")[3]: bad["reason"] for bad in report["bad_videos"]}
    wanted = {
        "video2": "cannot be decoded",
        "video3": "cannot be decoded",
        "video4": "5 landmarks a frame, wanted 68",
        "video5": "does not hold landmarks",
    }
    assert reasons.keys() == wanted.keys()
    assert all(text in reasons[name] for name, text in wanted.items())


def test_crops_are_where_their_landmarks_are(prepared, raw):
    """The stored crop shows at each landmark what the video shows there."""
    source, found = clips(prepared)
    path = raw / f"dev/mp4/{CLIP}.mp4"
    given = np.load(path.with_suffix(".npz"))
    for index, image in decoded(path):
        frame = source.read(found[CLIP], index)
        assert frame.image.shape == (3, 256, 256)
        points = torch.from_numpy(given["landmarks"][index])
        low, high = points.amin(0), points.amax(0)
        scale = 256 / (Settings().margin * (high - low).amax())
        wanted = (points - (low + high) / 2) * scale + 128
        torch.testing.assert_close(frame.landmarks, wanted, atol=1e-3, rtol=0)
        np.testing.assert_array_equal(frame.confidence, given["confidence"][index])
        x, y = points.round().long().T.clamp(1, 158)
        shown = torch.from_numpy(image)
        there = torch.stack([shown[y - dy, x - dx] for dx in (0, 1) for dy in (0, 1)]).float()
        x, y = ((points.round() - (low + high) / 2) * scale + 128).long().T
        here = frame.image[:, y, x].T.float()
        assert (there.mean(0) - here).abs().mean() < 4
        assert frame.mask is None  # the hull of the landmarks, as the reader makes it


def test_a_crop_of_the_training_is_a_part_of_it_pixel_by_pixel(prepared):
    source, found = clips(prepared)
    frame = source.read(found[CLIP], 0)
    matrix = face_crop(frame.landmarks, frame.confidence, 224)
    torch.testing.assert_close(
        matrix, torch.tensor([[1.0, 0, -16], [0, 1, -16], [0, 0, 1]]), atol=2e-3, rtol=0
    )


def test_where_the_video_ends_is_no_face(tmp_path):
    film(tmp_path / "a/b/1.mp4", 1, 160)
    points = face_points(np.random.default_rng(0), 160)[None]
    points[..., 0] -= 70  # part of it is outside on the left
    landmarks(tmp_path / "a/b/1.mp4", points[..., :2], points[..., 2])
    plan = make_plan(tmp_path, tmp_path / "out", Settings())
    (job,) = plan.jobs()
    prepare_shard(job)
    assert finish(plan) == []
    source, found = clips(plan.out)
    frame = source.read(found["a/b/1"], 0)
    given = torch.from_numpy(points[0, :, :2])
    scale = (frame.landmarks[16] - frame.landmarks[0]).norm() / (given[16] - given[0]).norm()
    border = int(frame.landmarks[0, 0] - scale * given[0, 0])  # of the video, in the crop
    assert 10 < border < 128
    assert frame.mask[0, :, : border - 1].max() == 0
    assert frame.image[:, :, : border - 8].float().mean() < 8
    assert frame.mask[0, 128, border + 4] == 255


def test_a_mask_is_only_stored_where_the_video_cuts_the_face(tmp_path):
    for number, moved in ((4, 52.0), (1, 0.0), (2, -22.0), (3, -52.0)):
        film(tmp_path / f"a/b/{number}.mp4", 1, 160)
        points = face_points(np.random.default_rng(0), 160)[None]
        points[..., 0] += moved
        landmarks(tmp_path / f"a/b/{number}.mp4", points[..., :2], points[..., 2])
    plan = make_plan(tmp_path, tmp_path / "out", Settings())
    prepare_shard(plan.jobs()[0])
    assert finish(plan) == []
    source, found = clips(plan.out)
    whole, near, over, right = (source.read(found[f"a/b/{k}"], 0) for k in (1, 2, 3, 4))
    assert whole.mask is None
    assert near.mask is None  # black in the crop, but not where the face is
    assert near.image[:, 60:200, 0].max() < 20
    hull = hull_mask(over.landmarks, over.confidence, 256)[0] * 255
    given = torch.from_numpy(points[0, :, :2])
    scale = (over.landmarks[16] - over.landmarks[0]).norm() / (given[16] - given[0]).norm()
    border = float(over.landmarks[0, 0] - scale * given[0, 0])  # of the video, in the crop
    assert hull[:, : int(border)].max() == 255
    assert over.mask[0, :, : int(border)].max() == 0
    assert (over.mask[0] - hull).abs()[:, int(border) + 2 :].max() <= 1
    border = float(right.landmarks[0, 0] + scale * (160 - given[0, 0] - 104))
    hull = hull_mask(right.landmarks, right.confidence, 256)[0] * 255
    assert hull[:, int(border) + 2 :].max() == 255
    assert right.mask[0, :, int(border) + 2 :].max() == 0


def test_thresholds(raw, tmp_path):
    def frames(**options):
        out = tmp_path / str(len(list(tmp_path.iterdir())))
        plan = make_plan(raw / "dev/mp4/id10002", out, Settings(**options))
        (job,) = plan.jobs()
        prepare_shard(job)
        with np.load(job.part) as part:
            report = json.loads(part["report"].tobytes())
        return len(np.load(job.part)["frames"]), report["dropped"]

    assert frames() == (10, {})
    assert frames(every=2) == (6, {})
    assert frames(min_crop_px=500.0) == (0, {"face is too small": 10})
    assert frames(min_confidence=0.99) == (0, {"confidence is too low": 10})
    wrong = [{"size": 0}, {"quality": 0}, {"margin": 0.0}, {"mask": "parsing"}]
    wrong += [{"margin": np.nan}, {"min_crop_px": np.nan}, {"min_confidence": 1.5}]
    for bad in wrong:
        with pytest.raises(DataError, match="preparation: "):
            Settings(**bad)


def test_each_fault_of_a_frame_has_its_name_and_leaves_the_others_alone(tmp_path):
    film(tmp_path / "raw/a/b/1.mp4", 13, 160)
    good = face_points(np.random.default_rng(0), 160)
    points = np.stack([good[:, :2]] * 11)
    confidence = np.stack([good[:, 2]] * 11)
    points[1] += 120
    points[2, 5, 0] = np.inf
    points[3, :5] = np.nan  # not seen, so it does not matter
    confidence[3, :5] = 0
    confidence[4] = 0
    confidence[5] = 0.05
    confidence[6, 15:] = 0
    points[7] = points[7, 0]
    points[8] = 80 + (points[8] - 80) / 4
    points[10, 5] = 1e12  # a crop of all of it would take for ever
    landmarks(tmp_path / "raw/a/b/1.mp4", points, confidence)
    settings = Settings(min_confidence=0.1, min_crop_px=60.0)
    plan = make_plan(tmp_path / "raw", tmp_path / "out", settings)
    prepare_shard(plan.jobs()[0])
    assert finish(plan) == []
    report = json.loads((plan.out / "report.json").read_text())
    assert report["dropped_frames"] == {
        "landmarks are outside the image": 2,
        "landmarks are not finite": 1,
        "no face": 1,
        "confidence is too low": 1,
        "too few landmarks, or all in one place": 2,
        "face is too small": 1,
        "beyond the end of the landmarks": 2,
    }
    source, found = clips(plan.out)
    assert found["a/b/1"].frames.tolist() == [b"000000.jpg", b"000003.jpg", b"000009.jpg"]
    first, with_missing, last = (source.read(found["a/b/1"], index) for index in range(3))
    assert torch.equal(first.landmarks, last.landmarks)
    assert with_missing.landmarks.isfinite().all()
    assert (with_missing.confidence[:5] == 0).all()


def test_a_video_that_ends_too_early_is_reported_and_what_is_there_is_kept(tmp_path):
    """Its table of frames comes first, so that the decoder does not notice."""
    film(tmp_path / "raw/a/b/1.mp4", 60, 160)
    path = tmp_path / "raw/a/b/2.mp4"
    with av.open(str(tmp_path / "raw/a/b/1.mp4")) as whole:
        options = {"movflags": "faststart"}
        with av.open(str(path), "w", options=options) as moved:
            stream = moved.add_stream_from_template(whole.streams.video[0])
            for packet in whole.demux(video=0):
                if packet.dts is not None:
                    packet.stream = stream
                    moved.mux(packet)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    given = face_points(np.random.default_rng(0), 160)
    for name in ("1", "2"):
        points = np.stack([given] * 60)
        landmarks(tmp_path / f"raw/a/b/{name}.mp4", points[..., :2], points[..., 2])
    plan = make_plan(tmp_path / "raw", tmp_path / "out", Settings())
    prepare_shard(plan.jobs()[0])
    assert finish(plan) == []
    _, found = clips(plan.out)
    assert len(found["a/b/1"].frames) == 60
    assert 10 < len(found["a/b/2"].frames) < 60
    (bad,) = json.loads((plan.out / "report.json").read_text())["bad_videos"]
    assert bad["video"] == "a/b/2.mp4"
    assert re.search(r"ends after \d+ of 60 frames|cannot be decoded", bad["reason"])


def test_titles_that_are_not_utf8_and_errors_that_are_not_ffmpegs(tmp_path, monkeypatch):
    film(tmp_path / "raw/a/b/1.mp4", 3, 160)
    with av.open(str(tmp_path / "raw/a/b/1.mp4")) as whole:
        path = tmp_path / "raw/a/b/2.mp4"
        with av.open(str(path), "w", metadata_encoding="latin-1") as titled:
            titled.metadata["title"] = "Gespräch"
            stream = titled.add_stream_from_template(whole.streams.video[0])
            for packet in whole.demux(video=0):
                if packet.dts is not None:
                    packet.stream = stream
                    titled.mux(packet)
    assert "Gespräch".encode("latin-1") in path.read_bytes()
    assert [index for index, _ in decoded(path)] == [0, 1, 2]
    assert read_frame(path, 2).shape == (3, 160, 160)

    def odd(*_, **__):
        raise ValueError("unknown layout")

    monkeypatch.setattr("datamodules.preparation.decoding.VideoReformatter", odd)
    with pytest.raises(DataError, match=r"cannot be decoded.*unknown layout"):
        list(decoded(path))


def test_finish_says_what_is_missing_or_that_nothing_was_good(raw, tmp_path):
    plan = make_plan(raw / "dev/mp4/id10001", tmp_path / "a", Settings(videos_per_shard=1))
    prepare_shard(plan.jobs()[1])
    assert finish(plan) == [0]
    assert not (tmp_path / "a/index").exists()
    plan = make_plan(raw / "dev/mp4/id10001", tmp_path / "b", Settings(min_crop_px=900.0))
    prepare_shard(plan.jobs()[0])
    with pytest.raises(DataError, match=r"report\.json says why"):
        finish(plan)
    report = json.loads((tmp_path / "b/report.json").read_text())
    assert [bad["reason"] for bad in report["bad_videos"]] == ["no good face in it"] * 2


# killed, interrupted, full


def test_killed_at_any_time_nothing_is_lost_or_doubled(tmp_path):
    """Each time in another shard, when some of it is written."""
    raw = decoders.write(tmp_path / "raw", [f"{number:02}" for number in range(12)])
    prepare = partial(prepare_shard, read=decoders.frames)
    once, again = (make_plan(raw, tmp_path / o, Settings(videos_per_shard=3)) for o in "ab")
    list(map(prepare, once.jobs()))
    assert finish(once) == []
    jobs = again.jobs()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.fakes.decoders"])
    rng, kills = random.Random(0), 0
    for number in range(4):
        victim = jobs[number]
        wanted = rng.random() * (once.out / "shards" / victim.tar.name).stat().st_size
        process = context.Process(target=list, args=(map(prepare, jobs),))
        process.start()
        while process.is_alive() and not victim.tar.is_file():
            parts = again.out.glob(f".partial/{victim.shard:05}.*.{process.pid}.tar")
            if any(path.stat().st_size > wanted for path in parts):
                break
            time.sleep(0.001)
        process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
        assert not (again.out / "index").exists()
    assert kills >= 3
    list(map(prepare, jobs))
    assert finish(again) == []
    assert contents(again.out) == contents(once.out)


def test_what_is_finished_is_not_touched_again(prepared, plan):
    before = {path: path.stat().st_mtime_ns for path in prepared.rglob("*.*")}
    for job in plan.jobs():
        assert prepare_shard(job) == len(job.videos)
    assert finish(plan) == []
    assert {path: path.stat().st_mtime_ns for path in prepared.rglob("*.*")} == before


def check_full(plan):
    """Nothing half is there after the error."""
    with pytest.raises(DataError, match=r"cannot be written to: .*free some space"):
        list(map(prepare_shard, plan.jobs()))
    left = [path for path in plan.out.rglob("*") if path.is_file() and path.name != "plan.json"]
    for path in left:  # the index is renamed first, its shard last
        assert path.parent.name == "shards"
        assert path.suffix == ".npz" or path.with_suffix(".npz").is_file()
    assert finish(plan) != []


def test_a_limit_of_the_file_size(raw, plan, prepared, tmp_path):
    full = make_plan(raw, tmp_path / "set", plan.settings)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        check_full(full)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    for job in full.jobs():
        prepare_shard(job)
    assert finish(full) == []
    assert contents(full.out) == contents(prepared)


def test_a_full_disk(raw, plan, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400k", "none", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no right to mount a small file system")
    try:
        check_full(make_plan(raw, disk / "set", plan.settings))
    finally:
        subprocess.run(["umount", disk], check=True)


def test_no_space_when_the_shard_is_renamed(raw, plan, tmp_path, monkeypatch):
    full = make_plan(raw, tmp_path / "set", plan.settings)

    def once(source, target):
        if list(full.out.glob("shards/*")):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return source.rename(target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", once)
        check_full(full)


def test_no_space_when_the_index_is_written(raw, plan, prepared, tmp_path, monkeypatch):
    full = make_plan(raw, tmp_path / "set", plan.settings)
    list(map(prepare_shard, full.jobs()))

    def half(folder, *_):
        folder.mkdir(parents=True)
        (folder / "frames.npy").write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("datamodules.preparation.shard.write_index", half)
        with pytest.raises(DataError, match=r"index' cannot be written: .*No space left"):
            finish(full)
    with pytest.raises(AssetNotFoundError, match="Run its command again"):
        clips(full.out)
    assert finish(full) == []
    assert contents(full.out) == contents(prepared)


def test_a_shard_that_somebody_else_finishes_meanwhile(raw, plan, prepared, tmp_path, monkeypatch):
    """And clears up what is left of it, as ``finish`` does."""
    again = make_plan(raw, tmp_path / "set", plan.settings)
    job = again.jobs()[0]

    def cleared(aside, target):
        shutil.copytree(prepared / "shards", job.tar.parent, dirs_exist_ok=True)
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(aside))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", cleared)
        assert prepare_shard(job) == 3
    assert finish(again) == []


@pytest.mark.parametrize("unmounted", [False, True])
def test_videos_that_are_all_gone_are_not_called_bad(raw, tmp_path, unmounted):
    shutil.copytree(raw / "dev/mp4/id10001", tmp_path / "raw")
    plan = make_plan(tmp_path / "raw", tmp_path / "out", Settings())
    (tmp_path / "raw").rename(tmp_path / "elsewhere")
    if unmounted:
        (tmp_path / "raw").mkdir()
    with pytest.raises(DataError, match=r"no longer in .*bring the folder back"):
        prepare_shard(plan.jobs()[0])
    assert finish(plan) == [0]
    shutil.copytree(tmp_path / "elsewhere", tmp_path / "raw", dirs_exist_ok=True)
    (tmp_path / "raw/video0/00001.mp4").unlink()  # a single one is
    prepare_shard(plan.jobs()[0])
    assert finish(plan) == []
    (bad,) = json.loads((plan.out / "report.json").read_text())["bad_videos"]
    assert "No such file" in bad["reason"]


@pytest.mark.parametrize("moment", ["pathlib.Path.iterdir", f"{plan_module.__name__}.list_videos"])
def test_whoever_begins_first_makes_the_plan(raw, tmp_path, monkeypatch, moment):
    """Another process does so while this one looks into the folder, or lists more videos."""
    first = make_plan(raw / "dev/mp4/id10001", tmp_path / "first", Settings())
    before, out = (Path.iterdir if "iterdir" in moment else list_videos), tmp_path / "out"
    out.mkdir()

    def meanwhile(*arguments):
        shutil.copy(first.out / "plan.json", out)
        return before(*arguments)

    film(raw / "dev/mp4/id10001/late.mp4", 1, 32)
    try:
        monkeypatch.setattr(moment, meanwhile)
        assert make_plan(first.raw, out, Settings()).videos == first.videos
    finally:
        (raw / "dev/mp4/id10001/late.mp4").unlink()


# the command line


def test_a_result_that_cannot_be_written_or_models_that_are_missing(raw, tmp_path, capsys):
    arguments = ["prepare", "voxceleb", "--raw", str(raw / "dev/mp4/id10001"), "--jobs", "1"]
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit):
        main([*arguments, "--out", str(tmp_path / "file/out")])
    assert "cannot be written: Not a directory" in capsys.readouterr().err
    arguments += ["--out", str(tmp_path / "out")]
    wrong = ["--mask", "parsing", "--parsing", str(tmp_path / "none.onnx")]
    with pytest.raises(SystemExit):
        main([*arguments, *wrong])
    assert "give it as --parsing" in capsys.readouterr().err
    main([*arguments, "--every", "5"])  # nothing was begun
    assert "finished" in capsys.readouterr().out


@pytest.mark.slow
def test_command_line_with_two_processes(raw, plan, prepared, tmp_path, capsys):
    out = tmp_path / "set"
    arguments = ["prepare", "voxceleb", "--raw", str(raw), "--out", str(out)]
    arguments += ["--videos-per-shard", "3"]
    main([*arguments, "--shard", "1/4", "--jobs", "1"])
    assert "3 of 4 shards are left" in capsys.readouterr().out
    main([*arguments, "--jobs", "2"])
    assert "finished" in capsys.readouterr().out
    assert contents(out) == contents(prepared)


def test_command_line(raw, prepared, tmp_path, capsys):
    out = tmp_path / "set"
    arguments = ["prepare", "voxceleb", "--raw", str(raw), "--out", str(out), "--jobs", "1"]
    arguments += ["--videos-per-shard", "3"]
    main([*arguments, "--shard", "1/2"])
    assert "2 of 4 shards are left" in capsys.readouterr().out
    main([*arguments, "--shard", "0/2"])
    assert "finished" in capsys.readouterr().out
    assert contents(out) == contents(prepared)
    with pytest.raises(SystemExit):
        main([*arguments, "--size", "128"])
    assert "size 256 there, 128 wanted" in capsys.readouterr().err
    for part in ("2/2", "1", "a/b", "-1/2"):
        with pytest.raises(SystemExit):
            main([*arguments, f"--shard={part}"])
        assert "wanted i/n" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*arguments, "--jobs", "0"])


@pytest.mark.slow
def test_the_command_is_killed_again_and_again(raw, prepared, tmp_path):
    """The whole of it, workers included, at random times."""
    out = tmp_path / "set"
    command = [sys.executable, "-m", "datamodules", "prepare", "voxceleb", "--raw", str(raw)]
    command += ["--out", str(out), "--videos-per-shard", "3", "--jobs", "2"]
    rng, root = random.Random(1), Path(__file__).parents[1]
    for _ in range(6):
        process = subprocess.Popen(command, cwd=root, stderr=subprocess.DEVNULL)
        try:
            process.wait(rng.uniform(1, 25))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    subprocess.run(command, cwd=root, check=True, capture_output=True)
    assert contents(out) == contents(prepared)


def test_raw_files_are_left_alone(raw, prepared):
    assert len([path for path in raw.rglob("*") if path.is_file()]) == 24


@pytest.mark.slow
def test_ray_finishes_what_a_lost_node_had_begun(raw, plan, prepared, tmp_path):
    """Two nodes; one is lost while it writes a shard: its worker is stopped there, and killed."""
    pytest.importorskip("ray")
    import ray
    from ray.cluster_utils import Cluster

    from datamodules.preparation.launch import on_ray

    again = make_plan(raw, tmp_path / "set", plan.settings)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        raylets = {node.all_processes["raylet"][0].process.pid: node for node in nodes}
        ray.init(address=cluster.address, log_to_driver=False)
        with ThreadPoolExecutor(1) as pool:
            done = pool.submit(lambda: sum(on_ray(again.jobs())))
            while not (begun := list(again.out.glob(".partial/*.tar"))) and not done.done():
                time.sleep(0.001)
            worker = int(begun[0].name.split(".")[-2])
            os.kill(worker, signal.SIGSTOP)
            parent = int(Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1])
            assert begun[0].is_file()  # not finished
            cluster.remove_node(raylets[parent], allow_graceful=False)
            with suppress(ProcessLookupError):  # it may have gone with its node
                os.kill(worker, signal.SIGKILL)
            assert done.result() == len(again.videos)
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert finish(again) == []
    assert contents(again.out) == contents(prepared)


def test_without_ray_it_says_what_to_install(plan, monkeypatch):
    from datamodules.preparation.launch import on_ray

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(AssetNotFoundError, match=r"pip install 'monoface\[ray\]'"):
        next(on_ray(plan.jobs()))
