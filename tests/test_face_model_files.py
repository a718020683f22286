"""Files of face models: good ones come through, hostile ones are refused and run nothing."""

import io
import os
import struct
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
import scipy.sparse

from core.errors import DataError
from core.face_models.files import (
    read_embedding,
    read_h5,
    read_mat,
    read_npz,
    read_pickle,
    write_npz,
)

# --- .npz


def test_arrays_of_all_plain_kinds_come_back(tmp_path):
    arrays = {
        "float": np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4),
        "fortran": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
        "foreign": np.arange(3, dtype=">i4"),
        "flags": np.array([True, False]),
        "name": np.array("Zoë"),
        "empty": np.zeros((0, 3)),
        "number": np.array(1),
    }
    path = tmp_path / "new" / "folder" / "model.npz"
    write_npz(path, arrays)
    np.savez_compressed(tmp_path / "packed.npz", **arrays)
    for file in (path, tmp_path / "packed.npz"):
        found = read_npz(file)
        assert list(found) == list(arrays)
        for key, array in arrays.items():
            np.testing.assert_array_equal(found[key], array)
            assert found[key].dtype == array.dtype.newbyteorder("=")
            assert found[key].flags.writeable
    with np.load(path) as file:  # numpy reads what we write
        np.testing.assert_array_equal(file["fortran"], arrays["fortran"])
    assert [p.name for p in path.parent.iterdir()] == ["model.npz"]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "model.npz"
    write_npz(path, {"a": np.zeros(3)})
    with pytest.raises(DataError, match=r"'b' cannot be written .* it holds object"):
        write_npz(path, {"b": np.array([{}], object)})
    assert list(read_npz(path)) == ["a"]
    assert len(list(tmp_path.iterdir())) == 1


def test_a_missing_file_stays_an_os_error(tmp_path):
    for read in (read_npz, read_pickle, read_embedding):
        with pytest.raises(FileNotFoundError):
            read(tmp_path / "nowhere")
    for read in (read_mat, read_h5):
        with pytest.raises(FileNotFoundError):
            read(tmp_path / "nowhere", {})


def npy(shape=(3,), descr="<f8", payload=24) -> bytes:
    """A .npy whose header says whatever it likes."""
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        out, {"descr": descr, "fortran_order": False, "shape": shape}
    )
    return out.getvalue() + bytes(payload)


def zipped(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return path


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("mean.npy", npy(shape=(10**12,)))], r"array 'mean': shape .* takes 8000000000000 bytes"),
        ([("mean.npy", npy(shape=(2**62, 2**62, 2**62)))], "'mean': .* bytes, not 24"),
        ([("mean.npy", npy(shape=(-3,)))], r"'mean': its shape \(-3,\) is impossible"),
        ([("mean.npy", npy(shape=(2,)))], "takes 16 bytes, not 24"),
        ([("mean.npy", npy(descr="|O"))], "'mean': it holds object"),
        ([("mean.npy", npy(descr="<U0", payload=0))], "'mean': it holds <U0"),
        ([("mean.npy", npy(descr=[("a", "<f8")]))], "'mean': it holds"),
        ([("mean.npy", b"not numpy at all")], "'mean': the magic string"),
        ([("mean.npy", b"\x93NUMPY\x09\x00" + bytes(40))], "'mean': its .npy format is version"),
        ([("mean.npy", npy()[:9])], "'mean': EOF"),
        ([("readme.txt", b"hello")], "its member 'readme.txt' is no .npy"),
        ([(f"{k}.npy", npy()) for k in range(1001)], "1001 members"),
    ],
)
def test_npz_that_claim_what_is_not_so_are_refused(tmp_path, members, message):
    path = zipped(tmp_path / "bad.npz", members)
    with pytest.raises(DataError, match=rf"bad\.npz' is not a readable \.npz: .*{message}"):
        read_npz(path)


class Runs:
    """Pickled, it makes a file when it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def test_objects_in_an_npz_are_refused_and_not_run(tmp_path):
    marker = tmp_path / "marker"
    array = np.array([Runs(marker)], object)
    np.savez(tmp_path / "objects.npz", mean=np.zeros(3), evil=array)
    with pytest.raises(DataError, match="array 'evil': it holds object"):
        read_npz(tmp_path / "objects.npz")
    assert not marker.exists()


def test_zip_bomb_is_refused_before_it_is_unpacked(tmp_path):
    payload = 150 * 10**6
    data = npy(shape=(payload // 8,), payload=payload)
    path = zipped(tmp_path / "bomb.npz", [("mean.npy", data)], zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 300_000
    with pytest.raises(DataError, match="as only zip bombs do"):
        read_npz(path)


def test_limit_on_the_whole_file(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.zeros(1000), b=np.zeros(1000))
    assert len(read_npz(tmp_path / "a.npz", limit_gb=2e-5)) == 2
    with pytest.raises(DataError, match=r"claims 1\.63e-05 GB of arrays, at most 1e-05 GB"):
        read_npz(tmp_path / "a.npz", limit_gb=1e-5)


def test_a_zip_directory_that_lies_about_sizes(tmp_path):
    """The size in the directory and in the header of the array, but not the data: cut short."""
    data = npy(shape=(1000,), payload=8000)
    path = zipped(tmp_path / "lie.npz", [("mean.npy", data)])
    raw = path.read_bytes()
    shorter = raw.replace(bytes(4000), b"", 1)
    path.write_bytes(shorter)
    with pytest.raises(DataError, match=r"lie\.npz' is not a readable"):
        read_npz(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_arrays_of_one_name_are_refused(tmp_path):
    path = zipped(tmp_path / "twice.npz", [("mean.npy", npy()), ("mean.npy", npy())])
    with pytest.raises(DataError, match="2 members, 1 of different names"):
        read_npz(path)


def test_any_truncation_or_flipped_byte_is_a_data_error_or_harmless(tmp_path):
    whole = tmp_path / "whole.npz"
    write_npz(whole, {"mean": np.arange(30.0), "name": np.array("x")})
    raw, path = whole.read_bytes(), tmp_path / "damaged.npz"
    for cut in range(0, len(raw), 7):
        path.write_bytes(raw[:cut])
        with pytest.raises(DataError):
            read_npz(path)
    refused = 0
    for place in range(0, len(raw), 3):
        path.write_bytes(raw[:place] + bytes([raw[place] ^ 0xFF]) + raw[place + 1 :])
        try:
            read_npz(path)
        except DataError:
            refused += 1
    assert refused > 0.8 * len(raw) / 3  # a few bytes of a zip are times and versions


# --- MATLAB


def test_matlab_variables_are_read_with_their_shapes(tmp_path):
    path = tmp_path / "model.mat"
    values = {"shapeMU": np.random.rand(12, 1).astype(np.float32), "tl": np.arange(6).reshape(2, 3)}
    for compressed in (False, True):
        scipy.io.savemat(path, {**values, "unused": {"a": [1, "b"]}}, do_compression=compressed)
        found = read_mat(path, {"shapeMU": (12, 1), "tl": (None, 3)})
        assert set(found) == set(values)
        for key, value in values.items():
            np.testing.assert_array_equal(found[key], value)


@pytest.mark.parametrize("compressed", [False, True])
def test_every_numeric_type_of_matlab_comes_back(tmp_path, compressed):
    rng = np.random.default_rng(0)
    values = {
        f"x_{name}": (100 * rng.random((4, 3))).astype(name)
        for name in ("f8", "f4", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "?")
    }
    values |= {"small": np.array([[7]], np.uint8), "empty": np.zeros((0, 3))}
    values |= {"cube": rng.random((2, 3, 4)), "a_name_of_31_letters_as_is_usual": np.ones((1, 1))}
    scipy.io.savemat(tmp_path / "all.mat", values, do_compression=compressed)
    found = read_mat(tmp_path / "all.mat", {key: value.shape for key, value in values.items()})
    for key, value in values.items():
        np.testing.assert_array_equal(found[key], value)
        assert found[key].dtype == value.dtype, key


def test_matlab_stores_numbers_in_the_smallest_type_and_in_either_byte_order(tmp_path):
    """Written by hand: the doubles [[1, 3], [2, 4]] as bytes, on a big-endian machine."""

    def element(kind, data):
        return struct.pack(">II", kind, len(data)) + data + bytes(-len(data) % 8)

    content = element(6, struct.pack(">II", 6, 0)) + element(5, struct.pack(">ii", 2, 2))
    content += struct.pack(">HH4s", 1, 1, b"x") + struct.pack(">HH4s", 4, 2, bytes([1, 2, 3, 4]))
    data = b"MATLAB 5.0".ljust(124) + b"\x01\x00MI" + element(14, content)
    (tmp_path / "big.mat").write_bytes(data)
    np.testing.assert_array_equal(scipy.io.loadmat(tmp_path / "big.mat")["x"], [[1, 3], [2, 4]])
    found = read_mat(tmp_path / "big.mat", {"x": (2, 2)})["x"]
    np.testing.assert_array_equal(found, [[1, 3], [2, 4]])
    assert found.dtype == np.float64


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"mean": (3, 4)}, r"\['mean'\] are missing; it has \['cells', 'tl', 'z'\]"),
        ({"tl": (3, 3)}, r"'tl' has shape \(2, 3\), wanted \(3, 3\)"),
        ({"tl": (None,)}, r"'tl' has shape \(2, 3\), wanted \(any,\)"),
        ({"cells": (None, None)}, "'cells' is a MATLAB cell, wanted real numbers"),
        ({"z": (None, None)}, "'z' is a MATLAB complex array"),
    ],
)
def test_matlab_variables_of_another_kind_are_refused(tmp_path, shapes, message):
    cells = np.array([np.zeros(2), "x"], object)
    values = {"tl": np.zeros((2, 3)), "cells": cells, "z": np.array([1j, 2])}
    scipy.io.savemat(tmp_path / "model.mat", values)
    with pytest.raises(DataError, match=rf"model\.mat' is not a readable MATLAB file: .*{message}"):
        read_mat(tmp_path / "model.mat", shapes)


def test_matlab_files_that_are_damaged_or_claim_too_much_are_refused(tmp_path):
    path = tmp_path / "model.mat"
    scipy.io.savemat(path, {"mean": np.zeros((100, 3))})
    whole = path.read_bytes()
    for data in (b"", b"hello", whole[:130], whole[:-100]):
        path.write_bytes(data)
        with pytest.raises(DataError, match="not a readable MATLAB file"):
            read_mat(path, {"mean": (None, 3)})
    huge = whole.replace(struct.pack("<ii", 100, 3), struct.pack("<ii", 10**9, 3), 1)
    assert huge != whole
    path.write_bytes(huge)
    with pytest.raises(DataError, match="claims 24 GB of arrays, at most 4 GB"):
        read_mat(path, {"mean": (None, 3)})
    path.write_bytes(whole.replace(struct.pack("<ii", 100, 3), struct.pack("<ii", 10**8, 3), 1))
    with pytest.raises(DataError, match="not a readable MATLAB file"):
        read_mat(path, {"mean": (None, 3)})


def test_matlab_7_3_is_read_as_the_hdf5_that_it_is(tmp_path):
    path = tmp_path / "model.mat"
    with h5py.File(path, "w", userblock_size=512) as file:
        file["tl"] = np.arange(6.0).reshape(3, 2)  # MATLAB counts columns first
    with path.open("r+b") as stream:
        stream.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64")
    found = read_mat(path, {"tl": (2, None)})["tl"]
    np.testing.assert_array_equal(found, np.arange(6.0).reshape(3, 2).T)


# --- HDF5


@pytest.fixture
def basel(tmp_path):
    """A file in the layout of the Basel Face Models."""
    path = tmp_path / "model.h5"
    with h5py.File(path, "w") as file:
        file["shape/model/mean"] = np.arange(6.0, dtype=">f4")
        file.create_dataset(
            "shape/model/pcaBasis",
            data=np.ones((6, 4), np.float32),
            compression="gzip",
            shuffle=True,
            fletcher32=True,
        )
        file["metadata/landmarks/json"] = '[{"id": "nez é"}]'
        file["metadata/fixed"] = np.bytes_("abc")
        file["alias"] = h5py.SoftLink("/shape/model")
        file["shape/circle"] = h5py.SoftLink("/shape/circle")
    return path


def test_hdf5_datasets_are_read_by_path(basel):
    shapes = {
        "shape/model/mean": (6,),
        "shape/model/pcaBasis": (None, 4),
        "alias/mean": (None,),
        "metadata/landmarks/json": (),
        "metadata/fixed": (),
    }
    found = read_h5(basel, shapes)
    np.testing.assert_array_equal(found["shape/model/mean"], np.arange(6))
    assert found["shape/model/mean"].dtype == np.float32
    np.testing.assert_array_equal(found["shape/model/pcaBasis"], np.ones((6, 4)))
    np.testing.assert_array_equal(found["alias/mean"], np.arange(6))
    assert str(found["metadata/landmarks/json"]) == '[{"id": "nez é"}]'
    assert str(found["metadata/fixed"]) == "abc"


def test_hdf5_that_leads_elsewhere_is_refused(basel, tmp_path):
    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["mean"] = np.arange(3.0)
    (tmp_path / "raw.bin").write_bytes(bytes(24))
    with h5py.File(basel, "a") as file:
        file["external"] = h5py.ExternalLink(str(secret), "/mean")
        file["via"] = h5py.SoftLink("/external")
        file.create_dataset("raw", (3,), "f8", external=[(str(tmp_path / "raw.bin"), 0, 24)])
        layout = h5py.VirtualLayout((3,), "f8")
        layout[:] = h5py.VirtualSource(str(secret), "mean", (3,))
        file.create_virtual_dataset("virtual", layout)
    for key in ("external", "via", "shape/circle", "raw", "virtual"):
        with pytest.raises(DataError, match=f"'{key}' (leads out of|keeps its numbers in another)"):
            read_h5(basel, {key: (None,)})


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"shape/model/std": (6,)}, r"'shape/model/std' is missing; .* \['mean', 'pcaBasis'\]"),
        ({"shape/model/mean/x": (6,)}, "there is a dataset"),
        ({"shape/model": (6,)}, r"is a group of \['mean', 'pcaBasis'\], wanted a dataset"),
        ({"shape/model/mean": (5,)}, r"'shape/model/mean' has shape \(6,\), wanted \(5,\)"),
        ({"shape/model/mean": ()}, "has shape"),
        ({"huge": (None, None)}, r"claims 8e\+03 GB of arrays, at most 4 GB"),
        ({"chunky": (3,)}, "claims"),
        ({"table": (2,)}, "it holds"),
        ({"nothing": (2,)}, "'nothing' is empty"),
        ({"lzf": (2,)}, "packed by the HDF5 filters"),
    ],
)
def test_hdf5_of_another_kind_is_refused(basel, shapes, message):
    with h5py.File(basel, "a") as file:
        file.create_dataset("huge", (10**6, 10**6), "f8", chunks=(1000, 1000))
        file.create_dataset("chunky", (3,), "f8", maxshape=(None,), chunks=(52 * 10**7,))
        file["table"] = np.zeros(2, [("a", "f8")])
        file["nothing"] = h5py.Empty("f8")
        file.create_dataset("lzf", (2,), "f8", chunks=(2,), compression="lzf")
    with pytest.raises(DataError, match=rf"model\.h5' is not a readable HDF5 file: .*{message}"):
        read_h5(basel, shapes)


def test_several_datasets_together_are_limited(basel):
    shapes = {"shape/model/mean": (6,), "shape/model/pcaBasis": (6, 4)}
    assert read_h5(basel, shapes, limit_gb=1.3e-7)
    with pytest.raises(DataError, match=r"at most 1\.1e-07 GB"):
        read_h5(basel, shapes, limit_gb=1.1e-7)


def test_damaged_hdf5_is_a_data_error(basel):
    whole = basel.read_bytes()
    for data in (b"", b"hello", whole[:100], whole[: len(whole) // 2]):
        basel.write_bytes(data)
        with pytest.raises(DataError, match="not a readable HDF5 file"):
            read_h5(basel, {"shape/model/mean": (6,)})


def test_a_damaged_string_in_hdf5_ends_in_an_error_or_is_whole(basel):
    text, whole = '[{"id": "nez é"}]', basel.read_bytes()
    heap = whole.index(b"GCOL")
    refused = 0
    for at in range(heap, heap + 32):  # the heads of the heap and of its first object
        for byte in (0, 255):
            basel.write_bytes(whole[:at] + bytes([byte]) + whole[at + 1 :])
            try:
                found = read_h5(basel, {"metadata/landmarks/json": ()})
                assert str(found["metadata/landmarks/json"]) == text
            except DataError:
                refused += 1
    assert refused > 20
