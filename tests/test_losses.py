from dataclasses import dataclass

import numpy as np
import pytest
import torch

from core.losses import coefficient_l2, landmark_l2, masked_l1, total


@dataclass(frozen=True)
class Weights:
    photometric: float = 2.0
    landmark: float = 0.5


def test_total_is_the_weighted_sum():
    terms = {"landmark": torch.tensor(4.0), "photometric": torch.tensor(3.0, requires_grad=True)}
    loss = total(terms, Weights())
    assert loss == 8.0
    loss.backward()
    assert terms["photometric"].grad == 2.0


@pytest.mark.parametrize("names", [["photometric"], ["photometric", "landmark", "rest"], []])
def test_total_names_what_does_not_match(names):
    with pytest.raises(ValueError, match="landmark") as caught:
        total({name: torch.tensor(1.0) for name in names}, Weights())
    assert "Weights" in str(caught.value)


def test_eq_6_by_hand():
    """Two images of 1 x 2 pixels, errors of 0.2 and 0.6; the mask keeps one, then both."""
    target = torch.zeros(2, 3, 1, 2)
    image = torch.tensor([[0.1, 0.6], [-0.2, 0.6], [0.3, -0.6]])[None, :, None].repeat(2, 1, 1, 1)
    mask = torch.tensor([[1.0, 0.0], [1.0, 1.0]])[:, None, None]
    torch.testing.assert_close(masked_l1(image, target, mask), torch.tensor((0.2 + 0.4) / 2))


def test_eq_6_is_the_papers_formula_with_loops():
    rng = np.random.default_rng(0)
    image, target = rng.random((2, 3, 5, 6)), rng.random((2, 3, 5, 6))
    mask = (rng.random((2, 1, 5, 6)) < 0.6).astype(float)
    expected = np.mean(
        [
            np.sum(np.abs(m * (i - t))) / 3 / m.sum()
            for i, t, m in zip(image, target, mask, strict=True)
        ]
    )
    found = masked_l1(*map(torch.from_numpy, (image, target, mask)))
    assert found.item() == pytest.approx(expected)


def test_an_empty_mask_counts_for_nothing_and_keeps_the_gradient_path():
    image = torch.rand(2, 3, 4, 4, requires_grad=True)
    target, mask = torch.rand(2, 3, 4, 4), torch.ones(2, 1, 4, 4)
    mask[1] = 0
    assert masked_l1(image, target, mask) == masked_l1(image[:1], target[:1], mask[:1])
    loss = masked_l1(image, target, torch.zeros_like(mask))
    assert loss == 0
    loss.backward()
    assert image.grad.abs().max() == 0


def test_pixels_outside_the_mask_do_not_matter():
    image, target = torch.rand(1, 3, 4, 4), torch.rand(1, 3, 4, 4)
    mask = torch.zeros(1, 1, 4, 4)
    mask[..., :2] = 1
    changed = image + (1 - mask) * 9
    assert masked_l1(changed, target, mask) == masked_l1(image, target, mask)


def test_eq_9_landmarks_by_hand():
    """Distances of 5 and 10 px in a 100 px image: (0.0025 + 0.01) / 2; the third is missing."""
    target = torch.zeros(3, 2)
    predicted = torch.tensor([[3.0, 4.0], [-6.0, 8.0], [77.0, 0.0]])
    loss = landmark_l2(predicted, target, torch.tensor([1.0, 1.0, 0.0]), 100)
    torch.testing.assert_close(loss, torch.tensor(0.00625))


def test_eq_9_landmarks_average_over_images_that_have_any():
    predicted, target = torch.rand(3, 68, 2) * 50, torch.rand(3, 68, 2) * 50
    confidence = torch.ones(3, 68)
    confidence[1] = 0
    expected = (predicted - target)[[0, 2]].square().sum(-1).mean() / 50**2
    torch.testing.assert_close(landmark_l2(predicted, target, confidence, 50), expected)
    nothing = landmark_l2(predicted.requires_grad_(), target, torch.zeros(3, 68), 50)
    nothing.backward()
    assert nothing == 0
    assert predicted.grad.abs().max() == 0


def test_eq_9_landmarks_do_not_depend_on_the_resolution():
    predicted, target, confidence = torch.rand(68, 2), torch.rand(68, 2), torch.rand(68)
    losses = [landmark_l2(predicted * s, target * s, confidence, s) for s in (128, 256)]
    torch.testing.assert_close(*losses)


def test_eq_9_coefficients_by_hand():
    assert coefficient_l2(torch.tensor([[1.0, 2.0], [0.0, 3.0]])) == (5 + 9) / 2
