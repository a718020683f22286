"""A synthetic set in miniature: VoxCeleb's frame tree, core.truth's files, the fake face model.

No noise and no compression, so that whoever knows the truth scores zero but for rounding to bytes.
Quirks: the detector found no face in the last frame of each clip; in frame 1 a dark area covers the
right half of the image, and the mask leaves it out.
``python -m tests.fakes.truth DIR`` writes it.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from core.camera import PerspectiveCamera, frontal
from core.contracts import Reconstruction
from core.face_models import FaceModel
from core.render import render_reconstruction
from core.rotation import rotation_from_euler
from core.uv import bake, uv_grid
from tests.fakes import face_model

SIZE, TEXTURE = 80, 48


def write(root: Path, identities: int = 2, frames: int = 4, split: str = "test") -> Path:
    """One video of one clip for each person."""
    (root / "truth").mkdir(parents=True, exist_ok=True)
    face_model.write(root / "truth" / "model.npz")
    model = FaceModel(face_model.face_model_arrays())
    grid = uv_grid(model.uv, model.triangles, TEXTURE)
    people = [f"id{k:05}" for k in range(identities)]
    for seed, person in enumerate(people):
        random = torch.Generator().manual_seed(seed)
        identity, albedo = torch.randn(8, generator=random), torch.randn(4, generator=random)
        expression = torch.randn(frames, 5, generator=random)
        yaw = torch.linspace(-1.2, 0.8, frames)
        pitch, roll = 0.3 * torch.randn(2, frames, generator=random)
        camera = PerspectiveCamera(
            rotation=frontal(yaw) @ rotation_from_euler(pitch, yaw, roll),
            translation=torch.tensor([20.0, -10.0, 900.0]).repeat(frames, 1),
            focal=torch.full((frames,), 250.0),
            centre=torch.full((frames, 2), SIZE / 2),
        )
        light = 0.3 * torch.randn(frames, 9, 3, generator=random)
        light[:, 0] = 0.8
        levels = (
            (bake(model.albedo(albedo), grid, model.triangles).clamp(0, 1) * 255).round().byte()
        )
        vertices = model.shape(identity.expand(frames, -1), expression)
        landmarks = camera.project(model.landmarks(vertices))[0]
        face = Reconstruction(
            vertices=vertices[:, None],
            neutral=vertices[:, None],
            triangles=model.triangles,
            uv=model.uv,
            camera=camera.map(lambda value: value[:, None]),
            landmarks=landmarks[:, None],
            albedo_map=(levels / 255).expand(frames, 1, -1, -1, -1),
            light=light[:, None],
        )
        image, surface = render_reconstruction(face, SIZE)
        image, mask = image[:, 0].clamp(0, 1), surface.mask[:, 0]
        image[1, :, SIZE // 2 :], mask[1, :, SIZE // 2 :] = 0.1, 0
        clip = Path(person, "video", "clip")
        for k in range(frames):
            for kind, picture in (("frames", image[k]), ("masks", mask[k, 0])):
                path = root / kind / clip / f"{k:06}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                channels = picture.movedim(0, -1) if picture.dim() == 3 else picture
                Image.fromarray((channels * 255).round().byte().numpy()).save(path)
            if k < frames - 1:
                path = root / "landmarks" / clip / f"{k:06}.npy"
                path.parent.mkdir(parents=True, exist_ok=True)
                detected = landmarks[k] + 0.3 * torch.randn(68, 2, generator=random)
                np.save(path, torch.cat([detected, torch.ones(68, 1)], -1).numpy())
        path = root / "truth" / f"{clip}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        arrays = {key: value.numpy() for key, value in vars(camera).items()}
        np.savez(
            path,
            neutral=model.shape(identity).numpy(),
            identity=identity.numpy(),
            albedo=albedo.numpy(),
            albedo_map=levels.permute(1, 2, 0).numpy(),
            expression=expression.numpy(),
            light=light.numpy(),
            landmarks=landmarks.numpy(),
            hidden=np.zeros((frames, 68), bool),
            **arrays,
        )
    (root / "splits").mkdir(exist_ok=True)
    (root / "splits" / f"{split}.txt").write_text("".join(f"{person}\n" for person in people))
    return root


if __name__ == "__main__":
    print(write(Path(sys.argv[1])))
