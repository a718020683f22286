"""FML's networks, layer by layer as in its supplement: features, shared identity, parameters.

    Table 1  feature extractor, for each frame        Features
    Table 2  shared identity network, for a clip      IdentityNet
    Table 3  parameter estimation, for each frame     ParameterNet

The tables are those of images of 240 pixels; other sizes change the features' sides and with them
the first linear layers, ``width`` their channels.

Two rows of the tables contradict their shapes. Table 1's 5x5 convolution of stride 1 is said to
leave 14 x 14 of 29 x 29 pixels: as in AlexNet, whose first layers these are, it is followed here by
a second 3x3 pooling of stride 2. Table 2 says that it pools the low features, of the shape of the
medium ones: it pools those.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from core.errors import MonofaceError
from core.precision import without_autocast

HIDDEN = 1000  # of Table 2
HIDDEN_PARAMETERS = 2048  # of Table 3


class FMLNetwork(nn.Module):
    """All three: the frames of a clip to its identity and their own unknowns.

    Args:
        image_size: height and width of the images, pixels.
        identity: how many numbers a clip's identity has, of shape and of colours.
        outputs: how many each frame has besides, of the same two kinds.
        width: factor of the tables' channels.
        stride: of the first convolution, 4 in the paper; smaller for small images.
        normalized: put normalizations before ReLUs, ours: over all frames of the batch where
            convolutions see frames, clip by clip in the shared identity network.
        detach_identity: the frames' numbers give the identity that they are estimated from no
            gradient, ours.

    Raises:
        MonofaceError: the images are too small for the layers.
    """

    def __init__(
        self,
        image_size: int,
        identity: tuple[int, int],
        outputs: tuple[int, int],
        width: float = 1.0,
        stride: int = 4,
        normalized: bool = False,
        detach_identity: bool = False,
    ) -> None:
        super().__init__()
        self.detach_identity = detach_identity
        self.features = Features(width, stride)
        low, medium = self._sides(image_size, stride)
        self.identity = IdentityNet(medium, identity, width)
        self.parameters_of_frames = ParameterNet(low, sum(identity), outputs, width)
        if normalized:
            self.apply(_normalize)

    @staticmethod
    def _sides(image_size: int, stride: int) -> tuple[int, int]:
        """Of the low and the medium features of such images."""
        side = (image_size - 1) // stride + 1
        low = ((side - 3) // 2 + 1 - 3) // 2 + 1
        if low < 3:
            raise MonofaceError(
                f"FML: images of {image_size} pixels leave {max(low, 0)} x {max(low, 0)} features "
                f"at stride {stride}, wanted at least 3 x 3: use larger images or a smaller stride"
            )
        half = (low + 1) // 2
        return low, (half + 1) // 2

    def forward(
        self,
        images: Float[Tensor, "b v 3 h w"],
        without_identity: bool = False,
        without_colours: bool = False,
    ) -> tuple[Float[Tensor, "b k"], Float[Tensor, "b v p"]]:
        """A clip's identity and each frame's numbers, in float32.

        Args:
            images: any number of frames.
            without_identity: its numbers are zero.
            without_colours: those of its colours are.
        """
        low, medium = (
            f.unflatten(0, images.shape[:2]) for f in self.features(images.flatten(0, 1))
        )
        identity = self.identity(medium)
        if without_identity:
            identity = torch.zeros_like(identity)
        elif without_colours:
            shape, colours = identity.split(
                [layer.out_features for layer in self.identity.last], -1
            )
            identity = torch.cat([shape, torch.zeros_like(colours)], -1)
        known = identity.detach() if self.detach_identity else identity
        return identity, self.parameters_of_frames(low, known)

    def kernels(self) -> list[Tensor]:
        """Of the convolutions of features, not of colours or of the identity's single channel."""
        layers = [m.weight for m in self.modules() if isinstance(m, nn.Conv2d)]
        return [weight for weight in layers if weight.shape[1] > 3]

    def shape_head(self) -> list[Tensor]:
        """The weights of the last layer that give the identity of shape, if there is any."""
        return [p for p in self.identity.last[0].parameters() if p.dim() > 1 and p.numel()]

    def colour_heads(self) -> list[Tensor]:
        """The parameters of the last layers that give colours."""
        heads = self.identity.last[1], self.parameters_of_frames.last[1]
        return [parameter for head in heads for parameter in head.parameters()]


class Features(nn.Module):
    """An image to its low and medium features (Table 1).

    Args:
        width: factor of the tables' channels.
        stride: of the first convolution, 4 in the paper; smaller for small images.
    """

    def __init__(self, width: float, stride: int) -> None:
        super().__init__()
        c96, c256, c384 = (scaled(c, width) for c in (96, 256, 384))
        self.low = nn.Sequential(
            _conv(3, c96, 11, stride),
            nn.MaxPool2d(3, 2),
            _conv(c96, c256, 5),
            nn.MaxPool2d(3, 2),
            _conv(c256, c384, 3),
        )
        self.medium = nn.Sequential(_conv(c384, c256, 3, 2), _conv(c256, c256, 3, 2))

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> tuple[Tensor, Tensor]:
        """(n, 384, 14, 14) and (n, 256, 4, 4) of images of 240 pixels."""
        low = self.low(images)
        return low, self.medium(low)


class IdentityNet(nn.Module):
    """The medium features of all frames of a clip to its one identity (Table 2).

    Args:
        side: of the medium features, pixels.
        outputs: how many numbers of each kind; they start at zero.
        width: factor of the table's channels.
    """

    def __init__(self, side: int, outputs: tuple[int, int], width: float) -> None:
        super().__init__()
        c256, c384, hidden = (scaled(c, width) for c in (256, 384, HIDDEN))
        self.body = nn.Sequential(
            _conv(c256, c384, 3),
            _conv(c384, c256, 3),
            nn.Flatten(),
            _hidden(c256 * side**2, hidden),
            _hidden(hidden, hidden),
        )
        self.last = _last(hidden, outputs)

    def forward(self, medium: Float[Tensor, "b v c s t"]) -> Float[Tensor, "b k"]:
        """In float32."""
        features = self.body(medium.mean(1))
        with without_autocast(features):
            return _side_by_side(self.last, features.float())


class ParameterNet(nn.Module):
    """A frame's low features, and what is known of its clip's identity, to its own unknowns
    (Table 3).

    Args:
        side: of the low features, pixels.
        identity: how many numbers the identity has.
        outputs: how many numbers of each kind; they start at zero.
        width: factor of the table's channels.
    """

    def __init__(self, side: int, identity: int, outputs: tuple[int, int], width: float) -> None:
        super().__init__()
        c256, c384 = (scaled(c, width) for c in (256, 384))
        hidden = scaled(HIDDEN_PARAMETERS, width)
        self.spread = nn.Sequential(
            _hidden(identity, side**2),
            nn.Unflatten(1, (1, side, side)),
            _conv(1, c384, 3),
        )
        self.body = nn.Sequential(
            _conv(2 * c384, c384, 3),
            _conv(c384, c384, 3),
            _conv(c384, c256, 3),
            nn.MaxPool2d(3, 2),
            nn.Flatten(),
            _hidden(c256 * ((side - 3) // 2 + 1) ** 2, hidden),
        )
        self.last = _last(hidden, outputs)

    def forward(
        self, low: Float[Tensor, "b v c s s"], identity: Float[Tensor, "b k"]
    ) -> Float[Tensor, "b v p"]:
        """In float32."""
        known = self.spread(identity)[:, None].expand_as(low)
        features = self.body(torch.cat([known, low], 2).flatten(0, 1))
        with without_autocast(features):
            return _side_by_side(self.last, features.float()).unflatten(0, low.shape[:2])


def _normalize(module: nn.Module) -> None:
    """Put a normalization before ReLUs: over all frames of the batch where convolutions see frames;
    in the shared identity network, whose batch is of few clips, of each clip by itself, so that its
    units do not die, all of them, at large learning rates. Of given features each clip's identity
    is then its own; but in training the features themselves depend on all frames of the batch.
    In the identity network the normalized numbers get no learned factors and offsets: while the
    identity is noise to the loss, a large learning rate takes these to 0, and most units die.
    """
    if isinstance(module, IdentityNet):
        for layer in _layers(module.body):
            first = layer[0]
            if isinstance(first, nn.Linear):
                layer.insert(1, nn.GroupNorm(1, first.out_features, affine=False))
            elif isinstance(first, nn.Conv2d):
                channels = first.out_channels
                groups = math.gcd(channels, max(1, channels // 8))
                layer.insert(1, nn.GroupNorm(groups, channels, affine=False))
    elif isinstance(module, Features | ParameterNet):
        parts = [module.body] if isinstance(module, ParameterNet) else [module.low, module.medium]
        for layer in (layer for part in parts for layer in _layers(part)):
            first = layer[0]
            if isinstance(first, nn.Conv2d):
                layer.insert(1, nn.BatchNorm2d(first.out_channels))


def _layers(part: nn.Sequential) -> list[nn.Sequential]:
    """Those with weights and a ReLU."""
    return [layer for layer in part if isinstance(layer, nn.Sequential)]


def scaled(channels: int, width: float) -> int:
    """A table's number of channels, times the network's width."""
    return max(1, round(channels * width))


def _conv(before: int, after: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """With zeros around the image, half the kernel wide."""
    layer = nn.Conv2d(before, after, kernel, stride, kernel // 2)
    return nn.Sequential(_initialized(layer), nn.ReLU(inplace=True))


def _hidden(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(_linear(before, after), nn.ReLU(inplace=True))


def _linear(before: int, after: int) -> nn.Linear:
    """Of any numbers, also of none, at which nn.Linear warns."""
    layer = nn.Linear(max(1, before), max(1, after))
    _initialized(layer)
    layer.weight = nn.Parameter(layer.weight.detach()[:after, :before].clone())
    layer.bias = nn.Parameter(layer.bias.detach()[:after].clone())
    layer.in_features, layer.out_features = before, after
    return layer


def _initialized(layer: nn.Conv2d | nn.Linear) -> nn.Conv2d | nn.Linear:
    """As large as ReLUs without normalization need it (He et al. 2015)."""
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def _last(before: int, after: tuple[int, int]) -> nn.ModuleList:
    """The tables' last layer, in two parts, as that of colours may begin to learn later."""
    layers = nn.ModuleList(_linear(before, count) for count in after)
    for parameter in layers.parameters():
        nn.init.zeros_(parameter)
    return layers


def _side_by_side(layers: nn.ModuleList, features: Float[Tensor, "b f"]) -> Float[Tensor, "b k"]:
    return torch.cat([layer(features) for layer in layers], -1)
