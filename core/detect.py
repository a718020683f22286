"""Faces and their 68 landmarks in an image, by insightface's detector.

insightface's code is MIT; its pretrained models are for non-commercial research only, so none is
shipped: the pack is downloaded by insightface on first use, or read from where the user has put it.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from core.errors import AssetNotFoundError

PACK = "buffalo_l"
ROOT = Path("~/.insightface")
FILES = ("det_10g.onnx", "1k3d68.onnx")  # detection with 5 points, 68 landmarks
LICENCE = "insightface's models are for non-commercial research only."


@dataclass(frozen=True)
class Detection:
    """One face.

    Attributes:
        landmarks: 68 points, pixels of the image (origin at its top left corner).
        score: the detector's confidence in [0, 1].
    """

    landmarks: Float[Tensor, "68 2"]
    score: float


class FaceDetector:
    """insightface's detector and 68 landmark network.

    Args:
        pack: the name of a model pack, or a folder that holds its .onnx files.
        min_score: weaker detections are left out.

    Raises:
        AssetNotFoundError: the pack is not there and cannot be downloaded; says which file to place
            where.
    """

    def __init__(self, pack: str = PACK, min_score: float = 0.5) -> None:
        folder = Path(pack) if Path(pack).is_dir() else (ROOT / "models" / pack).expanduser()
        from insightface.app import FaceAnalysis  # seconds to import

        try:
            self.analysis = FaceAnalysis(
                name=str(folder) if folder.is_dir() else pack,
                root=str(ROOT.expanduser()),
                allowed_modules=["detection", "landmark_3d_68"],
                providers=["CPUExecutionProvider"],
            )
        except (OSError, AssertionError, RuntimeError) as error:  # requests' errors are OSErrors
            raise AssetNotFoundError(
                f"insightface's model pack '{pack}'",
                f"'{folder}', and it could not be downloaded ({type(error).__name__})",
                f"Download {PACK}.zip from the model zoo of the insightface project and place "
                f"{' and '.join(FILES)} in '{folder}'.",
                LICENCE,
            ) from error
        self.analysis.prepare(ctx_id=-1, det_thresh=min_score)

    def __call__(self, image: Float[Tensor, "3 h w"]) -> list[Detection]:
        """The faces of an RGB image in [0, 1], the largest first."""
        bgr = (image.flip(0).permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
        faces = sorted(self.analysis.get(bgr), key=lambda f: -np.ptp(f.bbox[::2]))
        return [
            Detection(
                # insightface's points are pixel indices: the first pixel's centre is (0, 0).
                torch.from_numpy(np.asarray(face.landmark_3d_68)[:, :2]).float() + 0.5,
                float(face.det_score),
            )
            for face in faces
        ]
