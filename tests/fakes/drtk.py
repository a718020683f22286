"""A stand-in for DRTK with the functions and conventions that its documentation states: the first
pixel's centre at (0, 0), camera depth as z, the earlier triangle at equal depth, nothing clipped,
no meaning beyond the triangles."""

import sys
from types import ModuleType

import torch


def install(monkeypatch):
    """Put it where ``import drtk`` finds it."""
    library = ModuleType("drtk")
    library.__spec__ = type(sys.__spec__)("drtk", None)
    library.rasterize, library.render, library.interpolate = rasterize, render, interpolate
    monkeypatch.setitem(sys.modules, "drtk", library)


def rasterize(v, vi, height, width, wireframe=False):
    assert v.ndim == 3
    assert v.shape[-1] == 3
    assert v.isfinite().all()
    assert vi.dtype == torch.int32
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    index = torch.full((len(v), height, width), -1, dtype=torch.int32)
    for image, found in zip(v, index, strict=True):
        nearest = torch.full((height, width), torch.inf)
        for number, corners in enumerate(vi.long()):
            points, z = image[corners].unbind(0), image[corners, 2]
            if (z <= 1e-8).any():
                continue
            a, b, c = points
            area = (b - a)[0] * (c - a)[1] - (b - a)[1] * (c - a)[0]
            if area == 0:
                continue
            inside, inverse = torch.ones(height, width, dtype=torch.bool), 0
            for k in range(3):
                start, end = points[k - 2], points[k - 1]
                if area < 0:
                    start, end = end, start
                dx, dy = (end - start)[:2]
                edge = (y - start[1]) * dx - (x - start[0]) * dy
                inside &= (edge >= 0) if dy < 0 or (dy == 0 and dx > 0) else (edge > 0)
                inverse = inverse + edge / abs(area) / z[k]
            depth = (1 / inverse).float()
            nearer = inside & (depth < nearest)
            found[nearer], nearest[nearer] = number, depth[nearer]
    return index


def render(v, vi, index_img):
    assert vi.dtype == index_img.dtype == torch.int32
    shape = index_img.shape
    y, x = torch.meshgrid(torch.arange(shape[1]), torch.arange(shape[2]), indexing="ij")
    image = torch.arange(len(v))[:, None, None, None]
    corners = v[image, vi.long()[index_img.long().clamp(min=0)]]
    px, py, z = corners[..., 0] - x[..., None], corners[..., 1] - y[..., None], corners[..., 2]
    areas = px.roll(-1, -1) * py.roll(1, -1) - py.roll(-1, -1) * px.roll(1, -1)
    total = areas.sum(-1, keepdim=True)
    inverse = areas / torch.where(total == 0, 1e-16, total) / z
    depth = 1 / inverse.sum(-1, keepdim=True)
    seen = index_img >= 0
    weights = torch.where(seen[..., None], inverse * depth, 0).movedim(-1, 1)
    return torch.where(seen, depth[..., 0], 0), weights


def interpolate(vert_attributes, vi, index_img, bary_img):
    assert len(vert_attributes) == len(index_img) == len(bary_img)
    assert vert_attributes.dtype == bary_img.dtype
    assert bary_img.shape[1] == 3
    seen = index_img.long()
    image = torch.arange(len(seen))[:, None, None, None]
    values = vert_attributes[image, vi.long()[seen.clamp(min=0)]]
    result = (bary_img.movedim(1, -1)[..., None] * values).sum(-2)
    return torch.where(seen[..., None] < 0, 7, result).movedim(-1, 1)
