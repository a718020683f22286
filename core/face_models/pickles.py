"""Read the arrays out of pickles (FLAME's) without running anything of them.

A pickle is a program: it names functions, and unpickling calls them. Here each name on a short list
makes an inert note of what was asked for (``_Note``: which name, which arguments, which state), any
other name is refused, and the arrays are then built from the notes by this module, with every size
checked. No class of numpy, scipy, chumpy or torch ever sees what the file says.

Known are numpy arrays, scipy.sparse csc and csr matrices (returned dense), chumpy's stored arrays
and selections of them, and torch tensors; Python 2's pickles as Python 3's.
"""

import io
import math
import pickle
import pickletools
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from core.errors import DataError
from core.face_models.checks import GB, byte_size, check_total, npy_header, reading

LIMIT_GB = 2.0  # FLAME's pickles are 50 MB
OPCODES = 2_000_000  # FLAME's have some thousands
FORBIDDEN = {"PERSID", "BINPERSID", "EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "READONLY_BUFFER"}

_NUMPY = ("numpy.core.multiarray", "numpy._core.multiarray")
_BUILTINS = ("builtins", "__builtin__")
_KNOWN = {
    **dict.fromkeys(((module, "_reconstruct") for module in _NUMPY), "array"),
    **dict.fromkeys(((module, "scalar") for module in _NUMPY), "scalar"),
    ("numpy.core.numeric", "_frombuffer"): "frombuffer",
    ("numpy._core.numeric", "_frombuffer"): "frombuffer",
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): "dtype",
    **{
        (f"scipy.sparse{module}", f"{kind}_matrix"): kind
        for kind in ("csc", "csr")
        for module in ("", f".{kind}", f"._{kind}")
    },
    ("_codecs", "encode"): "encode",
    ("copy_reg", "_reconstructor"): "reconstruct",
    ("copyreg", "_reconstructor"): "reconstruct",
    **{(module, name): name for module in _BUILTINS for name in ("object", "set", "bytes")},
    ("collections", "OrderedDict"): "OrderedDict",
    ("torch._utils", "_rebuild_tensor_v2"): "tensor",
    ("torch.storage", "_load_from_bytes"): "storage",
}


def read_pickle(path: Path) -> dict[str, Any]:
    """The dict in a pickle: arrays as numpy arrays, numbers, strings, lists and dicts as they are.

    Sparse matrices come back dense. What is no plain value is left out: sets, classes, and chumpy
    expressions that are not a stored array.

    Raises:
        OSError: the file is not there or may not be opened.
        DataError: it is not a pickle of a dict, names anything that is not on this module's list
            (nothing of it has been run), or claims more than it has.
    """
    with reading(path, "pickle of arrays"), path.open("rb") as stream:
        check_total(path.stat().st_size, LIMIT_GB * GB)
        return _dictionary(_notes(stream.read()))


def read_embedding(path: Path) -> dict[str, Any]:
    """FLAME's landmark_embedding.npy: a .npy with one pickled dict of numpy arrays and tensors.

    Returns:
        All as numpy arrays; of FLAME's file static_lmk_faces_idx (51,), static_lmk_bary_coords
        (51, 3), dynamic_lmk_faces_idx (79, 17), dynamic_lmk_bary_coords (79, 17, 3),
        full_lmk_faces_idx (1, 68) and full_lmk_bary_coords (1, 68, 3).

    Raises:
        OSError, DataError: as ``read_pickle``.
    """
    with reading(path, ".npy with a dict of arrays"), path.open("rb") as stream:
        check_total(path.stat().st_size, LIMIT_GB * GB)
        shape, _, dtype = npy_header(stream)
        if shape != () or not dtype.hasobject:
            raise DataError(f"it holds an array {shape} of {dtype}, wanted one object")
        note = _notes(stream.read())
        if not isinstance(note, _Note) or note.kind != "array":
            raise DataError("its object is no numpy array")
        content = _state(note, tuple)[-1]  # of an array of objects: the list of them
        if not isinstance(content, list) or len(content) != 1:
            raise DataError("its array does not hold one object")
        return _dictionary(content[0])


class _Note:
    """That the pickle asked for a thing: which, with which arguments and state."""

    kind = ""

    def __new__(cls, *args: Any) -> "_Note":
        note = super().__new__(cls)
        note.args, note.state = args, None
        return note

    def __init__(self, *args: Any) -> None:
        self.args: tuple
        self.state: Any

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Opaque(Exception):  # noqa: N818 - not an error: the value is left out
    """The value is not an array or other plain value."""


class _Unpickler(pickle.Unpickler):
    """Finds nothing but notes, of classes of its own, so that no pickle can touch another's."""

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data), encoding="latin1")
        self.made: dict[str, type] = {}

    def find_class(self, module: str, name: str) -> type:
        kind = _KNOWN.get((module, name))
        if module.split(".")[0] == "chumpy":
            kind = name if name in ("Ch", "Select", "Reshape") else "chumpy"
        if kind is None:
            raise DataError(
                f"it asks for '{module[:80]}.{name[:80]}', which is no part of an array and may "
                "run anything; nothing of it was run"
            )
        if kind not in self.made:
            base = dict if kind == "OrderedDict" else _Note
            self.made[kind] = type(kind, (base,), {"kind": kind})
        return self.made[kind]


def _notes(data: bytes) -> Any:
    """Unpickle to notes. Raises DataError or whatever pickle raises."""
    count = 0
    for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
        if count > OPCODES or opcode.name in FORBIDDEN:
            raise DataError(f"its instruction {count} is {opcode.name}, which no array needs")
        if "PUT" in opcode.name and argument is not None and argument > OPCODES:
            raise DataError(f"it numbers an object {argument}")  # would make a table of that size
    return _Unpickler(data).load()


def _dictionary(content: Any) -> dict[str, Any]:
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise DataError(f"it holds a {type(content).__name__}, wanted a dict with names")
    return _Builder().build(content)


class _Builder:
    """Makes arrays from notes; each note once, all together within the limit."""

    def __init__(self) -> None:
        self.size = 0
        self.built: dict[int, Any] = {}
        self.under_way: set[int] = set()

    def build(self, value: Any) -> Any:
        """The plain value. Raises DataError, or _Opaque if it has none."""
        if value is None or isinstance(value, bool | int | float | str | bytes):
            return value
        key = id(value)  # all notes live as long as the outermost one
        if key in self.under_way:
            raise DataError("a value contains itself")
        if key not in self.built:
            self.under_way.add(key)
            try:
                self.built[key] = self._build(value)
            finally:
                self.under_way.discard(key)
        return self.built[key]

    def _build(self, value: Any) -> Any:
        if isinstance(value, dict):
            return self._dict(value)
        if isinstance(value, list | tuple):
            return type(value)(self.build(part) for part in value)
        if not isinstance(value, _Note):
            raise _Opaque
        makers = {
            "array": self._array,
            "scalar": self._scalar,
            "frombuffer": self._frombuffer,
            "encode": self._encode,
            "bytes": self._bytes,
            "csc": self._sparse,
            "csr": self._sparse,
            "Ch": self._chumpy,
            "Select": self._select,
            "Reshape": self._reshape,
            "tensor": self._tensor,
        }
        maker = makers.get(_kind(value))
        if maker is None:
            raise _Opaque
        return maker(value)

    def _dict(self, value: dict) -> dict:
        plain = {}
        for key, part in value.items():
            try:
                plain[key] = self.build(part)
            except _Opaque:
                continue
        return plain

    def _array(self, note: _Note) -> np.ndarray:
        shape, dtype, fortran, raw = _state(note, tuple)[-4:]
        return self._from_bytes(shape, dtype, raw, "F" if fortran else "C")

    def _scalar(self, note: _Note) -> np.ndarray:
        dtype, raw = note.args
        return self._from_bytes((), dtype, raw, "C")

    def _frombuffer(self, note: _Note) -> np.ndarray:
        raw, dtype, shape, order = note.args
        if order not in ("C", "F"):
            raise DataError(f"an array is stored in order {order!r}")
        return self._from_bytes(shape, dtype, raw, order)

    def _from_bytes(self, shape: Any, dtype: Any, raw: Any, order: Any) -> np.ndarray:
        """An array of its own memory from its parts in the pickle."""
        shape, kind = _lengths(shape), _dtype(dtype)
        raw = self.build(raw) if isinstance(raw, _Note) else raw
        if isinstance(raw, str):  # Python 2 had no bytes
            raw = raw.encode("latin1")
        if not isinstance(raw, bytes | bytearray):
            raise DataError(f"an array's data are a {type(raw).__name__}, wanted bytes")
        if byte_size(shape, kind) != len(raw):
            raise DataError(f"an array of shape {shape} of {kind} has {len(raw)} bytes")
        self._account(len(raw))
        return np.ndarray(shape, kind, raw, order=order).astype(kind.newbyteorder("="), order="C")

    def _account(self, size: int) -> None:
        self.size += size
        check_total(self.size, LIMIT_GB * GB)

    def _encode(self, note: _Note) -> bytes:
        text, encoding = note.args
        if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
            raise DataError(f"it encodes a {type(text).__name__} as {encoding!r}")
        return text.encode("latin1")

    def _bytes(self, note: _Note) -> bytes:
        if note.args:  # only the empty ones are written in this way
            raise DataError("it makes bytes by a call")
        return b""

    def _sparse(self, note: _Note) -> np.ndarray:
        """The dense form of a csc or csr matrix; repeated entries add up, as they do in scipy."""
        state = _state(note, dict)
        shape = _lengths(state.get("_shape", state.get("shape")))
        parts = [self.build(state.get(name)) for name in ("data", "indices", "indptr")]
        if len(shape) != 2 or not all(isinstance(p, np.ndarray) and p.ndim == 1 for p in parts):
            raise DataError(f"a sparse matrix of shape {shape} lacks data, indices or indptr")
        data, inner, starts = parts
        across = _kind(note) == "csr"
        outer_length, inner_length = shape if across else shape[::-1]
        if data.dtype.kind not in "biuf" or any(p.dtype.kind not in "iu" for p in (inner, starts)):
            raise DataError(f"a sparse matrix holds {[str(p.dtype) for p in parts]}")
        lengths = np.diff(starts.astype(np.int64))
        if (
            len(starts) != outer_length + 1
            or starts[0] != 0
            or starts[-1] != len(data)
            or len(inner) != len(data)
            or (lengths < 0).any()
            or (len(inner) and not 0 <= inner.min() <= inner.max() < inner_length)
        ):
            raise DataError(f"the indices of a sparse matrix do not fit its shape {shape}")
        self._account(math.prod(shape) * data.dtype.itemsize)
        dense = np.zeros((outer_length, inner_length), data.dtype)
        np.add.at(dense, (np.repeat(np.arange(outer_length), lengths), inner), data)
        return dense if across else np.ascontiguousarray(dense.T)

    def _chumpy(self, note: _Note) -> np.ndarray:
        """What a chumpy variable holds."""
        return self._array_of(note, "x")

    def _select(self, note: _Note) -> np.ndarray:
        """Indexing by chumpy: a.ravel()[idxs], shaped."""
        source, chosen = self._array_of(note, "a").ravel(), self._array_of(note, "idxs")
        if chosen.dtype.kind not in "iu" or (
            chosen.size and not 0 <= chosen.min() <= chosen.max() < source.size
        ):
            raise DataError(f"a chumpy selection points out of its {source.size} numbers")
        self._account(chosen.size * source.itemsize)
        shape = _state(note, dict).get("preferred_shape")
        picked = source[chosen]
        return picked if shape is None else picked.reshape(_lengths(shape))

    def _reshape(self, note: _Note) -> np.ndarray:
        """Reshaping by chumpy; one length may be -1."""
        shape = _state(note, dict).get("newshape")
        return self._array_of(note, "a").reshape(shape if shape == (-1,) else _lengths(shape))

    def _array_of(self, note: _Note, name: str) -> np.ndarray:
        array = self.build(_state(note, dict).get(name))
        if not isinstance(array, np.ndarray):
            raise _Opaque
        return array

    def _tensor(self, note: _Note) -> np.ndarray:
        """A torch tensor, as it was pickled without torch.save."""
        storage, offset, shape, strides = note.args[:4]
        if not isinstance(storage, _Note) or _kind(storage) != "storage":
            raise DataError("a torch tensor has no storage")
        raw = self.build(storage.args[0])
        if not isinstance(raw, bytes):
            raise DataError("a torch tensor's storage is not bytes")
        loaded = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
        flat = torch.tensor([], dtype=loaded.dtype).set_(loaded).numpy()
        self._account(byte_size(_lengths(shape), flat.dtype))
        steps = [step * flat.itemsize for step in _lengths(strides)]
        start = _lengths((offset,))[0] * flat.itemsize
        return np.ndarray(_lengths(shape), flat.dtype, flat, start, steps).copy()  # checks bounds


def _kind(note: _Note) -> str:
    """What a note is of; Python 2 names classes as an argument of copy_reg._reconstructor."""
    if note.kind == "reconstruct" and note.args:
        return getattr(note.args[0], "kind", "")
    return note.kind


def _state(note: _Note, wanted: type) -> Any:
    """The state given to a thing. Raises DataError unless it is of this type."""
    if not isinstance(note.state, wanted):
        raise DataError(f"a '{_kind(note)}' has no proper state")
    return note.state


def _lengths(shape: Any) -> tuple[int, ...]:
    """A shape. Raises DataError unless it is a few whole numbers from 0."""
    if (
        not isinstance(shape, list | tuple)
        or len(shape) > 32
        or not all(isinstance(length, int) and length >= 0 for length in shape)
    ):
        raise DataError("an array has an impossible shape")
    return tuple(shape)


def _dtype(note: Any) -> np.dtype:
    """A plain numpy dtype. Raises DataError for objects, structures and what is none."""
    if isinstance(note, _Note) and note.kind == "dtype" and note.args:
        code, state = note.args[0], note.state
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else "="
        if re.fullmatch(r"b1|[iu][1248]|f[248]|[SU]\d{1,9}", str(code)) and order in (
            "<",
            ">",
            "|",
            "=",
        ):
            return np.dtype(f"{order}{code}")
        raise DataError(f"an array holds '{str(code)[:80]}', wanted numbers or strings")
    raise DataError("an array has no dtype")
