import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image

from core.errors import AssetNotFoundError, DataError
from core.face_models import load_face_model
from core.face_models.fitted import place
from core.face_models.importers import bfm2009
from core.landmarks import mirror
from datamodules.clips import Fault, UnusableFrameError
from datamodules.w300lp import AFLW2000, W300LP, FittedFaces, TurnedFaces, landmark_basis
from tests.fakes import aflw2000, w300lp

SAMPLES = Path(__file__).resolve().parents[2] / "shared" / "samples"
real = pytest.mark.skipif(not SAMPLES.is_dir(), reason="the real samples are not here")


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return w300lp.write(tmp_path_factory.mktemp("w300lp"))


def all_clips(source):
    return {clip.name: clip for clips in source.splits.values() for clip in clips}


def mat(path, key):
    return scipy.io.loadmat(path)[key]


# listing


def test_a_clip_is_a_face_at_all_its_yaws(shared):
    source = TurnedFaces.scan(shared)
    clips = all_clips(source)
    assert len(clips) == 4 * 3 * 2
    clip = clips["HELEN/HELEN_2_1"]
    assert clip.frames.tolist() == [b"HELEN_2_1_0.jpg", b"HELEN_2_1_1.jpg", b"HELEN_2_1_2.jpg"]
    np.testing.assert_allclose(clip.yaw, [0, -20, -40], atol=1e-4)
    np.testing.assert_allclose(clips["HELEN_Flip/HELEN_2_1"].yaw, [0, 20, 40], atol=1e-4)
    assert clips["IBUG/IBUG_image_001_1"].frames.tolist() == [
        b"IBUG_image_001_1_1.jpg",
        b"IBUG_image_001_1_2.jpg",
    ]
    assert np.isnan(clips["IBUG/IBUG_image_001_1"].yaw).tolist() == [True, False]
    assert source.left_out == {"images without landmarks": 1, "poses that cannot be read": 1}
    pickle.loads(pickle.dumps(source))


def test_more_than_ten_steps_stay_in_order(tmp_path):
    root = w300lp.write(tmp_path, photos=2, steps=12)
    clip = all_clips(TurnedFaces.scan(root))["LFPW/LFPW_0"]
    assert clip.frames.tolist() == [b"LFPW_0_%d.jpg" % k for k in range(12)]


@pytest.mark.parametrize("seed", [0, 1])
def test_mirror_images_are_other_people_in_the_originals_split(shared, seed):
    splits = TurnedFaces.scan(shared, split_seed=seed).splits
    faces = {
        split: {clip.identity.removesuffix(" mirrored") for clip in clips}
        for split, clips in splits.items()
    }
    assert [len(names) for names in faces.values()] == [10, 1, 1]
    assert len(set.union(*faces.values())) == 12
    for split, clips in splits.items():
        assert len({clip.identity for clip in clips}) == 2 * len(faces[split])


def test_another_seed_divides_otherwise(shared):
    tests = [TurnedFaces.scan(shared, split_seed=seed).splits["test"][0].name for seed in range(4)]
    assert len(set(tests)) > 1


def test_without_flips(shared):
    clips = all_clips(TurnedFaces.scan(shared, flips=False))
    assert len(clips) == 12
    assert not any("_Flip" in name for name in clips)


# reading


@pytest.mark.parametrize("folder", ["AFW", "AFW_Flip"])
def test_2d_landmarks_are_matlabs_less_half_a_pixel(shared, folder):
    source = TurnedFaces.scan(shared)
    clip = all_clips(source)[f"{folder}/AFW_1_1"]
    frame = source.read(clip, 2)
    expected = mat(shared / folder / "AFW_1_1_2.mat", "pt2d").T - 0.5
    np.testing.assert_allclose(frame.landmarks, expected, rtol=1e-6)
    assert (frame.confidence == 1).all()
    assert frame.landmarks_3d is None
    pixels = np.array(Image.open(shared / folder / "AFW_1_1_2.jpg"))
    assert np.array_equal(frame.image.permute(1, 2, 0), pixels)


def test_3d_landmarks_of_mirror_images_are_the_originals_mirrored(shared):
    source = TurnedFaces.scan(shared, "3d")
    clips = all_clips(source)
    frame = source.read(clips["AFW/AFW_1_1"], 2)
    points = mat(shared / "landmarks/AFW/AFW_1_1_2_pts.mat", "pts_3d")
    np.testing.assert_allclose(frame.landmarks, points - 0.5, rtol=1e-6)
    flipped = source.read(clips["AFW_Flip/AFW_1_1"], 2)
    np.testing.assert_allclose(flipped.landmarks, mirror(frame.landmarks, 64), atol=1e-5)


def test_images_without_3d_landmarks_are_counted(shared, tmp_path):
    root = shutil.copytree(shared, tmp_path / "copy")
    shutil.rmtree(root / "landmarks/AFW")
    source = TurnedFaces.scan(root, "3d")
    assert source.left_out["images without landmarks"] == 2 * 9 + 1
    assert not any(name.startswith("AFW") for name in all_clips(source))


@pytest.mark.parametrize(
    ("suffix", "content", "fault"),
    [
        ("jpg", b"", Fault.IMAGE),
        ("jpg", None, Fault.IMAGE),
        ("mat", b"", Fault.LANDMARKS),
        ("mat", b"text", Fault.LANDMARKS),
        ("mat", None, Fault.LANDMARKS),
        ("mat", {"pt2d": np.zeros((2, 21))}, Fault.LANDMARKS),
        ("mat", {"Pose_Para": np.zeros((1, 7))}, Fault.LANDMARKS),
    ],
)
def test_damaged_files_are_faults_that_name_them(shared, tmp_path, suffix, content, fault):
    root = shutil.copytree(shared, tmp_path / "copy")
    source = TurnedFaces.scan(root)
    path = root / f"AFW/AFW_1_1_0.{suffix}"
    path.unlink()
    if isinstance(content, dict):
        scipy.io.savemat(path, content)
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(UnusableFrameError, match=str(path)) as caught:
        source.read(all_clips(source)["AFW/AFW_1_1"], 0)
    assert caught.value.fault == fault


def test_an_epoch_counts_what_it_leaves_out(shared, tmp_path):
    root = shutil.copytree(shared, tmp_path / "copy")
    for value, name in ((np.nan, "HELEN_1_1_0"), (900.0, "HELEN_1_1_1")):
        path = root / f"HELEN/{name}.mat"
        arrays = {key: mat(path, key) for key in ("pt2d", "Pose_Para")}
        scipy.io.savemat(path, arrays | {"pt2d": np.full((2, 68), value)})
    (root / "splits").mkdir()
    people = [stem.format(k) for stem in w300lp.SETS.values() for k in range(3)]
    (root / "splits/train.txt").write_text("\n".join(people))
    options = {"image_size": 32, "frames_per_clip": 3, "clips_per_batch": 2, "workers": 0}
    module = W300LP(root, **options)
    module.setup("fit")
    batches = list(module.train_dataloader())
    assert sum(len(batch["images"]) for batch in batches) == 24
    assert module.skipped["train"] == {
        "image cannot be read": 1,
        "landmarks cannot be read": 1,
        "landmarks are not finite": 1,
        "landmarks are outside the image": 1,
    }


@pytest.mark.parametrize("module", [W300LP, AFLW2000])
def test_other_folders_say_what_was_found(tmp_path, module):
    with pytest.raises(AssetNotFoundError, match=r"nowhere'.*Wanted a folder with"):
        module(tmp_path / "nowhere").source()
    with pytest.raises(DataError, match="found nothing, wanted"):
        module(tmp_path).source()
    (tmp_path / "mp4").mkdir()
    (tmp_path / "a.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"found \['a.jpg', 'mp4'\], wanted"):
        module(tmp_path).source()


# the fitted face


def test_3d_landmarks_of_the_fit(shared, tmp_path, monkeypatch):
    """Against the whole mesh, computed as the format's description says, one vertex at a time."""
    rng = np.random.default_rng(0)
    full, trimmed = 400, 300
    monkeypatch.setattr(bfm2009, "ALL", full)
    monkeypatch.setattr(bfm2009, "TRIMMED", trimmed)
    keypoints = rng.permutation(trimmed)[:68]
    monkeypatch.setattr(bfm2009, "KEYPOINTS", tuple(keypoints.tolist()))
    trim = np.sort(rng.permutation(full)[:trimmed])
    mu_shape, w_shape = rng.normal(0, 5e4, (3 * full, 1)), rng.normal(0, 0.05, (3 * full, 199))
    mu_exp, w_exp = rng.normal(0, 1e3, (3 * trimmed, 1)), rng.normal(0, 1e3, (3 * trimmed, 29))
    raw = tmp_path / "raw"
    raw.mkdir()
    scipy.io.savemat(
        raw / "01_MorphableModel.mat",
        {"shapeMU": np.float32(mu_shape), "shapePC": np.float32(w_shape)},
    )
    scipy.io.savemat(raw / "BFM_exp_idx.mat", {"trimIndex": np.uint16(trim[:, None] + 1)})
    scipy.io.savemat(raw / "Model_Exp.mat", {"mu_exp": mu_exp, "w_exp": w_exp})

    root = shutil.copytree(shared, tmp_path / "copy")
    path = root / "AFW/AFW_0_1_1.mat"
    shape, expression = rng.normal(0, 1e5, (199, 1)), rng.normal(0, 1, (29, 1))
    pose = np.float32([[0.3, -0.7, 0.2, 30, 28, -5, 3e-4]])
    arrays = {"pt2d": mat(path, "pt2d"), "Pose_Para": pose, "Shape_Para": shape}
    scipy.io.savemat(path, arrays | {"Exp_Para": expression})

    (cx, cy, cz), (sx, sy, sz) = np.cos(pose[0, :3]), np.sin(pose[0, :3])
    R = np.array([[1, 0, 0], [0, cx, sx], [0, -sx, cx]])
    R = R @ np.array([[cy, 0, -sy], [0, 1, 0], [sy, 0, cy]])
    R = R @ np.array([[cz, sz, 0], [-sz, cz, 0], [0, 0, 1]])
    rows = (3 * trim[:, None] + np.arange(3)).ravel()
    mesh = (mu_shape + w_shape @ shape)[rows] + mu_exp + w_exp @ expression
    x, y, z = 3e-4 * R @ mesh.reshape(-1, 3).T + pose[0, 3:6, None]
    matlab = np.stack([x, 64 + 1 - y, z], 1)[keypoints]

    basis = landmark_basis(raw)
    source = TurnedFaces.scan(root, "3d", basis)
    frame = source.read(all_clips(source)["AFW/AFW_0_1"], 1)
    np.testing.assert_allclose(frame.landmarks_3d, matlab - [0.5, 0.5, 0], atol=2e-3)
    assert torch.equal(frame.landmarks, frame.landmarks_3d[:, :2])
    two = TurnedFaces.scan(root, "2d", basis)
    frame = two.read(all_clips(two)["AFW/AFW_0_1"], 1)
    np.testing.assert_allclose(frame.landmarks, mat(path, "pt2d").T - 0.5, rtol=1e-6)
    np.testing.assert_allclose(frame.landmarks_3d, matlab - [0.5, 0.5, 0], atol=2e-3)


def test_the_fit_needs_all_raw_files(tmp_path):
    with pytest.raises(AssetNotFoundError, match=r"01_MorphableModel\.mat"):
        W300LP(tmp_path, basel=tmp_path).source()


# AFLW2000-3D


def test_aflw2000_is_a_test_set_with_depth(tmp_path):
    root = aflw2000.write(tmp_path)
    source = FittedFaces.scan(root)
    assert [clip.name for clip in source.splits["test"]] == aflw2000.NAMES
    assert source.splits["train"] == source.splits["val"] == []
    yaws = [clip.yaw[0] for clip in source.splits["test"]]
    np.testing.assert_allclose(yaws, aflw2000.YAWS, atol=1e-4)
    frame = source.read(source.splits["test"][3], 0)
    points = mat(root / f"{aflw2000.NAMES[3]}.mat", "pt3d_68").T
    np.testing.assert_allclose(frame.landmarks_3d, points - [0.5, 0.5, 0], rtol=1e-6)
    module = AFLW2000(root, workers=0, image_size=32, frames_per_clip=1, clips_per_batch=2)
    module.setup("test")
    assert sum(len(batch["images"]) for batch in module.test_dataloader()) == 8


@real
def test_real_pairs_of_aflw2000_are_those_of_3ddfas_list():
    source = FittedFaces.scan(SAMPLES / "aflw2000")
    listed = np.load(SAMPLES / "aflw2000/AFLW2000-3D.pts68.npy")  # rows: all sorted names
    clips = {clip.name: clip for clip in source.splits["test"]}
    for name, row in (("image00050", 28), ("image00081", 55)):
        frame = source.read(clips[name], 0)
        np.testing.assert_allclose(frame.landmarks_3d, listed[row].T - [0.5, 0.5, 0], rtol=1e-6)
    degrees = np.load(SAMPLES / "aflw2000/AFLW2000-3D.pose.npy")
    np.testing.assert_allclose(clips["image00050"].yaw, degrees[28], atol=0.01)


@real
@pytest.mark.parametrize("name", ["00050", "00081", "00251", "00475", "01322", "02283"])
def test_another_head_in_the_real_pose_lies_on_the_real_landmarks(name):
    """Of the built-in head: other proportions, but axes, order and signs have to be right."""
    folder = SAMPLES / "aflw2000"
    pose = torch.from_numpy(mat(folder / f"image{name}.mat", "Pose_Para")[0]).float()
    truth = FittedFaces.scan(folder)
    clip = next(c for c in truth.splits["test"] if c.name == f"image{name}")
    points = truth.read(clip, 0).landmarks_3d
    head = load_face_model("procedural", 0, 0, 0)
    head = 1000 * head.landmarks(head.mean)
    size = (points.amax(0) - points.amin(0)).mean()

    def miss(change):
        placed = place(head, pose * change, 450)
        return (placed - placed.mean(0) - points + points.mean(0)).norm(dim=-1).mean() / size

    assert miss(torch.ones(7)) < 0.05
    angle = pose[:3].abs().argmax()
    wrong = torch.ones(7)
    wrong[angle] = -1
    if pose[angle].abs() > 0.2:
        assert miss(wrong) > 2 * miss(torch.ones(7))
    assert (place(head, pose, 450).mean(0) - points.mean(0)).norm() < 0.2 * size


@real
def test_the_real_pair_of_300w_lp(tmp_path):
    (tmp_path / "IBUG").mkdir()
    for path in (SAMPLES / "300w_lp").iterdir():
        (tmp_path / "IBUG" / path.name).symlink_to(path)
    source = TurnedFaces.scan(tmp_path)
    clip = all_clips(source)["IBUG/IBUG_image_008_1"]
    assert clip.yaw == pytest.approx([-44.0], abs=0.1)
    frame = source.read(clip, 0)
    assert frame.image.shape == (3, 450, 450)
    head = load_face_model("procedural", 0, 0, 0)
    pose = mat(SAMPLES / "300w_lp/IBUG_image_008_1_0.mat", "Pose_Para")[0]
    placed = place(1000 * head.landmarks(head.mean), torch.from_numpy(pose).float(), 450)[:, :2]
    miss = (placed - placed[17:].mean(0) - frame.landmarks + frame.landmarks[17:].mean(0)).norm(
        dim=-1
    )
    assert miss[17:].mean() < 10  # brows, nose, eyes, mouth
    assert miss[:17].mean() > 15  # "2d" jaws follow the outline
