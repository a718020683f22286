"""Importers of published face models: full-size fakes of their files, and real ICT data."""

import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import torch
from scipy.spatial.transform import Rotation

from core.camera import WeakPerspectiveCamera, frontal
from core.errors import AssetNotFoundError, DataError, MonofaceError
from core.face_models import load_face_model
from core.face_models.__main__ import main
from core.face_models.contour import sliding_jaw
from core.face_models.correspondence import Correspondence, Mesh
from core.face_models.importers import KINDS, bfm2009, flame, ict, import_face_model
from core.face_models.importers.complete import _outer_first, _outwards
from core.face_models.importers.raw import RawFolder
from core.landmarks import MIRROR
from core.rotation import rotation_from_euler
from tests.fakes import raw_models

SAMPLES = Path(__file__).resolve().parents[2] / "shared" / "samples"
WRITERS = {
    "bfm2009": raw_models.write_bfm2009,
    "bfm2017": raw_models.write_bfm_hdf5,
    "bfm2019": lambda folder: raw_models.write_bfm_hdf5(folder, "2019", "full"),
    "flame": raw_models.write_flame,
    "ict": raw_models.write_ict,
}
FORMS = {name: kind.variants[0] for name, kind in KINDS.items()} | {"bfm2019": "full"}
EXECUTES = b"cos\nsystem\n(S'true'\ntR."  # a pickle that would run a program
SECONDS: dict[str, float] = {}


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """What was written, and the model that comes of it: by kind and variant, made once."""
    root = tmp_path_factory.mktemp("raw")
    written, models = {}, {}

    def get(name, variant=None):
        if name not in written:
            written[name] = WRITERS[name](root / name)
        variant = variant or FORMS[name]
        if (name, variant) not in models:
            start = time.process_time()
            out = root / f"{name}-{variant}.npz"
            models[name, variant] = import_face_model(name, root / name, out, variant)
            SECONDS[f"{name}-{variant}"] = time.process_time() - start
        return written[name], models[name, variant][0], root / name

    yield get
    shutil.rmtree(root)  # gigabytes


def vertex(array, i):
    """Numbers of vertex i in an array (3n, ...) of x, y, z in turn."""
    return array[3 * i : 3 * i + 3].astype(np.float64)


def rows(triangles):
    """The triangles in any order, none twice."""
    found = {tuple(corners) for corners in triangles.tolist()}
    assert len(found) == len(triangles)
    return found


def cases() -> list[Any]:
    """Each kind, and the other form of BFM 2009; what another one covers, too, runs slowly."""
    forms = [*FORMS.items(), ("bfm2009", "53215")]
    long = {("bfm2019", "full"), ("bfm2009", "53215")}
    return [pytest.param(*form, marks=[pytest.mark.slow] if form in long else []) for form in forms]


@pytest.mark.parametrize(("name", "variant"), cases())
def test_an_imported_model_is_a_sound_face_with_everything(imported, name, variant):
    _, model, folder = imported(name, variant)
    again = load_face_model(str(folder.parent / f"{model.name}.npz"))
    assert torch.equal(again.identity_basis, model.identity_basis)
    assert {"face", "skin", "eyes", "brows", "nose", "lips"} <= set(model.region_names)
    points = model.landmarks(model.mean)
    miss = (points[list(MIRROR)] * torch.tensor([-1, 1, 1]) - points).norm(dim=-1)
    assert miss.max() < 4
    built_in = load_face_model("procedural", 0, 0, 0)
    known = built_in.landmarks(built_in.mean)
    shift = (points - known).mean(0)
    assert (points - shift - known).norm(dim=-1).mean() < 3  # the fakes are that head, sampled
    corners = model.mean[model.part("face")]
    normals = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    area = normals[:, 2]
    assert area[area < 0].abs().sum() < 0.1 * area.abs().sum()  # seen from before the face
    u, v = model.uv.T
    assert 0 <= u.min() < u.max() <= 1
    assert 0 <= v.min() < v.max() <= 1
    left, brow, chin = model.uv[model.landmark_vertices[[45, 19, 8], 0]]
    assert left[0] > 0.5
    assert brow[1] < chin[1]  # v down


def test_bfm2009_of_deng_follows_the_chain_of_indices(imported):
    raw, model, _ = imported("bfm2009", "35709")
    assert [len(b) for b in (model.identity_basis, model.expression_basis)] == [199, 79]
    assert len(model.albedo_basis) == 199
    front = raw["idx"][:, 0].astype(int) - 1
    full = raw["trimIndex"][front, 0].astype(int) - 1
    centre = raw["shapeMU"].reshape(-1, 3)[full].astype(np.float64).mean(0) / 1000
    for i in (0, 17, 35708):
        mean = vertex(raw["shapeMU"][:, 0], full[i]) / 1000 - centre
        np.testing.assert_allclose(model.mean[i], mean, atol=1e-3)
        np.testing.assert_allclose(
            model.identity_basis[198, i],
            vertex(raw["shapePC"][:, 198], full[i]) * raw["shapeEV"][198, 0] / 1000,
            rtol=1e-5,
        )
        expression = raw["guo"][1 + 5, front[i]] * raw["std_exp"][5] / 1000
        np.testing.assert_allclose(model.expression_basis[5, i], expression, rtol=1e-5)
        albedo = vertex(raw["texPC"][:, 3], full[i]) * raw["texEV"][3, 0] / 255
        np.testing.assert_allclose(model.albedo_basis[3, i], albedo, rtol=1e-5)
        np.testing.assert_allclose(model.albedo_mean[i], np.array([180, 130, 110]) / 255, rtol=1e-6)
    assert torch.equal(model.landmark_vertices[:, 0], torch.tensor(raw["keypoints"][0] - 1).long())
    assert np.array_equal(model.region("face"), raw["frontmask2"][0] > 0)
    tri = raw["tri"].astype(int) - 1
    assert rows(model.triangles) == rows(tri)


def test_bfm2009_of_300w_lp_keeps_its_origin_and_3ddfas_expressions(imported):
    raw, _, folder = imported("bfm2009")
    parts = bfm2009.read(RawFolder(folder, ""), "53215")
    full = raw["trimIndex"][:, 0].astype(int) - 1
    assert len(parts.expression_basis) == 29
    for i in (0, 40_000):
        mean = vertex(raw["shapeMU"][:, 0], full[i]) / 1000 + 0.25  # mu_exp
        np.testing.assert_allclose(parts.mean[i], mean, atol=1e-3)
        identity = vertex(raw["shapePC"][:, 198], full[i]) * raw["shapeEV"][198, 0] / 1000
        np.testing.assert_allclose(parts.identity_basis[198, i], identity, rtol=1e-5)
        expression = vertex(raw["w_exp"][:, 7], i) * raw["sigma_exp"][7, 0] / 1000
        np.testing.assert_allclose(parts.expression_basis[7, i], expression, rtol=1e-5)
    assert tuple(parts.landmarks[0][:, 0].tolist()) == bfm2009.KEYPOINTS
    kept = np.isin(raw["tl"].astype(int) - 1, full).all(1)
    assert np.array_equal(full[parts.triangles], raw["tl"][kept].astype(int) - 1)


def test_bfm2009_takes_the_other_expressions_where_its_own_are_missing(imported, tmp_path):
    raw, _, folder = imported("bfm2009")
    for name in ("Exp_Pca.bin", "std_exp.txt"):
        (tmp_path / name).symlink_to(folder / name)
    modes, mean, notes = bfm2009._expressions(RawFolder(tmp_path, ""), guo_first=False)
    np.testing.assert_allclose(modes[78, 9], raw["guo"][79, 9] * raw["std_exp"][78] / 1000, 1e-5)
    assert not mean.any()
    assert "Guo" in notes[0]
    (tmp_path / "std_exp.txt").unlink()
    with pytest.raises(AssetNotFoundError, match=r"'std_exp.txt' not found at .*Deep3DFaceRecon"):
        bfm2009._expressions(RawFolder(tmp_path, ""), guo_first=True)


def test_basel_models_in_hdf5_scale_by_the_root_of_the_variance(imported):
    raw, _, folder = imported("bfm2019")
    parts = KINDS["bfm2019"].read(RawFolder(folder, ""), "full")
    i = 1234
    mean = vertex(raw["shape/model/mean"], i) + vertex(raw["expression/model/mean"], i)
    np.testing.assert_allclose(parts.mean[i], mean, atol=1e-4)
    found = {"shape": parts.identity_basis, "expression": parts.expression_basis}
    for kind, basis in (found | {"color": parts.albedo_basis}).items():
        mode = vertex(raw[f"{kind}/model/pcaBasis"][:, 50], i)
        expected = mode * raw[f"{kind}/model/pcaVariance"][50] ** 0.5
        np.testing.assert_allclose(basis[50, i], expected, rtol=1e-5)
    np.testing.assert_allclose(parts.albedo_mean[i], [0.7, 0.5, 0.4], rtol=1e-6)
    assert np.array_equal(parts.triangles, raw["shape/representer/cells"].T)


def test_basel_models_in_hdf5_get_their_landmarks_from_the_named_points(imported):
    raw, model, _ = imported("bfm2017")
    assert rows(model.triangles) == rows(raw["shape/representer/cells"].T)
    points = model.landmarks(model.mean).numpy()
    miss = np.linalg.norm(points - raw["landmarks"], axis=1)
    assert miss.mean() < 2.5  # they come from 21 named points
    assert miss[17:].max() < 6


def test_flames_jaw_modes_are_the_derivative_of_its_blend_skinning(imported):
    raw, model, _ = imported("flame")
    joint = raw["J_regressor"][2] @ raw["v_template"]

    def posed(axis, angle):
        R = Rotation.from_rotvec(np.array(axis) * angle).as_matrix()
        corrected = raw["v_template"] + raw["posedirs"][..., 9:18] @ (R - np.eye(3)).ravel()
        w = raw["weights"][:, 2:3]
        return 1000 * ((1 - w) * corrected + w * ((corrected - joint) @ R.T + joint))

    for mode, axis in enumerate([(1.0, 0, 0), (0, 1.0, 0)]):
        derivative = (posed(axis, 1e-5) - posed(axis, -1e-5)) / 2e-5 * flame.JAW_RADIANS
        np.testing.assert_allclose(model.expression_basis[mode], derivative, atol=2e-4)
    chin = raw["landmarks"][8]
    assert model.expression_basis[0, chin, 1] < -5  # jaw_open goes down
    assert model.expression_basis[1, chin, 0] > 5  # jaw_left to the subject's left
    assert model.expression_names[:3] == ["jaw_open", "jaw_left", "expression0"]
    np.testing.assert_allclose(
        model.expression_basis[2 + 7], 1000 * raw["shapedirs"][..., 300 + 7], atol=1e-4
    )
    np.testing.assert_allclose(
        model.identity_basis[299], 1000 * raw["shapedirs"][..., 299], atol=1e-4
    )
    vertices = (model.landmark_vertices * (model.landmark_weights > 0.5)).sum(-1)
    assert torch.equal(vertices, torch.from_numpy(raw["landmarks"]))


def test_a_frontal_flame_keeps_its_jaw_and_a_turned_one_slides(imported):
    _, model, _ = imported("flame")
    assert model.contour_vertices.shape == (17, 79, 3)
    assert (model.contour_vertices[8] == model.landmark_vertices[8]).all()  # the chin stays
    jaw, vertices = sliding_jaw(model), model.mean[None]
    zero = torch.zeros(1)
    moved = {}
    for yaw in (0.0, 0.7):
        turn = frontal(zero) @ rotation_from_euler(zero, zero + yaw, zero)
        view = WeakPerspectiveCamera(turn, torch.ones(1), torch.zeros(1, 2))
        moved[yaw] = (jaw(vertices, view) - model.landmarks(vertices)).norm(dim=-1)[0]
    assert moved[0.0].max() < 1e-4
    assert moved[0.7][1:6].min() > 3
    assert moved[0.7][8:].max() < 1e-4


def test_a_model_without_albedo_gets_a_stated_stand_in(imported):
    _, model, _ = imported("flame")
    head = load_face_model("procedural")
    assert model.stand_ins == ["albedo_mean", "albedo_basis"]
    assert any(note.startswith("albedo: a stand-in") for note in model.notes)
    lips, skin = (model.albedo_mean[model.region(r)].mean(0) for r in ("lips", "skin"))
    there = [head.albedo_mean[head.region(r)].mean(0) for r in ("lips", "skin")]
    assert (lips - there[0]).abs().max() < 0.06
    assert lips[0] - lips[1] > skin[0] - skin[1]  # redder
    assert len(model.albedo_basis) == len(head.albedo_basis)
    _, bfm, _ = imported("bfm2009", "35709")
    assert bfm.stand_ins == []


@pytest.mark.parametrize("variant", ["face", pytest.param("head", marks=pytest.mark.slow)])
def test_ict_from_its_folder_of_obj_files(imported, variant):
    raw, model, _ = imported("ict", variant)
    count = ict.VERTICES[variant]
    np.testing.assert_allclose(model.mean, 10 * raw["mean"][:count], atol=1e-4)
    if variant == "face":
        np.testing.assert_allclose(model.uv, raw["uv"][:count] * [1, -1] + [0, 1], atol=1e-5)
    else:  # its own lie on two tiles
        assert raw["uv"].max() > 1 >= model.uv.max()
    names = [f"identity{k:03d}" for k in range(100)]
    last = model.expression_names.index("expression52")
    for basis, name in [
        (model.identity_basis[99], names[99]),
        (model.expression_basis[last], "expression52"),
    ]:
        at, by = raw["moved"][name]
        expected = np.zeros((len(raw["mean"]), 3))
        expected[at] = 10 * by
        np.testing.assert_allclose(basis, expected[:count], atol=1e-4)
    quads = ict.FACES[variant]
    assert quads < len(model.triangles) <= 2 * quads
    mirrored = model.mean[model.mirror] * torch.tensor([-1, 1, 1])
    assert (mirrored - model.mean).abs().max() < 1e-3
    # Cut along the shorter diagonals, left as right: the triangles are their own mirror images.
    triangles = np.sort(model.triangles, 1)
    reflected = np.sort(model.mirror[model.triangles], 1)
    same = {tuple(t) for t in triangles.tolist()} & {tuple(t) for t in reflected.tolist()}
    assert len(same) > 0.97 * len(triangles)  # but for the faces that the fake wrote as triangles


@pytest.mark.skipif(not (SAMPLES / "ict_facekit").is_dir(), reason="no real ICT data here")
def test_ict_from_the_real_packed_file(tmp_path):
    out = tmp_path / "ict.npz"
    model, findings = import_face_model("ict", SAMPLES / "ict_facekit", out)
    assert [f.name for f in findings if f.level != "ok"] == ["notes"]
    with np.load(SAMPLES / "ict_facekit" / "ict_face.npz") as raw:
        opens = model.expression_names.index("jawOpen")  # 26th in the file
        shape = model.shape(torch.eye(100)[3], torch.eye(53)[opens])
        expected = raw["vertices"] + raw["id_deltas"][3].astype(float) + raw["exp_deltas"][26]
        np.testing.assert_allclose(shape, 10 * expected, atol=1e-3)
        assert np.array_equal(model.triangles, raw["faces"])
        assert np.array_equal(model.landmark_vertices[:, 0], raw["landmarks68"])
        assert np.array_equal(ict.LANDMARKS, raw["landmarks68"])
        # What the folder's reader works out, against the packed file.
        assert np.array_equal(ict._mirrored(raw["vertices"].astype(np.float64)), raw["symmetry"])
    ears = (model.mean[:, 0].abs() > 80) & (model.mean[:, 1].abs() < 40)
    redness = model.albedo_mean[ears] - model.albedo_mean[model.region("skin")].mean(0)
    assert redness.abs().max() < 0.2  # skin, not hair
    outer = (model.landmarks(model.mean)[45] - model.landmarks(model.mean)[36]).norm()
    assert outer.item() == pytest.approx(89.18, abs=0.05)  # millimetres
    opened = model.shape(torch.zeros(100), torch.eye(53)[opens])
    gap = [model.landmarks(v)[[62, 66], 1] for v in (model.mean, opened)]
    assert gap[1][0] - gap[1][1] > gap[0][0] - gap[0][1] + 20  # the mouth opens


@pytest.mark.skipif(not (SAMPLES / "ict_facekit").is_dir(), reason="no real ICT data here")
@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("vertices", lambda v: v / 100, r"measures 2\.885 mm"),  # metres
        ("vertices", lambda v: np.where(np.arange(len(v))[:, None] == 5, np.nan, v), "nan"),
        ("vertices", lambda v: v * np.float32([1, 1, -1]), "the nose is -35.2 mm before"),
        ("vertices", lambda v: v[0], r"'vertices' has shape \(3,\), wanted \(any, 3\)"),
        ("faces", lambda f: f[:0], "and 0 triangles"),
        ("faces", lambda f: f + 1, r"indices 1\.\.9409, wanted 0\.\.9408"),
        ("landmarks68", lambda i: i[:67], r"has shape \(67,\), wanted \(68,\)"),
        ("landmarks68", lambda i: i + 1, "landmarks .* out of order"),
        ("uv", lambda uv: uv * [1, -1] + [0, 1], "v grows upwards"),
    ],
)
def test_a_broken_file_is_refused_in_words(tmp_path, key, change, message):
    with np.load(SAMPLES / "ict_facekit" / "ict_face.npz") as raw:
        arrays = dict(raw)
    np.savez(tmp_path / "ict_face.npz", **arrays | {key: change(arrays[key])})
    with pytest.raises(DataError, match=message) as caught:
        import_face_model("ict", tmp_path, tmp_path / "out.npz")
    assert str(tmp_path) in str(caught.value) or "ict_face.npz" in str(caught.value)
    assert not (tmp_path / "out.npz").exists()


@pytest.mark.skipif(not (SAMPLES / "bfm_indices").is_dir(), reason="no real index files here")
def test_the_constants_agree_with_the_real_index_files():
    read = {f: scipy.io.loadmat(SAMPLES / "bfm_indices" / f"{f}.mat") for f in (
        "BFM_exp_idx", "BFM_front_idx", "facemodel_info", "select_vertex_id")}  # fmt: skip
    front = read["BFM_front_idx"]["idx"][:, 0].astype(int) - 1
    keypoints = read["facemodel_info"]["keypoints"][0].astype(int) - 1
    assert tuple(front[keypoints].tolist()) == bfm2009.KEYPOINTS
    full = read["BFM_exp_idx"]["trimIndex"][front, 0]
    assert np.array_equal(full, read["select_vertex_id"]["select_id"][:, 0])


def test_clockwise_triangles_are_turned_and_mixed_ones_refused():
    vertices = np.float64([[0, 0, 0], [10, 0, 0], [10, 10, 0], [0, 10, 0]])
    clockwise = Mesh(vertices, np.array([[0, 2, 1], [0, 3, 2]]))
    notes = []
    turned = _outwards(clockwise, vertices.mean(0), notes)
    assert turned.triangles.tolist() == [[0, 1, 2], [0, 2, 3]]
    assert notes == ["triangles: were clockwise, turned"]
    assert _outwards(turned, vertices.mean(0), notes) is turned
    with pytest.raises(DataError, match="50% of the triangles' area"):
        _outwards(Mesh(vertices, np.array([[0, 2, 1], [0, 2, 3]])), vertices[0], notes)


def test_what_others_hide_on_the_map_comes_last():
    uv = np.float32([[0.1, 0.1], [0.9, 0.1], [0.1, 0.9], [0.2, 0.2], [0.5, 0.2], [0.2, 0.5]])
    radius = np.float64([90, 90, 90, 100, 100, 100])
    triangles = np.array([[0, 1, 2], [3, 4, 5]])
    found = _outer_first(uv, radius, triangles)
    assert found.tolist() == triangles.tolist()  # both are seen
    inner = _outer_first(uv, radius[::-1].copy(), triangles[::-1].copy())
    assert inner.tolist() == triangles.tolist()


@pytest.mark.parametrize("name", KINDS)
def test_a_partial_folder_names_the_file_where_to_get_it_and_the_licence(tmp_path, name):
    out = tmp_path / "out.npz"
    with pytest.raises(AssetNotFoundError, match=f"raw folder of {name} not found at .*Licence"):
        import_face_model(name, tmp_path / "nowhere", out)
    with pytest.raises(AssetNotFoundError) as caught:
        import_face_model(name, tmp_path, out)
    message = str(caught.value)
    assert str(tmp_path) in message
    assert KINDS[name].licence in message
    assert any(word in message for word in (".at", "github.com", "faces.dmi", "flame.is"))
    assert not out.exists()


def test_a_foreign_file_under_the_right_name_is_refused(imported, tmp_path):
    for name, wrong in [
        ("bfm2009", {"01_MorphableModel.mat": b"x", "BFM_exp_idx.mat": b""}),
        ("bfm2017", {"model2017-1_face12_nomouth.h5": b"\x89HDF\r\n\x1a\n"}),
        (
            "flame",
            {"generic_model.pkl": EXECUTES, "landmark_embedding.npy": b""},
        ),
        ("ict", {"generic_neutral_mesh.obj": b"v 1 2\n", "vertex_indices.json": b"{}"}),
    ]:
        folder = tmp_path / name
        folder.mkdir()
        for file, content in wrong.items():
            (folder / file).write_bytes(content)
        with pytest.raises(DataError, match=str(folder)):
            import_face_model(name, folder, tmp_path / "out.npz")
    _, _, good = imported("flame")
    shutil.copytree(good, tmp_path / "mixed")
    np.save(tmp_path / "mixed" / "landmark_embedding.npy", np.array({"a": 1}, object))
    with pytest.raises(DataError, match="'full_lmk_faces_idx' is missing"):
        import_face_model("flame", tmp_path / "mixed", tmp_path / "out.npz")


def test_indices_of_another_version_are_refused(imported, tmp_path):
    _, _, folder = imported("bfm2009")
    for file in folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "BFM_front_idx.mat").unlink()
    idx = np.arange(35709, dtype=np.float32)[:, None] + 20000
    scipy.io.savemat(tmp_path / "BFM_front_idx.mat", {"idx": idx})
    with pytest.raises(DataError, match=r"idx of BFM_front_idx.mat holds indices 20000\.\.55708"):
        import_face_model("bfm2009", tmp_path, tmp_path / "out.npz")


def test_the_command_line_imports_lists_checks_and_shows(imported, tmp_path, capsys):
    _, _, folder = imported("ict", "face")
    out = tmp_path / "models" / "ict.npz"
    main(["import", "ict", "--raw", str(folder), "--out", str(out)])
    printed = capsys.readouterr().out
    assert f"--model.face_model={out}" in printed
    assert "note: albedo: a stand-in" in printed
    main(["list", "--folder", str(out.parent)])
    printed = capsys.readouterr().out
    assert all(name in printed for name in KINDS)
    assert "ict.npz: ict-face, 9409 vertices, 100 + 53 + 60 modes, MIT; stand-ins" in printed
    main(["check", str(out)])
    assert "unit" in capsys.readouterr().out
    main(["map", "procedural", str(out), "--out", str(tmp_path / "map.npz")])
    assert "of the vertices valid, median 0." in capsys.readouterr().out
    carried = Correspondence.load(tmp_path / "map.npz").apply(load_face_model(str(out)).mean)
    head = load_face_model("procedural")
    away = (head.landmarks(carried) - head.landmarks(head.mean))[17:]  # the fake is this head
    assert (away - away.mean(0)).norm(dim=-1).mean() < 1.5
    with pytest.raises(SystemExit, match="2"):
        main(["import", "itc", "--raw", str(folder), "--out", str(out)])
    assert "no importer 'itc'; there are bfm2009" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["show", "procedural", "--out", str(tmp_path / "sheet.xyz")])
    assert "must end like a picture" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["map", "procedural", "procedural", "--out", str(out / "map.npz")])  # a file
    assert f"'{out}'" in capsys.readouterr().err
    with pytest.raises(MonofaceError, match="no variant 'neck'; it has face, head"):
        import_face_model("ict", folder, out, "neck")


def test_all_imports_together_take_less_than_half_a_minute(imported):
    for name in FORMS:
        imported(name)
    taken = {name: SECONDS[f"{name}-{variant}"] for name, variant in FORMS.items()}
    assert sum(taken.values()) < 30, taken  # of the processor, so that other programs do not count
