"""Single frames of videos: the right one, whatever the codec."""

import numpy as np
import pytest

from core.errors import DataError
from datamodules.video import read_frame
from tests.fakes.vw300 import number_in, numbered, write_video

FRAMES = 40


def images(size=64):
    noise = np.random.default_rng(0).integers(0, 256, (FRAMES, size, size, 3), np.uint8)
    return [numbered(image // 4 + 96, number) for number, image in enumerate(noise)]


@pytest.mark.parametrize("suffix", ["avi", "mp4"])
@pytest.mark.parametrize(
    "codec",
    [
        {"codec": "mpeg4"},
        {"codec": "mpeg4", "g": "100"},  # one key frame
        {"codec": "mpeg4", "g": "15", "bf": "2"},  # frames shown in another order than stored
        {"codec": "mjpeg"},
        {"codec": "libx264", "g": "10"},
    ],
    ids=str,
)
def test_any_frame_in_any_order(tmp_path, codec, suffix, caplog):
    path = tmp_path / f"a.{suffix}"
    write_video(path, images(), **codec)
    order = [0, 39, 0, 1, *np.random.default_rng(1).permutation(FRAMES).tolist()]
    found = [number_in(read_frame(path, k).permute(1, 2, 0).numpy()) for k in order]
    assert found == order
    assert "wrong times" not in caplog.text


def test_wrong_times_are_noticed(tmp_path, caplog):
    """An .avi stores no times of showing; of H.264's B-frames they are guessed, and wrong."""
    y, x = np.mgrid[:128, :128]
    waves = (np.sin((x + 3 * k) / 40 + (y - 2 * k) / 30) * 100 + 128 for k in range(FRAMES))
    moving = [np.repeat(wave[..., None], 3, -1).astype(np.uint8) for wave in waves]
    path = tmp_path / "a.avi"
    write_video(path, [numbered(m, k) for k, m in enumerate(moving)], codec="libx264", g="250")
    order = np.random.default_rng(1).permutation(FRAMES).tolist()
    found = [number_in(read_frame(path, k).permute(1, 2, 0).numpy()) for k in order]
    assert found == order
    assert caplog.text.count("wrong times") == 1


def test_colours_and_shape(tmp_path):
    red = np.zeros((48, 64, 3), np.uint8)
    red[..., 0] = 200
    write_video(tmp_path / "a.avi", [red] * 3, codec="mjpeg")
    frame = read_frame(tmp_path / "a.avi", 2)
    assert frame.shape == (3, 48, 64)
    assert abs(frame.float().mean((1, 2)) - frame.new_tensor([200, 0, 0])).max() < 6


def test_a_changed_file_is_read_anew(tmp_path):
    path = tmp_path / "a.avi"
    write_video(path, images()[:5], codec="mjpeg")
    assert number_in(read_frame(path, 3).permute(1, 2, 0).numpy()) == 3
    write_video(path, images()[5:], codec="mjpeg")
    assert number_in(read_frame(path, 3).permute(1, 2, 0).numpy()) == 8


@pytest.mark.parametrize(
    ("content", "index", "reason"),
    [
        (None, 0, "No such file"),
        (b"", 0, "cannot be decoded"),
        (b"text" * 99, 0, "cannot be decoded"),
        ("whole", FRAMES, "has no frame 40"),
        ("half", FRAMES - 1, "has no frame 39|cannot be decoded"),
    ],
)
def test_bad_videos_say_which(tmp_path, content, index, reason):
    path = tmp_path / "a.avi"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content:
        write_video(path, images())
        if content == "half":
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=reason) as caught:
        read_frame(path, index)
    assert str(path) in str(caught.value)
