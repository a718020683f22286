"""Attributes at pixels against plain operations, with their gradients."""

import pytest
import torch

from core.rasterize import Fragments, interpolate, rasterize
from tests.fakes.meshes import sphere

TRIANGLE = torch.tensor([[[-1.0, -1, 0.5, 1], [1, -1, 0.5, 1], [-1, 1, 0.5, 1]]])
ONE = torch.tensor([[0, 1, 2]])


def plain(attributes, fragments, triangles):
    attributes = attributes.expand(len(fragments.depth), -1, -1)
    weights = fragments.barycentric
    weights = torch.cat([weights, 1 - weights.sum(-1, keepdim=True)], -1)
    image = torch.arange(len(attributes))[:, None, None, None]
    corners = attributes[image, triangles[fragments.triangle_index.clamp(min=0)]]
    covered = fragments.triangle_index >= 0
    return (weights[..., None] * corners).sum(-2) * covered[..., None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("shared", "channels"), [(False, 1), (True, 2), (False, 3), (True, 7)])
def test_equals_plain_operations(shared, channels, dtype):
    clip, triangles = sphere()
    drawn = rasterize(clip.to(dtype), triangles, (40, 44))
    attributes = torch.randn(1 if shared else 2, clip.shape[1], channels, dtype=dtype)
    weight = torch.randn(2, 40, 44, channels, dtype=dtype)
    results = []
    for function in (interpolate, plain):
        values = attributes.clone().requires_grad_()
        barycentric = drawn.barycentric.clone().requires_grad_()
        fragments = Fragments(barycentric, drawn.depth, drawn.triangle_index)
        pixels = function(values, fragments, triangles)
        (pixels * weight).sum().backward()
        results.append((pixels, values.grad, barycentric.grad))
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)


def test_either_gradient_alone_is_the_one_of_both():
    clip, triangles = sphere()
    drawn = rasterize(clip, triangles, (30, 30))
    attributes = torch.randn(2, clip.shape[1], 3)
    weight = torch.randn(2, 30, 30, 3)

    def gradients(*wanted):
        leaves = [attributes.clone(), drawn.barycentric.clone()]
        for place in wanted:
            leaves[place].requires_grad_()
        fragments = Fragments(leaves[1], drawn.depth, drawn.triangle_index)
        loss = (interpolate(leaves[0], fragments, triangles) * weight).sum()
        return torch.autograd.grad(loss, [leaves[place] for place in wanted])

    both = gradients(0, 1)
    assert torch.equal(*gradients(0), both[0])
    assert torch.equal(*gradients(1), both[1])


def test_any_memory_layout_is_accepted():
    clip, triangles = sphere()
    drawn = rasterize(clip, triangles, (30, 34))
    attributes = torch.randn(2, 3, clip.shape[1]).mT
    upside_down = Fragments(
        drawn.barycentric.flip(1),
        drawn.depth.flip(1),
        drawn.triangle_index.mT.contiguous().mT.flip(1),
    )
    expected = interpolate(attributes.contiguous(), drawn, triangles)
    assert torch.equal(interpolate(attributes, upside_down, triangles).flip(1), expected)


def test_gradient_in_float64():
    clip, triangles = sphere(columns=6, rows=4, batch=2)
    drawn = rasterize(clip.double(), triangles, (5, 6))
    attributes = torch.randn(2, clip.shape[1], 2, dtype=torch.float64, requires_grad=True)
    # weights of uncovered pixels have no effect, so that only the covered ones are disturbed
    covered = drawn.triangle_index >= 0
    weights = drawn.barycentric[covered].clone().requires_grad_()

    def pixels(attributes, weights):
        barycentric = torch.zeros_like(drawn.barycentric)
        barycentric = barycentric.masked_scatter(covered[..., None].expand_as(barycentric), weights)
        return interpolate(
            attributes, Fragments(barycentric, drawn.depth, drawn.triangle_index), triangles
        )

    assert covered.sum() > 10
    assert torch.autograd.gradcheck(pixels, (attributes, weights))


@pytest.mark.parametrize("shared", [False, True])
def test_same_gradient_for_any_number_of_threads(shared):
    clip, triangles = sphere(batch=5)
    drawn = rasterize(clip, triangles, (48, 48))
    attributes = torch.randn(1 if shared else 5, clip.shape[1], 3)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            values = attributes.clone().requires_grad_()
            interpolate(values, drawn, triangles).square().sum().backward()
            results.append(values.grad)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_errors_say_what_is_wrong():
    fragments = rasterize(TRIANGLE, ONE, (4, 4))
    with pytest.raises(ValueError, match="given for 2 images"):
        interpolate(torch.zeros(2, 3, 1), fragments, ONE)
    with pytest.raises(IndexError, match="there are 2 vertices"):
        interpolate(torch.zeros(1, 2, 1), fragments, ONE)
    with pytest.raises(IndexError, match="beyond the 0 given"):
        interpolate(torch.zeros(1, 3, 1), fragments, ONE[:0])
