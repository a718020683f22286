"""Textured meshes as files for other programs: OBJ with material and picture, and binary glTF."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from core.normals import vertex_normals

METRES_PER_MILLIMETRE = 1e-3  # glTF's unit is the metre


def export_obj(
    path: Path,
    vertices: Float[Tensor, "n 3"],
    triangles: Int[Tensor, "t 3"],
    uv: Float[Tensor, "n 2"],
    texture: Float[Tensor, "3 uh uw"],
) -> None:
    """Write <stem>.obj, <stem>.mtl and <stem>.png, in millimetres.

    Args:
        path: of the .obj file; the other two go beside it.
        vertices: millimetres, model frame.
        triangles: counter-clockwise seen from outside.
        uv: v down; the file's v is up, as OBJ wants it.
        texture: RGB as a UV map; clipped to [0, 1].
    """
    mesh = _textured(vertices, triangles, uv, texture, path.stem, for_gltf=False)
    from trimesh.exchange.obj import export_obj

    text, files = export_obj(mesh, return_texture=True, mtl_name=f"{path.stem}.mtl")
    path.write_text(text)
    for name, content in files.items():
        (path.parent / name).write_bytes(content)


def export_glb(
    path: Path,
    vertices: Float[Tensor, "n 3"],
    triangles: Int[Tensor, "t 3"],
    uv: Float[Tensor, "n 2"],
    texture: Float[Tensor, "3 uh uw"],
) -> None:
    """Write one binary glTF 2.0 file, in metres as that format demands.

    glTF has y up and the front towards +z, like the model frame.

    Args:
        path: of the .glb file.
        vertices: millimetres, model frame.
        triangles: counter-clockwise seen from outside.
        uv: v down, as in glTF.
        texture: RGB as a UV map; clipped to [0, 1].
    """
    scaled = vertices * METRES_PER_MILLIMETRE
    mesh = _textured(scaled, triangles, uv, texture, path.stem, for_gltf=True)
    path.write_bytes(mesh.export(file_type="glb", include_normals=True))


def _textured(
    vertices: Tensor, triangles: Tensor, uv: Tensor, texture: Tensor, name: str, for_gltf: bool
) -> Any:
    """A trimesh.Trimesh with its texture; in trimesh v is up, its GLB writer turns it down."""
    import trimesh
    from PIL import Image
    from trimesh.visual.material import PBRMaterial, SimpleMaterial

    pixels = (texture.detach().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    image = Image.fromarray(np.ascontiguousarray(pixels))
    material: Any
    if for_gltf:
        material = PBRMaterial(
            name=name, baseColorTexture=image, metallicFactor=0.0, roughnessFactor=1.0
        )
    else:
        white = (255, 255, 255, 255)
        material = SimpleMaterial(
            name=name, image=image, diffuse=white, ambient=white, specular=(0, 0, 0, 255)
        )
    v_up = torch.stack([uv[:, 0], 1 - uv[:, 1]], -1)
    return trimesh.Trimesh(
        vertices.detach().cpu().numpy(),
        triangles.cpu().numpy(),
        vertex_normals=vertex_normals(vertices.detach(), triangles).cpu().numpy(),
        visual=trimesh.visual.TextureVisuals(uv=v_up.cpu().numpy(), material=material),
        process=False,
        validate=False,
    )
