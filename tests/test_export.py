"""Export: what is written for each face, and that meshes, numbers and pictures agree with each
other."""

import json
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from pytorch_lightning import LightningModule, Trainer
from scipy.ndimage import binary_fill_holes

from callbacks.export import LAMPS, Export, closed, lamp
from core.camera import WeakPerspectiveCamera, frontal
from core.contracts import Reconstruction
from core.errors import DataError
from core.face_models import load_face_model
from core.lighting import sh_basis
from core.render import draw
from core.rotation import rotation_from_euler
from datamodules.photos import Photos
from methods.cest import CEST, SHAPE_SCALE, VIEWPOINT_SCALE
from tests.fakes.face_model import face_model_arrays, write

FIVE = np.array([[60.0, 60.0], [90.0, 61.0], [75.0, 82.0], [63.0, 98.0], [87.0, 99.0]])


@pytest.fixture
def export(tmp_path):
    """Predicts photos of the given names; returns the output folder."""

    def run(names=("a",), face_model=None, **options):
        photos = tmp_path / "photos"
        photos.mkdir(exist_ok=True)
        for k, name in enumerate(names):
            rng = np.random.default_rng(k)
            pixels = rng.integers(0, 256, (150, 160, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(photos / f"{name}.png")
            np.savetxt(photos / f"{name}.txt", FIVE + k)
        sizes = {"image_size": 48, "uv_size": 40, "width": 4, "reflectance_width": 4}
        method = CEST(str(face_model or write(tmp_path / "model.npz")), **sizes)
        with torch.no_grad():
            numbers = torch.tensor([0.1, 0, -0.3, 0, 0.02, 0, 0])
            method.f_viewpoint[-2].bias.copy_(numbers / VIEWPOINT_SCALE)
            method.f_shape[-2].bias.fill_(0.5 / SHAPE_SCALE)
        trainer = Trainer(
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            callbacks=[Export(tmp_path / "out", picture_size=64, **options)],
        )
        data = Photos(photos, image_size=48)
        trainer.predict(method, data, return_predictions=False)
        return tmp_path / "out"

    return run


def test_everything_is_written(export):
    out = export(["a", "b"])
    files = "face.obj face.mtl face.png face.glb face.json face.npz overlay.png landmarks.png "
    files += "pictures.png albedo_map.png relit.png"
    for name in ("a", "b"):
        assert {path.name for path in (out / name).iterdir()} == set(files.split())


def test_meshes_and_numbers_agree(export):
    folder = export() / "a"
    arrays = np.load(folder / "face.npz")
    obj = trimesh.load(folder / "face.obj", process=False)
    glb = trimesh.load(folder / "face.glb", process=False).geometry
    corners = arrays["vertices"][arrays["triangles"]]  # meshes hold only the vertices in use
    np.testing.assert_allclose(obj.triangles, corners, atol=1e-4)  # millimetres
    (mesh,) = glb.values()
    np.testing.assert_allclose(mesh.triangles * 1000, corners, atol=1e-2)  # metres
    assert len(obj.vertices) == len(np.unique(arrays["triangles"]))
    record = json.loads((folder / "face.json").read_text())
    assert record["sample"] == "a"
    turn = arrays["coefficients_viewpoint"][2]  # about the model's y axis
    assert turn < -0.01  # the nose to the image's left: yaw > 0
    assert record["pose_degrees"]["yaw"] == pytest.approx(np.degrees(-turn), abs=1e-3)
    camera = record["camera"]
    seen = arrays["vertices"] @ np.array(camera["rotation"]).T * camera["scale"]
    seen = seen[:, :2] + camera["translation"]
    landmarks = np.array(record["landmarks_pixels"])
    low, high = landmarks.min(0), landmarks.max(0)
    assert (seen.min(0) <= low + 1e-3).all()
    assert (seen.max(0) >= high - 1e-3).all()
    assert (low > FIVE.min(0) - 70).all()  # in the photo's pixels, around the given points
    assert (high < FIVE.max(0) + 70).all()
    np.testing.assert_allclose(landmarks, arrays["landmarks"], atol=1e-3)


def test_overlay_changes_the_photo_only_on_the_face(export, tmp_path):
    out = export()
    overlay = np.asarray(Image.open(out / "a/overlay.png")).astype(int)
    original = np.asarray(Image.open(tmp_path / "photos/a.png")).astype(int)
    assert overlay.shape == original.shape
    changed = np.abs(overlay - original).max(-1) > 2
    y, x = np.nonzero(changed)
    centre = FIVE.mean(0)
    assert changed[
        int(centre[1]) - 5 : int(centre[1]) + 5, int(centre[0]) - 5 : int(centre[0]) + 5
    ].all()
    assert np.abs([x.mean(), y.mean()] - centre).max() < 15
    for corner in (changed[:9, :9], changed[:9, -9:], changed[-9:, :9]):
        assert not corner.any()


def test_film_of_all_overlays_and_meshes_of_some(export):
    out = export(["f0", "f1", "f2", "f3"], video=True, meshes_every=2)
    assert [(out / f"f{k}/face.glb").exists() for k in range(4)] == [True, False, True, False]
    assert all((out / f"f{k}/overlay.png").exists() for k in range(4))
    with av.open(str(out / "overlay.mp4")) as film:
        frames = [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]
    assert len(frames) == 4
    still = np.asarray(Image.open(out / "f1/overlay.png"))
    assert np.abs(frames[1].astype(int) - still).mean() < 40


def test_what_an_earlier_run_left_is_moved_aside(export, tmp_path):
    for name in ("a", "b"):
        out = export([name])
        (tmp_path / f"photos/{name}.png").unlink()
    assert [path.name for path in out.iterdir()] == ["b"]
    assert [path.name for path in (tmp_path / "out.1").iterdir()] == ["a"]
    (out / "thesis.tex").touch()
    with pytest.raises(DataError, match=r"holds \['thesis\.tex'\]"):
        export(["c"])
    assert (out / "b/face.glb").is_file()


def test_regions_that_close_the_face_are_exported_too(export, tmp_path):
    arrays = face_model_arrays()
    inner = np.abs(arrays["mean"] - [30, 30, arrays["mean"][:, 2].max()])[:, :2].max(1) < 15
    assert inner.sum() > 4
    path = tmp_path / "holes.npz"
    np.savez(path, **arrays | {"region_face": arrays["region_face"] & ~inner})
    open_face = np.load(export(face_model=path) / "a/face.npz")["triangles"]
    arrays |= {"region_face": arrays["region_face"] & ~inner, "region_eyeballs": inner}
    np.savez(path, **arrays)
    closed = np.load(export(face_model=path) / "a/face.npz")["triangles"]
    assert len(open_face) < len(closed)
    whole = face_model_arrays()
    inside = whole["region_face"][whole["triangles"]].all(1)
    np.testing.assert_array_equal(closed, whole["triangles"][inside])


@pytest.mark.parametrize("expression", ["neutral", "mouth open"])
def test_the_built_in_face_is_shown_without_holes(expression):
    model = load_face_model()
    vertices = model.mean
    if expression == "mouth open":
        vertices = vertices + model.expression_basis[model.expression_names.index("jawOpen")] / 2
    turned = rotation_from_euler(*torch.tensor([0.1, 0.3, 0.0]))
    for head in (torch.eye(3), turned):
        camera = WeakPerspectiveCamera(
            (frontal(torch.zeros(())) @ head)[None, None],
            torch.full((1, 1), 1.2),
            torch.full((1, 1, 2), 128.0),
        )

        def holes(triangles, camera=camera):
            surface = draw(vertices[None, None], triangles, model.uv, camera, 256)
            mask = surface.mask[0, 0, 0].numpy() > 0
            return int((binary_fill_holes(mask) & ~mask).sum())

        face = model.part("face")
        assert holes(face) > 20
        # the face's jagged lower edge may enclose a pixel
        assert holes(closed(face, SimpleNamespace(face_model=model))) <= 2


def test_relighting_with_own_light_and_that_of_the_next_face(tmp_path, face_model):
    light = torch.zeros(2, 1, 9, 3)
    light[0, 0, 0, 0], light[1, 0, 0, 2] = 1.0, 1.0  # red, blue
    camera = WeakPerspectiveCamera(
        frontal(light).expand(2, 1, 3, 3), torch.full((2, 1), 0.25), torch.full((2, 1, 2), 32.0)
    )
    vertices = face_model.mean.expand(2, 1, -1, -1)
    faces = Reconstruction(
        vertices=vertices,
        neutral=vertices,
        triangles=face_model.part("face"),
        uv=face_model.uv,
        camera=camera,
        landmarks=camera.project(face_model.landmarks(vertices))[0],
        albedo_map=torch.full((2, 1, 3, 8, 8), 0.7),
        light=light,
    )
    batch = {"images": torch.zeros(2, 1, 3, 64, 64), "sample_ids": ["red", "blue"]}
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    export = Export(tmp_path, picture_size=64)
    export.on_predict_start(trainer, LightningModule())
    export.on_predict_batch_end(trainer, LightningModule(), faces, batch, 0)
    for name, own, other in (("red", 0, 2), ("blue", 2, 0)):
        picture = np.asarray(Image.open(tmp_path / name / "relit.png")).astype(int)
        y = picture.shape[0] - 4 - 32
        for channel, x in ((own, 4 + 32), (other, 4 + 4 * 68 + 32)):
            pixel = picture[y, x]
            assert pixel[channel] > 100
            assert np.delete(pixel, channel).max() < 5


@pytest.mark.parametrize("name", LAMPS)
def test_a_lamp_lights_the_side_it_stands_on(name):
    light = lamp(LAMPS[name], strength=0.7)
    towards = torch.nn.functional.normalize(torch.tensor(LAMPS[name]), dim=0)
    bright, dark = (
        sh_basis(n) @ light[:, 0] for n in (towards, towards * torch.tensor([-1, -1, 1.0]))
    )
    assert bright > 1.5 * dark.clamp(min=0)
    assert 0.5 < bright < 2
