"""Faces and their 68 landmarks in an image, by insightface's detector; one face through a video.

insightface's code is MIT; its pretrained models are for non-commercial research only, so none is
shipped: the pack is downloaded by insightface on first use, or read from where the user has put it.
"""

from collections.abc import Sequence
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
MIN_OVERLAP = 0.3  # ours: of a face's box with that of the frame before
PATIENCE = 12  # ours: frames in which a face may be missed before it counts as gone
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
        import onnxruntime
        from insightface.app import FaceAnalysis  # seconds to import

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()  # of several processes, one each
        try:
            self.analysis = FaceAnalysis(
                name=str(folder) if folder.is_dir() else pack,
                root=str(ROOT.expanduser()),
                allowed_modules=["detection", "landmark_3d_68"],
                providers=providers(),
                sess_options=options,
            )
        except (OSError, AssertionError, RuntimeError) as error:  # requests' errors are OSErrors
            raise AssetNotFoundError(
                f"insightface's model pack '{pack}'",
                f"'{folder}', and it could not be downloaded ({type(error).__name__})",
                f"Download {PACK}.zip from the model zoo of the insightface project and place "
                f"{' and '.join(FILES)} in '{folder}'.",
                LICENCE,
            ) from error
        on_gpu = len(providers()) > 1
        self.analysis.prepare(ctx_id=0 if on_gpu else -1, det_thresh=min_score)

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


def providers() -> list[str]:
    """What onnxruntime computes with: a CUDA device where its GPU package finds one, else cores."""
    import onnxruntime

    wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
    return [name for name in wanted if name in onnxruntime.get_available_providers()]


def main_track(frames: Sequence[Sequence[Detection]]) -> list[Detection | None]:
    """The face that is seen in most frames; of equals, the larger one.

    Faces of one frame after the other are the same if their boxes overlap by ``MIN_OVERLAP``, the
    best overlap first; one that is missed for more than ``PATIENCE`` frames is another afterwards.

    Args:
        frames: the faces found in each frame.

    Returns:
        That face in each frame, None where it is not seen.
    """
    tracks: list[dict[int, Detection]] = []
    for number, faces in enumerate(frames):
        alive = [track for track in tracks if number - max(track) <= PATIENCE + 1]
        overlaps = [
            (overlap(track[max(track)], face), i, j)
            for i, track in enumerate(alive)
            for j, face in enumerate(faces)
        ]
        left_tracks, left_faces = set(range(len(alive))), set(range(len(faces)))
        for value, i, j in sorted(overlaps, reverse=True):
            if value >= MIN_OVERLAP and i in left_tracks and j in left_faces:
                alive[i][number] = faces[j]
                left_tracks.remove(i)
                left_faces.remove(j)
        tracks += [{number: faces[j]} for j in sorted(left_faces)]
    best = max(tracks, key=lambda track: (len(track), _area(track)), default={})
    return [best.get(number) for number in range(len(frames))]


def overlap(one: Detection, other: Detection) -> float:
    """Common part of the boxes of the landmarks / what both cover together."""
    (low, high), (other_low, other_high) = _box(one), _box(other)
    common = (torch.minimum(high, other_high) - torch.maximum(low, other_low)).clamp(min=0).prod()
    both = (high - low).prod() + (other_high - other_low).prod() - common
    return float(common / both.clamp(min=1e-12))


def _box(face: Detection) -> tuple[Float[Tensor, "2"], Float[Tensor, "2"]]:
    return face.landmarks.amin(0), face.landmarks.amax(0)


def _area(track: dict[int, Detection]) -> float:
    """Of the boxes of a face, their mean."""
    boxes = (_box(face) for face in track.values())
    return sum(float((high - low).prod()) for low, high in boxes) / len(track)
