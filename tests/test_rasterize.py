"""The rasterizer: known answers by hand, both of our backends against each other, gradients."""

import inspect
import math
import multiprocessing

import pytest
import torch

from core.rasterize import antialias, interpolate, rasterize
from core.rasterize.topology import topology
from tests.fakes.meshes import grid, soup, sphere

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


@pytest.mark.parametrize("subpixel", [16, None])
@pytest.mark.parametrize(("columns", "rows"), [(1, 1), (7, 5), (61, 47), (61, 45), (150, 150)])
def test_every_pixel_is_covered_exactly_once(columns, rows, subpixel):
    clip, triangles = grid(columns, rows)
    size = (45, 61)
    assert (rasterize(clip, triangles, size, subpixel=subpixel).triangle_index >= 0).all()
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
        count += rasterize(clip, part, size, subpixel=subpixel).triangle_index[0] >= 0
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


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_snapping_moves_an_edge_by_up_to_half_a_step(backend):
    # the right edge is 0.02 px right of the centres of column 2: snapped, it is on them
    right = 2.52 / 2 - 1
    clip = torch.tensor([[[-9.0, -9, 0, 1], [right, -9, 0, 1], [right, 9, 0, 1], [-9, 9, 0, 1]]])
    triangles = torch.tensor([[0, 1, 2], [0, 2, 3]])
    seen = [
        (rasterize(clip, triangles, (4, 4), backend, subpixel).triangle_index[0] >= 0).sum(0)
        for subpixel in (16, None)
    ]
    assert torch.stack(seen).tolist() == [[4, 4, 0, 0], [4, 4, 4, 0]]


@pytest.mark.parametrize("size", [(1, 20000), (20000, 1), (3, 32767), (1500, 1400)])
def test_large_images(size):
    clip = torch.tensor([[[-1.0, -1, 0, 1], [3, -1, 0, 1], [-1, 3, 0, 1]]])
    fragments = rasterize(clip, ONE, size)
    assert (fragments.triangle_index == 0).all()
    row, column = torch.meshgrid(*(torch.arange(n) for n in size), indexing="ij")
    u, v = fragments.barycentric[0].unbind(-1)
    assert torch.allclose(v, (column + 0.5) / size[1] / 2, atol=1e-5)
    assert torch.allclose(1 - u - v, (row + 0.5) / size[0] / 2, atol=1e-5)
    with pytest.raises(ValueError, match="at most 32767"):
        rasterize(clip, ONE, (32768, 1))


def test_awkward_input_is_refused_or_taken():
    clip, triangles = sphere(12, 8)
    wanted = rasterize(clip, triangles, (30, 30)).triangle_index
    for kind in (torch.int8, torch.int16, torch.int32):
        assert torch.equal(rasterize(clip, triangles.to(kind), (30, 30)).triangle_index, wanted)
    strided = clip.mT.contiguous().mT
    assert not strided.is_contiguous()
    assert torch.equal(
        rasterize(strided, triangles.T.contiguous().T, (30, 30)).triangle_index, wanted
    )
    double = rasterize(clip.double(), triangles, (30, 30))
    assert double.barycentric.dtype == double.depth.dtype == torch.float64
    assert torch.equal(double.triangle_index, wanted)
    for kind in (torch.float16, torch.bfloat16):
        with pytest.raises(TypeError, match="too coarse"):
            rasterize(clip.to(kind), triangles, (30, 30))
    elsewhere = torch.device("meta")
    with pytest.raises(ValueError, match="triangles are on meta, other tensors on cpu"):
        rasterize(clip, triangles.to(elsewhere), (30, 30))
    with pytest.raises(ValueError, match="subpixel=8"):
        rasterize(clip, triangles, (30, 30), subpixel=8)


def test_wrong_shapes_and_types_are_refused_where_nobody_checks_annotations():
    # outside the tests jaxtyping does not stop them
    unchecked = inspect.unwrap(rasterize)
    clip, triangles = sphere(12, 8)
    with pytest.raises(ValueError, match=r"\(b, n, 4\) is wanted"):
        unchecked(clip[..., :3], triangles, (8, 8))
    with pytest.raises(TypeError, match="int64"):
        unchecked(clip.long(), triangles, (8, 8))
    for bad in (triangles.float(), triangles > 1):
        with pytest.raises(TypeError, match="hold vertex indices"):
            inspect.unwrap(topology)(bad)
    with pytest.raises(ValueError, match=r"\(t, 3\) is wanted"):
        inspect.unwrap(topology)(triangles[:, :2])
    fragments = rasterize(clip, triangles, (8, 8))
    with pytest.raises(ValueError, match="do not fit"):
        inspect.unwrap(antialias)(torch.zeros(2, 8, 9, 1), fragments, clip, triangles)


def test_changed_triangles_are_noticed():
    triangles = ONE.clone()
    assert rasterize(TRIANGLE, triangles, (4, 4)).triangle_index.max() == 0
    triangles[0, 2] = 7
    with pytest.raises(IndexError, match="to 7"):
        rasterize(TRIANGLE, triangles, (4, 4))


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


def test_what_only_snapping_makes_visible_gets_no_gradient():
    """Whatever arrives there: its corners lie on a line, where the gradient would be infinite."""
    line = torch.tensor([[-0.72, -0.054, 0, 1], [-0.761, -0.3248, 0, 1], [-0.7405, -0.1894, 0, 1]])
    position = line[None].requires_grad_()
    fragments = rasterize(position, ONE, (4, 4))
    assert (fragments.triangle_index >= 0).any()
    fragments.barycentric.backward(torch.full_like(fragments.barycentric, torch.inf))
    assert not position.grad.any()


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
def test_a_forked_process_can_draw_too(monkeypatch):
    # torch's own operations are another matter: they may hang in a fork, so there are none of size
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)  # also on one core
    clip, triangles = sphere(batch=4)
    covered = int((rasterize(clip, triangles, (32, 32)).triangle_index >= 0).sum())
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=_draws_in_child, args=(queue, clip, triangles))
    child.start()
    child.join(30)
    child.kill()
    child.join()
    assert child.exitcode == 0
    assert queue.get() == covered


def test_half_precision_attributes_and_autocast():
    fragments = rasterize(TRIANGLE, ONE, (4, 4))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        image = interpolate(torch.ones(1, 3, 2, dtype=torch.bfloat16), fragments, ONE)
        smooth = antialias(image.bfloat16(), fragments, TRIANGLE, ONE)
    assert image.dtype == smooth.dtype == torch.float32
    assert torch.equal(image[..., 0] > 0.99, fragments.triangle_index >= 0)
