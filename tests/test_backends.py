"""The backends on other people's libraries: the same pixels and gradients as ours, whether the
library is installed or a stand-in takes its place; what is said when it is missing."""

import math

import pytest
import torch

from core.errors import MonofaceError
from core.rasterize import (
    _backend,
    antialias,
    drtk,
    interpolate,
    nvdiffrast,
    rasterize,
    reference,
)
from core.rasterize.clipping import cut, frustum, inside
from core.rasterize.topology import topology
from tests.fakes import drtk as fake_drtk
from tests.fakes import nvdiffrast as fake_nvdiffrast
from tests.fakes.meshes import grid, soup, sphere

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 1)
TRIANGLE = torch.tensor([[[-1.0, -1, 0.5, 1], [1, -1, 0.5, 1], [-1, 1, 0.5, 1]]])
ONE = torch.tensor([[0, 1, 2]])


def forget():
    for function in (nvdiffrast.is_installed, nvdiffrast._context, drtk._problem, drtk._library):
        function.cache_clear()


@pytest.fixture(autouse=True)
def _forget():
    forget()
    yield
    forget()


# --- which backend -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("installed", "chosen"),
    [
        (set(), "cpu"),
        ({"drtk"}, "drtk"),
        ({"nvdiffrast"}, "nvdiffrast"),
        ({"nvdiffrast", "drtk"}, "nvdiffrast"),
    ],
)
def test_auto_takes_the_fastest_that_is_there(monkeypatch, installed, chosen):
    monkeypatch.setattr(nvdiffrast, "is_installed", lambda: "nvdiffrast" in installed)
    monkeypatch.setattr(drtk, "is_installed", lambda: "drtk" in installed)
    assert _backend("auto", CUDA) == chosen
    assert _backend("auto", CPU) == "cpu"
    # nvdiffrast cannot leave vertices where they are
    assert _backend("auto", CUDA, None) == ("drtk" if "drtk" in installed else "cpu")
    if "nvdiffrast" in installed:
        with pytest.raises(ValueError, match="nvdiffrast always snaps"):
            _backend("nvdiffrast", CUDA, None)


def test_a_missing_library_says_how_to_get_it_and_its_licence(monkeypatch):
    monkeypatch.setattr("core.rasterize.nvdiffrast.find_spec", lambda _: None)
    monkeypatch.setattr("core.rasterize.drtk.find_spec", lambda _: None)
    with pytest.raises(MonofaceError, match=r"monoface\[cuda\].*Licence.*non-commercial"):
        rasterize(TRIANGLE, ONE, (4, 4), "nvdiffrast")
    with pytest.raises(MonofaceError, match=r"not installed.*facebookresearch/DRTK.*Licence: MIT"):
        rasterize(TRIANGLE, ONE, (4, 4), "drtk")
    with pytest.raises(ValueError, match="no rasterizer backend 'opengl'"):
        interpolate(torch.zeros(1, 3, 1), rasterize(TRIANGLE, ONE, (4, 4)), ONE, "opengl")


def test_nvdiffrast_wants_cuda_tensors(monkeypatch):
    fake_nvdiffrast.install(monkeypatch)
    with pytest.raises(MonofaceError, match="needs CUDA tensors, these are on cpu"):
        rasterize(TRIANGLE, ONE, (4, 4), "nvdiffrast")


def test_the_other_project_called_drtk_is_found_out_and_not_imported(monkeypatch, tmp_path):
    (tmp_path / "drtk").mkdir()
    (tmp_path / "drtk/__init__.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MonofaceError, match=r"another project .* pip uninstall drtk"):
        rasterize(TRIANGLE, ONE, (4, 4), "drtk")
    (tmp_path / "drtk/edge_grad_estimator.py").write_text("")
    forget()
    with pytest.raises(MonofaceError, match="is not compiled in"):
        rasterize(TRIANGLE, ONE, (4, 4), "drtk")


def test_a_library_that_does_not_load_says_so(monkeypatch, tmp_path):
    for package in ("drtk", "nvdiffrast"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("raise ImportError('undefined symbol')")
    (tmp_path / "drtk/edge_grad_estimator.py").write_text("")
    (tmp_path / "drtk/rasterize_ext.so").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MonofaceError, match=r"undefined symbol.*with this PyTorch.*Licence: MIT"):
        rasterize(TRIANGLE, ONE, (4, 4), "drtk")
    with pytest.raises(MonofaceError, match=r"undefined symbol.*non-commercial"):
        nvdiffrast.rasterize(TRIANGLE, topology(ONE), (4, 4))


# --- nvdiffrast, through a stand-in ---------------------------------------------------------------


class Inner:
    """The functions of a backend's file with the signatures of ``core.rasterize``, on the CPU."""

    def __init__(self, module):
        self.module = module

    def rasterize(self, clip, triangles, size):
        return self.module.rasterize(clip, topology(triangles), size)

    def interpolate(self, attributes, fragments, triangles):
        return self.module.interpolate(attributes, fragments, topology(triangles))

    def antialias(self, image, fragments, clip, triangles):
        return self.module.antialias(image, fragments, clip, topology(triangles))


@pytest.fixture
def calls(monkeypatch):
    return fake_nvdiffrast.install(monkeypatch)


def test_nvdiffrast_gets_what_its_documentation_asks_for(calls):
    """The stand-in checks dtype, device, contiguity and shape of all it is given."""
    clip, triangles = sphere(columns=10, rows=6)
    backend = Inner(nvdiffrast)
    ours = rasterize(clip, triangles, (20, 24))
    for position in (clip, clip.double(), clip.flip(1).flip(1).mT.contiguous().mT):
        fragments = backend.rasterize(position, triangles, (20, 24))
        assert fragments.barycentric.dtype == fragments.depth.dtype == position.dtype
        assert torch.equal(fragments.triangle_index, ours.triangle_index)
        assert torch.allclose(fragments.depth.float(), ours.depth, atol=1e-5)
        for attributes in (torch.rand(1, clip.shape[1], 2), torch.rand(clip.shape[1], 2, 5).mT[:2]):
            attributes = torch.rand(len(attributes), clip.shape[1], 3)
            pixels = backend.interpolate(attributes, fragments, triangles)
            assert torch.allclose(pixels, interpolate(attributes, ours, triangles), atol=1e-5)
        image = interpolate(attributes, ours, triangles).movedim(-1, 1).contiguous().movedim(1, -1)
        smooth = backend.antialias(image, fragments, position, triangles)
        assert torch.allclose(smooth, antialias(image, ours, clip, triangles), atol=1e-5)
    assert all(grad_db is False for *_, grad_db in calls.rasterized)


def test_nvdiffrast_keeps_a_context_per_shape_and_a_hash_per_topology(calls):
    clip, triangles = sphere(columns=8, rows=5, batch=3)
    backend = Inner(nvdiffrast)
    for batch, size in [(3, (8, 8)), (2, (8, 8)), (3, (8, 8)), (3, (8, 9)), (2, (8, 8))]:
        fragments = backend.rasterize(clip[:batch], triangles, size)
        image = torch.rand(batch, *size, 1)
        backend.antialias(image, fragments, clip[:batch], triangles)
    used = [context for context, *_ in calls.rasterized]
    assert len(calls.contexts) == 3
    assert used[0] is used[2]
    assert used[1] is used[4]
    assert all(context.device == CPU for context in used)  # that of the tensors
    assert len(calls.hashes) == 1
    other = triangles.flip(0)
    fragments = backend.rasterize(clip, other, (8, 8))
    backend.antialias(torch.rand(3, 8, 8, 1), fragments, clip, other)
    assert len(calls.hashes) == 2


def test_nvdiffrast_under_autocast_stays_in_float32(calls):
    clip, triangles = sphere(columns=8, rows=5)
    backend = Inner(nvdiffrast)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        fragments = backend.rasterize(clip, triangles, (9, 9))
        pixels = backend.interpolate(torch.rand(2, clip.shape[1], 2), fragments, triangles)
    assert fragments.barycentric.dtype == pixels.dtype == torch.float32


def test_positions_that_are_not_finite_do_not_reach_nvdiffrast(calls, monkeypatch):
    clip = torch.cat([TRIANGLE, TRIANGLE * torch.tensor([1, 1, 0.5, 1])], 1)
    clip[0, 4, 0] = math.nan
    monkeypatch.setattr("core.rasterize._backend", lambda *_: "nvdiffrast")
    fragments = rasterize(clip, torch.arange(6).view(2, 3), (5, 5))
    assert not calls.rasterized
    assert fragments.triangle_index.unique().tolist() == [-1, 0]
    with pytest.raises(IndexError, match="beyond the 0 given, at 10 pixels"):
        interpolate(torch.zeros(1, 3, 1), fragments, ONE[:0])


def test_nvdiffrast_refuses_more_triangles_than_it_can_tell_apart(calls, monkeypatch):
    monkeypatch.setattr(nvdiffrast, "LARGEST_INDEX", 3)
    with pytest.raises(ValueError, match="4 triangles; nvdiffrast tells at most 3 apart"):
        nvdiffrast.rasterize(TRIANGLE, topology(ONE.expand(4, 3)), (4, 4))


# --- cutting triangles at planes ------------------------------------------------------------------


def test_cut_triangles_are_what_is_inside():
    """Random points of triangles lie in exactly one part if they are inside, else in none."""
    random = torch.Generator().manual_seed(3)
    clip = torch.randn(2, 60, 4, generator=random, dtype=torch.float64)
    clip[..., 3] += 1
    triangles = torch.arange(60).view(20, 3)
    planes = frustum(clip, (40, 60), 45.0)
    vertices, parts, owners = cut(clip, triangles, planes)
    corner = vertices[:, parts]  # b k 3 4
    used = (corner[..., 3] > 0).all(-1)
    assert (corner[used] @ planes.mT > -1e-9).all()
    weights = torch.distributions.Dirichlet(torch.ones(3, dtype=torch.float64)).sample((200,))
    counted = 0
    for image in range(2):
        whole = inside(clip[image][None], planes)[0, triangles].all(-1)
        for triangle in range(20):
            points = weights @ clip[image, triangles[triangle]]
            within = (points @ planes.mT >= 0).all(-1)
            own = used[image] & (owners[image] == triangle)
            if whole[triangle]:
                assert not own.any()
                continue
            holding = torch.zeros(len(points), dtype=torch.int64)
            solid = torch.linalg.svdvals(corner[image][own])[:, -1] > 1e-9  # not the fillers
            for part in corner[image][own][solid]:
                share = torch.linalg.lstsq(part.mT, points.mT).solution.mT
                holding += (share > 1e-9).all(-1)
            assert torch.equal(holding, within.long())
            counted += int(within.sum())
    assert counted > 500


def test_nothing_is_cut_that_is_inside_or_outside():
    planes = frustum(TRIANGLE, (8, 8), 100.0)
    assert cut(TRIANGLE, ONE, planes) is None
    assert cut(TRIANGLE + torch.tensor([0, 0, 9.0, 0]), ONE, planes) is None
    assert cut(TRIANGLE * torch.tensor([1, 1, 1, -1.0]), ONE, planes) is None
    assert cut(TRIANGLE * torch.tensor([1, math.nan, 5.0, 1]), ONE, planes) is None


# --- DRTK, installed or through a stand-in --------------------------------------------------------


@pytest.fixture(params=["installed", "stand-in"])
def with_drtk(request, monkeypatch):
    if request.param == "stand-in":
        fake_drtk.install(monkeypatch)
        monkeypatch.setattr(drtk, "_problem", lambda: None)
        drtk._library.cache_clear()
        monkeypatch.setattr(drtk._problem, "cache_clear", lambda: None, raising=False)
    elif not drtk.is_installed():
        pytest.skip("DRTK (facebookresearch/DRTK) is not installed")


def agree(fast, slow, uv=1e-3, depth=1e-4):
    covered = (fast.triangle_index >= 0) | (slow.triangle_index >= 0)
    same = (fast.triangle_index == slow.triangle_index).cpu()
    assert covered.sum() > 100
    assert (same & covered.cpu()).sum() >= 0.9995 * covered.sum()
    assert torch.allclose(fast.barycentric.cpu()[same], slow.barycentric.cpu()[same], atol=uv)
    assert torch.allclose(fast.depth.cpu()[same], slow.depth.cpu()[same], atol=depth)


SCENES = {
    "soup": (lambda: soup(1, count=40), (31, 43)),
    "flat": (lambda: soup(3, count=40, perspective=False), (32, 32)),
    "micro": (lambda: soup(2, count=200, extent=0.12), (32, 32)),
    "sphere": (lambda: sphere(columns=16, rows=9), (40, 36)),
    "grid": (lambda: grid(7, 5, extent=1.3), (33, 40)),
}


@pytest.mark.parametrize("name", SCENES)
def test_drtk_agrees_with_the_reference(with_drtk, name):
    make, size = SCENES[name]
    clip, triangles = make()
    agree(*(rasterize(clip, triangles, size, backend) for backend in ("drtk", "reference")))


@pytest.mark.parametrize("name", ["sphere", "grid"])
def test_drtk_without_snapping_is_exact(with_drtk, name):
    make, size = SCENES[name]
    clip, triangles = make()
    snapped, exact = (reference.rasterize(clip, triangles, size, step) for step in (16, None))
    assert not torch.equal(snapped.triangle_index, exact.triangle_index)
    agree(rasterize(clip, triangles, size, "drtk", None), exact)


def test_drtk_at_equal_depth_draws_the_later(with_drtk):
    clip = torch.cat([TRIANGLE, TRIANGLE], 1)
    fragments = rasterize(clip, torch.arange(6).view(2, 3), (4, 4), "drtk")
    assert fragments.triangle_index.unique().tolist() == [-1, 1]


def test_drtk_triangles_that_reach_behind_the_camera_are_cut(with_drtk):
    points = torch.tensor(
        [[-9.0, 1, -3], [9, 1, -3], [0, 1, 30], [0, -1, 5], [3, -1, 5], [3, -3, 5]]
    )
    x, y, z = points.unbind(-1)
    near, far = 1.0, 100.0
    clip = torch.stack([x, y, (z * (far + near) - 2 * far * near) / (far - near), z], -1)[None]
    clip = torch.cat([clip, clip + torch.tensor([0, 0.2, 0, 0])])
    clip[1, 3:, 3] *= -1  # the second triangle of the second image is behind the camera
    triangles = torch.arange(6).view(2, 3)
    fast, slow = (rasterize(clip, triangles, (48, 48), name) for name in ("drtk", "reference"))
    differs = fast.triangle_index != slow.triangle_index
    assert differs.sum() <= 6  # the reference does not snap triangles that it cuts
    assert (fast.triangle_index == 1).any((1, 2)).tolist() == [True, False]
    assert torch.allclose(fast.barycentric[~differs], slow.barycentric[~differs], atol=1e-3)
    assert torch.allclose(fast.depth[~differs], slow.depth[~differs], atol=1e-4)


def test_drtk_does_not_mind_very_far_corners(with_drtk):
    far = torch.tensor([[[-1e6, -1e6, 0, 1], [1e6, -1e6, 0, 1], [0, 1e6, 0, 1.0]]])
    near_eye = torch.tensor([[[-1.0, -1, 0, 1e-12], [1, -1, 0, 1e-12], [0, 1, 0, 1e-12]]])
    for clip in (far, near_eye):
        assert (rasterize(clip, ONE, (13, 17), "drtk").triangle_index == 0).all()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("axis", [0, 1, 2, 3])
def test_drtk_leaves_out_what_is_not_finite(with_drtk, value, axis):
    clip = torch.cat([TRIANGLE, TRIANGLE * torch.tensor([1, 1, 0.5, 1])], 1)
    clip[0, 4, axis] = value
    clip.requires_grad_()
    fragments = rasterize(clip, torch.arange(6).view(2, 3), (5, 5), "drtk")
    assert fragments.triangle_index.unique().tolist() == [-1, 0]
    fragments.barycentric.sum().backward()
    assert clip.grad.isfinite().all()


def test_drtk_draws_nothing(with_drtk):
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
        fragments = rasterize(clip, triangles, (3, 5), "drtk")
        assert (fragments.triangle_index == -1).all()
        assert fragments.triangle_index.shape == (len(clip), 3, 5)
        assert not fragments.barycentric.any()
        assert not interpolate(clip, fragments, triangles, "drtk").any()


@pytest.mark.parametrize("shared", [False, True])
def test_drtk_gradients_are_ours(with_drtk, shared):
    clip, triangles = sphere(columns=12, rows=7)
    size = (30, 26)
    values = torch.randn(1 if shared else 2, clip.shape[1], 3)
    weight = torch.randn(2, *size, 3)
    # not where the centre is beside the unsnapped triangle, which may be as thin as you like
    u, v = rasterize(clip, triangles, size, "reference").barycentric.unbind(-1)
    weight *= ((u > 0.02) & (v > 0.02) & (u + v < 0.98))[..., None]
    results = []
    for backend in ("drtk", "cpu"):
        position, attributes = clip.clone().requires_grad_(), values.clone().requires_grad_()
        fragments = rasterize(position, triangles, size, backend)
        pixels = interpolate(attributes, fragments, triangles, backend)
        (pixels * weight).sum().backward()
        results.append((pixels.detach() * (weight != 0), position.grad, attributes.grad))
    for theirs, ours in zip(*results, strict=True):
        assert (theirs - ours).abs().max() < 1e-4 * ours.abs().max()
    assert not results[0][1][..., 2].any()


def test_drtk_gradients_are_exact_in_float64(with_drtk):
    corners = [[-0.9, -0.8, 0.1, 1.0], [1.5, -1.1, 0.2, 1.6], [-0.7, 0.85, 0.3, 0.9]]
    clip = torch.tensor([corners], dtype=torch.float64)
    u, v = rasterize(clip, ONE, (5, 6), "drtk").barycentric.unbind(-1)
    within = (u > 0.02) & (v > 0.02) & (u + v < 0.98)
    assert within.sum() > 6

    def draw(position, attributes):
        fragments = rasterize(position, ONE, (5, 6), "drtk")
        return interpolate(attributes, fragments, ONE, "drtk")[within]

    attributes = torch.randn(1, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(draw, (clip.requires_grad_(), attributes), eps=1e-7)


def test_drtk_under_autocast_stays_in_float32(with_drtk):
    clip, triangles = sphere(columns=8, rows=5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        fragments = rasterize(clip, triangles, (9, 9), "drtk")
        attributes = torch.ones(1, clip.shape[1], 2, dtype=torch.bfloat16)
        pixels = interpolate(attributes, fragments, triangles, "drtk")
    assert fragments.barycentric.dtype == pixels.dtype == torch.float32
    assert torch.equal(pixels[..., 0] > 0.99, fragments.triangle_index >= 0)


def test_drtk_refuses_fragments_of_other_triangles(with_drtk):
    clip, triangles = sphere(columns=8, rows=5)
    fragments = rasterize(clip, triangles, (9, 9), "drtk")
    with pytest.raises(IndexError, match="beyond the 4 given"):
        interpolate(clip, fragments, triangles[:4], "drtk")
