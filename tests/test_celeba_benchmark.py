import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.celeba import CelebA
from core.camera import WeakPerspectiveCamera, frontal
from core.contracts import Reconstruction
from core.crop import face_crop, five_point_crop
from core.errors import AssetNotFoundError, DataError
from core.face_models import FaceModel
from tests.fakes import celeba
from tests.fakes.face_model import face_model_arrays

SIZE = 40
NAMES = ["000009.jpg", "000010.jpg"]  # the test partition of the fake


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = celeba.write(tmp_path_factory.mktemp("celeba"))
    for name in NAMES:  # images of one colour, so that what is drawn tells the error
        Image.fromarray(np.full((64, 64, 3), 100, np.uint8)).save(
            root / f"img_align_celeba/{name}", quality=100
        )
    return root


def benchmark(root, **options):
    options = {"count": 2, "image_size": SIZE, "progress": False} | options
    return CelebA(root, **options)


def painter(colour, scale=0.08, centre=20.0):
    """Draws a face of one colour, wherever the image shows something else."""
    model = FaceModel(face_model_arrays())

    def predict(images):
        b = len(images)
        camera = WeakPerspectiveCamera(
            frontal(images).expand(b, 1, 3, 3),
            torch.full((b, 1), scale),
            torch.full((b, 1, 2), centre),
        )
        light = torch.zeros(b, 1, 9, 1)
        light[:, :, 0] = 2 / np.pi**0.5  # shades every surface by 1
        return Reconstruction(
            vertices=model.mean.expand(b, 1, -1, 3),
            neutral=model.mean.expand(b, 1, -1, 3),
            triangles=model.triangles,
            uv=model.uv,
            camera=camera,
            landmarks=torch.zeros(b, 1, 68, 2),
            albedo_map=torch.tensor(colour).view(1, 1, 3, 1, 1).expand(b, 1, 3, 4, 4) / 255,
            light=light,
        )

    return predict


def test_the_same_colour_scores_zero_and_another_one_its_difference(root):
    results = benchmark(root).run(painter([100.0, 100, 100]))
    assert results["photometric_255"].value.mean < 1
    assert results["photometric_255"].value.n == 2
    results = benchmark(root).run(painter([103.0, 100, 104]))
    assert results["photometric_255"].value.mean == pytest.approx(7 / 3, abs=0.7)
    found = benchmark(root).run(painter([160.0, 100, 180]))
    assert found["photometric_255"].value.mean == pytest.approx(140 / 3, abs=0.7)
    assert found["photometric_rgb_255"].value.mean == pytest.approx(100, abs=1)
    assert found.curves["photometric_255"][-1] == [50.0, 100.0]
    assert found.curves["photometric_255"][0][1] == 0
    assert [metric.name for metric in found.metrics] == ["photometric_255", "photometric_rgb_255"]
    assert list(found.per_sample["photometric_255"]) == NAMES


def covered(points, triangles):
    """Which pixels have their centre in a triangle, by the signs of areas."""
    centres = np.stack(np.meshgrid(np.arange(SIZE) + 0.5, np.arange(SIZE) + 0.5), -1)
    a, b, c = (points[triangles[:, k]][:, None, None] for k in range(3))

    def side(p, q):
        return (q - p)[..., 0] * (centres - p)[..., 1] - (q - p)[..., 1] * (centres - p)[..., 0]

    sides = np.stack([side(a, b), side(b, c), side(c, a)])
    return ((sides > 0).all(0) | (sides < 0).all(0)).any(0)


def test_errors_agree_with_numpy(tmp_path):
    """A photograph of noise; the drawn pixels, and the differences of colours, by numpy."""
    random, colour = np.random.default_rng(0), np.array([160.0, 100, 180])
    root = celeba.write(tmp_path)
    for name in NAMES:
        noise = random.integers(60, 200, (64, 64, 3)).astype(np.uint8)
        Image.fromarray(noise).save(root / f"img_align_celeba/{name}", quality=95)
    drawn, paint = [], painter(colour.tolist(), centre=20.37)  # no edge meets a pixel's centre

    def predict(images):
        face = paint(images)
        points = face.camera.project(face.vertices)[0][:, 0].numpy().astype(np.float64)
        for image, seen in zip(images[:, 0].numpy().astype(np.float64), points, strict=True):
            drawn.append((image, covered(seen, face.triangles.numpy())))
        return face

    results = benchmark(root, batch_size=1).run(predict)
    for name, (image, mask) in zip(NAMES, drawn, strict=True):
        assert 100 < mask.sum() < SIZE**2 / 2
        offset = 255 * image.transpose(1, 2, 0)[mask] - colour
        wanted = {
            "photometric_255": np.abs(offset).mean(),
            "photometric_rgb_255": np.linalg.norm(offset, axis=1).mean(),
        }
        for key, value in wanted.items():
            assert results.per_sample[key][name] == pytest.approx(value, rel=1e-6)


def test_only_pixels_inside_the_photograph_and_the_mask_count(root, tmp_path):
    """A face far larger than the crop is drawn also where the crop leaves the photograph."""
    for margin in (4.0, 3.7):  # the photograph's border lies between pixels, or across them
        wide = benchmark(root, crop_margin=margin).run(painter([100.0, 100, 100], 0.5))
        assert wide["photometric_255"].value.mean < 1e-3
    for k, name in enumerate(NAMES):
        mask = np.zeros((64, 64), np.uint8)
        mask[:, : 32 * (2 - k)] = 255  # all of the first image, half of the second
        Image.fromarray(mask).save(tmp_path / f"{name[:-4]}.png")
        image = np.full((64, 64, 3), 100, np.uint8)
        image[:, 32 * (2 - k) :] = 250  # what the mask leaves out has another colour
        Image.fromarray(image).save(root / f"img_align_celeba/{name}", quality=100, subsampling=0)
    results = benchmark(root, masks=tmp_path).run(painter([100.0, 100, 100], 0.5))
    assert results["photometric_255"].value.mean < 3  # JPEG, and the edge's pixels
    assert results["coverage_percent"].value.mean == pytest.approx(100, abs=1)
    assert results["coverage_percent"].higher_is_better
    assert "in the given masks" in results.protocol
    worse = benchmark(root).run(painter([100.0, 100, 100], 0.5))
    assert worse.per_sample["photometric_255"][NAMES[1]] > 30
    for name in NAMES:
        Image.fromarray(np.full((64, 64, 3), 100, np.uint8)).save(
            root / f"img_align_celeba/{name}", quality=100
        )


def test_failures_are_counted_and_in_no_mean(tmp_path):
    root = celeba.write(tmp_path)
    names = tmp_path / "names.txt"
    names.write_text("000001.jpg\n000002.jpg\n000009.jpg\n000010.jpg\n")
    masks = tmp_path / "masks"
    masks.mkdir()
    for name, side in (("000001", 64), ("000010", 32)):
        Image.fromarray(np.full((side, side), 255, np.uint8)).save(masks / f"{name}.png")
    options = {"names": names, "masks": masks}
    results = benchmark(root, **options).run(painter([90.0, 90, 90]))
    assert results.failures == {
        "the image cannot be read": ["000002.jpg"],
        "its mask is missing or cannot be read": ["000009.jpg"],
        "its mask has another size than the image": ["000010.jpg"],
    }
    assert results["photometric_255"].value.n == 1
    outside = benchmark(root, **options).run(painter([90.0, 90, 90], centre=500.0))
    assert outside.failures["no pixel of the face is drawn"] == ["000001.jpg"]
    assert outside.means().keys() <= {"coverage_percent"}
    broken = benchmark(root, **options).run(painter([float("nan")] * 3))
    assert broken.failures["the predicted face is not finite"] == ["000001.jpg"]
    assert broken.means() == {}


def test_crops_by_68_landmarks(root, tmp_path):
    np.save(tmp_path / "000009.npy", np.random.default_rng(0).uniform(10, 50, (68, 2)))
    results = benchmark(root, landmarks=tmp_path).run(painter([100.0, 100, 100]))
    assert results.failures == {"there are no landmarks of the photograph": ["000010.jpg"]}
    assert results["photometric_255"].value.mean < 1


@pytest.mark.parametrize("by", ["five", "sixty-eight"])
def test_masks_are_cut_where_they_end_and_crops_have_the_margin(root, tmp_path, by):
    mask = np.zeros((64, 64), np.uint8)
    mask[:, :24] = 255  # not in the middle of the crop, where any margin would do
    Image.fromarray(mask).save(tmp_path / "000009.png")
    points = torch.from_numpy(np.random.default_rng(0).uniform(15, 45, (68, 2))).float()
    np.save(tmp_path / "000009.npy", points)
    own = benchmark(root, masks=tmp_path, crop_margin=2.0)
    five = own._five()[NAMES[0]]
    matrix = five_point_crop(five, SIZE, 2.0)
    if by == "sixty-eight":
        own.landmarks = tmp_path
        matrix = face_crop(points, torch.ones(68), SIZE, 2.0)
    x, y = ((torch.arange(SIZE) + 0.5 - matrix[k, 2]) / matrix[k, k] for k in (0, 1))
    wanted = ((x > 0) & (x < 24))[None] & ((y > 0) & (y < 64))[:, None]
    found = own._crop(NAMES[0], {NAMES[0]: five})[1][0] > 0
    assert 100 < wanted.sum() < SIZE**2 - 100
    inner = ((x > 1) & (x < 63))[None] & ((y > 1) & (y < 63))[:, None]  # borders: another test
    assert torch.equal(found[inner.expand(SIZE, SIZE)], wanted[inner.expand(SIZE, SIZE)])


def test_whole_photographs_have_their_own_list(root, tmp_path):
    shutil.copytree(root, tmp_path / "celeba")
    for old, new in (
        ("img_align_celeba", "img_celeba"),
        ("list_landmarks_align_celeba.txt", "list_landmarks_celeba.txt"),
    ):
        (tmp_path / "celeba" / old).rename(tmp_path / "celeba" / new)
    results = benchmark(tmp_path / "celeba", aligned=False).run(painter([100.0, 100, 100]))
    assert results["photometric_255"].value.n == 2
    assert results["photometric_255"].value.mean < 1
    assert "whole photographs" in results.protocol


def test_the_size_of_the_set_is_asserted(root, tmp_path):
    assert benchmark(root).samples() == NAMES
    assert benchmark(root, count=1).samples() == NAMES[:1]
    with pytest.raises(DataError, match="has 2 images in its test partition, wanted 1000"):
        CelebA(root).samples()
    with pytest.raises(AssetNotFoundError, match="CelebA"):
        CelebA(tmp_path / "none").samples()
    with pytest.raises(DataError, match="at least 1"):
        benchmark(root, count=0)
    with pytest.raises(AssetNotFoundError, match="masks"):
        benchmark(root, masks=tmp_path / "none").samples()
    (tmp_path / "a.txt").write_text("000005.jpg\n")
    with pytest.raises(DataError, match=r"lacks 1 of 1: \['000005\.jpg'\]"):
        benchmark(root, names=tmp_path / "a.txt").samples()
    with pytest.raises(DataError, match="cannot be read"):
        benchmark(tmp_path).samples()
