"""The soft census transform against a loop, what it does not see, and where its gradient leads."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from core.census import (
    BIT,
    CONTRAST,
    NOISE,
    _Distance,
    census_distance,
    census_distance_plain,
    census_loss,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def grey(values: Tensor) -> Tensor:
    return values.unsqueeze(-3).expand(*values.shape[:-2], 3, *values.shape[-2:])


def texture(*batch: int, size: int = 32) -> Tensor:
    """Smooth random images in about [0.2, 0.8]."""
    coarse = torch.rand(math.prod(batch), 3, size // 4, size // 4)
    fine = F.interpolate(coarse, size=(size, size), mode="bicubic")
    return (0.2 + 0.6 * fine).view(*batch, 3, size, size)


def by_loop(image: list[list[float]], target: list[list[float]], row: int, column: int) -> float:
    """The distance at one pixel, as its docstring has it."""

    def signs(grey: list[list[float]]) -> list[float]:
        rows, columns = len(grey), len(grey[0])
        differences = [
            grey[min(max(row + i, 0), rows - 1)][min(max(column + j, 0), columns - 1)]
            - grey[row][column]
            for i in range(-3, 4)
            for j in range(-3, 4)
            if i or j
        ]
        mean = sum(d * d for d in differences) / 48
        return [d / math.sqrt(d * d + NOISE**2 + CONTRAST**2 * mean) for d in differences]

    pairs = zip(signs(image), signs(target), strict=True)
    return sum((s - t) ** 2 / (BIT + (s - t) ** 2) for s, t in pairs)


def test_agrees_with_a_loop():
    image, target = torch.rand(2, 5, 9).double()
    found = census_distance(grey(image), grey(target))[0]
    wanted = [
        [by_loop(image.tolist(), target.tolist(), row, column) for column in range(9)]
        for row in range(5)
    ]
    torch.testing.assert_close(found, torch.tensor(wanted).double())


def test_one_dot_by_hand():
    """A black pixel in white against a white one in black: all 48 signs are opposite."""
    image = torch.ones(15, 15)
    image[7, 7] = 0
    off = 2 / math.sqrt(1.25 + NOISE**2)
    wanted = 48 * off**2 / (BIT + off**2)
    assert wanted > 46
    found = census_distance(grey(image), grey(1 - image))[0]
    assert found[7, 7].item() == pytest.approx(wanted, rel=1e-4)
    assert not found[:4].any()  # nothing within 3 pixels
    assert not census_distance(grey(image), grey(image)).any()


def test_the_kernels_are_the_plain_operations():
    pair = torch.rand(2, 3, 17, 21).double().requires_grad_()
    fused, plain = _Distance.apply(*pair), census_distance_plain(*pair)
    torch.testing.assert_close(fused, plain)
    gradient = torch.randn_like(fused)
    torch.testing.assert_close(
        *(
            torch.autograd.grad(each, pair, gradient, retain_graph=True)[0]
            for each in (fused, plain)
        )
    )
    narrow = torch.rand(2, 1, 3, 6, 7).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda both: census_distance(*both), narrow)


def test_light_does_not_matter():
    """Offsets not at all; gains no more than noise does, and far less than another picture."""
    image, other = texture(2, 4)
    torch.testing.assert_close(
        census_distance(image + 0.2, other), census_distance(image, other), rtol=1e-3, atol=1e-3
    )
    unrelated = census_distance(image, other).mean()
    assert unrelated > 10
    for gain in (0.5, 0.7, 1.4):
        assert census_distance(gain * image, image).mean() < 0.003 * unrelated
        changed = census_distance(gain * image + 0.1, other).mean()
        assert changed.item() == pytest.approx(unrelated.item(), rel=0.01)


def test_noise_in_flat_areas_counts_little():
    flat = torch.full((1, 3, 16, 16), 0.5)
    noisy = flat + 0.05 / 255 * torch.randn_like(flat)
    textured = texture(1, size=16)
    assert census_distance(noisy, flat).mean() < 0.1 * census_distance(textured, flat).mean()


def test_the_gradient_leads_to_the_target():
    image, target = texture(2, 1)
    image = image.clone().requires_grad_()
    weight = torch.ones(1, 1, 32, 32)
    optimizer = torch.optim.Adam([image], lr=0.02)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = census_loss(image, target, weight)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[5] < losses[0]
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.parametrize("off", [-2.0, -0.5, 0.5, 2.0])
def test_the_gradient_moves_a_picture_into_place(off):
    """Also under other light: the loss falls towards the place where the pictures agree."""
    waves = torch.randn(40, 2) / 5
    phases = 6 * torch.rand(40)
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")

    def at(shift: Tensor | float) -> Tensor:
        angles = waves[:, :1, None] * (x - shift) + waves[:, 1:, None] * y + phases[:, None, None]
        return grey(0.5 + 0.3 * angles.sin().mean(0))

    shift = torch.tensor(off, requires_grad=True)
    census_loss(at(shift), 0.7 * at(0.0) + 0.1, torch.ones(1, 32, 32)).backward()
    assert shift.grad is not None
    assert shift.grad * off > 0


def test_weights():
    image, target = texture(2, 3, size=16)
    weight = torch.ones(3, 1, 16, 16)
    weight[0, :, :5] = 5
    weight[1] = 0
    distance = census_distance(image, target)
    first = (distance[0] * weight[0]).sum() / weight[0].sum()
    wanted = (first + distance[2].mean()) / 2
    torch.testing.assert_close(census_loss(image, target, weight), wanted)
    image = image.clone().requires_grad_()
    nothing = census_loss(image, target, torch.zeros_like(weight))
    nothing.backward()
    assert nothing == 0
    assert image.grad is not None
    assert not image.grad.any()


def test_flat_black_and_half_precision():
    black = torch.zeros(1, 3, 12, 12, requires_grad=True)
    distance = census_distance(black, texture(1, size=12))
    distance.sum().backward()
    assert distance.isfinite().all()
    assert black.grad is not None
    assert black.grad.isfinite().all()
    assert black.grad.any()
    image, target = texture(2, 1, size=16)
    half = census_distance(image.bfloat16(), target.bfloat16())
    assert half.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(
            census_distance(image, target),
            census_distance(image.double(), target.double()).float(),
            rtol=1e-3,
            atol=1e-3,
        )
