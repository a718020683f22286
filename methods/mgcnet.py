"""MGCNet: Self-Supervised Monocular 3D Face Reconstruction by Occlusion-Aware Multi-view Geometry
Consistency (Shang et al., ECCV 2020).

    Sec. 3.2  unknowns, pinhole camera      methods.regression
    Sec. 3.3  2D feature loss, baseline     Regression.image_terms, Weights
    Sec. 3.4  covisible map                 core.multiview.covisible
    Eq. 2     view synthesis                core.multiview.synthesize
    Eq. 3     pixel consistency             core.multiview.pixel_consistency
    Eq. 4     depth consistency             core.multiview.depth_consistency
    Eq. 5     facial epipolar loss          core.multiview.epipolar_consistency
    Eq. 6     total                         Weights

Differs from the paper: the relative pose is the one that maps target to source (as printed, poses
would have to map camera to model, and the way be back; ``core.multiview``); the synthesized depth
is carried into the target's frame before it is compared; pixels that would be read beside the
source's face do not count; epipolar distances are unsigned, the mean of both images', and like the
landmarks' averaged over the points; a covisible triangle has three covisible corners, found in
pixels finer than the image's. Each unknown is the network's output times a constant; pixels
of distances are those of images of 224 pixels.

Differs from the authors' public code (TensorFlow): its essential matrix is R [t]_x, for which exact
landmarks are pixels off, and has the weight 0; its ResNet has no batch norm; its depth error is
averaged over all pixels, not the covisible ones; its light turns with the head; its nose and inner
mouth count 5 times.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from core.contracts import FaceBatch
from core.multiview import (
    FINER,
    covisible,
    depth_consistency,
    epipolar_consistency,
    paired,
    pixel_consistency,
    seen_triangles,
    synthesize,
)
from core.precision import without_autocast
from core.rasterize import interpolate
from methods.cli import main
from methods.regression import PIXELS, CoefficientWeights, Drawing, Regression, Unknowns

COEFFICIENT_WEIGHTS = CoefficientWeights(identity=1.0, expression=0.8, albedo=3e-3)  # Sec. 3.3


@dataclass(frozen=True)
class Weights:
    """Weights of the terms, Sec. 3.3 and Eq. 6 with w_2D = w_mul = 1.

    A term of weight 0 of those between views is not computed.

    Args:
        photometric: w_render; images in [0, 1].
        landmark: w_lm; squared pixels of images of 224 pixels.
        perceptual: w_id; 0 = no recognizer is needed.
        coefficients: w_reg.
        pixel: w_pixel of Eq. 3.
        depth: w_depth of Eq. 4, millimetres.
        epipolar: w_epi of Eq. 5, pixels of images of 224 pixels.
    """

    photometric: float = 1.9
    landmark: float = 1e-3
    perceptual: float = 0.2
    coefficients: float = 1e-4
    pixel: float = 0.15
    depth: float = 1e-4
    epipolar: float = 1e-3


torch.serialization.add_safe_globals([Weights])


class MGCNet(Regression):
    """A face from each image, trained with views of one face that have to agree.

    Clips that are ``multi_view`` in the batch give all terms, with the middle view as target and
    each other as source; others, such as single images, only those in each image.

    Args:
        weights: of the loss terms.
        covisible: compare views only where both see the face; else wherever the target shows it
            (Table 3, row 6).
        finer: how many times as fine as the images the pixels are that decide what the source sees.
        coefficient_weights: of the identity, expression and albedo regularization.
        importance: how many times as much nose and inner mouth count as other landmarks.
        light_channels: 1 = white light, 9 coefficients; 3 = coloured light, 27 (the paper).
        **options: of ``Regression``.

    Raises:
        MonofaceError: there is no such backbone.
        AssetNotFoundError: a file is missing.
    """

    def __init__(
        self,
        weights: Weights = Weights(),
        covisible: bool = True,
        finer: int = FINER,
        coefficient_weights: CoefficientWeights = COEFFICIENT_WEIGHTS,
        importance: float = 10.0,
        light_channels: Literal[1, 3] = 3,
        **options: Any,
    ) -> None:
        super().__init__(
            weights=weights,
            coefficient_weights=coefficient_weights,
            importance=importance,
            light_channels=light_channels,
            **options,
        )
        self.covisible, self.finer = covisible, finer

    def hybrid_terms(self, x: Unknowns, batch: FaceBatch) -> dict[str, Tensor]:
        """The terms of Eq. 6 for any unknowns."""
        drawn = self.drawing(x, batch["images"].shape[-1])
        return {**self.image_terms(x, drawn, batch), **self.view_terms(drawn, batch)}

    def view_terms(self, drawn: Drawing, batch: FaceBatch) -> dict[str, Tensor]:
        """The losses between views, Eq. 3 to 5; 0 if there are no views, or they do not count."""
        terms = dict.fromkeys(("pixel", "depth", "epipolar"), drawn.image.new_zeros(()))
        chosen = batch.get("multi_view")
        if chosen is None or not chosen.any():
            return terms
        target, source = (
            drawn.camera.map(lambda value, k=k: paired(value[chosen])[k])  # type: ignore[misc]
            for k in (0, 1)
        )
        if self.weights.epipolar:
            points = paired(batch["landmarks"][chosen])
            first, second = paired(batch["landmark_confidence"][chosen])
            distance = epipolar_consistency(*points, first * second, target, source)  # Eq. 5
            terms["epipolar"] = distance * (PIXELS / batch["images"].shape[-1])
        if not (self.weights.pixel or self.weights.depth):
            return terms
        target_image, source_image = paired(batch["images"][chosen])
        target_depth, source_depth = paired(self.depth(drawn)[chosen])
        made = synthesize(target_depth, target, source_image, source_depth, source)  # Eq. 2
        mask = self.shared_mask(drawn, chosen)
        if self.weights.pixel:
            terms["pixel"] = pixel_consistency(made, target_image, mask)  # Eq. 3
        if self.weights.depth:
            terms["depth"] = depth_consistency(made, target_depth, mask)  # Eq. 4
        return terms

    def depth(self, drawn: Drawing) -> Tensor:
        """Of the drawn faces, "b v 1 h w", millimetres; 0 beside them."""
        with without_autocast(drawn.vertices):
            along = drawn.camera.position(drawn.vertices)[..., 2:].flatten(0, 1)
            pixels = interpolate(along, drawn.fragments, self.triangles, self.backend)
        return pixels.movedim(-1, -3).unflatten(0, drawn.mask.shape[:2])

    @torch.no_grad()
    def shared_mask(self, drawn: Drawing, chosen: Tensor) -> Tensor:
        """C_s of each pair, "b s 1 h w"; without ``covisible`` all of the target."""
        if not self.covisible:
            return paired(drawn.mask[chosen])[0]
        index = drawn.fragments.triangle_index.unflatten(0, drawn.mask.shape[:2])
        target_index, _ = paired(index[chosen])
        pixels, _ = drawn.camera.project(drawn.vertices)
        _, vertices = paired(drawn.vertices[chosen])
        source = drawn.camera.map(lambda value: paired(value[chosen])[1])
        size = index.shape[-1]
        seen = seen_triangles(vertices, source, self.triangles, size, self.finer, self.backend)
        return covisible(target_index, seen, *paired(pixels[chosen]), self.triangles)


if __name__ == "__main__":
    main("methods.mgcnet.MGCNet")
