"""Mean and spread over seeds, paired bootstrap, and curves: the numbers behind a leaderboard."""

import statistics
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.base import Results

RESAMPLES = 5000
CONFIDENCE = 0.95
FEW = 8  # people: of fewer the interval is too narrow


@dataclass(frozen=True)
class Figure:
    """A cell of a leaderboard.

    Attributes:
        mean: over the seeds.
        over_seeds: sample standard deviation over them; None for a single one.
        over_samples: standard deviation over images or meshes, mean over the seeds, if known.
        seeds: how many.
        decimals: to be printed.
    """

    mean: float
    over_seeds: float | None = None
    over_samples: float | None = None
    seeds: int = 1
    decimals: int = 2


def over_seeds(results: list[Results], metric: str) -> Figure | None:
    """A metric's figure over the runs of one method; None if one of them does not have it."""
    found = [m.value for r in results for m in r.metrics if m.name == metric]
    means = [value.mean for value in found if value.mean is not None]
    if not means or len(means) < len(results):
        return None
    spread = [value.std for value in found if value.std is not None]
    return Figure(
        statistics.fmean(means),
        statistics.stdev(means) if len(means) > 1 else None,
        statistics.fmean(spread) if spread else None,
        len(means),
    )


@dataclass(frozen=True)
class Difference:
    """Of the means of two methods over the samples that both have.

    Attributes:
        mean: second minus first.
        low: of the 95 % confidence interval.
        high: likewise.
        samples: how many.
        people: how many independent ones among them were drawn.
    """

    mean: float
    low: float
    high: float
    samples: int
    people: int

    @property
    def verdict(self) -> str:
        """Whether the interval leaves out zero, in words."""
        if self.people < FEW:
            return "too few to tell"
        return "significant" if self.low > 0 or self.high < 0 else "not significant"


def sample_means(results: list[Results], metric: str) -> dict[str, float]:
    """Each sample's value, mean over the seeds; samples that one of the runs lacks are missing."""
    tables = [r.per_sample.get(metric, {}) for r in results]
    common = set(tables[0]).intersection(*tables[1:])
    return {name: statistics.fmean(table[name] for table in tables) for name in sorted(common)}


def paired_bootstrap(
    first: dict[str, float], second: dict[str, float], resamples: int = RESAMPLES, seed: int = 0
) -> Difference | None:
    """The difference of two means, with the percentile interval of a paired bootstrap.

    Samples of one person are not independent: where names have parts (person/video/frame), people
    are drawn, each with all of their samples. The seeds of the trainings are taken as they are.

    Args:
        first: values by the sample's name.
        second: the same.
        resamples: how many sets are drawn.
        seed: of the drawing.

    Returns:
        None if fewer than two people are common to both.
    """
    by_person = defaultdict(list)
    for name in sorted(set(first) & set(second)):
        by_person[name.partition("/")[0]].append(second[name] - first[name])
    people = len(by_person)
    if people < 2:
        return None
    sums = np.array([sum(values) for values in by_person.values()])
    counts = np.array([len(values) for values in by_person.values()])
    drawn = np.random.default_rng(seed).integers(0, people, (resamples, people))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    samples = int(counts.sum())
    return Difference(float(sums.sum()) / samples, float(low), float(high), samples, people)


def mean_curve(results: list[Results], name: str) -> NDArray[np.float64] | None:
    """A curve "n 2", its heights the mean over the runs; None if they differ in x, or lack it."""
    curves = [np.array(r.curves.get(name, []), dtype=np.float64) for r in results]
    shape = curves[0].shape
    if len(shape) != 2 or shape[0] < 2 or shape[1] != 2:
        return None
    if any(c.shape != shape or not np.array_equal(c[:, 0], curves[0][:, 0]) for c in curves):
        return None
    return np.mean(curves, axis=0)


def area_percent(curve: NDArray[np.float64]) -> float:
    """The area under a curve of heights in %, as a share of the largest possible, in %."""
    x, y = curve.T
    return float(np.trapezoid(y, x) / (x[-1] - x[0]))
