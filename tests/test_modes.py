"""Identity, expression and albedo modes: what they promise for any head, on a small symmetric
one.
"""

from itertools import pairwise

import numpy as np
import pytest
import trimesh
from PIL import Image
from scipy.spatial import Delaunay

from core.face_models.__main__ import main
from core.face_models.procedural.anatomy import Head, SurfaceSpline
from core.face_models.procedural.modes import build_modes
from core.face_models.sheet import COLUMNS, MODES, write_sheet

FLIP = np.array([-1.0, 1.0, 1.0])
# A rough face: the left half and the midline of the 68 landmarks, (x, y) in mm, by iBUG number.
LEFT = {
    8: (0, -80), 9: (16, -78), 10: (31, -73), 11: (43, -64), 12: (52, -50), 13: (60, -32),
    14: (66, -12), 15: (70, 8), 16: (71, 29), 22: (12, 48), 23: (22, 52), 24: (33, 53),
    25: (44, 51), 26: (53, 46), 27: (0, 36), 28: (0, 23), 29: (0, 10), 30: (0, -3), 33: (0, -15),
    34: (6.5, -14), 35: (13, -13), 42: (16, 30), 43: (26, 35), 44: (36, 35), 45: (46, 30.5),
    46: (36, 25.5), 47: (26, 25.5), 51: (0, -29), 52: (6, -28), 53: (15, -31), 54: (25, -37),
    55: (16, -43), 56: (7, -46), 57: (0, -46.5), 62: (0, -36.8), 63: (9, -36.9), 64: (22.5, -37),
    65: (9, -37.1), 66: (0, -37.2),
}  # fmt: skip
RIGHT = dict(
    zip(
        (*range(16, 8, -1), *range(26, 21, -1), 35, 34, 45, 44, 43, 42, 47, 46, 54, 53, 52),
        (*range(8), *range(17, 22), 31, 32, *range(36, 42), 48, 49, 50),
        strict=True,
    )
) | {55: 59, 56: 58, 63: 61, 64: 60, 65: 67}  # fmt: skip
EYE, EYE_RADIUS = np.array([31.0, 30.0, 62.0]), 12.0


def _depth(points: np.ndarray) -> np.ndarray:
    """The face's surface: an ellipsoid with a nose and lids bulging over the eyes, z in mm."""
    x, y = np.abs(points[:, 0]), points[:, 1]
    base = 90 * np.sqrt(np.clip(1 - (x / 82) ** 2 - (y / 125) ** 2, 0.05, None))
    nose = 20 * np.exp(-((x / 8) ** 2) - ((y + 4) / 20) ** 2)
    lid = EYE_RADIUS + 0.6
    offset = lid**2 - (x - EYE[0]) ** 2 - (y - EYE[1]) ** 2
    cap = EYE[2] + np.sqrt(np.clip(offset, 0, None))
    return np.maximum(base * 0.9 + nose, np.where(offset > 0, cap, 0))


def _head() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Mean, triangles, mirror, landmarks, regions of a mask with cut lips, eye openings and
    eyeballs.

    The right half mirrors the left; vertices on x = 0 are their own mirror images.
    """
    eye = np.array([LEFT[k] for k in (42, 43, 44, 45, 46, 47)], float)
    mouth = np.array([LEFT[k] for k in (62, 63, 64, 65, 66)], float)
    turns = np.linspace(0, 1, 5)[:-1]
    rim = np.concatenate(
        [a + turns[:, None] * (b - a) for a, b in zip(eye, np.roll(eye, -1, 0), strict=True)]
    )
    seam = np.concatenate(
        [a + np.linspace(0, 1, 6)[:-1, None] * (b - a) for a, b in pairwise(mouth)]
    )
    grid = np.stack(np.meshgrid(np.arange(0, 80, 3.5), np.arange(-112, 112, 3.5)), -1).reshape(
        -1, 2
    )
    middle = np.stack([np.zeros(40), np.linspace(-112, 112, 40)], 1)
    fixed = np.concatenate([rim, seam, [[0, -37.2]], np.array(list(LEFT.values()), float), middle])
    fixed = fixed[np.unique(fixed.round(3), axis=0, return_index=True)[1]]
    keep = (grid[:, 0] > 1.5) & ((grid[:, 0] / 82) ** 2 + (grid[:, 1] / 125) ** 2 < 0.9)
    keep &= np.linalg.norm(grid[:, None] - fixed, axis=-1).min(1) > 2
    flat = np.concatenate([fixed, grid[keep]])
    flat = flat[np.argsort(flat[:, 0] != 0, kind="stable")]
    triangles = Delaunay(flat).simplices.astype(np.int64)
    centre = flat[triangles].mean(1)
    a, b, c = (flat[triangles[:, k]] for k in range(3))
    area = (b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0]
    triangles[area < 0] = triangles[area < 0][:, ::-1]
    in_eye, in_mouth = _inside(centre, eye), _inside(centre, mouth)
    triangles = triangles[~in_eye & ~in_mouth & (np.abs(area) > 1e-6)]

    skin = np.c_[flat, _depth(flat)]
    ball, ball_triangles = _sphere()
    left = np.concatenate([skin, ball + EYE])
    triangles = np.concatenate([triangles, ball_triangles + len(skin)])
    used = np.unique(triangles)
    number = np.full(len(left), -1)
    number[used] = np.arange(len(used))
    left, triangles = left[used], number[triangles]
    own = left[:, 0] == 0
    image = np.where(own, np.arange(len(left)), len(left) + np.cumsum(~own) - 1)
    mean = np.concatenate([left, left[~own] * FLIP])
    triangles = np.concatenate([triangles, image[triangles][:, ::-1]])
    mirror = np.concatenate([image, np.flatnonzero(~own)])
    landmarks = np.zeros((68, 3))
    for number, place in LEFT.items():
        point = np.array([place], float)
        landmarks[number] = np.r_[point[0], _depth(point)]
        if number in RIGHT:
            landmarks[RIGHT[number]] = landmarks[number] * FLIP
    face = (np.abs(mean[:, 0]) < 72) & (mean[:, 1] > -85) & (mean[:, 1] < 85)
    return mean, triangles, mirror, landmarks, {"face": face}


def _inside(points: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Points in a convex polygon of either orientation."""
    edge = np.roll(corners, -1, axis=0) - corners
    offset = points[:, None] - corners
    side = edge[:, 0] * offset[..., 1] - edge[:, 1] * offset[..., 0]
    return (side > 0).all(1) | (side < 0).all(1)


def _sphere() -> tuple[np.ndarray, np.ndarray]:
    """A closed sphere about 0 with outward triangles."""
    sphere = trimesh.creation.icosphere(subdivisions=2, radius=EYE_RADIUS)
    return np.array(sphere.vertices), np.array(sphere.faces)


@pytest.fixture(scope="module")
def arrays():
    return _head()


@pytest.fixture(scope="module")
def modes(arrays):
    return build_modes(*arrays)


def _nearest(arrays, number):
    """The vertex at a landmark."""
    mean, _, _, landmarks, _ = arrays
    return int(((mean - landmarks[number]) ** 2).sum(1).argmin())


def test_the_head_of_these_tests_is_what_they_need(arrays):
    mean, triangles, mirror, _, _ = arrays
    assert (mirror[mirror] == np.arange(len(mean))).all()
    assert (mean[mirror] * FLIP == mean).all()
    head = Head(*arrays)
    for side in (1, -1):
        ball = head.eyeballs[side]
        assert ball.vertices.sum() > 50
        np.testing.assert_allclose(ball.centre, EYE * [side, 1, 1], atol=1e-6)
        assert ball.radius == pytest.approx(EYE_RADIUS)
    assert head.parts.max() == 2
    assert len(triangles) > 2000


def test_counts(modes, arrays):
    n = len(arrays[0])
    assert modes["identity_basis"].shape[0] >= 80
    assert modes["expression_basis"].shape[0] >= 30
    assert modes["albedo_basis"].shape[0] >= 40
    assert len(set(modes["expression_names"])) == len(modes["expression_basis"])
    for name in ("identity_basis", "expression_basis", "albedo_basis"):
        assert modes[name].shape[1:] == (n, 3)
        assert np.isfinite(modes[name]).all()
        assert np.abs(modes[name]).max((1, 2)).min() > 0


@pytest.mark.parametrize("name", ["identity_basis", "albedo_basis"])
def test_modes_are_orthogonal_and_ordered(modes, arrays, name):
    weighted = modes[name].astype(float) * np.sqrt(Head(*arrays).importance)[:, None]
    flat = weighted.reshape(len(weighted), -1)
    gram = flat @ flat.T
    variance = np.diag(gram)
    assert (np.diff(variance) <= 1e-6 * variance[0]).all()
    unit = gram / np.sqrt(variance[:, None] * variance)
    np.testing.assert_allclose(unit, np.eye(len(unit)), atol=2e-4)


def test_a_random_identity_differs_by_two_to_four_millimetres(modes, arrays):
    face = arrays[4]["face"]
    basis = modes["identity_basis"][:, face].astype(float)
    people = np.tensordot(np.random.default_rng(0).standard_normal((200, len(basis))), basis, 1)
    rms = np.sqrt((people**2).sum(-1).mean(1))
    assert 2 < rms.mean() < 4
    assert (rms < 8).all()
    # the standard deviation of the sum is what the modes say it is
    assert (rms**2).mean() == pytest.approx((basis**2).sum((0, 2)).mean(), rel=0.15)


def test_identity_holds_no_rigid_motion_of_the_face(modes, arrays):
    mean, face = arrays[0], arrays[4]["face"] & ~Head(*arrays).is_eyeball
    moved = modes["identity_basis"][:, face].astype(float)
    centred = mean[face] - mean[face].mean(0)
    spin = np.cross(centred, moved).mean(1)
    assert np.abs(moved.mean(1)).max() < 1e-4
    assert np.abs(spin).max() < 1e-2  # mm^2; a turn by one degree would have about 50


def test_identity_modes_are_symmetric_or_antisymmetric(modes, arrays):
    reflected = modes["identity_basis"][:, arrays[2]] * FLIP.astype(np.float32)
    even = (reflected == modes["identity_basis"]).all((1, 2))
    odd = (reflected == -modes["identity_basis"]).all((1, 2))
    assert (even | odd).all()
    assert even[:5].all(), "the largest modes are symmetric"
    assert 5 <= odd.sum() < 0.5 * len(odd)


def test_eyeballs_stay_rigid_and_lids_keep_off_them(modes, arrays):
    head = Head(*arrays)
    ball = head.eyeballs[1]
    distance = np.linalg.norm(head.mean - ball.centre, axis=1)
    lids = (distance < ball.radius + 3) & ~head.is_eyeball
    assert lids.sum() > 10
    for mode in modes["identity_basis"][:40].astype(float):
        motion = mode[ball.vertices].mean(0)
        outward = (head.mean - ball.centre) / distance[:, None]
        growth = ((mode - motion) * outward).sum(1)
        np.testing.assert_allclose(growth[ball.vertices | lids], 0, atol=1e-5)
        assert np.abs(growth).max() > 1e-3, "the rest of the face is free"


def test_left_and_right_shapes_are_mirror_images(modes, arrays):
    shapes = dict(zip(modes["expression_names"], modes["expression_basis"], strict=True))
    for name, shape in shapes.items():
        reflected = shape[arrays[2]] * FLIP.astype(np.float32)
        twin = name.replace("Left", "#").replace("Right", "Left").replace("#", "Right")
        assert (reflected == shapes[twin]).all(), name


def test_left_shapes_move_the_subjects_left(modes, arrays):
    x = arrays[0][:, 0]
    for name, shape in zip(modes["expression_names"], modes["expression_basis"], strict=True):
        if name.endswith("Left") and name not in ("mouthLeft", "jawLeft"):
            moved = (shape.astype(float) ** 2).sum(1)
            assert moved[x > 0].sum() > 5 * moved[x < 0].sum(), name
        elif name.endswith("Left"):
            assert shape[:, 0].sum() > 0, name


def test_jaw_open_parts_the_lips_and_leaves_the_upper_face(modes, arrays):
    mean, _, _, landmarks, _ = arrays
    shape = modes["expression_basis"][list(modes["expression_names"]).index("jawOpen")]
    upper, lower = (_nearest(arrays, k) for k in (62, 66))
    opened = mean + shape
    assert np.linalg.norm(opened[upper] - opened[lower]) > 20
    assert opened[upper, 1] > opened[lower, 1]
    assert np.linalg.norm(shape[upper]) < 3
    above = mean[:, 1] > landmarks[29, 1]
    assert np.abs(shape[above]).max() < 1
    chin = shape[_nearest(arrays, 8)]
    assert np.linalg.norm(chin) > 20
    assert chin[1] < -5
    assert chin[2] < -5, "the chin swings back"


def test_blinking_closes_the_lids_without_entering_the_eyeball(modes, arrays):
    mean = arrays[0]
    names = list(modes["expression_names"])
    blink = sum(modes["expression_basis"][names.index(f"eyeBlink{s}")] for s in ("Left", "Right"))
    closed = mean + blink
    for upper, lower in ((37, 41), (38, 40), (43, 47), (44, 46)):
        upper, lower = _nearest(arrays, upper), _nearest(arrays, lower)
        assert np.linalg.norm(mean[upper] - mean[lower]) > 8
        assert np.linalg.norm(closed[upper] - closed[lower]) < 1.5
    head = Head(*arrays)
    for amount in (0.5, 1.0):
        ball = head.eyeballs[1]
        distance = np.linalg.norm(mean + amount * blink - ball.centre, axis=1)
        assert distance[~head.is_eyeball].min() > ball.radius - 0.5


def test_eyeballs_turn_with_the_gaze_and_with_nothing_else(modes, arrays):
    head = Head(*arrays)
    ball = head.eyeballs[1]
    for name, shape in zip(modes["expression_names"], modes["expression_basis"], strict=True):
        moved = np.abs(shape[ball.vertices]).max()
        assert (moved > 2) == (name.startswith("eyeLook") and name.endswith("Left")), name
        if moved <= 2:
            assert moved == 0, name
    front = np.flatnonzero(ball.vertices)[head.mean[ball.vertices, 2].argmax()]
    shapes = dict(zip(modes["expression_names"], modes["expression_basis"], strict=True))
    assert shapes["eyeLookUpLeft"][front, 1] > 2
    assert shapes["eyeLookOutLeft"][front, 0] > 2


def test_expressions_are_smooth(modes, arrays):
    """No spikes: neighbours move alike."""
    mean, triangles = arrays[:2]
    i, j = triangles[:, 0], triangles[:, 1]
    length = np.linalg.norm(mean[i] - mean[j], axis=1)
    usual = length > 1
    for name, shape in zip(modes["expression_names"], modes["expression_basis"], strict=True):
        strain = np.linalg.norm(shape[i] - shape[j], axis=1)[usual] / length[usual]
        assert np.quantile(strain, 0.999) < 2.2, name


def test_albedo_ranges_and_melanin(modes, arrays):
    mean, basis = modes["albedo_mean"], modes["albedo_basis"]
    assert mean.min() >= 0
    assert mean.max() <= 1
    extremes = mean + np.array([-2.0, 2.0])[:, None, None, None] * basis
    assert ((extremes >= 0) & (extremes <= 1)).mean() > 0.999
    skin = Head(*arrays).mean[:, 1] > 60  # the forehead
    dark, light = sorted((extremes[k, 0, skin].mean(0) for k in range(2)), key=np.sum)
    assert dark.max() < 0.5
    assert light.min() > 0.6
    for colour in (dark, mean[skin].mean(0), light):
        assert colour[0] > colour[1] > colour[2], "skin is reddish at every tone"


def test_albedo_paints_eyes_lips_and_brows(modes, arrays):
    mean, landmarks, albedo = arrays[0], arrays[3], modes["albedo_mean"]
    assert (albedo[arrays[2]] == albedo).all()
    brow, lip, cheek = (albedo[_nearest(arrays, k)] for k in (24, 57, 14))
    assert brow.mean() < 0.6 * cheek.mean()
    assert lip[0] - lip[1] > cheek[0] - cheek[1]
    ball = Head(*arrays).eyeballs[1]
    sideways = np.abs(mean[:, 0] - ball.centre[0])
    white = ball.vertices & (sideways > 8) & (mean[:, 2] > ball.centre[2])
    assert albedo[white].min() > 0.7
    pupil = np.flatnonzero(ball.vertices)[mean[ball.vertices, 2].argmax()]
    assert albedo[pupil].max() < 0.4
    assert landmarks[43, 0] > 0


def test_deterministic(modes, arrays):
    again = build_modes(*arrays)
    for name, array in modes.items():
        np.testing.assert_array_equal(array, again[name], err_msg=name)


def test_missing_regions_and_eyeballs_are_no_obstacle(arrays):
    mean, triangles, mirror, landmarks, _ = arrays
    skin = ~Head(*arrays).is_eyeball
    number = np.cumsum(skin) - 1
    triangles = number[triangles[skin[triangles].all(1)]]
    bare = build_modes(mean[skin], triangles, number[mirror[skin]], landmarks, {})
    assert all(np.isfinite(array).all() for name, array in bare.items() if "names" not in name)


def test_a_spline_passes_through_its_handles_and_respects_the_cut(arrays):
    head = Head(*arrays)
    handles = np.array([_nearest(arrays, k) for k in (62, 66, 8)])
    value = np.array([[0.0], [1.0]])
    parted = SurfaceSpline(head, handles, 20.0)(np.array([0, 1]), value)[:, 0]
    assert parted[handles[0]] == pytest.approx(0, abs=0.05)
    assert parted[handles[1]] == pytest.approx(1, abs=0.05)
    closed = SurfaceSpline(head, handles, 20.0, closed=True)(np.array([1]), value[1:])[:, 0]
    for upper, lower in head.touching:
        assert closed[upper] == pytest.approx(closed[lower], abs=0.25)


def test_the_sheet_shows_every_face(face_model, tmp_path):
    write_sheet(face_model, tmp_path / "new" / "sheet.png", size=32, people=3)
    sheet = np.asarray(Image.open(tmp_path / "new" / "sheet.png"))
    # mean, -2 and +2 sigma of identity and albedo, expressions, people: one row each for this model
    assert sheet.shape == (7 * 32, COLUMNS * 32, 3)
    cells = sheet.reshape(7, 32, COLUMNS, 32, 3).swapaxes(1, 2).astype(float)
    assert min(len(face_model.identity_basis), MODES) <= COLUMNS
    drawn = cells[..., 8:24, :].std((2, 3, 4)) > 5
    shown = [COLUMNS, COLUMNS, COLUMNS, COLUMNS, COLUMNS, len(face_model.expression_basis), 6]
    assert drawn.sum(1).tolist() == shown
    # the middle of the first face is skin, its top left corner under the label is not
    assert cells[0, 0, 16, 16].mean() > cells[0, 0, 28, 1].mean()


def test_the_command_line_names_what_it_wants(capsys):
    with pytest.raises(SystemExit):
        main(["show", "procedural"])
    assert "--out" in capsys.readouterr().err
