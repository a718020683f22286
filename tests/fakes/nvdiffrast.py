"""A stand-in for nvdiffrast.torch on the CPU, with the signatures, checks and conventions that its
documentation states, drawn by the reference rasterizer: row 0 at y = -1; (u, v, z / w, id + 1)."""

import sys
from types import ModuleType

import torch

from core.rasterize import reference, silhouettes
from core.rasterize.fragments import Fragments
from core.rasterize.topology import Topology


class Calls:
    """What was asked of the stand-in."""

    def __init__(self):
        self.contexts, self.hashes, self.rasterized = [], [], []


class TopologyHash:
    def __init__(self, triangles):
        self.triangles = triangles


def install(monkeypatch):
    """Put it where ``import nvdiffrast.torch`` finds it; returns the record of its calls."""
    calls = Calls()
    package, library = ModuleType("nvdiffrast"), ModuleType("nvdiffrast.torch")
    for module in (package, library):
        module.__spec__ = type(sys.__spec__)(module.__name__, None)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    package.torch = library

    class RasterizeCudaContext:
        def __init__(self, device=None):
            self.device = torch.device(device)
            calls.contexts.append(self)

    def rasterize(glctx, pos, tri, resolution, ranges=None, grad_db=True):
        assert isinstance(glctx, RasterizeCudaContext)
        assert glctx.device == pos.device
        _check(pos, torch.float32, 3, 4)
        _check(tri, torch.int32, 2, 3)
        assert all(type(extent) is int and extent > 0 for extent in resolution)
        assert ranges is None, "range mode is for pos of shape (n, 4)"
        calls.rasterized.append((glctx, tuple(pos.shape), tuple(resolution), grad_db))
        drawn = reference.rasterize(pos, tri, tuple(resolution))
        image = [drawn.barycentric, drawn.depth[..., None], drawn.triangle_index[..., None] + 1]
        image = torch.cat([channel.float() for channel in image], -1)
        return image, torch.zeros_like(image)

    def interpolate(attr, rast, tri, rast_db=None, diff_attrs=None):
        _check(attr, torch.float32, 3)
        _check(rast, torch.float32, 4, 4)
        _check(tri, torch.int32, 2, 3)
        assert len(attr) in (1, len(rast))
        seen = rast[..., 3].detach().long() - 1
        weights = torch.cat([rast[..., :2], 1 - rast[..., :2].sum(-1, keepdim=True)], -1)
        image = torch.arange(len(rast))[:, None, None, None]
        values = attr.expand(len(rast), -1, -1)[image, tri.long()[seen.clamp(min=0)]]
        return (weights[..., None] * values).sum(-2) * (seen >= 0)[..., None], torch.empty(0)

    def antialias_construct_topology_hash(tri):
        _check(tri, torch.int32, 2, 3)
        calls.hashes.append(TopologyHash(tri))
        return calls.hashes[-1]

    def antialias(color, rast, pos, tri, topology_hash=None, pos_gradient_boost=1.0):
        _check(color, torch.float32, 4)
        _check(rast, torch.float32, 4, 4)
        _check(pos, torch.float32, 3, 4)
        assert isinstance(topology_hash, TopologyHash), "would be made anew at each call"
        assert topology_hash.triangles is tri
        fragments = Fragments(rast[..., :2], rast[..., 2], rast[..., 3].long() - 1)
        known = Topology(tri, int(tri.min()), int(tri.max()))
        return silhouettes.antialias(color, fragments, pos, known)

    for thing in (RasterizeCudaContext, rasterize, interpolate):
        setattr(library, thing.__name__, thing)
    library.antialias_construct_topology_hash = antialias_construct_topology_hash
    library.antialias = antialias
    return calls


def _check(tensor, dtype, dimensions, last=None):
    assert tensor.dtype == dtype
    assert tensor.is_contiguous()
    assert tensor.ndim == dimensions
    assert 0 not in tensor.shape
    assert last in (None, tensor.shape[-1])
