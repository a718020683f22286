"""Landmark files of photos and videos: what a user's files mean, checked.

| file              | holds                                                                      |
|-------------------|----------------------------------------------------------------------------|
| .txt, of a photo  | a line ``x y`` a point; # starts a comment                                 |
| .npy, of a photo  | (k, 2): x, y; or (k, 3): x, y, confidence in [0, 1], 0 = missing           |
| .pts, of a photo  | 300-W's: ``version: 1``, ``n_points: k``, ``{``, k lines ``x y``, ``}``,   |
|                   | where the centre of the first pixel is (1, 1); read as (0.5, 0.5)          |
| .t7, of a photo   | LS3D-W's: a tensor (k, 2) of floats or doubles as Torch 7 saves it, binary |
|                   | and little-endian; counts pixels as .pts                                   |
| .npz, of a video  | ``landmarks`` (frames, k, 2): x, y; or (frames, k, 3): x, y and a depth,   |
|                   | which is not used; optional: ``confidence`` (frames, k) in [0, 1], 0 =     |
|                   | missing; ``valid`` (frames,), false = no face in this frame                |

k = 5: image-left eye, image-right eye, nose tip, image-left and image-right mouth corner; or 68 in
iBUG order. Pixels of the image, origin at its top left corner, y down.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from core.errors import DataError

COUNTS = (5, 68)
TORCH_OBJECT = 4  # in Torch 7's files
TENSORS = {"torch.FloatTensor": "<f4", "torch.DoubleTensor": "<f8"}


def read_landmarks(path: Path) -> tuple[Float[Tensor, "k 2"], Float[Tensor, " k"]]:
    """The points of a photo and their confidence, 1 where the file has none.

    Raises:
        DataError: the file does not hold what this module's docstring says.
    """
    parsers: dict[str, Callable[[BinaryIO], Any]] = {".npy": np.load, ".pts": _pts, ".t7": _t7}
    values = _read(path, parsers.get(path.suffix, _table))
    columns = (2, 3) if path.suffix == ".npy" else (2,)
    _require(
        values.ndim == 2 and len(values) in COUNTS and values.shape[1] in columns,
        path,
        f"shape {values.shape}, wanted 5 or 68 lines 'x y'; an .npy may have the confidence as "
        "third column",
    )
    given = values[:, 2] if values.shape[1] == 3 else np.ones(len(values))
    return torch.from_numpy(values[:, :2]), _confidence(path, given)


def read_video_landmarks(path: Path) -> tuple[Float[Tensor, "f k 2"], Float[Tensor, "f k"]]:
    """The points of each frame of a video and their confidence, 0 in frames without a face.

    Raises:
        DataError: the file does not hold what this module's docstring says.
    """
    arrays = _read(path, _arrays)
    _require("landmarks" in arrays, path, f"arrays {sorted(arrays)}, wanted 'landmarks'")
    values = arrays["landmarks"]
    shape = values.shape
    _require(
        len(shape) == 3 and shape[0] > 0 and shape[1] in COUNTS and shape[2] in (2, 3),
        path,
        f"'landmarks' of shape {shape}, wanted (frames, 5 or 68, 2)",
    )
    valid = arrays.get("valid", np.ones(len(values))) > 0
    confidence = arrays.get("confidence", np.ones(shape[:2], np.float32))
    for key, found, wanted in (
        ("valid", valid.shape, shape[:1]),
        ("confidence", confidence.shape, shape[:2]),
    ):
        _require(found == wanted, path, f"'{key}' of shape {found}, wanted {wanted}")
    third = values[valid, :, 2:]
    _require(
        not third.size or bool(((third < 0) | (third > 1)).any()),
        path,
        "a third column within [0, 1], which may be a confidence or a depth: give the former as "
        "array 'confidence' (frames, k), leave the latter out",
    )
    return torch.from_numpy(values[..., :2]), _confidence(path, confidence * valid[:, None])


def _read(path: Path, parse: Callable[[BinaryIO], Any]) -> Any:
    """Numbers as float32, in an array or in several by name."""
    try:
        with path.open("rb") as stream:
            found = parse(stream)
        if isinstance(found, dict):
            return {key: np.asarray(value).astype(np.float32) for key, value in found.items()}
        return np.asarray(found).astype(np.float32)
    except Exception as error:  # NumPy's parsers raise a dozen kinds on damaged files
        raise DataError(f"'{path}' does not hold landmarks: {error}") from error


def _table(stream: BinaryIO) -> np.ndarray:
    lines = [line.partition("#")[0].split() for line in stream.read().decode().splitlines()]
    rows = [[float(number) for number in line] for line in lines if line]
    if not rows:
        raise ValueError("it is empty")
    return np.array(rows)


def _pts(stream: BinaryIO) -> np.ndarray:
    head, brace, rest = stream.read().decode().partition("{")
    body, end, _ = rest.partition("}")
    if not brace or not end:
        raise ValueError("its points are not in braces")
    rows = np.array([[float(number) for number in line.split()] for line in body.splitlines()[1:]])
    counts = [line.partition(":")[2] for line in head.splitlines() if line.startswith("n_points")]
    if len(counts) != 1 or int(counts[0]) != len(rows):
        raise ValueError(f"{len(rows)} points after {head.split()}")
    return rows - 0.5  # from MATLAB's pixels to ours


def _t7(stream: BinaryIO) -> np.ndarray:
    content, place = stream.read(), 0

    def numbers(kind: str, count: int) -> np.ndarray:
        nonlocal place
        found = np.frombuffer(content, kind, count, place)
        place += found.nbytes
        return found

    def number(kind: str) -> int:
        return int(numbers(kind, 1)[0])

    def name() -> str:
        """Of the class of an object; its place in the file and a version come before."""
        if (mark := number("<i4")) != TORCH_OBJECT:
            raise ValueError(f"an object of kind {mark}, wanted a tensor")
        number("<i4")
        numbers("S1", number("<i4"))
        return numbers("S1", number("<i4")).tobytes().decode()

    if (found := name()) not in TENSORS:
        raise ValueError(f"a {found[:40]!r}, wanted one of {list(TENSORS)}")
    dimensions = number("<i4")
    shape, steps = numbers("<i8", dimensions), numbers("<i8", dimensions)
    start = number("<i8") - 1
    name()
    values = numbers(TENSORS[found], number("<i8"))
    if shape.prod() > len(values):
        raise ValueError(f"{len(values)} numbers for the shape {tuple(shape)}")
    rows = values[start + np.tensordot(steps, np.indices(shape.tolist()), 1)]
    return np.asarray(rows - 0.5)  # Torch 7 counts from 1


def _arrays(stream: BinaryIO) -> dict[str, np.ndarray]:
    with np.load(stream) as file:
        return dict(file)


def _confidence(path: Path, values: np.ndarray) -> Tensor:
    bad = ~((values >= 0) & (values <= 1))
    _require(
        not bad.any(),
        path,
        f"confidences from {values.min():g} to {values.max():g}, wanted [0, 1], 0 = missing; "
        "leave the column out if it is something else",
    )
    return torch.from_numpy(values.astype(np.float32))


def _require(condition: bool, path: Path, found: str) -> None:
    if not condition:
        raise DataError(f"'{path}' does not hold landmarks: {found}")
