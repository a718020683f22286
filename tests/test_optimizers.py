"""Muon's orthogonalization, against singular values and timm's own iteration."""

import pytest
import torch
from timm.optim import muon
from torch import nn

from methods.optimizers import Part, optimizer_of_parts, orthogonalized

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


def test_the_optimizer_uses_it_and_leaves_timm_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[torch.Size] = []

    def counted(matrix, *args, **kwargs):
        calls.append(matrix.shape)
        return orthogonalized(matrix, *args, **kwargs)

    monkeypatch.setattr("methods.optimizers.orthogonalized", counted)
    theirs = muon.zeropower_via_newtonschulz
    layer = nn.Conv2d(8, 16, 3)
    part = Part(layer.parameters(), [layer.weight])
    optimizer = optimizer_of_parts([part], 1e-3, 0.1, None)["optimizer"]
    before = layer.weight.detach().clone(), layer.bias.detach().clone()
    layer(torch.randn(2, 8, 5, 5)).square().sum().backward()
    optimizer.step()
    assert calls == [(16, 72)]
    assert muon.zeropower_via_newtonschulz is theirs
    turned = (layer.weight.detach() - before[0]).flatten(1) / 0.1
    assert torch.linalg.svdvals(turned).max() < 1.5  # of the raw gradient: hundreds
    assert not torch.equal(layer.bias.detach(), before[1])  # by Adam
