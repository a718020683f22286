"""Crops, masks, choice of frames, bad frames; with a dataset made on the spot."""

import logging
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from scipy.spatial import Delaunay

from core.crop import face_crop, transform_points, warp
from core.errors import DataError
from core.landmarks import mirror
from datamodules.augment import Augmentation, flip_matrix
from datamodules.base import Clip, Frame
from datamodules.cutting import cut_out
from datamodules.masks import hull_mask
from datamodules.reading import in_floats, moved
from datamodules.sampler import Draw
from tests.fakes.dataset import SIZE, Source, faces, frame, frames_of
from tests.fakes.voxceleb import face_points

ALL = Augmentation(shift=0.1, scale=0.2, rotation=20.0, flip=0.5)


# crops

LEVEL = 0.51 / 255  # to which crops are rounded


def cut(image: torch.Tensor, matrix: np.ndarray, size: int = SIZE) -> torch.Tensor:
    """The crop of an image of four channels, the last one the mask, in [0, 1]."""
    crop = np.full((4, size, size), 77, np.uint8)
    *rgb, mask = image.numpy()
    cut_out(np.stack(rgb, -1), mask, matrix, crop[:3], crop[3])
    return torch.from_numpy(crop) / 255


def sampled(image: torch.Tensor, matrix: np.ndarray) -> torch.Tensor:
    """The crop as the means of k x k bilinear samples, each of them a pixel of a larger warp."""
    k = max(1, math.ceil(abs(np.linalg.det(matrix)) ** -0.5 - 1e-3))
    large = warp(image.double() / 255, torch.from_numpy(np.diag([k, k, 1.0]) @ matrix), k * SIZE)
    return large.reshape(4, SIZE, k, SIZE, k).mean((2, 4)).float()


@pytest.mark.parametrize("side", [20, 70, 200, 700])
@pytest.mark.parametrize("flipped", [False, True])
def test_cutting_out_is_warping(side: int, flipped: bool) -> None:
    image = torch.randint(0, 256, (4, 300, 400), dtype=torch.uint8)
    for x, y in ((30.3, -5.7), (-90.2, 120.9), (390, 290)):  # the last: nearly outside
        scale = SIZE / side
        matrix = np.array([[scale, 0, -scale * x], [0, scale, -scale * y], [0, 0, 1]])
        matrix = flip_matrix(SIZE) @ matrix if flipped else matrix
        found = cut(image, matrix)
        torch.testing.assert_close(found, sampled(image, matrix), atol=LEVEL, rtol=0)
        if side < 4 * SIZE:  # from a reduction of four on, warp averages blocks first
            expected = warp(image.double() / 255, torch.from_numpy(matrix), SIZE).float()
            torch.testing.assert_close(found, expected, atol=LEVEL, rtol=0)


@pytest.mark.parametrize("scale", [2.0, 0.9, 0.7, 0.4, 0.2])
@pytest.mark.parametrize("flipped", [False, True])
def test_rotated_cutting_out_is_warping(scale: float, flipped: bool) -> None:
    image = torch.randint(0, 256, (4, 120, 90), dtype=torch.uint8)
    zoom = np.array([[scale, 0, -20 * scale], [0, scale, 9], [0, 0, 1]])
    matrix = ALL.jitter(np.random.default_rng(0), SIZE) @ zoom
    matrix = flip_matrix(SIZE) @ matrix if flipped else matrix
    expected = sampled(image, matrix)
    assert (expected == 0).any()  # outside the image
    assert (expected > 0).any()
    torch.testing.assert_close(cut(image, matrix), expected, atol=LEVEL, rtol=0)


@pytest.mark.parametrize("shape", [(1, 1), (1, 60), (60, 1), (2, 2)])
@pytest.mark.parametrize("scale", [1.0, 1.41, 0.37])
def test_the_smallest_images_are_cut_out(shape: tuple[int, int], scale: float) -> None:
    image = torch.randint(0, 256, (4, *shape), dtype=torch.uint8)
    matrix = np.array([[scale, 0, 5], [0, scale, 7], [0, 0, 1.0]])
    expected = sampled(image, matrix)
    torch.testing.assert_close(cut(image, matrix), expected, atol=LEVEL, rtol=0)


@pytest.mark.parametrize(("x", "y"), [(0, 0), (-7, 3), (5, -60), (100, 0)])
def test_cutting_out_by_whole_pixels_copies(x: int, y: int) -> None:
    image = torch.randint(0, 256, (4, 60, 50), dtype=torch.uint8)
    matrix = np.array([[1, 0, x], [0, 1, y], [0, 0, 1.0]])
    expected = warp(image.double(), torch.from_numpy(matrix), SIZE).round().float()
    torch.testing.assert_close(cut(image, matrix) * 255, expected)


def test_flip_is_exact() -> None:
    made = frame(1)
    matrix = face_crop(made.landmarks, made.confidence, SIZE).double().numpy()
    image = torch.cat([made.image, made.mask])
    flip = flip_matrix(SIZE) @ matrix
    # a level where a value lies between two
    torch.testing.assert_close(cut(image, flip), cut(image, matrix).flip(-1), atol=1 / 254, rtol=0)
    points = torch.from_numpy(moved(made.landmarks.numpy(), matrix, False))
    flipped = torch.from_numpy(moved(made.landmarks.numpy(), flip, True))
    torch.testing.assert_close(flipped, mirror(points, SIZE))
    assert flipped[36, 0] < flipped[45, 0]  # the subject's right eye is again on the left


def test_crops_are_those_of_the_landmarks() -> None:
    for batch in faces(crop_margin=1.3).test_dataloader():
        for back, numbers in zip(batch["crop_to_image"], frames_of(batch), strict=True):
            clip = int(batch["sample_ids"][0].split("/")[0][2:])
            for matrix, number in zip(back, numbers, strict=True):
                made = frame(10 * clip + number)
                expected = face_crop(made.landmarks, made.confidence, SIZE, 1.3)
                torch.testing.assert_close(matrix.inverse(), expected, rtol=1e-4, atol=1e-3)
            batch["sample_ids"] = batch["sample_ids"][len(numbers) :]


def test_augmented_landmarks_stay_on_their_pixels() -> None:
    # The image holds its own coordinates, so that each crop pixel says where it came from.
    size = 256
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    coordinates = torch.stack([x, y, torch.full_like(x, 255)]).to(torch.uint8)

    def coordinate_image(_: str, __: int, made: Frame) -> Frame:
        return replace(made, image=coordinates, landmarks=made.landmarks * 2.4, mask=None)

    data = faces(Source(8, coordinate_image), augmentation=ALL)
    flips = set()
    for batch in data.train_dataloader():
        back, images = batch["crop_to_image"], in_floats(batch)["images"]
        flips |= set(back[..., 0, 0].sign().flatten().tolist())
        centres = torch.tensor([[24.5, 20.5], [10.5, 30.5]])
        source = transform_points(back, centres.expand(*back.shape[:2], 2, 2))
        for k, (column, row) in enumerate(((24, 20), (10, 30))):
            assert (images[:, :, 2, row, column] > 0.99).all()  # within the image
            seen = images[:, :, :2, row, column] * 255 + 0.5
            torch.testing.assert_close(seen, source[:, :, k], atol=0.55, rtol=0)  # rounded
    assert flips == {-1.0, 1.0}


def test_crop_to_image_takes_landmarks_home() -> None:
    data = faces(augmentation=ALL)
    for batch in data.train_dataloader():
        home = transform_points(batch["crop_to_image"], batch["landmarks"])
        numbers = frames_of(batch)
        for b, v in np.ndindex(2, 3):
            clip = int(batch["sample_ids"][3 * b].split("/")[0][2:])
            made = frame(10 * clip + numbers[b][v])
            flipped = torch.linalg.det(batch["crop_to_image"][b, v]) < 0
            expected = mirror(made.landmarks, 0) * torch.tensor([-1, 1])
            expected = expected if flipped else made.landmarks
            torch.testing.assert_close(home[b, v], expected, atol=1e-3, rtol=0)


def test_hull_mask_is_the_convex_hull_with_a_forehead() -> None:
    points = torch.from_numpy(face_points(np.random.default_rng(0), SIZE))
    up = 0.35 * (points[27, :2] - points[8, :2])
    corners = torch.cat([points[:, :2], points[17:27, :2] + up]).numpy()
    fine = (np.mgrid[: SIZE * 8, : SIZE * 8].reshape(2, -1).T[:, ::-1] + 0.5) / 8
    inside = Delaunay(corners).find_simplex(fine) >= 0
    expected = inside.reshape(SIZE, 8, SIZE, 8).mean((1, 3))
    mask = hull_mask(points[:, :2], points[:, 2], SIZE)[0].numpy()
    assert np.abs(mask - expected).max() < 0.4  # an edge's ramp at a corner is not its area
    assert np.abs(mask - expected).mean() < 0.005


def test_hull_mask_without_chin_has_no_forehead() -> None:
    points = torch.from_numpy(face_points(np.random.default_rng(0), SIZE))
    confidence = torch.ones(68)
    whole = hull_mask(points[:, :2], confidence, SIZE).sum()
    confidence[8] = 0
    brows = points[17:27, 1].min()
    mask = hull_mask(points[:, :2], confidence, SIZE)
    assert mask.sum() < whole
    assert mask[0, : int(brows) - 1].sum() == 0


def test_masks_end_where_the_image_ends() -> None:
    def moved(_: str, __: int, made: Frame) -> Frame:
        return replace(made, landmarks=made.landmarks - torch.tensor([25.0, 0]), mask=None)

    data = faces(Source(spoil=moved))
    batch = in_floats(next(iter(data.test_dataloader())))
    black = batch["images"].amax(2, keepdim=True) == 0
    assert black.any()
    assert (batch["masks"][black] == 0).all()
    assert (batch["masks"] > 0.5).any()


def test_given_masks_are_cut_like_images() -> None:
    picture = Image.new("L", (90, 90))
    ImageDraw.Draw(picture).ellipse((20, 20, 70, 75), fill=255)
    drawn = torch.from_numpy(np.array(picture))

    def with_mask(_: str, __: int, made: Frame) -> Frame:
        return replace(made, image=drawn.expand(3, -1, -1), mask=drawn[None])

    for batch in faces(Source(spoil=with_mask), augmentation=ALL).train_dataloader():
        torch.testing.assert_close(batch["masks"], batch["images"][:, :, :1], atol=0, rtol=0)


def test_the_trainer_sees_floats() -> None:
    data = faces(augmentation=ALL)
    batch = next(iter(data.train_dataloader()))
    assert batch["images"].dtype == batch["masks"].dtype == torch.uint8
    given = data.on_after_batch_transfer(batch, 0)
    for key in ("images", "masks"):
        assert given[key].is_contiguous()
        assert torch.equal(given[key], batch[key] / 255)
    assert {k: v for k, v in given.items() if k not in ("images", "masks")}.keys() < batch.keys()
    assert given["landmarks"] is batch["landmarks"]


# choice


def test_training_frames_differ_and_change_with_turn_and_seed() -> None:
    data = faces().train_dataloader().dataset
    drawn = [frames_of({**data[Draw(turn, 1)], "images": [0]})[0] for turn in range(12)]
    assert all(len(set(frames)) == 3 for frames in drawn)
    assert len({tuple(frames) for frames in drawn}) > 6
    assert {index for frames in drawn for index in frames} == set(range(6))
    again = faces(seed=1).train_dataloader().dataset
    assert [frames_of({**again[Draw(t, 1)], "images": [0]})[0] for t in range(12)] != drawn


def test_a_sample_depends_on_seed_turn_and_clip_only() -> None:
    one, other = (faces(augmentation=ALL).train_dataloader().dataset for _ in range(2))
    one[Draw(0, 3)], one[Draw(5, 0)]
    torch.manual_seed(7)
    np.random.seed(7)
    a, b = one[Draw(2, 1)], other[Draw(2, 1)]
    assert a["sample_ids"] == b["sample_ids"]
    for name in ("images", "masks", "landmarks", "landmark_confidence", "crop_to_image"):
        assert torch.equal(a[name], b[name])


def test_kept_frames_are_the_same_and_read_once() -> None:
    modules = [faces(augmentation=ALL, cache_gb=gb) for gb in (0.0, 1.0, 40e-6)]  # 40 kB: one fits
    data = [module.train_dataloader().dataset for module in modules]
    for turn in range(6):
        for clip in range(5):
            plain, *kept = (dataset[Draw(turn, clip)] for dataset in data)
            for other in kept:
                assert plain["sample_ids"] == other["sample_ids"]
                assert torch.equal(plain["images"], other["images"])
                assert torch.equal(plain["landmarks"], other["landmarks"])
    without, all_kept, few_kept = (module.made.count for module in modules)
    assert without == 6 * 5 * 3
    assert all_kept <= 5 * 6  # each frame at most once
    assert all_kept < few_kept < without


def test_short_clips_repeat_frames() -> None:
    data = faces(frames_per_clip=8)
    for loader in (data.train_dataloader(), data.test_dataloader()):
        for frames in frames_of(next(iter(loader))):
            assert len(frames) == 8
            assert set(frames) == set(range(6))


@pytest.mark.parametrize(("wanted", "frames"), [(1, [2]), (2, [1, 4]), (3, [0, 2, 4])])
def test_evaluation_frames_are_spread_evenly(wanted: int, frames: list[int]) -> None:
    data = faces(eval_frames_per_clip=wanted, eval_clips_per_batch=3, augmentation=ALL)
    batches = list(data.test_dataloader())
    assert [len(batch["images"]) for batch in batches] == [3, 2]
    assert [f for batch in batches for f in frames_of(batch)] == [frames] * 5
    assert (batches[0]["crop_to_image"][..., 0, 1] == 0).all()  # not augmented


@pytest.mark.parametrize(("every", "frames"), [(1, [0, 1, 2, 3, 4, 5]), (4, [0, 4])])
def test_prediction_takes_each_frame_once(every: int, frames: list[int]) -> None:
    ids = [
        name
        for batch in faces(predict_every=every).predict_dataloader()
        for name in batch["sample_ids"]
    ]
    assert ids == [f"id{k}/video/{k}/{f}" for k in range(5) for f in frames]


def test_an_epoch_has_the_wanted_length() -> None:
    assert len(faces().train_dataloader()) == 2
    assert len(faces(clips_per_batch=7).train_dataloader()) == 1  # not none at all
    loader = faces(batches_per_epoch=9).train_dataloader()
    batches = list(loader)
    assert len(batches) == len(loader) == 9
    assert {len(batch["images"]) for batch in batches} == {2}


def test_an_identity_in_two_splits_is_an_error() -> None:
    class Mixed(Source):
        def clips(self, split: str) -> list[Clip]:
            return [replace(clip, identity="one") for clip in super().clips(split)[:1]]

    with pytest.raises(DataError, match=r"\['one'\] are in the splits 'train' and 'test'"):
        faces(Mixed())


def test_empty_splits(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert faces().val_dataloader() == []
    assert "'val' is empty" in caplog.text
    with pytest.raises(DataError, match="no clips in the split 'test'"):
        faces(Source(0)).test_dataloader()


# bad frames


def nan(made: Frame) -> Frame:
    return replace(made, landmarks=made.landmarks.clone().index_fill_(0, torch.tensor([5]), np.nan))


BAD = {
    "landmarks are not finite": nan,
    "landmarks are outside the image": lambda f: replace(f, landmarks=f.landmarks + 70),
    "too few landmarks, or all in one place": lambda f: replace(f, confidence=f.confidence * 0),
    "mask has another size than the image": lambda f: replace(
        f, mask=torch.zeros(1, 89, 90, dtype=torch.uint8)
    ),
}


def test_a_landmark_far_away_does_not_make_a_crop_of_the_whole_world() -> None:
    """Which would take for ever to be sampled."""

    def spoil(identity: str, index: int, made: Frame) -> Frame:
        if index == 1:
            return replace(made, landmarks=made.landmarks.index_fill(0, torch.tensor([5]), 1e12))
        if index == 2:  # as far as may be
            away = made.landmarks.index_fill(0, torch.tensor([5]), 3.9 * max(made.image.shape))
            return replace(made, landmarks=away)
        return made

    data = faces(Source(spoil=spoil), frames_per_clip=6)
    (batch, *_) = data.train_dataloader()
    names = {name[-1] for name in batch["sample_ids"]}
    assert "1" not in names
    assert "2" in names
    assert data.skipped["train"].keys() == {"landmarks are outside the image"}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("workers", [0, 2])
def test_bad_frames_are_left_out_and_counted(
    kind: str, workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    def spoil(identity: str, index: int, made: Frame) -> Frame:
        return BAD[kind](made) if index in (1, 4) and identity in ("id1", "id2") else made

    data = faces(Source(spoil=spoil), frames_per_clip=4, workers=workers)
    loader = data.train_dataloader()
    with caplog.at_level(logging.WARNING):
        for _ in range(4):
            for batch in loader:
                for name in batch["sample_ids"]:
                    assert not (name[:3] in ("id1", "id2") and name[-1] in "14")
                for value in batch.values():
                    assert isinstance(value, list) or value.isfinite().all()
                assert all(len(set(frames)) == 4 for frames in frames_of(batch))
    assert data.skipped == {"train": {kind: 4}}  # different frames, however often met
    if not workers:  # the workers' go to the terminal
        warnings = [r.getMessage() for r in caplog.records if kind in r.getMessage()]
        assert len(warnings) == 1  # the first of its kind, with its name
        assert "id1/video/1/" in warnings[0] or "id2/video/2/" in warnings[0]


def test_a_clip_without_usable_frames_is_replaced_in_training_and_left_out_in_evaluation() -> None:
    data = faces(Source(spoil=lambda i, _, f: nan(f) if i == "id1" else f), eval_clips_per_batch=2)
    loader = data.train_dataloader()
    for _ in range(3):
        for batch in loader:
            assert len(batch["images"]) == 2
            assert not any(name.startswith("id1/") for name in batch["sample_ids"])
    ids = [name.split("/")[0] for batch in data.test_dataloader() for name in batch["sample_ids"]]
    assert ids == [person for person in ("id0", "id2", "id3", "id4") for _ in range(3)]
    assert data.skipped["test"] == {"landmarks are not finite": 6}
    data.test_dataloader()  # another loader of the same frames forgets nothing
    assert data.skipped["test"] == {"landmarks are not finite": 6}


def test_bad_files_are_not_read_again() -> None:
    source = Source(spoil=lambda i, _, f: nan(f) if i == "id1" else f)
    dataset = faces(source).train_dataloader().dataset
    dataset[Draw(0, 1)]
    first = source.count
    dataset[Draw(1, 1)]
    assert (first, source.count - first) == (6 + 3, 3)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("loader", ["train_dataloader", "test_dataloader", "predict_dataloader"])
def test_nothing_usable_is_an_error_not_an_endless_loop(loader: str, workers: int) -> None:
    data = faces(Source(spoil=lambda _, __, f: nan(f)), batches_per_epoch=3, workers=workers)
    with pytest.raises(DataError, match='"landmarks are not finite"') as error:
        list(getattr(data, loader)())
    assert "no usable frame in " in str(error.value)
    assert "Traceback" not in str(error.value)


def test_missing_landmarks_are_harmless() -> None:
    def partly(_: str, __: int, made: Frame) -> Frame:
        points, confidence = made.landmarks.clone(), made.confidence.clone()
        points[3], confidence[3] = np.nan, 0
        points[5], confidence[5] = 1e6, 0  # does not spoil the crop either
        confidence[7] = 0.01
        return Frame(made.image, points, confidence, made.mask)

    data = faces(Source(spoil=partly), min_landmark_confidence=0.1)
    for batch in data.train_dataloader():
        assert batch["landmarks"].isfinite().all()
        assert (batch["landmark_confidence"][..., [3, 5, 7]] == 0).all()
        assert (batch["landmark_confidence"] > 0).sum(-1).eq(65).all()
        seen = batch["landmark_confidence"] > 0
        assert batch["landmarks"][seen].min() > 0
        assert batch["landmarks"][seen].max() < SIZE
    assert data.skipped == {}


@pytest.mark.parametrize("wrong", [{"flip": 1.5}, {"shift": -0.1}, {"rotation": 400.0}])
def test_senseless_augmentation_is_an_error(wrong: dict) -> None:
    with pytest.raises(DataError, match=next(iter(wrong))):
        Augmentation(**wrong)


def test_jitter_stays_in_its_bounds_and_reaches_them() -> None:
    rng = np.random.default_rng(0)
    matrices = torch.from_numpy(np.stack([ALL.jitter(rng, SIZE) for _ in range(600)])).float()
    scale = torch.linalg.det(matrices).sqrt()
    angle = torch.rad2deg(torch.atan2(matrices[:, 1, 0], matrices[:, 0, 0]))
    centre = torch.full((600, 1, 2), SIZE / 2)
    shift = (transform_points(matrices, centre) - centre).abs() / SIZE
    for value, most in ((shift, 0.1), (scale, 1.2), (1 / scale, 1.2), (angle.abs(), 20)):
        assert 0.98 * most < value.max() < 1.0001 * most
    assert abs(angle.mean()) < 1
