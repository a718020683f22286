import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from core.mesh_files import export_glb, export_obj


def coloured_map():
    """A texture whose red grows with u, green with v (down)."""
    ramp = (torch.arange(64) + 0.5) / 64
    return torch.stack(
        [ramp.expand(64, 64), ramp[:, None].expand(64, 64), torch.full((64, 64), 0.25)]
    )


def colour_at_vertices(uv_up, image):
    """What a viewer shows there: v up in trimesh's memory, pixels from the top in the picture."""
    size = np.array(image.size)
    x, y = (np.stack([uv_up[:, 0], 1 - uv_up[:, 1]], -1) * size).clip(0, size - 1).astype(int).T
    return np.asarray(image.convert("RGB"))[y, x] / 255


@pytest.mark.parametrize("kind", ["obj", "glb"])
def test_exported_files_read_back_with_shape_unit_orientation_and_texture(
    face_model, tmp_path, kind
):
    export = {"obj": export_obj, "glb": export_glb}[kind]
    path = tmp_path / f"face one.{kind}"
    texture = coloured_map()
    export(path, face_model.mean, face_model.triangles, face_model.uv, texture)
    mesh = trimesh.load(path, process=False, force="mesh")
    unit = {"obj": 1, "glb": 1000}[kind]  # glTF is in metres
    mean, uv = face_model.mean.numpy(), face_model.uv.numpy()
    # a reader may reorder vertices: match them by their unique places
    distance = np.linalg.norm(mesh.vertices[:, None] * unit - mean[None], axis=-1)
    match = distance.argmin(1)
    assert distance.min(1).max() < 1e-3
    assert len(set(match)) == len(mean)
    assert {tuple(sorted(f)) for f in match[mesh.faces].tolist()} == {
        tuple(sorted(f)) for f in face_model.triangles.tolist()
    }
    assert (mesh.face_normals[:, 2] > -0.1).mean() > 0.95  # still counter-clockwise from outside
    np.testing.assert_allclose(
        mesh.visual.uv, np.stack([uv[match, 0], 1 - uv[match, 1]], -1), atol=1e-6
    )
    image = mesh.visual.material.image if kind == "obj" else mesh.visual.material.baseColorTexture
    found = colour_at_vertices(mesh.visual.uv, image)
    np.testing.assert_allclose(found[:, :2], uv[match], atol=1 / 60)


def test_obj_comes_with_its_own_material_and_picture(face_model, tmp_path):
    for name in ("a", "b"):
        export_obj(
            tmp_path / f"{name}.obj",
            face_model.mean,
            face_model.triangles,
            face_model.uv,
            coloured_map(),
        )
    assert {path.name for path in tmp_path.iterdir()} == {
        *("a.obj", "a.mtl", "a.png", "b.obj", "b.mtl", "b.png")
    }
    picture = np.asarray(Image.open(tmp_path / "a.png"))
    np.testing.assert_allclose(picture.transpose(2, 0, 1) / 255, coloured_map(), atol=1 / 255)
    text = (tmp_path / "a.obj").read_text()
    rows = [line.split() for line in text.splitlines() if line.startswith("vt ")]
    v = np.array([float(row[2]) for row in rows])
    top = face_model.uv[:, 1].argmin().item()  # the forehead: v up in the file, so near 1
    assert v.max() == pytest.approx(1 - face_model.uv[top, 1].item(), abs=1e-5)
