import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from PIL import Image

from core.errors import AssetNotFoundError, DataError
from datamodules.base import FaceDataModule
from datamodules.clips import Fault, UnusableFrameError
from datamodules.image_folder import ImageFolder, Photographs
from tests.fakes import image_folder
from tests.fakes.image_folder import save_text, t7
from tests.fakes.voxceleb import face_points, save, save_array
from tests.fakes.vw300 import write_pts

SAMPLES = Path(__file__).resolve().parents[2] / "shared" / "samples"
OPTIONS = {"image_size": 32, "clips_per_batch": 1, "workers": 0}


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return image_folder.write(tmp_path_factory.mktemp("photos") / "LFW")


@pytest.fixture
def root(shared, tmp_path):
    return shutil.copytree(shared, tmp_path / "LFW")


def clips(source):
    return {clip.name: clip for some in source.splits.values() for clip in some}


def test_each_image_is_a_clip_or_each_folder(shared):
    single = clips(Photographs.scan([shared]))
    assert len(single) == 14
    clip = single["Person_1/Person_1_0002"]
    assert clip.identity == "Person_1/Person_1_0002"
    assert clip.frames.tolist() == [b"Person_1_0002.jpg"]
    source = Photographs.scan([shared], folders_are_people=True)
    people = clips(source)
    assert sorted(people) == [f"Person_{k}" for k in range(5)]
    assert people["Person_0"].frames.tolist() == [b"Person_0_0000.jpg", b"Person_0_0001.jpg"]
    assert [len(some) for some in source.splits.values()] == [3, 1, 1]
    assert source.left_out == {"images without landmarks": 1}
    pickle.loads(pickle.dumps(source))


@pytest.mark.parametrize("people", [True, False])
def test_what_is_written_is_read(shared, people):
    source = Photographs.scan([shared], people)
    for clip in clips(source).values():
        for index, name in enumerate(clip.frames):
            stem = name.decode()[:-4]
            if stem == "Person_0_0000":
                continue
            folder = shared / stem[:8]
            frame = source.read(clip, index)
            assert np.array_equal(frame.image.permute(1, 2, 0), Image.open(folder / f"{stem}.jpg"))
            if stem.endswith("1"):
                points = np.loadtxt(folder / f"landmarks/{stem}.txt")
                np.testing.assert_allclose(frame.landmarks, points, rtol=1e-6)
                assert frame.five_points is None
            else:
                points = np.loadtxt(folder / f"detections/{stem}.txt")
                np.testing.assert_allclose(frame.five_points, points, rtol=1e-6)
            assert (frame.mask is not None) == (stem[:8] == "Person_4")
            if frame.mask is not None:
                assert np.array_equal(frame.mask[0], Image.open(folder / f"mask/{stem}.png"))


def test_several_roots(shared, root):
    other = root.rename(root.with_name("IJB-A"))
    source = Photographs.scan([shared, other], folders_are_people=True)
    assert sorted(clips(source)) == sorted(
        f"{r}/Person_{k}" for r in ("LFW", "IJB-A") for k in range(5)
    )
    frame = source.read(clips(source)["IJB-A/Person_1"], 0)
    expected = Image.open(other / "Person_1/Person_1_0000.jpg")
    assert np.array_equal(frame.image.permute(1, 2, 0), expected)
    single = Photographs.scan([shared, other])
    assert single.read(clips(single)["LFW/Person_1/Person_1_0002"], 0).five_points is not None
    with pytest.raises(DataError, match="wanted folders of other names"):
        Photographs.scan([shared, shared])
    with pytest.raises(AssetNotFoundError, match="nowhere"):
        Photographs.scan([shared, shared / "nowhere"])


def test_flat_folders_of_menpos_pairs(tmp_path):
    points = face_points(np.random.default_rng(0), 64)[:, :2]
    for name in ("a", "b", "c"):
        save(tmp_path / f"{name}.png", Image.new("RGB", (64, 64)))
    write_pts(tmp_path / "a.pts", points + 0.5)
    write_pts(tmp_path / "b.pts", points[:39])  # a profile
    source = Photographs.scan([tmp_path])
    assert sorted(clips(source)) == ["a", "b"]
    np.testing.assert_allclose(source.read(clips(source)["a"], 0).landmarks, points, atol=1e-3)
    with pytest.raises(UnusableFrameError, match=r"\(39, 2\)") as caught:
        source.read(clips(source)["b"], 0)
    assert caught.value.fault == Fault.LANDMARKS
    with pytest.raises(DataError, match="wanted a folder for each person"):
        Photographs.scan([tmp_path], folders_are_people=True)


def test_flat_folders_of_ls3d_w(tmp_path):
    points = face_points(np.random.default_rng(0), 64)[:, :2]
    save(tmp_path / "Menpo-3D/1.jpg", Image.new("RGB", (64, 64)))
    (tmp_path / "Menpo-3D/1.t7").write_bytes(t7(points + 0.5))
    source = Photographs.scan([tmp_path])
    frame = source.read(clips(source)["Menpo-3D/1"], 0)
    np.testing.assert_allclose(frame.landmarks, points, atol=1e-4)


def test_68_points_come_before_five(root):
    points = face_points(np.random.default_rng(0), 64)
    save_array(root / "Person_1/Person_1_0000.npy", points)
    source = Photographs.scan([root])
    frame = source.read(clips(source)["Person_1/Person_1_0000"], 0)
    assert np.array_equal(frame.confidence, points[:, 2])


def test_images_without_a_mask_where_there_are_masks(root):
    (root / "Person_4/mask/Person_4_0002.png").unlink()
    source = Photographs.scan([root])
    assert source.left_out["images without a mask"] == 1
    assert "Person_4/Person_4_0002" not in clips(source)


def test_of_two_images_of_one_name_one_is_taken(root):
    save(root / "Person_1/Person_1_0000.png", Image.new("RGB", (64, 64)))
    source = Photographs.scan([root])
    assert source.left_out["images of the same name"] == 1
    assert clips(source)["Person_1/Person_1_0000"].frames.tolist() == [b"Person_1_0000.jpg"]


def test_lists_name_identities(root):
    (root / "splits").mkdir()
    (root / "splits/train.txt").write_text("Person_1\nPerson_2\n")
    (root / "splits/test.txt").write_text("Person_3\n")
    splits = Photographs.scan([root], folders_are_people=True).splits
    assert {split: [clip.name for clip in some] for split, some in splits.items()} == {
        "train": ["Person_1", "Person_2"],
        "val": [],
        "test": ["Person_3"],
    }


def test_links_in_circles_and_foreign_names_do_not_stop_it(root):
    (root / "Person_1/back").symlink_to(root)
    (root / "round").symlink_to(root / "round")
    Path(os.fsdecode(os.fsencode(root) + b"/Person_1/\xff.jpg")).write_bytes(b"")
    source = Photographs.scan([root])
    assert len(clips(source)) == 14
    assert source.left_out["names that are not UTF-8"] == 1
    assert source.left_out["folders that are linked to again"] == 1


def test_an_epoch_counts_what_it_leaves_out(root):
    folder = root / "Person_1"
    save_text(folder / "detections/Person_1_0000.txt", np.full((5, 2), np.nan))
    save_text(folder / "landmarks/Person_1_0001.txt", np.full((68, 2), 900.0))
    save_text(folder / "detections/Person_1_0002.txt", np.full((7, 2), 30.0))
    save_text(root / "Person_2/detections/Person_2_0000.txt", np.full((5, 2), 30.0))
    (root / "Person_2/Person_2_0001.jpg").write_bytes(b"")
    (root / "splits").mkdir()
    (root / "splits/train.txt").write_text("Person_0\nPerson_1\nPerson_2\n")
    module = ImageFolder(root, folders_are_people=True, frames_per_clip=3, **OPTIONS)
    module.setup("fit")
    list(module.train_dataloader())
    assert module.skipped["train"] == {
        "image cannot be read": 2,
        "landmarks cannot be read": 1,
        "landmarks are not finite": 1,
        "landmarks are outside the image": 1,
        "too few landmarks, or all in one place": 1,
    }


def test_a_damaged_mask_is_a_fault(root):
    source = Photographs.scan([root])
    (root / "Person_4/mask/Person_4_0000.png").write_bytes(b"")
    with pytest.raises(UnusableFrameError) as caught:
        source.read(clips(source)["Person_4/Person_4_0000"], 0)
    assert caught.value.fault == Fault.MASK


def test_other_folders_say_what_was_found(tmp_path):
    with pytest.raises(AssetNotFoundError, match=r"nowhere'.*landmarks/<name>.txt"):
        ImageFolder(tmp_path / "nowhere").source()
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(AssetNotFoundError, match=r"circle' \(cannot be opened: Too many levels"):
        ImageFolder(tmp_path / "circle").source()
    (tmp_path / "circle").unlink()
    save(tmp_path / "images/a.jpg", Image.new("RGB", (9, 9)))
    with pytest.raises(DataError, match=r"found \['images'\], wanted.*1 images without landmarks"):
        ImageFolder(tmp_path).source()


def test_one_root_or_several_on_the_command_line():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(FaceDataModule, "data")
    for given in ("a", "[a, b]"):
        argv = ["--data=datamodules.image_folder.ImageFolder", f"--data.root={given}"]
        roots = parser.instantiate(parser.parse_args(argv)).data.roots
        assert roots == [Path(name) for name in given.strip("[]").split(", ")]


@pytest.mark.skipif(not SAMPLES.is_dir(), reason="the real samples are not here")
def test_real_photographs_are_cropped_by_their_five_points(tmp_path):
    (tmp_path / "detections").mkdir()
    for path in (SAMPLES / "photos").iterdir():
        folder = "detections" if path.suffix == ".txt" else ""
        (tmp_path / folder / path.name).symlink_to(path)
    (tmp_path / "splits").mkdir()
    names = sorted(path.stem for path in tmp_path.glob("*.jpg"))
    (tmp_path / "splits/test.txt").write_text("\n".join(names))
    module = ImageFolder(tmp_path, frames_per_clip=1, image_size=64, clips_per_batch=1, workers=0)
    module.setup("test")
    batches = list(module.test_dataloader())
    assert [batch["sample_ids"][0].split("/")[0] for batch in batches] == names
    for batch, name in zip(batches, names, strict=True):
        points = torch.from_numpy(np.loadtxt(tmp_path / f"detections/{name}.txt")).float()
        matrix = torch.linalg.inv(batch["crop_to_image"][0, 0])
        seen = points @ matrix[:2, :2].T + matrix[:2, 2]
        assert seen.min() > 12  # all features well inside the crop, the eyes above the mouth
        assert seen.max() < 52
        assert seen[:2, 1].max() < seen[3:, 1].min()
