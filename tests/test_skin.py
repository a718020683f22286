"""Skin by colour: against a loop over Gaussians in NumPy, and colours that everybody knows."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from core.errors import DataError
from core.image_files import read_image
from core.landmarks import MIRROR
from core.skin import OTHER, SKIN, log_density, skin_probability

SAMPLES = Path(os.environ.get("MONOFACE_SAMPLES", Path(__file__).parents[2] / "shared/samples"))


def density(colour: np.ndarray, mixture: tuple) -> float:
    """One pixel, one Gaussian after the other, by the formula with a full covariance matrix."""
    total = 0.0
    for *numbers, weight in mixture:
        mean, covariance = np.array(numbers[:3]), np.diag(numbers[3:])
        away = colour - mean
        exponent = -0.5 * away @ np.linalg.inv(covariance) @ away
        total += weight * np.exp(exponent) / np.sqrt((2 * np.pi) ** 3 * np.linalg.det(covariance))
    return total


def test_against_a_loop_over_pixels_and_gaussians():
    colours = np.random.default_rng(0).integers(0, 256, (2, 3, 5, 7))
    found = skin_probability(torch.from_numpy(colours / 255.0), prior=0.2)
    assert found.shape == (2, 1, 5, 7)
    for b, y, x in np.ndindex(2, 5, 7):
        skin, other = (density(colours[b, :, y, x], mixture) for mixture in (SKIN, OTHER))
        wanted = 0.2 * skin / (0.2 * skin + 0.8 * other)
        assert found[b, 0, y, x].item() == pytest.approx(wanted, rel=1e-9, abs=1e-300)


@pytest.mark.parametrize("mixture", [SKIN, OTHER], ids=["skin", "other"])
def test_the_mixtures_are_densities(mixture):
    """Weights sum to one as far as four digits go, and so does the density, over all colours."""
    assert len(mixture) == 16
    assert sum(row[-1] for row in mixture) == pytest.approx(1, abs=1e-3)
    levels = torch.arange(-100.0, 356, 4)
    red, green, blue = torch.meshgrid(levels, levels, levels, indexing="ij")
    grid = torch.stack([red, green, blue]).flatten(2) / 255
    # The whitest Gaussian is narrower than the grid's step, so it is taken apart.
    wide = tuple(row for row in mixture if min(row[3:6]) > 16)
    mass = sum(log_density(part, wide).double().exp().sum() for part in grid.split(8, 1)) * 4**3
    assert mass.item() == pytest.approx(sum(row[-1] for row in wide), rel=1e-3)


def test_the_tables_are_the_published_ones():
    """Sums of the columns of the tables in CRL technical report 98/11, made from another copy."""
    wanted = {
        SKIN: (2928.50, 2027.72, 1560.64, 5072.83, 2499.49, 4496.61, 0.9992),
        OTHER: (2055.28, 1984.19, 1866.95, 9172.90, 6829.10, 7794.45, 0.9996),
    }
    for mixture, sums in wanted.items():
        assert np.sum(mixture, 0) == pytest.approx(sums, abs=0.005)


@pytest.mark.parametrize(
    ("colour", "is_skin"),
    [
        ((224, 172, 140), True),
        ((198, 134, 100), True),
        ((141, 85, 60), True),
        ((96, 52, 36), True),
        ((0, 0, 255), False),
        ((30, 90, 160), False),
        ((40, 160, 60), False),
        ((255, 255, 255), False),
        ((0, 0, 0), False),
        ((128, 128, 128), False),
    ],
)
def test_known_colours(colour, is_skin):
    patch = (torch.tensor(colour) / 255.0).view(3, 1, 1).expand(3, 4, 4)
    assert bool((skin_probability(patch) > 0.5).all()) == is_skin


def test_far_colours_stay_finite_and_the_prior_counts():
    image = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0)) * 3 - 1
    image.requires_grad_()
    low, high = skin_probability(image, 0.1), skin_probability(image, 0.9)
    assert (low <= high).all()
    assert low.isfinite().all()
    high.sum().backward()
    assert image.grad is not None
    assert image.grad.isfinite().all()
    for prior in (0.0, 1.0):
        with pytest.raises(DataError, match="between 0 and 1"):
            skin_probability(torch.zeros(3, 1, 1), prior)


@pytest.mark.skipif(not (SAMPLES / "aflw2000").is_dir(), reason=f"no real samples in {SAMPLES}")
def test_cheeks_of_real_people_are_skin():
    """Between eye, nose and mouth, of both sides: mostly skin in most of the photos."""
    import scipy.io

    found = []
    for path in sorted((SAMPLES / "aflw2000").glob("image*.jpg")):
        points = scipy.io.loadmat(path.with_suffix(".mat"))["pt3d_68"][:2].T - 0.5
        image = read_image(path).float() / 255
        # a patch in the middle of eye 41, nostril 31, mouth corner 48, and of their mirror images
        for three in ([41, 31, 48], [MIRROR[41], MIRROR[31], MIRROR[48]]):
            x, y = points[three].mean(0).round().astype(int)
            patch = image[:, y - 4 : y + 4, x - 4 : x + 4]
            found.append(skin_probability(patch).mean().item())
    assert len(found) >= 8
    assert np.median(found) > 0.6
