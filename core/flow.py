"""Optical flow between two images, with gradients to them: Lucas-Kanade, and RAFT from a file.

Convention: flow (x, y) in pixels, x right, y down, at the first image's pixels: what the first
image shows at p the second shows at p + flow(p). Worked number: the second image is the first moved
2 pixels to the right: its flow is (2, 0).
"""

import math
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from core.errors import AssetNotFoundError, DataError
from core.image import pixel_centres, sample
from core.losses import weighted_mean
from core.precision import at_least_float32, without_autocast

Flow = Callable[[Tensor, Tensor], Tensor]  # of the first and second images "b 3 h w"

SMALLEST = 12  # ours: pixels of the coarsest image's shorter side
STEPS = 2  # ours: at each size
WINDOW = 7  # ours: pixels; of a mean that is taken twice, as a window with hard edges goes astray
EVEN = 15  # ours: the same, of the surroundings whose contrast is made equal
NOISE = 8 / 255  # ours: contrast that may be noise
FAINTEST = 1e-6  # ours: squared contrast of what is flat
MOST = 0.5  # ours: share of what is known in what is read
LEAST = 128  # pixels of a side, for RAFT's smallest correlations
DAMPING = 1e-2  # ours: squared slope of even contrast per pixel that moves half a step
REMEDY = (
    "Save torchvision's: python -c 'import torch; from torchvision.models.optical_flow import "
    'raft_small; torch.save(raft_small(weights="DEFAULT").state_dict(), "raft_small.pth")\'; or '
    "give no file: Lucas-Kanade needs none."
)


def lucas_kanade(
    first: Float[Tensor, "b c h w"],
    second: Float[Tensor, "b c h w"],
    weight: Float[Tensor, "b 1 h w"] | None = None,
) -> Float[Tensor, "b h w 2"]:
    """The flow by Lucas and Kanade's method (1981), from coarse to fine.

    Local contrast is made equal first, so that the light matters little. The steps to the solution
    carry no gradients, only a last one from there does: where they have converged, its gradient is
    the solution's.

    Args:
        first: any number of channels.
        second: as the first.
        weight: of the pixels of both images, >= 0; what has 0 is unknown and nothing is read of it.
            None = all alike.
    """
    with without_autocast(first):
        grey, other = (at_least_float32(each).mean(1, keepdim=True) for each in (first, second))
        share = torch.ones_like(grey) if weight is None else weight.to(grey)
        known = (share > 0).to(grey)
        evened = _even(torch.cat([grey, other], 1), known).split(1, 1)
        full, *smaller = _pyramid(*evened, known, share)
        flow = torch.zeros_like(grey).expand(-1, 2, -1, -1)[..., :1, :1]
        with torch.no_grad():
            for images in reversed(smaller):
                flow = _Pattern(*images).follow(flow)
        pattern = _Pattern(*full)
        flow = pattern.follow(flow)
        flow = flow + pattern.step(flow)
    return flow.movedim(1, -1)


class _Pattern:
    """Two images, the slopes of the first, and its normal equations at each pixel."""

    def __init__(self, first: Tensor, second: Tensor, known: Tensor, share: Tensor) -> None:
        self.first, self.second = first, torch.cat([second, known], 1)
        self.centres = pixel_centres((first.shape[-2], first.shape[-1]), first)
        slopes = _slopes(self.first)
        self.weighted = slopes * share
        x, y = slopes.split(1, 1)
        products = torch.cat([self.weighted * x, self.weighted[:, 1:] * y], 1)
        xx, xy, yy = _blur(products).split(1, 1)
        xx, yy = xx + DAMPING, yy + DAMPING
        inverse = 1 / (xx * yy - xy.square())
        self.to_x = torch.cat([yy, -xy], 1) * inverse
        self.to_y = torch.cat([-xy, xx], 1) * inverse

    @torch.no_grad()
    def follow(self, flow: Tensor) -> Tensor:
        """The flow of these images from that of images of half the size, without gradient."""
        flow = 2 * F.interpolate(flow, size=self.first.shape[-2:], mode="bilinear")
        for _ in range(STEPS):
            flow = flow + self.step(flow)
        return flow

    def step(self, flow: Tensor) -> Tensor:
        """What to add to a flow "b 2 h w": the least squares solution in each window."""
        there = sample(self.second, self.centres + flow.movedim(1, -1))
        there, inside = there.split(1, 1)
        miss = _blur(self.weighted * ((self.first - there) * (inside > MOST)))
        return torch.stack([(self.to_x * miss).sum(1), (self.to_y * miss).sum(1)], 1)


def _pyramid(*images: Tensor) -> list[tuple[Tensor, ...]]:
    """The images, at half the size, at a quarter, and so on."""
    levels = [images]
    while min(levels[-1][0].shape[-2:]) >= 2 * SMALLEST:
        levels.append(tuple(F.avg_pool2d(image, 2, ceil_mode=True) for image in levels[-1]))
    return levels


def _blur(images: Tensor, window: int = WINDOW) -> Tensor:
    """The mean of the means over a window, of what is inside the image."""
    # a product with a band matrix is faster than a sum over the window at each pixel
    down, across = (_band(side, window, images) for side in images.shape[-2:])
    return down @ (images @ across.mT)


def _band(side: int, window: int, like: Tensor) -> Tensor:
    """What makes of a column of pixels their means over a window, twice."""
    band = torch.ones(side, side, dtype=like.dtype, device=like.device)
    band = band.tril(window // 2).triu(-(window // 2))
    band = band / band.sum(1, keepdim=True)
    return band @ band


def _even(pair: Tensor, known: Tensor) -> Tensor:
    """Two images with mean 0 and variance 1 around each pixel, of what is known.

    Where one is flat, both are made fainter alike, so that noise stays what it is.
    """
    area = _blur(known, EVEN).clamp(min=FAINTEST)
    centred = (pair - _blur(pair * known, EVEN) / area) * known
    variance = _blur(centred.square(), EVEN) / area
    least = variance.detach().amin(1, keepdim=True)
    sureness = (least / (least + NOISE**2)).sqrt()
    return centred * (variance + FAINTEST).rsqrt() * sureness


def _slopes(grey: Tensor) -> Tensor:
    """Central differences to the right and down, "b 2 h w"."""
    padded = F.pad(grey, (1, 1, 1, 1), mode="replicate")
    across = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]
    down = padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]
    return torch.cat([across, down], 1) / 2


def flow_loss(
    flow: Float[Tensor, "*b h w 2"], weight: Float[Tensor, "*b 1 h w"]
) -> Float[Tensor, ""]:
    """Eq. 10 of PGN, without its weight: the length of the flow in pixels.

    Averaged over the pixels of each image, weighted, then over the images with any weight; 0 if
    none has.

    Args:
        flow: from the photo to what was drawn.
        weight: W, >= 1 or 0.
    """
    squared = flow[..., 0].square() + flow[..., 1].square()  # vector_norm takes ten times as long
    moved = squared > 0
    length = torch.where(moved, squared.where(moved, 1).sqrt(), 0)
    return weighted_mean(length.unsqueeze(-3), weight)


class RaftFlow(nn.Module):
    """RAFT (Teed and Deng 2020) as torchvision has it, frozen and always in evaluation mode.

    Args:
        path: a state dict of torchvision's ``raft_small`` or ``raft_large``.
        updates: of the flow; torchvision's default is 12.

    Raises:
        AssetNotFoundError: there is no such file.
        DataError: it holds no such state dict.
    """

    def __init__(self, path: str | Path, updates: int = 12) -> None:
        super().__init__()
        file = Path(path).expanduser()
        if not file.is_file():
            raise AssetNotFoundError("weights of the optical flow RAFT", f"'{file}'", REMEDY)
        self.network = _raft(file).requires_grad_(False)
        self.updates = updates
        self.eval()

    def train(self, mode: bool = True) -> "RaftFlow":
        """Stays in evaluation mode."""
        return super().train(False)

    def forward(
        self, first: Float[Tensor, "b 3 h w"], second: Float[Tensor, "b 3 h w"]
    ) -> Float[Tensor, "b h w 2"]:
        """The flow; gradients reach the images.

        Images are enlarged to sides that RAFT can take, multiples of 8 and at least 128.

        Args:
            first: RGB in [0, 1].
            second: as the first.
        """
        height, width = first.shape[-2:]
        size = [max(LEAST, 8 * math.ceil(side / 8)) for side in (height, width)]
        with without_autocast(first):
            enlarged = (
                F.interpolate(2 * at_least_float32(images) - 1, size=size, mode="bilinear")
                for images in (first, second)
            )
            flow = self.network(*enlarged, num_flow_updates=self.updates)[-1]
            flow = F.interpolate(flow, size=(height, width), mode="bilinear").movedim(1, -1)
            return flow * flow.new_tensor([width / size[1], height / size[0]])


def _raft(path: Path) -> nn.Module:
    """The small or the large network with the weights of a file."""
    from torchvision.models.optical_flow import raft_large, raft_small

    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
        # only the large one has learnt to enlarge its flow
        large = any(name.startswith("mask_predictor.") for name in weights)
        network = (raft_large if large else raft_small)()
        network.load_state_dict(weights)
    except (RuntimeError, TypeError, AttributeError, KeyError, UnpicklingError, EOFError) as error:
        raise DataError(
            f"'{path}' holds no weights of torchvision's RAFT "
            f"({type(error).__name__}: {str(error).splitlines()[0]}). {REMEDY}"
        ) from error
    return network
