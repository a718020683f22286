"""The comparison of two variants: mean and spread over seeds, and who won each."""

import pytest

from benchmarks.ablation import METRICS, summarize, table


def test_mean_spread_and_wins():
    ours = summarize([dict.fromkeys(METRICS, value) for value in (1.0, 2.0, 6.0)])
    theirs = summarize([dict.fromkeys(METRICS, value) for value in (2.0, 1.0, 9.0)])
    assert ours["shape_mm"]["mean"] == pytest.approx(3)
    assert ours["shape_mm"]["std"] == pytest.approx(7**0.5, abs=1e-4)  # of a sample
    text = table({"seeds": [1, 2, 3], "cest": ours, "iest": theirs}, "iest")
    assert "| shape_mm | 3.00 ± 2.65 | 4.00 ± 4.36 | 2 of 3 |" in text
