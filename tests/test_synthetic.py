import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from core.camera import PerspectiveCamera
from core.errors import AssetNotFoundError, DataError
from core.image_files import read_image
from core.lighting import sh_basis
from core.multiview import covisible, paired, pixel_consistency, seen_triangles, synthesize
from core.render import draw, render
from core.rotation import euler_from_rotation
from core.truth import Truth, load_truth
from datamodules.choice import Views
from datamodules.synthesis import illumination, motion, props, sensor
from datamodules.synthesis.noise import generator, smooth_path
from datamodules.synthesis.settings import SynthesisSettings
from datamodules.synthesis.shading import irradiance_polynomial
from datamodules.synthesis.sheet import contact_sheet
from datamodules.synthesis.write import write_set
from datamodules.synthetic import Synthetic, main
from tests.fakes.face_model import face_model_arrays

SMALL = {"videos": 1, "frames": 3, "size": 64, "texture": 64}


@pytest.fixture(scope="module")
def fake(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("model") / "fake.npz"
    np.savez(path, **face_model_arrays())
    return str(path)


@pytest.fixture(scope="module")
def settings(fake) -> SynthesisSettings:
    return SynthesisSettings(identities=(1, 1, 1), face_model=fake, dropped=0.0, **SMALL)


@pytest.fixture(scope="module")
def root(settings, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("synthetic")
    write_set(root, settings, jobs=1)
    return root


@pytest.fixture(scope="module")
def plain(fake, tmp_path_factory) -> Path:
    """A set that is explained by the truth alone: nothing before the face, no flaws."""
    settings = SynthesisSettings(
        identities=(0, 0, 2),
        face_model=fake,
        occluders=0.0,
        unmodelled=0.0,
        degradation=0.0,
        **SMALL,
    )
    root = tmp_path_factory.mktemp("plain")
    write_set(root, settings, jobs=1)
    return root


def sample_ids(root: Path) -> list[str]:
    frames = sorted(path for path in (root / "frames").glob("*/*/*/*") if path.is_file())
    return [str(path.relative_to(root / "frames").with_suffix("")) for path in frames]


def contents(root: Path) -> dict[str, bytes]:
    paths = [path for path in root.rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(root)): path.read_bytes() for path in paths}


# -------------------------------------------------------------------------------------------- files


def test_the_reader_reads_what_was_written(root, settings):
    data = Synthetic(root, settings, image_size=48, frames_per_clip=2, clips_per_batch=1, workers=0)
    data.prepare_data()  # nothing to do
    for stage, loader in (("fit", "train_dataloader"), ("test", "test_dataloader")):
        data.setup(stage)
        batch = data.on_after_batch_transfer(next(iter(getattr(data, loader)())), 0)
        assert batch["images"].shape == (1, 2, 3, 48, 48)
        assert 0.1 < batch["masks"].mean() < 0.9
        assert batch["landmarks"].shape == (1, 2, 68, 2)
        truth = load_truth(root, batch["sample_ids"][0])
        # the crop shows the true landmarks where the true camera, cropped, sees them
        to_image = batch["crop_to_image"][0, 0]
        found = batch["landmarks"][0, 0] @ to_image[:2, :2].T + to_image[:2, 2]
        if stage == "test":
            assert (found - truth.landmarks).norm(dim=-1).median() < 3


def test_views_know_their_yaw(root, settings):
    """From the ground truth, also where frames are missing; only where views are asked for."""
    plain = Synthetic(root, settings).source()
    data = Synthetic(root, settings, frames=Views(0.01))
    for split in ("train", "val", "test"):
        for clip, known in zip(plain.clips(split), data.source().clips(split), strict=True):
            assert clip.yaw is None
            assert known.yaw is not None
            for frame, yaw in zip(known.frames, known.yaw, strict=True):
                truth = load_truth(root, f"{known.name}/{frame.decode().partition('.')[0]}")
                # Rx(pitch) does not move what is left of the face: the nose goes by sin(yaw)
                nose = truth.camera.head_rotation @ torch.tensor([0.0, 0.0, 1.0])
                assert -torch.asin(nose[0]).rad2deg().item() == pytest.approx(yaw, abs=1e-3)
    merged = Synthetic(root, settings, whole_video=True, frames=Views(0.01)).source()
    np.testing.assert_array_equal(merged.clips("train")[0].yaw, data.source().clips("train")[0].yaw)
    (root / "truth" / f"{plain.clips('val')[0].name}.npz").rename(root / "away.npz")
    with pytest.raises(DataError, match=r"has no rotations"):
        data.source()
    (root / "away.npz").rename(root / "truth" / f"{plain.clips('val')[0].name}.npz")


def test_people_are_in_one_split_only(root, settings):
    splits = {s: (root / "splits" / f"{s}.txt").read_text().split() for s in settings.split()}
    counted = Counter(name for names in splits.values() for name in names)
    assert set(counted.values()) == {1}
    assert sorted(counted) == sorted(path.name for path in (root / "frames").iterdir())


def test_people_and_videos_differ(root):
    first, second = (load_truth(root, f"id0000{i}/video00/00000/000000") for i in range(2))
    assert (first.neutral - second.neutral).norm(dim=-1).mean() > 0.5
    assert not torch.allclose(first.light, second.light)
    assert not torch.allclose(first.albedo_map, second.albedo_map)


def test_two_processes_write_the_same_bytes(root, settings, tmp_path):
    write_set(tmp_path / "two", settings, jobs=2)
    one, two = contents(root), contents(tmp_path / "two")
    assert one.keys() == two.keys()
    assert [name for name in one if one[name] != two[name]] == []


def test_an_interrupted_run_is_continued(root, settings, tmp_path):
    whole = contents(root)
    broken = tmp_path / "broken"
    for name, content in whole.items():
        (broken / name).parent.mkdir(parents=True, exist_ok=True)
        (broken / name).write_bytes(content)
    # killed while a clip was moved into place: its ground truth, written last, is not there
    (broken / "truth/id00001/video00/00000.npz").unlink()
    (broken / "masks/id00001/video00/00000/000001.png").unlink()
    (broken / ".partial/id00001-video00-00000/frames").mkdir(parents=True)
    (broken / ".partial/id00001-video00-00000/frames/000000.jpg").write_bytes(b"half")
    manifest = json.loads((broken / "manifest.json").read_text())
    (broken / "manifest.json").write_text(json.dumps(manifest | {"complete": False}))
    for split in settings.split():
        (broken / "splits" / f"{split}.txt").unlink()
    untouched = broken / "frames/id00000/video00/00000/000000.jpg"
    before = untouched.stat().st_mtime_ns

    data = Synthetic(broken, settings, jobs=1)
    with pytest.raises(DataError, match="not complete"):
        data.setup("fit")
    data.prepare_data()
    data.setup("fit")
    assert contents(broken) == whole
    assert untouched.stat().st_mtime_ns == before


def test_another_set_is_not_overwritten(root, settings, fake):
    before = contents(root)
    other = SynthesisSettings(
        identities=(1, 1, 1), face_model=fake, dropped=0.0, **(SMALL | {"frames": 4})
    )
    with pytest.raises(DataError, match=r"frames: 3 there, 4 wanted.*another folder"):
        Synthetic(root, other).prepare_data()
    assert contents(root) == before


def test_a_folder_of_something_else_is_left_alone(tmp_path, settings):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(DataError, match=r"thesis\.tex"):
        write_set(tmp_path, settings)
    assert [path.name for path in tmp_path.iterdir() if path.name != ".lock"] == ["thesis.tex"]


def test_where_nothing_can_be_written(tmp_path, settings):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        write_set(tmp_path / "file" / "set", settings)


def test_a_full_disk(tmp_path, settings, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("datamodules.synthesis.write._write_clip", full)
    with pytest.raises(DataError, match="No space left on device"):
        write_set(tmp_path, settings, jobs=1)
    with pytest.raises(DataError, match="not complete"):
        Synthetic(tmp_path, settings).setup("fit")


def test_command_line(root, settings, fake, tmp_path, capsys):
    arguments = ["--out", str(root), "--face_model", fake, "--identities", "1", "1", "1"]
    arguments += [f"--{key}={value}" for key, value in SMALL.items()]
    sheet = tmp_path / "sheet.png"
    assert main([*arguments, "--dropped", "0", "--sheet", str(sheet)]) == 0
    with Image.open(sheet) as picture:
        assert picture.size == (6 * 64, 2 * 2 * 64)
    assert main([*arguments, "--dropped", "0.5"]) == 1
    assert "dropped: 0.0 there, 0.5 wanted" in capsys.readouterr().err


def test_impossible_settings():
    for wrong in ({"frames": 0}, {"dropped": 1.5}, {"identities": (0, 0, 0)}, {"yaw": 120.0}):
        with pytest.raises(DataError, match=next(iter(wrong))):
            SynthesisSettings(**wrong)


def test_no_frames_to_look_at(tmp_path):
    with pytest.raises(DataError, match="no frames"):
        contact_sheet(tmp_path)


# -------------------------------------------------------------------------------------------- truth


def test_truth_of_a_frame(root):
    """Everything computed again from the files in float64, without core's cameras and models."""
    for name in sample_ids(root):
        clip, frame = name.rpartition("/")[0], int(name.rpartition("/")[2])
        with np.load(root / "truth" / f"{clip}.npz") as file:
            known = {key: file[key].astype(np.float64) for key in file.files}
        with np.load(root / "truth" / "model.npz") as file:
            basis, corners = file["expression_basis"].astype(np.float64), file["landmark_vertices"]
            weights = file["landmark_weights"].astype(np.float64)
        vertices = known["neutral"] + np.einsum("k,knd->nd", known["expression"][frame], basis)
        truth = load_truth(root, name)
        np.testing.assert_allclose(truth.vertices.numpy(), vertices, atol=1e-4)
        points = (vertices[corners] * weights[..., None]).sum(1)
        seen = points @ known["rotation"][frame].T + known["translation"][frame]
        pixels = known["focal"][frame] * seen[:, :2] / seen[:, 2:] + known["centre"][frame]
        np.testing.assert_allclose(truth.landmarks.numpy(), pixels, atol=1e-3)
        assert truth.image_path.is_file()
        assert truth.mask_path.is_file()


def test_truth_explains_the_image(plain):
    """Core's renderer, given the truth, makes the frame and its mask again."""
    names = sample_ids(plain)
    assert len(names) == 6
    for name in names:
        truth = load_truth(plain, name)
        camera = truth.camera.map(lambda value: value[None, None])
        camera = camera.crop(torch.full((1, 1), 2.0), torch.zeros(1, 1, 2))
        model = truth.model
        surface = draw(truth.vertices[None, None], model.triangles, model.uv, camera, 128)
        drawn = render(surface, truth.albedo_map[None, None], truth.light[None, None])[0, 0]
        # the vertices' flag at the pixels, through the mesh's own corners
        corners = model.region_face[model.triangles].float().mean(-1)
        index = surface.triangle_index[0, 0]
        face = torch.where(index >= 0, corners[index.clamp(min=0)], 0.0)[None]
        drawn, face = F.avg_pool2d(drawn.clamp(min=0), 2), F.avg_pool2d((face > 0.5).float(), 2)[0]
        stored = torch.tensor(np.asarray(Image.open(truth.image_path))).float()
        mask = torch.tensor(np.asarray(Image.open(truth.mask_path))).float() / 255
        assert torch.minimum(face, mask).sum() / torch.maximum(face, mask).sum() > 0.95
        inside = (mask == 1) & (face == 1)
        assert inside.sum() > 300
        error = (255 * drawn.clamp(0, 1).permute(1, 2, 0) - stored)[inside].abs()
        assert error.max() < 1.0  # half a level of rounding, and what float32 adds


def test_no_mode_explains_the_relief(root, settings):
    truth = load_truth(root, sample_ids(root)[0])
    relief = truth.neutral - truth.model.shape(truth.identity)
    assert 0.5 * settings.detail < relief.square().sum(-1).mean().sqrt() < 2 * settings.detail
    basis = truth.model.identity_basis.flatten(1).T
    explained = basis @ torch.linalg.lstsq(basis, relief.flatten()[:, None]).solution
    assert (relief.flatten() - explained[:, 0]).norm() > 0.7 * relief.norm()


def test_truth_errors(root, tmp_path):
    with pytest.raises(AssetNotFoundError, match=r"id00009.*datamodules\.synthetic"):
        load_truth(root, "id00009/video00/00000/000000")
    with pytest.raises(DataError, match="identity/video/clip/frame"):
        load_truth(root, "id00000/000000")
    with pytest.raises(DataError, match="knows 3 frames"):
        load_truth(root, "id00000/video00/00000/000003")
    clip = tmp_path / "truth/a/b/c.npz"
    clip.parent.mkdir(parents=True)
    clip.write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"c\.npz"):
        load_truth(tmp_path, "a/b/c/000000")
    clip.write_bytes((root / "truth/id00000/video00/00000.npz").read_bytes())
    with pytest.raises(AssetNotFoundError, match=r"model\.npz"):
        load_truth(tmp_path, "a/b/c/000000")


# ----------------------------------------------------------------------------- views of one instant


@pytest.fixture(scope="module")
def still(fake, tmp_path_factory) -> Path:
    """As ``plain``, of views of one instant."""
    settings = SynthesisSettings(
        identities=(0, 0, 4),
        face_model=fake,
        occluders=0.0,
        unmodelled=0.0,
        degradation=0.0,
        still=True,
        **SMALL,
    )
    root = tmp_path_factory.mktemp("still")
    write_set(root, settings, jobs=1)
    return root


def clip_truths(root: Path) -> list[list[Truth]]:
    return [
        [load_truth(root, f"id{k:05d}/video00/00000/{frame:06d}") for frame in range(3)]
        for k in range(len(list((root / "frames").iterdir())))
    ]


def disagreement(root: Path) -> float:
    """Of the middle frame and what the others show of its surface, in grey levels."""
    found = []
    for truths in clip_truths(root):
        camera = PerspectiveCamera(
            *(
                torch.stack([getattr(truth.camera, key) for truth in truths])[None]
                for key in ("rotation", "translation", "focal", "centre")
            )
        )
        model, shape = truths[0].model, torch.stack([truth.vertices for truth in truths])[None]
        surface = draw(shape, model.triangles, model.uv, camera, 64)
        images = torch.stack([read_image(truth.image_path, "RGB").float() for truth in truths])
        target, source = (
            camera.map(lambda value, k=k: paired(value)[k])  # type: ignore[misc]
            for k in (0, 1)
        )
        depth, images = paired(surface.depth), paired(images[None])
        made = synthesize(depth[0], target, images[1], depth[1], source)
        index, pixels = paired(surface.triangle_index)[0], paired(camera.project(shape)[0])
        seen = seen_triangles(paired(shape)[1], source, model.triangles, 64)
        mask = covisible(index, seen, *pixels, model.triangles) * made.mask
        if mask.sum() > 100:
            found.append(pixel_consistency(made, images[0], mask).item())
    return float(np.mean(found))


def test_frames_of_a_still_set_show_one_instant(still, plain):
    for truths in clip_truths(still):
        for truth in truths[1:]:
            torch.testing.assert_close(truth.vertices, truths[0].vertices)
            assert not torch.allclose(truth.camera.rotation, truths[0].camera.rotation)
        # one light around the head: its irradiance on normals of the head
        normals = F.normalize(torch.randn(20, 3), dim=-1)
        lit = [sh_basis(normals @ t.camera.rotation.mT) @ t.light for t in truths]
        torch.testing.assert_close(lit[1], lit[0], atol=1e-4, rtol=0)
        torch.testing.assert_close(lit[2], lit[0], atol=1e-4, rtol=0)
    assert disagreement(still) < 3  # resampling, and 8 bits
    assert disagreement(plain) > 5 * disagreement(still)


def test_a_still_set_has_views_from_all_sides():
    settings = SynthesisSettings(yaw=85.0, frames=6, still=True)
    yaws = []
    for clip in range(300):
        rng = generator(0, "test", clip)
        camera = motion.camera_rig(rng, motion.random_lens(rng, rig=True), settings, torch.zeros(3))
        _, yaw, _ = euler_from_rotation(camera.head_rotation)
        assert (yaw.diff() > 0).all()
        yaws.append(yaw.rad2deg())
    every = torch.cat(yaws)
    assert every.abs().max() <= 85 + 1e-3
    assert 0.1 < (every.abs() > 60).float().mean() < 0.4


def test_sets_from_before_there_were_still_ones_are_read(root, settings):
    assert "still" not in json.loads((root / "manifest.json").read_text())["settings"]
    with pytest.raises(DataError, match="still: None there, True wanted"):
        Synthetic(root, replace(settings, still=True)).prepare_data()


# ----------------------------------------------------------------------------------- what is random


def test_head_angles_fill_their_range():
    settings = SynthesisSettings(frames=12)
    middle = torch.zeros(3)
    yaws, pitches, rolls = [], [], []
    for clip in range(300):
        rng = generator(0, "test", clip)
        camera = motion.camera_path(rng, motion.random_lens(rng), settings, middle)
        pitch, yaw, roll = (angle.rad2deg() for angle in euler_from_rotation(camera.head_rotation))
        yaws.append(yaw)
        pitches.append(pitch)
        rolls.append(roll)
    for angles, most in ((yaws, 70), (pitches, 25), (rolls, 20)):
        every = torch.cat(angles)
        assert every.abs().max() <= most + 1e-3
        assert every.abs().max() > 0.9 * most
        assert every.mean().abs() < 0.1 * most
    share = torch.histc(torch.cat(yaws), 7, -70, 70) / 3600
    assert share.min() > 0.03  # all yaws occur
    assert (torch.stack(yaws).diff(dim=1).abs().max()) < 45  # and heads do not jump


def test_both_eyes_look_the_same_way():
    names = [f"eyeLook{way}{side}" for way in ("In", "Out") for side in ("Left", "Right")]
    for seed in range(20):
        path = motion.expression_path(np.random.default_rng(seed), 10, names)
        in_left, in_right, out_left, out_right = path.unbind(-1)
        assert ((in_left > 0) == (out_right > 0)).all()
        assert ((in_right > 0) == (out_left > 0)).all()
        assert not ((in_left > 0) & (in_right > 0)).any()


def test_activations_are_blendshapes():
    names = ["jawOpen", "mouthSmileLeft", "mouthSmileRight", "eyeBlinkLeft", "eyeBlinkRight", "x"]
    paths = torch.stack(
        [motion.expression_path(np.random.default_rng(seed), 12, names) for seed in range(40)]
    )
    assert paths.min() >= 0
    assert paths.max() <= 1
    assert (paths[..., 1] - paths[..., 2]).abs().max() < 0.5  # a smile is on both sides
    assert paths[..., 0].max() > 0.2


def test_light_is_where_its_source_is():
    up = torch.tensor([0.0, -1.0, 0.0])
    light = illumination.directional(up, torch.tensor([1.0, 0.5, 0.25]), 0.0)
    facing, away = sh_basis(up) @ light, sh_basis(-up) @ light
    # second-order harmonics of a clamped cosine: 1/4 + 1/2 + 5/16 = 1.0625, 1/4 - 1/2 + 5/16
    torch.testing.assert_close(facing, 1.0625 * torch.tensor([1.0, 0.5, 0.25]))
    torch.testing.assert_close(away, 0.0625 * torch.tensor([1.0, 0.5, 0.25]))


def test_irradiance_is_mostly_not_negative():
    normals = F.normalize(torch.randn(500, 3), dim=-1)
    lights = [illumination.random_illumination(generator(1, "l", i), 0.5).light for i in range(100)]
    irradiance = sh_basis(normals) @ torch.stack(lights)
    assert (irradiance < 0).float().mean() < 0.01
    assert irradiance.min() > -0.2
    facing = sh_basis(torch.tensor([0.0, 0.0, -1.0])) @ torch.stack(lights)
    assert 0.4 < facing.mean() < 1.6


def test_irradiance_polynomial():
    light, normals = torch.randn(9, 3), F.normalize(torch.randn(50, 3).double(), dim=-1)
    x, y, z = normals.unbind(-1)
    terms = torch.stack([x, y, z, x * y, y * z, x * z, x * x, y * y, z * z], -1)
    polynomial = torch.from_numpy(irradiance_polynomial(light)).double()
    torch.testing.assert_close(
        terms @ polynomial, sh_basis(normals) @ light.double(), atol=1e-5, rtol=0
    )


def test_detections():
    points = torch.rand(400, 68, 2).numpy() * 80 + 10
    points[:, 0], points[:, 1] = (0, 0), (100, 100)  # the box: the face's size is 100 px
    hidden = np.zeros((400, 68), bool)
    hidden[:, 40:] = True
    found = sensor.detect(np.random.default_rng(0), points, hidden, jitter=1.0, dropped=0.2)
    kept = [i for i, f in enumerate(found) if f is not None]
    assert 0.6 < len(kept) / 400 < 0.8  # hidden faces are missed somewhat more often
    error = np.stack([found[i][:, :2] - points[i] for i in kept])
    assert 0.9 < error[:, 20:40].std() < 1.1  # 1 % of 100 px
    assert error[:, 40:].std() > 2 * error[:, 20:40].std()
    confidence = np.stack([found[i][:, 2] for i in kept])
    assert 0 < confidence.min() <= confidence.max() <= 1
    assert confidence[:, 40:].mean() < confidence[:, :40].mean() - 0.2


def test_meshes_are_seen_from_outside():
    """Signed volumes of closed props are positive; hair's normals point away from the head."""
    path = np.stack([np.zeros(9), np.linspace(0, 50, 9), np.linspace(0, 9, 9)], -1)
    points, triangles = props.tube(path, 7.0, 12)
    a, b, c = (points[triangles[:, k]] for k in range(3))
    volume = np.einsum("ij,ij->i", a, np.cross(b, c)).sum() / 6
    length = np.linalg.norm(path[-1] - path[0])
    assert volume == pytest.approx(np.pi * 49 * length, rel=0.1)


def test_smooth_paths_are_smooth():
    paths = np.stack([smooth_path(np.random.default_rng(i), 50, 4) for i in range(200)])
    assert paths.std() == pytest.approx(1.0, abs=0.1)
    assert np.abs(np.diff(paths, axis=1)).max() < 0.5
