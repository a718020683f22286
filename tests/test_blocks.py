"""Points go into rows and back unchanged, and each point is in one piece."""

import numpy as np
import pytest
import torch

from core.blocks import BLOCK, PIECES, are_many, laid_out, new, pieces, read, write


@pytest.mark.parametrize("components", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("in_planes", [False, True])
def test_rows_hold_the_components_and_zeros_after_them(components, in_planes):
    values = torch.randn(2, BLOCK + 9, components)
    if in_planes:
        values = values.mT.contiguous().mT
    flat, planar = laid_out(values)
    back = torch.full_like(flat, 7.0)
    work = np.full((components + 4) * BLOCK, np.nan, np.float32)
    for start, count in ((0, BLOCK), (BLOCK, 9)):
        arguments = (BLOCK + 9, start, count, components, planar, 2 * BLOCK, work)
        read(flat[1].numpy(), *arguments)
        rows = torch.from_numpy(work).view(-1, BLOCK)[2 : 2 + components]
        assert torch.equal(rows[:, :count], values[1, start : start + count].T)
        assert (rows[:, count:] == 0).all()
        write(back[1].numpy(), *arguments)
    assert torch.equal(back[1], flat[1])
    assert (back[0] == 7).all()


@pytest.mark.parametrize("components", [1, 2, 3, 4])
@pytest.mark.parametrize("planar", [False, True])
def test_what_is_written_to_is_no_copy(components, planar):
    points = torch.randn(3, 50, 3)
    result = new(points, components, planar)
    assert result.shape == (3, 50, components)
    assert laid_out(result)[0].data_ptr() == result.data_ptr()


def test_points_that_lie_as_they_should_are_not_copied():
    points = torch.randn(3, 50, 3)
    in_planes = points.mT.contiguous().mT
    assert laid_out(points)[0].data_ptr() == points.data_ptr()
    assert laid_out(in_planes)[0].data_ptr() == in_planes.data_ptr()
    assert torch.equal(laid_out(points[:, ::2])[0].view(3, 3, 25).mT, points[:, ::2])


@pytest.mark.parametrize("images", [0, 1, 3, 16, 100])
@pytest.mark.parametrize("points", [0, 1, BLOCK, BLOCK + 1, 10_000])
def test_pieces_are_whole_blocks_that_cover_the_points(images, points):
    parts, size = pieces(images, points)
    assert size % BLOCK == 0
    assert (parts - 1) * size < max(1, points) <= parts * size
    assert parts == 1 or images * parts <= 2 * PIECES


def test_few_points_are_for_one_thread():
    assert not are_many(torch.zeros(2, 100, 3))
    assert are_many(torch.zeros(1, 3).expand(16, 50_000, 3))


def test_pieces_are_the_same_for_any_number_of_threads():
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append([pieces(images, 5000) for images in range(20)])
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1]
