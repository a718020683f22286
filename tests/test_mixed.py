"""Several datasets in one training: proportions, flags, ids; and what several processes see."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser

from core.errors import DataError
from datamodules.augment import Augmentation
from datamodules.base import FaceDataModule, Frame
from datamodules.choice import Views
from datamodules.mixed import Mixed
from tests.fakes import voxceleb
from tests.fakes.dataset import Faces, Source

AUGMENTATION = Augmentation(0.05, 0.1, 10.0, 0.5, 0.2, 0.2, 0.2, 0.1, 0.3)
YAW = np.array([-30, -15, 0, 15, 30, 45.0])


def with_depth(_: str, __: int, made: Frame) -> Frame:
    return replace(made, landmarks_3d=torch.cat([made.landmarks, made.landmarks[:, :1]], -1))


def mixed(rank: int = 0, world_size: int = 1, **options: object) -> Mixed:
    """9 clips of views with 3D landmarks, 4 of single frames."""

    class Placed(Mixed):
        def _place(self) -> tuple[int, int]:
            return rank, world_size

    parts = {
        "views": Faces(
            Source(9, with_depth, YAW), frames=Views(), augmentation=AUGMENTATION, image_size=20
        ),
        "single": Faces(Source(4), augmentation=AUGMENTATION),
    }
    settings = {"frames_per_clip": 3, "clips_per_batch": 4, "workers": 0, "image_size": 32}
    module = Placed(parts, **(settings | options))
    module.setup("fit")
    return module


def parts_of(batch: dict) -> list[str]:
    return [name.split("/")[0] for name in batch["sample_ids"][:: batch["images"].shape[1]]]


def test_each_batch_has_the_wanted_proportions() -> None:
    data = mixed(shares={"views": 3}, batches_per_epoch=12)
    seen: Counter[str] = Counter()
    for batch in data.train_dataloader():
        assert Counter(parts_of(batch)) == {"views": 3, "single": 1}
        seen.update(batch["sample_ids"][::3])
    clips = Counter(name.rpartition("/")[0] for name in seen.elements())
    assert clips == {f"views/id{k}/video/{k}": 4 for k in range(9)} | {
        f"single/id{k}/video/{k}": 3 for k in range(4)
    }  # each part's clips equally often


def test_proportions_that_do_not_go_into_a_batch_hold_on_average() -> None:
    data = mixed(shares={"views": 3, "single": 2}, clips_per_batch=3, batches_per_epoch=5)
    counts = [Counter(parts_of(batch))["views"] for batch in data.train_dataloader()]
    assert sum(counts) == 9
    assert set(counts) <= {1, 2}


def test_flags_tell_the_samples_apart() -> None:
    for batch in mixed(batches_per_epoch=3).train_dataloader():
        views = torch.tensor([part == "views" for part in parts_of(batch)])
        assert torch.equal(batch["multi_view"], views)
        assert torch.equal(batch["has_landmarks_3d"], views[:, None].expand(4, 3))
        assert batch["images"].shape == (4, 3, 3, 32, 32)  # the mixture's size, not the part's
        known = batch["landmarks_3d"][views]
        assert torch.equal(known[..., :2], batch["landmarks"][views])


def test_a_single_image_is_repeated_each_time_changed_anew() -> None:
    one = Faces(Source(4), augmentation=AUGMENTATION)
    one.made.clips = lambda split: [
        replace(clip, frames=clip.frames[:1]) for clip in Source.clips(one.made, split)
    ]
    data = Mixed({"one": one}, frames_per_clip=3, clips_per_batch=2, workers=0, image_size=32)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert len(set(batch["sample_ids"])) == 2
    assert not torch.equal(batch["images"][:, 0], batch["images"][:, 1])
    assert "multi_view" not in batch


def test_evaluation_goes_through_all_parts_once() -> None:
    data = mixed(eval_clips_per_batch=5)
    ids = [name for batch in data.test_dataloader() for name in batch["sample_ids"][::3]]
    expected = [f"views/id{k}" for k in range(9)] + [f"single/id{k}" for k in range(4)]
    assert [name.split("/video")[0] for name in ids] == expected
    frames = [name for batch in data.predict_dataloader() for name in batch["sample_ids"]]
    assert len(set(frames)) == len(frames) == 13 * 6
    assert data.val_dataloader() == []


def test_bad_frames_are_counted_by_part() -> None:
    def bad(_: str, number: int, made: Frame) -> Frame:
        return replace(made, confidence=made.confidence * 0) if number == 2 else made

    data = Mixed({"a": Faces(Source()), "b": Faces(Source(3, bad))}, workers=0)
    data.setup("fit")
    list(data.predict_dataloader())
    assert data.skipped == {"b/predict": {"too few landmarks, or all in one place": 3}}


@pytest.mark.parametrize("shares", [{"single": 0}, {"typo": 1}])
def test_wrong_shares_are_an_error(shares: dict) -> None:
    with pytest.raises(DataError, match=r"shares .* of the parts \['views', 'single'\]"):
        mixed(shares=shares)


def test_a_part_without_clips_is_an_error_in_training_only() -> None:
    data = Mixed({"a": Faces(Source(2)), "b": Faces(Source(0))}, workers=0)
    data.setup("fit")
    with pytest.raises(DataError, match="no clips in the split 'train'"):
        data.train_dataloader()
    assert sum(len(batch["images"]) for batch in data.test_dataloader()) == 2


def test_its_options_are_the_command_lines(tmp_path: Path) -> None:
    voxceleb.write(tmp_path / "tree")
    config = tmp_path / "config.yaml"
    part = "{class_path: datamodules.voxceleb.VoxCeleb, init_args: {root: %s, frames: %s}}"
    choices = "datamodules.choice.Diverse", "{class_path: datamodules.choice.Random}"
    one, other = (part % (tmp_path / "tree", choice) for choice in choices)
    config.write_text(
        "data:\n  class_path: datamodules.mixed.Mixed\n  init_args:\n"
        f"    parts:\n      one: {one}\n      other: {other}\n    shares: {{one: 2}}\n"
        "    image_size: 24\n    workers: 0\n    clips_per_batch: 3\n"
    )
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_subclass_arguments(FaceDataModule, "data")
    data = parser.instantiate(parser.parse_args([f"--config={config}"])).data
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert Counter(parts_of(batch)) == {"one": 2, "other": 1}


# several processes


def fingerprints(loader: object, most: int) -> list[tuple]:
    found = []
    for batch in loader:
        values = [
            batch[k].double().sum().item() for k in sorted(batch) if torch.is_tensor(batch[k])
        ]
        found.append((batch["sample_ids"], values))
        if len(found) == most:
            break
    return found


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("workers", [0, 2])
def test_resumed_processes_see_what_they_would_have_seen(world_size: int, workers: int) -> None:
    options = {"workers": workers, "batches_per_epoch": 3, "seed": 5, "shares": {"views": 2}}
    for rank in range(world_size):
        whole = mixed(rank, world_size, **(options | {"workers": 0})).train_dataloader()
        expected = [*fingerprints(whole, 3), *fingerprints(whole, 1)]
        killed = mixed(rank, world_size, **options).train_dataloader()
        assert fingerprints(killed, 2) == expected[:2]
        state = {"epoch": 0, "batches": 2}
        assert killed.state_dict() == state
        resumed = mixed(rank, world_size, **options).train_dataloader()
        resumed.load_state_dict(state)
        assert [*fingerprints(resumed, 3), *fingerprints(resumed, 1)] == expected[2:]


def test_processes_share_the_clips_of_each_part() -> None:
    drawn: Counter[str] = Counter()
    for rank in range(2):
        data = mixed(rank, 2, batches_per_epoch=9, shares={"views": 3, "single": 1})
        for batch in data.train_dataloader():
            assert Counter(parts_of(batch)) == {"views": 3, "single": 1}
            drawn.update(name.rpartition("/")[0] for name in batch["sample_ids"][::3])
    assert {drawn[f"views/id{k}/video/{k}"] for k in range(9)} == {6}
    assert sum(drawn.values()) == 72


@pytest.mark.parametrize(("clips", "batch"), [(9, 4), (8, 4), (1, 4), (7, 3), (5, 1)])
@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_counts_every_clip_once(clips: int, batch: int, workers: int) -> None:
    seen: Counter[str] = Counter()
    lengths = set()
    for rank in range(2):

        class Placed(Faces):
            place = rank, 2

            def _place(self) -> tuple[int, int]:
                return self.place

        data = Placed(Source(clips), eval_clips_per_batch=batch, workers=workers)
        data.setup("test")
        batches = list(data.test_dataloader())
        lengths.add(len(batches))
        assert len(data.test_dataloader()) == len(batches)
        for found in batches:
            if found.get("repeated"):
                assert len(found["images"]) == 1
                assert found is batches[-1]
            else:
                seen.update(found["sample_ids"])
    assert len(lengths) == 1  # else a process would wait for the other
    assert set(seen.values()) == {1}
    assert len(seen) == 3 * clips
