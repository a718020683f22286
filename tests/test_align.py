import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from core.align import procrustes


def cloud(*batch, n=30):
    return torch.randn(*batch, n, 3, dtype=torch.float64) * torch.tensor([60.0, 80.0, 40.0])


def moved(points, scale=1.7):
    rotation = torch.from_numpy(Rotation.random(rng=np.random.default_rng(0)).as_matrix())
    translation = torch.tensor([5.0, -40.0, 900.0], dtype=torch.float64)
    return scale * points @ rotation.T + translation, rotation, translation


def test_recovers_a_similarity_exactly():
    source = cloud()
    target, rotation, translation = moved(source)
    found = procrustes(source, target)
    torch.testing.assert_close(found.scale, torch.tensor(1.7).double())
    torch.testing.assert_close(found.rotation, rotation)
    torch.testing.assert_close(found.translation, translation)
    torch.testing.assert_close(found.apply(source), target)


def test_rigid_keeps_the_scale_and_agrees_with_scipy():
    source = cloud()
    target = moved(source, 1.2)[0] + torch.randn_like(source) * 5
    found = procrustes(source, target, scale=False)
    assert found.scale == 1
    centred = (x - x.mean(0) for x in (target.numpy(), source.numpy()))
    expected, _ = Rotation.align_vectors(*centred)
    np.testing.assert_allclose(found.rotation.numpy(), expected.as_matrix(), atol=1e-9)


def test_is_the_least_squares_optimum():
    source = cloud()
    target = moved(source)[0] + torch.randn_like(source) * 8
    found = procrustes(source, target)

    def error(scale=1.0, angle=(0.0, 0.0, 0.0), shift=(0.0, 0.0, 0.0)):
        turn = torch.from_numpy(Rotation.from_rotvec(angle).as_matrix())
        points = found.scale * scale * source @ (turn @ found.rotation).T + found.translation
        return (points + torch.tensor(shift) - target).square().sum()

    best = error()
    for step in (-1e-3, 1e-3):
        assert error(scale=1 + step) > best
        for axis in np.eye(3):
            assert error(angle=axis * step) > best
            assert error(shift=tuple(axis * step)) > best


def test_a_mirrored_face_does_not_fit():
    source = cloud()
    target = source * torch.tensor([-1.0, 1, 1])
    found = procrustes(source, target)
    torch.testing.assert_close(torch.linalg.det(found.rotation), torch.tensor(1.0).double())
    assert (found.apply(source) - target).norm(dim=-1).mean() > 10


def test_the_fit_to_a_mirrored_face_is_the_best_without_a_reflection():
    """Rotation by scipy; the size that fits best with it has a closed form."""
    source = cloud()
    target = moved(source * torch.tensor([-1.0, 1, 1]))[0] + torch.randn_like(source) * 5
    found = procrustes(source, target)
    x, y = ((points - points.mean(0)).numpy() for points in (source, target))
    expected = Rotation.align_vectors(y, x)[0]
    np.testing.assert_allclose(found.rotation.numpy(), expected.as_matrix(), atol=1e-9)
    size = (expected.apply(x) * y).sum() / (x**2).sum()
    assert float(found.scale) == pytest.approx(size, rel=1e-9)


def test_on_a_gpu_it_is_the_same_and_stays_there(gpu):
    source, target = cloud(2, 3), cloud(2, 3)
    wanted, found = procrustes(source, target), procrustes(source.to(gpu), target.to(gpu))
    assert all(value.device.type == gpu.type for value in vars(found).values())
    moved_there = found.apply(source.to(gpu)).cpu()
    torch.testing.assert_close(moved_there, wanted.apply(source), rtol=0, atol=1e-9)
    with pytest.raises(ValueError, match="one line"):
        procrustes(LINE.to(gpu), LINE.to(gpu))


def test_planar_points_have_no_reflection_either():
    source = cloud() * torch.tensor([1.0, 1.0, 0.0])
    target, rotation, _ = moved(source)
    torch.testing.assert_close(procrustes(source, target).rotation, rotation)


def test_batches_are_independent_and_keep_their_dtype():
    source = cloud(2, 3).float()
    target = moved(source.double())[0].float() + torch.randn(2, 3, 30, 3)
    together, alone = procrustes(source, target), procrustes(source[1, 2], target[1, 2])
    assert together.apply(source).dtype == torch.float32
    torch.testing.assert_close(together.rotation[1, 2], alone.rotation)
    torch.testing.assert_close(together.apply(source)[1, 2], alone.apply(source[1, 2]))


def test_has_the_right_gradient():
    source, target = cloud(n=5) / 50, cloud(n=5) / 50

    def aligned(source, target):
        return procrustes(source, target).apply(source)

    assert torch.autograd.gradcheck(aligned, (source.requires_grad_(), target.requires_grad_()))


LINE = torch.linspace(-100, 100, 20)[:, None] * torch.tensor([0.3, 0.5, -0.8]) + 70


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (LINE, "one line"),
        (torch.full((20, 3), 3.3), "one line"),
        (torch.randn(2, 3), "three points"),
        (torch.full((20, 3), torch.nan), "NaN"),
    ],
)
def test_degenerate_points_raise(points, message):
    good = torch.randn(len(points), 3)
    with pytest.raises(ValueError, match=message):
        procrustes(points, good + torch.tensor([0.0, 0, 5]))
    with pytest.raises(ValueError, match=message):
        procrustes(good, points)


def test_one_degenerate_set_in_a_batch_raises_with_its_count():
    points = torch.randn(3, 20, 3)
    points[1] = LINE
    with pytest.raises(ValueError, match="1 of 3"):
        procrustes(points, torch.randn(3, 20, 3))
