"""FML: Face Model Learning from Videos (Tewari et al., CVPR 2019).

    Eq. 1-2   identity on a deformation graph    core.deformation_graph, FML.displacements
    Eq. 3     with the fixed blendshapes         FML.shape
    Eq. 4-5   orthogonal complement layer        core.deformation_graph.orthogonal_complement
    Eq. 6     learned reflectance                FML.reflectance
    Eq. 7     light                              core.lighting.shade_points
    Eq. 8     photometric, landmarks             methods.fml_losses, core.losses.landmark_l2
    Eq. 10    graph smoothness                   methods.fml_losses.graph_smoothness
    Eq. 11    reflectance sparsity               methods.fml_losses.reflectance_sparsity
    Eq. 12    expression                         methods.fml_losses.expression_l2
    Sec. 3.4  Siamese towers, shared identity    FML.unknowns, methods.fml_network
    Sec. 4    stages of the training             expression_steps, callbacks.reflectance
    Suppl. 2  weights                            Weights

Of the face model only the mean shape, the expressions and the landmarks are used: how people differ
in shape and colour is learned, from one mesh of one colour, and
``python -m methods.fml export`` writes it as a face model for the other methods.

Where the paper is silent: images in [0, 1]; landmark distances in units of the image's side; graph
displacements in centimetres, in Eq. 10 in decimetres (in smaller units its weight would leave
people hardly any shape); a term of the identity counts once for a clip. The learned bases start
as the smoothest functions on the graph, as bases of zeros would have no gradient. "The last forward
pass" of Eq. 11 is the present one without gradient, as the former one showed other people. Sec. 3.2
has 80 blendshapes, Table 3 of the supplement 64: as many as are asked for. Each unknown is its
network's output times a constant; a missing landmark leaves the others' mean as it is.
"""

import sys
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from core.camera import PerspectiveCamera
from core.contracts import FaceBatch, Reconstruction
from core.deformation_graph import build_graph, orthogonal_complement, orthonormal
from core.face_models import load_face_model
from core.face_models.contour import sliding_jaw
from core.image import sample
from core.lighting import shade_points
from core.mesh import edges, used
from core.normals import vertex_normals
from core.precision import without_autocast
from core.resection import LandmarkPose, posed_landmark_l2
from core.uv import bake, uv_grid
from methods.base import FaceMethod, batch_norms
from methods.cli import main
from methods.fml_losses import (
    expression_l2,
    graph_smoothness,
    reflectance_sparsity,
    vertex_photometric,
)
from methods.fml_network import FMLNetwork
from methods.optimizers import Part, optimizer_of_parts
from methods.pose import PIXELS, POSE_SCALES, PoseNet, landmark_pivot, posed_camera
from methods.regression import SCALES, Unknowns, lit

SKIN = (0.70, 0.52, 0.44)  # the one colour that the mesh starts with
INNER_CORNERS = (60, 64)  # of the 68 landmarks those that a tracker of 66 lacks
CENTIMETRE = 10.0  # mm, the unit of graph displacements
DECIMETRE = 10.0  # cm, their unit in Eq. 10
SHAPE_START, ALBEDO_START = 0.2, 0.05  # cm and RGB: RMS of the bases' first functions at the start


@dataclass(frozen=True)
class Weights:
    """Weights of Eq. 8-9, Sec. 2 of the supplement.

    Args:
        photometric: lambda_pho times the number of visible vertices; images in [0, 1].
        landmark: lambda_lan; squared distances in units of the image's side.
        smooth: lambda_smo of Eq. 10; squared decimetres.
        sparse: lambda_spa of Eq. 11.
        expression: lambda_ble of Eq. 12.
    """

    photometric: float = 1.6
    landmark: float = 4.7
    smooth: float = 1e-3
    sparse: float = 1e-7
    expression: float = 1e-8


torch.serialization.add_safe_globals([Weights])


@dataclass(frozen=True)
class Lit:
    """The drawn part's p vertices as each frame sees them.

    Attributes:
        pixels: where they are.
        colours: reflectance times light.
        facing: 1 where the surface is turned to the camera, else 0; no gradient.
    """

    pixels: Float[Tensor, "b v p 2"]
    colours: Float[Tensor, "b v p 3"]
    facing: Float[Tensor, "b v p"]


class FML(FaceMethod):
    """One identity for all frames of a clip, each frame's own pose, expression and light; learns
    the face model with it.

    Args:
        face_model: "procedural" or the path of a face model's .npz: its mean and expressions.
        shape_dims: columns of the learned shape basis.
        albedo_dims: columns of the learned reflectance basis.
        expression_dims: how many expression modes are estimated; all by default.
        nodes: of the deformation graph.
        region: the part of the face model that is learned and given back; None = the whole mesh.
        jaw: "sliding" lets the jaw's landmarks follow the outline of a turned head (the paper);
            "fixed" for data with 3D landmarks seen through the head.
        occlusion: "ignored" as in the paper, or "masked": vertices count only where the data's
            masks show the face.
        image_size: height and width of the input images, pixels.
        width: factor of the networks' channels.
        stride: of the first convolution; smaller for small images.
        normalized: put normalizations before ReLUs, ours: a network without any learns only at a
            small rate; at a large one the units of the shared identity network die. The frames'
            convolutions are normalized over all frames of the batch, so that while it trains a
            clip's features depend on the other clips (but see ``landmark_steps``); the shared
            identity network clip by clip.
        pose_width: channels after the first layer of a network for each frame's pose, ours; the
            others then see the face straightened by that pose (``methods.pose.PoseNet``), and only
            images of ``image_size`` fit; its batch norms are over all frames of the batch. None =
            Table 3 gives the pose, too, as in the paper.
        uv_size: height and width of the albedo maps given back, texels.
        light_channels: 1 = white light, 9 coefficients; 3 = coloured light, 27 (the paper).
        focal: focal length for images of 224 pixels, pixels.
        distance_mm: from the camera to the face whose translation is zero.
        weights: of the loss terms.
        lr: learning rate of Adam.
        basis_lr: that of the learned face model; None = ``lr``.
        kernel_lr: learning rate of Muon (Jordan et al. 2024), ours, for the convolutions; None =
            Adam for them, too.
        head_lr: that of Muon, ours, for the matrix that gives the identity of shape: its directions
            are learned at the same time instead of one after the other; None = Adam.
        detach_identity: the frames' own unknowns give the identity that they are estimated from no
            gradient, ours: its numbers learn from shape and reflectance alone. Both still train the
            features.
        expression_steps: for so many steps identity and reflectance stay at their means, and pose,
            expression and light learn alone ("we pre-train the expression model").
        landmark_pose: under which pose the landmarks judge the shape: the "estimated" one, as in
            the paper; or, ours, the "best" for that shape, so that the pose's errors are no noise
            in the shape's gradient. The pose is then judged with the shape held fixed, and in
            training the term is the sum of two errors. A sliding jaw's points stay those of the
            estimated pose.
        landmark_steps: for so many steps all learn from the landmarks alone, twice as fast; 0 =
            from the images, too, from the start, as in the paper. Afterwards batch norms, also the
            pose's, keep the statistics that they have by then: those of a batch of a few clips,
            each in one light, are too uncertain for colours to learn. That takes some 50 steps or
            more; with 0 they never do.
        anneal_steps: let the learning rate fall to 0 along a cosine until this step, after 50 in
            which it rises; that of colours begins with their own first step. None = constant.

    Raises:
        DataError: the region cannot be decimated to so many nodes, or these do not do for so many
            dims.
        MonofaceError: images or ``pose_width`` are too small.
    """

    triangles: Int[Tensor, "t 3"]
    pivot: Float[Tensor, "3"]
    drawn: Int[Tensor, " p"]
    local: Int[Tensor, "t 3"]
    edges: Int[Tensor, "e 2"]
    blendshapes: Float[Tensor, "m k"]

    def __init__(
        self,
        face_model: str = "procedural",
        shape_dims: int = 500,
        albedo_dims: int = 500,
        expression_dims: int | None = None,
        nodes: int = 521,
        region: str | None = "face",
        jaw: Literal["fixed", "sliding"] = "sliding",
        occlusion: Literal["ignored", "masked"] = "ignored",
        image_size: int = 240,
        width: float = 1.0,
        stride: int = 4,
        normalized: bool = False,
        pose_width: int | None = None,
        uv_size: int = 256,
        light_channels: Literal[1, 3] = 3,
        focal: float = 1015.0,
        distance_mm: float = 1000.0,
        weights: Weights = Weights(),
        lr: float = 1e-4,
        basis_lr: float | None = None,
        kernel_lr: float | None = None,
        head_lr: float | None = None,
        detach_identity: bool = False,
        expression_steps: int = 0,
        landmark_pose: LandmarkPose = "estimated",
        landmark_steps: int = 0,
        anneal_steps: int | None = None,
    ) -> None:
        super().__init__()
        self.weights, self.source = weights, face_model
        self.face_model = load_face_model(face_model, 0, expression_dims, 0)
        self.image_size, self.light_channels, self.occlusion = image_size, light_channels, occlusion
        self.focal, self.distance_mm = focal, distance_mm
        self.lr, self.kernel_lr, self.head_lr = lr, kernel_lr, head_lr
        self.basis_lr = lr if basis_lr is None else basis_lr
        self.landmark_pose = landmark_pose
        self.expression_steps, self.landmark_steps = expression_steps, landmark_steps
        self.anneal_steps = anneal_steps
        self.sliding_jaw = sliding_jaw(self.face_model) if jaw == "sliding" else None
        triangles = self.face_model.part(region) if region else self.face_model.triangles
        drawn, local = used(triangles)
        self.uv_grid = uv_grid(self.face_model.uv[drawn], local, uv_size)
        self.graph = build_graph(self.face_model, nodes, region)
        spanned = orthonormal(self.graph.pulled_back(self.face_model.expression_basis))
        buffers = {
            "triangles": triangles,
            "pivot": landmark_pivot(self.face_model),
            "drawn": drawn,
            "local": local,
            "edges": edges(local),
            "blendshapes": spanned,  # B_G, orthonormal columns
        }
        for name, value in buffers.items():
            self.register_buffer(name, value, persistent=False)

        self.shape_basis = nn.Parameter(self._first_shapes(shape_dims))  # Theta_s, cm
        self.albedo_mean = nn.Parameter(torch.tensor(SKIN).repeat(len(drawn), 1))
        self.albedo_basis = nn.Parameter(self._first_albedos(albedo_dims))  # Theta_a
        self.dims = {"identity": shape_dims, "albedo": albedo_dims}
        self.outputs = {
            "expression": len(self.face_model.expression_basis),
            "light": 9 * light_channels,
        }
        self.pose: PoseNet | None = None
        if pose_width is None:
            self.outputs = {"angles": 3, "translation": 3, **self.outputs}
        else:
            self.pose = PoseNet(image_size, pose_width, self.pivot.clone(), focal, distance_mm)
            self.pose.to(memory_format=torch.channels_last)
        *geometry, light = self.outputs.values()
        sizes = (shape_dims, albedo_dims), (sum(geometry), light)
        self.network = FMLNetwork(
            image_size, *sizes, width, stride, normalized, detach_identity=detach_identity
        )
        self.network.to(memory_format=torch.channels_last)  # faster convolutions

    def _first_shapes(self, count: int) -> Float[Tensor, "m {count}"]:
        """Smooth displacements of the graph along x, y and z in turn."""
        functions = self.graph.harmonics(-(-count // 3))
        fields = torch.einsum("kg,xy->kxgy", functions, torch.eye(3)).flatten(2).flatten(0, 1)
        return SHAPE_START * fields[:count].T.contiguous()

    def _first_albedos(self, count: int) -> Float[Tensor, "{count} p 3"]:
        """Smooth changes of red, green and blue in turn; the first three are those of all alike."""
        functions = self.graph.harmonics(max(0, -(-count // 3) - 1))
        at_nodes = functions.new_ones(-(-count // 3), len(self.graph.nodes))
        at_nodes[1:] = functions
        values = self.graph(at_nodes[..., None].expand(-1, -1, 3))[:, self.drawn, 0]
        fields = torch.einsum("kp,xy->kxpy", values, torch.eye(3)).flatten(0, 1)
        return ALBEDO_START * fields[:count].contiguous()

    def forward(self, images: Float[Tensor, "b v 3 h w"]) -> Reconstruction:
        """One face per image; the frames of a clip share shape and reflectance."""
        x = self.unknowns(images)
        size, frames = images.shape[-1], images.shape[1]
        neutral, _ = self.neutral(x.identity[:, 0])
        vertices, camera = (
            self.shape(neutral, x.expression),
            self.camera(x.angles, x.translation, size),
        )
        albedo = self.reflectance(x.albedo[:, 0])[:, None]
        albedo_map = bake(albedo, self.uv_grid.to(albedo.device), self.local)
        return Reconstruction(
            vertices=vertices,
            neutral=neutral[:, None].expand_as(vertices),
            triangles=self.triangles,
            uv=self.face_model.uv,
            camera=camera,
            landmarks=camera.project(self.landmarks(vertices, camera))[0],
            albedo_map=albedo_map.expand(-1, frames, -1, -1, -1),
            light=lit(x.light),
            coefficients={name: getattr(x, name).flatten(2) for name in vars(x)},
        )

    def unknowns(self, images: Float[Tensor, "b v 3 h w"]) -> Unknowns:
        """The networks' estimates; identity and albedo are the same in all frames of a clip."""
        frames = images.shape[1]
        pose: dict[str, Tensor] = {}
        if self.pose is not None:
            numbers, straight = self.pose(images.flatten(0, 1))
            images, numbers = (x.unflatten(0, images.shape[:2]) for x in (straight, numbers))
            pose = dict(zip(POSE_SCALES, numbers.split(3, -1), strict=True))
        known, own = self.network(
            2 * images - 1, self._learns_expressions_only, self._learns_from_landmarks_only
        )
        of_clip = dict(zip(self.dims, known.split(list(self.dims.values()), -1), strict=True))
        parts = dict(zip(self.outputs, own.split(list(self.outputs.values()), -1), strict=True))
        parts |= pose | {
            name: part[:, None].expand(-1, frames, -1) for name, part in of_clip.items()
        }
        parts = {name: SCALES[name] * part for name, part in parts.items()}
        light = parts.pop("light").unflatten(-1, (9, self.light_channels))
        return Unknowns(**parts, light=light)

    @property
    def _learns_expressions_only(self) -> bool:
        return self.training and self.global_step < self.expression_steps

    @property
    def _learns_from_landmarks_only(self) -> bool:
        return self.training and self.global_step < self.landmark_steps

    def on_train_batch_start(self, batch: FaceBatch, batch_idx: int) -> None:
        """While colours learn, batch norms keep the statistics that they have."""
        kept = 0 < self.landmark_steps <= self.global_step
        for norm in batch_norms(self):
            norm.train(not kept)

    def complement(self) -> Float[Tensor, "m d"]:
        """OCL(Theta_s) of Eq. 4-5, centimetres; rows are x, y, z of node after node."""
        return orthogonal_complement(self.shape_basis, self.blendshapes)

    def neutral(
        self, identity: Float[Tensor, "b d"]
    ) -> tuple[Float[Tensor, "b n 3"], Float[Tensor, "b g 3"]]:
        """Eq. 2-3 without expression: vertices in millimetres; and the nodes' displacements, cm."""
        moved = self.displacements(identity)
        return self.face_model.mean + CENTIMETRE * self.graph(moved), moved

    def displacements(self, identity: Float[Tensor, "b d"]) -> Float[Tensor, "b g 3"]:
        """Eq. 1: of the graph's nodes, centimetres."""
        with without_autocast(identity):
            return (identity @ self.complement().T).unflatten(-1, (-1, 3))

    def shape(
        self, neutral: Float[Tensor, "b n 3"], expression: Float[Tensor, "b v k"]
    ) -> Float[Tensor, "b v n 3"]:
        """Eq. 3: vertices in millimetres, with the expression of each frame."""
        with without_autocast(expression):
            activation = expression * self.face_model.expression_std
            moved = activation @ self.face_model.expression_basis.flatten(1)
            return neutral[:, None] + moved.unflatten(-1, (-1, 3))

    def reflectance(self, albedo: Float[Tensor, "b d"]) -> Float[Tensor, "b p 3"]:
        """Eq. 6, of the drawn vertices: RGB, about [0, 1], not clipped."""
        with without_autocast(albedo):
            changed = albedo @ self.albedo_basis.flatten(1)
            return self.albedo_mean + changed.unflatten(-1, (-1, 3))

    def camera(
        self, angles: Float[Tensor, "b v 3"], translation: Float[Tensor, "b v 3"], size: int
    ) -> PerspectiveCamera:
        """The pose as a camera for images of this size."""
        focal = self.focal * size / PIXELS
        return posed_camera(angles, translation, self.pivot, focal, self.distance_mm, size)

    def landmarks(
        self, vertices: Float[Tensor, "b v n 3"], camera: PerspectiveCamera
    ) -> Float[Tensor, "b v 68 3"]:
        """The 68 points of the meshes, the jaw's as ``jaw`` says."""
        if self.sliding_jaw is None:
            return self.face_model.landmarks(vertices)
        return self.sliding_jaw(vertices, camera)

    def landmark_shape(
        self,
        displacements: Float[Tensor, "b g 3"],
        expression: Float[Tensor, "b v k"],
        camera: PerspectiveCamera,
    ) -> Float[Tensor, "b v 68 3"]:
        """``landmarks`` of these displacements of the nodes, without the other vertices."""
        model, jaw = self.face_model, self.sliding_jaw
        vertices, weights = model.landmark_vertices, model.landmark_weights
        if jaw is not None:
            vertices, weights = jaw.vertices, jaw.weights

        def mean_of_corners(corners: Float[Tensor, "*b q 3"]) -> Float[Tensor, "*b p 3"]:
            return (corners.unflatten(-2, (-1, 3)) * weights[..., None]).sum(-2)

        chosen = vertices.flatten()
        moved = CENTIMETRE * self.graph(displacements, chosen)
        neutral = mean_of_corners(model.mean[chosen] + moved)
        basis = mean_of_corners(model.expression_basis[:, chosen])
        with without_autocast(expression):
            opened = (expression * model.expression_std) @ basis.flatten(1)
        points = neutral[:, None] + opened.unflatten(-1, (-1, 3))
        return points if jaw is None else jaw.choose(points, camera)

    def lit_vertices(
        self,
        vertices: Float[Tensor, "b v n 3"],
        reflectance: Float[Tensor, "b p 3"],
        light: Float[Tensor, "b v 9 c"],
        camera: PerspectiveCamera,
    ) -> Lit:
        """Eq. 7 at the drawn vertices; those whose normal is turned away are culled."""
        shown = vertices.index_select(-2, self.drawn)
        position = camera.position(shown)
        normals = vertex_normals(position, self.local)
        colours = reflectance[:, None] * shade_points(normals, light)  # Eq. 7
        facing = ((normals * position).sum(-1) < 0).float()
        return Lit(camera.project(shown)[0], colours, facing)

    def terms(self, batch: FaceBatch) -> dict[str, Tensor]:
        """The terms of Eq. 8-9; names are the fields of ``Weights``."""
        return self.terms_of(self.unknowns(batch["images"]), batch)

    def terms_of(self, x: Unknowns, batch: FaceBatch) -> dict[str, Tensor]:
        """The terms for any unknowns, whose identity and albedo are those of the first frame."""
        images = batch["images"]
        camera = self.camera(x.angles, x.translation, images.shape[-1])
        if self._learns_from_landmarks_only:
            displacements = self.displacements(x.identity[:, 0])
            points = self.landmark_shape(displacements, x.expression, camera)
            of_colours = dict.fromkeys(("photometric", "sparse"), points.new_zeros(()))
        else:
            neutral, displacements = self.neutral(x.identity[:, 0])
            vertices = self.shape(neutral, x.expression)
            points = self.landmarks(vertices, camera)
            of_colours = self.image_terms(x, vertices, camera, batch)
        return of_colours | {
            "landmark": self.landmark_term(points, camera, batch),
            "smooth": graph_smoothness(displacements / DECIMETRE, self.graph.edges),
            "expression": expression_l2(x.expression),
        }

    def image_terms(
        self,
        x: Unknowns,
        vertices: Float[Tensor, "b v n 3"],
        camera: PerspectiveCamera,
        batch: FaceBatch,
    ) -> dict[str, Tensor]:
        """Those that need colours: Eq. 8, first term, and Eq. 11."""
        images, reflectance = batch["images"], self.reflectance(x.albedo[:, 0])
        shown = self.lit_vertices(vertices, reflectance, lit(x.light), camera)
        at = shown.pixels[..., None, :]
        weight = shown.facing * self._inside(shown.pixels, images.shape[-1])
        if self.occlusion == "masked":
            weight = weight * sample(batch["masks"], at.detach())[..., 0, :, 0]
        seen = sample(images, at)[..., 0].mT
        return {
            "photometric": vertex_photometric(shown.colours, seen, weight),
            "sparse": reflectance_sparsity(reflectance, shown.colours, self.edges),
        }

    def landmark_term(
        self, points: Float[Tensor, "b v 68 3"], camera: PerspectiveCamera, batch: FaceBatch
    ) -> Tensor:
        """Eq. 8, second term: of 66 points, summed over them and the frames; in training with
        ``landmark_pose`` "best" once for the pose and once for the shape.
        """
        confidence = batch["landmark_confidence"].clone()
        confidence[..., INNER_CORNERS] = 0
        pose = self.landmark_pose if self.training else "estimated"
        side, frames = batch["images"].shape[-1], points.shape[1]
        mean = posed_landmark_l2(points, camera, batch["landmarks"], confidence, side, pose)
        return (68 - len(INNER_CORNERS)) * frames * mean

    @staticmethod
    def _inside(pixels: Float[Tensor, "b v p 2"], side: int) -> Float[Tensor, "b v p"]:
        """1 for what lies in the image, else 0."""
        return ((pixels >= 0) & (pixels <= side)).all(-1).float()

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Adam, partly Muon where a rate for it is given. Group "reflectance" is that of Eq. 6."""
        reflectance = [self.albedo_mean, self.albedo_basis]
        colours = self.network.colour_heads()
        head = [] if self.head_lr is None else self.network.shape_head()
        apart = {*colours, *head}
        weights = [p for p in self.network.parameters() if p not in apart]
        kernels = self.network.kernels()
        if self.pose is not None:
            weights += self.pose.parameters()
            kernels += self.pose.kernels()
        parts = [
            Part(weights, kernels),
            Part([self.shape_basis], lr=self.basis_lr),
            Part(colours, start=self.landmark_steps),
            Part(reflectance, start=self.landmark_steps, lr=self.basis_lr, name="reflectance"),
        ]
        if head:
            parts.append(Part(head, head, kernel_lr=self.head_lr))
        return optimizer_of_parts(parts, self.lr, self.kernel_lr, self.anneal_steps)


if __name__ == "__main__":
    if sys.argv[1:2] == ["export"]:
        from methods.fml_export import main as export

        export(sys.argv[2:])
    else:
        main("methods.fml.FML")
