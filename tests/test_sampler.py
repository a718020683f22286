from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from datamodules.sampler import Draw, EpochSampler, ResumableLoader


def epochs(sampler: EpochSampler, count: int) -> list[list[Draw]]:
    drawn = []
    for epoch in range(count):
        sampler.start_at(epoch, 0)
        drawn.append(list(sampler))
    return drawn


class Echo(Dataset):
    """Hands out what it is asked for."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, draw: Draw) -> torch.Tensor:
        return torch.tensor(draw)


def loader(workers: int = 0, **options: object) -> ResumableLoader:
    sampler = EpochSampler([10], length=12, seed=3)
    context = "fork" if workers else None
    return ResumableLoader(
        dataset=Echo(),
        batch_size=3,
        sampler=sampler,
        num_workers=workers,
        multiprocessing_context=context,
        **options,
    )


def test_all_clips_are_drawn_equally_often_whatever_the_length_of_an_epoch() -> None:
    drawn = [draw for epoch in epochs(EpochSampler([10], length=4, seed=1), 15) for draw in epoch]
    assert Counter(draw.clip for draw in drawn) == dict.fromkeys(range(10), 6)
    assert len(set(drawn)) == 60  # (turn, clip) seeds the clip: never twice the same
    assert [draw.turn for draw in drawn] == sorted(draw.turn for draw in drawn)


def test_order_depends_on_seed_and_epoch() -> None:
    first = epochs(EpochSampler([50], length=50, seed=1), 2)
    assert epochs(EpochSampler([50], length=50, seed=1), 2) == first
    assert epochs(EpochSampler([50], length=50, seed=2), 2) != first
    assert [d.clip for d in first[0]] != [d.clip for d in first[1]]
    assert [d.clip for d in first[0]] != sorted(d.clip for d in first[0])


def test_processes_share_the_stream() -> None:
    alone = epochs(EpochSampler([9], length=6, seed=4), 3)
    pair = [epochs(EpochSampler([9], 3, seed=4, rank=r, world_size=2), 3) for r in (0, 1)]
    for epoch, whole in enumerate(alone):
        dealt = [draw for both in zip(*(p[epoch] for p in pair), strict=True) for draw in both]
        assert dealt == whole


def test_in_order_every_clip_comes_once_to_one_process() -> None:
    parts = [list(EpochSampler([5, 2], shuffle=False, rank=r, world_size=2)) for r in (0, 1)]
    assert parts[0] == [Draw(0, 0), Draw(0, 2), Draw(0, 4), Draw(0, 1, part=1)]
    # else a process would wait for the other
    assert parts[1] == [Draw(0, 1), Draw(0, 3), Draw(0, 0, part=1), Draw(0, 0, repeated=True)]
    assert list(EpochSampler([3], shuffle=False)) == [Draw(0, 0), Draw(0, 1), Draw(0, 2)]


@pytest.mark.parametrize("count", range(1, 14))
@pytest.mark.parametrize("batch", [1, 2, 4])
def test_in_order_all_processes_have_equally_many_batches(count: int, batch: int) -> None:
    samplers = [
        EpochSampler([0, count], shuffle=False, rank=r, world_size=3, batch_size=batch)
        for r in range(3)
    ]
    assert len({-(-len(sampler) // batch) for sampler in samplers}) == 1
    drawn = [list(sampler) for sampler in samplers]
    assert [len(draws) for draws in drawn] == [len(sampler) for sampler in samplers]
    once = sorted(draw.clip for draws in drawn for draw in draws if not draw.repeated)
    assert once == list(range(count))
    for draws in drawn:
        for place, draw in enumerate(draws):
            assert draw.part == 1
            assert not draw.repeated or place % batch == 0  # alone in its batch


@pytest.mark.parametrize("shares", [[1, 1], [3, 1], [2, 3, 5]])
def test_parts_have_their_shares_spread_evenly(shares: list[int]) -> None:
    counts = [7, 4, 11][: len(shares)]
    sampler = EpochSampler(counts, 30, shares=shares)
    drawn = [draw for epoch in epochs(sampler, 4) for draw in epoch]
    parts = np.array([draw.part for draw in drawn])
    for part, share in enumerate(shares):
        wanted = np.arange(1, 121) * share / sum(shares)
        assert np.abs((parts == part).cumsum() - wanted).max() <= 1
        clips = [(draw.turn, draw.clip) for draw in drawn if draw.part == part]
        whole = len(clips) // counts[part] * counts[part]
        assert Counter(clip for _, clip in clips[:whole]) == dict.fromkeys(
            range(counts[part]), whole // counts[part]
        )
        assert len(set(clips)) == len(clips)


@pytest.mark.parametrize("after", [0, 1, 3, 4, 5, 8])
@pytest.mark.parametrize(("workers", "later_workers"), [(0, 0), (2, 2), (2, 0)])
def test_resuming_gives_the_batches_that_were_to_come(
    after: int, workers: int, later_workers: int
) -> None:
    whole = loader()
    expected = [torch.stack(list(whole)) for _ in range(4)]
    first = loader(workers)
    seen = 0
    while seen < after:
        for _ in first:  # 4 batches an epoch
            seen += 1
            if seen == after:
                break
    state = first.state_dict()
    assert all(isinstance(value, int) for value in state.values())  # loads with weights_only
    second = loader(later_workers)
    second.load_state_dict(state)
    rest = list(second) + list(second)
    assert torch.equal(torch.stack(rest), torch.cat(expected)[after : after + len(rest)])


def test_persistent_workers_and_an_epoch_left_early() -> None:
    plain, persistent = loader(), loader(2, persistent_workers=True)
    for batches in (4, 2, 4, 4):
        a, b = (torch.stack(list(islice(data, batches))) for data in (plain, persistent))
        assert torch.equal(a, b)
    assert plain.state_dict() == persistent.state_dict() == {"epoch": 3, "batches": 4}


def test_an_iterator_that_is_not_used_changes_nothing() -> None:
    data = loader()
    data.load_state_dict({"epoch": 5, "batches": 2})
    iter(data)  # Lightning makes one before it knows whether it will be used
    used = torch.stack(list(data))
    data.load_state_dict({"epoch": 5, "batches": 0})
    assert torch.equal(torch.stack(list(data))[2:], used)
