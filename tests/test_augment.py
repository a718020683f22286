"""Flips, colours, covers and 3D landmarks of augmented crops."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from core.crop import transform_points
from core.errors import DataError
from core.landmarks import MIRROR, mirror
from datamodules.augment import Augmentation, flip_matrix
from datamodules.base import Frame
from datamodules.reading import collate, in_floats, moved
from datamodules.sampler import Draw
from tests.fakes.dataset import SIZE, Source, faces, frame

ALL = Augmentation(
    shift=0.045,
    scale=0.1,
    rotation=20.0,
    flip=0.5,
    brightness=0.3,
    contrast=0.3,
    saturation=0.3,
    tint=0.1,
    cover=0.3,
)


def with_depth(_: str, __: int, made: Frame) -> Frame:
    z = 0.3 * made.landmarks[:, :1] - 7
    return replace(made, landmarks_3d=torch.cat([made.landmarks, z], -1))


def samples(augmentation: Augmentation, made: Source | None = None, turns: int = 1) -> list[dict]:
    data = faces(made, augmentation=augmentation).train_dataloader().dataset
    return [in_floats(data[Draw(turn, clip)]) for turn in range(turns) for clip in range(5)]


def test_a_flip_slips_by_no_pixel() -> None:
    # one white pixel column, left of the middle: flipped, it is the same one from the right
    def stripe(_: str, __: int, made: Frame) -> Frame:
        image = torch.zeros(3, 90, 90, dtype=torch.uint8)
        image[:, :, 30] = 255
        return replace(made, image=image, landmarks=corners, confidence=torch.ones(68))

    corners = torch.full((68, 2), 45.0)
    corners[0], corners[1] = torch.tensor([21.0, 21.0]), torch.tensor([69.0, 69.0])
    options = {"image_size": 48, "crop_margin": 1.0}  # so that pixels stay pixels
    for flip, column in ((0.0, 30 - 21), (1.0, 47 - (30 - 21))):
        data = faces(Source(spoil=stripe), augmentation=Augmentation(flip=flip), **options)
        images = in_floats(data.train_dataloader().dataset[Draw(0, 0)])["images"]
        expected = torch.zeros(48)
        expected[column] = 1
        assert torch.equal(images, expected.expand_as(images))


def test_3d_landmarks_move_with_the_2d_ones_and_keep_their_shape() -> None:
    flips = set()
    for batch in samples(ALL, Source(spoil=with_depth), turns=3):
        assert batch["has_landmarks_3d"].all()
        assert torch.equal(batch["landmarks_3d"][..., :2], batch["landmarks"])
        for number, name in enumerate(batch["sample_ids"]):
            seed = 10 * int(name[2]) + int(name[-1])
            before = with_depth("", 0, frame(seed)).landmarks_3d
            flipped = torch.linalg.det(batch["crop_to_image"][number]) < 0
            before = before[list(MIRROR)] if flipped else before
            after = batch["landmarks_3d"][number]
            scale = torch.cdist(after, after) / torch.cdist(before, before).clamp(min=1)
            scale = scale[torch.cdist(before, before) > 5]
            assert (scale.max() - scale.min()) < 1e-3 * scale.mean()  # a similarity in space
            flips.add(bool(flipped))
    assert flips == {True, False}


def test_flipped_3d_landmarks_are_mirrored() -> None:
    points = torch.randn(68, 3) * 50
    flipped = moved(points.numpy(), flip_matrix(SIZE), True)
    torch.testing.assert_close(torch.from_numpy(flipped).float(), mirror(points, SIZE))


def test_frames_without_3d_landmarks_are_filled_in_and_flagged() -> None:
    def some(person: str, number: int, made: Frame) -> Frame:
        return with_depth("", 0, made) if person == "id1" and number % 2 else made

    data = faces(Source(spoil=some), frames_per_clip=6).train_dataloader().dataset
    one, none = data[Draw(0, 1)], data[Draw(0, 2)]
    assert "landmarks_3d" not in none
    batch = collate([none, one])
    odd = torch.tensor([int(name[-1]) % 2 == 1 for name in one["sample_ids"]])
    assert torch.equal(batch["has_landmarks_3d"], torch.stack([torch.zeros_like(odd), odd]))
    assert (batch["landmarks_3d"][~batch["has_landmarks_3d"]] == 0).all()
    assert batch["landmarks_3d"][batch["has_landmarks_3d"]].abs().sum() > 0
    assert "has_landmarks_3d" not in collate([none, none])


def test_bad_3d_landmarks_spoil_the_frame() -> None:
    def bad(person: str, number: int, made: Frame) -> Frame:
        made = with_depth("", 0, made)
        if number == 2:
            made.landmarks_3d[4, 2] = torch.inf
        return made

    data = faces(Source(1, bad), frames_per_clip=6)
    batch = data.train_dataloader().dataset[Draw(0, 0)]
    assert not any(name.endswith("/2") for name in batch["sample_ids"])
    assert data.skipped == {"train": {"landmarks are not finite": 1}}


LEVEL = 0.51 / 255  # to which colours are rounded


def colours(**amounts: float) -> tuple[torch.Tensor, torch.Tensor]:
    """An image's colours before and after, the same change for all frames: (n, 3)."""
    image = np.random.default_rng(0).integers(77, 179, (4, 3, 64, 64), np.uint8)
    changed = image.copy()
    Augmentation(**amounts).recolour(changed, np.random.default_rng(3))
    return tuple(
        torch.from_numpy(x).permute(0, 2, 3, 1).reshape(-1, 3).double() / 255
        for x in (image, changed)
    )


def fitted(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """The factors of the columns, by least squares."""
    return (before * after).sum(0) / before.square().sum(0)


def test_brightness_is_a_factor() -> None:
    before, after = colours(brightness=0.2)
    factor = fitted(before, after).mean()
    torch.testing.assert_close(after, factor * before, atol=2 * LEVEL, rtol=0)
    assert 1 / 1.2 < factor < 1.2
    assert abs(factor - 1) > 1e-3


def test_contrast_keeps_middle_grey() -> None:
    before, after = colours(contrast=0.5)
    factor = fitted(before - 0.5, after - 0.5).mean()
    torch.testing.assert_close(after - 0.5, factor * (before - 0.5), atol=2 * LEVEL, rtol=0)
    assert abs(factor - 1) > 1e-2


def test_saturation_keeps_the_luminance() -> None:
    before, after = colours(saturation=0.5)
    weights = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)
    torch.testing.assert_close(after @ weights, before @ weights, atol=LEVEL, rtol=0)
    grey = (before @ weights)[:, None]
    factor = fitted((before - grey).reshape(-1, 1), (after - grey).reshape(-1, 1))
    torch.testing.assert_close(after - grey, factor * (before - grey), atol=2 * LEVEL, rtol=0)
    assert abs(factor - 1) > 1e-2


def test_tint_is_a_factor_for_each_channel() -> None:
    before, after = colours(tint=0.3)
    factors = fitted(before, after)
    torch.testing.assert_close(after, factors * before, atol=2 * LEVEL, rtol=0)
    assert factors.max() - factors.min() > 1e-2


def test_colours_are_cut_off_where_they_leave_the_range() -> None:
    image = np.full((1, 3, 4, 4), 200, np.uint8)
    found = set()
    for seed in range(20):
        changed = image.copy()
        Augmentation(contrast=1.0, brightness=1.0).recolour(changed, np.random.default_rng(seed))
        found.add(int(changed.max()))
        assert changed.min() == changed.max()
    assert 255 in found
    assert min(found) > 60


def test_colours_stay_in_range_and_are_one_for_a_clip() -> None:
    plain = samples(Augmentation())
    for before, after in zip(plain, samples(Augmentation(brightness=1.0)), strict=True):
        assert after["images"].min() >= 0
        assert after["images"].max() <= 1
        inner = (before["images"] > 0.1) & (after["images"] < 0.99)
        x, y = before["images"][inner], after["images"][inner]
        factor = (x * y).sum() / x.square().sum()
        torch.testing.assert_close(y, factor * x, atol=2 * LEVEL, rtol=0)
        assert torch.equal(before["masks"], after["masks"])


def test_covers_are_rectangles_of_one_colour_without_mask() -> None:
    rng = np.random.default_rng(1)
    before, left = (rng.integers(1, 256, (400, c, 40, 40), np.uint8) for c in (3, 1))
    after, masks = before.copy(), left.copy()
    Augmentation(cover=0.5).cover_some(after, masks, np.random.default_rng(0))
    before, left, after, masks = map(torch.from_numpy, (before, left, after, masks))
    changed = masks[:, 0] == 0
    assert torch.equal(masks[:, 0], torch.where(changed, 0, left[:, 0]))
    same = (~changed)[:, None].expand_as(before)
    assert torch.equal(after[same], before[same])
    areas = changed.flatten(1).float().mean(1)
    covered = areas > 0
    assert 0.4 < covered.float().mean() < 0.6
    assert 0.015 < areas[covered].min() < 0.03
    assert 0.22 < areas.max() < 0.27
    shapes = []
    for image, here in zip(after[covered], changed[covered], strict=True):
        rows, columns = here.any(1).sum(), here.any(0).sum()
        assert here.sum() == rows * columns  # no holes
        colours = image[:, here]
        assert (colours == colours[:, :1]).all()
        shapes.append((rows / columns).item())
    assert min(shapes) < 0.5
    assert max(shapes) > 2


def test_further_options_leave_the_geometry_as_it_was() -> None:
    shape = Augmentation(ALL.shift, ALL.scale, ALL.rotation, ALL.flip)
    for before, after in zip(samples(shape), samples(ALL), strict=True):
        assert torch.equal(before["crop_to_image"], after["crop_to_image"])
        assert not torch.equal(before["images"], after["images"])


def test_augmentation_depends_on_seed_turn_and_clip() -> None:
    one, other = (faces(augmentation=ALL, workers=workers).train_dataloader() for workers in (0, 2))
    for a, b in zip(one, other, strict=True):
        assert a["sample_ids"] == b["sample_ids"]
        assert torch.equal(a["images"], b["images"])
        assert torch.equal(a["masks"], b["masks"])
    again = faces(augmentation=ALL, seed=1).train_dataloader().dataset[Draw(0, 0)]
    assert not torch.equal(again["images"], one.dataset[Draw(0, 0)]["images"])
    assert not torch.equal(one.dataset[Draw(1, 0)]["images"], one.dataset[Draw(0, 0)]["images"])


def test_evaluation_is_not_augmented() -> None:
    plain, augmented = (
        next(iter(faces(augmentation=a).test_dataloader())) for a in (Augmentation(), ALL)
    )
    assert torch.equal(plain["images"], augmented["images"])
    home = transform_points(augmented["crop_to_image"], augmented["landmarks"])
    torch.testing.assert_close(home[0, 0], frame(int(augmented["sample_ids"][0][-1])).landmarks)


@pytest.mark.parametrize("wrong", [{"flip": 1.5}, {"shift": -0.1}, {"tint": 1.1}, {"cover": 2.0}])
def test_senseless_augmentation_is_an_error(wrong: dict) -> None:
    with pytest.raises(DataError, match=next(iter(wrong))):
        Augmentation(**wrong)
