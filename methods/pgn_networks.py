"""PGN's networks: the shared encoder, the two heads that find landmarks in 3D, and those of the
coefficients (PGN Sec. 3.2, 3.3 and 4; PRNet of Feng et al., ECCV 2018).

The encoder and the decoder to a UV position map are PRNet's, whose layers are a convolution and ten
residual blocks, and 17 transposed convolutions, all with kernels of 4 x 4. Differs from PRNet: its
last three layers have three channels each and end in a sigmoid; ours have three only at the end,
which is linear and starts at zero: what is added is the mean face, so that training starts there.
"""

import math

import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from core.errors import MonofaceError
from core.precision import without_autocast

HALVINGS = 5  # of the image's side by the encoder


class Encoder(nn.Sequential):
    """Images to feature maps of 1/32 of their side and 32 times ``width`` channels.

    Args:
        width: channels after the first layer; PRNet: 16.
        blocks: residual blocks at each size; PRNet: 2.
    """

    def __init__(self, width: int = 16, blocks: int = 2) -> None:
        layers: list[nn.Module] = [_convolution(3, width, 4), _normalized(width)]
        for _ in range(HALVINGS):
            layers.append(ResidualBlock(width, 2 * width, stride=2))
            width = 2 * width
            layers += [ResidualBlock(width, width) for _ in range(blocks - 1)]
        super().__init__(*layers)
        self.channels = width

    def kernels(self) -> list[Tensor]:
        """Of the convolutions, but for the first, which sees colours."""
        return [m.weight for m in self.modules() if isinstance(m, nn.Conv2d)][1:]


class ResidualBlock(nn.Module):
    """PRNet's: 1 x 1, 4 x 4 and 1 x 1 convolutions with half the channels, added to the input.

    Args:
        before: channels of the input.
        after: of the output.
        stride: 2 halves the side.
    """

    def __init__(self, before: int, after: int, stride: int = 1) -> None:
        super().__init__()
        half = after // 2
        self.body = nn.Sequential(
            nn.Conv2d(before, half, 1, bias=False),
            _normalized(half),
            _convolution(half, half, 4, stride),
            _normalized(half),
            nn.Conv2d(half, after, 1, bias=False),
        )
        self.stride = stride
        same = stride == 1 and before == after
        self.skip = nn.Identity() if same else nn.Conv2d(before, after, 1, bias=False)
        self.end = _normalized(after)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d i j"]:
        """Features of half the side, or the same."""
        # a stride in the 1 x 1 convolution would be the same, but its gradient (torch 2.15, oneDNN,
        # channels last) writes beyond its memory
        kept = x[..., :: self.stride, :: self.stride]
        return self.end(self.body(x) + self.skip(kept))


class PositionMap(nn.Module):
    """Features to a UV position map, of which the 68 landmarks' texels are read.

    Each landmark has a texel of its own, the nearest to its place on the map that no other needs
    more: on small maps those of upper and lower lip would be one.

    Args:
        channels: of the features.
        side: height and width of the features.
        size: height and width of the map, ``side`` times a power of 2; PRNet: 256.
        width: channels of the first layer, halved wherever the side doubles; PRNet: 512.
        landmark_uv: where landmarks are on the map, in [0, 1], v down.

    Raises:
        MonofaceError: there is no such map.
    """

    texels: Int[Tensor, "68"]

    def __init__(
        self, channels: int, side: int, size: int, width: int, landmark_uv: Float[Tensor, "68 2"]
    ) -> None:
        super().__init__()
        doublings = round(math.log2(size / side))
        if doublings < 1 or side * 2**doublings != size:
            fitting = ", ".join(str(side * 2**k) for k in range(1, HALVINGS + 1))
            raise MonofaceError(
                f"model.map_size {size}: position maps of these images have {fitting} texels a side"
            )
        layers: list[nn.Module] = [_transposed(channels, width), _normalized(width)]
        for doubling in range(doublings):
            before, width = width, max(width // 2, 16)
            layers += [_transposed(before, width, 2), _normalized(width)]
            for _ in range(2 if doubling < 3 else 1):  # PRNet: fewer where the map is large
                layers += [_transposed(width, width), _normalized(width)]
        for _ in range(2):
            layers += [_transposed(width, width), _normalized(width)]
        self.layers = nn.Sequential(*layers)
        self.last = _start_at_zero(_transposed(width, 3, bias=True))
        self.register_buffer("texels", own_texels(landmark_uv, size), persistent=False)

    def forward(self, features: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 68 3"]:
        """The landmarks' numbers, in float32."""
        x = self.layers(features)
        with without_autocast(x):
            return self.last(x.float()).flatten(2)[..., self.texels].mT

    def kernels(self) -> list[Tensor]:
        """Of the transposed convolutions, but for the last, which gives numbers."""
        return [m.weight for m in self.layers.modules() if isinstance(m, nn.ConvTranspose2d)]


class PointRegressor(nn.Module):
    """Features to the 68 landmarks by linear layers, the paper's cheap alternative (Sec. 4).

    Args:
        channels: of the features.
        side: height and width of the features.
        hidden: width of the layers between.
        modes: what each output adds to the landmarks' numbers, ours: those that usually differ
            together are learned sooner together.
    """

    modes: Float[Tensor, "k 204"]

    def __init__(
        self, channels: int, side: int, hidden: int, modes: Float[Tensor, "k 204"]
    ) -> None:
        super().__init__()
        self.register_buffer("modes", modes, persistent=False)
        self.layers = nn.Sequential(nn.Flatten(), *_linear(channels * side**2, hidden))
        self.last = _start_at_zero(nn.Linear(hidden, len(modes)))

    def forward(self, features: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 68 3"]:
        """The landmarks' numbers, in float32."""
        x = self.layers(features)
        with without_autocast(x):
            return (self.last(x.float()) @ self.modes).unflatten(-1, (68, 3))

    def kernels(self) -> list[Tensor]:
        """Nothing is convolved."""
        return []


class NumberHead(nn.Module):
    """Features to coefficients: a convolution, an average and three linear layers (Sec. 4).

    Without batch norm: means of several images' features are spread otherwise than those of one.

    Args:
        channels: of the features.
        side: height and width of the features.
        outputs: how many numbers; they start at zero.
        hidden: width of the linear layers between.
        pooled: the average over the image, as in the paper; otherwise all of it.
    """

    def __init__(self, channels: int, side: int, outputs: int, hidden: int, pooled: bool) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(1) if pooled else nn.Identity(),
            nn.Flatten(),
            *_linear(channels * (1 if pooled else side**2), hidden),
        )
        self.last = _start_at_zero(nn.Linear(hidden, outputs))

    def forward(self, features: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """The numbers, in float32."""
        x = self.layers(features)
        with without_autocast(x):
            return self.last(x.float())

    def kernels(self) -> list[Tensor]:
        """Of the convolution."""
        return [m.weight for m in self.layers if isinstance(m, nn.Conv2d)]


def own_texels(places: Float[Tensor, "n 2"], size: int) -> Int[Tensor, " n"]:
    """A texel for each place on a map, all different, with the least sum of squared distances.

    Args:
        places: (u, v) in [0, 1], v down.
        size: height and width of the map.
    """
    middle = (torch.arange(size) + 0.5) / size
    v, u = torch.meshgrid(middle, middle, indexing="ij")
    distance = torch.cdist(places.double().cpu(), torch.stack([u, v], -1).flatten(0, 1).double())
    _, chosen = linear_sum_assignment(distance.square().numpy())
    return torch.from_numpy(chosen)


def _convolution(before: int, after: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """Keeps the side, or halves it; an even kernel sees one pixel more to the right and below."""
    pad = (1, 2, 1, 2) if stride == 1 else (1, 1, 1, 1)
    return nn.Sequential(nn.ZeroPad2d(pad), nn.Conv2d(before, after, kernel, stride, bias=False))


def _transposed(before: int, after: int, stride: int = 1, bias: bool = False) -> nn.Module:
    """Keeps the side, or doubles it."""
    layer = nn.ConvTranspose2d(before, after, 4, stride, padding=1, bias=bias)
    return layer if stride == 2 else nn.Sequential(layer, _Cropped())


class _Cropped(nn.Module):
    """Without the last row and column, which even kernels add."""

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c i j"]:
        """One less of each."""
        return x[..., :-1, :-1]


def _linear(before: int, hidden: int) -> list[nn.Module]:
    """Two layers."""
    first, second = nn.Linear(before, hidden), nn.Linear(hidden, hidden)
    return [first, nn.ReLU(inplace=True), second, nn.ReLU(inplace=True)]


def _normalized(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(inplace=True))


def _start_at_zero(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module
