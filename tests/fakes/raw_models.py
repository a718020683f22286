"""Full-size fakes of the files in which published face models come: names, keys, shapes, units and
index bases. The shape is the built-in head's, sampled anew, and the modes are random waves, so that
what is imported is a face, and every number can be traced back to the file.
"""

import json
import pickle
import sys
from dataclasses import dataclass
from functools import cache
from math import ceil
from pathlib import Path
from types import ModuleType

import h5py
import numpy as np
import scipy.io
import scipy.sparse
import torch
from scipy.spatial import KDTree

from core.face_models import load_face_model
from core.face_models.importers import bfm2009, bfm_hdf5, flame, ict
from core.uv import bake, uv_grid

PARTS = ("face", "skin", "neck", "scalp")


@dataclass(frozen=True)
class Sampled:
    """The front of the built-in head as a mesh of so many vertices, mm; landmarks are vertices."""

    vertices: np.ndarray
    triangles: np.ndarray
    quads: np.ndarray
    landmarks: np.ndarray

    def numbered(self, new: np.ndarray) -> "Sampled":
        """The same with vertex i called new[i]."""
        vertices = np.empty_like(self.vertices)
        vertices[new] = self.vertices
        return Sampled(vertices, new[self.triangles], new[self.quads], new[self.landmarks])


@cache
def sampled_head(count: int) -> Sampled:
    """A grid over the UV map, denser in the middle; the vertices of the middle come first."""
    head = load_face_model("procedural", 0, 0, 0)
    grid = uv_grid(head.uv, head.part(*PARTS), 512)
    surface = bake(head.mean, grid, head.part(*PARTS))  # (3, 512, 512)
    side = ceil(count**0.5)
    line = (2 * np.arange(side) + 1 - side) / side
    bent = line * (1 + 0.46 * (1 - np.abs(line)))  # 0.8 of the grid reaches all landmarks
    u, v = np.meshgrid(bent, bent)
    at = torch.from_numpy(np.stack([u, v], -1)).float()[None]
    points = torch.nn.functional.grid_sample(surface[None], at, align_corners=False)
    points = points[0].movedim(0, -1).double().numpy()
    points = ((points + points[:, ::-1] * [-1, 1, 1]) / 2).reshape(-1, 3)  # symmetric
    ring = np.maximum(np.abs(u), np.abs(v))  # mirrored points next to each other
    chosen = np.lexsort((np.abs(u).ravel(), v.ravel(), ring.ravel()))[:count]
    number = np.full(side * side, -1)
    number[chosen] = np.arange(count)
    n = number.reshape(side, side)
    a, b, c, d = n[:-1, :-1], n[:-1, 1:], n[1:, :-1], n[1:, 1:]
    triangles = np.concatenate([np.stack(t, -1).reshape(-1, 3) for t in ((a, c, d), (a, d, b))])
    vertices, marks = points[chosen], head.landmarks(head.mean).numpy()
    nearest: list[int] = []  # lips that touch have landmarks at one place: each its own vertex
    for candidates in KDTree(vertices).query(marks, 4)[1].tolist():
        nearest.append(next(vertex for vertex in candidates if vertex not in nearest))
    quads = np.stack([a, c, d, b], -1).reshape(-1, 4)
    triangles, quads = (corners[(corners >= 0).all(1)] for corners in (triangles, quads))
    return Sampled(vertices, triangles, quads, np.array(nearest))


def waves(points: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Smooth random fields (count, n, 3), float32, of about unit standard deviation."""
    rng = np.random.default_rng(seed)
    phase = points.astype(np.float32) @ (rng.normal(size=(3, 8)) / 60).astype(np.float32)
    basis = np.concatenate([np.cos(phase), np.sin(phase)], 1)
    mix = (rng.normal(size=(count * 3, 16)) / 8**0.5).astype(np.float32)
    return np.ascontiguousarray((mix @ basis.T).reshape(count, 3, -1).transpose(0, 2, 1))


def write_bfm2009(folder: Path) -> dict[str, np.ndarray]:
    """01_MorphableModel.mat, the index files, Exp_Pca.bin, std_exp.txt and Model_Exp.mat.

    Returns the arrays by their names in the files; "guo" has the mean and 79 modes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    full, trimmed, front = bfm2009.ALL, bfm2009.TRIMMED, bfm2009.FRONT
    rng = np.random.default_rng(0)
    trim = np.sort(rng.permutation(full)[:trimmed])
    spare = np.setdiff1d(np.arange(trimmed), bfm2009.KEYPOINTS)
    idx = np.sort(np.append(rng.permutation(spare)[: front - 68], bfm2009.KEYPOINTS))
    head = sampled_head(full)
    outer = trim[np.setdiff1d(np.arange(trimmed), idx)]
    rest = np.setdiff1d(np.arange(full), trim)
    inner = trim[np.setdiff1d(idx, bfm2009.KEYPOINTS)]
    new = np.empty(full, int)  # the middle becomes the front
    new[head.landmarks] = trim[list(bfm2009.KEYPOINTS)]
    others = np.setdiff1d(np.arange(full), head.landmarks)
    new[others] = np.concatenate([inner, outer, rest])
    head = head.numbered(new)
    points = head.vertices
    basel = {"tl": head.triangles[:, [0, 2, 1]] + 1.0}
    basel["shapeMU"] = (1000 * points + [100, 45000, 75000]).reshape(-1, 1).astype(np.float32)
    basel["texMU"] = np.tile(np.float32([180, 130, 110]), full)[:, None]
    for kind, seed, std in (("shape", 1, 3e5), ("tex", 2, 2e3)):
        modes = waves(points, 199, seed).reshape(199, -1)
        basel[f"{kind}PC"] = (modes / (3 * full) ** 0.5).T
        basel[f"{kind}EV"] = np.geomspace(std, std / 100, 199, dtype=np.float32)[:, None]
    at = np.searchsorted(idx, bfm2009.KEYPOINTS)
    seen = points[trim[idx]]
    near = np.linalg.norm(seen - seen[at[30]], axis=1)[None]
    kept = np.full(full, -1)
    kept[trim[idx]] = np.arange(front)
    corners = kept[head.triangles]
    files = {
        "01_MorphableModel": basel,
        "BFM_exp_idx": {"trimIndex": (trim[:, None] + 1).astype(np.uint16)},
        "BFM_front_idx": {"idx": (idx[:, None] + 1).astype(np.float32)},
        "facemodel_info": {
            "tri": corners[(corners >= 0).all(1)].astype(np.float32) + 1,
            "keypoints": (at[None] + 1).astype(np.float32),
            "frontmask2": (near < 85).astype(np.float32),
            "skinmask": (near < 60).astype(np.float32),
        },
        "Model_Exp": {
            "w_exp": waves(points[trim], 29, 4).reshape(29, -1).T / 400,
            "sigma_exp": np.geomspace(4e5, 1e4, 29)[:, None],
            "mu_exp": np.full((3 * trimmed, 1), 250.0),
        },
    }
    for name, arrays in files.items():
        scipy.io.savemat(folder / f"{name}.mat", arrays)
    guo = waves(points[trim], 80, 3)
    deviations = np.geomspace(900, 20, 79)
    with (folder / "Exp_Pca.bin").open("wb") as stream:
        np.array([79], "<i4").tofile(stream)
        guo.astype("<f4").tofile(stream)
    (folder / "std_exp.txt").write_text(" ".join(f"{value:.9g}" for value in deviations))
    written = {key: array for arrays in files.values() for key, array in arrays.items()}
    return written | {"guo": guo, "std_exp": deviations}


def write_bfm_hdf5(
    folder: Path, year: str = "2017", variant: str = "face12"
) -> dict[str, np.ndarray]:
    """One of the HDF5 files. Returns the arrays by their paths, and "landmarks" (68, 3)."""
    folder.mkdir(parents=True, exist_ok=True)
    count = {"face12": 28588, "full": 53149, "head": 58203}[variant]
    head = sampled_head(count).numbered(np.random.default_rng(5).permutation(count))
    points, n = head.vertices, 3 * count
    arrays = {"shape/representer/cells": head.triangles.T.astype(np.int32)}
    sizes = (("shape", 199, 200.0), ("expression", 100, 200.0), ("color", 199, 10.0))
    for seed, (kind, modes, std) in enumerate(sizes):
        basis = waves(points, modes, seed).reshape(modes, -1).T / n**0.5
        arrays[f"{kind}/model/pcaBasis"] = basis
        arrays[f"{kind}/model/pcaVariance"] = np.geomspace(std, std / 50, modes) ** 2
        arrays[f"{kind}/model/noiseVariance"] = np.zeros(1)
    arrays["shape/model/mean"] = (points + np.array([0, 10, 20])).ravel().astype(np.float32)
    arrays["expression/model/mean"] = np.tile(np.float32([0, 0, 0.5]), count)
    arrays["color/model/mean"] = np.tile(np.float32([0.7, 0.5, 0.4]), count)
    marks = points[head.landmarks] + np.array([0, 10, 20])
    named = [
        {"id": name, "coordinates": marks[list(group)].mean(0).tolist()}
        for name, group in bfm_hdf5.NAMED.items()
    ]
    named.append({"id": "left.ear.helix.top", "coordinates": [85.9, 38.4, -0.3]})
    with h5py.File(folder / bfm_hdf5.FILES[year][variant].names[0], "w") as file:
        for key, array in arrays.items():
            file[key] = array
        file["metadata/landmarks/json"] = json.dumps(named)
    return arrays | {"landmarks": marks + np.array([0, 0, 0.5])}


def write_flame(folder: Path) -> dict[str, np.ndarray]:
    """generic_model.pkl as Python 2 and chumpy wrote it, and landmark_embedding.npy."""
    folder.mkdir(parents=True, exist_ok=True)
    count = flame.VERTICES
    head = sampled_head(count).numbered(np.random.default_rng(6).permutation(count))
    rng = np.random.default_rng(7)
    points = head.vertices / 1000
    below = 1 / (1 + np.exp((points[:, 1] - points[head.landmarks[48], 1]) / 0.01))
    weights = np.zeros((count, 5))
    weights[:, flame.JAW], weights[:, 1] = below, 1 - below
    regressor = scipy.sparse.csc_matrix(rng.random((5, count)) * (rng.random((5, count)) < 0.01))
    regressor = scipy.sparse.csc_matrix(regressor / regressor.sum(1))
    scale = np.geomspace(0.6, 0.02, 400) / 1000
    arrays = {
        "v_template": points,
        "shapedirs": (waves(head.vertices, 400, 8) * scale[:, None, None]).transpose(1, 2, 0),
        "posedirs": rng.normal(size=(count, 3, 36)) * 1e-3,
        "weights": weights,
        "f": head.triangles.astype(np.uint32),
        "kintree_table": np.array([[2**32 - 1, 0, 1, 1, 1], range(5)], np.uint32),
    }
    chumpy = ModuleType("chumpy.ch")

    class Ch:  # chumpy keeps the array in x
        def __init__(self, array: np.ndarray) -> None:
            self.x = array

    Ch.__module__, Ch.__qualname__, chumpy.Ch = "chumpy.ch", "Ch", Ch
    modules = {"chumpy": ModuleType("chumpy"), "chumpy.ch": chumpy}
    sys.modules.update(modules)
    try:
        wrapped = {key: Ch(arrays[key]) for key in ("v_template", "shapedirs")}
        content = arrays | wrapped | {"J_regressor": regressor, "bs_style": "lbs"}
        (folder / "generic_model.pkl").write_bytes(pickle.dumps(content, protocol=2))
    finally:
        for name in modules:
            del sys.modules[name]
    first = np.full(count, -1)  # a triangle that begins at each vertex
    first[head.triangles[:, 0]] = np.arange(len(head.triangles))
    rows = np.linspace(0, 1, 79)[:, None, None]
    jaw = head.vertices[head.landmarks[:17]]
    path = jaw + rows * (head.vertices[head.landmarks[30]] - jaw) * [0.4, 0, 0.4]
    beginning = np.flatnonzero(first >= 0)
    sliding = first[beginning[KDTree(head.vertices[beginning]).query(path)[1]]]
    at_mark = first[head.landmarks]
    corner = np.float64([1, 0, 0])
    if (at_mark < 0).any():  # at the border: any corner will do
        for k in (1, 2):
            first[head.triangles[:, k]] = np.arange(len(head.triangles))
        at_mark = first[head.landmarks]
    shares = (head.triangles[at_mark] == head.landmarks[:, None]) * 1.0
    embedding = {
        "static_lmk_faces_idx": at_mark[17:],
        "static_lmk_bary_coords": shares[17:],
        "dynamic_lmk_faces_idx": torch.from_numpy(sliding),
        "dynamic_lmk_bary_coords": torch.from_numpy(np.tile(corner, (79, 17, 1))),
        "full_lmk_faces_idx": at_mark[None],
        "full_lmk_bary_coords": shares[None],
    }
    np.save(folder / "landmark_embedding.npy", np.array(embedding, object), allow_pickle=True)
    return arrays | {"J_regressor": regressor.toarray(), "landmarks": head.landmarks}


def write_ict(folder: Path) -> dict[str, np.ndarray]:
    """ICT-FaceKit's FaceXModel: 26,719 vertices in 154 .obj files; a shape moves 300 of them.

    Returns "mean" (11248, 3), "uv" (11248, 2; v up, two tiles) and "moved", by file name the
    vertices and how.
    """
    folder.mkdir(parents=True, exist_ok=True)
    face, count = ict.VERTICES["face"], ict.VERTICES["head"]
    head = sampled_head(count)
    assert head.landmarks.max() < face, "the middle of the grid holds the landmarks"
    new = np.arange(count)
    new[head.landmarks] = ict.LANDMARKS
    others = np.setdiff1d(np.arange(face), head.landmarks)
    new[others] = np.setdiff1d(np.arange(face), ict.LANDMARKS)
    head = head.numbered(new)
    mean = head.vertices / 10
    inner = (head.quads < face).all(1)
    faces: list[list[int]] = []
    for part, wanted in (
        (head.quads[inner], ict.FACES["face"]),
        (head.quads[~inner], ict.FACES["head"]),
    ):
        cut = wanted - len(faces) - len(part)  # so many quads are written as two triangles
        assert 0 <= cut <= len(part)
        for i, (a, b, c, d) in enumerate(part.tolist()):
            faces += [[a, b, c], [a, c, d]] if i < cut else [[a, b, c, d]]
    uv = np.column_stack([0.5 + mean[:, 0] / 20, 0.5 + mean[:, 1] / 40])
    uv[face:, 0] += 1  # the second tile
    lines = [f"v {x:.6f} {y:.6f} {z:.6f}" for x, y, z in mean.tolist()]
    lines += ["v 0.5 1.5 -9.25"] * (26719 - count)
    tail = [f"vt {u:.6f} {v:.6f}" for u, v in uv.tolist()]
    tail += ["f " + " ".join(f"{i + 1}/{i + 1}" for i in corners) for corners in faces]
    tail += ["f 20000/1 20001/1 20002/1"] * 20
    (folder / "generic_neutral_mesh.obj").write_text("\n".join(["mtllib x.mtl", *lines, *tail]))
    names = [f"expression{k}" for k in range(53)]
    (folder / "vertex_indices.json").write_text(json.dumps({"expressions": names}))
    rng, moved = np.random.default_rng(9), {}
    for name in [*(f"identity{k:03d}" for k in range(ict.IDENTITY)), *names]:
        at, by = rng.integers(0, count, 300), rng.normal(size=3) / 10
        changed = lines.copy()
        for i, (x, y, z) in zip(at.tolist(), (mean[at] + by).tolist(), strict=True):
            changed[i] = f"v {x:.6f} {y:.6f} {z:.6f}"
        (folder / f"{name}.obj").write_text("\n".join(["mtllib x.mtl", *changed, *tail]))
        moved[name] = (at, by)
    return {"mean": mean, "uv": uv, "moved": moved}
