"""Whole videos cut by VoxCeleb's metadata: the right frames, the right face, the right split."""

import json
from collections import Counter

import numpy as np
import pytest
import torch

from core.detect import Detection, FaceDetector
from core.errors import DataError
from datamodules.listing import listed_or_divided
from datamodules.preparation import video as video_module
from datamodules.preparation.decoding import decoded_at
from datamodules.preparation.metadata import official_test, read_track
from datamodules.preparation.plan import Settings, list_videos, make_plan
from datamodules.preparation.shard import finish, prepare_shard
from datamodules.shards import ShardSource
from tests.fakes.videos import encode, film, landmarks, square_at, write_whole
from tests.fakes.voxceleb import FACE
from tests.fakes.vw300 import number_in, numbered

HEAD = "Offset : \t-5\n\nFRAME \tX \tY \tW \tH \n"


class SquareFinder(FaceDetector):
    """Each white square is a face whose landmarks' box is the square."""

    def __init__(self):
        self.shown = []

    def __call__(self, image):
        self.shown.append(tuple(image.shape[1:]))
        white = image.mean(0) > 0.5
        found = []
        rest = white.any(0).nonzero()[:, 0].tolist()
        for start in [x for x in rest if x - 1 not in rest]:
            columns = white[:, start:]
            end = start + (~columns.any(0)).float().argmax().item()
            end = image.shape[2] if end == start else end
            rows = white[:, start].nonzero()[:, 0]
            corner = torch.tensor([start, rows[0].item()])
            found.append(Detection(UNIT * (end - start) + corner, 0.9))
        return found[::-1]


UNIT = torch.from_numpy((FACE - FACE.min(0)) / (FACE.max(0) - FACE.min(0))).float()


def prepared(root, out, **options):
    plan = make_plan(root, out, Settings(min_crop_px=50.0, min_confidence=0.1, **options))
    for job in plan.jobs():
        prepare_shard(job)
    assert finish(plan) == []
    source = ShardSource(plan.out)
    clips = {c.name: c for split in ("train", "val", "test") for c in source.clips(split)}
    return plan, source, clips


# frames at times


@pytest.mark.parametrize("rate", [10, 24, 25, 30, 50])
@pytest.mark.parametrize("start", [0, 100])
def test_the_frame_that_is_shown_at_a_time(tmp_path, rate, start):
    """Counted at 25 a second, whatever the video's rate; its beginning is 0 s."""
    black = np.zeros((64, 64, 3), np.uint8)
    encode(tmp_path / "a.mp4", [numbered(black, k) for k in range(4 * rate)], rate, start)
    numbers = np.array([0, 1, 2, 3, 26, 40, 41, 80, 96, 97])
    found = dict(decoded_at(tmp_path / "a.mp4", numbers / 25))
    assert list(found) == list(range(len(numbers)))
    for index, image in found.items():
        assert abs(number_in(image) - numbers[index] * rate / 25) <= 0.5
    for first in (30, 60, 97):  # by a search
        ((index, image),) = decoded_at(tmp_path / "a.mp4", np.array([first / 25]))
        assert abs(number_in(image) - first * rate / 25) <= 0.5
    assert [i for i, _ in decoded_at(tmp_path / "a.mp4", numbers / 25, 3)] == [0, 3, 6, 9]
    late = np.array([3.9, 3.99, 4.5, 9.0])  # it ends after 4 s
    assert [i for i, _ in decoded_at(tmp_path / "a.mp4", late)] == [0, 1]
    assert list(decoded_at(tmp_path / "a.mp4", np.array([]))) == []


def test_videos_that_cannot_be_searched(tmp_path):
    encode(tmp_path / "a.mp4", [np.zeros((64, 64, 3), np.uint8)] * 50, 25)
    (tmp_path / "half.mp4").write_bytes((tmp_path / "a.mp4").read_bytes()[:-400])
    (tmp_path / "empty.mp4").touch()
    for name in ("half", "empty"):
        with pytest.raises(DataError, match="cannot be decoded"):
            list(decoded_at(tmp_path / f"{name}.mp4", np.array([1.0])))


# the metadata's files


def test_boxes_of_both_releases_in_pixels(tmp_path):
    path = tmp_path / "00001.txt"
    path.write_text(HEAD + "006180 \t282 \t74 \t156 \t156 \n006181\t283\t74\t156\t156\n\n")
    track = read_track(path)
    assert track.numbers.tolist() == [6180, 6181]  # Offset is the sound's
    np.testing.assert_allclose(track.boxes_in(720, 1280)[0], [564, 148, 312, 312])
    np.testing.assert_allclose(track.boxes_in(360, 480)[1], [283, 74, 156, 156])
    path.write_text(HEAD.replace("\t", " ") + "000131 \t-0.050 \t0.062 \t0.253 \t1.100 \n")
    np.testing.assert_allclose(
        read_track(path).boxes_in(200, 400)[0], [-20, 12.4, 101.2, 220], rtol=1e-5
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no line FRAME X Y W H"),
        (HEAD.encode(), "no frame in it"),
        (HEAD.encode() + b"000001\t0.1\t0.2\n", "wanted 5 numbers"),
        (HEAD.encode() + b"000001\ta\tb\tc\td\n", "could not convert"),
        (HEAD.encode() + b"000002 1 1 9 9\n000001 1 1 9 9\n", "do not rise"),
        (HEAD.encode() + b"000001 1 nan 9 9\n", "without an area"),
        (HEAD.encode() + b"000001 1 1 0 9\n", "without an area"),
        (b"\xff\xfe\x00", "utf-8"),
    ],
)
def test_other_files_say_what_is_wrong(tmp_path, content, reason):
    path = tmp_path / "00001.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=reason) as caught:
        read_track(path)
    assert str(path) in str(caught.value)


def test_tables_of_the_official_split(tmp_path):
    assert official_test(tmp_path) == set()
    (tmp_path / "vox1_meta.csv").write_text(
        "VoxCeleb1 ID\tVGGFace1 ID\tGender\tNationality\tSet\n"
        "id10001\tA.J._Buckley\tm\tIreland\tdev\nid10270\tEartha_Kitt\tf\tUSA\ttest\n"
    )
    (tmp_path / "vox2_meta.csv").write_text(
        "VoxCeleb2 ID ,VGGFace2 ID ,Gender ,Set \nid00012 ,n000012 ,m ,dev \n"
        "id00017 ,n000017 ,m ,test \n"
    )
    assert official_test(tmp_path) == {"id10270", "Eartha_Kitt", "id00017", "n000017"}
    for content in (b"", b"id10270\ttest\n", b"\xff\xfe\x00"):
        (tmp_path / "vox1_meta.csv").write_bytes(content)
        with pytest.raises(DataError, match=r"vox1_meta\.csv' is not a table"):
            official_test(tmp_path)


# the whole


@pytest.mark.parametrize(("release", "rate"), [(1, 25), (2, 25), (1, 50), (2, 30)])
def test_the_face_of_the_boxes_is_cut_out(tmp_path, monkeypatch, release, rate):
    finder = SquareFinder()
    monkeypatch.setattr(video_module, "_detector", lambda _: finder)
    root = write_whole(tmp_path / "raw", release, rate)
    plan, source, clips = prepared(root, tmp_path / "out")
    assert {name: clip.frames.tolist() for name, clip in clips.items()} == {
        "id10270/aaaaaaaaaaa/00001": [b"%06d.jpg" % k for k in range(5, 40)],
        "id10270/aaaaaaaaaaa/00002": [b"000020.jpg", b"000030.jpg"],
        "id10001/-_bbbbbbbbb/00001": [b"%06d.jpg" % k for k in range(10, 15)],
        "id10002/ccccccccccc/00001": [b"%06d.jpg" % k for k in range(10, 15)],
    }
    assert {clip.identity for clip in clips.values()} == {"id10270", "id10001", "id10002"}
    assert plan.left_out == {"boxes without their video": 1}
    report = json.loads((plan.out / "report.json").read_text())
    assert [bad["video"] for bad in report["bad_videos"]] == ["txt/id10001/-_bbbbbbbbb/00009.txt"]
    assert max(max(shape) for shape in finder.shown) <= 125  # twice the box, not the video
    boxes = {5: square_at(5 / 25), 39: square_at(39 / 25)}
    clip = clips["id10270/aaaaaaaaaaa/00001"]
    for index, number in ((0, 5), (34, 39)):
        frame = source.read(clip, index)
        size, margin = plan.settings.size, plan.settings.margin
        scale = size / (margin * boxes[number][2])
        low, high = frame.landmarks.amin(0), frame.landmarks.amax(0)
        torch.testing.assert_close((low + high) / 2, torch.tensor([128.0, 128.0]), atol=4.0, rtol=0)
        shown = (frame.image.float().mean(0) > 128).nonzero().float()  # the square, in the crop
        middle = (shown.amin(0) + shown.amax(0) + 1) / 2
        torch.testing.assert_close(middle, torch.tensor([128.0, 128.0]), atol=4.0, rtol=0)
        assert shown[:, 1].max() - shown[:, 1].min() == pytest.approx(60 * scale, abs=5)


@pytest.mark.parametrize("turned", [False, True])
def test_of_two_faces_in_a_box_the_one_nearer_to_its_middle(tmp_path, monkeypatch, turned):
    class Finder(SquareFinder):
        def __call__(self, image):
            found = super().__call__(image)
            found += [Detection(face.landmarks + 12, 0.95) for face in found]
            return found[::-1] if turned else found

    monkeypatch.setattr(video_module, "_detector", lambda _: Finder())
    _, source, clips = prepared(write_whole(tmp_path / "raw", 2), tmp_path / "out", every=20)
    frame = source.read(clips["id10270/aaaaaaaaaaa/00001"], 0)
    shown = (frame.image.float().mean(0) > 128).nonzero().float()
    middle = (shown.amin(0) + shown.amax(0) + 1) / 2
    torch.testing.assert_close(middle, torch.tensor([128.0, 128.0]), atol=4.0, rtol=0)


@pytest.mark.parametrize("official", ["meta", "folder"])
def test_the_official_test_is_the_split(tmp_path, monkeypatch, official):
    monkeypatch.setattr(video_module, "_detector", lambda _: SquareFinder())
    root = write_whole(tmp_path / "raw", 2)
    if official == "meta":
        (root / "vox1_meta.csv").write_text("ID\tName\tSet\nid10270\tEartha_Kitt\ttest\n")
    else:
        (root / "test/txt").mkdir(parents=True)
        (root / "txt/id10270").rename(root / "test/txt/id10270")
        (root / "txt").rename(root / "dev-txt")
        (root / "dev").mkdir()
        (root / "dev-txt").rename(root / "dev/txt")
    plan, source, _ = prepared(root, tmp_path / "out", every=7)
    assert {clip.identity for clip in source.clips("test")} == {"id10270"}
    names = listed_or_divided(plan.out / "splits", ["id10001", "id10002", "id10270"])
    assert names == {"train": ["id10001", "id10002"], "val": [], "test": ["id10270"]}


def test_given_lists_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(video_module, "_detector", lambda _: SquareFinder())
    root = write_whole(tmp_path / "raw", 2)
    (root / "vox1_meta.csv").write_text("ID\tName\tSet\nid10270\tEartha_Kitt\ttest\n")
    out = tmp_path / "out"
    plan = make_plan(root, out, Settings(min_crop_px=50.0, every=7))
    (out / "splits").mkdir()
    (out / "splits/train.txt").write_text("id10270\n")
    for job in plan.jobs():
        prepare_shard(job)
    assert finish(plan) == []
    assert [path.name for path in (out / "splits").iterdir()] == ["train.txt"]
    assert {clip.identity for clip in ShardSource(out).clips("train")} == {"id10270"}


def test_given_landmarks_have_a_line_for_each_line_of_the_metadata(tmp_path):
    root = write_whole(tmp_path / "raw", 1, rate=50)
    for path in (root / "txt").rglob("*.txt"):
        numbers = [int(line[:6]) for line in path.read_text().splitlines() if line[:1] == "0"]
        places = [square_at(number / 25) for number in numbers]
        points = np.stack([UNIT.numpy() * place[2] + place[:2] for place in places])
        landmarks(path, points, np.ones(points.shape[:2]))
    plan, source, clips = prepared(root, tmp_path / "out", every=10)
    clip = clips["id10270/aaaaaaaaaaa/00001"]
    assert clip.frames.tolist() == [b"000005.jpg", b"000015.jpg", b"000025.jpg", b"000035.jpg"]
    scale = plan.settings.size / (plan.settings.margin * 60)
    for index in range(4):
        image = source.read(clip, index).image.float().mean(0)
        columns = (image[128] > 128).nonzero()  # the square moves by 4 pixels from frame to frame
        assert (columns.min() - 128) / scale == pytest.approx(-30, abs=0.75)


def test_what_the_release_has_cut_already_is_not_cut_again(tmp_path):
    film(tmp_path / "dev/mp4/id10001/aaaaaaaaaaa/00001.mp4", 1, 32)
    for clip in ("id10001/aaaaaaaaaaa/00001", "id10001/bbbbbbbbbbb/00001"):
        path = tmp_path / f"dev/txt/{clip}.txt"
        path.parent.mkdir(parents=True)
        path.write_text(HEAD + "000000 1 1 99 99\n")
    (tmp_path / "dev/notes.txt").touch()
    (video,) = list_videos(tmp_path, left_out := Counter())
    assert (video.clip, video.track) == ("id10001/aaaaaaaaaaa/00001", None)
    assert left_out == {"boxes without their video": 1}
