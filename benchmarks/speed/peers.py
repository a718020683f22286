"""Other rasterizers, compared where they are installed; none is needed."""

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec

import numpy as np
import torch

from benchmarks.speed.scene import Scene
from core.rasterize import drtk


def peers(scene: Scene) -> dict[str, Callable[[], object]]:
    """By name, what draws triangle indices, barycentrics and depth of a scene on the CPU."""
    found = {}
    if scene.device.type == "cpu" and find_spec("Sim3DR_Cython"):
        found["sim3dr"] = _sim3dr(scene)
    if drtk.is_installed():
        found["drtk_alone"] = _drtk(scene)
    return found


def _pixels(scene: Scene) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions in pixels from the image's corner, and depth."""
    extent = scene.clip.new_tensor([scene.size[1], scene.size[0]])
    w = scene.clip[..., 3:]
    return (scene.clip[..., :2] / w + 1) / 2 * extent, w


def _sim3dr(scene: Scene) -> Callable[[], object]:
    """3DDFA's C++ rasterizer (github.com/cleardusk/3DDFA_V2), one thread; nearer is larger z."""
    library = import_module("Sim3DR_Cython")
    position, depth = _pixels(scene)
    vertices = torch.cat([position - 0.5, -depth], -1).numpy().copy()
    triangles = scene.triangles.int().numpy().copy()
    height, width = scene.size

    def run() -> None:
        for image in vertices:
            z = np.full((height, width), -1e8, np.float32)
            index = np.full((height, width), -1, np.int32)
            weights = np.zeros((height * width, 3), np.float32)
            library.rasterize_triangles(
                image, triangles, z, index, weights, len(triangles), height, width
            )

    return run


def _drtk(scene: Scene) -> Callable[[], object]:
    """DRTK's own two calls, without what core.rasterize.drtk does around them."""
    library = import_module("drtk")
    position, depth = _pixels(scene)
    vertices, triangles = torch.cat([position - 0.5, depth], -1), scene.triangles.int()

    def run() -> None:
        library.render(vertices, triangles, library.rasterize(vertices, triangles, *scene.size))

    return run
