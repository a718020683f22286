import os
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial import procrustes as scipy_procrustes
from scipy.spatial.transform import Rotation

from benchmarks import metrics
from core.rotation import rotation_from_euler

SAMPLES = Path(os.environ.get("MONOFACE_SAMPLES", Path(__file__).parents[2] / "shared" / "samples"))


def face(*batch, n=68, d=2):
    return 100 * torch.rand(*batch, n, d)


def rotation(seed, *batch):
    random = np.random.default_rng(seed)
    matrices = Rotation.random(int(np.prod(batch)), rng=random).as_matrix()
    return torch.from_numpy(matrices).float().reshape(*batch, 3, 3)


CALLS = {
    "nme": (lambda x, y: metrics.nme_percent(x[..., :2], y[..., :2]), 3),
    "point": (metrics.point_to_point_mm, 3),
    "similarity": (lambda x, y: metrics.aligned_point_to_point_mm(x, y, scale=True), 3),
    "rigid": (lambda x, y: metrics.aligned_point_to_point_mm(x, y, scale=False), 3),
}


@pytest.mark.parametrize("name", CALLS)
def test_points_identical_give_zero_one_number_each_and_inputs_stay(name):
    metric, d = CALLS[name]
    x = face(2, 3, d=d)
    before = x.clone()
    error = metric(x, x.clone())
    assert error.shape == (2, 3)
    assert error.abs().max() < 1e-4
    assert torch.equal(x, before)


@pytest.mark.parametrize("name", CALLS)
def test_points_mirrored_or_permuted_are_not_zero(name):
    metric, d = CALLS[name]
    x = face(4, d=d)
    assert (metric(x * torch.tensor([-1.0, 1.0, 1.0][:d]), x) > 1).all()
    assert (metric(x.roll(1, -2), x) > 1).all()


def test_nme_of_a_shift_by_3_px_on_a_100_px_box_is_3_percent():
    x = face(5)
    x[:, 0], x[:, 1] = torch.tensor([0.0, 0.0]), torch.tensor([100.0, 100.0])
    error = metrics.nme_percent(x + torch.tensor([0.0, -3.0]), x)
    torch.testing.assert_close(error, torch.full((5,), 3.0))


def test_nme_normalises_with_the_true_box_and_not_the_image_size():
    x, y = face(5), face(5)
    torch.testing.assert_close(metrics.nme_percent(7 * x, 7 * y), metrics.nme_percent(x, y))
    wide = torch.tensor([4.0, 1.0])
    expected = 100 * ((x - y) * wide).norm(dim=-1).mean(-1)
    box = ((y.amax(-2) - y.amin(-2)) * wide).prod(-1).sqrt()
    torch.testing.assert_close(metrics.nme_percent(x * wide, y * wide), expected / box)
    assert not torch.allclose(metrics.nme_percent(x / 2, y), metrics.nme_percent(y, x / 2))


def test_yaw_bins_include_their_upper_edge_on_both_sides():
    yaw = torch.tensor([0.0, -30.0, 30.1, 60.0, -60.5, 90.0])
    assert metrics.yaw_bin(yaw).tolist() == [0, 0, 1, 1, 2, 2]


def test_rotation_angle_agrees_with_scipy():
    x, y = rotation(1, 2, 50), rotation(2, 2, 50)
    relative = (x.double() @ y.double().mT).reshape(-1, 3, 3).numpy()
    expected = np.degrees(Rotation.from_matrix(relative).magnitude()).reshape(2, 50)
    np.testing.assert_allclose(metrics.rotation_degrees(x, y).numpy(), expected, atol=1e-3)
    assert metrics.rotation_degrees(x, x).max() < 0.05  # float32 matrices


def test_euler_errors_are_the_angles_added_and_wrap():
    pitch, yaw, roll = torch.tensor([[0.1, -0.3], [0.5, -0.9], [3.1, 0.2]])
    added = torch.deg2rad(torch.tensor([5.0, 7.0, 9.0]))
    x = rotation_from_euler(pitch, yaw, roll)
    y = rotation_from_euler(pitch + added[0], yaw + added[1], roll + added[2])  # roll passes pi
    expected = torch.tensor([[5.0, 7.0, 9.0]]).expand(2, 3)
    torch.testing.assert_close(metrics.euler_degrees(y, x), expected, atol=1e-3, rtol=0)
    torch.testing.assert_close(metrics.euler_degrees(x, y), expected, atol=1e-3, rtol=0)


def test_point_distance_of_a_shift_is_the_shift_and_zero_when_aligned():
    x = face(3, d=3)
    moved = x + torch.tensor([2.0, 3.0, 6.0])
    torch.testing.assert_close(metrics.point_to_point_mm(moved, x), torch.full((3,), 7.0))
    assert metrics.aligned_point_to_point_mm(moved, x, scale=False).max() < 1e-4


def test_rigid_alignment_keeps_an_error_of_scale_similarity_does_not():
    x = face(3, d=3)
    turned = (1.1 * x) @ rotation(0, 3).mT + 40
    assert metrics.aligned_point_to_point_mm(turned, x, scale=True).max() < 1e-3
    centred = x - x.mean(-2, keepdim=True)
    expected = 0.1 * centred.norm(dim=-1).mean(-1)
    found = metrics.aligned_point_to_point_mm(turned, x, scale=False)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_similarity_alignment_agrees_with_scipy():
    x, y = face(d=3).double(), face(d=3).double()
    y = x + 0.05 * y  # scipy reflects if that is better; here it is not
    _, moved, _ = scipy_procrustes(y.numpy(), x.numpy())
    centred = y - y.mean(0)
    expected = np.linalg.norm(moved - (centred / centred.norm()).numpy(), axis=1).mean()
    found = metrics.aligned_point_to_point_mm(x, y, scale=True)
    assert float(found / centred.norm()) == pytest.approx(expected, rel=1e-6)


def test_alignment_of_nan_raises_instead_of_scoring():
    x = face(d=3)
    broken = x.clone()
    broken[0, 0] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        metrics.aligned_point_to_point_mm(broken, x, scale=True)


def images(*batch):
    return torch.rand(*batch, 3, 8, 9)


def test_photometric_of_a_constant_difference_inside_the_mask():
    target, mask = 0.5 * images(2), torch.zeros(2, 1, 8, 9)
    mask[:, :, 2:5, 3:7] = 1
    before = target.clone()
    predicted = target + torch.tensor([0.1, -0.0, 0.2])[:, None, None] * mask + 0.4 * (1 - mask)
    assert metrics.photometric_255(target, target, mask).max() == 0
    expected = torch.full((2,), 255 * 0.1)
    torch.testing.assert_close(metrics.photometric_255(predicted, target, mask), expected)
    expected = torch.full((2,), 255 * 0.05**0.5)
    torch.testing.assert_close(metrics.photometric_rgb_255(predicted, target, mask), expected)
    assert torch.equal(target, before)


def test_photometric_is_the_mean_absolute_difference_of_numpy_and_clips():
    predicted, target = 2 * images() - 0.5, images()
    mask = (torch.rand(1, 8, 9) > 0.4).float()
    where = mask[0].bool().numpy()
    difference = np.abs(np.clip(predicted.numpy(), 0, 1) - target.numpy())[:, where]
    found = metrics.photometric_255(predicted, target, mask)
    assert float(found) == pytest.approx(255 * difference.mean(), rel=1e-5)


def test_empty_masks_are_nan_and_never_a_score():
    x, nothing = images(2), torch.zeros(2, 1, 8, 9)
    assert metrics.photometric_255(x, x, nothing).isnan().all()
    assert metrics.photometric_rgb_255(x, x, nothing).isnan().all()
    assert metrics.albedo_255(x, x, nothing, gain=True).isnan().all()
    assert metrics.coverage_percent(nothing + 1, nothing).isnan().all()


def test_coverage_counts_the_target_only():
    target = torch.zeros(1, 4, 4)
    target[:, :2] = 1
    predicted = torch.zeros(1, 4, 4)
    predicted[:, :, 0] = 1
    assert metrics.coverage_percent(predicted, target) == 25
    assert metrics.coverage_percent(target + 1 - target, target) == 100


def test_albedo_with_gain_forgives_a_factor_per_channel_and_nothing_else():
    target, mask = images(3), (torch.rand(3, 1, 8, 9) > 0.3).float()
    factors = torch.tensor([0.5, 1.5, 3.0])[:, None, None]
    assert metrics.albedo_255(target * factors, target, mask, gain=True).max() < 1e-3
    raw = metrics.albedo_255(target * factors, target, mask, gain=False)
    expected = 255 * ((target * (factors - 1)).abs().mean(1) * mask[:, 0]).sum((1, 2))
    torch.testing.assert_close(raw, expected / mask.sum((1, 2, 3)))
    assert (metrics.albedo_255(target.flip(-1), target, mask, gain=True) > 1).all()
    assert (metrics.albedo_255(target + 0.3, target, mask, gain=True) > 1).all()


def test_albedo_gain_is_the_least_squares_one():
    x, y, mask = images(), images(), torch.ones(1, 8, 9)
    gains = [
        np.linalg.lstsq(a.reshape(-1, 1), b.ravel())[0][0]
        for a, b in zip(x.numpy(), y.numpy(), strict=True)
    ]
    expected = np.mean(
        [np.abs(g * a - b) for g, a, b in zip(gains, x.numpy(), y.numpy(), strict=True)]
    )
    found = metrics.albedo_255(x, y, mask, gain=True)
    assert float(found) == pytest.approx(255 * expected, rel=1e-4)
    black = metrics.albedo_255(0 * x, y, mask, gain=True)  # no gain explains anything with black
    assert float(black) == pytest.approx(255 * float(y.mean()), rel=1e-4)


def test_shading_left_in_the_reflectance():
    """A power of it correlates fully, a gain and what lies outside the mask not at all."""
    random = torch.Generator().manual_seed(0)
    target = 0.2 + 0.6 * torch.rand(2, 1, 40, 50, generator=random)
    target = target.expand(2, 3, 40, 50)  # grey, so that its mean over channels is it
    shading = 0.3 + torch.rand(2, 1, 40, 50, generator=random)
    mask = (torch.rand(2, 1, 40, 50, generator=random) > 0.3).float()

    def found(predicted):
        return metrics.shading_percent(predicted, target, shading, mask)

    everywhere = torch.full((2,), 100.0)
    torch.testing.assert_close(found(3 * target * shading.pow(0.2)), everywhere)
    torch.testing.assert_close(found(target / shading), -everywhere)
    noise = target * (1 + 0.3 * torch.rand(2, 1, 40, 50, generator=random))
    assert found(noise).abs().max() < 8  # 1400 texels
    torch.testing.assert_close(found(5 * noise), found(noise), atol=1e-2, rtol=0)
    torch.testing.assert_close(found(noise * shading.pow(1 - mask)), found(noise))
    mixed = noise * shading.pow(0.1)
    where = mask[0, 0].bool()
    logs = ((mixed / target)[0, 0][where].log().numpy(), shading[0, 0][where].log().numpy())
    assert float(found(mixed)[0]) == pytest.approx(100 * np.corrcoef(*logs)[0, 1], rel=1e-3)
    assert metrics.shading_percent(noise, target, shading, 0 * mask).isnan().all()
    assert not found(target).any()


def test_the_share_of_the_shading_in_the_reflectance():
    """Of products of powers it is the shading's power, whatever that of the target is."""
    random = torch.Generator().manual_seed(0)
    target = (0.2 + 0.6 * torch.rand(2, 1, 40, 50, generator=random)).expand(2, 3, 40, 50)
    shading = 0.3 + torch.rand(2, 1, 40, 50, generator=random) + target[:, :1]
    mask = (torch.rand(2, 1, 40, 50, generator=random) > 0.3).float()

    def found(predicted, true=target):
        return metrics.shading_power_percent(predicted, true, shading, mask)

    for of_target in (0, 0.4, 1):
        for of_shading in (-0.1, 0, 0.25, 1):
            predicted = 0.7 * target.pow(of_target) * shading.pow(of_shading)
            wanted = torch.full((2,), 100.0 * of_shading)
            torch.testing.assert_close(found(predicted), wanted, atol=1e-2, rtol=0)
    noise = target * (0.1 + torch.rand(2, 1, 40, 50, generator=random))
    where = mask[0, 0].bool()
    logs = [x[0, 0][where].double().log().numpy() for x in (noise, target, shading)]
    design = np.stack([*logs[1:], np.ones_like(logs[0])], 1)
    expected = 100 * np.linalg.lstsq(design, logs[0], rcond=None)[0][1]
    assert float(found(noise)[0]) == pytest.approx(expected, abs=1e-2)
    torch.testing.assert_close(found(noise * shading.pow(1 - mask)), found(noise))
    assert metrics.shading_power_percent(noise, target, shading, 0 * mask).isnan().all()
    assert not found(noise, shading.expand(-1, 3, -1, -1)).any()  # which of the two, none can tell
    half = shading.expand(-1, 3, -1, -1).sqrt()
    torch.testing.assert_close(found(half, 0 * target + 0.3), torch.full((2,), 50.0))
    assert not metrics.shading_power_percent(noise, target, 0 * shading + 0.7, mask).any()


def test_cumulative_shares_count_what_could_not_be_scored_as_bad():
    errors = torch.tensor([1.0, 2.0, 3.0, torch.nan])
    found = metrics.cumulative_percent(errors, torch.tensor([0.5, 1.0, 2.5, 100.0]))
    assert found.tolist() == [0, 25, 50, 75]


def test_a_balanced_subset_has_as_many_of_each_bin():
    yaw = torch.cat([torch.linspace(-30, 30, 50), torch.full((9,), -45.0), torch.full((5,), 80.0)])
    chosen = metrics.balanced(yaw, seed=1)
    assert torch.bincount(metrics.yaw_bin(yaw[chosen])).tolist() == [5, 5, 5]
    assert len(set(chosen.tolist())) == 15
    assert torch.equal(chosen, metrics.balanced(yaw, seed=1))
    assert not torch.equal(chosen, metrics.balanced(yaw, seed=2))
