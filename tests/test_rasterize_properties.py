"""Random meshes of every awkward kind: the CPU backend against the reference, pixel by pixel."""

import numpy as np
import torch
from hypothesis import event, example, given, settings
from hypothesis import strategies as st

from core.rasterize import antialias, rasterize, reference

KINDS = ("plain", "lattice", "sliver", "crossing", "behind", "huge", "broken", "flat")
EXAMPLES = 500


def positions(kind, count, size, random):
    """Clip positions (count 4) of one image."""
    height, width = size
    x, y = random.uniform(-1.3, 1.3, (2, count))
    z, w = random.uniform(-0.95, 0.95, count), random.uniform(0.3, 3, count)
    if kind == "lattice":  # on pixel centres, borders and half way between snapping positions
        x = np.round(random.uniform(-0.6, 0.6, count) * width * 32) / 32
        y = np.round(random.uniform(-0.6, 0.6, count) * height * 32) / 32
        on = random.random(count) < 0.6
        x, y = np.where(on, np.round(x * 2) / 2, x), np.where(on, np.round(y * 2) / 2, y)
        x, y, w = x / width * 2, y / height * 2, 2.0 ** random.integers(-2, 3, count)
    if kind == "sliver":
        along = random.uniform(-1.5, 1.5, count)
        angle = random.uniform(0, np.pi)
        off = random.choice([0, 1e-7, 1e-4, 0.02], count) * random.uniform(-1, 1, count)
        x = along * np.cos(angle) - off * np.sin(angle)
        y = along * np.sin(angle) + off * np.cos(angle)
    if kind == "flat":
        z = np.full(count, 0.25)
    if kind == "crossing":  # the near and the far plane, in front of the camera
        z = random.uniform(-2, 2, count)
    if kind == "behind":
        w = random.uniform(-2, 3, count)
        return np.stack([x, y, 1.25 * w - 0.5, w], -1)
    if kind == "huge":
        far = random.random(count) < 0.4
        scale = np.where(far, 10.0 ** random.uniform(1, 7, count), 1)
        x, y = x * scale, y * scale
    clip = np.stack([x * w, y * w, z * w, w], -1)
    if kind == "broken":
        spoilt = random.random(count) < 0.2
        clip[spoilt, random.integers(0, 4, count)[spoilt]] = random.choice(
            [np.nan, np.inf, -np.inf, 0, 1e30], count
        )[spoilt]
    return clip


def mesh(kind, seed):
    """Two images of one mesh: clip (2 n 4) float32, triangles (t 3), size."""
    random = np.random.default_rng(seed)
    size = tuple(int(n) for n in random.integers(1, 14, 2))
    count = int(random.integers(3, 9))
    clip = np.stack([positions(kind, count, size, random) for _ in range(2)])
    clip[:, random.integers(0, count)] = clip[:, random.integers(0, count)]  # one is doubled
    strip = np.stack([np.arange(count - 2), np.arange(1, count - 1), np.arange(2, count)], -1)
    loose = random.integers(0, count, (int(random.integers(0, 6)), 3))  # also 0, 1 or 2 corners
    triangles = np.concatenate([strip, loose])[: int(random.integers(0, 12))]
    return torch.tensor(clip).float(), torch.from_numpy(triangles), size


thorough = settings(
    max_examples=EXAMPLES, deadline=None, database=None, derandomize=True, print_blob=False
)


@thorough
@given(st.sampled_from(KINDS), st.integers(0, 2**32 - 1), st.sampled_from([16, None]))
@example("lattice", 1_000_298, None)  # a centre on an edge: fused multiply-adds would draw it twice
@example("broken", 1_000_090, 16)  # corners with w = 0
def test_cpu_is_the_reference(kind, seed, subpixel):
    clip, triangles, size = mesh(kind, seed)
    fast = rasterize(clip, triangles, size, "cpu", subpixel)
    slow = rasterize(clip.double(), triangles, size, "reference", subpixel)
    event(f"{kind}: {'something' if (slow.triangle_index >= 0).any() else 'nothing'} is seen")
    same = fast.triangle_index == slow.triangle_index
    for image, row, column in (~same).nonzero().tolist():
        # of two that are equally deep (the same triangle twice) rounding may choose
        depths = [
            _depth(clip[image, triangles[seen[image, row, column]]], (row, column), size, subpixel)
            for seen in (fast.triangle_index, slow.triangle_index)
        ]
        assert abs(depths[0] - depths[1]) < 1e-6
    assert fast.barycentric.isfinite().all()
    assert (fast.depth.abs() <= 1).all()
    u, v = fast.barycentric.unbind(-1)
    assert ((u >= 0) & (v >= 0) & (u + v <= 1 + 1e-6)).all()
    background = fast.triangle_index < 0
    assert not fast.barycentric[background].any()
    assert not fast.depth[background].any()
    # beside a triangle without area, weights are arbitrary
    sure = same & ~background & ~_is_thin(clip, triangles, slow.triangle_index)
    assert ((fast.barycentric - slow.barycentric).abs().amax(-1)[sure] < 1e-3).all()
    assert ((fast.depth - slow.depth).abs()[sure] < 1e-4).all()


def _depth(corners, pixel, size, subpixel):
    """z / w of a triangle at a pixel, as the reference compares it; it must cover the pixel."""
    for part in reference._cut(corners.double().numpy(), size):
        inside, z = reference._cover(part, size, subpixel)
        if inside[pixel]:
            return z[pixel]
    raise AssertionError(f"drawn at {pixel}, which it does not cover")


def _is_thin(clip, triangles, index):
    """Whether the seen triangle is so thin that float32 positions leave its weights open."""
    if len(triangles) == 0:
        return torch.zeros_like(index, dtype=torch.bool)
    image = torch.arange(len(clip))[:, None, None]
    corners = clip.double()[image[..., None], triangles[index.clamp(min=0)]]
    a, b, c = corners[..., [0, 1, 3]].unbind(-2)
    area = (a * torch.linalg.cross(b, c)).sum(-1).abs()
    longest = torch.stack([a, b, c]).abs().amax((0, -1))
    return area < 1e-3 * longest**3


@thorough
@given(st.sampled_from(KINDS), st.integers(0, 2**32 - 1))
def test_exact_coverage_needs_no_clipping(kind, seed):
    """Homogeneous edge functions (Olano and Greer 1997), which never divide by w, say the same."""
    clip, triangles, size = mesh(kind, seed)
    index = rasterize(clip, triangles, size, "cpu", None).triangle_index.numpy()
    height, width = size
    x, y = (np.arange(width) + 0.5) / width * 2 - 1, (np.arange(height) + 0.5) / height * 2 - 1
    pixels = np.stack([*np.meshgrid(x, y), np.ones(size)], -1)
    for image, positions in enumerate(clip.double().numpy()):
        seen, sure = np.full(size, -1), np.ones(size, bool)
        nearest = np.full(size, np.inf)
        for number, corners in enumerate(triangles.numpy()):
            a, b, c = positions[corners][:, [0, 1, 3]]
            if not np.isfinite(positions[corners]).all():
                continue
            sides = ((b, c), (c, a), (a, b))
            edges = np.stack([pixels @ np.cross(p, q) for p, q in sides], -1)
            largest = max(abs(np.outer(p, q)).max() for p, q in sides)
            with np.errstate(divide="ignore", invalid="ignore"):
                weights = edges / edges.sum(-1, keepdims=True)
                w = weights @ positions[corners, 3]
                z = weights @ positions[corners, 2] / w
                inside = (weights > 0).all(-1) & (w > 0) & (abs(z) < 1)
                doubtful = (abs(edges) <= 1e-12 * largest).any(-1)
                doubtful |= (abs(z - nearest) < 1e-5) | (abs(abs(z) - 1) < 1e-5)
            sure &= ~doubtful
            closer = inside & (z < nearest)
            seen[closer], nearest[closer] = number, z[closer]
        assert (index[image] == seen)[sure].all()


@settings(thorough, max_examples=100)
@given(st.integers(0, 2**32 - 1), st.sampled_from([16, None]))
def test_any_numbers_are_survived(seed, subpixel):
    """float64 of every magnitude, with gradients: finite weights, no crash, no endless loop."""
    random = np.random.default_rng(seed)
    count = int(random.integers(3, 8))
    clip = random.choice([-1, 1, 1], (1, count, 4)) * 10.0 ** random.uniform(-3, 3, (1, count, 4))
    odd = random.random(clip.shape) < 0.2
    wild = random.choice([-1, 1], clip.shape) * 10.0 ** random.uniform(-322, 308, clip.shape)
    clip[odd] = wild[odd]
    clip = torch.from_numpy(clip).requires_grad_()
    triangles = torch.from_numpy(random.integers(0, count, (6, 3)))
    fragments = rasterize(clip, triangles, (9, 7), "cpu", subpixel)
    assert fragments.barycentric.isfinite().all()
    assert (fragments.depth.abs() <= 1).all()
    image = (fragments.triangle_index >= 0).double()[..., None]
    smooth = antialias(image, fragments, clip, triangles)
    assert ((smooth > -2) & (smooth < 3)).all()
    (smooth.sum() + fragments.barycentric.sum()).backward()
