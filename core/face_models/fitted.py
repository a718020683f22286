"""The faces that 300W-LP and AFLW2000-3D were labelled with: fits of the Basel Face Model 2009.

Their .mat files hold the coefficients of modes as the raw files have them (``BaselFit``); the
imported model has modes per standard deviation and does not do.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from core.face_models.files import read_mat
from core.face_models.importers import bfm2009
from core.face_models.importers.raw import RawFolder, zero_based
from core.rotation import rotation_from_euler

POSE = {"Pose_Para": (1, 7)}
FIT = POSE | {"Shape_Para": (bfm2009.MODES, 1), "Exp_Para": (bfm2009.DDFA_MODES, 1)}
"""Names and shapes of a fit in a .mat of 300W-LP or AFLW2000-3D."""


@dataclass(frozen=True)
class BaselFit:
    """Vertices of the face model that 300W-LP was fitted with, micrometres, y up."""

    mean: Float[Tensor, "n 3"]
    shape: Float[Tensor, "n 3 199"]
    expression: Float[Tensor, "n 3 29"]

    @classmethod
    def from_folder(cls, folder: Path, vertices: Int[np.ndarray, " n"]) -> "BaselFit":
        """Read the raw files of the Basel Face Model 2009.

        Args:
            folder: with 01_MorphableModel.mat, BFM_exp_idx.mat and Model_Exp.mat, as for the import
                of that model.
            vertices: which of the 53,215 are needed, 0-based.

        Raises:
            AssetNotFoundError: a file is missing.
            DataError: a file is something else.
        """
        raw = RawFolder(folder, bfm2009.KIND.licence)
        n, trimmed = 3 * bfm2009.ALL, 3 * bfm2009.TRIMMED
        kinds = {"shapeMU": (n, 1), "shapePC": (n, bfm2009.MODES)}
        basel = read_mat(raw.find(bfm2009.MORPHABLE), kinds)
        indices = read_mat(raw.find(bfm2009.TRIM), {"trimIndex": (bfm2009.TRIMMED, 1)})
        trim = zero_based(indices["trimIndex"][:, 0], bfm2009.ALL, "trimIndex of BFM_exp_idx.mat")
        kinds = {"mu_exp": (trimmed, 1), "w_exp": (trimmed, bfm2009.DDFA_MODES)}
        exp = read_mat(raw.find(bfm2009.DDFA), kinds)
        mean = _rows(basel["shapeMU"], trim[vertices]) + _rows(exp["mu_exp"], vertices)
        shape = _rows(basel["shapePC"], trim[vertices])
        return cls(mean[..., 0], shape, _rows(exp["w_exp"], vertices))

    def project(
        self,
        pose: Float[Tensor, "7"],
        shape: Float[Tensor, "199"],
        expression: Float[Tensor, "29"],
        height: int,
    ) -> Float[Tensor, "n 3"]:
        """The vertices of a fitted face in its image.

        Args:
            pose: Pose_Para of the .mat.
            shape: its Shape_Para.
            expression: its Exp_Para.
            height: of the image, pixels.

        Returns:
            x, y in pixels, z in pixels towards the camera.
        """
        points = self.mean + self.shape @ shape + self.expression @ expression
        return place(points, pose, height)


def _rows(array: np.ndarray, vertices: Int[np.ndarray, " n"]) -> Float[Tensor, "n 3 k"]:
    """The numbers of some vertices of an array (3 m, k) of x, y, z in turn."""
    kept = array.reshape(-1, 3, array.shape[1])[vertices]
    return torch.from_numpy(kept.astype(np.float32))


def place(
    points: Float[Tensor, "n 3"], pose: Float[Tensor, "7"], height: int
) -> Float[Tensor, "n 3"]:
    """Points of the model in an image: scaled, turned, moved, and from y up to y down.

    Args:
        points: micrometres, y up.
        pose: Pose_Para of the .mat.
        height: of the image, pixels.

    Returns:
        x, y in pixels, z in pixels towards the camera.
    """
    pitch, yaw, roll = pose[:3].unbind()
    x, y, z = (pose[6] * points @ rotation_from_euler(pitch, yaw, roll).T + pose[3:6]).unbind(-1)
    return torch.stack([x - 0.5, height + 0.5 - y, z], -1)  # MATLAB's pixels begin at 1
