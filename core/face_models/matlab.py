"""Read numeric variables of MATLAB 5 files (-v6, -v7), as MathWorks' "MAT-File Format" has them.

Our own, because scipy's reader crashes the process on some damaged files. A file is a header of 128
bytes and then one element a variable: a tag (type and size, each 4 bytes), then the array's flags,
lengths, name and numbers, each with a tag of its own; an element may be deflated as a whole.
"""

import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from io import BufferedIOBase

import numpy as np

from core.errors import DataError
from core.face_models.checks import Shape, byte_size, check_shape, check_total

HEADER, HEAD = 128, 512  # bytes of the file's header; as many of a variable as its head can take
MATRIX, DEFLATED = 14, 15  # types of elements
COMPLEX, LOGICAL = 0x800, 0x200  # flags of an array
STORED = {
    1: "i1",
    2: "u1",
    3: "i2",
    4: "u2",
    5: "i4",
    6: "u4",
    7: "f4",
    9: "f8",
    12: "i8",
    13: "u8",
}
NUMERIC = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8"} | {
    15: "u8"
}  # classes of arrays
OTHER = {1: "cell", 2: "struct", 3: "object", 4: "char", 5: "sparse", 16: "function", 17: "opaque"}


@dataclass(frozen=True)
class _Variable:
    """What the head of a variable says.

    Attributes:
        kind: class of the array, as in NUMERIC or OTHER.
        flags: COMPLEX, LOGICAL.
        shape: as MATLAB shows it.
        start, size: where the element's content lies in the file, bytes.
        deflated: whether it has to be inflated.
        data: where its numbers' tag lies in the content.
    """

    kind: int
    flags: int
    shape: tuple[int, ...]
    start: int
    size: int
    deflated: bool
    data: int


def read_variables(
    stream: BufferedIOBase, shapes: Mapping[str, Shape], limit: float
) -> dict[str, np.ndarray]:
    """The named variables, of the types that MATLAB shows; others are skipped.

    Args:
        stream: at the beginning of the file.
        shapes: name to shape, None for any length.
        limit: bytes that they may take.

    Raises:
        DataError: not such a file, or a variable is missing, not real numbers, or of another shape.
    """
    header = stream.read(HEADER)
    order = {b"\x00\x01IM": "<", b"\x01\x00MI": ">"}.get(header[124:])
    if order is None:
        raise DataError("it lacks the header of a MATLAB 5 file")
    found = _heads(stream, order)
    missing = [key for key in shapes if key not in found]
    if missing:
        raise DataError(f"{missing} are missing; it has {sorted(found)}")
    for key, wanted in shapes.items():
        variable = found[key]
        if variable.kind not in NUMERIC or variable.flags & COMPLEX:
            kind = "complex array" if variable.kind in NUMERIC else OTHER.get(variable.kind, "?")
            raise DataError(f"'{key}' is a MATLAB {kind}, wanted real numbers")
        check_shape(key, variable.shape, wanted)
    kinds = {key: np.dtype(NUMERIC[found[key].kind]) for key in shapes}
    check_total(sum(byte_size(found[key].shape, kind) for key, kind in kinds.items()), limit)
    return {key: _values(stream, order, key, found[key]) for key in shapes}


def _heads(stream: BufferedIOBase, order: str) -> dict[str, _Variable]:
    """All variables by name, their numbers unread."""
    found, at, end = {}, HEADER, stream.seek(0, 2)
    while at + 8 <= end:
        stream.seek(at)
        kind, size = struct.unpack(f"{order}II", stream.read(8))
        start, at = at + 8, at + 8 + size
        if kind not in (MATRIX, DEFLATED) or at > end:
            raise DataError(f"an element of type {kind} and {size} bytes at byte {start - 8}")
        head = stream.read(min(size, HEAD))
        if kind == DEFLATED:
            head = zlib.decompressobj().decompress(head, HEAD)
            inner = struct.unpack(f"{order}II", head[:8])
            if inner[0] != MATRIX:
                raise DataError(f"a packed element of type {inner[0]} at byte {start - 8}")
        named = _head(head, order, start, size, kind == DEFLATED)
        if named is None:
            continue
        if named[0] in found:
            raise DataError(f"'{named[0]}' is there twice")
        found[named[0]] = named[1]
    return found


def _head(
    head: bytes, order: str, start: int, size: int, deflated: bool
) -> tuple[str, _Variable] | None:
    """Name and contents of a variable; None for those that have no shape."""
    at = 8 if deflated else 0  # a packed element has its tag inside
    _, flags_at, length, at = _tag(head, order, at)
    if length != 8:
        raise DataError(f"a variable's flags have {length} bytes at byte {start}")
    (word,) = struct.unpack_from(f"{order}I", head, flags_at)
    if word & 0xFF == 17:  # an object, in a format that is not documented
        return None
    _, shape_at, length, at = _tag(head, order, at)
    shape = struct.unpack_from(f"{order}{length // 4}i", head, shape_at)
    _, name_at, length, at = _tag(head, order, at)
    name = head[name_at : name_at + length].decode("ascii")
    return name, _Variable(word & 0xFF, word, shape, start, size, deflated, at)


def _tag(data: bytes, order: str, at: int) -> tuple[int, int, int, int]:
    """Type of an element, where its content begins, its size, and where the next element begins."""
    (kind,) = struct.unpack_from(f"{order}I", data, at)
    if kind >> 16:  # up to four bytes, in the tag itself
        return kind & 0xFFFF, at + 4, kind >> 16, at + 8
    (size,) = struct.unpack_from(f"{order}I", data, at + 4)
    return kind, at + 8, size, at + 8 + (size + 7) // 8 * 8


def _values(stream: BufferedIOBase, order: str, key: str, variable: _Variable) -> np.ndarray:
    """The numbers, in the class of their array: MATLAB stores them in the smallest type."""
    stream.seek(variable.start)
    whole = byte_size(variable.shape, np.dtype(NUMERIC[variable.kind]))
    largest = variable.data + 16 + whole  # of what can be there
    if variable.deflated:
        content = zlib.decompressobj().decompress(stream.read(variable.size), largest)
    else:
        content = stream.read(min(variable.size, largest))
    kind, at, size, _ = _tag(content, order, variable.data)
    if kind not in STORED:
        raise DataError(f"'{key}' is stored as type {kind}, wanted numbers")
    stored = np.dtype(f"{order}{STORED[kind]}")
    if size != byte_size(variable.shape, stored) or at + size > len(content):
        raise DataError(f"'{key}' of shape {variable.shape} has {size} bytes of {stored}")
    values = np.frombuffer(content, stored, size // stored.itemsize, at)
    wanted = "?" if variable.flags & LOGICAL else NUMERIC[variable.kind]
    return values.astype(wanted).reshape(variable.shape, order="F")
