"""Photos and videos for prediction: where landmarks come from, what is skipped, and that crops are
in register."""

import os
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_lightning import LightningModule, Trainer

from core.crop import transform_points
from core.detect import Detection, FaceDetector
from core.errors import AssetNotFoundError, DataError
from datamodules.photos import Photos, _beside

SAMPLES = Path(os.environ.get("MONOFACE_SAMPLES", Path(__file__).parents[2] / "shared/samples"))
needs_samples = pytest.mark.skipif(
    not (SAMPLES / "photos").is_dir(), reason=f"no real samples in {SAMPLES}"
)


def spread_points(height: int, width: int) -> np.ndarray:
    """68 points in the middle of an image."""
    rng = np.random.default_rng(0)
    return (0.3 + 0.4 * rng.random((68, 2))) * [width, height]


FIVE = np.array([[40.0, 40.0], [60.0, 41.0], [50.0, 52.0], [42.0, 63.0], [58.0, 64.0]])


def photo(path: Path, height: int = 100, width: int = 110) -> None:
    rng = np.random.default_rng(1)
    Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)


def batches(**options) -> list:
    photos = Photos(**{"image_size": 64, **options})
    photos.setup("predict")
    return list(photos.predict_dataloader())


def test_landmarks_beside_the_photo_or_in_deep3d_folders(tmp_path):
    for name in ("a", "b", "c"):
        photo(tmp_path / f"{name}.png")
    np.savetxt(tmp_path / "a.txt", FIVE)
    np.save(tmp_path / "b.npy", np.c_[spread_points(100, 110), np.ones(68)])
    (tmp_path / "detections").mkdir()
    np.savetxt(tmp_path / "detections" / "c.txt", FIVE, delimiter="\t")
    (batch,) = batches(path=tmp_path)
    assert batch["sample_ids"] == ["a", "b", "c"]
    assert batch["images"].shape == (3, 1, 3, 64, 64)
    assert batch["landmark_confidence"].sum(-1).flatten().tolist() == [0, 68, 0]
    assert torch.isfinite(batch["landmarks"]).all()


def test_a_folder_for_each_person(tmp_path, caplog):
    for name in ("ann/b", "ann/a", "ann/c", "bob/a", "nobody"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        photo(tmp_path / f"{name}.png")
        np.savetxt(tmp_path / f"{name}.txt", FIVE)
    (tmp_path / "ann" / "broken.png").write_bytes(b"no image")
    (tmp_path / "ann" / "broken.txt").write_text((tmp_path / "ann" / "a.txt").read_text())
    (tmp_path / "ann" / "detections").mkdir()
    (tmp_path / "empty").mkdir()
    ann, bob = batches(path=tmp_path, folders_are_people=True, batch_size=2)
    assert ann["sample_ids"] == ["ann/a", "ann/b", "ann/c"]
    assert bob["sample_ids"] == ["bob/a"]
    assert ann["images"].shape == (1, 3, 3, 64, 64)
    assert ann["crop_to_image"].shape == (1, 3, 3, 3)
    assert len(ann["originals"]) == 3
    assert "broken.png" in caplog.text
    (one,) = batches(path=tmp_path / "bob", folders_are_people=True)
    assert one["sample_ids"] == ["bob/a"]
    assert torch.equal(one["images"], bob["images"])
    with pytest.raises(DataError, match="is no folder of people"):
        batches(path=tmp_path / "nobody.png", folders_are_people=True)


def test_of_a_persons_photo_the_largest_face_is_taken(tmp_path, monkeypatch):
    photo(tmp_path / "a.png")
    faces = [Detection(torch.from_numpy(spread_points(100, 110)).float(), 1.0)] * 2
    monkeypatch.setattr("datamodules.photos.FaceDetector", lambda pack: lambda image: faces)
    (batch,) = batches(path=tmp_path, folders_are_people=True)
    assert batch["sample_ids"] == [f"{tmp_path.name}/a"]


def test_crop_and_original_are_in_register(tmp_path):
    """A white dot in the photo is in the crop where crop_to_image says."""
    image = np.zeros((200, 240, 3), np.uint8)
    points = spread_points(200, 240)
    dot = np.round(points[30]).astype(int)
    image[dot[1] - 2 : dot[1] + 3, dot[0] - 2 : dot[0] + 3] = 255
    Image.fromarray(image).save(tmp_path / "a.png")
    np.savetxt(tmp_path / "a.txt", points)
    (batch,) = batches(path=tmp_path)
    crop = batch["images"][0, 0].mean(0)
    y, x = torch.meshgrid(*[torch.arange(64) + 0.5] * 2, indexing="ij")
    found = torch.stack([(x * crop).sum(), (y * crop).sum()]) / crop.sum()
    back = transform_points(batch["crop_to_image"][0, 0], found[None])[0]
    np.testing.assert_allclose(back, dot + 0.5, atol=0.3)
    np.testing.assert_allclose(
        transform_points(batch["crop_to_image"][0, 0], batch["landmarks"][0, 0]), points, atol=1e-3
    )


def test_bad_files_are_skipped_counted_and_named(tmp_path, caplog):
    photo(tmp_path / "good.jpg")
    np.savetxt(tmp_path / "good.txt", FIVE)
    (tmp_path / "truncated.jpg").write_bytes((tmp_path / "good.jpg").read_bytes()[:200])
    (tmp_path / "empty.png").write_bytes(b"")
    for name in ("truncated", "empty"):
        np.savetxt(tmp_path / f"{name}.txt", FIVE)
    bad = {"nan": FIVE * np.nan, "four": FIVE[:4], "far": FIVE + 9000, "spot": FIVE * 0 + 50}
    bad["one_far"] = np.where(FIVE[0] == FIVE, 1e9, FIVE)
    for name, points in bad.items():
        photo(tmp_path / f"{name}.png")
        np.savetxt(tmp_path / f"{name}.txt", points)
    photo(tmp_path / "words.png")
    (tmp_path / "words.txt").write_text("no numbers here")
    (batch,) = batches(path=tmp_path)
    assert batch["sample_ids"] == ["good"]
    for name in ("truncated.jpg", "empty.png", "words.png", *(f"{name}.png" for name in bad)):
        assert f"skipped {name}: " in caplog.text
    assert "0 of 5 landmarks are in the image of 110 x 100 pixels" in caplog.text
    assert "landmarks 1e+09 pixels apart in an image of 110 x 100" in caplog.text
    assert "8 of 9 skipped" in caplog.text


def test_folders_and_names_that_cannot_be_used(tmp_path, caplog, monkeypatch):
    for name in ("ann/good.jpg", "bob/good.jpg", "ann/gr\udcfcn.jpg", "j\udcf6rg/good.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        photo(tmp_path / name)
        np.savetxt((tmp_path / name).with_suffix(".txt"), FIVE)
    scandir = os.scandir

    def opened(path):
        if Path(path).name in shut:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", opened)  # root may open anything
    shut = ["bob"]
    (batch,) = batches(path=tmp_path, folders_are_people=True)
    assert batch["sample_ids"] == ["ann/good"]
    assert "ann': 1 names that are not UTF-8 left out" in caplog.text
    assert f"{tmp_path.name}': 1 names that are not UTF-8 left out" in caplog.text
    assert "bob' left out: cannot be opened: Permission denied" in caplog.text
    with pytest.raises(DataError, match="bob' cannot be opened: Permission denied"):
        batches(path=tmp_path / "bob")
    stat = Path.stat

    def reached(path, **options):
        if path.parent == tmp_path / "bob":
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", reached)
    with pytest.raises(DataError, match=r"good.jpg' cannot be opened: Permission denied"):
        batches(path=tmp_path / "bob/good.jpg")
    with pytest.raises(DataError, match=r"good.txt' cannot be opened: Permission denied"):
        batches(path=tmp_path / "ann/good.jpg", landmarks=tmp_path / "bob/good.txt")


def test_landmarks_in_a_closed_folder_are_missed_by_name(tmp_path, caplog, monkeypatch):
    """And those beside the photos are still read."""
    photo(tmp_path / "good.jpg")
    np.savetxt(tmp_path / "good.txt", FIVE)
    (tmp_path / "detections").mkdir()
    scandir, stat = os.scandir, os.stat

    def opened(path):
        if Path(path).name == "detections":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    def reached(path, **options):
        if "detections" in Path(path).parent.parts:
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, **options)

    monkeypatch.setattr(os, "scandir", opened)  # root may open anything
    monkeypatch.setattr(os, "stat", reached)
    assert batches(path=tmp_path)[0]["sample_ids"] == ["good"]
    assert "detections' left out: cannot be opened: Permission denied" in caplog.text
    (tmp_path / "good.txt").unlink()
    assert _beside(tmp_path / "good.jpg") is None  # a detector has to find it


def test_nothing_usable_is_an_error(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"not a picture")
    np.savetxt(tmp_path / "a.txt", FIVE)
    with pytest.raises(DataError, match="no usable face"):
        batches(path=tmp_path)


@pytest.mark.parametrize("what", ["missing", "empty", "text"])
def test_a_path_that_is_something_else(tmp_path, what):
    path = tmp_path / what
    if what == "empty":
        path.mkdir()
        (path / "notes.doc").touch()
    elif what == "text":
        path = path.with_suffix(".txt")
        path.touch()
    wanted = {"missing": "not found", "empty": "notes|doc", "text": "neither a photo nor a video"}
    with pytest.raises((AssetNotFoundError, DataError), match=wanted[what]):
        batches(path=path)


def video(path: Path, frames: int, size: int = 96) -> None:
    """Grey, each frame brighter than the last."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width = stream.height = size
        for level in range(frames):
            frame = av.VideoFrame.from_ndarray(np.full((size, size, 3), 40 * level, np.uint8))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def test_a_video_with_landmarks(tmp_path, caplog):
    video(tmp_path / "talk.mp4", 6)
    landmarks = np.stack([spread_points(96, 96)] * 6)
    np.savez(tmp_path / "talk.npz", landmarks=landmarks, valid=np.arange(6) != 2)
    found = batches(path=tmp_path / "talk.mp4", batch_size=4)
    names = [name for batch in found for name in batch["sample_ids"]]
    assert names == [f"talk_{k:06d}" for k in (0, 1, 3, 4, 5)]
    levels = [image.mean().item() * 255 for batch in found for image in batch["originals"]]
    np.testing.assert_allclose(levels, [0, 40, 120, 160, 200], atol=4)
    assert "skipped talk_000002: no face" in caplog.text


def test_frames_beyond_a_videos_landmarks_are_skipped(tmp_path, caplog):
    video(tmp_path / "talk.mp4", 4)
    np.savez(tmp_path / "other.npz", landmarks=np.stack([spread_points(96, 96)] * 2))
    (batch,) = batches(path=tmp_path / "talk.mp4", landmarks=tmp_path / "other.npz")
    assert batch["sample_ids"] == ["talk_000000", "talk_000001"]
    assert "skipped talk_000003" in caplog.text
    assert "ends at frame 2" in caplog.text


def test_landmarks_are_for_one_file_and_must_be_there(tmp_path):
    photo(tmp_path / "a.png")
    np.savetxt(tmp_path / "points.txt", FIVE)
    (batch,) = batches(path=tmp_path / "a.png", landmarks=tmp_path / "points.txt")
    assert batch["sample_ids"] == ["a"]
    with pytest.raises(DataError, match=r"--data\.landmarks out"):
        batches(path=tmp_path, landmarks=tmp_path / "points.txt")
    with pytest.raises(AssetNotFoundError, match=r"nowhere\.txt"):
        batches(path=tmp_path / "a.png", landmarks=tmp_path / "nowhere.txt")


def test_missing_points_do_not_stretch_the_crop(tmp_path):
    points = np.c_[spread_points(100, 110), np.ones(68)]
    points[:9] = 0
    for name, missing in (("a", 0.0), ("b", np.nan)):
        photo(tmp_path / f"{name}.png")
        points[:9, :2] = missing
        np.save(tmp_path / f"{name}.npy", points)
    photo(tmp_path / "c.png")
    np.save(tmp_path / "c.npy", np.c_[FIVE, [1, 1, 0, 1, 1]])
    (batch,) = batches(path=tmp_path)
    assert batch["sample_ids"] == ["a", "b"]  # five are all needed
    assert batch["landmark_confidence"][0, 0].tolist() == [0] * 9 + [1] * 59
    assert torch.isfinite(batch["landmarks"]).all()
    side = 1.6 * np.ptp(points[9:, :2], axis=0).max()
    found = batch["crop_to_image"][:, 0, 0, 0] * 64
    np.testing.assert_allclose(found, side, rtol=1e-5)


def test_photos_are_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its left side
    upright = np.zeros((100, 60, 3), np.uint8)
    upright[:50] = 200
    Image.fromarray(np.rot90(upright)).save(tmp_path / "a.jpg", exif=exif)
    np.savetxt(tmp_path / "a.txt", FIVE - 15)
    (batch,) = batches(path=tmp_path)
    image = batch["originals"][0]
    assert image.shape == (3, 100, 60)
    assert image[:, :45].mean() > 0.7
    assert image[:, 55:].mean() < 0.1


@pytest.fixture
def two_faces(monkeypatch):
    """A detector that finds two faces in every image."""
    points = torch.from_numpy(spread_points(100, 110)).float()

    class TwoFaces:
        def __init__(self, pack: str) -> None:
            assert pack == "my_pack"

        def __call__(self, image):
            assert image.shape == (3, 100, 110)
            return [Detection(points, 0.9), Detection(points / 2, 0.8)]

    monkeypatch.setattr("datamodules.photos.FaceDetector", TwoFaces)


@pytest.fixture
def no_detector(monkeypatch):
    def missing(pack: str) -> None:
        raise AssetNotFoundError("the model pack", f"'{pack}'", "Download it.")

    monkeypatch.setattr("datamodules.photos.FaceDetector", missing)


def test_detector_is_asked_when_no_landmarks_are_given(tmp_path, two_faces):
    photo(tmp_path / "two.png")
    (batch,) = batches(path=tmp_path, detector="my_pack")
    assert batch["sample_ids"] == ["two", "two_face2"]


def test_sample_ids_are_unique(tmp_path, two_faces):
    names = ["a.jpg", "A.png", "b.png", "b_face2.jpg", "c_face2.png", "d.webp", "d.webp.png"]
    for name in names:
        photo(tmp_path / name)
    (batch,) = batches(path=tmp_path, detector="my_pack", batch_size=99)
    ids = batch["sample_ids"]
    assert len({name.casefold() for name in ids}) == len(ids) == 14
    assert ids[::2] == ["A.png", "a.jpg", "b", "b_face2.jpg", "c_face2", "d", "d.webp.png"]
    assert "b_face2" in ids


class Names(LightningModule):
    """Notes what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def predict_step(self, batch, _):
        self.names += batch["sample_ids"]
        return batch["images"]


def test_without_detector_the_photos_with_landmarks_are_done_first(tmp_path, no_detector):
    for name in ("a", "b", "c", "d"):
        photo(tmp_path / f"{name}.png")
    for name in ("b", "d"):
        np.savetxt(tmp_path / f"{name}.txt", FIVE)
    method = Names()
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    with pytest.raises(AssetNotFoundError) as caught:
        trainer.predict(method, Photos(tmp_path, image_size=64, batch_size=1))
    assert method.names == ["b", "d"]
    for part in ("2 of 4 files (a.png, c.png)", "<name>.txt", "model pack", "Download it."):
        assert part in str(caught.value)


def test_without_detector_and_any_landmarks_nothing_is_read(tmp_path, no_detector):
    (tmp_path / "a.jpg").touch()
    with pytest.raises(AssetNotFoundError, match=r"1 of 1 files \(a\.jpg\).*<name>\.txt"):
        batches(path=tmp_path)
    (tmp_path / "talk.mp4").touch()
    with pytest.raises(AssetNotFoundError, match=r"\(talk\.mp4\) .*<name>\.npz") as caught:
        batches(path=tmp_path / "talk.mp4")
    assert ".txt" not in str(caught.value)


def test_a_missing_detector_says_which_file_to_place_where(tmp_path, monkeypatch):
    def offline(*_, **__):
        raise ConnectionError("no network")

    monkeypatch.setattr("insightface.app.FaceAnalysis.__init__", offline)
    monkeypatch.setattr("core.detect.ROOT", tmp_path)
    with pytest.raises(AssetNotFoundError) as caught:
        FaceDetector()
    for part in (
        "det_10g.onnx",
        "1k3d68.onnx",
        str(tmp_path / "models/buffalo_l"),
        "non-commercial",
    ):
        assert part in str(caught.value)


@needs_samples
def test_real_photos_and_clip():
    (batch,) = batches(path=SAMPLES / "photos")
    assert len(batch["sample_ids"]) == 4
    clip = batches(path=SAMPLES / "clip/clip.mp4", every=10)
    landmarks = torch.cat([batch["landmarks"] for batch in clip])
    assert len(landmarks) >= 4
    inside = ((landmarks > 0) & (landmarks < 64)).float().mean()
    assert inside > 0.99
