"""Silhouettes: the covered area, the gradient of its border, what is and is not a silhouette."""

import math

import pytest
import torch
import torch.nn.functional as F

from core.rasterize import antialias, antialiasing, interpolate, rasterize, silhouettes
from core.rasterize.topology import topology
from core.rotation import rotation_angle, rotation_from_vector
from tests.fakes.meshes import grid, soup, sphere

ONE = torch.tensor([[0, 1, 2]])


def covered(fragments, dtype=torch.float32):
    return (fragments.triangle_index >= 0).to(dtype)[..., None]


def edge_at(position, size=(8, 10), axis=0):
    """A big triangle whose upright (or level) edge is at a position in pixels."""
    across = 2 * position / size[1 - axis] - 1
    low, high = (torch.stack([across, across * 0 + y]) for y in (-40.0, 40.0))
    left = torch.stack([across - 40, across * 0])
    points = torch.stack([low, high, left])
    points = points if axis == 0 else points.flip(-1)
    return torch.cat([points, points.new_tensor([[0, 1.0]]).expand(3, 2)], -1)[None]


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("position", [4.7, 4.55, 5.0, 5.2, 5.45])
def test_a_straight_edge(axis, position):
    # what lies up to the edge is 0, beyond it 1; the image is blended to the covered area, which
    # a box filter would give, too
    size = (8, 10) if axis == 0 else (10, 8)
    place = torch.tensor(position, dtype=torch.float32, requires_grad=True)
    clip = edge_at(place, size, axis)
    fragments = rasterize(clip, ONE, size)
    smooth = antialias(1 - covered(fragments), fragments, clip, ONE)[0, :, :, 0]
    line = (smooth if axis == 0 else smooth.T)[3]
    wanted = (torch.arange(10) + 1 - position).clamp(0, 1)
    assert torch.allclose(line, wanted, atol=1e-5)
    gradient = torch.autograd.grad(line.sum(), place)[0]
    assert gradient.item() == pytest.approx(-1, abs=1e-4)


def test_inner_edges_are_left_alone():
    clip, triangles = grid(5, 4, extent=1.5)
    fragments = rasterize(clip, triangles, (20, 20))
    image = torch.rand(1, 20, 20, 3)
    assert torch.equal(antialias(image, fragments, clip, triangles), image)


def test_a_surface_behind_another_shows_through_its_border():
    # a near square before a far plane, of the same colour as the mask: only the border is blended
    corners = torch.tensor([[-0.5, -0.5], [0.52, -0.5], [-0.5, 0.52], [0.52, 0.52]])
    square = torch.cat([corners, torch.tensor([[0.0, 1]]).expand(4, 2)], -1)
    plane = torch.cat([corners * 9, torch.tensor([[0.5, 1]]).expand(4, 2)], -1)
    triangles = torch.tensor([[0, 1, 2], [3, 2, 1], [4, 5, 6], [7, 6, 5]])
    clip = torch.cat([square, plane])[None]
    fragments = rasterize(clip, triangles, (50, 50))
    near = ((fragments.triangle_index >= 0) & (fragments.triangle_index < 2)).float()[..., None]
    smooth = antialias(near, fragments, clip, triangles)
    assert smooth.sum().item() == pytest.approx((1.02 * 25) ** 2, abs=0.3)  # the four corners
    assert near.sum().item() == 26**2


@pytest.mark.parametrize("dense", [False, True])
def test_disks_have_their_area_and_the_gradient_of_their_size(dense):
    """A fan of 12 triangles, or rings of triangles of a fifth of a pixel."""
    count, rings, disks, size = (200, 60, 6, (64, 64)) if dense else (12, 1, 24, (64, 64))
    angle = torch.arange(count, dtype=torch.float32) / count * 2 * math.pi
    ring = torch.arange(rings)[:, None] * count
    a, b = ring + torch.arange(count), ring + (torch.arange(count) + 1) % count
    fan = torch.stack([a[0], b[0], torch.full((count,), rings * count)], -1)
    walls = [
        torch.stack(t, -1).flatten(0, 1) for t in ((a[:-1], a[1:], b[:-1]), (b[:-1], a[1:], b[1:]))
    ]
    triangles = torch.cat([fan, *walls])
    radius = torch.linspace(18, 22, disks).requires_grad_()
    turn = angle + torch.linspace(0, 1, disks)[:, None]
    share = (torch.arange(rings) + 1) / rings
    rim = torch.stack([turn.cos(), turn.sin()], -1)[:, None] * share[:, None, None]
    rim = (rim * radius[:, None, None, None]).flatten(1, 2)
    points = torch.cat([rim, torch.zeros(disks, 1, 2)], 1) / 32 + 0.01
    clip = torch.cat([points, points.new_tensor([0, 1.0]).expand(*points.shape[:2], 2)], -1)
    fragments = rasterize(clip, triangles, size)
    area = antialias(covered(fragments), fragments, clip, triangles).sum((1, 2, 3))
    polygon = count / 2 * math.sin(2 * math.pi / count)  # area of the unit polygon
    assert torch.allclose(area, polygon * radius.square(), rtol=0.01)
    gradient = torch.autograd.grad(area.sum(), radius)[0]
    # each counts whole rows and columns of pixels; on average that is right
    assert (gradient / (2 * polygon * radius)).mean().item() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(("columns", "rows", "least"), [(8, 6, 0.3), (400, 200, 0.6)])
def test_the_fold_of_a_closed_surface_is_found(columns, rows, least):
    """Also where the pixels next to it see triangles far from it, of a hundredth of a pixel."""
    clip, triangles = sphere(columns, rows, batch=1)
    fragments = rasterize(clip, triangles, (80, 80))
    mask = covered(fragments)
    smooth = antialias(mask, fragments, clip, triangles)
    changed = (smooth != mask)[0, :, :, 0]
    inner = -F.max_pool2d(-mask[:, None, :, :, 0], 3, 1, 1)[0, 0] > 0
    outer = F.max_pool2d(mask[:, None, :, :, 0], 3, 1, 1)[0, 0] > 0
    rim = outer & ~inner
    assert not (changed & ~rim).any()
    # about every second pixel of the two rows along the silhouette is the one that is blended
    assert changed.sum() > least * (mask[0, :, :, 0].bool() & rim).sum()


def supersampled(clip, triangles, size, factor=16):
    """The mask filtered by a box, from so many exact samples per pixel and side."""
    fine = (size[0] * factor, size[1] * factor)
    mask = covered(rasterize(clip, triangles, fine, subpixel=None))
    return F.avg_pool2d(mask.movedim(-1, 1), factor).movedim(1, -1)


@pytest.mark.parametrize(
    ("columns", "rows", "subpixel", "tolerance"),
    [(24, 12, 16, 0.05), (300, 150, None, 0.05), (300, 150, 16, 0.12)],
)
@pytest.mark.parametrize("axis", [0, 1, 3])
def test_the_gradient_is_that_of_the_filtered_image(columns, rows, subpixel, tolerance, axis):
    """Finite differences of a box-filtered mask, triangles of some and of 1/30 pixels.

    Snapping to 1/16 pixel shuffles the latter, so that a few silhouettes are missed.
    """
    clip, triangles = sphere(columns, rows, batch=8)
    clip = clip.clone()
    clip[..., :2] += clip[..., 3:] * torch.linspace(0, 0.06, 8)[:, None, None]
    size = (48, 48)
    y, x = torch.meshgrid(torch.arange(48.0), torch.arange(48.0), indexing="ij")
    weight = ((x / 9).sin() + (y / 7).cos() + x * y / 900)[..., None]
    direction = torch.zeros(4)
    direction[axis] = 1.0 if axis == 3 else 1 / 24  # a pixel, or all nearer

    def moved(step):
        return clip + direction * step * (clip[..., 3:] if axis < 3 else 0.1)

    step = torch.zeros((), requires_grad=True)
    position = moved(step)
    fragments = rasterize(position.detach(), triangles, size, subpixel=subpixel)
    smooth = antialias(covered(fragments), fragments, position, triangles)
    slope = torch.autograd.grad((smooth * weight).sum(), step)[0].item()
    ends = [(supersampled(moved(s), triangles, size) * weight).sum().item() for s in (-0.5, 0.5)]
    assert slope == pytest.approx(ends[1] - ends[0], rel=tolerance)


def test_the_filtered_image_is_closer_than_the_mask():
    clip, triangles = sphere(300, 150, batch=2)
    fragments = rasterize(clip, triangles, (48, 48))
    mask = covered(fragments)
    truth = supersampled(clip, triangles, (48, 48))
    smooth = antialias(mask, fragments, clip, triangles)
    assert (smooth - truth).abs().sum() < 0.45 * (mask - truth).abs().sum()


MESHES = {
    "sphere": lambda: sphere(16, 9),
    "dense": lambda: sphere(150, 80),
    "soup": lambda: soup(4),
    "flat soup": lambda: soup(6, perspective=False),
    "grid": lambda: grid(9, 7, extent=0.8),
    "behind": lambda: (soup(7)[0] - torch.tensor([0, 0, 0, 0.8]), soup(7)[1]),
}


@pytest.mark.parametrize("name", MESHES)
def test_the_kernels_find_what_plain_torch_finds(name):
    """From the edges to the pixels against from the pixels to the edges; float64."""
    clip, triangles = MESHES[name]()
    clip = clip.double().requires_grad_()
    size = (60, 52)
    fragments = rasterize(clip.detach(), triangles, size)
    random = torch.Generator().manual_seed(0)
    image = torch.rand(len(clip), *size, 3, generator=random).double().requires_grad_()
    weight = torch.rand(len(clip), *size, 3, generator=random)
    results = []
    for version in (antialiasing, silhouettes):
        smooth = version.antialias(image, fragments, clip, topology(triangles))
        gradients = torch.autograd.grad((smooth * weight).sum(), [image, clip])
        results.append((smooth, *gradients))
    assert (results[0][0] != image).sum() > 50
    for ours, theirs in zip(*results, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-9 * theirs.abs().max().item())


@pytest.mark.parametrize("version", [antialiasing, silhouettes])
def test_gradient_in_float64(version):
    """Exact for image and positions, where the same edges are crossed."""
    clip = torch.tensor(
        [
            [-0.9, -0.8, 0.1, 1.0], [1.5, -1.1, 0.2, 1.6], [-0.7, 0.85, 0.3, 0.9],
            [0.75, 0.7, 0.1, 0.8], [1.2, -0.3, 0.2, 1.2], [-0.1, 1.0, 0.0, 1.1],
        ], dtype=torch.float64,
    )[None].requires_grad_()  # fmt: skip
    triangles = torch.arange(6).view(2, 3)
    fragments = rasterize(clip.detach(), triangles, (6, 7))
    image = torch.randn(1, 6, 7, 2, dtype=torch.float64, requires_grad=True)

    def smooth(picture, corners):
        return version.antialias(picture, fragments, corners, topology(triangles))

    assert not torch.equal(smooth(image, clip), image)
    assert torch.autograd.gradcheck(smooth, (image, clip), eps=1e-7, fast_mode=True)


def test_twins():
    # two triangles share the edge 1-2; a third hangs on 2-3 together with a fourth and a fifth
    triangles = torch.tensor([[0, 1, 2], [3, 2, 1], [2, 3, 4], [2, 3, 5]])
    known = topology(triangles)
    assert known.twins.tolist() == [[3, -1, -1], [0, -1, -1], [-1, -1, -1], [-1, -1, -1]]
    assert known.edges.tolist() == [[0, 0, 1, 0]]
    assert known.borders.tolist() == [1, 2, 4, 5, 6, 7, 8, 9, 10, 11]
    assert topology(torch.tensor([[0, 1, 2], [3, 1, 2]])).edges.tolist() == [[0, 0, 1, 1]]


def test_orientation_of_the_triangles_does_not_matter():
    clip, triangles = grid(6, 5, extent=0.7)
    size = (40, 40)
    random = torch.Generator().manual_seed(1)
    some = torch.rand(len(triangles), generator=random) < 0.5
    mixed = torch.where(some[:, None], triangles[:, [1, 0, 2]], triangles)
    one, other = (
        antialias(covered(drawn), drawn, clip, corners)
        for corners in (triangles, mixed)
        for drawn in [rasterize(clip, corners, size)]
    )
    assert torch.allclose(one, other, atol=1e-6)
    assert (one != covered(rasterize(clip, triangles, size))).any()


def head():
    """A bumpy egg in millimetres, triangles of several pixels, with a painted skin."""
    columns, rows = 24, 18
    theta = torch.arange(columns) / columns * 2 * math.pi
    phi = torch.linspace(0.12, math.pi - 0.12, rows)[:, None]
    x, y, z = phi.sin() * theta.cos(), phi.cos().expand(rows, columns), phi.sin() * theta.sin()
    bump = 1 + 0.25 * (-((x - 0.3) ** 2 + (y - 0.2) ** 2 + (z + 0.9) ** 2) / 0.08).exp()
    points = torch.stack([70 * x * bump, 95 * y, 80 * z * bump], -1).flatten(0, 1)
    colours = torch.stack([(x * 3).sin(), (y * 4 + x).cos(), (z * 5 - y).sin()], -1).flatten(0, 1)
    _, triangles = sphere(columns, rows, batch=1)
    return points, triangles, colours / 2 + 0.5


def picture(points, triangles, colours, turn, place, size):
    """The painted head before black, its silhouette antialiased, and the mask."""
    camera = points @ rotation_from_vector(turn).mT + place
    x, y, z = camera.unbind(-1)
    near, far = 100.0, 2000.0
    depth = (z * (far + near) - 2 * far * near) / (far - near)
    clip = torch.stack([5 * x, 5 * y, depth, z], -1)[None]
    fragments = rasterize(clip, triangles, size)
    channels = torch.cat([colours, torch.ones(len(colours), 1)], -1)
    return antialias(interpolate(channels[None], fragments, triangles), fragments, clip, triangles)


@pytest.mark.usefixtures("one_thread")
def test_pose_is_found_from_an_image_by_gradient():
    """From 4 degrees and 10 mm away to 0.1 degree and 0.1 mm.

    The image is not one that the renderer can reproduce: it is box-filtered from 8 x 8 samples per
    pixel.
    """
    points, triangles, colours = head()
    size, factor = (96, 96), 8
    true_turn, true_place = torch.tensor([0.2, -0.3, 0.1]), torch.tensor([6.0, -4.0, 620.0])
    fine = (size[0] * factor, size[1] * factor)
    target = picture(points, triangles, colours, true_turn, true_place, fine)
    target = F.avg_pool2d(target.movedim(-1, 1), factor).movedim(1, -1)
    turn = (true_turn + torch.tensor([0.05, -0.04, 0.03])).requires_grad_()
    place = (true_place + torch.tensor([4.0, 5.0, -8.0])).requires_grad_()
    optimizer = torch.optim.Adam(
        [{"params": [turn], "lr": 0.01}, {"params": [place], "lr": 1.0}], betas=(0.8, 0.95)
    )
    steps = 200
    decay = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.002 ** (1 / steps))
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (picture(points, triangles, colours, turn, place, size) - target).square().sum()
        loss.backward()
        optimizer.step()
        decay.step()
    relative = rotation_from_vector(turn).mT @ rotation_from_vector(true_turn)
    assert math.degrees(rotation_angle(relative).item()) < 0.1
    assert (place - true_place).norm().item() < 0.1
