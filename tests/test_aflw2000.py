import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import loadmat

from benchmarks.__main__ import main
from benchmarks.aflw2000 import (
    AFLW2000,
    BINS,
    TWENTY_ONE,
    bin_counts,
    by_bins,
    crop_matrices,
    read_yaws,
    score_arrays,
    twenty_one_points,
)
from core.camera import WeakPerspectiveCamera, frontal
from core.contracts import Reconstruction
from core.crop import transform_points
from core.errors import AssetNotFoundError, DataError
from tests.fakes import aflw2000

SAMPLES = Path(os.environ.get("MONOFACE_SAMPLES", Path(__file__).parents[2] / "shared" / "samples"))
REAL = SAMPLES / "aflw2000"
needs_samples = pytest.mark.skipif(not REAL.is_dir(), reason=f"no real samples at {REAL}")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return aflw2000.write(tmp_path_factory.mktemp("aflw"))


@pytest.fixture(autouse=True)
def eight(monkeypatch):
    monkeypatch.setattr(AFLW2000, "size", 8)


def truth(root, names=aflw2000.NAMES):
    """The labels in our pixels, read apart from the benchmark."""
    points = [loadmat(root / f"{name}.mat")["pt3d_68"][:2].T for name in names]
    return torch.from_numpy(np.stack(points).astype(np.float64)) - 0.5


def aflw_yaws(root):
    return np.load(root / "yaws.npy").astype(np.float64)


def reconstruction(landmarks):
    b = len(landmarks)
    camera = WeakPerspectiveCamera(
        frontal(landmarks).expand(b, 1, 3, 3), torch.ones(b, 1), torch.zeros(b, 1, 2)
    )
    return Reconstruction(
        vertices=torch.zeros(b, 1, 3, 3),
        neutral=torch.zeros(b, 1, 3, 3),
        triangles=torch.tensor([[0, 1, 2]]),
        uv=torch.zeros(3, 2),
        camera=camera,
        landmarks=landmarks[:, None],
        albedo_map=torch.zeros(b, 1, 3, 2, 2),
        light=torch.zeros(b, 1, 9, 1),
    )


class Oracle:
    """Predicts given points of the whole images, in the crops that the benchmark makes."""

    def __init__(self, points, true, size=64, crop="3ddfa"):
        matrices = crop_matrices(true, size, crop)
        self.landmarks, self.at = transform_points(matrices, points).float(), 0

    def __call__(self, images):
        part = self.landmarks[self.at : self.at + len(images)]
        self.at += len(images)
        return reconstruction(part)


def run(root, points=None, crop="3ddfa", **options):
    true = truth(root)
    predict = Oracle(true if points is None else points, true, crop=crop)
    options = {"image_size": 64, "batch_size": 3, "progress": False, "crop": crop} | options
    return AFLW2000(root, **options).run(predict)


@pytest.mark.parametrize("crop", ["3ddfa", "prn", 1.6])
def test_the_truth_scores_zero_in_every_crop(root, crop):
    results = run(root, crop=crop)
    assert results.images == 8
    assert not results.failures
    assert results["nme_all_percent"].value.n == 8
    assert [results[f"nme_{k}_percent"].value.n for k in ("0_30", "30_60", "60_90")] == [4, 2, 2]
    assert results["nme_all_percent"].value.mean < 1e-4  # float32 pixels of the crop
    assert results.curves["nme"][1][1] == 100


def test_shifted_points_give_the_shift_over_the_size_of_the_box(root):
    true = truth(root)
    box = (true.amax(1) - true.amin(1)).prod(-1).sqrt()
    shift = torch.arange(1.0, 9.0).double()  # pixels of the 450 x 450 image
    results = run(root, true + shift[:, None, None] * torch.tensor([0.6, 0.8]).double())
    expected = 100 * shift / box
    bins = [expected[[0, 1, 2, 7]].mean(), expected[[3, 4]].mean(), expected[[5, 6]].mean()]
    found = [results[f"nme_{k}_percent"].value.mean for k in ("0_30", "30_60", "60_90")]
    assert found == pytest.approx([float(x) for x in bins], abs=1e-4)
    assert results["nme_mean_percent"].value.mean == pytest.approx(float(sum(bins)) / 3, abs=1e-4)
    assert results["nme_mean_percent"].value.std == pytest.approx(np.std(bins), abs=1e-4)
    assert results["nme_all_percent"].value.mean == pytest.approx(float(expected.mean()), abs=1e-4)
    assert results.per_sample["nme"]["image00055"] == pytest.approx(float(expected[6]), abs=1e-4)


def test_the_other_labels_and_yaws(root, tmp_path):
    results = run(root, reannotated=root / "labels.npy", aflw_yaws=root / "yaws.npy", balanced=True)
    true = truth(root)
    box = (true.amax(1) - true.amin(1)).prod(-1).sqrt()
    expected = float((100 * 2**0.5 / box).mean())  # they are one pixel off in x and y
    assert results["reannotated_nme_all_percent"].value.mean == pytest.approx(expected, abs=1e-4)
    assert results["aflw_yaw_nme_60_90_percent"].value.n == 2
    assert results["nme_balanced_percent"].value.n == 6
    np.save(tmp_path / "yaws.npy", np.array([0.0, 0, 0, 0, 40, 75, 80, 85]))  # others than fitted
    results = run(root, aflw_yaws=tmp_path / "yaws.npy", balanced=True)
    counts = {
        prefix: [results[f"{prefix}nme_{key}_percent"].value.n for key in list(BINS)[:3]]
        for prefix in ("", "aflw_yaw_")
    }
    assert counts == {"": [4, 2, 2], "aflw_yaw_": [4, 1, 3]}
    assert results["nme_balanced_percent"].value.n == 3  # by AFLW's


def test_twenty_one_points_leave_unseen_ones_out(root):
    results = run(root)
    true, errors = truth(root), []
    for k, name in enumerate(aflw2000.NAMES):
        others = loadmat(root / f"{name}.mat")["pt2d"]
        distances = []
        for row, indices in enumerate(TWENTY_ONE):
            if others[0, row] != -1:
                mean = true[k, list(indices)].numpy().mean(0)
                distances.append(np.linalg.norm(mean - (others[:, row] - 0.5)))
        box = np.ptp(true[k].numpy(), axis=0)
        errors.append(100 * np.mean(distances) / np.sqrt(box.prod()))
        assert len(distances) == 15
    assert results["nme21_all_percent"].value.mean == pytest.approx(np.mean(errors), rel=1e-5)
    assert twenty_one_points(torch.arange(68.0)[:, None])[[0, 7, 18]].flatten().tolist() == [
        17,
        38.5,
        63.5,
    ]


def test_failures_are_listed_and_in_no_mean(root, tmp_path):
    points = truth(root)
    points[3, 5, 0] = torch.nan
    points[4, 0, 0] = torch.inf
    results = run(root, points)
    names = [aflw2000.NAMES[3], aflw2000.NAMES[4]]
    assert results.failures == {"the predicted landmarks are not finite": names}
    assert results["nme_all_percent"].value.n == 6
    assert results["nme_30_60_percent"].value.mean is None
    assert results["nme_mean_percent"].value.mean is None
    assert results.curves["nme"][-1][1] == 75
    assert json.loads(results.to_json())["images"] == 8


def test_an_unreadable_image_is_a_failure(tmp_path):
    root = aflw2000.write(tmp_path)
    (root / "image00008.jpg").write_bytes(b"no image")
    true = truth(root)
    good = torch.tensor([0, 1, 3, 4, 5, 6, 7])
    predict = Oracle(true[good], true[good])
    results = AFLW2000(root, 64, progress=False, batch_size=3).run(predict)
    assert results.failures == {"the image cannot be read": ["image00008"]}
    assert results["nme_all_percent"].value.mean < 1e-4


def test_the_whole_set_is_asserted_but_for_a_named_subset(root, tmp_path, monkeypatch):
    monkeypatch.setattr(AFLW2000, "size", 2000)
    with pytest.raises(DataError, match="wanted 2000"):
        run(root)
    listing = tmp_path / "two.txt"
    listing.write_text("image00089\nimage00005.jpg\n")
    benchmark = AFLW2000(root, 64, names=listing, reannotated=root / "labels.npy", progress=False)
    true = truth(root)[[1, 7]]
    results = benchmark.run(Oracle(true, true))
    assert list(results.per_sample["nme"]) == ["image00005", "image00089"]
    assert results["nme_all_percent"].value.mean < 1e-4
    assert "two.txt" in results.protocol
    listing.write_text("image00001\n")
    with pytest.raises(DataError, match="image00001"):
        benchmark.run(Oracle(true, true))
    with pytest.raises(AssetNotFoundError, match="AFLW2000-3D"):
        AFLW2000(tmp_path / "none").run(Oracle(true, true))


def test_the_bins_of_the_whole_set_are_asserted(root, tmp_path, monkeypatch):
    """As if the eight images were the 2,000."""
    given = {"aflw_yaws": root / "yaws.npy", "reannotated": root / "labels.npy"}
    right = {"fitted": (4, 2, 2), "AFLW": tuple(bin_counts(torch.from_numpy(aflw_yaws(root))))}
    monkeypatch.setattr("benchmarks.aflw2000.WHOLE", right)
    results = run(root, **given)
    assert "not comparable" not in results.protocol
    monkeypatch.setattr("benchmarks.aflw2000.WHOLE", right | {"fitted": (3, 3, 2)})
    with pytest.raises(DataError, match="by the fitted yaw the bins have 4/2/2 images, wanted 3/3"):
        run(root, **given)
    other = tmp_path / "yaws.npy"
    np.save(other, np.zeros(8))
    monkeypatch.setattr("benchmarks.aflw2000.WHOLE", right)
    with pytest.raises(DataError, match="by the AFLW yaw the bins have 8/0/0"):
        run(root, aflw_yaws=other)
    listing = tmp_path / "two.txt"
    listing.write_text("\n".join(aflw2000.NAMES))
    monkeypatch.setattr("benchmarks.aflw2000.WHOLE", right | {"fitted": (3, 3, 2)})
    part = run(root, names=listing)  # what was asked for, and said to be a part
    assert "not comparable with those of all images" in part.protocol


def test_3ddfa_s_crop_is_the_rounded_square():
    points = torch.tensor([[100.0, 120.0], [200.0, 180.0]]).double().expand(1, 2, 2)
    points = torch.cat([points, points.mean(1, keepdim=True).expand(1, 66, 2)], 1) - 0.5
    matrix = crop_matrices(points, 120, "3ddfa")[0]  # box of 100 x 60 around (150, 150)
    corners = transform_points(matrix, torch.tensor([[79.0, 79.0], [221.0, 221.0]]).double())
    torch.testing.assert_close(corners, torch.tensor([[0.0, 0.0], [120.0, 120.0]]).double())


REFERENCE = {"nme_0_30": 2.8116, "nme_30_60": 3.2341, "nme_60_90": 4.0962, "nme_mean": 3.3806}
REFERENCE |= {"nme_all": 3.0884, "nme_std": 0.5346}


def test_prn_s_crop_is_a_square_of_the_mean_side():
    """A box of 100 x 60 around (160, 230): a square of 1.6 x 80 = 128, from (96, 166)."""
    points = torch.full((1, 68, 2), 230.0, dtype=torch.float64)
    points[0, :, 0] = torch.linspace(110, 210, 68)
    points[0, 3, 1], points[0, 9, 1] = 200, 260
    matrix = crop_matrices(points, 256, "prn")[0]
    assert matrix.tolist() == [[2, 0, -192], [0, 2, -332], [0, 0, 1]]


@needs_samples
def test_the_reference_row_of_the_real_labels(tmp_path, capsys):
    """One set of labels scored against the other, as computed by independent code."""
    arrays = [REAL / f"AFLW2000-3D{end}.npy" for end in ("-Reannotated.pts68", ".pts68", ".pose")]
    start = time.perf_counter()
    found = score_arrays(*arrays)[1]
    assert time.perf_counter() - start < 2  # half a second on an idle machine
    assert {key: found[key] for key in REFERENCE} == pytest.approx(REFERENCE, abs=1e-4)
    assert found["counts"] == [1312, 383, 305]
    other_yaws = REAL / "AFLW2000-3D-new.pose.npy"
    assert score_arrays(*arrays[:2], other_yaws)[1]["counts"] == [1306, 462, 232]
    assert not score_arrays(*arrays[:2], other_yaws)[0].note
    assert found["failures"] == 0
    out = tmp_path / "score.json"
    names = ("--predictions", "--labels", "--yaw")
    options = [part for pair in zip(names, map(str, arrays), strict=True) for part in pair]
    board = ["--name", "Other labels", "--out", str(tmp_path / "theirs")]
    assert main(["score", "aflw2000", *options, "--json", str(out), *board]) == 0
    assert json.loads(out.read_text()) == found
    assert "nme_mean 3.3806" in capsys.readouterr().out
    assert main(["report", str(tmp_path / "theirs"), "--out", str(tmp_path / "report")]) == 0
    lines = (tmp_path / "report/report.md").read_text().splitlines()
    ours = next(k for k, line in enumerate(lines) if line.startswith("| Other labels |"))
    papers = next(k for k, line in enumerate(lines) if line.startswith("| MGCNet |"))
    assert "3.38" in lines[ours]
    assert all(line.startswith("|") for line in lines[papers:ours])  # one table with the papers'


@needs_samples
def test_the_real_pairs_agree_with_the_label_arrays(tmp_path):
    names = [f"image{k:05}" for k in (50, 81)]  # rows 28 and 55
    listing = tmp_path / "names.txt"
    listing.write_text("\n".join(names))
    labels = np.load(REAL / "AFLW2000-3D.pts68.npy")[[28, 55], :2].swapaxes(1, 2) - 0.5
    labels = torch.from_numpy(labels.astype(np.float64))
    results = AFLW2000(REAL, 64, names=listing, progress=False).run(Oracle(labels, labels))
    assert results["nme_all_percent"].value.mean < 1e-4


def write_arrays(folder, **changes):
    rng = np.random.default_rng(0)
    arrays = {"p": rng.uniform(0, 450, (4, 68, 2)), "yaw": np.array([0.0, 40, 80, 5])} | changes
    arrays.setdefault("g", arrays["p"] + 1)
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    return [folder / f"{name}.npy" for name in ("p", "g", "yaw")]


def test_the_mean_is_of_the_bins_and_needs_all_three():
    yaw = torch.tensor([0.0, -30.0, 30.1, 60.0, -60.5, 90.0])
    found = {m.name: m.value for m in by_bins("x", "", torch.tensor([1.0, 3, 4, 6, 7, 9]), yaw)}
    assert [found[f"x_{key}_percent"].mean for key in BINS] == [2, 5, 8, 5, 5]
    assert found["x_mean_percent"].std == pytest.approx(6**0.5)
    found = {m.name: m.value for m in by_bins("x", "", torch.ones(2), torch.zeros(2))}
    assert found["x_mean_percent"].mean is None
    assert found["x_all_percent"].mean == 1


def test_arrays_of_either_layout_and_rows_of_nan(tmp_path):
    rng = np.random.default_rng(0)
    p = rng.uniform(0, 450, (4, 68, 2))
    plain = score_arrays(*write_arrays(tmp_path))[1]
    other = score_arrays(*write_arrays(tmp_path, p=p, g=(p + 1).swapaxes(1, 2)))[1]
    assert other == plain
    depth = np.concatenate([p, rng.uniform(0, 1, (4, 68, 1))], -1)
    assert score_arrays(*write_arrays(tmp_path, p=depth, g=p + 1))[1] == plain
    p[2] = np.nan
    results, found = score_arrays(*write_arrays(tmp_path, p=p, g=np.nan_to_num(p, nan=9.0) + 1))
    assert results.failures == {"NaN or infinite landmarks": ["row 2"]}
    assert results.protocol.startswith("4 rows of arrays (2/1/1 by the given yaw)")
    assert "not comparable" in results.note
    assert "would be 1312/383/305 by the fitted yaw" in results.note
    assert found["failures"] == 1
    assert found["counts"] == [2, 1, 0]
    assert found["nme_60_90"] is None
    json.dumps(found, allow_nan=False)


GRID = np.random.default_rng(0).uniform(0, 450, (4, 68, 2))
RADIANS = np.append(np.random.default_rng(0).uniform(-1.5, 1.5, 199), 6.13)  # one fit turned over


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"p": np.zeros((4, 67, 2))}, "67"),
        ({"g": np.zeros((3, 68, 2))}, "4 images, wanted 3"),
        ({"yaw": np.zeros(5)}, "wanted 4 finite yaws"),
        ({"yaw": np.array([0, 1, np.nan, 2])}, "finite yaws"),
        ({"yaw": np.array([0, 1, 500.0, 2])}, "degrees"),
        ({"g": np.full((4, 68, 2), np.nan)}, "truth"),
        ({"p": np.zeros((0, 68, 2)), "g": np.zeros((0, 68, 2))}, "at least one"),
        ({"p": np.random.default_rng(0).uniform(0, 1, (4, 68, 2)), "g": GRID}, "0.0022 times"),
        ({"p": np.zeros((4, 68, 2)), "g": GRID}, "0 times as large"),
        ({"p": RADIANS[:, None, None] + GRID[0], "g": GRID[[0] * 200], "yaw": RADIANS}, "degrees"),
    ],
)
def test_wrong_arrays_are_refused(tmp_path, capsys, changes, message):
    arrays = [str(path) for path in write_arrays(tmp_path, **changes)]
    command = ["--predictions", arrays[0], "--labels", arrays[1], "--yaw", arrays[2]]
    assert main(["score", "aflw2000", *command]) == 2
    assert message in capsys.readouterr().err


def test_near_frontal_degrees_are_no_radians(tmp_path):
    turns = np.random.default_rng(0).normal(0, 1.2, 199)
    for yaws in (np.append(turns, 20.0), 1.2 * turns.clip(-5, 5)):
        np.save(tmp_path / "yaws.npy", yaws)
        assert np.array_equal(read_yaws(tmp_path / "yaws.npy", len(yaws)), yaws)


def test_a_missing_array_is_named(tmp_path):
    arrays = write_arrays(tmp_path)
    with pytest.raises(AssetNotFoundError, match=r"no\.npy"):
        score_arrays(tmp_path / "no.npy", *arrays[1:])
