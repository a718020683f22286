import logging
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from jsonargparse import ArgumentParser
from PIL import Image
from torch import Tensor

from core.contracts import FaceBatch
from core.crop import transform_points
from core.errors import AssetNotFoundError, DataError
from datamodules.augment import Augmentation
from datamodules.base import FaceDataModule, Fault, UnusableFrameError
from datamodules.voxceleb import FrameTree, VoxCeleb
from tests.fakes.voxceleb import face_points, save, save_array, smooth_image, write

CLIP = "id10000/video0/00001"


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("voxceleb"), people=5)


@pytest.fixture
def root(shared: Path, tmp_path: Path) -> Path:
    """A copy to be spoilt."""
    return shutil.copytree(shared, tmp_path / "voxceleb")


def data(root: Path, **options: object) -> VoxCeleb:
    settings = {"frames_per_clip": 2, "clips_per_batch": 2, "workers": 0, "image_size": 32}
    module = VoxCeleb(root, **(settings | options))
    module.setup("fit")
    return module


# listing


def test_the_tree_is_listed_by_split(shared: Path) -> None:
    tree = FrameTree.scan(shared)
    names = {split: [clip.name for clip in clips] for split, clips in tree.splits.items()}
    assert names == {
        "train": [f"id1000{i}/video{j}/00001" for i in range(3) for j in range(2)],
        "val": ["id10003/video0/00001", "id10003/video1/00001"],
        "test": ["id10004/video0/00001", "id10004/video1/00001"],
    }
    first = tree.splits["train"][0]
    assert first.identity == "id10000"
    assert first.frames.tolist() == [b"%06d.jpg" % i for i in range(1, 6)]  # 0 has no landmarks
    assert tree.left_out == {"frames without a landmark file": 1}
    pickle.loads(pickle.dumps(tree))  # for workers that are not forked


def test_whole_videos(root: Path) -> None:
    shutil.copytree(root / "frames" / CLIP, root / "frames/id10000/video0/00002")
    shutil.copytree(root / "landmarks" / CLIP, root / "landmarks/id10000/video0/00002")
    tree = FrameTree.scan(root, whole_video=True)
    assert [clip.name for clip in tree.splits["train"]][:2] == ["id10000/video0", "id10000/video1"]
    assert len(tree.splits["train"][0].frames) == 10
    assert tree.read(tree.splits["train"][0], 9).image.shape == (3, 64, 64)
    module = data(root, whole_video=True, frames_per_clip=6)
    ids = [name for batch in module.train_dataloader() for name in batch["sample_ids"]]
    assert {name.split("/")[2] for name in ids if "id10000/video0" in name} == {"00001", "00002"}


@pytest.mark.parametrize("lists", [True, False])
def test_identities_count_those_of_the_training(root: Path, lists: bool) -> None:
    if not lists:
        shutil.rmtree(root / "splits")
    whole, limited = FrameTree.scan(root).splits, FrameTree.scan(root, identities=2).splits
    people = sorted({clip.identity for clip in whole["train"]})
    assert len(people) > 2
    assert {clip.identity for clip in limited["train"]} == set(people[:2])
    for split in ("val", "test"):
        assert [clip.name for clip in limited[split]] == [clip.name for clip in whole[split]]
        assert limited[split]


@pytest.mark.parametrize("people", [3, 5])
def test_without_lists_identities_are_divided_by_hash(root: Path, people: int) -> None:
    shutil.rmtree(root / "splits")
    for person in sorted((root / "frames").glob("id*"))[people:]:
        shutil.rmtree(person)
    trees = [FrameTree.scan(root) for _ in range(2)]
    parts = [{s: {c.identity for c in cs} for s, cs in tree.splits.items()} for tree in trees]
    assert parts[0] == parts[1]
    assert [len(parts[0][split]) for split in ("train", "val", "test")] == [people - 2, 1, 1]
    assert len(set.union(*parts[0].values())) == people


def test_overlapping_lists_are_an_error(root: Path) -> None:
    (root / "splits/val.txt").write_text("id10003 # a comment\n\nid10001\n")
    with pytest.raises(DataError, match=r"'id10001'\].*train.txt and in val.txt"):
        FrameTree.scan(root)


def test_lists_that_name_nobody_are_an_error(root: Path) -> None:
    for split in ("train", "val", "test"):
        (root / f"splits/{split}.txt").write_text("A.J._Buckley\n")
    with pytest.raises(DataError, match=r"none of the identities, e\.g\. 'id10000'"):
        FrameTree.scan(root)


def test_listed_people_without_frames_are_logged(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with (root / "splits/train.txt").open("a") as file:
        file.write("id99999\n")
    with caplog.at_level(logging.WARNING):
        FrameTree.scan(root)
    assert "train.txt': 1 of 4 have no frames" in caplog.text


def test_empty_clips_are_counted(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    (root / "frames/id10000/video0/00009").mkdir()
    with caplog.at_level(logging.WARNING):
        tree = FrameTree.scan(root)
    assert tree.left_out["clips without a usable frame"] == 1
    assert "1 clips without a usable frame left out" in caplog.text


def test_missing_root(tmp_path: Path) -> None:
    with pytest.raises(AssetNotFoundError, match=r"nowhere'.*frames/<identity>/<video>/<clip>"):
        data(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ([], r"found nothing, wanted .*or frames/"),
        (
            ["mp4/id10001/a/00001.mp4", "txt/id10001/a/00001.txt"],
            "has landmarks beside it.*prepare",
        ),
        (["frames/id10001/000001.jpg"], r"found \['frames'\], wanted frames/<identity>/<video>"),
        (["frames/id1/a/1/000001.jpg"], "1 frames without a landmark file"),
    ],
)
def test_other_folders_say_what_was_found(tmp_path: Path, files: list[str], expected: str) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataError, match=expected):
        data(tmp_path)


# reading


def replaced(root: Path, image: Image.Image | None = None, **arrays: Any) -> FrameTree:
    """The tree after a change of the frame that ``read`` reads."""
    if image is not None:
        (root / "frames" / CLIP / "000004.jpg").unlink()
        save(root / "frames" / CLIP / "000004.png", image)
    for folder, array in arrays.items():
        save_array(root / folder / CLIP / "000004.npy", array)
    return FrameTree.scan(root)


def read(tree: FrameTree) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    clip = tree.splits["train"][0]
    frame = tree.read(clip, [name[:6] for name in clip.frames].index(b"000004"))
    return frame.image, frame.landmarks, frame.confidence, frame.mask


def test_what_is_written_is_read(root: Path) -> None:
    rng = np.random.default_rng(5)
    picture, points = smooth_image(rng, 64), face_points(rng, 64)
    image, landmarks, confidence, mask = read(
        replaced(root, Image.fromarray(picture), landmarks=points)
    )
    assert np.array_equal(image.permute(1, 2, 0), picture)
    assert np.array_equal(landmarks, points[:, :2])
    assert np.array_equal(confidence, points[:, 2])
    assert mask is None


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_every_kind_of_image_becomes_rgb(root: Path, mode: str) -> None:
    rng = np.random.default_rng(5)
    picture = Image.fromarray(smooth_image(rng, 64))
    expected = np.array(picture)
    if mode == "I;16":
        grey = np.array(picture.convert("L"))
        made = Image.fromarray(grey.astype(np.uint16) * 257)
        expected = np.repeat(grey[..., None], 3, -1)
    else:
        made = picture.convert(mode)
        expected = np.array(made.convert("RGB"))
    if mode == "CMYK":
        made.save(root / "frames" / CLIP / "000004.jpg", quality=100)
        tree = FrameTree.scan(root)
    else:
        tree = replaced(root, made)
    image = read(tree)[0]
    assert image.dtype == torch.uint8
    assert image.shape == (3, 64, 64)
    difference = np.abs(image.permute(1, 2, 0).numpy().astype(int) - expected)
    assert difference.mean() < (3 if mode == "CMYK" else 1e-9)


def test_two_columns_are_confident_landmarks(root: Path) -> None:
    points = face_points(np.random.default_rng(5), 64)[:, :2].astype(np.float64)
    _, landmarks, confidence, _ = read(replaced(root, landmarks=points))
    assert landmarks.dtype == confidence.dtype == torch.float32
    assert (confidence == 1).all()


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((5, 3), np.float32),
        np.zeros((3, 68), np.float32),
        np.float32(1),
        np.full((68, 3), "x"),
        np.array([{"a": 1}], object),
    ],
)
def test_landmarks_of_another_kind(root: Path, array: np.ndarray) -> None:
    with pytest.raises(UnusableFrameError, match=f"{CLIP}/000004.npy'") as error:
        read(replaced(root, landmarks=array))
    assert error.value.fault == Fault.LANDMARKS


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"text", None])
@pytest.mark.parametrize(
    ("folder", "suffix", "fault"),
    [("frames", "jpg", Fault.IMAGE), ("landmarks", "npy", Fault.LANDMARKS)],
)
def test_damaged_files(
    root: Path, folder: str, suffix: str, fault: Fault, content: bytes | None
) -> None:
    tree = FrameTree.scan(root)
    path = root / folder / CLIP / f"000004.{suffix}"
    path.unlink()  # after the listing
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UnusableFrameError, match=f"{CLIP}/000004.{suffix}'") as error:
        read(tree)
    assert error.value.fault == fault


def test_masks_are_read_and_frames_without_are_left_out(root: Path) -> None:
    rng = np.random.default_rng(5)
    for path in (root / "frames").rglob("*.jpg"):
        mask = root / "masks" / path.relative_to(root / "frames").with_suffix(".png")
        save(mask, Image.fromarray(smooth_image(rng, 64)[..., 0]))
    (root / "masks/id10001/video0/00001/000002.png").unlink()
    Image.new("L", (64, 63)).save(root / "masks/id10002/video0/00001/000003.png")
    mask = read(FrameTree.scan(root))[3]
    assert mask is not None
    assert np.array_equal(mask[0], Image.open(root / "masks" / CLIP / "000004.png"))
    module = data(root, frames_per_clip=5)
    loader = module.train_dataloader()
    ids = {name for _ in range(4) for batch in loader for name in batch["sample_ids"]}
    assert "id10001/video0/00001/000002" not in ids
    assert "id10002/video0/00001/000003" not in ids
    assert module.skipped["train"] == {
        "image cannot be read": 1,
        "landmarks are not finite": 1,
        "mask is missing or cannot be read": 1,
        "mask has another size than the image": 1,
    }


def test_batches_obey_the_contract(shared: Path) -> None:
    module = data(shared, augmentation=Augmentation(0.05, 0.1, 10.0, 0.5))
    loader = module.train_dataloader()
    assert len(loader) == 3
    for delivered in loader:
        batch = module.on_after_batch_transfer(delivered, 0)
        assert batch["images"].shape == (2, 2, 3, 32, 32)
        assert batch["landmarks"].shape == (2, 2, 68, 2)
        assert batch["landmark_confidence"].shape == (2, 2, 68)
        assert batch["masks"].shape == (2, 2, 1, 32, 32)
        assert len(batch["sample_ids"]) == 4
        for name in ("images", "masks", "landmark_confidence"):
            assert batch[name].dtype == torch.float32
            assert batch[name].min() >= 0
            assert 0.3 < batch[name].max() <= 1.0001
        home = transform_points(batch["crop_to_image"], batch["landmarks"])
        assert home.min() > 0
        assert home.max() < 64


def test_the_summary_is_logged_at_the_end(shared: Path, caplog: pytest.LogCaptureFixture) -> None:
    module = data(shared, frames_per_clip=6)
    list(module.train_dataloader())
    with caplog.at_level(logging.WARNING):
        module.teardown("fit")
    assert '"image cannot be read": 1' in caplog.text


# in a training


class Recorder(pl.LightningModule):
    """Trains a number on the batches and keeps their fingerprints."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[list[str], float]] = []

    def training_step(self, batch: FaceBatch, _: int) -> Tensor:
        self.seen.append((batch["sample_ids"], batch["images"].sum().item()))
        return (self.weight - batch["images"].mean()) ** 2

    def validation_step(self, batch: FaceBatch, _: int) -> None:
        assert batch["images"].shape[1] == 2

    def predict_step(self, batch: FaceBatch, _: int) -> list[str]:
        return batch["sample_ids"]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(steps: int, *callbacks: pl.Callback) -> pl.Trainer:
    return pl.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        callbacks=list(callbacks),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
    )


class Save(pl.Callback):
    """Writes a checkpoint after a batch, as a kill there would leave it."""

    def __init__(self, path: Path, step: int) -> None:
        self.path, self.step = path, step

    def on_train_batch_end(self, trainer: pl.Trainer, *_: object) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.parametrize(("workers", "step"), [(0, 1), (0, 2), (0, 3), (0, 5), (2, 2), (2, 6)])
def test_a_resumed_training_sees_what_it_would_have_seen(
    shared: Path, tmp_path: Path, workers: int, step: int
) -> None:
    def module() -> VoxCeleb:
        return data(
            shared, workers=workers, seed=3, augmentation=Augmentation(0.05, 0.1, 10.0, 0.5)
        )

    whole = Recorder()
    trainer(10, Save(tmp_path / "last.ckpt", step)).fit(whole, datamodule=module())
    resumed = Recorder()
    again = trainer(10)
    again.fit(resumed, datamodule=module(), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert len(whole.seen) == 10  # three epochs of three batches, and one
    assert resumed.seen == whole.seen[step:]
    assert torch.equal(resumed.weight, whole.weight)


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.parametrize("workers", [0, 2])
def test_lightning_predicts_each_frame_once(shared: Path, workers: int) -> None:
    batches = trainer(1).predict(Recorder(), datamodule=data(shared, workers=workers))
    ids = [name for batch in batches for name in batch]
    assert ids == [f"id10004/video{v}/00001/{f:06d}" for v in range(2) for f in range(6)]


def test_options_are_the_command_lines() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(FaceDataModule, "data")
    arguments = ["--data=datamodules.voxceleb.VoxCeleb", "--data.root=x", "--data.workers=1"]
    config = parser.parse_args([*arguments, "--data.augmentation.flip=0.5"])
    module = parser.instantiate(config).data
    assert module.workers == 1
    assert module.augmentation == Augmentation(flip=0.5)
    with pytest.raises(Exception, match="clips_per_bach"):
        parser.parse_args([*arguments, "--data.clips_per_bach=3"])


def test_the_fake_is_a_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.fakes.voxceleb", str(tmp_path / "x")]
    subprocess.run(command, check=True, cwd=Path(__file__).parent.parent)
    assert FrameTree.scan(tmp_path / "x").splits["train"]
