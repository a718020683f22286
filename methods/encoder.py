"""A small convolutional network from an image to numbers: that of CEST, App. B.1."""

from torch import Tensor, nn

from core.errors import MonofaceError

FACTORS = (1, 2, 4, 8, 8, 8)  # ours, the paper's are not legible: channels / those of the first

# The last strided layer then still sees 2 x 2 pixels. Of a single pixel torch 2.15's bfloat16
# convolution computes its weights' gradient from uninitialized memory.
SMALLEST = 33


class Encoder(nn.Sequential):
    """Image(s) to parameters (App. B.1): 3x3 convolutions of stride 2 with BN and ReLU, and one
    that gives the numbers.

    Args:
        channels: of the input.
        size: height and width of the input.
        outputs: how many numbers; they start at zero.
        width: channels after the first layer.
    """

    def __init__(self, channels: int, size: int, outputs: int, width: int) -> None:
        layers = strided(channels, width)
        for _ in FACTORS:
            size = (size + 1) // 2
        last = nn.Conv2d(FACTORS[-1] * width, outputs, size)
        for parameter in last.parameters():
            nn.init.zeros_(parameter)
        super().__init__(*layers, last, nn.Flatten())

    def kernels(self) -> list[Tensor]:
        """Of the strided convolutions, but for the first, which sees colours, not features."""
        return [layer.weight for layer in self if isinstance(layer, nn.Conv2d)][1:-1]


def check_size(what: str, *sizes: int) -> None:
    """Refuse images of which nothing would be left for the last layers to look at.

    Args:
        what: wants them.
        sizes: heights and widths, pixels.

    Raises:
        MonofaceError: one is less than ``SMALLEST``.
    """
    if min(sizes) < SMALLEST:
        raise MonofaceError(
            f"{what} needs images of at least {SMALLEST} pixels, got {min(sizes)}; use larger ones"
        )


def strided(channels: int, width: int) -> list[nn.Module]:
    """The 3x3 convolutions, each with its BN and ReLU, which halve the image again and again."""
    layers: list[nn.Module] = []
    for factor in FACTORS:
        layers += [
            nn.Conv2d(channels, factor * width, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(factor * width),
            nn.ReLU(inplace=True),
        ]
        channels = factor * width
    return layers
