"""FLAME 2020 and 2023 (Li et al. 2017): the linear part, with the jaw's rotation made linear.

The raw folder holds:

* ``generic_model.pkl`` (2020) or ``flame2023.pkl``: a Python 2 pickle of arrays (chumpy's are read
  without chumpy; nothing of the file is executed): v_template (5023, 3) in metres; shapedirs
  (5023, 3, 400), 300 of identity and 100 of expression, per standard deviation; posedirs
  (5023, 3, 36); J_regressor (5, 5023); weights (5023, 5); f (9976, 3) counted from 0.
* ``landmark_embedding.npy``: full_lmk_faces_idx (1, 68) and full_lmk_bary_coords (1, 68, 3), the 68
  landmarks; dynamic_lmk_faces_idx (79, 17) and dynamic_lmk_bary_coords (79, 17, 3), where the jaw's
  points slide to. FLAME picks them by the yaw, we the one farthest out (``contour``); so that a
  frontal face keeps its 68, those farther from the middle than the landmark itself are left out.

**Pose**: neck and eyes are frozen at zero. The jaw is not: FLAME's expressions are without jaw pose
and could not open the mouth. Its rotation is used to first order (blend skinning and pose
correctives, both differentiated at zero), as two more modes that come first, ``jaw_open`` (about x)
and ``jaw_left`` (about y), 0.2 rad each; at 0.2 rad the chin is 2 mm beside its true circle.

FLAME has no colour per vertex: the albedo is a stand-in (see ``complete``).
"""

from typing import Any

import numpy as np
from jaxtyping import Float

from core import landmarks
from core.errors import DataError
from core.face_models.contour import CHIN
from core.face_models.files import read_embedding, read_pickle
from core.face_models.importers.raw import Kind, Parts, RawFile, RawFolder, zero_based

VERTICES, IDENTITY, EXPRESSION = 5023, 300, 100
JAW = 2  # of the joints: root, neck, jaw, left eye, right eye
JAW_RADIANS = 0.2  # of one unit of the jaw's modes
METRE = 1000.0  # millimetres
MODEL = RawFile(
    ("generic_model.pkl", "flame2023.pkl", "flame2023_no_jaw.pkl", "FLAME2020/generic_model.pkl"),
    "Register at flame.is.tue.mpg.de and download FLAME 2020 or 2023.",
)
EMBEDDING = RawFile(
    ("landmark_embedding.npy",),
    "It is part of DECA (folder data) and of its successors.",
)
SHAPES: dict[str, tuple[int | None, ...]] = {
    "v_template": (VERTICES, 3),
    "shapedirs": (VERTICES, 3, IDENTITY + EXPRESSION),
    "posedirs": (VERTICES, 3, 36),
    "J_regressor": (5, VERTICES),
    "weights": (VERTICES, 5),
    "f": (None, 3),
}
EMBEDDED: dict[str, tuple[int | None, ...]] = {
    "full_lmk_faces_idx": (1, 68),
    "full_lmk_bary_coords": (1, 68, 3),
    "dynamic_lmk_faces_idx": (None, 17),
    "dynamic_lmk_bary_coords": (None, 17, 3),
}


def read(raw: RawFolder, variant: str) -> Parts:
    """The parts of the model; there is one variant.

    Raises:
        AssetNotFoundError: a file is missing.
        DataError: a file is not what the table of this module says, or wants to execute code.
    """
    path, where = raw.find(MODEL), raw.find(EMBEDDING)
    flame, embedding = read_pickle(path), read_embedding(where)
    _check(flame, SHAPES, str(path))
    _check(embedding, EMBEDDED, str(where))
    triangles = zero_based(flame["f"], VERTICES, f"f of {path.name}", 0)
    modes = METRE * flame["shapedirs"].transpose(2, 0, 1)
    jaw_modes = [_jaw_mode(flame, axis) for axis in ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))]

    def points(kind: str) -> tuple[np.ndarray, np.ndarray]:
        faces = zero_based(embedding[f"{kind}_lmk_faces_idx"], len(triangles), str(where), 0)
        return triangles[faces], embedding[f"{kind}_lmk_bary_coords"].astype(np.float32)

    corners, weights = points("full")
    sliding, shares = points("dynamic")
    mean = (METRE * flame["v_template"]).astype(np.float32)

    def aside(corners: np.ndarray, weights: np.ndarray) -> np.ndarray:
        return np.abs((mean[corners, 0] * weights).sum(-1))

    line = slice(len(landmarks.JAW))
    beyond = aside(sliding, shares) > aside(corners[0, line], weights[0, line])
    beyond[:, CHIN] = True  # the tip of the chin does not slide
    sliding = np.where(beyond[..., None], corners[0, line], sliding)
    shares = np.where(beyond[..., None], weights[0, line], shares)
    return Parts(
        mean=mean,
        triangles=triangles,
        identity_basis=np.ascontiguousarray(modes[:IDENTITY], np.float32),
        expression_basis=np.concatenate([jaw_modes, modes[IDENTITY:]]).astype(np.float32),
        expression_names=["jaw_open", "jaw_left", *(f"expression{k}" for k in range(EXPRESSION))],
        landmarks=(corners[0], weights[0]),
        contour=(sliding.transpose(1, 0, 2), shares.transpose(1, 0, 2)),
        notes=["pose: neck and eyes frozen, the jaw's rotation linear (two modes of 0.2 rad)"],
    )


KIND = Kind(
    title="FLAME 2020 or 2023 (Li et al. 2017)",
    licence="FLAME: non-commercial research only, not to be passed on (FLAME 2023 Open: CC BY 4.0)",
    source="flame.is.tue.mpg.de (registration), DECA (landmark_embedding.npy)",
    gives="300 identity, 100 expression and 2 jaw modes, sliding jaw landmarks; albedo a stand-in",
    variants=("head",),
    read=read,
)


def _jaw_mode(
    flame: dict[str, np.ndarray], axis: tuple[float, float, float]
) -> Float[np.ndarray, "5023 3"]:
    """The derivative of the posed mesh by the jaw's angle about an axis, times 0.2 rad, in mm."""
    x, y, z = axis
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    template = flame["v_template"]
    joint = flame["J_regressor"][JAW] @ template
    corrective = flame["posedirs"][..., 9 * (JAW - 1) : 9 * JAW] @ cross.ravel()
    turned = flame["weights"][:, JAW, None] * ((template - joint) @ cross.T)
    return METRE * JAW_RADIANS * (corrective + turned)


def _check(arrays: dict[str, Any], shapes: dict[str, tuple[int | None, ...]], where: str) -> None:
    """Raise DataError unless these keys are there, arrays of these shapes."""
    for key, wanted in shapes.items():
        got = np.shape(arrays[key]) if key in arrays else None
        if (
            got is None
            or len(got) != len(wanted)
            or any(w not in (None, g) for g, w in zip(got, wanted, strict=True))
        ):
            raise DataError(
                f"'{where}': '{key}' is {got or 'missing'}, wanted {wanted}; it has "
                f"{sorted(arrays)}. FLAME 2020 or 2023 is wanted"
            )
