import numpy as np
import pytest
import torch

from core.errors import AssetNotFoundError, DataError
from core.face_models import FaceModel, load_face_model
from core.landmarks import MIRROR
from tests.fakes.face_model import face_model_arrays, write


def test_eq_5_on_a_tiny_random_model_with_loops():
    """S = mean + sum_k a_k B_k + sum_k e_k E_k, vertex by vertex."""
    arrays = face_model_arrays(identity=3, expression=2)
    model = FaceModel(arrays)
    a, e = torch.randn(4, 3), torch.randn(4, 2)
    found = model.shape(a, e)
    for sample in range(4):
        for vertex in (0, 17, 333):
            expected = arrays["mean"][vertex].astype(float)
            for k in range(3):
                expected = expected + a[sample, k].item() * arrays["identity_basis"][k, vertex]
            for k in range(2):
                expected = expected + e[sample, k].item() * arrays["expression_basis"][k, vertex]
            np.testing.assert_allclose(found[sample, vertex].numpy(), expected, atol=1e-4)


def test_albedo_is_linear_in_its_coefficients(face_model):
    k = torch.eye(4)
    torch.testing.assert_close(
        face_model.albedo(k) - face_model.albedo(0 * k), face_model.albedo_basis, atol=1e-6, rtol=0
    )


def test_shape_takes_any_leading_axes_and_no_expression(face_model):
    identity = torch.randn(2, 3, 8)
    neutral = face_model.shape(identity)
    torch.testing.assert_close(neutral, face_model.shape(identity, torch.zeros(2, 3, 5)))
    torch.testing.assert_close(neutral[1, 2], face_model.shape(identity[1, 2]))


def test_landmarks_are_weighted_means_of_vertices(face_model):
    vertices = torch.randn(2, *face_model.mean.shape)
    found = face_model.landmarks(vertices)
    i = 36
    expected = sum(
        face_model.landmark_weights[i, k] * vertices[1, face_model.landmark_vertices[i, k]]
        for k in range(3)
    )
    torch.testing.assert_close(found[1, i], expected)


def test_fewer_modes_are_the_first_ones(face_model):
    small = FaceModel(face_model_arrays(), 3, 2, 1)
    assert small.identity_basis.shape[0] == 3
    assert small.expression_names == ["expression0", "expression1"]
    torch.testing.assert_close(small.albedo_basis, face_model.albedo_basis[:1])
    with pytest.raises(DataError, match="8 modes in identity_basis, but 9"):
        FaceModel(face_model_arrays(), 9)


def test_reads_what_was_written(tmp_path, face_model):
    model = load_face_model(str(write(tmp_path / "model.npz")))
    assert (model.name, model.licence) == ("fake", "MIT")
    for name, buffer in face_model.named_buffers():
        assert torch.equal(dict(model.named_buffers())[name], buffer), name


def test_checkpoints_do_not_store_the_model(face_model):
    assert face_model.state_dict() == {}


def test_a_missing_or_foreign_file_is_a_clear_error(tmp_path):
    with pytest.raises(AssetNotFoundError, match=r"nowhere\.npz"):
        load_face_model(str(tmp_path / "nowhere.npz"))
    (tmp_path / "text.npz").write_text("not a zip")
    whole = write(tmp_path / "model.npz").read_bytes()
    (tmp_path / "truncated.npz").write_bytes(whole[: len(whole) // 2])
    middle = len(whole) // 2
    (tmp_path / "damaged.npz").write_bytes(whole[:middle] + bytes(64) + whole[middle + 64 :])
    np.save(tmp_path / "array.npy", np.zeros(3))
    for name in ("text.npz", "truncated.npz", "damaged.npz", "array.npy"):
        with pytest.raises(DataError, match=f"{name}' is not a readable"):
            load_face_model(str(tmp_path / name))
    np.savez(tmp_path / "other.npz", mean=np.zeros((3, 3)))
    with pytest.raises(DataError, match=r"other\.npz': not a face model: the keys .* are missing"):
        load_face_model(str(tmp_path / "other.npz"))


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("uv", lambda uv: None, r"\['uv'\] are missing"),
        ("uv", lambda uv: uv[:-1], r"'uv' has shape \(524, 2\), wanted \(525, 2\)"),
        ("triangles", lambda t: t + 1, "only 525"),
        ("triangles", lambda t: t.astype(float), "must hold integers"),
        ("mean", lambda m: m * np.nan, "NaN"),
        ("version", lambda v: np.array(2), "version 2"),
        ("mean", lambda m: np.float32(1), r"'mean' has shape \(\)"),
        ("mean", lambda m: m / 10, "measures 21 .* wanted 100 to 500 millimetres"),
        ("mean", lambda m: m * 1000, r"measures 2\.1e\+05 .*convert 'mean'"),
        ("landmark_weights", lambda w: w * 2, "landmark 0 sum to 2, wanted 1"),
        ("expression_names", lambda names: names[:-1], r"'expression_names' has shape \(4,\)"),
        ("region_face", lambda face: face[:-1], r"'region_face' has shape \(524,\)"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(key, change, message):
    arrays = face_model_arrays()
    changed = change(arrays.pop(key))
    if changed is not None:
        arrays[key] = changed
    with pytest.raises(DataError, match=message):
        FaceModel(arrays)


def test_spread_of_expressions_must_be_one_for_each():
    with pytest.raises(DataError, match=r"'expression_std' has shape \(4,\), wanted \(5,\)"):
        FaceModel({**face_model_arrays(), "expression_std": np.ones(4)})


def test_a_part_of_several_regions_has_the_triangles_between_them():
    above = np.arange(525) < 262  # of 25 rows of 21, the border goes through the 13th
    model = FaceModel({**face_model_arrays(), "region_above": above, "region_below": ~above})
    apart = len(model.part("above")) + len(model.part("below"))
    assert apart < len(model.triangles)
    assert torch.equal(model.part("above", "below"), model.triangles)


def test_unknown_region_lists_the_known_ones(face_model):
    assert 0 < face_model.region("face").sum() < 525
    with pytest.raises(DataError, match="face"):
        face_model.region("beard")


def test_the_fake_is_exactly_symmetric():
    arrays = face_model_arrays()
    mean, uv, mirror = arrays["mean"], arrays["uv"], arrays["mirror"]
    np.testing.assert_array_equal(mean[mirror] * np.float32([-1, 1, 1]), mean)
    np.testing.assert_allclose(uv[mirror] * [-1, 1] + [1, 0], uv, atol=1e-6)
    np.testing.assert_array_equal(mirror[mirror], np.arange(len(mirror)))
    reflected = mirror[arrays["triangles"]][:, [0, 2, 1]]

    def rolled(triangles):
        return {tuple(np.roll(t, -t.argmin())) for t in triangles.tolist() for t in [np.array(t)]}

    assert rolled(reflected) == rolled(arrays["triangles"])
    marks = (mean[arrays["landmark_vertices"]] * arrays["landmark_weights"][..., None]).sum(1)
    np.testing.assert_allclose(marks[list(MIRROR)] * [-1, 1, 1], marks, atol=1e-4)
    assert len(np.unique(marks.round(2), axis=0)) == 68


def test_models_of_a_file_share_its_memory_until_the_file_changes(tmp_path):
    path = write(tmp_path / "model.npz")
    whole, part = load_face_model(str(path)), load_face_model(str(path), identity_dims=3)
    assert whole.identity_basis.data_ptr() == part.identity_basis.data_ptr()
    assert whole.mean.data_ptr() == part.mean.data_ptr()
    write(path, identity=9)
    assert len(load_face_model(str(path)).identity_basis) == 9
    built = [load_face_model().identity_basis.data_ptr() for _ in range(2)]
    assert built[0] == built[1]


def test_notes_and_stand_ins_are_told():
    plain = FaceModel(face_model_arrays())
    assert plain.notes == plain.stand_ins == []
    texts = {"notes": np.array(["albedo: borrowed"]), "stand_ins": np.array(["albedo_mean"])}
    model = FaceModel({**face_model_arrays(), **texts})
    assert model.notes == ["albedo: borrowed"]
    assert model.stand_ins == ["albedo_mean"]


def test_candidates_of_the_jaw_come_in_pairs_and_point_at_vertices():
    vertices, weights = np.zeros((17, 5, 3), np.int64), np.full((17, 5, 3), 1 / 3, np.float32)
    both = {"contour_vertices": vertices, "contour_weights": weights}
    model = FaceModel({**face_model_arrays(), **both})
    assert model.contour_vertices.shape == (17, 5, 3)
    assert FaceModel(face_model_arrays()).contour_vertices is None
    with pytest.raises(DataError, match=r"only one of .*, wanted both"):
        FaceModel({**face_model_arrays(), "contour_weights": weights})
    with pytest.raises(DataError, match=r"\(17, 4, 3\), wanted \(17, 5, 3\)"):
        FaceModel({**face_model_arrays(), **both, "contour_weights": weights[:, :4]})
    with pytest.raises(DataError, match=r"'contour_vertices' points at vertices 525\.\.525"):
        FaceModel({**face_model_arrays(), **both, "contour_vertices": vertices + 525})
