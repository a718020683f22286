"""The ground truth of synthetic clips: what benchmarks compare a reconstruction with.

On disk, below the root of a data set in VoxCeleb's frame tree:

* ``truth/model.npz``: the face model that people were drawn from, in the format of
  ``core.face_models.model``.
* ``truth/<identity>/<video>/<clip>.npz``, for a clip of f frames (n vertices, ki, ke, ka modes):

| key         | dtype, shape       | meaning |
| ----------- | ------------------ | ------------------------------------------------------------ |
| neutral     | float32 (n, 3)     | no expression, relief that no mode explains; mm, model frame |
| identity    | float32 (ki,)      | standard deviations; the relief comes on top |
| albedo      | float32 (ka,)      | standard deviations; the map's details come on top |
| albedo_map  | uint8 (uh, uw, 3)  | reflectance as a UV map, RGB, 255 = 1 |
| expression  | float32 (f, ke)    | vertices = neutral + sum_k expression_k expression_basis_k |
| rotation    | float32 (f, 3, 3)  | perspective camera: model frame to camera frame |
| translation | float32 (f, 3)     | mm, camera frame |
| focal       | float32 (f,)       | pixels of the frame |
| centre      | float32 (f, 2)     | principal point, pixels of the frame |
| light       | float32 (f, 9, 3)  | spherical harmonics per channel, with exposure; camera frame |
| landmarks   | float32 (f, 68, 2) | where the model's landmarks are seen, pixels of the frame |
| hidden      | bool (f, 68)       | the landmark is behind something, or turned away |

The image of a frame is the reflectance map times the irradiance, up to what the set's
``manifest.json`` says was put on
top: shadows, highlights, tone curve, blur, noise, compression.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from core.camera import PerspectiveCamera
from core.errors import AssetNotFoundError, DataError
from core.face_models.model import FaceModel

CLIP_KEYS = (
    *("neutral", "identity", "albedo", "albedo_map", "expression"),
    *("rotation", "translation", "focal", "centre", "light", "landmarks", "hidden"),
)


@dataclass(frozen=True)
class Truth:
    """What is known of one frame; see this module's docstring for units and frames.

    Attributes:
        sample_id: "identity/video/clip/frame".
        model: the face model; its triangles, uv and regions hold for the vertices here.
        neutral: the person without expression, millimetres, model frame.
        expression: activation of the model's blendshapes.
        identity, albedo: coefficients, standard deviations.
        camera: without batch axes, for pixels of the frame as stored.
        light: spherical harmonics, camera frame.
        albedo_map: reflectance, RGB in [0, 1].
        landmarks: pixels of the frame.
        hidden: which landmarks are not seen.
        image_path, mask_path: of the frame's files.
    """

    sample_id: str
    model: FaceModel
    neutral: Float[Tensor, "n 3"]
    expression: Float[Tensor, " ke"]
    identity: Float[Tensor, " ki"]
    albedo: Float[Tensor, " ka"]
    camera: PerspectiveCamera
    light: Float[Tensor, "9 3"]
    albedo_map: Float[Tensor, "3 uh uw"]
    landmarks: Float[Tensor, "68 2"]
    hidden: Bool[Tensor, "68"]
    image_path: Path
    mask_path: Path

    @property
    def vertices(self) -> Float[Tensor, "n 3"]:
        """The face with its expression, millimetres, model frame, not posed."""
        return expressed(self.model, self.neutral, self.expression)

    @property
    def landmarks_3d(self) -> Float[Tensor, "68 3"]:
        """The landmarks on the face with its expression, millimetres, model frame."""
        return self.model.landmarks(self.vertices)


def expressed(
    model: FaceModel, neutral: Float[Tensor, "n 3"], expression: Float[Tensor, "*f ke"]
) -> Float[Tensor, "*f n 3"]:
    """The neutral face plus the blendshapes at their activations, millimetres."""
    offset = expression @ model.expression_basis.flatten(1)
    return neutral + offset.unflatten(-1, neutral.shape)


def load_truth(root: Path, sample_id: str) -> Truth:
    """The ground truth of one frame.

    The model and the clips read last are kept in memory.

    Args:
        root: of the data set.
        sample_id: "identity/video/clip/frame".

    Raises:
        AssetNotFoundError: the set has no ground truth for this frame.
        DataError: the sample id or the file is not as this module's docstring says.
    """
    parts = sample_id.split("/")
    if len(parts) != 4 or not parts[3].isdigit():
        raise DataError(f"sample id '{sample_id}' is not of the form identity/video/clip/frame")
    clip, frame = "/".join(parts[:3]), int(parts[3])
    arrays = _clip(*_dated(root / "truth" / f"{clip}.npz", sample_id))
    model = _model(*_dated(root / "truth" / "model.npz", sample_id))
    if frame >= len(arrays["focal"]):
        raise DataError(
            f"'{root / 'truth' / clip}.npz' knows {len(arrays['focal'])} frames; "
            f"'{sample_id}' is not among them"
        )
    name = f"{clip}/{frame:06d}"
    frames = root / "frames"
    image = next((p for p in (frames / f"{name}.jpg", frames / f"{name}.png") if p.is_file()), None)
    return Truth(
        sample_id=sample_id,
        model=model,
        neutral=arrays["neutral"],
        expression=arrays["expression"][frame],
        identity=arrays["identity"],
        albedo=arrays["albedo"],
        camera=PerspectiveCamera(
            *(arrays[key][frame] for key in ("rotation", "translation", "focal", "centre"))
        ),
        light=arrays["light"][frame],
        albedo_map=arrays["albedo_map"].permute(2, 0, 1).float() / 255,
        landmarks=arrays["landmarks"][frame],
        hidden=arrays["hidden"][frame],
        image_path=image or frames / f"{name}.jpg",
        mask_path=root / "masks" / f"{name}.png",
    )


def _dated(path: Path, sample_id: str) -> tuple[Path, int]:
    """A path with its time of change, so that a file that changed is read again."""
    try:
        return path, path.stat().st_mtime_ns
    except OSError as error:
        raise AssetNotFoundError(
            f"ground truth of '{sample_id}'",
            f"'{path}'",
            "Only synthetic sets have it; make one with python -m datamodules.synthetic --out DIR.",
        ) from error


@lru_cache(maxsize=2)
def _model(path: Path, _: int) -> FaceModel:
    return FaceModel.from_file(path)


@lru_cache(maxsize=16)
def _clip(path: Path, _: int) -> dict[str, Tensor]:
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [key for key in CLIP_KEYS if key not in file.files]
            if missing:
                raise DataError(f"'{path}' lacks the keys {missing}; it has {sorted(file.files)}")
            return {key: torch.from_numpy(file[key]) for key in CLIP_KEYS}
    except (ValueError, OSError, EOFError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"'{path}' is not a readable ground truth: {error}") from error
