"""What regression methods share: a network that estimates all unknowns of a face from one image,
and the losses in that image (Deng et al. 2019, MGCNet).

The face model's coefficients, the pose of a pinhole camera and the light are the outputs of one
network's linear heads, or the pose those of another network (``methods.pose.PoseNet``), each times
a constant (``SCALES``); landmark distances are given for images
of 224 pixels, as focal length and pose are (``methods.pose``). Numbers of equations and sections
are those of Deng.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from core.camera import PerspectiveCamera
from core.contracts import FaceBatch, Reconstruction
from core.errors import AssetNotFoundError, MonofaceError
from core.face_models import load_face_model
from core.landmarks import INNER_MOUTH, NOSE
from core.lighting import AMBIENT
from core.losses import coefficient_l2, cosine_distance, masked_l21
from core.perceptual import Recognizer, align_112
from core.precision import without_autocast
from core.rasterize import Backend, Fragments
from core.render import draw_lit
from core.resection import LandmarkPose, posed_landmark_l2
from core.skin import skin_probability
from core.uv import bake, uv_grid
from methods.base import FaceMethod
from methods.encoder import check_size
from methods.optimizers import Part, optimizer_of_parts
from methods.pose import PIXELS, POSE_SCALES, PoseNet, landmark_pivot, posed_camera

LIKELY = 0.5  # skin of at least this probability counts in full, Deng Sec. 4.1.1

# Factors of the outputs, for the same reason as those of the pose.
SCALES = {"identity": 0.3, "expression": 0.3, "albedo": 0.3, "light": 0.1, **POSE_SCALES}
GEOMETRY = ("identity", "expression", "angles", "translation")  # all that landmarks depend on
APPEARANCE = ("albedo", "light")


@dataclass(frozen=True)
class CoefficientWeights:
    """Weights within Eq. 5.

    Args:
        identity: omega_alpha.
        expression: omega_beta.
        albedo: the third of them; the public code has 1.7e-2.
    """

    identity: float = 1.0
    expression: float = 0.8
    albedo: float = 1.7e-3


torch.serialization.add_safe_globals([CoefficientWeights])


@dataclass(frozen=True)
class Unknowns:
    """The vector x of Sec. 3 in its parts: all that the network estimates.

    Attributes:
        identity, expression, albedo: alpha, beta, delta, in standard deviations.
        angles: pitch, yaw, roll of the head, radians.
        translation: of the face in the model frame's axes, millimetres.
        light: gamma, spherical harmonics in the camera frame, without the ambient light that is
            added to the first.
    """

    identity: Float[Tensor, "b v ki"]
    expression: Float[Tensor, "b v ke"]
    albedo: Float[Tensor, "b v ka"]
    angles: Float[Tensor, "b v 3"]
    translation: Float[Tensor, "b v 3"]
    light: Float[Tensor, "b v 9 c"]


@dataclass(frozen=True)
class Drawing:
    """The face that the unknowns describe, drawn into its images.

    Attributes:
        vertices: millimetres, model frame.
        camera: one per image.
        albedo: of the vertices.
        landmarks: pixels.
        image: lit, over black.
        mask: 1 where the face is seen, else 0.
        fragments: of ``core.rasterize``, of the b * v images.
    """

    vertices: Float[Tensor, "b v n 3"]
    camera: PerspectiveCamera
    albedo: Float[Tensor, "b v n 3"]
    landmarks: Float[Tensor, "b v 68 2"]
    image: Float[Tensor, "b v 3 h w"]
    mask: Float[Tensor, "b v 1 h w"]
    fragments: Fragments


class Regressor(nn.Module):
    """An image to the unknowns, by a backbone of timm and a linear head for each; or the pose by a
    network of its own, and from the straightened image all else.

    Args:
        backbone: name of the network in timm.
        outputs: how many numbers of each kind; they start at zero.
        image_size: height and width of the images, pixels.
        pretrained: start from timm's weights of it.
        pooled: the heads see the mean of the features over the image; otherwise all of them.
        options: further arguments of ``timm.create_model``.
        pose: the network of its own.

    Raises:
        MonofaceError: timm has no such network, or it takes other options or larger images.
        AssetNotFoundError: its weights could not be had.
    """

    def __init__(
        self,
        backbone: str,
        outputs: dict[str, int],
        image_size: int,
        pretrained: bool,
        pooled: bool,
        options: dict[str, Any],
        pose: PoseNet | None = None,
    ) -> None:
        super().__init__()
        import timm  # takes seconds

        import methods.backbones  # noqa: F401  # registers ours

        if not timm.is_model(backbone):
            close = timm.list_models(f"*{backbone[:6]}*")[:8]
            raise MonofaceError(
                f"timm has no backbone '{backbone}'; similar names: {', '.join(close)}"
            )
        fixed = timm.get_pretrained_cfg(backbone)
        if fixed is not None and fixed.fixed_input_size:
            options = {"img_size": image_size, **options}
        if not pooled:
            options = {"global_pool": "", **options}
        if backbone == "strided_encoder":
            check_size(backbone, image_size)
        try:
            made: Any = timm.create_model(backbone, pretrained, num_classes=0, **options)
        except TypeError as error:
            raise MonofaceError(
                f"backbone '{backbone}' does not take the options {options}: {error}; give its own "
                "as model.backbone_options, or null for none"
            ) from error
        except (OSError, RuntimeError) as error:
            if not pretrained:
                raise
            raise AssetNotFoundError(
                f"pretrained weights of '{backbone}'",
                f"huggingface.co or timm's cache ({error})",
                "Start without them: model.pretrained: false; or copy the cache of a machine that "
                "has them.",
            ) from error
        self.backbone = made
        # of the numbers that come out; num_features is before a convolution that some have last
        width = getattr(made, "head_hidden_size", None) or made.num_features
        if not pooled:
            with torch.no_grad():
                width = made.eval()(torch.zeros(1, 3, image_size, image_size)).numel()
            made.train()
        self.pose = pose
        own = {name: n for name, n in outputs.items() if pose is None or name not in POSE_SCALES}
        self.heads = nn.ModuleDict({name: nn.Linear(width, n) for name, n in own.items()})
        for parameter in self.heads.parameters():
            nn.init.zeros_(parameter)

    def forward(
        self, images: Float[Tensor, "n 3 h w"], names: tuple[str, ...]
    ) -> dict[str, Float[Tensor, "n _"]]:
        """Some of the outputs by name, in float32."""
        numbers: dict[str, Tensor] = {}
        if self.pose is not None:
            pose, images = self.pose(images)
            numbers = dict(zip(POSE_SCALES, pose.split(3, -1), strict=True))
        features = self.backbone(images).flatten(1)
        with without_autocast(features):
            numbers |= {name: head(features.float()) for name, head in self._heads(names)}
        return {name: numbers[name] for name in names}

    def kernels(self) -> list[Tensor]:
        """Of the dense convolutions, but for the first of a network, which sees colours."""
        layers = [m.weight for m in self.backbone.modules() if isinstance(m, nn.Conv2d)]
        kernels = [weight for weight in layers if weight.shape[1] > 3]
        return kernels if self.pose is None else kernels + self.pose.kernels()

    def parameters_of(self, names: tuple[str, ...]) -> list[Tensor]:
        """Of these outputs' own heads."""
        return [p for _, head in self._heads(names) for p in head.parameters()]

    def shared_parameters(self) -> list[Tensor]:
        """Those of no head."""
        networks = [self.backbone] if self.pose is None else [self.backbone, self.pose]
        return [p for network in networks for p in network.parameters()]

    def _heads(self, names: tuple[str, ...]) -> list[tuple[str, nn.Module]]:
        return [(name, self.heads[name]) for name in names if name in self.heads]


class Regression(FaceMethod):
    """All unknowns of a face from one image; subclasses say what is lost.

    They write ``hybrid_terms``, of ``image_terms`` and others of their own, and their ``Weights``.

    Args:
        weights: of the loss terms.
        face_model: "procedural" or the path of a face model's .npz.
        identity_dims: how many identity modes are estimated; all by default. The papers: 80 of BFM
            2009.
        expression_dims: how many expression modes; all by default. The papers: 64.
        albedo_dims: how many albedo modes; all by default. Deng: 80.
        region: the part of the face model that is drawn and given back; None = the whole mesh.
        backbone: a network of timm. The papers: ResNet-50.
        pretrained: start from the weights that timm downloads. The papers: of ImageNet.
        pooled: the numbers come from the mean of the backbone's features over the image, as in the
            papers; otherwise from all of them, ours: a small network then sees better where things
            are, but only images of ``image_size`` fit.
        backbone_options: further arguments of ``timm.create_model``.
        pose_width: channels after the first layer of a network for the pose, ours; the backbone
            then sees the face straightened by that pose (``methods.pose.PoseNet``), and only images
            of ``image_size`` fit. None = the backbone gives the pose, too, as in the papers, whose
            images are aligned.
        image_size: height and width of the input images, pixels.
        uv_size: height and width of the albedo maps given back, texels.
        light_channels: 1 = white light, 9 coefficients (Deng); 3 = coloured light, 27.
        focal: focal length for images of 224 pixels, pixels.
        distance_mm: from the camera to the face whose translation is zero.
        skin_threshold: a pixel whose probability of skin is above counts in full, another as much
            as its probability; None = all as their probability (Deng's public code).
        important_landmarks: numbers of those that count more; Deng's public code: 28 to 30 and 60
            to 67.
        importance: how many times as much they count; Deng: 20 (Sec. 4.1.2).
        coefficient_weights: within Eq. 5.
        recognizer: a face recognition network's file for Eq. 4.
        compared: in Eq. 4. "whole" = the picture with the rendering on black (Deng's public
            code);
            "shared" = of both only what is drawn and not covered by anything, ours.
        lr: learning rate of Adam.
        kernel_lr: learning rate of Muon (Jordan et al. 2024), ours, for the convolutions; None =
            Adam for all, as in the papers.
        landmark_pose: under which pose the landmarks judge the shape: the "estimated" one, as in
            the papers; or, ours, the "best" for that shape, so that the pose's errors are no noise
            in the shape's gradient. The pose is then judged with the shape held fixed, and in
            training the term is the sum of two errors.
        landmark_steps: for so many steps shape and pose learn from the landmarks alone; 0 =
            everything from the start, as in the papers.
        anneal_steps: let the learning rate fall to 0 along a cosine until this step, after 50 in
            which it rises; that of albedo and light begins with their own first step. None =
            constant, as in the papers.
        backend: of the rasterizer.

    Raises:
        MonofaceError: there is no such backbone, or it or the pose network takes other options or
            larger images.
        AssetNotFoundError: a file is missing.
    """

    triangles: Int[Tensor, "t 3"]
    pivot: Float[Tensor, "3"]
    importance: Float[Tensor, "68"]

    def __init__(
        self,
        weights: Any,
        face_model: str = "procedural",
        identity_dims: int | None = None,
        expression_dims: int | None = None,
        albedo_dims: int | None = None,
        region: str | None = "face",
        backbone: str = "resnet50",
        pretrained: bool = False,
        pooled: bool = True,
        backbone_options: dict[str, Any] | None = None,
        pose_width: int | None = None,
        image_size: int = 224,
        uv_size: int = 256,
        light_channels: Literal[1, 3] = 1,
        focal: float = 1015.0,
        distance_mm: float = 1000.0,
        skin_threshold: float | None = LIKELY,
        important_landmarks: tuple[int, ...] = (*NOSE, *INNER_MOUTH),
        importance: float = 20.0,
        coefficient_weights: CoefficientWeights = CoefficientWeights(),
        recognizer: str | None = None,
        compared: Literal["whole", "shared"] = "whole",
        lr: float = 1e-4,
        kernel_lr: float | None = None,
        landmark_pose: LandmarkPose = "estimated",
        landmark_steps: int = 0,
        anneal_steps: int | None = None,
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        self.weights, self.coefficient_weights = weights, coefficient_weights
        self.recognizer_file, self.compared = recognizer, compared
        self._recognizer: list[Recognizer] = []  # in a list, so that checkpoints do not hold it
        self.face_model = load_face_model(face_model, identity_dims, expression_dims, albedo_dims)
        self.region, self.image_size, self.light_channels = region, image_size, light_channels
        self.focal, self.distance_mm = focal, distance_mm
        self.skin_threshold = skin_threshold
        self.lr, self.kernel_lr = lr, kernel_lr
        self.landmark_pose = landmark_pose
        self.landmark_steps, self.anneal_steps = landmark_steps, anneal_steps
        self.backend = backend
        triangles = self.face_model.part(region) if region else self.face_model.triangles
        self.register_buffer("triangles", triangles, persistent=False)
        self.uv_grid = uv_grid(self.face_model.uv, triangles, uv_size)
        factors = torch.ones(68)
        factors[list(important_landmarks)] = importance
        self.register_buffer("importance", factors, persistent=False)
        self.register_buffer("pivot", landmark_pivot(self.face_model), persistent=False)
        self.outputs = {
            "identity": len(self.face_model.identity_basis),
            "expression": len(self.face_model.expression_basis),
            "albedo": len(self.face_model.albedo_basis),
            "angles": 3,
            "translation": 3,
            "light": 9 * light_channels,
        }
        pose = None
        if pose_width is not None:
            pose = PoseNet(image_size, pose_width, self.pivot.clone(), focal, distance_mm)
        self.network = Regressor(
            backbone, self.outputs, image_size, pretrained, pooled, backbone_options or {}, pose
        )
        self.to(memory_format=torch.channels_last)  # faster convolutions on both CPU and GPU

    def forward(self, images: Float[Tensor, "b v 3 h w"]) -> Reconstruction:
        """One face per image."""
        return self.reconstruction(self.unknowns(images), images.shape[-1])

    def unknowns(self, images: Float[Tensor, "b v 3 h w"]) -> Unknowns:
        """The network's estimates."""
        parts = self.estimates(images, tuple(self.outputs))
        light = parts.pop("light").unflatten(-1, (9, self.light_channels))
        return Unknowns(**parts, light=light)

    def estimates(
        self, images: Float[Tensor, "b v 3 h w"], names: tuple[str, ...]
    ) -> dict[str, Float[Tensor, "b v _"]]:
        """Some of the network's outputs by name, in their units."""
        parts = self.network(images.flatten(0, 1), names)
        return {name: SCALES[name] * p.unflatten(0, images.shape[:2]) for name, p in parts.items()}

    def reconstruction(self, x: Unknowns, size: int) -> Reconstruction:
        """The face that the unknowns describe, seen in images of this size."""
        vertices, camera = (
            self.shape(x.identity, x.expression),
            self.camera(x.angles, x.translation, size),
        )
        albedo = self.face_model.albedo(x.albedo)
        grid = self.uv_grid.to(albedo.device)
        return Reconstruction(
            vertices=vertices,
            neutral=self.shape(x.identity),
            triangles=self.triangles,
            uv=self.face_model.uv,
            camera=camera,
            landmarks=camera.project(self.face_model.landmarks(vertices))[0],
            albedo_map=bake(albedo, grid, self.triangles),
            light=lit(x.light),
            coefficients={name: getattr(x, name).flatten(2) for name in self.outputs},
        )

    def shape(
        self, identity: Float[Tensor, "b v ki"], expression: Float[Tensor, "b v ke"] | None = None
    ) -> Float[Tensor, "b v n 3"]:
        """Eq. 1: vertices in millimetres; without expression the neutral face."""
        if expression is not None:
            expression = expression * self.face_model.expression_std
        return self.face_model.shape(identity, expression)

    def camera(
        self, angles: Float[Tensor, "b v 3"], translation: Float[Tensor, "b v 3"], size: int
    ) -> PerspectiveCamera:
        """The pose as a camera for images of this size."""
        focal = self.focal * size / PIXELS
        return posed_camera(angles, translation, self.pivot, focal, self.distance_mm, size)

    def terms(self, batch: FaceBatch) -> dict[str, Tensor]:
        """The terms of the loss; names are the fields of ``weights``."""
        if self.training and self.global_step < self.landmark_steps:
            return self.terms_without_rendering(batch)
        return self.hybrid_terms(self.unknowns(batch["images"]), batch)

    def hybrid_terms(self, x: Unknowns, batch: FaceBatch) -> dict[str, Tensor]:
        """The terms of any unknowns."""
        raise NotImplementedError

    def drawing(self, x: Unknowns, size: int) -> Drawing:
        """The face that the unknowns describe, drawn into images of this size."""
        vertices, camera = (
            self.shape(x.identity, x.expression),
            self.camera(x.angles, x.translation, size),
        )
        albedo = self.face_model.albedo(x.albedo)
        light = lit(x.light)
        drawn = draw_lit(vertices, self.triangles, albedo, light, camera, size, self.backend)
        points = camera.project(self.face_model.landmarks(vertices))[0]
        return Drawing(vertices, camera, albedo, points, *drawn)

    def image_terms(self, x: Unknowns, drawn: Drawing, batch: FaceBatch) -> dict[str, Tensor]:
        """The losses in each image by itself: photometric, landmark, perceptual, coefficients."""
        images = batch["images"]
        weight = self.attention(images, drawn.mask)
        points = self.face_model.landmarks(drawn.vertices)
        return {
            "photometric": masked_l21(drawn.image, images, weight),
            "landmark": self.landmark_term(points, drawn.camera, batch),
            "perceptual": self.perceptual_term(drawn.image, drawn.mask, drawn.landmarks, batch),
            "coefficients": self.coefficient_term(x.identity, x.expression, x.albedo),
        }

    def terms_without_rendering(self, batch: FaceBatch) -> dict[str, Tensor]:
        """The same, where only shape and pose learn, from the landmarks; the others are 0."""
        images = batch["images"]
        parts = self.estimates(images, GEOMETRY)
        identity, expression = parts["identity"], parts["expression"]
        activation = expression * self.face_model.expression_std
        points = self.face_model.landmark_shape(identity, activation)
        camera = self.camera(parts["angles"], parts["translation"], images.shape[-1])
        landmark = self.landmark_term(points, camera, batch)
        terms = dict.fromkeys(asdict(self.weights), landmark.new_zeros(()))
        coefficients = self.coefficient_term(identity, expression)
        return {**terms, "landmark": landmark, "coefficients": coefficients}

    def attention(
        self, images: Float[Tensor, "b v 3 h w"], mask: Float[Tensor, "b v 1 h w"]
    ) -> Float[Tensor, "b v 1 h w"]:
        """A of Eq. 2: how much each pixel of the mask counts, by its colour; 0 outside."""
        inside = mask > 0
        colours = images.movedim(2, 0)[:, inside[:, :, 0]]
        probability = skin_probability(colours[..., None]).flatten()
        if self.skin_threshold is not None:
            probability = torch.where(probability > self.skin_threshold, 1.0, probability)
        return torch.zeros_like(mask).masked_scatter(inside, probability)

    def landmark_term(
        self, points: Float[Tensor, "b v 68 3"], camera: PerspectiveCamera, batch: FaceBatch
    ) -> Tensor:
        """Eq. 3, in pixels of images of 224 pixels; in training with ``landmark_pose`` "best" once
        for the pose and once for the shape.
        """
        return posed_landmark_l2(
            points,
            camera,
            batch["landmarks"],
            batch["landmark_confidence"],
            batch["images"].shape[-1] / PIXELS,
            self.landmark_pose if self.training else "estimated",
            self.importance,
        )

    def perceptual_term(
        self,
        rendered: Float[Tensor, "b v 3 h w"],
        mask: Float[Tensor, "b v 1 h w"],
        points: Float[Tensor, "b v 68 2"],
        batch: FaceBatch,
    ) -> Tensor:
        """Eq. 4; picture and rendering are aligned by their own landmarks, the picture by the
        rendering's where one is missing; 0 if it does not count.
        """
        if not self.weights.perceptual:
            return rendered.new_zeros(())
        photos, points = batch["images"], points.detach()
        if self.compared == "shared":
            shared = (mask > 0) * batch["masks"]
            photos, rendered = shared * photos, shared * rendered
        known = batch["landmark_confidence"][..., None] > 0
        landmarks = torch.where(known, batch["landmarks"], points)
        recognizer = self.recognizer()
        wanted = recognizer.photo_features(photos, landmarks)
        found = recognizer.features(align_112(rendered, points))
        return cosine_distance(found, wanted)

    def recognizer(self) -> Recognizer:
        """The frozen network of Eq. 4, read on first use.

        Raises:
            MonofaceError: no file is given.
            AssetNotFoundError: there is no such file.
        """
        if not self._recognizer:
            if self.recognizer_file is None:
                raise MonofaceError(
                    "the perceptual loss needs a face recognition network; give its file as "
                    "model.recognizer, or do without: model.weights.perceptual: 0"
                )
            self._recognizer.append(Recognizer(self.recognizer_file))
        return self._recognizer[0].to(self.device)

    def setup(self, stage: str) -> None:
        """Reads the recognizer before the first step, where losses are computed."""
        if stage != "predict" and self.weights.perceptual:
            self.recognizer()

    def coefficient_term(
        self, identity: Tensor, expression: Tensor, albedo: Tensor | None = None
    ) -> Tensor:
        """Eq. 5."""
        weights = self.coefficient_weights
        term = weights.identity * coefficient_l2(identity)
        term = term + weights.expression * coefficient_l2(expression)
        return term if albedo is None else term + weights.albedo * coefficient_l2(albedo)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Adam, 1e-4 in the papers; with ``kernel_lr`` partly Muon."""
        network = self.network
        shared = [*network.shared_parameters(), *network.parameters_of(GEOMETRY)]
        late = network.parameters_of(APPEARANCE)
        parts = [Part(shared, network.kernels()), Part(late, start=self.landmark_steps)]
        return optimizer_of_parts(parts, self.lr, self.kernel_lr, self.anneal_steps)


def lit(light: Float[Tensor, "b v 9 c"]) -> Float[Tensor, "b v 9 c"]:
    """With the ambient light that makes zero coefficients show a face."""
    return torch.cat([light[..., :1, :] + AMBIENT, light[..., 1:, :]], -2)
