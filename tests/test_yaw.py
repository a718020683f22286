"""Yaws from landmarks, and triplets of video frames made with them."""

import shutil

import numpy as np
import pytest
import torch

from core.camera import PerspectiveCamera, frontal
from core.face_models import load_face_model
from core.rotation import rotation_from_euler
from datamodules.celeba import Celebrities
from datamodules.choice import Views
from datamodules.clips import Clip, UnusableFrameError
from datamodules.shards import ShardSource
from datamodules.voxceleb import FrameTree
from datamodules.voxceleb_videos import VideoTree
from datamodules.vw300 import VW300, AnnotatedVideos
from datamodules.yaw import LandmarkSource, landmark_yaw, with_landmark_yaw
from tests.fakes import celeba, videos, voxceleb, vw300
from tests.fakes.vw300 import write_pts

pytestmark = pytest.mark.usefixtures("one_thread")

TURN = 60 * np.sin(np.linspace(0, 4 * np.pi, 80))  # yaw by frame, degrees
SIZE = 64


def turned_landmarks(yaw: torch.Tensor, people: int = 1, size: int = SIZE) -> torch.Tensor:
    """Of people of the procedural model who turn, seen from 1 m; "people yaws 68 2", pixels."""
    model = load_face_model("procedural", 40, 1, 1)
    random = torch.Generator().manual_seed(0)
    shapes = model.landmarks(model.shape(torch.randn(people, 40, generator=random))).double()
    angle = torch.deg2rad(yaw.double())
    tilt = torch.full_like(angle, 0.1)
    rotation = frontal(angle) @ rotation_from_euler(tilt, angle, -tilt)
    middle = shapes[:, None].mean(2)
    away = torch.tensor([0.0, 0.0, 1000.0]).double()
    camera = PerspectiveCamera(
        rotation=rotation.expand(people, -1, -1, -1),
        translation=away - (rotation @ middle[..., None])[..., 0],
        focal=torch.full((people, len(yaw)), 4.0 * size).double(),
        centre=torch.full((people, len(yaw), 2), size / 2).double(),
    )
    return camera.project(shapes[:, None].expand(-1, len(yaw), -1, -1))[0]


def test_the_yaw_of_many_people():
    """To some degrees, and to fewer between the frames of one person."""
    yaw = torch.linspace(-75, 75, 31).double()
    found = landmark_yaw(turned_landmarks(yaw, people=30))
    error = found - yaw
    assert error.abs().median() < 3
    assert error.abs().max() < 15
    steps = found.diff(dim=-1)
    assert (steps > 0).all()  # their order is right
    assert (steps - 5).abs().median() < 1


def test_a_missing_landmark_is_an_unknown_yaw():
    points = turned_landmarks(torch.tensor([-20.0, 20.0]))
    points[0, 1, 30] = torch.nan
    first, second = landmark_yaw(points)[0]
    assert first == pytest.approx(-20, abs=8)
    assert second.isnan()


@pytest.fixture(scope="module")
def turning(tmp_path_factory):
    """300-VW, in which the heads turn from side to side."""
    root = vw300.write(tmp_path_factory.mktemp("vw300"), frames=len(TURN), size=SIZE)
    points = turned_landmarks(torch.from_numpy(TURN))[0]
    for name in vw300.VIDEOS:
        for number, values in enumerate(points, 1):
            write_pts(root / name / f"annot/{number:06}.pts", values.numpy() + 0.5)
    return root


def test_triplets_of_video_frames(turning):
    """Neighbouring yaws, the target in the middle, no more than so many frames away; marked as
    views of one face.
    """
    choice = Views(apart=6.0, within=8)
    data = VW300(
        turning,
        frames=choice,
        frames_per_clip=3,
        clips_per_batch=2,
        batches_per_epoch=15,
        workers=0,
        image_size=16,
    )
    data.setup("fit")
    seen = set()
    for batch in data.train_dataloader():
        assert batch["multi_view"].all()
        names = np.array(batch["sample_ids"]).reshape(2, 3)
        for row in names:
            left, target, right = (int(name.rpartition("/")[2]) - 1 for name in row)
            assert max(abs(left - target), abs(right - target)) <= 8
            assert TURN[target] - TURN[left] == pytest.approx(8, abs=6)
            assert TURN[right] - TURN[target] == pytest.approx(8, abs=6)
            seen.add(target)
    assert len(seen) > 10


def test_unreadable_landmarks_and_known_yaws(turning, tmp_path):
    root = shutil.copytree(turning, tmp_path / "vw300")
    annot = root / "009/annot"
    (annot / "000005.pts").write_text("nothing")
    write_pts(annot / "000006.pts", np.full((68, 2), np.nan))
    clips = [c for some in AnnotatedVideos.scan(root).splits.values() for c in some]
    source = AnnotatedVideos.scan(root)
    (clip,) = (clip for clip in clips if clip.name == "009")
    known = Clip("001", "001", clip.frames, np.zeros(len(clip.frames)))
    single = Clip("002", "002", clip.frames[:1])
    first, second, third = with_landmark_yaw(source, [clip, known, single])
    assert np.flatnonzero(np.isnan(first.yaw)).tolist() == [4, 5]
    good = np.isfinite(first.yaw)
    assert np.abs(first.yaw - TURN)[good].max() < 12
    assert second is known
    assert third is single
    assert with_landmark_yaw(object(), [clip]) == [clip]


def test_a_folder_of_landmarks_does_not_read_them(tmp_path):
    """``Celebrities.landmarks`` is a path."""
    source = Celebrities.scan(celeba.write(tmp_path), landmarks=tmp_path, clips="identity")
    assert not isinstance(source, LandmarkSource)
    clips = source.clips("train")
    assert max(len(clip.frames) for clip in clips) > 1
    assert with_landmark_yaw(source, clips) == clips


def frame_tree(root):
    return FrameTree.scan(voxceleb.write(root))


def video_tree(root):
    return VideoTree.scan(videos.write(root, people=2))


def annotated_videos(root):
    return AnnotatedVideos.scan(vw300.write(root))


def shards(root):
    from tests.test_shards import write

    write(root)
    return ShardSource(root)


@pytest.mark.parametrize("make", [frame_tree, video_tree, annotated_videos, shards])
def test_landmarks_without_images_are_those_of_the_frames(make, tmp_path):
    source = make(tmp_path)
    assert isinstance(source, LandmarkSource)
    compared = 0
    for split in ("train", "val", "test"):
        for clip in source.clips(split):
            for index in range(min(5, len(clip.frames))):
                try:
                    frame = source.read(*clip.at(index))
                except UnusableFrameError:
                    continue
                points, confidence = source.landmarks_of(*clip.at(index))
                if len(points) == 5:
                    torch.testing.assert_close(points, frame.five_points)
                    continue
                torch.testing.assert_close(points, frame.landmarks, equal_nan=True)
                torch.testing.assert_close(confidence, frame.confidence, equal_nan=True)
                compared += 1
    assert compared > 5
