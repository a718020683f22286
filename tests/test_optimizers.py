"""Muon's orthogonalization, against singular values and timm's own iteration."""

from copy import deepcopy

import pytest
import torch
from timm.optim import muon
from torch import nn

from methods.muon import orthogonalized
from methods.optimizers import Part, optimizer_of_parts

COEFFICIENTS = [(3.4445, -4.775, 2.0315), (2.0, -1.5, 0.5)]


@pytest.mark.parametrize("shape", [(32, 144), (128, 1152), (64, 20), (7, 7)])
@pytest.mark.parametrize("steps", [1, 3, 5])
def test_the_iteration_is_the_published_one(shape: tuple[int, int], steps: int) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    theirs = muon.zeropower_via_newtonschulz(
        matrix, steps, COEFFICIENTS, eps=1e-7, dtype=torch.float64
    )
    ours = orthogonalized(matrix, steps, COEFFICIENTS, eps=1e-7)
    torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=1e-5)


def test_singular_vectors_stay_and_values_come_near_one() -> None:
    generator = torch.Generator().manual_seed(1)
    left, _ = torch.linalg.qr(torch.randn(16, 16, generator=generator))
    right, _ = torch.linalg.qr(torch.randn(40, 16, generator=generator))
    values = torch.logspace(-1.5, 0, 16)
    found = orthogonalized(left * values @ right.mT, 5, [(3.4445, -4.775, 2.0315)], eps=1e-7)
    core = left.mT @ found @ right
    assert (core.diagonal() > 0.6).all()
    assert (core.diagonal() < 1.3).all()
    assert (core - core.diagonal().diag()).abs().max() < 1e-4


def test_a_zero_gradient_moves_nothing() -> None:
    assert torch.equal(orthogonalized(torch.zeros(4, 9), 3, COEFFICIENTS, 1e-7), torch.zeros(4, 9))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """The shapes that were orthogonalized."""
    shapes: list[torch.Size] = []

    def counted(matrix, *args, **kwargs):
        shapes.append(matrix.shape)
        return orthogonalized(matrix, *args, **kwargs)

    monkeypatch.setattr("methods.muon.orthogonalized", counted)
    return shapes


def convolution() -> tuple[nn.Conv2d, torch.optim.Optimizer]:
    layer = nn.Conv2d(8, 16, 3)
    part = Part(layer.parameters(), [layer.weight])
    return layer, optimizer_of_parts([part], 1e-3, 0.1, None)["optimizer"]


def test_the_optimizer_uses_it_and_leaves_timm_alone(calls: list[torch.Size]) -> None:
    theirs = muon.zeropower_via_newtonschulz
    layer, optimizer = convolution()
    before = layer.weight.detach().clone(), layer.bias.detach().clone()

    def closure() -> torch.Tensor:
        assert muon.zeropower_via_newtonschulz is theirs
        loss = layer(torch.randn(2, 8, 5, 5)).square().sum()
        loss.backward()
        return loss.detach()

    assert optimizer.step(closure) > 0
    assert calls == [(16, 72)]
    assert muon.zeropower_via_newtonschulz is theirs
    turned = (layer.weight.detach() - before[0]).flatten(1) / 0.1
    assert torch.linalg.svdvals(turned).max() < 1.5  # of the raw gradient: hundreds
    assert not torch.equal(layer.bias.detach(), before[1])  # by Adam


def test_after_an_error_timm_is_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*args, **kwargs):
        raise FloatingPointError

    monkeypatch.setattr("methods.muon.orthogonalized", failing)
    theirs = muon.zeropower_via_newtonschulz
    layer, optimizer = convolution()
    layer(torch.randn(2, 8, 5, 5)).square().sum().backward()
    with pytest.raises(FloatingPointError):
        optimizer.step()
    assert muon.zeropower_via_newtonschulz is theirs


def test_a_copy_of_the_optimizer_steps_as_it_does(calls: list[torch.Size]) -> None:
    layer, optimizer = convolution()
    layer(torch.randn(2, 8, 5, 5)).square().sum().backward()
    copied = deepcopy(optimizer)
    (weight,) = copied.param_groups[0]["params"]
    weight.grad = layer.weight.grad.clone()
    optimizer.step()
    copied.step()
    assert calls == [(16, 72)] * 2
    assert torch.equal(weight, layer.weight)
