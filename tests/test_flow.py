"""Lucas-Kanade on pictures whose motion is known; RAFT with random weights."""

import math

import pytest
import torch
from torch import Tensor
from torchvision.models.optical_flow import raft_large, raft_small

from core.errors import AssetNotFoundError, DataError
from core.flow import RaftFlow, flow_loss, lucas_kanade
from core.image import pixel_centres

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE = 72
INNER = slice(16, -16)  # what moves in at the border is not in both images


class Picture:
    """A sum of waves, known at any place."""

    def __init__(self, batch: int = 2, smoothness: float = 4.0, seed: int = 0) -> None:
        random = torch.Generator().manual_seed(seed)
        self.waves = torch.randn(batch, 60, 2, generator=random) / smoothness
        self.phases = 2 * math.pi * torch.rand(batch, 1, 1, 60, generator=random)

    def at(self, pixels: Tensor) -> Tensor:
        angles = torch.einsum("...c,bkc->b...k", pixels, self.waves) + self.phases
        return (0.5 + angles.sin().mean(-1))[:, None].expand(-1, 3, -1, -1)


def centres(size: int | tuple[int, int] = SIZE) -> Tensor:
    return pixel_centres(size, torch.zeros(()))


@pytest.mark.parametrize("smoothness", [2.5, 4.0])
@pytest.mark.parametrize("shift", [(0.25, 0.0), (-0.5, 0.3), (1.3, -0.8), (0.0, 2.6), (-3.7, 2.2)])
def test_shifts(smoothness, shift):
    picture, shift = Picture(smoothness=smoothness), torch.tensor(shift)
    flow = lucas_kanade(picture.at(centres()), picture.at(centres() - shift))
    off = (flow - shift).norm(dim=-1)[:, INNER, INNER]
    assert off.mean() < 0.1
    assert off.quantile(0.95) < 0.25


@pytest.mark.parametrize(
    ("degrees", "scale"), [(3, 1.0), (-5, 1.0), (0, 1.05), (0, 0.93), (4, 1.04)]
)
def test_rotations_and_scales(degrees, scale):
    angle, middle = math.radians(degrees), SIZE / 2
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    motion = scale * turn
    picture = Picture()
    back = (centres() - middle) @ torch.linalg.inv(motion).mT + middle
    flow = lucas_kanade(picture.at(centres()), picture.at(back))
    wanted = (centres() - middle) @ motion.mT + middle - centres()
    assert wanted[INNER, INNER].norm(dim=-1).max() > 1
    off = (flow - wanted).norm(dim=-1)[:, INNER, INNER]
    assert off.mean() < 0.15


def test_the_worked_number_on_any_size():
    picture = Picture()
    for size in ((41, 70), (50, 33), (96, 64)):
        where = centres(size)
        flow = lucas_kanade(picture.at(where), picture.at(where - torch.tensor([2.0, 0.0])))
        assert flow.shape == (2, *size, 2)
        middle = flow[:, size[0] // 2, size[1] // 2]
        torch.testing.assert_close(middle, torch.tensor([[2.0, 0.0]] * 2), atol=0.2, rtol=0)


def test_light_matters_little():
    picture, shift = Picture(), torch.tensor([1.2, -0.7])
    flow = lucas_kanade(picture.at(centres()), 0.6 * picture.at(centres() - shift) + 0.2)
    assert (flow - shift).norm(dim=-1)[:, INNER, INNER].mean() < 0.1


def test_what_has_no_weight_is_not_read():
    picture, shift = Picture(), torch.tensor([0.8, 0.5])
    first, second = picture.at(centres()), picture.at(centres() - shift)
    weight = torch.zeros(2, 1, SIZE, SIZE)
    weight[..., 12:60, 12:60] = 1
    flow = lucas_kanade(first, second, weight)
    off = (flow - shift).norm(dim=-1)
    assert off[:, 20:52, 20:52].mean() < 0.1
    noise = torch.rand(2, 2, 3, SIZE, SIZE)
    other = lucas_kanade(
        *(
            image.where(weight > 0, rand)
            for image, rand in zip((first, second), noise, strict=True)
        ),
        weight,
    )
    torch.testing.assert_close(other, flow)
    assert not torch.allclose(
        lucas_kanade(first, second.where(weight > 0, noise[1])), flow, atol=0.1
    )
    assert not lucas_kanade(first, second, 0 * weight).any()


def test_the_gradient_is_that_of_the_motion():
    """Where the second image moves by a hair, the flow follows."""
    picture = Picture(batch=1, smoothness=3.0)
    for start in ((0.0, 0.0), (1.4, -0.6)):
        shift = torch.tensor(start, requires_grad=True)
        flow = lucas_kanade(picture.at(centres()), picture.at(centres() - shift))
        mean = flow[0, INNER, INNER].mean((0, 1))
        slope = torch.stack(
            [torch.autograd.grad(each, shift, retain_graph=True)[0] for each in mean]
        )
        torch.testing.assert_close(slope, torch.eye(2), atol=0.15, rtol=0)
    # of the first image: the other way
    shift = torch.zeros(2, requires_grad=True)
    flow = lucas_kanade(picture.at(centres() - shift), picture.at(centres()))
    (slope,) = torch.autograd.grad(flow[0, INNER, INNER, 0].mean(), shift)
    torch.testing.assert_close(slope, torch.tensor([-1.0, 0.0]), atol=0.15, rtol=0)


def test_the_loss_moves_a_picture_into_place():
    picture = Picture()
    shift = torch.tensor([2.5, -1.5], requires_grad=True)
    weight = torch.ones(2, 1, SIZE, SIZE)
    first = picture.at(centres())
    optimizer = torch.optim.Adam([shift], lr=0.3)
    for step in range(25):
        optimizer.param_groups[0]["lr"] = 0.3 * 0.9**step
        optimizer.zero_grad()
        flow_loss(lucas_kanade(first, picture.at(centres() - shift)), weight).backward()
        optimizer.step()
    assert shift.detach().norm() < 0.15


def test_equal_images_do_not_move():
    first = Picture().at(centres())
    second = first.clone().requires_grad_()
    flow = lucas_kanade(first, second)
    torch.testing.assert_close(flow, torch.zeros_like(flow), atol=1e-4, rtol=0)
    loss = flow_loss(flow, torch.ones(2, 1, SIZE, SIZE))
    (gradient,) = torch.autograd.grad(loss, second)
    assert gradient.isfinite().all()
    flat = torch.full((1, 3, 24, 24), 0.5)
    assert not lucas_kanade(flat, 0.5 * flat).any()


def test_half_precision_is_left():
    first, second = (Picture().at(centres() - shift) for shift in (0.0, 1.0))
    wanted = lucas_kanade(first, second)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(lucas_kanade(first, second), wanted)
    assert lucas_kanade(first.bfloat16(), second.bfloat16()).dtype == torch.float32


def test_the_loss_by_hand():
    flow = torch.zeros(3, 2, 4, 2)
    flow[0, 0, 0] = torch.tensor([3.0, 4.0])
    flow[1] = torch.tensor([0.0, 2.0])
    weight = torch.ones(3, 1, 2, 4)
    weight[0, 0, 0, 0] = 5
    weight[2] = 0
    assert flow_loss(flow, weight).item() == pytest.approx((5 * 5 / 12 + 2) / 2)
    still = torch.zeros(1, 2, 4, 2, requires_grad=True)
    flow_loss(still, torch.ones(1, 1, 2, 4)).backward()
    assert still.grad is not None
    assert not still.grad.any()


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("raft") / "raft.pth"
    torch.save(raft_small().state_dict(), path)
    return path


def test_raft_is_frozen_and_has_gradients_to_the_images(weights):
    network = RaftFlow(weights, updates=2).train()
    assert not network.network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    before = {name: value.clone() for name, value in network.state_dict().items()}
    images = torch.rand(2, 1, 3, 60, 44).requires_grad_()
    flow = network(*images)
    assert flow.shape == (1, 60, 44, 2)
    (gradient,) = torch.autograd.grad(flow.square().sum(), images)
    assert gradient.isfinite().all()
    assert gradient[0].any()
    assert gradient[1].any()
    after = network.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_raft_gives_pixels_of_the_images(weights, monkeypatch):
    """Its own flow is one of the enlarged images."""
    network = RaftFlow(weights, updates=3)

    def fake(first, second, num_flow_updates):
        assert first.shape == second.shape == (1, 3, 128, 264)
        assert num_flow_updates == 3
        torch.testing.assert_close(first, torch.ones_like(first))  # RGB in [-1, 1]
        torch.testing.assert_close(second, -torch.ones_like(second))
        return [torch.zeros(1, 2, 128, 264), torch.full((1, 2, 128, 264), 4.0)]

    monkeypatch.setattr(network.network, "forward", fake)
    flow = network(torch.ones(1, 3, 32, 260), torch.zeros(1, 3, 32, 260))
    assert flow.shape == (1, 32, 260, 2)
    torch.testing.assert_close(flow[0, 5, 5], torch.tensor([4 * 260 / 264, 1.0]))


def test_the_large_raft_is_known_by_its_weights(tmp_path):
    path = tmp_path / "large.pth"
    torch.save(raft_large().state_dict(), path)
    assert RaftFlow(path).network.mask_predictor is not None


def test_files_that_are_no_raft(tmp_path):
    with pytest.raises(AssetNotFoundError, match=r"RAFT not found at '.*none\.pth'.*raft_small"):
        RaftFlow(tmp_path / "none.pth")
    (tmp_path / "text.pth").write_text("no weights")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    for name in ("text", "other", "list"):
        with pytest.raises(
            DataError, match=rf"{name}\.pth' holds no weights of torchvision's RAFT"
        ):
            RaftFlow(tmp_path / f"{name}.pth")
