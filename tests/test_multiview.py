"""Pairs of views of the procedural head: what both see, one view from the other, gradients."""

import math

import numpy as np
import pytest
import torch
from igl.embree import EmbreeIntersector
from kornia.geometry import epipolar
from torch import Tensor

from core.camera import PerspectiveCamera, frontal
from core.face_models import FaceModel, load_face_model
from core.image import pixel_centres
from core.losses import masked_l1
from core.multiview import (
    SHORTEST_BASELINE_MM,
    covisible,
    depth_consistency,
    depth_ratio,
    epipolar_distance,
    epipolar_lines,
    essential_matrix,
    pixel_consistency,
    relative_pose,
    seen_triangles,
    synthesize,
)
from core.render import draw
from core.rotation import rotation_from_euler

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE = 224
PIVOT = torch.tensor([0.0, 0.0, 50.0]).double()  # millimetres


@pytest.fixture(scope="module")
def head() -> FaceModel:
    return load_face_model("procedural", 40, 1, 1)


def camera(yaws, pitch: float = 0.05, size: int = SIZE) -> PerspectiveCamera:
    """One of batch shape (v,) from 1 m; degrees."""
    yaw = torch.deg2rad(torch.as_tensor(yaws).double())
    other = torch.full_like(yaw, pitch)
    rotation = frontal(yaw) @ rotation_from_euler(other, yaw, 0.3 * other)
    drift = torch.stack([3 * yaw, -2 * yaw, 20 * yaw], -1)
    return PerspectiveCamera(
        rotation=rotation,
        translation=drift + torch.tensor([0.0, 0.0, 1000.0]) - rotation @ PIVOT,
        focal=torch.full_like(yaw, 1015 * size / 224),
        centre=torch.full((*yaw.shape, 2), size / 2).double(),
    )


class Pair:
    """Two views of one face in constant light; ``colour`` is its reflectance, ``place`` where on
    the face each pixel is, millimetres."""

    def __init__(self, head: FaceModel, yaws, size: int = SIZE, seed: int = 0, pitch=0.05) -> None:
        random = torch.Generator().manual_seed(seed)
        self.triangles = head.part("face")
        self.vertices = head.shape(0.7 * torch.randn(40, generator=random)).double()
        both = camera(yaws, pitch, size)
        self.target, self.source = (both.map(lambda value, k=k: value[k]) for k in (0, 1))
        shape = self.vertices.expand(1, 2, -1, -1)
        values = torch.cat([head.albedo_mean.double(), self.vertices], -1).expand(1, 2, -1, -1)
        views = both.map(lambda value: value[None])
        surface = draw(shape, self.triangles, head.uv.double(), views, size, attributes=values)
        self.index = surface.triangle_index[0]
        self.depth, self.drawn = surface.depth[0], surface.mask[0]
        self.colour, self.place = surface.attributes[0].split(3, 1)
        self.pixels = both.project(shape[0])[0]

    def seen(self) -> Tensor:
        return seen_triangles(self.vertices, self.source, self.triangles, self.index.shape[-1])

    def mask(self) -> Tensor:
        return covisible(self.index[0], self.seen(), *self.pixels, self.triangles)

    def made(self, values: Tensor):
        return synthesize(self.depth[0], self.target, values[1], self.depth[1], self.source)


def test_relative_pose_by_hand():
    """The worked number of the module; then round trips, and what the paper's formula means."""
    angles = torch.tensor([0.0, math.pi / 6])
    rotation = frontal(angles) @ rotation_from_euler(0 * angles, angles, 0 * angles)
    away = torch.tensor([[0.0, 0.0, 1000.0]]).expand(2, 3)
    both = PerspectiveCamera(rotation, away, torch.full((2,), 1000.0), torch.zeros(2, 2))
    target, source = (both.map(lambda value, k=k: value[k]) for k in (0, 1))
    turn, shift = relative_pose(target, source)
    found = turn @ torch.tensor([0.0, 0.0, 900.0]) + shift
    torch.testing.assert_close(found, torch.tensor([-50.0, 0.0, 913.3975]))

    both = camera([20.0, -35.0])
    target, source = (both.map(lambda value, k=k: value[k]) for k in (0, 1))
    points = 60 * torch.randn(10, 3).double()
    turn, shift = relative_pose(target, source)
    torch.testing.assert_close(target.position(points) @ turn.mT + shift, source.position(points))
    turn_back, shift_back = relative_pose(source, target)
    torch.testing.assert_close(turn_back @ turn, torch.eye(3).double())
    torch.testing.assert_close(turn_back @ shift + shift_back, torch.zeros(3).double())
    # as printed, with poses (R, t) from camera to model: from the source's frame to the target's
    to_model = [
        (view.rotation.mT, -view.rotation.mT @ view.translation) for view in (target, source)
    ]
    (r_t, t_t), (r_s, t_s) = to_model
    torch.testing.assert_close(r_t.mT @ r_s, turn_back)
    torch.testing.assert_close(r_t.mT @ (t_s - t_t), shift_back)


@pytest.mark.parametrize("yaws", [(0, 15), (-30, 30), (60, 25)])
def test_the_truth_shows_the_target(head, yaws):
    """Each pixel of the synthesized view is of the same point of the face, up to resampling."""
    pair = Pair(head, yaws)
    mask = pair.mask()
    made = pair.made(pair.place)
    where = (mask * made.mask)[0] > 0
    off = (made.image - pair.place[0]).norm(dim=0)[where]
    assert off.median() < 0.02  # millimetres
    assert off.quantile(0.9) < 0.5  # the others are at the edges of what hides the face
    colours = pair.made(pair.colour)
    error = (colours.image - pair.colour[0]).abs().amax(0)
    # bilinear: what is between four pixels is within their range, where colours change evenly
    corner = (colours.pixels - 0.5).floor().long().clamp(0, SIZE - 2)
    near = [
        pair.colour[1][:, corner[..., 1] + i, corner[..., 0] + j] for i in (0, 1) for j in (0, 1)
    ]
    spread = (torch.stack(near).amax(0) - torch.stack(near).amin(0)).amax(0)
    assert (error <= spread + 1 / 255)[where].double().mean() > 0.99
    assert pixel_consistency(colours, pair.colour[0], mask) < 0.003
    assert depth_ratio(made, pair.depth[0], mask).item() == pytest.approx(1, abs=2e-4)
    assert depth_consistency(made, pair.depth[0], mask) < 0.5  # of 950 millimetres


def test_the_mask_matters(head):
    """60 degrees between the views: without it the truth has an error at least 5 times as large."""
    for yaws in ((-30, 30), (0, 60)):
        pair = Pair(head, yaws)
        made = pair.made(pair.colour)
        with_mask = pixel_consistency(made, pair.colour[0], pair.mask())
        without = masked_l1(made.image, pair.colour[0], pair.drawn[0])
        assert without > 5 * with_mask
        assert pixel_consistency(made, pair.colour[0], pair.drawn[0]) > 2 * with_mask


def seen_by_both(pair: Pair) -> Tensor:
    """By rays: of the target's pixels those whose point both views see from outside."""
    vertices = np.asfortranarray(pair.vertices.numpy().astype(np.float32))
    triangles = np.asfortranarray(pair.triangles.numpy().astype(np.int32))
    rays = EmbreeIntersector()
    rays.init(vertices, triangles)
    where = pair.index[0] >= 0
    points = pair.place[0].movedim(0, -1)[where].numpy()
    found = np.zeros(len(points), bool)
    corners = vertices[triangles].astype(float)
    outwards = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    eyes = [-(view.rotation.mT @ view.translation).numpy() for view in (pair.target, pair.source)]
    sight = points - eyes[1]
    length = np.linalg.norm(sight, axis=1)
    directions = (sight / length[:, None]).astype(np.float32)
    own = outwards[pair.index[0][where].numpy()]
    shows = np.all([((points - eye) * own).sum(1) < 0 for eye in eyes], 0)
    for k in np.flatnonzero(shows):
        hit, distance, _, _ = rays.intersectRay_first(eyes[1].astype(np.float32), directions[k])
        found[k] = hit >= 0 and distance >= length[k] - 0.05  # millimetres
    return torch.zeros_like(where).masked_scatter(where, torch.from_numpy(found))


def overlaps(head: FaceModel, count: int) -> Tensor:
    """Intersection over union of the covisible map and that of rays, of random pairs."""
    random = np.random.default_rng(0)
    found = []
    for seed in range(count):
        first = random.uniform(-60, 60)
        second = np.clip(first + random.choice([-1, 1]) * random.uniform(5, 60), -75, 75)
        pair = Pair(head, (first, second), seed=seed, pitch=random.uniform(-0.3, 0.3))
        truth, mask = seen_by_both(pair), pair.mask()[0] > 0
        found.append((truth & mask).sum() / (truth | mask).sum())
    return torch.stack(found)


def test_the_covisible_map_is_what_rays_find(head):
    """The eighth of the pairs is among the three worst of 100."""
    assert overlaps(head, 8).min() >= 0.98


@pytest.mark.slow
def test_the_covisible_map_is_what_rays_find_in_100_pairs(head):
    found = overlaps(head, 100)
    print(f"IoU: mean {found.mean():.4f}, lowest {found.min():.4f}")
    assert found.mean() >= 0.99
    assert found.min() >= 0.98


def test_what_is_seen_at_a_slant_needs_fine_pixels(head):
    """Triangles narrower than the view's own pixels are missed."""
    pair = Pair(head, (0, 70))
    truth = seen_by_both(pair)
    missed = []
    for finer in (1, 6):
        seen = seen_triangles(pair.vertices, pair.source, pair.triangles, SIZE, finer)
        mask = covisible(pair.index[0], seen, *pair.pixels, pair.triangles)[0] > 0
        missed.append((truth & ~mask).sum() / truth.sum())
    assert missed[0] > 0.03
    assert missed[1] < 0.01


def test_epipolar_distance_is_that_of_kornia(head):
    """0 at the truth; else the mean of the distances from both lines."""
    pair = Pair(head, (10, -20), size=32)
    points = head.landmarks(pair.vertices)
    at_target, at_source = (view.project(points)[0] for view in (pair.target, pair.source))
    views = (pair.target, pair.source)
    assert epipolar_distance(at_target, at_source, *views).max() < 1e-6  # pixels
    lines = epipolar_lines(at_target, *views)
    on = (lines[:, :2] * at_source).sum(-1) + lines[:, 2]
    assert on.abs().max() < 1e-6
    torch.testing.assert_close(lines[:, :2].norm(dim=-1), torch.ones(68).double())
    moved = at_source + torch.randn(68, 2)
    inner = []
    for view in views:
        matrix = torch.eye(3).double() * view.focal
        matrix[:2, 2], matrix[2, 2] = view.centre, 1
        inner.append(matrix)
    essential = essential_matrix(*relative_pose(*views))
    fundamental = epipolar.fundamental_from_essential(essential[None], *(k[None] for k in inner))
    arguments = (at_target[None], moved[None], fundamental)
    wanted = epipolar.left_to_right_epipolar_distance(*arguments)
    wanted = (wanted + epipolar.right_to_left_epipolar_distance(*arguments)) / 2
    torch.testing.assert_close(epipolar_distance(at_target, moved, *views), wanted[0])


def poses(numbers: Tensor) -> list[PerspectiveCamera]:
    """Target and source from twelve numbers: small angles and millimetres."""
    angles, shift = numbers.view(2, 2, 3).unbind(1)
    rotation = frontal(angles) @ rotation_from_euler(*angles.unbind(-1))
    away = torch.tensor([0.0, 0.0, 500.0]).double()
    return [
        PerspectiveCamera(
            rotation[k], shift[k] + away, away.new_tensor(30.0), away.new_tensor([6.0, 6.0])
        )
        for k in (0, 1)
    ]


NUMBERS = torch.tensor([0.1, -0.2, 0.05, 3, 2, 20, -0.1, 0.3, 0.02, -4, 1, -10]).double()


def test_gradients_of_pixels_and_depth():
    """With respect to both poses, both depths and the source's image, in float64."""
    grid = pixel_centres(12, NUMBERS)
    x, y = grid.unbind(-1)
    images = torch.stack([torch.sin(0.7 * x) * torch.cos(0.5 * y), torch.cos(0.4 * x + 0.3 * y)])
    bump = 40 * torch.exp(-((grid - 6) / 4).square().sum(-1))
    depth = (500 - bump)[None].expand(2, 1, 12, 12).clone()
    inside = torch.zeros(1, 12, 12).double()
    inside[:, 3:9, 3:9] = 1
    target_image = images[None] * 0.5

    def losses(numbers, depth, source_image):
        target, source = poses(numbers)
        made = synthesize(depth[0], target, source_image, depth[1], source)
        assert (made.mask * inside).sum() > 20
        return (
            pixel_consistency(made, target_image[0], inside),
            depth_consistency(made, depth[0], inside),
        )

    inputs = (NUMBERS.clone(), depth, images)
    assert torch.autograd.gradcheck(losses, [t.requires_grad_() for t in inputs], fast_mode=True)


def test_gradients_of_epipolar_lines():
    points = 60 * torch.randn(5, 3).double()
    at_target, at_source = (view.project(points)[0] for view in poses(NUMBERS))
    at_source = at_source + torch.randn(5, 2)

    def loss(numbers, at_target, at_source):
        return epipolar_distance(at_target, at_source, *poses(numbers))

    inputs = (NUMBERS.clone(), at_target, at_source)
    assert torch.autograd.gradcheck(loss, [t.detach().requires_grad_() for t in inputs])


@pytest.mark.parametrize("apart", [0.0, 0.5 * SHORTEST_BASELINE_MM])
def test_views_from_one_place_have_no_epipolar_lines(apart):
    numbers = torch.zeros(12).double()
    numbers[9] = apart
    numbers.requires_grad_()
    points = 60 * torch.randn(5, 3).double()
    pixels = poses(numbers)[0].project(points)[0].detach()
    found = epipolar_distance(pixels, pixels + 1, *poses(numbers))
    assert not found.any()
    found.sum().backward()
    assert not numbers.grad.any()


def test_nothing_in_common_is_no_error():
    """No covisible pixel, and a source behind the target: 0, and gradients of 0."""
    numbers = NUMBERS.clone()
    numbers[11] = -900  # the face is behind the source
    numbers.requires_grad_()
    depth = torch.full((1, 12, 12), 480.0).double()
    target, source = poses(numbers)
    made = synthesize(depth, target, depth / 1000, depth, source)
    assert not made.mask.any()
    ones = torch.ones_like(depth)
    loss = pixel_consistency(made, depth, ones) + depth_consistency(made, depth, ones)
    loss.backward()
    assert loss == 0
    assert not numbers.grad.any()
    index = torch.full((4, 4), -1)
    pixels = torch.rand(3, 2)
    assert not covisible(index, index, pixels, pixels, torch.tensor([[0, 1, 2]])).any()


def test_a_wrong_scale_of_depth_does_not_count(head):
    """Eq. 4 compares relief: S makes up for a source that is all too near."""
    pair = Pair(head, (0, 1e-6))
    mask = pair.mask()
    made = synthesize(pair.depth[0], pair.target, pair.colour[1], 0.9 * pair.depth[1], pair.source)
    assert depth_ratio(made, pair.depth[0], mask).item() == pytest.approx(1 / 0.9, rel=1e-4)
    assert depth_consistency(made, pair.depth[0], mask) < 0.05


def test_pairs_of_a_batch_do_not_mix(head):
    """Batch axes (b, s) in float32, as in training, against one pair at a time in float64."""
    pairs = [Pair(head, yaws, size=64) for yaws in ((0, 20), (10, -15))]

    def table(values: list[Tensor]) -> Tensor:
        return torch.stack(values)[:, None].float()  # b 1 ...

    def views(name: str) -> PerspectiveCamera:
        found = [getattr(pair, name) for pair in pairs]
        parts = ("rotation", "translation", "focal", "centre")
        return PerspectiveCamera(
            *(table([getattr(view, part) for view in found]) for part in parts)
        )

    depth, colour = (
        [table([getattr(pair, name)[k] for pair in pairs]) for k in (0, 1)]
        for name in ("depth", "colour")
    )
    made = synthesize(depth[0], views("target"), colour[1], depth[1], views("source"))
    index = torch.stack([pair.index[0] for pair in pairs])[:, None]
    pixels = [table([pair.pixels[k] for pair in pairs]) for k in (0, 1)]
    triangles = pairs[0].triangles
    vertices = table([pair.vertices for pair in pairs])
    seen = seen_triangles(vertices, views("source"), triangles, 64)
    assert (seen[:, 0] != torch.stack([pair.seen() for pair in pairs])).double().mean() < 1e-3
    mask = covisible(index, seen, *pixels, triangles)
    for k, pair in enumerate(pairs):
        alone = pair.made(pair.colour)
        both = (mask[k, 0] * made.mask[k, 0] * alone.mask)[0] > 0
        assert both.sum() > 500
        assert (made.image[k, 0] - alone.image).abs()[:, both].max() < 1e-3
        assert (made.depth[k, 0] - alone.depth).abs()[:, both].max() < 0.05
        assert (mask[k, 0] != pair.mask()).double().mean() < 1e-3
