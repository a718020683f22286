import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from core.crop import five_point_crop
from core.errors import AssetNotFoundError, DataError
from datamodules.celeba import CelebA, Celebrities
from datamodules.clips import Fault, UnusableFrameError
from tests.fakes import celeba
from tests.fakes.voxceleb import face_points, save_array

LIST = "list_landmarks_align_celeba.txt"
OPTIONS = {"image_size": 32, "clips_per_batch": 1, "workers": 0}


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return celeba.write(tmp_path_factory.mktemp("celeba"))


@pytest.fixture
def root(shared, tmp_path):
    return shutil.copytree(shared, tmp_path / "celeba")


def change(path, old, new):
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))


def names(source):
    return {split: [clip.name for clip in clips] for split, clips in source.splits.items()}


def test_the_partition_is_the_splits(shared):
    source = Celebrities.scan(shared)
    assert names(source) == {
        "train": ["000001", "000002", "000003", "000004", "000006"],
        "val": ["000007", "000008"],
        "test": ["000009", "000010"],
    }
    assert [clip.identity for clip in source.splits["train"]] == ["7", "9", "4", "4", "9"]
    assert source.left_out == {"listed images that are not there": 1}
    pickle.loads(pickle.dumps(source))


def test_people_as_clips(shared):
    source = Celebrities.scan(shared, clips="identity")
    found = {clip.name: clip.frames.tolist() for clip in source.splits["train"]}
    assert found == {
        "7": [b"000001.jpg"],
        "9": [b"000002.jpg", b"000006.jpg"],
        "4": [b"000003.jpg", b"000004.jpg"],
    }


def test_without_identities_each_image_is_a_person(root):
    (root / "identity_CelebA.txt").unlink()
    assert Celebrities.scan(root).splits["val"][0].identity == "000007"


def test_the_releases_own_folders(shared, root):
    for folder, found in (("Anno", "list_landmarks*"), ("Anno", "identity*"), ("Eval", "*eval*")):
        (root / folder).mkdir(exist_ok=True)
        for path in root.glob(found):
            path.rename(root / folder / path.name)
    (root / "Img").mkdir()
    (root / "img_align_celeba").rename(root / "Img/img_align_celeba")
    source = Celebrities.scan(root)
    assert names(source) == names(Celebrities.scan(shared))
    assert source.read(source.splits["val"][0], 0).image.shape == (3, 64, 64)


def test_in_the_wild_has_its_own_list(root):
    (root / "img_align_celeba").rename(root / "img_celeba")
    (root / LIST).rename(root / "list_landmarks_celeba.txt")
    source = Celebrities.scan(root, aligned=False)
    assert source.read(source.splits["val"][0], 0).five_points is not None
    with pytest.raises(DataError, match=r"found.*'img_celeba'.*wanted img_align_celeba"):
        Celebrities.scan(root)


def test_five_points_are_those_of_the_line(shared):
    source = Celebrities.scan(shared)
    lines = {
        line.split()[0]: line.split()[1:] for line in (shared / LIST).read_text().split("\n")[2:-1]
    }
    for clip in source.splits["test"]:
        frame = source.read(clip, 0)
        expected = np.array(lines[f"{clip.name}.jpg"], float).reshape(5, 2)
        assert np.array_equal(frame.five_points, expected)
        assert not frame.confidence.any()
        assert expected[0, 0] < expected[1, 0]  # image-left eye first


def test_the_order_of_the_list_does_not_matter(shared, root):
    head, columns, *lines = (root / LIST).read_text().splitlines()
    (root / LIST).write_text("\n".join([head, columns, *lines[::-1]]))
    one, other = Celebrities.scan(shared), Celebrities.scan(root)
    for split in ("train", "test"):
        for a, b in zip(one.splits[split], other.splits[split], strict=True):
            if a.name != "000002":
                assert torch.equal(one.read(a, 0).five_points, other.read(b, 0).five_points)


def test_batches_of_five_points_are_cropped_by_them(shared):
    module = CelebA(shared, frames_per_clip=1, **OPTIONS)
    module.setup("test")
    source = module.source()
    for batch, clip in zip(module.test_dataloader(), source.splits["test"], strict=True):
        matrix = five_point_crop(source.read(clip, 0).five_points, 32)
        assert torch.allclose(batch["crop_to_image"][0, 0], torch.linalg.inv(matrix))
        assert not batch["landmark_confidence"].any()
        assert batch["landmarks"].isfinite().all()
        back = torch.linalg.inv(matrix)
        centres = (torch.arange(32) + 0.5) * back[0, 0] + back[:2, 2, None]
        inside = ((centres > 1) & (centres < 63)).float()
        shown = inside[1][:, None] * inside[0]
        assert (batch["masks"][0, 0, 0][shown > 0] == 255).all()  # the whole image


def test_68_points_where_there_are_any(shared, tmp_path):
    points = face_points(np.random.default_rng(0), 64)
    save_array(tmp_path / "000007.npy", points)
    source = Celebrities.scan(shared, landmarks=tmp_path)
    first, second = (source.read(clip, 0) for clip in source.splits["val"])
    assert np.array_equal(first.landmarks, points[:, :2])
    assert first.five_points is None
    assert second.five_points is not None


def test_images_in_no_list_are_counted(root):
    for name in ("000011", "000012"):
        shutil.copy(root / "img_align_celeba/000001.jpg", root / f"img_align_celeba/{name}.jpg")
    with (root / "list_eval_partition.txt").open("a") as file:
        file.write("000012.jpg 0\n")
    source = Celebrities.scan(root)
    assert source.left_out["images of no split"] == 1
    assert source.left_out["images without landmarks"] == 1


@pytest.mark.parametrize(
    ("name", "old", "new", "reason"),
    [
        (LIST, "10\n", "11\n", "announces 11 images but has 10"),
        (LIST, "10\n", "", "begins with.*wanted the number of images"),
        (LIST, "lefteye_x ", "", "the names of 10 columns"),
        (LIST, "\n000003.jpg", "\n000003.jpg 1", "a name and 10 numbers"),
        ("list_eval_partition.txt", "000003.jpg 0", "000003.jpg", "the line '000003.jpg'"),
    ],
)
def test_bad_lists_say_what_is_wrong(root, name, old, new, reason):
    change(root / name, old, new)
    with pytest.raises(DataError, match=reason) as caught:
        Celebrities.scan(root)
    assert str(root / name) in str(caught.value)


def test_landmarks_have_to_be_numbers(root):
    line = next(t for t in (root / LIST).read_text().splitlines() if t.startswith("000003"))
    change(root / LIST, line, "000003.jpg " + "one " * 10)
    with pytest.raises(DataError, match=f"{LIST}' holds something else than numbers"):
        Celebrities.scan(root)


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00\x01"])
@pytest.mark.parametrize("name", [LIST, "list_eval_partition.txt"])
def test_lists_that_cannot_be_read(root, name, content):
    (root / name).unlink()
    if content:
        (root / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{name}' cannot be read.*Anno"):
        Celebrities.scan(root)


def test_a_person_in_two_splits_is_an_error(root):
    change(root / "identity_CelebA.txt", "000007.jpg 1", "000007.jpg 4")
    with pytest.raises(DataError, match="4"):
        CelebA(root, **OPTIONS).setup("fit")


def test_an_epoch_counts_what_it_leaves_out(root):
    line = next(t for t in (root / LIST).read_text().splitlines() if t.startswith("000003"))
    change(root / LIST, line, "000003.jpg " + "nan " * 10)
    line = next(t for t in (root / LIST).read_text().splitlines() if t.startswith("000004"))
    change(root / LIST, line, "000004.jpg " + "900 " * 10)
    (root / "img_align_celeba/000006.jpg").write_bytes(b"")
    module = CelebA(root, **OPTIONS)
    module.setup("fit")
    list(module.train_dataloader())
    assert module.skipped["train"] == {
        "image cannot be read": 2,
        "landmarks are not finite": 1,
        "landmarks are outside the image": 1,
    }


def test_bad_68_points_are_a_fault(shared, tmp_path):
    (tmp_path / "000007.npy").write_bytes(b"text")
    source = Celebrities.scan(shared, landmarks=tmp_path)
    with pytest.raises(UnusableFrameError, match=r"000007.npy") as caught:
        source.read(source.splits["val"][0], 0)
    assert caught.value.fault == Fault.LANDMARKS


@pytest.mark.parametrize("error", [PermissionError(13, "no"), OSError(116, "Stale file handle")])
def test_68_points_that_cannot_be_reached_do_not_become_five(shared, tmp_path, monkeypatch, error):
    save_array(tmp_path / "000007.npy", face_points(np.random.default_rng(0), 64))
    source = Celebrities.scan(shared, landmarks=tmp_path)
    stat = Path.stat

    def failing(path, **options):
        if path.parent == tmp_path:
            raise error
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", failing)  # root may open anything
    with pytest.raises(UnusableFrameError, match=error.strerror) as caught:
        source.read(source.splits["val"][0], 0)
    assert caught.value.fault == Fault.LANDMARKS


def test_other_folders_say_what_was_found(tmp_path):
    with pytest.raises(AssetNotFoundError, match=r"nowhere'.*img_align_celeba/000001.jpg"):
        CelebA(tmp_path / "nowhere").source()
    (tmp_path / "mp4").mkdir()
    with pytest.raises(DataError, match=r"found \['mp4'\], wanted img_align_celeba"):
        CelebA(tmp_path).source()
