"""Features of a frozen face recognition network, as the perceptual loss of Deng et al. needs them.

No network is shipped. ``Recognizer`` reads an ONNX file of insightface (ArcFace; its models are for
non-commercial research only), a state dict of insightface's ``arcface_torch``, or the small network
that ``core.recognizer`` trains.
"""

import hashlib
import math
from collections import OrderedDict
from contextlib import nullcontext
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from core.errors import AssetNotFoundError, DataError, MonofaceError
from core.image import pixel_centres, sample
from core.iresnet import iresnet_of
from core.landmarks import five_points
from core.precision import at_least_float32, without_autocast
from core.recognizer import FORMAT, small_recognizer_of

SIDE = 112  # pixels of an aligned face
# insightface's: eyes, nose tip, mouth corners. There the first pixel's centre is (0, 0), so half a
# pixel is added.
TEMPLATE = (
    (38.2946, 51.6963),
    (73.5318, 51.5014),
    (56.0252, 71.7366),
    (41.5493, 92.3655),
    (70.7299, 92.2041),
)
LARGE = 162  # pixels of an image whose face is about as large as the template's, margin and all
SMALLEST = 1e-3  # of the image's side: points closer together than this are in one place
LICENCE = "insightface's models are for non-commercial research only."
REMEDY = (
    "Train the small one: python -m callbacks.recognizer --out {path}; or take ArcFace: download "
    "buffalo_l.zip from the model zoo of the insightface project and give its w600k_r50.onnx as "
    "model.recognizer; or do without: model.weights.perceptual=0."
)


def align_112(
    images: Float[Tensor, "*b c h w"], landmarks: Float[Tensor, "*b 68 2"]
) -> Float[Tensor, "*b c 112 112"]:
    """Faces moved by the similarity that brings their eyes, nose tip and mouth corners to ArcFace's
    template, in least squares.

    Bilinear, black outside the image; from images of 162 pixels on each pixel is the mean of k x k
    samples, k by the images' size alone, so that no image's result depends on its neighbours.
    Differentiable in images and landmarks. Faces whose points are all in one place, as those of
    landmarks that are not known, are not aligned: their whole image is taken.

    Args:
        images: any number of channels.
        landmarks: pixels of ``images``.
    """
    batch, width = images.shape[:-3], images.shape[-1]
    samples = math.ceil(width / LARGE)
    with without_autocast(images):
        points = five_points(at_least_float32(landmarks))
        back = _template_to(points, width)
        centres = pixel_centres(samples * SIDE, points).flatten(0, 1) / samples
        pixels = centres @ back[..., :2, :2].mT + back[..., None, :2, 2]
        fine = sample(images, pixels.unflatten(-2, (samples * SIDE, samples * SIDE)))
        pooled = F.avg_pool2d(fine.reshape(-1, *fine.shape[-3:]), samples)
    return pooled.view(*batch, -1, SIDE, SIDE)


def _template_to(points: Float[Tensor, "*b 5 2"], width: int) -> Float[Tensor, "*b 2 3"]:
    """The inverse of the similarity without reflection that moves points to the template in least
    squares; where they are in one place, what shows the whole image.
    """
    target = points.new_tensor(TEMPLATE) + 0.5
    middle, goal = points.mean(-2), target.mean(-2)
    p, q = points - middle[..., None, :], target - goal
    # As complex numbers the similarity's factor is sum(conj(p) q) / sum(|p|^2).
    along = (p * q).sum((-2, -1))
    across = (p[..., 0] * q[..., 1] - p[..., 1] * q[..., 0]).sum(-1)
    known = p.square().sum((-2, -1)) > (SMALLEST * width) ** 2
    size = torch.where(known, along.square() + across.square(), 1.0)
    inverse = p.square().sum((-2, -1)) / size
    whole = torch.full_like(inverse, width / SIDE)
    a = torch.where(known, along * inverse, whole)
    b = torch.where(known, across * inverse, 0.0)
    middle = torch.where(known[..., None], middle, whole[..., None] * goal)
    linear = torch.stack([torch.stack([a, b], -1), torch.stack([-b, a], -1)], -2)
    offset = middle - (linear @ goal[:, None]).squeeze(-1)
    return torch.cat([linear, offset[..., None]], -1)


class Recognizer(nn.Module):
    """A frozen face recognition network; always in evaluation mode, without gradients of its own.

    Args:
        path: an .onnx file (needs the package onnx2torch), or a .pt or .pth file of
            ``core.recognizer`` or of insightface's ``arcface_torch``.
        half: compute in bfloat16. Otherwise the precision is that of the surroundings, also
            bfloat16 under autocast. Features come in float32 in any case.
        remembered: of so many pictures ``photo_features`` keeps the result, the last ones.

    Raises:
        AssetNotFoundError: there is no such file.
        DataError: it holds no network that can be used.
        MonofaceError: onnx2torch is missing.
    """

    def __init__(self, path: str | Path, half: bool = False, remembered: int = 0) -> None:
        super().__init__()
        file = Path(path).expanduser()
        if not file.is_file():
            raise AssetNotFoundError(
                "face recognition network", f"'{file}'", REMEDY.format(path=path), LICENCE
            )
        network = _from_onnx(file) if file.suffix == ".onnx" else _from_torch(file)
        self.network = network.requires_grad_(False).to(memory_format=torch.channels_last)
        self.in_bfloat16 = half  # not "half", a method of every module
        self.memory = FeatureMemory(remembered)
        self.eval()

    def train(self, mode: bool = True) -> "Recognizer":
        """Stays in evaluation mode: training a method must not move the batch norms."""
        return super().train(False)

    def features(self, faces: Float[Tensor, "*b 3 112 112"]) -> Float[Tensor, "*b d"]:
        """Unit vectors; the cosine of two says how alike the faces are.

        Args:
            faces: of ``align_112``, RGB in [0, 1]; gradients flow into them.
        """
        inputs = 2 * faces.reshape(-1, 3, SIDE, SIDE) - 1
        kind = faces.device.type
        with torch.autocast(kind, torch.bfloat16) if self.in_bfloat16 else nullcontext():
            embeddings = self.network(inputs.contiguous(memory_format=torch.channels_last))
        unit = F.normalize(embeddings.float(), dim=-1)
        return unit.view(*faces.shape[:-3], -1)

    @torch.no_grad()
    def photo_features(
        self, images: Float[Tensor, "*b 3 h w"], landmarks: Float[Tensor, "*b 68 2"]
    ) -> Float[Tensor, "*b d"]:
        """``features`` of the aligned images, without gradients, remembered from time to time.

        A picture is known again by all its pixels and landmarks: one that was flipped, moved or
        recoloured is another, so what is remembered is always right, but only pays for data
        without augmentation.
        """
        batch = images.shape[:-3]
        pictures, points = images.reshape(-1, *images.shape[-3:]), landmarks.reshape(-1, 68, 2)

        def compute(rows: list[int]) -> Tensor:
            return self.features(align_112(pictures[rows], points[rows]))

        return self.memory.get(pictures, points, compute).view(*batch, -1)


class FeatureMemory:
    """The last so many pictures' features, on the CPU.

    Args:
        size: how many; 0 = none, every picture is computed.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.kept: OrderedDict[bytes, Tensor] = OrderedDict()

    def get(self, pictures: Tensor, points: Tensor, compute: Any) -> Tensor:
        """The features of each picture; those that are not known by ``compute(rows)``."""
        if not self.size:
            return compute(list(range(len(pictures))))
        keys = [_digest(*pair) for pair in zip(pictures.cpu(), points.cpu(), strict=True)]
        first = {key: row for row, key in enumerate(keys) if key not in self.kept}
        if first:
            for key, feature in zip(first, compute(list(first.values())).cpu(), strict=True):
                self.kept[key] = feature
        found = torch.stack([self.kept[key] for key in keys]).to(pictures.device)
        for key in keys:
            self.kept.move_to_end(key)
        while len(self.kept) > self.size:
            self.kept.popitem(last=False)
        return found


def _digest(*tensors: Tensor) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        digest.update(tensor.numpy().tobytes())
    return digest.digest()


def _from_torch(path: Path) -> nn.Module:
    """A .pt file of ``core.recognizer``, or a state dict of arcface_torch."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if content.get("format") == FORMAT:
            return small_recognizer_of(content)
        return iresnet_of(content)
    except (KeyError, RuntimeError, AttributeError, UnpicklingError, EOFError) as error:
        raise DataError(
            f"'{path}' is neither a file of core.recognizer nor a state dict of arcface_torch "
            f"({type(error).__name__}: {str(error).splitlines()[0]}); give one of these or an .onnx"
        ) from error


def _from_onnx(path: Path) -> nn.Module:
    """An ONNX graph as a torch module."""
    try:
        import onnx
        from google.protobuf.message import DecodeError
        from onnx2torch import convert
    except ImportError as error:
        raise MonofaceError(
            f"'{path}' needs the package '{error.name}': pip install 'monoface[perceptual]'"
        ) from error
    try:
        model = onnx.load(str(path))
    except DecodeError as error:
        raise DataError(f"'{path}' is no ONNX file: {error}") from error
    _check_input(model, path)
    _without_identities(model.graph)
    try:
        return convert(model)
    except (NotImplementedError, KeyError, RuntimeError, ValueError) as error:
        raise DataError(
            f"onnx2torch cannot convert '{path}' ({type(error).__name__}: "
            f"{str(error).splitlines()[0]}); give a recognition network of insightface, such as "
            "w600k_r50.onnx, or one exported with opset 11 by torch.onnx.export(dynamo=False)"
        ) from error


def _check_input(model: Any, path: Path) -> None:
    """Raise DataError unless the graph takes aligned faces in [-1, 1] and gives vectors."""
    weights = {weight.name for weight in model.graph.initializer}  # old files name them as inputs
    inputs = [value for value in model.graph.input if value.name not in weights]
    outputs = model.graph.output
    shape = [axis.dim_value for value in inputs for axis in value.type.tensor_type.shape.dim]
    if shape[1:] != [3, SIDE, SIDE] or len(outputs) != 1:
        raise DataError(
            f"'{path}' takes {shape} and gives {len(outputs)} outputs; a face recognition network "
            f"takes (n, 3, {SIDE}, {SIDE}) and gives one: of insightface's pack w600k_r50.onnx"
        )
    first = {node.op_type for node in model.graph.node[:8]}
    if {"Sub", "Mul"} <= first:
        raise DataError(
            f"'{path}' scales its input itself, as insightface's oldest models do; give a newer "
            "one, such as w600k_r50.onnx"
        )


def _without_identities(graph: Any) -> None:
    """Names that Identity nodes give to others' weights become those: onnx2torch cannot see
    through.
    """
    source = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Identity"}
    outputs = {value.name for value in graph.output}
    for node in list(graph.node):
        for k, name in enumerate(node.input):
            while name in source:
                name = source[name]
            node.input[k] = name
        if node.op_type == "Identity" and node.output[0] not in outputs:
            graph.node.remove(node)
