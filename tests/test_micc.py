import json

import numpy as np
import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.micc import MICC, SUBJECTS, VIDEOS, read_ljson
from benchmarks.predictions import MeshFolder
from benchmarks.scans import ScanProtocol
from core.camera import WeakPerspectiveCamera, frontal
from core.contracts import Reconstruction
from core.errors import AssetNotFoundError, DataError
from tests.fakes import micc, scans


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return micc.write(tmp_path_factory.mktemp("micc"))


@pytest.fixture(scope="module")
def meshes(root, tmp_path_factory):
    """The scans as somebody's predictions, larger by a tenth, and without the last of them."""
    folder = tmp_path_factory.mktemp("meshes")
    for number, subject in enumerate(micc.SUBJECTS):
        for video in VIDEOS.values():
            mesh = micc.scan(number).scaled(1.1)
            scans.write_obj(folder / subject / f"{video}.obj", mesh)
            np.save(folder / subject / f"{video}.npy", mesh.landmarks)
    (folder / "subject_02/PTZ-Outdoor.obj").unlink()
    return folder


def benchmark(root, **options):
    options = {"subjects": list(micc.SUBJECTS), "image_size": 32, "progress": False} | options
    return MICC(root, frame_landmarks=root / "frames", **options)


def test_meshes_of_somebody_else(root, meshes):
    results = benchmark(root).score(MeshFolder(meshes))
    assert results.images == 6
    assert results.failures == {"there is no predicted mesh": ["subject_02/PTZ-Outdoor"]}
    for kind, n in (("cooperative", 2), ("indoor", 2), ("outdoor", 1)):
        assert results[f"{kind}_rmse_mm"].value.n == n
        assert results[f"{kind}_rmse_mm"].value.mean < 1e-6
    rigid = benchmark(root, protocol=ScanProtocol(scale="none")).score(MeshFolder(meshes))
    assert rigid["indoor_mean_mm"].value.mean > 0.3
    assert "95 mm" in results.protocol
    assert "rigid, no scale" in rigid.protocol


def test_the_nearer_scan_can_be_taken(root, meshes):
    """subject_01's second scan is larger by a tenth, like the prediction."""
    rigid = {"protocol": ScanProtocol(scale="none"), "subjects": ["subject_01"]}
    first, second, best = (
        benchmark(root, scan=scan, **rigid).score(MeshFolder(meshes))["indoor_rmse_mm"].value.mean
        for scan in ("frontal1", "frontal2", "best")
    )
    assert best == second < 0.1 < first
    both = benchmark(root, scan="frontal2").score(MeshFolder(meshes))
    assert both.failures["scan: no frontal2/obj/*.obj"] == [
        f"subject_02/{video}" for video in VIDEOS.values()
    ]


class Oracle:
    """The scan's shape plus an error that is the opposite in the next frame."""

    def __init__(self, scale=1.0):
        self.calls, self.scale = 0, scale

    def __call__(self, images):
        assert images.shape[1:] == (1, 3, 32, 32)
        mesh = micc.scan(self.calls % 2)
        self.calls += 1
        b = len(images)
        rotation = frontal(images).expand(b, 1, 3, 3)
        camera = WeakPerspectiveCamera(
            rotation, torch.full((b, 1), 0.3), torch.full((b, 1, 2), 16.0)
        )
        signs = torch.tensor([1.0, -1.0])[:b, None, None, None]
        waves = 3 * torch.sin(torch.arange(len(mesh.vertices)))[:, None]
        vertices = (self.scale * mesh.vertices.float()).expand(b, 1, -1, 3)
        return Reconstruction(
            vertices=vertices,
            neutral=vertices + signs * waves,
            triangles=mesh.triangles,
            uv=torch.zeros(len(mesh.vertices), 2),
            camera=camera,
            landmarks=camera.project(self.scale * mesh.landmarks.float().expand(b, 1, 68, 3))[0],
            albedo_map=torch.zeros(b, 1, 3, 2, 2),
            light=torch.zeros(b, 1, 9, 1),
        )


def test_the_mean_of_the_frames_of_a_video_is_scored(root):
    oracle = Oracle()
    results = benchmark(root, protocol=ScanProtocol(scale="none")).run(oracle)
    assert oracle.calls == 6
    assert not results.failures
    assert max(results.means().values()) < 1e-3  # float32
    single = benchmark(root, protocol=ScanProtocol(scale="none"), max_frames=1).run(Oracle())
    assert single["cooperative_rmse_mm"].value.mean > 0.3
    assert benchmark(root, every=2).run(Oracle())["indoor_rmse_mm"].value.mean > 0.3


def test_videos_without_a_face_are_failures(tmp_path):
    root = micc.write(tmp_path)
    video = root / "subject_01/Video"
    (video / "PTZ-Indoor.mjpeg").unlink()
    (video / "PTZ-Outdoor.mjpeg").write_bytes(b"no video")
    np.savez(
        root / "frames/subject_01/Indoor-Cooperative.npz",
        landmarks=np.zeros((3, 68, 2)),
        valid=np.zeros(3, bool),
    )
    results = benchmark(root, subjects=["subject_01"]).run(Oracle())
    assert results.failures == {
        "no frame of the video has a face and a finite prediction": [
            "subject_01/Indoor-Cooperative"
        ],
        "there is no such video": ["subject_01/PTZ-Indoor"],
        "the video cannot be decoded": ["subject_01/PTZ-Outdoor"],
    }
    assert results.means() == {}


def test_the_command_line(root, meshes, tmp_path, capsys):
    command = ["score", "micc", "--root", str(root), "--predictions", str(meshes)]
    assert main(command) == 2
    assert f"2 folders subject_*, wanted {SUBJECTS}" in capsys.readouterr().err
    command += [
        "--subjects",
        json.dumps(micc.SUBJECTS),
        "--out",
        str(tmp_path),
        "--protocol.scale",
        "global",
    ]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "indoor_rmse_mm" in out
    assert "there is no predicted mesh: 1" in out
    found = json.loads((tmp_path / "micc.json").read_text())
    assert found["metrics"]["cooperative_rmse_mm"]["value"]["n"] == 2
    assert main([*command, "--unit", "m"]) == 1  # nothing could be scored
    assert "unit" in capsys.readouterr().out


def test_what_is_missing_is_named(root, tmp_path):
    with pytest.raises(AssetNotFoundError, match="MICC Florence"):
        MICC(tmp_path / "none").samples()
    with pytest.raises(DataError, match="subject_77"):
        benchmark(root, subjects=["subject_77"]).samples()
    with pytest.raises(DataError, match="at least 1"):
        benchmark(root, every=0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ('{"groups": {}}', "cannot be read"),
        ('{"groups": {"LJSON": {"landmarks": {"points": [[0, 1, 2]]}}}}', "wanted"),
        ('{"groups": {"LJSON": {"landmarks": {"points": [[null, 1, 2]]}}}}', "cannot be read"),
    ],
)
def test_damaged_landmarks_of_a_scan(tmp_path, text, message):
    path = tmp_path / "a.ljson"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_ljson(path)
    with pytest.raises(DataError, match=r"no \.ljson"):
        read_ljson(tmp_path / "none.ljson")
