import struct

import numpy as np
import pytest
from PIL import Image

from core.errors import DataError
from core.image_files import read_image


def gradient(height=6, width=9):
    return np.arange(height * width * 3).reshape(height, width, 3).astype(np.uint8)


def test_colour_and_grey(tmp_path):
    Image.fromarray(gradient()).save(tmp_path / "a.png")
    found = read_image(tmp_path / "a.png")
    np.testing.assert_array_equal(found.permute(1, 2, 0), gradient())
    assert read_image(tmp_path / "a.png", "L").shape == (1, 6, 9)


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_sixteen_bits_keep_their_brightness(tmp_path, mode):
    grey = np.linspace(0, 65535, 54).round().astype(np.uint16).reshape(6, 9)
    Image.fromarray(grey).save(tmp_path / "a.png")
    found = read_image(tmp_path / "a.png", mode).numpy() / 255
    np.testing.assert_allclose(found, np.broadcast_to(grey / 65535, found.shape), atol=0.5 / 255)


def exif(orientation):
    entries = Image.Exif()
    entries[0x0112] = orientation
    return entries


@pytest.mark.parametrize("kind", ["RGB", "16 bits"])
@pytest.mark.parametrize(
    ("orientation", "turns"), [(1, 0), (3, 2), (6, 3), (8, 1)]
)  # the camera's sensor was turned: quarters that the picture has to be turned back, anticlockwise
def test_pictures_are_upright(tmp_path, kind, orientation, turns):
    stored = gradient() if kind == "RGB" else gradient()[..., 0].astype(np.uint16) * 257
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif(orientation))
    found = read_image(tmp_path / "a.png", "RGB" if kind == "RGB" else "L").permute(1, 2, 0)
    wanted = gradient() if kind == "RGB" else gradient()[..., :1]
    np.testing.assert_array_equal(found, np.rot90(wanted, turns))


@pytest.mark.parametrize("damage", ["empty", "text", "truncated", "exif", "bomb"])
def test_whatever_is_wrong_names_the_file(tmp_path, monkeypatch, damage):
    path = tmp_path / "a.webp"
    Image.fromarray(gradient(64, 64)).save(path)
    if damage == "empty":
        path.write_bytes(b"")
    elif damage == "text":
        path.write_text("no picture")
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:60])
    elif damage == "exif":
        Image.fromarray(gradient()).save(path, exif=b"Exif\0\0" + struct.pack("<8s", b"nonsense"))
    else:
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(DataError, match=r"a\.webp' is not a readable image"):
        read_image(path)
