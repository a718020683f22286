import struct

import numpy as np
import pytest

from core.errors import DataError
from datamodules.landmark_files import read_landmarks, read_video_landmarks
from tests.fakes.image_folder import t7

POINTS = np.random.default_rng(0).uniform(10, 90, (68, 2)).astype(np.float32)
FRAMES = np.stack([POINTS, POINTS + 1, POINTS + 2])
CONFIDENCE = np.where(np.arange(68) % 3, 1.0, 0.0).astype(np.float32)


def test_text_is_x_y_all_seen(tmp_path):
    (tmp_path / "a.txt").write_text("# five points\n1 2\n3 4\n\n5 6 # nose\n7\t8\n9 10\n")
    points, confidence = read_landmarks(tmp_path / "a.txt")
    np.testing.assert_array_equal(points, np.arange(1, 11).reshape(5, 2))
    assert confidence.tolist() == [1] * 5


def test_the_third_column_of_npy_is_confidence(tmp_path):
    np.save(tmp_path / "a.npy", np.c_[POINTS, CONFIDENCE])
    points, confidence = read_landmarks(tmp_path / "a.npy")
    np.testing.assert_array_equal(points, POINTS)
    np.testing.assert_array_equal(confidence, CONFIDENCE)


@pytest.mark.parametrize("kind", ["torch.DoubleTensor", "torch.FloatTensor"])
def test_tensors_of_torch_7_count_from_one(tmp_path, kind):
    (tmp_path / "a.t7").write_bytes(t7(POINTS + 0.5, kind))
    (tmp_path / "b.t7").write_bytes(t7(POINTS + 0.5, kind, steps=(1, 68)))  # a transposed view
    for name in ("a.t7", "b.t7"):
        points, confidence = read_landmarks(tmp_path / name)
        np.testing.assert_allclose(points, POINTS, atol=1e-5)
        assert confidence.tolist() == [1] * 68


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.t7", b"", "smaller than requested"),
        ("a.t7", t7(POINTS)[:-8], "smaller than requested"),
        ("a.t7", struct.pack("<ii", 3, 1), "kind 3, wanted a tensor"),
        ("a.t7", t7(POINTS, "torch.LongTensor"), "a 'torch.LongTensor', wanted one of"),
        ("a.t7", t7(POINTS, steps=(1, 999)), "out of bounds"),
        ("a.t7", t7(POINTS).replace(struct.pack("<q", 68), struct.pack("<q", 69)), "136 numbers"),
        ("a.t7", t7(POINTS[:21]), r"shape \(21, 2\)"),
        ("a.txt", b"", "it is empty"),
        ("a.txt", b"# only a comment\n", "it is empty"),
        ("a.txt", b"1 2\n3\n", "inhomogeneous"),
        ("a.txt", b"one two\n", "could not convert"),
        ("a.txt", b"\xff\xfe\x00", "decode"),
        ("a.txt", b"1 2 3\n" * 5, r"shape \(5, 3\)"),
        ("a.txt", b"1 2\n" * 4, r"shape \(4, 2\), wanted 5 or 68"),
        ("a.npy", b"\x93NUMPY broken", "a.npy"),
        ("a.npy", np.zeros((68, 4)), r"shape \(68, 4\)"),
        ("a.npy", np.zeros((2, 68, 2)), r"shape \(2, 68, 2\)"),
        ("a.npy", np.array(["x"] * 68), "could not convert"),
        ("a.npy", np.c_[POINTS, POINTS[:, :1] - 50], "confidences from -.*leave the column out"),
        ("a.npy", np.c_[POINTS, POINTS[:, :1] * np.nan], "confidences from nan"),
    ],
)
def test_bad_photo_landmarks_say_what_is_wrong(tmp_path, name, content, reason):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content)
    with pytest.raises(DataError, match=reason) as caught:
        read_landmarks(path)
    assert str(path) in str(caught.value)


def test_videos_have_frames_without_a_face_and_a_depth_that_is_not_used(tmp_path):
    depth = np.linspace(-60, 150, 3 * 68).reshape(3, 68, 1)
    values = {"landmarks": np.concatenate([FRAMES, depth], 2), "valid": [True, False, True]}
    np.savez(tmp_path / "a.npz", **values)
    points, confidence = read_video_landmarks(tmp_path / "a.npz")
    np.testing.assert_array_equal(points, FRAMES)
    assert confidence.mean(1).tolist() == [1, 0, 1]
    np.savez(tmp_path / "a.npz", **values, confidence=np.stack([CONFIDENCE] * 3))
    confidence = read_video_landmarks(tmp_path / "a.npz")[1]
    np.testing.assert_array_equal(confidence, np.stack([CONFIDENCE, 0 * CONFIDENCE, CONFIDENCE]))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"PK broken", "a.npz"),
        (b"PK\x03\x04" + bytes(100), "a.npz"),
        ({"points": FRAMES}, r"arrays \['points'\], wanted 'landmarks'"),
        ({"landmarks": POINTS}, r"shape \(68, 2\), wanted \(frames, 5 or 68, 2\)"),
        ({"landmarks": FRAMES[:0]}, r"shape \(0, 68, 2\), wanted"),
        ({"landmarks": FRAMES, "valid": np.array(["yes"] * 3)}, "could not convert string"),
        ({"landmarks": FRAMES, "valid": np.ones(2)}, r"'valid' of shape \(2,\), wanted \(3,\)"),
        ({"landmarks": FRAMES, "confidence": np.ones(3)}, "'confidence' of shape"),
        ({"landmarks": FRAMES, "confidence": 2 * np.ones((3, 68))}, r"wanted \[0, 1\]"),
        (
            {"landmarks": np.concatenate([FRAMES, np.stack([CONFIDENCE] * 3)[..., None]], 2)},
            "a confidence or a depth",
        ),
    ],
)
def test_bad_video_landmarks_say_what_is_wrong(tmp_path, content, reason):
    path = tmp_path / "a.npz"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.savez(path, **content)
    with pytest.raises(DataError, match=reason) as caught:
        read_video_landmarks(path)
    assert str(path) in str(caught.value)
