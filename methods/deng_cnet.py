"""Deng's C-Net: the 3D face of a set of images of a person (Deng et al., CVPR workshops 2019).

    Sec. 5     identity from a set, pose, expression, light from each image   DengCNet.estimates
    Eq. 7      aggregation by element-wise confidences                        aggregate
    Eq. 8      mean of the hybrid losses                                      Deng.hybrid_terms
    Sec. 5.2   networks                                                       CNet
    Sec. 5.1   weights of the multi-image stage                               WEIGHTS

R-Net is frozen; its file is that of a training of ``methods.deng``, with the same settings of the
model. A clip of a batch is a set of images of one person, of any length.

Differs from the paper: timm's ResNet-50 ends its first stage at 56 x 56 pixels, the paper's at 28 x
28, so the features are averaged over blocks of pixels until they have an eighth of the image's
side; for backbones of other widths the layers are as wide as in the paper.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from core.errors import AssetNotFoundError, MonofaceError
from core.precision import without_autocast
from methods.cli import main
from methods.deng import Deng, Weights
from methods.optimizers import Part, optimizer_of_parts

WEIGHTS = Weights(photometric=1.9, landmark=1.6e-3, perceptual=0.1)  # Sec. 5.1; the others as R-Net
STRIDE = 8  # the image's side / that of the shallow features
AT_ONCE = 64  # images that pass R-Net together; a person may have hundreds

Aggregation = Literal["elementwise", "scalar", "average"]


class CNet(nn.Module):
    """Features of R-Net to confidences before their sigmoid (Sec. 5.2).

    The shallow features pass three 3x3 convolutions of stride 2 and are pooled; with the deep ones
    two linear layers follow, the last of which starts at zero: all confidences are one half then.

    Args:
        shallow: channels of the shallow features.
        deep: number of the deep ones.
        outputs: how many confidences.
        width: channels of the convolutions.
        hidden: width of the first linear layer.
    """

    def __init__(
        self, shallow: int, deep: int, outputs: int, width: int = 256, hidden: int = 512
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before in (shallow, width, width):
            layers += [nn.Conv2d(before, width, 3, stride=2, padding=1), nn.ReLU(inplace=True)]
        self.shallow = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.hidden = nn.Sequential(nn.Linear(width + deep, hidden), nn.ReLU(inplace=True))
        self.last = nn.Linear(hidden, outputs)
        for parameter in self.last.parameters():
            nn.init.zeros_(parameter)

    def forward(
        self, shallow: Float[Tensor, "n c h w"], deep: Float[Tensor, "n d"]
    ) -> Float[Tensor, "n k"]:
        """In float32."""
        features = self.hidden(torch.cat([self.shallow(shallow), deep], -1))
        with without_autocast(features):
            return self.last(features.float())


class DengCNet(Deng):
    """One identity for all images of a clip, each image's own pose, expression, albedo and light.

    Args:
        r_net: checkpoint of a training of R-Net; its weights are in a checkpoint of C-Net, too, so
            it is read only where a run starts without one. None = R-Net as it is built, untrained.
        aggregation: "elementwise" = a confidence for each coefficient (the paper), "scalar" = one
            for each image, "average" = the mean of the shapes, in which there is nothing to learn.
        c_net_width: channels of C-Net's convolutions.
        c_net_hidden: width of its first linear layer.
        lr: learning rate of Adam.
        weights: of the loss terms.
        **options: of ``Deng``; those of R-Net's training.

    Raises:
        MonofaceError: the backbone has no feature maps.
        AssetNotFoundError: a file is missing.
    """

    def __init__(
        self,
        r_net: Path | None = None,
        aggregation: Aggregation = "elementwise",
        c_net_width: int = 256,
        c_net_hidden: int = 512,
        lr: float = 2e-5,
        weights: Weights = WEIGHTS,
        **options: Any,
    ) -> None:
        super().__init__(lr=lr, weights=weights, **options)
        self.r_net, self.aggregation = r_net, aggregation
        self.network.requires_grad_(False).eval()
        name, channels = _first_stage(self.network.backbone)
        self._seen: dict[str, Tensor] = {}  # what the hooks keep of R-Net's last images
        backbone = self.network.backbone
        backbone.get_submodule(name).register_forward_hook(self._remember("shallow"))
        backbone.register_forward_hook(self._remember("deep"))
        outputs = self.outputs["identity"] if aggregation == "elementwise" else 1
        head = self.network.heads["identity"]
        assert isinstance(head, nn.Linear)
        self.c_net = CNet(channels, head.in_features, outputs, c_net_width, c_net_hidden)
        self.c_net.to(memory_format=torch.channels_last)

    def train(self, mode: bool = True) -> "DengCNet":
        """C-Net alone; R-Net's batch norms stay as they are."""
        super().train(mode)
        self.network.eval()
        return self

    def setup(self, stage: str) -> None:
        """Reads R-Net, unless a checkpoint of C-Net is going to be read.

        Raises:
            AssetNotFoundError: its file is missing.
            MonofaceError: it holds another network.
        """
        super().setup(stage)
        if self.r_net is not None and self.trainer.ckpt_path is None:
            self.network.load_state_dict(r_net_state(self.r_net, self.network))

    def estimates(
        self, images: Float[Tensor, "b v 3 h w"], names: tuple[str, ...]
    ) -> dict[str, Float[Tensor, "b v _"]]:
        """R-Net's outputs; the identity is that of the whole set, the same in all its images."""
        parts, confidences = self._of_each(images, names)
        if "identity" in parts:
            identity = aggregate(parts["identity"], confidences)
            parts["identity"] = identity[:, None].expand_as(parts["identity"])
        return parts

    def confidences(self, images: Float[Tensor, "b v 3 h w"]) -> Float[Tensor, "b v k"]:
        """The c of Eq. 7, in (0, 1), of each identity coefficient or, "scalar", of all."""
        return self._of_each(images, ("identity",))[1].sigmoid()

    def _of_each(
        self, images: Float[Tensor, "b v 3 h w"], names: tuple[str, ...]
    ) -> tuple[dict[str, Float[Tensor, "b v _"]], Float[Tensor, "b v k"]]:
        """R-Net's outputs and the confidences before their sigmoid, image by image."""
        batch = images.shape[:2]
        outputs, features = [], []
        for some in images.flatten(0, 1)[:, None].split(AT_ONCE):
            with torch.no_grad():
                outputs.append(super().estimates(some, names))
            shallow, deep = self._seen["shallow"], self._seen["deep"]
            block = max(1, round(STRIDE * shallow.shape[-1] / images.shape[-1]))
            features.append((F.avg_pool2d(shallow, block, ceil_mode=True), deep.flatten(1)))
        self._seen.clear()
        parts = {
            name: torch.cat([output[name] for output in outputs]).squeeze(1).unflatten(0, batch)
            for name in names
        }
        confidences = self.c_net(*(torch.cat(kind) for kind in zip(*features, strict=True)))
        if self.aggregation == "average":
            confidences = 0 * confidences
        return parts, confidences.unflatten(0, batch)

    def _remember(self, name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        """A hook that keeps what a module gives."""

        def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
            self._seen[name] = output

        return keep

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Adam, 2e-5 in the paper (Sec. 6), for C-Net alone."""
        parts = [Part(self.c_net.parameters())]
        return optimizer_of_parts(parts, self.lr, None, self.anneal_steps)


def aggregate(
    coefficients: Float[Tensor, "b v k"], confidences: Float[Tensor, "b v #k"]
) -> Float[Tensor, "b k"]:
    """Eq. 7: sum_j c_j a_j / sum_j c_j over the images of a set, element by element.

    Args:
        coefficients: a of each image.
        confidences: c before its sigmoid; one for all coefficients, or one each. However small c
            is, the quotient is that of real numbers.
    """
    return (F.logsigmoid(confidences).softmax(1) * coefficients).sum(1)


def r_net_state(path: Path, network: nn.Module) -> dict[str, Tensor]:
    """R-Net's weights from a checkpoint of ``methods.deng``.

    Raises:
        AssetNotFoundError: there is no such file.
        MonofaceError: its network is not this one.
    """
    if not path.is_file():
        raise AssetNotFoundError(
            "R-Net",
            f"'{path}'",
            "Train it: python -m methods.deng fit; or give its checkpoint: --model.r_net.",
        )
    state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    prefix = "network."
    found = {key[len(prefix) :]: v for key, v in state.items() if key.startswith(prefix)}
    wanted = network.state_dict()
    wrong = [key for key in wanted if key not in found or found[key].shape != wanted[key].shape]
    wrong += [key for key in found if key not in wanted]
    if wrong:
        raise MonofaceError(
            f"R-Net in '{path}' is another network than the configured one: {len(wrong)} "
            f"parameters differ, the first is {wrong[0]}; face_model, its dims, backbone, "
            "backbone_options, pooled, pose_width and light_channels must be those of its training"
        )
    return found


def _first_stage(backbone: nn.Module) -> tuple[str, int]:
    """Name and channels of the module whose features have at most a quarter of the image's side.

    Raises:
        MonofaceError: there are no such features.
    """
    stages = [
        stage
        for stage in getattr(backbone, "feature_info", [])
        if 4 <= stage["reduction"] <= STRIDE
    ]
    if not stages:
        raise MonofaceError(
            f"C-Net looks at R-Net's first feature map, and {type(backbone).__name__} has none at "
            "a quarter of the image's side; use a convolutional backbone, such as resnet50"
        )
    return stages[0]["module"], stages[0]["num_chs"]


if __name__ == "__main__":
    main("methods.deng_cnet.DengCNet")
