"""Deng: Accurate 3D Face Reconstruction with Weakly-Supervised Learning (Deng et al., CVPRW 2019).

    Sec. 3    R-Net, its unknowns x         methods.regression.Regressor, Unknowns
    Eq. 1     shape and albedo              core.face_models.FaceModel
    Sec. 3    light, camera                 core.render.draw_lit, Regression.camera
    Eq. 2     photometric, skin attention   core.losses.masked_l21, Regression.attention
    Eq. 3     landmarks                     core.losses.landmark_l2
    Eq. 4     perceptual                    core.perceptual.Recognizer
    Eq. 5     coefficients                  core.losses.coefficient_l2, CoefficientWeights
    Eq. 6     flat skin                     core.losses.region_variance
    Sec. 4.3  total                         Weights

Differs from the paper: each unknown is its network's output times a constant (``SCALES``); focal
length and landmark distances are given for images of 224 pixels and scaled to others; the zero
pose shows the middle of the mean face's landmarks in the middle of the image. The papers' images
are aligned by a detector; ``pose_width`` aligns them here.

Differs from the authors' public code (PyTorch; its settings are configs/paper/deng_public.yaml):
photometric errors are averaged per image (code: over the batch) and without a constant in the root;
vertex normals are weighted with the triangles' area (code: not); light is the physical one of
``core.lighting`` (code: its second and third band are sqrt(3) and sqrt(8) times as large); angles
are those of 300W-LP (code: Rz Ry Rx); the origin of the pose is the middle of the landmarks (code:
the mean vertex); pixels of picture and landmarks agree (code: half a pixel apart).
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from core.contracts import FaceBatch
from core.face_models import FaceModel
from core.losses import light_colour_l2, region_variance
from methods.cli import main
from methods.regression import Regression, Unknowns


@dataclass(frozen=True)
class Weights:
    """Weights of the terms, Sec. 4.3.

    Args:
        photometric: w_photo of Eq. 2; images in [0, 1].
        landmark: w_lan of Eq. 3; squared pixels of images of 224 pixels.
        perceptual: w_per of Eq. 4; 0 = no recognizer is needed.
        coefficients: w_coef of Eq. 5.
        texture: w_tex of Eq. 6.
        light_colour: of the light's distance from white; the public code has 10, the paper no
            coloured light.
    """

    photometric: float = 1.9
    landmark: float = 1.6e-3
    perceptual: float = 0.2
    coefficients: float = 3e-4
    texture: float = 5.0
    light_colour: float = 0.0


torch.serialization.add_safe_globals([Weights])


class Deng(Regression):
    """R-Net, trained with the hybrid-level loss on single images.

    Args:
        weights: of the loss terms.
        **options: of ``Regression``.

    Raises:
        MonofaceError: there is no such backbone.
        AssetNotFoundError: a file is missing.
    """

    flat: Int[Tensor, " r"]

    def __init__(self, weights: Weights = Weights(), **options: Any) -> None:
        super().__init__(weights=weights, **options)
        self.register_buffer("flat", flat_skin(self.face_model, self.region), persistent=False)

    def hybrid_terms(self, x: Unknowns, batch: FaceBatch) -> dict[str, Tensor]:
        """L(x) of Sec. 4 for any unknowns, term by term."""
        drawn = self.drawing(x, batch["images"].shape[-1])
        return {
            **self.image_terms(x, drawn, batch),
            "texture": region_variance(drawn.albedo, self.flat),  # Eq. 6
            "light_colour": light_colour_l2(x.light),
        }


def flat_skin(model: FaceModel, region: str | None) -> Int[Tensor, " r"]:
    """R of Eq. 6, numbers of vertices: of the drawn region the skin without brows, eyes and lips,
    as far as the model tells them apart.
    """
    flags = model.region(region or "face")
    if "skin" in model.region_names:
        flags = flags & model.region("skin")
    for name in ("brows", "eyes", "lips"):
        if name in model.region_names:
            flags = flags & ~model.region(name)
    return flags.nonzero()[:, 0]


if __name__ == "__main__":
    main("methods.deng.Deng")
