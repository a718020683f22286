"""Training steps: of every registered method, and of a plain regression network on a dense mesh."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from jsonargparse import ArgumentParser
from omegaconf import OmegaConf
from torch import Tensor, nn

from benchmarks.speed.meshes import Mesh
from benchmarks.speed.scene import camera_of
from benchmarks.speed.timing import Candidate
from core.contracts import FaceBatch
from core.errors import MonofaceError
from core.lighting import AMBIENT, shade
from core.losses import coefficient_l2, landmark_l2, masked_l1, total
from core.normals import normalize, vertex_normals
from core.precision import without_autocast
from core.rasterize import interpolate, rasterize

PRECISIONS = ("fp32", "bf16")
NETWORKS = {"resnet18": (112, 16), "resnet50": (224, 5)}  # side and number of the images
CONFIGS = Path(__file__).resolve().parents[2] / "configs"
LATE = 10**6  # a step at which every method renders

Step = Callable[[], object]


def methods() -> dict[str, str]:
    """The registered methods that have a config: name, and the class's path."""
    found = {entry.name: entry.value for entry in entry_points(group="monoface.methods")}
    return {name: path for name, path in found.items() if (CONFIGS / f"{name}.yaml").is_file()}


def candidates(
    what: str, mesh: Mesh, precisions: list[str], threads: list[int], device: torch.device
) -> list[Candidate]:
    """The step of a method or network, its networks' forward and backward, and its optimizer.

    Args:
        what: a method's name, or one of ``NETWORKS``.
        mesh: for the networks; methods have their own.
        precisions: of ``PRECISIONS``.
        threads: rows on the CPU.
        device: where.

    Raises:
        MonofaceError: no such method or network.
    """
    known = methods()
    if what not in known and what not in NETWORKS:
        names = ", ".join([*known, *NETWORKS])
        raise MonofaceError(f"no method or network '{what}'; there are {names}")
    found = []
    for precision in precisions:
        torch.manual_seed(0)
        if what in known:
            work = _method(what, precision, device)
        else:
            work = _network(what, mesh, precision, device)
        place = f"{work.mesh}/{work.size}/{work.images}/{device.type}"
        for stage, run in work.parts.items():
            for count in threads if device.type == "cpu" else [0]:
                key = f"{stage}_{what}_{precision}/{place}/{count or 'cuda'}"
                found.append(Candidate(key, run, work.images, count))
    return found


@dataclass(frozen=True)
class Work:
    """A training step and its parts.

    Attributes:
        parts: "step": all of it; "network": the networks' forward and backward alone; "optimizer".
        mesh: its name.
        size: side of the images.
        images: in a batch.
    """

    parts: dict[str, Step]
    mesh: str
    size: int
    images: int


def shares(medians: dict[str, float]) -> dict[str, float]:
    """Per key of a step, the share that is neither its networks nor its optimizer."""
    found = {}
    for key, whole in medians.items():
        if key.startswith("step_"):
            rest = key.removeprefix("step_")
            parts = [medians.get(f"{part}_{rest}") for part in ("network", "optimizer")]
            if None not in parts:
                found[key] = 1 - sum(part for part in parts if part) / whole
    return found


class Regression(nn.Module):
    """Image to coefficients, pose and light to an image: a step like that of Deng et al. 2019.

    Without the perceptual loss; the light is spherical harmonics per pixel.
    """

    def __init__(self, name: str, mesh: Mesh, size: int) -> None:
        super().__init__()
        self.model, self.size = mesh.model, size
        bases = (self.model.identity_basis, self.model.expression_basis, self.model.albedo_basis)
        self.dims = [*map(len, bases), 3, 3, 27]
        import timm  # takes seconds

        self.network = timm.create_model(name, pretrained=False, num_classes=sum(self.dims))

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Tensor:
        """All numbers, as the network gives them."""
        return self.network(images)

    def loss(self, numbers: Tensor, batch: FaceBatch) -> Tensor:
        """Photometric, landmarks, and coefficients; geometry in float32."""
        with without_autocast(numbers):
            parts = (0.1 * numbers.float()).split(self.dims, -1)
            identity, expression, albedo, angles, shift, light = parts
            model, size = self.model, (self.size, self.size)
            vertices = model.shape(identity, expression)
            camera = camera_of(model, self.size, angles, shift)
            normals = camera.rotate(vertex_normals(vertices, model.triangles))
            fragments = rasterize(camera.clip(vertices, size), model.triangles, size)
            colours, seen = (
                interpolate(values, fragments, model.triangles)
                for values in (model.albedo(albedo), normals)
            )
            light = light.unflatten(-1, (9, 3))
            light = torch.cat([light[:, :1] + AMBIENT, light[:, 1:]], 1)
            shading = shade(normalize(seen).movedim(-1, 1), light)
            image = colours.movedim(-1, 1) * shading
            mask = (fragments.triangle_index >= 0).float()[:, None] * batch["masks"][:, 0]
            points = camera.project(model.landmarks(vertices))[0]
            confidence = batch["landmark_confidence"][:, 0]
            return (
                masked_l1(image, batch["images"][:, 0], mask)
                + landmark_l2(points, batch["landmarks"][:, 0], confidence, self.size)
                + 1e-4 * coefficient_l2(torch.cat([identity, expression, albedo], -1))
            )


def _network(name: str, mesh: Mesh, precision: str, device: torch.device) -> Work:
    size, count = NETWORKS[name]
    regression = Regression(name, mesh, size).to(device).train()
    regression = regression.to(memory_format=torch.channels_last)
    batch = random_batch(count, 1, size, device)
    images = batch["images"][:, 0].contiguous(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(regression.network.parameters(), lr=0.0, fused=True)
    weight = torch.full((count, sum(regression.dims)), 1e-3, device=device)

    def network() -> None:
        with _autocast(precision, device):
            numbers = regression(images)
        numbers.backward(weight.to(numbers.dtype))

    def step() -> None:
        optimizer.zero_grad()
        with _autocast(precision, device):
            loss = regression.loss(regression(images), batch)
        loss.backward()
        optimizer.step()

    step()  # so that the optimizer alone has gradients
    parts = {"step": step, "network": network, "optimizer": lambda: optimizer.step()}
    return Work(parts, mesh.name, size, count)


def built(name: str) -> tuple[Any, dict[str, Any]]:
    """A registered method as its config builds it, at a step at which it renders, and the config.

    Nothing of ``methods`` is imported by name: the class is found by its entry point.
    """
    config: Any = OmegaConf.to_container(OmegaConf.load(CONFIGS / f"{name}.yaml"), resolve=True)
    entry = next(e for e in entry_points(group="monoface.methods") if e.name == name)
    given = entry.load()
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(given, "model")
    model = {"class_path": entry.value.replace(":", "."), "init_args": config["model"]}
    method = parser.instantiate_classes(parser.parse_object({"model": model})).model
    # without a Trainer a method is at step 0, where some do not render yet
    method.__class__ = type(given.__name__, (given,), {"global_step": LATE})
    return method, config


def optimizer_of(method: Any) -> torch.optim.Optimizer:
    """The optimizer among what ``configure_optimizers`` may return."""
    configured = method.configure_optimizers()
    while not isinstance(configured, torch.optim.Optimizer):
        configured = configured["optimizer"] if isinstance(configured, dict) else configured[0]
    return configured


def _method(name: str, precision: str, device: torch.device) -> Work:
    """A step on random images; the learning rate is 0."""
    method, config = built(name)
    method = method.to(device).train()
    data = config["data"]["init_args"]
    size, b, v = data["image_size"], data["clips_per_batch"], data["frames_per_clip"]
    batch = random_batch(b, v, size, device)
    optimizer = optimizer_of(method)
    for group in optimizer.param_groups:
        group["lr"] = 0.0  # the weights stay those of the first round

    def step() -> None:
        optimizer.zero_grad()
        with _autocast(precision, device):
            loss = total(method.terms(batch), method.weights)
        loss.backward()
        optimizer.step()

    network = _networks_alone(method, step, precision, device)
    parts = {"step": step, "network": network, "optimizer": lambda: optimizer.step()}
    mesh = Path(config["model"].get("face_model", "own")).stem
    return Work(parts, mesh, size, b * v)


def _networks_alone(method: nn.Module, step: Step, precision: str, device: torch.device) -> Step:
    """Forward and backward of a method's networks (its children with parameters), on the inputs
    that they get in a step.
    """
    calls: list[tuple[nn.Module, tuple[Any, ...]]] = []

    def copy(x: Any) -> Any:
        return x.detach().clone().requires_grad_(x.requires_grad) if isinstance(x, Tensor) else x

    def record(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        calls.append((module, tuple(map(copy, inputs))))

    networks = [child for child in method.children() if any(True for _ in child.parameters())]
    hooks = [network.register_forward_pre_hook(record) for network in networks]
    step()
    for hook in hooks:
        hook.remove()

    def run() -> None:
        for module, inputs in calls:
            with _autocast(precision, device):
                outputs = _tensors(module(*inputs))
            torch.autograd.backward(outputs, [torch.full_like(each, 1e-3) for each in outputs])

    return run


def _tensors(output: Any) -> list[Tensor]:
    """Those that have gradients, of a network's output with its dicts, lists and tuples."""
    if isinstance(output, Tensor):
        return [output] if output.requires_grad else []
    parts = output.values() if isinstance(output, Mapping) else output
    known = isinstance(output, Mapping | list | tuple)
    return [tensor for part in parts for tensor in _tensors(part)] if known else []


def random_batch(b: int, v: int, size: int, device: torch.device) -> FaceBatch:
    """Random images and landmarks, full masks."""
    random = torch.Generator().manual_seed(0)
    images = torch.rand(b, v, 3, size, size, generator=random)
    landmarks = (0.2 + 0.6 * torch.rand(b, v, 68, 2, generator=random)) * size
    return FaceBatch(
        images=images.to(device),
        landmarks=landmarks.to(device),
        landmark_confidence=torch.ones(b, v, 68, device=device),
        masks=torch.ones(b, v, 1, size, size, device=device),
        sample_ids=[str(number) for number in range(b * v)],
    )


def _autocast(precision: str, device: torch.device) -> AbstractContextManager:
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)
