"""What the readers of datasets share, on folders as they should not be."""

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from core.errors import AssetNotFoundError, DataError
from datamodules.clips import Clip, Fault, UnusableFrameError
from datamodules.listing import (
    clips_by_split,
    contents,
    divide,
    entries,
    face_frame,
    faulty,
    first_file,
    image_clips,
    listed_or_divided,
    report,
    require_folder,
    walk,
    with_suffix,
)


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def test_entries_are_sorted_and_hidden_names_are_not_there(tmp_path):
    touch(tmp_path, "b.jpg", "a.txt", ".a.jpg", "z/1", "c/1", ".git/1")
    left_out = Counter()
    assert entries(tmp_path, left_out) == (["c", "z"], ["a.txt", "b.jpg"])
    assert entries(tmp_path / "nowhere", left_out) == ([], [])
    assert entries(tmp_path / "b.jpg", left_out) == ([], [])
    assert not left_out


def test_walking_meets_every_folder_once_in_order(tmp_path):
    touch(tmp_path, "b/2.jpg", "b/1.jpg", "a/c/3.jpg", "0.jpg")
    left_out = Counter()
    assert list(walk(tmp_path, left_out)) == [
        ("", ["0.jpg"]),
        ("a", []),
        ("a/c", ["3.jpg"]),
        ("b", ["1.jpg", "2.jpg"]),
    ]
    assert not left_out


def test_links_in_circles_are_left(tmp_path):
    touch(tmp_path, "a/1.jpg")
    (tmp_path / "a/up").symlink_to(tmp_path)
    (tmp_path / "b").symlink_to(tmp_path / "a")
    (tmp_path / "self").symlink_to(tmp_path / "self")
    left_out = Counter()
    assert [folder for folder, _ in walk(tmp_path, left_out)] == ["", "a"]
    assert left_out == {"folders that are linked to again": 2}


def test_names_that_are_not_utf8_are_counted(tmp_path):
    touch(tmp_path, "good.jpg")
    (Path(os.fsdecode(os.fsencode(tmp_path) + b"/b\xe4d.jpg"))).write_bytes(b"")
    left_out = Counter()
    assert entries(tmp_path, left_out) == ([], ["good.jpg"])
    assert left_out == {"names that are not UTF-8": 1}
    with pytest.raises(DataError, match=r"found \['b\?d.jpg', 'good.jpg'\]"):
        report(tmp_path, 0, "<name>.png", left_out)


def test_folders_that_cannot_be_opened_are_counted(tmp_path, monkeypatch):
    touch(tmp_path, "a/1.jpg", "b/2.jpg")
    scandir = os.scandir

    def closed(path):
        if Path(path).name == "a":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)  # root may open anything
    left_out = Counter()
    assert dict(walk(tmp_path, left_out))["b"] == ["2.jpg"]
    assert left_out == {"folders that cannot be opened": 1}


def test_suffixes_in_any_case():
    assert with_suffix(["a.JPG", "b.png", "jpg", "c.jpg.txt"], (".jpg", ".png")) == [
        "a.JPG",
        "b.png",
    ]


@pytest.mark.parametrize(("count", "share"), [(0, 0), (2, 0), (3, 1), (14, 1), (100, 10)])
def test_people_are_divided_whatever_their_order(count, share):
    people = [f"p{k}" for k in range(count)]
    parts = divide(people, seed=4)
    assert {split: len(names) for split, names in parts.items()} == {
        "train": count - 2 * share,
        "val": share,
        "test": share,
    }
    assert sorted(name for names in parts.values() for name in names) == sorted(people)
    assert divide(people[::-1], seed=4) == parts


def test_another_seed_is_another_division():
    people = [f"p{k}" for k in range(100)]
    assert len(set(divide(people, 0)["test"]) & set(divide(people, 1)["test"])) < 5


def test_lists_decide_where_there_are_any(tmp_path):
    assert listed_or_divided(tmp_path, ["a", "b", "c"]) == divide(["a", "b", "c"])
    (tmp_path / "train.txt").write_text("b # best\n\na\n")
    assert listed_or_divided(tmp_path, ["a", "b", "c"]) == {
        "train": ["a", "b"],
        "val": [],
        "test": [],
    }
    (tmp_path / "test.txt").write_text("a\n")
    with pytest.raises(DataError, match=r"\['a'\] are in train.txt and in test.txt"):
        listed_or_divided(tmp_path, ["a", "b", "c"])
    with pytest.raises(DataError, match=r"names none of the identities, e\.g\. 'x'"):
        listed_or_divided(tmp_path, ["x"])


def test_lists_that_cannot_be_read_say_so(tmp_path):
    """A mark at the beginning, as some editors write it, is no part of a name."""
    (tmp_path / "train.txt").write_bytes("\ufeffa\r\nb\r\n".encode())
    assert listed_or_divided(tmp_path, ["a", "b"])["train"] == ["a", "b"]
    (tmp_path / "val.txt").write_bytes("é".encode("latin1"))
    with pytest.raises(DataError, match=r"val.txt' is not a list of names in UTF-8"):
        listed_or_divided(tmp_path, ["a", "b"])
    (tmp_path / "val.txt").unlink()
    (tmp_path / "val.txt").mkdir()
    with pytest.raises(DataError, match=r"val.txt' is not a list of names.*directory"):
        listed_or_divided(tmp_path, ["a", "b"])


def test_what_was_found_is_said_of_anything(tmp_path, monkeypatch):
    touch(tmp_path, "folder/b", "folder/a", "file")
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "empty").mkdir()
    (tmp_path / "folder" / os.fsdecode(b"\xff")).touch()
    assert contents(tmp_path / "folder") == "['?', 'a', 'b']"
    assert contents(tmp_path / "empty") == "nothing"
    for name, reason in (
        ("file", "a file"),
        ("nowhere", "no such folder"),
        ("circle", "Too many levels of symbolic links"),
    ):
        assert contents(tmp_path / name).endswith(reason)
        with pytest.raises(AssetNotFoundError, match=rf"{name}' \(.*{reason}\).*wanted"):
            require_folder("set", tmp_path / name, "wanted")

    def denied(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", denied)  # root may open anything
    assert contents(tmp_path / "folder") == "cannot be opened: Permission denied"


def test_the_first_file_is_found_beside_folders_that_may_not_be_entered(tmp_path, monkeypatch):
    touch(tmp_path, "a/1", "b/1", "c/1")
    stat = Path.stat

    def in_open_folders(path, **options):
        if path.parent.name == "a":
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", in_open_folders)  # root may open anything
    assert first_file(tmp_path / name / "1" for name in "axbc") == tmp_path / "b/1"
    assert first_file(tmp_path / name / "1" for name in "xy") is None
    assert first_file([tmp_path / "b/1/1", tmp_path / "b"]) is None
    with pytest.raises(UnusableFrameError, match=r"Permission denied: '.*a/1'") as caught:
        first_file(tmp_path / name / "1" for name in "ax")
    assert caught.value.fault == Fault.LANDMARKS


def test_clips_follow_their_people():
    clips = [Clip(str(k), person, np.array([b"1"])) for k, person in enumerate("abac")]
    found = clips_by_split(clips, {"train": ["a"], "val": ["b"], "test": []})
    assert {s: [c.name for c in some] for s, some in found.items()} == {
        "train": ["0", "2"],
        "val": ["1"],
        "test": [],
    }


def test_images_are_clips_or_frames_of_a_persons_clip():
    images = [("ann", "x/1.jpg"), ("bob", "x/2.jpg"), ("ann", "x/3.jpg")]
    single = image_clips(images, by_person=False)
    assert [(c.name, c.identity, c.frames.tolist()) for c in single] == [
        ("x/1", "ann", [b"1.jpg"]),
        ("x/2", "bob", [b"2.jpg"]),
        ("x/3", "ann", [b"3.jpg"]),
    ]
    people = image_clips(images, by_person=True)
    assert [(c.name, c.frames.tolist()) for c in people] == [
        ("ann", [b"1.jpg", b"3.jpg"]),
        ("bob", [b"2.jpg"]),
    ]


def test_five_points_leave_the_68_missing():
    image = torch.zeros(3, 9, 9, dtype=torch.uint8)
    points = torch.rand(5, 2)
    frame = face_frame(image, points, torch.ones(5))
    assert torch.equal(frame.five_points, points)
    assert not frame.confidence.any()
    with pytest.raises(UnusableFrameError, match="one of the five"):
        face_frame(image, points, torch.tensor([1.0, 1, 0, 1, 1]))


@pytest.mark.parametrize("error", [DataError("broken"), FileNotFoundError("gone")])
def test_bad_files_are_faults_and_bugs_are_not(error):
    with pytest.raises(UnusableFrameError, match=str(error)) as caught, faulty(Fault.MASK):
        raise error
    assert caught.value.fault == Fault.MASK
    with pytest.raises(ZeroDivisionError), faulty(Fault.MASK):
        1 / 0  # noqa: B018
