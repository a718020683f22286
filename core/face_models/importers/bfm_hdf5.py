"""Basel Face Models 2017 and 2019 (Gerig et al. 2018), HDF5 files in the layout of statismo.

One file of the raw folder, by variant; the shape is mean + modes of identity and of expression:

* ``shape/model/mean`` (3n), ``pcaBasis`` (3n, 199), ``pcaVariance`` (199): millimetres; the modes
  have unit length, and sigma is the root of pcaVariance.
* ``expression/model/...`` (100 modes): the same; its mean is added to that of the shape.
* ``color/model/...`` (199 modes): RGB, 0..1.
* ``shape/representer/cells`` (3, t): triangles, counted from 0.
* ``metadata/landmarks/json``: named points with coordinates, a list of {id, coordinates} or a
  dictionary.

The named points are not the 68; those are found by a correspondence with the built-in head, seeded
with the named points (eye corners, lids, nose, lips, brows, chin).
"""

import json
from functools import partial

import numpy as np
from jaxtyping import Float

from core.errors import DataError
from core.face_models.files import read_h5
from core.face_models.importers.raw import Kind, Parts, RawFile, RawFolder, zero_based

ORIGIN = "Fill in the form at faces.dmi.unibas.ch/bfm; the link arrives by mail."
FILES = {
    "2017": {
        "face12": RawFile(("model2017-1_face12_nomouth.h5",), ORIGIN),
        "full": RawFile(("model2017-1_bfm_nomouth.h5",), ORIGIN),
    },
    "2019": {
        "face12": RawFile(("model2019_face12.h5",), ORIGIN),
        "full": RawFile(("model2019_bfm.h5",), ORIGIN),
        "head": RawFile(("model2019_fullHead.h5",), ORIGIN),
    },
}
# The named points and the landmarks (iBUG, counted from 0) whose mean they are.
NAMED = {
    "center.chin.tip": (8,),
    "center.nose.tip": (30,),
    "center.nose.attachement_to_philtrum": (33,),
    "center.lips.upper.outer": (51,),
    "center.lips.upper.inner": (62,),
    "center.lips.lower.inner": (66,),
    "center.lips.lower.outer": (57,),
    "right.nose.wing.tip": (31,),
    "left.nose.wing.tip": (35,),
    "right.eye.corner_outer": (36,),
    "right.eye.top": (37, 38),
    "right.eye.corner_inner": (39,),
    "right.eye.bottom": (40, 41),
    "left.eye.corner_inner": (42,),
    "left.eye.top": (43, 44),
    "left.eye.corner_outer": (45,),
    "left.eye.bottom": (46, 47),
    "right.lips.corner": (48,),
    "right.lips.philtrum_ridge": (50,),
    "left.lips.philtrum_ridge": (52,),
    "left.lips.corner": (54,),
}
LEAST = 8  # named points that are needed


def read(year: str, raw: RawFolder, variant: str) -> Parts:
    """The parts of the model of one year.

    Raises:
        AssetNotFoundError: the file is missing.
        DataError: the file is not what the table of this module says.
    """
    path = raw.find(FILES[year][variant])
    shapes: dict[str, tuple[int | None, ...]] = {
        "shape/representer/cells": (3, None),
        "metadata/landmarks/json": (),
    }
    for kind in ("shape", "expression", "color"):
        shapes[f"{kind}/model/mean"] = (None,)
        shapes[f"{kind}/model/pcaBasis"] = (None, None)
        shapes[f"{kind}/model/pcaVariance"] = (None,)
    file = read_h5(path, shapes)
    mean, identity = _linear(file, "shape", str(path))
    mean_expression, expression = _linear(file, "expression", str(path))
    albedo_mean, albedo = _linear(file, "color", str(path))
    if not mean.shape == mean_expression.shape == albedo_mean.shape:
        raise DataError(
            f"'{path}': shape, expression and color have {len(mean)}, {len(mean_expression)} and "
            f"{len(albedo_mean)} vertices, wanted equal numbers; download the file again"
        )
    if albedo_mean.max() > 1.5:  # some copies count to 255
        albedo_mean, albedo = albedo_mean / 255, albedo / 255
    cells = zero_based(file["shape/representer/cells"].T, len(mean), f"cells of {path.name}", 0)
    return Parts(
        mean=mean + mean_expression,
        triangles=cells,
        identity_basis=identity,
        expression_basis=expression,
        expression_names=[f"expression{k}" for k in range(len(expression))],
        seeds=_seeds(file["metadata/landmarks/json"], str(path)),
        albedo_mean=albedo_mean,
        albedo_basis=albedo,
    )


def kind(year: str) -> Kind:
    """The model of a year, "2017" or "2019"."""
    return Kind(
        title=f"Basel Face Model {year} (Gerig et al. 2018)",
        licence=f"Basel Face Model {year}: non-commercial research only, not to be passed on",
        source="faces.dmi.unibas.ch/bfm (form)",
        gives="199 identity, 100 expression, 199 albedo modes",
        variants=tuple(FILES[year]),
        read=partial(read, year),
    )


def _linear(
    file: dict[str, np.ndarray], kind: str, where: str
) -> tuple[Float[np.ndarray, "n 3"], Float[np.ndarray, "k n 3"]]:
    """Mean and modes per standard deviation of shape, expression or color."""
    mean, basis, variance = (
        file[f"{kind}/model/{key}"] for key in ("mean", "pcaBasis", "pcaVariance")
    )
    if len(mean) % 3 or basis.shape != (len(mean), len(variance)) or (variance < 0).any():
        raise DataError(
            f"'{where}': {kind}/model has a mean of {mean.shape}, modes of {basis.shape} and "
            f"variances of {variance.shape} (least {variance.min():g}), wanted (3n), (3n, k) and "
            "(k), none negative; download the file again"
        )
    modes = np.array(basis.T, np.float32, order="C")
    modes *= np.sqrt(variance).astype(np.float32)[:, None]
    return mean.astype(np.float32).reshape(-1, 3), modes.reshape(len(variance), -1, 3)


def _seeds(text: np.ndarray, where: str) -> tuple[list[tuple[int, ...]], Float[np.ndarray, "s 3"]]:
    """The named points that we know, and the landmarks that they stand for."""
    try:
        found = json.loads(text.item())
        if not isinstance(found, dict):
            found = {point["id"]: point["coordinates"] for point in found}
        points = {name: np.array(found[name], np.float32) for name in NAMED if name in found}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"'{where}': metadata/landmarks/json cannot be read: {error}") from error
    if len(points) < LEAST or any(point.shape != (3,) for point in points.values()):
        raise DataError(
            f"'{where}': metadata/landmarks/json names {len(points)} points that we know "
            f"({', '.join(points) or 'none'}), wanted at least {LEAST} with three coordinates"
        )
    return [NAMED[name] for name in points], np.stack(list(points.values()))
