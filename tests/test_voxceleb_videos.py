"""VoxCeleb's videos read directly: the right frame with its landmarks, split and errors."""

import pickle

import numpy as np
import pytest
import torch

from core.errors import DataError
from datamodules.base import Fault, UnusableFrameError
from datamodules.voxceleb import VoxCeleb
from datamodules.voxceleb_videos import VideoTree
from tests.fakes.videos import encode, landmarks, square_at, write, write_whole
from tests.fakes.voxceleb import FACE, face_points
from tests.fakes.vw300 import number_in, numbered


def data(root, **options):
    settings = {"frames_per_clip": 2, "clips_per_batch": 2, "workers": 0, "image_size": 32}
    module = VoxCeleb(root, **(settings | options))
    module.setup("fit")
    return module


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return write(tmp_path_factory.mktemp("release"), people=3)


def test_a_release_with_landmarks_is_a_data_set(release):
    module = data(release)
    tree = module.source()
    clips = {clip.name: clip for found in tree.splits.values() for clip in found}
    assert len(clips) == 9  # video2 and video3 are damaged, which is found when they are read
    whole = [b"%06d.mp4" % number for number in range(5)]
    assert clips["id10001/video0/00001"].frames.tolist() == whole
    assert clips["id10000/video0/00001"].frames.tolist() == whole[:1] + whole[2:]  # 1: no face
    assert tree.left_out == {"videos with bad landmarks or boxes": 1}
    batches = list(module.train_dataloader())
    assert batches
    assert all(batch["images"].shape[1:] == (2, 3, 32, 32) for batch in batches)
    pickle.loads(pickle.dumps(tree))
    merged = data(release, whole_video=True).source()
    names = {clip.name for found in merged.splits.values() for clip in found}
    assert "id10001/video0" in names
    assert list(data(release, whole_video=True).train_dataloader())


def test_frames_are_those_of_their_landmarks(tmp_path):
    """The frame shows its number; its landmarks are off by it."""
    black = np.zeros((64, 64, 3), np.uint8)
    path = tmp_path / "dev/mp4/id1/v/00001.mp4"
    encode(path, [numbered(black, number) for number in range(40)], 25)
    points = np.stack([face_points(np.random.default_rng(0), 64) + number for number in range(40)])
    landmarks(path, points[..., :2], np.ones((40, 68)))
    tree = VideoTree.scan(tmp_path)
    (clip,) = tree.splits["train"]
    for index in (39, 0, 17, 18, 3):
        frame = tree.read(clip, index)
        assert number_in(frame.image.permute(1, 2, 0).numpy()) == index
        np.testing.assert_allclose(frame.landmarks, points[index, :, :2], rtol=1e-6)


@pytest.mark.parametrize("rate", [25, 50])
def test_clips_of_whole_videos_are_found_by_their_txt(tmp_path, rate):
    root = write_whole(tmp_path, 1, rate)
    (root / "vox1_meta.csv").write_text("ID\tName\tSet\nid10270\tEartha_Kitt\ttest\n")
    unit = (FACE - FACE.min(0)) / (FACE.max(0) - FACE.min(0))
    for path in (root / "txt").rglob("*.txt"):
        numbers = [int(line[:6]) for line in path.read_text().splitlines() if line[:1] == "0"]
        points = [unit * 60 + square_at(number / 25)[:2] for number in numbers]
        landmarks(path, np.stack(points), np.ones((len(numbers), 68)))
    tree = VideoTree.scan(root)
    assert {clip.identity for clip in tree.clips("test")} == {"id10270"}  # the official one
    assert tree.left_out == {
        "boxes without their video": 1,
        "videos with bad landmarks or boxes": 1,  # 00009 was cut short
    }
    (clip,) = (clip for clip in tree.clips("test") if clip.name.endswith("00001"))
    for index in (0, 34):
        frame = tree.read(clip, index)
        assert clip.frames[index] == b"%06d.mp4" % (index + 5)
        row = (frame.image[:, 60].float().mean(0)[:240] > 128).nonzero()
        low, high = frame.landmarks[:, 0].amin(), frame.landmarks[:, 0].amax()
        torch.testing.assert_close(row.min().float(), low, atol=2.5, rtol=0)
        torch.testing.assert_close(row.max().float() + 1, high, atol=2.5, rtol=0)


def test_what_cannot_be_read_says_why(release, tmp_path):
    tree = VideoTree.scan(release)
    clips = {clip.name: clip for found in tree.splits.values() for clip in found}
    for video in ("video2", "video3"):
        with pytest.raises(UnusableFrameError, match="cannot be decoded") as caught:
            tree.read(clips[f"id10000/{video}/00001"], 4)
        assert caught.value.fault == Fault.IMAGE
    (tmp_path / "notes").touch()
    with pytest.raises(DataError, match=r"found \['notes'\], wanted .*or frames/"):
        data(tmp_path)
    bare = tmp_path / "id1/v/00001.mp4"
    bare.parent.mkdir(parents=True)
    bare.touch()
    with pytest.raises(DataError, match=r"none of 1 videos .*00001\.npz.*datamodules prepare"):
        data(tmp_path)
    bare.with_suffix(".npz").touch()
    with pytest.raises(DataError, match="1 videos with bad landmarks"):
        data(tmp_path)
