"""The stages of rendering, each as a function that does it once for a whole batch."""

from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor

from benchmarks.speed.meshes import Mesh
from benchmarks.speed.peers import peers
from benchmarks.speed.scene import Scene
from benchmarks.speed.timing import Candidate
from core.lighting import sh_basis, shade, shade_points
from core.normals import vertex_normals, vertex_normals_plain
from core.rasterize import Fragments, antialias, drtk, interpolate, nvdiffrast, rasterize

Work = Callable[[], object]

DRAWN = ("rasterize", "interpolate", "renderer", "antialias")  # once per backend
OTHERS = ("normals", "shading", "shading_points", "model", "evaluation")  # once per device
STAGES = (*DRAWN, *OTHERS)
SIZELESS = ("normals", "shading_points", "model", "evaluation")  # no images are involved
BACKENDS = ("cpu", "nvdiffrast", "drtk")


def devices(backends: list[str]) -> dict[str, torch.device]:
    """Where each backend is measured; those that cannot run here are left out."""
    gpu = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else None
    cpu = torch.device("cpu")
    places = {"cpu": cpu}
    if nvdiffrast.is_installed() and gpu:
        places["nvdiffrast"] = gpu
    if drtk.is_installed():
        places["drtk"] = gpu or cpu
    return {backend: places[backend] for backend in backends if backend in places}


def candidates(
    mesh: Mesh, size: int, batch: int, threads: list[int], backends: list[str], stages: list[str]
) -> list[Candidate]:
    """All rows of one mesh, size and batch, to be measured in turn."""
    found = []
    places = devices(backends)
    for device in dict.fromkeys(places.values()):
        scene = Scene(mesh, size, batch, device)
        here = [backend for backend, place in places.items() if place == device]
        work: dict[tuple[str, str], Work] = {}
        for stage, backend in product(DRAWN, here):
            if stage in stages:
                work[stage, backend] = WORK[stage](scene, backend)
        if "rasterize" in stages:
            work |= {("rasterize", name): run for name, run in peers(scene).items()}
        for stage in OTHERS:
            if stage in stages:
                work |= {(stage, kind): run for kind, run in OTHER_WORK[stage](scene).items()}
        for (stage, backend), run in work.items():
            extent = "any" if stage in SIZELESS else str(size)
            for count in threads if device.type == "cpu" else [0]:
                key = f"{stage}/{mesh.name}/{extent}/{batch}/{backend}/{count or 'cuda'}"
                found.append(Candidate(key, run, batch, count))
    return found


def _rasterize(scene: Scene, backend: str) -> Work:
    """Fragments, without gradients."""
    return lambda: rasterize(scene.clip, scene.triangles, scene.size, backend)


def _interpolate(scene: Scene, backend: str) -> Work:
    """Three channels at the pixels, and the gradients of attributes and barycentrics."""
    drawn = rasterize(scene.clip, scene.triangles, scene.size, backend)
    barycentric = drawn.barycentric.clone().requires_grad_()
    fragments = Fragments(barycentric, drawn.depth, drawn.triangle_index)
    attributes = scene.vertices.clone().requires_grad_()

    def run() -> object:
        pixels = interpolate(attributes, fragments, scene.triangles, backend)
        return torch.autograd.grad(pixels, [attributes, barycentric], scene.weight)

    return run


def _renderer(scene: Scene, backend: str) -> Work:
    """Both of these, and the gradients of positions and attributes."""
    position = scene.clip.clone().requires_grad_()
    attributes = scene.vertices.clone().requires_grad_()

    def run() -> object:
        fragments = rasterize(position, scene.triangles, scene.size, backend)
        pixels = interpolate(attributes, fragments, scene.triangles, backend)
        return torch.autograd.grad(pixels, [position, attributes], scene.weight)

    return run


def _antialias(scene: Scene, backend: str) -> Work:
    """Of a three-channel image, and the gradients of image and positions."""
    fragments = rasterize(scene.clip, scene.triangles, scene.size, backend)
    image = interpolate(scene.vertices, fragments, scene.triangles, backend)
    image, position = image.clone().requires_grad_(), scene.clip.clone().requires_grad_()

    def run() -> object:
        smooth = antialias(image, fragments, position, scene.triangles, backend)
        return torch.autograd.grad(smooth, [image, position], scene.weight)

    return run


def _normals(scene: Scene) -> dict[str, Work]:
    """Of the vertices, forward and backward; "torch" is the plain form."""
    vertices = scene.vertices.clone().requires_grad_()
    weight = torch.ones_like(vertices)

    def work(function: Callable) -> Work:
        return lambda: torch.autograd.grad(function(vertices, scene.triangles), vertices, weight)

    plain = {"torch": work(vertex_normals_plain)}
    return plain | ({"cpu": work(vertex_normals)} if scene.device.type == "cpu" else {})


def _shading(scene: Scene) -> dict[str, Work]:
    """Spherical-harmonics irradiance of a picture of normals, forward and backward."""
    weight = scene.weight.movedim(-1, 1).contiguous()
    return _shaded(scene, scene.picture, weight, shade)


def _shading_points(scene: Scene) -> dict[str, Work]:
    """The same at the vertices."""
    normals = vertex_normals(scene.vertices, scene.triangles)
    return _shaded(scene, normals, torch.ones_like(normals), shade_points)


def _shaded(scene: Scene, normals: Tensor, weight: Tensor, function: Callable) -> dict[str, Work]:
    inputs = [normals.clone().requires_grad_(), scene.light.clone().requires_grad_()]
    axis = 1 if function is shade else -1

    def plain(normals: Tensor, light: Tensor) -> Tensor:
        basis = sh_basis(normals.movedim(axis, -1))
        return (basis.flatten(1, -2) @ light).view(*basis.shape[:-1], 3).movedim(-1, axis)

    def work(function: Callable) -> Work:
        return lambda: torch.autograd.grad(function(*inputs), inputs, weight)

    return {"torch": work(plain)} | ({"cpu": work(function)} if scene.device.type == "cpu" else {})


def _model(scene: Scene) -> dict[str, Work]:
    """Shape and albedo from coefficients, forward and backward."""
    model = scene.model
    bases = (model.identity_basis, model.expression_basis, model.albedo_basis)
    inputs = [
        torch.zeros(scene.batch, len(basis), device=scene.device).requires_grad_()
        for basis in bases
    ]
    weight = torch.ones_like(scene.vertices)

    def run() -> object:
        outputs = [model.shape(*inputs[:2]), model.albedo(inputs[2])]
        return torch.autograd.grad(outputs, inputs, [weight, weight])

    return {"cpu" if scene.device.type == "cpu" else "torch": run}


def _evaluation(scene: Scene) -> dict[str, Work]:
    """Shape and albedo, without gradients; "gemm" is one matrix product of the same size.

    Of a mesh of this benchmark the coefficients are Deng et al.'s 224 of geometry and albedo.
    """
    model = scene.model
    bases = (model.identity_basis, model.expression_basis, model.albedo_basis)
    numbers = [torch.zeros(scene.batch, len(basis), device=scene.device) for basis in bases]
    row, basis = torch.cat(numbers, 1), torch.cat(bases).flatten(1)

    def run() -> object:
        return model.shape(*numbers[:2]), model.albedo(numbers[2])

    own = "cpu" if scene.device.type == "cpu" else "torch"
    return {own: run, "gemm": lambda: row @ basis}


WORK = {
    "rasterize": _rasterize,
    "interpolate": _interpolate,
    "renderer": _renderer,
    "antialias": _antialias,
}
OTHER_WORK = {
    "normals": _normals,
    "shading": _shading,
    "shading_points": _shading_points,
    "model": _model,
    "evaluation": _evaluation,
}
