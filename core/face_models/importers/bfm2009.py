"""Basel Face Model 2009 with expressions of Guo et al. or of 3DDFA (Paysan et al. 2009).

The raw folder holds (MATLAB indices counted from 1, geometry in micrometres, colours 0..255):

* ``01_MorphableModel.mat``: shapeMU (160470, 1); shapePC (160470, 199), of unit length; shapeEV
  (199, 1), the *standard deviations*; texMU, texPC, texEV likewise; tl (106466, 3), clockwise.
* ``BFM_exp_idx.mat``: trimIndex (53215, 1), of the 53,490 vertices those of 300W-LP and 3DDFA.
* ``BFM_front_idx.mat``: idx (35709, 1), of these the face of Deng et al. and MGCNet.
* ``facemodel_info.mat``, of that face: tri (70789, 3), keypoints (1, 68), frontmask2 and skinmask
  (1, 35709).
* ``Exp_Pca.bin``, ``std_exp.txt``: 79 expression modes on the 53,215 vertices, and their deviations
  (Guo et al. 2018, CNN-based real-time dense face reconstruction); int32 79, then float32: the mean
  and 79 modes, xyz of each vertex.
* ``Model_Exp.mat``, 3DDFA's: w_exp (159645, 29), sigma_exp (29, 1), mu_exp (159645, 1).

Variants: ``35709`` (Deng et al. 2019, MGCNet; its origin is moved to the mean of the vertices, as
in Deng et al.'s code, and Guo et al.'s mean expression is left out, as there) and ``53215``
(300W-LP, 3DDFA; not moved, so that 300W-LP's poses hold; 3DDFA's mean expression is added to the
shape). Of the two bases of expressions each takes its own where it is there, else the other.
"""

import numpy as np
from jaxtyping import Float, Int

from core.errors import DataError
from core.face_models.files import read_mat
from core.face_models.importers.raw import (
    Kind,
    Parts,
    RawFile,
    RawFolder,
    at_vertices,
    renumbered,
    zero_based,
)

ALL, TRIMMED, FRONT = 53490, 53215, 35709
MODES, GUO_MODES, DDFA_MODES = 199, 79, 29
MICROMETRES = 1000.0  # in a millimetre
# Of the 53,215 vertices, counted from 0 (300W-LP's keypoints).
KEYPOINTS = (
    21873, 22149, 21653, 21036, 43236, 44918, 46166, 47135, 47914, 48695, 49667, 50924, 52613,
    33678, 33005, 32469, 32709, 38695, 39392, 39782, 39987, 40154, 40893, 41059, 41267, 41661,
    42367, 8161, 8177, 8187, 8192, 6515, 7243, 8204, 9163, 9883, 2215, 3886, 4920, 5828, 4801,
    3640, 10455, 11353, 12383, 14066, 12653, 11492, 5522, 6025, 7495, 8215, 8935, 10395, 10795,
    9555, 8836, 8236, 7636, 6915, 5909, 7384, 8223, 9064, 10537, 8829, 8229, 7629,
)  # fmt: skip

DENG = "It is part of Deep3DFaceRecon_pytorch (folder BFM) and of Deep3DFaceReconstruction (MIT)."
MORPHABLE = RawFile(
    ("01_MorphableModel.mat", "PublicMM1/01_MorphableModel.mat"),
    "Sign the form of the Basel Face Model 2009 at faces.dmi.unibas.ch; it comes as PublicMM1.",
)
TRIM = RawFile(("BFM_exp_idx.mat",), DENG)
FRONT_INDEX = RawFile(("BFM_front_idx.mat",), DENG)
INFO = RawFile(("facemodel_info.mat",), DENG)
GUO = RawFile(
    ("Exp_Pca.bin",),
    "It is in CoarseData.zip of github.com/Juyong/3DFace (Guo et al. 2018), for research only.",
)
GUO_STD = RawFile(("std_exp.txt",), DENG)
DDFA = RawFile(
    ("Model_Exp.mat", "Model_Expression.mat"),
    "It comes with 300W-LP's code (ModelGeneration, Zhu et al. 2016).",
)


def read(raw: RawFolder, variant: str) -> Parts:
    """The parts of one variant.

    Raises:
        AssetNotFoundError: a file is missing.
        DataError: a file is not what the table of this module says.
    """
    n = 3 * ALL
    path = raw.find(MORPHABLE)
    kinds: dict[str, tuple[int | None, ...]] = {"tl": (None, 3)}
    for kind in ("shape", "tex"):
        kinds |= {f"{kind}MU": (n, 1), f"{kind}PC": (n, MODES), f"{kind}EV": (MODES, 1)}
    basel = read_mat(path, kinds)
    indices = read_mat(raw.find(TRIM), {"trimIndex": (TRIMMED, 1)})["trimIndex"]
    trimmed = zero_based(indices[:, 0], ALL, "trimIndex of BFM_exp_idx.mat")
    corners = renumbered(zero_based(basel["tl"], ALL, f"tl of {path.name}"), trimmed, ALL)

    guo_first = variant == "35709"
    expressions, mean_expression, notes = _expressions(raw, guo_first)
    if variant == "35709":
        idx = read_mat(raw.find(FRONT_INDEX), {"idx": (FRONT, 1)})["idx"][:, 0]
        front = zero_based(idx, TRIMMED, "idx of BFM_front_idx.mat")
        shapes: dict[str, tuple[int | None, ...]] = {
            "tri": (None, 3),
            "keypoints": (1, 68),
            "frontmask2": (1, FRONT),
            "skinmask": (1, FRONT),
        }
        info = read_mat(raw.find(INFO), shapes)
        corners = zero_based(info["tri"], FRONT, "tri of facemodel_info.mat")
        keypoints = zero_based(info["keypoints"][0], FRONT, "keypoints of facemodel_info.mat")
        regions = {"face": info["frontmask2"][0] > 0.5, "skin": info["skinmask"][0] > 0.5}
    else:
        front, keypoints, regions = np.arange(TRIMMED), np.array(KEYPOINTS), {}

    kept = trimmed[front]
    mean, identity = _linear(basel, "shape", kept, MICROMETRES)
    albedo_mean, albedo = _linear(basel, "tex", kept, 255.0)
    mean = mean + mean_expression[front]
    if variant == "35709":
        mean = mean - mean.mean(0)
    return Parts(
        mean=mean,
        triangles=corners,
        identity_basis=identity,
        expression_basis=np.ascontiguousarray(expressions[:, front]),
        expression_names=[f"expression{k}" for k in range(len(expressions))],
        landmarks=at_vertices(keypoints),
        albedo_mean=albedo_mean,
        albedo_basis=albedo,
        regions=regions,
        notes=notes,
    )


KIND = Kind(
    title="Basel Face Model 2009 (Paysan et al. 2009) with expressions",
    licence="Basel Face Model 2009: research only, not to be passed on; expressions: research only",
    source="faces.dmi.unibas.ch (form), Deep3DFaceRecon_pytorch (index files), Juyong/3DFace",
    gives="199 identity, 79 or 29 expression, 199 albedo modes",
    variants=("35709", "53215"),
    read=read,
)


def _linear(
    basel: dict[str, np.ndarray], kind: str, kept: Int[np.ndarray, " m"], unit: float
) -> tuple[Float[np.ndarray, "m 3"], Float[np.ndarray, "k m 3"]]:
    """Mean and modes per standard deviation of the kept vertices."""
    mean = basel[f"{kind}MU"].reshape(ALL, 3)[kept] / unit
    modes = basel[f"{kind}PC"].T.reshape(-1, ALL, 3)[:, kept].astype(np.float32, copy=False)
    modes *= (basel[f"{kind}EV"] / unit).astype(np.float32)[..., None]
    return mean.astype(np.float32), modes


def _expressions(
    raw: RawFolder, guo_first: bool
) -> tuple[Float[np.ndarray, "k 53215 3"], Float[np.ndarray, "53215 3"], list[str]]:
    """Modes in mm per standard deviation, what belongs to the mean shape, and a note."""
    order = (GUO, DDFA) if guo_first else (DDFA, GUO)
    path = raw.find_any(*order) or raw.find(order[0])
    if path.name not in GUO.names:
        shapes: dict[str, tuple[int | None, ...]] = {
            "w_exp": (3 * TRIMMED, DDFA_MODES),
            "sigma_exp": (DDFA_MODES, 1),
            "mu_exp": (3 * TRIMMED, 1),
        }
        found = read_mat(path, shapes)
        modes = (found["w_exp"] * (found["sigma_exp"][:, 0] / MICROMETRES)).astype(np.float32)
        mean = (found["mu_exp"] / MICROMETRES).astype(np.float32).reshape(TRIMMED, 3)
        modes = np.ascontiguousarray(modes.T).reshape(-1, TRIMMED, 3)
        return modes, mean, ["expressions: 3DDFA's 29 modes (Zhu et al. 2016)"]
    wanted = 4 + 4 * 3 * TRIMMED * (GUO_MODES + 1)
    if path.stat().st_size != wanted:
        raise DataError(
            f"'{path}' has {path.stat().st_size} bytes, wanted {wanted} (79 modes of 53,215 "
            "vertices); download it again"
        )
    with path.open("rb") as stream:
        count = int(np.fromfile(stream, "<i4", 1)[0])
        modes = np.fromfile(stream, "<f4").reshape(-1, TRIMMED, 3)[1:]
    deviations_file = raw.find(GUO_STD)
    try:
        deviations = np.array(deviations_file.read_text().split(), np.float32)
    except ValueError as error:
        raise DataError(
            f"'{deviations_file}' holds something else than numbers: {error}"
        ) from error
    if count != GUO_MODES or len(deviations) != GUO_MODES:
        raise DataError(
            f"'{path}' says it has {count} modes and '{deviations_file}' has {len(deviations)} "
            f"deviations; wanted {GUO_MODES} of both"
        )
    scale = (deviations / MICROMETRES)[:, None, None]
    note = "expressions: 79 modes of Guo et al. 2018, their mean left out"
    return modes * scale, np.zeros((TRIMMED, 3), np.float32), [note]
