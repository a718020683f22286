"""What passes between the parts: a datamodule yields a FaceBatch, a method returns a
Reconstruction.
"""

from dataclasses import dataclass, field, replace
from typing import NotRequired, TypedDict

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from core.camera import Camera


class FaceBatch(TypedDict):
    """Cropped face images with what is known about them; every frame is square and of one size.

    Attributes:
        images: RGB in [0, 1].
        landmarks: 68 points, pixels of ``images``; finite also where missing.
        landmark_confidence: in [0, 1]; 0 = missing, the point must not be used.
        masks: 1 where the face (skin, eyes, lips, brows, nose) is seen and nothing covers it, else
            0.
        sample_ids: for each of the b x v frames, in that order, a name unique in the dataset
            ("id/video/clip/frame").
        crop_to_image: maps homogeneous crop pixels to pixels of the original image.
        originals: the b x v uncropped images, RGB in [0, 1], each of its own size.
        landmarks_3d: x, y in pixels of ``images``, z in such pixels towards the camera, from an
            origin of the dataset's own; zeros where unknown. Not there if no frame has them.
        has_landmarks_3d: which frames have them.
        multi_view: which clips show one face at one instant from different sides, the target in the
            middle. Not there if no clip does.
        repeated: True if the samples were handed out elsewhere, and are here only because a process
            needs a batch: evaluation has to leave them out of its means. Else not there.
    """

    images: Float[Tensor, "b v 3 h w"]
    landmarks: Float[Tensor, "b v 68 2"]
    landmark_confidence: Float[Tensor, "b v 68"]
    masks: Float[Tensor, "b v 1 h w"]
    sample_ids: list[str]
    crop_to_image: NotRequired[Float[Tensor, "b v 3 3"]]
    originals: NotRequired[list[Float[Tensor, "3 _ _"]]]
    landmarks_3d: NotRequired[Float[Tensor, "b v 68 3"]]
    has_landmarks_3d: NotRequired[Bool[Tensor, "b v"]]
    multi_view: NotRequired[Bool[Tensor, " b"]]
    repeated: NotRequired[bool]


@dataclass
class Reconstruction:
    """A 3D face per image: all that is needed to draw, measure or export it, for a mesh of any
    topology.

    Attributes:
        vertices: the face with its expression, model frame, millimetres, not posed.
        neutral: the same person without expression, model frame, millimetres.
        triangles: counter-clockwise seen from outside.
        uv: texture coordinates of the vertices, v down.
        camera: one camera per image, batch shape (b, v), for pixels of the given images.
        landmarks: the 68 points of the mesh projected into the given images, pixels.
        albedo_map: reflectance as a UV map, RGB, about [0, 1].
        light: spherical harmonics coefficients per colour channel (one channel: white light),
            camera frame.
        coefficients: the method's raw estimates by name, e.g. "identity", "expression", in standard
            deviations.
    """

    vertices: Float[Tensor, "b v n 3"]
    neutral: Float[Tensor, "b v n 3"]
    triangles: Int[Tensor, "t 3"]
    uv: Float[Tensor, "n 2"]
    camera: Camera
    landmarks: Float[Tensor, "b v 68 2"]
    albedo_map: Float[Tensor, "b v 3 uh uw"]
    light: Float[Tensor, "b v 9 c"]
    coefficients: dict[str, Float[Tensor, "b v _"]] = field(default_factory=dict)

    def to(self, device: torch.device | str) -> "Reconstruction":
        """On another device; Lightning moves predictions by this method."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(
            self,
            camera=self.camera.map(lambda value: value.to(device)),
            coefficients={name: value.to(device) for name, value in self.coefficients.items()},
            **{name: value.to(device) for name, value in tensors.items()},
        )
