"""The backend on nvdiffrast (Laine et al. 2020): CUDA, the only file that knows it.

Its conventions are ours: its row 0 lies at y = -1, which is the top edge in our clip space, so that
nothing is flipped; its barycentrics are the weights of corners 0 and 1; it snaps to 1/16 pixel. All
images share one topology (its "instance mode"), whose hash for antialiasing is made once.
"""

from functools import cache, lru_cache
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from core.errors import MonofaceError
from core.precision import without_autocast
from core.rasterize.fragments import Fragments
from core.rasterize.topology import Topology

SUBPIXEL = 16  # steps per pixel to which it snaps, always
LARGEST_INDEX = 2**24 - 1  # indices travel as float32
CONTEXTS = 4  # shapes that are remembered; each holds about 5 MB an image on the device
INSTALL = (
    "Install it with pip install --no-build-isolation 'monoface[cuda]' (it is built with your CUDA "
    "toolkit), or use backend='drtk' (MIT licence), or backend='cpu', which takes CUDA tensors by "
    "copying them. Licence: NVIDIA Source Code License, non-commercial use only."
)

_hashes: WeakIdKeyDictionary = WeakIdKeyDictionary()


@cache
def is_installed() -> bool:
    """Whether the package is there; it is not imported."""
    return find_spec("nvdiffrast") is not None


def require(device: torch.device) -> None:
    """Raise MonofaceError unless this backend can take tensors on the device."""
    if not is_installed():
        raise MonofaceError(f"the rasterizer backend 'nvdiffrast' is not installed. {INSTALL}")
    if device.type != "cuda":
        raise MonofaceError(
            f"the rasterizer backend 'nvdiffrast' needs CUDA tensors, these are on {device}; move "
            "them to a GPU, or use backend='cpu' or 'auto'"
        )


def rasterize(clip: Float[Tensor, "b n 4"], topology: Topology, size: tuple[int, int]) -> Fragments:
    """``core.rasterize.rasterize`` of CUDA tensors, computed in float32."""
    if len(topology.triangles) > LARGEST_INDEX:
        raise ValueError(
            f"{len(topology.triangles)} triangles; nvdiffrast tells at most {LARGEST_INDEX} apart"
        )
    batch, vertices = clip.shape[:2]
    if 0 in (batch, vertices, len(topology.triangles)):  # nvdiffrast refuses empty tensors
        shape = (batch, *size)
        # sum() keeps the graph: the gradient of nothing is 0
        nothing = clip.new_zeros(*shape, 2) + 0 * clip.sum()
        return Fragments(nothing, clip.new_zeros(shape), _background(shape, clip.device))
    with without_autocast(clip):
        drawn, _ = _library().rasterize(
            _context(str(clip.device), batch, *size),
            clip.float().contiguous(),
            topology.triangles,
            resolution=list(size),
            grad_db=False,
        )
    index = drawn[..., 3].detach().long() - 1
    return Fragments(drawn[..., :2].to(clip.dtype), drawn[..., 2].detach().to(clip.dtype), index)


def interpolate(
    attributes: Float[Tensor, "_ n c"], fragments: Fragments, topology: Topology
) -> Float[Tensor, "b h w c"]:
    """``core.rasterize.interpolate`` of CUDA tensors, computed in float32."""
    if 0 in (*attributes.shape, len(topology.triangles), len(fragments.depth)):
        return attributes.new_zeros(*fragments.depth.shape, attributes.shape[-1])
    with without_autocast(attributes):
        pixels, _ = _library().interpolate(
            attributes.float().contiguous(), _drawn(fragments), topology.triangles
        )
    return pixels.to(attributes.dtype)


def antialias(
    image: Float[Tensor, "b h w c"],
    fragments: Fragments,
    clip: Float[Tensor, "b n 4"],
    topology: Topology,
) -> Float[Tensor, "b h w c"]:
    """``core.rasterize.antialias`` of CUDA tensors, computed in float32."""
    if 0 in (*image.shape, clip.shape[1], len(topology.triangles)):
        return image
    library, triangles = _library(), topology.triangles
    if triangles not in _hashes:
        _hashes[triangles] = library.antialias_construct_topology_hash(triangles)
    with without_autocast(image):
        smooth = library.antialias(
            image.float().contiguous(),
            _drawn(fragments).detach(),
            clip.float().contiguous(),
            triangles,
            topology_hash=_hashes[triangles],
        )
    return smooth.to(image.dtype)


def _drawn(fragments: Fragments) -> Float[Tensor, "b h w 4"]:
    """Fragments in nvdiffrast's format."""
    index = (fragments.triangle_index + 1).float()
    channels = [fragments.barycentric.float(), fragments.depth.float()[..., None], index[..., None]]
    return torch.cat(channels, -1)


def _background(shape: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.full(shape, -1, dtype=torch.int64, device=device)


@lru_cache(maxsize=CONTEXTS)
def _context(device: str, batch: int, height: int, width: int) -> Any:
    """Its state on the device of the tensors; one per shape, as another makes it allocate anew."""
    return _library().RasterizeCudaContext(device=device)


def _library() -> ModuleType:
    """nvdiffrast, imported when first needed: importing it loads its CUDA library.

    Raises:
        MonofaceError: it is not installed, or does not load.
    """
    try:
        import nvdiffrast.torch as library
    except (ImportError, OSError) as error:
        raise MonofaceError(
            f"the rasterizer backend 'nvdiffrast' cannot be imported ({error}). {INSTALL}"
        ) from error
    return library
