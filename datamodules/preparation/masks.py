"""Which pixels of a crop show the face: the hull of its landmarks, skin by colour, or a network."""

from pathlib import Path

import numpy as np
import onnxruntime
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from core.detect import providers
from core.errors import AssetNotFoundError, DataError

CLASSES = 19  # of CelebAMask-HQ, in the order of the usual networks
FACE = (1, 2, 3, 4, 5, 10, 11, 12, 13)  # of them: skin, brows, eyes, nose, mouth, lips
MEAN, SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, which they want removed


class FaceParser:
    """A face parsing network that the user brings, in ONNX; none is shipped.

    It takes float32 (1, 3, h, w), RGB with ImageNet's mean and spread removed, and gives (1, 19, h,
    w) scores of CelebAMask-HQ's classes: background, skin, left and right brow, left and right eye,
    glasses, left and right ear, earring, nose, mouth, upper and lower lip, neck, necklace, cloth,
    hair, hat. Where h and w are free, 512 is used. Further outputs are not looked at.

    Args:
        path: the .onnx file.

    Raises:
        AssetNotFoundError: there is no such file.
        DataError: it is no such network.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise AssetNotFoundError(
                "face parsing network",
                f"'{path}'",
                "Export one that was trained on CelebAMask-HQ to ONNX; give it as --parsing.",
                "CelebAMask-HQ is for non-commercial research only",
            )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # the processes share the cores
        options.log_severity_level = 4
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, providers=providers())
        except Exception as error:  # onnxruntime has a class of error for each of its states
            raise DataError(f"'{path}' is not an ONNX network: {error}") from error
        self.path = path
        found = self.session.get_inputs()[0]
        if len(found.shape) != 4 or found.shape[1] != 3:
            raise DataError(f"'{path}' takes {found.shape}, wanted (1, 3, h, w)")
        self.name = found.name
        height, width = ((n if isinstance(n, int) else 512) for n in found.shape[2:])
        self.size = height, width

    def __call__(self, image: Float[Tensor, "3 h w"]) -> Float[Tensor, "1 h w"]:
        """The probability that a pixel of a crop, RGB in [0, 1], is one of ``FACE``.

        Raises:
            DataError: the network gives something else than described.
        """
        mean, spread = (image.new_tensor(v)[:, None, None] for v in (MEAN, SPREAD))
        scaled = F.interpolate(image[None], self.size, mode="bilinear", antialias=True)
        given = ((scaled - mean) / spread).numpy()
        scores = np.asarray(self.session.run(None, {self.name: given})[0])
        if scores.ndim != 4 or scores.shape[:2] != (1, CLASSES):
            raise DataError(f"'{self.path}' gives {scores.shape}, wanted (1, {CLASSES}, h, w)")
        probable = torch.from_numpy(scores).float().softmax(1)
        face = probable[:, list(FACE)].sum(1, keepdim=True)
        return F.interpolate(face, tuple(image.shape[-2:]), mode="bilinear")[0].clamp(0, 1)
