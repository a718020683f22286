"""The backend on DRTK (Pidhorskyi et al. 2024), the permissive one: MIT licence, CUDA and CPU.

This file alone knows it. DRTK takes positions on the screen, the first pixel's centre at (0, 0); of
two triangles at equal depth it draws the earlier; it draws only triangles whose corners are all in
front of the camera, and interpolates the inverse of the depth that it is given. To get what
``core.rasterize`` promises, positions are snapped here, triangles are handed over in reverse order,
1 / (2 - z / w), whose inverse is linear on the screen as z / w is, is given as depth, and triangles
that reach out of the view volume are cut by ``core.rasterize.clipping``.
"""

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from core.errors import MonofaceError
from core.precision import without_autocast
from core.rasterize import reference
from core.rasterize.clipping import cut, frustum, inside
from core.rasterize.fragments import Fragments
from core.rasterize.topology import Topology

BAND = 2.0**14  # pixels from the image's centre: float32 tells positions up to there apart
INSTALL = (
    "Install it with pip install --no-build-isolation git+https://github.com/facebookresearch/DRTK "
    "(it is built with your CUDA toolkit; the 'drtk' of the Python package index is another "
    "project: never pip install drtk), or use backend='cpu'. Licence: MIT."
)


def is_installed() -> bool:
    """Whether DRTK is there, compiled; it is not imported."""
    return _problem() is None


def require() -> None:
    """Raise MonofaceError unless DRTK is there."""
    problem = _problem()
    if problem:
        raise MonofaceError(f"the rasterizer backend 'drtk' {problem}. {INSTALL}")


@cache
def _problem() -> str | None:
    """What is wrong with the installation. Nothing is imported: the package may be another's."""
    spec = find_spec("drtk")
    if spec is None:
        return "is not installed"
    folders = [Path(place) for place in spec.submodule_search_locations or ()]
    if not any((folder / "edge_grad_estimator.py").is_file() for folder in folders):
        return (
            f"is not installed: the package 'drtk' at {spec.origin or folders} is another project "
            "of that name, not facebookresearch/DRTK; pip uninstall drtk"
        )
    if not any(any(folder.glob("rasterize_ext*")) for folder in folders):
        return f"is not compiled in {folders[0]}"
    return None


def rasterize(
    clip: Float[Tensor, "b n 4"],
    topology: Topology,
    size: tuple[int, int],
    subpixel: int | None = 16,
) -> Fragments:
    """``core.rasterize.rasterize`` of float32 or float64 tensors on the CPU or on CUDA."""
    shape = (len(clip), *size)
    if 0 in (len(clip), clip.shape[1], len(topology.triangles)):
        nothing = clip.new_zeros(*shape, 2) + 0 * clip.sum()  # keeps the graph
        background = torch.full(shape, -1, device=clip.device)
        return Fragments(nothing, clip.new_zeros(shape), background)
    with without_autocast(clip):
        fixed = clip.detach()
        planes = frustum(fixed, size, BAND)
        usable = inside(fixed, planes)
        parts = None if usable.all() else cut(fixed, topology.triangles, planes)
        blank = fixed.new_zeros(4)
        blank[3] = 1
        safe = torch.where(usable[..., None], clip, blank)
        index = _index(safe.detach(), usable, topology.triangles, parts, size, subpixel)
        if parts is not None:  # corners behind the camera are nowhere on the screen
            u, v, depth = reference.shade(clip.double(), topology.triangles.long(), index)
            barycentric = torch.stack([u, v], -1).to(clip.dtype)
            return Fragments(barycentric, depth.detach().to(clip.dtype), index)
        return _shaded(safe, topology, index)


def _index(
    clip: Float[Tensor, "b n 4"],
    usable: Bool[Tensor, "b n"],
    triangles: Int[Tensor, "t 3"],
    parts: tuple[Tensor, Tensor, Tensor] | None,
    size: tuple[int, int],
    subpixel: int | None,
) -> Int[Tensor, "b h w"]:
    """The visible triangle of each pixel, -1 = background."""
    corners = triangles.flip(0)
    if parts is not None:
        vertices, more, owners = parts
        corners = torch.cat([corners, clip.shape[1] + more.to(corners.dtype)])
        usable = torch.cat([usable, vertices[..., 3] > 0], 1)
        clip = torch.cat([clip.double(), vertices], 1)
    position = _screen(clip.double(), size)
    if subpixel is not None:
        position = (position * subpixel).round() / subpixel
    z = (clip[..., 2].double() / clip[..., 3]).clamp(-1, 1)
    depth = torch.where(usable, 1 / (2 - z), -1)[..., None]  # negative: not drawn
    # what is snapped, float32 holds exactly
    kind = torch.float64 if subpixel is None else torch.float32
    position = torch.cat([_corner_to_centre(position, size), depth], -1).nan_to_num().to(kind)
    found = _library().rasterize(position, corners, *size).long()
    last = len(triangles) - 1
    if parts is None:
        return torch.where(found < 0, -1, last - found)
    own = torch.arange(last, -1, -1, device=clip.device).expand(len(clip), -1)
    owner = torch.cat([own, owners], 1).gather(1, found.clamp(min=0).flatten(1))
    return torch.where(found < 0, -1, owner.view_as(found))


def _shaded(
    clip: Float[Tensor, "b n 4"], topology: Topology, index: Int[Tensor, "b h w"]
) -> Fragments:
    """Barycentrics, with gradients, and depth of the visible triangles."""
    size = (index.shape[1], index.shape[2])
    library, small = _library(), index.int()
    position = _corner_to_centre(_screen(clip, size), size)
    _, weights = library.render(torch.cat([position, clip[..., 3:]], -1), topology.triangles, small)
    exact = weights[:, :2].movedim(1, -1)
    # a centre just outside the unsnapped triangle gets the nearest weights, with unchanged gradient
    clamped = exact.detach().clamp(0, 1)
    clamped = clamped / clamped.sum(-1, keepdim=True).clamp(min=1)
    barycentric = clamped + (exact - exact.detach())
    z, w = _blend(clip[..., 2:].detach(), clamped, index, topology).unbind(-1)
    return Fragments(barycentric, (z / torch.where(index < 0, 1, w)).clamp(-1, 1), index)


def interpolate(
    attributes: Float[Tensor, "_ n c"], fragments: Fragments, topology: Topology
) -> Float[Tensor, "b h w c"]:
    """``core.rasterize.interpolate`` of tensors on one device, in the attributes' precision."""
    index = fragments.triangle_index
    if 0 in (*attributes.shape, len(topology.triangles), len(index)):
        return attributes.new_zeros(*index.shape, attributes.shape[-1])
    with without_autocast(attributes):
        barycentric = fragments.barycentric.to(attributes.dtype)
        return _blend(attributes.expand(len(index), -1, -1), barycentric, index, topology)


def _blend(
    values: Float[Tensor, "b n c"],
    barycentric: Float[Tensor, "b h w 2"],
    index: Int[Tensor, "b h w"],
    topology: Topology,
) -> Float[Tensor, "b h w c"]:
    u, v = barycentric.unbind(-1)
    weights = torch.stack([u, v, 1 - u - v], 1)
    pixels = _library().interpolate(values, topology.triangles, index.int(), weights)
    # beyond the triangles DRTK leaves a pattern
    return torch.where(index[..., None] < 0, 0, pixels.movedim(1, -1))


def _screen(clip: Float[Tensor, "b n 4"], size: tuple[int, int]) -> Float[Tensor, "b n 2"]:
    """Pixels from the centre of the image."""
    return torch.stack(
        [clip[..., axis] / clip[..., 3] * (size[1 - axis] / 2) for axis in (0, 1)], -1
    )


def _corner_to_centre(
    position: Float[Tensor, "b n 2"], size: tuple[int, int]
) -> Float[Tensor, "b n 2"]:
    """From pixels seen from the image's centre to pixels seen from the first pixel's centre."""
    offset = [(extent - 1) / 2 for extent in (size[1], size[0])]
    return torch.stack([position[..., axis] + offset[axis] for axis in (0, 1)], -1)


@cache
def _library() -> ModuleType:
    """DRTK, imported when first needed: importing it loads its compiled operations.

    Raises:
        MonofaceError: it is not installed, or does not load.
    """
    require()
    try:
        import drtk as library
    except (ImportError, OSError) as error:
        raise MonofaceError(
            f"the rasterizer backend 'drtk' cannot be imported ({error}); it must be built with "
            f"this PyTorch, {torch.__version__}. {INSTALL}"
        ) from error
    return library
