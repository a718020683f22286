"""IResNet, the network of ArcFace (Deng et al., CVPR 2019, Sec. 3.1), for its public state dicts.

A residual block is BN, convolution, BN, PReLU, convolution, BN; a picture of 112 pixels ends as 7 x
7 features, which a linear layer makes an embedding. The parameters have the names of insightface's
``arcface_torch``, so that its files, and those of the public code of Deng et al., can be read;
numbers of blocks and widths are taken from the file.
"""

import re
from collections.abc import Mapping, Sequence

from jaxtyping import Float
from torch import Tensor, nn


class IResNet(nn.Module):
    """Aligned faces, RGB in [-1, 1], to embeddings that are not normalized.

    Args:
        blocks: of each of the four stages; 3, 4, 14, 3 are ArcFace's r50.
        widths: channels of the first layer and of each stage.
        dims: of the embedding.
    """

    def __init__(
        self,
        blocks: Sequence[int],
        widths: Sequence[int] = (64, 64, 128, 256, 512),
        dims: int = 512,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.prelu = nn.PReLU(widths[0])
        stages = [
            nn.Sequential(Block(before, after, 2), *(Block(after, after) for _ in range(count - 1)))
            for before, after, count in zip(widths, widths[1:], blocks, strict=False)
        ]
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.bn2 = nn.BatchNorm2d(widths[-1])
        self.fc = nn.Linear(widths[-1] * 7 * 7, dims)
        self.features = nn.BatchNorm1d(dims)

    def forward(self, faces: Float[Tensor, "n 3 112 112"]) -> Float[Tensor, "n d"]:
        """The embeddings."""
        x = self.prelu(self.bn1(self.conv1(faces)))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
        return self.features(self.fc(self.bn2(x).flatten(1)))


class Block(nn.Module):
    """A residual block; the second convolution has the stride."""

    def __init__(self, before: int, after: int, stride: int = 1) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(before)
        self.conv1 = nn.Conv2d(before, after, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.prelu = nn.PReLU(after)
        self.conv2 = nn.Conv2d(after, after, 3, stride=stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(after)
        self.downsample: nn.Module = nn.Identity()
        if stride > 1 or before != after:
            shortcut = nn.Conv2d(before, after, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(after))

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d p q"]:
        """Half the size if the stride is 2."""
        y = self.conv1(self.bn1(x))
        y = self.bn3(self.conv2(self.prelu(self.bn2(y))))
        return y + self.downsample(x)


def iresnet_of(state: Mapping[str, Tensor]) -> IResNet:
    """The network that a state dict belongs to, with its parameters.

    Raises:
        KeyError, RuntimeError: it is another network's.
    """
    stages = range(1, 5)
    blocks = [
        len({found[1] for key in state if (found := re.match(rf"layer{stage}\.(\d+)\.", key))})
        for stage in stages
    ]
    last = [state[f"layer{stage}.0.conv1.weight"] for stage in stages]
    widths = [len(state["conv1.weight"]), *map(len, last)]
    network = IResNet(blocks, widths, len(state["fc.weight"]))
    network.load_state_dict(state)
    return network
