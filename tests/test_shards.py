"""Shards: what is written is what is read, whatever the order, the process, or the damage."""

import io
import itertools
import os
import pickle
import tarfile
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.speed import index as large_index
from core.errors import AssetNotFoundError, DataError
from datamodules import shard_files, shards
from datamodules.clips import Fault, UnusableFrameError, frame_counts, identities
from datamodules.shard_files import FRAME, ShardWriter, StoredFrame, write_index
from datamodules.shards import Shards, ShardSource
from tests.fakes.voxceleb import face_points, smooth_image

SIZE = 48
PEOPLE = 4


def encoded(image: np.ndarray, kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind)
    return file.getvalue()


def stored(rng: np.random.Generator, number: int) -> StoredFrame:
    mask = encoded(smooth_image(rng, SIZE)[..., 0], "PNG") if number % 2 else None
    image = encoded(smooth_image(rng, SIZE), "JPEG")
    return StoredFrame(f"{number:06}", image, face_points(rng, SIZE), mask)


def write(root: Path) -> dict[str, list[StoredFrame]]:
    """Two shards: people x 2 clips of 3 to 6 frames, odd frames with a mask; one name is long."""
    rng = np.random.default_rng(0)
    clips = {
        f"id1{person:04}/{'long-' * 30 if person == 1 else ''}video{video}/00001": [
            stored(rng, number) for number in range(3 + person)
        ]
        for person, video in itertools.product(range(PEOPLE), range(2))
    }
    (root / "shards").mkdir(parents=True)
    names, parts = list(clips), []
    for shard in range(2):
        with (root / f"shards/{shard:05}.tar").open("wb") as file:
            writer = ShardWriter(file, shard)
            for name in names[shard::2]:
                assert writer.add(name, name.split("/")[0], iter(clips[name])) == len(clips[name])
            assert writer.add(f"nothing{shard}", "nobody", []) == 0
            parts.append(writer.close())
    (root / "splits").mkdir()
    sizes = [path.stat().st_size for path in sorted((root / "shards").iterdir())]
    write_index(root / "index", parts, sizes)
    lists = {"train": ["id10000", "id10001"], "val": ["id10002"], "test": ["id10003"]}
    for split, people in lists.items():
        (root / f"splits/{split}.txt").write_text("\n".join(people))
    return clips


@pytest.fixture
def root(tmp_path):
    write(tmp_path / "shards")
    return tmp_path / "shards"


def test_what_is_written_is_read(tmp_path):
    clips = write(tmp_path)
    source = ShardSource(tmp_path)
    read = {clip.name: clip for split in ("train", "val", "test") for clip in source.clips(split)}
    assert read.keys() == clips.keys()
    rng = np.random.default_rng(1)
    for name in rng.permutation(list(clips)):
        clip, wanted = read[name], clips[name]
        assert clip.identity == name.split("/")[0]
        assert clip.frames.tolist() == [f"{frame.name}.jpg".encode() for frame in wanted]
        for index in rng.permutation(len(wanted)):
            frame, given = source.read(clip, int(index)), wanted[index]
            pixels = np.asarray(Image.open(io.BytesIO(given.image))).astype(int)
            # two decoders of the same library: the chroma is enlarged by different filters at most
            assert np.abs(frame.image.permute(1, 2, 0).numpy() - pixels).max() <= 2
            np.testing.assert_array_equal(frame.landmarks, given.landmarks[:, :2])
            np.testing.assert_array_equal(frame.confidence, given.landmarks[:, 2])
            if given.mask is None:
                assert frame.mask is None
            else:
                grey = np.asarray(Image.open(io.BytesIO(given.mask)))
                np.testing.assert_array_equal(frame.mask[0], grey)


def test_a_part_of_a_clip_is_read_by_its_names(root):
    """Prediction gives single frames as clips of one."""
    source = ShardSource(root)
    clip = source.clips("test")[0]
    for i in range(len(clip.frames)):
        part = shards.Clip(clip.name, clip.identity, clip.frames[i : i + 1])
        assert torch.equal(source.read(part, 0).image, source.read(clip, i).image)


def test_the_tar_files_are_plain(root):
    """Grouped by the name up to the first dot, as webdataset does: image, landmarks, mask."""
    groups = {}
    with tarfile.open(root / "shards/00000.tar") as tar:
        for entry in tar:
            folder, _, name = entry.name.rpartition("/")
            key, _, suffix = name.partition(".")
            groups.setdefault(f"{folder}/{key}", {})[suffix] = tar.extractfile(entry).read()
    assert len(groups) == 3 + 4 + 5 + 6
    for key, found in groups.items():
        odd = int(key[-6:]) % 2
        assert list(found) == ["jpg", "landmarks.npy"] + ["mask.png"] * odd
        assert np.load(io.BytesIO(found["landmarks.npy"])).shape == (68, 3)


@pytest.mark.parametrize("clip", ["a/b/1", "ü/é/1", "n" * 89, "n" * 90, "n" * 200 + "/1"])
def test_a_shard_is_what_tarfile_writes(tmp_path, clip):
    """Of names of up to 100 bytes and of longer ones."""
    rng = np.random.default_rng(0)
    frames = [stored(rng, 0), stored(rng, 1)]
    frames += [replace(frames[0], name=f"{k:06}", image=bytes(512 * k + 9)) for k in (2, 600)]
    path, again = tmp_path / "0.tar", tmp_path / "1.tar"
    with path.open("wb") as file:
        writer = ShardWriter(file, 0)
        writer.add(clip, "a", frames)
        writer.close()
    with tarfile.open(again, "w", format=tarfile.GNU_FORMAT, encoding="utf-8") as plain:
        for frame in frames:
            numbers = io.BytesIO()
            np.save(numbers, frame.landmarks.astype("<f4"))
            contents = {"jpg": frame.image, "landmarks.npy": numbers.getvalue()}
            for suffix, content in (
                contents | ({"mask.png": frame.mask} if frame.mask else {})
            ).items():
                entry = tarfile.TarInfo(f"{clip}/{frame.name}.{suffix}")
                entry.size = len(content)
                plain.addfile(entry, io.BytesIO(content))
    assert path.read_bytes() == again.read_bytes()


@pytest.mark.parametrize("size", [0, 1, 511, 8**11 - 1, 8**11])
def test_headers_of_files_of_any_size_are_those_of_tarfile(size):
    for name in ("", "a/b.jpg", "ü" * 50, "x" * 101, "\udcff"):
        entry = tarfile.TarInfo(name)
        entry.size = size
        wanted = entry.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")
        assert shard_files._header(name, size) == wanted


def test_the_same_clips_give_the_same_bytes(tmp_path):
    for name in "ab":
        write(tmp_path / name)
        time.sleep(0.01)
    for path in sorted((tmp_path / "a").rglob("*.*")):
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on a single core
@pytest.mark.parametrize("workers", [0, 2])
def test_batches(root, workers):
    module = Shards(
        root, image_size=32, frames_per_clip=2, clips_per_batch=2, workers=workers, identities=1
    )
    module.setup("fit")
    (batch,) = module.train_dataloader()
    assert batch["images"].shape == (2, 2, 3, 32, 32)
    assert {name.split("/")[0] for name in batch["sample_ids"]} == {"id10000"}
    assert len(list(module.val_dataloader())) == 1
    assert module.skipped == {}


def test_it_is_small_to_send(root):
    source = ShardSource(root)
    sent = pickle.dumps(source)
    assert len(sent) < 1000
    copy, clip = pickle.loads(sent), source.clips("train")[0]
    assert torch.equal(copy.read(clip, 1).image, source.read(clip, 1).image)


def test_clips_are_sent_too(root):
    """And a copy that is gone leaves the other its open file."""
    clips = ShardSource(root).clips("train")
    copy = pickle.loads(pickle.dumps(clips))
    names = [clip.frames.tolist() for clip in clips]
    assert [clip.frames.tolist() for clip in copy] == names
    del copy
    assert [clip.frames.tolist() for clip in clips] == names
    copy = pickle.loads(pickle.dumps(clips))
    del clips
    assert [clip.frames.tolist() for clip in copy] == names


def test_few_files_are_open(root, monkeypatch):
    monkeypatch.setattr(shards, "OPEN_FILES", 1)
    source = ShardSource(root)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for clip in [*source.clips("train")] * 3:
        source.read(clip, 0)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1


# damage


def test_damaged_frames_are_unusable(root):
    source = ShardSource(root)
    clip = source.clips("train")[0]
    place = source._place(clip, 1)
    path = root / f"shards/{place['shard']:05}.tar"
    whole = path.read_bytes()
    start = int(place["start"])

    def spoilt(at: int, count: int) -> bytes:
        return whole[: start + at] + bytes(count) + whole[start + at + count :]

    path.write_bytes(spoilt(0, int(place["image"])))
    with pytest.raises(UnusableFrameError, match=r"000001.jpg: cannot be decoded") as caught:
        ShardSource(root).read(clip, 1)
    assert caught.value.fault == Fault.IMAGE
    path.write_bytes(spoilt(int(place["mask"]), int(place["mask_bytes"])))
    with pytest.raises(UnusableFrameError) as caught:
        ShardSource(root).read(clip, 1)
    assert caught.value.fault == Fault.MASK
    assert ShardSource(root).read(clip, 0).image.shape == (3, SIZE, SIZE)
    path.write_bytes(whole)
    opened = ShardSource(root)
    path.write_bytes(whole[: start + 100])  # while it is read
    with pytest.raises(UnusableFrameError, match="ends after") as caught:
        opened.read(clip, 1)
    assert caught.value.fault == Fault.IMAGE


def test_a_damaged_line_of_the_index_is_an_unusable_frame(root):
    table = np.load(root / "index/frames.npy")
    table["landmarks"][table["mask_bytes"] > 0] = 2**30
    np.save(root / "index/frames.npy", table)
    source = ShardSource(root)
    clip = source.clips("train")[0]
    assert source.read(clip, 0).image.shape == (3, SIZE, SIZE)
    with pytest.raises(UnusableFrameError, match=r"000001.jpg: its line of the index") as caught:
        source.read(clip, 1)
    assert caught.value.fault == Fault.IMAGE


@pytest.mark.parametrize(
    ("column", "value"),
    [("start", 2**63), ("shard", 2), ("image", 0), ("image", 2**32 - 1), ("landmarks", 2**32 - 4)],
)
def test_bytes_that_are_not_in_the_shards_are_not_asked_for(root, column, value):
    table = np.load(root / "index/frames.npy")
    table[column] = value
    np.save(root / "index/frames.npy", table)
    source = ShardSource(root)
    clip = source.clips("train")[0]
    tracemalloc.start()
    for read in (source.read, source.read_image, source.landmarks_of):
        with pytest.raises(UnusableFrameError, match=r"000000.jpg: its line of the index"):
            read(clip, 0)
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()


def test_nobody_gets_the_frames_of_somebody_else(root):
    """Where the index was sorted in another way, or a clip is of other shards."""
    source = ShardSource(root)
    clip = source.clips("train")[0]
    for other in (
        shards.Clip("id10000/video0/00000", clip.identity, clip.frames),
        shards.Clip("z", "z", clip.frames),
        shards.Clip(clip.name, clip.identity, np.array([b"000000.png"])),
        shards.Clip(clip.name, clip.identity, np.array([b"z.jpg"])),
    ):
        with pytest.raises(UnusableFrameError, match=f"{other.name}/.* is damaged or gone"):
            source.read(other, 0)
    table = np.load(root / "index/clips.npy")
    np.save(root / "index/clips.npy", table[::-1])
    with pytest.raises(DataError, match=r"clips.npy' is not sorted by name"):
        ShardSource(root)


def test_bytes_after_the_end_of_the_index_do_not_count(root):
    source = ShardSource(root)
    clip = source.clips("train")[0]
    for name in ("frames", "names"):
        with (root / f"index/{name}.npy").open("ab") as file:
            file.write(bytes(8))
    longer = ShardSource(root)
    assert longer.clips("train")[0].frames.tolist() == clip.frames.tolist()
    assert torch.equal(longer.read(clip, 1).image, source.read(clip, 1).image)


@pytest.mark.parametrize("folder", [".", "index"])
def test_folders_that_may_not_be_entered(root, monkeypatch, folder):
    closed = root / folder

    def denied(function):
        def checked(path, *args, **options):
            if closed in (Path(path), *Path(path).parents):
                raise PermissionError(13, "Permission denied", str(path))
            return function(path, *args, **options)

        return checked

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", denied(os.scandir))  # root may open anything
        patch.setattr(Path, "stat", denied(Path.stat))
        with pytest.raises(AssetNotFoundError, match="index: cannot be opened: Permission denied"):
            ShardSource(root)


@pytest.mark.parametrize("what", ["nothing", "empty", "other", "unfinished"])
def test_a_root_that_is_something_else(tmp_path, what):
    root = tmp_path / "set"
    if what != "nothing":
        root.mkdir()
    if what == "other":
        (root / "frames").mkdir()
    if what == "unfinished":
        (root / "shards").mkdir()
    wanted = {
        "nothing": "no such folder",
        "other": r"\['frames'\].*prepare",
        "unfinished": "did not finish",
    }
    with pytest.raises(AssetNotFoundError, match=wanted.get(what, r"\(nothing; index: no such")):
        ShardSource(root)


def test_shards_and_index_have_to_fit(root):
    path = root / "shards/00001.tar"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(DataError, match=f"{len(whole) - 1}, wanted {len(whole)} bytes"):
        ShardSource(root)
    path.unlink()
    with pytest.raises(DataError, match=r"00001.tar': No such file"):
        ShardSource(root)
    header = b"\x93NUMPY\x01\x00v\x00{'descr': '<f8', (".ljust(128)
    for content in (b"something", b"", header):
        (root / "index/frames.npy").write_bytes(content)
        with pytest.raises(DataError, match="not part of an index"):
            ShardSource(root)
    np.save(root / "index/frames.npy", np.zeros(3))
    with pytest.raises(DataError, match="float64"):
        ShardSource(root)


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("frames", np.zeros(3, FRAME), "3 frames and 36 names for the clips' 36"),
        ("names", np.array([b"000000.jpg"]), "36 frames and 1 names"),
        ("names", np.array([], "S10"), "wanted a row of lines"),
        ("clips", np.zeros(3), "wanted a row of .*'identity'"),
        ("clips", np.zeros((3, 2)), "wanted a row"),
    ],
)
def test_an_index_of_parts_of_others_is_refused(root, name, array, message):
    np.save(root / f"index/{name}.npy", array)
    with pytest.raises(DataError, match=message):
        ShardSource(root)


def test_an_index_needs_clips_of_different_names(tmp_path):
    frame = stored(np.random.default_rng(0), 0)
    parts = []
    for shard in range(3):
        with (tmp_path / f"{shard}.tar").open("wb") as file:
            writer = ShardWriter(file, shard)
            writer.add("a/b/c", "a", [frame] * (shard < 2))
            parts.append(writer.close())
    with pytest.raises(DataError, match="two clips are called 'a/b/c'"):
        write_index(tmp_path / "index", parts, [1, 1, 1])
    with pytest.raises(DataError, match="no frame was good enough"):
        write_index(tmp_path / "index", parts[2:], [1])


# scale


def mapped_bytes(folder: Path) -> int:
    """Of the files in a folder, in this process's memory."""
    inside, found = False, 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        key, *values = line.split()
        if not key.endswith(":"):
            inside = str(folder) in line
        elif inside and key == "Rss:":
            found += 1024 * int(values[0])
    return found


def test_a_large_index_opens_at_once_in_little_memory(tmp_path, root):
    """A tenth of VoxCeleb: 600,000 frames in 15,000 clips."""
    first_batch(root)  # compiles
    big, frames = tmp_path / "big", 600_000
    large_index.simulate(big, frames, 15_000, 200)
    tracemalloc.start()
    start = time.process_time()
    module = first_batch(big)
    seconds = time.process_time() - start
    made = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(module.readers("train")[0]) > 10_000
    assert seconds < 3  # while memory is traced
    assert made < 6 * frames
    assert mapped_bytes(big) < 2 * frames


def first_batch(root: Path) -> Shards:
    module = Shards(root, image_size=32, workers=0, clips_per_batch=4)
    module.setup("fit")
    batch = next(iter(module.train_dataloader()))
    assert batch["images"].shape == (4, 4, 3, 32, 32)
    return module


@pytest.mark.slow
def test_the_first_batch_is_measured(tmp_path):
    """In a process of its own: modules, index and batch."""
    found = large_index.run(tmp_path / "set", frames=4000, clips=500, shards=3)
    assert 0 < found.core_s < 60
    assert 0.2 < found.modules_gb <= found.opened_gb <= found.peak_gb < 2
    assert 0.1 < found.private_gb < found.peak_gb


def test_clips_of_a_table_are_made_when_asked_for(root):
    """And are the same as those of a list of all of them."""
    clips = ShardSource(root).clips("train")
    everything = list(clips)
    assert [clip.name for clip in everything] == sorted(clip.name for clip in everything)
    assert len(clips) == len(everything) == 4
    assert [clip.name for clip in clips[1:3]] == [clip.name for clip in everything[1:3]]
    assert clips[-1].name == everything[-1].name
    np.testing.assert_array_equal(frame_counts(clips), frame_counts(everything))
    assert identities(clips) == identities(everything) == {"id10000", "id10001"}


def test_people_need_not_be_neighbours(tmp_path):
    """The table is sorted by clips' names, from which the identities may be independent."""
    part = None
    (tmp_path / "shards").mkdir()
    with (tmp_path / "shards/00000.tar").open("wb") as file:
        writer = ShardWriter(file, 0)
        for name, person in (("a", "x"), ("b", "y"), ("c", "x"), ("d", "z"), ("e", "y")):
            writer.add(name, person, [stored(np.random.default_rng(0), 0)])
        part = writer.close()
    write_index(tmp_path / "index", [part], [(tmp_path / "shards/00000.tar").stat().st_size])
    (tmp_path / "splits").mkdir()
    for split, person in (("train", "x"), ("val", "y"), ("test", "z")):
        (tmp_path / f"splits/{split}.txt").write_text(person)
    source = ShardSource(tmp_path)
    names = {split: [c.name for c in source.clips(split)] for split in ("train", "val", "test")}
    assert names == {"train": ["a", "c"], "val": ["b", "e"], "test": ["d"]}
