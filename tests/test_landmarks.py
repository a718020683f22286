import torch

from core.landmarks import GROUPS, LEFT_EYE, MIRROR, RIGHT_BROW, RIGHT_EYE, five_points, mirror


def test_groups_partition_the_68_points():
    assert sorted(point for group in GROUPS.values() for point in group) == list(range(68))


def test_mirror_is_an_involution_that_swaps_the_sides_groupwise():
    assert sorted(MIRROR) == list(range(68))
    assert all(MIRROR[MIRROR[point]] == point for point in range(68))
    assert {MIRROR[point] for point in RIGHT_EYE} == set(LEFT_EYE)
    assert {MIRROR[point] for point in RIGHT_BROW} == set(GROUPS["left_brow"])
    for name in ("jaw", "nose", "outer_mouth", "inner_mouth"):
        assert {MIRROR[point] for point in GROUPS[name]} == set(GROUPS[name])
    assert [point for point in range(68) if MIRROR[point] == point] == [
        *(8, 27, 28, 29, 30, 33, 51, 57, 62, 66)
    ]
    # iBUG by hand: outer eye corners, upper and lower lids, mouth corners, lips
    pairs = {36: 45, 37: 44, 41: 46, 39: 42, 48: 54, 49: 53, 59: 55, 60: 64, 61: 63, 67: 65, 31: 35}
    assert {point: MIRROR[point] for point in pairs} == pairs


def test_mirrored_landmarks_of_a_symmetric_face_stay_put(face_model):
    landmarks = face_model.landmarks(face_model.mean)[:, :2] * torch.tensor([1.0, -1.0]) + 64
    torch.testing.assert_close(mirror(landmarks, 128), landmarks, atol=1e-4, rtol=0)


def test_five_points_are_in_the_detectors_order(face_model):
    points = five_points(face_model.landmarks(face_model.mean))
    left_eye, right_eye, nose, left_mouth, right_mouth = points
    assert left_eye[0] < nose[0] < right_eye[0]
    assert left_mouth[0] < nose[0] < right_mouth[0]
    assert left_eye[1] > nose[1] > left_mouth[1]  # y is up in the model frame
    assert nose[2] == points[:, 2].max()
