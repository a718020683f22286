import numpy as np
import pytest
import torch

from benchmarks.frgc import FRGC, at_pixels, read_abs
from benchmarks.scans import ScanProtocol
from core.errors import AssetNotFoundError, DataError
from tests.fakes import frgc


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return frgc.write(tmp_path_factory.mktemp("frgc"))


def benchmark(root, **options):
    options = {"names": list(frgc.NAMES), "image_size": 32, "progress": False} | options
    return FRGC(root, image_landmarks=root / "landmarks", **options)


def test_range_images_are_read_without_what_was_not_measured(root):
    points, measured = frgc.grid()
    paths = sorted(root.glob("*range/*.abs*"))
    assert {path.suffix for path in paths} == {".abs", ".gz"}
    for path in paths:
        positions, valid = read_abs(path)
        assert (valid.numpy() == measured).all()
        np.testing.assert_allclose(positions.numpy()[measured], points[measured], atol=1e-6)


def test_a_scan_is_what_was_measured_with_the_landmarks_of_its_photograph(root):
    own, measured = benchmark(root), frgc.grid()[1]
    for name in own.samples()["scans"]:
        (scan,) = own.scans(name)
        torch.testing.assert_close(
            scan.vertices, torch.from_numpy(frgc.grid()[0][measured]), rtol=0, atol=1e-6
        )
        inner = slice(17, None)  # the jaw's lie at holes
        wanted = frgc.mesh().landmarks[inner]
        torch.testing.assert_close(scan.landmarks[inner], wanted, rtol=0, atol=1e-6)


def test_the_true_face_scores_zero_and_a_flat_one_does_not(root):
    results = benchmark(root).score(lambda sample: frgc.mesh().scaled(1.1))
    assert not results.failures
    assert results["scans_point_mm"].value.n == 3
    assert max(results.means().values()) < 1e-5

    def flat(sample):
        mesh = frgc.mesh()
        mesh.vertices[:, 2] *= 0.5
        mesh.landmarks[:, 2] *= 0.5
        return mesh

    assert benchmark(root).score(flat)["scans_point_mm"].value.mean > 1


def test_landmarks_are_taken_at_the_nearest_measured_pixel():
    positions = torch.arange(12.0).double().reshape(2, 2, 3)
    valid = torch.tensor([[True, False], [True, True]])
    pixels = torch.tensor([[0.4, 0.6], [3.6, 0.5], [3.9, 3.9]])  # of a photograph twice as large
    found = at_pixels(positions, valid, pixels, (4, 4))
    assert found[0].tolist() == [0, 1, 2]
    assert found[1].tolist() == [9, 10, 11]  # below the one that was not measured
    assert found[2].tolist() == [9, 10, 11]
    wide = torch.arange(24.0).double().reshape(2, 4, 3)
    pixels = torch.tensor([[7.6, 0.2], [15.0, 3.9], [0.1, 2.1]])  # 4 times as wide, twice as high
    found = at_pixels(wide, torch.ones(2, 4, dtype=torch.bool), pixels, (4, 16))
    assert found.tolist() == [wide[0, 1].tolist(), wide[1, 3].tolist(), wide[1, 0].tolist()]
    with pytest.raises(DataError, match="no measured point"):
        at_pixels(positions, valid & False, pixels, (4, 4))


def test_damaged_scans_and_missing_photographs_are_failures(tmp_path):
    root = frgc.write(tmp_path)
    (root / "Fall2003range/02463d546.abs.gz").write_bytes(b"nothing")
    (root / "Fall2003range/02463d561.ppm").unlink()
    results = benchmark(root).score(lambda sample: frgc.mesh())
    assert results.failures == {
        "scan: its .abs cannot be read": ["02463d546"],
        "scan: its photograph is missing or cannot be read": ["02463d560"],
    }
    assert results["scans_point_mm"].value.n == 1


def test_the_size_of_the_set_is_asserted_and_the_draw_is_seeded(root, tmp_path):
    with pytest.raises(DataError, match="holds 3 scans"):
        benchmark(root, names=None).samples()
    with pytest.raises(DataError, match="05000d1"):
        benchmark(root, names=["05000d1"]).samples()
    with pytest.raises(AssetNotFoundError, match="FRGC"):
        FRGC(tmp_path / "none").samples()
    folder = tmp_path / "Fall2003range"
    folder.mkdir()
    for k in range(4007):
        (folder / f"0{k}d1.abs.gz").touch()
    draws = [FRGC(tmp_path, seed=seed).samples()["scans"] for seed in (1, 1, 2)]
    assert len(set(draws[0])) == 1335
    assert draws[0] == draws[1] != draws[2]


def test_a_range_image_has_no_surface_to_measure_from(root):
    with pytest.raises(DataError, match="symmetric"):
        FRGC(root, protocol=ScanProtocol(symmetric=True))
