"""VisualizeViews: what its pictures show of views that agree."""

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer

from callbacks import views
from callbacks.views import MARKS, VisualizeViews, views_sheet
from core.camera import PerspectiveCamera, WeakPerspectiveCamera, frontal
from core.contracts import Reconstruction
from core.errors import MonofaceError
from core.lighting import AMBIENT
from core.picture import draw_lines
from core.render import render_reconstruction
from core.rotation import rotation_from_euler
from core.uv import bake, uv_grid

SIZE = 96


@pytest.fixture(scope="module")
def face(face_model) -> Reconstruction:
    """Three views in ambient light."""
    yaw = torch.tensor([[-0.3, 0.0, 0.3]])
    rotation = frontal(yaw) @ rotation_from_euler(0 * yaw, yaw, 0 * yaw)
    camera = PerspectiveCamera(
        rotation=rotation,
        translation=torch.tensor([0.0, 0.0, 900.0]).expand(1, 3, 3),
        focal=torch.full((1, 3), 340.0),
        centre=torch.full((1, 3, 2), SIZE / 2),
    )
    vertices = face_model.mean.expand(1, 3, -1, -1)
    grid = uv_grid(face_model.uv, face_model.triangles, SIZE)
    light = torch.zeros(1, 3, 9, 1)
    light[:, :, 0] = AMBIENT
    return Reconstruction(
        vertices=vertices,
        neutral=vertices,
        triangles=face_model.triangles,
        uv=face_model.uv,
        camera=camera,
        landmarks=camera.project(face_model.landmarks(vertices))[0],
        albedo_map=bake(face_model.albedo_mean.expand(1, 3, -1, -1), grid, face_model.triangles),
        light=light,
    )


def cells(picture: torch.Tensor) -> torch.Tensor:
    """The sheet's pictures, "rows columns 3 h w"."""
    rows, gap = 2, 4
    top = picture.shape[1] - rows * (SIZE + gap)
    table = picture[:, top : top + rows * (SIZE + gap), gap:]
    return (
        table.unflatten(1, (rows, -1))
        .unflatten(3, (6, -1))[:, :, :SIZE, :, :SIZE]
        .permute(1, 3, 0, 2, 4)
    )


def test_views_that_agree_have_dark_errors(face):
    images, _ = render_reconstruction(face, SIZE)
    known = torch.ones(1, 3, 68)
    right = cells(views_sheet(images, face.landmarks, known, face, SIZE))
    assert right.shape == (2, 6, 3, SIZE, SIZE)
    inside = right[:, 3] > 0.5
    assert inside.float().mean() > 0.15
    assert right[:, 4:][inside[:, None].expand(-1, 2, -1, -1, -1)].mean() < 0.06
    other = face.vertices * torch.tensor([1.0, 1.0, 1.2])
    vertices = torch.cat([other[:, :1], face.vertices[:, 1:]], 1)
    wrong = Reconstruction(**{**vars(face), "vertices": vertices})
    wrong = cells(views_sheet(images, face.landmarks, known, wrong, SIZE))
    assert wrong[0, 5].mean() > 3 * right[0, 5].mean()
    torch.testing.assert_close(wrong[1], right[1])


@pytest.mark.parametrize(
    ("backend", "drawn_by"), [("reference", "reference"), ("nvdiffrast", "auto")]
)
def test_it_draws_as_the_method_does_but_on_the_cpu(face, tmp_path, monkeypatch, backend, drawn_by):
    class Method(LightningModule):
        finer = 2

        def forward(self, images):
            return face

    method, given = Method(), []
    method.backend = backend
    for name in ("draw", "seen_triangles"):
        monkeypatch.setattr(views, name, counted(getattr(views, name), given))
    batch = {
        "images": torch.zeros(1, 3, 3, SIZE, SIZE),
        "landmarks": face.landmarks,
        "landmark_confidence": torch.ones(1, 3, 68),
    }
    monkeypatch.setattr(views, "_multi_view", lambda trainer, most: batch)
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
    trainer = Trainer(accelerator="cpu", default_root_dir=tmp_path, **quiet)
    VisualizeViews(size=48).on_train_end(trainer, method)
    assert given == [(48, drawn_by), (48, 2, drawn_by)]
    assert (tmp_path / "pictures/views_000000.png").is_file()


def counted(function, given):
    """The same; it notes the numbers and words it gets, and draws with "auto"."""

    def called(*arguments):
        plain = tuple(x for x in arguments if isinstance(x, int | str))
        given.append(plain)
        return function(*arguments[:-1], "auto")

    return called


def test_lines_go_through_the_points_of_their_colour(face):
    """On black pictures: each source point lies on the line of its landmark."""
    black = torch.zeros(1, 3, 3, SIZE, SIZE)
    known = torch.ones(1, 3, 68)
    shown = cells(views_sheet(black, face.landmarks, known, face, SIZE))[:, 1]
    missing = known.clone()
    missing[:, [0, 2]] = 0  # no dots in the sources
    lines = cells(views_sheet(black, face.landmarks, missing, face, SIZE))[:, 1]
    for row, view in enumerate((0, 2)):
        for mark in MARKS:
            x, y = face.landmarks[0, view, mark].long().tolist()
            assert shown[row, :, y, x].max() > 0.5
            assert lines[row, :, y - 1 : y + 2, x - 1 : x + 2].max() > 0.3
    none = cells(views_sheet(black, face.landmarks, 0 * known, face, SIZE))[:, :2]
    assert not none.any()


def test_lines_by_hand():
    """x = 2.5 in red, over it y = 1.5 in blue; the third is none."""
    lines = torch.tensor([[1.0, 0, -2.5], [0, 1.0, -1.5], [0, 0, 0]])
    colours = torch.tensor([[1.0, 0, 0], [0, 0, 1.0], [0, 1.0, 0]])
    drawn = draw_lines(torch.full((3, 4, 5), 0.5), lines, colours, width=1.0)
    wanted = torch.full((3, 4, 5), 0.5)
    wanted[:, :, 2] = torch.tensor([1.0, 0, 0])[:, None]
    wanted[:, 1] = torch.tensor([0, 0, 1.0])[:, None]
    torch.testing.assert_close(drawn, wanted)


def test_what_it_cannot_draw_is_said(face):
    with pytest.raises(ValueError, match=r"clips is 0"):
        VisualizeViews(clips=0)
    pinhole = face.camera
    weak = WeakPerspectiveCamera(pinhole.rotation, torch.ones(1, 3), pinhole.centre)
    other = Reconstruction(**{**vars(face), "camera": weak})
    with pytest.raises(MonofaceError, match=r"WeakPerspectiveCamera"):
        views_sheet(
            torch.zeros(1, 3, 3, SIZE, SIZE), face.landmarks, torch.ones(1, 3, 68), other, SIZE
        )
