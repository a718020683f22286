"""Which frames are read together, by pose, light and time; how bad ones are replaced."""

import tracemalloc
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from core.errors import DataError
from datamodules.choice import Choice, Diverse, EvenYaw, Lights, Random, Spread, Views, Whole
from datamodules.clips import Clip, MergedClip
from datamodules.sampler import Draw
from tests.fakes.dataset import Source, faces, frames_of

CAMERAS = np.array([-90, -75, -60, -45, -30, -15, 0, 15, 30, 45, 60, 75, 90], float)


def clip(yaw: object = None, light: object = None, count: int = 0, name: str = "a/b") -> Clip:
    yaw, light = (None if v is None else np.array(v) for v in (yaw, light))
    names = np.array([b"%d.png" % i for i in range(count or len(yaw))])
    return Clip(name, name.split("/")[0], names, yaw, light)


def studio() -> Clip:
    """As Multi-PIE: each camera under 20 lights, in no order."""
    rng = np.random.default_rng(0)
    camera, light = (a.ravel() for a in np.meshgrid(np.arange(13), np.arange(20)))
    order = rng.permutation(len(camera))
    return clip(CAMERAS[camera[order]], light[order])


def chosen(choice: Choice, from_: Clip, frames: int, seed: int = 0) -> list[int]:
    """What is read if all frames are usable."""
    places = next(choice.attempts(from_, frames, np.random.default_rng(seed)))
    taken: list[int] = []
    for place in places:
        taken.append(next(int(frame) for frame in place if frame not in taken))
    return taken


@pytest.mark.parametrize("choice", [Random(), Diverse(), EvenYaw(), Views(), Lights()])
def test_a_choice_is_a_function_of_its_seed_and_has_no_frame_twice(choice: Choice) -> None:
    drawn = [tuple(chosen(choice, studio(), 5, seed)) for seed in range(20)]
    assert drawn == [tuple(chosen(choice, studio(), 5, seed)) for seed in range(20)]
    assert len(set(drawn)) > 10
    assert all(len(set(frames)) == 5 for frames in drawn)


def test_random_frames_are_equally_likely() -> None:
    counts = Counter(f for seed in range(600) for f in chosen(Random(), clip(count=6), 2, seed))
    assert all(150 < counts[frame] < 250 for frame in range(6))


def test_diverse_frames_have_one_yaw_of_each_part_of_the_range() -> None:
    rng = np.random.default_rng(0)
    yaw = np.append(rng.normal(0, 3, 200), np.linspace(-60, 60, 25))  # mostly frontal
    spans = []
    for seed in range(50):
        frames = chosen(Diverse(), clip(yaw), 4, seed)
        parts = np.sort((yaw[frames] + 60) / 30)
        assert (np.abs(parts - np.arange(4) - 0.5) < 0.6).all()
        spans.append([np.ptp(yaw[frames]), np.ptp(yaw[chosen(Random(), clip(yaw), 4, seed)])])
    diverse, random = np.mean(spans, 0)
    assert diverse > 2 * random
    assert len({tuple(chosen(Diverse(), clip(yaw), 4, seed)) for seed in range(50)}) > 40


@pytest.mark.parametrize("yaw", [None, np.full(100, np.nan)])
def test_without_yaw_diverse_frames_are_spread_in_time(yaw: object) -> None:
    for seed in range(20):
        frames = sorted(chosen(Diverse(), clip(yaw, count=100), 4, seed))
        assert (np.abs((np.array(frames) + 0.5) / 25 - np.arange(4) - 0.5) < 0.56).all()


def test_frames_of_unknown_yaw_come_last() -> None:
    yaw = np.array([np.nan, 10, np.nan, 20, 30, np.nan])
    for choice in (Diverse(), EvenYaw()):
        assert set(chosen(choice, clip(yaw), 3, 1)) == {1, 3, 4}
        assert len(set(chosen(choice, clip(yaw), 5, 1))) == 5


def test_views_are_neighbouring_yaws_of_one_light_the_target_in_the_middle() -> None:
    targets = set()
    made = studio()
    for seed in range(200):
        frames = chosen(Views(), made, 3, seed)
        assert np.diff(made.yaw[frames]).tolist() == [15, 15]
        assert len(set(made.light[frames])) == 1
        targets.add(made.yaw[frames[1]])
    assert targets == set(CAMERAS[1:-1])
    assert np.diff(made.yaw[chosen(Views(), made, 5)]).tolist() == [15] * 4
    assert np.diff(made.yaw[chosen(Views(apart=20.0), made, 3)]).tolist() == [30, 30]


def test_views_of_a_video_are_apart_and_unknown_yaws_are_not_used() -> None:
    yaw = np.append(np.linspace(-20, 20, 401), np.nan)
    for seed in range(20):
        frames = chosen(Views(apart=5.0), clip(yaw), 3, seed)
        assert np.allclose(np.diff(yaw[frames]), 5, atol=0.11)


@pytest.mark.parametrize("within", [None, 15])
@pytest.mark.parametrize("frames", [3, 5])
def test_views_are_those_of_the_slow_search(within: int | None, frames: int) -> None:
    """Each frame as the target; from it on to each side the nearest yaw that is far enough."""
    rng = np.random.default_rng(3)
    yaw = np.cumsum(rng.normal(0, 6, 60))
    yaw[rng.choice(60, 5, replace=False)] = np.nan
    reach = within or 60
    wanted = set()
    for target in np.flatnonzero(np.isfinite(yaw)).tolist():
        near = [k for k in range(60) if abs(k - target) <= reach and np.isfinite(yaw[k])]
        views = [target]
        while len(views) < frames:
            left = [k for k in near if yaw[k] <= yaw[views[0]] - 4]
            right = [k for k in near if yaw[k] >= yaw[views[-1]] + 4]
            if not left or not right:
                break
            views = [max(left, key=yaw.__getitem__), *views, min(right, key=yaw.__getitem__)]
        else:
            wanted.add(tuple(views))
    attempts = Views(within=within).attempts(clip(yaw), frames, np.random.default_rng(0))
    found = [tuple(int(view) for (view,) in places) for places in attempts]
    assert len(found) == len(set(found))
    assert set(found) == wanted
    assert len(wanted) > 10


def test_views_of_a_long_clip_take_little_memory() -> None:
    """They are looked for at each draw."""
    frames = 3000
    long = clip(np.random.default_rng(0).uniform(-60, 60, frames))
    tracemalloc.start()
    assert len(chosen(Views(), long, 3)) == 3
    made = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert made < 1000 * frames


@pytest.mark.parametrize(
    ("yaw", "light"),
    [(None, None), ([0, 15], None), ([0, 15, 30], [1, 1, 2]), ([0, 1, 2], None)],
)
def test_clips_without_enough_views_are_left_out(yaw: object, light: object) -> None:
    few, many = clip(yaw, light, count=3 if yaw is None else 0), clip([0, 15, 30], [1, 1, 1])
    assert Views().clips([few, many], 3) == [many]


def test_lights_are_of_one_camera_and_all_different() -> None:
    made, cameras = studio(), set()
    for seed in range(100):
        frames = chosen(Lights(), made, 4, seed)
        assert len(set(made.yaw[frames])) == 1
        assert len(set(made.light[frames])) == 4
        cameras.add(made.yaw[frames[0]])
    assert cameras == set(CAMERAS)
    single = clip([0, 15, 30], [1, 2, 3])
    assert Lights().clips([single, clip(count=9), made], 2) == [made]


def test_even_yaws_are_of_all_clips_of_a_person() -> None:
    right, left = clip([-60, -30, 0], name="p/1"), clip([10, 45, 60], name="p/2")
    other = clip(count=2, name="q/1")
    people = EvenYaw().clips([right, other, left], 5)
    assert [person.identity for person in people] == ["p", "q"]
    merged = people[0]
    assert people[1] is other
    assert merged.yaw[chosen(EvenYaw(), merged, 5)].tolist() == [-60, -30, 0, 45, 60]
    assert merged.at(2) == (right, 2)
    assert merged.at(3) == (left, 0)
    assert merged.frames[5] == b"2.png"


def test_merging_keeps_what_is_known() -> None:
    merged = MergedClip.of([clip([1.0, 2.0], [3, 4]), clip(count=2)])
    assert np.array_equal(merged.yaw, [1, 2, np.nan, np.nan], equal_nan=True)
    assert merged.light is None
    assert MergedClip.of([clip([1.0], [3]), clip([2.0], [5])]).light.tolist() == [3, 5]


def test_spread_is_the_middles_of_equal_parts() -> None:
    for count, frames in ((6, 2), (100, 4), (7, 7)):
        found = chosen(Spread(), clip(count=count), frames)
        expected = [np.mean(part) for part in np.split(np.arange(count * frames) // frames, frames)]
        assert np.abs(np.array(found) - expected).max() <= 0.5


# read


def spoilt(*numbers: int) -> Callable:
    def spoil(_: str, number: int, made: object) -> object:
        return replace(made, confidence=made.confidence * 0) if number in numbers else made

    return spoil


def read(choice: Choice, source: Source, draws: int, **options: object) -> list[list[int]]:
    data = faces(source, frames=choice, **options).train_dataloader().dataset
    batches = [data[Draw(turn, 1)] for turn in range(draws)]
    flags = {tuple(batch.keys()) for batch in batches}
    assert len(flags) == 1
    return [frames_of({**batch, "images": [0]})[0] for batch in batches]


def test_bad_views_are_replaced_by_views_of_one_light() -> None:
    yaw, light = np.array([-15, 0, 15, 15, 0, -15]), np.array([1, 1, 1, 2, 2, 2])
    assert {tuple(f) for f in read(Views(), Source(yaw=yaw, light=light), 20)} == {
        (0, 1, 2),
        (5, 4, 3),
    }
    left = read(Views(), Source(spoil=spoilt(1), yaw=yaw, light=light), 20)
    assert {tuple(frames) for frames in left} == {(5, 4, 3)}


def test_bad_lights_are_replaced_by_others_of_the_same_camera() -> None:
    yaw, light = np.array([0, 0, 0, 30, 30, 30]), np.array([1, 2, 3, 1, 2, 3])
    source = Source(spoil=spoilt(1, 3, 4), yaw=yaw, light=light)
    for frames in read(Lights(), source, 20, frames_per_clip=2):
        assert set(frames) == {0, 2}


def test_bad_frames_of_even_yaws_are_replaced_by_the_nearest() -> None:
    yaw = np.array([-60, -50, 0, 10, 50, 60])
    assert read(EvenYaw(), Source(yaw=yaw), 3) == [[0, 2, 5]] * 3
    assert read(EvenYaw(), Source(spoil=spoilt(0, 5), yaw=yaw), 3) == [[1, 2, 4]] * 3


def test_merged_clips_are_read_from_their_own() -> None:
    class Person(Source):
        def clips(self, split: str) -> list[Clip]:
            return [
                replace(c, identity="one") for c in super().clips(split)[: 5 * (split == "train")]
            ]

    data = faces(Person(yaw=np.arange(6.0)), frames=EvenYaw(), frames_per_clip=6)
    plain = faces(frames=Spread(), frames_per_clip=6).train_dataloader().dataset
    assert len(data.train_dataloader().dataset) == 1
    batch = data.train_dataloader().dataset[Draw(0, 0)]
    assert [name[-1] for name in batch["sample_ids"]] == list("012345")
    for number, name in enumerate(batch["sample_ids"]):
        home = plain[Draw(0, int(name[2]))]
        assert (batch["images"][number] == home["images"][home["sample_ids"].index(name)]).all()


def test_multi_view_says_whether_the_views_are_there() -> None:
    yaw = np.array([-15, 0, 15, 0, 0, 0])
    good, bad = (
        faces(Source(spoil=spoilt(*numbers), yaw=yaw), frames=Views()) for numbers in ((), (2,))
    )
    assert good.train_dataloader().dataset[Draw(0, 0)]["multi_view"].item() is True
    batch = bad.train_dataloader().dataset[Draw(0, 0)]
    assert batch["multi_view"].item() is False
    assert "multi_view" not in faces().train_dataloader().dataset[Draw(0, 0)]
    test = next(iter(good.test_dataloader()))
    assert test["multi_view"].tolist() == [True, True]
    assert frames_of(test)[0][0] == 0
    assert frames_of(test)[0][2] == 2


def test_evaluation_does_not_depend_on_the_seed() -> None:
    yaw = np.array([-15, 0, 15, 15, 0, -15])
    found = [
        frames_of(next(iter(faces(Source(yaw=yaw), frames=Views(), seed=s).test_dataloader())))
        for s in range(6)
    ]
    assert all(frames == found[0] for frames in found)


def test_the_whole_clip_in_its_order_without_bad_frames() -> None:
    options = {"clips_per_batch": 1, "frames": Whole()}
    for loader in ("train_dataloader", "test_dataloader"):
        data = faces(Source(spoil=spoilt(2)), **options)
        for batch in getattr(data, loader)():
            assert frames_of(batch) == [[0, 1, 3, 4, 5]]
    every = faces(clips_per_batch=1, frames=Whole(every=4))
    assert frames_of(next(iter(every.train_dataloader()))) == [[0, 4]]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"frames": Views(), "frames_per_clip": 4}, "Views: in training, 4 frames per clip"),
        (
            {"frames": Views(), "eval_frames_per_clip": 1},
            "Views: in evaluation, 1 frames per clip",
        ),
        ({"frames": Whole()}, "Whole: in training, 2 clips per batch; wanted 1"),
    ],
)
def test_senseless_numbers_are_an_error(options: dict, text: str) -> None:
    with pytest.raises(DataError, match=text):
        faces(**options)


@pytest.mark.parametrize("choice", [Views(), Lights()])
def test_a_choice_that_suits_no_clip_is_an_error(choice: Choice) -> None:
    name = type(choice).__name__
    with pytest.raises(DataError, match=f"none of 5 clips.*'train' has 3 frames as {name} wants"):
        faces(frames=choice).train_dataloader()
