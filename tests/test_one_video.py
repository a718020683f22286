"""One video as the data of a training, and 3D landmarks from a synthetic set's ground truth."""

import numpy as np
import pytest
import torch

from core.align import procrustes
from core.camera import WeakPerspectiveCamera, frontal
from core.crop import transform_points
from core.errors import AssetNotFoundError
from core.truth import load_truth
from datamodules.augment import Augmentation
from datamodules.one_video import OneVideo
from datamodules.synthetic import LabelledTree
from tests.fakes import truth, videos, voxceleb

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """Eight frames, of which frame 3 shows no face."""
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    videos.film(path, frames=8, size=96)
    points = np.stack([voxceleb.face_points(np.random.default_rng(k), 96) for k in range(8)])
    points[3, :, 2] = 0
    videos.landmarks(path, points[..., :2], points[..., 2])
    return path


def opened(path, **options):
    settings = {"image_size": 32, "frames_per_clip": 4, "clips_per_batch": 2, "workers": 0}
    data = OneVideo(path, **{**settings, **options})
    data.setup("fit")
    return data


def test_the_frames_of_a_video_are_trained_with(film):
    data = opened(film, batches_per_epoch=20)
    seen = {name for batch in data.train_dataloader() for name in batch["sample_ids"]}
    assert seen == {f"clip/{k:06}" for k in range(8) if k != 3}
    batch = next(iter(data.train_dataloader()))
    assert batch["images"].shape == (2, 4, 3, 32, 32)
    (shown,) = data.val_dataloader()
    assert [name[-6:] for name in shown["sample_ids"]] == ["000000", "000002", "000005", "000007"]
    number = int(batch["sample_ids"][0][-6:])
    given = np.load(film.with_suffix(".npz"))["landmarks"][number]
    back = transform_points(batch["crop_to_image"][0, 0], batch["landmarks"][0, 0])
    torch.testing.assert_close(back, torch.from_numpy(given).float(), rtol=0, atol=1e-2)


def test_only_some_frames_and_landmarks_of_another_name(film, tmp_path):
    moved = tmp_path / "landmarks68.npz"
    moved.write_bytes(film.with_suffix(".npz").read_bytes())
    data = opened(film, landmarks=moved, every=4, batches_per_epoch=4)
    seen = {name for batch in data.train_dataloader() for name in batch["sample_ids"]}
    assert seen == {"clip/000000", "clip/000004"}


def test_what_is_missing_is_named(film, tmp_path):
    with pytest.raises(AssetNotFoundError, match=r"none\.mp4"):
        opened(tmp_path / "none.mp4")
    alone = tmp_path / "alone.mp4"
    alone.write_bytes(film.read_bytes())
    with pytest.raises(AssetNotFoundError, match=r"alone\.npz.*landmarks68\.npz"):
        opened(alone)


def test_labelled_frames_have_the_true_landmarks_in_3d(tmp_path):
    """In x and y where they are seen; with z a similarity of the face's own landmarks."""
    root = truth.write(tmp_path, split="train")
    tree = LabelledTree.scan(root)
    clip = tree.clips("train")[0]
    for index in range(3):
        frame = tree.read(clip, index)
        known = load_truth(root, f"{clip.name}/{index:06}")
        assert frame.landmarks_3d is not None
        torch.testing.assert_close(frame.landmarks, known.landmarks)
        torch.testing.assert_close(frame.landmarks_3d[:, :2], known.landmarks)
        assert (frame.confidence == 1).all()
        assert abs(frame.landmarks_3d[:, 2].mean()) < 1e-3
        image = frame.landmarks_3d * torch.tensor([1, 1, -1])  # camera frame
        found = procrustes(known.landmarks_3d, image)
        off = (found.apply(known.landmarks_3d) - image).norm(dim=-1).mean()
        size = (image - image.mean(0)).norm(dim=-1).mean()
        assert off < 0.05 * size  # what perspective does at 900 mm
        turn = found.rotation @ known.camera.rotation.mT
        assert turn.diagonal().sum() > 2.98  # about 8 degrees, by the face's place in the image


def test_the_worked_numbers_sign_of_depth(tmp_path):
    """The nose of a frontal face is towards the camera, z > 0."""
    root = truth.write(tmp_path, split="train")
    tree = LabelledTree.scan(root)
    clip = tree.clips("train")[0]
    yaw = [
        WeakPerspectiveCamera(
            load_truth(root, f"{clip.name}/{k:06}").camera.rotation, torch.ones(()), torch.zeros(2)
        ).head_rotation[0, 2]
        for k in range(3)
    ]
    index = int(torch.stack(yaw).abs().argmin())
    points = tree.read(clip, index).landmarks_3d
    assert points is not None
    assert points[30, 2] > points[[0, 16], 2].mean() + 5  # nose tip and ears, pixels
    assert torch.equal(frontal(points), torch.diag(torch.tensor([1.0, -1, -1])))


def test_augmented_video_frames_keep_their_landmarks(film):
    data = opened(film, augmentation=Augmentation(shift=0.1, scale=0.1, flip=0.5))
    batch = next(iter(data.train_dataloader()))
    assert batch["landmarks"].isfinite().all()
    assert batch["landmark_confidence"].max() <= 1
