"""Read and write files of face models, however they were made: .npz, MATLAB, HDF5, pickles.

No reader runs anything from a file, and none allocates what a file claims before the claim has been
compared with the limit and, where the format allows it, with the file's real size. All return
arrays in the machine's byte order.
"""

import math
import os
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np

from core.errors import DataError
from core.face_models.checks import (
    GB,
    Shape,
    byte_size,
    check_shape,
    check_total,
    npy_header,
    reading,
)
from core.face_models.matlab import read_variables
from core.face_models.pickles import read_embedding, read_pickle

__all__ = ["read_embedding", "read_h5", "read_mat", "read_npz", "read_pickle", "write_npz"]

MEMBERS = 1000  # arrays in a .npz
RATIO = 200  # how much smaller than its arrays a .npz may be, above SMALL; deflate reaches 1000
CHUNK = 2**18  # bytes read at a time, while they are in the processor's cache
SMALL = 10**8  # bytes that are harmless, however well they were packed
FILTERS = {  # of HDF5: those that come with the library and work on the data alone
    h5py.h5z.FILTER_DEFLATE,
    h5py.h5z.FILTER_SHUFFLE,
    h5py.h5z.FILTER_FLETCHER32,
}
HEAP = 2**24  # bytes among which a string may lie
HOPS = 16  # soft links to follow


def read_npz(path: Path, limit_gb: float = 4.0) -> dict[str, np.ndarray]:
    """The arrays of a .npz, numbers and strings only.

    Args:
        path: a zip of .npy files, stored or deflated.
        limit_gb: the most that its arrays may take in memory.

    Raises:
        OSError: the file is not there or may not be opened.
        DataError: it is not a .npz, is damaged, holds objects, or its headers claim more than the
            file has or the limit allows.
    """
    with reading(path, ".npz"), path.open("rb") as stream, zipfile.ZipFile(stream) as archive:
        members = archive.infolist()
        names = [member.filename for member in members]
        if len(names) > MEMBERS or len(set(names)) < len(names):
            raise DataError(f"it has {len(names)} members, {len(set(names))} of different names")
        total = sum(member.file_size for member in members)
        check_total(total, limit_gb * GB)
        size = path.stat().st_size
        if total > max(SMALL, RATIO * size):
            raise DataError(f"it unpacks from {size} to {total} bytes, as only zip bombs do")
        return {name.removesuffix(".npy"): _member(archive, name) for name in names}


def _member(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """One array of a .npz. Raises DataError naming it, or what zip and zlib raise."""
    info = archive.getinfo(name)
    if not name.endswith(".npy"):
        raise DataError(f"its member '{name}' is no .npy")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DataError(f"its member '{name}' is packed by method {info.compress_type}")
    with archive.open(info) as member:
        assert isinstance(member, zipfile.ZipExtFile)  # which the type of open does not say
        try:
            shape, fortran, dtype = npy_header(member)
            wanted, there = byte_size(shape, dtype), info.file_size - member.tell()
            if wanted != there:
                raise DataError(f"shape {shape} of {dtype} takes {wanted} bytes, not {there}")
        except ValueError as error:  # DataError is one, too
            raise DataError(f"the array '{name.removesuffix('.npy')}': {error}") from error
        data = np.empty(wanted, np.uint8)
        view = data.data
        while len(view):
            view = view[_fill(member, view, name) :]
        if member.read(1):  # also makes zipfile compare the checksum of an empty array
            raise DataError(f"the array '{name}' goes on after its end")
    array = np.ndarray(shape, dtype, data, order="F" if fortran else "C")
    return array.astype(dtype.newbyteorder("="), copy=False)


def _fill(member: zipfile.ZipExtFile, view: memoryview, name: str) -> int:
    count = member.readinto(view[:CHUNK])
    if not count:
        raise DataError(f"the array '{name.removesuffix('.npy')}' is cut short")
    return count


def write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write a .npz, uncompressed, missing folders made; equal arrays give equal bytes.

    It is written beside its place and then renamed, so that no reader meets half a file.

    Raises:
        OSError: the file cannot be written.
        DataError: an array holds objects.
    """
    for key, array in arrays.items():
        try:
            byte_size(np.shape(array), np.asarray(array).dtype)
        except DataError as error:
            raise DataError(f"'{key}' cannot be written to '{path}': {error}") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
            for key, array in arrays.items():
                with archive.open(f"{key}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_mat(
    path: Path, shapes: Mapping[str, Shape], limit_gb: float = 4.0
) -> dict[str, np.ndarray]:
    """The named numeric variables of a MATLAB file, versions 5 to 7.3; others are not loaded.

    Args:
        path: of the .mat.
        shapes: what is wanted: name to shape as MATLAB shows it, None for any length.
        limit_gb: the most that the variables may take in memory.

    Raises:
        OSError: the file is not there or may not be opened.
        DataError: it is not such a file, a variable is missing, is not numeric or has another
            shape, or more is claimed than the limit allows.
    """
    with path.open("rb") as stream:
        version_7_3 = stream.read(10) == b"MATLAB 7.3"  # HDF5 behind a header, axes reversed
    if version_7_3:
        arrays = read_h5(path, {key: shape[::-1] for key, shape in shapes.items()}, limit_gb)
        return {key: array.T for key, array in arrays.items()}
    with reading(path, "MATLAB file"), path.open("rb") as stream:
        return read_variables(stream, shapes, limit_gb * GB)


def read_h5(
    path: Path, shapes: Mapping[str, Shape], limit_gb: float = 4.0
) -> dict[str, np.ndarray]:
    """The named datasets of an HDF5 file, read from this file alone.

    A damaged string of variable length could keep the HDF5 library busy for ever; those are read
    without it.

    Args:
        path: of the .h5.
        shapes: what is wanted: path in the file, as 'shape/model/mean', to shape, None for any
            length; () also takes one string, which comes back as an array of str.
        limit_gb: the most that the datasets may take in memory.

    Raises:
        OSError: the file is not there or may not be opened.
        DataError: it is not such a file; a dataset is missing, is not numeric or has another shape;
            it lies in another file or needs a foreign filter; or more is claimed than the limit
            allows.
    """
    path.open("rb").close()  # h5py tells "not there" from "damaged" by the message only
    with reading(path, "HDF5 file"), h5py.File(path, "r") as file:
        found = {key: _dataset(file, key) for key in shapes}
        for key, wanted in shapes.items():
            _check_dataset(key, found[key], wanted, limit_gb * GB)
        check_total(sum(dataset.nbytes for dataset in found.values()), limit_gb * GB)
        return {key: _values(path, key, dataset) for key, dataset in found.items()}


def _dataset(file: h5py.File, key: str) -> h5py.Dataset:
    """What a path leads to without leaving the file. Raises DataError."""
    node, names, hops = file, key.split("/"), 0
    while names:
        name, *names = names
        if not isinstance(node, h5py.Group) or name not in node.keys():  # noqa: SIM118 - see below
            there = sorted(node.keys())[:20] if isinstance(node, h5py.Group) else "a dataset"
            raise DataError(f"'{key}' is missing; where '{name}' was looked for there is {there}")
        link = node.get(name, getlink=True)  # `name in node` would follow it
        if isinstance(link, h5py.HardLink):
            node = node[name]
            continue
        hops += 1
        if not isinstance(link, h5py.SoftLink) or hops > HOPS:
            raise DataError(f"'{key}' leads out of the file or in circles ({type(link).__name__})")
        node = file if link.path.startswith("/") else node
        names = [part for part in link.path.split("/") if part not in ("", ".")] + names
    if not isinstance(node, h5py.Dataset):
        raise DataError(f"'{key}' is a group of {sorted(node)[:20]}, wanted a dataset")
    return node


def _check_dataset(key: str, dataset: h5py.Dataset, wanted: Shape, limit: float) -> None:
    """Raise DataError unless the dataset can be read safely and is what is wanted."""
    if dataset.shape is None:
        raise DataError(f"'{key}' is empty, wanted shape {wanted}")
    if h5py.check_string_dtype(dataset.dtype) and wanted == () and dataset.size == 1:
        check_shape(key, dataset.shape, (1,) * len(dataset.shape))
    else:
        check_shape(key, dataset.shape, wanted)
        check_total(byte_size(dataset.shape, dataset.dtype), limit)
    if dataset.is_virtual or dataset.external:
        raise DataError(f"'{key}' keeps its numbers in another file; only this one is read")
    settings = dataset.id.get_create_plist()
    used = {settings.get_filter(i)[0] for i in range(settings.get_nfilters())}
    if used - FILTERS:
        raise DataError(f"'{key}' is packed by the HDF5 filters {sorted(used)}, known {FILTERS}")
    if dataset.chunks:
        check_total(math.prod(dataset.chunks) * dataset.dtype.itemsize, limit)


def _values(path: Path, key: str, dataset: h5py.Dataset) -> np.ndarray:
    """The numbers, or the one string, of a dataset that was checked."""
    kind = h5py.check_string_dtype(dataset.dtype)
    if kind and kind.length is None:
        return np.array(_text(path, key, dataset))
    if kind:
        return np.array(dataset.asstr()[()], str).reshape(())
    values = np.asarray(dataset[()])
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def _text(path: Path, key: str, dataset: h5py.Dataset) -> str:
    """The one string of variable length of a dataset, from the file's bytes.

    The dataset holds its length and where it lies: the address of a heap ("GCOL", version, the
    heap's size) and its number among the heap's objects (number, size, content), as "HDF5 File
    Format Specification" III.E has them.
    """
    at, sizes = dataset.id.get_offset(), dataset.file.id.get_create_plist().get_sizes()
    if at is None or sizes != (8, 8):
        raise DataError(f"'{key}' is a string that is stored in an unusual way")
    with path.open("rb") as stream:
        stream.seek(at)
        length, address, number = struct.unpack("<IQI", stream.read(16))
        stream.seek(address + dataset.file.userblock_size)
        signature, size = struct.unpack("<8sQ", stream.read(16))
        if signature != b"GCOL\1\0\0\0" or size > HEAP:
            raise DataError(f"'{key}' is a string in no heap, or in one of {size} bytes")
        heap = stream.read(size - 16)
    start = 0
    while start + 16 <= len(heap):
        found, size = struct.unpack_from("<H6xQ", heap, start)
        start += 16
        if found == number and length <= size <= len(heap) - start:
            return heap[start : start + length].decode()
        start += (size + 7) // 8 * 8
    raise DataError(f"'{key}' is a string that its heap does not hold")
