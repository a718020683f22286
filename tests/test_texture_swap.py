"""Texture swap: of colours and slopes that are known, and of two views of one head."""

import dataclasses

import pytest
import torch
from torch import Tensor

from core.camera import PerspectiveCamera, WeakPerspectiveCamera, frontal
from core.census import census_loss
from core.errors import DataError
from core.face_models import FaceModel, load_face_model
from core.flow import flow_loss, lucas_kanade
from core.image import pixel_centres, sample
from core.losses import masked_l1
from core.rasterize import rasterize
from core.render import draw
from core.rotation import rotation_from_euler
from core.texture_swap import (
    emphasis,
    hidden_vertices,
    other_frames,
    swap_textures,
    visible_vertices,
)
from tests.fakes.face_model import face_model_arrays

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE = 128


@pytest.fixture(scope="module")
def head() -> FaceModel:
    return load_face_model("procedural", 40, 20, 1)


class Views:
    """One head with several expressions, in constant light before a grey wall."""

    def __init__(self, head: FaceModel, yaws: tuple[float, ...], seed: int = 0) -> None:
        random = torch.Generator().manual_seed(seed)
        yaw = torch.deg2rad(torch.tensor(yaws))[None]
        tilt = torch.full_like(yaw, 0.05)
        rotation = frontal(yaw) @ rotation_from_euler(tilt, yaw, 0.3 * tilt)
        self.camera = PerspectiveCamera(
            rotation=rotation,
            translation=torch.tensor([0, 0, 1000.0]) - rotation @ torch.tensor([0.0, 0, 50]),
            focal=torch.full_like(yaw, 1015 * SIZE / 224),
            centre=torch.full((*yaw.shape, 2), SIZE / 2),
        )
        self.identity = 0.7 * torch.randn(1, 1, 40, generator=random)
        self.expression = 0.3 * torch.randn(1, len(yaws), 20, generator=random)
        self.head, self.triangles = head, head.part("face", "eyeballs")
        self.vertices = self.shape(self.identity)
        colours = head.albedo_mean.expand(*self.vertices.shape)
        drawn = draw(self.vertices, self.triangles, head.uv, self.camera, SIZE, attributes=colours)
        self.images = drawn.attributes + 0.5 * (1 - drawn.mask)

    def shape(self, identity: Tensor) -> Tensor:
        return self.head.shape(identity.expand(-1, self.expression.shape[1], -1), self.expression)

    def swap(self, vertices: Tensor | None = None, camera=None, images=None, **options):
        return swap_textures(
            self.images if images is None else images,
            self.vertices if vertices is None else vertices,
            self.triangles,
            self.camera if camera is None else camera,
            emphasis(self.head),
            **options,
        )

    def moved(self, frame: int, pixels: Tensor) -> PerspectiveCamera:
        """The cameras with the face of one frame moved in its image, at 1 m."""
        chosen = torch.arange(self.images.shape[1])[None, :, None] == frame
        shift = torch.stack([pixels, 0 * pixels, 0 * pixels]) * 1000 / (1015 * SIZE / 224)
        translation = self.camera.translation + shift * chosen
        return dataclasses.replace(self.camera, translation=translation)


def test_other_frames():
    assert other_frames(2).tolist() == [[1], [0]]
    assert other_frames(4).tolist() == [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]]


@pytest.mark.parametrize(
    ("yaws", "share"), [((0, 20), 0.7), ((-15, 15), 0.6), ((-30, 30), 0.4), ((10, 50), 0.4)]
)
def test_the_truth_shows_the_other_frame(head, yaws, share):
    """Where both see the face, up to resampling, with no flow; else the frame itself, exactly."""
    views = Views(head, yaws)
    swapped = views.swap()
    target = views.images[:, :, None]
    compared = (swapped.compared > 0).float()
    assert compared.sum() > share * swapped.mask.sum()
    error = (swapped.images - target).abs().mean(3, keepdim=True)
    assert error[compared > 0].median() < 1 / 255
    assert error[compared > 0].quantile(0.95) < 5 / 255
    assert not error[swapped.common == 0].any()
    pair = target.flatten(0, 2), swapped.images.flatten(0, 2)
    where = compared.flatten(0, 2)
    for weight in (None, swapped.compared.flatten(0, 2)):
        assert flow_loss(lucas_kanade(*pair, weight), where) < 0.3
    # which another face, or the same face elsewhere, does not
    for wrong in (
        views.swap(views.shape(-views.identity)),
        views.swap(camera=views.moved(0, torch.tensor(4.0))),
    ):
        false = wrong.images.flatten(0, 2)
        where = (wrong.compared > 0).flatten(0, 2).float()
        assert masked_l1(false, pair[0], where) > 2 * masked_l1(pair[1], pair[0], where)
        assert flow_loss(lucas_kanade(pair[0], false, where), where) > 0.5


@pytest.mark.parametrize("frames", [2, 4])
def test_all_ordered_pairs(head, frames):
    """Frames of one colour each: what is common has the other's, all else the own."""
    views = Views(head, (-20, 0, 10, 25)[:frames])
    shade = torch.arange(1.0, frames + 1) / 10
    swapped = views.swap(images=shade[None, :, None, None, None].expand(1, -1, 3, SIZE, SIZE))
    assert swapped.images.shape == (1, frames, frames - 1, 3, SIZE, SIZE)
    wanted = torch.lerp(
        shade[:, None, None, None, None],
        shade[other_frames(frames)][..., None, None, None],
        swapped.common[0],
    )
    torch.testing.assert_close(swapped.images[0], wanted.expand_as(swapped.images[0]))
    assert ((swapped.common == 1).flatten(3).sum(-1) > 500).all()
    # each pair alone gives the same
    for j in range(frames):
        for k, i in enumerate(other_frames(frames)[j].tolist()):
            two = [j, i]
            alone = swap_textures(
                views.images[:, two],
                views.vertices[:, two],
                views.triangles,
                views.camera.map(lambda value, two=two: value[:, two]),
                emphasis(head),
            )
            torch.testing.assert_close(
                alone.images[:, 0, 0], views.swap().images[:, j, k], atol=1e-5, rtol=0
            )


def test_weights_of_regions(head):
    views = Views(head, (0, 10))
    swapped = views.swap()
    pixels, _ = views.camera.project(head.landmarks(views.vertices))
    weight = sample(swapped.weight, pixels[:, :, None], mode="nearest")[0, 0, 0, 0]
    assert (weight[30] - 5).abs() < 1e-4  # the nose's tip
    torch.testing.assert_close(weight[[51, 57]], torch.full((2,), 5.0))  # the lips
    assert (weight[[19, 24]] - 1).abs().max() < 1e-4  # the brows
    outside = swapped.mask == 0
    assert not swapped.weight[outside].any()
    assert swapped.weight[~outside].min() >= 1 - 1e-4
    assert torch.equal(
        swapped.compared > 0, (swapped.common > 0.999) & (swapped.mask > 0)[:, :, None]
    )


def test_a_model_without_regions():
    arrays = face_model_arrays()
    arrays.pop("region_eyes", None)
    with pytest.raises(DataError, match="no region 'eyes'"):
        emphasis(FaceModel(arrays))


def test_vertices_that_face_the_viewer():
    """The two sides of a card, seen from the right: the outside of one, the inside of the other."""
    pixels = torch.tensor([[10.0, 10], [20, 10], [10, 20], [40, 10], [40, 20], [50, 10]])
    triangles = torch.tensor([[0, 2, 1], [3, 5, 4]])  # counter-clockwise to the eye, and clockwise
    assert visible_vertices(pixels, triangles).tolist() == [True] * 3 + [False] * 3


def test_what_a_part_hides():
    """A card 5 mm before another one, and one 0.5 mm before."""
    square = torch.tensor([[-1.0, -1], [1, -1], [-1, 1], [1, 1]])
    faces = torch.tensor([[0, 2, 1], [1, 2, 3]])
    for gap, wanted in ((5.0, True), (0.5, False)):
        clip = torch.zeros(1, 8, 4)
        clip[0, :4, :2], clip[0, 4:, :2] = 0.25 * square, 0.75 * square
        depth = torch.tensor([[0.0] * 4 + [gap] * 4])
        clip[..., 2], clip[..., 3] = depth / 1000, 1
        triangles = torch.cat([faces, faces + 4])
        fragments = rasterize(clip, triangles, (40, 40))
        # where these corners are seen lies within the front card, which hides the back one's point
        pixels = torch.full((1, 8, 2), 20.0)
        hidden = hidden_vertices(pixels, depth, fragments, triangles)
        assert hidden.tolist() == [[False] * 4 + [wanted] * 4]
        corner = torch.full((1, 8, 2), 2.0)  # beyond both cards
        assert hidden_vertices(corner, depth, fragments, triangles).all()


def test_hidden_colours_are_not_taken(head):
    """From the side the nose hides a cheek, which faces the viewer."""
    views = Views(head, (0, 45))
    with_test, without = views.swap(), views.swap(depth_test=False)
    target = views.images[:, :, None]

    def worst(swapped) -> Tensor:
        return (swapped.images - target).abs().mean(3).flatten().topk(100).values.mean()

    assert worst(without) > 1.5 * worst(with_test)
    assert (without.common >= with_test.common - 1e-6).all()


def grid(size: int) -> tuple[Tensor, Tensor]:
    """A flat mesh larger than an image of this size, 1 mm = 1 pixel; it has no silhouette there."""
    line = torch.linspace(-size, size, 9).double()
    y, x = torch.meshgrid(line, line, indexing="ij")
    index = torch.arange(81).view(9, 9)
    a, b, c, d = index[:-1, :-1], index[:-1, 1:], index[1:, :-1], index[1:, 1:]
    triangles = torch.stack([torch.stack([a, b, c], -1), torch.stack([b, d, c], -1)])
    return torch.stack([x, y, 0 * x], -1).view(1, 1, -1, 3), triangles.view(-1, 3)


def straight(size: int, frames: int) -> WeakPerspectiveCamera:
    rotation = frontal(torch.zeros(()).double()).expand(1, frames, 3, 3)
    return WeakPerspectiveCamera(
        rotation, torch.ones(1, frames).double(), torch.full((1, frames, 2), size / 2).double()
    )


def test_a_shift_by_hand():
    """The second mesh is 1.5 px further right in its image: so is what is read for the first."""
    size = 24
    mesh, triangles = grid(size)
    vertices = torch.cat([mesh, mesh + torch.tensor([1.5, 0, 0])], 1)
    images = torch.rand(1, 2, 3, size, size).double()
    swapped = swap_textures(
        images, vertices, triangles, straight(size, 2), torch.ones(81), depth_test=False
    )
    where = pixel_centres(size, images)
    shift = torch.tensor([1.5, 0])
    wanted = [
        sample(images[0, 1], where + shift, padding="border"),
        sample(images[0, 0], where - shift, padding="border"),
    ]
    torch.testing.assert_close(swapped.images[0, :, 0], torch.stack(wanted))


def test_gradients():
    """With respect to both geometries and the images, against differences."""
    size = 8
    mesh, triangles = grid(size)
    mesh = mesh + torch.tensor([0.2, 0.37, 0])  # no pixel's centre is near an edge
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    # slopes without kinks: bilinear interpolation has none of a plane
    planes = torch.stack([0.05 * x + 0.02 * y, 0.3 + 0.01 * x - 0.03 * y]).double()
    images = planes[None, :, None].expand(-1, -1, 3, -1, -1).clone().requires_grad_()
    vertices = torch.cat([mesh, 0.5 * mesh + 0.1], 1).requires_grad_()
    camera = straight(size, 2)

    def inner(vertices: Tensor, images: Tensor) -> Tensor:
        swapped = swap_textures(
            images, vertices, triangles, camera, torch.ones(81), depth_test=False
        )
        return swapped.images[..., 3:5, 3:5]

    assert torch.autograd.gradcheck(inner, (vertices, images), fast_mode=True)


@pytest.mark.parametrize("off", [-2.0, 2.0])
def test_losses_pull_a_face_into_place(head, off):
    """A pose that is 2 px off, of the frame drawn or the one that is read, under another light."""
    views = Views(head, (-10, 10))
    images = views.images * torch.tensor([1.0, 0.8])[None, :, None, None, None]
    for frame in (0, 1):
        shift = torch.tensor(off, requires_grad=True)
        swapped = views.swap(camera=views.moved(frame, shift), images=images)
        target, weight = images[:, :, None], swapped.compared
        flow = lucas_kanade(*(each.flatten(0, 2) for each in (target, swapped.images, weight)))
        for loss in (
            census_loss(swapped.images, target.expand_as(swapped.images), weight),
            flow_loss(flow, weight.flatten(0, 2)),
        ):
            (slope,) = torch.autograd.grad(loss, shift, retain_graph=True)
            assert slope * off > 0


def test_one_frame_is_refused(head):
    with pytest.raises(ValueError, match="there is 1 of each; give two or more"):
        Views(head, (0,)).swap()
