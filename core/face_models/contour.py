"""The jaw as it is annotated in photographs: on a turned head its far side follows the outline.

Annotators of 300W and the like mark points 0 to 16 where the face ends in the image. On a frontal
face that is the line from ear to chin that a face model's landmarks lie on; when the head turns,
that line disappears behind the cheek, and the marks move onto the cheek's silhouette. So each jaw
landmark gets a line of candidates, from itself over the cheek towards the middle of the face, along
which it slides (the parallels of Zhu et al., Face Alignment Across Large Poses, CVPR 2016, Sec.
3.3): of the candidates it is the one that lies furthest outwards in the image. On the side turned
towards the viewer that is the landmark itself. The tip of the chin, point 8, does not slide.

Convention: outwards is the image direction across the projected upright axis of the head, to the
image's left for points 0 to 7 and to its right for 9 to 16. Worked number: at yaw = +60 degrees
(nose to the image's left) the points 0 to 7 slide, and 9 to 16 stay.

Measured on the built-in head and ICT-FaceKit, 0.86 px/mm: up to 45 degrees of yaw the points are
within 1.2 px of the rendered outline of the cheek (the fixed landmarks: up to 30 px away); with 20
degrees of pitch besides, those next to the chin within 4 px. At 60 degrees so is the outline of the
cheek, but nose and lips stand before it; and there the point beside the mouth stops 4 px short, as
candidates end at a line from the eye over the mouth's corner to the chin.
"""

import igl
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from core.camera import Camera
from core.face_models.model import FaceModel
from core.landmarks import JAW, LEFT_EYE, MIRROR, OUTER_MOUTH, RIGHT_EYE
from core.precision import at_least_float32, without_autocast

CANDIDATES = 16  # on the way from a jaw landmark to the middle, itself included
RAYS = 128  # a quarter turn of them, of which the candidates are picked
CHIN = 8


class SlidingJaw(nn.Module):
    """The 68 landmarks of a face model, with a jaw that slides along the cheeks with the pose.

        jaw = sliding_jaw(model)
        points = jaw(vertices, camera)  # instead of model.landmarks(vertices)
        points = jaw.landmark_shape(identity, expression, camera)  # without the other vertices

    Which candidate a landmark is carries no gradient; where it is does. Only the candidates are
    gathered from the mesh. The buffers are not stored in checkpoints.

    Args:
        model: a face model.
        vertices, weights: of the candidates; those of ``sliding_jaw``.
    """

    vertices: Int[Tensor, "p 3"]
    weights: Float[Tensor, "p 3"]
    mean: Float[Tensor, "p 3"]
    basis: Float[Tensor, "k p 3"]
    outwards: Float[Tensor, "17"]

    def __init__(
        self,
        model: FaceModel,
        vertices: Int[Tensor, "17 k 3"],
        weights: Float[Tensor, "17 k 3"],
    ) -> None:
        super().__init__()
        everything = {
            "vertices": torch.cat([model.landmark_vertices, vertices.flatten(0, 1)]),
            "weights": torch.cat([model.landmark_weights, weights.flatten(0, 1)]),
        }
        for name, value in everything.items():
            self.register_buffer(name, value, persistent=False)
        self.register_buffer("mean", self.points(model.mean), persistent=False)
        bases = [self.points(basis) for basis in (model.identity_basis, model.expression_basis)]
        self.register_buffer("basis", torch.cat(bases), persistent=False)
        sides = torch.tensor([float(i > CHIN) - float(i < CHIN) for i in JAW])
        self.register_buffer("outwards", sides, persistent=False)

    def forward(
        self, vertices: Float[Tensor, "*b n 3"], camera: Camera
    ) -> Float[Tensor, "*b 68 3"]:
        """The landmarks of meshes as cameras see them, in the frame and unit of the vertices."""
        return self.choose(self.points(vertices), camera)

    def landmark_shape(
        self,
        identity: Float[Tensor, "*b ki"],
        expression: Float[Tensor, "*b ke"],
        camera: Camera,
    ) -> Float[Tensor, "*b 68 3"]:
        """``forward(model.shape(identity, expression), camera)`` without the other vertices."""
        with without_autocast(identity):
            numbers = at_least_float32(torch.cat([identity, expression], -1))
            points = self.mean + (numbers @ self.basis.flatten(1)).unflatten(-1, self.mean.shape)
        return self.choose(points, camera)

    def points(self, vertices: Float[Tensor, "*b n 3"]) -> Float[Tensor, "*b p 3"]:
        """The model's 68 landmarks, then the candidates of each jaw landmark, of a mesh."""
        # index_select rather than indexing: its gradient is an index_add, not a sort
        corners = vertices.index_select(-2, self.vertices.flatten()).unflatten(-2, (-1, 3))
        return (corners * self.weights[..., None]).sum(-2)

    def choose(self, points: Float[Tensor, "*b p 3"], camera: Camera) -> Float[Tensor, "*b 68 3"]:
        """Of what ``points`` gathers, the 68 landmarks that these cameras see."""
        fixed, candidates = points[..., :68, :], points[..., 68:, :].unflatten(-2, (len(JAW), -1))
        with torch.no_grad():
            pixels = camera.project(points[..., 68:, :])[0].unflatten(-2, (len(JAW), -1))
            up = camera.rotation[..., :2, 1]  # of the head, in the image
            across = torch.stack([-up[..., 1], up[..., 0]], -1)
            reach = (pixels * across[..., None, None, :]).sum(-1) * self.outwards[:, None]
            index = reach.argmax(-1)[..., None, None].expand(*reach.shape[:-1], 1, 3)
        jaw = candidates.gather(-2, index)[..., 0, :]
        return torch.cat([jaw, fixed[..., len(JAW) :, :]], -2)


def sliding_jaw(model: FaceModel) -> SlidingJaw:
    """The sliding jaw of a face model: its own candidates if it has some, else those found here.

    A model has its own if its .npz has the keys ``contour_vertices`` (17, k, 3) and
    ``contour_weights`` (17, k, 3). Else the candidates of landmark i lie where the plane through i
    and its partner 16 - i that runs along z cuts the outside of the mean, from i up to the line
    from the outer corner of the eye over the corner of the mouth to the chin. Where a mesh has no
    surface there, the landmark stays.
    """
    if model.contour_vertices is not None and model.contour_weights is not None:
        return SlidingJaw(model, model.contour_vertices, model.contour_weights)
    mean, triangles = model.mean.double().cpu().numpy(), model.triangles.cpu().numpy()
    landmarks = model.landmarks(model.mean).double().cpu().numpy()
    vertices = model.landmark_vertices[list(JAW), None].repeat(1, CANDIDATES, 1)
    weights = model.landmark_weights[list(JAW), None].repeat(1, CANDIDATES, 1)
    for i in set(JAW) - {CHIN}:
        corners, shares = _parallel(mean, triangles, landmarks, i)
        if len(corners):
            vertices[i, 1:] = torch.from_numpy(corners).to(vertices)
            weights[i, 1:] = torch.from_numpy(shares).to(weights)
    return SlidingJaw(model, vertices, weights)


def _parallel(
    mean: Float[np.ndarray, "n 3"],
    triangles: Int[np.ndarray, "t 3"],
    landmarks: Float[np.ndarray, "68 3"],
    i: int,
) -> tuple[Int[np.ndarray, "k 3"], Float[np.ndarray, "k 3"]]:
    """The candidates of jaw landmark i except for itself, evenly spaced; or none.

    Rays start between the landmark and its partner and turn, in a plane, from the landmark to the
    front. The outside is where they leave the mesh for the last time.
    """
    start, front = landmarks[i], np.array([0.0, 0.0, 1.0])
    across = (start - landmarks[MIRROR[i]]) * [1, 1, 0]
    side = across / np.linalg.norm(across)
    centre = start - across / 2
    height = (mean - centre) @ np.cross(side, front)
    above = height[triangles] > 0
    cut = triangles[above.any(1) & ~above.all(1)]  # by the plane
    angle = np.linspace(0, np.pi / 2, RAYS + 1)[1:, None]
    hits = [
        igl.ray_mesh_intersect(centre, ray, mean, cut)
        for ray in np.cos(angle) * side + np.sin(angle) * front
    ]
    last = np.array([hit[-1] for hit in hits if hit]).reshape(-1, 4)
    corners, (second, third) = cut[last[:, 0].astype(int)], last[:, 2:].T
    weights = np.stack([1 - second - third, second, third], -1)
    points = (mean[corners] * weights[..., None]).sum(-2)
    beyond = (points - centre) @ side > _inner_limit(landmarks, i)
    points, corners, weights = points[beyond], corners[beyond], weights[beyond]
    if not len(points):
        return triangles[:0], weights[:0]
    length = np.linalg.norm(np.diff(points, axis=0, prepend=start[None]), axis=-1).cumsum()
    wanted = np.linspace(0, length[-1], CANDIDATES)[1:]
    picked = np.searchsorted(length, wanted).clip(max=len(length) - 1)
    return corners[picked], weights[picked]


def _inner_limit(landmarks: Float[np.ndarray, "68 3"], i: int) -> float:
    """How near to the middle the candidates of jaw landmark i come, millimetres."""
    eye, mouth = (RIGHT_EYE[0], OUTER_MOUTH[0]) if i < CHIN else (LEFT_EYE[3], OUTER_MOUTH[6])
    x, y = abs(landmarks[[CHIN, mouth, eye], :2] - landmarks[CHIN, :2]).T
    return float(np.interp(landmarks[i, 1] - landmarks[CHIN, 1], y, x))
