"""The parts of the preparation: what is listed, which face is followed, what its mask is."""

import errno
import json
import os
import pickle
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from core.detect import Detection, FaceDetector, main_track
from core.errors import AssetNotFoundError, DataError
from datamodules.__main__ import main
from datamodules.preparation import video as video_module
from datamodules.preparation.masks import FACE, FaceParser
from datamodules.preparation.plan import Settings, list_videos, make_plan
from datamodules.preparation.shard import finish, prepare_shard
from datamodules.preparation.video import stored_frames
from tests.fakes.videos import clips, film, write
from tests.fakes.voxceleb import face_points


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    return write(tmp_path_factory.mktemp("raw"))


# listing


def test_layouts_of_the_release_and_others(tmp_path):
    names = ["dev/mp4/id1/v/1.mp4", "test/mp4/id2/v/1.mp4", "id3/v.avi", "alone.mkv", "id4/n.txt"]
    for name in [*names, "id3/v.npz"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = list_videos(tmp_path, left := Counter())
    assert [(v.clip, v.identity, v.landmarks) for v in found] == [
        ("alone", "alone", None),
        ("id1/v/1", "id1", None),
        ("id2/v/1", "id2", None),
        ("id3/v", "id3", "id3/v.npz"),
    ]
    assert not left


def test_names_links_and_folders_that_cannot_be_used(raw, tmp_path, monkeypatch):
    root = shutil.copytree(raw / "dev/mp4/id10001", tmp_path / "raw/id10001").parent
    (root / "again").symlink_to(root)
    (root / "circle").symlink_to(root / "circle")
    shutil.copy(root / "id10001/video0/00001.mp4", os.fsencode(root) + b"/\xff.mp4")
    (root / "closed").mkdir()
    scandir = os.scandir

    def refusing(path):
        if str(path).endswith("closed"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    plan = make_plan(root, tmp_path / "out", Settings())
    assert [video.clip for video in plan.videos] == ["id10001/video0/00001", "id10001/video1/00001"]
    assert sum(plan.left_out.values()) >= 3
    for job in plan.jobs():
        prepare_shard(job)
    finish(plan)
    report = json.loads((plan.out / "report.json").read_text())
    assert report["left_out_of_the_listing"] == plan.left_out


def test_a_result_in_a_folder_that_may_not_be_entered(tmp_path, raw, monkeypatch):
    is_file = Path.is_file

    def in_open_folders(path):
        if path.name == "plan.json":
            raise PermissionError(13, "Permission denied", str(path))
        return is_file(path)

    monkeypatch.setattr(Path, "is_file", in_open_folders)  # root may open anything
    with pytest.raises(DataError, match=r"out' cannot be used: .*Permission denied"):
        make_plan(raw, tmp_path / "out", Settings())


def test_a_raw_folder_that_is_something_else(tmp_path, raw):
    with pytest.raises(AssetNotFoundError, match="--raw"):
        make_plan(tmp_path / "nothing", tmp_path / "out", Settings())
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(DataError, match=r"circle' or .* cannot be used: "):
        make_plan(tmp_path / "circle", tmp_path / "out", Settings())
    (tmp_path / "circle").unlink()
    (tmp_path / "notes.doc").touch()
    with pytest.raises(DataError, match=r"found \['notes.doc'\], wanted .*\.mp4"):
        make_plan(tmp_path, tmp_path / "out", Settings())
    for name in ("dev/mp4/a/1.mp4", "test/mp4/a/1.mp4"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    with pytest.raises(DataError, match="the same clip"):
        make_plan(tmp_path, tmp_path / "out", Settings())
    with pytest.raises(DataError, match=r"no plan\.json.*new or empty"):
        make_plan(raw, tmp_path, Settings())
    (tmp_path / "out").mkdir()
    (tmp_path / "out/plan.json").write_text("{}")
    with pytest.raises(DataError, match="not the plan"):
        make_plan(raw, tmp_path / "out", Settings())


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError(), ImportError("av")])
def test_what_is_not_a_videos_fault_stops_the_shard(raw, tmp_path, error):
    (job,) = make_plan(raw / "dev/mp4/id10001", tmp_path / "out", Settings()).jobs()

    def failing(job, video):
        if video == job.videos[1]:
            raise error
        yield from stored_frames(job, video)

    with pytest.raises(type(error)) as caught:
        prepare_shard(job, failing)
    assert caught.value.__notes__ == [f"'{job.videos[1].path}' was being read"]
    assert not job.tar.exists()
    assert prepare_shard(job) == len(job.videos) == 2


def test_an_unforeseen_error_stops_the_shard_where_every_video_has_it(raw, tmp_path, caplog):
    plan = make_plan(raw / "dev/mp4/id10001", tmp_path / "out", Settings())
    (job,) = plan.jobs()
    good = []

    def failing(job, video):
        if video not in good:
            raise RuntimeError(f"no driver for {video.path}")
        yield from stored_frames(job, video)

    with pytest.raises(RuntimeError, match="no driver for video0/00001"):
        prepare_shard(job, failing)
    assert not job.tar.exists()
    assert caplog.text.count("RuntimeError('no driver") == 1
    good.append(job.videos[0])
    prepare_shard(job, failing)
    finish(plan)
    (bad,) = json.loads((plan.out / "report.json").read_text())["bad_videos"]
    assert bad["reason"] == f"RuntimeError('no driver for {job.videos[1].path}')"


# detection


def face(x, y, size=40.0, score=0.9):
    points = torch.from_numpy(face_points(np.random.default_rng(0), 1)[:, :2])
    return Detection(points * size + torch.tensor([x, y]), score)


def test_the_face_that_is_seen_longest_is_followed():
    """Two people walk past each other; the third is there only once, but larger."""
    one = [face(4.0 * i, 50) for i in range(20)]
    two = [face(100 - 4.0 * i, 110) for i in range(20)]
    frames = [[b, a] if i % 2 else [a, b] for i, (a, b) in enumerate(zip(one, two, strict=True))]
    frames[5] = [two[5]]  # missed once
    frames[9] = [*frames[9], face(0, 0, 300)]
    frames[3] = []
    found = main_track(frames)
    assert found == [None if i == 3 else face for i, face in enumerate(two)]
    gone = [[one[0]]] * 10 + [[]] * 14 + [[one[0]]] * 9
    assert [face is not None for face in main_track(gone)] == [True] * 10 + [False] * 23
    missed = [[one[0]]] * 3 + [[]] * 12 + [[one[0]]] * 2
    assert [face is not None for face in main_track(missed)] == [True] * 3 + [False] * 12 + [
        True
    ] * 2
    assert main_track([[], []]) == [None, None]
    assert main_track([[face(0, 0, 20), face(200, 0, 50)]])[0].landmarks.amin() > 0


def test_faces_are_detected_where_no_landmarks_are_given(tmp_path, monkeypatch):
    film(tmp_path / "raw/a/b/1.mp4", 6, 160)

    class Fake(FaceDetector):
        def __init__(self):
            self.seen = 0

        def __call__(self, image):
            assert image.shape == (3, 160, 160)
            assert 0 <= image.min() < image.max() <= 1
            self.seen += 1
            return [] if self.seen == 2 else [face(0, 0, 160, 0.8), face(100, 100, 30)]

    fake = Fake()
    monkeypatch.setattr(video_module, "_detector", lambda _: fake)
    plan = make_plan(tmp_path / "raw", tmp_path / "out", Settings(every=2))
    prepare_shard(plan.jobs()[0])
    assert finish(plan) == []
    source, found = clips(plan.out)
    assert found["a/b/1"].frames.tolist() == [b"000000.jpg", b"000004.jpg"]
    assert source.read(found["a/b/1"], 0).confidence.tolist() == pytest.approx([0.8] * 68)
    report = json.loads((plan.out / "report.json").read_text())
    assert report["dropped_frames"] == {"no face": 1}


def test_a_missing_detector_is_said_at_once(tmp_path, monkeypatch, capsys):
    film(tmp_path / "raw/a/b/1.mp4", 1, 160)

    def offline(*_, **__):
        raise ConnectionError("no network")

    monkeypatch.setattr("insightface.app.FaceAnalysis.__init__", offline)
    monkeypatch.setattr("core.detect.ROOT", tmp_path)
    video_module._detector.cache_clear()
    arguments = ["prepare", "voxceleb", "--raw", str(tmp_path / "raw"), "--out"]
    with pytest.raises(SystemExit):
        main([*arguments, str(tmp_path / "out")])
    assert "1k3d68.onnx" in capsys.readouterr().err
    with pytest.raises(AssetNotFoundError) as caught:  # and a video is not called bad for it
        prepare_shard(make_plan(tmp_path / "raw", tmp_path / "out", Settings()).jobs()[0])
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # of a process


def test_the_detector_has_as_many_threads_as_torch(monkeypatch):
    given = {}

    class Analysis:
        def __init__(self, **options):
            given.update(options)

        def prepare(self, **_):
            pass

    monkeypatch.setattr("insightface.app.FaceAnalysis", Analysis)
    threads = torch.get_num_threads()
    try:
        for wanted in (1, 2):
            torch.set_num_threads(wanted)
            FaceDetector()
            assert given["sess_options"].intra_op_num_threads == wanted
    finally:
        torch.set_num_threads(threads)


# masks


def network(path, classes=19, shape=(1, 3, 32, 32)):
    """Skin where it is red, hair elsewhere: a convolution of one pixel."""
    weights = np.zeros((classes, 3, 1, 1), np.float32)
    weights[1, 0], weights[-2, 0] = 50, -50
    node = helper.make_node("Conv", ["image", "weights"], ["scores"])
    graph = helper.make_graph(
        [node],
        "parser",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, (1, classes, *shape[2:]))],
        [helper.make_tensor("weights", TensorProto.FLOAT, weights.shape, weights.ravel())],
    )
    opset = helper.make_opsetid("", 17)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=8), path)
    return path


def test_a_parsing_network_marks_the_face(tmp_path):
    parser = FaceParser(network(tmp_path / "net.onnx"))
    image = torch.zeros(3, 64, 64)
    image[0, :, 32:] = 1
    mask = parser(image)
    assert mask.shape == (1, 64, 64)
    assert mask[0, :, :28].max() < 0.01
    assert mask[0, :, 36:].min() > 0.99
    free = FaceParser(network(tmp_path / "free.onnx", shape=(1, 3, "h", "w")))
    assert free.size == (512, 512)
    with pytest.raises(DataError, match=r"gives \(1, 4, 32, 32\), wanted \(1, 19"):
        FaceParser(network(tmp_path / "four.onnx", classes=4))(image)
    (tmp_path / "text.onnx").write_text("no network")
    with pytest.raises(DataError, match="not an ONNX network"):
        FaceParser(tmp_path / "text.onnx")
    with pytest.raises(AssetNotFoundError, match="--parsing"):
        FaceParser(tmp_path / "none.onnx")


def test_what_the_parsing_network_is_shown_and_which_classes_are_face(tmp_path):
    """ImageNet's mean becomes 0, a spread above it 1; CelebAMask-HQ's classes by name."""
    parser, shown = FaceParser(network(tmp_path / "net.onnx")), []

    class Session:
        def run(self, _, given):
            shown.append(given["image"])
            return [np.zeros((1, 19, 32, 32), np.float32)]

    parser.session = Session()
    mean, spread = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])
    for away in (0, 1):
        mask = parser((mean + away * spread)[:, None, None].expand(3, 32, 32))
        np.testing.assert_allclose(shown[away], away, atol=1e-5)
        assert shown[away].shape == (1, 3, 32, 32)
    torch.testing.assert_close(mask, torch.full((1, 32, 32), len(FACE) / 19))
    before = ["background", "skin", "l_brow", "r_brow", "l_eye", "r_eye", "eye_g", "l_ear", "r_ear"]
    after = ["ear_r", "nose", "mouth", "u_lip", "l_lip", "neck", "neck_l", "cloth", "hair", "hat"]
    seen = "skin l_brow r_brow l_eye r_eye nose mouth u_lip l_lip"
    assert [(before + after)[index] for index in FACE] == seen.split()


@pytest.mark.parametrize("kind", ["skin", "parsing"])
def test_masks_by_colour_and_by_a_network(raw, tmp_path, kind):
    parsing = str(network(tmp_path / "net.onnx")) if kind == "parsing" else None
    settings = Settings(mask=kind, parsing=parsing, every=5)
    plan = make_plan(raw / "dev/mp4/id10001", tmp_path / "out", settings)
    prepare_shard(plan.jobs()[0])
    finish(plan)
    source, found = clips(plan.out)
    frame = source.read(found["video0/00001"], 0)
    image, mask = frame.image.float() / 255, frame.mask[0].float() / 255
    if kind == "parsing":
        inner = slice(8, -8)
        assert mask[inner, inner][image[0, inner, inner] > 0.55].mean() > 0.8
        assert mask[inner, inner][image[0, inner, inner] < 0.35].mean() < 0.1
    else:
        from core.skin import skin_probability

        middle = (slice(120, 136), slice(120, 136))  # inside the hull
        wanted = skin_probability(image)[0][middle]
        assert (mask[middle] - wanted).abs().mean() < 0.1
        assert mask[:5].max() == 0


def test_a_network_is_the_same_file_in_another_folder(raw, tmp_path, monkeypatch, capsys):
    network(tmp_path / "net.onnx")
    arguments = ["prepare", "voxceleb", "--raw", str(raw / "dev/mp4/id10001"), "--jobs", "1"]
    arguments += ["--out", str(tmp_path / "out"), "--every", "5", "--mask", "parsing", "--parsing"]
    monkeypatch.chdir(tmp_path)
    main([*arguments, "net.onnx"])
    monkeypatch.chdir("/")
    main([*arguments, str(tmp_path / "net.onnx")])
    assert capsys.readouterr().out.count("finished") == 2
