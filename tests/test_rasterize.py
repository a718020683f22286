"""The rasterizer: known answers by hand, both CPU backends against each other, gradients."""

import math
import multiprocessing

import numpy as np
import pytest
import torch

from core.errors import MonofaceError
from core.rasterize import Fragments, antialias, interpolate, rasterize
from core.rasterize import nvdiffrast as cuda_backend
from core.rasterize.topology import topology

needs_cuda = pytest.mark.skipif(
    not (torch.cuda.is_available() and cuda_backend.is_installed()),
    reason="needs an NVIDIA GPU and nvdiffrast",
)


def soup(seed, count=150, extent=0.5, batch=2, perspective=True):
    """Random triangles that interpenetrate, clip space, all in front of the camera."""
    random = torch.Generator().manual_seed(seed)
    centre = torch.rand(batch, count, 1, 3, generator=random) * 2 - 1
    corners = centre + (torch.rand(batch, count, 3, 3, generator=random) - 0.5) * extent
    corners[..., 2] = corners[..., 2].clamp(-0.99, 0.99)
    w = torch.rand(batch, count, 3, 1, generator=random) * 2 + 0.5
    w = w if perspective else torch.ones_like(w)
    clip = torch.cat([corners * w, w], -1).flatten(1, 2)
    return clip, torch.arange(3 * count).view(count, 3)


def sphere(columns=48, rows=24, batch=2):
    """A UV sphere, turned a little per image, seen in perspective (camera at distance 4)."""
    theta = torch.arange(columns) / columns * 2 * math.pi
    phi = torch.linspace(0.05, math.pi - 0.05, rows)
    ring = torch.stack([theta.cos(), theta * 0, theta.sin()], -1)
    points = phi.sin()[:, None, None] * ring + phi.cos()[:, None, None] * torch.tensor([0, 1.0, 0])
    points = points.flatten(0, 1)
    a = (torch.arange(rows - 1)[:, None] * columns + torch.arange(columns)).flatten()
    b = (
        torch.arange(rows - 1)[:, None] * columns + (torch.arange(columns) + 1) % columns
    ).flatten()
    triangles = torch.cat(
        [torch.stack([a, a + columns, b], -1), torch.stack([b, a + columns, b + columns], -1)]
    )
    angle = 0.3 * torch.arange(batch) + 0.1
    c, s, o = angle.cos(), angle.sin(), angle * 0
    turn = torch.stack([c, o, s, s * s, c, -s * c, -c * s, s, c * c], -1).view(-1, 3, 3)
    x, y, z = (points @ turn.mT).unbind(-1)
    w = z + 4
    near, far = 1.0, 10.0
    depth = (w * (far + near) - 2 * far * near) / (far - near)
    return torch.stack([3 * x, 3 * y, depth, w], -1), triangles


def grid(columns, rows, extent=1.0, seed=0):
    """A jittered height field over [-extent, extent]^2, w = 1, its border straight."""
    random = np.random.default_rng(seed)
    x, y = np.meshgrid(np.linspace(-1, 1, columns + 1), np.linspace(-1, 1, rows + 1))
    inner = (abs(x) < 1) & (abs(y) < 1)
    x = x + inner * random.uniform(-0.2, 0.2, x.shape) * 2 / columns
    y = y + inner * random.uniform(-0.2, 0.2, y.shape) * 2 / rows
    z = random.uniform(-0.5, 0.5, x.shape)
    clip = np.stack([x * extent, y * extent, z, np.ones_like(x)], -1).reshape(1, -1, 4)
    a = (np.arange(rows)[:, None] * (columns + 1) + np.arange(columns)).ravel()
    b, c, d = a + 1, a + columns + 1, a + columns + 2
    triangles = np.concatenate([np.stack([a, b, c], 1), np.stack([d, b, c], 1)])
    return torch.from_numpy(clip).float(), torch.from_numpy(triangles)


TRIANGLE = torch.tensor([[[-1.0, -1, 0.5, 1], [1, -1, 0.5, 1], [-1, 1, 0.5, 1]]])
ONE = torch.tensor([[0, 1, 2]])


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("order", [[0, 1, 2], [1, 0, 2]])
def test_triangle_worked_by_hand(backend, order):
    fragments = rasterize(TRIANGLE, torch.tensor([order]), (4, 4), backend)
    row, column = torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij")
    # the diagonal i + j = 3 is the triangle's lower right edge: its centres are not its own
    assert torch.equal(fragments.triangle_index[0] == 0, row + column < 3)
    assert fragments.triangle_index.dtype == torch.int64
    weights = torch.cat(
        [fragments.barycentric, 1 - fragments.barycentric.sum(-1, keepdim=True)], -1
    )[0]
    right, low = (column + 0.5) / 4, (row + 0.5) / 4  # of the way from the left and top edges
    wanted = torch.stack([1 - right - low, right, low], -1)[..., order]
    inside = row + column < 3
    assert torch.allclose(weights[inside], wanted[inside], atol=1e-6)
    assert torch.equal(fragments.depth[0], 0.5 * inside)
    assert not fragments.barycentric[0][~inside].any()


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_fill_rule_of_a_square_on_pixel_centres(backend):
    # a square from centre (1, 1) to centre (3, 3): its left and top edges are its own
    low, high = 1.5 / 8 * 2 - 1, 3.5 / 8 * 2 - 1
    corners = [[low, low, 0, 1], [high, low, 0, 1], [low, high, 0, 1], [high, high, 0, 1]]
    fragments = rasterize(
        torch.tensor([corners]), torch.tensor([[0, 1, 2], [1, 2, 3]]), (8, 8), backend
    )
    covered = (fragments.triangle_index[0] >= 0).nonzero().tolist()
    assert covered == [[1, 1], [1, 2], [2, 1], [2, 2]]


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("soup", (61, 83)),
        ("micro", (64, 64)),
        ("flat", (40, 40)),
        ("sphere", (96, 80)),
        ("grid", (50, 70)),
    ],
)
def test_backends_agree(name, size):
    clip, triangles = {
        "soup": lambda: soup(1),
        "micro": lambda: soup(2, count=900, extent=0.06),
        "flat": lambda: soup(3, perspective=False),
        "sphere": sphere,
        "grid": lambda: grid(23, 17, extent=1.3),
    }[name]()
    fast, slow = (rasterize(clip, triangles, size, backend) for backend in ("cpu", "reference"))
    covered = (fast.triangle_index >= 0) | (slow.triangle_index >= 0)
    assert covered.sum() > 400
    same = fast.triangle_index == slow.triangle_index
    assert (same & covered).sum() >= 0.9995 * covered.sum()
    assert torch.allclose(fast.barycentric[same], slow.barycentric[same], atol=1e-3)
    assert torch.allclose(fast.depth[same], slow.depth[same], atol=1e-4)


@pytest.mark.parametrize(("columns", "rows"), [(1, 1), (7, 5), (61, 47), (150, 150)])
def test_every_pixel_is_covered_exactly_once(columns, rows):
    clip, triangles = grid(columns, rows)
    size = (45, 61)
    assert (rasterize(clip, triangles, size).triangle_index >= 0).all()
    # removing the winners must leave nothing: no pixel has a second triangle
    count = torch.zeros(size)
    half = len(triangles) // 2
    for part in (
        triangles[:half],
        triangles[half:],
        triangles[::3],
        triangles[1::3],
        triangles[2::3],
    ):
        count += rasterize(clip, part, size).triangle_index[0] >= 0
    assert (count == 2).all()  # once in the halves, once in the thirds


def test_perspective_is_correct_on_a_plane():
    # a floor Y = 1, camera at the origin looking along Z: at row y the depth is 1 / y
    points = torch.tensor([[-40.0, 1, 0.5], [40, 1, 0.5], [-40, 1, 60], [40, 1, 60]])
    x, y, z = points.unbind(-1)
    clip = torch.stack([x, y, z * 0.01, z], -1)[None]
    triangles = torch.tensor([[0, 1, 2], [1, 2, 3]])
    fragments = rasterize(clip, triangles, (64, 48))
    seen = interpolate(points[None], fragments, triangles)[0]
    row, column = torch.meshgrid(torch.arange(64), torch.arange(48), indexing="ij")
    sight_x, sight_y = (2 * column + 1) / 48 - 1, (2 * row + 1) / 64 - 1
    floor = (fragments.triangle_index[0] >= 0) & (sight_y > 0.05)
    assert floor[40:].all()
    assert not (fragments.triangle_index[0][:32] >= 0).any()
    assert torch.allclose(seen[..., 2][floor], (1 / sight_y)[floor], rtol=1e-4)
    assert torch.allclose(seen[..., 0][floor], (sight_x / sight_y)[floor], rtol=1e-4, atol=1e-4)


def test_nearest_wins_and_later_at_equal_depth():
    clip = torch.cat([TRIANGLE, TRIANGLE, TRIANGLE], 1)
    clip[0, 3:6, 2] = 0.4
    triangles = torch.arange(9).view(3, 3)
    assert rasterize(clip, triangles, (4, 4)).triangle_index.max() == 1
    for backend in ("cpu", "reference"):
        equal = rasterize(clip[:, [0, 1, 2, 6, 7, 8]], triangles[:2], (4, 4), backend)
        assert equal.triangle_index[0, 0, 0] == 1


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_triangle_that_reaches_behind_the_camera_is_cut(backend):
    # a floor that begins 3 units behind the camera; only what is before the near plane is seen
    points = torch.tensor([[-9.0, 1, -3], [9, 1, -3], [0, 1, 30]])
    x, y, z = points.unbind(-1)
    near, far = 1.0, 100.0
    clip = torch.stack([x, y, (z * (far + near) - 2 * far * near) / (far - near), z], -1)[None]
    fragments = rasterize(clip, ONE, (64, 64), backend)
    seen = interpolate(points[None], fragments, ONE)[0, :, :, 2]
    covered = fragments.triangle_index[0] >= 0
    sight = (2 * torch.arange(64) + 1) / 64 - 1
    depth = (1 / sight)[:, None].expand(64, 64)
    half_width = 9 * (30 - depth) / 33
    wanted = (sight[:, None] > 0) & (depth < 30) & ((sight[None] * depth).abs() < half_width)
    assert (covered != wanted).sum() <= 6  # snapping
    both = covered & wanted
    assert torch.allclose(seen[both], depth[both], rtol=1e-3)


def test_clipped_neighbours_have_no_gap():
    # a plane through the camera's side, of many triangles that cross the near plane
    clip, triangles = grid(12, 12)
    x, y = clip[0, :, 0], clip[0, :, 1]
    w = 0.3 + 2 * y
    clip = torch.stack([4 * x, 0.5 * w + 1e-3 * x, w - 0.2, w], -1)[None]
    clip[..., 1] = y + 0.2
    index = rasterize(clip, triangles, (64, 64)).triangle_index[0]
    reference = rasterize(clip, triangles, (64, 64), "reference").triangle_index[0]
    assert (index >= 0).any()
    assert ((index >= 0) != (reference >= 0)).sum() <= 3


def test_very_far_corners_do_not_disturb():
    clip = torch.tensor([[[-1e6, -1e6, 0, 1], [1e6, -1e6, 0, 1], [0, 1e6, 0, 1.0]]])
    assert (rasterize(clip, ONE, (33, 47)).triangle_index == 0).all()
    tiny = torch.tensor([[[-1.0, -1, 0, 1e-12], [1, -1, 0, 1e-12], [0, 1, 0, 1e-12]]])
    assert (rasterize(tiny, ONE, (33, 47)).triangle_index == 0).all()


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("axis", [0, 1, 2, 3])
def test_triangle_that_is_not_finite_is_left_out(backend, value, axis):
    clip = torch.cat([TRIANGLE, TRIANGLE * torch.tensor([1, 1, 0.5, 1])], 1)
    clip[0, 4, axis] = value
    fragments = rasterize(clip, torch.arange(6).view(2, 3), (5, 5), backend)
    assert fragments.triangle_index.max() == 0
    assert fragments.barycentric.isfinite().all()
    assert fragments.depth.isfinite().all()


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_nothing_to_draw(backend):
    empty = torch.zeros(0, 3, dtype=torch.int64)
    for clip, triangles in [
        (torch.zeros(2, 0, 4), empty),
        (TRIANGLE, empty),
        (torch.zeros(0, 3, 4), ONE),
        (TRIANGLE, torch.tensor([[1, 1, 2]])),  # no area
        (TRIANGLE * torch.tensor([1, 1, 1, -1.0]), ONE),  # behind the camera
        (TRIANGLE + torch.tensor([0, 0, 5.0, 0]), ONE),  # beyond the far plane
        (TRIANGLE + torch.tensor([9.0, 0, 0, 0]), ONE),  # outside the image
    ]:
        fragments = rasterize(clip, triangles, (3, 5), backend)
        assert fragments.triangle_index.shape == (len(clip), 3, 5)
        assert (fragments.triangle_index == -1).all()
        assert not fragments.barycentric.any()
        assert not interpolate(clip, fragments, triangles).any()


def test_one_pixel():
    clip = torch.tensor([[[-2.0, -2, 0, 1], [2, -2, 0, 1], [0, 3, 0, 1]]])
    fragments = rasterize(clip, ONE, (1, 1))
    assert fragments.triangle_index.tolist() == [[[0]]]
    # the centre is (0, 0): 3 / 5 of the way from the third corner to the first edge
    assert torch.allclose(fragments.barycentric, torch.tensor([0.3, 0.3]))


def test_errors_say_what_is_wrong():
    with pytest.raises(IndexError, match="from 0 to 3, but there are 3 vertices"):
        rasterize(TRIANGLE, torch.tensor([[0, 1, 3]]), (4, 4))
    with pytest.raises(IndexError, match="from -1 to 1"):
        rasterize(TRIANGLE, torch.tensor([[0, 1, -1]]), (4, 4))
    with pytest.raises(TypeError, match="bfloat16"):
        rasterize(TRIANGLE.bfloat16(), ONE, (4, 4))
    with pytest.raises(ValueError, match="size 0 x 4"):
        rasterize(TRIANGLE, ONE, (0, 4))
    with pytest.raises(ValueError, match="no rasterizer backend 'opengl'"):
        rasterize(TRIANGLE, ONE, (4, 4), "opengl")
    fragments = rasterize(TRIANGLE, ONE, (4, 4))
    with pytest.raises(ValueError, match="given for 2 images"):
        interpolate(torch.zeros(2, 3, 1), fragments, ONE)
    with pytest.raises(IndexError, match="there are 2 vertices"):
        interpolate(torch.zeros(1, 2, 1), fragments, ONE)
    with pytest.raises(IndexError, match="beyond the 0 given"):
        interpolate(torch.zeros(1, 3, 1), fragments, ONE[:0])


def test_missing_nvdiffrast_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(cuda_backend, "is_installed", lambda: False)
    with pytest.raises(MonofaceError, match=r"monoface\[cuda\].*[Ll]icen[cs]e.*non-commercial"):
        rasterize(TRIANGLE, ONE, (4, 4), "nvdiffrast")


def test_changed_triangles_are_noticed():
    triangles = ONE.clone()
    assert rasterize(TRIANGLE, triangles, (4, 4)).triangle_index.max() == 0
    triangles[0, 2] = 7
    with pytest.raises(IndexError, match="to 7"):
        rasterize(TRIANGLE, triangles, (4, 4))


def naive_interpolate(attributes, fragments, triangles):
    attributes = attributes.expand(len(fragments.depth), -1, -1)
    weights = fragments.barycentric
    weights = torch.cat([weights, 1 - weights.sum(-1, keepdim=True)], -1)
    image = torch.arange(len(attributes))[:, None, None, None]
    corners = attributes[image, triangles[fragments.triangle_index.clamp(min=0)]]
    covered = fragments.triangle_index >= 0
    return (weights[..., None] * corners).sum(-2) * covered[..., None]


@pytest.mark.parametrize("shared", [False, True])
def test_interpolate_equals_plain_torch(shared):
    clip, triangles = sphere()
    drawn = rasterize(clip, triangles, (40, 44))
    attributes = torch.randn(1 if shared else 2, clip.shape[1], 5)
    weight = torch.randn(2, 40, 44, 5)
    gradients = []
    for function in (interpolate, naive_interpolate):
        values = attributes.clone().requires_grad_()
        barycentric = drawn.barycentric.clone().requires_grad_()
        fragments = Fragments(barycentric, drawn.depth, drawn.triangle_index)
        result = function(values, fragments, triangles)
        gradients.append(
            (result, *torch.autograd.grad((result * weight).sum(), [values, barycentric]))
        )
    covered = (drawn.triangle_index >= 0)[..., None]
    for i, (ours, theirs) in enumerate(zip(*gradients, strict=True)):
        ours, theirs = (ours * covered, theirs * covered) if i == 2 else (ours, theirs)
        assert torch.allclose(ours, theirs, atol=1e-5)


def inner_triangles(dtype=torch.float64):
    """Two perspective triangles and an image small enough to differentiate numerically."""
    clip = torch.tensor(
        [
            [-0.9, -0.8, 0.1, 1.0], [1.5, -1.1, 0.2, 1.6], [-0.7, 0.85, 0.3, 0.9],
            [0.75, 0.7, 0.1, 0.8], [1.2, -0.3, 0.2, 1.2], [-0.1, 1.0, 0.0, 1.1],
        ], dtype=dtype,
    )[None]  # fmt: skip
    return clip, torch.arange(6).view(2, 3)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_gradients_are_exact_in_float64(backend):
    clip, triangles = inner_triangles()
    size = (6, 7)
    attributes = torch.randn(1, 6, 2, dtype=torch.float64)
    # pixels whose centre lies inside the unsnapped triangle by a margin: exact there
    drawn = rasterize(clip, triangles, size, backend)
    u, v = drawn.barycentric.unbind(-1)
    inside = (drawn.triangle_index >= 0) & (u > 0.02) & (v > 0.02) & (u + v < 0.98)
    assert inside.sum() > 10

    def draw(position, values):
        fragments = rasterize(position, triangles, size, backend)
        return interpolate(values, fragments, triangles)[inside]

    inputs = (clip.clone().requires_grad_(), attributes.requires_grad_())
    assert torch.autograd.gradcheck(draw, inputs, eps=1e-7)
    draw(*inputs).sum().backward()
    assert not inputs[0].grad[..., 2].any()


@pytest.mark.parametrize("make", [sphere, lambda: soup(5)])
def test_gradients_equal_the_references(make):
    clip, triangles = make()
    weight = torch.randn(2, 40, 40, 2, generator=torch.Generator().manual_seed(0))
    # not where the centre is beside the unsnapped triangle, which may be as thin as you like
    u, v = rasterize(clip, triangles, (40, 40), "reference").barycentric.unbind(-1)
    weight *= ((u > 0.02) & (v > 0.02) & (u + v < 0.98))[..., None]
    gradients, indices = [], []
    for backend, dtype in (("cpu", torch.float32), ("reference", torch.float64)):
        position = clip.detach().to(dtype).clone().requires_grad_()
        fragments = rasterize(position, triangles, (40, 40), backend)
        (fragments.barycentric * weight).sum().backward()
        gradients.append(position.grad.double())
        indices.append(fragments.triangle_index)
    assert torch.equal(*indices)
    scale = gradients[1].abs().amax((1, 2), keepdim=True)
    assert ((gradients[0] - gradients[1]).abs() < 1e-5 * scale).all()


def test_same_result_for_any_number_of_threads():
    clip, triangles = sphere(batch=5)
    attributes = torch.randn(1, clip.shape[1], 3, generator=torch.Generator().manual_seed(0))
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            position, values = clip.clone().requires_grad_(), attributes.clone().requires_grad_()
            fragments = rasterize(position, triangles, (48, 48))
            image = antialias(
                interpolate(values, fragments, triangles), fragments, position, triangles
            )
            image.square().sum().backward()
            results.append((fragments.triangle_index, image, position.grad, values.grad))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def _draws_in_child(queue, clip, triangles):
    queue.put(int((rasterize(clip, triangles, (32, 32)).triangle_index >= 0).sum()))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_can_draw_too():
    # torch's own operations are another matter: they may hang in a fork, so there are none of size
    clip, triangles = sphere(batch=4)
    covered = int((rasterize(clip, triangles, (32, 32)).triangle_index >= 0).sum())
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=_draws_in_child, args=(queue, clip, triangles))
    child.start()
    child.join(30)
    assert child.exitcode == 0
    assert queue.get() == covered


def test_half_precision_attributes_and_autocast():
    fragments = rasterize(TRIANGLE, ONE, (4, 4))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        image = interpolate(torch.ones(1, 3, 2, dtype=torch.bfloat16), fragments, ONE)
        smooth = antialias(image.bfloat16(), fragments, TRIANGLE, ONE)
    assert image.dtype == smooth.dtype == torch.float32
    assert torch.equal(image[..., 0] > 0.99, fragments.triangle_index >= 0)


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
def test_antialias_of_a_straight_edge(axis, position):
    # what lies up to the edge is 0, beyond it 1; the image is blended to the covered area, which
    # a box filter would give, too
    size = (8, 10) if axis == 0 else (10, 8)
    place = torch.tensor(position, dtype=torch.float32, requires_grad=True)
    clip = edge_at(place, size, axis)
    fragments = rasterize(clip, ONE, size)
    image = (fragments.triangle_index < 0).float()[..., None]
    smooth = antialias(image, fragments, clip, ONE)[0, :, :, 0]
    line = (smooth if axis == 0 else smooth.T)[3]
    wanted = (torch.arange(10) + 1 - position).clamp(0, 1)
    assert torch.allclose(line, wanted, atol=1e-5)
    gradient = torch.autograd.grad(line.sum(), place)[0]
    assert gradient.item() == pytest.approx(-1, abs=1e-4)


def test_antialias_leaves_inner_edges_alone():
    clip, triangles = grid(5, 4, extent=1.5)
    fragments = rasterize(clip, triangles, (20, 20))
    image = torch.rand(1, 20, 20, 3)
    assert torch.equal(antialias(image, fragments, clip, triangles), image)


def test_antialias_of_disks_gives_their_area_and_the_gradient_of_their_size():
    count, disks, size = 12, 24, (64, 64)
    angle = torch.arange(count, dtype=torch.float32) / count * 2 * math.pi
    triangles = torch.stack([torch.arange(count), (torch.arange(count) + 1) % count], -1)
    triangles = torch.cat([triangles, torch.full((count, 1), count)], -1)
    radius = torch.linspace(18, 22, disks).requires_grad_()
    turn = angle + torch.linspace(0, 1, disks)[:, None]
    rim = torch.stack([turn.cos(), turn.sin()], -1) * radius[:, None, None]
    points = torch.cat([rim, torch.zeros(disks, 1, 2)], 1) / 32 + 0.01
    clip = torch.cat([points, points.new_tensor([0, 1.0]).expand(disks, count + 1, 2)], -1)
    fragments = rasterize(clip, triangles, size)
    mask = (fragments.triangle_index >= 0).float()[..., None]
    area = antialias(mask, fragments, clip, triangles).sum((1, 2, 3))
    polygon = count / 2 * math.sin(2 * math.pi / count)  # area of the unit polygon
    assert torch.allclose(area, polygon * radius.square(), rtol=0.01)
    gradient = torch.autograd.grad(area.sum(), radius)[0]
    # each counts whole rows and columns of pixels; on average that is right
    assert (gradient / (2 * polygon * radius)).mean().item() == pytest.approx(1, abs=0.05)


def test_antialias_finds_the_fold_of_a_closed_surface():
    clip, triangles = sphere(columns=8, rows=6, batch=1)
    fragments = rasterize(clip, triangles, (80, 80))
    mask = (fragments.triangle_index >= 0).float()[..., None]
    smooth = antialias(mask, fragments, clip, triangles)
    changed = (smooth != mask)[0, :, :, 0]
    covered = mask[0, :, :, 0] > 0
    inner = -torch.nn.functional.max_pool2d(-mask[:, None, :, :, 0], 3, 1, 1)[0, 0] > 0
    outer = torch.nn.functional.max_pool2d(mask[:, None, :, :, 0], 3, 1, 1)[0, 0] > 0
    rim = outer & ~inner
    assert not (changed & ~rim).any()
    assert changed.sum() > 0.3 * (covered & rim).sum()


def test_antialias_gradient_in_float64():
    clip, triangles = inner_triangles()
    fragments = rasterize(clip, triangles, (6, 7))
    image = torch.randn(1, 6, 7, 2, dtype=torch.float64, requires_grad=True)
    position = clip.clone().requires_grad_()

    def smooth(picture, corners):
        return antialias(picture, fragments, corners, triangles)

    assert not torch.equal(smooth(image, position), image)
    assert torch.autograd.gradcheck(smooth, (image, position), eps=1e-7)


def test_opposite_vertices():
    # two triangles share the edge 1-2; a third hangs on 2-3 together with a fourth and a fifth
    triangles = torch.tensor([[0, 1, 2], [3, 2, 1], [2, 3, 4], [2, 3, 5]])
    assert topology(triangles).opposite.tolist() == [
        [3, -1, -1],
        [0, -1, -1],
        [-1, -1, -1],
        [-1, -1, -1],
    ]


@needs_cuda
@pytest.mark.cuda
@pytest.mark.parametrize("make", [lambda: soup(1), sphere])
def test_nvdiffrast_agrees(make):
    clip, triangles = make()
    slow = rasterize(clip, triangles, (64, 80), "reference")
    fast = rasterize(clip.cuda(), triangles.cuda(), (64, 80), "nvdiffrast")
    covered = slow.triangle_index >= 0
    same = fast.triangle_index.cpu() == slow.triangle_index
    assert (same & covered).sum() >= 0.9995 * covered.sum()
    assert torch.allclose(fast.barycentric.cpu()[same], slow.barycentric[same], atol=1e-3)
    assert torch.allclose(fast.depth.cpu()[same], slow.depth[same], atol=1e-4)


@needs_cuda
@pytest.mark.cuda
def test_nvdiffrast_gradients_agree():
    clip, triangles = sphere()
    attributes = torch.randn(1, clip.shape[1], 3, generator=torch.Generator().manual_seed(0))
    gradients = []
    for device in ("cpu", "cuda"):
        position = clip.to(device).requires_grad_()
        values, corners = attributes.to(device).requires_grad_(), triangles.to(device)
        fragments = rasterize(position, corners, (64, 64))
        image = interpolate(values, fragments, corners)
        antialias(image, fragments, position, corners).square().sum().backward()
        gradients.append((position.grad.cpu(), values.grad.cpu()))
    for ours, theirs in zip(*gradients, strict=True):
        assert (ours - theirs).abs().mean() < 0.02 * ours.abs().mean()
