import pickle
import shutil

import numpy as np
import pytest

from core.errors import AssetNotFoundError, DataError
from datamodules.clips import Fault, UnusableFrameError
from datamodules.landmark_files import read_landmarks
from datamodules.vw300 import TEST, TRAIN, VW300, AnnotatedVideos
from tests.fakes import vw300
from tests.fakes.vw300 import number_in, write_pts


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return vw300.write(tmp_path_factory.mktemp("vw300"))


@pytest.fixture
def root(shared, tmp_path):
    return shutil.copytree(shared, tmp_path / "vw300")


def clips(source):
    return {clip.name: clip for some in source.splits.values() for clip in some}


def test_the_official_parts():
    assert len(TRAIN) == 50
    assert [len(TEST[k]) for k in (1, 2, 3)] == [31, 19, 14]
    assert len({*TRAIN, *TEST[1], *TEST[2], *TEST[3]}) == 114


def test_videos_are_clips_of_the_official_parts(shared):
    source = AnnotatedVideos.scan(shared)
    names = {split: {clip.name for clip in some} for split, some in source.splits.items()}
    assert names["test"] == {"114", "203", "410"}
    assert names["train"] | names["val"] == {"001", "002", "003", "009"}
    assert len(names["val"]) == 1
    assert source.left_out == {"folders that are no video of 300-VW": 1}
    clip = clips(source)["001"]
    assert clip.frames.tolist() == [b"%06d.pts" % k for k in range(1, 21) if k != 4]
    pickle.loads(pickle.dumps(source))


def test_categories_of_the_test(shared):
    tests = AnnotatedVideos.scan(shared, categories=(2, 3)).splits["test"]
    assert [clip.name for clip in tests] == ["203", "410"]


@pytest.mark.parametrize("name", ["001", "002", "114"])
def test_landmarks_and_image_are_of_the_same_frame(shared, name):
    source = AnnotatedVideos.scan(shared)
    clip = clips(source)[name]
    for index in (0, 17, 3, 11):
        number = int(clip.frames[index][:6])
        frame = source.read(clip, index)
        assert number_in(frame.image.permute(1, 2, 0).numpy()) == number
        rows = (shared / name / f"annot/{number:06}.pts").read_text().splitlines()[3:-1]
        expected = np.array([row.split() for row in rows], float) - 0.5
        np.testing.assert_allclose(frame.landmarks, expected, atol=1e-4, equal_nan=True)


def test_extracted_frames_need_no_video(root):
    (root / "002/vid.avi").unlink()
    (root / "003/vid.avi").unlink()
    (root / "002/annot/000007.pts").unlink()
    source = AnnotatedVideos.scan(root)
    assert len(clips(source)["002"].frames) == 19
    assert "003" not in clips(source)
    assert source.left_out["frames without landmarks"] == 1
    assert source.left_out["videos without vid.avi"] == 1


def test_videos_without_landmarks_are_counted(root):
    shutil.rmtree(root / "003/annot")
    source = AnnotatedVideos.scan(root)
    assert "003" not in clips(source)
    assert source.left_out["videos without landmarks"] == 1


@pytest.mark.parametrize("content", [b"", b"text", "half"])
def test_damaged_videos(root, content):
    source = AnnotatedVideos.scan(root)
    path = root / "003/vid.avi"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 3] if content == "half" else content)
    with pytest.raises(UnusableFrameError, match=r"003/vid\.avi") as caught:
        source.read(clips(source)["003"], 19)
    assert caught.value.fault == Fault.IMAGE


def test_more_landmarks_than_frames(root):
    write_pts(root / "003/annot/000099.pts", np.full((68, 2), 30.0))
    source = AnnotatedVideos.scan(root)
    with pytest.raises(UnusableFrameError, match="has no frame 98"):
        source.read(clips(source)["003"], 20)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not in braces"),
        ("version: 1\nn_points: 68\n{\n1 2\n", "not in braces"),
        ("version: 1\nn_points: 68\n{\n1 2\n}\n", "1 points after"),
        ("version: 1\nn_points: 2\n{\n1 2\n3\n}\n", "inhomogeneous"),
        ("version: 1\nn_points: 1\n{\none two\n}\n", "could not convert"),
        ("version: 1\nn_points: 39\n{\n" + "1 2\n" * 39 + "}\n", r"shape \(39, 2\)"),
    ],
)
def test_bad_pts_files_say_what_is_wrong(root, text, reason):
    path = root / "003/annot/000001.pts"
    path.write_text(text)
    with pytest.raises(DataError, match=reason):
        read_landmarks(path)
    source = AnnotatedVideos.scan(root)
    with pytest.raises(UnusableFrameError, match=r"003/annot/000001.pts") as caught:
        source.read(clips(source)["003"], 0)
    assert caught.value.fault == Fault.LANDMARKS


def test_the_centre_of_the_first_pixel_is_one_in_a_file_and_a_half_here(tmp_path):
    write_pts(tmp_path / "a.pts", np.ones((68, 2)))
    points, confidence = read_landmarks(tmp_path / "a.pts")
    assert (points == 0.5).all()
    assert (confidence == 1).all()


def test_an_epoch_counts_what_it_leaves_out(root):
    write_pts(root / "001/annot/000006.pts", np.full((68, 2), 900.0))
    for name in ("009", "002", "003"):
        shutil.rmtree(root / name)
    module = VW300(root, image_size=32, frames_per_clip=19, clips_per_batch=1, workers=0)
    module.setup("fit")
    list(module.train_dataloader())
    assert module.skipped["train"] == {
        "landmarks are not finite": 1,
        "landmarks are outside the image": 1,
    }


def test_other_folders_say_what_was_found(tmp_path):
    with pytest.raises(AssetNotFoundError, match=r"nowhere'.*<video>/vid.avi"):
        VW300(tmp_path / "nowhere").source()
    (tmp_path / "mp4/id1").mkdir(parents=True)
    with pytest.raises(DataError, match=r"found \['mp4'\], wanted <video>/vid.avi"):
        VW300(tmp_path).source()
