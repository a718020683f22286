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
depth, the triangle that is later in the list. Snapping is what nvdiffrast does: it changes the
triangle at some percent of the pixels (6 % of a dense face at 224 px). ``subpixel=None`` leaves
vertices where they are and decides in float64.

**Clipping**: nothing with z outside [-w, w] or behind the camera is drawn, triangles that reach
there are cut, new corners are snapped, too. A triangle with a NaN or infinite corner is left out.

**Gradients**: ``barycentric`` is recomputed from the unsnapped positions and differentiable with
respect to x, y and w (exact where the pixel's centre is inside the unsnapped triangle; no gradient
reaches z, and none comes from a triangle below 1/512 px, which only snapping has made visible).
Which triangle is seen is not differentiable, so that moving a silhouette has no effect on a loss
but through ``antialias``, whose gradient reaches the image and x, y and w.

**Refused** are indices that are no vertices, tensors on two devices, shapes and types other than
those above, and on the CPU images with a side above 32767. No triangle, no vertex or no image is
not an error: everything is background.

**Backends** agree on the triangle at >= 99.95 % of covered pixels, there on barycentrics to 1e-3
and on depth to 1e-4.

| backend      | what it is                                      | where |
|--------------|-------------------------------------------------|-------|
| "cpu"        | numba, vectorised, one image per thread         | CPU; CUDA tensors by copying |
| "nvdiffrast" | NVIDIA's, non-commercial licence, extra "cuda"  | CUDA |
| "drtk"       | facebookresearch/DRTK, MIT licence              | CUDA; CPU, slower than "cpu" |
| "reference"  | brute force in float64, for tests               | as "cpu" |
| "auto"       | on CUDA "nvdiffrast" if installed, else "drtk" if installed; else "cpu" | |

On the CPU every result and gradient is the same for any number of threads
(``torch.set_num_threads``); nvdiffrast sums gradients in no fixed order.

**Precision**: float32 or float64. Half-precision positions are refused, as they are off by pixels:
project in float32 (``core.precision``). Attributes in half precision are interpolated in float32.
"""

from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from core.precision import at_least_float32, without_autocast
from core.rasterize import (
    antialiasing,
    cpu,
    drtk,
    interpolation,
    nvdiffrast,
    reference,
    silhouettes,
)
from core.rasterize.fragments import Fragments
from core.rasterize.topology import topology

__all__ = ["Backend", "Fragments", "antialias", "interpolate", "rasterize"]

Backend = Literal["auto", "cpu", "nvdiffrast", "drtk", "reference"]


def rasterize(
    clip: Float[Tensor, "b n 4"],
    triangles: Int[Tensor, "t 3"],
    size: tuple[int, int],
    backend: str = "auto",
    subpixel: int | None = 16,
) -> Fragments:
    """The visible triangle of each pixel of b images of one mesh topology.

    Convention: row 0 is the top of the image, y = -w; see ``core.rasterize``.

    Args:
        clip: float32 or float64 positions in clip space; gradients reach x, y and w.
        triangles: vertex indices; each may be in any orientation.
        size: height, width of the images.
        backend: one of ``Backend``.
        subpixel: 16 snaps vertices to 1/16 pixel, as nvdiffrast does; None leaves them where they
            are (not with "nvdiffrast"; a quarter to twice slower with "cpu").

    Raises:
        TypeError: positions are not float32 or float64.
        ValueError: a size below 1 or too large, no such backend, a ``subpixel`` that it does not
            have, or triangles on another device than the positions.
        IndexError: a triangle has a corner that is not among the n vertices.
        MonofaceError: backend "nvdiffrast" on the CPU, or not installed.
    """
    height, width = (int(side) for side in size)
    if height < 1 or width < 1:
        raise ValueError(f"cannot rasterize an image of size {height} x {width}; both must be >= 1")
    if clip.ndim != 3 or clip.shape[2] != 4:
        raise ValueError(f"clip positions have shape {tuple(clip.shape)}; (b, n, 4) is wanted")
    if clip.dtype not in (torch.float32, torch.float64):
        raise TypeError(
            f"clip positions are {clip.dtype}, which is too coarse for pixels; project them in "
            "float32 (core.precision.without_autocast and at_least_float32)"
        )
    if subpixel not in (16, None):
        raise ValueError(
            f"subpixel={subpixel}; vertices are snapped to 1/16 pixel (16) or not (None)"
        )
    chosen = _backend(backend, clip.device, subpixel)
    _same_device(clip.device, triangles=triangles)
    known = topology(triangles)
    known.check(clip.shape[1])
    if chosen == "nvdiffrast" and subpixel is None:
        raise ValueError("nvdiffrast always snaps vertices to 1/16 pixel; take subpixel=16")
    if chosen == "nvdiffrast" and clip.isfinite().all():  # it does not say what it does else
        return nvdiffrast.rasterize(clip, known, (height, width))
    if chosen == "drtk":
        return drtk.rasterize(clip, known, (height, width), subpixel)
    draw = reference.rasterize if chosen == "reference" else cpu.rasterize
    return _moved(draw(clip.cpu(), known.triangles.cpu(), (height, width), subpixel), clip.device)


def interpolate(
    attributes: Float[Tensor, "_ n c"],
    fragments: Fragments,
    triangles: Int[Tensor, "t 3"],
    backend: str = "auto",
) -> Float[Tensor, "b h w c"]:
    """Vertex attributes at the pixels: u a_0 + v a_1 + (1 - u - v) a_2; 0 on the background.

    Gradients reach the attributes and the barycentrics.

    Args:
        attributes: of each image's vertices, or (1, n, c) of all images' alike.
        fragments: of ``rasterize``.
        triangles: those that were rasterized.
        backend: of any, whichever made the fragments.

    Raises:
        ValueError: attributes of another number of images, no such backend, or tensors on two
            devices.
        IndexError: a triangle has a corner that is not among the n vertices, or the fragments are
            of other triangles.
    """
    count = len(fragments.triangle_index)
    if attributes.shape[0] not in (1, count):
        raise ValueError(
            f"attributes are given for {attributes.shape[0]} images, the fragments are of {count}; "
            f"give {count}, or 1 for all alike"
        )
    _same_device(attributes.device, triangles=triangles, fragments=fragments.triangle_index)
    known = topology(triangles)
    known.check(attributes.shape[1])
    chosen = _backend(backend, attributes.device)
    if chosen in ("nvdiffrast", "drtk"):
        known.check_seen(fragments.triangle_index)
        library = nvdiffrast if chosen == "nvdiffrast" else drtk
        return library.interpolate(at_least_float32(attributes), fragments, known)
    kind = torch.promote_types(at_least_float32(attributes).dtype, fragments.barycentric.dtype)
    local = _moved(fragments, torch.device("cpu"), kind)
    pixels = interpolation.interpolate(attributes.cpu().to(kind), local, known.triangles.cpu())
    return pixels.to(attributes.device)


def antialias(
    image: Float[Tensor, "b h w c"],
    fragments: Fragments,
    clip: Float[Tensor, "b n 4"],
    triangles: Int[Tensor, "t 3"],
    backend: str = "auto",
) -> Float[Tensor, "b h w c"]:
    """Blend pixels across silhouettes, with a gradient for their position (Laine 2020, Sec. 3.6).

    For each two neighbouring pixels that see different triangles: if a silhouette edge of the
    nearer one (a border of the mesh, or where the surface folds away) crosses between their
    centres, the pixel in which it crosses gets of the other pixel's colour the share (at most 1/2)
    by which the crossing misses the boundary between the two pixels. Worked number: a black surface
    ends 0.2 px beyond its last pixel's centre, before white: that pixel becomes 0.3 white.

    The edge is looked for from the nearer pixel's triangle through its neighbours on towards the
    other pixel, so that silhouettes are also found on meshes finer than the pixels. There the
    gradient's sum is within some percent of that of a box-filtered image (of a sphere of triangles
    of 1/30 px, 92 to 95 %, as snapping shuffles such triangles; with ``subpixel=None``, 99 %).
    The rule that nvdiffrast documents looks at the one triangle only: written out here it gave a
    third of that gradient with triangles of a few pixels and next to nothing with smaller ones
    (nvdiffrast itself was not run for this).
    Vertices that are doubled (seams) count as borders.

    Args:
        image: what was drawn from the fragments; gradients reach it.
        fragments: of ``rasterize``.
        clip: the positions that were rasterized; gradients reach x, y and w.
        triangles: those that were rasterized.
        backend: "nvdiffrast" has its own operation; "cpu" has kernels for CPU tensors; all others
            share one of plain torch operations.

    Raises:
        ValueError: no such backend, tensors on two devices, or of different images.
        IndexError: a triangle has a corner that is not among the n vertices, or the fragments are
            of other triangles.
    """
    index = fragments.triangle_index
    if image.shape[:-1] != index.shape or len(clip) != len(index):
        raise ValueError(
            f"images {tuple(image.shape)} and positions {tuple(clip.shape)} do not fit the "
            f"fragments' {tuple(index.shape)}; all are of the same images"
        )
    _same_device(image.device, clip=clip, triangles=triangles, fragments=index)
    known = topology(triangles)
    known.check(clip.shape[1])
    known.check_seen(index)
    chosen = _backend(backend, image.device)
    image = at_least_float32(image)
    if chosen == "nvdiffrast":
        return nvdiffrast.antialias(image, fragments, clip, known)
    if chosen == "cpu" and image.device.type == "cpu":
        return antialiasing.antialias(image, fragments, clip, known)
    with without_autocast(image):
        return silhouettes.antialias(image, fragments, clip, known)


def _same_device(wanted: torch.device, **tensors: Tensor) -> None:
    """Raise ValueError unless the tensors are on a device."""
    for name, tensor in tensors.items():
        if tensor.device != wanted:
            raise ValueError(
                f"the {name} are on {tensor.device}, other tensors on {wanted}; move them there"
            )


def _backend(name: str, device: torch.device, subpixel: int | None = 16) -> str:
    """The backend for tensors on a device."""
    known = get_args(Backend)
    if name not in known:
        raise ValueError(f"no rasterizer backend '{name}'; there are {', '.join(known)}")
    if name == "auto" and device.type == "cuda":
        if subpixel == nvdiffrast.SUBPIXEL and nvdiffrast.is_installed():
            return "nvdiffrast"
        return "drtk" if drtk.is_installed() else "cpu"
    if name == "nvdiffrast":
        nvdiffrast.require(device)
        if subpixel != nvdiffrast.SUBPIXEL:
            raise ValueError(
                f"subpixel={subpixel}: nvdiffrast always snaps vertices to 1/16 pixel; leave it at "
                "16, or use backend='drtk' or 'cpu'"
            )
    if name == "drtk":
        drtk.require()
    return "cpu" if name == "auto" else name


def _moved(
    fragments: Fragments, device: torch.device, dtype: torch.dtype | None = None
) -> Fragments:
    """The fragments on a device; barycentrics in a dtype."""
    return Fragments(
        fragments.barycentric.to(device, dtype),
        fragments.depth.to(device),
        fragments.triangle_index.to(device),
    )
