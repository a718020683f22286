"""What the readers of foreign files share: limits, the header of .npy, and how damage is reported.

A face model comes from anywhere. Nothing that a file claims is believed before it is compared with
the file's real size, so that a wrong or hostile one costs an error, not the machine's memory.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedIOBase
from pathlib import Path

import numpy as np

from core.errors import DataError

GB = 10**9
KINDS = "biufSU"  # of numpy dtypes that are plain data: numbers and strings
Shape = tuple[int | None, ...]


@contextmanager
def reading(path: Path, kind: str) -> Iterator[None]:
    """Whatever goes wrong inside becomes a DataError that names the file.

    Raises:
        OSError: the file is not there or may not be opened.
        DataError: anything else; a damaged file can fail in any way (zip, zlib, header, memory).
    """
    try:
        yield
    except (FileNotFoundError, PermissionError, IsADirectoryError):
        raise
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise DataError(
            f"'{path}' is not a readable {kind}: {reason.rstrip('.')}. Get the file anew from "
            "where it came from"
        ) from error


def npy_header(stream: BufferedIOBase) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether in Fortran order, and dtype of the .npy that begins here; nothing is made.

    Raises:
        ValueError: it is no header of a plain .npy.
    """
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise DataError(f"its .npy format is version {version}, wanted (1, 0) or (2, 0)")
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(stream)
    return np.lib.format.read_array_header_2_0(stream)


def byte_size(shape: tuple[int, ...], dtype: np.dtype) -> int:
    """Bytes of an array, without making it; exact for any size.

    Raises:
        DataError: a negative length, too many axes, or elements that are not plain data.
    """
    if dtype.kind not in KINDS or dtype.itemsize == 0:
        raise DataError(f"it holds {dtype}, wanted numbers or strings (objects are never loaded)")
    if len(shape) > 32 or any(length < 0 for length in shape):
        raise DataError(f"its shape {shape} is impossible")
    return math.prod(shape) * dtype.itemsize


def check_shape(key: str, got: tuple[int, ...], wanted: Shape) -> None:
    """Raise DataError unless the shapes agree; None stands for any length."""
    if len(got) != len(wanted) or any(w not in (None, g) for g, w in zip(got, wanted, strict=True)):
        text = str(wanted).replace("None", "any")
        raise DataError(f"'{key}' has shape {got}, wanted {text}")


def check_total(size: int, limit: float) -> None:
    """Raise DataError if more than the limit would have to be loaded, both in bytes."""
    if size > limit:
        raise DataError(
            f"it claims {size / GB:.3g} GB of arrays, at most {limit / GB:g} GB is read"
        )
