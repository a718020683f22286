"""Backbones of our own, by timm's names and interface; importing this module registers them."""

from typing import Any

from timm.models import register_model
from torch import nn

from core.errors import MonofaceError
from methods.encoder import FACTORS, strided


class Strided(nn.Sequential):
    """The strided convolutions of CEST's encoders: features of a 64th of the image's side.

    Args:
        width: channels after the first layer; the last has eight times as many.
        in_chans: channels of the images.
        global_pool: "avg" gives the mean over the image, "" the features as they are.
    """

    def __init__(self, width: int = 32, in_chans: int = 3, global_pool: str = "avg") -> None:
        pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten()] if global_pool else []
        super().__init__(*strided(in_chans, width), *pool)
        self.num_features = FACTORS[-1] * width
        self.feature_info = [
            {"num_chs": factor * width, "reduction": 2 ** (k + 1), "module": str(3 * k + 2)}
            for k, factor in enumerate(FACTORS)
        ]


@register_model
def strided_encoder(
    pretrained: bool = False,
    pretrained_cfg: Any = None,
    pretrained_cfg_overlay: Any = None,
    cache_dir: Any = None,
    num_classes: int = 0,
    **options: Any,
) -> Strided:
    """``Strided``; there are no weights to start from, and no classifier.

    Args:
        pretrained: only false.
        pretrained_cfg: of such weights.
        pretrained_cfg_overlay: changes of it.
        cache_dir: where they would be.
        num_classes: only 0.
        **options: of ``Strided``.

    Raises:
        MonofaceError: weights or a classifier are asked for.
    """
    if pretrained or num_classes:
        raise MonofaceError(
            "strided_encoder has no pretrained weights and no classifier; model.pretrained: false"
        )
    return Strided(**options)
