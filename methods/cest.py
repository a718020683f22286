"""CEST: Self-Supervised 3D Face Reconstruction via Conditional Estimation (Wen et al., ICCV 2021).

    Eq. 2-4   v, s, r, l in sequence        CEST.estimate
    Eq. 5     linear shape model            core.face_models.FaceModel.shape
    Eq. 6     photometric error             core.losses.masked_l1
    Eq. 7-8   swapped reflectances          CEST.swapped_reflectances, terms["photometric"]
    Eq. 9     total                         Weights, terms["landmark"], terms["regularization"]
    Eq. 10    canonical crop                core.crop.canonical_crop
    Eq. 11    weak perspective              core.camera.WeakPerspectiveCamera, CEST.viewpoint
    Eq. 12    unwrapping                    core.uv.unwrap
    App. B.1  networks                      methods.encoder, ReflectanceNet

Differs from the paper: the weights of Eq. 9 are not legible in its text, ours are in ``Weights``;
the widths of its layer tables neither, ours are ``width`` times ``encoder.FACTORS``; viewpoint and
shape are their networks' outputs times a constant; the reflectance network also sees which texels
are visible; the light's first coefficient has the common offset of 0.8, so that a zero output is a
lit face.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.nn import functional as F

from core.camera import WeakPerspectiveCamera, frontal
from core.contracts import FaceBatch, Reconstruction
from core.crop import canonical_crop
from core.face_models import load_face_model
from core.face_models.contour import sliding_jaw
from core.lighting import AMBIENT
from core.losses import coefficient_l2, masked_l1
from core.precision import without_autocast
from core.rasterize import Backend
from core.render import Surface, draw, irradiance
from core.resection import LandmarkPose, posed_landmark_l2
from core.rotation import rotation_from_vector
from core.uv import unwrap, uv_grid, wrap
from methods.base import FaceMethod
from methods.cli import main
from methods.encoder import Encoder, check_size
from methods.optimizers import Part, optimizer_of_parts
from methods.pose import landmark_pivot

# Factors of the outputs, ours: the last layers add up hundreds of features, so that without them
# one step of Adam at 1e-3 can turn the head by half a radian.
VIEWPOINT_SCALE, SHAPE_SCALE = 0.1, 0.3


@dataclass(frozen=True)
class Weights:
    """Weights of Eq. 9; the paper's values are not legible, these are ours.

    Args:
        photometric: of L_rec, Eq. 8; images in [0, 1].
        landmark: w_kp; squared distances in units of the image's side.
        regularization: w_reg; the sum of the squared coefficients, in standard deviations.
    """

    photometric: float = 1.0
    landmark: float = 50.0
    regularization: float = 1e-4


torch.serialization.add_safe_globals([Weights])


class ReflectanceNet(nn.Module):
    """Texture to reflectance, both UV maps (App. B.1): a U-Net whose skips are added, not
    concatenated.

    Args:
        channels: of the input.
        width: channels after the first layer.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        widths = [width * factor for factor in (1, 2, 4, 8, 8)]
        self.down = nn.ModuleList(
            _conv(before, after, stride=2)
            for before, after in zip([channels, *widths], widths, strict=False)
        )
        self.middle = ResidualBlock(widths[-1])
        self.up = nn.ModuleList(
            nn.Sequential(_conv(before, after), ResidualBlock(after))
            for before, after in zip(widths[:0:-1], widths[-2::-1], strict=True)
        )
        self.last = nn.Sequential(_conv(width, width), nn.Conv2d(width, 3, 3, padding=1), nn.Tanh())

    def forward(self, texture: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 h w"]:
        """Reflectance in [0, 1]."""
        features = [texture]
        for layer in self.down:
            features.append(layer(features[-1]))
        x = self.middle(features.pop())
        for layer in self.up:
            skip = features.pop()
            x = layer(_upsample(x, skip)) + skip
        return (self.last(_upsample(x, features.pop())) + 1) / 2


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around which the input is added."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_conv(width, width), _conv(width, width))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Same shape as the input."""
        return x + self.body(x)


def _conv(before: int, after: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(inplace=True),
    )


def _upsample(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)


class CEST(FaceMethod):
    """Conditional estimation of viewpoint, shape, reflectance and illumination, in this order.

    Args:
        face_model: "procedural" or the path of a face model's .npz.
        identity_dims: how many identity modes are estimated; all by default. The paper: 199 of BFM
            2009.
        expression_dims: how many expression modes are estimated; all by default. The paper: 29 of
            3DDFA.
        region: the part of the face model that is rendered, unwrapped and given back; None = the
            whole mesh.
        jaw: "sliding" lets the jaw's landmarks follow the outline of a turned head, for data
            annotated like that (300W); "fixed" for 3D landmarks seen through the head.
        image_size: height and width of the input images, pixels.
        uv_size: height and width of the texture and reflectance maps, texels.
        width: channels after the first layer of each encoder.
        reflectance_width: channels after the first layer of the reflectance network.
        light_channels: 1 = white light, 9 coefficients (the paper); 3 = coloured light, 27.
        conditional: estimate in sequence (CEST); otherwise all four networks see only the image
            (IEST).
        symmetry: also render with the mirrored reflectances r' of Eq. 7-8.
        consistency: whose reflectance renders a frame: "pair" = that of another frame of its clip
            (Eq. 8), "average" = the mean over the clip (App. B.2), "none" = its own.
        detach_conditions: stop the gradient of what is estimated later into the crop and the
            unwrapping positions.
        face_extent_mm: what the side of an input image measures on a frontal mean face, the
            viewpoint's start.
        weights: of the loss terms.
        lr: learning rate of Adam.
        kernel_lr: learning rate of Muon (Jordan et al. 2024), ours, for the convolutions of
            viewpoint and shape; None = Adam for all, as in the paper.
        landmark_pose: under which pose the landmarks judge the shape: the "estimated" one, as in
            the paper; or, ours, the "best" for that shape, so that the viewpoint's errors are no
            noise in the shape's gradient. The viewpoint is then judged with the shape held fixed,
            apart from what it changes through the crop, unless ``detach_conditions``. In training
            the term is then the sum of two errors. A sliding jaw's points stay those of the
            estimated pose.
        landmark_steps: for so many steps viewpoint and shape learn from the landmarks alone,
            several times as fast; 0 = everything from the start, as in the paper.
        anneal_steps: let the learning rate fall to 0 along a cosine until this step, after 50 in
            which it rises; that of reflectance and light begins with their own first step. None =
            constant, as in the paper.
        backend: of the rasterizer.

    Raises:
        MonofaceError: images or maps are smaller than ``methods.encoder.SMALLEST``.
    """

    triangles: Int[Tensor, "t 3"]
    pivot: Float[Tensor, "3"]

    def __init__(
        self,
        face_model: str = "procedural",
        identity_dims: int | None = None,
        expression_dims: int | None = None,
        region: str | None = "face",
        jaw: Literal["fixed", "sliding"] = "fixed",
        image_size: int = 256,
        uv_size: int = 256,
        width: int = 32,
        reflectance_width: int = 32,
        light_channels: Literal[1, 3] = 1,
        conditional: bool = True,
        symmetry: bool = True,
        consistency: Literal["pair", "average", "none"] = "pair",
        detach_conditions: bool = False,
        face_extent_mm: float = 190.0,
        weights: Weights = Weights(),
        lr: float = 1e-3,
        kernel_lr: float | None = None,
        landmark_pose: LandmarkPose = "estimated",
        landmark_steps: int = 0,
        anneal_steps: int | None = None,
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        check_size("CEST (image_size and uv_size)", image_size, uv_size)
        self.weights = weights
        self.face_model = load_face_model(face_model, identity_dims, expression_dims, albedo_dims=0)
        self.dims = [len(self.face_model.identity_basis), len(self.face_model.expression_basis)]
        self.image_size, self.uv_size = image_size, uv_size
        self.light_channels = light_channels
        self.conditional, self.symmetry, self.consistency = conditional, symmetry, consistency
        self.detach_conditions = detach_conditions
        self.face_extent_mm = face_extent_mm
        self.lr, self.kernel_lr = lr, kernel_lr
        self.landmark_pose = landmark_pose
        self.landmark_steps, self.anneal_steps = landmark_steps, anneal_steps
        self.backend = backend
        self.sliding_jaw = sliding_jaw(self.face_model) if jaw == "sliding" else None
        triangles = self.face_model.part(region) if region else self.face_model.triangles
        self.register_buffer("triangles", triangles, persistent=False)
        self.uv_grid = uv_grid(self.face_model.uv, triangles, uv_size)

        lights = 9 * light_channels
        self.f_viewpoint = Encoder(3, image_size, 7, width)
        self.f_shape = Encoder(3, image_size, sum(self.dims), width)
        self.f_reflectance = ReflectanceNet(4 if conditional else 3, reflectance_width)
        self.f_light = (
            Encoder(9, uv_size, lights, width)
            if conditional
            else Encoder(3, image_size, lights, width)
        )
        self.to(memory_format=torch.channels_last)  # faster convolutions on both CPU and GPU
        self.register_buffer("pivot", landmark_pivot(self.face_model), persistent=False)

    def forward(self, images: Float[Tensor, "b v 3 h w"]) -> Reconstruction:
        """One face per image."""
        return self.estimate(images)[0]

    def estimate(self, images: Float[Tensor, "b v 3 h w"]) -> tuple[Reconstruction, Surface]:
        """Viewpoint, shape, reflectance and light in sequence (Eq. 4), and the drawn geometry."""
        b, v = images.shape[:2]
        inputs = 2 * images - 1
        camera, viewpoint = self.viewpoint(inputs)
        condition = camera.map(torch.detach) if self.detach_conditions else camera
        identity, expression = self.coefficients(inputs, condition)
        vertices = self.shape(identity, expression)
        triangles, uv = self.triangles, self.face_model.uv
        size = (images.shape[-2], images.shape[-1])
        surface = draw(vertices, triangles, uv, camera, size, self.backend)
        if self.conditional:
            positions = vertices.detach() if self.detach_conditions else vertices
            texture, visible = unwrap(
                inputs, positions, condition, surface, self.uv_grid.to(inputs.device), triangles
            )  # Eq. 12
            reflectance = self.f_reflectance(torch.cat([texture, visible], 2).flatten(0, 1))
            small = F.interpolate(
                inputs.flatten(0, 1), self.uv_size, mode="bilinear", antialias=True
            )
            seen = torch.cat([small, texture.flatten(0, 1), 2 * reflectance - 1], 1)
            light = self.f_light(seen)
        else:
            reflectance = self.f_reflectance(inputs.flatten(0, 1))
            light = self.f_light(inputs.flatten(0, 1))
        light = light.float().unflatten(-1, (9, self.light_channels)).unflatten(0, (b, v))
        face = Reconstruction(
            vertices=vertices,
            neutral=self.shape(identity),
            triangles=triangles,
            uv=uv,
            camera=camera,
            landmarks=camera.project(self.landmarks(vertices, camera))[0],
            albedo_map=reflectance.float().unflatten(0, (b, v)),
            light=torch.cat([light[..., :1, :] + AMBIENT, light[..., 1:, :]], -2),
            coefficients={
                "identity": identity,
                "expression": expression,
                "viewpoint": viewpoint,
            },
        )
        return face, surface

    def viewpoint(
        self, inputs: Float[Tensor, "b v 3 h w"]
    ) -> tuple[WeakPerspectiveCamera, Float[Tensor, "b v 7"]]:
        """f_v: scale, rotation vector and translation (Eq. 11) from the image.

        Zero outputs are a frontal face in the middle of the image. The third translation, of the
        paper's seven numbers, is depth, which weak perspective cannot see; it stays at its start.
        """
        b, v, _, height, width = inputs.shape
        numbers = self.f_viewpoint(inputs.flatten(0, 1)).float().unflatten(0, (b, v))
        numbers = VIEWPOINT_SCALE * numbers
        scale = width / self.face_extent_mm * torch.exp(numbers[..., 0])
        with without_autocast(numbers):
            rotation = frontal(numbers) @ rotation_from_vector(numbers[..., 1:4])
        middle = numbers.new_tensor([width / 2, height / 2])
        seen_pivot = middle + width * numbers[..., 4:6]
        camera = WeakPerspectiveCamera(rotation, scale, torch.zeros_like(seen_pivot))
        offset = camera.project(self.pivot.expand(b, v, 1, 3))[0].squeeze(-2)
        return WeakPerspectiveCamera(rotation, scale, seen_pivot - offset), numbers

    def coefficients(
        self, inputs: Float[Tensor, "b v 3 h w"], camera: WeakPerspectiveCamera
    ) -> tuple[Float[Tensor, "b v ki"], Float[Tensor, "b v ke"]]:
        """f_s: identity and expression, in standard deviations, from the canonical crop (Eq.
        10).
        """
        if self.conditional:
            inputs = canonical_crop(
                inputs, camera.about(self.pivot), self.image_size, self.face_extent_mm
            )
        numbers = self.f_shape(inputs.flatten(0, 1)).float().unflatten(0, inputs.shape[:2])
        numbers = SHAPE_SCALE * numbers
        identity, expression = numbers.split(self.dims, -1)
        return identity, expression

    def shape(
        self, identity: Float[Tensor, "b v ki"], expression: Float[Tensor, "b v ke"] | None = None
    ) -> Float[Tensor, "b v n 3"]:
        """Eq. 5: vertices in millimetres; without expression the neutral face."""
        if expression is not None:
            expression = expression * self.face_model.expression_std
        return self.face_model.shape(identity, expression)

    def landmarks(
        self, vertices: Float[Tensor, "b v n 3"], camera: WeakPerspectiveCamera
    ) -> Float[Tensor, "b v 68 3"]:
        """The 68 points of the meshes, the jaw's as ``jaw`` says."""
        if self.sliding_jaw is None:
            return self.face_model.landmarks(vertices)
        return self.sliding_jaw(vertices, camera)

    def swapped_reflectances(
        self, reflectance: Float[Tensor, "b v 3 h w"]
    ) -> list[Float[Tensor, "b v 3 h w"]]:
        """The maps that must explain each frame: r_j, or r_j and r_j' (Eq. 8)."""
        b, v = reflectance.shape[:2]
        if self.consistency == "average":
            chosen = reflectance.mean(1, keepdim=True).expand_as(reflectance)
        elif self.consistency == "pair" and v > 1:
            chosen = reflectance[torch.arange(b)[:, None], other_frames(b, v)]
        else:
            chosen = reflectance
        return [chosen, chosen.flip(-1)] if self.symmetry else [chosen]

    def terms(self, batch: FaceBatch) -> dict[str, Tensor]:
        """The terms of Eq. 9; names are the fields of ``Weights``."""
        images = batch["images"]
        if self.training and self.global_step < self.landmark_steps:
            return self.terms_without_rendering(batch)
        face, surface = self.estimate(images)
        region = batch["masks"] * surface.mask.detach()  # M of Eq. 6
        maps = self.swapped_reflectances(face.albedo_map)
        light = irradiance(surface, face.light)
        photometric = [
            masked_l1(reflectance * light, images, region)
            for reflectance in wrap(torch.cat(maps, 2), surface.uv).split(3, 2)
        ]
        camera = face.camera
        assert isinstance(camera, WeakPerspectiveCamera)
        points = self.landmarks(face.vertices, camera)
        coefficients = torch.cat(
            [face.coefficients["identity"], face.coefficients["expression"]], -1
        )
        return {
            "photometric": torch.stack(photometric).mean(),
            "landmark": self.landmark_term(points, camera, batch),
            "regularization": coefficient_l2(coefficients),
        }

    def terms_without_rendering(self, batch: FaceBatch) -> dict[str, Tensor]:
        """The same, where only viewpoint and shape learn, from the landmarks; photometric is 0."""
        inputs = 2 * batch["images"] - 1
        camera, _ = self.viewpoint(inputs)
        identity, expression = self.coefficients(
            inputs, camera.map(torch.detach) if self.detach_conditions else camera
        )
        numbers = identity, expression * self.face_model.expression_std
        if self.sliding_jaw is None:
            points = self.face_model.landmark_shape(*numbers)
        else:
            points = self.sliding_jaw.landmark_shape(*numbers, camera)
        landmark = self.landmark_term(points, camera, batch)
        return {
            "photometric": landmark.new_zeros(()),
            "landmark": landmark,
            "regularization": coefficient_l2(torch.cat([identity, expression], -1)),
        }

    def landmark_term(
        self, points: Float[Tensor, "b v 68 3"], camera: WeakPerspectiveCamera, batch: FaceBatch
    ) -> Tensor:
        """The second term of Eq. 9; in training with ``landmark_pose`` "best" one for the viewpoint
        and one for the shape.
        """
        return posed_landmark_l2(
            points,
            camera,
            batch["landmarks"],
            batch["landmark_confidence"],
            batch["images"].shape[-1],
            self.landmark_pose if self.training else "estimated",
        )

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Adam, 1e-3 in the paper (Sec. 4.1); with ``kernel_lr`` partly Muon."""
        geometry = [*self.f_viewpoint.parameters(), *self.f_shape.parameters()]
        appearance = [*self.f_reflectance.parameters(), *self.f_light.parameters()]
        kernels = [*self.f_viewpoint.kernels(), *self.f_shape.kernels()]
        parts = [Part(geometry, kernels), Part(appearance, start=self.landmark_steps)]
        return optimizer_of_parts(parts, self.lr, self.kernel_lr, self.anneal_steps)


def other_frames(b: int, v: int) -> Int[Tensor, "b v"]:
    """For each of v frames of b clips one other frame of its clip, j != i, each with equal chance
    (Eq. 8).
    """
    return (torch.arange(v) + torch.randint(1, v, (b, v))) % v


if __name__ == "__main__":
    main("methods.cest.CEST")
