"""Pickles of face models: arrays come through, everything else is refused and nothing is run."""

import collections
import pickle
import struct
import sys
import types

import numpy as np
import pytest
import scipy.sparse
import torch

from core.errors import DataError
from core.face_models import pickles
from core.face_models.files import read_embedding, read_pickle


class Runs:
    """Pickled, it runs a command when it is loaded."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        import os

        return os.system, (self.command,)


def hand_written(module: str, name: str, argument: str) -> bytes:
    """A protocol 0 pickle: calls module.name(argument)."""
    return f"c{module}\n{name}\n(S'{argument}'\ntR.".encode()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"),
        ("posix", "system"),
        ("subprocess", "check_output"),
        ("builtins", "eval"),
        ("builtins", "exec"),
        ("__builtin__", "eval"),
        ("builtins", "getattr"),
        ("operator", "attrgetter"),
        ("numpy", "load"),
        ("numpy", "fromfile"),
        ("numpy.testing._private.utils", "runstring"),
        ("numpy.core.multiarray", "_reconstruct.__globals__"),
        ("scipy.sparse", "csc_matrix.__init__"),
        ("torch", "load"),
        ("torch.hub", "load"),
        ("functools", "partial"),
        ("chumpyx", "Ch"),
        ("copyreg", "__newobj__"),
        ("core.face_models.pickles", "_Note"),
    ],
)
def test_other_names_than_those_of_arrays_are_refused(tmp_path, module, name):
    marker, path = tmp_path / "marker", tmp_path / "bad.pkl"
    path.write_bytes(hand_written(module, name, f"touch {marker}"))
    with pytest.raises(DataError, match=rf"bad\.pkl.*asks for '{module}\.{name}'.*nothing of it"):
        read_pickle(path)
    assert not marker.exists()


@pytest.mark.parametrize("protocol", range(6))
def test_a_real_attack_runs_nothing(tmp_path, protocol):
    marker, path = tmp_path / "marker", tmp_path / "bad.pkl"
    path.write_bytes(pickle.dumps({"f": np.zeros(3), "x": Runs(f"touch {marker}")}, protocol))
    with pytest.raises(DataError, match=r"asks for '(posix|nt)"):
        read_pickle(path)
    assert not marker.exists()
    pickle.loads(path.read_bytes())  # the attack is one
    assert marker.exists()


def test_attack_by_state_on_functions_and_classes_changes_nothing(tmp_path):
    """BUILD on the thing itself instead of on an object of it."""
    before = dict(vars(pickles._Note))
    for module, name in (("numpy.core.multiarray", "_reconstruct"), ("collections", "OrderedDict")):
        path = tmp_path / "bad.pkl"
        path.write_bytes(f"c{module}\n{name}\n(N(dS'args'\nI7\nstb.".encode())
        with pytest.raises(DataError):
            read_pickle(path)
    assert dict(vars(pickles._Note)) == before
    assert np._core.multiarray._reconstruct(np.ndarray, (0,), b"b").shape == (0,)


def array_pickle(shape="I3\n", dtype="f8", data="S'" + "a" * 24 + "'\n", order="<") -> bytes:
    """Protocol 0 of {'x': array}, as Python 2 wrote it, from parts."""
    made = "cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
    kind = f"cnumpy\ndtype\n(S'{dtype}'\nI0\nI1\ntR(I3\nS'{order}'\nNNNI-1\nI-1\nI0\ntb"
    return f"(dS'x'\n{made}(I1\n({shape}t{kind}I00\n{data}tbs.".encode()


def test_the_hand_written_array_is_one(tmp_path):
    path = tmp_path / "a.pkl"
    path.write_bytes(array_pickle())
    expected = pickle.loads(path.read_bytes(), encoding="latin1")
    np.testing.assert_array_equal(read_pickle(path)["x"], expected["x"])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (array_pickle(shape="I99999999999999\n"), r"shape \(99999999999999,\) .* has 24 bytes"),
        (array_pickle(shape="I-3\n"), "impossible shape"),
        (array_pickle(shape="F3.0\n"), "impossible shape"),
        (array_pickle(shape="I1\n" * 40), "impossible shape"),
        (array_pickle(dtype="O8", data="(lp0\nNa"), "holds 'O8'"),
        (array_pickle(dtype="V8"), "holds 'V8'"),
        (array_pickle(dtype="S0"), "holds"),
        (array_pickle(order="?"), "holds 'f8'"),
        (array_pickle(data="I5\n"), "data are a int, wanted bytes"),
        (array_pickle()[:-30], "not a readable pickle of arrays"),
        (b"", "not a readable pickle"),
        (b"hello world", "not a readable pickle"),
        (pickle.dumps([1, 2]), "holds a list, wanted a dict"),
        (pickle.dumps({1: 2}), "holds a dict, wanted a dict with names"),
        (b"\x80\x02}r\xff\xff\xff\x7f.", "numbers an object 2147483647"),
        (b"\x80\x02Pxyz\n.", "PERSID"),
        (b"\x80\x02\x82\x01.", "EXT1"),
        (b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"}.", "not a readable pickle"),
        (b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"a.", "not a readable pickle"),
        (b"(" * 3 + b"]" + b"(" * 100_000, "not a readable pickle"),
        (b"\x80\x02}X\x01\x00\x00\x00a" + b"(" * 50_000 + b"t" * 50_000 + b"s.", "not a readable"),
        (b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s.", "contains itself"),
    ],
)
def test_damaged_and_boastful_pickles_are_refused(tmp_path, data, message):
    path = tmp_path / "bad.pkl"
    path.write_bytes(data)
    with pytest.raises(DataError, match=message):
        read_pickle(path)


def test_one_array_named_many_times_is_one(tmp_path):
    """A list of lists of lists ... of one array: 10^12 arrays if each were built anew."""
    array = np.zeros(1000)
    for _ in range(12):
        array = [array] * 10
    (tmp_path / "laughs.pkl").write_bytes(pickle.dumps({"x": array}))
    found = read_pickle(tmp_path / "laughs.pkl")["x"]
    assert found[0] is found[9]


def test_all_arrays_together_are_limited(tmp_path, monkeypatch):
    monkeypatch.setattr(pickles, "LIMIT_GB", 2e-4)  # 200 kB
    raw = b"a" * 80_000
    kind = np.dtype("f8")
    pairs = {f"x{k}": FromBuffer(raw, kind, (10_000,)) for k in range(4)}
    (tmp_path / "many.pkl").write_bytes(pickle.dumps(pairs))
    with pytest.raises(DataError, match=r"claims 0\.00024 GB of arrays"):
        read_pickle(tmp_path / "many.pkl")


class FromBuffer:
    """Pickled, an array that shares its bytes with others."""

    def __init__(self, *parts) -> None:
        self.parts = parts

    def __reduce__(self):
        return np._core.numeric._frombuffer, (*self.parts, "C")


@pytest.fixture
def chumpy(monkeypatch):
    """A chumpy that pickles as the real one does: state in a dict, under the classes' names."""
    names = {"chumpy.ch": ("Ch", "MatVecMult"), "chumpy.reordering": ("Select", "Reshape")}
    classes = {}
    for module, members in {"chumpy": (), **names}.items():
        fake = types.ModuleType(module)
        monkeypatch.setitem(sys.modules, module, fake)
        for name in members:
            classes[name] = type(name, (), {"__module__": module})
            setattr(fake, name, classes[name])

    def make(name, **state):
        made = classes[name]()
        vars(made).update({"_dirty_vars": {"x"}, "_itr": None, **state})
        return made

    return make


@pytest.mark.parametrize("protocol", range(6))
def test_a_flame_like_pickle_comes_through(tmp_path, chumpy, protocol):
    points = np.random.default_rng(0).normal(size=(7, 3))
    template = chumpy("Ch", x=points)
    joints = scipy.sparse.csc_matrix(np.where(np.eye(5, 7) > 0, 0.5, 0))
    content = collections.OrderedDict(
        v_template=template,
        shapedirs=chumpy(
            "Select",
            a=template,
            idxs=np.array([0, 1, 2, 20, 19, 18]),
            preferred_shape=(2, 3),
        ),
        flat=chumpy("Reshape", a=template, newshape=(-1,)),
        J=chumpy("MatVecMult", mtx=joints, vec=template),
        J_regressor=joints,
        row_major=scipy.sparse.csr_matrix(joints),
        f=np.arange(6, dtype=np.uint32).reshape(2, 3),
        posedirs=np.asfortranarray(points),
        big_endian=points.astype(">f8"),
        scalar=np.float32(2.5),
        bs_style="lbs",
        empty=np.zeros((0, 3)),
    )
    path = tmp_path / "flame.pkl"
    path.write_bytes(pickle.dumps(content, protocol))
    found = read_pickle(path)
    assert set(content) - set(found) == {"J"}  # an expression, not a stored array
    np.testing.assert_array_equal(found["v_template"], points)
    expected = points.ravel()[[0, 1, 2, 20, 19, 18]].reshape(2, 3)
    np.testing.assert_array_equal(found["shapedirs"], expected)
    np.testing.assert_array_equal(found["flat"], points.ravel())
    for name in ("J_regressor", "row_major"):
        np.testing.assert_array_equal(found[name], joints.toarray())
    for name in ("f", "posedirs", "big_endian", "scalar", "empty"):
        np.testing.assert_array_equal(found[name], content[name])
    assert found["big_endian"].dtype == np.float64
    assert found["bs_style"] == "lbs"
    assert found["v_template"].flags.writeable


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("indices", lambda i: i + 100),
        ("indices", lambda i: i - 100),
        ("indices", lambda i: i[:-1]),
        ("indptr", lambda p: p[::-1].copy()),
        ("indptr", lambda p: p[:-1]),
        ("indptr", lambda p: p * 2),
        ("indptr", lambda p: p.astype(float)),
        ("data", lambda d: d[:-1]),
        ("data", lambda d: d.astype("S3")),
        ("_shape", lambda s: (10**9, 10**9)),
        ("_shape", lambda s: (5,)),
    ],
)
def test_sparse_matrices_that_do_not_fit_are_refused(tmp_path, name, change):
    matrix = scipy.sparse.csc_matrix(np.eye(5, 7))
    vars(matrix)[name] = change(vars(matrix)[name])
    (tmp_path / "bad.pkl").write_bytes(pickle.dumps({"J": matrix}))
    with pytest.raises(DataError, match="sparse matrix"):
        read_pickle(tmp_path / "bad.pkl")


def test_a_sparse_matrix_too_large_to_be_dense_is_refused(tmp_path):
    matrix = scipy.sparse.csr_matrix((1, 10**12))
    (tmp_path / "wide.pkl").write_bytes(pickle.dumps({"J": matrix}))
    with pytest.raises(DataError, match=r"claims 8e\+03 GB"):
        read_pickle(tmp_path / "wide.pkl")


def test_a_chumpy_selection_out_of_range_is_refused(tmp_path, chumpy):
    selection = chumpy("Select", a=chumpy("Ch", x=np.zeros(3)), idxs=np.array([3]))
    (tmp_path / "bad.pkl").write_bytes(pickle.dumps({"x": selection}))
    with pytest.raises(DataError, match="points out of its 3 numbers"):
        read_pickle(tmp_path / "bad.pkl")


# FLAME's landmark embedding


def embedding(path, content):
    np.save(path, np.array(content), allow_pickle=True)
    return path


def test_the_embedding_with_tensors_comes_through(tmp_path):
    tensor = torch.arange(24).reshape(2, 3, 4)[:, 1:, ::2]  # a view: offset and strides
    content = {
        "full_lmk_bary_coords": np.random.default_rng(0).random((1, 68, 3)),
        "dynamic_lmk_faces_idx": tensor,
        "dynamic_lmk_bary_coords": torch.rand(3, 2, dtype=torch.float64),
        "broadcast": torch.ones(1).expand(5),
    }
    found = read_embedding(embedding(tmp_path / "landmark_embedding.npy", content))
    assert set(found) == set(content)
    for key, value in content.items():
        np.testing.assert_array_equal(found[key], np.asarray(value))
        assert isinstance(found[key], np.ndarray)


def test_bad_embeddings_are_refused(tmp_path):
    marker = tmp_path / "marker"
    path = tmp_path / "bad.npy"
    with pytest.raises(DataError, match="asks for"):
        read_embedding(embedding(path, {"x": Runs(f"touch {marker}")}))
    assert not marker.exists()
    np.save(path, np.zeros(3))
    with pytest.raises(DataError, match="wanted one object"):
        read_embedding(path)
    with pytest.raises(DataError, match="holds a str"):
        read_embedding(embedding(path, np.array("x", object)))


class Tensor:
    """Pickled, a torch tensor of any claims."""

    def __init__(self, storage, *claims) -> None:
        self.reduced = (torch._utils._rebuild_tensor_v2, (storage, *claims, False, {}))

    def __reduce__(self):
        return self.reduced


class Storage:
    """Pickled, a torch storage that is loaded from these bytes."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw

    def __reduce__(self):
        return torch.storage._load_from_bytes, (self.raw,)


def test_tensors_that_reach_out_of_their_storage_or_run_code_are_refused(tmp_path):
    marker, path = tmp_path / "marker", tmp_path / "bad.npy"
    good = torch.arange(6.0).__reduce_ex__(2)[1][0]
    found = read_embedding(embedding(path, {"x": Tensor(good, 1, (2, 2), (3, 1))}))
    np.testing.assert_array_equal(found["x"], [[1, 2], [4, 5]])
    for offset, shape, strides in ((0, (7,), (1,)), (5, (2,), (1,)), (0, (3, 3), (2, 1))):
        with pytest.raises(DataError):
            read_embedding(embedding(path, {"x": Tensor(good, offset, shape, strides)}))
    evil = Storage(pickle.dumps(Runs(f"touch {marker}")))
    with pytest.raises(DataError):
        read_embedding(embedding(path, {"x": Tensor(evil, 0, (1,), (1,))}))
    assert not marker.exists()
