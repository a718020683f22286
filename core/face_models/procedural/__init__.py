"""The built-in face model: a head made by code, so that nothing has to be downloaded or licensed.

The mean is ``head.build_head``; the modes are ``modes.build_modes``. The arrays are those of
``core.face_models.model``. They are built in seconds and then kept in the user's cache folder
(``$XDG_CACHE_HOME/monoface``, else ``~/.cache/monoface``) in a file named after a hash of the code
that makes them; where that folder cannot be written, only in memory.
"""

import hashlib
import os
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

import numpy as np
import scipy

from core.errors import DataError
from core.face_models.files import read_npz, write_npz
from core.face_models.model import VERSION
from core.face_models.procedural.head import build_head
from core.face_models.procedural.modes import build_modes

KEPT = 3  # versions in the cache folder, 20 MB each; older ones are removed


def procedural_arrays() -> dict[str, np.ndarray]:
    """The built-in model's arrays, keyed as in ``core.face_models.model``; built or from the cache.

    Millimetres, model frame. Regions: face, skin, eyes, lips, brows, nose, mouth_interior, neck,
    scalp, ears, eyeballs, iris, pupil. Equal at each call, and the caller's to change.
    """
    return {key: array.copy() for key, array in shared_arrays().items()}


@cache
def shared_arrays() -> dict[str, np.ndarray]:
    """The same without copies; nobody may change them."""
    path = cache_file()
    arrays = _read(path)
    if arrays is None:
        arrays = build_arrays()
        _write(path, arrays)
    return arrays


def build_arrays() -> dict[str, np.ndarray]:
    """Build the model anew, without the cache. Takes some seconds."""
    head = build_head()
    mean = head.vertices.astype(np.float32)
    triangles, mirror = head.triangles.astype(np.int64), head.mirror.astype(np.int64)
    modes = build_modes(mean, triangles, mirror, mean[head.landmarks], head.regions)
    return {
        "version": np.array(VERSION),
        "name": np.array("procedural"),
        "source": np.array("made by core.face_models.procedural"),
        "licence": np.array("MIT"),
        "mean": mean,
        "triangles": triangles,
        "uv": head.uv.astype(np.float32),
        "mirror": mirror,
        "landmark_vertices": np.repeat(head.landmarks[:, None], 3, axis=1).astype(np.int64),
        "landmark_weights": np.tile(np.array([1, 0, 0], np.float32), (68, 1)),
        **{f"region_{name}": flag for name, flag in head.regions.items()},
        **modes,
    }


def cache_file() -> Path:
    """Where this version is kept; the name hashes the code and numpy's and scipy's versions."""
    digest = hashlib.sha256(f"{np.__version__} {scipy.__version__}".encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    try:
        root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:  # a user without a home, as in some containers
        root = tempfile.gettempdir()
    return Path(root) / "monoface" / f"procedural-{digest.hexdigest()[:16]}.npz"


def _read(path: Path) -> dict[str, np.ndarray] | None:
    """The cached arrays, or None where there are none that can be read; they are built anew."""
    try:
        return read_npz(path)
    except (OSError, DataError):
        return None


def _write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Keep the arrays, where the folder can be written."""
    with suppress(OSError):
        write_npz(path, arrays)
        versions = sorted(path.parent.glob("procedural-*.npz"), key=lambda p: p.stat().st_mtime)
        for old in versions[:-KEPT]:
            old.unlink(missing_ok=True)
