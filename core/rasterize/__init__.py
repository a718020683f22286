"""The rasterizer: which triangle each pixel sees, vertex attributes at pixels, smooth silhouettes.

    fragments = rasterize(clip, triangles, (height, width))       # once per batch of meshes
    pixels = interpolate(attributes, fragments, triangles)        # as often as you like
    mask = (fragments.triangle_index >= 0).float()[..., None]
    mask = antialias(mask, fragments, clip, triangles)            # gradients of the silhouette

**In**: ``clip`` is (b, n, 4), what ``camera.clip()`` returns: x and y in [-w, w] from the left and
top edges of the image, z in [-w, w] growing away from the viewer. ``triangles`` is (t, 3), any
integer dtype, the same for all images. Leading axes are flattened to one, images are channels-last.

**Pixels**: row 0 is the top. Pixel (row i, column j) looks at x / w = (2 j + 1) / width - 1 and
y / w = (2 i + 1) / height - 1. Worked number: in a 4 x 4 image the triangle (-1, -1), (1, -1),
(-1, 1) covers the pixels with i + j < 3 and no other.

**Coverage**: vertices are snapped to 1/16 pixel (ties to even), then a pixel belongs to a triangle
if its centre is inside. A centre on an edge belongs to the triangle to the right of the edge, below
it if it is horizontal (fill rule): of two triangles with a common edge exactly one has it. Both
sides of a triangle are drawn; one without area after snapping is not. The nearest wins; at equal
depth, the triangle that is later in the list.

**Clipping**: nothing with z outside [-w, w] or behind the camera is drawn, triangles that reach
there are cut. A triangle with a NaN or infinite corner is left out.

**Gradients**: ``barycentric`` is recomputed from the unsnapped positions and differentiable with
respect to x, y and w (exact where the pixel's centre is inside the unsnapped triangle; no gradient
reaches z). Which triangle is seen is not differentiable, so that moving a silhouette has no effect
on a loss but through ``antialias``.

**Backends** agree on the triangle at >= 99.95 % of covered pixels, there on barycentrics to 1e-3
and on depth to 1e-4.

| backend      | what it is                                      | where |
|--------------|-------------------------------------------------|-------|
| "cpu"        | numba, vectorised, one image per thread         | CPU; CUDA tensors by copying |
| "nvdiffrast" | NVIDIA's, non-commercial licence, extra "cuda"  | CUDA |
| "reference"  | brute force in float64, for tests               | as "cpu" |
| "auto"       | "nvdiffrast" on CUDA if installed, else "cpu"   | |

On the CPU every result and gradient is the same for any number of threads
(``torch.set_num_threads``); nvdiffrast sums gradients in no fixed order.

**Precision**: float32 or float64. Half-precision positions are refused, as they are off by pixels:
project in float32 (``core.precision``). Attributes in half precision are interpolated in float32.
"""

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from core.precision import at_least_float32, without_autocast
from core.rasterize import cpu, nvdiffrast, reference, silhouettes
from core.rasterize.fragments import Fragments
from core.rasterize.topology import topology

__all__ = ["Backend", "Fragments", "antialias", "interpolate", "rasterize"]

Backend = Literal["auto", "cpu", "reference", "nvdiffrast"]
BACKENDS = ("auto", "cpu", "reference", "nvdiffrast")


def rasterize(
    clip: Float[Tensor, "b n 4"],
    triangles: Int[Tensor, "t 3"],
    size: tuple[int, int],
    backend: str = "auto",
) -> Fragments:
    """The visible triangle of each pixel of b images of one mesh topology.

    Convention: row 0 is the top of the image, y = -w; see ``core.rasterize``.

    Args:
        clip: float32 or float64 positions in clip space; gradients reach x, y and w.
        triangles: vertex indices; each may be in any orientation.
        size: height, width of the images.
        backend: one of ``Backend``.

    Raises:
        TypeError: positions are in half precision.
        ValueError: a size below 1, or no such backend.
        IndexError: a triangle has a corner that is not among the n vertices.
        MonofaceError: backend "nvdiffrast" on the CPU, or not installed.
    """
    height, width = size
    if height < 1 or width < 1:
        raise ValueError(f"cannot rasterize an image of size {height} x {width}; both must be >= 1")
    if clip.dtype not in (torch.float32, torch.float64):
        raise TypeError(
            f"clip positions are {clip.dtype}, which is too coarse for pixels; project them in "
            "float32 (core.precision.without_autocast and at_least_float32)"
        )
    chosen = _backend(backend, clip)
    known = topology(triangles)
    known.check(clip.shape[1])
    if chosen == "nvdiffrast":
        return nvdiffrast.rasterize(clip, known, (height, width))
    draw = cpu.rasterize if chosen == "cpu" else reference.rasterize
    return _moved(draw(clip.cpu(), known.triangles.cpu(), (height, width)), clip.device)


def interpolate(
    attributes: Float[Tensor, "_ n c"], fragments: Fragments, triangles: Int[Tensor, "t 3"]
) -> Float[Tensor, "b h w c"]:
    """Vertex attributes at the pixels: u a_0 + v a_1 + (1 - u - v) a_2; 0 on the background.

    Gradients reach the attributes and the barycentrics.

    Args:
        attributes: of each image's vertices, or (1, n, c) of all images' alike.
        fragments: of ``rasterize``.
        triangles: those that were rasterized.

    Raises:
        ValueError: attributes of another number of images.
        IndexError: a triangle has a corner that is not among the n vertices, or the fragments are
            of other triangles.
    """
    count = len(fragments.triangle_index)
    if attributes.shape[0] not in (1, count):
        raise ValueError(
            f"attributes are given for {attributes.shape[0]} images, the fragments are of {count}; "
            f"give {count}, or 1 for all alike"
        )
    known = topology(triangles)
    known.check(attributes.shape[1])
    if _backend("auto", attributes) == "nvdiffrast":
        return nvdiffrast.interpolate(at_least_float32(attributes), fragments, known)
    kind = torch.promote_types(at_least_float32(attributes).dtype, fragments.barycentric.dtype)
    local = _moved(fragments, torch.device("cpu"), kind)
    pixels = cpu.interpolate(attributes.cpu().to(kind), local, known.triangles.cpu())
    return pixels.to(attributes.device)


def antialias(
    image: Float[Tensor, "b h w c"],
    fragments: Fragments,
    clip: Float[Tensor, "b n 4"],
    triangles: Int[Tensor, "t 3"],
) -> Float[Tensor, "b h w c"]:
    """Blend pixels across silhouettes, with a gradient for their position (Laine 2020, Sec. 3.6).

    For each two neighbouring pixels that see different triangles: if a silhouette edge of the
    nearer one (a border of the mesh, or where the surface folds away) crosses between their
    centres, the pixel in which it crosses gets of the other pixel's colour the share (at most 1/2)
    by which the crossing misses the boundary between the two pixels. Worked number: a black surface
    ends 0.2 px beyond its last pixel's centre, before white: that pixel becomes 0.3 white.

    Only triangles that own a pixel next to the silhouette are looked at: on a mesh finer than the
    pixels parts of the silhouette are missed. Vertices that are doubled (seams) count as borders.

    Args:
        image: what was drawn from the fragments; gradients reach it.
        fragments: of ``rasterize``.
        clip: the positions that were rasterized; gradients reach x, y and w.
        triangles: those that were rasterized.

    Raises:
        IndexError: a triangle has a corner that is not among the n vertices.
    """
    known = topology(triangles)
    known.check(clip.shape[1])
    if _backend("auto", image) == "nvdiffrast":
        return nvdiffrast.antialias(at_least_float32(image), fragments, clip, known)
    with without_autocast(image):
        return silhouettes.antialias(at_least_float32(image), fragments, clip, known)


def _backend(name: str, tensor: Tensor) -> str:
    """The backend for a tensor on its device."""
    if name not in BACKENDS:
        raise ValueError(f"no rasterizer backend '{name}'; there are {', '.join(BACKENDS)}")
    if name == "auto":
        return "nvdiffrast" if tensor.is_cuda and nvdiffrast.is_installed() else "cpu"
    if name == "nvdiffrast":
        nvdiffrast.require(tensor)
    return name


def _moved(
    fragments: Fragments, device: torch.device, dtype: torch.dtype | None = None
) -> Fragments:
    """The fragments on a device; barycentrics in a dtype."""
    return Fragments(
        fragments.barycentric.to(device, dtype),
        fragments.depth.to(device),
        fragments.triangle_index.to(device),
    )
