import os
import pickle
import shutil
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from core.errors import AssetNotFoundError, DataError
from datamodules.clips import Fault, UnusableFrameError
from datamodules.multipie import MultiPIE, Shots
from tests.fakes import multipie
from tests.fakes.voxceleb import face_points, save, save_array

FIRST = "session01/multiview/001/01/05_1/001_01_01_051"


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return multipie.write(tmp_path_factory.mktemp("multipie"))


@pytest.fixture
def root(shared, tmp_path):
    return shutil.copytree(shared, tmp_path / "multipie")


def scan(root):
    return Shots.scan(root, root / "landmarks")


def clips(source):
    return {clip.name: clip for some in source.splits.values() for clip in some}


def write(root: Path, name: str, landmarks: str | None = None) -> None:
    save(root / name, Image.new("RGB", (64, 64)))
    if landmarks:
        save_array(root / "landmarks" / landmarks, face_points(np.random.default_rng(0), 64))


def test_a_clip_is_a_recording_sorted_by_light_and_yaw(shared):
    source = scan(shared)
    assert sorted(clips(source)) == [f"00{s}/01/0{r}" for s in (1, 2, 3) for r in (1, 2)]
    clip = clips(source)["002/01/01"]
    assert clip.identity == "002"
    assert clip.yaw.tolist() == [-15, 0, 15, -15, 0, 15]
    assert clip.light.tolist() == [0, 0, 0, 7, 7, 7]
    names = [Path(name.decode()).stem for name in clip.frames]
    cameras = {-15: "140", 0: "051", 15: "050"}
    for name, yaw, light in zip(names, clip.yaw, clip.light, strict=True):
        assert name == f"002_01_01_{cameras[yaw]}_{light:02}"
    assert source.left_out == {
        "images of other names": 1,
        "images without landmarks": 1,
        "images from above": 12,
    }
    pickle.loads(pickle.dumps(source))


def test_people_are_in_one_split(shared):
    splits = scan(shared).splits
    assert [{clip.identity for clip in some} for some in splits.values()] in [
        [{a}, {b}, {c}] for a, b, c in permutations(["001", "002", "003"])
    ]


def test_names_count_and_folders_do_not(tmp_path):
    write(tmp_path, "001_02_03_010_00_crop_128.png", "001_02_03_010_00_crop_128.npy")
    write(tmp_path, "deep/er/001_02_03_240_18.jpg", "001_02_03_240_18.npy")
    write(tmp_path, "001_02_03_999_18.png", "001_02_03_999_18.npy")
    source = scan(tmp_path)
    (clip,) = source.splits["train"]
    assert clip.name == "001/02/03"
    assert clip.yaw.tolist() == [75, 90]
    assert clip.light.tolist() == [0, 18]
    assert [source.read(clip, k).landmarks.shape for k in range(2)] == [(68, 2)] * 2
    assert source.left_out == {"images of unknown cameras": 1}


def test_of_two_images_of_a_shot_the_first_is_taken(root):
    write(root, "zz/001_01_02_051_00.png", "001_01_02_051_00.npy")
    source = scan(root)
    assert source.left_out["further images of the same shot"] == 1
    assert len(clips(source)["001/01/02"].frames) == 6


def test_what_is_written_is_read(shared):
    source = scan(shared)
    clip = clips(source)["003/01/02"]
    frame = source.read(clip, 4)
    path = clip.frames[4].decode()
    assert np.array_equal(frame.image.permute(1, 2, 0), Image.open(shared / path))
    points = np.load(shared / "landmarks" / Path(path).with_suffix(".npy"))
    assert np.array_equal(frame.landmarks, points[:, :2])
    assert np.array_equal(frame.confidence, points[:, 2])


def test_five_points_in_a_text_do(root):
    path = root / "landmarks" / f"{FIRST}_00.txt"
    path.write_text("20 20\n44 20\n32 32\n24 44\n40 44\n")
    source = scan(root)
    clip = clips(source)["001/01/01"]
    index = [name.decode() for name in clip.frames].index(f"{FIRST}_00.png")
    frame = source.read(clip, index)
    assert frame.five_points.tolist() == [[20, 20], [44, 20], [32, 32], [24, 44], [40, 44]]
    assert not frame.confidence.any()


@pytest.mark.parametrize(
    ("array", "fault"),
    [(np.zeros((39, 2)), Fault.LANDMARKS), (None, Fault.LANDMARKS), (b"", Fault.LANDMARKS)],
)
def test_bad_landmarks(root, array, fault):
    source = scan(root)
    clip = clips(source)["002/01/01"]
    path = root / "landmarks" / Path(clip.frames[0].decode()).with_suffix(".npy")
    path.unlink()
    if isinstance(array, bytes):
        path.write_bytes(array)
    elif array is not None:
        np.save(path, array)
    with pytest.raises(UnusableFrameError, match=path.name) as caught:
        source.read(clip, 0)
    assert caught.value.fault == fault


def test_an_epoch_counts_what_it_leaves_out(root):
    (root / "splits").mkdir()
    (root / "splits/train.txt").write_text("001\n")
    other = FIRST.replace("05_1", "05_0").replace("051", "050")
    save_array(root / f"landmarks/{other}_00.npy", np.full((68, 2), np.nan))
    save_array(root / f"landmarks/{other}_07.npy", np.full((68, 2), 900.0))
    module = MultiPIE(root, image_size=32, frames_per_clip=6, clips_per_batch=1, workers=0)
    module.setup("fit")
    list(module.train_dataloader())
    assert module.skipped["train"] == {
        "image cannot be read": 1,
        "landmarks are not finite": 1,
        "landmarks are outside the image": 1,
    }


def test_a_folder_of_landmarks_that_may_not_be_entered(shared, monkeypatch):
    """Below another one that may not."""
    landmarks = shared.parent / "closed/landmarks"

    def denied(function):
        def checked(path, *args, **options):
            if Path(path) == landmarks:
                raise PermissionError(13, "Permission denied", str(path))
            return function(path, *args, **options)

        return checked

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", denied(os.scandir))  # root may open anything
        patch.setattr(Path, "stat", denied(Path.stat))
        with pytest.raises(AssetNotFoundError, match=r"landmarks' \(cannot be opened: Permission"):
            Shots.scan(shared, landmarks)


def test_other_folders_say_what_was_found(tmp_path, shared):
    with pytest.raises(AssetNotFoundError, match=r"nowhere'.*001_01_01_051_07.png"):
        MultiPIE(tmp_path / "nowhere").source()
    with pytest.raises(DataError, match=r"found nothing, wanted .*001_01_01_051_07.png"):
        MultiPIE(tmp_path).source()
    save(tmp_path / "sets/001_01_01_051_07.png", Image.new("RGB", (9, 9)))
    with pytest.raises(AssetNotFoundError, match=r"landmarks'.*detector.*--data.landmarks"):
        MultiPIE(tmp_path / "sets").source()
    shutil.rmtree(tmp_path / "sets")
    save(tmp_path / "images/face.png", Image.new("RGB", (9, 9)))
    with pytest.raises(DataError, match=r"found \['images'\], wanted.*1 images of other names"):
        MultiPIE(tmp_path, landmarks=shared / "landmarks").source()
