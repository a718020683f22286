"""Export: what ``predict`` leaves behind for each face: meshes, pictures, numbers."""

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor

from core.camera import Camera, WeakPerspectiveCamera
from core.contracts import FaceBatch, Reconstruction
from core.errors import DataError
from core.face_models import FaceModel
from core.lighting import AMBIENT, sh_basis
from core.mesh import used
from core.mesh_files import export_glb, export_obj
from core.picture import (
    composite,
    draw_landmarks,
    face_pictures,
    resize,
    save_png,
    sheet,
)
from core.render import draw, render
from core.rotation import euler_from_rotation

FILM = "overlay.mp4"
INNER = ("eyes", "eyeballs", "mouth_interior")  # regions that close the face's openings
LAMPS = {  # where each lamp of the relighting stands, camera frame (x right, y down, z forward)
    "left": (-0.8, -0.2, -0.55),
    "top": (0.0, -0.85, -0.5),
    "right": (0.8, -0.2, -0.55),
}


class Export(Callback):
    """Writes a folder for each face, named after its photo or frame.

    ``face.obj`` with ``.mtl`` and ``.png`` (millimetres) and ``face.glb`` (metres, as glTF
    demands), both with the
    reflectance as texture; ``overlay.png``: the reconstruction in the original image;
    ``landmarks.png``;
    ``pictures.png``: input, overlay, shape, albedo and light side by side; ``albedo_map.png``;
    ``relit.png``: the face
    under other lamps, and in the light of the batch's next face; ``face.json``: pose, camera,
    landmarks, coefficients;
    ``face.npz``: the same and the vertices as arrays. For the frames of a video also
    ``overlay.mp4``.

    A method that renders its face model's region ``face`` leaves gaps between the lids and the
    lips: meshes and pictures here have the eyeballs and the inside of the mouth, too, where the
    model names them.

    What an earlier prediction left in the folder is first moved to <folder>.1, .2 and so on.

    Args:
        out: where to; <run folder>/predictions by default.
        picture_size: side of the square pictures, pixels.
        meshes_every: write meshes and pictures of only every so many-th face (overlays and numbers
            of all); for videos.
        video: write overlay.mp4 from the overlays, in the order of prediction.
        frames_per_second: of that video.
    """

    def __init__(
        self,
        out: Path | None = None,
        picture_size: int = 256,
        meshes_every: int = 1,
        video: bool = False,
        frames_per_second: float = 25.0,
    ) -> None:
        self.out, self.picture_size, self.meshes_every = out, picture_size, meshes_every
        self.video, self.frames_per_second = video, frames_per_second

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the folder.

        Raises:
            DataError: it holds something that no prediction has written.
        """
        self._folder = Path(self.out or Path(trainer.default_root_dir) / "predictions").resolve()
        if trainer.is_global_zero:
            _make_empty(self._folder)
        trainer.strategy.barrier()
        self._count = 0
        self._film: _Film | None = None

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Reconstruction,
        batch: FaceBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write what was predicted for a batch."""
        outputs = replace(outputs, triangles=closed(outputs.triangles, pl_module))
        for index, (face, frame) in enumerate(_single(outputs, batch)):
            folder = self._folder / frame["sample_ids"][0]
            folder.mkdir(parents=True, exist_ok=True)
            _numbers(folder, face, frame)  # first: by it _make_empty knows the folder
            overlay = self._original(folder, face, frame)
            if self._count % self.meshes_every == 0:
                _meshes(folder, face)
                others = outputs.light.flatten(0, 1)
                self._pictures(folder, face, frame, others[(index + 1) % len(others)])
            if self.video:
                self._film = self._film or _Film(
                    self._folder / FILM, overlay, self.frames_per_second
                )
                self._film.add(overlay)
            self._count += 1

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the film, say where everything is."""
        if self._film:
            self._film.close()
        rank_zero_info(f"{self._count} faces written to {self._folder}")

    def _original(self, folder: Path, face: Reconstruction, frame: FaceBatch) -> Tensor:
        """overlay.png and landmarks.png, in the image that the face was cropped from."""
        image = frame["originals"][0] if "originals" in frame else frame["images"][0, 0]
        camera, landmarks = in_original(face, frame)
        posed = replace(face, camera=camera)
        pictures = face_pictures(posed, (image.shape[-2], image.shape[-1]))
        overlay = composite(pictures.lit[0, 0], pictures.mask[0, 0], image)
        save_png(folder / "overlay.png", overlay)
        radius = max(1.0, float(landmarks.amax(-2).sub(landmarks.amin(-2)).max()) / 120)
        save_png(folder / "landmarks.png", draw_landmarks(image, landmarks[0, 0], radius=radius))
        return overlay

    def _pictures(
        self, folder: Path, face: Reconstruction, frame: FaceBatch, other_light: Tensor
    ) -> None:
        size = self.picture_size
        images = resize(frame["images"], size)[0, 0]
        factor = size / frame["images"].shape[-1]
        camera = face.camera.crop(
            torch.full_like(face.camera.rotation[..., 0, 0], factor),
            torch.zeros_like(face.camera.rotation[..., :2, 0]),
        )
        large = replace(face, camera=camera)
        drawn = face_pictures(large, size)
        mask = drawn.mask[0, 0]
        on_white = [
            composite(picture[0, 0], mask) for picture in (drawn.shape, drawn.albedo, drawn.light)
        ]
        overlay = composite(drawn.lit[0, 0], mask, images)
        row = torch.stack([images, overlay, *on_white])
        names = ["input", "overlay", "shape", "albedo", "light"]
        save_png(folder / "pictures.png", sheet(row[None], names))
        save_png(folder / "albedo_map.png", face.albedo_map[0, 0])

        surface = draw(large.vertices, face.triangles, face.uv, camera, size)
        strength = _irradiance(face.light[0, 0])
        lights = {"own light": face.light[0, 0]}
        for name, direction in LAMPS.items():
            lights[f"lamp {name}"] = lamp(direction, strength).to(face.light)
        lights["next face's light"] = other_light
        relit = [
            composite(
                render(surface, face.albedo_map, light[None, None]).clamp(0, 1)[0, 0],
                surface.mask[0, 0],
            )
            for light in lights.values()
        ]
        save_png(folder / "relit.png", sheet(torch.stack(relit)[None], list(lights)))


def lamp(direction: tuple[float, float, float], strength: float) -> Float[Tensor, "9 3"]:
    """A lamp and a little ambient light as spherical harmonics of the radiance, order as in
    ``core.lighting``.

    Args:
        direction: towards the lamp, camera frame.
        strength: mean irradiance of the result on the surfaces that face the viewer.
    """
    towards = torch.nn.functional.normalize(torch.tensor(direction), dim=0)
    factors = torch.tensor([math.pi] + [2 * math.pi / 3] * 3 + [math.pi / 4] * 5)
    light = sh_basis(towards) / factors  # the projection of a point of light on the basis
    light = 0.6 * light + torch.eye(9)[0] * AMBIENT * 0.6
    return (light / _irradiance(light[:, None]) * strength)[:, None].expand(9, 3)


def in_original(face: Reconstruction, frame: FaceBatch) -> tuple[Camera, Float[Tensor, "b v 68 2"]]:
    """Camera and landmarks in pixels of the image that the face was cropped from."""
    if "crop_to_image" not in frame:
        return face.camera, face.landmarks
    matrix = frame["crop_to_image"]  # upright: a scale and an offset
    scale, offset = matrix[..., 0, 0], matrix[..., :2, 2]
    landmarks = face.landmarks * scale[..., None, None] + offset[..., None, :]
    return face.camera.crop(scale, offset), landmarks


def _single(
    outputs: Reconstruction, batch: FaceBatch
) -> Iterator[tuple[Reconstruction, FaceBatch]]:
    """Each of the b x v faces by itself, on the CPU, with b = v = 1."""
    b, v = outputs.vertices.shape[:2]
    for index in range(b * v):
        at = (slice(index // v, index // v + 1), slice(index % v, index % v + 1))

        def pick(value: Any, at: Any = at) -> Any:
            return value[at].cpu() if value.dim() > 1 else value

        batched = ("vertices", "neutral", "landmarks", "albedo_map", "light")
        face = Reconstruction(
            **{name: pick(getattr(outputs, name)) for name in batched},
            triangles=outputs.triangles.cpu(),
            uv=outputs.uv.cpu(),
            camera=outputs.camera.map(pick),
            coefficients={name: pick(value) for name, value in outputs.coefficients.items()},
        )
        frame: Any = {
            name: [value[index]] if isinstance(value, list) else pick(value)
            for name, value in batch.items()
            if isinstance(value, list) or (isinstance(value, Tensor) and value.shape[:2] == (b, v))
        }
        yield face, frame


def _make_empty(folder: Path) -> None:
    """Make a folder; one that holds predictions is moved aside."""
    there = list(folder.iterdir()) if folder.is_dir() else []
    if there:
        foreign = [p.name for p in there if p.name != FILM and not any(p.glob("**/face.json"))]
        if foreign:
            raise DataError(
                f"'{folder}' holds {sorted(foreign)[:5]}, which no prediction wrote: give a new or "
                "an empty folder"
            )
        number = 1
        while (earlier := folder.with_name(f"{folder.name}.{number}")).exists():
            number += 1
        folder.rename(earlier)
        rank_zero_info(f"{folder} held an earlier prediction: moved to {earlier}")
    folder.mkdir(parents=True, exist_ok=True)


def closed(triangles: Int[Tensor, "t 3"], method: object) -> Int[Tensor, "s 3"]:
    """The triangles, with the face's eyeballs and mouth if they are a model's region ``face``."""
    model = getattr(method, "face_model", None)
    if not isinstance(model, FaceModel) or not torch.equal(triangles, model.part("face")):
        return triangles
    return model.part("face", *(name for name in INNER if name in model.region_names))


def _meshes(folder: Path, face: Reconstruction) -> None:
    kept, triangles = used(face.triangles)
    arguments = (face.vertices[0, 0, kept], triangles, face.uv[kept], face.albedo_map[0, 0])
    export_obj(folder / "face.obj", *arguments)
    export_glb(folder / "face.glb", *arguments)


def _numbers(folder: Path, face: Reconstruction, frame: FaceBatch) -> None:
    """face.json and face.npz."""
    camera, landmarks = in_original(face, frame)
    pitch, yaw, roll = (
        math.degrees(angle[0, 0].item()) for angle in euler_from_rotation(camera.head_rotation)
    )
    kind = "weak perspective" if isinstance(camera, WeakPerspectiveCamera) else "perspective"
    parameters = {
        name: value[0, 0].tolist() for name, value in vars(camera).items() if name != "rotation"
    }
    coefficients = {name: value[0, 0].tolist() for name, value in face.coefficients.items()}
    record = {
        "sample": frame["sample_ids"][0],
        "pose_degrees": {"pitch": pitch, "yaw": yaw, "roll": roll},
        "camera": {
            "kind": kind,
            "for": "pixels of the original image, origin at its top left corner; millimetres",
            "rotation": camera.rotation[0, 0].tolist(),
            **parameters,
        },
        "landmarks_pixels": landmarks[0, 0].tolist(),
        "light": face.light[0, 0].tolist(),
        "coefficients": coefficients,
    }
    (folder / "face.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    arrays: dict[str, Any] = {
        "vertices": face.vertices[0, 0].numpy(),
        "neutral": face.neutral[0, 0].numpy(),
        "triangles": face.triangles.numpy(),
        "uv": face.uv.numpy(),
        "landmarks": landmarks[0, 0].numpy(),
        "light": face.light[0, 0].numpy(),
    }
    arrays |= {f"camera_{name}": value[0, 0].numpy() for name, value in vars(camera).items()}
    arrays |= {f"coefficients_{name}": np.array(value) for name, value in coefficients.items()}
    np.savez_compressed(folder / "face.npz", **arrays)


def _irradiance(light: Float[Tensor, "9 c"]) -> float:
    """Mean over the directions that face the viewer of the irradiance, mean of the channels."""
    steps = torch.linspace(-0.7, 0.7, 7)
    x, y = torch.meshgrid(steps, steps, indexing="ij")
    normals = torch.stack([x, y, -(1 - (x**2 + y**2).clamp(max=0.99)).sqrt()], -1)
    return float((sh_basis(normals) @ light.cpu()).clamp(min=0).mean())


class _Film:
    """An H.264 file, a picture at a time."""

    def __init__(self, path: Path, first: Float[Tensor, "3 h w"], rate: float) -> None:
        import av

        self.container = av.open(str(path), mode="w")
        self.stream = self.container.add_stream("libx264", rate=Fraction(rate).limit_denominator())
        self.height, self.width = (side // 2 * 2 for side in first.shape[-2:])
        self.stream.height, self.stream.width = self.height, self.width
        self.stream.pix_fmt = "yuv420p"

    def add(self, picture: Float[Tensor, "3 h w"]) -> None:
        """A picture of the size of the first."""
        import av

        levels = (picture[:, : self.height, : self.width].clamp(0, 1) * 255).round().byte()
        frame = av.VideoFrame.from_ndarray(levels.permute(1, 2, 0).contiguous().numpy(), "rgb24")
        self.container.mux(self.stream.encode(frame))

    def close(self) -> None:
        """Finish the file."""
        self.container.mux(self.stream.encode())
        self.container.close()
