import pytest
import torch

from core.affine import affine


def case(dtype=torch.float32, batch=(2, 3), points=700, rows=4):
    return (
        torch.randn(*batch, points, 3, dtype=dtype, requires_grad=True),
        torch.randn(*batch, rows, 3, dtype=dtype, requires_grad=True),
        torch.randn(*batch, rows, dtype=dtype, requires_grad=True),
    )


def test_worked_by_hand():
    """A quarter turn about z, then one to the right."""
    turn = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    found = affine(torch.tensor([[1.0, 2, 3]]), turn, torch.tensor([1.0, 0, 0]))
    assert found.tolist() == [[-1, 1, 3]]


@pytest.mark.parametrize("rows", [1, 2, 3, 4])
def test_equals_the_product_of_matrices(rows):
    inputs = case(rows=rows)
    weights = torch.randn(2, 3, 700, rows)
    found = affine(*inputs)
    points, matrix, offset = (tensor.double() for tensor in inputs)
    expected = torch.einsum("...ij,...nj->...ni", matrix, points) + offset[..., None, :]
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)
    ours = torch.autograd.grad((found * weights).sum(), inputs)
    theirs = torch.autograd.grad((expected * weights).sum(), inputs)
    torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-4)


def test_gradient_in_float64():
    inputs = case(torch.float64, (2,), 5, 2)
    assert torch.autograd.gradcheck(affine, inputs)
    assert torch.autograd.gradcheck(affine, inputs[:2])


def test_strided_points_and_gradients():
    points, matrix, offset = case(batch=(2,))
    apart = points.detach().mT.contiguous().mT.requires_grad_()
    weights = torch.randn(2, 4, 700).mT
    results = []
    for leaf in (points, apart):
        loss = (affine(leaf, matrix, offset) * weights).sum()
        results.append(torch.autograd.grad(loss, [leaf, matrix, offset]))
    torch.testing.assert_close(*results)


def test_the_same_for_any_number_of_threads(monkeypatch):
    monkeypatch.setattr("core.blocks.FEW", 0)
    inputs = case(batch=(5,))
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found = affine(*inputs)
            results.append((found, *torch.autograd.grad(found.square().sum(), inputs)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_no_points_and_no_images():
    assert affine(torch.zeros(2, 0, 3), torch.zeros(2, 4, 3)).shape == (2, 0, 4)
    assert affine(torch.zeros(0, 5, 3), torch.zeros(0, 4, 3)).shape == (0, 5, 4)


@pytest.mark.parametrize(
    "shapes",
    [
        ((2, 9, 4), (2, 3, 3), (2, 3)),
        ((2, 9, 2), (2, 3, 3), (2, 3)),
        ((2, 9, 3), (1, 3, 3), (1, 3)),
        ((2, 9, 3), (2, 3, 4), (2, 3)),
        ((2, 9, 3), (2, 3, 3), (2, 4)),
    ],
)
def test_shapes_that_do_not_belong_together_are_an_error(shapes):
    """The kernels check no bounds; without the tests' checks of types nothing else would."""
    function = getattr(affine, "__wrapped__", affine)
    with pytest.raises(ValueError, match=r"need a matrix|does not belong"):
        function(*(torch.zeros(shape) for shape in shapes))
