"""Small meshes in clip space, to be rasterized."""

import math

import numpy as np
import torch


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
