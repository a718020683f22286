"""PGN: Self-supervised Learning of 3D Face Reconstruction with a Pose Guidance Network (Liu et al.,
ACCV 2020).

    Eq. 1     linear shape model            core.face_models.FaceModel.shape
    Eq. 2     projection by T               core.affine_pose.AffineCamera
    Sec. 3.2  landmarks in 3D               PGN.places, point_distance, terms["points"]
    Eq. 3-4   pose in closed form           core.affine_pose, PGN.pose_of
    Sec. 3.3  feature fusion                PGN.coefficients
    Eq. 5-6   visible texture swap          core.texture_swap
    Eq. 7     total                         Weights
    Eq. 8     sparse landmarks              point_distance, terms["landmark"]
    Eq. 9     photometric, census           core.census, terms["photometric"]
    Eq. 10    flow                          core.flow, terms["flow"]
    Eq. 11    semantic                      terms["semantic"]
    Eq. 12    regularization                terms["regularization"]
    Sec. 4    three steps                   PGN.phase
    Fig. 1    ground truth swapped in       benchmarks.swap

Differs from the paper: T of Eq. 4 has twelve free numbers, so that it absorbs a face's proportions
and no loss teaches them; by default T is the best f R and t, as Eq. 3 writes it (``pose``). The
distances of Eq. 8 are in pixels of images of 256 pixels, which the paper does not say. The losses
of Eq. 9 and 10 leave out what covers the face, as far as the data know. Of the paper's schedule,
"sequentially 2 and 4 images", the shares are ours. The network gives landmarks relative to a mean
face in the middle of the image. The texture given back is the image's, unlit.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.nn.functional import avg_pool2d

from core.affine_pose import AffineCamera, affine_pose, scaled_rotation, similarity_pose
from core.camera import Camera, frontal
from core.census import census_loss
from core.contracts import FaceBatch, Reconstruction
from core.errors import AssetNotFoundError, MonofaceError
from core.face_models import FaceModel, load_face_model
from core.flow import RaftFlow, flow_loss, lucas_kanade
from core.lighting import FACTORS
from core.losses import cosine_distance, masked_l1
from core.precision import without_autocast
from core.rasterize import Backend
from core.render import draw
from core.rotation import rotation_from_euler, rotation_from_vector
from core.texture_swap import emphasis, swap_textures
from core.uv import bake, unwrap, uv_grid
from methods.base import FaceMethod
from methods.cli import main
from methods.optimizers import Part, optimizer_of_parts
from methods.pgn_networks import HALVINGS, Encoder, NumberHead, PointRegressor, PositionMap

PIXELS = 256  # side of the paper's images, in whose pixels landmarks are compared
SMALLEST = 2**HALVINGS
CHOSEN = {"images", "masks", "landmarks", "landmark_confidence"}  # what a part of a batch has
CHOSEN |= {"landmarks_3d", "has_landmarks_3d"}

# Factors of the outputs, ours: the last layers add up hundreds of features, so that without them
# one step of Adam at 1e-3 can move a landmark across the image.
POINT_SCALE, NUMBER_SCALE, POSE_SCALE = 0.1, 0.3, 0.1

# Standard deviations of the random heads of landmark_modes, ours: pitch, yaw and roll in radians,
# coefficients, size, and place in units of the image's side.
SPREAD_ANGLES, SPREAD_FACES, SPREAD_SCALE, SPREAD_PLACE = (0.2, 0.5, 0.2), 0.7, 0.1, 0.04

Phase = Literal["points", "single", "multi"]
Pose = Literal["similarity", "affine", "regressed"]


@dataclass(frozen=True)
class Weights:
    """Weights of the terms, Eq. 7 and Sec. 4.

    Args:
        points: of step 1's 3D and 2D landmarks; sums over the points, pixels of images of 256.
        landmark: lambda_l, Eq. 8; the same unit.
        photometric: lambda_p, Eq. 9; bits of 7 x 7 census.
        flow: lambda_f, Eq. 10; pixels of images of 256.
        semantic: lambda_s, Eq. 11.
        regularization: lambda_r, Eq. 12; sums of coefficients in standard deviations.
    """

    points: float = 1.0
    landmark: float = 1.0
    photometric: float = 0.2
    flow: float = 0.2
    semantic: float = 10.0
    regularization: float = 1.0


torch.serialization.add_safe_globals([Weights])


class PGN(FaceMethod):
    """Landmarks in 3D guide the pose; identity and expression are learned around it.

    Training has three phases (Sec. 4): the encoder and the landmarks, from data with 3D and data
    with 2D landmarks; then, with these fixed, identity and expression from single images; then from
    two, and at last from all images of a clip. Clips of one image have no losses between images.

    Args:
        face_model: "procedural" or the path of a face model's .npz.
        identity_dims: how many identity modes are estimated; all by default. The paper: 199 of BFM
            2009.
        expression_dims: how many expression modes; all by default. The paper: 29 of FaceWarehouse.
        region: the part of the face model that is drawn and given back; None = the whole mesh.
        image_size: height and width of the input images, pixels; a multiple of 32.
        uv_size: height and width of the texture maps given back, texels.
        width: channels after the encoder's first layer; PRNet: 16.
        blocks: residual blocks of the encoder at each size; PRNet: 2.
        points: "map" = landmarks from a UV position map; "linear" = from linear layers, the paper's
            cheap alternative.
        map_size: height and width of the position map, texels; the paper: 256.
        map_width: channels of its first layer; PRNet: 512.
        hidden: width of the linear layers.
        pooled: the heads of the coefficients average their features over the image, as in the
            paper; otherwise they see all of them, ours, for thin networks.
        pose: "similarity" = scale, rotation and translation that best fit the landmarks, Eq. 3;
            "affine" = Eq. 4; "regressed" = from a head of its own, without landmarks (the baseline
            of Table 2): step 1 then trains that head and those of the coefficients on the data's
            landmarks.
        census: compare patterns in Eq. 9; otherwise colours, Lp- of Fig. 5.
        drawn_pairs: so many ordered pairs of each clip's images, others in each step, have the
            losses of Eq. 10 and 11, which are dear; None = all of them, as in the paper.
        flow_stride: images of Eq. 10 are made so many times smaller first; the paper: 1.
        raft: weights of torchvision's RAFT for Eq. 10; None = Lucas-Kanade, which needs none.
        face_extent_mm: how much of the face at the zero output the image's width shows.
        start_from: checkpoint of an earlier training whose weights are the first.
        landmark_steps: length of the first phase, 600,000 in the paper.
        single_steps: of the second, 400,000.
        pair_steps: of the third's part with two images of each clip.
        multi_clips: so many clips of a batch are taken in the third phase; None = all.
        weights: of the loss terms.
        lr: learning rate of Adam.
        kernel_lr: learning rate of Muon (Jordan et al. 2024), ours, for the convolutions; None =
            Adam for all, as in the paper.
        anneal_steps: let the learning rates fall to 0 along a cosine until this step, those of the
            first phase until its end; None = no, as in the paper.
        halve_every: halve the learning rates after so many steps of a phase; the paper: 100,000.
        backend: of the rasterizer.

    Raises:
        MonofaceError: a size does not fit.
        AssetNotFoundError: a file is missing.
    """

    triangles: Int[Tensor, "t 3"]
    emphasis: Float[Tensor, " n"]
    pivot: Float[Tensor, "3"]
    mean_points: Float[Tensor, "68 3"]

    def __init__(
        self,
        face_model: str = "procedural",
        identity_dims: int | None = None,
        expression_dims: int | None = None,
        region: str | None = "face",
        image_size: int = 256,
        uv_size: int = 256,
        width: int = 16,
        blocks: int = 2,
        points: Literal["map", "linear"] = "map",
        map_size: int = 256,
        map_width: int = 512,
        hidden: int = 512,
        pooled: bool = True,
        pose: Pose = "similarity",
        census: bool = True,
        drawn_pairs: int | None = None,
        flow_stride: int = 1,
        raft: Path | None = None,
        face_extent_mm: float = 190.0,
        start_from: Path | None = None,
        landmark_steps: int = 600_000,
        single_steps: int = 400_000,
        pair_steps: int = 200_000,
        multi_clips: int | None = None,
        weights: Weights = Weights(),
        lr: float = 1e-4,
        kernel_lr: float | None = None,
        anneal_steps: int | None = None,
        halve_every: int | None = None,
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        if image_size < SMALLEST or image_size % SMALLEST:
            raise MonofaceError(
                f"PGN: image_size is {image_size}; wanted a multiple of {SMALLEST}, since the "
                "encoder halves it five times"
            )
        self.weights, self.pose, self.census, self.backend = weights, pose, census, backend
        self.drawn_pairs, self.flow_stride = drawn_pairs, flow_stride
        self.image_size, self.face_extent_mm = image_size, face_extent_mm
        self.start_from, self.multi_clips = start_from, multi_clips
        self.landmark_steps, self.single_steps = landmark_steps, single_steps
        self.pair_steps = pair_steps
        self.lr, self.kernel_lr = lr, kernel_lr
        self.anneal_steps, self.halve_every = anneal_steps, halve_every
        model = load_face_model(face_model, identity_dims, expression_dims, albedo_dims=0)
        self.face_model = model
        self.dims = [len(model.identity_basis), len(model.expression_basis)]
        triangles = model.part(region) if region else model.triangles
        self.register_buffer("triangles", triangles, persistent=False)
        self.register_buffer("emphasis", emphasis(model), persistent=False)
        self.uv_grid = uv_grid(model.uv, triangles, uv_size)
        landmarks = model.landmarks(model.mean)
        pivot = (landmarks.amin(0) + landmarks.amax(0)) / 2
        self.register_buffer("pivot", pivot, persistent=False)
        mean_points = (landmarks - pivot) @ frontal(pivot) / face_extent_mm
        self.register_buffer("mean_points", mean_points, persistent=False)
        self.raft = [RaftFlow(raft)] if raft else []  # in a list: checkpoints do not hold it

        self.encoder = Encoder(width, blocks)
        channels, side = self.encoder.channels, image_size // 2**HALVINGS
        self.position: PositionMap | PointRegressor | None = None
        self.f_pose: NumberHead | None = None
        if pose == "regressed":
            self.f_pose = NumberHead(channels, side, 7, hidden, pooled)
        elif points == "map":
            corners = model.uv[model.landmark_vertices] * model.landmark_weights[..., None]
            self.position = PositionMap(channels, side, map_size, map_width, corners.sum(1))
        else:
            modes = landmark_modes(model, face_extent_mm) / POINT_SCALE
            self.position = PointRegressor(channels, side, hidden, modes)
        self.f_identity = NumberHead(channels, side, self.dims[0], hidden, pooled)
        self.f_expression = NumberHead(channels, side, self.dims[1], hidden, pooled)
        self.to(memory_format=torch.channels_last)  # faster convolutions on both CPU and GPU

    def forward(self, images: Float[Tensor, "b v 3 h w"]) -> Reconstruction:
        """One face per image, of one identity for the v images of a person.

        The landmarks are those of T (Eq. 2), also of an affine one; the camera has scale, rotation
        and translation only, so that no shape hides in it.
        """
        found = self.estimate(self.features(images), images.shape[-1])
        vertices = self.shape(found.identity, found.expression)
        camera = scaled_rotation(found.pose, found.corners.mean(-2))
        texture = self.texture(images, vertices, camera)
        light = torch.zeros_like(found.pose[..., :1, :1]).expand(-1, -1, 9, -1).clone()
        light[..., 0, 0] = 1 / FACTORS[0]  # the colours as they are
        coefficients = {"identity": found.identity, "expression": found.expression}
        coefficients["pose"] = found.pose.flatten(2)
        if found.places is not None:
            coefficients["points"] = found.places.flatten(2)
        return Reconstruction(
            vertices=vertices,
            neutral=self.shape(found.identity),
            triangles=self.triangles,
            uv=self.face_model.uv,
            camera=camera,
            landmarks=found.landmarks[..., :2],
            albedo_map=texture,
            light=light,
            coefficients=coefficients,
        )

    def features(self, images: Float[Tensor, "b v 3 h w"]) -> Float[Tensor, "b v c i j"]:
        """F, of the shared encoder."""
        features: Tensor = self.encoder(2 * images.flatten(0, 1) - 1)
        return features.unflatten(0, images.shape[:2])

    def places(self, features: Float[Tensor, "b v c i j"], size: int) -> Float[Tensor, "b v 68 3"]:
        """X_UV: the landmarks in the image, pixels, z away from the viewer from an origin of its
        own.
        """
        assert self.position is not None
        numbers = self.position(features.flatten(0, 1)).unflatten(0, features.shape[:2])
        middle = numbers.new_tensor([0.5, 0.5, 0.0])
        return size * (middle + self.mean_points + POINT_SCALE * numbers)

    def estimate(
        self, features: Float[Tensor, "b v c i j"], size: int, together: bool = True
    ) -> "Estimate":
        """Coefficients and pose.

        Args:
            features: of the images.
            size: of the images.
            together: the v images have one identity; otherwise each its own.
        """
        identity, expression = self.coefficients(features, together)
        activation = expression * self.face_model.expression_std
        corners = self.face_model.landmark_shape(identity, activation)
        places = None
        if self.f_pose is None:
            places = self.places(features, size)
            pose = self.pose_of(corners, places)
        else:
            pose = self.regressed_pose(features, size)
        with without_autocast(corners):
            landmarks = corners @ pose[..., :3].mT + pose[..., None, :, 3]
        return Estimate(identity, expression, corners, places, pose, landmarks)

    def coefficients(
        self, features: Float[Tensor, "b v c i j"], together: bool
    ) -> tuple[Float[Tensor, "b v ki"], Float[Tensor, "b v ke"]]:
        """Identity from the mean of the features of a clip, expression from those of each image."""
        batch = features.shape[:2]
        expression = self.f_expression(features.flatten(0, 1)).unflatten(0, batch)
        if together:
            identity = self.f_identity(features.mean(1))[:, None].expand(*batch, -1)
        else:
            identity = self.f_identity(features.flatten(0, 1)).unflatten(0, batch)
        return NUMBER_SCALE * identity, NUMBER_SCALE * expression

    def pose_of(
        self, corners: Float[Tensor, "b v 68 3"], places: Float[Tensor, "b v 68 3"]
    ) -> Float[Tensor, "b v 3 4"]:
        """T from the landmarks of the face and their places in the image."""
        solve = affine_pose if self.pose == "affine" else similarity_pose
        with without_autocast(corners):
            return solve(corners, places)

    def regressed_pose(
        self, features: Float[Tensor, "b v c i j"], size: int
    ) -> Float[Tensor, "b v 3 4"]:
        """T from a head's scale, rotation vector and place; zero outputs are a frontal face."""
        assert self.f_pose is not None
        numbers = self.f_pose(features.flatten(0, 1)).unflatten(0, features.shape[:2])
        numbers = POSE_SCALE * numbers
        with without_autocast(numbers):
            scale = size / self.face_extent_mm * torch.exp(numbers[..., :1, None])
            linear = scale * (frontal(numbers) @ rotation_from_vector(numbers[..., 1:4]))
            middle = size * (numbers[..., 4:] + numbers.new_tensor([0.5, 0.5, 0.0]))
            offset = middle[..., None] - linear @ self.pivot[:, None]
        return torch.cat([linear, offset], -1)

    def shape(
        self, identity: Float[Tensor, "b v ki"], expression: Float[Tensor, "b v ke"] | None = None
    ) -> Float[Tensor, "b v n 3"]:
        """Eq. 1: vertices in millimetres; without expression the neutral face."""
        if expression is not None:
            expression = expression * self.face_model.expression_std
        return self.face_model.shape(identity, expression)

    def terms(self, batch: FaceBatch) -> dict[str, Tensor]:
        """The terms of Eq. 7 and step 1's; 0 are those that the phase does not have.

        Evaluation has those of all phases.
        """
        phase = self.phase if self.training else "multi"
        images, masks = batch["images"], batch["masks"]
        terms = dict.fromkeys(vars(self.weights), images.new_zeros(()))
        size, guided = images.shape[-1], self.pose != "regressed"
        if phase == "points" and guided:
            return terms | {
                "points": label_distance(self.places(self.features(images), size), batch)
            }
        if phase == "multi" and self.training:
            batch = chosen(batch, self.multi_clips, self.frames)
            images, masks = batch["images"], batch["masks"]
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.is_fixed):
            features = self.features(images)
        found = self.estimate(features, size, together=phase == "multi")
        if found.places is None:
            terms["landmark"] = label_distance(found.landmarks, batch)
        else:
            terms["landmark"] = point_distance(found.landmarks, found.places, size)  # Eq. 8
            if not self.training:
                terms["points"] = label_distance(found.places, batch)
        terms["regularization"] = regularization(found.identity, found.expression)
        if phase == "multi" and images.shape[1] > 1:
            vertices = self.shape(found.identity, found.expression)
            camera = AffineCamera.of(found.pose)
            terms |= self.swap_terms(images, vertices, camera, masks, features)
        return terms

    def swap_terms(
        self,
        images: Float[Tensor, "b v 3 h w"],
        vertices: Float[Tensor, "b v n 3"],
        camera: Camera,
        masks: Float[Tensor, "b v 1 h w"],
        features: Float[Tensor, "b v c i j"],
    ) -> dict[str, Tensor]:
        """Eq. 9 to 11 for ordered pairs of a clip's images; without those of weight 0."""
        swapped = swap_textures(
            images, vertices, self.triangles, camera, self.emphasis, backend=self.backend
        )
        weights, terms = self.weights, {}
        pairs = swapped.images.shape[:3]

        def of_pairs(values: Tensor) -> Tensor:
            return values[:, :, None].expand(*pairs, *values.shape[2:]).flatten(0, 2)

        drawn, target = swapped.images.flatten(0, 2), of_pairs(images)
        if weights.photometric:
            compare = census_loss if self.census else masked_l1
            terms["photometric"] = compare(drawn, target, of_pairs(swapped.weight * masks))  # Eq. 9
        if not (weights.flow or weights.semantic):
            return terms
        some = some_pairs(pairs, self.drawn_pairs, drawn.device)
        drawn, target = drawn[some], target[some]
        if weights.flow:
            weight = (swapped.compared * masks[:, :, None]).flatten(0, 2)[some]
            terms["flow"] = self.flow_term(target, drawn, weight)
        if weights.semantic:
            seen = self.encoder(2 * drawn - 1).flatten(1).float()
            wanted = of_pairs(features.detach())[some].flatten(1).float()
            terms["semantic"] = cosine_distance(seen, wanted)  # Eq. 11
        return terms

    def flow_term(
        self,
        target: Float[Tensor, "n 3 h w"],
        drawn: Float[Tensor, "n 3 h w"],
        weight: Float[Tensor, "n 1 h w"],
    ) -> Float[Tensor, ""]:
        """Eq. 10, from the photo to what was drawn, in pixels of images of 256 pixels."""
        unit = PIXELS / target.shape[-1]
        if self.flow_stride > 1:
            target, drawn, weight = (
                avg_pool2d(x, self.flow_stride) for x in (target, drawn, weight)
            )
            weight = weight * (weight >= 1)
        if self.raft:
            flow = self.raft[0].to(drawn.device)(target, drawn)
        else:
            flow = lucas_kanade(target, drawn, weight)
        return flow_loss(flow, weight) * (unit * self.flow_stride)

    def texture(
        self,
        images: Float[Tensor, "b v 3 h w"],
        vertices: Float[Tensor, "b v n 3"],
        camera: Camera,
    ) -> Float[Tensor, "b v 3 uh uw"]:
        """The colours of the images as a UV map; where one side of the face is hidden those of the
        other, where both are the model's mean.
        """
        size = (images.shape[-2], images.shape[-1])
        images = images.float()
        grid = self.uv_grid.to(images.device)
        surface = draw(vertices, self.triangles, self.face_model.uv, camera, size, self.backend)
        texture, visible = unwrap(images, vertices, camera, surface, grid, self.triangles)
        texture = torch.where(visible > 0, texture, texture.flip(-1))
        mean = bake(self.face_model.albedo_mean, grid, self.triangles)
        return torch.where((visible > 0) | (visible.flip(-1) > 0), texture, mean)

    @property
    def phase(self) -> Phase:
        """Of the training's current step."""
        step = self.global_step
        if step < self.landmark_steps:
            return "points"
        return "single" if step < self.landmark_steps + self.single_steps else "multi"

    @property
    def frames(self) -> int | None:
        """How many images of a clip are taken in the third phase; None = all."""
        pairs = self.landmark_steps + self.single_steps + self.pair_steps
        return 2 if self.global_step < pairs else None

    @property
    def is_fixed(self) -> bool:
        """Encoder and landmarks learn no more; without landmarks the encoder learns on until the
        third phase, whose semantic loss would change it.
        """
        return self.phase == "multi" or (self.phase == "single" and self.pose != "regressed")

    def on_train_batch_start(self, batch: FaceBatch, batch_idx: int) -> None:
        """Fixes what the phase does not train, in evaluation mode."""
        if self.encoder.training and self.is_fixed:
            self.train()

    def train(self, mode: bool = True) -> "PGN":
        """But for what the phase does not train."""
        super().train(mode)
        for part in (self.encoder, self.position):
            if part is not None:
                part.requires_grad_(not self.is_fixed)
                part.train(mode and not self.is_fixed)
        return self

    def setup(self, stage: str) -> None:
        """Reads the weights to start from, unless a checkpoint of this training is going to be.

        Raises:
            AssetNotFoundError: the file is missing.
            MonofaceError: it holds another network.
        """
        if self.start_from is None or self.trainer.ckpt_path is not None:
            return
        if not self.start_from.is_file():
            raise AssetNotFoundError(
                "weights of an earlier step of PGN",
                f"'{self.start_from}'",
                "Train that step first; or start without: --model.start_from null.",
            )
        state = torch.load(self.start_from, map_location="cpu", weights_only=True)["state_dict"]
        try:
            self.load_state_dict(state)
        except RuntimeError as error:
            raise MonofaceError(
                f"'{self.start_from}' holds another network than the configured one: "
                f"{' '.join(str(error).split())[:300]}"
            ) from error

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Adam, 1e-4 in the paper (Sec. 4); with ``kernel_lr`` partly Muon."""
        first: list[Any] = [self.encoder, self.position]
        late: list[Any] = [self.f_identity, self.f_expression]
        begin, end = self.landmark_steps, self.landmark_steps
        if self.f_pose is not None:
            first, late = [self.encoder, self.f_pose, *late], []
            end = begin + self.single_steps
        parts = []
        for modules, start, stop in ((first, 0, end), (late, begin, None)):
            found = [module for module in modules if module is not None]
            parameters = [p for module in found for p in module.parameters()]
            kernels = [kernel for module in found for kernel in module.kernels()]
            parts.append(Part(parameters, kernels, start, stop))
        return optimizer_of_parts(
            parts, self.lr, self.kernel_lr, self.anneal_steps, self.halve_every
        )


@dataclass(frozen=True)
class Estimate:
    """What the networks say of images.

    Attributes:
        identity, expression: in standard deviations.
        corners: X, the landmarks of the face with its expression, millimetres.
        places: X_UV; None for a regressed pose.
        pose: T.
        landmarks: T [X; 1], pixels.
    """

    identity: Float[Tensor, "b v ki"]
    expression: Float[Tensor, "b v ke"]
    corners: Float[Tensor, "b v 68 3"]
    places: Float[Tensor, "b v 68 3"] | None
    pose: Float[Tensor, "b v 3 4"]
    landmarks: Float[Tensor, "b v 68 3"]


def point_distance(
    found: Float[Tensor, "b v 68 3"], places: Float[Tensor, "b v 68 3"], size: int
) -> Float[Tensor, ""]:
    """Eq. 8: the sum of the absolute differences, in pixels of images of 256 pixels; the mean over
    the images.
    """
    return (found - places).abs().sum((-2, -1)).mean() * (PIXELS / size)


def label_distance(points: Float[Tensor, "b v 68 3"], batch: FaceBatch) -> Float[Tensor, ""]:
    """Step 1: the distance from the data's landmarks, as in Eq. 8.

    In x, y and z, from the middle of each face, for images whose 3D landmarks are known, in x and y
    for the others, weighted with confidence; the means of both kinds of images are added.
    """
    flat = (points[..., :2] - batch["landmarks"]).abs().sum(-1)
    flat = (flat * batch["landmark_confidence"]).sum(-1)
    labelled = batch.get("has_landmarks_3d", torch.zeros_like(flat, dtype=torch.bool))
    distance = (flat * ~labelled).sum() / (~labelled).sum().clamp(min=1)
    if "landmarks_3d" in batch:
        wanted = batch["landmarks_3d"] * points.new_tensor([1, 1, -1])  # z away from the viewer
        depth = [solid[..., 2] - solid[..., 2].mean(-1, keepdim=True) for solid in (points, wanted)]
        solid = (points - wanted)[..., :2].abs().sum((-2, -1)) + (depth[0] - depth[1]).abs().sum(-1)
        distance = distance + (solid * labelled).sum() / labelled.sum().clamp(min=1)
    return distance * (PIXELS / batch["images"].shape[-1])


def some_pairs(
    pairs: tuple[int, ...], count: int | None, device: torch.device
) -> Int[Tensor, " n"]:
    """Numbers of ordered pairs, of b clips x v images x s others, ``count`` of each clip at random;
    None = all.
    """
    clips, of_clip = pairs[0], pairs[1] * pairs[2]
    chance = torch.rand(clips, of_clip, device=device)
    chosen = chance.topk(min(count or of_clip, of_clip)).indices.sort().values
    return (chosen + of_clip * torch.arange(clips, device=device)[:, None]).flatten()


def landmark_modes(model: FaceModel, extent_mm: float, faces: int = 4000) -> Tensor:
    """How landmarks of random heads differ, as principal directions times standard deviations.

    "k 204", x, y and z of point after point, in units of the image's side; ours.

    Args:
        model: the face model.
        extent_mm: how much of the face the image's width shows.
        faces: how many are drawn, always the same.
    """
    random = torch.Generator().manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=random)

    angles = normal(faces, 3) * torch.tensor(SPREAD_ANGLES)
    turned = frontal(angles) @ rotation_from_euler(*angles.unbind(-1))
    identity = SPREAD_FACES * normal(faces, len(model.identity_basis))
    expression = SPREAD_FACES * normal(faces, len(model.expression_basis))
    corners = model.landmark_shape(identity, expression * model.expression_std)
    middle = model.landmarks(model.mean).mean(0)
    scale = (1 + SPREAD_SCALE * normal(faces, 1, 1)) / extent_mm
    points = scale * ((corners - middle) @ turned.mT) + SPREAD_PLACE * normal(faces, 1, 3)
    points = points.flatten(1)
    _, deviation, modes = torch.linalg.svd(points - points.mean(0), full_matrices=False)
    return deviation[:, None] / faces**0.5 * modes


def regularization(
    identity: Float[Tensor, "b v ki"], expression: Float[Tensor, "b v ke"]
) -> Float[Tensor, ""]:
    """Eq. 12; coefficients are in standard deviations."""
    return (identity.abs().sum(-1) + expression.abs().sum(-1) / 2).mean()


def chosen(batch: FaceBatch, clips: int | None, frames: int | None) -> FaceBatch:
    """The first clips of a batch, and the first frames of each; None = all."""
    known = {key: value for key, value in batch.items() if key in CHOSEN}
    return {**batch, **{key: value[:clips, :frames] for key, value in known.items()}}  # type: ignore


if __name__ == "__main__":
    main("methods.pgn.PGN")
